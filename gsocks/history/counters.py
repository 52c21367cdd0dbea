"""The counters of this process, in memory: 10 s for an hour, minutes and hours for a day.

A request adds to the numbers of what it has in common with others: its exit, user, outcome and
listener.  Every 10 s, and when they are asked for, these are added to each series.  A series exists
in slices of time, each an array; the oldest slices are dropped when their time is over, or when all
of a step take too much memory, as with 10,000 exits, of which minutes are kept for some hours.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from gsocks.history.cells import (
    ALL,
    ALL_PLACES,
    CONNECT,
    CONNECT_BUCKETS,
    CONNECTS,
    DOWN,
    FAILED,
    FIRST,
    FIRST_BUCKETS,
    FIRSTS,
    LAG,
    OPEN,
    OTHER,
    PLACES,
    REQUESTS,
    STEPS,
    TOTAL,
    UP,
    add,
    bucket,
)
from gsocks.history.series import Cells
from gsocks.observe import Record
from gsocks.turns import give_way

#: series of a kind; what comes beyond is counted as ``other``
MAX_SERIES = 12_000
MAX_USERS = 5_000
MAX_OUTCOMES = 100
MAX_HOSTS = 2000

_MOST = {"user": MAX_USERS, "outcome": MAX_OUTCOMES, "host": MAX_HOSTS}

_HOUR = 3600

#: steps of a slice
_SLICE = {10: 30, 60: 60, 3600: 24}

#: bytes of the arrays of a step, beyond which the oldest slices are dropped, and then what is new
#: has none; of hours the number of series is the bound
MAX_BYTES = {10: 16 << 20, 60: 48 << 20}

#: an exit with its section, a user, an outcome, a listener
_Common: TypeAlias = tuple[str, str, str | None, str, str]

#: kind and name
Key: TypeAlias = tuple[str, str]


class Change(NamedTuple):
    """What was added to a series in a step of time."""

    step: int
    at: int
    kind: str
    name: str
    cell: Sequence[float]


class MemoryCounters:
    """See :class:`gsocks.history.series.Counters`.

    ``open_connections``: how many there are now.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        open_connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self._clock = clock
        self._open = open_connections
        #: seconds of the longest turn of the loop since the last call
        self.longest_turn: Callable[[], float] = lambda: 0.0
        #: whether the hosts of destinations are counted
        self.keeps_hosts = True
        self._counted: dict[_Common, list[float]] = {}
        #: requests, failed ones and bytes by the host of their destination
        self._hosts: dict[str, list[float]] = {}
        #: tries that failed before another one, and how many seconds they took together
        self._tried: dict[str, tuple[int, float]] = {}
        self._all = [0.0] * ALL_PLACES
        self._slices: dict[int, dict[int, dict[Key, array[float]]]] = {step: {} for step in STEPS}
        self._bytes = dict.fromkeys(STEPS, 0)
        self._names: dict[str, set[str]] = {}
        self._folded = clock()
        #: what was added since it was last taken, for a file; None: there is none
        self.changes: dict[tuple[int, int, str, str], list[float]] | None = None

    def __repr__(self) -> str:
        names = sum(map(len, self._names.values()))
        return f"<MemoryCounters {names} series, {sum(self._bytes.values())} bytes>"

    def count(self, section: str, record: Record, now: float) -> None:
        """Count a request that has ended; ``now``: monotonic seconds.  Takes microseconds."""
        details, outcome = record.details, record.outcome
        key = (
            section,
            "" if details is None else details.exit,
            record.user,
            outcome,
            record.inbound,
        )
        cell = self._counted.get(key)
        if cell is None:
            cell = self._counted[key] = [0.0] * PLACES
        everything = self._all
        cell[REQUESTS] += 1.0
        if outcome != "ok":
            cell[FAILED] += 1.0
        cell[UP] += record.up
        cell[DOWN] += record.down
        cell[TOTAL] += now - record.start
        if self.keeps_hosts and record.dest:
            self._count_host(record)
        if details is None:
            return
        if details.connect is not None:
            cell[CONNECT] += details.connect
            cell[CONNECTS] += 1.0
            everything[CONNECT_BUCKETS + bucket(details.connect)] += 1.0
        if details.answered:
            seconds = details.answered - record.start
            cell[FIRST] += seconds
            cell[FIRSTS] += 1.0
            everything[FIRST_BUCKETS + bucket(seconds)] += 1.0
        for each in details.tries:
            # the last one of a request that was not served is counted with it
            if outcome == "ok" or each.exit != details.exit:
                name = f"{section}/{each.exit}"
                count, seconds = self._tried.get(name, (0, 0.0))
                self._tried[name] = count + 1, seconds + each.ended - each.began

    def _count_host(self, record: Record) -> None:
        host, _, _ = record.dest.rpartition(":")
        cell = self._hosts.get(host)
        if cell is None:
            if len(self._hosts) >= MAX_HOSTS:
                host = OTHER
            cell = self._hosts.setdefault(host, [0.0] * PLACES)
        cell[REQUESTS] += 1.0
        if record.outcome != "ok":
            cell[FAILED] += 1.0
        cell[UP] += record.up
        cell[DOWN] += record.down

    def fold(self) -> None:
        """Add what was counted to the series.  Gives way to others if that is much."""
        now = self._clock()
        # of the step in which the last call was: one is made at the end of each
        at = int(self._folded)
        passed, self._folded = max(0.0, now - self._folded), now
        counted, self._counted = self._counted, {}
        tried, self._tried = self._tried, {}
        hosts, self._hosts = self._hosts, {}
        everything, self._all = self._all, [0.0] * ALL_PLACES
        series: dict[Key, list[float]] = {}
        for common, cell in counted.items():
            add(everything, cell)
            for key in _keys(common):
                known = series.get(key)
                if known is None:
                    series[key] = list(cell)
                else:
                    add(known, cell)
            give_way()
        for name, (count, seconds) in tried.items():
            own = series.setdefault(("exit", name), [0.0] * PLACES)
            own[REQUESTS] += count
            own[FAILED] += count
            own[TOTAL] += seconds
        everything[OPEN] += self._open() * passed
        everything[LAG] = self.longest_turn()
        series["total", ALL] = everything
        for key, cell in series.items():
            self._store(self._known(key), cell, at)
            give_way()
        for host, cell in hosts.items():
            self._store(self._known(("host", host)), cell, at)
            give_way()
        self._forget(now)

    def _known(self, key: Key) -> Key:
        kind, name = key
        names = self._names.setdefault(kind, set())
        if name not in names:
            if len(names) >= _MOST.get(kind, MAX_SERIES):
                return kind, OTHER
            names.add(name)
        return key

    def _store(self, key: Key, cell: Sequence[float], at: int) -> None:
        is_host = key[0] == "host"
        for step, slices in self._slices.items():
            if is_host and step != _HOUR:
                continue
            number, place = divmod(at // step, _SLICE[step])
            each = slices.setdefault(number, {})
            own = each.get(key)
            size = len(cell)
            if own is None:
                if not self._has_room(step, number):
                    continue
                own = each[key] = array("d", bytes(8 * size * _SLICE[step]))
                self._bytes[step] += 8 * len(own)
            begin = place * size
            lag = max(own[begin + LAG], cell[LAG]) if size > PLACES else 0.0
            for index, value in enumerate(cell, begin):
                if value:
                    own[index] += value
            if size > PLACES:
                own[begin + LAG] = lag
        if self.changes is not None and not is_host:
            for step in (60, _HOUR):
                changed = (step, at // step * step, *key)
                before = self.changes.get(changed)
                if before is None:
                    self.changes[changed] = list(cell)
                else:
                    add(before, cell)

    def _has_room(self, step: int, number: int) -> bool:
        """Whether a series may have an array in that slice, after older ones were dropped."""
        most, slices = MAX_BYTES.get(step), self._slices[step]
        while most is not None and self._bytes[step] > most:
            if min(slices) == number:
                return not slices[number]
            self._drop(step, min(slices))
        return True

    def _drop(self, step: int, number: int) -> None:
        dropped = self._slices[step].pop(number)
        self._bytes[step] -= sum(8 * len(each) for each in dropped.values())

    def _forget(self, now: float) -> None:
        """Drop what is too old."""
        for step, slices in self._slices.items():
            length = step * _SLICE[step]
            while slices and (min(slices) + 1) * length <= now - STEPS[step]:
                self._drop(step, min(slices))
                if step == _HOUR:
                    self._forget_names()

    def _forget_names(self) -> None:
        used = {key for slices in self._slices[_HOUR].values() for key in slices}
        for kind, names in self._names.items():
            self._names[kind] = {name for name in names if (kind, name) in used}

    # --- queries ----------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        """See :meth:`gsocks.history.series.Counters.names`."""
        self.fold()
        return sorted(self._names.get(kind, ()))

    def cells(self, kind: str, name: str, since: float, step: int) -> Cells:
        """See :meth:`gsocks.history.series.Counters.cells`."""
        self.fold()
        found: Cells = []
        for number, each in sorted(self._slices[step].items()):
            own = each.get((kind, name))
            if own is not None:
                found += _cells(own, number, step, since)
        return found

    def totals(self, kind: str, since: float, step: int) -> dict[str, list[float]]:
        """See :meth:`gsocks.history.series.Counters.totals`."""
        self.fold()
        found: dict[str, list[float]] = {}
        for number, each in sorted(self._slices[step].items()):
            if (number + 1) * step * _SLICE[step] <= since:
                continue
            for (of, name), own in list(each.items()):
                if of != kind:
                    continue
                for _, cell in _cells(own, number, step, since):
                    total = found.get(name)
                    if total is None:
                        found[name] = list(cell)
                    else:
                        add(total, cell)
                give_way()
        return found


def _keys(common: _Common) -> Iterator[Key]:
    section, exit_, user, outcome, inbound = common
    if exit_:
        yield "exit", f"{section}/{exit_}"
    if user is not None:
        yield "user", user
    yield "outcome", outcome
    yield "inbound", inbound


def _cells(own: array[float], number: int, step: int, since: float) -> Cells:
    """The cells of a slice that are not empty."""
    count = _SLICE[step]
    size = len(own) // count
    begin = number * count * step
    found: Cells = []
    for place in range(count):
        at = begin + place * step
        if at + step > since:
            cell = own[place * size : (place + 1) * size].tolist()
            if any(cell):
                found.append((at, cell))
    return found
