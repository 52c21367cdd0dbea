"""The rotation policies: which of the exits that may be used serves a request.

A policy makes an :class:`Order` for each set of exits from which requests are served: for any
request, for those of one country, and so on.  An order is kept up to date while exits come and go,
so that a choice costs the same among ten exits and among 100,000.  Nothing here does I/O or reads a
clock: the time and the source of randomness are handed in.

Exits that may be used are added at once.  Those that may not be used any more are left where they
are until a choice comes across them: ``find`` tells then.  So an exit costs nothing for each set
that it belongs to when it is ejected, and little when it returns.

The weight of an exit counts only if a policy says so.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Generic, Protocol, TypeAlias, TypeVar

from gsocks.errors import ConfigError
from gsocks.lru import LruCache
from gsocks.messages import did_you_mean
from gsocks.rotation.indexed import IndexedSet

#: before any time; one object for all exits
_NEVER = -math.inf


class DecayedAverage:
    """A moving average that weighs recent values more, and decays with time.

    Without new values it falls towards 0: an exit that was slow becomes worth another try.
    """

    #: seconds in which the average loses half of its weight
    half_life = 30.0
    #: the smallest weight of a new value, however soon it follows; alpha of RFC 6298 section 2
    min_gain = 1 / 8

    __slots__ = ("_at", "_value", "measured")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = _NEVER
        #: the average of what was measured, without decay; None before the first value
        self.measured: float | None = None

    def add(self, value: float, now: float) -> None:
        """Add ``value``, measured at monotonic ``now``."""
        before = self.measured
        self.measured = value if before is None else before + self.min_gain * (value - before)
        self.penalise(value, now)

    def penalise(self, value: float, now: float) -> None:
        """Add ``value`` at monotonic ``now``, where nothing could be measured."""
        gain = 1.0 - 0.5 ** ((now - self._at) / self.half_life)
        if gain < self.min_gain:
            gain = self.min_gain
        self._value += gain * (value - self._value)
        self._at = now

    def at(self, now: float) -> float:
        """The decayed average; 0 without any value."""
        return float(0.5 ** ((now - self._at) / self.half_life)) * self._value


class Candidate:
    """What a policy knows of one exit."""

    __slots__ = ("connect_time", "open", "slot", "turn", "weight")

    def __init__(self, slot: int, weight: float = 1.0) -> None:
        #: its number, which no other exit has; orders know it by this
        self.slot = slot
        #: its share of the traffic, in proportion to the other exits' weights
        self.weight = weight
        #: open connections, and those that are being made
        self.open = 0
        #: seconds from a request to its connection
        self.connect_time = DecayedAverage()
        #: the number of its last turn with ``round_robin``; 0 if it had none
        self.turn = 0


C = TypeVar("C", bound=Candidate)

#: the candidate of a slot; None if it may not be used, and its slot may be forgotten
Find: TypeAlias = Callable[[int], C | None]

#: whether this request may use a candidate that others may use
Allows: TypeAlias = Callable[[C], bool]


class Order(Protocol[C]):
    """A set of candidates, from which one policy chooses."""

    def add(self, candidate: C, /) -> None:
        """It may be used; nothing changes if that was known."""

    def choose(self, host: str, now: float, allows: Allows[C] | None = None, /) -> C | None:
        """The one that serves a request to ``host``; None if none is left.

        ``allows`` None: the request may use any.  ``now`` is in monotonic seconds.
        """

    def moved(self, candidate: C, before: int, /) -> None:
        """The number of its open connections was ``before``, and is another one now."""


class Policy(Protocol):
    """Makes orders."""

    #: whether its orders must be told of each connection that is opened or closed
    follows_open: bool

    def order(self, find: Find[C], /) -> Order[C]:
        """A new order, without candidates yet."""

    def served_by(self, only: Candidate, host: str, /) -> None:
        """A request to ``host`` is served by ``only``, as there is no other one to choose."""


#: of an entry in a heap: its lower half is the slot, and what it is sorted by stands above that.
#: One number takes a third of the memory of a tuple
_SLOT_BITS = 32
_SLOT = (1 << _SLOT_BITS) - 1

#: candidates whose turns in other orders a choice takes note of
_MAX_OVERTAKEN = 128


class RoundRobin:
    """One after the other, in their order: the one whose last turn is the longest ago.

    Not the one behind the last in the list: if requests for any exit alternate with requests for
    exits of one country, that would give some exits all requests and others none.
    """

    follows_open = False

    def __init__(self) -> None:
        self._turn = 0

    def order(self, find: Find[C], /) -> Order[C]:
        return _ByTurn(find, self._next)

    def served_by(self, only: Candidate, _host: str, /) -> None:
        """It has its turn."""
        self._turn += 1
        only.turn = self._turn

    def _next(self) -> int:
        self._turn += 1
        return self._turn


class _ByTurn(Generic[C]):
    """The one whose last turn is the longest ago, in whatever order it had that."""

    def __init__(self, find: Find[C], next_turn: Callable[[], int]) -> None:
        self._find = find
        self._next = next_turn
        #: by the turn that each had when it was last looked at: its last one is no earlier
        self._heap: list[int] = []
        self._known: set[int] = set()

    def add(self, candidate: C, /) -> None:
        if candidate.slot not in self._known:
            self._known.add(candidate.slot)
            heapq.heappush(self._heap, candidate.turn << _SLOT_BITS | candidate.slot)

    def choose(self, _host: str, _now: float, allows: Allows[C] | None = None, /) -> C | None:
        heap, chosen, overtaken = self._heap, None, 0
        refused: list[C] = []
        while heap:
            slot = heap[0] & _SLOT
            candidate = self._find(slot)
            if candidate is None:
                heapq.heappop(heap)
                self._known.discard(slot)
            elif candidate.turn > heap[0] >> _SLOT_BITS and overtaken < _MAX_OVERTAKEN:
                heapq.heapreplace(heap, candidate.turn << _SLOT_BITS | slot)
                overtaken += 1
            elif allows is not None and not allows(candidate):
                heapq.heappop(heap)
                refused.append(candidate)
            else:
                chosen = candidate
                chosen.turn = self._next()
                heapq.heapreplace(heap, chosen.turn << _SLOT_BITS | slot)
                break
        # They lose this turn: were they first again, each request would pass over all of them.
        for each in refused:
            each.turn = self._next()
            heapq.heappush(heap, each.turn << _SLOT_BITS | each.slot)
        return chosen

    def moved(self, candidate: C, before: int, /) -> None:
        """Nothing depends on it."""


class Weighted:
    """In turn, each as often as its weight says, with the turns of one exit spread evenly.

    Each has its next turn when a clock has gone on by 1/weight, and the one whose turn comes first
    is chosen (earliest deadline first, as in Envoy).  The shares are exact over every few turns,
    which those of a weighted random choice are not.  Each order has a clock of its own, so that
    they are exact among the exits of one country as well.
    """

    follows_open = False

    def order(self, find: Find[C], /) -> Order[C]:
        return _ByDeadline(find)

    def served_by(self, only: Candidate, _host: str, /) -> None:
        """It has all turns, whatever its clock says."""


#: the clock goes on by so much in the turns of a weight of 1
_ROUND = 1 << 48

#: what is left of multiples of the golden ratio is spread evenly, however many there are
_GOLDEN = (5**0.5 - 1) / 2


class _ByDeadline(Generic[C]):
    """The one whose next turn is the first; a turn that is missed is not made up for."""

    def __init__(self, find: Find[C]) -> None:
        self._find = find
        self._heap: list[int] = []
        self._known: set[int] = set()
        self._clock = 0

    def add(self, candidate: C, /) -> None:
        if candidate.slot not in self._known:
            self._known.add(candidate.slot)
            # somewhere in its first interval, or those of one weight would come in a burst
            phase = (candidate.slot + 1) * _GOLDEN % 1.0
            heapq.heappush(self._heap, self._entry(candidate, self._clock, phase))

    def choose(self, _host: str, _now: float, allows: Allows[C] | None = None, /) -> C | None:
        heap, chosen = self._heap, None
        refused: list[int] = []
        while heap:
            slot, deadline = heap[0] & _SLOT, heap[0] >> _SLOT_BITS
            candidate = self._find(slot)
            if candidate is None:
                heapq.heappop(heap)
                self._known.discard(slot)
                continue
            after = self._entry(candidate, deadline)
            if allows is not None and not allows(candidate):
                heapq.heappop(heap)
                refused.append(after)
                continue
            chosen, self._clock = candidate, deadline
            heapq.heapreplace(heap, after)
            break
        for entry in refused:
            heapq.heappush(heap, entry)
        return chosen

    def moved(self, candidate: C, before: int, /) -> None:
        """Nothing depends on it."""

    def _entry(self, candidate: C, clock: int, intervals: float = 1.0) -> int:
        deadline = clock + max(1, round(_ROUND / candidate.weight * intervals))
        return deadline << _SLOT_BITS | candidate.slot


class AtRandom:
    """Any of them, with equal chances."""

    follows_open = False

    def __init__(self, random: Random) -> None:
        self._random = random

    def order(self, find: Find[C], /) -> Order[C]:
        return _Drawn(find, self._random)

    def served_by(self, only: Candidate, _host: str, /) -> None:
        """Nothing is drawn."""


class _Drawn(Generic[C]):
    """A random one."""

    def __init__(self, find: Find[C], random: Random) -> None:
        self._find = find
        self._random = random
        self._slots = IndexedSet()

    def add(self, candidate: C, /) -> None:
        self._slots.add(candidate.slot)

    def choose(self, _host: str, _now: float, allows: Allows[C] | None = None, /) -> C | None:
        drawn = self.some(1, allows)
        return drawn[0] if drawn else None

    def some(self, count: int, allows: Allows[C] | None = None) -> list[C]:
        """So many of them in random order, or all."""
        return some(self._slots, count, self._find, self._random, allows)

    def moved(self, candidate: C, before: int, /) -> None:
        """Nothing depends on it."""


def some(
    slots: IndexedSet, count: int, find: Find[C], random: Random, allows: Allows[C] | None = None
) -> list[C]:
    """So many candidates of ``slots`` in random order, or all; forgets those that are none."""
    found: list[C] = []
    for slot in slots.draws(random):
        candidate = find(slot)
        if candidate is None:
            slots.discard(slot)
        elif allows is None or allows(candidate):
            found.append(candidate)
            if len(found) == count:
                break
    return found


class Fastest:
    """The faster of two exits that are picked at random.

    The fastest of all would get all of the traffic until it is slow; by choosing from two, slow
    exits get little, and none is overloaded (Mitzenmacher, The Power of Two Choices).  An exit
    without a measurement counts as the fastest; among equals the one with fewer connections wins.
    """

    follows_open = False

    def __init__(self, random: Random) -> None:
        self._random = random

    def order(self, find: Find[C], /) -> Order[C]:
        return _FasterOfTwo(find, self._random)

    def served_by(self, only: Candidate, _host: str, /) -> None:
        """It is the fastest."""


class _FasterOfTwo(_Drawn[C]):
    def choose(self, _host: str, now: float, allows: Allows[C] | None = None, /) -> C | None:
        two = self.some(2, allows)
        return min(two, key=lambda each: (each.connect_time.at(now), each.open), default=None)


class LeastConnections:
    """The one with the fewest open connections for its weight; a random one among equals."""

    follows_open = True

    def __init__(self, random: Random) -> None:
        self._random = random

    def order(self, find: Find[C], /) -> Order[C]:
        return _ByLoad(find, self._random)

    def served_by(self, only: Candidate, _host: str, /) -> None:
        """Its connections are counted elsewhere."""


class _ByLoad(Generic[C]):
    """Those of one load together."""

    def __init__(self, find: Find[C], random: Random) -> None:
        self._find = find
        self._random = random
        self._levels: dict[float, IndexedSet] = {}
        #: a heap of the loads in ``_levels``
        self._loads: list[float] = []

    def add(self, candidate: C, /) -> None:
        load = _load(candidate, candidate.open)
        level = self._levels.get(load)
        if level is None:
            level = self._levels[load] = IndexedSet()
            heapq.heappush(self._loads, load)
        level.add(candidate.slot)

    def choose(self, _host: str, _now: float, allows: Allows[C] | None = None, /) -> C | None:
        loads = self._loads
        while loads and not self._levels[loads[0]]:
            del self._levels[heapq.heappop(loads)]
        # nearly always of the first level
        for load in loads[:1]:
            found = self._of(load, allows)
            if found is not None:
                return found
        for load in sorted(loads[1:]):
            found = self._of(load, allows)
            if found is not None:
                return found
        return None

    def moved(self, candidate: C, before: int, /) -> None:
        level = self._levels.get(_load(candidate, before))
        if level is not None and level.discard(candidate.slot):
            self.add(candidate)

    def _of(self, load: float, allows: Allows[C] | None) -> C | None:
        found = some(self._levels[load], 1, self._find, self._random, allows)
        return found[0] if found else None


def _load(candidate: Candidate, open_now: int) -> float:
    # with the new connection, so that weights count from the first one on
    return (open_now + 1) / candidate.weight


class LeastRecent:
    """The least recent one for the requested host; a random one among those never used for it.

    Exact among the first 64 exits.  Of more exits, a host sees nearly every one before it sees one
    again: as soon as it has seen 19 of 20, one in 25 requests goes to the least recent one instead.
    """

    follows_open = False

    #: pairs of host and exit that are remembered; a forgotten one counts as never used
    max_pairs = 100_000

    def __init__(self, random: Random) -> None:
        self._random = random
        # the number of the turn in which an exit has last had a request for a host
        self._turns: LruCache[tuple[str, int], int] = LruCache(self.max_pairs)
        #: the exits of each host, the least recent first
        self._by_host: dict[str, OrderedDict[int, None]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._turns)

    def order(self, find: Find[C], /) -> Order[C]:
        return _ByHost(find, self._random, self)

    def served_by(self, only: Candidate, host: str, /) -> None:
        """The host has seen it."""
        self.take_turn(host, only.slot)

    def turn_of(self, host: str, slot: int) -> int:
        """The number of its last turn for ``host``; 0 if it had none."""
        return self._turns.peek((host, slot)) or 0

    def seen(self, host: str) -> OrderedDict[int, None]:
        """The slots of those that ``host`` has seen, the least recent first."""
        return self._by_host.get(host) or OrderedDict()

    def take_turn(self, host: str, slot: int) -> None:
        """It has a turn for ``host``."""
        self._turn += 1
        forgotten = self._turns.put((host, slot), self._turn)
        slots = self._by_host.setdefault(host, OrderedDict())
        slots[slot] = None
        slots.move_to_end(slot)
        if forgotten is not None:
            self._forget(*forgotten)

    def _forget(self, host: str, slot: int) -> None:
        slots = self._by_host[host]
        del slots[slot]
        if not slots:
            del self._by_host[host]


class _ByHost(_Drawn[C]):
    #: that are looked at for one that the host has not seen
    looks = 64

    def __init__(self, find: Find[C], random: Random, record: LeastRecent) -> None:
        super().__init__(find, random)
        self._record = record

    def choose(self, host: str, _now: float, allows: Allows[C] | None = None, /) -> C | None:
        looked: list[C] = []
        chosen = None
        for slot in self._slots.draws(self._random):
            candidate = self._find(slot)
            if candidate is None:
                self._slots.discard(slot)
            elif allows is None or allows(candidate):
                if not self._record.turn_of(host, slot):
                    chosen = candidate
                    break
                looked.append(candidate)
                if len(looked) == self.looks:
                    looked += self._oldest(host, allows)
                    break
        if chosen is None and looked:
            chosen = min(looked, key=lambda each: self._record.turn_of(host, each.slot))
        if chosen is not None:
            self._record.take_turn(host, chosen.slot)
        return chosen

    def _oldest(self, host: str, allows: Allows[C] | None) -> list[C]:
        """The least recent one of the host, if it is not far to look for."""
        for slot in islice(self._record.seen(host), self.looks):
            candidate = self._find(slot) if slot in self._slots else None
            if candidate is not None and (allows is None or allows(candidate)):
                return [candidate]
        return []


#: by their names under ``rotate`` in a config
POLICIES: dict[str, Callable[[Random], Policy]] = {
    "round_robin": lambda _: RoundRobin(),
    "random": AtRandom,
    "weighted": lambda _: Weighted(),
    "least_connections": LeastConnections,
    "fastest": Fastest,
    "least_recent": LeastRecent,
}


def make_policy(name: str, random: Random) -> Policy:
    """The policy of that name.  Raises ConfigError, which lists the known names."""
    if name not in POLICIES:
        guess = did_you_mean(name, POLICIES)
        raise ConfigError(f"{name!r} is not a policy{guess} (known: {', '.join(POLICIES)})")
    return POLICIES[name](random)
