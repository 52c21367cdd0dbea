"""The listener for tunnels: requests in frames in front, exits behind."""

from __future__ import annotations

import logging
import socket as std_socket
from collections.abc import Iterable
from typing import Any

import gevent
from greenlet import greenlet

from gsocks.crypto import KeyRing
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    ClientError,
    GsocksError,
    HandshakeTimeout,
    IdleTimeout,
    LimitReached,
    ProtocolViolation,
    StreamClosed,
    StreamError,
)
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.listener import Listener
from gsocks.inbound.options import ServerOptions, collect
from gsocks.inbound.served_tunnel import ServedTunnel
from gsocks.net.deadlines import Deadlines
from gsocks.replay import ReplayGuard
from gsocks.rotation.build import SomeExit, SomeKeys, make_keys
from gsocks.rotation.group import ExitGroup
from gsocks.stream import close_with_fin
from gsocks.transport.layers import LayeredSocket
from gsocks.transport.server import ServerTransport
from gsocks.transport.tunnels import LayeredServerTunnel
from gsocks.tunnel.discard import CLOSE_GRACE, discard
from gsocks.tunnel.server import ServerTunnel, accept_tunnel

log = logging.getLogger("gsocks.server")

_NO_KEYS: SomeKeys = {}


class RemoteServer(Listener):
    """Serves tunnels whose other end knows one of ``keys``: a name and a key for each.

    ``listener`` and ``exits`` are as in :class:`gsocks.inbound.listener.Listener`.  Options are
    given as keywords, as ``options``, or as both, where the keywords count; they are the fields of
    :class:`gsocks.inbound.options.ServerOptions`.  Raises ConfigError for what can't be used,
    TypeError for an option that does not exist.
    """

    name = "server"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        keys: SomeKeys = _NO_KEYS,
        options: ServerOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, ServerOptions, options, keywords)
        super().__init__(listener, exits, options)
        self.keys = make_keys(keys)
        self._owns_guard = options.guard is None
        self._guard = options.guard or ReplayGuard(keys=len(self.keys))
        self._ciphers = options.ciphers
        self._transport = ServerTransport(options.transport)
        #: greenlets whose client has not proved to know a key, or has too many tunnels
        self._unproven: set[greenlet] = set()
        #: tunnels that wait for a request
        self.idle_tunnels: set[ServerTunnel] = set()
        #: see :class:`gsocks.inbound.served_tunnel.TunnelListener`
        self.idle_deadlines = Deadlines(self.timeouts.idle)
        self.frame_deadlines = Deadlines(self.timeouts.handshake)

    def serve(self, connection: ClientConnection) -> None:
        """Agree on layers and keys, then carry request after request."""
        unproven = gevent.getcurrent()
        self._unproven.add(unproven)
        try:
            tunnel = self._agree(connection)
            if tunnel is not None:
                tunnel = self._within_limit(connection, tunnel)
        finally:
            self._unproven.discard(unproven)
        if tunnel is not None:
            connection.handshake_done()
            # a local end has as many tunnels as its clients have connections, and holds a key
            connection.uncount_client()
            tunnel.frame_timeout = self.timeouts.handshake
            tunnel.trace = connection.trace
            connection.trace("tunnel opened with key %s", tunnel.user)
            ServedTunnel(self, connection, tunnel).wait()

    def _agree(self, connection: ClientConnection) -> ServerTunnel | None:
        transport, reject = self._transport, self._reject_stranger
        kind: type[ServerTunnel] = ServerTunnel
        try:
            with gevent.Timeout(connection.time_left(self.timeouts.handshake), HandshakeTimeout()):
                if transport.has_layers:
                    kind, reject = LayeredServerTunnel, self._end_stranger
                    connection.sock = layered = LayeredSocket(connection.sock)
                    transport.begin(layered)
                    reject = self._reject_stranger
                return accept_tunnel(connection.sock, self.keys, self._guard, self._ciphers, kind)
        except ProtocolViolation as error:  # of a client that knows a key, and has its answer
            connection.new_request().refused(error)
            connection.close(CLOSE_GRACE)
            return None
        except (ClientError, StreamError) as error:
            reject(connection, error)
            return None
        except BaseException:  # stopped
            close_with_fin(connection.sock)
            raise

    def _within_limit(
        self, connection: ClientConnection, tunnel: ServerTunnel
    ) -> ServerTunnel | None:
        """The tunnel; None if its key has too many, which its first request is told."""
        connections = self.limits.connections
        share = connections if len(self.keys) == 1 else max(1, connections // 2)
        try:
            connection.count_key(tunnel.user, self.limits.per_key or share)
        except LimitReached as error:
            self._refuse_tunnel(connection, tunnel, error)
            return None
        return tunnel

    def _refuse_tunnel(
        self, connection: ClientConnection, tunnel: ServerTunnel, error: LimitReached
    ) -> None:
        """Answer the first request by ``error`` and close; counts as a handshake until then."""
        refused = connection.new_request()
        refused.record.user = tunnel.user
        refused.finish(error.word, str(error))
        try:
            left = connection.time_left(self.timeouts.handshake)
            if call_with_timeout(left, tunnel.accept, on_timeout=None) is not None:
                tunnel.failed(error)
        except (StreamError, ClientError):
            pass  # it has asked for nothing that can be answered
        connection.close(CLOSE_GRACE)

    def _reject_stranger(self, connection: ClientConnection, error: GsocksError) -> None:
        """Log the failure; the stranger learns neither what was wrong nor when that was known."""
        connection.new_request().refused(error)
        # still among the handshakes, by which strangers are bounded
        discard(connection.sock, connection.time_left(self.timeouts.handshake))
        connection.close()

    def _end_stranger(self, connection: ClientConnection, error: GsocksError) -> None:
        """Log the failure of a layer, and end as any server of TLS or HTTP does."""
        if isinstance(error, StreamError):
            error.is_routine = not connection.unserved()  # as of a balancer's health check
        connection.new_request().refused(error)
        connection.close(CLOSE_GRACE)

    def is_accepted(self, tunnel: ServerTunnel) -> bool:
        """See :class:`gsocks.inbound.served_tunnel.TunnelListener`, as for the next one."""
        return not self.context.stopping and self.keys.key(tunnel.user) == tunnel.key

    def log_end(
        self, connection: ClientConnection, tunnel: ServerTunnel, error: StreamError
    ) -> None:
        expected = isinstance(error, (IdleTimeout, StreamClosed))
        log.log(
            logging.DEBUG if expected else logging.WARNING,
            "a tunnel of key %s from %s ended between two requests: %s",
            tunnel.user,
            connection.client,
            error,
        )

    # --- changes while it runs --------------------------------------------------------------

    def replace_keys(self, keys: KeyRing) -> None:
        """Replace the keys; open connections are not affected.

        A tunnel whose key was removed takes no further request.
        """
        self.keys = keys
        for tunnel in list(self.idle_tunnels):
            if not self.is_accepted(tunnel):
                tunnel.close()

    def replace_transport(self, transport: ServerTransport) -> None:
        """Replace what new tunnels travel in, its certificate included."""
        self._transport = transport

    def stop(self, timeout: float | None = None) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.stop`."""
        super().stop(timeout)
        if self._owns_guard:
            self._guard.close()

    def _kill_unproven(self, greeter: greenlet) -> None:
        if greeter in self._unproven:  # else it has something else to do now
            greeter.throw()

    def drain(self) -> None:
        """Close idle tunnels, and connections whose client has not proved that it knows a key."""
        self.context.silent.close()
        for greeter in self._unproven:
            gevent.get_hub().loop.run_callback(self._kill_unproven, greeter)
        for tunnel in list(self.idle_tunnels):
            tunnel.close()
