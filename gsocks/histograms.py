"""How long things take in this process, as histograms of a fixed number of buckets."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import NamedTuple

#: seconds; the upper bounds of the buckets, behind which is one more
OF_CONNECTING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OF_REQUESTS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
OF_LOGINS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
OF_LOOK_UPS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Exemplar(NamedTuple):
    """One of the times of a bucket."""

    #: the id of its request, as in the access log
    id: str
    seconds: float
    #: wall clock
    at: float


class Histogram:
    """Counts times by ``bounds``, which are ascending seconds."""

    __slots__ = ("bounds", "counts", "exemplars", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        #: of each bucket alone; the last one is beyond all bounds
        self.counts = [0] * (len(bounds) + 1)
        #: of all times together
        self.seconds = 0.0
        #: the latest of each bucket that has one
        self.exemplars: dict[int, Exemplar] = {}

    def add(self, seconds: float, exemplar: str = "") -> None:
        """Count a time; ``exemplar``: the id of its request, which is kept if it is not empty."""
        place = bisect_left(self.bounds, seconds)
        self.counts[place] += 1
        self.seconds += seconds
        if exemplar:
            self.exemplars[place] = Exemplar(exemplar, seconds, time.time())


#: verifications of passwords, and questions to name servers that were not answered by a cache
LOGINS = Histogram(OF_LOGINS)
LOOK_UPS = Histogram(OF_LOOK_UPS)
