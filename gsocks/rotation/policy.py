"""The policies: which of the exits that could serve a request is asked to.

Each is a class with one method, which is given the candidates in their fixed order and returns
one.  It opens nothing and reads no clock: the time is handed in, and so is the source of chance.

The weight of an exit counts where a policy says so.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from random import Random
from typing import Protocol, TypeVar, cast

from gsocks.errors import ConfigError
from gsocks.wording import did_you_mean


class DecayedAverage:
    """An average in which the latest counts most, and which fades.

    With no news it falls towards 0: an exit that once was slow becomes worth another try.
    """

    #: seconds in which what is known loses half of its weight
    HALF_LIFE = 30.0
    #: what one more value weighs at least, however soon it comes; that of RFC 6298 section 2
    LEAST_GAIN = 1 / 8

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = -math.inf

    def add(self, value: float, now: float) -> None:
        """Take ``value`` in, at monotonic ``now``."""
        gain = max(1 - self._kept(now), self.LEAST_GAIN)
        self._value += gain * (value - self._value)
        self._at = now

    def at(self, now: float) -> float:
        """What is left of the average; 0 if there never was one."""
        return self._kept(now) * self._value

    def _kept(self, now: float) -> float:
        return float(0.5 ** ((now - self._at) / self.HALF_LIFE))


class Candidate:
    """What the policies know of one exit."""

    __slots__ = ("connect_time", "credit", "number", "open", "turn", "weight")

    def __init__(self, number: int, weight: float = 1.0) -> None:
        #: its place in the order of all exits, of which the candidates may be a part
        self.number = number
        #: how much of the traffic, in proportion to the others' weights
        self.weight = weight
        #: connections, those among them that are just being made
        self.open = 0
        #: seconds from the request to the connection
        self.connect_time = DecayedAverage()
        #: the turns that ``weighted`` owes it
        self.credit = 0.0
        #: the number of its last turn with ``round_robin``; 0 if it had none
        self.turn = 0


C = TypeVar("C", bound=Candidate)

_turn = attrgetter("turn")


class Policy(Protocol):
    """How to choose."""

    def choose(self, candidates: Sequence[C], host: str, now: float, /) -> C:
        """One of the candidates, of which there is at least one, for a request to ``host``.

        The candidates stand in the order of their numbers, and a sequence of them is never
        changed once it was handed in; ``now`` is in monotonic seconds.
        """


class RoundRobin:
    """One after the other, in their order: the one whose last turn is the longest ago.

    Not the next one behind the last: where clients of two kinds take turns, some of whom want
    exits of one country, that would give some exits all requests and others none.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._among: Sequence[Candidate] = ()
        self._next: deque[Candidate] = deque()

    def choose(self, candidates: Sequence[C], _host: str, _now: float, /) -> C:
        order = cast("deque[C]", self._next)
        # thousands are the same ones as the last time, and put into order only if they aren't
        if candidates is not self._among:
            order = deque(sorted(candidates, key=_turn))
            self._among, self._next = candidates, cast("deque[Candidate]", order)
        chosen = order[0]
        order.rotate(-1)
        self._turn += 1
        chosen.turn = self._turn
        return chosen


class AtRandom:
    """Any of them, with equal chances."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C], _host: str, _now: float, /) -> C:
        return self._random.choice(candidates)


class Weighted:
    """In turn, each as often as its weight says, and the turns of one spread evenly.

    Smooth weighted round robin, as in nginx: each earns its weight, the richest pays for all.
    The shares are exact over every few turns, which a weighted throw of dice is not.  The
    credit is kept with the candidates.
    """

    def choose(self, candidates: Sequence[C], _host: str, _now: float, /) -> C:
        most = sum(candidate.weight for candidate in candidates)
        for candidate in candidates:
            # What is more is of other times, when there were more candidates, or other weights:
            # some would have all turns until it is spent.
            candidate.credit = max(-most, min(candidate.credit, most)) + candidate.weight
        chosen = max(candidates, key=attrgetter("credit"))
        chosen.credit -= most
        return chosen


class LeastConnections:
    """The one with the fewest open connections for its weight; any one among equals."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C], _host: str, _now: float, /) -> C:
        # with the connection to be made, so that weights count from the first one on
        loads = [(candidate.open + 1) / candidate.weight for candidate in candidates]
        least = min(loads)
        return self._random.choice(
            [each for each, load in zip(candidates, loads, strict=True) if load == least]
        )


class Fastest:
    """The faster one of two, picked at random.

    The fastest of all would get all of the traffic until it is slow; where each choice is of
    two, the slow ones get little, and none is flooded (Mitzenmacher, The Power of Two Choices).
    One that was never tried counts as the fastest; among equals it is the less busy one.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, candidates: Sequence[C], _host: str, now: float, /) -> C:
        if len(candidates) == 1:
            return candidates[0]
        two = self._random.sample(candidates, 2)
        return min(two, key=lambda each: (each.connect_time.at(now), each.open))


class LeastRecent:
    """The one that this host has not seen for the longest time; any one among the unseen."""

    #: pairs of host and exit that are remembered; the oldest is forgotten, and is then unseen
    MAX_PAIRS = 100_000

    def __init__(self, random: Random) -> None:
        self._random = random
        # in the order of their use
        self._seen: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._turn = 0

    def choose(self, candidates: Sequence[C], host: str, _now: float, /) -> C:
        turns = [self._seen.get((host, candidate.number), 0) for candidate in candidates]
        oldest = min(turns)
        chosen = self._random.choice(
            [each for each, turn in zip(candidates, turns, strict=True) if turn == oldest]
        )
        self._turn += 1
        self._seen[host, chosen.number] = self._turn
        self._seen.move_to_end((host, chosen.number))
        if len(self._seen) > self.MAX_PAIRS:
            self._seen.popitem(last=False)
        return chosen


#: by the names that stand in a config under ``rotate``
POLICIES: dict[str, Callable[[Random], Policy]] = {
    "round_robin": lambda _: RoundRobin(),
    "random": AtRandom,
    "weighted": lambda _: Weighted(),
    "least_connections": LeastConnections,
    "fastest": Fastest,
    "least_recent": LeastRecent,
}


def make_policy(name: str, random: Random) -> Policy:
    """The policy of that name.  Raises ConfigError, which lists the known ones."""
    if name not in POLICIES:
        guess = did_you_mean(name, POLICIES)
        raise ConfigError(f"{name!r} is not a policy{guess} (known: {', '.join(POLICIES)})")
    return POLICIES[name](random)
