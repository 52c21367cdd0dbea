"""A set from which a random element is drawn as quickly as one is added or removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random


class IndexedSet:
    """Numbers, each at most once, in no order."""

    __slots__ = ("_index", "_items")

    def __init__(self, items: Iterable[int] = ()) -> None:
        self._items: list[int] = []
        #: where each stands in the list
        self._index: dict[int, int] = {}
        for item in items:
            self.add(item)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: int) -> bool:
        return item in self._index

    def add(self, item: int) -> None:
        """Add ``item``, unless it is in the set."""
        if item not in self._index:
            self._index[item] = len(self._items)
            self._items.append(item)

    def discard(self, item: int) -> bool:
        """Remove ``item``; returns whether it was in the set."""
        at = self._index.pop(item, None)
        if at is None:
            return False
        last = self._items.pop()
        if last != item:  # the last one takes its place, so that no other has to move
            self._items[at] = last
            self._index[last] = at
        return True

    def draws(self, random: Random) -> Iterator[int]:
        """The elements in random order, drawn one by one: two cost no more in a large set.

        An element may be discarded as soon as it was drawn; nothing else may change meanwhile.
        """
        items, index = self._items, self._index
        left = len(items)
        while left:
            at = int(random.random() * left)
            left -= 1
            drawn, other = items[at], items[left]
            # those that were drawn stand behind the others
            items[at], items[left] = other, drawn
            index[other], index[drawn] = at, left
            yield drawn
            # discarding it has put the last one into its place, which was drawn as well
