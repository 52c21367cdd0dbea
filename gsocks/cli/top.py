"""``gsocks top``: who has most requests now, from the history or the request log."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from gsocks.cli.past import Past, milliseconds, size, table, unusable
from gsocks.errors import HistoryFailed
from gsocks.history.cells import CONNECT, CONNECTS, DOWN, FAILED, REQUESTS, UP
from gsocks.history.counter_file import KEPT

#: seconds between two views of a terminal
REFRESH = 2.0

#: seconds that a question of all rows may take
_LONGEST = 30.0

#: what the request log alone tells, and its column
_COLUMNS = {"dest": "host", "client": "client_host", "session": "session"}

_CLEAR = "\x1b[H\x1b[2J"


class Busy(NamedTuple):
    """One line."""

    name: str
    #: of an exit its tries
    requests: int
    failed: int
    up: int
    down: int
    #: seconds, on average
    connect: float | None


def show_top(past: Past, by: str, *, since: float, limit: int, json: bool, once: bool) -> int:
    """Print the busiest of a kind, on a terminal again and again until Ctrl-C.

    Raises ConfigError.
    """
    counted = "tries" if by == "exit" else "requests"
    while True:
        try:
            found = busiest(past, by, time.time() - since)[:limit]
        except HistoryFailed as error:
            hint = "requests" if by in _COLUMNS else "admin"
            raise unusable(error, f"a config with state and {hint} makes it") from None
        if json:
            told = [_renamed(each._asdict(), counted) for each in found]
            print(json_module.dumps(told, indent=1))
            return 0
        lines = table([(by, counted, *Busy._fields[2:5], "connect ms"), *map(_line, found)], _RIGHT)
        is_shown_again = sys.stdout.isatty() and not once
        print((_CLEAR if is_shown_again else "") + "\n".join(lines))
        if not is_shown_again:
            return 0
        time.sleep(REFRESH)


def _renamed(told: dict[str, Any], counted: str) -> dict[str, Any]:
    return {counted if name == "requests" else name: value for name, value in told.items()}


_RIGHT = frozenset(range(1, 6))


def _line(each: Busy) -> Sequence[str]:
    return (
        each.name or "-",
        str(each.requests),
        str(each.failed),
        size(each.up),
        size(each.down),
        milliseconds(each.connect),
    )


def busiest(past: Past, by: str, since: float) -> list[Busy]:
    """Those with most requests first.  Raises HistoryFailed."""
    found = _of_log(past, by, since) if by in _COLUMNS else _of_counters(past, by, since)
    return sorted(found, key=lambda each: (-each.requests, -each.failed, each.name))


def _of_counters(past: Past, by: str, since: float) -> list[Busy]:
    step = 60 if time.time() - since < KEPT[60] else 3600
    totals = past.counters.totals(by, since, step=step)
    return [
        Busy(
            name,
            int(cell[REQUESTS]),
            int(cell[FAILED]),
            int(cell[UP]),
            int(cell[DOWN]),
            cell[CONNECT] / cell[CONNECTS] if cell[CONNECTS] else None,
        )
        for name, cell in totals.items()
    ]


def _of_log(past: Past, by: str, since: float) -> list[Busy]:
    column = _COLUMNS[by]
    rows, _ = past.requests.rows(
        f"SELECT {column}, count(*), sum(outcome != 'ok'), sum(up), sum(down), avg(connect)"  # noqa: S608 - no input
        f" FROM requests WHERE time >= ? AND {column} != '' GROUP BY {column}",
        (since,),
        seconds=_LONGEST,
    )
    return [Busy(*row) for row in rows]
