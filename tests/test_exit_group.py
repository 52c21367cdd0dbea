"""The ways out with real exits behind them: whose failure it is decides who is asked next.

How an exit is chosen among many is test_rotation's subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import gevent
import pytest
from engine import (
    KEY,
    FakeExit,
    both_ends,
    direct,
    eventually,
    free_port,
    make_exit,
    make_server,
    running_door,
    serving,
)
from gevent.socket import socket

from gsocks import errors
from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.dial import Dialer, Resolver
from gsocks.exits.direct import DirectExit
from gsocks.exits.tunnel import TunnelExit
from gsocks.limits import Limits
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.rules import ALLOW_ALL, Rules
from gsocks.server import RemoteServer
from gsocks.ways_out import Way, WaysOut

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NOWHERE = Address("192.0.2.1", 80)


def to(dest: Address) -> Request:
    return Request(Command.CONNECT, dest)


def ask(ways_out: WaysOut, dest: Address) -> tuple[Way, list[str]]:
    """The way to ``dest``, and the exits that were asked for it."""
    asked: list[str] = []
    return ways_out.connect(to(dest), asked.append), asked


def is_echoed(way: Way) -> bool:
    way.stream.write(b"hello")
    try:
        return way.stream.read() == b"hello"
    finally:
        way.stream.abort()


def direct_exit() -> DirectExit:
    return DirectExit(Dialer(ALLOW_ALL, Resolver()))


@pytest.fixture
def start_server() -> Iterator[Callable[[WaysOut], RemoteServer]]:
    with ExitStack() as stack:
        yield lambda ways_out: stack.enter_context(running_door(make_server(ways_out=ways_out)))


@pytest.fixture
def exits() -> Iterator[Callable[..., TunnelExit]]:
    """Makes exits that are closed when the test is over."""
    with ExitStack() as stack:

        def make(server: Address, **options) -> TunnelExit:
            way = make_exit(server, **options)
            stack.callback(way.close)
            return way

        yield make


# --- whose failure it is ----------------------------------------------------------------------


def test_when_one_server_is_down_the_next_exit_serves(exits, echo_server: Address) -> None:
    down = exits(Address("127.0.0.1", free_port()))
    way, asked = ask(WaysOut([down, direct_exit()], ALLOW_ALL), echo_server)
    assert asked == [down.label, "direct"]
    assert way.exit == "direct"
    assert is_echoed(way)


def test_when_what_answers_is_no_server_the_next_exit_serves(exits, echo_server: Address) -> None:
    with serving(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as web:
        way, asked = ask(WaysOut([exits(web), direct_exit()], ALLOW_ALL), echo_server)
    assert len(asked) == 2
    assert is_echoed(way)


def test_when_a_server_says_nothing_the_next_exit_serves(exits, echo_server: Address) -> None:
    with serving(lambda sock: sock.recv(1 << 20) and sock.recv(1)) as silent:
        ways_out = WaysOut([exits(silent, timeout=0.05), direct_exit()], ALLOW_ALL)
        way, asked = ask(ways_out, echo_server)
    assert len(asked) == 2
    assert is_echoed(way)


@pytest.mark.parametrize(
    "failure",
    [
        errors.ExitFailed,
        errors.ExitDoubtful,
        errors.NetworkUnreachable,
        errors.ConnectTimeout,
        errors.OutOfResources,
        errors.LimitReached,
        errors.ShuttingDown,
    ],
)
def test_a_failure_of_the_far_ends_own_exits_is_the_exits_here_too(
    start_server, exits, echo_server: Address, failure: type[errors.ConnectFailed]
) -> None:
    broken = exits(start_server(WaysOut([FakeExit("far", failure("x"))], ALLOW_ALL)).bound)
    way, asked = ask(WaysOut([broken, direct_exit()], ALLOW_ALL), echo_server)
    assert asked == [broken.label, "direct"]
    assert is_echoed(way)


@pytest.mark.parametrize(
    "failure",
    [
        errors.Forbidden,
        errors.HostUnreachable,
        errors.NameNotFound,
        errors.ConnectionRefused,
        errors.ConnectFailed,
    ],
)
def test_a_failure_of_the_destination_comes_through_the_tunnel_and_is_final(
    start_server, exits, failure: type[errors.ConnectFailed]
) -> None:
    far = exits(start_server(WaysOut([FakeExit("far", failure("x"))], ALLOW_ALL)).bound)
    other = FakeExit("other", errors.ExitFailed("never asked"))
    with pytest.raises(errors.ConnectFailed) as caught:
        ask(WaysOut([far, other], ALLOW_ALL), NOWHERE)
    assert type(caught.value) is failure
    assert other.requests == 0


def test_a_refused_request_costs_no_tunnel(start_server, exits, echo_server: Address) -> None:
    way = exits(start_server(direct()).bound)
    way.start()
    eventually(lambda: way.pool.ready == 8)
    for _ in range(20):
        with pytest.raises(errors.ConnectionRefused):
            way.connect(to(Address("127.0.0.1", 1)))
    assert (way.pool.ready, way.pool.opened) == (8, 8)
    assert is_echoed(Way(*way.connect(to(echo_server)), "", lambda: None))


def test_requests_in_a_row_share_the_tunnels(start_server, exits, echo_server: Address) -> None:
    way = exits(start_server(direct()).bound, pool_size=2)
    way.start()
    eventually(lambda: way.pool.ready == 2)
    for _ in range(20):
        stream, _ = way.connect(to(echo_server))
        stream.write(b"hello")
        stream.write_eof()
        assert stream.read() == b"hello"
        assert stream.read() == b""
        stream.close()
    assert (way.pool.ready, way.pool.opened) == (2, 2)


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (Address("127.0.0.1", 1), "gsocks://127.0.0.1:1: Connection refused"),
        (Address("server.invalid", 8388), "gsocks://server.invalid:8388: server.invalid: "),
    ],
)
def test_a_server_that_cannot_be_reached_is_the_exits_failure_and_not_the_destinations(
    exits, server: Address, why: str
) -> None:
    with pytest.raises(errors.ExitFailed) as caught:
        exits(server).connect(to(NOWHERE))
    assert str(caught.value).startswith(why)


def test_a_server_with_another_key_is_told_without_any_key(start_server) -> None:
    other = Key.generate()
    server = start_server(direct())
    way = TunnelExit(server.bound, other, Dialer(ALLOW_ALL, Resolver()), timeout=0.05)
    with pytest.raises(errors.ExitFailed, match="another key") as caught:
        way.connect(to(NOWHERE))
    assert other.text() not in str(caught.value)
    assert KEY.text() not in str(caught.value)


def test_a_full_server_is_the_exits_failure(exits) -> None:
    with (
        running_door(make_server(limits=Limits(connections=0))) as server,
        pytest.raises(errors.ExitFailed),
    ):
        exits(server.bound).connect(to(NOWHERE))


# --- before and after -------------------------------------------------------------------------


def test_what_the_rules_deny_is_neither_asked_of_an_exit_nor_looked_up() -> None:
    looked_up: list[str] = []
    rules = Rules.parse(["deny *.example", "deny 10.0.0.0/8", "allow all"])
    resolver = Resolver(lambda host: looked_up.append(host) or ["127.0.0.1"])
    fake = FakeExit("fake", errors.ExitFailed("asked"))
    ways_out = WaysOut([fake, DirectExit(Dialer(rules, resolver))], rules)
    for dest in (Address("a.example", 80), Address("10.1.2.3", 80)):
        with pytest.raises(errors.Forbidden, match="rule 'deny"):
            ask(ways_out, dest)
    assert (fake.requests, looked_up) == (0, [])


def test_every_exit_is_started_and_closed() -> None:
    fakes = [FakeExit("a"), FakeExit("b"), FakeExit("c")]
    ways_out = WaysOut(fakes, ALLOW_ALL)
    ways_out.start()
    assert [(fake.started, fake.closed) for fake in fakes] == [(1, 0)] * 3
    ways_out.close()
    assert [(fake.started, fake.closed) for fake in fakes] == [(1, 1)] * 3


def test_the_bound_address_is_the_one_that_the_destination_sees() -> None:
    peers: list[tuple[str, int]] = []

    def note(sock: socket) -> None:
        peers.append(sock.getpeername())

    with serving(note) as target, both_ends() as ends:
        for way_out in (direct_exit(), ends.exit):
            way = Way(*way_out.connect(to(target)), "", lambda: None)
            assert way.stream.read() == b""
            way.stream.abort()
            assert tuple(way.bound) == peers[-1]


def test_a_request_that_is_given_up_takes_its_tunnel_with_it(start_server, exits) -> None:
    far = FakeExit("far")
    server = start_server(WaysOut([far], ALLOW_ALL))
    way = exits(server.bound, pool_size=2)
    way.start()
    eventually(lambda: way.pool.ready == 2)
    asking = gevent.spawn(way.connect, to(NOWHERE))
    far.asked.wait()
    asking.kill()
    assert way.pool.ready == 1, "its answer is still due, so nobody else may have it"
    far.fail(errors.ConnectionRefused("too late"))
    eventually(lambda: server.connections == 1)


def test_a_tunnel_that_died_unnoticed_costs_another_try_and_no_failure(
    start_server, exits, echo_server: Address
) -> None:
    server = start_server(direct())
    way = exits(server.bound, pool_size=3)
    way.start()
    eventually(lambda: way.pool.ready == len(server._idle) == 3)
    for tunnel in server._idle:
        tunnel.abort()  # the pool's watchers have had no time to see it
    assert is_echoed(Way(*way.connect(to(echo_server)), "", lambda: None))


def test_where_even_a_fresh_tunnel_breaks_the_exit_has_failed(exits) -> None:
    """A server that agrees on keys and then hangs up on every request."""

    class HangsUp(RemoteServer):
        def carry(self, request, answer, *_: object, **__: object) -> bool:
            answer.abort()
            return False

    server = HangsUp(("127.0.0.1", 0), direct(), {"default": KEY})
    with running_door(server):
        way = exits(server.bound, pool_size=2)
        way.start()
        eventually(lambda: way.pool.ready == 2)
        with pytest.raises(errors.ExitFailed, match="gsocks://"):
            way.connect(to(NOWHERE))


def test_a_closed_exit_serves_nobody(exits) -> None:
    way = exits(Address("127.0.0.1", 1))
    way.close()
    with pytest.raises(errors.ExitFailed, match="shutting down"):
        way.connect(to(NOWHERE))


def test_ways_that_doors_share_are_closed_with_the_last_of_them() -> None:
    way = FakeExit("shared")
    closed: list[bool] = []
    way.close = lambda: closed.append(True)  # type: ignore[method-assign]
    ways_out = WaysOut([way], ALLOW_ALL)
    doors = [LocalServer(("127.0.0.1", 0), ways_out) for _ in range(2)]
    for door in doors:
        door.start()
    doors[0].stop(0)
    assert not closed
    doors[1].stop(0)
    assert closed == [True]
