"""The straight way: a SOCKS5 CONNECT that the hub carries from its first byte to its last.

    greeting ->  <- method   request ->  ExitGroup.begin  <- reply   the pumps of the relay

Most connections of a listener without users are so: they wait for their client twice, for their
destination once, and for nothing else.  For that they need no greenlet, but a callback each time
(docs/adr/0023-the-straight-way.md).  Anything else goes on in a greenlet from the point that it
has reached: by LocalServer.serve, which reads as the protocol does.  A client sees no difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from gsocks.address import Address
from gsocks.errors import StreamError, Truncated, stream_failure
from gsocks.handshake import (
    NO_AUTHENTICATION,
    PLAIN_GREETING,
    Answer,
    Socks5Answer,
    disconnected,
    plain_connect,
    plain_greeting,
    socks5_success,
)
from gsocks.inbound.connection import CLOSE_GRACE, ClientConnection
from gsocks.inbound.context import ListenerContext
from gsocks.inbound.hub_request import HubRequest
from gsocks.observe import Record
from gsocks.request import Request
from gsocks.rotation.connected import Outbound
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.stream import SocketStream, send_all, send_now

# RFC 1928 section 3
_SOCKS5 = 5

# as in gsocks.handshake: greeting, request and a TLS ClientHello
_AT_ONCE = 4096


class Spawns(Protocol):
    """What has greenlets for connections."""

    def spawn(
        self, connection: ClientConnection, function: Callable[..., None], *args: object
    ) -> None:
        """Serve a part of ``connection`` in a greenlet; the connection is closed if that fails."""


class StraightListener(Spawns, Protocol):
    """The listener of straight connections."""

    @property
    def context(self) -> ListenerContext: ...

    @property
    def is_open(self) -> bool:
        """Whether clients without a login are served, all in the same way."""

    @property
    def prefers_login(self) -> bool:
        """See :class:`gsocks.access.login.Authenticator`."""

    def leave_straight_way(self, connection: ClientConnection, received: bytes) -> None:
        """Go on with the handshake in a greenlet, behind the greeting if that was answered."""

    def plain_request(self, dest: Address, payload: bytes, record: Record) -> Request:
        """The CONNECT of a client without a login."""


def receive(listener: StraightListener, connection: ClientConnection) -> None:
    """Go on with the handshake of a connection that can be read.

    It stays among the silent ones, and their bound in time counts, until its request is complete.
    """
    try:
        received = os.read(connection.sock.fileno(), _AT_ONCE)
    except BlockingIOError:
        return
    except OSError as error:
        _lost(connection, stream_failure(error))
        return
    if not received:
        _lost(connection, Truncated("the connection ended early"))
    elif connection.spoke_at is None:
        _greeting(listener, connection, received)
    else:
        _request(listener, connection, received, connection.spoke_at)


def _lost(connection: ClientConnection, error: StreamError) -> None:
    began = connection.spoke_at
    connection.context.silent.discard(connection)
    connection.new_request(began).refused(disconnected(error, has_spoken=began is not None))
    connection.close()


def _greeting(listener: StraightListener, connection: ClientConnection, received: bytes) -> None:
    began = time.monotonic()
    if received[0] != _SOCKS5 or not listener.is_open:
        length = 0
    elif received == PLAIN_GREETING:
        length = len(received)
    else:
        length = plain_greeting(received, listener.prefers_login)
    try:
        is_answered = length and send_now(connection.sock.fileno(), NO_AUTHENTICATION)
    except StreamError:
        is_answered = 0  # as the greenlet finds
    if not is_answered:
        listener.leave_straight_way(connection, received)
        return
    connection.spoke_at = began
    if len(received) > length:
        _request(listener, connection, received[length:], began)


def _request(
    listener: StraightListener, connection: ClientConnection, received: bytes, began: float
) -> None:
    found = plain_connect(received)
    if found is None:
        listener.leave_straight_way(connection, received)
        return
    dest, payload = found
    connection.context.silent.release(connection)
    # the relay takes the watcher over; what the client sends before waits
    connection.watcher.callback = stop_watching
    connection.handshake_done()
    record = connection.new_record(began)
    active = StraightRequest(listener, connection, record)
    active.begin(listener.plain_request(dest, payload, record))


def stop_watching(_: StraightListener, connection: ClientConnection) -> None:
    """The client of a request that is being connected can be read, or is gone."""
    connection.watcher.stop()


class StraightRequest(HubRequest):
    """A request of a connection that has no other."""

    __slots__ = ("_connection", "_listener")

    def __init__(self, listener: Spawns, connection: ClientConnection, record: Record) -> None:
        # the call of super() would cost as much as the rest
        self._context = connection.context
        self.record = record
        self._quota_user = None
        self._ending = None
        self._listener = listener
        self._connection = connection

    def begin(self, request: Request) -> None:
        """Connect and carry ``request``: in a greenlet, if it has to wait for anything else."""
        self._request = request
        record = self.record  # as by _note_request, without what can't be here
        record.session = request.selector.session
        record.command = request.command.word
        record.asked = request.dest
        self._begin()

    def _success(self, outbound: Outbound) -> bytes:
        """The answer to a request that is connected."""
        return socks5_success(outbound.bound)

    def _answer(self) -> Answer:
        """What answers in a greenlet."""
        return Socks5Answer(self._connection.sock)

    # --- see HubRequest -----------------------------------------------------------------------

    def _answer_now(self, outbound: Outbound) -> bytes:
        reply = self._success(outbound)
        return reply[send_now(self._connection.sock.fileno(), reply) :]

    def _send(self, unsent: bytes) -> None:
        send_all(self._connection.sock, unsent)

    def _client(self) -> tuple[SocketStream, ClientConnection]:
        connection = self._connection
        watcher, connection.watcher = connection.watcher, None
        return SocketStream(connection.sock, self._request.payload, watcher), connection

    def _in_greenlet(self, function: Callable[..., None], *args: object) -> None:
        self._connection.stop_watching()
        self._listener.spawn(self._connection, function, *args)

    def _carry(self, first: FirstAttempt | None) -> None:
        connection, request = self._connection, self._request
        sock = connection.sock
        stream = SocketStream(sock, request.payload)
        if not self.carry(request, self._answer(), stream, connection, sock, first):
            connection.close(CLOSE_GRACE)

    def _client_left(self) -> None:
        self._listener.spawn(self._connection, self._left_in_greenlet)

    def _left_in_greenlet(self) -> None:
        self._connection.close(CLOSE_GRACE)

    def _close(self) -> None:
        self._connection.close()
