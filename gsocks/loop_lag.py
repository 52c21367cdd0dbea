"""How long the turns of a hub's loop last: the time that what comes meanwhile has to wait.

Two callbacks in each turn, its begin in gsocks/turns.py and its end here, cost 4,000 instructions,
of which 2,600 are gevent's (cachegrind, Python 3.11, gevent 26.9).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

import gevent

from gsocks.turns import clock_of_this_hub

#: seconds; up to each of these a turn counts in that bucket
BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

#: seconds of a turn that is reported
LONG_TURN = 0.1

_SHORT, _NOT_LONG = BUCKETS[:2]


class LoopLag:
    """Measures each turn of this thread's hub, from :meth:`start` on.

    ``on_long_turn``: called with the seconds of a turn above ``LONG_TURN``, at its end and in the
    hub.
    """

    __slots__ = (
        "_counts",
        "_on_long_turn",
        "_prepare",
        "_short",
        "clock",
        "ended",
        "longest",
        "recent",
        "seconds",
    )

    def __init__(self, on_long_turn: Callable[[float], object]) -> None:
        self._on_long_turn = on_long_turn
        self.clock = clock_of_this_hub()
        #: turns of the first bucket, and of the others
        self._short = 0
        self._counts = [0] * len(BUCKETS)
        #: of all turns together
        self.seconds = 0.0
        #: seconds of the longest turn; 0 if none was longer than the first bucket
        self.longest = 0.0
        #: the same since :meth:`take_longest`
        self.recent = 0.0
        #: when the latest turn ended, in seconds of :func:`time.perf_counter`; while a turn goes
        #: on, its begin is later
        self.ended = time.perf_counter()
        loop = gevent.get_hub().loop
        # gevent runs the greenlets that were woken in a watcher of the same kind, of priority 0
        self._prepare = loop.prepare(ref=False, priority=loop.MINPRI)  # type: ignore[attr-defined]

    def start(self) -> None:
        """Measure from here on.  What this turn has done before doesn't count."""
        # equal, as between two turns: the loop may poll next without an end of this one
        self.clock.began = self.ended = time.perf_counter()
        self._prepare.start(self._end)

    def stop(self) -> None:
        """Measure no more."""
        self._prepare.stop()

    def counts(self) -> list[int]:
        """How many turns took no longer than each of ``BUCKETS``; the last item: all turns."""
        return list(accumulate((self._short, *self._counts)))

    def take_longest(self) -> float:
        """Seconds of the longest turn since the last call; 0 as for :attr:`longest`."""
        longest, self.recent = self.recent, 0.0
        return longest

    def _end(self) -> None:
        """Count a turn: everything is done, and the loop is about to poll."""
        self.ended = now = time.perf_counter()
        seconds = now - self.clock.began
        self.seconds += seconds
        if seconds <= _SHORT:
            self._short += 1
            return
        self._counts[0 if seconds <= _NOT_LONG else bisect_left(BUCKETS, seconds) - 1] += 1
        if seconds > self.recent:
            self.recent = seconds
            if seconds > self.longest:
                self.longest = seconds
        if seconds > LONG_TURN:
            self._on_long_turn(seconds)


def quantile(counts: Sequence[int], part: float, longest: float) -> float:
    """Seconds that that part of the turns does not exceed: a bucket's bound, or ``longest``.

    ``longest`` is 0 while all turns were in the first bucket.

    ``counts``: as of :meth:`LoopLag.counts`; ``part``: 0.999, for example.
    """
    bounds = zip(BUCKETS, counts, strict=False)
    bound = next((bound for bound, count in bounds if count >= part * counts[-1]), longest)
    return min(bound, longest or bound)
