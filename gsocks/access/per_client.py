"""What clients hold of something that is bounded, and which client holds most of it.

When the bound is reached, one thing has to go.  If it were the newest, a client that takes all
there is would lock out everyone else; so it is the oldest of the client that holds most (the
"longest queue drop" of routers: Suter, Lakshman, Stiliadis, Choudhury, 1998).  A client then
displaces only itself, as long as it holds most.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
T = TypeVar("T")


class PerClient(Generic[C, T]):
    """Things by the client that holds them; a client is its prefix, or that and its user.

    Every call takes the same time, however many things and clients there are.
    """

    __slots__ = ("_by_count", "_held", "size")

    def __init__(self) -> None:
        #: what each client holds, the oldest first; a dict serves as an ordered set
        self._held: dict[C, dict[T, None]] = {}
        #: the clients that hold so many, first those that have held so many for longest; the
        #: last of these is not empty, unless there is none but that of no things
        self._by_count: list[dict[C, None]] = [{}]
        #: how many things there are
        self.size = 0

    def __len__(self) -> int:
        """How many things there are."""
        return self.size

    def __repr__(self) -> str:
        return f"<PerClient {self.size} of {len(self._held)} clients>"

    def add(self, client: C, thing: T) -> None:
        """``client`` holds ``thing``, which is not held yet."""
        held, by_count = self._held.get(client), self._by_count
        if held is None:
            self._held[client] = {thing: None}
            count = 1
        else:
            count = len(held)
            del by_count[count][client]
            held[thing] = None
            count += 1
        if count == len(by_count):
            by_count.append({client: None})
        else:
            by_count[count][client] = None
        self.size += 1

    def remove(self, client: C, thing: T) -> None:
        """``client`` holds ``thing`` no more.  Raises KeyError if it did not."""
        if not self.discard(client, thing):
            raise KeyError(thing)

    def discard(self, client: C, thing: T) -> bool:
        """``client`` holds ``thing`` no more; False if it did not."""
        held, by_count = self._held.get(client), self._by_count
        if held is None or thing not in held:
            return False
        count = len(held)
        of_count = by_count[count]
        del of_count[client]
        if count == 1:
            del self._held[client]
        else:
            del held[thing]
            by_count[count - 1][client] = None
        if not of_count and count == len(by_count) - 1:
            del by_count[count]
        self.size -= 1
        return True

    def clients(self) -> Iterator[C]:
        """Those that hold something, first the one that has held something for longest."""
        return iter(self._held)

    def count(self, client: C) -> int:
        """How many things ``client`` holds."""
        return len(self._held.get(client, ()))

    def held_by(self, client: C) -> Iterator[T]:
        """What ``client`` holds, the oldest first."""
        return iter(self._held.get(client, ()))

    def held_by_most(self, newcomer: C) -> Iterator[T]:
        """What the client holds that holds most, the oldest first; then that of its equals.

        That is ``newcomer`` alone if it would hold most with one thing more.
        """
        most = len(self._by_count) - 1
        if most and newcomer in self._by_count[most]:
            yield from self._held[newcomer]
            return
        for client in self._by_count[most]:
            yield from self._held[client]
