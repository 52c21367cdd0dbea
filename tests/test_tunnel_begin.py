"""A request that the hub sends through a tunnel from the pool, without a greenlet."""

from __future__ import annotations

import gc
import os
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
from gsocks.request import Command, ExitSelector, Request
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.group import ExitGroup, Offer, Outbound
from gsocks.server import RemoteServer
from gsocks.stream import ScratchBuffers
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.server import ServerTunnel
from tests.support.engine import (
    FakeExit,
    eventually,
    make_exit,
    make_server,
    running_inbound,
    serving,
)
from tests.support.tunnel_parts import opened

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


class Owner:
    """Of a request whose first attempt, by the hub, does not connect it."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self._told = Event()
        self._first: FirstAttempt | None = None

    def begin(self, group: ExitGroup, request: Request) -> FirstAttempt:
        begun = group.begin(request, self)
        if isinstance(begun, FirstAttempt):
            return begun
        self._told.wait()
        assert self._first is not None
        return self._first

    def attempted(self, label: str) -> None:
        self.attempts.append(label)

    def connected(self, outbound: Outbound) -> None:
        raise AssertionError

    def failed(self, first: FirstAttempt) -> None:
        self._first = first
        self._told.set()


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

    with running_inbound(make_server()) as server:
        way = ready(server)
        group, owner, request = ExitGroup([Offer(way)], ALLOW_ALL), Owner(), to(echo_server)
        for tunnel in list(server.idle_tunnels):
            tunnel.abort()  # the pool's watchers have had no time to see it
        first = owner.begin(group, request)
        assert (first.failure, first.asked) == (None, 1)
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


# --- how often a server is asked --------------------------------------------------------------


class Breaking:
    """A server that breaks each tunnel in which it is asked for a stream, once it is told how."""

    def __init__(self) -> None:
        self.how: Callable[[ServerTunnel], object] | None = None
        self.asked: list[ServerTunnel] = []

    def decode_open(self, tunnel: ServerTunnel, *args: Any) -> Request:
        if self.how is None:
            return _decode_open(tunnel, *args)
        self.asked.append(tunnel)
        self.how(tunnel)
        raise errors.ProtocolViolation("which ends the tunnel")


_decode_open = ServerTunnel.decode_open


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Breaking:
    made = Breaking()
    monkeypatch.setattr(ServerTunnel, "decode_open", lambda *args: made.decode_open(*args))
    return made


class Client:
    """A group whose only exit is a server, to which eight tunnels are ready."""

    def __init__(self, way: TunnelExit, server: RemoteServer, *, by_hub: bool) -> None:
        self.way = way
        self.group = ExitGroup([Offer(way)], ALLOW_ALL)
        self.ready = set(server.idle_tunnels)
        self._by_hub = by_hub

    def connect(self, request: Request) -> Outbound:
        owner = Owner()
        first = owner.begin(self.group, request) if self._by_hub else None
        return self.group.connect(request, owner.attempted, after=first)


@pytest.fixture(params=["by the hub", "by a greenlet"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with running_inbound(make_server()) as server:
        way = make_exit(server.bound, pool_size=8)
        way.pool.wake()
        eventually(lambda: way.pool.ready == len(server.idle_tunnels) == 8)
        yield Client(way, server, by_hub=request.param == "by the hub")
        way.close()


def end(tunnel: ServerTunnel) -> None:
    """No byte comes any more."""


def cut(tunnel: ServerTunnel) -> None:
    scratch = ScratchBuffers()
    sealed = tunnel.seal(scratch, Frame.OPENED, opened())
    os.write(tunnel.fileno(), scratch.sealed[: sealed - 1])


def reset_in_a_frame(tunnel: ServerTunnel) -> None:
    tunnel.send_nowait(ScratchBuffers(), Frame.RESET)


def nonsense(tunnel: ServerTunnel) -> None:
    tunnel.send_nowait(ScratchBuffers(), Frame.DATA, b"x")


def tampered(tunnel: ServerTunnel) -> None:
    os.write(tunnel.fileno(), bytes(100))


@pytest.mark.parametrize("how", [end, cut, ServerTunnel.abort])
def test_a_server_that_ends_each_tunnel_is_asked_in_three_the_last_of_which_is_new(
    client: Client, breaking: Breaking, how: Callable[[ServerTunnel], object]
) -> None:
    breaking.how = how
    with pytest.raises(errors.ExitFailed, match="gsocks://"):
        client.connect(to(NOWHERE))
    assert [tunnel in client.ready for tunnel in breaking.asked] == [True, True, False]


@pytest.mark.parametrize("how", [reset_in_a_frame, nonsense, tampered])
def test_a_server_that_breaks_the_protocol_is_asked_once(
    client: Client, breaking: Breaking, how: Callable[[ServerTunnel], object]
) -> None:
    breaking.how = how
    with pytest.raises(errors.ExitFailed, match="gsocks://"):
        client.connect(to(NOWHERE))
    assert len(breaking.asked) == 1
    assert client.way.pool.ready >= 7


@pytest.fixture
def kept(client: Client, echo_server: Address, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A request of a session that the exit has served, which asks that exit up to three times."""
    monkeypatch.setattr("gsocks.rotation.failover.RETRY_DELAY", 0.0)
    request = to(echo_server, selector=ExitSelector(session="mine", strict=True))
    outbound = client.group.connect(request, lambda _: None)
    assert echoes(outbound.stream)
    outbound.release()
    eventually(lambda: client.way.pool.ready == 8)
    return request


@pytest.mark.parametrize(("how", "times"), [(end, 3), (tampered, 1)])
def test_a_session_asks_its_exit_again_and_that_asks_its_server_no_more(
    client: Client,
    breaking: Breaking,
    kept: Request,
    how: Callable[[ServerTunnel], object],
    times: int,
) -> None:
    breaking.how = how
    with pytest.raises(errors.ExitFailed):
        client.connect(kept)
    assert len(breaking.asked) == times


def test_a_session_asks_a_server_that_no_tunnel_leads_to_any_more_again_but_not_in_old_ones(
    client: Client, breaking: Breaking, kept: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse() -> None:
        tries.append(len(breaking.asked))
        raise errors.ConnectionRefused("it is being restarted")

    monkeypatch.setattr(client.way.pool, "_open_tunnel", refuse)
    breaking.how = end
    with pytest.raises(errors.ExitFailed, match="restarted"):
        client.connect(kept)
    assert tries == [2, 2, 2]
