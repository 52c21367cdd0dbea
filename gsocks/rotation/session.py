"""Sessions: requests of one name that keep one exit.

Which exit a session has is worked out and not handed out, by rendezvous hashing (Thaler and
Ravishankar, 1998): each exit draws a number from the session's name and its own, and the one with
the highest has the session.  So processes and machines with the same list of exits agree without
talking, and when an exit comes or goes, only the sessions move that it gains or has had.

What is remembered is what can't be worked out: that a session had to leave its exit, and how long
it has lasted.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from gsocks.wish import Wish

log = logging.getLogger("gsocks.rotation")

#: the user, or "" where there is none, and the session's name
SessionKey: TypeAlias = tuple[str, str]


class Home(Protocol):
    """What has to be known of an exit that may have sessions."""

    @property
    def name(self) -> str:
        """No other exit has the same."""

    @property
    def weight(self) -> float:
        """How many of the sessions, in proportion to the other exits' weights."""

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def country(self) -> str | None: ...


C = TypeVar("C", bound=Home)


class Seen(NamedTuple):
    """A session, as a listing shows it."""

    key: SessionKey
    #: the exit's name
    exit: str
    #: monotonic seconds of its first and its latest use
    first: float
    last: float


class Sessions:
    """Which exit each session has.

    ``idle``: seconds without a request after which a session is forgotten.  The next one with its
    name begins anew, at the exit that any other process would choose.  ``longest``: seconds after
    its first use after which a session has another exit; a wish may ask for less.
    """

    #: sessions that are remembered; the one that was silent longest is forgotten
    MAX_SESSIONS = 100_000

    def __init__(self, *, idle: float = 600.0, longest: float = 86400.0) -> None:
        self.idle = idle
        self.longest = longest
        # in the order of their latest use
        self._sessions: OrderedDict[SessionKey, _Session] = OrderedDict()

    def choose(
        self, key: SessionKey, wish: Wish, members: Sequence[C], available: Sequence[C], now: float
    ) -> C:
        """The exit that the session has.

        ``members``: all exits that fulfil ``wish``, of which there is at least one;
        ``available``: those of them that may be asked now.  A session whose exit may not moves to
        one with the same tags and country.  Where there is none, it stays, and fails as its exit
        does: then what is returned is not available.  ``now`` is in monotonic seconds.
        """
        self._forget_idle(now)
        session = self._use(key, now)
        if now - session.first >= self._lifetime(wish):
            session.begin_again(now, "it has lasted long enough")
        last = session.exit
        chosen = self._home(key, session, wish, members, available)
        if last not in (None, chosen.name):
            why = session.to_move or _reason(last, members)
            log.info("session %s: from %s to %s, %s", _shown(key), last, chosen.name, why)
        session.settle(chosen)
        return chosen

    def asked(self, key: SessionKey) -> str | None:
        """The name of the exit that was chosen for the session last, whether it has served or not.

        None if there was none, or if it is to have another one.
        """
        session = self._sessions.get(key)
        return None if session is None or session.to_move else session.exit

    def kept(self, key: SessionKey, wish: Wish, now: float) -> str | None:
        """The name of the exit that has served the session and that it keeps while it can.

        None if none has yet, or if it is to have another one.
        """
        self._forget_idle(now)
        session = self._sessions.get(key)
        if session is None or not session.is_served or session.to_move:
            return None
        return session.exit if now - session.first < self._lifetime(wish) else None

    def served(self, key: SessionKey) -> None:
        """The exit that was chosen for the session has connected it, so that it stays there."""
        session = self._sessions.get(key)
        if session is not None:
            session.is_served = session.is_bound = True

    def exit_of(self, key: SessionKey, now: float) -> str | None:
        """The name of the exit that the session has; None if it is not known."""
        self._forget_idle(now)
        session = self._sessions.get(key)
        return None if session is None else session.exit

    def rotate(self, key: SessionKey, now: float) -> None:
        """Give the session another exit at its next request, if there is one."""
        self._forget_idle(now)
        self._use(key, now).begin_again(now, "another one was asked for")

    def passed_on(self, key: SessionKey) -> str:
        """The session's name towards an exit that has sessions of its own behind it.

        Another one each time that it begins again: there it is to have another exit as well.
        """
        session = self._sessions.get(key)
        if session is None or not session.generation:
            return key[1]
        return f"{key[1]}/{session.generation}"  # which no session has in its name

    def listing(self, now: float) -> Iterator[Seen]:
        """The sessions that have an exit at present, those first that were silent longest."""
        self._forget_idle(now)
        for key, session in self._sessions.items():
            if session.exit is not None:
                yield Seen(key, session.exit, session.first, session.last)

    def __len__(self) -> int:
        return len(self._sessions)

    def _lifetime(self, wish: Wish) -> float:
        return self.longest if wish.lifetime is None else min(wish.lifetime, self.longest)

    def _use(self, key: SessionKey, now: float) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = _Session(now)
            if len(self._sessions) > self.MAX_SESSIONS:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(key)
        session.last = now
        return session

    def _forget_idle(self, now: float) -> None:
        while self._sessions:
            key, session = next(iter(self._sessions.items()))
            if now - session.last < self.idle:
                return
            del self._sessions[key]

    def _home(
        self,
        key: SessionKey,
        session: _Session,
        wish: Wish,
        members: Sequence[C],
        available: Sequence[C],
    ) -> C:
        generation = session.generation
        if session.to_move:
            last = session.exit
            if last is None:  # rotated before it was known here; others may have it there
                last = winner(key, generation - 1, available or members).name
            others = [each for each in available if each.name != last]
            return winner(key, generation, others or available or members)
        if session.exit is None:
            return winner(key, generation, available or members)
        kept = _named(session.exit, available)
        if kept is not None:
            return kept
        if not session.is_bound:  # it has not been seen anywhere
            return winner(key, generation, available or members)
        alike = [each for each in available if session.fits(each, wish)]
        if alike:
            return winner(key, generation, alike)
        return _named(session.exit, members) or winner(key, generation, available or members)


class _Session:
    """What is remembered of one session."""

    __slots__ = (
        "country",
        "exit",
        "first",
        "generation",
        "is_bound",
        "is_served",
        "last",
        "tags",
        "to_move",
    )

    def __init__(self, now: float) -> None:
        #: the exit's name; None before the first request
        self.exit: str | None = None
        #: whether that exit has connected it, and whether any one has
        self.is_served = self.is_bound = False
        #: the exit's own, for one that takes its place
        self.tags: tuple[str, ...] = ()
        self.country: str | None = None
        self.first = self.last = now
        #: how often it has begun again; each time another exit wins
        self.generation = 0
        #: why its next exit is another one; empty if it isn't
        self.to_move = ""

    def begin_again(self, now: float, why: str) -> None:
        self.first = now
        self.generation += 1
        self.to_move = why

    def settle(self, home: Home) -> None:
        self.is_served = self.is_served and self.exit == home.name
        self.exit, self.tags, self.country = home.name, home.tags, home.country
        self.to_move = ""

    def fits(self, home: Home, wish: Wish) -> bool:
        # where a country is wished for, all serve that one, whatever other ones they serve
        there = wish.country is not None or home.country == self.country
        return there and set(home.tags) == set(self.tags)


def winner(key: SessionKey, generation: int, exits: Sequence[C]) -> C:
    """The exit among ``exits`` that draws the highest number: the same one in every process.

    Weighted as Schindelhauer and Schomaker do it (2005): an exit's share of all sessions is that
    of its weight, and a change of one weight moves no session between two others.
    """
    session = blake2b(digest_size=8)
    for part in (*key, str(generation)):
        raw = part.encode("utf-8", "surrogatepass")
        session.update(len(raw).to_bytes(4, "big") + raw)

    def drawn(each: C) -> float:
        lot = session.copy()
        lot.update(each.name.encode())
        # the middle of one of 2**52 steps from 0 to 1, which is exact, and neither 0 nor 1
        chance = ((int.from_bytes(lot.digest(), "big") >> 12) + 0.5) / 2**52
        return -each.weight / math.log(chance)

    return max(exits, key=drawn)


def _named(name: str, exits: Sequence[C]) -> C | None:
    return next((each for each in exits if each.name == name), None)


def _reason(last: str | None, members: Sequence[Home]) -> str:
    """Why a session had to leave its exit."""
    if any(each.name == last for each in members):
        return "which can't be used now"
    return "which is no more, or not what is asked for now"


def _shown(key: SessionKey) -> str:
    user, session = key
    return f"{session} of {user}" if user else session
