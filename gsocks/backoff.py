"""How long to wait before what has failed is tried again."""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

#: more would overflow a float, and exceeds every cap long before
_MAX_DOUBLINGS = 64


class Backoff(NamedTuple):
    """Exponential backoff: each failure in a row doubles the delay, up to a cap.

    With ``jitter`` the delay is drawn at random between these two multiples of it, so that clients
    that have failed together do not return together.  It applies after the cap.
    """

    #: seconds
    base: float
    cap: float = math.inf
    jitter: tuple[float, float] = (1.0, 1.0)

    def bound(self, failures: int) -> float:
        """Seconds without jitter, after ``failures`` earlier failures in a row (0: ``base``)."""
        return min(self.cap, self.base * 2.0 ** min(failures, _MAX_DOUBLINGS))

    def delay(self, failures: int, random: Random) -> float:
        """Seconds with jitter, after ``failures`` earlier failures in a row."""
        seconds = self.bound(failures)
        low, high = self.jitter
        return random.uniform(low * seconds, high * seconds)
