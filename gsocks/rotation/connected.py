"""Connected requests: each takes up a place at its exit until it is released."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from http.client import BAD_REQUEST, OK, responses
from types import TracebackType
from typing import Protocol

import gevent

from gsocks.address import Address
from gsocks.deadline import call_with_timeout
from gsocks.errors import ExitDoubtful, GsocksError
from gsocks.exits.forward import HttpConnection, open_connection
from gsocks.exits.kept import KeptConnections
from gsocks.observe import Details
from gsocks.request import CONNECT, Request
from gsocks.rotation.budgets import Budgets
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.failover import Reached
from gsocks.rotation.health import domain_of
from gsocks.rotation.host_limits import parse_retry_after
from gsocks.rotation.probe import ask_for_nothing
from gsocks.rotation.roster import Member, Roster
from gsocks.rotation.session import Sessions
from gsocks.stream import Stream

log = logging.getLogger("gsocks.rotation")

#: statuses by which HTTP proxies say that they can't serve a destination; origin servers have them
#: too
_GATEWAY_ERRORS = frozenset({403, 502, 503, 504})

#: connections of one exit beside which another one is worth the question whether it needs them
_MANY_KEPT = 2

#: an exit that does not tell what it has bound
_UNSPECIFIED = frozenset({"0.0.0.0", "::"})


class Group(Protocol):
    """What an outbound needs of the exit group that has made it."""

    @property
    def roster(self) -> Roster: ...

    @property
    def evidence(self) -> Evidence: ...

    @property
    def kept(self) -> KeptConnections: ...

    @property
    def sessions(self) -> Sessions: ...

    @property
    def budgets(self) -> Budgets: ...

    @property
    def timeout(self) -> float:
        """Seconds in which a request must be connected."""


class Outbound:
    """A connected request: the stream to its destination, and the place it takes up at its exit.

    Its owner closes or aborts the stream and then calls :meth:`release`, once for both.  As a
    context manager it covers the time in which it has no other owner yet: if the block raises, the
    stream is aborted and the exit released; if it ends normally, both stay as they are.
    """

    __slots__ = (
        "_answered",
        "_failed",
        "_group",
        "_reached",
        "_request",
        "bound",
        "carried",
        "stream",
    )

    def __init__(
        self, stream: Stream, bound: Address, reached: Reached, request: Request, group: Group
    ) -> None:
        #: may be wrapped by its owner, for example in a bandwidth limit
        self.stream = stream
        #: the address from which the destination is reached, at the far end
        self.bound = bound
        self._reached = reached
        self._request = request
        #: what the evidence has been told
        self._answered = self._failed = False
        self._group: Group | None = group
        #: bytes up and bytes down until now, where they can be read before the end
        self.carried: Sequence[int] = ()
        if reached.member.spending is not None:
            group.budgets.opened(self)

    @property
    def member(self) -> Member:
        """The exit that serves it."""
        return self._reached.member

    @property
    def exit(self) -> str:
        """The title of the exit that serves it: its name, or its URL without secrets."""
        return self._reached.member.title

    @property
    def name(self) -> str:
        """The name of the exit."""
        return self._reached.member.name

    def describe(self, details: Details) -> None:
        """Tell which exit has connected the request, and how."""
        reached, host = self._reached, self.bound.host
        details.exit = reached.member.name
        details.address = reached.member.address or ("" if host in _UNSPECIFIED else host)
        details.connect = reached.took
        details.connected = reached.began + reached.took

    def answered(self) -> None:
        """A byte has come back from the destination: the exit has served the request.

        The second call does nothing.
        """
        self._note_answer(self._reached.took)

    def failed(self, error: GsocksError) -> None:
        """The exit has not served the request after all, because of ``error``, whose fault counts.

        Does nothing once it has served it.
        """
        group, reached = self._group, self._reached
        if group is not None and not self._answered:
            self._failed = True
            now = time.monotonic()
            group.evidence.failed(reached.member, self._request, error, now, began=reached.began)
            # an attempt at it does not fail: another exit has to be tried at once
            group.evidence.request_failed(self._request, silent=True)

    def unwanted(self) -> None:
        """The exit has answered by itself, with a status by which other exits are to be tried."""
        group = self._group
        if group is not None:
            group.evidence.unwanted(self._reached.member, self._request, time.monotonic())

    def release(self, up: int = 0, down: int = 0, broken: bool = False) -> None:
        """The stream is closed: the exit has one connection less.  The second call does nothing.

        ``up`` and ``down``: bytes that were carried to the destination and from it.  ``broken``:
        whether the stream did not come to its proper end, and not by the client's doing.
        """
        if down:
            self._note_bytes()
        group, self._group = self._group, None
        if group is None:
            return
        reached, request = self._reached, self._request
        member = reached.member
        if not self._answered:
            group.roster.request_done(member)
        group.roster.connection_closed(member, request, up, down)
        if member.spending is not None:
            group.budgets.closed(self, up + down)
        known = self._answered or self._failed
        silent = not known and not down and (up > 0 or broken)
        if silent and request.command is CONNECT:
            group.evidence.closed(member, request, time.monotonic(), began=reached.began)

    def _note_bytes(self) -> None:
        """Bytes have come, at the latest by now."""
        if not self._answered:
            self.answered()

    def _note_answer(self, took: float | None) -> None:
        """``took``: seconds until it was connected; None: it was before."""
        group = self._group
        if self._answered or group is None:
            return
        self._answered = True
        member, request, now = self._reached.member, self._request, time.monotonic()
        if request.details is not None:
            request.details.answered = now
        group.roster.request_done(member)
        group.evidence.answered(member, request, now, began=self._reached.began, took=took)
        session = request.selector.session
        if session is not None:
            key = (request.user or "", session)
            if self._reached.on_trial:
                group.sessions.move(key, member, now)
            else:
                group.sessions.answered(key, member, self._reached.began, now)

    def abort(self, up: int = 0, down: int = 0) -> None:
        """Abort the stream and release the exit; the bytes are as for :meth:`release`."""
        self.stream.abort()
        self.release(up, down)

    def __enter__(self) -> Outbound:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()

    def __repr__(self) -> str:
        state = "released" if self._group is None else f"bound to {self.bound}"
        return f"<Outbound {state} by exit {self.name} ({self.member.label})>"


class HttpOutbound(Outbound):
    """An outbound for one HTTP request, over ``http``, which may carry others later.

    ``is_pinned``: whether these are of the same client only, which has authenticated itself.
    """

    __slots__ = ("http", "is_pinned")

    def __init__(
        self,
        http: HttpConnection,
        reached: Reached,
        request: Request,
        group: Group,
        *,
        is_pinned: bool = False,
    ) -> None:
        super().__init__(http.stream, http.bound, reached, request, group)
        self.http = http
        self.is_pinned = is_pinned

    @property
    def member(self) -> Member:
        """The exit in its roster."""
        return self._reached.member

    def responded(self, status: int) -> None:
        """A response with ``status`` has begun to come.

        In absolute form an error may be the proxy's own, by which it has served nothing.
        """
        http, group, reached = self.http, self._group, self._reached
        if group is None or (http.proxy is not None and status >= BAD_REQUEST):
            return
        now = time.monotonic()
        took: float | None = reached.took
        if not http.shows_connection:
            group.evidence.connected(reached.member, self._request, now)
            took = now - reached.began if http.proxy is not None else None
        self._note_answer(took)

    def refused(self, status: int, retry_after: str | None) -> None:
        """The response has a status by which sites bar an address for a time, and this value of
        Retry-After."""
        group, member = self._group, self._reached.member
        limits = None if group is None else group.roster.host_limits
        if limits is None:
            return
        host, now = domain_of(self._request.dest.host), time.monotonic()
        seconds = parse_retry_after(retry_after, time.time())
        until = limits.refused(member.name, host, status, seconds, now)
        if until > now:
            log.info(
                "exit %s (%s) rests for %.0f s for %s, which has answered %d",
                member.name,
                member.label,
                until - now,
                host,
                status,
            )

    def doubted(self, status: int) -> None:
        """The response had ``status``, which may be the proxy's own word in absolute form."""
        # sites have such answers for one client, whose session need not leave an exit that works
        in_session = self._request.selector.session is not None
        if in_session and self._reached.member.health.has_worked:
            return
        if self.http.proxy is not None and status in _GATEWAY_ERRORS:
            self.failed(ExitDoubtful(f"answers {status} {responses.get(status, '')}".rstrip()))

    def _note_bytes(self) -> None:
        if self.http.proxy is None:
            self.responded(OK)

    @property
    def is_proven(self) -> bool:
        """Whether the exit has shown that it works."""
        return self._reached.member.health.proven

    def fault(self) -> GsocksError | None:
        """Why the exit does not answer at all, when asked over a connection of its own for a
        destination that doesn't exist; None if it does.  Blocks."""
        exit_, group = self._reached.member.exit, self._group
        seconds = 10.0 if group is None else group.timeout / 2
        try:
            asked = call_with_timeout(seconds, ask_for_nothing, exit_, seconds, on_timeout=None)
        except GsocksError as error:
            return None if error.status else error
        return ExitDoubtful(f"{self.exit}: no answer in {seconds:g} s") if asked is None else None

    def reconnect(self, *, tunnel: bool = False) -> None:
        """Have a new connection of the same exit for the same request, instead of one that is of
        no use; ``tunnel``: one to the origin server.

        Raises as :meth:`gsocks.rotation.group.ExitGroup.connect` does.
        """
        group = self._group
        if group is None:
            raise ValueError("a released outbound")
        request = self.http.request
        self.stream.abort()
        self._reached = self._reached._replace(began=time.monotonic())
        try:
            made = call_with_timeout(group.timeout, self._open, request, tunnel, on_timeout=None)
            if made is None:
                raise ExitDoubtful(f"{self.exit}: not connected within {group.timeout:g} s")
        except GsocksError as error:
            self.failed(error)
            raise
        self.http = made
        self.is_pinned = False
        self.stream, self.bound = made.stream, made.bound

    def _open(self, request: Request, tunnel: bool) -> HttpConnection:
        return open_connection(self._reached.member.exit, request, tunnel=tunnel)

    def _learn_kind(self, member: Member, kept: KeptConnections) -> None:
        """Have an exit of which many connections are kept tell, once, whether one would do."""
        proxy = self.http.proxy
        if (
            proxy is not None
            and proxy.goes_by_each_url is None
            and kept.count(member.exit) >= _MANY_KEPT
        ):
            proxy.note_each_url(False)  # until it has told more
            gevent.spawn(self.fault)

    def give_back(self, up: int, down: int) -> None:
        """Release the exit, and keep the connection for another request.

        Nothing may be due over it, in either direction.
        """
        group = self._group
        if group is not None:
            member = self._reached.member
            self.release(up, down)
            if group.roster.named(member.name) is member and not member.draining:
                self._learn_kind(member, group.kept)
                self.http.renew_key(member.exit)
                group.kept.keep(member.exit, self.http)
            else:
                self.http.stream.abort()
