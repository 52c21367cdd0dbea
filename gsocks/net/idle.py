"""How long a connection may be silent: one timer for all that may be so for about as long.

A byte costs nothing but a note of its time, and a connection that waits no timer of its own: a
sweep every few seconds finds those whose time is over.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import gevent

from gsocks.per_hub import PerHub

#: seconds between two sweeps at most; a connection may be found idle so much later
LONGEST_PERIOD = 5.0
#: sweeps in the time that one may be silent
LOOKS = 8


class IdleWatched(Protocol):
    """What may be silent for so long."""

    @property
    def last_byte(self) -> float:
        """Monotonic seconds."""

    @property
    def bound(self) -> float:
        """How long it may be silent now, in seconds."""

    def on_idle(self) -> None:
        """It was.  Runs in the hub, where nothing may block."""


class Sweep:
    """Those that are looked at every ``period`` seconds."""

    __slots__ = ("_timer", "_watched", "period")

    def __init__(self, period: float) -> None:
        self.period = period
        self._watched: set[IdleWatched] = set()
        self._timer: Any = None

    def add(self, watched: IdleWatched) -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._timer = gevent.get_hub().loop.timer(self.period, self.period)
            self._timer.start(self._look, update=True)

    def discard(self, watched: IdleWatched) -> None:
        self._watched.discard(watched)
        if not self._watched and self._timer is not None:
            self._timer.close()
            self._timer = None

    def _look(self) -> None:
        now = time.monotonic()
        for one in [each for each in self._watched if now - each.last_byte >= each.bound]:
            if one in self._watched:  # else it has ended together with one before
                one.on_idle()


#: by their period
_sweeps_of_this_hub = PerHub[dict[float, Sweep]]("sweeps", dict).get


class IdleTimer:
    """The watch over one connection, which traffic in either direction puts off."""

    __slots__ = ("_sweep", "_watched")

    def __init__(self, watched: IdleWatched) -> None:
        #: None once it was stopped: the watched object refers to its timer, which would be a cycle
        self._watched: IdleWatched | None = watched
        self._sweep: Sweep | None = None

    def restart(self) -> None:
        """Look at it often enough for its present bound; until :meth:`stop`."""
        watched = self._watched
        if watched is not None:
            self._sweep = sweep_for(watched, self._sweep)

    def stop(self) -> None:
        """Look no more.  Does nothing the second time."""
        watched, self._watched = self._watched, None
        sweep, self._sweep = self._sweep, None
        if sweep is not None and watched is not None:
            sweep.discard(watched)


def sweep_for(watched: IdleWatched, before: Sweep | None) -> Sweep:
    """The sweep that looks at ``watched`` often enough for its present bound, from now on.

    ``before``: the one that has looked at it until now.  What keeps its sweep by itself needs no
    :class:`IdleTimer`, of which there would be one for each connection.
    """
    period = watched.bound / LOOKS
    if period > LONGEST_PERIOD:
        period = LONGEST_PERIOD
    if before is not None:
        if before.period == period:
            return before
        before.discard(watched)
    sweep = _sweep_of(period)
    sweep.add(watched)
    return sweep


def _sweep_of(period: float) -> Sweep:
    sweeps = _sweeps_of_this_hub()
    sweep = sweeps.get(period)
    return sweeps.setdefault(period, Sweep(period)) if sweep is None else sweep
