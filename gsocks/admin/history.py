"""What has happened, asked of all workers: their counters added up, their events in one order.

Of a worker each question has a path under ``/own/history``, at its Unix socket.  The request log is
one file for all of them, so that it is asked here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from gsocks.admin.peers import Peers, in_parts
from gsocks.errors import HistoryFailed
from gsocks.events import EVENTS, MAX_EVENTS, Event
from gsocks.history.cells import ALL, FAILED, KINDS, REQUESTS, STEPS, Point, add, point, points
from gsocks.history.requests import RequestLog
from gsocks.history.series import Counters
from gsocks.turns import give_way

#: seconds within which the same event at several workers is one: commands reach all of them
SAME = 2.0


class AskedHistory:
    """The history of all workers.

    ``requests``: the request log; None: it is off.  ``kept``: minutes and hours of all workers in a
    file, of a month and over restarts; None: those in memory count.  Every method blocks the
    calling greenlet until the other workers have answered, or are left out since they have not in
    time.
    """

    def __init__(
        self,
        counters: Counters,
        peers: Peers,
        requests: RequestLog | None = None,
        kept: Counters | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._counters = counters
        self._peers = peers
        self.requests = requests
        self._kept = kept
        self._clock = clock

    def names(self, kind: str) -> list[str]:
        """The names of the series of a kind (:data:`gsocks.history.cells.KINDS`), of this day."""
        found = set(self._counters.names(kind))
        for answer in self._ask(f"names?kind={quote(kind)}"):
            found.update(answer)
        return sorted(found)

    def series(
        self, kind: str, name: str = ALL, since: float | None = None, step: int = 60
    ) -> list[Point]:
        """A point for each step from ``since`` (wall clock) until now, empty where nothing was.

        ``step``: one of :data:`gsocks.history.cells.STEPS`; ``since`` None: for as long as that
        step exists in memory.  From a file the latest 10 s may be missing.
        """
        now = self._clock()
        since = now - STEPS[step] if since is None else since
        if self._kept is not None and _is_kept(kind, step):
            with suppress(HistoryFailed):
                return points(self._kept.cells(kind, name, since, step), since, step, now)
        query = f"cells?kind={quote(kind)}&name={quote(name)}&since={since}&step={step}"
        whole: dict[int, list[float]] = {}
        for cells in (self._counters.cells(kind, name, since, step), *self._ask(query)):
            for at, cell in cells:
                before = whole.get(at)
                if before is None:
                    whole[at] = list(cell)
                else:
                    add(before, cell)
        return points(whole.items(), since, step, now)

    def minutes(self, kind: str, names: Sequence[str]) -> dict[str, tuple[list[int], list[int]]]:
        """The requests of some series in each minute of the last hour, and those that failed."""
        now = self._clock()
        first = int(now) // 60 * 60 - 59 * 60
        found = {name: ([0] * 60, [0] * 60) for name in names}
        for cells in (
            _minutes_of(self._counters, kind, names, first),
            *self._ask_minutes(kind, names, first),
        ):
            for name, steps in cells.items():
                requests, failed = found[name]
                for at, one, other in steps:
                    place = (at - first) // 60
                    if 0 <= place < 60:
                        requests[place] += one
                        failed[place] += other
        return found

    def _ask_minutes(
        self, kind: str, names: Sequence[str], first: int
    ) -> Iterable[dict[str, list[tuple[int, int, int]]]]:
        for part in in_parts("name", names):
            yield from self._ask(f"minutes?kind={quote(kind)}&since={first}&{part}")

    def totals(self, kind: str, since: float, step: int = 60) -> dict[str, Point]:
        """All series of a kind, each as one point from ``since`` until now: for tables of the worst
        exits, the busiest users."""
        now = self._clock()
        if self._kept is not None and _is_kept(kind, step):
            with suppress(HistoryFailed):
                kept = self._kept.totals(kind, since, step)
                return {name: point(int(since), cell, now - since) for name, cell in kept.items()}
        whole = self._counters.totals(kind, since, step)
        for answer in self._ask(f"totals?kind={quote(kind)}&since={since}&step={step}"):
            for name, cell in answer.items():
                before = whole.get(name)
                if before is None:
                    whole[name] = list(cell)
                else:
                    add(before, cell)
        return {name: point(int(since), cell, now - since) for name, cell in whole.items()}

    def events(self, since: float = 0.0, most: int = 100) -> list[Event]:
        """What has changed after ``since`` (wall clock), in the order of time, the latest ``most``.

        To follow it, ask again with the time of the last one.  The numbers are those of different
        processes.
        """
        found = [each for each in EVENTS.since() if each.time > since]
        for answer in self._ask(f"events?since={since}"):
            found += (Event(*each) for each in answer)
        return merged_events(found)[-most:]

    def _ask(self, target: str) -> Iterable[Any]:
        answers = self._peers.ask("GET", f"/own/history/{target}")
        return [each.body for each in answers if each.status == HTTPStatus.OK]


def _is_kept(kind: str, step: int) -> bool:
    """Whether a file has it."""
    return step in (60, 3600) and kind != "host"


def _minutes_of(
    counters: Counters, kind: str, names: Iterable[str], since: int
) -> dict[str, list[tuple[int, int, int]]]:
    """Of each series the minutes, their requests and those that failed."""
    found = {}
    for name in names:
        cells = counters.cells(kind, name, since, 60)
        found[name] = [(at, int(cell[REQUESTS]), int(cell[FAILED])) for at, cell in cells]
        give_way()
    return found


def own(counters: Counters, what: str, query: Mapping[str, str], names: Sequence[str] = ()) -> Any:
    """The answer of this process alone, as JSON; ``names``: of the series, where several are asked
    for.  Raises ValueError."""
    kind = query.get("kind", "")
    if what == "events":
        since = float(query.get("since", "0"))
        return [each for each in EVENTS.since(most=MAX_EVENTS) if each.time > since]
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}")
    if what == "names":
        return counters.names(kind)
    if what == "minutes":
        return _minutes_of(counters, kind, names, int(query.get("since", "0")))
    step, since = int(query.get("step", "60")), float(query.get("since", "0"))
    if step not in STEPS:
        raise ValueError(f"step: expected one of {', '.join(map(str, STEPS))}")
    if what == "cells":
        return counters.cells(kind, query.get("name", ALL), since, step)
    if what == "totals":
        return counters.totals(kind, since, step)
    raise ValueError("expected names, cells, totals or events")


def merged_events(events: Iterable[Event]) -> list[Event]:
    """In the order of time; what several workers tell of the same moment, once."""
    latest: dict[tuple[str, str, str, str], float] = {}
    found = []
    for each in sorted(events, key=lambda event: event.time):
        what = (each.kind, each.exit, each.subject, each.text)
        if each.time - latest.get(what, -SAME) < SAME:
            continue
        latest[what] = each.time
        found.append(each)
    return found
