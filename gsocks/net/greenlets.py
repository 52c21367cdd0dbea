"""Greenlets that are used again: whoever has done its task takes the next one.

Python maps 16 KiB for the frames of each greenlet, and unmaps them at its end.  So a new one for
each of many short tasks costs 13 us, where one that is there already costs 2 (docs/benchmarks.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import gevent
from greenlet import GreenletExit, greenlet

#: greenlets without a task that are kept; with their 16 KiB each they are 1 MiB
MOST_IDLE = 64


_Task = tuple[Callable[..., object], tuple[object, ...]]


class Crew:
    """Runs tasks in greenlets of the hub that they are given in.

    A task that raises is told by the hub, as any greenlet that does.
    """

    __slots__ = ("_at_work", "_idle", "_most_idle", "_next")

    def __init__(self) -> None:
        self._at_work: set[greenlet] = set()
        #: what they are about to begin
        self._next: dict[greenlet, _Task] = {}
        self._idle: list[greenlet] = []
        self._most_idle = MOST_IDLE

    def spawn(self, function: Callable[..., object], *args: object) -> None:
        """Have ``function`` called soon, by the event loop."""
        hub = gevent.get_hub()
        one = self._idle.pop() if self._idle else greenlet(self._work, hub)
        self._at_work.add(one)
        # not as arguments of its own, which a greenlet holds as long as it lives
        self._next[one] = function, args
        hub.loop.run_callback(one.switch)

    def kill(self) -> None:
        """Have all tasks end soon, by GreenletExit.  Never blocks."""
        for one in self._at_work:
            gevent.get_hub().loop.run_callback(self._kill, one)

    def close(self) -> None:
        """Keep no greenlets any more but those that are at work.  Never blocks."""
        self._most_idle = 0
        for one in self._idle:
            gevent.get_hub().loop.run_callback(one.throw)
        self._idle.clear()

    def _kill(self, one: greenlet) -> None:
        if one in self._at_work:  # else its task is over
            one.throw()

    def _work(self) -> None:
        me, hub = gevent.getcurrent(), gevent.get_hub()
        while True:
            function, args = self._next.pop(me)
            try:
                function(*args)
            except GreenletExit:
                return
            except BaseException:  # noqa: BLE001 - told by the hub, as Greenlet has it
                hub.handle_error(me, *sys.exc_info())
                return
            finally:
                self._at_work.discard(me)
            if len(self._idle) >= self._most_idle:
                return
            self._idle.append(me)
            del function, args  # nothing is held for what is over
            hub.switch()
