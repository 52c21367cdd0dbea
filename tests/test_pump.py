"""What the hub carries: calls that never block keep the Stream contract, and relays of theirs bring
every byte and every end, whatever happens in whatever order."""

from __future__ import annotations

import itertools
import os
import random
import socket as std_socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.socket import socket, socketpair

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import Cipher
from gsocks.errors import (
    ProtocolViolation,
    StreamClosed,
    StreamError,
    StreamReset,
    Tampered,
    Truncated,
)
from gsocks.exits.handshake import resumed
from gsocks.net import socket_pair
from gsocks.net.bandwidth import Bucket, LimitedStream
from gsocks.net.pump import Pump
from gsocks.net.tls import TlsStream
from gsocks.relay import Relay, Totals
from gsocks.request import Command, Request
from gsocks.stream import (
    CHUNK,
    READABLE,
    WRITABLE,
    Bytes,
    ScratchBuffers,
    SocketStream,
    Stream,
    Wait,
    reset,
)
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.frames import MAX_BODY, Frame
from gsocks.tunnel.streams import TunnelStream
from tests.support.engine import eventually, living_greenlets, tunnel_pair, value_of
from tests.support.proxies import certified, trusting
from tests.support.stream_contract import blocked, tcp_pair
from tests.support.tunnel_parts import changed, frame, ignore_end, sessions
from tests.support.waiting import TOO_LONG

checked = pytest.mark.usefixtures("never_hangs", "nothing_left")

LONG = 3600.0
CERTIFIED = certified("127.0.0.1")


def test_what_came_before_a_stream_is_at_hand_in_chunks() -> None:
    near, far = tcp_pair()
    with near, far:
        stream, scratch = SocketStream(near, bytes(CHUNK + 1)), ScratchBuffers()
        sizes = []
        while stream.has_buffered:
            sizes.append(len(stream.read_nowait(scratch) or b""))
        assert sizes == [CHUNK, 1]
        assert stream.read_nowait(scratch) is None


# --- frames that have come --------------------------------------------------------------------


@contextmanager
def receiving(
    wire: bytes, pieces: int | None = None, cipher: Cipher = Cipher.SECRETBOX
) -> Iterator[tuple[TunnelStream, Callable[[], list[Bytes | None]]]]:
    """A stream to which ``wire`` comes, ``pieces`` bytes at a time; and what each of them gave."""
    near, far = socketpair()
    with near, far:
        stream, scratch = (
            TunnelStream(Tunnel(far, sessions(cipher)[1]), ignore_end),
            ScratchBuffers(),
        )

        def read() -> list[Bytes | None]:
            given: list[Bytes | None] = []
            for start in range(0, len(wire), pieces or len(wire)):
                near.sendall(wire[start : start + (pieces or len(wire))])
                data = stream.read_nowait(scratch)
                given.append(None if data is None else bytes(data))
                while stream.has_buffered:
                    data = stream.read_nowait(scratch)
                    given.append(None if data is None else bytes(data))
            return given

        yield stream, read


def some_frames(cipher: Cipher = Cipher.SECRETBOX) -> tuple[list[bytes], list[bytes]]:
    """Frames, the last of which is a FIN; and what is in them."""
    sender, _ = sessions(cipher)
    bodies = [b"first", b"second and longer", b"", b"four"]
    kinds = [Frame.DATA, Frame.DATA, Frame.PAD, Frame.DATA]
    pairs = zip(kinds, [*bodies[:2], b"padding", bodies[3]], strict=True)
    return [*(frame(sender, *pair) for pair in pairs), frame(sender, Frame.FIN)], bodies


@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
@pytest.mark.parametrize("pieces", [1, 2, 7, 50, None])
def test_frames_give_the_same_however_they_arrive(cipher: Cipher, pieces: int | None) -> None:
    frames, bodies = some_frames(cipher)
    with receiving(b"".join(frames), pieces, cipher) as (stream, read):
        given = read()
        assert b"".join(data for data in given if data is not None) == b"".join(bodies)
        assert given[-1] == b""
        assert given.count(b"") == 1
        assert stream.read_nowait(ScratchBuffers()) == b""


def test_frames_that_come_together_are_given_together() -> None:
    frames, bodies = some_frames()
    with receiving(b"".join(frames)) as (_, read):
        assert read() == [b"".join(bodies), b""]


def test_the_largest_frames_fit_into_the_scratch_buffers() -> None:
    sender, _ = sessions()
    bodies = [os.urandom(MAX_BODY) for _ in range(3)]
    wire = b"".join(frame(sender, Frame.DATA, body) for body in bodies)
    with receiving(wire, len(wire) // 9 + 1) as (_, read):
        assert b"".join(data for data in read() if data) == b"".join(bodies)


@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
@pytest.mark.parametrize("first", [1, 20, 36, 37, 100, 70_000])
def test_the_largest_frames_fit_wherever_the_first_piece_ends(cipher: Cipher, first: int) -> None:
    sender, receiver = sessions(cipher)
    near, far = tcp_pair()
    with near, far:
        stream, scratch = TunnelStream(Tunnel(far, receiver), ignore_end), ScratchBuffers()
        bodies = [os.urandom(MAX_BODY) for _ in range(6)]
        wire = b"".join(frame(sender, Frame.DATA, body) for body in bodies)
        near.sendall(wire[:first])
        given = [bytes(stream.read_nowait(scratch) or b"")]
        sending = gevent.spawn(near.sendall, wire[first:])
        while sum(map(len, given)) < 6 * MAX_BODY:
            gevent.idle()
            given.append(bytes(stream.read_nowait(scratch) or b""))
        assert b"".join(given) == b"".join(bodies)
        sending.get()


def test_what_stands_behind_the_end_is_for_the_next_reader() -> None:
    sender, receiver = sessions()
    near, far = socketpair()
    with near, far:
        tunnel = Tunnel(far, receiver)
        stream = TunnelStream(tunnel, ignore_end)
        near.sendall(frame(sender, Frame.FIN) + frame(sender, Frame.OPEN, b"the next stream"))
        assert stream.read_nowait(ScratchBuffers()) == b""
        assert not tunnel.between_frames
        assert tunnel.receive() == (Frame.OPEN, b"the next stream")


def test_frames_that_a_blocking_read_has_begun_go_on() -> None:
    sender, receiver = sessions()
    near, far = socketpair()
    with near, far:
        stream = TunnelStream(Tunnel(far, receiver), ignore_end)
        wire = b"".join(frame(sender, Frame.DATA, body) for body in (b"one", b"two", b"three"))
        near.sendall(wire[:30])
        reading = blocked(stream.read)
        near.sendall(wire[30:-2])
        assert reading.get() == b"onetwo"
        scratch = ScratchBuffers()
        near.sendall(wire[-2:])
        assert bytes(stream.read_nowait(scratch) or b"") == b"three"


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        (Frame.RESET, b"", StreamReset),
        (Frame.PING, b"", ProtocolViolation),
        (Frame.FIN, b"not empty", ProtocolViolation),
        (Frame.DATA, b"", ProtocolViolation),
        (Frame.DATAGRAM, b"no stream", ProtocolViolation),
    ],
)
def test_what_stands_before_a_frame_that_breaks_the_stream_is_given(
    kind: Frame, body: bytes, error: type[StreamError]
) -> None:
    sender, receiver = sessions()
    near, far = socketpair()
    with near, far:
        stream, scratch = TunnelStream(Tunnel(far, receiver), ignore_end), ScratchBuffers()
        near.sendall(frame(sender, Frame.DATA, b"good") + frame(sender, kind, body))
        assert bytes(stream.read_nowait(scratch) or b"") == b"good"
        assert stream.has_buffered
        with pytest.raises(error):
            stream.read_nowait(scratch)


@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
def test_nothing_of_a_changed_frame_is_given_and_nothing_behind_it(cipher: Cipher) -> None:
    frames, bodies = some_frames(cipher)
    wire, ends = b"".join(frames), list(itertools.accumulate(map(len, frames)))
    for position in range(len(wire)):
        near, far = socketpair()
        with near, far:
            tunnel = Tunnel(far, sessions(cipher)[1])
            stream, scratch, given = TunnelStream(tunnel, ignore_end), ScratchBuffers(), b""
            with pytest.raises(Tampered):
                for start, end in itertools.pairwise([0, *ends]):
                    near.sendall(changed(wire, position)[start:end])
                    given += stream.read_nowait(scratch) or b""
            assert tunnel.closed
            whole = [body for body, end in zip(bodies, ends, strict=False) if end <= position]
            assert given == b"".join(whole)
            with pytest.raises(StreamClosed):
                stream.read_nowait(scratch)


def test_a_stream_that_is_cut_anywhere_is_truncated() -> None:
    frames, _ = some_frames()
    wire = b"".join(frames)
    for count in range(len(wire)):
        near, far = socketpair()
        with near, far:
            stream = TunnelStream(Tunnel(far, sessions()[1]), ignore_end)
            near.sendall(wire[:count])
            near.shutdown(std_socket.SHUT_WR)
            scratch = ScratchBuffers()
            with pytest.raises(Truncated):
                while stream.read_nowait(scratch) != b"":
                    pass


def test_a_frame_that_was_received_ahead_is_given_before_the_stream_is_truncated() -> None:
    sender, receiver = sessions()
    near, far = socketpair()
    with near, far:
        tunnel = Tunnel(far, receiver)
        near.sendall(b"".join(frame(sender, Frame.DATA, body) for body in (b"one", b"two")))
        near.shutdown(std_socket.SHUT_WR)
        assert tunnel.receive() == (Frame.DATA, b"one")
        stream, scratch = TunnelStream(tunnel, ignore_end), ScratchBuffers()
        assert bytes(stream.read_nowait(scratch) or b"") == b"two"
        with pytest.raises(Truncated):
            stream.read_nowait(scratch)


# --- relays -----------------------------------------------------------------------------------


class Line(NamedTuple):
    """A client and a target, and the relays between them: one more than there are links."""

    client: socket
    target: socket
    relays: list[Relay]
    over: list[AsyncResult[Totals]]


def streams(buffer: int | None) -> tuple[TunnelStream, TunnelStream]:
    """Both ends of a stream in a tunnel that ends with it."""
    near, far = tunnel_pair(buffer)
    opening = gevent.spawn(near.open, Request(Command.CONNECT, Address("192.0.2.1", 80)))
    assert far.accept() is not None
    far.succeeded(UNSPECIFIED)
    opening.get()
    return TunnelStream(near, lambda _: near.close()), TunnelStream(far, lambda _: far.close())


def secured(near: Stream, far: Stream) -> tuple[TlsStream, TlsStream]:
    """Both ends of TLS over a stream."""
    client, server = TlsStream(near, trusting(), "127.0.0.1"), TlsStream(far, CERTIFIED, None)
    handshake = gevent.spawn(server.handshake)
    client.handshake()
    handshake.get()
    return client, server


def limited(*ends: Stream) -> tuple[Stream, ...]:
    """Both ends wait for the tokens of all that they carry, but not for long."""
    return tuple([LimitedStream(end, [Bucket(4e8, 0)], [Bucket(4e8, 0)]) for end in ends])


def sockets(buffer: int | None) -> tuple[SocketStream, SocketStream]:
    near, far = tcp_pair(buffer)
    return SocketStream(near), SocketStream(far)


#: what lies between the client's relay and the target's: the ends of one stream after the other
LINKS: dict[str, Callable[[int | None], tuple[Stream, ...]]] = {
    "sockets": lambda buffer: (),
    "tunnel": streams,
    "two tunnels": lambda buffer: (*streams(buffer), *streams(buffer)),
    "TLS": lambda buffer: secured(*sockets(buffer)),
    "TLS in a tunnel": lambda buffer: secured(*streams(buffer)),
    "limited": lambda buffer: limited(*sockets(buffer)),
    "limited tunnel": lambda buffer: limited(*streams(buffer)),
    "read ahead": lambda buffer: tuple([_ahead(end) for end in streams(buffer)]),
}


def _ahead(stream: Stream) -> Stream:
    """A stream from which something was read and has been given back; it is read here."""
    whole = resumed(stream, b"ahead")
    assert whole.read() == b"ahead"
    return whole


@contextmanager
def line(link: str, buffer: int | None = None) -> Iterator[Line]:
    """A link with a socket at both ends."""
    client, near = tcp_pair(buffer)
    far, target = tcp_pair(buffer)
    ends = [SocketStream(near), *LINKS[link](buffer), SocketStream(far)]
    relays: list[Relay] = []
    over: list[AsyncResult[Totals]] = []
    for one, other in zip(ends[::2], ends[1::2], strict=True):
        over.append(AsyncResult())
        ended = over[-1].set
        relays.append(Relay(one, other, idle=LONG, half_closed=LONG, ended=ended))
    for relay in relays:
        relay.run()
    with client, target:
        yield Line(client, target, relays, over)
        for relay in relays:
            relay.abort(StreamClosed("the test is over"))


def all_kinds(test: Callable[..., None]) -> Callable[..., None]:
    """Of two sockets, and of a socket and of every other kind of stream, on either side."""
    marked: Callable[..., None] = checked(pytest.mark.parametrize("link", LINKS)(test))
    return marked


@all_kinds
def test_a_connection_that_waits_has_no_greenlet(link: str) -> None:
    with line(link) as (client, target, _, _):
        for _ in range(3):
            client.sendall(b"question")
            assert target.recv(100) == b"question"
            target.sendall(b"answer")
            assert client.recv(100) == b"answer"
            assert not living_greenlets()


@all_kinds
def test_a_writer_whose_reader_stops_costs_no_greenlet(link: str) -> None:
    with line(link, buffer=4096) as (client, target, _, _):
        sent = fill(client)
        assert not living_greenlets()
        gevent.spawn(client.shutdown, std_socket.SHUT_WR).join()
        received = 0
        while data := target.recv(65536):
            received += len(data)
        assert received == sent


def fill(sock: socket) -> int:
    """Send until nothing is taken any more; how many bytes."""
    sent, quiet = 0, 0
    sock.settimeout(0.0)
    while quiet < 3:
        count = sent_now(sock, bytes(65536))
        sent += count
        quiet = 0 if count else quiet + 1
        gevent.idle()
    sock.settimeout(None)
    return sent


def sent_now(sock: socket, data: bytes) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


@checked
def test_one_that_is_always_ready_lets_others_run() -> None:
    with line("sockets") as (client, target, relays, _):
        client.settimeout(0.0)
        while sent_now(client, bytes(65536)):
            pass
        before = sum(relays[0].carried)
        gevent.get_hub().loop.run_callback(lambda: None)
        gevent.sleep(0)
        assert sum(relays[0].carried) - before <= 2 * CHUNK
        assert target is not None


@all_kinds
def test_a_fault_of_ours_leaves_nothing_waiting(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # it is told on stderr too; the fixture that forbids that sees it no more
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)

    def fail(*_: object) -> Bytes:
        raise ZeroDivisionError("a fault")

    with line(link) as (client, target, _, over):
        monkeypatch.setattr(SocketStream, "read_nowait", fail)
        monkeypatch.setattr(socket_pair, "_read", fail)
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionResetError):
            target.recv(1)
        assert value_of(over[0]).word == "closed"


# --- whatever happens -------------------------------------------------------------------------

#: what both sides send: position by position, so that a byte in a wrong place shows
BLOB = (os.urandom(256 * 1024) * 16, os.urandom(256 * 1024) * 16)
EVENTS = ["write"] * 6 + ["read"] * 4 + ["pause"] * 3 + ["end", "end", "reset", "stop"]
SIZES = (1, 100, 5000, 65536, 65537, 300_000)


class Side:
    """One end of a line, which writes and reads without waiting."""

    def __init__(self, sock: socket, says: bytes, hears: bytes) -> None:
        self._sock = sock
        self._says = says
        self._hears = hears
        sock.settimeout(0.0)
        self.sent = self.received = 0
        self.has_ended = self.has_reset = False
        #: how the other direction ended: "end", "broken", or "" while it has not
        self.saw = ""

    def write(self, size: int) -> None:
        if self.has_ended or self.has_reset:
            return
        try:
            self.sent += self._sock.send(self._says[self.sent : self.sent + size])
        except BlockingIOError:
            pass
        except OSError:
            self.saw = "broken"  # told once: to who reads now it would look like an end

    def read(self, size: int) -> None:
        if self.saw or self.has_reset:
            return
        try:
            data = self._sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.saw = "broken"
            return
        assert data == self._hears[self.received : self.received + len(data)]
        self.received += len(data)
        if not data:
            self.saw = "end"

    def end(self) -> None:
        if not self.has_ended and not self.has_reset:
            self.has_ended = True
            try:
                self._sock.shutdown(std_socket.SHUT_WR)
            except OSError:
                self.saw = "broken"

    def reset(self) -> None:
        self.has_reset = True
        reset(self._sock)


@all_kinds
@pytest.mark.parametrize("block", range(4))
def test_whatever_happens_every_byte_and_every_end_arrives_and_no_loss_is_taken_for_an_end(
    link: str, block: int
) -> None:
    for seed in range(block * 100, (block + 1) * 100):
        chance = random.Random(seed)
        with line(link, buffer=chance.choice((4096, None))) as (client, target, relays, over):
            sides = Side(client, *BLOB), Side(target, *BLOB[::-1])
            broken = False
            for _ in range(chance.randrange(1, 25)):
                event, side = chance.choice(EVENTS), chance.choice(sides)
                if event == "write":
                    side.write(chance.choice(SIZES))
                elif event == "read":
                    side.read(chance.choice(SIZES))
                elif event == "pause":
                    gevent.idle()
                elif event == "end":
                    side.end()
                elif event == "reset" and chance.random() < 0.3:
                    side.reset()
                    broken = True
                elif event == "stop" and chance.random() < 0.1:
                    chance.choice(relays).abort(StreamClosed("stopped"))
                    broken = True
            come_to_the_end(sides, over)

            one, other = sides
            for side, peer in ((one, other), (other, one)):
                if side.saw == "end":
                    assert peer.has_ended, f"seed {seed}: an end that was none"
                    assert side.received == peer.sent, f"seed {seed}: a loss taken for an end"
            totals = [value_of(result) for result in over]
            if not broken:
                assert [side.saw for side in sides] == ["end", "end"], f"seed {seed}"
                assert {each[:3] for each in totals} == {(one.sent, other.sent, None)}
            elif not any(side.has_ended for side in sides):
                assert "end" not in (one.saw, other.saw)
                assert all(each.error for each in totals)


def come_to_the_end(sides: tuple[Side, Side], over: list[AsyncResult[Totals]]) -> None:
    deadline = time.monotonic() + TOO_LONG
    while not (all(side.saw or side.has_reset for side in sides) and all(o.ready() for o in over)):
        assert time.monotonic() < deadline, "it never ended"
        for side in sides:
            side.end()
            side.read(300_000)
        gevent.sleep(0.0001)  # the kernel's timers need time, not turns of the loop


# --- a sink that takes long -------------------------------------------------------------------


class SlowSink(SocketStream):
    """A sink that takes all at once and sends one byte whenever it is flushed."""

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        self.left = len(data)
        return False

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:
        self.left -= 1
        return not self.left


class Reports:
    """A carrier that keeps what it is told."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def passed(self, source: int, count: int) -> None:
        self.passes.append(count)

    def ended(self) -> None:
        """Nothing to keep."""

    def failed(self, error: StreamError, side: int | None) -> None:
        raise AssertionError(error)


@checked
def test_each_part_of_a_chunk_that_a_sink_sends_is_reported_as_progress() -> None:
    client, near = tcp_pair()
    far, target = tcp_pair()
    reports = Reports()
    with client, near, far, target:
        pump = Pump(reports, (SocketStream(near), SlowSink(far)), 0)
        pump.start()
        client.sendall(b"four")
        eventually(lambda: reports.passes[-1:] == [4])
        assert reports.passes == [0, 0, 0, 4]
        pump.stop()


class Busy(SocketStream):
    """A source that has to send something before it can read, as one over TLS may have."""

    reads = 0

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        self.reads += 1
        return None if self.reads == 1 else super().read_nowait(scratch)

    @property
    def read_wait(self) -> Wait:
        return WRITABLE if self.reads == 1 else READABLE


@checked
def test_a_source_that_had_to_send_first_is_read_when_it_has_something_and_no_oftener() -> None:
    client, near = tcp_pair()
    far, target = tcp_pair()
    with client, near, far, target:
        source = Busy(near)
        pump = Pump(Reports(), (source, SocketStream(far)), 0)
        pump.start()
        client.sendall(b"once")
        assert target.recv(100) == b"once"
        reads, loop = source.reads, gevent.get_hub().loop
        polls = loop.iteration
        eventually(lambda: loop.iteration > polls + 10)  # what is watched would be seen in each
        assert source.reads == reads
        pump.stop()


@checked
def test_the_last_bytes_of_a_tls_stream_arrive_when_the_near_side_closes_at_once() -> None:
    data = os.urandom(300_000)
    near, far = secured(*sockets(None))
    far.write_eof()
    assert near.read() == b""

    def write_and_close() -> None:
        near.write(data)
        near.write_eof()
        near.close()

    writing = gevent.spawn(write_and_close)
    gevent.idle()  # as much has left as the kernel takes, before the first byte is read
    received = b""
    while part := far.read():
        received += part
    assert received == data
    writing.get()
    far.close()
