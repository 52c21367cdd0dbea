"""Commands with gsocks as their proxy: nc, ncat, wget, proxychains4, ssh."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.program import ROOT, Program
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
