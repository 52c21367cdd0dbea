"""Bytes pass as fast as their tokens come, and a limited stream is a Stream like any other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import gevent
import pytest

from gsocks.errors import StreamClosed
from gsocks.net.bandwidth import BURST_SECONDS, MIN_STEP, STEP_SECONDS, Bucket, LimitedStream
from gsocks.stream import SocketStream, Stream
from tests.support.stream_contract import (
    StreamContract,
    blocked,
    read_exactly,
    read_to_end,
    tcp_pair,
)

pytestmark = pytest.mark.usefixtures("never_hangs")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- the bucket -------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_full_bucket_lets_its_burst_pass_at_once(clock: Clock) -> None:
    bucket = Bucket(100, 500, clock)
    assert [bucket.take(200), bucket.take(300)] == [0, 0]
    assert bucket.take(1) == pytest.approx(0.01)


def test_what_goes_beyond_the_burst_waits_until_its_tokens_have_come(clock: Clock) -> None:
    bucket = Bucket(100, 500, clock)
    assert bucket.take(700) == pytest.approx(2.0)


def test_each_waits_for_those_before_it(clock: Clock) -> None:
    bucket = Bucket(100, 0, clock)
    assert [bucket.take(100) for _ in range(3)] == pytest.approx([1.0, 2.0, 3.0])
    clock.now += 2.5
    assert bucket.take(100) == pytest.approx(1.5)


def test_tokens_come_at_the_rate_and_no_more_gather_than_the_burst(clock: Clock) -> None:
    bucket = Bucket(100, 500, clock)
    bucket.take(500)
    clock.now += 3
    assert bucket.take(300) == 0
    clock.now += 1000
    assert bucket.take(500) == 0
    assert bucket.take(100) == pytest.approx(1.0)


def test_over_a_long_time_the_rate_is_kept_however_the_bytes_are_divided(clock: Clock) -> None:
    for part in (1, 7, 100, 1000):
        bucket = Bucket(1000, 1000, clock)
        start, passed = clock.now, 0
        while passed < 100_000:
            clock.now += bucket.take(part)
            passed += part
        assert clock.now - start == pytest.approx((passed - 1000) / 1000)


def test_the_burst_is_one_second_of_the_rate(clock: Clock) -> None:
    bucket = Bucket(700, clock=clock)
    assert bucket.take(700) == 0
    assert bucket.take(7) == pytest.approx(0.01)
    assert BURST_SECONDS == 1


# --- the stream keeps the contract ------------------------------------------------------------


def limited(stream: Stream, rate: float, burst: float | None = None) -> LimitedStream:
    return LimitedStream(stream, [Bucket(rate, burst)], [Bucket(rate, burst)])


class TestLimitedStreamThatNeverWaits(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[Stream, Stream]]:
        near, far = (limited(SocketStream(sock), 1e12) for sock in tcp_pair())
        yield near, far
        near.close()
        far.close()


class TestLimitedStreamThatWaitsForEachByte(StreamContract):
    """Every read and every write sleeps, and all but the last step of most writes."""

    big = 2 * 1024 * 1024

    @pytest.fixture
    def pair(self) -> Iterator[tuple[Stream, Stream]]:
        near, far = (limited(SocketStream(sock), 40e6, 0) for sock in tcp_pair(buffer=4096))
        yield near, far
        near.close()
        far.close()


class TestLimitedStreamInSmallSteps(StreamContract):
    """Every read of some size leaves something behind for the next one."""

    big = 2 * 1024 * 1024

    @pytest.fixture
    def pair(self) -> Iterator[tuple[Stream, Stream]]:
        near, far = (limited(SocketStream(sock), 100_000, 1e9) for sock in tcp_pair(buffer=4096))
        yield near, far
        near.close()
        far.close()


# --- how it waits -----------------------------------------------------------------------------


class Script(Bucket):
    """A bucket that tells its takers to wait as a test wants."""

    def __init__(self, *waits: float, rate: float = 1e9) -> None:
        super().__init__(rate)
        self.taken: list[int] = []
        self._waits = iter(waits)

    def take(self, count: int) -> float:
        self.taken.append(count)
        return next(self._waits, 0.0)


Ends = tuple[SocketStream, SocketStream]


@pytest.fixture
def ends() -> Iterator[Ends]:
    near, far = map(SocketStream, tcp_pair())
    yield near, far
    near.close()
    far.close()


def elapsed_seconds(begin: float) -> float:
    return time.monotonic() - begin


def test_bytes_are_not_read_before_their_time(ends: Ends) -> None:
    near, far = ends
    far.write(b"data")
    begin = time.monotonic()
    assert LimitedStream(near, [Script(0.05)], [Script()]).read() == b"data"
    assert elapsed_seconds(begin) >= 0.05


def test_bytes_are_not_written_before_their_time(ends: Ends) -> None:
    near, far = ends
    begin = time.monotonic()
    LimitedStream(near, [Script()], [Script(0.05)]).write(b"data")
    assert elapsed_seconds(begin) >= 0.05
    assert far.read() == b"data"


def test_the_slowest_bucket_counts_and_all_are_charged(ends: Ends) -> None:
    near, far = ends
    far.write(b"data")
    fast, slow = Script(0.0), Script(0.05)
    begin = time.monotonic()
    assert LimitedStream(near, [fast, slow], [Script()]).read() == b"data"
    assert elapsed_seconds(begin) >= 0.05
    assert fast.taken == slow.taken == [4]


def test_each_direction_has_its_own_buckets(ends: Ends) -> None:
    near, far = ends
    down, up = Script(), Script()
    stream = LimitedStream(near, [down], [up])
    far.write(b"12345")
    assert stream.read() == b"12345"
    stream.write(b"123")
    assert (down.taken, up.taken) == ([5], [3])


def test_an_end_needs_no_tokens(ends: Ends) -> None:
    near, far = ends
    down, up = Script(), Script()
    stream = LimitedStream(near, [down], [up])
    far.write_eof()
    assert stream.read() == b""
    stream.write(b"")
    stream.write_eof()
    assert far.read() == b""
    assert down.taken == up.taken == []


def test_a_slow_stream_moves_in_steps_of_a_tenth_of_a_second(ends: Ends) -> None:
    near, far = ends
    rate = 100_000
    down, up = Script(rate=rate), Script(rate=rate * 5)
    stream = LimitedStream(near, [down], [up])
    step = int(rate * STEP_SECONDS)
    data = os.urandom(2 * step + 1)
    stream.write(data)
    assert up.taken == [step, step, 1]
    assert read_exactly(far, len(data)) == data
    far.write(data)
    far.write_eof()
    assert read_to_end(stream) == data
    assert max(down.taken) <= step
    assert sum(down.taken) == len(data)


def test_steps_have_a_least_size(ends: Ends) -> None:
    near, _ = ends
    up = Script(rate=1)
    LimitedStream(near, [Script()], [up]).write(bytes(MIN_STEP + 1))
    assert up.taken == [MIN_STEP, 1]


def test_a_whole_datagram_passes_at_once(ends: Ends) -> None:
    near, far = ends
    down, up = Script(rate=1), Script(rate=1)
    stream = LimitedStream(near, [down], [up], whole=True)
    stream.write(bytes(60_000))
    assert up.taken == [60_000]
    far.write(bytes(60_000))
    far.write_eof()
    assert len(read_to_end(stream)) == 60_000
    assert max(down.taken) > MIN_STEP


@pytest.mark.parametrize("release", ["abort", "close"])
def test_who_waits_for_tokens_is_woken_by_a_release(ends: Ends, release: str) -> None:
    near, far = ends
    far.write(b"data")
    stream = LimitedStream(near, [Script(1000)], [Script(1000)])
    waiting = [blocked(stream.read), blocked(lambda: stream.write(b"data"))]
    getattr(stream, release)()
    for greenlet in waiting:
        with pytest.raises(StreamClosed):
            greenlet.get()


def test_what_was_held_back_is_not_given_after_a_release(ends: Ends) -> None:
    near, far = ends
    stream = LimitedStream(near, [Script(rate=1)], [Script()])
    far.write(bytes(2 * MIN_STEP))
    assert stream.read()
    stream.abort()
    with pytest.raises(StreamClosed):
        stream.read()


def test_others_run_while_one_waits(ends: Ends) -> None:
    near, _ = ends
    stream = LimitedStream(near, [Script()], [Script(1000)])
    writer = blocked(lambda: stream.write(b"data"))
    ran = gevent.spawn(lambda: True)
    assert ran.get()
    assert not writer.ready()
    stream.abort()
    with pytest.raises(StreamClosed):
        writer.get()


def test_two_streams_with_one_bucket_get_one_rate_together() -> None:
    """100 kB and 100 kB at 1 MB/s, from an empty bucket: no less than 0.2 s."""
    bucket = Bucket(1e6, 0)
    pairs = [tuple(map(SocketStream, tcp_pair())) for _ in range(2)]
    streams = [LimitedStream(near, [bucket], [Bucket(1e9)]) for near, _ in pairs]
    begin = time.monotonic()
    for _, far in pairs:
        far.write(bytes(100_000))
        far.write_eof()
    readers = [gevent.spawn(read_to_end, stream) for stream in streams]
    assert [len(reader.get()) for reader in readers] == [100_000, 100_000]
    assert elapsed_seconds(begin) >= 0.19
    for near, far in pairs:
        near.close()
        far.close()
