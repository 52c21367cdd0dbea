"""One request's search for an exit that connects it.

Without a session the policy chooses, and an exit that fails is given up for the next one.  A
session keeps the exit that has served it: that one is asked again, and another one only when it is
out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import gevent

from gsocks.errors import (
    CommandNotSupported,
    ExitDoubtful,
    Fault,
    GsocksError,
    LimitReached,
    NoExit,
)
from gsocks.request import Request
from gsocks.rotation.policy import Policy
from gsocks.rotation.roster import Member, Roster
from gsocks.rotation.session import SessionKey, Sessions
from gsocks.wish import Wish
from gsocks.within import within

#: times that a request asks the exit of its session, and the seconds in between: it may just be
#: starting again
ATTEMPTS = 3
BREATH = 0.25


class Search:
    """The search of one request among the exits of ``roster`` that it has not ``given_up``."""

    def __init__(
        self,
        request: Request,
        roster: Roster,
        sessions: Sessions,
        policy: Policy,
        given_up: Collection[Member] = (),
    ) -> None:
        self._request = request
        self._roster = roster
        self._sessions = sessions
        self._policy = policy
        session = request.wish.session
        self._session: SessionKey | None = None
        if session is not None:
            self._session = (request.user or "", session)
        #: seconds
        self._timeout = 0.0
        self._attempts: Counter[Member] = Counter()
        self._given_up: set[Member] = set(given_up)
        #: when each was last asked
        self._asked: dict[Member, float] = {}
        #: failures that are the exit's if another one does better, and when it was asked
        self._unclear: list[tuple[Member, GsocksError, float]] = []

    def run(self, timeout: float, tries: int, tried: Callable[[str], None]) -> tuple[Member, Any]:
        """An exit, and what it made of the request.

        ``tried`` is told the label of each exit that is asked, of which there are ``tries`` at
        most.  Each but the last gets half of what is left of ``timeout`` seconds; the end of the
        last one's is the caller's to set.  Raises the last failure; one that any exit would
        have, at once.
        """
        self._timeout = timeout
        deadline = time.monotonic() + timeout
        failure: GsocksError | None = None
        while len(self._given_up) < tries:
            now = time.monotonic()
            chosen = self._choose(now)
            if chosen is None:
                break
            tried(chosen.label)
            last = len(self._given_up) == tries - 1 or len(self._roster) == 1
            try:
                made = self._ask(chosen, None if last else (deadline - now) / 2)
            except GsocksError as error:
                if error.fault is Fault.REQUEST:
                    raise
                failure = error
            else:
                self._note_success(chosen)
                return chosen, made
            self._note_failure(chosen, failure)
        raise failure or self._why_none()

    # --- whom to ask ------------------------------------------------------------------------

    def _choose(self, now: float) -> Member | None:
        """Which exit is asked next; None if none may be.  Raises LimitReached."""
        request, session = self._request, self._session
        if session is None:
            available = self._roster.available(request, self._given_up, now)
            return self._policy.choose(available, request.dest.host, now) if available else None
        kept = self._kept(session, now)
        if kept is not None:
            if kept.is_full or kept.rested_at > now:
                raise LimitReached("the exit of this session serves as much as it may at present")
            return self._sessions.choose(session, request.wish, [kept], [kept], now)
        fulfilling = self._roster.fulfilling(request.wish)
        if not fulfilling:
            return None
        available = self._roster.available(request, self._given_up, now)
        others = self._asked_by_others(session, now)
        if others is not None and others not in available:
            available = [*available, others]
        chosen = self._sessions.choose(session, request.wish, fulfilling, available, now)
        stays = chosen in self._given_up or self._roster.refuses(chosen, now)
        return None if stays or not chosen.fits(request) else chosen

    def _kept(self, session: SessionKey, now: float) -> Member | None:
        """The exit that the session has, unless it must leave it now."""
        name = self._sessions.kept(session, self._request.wish, now)
        kept = None if name is None else self._roster.named(name)
        if kept is None or kept in self._given_up:
            return None
        return kept if self._roster.serves(kept, self._request, now) else None

    def _asked_by_others(self, session: SessionKey, now: float) -> Member | None:
        """The exit that other requests of a new session are waiting for.

        It may have as much to do as it gets until it has proved itself; but a session is not to
        begin at several exits at once.
        """
        asked = self._roster.named(self._sessions.asked(session) or "")
        if asked is None or asked in self._given_up or self._roster.refuses(asked, now):
            return None
        return asked if self._roster.serves(asked, self._request, now) else None

    def _why_none(self) -> GsocksError:
        """Why no exit may be asked."""
        fulfilling = self._roster.fulfilling(self._request.wish)
        if not fulfilling:
            known = len(self._roster) > 0
            return NoExit(_unfulfilled(self._request.wish) if known else "no exits known yet")
        command = self._request.command
        serving = [member for member in fulfilling if command in member.served]
        if not serving:
            return CommandNotSupported(f"no exit serves {command.name}")
        now = time.monotonic()
        if any(member.is_full or member.rested_at > now for member in serving):
            return LimitReached("every exit serves as much as it may at present")
        return NoExit("every exit is banned or drained at present")

    # --- asking it --------------------------------------------------------------------------

    def _ask(self, chosen: Member, seconds: float | None) -> Any:
        """What ``chosen`` makes of the request; it has one connection more then."""
        request, roster = self._request, self._roster
        if self._session is not None:
            name = self._sessions.passed_on(self._session)
            request = request._replace(wish=request.wish._replace(session=name))
        self._attempts[chosen] += 1
        began = self._asked[chosen] = time.monotonic()
        roster.asked(chosen, began)
        try:
            ask = chosen.served[request.command]
            made = ask(request) if seconds is None else within(seconds, None, ask, request)
            if made is None:
                raise ExitDoubtful(f"{chosen.label}: not connected within {seconds:.3g} s")
        except BaseException as error:
            now = time.monotonic()
            roster.answered(chosen)
            roster.left(chosen, 0, 0, now)
            if isinstance(error, GsocksError) and error.fault in (Fault.EXIT, Fault.UNCLEAR):
                # as slow as can be, however soon it failed
                chosen.connect_time.add(self._timeout, now)
            raise
        now = time.monotonic()
        roster.answered(chosen)
        chosen.connect_time.add(now - began, now)
        return made

    def _note_success(self, chosen: Member) -> None:
        now = time.monotonic()
        self._roster.connected(chosen, now)
        for member, error, began in self._unclear:
            if member is not chosen:
                self._roster.failed(member, error, now, began=began)
        if self._session is not None:
            self._sessions.served(self._session)

    def _note_failure(self, chosen: Member, failure: GsocksError) -> None:
        """Blame whom it is right to blame, and give the exit up or ask it again."""
        now = time.monotonic()
        if failure.fault is Fault.EXIT:
            self._roster.failed(chosen, failure, now, began=self._asked[chosen])
        elif failure.fault is Fault.UNCLEAR:
            self._unclear.append((chosen, failure, self._asked[chosen]))
        if self._session is None or self._kept(self._session, now) is not chosen:
            self._given_up.add(chosen)
        elif self._attempts[chosen] < ATTEMPTS:
            gevent.sleep(BREATH)
        elif failure.fault is Fault.EXIT:
            self._given_up.add(chosen)
        else:
            # No other exit may show whose fault it is; and if it goes on, it is this one's.
            if failure.fault is Fault.UNCLEAR:
                self._roster.doubted(chosen, failure, now, began=self._asked[chosen])
            raise failure


def _unfulfilled(wish: Wish) -> str:
    asked = (("called", wish.exit), ("of country", wish.country), ("tagged", " ".join(wish.tags)))
    return "no exit is " + " and ".join(f"{what} {which}" for what, which in asked if which)
