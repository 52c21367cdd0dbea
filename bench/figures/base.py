"""What a figure is: how it is measured, what it says, what it shall be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.contenders import Contender, Kind
from bench.scale import Scale


@dataclass(frozen=True)
class Measure:
    """One number that a figure yields."""

    key: str
    unit: str
    #: whether a larger number is a better one
    more_is_better: bool = False
    #: measures of the same group stand in one table
    group: str = ""
    #: decimals worth showing
    decimals: int = 0
    #: whether the ratio of two contenders says something
    compared: bool = True


@dataclass(frozen=True)
class Goal:
    """What gsocks wants to reach: a bound on a measure, or on its ratio to a peer's.

    Exactly one of the two bounds is given.
    """

    contender: str
    measure: str
    #: the peer, by name; "": the bound is on the measure itself
    versus: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Figure:
    """One question to every contender it concerns."""

    name: str
    title: str
    #: how it is measured, in a sentence or two for the document
    about: str
    measures: tuple[Measure, ...]
    goals: tuple[Goal, ...]
    #: one sample of a contender: a number for each measure's key.  Raises Failed
    sample: Callable[[Contender, Scale], dict[str, float]]
    concerns: Callable[[Contender], bool]


def everybody(contender: Contender) -> bool:
    """All, except what only makes a difference on a long link."""
    return contender.name not in ("gsocks-fast-open", "gsocks-no-pool")


def every_proxy(contender: Contender) -> bool:
    """As :func:`everybody`, without the one that is none."""
    return everybody(contender) and contender.kind is not Kind.NONE


def every_pair(contender: Contender) -> bool:
    """The contenders with two ends, and the direct connection to compare with."""
    return contender.kind is not Kind.PLAIN
