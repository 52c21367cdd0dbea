"""Direct exits with a source, an interface or a mark: how a connection leaves this machine."""

from __future__ import annotations

import errno
import logging
import socket as std_socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.direct import SourceNetwork
from gsocks.net import route
from gsocks.net.route import Route
from gsocks.request import BIND, CONNECT, UDP_ASSOCIATE, ExitSelector, Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts
from tests.support import needs
from tests.support.datagrams import udp_server, who_asks
from tests.support.engine import serving
from tests.support.network import ip, private_network

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEPS = ExitDeps(ALLOW_ALL, timeouts=Timeouts(connect=2.0), random=Random(1))


def asking(url: str) -> Any:
    return make_exit(ExitSpec.parse(url), DEPS)


def told(sock: socket) -> None:
    sock.sendall(str(Address.from_sockaddr(sock.getpeername())).rpartition(":")[0].encode())


def seen_from(
    exit_: Any, dest: Address, session: str | None = None, user: str | None = None
) -> str:
    """The address from which a server sees a connection."""
    request = Request(CONNECT, dest, user, selector=ExitSelector(session=session))
    stream = exit_.connect(request).stream
    seen: bytes = stream.read()
    stream.abort()
    return seen.decode().strip("[]")


# --- the addresses of a session -----------------------------------------------------------------


def test_a_session_keeps_its_address_and_others_take_turns() -> None:
    exit_ = asking("direct://?source=127.6.0.0/24")
    with serving(told) as server:
        mine = {seen_from(exit_, server, "cart", "ali") for _ in range(5)}
        others = {seen_from(exit_, server) for _ in range(20)}
        assert len(mine) == 1
        assert len(others) == 20
        again = asking("direct://?source=127.6.0.0/24")  # in another process, after a restart
        assert {seen_from(again, server, "cart", "ali")} == mine
        many = {seen_from(exit_, server, f"cart{n}") for n in range(20)}
        assert len(many) > 10
        assert seen_from(exit_, server, "cart", "eve") not in mine


def test_a_session_that_is_rotated_has_another_address() -> None:
    with serving(told) as server, running(["direct://?source=127.6.0.0/16"]) as group:

        def seen() -> str:
            outbound = group.connect(request_of("cart", server), lambda _: None)
            address = outbound.stream.read().decode()
            outbound.stream.abort()
            outbound.release(1, 1)
            return address

        first = {seen() for _ in range(3)}
        group.rotate(None, "cart")
        second = {seen() for _ in range(3)}
        assert (len(first), len(second)) == (1, 1)
        assert first != second


def request_of(session: str, dest: Address) -> Request:
    return Request(CONNECT, dest, selector=ExitSelector(session=session))


@contextmanager
def running(urls: list[str]) -> Iterator[ExitGroup]:
    group = make_exit_group(urls, deps=DEPS)
    group.start()
    try:
        yield group
    finally:
        group.close()


def test_names_of_clients_matter_to_an_exit_that_has_several_addresses() -> None:
    for url, matters in (
        ("direct", False),
        ("direct://?source=127.6.0.1", False),
        ("direct://?source=127.6.0.0/28", True),
        ("direct://?source=2001:db8::/64", True),
    ):
        assert make_exit_group([url], deps=DEPS).heeds_names is matters


def test_several_sources_are_several_exits_of_one_rotation() -> None:
    urls = [f"direct://?source=127.6.{n}.0/28" for n in range(3)]
    with serving(told) as server, running(urls) as group:
        seen = set()
        for _ in range(6):
            outbound = group.connect(Request(CONNECT, server), lambda _: None)
            address = outbound.stream.read().decode().strip("[]")
            outbound.stream.abort()
            outbound.release(1, 1)
            seen.add(ip_network(f"{address}/24", strict=False))
        assert len(seen) == 3


def test_a_session_of_a_million_addresses_costs_no_more_than_one_of_a_few() -> None:
    source = SourceNetwork(ip_network("2001:db8::/64"), Random(1))
    drawn = set()
    for number in range(10_000):
        found = source.of_session(None, f"s{number}")(std_socket.AF_INET6)
        assert found is not None
        drawn.add(found[0])
    assert len(drawn) == 10_000
    assert all(ip_address(each) in ip_network("2001:db8::/64") for each in drawn)
    with pytest.raises(errors.AddressFamilyNotSupported):
        source.of_session(None, "s")(std_socket.AF_INET)


def test_datagrams_and_awaited_peers_of_a_session_have_its_address() -> None:
    exit_ = asking("direct://?source=127.6.0.0/24")
    selector = ExitSelector(session="cart")
    with serving(told) as server:
        mine = seen_from(exit_, server, "cart")
    with udp_server("127.0.0.1", who_asks) as there:
        for _ in range(3):
            stream = exit_.associate(Request(UDP_ASSOCIATE, UNSPECIFIED, selector=selector)).stream
            stream.write(there.encode() + b"?")
            answer = stream.read()
            stream.abort()
            assert answer.removeprefix(there.encode()).decode().startswith(f"{mine}:")
    for _ in range(3):
        awaited = exit_.bind(Request(BIND, Address("127.0.0.1", 0), selector=selector))
        assert awaited.bound.host == mine
        awaited.close()


# --- in a network of its own --------------------------------------------------------------------


@pytest.fixture
def network() -> Iterator[None]:
    needs.root()
    with private_network():
        yield


@contextmanager
def server_at(host: str) -> Iterator[Address]:
    server = StreamServer((host, 0), lambda sock, _: told(sock))
    server.start()
    try:
        yield Address(host, server.socket.getsockname()[1])
    finally:
        server.stop()


@pytest.mark.usefixtures("network")
def test_a_routed_ipv6_network_is_as_many_addresses() -> None:
    ip("-6 route add local 2001:db8:7::/64 dev lo")
    exit_ = asking("direct://?source=2001:db8:7::/64")
    with server_at("::1") as server:
        seen = {seen_from(exit_, server) for _ in range(50)}
        assert len(seen) == 50
        assert all(ip_address(each) in ip_network("2001:db8:7::/64") for each in seen)
        assert len({seen_from(exit_, server, "cart") for _ in range(5)}) == 1


@pytest.mark.usefixtures("network")
def test_an_interface_is_the_only_way_out() -> None:
    ip("address add 192.0.2.1/24 dev card")
    with server_at("127.0.0.1") as server:
        assert seen_from(asking("direct://?interface=lo"), server) == "127.0.0.1"
        with pytest.raises(errors.ConnectFailed):
            seen_from(asking("direct://?interface=card"), server)


@pytest.mark.usefixtures("network")
def test_an_interface_may_come_later_and_is_named_as_long_as_it_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    route.warn_if_unusable.cache_clear()
    with caplog.at_level(logging.WARNING):
        exit_ = asking("direct://?interface=wg0")
    message = "interface wg0: there is no such interface"
    assert caplog.messages == [f"direct exits can't connect yet: {message}"]
    with server_at("127.0.0.1") as server:
        with pytest.raises(errors.ExitFailed, match=f"^{message}$"):
            seen_from(exit_, server)
        with pytest.raises(errors.ExitFailed, match=message):  # and no name is looked up
            seen_from(exit_, Address("host.invalid", 80))
        with pytest.raises(errors.ExitFailed, match=message):
            exit_.associate(Request(UDP_ASSOCIATE, UNSPECIFIED))
        with pytest.raises(errors.ExitFailed, match=message):
            exit_.bind(Request(BIND, Address("127.0.0.1", 0)))
        ip("link add wg0 type veth peer name wg1")
        with pytest.raises(errors.NetworkUnreachable):  # it has no address and no route
            seen_from(exit_, server)


@pytest.mark.usefixtures("network")
def test_a_mark_is_what_the_rules_of_routing_see() -> None:
    ip("rule add fwmark 7 unreachable")
    with server_at("127.0.0.2") as server:
        assert seen_from(asking("direct://?mark=8"), server) == "127.0.0.1"
        ip("rule add pref 40000 lookup local")
        ip("rule del pref 0")  # the same, which was asked before the mark
        assert seen_from(asking("direct://?mark=8"), server)
        with pytest.raises((errors.HostUnreachable, errors.NetworkUnreachable)):
            seen_from(asking("direct://?mark=0x7"), server)


# --- what can't be ------------------------------------------------------------------------------


class Refusing:
    """A socket whose options may not be set."""

    def __init__(self, number: int) -> None:
        self._number = number

    def setsockopt(self, *_: object) -> None:
        raise OSError(self._number, "Operation not permitted")


@pytest.mark.parametrize(
    ("way", "number", "told"),
    [
        (Route(mark=7), errno.EPERM, r"^mark 7: not permitted \(gsocks needs the capability"),
        (Route(interface="wg0"), errno.ENODEV, "^interface wg0: there is no such interface$"),
        (Route(interface="wg0"), errno.EPERM, "^interface wg0: not permitted"),
    ],
)
def test_what_the_kernel_refuses_is_told_in_one_line(way: Route, number: int, told: str) -> None:
    with pytest.raises(errors.ExitFailed, match=told):
        way.apply(Refusing(number))  # type: ignore[arg-type]
