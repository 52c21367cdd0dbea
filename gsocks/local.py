"""The door that clients come to: SOCKS in front, ways out behind."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Iterable

import gevent

from gsocks.assemble import SomeExit, SomeRules, SomeUsers, make_users
from gsocks.door import Door, Visit
from gsocks.errors import ClientError, HandshakeTimeout
from gsocks.handshake import negotiate
from gsocks.limits import Limits, Timeouts
from gsocks.observe import Observer, Record
from gsocks.stream import SocketStream, close_after_reply
from gsocks.ways_out import WaysOut

#: seconds that a client has to read a refusal before its connection is closed for good
LAST_WORDS = 2.0


class LocalServer(Door):
    """Serves SOCKS clients.

    ``users``: who may come in, as a Users object or names and Argon2id hashes; None leaves the
    door open.  The rest is as in :class:`gsocks.door.Door`.
    """

    name = "local"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: WaysOut | Iterable[SomeExit] = ("direct",),
        *,
        rules: SomeRules = None,
        users: SomeUsers = None,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        observer: Observer | None = None,
    ) -> None:
        super().__init__(
            listener, exits, rules=rules, timeouts=timeouts, limits=limits, observer=observer
        )
        known = make_users(users)
        self._authenticate = None if known is None else known.verify

    def serve(self, visit: Visit) -> None:
        """Negotiate, connect, answer, relay: one request for each connection."""
        sock = visit.sock
        record = Record(self.name, str(visit.client))
        try:
            with gevent.Timeout(self.timeouts.handshake, HandshakeTimeout()):
                request, answer = negotiate(sock, self._authenticate)
        except ClientError as error:
            self._over(record, error.word, str(error))
        else:
            client = SocketStream(sock, request.payload)
            if self.carry(request, answer, client, record, ended=visit.end) is None:
                return
        close_after_reply(sock, LAST_WORDS)
        visit.end()
