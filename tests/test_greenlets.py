"""Greenlets that are used again, and calls that may take only so long."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import GreenletExit

from gsocks.deadline import call_with_timeout
from gsocks.net import greenlets
from gsocks.net.greenlets import GreenletPool

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


# --- the pool ---------------------------------------------------------------------------------


class Task:
    """Notes who does it, and waits until it is let go."""

    def __init__(self) -> None:
        self.by: Any = None
        self.killed = False
        self.done = Event()
        self._may_end = Event()

    def __call__(self) -> None:
        self.by = gevent.getcurrent()
        try:
            self._may_end.wait()
        except GreenletExit:
            self.killed = True
            raise
        finally:
            self.done.set()

    def end(self) -> None:
        self._may_end.set()
        self.done.wait()
        gevent.idle()


def begin(of: GreenletPool, count: int) -> list[Task]:
    tasks = [Task() for _ in range(count)]
    for task in tasks:
        of.spawn(task)
    gevent.idle()
    return tasks


def test_tasks_run_side_by_side_each_in_a_greenlet_of_its_own() -> None:
    tasks = begin(GreenletPool(), 3)
    assert len({task.by for task in tasks}) == 3
    assert gevent.getcurrent() not in {task.by for task in tasks}
    for task in tasks:
        task.end()


def test_who_has_done_its_task_takes_the_next_one() -> None:
    one = GreenletPool()
    (first,) = begin(one, 1)
    first.end()
    (second,) = begin(one, 1)
    assert second.by is first.by
    second.end()


def test_arguments_are_handed_on_each_time() -> None:
    one, got = GreenletPool(), []
    for number in range(3):
        one.spawn(lambda *args: got.append(args), number, "x")
        gevent.idle()
    assert got == [(0, "x"), (1, "x"), (2, "x")]


def test_nothing_is_held_for_a_task_that_is_over() -> None:
    one, task = GreenletPool(), Task()
    gone = weakref.ref(task)
    one.spawn(task)
    gevent.idle()
    task.end()
    del task
    gc.collect()
    assert gone() is None


def test_no_more_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greenlets, "MAX_IDLE", 2)
    one = GreenletPool()
    tasks = begin(one, 3)
    for task in tasks:
        task.end()
    assert [task.by.dead for task in tasks] == [False, False, True]


def test_a_task_that_fails_is_reported_and_ends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: told.append(args[1]))
    one = GreenletPool()
    one.spawn(lambda: 1 // 0)
    (other,) = begin(one, 1)
    other.end()
    assert told == [ZeroDivisionError]
    assert not other.killed


def test_all_tasks_can_be_killed_and_those_that_come_later_run() -> None:
    one = GreenletPool()
    tasks = begin(one, 2)
    one.kill()
    gevent.idle()
    assert [task.killed for task in tasks] == [True, True]
    (later,) = begin(one, 1)
    later.end()
    assert not later.killed


def test_a_kill_that_comes_when_its_task_is_over_hits_no_other_task() -> None:
    one = GreenletPool()
    (first,) = begin(one, 1)
    first._may_end.set()  # it ends before the kill, which the event loop does later
    one.kill()
    one.spawn(second := Task())
    first.done.wait()
    (third,) = begin(one, 1)
    assert not first.killed
    for task in (second, third):
        task.end()
        assert not task.killed


def test_after_the_end_no_greenlet_is_kept() -> None:
    one = GreenletPool()
    (idle, busy) = begin(one, 2)
    idle.end()
    one.close()
    busy.end()
    assert idle.by.dead
    assert busy.by.dead
    assert not busy.killed


# --- only so long -----------------------------------------------------------------------------


def test_a_call_in_time_gives_what_it_returns() -> None:
    assert call_with_timeout(10, lambda a, b: a + b, 1, 2, on_timeout="late") == 3


def test_a_call_that_takes_too_long_gives_the_other_value() -> None:
    began = time.monotonic()
    assert call_with_timeout(0.02, gevent.sleep, 30, on_timeout="late") == "late"
    assert time.monotonic() - began >= 0.02


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(KeyError):
        call_with_timeout(10, {}.__getitem__, "x", on_timeout=None)


@pytest.mark.parametrize(("outer", "inner", "who"), [(0.02, 30, "outer"), (30, 0.02, "inner")])
def test_of_two_bounds_the_shorter_counts(outer: float, inner: float, who: str) -> None:
    def call() -> object:
        return call_with_timeout(inner, gevent.sleep, 30, on_timeout="inner")

    assert call_with_timeout(outer, call, on_timeout="outer") == who


def test_a_bound_that_was_kept_is_none_for_what_follows() -> None:
    call_with_timeout(0.01, lambda: None, on_timeout=None)
    # what is left of it would cut this one short before its own bound does
    assert call_with_timeout(0.01, gevent.sleep, 30, on_timeout="late") == "late"


def test_cleaning_up_runs_when_the_time_is_over() -> None:
    cleaned: list[bool] = []

    def call(note: Callable[[bool], None]) -> None:
        try:
            gevent.sleep(30)
        finally:
            note(True)

    assert call_with_timeout(0.01, call, cleaned.append, on_timeout=True)
    assert cleaned == [True]
