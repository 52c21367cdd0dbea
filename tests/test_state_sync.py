"""StateSync: what is written and restored, and that the event loop never waits for the file."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gsocks.errors import StateFailed
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_file import Record, StateFile, Traffic
from gsocks.rotation.state_sync import NOT_KEPT, Entry, StateSync
from tests.support.engine import eventually

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


class Things:
    """A few texts by their names."""

    def __init__(self, kind: str = "session", *, shared: bool = True) -> None:
        self.kind = kind
        self.shared = shared
        self.changed: set[Any] = set()
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value
        self.changed.add(key)

    def keys(self) -> list[str]:
        return list(self.values)

    def entry(self, key: Any, clock: Clock) -> Entry | None:
        if key not in self.values:
            return None
        return Entry(key, self.values[key], clock.wall, clock.wall + 60)

    def restore(self, entry: Entry, clock: Clock) -> None:
        if entry.value == "unreadable":
            raise ValueError("unreadable")
        self.values[entry.key] = entry.value


class Meter:
    """Bytes of exits."""

    def __init__(self) -> None:
        self.carried: Counter[tuple[str, str]] = Counter()
        self.totals: dict[tuple[str, str], int] = {}

    def expires(self, period: str) -> float:
        return time.time() + 60

    def total(self, exit_: str, period: str, count: int, clock: Clock) -> None:
        self.totals[exit_, period] = count


class Process:
    """A program's part that uses the file."""

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        self.things, self.own, self.meter = Things(), Things("exit", shared=False), Meter()
        self.sync = StateSync(StateFile(path), alone=alone)
        self.sync.interval = self.sync.retry_delay = 0.01
        self.sync.follow("local", [self.things, self.own], self.meter)

    def __enter__(self) -> Process:
        self.sync.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sync.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gsocks.db"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="gsocks.state"):
        yield caplog


def content(path: Path) -> dict[str, str]:
    file = StateFile(path)
    found = {each.key: each.value for each in file.load(time.time()).records}
    file.close()
    return found


def content_now(path: Path) -> dict[str, str] | None:
    """None while SQLite can't say: to open a file takes part in its journal, and a connection to
    the file that was there before removes that, by its name, when it closes."""
    try:
        return content(path)
    except StateFailed:
        return None


def test_what_has_changed_is_there_at_the_next_start(path: Path) -> None:
    with Process(path, alone=True) as first:
        first.things.set("a", "1")
        first.own.set("b", "2")
        first.meter.carried["berlin", "2026-11"] += 5
        eventually(lambda: content(path) == {"a": "1", "b": "2"})
        first.things.set("a", "3")  # written when it closes
        first.meter.carried["berlin", "2026-11"] += 2
    with Process(path, alone=True) as second:
        assert second.things.values == {"a": "3"}
        assert second.own.values == {"b": "2"}
        assert second.meter.totals == {("berlin", "2026-11"): 7}


def test_its_thread_ends_with_it(path: Path) -> None:
    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    before = threads()  # of which some, of tests before, may be ending
    with Process(path):
        its_own = threads() - before
        assert its_own
    eventually(lambda: not its_own & threads())


def test_many_changes_are_written_in_slices(path: Path) -> None:
    with Process(path) as one:
        one.sync.slice = 7
        for number in range(100):
            one.things.set(str(number), "x")
    assert len(content(path)) == 100


def test_processes_see_each_others_shared_things_while_they_run(path: Path) -> None:
    with Process(path) as one, Process(path) as other:
        one.things.set("a", "1")
        one.own.set("b", "2")
        one.meter.carried["berlin", "2026-11"] += 5
        eventually(lambda: other.things.values == {"a": "1"})
        other.meter.carried["berlin", "2026-11"] += 6
        eventually(lambda: one.meter.totals == {("berlin", "2026-11"): 11})
        assert other.own.values == {}


def test_what_is_in_the_file_already_is_not_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    sync = StateFile.sync

    def noted(self: StateFile, records: list[Record], *more: Any) -> Any:
        written.extend(record.value for record in records)
        return sync(self, records, *more)

    monkeypatch.setattr(StateFile, "sync", noted)
    with Process(path, alone=True) as one:
        for value in ("1", "1", "2", "1"):
            one.own.set("a", value)
            eventually(lambda: not one.own.changed)
            one.own.set("b", "x")
            eventually(lambda: not one.own.changed)
    assert written == ["1", "x", "2", "1"]
    assert content(path) == {"a": "1", "b": "x"}


def test_what_can_not_be_read_is_left_out(path: Path) -> None:
    file, now = StateFile(path), time.time()
    records = [
        Record("local", "session", "a", "unreadable", now, now + 60),
        Record("elsewhere", "session", "b", "1", now, now + 60),
        Record("local", "of a later version", "c", "1", now, now + 60),
        Record("local", "session", "d", "1", now, now + 60),
    ]
    file.sync(records, [Traffic("elsewhere", "x", "2026-11", 1, now + 60)], now)
    file.close()
    with Process(path) as one:
        assert one.things.values == {"d": "1"}


def test_the_event_loop_does_not_wait_while_another_process_holds_the_file(path: Path) -> None:
    with Process(path) as one:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        one.things.set("a", "1")
        eventually(lambda: not one.things.changed)
        # its thread waits for the lock now, for up to five seconds
        for _ in range(20):
            gevent.sleep(0.001)  # a turn of the loop: what is counted is that it has them
        assert "trouble=None" in repr(one.sync)
        holder.execute("ROLLBACK")
        holder.close()
        eventually(lambda: content(path) == {"a": "1"})


def test_a_file_that_can_not_be_used_is_one_line_and_is_tried_again(
    path: Path, logged: pytest.LogCaptureFixture
) -> None:
    path.write_text("something else, and longer than the head of a database" * 3)
    with Process(path) as one:
        one.things.set("a", "1")
        for _ in range(5):
            gevent.sleep(one.sync.retry_delay)
        assert logged.messages == [f"{path}: file is not a database ({NOT_KEPT})"]
        path.unlink()
        eventually(lambda: path.exists() and content(path) == {"a": "1"})
        assert f"{path} can be used again" in logged.messages[1:]
    assert "Traceback" not in logged.text


def test_what_goes_well_is_logged_once_when_it_starts(
    path: Path, logged: pytest.LogCaptureFixture
) -> None:
    with Process(path) as one:
        for value in "123":
            one.things.set("a", value)
            eventually(lambda: content(path) == {"a": one.things.values["a"]})
    assert logged.messages == [f"{path}: 0 records, 0 of sessions"]


def test_what_could_not_be_written_is_written_once_it_can_be(path: Path) -> None:
    with Process(path) as one:
        one.things.set("before", "1")
        eventually(lambda: content(path) == {"before": "1"})
        breaker = sqlite3.connect(path, isolation_level=None)
        breaker.execute("ALTER TABLE records RENAME TO hidden")
        one.things.set("a", "1")
        one.meter.carried["berlin", "2026-11"] += 5
        eventually(lambda: "trouble=None" not in repr(one.sync))
        breaker.execute("ALTER TABLE hidden RENAME TO records")
        breaker.close()
        eventually(lambda: len(content(path)) == 2)
        eventually(lambda: one.meter.totals == {("berlin", "2026-11"): 5})


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_was_deleted_or_replaced_is_noticed_and_written_again(
    path: Path, logged: pytest.LogCaptureFixture, alone: bool, how: str
) -> None:
    with Process(path, alone=alone) as process:
        process.sync.prune_interval = 0.01
        process.things.set("cart", "1")
        process.own.set("e0", "banned")
        process.meter.carried["e0", "2026-11"] = 7
        eventually(lambda: content(path) == {"cart": "1", "e0": "banned"})
        if how == "replaced":
            other = StateFile(path.with_name("other"))
            other.open()
            other.close()
            other.path.rename(path)
        else:
            path.unlink()
        eventually(lambda: path.exists() and content_now(path) == {"cart": "1", "e0": "banned"})
        eventually(lambda: "can be used again" in logged.text)
        assert logged.text.count(f"{path}: was deleted or replaced while in use ({NOT_KEPT})") == 1
        process.things.set("cart", "2")
        eventually(lambda: content(path)["cart"] == "2")


def test_clocks_are_converted_both_ways() -> None:
    clock = Clock(monotonic=100.0, wall=1_000_000.0)
    assert clock.to_wall(90.0) == 999_990.0
    assert clock.to_monotonic(1_000_005.0) == 105.0
    assert clock.to_monotonic(clock.to_wall(7.0)) == 7.0
