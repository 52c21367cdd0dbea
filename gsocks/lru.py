"""A bounded mapping that evicts its least recently used entry.

In the package and not from cachetools: half of its users also look at the oldest entry, to drop
what has been idle too long, which cachetools does not offer; and it is smaller than the pin of
another core dependency.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """At most ``capacity`` entries; iteration starts at the least recently used one.

    ``cache[key]``, :meth:`get` and setting an entry are uses.  ``key in cache``, :meth:`peek` and
    iteration are not.
    """

    __slots__ = ("_entries", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # the least recently used entry first
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def items(self) -> Iterator[tuple[K, V]]:
        """The entries, the least recently used one first."""
        return iter(self._entries.items())

    def values(self) -> Iterator[V]:
        """The values alone, in the same order."""
        return iter(self._entries.values())

    def __getitem__(self, key: K) -> V:
        value = self._entries[key]
        self._entries.move_to_end(key)
        return value

    def get(self, key: K) -> V | None:
        """The value of ``key``, which counts as a use; None if there is none."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """The value of ``key`` without using it; None if there is none."""
        return self._entries.get(key)

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def put(self, key: K, value: V) -> K | None:
        """Set an entry; returns the key that was evicted for it, None if none was."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) <= self.capacity:
            return None
        return self._entries.popitem(last=False)[0]

    def __delitem__(self, key: K) -> None:
        del self._entries[key]

    def discard(self, key: K) -> None:
        """Remove an entry, if there is one."""
        self._entries.pop(key, None)

    def oldest(self) -> tuple[K, V] | None:
        """The least recently used entry without using it; None if the cache is empty."""
        return next(iter(self._entries.items()), None)
