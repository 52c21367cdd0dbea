"""Frames carry streams, one after the other; nothing else passes, and strangers learn nothing."""

from __future__ import annotations

import itertools
import logging
import os
import socket as std_socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.socket import socket, socketpair
from gevent.util import wrap_errors

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import HELLO_HEAD_SIZE, REPLY_HEAD_SIZE, Cipher, Initiator, Key, KeyRing
from gsocks.errors import (
    AddressTypeNotSupported,
    BadAddress,
    CommandNotSupported,
    ConnectFailed,
    ConnectionRefused,
    ExitFailed,
    ExitUnproven,
    GsocksError,
    ProtocolViolation,
    Stranger,
    StreamClosed,
    StreamError,
    StreamReset,
    Tampered,
    Truncated,
    failure_from_code,
)
from gsocks.relay import Relay, Totals
from gsocks.replay import WINDOW_MS, ReplayGuard, now_ms
from gsocks.request import UDP_ASSOCIATE, Command, Request
from gsocks.stream import ScratchBuffers, SocketStream, reset
from gsocks.tunnel.base import PADDING_LIMIT, Tunnel
from gsocks.tunnel.client import ClientTunnel, connect_tunnel
from gsocks.tunnel.frames import HEADER_SIZE, MAX_BODY, SKIPPED, Frame, areas_of
from gsocks.tunnel.server import ServerTunnel, accept_tunnel
from gsocks.tunnel.states import CLIENT_TRANSITIONS, SERVER_TRANSITIONS, Transitions, TunnelState
from gsocks.tunnel.streams import TunnelDatagrams, TunnelStream
from tests.support import make_vectors
from tests.support import protocol_document as document
from tests.support.engine import tunnel_pair
from tests.support.stream_contract import StreamContract, blocked, read_to_end, tcp_pair
from tests.support.tunnel_parts import (
    BOTH,
    BOUND,
    CONNECT,
    DEST,
    KEY,
    OTHER_KEY,
    RING,
    ByHand,
    agree,
    asking,
    changed,
    frame,
    hello_from,
    ignore_end,
    is_silent,
    open_stream,
    opened,
    our_client,
    our_server,
    sessions,
    small_order_hello,
    tunnels,
)
from tests.support.waiting import TOO_LONG

ciphers = pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


# --- a stream in a tunnel is a stream ---------------------------------------------------------


class TestTunnelStream(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TunnelStream, TunnelStream]]:
        with tunnels() as (client, server):
            yield open_stream(client, server)


class TestTunnelStreamSeenFromTheServer(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TunnelStream, TunnelStream]]:
        with tunnels(Cipher.AEGIS256) as (client, server):
            near, far = open_stream(client, server)
            yield far, near


class TestTunnelStreamWithSmallBuffers(StreamContract):
    """Every write of some size is a partial one, and every frame comes in pieces."""

    big = 2 * 1024 * 1024

    @pytest.fixture
    def pair(self) -> Iterator[tuple[TunnelStream, TunnelStream]]:
        with tunnels(buffer=4096) as (client, server):
            yield open_stream(client, server)


def test_nothing_is_written_behind_the_end_of_a_direction() -> None:
    with tunnels() as (client, server):
        near, far = open_stream(client, server)
        near.write_eof()
        assert near.write_eof_nowait(ScratchBuffers()), "nothing of it waits to be sent"
        with pytest.raises(StreamClosed):
            near.write(b"too late")
        assert far.read() == b""
        far.write(b"the other direction goes on")
        assert near.read() == b"the other direction goes on"


# --- one stream after the other ---------------------------------------------------------------


def end_near_first(near: TunnelStream, far: TunnelStream) -> None:
    near.write_eof()
    assert far.read() == b""
    far.write_eof()
    assert near.read() == b""


def end_far_first(near: TunnelStream, far: TunnelStream) -> None:
    end_near_first(far, near)


def end_at_once(near: TunnelStream, far: TunnelStream) -> None:
    near.write_eof()
    far.write_eof()
    assert near.read() == b""
    assert far.read() == b""


def end_with_words_in_both_directions(near: TunnelStream, far: TunnelStream) -> None:
    near.write(b"last")
    near.write_eof()
    far.write(b"words")
    far.write_eof()
    assert read_to_end(far) == b"last"
    assert read_to_end(near) == b"words"


@ciphers
@pytest.mark.parametrize("closed_first", ["client", "server"])
@pytest.mark.parametrize(
    "end", [end_near_first, end_far_first, end_at_once, end_with_words_in_both_directions]
)
def test_a_tunnel_is_as_new_when_its_stream_has_ended_in_both_directions(
    end: Callable[[TunnelStream, TunnelStream], None], closed_first: str, cipher: Cipher
) -> None:
    ended: list[bool] = []
    with tunnels(cipher) as (client, server):
        for count in range(5):
            near, far = open_stream(client, server, ended.append, ended.append)
            near.write(b"question %d" % count)
            assert far.read() == b"question %d" % count
            far.write(b"answer %d" % count)
            assert near.read() == b"answer %d" % count
            used = client.last_used
            end(near, far)
            for stream in (near, far) if closed_first == "client" else (far, near):
                stream.close()
            assert ended == [True, True] * (count + 1)
            assert client.last_used > used
            assert client.served == count + 1
            assert not client.readable
            client_ping(client, server)


def client_ping(client: ClientTunnel, server: ServerTunnel) -> None:
    accepting = gevent.spawn(server.accept)
    client.ping()
    accepting.kill()


def reset_near(near: TunnelStream, far: TunnelStream) -> None:
    near.abort()


def close_before_the_far_end(near: TunnelStream, far: TunnelStream) -> None:
    near.write_eof()
    near.close()


def close_before_the_own_end(near: TunnelStream, far: TunnelStream) -> None:
    far.write_eof()
    assert near.read() == b""
    near.close()


@pytest.mark.parametrize(
    "give_up", [reset_near, close_before_the_far_end, close_before_the_own_end]
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_stream_that_was_given_up_takes_its_tunnel_with_it(
    give_up: Callable[[TunnelStream, TunnelStream], None], swapped: bool
) -> None:
    ended: list[bool] = []
    with tunnels() as (client, server):
        near, far = open_stream(client, server, ended.append, ended.append)
        give_up(far, near) if swapped else give_up(near, far)
        assert ended == [False]
        assert (client.closed, server.closed) == (not swapped, swapped)
        (far if swapped else near).close()
        assert ended == [False]  # told once


def failure_kinds(kind: type[GsocksError] = ConnectFailed) -> list[type[GsocksError]]:
    """Those that a server reports: a kind without a code of its own is reported as its base."""
    more = itertools.chain.from_iterable(map(failure_kinds, kind.__subclasses__()))
    own = [kind] if "code" in vars(kind) or kind is ConnectFailed else []
    return [*own, *more]


@pytest.mark.parametrize(
    "kind",
    [*failure_kinds(), CommandNotSupported, AddressTypeNotSupported],
    ids=lambda kind: kind.word,
)
def test_a_refusal_is_told_with_its_cause_and_the_tunnel_goes_on(kind: type[GsocksError]) -> None:
    with tunnels() as (client, server):
        for count in range(3):
            opening = gevent.spawn(wrap_errors((GsocksError,), client.open), CONNECT)
            assert server.accept() == Request(Command.CONNECT, DEST, "alice")
            server.failed(kind("the server's own words stay there"))
            error: object = opening.get()
            # a kind that has no code of its own comes as the one that it is of
            assert type(error) is type(failure_from_code(kind.code))
            assert isinstance(kind(), type(error))
            assert "the server's own words" not in str(error)
            assert isinstance(error, GsocksError)
            assert str(error).startswith(error.word.replace("_", " ") + ", ")
            assert client.served == 2 * count + 1
            near, far = open_stream(client, server)
            end_at_once(near, far)
            near.close()
            far.close()


def test_an_address_that_none_can_have_is_reported_and_the_tunnel_goes_on() -> None:
    with our_server() as (client, server):
        for body, kind in (
            (b"\x01\x03\x05a b.c\x00\x50", BadAddress),
            (b"\x01\x03\x00\x00\x50", BadAddress),
            (b"\x01\x05" + bytes(20), AddressTypeNotSupported),
            (b"\x04" + DEST.encode(), CommandNotSupported),
            (b"\x00" + DEST.encode(), CommandNotSupported),
            (b"\xf2" + DEST.encode(), CommandNotSupported),
            (b"\xf1" + DEST.encode(), BadAddress),
        ):
            client.send(Frame.OPEN, body)
            with pytest.raises(kind):
                server.accept()
            server.failed(kind())
            assert client.receive()[0] == Frame.OPENED
            client.send(Frame.FIN)
        client.send(Frame.OPEN, asking())
        assert server.accept() == CONNECT._replace(user="alice")


@pytest.mark.parametrize("command", Command)
def test_every_command_arrives_as_it_was_sent(command: Command) -> None:
    with our_server() as (client, server):
        client.send(Frame.OPEN, asking(command, Address("2001:db8::1", 0)))
        # that of an association has no meaning
        dest = UNSPECIFIED if command is UDP_ASSOCIATE else Address("2001:db8::1", 0)
        assert server.accept() == Request(command, dest, "alice")


def test_data_sent_behind_an_open_that_is_refused_is_discarded() -> None:
    with our_server() as (client, server):
        for words in ((), (b"x",), (b"a" * MAX_BODY, b"b" * MAX_BODY)):
            client.send(Frame.OPEN, asking())
            for data in words:
                client.send(Frame.DATA, data)
                client.send(Frame.PAD, b"between")
            client.send(Frame.FIN)
            client.send(Frame.OPEN, asking(dest=BOUND))
            client.send(Frame.FIN)
            assert server.accept() == CONNECT._replace(user="alice")
            server.failed(ConnectionRefused())
            request = server.accept()
            assert request is not None
            assert request.dest == BOUND
            server.failed(ConnectionRefused())
            for _ in range(2):
                kind, body = client.receive()
                assert (kind, body[0]) == (Frame.OPENED, ConnectionRefused.code)


def test_data_sent_behind_an_open_that_is_granted_is_delivered() -> None:
    with our_server() as (client, server):
        client.send(Frame.OPEN, asking())
        client.send(Frame.DATA, b"early ")
        client.send(Frame.DATA, b"words")
        client.send(Frame.FIN)
        server.accept()
        server.succeeded(BOUND)
        stream = TunnelStream(server, ignore_end)
        assert read_to_end(stream) == b"early words"


def test_a_reset_is_carried_as_a_reset_and_nothing_else_is() -> None:
    with our_client() as (client, server):
        server.send(Frame.OPENED, opened())
        client.open(CONNECT)
        TunnelStream(client, ignore_end).abort()
        server.receive()
        assert server.receive() == (Frame.RESET, b"")
        assert server.sock.recv(1) == b""
    for frames, kind in (((Frame.RESET,), StreamReset), ((), Truncated)):
        with our_client() as (client, server):
            stream = TunnelStream(client, ignore_end)
            server.send(Frame.DATA, b"before")
            for frame in frames:
                server.send(frame)
            server.end()
            assert stream.read() == b"before"
            with pytest.raises(kind):
                stream.read()


def test_behind_its_own_end_a_stream_is_reset_without_a_frame() -> None:
    near, far = tcp_pair()
    with near, far:
        client, server = agree(near, far, Cipher.SECRETBOX)
        stream, other = open_stream(client, server)
        stream.write_eof()
        assert other.read() == b""
        stream.abort()
        with pytest.raises(ConnectionResetError):
            far.recv(1)


def test_a_reset_that_can_not_leave_at_once_resets_the_connection() -> None:
    near, far = tcp_pair(4096)
    with near, far:
        client, server = agree(near, far, Cipher.SECRETBOX)
        stream, _ = open_stream(client, server)
        near.settimeout(0)
        with pytest.raises(BlockingIOError):
            while True:
                near.send(bytes(65536))
        stream.abort()
        assert client.closed
        with pytest.raises(ConnectionResetError):
            while far.recv(65536):
                pass


def test_no_reset_is_put_into_the_middle_of_a_frame() -> None:
    near, far = tcp_pair(4096)
    with near, far:
        client, server = agree(near, far, Cipher.SECRETBOX)
        stream, _ = open_stream(client, server)
        writer = blocked(lambda: stream.write(bytes(MAX_BODY)))
        # there is room for a RESET now, and the writer has not noticed yet
        with std_socket.socket(fileno=os.dup(far.fileno())) as unread:
            with pytest.raises(BlockingIOError):
                while unread.recv(65536, std_socket.MSG_DONTWAIT):
                    pass
            stream.abort()
        with pytest.raises(ConnectionResetError):
            while far.recv(65536):
                pass
        with pytest.raises(StreamClosed):
            writer.get()


def test_frames_that_were_received_together_are_given_one_after_the_other() -> None:
    near, far = tunnel_pair()
    for body in (b"first", b"second", b"third"):
        near.send(Frame.DATA, body)
    scratch = ScratchBuffers()
    given: list[bytes] = []
    while len(given) < 3:
        header = far.receive_frame_nowait(scratch)
        if header is None:
            gevent.sleep(0.001)  # as a reader that waits for more
        else:
            given.append(bytes(scratch.plain[: header.length]))
    assert given == [b"first", b"second", b"third"]
    near.close()
    far.close()


def test_a_frame_that_was_cut_in_two_is_the_tunnels_last() -> None:
    with tunnels(buffer=4096) as (client, server):
        near, far = open_stream(client, server)
        writer = blocked(lambda: near.write(bytes(1_000_000)))
        writer.kill()
        assert client.closed
        with pytest.raises(StreamError):
            read_to_end(far)


# --- sizes and arrivals -----------------------------------------------------------------------


SIZES = [0, 1, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 3 * MAX_BODY]
ARRIVALS = {
    "in sevens": (7,),
    "header and body apart": (HEADER_SIZE + 16, MAX_BODY + 16),
    "one byte too many": (HEADER_SIZE + 17, MAX_BODY + 16),
    "a frame and a half": (MAX_BODY * 3 // 2,),
    "unevenly": (1, 4096, 19, 65535, 2, 100_000),
}


def deliver(source: socket, sink: socket, pieces: Sequence[int]) -> None:
    """Pass on what comes, in pieces of these sizes, one at a time."""
    parts = []
    while part := source.recv(65536):
        parts.append(part)
    data = memoryview(b"".join(parts))
    for size in itertools.cycle(pieces):
        if not data:
            break
        sink.sendall(data[:size])
        gevent.sleep(0)  # the reader takes this one first
        data = data[size:]
    sink.shutdown(std_socket.SHUT_WR)


@pytest.mark.parametrize("arrival", ["byte by byte", *ARRIVALS])
@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_arrives_in_frames_however_the_bytes_come(size: int, arrival: str) -> None:
    data = os.urandom(size)
    pieces = ARRIVALS.get(arrival, (1,))
    if pieces == (1,) and size > 1:
        data = data[:2000]
    at_client, at_server = sessions()
    near, near_out = socketpair()
    far_in, far = socketpair()
    with near, near_out, far_in, far:
        passing = gevent.spawn(deliver, near_out, far_in, pieces)

        def write() -> None:
            stream = TunnelStream(Tunnel(near, at_client), ignore_end)
            stream.write(data)
            stream.write(b"behind")
            stream.write_eof()
            near.shutdown(std_socket.SHUT_WR)

        writing = gevent.spawn(write)
        stream = TunnelStream(Tunnel(far, at_server), ignore_end)
        assert read_to_end(stream) == data + b"behind"
        assert stream.read() == b""
        for each in (passing, writing):
            each.get()


# --- cut, changed and oversized ---------------------------------------------------------------


class Captured(NamedTuple):
    """A sender's frames, sealed; and what each delivers."""

    frames: list[bytes]
    bodies: list[bytes]

    @property
    def wire(self) -> bytes:
        return b"".join(self.frames)

    def delivered_by(self, count: int) -> list[bytes]:
        """What stands in the frames that are whole within the first ``count`` bytes."""
        ends = itertools.accumulate(map(len, self.frames))
        return [body for end, body in zip(ends, self.bodies, strict=True) if end <= count and body]


def captured_stream(cipher: Cipher) -> Captured:
    sender, _ = sessions(cipher)
    bodies = [b"first", b"second and longer", b"", b"four"]
    kinds = [Frame.DATA, Frame.DATA, Frame.PAD, Frame.DATA]
    frames = [frame(sender, kind, body) for kind, body in zip(kinds, bodies, strict=True)]
    return Captured([*frames, frame(sender, Frame.FIN)], [*bodies, b""])


def read_all(stream: TunnelStream) -> tuple[list[bytes], StreamError | None]:
    """What a stream gives, and the error that ended it; None is its proper end."""
    parts = []
    try:
        while part := stream.read():
            parts.append(part)
    except StreamError as error:
        return parts, error
    return parts, None


@ciphers
def test_a_stream_that_is_cut_anywhere_is_truncated(cipher: Cipher) -> None:
    captured = captured_stream(cipher)
    for count in range(len(captured.wire) + 1):
        near, far = socketpair()
        with near, far:
            near.sendall(captured.wire[:count])
            near.shutdown(std_socket.SHUT_WR)
            tunnel = Tunnel(far, sessions(cipher)[1])
            parts, error = read_all(TunnelStream(tunnel, ignore_end))
        assert b"".join(parts) == b"".join(captured.delivered_by(count))
        assert (type(error) is Truncated) == (count < len(captured.wire))


@ciphers
def test_nothing_of_a_changed_frame_is_delivered_and_nothing_behind_it(cipher: Cipher) -> None:
    captured = captured_stream(cipher)
    for position in range(len(captured.wire)):
        near, far = socketpair()
        with near, far:
            near.sendall(changed(captured.wire, position))
            near.shutdown(std_socket.SHUT_WR)
            tunnel = Tunnel(far, sessions(cipher)[1])
            stream = TunnelStream(tunnel, ignore_end)
            parts, error = read_all(stream)
            assert b"".join(parts) == b"".join(captured.delivered_by(position))
            assert type(error) is Tampered
            assert tunnel.closed
            with pytest.raises(StreamClosed):  # even if it is called again
                stream.read()
            with pytest.raises(StreamClosed):
                stream.write(b"x")


@ciphers
def test_frames_left_out_repeated_or_out_of_order_are_noticed(cipher: Cipher) -> None:
    frames = captured_stream(cipher).frames
    for order in ((1, 0), (0, 0), (0, 2), (1,), (0, 1, 0), (0, 1, 2, 4), (4,)):
        near, far = socketpair()
        with near, far:
            near.sendall(b"".join(frames[number] for number in order))
            near.shutdown(std_socket.SHUT_WR)
            tunnel = Tunnel(far, sessions(cipher)[1])
            assert type(read_all(TunnelStream(tunnel, ignore_end))[1]) is Tampered


def test_a_body_is_never_taken_for_a_header() -> None:
    # a body that reads as the header of DATA with 4 bytes, which the FIN behind it would be
    at_client, at_server = sessions()
    near, far = socketpair()
    with near, far:
        data = frame(at_client, Frame.DATA, bytes((Frame.DATA, 0, 0, 4)))
        header = HEADER_SIZE + at_client.overhead
        near.sendall(bytes(header) + data[header:] + frame(at_client, Frame.FIN))
        stream = TunnelStream(Tunnel(far, at_server), ignore_end)
        with pytest.raises(Tampered):
            stream.read()
        with pytest.raises(StreamClosed):
            stream.read()


@pytest.mark.parametrize("length", [MAX_BODY + 1, 2**17, 2**24 - 1])
def test_a_frame_that_is_too_long_is_refused_before_its_body_comes(length: int) -> None:
    with our_server() as (client, server):
        client.sock.sendall(client.session.seal(bytes((Frame.PAD,)) + length.to_bytes(3, "big")))
        with pytest.raises(ProtocolViolation):
            server.accept()
        assert server.closed
    with our_server() as (client, server):
        client.send(Frame.PAD, bytes(MAX_BODY))  # the longest that may be
        client.end()
        assert server.accept() is None


@ciphers
def test_a_connection_that_ends_between_two_streams_ends_the_tunnel_and_within_a_frame_is_truncated(
    cipher: Cipher,
) -> None:
    sender, _ = sessions(cipher)
    frames = [
        frame(sender, Frame.PING),
        frame(sender, Frame.PAD, b"any"),
        frame(sender, Frame.OPEN, asking()),
    ]
    between = {0, *itertools.accumulate(map(len, frames))}
    wire = b"".join(frames)
    for count in range(len(wire)):
        with our_server(cipher) as (client, server):
            client.sock.sendall(wire[:count])
            client.end()
            if count in between:
                assert server.accept() is None
            else:
                with pytest.raises(Truncated):
                    server.accept()


def test_a_reset_between_two_streams_is_an_end_too() -> None:
    near, far = tcp_pair()
    with near, far:
        _, server = agree(near, far, Cipher.SECRETBOX)
        reset(near)
        assert server.accept() is None


def test_an_end_behind_a_refused_open_is_truncation() -> None:
    with our_server() as (client, server):
        server.failed(ConnectionRefused())
        client.end()
        with pytest.raises(Truncated):
            server.accept()


def test_an_answer_that_is_cut_anywhere_is_truncation() -> None:
    for kind, body, ask in (
        (Frame.OPENED, opened(), lambda client: client.open(CONNECT)),
        (Frame.PONG, b"", ClientTunnel.ping),
    ):
        wire = frame(sessions()[1], kind, body)
        for count in range(len(wire)):
            with our_client() as (client, server):
                server.sock.sendall(wire[:count])
                server.end()
                with pytest.raises(Truncated):
                    ask(client)


# --- every frame in every place ---------------------------------------------------------------


BODIES = {
    Frame.OPEN: asking(),
    Frame.OPENED: opened(),
    Frame.DATA: b"x",
    Frame.DATAGRAM: b"a datagram",
}


def arrive_idle(kind: int, body: bytes) -> object:
    with our_server() as (client, server):
        client.send(kind, body)
        client.end()
        result = server.accept()
        if kind == Frame.PING:
            assert client.receive()[0] == Frame.PONG
        return result


def arrive_refused(kind: int, body: bytes) -> object:
    with our_server() as (client, server):
        server.failed(ConnectionRefused())
        client.send(kind, body)
        if kind != Frame.FIN:
            client.send(Frame.FIN)
        client.send(Frame.OPEN, asking())
        return server.accept()


def arrive_in_stream(kind: int, body: bytes) -> object:
    return arrive_inside(TunnelStream, Frame.DATA, kind, body)


def arrive_in_association(kind: int, body: bytes) -> object:
    return arrive_inside(TunnelDatagrams, Frame.DATAGRAM, kind, body)


def arrive_inside(
    inside: type[TunnelStream | TunnelDatagrams], carrying: Frame, kind: int, body: bytes
) -> object:
    outcomes = []
    ours: Tunnel
    theirs: ByHand
    for end in (our_client, our_server):
        with end() as both:
            ours, theirs = both if end is our_client else reversed(both)  # type: ignore[assignment]
            theirs.send(kind, body)
            theirs.send(carrying, b"behind")
            stream = inside(ours, ignore_end)
            outcome = wrap_errors((StreamError,), stream.read)()
            if outcome == body + b"behind" and carrying is Frame.DATA:
                outcome = body or b"behind"  # frames that came together are read together
            outcomes.append(outcome)
    at_client, at_server = outcomes
    if isinstance(at_client, StreamError):
        assert type(at_client) is type(at_server)
        raise at_client
    assert at_client == at_server
    return at_client


def arrive_behind_fin_of_client(kind: int, body: bytes) -> object:
    with our_server() as (client, server):
        return arrive_behind_fin(server, client, kind, body)


def arrive_behind_fin_of_server(kind: int, body: bytes) -> object:
    with our_client() as (client, server):
        return arrive_behind_fin(client, server, kind, body)


def arrive_behind_fin(ours: Tunnel, theirs: ByHand, kind: int, body: bytes) -> object:
    """In a stream whose other direction goes on, and is relayed."""
    ended: AsyncResult[Totals] = AsyncResult()
    near, far = tcp_pair()
    with near, far:
        theirs.send(Frame.FIN)
        stream = TunnelStream(ours, ignore_end)
        relay = Relay(
            SocketStream(far), stream, idle=TOO_LONG, half_closed=TOO_LONG, ended=ended.set
        )
        relay.run()
        assert near.recv(1) == b""
        theirs.send(kind, body)
        theirs.send(SENTINEL)
        totals = ended.get()
        assert totals is not None
        error = totals.error
        assert isinstance(error, StreamError)
        with pytest.raises(OSError):
            near.sendall(b"x")  # it was reset
        if f"{SENTINEL:#04x}" not in str(error):
            raise error
        return "ignored"


def arrive_opening(kind: int, body: bytes) -> object:
    with our_client() as (client, server):
        server.send(kind, body)
        server.send(Frame.OPENED, opened())
        return client.open(CONNECT)


def arrive_pinging(kind: int, body: bytes) -> object:
    with our_client() as (client, server):
        server.send(kind, body)
        server.send(Frame.PONG)
        client.ping()
        return "alive"


#: a violation in any place, by which a test finds that what came before it was none
SENTINEL = 0x55

REQUESTED = CONNECT._replace(user="alice")
ARRIVE: dict[str, tuple[Callable[[int, bytes], object], dict[int, object]]] = {
    "idle": (arrive_idle, {Frame.OPEN: REQUESTED, Frame.PING: None, Frame.PAD: None}),
    "refused": (
        arrive_refused,
        {
            Frame.FIN: REQUESTED,
            Frame.DATA: REQUESTED,
            Frame.PAD: REQUESTED,
            Frame.RESET: StreamReset,
        },
    ),
    "stream": (
        arrive_in_stream,
        {Frame.DATA: b"x", Frame.FIN: b"", Frame.RESET: StreamReset, Frame.PAD: b"behind"},
    ),
    "association": (
        arrive_in_association,
        {
            Frame.DATAGRAM: b"a datagram",
            Frame.FIN: b"",
            Frame.RESET: StreamReset,
            Frame.PAD: b"behind",
        },
    ),
    "client ended": (arrive_behind_fin_of_client, {Frame.PAD: "ignored"}),
    "server ended": (arrive_behind_fin_of_server, {}),
    "opening": (arrive_opening, {Frame.OPENED: BOUND, Frame.PAD: BOUND}),
    "pinging": (arrive_pinging, {Frame.PONG: "alive", Frame.PAD: "alive"}),
}


def test_the_document_and_the_code_have_the_same_states_and_transitions() -> None:
    for name, transitions in (("client", CLIENT_TRANSITIONS), ("server", SERVER_TRANSITIONS)):
        ours = {(*key, after) for key, after in transitions.items()}
        assert document.transitions(name) == ours


@pytest.mark.parametrize("transitions", [CLIENT_TRANSITIONS, SERVER_TRANSITIONS])
def test_every_state_is_reached_from_idle_and_leads_back_to_it(transitions: Transitions) -> None:
    following: dict[TunnelState, set[TunnelState]] = {before: set() for before, _ in transitions}
    for (before, _), after in transitions.items():
        following[before].add(after)
    assert set().union(*following.values()) == set(following)
    for state in following:
        reached = {state}
        for _ in following:
            reached |= set().union(*(following[each] for each in reached))
        assert TunnelState.IDLE in reached


def test_each_change_of_a_tunnels_state_is_logged_at_debug_and_holds_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="gsocks.tunnel")
    with our_client() as (client, server):
        server.send(Frame.PONG)
        client.ping()
        server.send(Frame.OPENED, opened(ConnectionRefused.code))
        with pytest.raises(ConnectionRefused):
            client.open(CONNECT)
        server.send(Frame.OPENED, opened())
        client.open(CONNECT)
        assert repr(client) == "<ClientTunnel: stream, secretbox>"
        client.abort()
        client.abort()
    name = f"ClientTunnel {id(client):x}: "
    assert [record.getMessage().removeprefix(name) for record in caplog.records] == [
        "idle -> pinging (PING)",
        "pinging -> idle (PONG)",
        "idle -> opening (OPEN)",
        "opening -> idle (OPENED with another code)",
        "idle -> opening (OPEN)",
        "opening -> stream (OPENED with code 0x00)",
        "stream -> closed (closed at this end)",
    ]


def test_a_bind_is_opening_until_its_second_answer() -> None:
    with our_client() as (client, server):
        server.send(Frame.OPENED, opened())
        client.open(Request(Command.BIND, DEST))
        assert repr(client) == "<ClientTunnel: opening, secretbox>"
        server.send(Frame.OPENED, opened())
        client.opened_again()
        assert repr(client) == "<ClientTunnel: stream, secretbox>"


@pytest.mark.parametrize("kind", [TunnelStream, TunnelDatagrams])
def test_the_repr_of_what_a_tunnel_carries_has_its_state(
    kind: type[TunnelStream | TunnelDatagrams],
) -> None:
    with our_client() as (client, server):
        server.send(Frame.OPENED, opened())
        client.open(CONNECT)
        inside, name = kind(client, lambda _: None), kind.__name__
        behind = "0 bytes to send, in <ClientTunnel: stream, secretbox>>"
        assert repr(inside) == f"<{name}: open, {behind}"
        inside.write_eof()
        assert repr(inside) == f"<{name}: write ended, {behind}"
        server.send(Frame.FIN)
        assert inside.read() == b""
        assert repr(inside) == f"<{name}: both directions ended, {behind}"
        inside.close()
        assert repr(inside) == f"<{name}: closed>"


def test_the_document_says_where_each_frame_may_stand() -> None:
    said = document.frame_matrix()
    for place, (_, effects) in ARRIVE.items():
        assert {Frame[name] for name in said if said[name][place]} == set(effects)


@pytest.mark.parametrize("kind", [*Frame, 0x00, 0x0A, 0x7F, 0x80, 0xC5, 0xFF])
@pytest.mark.parametrize("place", ARRIVE)
def test_a_frame_has_its_effect_in_its_place_and_is_a_violation_in_any_other(
    place: str, kind: int
) -> None:
    arrive, effects = ARRIVE[place]
    body = BODIES.get(kind, b"")  # type: ignore[call-overload]
    taken_for = Frame.PAD if kind >= SKIPPED else kind
    if taken_for not in effects:
        with pytest.raises(ProtocolViolation):
            arrive(kind, body)
    elif effects[taken_for] is StreamReset:
        with pytest.raises(StreamReset):
            arrive(kind, body)
    else:
        assert arrive(kind, body) == effects[taken_for]


@pytest.mark.parametrize("place", ARRIVE)
def test_a_pad_too_many_is_a_violation_in_any_place(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.tunnel.frames.MAX_PADS", 0)
    with pytest.raises(ProtocolViolation):
        ARRIVE[place][0](Frame.PAD, b"")


@pytest.mark.parametrize("kind", [0x00, 0x0A, 0x7F])
@pytest.mark.parametrize("place", ARRIVE)
def test_a_frame_of_no_known_type_is_a_violation_with_a_body_too(place: str, kind: int) -> None:
    with pytest.raises(ProtocolViolation):
        ARRIVE[place][0](kind, b"something")


@pytest.mark.parametrize("place", ["refused", "stream", "association", "client ended"])
@pytest.mark.parametrize(
    ("kind", "body"), [(Frame.DATA, b""), (Frame.DATAGRAM, b""), (Frame.FIN, b"x")]
)
def test_data_has_a_body_and_fin_has_none(place: str, kind: Frame, body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ARRIVE[place][0](kind, body)


@pytest.mark.parametrize(
    ("place", "kind"),
    [("idle", Frame.PING), ("pinging", Frame.PONG), ("stream", Frame.RESET)],
)
def test_a_body_where_none_is_needed_is_ignored(place: str, kind: Frame) -> None:
    arrive, effects = ARRIVE[place]
    outcome = wrap_errors((StreamError,), arrive)(kind, b"whatever")
    if effects[kind] is StreamReset:
        assert type(outcome) is StreamReset
    else:
        assert outcome == effects[kind]


@pytest.mark.parametrize("dest", [DEST, BOUND, Address("2001:db8::1", 80)], ids=str)
def test_a_body_that_ends_early_is_a_violation_and_what_follows_the_fields_is_ignored(
    dest: Address,
) -> None:
    for whole, place, kind, effect in (
        (asking(dest=dest), "idle", Frame.OPEN, Request(Command.CONNECT, dest, "alice")),
        (opened(bound=dest), "opening", Frame.OPENED, dest),
    ):
        arrive = ARRIVE[place][0]
        for count in range(len(whole)):
            with pytest.raises(ProtocolViolation):
                arrive(kind, whole[:count])
        for behind in (b"", b"\0", os.urandom(300), bytes(MAX_BODY - len(whole))):
            assert arrive(kind, whole + behind) == effect


@pytest.mark.parametrize("address", [b"\x05" + bytes(20), b"\x03\x03a b\0\0"])
def test_a_bound_address_that_none_can_have_is_the_servers_violation(address: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        arrive_opening(Frame.OPENED, b"\x00" + address)


def test_names_are_padded_by_a_random_number_of_zeros() -> None:
    at_client, server = set(), set()
    with our_client() as (client, far):
        for _ in range(300):
            far.send(Frame.OPENED, opened(ConnectionRefused.code))
            wrap_errors((ConnectFailed,), client.open)(CONNECT)
            kind, body = far.receive()
            assert (kind, body[: len(asking())]) == (Frame.OPEN, asking())
            assert not any(body[len(asking()) :])
            at_client.add(len(body) - len(asking()))
            assert far.receive() == (Frame.FIN, b"")
    with our_server() as (near, end):
        answers: list[tuple[Callable[[], object], bytes]] = [
            (lambda: end.succeeded(BOUND), opened()),
            (lambda: end.failed(ConnectionRefused()), opened(0x05, UNSPECIFIED)),
        ]
        for answer, expected in answers:
            for _ in range(300):
                near.send(Frame.OPEN, asking())
                end.accept()
                answer()
                kind, body = near.receive()
                near.send(Frame.FIN)
                if end.state is TunnelState.STREAM:
                    stream = TunnelStream(end, ignore_end)
                    assert stream.read() == b""
                    stream.write_eof()
                    stream.close()
                    assert near.receive() == (Frame.FIN, b"")
                assert (kind, body[: len(expected)]) == (Frame.OPENED, expected)
                assert not any(body[len(expected) :])
                server.add(len(body) - len(expected))
    for seen in (at_client, server):
        assert len(seen) > 60  # of 300 at random among 128
        assert max(seen) < PADDING_LIMIT


# --- signs of life ----------------------------------------------------------------------------


def test_a_ping_is_answered_between_streams_and_proves_that_both_ends_live() -> None:
    with tunnels() as (client, server):
        accepting = gevent.spawn(server.accept)
        for _ in range(3):
            heard = client.last_heard
            client.ping()
            assert client.last_heard > heard
        client.send(Frame.OPEN, asking())
        assert accepting.get() == REQUESTED


def test_pings_and_pongs_are_padded_by_a_random_number_of_zeros() -> None:
    pings, pongs, later = set(), set(), set()
    with our_client() as (client, far):
        for _ in range(300):
            pinging = gevent.spawn(client.ping)
            pings.add(padding_of(Frame.PING, far))
            far.send(Frame.PONG, b"whatever")
            pinging.get()
    with our_server() as (near, server):
        accepting = gevent.spawn(server.accept)
        for _ in range(300):
            near.send(Frame.PING, b"whatever")
            pongs.add(padding_of(Frame.PONG, near))
        accepting.kill()
    with our_server() as (near, server):
        for _ in range(300):
            assert not server.pong_nowait(ScratchBuffers())
            later.add(padding_of(Frame.PONG, near))
    for seen in (pings, pongs, later):
        assert len(seen) > 60  # of 300 at random among 128
        assert max(seen) < PADDING_LIMIT


def padding_of(expected: Frame, end: ByHand) -> int:
    """How many zeros are all that the next frame has, which is of that type."""
    kind, body = end.receive()
    assert (kind, any(body)) == (expected, False)
    return len(body)


def test_a_refusal_behind_which_the_tunnel_ends_is_a_refusal_all_the_same() -> None:
    with our_client() as (client, server):
        asking_for_it: gevent.Greenlet[..., object] = gevent.spawn(
            wrap_errors((GsocksError,), client.open), CONNECT
        )
        assert server.receive()[0] == Frame.OPEN
        server.send(Frame.OPENED, opened(ConnectionRefused.code))
        server.sock.close()
        assert type(asking_for_it.get()) is ConnectionRefused
        assert client.closed


def test_an_idle_tunnel_is_readable_once_something_came_or_it_is_closed() -> None:
    for happen in (lambda far: far.send(Frame.PAD), ByHand.end):
        with our_client() as (client, far):
            assert not client.readable
            happen(far)
            assert client.readable
    with our_client() as (client, far):
        client.close()
        assert client.readable
        with pytest.raises(StreamClosed):
            client.fileno()


def test_an_idle_tunnel_is_readable_if_something_came_with_its_last_frame() -> None:
    with our_client() as (client, far):
        far.sock.sendall(frame(far.session, Frame.PONG) + frame(far.session, Frame.PAD))
        client.ping()
        assert is_silent(client)  # it was read already
        assert client.readable


def test_a_closed_tunnel_says_so() -> None:
    for close in (Tunnel.close, Tunnel.abort, Tunnel.abort_with_reset):
        with tunnels() as (client, server):
            for end in (client, server):
                close(end)
                assert end.closed
                close(end)
                with pytest.raises(StreamClosed):
                    end.send(Frame.PAD)
                with pytest.raises(StreamClosed):
                    end.receive()


def test_an_answer_that_can_not_be_sent_is_raised_where_the_next_request_is_awaited() -> None:
    with tunnels() as (_, server):
        server.close()
        server.failed(ConnectionRefused())
        with pytest.raises(StreamClosed):
            server.accept()


# --- agreeing ---------------------------------------------------------------------------------


def stranger_to(
    data: bytes, ring: KeyRing, guard: ReplayGuard, ciphers: Cipher = BOTH
) -> GsocksError:
    """Why these bytes lead to no tunnel; nothing was sent meanwhile."""
    near, far = socketpair()
    with near, far:
        near.sendall(data)
        near.shutdown(std_socket.SHUT_WR)
        with pytest.raises((Stranger, StreamError)) as caught:
            accept_tunnel(far, ring, guard, ciphers)
        assert is_silent(near)
    assert isinstance(caught.value, GsocksError)
    return caught.value


@pytest.fixture
def guard() -> Iterator[ReplayGuard]:
    made = ReplayGuard(started_ms=0)
    yield made
    made.close()


def test_a_hello_is_accepted_once(guard: ReplayGuard) -> None:
    hello = hello_from()
    near, far = socketpair()
    with near, far:
        near.sendall(hello)
        tunnel = accept_tunnel(far, RING, guard, BOTH)
        assert (tunnel.user, tunnel.key, tunnel.cipher) == ("alice", KEY, Cipher.AEGIS256)
        assert not is_silent(near)
    assert type(stranger_to(hello, RING, guard)) is Stranger


def test_a_replayed_hello_leads_to_no_tunnel(guard: ReplayGuard) -> None:
    # of a client whose clock is ahead, at a server that has been restarted
    initiator = Initiator(KEY, Cipher.SECRETBOX)
    hello = initiator.hello(now_ms() + WINDOW_MS // 2)
    near, far = socketpair()
    with near, far:
        near.sendall(hello)
        accept_tunnel(far, RING, guard, BOTH)
        reply = near.recv(4096)
    session = initiator.finish(reply[:REPLY_HEAD_SIZE], reply[REPLY_HEAD_SIZE:])
    behind = frame(session, Frame.OPEN, asking())
    restarted = ReplayGuard()
    near, far = socketpair()
    with near, far:
        near.sendall(hello + behind)
        tunnel = accept_tunnel(far, RING, restarted, BOTH)
        with pytest.raises(Tampered):
            tunnel.accept()
        with pytest.raises(Tampered):  # nor can the reply be opened but by who made the hello
            other = near.recv(4096)
            Initiator(KEY, Cipher.SECRETBOX).finish(
                other[:REPLY_HEAD_SIZE], other[REPLY_HEAD_SIZE:]
            )
    restarted.close()


def test_a_hello_that_is_cut_or_changed_anywhere_is_not_answered(guard: ReplayGuard) -> None:
    hello = hello_from()
    for count in range(len(hello)):
        assert type(stranger_to(hello[:count], RING, guard)) is Truncated
    for position in range(len(hello)):
        assert type(stranger_to(changed(hello, position), RING, guard)) is Stranger
    near, far = socketpair()
    with near, far:  # none of them has used it up
        near.sendall(hello)
        accept_tunnel(far, RING, guard, BOTH)


def test_a_hello_of_another_key_time_or_cipher_is_not_answered(guard: ReplayGuard) -> None:
    for hello in (
        hello_from(OTHER_KEY),
        hello_from(time_ms=now_ms() - WINDOW_MS - 1),
        hello_from(time_ms=now_ms() + WINDOW_MS + 60_000),
        hello_from(time_ms=0),
        hello_from(time_ms=2**64 - 1),
        hello_from(offered=Cipher.AEGIS256),
        hello_from(offered=Cipher(0)),
    ):
        assert type(stranger_to(hello, RING, guard, Cipher.SECRETBOX)) is Stranger


def test_only_hellos_that_proved_a_key_and_fit_are_remembered() -> None:
    small = ReplayGuard(started_ms=0, capacity=1)
    for _ in range(100):
        stranger_to(hello_from(OTHER_KEY), RING, small)
        stranger_to(hello_from(offered=Cipher(0)), RING, small)
        stranger_to(hello_from(time_ms=0), RING, small)
        stranger_to(hello_from()[:-1], RING, small)
    near, far = socketpair()
    with near, far:
        near.sendall(hello_from())
        accept_tunnel(far, RING, small, BOTH)
    small.close()


def test_a_public_key_that_none_may_use_is_not_answered(guard: ReplayGuard) -> None:
    assert type(stranger_to(small_order_hello(), RING, guard)) is Tampered


# Found by search: with the salt of seeded("hello salt", 0), these two keys have one hint.
COLLIDING = {
    "long": Key(make_vectors.seeded("key", 78003)),
    "short": Key(make_vectors.seeded("key", 58290)),
}


@pytest.mark.parametrize("name", COLLIDING)
def test_of_two_keys_with_one_hint_each_is_answered_without_waiting_for_more(
    name: str, guard: ReplayGuard
) -> None:
    initiator = Initiator(COLLIDING[name], BOTH, salt=make_vectors.seeded("hello salt", 0)[:16])
    hello = initiator.hello(now_ms())
    ring = KeyRing(COLLIDING)
    assert len(ring.candidates(hello[:HELLO_HEAD_SIZE])) == 2
    near, far = socketpair()
    with near, far:
        near.sendall(hello)
        assert accept_tunnel(far, ring, guard, BOTH).user == name
        reply = near.recv(1000)
        session = initiator.finish(reply[:REPLY_HEAD_SIZE], reply[REPLY_HEAD_SIZE:])
        assert session.cipher is Cipher.AEGIS256


def connecting_with(change: Callable[[bytes], bytes], guard: ReplayGuard) -> object:
    """What a client makes of a reply that was changed on its way."""
    near, near_out = socketpair()
    far_in, far = socketpair()
    with near, near_out, far_in, far:
        connecting = gevent.spawn(wrap_errors((GsocksError,), connect_tunnel), near, KEY, BOTH)
        far_in.sendall(near_out.recv(1000))
        accept_tunnel(far, RING, guard, BOTH)
        near_out.sendall(change(far_in.recv(1000)))
        near_out.shutdown(std_socket.SHUT_WR)
        outcome = connecting.get()
        assert near.fileno() >= 0  # without a tunnel it is the caller's to close
        return outcome


def test_a_server_that_says_nothing_or_not_enough_is_told_with_the_likely_causes(
    guard: ReplayGuard,
) -> None:
    for count in range(49):
        error = connecting_with(itemgetter(slice(count)), guard)
        assert type(error) is ExitUnproven
        assert "another key, clocks more than 30 s apart" in str(error)
    assert isinstance(connecting_with(bytes, guard), ClientTunnel)


def test_a_reply_that_was_changed_anywhere_leads_to_no_tunnel(guard: ReplayGuard) -> None:
    for position in range(49):
        error = connecting_with(partial(changed, position=position), guard)
        # a changed public key changes the length that is waited for
        assert type(error) in (Tampered, ExitFailed, ExitUnproven)


def test_nothing_looks_into_the_views_of_the_scratch_buffers() -> None:
    """Else CPython crashes when those of an ended thread are left to its garbage collector."""
    scratch = ScratchBuffers()
    areas = areas_of(scratch)
    for view in (scratch.plain, scratch.sealed, *[area.view for area in areas]):
        view.release()  # BufferError if anything does
