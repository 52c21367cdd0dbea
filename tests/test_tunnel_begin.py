"""A request that the hub sends through a tunnel from the pool, without a greenlet."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.exits.tunnel import TunnelExit
from gsocks.pool import Pool
from gsocks.request import Command, Request
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.group import ExitGroup, Offer, Outbound
from gsocks.server import RemoteServer
from tests.support.engine import (
    FakeExit,
    eventually,
    make_exit,
    make_server,
    running_inbound,
    serving,
)

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NOWHERE = Address("192.0.2.1", 80)


def to(dest: Address, **fields: Any) -> Request:
    return Request(Command.CONNECT, dest, **fields)


def echoes(stream: Any) -> bool:
    """Whether a stream to the echo server works, up to its end in both directions."""
    stream.write(b"hello")
    assert stream.read() == b"hello"
    stream.write_eof()
    ended: bool = stream.read() == b""
    stream.close()
    return ended


class Asked:
    """What an exit was asked for in the hub, and how that has ended."""

    def __init__(self, way: TunnelExit, request: Request) -> None:
        self._ended = Event()
        self.ends: list[Connected | errors.GsocksError | None] = []
        self.attempt = way.begin(request, self._note)
        assert not self.ends, "it ends only after it has begun"

    def _note(self, made: Connected | errors.GsocksError | None) -> None:
        assert gevent.getcurrent() is gevent.get_hub()
        self.ends.append(made)
        self._ended.set()

    @property
    def end(self) -> Any:
        assert self.attempt is not None
        self._ended.wait()
        assert len(self.ends) == 1
        return self.ends[0]


@pytest.fixture
def slow() -> FakeExit:
    """The exit of a server, which decides how a request ends."""
    return FakeExit("slow")


Ready = Callable[[RemoteServer], TunnelExit]


@pytest.fixture
def ready() -> Iterator[Ready]:
    """Makes exits whose pool is full."""
    made: list[TunnelExit] = []

    def make(server: RemoteServer) -> TunnelExit:
        way = make_exit(server.bound, pool_size=2)
        made.append(way)
        way.pool.wake()
        eventually(lambda: way.pool.ready == 2)
        return way

    yield make
    for way in made:
        way.close()


def counts(pool: Pool) -> tuple[int, int]:
    return pool.ready, pool.opened


def test_a_request_is_connected_by_a_ready_tunnel_which_is_used_again(
    ready: Ready, echo_server: Address
) -> None:
    with running_inbound(make_server()) as server:
        way = ready(server)
        for _ in range(3):
            connected = Asked(way, to(echo_server)).end
            assert tuple(connected.bound) != ("0.0.0.0", 0)
            assert echoes(connected.stream)
            eventually(lambda: counts(way.pool) == (2, 2))
        assert way.pool.hits == 3


def test_without_a_ready_tunnel_nothing_is_begun(echo_server: Address) -> None:
    with running_inbound(make_server()) as server:
        way = make_exit(server.bound, pool_size=1)
        assert Asked(way, to(echo_server)).attempt is None
        eventually(lambda: way.pool.ready == 1)  # which has woken the pool
        assert Asked(way, to(echo_server, fast_open=True)).attempt is None
        way.close()


def test_a_refusal_is_told_and_its_tunnel_is_used_again(ready: Ready, slow: FakeExit) -> None:
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = ready(server)
        slow.fail(errors.ConnectionRefused("not there"))
        for _ in range(3):
            asked = Asked(way, to(NOWHERE))
            assert counts(way.pool) == (1, 2)
            assert type(asked.end) is errors.ConnectionRefused
            assert counts(way.pool) == (2, 2)


def test_a_request_that_is_given_up_takes_its_tunnel_with_it(ready: Ready, slow: FakeExit) -> None:
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = ready(server)
        asked = Asked(way, to(NOWHERE))
        slow.asked.wait()
        assert asked.attempt is not None
        asked.attempt.cancel()
        assert way.pool.ready == 1, "its answer is still due, so no other request may have it"
        slow.fail(errors.ConnectionRefused("too late"))
        eventually(lambda: server.connections == 1)
        assert not asked.ends


def test_where_the_tunnel_has_died_another_has_to_be_asked(ready: Ready, slow: FakeExit) -> None:
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = ready(server)
        tunnels = list(server.idle_tunnels)
        asked = Asked(way, to(NOWHERE))
        for tunnel in tunnels:
            tunnel.abort()
        assert asked.end is None


def test_a_group_serves_a_request_although_all_ready_tunnels_have_died(
    ready: Ready, echo_server: Address
) -> None:
    """The exit has not failed, and is asked again in a greenlet."""

    class Owner:
        def __init__(self) -> None:
            self.attempts: list[str] = []

        def attempted(self, label: str) -> None:
            self.attempts.append(label)

        def connected(self, outbound: Outbound) -> None:
            raise AssertionError

        def failed(self, first: FirstAttempt) -> None:
            raise AssertionError

    with running_inbound(make_server()) as server:
        way = ready(server)
        group, owner, request = ExitGroup([Offer(way)], ALLOW_ALL), Owner(), to(echo_server)
        for tunnel in list(server.idle_tunnels):
            tunnel.abort()  # the pool's watchers have had no time to see it
        first = group.begin(request, owner)
        assert isinstance(first, FirstAttempt)
        assert first.failure is None
        outbound = group.connect(request, owner.attempted, after=first)
        assert echoes(outbound.stream)
        outbound.release()
        assert [member.open for member in group.roster] == [0]
        assert len(owner.attempts) == 2


def test_what_the_destination_has_sent_at_once_is_not_lost(ready: Ready) -> None:
    def greet(sock: socket) -> None:
        sock.sendall(b"220 ready")

    with serving(greet) as target, running_inbound(make_server()) as server:
        stream, _ = Asked(ready(server), to(target)).end
        assert stream.read() == b"220 ready"
        stream.abort()


def test_a_refusal_keeps_no_attempt_alive(ready: Ready, slow: FakeExit) -> None:
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = ready(server)
        asked = Asked(way, to(NOWHERE))
        attempt = weakref.ref(asked.attempt)
        slow.asked.wait()
        gc.disable()
        try:
            slow.fail(errors.ConnectionRefused("not there"))
            assert asked.end is not None
            asked.attempt = None
            eventually(lambda: attempt() is None)
        finally:
            gc.enable()
