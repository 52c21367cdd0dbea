"""From samples to what is said of them: medians, spreads, ratios, goals met.

Works on the results as they stand in the file (see run.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The median of some rounds, and the range that they covered."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """None if there are no values."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values))


def figure_named(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(figure for figure in results["figures"] if figure["name"] == name)


def values(figure: dict[str, Any], contender: str, key: str) -> list[float]:
    """What the rounds gave, without those that failed."""
    return [sample[key] for sample in figure["samples"].get(contender, []) if sample]


def ratio(figure: dict[str, Any], contender: str, peer: str, key: str) -> Spread | None:
    """A contender's number divided by its peer's, round by round.

    Within a round both have met the same machine, which the ratio of two medians would lose.
    """
    samples = figure["samples"]
    pairs = zip(samples.get(contender, []), samples.get(peer, []), strict=False)
    return spread([one[key] / other[key] for one, other in pairs if one and other and other[key]])


def judge(results: dict[str, Any], figure_name: str, goal: dict[str, Any]) -> dict[str, Any]:
    """The goal with what was measured, and whether it was met; None where nothing was."""
    figure = figure_named(results, figure_name)
    contender, peer, key = goal["contender"], goal["versus"], goal["measure"]
    if peer:
        measured = ratio(figure, contender, peer, key)
    else:
        measured = spread(values(figure, contender, key))
    met = None
    if measured is not None:
        at_least, at_most = goal["at_least"], goal["at_most"]
        met = measured.median >= at_least if at_least is not None else measured.median <= at_most
    return goal | {
        "figure": figure_name,
        "measured": measured and measured._asdict(),
        "met": met,
    }
