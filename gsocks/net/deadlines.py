"""One timer for all that may last for the same time.

What began first is due first: so a dict in the order of the beginnings is a queue, from which most
leave long before their time, and only the one at its head needs a timer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import gevent

#: how many are told in one turn of the loop
_AT_ONCE = 50


T = TypeVar("T")


class DeadlineQueue(Generic[T]):
    """Finds what was added ``seconds`` ago and not discarded since; a subclass says whom to tell.

    It belongs to the hub in which it is used.
    """

    __slots__ = ("_began", "_timer", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        #: what is under way, in the order of its beginning, and when it began
        self._began: dict[T, float] = {}
        #: for the one at the head, or for one before it
        self._timer: Any = None

    def __len__(self) -> int:
        """How much is under way."""
        return len(self._began)

    def __contains__(self, one: T) -> bool:
        """Whether it is under way."""
        return one in self._began

    def __iter__(self) -> Iterator[T]:
        """What is under way, what began first first."""
        return iter(self._began)

    def add(self, one: T, now: float) -> None:
        """It begins ``now``, in monotonic seconds."""
        self._began[one] = now
        if self._timer is None:
            # from ``now``: what began before another one of as many seconds is told before it
            self._start_timer(max(0.0, now + self.seconds - time.monotonic()))

    def discard(self, one: T) -> bool:
        """It has ended; False if it had before, or was told."""
        return self._began.pop(one, None) is not None

    def _tell(self, one: T) -> None:
        """Its time is over, and it is under way no more.  Runs in the hub: it must not block."""
        raise NotImplementedError

    def _start_timer(self, seconds: float) -> None:
        # ref=False: a program may end although this timer runs
        self._timer = gevent.get_hub().loop.timer(seconds, ref=False)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        self._timer.close()
        self._timer = None
        try:
            for _ in range(_AT_ONCE):
                one, began = next(iter(self._began.items()), (None, 0.0))
                if one is None or began + self.seconds > time.monotonic():
                    break
                del self._began[one]
                self._tell(one)
        finally:  # also behind a fault of gsocks, for which the others must not wait for ever
            oldest = next(iter(self._began.values()), None)
            if oldest is not None and self._timer is None:
                self._start_timer(max(0.0, oldest + self.seconds - time.monotonic()))


class Expires(Protocol):
    """What may last for so long only."""

    def expired(self) -> None:
        """It has lasted too long.  Runs in the hub, where nothing may block."""


class Deadlines(DeadlineQueue[Expires]):
    """Tells what was added ``seconds`` ago, and not discarded since, that its time is over."""

    __slots__ = ()

    def _tell(self, one: Expires) -> None:
        one.expired()
