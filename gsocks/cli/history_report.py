"""``gsocks report``: what each provider's exits cost, carried and failed."""

from __future__ import annotations

import json as json_module
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from gsocks.cli.past import Past, milliseconds, size, table, unusable
from gsocks.errors import ConfigError, HistoryFailed
from gsocks.history.cells import (
    ALL,
    CONNECT,
    CONNECTS,
    DOWN,
    FAILED,
    PLACES,
    REQUESTS,
    UP,
    Point,
    add,
    points,
)
from gsocks.history.series import Cells, ExitInfo

#: bytes of a GB, as providers count
_GB = 1e9

_HINT = "a config with state and admin makes it"

_UNKNOWN = ExitInfo("", "", "", None)


class Part(NamedTuple):
    """The exits of a provider, or of what else is told apart."""

    name: str
    exits: int
    #: of requests, of which one may have several, at several exits
    tries: int
    failed: int
    up: int
    down: int
    #: seconds, on average; None: nothing was connected
    connect: float | None
    #: in the currency of ``cost_per_gb``; None: no exit of it has a price
    cost: float | None

    @property
    def failed_share(self) -> float:
        """Failures for each try."""
        return self.failed / max(self.tries, 1)


class Report(NamedTuple):
    """What `gsocks report` tells."""

    by: str
    #: wall clock
    since: float
    until: float
    parts: list[Part]
    #: all requests, a point for each step
    points: list[Point]
    #: seconds
    step: int


def show_report(
    past: Past,
    by: str,
    *,
    since: float,
    html: Path | None,
    page: Callable[[Report], str],
    json: bool,
) -> int:
    """Print a table, and write what ``page`` makes to ``html``.  Raises ConfigError."""
    now = time.time()
    try:
        found = make_report(past, by, now - since, now)
    except HistoryFailed as error:
        raise unusable(error, _HINT) from None
    if json:
        print(json_module.dumps([each._asdict() for each in found.parts], indent=1))
    else:
        print("\n".join(_table(found)))
    if html is not None:
        _write(html, page(found))
    return 0


def _write(path: Path, text: str) -> None:
    """For its owner alone: it names exits and what they cost."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--html: {path}: {error.strerror}") from None


def make_report(past: Past, by: str, since: float, now: float) -> Report:
    """Raises HistoryFailed."""
    totals = past.counters.totals("exit", since, now)
    parts = _parts(by, totals, past.counters.exits())
    cells = past.counters.cells("total", ALL, since, 3600)
    step = 3600 if now - since <= 4 * 86400 else 86400
    return Report(by, since, now, parts, _by_step(cells, since, step, now), step)


def _by_step(cells: Cells, since: float, step: int, now: float) -> list[Point]:
    whole: dict[int, list[float]] = {}
    for at, cell in cells:
        before = whole.get(at // step * step)
        if before is None:
            whole[at // step * step] = list(cell)
        else:
            add(before, cell)
    return points(whole.items(), since, step, now)


def _parts(by: str, totals: Mapping[str, list[float]], exits: Mapping[str, ExitInfo]) -> list[Part]:
    cells: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, cell in totals.items():
        info = exits.get(name, _UNKNOWN)
        for part in _names_of(by, name, info):
            add(cells.setdefault(part, [0.0] * PLACES), cell)
            counts[part] = counts.get(part, 0) + 1
            if info.cost_per_gb is not None:
                cost = (cell[UP] + cell[DOWN]) / _GB * info.cost_per_gb
                costs[part] = costs.get(part, 0.0) + cost
    found = [
        Part(
            name,
            counts[name],
            int(cell[REQUESTS]),
            int(cell[FAILED]),
            int(cell[UP]),
            int(cell[DOWN]),
            cell[CONNECT] / cell[CONNECTS] if cell[CONNECTS] else None,
            round(costs[name], 4) if name in costs else None,
        )
        for name, cell in cells.items()
    ]
    return sorted(found, key=lambda part: (-(part.cost or 0), -part.tries, part.name))


def _names_of(by: str, name: str, info: ExitInfo) -> list[str]:
    if by == "exit":
        return [name]
    if by == "country":
        return [info.country or "-"]
    if by == "tag":
        return info.tags.split() or ["-"]
    return [provider_of(info.label)]


def provider_of(label: str) -> str:
    """The provider that an exit's URL without secrets tells: the domain of its host.

    ``direct`` for exits without a host; ``addresses`` for those that are given by an address, of
    which nothing tells the provider.
    """
    found = re.match(r"[a-z0-9+]+://(?:[^/?#]*@)?(\[[^]]*\]|[^/?#:]+)", label)
    if label.startswith("direct") or not label:
        return "direct" if label else "-"
    if found is None:
        return label
    host = found[1].strip("[]").rstrip(".").lower()
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        labels = host.split(".")
        # gate.example.co.uk: as good as without the list of public suffixes
        is_second = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
        return ".".join(labels[-3 if is_second else -2 :])
    return "addresses"


def _table(found: Report) -> Iterator[str]:
    head = (found.by, "exits", "tries", "failed", "share", "up", "down", "connect ms", "cost")
    rows = [
        (
            each.name,
            str(each.exits),
            str(each.tries),
            str(each.failed),
            f"{each.failed_share:.1%}",
            size(each.up),
            size(each.down),
            milliseconds(each.connect),
            "-" if each.cost is None else f"{each.cost:.2f}",
        )
        for each in found.parts
    ]
    yield from table([head, *rows], frozenset(range(1, 9)))
