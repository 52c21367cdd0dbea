"""Consistent hashing of sessions onto many exits, in O(log n).

Every exit has points on a ring of numbers, as many as its weight says.  A session tries a few
numbers on it, and is served by the exit whose point follows one of them most closely: multi-probe
consistent hashing (Appleton and O'Reilly, 2015).  Points and numbers are hashes of names, so
processes with the same exits agree without communication, and an exit that goes or comes moves no
sessions but its own.

The shares are not exact: of exits with equal weights, nearly all have the same share within 20%.
Rendezvous hashing (rotation/session.py) is exact, but goes through all exits.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import chain
from typing import Generic, Protocol, TypeAlias, TypeVar


class Placed(Protocol):
    """An exit with a place on the ring."""

    @property
    def slot(self) -> int:
        """Its number in this process, which no other exit has."""

    @property
    def name(self) -> str:
        """The same in every process."""

    @property
    def weight(self) -> float:
        """Its share, in proportion to the other exits' weights."""


C = TypeVar("C", bound=Placed)

#: the exit of a slot; None if it may not be used, and its slot may be forgotten
Find: TypeAlias = Callable[[int], C | None]

#: whether this session may use an exit that others may use
Allows: TypeAlias = Callable[[C], bool]

#: points of an exit with a weight of 1; more make the shares more alike, and take memory
_POINTS = 2
#: of one exit, however heavy it is
_MAX_POINTS = 200
#: numbers that each session tries
_PROBES = 21
#: points that a session looks at, of exits that it may not use
_MAX_LOOKS = 5000

#: points in one list, on average, when it was made
_POINTS_PER_LIST = 32

_BITS = 64
_WORD = (1 << _BITS) - 1

# of a linear congruential generator (Knuth, MMIX)
_FACTOR = 6364136223846793005
_STEP = 1442695040888963407


class Ring(Generic[C]):
    """The exits of which ``find`` tells by their slots whether they may be used.

    ``unit``: the weight that counts as 1.  As in an order (rotation/policy.py), an exit that may
    not be used any more stays until a session comes across it.
    """

    def __init__(self, find: Find[C], unit: float = 1.0) -> None:
        self._find = find
        self._unit = unit
        #: whether those were added that there were when it was made
        self.filled = False
        #: the slots all of whose points are there
        self._known: set[int] = set()
        self._count = 0
        #: the points by their first bits, each list sorted; beside them the slots of their exits
        self._points = [array("Q")]
        self._slots = [array("I")]
        self._shift = _BITS

    def add(self, candidate: C) -> None:
        """It may be used; nothing changes if that was known."""
        slot = candidate.slot
        if slot in self._known:
            return
        self._known.add(slot)
        for point in self._points_of(candidate):
            points, slots = self._points[point >> self._shift], self._slots[point >> self._shift]
            at = bisect_left(points, point)
            if at < len(points) and points[at] == point:
                slots[at] = slot
            else:
                points.insert(at, point)
                slots.insert(at, slot)
                self._count += 1
        if self._count > 4 * _POINTS_PER_LIST * len(self._points):
            self._resize()

    def winner(self, session: int, allows: Allows[C] | None = None) -> C | None:
        """The exit of a session; None if there is none.  ``session``: a hash, of 64 bits."""
        found = self.closest(session, allows)
        return None if found is None else found[1]

    def closest(self, session: int, allows: Allows[C] | None = None) -> tuple[int, C] | None:
        """The same, with its distance: of the winners of several rings, the closest one wins."""
        if not self._count:
            return None
        probes = []
        lists, shift = self._points, self._shift
        for _ in range(_PROBES):
            session = (session * _FACTOR + _STEP) & _WORD
            # as _next() says, whose call costs as much as the rest
            points = lists[session >> shift]
            index = bisect_left(points, session)
            point = points[index] if index < len(points) else self._next(session)
            probes.append((point - session & _WORD, session))
        # Only the closest has to be looked at, unless it may not be used.
        closest = min(probes)
        for _ in range(_MAX_LOOKS):
            distance, probe = closest
            point = probe + distance & _WORD
            candidate = self._owner(point)
            if candidate is not None and (allows is None or allows(candidate)):
                return distance, candidate
            if not self._count:
                return None
            probes.remove(closest)
            probes.append((self._next(point + 1 & _WORD) - probe & _WORD, probe))
            closest = min(probes)
        return None

    def _next(self, position: int) -> int:
        """The first point from a position on."""
        at = position >> self._shift
        points = self._points[at]
        index = bisect_left(points, position)
        if index < len(points):
            return points[index]
        # behind the last list follows the first one
        return next(points[0] for points in chain(self._points[at + 1 :], self._points) if points)

    def _owner(self, point: int) -> C | None:
        """The exit with that point, which is forgotten if the exit may not be used any more."""
        points, slots = self._points[point >> self._shift], self._slots[point >> self._shift]
        index = bisect_left(points, point)
        if index == len(points) or points[index] != point:
            return None  # another number of the same session has come across it
        candidate = self._find(slots[index])
        if candidate is None:
            self._known.discard(slots[index])
            del points[index], slots[index]
            self._count -= 1
            if self._count < len(self._points):
                self._resize()
        return candidate

    def _resize(self) -> None:
        """Have as many lists as the points need, and no points of exits that are of no use."""
        useful = [
            (point, slot)
            for points, slots in zip(self._points, self._slots, strict=True)
            for point, slot in zip(points, slots, strict=True)
            if self._find(slot) is not None
        ]
        self._known.intersection_update(slot for _, slot in useful)
        self._count = len(useful)
        bits = max(0, (self._count // _POINTS_PER_LIST).bit_length() - 1)
        self._shift = _BITS - bits
        self._points = [array("Q") for _ in range(1 << bits)]
        self._slots = [array("I") for _ in range(1 << bits)]
        for point, slot in useful:  # in their order
            self._points[point >> self._shift].append(point)
            self._slots[point >> self._shift].append(slot)

    def _points_of(self, candidate: C) -> Iterator[int]:
        count = min(max(1, round(_POINTS * candidate.weight / self._unit)), _MAX_POINTS)
        point = int.from_bytes(blake2b(candidate.name.encode(), digest_size=8).digest(), "big")
        for _ in range(count):
            yield point
            point = (point * _FACTOR + _STEP) & _WORD
