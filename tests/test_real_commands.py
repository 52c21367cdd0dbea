"""Commands with gsocks as their proxy: netcats, text browsers, wget, proxychains4, irssi, ssh."""

from __future__ import annotations

import hashlib
import os
import pty
import pwd
import re
import socket
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Queue

import pytest

from tests.support import needs
from tests.support.program import ROOT, Pages, Program, web_server
from tests.support.real import (
    GONE_EARLY,
    NAME,
    PASSWORD,
    Certified,
    Listener,
    Listeners,
    answer_with_digest,
    tcp_server,
)
from tests.support.waiting import TOO_LONG

CLIENTS = (ROOT / "docs" / "clients.md").read_text()

BIG = hashlib.shake_128(b"real").digest(1 << 20)
DIGEST = hashlib.sha256(BIG).hexdigest().encode()


def run(
    *command: str | Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        timeout=TOO_LONG,
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )


def said(*command: str | Path, stdin: bytes = b"") -> bytes:
    done = run(*command, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- netcats --------------------------------------------------------------------------------------


@pytest.fixture
def digester() -> Iterator[int]:
    """Answers once the client has ended its side: a proxy without half-close never gets there."""
    with tcp_server(answer_with_digest) as port:
        yield port


def nc() -> str:
    return needs.program("nc.openbsd", "netcat-openbsd")


@pytest.mark.parametrize("protocol", ["4", "5", "connect"])
def test_nc_sends_a_mebibyte_ends_and_hears_the_answer(
    inbounds: Listeners, digester: int, protocol: str
) -> None:
    words = ("-N", "-X", protocol, "-x", inbounds.open.at, "localhost", str(digester))
    assert said(nc(), *words, stdin=BIG) == DIGEST
    inbounds.open.carried(f"{'127.0.0.1' if protocol == '4' else 'localhost'}:{digester}")


@pytest.mark.parametrize("protocol", ["4", "5", "connect"])
def test_nc_is_told_of_a_failure_at_once(inbounds: Listeners, protocol: str) -> None:
    done = run(nc(), "-X", protocol, "-x", inbounds.open.at, "192.0.2.1", "80")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nc" in done.stderr


@pytest.mark.parametrize("protocol", ["socks4", "socks5", "http"])
def test_ncat_sends_a_mebibyte_ends_and_hears_the_answer(
    inbounds: Listeners, digester: int, protocol: str
) -> None:
    ncat = needs.program("ncat")
    for inbound in (inbounds.open, inbounds.guarded):
        login = ("--proxy-auth", inbound.credentials) if inbound.credentials else ()
        if login and protocol == "socks4":
            continue
        words = ("--proxy", inbound.at, "--proxy-type", protocol, *login)
        # ncat itself resolves what it sends by SOCKS4
        host = "127.0.0.1" if protocol == "socks4" else "localhost"
        assert said(ncat, *words, host, str(digester), stdin=BIG) == DIGEST
        inbound.carried(f"{host}:{digester}")


# --- wget and proxychains4 ----------------------------------------------------------------------


def wget(*words: str | Path) -> list[str | Path]:
    return [needs.program("wget"), "-q", "-O-", "--tries=1", f"--timeout={TOO_LONG}", *words]


def test_wget_fetches_pages(
    inbound: Listener, web: int, secure_web: int, certified: Certified
) -> None:
    proxies = (
        "-e",
        f"http_proxy={inbound.url('http')}",
        "-e",
        f"https_proxy={inbound.url('http')}",
    )
    plain, secure = f"http://localhost:{web}/text", f"https://localhost:{secure_web}/text"
    authority = f"--ca-certificate={certified.authority}"
    told = said(*wget(*proxies, authority, f"{plain}/one", f"{plain}/two", f"{secure}/three"))
    assert told == b"onetwothree"
    inbound.carried(f"localhost:{web}")
    inbound.carried(f"localhost:{secure_web}", GONE_EARLY)


# --- programs that leave out or put in what others do not -----------------------------------------


class Words(Pages):
    """Answers the last word of the URL, which lftp sends whole to the site itself."""

    def do_GET(self) -> None:
        self.answer(self.path.rpartition("/")[2].encode())


@pytest.fixture(scope="module")
def sites(certified: Certified) -> Iterator[dict[str, int]]:
    """Their ports, by scheme."""
    with (
        web_server(pages=Words) as plain,
        web_server(pages=Words, tls=certified.server()) as secure,
    ):
        yield {"http": plain, "https": secure}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_lftp_fetches_pages_and_sends_no_host_with_connect(
    inbound: Listener, tmp_path: Path, sites: dict[str, int], scheme: str
) -> None:
    script = (
        f"set http:proxy {inbound.url('http')}; set https:proxy {inbound.url('http')};"
        " set ssl:verify-certificate no; set net:max-retries 2;"
        f" cat {scheme}://localhost:{sites[scheme]}/page"
    )
    done = run(needs.program("lftp"), "-c", script, HOME=str(tmp_path))
    assert done.stdout == b"page", done.stderr
    inbound.carried(f"localhost:{sites[scheme]}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_links_fetches_pages_and_sends_no_host_with_connect(
    inbound: Listener, tmp_path: Path, sites: dict[str, int], scheme: str
) -> None:
    at = inbound.url("http").removeprefix("http://")
    options = ("-http-proxy", at, "-https-proxy", at, "-ssl.certificates", "0", "-retries", "1")
    url = f"{scheme}://localhost:{sites[scheme]}/page"
    done = run(needs.program("links"), *options, "-source", url, HOME=str(tmp_path))
    assert done.stdout == b"page", done.stderr
    inbound.carried(f"localhost:{sites[scheme]}", GONE_EARLY)


class Guarded(Words):
    """The same for those who log in."""

    def do_GET(self) -> None:
        wanted = b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
        if self.headers["Authorization"] == f"Basic {wanted}":
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="pages"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize(
    "command",
    [
        ["wget", "-q", "-O-", "--tries=1"],
        ["w3m", "-dump"],
        ["lynx", "-dump", f"-auth={NAME}:{PASSWORD}"],
        ["curl", "-sS"],
    ],
    ids=lambda command: str(command[0]),
)
def test_a_login_in_the_url_reaches_the_site_by_the_clients_own_field(
    inbounds: Listeners, tmp_path: Path, command: list[str]
) -> None:
    """All but curl write it into the request line as well, where it means nothing to the site."""
    with web_server(pages=Guarded) as port:
        url = f"http://{NAME}:{PASSWORD}@localhost:{port}/page"
        words = (needs.program(command[0]), *command[1:], url)
        done = run(*words, http_proxy=inbounds.open.url("http"), HOME=str(tmp_path), TERM="dumb")
        assert done.stdout.strip() == b"page", done.stderr
        inbounds.open.carried(f"localhost:{port}", GONE_EARLY)


def answer_to(said: bytes, *command: str, **environment: str) -> bytes:
    """What a program receives that goes on until its input or its connection ends."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(said)
        process.stdin.flush()
        return process.stdout.read()


def test_corkscrew_writes_an_ipv6_address_without_brackets(inbounds: Listeners) -> None:
    with web_server("::1") as port:
        at = inbounds.open.at.split(":")
        command = [needs.program("corkscrew"), *at, "::1", str(port)]
        assert answer_to(b"GET /text/six HTTP/1.0\r\n\r\n", *command).endswith(b"\r\n\r\nsix")
        inbounds.open.carried(f"[::1]:{port}", GONE_EARLY)


@pytest.mark.parametrize("way", ["-5 -S", "-4 -S", "-H"])
def test_connect_proxy_is_asked_for_no_password(inbounds: Listeners, web: int, way: str) -> None:
    """By SOCKS5 it offers a login always, and has none but the name of its machine's user."""
    options = (*way.split(), inbounds.open.at, "-R", "remote")
    command = [needs.program("connect-proxy"), *options, "localhost", str(web)]
    page = answer_to(b"GET /text/word HTTP/1.0\r\n\r\n", *command, SOCKS5_USER="web-session")
    assert page.endswith(b"\r\n\r\nword")
    inbounds.open.carried(f"localhost:{web}", GONE_EARLY)


IRSSI = """
servers = ({ address = "localhost"; chatnet = "there"; port = "%d"; autoconnect = "yes"; });
chatnets = { there = { type = "IRC"; }; };
settings = { core = {
  use_proxy = "yes"; proxy_address = "127.0.0.1"; proxy_port = "%d";
  proxy_string = "CONNECT %%s:%%d HTTP/1.0\\n\\n";
}; };
"""


def test_irssi_connects_as_its_howto_says(inbounds: Listeners, tmp_path: Path) -> None:
    """By lines that end in LF, behind which it talks on at once."""
    heard: Queue[bytes] = Queue()

    def serve(sock: socket.socket) -> None:
        with suppress(ConnectionResetError):
            while data := sock.recv(4096):
                heard.put(data)

    with tcp_server(serve) as port:
        (tmp_path / "config").write_text(IRSSI % (port, inbounds.open.port))
        ours, terminal = pty.openpty()
        process = subprocess.Popen(
            [needs.program("irssi"), f"--home={tmp_path}"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={"PATH": os.environ["PATH"], "TERM": "vt100", "HOME": str(tmp_path)},
            start_new_session=True,
        )
        os.close(terminal)
        screen = threading.Thread(target=_read_to_end, args=(ours,), daemon=True)
        screen.start()
        try:
            words = b""
            while b"CAP LS" not in words:
                words += heard.get(timeout=TOO_LONG)
        finally:
            process.kill()
            process.wait()
            screen.join(TOO_LONG)
            os.close(ours)
    inbounds.open.carried(f"localhost:{port}", "(ok|client_reset|remote_reset)")


def _read_to_end(terminal: int) -> None:
    with suppress(OSError):  # which is its end
        while os.read(terminal, 65536):
            pass


def proxychains(folder: Path, inbound: Listener, protocol: str) -> list[str | Path]:
    """With the config of docs/clients.md."""
    found = re.search(r"^ +strict_chain\n(?: +.*\n)+", CLIENTS, re.MULTILINE)
    assert found is not None
    text = found[0].replace("socks5", protocol).replace("1080", str(inbound.port))
    login = f" {NAME} {PASSWORD}"
    assert login in text
    config = folder / "proxychains.conf"
    config.write_text(text if inbound.credentials else text.replace(login, ""))
    return [needs.program("proxychains4"), "-q", "-f", config]


@pytest.mark.parametrize("protocol", ["socks4", "socks5", "http"])
def test_proxychains4_puts_a_program_behind_the_proxy_that_knows_of_none(
    inbounds: Listeners, tmp_path: Path, web: int, protocol: str
) -> None:
    for inbound in (inbounds.open, inbounds.guarded):
        if inbound.credentials and protocol == "socks4":
            continue
        chain = proxychains(tmp_path, inbound, protocol)
        url = f"http://127.0.0.1:{web}/text/caught"
        assert said(*chain, *wget("--no-proxy", url)) == b"caught"
        inbound.carried(f"127.0.0.1:{web}")


@pytest.mark.parametrize("protocol", ["socks4", "socks5", "http"])
def test_proxychains4_leaves_names_to_the_proxy(
    inbounds: Listeners, tmp_path: Path, protocol: str
) -> None:
    chain = proxychains(tmp_path, inbounds.open, protocol)
    done = run(*chain, *wget("--no-proxy", f"http://{protocol}.invalid/"))
    assert done.returncode == 4
    inbounds.open.carried(f"{protocol}.invalid:80", "name_not_found")


# --- ssh ------------------------------------------------------------------------------------------


class Ssh:
    """An SSH server for the user that runs the tests, with keys of its own."""

    def __init__(self, folder: Path) -> None:
        keygen = needs.program("ssh-keygen", "openssh-client")
        self._sshd = needs.program("sshd", "openssh-server")
        if os.geteuid() == 0:
            # where sshd locks itself in; Debian's script makes it when the service is started
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for name in ("host", "user"):
            said(keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        host_key = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text(f"there {host_key}")
        self._config = folder / "sshd_config"
        self._config.write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\n"
            "PasswordAuthentication no\nUsePAM no\nPidFile none\nAllowTcpForwarding yes\n"
        )
        self.client = [
            needs.program("ssh", "openssh-client"), "-F", "none", "-T",
            "-i", str(folder / "user"), "-l", pwd.getpwuid(os.geteuid()).pw_name,
            "-o", f"UserKnownHostsFile={folder}/known_hosts", "-o", "HostKeyAlias=there",
            "-o", "BatchMode=yes", "-o", "IdentityAgent=none", "-o", "IdentitiesOnly=yes",
        ]  # fmt: skip

    def serve(self, sock: socket.socket) -> None:
        """As inetd does, so that it needs no port that is known beforehand."""
        sock.settimeout(None)
        subprocess.run(
            [self._sshd, "-i", "-e", "-f", str(self._config)],
            stdin=sock.fileno(),
            stdout=sock.fileno(),
            stderr=subprocess.DEVNULL,
            check=False,
        )


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Ssh:
    return Ssh(tmp_path_factory.mktemp("ssh"))


@pytest.mark.parametrize(
    "through",
    [
        *re.findall(r"ProxyCommand (nc.*)", CLIENTS),
        "nc -X 4 -x 127.0.0.1:1080 %h %p",
        "nc -X connect -x 127.0.0.1:1080 %h %p",
        "ncat --proxy 127.0.0.1:1080 --proxy-type http --proxy-auth ali:open-sesame %h %p",
    ],
)
def test_ssh_carries_a_mebibyte_to_and_fro_by_a_proxy_command(
    inbounds: Listeners, ssh: Ssh, through: str
) -> None:
    inbound = inbounds.guarded if "--proxy-auth" in through else inbounds.open
    program, words = through.replace("127.0.0.1:1080", inbound.at).split(" ", 1)
    path = nc() if program == "nc" else needs.program(program)
    with tcp_server(ssh.serve) as port:
        options = ("-o", f"ProxyCommand={path} {words}", "-p", str(port))
        assert said(*ssh.client, *options, "127.0.0.1", "cat", stdin=BIG) == BIG
        inbound.carried(f"127.0.0.1:{port}", GONE_EARLY)


def test_ssh_carries_it_through_a_forward(ssh: Ssh) -> None:
    """Where the server speaks first."""
    with (
        tcp_server(ssh.serve) as port,
        Program("forward", f"0:127.0.0.1:{port}", "--exit", "direct") as program,
    ):
        at = program.wait_for(r"forward: listening on \S+:(\d+) ")[0][1]
        assert said(*ssh.client, "-p", at, "127.0.0.1", "cat", stdin=BIG) == BIG
        program.wait_for("inbound=forward .*outcome=ok")
