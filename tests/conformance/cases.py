"""What a case is: a sentence that holds or not, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

#: what a case is given to try
_Trial = TypeVar("_Trial")


class Failed(Exception):
    """The sentence does not hold."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}, saw {seen}")


class NotTried(Exception):
    """Whether the sentence holds can't be found out here; the argument is why."""


@dataclass(frozen=True)
class Case(Generic[_Trial]):
    """One sentence, and what finds out whether it holds."""

    area: str
    sentence: str
    run: Callable[[_Trial], None]

    def __str__(self) -> str:
        return f"{self.area}: {self.sentence}"


class Cases(Generic[_Trial]):
    """The cases of one area, in their order; a function's name is its sentence."""

    def __init__(self, area: str) -> None:
        self.area = area
        self.all: list[Case[_Trial]] = []

    def __call__(self, run: Callable[[_Trial], None]) -> Callable[[_Trial], None]:
        """A function that is one case."""
        self._add(run.__name__, run)
        return run

    def each(self, **arguments: Any) -> Callable[[Callable[[_Trial, Any], None]], None]:
        """A function that is a case for each argument, whose name ends the sentence."""

        def add(run: Callable[[_Trial, Any], None]) -> None:
            for name, argument in arguments.items():
                self._add(f"{run.__name__}_{name}", _with(run, argument))

        return add

    def _add(self, name: str, run: Callable[[_Trial], None]) -> None:
        self.all.append(Case(self.area, name.replace("_", " ").strip(), run))


def _with(run: Callable[[_Trial, Any], None], argument: object) -> Callable[[_Trial], None]:
    return lambda trial: run(trial, argument)
