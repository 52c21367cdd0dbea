"""Failover: which exits one request tries, one after the other, until one connects it.

Without a session the policy chooses the exit, and after a failure another one.  A session keeps the
exit that has served it: the request is retried by that exit, and goes to another one only when it
is ejected or can't be used for another reason.  One that no exit has served yet leaves its own for
that exit's own failures, and for failures at several destinations.  One dead destination moves no
session: a request that fails there is tried by other exits, and the session is theirs if one of
them serves it.  A strict session fails instead, also while its exit
is ejected: then the exit is tried all the same, and its failure is the reason.

With a hedge, a second exit joins the first one if that takes too long (rotation/hedging.py).

A destination that refuses is tried by one other exit, and one that is silent by as many as there
are tries, unless it is known that others fail there too (rotation/evidence.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

import gevent

from gsocks.address import Address
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    CommandNotSupported,
    ExitDoubtful,
    Fault,
    GsocksError,
    LimitReached,
    NoExit,
)
from gsocks.exits.base import Connected
from gsocks.exits.forward import HttpConnection
from gsocks.request import CONNECT, ExitSelector, Request
from gsocks.rotation.choices import session_exits
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.hedging import Hedge, Race
from gsocks.rotation.roster import Member, Roster
from gsocks.rotation.session import ListedExits, SessionKey, Sessions
from gsocks.rotation.views import READY

#: attempts of a request at the exit of its session, and the seconds between them: the exit may be
#: restarting
MAX_ATTEMPTS = 3
RETRY_DELAY = 0.25


class Reached(NamedTuple):
    """An exit that has connected a request."""

    member: Member
    #: what its method returned
    made: Any
    #: monotonic seconds: when the request was sent to it
    began: float
    #: seconds until it was connected
    took: float
    #: whether the exit is not the one of the request's session, which moves to it if it serves
    on_trial: bool


class Failover:
    """The attempts of one request among the exits of ``roster``, without the ``excluded`` ones.

    ``first``: what the hub has made of the first attempt.
    """

    def __init__(
        self,
        request: Request,
        roster: Roster,
        evidence: Evidence,
        sessions: Sessions,
        connect: Callable[[Member, Request], Any],
        excluded: Collection[Member] = (),
        hedge: Hedge | None = None,
        first: FirstAttempt | None = None,
    ) -> None:
        self._request = request
        self._first = first
        self._hedge = hedge
        self._roster = roster
        self._evidence = evidence
        self._sessions = sessions
        self._connect = connect
        session = request.selector.session
        self._session: SessionKey | None = None
        if session is not None:
            self._session = (request.user or "", session)
        self._strict = request.selector.strict or sessions.settings.strict
        #: how often each exit was tried
        self._attempts: dict[Member, int] = {}
        #: exits that this request does not try any more
        self._excluded: set[Member] = set(excluded)
        #: exits that have asked their server in vain, and in how many tunnels
        self._asked: dict[Member, int] = {}
        #: when the latest attempt at each exit began
        self._began: dict[Member, float] = {}
        #: the failure that tells most about the destination
        self._failure: GsocksError | None = None
        #: how many exits have failed to reach the destination, and whether one of good standing has
        self._witnesses = 0
        self._has_told = False
        #: an exit that is not the session's, and is tried once all the same
        self._trial: Member | None = None
        #: the exit of a session that none has served, which has failed at the destination: other
        #: ones stand in for it in this request
        self._home: Member | None = None
        #: an exit that was chosen, and has the request among its own already
        self._counted: Member | None = None

    def run(self, timeout: float, tries: int, on_attempt: Callable[[str], None]) -> Reached:
        """The exit that has connected the request, and what its method returned.

        ``tries``: the number of exits that may be tried.  ``on_attempt`` is called with an exit's
        label when an attempt at it begins.  Each exit but the last gets half of what is left of
        ``timeout`` seconds; the caller bounds the last one.  Raises the failure that tells most
        about the destination, or else the last one; at once, if every exit would fail the same way.
        """
        try:
            return self._run(timeout, tries, on_attempt)
        finally:
            # its traceback refers to this object
            self._failure = None

    def _run(self, timeout: float, tries: int, on_attempt: Callable[[str], None]) -> Reached:
        first = self._first
        began = time.monotonic() if first is None else first.began
        deadline = began + timeout
        self._evidence.arrived(self._request, began)
        if first is not None:
            self._resume(first)
        hedge = self._hedge
        if self._session is not None or self._request.command is not CONNECT:
            hedge = None  # a session has one exit
        elif self._request.fast_open:
            hedge = None  # its payload leaves before it is known to be connected
        while len(self._excluded) < tries:
            now = time.monotonic()
            last = len(self._excluded) == tries - 1 or len(self._roster) == 1
            chosen = self._counted or self._choose(now, last)
            if chosen is None:
                break
            if chosen is not self._counted and not self._wait_for_turn(
                chosen, now, (deadline - now) / 2
            ):
                continue
            self._note_attempt(chosen, on_attempt)
            if hedge is not None:
                reached = self._race(hedge, chosen, deadline, tries, on_attempt)
                if reached is not None:
                    return reached
                continue
            try:
                made = self._attempt(chosen, None if last else (deadline - now) / 2)
            except GsocksError as error:
                self._note_failure(chosen, error)
            else:
                return self._reached(chosen, made)
        raise self._failure or self._why_none()

    def first_of_session(self, now: float) -> Member | None:
        """The exit of the first attempt of a request that has a session, as :meth:`run` chooses it.

        None: :meth:`run` has to choose, since its choice is more than that, or since there is none.
        """
        try:
            chosen = self._choose(now, last=False)
        except GsocksError:
            return None
        return None if self._trial is not None or self._home is not None else chosen

    def request_at_exit(self) -> Request:
        """The request that an exit gets."""
        request = self._request
        if self._session is None:
            return request
        name = self._sessions.name_at_exit(self._session)
        if name == request.selector.session:
            return request
        return request._replace(selector=request.selector._replace(session=name))

    def _resume(self, first: FirstAttempt) -> None:
        """Go on behind the first attempt, or with it.  Raises its failure if that is final."""
        member, failure = first.member, first.failure
        self._attempts[member] = 1
        self._began[member] = first.began
        if failure is None:
            self._counted = member
            self._asked[member] = first.asked
            return
        first.failure = None
        try:
            self._note_failure(member, failure)
        finally:
            # its traceback refers to this frame
            del failure

    def _wait_for_turn(self, chosen: Member, now: float, wait: float) -> bool:
        """Wait until an exit may be sent a request for this host; False: that takes too long.

        Raises LimitReached if a session has no other exit.
        """
        request, roster = self._request, self._roster
        start = roster.take_turn(chosen, request, now, wait)
        if start is None:
            full = LimitReached(f"exit {chosen.name} is at its limit for {request.dest.host}")
            full.retry_after = _seconds_until(roster.turn_at(chosen, request), now)
            if self._session is not None and chosen is not self._trial:
                raise full
            self._excluded.add(chosen)
            self._failure = self._failure or full
            return False
        if start > now:
            request.trace("waiting %.3f s for a turn at exit %s", start - now, chosen.name)
            try:
                gevent.sleep(start - now)
            except BaseException:
                roster.give_turn_back(chosen, request)
                raise
        return True

    def _note_attempt(self, chosen: Member, on_attempt: Callable[[str], None]) -> None:
        on_attempt(chosen.title)
        if self._request.details is not None:
            tell_choice(self._request, self._roster, chosen)
        trying = "retrying" if self._attempts else "trying"
        self._request.trace("%s exit %s (%s)", trying, chosen.name, chosen.label)

    def _note_failure(self, chosen: Member, error: GsocksError) -> None:
        """File the failure of an attempt.  Raises it, or a better one, if it is the request's."""
        self._request.trace("exit %s failed: %s: %s", chosen.name, error.word, error)
        if self._request.details is not None:
            began = self._began[chosen]
            self._request.details.failed(chosen.name, began, error.word, str(error))
        if error.asked:
            self._asked[chosen] = error.asked
        error.at_exit = chosen.title
        try:
            if error.fault is Fault.REQUEST:
                raise error
            if self._failure is None or self._failure.fault is not Fault.DESTINATION:
                self._failure = error
            unwanted = self._session is None and error.status in self._request.retry_on
            if unwanted:
                self._evidence.unwanted(chosen, self._request, time.monotonic())
            if self._is_final(chosen, error) and not unwanted:
                raise self._failure from None
        finally:
            # its traceback refers to this frame, and only the garbage collector frees a cycle
            del error

    # --- two attempts at a time -------------------------------------------------------------

    def _race(
        self,
        hedge: Hedge,
        first: Member,
        deadline: float,
        tries: int,
        on_attempt: Callable[[str], None],
    ) -> Reached | None:
        """As one attempt, which another one joins if it takes too long; None: all have failed."""

        def attempt(member: Member) -> Any:
            left = deadline - time.monotonic()
            tried = len({*self._excluded, *race.running})
            last = tried >= tries or len(self._roster) == 1
            return self._attempt(member, left if last else left / 2)

        race, served = Race(hedge, attempt, self._end_late), False
        race.begin(first)
        patience: float | None = hedge.delay
        try:
            while True:
                ended = race.next(patience)
                if ended is None:
                    patience = None
                    other = self._other(race, tries)
                    if other is not None:
                        self._note_attempt(other, on_attempt)
                        race.begin(other)
                    continue
                member, made = ended
                if not isinstance(made, GsocksError):
                    served = True
                    on_attempt(member.title)
                    return self._reached(member, made)
                self._note_failure(member, made)
                if not race.running:
                    return None
        finally:
            race.over(served=served)

    def _other(self, race: Race, tries: int) -> Member | None:
        """The exit that joins a race; None if there is none that is likely to be better."""
        busy = {*self._excluded, *race.running}
        if len(busy) >= tries:
            return None
        now = time.monotonic()
        other = self._roster.choose(self._request, busy, now, proven_only=True)
        if other is None or other.tier not in READY:
            return None
        return None if self._roster.take_turn(other, self._request, now, 0.0) is None else other

    def _end_late(self, member: Member, made: object) -> None:
        """An attempt has ended when its request was served by another exit."""
        now, began = time.monotonic(), self._began[member]
        if isinstance(made, GsocksError):
            self._evidence.failed(member, self._request, made, now, began=began)
            return
        connected = cast("Connected | HttpConnection", made)
        connected.stream.abort()
        self._roster.request_done(member)
        self._roster.connection_closed(member, self._request)
        if _shows_connection(made):
            self._evidence.connected(member, self._request, now)
            member.connect_time.add(now - began, now)

    # --- choosing an exit -------------------------------------------------------------------

    def _choose(self, now: float, last: bool) -> Member | None:
        """The exit for the next attempt; None if none may be used.  Raises LimitReached.

        ``last``: whether it is the last one, for which an exit that has yet to show that it works
        is not good enough.
        """
        request, session = self._request, self._session
        if session is None:
            return self._pick(self._excluded, now, last)
        kept = self._only(session, now) if self._strict else self._kept(session, now)
        if kept is not None:
            if not self._attempts and self._evidence.is_silenced(request, kept):
                self._begin_trial(kept, now)
            tried = self._trial in self._attempts or self._trial in self._excluded
            if self._trial is not None and not tried:
                return self._trial
            if kept.is_full or kept.rested_at > now:
                full = LimitReached("the exit of this session is at its limit")
                full.retry_after = _seconds_until(kept.rested_at, now)
                raise full
            only = ListedExits(request.selector, [kept], [kept])
            return self._sessions.choose(session, request.selector, only, now)
        if not self._roster.count(request.selector, request.command):
            return None
        chosen = self._begin_session(session, now) if self._home is None else None
        if chosen is not None and not self._attempts and self._is_tried_in_vain(chosen, now):
            self._home = chosen
        if self._home is not None:
            other = self._stand_in(session, self._home, now)
            if other is not None or chosen is None:
                return other
            self._home = None
        if chosen is None:
            return None
        unusable = chosen in self._excluded or self._roster.refuses(chosen, now)
        return None if unusable or not chosen.fits(request) else chosen

    def _pick(self, excluded: Collection[Member], now: float, last: bool = True) -> Member | None:
        """The exit that the policy chooses; None if there is none.

        For another attempt than the first one: one that has shown that it works.
        """
        proven_only = last or bool(self._attempts)
        return self._roster.choose(self._request, excluded, now, proven_only=proven_only)

    def _begin_session(self, session: SessionKey, now: float) -> Member:
        """The exit of a session that none has served."""
        request, passed_over = self._request, set(self._excluded)
        for _ in range(MAX_ATTEMPTS):
            pending = self._pending(session, now)
            if pending in passed_over:
                pending = None
            exits = session_exits(self._roster, request, passed_over, pending, now)
            chosen = self._sessions.choose(session, request.selector, exits, now)
            if chosen.health.has_worked or not self._evidence.is_suspect(chosen):
                break
            # it has failed and never worked, for whatever client: begin at another one
            passed_over.add(chosen)
        return chosen

    def _is_unserved(self, now: float) -> bool:
        """Whether the request has a session that no exit has served."""
        session, selector = self._session, self._request.selector
        return session is not None and self._sessions.kept(session, selector, now) is None

    def _is_tried_in_vain(self, home: Member, now: float) -> bool:
        """Whether an exit that has never worked has failed at this very destination already."""
        return not home.health.has_worked and self._evidence.has_failed_at(
            home, self._request.dest, now
        )

    def _stand_in(self, session: SessionKey, home: Member, now: float) -> Member | None:
        """Another exit for this request of a session, which stays at ``home``; None: there is none.

        The destination may be dead; if it is not, the session is where it was served first.
        """
        request, passed_over = self._request, {*self._excluded, home}
        other = None
        for _ in range(MAX_ATTEMPTS):
            exits = session_exits(self._roster, request, passed_over, None, now)
            other = self._sessions.stand_in(session, exits)
            if other is None or self._roster.refuses(other, now) or not other.fits(request):
                return None
            if other.health.has_worked or not self._evidence.has_doubts(other):
                break
            passed_over.add(other)
        return other

    def _begin_trial(self, kept: Member, now: float) -> bool:
        """Try another exit for this request of a session, as several in a row have failed at its
        own; False if there is none.

        The session stays where it is unless the other one serves the request: the destinations may
        be dead.
        """
        if self._strict or self._trial is not None:
            return False
        passed_over = {*self._excluded, kept}
        for _ in range(MAX_ATTEMPTS):
            other = self._pick(passed_over, now)
            if other is None or self._roster.refuses(other, now):
                return False
            if (other.country, other.tags) == (kept.country, kept.tags):
                self._trial = other
                return True
            passed_over.add(other)
        return False

    def _kept(self, session: SessionKey, now: float) -> Member | None:
        """The exit that has served the session, unless the session must leave it now."""
        name = self._sessions.kept(session, self._request.selector, now)
        kept = None if name is None else self._roster.named(name)
        if kept is None or kept in self._excluded:
            return None
        return kept if self._roster.serves(kept, self._request, now) else None

    def _only(self, session: SessionKey, now: float) -> Member | None:
        """The exit of a strict session; None before it has one.

        If it can't be used, one that leaves from the same address, which to a site is the same.
        Raises NoExit, CommandNotSupported or LimitReached, which say why there is none.
        """
        name = self._sessions.kept(session, self._request.selector, now)
        if name is None:
            return None
        try:
            only = self._its_own(name, now)
        except (NoExit, LimitReached):
            twin = self._twin(session, now)
            if twin is None:
                raise
            return twin
        if only.health.is_ejected(now) or only in self._excluded:
            return self._twin(session, now) or only
        return only

    def _twin(self, session: SessionKey, now: float) -> Member | None:
        """An exit with the outbound address of a session, that may be used; None: there is none."""
        address = self._sessions.address_of(session)
        if address is None:
            return None
        near = self._roster.beside(address, self._request, self._excluded, now)
        return next((each for each in near if each.address == address), None)

    def _its_own(self, name: str, now: float) -> Member:
        """The exit of that name.  Raises as :meth:`_only` does."""
        only = self._roster.named(name)
        if only is None:
            raise NoExit(f"exit {name} of this strict session was removed")
        if not only.matches(self._request.selector):
            raise NoExit(f"exit {name} of this strict session does not match the selector")
        if self._request.command not in only.served:
            raise CommandNotSupported(f"exit {name} of this strict session does not serve that")
        if only.draining or only.banned_until > now:
            state = "draining" if only.draining else "banned"
            raise NoExit(f"exit {name} of this strict session is {state}")
        if only.spent_until > now:
            raise LimitReached(f"exit {name} of this strict session has used up its budget")
        if not only.health.is_ejected(now) and not self._roster.serves(only, self._request, now):
            raise NoExit(f"exit {name} of this strict session is ejected for this destination")
        return only

    def _pending(self, session: SessionKey, now: float) -> Member | None:
        """The exit at which other requests of a new session are in flight.

        It may have as many of them as an unproven exit gets; but a session must not begin at
        several exits at once.
        """
        pending = self._roster.named(self._sessions.chosen(session) or "")
        if pending is None or pending in self._excluded or self._roster.refuses(pending, now):
            return None
        return pending if self._roster.serves(pending, self._request, now) else None

    def _why_none(self) -> GsocksError:
        """Why no exit may be used."""
        roster, request = self._roster, self._request
        if not roster.count(request.selector):
            known = len(roster) > 0
            return NoExit(_unmatched(request.selector) if known else "no exits known yet")
        if not roster.count(request.selector, request.command):
            return CommandNotSupported(f"no exit serves {request.command.name}")
        now = time.monotonic()
        if roster.has_limited(request, now):
            full = LimitReached("every exit is at its limit")
            full.retry_after = _seconds_until(roster.rested_at(request, now), now)
            return full
        return NoExit("every exit is banned or draining")

    # --- one attempt ------------------------------------------------------------------------

    def _attempt(self, chosen: Member, seconds: float | None) -> Any:
        """What the exit's method returns; ``chosen`` then has one connection more.

        ``seconds``: for this attempt; None: no bound of its own.  Raises GsocksError.
        """
        request, roster = self.request_at_exit(), self._roster
        if asked := self._asked.get(chosen):
            request = request._replace(asked=asked)
        if chosen is self._counted:
            self._counted = None
        else:
            self._attempts[chosen] = self._attempts.get(chosen, 0) + 1
            began = self._began[chosen] = time.monotonic()
            roster.request_sent(chosen, began)
        try:
            made = (
                self._connect(chosen, request)
                if seconds is None
                else call_with_timeout(seconds, self._connect, chosen, request, on_timeout=None)
            )
            if made is None:
                raise ExitDoubtful(f"{chosen.label}: not connected within {seconds:.3g} s")
        except BaseException:
            roster.request_done(chosen)
            roster.connection_closed(chosen, request)
            raise
        return made

    def _reached(self, chosen: Member, made: Any) -> Reached:
        now, began = time.monotonic(), self._began[chosen]
        if _shows_connection(made):
            self._evidence.connected(chosen, self._request, now)
        note_connected(self._sessions, self._request, chosen, began, now)
        return Reached(chosen, made, began, now - began, chosen is self._trial)

    def _is_final(self, chosen: Member, failure: GsocksError) -> bool:
        """File the failure of an attempt, and decide whether it is the request's.

        If not, the same exit is tried again, or it is excluded.
        """
        now, evidence, fault = time.monotonic(), self._evidence, failure.fault
        of_destination = fault in (Fault.DESTINATION, Fault.UNCLEAR)
        believed = of_destination and evidence.believes(chosen, self._request, fault, now)
        telling = evidence.is_of_good_standing(chosen)
        evidence.failed(chosen, self._request, failure, now, began=self._began[chosen])
        if chosen is self._trial:
            self._excluded.add(chosen)
            if len(self._attempts) > 1:  # the session's own exit has failed already
                self._evidence.request_failed(self._request)
                return True
        elif self._session is not None and self._stays(self._session, chosen, now):
            return self._is_final_for_session(chosen, failure, believed)
        else:
            self._excluded.add(chosen)
            if fault is not Fault.EXIT and self._home is None and self._is_unserved(now):
                self._home = chosen
        if of_destination:
            self._witnesses += 1
            self._has_told = self._has_told or telling
        # a second exit says what the first one has said in precise words
        return believed or (
            self._has_told
            and self._witnesses > 1
            and self._failure is not None
            and self._failure.fault is Fault.DESTINATION
        )

    def _is_final_for_session(self, chosen: Member, failure: GsocksError, believed: bool) -> bool:
        """The same for an exit at which its session stays."""
        fault = failure.fault
        if (
            fault is not Fault.DESTINATION
            and not believed
            and not failure.is_last
            and self._attempts[chosen] < MAX_ATTEMPTS
        ):
            gevent.sleep(RETRY_DELAY)
            return False
        if fault is Fault.EXIT and not self._strict:
            self._excluded.add(chosen)
            return False
        now = time.monotonic()
        if self._evidence.is_in_trouble(self._request, chosen) and self._begin_trial(chosen, now):
            return False
        self._evidence.request_failed(self._request)
        return True

    def _stays(self, session: SessionKey, chosen: Member, now: float) -> bool:
        """Whether the session stays at the exit that has just failed its request."""
        if self._strict:
            return self._sessions.kept(session, self._request.selector, now) == chosen.name
        return self._kept(session, now) is chosen


def tell_choice(request: Request, roster: Roster, chosen: Member) -> None:
    """Tell the details of ``request`` which exit is tried, and from how many it was chosen."""
    details = request.details
    if details is None:
        return
    details.tried(chosen.name, time.monotonic())
    if not details.story:
        return
    details.selector = request.selector
    if details.matching is None:
        details.matching, details.ready = roster.tell(request)
    if request.selector.session is not None:
        details.choice = f"of session {request.selector.session}"
    elif request.selector.exit is not None:
        details.choice = "named by the client"
    elif details.matching == 1:
        details.choice = "the only one"
    else:
        details.choice = roster.policy_word


def note_connected(
    sessions: Sessions, request: Request, chosen: Member, began: float, now: float
) -> None:
    """An exit has connected ``request``, at which its session stays, if it has one.

    The destination may have seen the session there.  But an exit that has never worked is kept only
    when a byte has come back, unless the session is strict.
    """
    session = request.selector.session
    if session is None:
        return
    key = (request.user or "", session)
    if request.selector.strict or sessions.settings.strict:
        sessions.answered(key, chosen, began, now)
    elif chosen.health.has_worked:
        sessions.served(key, chosen.name)


def _seconds_until(then: float, now: float) -> float:
    """For a client to wait: one at least, and one where that depends on a connection's end."""
    return 1.0 if then == math.inf else max(then - now, 1.0)


def _shows_connection(made: object) -> bool:
    """Whether ``made`` shows that the exit has connected to the destination just now."""
    if isinstance(made, HttpConnection):
        return made.shows_connection
    return not isinstance(made, Address)  # which was looked up


def _unmatched(selector: ExitSelector) -> str:
    criteria = (
        ("called", selector.exit),
        ("of country", selector.country),
        ("tagged", " ".join(selector.tags)),
    )
    return "no exit is " + " and ".join(f"{what} {value}" for what, value in criteria if value)
