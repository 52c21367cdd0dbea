"""What every Stream promises, as tests.  A subclass gives them a ``pair`` fixture:

class TestMyStream(StreamContract):
    @pytest.fixture
    def pair(self):
        ...
        yield one_end, other_end
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket

from gsocks.errors import StreamClosed, StreamError, StreamReset
from gsocks.stream import Stream
from tests.support.waiting import TOO_LONG

Pair = tuple[Stream, Stream]


def tcp_pair(buffer: int | None = None) -> tuple[socket, socket]:
    """Two sockets connected over loopback; ``buffer`` bounds what the kernel keeps for them."""
    with socket() as listener:
        if buffer is not None:  # inherited by what is accepted; after the connect is too late
            listener.setsockopt(SOL_SOCKET, SO_RCVBUF, buffer)
            listener.setsockopt(SOL_SOCKET, SO_SNDBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket()
        if buffer is not None:
            near.setsockopt(SOL_SOCKET, SO_RCVBUF, buffer)
            near.setsockopt(SOL_SOCKET, SO_SNDBUF, buffer)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def read_to_end(stream: Stream) -> bytes:
    parts = []
    while part := stream.read():
        parts.append(part)
    return b"".join(parts)


def read_exactly(stream: Stream, count: int) -> bytes:
    parts = []
    while count > 0:
        part = stream.read()
        assert part, f"the stream ended {count} bytes early"
        parts.append(part)
        count -= len(part)
    assert count == 0, "the stream gave more than was written"
    return b"".join(parts)


def blocked(call: Callable[[], Any]) -> gevent.Greenlet[..., Any]:
    """A greenlet that has begun ``call`` and waits inside it."""
    greenlet = gevent.spawn(call)
    gevent.idle()
    assert not greenlet.ready()
    return greenlet


def write_until_it_raises(stream: Stream) -> None:
    while True:
        stream.write(b"is the peer there?")
        gevent.sleep(0)


def end_both_directions(near: Stream, far: Stream) -> None:
    near.write_eof()
    far.write_eof()
    assert near.read() == b""
    assert far.read() == b""


class StreamContract:
    """The contract of gsocks.stream.Stream; each test is one sentence of it."""

    #: bytes, more than all buffers between the two ends hold, whatever the kernel grew them to
    big = 24 * 1024 * 1024

    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        raise NotImplementedError("two connected streams, to be released after the test")

    @pytest.fixture(autouse=True)
    def _never_hangs(self) -> Iterator[None]:
        with gevent.Timeout(TOO_LONG):
            yield

    # --- data -------------------------------------------------------------------------------

    def test_data_arrives_in_order(self, pair: Pair) -> None:
        near, far = pair
        sent = [bytes([n]) * (n * 37 + 1) for n in range(200)]

        def write() -> None:
            for part in sent:
                near.write(part)
            near.write_eof()

        writer = gevent.spawn(write)
        assert read_to_end(far) == b"".join(sent)
        writer.get()

    def test_data_flows_both_ways_at_once(self, pair: Pair) -> None:
        there, back = os.urandom(self.big // 4), os.urandom(self.big // 4)

        def write(stream: Stream, data: bytes) -> None:
            stream.write(data)
            stream.write_eof()

        near, far = pair
        writers = [gevent.spawn(write, near, there), gevent.spawn(write, far, back)]
        readers = [gevent.spawn(read_to_end, far), gevent.spawn(read_to_end, near)]
        assert [reader.get() for reader in readers] == [there, back]
        gevent.joinall(writers, raise_error=True)

    def test_data_arrives_before_the_writer_ends(self, pair: Pair) -> None:
        near, far = pair
        for question, answer in ((b"ping", b"pong"), (b"more", b"less")):
            near.write(question)
            assert read_exactly(far, len(question)) == question
            far.write(answer)
            assert read_exactly(near, len(answer)) == answer

    def test_a_read_waits_until_there_is_something(self, pair: Pair) -> None:
        near, far = pair
        reader = blocked(far.read)
        near.write(b"here")
        assert reader.get() == b"here"

    def test_writing_nothing_is_not_an_end(self, pair: Pair) -> None:
        near, far = pair
        near.write(b"")
        near.write(b"something")
        assert far.read() == b"something"

    @pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 131072, 1000003])
    def test_a_write_of_any_size_arrives_whole(self, pair: Pair, size: int) -> None:
        near, far = pair
        data = os.urandom(size)
        writer = gevent.spawn(near.write, data)
        assert read_exactly(far, size) == data
        writer.get()

    def test_a_big_write_waits_for_a_slow_reader_and_arrives_whole(self, pair: Pair) -> None:
        near, far = pair
        data = os.urandom(1024 * 1024) * (self.big // (1024 * 1024))
        writer = blocked(lambda: near.write(data))  # the peer doesn't read, so it can't finish
        received: list[bytes] = []
        while sum(map(len, received)) < self.big:
            received.append(far.read())
            gevent.sleep(0)  # other greenlets run first
        assert b"".join(received) == data
        writer.get()

    # --- ends -------------------------------------------------------------------------------

    def test_what_was_written_before_the_end_arrives_before_it(self, pair: Pair) -> None:
        near, far = pair
        near.write(b"last words")
        near.write_eof()
        assert read_to_end(far) == b"last words"

    def test_after_the_end_a_read_tells_the_end_again(self, pair: Pair) -> None:
        near, far = pair
        near.write_eof()
        assert [far.read() for _ in range(3)] == [b"", b"", b""]

    def test_an_end_wakes_a_blocked_reader(self, pair: Pair) -> None:
        near, far = pair
        reader = blocked(far.read)
        near.write_eof()
        assert reader.get() == b""

    def test_the_end_of_one_direction_leaves_the_other_open(self, pair: Pair) -> None:
        near, far = pair
        near.write(b"question")
        near.write_eof()
        assert read_to_end(far) == b"question"
        for _ in range(3):
            far.write(b"answer")
            assert read_exactly(near, 6) == b"answer"
        far.write_eof()
        assert near.read() == b""

    def test_a_second_write_eof_does_nothing(self, pair: Pair) -> None:
        near, far = pair
        near.write_eof()
        near.write_eof()
        assert far.read() == b""
        near.write_eof()
        far.write(b"still open")
        assert near.read() == b"still open"

    # --- close and abort --------------------------------------------------------------------

    def test_close_after_both_ends_is_clean(self, pair: Pair) -> None:
        near, far = pair
        end_both_directions(near, far)
        near.close()
        assert far.read() == b""
        far.close()

    def test_close_of_both_ends_at_once_is_clean(self, pair: Pair) -> None:
        near, far = pair
        near.write(b"there")
        far.write(b"back")
        near.write_eof()
        far.write_eof()
        assert read_to_end(near) == b"back"
        near.close()
        assert read_to_end(far) == b"there"
        far.close()

    def test_close_before_any_end_is_seen_as_a_reset(self, pair: Pair) -> None:
        near, far = pair
        near.close()
        with pytest.raises(StreamReset):
            far.read()

    def test_close_after_the_far_end_only_is_seen_as_a_reset(self, pair: Pair) -> None:
        near, far = pair
        far.write_eof()
        assert near.read() == b""
        near.close()
        with pytest.raises(StreamReset):
            far.read()

    def test_close_after_our_end_only_breaks_the_far_writer(self, pair: Pair) -> None:
        near, far = pair
        near.write_eof()
        assert far.read() == b""
        near.close()
        with pytest.raises(StreamError):
            write_until_it_raises(far)

    def test_abort_is_seen_as_a_reset(self, pair: Pair) -> None:
        near, far = pair
        near.write(b"x")
        assert far.read() == b"x"
        near.abort()
        with pytest.raises(StreamReset):
            far.read()

    def test_abort_is_seen_by_a_blocked_reader(self, pair: Pair) -> None:
        near, far = pair
        reader = blocked(far.read)
        near.abort()
        with pytest.raises(StreamReset):
            reader.get()

    def test_abort_is_seen_by_a_blocked_writer(self, pair: Pair) -> None:
        near, far = pair
        writer = blocked(lambda: far.write(bytes(self.big)))
        near.abort()
        with pytest.raises(StreamError):
            writer.get()

    def test_abort_is_seen_by_the_next_writer(self, pair: Pair) -> None:
        near, far = pair
        near.abort()
        with pytest.raises(StreamError):
            write_until_it_raises(far)

    def test_abort_wakes_a_reader_at_this_end(self, pair: Pair) -> None:
        near, _far = pair
        reader = blocked(near.read)
        near.abort()
        with pytest.raises(StreamClosed):
            reader.get()

    def test_abort_wakes_a_writer_at_this_end(self, pair: Pair) -> None:
        near, _far = pair
        writer = blocked(lambda: near.write(bytes(self.big)))
        near.abort()
        with pytest.raises(StreamClosed):
            writer.get()

    def test_abort_wakes_a_reader_and_a_writer_together(self, pair: Pair) -> None:
        near, _far = pair
        reader, writer = blocked(near.read), blocked(lambda: near.write(bytes(self.big)))
        near.abort()
        for greenlet in (reader, writer):
            with pytest.raises(StreamClosed):
                greenlet.get()

    @pytest.mark.parametrize("first", ["close", "abort"])
    @pytest.mark.parametrize("second", ["close", "abort"])
    @pytest.mark.parametrize("ended", [False, True])
    def test_released_twice_is_released_once(
        self, pair: Pair, first: str, second: str, ended: bool
    ) -> None:
        near, far = pair
        if ended:
            end_both_directions(near, far)
        getattr(near, first)()
        getattr(near, second)()

    @pytest.mark.parametrize("release", ["close", "abort"])
    def test_a_released_stream_can_be_neither_written_nor_read(
        self, pair: Pair, release: str
    ) -> None:
        near, far = pair
        far.write(b"the peer never reads this")
        getattr(near, release)()
        with pytest.raises(StreamClosed):
            near.write(b"x")
        with pytest.raises(StreamClosed):
            near.write_eof()
        with pytest.raises(StreamClosed):
            near.read()

    def test_a_stream_closed_after_both_ends_can_not_be_written(self, pair: Pair) -> None:
        near, far = pair
        end_both_directions(near, far)
        near.close()
        with pytest.raises(StreamClosed):
            near.write(b"x")

    def test_releasing_never_blocks_even_with_a_full_pipe(self, pair: Pair) -> None:
        near, _far = pair
        writer = blocked(lambda: near.write(bytes(self.big)))
        switched: list[bool] = []
        gevent.get_hub().loop.run_callback(switched.append, True)
        near.abort()
        assert not switched, "abort let others run"
        with pytest.raises(StreamClosed):
            writer.get()
