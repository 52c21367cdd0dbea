"""The connection to an origin server on which a client has authenticated itself.

NTLM and Negotiate authenticate a connection and not a request (RFC 4559 section 6, MS-NTHT): their
messages, and all requests that follow, have to go over one connection.  So a client's connection is
pinned to it, until either ends.  No other client ever uses it.
"""

from __future__ import annotations

from gsocks.exits.forward import HttpConnection
from gsocks.request import Request
from gsocks.rotation.connected import HttpOutbound
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Member


class Pin:
    """What one client connection is pinned to; nothing at first."""

    __slots__ = ("_connection", "_member")

    def __init__(self) -> None:
        self._connection: HttpConnection | None = None
        self._member: Member | None = None

    def keep(self, outbound: HttpOutbound, up: int, down: int) -> None:
        """Release the exit of ``outbound``, and pin its connection in place of an earlier one."""
        self.close()
        self._connection, self._member = outbound.http, outbound.member
        outbound.release(up, down)

    def take(self, request: Request, group: ExitGroup) -> HttpOutbound | None:
        """The pinned connection for ``request``; None if it leads to another server, is not for
        this user, or has ended, or if its exit may not be used any more."""
        connection, member = self._connection, self._member
        if connection is None or member is None:
            return None
        before = connection.request
        if (before.dest, before.user, before.selector) != (
            request.dest,
            request.user,
            request.selector,
        ):
            return None
        self._connection = None
        if connection.is_dead or not group.may_go_on(member, request):
            connection.stream.abort()
            return None
        connection.request = request
        connection.reused = True
        return group.forward_over(connection, member)

    def close(self) -> None:
        """End it.  Never blocks."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.stream.abort()
