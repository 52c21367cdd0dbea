"""How long the turns of the loop last."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from gsocks.loop_lag import BUCKETS, LONG_TURN, LoopLag, quantile

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gsocks.turns.time.perf_counter", clock)
    return clock


@pytest.fixture
def long_turns() -> list[float]:
    return []


@pytest.fixture
def lag(clock: Clock, long_turns: list[float]) -> Iterator[LoopLag]:
    lag = LoopLag(long_turns.append)
    lag.start()
    gevent.sleep(1e-6)
    try:
        yield lag
    finally:
        lag.stop()


def work(clock: Clock, seconds: float) -> None:
    """Work for so long, and then wait for the next turn."""
    clock.now += seconds
    gevent.sleep(1e-6)


def added(before: list[int], after: list[int]) -> list[int]:
    return [now - then for then, now in zip(before, after, strict=True)]


@pytest.mark.parametrize("bucket", range(len(BUCKETS)))
def test_a_turn_counts_in_each_bucket_that_it_is_no_longer_than(
    lag: LoopLag, clock: Clock, bucket: int
) -> None:
    before, seconds = lag.counts(), lag.seconds
    work(clock, BUCKETS[bucket] * 0.99)
    # beside it only turns that took no time
    found = added(before, lag.counts())
    assert [found[-1] - count for count in found] == [
        int(number < bucket) for number in range(len(BUCKETS) + 1)
    ]
    assert lag.seconds - seconds == pytest.approx(BUCKETS[bucket] * 0.99)


def test_a_turn_longer_than_all_buckets_is_counted_too(lag: LoopLag, clock: Clock) -> None:
    before = lag.counts()
    work(clock, 60.0)
    *bounded, every = added(before, lag.counts())
    assert bounded == [every - 1] * len(BUCKETS)
    assert lag.longest == pytest.approx(60.0)


def test_all_greenlets_that_run_in_a_turn_count_together(lag: LoopLag, clock: Clock) -> None:
    def step() -> None:
        clock.now += 0.02

    before = lag.counts()
    gevent.joinall([gevent.spawn(step) for _ in range(4)])
    gevent.sleep(1e-6)
    found = added(before, lag.counts())
    bucket = BUCKETS.index(0.1)
    assert found[bucket] - found[bucket - 1] == 1
    assert found[-1] == found[bucket]


def test_waiting_for_something_to_do_is_no_turn(clock: Clock, long_turns: list[float]) -> None:
    loop = gevent.get_hub().loop
    # called after the turn's end, as it is started before the other watcher of that priority
    poll = loop.prepare(ref=False, priority=loop.MINPRI)  # type: ignore[attr-defined]

    def wait() -> None:
        clock.now += 60.0

    poll.start(wait)
    lag = LoopLag(long_turns.append)
    lag.start()
    for _ in range(3):
        gevent.sleep(1e-6)
    lag.stop()
    poll.close()
    assert clock.now >= 1000.0 + 3 * 60.0
    assert lag.counts()[0] == lag.counts()[-1] >= 3


def test_a_long_turn_is_reported_and_a_shorter_one_is_not(
    lag: LoopLag, clock: Clock, long_turns: list[float]
) -> None:
    work(clock, LONG_TURN * 0.99)
    assert long_turns == []
    work(clock, LONG_TURN * 1.01)
    assert long_turns == [pytest.approx(LONG_TURN * 1.01)]


def test_what_was_done_before_the_start_does_not_count(
    clock: Clock, long_turns: list[float]
) -> None:
    lag = LoopLag(long_turns.append)
    clock.now += 60.0
    lag.start()
    gevent.sleep(1e-6)
    lag.stop()
    assert lag.counts()[0] == lag.counts()[-1] > 0


def test_a_quantile_is_the_bound_of_its_bucket_or_the_longest_turn() -> None:
    counts = [900, 990, 998, 999, 999, 999, 999, 999, 1000]
    assert quantile(counts, 0.5, 7.0) == 0.001
    assert quantile(counts, 0.99, 7.0) == 0.005
    assert quantile(counts, 0.999, 7.0) == 0.025
    assert quantile(counts, 1.0, 7.0) == 7.0


def test_no_quantile_is_longer_than_the_longest_turn() -> None:
    counts = [900, 990, 998, 1000, 1000, 1000, 1000, 1000, 1000]
    assert quantile(counts, 0.999, 0.013) == 0.013
    assert quantile(counts, 0.99, 0.013) == 0.005
    assert quantile([5] * 9, 0.99, 0.0) == 0.001  # of short turns the longest is not known
    assert quantile([0] * 9, 0.99, 0.0) == 0.001
