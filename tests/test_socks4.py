"""SOCKS4 and SOCKS4a are understood however they arrive, and answered to the byte."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Iterator

import gevent
import pytest
from gevent import subprocess

from gsocks import errors
from gsocks.access.login import OPEN
from gsocks.access.users import Users, hash_password
from gsocks.address import Address
from gsocks.errors import (
    AuthenticationFailed,
    BadAddress,
    BadRequest,
    CommandNotSupported,
    HandshakeTimeout,
    StreamError,
)
from gsocks.handshake import Answer, SpeaksHttp, negotiate
from gsocks.local import LocalServer
from gsocks.request import Command, ExitSelector, Request
from tests.support import needs
from tests.support.grammar import Case, Grammar, Wire, accept_all, connected
from tests.support.waiting import TOO_LONG

REJECTED = bytes.fromhex("00 5b 0000 00000000")
GRANTED = bytes.fromhex("00 5a")


def socks4(ip: str, port: int, user: bytes = b"", command: int = 1) -> bytes:
    head = bytes((4, command)) + port.to_bytes(2, "big")
    return head + std_socket.inet_aton(ip) + user + b"\0"


def socks4a(name: bytes, port: int, user: bytes = b"", ip: str = "0.0.0.1") -> bytes:
    return socks4(ip, port, user) + name + b"\0"


def connect(host: str, port: int) -> Request:
    return Request(Command.CONNECT, Address(host, port))


def accepted(name: str, sent: bytes, request: Request) -> Case:
    return Case(name, sent, [], request, commands=frozenset(Command))


def refused(name: str, sent: bytes, error: type[errors.ClientError], at: int | None = None) -> Case:
    return Case(name, sent, [REJECTED], error, decided_at=at)


LONG_NAME = b"a." * 127 + b"b"


ACCEPTED = [
    accepted("an address", socks4("192.0.2.1", 80), connect("192.0.2.1", 80)),
    accepted("a user id", socks4("192.0.2.1", 80, b"root"), connect("192.0.2.1", 80)),
    accepted(
        "a user id that is no text",
        socks4("192.0.2.1", 80, b"\xff\n"),
        connect("192.0.2.1", 80),
    ),
    accepted(
        "a user id of 512 bytes", socks4("192.0.2.1", 80, b"u" * 512), connect("192.0.2.1", 80)
    ),
    accepted(
        "a selector in the user id",
        socks4a(b"a", 80, b"me-session-x1"),
        Request(Command.CONNECT, Address("a", 80), selector=ExitSelector("x1")),
    ),
    accepted(
        "a user id that is no selector",
        socks4("192.0.2.1", 80, b"web-session"),
        connect("192.0.2.1", 80),
    ),
    accepted(
        "a look-up of a name",
        socks4("0.0.0.1", 0, command=0xF0) + b"example.com\0",
        Request(Command.RESOLVE, Address("example.com", 0)),
    ),
    accepted(
        "a look-up of an address",
        socks4("192.0.2.1", 0, command=0xF0),
        Request(Command.RESOLVE, Address("192.0.2.1", 0)),
    ),
    accepted("no address at all", socks4("0.0.0.0", 65535), connect("0.0.0.0", 65535)),
    accepted("an address like 4a's", socks4("0.0.1.0", 80), connect("0.0.1.0", 80)),
    accepted("a name", socks4a(b"Example.com", 443), connect("example.com", 443)),
    accepted(
        "a name behind 0.0.0.255",
        socks4a(b"a", 1, b"me", "0.0.0.255"),
        connect("a", 1),
    ),
    accepted("a name of 255 bytes", socks4a(LONG_NAME, 80), connect(LONG_NAME.decode(), 80)),
    accepted("an ipv4 as a name", socks4a(b"192.0.2.1", 80), connect("192.0.2.1", 80)),
    accepted("an ipv6 as a name", socks4a(b"2001:DB8::1", 80), connect("2001:db8::1", 80)),
    accepted(
        "bind where it is served",
        socks4("192.0.2.1", 80, command=2),
        Request(Command.BIND, Address("192.0.2.1", 80)),
    ),
]
REFUSED = [
    refused("bind where it is not", socks4("192.0.2.1", 80, command=2), CommandNotSupported),
    refused("command 0", socks4("192.0.2.1", 80, command=0), CommandNotSupported),
    Case(
        "command 3, which is SOCKS5's",
        socks4("192.0.2.1", 80, command=3),
        [REJECTED],
        CommandNotSupported,
        commands=frozenset(Command),
    ),
    refused("command 255", socks4("192.0.2.1", 80, command=255), CommandNotSupported),
    refused(
        "a look-up where it is not served", socks4("1.1.1.1", 0, command=0xF0), CommandNotSupported
    ),
    Case(
        "a reverse look-up, which is SOCKS5's",
        socks4("192.0.2.1", 80, command=0xF1),
        [REJECTED],
        CommandNotSupported,
        commands=frozenset(Command),
    ),
    refused("a name of no bytes", socks4a(b"", 80), BadAddress),
    refused("a name that is none", socks4a(b"exam ple.com", 80), BadAddress),
    refused("a name that is no text", socks4a(b"\xff\xfe", 80), BadAddress),
    refused("a name of 256 bytes", socks4a(LONG_NAME + b"c", 80), BadAddress),
    refused("a name of 512 bytes", socks4a(b"a" * 512, 80), BadAddress),
    refused("a name of 513 bytes", socks4a(b"a" * 513, 80), BadRequest, 9 + 513),
    refused("a user id of 513 bytes", socks4("192.0.2.1", 80, b"u" * 513), BadRequest, 8 + 513),
    Case(
        "a listener with users",
        socks4a(b"example.com", 80, b"alice"),
        [REJECTED],
        AuthenticationFailed,
        accept_all,
    ),
    Case(
        "a listener with users, before anything else is checked",
        socks4a(b"no name", 80, b"alice"),
        [REJECTED],
        AuthenticationFailed,
        accept_all,
    ),
]


class TestSocks4(Grammar):
    accepted = ACCEPTED
    refused = REFUSED


# --- answers --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


@pytest.fixture
def wire() -> Iterator[Wire]:
    with connected() as wire:
        yield wire


@pytest.fixture
def answer(wire: Wire) -> Answer:
    wire.client.send(socks4("192.0.2.1", 80))
    negotiated = negotiate(wire.inbound, OPEN)
    assert not isinstance(negotiated, SpeaksHttp)
    return negotiated[1]


@pytest.mark.parametrize(
    ("bound", "reply"),
    [
        (Address("192.0.2.7", 40000), "00 5a 9c40 c0000207"),
        (Address("2001:db8::7", 40000), "00 5a 0000 00000000"),
        (Address("proxy.example", 40000), "00 5a 0000 00000000"),
    ],
)
def test_success_tells_the_bound_address_if_it_is_of_ipv4(
    wire: Wire, answer: Answer, bound: Address, reply: str
) -> None:
    answer.succeeded(bound, "direct")
    assert wire.inbound.sends == [bytes.fromhex(reply)]


def test_what_was_looked_up_is_told_if_it_is_an_ipv4_address(wire: Wire) -> None:
    wire.client.send(socks4a(b"example.com", 0)[:1] + b"\xf0" + socks4a(b"example.com", 0)[2:])
    negotiated = negotiate(wire.inbound, OPEN, frozenset(Command))
    assert not isinstance(negotiated, SpeaksHttp)
    answer = negotiated[1]
    for other in ("2001:db8::7", "host.example"):
        with pytest.raises(errors.AddressFamilyNotSupported):
            answer.succeeded(Address(other, 0), "direct")
    answer.succeeded(Address("192.0.2.7", 0), "direct")
    assert wire.inbound.sends == [bytes.fromhex("00 5a 0000 c0000207")]


@pytest.mark.parametrize(
    "error", [errors.Forbidden, errors.ConnectionRefused, errors.NameNotFound, errors.GsocksError]
)
def test_every_failure_is_the_same_rejection(
    wire: Wire, answer: Answer, error: type[errors.GsocksError]
) -> None:
    answer.failed(error())
    assert wire.inbound.sends == [REJECTED]


def test_a_client_that_has_gone_is_told_nothing_and_hears_no_success(
    wire: Wire, answer: Answer
) -> None:
    wire.inbound.close()
    answer.failed(errors.ConnectionRefused())
    with pytest.raises(StreamError):
        answer.succeeded(Address("192.0.2.7", 40000), "direct")


def test_a_client_that_is_too_slow_is_told_so(wire: Wire) -> None:
    wire.client.send(socks4("192.0.2.1", 80)[:-1])
    with pytest.raises(HandshakeTimeout), gevent.Timeout(0.02, HandshakeTimeout()):
        negotiate(wire.inbound, OPEN)
    assert wire.inbound.sends == [REJECTED]


# --- the real client ------------------------------------------------------------------------


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [
        needs.program("curl"),
        "--silent",
        "--show-error",
        "--max-time",
        str(TOO_LONG),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.fixture
def page() -> Iterator[Address]:
    """A web server with one page."""

    def serve(sock: gevent.socket.socket, _: object) -> None:
        with sock:
            sock.recv(65536)
            sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    server = gevent.server.StreamServer(("127.0.0.1", 0), serve)
    server.start()
    yield Address("localhost", server.socket.getsockname()[1])
    server.stop()


@pytest.mark.parametrize("option", ["--socks4", "--socks4a"])
def test_curl_speaks_it(page: Address, option: str) -> None:
    inbound = LocalServer(("127.0.0.1", 0), rules=["allow all"])
    inbound.start()
    try:
        done = curl(option, str(inbound.bound), f"http://{page}/")
    finally:
        inbound.stop(0)
    assert (done.stdout, done.stderr, done.returncode) == (b"hi", b"", 0)


def test_curl_is_refused_by_a_inbound_with_users(page: Address) -> None:
    users = Users({"alice": hash_password(b"secret")})
    inbound = LocalServer(("127.0.0.1", 0), rules=["allow all"], users=users)
    inbound.start()
    try:
        done = curl("--socks4a", f"alice:secret@{inbound.bound}", f"http://{page}/")
    finally:
        inbound.stop(0)
    assert done.returncode == 97  # CURLE_PROXY
    assert b"(91)" in done.stderr
