"""Redirected connections: a transparent proxy's, by real rules of the kernel's packet filter."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.inbound.listener import Listener
from gsocks.net.redirection import OwnConnections, original_destination
from gsocks.redirect import RedirectServer
from gsocks.request import ExitSelector
from gsocks.rotation.build import SomeExit, make_exit_group
from gsocks.settings import Limits, Timeouts
from tests.support import needs
from tests.support.engine import (
    Seen,
    connect,
    echo,
    is_reset,
    read_exactly,
    read_to_end,
    running_inbound,
)
from tests.support.network import private_network
from tests.support.packet_filter import HERE4, HERE6, documented, nft, public_addresses
from tests.support.two_ways import both_ways

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

either_family = pytest.mark.parametrize("here", [HERE4, HERE6], ids=["IPv4", "IPv6"])

#: of the documented mark
MARKED = "direct://?mark=103"


@pytest.fixture
def network() -> Iterator[None]:
    """A network with public addresses, in which nothing is redirected yet."""
    needs.root()
    with private_network():
        public_addresses()
        yield


def redirected_to(port: int, *, but: str = "") -> None:
    """Take the documented rules for that port; ``but``: the rule that leaves gsocks out."""
    rules = documented("nft").replace('meta skuid "gsocks" return', but)
    nft(rules.replace(":1082", f":{port}"))


@contextmanager
def redirecting(
    seen: Seen, here: str, *exits: SomeExit, listen: str | None = None, **options: Any
) -> Iterator[RedirectServer]:
    """A listener where redirected connections of the family of ``here`` come."""
    at = listen or ("::1" if ":" in here else "127.0.0.1")
    group = make_exit_group(exits or [MARKED], ["allow all"])
    inbound = RedirectServer((at, 0), group, observer=seen, **options)
    with running_inbound(inbound):
        yield inbound


@contextmanager
def serving_at(host: str, handle: Any = echo) -> Iterator[Address]:
    """A TCP server at an address of this network."""

    def serve(sock: socket, _: object) -> None:
        try:
            handle(sock)
        except OSError:
            pass

    server = StreamServer((host, 0), serve)
    server.start()
    try:
        yield Address(host, server.socket.getsockname()[1])
    finally:
        server.stop()


def ask(to: Address) -> bytes:
    """What an echo server there makes of a word."""
    with connect(to) as client:
        client.sendall(b"hello")
        client.shutdown(std_socket.SHUT_WR)
        return read_to_end(client)


@both_ways
@either_family
def test_a_redirected_connection_reaches_where_it_was_to_go(
    network: None, seen: Seen, here: str
) -> None:
    with (
        serving_at(here) as to,
        redirecting(seen, here) as inbound,
    ):
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        assert ask(to) == b"hello"
    record = seen.next()
    assert (record.inbound, record.dest, record.outcome) == ("redirect", str(to), "ok")
    assert (record.exit, record.up, record.down) == (MARKED, 5, 5)


@either_family
def test_a_server_that_speaks_first_is_heard(network: None, seen: Seen, here: str) -> None:
    def banner(sock: socket) -> None:
        sock.sendall(b"220 ready\r\n")

    with serving_at(here, banner) as to, redirecting(seen, here) as inbound:
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        with connect(to) as client:
            assert read_exactly(client, 11) == b"220 ready\r\n"


def test_a_listener_of_both_families_knows_where_a_connection_of_ipv4_was_to_go(
    network: None, seen: Seen
) -> None:
    with closing(std_socket.socket(std_socket.AF_INET6)) as both, serving_at(HERE4) as to:
        both.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        both.listen()
        group = make_exit_group([MARKED], ["allow all"])
        inbound = RedirectServer(both, group, observer=seen, allow_remote=True)
        with running_inbound(inbound):
            redirected_to(inbound.bound.port, but=documented("nft-rule"))
            assert ask(to) == b"hello"
    assert seen.next().dest == str(to)


@either_family
def test_rules_decide_about_where_it_was_to_go(network: None, seen: Seen, here: str) -> None:
    at = "::1" if ":" in here else "127.0.0.1"
    inbound = RedirectServer((at, 0), [MARKED], observer=seen, rules=[f"deny {here}", "allow all"])
    with serving_at(here) as to, running_inbound(inbound):
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        with connect(to) as client:
            assert is_reset(client)
    assert (seen.next().outcome, seen.all[0].dest) == ("forbidden", str(to))


def test_another_exit_is_tried_where_one_fails(network: None, seen: Seen) -> None:
    with serving_at(HERE4) as to, redirecting(seen, HERE4, "http://127.0.0.1:9", MARKED) as inbound:
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        assert ask(to) == b"hello"
    assert (seen.next().outcome, seen.all[0].exit) == ("ok", MARKED)


def test_an_address_may_have_a_selector_of_exits(network: None, seen: Seen) -> None:
    exits = [
        {"url": "http://127.0.0.1:9", "country": "us"},
        {"url": MARKED, "country": "de"},
    ]
    german = ExitSelector(country="de")
    with serving_at(HERE4) as to, redirecting(seen, HERE4, *exits, selector=german) as inbound:
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        for _ in range(3):
            assert ask(to) == b"hello"
            assert seen.next().outcome == "ok"


# --- what is refused --------------------------------------------------------------------------


@both_ways
@either_family
@pytest.mark.parametrize("tracked", [True, False])
def test_a_connection_to_the_listener_itself_is_refused_in_one_clear_line(
    network: None, seen: Seen, here: str, tracked: bool
) -> None:
    with redirecting(seen, here) as inbound:
        if tracked:  # with a rule of address translation the kernel tracks connections
            redirected_to(inbound.bound.port)
        with connect(inbound.bound) as client:
            assert read_to_end(client) == b""
    record = seen.next()
    assert record.outcome == "not_redirected"
    assert record.detail == "connected to the listener itself, not redirected to it"


@either_family
def test_a_connection_of_gsocks_that_comes_back_is_refused(
    network: None, seen: Seen, here: str
) -> None:
    with serving_at(here) as to, redirecting(seen, here, "direct") as inbound:
        redirected_to(inbound.bound.port)
        with connect(to) as client:
            client.sendall(b"hello")
            assert read_to_end(client) == b""
    loop = next(record for record in (seen.next(), seen.next()) if record.outcome == "loop")
    assert loop.detail.startswith(f"a connection of this gsocks to {to} was redirected to it")
    assert len(seen.all) == 2


def test_connections_of_other_programs_are_none_of_gsocks() -> None:
    own = OwnConnections()
    with closing(socket()) as listener, closing(socket()) as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        there = Address.from_sockaddr(listener.getsockname())
        client.connect(listener.getsockname())
        here = Address.from_sockaddr(client.getsockname())
        own.begun(client)
        assert not own.has(here, there)  # nothing is remembered while there is no listener
        own.watch()
        own.begun(client)
        assert own.has(here, there)
        assert not own.has(here, Address("192.0.2.1", 1))
        assert not own.has(there, there)
        client.close()
        assert not own.has(here, there)
        own.unwatch()
        accepted = listener.accept()[0]
        with closing(accepted):
            assert original_destination(accepted) in (None, there)


def test_limits_and_networks_hold(network: None, seen: Seen) -> None:
    limits = Limits(per_client=1)
    with serving_at(HERE4) as to, redirecting(seen, HERE4, limits=limits) as inbound:
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        with connect(to) as first, connect(to) as second:
            first.sendall(b"hello")
            assert read_exactly(first, 5) == b"hello"
            assert read_to_end(second) == b""
            assert seen.next().outcome == "limit"
    with serving_at(HERE4) as to, redirecting(seen, HERE4, clients=["192.0.2.0/24"]) as inbound:
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        with connect(to) as client:
            assert read_to_end(client) == b""
    assert seen.all[-1].outcome == "client_forbidden"


def test_a_destination_that_does_not_answer_is_given_up(network: None, seen: Seen) -> None:
    timeouts = Timeouts(connect=0.1)
    group = make_exit_group([MARKED], ["allow all"], timeouts=timeouts)
    inbound: Listener = RedirectServer(("127.0.0.1", 0), group, observer=seen, timeouts=timeouts)
    with running_inbound(inbound):
        redirected_to(inbound.bound.port, but=documented("nft-rule"))
        with connect(Address("203.0.113.1", 9)) as client:
            assert is_reset(client)
    assert seen.next().outcome == "connect_timeout"


def test_other_machines_reach_a_redirecting_listener_only_if_that_is_said() -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:1082 would carry what all machines"):
        RedirectServer("0.0.0.0:1082")
    RedirectServer("0.0.0.0:1082", allow_remote=True)
