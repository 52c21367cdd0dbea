"""Work in turns with everything else that runs in this thread's loop.

A turn is what the event loop does between two polls: every socket that is ready, every timer and
every greenlet that was woken.  A loop over 100,000 objects would make a turn of tenths of a second,
and a peer that is always ready one without an end, in which no other client would be served and no
timer or signal heard.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import gevent

from gsocks.per_hub import PerHub

T = TypeVar("T")

#: seconds of a turn after which what goes on and on has to wait for the next one.  A request of
#: another client takes half a dozen turns, and a turn's poll 30 us.
LONGEST_TURN = 0.001


class TurnClock:
    """When the present turn of a hub's loop began; there is one for each hub."""

    __slots__ = ("_check", "began", "wake")

    def __init__(self) -> None:
        #: seconds of :func:`time.perf_counter`
        self.began = time.perf_counter()
        #: called once, when the next turn begins
        self.wake: Callable[[], object] | None = None
        hub = gevent.get_hub()
        # it is called once after each poll, before everything that the poll has found
        highest = hub.loop.MAXPRI  # type: ignore[attr-defined] # missing in its stubs
        self._check = hub.loop.check(ref=False, priority=highest)
        self._check.start(self._begin)

    def _begin(self) -> None:
        self.began = time.perf_counter()
        if self.wake is not None:
            wake, self.wake = self.wake, None
            wake()


#: the turn clock of this thread's hub
clock_of_this_hub = PerHub("turn_clock", TurnClock).get


def turn_is_over() -> bool:
    """True if this turn has lasted for ``LONGEST_TURN``.

    For what the hub runs, which cannot wait: it goes on in a callback of the next turn.
    """
    return time.perf_counter() - clock_of_this_hub().began > LONGEST_TURN


class MustWait(Exception):
    """Work that the hub has begun would last for longer than a turn: a greenlet has to do it."""


def give_way(at_once: bool = False) -> None:
    """Let everything else run first if this turn has lasted for ``LONGEST_TURN``, or ``at_once``.

    For greenlets, between the steps of a loop that could go on without ever waiting: over many
    objects, or over what a peer sends faster than it is read.  A step should take microseconds.
    What is gone over may change meanwhile.

    The time counts for all greenlets together: however many of them find work without end, a turn
    lasts no longer than ``LONGEST_TURN`` and one step of each.

    Raises MustWait in the hub.
    """
    if at_once or turn_is_over():
        if gevent.getcurrent() is gevent.get_hub():
            raise MustWait
        # Not sleep(0): the loop would go on with callbacks alone, up to 1000 of them, before it
        # looks at its sockets again.
        gevent.sleep(1e-6)


def in_turns(items: Iterable[T], at_once: int = 16) -> Iterator[T]:
    """The items, of which others wait for no more than ``at_once``; see :func:`give_way`."""
    left = iter(items)
    while part := tuple(islice(left, at_once)):
        yield from part
        give_way()


#: objects that are made at once, from which on no collection looks at them again; it takes some
#: 5 ms for so many
MANY_OBJECTS = 50_000


@contextmanager
def without_collection(*, at_start: bool = False) -> Iterator[None]:
    """Have Python's garbage collector leave alone what is made meanwhile, now and later.

    A collection goes through all objects that there are.  After 100,000 exits were made it takes
    half a second, in which nothing else runs.  For a process that is gsocks: what exists by then is
    never looked at again, and so garbage neither.  So it is looked at all the same if few objects
    were made, unless ``at_start``, when there is no garbage yet.
    """
    enabled = gc.isenabled()
    gc.disable()
    before = gc.get_count()[0]
    try:
        yield
    finally:
        if at_start or gc.get_count()[0] - before >= MANY_OBJECTS:
            gc.freeze()
        if enabled:
            gc.enable()
