"""Clients that say nothing of where they want to go: those of a forward, and redirected ones.

The listener knows the destination of each; in many protocols it is the server that speaks first, so
that no byte of the client is waited for.
"""

from __future__ import annotations

import time

from gsocks.address import Address
from gsocks.errors import ClientError, ConnectFailed
from gsocks.handshake import Answer
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.listener import Listener
from gsocks.inbound.straight import StraightRequest
from gsocks.observe import Record
from gsocks.request import ANY, CONNECT, Request
from gsocks.rotation.connected import Outbound
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.stream import SocketStream, reset


class DirectedListener(Listener):
    """Connects each client to where :meth:`dest_of` says, and relays."""

    #: the exit selector of every client
    selector = ANY
    #: what its requests came by, in the log of debug level; its clients are answered nothing
    protocol_answer: Answer

    def dest_of(self, connection: ClientConnection) -> Address:
        """The destination of a client.  Raises ClientError, ConnectFailed.  Must not block."""
        raise NotImplementedError

    def wait_for_handshake(self, connection: ClientConnection, is_balanced: bool) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.wait_for_handshake`.  There is none."""
        if is_balanced:
            super().wait_for_handshake(connection, is_balanced)
            return
        dest = self._known_dest(connection)
        if dest is not None:
            request = self._begun(connection)
            request.begin(self._request_of(dest, request.record))

    def serve(self, connection: ClientConnection) -> None:
        """Carry a client that a balancer has announced."""
        dest = self._known_dest(connection)
        if dest is not None:
            request = self._begun(connection)
            request.carry_here(self._request_of(dest, request.record))

    def _known_dest(self, connection: ClientConnection) -> Address | None:
        """None if there is none: the client is refused then."""
        try:
            return self.dest_of(connection)
        except (ClientError, ConnectFailed) as error:
            connection.new_request().refused(error)
            connection.close()
            return None

    def _begun(self, connection: ClientConnection) -> DirectedRequest:
        connection.handshake_done()
        return DirectedRequest(self, connection, connection.new_record(time.monotonic()))

    def _request_of(self, dest: Address, record: Record) -> Request:
        """What a client asks for by connecting."""
        return Request(
            CONNECT,
            dest,
            selector=self.selector,
            client=record.client,
            trace=record.trace,
        )


class DirectedRequest(StraightRequest):
    """A connection that the hub carries to its destination.

    Its client is told nothing; of a failure, by a reset.
    """

    __slots__ = ()

    _listener: DirectedListener

    def carry_here(self, request: Request) -> None:
        """Connect and carry ``request``, from this greenlet."""
        self._request = request
        self._carry(None)

    # --- see HubRequest -----------------------------------------------------------------------

    def _answer_now(self, outbound: Outbound) -> bytes:  # noqa: ARG002
        return b""

    def _carry(self, first: FirstAttempt | None) -> None:
        connection = self._connection
        stream = SocketStream(connection.sock)
        carried = False
        try:
            carried = self.carry(
                self._request, self._listener.protocol_answer, stream, connection, after=first
            )
        finally:  # also if the listener is stopped
            if not carried:
                self._close()

    def _close(self) -> None:
        connection = self._connection
        connection.stop_watching()
        reset(connection.sock)
        connection.end()
