"""The way out through a gsocks server: a stream in a tunnel that waits in the pool."""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from typing import Any, cast

import gevent
from gevent.event import Event

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import Cipher, Key
from gsocks.errors import (
    ClientError,
    ConnectFailed,
    ConnectTimeout,
    ExitFailed,
    GsocksError,
    LimitReached,
    OutOfResources,
    StreamClosed,
    StreamError,
    Withdrawn,
)
from gsocks.exits.base import Connected, Dials, Listening
from gsocks.pool import Pool
from gsocks.request import Request
from gsocks.tunnel import (
    MAX_BODY,
    ClientTunnel,
    Frame,
    TunnelDatagrams,
    TunnelStream,
    connect_tunnel,
)


class TunnelExit:
    """Opens streams at the gsocks server ``server``.

    ``timeout``: seconds for the connection to the server and the key agreement together.
    """

    #: seconds in which the server's machine must acknowledge a request that is put on an idle
    #: tunnel; TCP sends it three times in that, and would go on for two minutes
    acknowledged_within = 2.0
    #: seconds that a client which is the one to speak first takes to do so when it was told of
    #: success; a request waits no longer for bytes that travel with it (``fast_open``)
    first_words_within = 0.005

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
        if request.fast_open:
            tunnel, fresh = self._take()
            return Connected(_EarlyStream(self, tunnel, request, fresh), UNSPECIFIED)
        tunnel, bound = self._ask(request)
        return Connected(self.stream_in(tunnel), bound)

    def associate(self, request: Request) -> Connected:
        """See :meth:`gsocks.exits.base.Associates.associate`."""
        tunnel, bound = self._ask(request)
        return Connected(TunnelDatagrams(tunnel, _Return(self.pool, tunnel)), bound)

    def bind(self, request: Request) -> Listening:
        """See :meth:`gsocks.exits.base.Binds.bind`."""
        tunnel, bound = self._ask(request)
        return _TunnelListener(self, tunnel, bound)

    def close(self) -> None:
        """Close the idle tunnels."""
        self.pool.close()

    def stream_in(self, tunnel: ClientTunnel) -> TunnelStream:
        """The stream that was opened in a tunnel, which comes back to the pool after it."""
        return TunnelStream(tunnel, _Return(self.pool, tunnel))

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
        except (ExitFailed, LimitReached, OutOfResources):  # the latter two: of this machine
            raise
        except ConnectFailed as error:
            raise ExitFailed(f"{self.label}: {error}") from None

    def _open_waiting(self, tunnel: ClientTunnel, request: Request) -> Address:
        """Open a stream in a tunnel that has waited, and whose path may be gone meanwhile."""
        doubt = self._begin_to_doubt(tunnel)
        try:
            return tunnel.open(request)
        finally:
            doubt.stop()
            doubt.close()

    def _begin_to_doubt(self, tunnel: ClientTunnel) -> Any:
        """A timer, to be stopped and closed when the request that is put now has its answer."""
        timer = gevent.get_hub().loop.timer(self.acknowledged_within)
        timer.start(self._doubt, tunnel, time.monotonic(), update=True)
        return timer

    def _doubt(self, tunnel: ClientTunnel, asked: float) -> None:
        """Runs in the hub when a request has had no answer for a while.

        The destination may be slow.  But if not even the server's kernel has acknowledged the
        request, then the tunnel's path is dead without a word (a middlebox forgot it, the
        network changed), and so are probably those of the tunnels that are as silent.
        """
        if not tunnel.closed and _unacknowledged(tunnel.fileno()):
            tunnel.abort()
            self.pool.distrust(asked)

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


class _Return:
    """What a stream does with its tunnel when it is over.

    No partial: there is one for each connection, and this is a quarter of its size.
    """

    __slots__ = ("_pool", "_tunnel")

    def __init__(self, pool: Pool, tunnel: ClientTunnel) -> None:
        self._pool = pool
        self._tunnel = tunnel

    def __call__(self, reusable: bool) -> None:
        if reusable:
            self._pool.give_back(self._tunnel)


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


class _EarlyStream(TunnelStream):
    """A stream whose owner goes on before the server has said that it is open (``fast_open``).

    OPEN leaves together with what is written first, in the same write.  Where the destination is
    the one to speak first (SSH, SMTP) there is no such thing, and it leaves alone after
    ``first_words_within``.  What the server answers shows in :meth:`read`; if it is a refusal, or
    nothing, reader and writer get Withdrawn.

    Once OPEN has left nothing is tried again: bytes may have left with it, and a tunnel that
    ends doesn't tell whether the destination has had them.
    """

    __slots__ = ("_asked", "_asking", "_cause", "_doubt", "_due", "_exit", "_fresh", "_request")

    pollable = False

    def __init__(
        self, way: TunnelExit, tunnel: ClientTunnel, request: Request, fresh: bool
    ) -> None:
        super().__init__(tunnel, _Return(way.pool, tunnel))
        self._exit = way
        self._request = request
        #: whether the tunnel has not waited, so that there is no doubt about its path
        self._fresh = fresh
        #: whether OPEN has begun to leave; the event says that it has left
        self._asking = False
        self._asked = Event()
        #: whether the answer to it is still to come
        self._due = True
        #: why there is no stream, once that is known
        self._cause: GsocksError | None = None
        self._doubt: Any = None

    def read(self) -> bytes:
        if self._due:
            if not self._asked.wait(self._exit.first_words_within) and not self._asking:
                self._ask()
            self._await_asked()
            self._await_answer()
        return super().read()

    def write(self, data: bytes) -> None:
        if self._asking:
            self._await_asked()
        elif data:
            self._ask((Frame.DATA, data[:MAX_BODY]))
            data = data[MAX_BODY:]
        super().write(data)

    def write_eof(self) -> None:
        if self._asking:
            self._await_asked()
            super().write_eof()
        else:
            self._ask((Frame.FIN, b""))
            self._write_ended = True

    def abort(self) -> None:
        self._believe()
        if self._asking:
            super().abort()
            return
        tunnel, self._tunnel = self._tunnel, None
        self._asked.set()
        if tunnel is not None:
            self._ended(True)  # the server has heard nothing

    def _ask(self, *behind: tuple[Frame, bytes]) -> None:
        tunnel = self._open_tunnel()
        self._asking = self._writing = True
        if not self._fresh:
            self._doubt = self._exit._begin_to_doubt(tunnel)
        try:
            tunnel.ask(self._request, *behind)
        finally:
            self._writing = False
            self._asked.set()

    def _await_asked(self) -> None:
        """Returns when OPEN has left."""
        # Whoever waits for an event that is set, while others are told of it, takes its turn behind
        # them, and in gevent 26.9 that turn may never come.
        if not self._asked.is_set():
            self._asked.wait()

    def _await_answer(self) -> None:
        """Returns when the stream is open.  Raises Withdrawn, StreamClosed."""
        tunnel = self._open_tunnel()
        seconds = self._exit._timeout
        try:
            bound = gevent.with_timeout(seconds, tunnel.answer, timeout_value=None)
            if bound is None:
                self._give_up(ConnectTimeout(f"the server has not answered in {seconds:g} s"))
        except (ConnectFailed, ClientError) as error:
            self._refused(error)
        except StreamError as error:
            self._give_up(ExitFailed(f"{self._exit.label}: {error}"))
        finally:
            self._believe()
        self._open_tunnel()
        self._due = False

    def _give_up(self, cause: GsocksError) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:  # else it was ended at this end, which needs no cause
            self._cause = cause
            tunnel.abort()
            self._ended(False)

    def _refused(self, cause: GsocksError) -> None:
        """End our direction, as that of any refused stream ends: the tunnel can be used again."""
        tunnel = self._tunnel
        if tunnel is None or self._writing:
            self._give_up(cause)  # in the middle of a frame there is no place for FIN
            return
        self._tunnel, self._cause = None, cause
        reusable = True
        if not self._write_ended:
            try:
                with gevent.Timeout(self._exit.acknowledged_within, StreamClosed()):
                    tunnel.send(Frame.FIN)
            except StreamError:
                reusable = False  # and the tunnel is closed by it
        tunnel.used()
        self._ended(reusable)

    def _believe(self) -> None:
        """There is no doubt about the tunnel's path any more, or no matter."""
        doubt, self._doubt = self._doubt, None
        if doubt is not None:
            doubt.stop()
            doubt.close()

    def _open_tunnel(self) -> ClientTunnel:
        if self._cause is not None:
            raise Withdrawn.because(self._cause)
        return cast(ClientTunnel, super()._open_tunnel())


def _unacknowledged(fd: int) -> int:
    """Bytes written to a TCP socket that its peer has not acknowledged; SIOCOUTQ of tcp(7)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
