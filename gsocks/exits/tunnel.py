"""The way out through a gsocks server: a stream in a tunnel that waits in the pool."""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from functools import partial

import gevent

from gsocks.address import Address
from gsocks.crypto import Cipher, Key
from gsocks.errors import ClientError, ConnectFailed, ExitFailed, StreamClosed, StreamError
from gsocks.exits.base import Connected, Dials, Listening
from gsocks.pool import Pool
from gsocks.request import Request
from gsocks.tunnel import ClientTunnel, TunnelDatagrams, TunnelStream, connect_tunnel


class TunnelExit:
    """Opens streams at the gsocks server ``server``.

    ``timeout``: seconds for the connection to the server and the key agreement together.
    """

    #: seconds in which the server's machine must acknowledge a request that is put on an idle
    #: tunnel; TCP sends it three times in that, and would go on for two minutes
    acknowledged_within = 2.0

    def __init__(
        self,
        server: Address,
        key: Key,
        dialer: Dials,
        *,
        ciphers: Cipher = Cipher.SECRETBOX,
        timeout: float = 10.0,
        pool_size: int = 8,
        pool_max_idle: float = 300.0,
    ) -> None:
        self.label = f"gsocks://{server}"
        self._server = server
        self._key = key
        self._dialer = dialer
        self._ciphers = ciphers
        self._timeout = timeout
        self.pool = Pool(self._open_tunnel, size=pool_size, max_idle=pool_max_idle)

    def start(self) -> None:
        """Begin to open tunnels ahead of need."""
        self.pool.start()

    def connect(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Exit.connect`."""
        tunnel, bound = self._ask(request)
        return Connected(self.stream_in(tunnel), bound)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        tunnel, bound = self._ask(request)
        return Connected(TunnelDatagrams(tunnel, partial(self._stream_ended, tunnel)), bound)

    def bind(self, request: Request) -> Listening:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        tunnel, bound = self._ask(request)
        return _TunnelListener(self, tunnel, bound)

    def close(self) -> None:
        """Close the idle tunnels."""
        self.pool.close()

    def stream_in(self, tunnel: ClientTunnel) -> TunnelStream:
        """The stream that was opened in a tunnel, which comes back to the pool after it."""
        return TunnelStream(tunnel, partial(self._stream_ended, tunnel))

    def _ask(self, request: Request) -> tuple[ClientTunnel, Address]:
        """Put a request to the server, and have its answer.

        A tunnel that turns out to be dead is replaced by the next one, at last by a fresh one;
        the request has had no effect until OPENED is back.
        """
        while True:
            tunnel, fresh = self._take()
            try:
                bound = tunnel.open(request) if fresh else self._open_waiting(tunnel, request)
            except StreamError as error:
                tunnel.abort()
                if fresh:
                    raise ExitFailed(f"{self.label}: {error}") from None
            except (ConnectFailed, ClientError):
                self.pool.give_back(tunnel)
                raise
            except BaseException:  # the caller's timeout, or its end: the answer is still due
                tunnel.abort()
                raise
            else:
                return tunnel, bound

    def _take(self) -> tuple[ClientTunnel, bool]:
        try:
            return self.pool.take()
        except StreamError as error:
            raise ExitFailed(f"{self.label}: {error}") from None
        except ExitFailed:
            raise
        except ConnectFailed as error:
            raise ExitFailed(f"{self.label}: {error}") from None

    def _open_waiting(self, tunnel: ClientTunnel, request: Request) -> Address:
        """Open a stream in a tunnel that has waited, and whose path may be gone meanwhile."""
        doubt = gevent.get_hub().loop.timer(self.acknowledged_within)
        doubt.start(self._doubt, tunnel, time.monotonic(), update=True)
        try:
            return tunnel.open(request)
        finally:
            doubt.stop()
            doubt.close()

    def _doubt(self, tunnel: ClientTunnel, asked: float) -> None:
        """Runs in the hub when a request has had no answer for a while.

        The destination may be slow.  But if not even the server's kernel has acknowledged the
        request, then the tunnel's path is dead without a word (a middlebox forgot it, the
        network changed), and so are probably those of the tunnels that are as silent.
        """
        if not tunnel.closed and _unacknowledged(tunnel.fileno()):
            tunnel.abort()
            self.pool.distrust(asked)

    def _stream_ended(self, tunnel: ClientTunnel, reusable: bool) -> None:
        if reusable:
            self.pool.give_back(tunnel)

    def _open_tunnel(self) -> ClientTunnel:
        late = ExitFailed(
            f"no answer in {self._timeout:g} s: another key, clocks more than 30 s apart,"
            " or no gsocks server at that address"
        )
        with gevent.Timeout(self._timeout, late):
            sock = self._dialer.connect(self._server)
            try:
                return connect_tunnel(sock, self._key, self._ciphers)
            except BaseException:
                sock.close()
                raise


class _TunnelListener:
    """A port of the server's, which waits for one peer."""

    __slots__ = ("_exit", "_tunnel", "bound")

    def __init__(self, way: TunnelExit, tunnel: ClientTunnel, bound: Address) -> None:
        self._exit = way
        self._tunnel: ClientTunnel | None = tunnel
        self.bound = bound

    def accept(self) -> Connected:
        """See :meth:`gsocks.exits.base.Listening.accept`."""
        tunnel = self._tunnel
        if tunnel is None:
            raise StreamClosed("closed at this end")
        try:
            peer = tunnel.opened_again()
        except (ConnectFailed, ClientError):
            self._tunnel = None
            self._exit.pool.give_back(tunnel)
            raise
        except StreamClosed:
            raise
        except StreamError as error:
            raise ExitFailed(f"{self._exit.label}: {error}") from None
        self._tunnel = None
        return Connected(self._exit.stream_in(tunnel), peer)

    def close(self) -> None:
        """Wait no longer; the tunnel is given up with it, since an answer is still due."""
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.abort()


def _unacknowledged(fd: int) -> int:
    """Bytes written to a TCP socket that its peer has not acknowledged; SIOCOUTQ of tcp(7)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
