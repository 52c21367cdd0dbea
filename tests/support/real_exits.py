"""Real proxies as exits: each with the config that it needs, in a folder of its own, on loopback.

A proxy may be started sick as well: it runs and accepts its clients, and reaches no destination,
since its rules forbid all of them or the way behind it is dead.

Debian's are on PATH.  The others are what ``make exits`` has put into :data:`BUILD`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import gevent
import trustme

from tests.support import needs
from tests.support.waiting import TOO_LONG

ROOT = Path(__file__).parent.parent.parent

#: what ``make exits`` makes: bin/ of Go, venv/ of PyPI, node/ of npm
BUILD = ROOT / "build" / "exits"

#: the address from which exits reach destinations, where they have to know it
OUTBOUND = "93.184.215.1"


Argv: TypeAlias = list[str | Path]


class Launch(NamedTuple):
    """What is to run."""

    #: the exit, without host and port
    scheme: str
    #: the programs, in the order in which they are started; the last one is the exit
    programs: Sequence[Argv]
    #: the ports that they listen on, in the same order
    ports: Sequence[int]
    environment: Mapping[str, str] = {}


class Place(NamedTuple):
    """Where a proxy runs."""

    folder: Path
    #: the port of the exit
    port: int
    #: another one, for what stands behind it
    behind: int
    #: a port on which nothing listens
    dead: int
    sick: bool

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


class RealExit(NamedTuple):
    """A kind of proxy."""

    name: str
    launch: Callable[[Place], Launch]
    #: whether it can be made sick
    may_be_sick: bool = True
    #: whether it tells of success before it knows, at least when it is sick
    says_yes_first: bool = False
    #: whether Debian has it
    debian: bool = True

    def __str__(self) -> str:
        return self.name


@contextmanager
def running(kind: RealExit, folder: Path, *, sick: bool = False) -> Iterator[str]:
    """The proxy's URL, once it listens.  It is killed at the end, with all that it has started."""
    folder.mkdir()
    folder.chmod(0o777)  # some give up their rights before they write
    launch = kind.launch(Place(folder, _unused(), _unused(), _unused(), sick))
    with ExitStack() as stack:
        for argv, port in zip(launch.programs, launch.ports, strict=True):
            stack.enter_context(started(argv, port, folder, launch.environment))
        yield f"{launch.scheme}://127.0.0.1:{launch.ports[-1]}"


def _unused() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def started(
    argv: Argv, port: int, folder: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """A program, once it listens, with ``folder`` for its files and its log."""
    log = folder / f"{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, argv)),
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + TOO_LONG
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} did not start: {log.read_text()[-2000:]}")
            gevent.sleep(0.02)
        yield
    finally:
        if Path(argv[0]).name == "squid" and process.poll() is None:
            process.terminate()  # it removes its shared memory
            with suppress(subprocess.TimeoutExpired):
                process.wait(TOO_LONG)
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()


def _listens(port: int) -> bool:
    """From the kernel's table: a connection that says nothing is a strange client to some."""
    entry = f":{port:04X} "
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()
        if any(entry in line and line.split()[3] == "0A" for line in lines):
            return True
    return False


# --- Debian's, HTTP -----------------------------------------------------------------------------


def _squid(at: Place) -> Launch:
    config = at.write(
        "squid.conf",
        f"http_port 127.0.0.1:{at.port}\nhttp_access {'deny' if at.sick else 'allow'} all\n"
        f"cache deny all\npid_filename none\naccess_log none\ncache_log {at.folder}/cache.log\n"
        "netdb_filename none\nshutdown_lifetime 0 seconds\nvisible_hostname exit.example\n"
        "pinger_enable off\nlogfile_rotate 0\nmax_filedescriptors 1024\n",
    )
    program = needs.program("squid", "squid")
    return Launch("http", [[program, "-N", "-n", f"exit{at.port}", "-f", config]], [at.port])


def _tinyproxy(at: Place) -> Launch:
    upstream = f"Upstream http 127.0.0.1:{at.dead}\n" if at.sick else ""
    config = at.write(
        "tinyproxy.conf", f"Port {at.port}\nListen 127.0.0.1\nMaxClients 100\n{upstream}"
    )
    program = needs.program("tinyproxy", "tinyproxy")
    return Launch("http", [[program, "-d", "-c", config]], [at.port])


def _privoxy(at: Place) -> Launch:
    forward = f"forward / 127.0.0.1:{at.dead}\n" if at.sick else ""
    config = at.write(
        "privoxy.conf",
        f"confdir {at.folder}\nlogdir {at.folder}\ntempldir /etc/privoxy/templates\n"
        f"listen-address 127.0.0.1:{at.port}\ntoggle 0\n{forward}",
    )
    program = needs.program("privoxy", "privoxy")
    return Launch("http", [[program, "--no-daemon", config]], [at.port])


def _apache(at: Place) -> Launch:
    modules = "".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
        for name in ("mpm_event", "authz_core", "proxy", "proxy_connect", "proxy_http")
    )
    config = at.write(
        "apache.conf",
        f"ServerRoot {at.folder}\nServerName exit.example\nListen 127.0.0.1:{at.port}\n"
        f"DefaultRuntimeDir {at.folder}\nPidFile {at.folder}/pid\nErrorLog {at.folder}/error.log\n"
        f"{modules}User www-data\nGroup www-data\nProxyRequests On\nAllowCONNECT 443\n"
        f"<Proxy *>\nRequire all {'denied' if at.sick else 'granted'}\n</Proxy>\n",
    )
    program = needs.program("apache2", "apache2")
    return Launch("http", [[program, "-D", "FOREGROUND", "-f", config]], [at.port])


def _traffic_server(at: Place) -> Launch:
    for name in ("etc", "run", "cache", "log"):
        (at.folder / name).mkdir()
        (at.folder / name).chmod(0o777)
    # its own layout, all of it in this folder
    at.write(
        "runroot.yaml",
        "prefix: /usr\nexec_prefix: /usr\nbindir: /usr/bin\nsbindir: /usr/sbin\n"
        "libdir: /usr/lib/trafficserver\nlibexecdir: /usr/lib/trafficserver/modules\n"
        f"sysconfdir: {at.folder}/etc\ndatadir: {at.folder}/cache\ncachedir: {at.folder}/cache\n"
        f"localstatedir: {at.folder}\nruntimedir: {at.folder}/run\nlogdir: {at.folder}/log\n",
    )
    at.write(
        "etc/ip_allow.yaml",
        "ip_allow:\n  - apply: in\n    ip_addrs: 0/0\n"
        f"    action: {'deny' if at.sick else 'allow'}\n    methods: ALL\n",
    )
    at.write(
        "etc/records.config",
        f"CONFIG proxy.config.http.server_ports STRING {at.port}:ip-in=127.0.0.1\n"
        "CONFIG proxy.config.url_remap.remap_required INT 0\n"
        "CONFIG proxy.config.reverse_proxy.enabled INT 0\n"
        "CONFIG proxy.config.http.connect_ports STRING 443\n"
        "CONFIG proxy.config.http.cache.http INT 0\n"
        "CONFIG proxy.config.admin.user_id STRING nobody\n"
        "CONFIG proxy.config.log.logging_enabled INT 0\n"
        "CONFIG proxy.config.exec_thread.autoconfig INT 0\n"
        "CONFIG proxy.config.exec_thread.limit INT 2\n",
    )
    at.write("etc/storage.config", "")
    program = needs.program("traffic_server", "trafficserver")
    return Launch("http", [[program, f"--run-root={at.folder}/runroot.yaml"]], [at.port])


def _ncat(at: Place) -> Launch:
    program = needs.program("ncat", "ncat")
    listen = ["-l", "-k", "--proxy-type", "http", "127.0.0.1", str(at.port)]
    return Launch("http", [[program, *listen]], [at.port])


# --- Debian's, SOCKS ----------------------------------------------------------------------------


def _dante(at: Place) -> Launch:
    config = at.write(
        "danted.conf",
        f"internal: 127.0.0.1 port = {at.port}\nexternal: {OUTBOUND}\n"
        "socksmethod: none\nclientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n"
        "client pass { from: 0/0 to: 0/0 }\n"
        f"socks {'block' if at.sick else 'pass'} {{ from: 0/0 to: 0/0 }}\n",
    )
    program = needs.program("danted", "dante-server")
    return Launch("socks5", [[program, "-f", config]], [at.port])


def _microsocks(at: Place) -> Launch:
    program = needs.program("microsocks", "microsocks")
    # an address that this machine does not have: nothing can be reached from it
    bind = ["-b", "203.0.113.77"] if at.sick else []
    return Launch("socks5", [[program, "-i", "127.0.0.1", "-p", str(at.port), *bind]], [at.port])


def _ssh(at: Place) -> Launch:
    keygen = needs.program("ssh-keygen", "openssh-client")
    sshd = needs.program("sshd", "openssh-server")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        command: Argv = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", at.folder / name]
        subprocess.run(command, check=True)
    at.write("known_hosts", "there " + (at.folder / "host.pub").read_text())
    config = at.write(
        "sshd_config",
        f"Port {at.behind}\nListenAddress 127.0.0.1\nHostKey {at.folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {at.folder}/user.pub\nStrictModes no\nPasswordAuthentication no\n"
        f"UsePAM no\nAllowTcpForwarding yes\nPermitOpen {'none' if at.sick else 'any'}\n"
        "MaxSessions 1000\n",
    )
    client: Argv = [
        needs.program("ssh", "openssh-client"), "-F", "none", "-N", "-i", at.folder / "user",
        "-l", pwd.getpwuid(os.geteuid()).pw_name, "-p", str(at.behind),
        "-D", f"127.0.0.1:{at.port}",
        "-o", f"UserKnownHostsFile={at.folder}/known_hosts", "-o", "HostKeyAlias=there",
        "-o", "BatchMode=yes", "-o", "IdentityAgent=none", "-o", "IdentitiesOnly=yes",
        "127.0.0.1",
    ]  # fmt: skip
    return Launch("socks5", [[sshd, "-D", "-e", "-f", config], client], [at.behind, at.port])


def _stunnel(at: Place) -> Launch:
    program = needs.program("stunnel4", "stunnel4")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        at.folder / "server.pem"
    )
    common = "foreground = yes\npid =\n"
    # sick: what stands behind TLS is not there
    behind = f"connect = 127.0.0.1:{at.dead}" if at.sick else "protocol = socks"
    server = at.write(
        "server.conf",
        f"{common}[socks]\naccept = 127.0.0.1:{at.behind}\n{behind}\n"
        f"cert = {at.folder}/server.pem\n",
    )
    client = at.write(
        "client.conf",
        f"{common}[socks]\nclient = yes\naccept = 127.0.0.1:{at.port}\n"
        f"connect = 127.0.0.1:{at.behind}\n",
    )
    return Launch("socks5", [[program, server], [program, client]], [at.behind, at.port])


def _shadowsocks(at: Place) -> Launch:
    local, server = (needs.program(name, "shadowsocks-libev") for name in ("ss-local", "ss-server"))
    to = at.dead if at.sick else at.behind
    common = ["-k", "password", "-m", "chacha20-ietf-poly1305"]
    near: Argv = [
        local, "-s", "127.0.0.1", "-p", str(to), "-b", "127.0.0.1", "-l", str(at.port), *common
    ]  # fmt: skip
    far: Argv = [server, "-s", "127.0.0.1", "-p", str(at.behind), *common]
    return Launch("socks5", [far, near], [at.behind, at.port])


# --- those of PyPI, npm and Go ------------------------------------------------------------------


def built(*parts: str) -> Path:
    """A program that ``make exits`` has made, or has found on PATH."""
    path = BUILD.joinpath(*parts)
    found = path if path.exists() else shutil.which(path.name)
    if found is None:
        needs.missing(f"needs {path.name}, which make exits builds, or which is on PATH")
    return Path(found)


def _mitmproxy(at: Place) -> Launch:
    argv: Argv = [
        built("venv", "bin", "mitmdump"), "-q", "--listen-host", "127.0.0.1",
        "--listen-port", str(at.port), "--set", f"confdir={at.folder}",
        "--ignore-hosts", ".*",
    ]  # fmt: skip
    if at.sick:
        argv += ["--mode", f"upstream:http://127.0.0.1:{at.dead}"]
    return Launch("http", [argv], [at.port])


def _proxy_py(at: Place) -> Launch:
    argv: Argv = [
        built("venv", "bin", "proxy"), "--hostname", "127.0.0.1", "--port", str(at.port),
        "--num-workers", "1", "--num-acceptors", "1", "--log-level", "e",
        "--data-dir", at.folder / "data",
    ]  # fmt: skip
    return Launch("http", [argv], [at.port])


def _pproxy(scheme: str) -> Callable[[Place], Launch]:
    def launch(at: Place) -> Launch:
        argv: Argv = [built("venv", "bin", "pproxy"), "-l", f"{scheme}://127.0.0.1:{at.port}"]
        if at.sick:
            argv += ["-r", f"http://127.0.0.1:{at.dead}"]
        return Launch(scheme, [argv], [at.port])

    return launch


_PROXY_CHAIN = """
const {Server} = require('proxy-chain');
const [port, dead] = process.argv.slice(2);
new Server({
  port: Number(port), host: '127.0.0.1',
  prepareRequestFunction: () => dead ? {upstreamProxyUrl: `http://127.0.0.1:${dead}`} : {},
}).listen();
"""


def _proxy_chain(at: Place) -> Launch:
    modules = built("node", "node_modules")
    script = at.write("chain.cjs", _PROXY_CHAIN)
    argv: Argv = [needs.program("node", "nodejs"), script, str(at.port)]
    if at.sick:
        argv.append(str(at.dead))
    return Launch("http", [argv], [at.port], {"NODE_PATH": str(modules)})


def _goproxy(at: Place) -> Launch:
    return Launch("http", [[built("bin", "goproxy"), f"127.0.0.1:{at.port}"]], [at.port])


def _sing_box(scheme: str) -> Callable[[Place], Launch]:
    def launch(at: Place) -> Launch:
        out = (
            f'{{"type":"http","server":"127.0.0.1","server_port":{at.dead}}}'
            if at.sick
            else '{"type":"direct"}'
        )
        config = at.write(
            "sing-box.json",
            '{"log":{"disabled":true},"inbounds":[{"type":"mixed","listen":"127.0.0.1",'
            f'"listen_port":{at.port}}}],"outbounds":[{out}]}}',
        )
        return Launch(scheme, [[built("bin", "sing-box"), "run", "-c", config]], [at.port])

    return launch


def _glider(scheme: str) -> Callable[[Place], Launch]:
    def launch(at: Place) -> Launch:
        argv: Argv = [built("bin", "glider"), "-listen", f"mixed://127.0.0.1:{at.port}"]
        if at.sick:
            argv += ["-forward", f"http://127.0.0.1:{at.dead}"]
        return Launch(scheme, [argv], [at.port])

    return launch


def _gost(scheme: str) -> Callable[[Place], Launch]:
    def launch(at: Place) -> Launch:
        argv: Argv = [built("bin", "gost"), "-L", f"{scheme}://127.0.0.1:{at.port}"]
        if at.sick:
            argv += ["-F", f"http://127.0.0.1:{at.dead}"]
        return Launch(scheme, [argv], [at.port])

    return launch


EXITS = {
    kind.name: kind
    for kind in (
        RealExit("squid", _squid),
        RealExit("tinyproxy", _tinyproxy),
        RealExit("privoxy", _privoxy),
        RealExit("apache", _apache),
        RealExit("trafficserver", _traffic_server, says_yes_first=True),
        RealExit("ncat", _ncat, may_be_sick=False),
        RealExit("dante", _dante),
        RealExit("microsocks", _microsocks),
        RealExit("ssh", _ssh),
        RealExit("stunnel", _stunnel, says_yes_first=True),
        RealExit("shadowsocks", _shadowsocks, says_yes_first=True),
        RealExit("mitmproxy", _mitmproxy, says_yes_first=True, debian=False),
        RealExit("proxy.py", _proxy_py, may_be_sick=False, debian=False),
        RealExit("pproxy", _pproxy("socks5"), says_yes_first=True, debian=False),
        RealExit("pproxy-http", _pproxy("http"), debian=False),
        RealExit("proxy-chain", _proxy_chain, debian=False),
        RealExit("goproxy", _goproxy, may_be_sick=False, debian=False),
        RealExit("sing-box", _sing_box("socks5"), debian=False),
        RealExit("sing-box-http", _sing_box("http"), says_yes_first=True, debian=False),
        RealExit("glider", _glider("socks5"), says_yes_first=True, debian=False),
        RealExit("glider-http", _glider("http"), debian=False),
        RealExit("gost", _gost("socks5"), debian=False),
        RealExit("gost-http", _gost("http"), debian=False),
    )
}
