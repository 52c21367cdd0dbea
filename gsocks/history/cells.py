"""What is counted in one step of time, as a list of numbers, so that steps and workers add up."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: seconds of a step; each exists for the time beside it, in seconds
STEPS = {10: 3600, 60: 86400, 3600: 86400}

#: all requests; and those of an exit (``SECTION/NAME``), of a user, of an outcome, of a listener's
#: name in the log, and to a host, of which there are hours alone, in memory alone
KINDS = ("total", "exit", "user", "outcome", "inbound", "host")

#: the name of the only series of the kind ``total``
ALL = ""

#: the series that has what comes beyond the bound on their number
OTHER = "other"

#: seconds; the upper bounds of the times that a ``total`` counts, the last bucket is beyond them
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: places of a cell.  Of the times the sum and how many there were
REQUESTS, FAILED, UP, DOWN, CONNECT, CONNECTS, FIRST, FIRSTS, TOTAL = range(9)
#: places of every cell
PLACES = 9
#: places of a cell of ``total`` behind these: the seconds of all open connections together, seconds
#: of the longest turn of the loop, and the buckets of the two times
OPEN, LAG = 9, 10
CONNECT_BUCKETS = 11
FIRST_BUCKETS = CONNECT_BUCKETS + len(BOUNDS) + 1
#: places of a cell of ``total``
ALL_PLACES = FIRST_BUCKETS + len(BOUNDS) + 1


class Point(NamedTuple):
    """One step of a series.  Times are seconds."""

    #: when it begins, by the wall clock
    at: int
    #: requests that have ended; of an exit its tries, of which one request may have several
    requests: int
    #: those of them that were not ``ok``
    failed: int
    #: bytes to the destinations, and from them, of the requests that have ended
    up: int
    down: int
    #: means, None: there was none; to connect from the try's begin, the others from the request's
    connect: float | None
    first_byte: float | None
    total: float | None
    #: of the series ``total`` only: upper bounds of the quantiles, None if there were no times
    connect_p50: float | None = None
    connect_p95: float | None = None
    first_byte_p50: float | None = None
    first_byte_p95: float | None = None
    #: of the series ``total`` only: open connections, on average, and the longest turn of the event
    #: loop
    open: int | None = None
    lag: float | None = None


def add(cell: list[float] | array[float], other: Sequence[float]) -> None:
    """Add ``other`` to ``cell``, of another time or worker; or of another kind to ``total``."""
    is_total = len(other) > PLACES
    lag = max(cell[LAG], other[LAG]) if is_total else 0.0
    for place, value in enumerate(other):
        if value:
            cell[place] += value
    if is_total:
        cell[LAG] = lag


def point(at: int, cell: Sequence[float], seconds: float) -> Point:
    """What a cell tells; ``seconds``: of its step, as far as they are over."""
    common = Point(
        at,
        int(cell[REQUESTS]),
        int(cell[FAILED]),
        int(cell[UP]),
        int(cell[DOWN]),
        _mean(cell[CONNECT], cell[CONNECTS]),
        _mean(cell[FIRST], cell[FIRSTS]),
        _mean(cell[TOTAL], cell[REQUESTS]),
    )
    if len(cell) <= PLACES:
        return common
    connect = cell[CONNECT_BUCKETS:FIRST_BUCKETS]
    first = cell[FIRST_BUCKETS:ALL_PLACES]
    return common._replace(
        connect_p50=quantile(connect, 0.5),
        connect_p95=quantile(connect, 0.95),
        first_byte_p50=quantile(first, 0.5),
        first_byte_p95=quantile(first, 0.95),
        open=round(cell[OPEN] / max(seconds, 1.0)),
        lag=round(cell[LAG], 6),
    )


def points(
    cells: Iterable[tuple[int, Sequence[float]]], since: float, step: int, now: float
) -> list[Point]:
    """What cells tell: a point for each step from ``since`` until ``now``, empty where none is."""
    found = dict(cells)
    nothing = [0.0] * max((len(cell) for cell in found.values()), default=PLACES)
    first = int(since) // step * step
    return [
        point(at, found.get(at, nothing), min(float(step), now - at))
        for at in range(first, int(now) + 1, step)
    ]


def bucket(seconds: float) -> int:
    """The bucket of a time."""
    return bisect_left(BOUNDS, seconds)


def quantile(buckets: Sequence[float], part: float) -> float | None:
    """Seconds that that part of the times does not exceed, as far as buckets tell: interpolated
    within one, and the last bound beyond it; None: there are no times."""
    wanted = part * sum(buckets)
    if not wanted:
        return None
    before = 0.0
    for number, count in enumerate(buckets):
        if before + count >= wanted and count:
            if number == len(BOUNDS):
                break
            low = BOUNDS[number - 1] if number else 0.0
            return round(low + (BOUNDS[number] - low) * (wanted - before) / count, 6)
        before += count
    return BOUNDS[-1]


def _mean(total: float, count: float) -> float | None:
    return round(total / count, 6) if count else None
