"""A SOCKS4 proxy is given the address that a name has here, as far as the rules allow it."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.base import Exit
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.settings import Timeouts
from tests.support.engine import serving
from tests.support.names import NamesBy
from tests.support.proxies import dante
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NAMES = {
    "both.example": ["2001:db8::7", "192.0.2.7", "192.0.2.8"],
    "six.example": ["2001:db8::7"],
    "inside.example": ["10.0.0.7"],
    "mixed.example": ["10.0.0.7", "93.184.215.14"],
    "localhost": ["::1", "127.0.0.1"],
}


#: set when the name server has answered for slow.example
ANSWERED = Event()


def look_up(name: str) -> list[str]:
    if name == "broken.example":
        raise errors.HostUnreachable(f"{name}: no name server has answered in time")
    if name == "slow.example":
        ANSWERED.wait(TOO_LONG)
    return NAMES.get(name, [])


def exit_at(proxy: Address, rules: Rules = ALLOW_ALL, user: str = "", reach: float = 10.0) -> Exit:
    timeouts = Timeouts(connect=20.0, exit=reach)
    deps = ExitDeps(rules, Resolver(NamesBy(look_up)), timeouts=timeouts)
    return make_exit(ExitSpec.parse(f"socks4://{user}{proxy}"), deps)


def plain_socks4(asked: list[bytes], granted: bool = True) -> AbstractContextManager[Address]:
    """A proxy that notes what it is asked for; 0.0.0.x is no address to it."""

    def serve(sock: socket) -> None:
        request = sock.recv(600)
        if request:
            asked.append(request)
            refused = request[4] == 0 or not granted
            sock.sendall(b"\0" + (b"\x5b" if refused else b"\x5a") + bytes(6))
            sock.recv(600)

    return serving(serve)


def connect(exit_: Exit, name: str, user: str | None = None) -> None:
    exit_.connect(Request(Command.CONNECT, Address(name, 443), user)).stream.abort()


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("both.example", "192.0.2.7"),
        ("192.0.2.1", "192.0.2.1"),
        ("mixed.example", "10.0.0.7"),
    ],
)
def test_it_is_asked_for_the_first_ipv4_address(name: str, address: str) -> None:
    asked: list[bytes] = []
    with plain_socks4(asked) as proxy:
        connect(exit_at(proxy, user="joe@"), name)
    assert asked == [b"\x04\x01\x01\xbb" + std_socket.inet_aton(address) + b"joe\0"]


def test_only_addresses_that_the_rules_allow_are_asked_for() -> None:
    asked: list[bytes] = []
    with plain_socks4(asked) as proxy:
        exit_ = exit_at(proxy, Rules.parse(["deny private", "allow all"]))
        connect(exit_, "mixed.example")
        with pytest.raises(errors.Forbidden):
            connect(exit_, "inside.example")
    assert [request[4:8] for request in asked] == [std_socket.inet_aton("93.184.215.14")]


@pytest.mark.parametrize("name", ["six.example", "2001:db8::7"])
def test_it_has_no_way_to_ipv6(name: str) -> None:
    asked: list[bytes] = []
    with plain_socks4(asked) as proxy, pytest.raises(errors.AddressFamilyNotSupported):
        connect(exit_at(proxy), name)
    assert not asked


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("missing.example", errors.NameNotFound),
        ("broken.example", errors.HostUnreachable),
        ("slow.example", errors.HostUnreachable),
    ],
)
def test_a_name_that_has_no_address_here_is_left_to_the_proxy(
    name: str, failure: type[errors.ConnectFailed]
) -> None:
    """As in SOCKS4a; if it refuses that, the name is at fault and not the exit."""
    ANSWERED.clear()
    asked: list[bytes] = []
    with plain_socks4(asked) as proxy, pytest.raises(failure, match=name):
        connect(exit_at(proxy, reach=0.2 if name == "slow.example" else 10.0), name)
    assert asked == [b"\x04\x01\x01\xbb\0\0\0\x01\0" + name.encode() + b"\0"]
    ANSWERED.set()


@pytest.mark.parametrize("name", ["both.example", "missing.example"])
def test_a_proxy_that_is_not_there_has_failed_by_itself(name: str) -> None:
    with serving(lambda sock: sock.close()) as proxy:
        pass
    with pytest.raises(errors.ExitFailed):
        connect(exit_at(proxy), name)


def test_a_refusal_of_an_address_is_told_as_such() -> None:
    with plain_socks4([], granted=False) as proxy, pytest.raises(errors.ExitDoubtful):
        connect(exit_at(proxy), "both.example")


def test_dante_is_reached_by_a_name(
    echo: Callable[[], AbstractContextManager[Address]], tmp_path: Path
) -> None:
    """Dante 1.4 knows no SOCKS4a: it takes the 0.0.0.1 before a name for an address."""
    with echo() as server, dante(tmp_path, forbidden="127.0.0.9") as proxy:
        dest = Address("localhost", server.port)
        stream = exit_at(proxy).connect(Request(Command.CONNECT, dest)).stream
        stream.write(b"hello")
        assert stream.read() == b"hello"
        stream.abort()


@pytest.fixture
def echo() -> Callable[[], AbstractContextManager[Address]]:
    def serve(sock: socket) -> None:
        while data := sock.recv(600):
            sock.sendall(data)

    return lambda: serving(serve)
