"""The listener for Shadowsocks clients: chunks in front, exits behind.

Who does not prove to know a key is shown nothing, and the same end at the same moment, as at the
listener for tunnels.
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Iterable
from typing import Any

import gevent
from greenlet import greenlet

from gsocks.deadline import call_within
from gsocks.errors import ClientError, GsocksError, HandshakeTimeout, StreamError
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.listener import Listener
from gsocks.inbound.options import ListenerOptions, collect
from gsocks.inbound.unanswered import NoAnswer
from gsocks.request import CONNECT, Request
from gsocks.rotation.build import SomeExit
from gsocks.rotation.group import ExitGroup
from gsocks.shadowsocks.accept import Accepted, Guards, ServerKeys, accept
from gsocks.stream import close_with_fin, reset
from gsocks.tunnel.discard import discard

#: the name of the protocol in the debug log
ANSWER = NoAnswer("shadowsocks")


class ShadowsocksServer(Listener):
    """Serves Shadowsocks clients that know one of ``keys``.

    ``listener`` and ``exits`` are as in :class:`gsocks.inbound.listener.Listener`, and the options
    those of :class:`gsocks.inbound.options.ListenerOptions`.  ``guards``: what must not come twice,
    shared by all processes that serve the address; None: this one alone.
    """

    name = "shadowsocks"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit],
        keys: ServerKeys,
        guards: Guards | None = None,
        options: ListenerOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, ListenerOptions, options, keywords)
        super().__init__(listener, exits, options)
        self.keys = keys
        self._owns_guards = guards is None
        self._guards = guards or Guards.of(keys)
        #: greenlets whose client has not proved to know a key
        self._unproven: set[greenlet] = set()

    def replace_keys(self, keys: ServerKeys) -> None:
        """Replace the keys; open connections are not affected."""
        self.keys = keys

    def serve(self, connection: ClientConnection) -> None:
        """Read what the client asks for, and carry that."""
        unproven = gevent.getcurrent()
        self._unproven.add(unproven)
        try:
            accepted = self._read_head(connection)
        finally:
            self._unproven.discard(unproven)
        if accepted is not None:
            connection.handshake_done()
            self._carry(connection, accepted)

    def _read_head(self, connection: ClientConnection) -> Accepted | None:
        left = connection.time_left(self.timeouts.handshake)
        sock = connection.sock
        try:
            return call_within(left, HandshakeTimeout(), accept, sock, self.keys, self._guards)
        except (ClientError, StreamError) as error:
            self._reject_stranger(connection, error)
            return None
        except BaseException:  # stopped
            close_with_fin(sock)
            raise

    def _reject_stranger(self, connection: ClientConnection, error: GsocksError) -> None:
        """Log the failure; the stranger learns neither what was wrong nor when that was known."""
        connection.new_request().refused(error)
        # still among the handshakes, by which strangers are bounded
        discard(connection.sock, connection.time_left(self.timeouts.handshake))
        connection.close()

    def _carry(self, connection: ClientConnection, accepted: Accepted) -> None:
        active: ActiveRequest = connection.new_request()
        record = active.record
        request = Request(
            CONNECT,
            accepted.dest,
            accepted.user.name,
            client=record.client,
            trace=record.trace,
        )
        carried = False
        try:
            carried = active.carry(request, ANSWER, accepted.stream, connection)
        finally:  # also if the listener is stopped
            if not carried:
                reset(connection.sock)
                connection.end()

    def stop(self, timeout: float | None = None) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.stop`."""
        super().stop(timeout)
        if self._owns_guards:
            self._guards.close()

    def drain(self) -> None:
        """Close connections whose client has not proved that it knows a key."""
        self.context.silent.close()
        for greeter in self._unproven:
            gevent.get_hub().loop.run_callback(self._kill_unproven, greeter)

    def _kill_unproven(self, greeter: greenlet) -> None:
        if greeter in self._unproven:  # else it has something else to do now
            greeter.throw()
