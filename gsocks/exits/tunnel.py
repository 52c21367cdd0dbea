"""The way out through a gsocks server: a stream in a tunnel that waits in the pool."""

from __future__ import annotations

from functools import partial

import gevent

from gsocks.address import Address
from gsocks.crypto import Cipher, Key
from gsocks.dial import Dialer
from gsocks.errors import ConnectFailed, ExitFailed, StreamError
from gsocks.exits.base import Connected
from gsocks.pool import Pool
from gsocks.request import Request
from gsocks.tunnel import ClientTunnel, TunnelStream, connect_tunnel


class TunnelExit:
    """Opens streams at the gsocks server ``server``.

    ``timeout``: seconds for the connection to the server and the key agreement together.
    """

    def __init__(
        self,
        server: Address,
        key: Key,
        dialer: Dialer,
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
        """See :meth:`gsocks.exits.base.Exit.connect`.

        A tunnel that turns out to be dead is replaced by the next one, at last by a fresh one;
        the request has had no effect until OPENED is back.
        """
        while True:
            tunnel, fresh = self._take()
            try:
                bound = tunnel.open(request)
            except StreamError as error:
                tunnel.abort()
                if fresh:
                    raise ExitFailed(f"{self.label}: {error}") from None
            except ConnectFailed:
                self.pool.give_back(tunnel)
                raise
            except BaseException:  # the caller's timeout, or its end: the answer is still due
                tunnel.abort()
                raise
            else:
                return Connected(TunnelStream(tunnel, partial(self._stream_ended, tunnel)), bound)

    def close(self) -> None:
        """Close the idle tunnels."""
        self.pool.close()

    def _take(self) -> tuple[ClientTunnel, bool]:
        try:
            return self.pool.take()
        except StreamError as error:
            raise ExitFailed(f"{self.label}: {error}") from None
        except ExitFailed:
            raise
        except ConnectFailed as error:
            raise ExitFailed(f"{self.label}: {error}") from None

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
