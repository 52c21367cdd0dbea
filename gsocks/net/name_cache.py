"""What is known of names, with a share for each client.

A client may ask for any number of names that exist (a wildcard is enough).  With one order for all,
its names would evict those of the others, which would have to be looked up again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class NameCache(Generic[T]):
    """At most ``capacity`` names, of which one client has put in a quarter at most.

    When it is full, or the client's share is, the least recently used name goes: of all, or of that
    client.
    """

    __slots__ = ("_capacity", "_entries", "_of_owner")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        #: each name's value and owner, the least recently used one first
        self._entries: OrderedDict[str, tuple[T, Hashable]] = OrderedDict()
        #: the names of each owner, in the same order
        self._of_owner: dict[Hashable, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> T | None:
        """What is known of ``name``, which counts as a use."""
        found = self._entries.get(name)
        if found is None:
            return None
        self._entries.move_to_end(name)
        self._of_owner[found[1]].move_to_end(name)
        return found[0]

    def put(self, name: str, value: T, owner: Hashable) -> None:
        """Know ``value`` of ``name``, which the client ``owner`` has asked for."""
        self._discard(name)
        names = self._of_owner.setdefault(owner, OrderedDict())
        if len(names) >= max(1, self._capacity // 4):
            self._discard(next(iter(names)))
        elif len(self._entries) >= self._capacity:
            self._discard(next(iter(self._entries)))
        self._entries[name] = value, owner
        self._of_owner.setdefault(owner, names)[name] = None

    def clear(self) -> None:
        """Know nothing any more."""
        self._entries.clear()
        self._of_owner.clear()

    def _discard(self, name: str) -> None:
        found = self._entries.pop(name, None)
        if found is None:
            return
        names = self._of_owner[found[1]]
        del names[name]
        if not names:
            del self._of_owner[found[1]]
