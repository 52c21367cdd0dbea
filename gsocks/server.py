"""The door that tunnels come to: requests in frames in front, ways out behind."""

from __future__ import annotations

import logging
import socket as std_socket
from collections.abc import Iterable

import gevent
from greenlet import greenlet

from gsocks.assemble import SomeExit, SomeKeys, SomeRules, make_keys
from gsocks.crypto import Cipher, KeyRing
from gsocks.door import Door, Visit
from gsocks.errors import (
    ClientError,
    GsocksError,
    HandshakeTimeout,
    IdleTimeout,
    StreamClosed,
    StreamError,
)
from gsocks.limits import Limits, Timeouts
from gsocks.networks import SomeNetworks
from gsocks.observe import Observer, Record
from gsocks.replay import ReplayGuard
from gsocks.request import Command, Request
from gsocks.shares import Shares
from gsocks.tunnel import ServerTunnel, TunnelDatagrams, TunnelStream, accept_tunnel, discard
from gsocks.ways_out import WaysOut
from gsocks.within import within

log = logging.getLogger("gsocks.server")

#: strangers that are read from and answered nothing until their time is over; what comes
#: beyond is closed at once, so that they can't use up the descriptors
MAX_STRANGERS = 1024

_NO_KEYS: SomeKeys = {}
_LATE = IdleTimeout()


class RemoteServer(Door):
    """Serves tunnels whose other end knows one of ``keys``: a name and a key for each.

    ``guard``: the hellos seen, shared by all processes that serve the same address.  The rest
    is as in :class:`gsocks.door.Door`.
    """

    name = "server"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: WaysOut | Iterable[SomeExit] = ("direct",),
        keys: SomeKeys = _NO_KEYS,
        *,
        rules: SomeRules = None,
        guard: ReplayGuard | None = None,
        ciphers: Cipher = Cipher.SECRETBOX,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        clients: SomeNetworks = None,
        proxy_protocol_from: SomeNetworks = None,
        shares: Shares | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(
            listener,
            exits,
            rules=rules,
            timeouts=timeouts,
            limits=limits,
            clients=clients,
            proxy_protocol_from=proxy_protocol_from,
            shares=shares,
            observer=observer,
        )
        self.keys = make_keys(keys)
        self._owns_guard = guard is None
        self._guard = ReplayGuard() if guard is None else guard
        self._ciphers = ciphers
        #: greenlets whose client has not proved to know a key, and how many of them never will
        self._unproven: set[greenlet] = set()
        self._strangers = 0
        self._idle: set[ServerTunnel] = set()

    def serve(self, visit: Visit) -> None:
        """Agree on keys, then carry request after request."""
        unproven = gevent.getcurrent()
        self._unproven.add(unproven)
        try:
            tunnel = self._agree(visit)
        finally:
            self._unproven.discard(unproven)
        if tunnel is not None:
            visit.understood()
            # one local end has as many tunnels as its clients have connections, and it is known
            self.uncount(visit)
            self._serve_tunnel(visit, tunnel)

    def _agree(self, visit: Visit) -> ServerTunnel | None:
        try:
            with gevent.Timeout(visit.time_left(self.timeouts.handshake), HandshakeTimeout()):
                return accept_tunnel(visit.sock, self.keys, self._guard, self._ciphers)
        except (ClientError, StreamError) as error:
            self._turn_away(visit, error)
            return None

    def _turn_away(self, visit: Visit, error: GsocksError) -> None:
        """Tell the log, and the stranger nothing: not what was wrong, and not when we knew."""
        self._over(Record(self.name, str(visit.client)), error.word, str(error))
        visit.understood()  # as far as it ever will be; strangers have a bound of their own
        if self._strangers < MAX_STRANGERS:
            self._strangers += 1
            try:
                discard(visit.sock, visit.time_left(self.timeouts.handshake))
            finally:
                self._strangers -= 1
        visit.sock.close()
        visit.end()

    def _serve_tunnel(self, visit: Visit, tunnel: ServerTunnel) -> None:
        """Take requests until one has a stream, which goes on by itself."""
        while self._is_welcome(tunnel):
            try:
                request = self._wait_for_request(tunnel)
            except StreamError as error:
                self._log_end(visit, tunnel, error)
                break
            except ClientError as error:
                self._over(Record(self.name, str(visit.client)), error.word, str(error))
                tunnel.failed(error)
                continue
            if request is None:
                break
            kind = TunnelDatagrams if request.command is Command.UDP_ASSOCIATE else TunnelStream
            stream = kind(tunnel, _Next(self, visit, tunnel))
            record = Record(self.name, str(visit.client))
            if self.carry(request, tunnel, stream, record, sock=visit.sock):
                return
        tunnel.close()
        visit.end()

    def _wait_for_request(self, tunnel: ServerTunnel) -> Request | None:
        self._idle.add(tunnel)
        try:
            request = within(self.timeouts.idle, _LATE, tunnel.accept)
        finally:
            self._idle.discard(tunnel)
        if isinstance(request, IdleTimeout):
            raise IdleTimeout
        return request

    def _stream_ended(self, visit: Visit, tunnel: ServerTunnel, reusable: bool) -> None:
        if reusable and self._is_welcome(tunnel):
            self.spawn(visit, self._serve_tunnel, visit, tunnel)
        else:
            tunnel.close()
            visit.end()

    def _is_welcome(self, tunnel: ServerTunnel) -> bool:
        return not self.stopping and self.keys.key(tunnel.user) == tunnel.key

    def _log_end(self, visit: Visit, tunnel: ServerTunnel, error: StreamError) -> None:
        expected = isinstance(error, (IdleTimeout, StreamClosed))
        log.log(
            logging.DEBUG if expected else logging.WARNING,
            "a tunnel of key %s from %s ended between two requests: %s",
            tunnel.user,
            visit.client,
            error,
        )

    # --- changes while it runs --------------------------------------------------------------

    def replace_keys(self, keys: KeyRing) -> None:
        """Take other keys; no open connection ends by it.

        A tunnel of a key that is gone takes no further request.
        """
        self.keys = keys
        for tunnel in list(self._idle):
            if not self._is_welcome(tunnel):
                tunnel.close()

    def stop(self, timeout: float | None = None) -> None:
        """See :meth:`gsocks.door.Door.stop`."""
        super().stop(timeout)
        if self._owns_guard:
            self._guard.close()

    def _give_up(self, greeter: greenlet) -> None:
        if greeter in self._unproven:  # else it has something else to do now
            greeter.throw()

    def drain(self) -> None:
        """Close what carries nothing: idle tunnels, and whoever has proved nothing yet."""
        for greeter in self._unproven:
            gevent.get_hub().loop.run_callback(self._give_up, greeter)
        for tunnel in list(self._idle):
            tunnel.close()


class _Next:
    """What a stream does with its tunnel when it is over.

    No partial: there is one for each connection, and this is a quarter of its size.
    """

    __slots__ = ("_server", "_tunnel", "_visit")

    def __init__(self, server: RemoteServer, visit: Visit, tunnel: ServerTunnel) -> None:
        self._server = server
        self._visit = visit
        self._tunnel = tunnel

    def __call__(self, reusable: bool) -> None:
        self._server._stream_ended(self._visit, self._tunnel, reusable)
