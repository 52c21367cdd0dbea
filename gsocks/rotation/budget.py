"""What an exit has carried of its budget.

Days and months are those of UTC, as most providers count them.  Nothing here reads a clock:
``wall`` is the time of the wall clock, in seconds.
"""

from __future__ import annotations

import math
import time
from calendar import timegm
from collections.abc import Iterator

from gsocks.exits.budget import GB, UNLIMITED, Budget


class Spending:
    """What an exit has carried today and in this month, out of ``budget``."""

    __slots__ = (
        "_day",
        "_day_ends",
        "_month",
        "_month_ends",
        "budget",
        "this_month",
        "today",
        "until",
    )

    def __init__(self, budget: Budget = UNLIMITED) -> None:
        self.budget = budget
        #: until when the exit rests, in monotonic seconds; in the past if it does not
        self.until = -math.inf
        #: bytes
        self.today = 0
        self.this_month = 0
        self._day = self._month = ""
        self._day_ends = self._month_ends = -math.inf

    def add(self, count: int, wall: float) -> None:
        """Count bytes that were carried."""
        self._turn(wall)
        self.today += count
        self.this_month += count

    def restore(self, period: str, count: int, wall: float) -> None:
        """Note what was carried in ``period``, if that is today or this month; it never gets less,
        as it would with a state file that was deleted."""
        self._turn(wall)
        if period == self._day:
            self.today = max(self.today, count)
        elif period == self._month:
            self.this_month = max(self.this_month, count)

    def take_back(self, period: str, count: int, wall: float) -> None:
        """Bytes that were counted in ``period`` were not carried."""
        self._turn(wall)
        if period == self._day:
            self.today -= count
        elif period == self._month:
            self.this_month -= count

    def periods(self, wall: float) -> Iterator[tuple[str, float]]:
        """Today and this month, as ``2026-11-29`` and ``2026-11``, and when each ends."""
        self._turn(wall)
        yield self._day, self._day_ends
        yield self._month, self._month_ends

    def rests_until(self, wall: float) -> float:
        """Until when the budget is used up, by the wall clock; minus infinity: it is not."""
        self._turn(wall)
        budget = self.budget
        if self.this_month >= budget.monthly:
            return self._month_ends
        if budget.bytes_per_day is not None and self.today >= budget.bytes_per_day:
            return self._day_ends
        return -math.inf

    def cost(self, wall: float) -> float | None:
        """What this month's bytes cost; None: there is no price."""
        self._turn(wall)
        price = self.budget.cost_per_gb
        return None if price is None else self.this_month / GB * price

    def _turn(self, wall: float) -> None:
        """Begin a new day or month, if the clock says so."""
        if self._day_ends > wall >= self._day_ends - 86400:
            return
        now = time.gmtime(wall)
        day, month = time.strftime("%Y-%m-%d", now), time.strftime("%Y-%m", now)
        if day != self._day:
            self._day, self.today = day, 0
            self._day_ends = timegm((now.tm_year, now.tm_mon, now.tm_mday, 0, 0, 0)) + 86400.0
        if month != self._month:
            self._month, self.this_month = month, 0
            year, number = divmod(now.tm_year * 12 + now.tm_mon, 12)
            self._month_ends = float(timegm((year, number + 1, 1, 0, 0, 0)))
