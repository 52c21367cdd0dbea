"""trojan with the servers of others, over TCP and UDP: Debian's trojan, and sing-box, which
``make exits`` builds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import gevent
import pytest
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits import Exit, ExitDeps, ExitSpec, make_exit
from gsocks.request import CONNECT, Request
from tests.support import needs
from tests.support.datagrams import exchange, udp_server
from tests.support.engine import echo, serving
from tests.support.ports import free_port
from tests.support.proxies import authority
from tests.support.real_exits import built, started
from tests.support.stream_contract import read_exactly

pytestmark = pytest.mark.usefixtures("never_hangs")

PASSWORD = "p4ss w@rd:#1"
#: bytes there and back
BULK = 200_000

SERVERS = ["trojan", "sing-box"] if os.environ.get("ALL_EXITS") else ["trojan"]


def _trojan(folder: Path, port: int, web: Address) -> list[str | Path]:
    """Debian's, which hands what has another password to ``web``."""
    ssl = {"cert": str(folder / "server.pem"), "key": str(folder / "server.pem")}
    config = {
        "run_type": "server",
        "local_addr": "127.0.0.1",
        "local_port": port,
        "remote_addr": web.host,
        "remote_port": web.port,
        "password": [PASSWORD],
        "log_level": 5,
        "ssl": {**ssl, "alpn": ["http/1.1"]},
    }
    (folder / "server.json").write_text(json.dumps(config))
    return [needs.program("trojan", "trojan"), "-c", folder / "server.json"]


def _sing_box(folder: Path, port: int, web: Address) -> list[str | Path]:
    pem = str(folder / "server.pem")
    inbound = {
        "type": "trojan",
        "listen": "127.0.0.1",
        "listen_port": port,
        "users": [{"name": "ann", "password": PASSWORD}],
        "tls": {"enabled": True, "certificate_path": pem, "key_path": pem},
        "fallback": {"server": web.host, "server_port": web.port},
    }
    config = {
        "log": {"disabled": True},
        "inbounds": [inbound],
        "outbounds": [{"type": "direct"}],
    }
    (folder / "server.json").write_text(json.dumps(config))
    return [built("bin", "sing-box"), "run", "-c", folder / "server.json"]


@contextmanager
def running(program: str, folder: Path, web: Address) -> Iterator[str]:
    """The URL of a trojan server without the password, once it listens."""
    issued = authority().issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority().cert_pem.write_to_path(folder / "ca.pem")
    port = free_port()
    argv = (_trojan if program == "trojan" else _sing_box)(folder, port, web)
    with started(argv, port, folder):
        yield f"127.0.0.1:{port}?ca={quote(str(folder / 'ca.pem'))}"


def way_by(url: str, password: str = PASSWORD) -> Exit:
    spec = ExitSpec.parse(f"trojan://{quote(password, safe='')}@{url}")
    return make_exit(spec, ExitDeps(ALLOW_ALL))


@pytest.mark.parametrize("program", SERVERS)
def test_a_server_of_another_program_is_an_exit(program: str, tmp_path: Path) -> None:
    with (
        serving(echo) as echo_at,
        udp_server() as udp_at,
        running(program, tmp_path, echo_at) as url,
    ):
        way = way_by(url)
        data = os.urandom(BULK)
        for payload in (b"", data):
            stream = way.connect(Request(CONNECT, echo_at, payload=payload)).stream
            writing = gevent.spawn(stream.write, data)
            assert read_exactly(stream, BULK) == data
            writing.get()
            stream.abort()
        for size in (0, 1000, 8000):
            assert exchange(way, udp_at, data[:size]) == data[:size]


@pytest.mark.parametrize("program", SERVERS)
def test_a_destination_that_speaks_first_is_heard_and_one_that_is_dead_is_an_end(
    program: str, tmp_path: Path
) -> None:
    with (
        serving(lambda sock: sock.sendall(b"220 ready")) as speaks_first,
        running(program, tmp_path, speaks_first) as url,
    ):
        way = way_by(url)
        stream = way.connect(Request(CONNECT, speaks_first)).stream
        assert read_exactly(stream, 9) == b"220 ready"
        stream.abort()
        stream = way.connect(Request(CONNECT, Address("127.0.0.1", free_port()))).stream
        try:
            assert stream.read() == b""
        except errors.StreamError:
            pass
        stream.abort()


def answer_as_a_web_server(sock: socket) -> None:
    sock.recv(1000)
    sock.sendall(b"a web server")


@pytest.mark.parametrize("program", SERVERS)
def test_what_has_another_password_goes_to_the_web_server(program: str, tmp_path: Path) -> None:
    with (
        serving(echo) as echo_at,
        serving(answer_as_a_web_server) as web,
        running(program, tmp_path, web) as url,
    ):
        stream = way_by(url, "another").connect(Request(CONNECT, echo_at)).stream
        assert read_exactly(stream, 12) == b"a web server"
        stream.abort()


@pytest.mark.parametrize("program", SERVERS)
def test_datagrams_for_an_exit_behind_it_go_through_it(program: str, tmp_path: Path) -> None:
    port = free_port()
    shadowsocks = needs.program("ss-server", "shadowsocks-libev")
    at = ["-s", "127.0.0.1", "-p", str(port), "-k", "secret", "-m", "aes-256-gcm", "-u"]
    with (
        udp_server() as udp_at,
        running(program, tmp_path, udp_at) as url,
        started([shadowsocks, *at], port, tmp_path),
    ):
        via = f"trojan://{quote(PASSWORD, safe='')}@{url}"
        entry = {"url": f"ss://aes-256-gcm:secret@127.0.0.1:{port}", "via": via}
        way = make_exit(ExitSpec.parse(entry), ExitDeps(ALLOW_ALL))
        assert exchange(way, udp_at, b"by two servers") == b"by two servers"
