"""Medians, ratios and the table, from the samples of two builds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench.summary import Spread

#: a commit may make a figure worse by this factor
TOLERATED = 1.03

#: that the true median lies in the range that is shown
CONFIDENCE = 0.93


class Row(NamedTuple):
    """One figure of both builds; less is better in all of them."""

    key: str
    label: str
    unit: str
    decimals: int
    #: what it shall not exceed, in its unit
    budget: float | None = None


#: by row's key and then "base" or "new": its samples, each beside the other build's
Samples = dict[str, dict[str, list[float]]]


def no_samples(rows: Sequence[Row]) -> Samples:
    return {row.key: {"base": [], "new": []} for row in rows}


class Outcome(NamedTuple):
    """One row, summed up."""

    row: Row
    base: float
    new: float
    #: new / base, of the samples that were taken one after the other
    ratio: Spread

    @property
    def mark(self) -> str:
        """ "!": worse by more than a commit may; "?": it may be, the noise does not tell."""
        if self.ratio.low > TOLERATED:
            return "!"
        return "?" if self.ratio.high > TOLERATED else ""


def outcomes(rows: Sequence[Row], samples: Samples) -> list[Outcome]:
    """Raises ValueError where a row has no samples, or one build has more than the other."""
    return [_outcome(row, samples[row.key]["base"], samples[row.key]["new"]) for row in rows]


def _outcome(row: Row, base: Sequence[float], new: Sequence[float]) -> Outcome:
    ratios = [after / before for before, after in zip(base, new, strict=True)]
    if not ratios:
        raise ValueError(f"no samples of {row.key}")
    return Outcome(row, statistics.median(base), statistics.median(new), median_within(ratios))


def median_within(values: Sequence[float]) -> Spread:
    """The median, and the range in which the true one lies with a probability of CONFIDENCE.

    It runs from the k-th smallest value to the k-th largest: of n values, fewer than k lie on one
    side of the true median as seldom as so many of n coins show heads.  Fewer than 5 values
    can't say that much; the range is then all of theirs.
    """
    ordered, count = sorted(values), len(values)
    outside, k = 0.0, 0
    while k < count // 2:
        outside += 2 * math.comb(count, k) / 2**count
        if outside > 1 - CONFIDENCE:
            break
        k += 1
    k = max(k, 1)
    return Spread(statistics.median(ordered), ordered[k - 1], ordered[-k])


def table(found: Sequence[Outcome]) -> str:
    """At most 72 columns, for the body of a commit message."""
    lines = [("", "", "base", "new", "ratio", "spread", "")]
    lines += [
        (
            outcome.row.label,
            outcome.row.unit,
            f"{outcome.base:.{outcome.row.decimals}f}",
            f"{outcome.new:.{outcome.row.decimals}f}",
            f"{outcome.ratio.median:.3f}",
            f"{outcome.ratio.low:.2f}-{outcome.ratio.high:.2f}",
            outcome.mark,
        )
        for outcome in found
    ]
    return "\n".join(aligned(lines))


def aligned(lines: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The first two columns hold words and stand to the left; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def as_json(found: Sequence[Outcome], samples: Samples) -> list[dict[str, Any]]:
    """The rows with every sample."""
    return [
        {
            "key": outcome.row.key,
            "label": outcome.row.label,
            "unit": outcome.row.unit,
            "median": {"base": outcome.base, "new": outcome.new},
            "ratio": outcome.ratio._asdict(),
            "mark": outcome.mark,
            "samples": samples[outcome.row.key],
        }
        for outcome in found
    ]
