"""The listener of a static forward: what connects to it has one destination, whatever it says.

    client  --- any protocol --->  ForwardServer  --- an exit --->  ``to``

As by ``ssh -L``; datagrams are forwarded by gsocks/inbound/udp_forward.py.
"""

from __future__ import annotations

import socket as std_socket
import time
from collections.abc import Iterable
from typing import Any

from gsocks.address import Address
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.listener import Listener
from gsocks.inbound.options import ForwardOptions, collect
from gsocks.inbound.straight import StraightRequest
from gsocks.inbound.unanswered import NO_ANSWER
from gsocks.net.listen import listen_address
from gsocks.observe import Record
from gsocks.request import CONNECT, Request
from gsocks.rotation.build import SomeExit
from gsocks.rotation.connected import Outbound
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.group import ExitGroup
from gsocks.stream import SocketStream, reset


class ForwardServer(Listener):
    """Connects each client to ``to``, and relays.

    ``listener`` and ``exits`` are as in :class:`gsocks.inbound.listener.Listener`.  Options are
    given as keywords, as ``options``, or as both, where the keywords count; they are the fields of
    :class:`gsocks.inbound.options.ForwardOptions`.  Raises ConfigError for what can't be used,
    TypeError for an option that does not exist.
    """

    name = "forward"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        to: Address,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        options: ForwardOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, ForwardOptions, options, keywords)
        options.check_reach(listen_address(listener), to)
        super().__init__(listener, exits, options)
        self._to = to
        self._selector = options.selector

    def wait_for_handshake(self, connection: ClientConnection, is_balanced: bool) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.wait_for_handshake`.

        There is none: in many protocols it is the server that speaks first.
        """
        if is_balanced:
            super().wait_for_handshake(connection, is_balanced)
            return
        connection.handshake_done()
        record = connection.new_record(time.monotonic())
        ForwardRequest(self, connection, record).begin(self._request_of(record))

    def serve(self, connection: ClientConnection) -> None:
        """Carry a client that a balancer has announced."""
        connection.handshake_done()
        record = connection.new_record(time.monotonic())
        ForwardRequest(self, connection, record).carry_here(self._request_of(record))

    def _request_of(self, record: Record) -> Request:
        """What a client asks for by connecting."""
        return Request(
            CONNECT,
            self._to,
            selector=self._selector,
            client=record.client,
            trace=record.trace,
        )


class ForwardRequest(StraightRequest):
    """A connection that the hub carries to its one destination.

    Its client is told nothing; of a failure, by a reset.
    """

    __slots__ = ()

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
            carried = self.carry(self._request, NO_ANSWER, stream, connection, after=first)
        finally:  # also if the listener is stopped
            if not carried:
                self._close()

    def _close(self) -> None:
        connection = self._connection
        connection.stop_watching()
        reset(connection.sock)
        connection.end()
