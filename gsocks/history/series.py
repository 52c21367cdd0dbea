"""Counters of each exit, user and outcome by 10 s, minute and hour: how they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

#: the cells of one series, each with the time of its begin by the wall clock, in this order; a step
#: without requests may be left out.  See gsocks/history/cells.py
Cells: TypeAlias = list[tuple[int, Sequence[float]]]


class ExitInfo(NamedTuple):
    """What is known of an exit, for the report: it may be gone by then."""

    #: its URL without secrets
    label: str
    country: str
    tags: str
    #: what a GB costs; None: not known
    cost_per_gb: float | None


class Counters(Protocol):
    """What one process has counted.

    ``kind`` is one of :data:`gsocks.history.cells.KINDS`, ``step`` of
    :data:`gsocks.history.cells.STEPS`.
    """

    def names(self, kind: str) -> list[str]:
        """The names of the series of a kind: an exit's is ``SECTION/NAME``."""

    def cells(self, kind: str, name: str, since: float, step: int) -> Cells:
        """The cells of a series from ``since`` (wall clock) on, the latest one unfinished.

        None for a name that is unknown: the list is empty.
        """

    def totals(self, kind: str, since: float, step: int) -> dict[str, list[float]]:
        """The cells of all series of a kind since then, each added up to one."""
