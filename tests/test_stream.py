"""SocketStream keeps the contract of a Stream; Reader reads exactly; a last reply arrives."""

from __future__ import annotations

import errno
import select
import socket as std_socket
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket, socketpair
from gevent.util import wrap_errors

from gsocks.errors import (
    PeerVanished,
    StreamClosed,
    StreamError,
    StreamReset,
    Truncated,
    stream_failure,
)
from gsocks.stream import (
    CHUNK,
    Reader,
    SocketStream,
    close_after_reply,
    reset,
    scratch_of_this_hub,
    send_all,
    tune,
)
from tests.support.stream_contract import StreamContract, tcp_pair
from tests.support.turns import turns_of_others
from tests.support.waiting import TOO_LONG


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


@pytest.fixture
def tcp() -> Iterator[tuple[socket, socket]]:
    near, far = tcp_pair()
    yield near, far
    near.close()
    far.close()


class TestSocketStream(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[SocketStream, SocketStream]]:
        near, far = map(SocketStream, tcp_pair())
        yield near, far
        near.close()
        far.close()


class TestSocketStreamWithSmallBuffers(StreamContract):
    """Every write of some size is a partial one."""

    big = 2 * 1024 * 1024

    @pytest.fixture
    def pair(self) -> Iterator[tuple[SocketStream, SocketStream]]:
        near, far = map(SocketStream, tcp_pair(buffer=4096))
        yield near, far
        near.close()
        far.close()


def test_pending_bytes_are_read_before_those_of_the_socket(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    stream = SocketStream(near, b"first ")
    far.sendall(b"second")
    far.shutdown(std_socket.SHUT_WR)
    assert [stream.read(), stream.read(), stream.read()] == [b"first ", b"second", b""]


def test_pending_bytes_are_read_without_waiting_for_the_socket(
    tcp: tuple[socket, socket],
) -> None:
    assert SocketStream(tcp[0], b"first").read() == b"first"


def test_pending_bytes_are_not_given_after_the_stream_was_released(
    tcp: tuple[socket, socket],
) -> None:
    stream = SocketStream(tcp[0], b"too late")
    stream.abort()
    with pytest.raises(StreamClosed):
        stream.read()


def test_a_stream_whose_pending_bytes_were_not_read_is_reset_by_close(
    tcp: tuple[socket, socket],
) -> None:
    near, far = tcp
    stream = SocketStream(near, b"unread")
    stream.write_eof()
    stream.close()
    assert far.recv(1) == b""  # our end had gone before
    with pytest.raises(ConnectionError):
        while True:
            far.send(b"x")


def test_the_repr_of_a_socket_stream_has_its_state_and_none_of_its_bytes(
    tcp: tuple[socket, socket],
) -> None:
    near, far = tcp
    stream = SocketStream(near, b"early")
    assert repr(stream) == "<SocketStream: open, 5 bytes to read, 0 to send>"
    assert stream.read() == b"early"
    far.shutdown(std_socket.SHUT_WR)
    assert stream.read() == b""
    assert repr(stream) == "<SocketStream: read ended, 0 bytes to read, 0 to send>"
    stream.write_eof()
    assert repr(stream) == "<SocketStream: both directions ended, 0 bytes to read, 0 to send>"
    stream.close()
    assert repr(stream) == "<SocketStream: closed>"


def test_the_repr_of_a_socket_stream_counts_what_the_peer_has_no_room_for() -> None:
    near, far = tcp_pair(4096)
    stream, scratch = SocketStream(near), scratch_of_this_hub()
    with far:
        stream.write_eof_nowait(scratch)
        assert repr(stream) == "<SocketStream: write ended, 0 bytes to read, 0 to send>"
        stream.abort()
    near, far = tcp_pair(4096)
    stream = SocketStream(near)
    with far:
        while stream.write_nowait(bytes(CHUNK), scratch):
            pass
        assert not repr(stream).endswith(" 0 to send>")
        stream.abort()


def test_write_eof_to_a_peer_that_has_reset_is_a_stream_error(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    stream = SocketStream(near)
    reset(far)
    with pytest.raises(StreamReset):
        stream.read()
    with pytest.raises(StreamError):
        stream.write_eof()


# --- Reader ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize("split", range(1, 12))
def test_exact_reads_give_the_same_however_the_bytes_arrive(split: int, ahead: int) -> None:
    near, far = socketpair()
    data = b"0123456789ab"
    counts = (1, 0, 4, 2, 5)

    def read() -> list[bytes]:
        reader = Reader(near)
        return [reader.exactly(count, ahead) for count in counts]

    with near, far:
        result = gevent.spawn(read)
        far.send(data[:split])
        gevent.idle()  # the reader has taken what there was, and waits
        far.send(data[split:])
        assert result.get() == [b"0", b"", b"1234", b"56", b"789ab"]


def test_exact_reads_leave_what_follows_in_the_socket() -> None:
    near, far = socketpair()
    with near, far:
        far.send(b"header and body")
        reader = Reader(near)
        assert reader.exactly(6) == b"header"
        assert reader.at_boundary
        assert reader.take_rest() == b""
        assert near.recv(100) == b" and body"


def test_reads_ahead_are_bounded_and_handed_over() -> None:
    near, far = socketpair()
    with near, far:
        far.send(b"header and body")
        reader = Reader(near)
        assert reader.exactly(6, ahead=4) == b"header"
        assert not reader.at_boundary
        assert reader.take_rest() == b" and"
        assert reader.take_rest() == b""
        assert reader.at_boundary
        assert near.recv(100) == b" body"


def test_what_was_read_ahead_is_given_without_waiting() -> None:
    near, far = socketpair()
    with near, far:
        far.send(b"abcdef")
        reader = Reader(near)
        assert reader.exactly(1, ahead=100) == b"a"
        assert reader.exactly(2) == b"bc"
        assert reader.exactly(3) == b"def"
        assert reader.at_boundary


def test_reading_nothing_touches_no_socket() -> None:
    near, far = socketpair()
    with near, far:
        assert Reader(near).exactly(0) == b""


@pytest.mark.parametrize("have", range(5))
def test_an_early_end_is_truncation_and_tells_whether_it_was_at_a_boundary(have: int) -> None:
    near, far = socketpair()
    with near, far:
        far.send(b"whole" + b"part"[:have])
        far.close()
        reader = Reader(near)
        assert reader.exactly(5) == b"whole"
        for _ in range(2):  # and it stays so
            with pytest.raises(Truncated):
                reader.exactly(5)
            assert reader.at_boundary is (have == 0)
        assert reader.take_rest() == b"part"[:have]


def test_a_reset_is_told_from_an_end(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    reset(far)
    with pytest.raises(StreamReset):
        Reader(near).exactly(1)


def test_a_reset_tells_whether_it_came_at_a_boundary(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    far.send(b"part")
    reader = Reader(near)
    reading = gevent.spawn(wrap_errors((StreamReset,), reader.exactly), 5)
    gevent.idle()  # it has taken what there was, and waits
    reset(far)
    assert isinstance(reading.get(), StreamReset)
    assert not reader.at_boundary
    assert reader.take_rest() == b"part"


def test_a_socket_closed_here_wakes_its_reader(tcp: tuple[socket, socket]) -> None:
    near, _far = tcp
    waiting = gevent.spawn(Reader(near).exactly, 1)
    gevent.idle()
    reset(near)
    with pytest.raises(StreamClosed):
        waiting.get()


# --- send_all, tune, reset, close_after_reply -----------------------------------------------


def test_sending_on_a_closed_socket_is_a_stream_error(tcp: tuple[socket, socket]) -> None:
    tcp[0].close()
    with pytest.raises(StreamClosed):
        send_all(tcp[0], b"x")


def test_a_tuned_socket_has_no_delay_and_notices_dead_peers(tcp: tuple[socket, socket]) -> None:
    near, _far = tcp
    tune(near)
    assert near.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY) == 1
    assert near.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE) == 1
    assert near.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_USER_TIMEOUT) == 120_000


def test_tuning_a_closed_socket_is_a_stream_error(tcp: tuple[socket, socket]) -> None:
    tcp[0].close()
    with pytest.raises(StreamClosed):
        tune(tcp[0])


def test_a_reset_reaches_the_peer_and_a_second_is_harmless(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    reset(near)
    reset(near)
    with pytest.raises(ConnectionResetError):
        far.recv(1)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNRESET, StreamReset),
        (errno.EPIPE, StreamReset),
        (errno.ETIMEDOUT, PeerVanished),
        (errno.EBADF, StreamClosed),
        (errno.EIO, StreamError),
    ],
)
def test_the_systems_reason_becomes_one_of_ours(number: int, kind: type[StreamError]) -> None:
    assert type(stream_failure(OSError(number, "because"))) is kind


def test_a_last_reply_arrives_although_bytes_lie_unread(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    far.send(bytes(100_000))  # more than the server wanted to know
    near.send(b"go away")
    closing = gevent.spawn(close_after_reply, near, TOO_LONG)
    gevent.idle()  # a plain close would have reset the connection by now
    assert far.recv(100) == b"go away"
    assert far.recv(100) == b""
    far.close()
    closing.get()
    assert near.fileno() == -1


def test_the_wait_for_a_peer_that_stays_is_bounded(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    near.send(b"go away")
    close_after_reply(near, 0.02)
    assert near.fileno() == -1
    assert far.recv(100) == b"go away"


def test_the_wait_for_a_peer_that_goes_on_sending_is_bounded(tcp: tuple[socket, socket]) -> None:
    near, far = tcp

    def babble() -> None:
        try:
            while True:
                far.send(bytes(1000))
                gevent.sleep(0)
        except OSError:
            pass  # as it should be

    babbler = gevent.spawn(babble)
    close_after_reply(near, 0.02)
    babbler.get()


def test_reading_on_after_a_reply_lets_others_run() -> None:
    class Babbling:
        left = 64

        def shutdown(self, how: int) -> None:
            pass

        def recv(self, size: int) -> bytes:
            self.left -= 1
            return b"x" if self.left >= 0 else b""

        def close(self) -> None:
            pass

    with turns_of_others() as others:
        close_after_reply(Babbling(), TOO_LONG)  # type: ignore[arg-type]
    assert others.count >= 64


def test_a_peer_that_has_gone_needs_no_waiting(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    reset(far)
    close_after_reply(near, TOO_LONG)
    assert near.fileno() == -1


def test_a_closed_socket_can_be_closed_after_its_reply_again(tcp: tuple[socket, socket]) -> None:
    tcp[0].close()
    close_after_reply(tcp[0], TOO_LONG)


def test_a_timeout_of_the_caller_is_not_taken_for_our_own(tcp: tuple[socket, socket]) -> None:
    near, _far = tcp
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as outer:
        close_after_reply(near, TOO_LONG)
    assert caught.value is outer
    assert near.fileno() == -1


def test_a_greenlet_killed_while_closing_has_closed_its_socket(tcp: tuple[socket, socket]) -> None:
    near, _far = tcp
    began = Event()

    def close() -> None:
        began.set()
        close_after_reply(near, TOO_LONG)

    closing = gevent.spawn(close)
    began.wait()
    closing.kill()
    assert near.fileno() == -1


def test_a_reader_whose_peer_is_always_ready_lets_others_run(tcp: tuple[socket, socket]) -> None:
    near, far = tcp
    stream = SocketStream(near)
    with turns_of_others() as turns:
        for _ in range(20):
            far.send(b"x")
            select.select([near], [], [])  # so that the read has nothing to wait for
            assert stream.read() == b"x"
    assert turns.count >= 20
