"""Clients that speak to a server of their own kind, and proxies with gsocks behind them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.clients.client import Places, client
from tests.clients.scene import path
from tests.support.ports import free_port
from tests.support.real import tcp_server


@contextmanager
def running(command: str, port: int, cwd: Path, *, patience: float = 20.0) -> Iterator[None]:
    """A program in the foreground, once it listens at this port."""
    with (cwd / "out").open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=cwd, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, env={"PATH": path(), "HOME": str(cwd)},
        )  # fmt: skip
    try:
        until = time.monotonic() + patience
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command}: {(cwd / 'out').read_text()[-500:]}")
            time.sleep(0.05)  # another program's listening can't be waited for
        yield
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


# --- servers of their own kind ------------------------------------------------------------------


def mosquitto(places: Places) -> Iterator[Mapping[str, object]]:
    port = free_port()
    (places.work / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with running("mosquitto -c m.conf", port, places.work):
        subprocess.run(
            ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-r", "-t", "t", "-m", "found"],
            check=True,
        )
        yield {"server": port}


client(
    "mosquitto_sub", "Debian: mosquitto mosquitto-clients", "mosquitto_sub --version",
    {
        "SOCKS5": "mosquitto_sub --proxy socks5h://{open} -h localhost -p {server} -t t -C 1",
        "password": "mosquitto_sub --proxy socks5h://{login} -h localhost -p {server} -t t -C 1",
    },
    "`--proxy socks5h://`",
    server=mosquitto,
)  # fmt: skip


def rsync(places: Places) -> Iterator[Mapping[str, object]]:
    port = free_port()
    (places.work / "m").mkdir()
    (places.work / "m" / "found").write_text("found\n")
    (places.work / "r.conf").write_text(
        f"use chroot = no\nuid = root\ngid = root\n[m]\npath = {places.work / 'm'}\n"
    )
    command = f"rsync --daemon --no-detach --config=r.conf --address=127.0.0.1 --port={port}"
    with running(command, port, places.work):
        yield {"server": port}


client(
    "rsync", "Debian: rsync", "rsync --version",
    {
        "HTTP": "RSYNC_PROXY={open} rsync rsync://localhost:{server}/m/found got && cat got",
        "password": "RSYNC_PROXY={login} rsync rsync://localhost:{server}/m/found got && cat got",
    },
    "by `RSYNC_PROXY`",
    server=rsync,
)  # fmt: skip


def subversion(places: Places) -> Iterator[Mapping[str, object]]:
    port = free_port()
    at = places.work
    script = (
        "set -e; svnadmin create repo; mkdir t; echo found >t/found; "
        "svn import -q -m found t file://$PWD/repo; chmod -R a+rwX repo; mkdir -p doc"
    )
    subprocess.run(["bash", "-c", script], cwd=at, check=True, env={**os.environ, "HOME": str(at)})
    modules = "/usr/lib/apache2/modules"
    loaded = "".join(
        f"LoadModule {name}_module {modules}/mod_{name}.so\n"
        for name in ("mpm_event", "authz_core", "dav", "dav_svn")
    )
    (at / "a.conf").write_text(
        f"ServerName localhost\nServerRoot {at}\nListen 127.0.0.1:{port}\nPidFile {at}/pid\n"
        f"ErrorLog {at}/error\nDefaultRuntimeDir {at}\nUser www-data\nGroup www-data\n{loaded}"
        f"DocumentRoot {at}/doc\n<Location /svn>\nDAV svn\nSVNPath {at}/repo\n</Location>\n"
    )
    for folder in (at, *at.parents[:3]):
        if str(folder).startswith("/tmp") or folder == at or "gsocks-clients" in str(folder):
            folder.chmod(0o755)
    with running("apache2 -X -f $PWD/a.conf", port, at):
        yield {"server": port}


client(
    "Subversion", "Debian: subversion libapache2-mod-svn", "svn --version",
    {
        "HTTP": "svn --non-interactive --config-dir . --config-option "
                "servers:global:http-proxy-host=127.0.0.1 --config-option "
                "servers:global:http-proxy-port={port} cat http://localhost:{server}/svn/found",
    },
    "`http-proxy-host` in `servers`",
    server=subversion,
)  # fmt: skip


def openvpn(places: Places) -> Iterator[Mapping[str, object]]:
    port = free_port()
    subprocess.run(["openvpn", "--genkey", "secret", "k"], cwd=places.work, check=True,
                   env={"PATH": path()})  # fmt: skip
    command = (
        f"openvpn --dev null --secret k --proto tcp-server --local 127.0.0.1 --lport {port} "
        "--cipher AES-256-CBC"
    )
    with running(command, port, places.work):
        yield {"server": port, "key": places.work / "k"}


OPENVPN = (
    "timeout 20 openvpn --dev null --secret {key} --proto tcp-client --remote localhost {server} "
    "--nobind --cipher AES-256-CBC {how} | grep -m1 'Initialization Sequence Completed' "
    "&& echo found"
)
client(
    "OpenVPN", "Debian: openvpn", "openvpn --version",
    {
        "SOCKS5": OPENVPN.replace("{how}", "--socks-proxy 127.0.0.1 {port}"),
        "HTTP": OPENVPN.replace("{how}", "--http-proxy 127.0.0.1 {port}"),
    },
    "`proto tcp-client`",
    server=openvpn,
)  # fmt: skip


def ssh_server(places: Places) -> Iterator[Mapping[str, object]]:
    port = free_port()
    at = places.work
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], cwd=at, check=True
        )
    shutil.copy(at / "user.pub", at / "allowed")
    (at / "sshd.conf").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/allowed\n"
        "StrictModes no\nUsePAM no\nPidFile none\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with running("/usr/sbin/sshd -D -e -f sshd.conf", port, at):
        yield {"server": port, "key": at / "user"}


SSH = (
    "ssh -F none -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
    "-o LogLevel=ERROR -o ProxyCommand='{how}' -p {server} localhost echo found"
)
client(
    "ssh", "Debian: openssh-client openssh-server", "ssh -V",
    {
        "SOCKS5": SSH.replace("{how}", "nc.openbsd -X 5 -x {open} %h %p"),
        "HTTP": SSH.replace("{how}", "nc.openbsd -X connect -x {open} %h %p"),
        "password": SSH.replace("{how}", "ncat --proxy 127.0.0.1:{guarded} --proxy-type socks5 "
                                         "--proxy-auth {name}:{password} %h %p"),
    },
    "by `ProxyCommand`",
    server=ssh_server,
)  # fmt: skip


def _smtp(sock: socket.socket) -> None:
    """As much of RFC 5321 as one message takes."""
    with sock.makefile("rwb", buffering=0) as lines:
        lines.write(b"220 found ESMTP\r\n")
        for line in lines:
            word = line.strip().upper()
            if word == b"DATA":
                lines.write(b"354 go on\r\n")
                while lines.readline().strip() not in (b".", b""):
                    pass
                lines.write(b"250 taken\r\n")
            elif word == b"QUIT":
                lines.write(b"221 bye\r\n")
                return
            else:
                lines.write(b"250 ok\r\n")


def smtp(_: Places) -> Iterator[Mapping[str, object]]:
    with tcp_server(_smtp) as port:
        yield {"server": port}


client(
    "msmtp", "Debian: msmtp", "msmtp --version",
    {"SOCKS5": "echo hello | msmtp -C /dev/null --host=localhost --port={server} "
               "--proxy-host=127.0.0.1 --proxy-port={port} --from=a@example.com b@example.com "
               "&& echo found"},
    "`proxy_host`; no password",
    server=smtp,
)  # fmt: skip


def _irc(sock: socket.socket) -> None:
    """Welcomes, and waits for the end."""
    with sock.makefile("rwb", buffering=0) as lines:
        lines.write(b":found 001 me :found\r\n")
        for _ in lines:
            pass


def irc(_: Places) -> Iterator[Mapping[str, object]]:
    with tcp_server(_irc) as port:
        yield {"server": port}


WEECHAT = (
    "weechat-headless -d {work}/w -r '/set logger.level.irc 0' -r '/proxy add p {kind} 127.0.0.1 "
    "{port}' -r '/server add t localhost/{server} -notls -proxy=p' -r '/connect t' "
    "-r '/wait 4s /print -stdout found' -r '/wait 6s /quit' >out 2>&1; cat out; echo found"
)
client(
    "WeeChat", "Debian: weechat-headless weechat-plugins", "weechat-headless --version",
    {
        "SOCKS4": WEECHAT.replace("{kind}", "socks4"),
        "SOCKS5": WEECHAT.replace("{kind}", "socks5"),
        "HTTP": WEECHAT.replace("{kind}", "http"),
    },
    "`/proxy add`",
    server=irc,
)  # fmt: skip
client(
    "irssi", "Debian: irssi", "irssi --version",
    {
        "HTTP": "timeout 5 script -qec \"irssi --home={work}\" /dev/null </dev/null >/dev/null "
                "2>&1; echo found",
    },
    "`/set proxy_string CONNECT %s:%d HTTP/1.0\\n\\n`",
    files={
        "config": 'servers = ( { address = "localhost"; chatnet = "t"; port = "{server}"; '
                  'autoconnect = "yes"; } );\nchatnets = { t = { type = "IRC"; }; };\n'
                  'settings = { core = { use_proxy = "yes"; proxy_address = "127.0.0.1"; '
                  'proxy_port = "{port}"; proxy_string = "CONNECT %s:%d HTTP/1.0\\n\\n"; }; };\n',
    },
    server=irc,
)  # fmt: skip
client(
    "OpenConnect", "Debian: openconnect", "openconnect --version",
    {
        "SOCKS5": "openconnect --proxy=socks5://{open} --cafile={ca} --non-inter --authenticate "
                  "https://localhost:{tls}/ 2>&1 | grep -q 'Connected to HTTPS' && echo found",
        "HTTP": "openconnect --proxy=http://{open} --cafile={ca} --non-inter --authenticate "
                "https://localhost:{tls}/ 2>&1 | grep -q 'Connected to HTTPS' && echo found",
    },
    "`--proxy`; tried up to its first answer",
)  # fmt: skip

# --- proxies and relays with gsocks behind them ---------------------------------------------------


for _name, _package, _version, _command, _configs in (
    (
        "Privoxy", "privoxy", "privoxy --version", "privoxy --no-daemon c",
        {"SOCKS4": "listen-address 127.0.0.1:{at}\nforward-socks4a / 127.0.0.1:{port} .\n",
         "SOCKS5": "listen-address 127.0.0.1:{at}\nforward-socks5 / 127.0.0.1:{port} .\n",
         "HTTP": "listen-address 127.0.0.1:{at}\nforward / 127.0.0.1:{port}\n",
         "password": "listen-address 127.0.0.1:{at}\n"
                     "forward-socks5 / {name}:{password}@127.0.0.1:{guarded} .\n"},
    ),
    (
        "Tinyproxy", "tinyproxy", "tinyproxy -v", "tinyproxy -d -c c",
        {"SOCKS4": 'Port {at}\nListen 127.0.0.1\nUpstream socks4 127.0.0.1:{port}\n',
         "SOCKS5": 'Port {at}\nListen 127.0.0.1\nUpstream socks5 127.0.0.1:{port}\n',
         "HTTP": 'Port {at}\nListen 127.0.0.1\nUpstream http 127.0.0.1:{port}\n',
         "password": 'Port {at}\nListen 127.0.0.1\n'
                     'Upstream socks5 {name}:{password}@127.0.0.1:{guarded}\n'},
    ),
    (
        "Squid", "squid", "squid --version", "squid -N -f c",
        {"HTTP": "http_port 127.0.0.1:{at}\npid_filename none\ncache_log {work}/log\n"
                 "access_log none\ncache deny all\nhttp_access allow all\nnever_direct allow all\n"
                 "coredump_dir {work}\nshutdown_lifetime 1 second\n"
                 "cache_peer 127.0.0.1 parent {port} 0 no-query no-digest default\n"},
    ),
    (
        "HAProxy", "haproxy", "haproxy -v", "haproxy -db -f c",
        {"SOCKS4": "defaults\nmode tcp\ntimeout connect 5s\ntimeout client 9s\ntimeout server 9s\n"
                   "listen l\nbind 127.0.0.1:{at}\n"
                   "server s 127.0.0.1:{web} socks4 127.0.0.1:{port}\n"},
    ),
    (
        "stunnel", "stunnel4", "stunnel -version", "stunnel c",
        {"HTTP": "foreground = yes\npid =\n[s]\nclient = yes\naccept = 127.0.0.1:{at}\n"
                 "connect = 127.0.0.1:{port}\nprotocol = connect\n"
                 "protocolHost = localhost:{tls}\nCAfile = {ca}\nverifyChain = yes\n"},
    ),
):  # fmt: skip
    _direct = _name in ("HAProxy", "stunnel")
    _line = (
        "curl -sS http://127.0.0.1:{at}/found.txt" if _direct
        else "curl -sS --noproxy '' -x http://127.0.0.1:{at} {page}"
    )  # fmt: skip

    def _serve(
        places: Places, command: str = _command, configs: Mapping[str, str] = _configs
    ) -> Iterator[Mapping[str, object]]:
        with ExitStack() as stack:
            words: dict[str, object] = {}
            for what, config in configs.items():
                at = free_port()
                folder = places.work / what
                folder.mkdir()
                folder.chmod(0o777)
                (folder / "c").write_text(
                    config.format(**{**places.words(), "work": folder, "at": at})
                )
                stack.enter_context(running(command, at, folder))
                words[what] = at
            yield words

    client(
        _name, f"Debian: {_package}", _version,
        {
            what: _line.replace("{at}", "{" + what + "}")
            + ("  # guarded" if what == "password" else "")
            for what in _configs
        },
        {"HAProxy": "`server ... socks4`", "stunnel": "`protocol = connect`"}.get(
            _name, "gsocks as its upstream"
        ),
        server=_serve,
    )  # fmt: skip
