"""The exit group: the exits behind a listener, and connections through them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from random import Random
from typing import Any, Protocol

from gevent.lock import BoundedSemaphore

from gsocks.access.rule_index import SOME_PORT
from gsocks.access.rules import DENY, Rules, denied
from gsocks.address import Address
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    ConfigError,
    ConnectTimeout,
    GsocksError,
    NoExit,
)
from gsocks.events import note
from gsocks.exits.base import Attempt, Connected, Exit, PendingBind
from gsocks.exits.forward import HttpConnection, key_for, open_connection
from gsocks.exits.kept import KeptConnections
from gsocks.net.datagram import FilteredDatagrams
from gsocks.net.deadlines import Deadlines
from gsocks.net.own_listeners import OwnListeners
from gsocks.observe import no_trace
from gsocks.request import CONNECT, LOOK_UPS, ExitSelector, Request
from gsocks.rotation.beginning import Beginning, Begun
from gsocks.rotation.budgets import Budgets
from gsocks.rotation.connected import HttpOutbound, Outbound
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.failover import Failover, Reached, tell_choice
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.health import domain_of
from gsocks.rotation.hedging import Hedge
from gsocks.rotation.host_limits import make_host_limits
from gsocks.rotation.loop_probes import LoopProbes
from gsocks.rotation.policy import Policy
from gsocks.rotation.roster import Changes, Member, Offer, Roster
from gsocks.rotation.session import SessionKey, Sessions
from gsocks.settings import HealthSettings, PerHostSettings, ReuseSettings
from gsocks.turns import MustWait, give_way

log = logging.getLogger("gsocks.rotation")

__all__ = ["ExitGroup", "HttpOutbound", "Offer", "Outbound"]


class Service(Protocol):
    """A background task that runs while a listener uses the exit group, such as checks."""

    def start(self) -> None:
        """Begin; the exits are started already."""

    def update(self, changes: Changes) -> None:
        """The exits were replaced.  Never blocks."""

    def close(self) -> None:
        """End.  Never blocks."""


class ExitGroup:
    """The exits behind one or more listeners, and the rules for their destinations.

    ``exits`` may be empty only with ``fed``: then they are set later, by :meth:`update`.
    ``policy``: chooses the exit for each attempt; None is round robin.  ``timeout``: seconds in
    which a request must be connected, all attempts together.  ``tries``: how many exits a request
    may try.  ``health``: when failures eject an exit; ``sessions``: which session keeps which exit;
    ``few``: if there are more exits, each has to show that it works before it gets more than a few
    requests; None: none has to.  ``reuse``: which connections are kept for further HTTP requests.
    ``hedge``: seconds after which a second exit is tried for a request without a session; None:
    only when the first one has failed.  ``per_host``: the limits of each exit for each host.
    ``own_listeners``: those in front of the group, to which the exits must not lead.
    """

    def __init__(
        self,
        exits: Iterable[Exit | Offer],
        rules: Rules,
        *,
        fed: bool = False,
        policy: Policy | None = None,
        timeout: float = 10.0,
        tries: int = 3,
        health: HealthSettings = HealthSettings(),
        sessions: Sessions | None = None,
        reuse: ReuseSettings = ReuseSettings(),
        random: Random | None = None,
        few: int | None = None,
        hedge: float | None = None,
        per_host: PerHostSettings = PerHostSettings(),
        own_listeners: OwnListeners | None = None,
    ) -> None:
        self._updating = BoundedSemaphore()
        self.roster = Roster(
            _offers(exits),
            health,
            random or Random(),  # noqa: S311
            policy,
            few=few,
            give_way=give_way,
            host_limits=make_host_limits(per_host),
        )
        if not len(self.roster) and not fed:
            raise ConfigError("no exits: at least one is needed")
        self.evidence = Evidence(self.roster, health, slowest=timeout)
        self.budgets = Budgets(self.roster)
        self.sessions = Sessions() if sessions is None else sessions
        self._rules = rules
        self.timeout = timeout
        #: the listeners in front of it tell it of themselves
        self.own_listeners = OwnListeners() if own_listeners is None else own_listeners
        self._loop_probes = LoopProbes()
        #: idle connections of the exits
        self.kept = KeptConnections(reuse)
        self._tries = tries
        self._hedge = None if hedge is None else Hedge(hedge)
        #: of the attempts that the hub makes: the only one of a request, and one that others follow
        self._deadlines = Deadlines(timeout)
        self._deadlines_of_first = Deadlines(timeout / 2)
        self._inbounds = 0
        self._services: list[Service] = []

    def __repr__(self) -> str:
        policy = self.roster.policy_word
        return f"<ExitGroup exits={len(self.roster)} policy={policy} inbounds={self._inbounds}>"

    @property
    def heeds_names(self) -> bool:
        """Whether a client's user name can make a difference.

        There are several exits, or the only one has something by which it is selected.
        """
        return not self.roster.has_one or any(member.heeds_names for member in self.roster)

    def replace_tries(self, tries: int, hedge: float | None) -> None:
        """How many exits the next requests may try, and after how long a second one joins."""
        self._tries = tries
        if self._hedge is not None:
            self._hedge.close()
        self._hedge = None if hedge is None else Hedge(hedge)

    def replace_policy(self, policy: Policy) -> None:
        """Have ``policy`` choose the exits of the next requests; sessions keep theirs."""
        self.roster.replace_policy(policy)

    def add_service(self, service: Service) -> None:
        """Start and close ``service`` together with this group."""
        self._services.append(service)

    @property
    def services(self) -> Sequence[Service]:
        """Those that were added."""
        return self._services

    def start(self) -> None:
        """Start the services.  Each listener that shares this group calls it."""
        self._inbounds += 1
        if self._inbounds == 1:
            for service in self._services:
                service.start()

    def close(self) -> None:
        """Close what is idle in every exit, once the last listener has called it."""
        self._inbounds -= 1
        if self._inbounds > 0:
            return
        for service in self._services:
            service.close()
        self.budgets.close()
        if self._hedge is not None:
            self._hedge.close()
        self._loop_probes.close()
        self.kept.close()
        for member in self.roster:
            member.exit.close()

    def update(self, exits: Iterable[Exit | Offer]) -> Changes:
        """Replace the exits at run time; open connections are not affected.

        Exits that stay keep their state and their sessions.  Raises ConfigError, and changes
        nothing, if there are no exits.
        """
        given = list(exits)
        if not given:
            raise ConfigError("no exits: at least one is needed")
        with self._updating:  # which gives way to others
            self.own_listeners.exits_changed()
            changes = self.roster.update(_offers(given))
            self.budgets.update(changes)
            is_used = self._inbounds > 0
            for member in changes.removed:
                self._loop_probes.forget(member)
            for member in changes.removed if is_used else ():
                self.kept.close_all_of(member.exit)
                member.exit.close()
                give_way()
            if self._inbounds > 0:
                for service in self._services:
                    service.update(changes)
        return changes

    def connect(
        self,
        request: Request,
        on_attempt: Callable[[str], None],
        failed: Collection[str] = (),
        after: FirstAttempt | None = None,
    ) -> Outbound:
        """Connect to the destination by one exit, or by the next ones if it fails.

        ``on_attempt`` is called with the label of each exit that is tried.  ``failed``: the names
        of exits that have connected the same request, and then failed it.  ``after``: what
        :meth:`begin` has made of the first attempt.  Raises ConnectFailed or ClientError: the
        destination's failure at once, the last exit's failure when all have failed, LimitReached if
        every exit is at its limit, NoExit if none matches the selector.
        """
        if after is None:
            self._check_rules(request)
        elif after.timed_out:
            raise self._timed_out(request)
        reached = self._reach(request, on_attempt, failed, first=after)
        connected: Connected = reached.made
        return Outbound(*connected, reached, request, self)

    def begin(self, request: Request, begun: Begun) -> Attempt | FirstAttempt | None:
        """Begin to connect as :meth:`connect` does, without a greenlet; ``begun`` is told how that
        goes on, and not before this has returned.

        Where the first exit has to wait for something, or fails at once, :meth:`connect` has to go
        on after the returned FirstAttempt.  None: it has to do everything; nothing was counted.
        """
        if (
            request.command is not CONNECT
            or request.trace is not no_trace
            or (
                self._hedge is not None
                and not request.fast_open
                and request.selector.session is None  # which has one exit
            )
            or request.dest.host in self._loop_probes.asked
        ):
            return None
        decision = self._rules.before_resolving(request.dest, request.user)
        if decision.verdict is DENY:
            return None
        now = time.monotonic()
        self.evidence.arrived(request, now)
        last = self._tries == 1 or self.roster.has_one
        asked = request
        try:
            if request.selector.session is None:
                member = self.roster.choose(request, (), now, proven_only=last)
            else:
                failover = self._failover(request)
                member, asked = failover.first_of_session(now), failover.request_at_exit()
        except MustWait:  # a view of many exits is to be made, or is being made
            return None
        if member is None or self.roster.take_turn(member, request, now, 0.0) is None:
            return None
        exit_ = member.exit
        begun.attempted(member.title)
        if request.details is not None:
            tell_choice(request, self.roster, member)
        self.roster.request_sent(member, now)
        if not member.begins:
            return FirstAttempt(member, now)
        deadlines = self._deadlines if last else self._deadlines_of_first
        beginning = Beginning(self, member, request, begun, now, deadlines)
        try:
            self._loop_probes.about_to_ask(member)
            if member.max_connections is not None:
                self._make_room(member)
            attempt = exit_.begin(asked, beginning)  # type: ignore[attr-defined] # as ``begins`` says
        except BaseException as error:
            self.roster.request_done(member)
            self.roster.connection_closed(member, request)
            if not isinstance(error, GsocksError):
                raise
            return FirstAttempt(member, now, error)
        if attempt is None:
            return FirstAttempt(member, now)
        beginning.under_way(attempt)
        return beginning

    def _timed_out(self, request: Request) -> ConnectTimeout:
        error = ConnectTimeout(f"{request.dest}: not connected within {self.timeout:g} s")
        details = request.details
        if details is not None and details.exit:
            details.failed(details.exit, details.began, error.word, str(error))
        return error

    def forward(
        self,
        request: Request,
        on_attempt: Callable[[str], None],
        failed: Collection[str] = (),
        *,
        repeatable: bool,
        tunnel: bool = False,
        alone: bool = False,
    ) -> HttpOutbound:
        """A connection for one HTTP request to the destination, as :meth:`connect`.

        ``repeatable``: the request may be sent twice, so that it may be sent over a connection that
        was kept, and may just have been closed.  ``tunnel``: it needs a connection to the origin
        server, of its own.  ``alone``: as for :meth:`gsocks.exits.forward.Forwards.forward`.
        """
        self._check_rules(request)
        connect = partial(self._http_connection, repeatable and not alone, tunnel, alone)
        reached = self._reach(request, on_attempt, failed, connect)
        http: HttpConnection = reached.made
        return HttpOutbound(http, reached, request, self)

    def may_go_on(self, member: Member, request: Request) -> bool:
        """Whether an exit may be sent another request over a connection that it has, apart from
        its limits: it was not removed, banned, drained or ejected since."""
        is_there = self.roster.named(member.name) is member
        return is_there and self.roster.serves(member, request, time.monotonic())

    def forward_over(self, connection: HttpConnection, member: Member) -> HttpOutbound:
        """The connection of a client that has authenticated itself on it, for its next request,
        which is ``connection.request`` and as much allowed as the one before.
        """
        request, now = connection.request, time.monotonic()
        self.roster.join(member, request, now)
        self.roster.request_sent(member, now)
        reached = Reached(member, connection, now, 0.0, on_trial=False)
        return HttpOutbound(connection, reached, request, self, is_pinned=True)

    def _http_connection(
        self, reuse: bool, tunnel: bool, alone: bool, member: Member, request: Request
    ) -> HttpConnection:
        exit_ = member.exit
        connection = self.kept.take(exit_, key_for(exit_, request)) if reuse else None
        if connection is None:
            self._loop_probes.about_to_ask(member)
            self._make_room(member)
            return open_connection(exit_, request, tunnel=tunnel, once=not reuse, alone=alone)
        connection.request = request
        return connection

    def _serve(self, member: Member, request: Request) -> Any:
        """What the exit's method for the command returns."""
        self._loop_probes.about_to_ask(member)
        self._make_room(member)
        return member.method(request.command)(request)

    def _make_room(self, member: Member) -> None:
        """Close a kept connection of an exit that may not have so many besides a new one.

        The new one is among ``member.open`` already.
        """
        most, kept = member.max_connections, self.kept
        while most is not None and member.open + kept.count(member.exit) > most:
            if not kept.close_oldest(member.exit):
                return

    def may_try_again(self, request: Request, failed: Collection[str]) -> bool:
        """Whether ``request`` may be retried by another exit than the ``failed`` ones.

        A request of a session may not: a session has one exit.
        """
        if request.selector.session is not None or len(failed) >= self._tries:
            return False
        excluded = self._members(failed)
        return self.roster.has_other(request, excluded, time.monotonic())

    def associate(
        self,
        request: Request,
        on_attempt: Callable[[str], None],
        sent_to: Callable[[Address], None],
    ) -> Outbound:
        """Have an exit carry the datagrams of an association; the stream is one of datagrams.

        The rules are checked for the destination of each.  ``sent_to`` is called with every new
        destination that they don't deny.  Raises as :meth:`connect` does, and CommandNotSupported
        if no exit carries datagrams.
        """
        reached = self._reach(request, on_attempt)
        connected: Connected = reached.made

        def allows(dest: Address) -> bool:
            if self._rules.before_resolving(dest, request.user).verdict is DENY:
                return False
            sent_to(dest)
            return True

        datagrams = FilteredDatagrams(connected.stream, allows)
        return Outbound(datagrams, connected.bound, reached, request, self)

    def bind(
        self,
        request: Request,
        on_attempt: Callable[[str], None],
        seconds: float,
        on_listening: Callable[[PendingBind, str], None],
    ) -> Outbound:
        """Have an exit wait for a connection from the destination; if that is unspecified, from any
        peer.  The bound address of the result is the peer's.

        ``on_listening`` is called with the open port and the label of its exit; it may close the
        port, and raise.  ``seconds``: how long to wait from then on.  Raises as :meth:`connect`
        does, ConnectTimeout if no peer has connected, StreamClosed if the port was closed,
        CommandNotSupported if no exit serves BIND.
        """
        if not request.dest.is_unspecified:
            self._check_rules(request)
        reached = self._reach(request, on_attempt)
        pending: PendingBind = reached.made
        try:
            on_listening(pending, reached.member.title)
            connected = call_with_timeout(seconds, pending.accept, on_timeout=None)
            if connected is None:
                raise ConnectTimeout(f"{request.dest}: has not connected within {seconds:g} s")
        except BaseException:
            self.roster.request_done(reached.member)
            self.roster.connection_closed(reached.member, request)
            raise
        finally:
            pending.close()
        return Outbound(*connected, reached, request, self)

    def look_up(self, request: Request, on_attempt: Callable[[str], None]) -> Address:
        """Have an exit look up the address of a name, or the name of an address; the port is 0.

        The rules are asked about what is looked up, and about the address that is found.
        ``on_attempt`` is as for :meth:`connect`.  Raises as that does, and CommandNotSupported if
        no exit looks anything up.
        """
        self._check_rules(request)
        reached = self._reach(request, on_attempt)
        self.roster.request_done(reached.member)
        self.roster.connection_closed(reached.member, request)
        found: Address = reached.made
        if found.ip is not None:
            dest = _judged(request)
            decision = self._rules.for_ip(dest, found.ip, request.user)
            if decision.verdict is DENY:
                raise denied(dest, decision)
        return found

    def _check_rules(self, request: Request) -> None:
        self._loop_probes.arrived(request.dest)
        dest = _judged(request)
        decision = self._rules.before_resolving(dest, request.user)
        if decision.verdict is DENY:
            raise denied(dest, decision)

    def _reach(
        self,
        request: Request,
        on_attempt: Callable[[str], None],
        failed: Collection[str] = (),
        connect: Callable[[Member, Request], Any] | None = None,
        first: FirstAttempt | None = None,
    ) -> Reached:
        """The exit, which then has one connection more and one request in flight, and what
        ``connect`` returned."""
        left = self.timeout
        if first is not None:
            left = max(0.0, first.began + left - time.monotonic())
        excluded = self._members(failed) if failed else ()
        failover = self._failover(request, connect, excluded, first)
        # Not by an exception that is a ConnectFailed: an exit would take it for its own failure.
        reached = call_with_timeout(
            left, failover.run, self.timeout, self._tries, on_attempt, on_timeout=None
        )
        if reached is None:
            raise self._timed_out(request)
        return reached

    def _failover(
        self,
        request: Request,
        connect: Callable[[Member, Request], Any] | None = None,
        excluded: Collection[Member] = (),
        first: FirstAttempt | None = None,
    ) -> Failover:
        return Failover(
            request,
            self.roster,
            self.evidence,
            self.sessions,
            connect or self._serve,
            excluded,
            self._hedge,
            first,
        )

    def _members(self, names: Collection[str]) -> set[Member]:
        found = (self.roster.named(name) for name in names)
        return {member for member in found if member is not None}

    # --- operators and programs -------------------------------------------------------------

    def report(self, name: str, ok: bool, domain: str) -> None:
        """Report what a domain answered through an exit: ``ok``, or a captcha, a ban, an error.

        Reports never affect the exit's use for other domains.  Raises NoExit if there is no exit of
        that name, and BadAddress.
        """
        member, now = self._named(name), time.monotonic()
        if ok:
            self.roster.domains.succeeded(member.name, domain_of(domain), now)
        elif self.roster.domains.failed(member.name, domain_of(domain), now):
            log.warning("exit %s (%s) is ejected for %s", member.name, member.label, domain)
            note("ejected", f"ejected for {domain}: reported", exit=member.name, subject=domain)

    def ban(self, name: str, seconds: float, domain: str | None = None) -> None:
        """Don't use an exit for that many seconds, or only not for one domain and its subdomains.

        Raises NoExit, BadAddress.
        """
        member, now = self._named(name), time.monotonic()
        if domain is not None:
            self.roster.domains.ban(member.name, domain_of(domain), now + seconds, now)
        else:
            member.banned_until = now + seconds
            self.roster.member_changed(member, now)
        note("banned", f"banned for {seconds:g} s{_for(domain)}", exit=name, subject=domain or "")

    def unban(self, name: str, domain: str | None = None) -> None:
        """End the ban and the ejection of an exit.  Raises NoExit, BadAddress."""
        member, now = self._named(name), time.monotonic()
        if domain is not None:
            self.roster.domains.unban(member.name, domain_of(domain))
        else:
            member.banned_until = -math.inf
            member.health.succeeded(now)
            self.roster.member_changed(member, now)
        note("unbanned", f"unbanned{_for(domain)}", exit=name, subject=domain or "")

    def drain(self, name: str, draining: bool = True) -> None:
        """Send an exit no new requests, while open connections go on; or use it again.

        Raises NoExit.
        """
        member = self._named(name)
        member.draining = draining
        self.roster.member_changed(member, time.monotonic())
        kind = "drained" if draining else "undrained"
        note(kind, "draining" if draining else "draining stopped", exit=name)

    def computed(self, key: SessionKey, selector: ExitSelector) -> str | None:
        """The name of the exit that any process gives a session of which it knows nothing.

        None if there is none.  Blocks the calling greenlet while others have their turn.
        """
        member = self.roster.computed(key, selector)
        return None if member is None else member.name

    def exit_of(self, user: str | None, session: str) -> str | None:
        """The name of a session's exit; None if it has none."""
        return self.sessions.exit_of((user or "", session), time.monotonic())

    def rotate(self, user: str | None, session: str) -> None:
        """Move a session to another exit at its next request."""
        self.sessions.rotate((user or "", session), time.monotonic())

    def _named(self, name: str) -> Member:
        member = self.roster.named(name)
        if member is None:
            raise NoExit(f"no exit is called {name!r}")
        return member


def _for(domain: str | None) -> str:
    return "" if domain is None else f" for {domain}"


def _judged(request: Request) -> Address:
    """The destination that the rules are asked about."""
    if request.command in LOOK_UPS:
        return Address(request.dest.host, SOME_PORT)
    return request.dest


def _offers(exits: Iterable[Exit | Offer]) -> Iterator[Offer]:
    """One by one, since all of a long list would hold the loop."""
    return (each if isinstance(each, Offer) else Offer(each) for each in exits)
