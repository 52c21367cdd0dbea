"""The evidence: what the results of requests say about the exits that served them.

The model, with a table of what is seen and what it costs, is in docs/exits.md.  In short:

- an exit has *served* a request when a byte has come back from the destination: "connected" alone
  proves nothing, since some proxies say so before they try;
- an *own* failure (errors.py, Fault.EXIT) counts against the exit at once;
- any other failure to reach a destination is a *doubt*, filed by exit, destination and client.  It
  is contradicted when another exit serves the same destination afterwards, and excused when another
  exit of good standing fails there too;
- contradicted doubts of one destination eject the exit for that destination; those of several
  different ones in a row eject it, if they come from more than one client, or for as long as there
  is only one: with the first request of another it is ejected for the first one only;
- after doubts about several different destinations in a row others get most of an exit's requests,
  which shows whether they serve them;
- doubts about different destinations of which nothing else is known eject an exit if it is next to
  impossible that they all failed by chance, given what other exits have served meanwhile.

Each result is handed in as it comes and takes the same time whatever the number of exits; all
memory is bounded, since strangers choose the destinations.  Nothing here does I/O or reads a clock:
``now`` and ``began`` are monotonic seconds.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from gsocks.address import Address
from gsocks.errors import Fault, GsocksError
from gsocks.events import note
from gsocks.lru import LruCache
from gsocks.request import LOOK_UPS, Request
from gsocks.rotation.health import client_of, destination_of, domain_of
from gsocks.rotation.roster import Member, Roster
from gsocks.rotation.views import UNPROVEN
from gsocks.settings import HealthSettings

log = logging.getLogger("gsocks.rotation")

#: the user, or "" where there is none, and the session's name
_SessionKey: TypeAlias = tuple[str, str]


class Evidence:
    """Judges the exits of ``roster`` by their results.

    ``settings``: when an exit is ejected.  ``slowest``: seconds as which a failure counts in the
    time that an exit takes to connect.
    """

    #: destinations, exits, clients and sessions with doubts that are remembered; of each the one
    #: that was doubted least recently is forgotten
    max_destinations = 10_000
    max_exits = 4096
    max_clients = 1024
    max_sessions = 10_000
    #: seconds in which a doubt may be contradicted, and in which a failure that an exit of good
    #: standing has seen explains those of others
    fresh = 60.0
    #: seconds after its last request in which a client is there
    present = 60.0
    #: chance below which a row of failures is no accident
    accident = 1e-4
    #: failures of an exit or a client in a row, beyond which others say no more about destinations
    telling = 3
    #: refusals that others have confirmed, after which an exit's word is believed, but for each
    #: eighth, which is verified again
    confirmed = 4
    #: failed requests of a session in a row, after which another exit is tried
    trouble = 3

    def __init__(self, roster: Roster, settings: HealthSettings, *, slowest: float = 10.0) -> None:
        self._roster = roster
        self._settings = settings
        self._slowest = slowest
        self._runs: LruCache[Member, _Run] = LruCache(self.max_exits)
        self._destinations: LruCache[Address, _Destination] = LruCache(self.max_destinations)
        #: by which exit each was served last, and when that request began
        self._served: LruCache[Address, tuple[Member, float]] = LruCache(self.max_destinations)
        #: failures in a row of clients, of those that have any
        self._unserved: LruCache[str, int] = LruCache(self.max_clients)
        #: refusals in a row of exits that others have confirmed
        self._confirmed: LruCache[Member, int] = LruCache(self.max_exits)
        #: failed requests in a row of sessions
        self._troubled: LruCache[_SessionKey, _Trouble] = LruCache(self.max_sessions)
        self._clients = _Clients()
        #: exits that are ejected on the word of one client, and which one
        self._by_one_client: LruCache[Member, str] = LruCache(self.max_exits)
        #: requests without a session that were served and that were not, all in all
        self._good = self._bad = 0
        #: called with each exit that has failed by itself or is ejected
        self.on_failed: Callable[[Member], None] | None = None

    # --- results ----------------------------------------------------------------------------

    def arrived(self, request: Request, now: float) -> None:
        """A request is about to be sent to an exit."""
        if self._by_one_client.entries:
            self._pardon(client_of(request), now)

    def connected(self, member: Member, request: Request, now: float) -> None:
        """The exit says that it has connected a request."""
        member.counts.connected += 1
        if not request.fast_open:  # else it has yet to say so
            member.health.connected()
        self._clients.note(client_of(request), now)

    def answered(
        self, member: Member, request: Request, now: float, *, began: float, took: float | None
    ) -> None:
        """A byte has come back from the destination of a request, the first one.

        ``began``: when the request was sent to the exit; ``took``: seconds until the exit had
        connected it, None if that was earlier, for another request.
        """
        health, roster = member.health, self._roster
        if member.tier == UNPROVEN:
            roster.unproven_tried(served=True)
        changes = not health.proven or health.is_doubted or health.ejected_until > now
        health.succeeded(now)
        if took is not None:
            member.connect_time.add(took, now)
        if self._runs.entries:
            self._runs.discard(member)
        if self._unserved.entries:
            self._unserved.discard(client_of(request))
        if request.selector.session is None:
            self._good += 1
        elif self._troubled.entries:
            self._troubled.discard(_session_key(request))
        self._served[request.dest] = member, began
        if self._destinations.entries:
            self._reached(member, request.dest, began, now)
        if roster.domains.by_domain:
            roster.domains.succeeded(member.name, destination_of(request.dest), now)
        if changes:
            roster.member_changed(member, now)

    def failed(
        self, member: Member, request: Request, error: GsocksError, now: float, *, began: float
    ) -> None:
        """The exit has not connected a request that was sent to it at ``began``."""
        self._clients.note(client_of(request), now)
        if error.fault is Fault.EXIT:
            self._fail(member, str(error), now, began)
        elif request.command in LOOK_UPS:
            pass  # nothing was to be reached
        elif error.fault in (Fault.UNCLEAR, Fault.DESTINATION):
            self._doubt(member, request, str(error), now, began)

    def unwanted(self, member: Member, request: Request, now: float) -> None:
        """The exit has answered by itself, with a status by which other exits are to be tried."""
        domain = domain_of(request.dest.host)
        if self._roster.domains.failed(member.name, domain, now):
            self._ejected_for(member, domain, "its own answer has a status of retry_on")

    def closed(self, member: Member, request: Request, now: float, *, began: float) -> None:
        """A connection has ended through which no byte has come back, though some should have."""
        self.request_failed(request, silent=True)
        if not member.health.has_worked:
            # never measured, it would count as the fastest and get all requests of that policy
            member.connect_time.penalise(self._slowest, now)
        why = "connected, but no bytes came back"
        self._doubt(member, request, why, now, began, silent=True)

    def checked(self, member: Member, ok: bool, now: float) -> None:
        """An active check of the exit has succeeded or failed."""
        member.health.checked(ok, now)
        self._roster.member_changed(member, now)

    def compared(self, member: Member, different: str | None, now: float) -> None:
        """The page of a check was compared with those of other exits; how it differs, or None."""
        member.different_page = different
        self._roster.member_changed(member, now)

    def probed(self, member: Member, ok: bool, why: str, now: float) -> None:
        """An exit that has yet to work has answered a connect probe, or has failed it.

        ``why``: how it has failed.  An answer shows that it speaks its protocol and accepts the
        login, and not that it serves requests.
        """
        if member.health.has_worked:
            return  # by a request meanwhile, which tells more
        if not ok:
            member.counts.last_error = why
        member.health.probed(ok, now)
        self._roster.member_changed(member, now)

    def probe_failed_too(self, member: Member, why: str, now: float, *, began: float) -> None:
        """A probe that began then has failed at an exit which requests had found to fail.

        They would go on to fail, so that it is ejected, or ejected anew if it was already.
        """
        health = member.health
        if health.knows_newer(began):
            return
        if health.is_ejected(now) or self._roster.may_eject(member, now):
            member.counts.last_error = why
            health.eject(now)
            self._ejected(member, why, now)
            self._roster.member_changed(member, now)

    def request_failed(self, request: Request, *, silent: bool = False) -> None:
        """A request of a session has failed at the session's exit."""
        if request.selector.session is not None:
            key = _session_key(request)
            trouble = self._troubled.peek(key)
            failed = 0 if trouble is None else trouble.failed
            self._troubled[key] = _Trouble(failed + 1, silent)

    # --- questions --------------------------------------------------------------------------

    def believes(self, member: Member, request: Request, fault: Fault, now: float) -> bool:
        """Whether the exit's failure to reach a destination needs no other exit's confirmation.

        Another exit of good standing has failed there too; or the exit has a precise word for it,
        and its words have been confirmed often, lately and without a doubt since.
        """
        destination = self._destinations.peek(request.dest)
        if destination is not None and destination.is_dead_to_others(member, now - self.fresh):
            return True
        if fault is not Fault.DESTINATION:
            return False
        confirmed = self._confirmed.peek(member) or 0
        if confirmed < self.confirmed or not member.health.proven or self._row(member):
            return False
        self._confirmed[member] = confirmed + 1
        return confirmed % 8 != 0

    def is_of_good_standing(self, member: Member) -> bool:
        """Whether the exit has served a request lately, and has not failed several since."""
        return member.health.proven and self._row(member) < self.telling - 1

    def has_doubts(self, member: Member) -> bool:
        """Whether the exit has failed since it has served a request, if ever."""
        run = self._runs.peek(member)
        return member.health.failures > 0 or (run is not None and run.failures > 0)

    def is_suspect(self, member: Member) -> bool:
        """Whether the exit has failed since it has served a request, if ever, in a way that no
        single dead destination explains: by itself, or at several destinations."""
        run = self._runs.peek(member)
        return member.health.failures > 0 or (run is not None and len(run.places) > 1)

    def has_failed_at(self, member: Member, dest: Address, now: float) -> bool:
        """Whether the exit has failed lately at a destination that none has served since."""
        destination = self._destinations.peek(dest)
        doubt = None if destination is None else destination.doubts.get(member)
        return doubt is not None and doubt.began >= now - self.fresh

    def is_in_trouble(self, request: Request, kept: Member) -> bool:
        """Whether a session should try another exit than ``kept``, its own, for this request.

        Several of its requests in a row have failed there, and no other was served meanwhile.
        """
        trouble = self._troubled.peek(_session_key(request))
        if trouble is None or not self.has_doubts(kept):
            return False
        failed = trouble.failed
        return failed >= self.trouble and failed % self.trouble == 0

    def is_silenced(self, request: Request, kept: Member) -> bool:
        """The same, where the exit says "connected", so that no attempt at it would fail."""
        trouble = self._troubled.peek(_session_key(request))
        return trouble is not None and trouble.silent and self.is_in_trouble(request, kept)

    # --- doubts -----------------------------------------------------------------------------

    def _doubt(
        self,
        member: Member,
        request: Request,
        why: str,
        now: float,
        began: float,
        *,
        silent: bool = False,
    ) -> None:
        """File a failure to reach a destination; ``silent``: the exit had said "connected"."""
        key, client = request.dest, client_of(request)
        destination = self._destinations.get(key)
        if destination is None:
            destination = self._destinations[key] = _Destination()
        served = self._served.peek(key)
        explained = destination.is_dead_to_others(member, now - self.fresh)
        in_session = request.selector.session is not None
        unserved = self._unserved.get(client) or 0
        self._unserved[client] = unserved + 1
        if not in_session and max(unserved, self._row(member)) < self.telling:
            self._bad += 1
        doubt = destination.add(member, client, why, began, silent=silent)
        if served is not None and served[0] is not member and served[1] >= began:
            # silence shows late: meanwhile another exit has served it
            self._contradict(member, key, doubt, now)
            return
        if self.is_of_good_standing(member):
            destination.dead_to, destination.dead_at = member, now
            self._excuse(destination, key, member, now)
        if explained:
            self._confirm(member)
            return
        if silent and not in_session and doubt.silences >= self._settings.failures:
            # A destination may be silent to one exit; others need not have shown that it answers.
            self._eject_for(member, destination_of(key), why, now)
        if member.health.knows_newer(began):
            return
        run = self._run(member)
        run.failures += 1
        _note(run.places, key, client)
        # A client that fails wherever it turns says nothing of an exit, nor does a session, which
        # has but one.
        if not in_session and unserved < self.telling:
            _note(run.unknown, key, client)
            self._weigh(member, run, why, now)
            self._set_doubted(member, now)

    def _excuse(self, destination: _Destination, key: Address, by: Member, now: float) -> None:
        """An exit of good standing has failed at a destination too: the others' word was true."""
        for other in destination.doubts:
            if other is not by:
                self._confirm(other)
                run = self._runs.peek(other)
                if run is None:
                    continue
                run.places.pop(key, None)
                if run.unknown.pop(key, None) is not None:
                    run.failures -= 1
                    self._set_doubted(other, now)

    def _set_doubted(self, member: Member, now: float) -> None:
        """Leave most requests of an exit in doubt to others: do they serve the destinations?"""
        is_doubted = self._row(member) >= self.telling
        if member.health.is_doubted != is_doubted:
            member.health.is_doubted = is_doubted
            self._roster.member_changed(member, now)

    def _reached(self, member: Member, key: Address, began: float, now: float) -> None:
        """An exit has served a destination: which contradicts those that failed there before."""
        destination = self._destinations.peek(key)
        if destination is None:
            return
        self._destinations.discard(key)
        for other, doubt in destination.doubts.items():
            if other is not member and now - self.fresh <= doubt.began <= began:
                self._contradict(other, key, doubt, now)

    def _contradict(self, member: Member, key: Address, doubt: _Doubt, now: float) -> None:
        self._confirmed.discard(member)
        self._blame(member, doubt.why, now)
        scope = destination_of(key)
        if self._is_one_of_many() and self._roster.domains.failed(
            member.name, scope, now, began=doubt.began
        ):
            self._ejected_for(member, scope, doubt.why)
        if not member.health.knows_newer(doubt.began):  # a success in between forgives
            run = self._run(member)
            run.unknown.pop(key, None)
            _note(run.contradicted, key, doubt.client)
            self._weigh(member, run, doubt.why, now)

    def _weigh(self, member: Member, run: _Run, why: str, now: float) -> None:
        """Eject an exit for its row of doubts, or only for the one client that has seen them."""
        limit, seen = member.health.limit, run.contradicted
        if len(seen) < limit:
            seen = {**run.unknown, **run.contradicted}
            if len(seen) < limit + 2 or not self._is_no_accident(run, len(seen)):
                return
            why = f"{len(seen)} destinations in a row failed: {why}"
        ((client, most),) = Counter(seen.values()).most_common(1)
        if len(seen) - most >= max(1, min(2, limit - 1)):
            self._eject(member, why, now)
        # one client may have made all of the destinations that it asks for
        elif self._clients.are_several(now - self.present):
            self._eject_for(member, client, why, now)
        elif self._eject(member, why, now, by_one_client=True):
            self._by_one_client[member] = client

    def _pardon(self, client: str, now: float) -> None:
        """Another client is there than the one on whose word exits are ejected."""
        for member, by in list(self._by_one_client.items()):
            if by != client:
                self._by_one_client.discard(member)
                if member.health.pardon():
                    self._eject_for(member, by, "seen by that client alone", now)
                    self._roster.member_changed(member, now)

    def _is_no_accident(self, run: _Run, failures: int) -> bool:
        """Whether as many failures in a row are next to impossible, by what others served."""
        good, bad = self._good - run.good, self._bad - run.bad - min(run.failures, self.telling)
        chance = (max(bad, 0) + 1) / (good + max(bad, 0) + 2)
        return bool(chance**failures < self.accident)

    def _confirm(self, member: Member) -> None:
        self._confirmed[member] = (self._confirmed.peek(member) or 0) + 1

    def _run(self, member: Member) -> _Run:
        run = self._runs.get(member)
        if run is None:
            run = self._runs[member] = _Run(self._good, self._bad)
        return run

    def _row(self, member: Member) -> int:
        """Different destinations in a row where the exit has failed."""
        run = self._runs.peek(member)
        return 0 if run is None else len(run.unknown) + len(run.contradicted)

    # --- verdicts ---------------------------------------------------------------------------

    def _blame(self, member: Member, why: str, now: float) -> None:
        """A request has failed by the exit's fault."""
        member.counts.failed += 1
        member.counts.last_error = why
        # counts as the slowest time possible, however soon it failed
        member.connect_time.penalise(self._slowest, now)

    def _fail(self, member: Member, why: str, now: float, began: float) -> None:
        """The exit has failed by itself."""
        self._blame(member, why, now)
        if member.tier == UNPROVEN:
            self._roster.unproven_tried(served=False)
        may_eject = partial(self._roster.may_eject, member, now)
        if member.health.failed(now, may_eject, began=began):
            self._ejected(member, why, now)
        elif self.on_failed is not None:
            self.on_failed(member)
        self._roster.member_changed(member, now)

    def _eject(self, member: Member, why: str, now: float, *, by_one_client: bool = False) -> bool:
        if member.health.is_ejected(now) or not self._roster.may_eject(member, now):
            return False
        member.health.eject(now, by_one_client=by_one_client)
        self._ejected(member, why, now)
        self._roster.member_changed(member, now)
        return True

    def _ejected(self, member: Member, why: str, now: float) -> None:
        self._runs.discard(member)
        self._confirmed.discard(member)
        seconds = member.health.ejected_until - now
        log.warning(
            "exit %s (%s) is ejected for %.0f s: %s", member.name, member.label, seconds, why
        )
        note("ejected", f"ejected for {seconds:.0f} s: {why}", exit=member.name)
        if self.on_failed is not None:
            self.on_failed(member)

    def _is_one_of_many(self) -> bool:
        return len(self._roster) > 1

    def _eject_for(self, member: Member, scope: str, why: str, now: float) -> None:
        """Eject the exit for one destination or client."""
        if self._is_one_of_many():
            domains, times = self._roster.domains, self._settings.failures
            if any(domains.failed(member.name, scope, now) for _ in range(times)):
                self._ejected_for(member, scope, why)

    def _ejected_for(self, member: Member, scope: str, why: str) -> None:
        log.warning("exit %s (%s) is ejected for %s: %s", member.name, member.label, scope, why)
        note("ejected", f"ejected for {scope}: {why}", exit=member.name, subject=scope)


class _Trouble(NamedTuple):
    """Requests of a session that have failed in a row."""

    failed: int
    #: whether its exit said "connected" for the latest one
    silent: bool


class _Doubt(NamedTuple):
    """The latest failure of one exit at one destination."""

    client: str
    why: str
    began: float
    #: times in a row that the exit said "connected" and no byte came back
    silences: int


class _Destination:
    """A destination where exits have failed since it was last reached."""

    __slots__ = ("dead_at", "dead_to", "doubts")

    #: exits of which the doubts are remembered
    max_doubts = 8

    def __init__(self) -> None:
        self.doubts: dict[Member, _Doubt] = {}
        #: the exit of good standing that has failed there last, and when
        self.dead_to: Member | None = None
        self.dead_at = -math.inf

    def add(self, member: Member, client: str, why: str, began: float, *, silent: bool) -> _Doubt:
        earlier = self.doubts.pop(member, None)
        silences = 0 if earlier is None else earlier.silences
        doubt = self.doubts[member] = _Doubt(client, why, began, silences + silent)
        if len(self.doubts) > self.max_doubts:
            del self.doubts[next(iter(self.doubts))]
        return doubt

    def is_dead_to_others(self, member: Member, since: float) -> bool:
        """Whether an exit of good standing, not this one, has failed there since then."""
        return self.dead_at >= since and self.dead_to is not member


class _Run:
    """Failures of an exit to reach destinations, since it has last served one."""

    __slots__ = ("bad", "contradicted", "failures", "good", "places", "unknown")

    def __init__(self, good: int, bad: int) -> None:
        self.failures = 0
        #: different destinations, and the client that asked for each: those that others reach, and
        #: those that only this exit has tried
        self.contradicted: dict[Address, str] = {}
        self.unknown: dict[Address, str] = {}
        #: all of them, of sessions too
        self.places: dict[Address, str] = {}
        #: what the exits had served in all when it began, and what not
        self.good, self.bad = good, bad


#: destinations of a run that are remembered; more would change no decision
_MAX_ROW = 32


def _note(row: dict[Address, str], key: Address, client: str) -> None:
    row[key] = client
    if len(row) > _MAX_ROW:
        del row[next(iter(row))]


class _Clients:
    """Whether there are several clients."""

    __slots__ = ("_before", "_before_at", "_latest", "_latest_at")

    def __init__(self) -> None:
        self._latest = self._before = ""
        self._latest_at = self._before_at = -math.inf

    def note(self, client: str, now: float) -> None:
        """A client has sent a request."""
        if client != self._latest:
            self._before, self._before_at = self._latest, self._latest_at
            self._latest = client
        self._latest_at = now

    def are_several(self, since: float) -> bool:
        """Whether two different ones have sent requests since then."""
        return self._before_at >= since


def _session_key(request: Request) -> _SessionKey:
    return request.user or "", request.selector.session or ""
