"""Which exit serves a request, and what happens when it can't."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from random import Random
from typing import Any, NamedTuple, Protocol

from gsocks.address import Address
from gsocks.datagram import Screened
from gsocks.errors import (
    ConfigError,
    ConnectTimeout,
    Forbidden,
    NoExit,
)
from gsocks.exits.base import Connected, Exit, Listening
from gsocks.request import Request
from gsocks.rotation.health import HealthSettings, domain_of
from gsocks.rotation.policy import Policy, RoundRobin
from gsocks.rotation.roster import Changes, Member, Offer, Roster
from gsocks.rotation.session import Sessions
from gsocks.rules import Rules, Verdict
from gsocks.search import Search
from gsocks.stream import Stream
from gsocks.within import within

log = logging.getLogger("gsocks.rotation")

__all__ = ["Offer", "Way", "WaysOut"]


class Release(Protocol):
    """Tells that a way's stream is closed."""

    def __call__(
        self, up: int = 0, down: int = 0, broken: bool = False, by_itself: bool = False
    ) -> None:
        """``up`` and ``down``: bytes that were carried to the destination and from it.

        ``broken``: whether the stream did not come to its proper end, and not by the client's
        doing; ``by_itself``: whether the exit has told that this was its own.
        """


class Companion(Protocol):
    """What works for the ways while a door uses them."""

    def start(self) -> None:
        """Begin.  The exits are started then."""

    def close(self) -> None:
        """End.  Never blocks."""


class Way(NamedTuple):
    """A connected request."""

    stream: Stream
    #: the true bound address at the far end
    bound: Address
    #: the label of the exit that serves it
    exit: str
    #: to be called once, when the stream is closed: the exit has one connection less
    release: Release
    #: the name of the exit
    name: str = ""


class _Leave:
    """A :class:`Release`.  No partial: there is one for each connection, and this is small."""

    __slots__ = ("_dest", "_member", "_roster")

    def __init__(self, roster: Roster, member: Member, dest: Address | None) -> None:
        self._roster = roster
        self._member = member
        self._dest = dest

    def __call__(
        self, up: int = 0, down: int = 0, broken: bool = False, by_itself: bool = False
    ) -> None:
        self._roster.left(
            self._member,
            up,
            down,
            time.monotonic(),
            dest=self._dest,
            broken=broken,
            by_itself=by_itself,
        )


class WaysOut:
    """The exits behind a door, and the rules for what may be asked of them.

    ``exits`` may be empty if they come later, by :meth:`update`, which ``fed`` says.
    ``policy``: which exit is asked first, and which one after it; None is round robin.
    ``timeout``: seconds in which a request must be connected, whatever is tried for it.
    ``tries``: how many exits a request may try, while nothing has flowed.
    ``health``: when an exit is given up for a while; ``sessions``: who keeps which exit.
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
        random: Random | None = None,
    ) -> None:
        self.roster = Roster(_offers(exits), health, random or Random())  # noqa: S311
        if not len(self.roster) and not fed:
            raise ConfigError("no exits: there is no way out")
        self.sessions = Sessions() if sessions is None else sessions
        self._rules = rules
        self._policy = policy or RoundRobin()
        self._timeout = timeout
        self._tries = tries
        self._doors = 0
        self._companions: list[Companion] = []

    def accompany(self, companion: Companion) -> None:
        """Have ``companion`` start and close with the ways."""
        self._companions.append(companion)

    def start(self) -> None:
        """Let every exit begin to prepare.  Each door that shares these ways calls it."""
        self._doors += 1
        for member in self.roster:
            member.exit.start()
        if self._doors == 1:
            for companion in self._companions:
                companion.start()

    def close(self) -> None:
        """Let go what is idle in every exit, if no other door needs it."""
        self._doors -= 1
        if self._doors > 0:
            return
        for companion in self._companions:
            companion.close()
        for member in self.roster:
            member.exit.close()

    def update(self, exits: Iterable[Exit | Offer]) -> Changes:
        """Have these exits from now on; no connection ends by it.

        What is known of those that stay is kept, and so are their sessions.  Raises ConfigError
        if there are none, and keeps what it has.
        """
        offers = _offers(exits)
        if not offers:
            raise ConfigError("no exits: there would be no way out")
        changes = self.roster.update(offers)
        if self._doors > 0:
            for member in changes.added:
                member.exit.start()
            for member in changes.removed:
                member.exit.close()
        return changes

    def connect(
        self, request: Request, tried: Callable[[str], None], failed: Collection[str] = ()
    ) -> Way:
        """Reach the destination by one exit, or by the next ones if it fails.

        ``tried`` is told the label of each exit that is asked; ``failed`` are the names of those
        by which the same was tried before, and that have connected it in vain.  Raises
        ConnectFailed or ClientError: the destination's failure at once, the last exit's own when
        all have failed, LimitReached where every exit has as many connections as it may have,
        NoExit where none is what the request wishes for.
        """
        self._ask_rules(request)
        member, made = self._reach(request, tried, failed)
        connected: Connected = made
        return self._way(member, *connected, request.dest)

    def may_try_again(self, request: Request, failed: Collection[str]) -> bool:
        """Whether ``request`` may go by another exit, after ``failed`` ones.

        The request of a session may not: it has one exit.
        """
        if request.wish.session is not None or len(failed) >= self._tries:
            return False
        given_up = self._members(failed)
        available = self.roster.available(request, given_up, time.monotonic())
        return any(member not in given_up for member in available)

    def associate(
        self, request: Request, tried: Callable[[str], None], sent_to: Callable[[Address], None]
    ) -> Way:
        """Have an exit carry the datagrams of an association; the way's stream is one of them.

        The rules are asked about the destination of each.  ``sent_to`` is told every destination
        that they don't deny, when it is new.  Raises as :meth:`connect` does, and
        CommandNotSupported where no exit carries datagrams.
        """
        member, made = self._reach(request, tried)
        connected: Connected = made

        def allows(dest: Address) -> bool:
            if self._rules.before_resolving(dest, request.user).verdict is Verdict.DENY:
                return False
            sent_to(dest)
            return True

        return self._way(member, Screened(connected.stream, allows), connected.bound)

    def bind(
        self,
        request: Request,
        tried: Callable[[str], None],
        seconds: float,
        waits: Callable[[Listening, str], None],
    ) -> Way:
        """Have an exit wait for a connection from the destination, or where that is unspecified,
        from anybody; the way's bound address is then the peer's own.

        ``waits`` is told what waits, and the label of its exit; it may close it, and raise.
        ``seconds``: how long it waits from then on.  Raises as :meth:`connect` does,
        ConnectTimeout if nobody came, StreamClosed if it was closed, CommandNotSupported where
        no exit can wait.
        """
        if not request.dest.is_unspecified:
            self._ask_rules(request)
        member, made = self._reach(request, tried)
        listening: Listening = made
        try:
            waits(listening, member.label)
            connected = within(seconds, None, listening.accept)
            if connected is None:
                raise ConnectTimeout(f"{request.dest}: has not connected within {seconds:g} s")
        except BaseException:
            self.roster.left(member, 0, 0, time.monotonic())
            raise
        finally:
            listening.close()
        return self._way(member, *connected)

    def _ask_rules(self, request: Request) -> None:
        decision = self._rules.before_resolving(request.dest, request.user)
        if decision.verdict is Verdict.DENY:
            raise Forbidden(f"{request.dest} is forbidden: {decision.reason}")

    def _way(
        self, member: Member, stream: Stream, bound: Address, dest: Address | None = None
    ) -> Way:
        """``dest``: where something has to come back from."""
        return Way(stream, bound, member.label, _Leave(self.roster, member, dest), member.name)

    def _reach(
        self, request: Request, tried: Callable[[str], None], failed: Collection[str] = ()
    ) -> tuple[Member, Any]:
        """An exit, which has one connection more now, and what it made of the request."""
        given_up = self._members(failed)
        search = Search(request, self.roster, self.sessions, self._policy, given_up)
        # A timeout that is no ConnectFailed: an exit takes those for failures of its own parts.
        reached = within(self._timeout, None, search.run, self._timeout, self._tries, tried)
        if reached is None:
            raise ConnectTimeout(f"{request.dest}: not connected within {self._timeout:g} s")
        return reached

    def _members(self, names: Collection[str]) -> set[Member]:
        found = (self.roster.named(name) for name in names)
        return {member for member in found if member is not None}

    # --- what others know of the exits ------------------------------------------------------

    def report(self, name: str, ok: bool, domain: str) -> None:
        """An exit has served a domain well, or badly: by a captcha, a ban, a wrong answer.

        It stays in use for other domains.  Raises NoExit if there is none of that name, and
        BadAddress.
        """
        member, now = self._named(name), time.monotonic()
        if ok:
            self.roster.domains.succeeded(member.name, domain_of(domain), now)
        elif self.roster.domains.failed(member.name, domain_of(domain), now):
            log.warning("exit %s (%s) is out for %s", member.name, member.label, domain)

    def ban(self, name: str, seconds: float, domain: str | None = None) -> None:
        """Leave an exit alone for so long, or only for one domain and those below it.

        Raises NoExit, BadAddress.
        """
        member, now = self._named(name), time.monotonic()
        if domain is not None:
            self.roster.domains.ban(member.name, domain_of(domain), now + seconds, now)
        else:
            member.banned_until = now + seconds
            self.roster.changed()

    def unban(self, name: str, domain: str | None = None) -> None:
        """Use an exit again, whether it was banned or has failed.  Raises NoExit, BadAddress."""
        member, now = self._named(name), time.monotonic()
        if domain is not None:
            self.roster.domains.unban(member.name, domain_of(domain))
        else:
            member.banned_until = -math.inf
            member.health.succeeded(now)
            self.roster.changed()

    def drain(self, name: str, draining: bool = True) -> None:
        """Ask an exit nothing more, and let go on what is open; or use it again.

        Raises NoExit.
        """
        self._named(name).draining = draining
        self.roster.changed()

    def exit_of(self, user: str | None, session: str) -> str | None:
        """The name of the exit that a session has; None if it has none at present."""
        return self.sessions.exit_of((user or "", session), time.monotonic())

    def rotate(self, user: str | None, session: str) -> None:
        """Give a session another exit at its next request."""
        self.sessions.rotate((user or "", session), time.monotonic())

    def _named(self, name: str) -> Member:
        member = self.roster.named(name)
        if member is None:
            raise NoExit(f"no exit is called {name!r}")
        return member


def _offers(exits: Iterable[Exit | Offer]) -> list[Offer]:
    return [each if isinstance(each, Offer) else Offer(each) for each in exits]
