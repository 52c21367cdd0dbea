"""Pages of a list of exits: filtered, sorted and parted by the server.

A page begins behind the last item of the one before, by the sort key and the name of that item: so
none is missed because others have changed their places, or are gone.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest, nsmallest
from typing import Any, TypeAlias

from gsocks.admin.problems import invalid
from gsocks.admin.shapes import ExitQuery
from gsocks.admin.snapshot import STATES, Json
from gsocks.turns import in_turns

#: a sort key, the section and the name: the place of an exit in a list
_Place: TypeAlias = tuple[Any, str, str]

_KEYS: dict[str, Callable[[Json], Any]] = {
    "name": lambda each: each["name"],
    "state": lambda each: STATES.index(each["state"]),
    "country": lambda each: each["country"] or "",
    "open": lambda each: each["open"],
    "connected": lambda each: each["connected"],
    "failed": lambda each: each["failed"],
    "success": lambda each: _success(each["connected"], each["failed"]),
    "connect_seconds": lambda each: (
        -1.0 if each["connect_seconds"] is None else each["connect_seconds"]
    ),
    "traffic": lambda each: each["up"] + each["down"],
    "address": lambda each: each["address"] or "",
}


#: what the keys are made of, besides the name and the state, by the words of ``sort``
_FIGURES = {
    "name": (),
    "state": (),
    "success": ("connected", "failed"),
    "traffic": ("up", "down"),
}


def figures_of(sort: str) -> tuple[str, ...]:
    """What has to be known of every exit (:data:`gsocks.admin.snapshot.FIGURES`), so sorted."""
    return _FIGURES.get(sort, (sort,))


def page_of(exits: Iterable[Json], query: ExitQuery) -> Json:
    """The page that ``query`` asks for, of the exits that match all but its state.

    Of each exit its section, name and state have to be there, and :func:`figures_of` its sort.
    Raises ApiError.
    """
    key = _KEYS[query.sort]
    states: Counter[str] = Counter()
    cursor = None if not query.cursor else _read(query.cursor, text=_is_text(query.sort))
    down, total = query.order == "desc", 0

    def placed() -> Iterator[tuple[_Place, Json]]:
        nonlocal total
        for each in in_turns(exits):
            states[each["state"]] += 1
            if query.state and each["state"] != query.state:
                continue
            total += 1
            place = (key(each), each["section"], each["name"])
            if cursor is None or (place < cursor if down else place > cursor):
                yield place, each

    choose = nlargest if down else nsmallest
    found = choose(query.limit + 1, placed(), key=lambda pair: pair[0])
    more = len(found) > query.limit
    found = found[: query.limit]
    return {
        "items": [each for _, each in found],
        "next": written(found[-1][0]) if more else None,
        "total": total,
        "states": {name: states[name] for name in STATES if states[name]},
    }


def _success(connected: int, failed: int) -> float:
    return connected / (connected + failed) if connected + failed else -1.0


def _is_text(sort: str) -> bool:
    return sort in ("name", "country", "address")


def written(place: tuple[Any, ...]) -> str:
    """A place as a cursor."""
    return urlsafe_b64encode(json.dumps(place, ensure_ascii=False).encode()).decode().rstrip("=")


def unwritten(cursor: str) -> list[Any]:
    """The parts of the place.  Raises ApiError."""
    try:
        found = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise invalid("expected what `next` of the page before is", "cursor")
    return found


def _read(cursor: str, *, text: bool) -> _Place:
    match unwritten(cursor):
        case [str(key), str(section), str(name)] if text:
            return key, section, name
        case [int(key) | float(key), str(section), str(name)] if not text:
            return key, section, name
    raise invalid("expected what `next` of the page before is, with the same `sort`", "cursor")
