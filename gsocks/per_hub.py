"""One object for each thread's hub, such as the buffers of all that the hub carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import gevent

T = TypeVar("T")


class PerHub(Generic[T]):
    """What ``make`` returns, called once for each hub, at the first use there.

    The hub itself holds it, so that both end together, and to find it takes half the time of a
    WeakKeyDictionary: a connection does so ten times.  ``name``: unique among all of them.
    """

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._name = f"_gsocks_{name}"
        self._make = make

    def __repr__(self) -> str:
        return f"<PerHub {self._name}>"

    def get(self) -> T:
        """That of this thread's hub."""
        held = gevent.get_hub().__dict__
        try:
            found: T = held[self._name]
        except KeyError:
            found = held[self._name] = self._make()
        return found
