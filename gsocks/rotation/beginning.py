"""A request's first attempt, made by the hub (docs/adr/0023-the-straight-way.md).

Most requests are connected by the first exit that is tried.  Such an attempt is an object here, not
a greenlet that waits.  Only when it fails, a greenlet goes on with the other exits
(rotation/failover.py), for which this attempt counts as the first one.
"""

from __future__ import annotations

import time
from typing import Protocol

from gsocks.errors import ExitDoubtful, GsocksError
from gsocks.exits.base import Attempt, Connected
from gsocks.net.deadlines import Deadlines
from gsocks.request import Request
from gsocks.rotation.connected import Group, Outbound
from gsocks.rotation.failover import Reached, note_connected
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.member import Member
from gsocks.tuples import new_tuple


class Begun(Protocol):
    """The owner of a request that the exit group begins to connect.  No call may block."""

    def attempted(self, label: str) -> None:
        """The exit of that label is tried."""

    def connected(self, outbound: Outbound) -> None:
        """The request is connected; the owner has to release the outbound."""

    def failed(self, first: FirstAttempt) -> None:
        """It is not yet: ``ExitGroup.connect(..., after=first)`` goes on, in a greenlet."""


class Beginning:
    """An attempt at one exit for ``begun``, until ``deadlines`` tell that it has lasted too long.

    Called by the exit with what it has made, or why it has failed.
    """

    __slots__ = ("_attempt", "_began", "_begun", "_deadlines", "_group", "_member", "_request")

    def __init__(
        self,
        group: Group,
        member: Member,
        request: Request,
        begun: Begun,
        began: float,
        deadlines: Deadlines,
    ) -> None:
        self._group = group
        self._member = member
        self._request = request
        self._begun = begun
        self._began = began
        self._deadlines = deadlines
        #: that of the exit
        self._attempt: Attempt

    def under_way(self, attempt: Attempt) -> None:
        """The exit has begun."""
        self._attempt = attempt
        self._deadlines.add(self, self._began)

    def __call__(self, made: Connected | GsocksError | None) -> None:
        """The exit's attempt has ended."""
        self._deadlines.discard(self)
        begun = self._let_go()
        if made is None:
            begun.failed(FirstAttempt(self._member, self._began, asked=1))
            return
        if isinstance(made, GsocksError):
            self._uncount()
            begun.failed(FirstAttempt(self._member, self._began, made))
            return
        group, member, began, now = self._group, self._member, self._began, time.monotonic()
        group.evidence.connected(member, self._request, now)
        note_connected(group.sessions, self._request, member, began, now)
        # without ``made``, which would last as long as the connection, and is used up here
        reached = new_tuple(Reached, (member, None, began, now - began, False))
        begun.connected(Outbound(made.stream, made.bound, reached, self._request, group))

    def expired(self) -> None:
        """See :meth:`gsocks.net.deadlines.Expires.expired`."""
        self._attempt.cancel()
        begun = self._let_go()
        self._uncount()
        member, seconds = self._member, self._deadlines.seconds
        if seconds >= self._group.timeout:
            first = FirstAttempt(member, self._began, timed_out=True)
        else:
            error = ExitDoubtful(f"{member.label}: not connected within {seconds:.3g} s")
            first = FirstAttempt(member, self._began, error)
        begun.failed(first)

    def cancel(self) -> None:
        """See :meth:`gsocks.exits.base.Attempt.cancel`."""
        if self._deadlines.discard(self):
            self._attempt.cancel()
            self._let_go()
            self._uncount()

    def _let_go(self) -> Begun:
        """The request's owner; it and the exit's attempt refer to this one, which would be a cycle
        for the garbage collector."""
        begun = self._begun
        del self._begun, self._attempt
        return begun

    def _uncount(self) -> None:
        self._group.roster.request_done(self._member)
        self._group.roster.connection_closed(self._member, self._request)
