"""Silence: noticed when its time is over, never before, by one timer for many."""

from __future__ import annotations

import time

import gevent
import pytest

from gsocks.net import idle
from gsocks.net.idle import LONGEST_PERIOD, LOOKS, IdleTimer
from tests.support.engine import eventually

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


class Silent:
    """Something that stops being watched when its time is over, as all do."""

    def __init__(self, bound: float) -> None:
        self.last_byte = time.monotonic()
        self.bound = bound
        self.expired: list[float] = []
        self.together: list[Silent] = []
        self.expiry = IdleTimer(self)
        self.expiry.restart()

    def on_idle(self) -> None:
        self.expired.append(time.monotonic() - self.last_byte)
        for one in [self, *self.together]:
            one.expiry.stop()


def timers() -> int:
    """How many run for this hub."""
    return sum(sweep._timer is not None for sweep in idle._sweeps_of_this_hub().values())


def let_pass(bound: float) -> None:
    """Wait until something is noticed whose silence begins now: all that was silent before has
    been looked at again then, many times."""
    later = Silent(bound)
    eventually(lambda: later.expired)


def test_silence_is_noticed_when_its_time_is_over_and_only_once() -> None:
    silent = Silent(0.04)
    eventually(lambda: silent.expired)
    let_pass(0.04)
    (after,) = silent.expired
    assert after >= 0.04


def test_a_byte_puts_it_off() -> None:
    silent = Silent(0.8)
    for _ in range(15):
        gevent.sleep(0.08)  # as a peer that is never silent for long
        silent.last_byte = time.monotonic()
    assert not silent.expired
    eventually(lambda: silent.expired)
    assert silent.expired[0] >= 0.8


def test_all_that_may_be_silent_for_minutes_share_one_timer() -> None:
    many = [Silent(bound) for bound in (60.0, 600.0, 3600.0, LONGEST_PERIOD * LOOKS) * 100]
    assert timers() == 1
    for silent in many:
        silent.expiry.stop()
        silent.expiry.stop()
    assert timers() == 0


def test_another_bound_counts_from_the_next_start() -> None:
    silent = Silent(3600.0)
    silent.bound = 0.02
    silent.expiry.restart()
    eventually(lambda: silent.expired)
    assert timers() == 0


def test_a_connection_that_ends_together_with_another_is_not_called_again() -> None:
    one, other = Silent(0.02), Silent(0.02)
    one.together, other.together = [other], [one]
    eventually(lambda: one.expired or other.expired)
    let_pass(0.02)
    assert len(one.expired) + len(other.expired) == 1
