"""Sessions: requests with the same session id that keep the same exit.

The exit of a session is computed from its name and those of the exits.  So processes and machines
with the same list of exits agree without communication, and when an exit is added or removed, only
the sessions move that it gains or had.  Among few exits that is weighted rendezvous hashing (Thaler
and Ravishankar, 1998): a hash of the session and of each exit's name gives each exit a number, and
the highest wins.  In a group of many it is a ring (rotation/ring.py), which doesn't go through all
of those that match.

What can't be computed is remembered: that a session had to leave its exit, and how old it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from gsocks.events import note
from gsocks.lru import LruCache
from gsocks.request import ExitSelector
from gsocks.rotation.outbound_address import network_of
from gsocks.settings import SessionSettings

log = logging.getLogger("gsocks.rotation")

#: the user, or "" where there is none, and the session's name
SessionKey: TypeAlias = tuple[str, str]


class SessionExit(Protocol):
    """What sessions need to know of an exit."""

    @property
    def name(self) -> str:
        """Unique among all exits."""

    @property
    def weight(self) -> float:
        """Its share of the sessions, in proportion to the other exits' weights."""

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def country(self) -> str | None: ...

    @property
    def address(self) -> str | None:
        """The address that sites see; None: not known."""


C = TypeVar("C", bound=SessionExit)


class Like(NamedTuple):
    """What an exit has that may replace another one: these tags and no others."""

    tags: tuple[str, ...]
    country: str | None


class SessionExits(Protocol[C]):
    """The exits that match the selector of a request, at least one."""

    def named(self, name: str, /) -> C | None:
        """The exit of that name; None if it doesn't match, or is gone."""

    def is_available(self, exit_: C, /) -> bool:
        """Whether it may be used now."""

    def winner(
        self,
        key: SessionKey,
        generation: int,
        /,
        *,
        like: Like | None = None,
        but: str | None = None,
        away_from: str | None = None,
    ) -> C | None:
        """Of the exits that may be used now, the one that serves a session; None if none may.

        ``like``: it is like this, or has the selected country; ``but``: not the one of that name;
        ``away_from``: not one that leaves from that address.
        """

    def beside(self, address: str, key: SessionKey, generation: int, /) -> C | None:
        """Of the exits that may be used now, one that leaves from that address, or else from its
        network; None if none may."""

    def any_winner(self, key: SessionKey, generation: int, /) -> C:
        """Of all exits, whether they may be used or not."""


class ListedExits(Generic[C]):
    """A few exits, one of which is computed by rendezvous hashing.

    ``members``: all that match ``selector``; ``available``: those that may be used now.
    """

    def __init__(
        self, selector: ExitSelector, members: Sequence[C], available: Sequence[C]
    ) -> None:
        self._selector = selector
        self._members = members
        self._available = available

    def named(self, name: str, /) -> C | None:
        """See :class:`SessionExits`, as for the methods below."""
        return next((each for each in self._members if each.name == name), None)

    def is_available(self, exit_: C, /) -> bool:
        return exit_ in self._available

    def winner(
        self,
        key: SessionKey,
        generation: int,
        /,
        *,
        like: Like | None = None,
        but: str | None = None,
        away_from: str | None = None,
    ) -> C | None:
        fit = [
            each
            for each in self._available
            if each.name != but
            and (like is None or self._is_like(like, each))
            and (away_from is None or each.address != away_from)
        ]
        return winner(key, generation, fit) if fit else None

    def beside(self, address: str, key: SessionKey, generation: int, /) -> C | None:
        known = [each for each in self._available if each.address is not None]
        network = network_of(address)
        fit = [each for each in known if each.address == address] or [
            each for each in known if network_of(each.address or "") == network
        ]
        return winner(key, generation, fit) if fit else None

    def any_winner(self, key: SessionKey, generation: int, /) -> C:
        return winner(key, generation, self._members)

    def _is_like(self, like: Like, other: C) -> bool:
        # if a country is selected, all that match serve it, whatever other ones they serve
        same_country = self._selector.country is not None or other.country == like.country
        return same_country and set(other.tags) == set(like.tags)


class SessionInfo(NamedTuple):
    """A session, for a listing."""

    key: SessionKey
    #: the exit's name
    exit: str
    #: monotonic seconds of its first and its latest use
    first: float
    last: float


class SessionState(NamedTuple):
    """All that is remembered of a session, for another process or a later one.

    Times are monotonic seconds; the attributes are those of :class:`_Session`.
    """

    exit: str | None
    like: Like
    address: str | None
    first: float
    last: float
    moved: float
    generation: int
    is_served: bool
    is_bound: bool
    to_move: str


class Sessions:
    """The exit of each session.

    After ``settings.idle`` seconds without a request a session is forgotten: the next request with
    its name starts a new one, at the exit that any other process would choose.
    ``settings.longest`` seconds after its first use a session moves to another exit; a selector may
    ask for less.
    """

    #: sessions that are remembered; the least recently used one is forgotten
    max_sessions = 100_000

    def __init__(self, settings: SessionSettings = SessionSettings()) -> None:
        self.settings = settings
        self._sessions: LruCache[SessionKey, _Session] = LruCache(self.max_sessions)
        #: the keys of sessions that have changed, for a state file to write; None: there is none
        self.changed: set[SessionKey] | None = None

    def choose(
        self, key: SessionKey, selector: ExitSelector, exits: SessionExits[C], now: float
    ) -> C:
        """The exit for the next request of the session.

        ``exits``: those that match ``selector``.  A session whose exit may not be used moves to
        one that may be, with the same tags and country.  If there is none, the session stays where
        it is, and the returned exit may not be used.  ``now`` is in monotonic seconds.
        """
        self._forget_idle(now)
        session = self._use(key, now)
        if now - session.first >= self._lifetime(selector):
            session.restart(now, "its lifetime is over")
        last = session.exit
        chosen = self._exit_for(key, session, exits)
        if last is not None and last != chosen.name:
            why = session.to_move or _reason(exits.named(last))
            where = _where(session.address, chosen.address)
            log.info(
                "session %s moves from exit %s to %s%s: %s",
                _shown(key),
                last,
                chosen.name,
                where,
                why,
            )
            _note_move(key, last, chosen.name, why)
        session.settle(chosen, now)
        if self.changed is not None:
            session.selector = selector
        self._note(key, session, now)
        return chosen

    def chosen(self, key: SessionKey) -> str | None:
        """The name of the exit last chosen for the session, whether it has connected or not.

        None if there is none, or if the session moves at its next request.
        """
        session = self._sessions.peek(key)
        return None if session is None or session.to_move else session.exit

    def kept(self, key: SessionKey, selector: ExitSelector, now: float) -> str | None:
        """The name of the exit that has served the session, which it keeps while it can.

        None if there is none, or if the session moves at its next request.
        """
        self._forget_idle(now)
        session = self._sessions.peek(key)
        if session is None or not session.is_served or session.to_move:
            return None
        return session.exit if now - session.first < self._lifetime(selector) else None

    def served(self, key: SessionKey, name: str) -> None:
        """An exit has served a request of the session: the session stays there.

        Nothing happens if it has moved to another exit meanwhile.
        """
        session = self._sessions.peek(key)
        if session is not None and session.exit == name and not session.is_served:
            session.is_served = session.is_bound = True
            if self.changed is not None:
                self.changed.add(key)

    def answered(self, key: SessionKey, chosen: SessionExit, began: float, now: float) -> None:
        """An exit has served a request of the session that began then.

        The session stays at the first exit that does, also if that was asked instead of its own, or
        if the session has left it since without being served anywhere else.
        """
        session = self._sessions.peek(key)
        if session is None or session.is_served or session.to_move:
            return
        if session.exit != chosen.name:
            if session.exit is None or began < session.first:  # before it has restarted
                return
            log.info(
                "session %s moves from exit %s to %s: that has served it first",
                _shown(key),
                session.exit,
                chosen.name,
            )
            session.settle(chosen, now)
        session.is_served = session.is_bound = True
        if self.changed is not None:
            self.changed.add(key)

    def stand_in(self, key: SessionKey, exits: SessionExits[C]) -> C | None:
        """An exit for one request of the session instead of its own; None if there is none.

        The session does not move.  Each time it is another one.
        """
        session = self._sessions.peek(key)
        if session is None:
            return None
        session.stand_ins += 1
        return exits.winner(key, -session.stand_ins)  # generations begin at 0

    def move(self, key: SessionKey, chosen: SessionExit, now: float) -> None:
        """Another exit has served a request of the session, whose own exit serves none."""
        session = self._use(key, now)
        why = "several of its requests in a row failed there"
        log.info(
            "session %s moves from exit %s to %s: %s", _shown(key), session.exit, chosen.name, why
        )
        _note_move(key, session.exit, chosen.name, why)
        session.settle(chosen, now)
        session.is_served = session.is_bound = True
        if self.changed is not None:
            self.changed.add(key)

    def exit_of(self, key: SessionKey, now: float) -> str | None:
        """The name of the session's exit; None if there is none."""
        self._forget_idle(now)
        session = self._sessions.peek(key)
        return None if session is None else session.exit

    def address_of(self, key: SessionKey) -> str | None:
        """The address from which sites see the session; None: not known."""
        session = self._sessions.peek(key)
        return None if session is None else session.address

    def rotate(self, key: SessionKey, now: float) -> None:
        """Move the session to another exit at its next request, if there is one."""
        self._forget_idle(now)
        session = self._use(key, now)
        session.restart(now, "a rotation was requested")
        self._note(key, session, now)

    def name_at_exit(self, key: SessionKey) -> str:
        """The session id that is passed on to a provider's gateway, which has exits of its own.

        It changes each time that the session restarts, so that it moves behind the gateway too.
        """
        session = self._sessions.peek(key)
        if session is None or not session.generation:
            return key[1]
        return f"{key[1]}/{session.generation}"  # no session id contains a slash

    def listing(self, now: float) -> Iterator[SessionInfo]:
        """The sessions that have an exit, the least recently used first."""
        self._forget_idle(now)
        for key, session in self._sessions.items():
            if session.exit is not None:
                yield SessionInfo(key, session.exit, session.first, session.last)

    def keys(self) -> list[SessionKey]:
        """Those that are known."""
        return list(self._sessions)

    def state_of(self, key: SessionKey) -> SessionState | None:
        """What is remembered of a session; None: nothing."""
        session = self._sessions.peek(key)
        if session is None:
            return None
        return SessionState(*(getattr(session, name) for name in SessionState._fields))

    def restore(
        self, key: SessionKey, state: SessionState, now: float, *, always: bool = False
    ) -> None:
        """Take what another process, or this one before a restart, has known of a session.

        Of two states the one counts to which the session has moved last, or ``always`` this one.
        """
        session = self._sessions.peek(key)
        if session is None:
            if now - state.last >= self.settings.idle:
                return
            session = self._sessions[key] = _Session(now)
        elif state.moved <= session.moved and not always:
            session.last = max(session.last, min(state.last, now))
            return
        else:
            state = state._replace(last=max(session.last, state.last))
        # a clock that was ahead must not make it last longer
        state = state._replace(
            **{name: min(getattr(state, name), now) for name in ("first", "last", "moved")}
        )
        for name, value in state._asdict().items():
            setattr(session, name, value)

    def selector_of(self, key: SessionKey) -> ExitSelector | None:
        """That of its last request, if :attr:`changed` is kept; None: not known."""
        session = self._sessions.peek(key)
        return None if session is None else session.selector

    def __len__(self) -> int:
        return len(self._sessions)

    def __repr__(self) -> str:
        return f"<Sessions remembered={len(self)}>"

    def _note(self, key: SessionKey, session: _Session, now: float) -> None:
        """Have a session written if it has moved, or from time to time that it is in use."""
        if self.changed is not None and (
            session.moved > session.noted or now - session.noted >= self.settings.idle / 8
        ):
            session.noted = now
            self.changed.add(key)

    def _lifetime(self, selector: ExitSelector) -> float:
        longest = self.settings.longest
        return longest if selector.lifetime is None else min(selector.lifetime, longest)

    def _use(self, key: SessionKey, now: float) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = _Session(now)
        session.last = now
        return session

    def _forget_idle(self, now: float) -> None:
        while (oldest := self._sessions.oldest()) is not None:
            key, session = oldest
            if now - session.last < self.settings.idle:
                return
            del self._sessions[key]

    def _exit_for(self, key: SessionKey, session: _Session, exits: SessionExits[C]) -> C:
        generation, chosen = session.generation, None
        if session.to_move:
            last = session.exit
            if last is None:  # rotated before its first request; other processes may have it there
                before = exits.winner(key, generation - 1)
                last = None if before is None else before.name
            # to a site, another exit with the same address is the same one
            chosen = exits.winner(
                key, generation, but=last, away_from=session.address
            ) or exits.winner(key, generation, but=last)
        elif session.exit is not None:
            kept = exits.named(session.exit)
            if kept is not None and exits.is_available(kept):
                return kept
            if session.is_bound:  # a destination has seen it at an exit
                if session.address is not None:
                    chosen = exits.beside(session.address, key, generation)
                chosen = chosen or exits.winner(key, generation, like=session.like) or kept
        return chosen or exits.winner(key, generation) or exits.any_winner(key, generation)


class _Session:
    """What is remembered of one session."""

    __slots__ = (
        "address",
        "exit",
        "first",
        "generation",
        "is_bound",
        "is_served",
        "last",
        "like",
        "moved",
        "noted",
        "selector",
        "stand_ins",
        "to_move",
    )

    def __init__(self, now: float) -> None:
        #: the exit's name; None before the first request
        self.exit: str | None = None
        #: whether this exit has connected a request of the session, and whether any exit has
        self.is_served = self.is_bound = False
        #: the address from which sites see it
        self.address: str | None = None
        #: what an exit has to be like that replaces it
        self.like = Like((), None)
        self.first = self.last = now
        #: when its exit was chosen, or its next move was requested
        self.moved = now
        #: that of its last request, where that is kept
        self.selector: ExitSelector | None = None
        #: when it was last written down
        self.noted = -math.inf
        #: how often it has restarted; each time another exit wins
        self.generation = 0
        #: how often another exit was asked instead of its own
        self.stand_ins = 0
        #: why it moves at its next request; empty if it doesn't
        self.to_move = ""

    def restart(self, now: float, why: str) -> None:
        self.first = self.moved = now
        self.generation += 1
        self.to_move = why

    def settle(self, chosen: SessionExit, now: float) -> None:
        if self.exit != chosen.name or self.to_move:
            self.moved = now
        self.is_served = self.is_served and self.exit == chosen.name
        self.exit, self.like = chosen.name, Like(chosen.tags, chosen.country)
        self.address = chosen.address
        self.to_move = ""


def session_hash(key: SessionKey, generation: int) -> blake2b:
    """A hash of a session, to be gone on with."""
    session = blake2b(digest_size=8)
    for part in (*key, str(generation)):
        raw = part.encode("utf-8", "surrogatepass")
        session.update(len(raw).to_bytes(4, "big") + raw)
    return session


def winner(key: SessionKey, generation: int, exits: Sequence[C]) -> C:
    """The exit with the highest number for a session: the same one in every process.

    Weighted as by Schindelhauer and Schomaker (2005): an exit's share of all sessions is that of
    its weight, and a change of one weight moves no session between two other exits.
    """
    session = session_hash(key, generation)

    def score(each: C) -> float:
        digest = session.copy()
        digest.update(each.name.encode())
        return -each.weight / math.log(fraction(int.from_bytes(digest.digest(), "big")))

    return max(exits, key=score)


def fraction(number: int) -> float:
    """A hash of 64 bits as a number between 0 and 1, and neither of these.

    It is the middle of one of 2**52 steps, and so the same on every machine.
    """
    return ((number >> 12) + 0.5) / 2**52


def _reason(still: object) -> str:
    """Why a session had to leave its exit; ``still``: that exit, if it still matches."""
    if still is not None:
        return "its exit can't be used now"
    return "its exit was removed, or does not match the selector"


def _where(before: str | None, after: str | None) -> str:
    """Whether an exit leaves from the address, or the network, of the one before."""
    if before is None or after is None:
        return ""
    if before == after:
        return f" (the same address, {after})"
    return f" (the same network, {network_of(after)})" if _are_near(before, after) else ""


def _are_near(one: str, other: str) -> bool:
    return network_of(one) == network_of(other)


def _note_move(key: SessionKey, last: str | None, chosen: str, why: str) -> None:
    text = f"moves from exit {last} to {chosen}: {why}"
    note("moved", text, exit=chosen, subject=_shown(key))


def _shown(key: SessionKey) -> str:
    user, session = key
    return f"{session} of {user}" if user else session
