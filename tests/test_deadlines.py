"""One timer for all that may last for the same time."""

from __future__ import annotations

import time

import gevent
import pytest
from gevent.queue import Queue

from gsocks.net.deadlines import Deadlines

pytestmark = pytest.mark.usefixtures("never_hangs")


class Bounded:
    """Tells when its time is over."""

    def __init__(self, told: Queue[Bounded]) -> None:
        self._told = told

    def expired(self) -> None:
        self._told.put(self)


def test_of_two_that_may_last_as_long_the_one_that_began_first_ends_first() -> None:
    told: Queue[Bounded] = Queue()
    exit_, request = Bounded(told), Bounded(told)
    now = time.monotonic()
    for_exits, for_requests = Deadlines(0.05), Deadlines(0.05)
    for_exits.add(exit_, now)
    for_requests.add(request, now - 0.03)
    assert told.get() is request
    assert told.get() is exit_


class Faulty(Bounded):
    """Has a fault."""

    def expired(self) -> None:
        super().expired()
        raise ValueError("a fault")


def test_a_fault_of_one_keeps_none_of_the_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    told: Queue[Bounded] = Queue()
    faulty, other = Faulty(told), Bounded(told)
    deadlines = Deadlines(0.01)
    now = time.monotonic()
    deadlines.add(faulty, now)
    deadlines.add(other, now)
    assert told.get() is faulty
    assert told.get() is other
    assert not deadlines


def test_many_whose_time_is_over_leave_turns_to_others() -> None:
    told: Queue[Bounded] = Queue()
    deadlines = Deadlines(0.0)
    for _ in range(1000):
        deadlines.add(Bounded(told), time.monotonic())
    told.get()
    assert deadlines  # most are told in turns to come
    while deadlines:
        told.get()
