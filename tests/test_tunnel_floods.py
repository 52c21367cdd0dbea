"""The other end of a tunnel knows the key and sends without end: no other client waits for it."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.socket import socketpair
from gevent.util import wrap_errors

from gsocks.errors import (
    ClientError,
    ConnectionRefused,
    FrameTimeout,
    ProtocolViolation,
    StreamError,
    StreamReset,
)
from gsocks.relay import Relay, Totals
from gsocks.settings import Timeouts
from gsocks.stream import ScratchBuffers, SocketStream, reset
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import MAX_FRAMES_AT_ONCE, MAX_PADS, Frame, FrameDecoder, Header
from gsocks.tunnel.server import MAX_PINGS, ServerTunnel
from gsocks.tunnel.states import TunnelState
from gsocks.tunnel.streams import TunnelDatagrams, TunnelStream
from tests.support.engine import eventually, make_exit, make_server, read_exactly
from tests.support.stream_contract import tcp_pair
from tests.support.tunnel_parts import (
    CONNECT,
    ByHand,
    asking,
    frame,
    ignore_end,
    is_silent,
    opened,
    our_client,
    our_server,
    sessions,
)
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: of each flood
ROUNDS = 200


class Bystander:
    """A greenlet that counts the turns of the loop in which it could have served a client."""

    def __init__(self) -> None:
        self.turns = 0

    def __enter__(self) -> Bystander:
        self._greenlet = gevent.spawn(self._count)
        gevent.sleep(1e-6)
        return self

    def __exit__(self, *error: object) -> None:
        self._greenlet.kill()

    def _count(self) -> None:
        while True:
            gevent.sleep(1e-6)
            self.turns += 1


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of what gives way by time is followed by a turn of all others."""
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", 0.0)


# --- a client ---------------------------------------------------------------------------------

Frames = list[tuple[int, bytes]]

PINGS: Frames = [(Frame.PAD, b""), (Frame.PING, b"")]
REFUSED: Frames = [(Frame.OPEN, asking()), (Frame.FIN, b"")]
NONSENSE: Frames = [(Frame.OPEN, asking(command=0x77)), (Frame.FIN, b"")]


def say(peer: ByHand, frames: Frames) -> None:
    """Send them at once: they are all there when the first is read."""
    peer.sock.sendall(b"".join(frame(peer.session, kind, body) for kind, body in frames))


def refuse_all(server: ServerTunnel) -> None:
    """What the listener for tunnels does where no destination can be reached."""
    while True:
        if server.state is TunnelState.REFUSED:
            server.discard_refused()
        try:
            if server.accept() is None:
                return
        except ClientError:
            pass
        server.failed(ConnectionRefused())


def test_each_ping_and_each_frame_behind_a_refusal_has_a_turn_of_its_own() -> None:
    with our_server() as (client, server), Bystander() as other:
        behind: Frames = [(Frame.DATA, b"x")]
        say(client, [*PINGS * ROUNDS, (Frame.OPEN, asking()), *behind * ROUNDS, (Frame.FIN, b"")])
        client.end()
        before = other.turns
        refuse_all(server)
        assert other.turns - before >= 2 * ROUNDS


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("frames", [PINGS, REFUSED, NONSENSE], ids=["pings", "refused", "nonsense"])
def test_a_client_that_never_stops_lets_others_run(frames: Frames) -> None:
    with our_server() as (client, server), Bystander() as other:
        say(client, frames * ROUNDS)
        client.end()
        before = other.turns
        refuse_all(server)
        assert other.turns - before >= ROUNDS


@pytest.mark.usefixtures("short_turns")
def test_a_client_that_never_ends_what_was_refused_lets_others_run() -> None:
    with our_server() as (client, server), Bystander() as other:
        data: Frames = [(Frame.DATA, b"x")]
        say(client, [(Frame.OPEN, asking()), *data * ROUNDS, (Frame.FIN, b"")])
        client.end()
        before = other.turns
        refuse_all(server)
        assert other.turns - before >= ROUNDS


def test_pings_between_two_streams_have_a_bound() -> None:
    with our_server() as (client, server):
        serving = gevent.spawn(wrap_errors((StreamError,), refuse_all), server)
        for _ in range(2):
            for _ in range(MAX_PINGS):
                client.send(Frame.PING)
                assert client.receive()[0] == Frame.PONG
            say(client, REFUSED)
            assert client.receive()[0] == Frame.OPENED
        for _ in range(MAX_PINGS):
            client.send(Frame.PING)
            assert client.receive()[0] == Frame.PONG
        client.send(Frame.PING)
        assert isinstance(serving.get(), ProtocolViolation)


# --- a frame that doesn't come whole ----------------------------------------------------------


def test_a_frame_between_two_streams_has_to_come_whole_in_time() -> None:
    with our_server() as (client, server):
        server.frame_timeout = 0.05
        say(client, PINGS)
        client.sock.sendall(frame(client.session, Frame.OPEN, asking())[:-1])
        with pytest.raises(FrameTimeout):
            server.accept()
        assert client.receive()[0] == Frame.PONG


def test_a_frame_that_comes_byte_by_byte_has_no_more_time() -> None:
    def drip() -> None:
        for byte in frame(client.session, Frame.OPEN, asking()) * 100:
            gevent.sleep(0.01)
            client.sock.sendall(bytes((byte,)))

    with our_server() as (client, server):
        server.frame_timeout = 0.1
        dripping = gevent.spawn(drip)
        with pytest.raises(FrameTimeout):
            server.accept()
        dripping.kill()


def test_a_tunnel_without_a_part_of_a_frame_may_be_silent_for_longer() -> None:
    with our_server() as (client, server):
        server.frame_timeout = 0.01
        accepting = gevent.spawn(server.accept)
        gevent.sleep(0.05)
        client.send(Frame.OPEN, asking())
        assert accepting.get() is not None


def test_a_frame_that_its_receiver_does_not_take_ends_the_tunnel_in_time() -> None:
    with our_server() as (_, server):
        server.frame_timeout = 0.05
        with pytest.raises(FrameTimeout):
            while True:
                server.send(Frame.PONG)
        assert server.closed


def test_a_key_holder_that_reads_no_answer_keeps_no_place_for_ever() -> None:
    server = make_server(timeouts=Timeouts(handshake=0.5))
    server.start()
    client = make_exit(server.bound, pool_size=0)._open_tunnel()
    asking_for_nothing = gevent.spawn(_ask_for_nothing, client)
    eventually(lambda: server.connections == 0)
    asking_for_nothing.join()
    server.stop(0)


def _ask_for_nothing(client: ClientTunnel) -> None:
    """Until the server ends the tunnel; reads none of its answers."""
    try:
        while True:
            client.send(Frame.OPEN, asking(0xFF))
            client.send(Frame.FIN)
    except StreamError:
        client.close()


# --- a server ---------------------------------------------------------------------------------


def await_answer(client: ClientTunnel) -> object:
    client.ask(CONNECT)
    return client.answer()


def await_pong(client: ClientTunnel) -> None:
    client.ping()


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("wait", "kind", "body"),
    [(await_answer, Frame.OPENED, opened()), (await_pong, Frame.PONG, b"")],
    ids=["answer", "pong"],
)
def test_a_server_that_sends_pads_where_an_answer_is_due_lets_others_run(
    wait: Callable[[ClientTunnel], object], kind: Frame, body: bytes
) -> None:
    with our_client() as (client, server), Bystander() as other:
        pads: Frames = [(Frame.PAD, b"")]
        say(server, [*pads * MAX_PADS, (kind, body)])
        before = other.turns
        wait(client)
        assert other.turns - before >= MAX_PADS // MAX_FRAMES_AT_ONCE


# --- frames -----------------------------------------------------------------------------------


def decoded(decoder: FrameDecoder, wire: bytes, joined: int = -1) -> tuple[int, Header | None]:
    scratch = ScratchBuffers()
    decoder.bulk_room(scratch)[: len(wire)] = wire
    return decoder.decode(scratch, len(wire), joined)


def test_pads_in_a_row_have_a_bound() -> None:
    sender, receiver = sessions()
    decoder = FrameDecoder(receiver.opener)
    for _ in range(2):
        for _ in range(MAX_PADS):
            assert decoded(decoder, frame(sender, Frame.PAD, b"x")) == (0, None)
        assert decoded(decoder, frame(sender, Frame.DATA, b"x"), Frame.DATA) == (1, None)
    for _ in range(2):
        for _ in range(MAX_PADS):
            assert decoded(decoder, frame(sender, Frame.PAD)) == (0, None)
        assert decoded(decoder, frame(sender, Frame.PING)) == (0, (Frame.PING, 0))
    for _ in range(MAX_PADS):
        decoded(decoder, frame(sender, Frame.PAD))
    with pytest.raises(ProtocolViolation):
        decoded(decoder, frame(sender, Frame.PAD))


@pytest.mark.parametrize("kind", [Frame.DATA, Frame.PAD])
def test_only_so_many_frames_are_decoded_at_once(kind: Frame) -> None:
    sender, receiver = sessions()
    decoder = FrameDecoder(receiver.opener)
    wire = b"".join(frame(sender, kind, b"x") for _ in range(2 * MAX_FRAMES_AT_ONCE))
    each = MAX_FRAMES_AT_ONCE if kind is Frame.DATA else 0
    assert decoded(decoder, wire + frame(sender, Frame.FIN), Frame.DATA) == (each, None)
    assert decoder.has_backlog
    assert decoded(decoder, b"", Frame.DATA) == (each, None)
    assert decoder.has_backlog
    assert decoded(decoder, b"", Frame.DATA) == (0, (Frame.FIN, 0))
    assert not decoder.has_backlog
    assert decoder.between_frames


@pytest.mark.parametrize("kind", [TunnelStream, TunnelDatagrams])
def test_what_is_behind_many_frames_is_read_without_another_byte(
    kind: type[TunnelStream | TunnelDatagrams],
) -> None:
    with our_server() as (client, server):
        carrying = Frame.DATA if kind is TunnelStream else Frame.DATAGRAM
        pads: Frames = [(Frame.PAD, b"")]
        say(client, [*pads * (3 * MAX_FRAMES_AT_ONCE), (carrying, b"behind"), (Frame.FIN, b"")])
        stream = kind(server, ignore_end)
        assert stream.read() == b"behind"
        assert stream.read() == b""


def test_a_reset_connection_is_told_behind_all_that_came_before_it() -> None:
    near, far = tcp_pair()
    sender, receiver = sessions()
    with near, far:
        stream, count = TunnelStream(Tunnel(far, receiver), ignore_end), 3 * MAX_FRAMES_AT_ONCE
        near.sendall(b"".join(frame(sender, Frame.DATA, b"x") for _ in range(count)))
        eventually(lambda: not is_silent(far))
        assert stream.read() == b"x" * MAX_FRAMES_AT_ONCE
        reset(near)
        assert stream.read() == b"x" * MAX_FRAMES_AT_ONCE
        assert stream.read() == b"x" * MAX_FRAMES_AT_ONCE
        with pytest.raises(StreamReset):
            stream.read()


@pytest.mark.usefixtures("short_turns")
def test_many_small_frames_in_a_stream_let_others_run() -> None:
    ended: AsyncResult[Totals] = AsyncResult()
    reader, target = tcp_pair()
    near, far = socketpair()
    at_client, at_server = sessions()
    with reader, target, near, far, Bystander() as other:
        data: Frames = [(Frame.DATA, b"x")]
        say(ByHand(near, at_client), [*data * ROUNDS, (Frame.FIN, b"")])
        before = other.turns
        relay = Relay(
            TunnelStream(Tunnel(far, at_server), ignore_end),
            SocketStream(target),
            idle=TOO_LONG,
            half_closed=TOO_LONG,
            ended=ended.set,
        )
        relay.run()
        assert read_exactly(reader, ROUNDS) == b"x" * ROUNDS
        assert reader.recv(1) == b""
        assert other.turns - before >= ROUNDS // MAX_FRAMES_AT_ONCE
        reader.close()
        totals = ended.get()
        assert totals is not None
        assert totals.up == ROUNDS
