"""Greenlets that are reused: one that has finished its task takes the next one.

Python maps 16 KiB for the frames of each greenlet, and unmaps them at its end.  So a new
greenlet for each of many short tasks costs 13 us, a reused one 2 us (docs/benchmarks.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import gevent
from greenlet import GreenletExit, greenlet

#: greenlets without a task that are kept; with their 16 KiB each they are 1 MiB
MAX_IDLE = 64


_Task = tuple[Callable[..., object], tuple[object, ...]]


class GreenletPool:
    """Runs tasks in greenlets of the hub that they are given in.

    The hub reports an exception of a task, as it does for any greenlet.
    """

    __slots__ = ("_busy", "_idle", "_max_idle", "_next")

    def __init__(self) -> None:
        self._busy: set[greenlet] = set()
        #: the task that each greenlet is to begin
        self._next: dict[greenlet, _Task] = {}
        self._idle: list[greenlet] = []
        self._max_idle = MAX_IDLE

    def spawn(self, function: Callable[..., object], *args: object) -> None:
        """Have ``function`` called soon, by the event loop."""
        hub = gevent.get_hub()
        one = self._idle.pop() if self._idle else greenlet(self._work, hub)
        self._busy.add(one)
        # not as arguments of its own, which a greenlet holds as long as it lives
        self._next[one] = function, args
        hub.loop.run_callback(one.switch)

    def kill(self) -> None:
        """Have all tasks end soon, by GreenletExit.  Never blocks."""
        for one in self._busy:
            gevent.get_hub().loop.run_callback(self._kill, one)

    def close(self) -> None:
        """End the idle greenlets now, and the others after their task.  Never blocks."""
        self._max_idle = 0
        for one in self._idle:
            gevent.get_hub().loop.run_callback(one.throw)
        self._idle.clear()

    def _kill(self, one: greenlet) -> None:
        if one in self._busy:  # else its task has ended
            one.throw()

    def _work(self) -> None:
        me, hub = gevent.getcurrent(), gevent.get_hub()
        while True:
            function, args = self._next.pop(me)
            try:
                function(*args)
            except GreenletExit:
                return
            except BaseException:  # noqa: BLE001 - reported by the hub, as for a Greenlet
                hub.handle_error(me, *sys.exc_info())
                return
            finally:
                self._busy.discard(me)
            if len(self._idle) >= self._max_idle:
                return
            self._idle.append(me)
            del function, args  # an idle greenlet holds no reference to its last task
            hub.switch()
