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

    __slots__ = ("capacity", "entries")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        #: the least recently used one first.  To be read only: ``if cache.entries`` takes a tenth
        #: of the time of ``if cache``, and reading a value here is no use of it
        self.entries: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def __iter__(self) -> Iterator[K]:
        return iter(self.entries)

    def items(self) -> Iterator[tuple[K, V]]:
        """The entries, the least recently used one first."""
        return iter(self.entries.items())

    def values(self) -> Iterator[V]:
        """The values alone, in the same order."""
        return iter(self.entries.values())

    def __getitem__(self, key: K) -> V:
        value = self.entries[key]
        self.entries.move_to_end(key)
        return value

    def get(self, key: K) -> V | None:
        """The value of ``key``, which counts as a use; None if there is none."""
        value = self.entries.get(key)
        if value is not None:
            self.entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """The value of ``key`` without using it; None if there is none."""
        return self.entries.get(key)

    def __setitem__(self, key: K, value: V) -> None:
        entries = self.entries
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > self.capacity:
            entries.popitem(last=False)

    def put(self, key: K, value: V) -> K | None:
        """Set an entry; returns the key that was evicted for it, None if none was."""
        self.entries[key] = value
        self.entries.move_to_end(key)
        if len(self.entries) <= self.capacity:
            return None
        return self.entries.popitem(last=False)[0]

    def __delitem__(self, key: K) -> None:
        del self.entries[key]

    def discard(self, key: K) -> None:
        """Remove an entry, if there is one."""
        self.entries.pop(key, None)

    def oldest(self) -> tuple[K, V] | None:
        """The least recently used entry without using it; None if the cache is empty."""
        return next(iter(self.entries.items()), None)
