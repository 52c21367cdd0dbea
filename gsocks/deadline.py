"""A call that may take only so long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

_T = TypeVar("_T")
_Late = TypeVar("_Late")


class _Over(BaseException):
    """The time is over; thrown into the greenlet that has waited, and known to nobody else."""


def within(seconds: float, late: _Late, function: Callable[..., _T], *args: object) -> _T | _Late:
    """What ``function`` returns, or ``late`` if it takes longer than ``seconds``.

    As gevent.with_timeout, at a third of its price, which every connection would pay five times.
    """
    timer = gevent.get_hub().loop.timer(seconds)
    over = _Over()
    timer.start(gevent.getcurrent().throw, over, update=True)
    try:
        return function(*args)
    except _Over as raised:
        if raised is not over:  # somebody further out has waited for less
            raise
        return late
    finally:
        timer.close()
