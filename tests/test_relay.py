"""The relay: every byte, every end and every loss of one side is what the other side sees."""

from __future__ import annotations

import gc
import os
import socket as std_socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.queue import Queue
from gevent.socket import socket
from hypothesis import given, settings
from hypothesis import strategies as st

from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import (
    HalfClosedTimeout,
    IdleTimeout,
    StreamClosed,
    StreamError,
    StreamReset,
    Truncated,
)
from gsocks.relay import Relay, Totals
from gsocks.request import Command, Request
from gsocks.stream import CHUNK, BlockingInside, SocketStream, Stream, reset
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.server import ServerTunnel
from gsocks.tunnel.streams import TunnelStream
from tests.support.engine import gather, is_reset, read_exactly, read_to_end, tunnel_pair, value_of
from tests.support.stream_contract import blocked, tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: seconds that are never waited for
LONG = 3600.0
MEGABYTES = os.urandom(1 << 20) * 4


def start(
    client: Stream, remote: Stream, idle: float = LONG, half_closed: float = LONG
) -> tuple[Relay, AsyncResult[Totals]]:
    """A running relay, and its totals once it is over."""
    over: AsyncResult[Totals] = AsyncResult()

    def ended(totals: Totals) -> None:
        assert not over.ready(), "ended twice"
        over.set(totals)

    relay = Relay(client, remote, idle=idle, half_closed=half_closed, ended=ended)
    gevent.spawn(relay.run)
    return relay, over


# --- real connections -------------------------------------------------------------------------


class Wire(NamedTuple):
    """A client, a target, and one relay between them, or two with a tunnel between those."""

    client: socket
    target: socket
    #: from the client's side to the target's
    over: list[AsyncResult[Totals]]

    @property
    def words(self) -> list[str]:
        return [value_of(result).word for result in self.over]


def as_it_is(stream: Stream) -> Stream:
    """To be carried by the hub."""
    return stream


@contextmanager
def relayed(
    idle: float = LONG,
    half_closed: float = LONG,
    buffer: int | None = None,
    wrap: Callable[[Stream], Stream] = as_it_is,
) -> Iterator[Wire]:
    client, near = tcp_pair(buffer)
    far, target = tcp_pair(buffer)
    _, over = start(wrap(SocketStream(near)), wrap(SocketStream(far)), idle, half_closed)
    with client, target:
        yield Wire(client, target, [over])
    over.get()


def streams(
    tunnels: tuple[ClientTunnel, ServerTunnel],
) -> tuple[TunnelStream, TunnelStream, list[bool]]:
    """An open stream in a tunnel, its two ends, and what they said when they ended."""
    near, far = tunnels
    opening = gevent.spawn(near.open, Request(Command.CONNECT, Address("192.0.2.1", 80)))
    assert far.accept() is not None
    far.succeeded(UNSPECIFIED)
    opening.get()
    reusable: list[bool] = []
    return TunnelStream(near, reusable.append), TunnelStream(far, reusable.append), reusable


@contextmanager
def tunnelled(
    idle: float = LONG,
    half_closed: float = LONG,
    buffer: int | None = None,
    wrap: Callable[[Stream], Stream] = as_it_is,
) -> Iterator[Wire]:
    client, near = tcp_pair(buffer)
    far, target = tcp_pair(buffer)
    tunnels = tunnel_pair(buffer)
    up, down, _ = streams(tunnels)
    _, local_over = start(wrap(SocketStream(near)), wrap(up), idle, half_closed)
    _, server_over = start(wrap(down), wrap(SocketStream(far)), idle, half_closed)
    with client, target:
        yield Wire(client, target, [local_over, server_over])
    gevent.joinall([gevent.spawn(over.get) for over in (local_over, server_over)])
    for tunnel in tunnels:
        tunnel.close()


Kind = Callable[..., AbstractContextManager[Wire]]
both_kinds = pytest.mark.parametrize(
    "kind",
    [
        relayed,
        tunnelled,
        # carried by two greenlets each, as streams that truly block are
        pytest.param(partial(relayed, wrap=BlockingInside), id="relayed by greenlets"),
        pytest.param(partial(tunnelled, wrap=BlockingInside), id="tunnelled by greenlets"),
    ],
)


@both_kinds
def test_after_the_clients_end_megabytes_still_come_down(kind: Kind) -> None:
    with kind() as wire:
        wire.client.sendall(b"question")
        wire.client.shutdown(std_socket.SHUT_WR)
        assert read_to_end(wire.target) == b"question"
        sending = gevent.spawn(send_and_end, wire.target, MEGABYTES)
        assert read_to_end(wire.client) == MEGABYTES
        sending.get()
        assert wire.words == ["ok"] * len(wire.over)
        assert {value_of(result)[:2] for result in wire.over} == {(8, len(MEGABYTES))}


@both_kinds
def test_after_the_targets_end_megabytes_still_go_up(kind: Kind) -> None:
    with kind() as wire:
        wire.target.sendall(b"banner")
        wire.target.shutdown(std_socket.SHUT_WR)
        assert read_to_end(wire.client) == b"banner"
        sending = gevent.spawn(send_and_end, wire.client, MEGABYTES)
        assert read_to_end(wire.target) == MEGABYTES
        sending.get()
        assert wire.words == ["ok"] * len(wire.over)
        assert {value_of(result)[:2] for result in wire.over} == {(len(MEGABYTES), 6)}


def send_and_end(sock: socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(std_socket.SHUT_WR)


@both_kinds
def test_both_directions_flow_at_once(kind: Kind) -> None:
    with kind() as wire:
        senders = [gevent.spawn(send_and_end, end, MEGABYTES) for end in wire[:2]]
        readers = [gevent.spawn(read_to_end, end) for end in wire[:2]]
        assert all(reader.get() == MEGABYTES for reader in readers)
        gevent.joinall(senders, raise_error=True)
        assert wire.words == ["ok"] * len(wire.over)


@both_kinds
@pytest.mark.parametrize("writer", ["client", "target"])
def test_a_reader_that_stops_bounds_what_is_taken_from_the_writer(kind: Kind, writer: str) -> None:
    with kind(buffer=4096) as wire:
        end = getattr(wire, writer)
        sent = 0

        def send() -> None:
            nonlocal sent
            try:
                while True:
                    sent += end.send(bytes(65536))
            except OSError:
                pass  # the test is over

        sender = blocked(send)
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            for _ in range(20):
                gevent.idle()
        # Kernel buffers of 4 KiB (Linux doubles them, and takes a segment of 64 KiB where there
        # is any room) and a chunk in each relay; without backpressure this never ends.
        assert sent < 2 << 20
        reset(wire.client)
        reset(wire.target)
        sender.get()


@both_kinds
def test_a_reset_by_the_client_is_a_reset_for_the_target(kind: Kind) -> None:
    with kind() as wire:
        wire.client.sendall(b"half a request")
        assert read_exactly(wire.target, 14) == b"half a request"
        reset(wire.client)
        with pytest.raises(ConnectionResetError):
            wire.target.recv(1)
        assert set(wire.words) == {"client_reset"}


@both_kinds
def test_a_reset_by_the_target_is_a_reset_for_the_client(kind: Kind) -> None:
    with kind() as wire:
        wire.target.sendall(b"half an answer")
        assert read_exactly(wire.client, 14) == b"half an answer"
        reset(wire.target)
        with pytest.raises(ConnectionResetError):
            wire.client.recv(1)
        assert set(wire.words) == {"remote_reset"}


@both_kinds
@pytest.mark.parametrize(("first", "second"), [("client", "target"), ("target", "client")])
def test_a_reset_after_the_other_sides_end_is_still_a_reset(
    kind: Kind, first: str, second: str
) -> None:
    with kind() as wire:
        ended, resetting = getattr(wire, first), getattr(wire, second)
        ended.shutdown(std_socket.SHUT_WR)
        assert resetting.recv(1) == b""
        resetting.sendall(b"not all")
        assert read_exactly(ended, 7) == b"not all"
        reset(resetting)
        with pytest.raises(ConnectionResetError):
            ended.recv(1)
        assert "ok" not in wire.words


@both_kinds
def test_a_writer_that_is_blocked_is_reset_too(kind: Kind) -> None:
    with kind(buffer=4096) as wire:
        writing = blocked(lambda: gather([lambda: wire.client.sendall(MEGABYTES)]))
        reset(wire.target)
        assert isinstance(writing.get()[0], ConnectionError)


# --- truncation -------------------------------------------------------------------------------


def test_a_truncated_tunnel_resets_the_client_and_is_no_end() -> None:
    client, near = tcp_pair()
    tunnels = tunnel_pair()
    up, down, _ = streams(tunnels)
    _, over = start(SocketStream(near), up)
    with client:
        down.write(b"half a file")
        assert read_exactly(client, 11) == b"half a file"
        tunnels[1].close()  # EOF, as a killed process leaves it, without FIN
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert value_of(over).word == "remote_truncated"


def test_a_truncated_tunnel_resets_the_target_and_is_no_end() -> None:
    far, target = tcp_pair()
    tunnels = tunnel_pair()
    up, down, _ = streams(tunnels)
    _, over = start(down, SocketStream(far))
    with target:
        up.write(b"half a file")
        assert read_exactly(target, 11) == b"half a file"
        tunnels[0].close()
        with pytest.raises(ConnectionResetError):
            target.recv(1)
    assert value_of(over).word == "client_truncated"


def test_a_relay_that_ends_well_leaves_its_tunnel_for_the_next_stream() -> None:
    tunnels = tunnel_pair()
    for _ in range(3):
        client, near = tcp_pair()
        far, target = tcp_pair()
        up, down, reusable = streams(tunnels)
        results = [start(SocketStream(near), up)[1], start(down, SocketStream(far))[1]]
        with client, target:
            send_and_end(client, b"up")
            send_and_end(target, b"down")
            assert (read_to_end(client), read_to_end(target)) == (b"down", b"up")
        assert [value_of(over).word for over in results] == ["ok", "ok"]
        assert reusable == [True, True]
    for tunnel in tunnels:
        tunnel.close()


# --- time -------------------------------------------------------------------------------------


def trickle(source: socket, sink: socket, seconds: float) -> None:
    """One byte after the other for so long, which a machine's short stalls don't make silence."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        source.sendall(b".")
        assert sink.recv(1) == b"."
        gevent.sleep(0.005)  # as a peer that sends little


@pytest.mark.parametrize("direction", ["up", "down"])
def test_traffic_in_one_direction_keeps_the_connection_open(direction: str) -> None:
    with relayed(idle=0.8) as wire:
        ends = wire[:2] if direction == "up" else wire[1::-1]
        trickle(*ends, seconds=1.8)
        assert not wire.over[0].ready()
        send_and_end(wire.client, b"")
        send_and_end(wire.target, b"")
        assert wire.words == ["ok"]


@both_kinds
def test_silence_ends_the_connection_with_a_reset_to_both_sides(kind: Kind) -> None:
    with kind(idle=0.05) as wire:
        with pytest.raises(ConnectionResetError):
            wire.client.recv(1)
        with pytest.raises(ConnectionResetError):
            wire.target.recv(1)
        assert "idle_timeout" in wire.words


def test_traffic_puts_the_expiry_off_and_costs_the_loop_nothing() -> None:
    loop = gevent.get_hub().loop
    with relayed(idle=0.2) as wire:
        trickle(wire.client, wire.target, seconds=0.1)
        before = loop.iteration
        assert is_reset(wire.client)
        assert wire.words == ["idle_timeout"]
        assert loop.iteration - before < 50, "it looked at the clock again and again"


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_half_closed_connection_has_its_own_bound(first: str) -> None:
    with relayed(idle=LONG, half_closed=0.05) as wire:
        ended = getattr(wire, first)
        ended.shutdown(std_socket.SHUT_WR)
        assert is_reset(ended)
        assert wire.words == ["half_closed_timeout"]


def test_the_half_closed_bound_may_be_longer_than_the_idle_one() -> None:
    with relayed(idle=0.05, half_closed=LONG) as wire:
        wire.client.shutdown(std_socket.SHUT_WR)
        assert wire.target.recv(1) == b""
        trickle(wire.target, wire.client, seconds=0.01)
        with relayed(idle=0.05) as later:  # the bound that must not count any more
            assert is_reset(later.client)
        wire.target.sendall(b"late")
        assert read_exactly(wire.client, 4) == b"late"
        wire.target.shutdown(std_socket.SHUT_WR)
        assert wire.words == ["ok"]


@pytest.mark.parametrize("first", ["client", "target"])
def test_traffic_keeps_a_half_closed_connection_open(first: str) -> None:
    with relayed(half_closed=0.8) as wire:
        ended = getattr(wire, first)
        other = wire.target if ended is wire.client else wire.client
        ended.shutdown(std_socket.SHUT_WR)
        assert other.recv(1) == b""
        trickle(other, ended, seconds=1.8)
        other.shutdown(std_socket.SHUT_WR)
        assert wire.words == ["ok"]


# --- streams that do what a test says ---------------------------------------------------------


class Chunk(bytearray):
    """Bytes that can be seen to be forgotten."""


class Scripted:
    """A Stream whose every read and write ends as the test wants it."""

    def __init__(self) -> None:
        self._to_read: Queue[bytes | bytearray | BaseException] = Queue()
        self._writable = Event()
        self._writable.set()
        self._write_failure: BaseException | None = None
        self._read_ended = False
        self.reader: Any = None  #: the greenlet that reads
        self.reads = 0
        self.written: list[bytes] = []
        self.write_ended = False
        self.aborted = False
        self.closes = 0
        #: what went from open to released, once for each time
        self.releases: list[str] = []

    # what the test does

    def arrives(self, item: bytes | bytearray | BaseException) -> None:
        self._to_read.put_nowait(item)

    def stall(self) -> None:
        self._writable.clear()

    def unstall(self) -> None:
        self._writable.set()

    def break_writes(self, error: BaseException) -> None:
        self._write_failure = error
        self._writable.set()

    # what the relay does

    def read(self) -> bytes:
        self._check()
        self.reads += 1
        self.reader = gevent.getcurrent()
        item = self._to_read.get()
        self._check()
        if isinstance(item, BaseException):
            raise item
        self._read_ended = not item
        return cast(bytes, item)

    def write(self, data: bytes) -> None:
        self._ready_to_write()
        self.written.append(bytes(data))

    def write_eof(self) -> None:
        self._ready_to_write()
        self.write_ended = True

    def abort(self) -> None:
        if not self.releases:
            self.aborted = True
            self._release("abort")

    def close(self) -> None:
        self.closes += 1
        if not self.releases:
            self.aborted = not (self._read_ended and self.write_ended)
            self._release("close")

    def _release(self, how: str) -> None:
        self.releases.append(how)
        self.arrives(StreamClosed())
        self._writable.set()

    def _ready_to_write(self) -> None:
        self._check()
        self._writable.wait()
        self._check()
        if self._write_failure is not None:
            raise self._write_failure

    def _check(self) -> None:
        if self.releases:
            raise StreamClosed


Scene = tuple[Scripted, Scripted, Relay, "AsyncResult[Totals]"]


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A relay between two scripted streams, whose pipes both wait for something to read."""
    client, remote = Scripted(), Scripted()
    relay, over = start(client, remote)
    gevent.idle()
    yield client, remote, relay, over
    relay.abort(StreamClosed())
    over.get()


def test_while_a_write_waits_nothing_more_is_read(scene: Scene) -> None:
    client, remote, _, _ = scene
    remote.stall()
    for _ in range(5):
        client.arrives(b"chunk")
    gevent.idle()
    assert (client.reads, remote.written) == (1, [])
    remote.unstall()
    gevent.idle()
    assert (client.reads, remote.written) == (6, [b"chunk"] * 5)


def test_nothing_is_held_while_the_next_read_waits(scene: Scene) -> None:
    client, remote, _, _ = scene
    chunk = Chunk(65536)
    forgotten = weakref.ref(chunk)
    client.arrives(chunk)
    del chunk
    gevent.idle()
    assert b"".join(remote.written) == bytes(65536)
    assert client.reads == 2
    assert forgotten() is None


def test_a_connection_that_never_has_to_wait_lets_others_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", 0.0)
    client, remote, _, _ = scene
    for _ in range(10_000):
        client.arrives(b"chunk")
    gevent.sleep(1e-6)
    assert 0 < len(remote.written) < 100


@pytest.mark.parametrize("wrap", [as_it_is, BlockingInside], ids=["hub", "greenlets"])
def test_the_first_bytes_from_the_remote_are_told_once(wrap: Callable[[Stream], Stream]) -> None:
    client, near = tcp_pair()
    far, target = tcp_pair()
    told: list[list[int]] = []
    over: AsyncResult[Totals] = AsyncResult()
    relay = Relay(
        wrap(SocketStream(near)),
        wrap(SocketStream(far)),
        idle=LONG,
        half_closed=LONG,
        ended=over.set,
        answered=lambda: told.append(list(relay.carried)),
    )
    gevent.spawn(relay.run)
    with client, target:
        client.sendall(b"question")
        assert read_exactly(target, 8) == b"question"
        assert told == []
        for part in (b"first", b"second"):
            target.sendall(part)
            assert read_exactly(client, len(part)) == part
        assert told == [[8, 5]]
    over.get()


def test_bytes_are_counted_when_they_are_on_their_way(scene: Scene) -> None:
    client, remote, relay, _ = scene
    client.arrives(b"three")
    remote.arrives(b"to the client")
    client.stall()
    gevent.idle()
    assert relay.carried == [5, 0]


@pytest.mark.parametrize(
    ("breaks", "word"),
    [
        (lambda client, remote: client.arrives(StreamReset()), "client_reset"),
        (lambda client, remote: remote.arrives(StreamReset()), "remote_reset"),
        (lambda client, remote: remote.arrives(Truncated()), "remote_truncated"),
        (
            lambda client, remote: (remote.break_writes(StreamReset()), client.arrives(b"x")),
            "remote_reset",
        ),
        (
            lambda client, remote: (client.break_writes(StreamReset()), remote.arrives(b"x")),
            "client_reset",
        ),
        (
            lambda client, remote: (client.break_writes(StreamReset()), remote.arrives(b"")),
            "client_reset",
        ),
    ],
)
def test_a_failure_is_told_with_its_side_and_resets_both(
    scene: Scene, breaks: Callable[[Scripted, Scripted], object], word: str
) -> None:
    client, remote, _, over = scene
    breaks(client, remote)
    assert value_of(over).word == word
    for stream in (client, remote):
        assert (stream.aborted, stream.releases, stream.closes) == (True, ["abort"], 1)


def test_the_first_reason_counts(scene: Scene) -> None:
    _, remote, relay, over = scene
    remote.arrives(Truncated())
    relay.abort(IdleTimeout())
    relay.abort(StreamClosed("stopped"), "client")
    assert value_of(over).word == "idle_timeout"


def test_after_both_ends_both_streams_are_closed_and_not_reset(scene: Scene) -> None:
    client, remote, _, over = scene
    client.arrives(b"up")
    client.arrives(b"")
    gevent.idle()
    assert (remote.written, remote.write_ended) == ([b"up"], True)
    assert not over.ready()
    remote.arrives(b"")
    assert over.get() == Totals(2, 0, None, "")
    for stream in (client, remote):
        assert (stream.aborted, stream.releases, stream.closes) == (False, ["close"], 1)


@pytest.mark.parametrize("side", [0, 1])
def test_a_killed_pipe_takes_everything_with_it(scene: Scene, side: int) -> None:
    reader = scene[:2][side].reader
    assert reader is not None
    reader.kill()
    assert value_of(scene[3]).word == "closed"
    assert all(stream.aborted for stream in scene[:2])


@pytest.mark.parametrize("side", [0, 1])
def test_a_fault_of_ours_leaves_nothing_waiting(
    scene: Scene, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it is told on stderr too; the fixture that forbids that sees it no more
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    scene[:2][side].arrives(ZeroDivisionError("a fault"))
    assert value_of(scene[3]).word == "closed"
    assert all(stream.aborted for stream in scene[:2])


def test_the_repr_of_a_relay_has_its_state_and_its_streams(scene: Scene) -> None:
    client, remote, relay, over = scene
    streams = f"; {client!r}; {remote!r}>"
    assert repr(relay) == f"<Relay: both directions open, 0 bytes up, 0 down{streams}"
    client.arrives(b"up")
    client.arrives(b"")
    gevent.idle()
    assert repr(relay) == f"<Relay: one direction open, 2 bytes up, 0 down{streams}"
    remote.arrives(b"")
    over.get()
    assert repr(relay) == f"<Relay: ended, 2 bytes up, 0 down{streams}"


def test_the_repr_of_a_relay_in_the_hub_has_what_carries_it() -> None:
    client, near = tcp_pair()
    far, target = tcp_pair()
    with client, target:
        relay, over = start(SocketStream(near), SocketStream(far))
        gevent.idle()
        assert repr(relay).startswith(
            "<Relay: both directions open, 0 bytes up, 0 down; <SocketPair: <SocketStream"
        )
        client.sendall(bytes(4 * CHUNK))
        read_exactly(target, 4 * CHUNK)
        assert repr(relay).count("<SplicePump: <SocketStream") == 2
        assert repr(relay).count("waits for its source") == 2
        relay.abort(StreamClosed())
        over.get()


def test_the_repr_of_a_relay_has_both_its_streams() -> None:
    client, near = tcp_pair()
    far, target = tcp_pair()
    with client, target:
        sides = SocketStream(near), SocketStream(far)
        relay, over = start(*sides)
        client.shutdown(std_socket.SHUT_WR)
        assert target.recv(1) == b""
        assert repr(sides[0]) != repr(sides[1]), "one was read to its end"
        for source in (0, 1):
            assert repr(sides[source]) in repr(relay)
        relay.abort(StreamClosed())
        over.get()


def test_a_relay_that_is_over_is_forgotten() -> None:
    client, remote = Scripted(), Scripted()
    over = start(client, remote)[1]  # with timers that would hold it for hours
    client.arrives(b"")
    gevent.idle()
    remote.arrives(b"")
    over.get()
    del client, remote
    gevent.idle()
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Relay)]


def test_run_returns_when_its_own_direction_has_ended() -> None:
    client, remote = Scripted(), Scripted()
    over: AsyncResult[Totals] = AsyncResult()
    relay = Relay(client, remote, idle=LONG, half_closed=LONG, ended=over.set)
    client.arrives(b"")
    relay.run()
    assert not over.ready()
    remote.arrives(b"")
    assert value_of(over).word == "ok"


def test_a_stream_that_is_broken_from_the_start_is_told_like_any_other() -> None:
    client, remote = Scripted(), Scripted()
    client.abort()
    _, over = start(client, remote)
    assert value_of(over).word == "client_closed"
    assert remote.aborted


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["data", "data", "eof", "read_error", "write_error", "stall", "unstall"]
            + ["abort", "kill", "idle"]
        ),
        st.sampled_from([0, 1]),
    ),
    max_size=14,
)


@settings(max_examples=800)
@given(EVENTS)
def test_whatever_happens_in_whatever_order_every_end_is_told_once_and_truly(
    events: list[tuple[str, int]],
) -> None:
    sides = Scripted(), Scripted()
    relay, over = start(*sides)
    sent: tuple[list[bytes], list[bytes]] = ([], [])
    ended = [False, False]
    for number, (event, side) in enumerate(events):
        stream = sides[side]
        if event == "data" and not ended[side]:
            sent[side].append(b"%d" % number)
            stream.arrives(sent[side][-1])
        elif event == "eof" and not ended[side]:
            ended[side] = True
            stream.arrives(b"")
        elif event == "read_error":
            stream.arrives(StreamReset())
        elif event == "write_error":
            stream.break_writes(StreamReset())
        elif event == "stall":
            stream.stall()
        elif event == "unstall":
            stream.unstall()
        elif event == "abort":
            relay.abort(IdleTimeout())
        elif event == "kill" and stream.reader is not None:
            stream.reader.kill(block=False)
        elif event == "idle":
            gevent.idle()
    for stream in sides:  # whatever is left comes to its proper end
        stream.unstall()
        stream.arrives(b"")
    totals = value_of(over)
    gevent.idle()

    for side, stream in enumerate(sides):
        arrived, other = b"".join(stream.written), sides[1 - side]
        assert (len(stream.releases), stream.closes) == (1, 1)
        assert b"".join(sent[1 - side]).startswith(arrived)
        assert totals[1 - side] == len(arrived)
        if not stream.aborted:  # it saw a clean end, so it saw everything
            assert stream.write_ended
            assert arrived == b"".join(sent[1 - side])
            assert not other.aborted
    assert any(stream.aborted for stream in sides) == (totals.error is not None)


@pytest.mark.parametrize(
    ("totals", "word"),
    [
        (Totals(1, 2, None, ""), "ok"),
        (Totals(1, 2, StreamReset(), "client"), "client_reset"),
        (Totals(1, 2, StreamReset(), "remote"), "remote_reset"),
        (Totals(1, 2, Truncated(), "remote"), "remote_truncated"),
        (Totals(1, 2, IdleTimeout(), ""), "idle_timeout"),
        (Totals(1, 2, HalfClosedTimeout(), ""), "half_closed_timeout"),
        (Totals(1, 2, StreamClosed("stopped"), ""), "closed"),
        (Totals(1, 2, StreamError(), "client"), "client_stream_error"),
    ],
)
def test_the_outcome_is_one_word(totals: Totals, word: str) -> None:
    assert totals.word == word


# --- what a slow reader and a near side that closes at once must not lose ---------------------


@pytest.mark.parametrize("wrap", [lambda stream: stream, BlockingInside], ids=["hub", "greenlets"])
def test_a_slow_reader_of_one_large_chunk_is_not_idle(wrap: Callable[[Stream], Stream]) -> None:
    data = os.urandom(60_000)
    client, near = tcp_pair()
    far, target = tcp_pair(4096)
    with client, target:
        client.sendall(data)  # one chunk, of which the target's side takes a little at a time
        _, over = start(SocketStream(near), wrap(SocketStream(far)), idle=1.0)
        received = b""
        while len(received) < len(data):
            part = target.recv(1500)
            assert part, "taken for idle"
            received += part
            gevent.sleep(0.05)  # as a slow reader
        assert received == data
        client.shutdown(std_socket.SHUT_WR)
        target.shutdown(std_socket.SHUT_WR)
        assert value_of(over).word == "ok"
