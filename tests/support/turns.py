"""Whether a loop lets others run: how many turns another greenlet has meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest


class Turns:
    """The turns of another greenlet, counted."""

    def __init__(self) -> None:
        self.count = 0

    def take(self) -> None:
        """Take turn after turn."""
        while True:
            gevent.sleep(1e-6)
            self.count += 1


@contextmanager
def turns_of_others() -> Iterator[Turns]:
    """The turns that a greenlet has meanwhile, if a turn lasts for no time: one for each time that
    the loop under test gives way."""
    turns = Turns()
    taking = gevent.spawn(turns.take)
    gevent.sleep(1e-6)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gsocks.turns.LONGEST_TURN", 0.0)
            yield turns
    finally:
        taking.kill()
