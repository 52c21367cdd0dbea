"""The parts of a fleet: what takes part in the exchange with the store besides the records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from gsocks.fleet.store import Command


class Operation(NamedTuple):
    """A command for the store, and what its answer is given to."""

    command: Command
    answered: Callable[[Any], object]


class Part(Protocol):
    """Called in the event loop's greenlets; nothing here may block."""

    #: in messages
    name: str
    #: whether it tells what has happened, which may not be heard twice, nor missed
    has_events: bool

    def operations(self, now: float) -> Iterable[Operation]:
        """What to do in the store with the next exchange.  ``now``: monotonic seconds."""

    def told(self, now: float) -> Any:
        """What to tell the others with it; None: nothing."""

    def heard(self, node: str, told: Any, now: float) -> None:
        """Another process has told this.  Raises ValueError for what can't be read."""

    def exchanged(self, now: float) -> None:
        """The store has answered."""

    def lost(self, now: float) -> None:
        """The store does not answer.  Called each time that it was tried."""

    def emptied(self, now: float) -> None:
        """The store answers, and has lost what it had; the answers to the last operations follow.

        Called up to twice for one loss.
        """

    def is_untold(self) -> bool:
        """Whether shares have still to be told to a store that has lost what it had."""

    def gone(self, node: str) -> None:
        """Another process has left, or has not been heard of for a time."""

    def farewell(self) -> Iterable[Command]:
        """What to do in the store at the end."""


class SilentPart:
    """A part that does nothing in most cases."""

    name = ""
    has_events = False

    def operations(self, now: float) -> Iterable[Operation]:  # noqa: ARG002
        """See :class:`Part`, as for the methods below."""
        return ()

    def told(self, now: float) -> Any:  # noqa: ARG002
        return None

    def heard(self, node: str, told: Any, now: float) -> None: ...

    def exchanged(self, now: float) -> None: ...

    def lost(self, now: float) -> None: ...

    def emptied(self, now: float) -> None: ...

    def is_untold(self) -> bool:
        return False

    def gone(self, node: str) -> None: ...

    def farewell(self) -> Iterable[Command]:
        return ()
