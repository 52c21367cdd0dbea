"""Hedged requests: a second exit is tried while the first one still keeps a request waiting.

Dean and Barroso, The Tail at Scale (2013).  Both attempts only connect, and no payload is sent by
either, so that whichever is connected first may serve the request.  The other one goes on in the
background for as long as it would have had: what comes of it counts in its exit's health, as it
would have without a hedge, so that a slow exit is not taken for a dead one, nor a dead one for a
slow one.  A connection that it still makes is closed at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.pool import Group

from gsocks.errors import GsocksError
from gsocks.rotation.roster import Member


class Hedge:
    """When a second exit is tried; ``delay``: seconds after the first one."""

    #: attempts that go on although their request is served; more are aborted
    max_late = 256

    def __init__(self, delay: float) -> None:
        self.delay = delay
        #: attempts whose request is served
        self.late = 0
        self._attempts = Group()

    def __repr__(self) -> str:
        return f"<Hedge after {self.delay:g} s, {len(self._attempts)} attempts, {self.late} late>"

    def spawn(self, attempt: Callable[[Member], None], member: Member) -> Any:
        """Run an attempt in a greenlet, which is returned."""
        return self._attempts.spawn(attempt, member)

    def close(self) -> None:
        """Abort what still runs.  Never blocks."""
        self._attempts.kill(block=False)


class Attempt(Protocol):
    """Tries one exit."""

    def __call__(self, member: Member, /) -> Any:
        """What the exit's method returns.  Raises GsocksError."""


class Race:
    """The attempts of one request.  ``late`` is given those that end when it is over."""

    def __init__(
        self, hedge: Hedge, attempt: Attempt, late: Callable[[Member, object], None]
    ) -> None:
        self._hedge = hedge
        self._attempt = attempt
        self._late = late
        self.running: dict[Member, gevent.Greenlet[..., None]] = {}
        self._ended: deque[tuple[Member, Any]] = deque()
        self._news = Event()
        self._is_over = False

    def begin(self, member: Member) -> None:
        """Try an exit."""
        self.running[member] = self._hedge.spawn(self._run, member)

    def next(self, seconds: float | None) -> tuple[Member, Any] | None:
        """The next attempt that ends: its exit, and what that returned or its GsocksError.

        None: none has ended within ``seconds``.
        """
        if not self._ended:
            self._news.clear()
            self._news.wait(seconds)
        return self._ended.popleft() if self._ended else None

    def over(self, *, served: bool) -> None:
        """The request is served, or is given up; what still runs is late, or is aborted."""
        self._is_over = True
        while self._ended:
            self._late(*self._ended.popleft())
        hedge = self._hedge
        for attempt in self.running.values():
            if served and hedge.late < hedge.max_late:
                hedge.late += 1
                attempt.rawlink(self._note_late_end)
            else:
                attempt.kill(block=False)

    def _note_late_end(self, _attempt: object) -> None:
        self._hedge.late -= 1

    def _run(self, member: Member) -> None:
        made: object
        try:
            made = self._attempt(member)
        except GsocksError as error:
            made = error
        finally:
            self.running.pop(member, None)
        if self._is_over:
            self._late(member, made)
        else:
            self._ended.append((member, made))
            self._news.set()
