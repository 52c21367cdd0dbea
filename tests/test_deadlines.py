"""One timer for all that may last for the same time."""

from __future__ import annotations

import time

import pytest
from gevent.queue import SimpleQueue

from gsocks.net.deadlines import Deadlines

pytestmark = pytest.mark.usefixtures("never_hangs")


class Bounded:
    """Tells when its time is over."""

    def __init__(self, told: SimpleQueue[Bounded]) -> None:
        self._told = told

    def expired(self) -> None:
        self._told.put(self)


def test_of_two_that_may_last_as_long_the_one_that_began_first_ends_first() -> None:
    told: SimpleQueue[Bounded] = SimpleQueue()
    exit_, request = Bounded(told), Bounded(told)
    now = time.monotonic()
    for_exits, for_requests = Deadlines(0.05), Deadlines(0.05)
    for_exits.add(exit_, now)
    for_requests.add(request, now - 0.03)
    assert told.get() is request
    assert told.get() is exit_
