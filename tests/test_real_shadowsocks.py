"""Shadowsocks with the programs of others, as clients and as servers, over TCP and UDP.

shadowsocks-libev is Debian's; sing-box and shadowsocks-rust are what ``make exits`` builds.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest
from gevent.socket import socket

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits import ExitDeps, make_exit
from gsocks.exits.spec import ExitSpec
from gsocks.inbound.shadowsocks import ShadowsocksServer
from gsocks.inbound.shadowsocks_udp import ShadowsocksDatagrams
from gsocks.request import CONNECT, Request
from gsocks.shadowsocks.accept import Guards, ServerKeys
from gsocks.shadowsocks.methods import METHODS, Method
from tests.support import needs
from tests.support.datagrams import exchange, udp_server
from tests.support.engine import connect, direct, echo, read_answer, serving, through
from tests.support.ports import free_port
from tests.support.program import Program
from tests.support.real_exits import built, started
from tests.support.stream_contract import read_exactly as read_from

pytestmark = pytest.mark.usefixtures("never_hangs")

#: bytes there and back
BULK = 200_000


class Peer(NamedTuple):
    """A program, a method, and whether its clients are users of their own."""

    program: str
    method: Method
    users: bool = False

    def __str__(self) -> str:
        return f"{self.program}-{self.method.name}{'-users' if self.users else ''}"

    @property
    def password(self) -> str:
        return _password(self.method, 1)

    @property
    def user_password(self) -> str:
        return _password(self.method, 2)

    @property
    def client_password(self) -> str:
        """What a client is given."""
        return f"{self.password}:{self.user_password}" if self.users else self.password


def _password(method: Method, fill: int) -> str:
    if not method.is_2022:
        return f"p4ss+{fill}"
    return base64.b64encode(bytes((fill,)) * method.key_size).decode()


def _peers() -> Iterator[Peer]:
    for method in METHODS.values():
        if not method.is_2022:
            yield Peer("libev", method)
        if os.environ.get("ALL_EXITS"):
            yield Peer("sing-box", method)
            yield Peer("rust", method)
            if method.has_users:
                yield Peer("sing-box", method, users=True)
                yield Peer("rust", method, users=True)


PEERS = list(_peers())


def server_of(peer: Peer, folder: Path, port: int) -> list[str | Path]:
    """The command of their server."""
    file = folder / "server.json"
    method, password = peer.method.name, peer.password
    users = [{"name": "ann", "password": peer.user_password}] if peer.users else []
    if peer.program == "libev":
        program = needs.program("ss-server", "shadowsocks-libev")
        return [program, "-s", "127.0.0.1", "-p", str(port), "-k", password, "-m", method, "-u"]
    if peer.program == "rust":
        entry: dict[str, Any] = {"server": "127.0.0.1", "server_port": port, "method": method}
        entry |= {"password": password, "mode": "tcp_and_udp"} | ({"users": users} if users else {})
        file.write_text(json.dumps({"servers": [entry]}))
        return [built("bin", "ssserver"), "-c", file]
    inbound = {"type": "shadowsocks", "listen": "127.0.0.1", "listen_port": port}
    inbound |= {"method": method, "password": password} | ({"users": users} if users else {})
    out = [{"type": "direct"}]
    file.write_text(
        json.dumps({"log": {"disabled": True}, "inbounds": [inbound], "outbounds": out})
    )
    return [built("bin", "sing-box"), "run", "-c", file]


def client_of(peer: Peer, folder: Path, server: Address, port: int) -> list[str | Path]:
    """The command of their client, a SOCKS5 proxy."""
    method, password = peer.method.name, peer.client_password
    if peer.program == "libev":
        program = needs.program("ss-local", "shadowsocks-libev")
        to = ["-s", server.host, "-p", str(server.port), "-b", "127.0.0.1", "-l", str(port)]
        return [program, *to, "-k", password, "-m", method, "-u"]
    if peer.program == "rust":
        at = ["-s", str(server), "-b", f"127.0.0.1:{port}"]
        return [built("bin", "sslocal"), *at, "-k", password, "-m", method, "-U"]
    inbound = {"type": "socks", "listen": "127.0.0.1", "listen_port": port}
    out = {"type": "shadowsocks", "server": server.host, "server_port": server.port}
    out |= {"method": method, "password": password}
    file = folder / "client.json"
    file.write_text(
        json.dumps({"log": {"disabled": True}, "inbounds": [inbound], "outbounds": [out]})
    )
    return [built("bin", "sing-box"), "run", "-c", file]


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_a_server_of_another_program_is_an_exit(peer: Peer, tmp_path: Path) -> None:
    port = free_port()
    entry = {
        "url": f"ss://127.0.0.1:{port}",
        "cipher": peer.method.name,
        "password": peer.client_password,
    }
    way = make_exit(ExitSpec.parse(entry), ExitDeps(ALLOW_ALL))
    with (
        serving(echo) as echo_at,
        udp_server() as udp_at,
        started(server_of(peer, tmp_path, port), port, tmp_path),
    ):
        stream = way.connect(Request(CONNECT, echo_at)).stream
        data = os.urandom(BULK)
        writing = gevent.spawn(stream.write, data)
        assert read_from(stream, BULK) == data
        writing.get()
        stream.write_eof()
        assert stream.read() == b""
        stream.close()
        assert exchange(way, udp_at, data[:1000]) == data[:1000]


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_a_client_of_another_program_is_served(peer: Peer, tmp_path: Path) -> None:
    users = {"ann": peer.user_password} if peer.users else None
    keys = ServerKeys(peer.method, peer.password, users)
    guards = Guards.of(keys)
    port = free_port()
    with ExitStack() as stack:
        stack.callback(guards.close)
        tcp = ShadowsocksServer(("127.0.0.1", 0), direct(), keys, guards)
        tcp.start()
        stack.callback(tcp.stop, 0)
        sock = socket(2, 2)
        sock.bind((tcp.bound.host, tcp.bound.port))
        udp = ShadowsocksDatagrams(sock, direct(), keys, guards)
        udp.start()
        stack.callback(udp.stop, 0)
        stack.enter_context(started(client_of(peer, tmp_path, tcp.bound, port), port, tmp_path))
        echo_at = stack.enter_context(serving(echo))
        udp_at = stack.enter_context(udp_server())
        near = Address("127.0.0.1", port)
        check_stream(near, echo_at)
        check_datagrams(near, udp_at)


def check_stream(near: Address, echo_at: Address) -> None:
    data, got = os.urandom(BULK), b""
    with through(near, echo_at) as sock:
        sending = gevent.spawn(sock.sendall, data)
        while len(got) < BULK:
            part = sock.recv(65536)
            assert part
            got += part
        sending.get()
    assert got == data


def check_datagrams(near: Address, udp_at: Address) -> None:
    with connect(near) as control, socket(2, 2) as sock:
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        relay = read_answer(control)
        packet = bytes(3) + udp_at.encode() + b"question"
        host = "127.0.0.1" if relay.is_unspecified else relay.host
        for _ in range(2):
            sock.sendto(packet, (host, relay.port))
            assert sock.recv(1000) == packet


def test_workers_serve_a_client_of_another_program_and_a_reload_takes_its_password(
    tmp_path: Path,
) -> None:
    peer = Peer("libev", METHODS["aes-256-gcm"])
    near, far = free_port(), free_port()
    config = tmp_path / "gsocks.yaml"

    def write(password: str) -> None:
        section = {"listen": f"127.0.0.1:{far}", "method": "aes-256-gcm", "password": password}
        server = {"shadowsocks": section, "rules": ["allow loopback"]}
        config.write_text(json.dumps({"workers": 2, "server": server}))

    write("another")
    with serving(echo) as echo_at, udp_server() as udp_at, Program("-c", config) as program:
        program.wait_for("listening on .* [(]Shadowsocks[)]", times=2)
        write(peer.password)
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
        at = Address("127.0.0.1", near)
        with started(client_of(peer, tmp_path, Address("127.0.0.1", far), near), near, tmp_path):
            check_stream(at, echo_at)
            check_datagrams(at, udp_at)
        assert peer.password not in program.log
