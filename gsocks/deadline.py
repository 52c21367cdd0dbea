"""A call that is abandoned when it takes too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

_T = TypeVar("_T")
_OnTimeout = TypeVar("_OnTimeout")


class _TimedOut(BaseException):
    """Thrown into the waiting greenlet when its time is up; caught by the call that set it."""


def call_within(seconds: float, error: Exception, function: Callable[..., _T], *args: object) -> _T:
    """Returns what ``function`` returns; raises ``error`` in it once that takes longer.

    Does what a block with a gevent.Timeout does at a third of its CPU time.
    """
    timer = gevent.get_hub().loop.timer(seconds)
    timer.start(gevent.getcurrent().throw, error, update=True)
    try:
        return function(*args)
    finally:
        timer.close()


def call_with_timeout(
    seconds: float,
    function: Callable[..., _T],
    *args: object,
    on_timeout: _OnTimeout,
) -> _T | _OnTimeout:
    """Returns what ``function`` returns, or ``on_timeout`` if that takes longer than ``seconds``.

    Does what gevent.with_timeout does at a third of its CPU time, which each connection would pay
    five times.
    """
    timer = gevent.get_hub().loop.timer(seconds)
    timed_out = _TimedOut()
    timer.start(gevent.getcurrent().throw, timed_out, update=True)
    try:
        return function(*args)
    except _TimedOut as raised:
        if raised is not timed_out:  # the shorter bound of an outer call
            raise
        return on_timeout
    finally:
        timer.close()
