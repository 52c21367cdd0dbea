"""Counters of exits, users and outcomes by time, in memory and asked of several workers."""

from __future__ import annotations

from typing import Any

import pytest

from gsocks.admin import history as admin_history
from gsocks.admin.history import AskedHistory, merged_events
from gsocks.admin.peers import PeerResponse, Peers
from gsocks.events import Event, Events
from gsocks.history import counters as counters_module
from gsocks.history.cells import ALL, BOUNDS, OTHER, quantile
from gsocks.history.counters import MemoryCounters
from gsocks.observe import Details, Record, Try

START = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ended(
    exit_: str = "a",
    *,
    user: str | None = "ann",
    outcome: str = "ok",
    seconds: float = 1.0,
    tries: tuple[str, ...] = (),
    connect: float | None = 0.02,
) -> Record:
    record = Record("local", "192.0.2.1:5000", start=0.0)
    record.user, record.outcome, record.up, record.down = user, outcome, 10, 100
    details = record.details = Details()
    details.exit, details.connect = exit_, connect
    details.answered = 0.04 if connect is not None else 0.0
    details.tries = [Try(name, 0.0, 0.1, "timed_out", "") for name in tries]
    return record


class Worker:
    """Counters, and others that are asked as over the workers' sockets."""

    def __init__(self, clock: Clock, **how: Any) -> None:
        self.clock = clock
        self.counters = MemoryCounters(clock, **how)

    def count(self, record: Record) -> None:
        self.counters.count("local", record, 1.0)

    def count_at(self, now: float, record: Record) -> None:
        """As the greenlet does it: the step that is over is added up at its end."""
        while self.clock.now + 10 <= now:
            self.clock.now = self.clock.now // 10 * 10 + 10
            self.counters.fold()
        self.clock.now = now
        self.count(record)

    def asked(self, *others: Worker) -> AskedHistory:
        return AskedHistory(self.counters, OtherWorkers(others), clock=self.clock)


class OtherWorkers(Peers):
    def __init__(self, others: tuple[Worker, ...]) -> None:
        super().__init__()
        self._workers = others

    def ask(self, method: str, target: str, *more: Any) -> list[PeerResponse]:
        what, _, query = target.removeprefix("/own/history/").partition("?")
        pairs = {
            name: value for name, _, value in (each.partition("=") for each in query.split("&"))
        }
        return [
            PeerResponse(200, admin_history.own(each.counters, what, pairs))
            for each in self._workers
        ]


@pytest.fixture
def worker(clock: Clock) -> Worker:
    return Worker(clock)


def test_a_request_counts_for_its_exit_user_outcome_and_listener(worker: Worker) -> None:
    worker.count(ended())
    worker.count(ended("b", outcome="timed_out", connect=None))
    asked = worker.asked()
    names = {kind: asked.names(kind) for kind in ("exit", "user", "outcome", "inbound")}
    assert names == {
        "exit": ["local/a", "local/b"],
        "user": ["ann"],
        "outcome": ["ok", "timed_out"],
        "inbound": ["local"],
    }
    (point,) = asked.series("user", "ann", START, 10)
    assert (point.at, point.requests, point.failed) == (START, 2, 1)
    assert (point.up, point.down, point.total) == (20, 200, 1.0)
    assert (point.connect, point.first_byte) == (0.02, 0.04)
    assert [each.failed for each in asked.series("exit", "local/b", START, 10)] == [1]


def test_a_try_that_fails_counts_for_its_exit_although_another_one_has_served(
    worker: Worker,
) -> None:
    worker.count(ended("a", tries=("b", "b")))
    worker.count(ended("a", outcome="refused", tries=("b", "a")))
    totals = worker.asked().totals("exit", START)
    assert {name: (each.requests, each.failed) for name, each in totals.items()} == {
        "local/a": (2, 1),
        "local/b": (3, 3),
    }
    # the seconds of a try that failed before another one are its own
    (point,) = worker.asked().series("exit", "local/b", START, 10)
    assert point.total == pytest.approx(0.1)


def test_each_step_has_its_time_and_those_without_requests_are_empty(worker: Worker) -> None:
    worker.count(ended())
    worker.count_at(START + 25, ended())
    worker.count_at(START + 65, ended())
    asked = worker.asked()
    by_ten = asked.series("total", ALL, START, 10)
    assert [each.requests for each in by_ten] == [1, 0, 1, 0, 0, 0, 1]
    assert [each.at - START for each in by_ten] == [0, 10, 20, 30, 40, 50, 60]
    assert [each.requests for each in asked.series("total", ALL, START, 60)] == [2, 1]
    assert [each.requests for each in asked.series("total", ALL, START, 3600)] == [3]


def test_what_is_older_than_an_hour_by_10_s_or_a_day_is_gone(worker: Worker) -> None:
    worker.count(ended())
    worker.count_at(START + 2 * 3600, ended("b"))
    asked = worker.asked()
    assert sum(each.requests for each in asked.series("total", ALL, START, 10)) == 1
    assert sum(each.requests for each in asked.series("total", ALL, START, 60)) == 2
    worker.count_at(START + 3 * 86400, ended("c"))
    assert sum(each.requests for each in asked.series("total", ALL, START, 60)) == 1
    assert asked.names("exit") == ["local/c"]


def test_memory_is_bounded_and_the_oldest_is_dropped_first(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(counters_module.MAX_BYTES, 60, 1)
    for hour in range(6):
        worker.count_at(START + hour * 3600, ended())
    points = worker.asked().series("exit", "local/a", START, 60)
    assert [round((each.at - START) / 3600) for each in points if each.requests] == [5]
    assert sum(each.requests for each in worker.asked().series("exit", "local/a", START, 3600)) == 6


def test_a_series_for_which_there_is_no_room_has_hours_all_the_same(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(counters_module.MAX_BYTES, 10, 1)
    for name in "abc":
        worker.count(ended(name, user=None))
    asked = worker.asked()
    by_ten = [asked.series("exit", f"local/{name}", START, 10)[0].requests for name in "abc"]
    by_hour = [asked.series("exit", f"local/{name}", START, 3600)[0].requests for name in "abc"]
    assert (sum(by_ten), by_hour) == (1, [1, 1, 1])
    assert worker.counters._bytes[10] < 10_000


def test_more_names_than_are_kept_count_as_other(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(counters_module._MOST, "user", 2)
    monkeypatch.setitem(counters_module._MOST, "outcome", 1)
    for name in "abcd":
        worker.count(ended(name, user=name, outcome=name))
    totals = worker.asked().totals("user", START)
    assert {name: each.requests for name, each in totals.items()} == {"a": 1, "b": 1, OTHER: 2}
    assert worker.asked().names("outcome") == ["a"]


def test_the_series_of_all_has_quantiles_open_connections_and_the_longest_turn(
    clock: Clock,
) -> None:
    worker = Worker(clock, open_connections=lambda: 7)
    worker.counters.longest_turn = lambda: 0.03
    for connect in (0.02, 0.02, 0.02, 2.0):
        worker.count(ended(connect=connect))
    clock.now += 10
    worker.counters.fold()
    (point, _) = worker.asked().series("total", ALL, START, 10)
    assert (point.open, point.lag) == (7, 0.03)
    assert point.connect_p50 == pytest.approx(0.01 + 0.015 * 2 / 3)
    assert point.connect_p95 is not None
    assert 1.0 < point.connect_p95 <= 2.5


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_quantile_of_no_times_is_unknown_and_of_the_longest_the_last_bound(part: float) -> None:
    assert quantile([0.0] * 12, part) is None
    assert quantile([0.0] * 11 + [3.0], 0.5) == BOUNDS[-1]


def test_workers_add_up(clock: Clock) -> None:
    one, other = (
        Worker(clock, open_connections=lambda: 2),
        Worker(clock, open_connections=lambda: 3),
    )
    one.count(ended())
    other.count(ended())
    other.count(ended("b"))
    clock.now += 10
    one.counters.fold()
    other.counters.fold()
    asked = one.asked(other)
    (point, _) = asked.series("total", ALL, START, 10)
    assert (point.requests, point.open) == (3, 5)
    assert asked.names("exit") == ["local/a", "local/b"]
    assert {name: each.requests for name, each in asked.totals("exit", START).items()} == {
        "local/a": 2,
        "local/b": 1,
    }


@pytest.mark.parametrize(
    ("what", "query"),
    [
        ("cells", {"kind": "nothing"}),
        ("cells", {"kind": "exit", "step": "7"}),
        ("cells", {"kind": "exit", "since": "x"}),
        ("nothing", {"kind": "exit"}),
    ],
)
def test_a_question_that_is_none_is_refused(
    worker: Worker, what: str, query: dict[str, str]
) -> None:
    with pytest.raises(ValueError):
        admin_history.own(worker.counters, what, query)


# --- events -----------------------------------------------------------------------------------


def test_events_can_be_followed_and_are_bounded() -> None:
    events = Events(3)
    for number in range(5):
        events.note("banned", f"text {number}", exit="a")
    assert [each.number for each in events.since()] == [3, 4, 5]
    assert [each.number for each in events.since(4)] == [5]
    assert [each.number for each in events.since(most=2)] == [4, 5]
    assert events.since(5) == []
    events.note("banned", "x" * 5000, subject="y" * 5000)
    (event,) = events.since(5)
    assert len(event.text) == len(event.subject) == 300


def test_what_every_worker_tells_is_one_event() -> None:
    def event(number: int, at: float, text: str = "banned") -> Event:
        return Event(number, at, "banned", "a", "", text)

    merged = merged_events([event(1, 10.0), event(4, 10.4), event(2, 9.0, "other"), event(5, 20.0)])
    assert [each.time for each in merged] == [9.0, 10.0, 20.0]
