"""Connections to name servers, each through an exit, with many questions on each (RFC 7766).

A connection is one end of a pair of sockets whose other end is relayed like a client's, so that
exits, retries, limits of bandwidth, timeouts, log and metrics are those of any other connection.
"""

from __future__ import annotations

import socket as std_socket
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import gevent
from gevent.event import AsyncResult

from gsocks.address import Address
from gsocks.deadline import call_within
from gsocks.dns_listener.wire import BadAnswer, ident_of
from gsocks.errors import ConnectTimeout, ExitFailed, GsocksError, LimitReached, StreamError
from gsocks.net.greenlets import GreenletPool
from gsocks.sock import Socket
from gsocks.stream import Reader, send_now

#: questions that wait on one connection
MAX_WAITING = 64
#: connections to one name server
MAX_CONNECTIONS = 8
#: questions on a connection before another one is opened beside it: name servers may answer them
#: in their order, so that a slow one holds up those behind it
MAX_BEHIND = 8
#: seconds after a connection that no exit could make in which none is asked for again: else each
#: question of a flood would ask all exits, and be a line in the log
PAUSE = 1.0
#: seconds after which an idle connection is closed
IDLE = 20.0

_MAX_IDENT = 0xFFFF

#: relays what comes from the socket to the name server, until both have ended; closes it if no
#: exit connects, and calls the last argument when one has.  Runs in a greenlet of its own.
Carry = Callable[[Address, Socket, Callable[[], None]], None]


class Connection:
    """A connection to a name server."""

    __slots__ = ("_idents", "_on_close", "_sock", "_timer", "_waiting", "heard", "is_connected")

    def __init__(self, sock: Socket, on_close: Callable[[Connection], None]) -> None:
        self._sock = sock
        self._on_close = on_close
        #: by the ID of the question
        self._waiting: dict[int, AsyncResult[bytes]] = {}
        self._idents = count(1)
        #: how many answers have come
        self.heard = 0
        self._timer: Any = None
        #: whether an exit has connected it
        self.is_connected = False

    def __repr__(self) -> str:
        return f"<Connection {len(self._waiting)} questions, {self.heard} answers>"

    @property
    def waiting(self) -> int:
        """How many questions wait for their answers."""
        return len(self._waiting)

    def ask(self, make: Callable[[int], bytes], seconds: float) -> bytes:
        """The answer to the question that ``make`` writes with an ID.

        Raises ExitFailed if the connection ends before, ConnectTimeout if none comes in time.
        """
        ident = next(each for each in self._idents if (each & _MAX_IDENT) not in self._waiting)
        ident &= _MAX_IDENT
        result: AsyncResult[bytes] = AsyncResult()
        self._waiting[ident] = result
        self._stop_timer()
        heard = self.heard
        try:
            message = make(ident)
            late = ConnectTimeout(f"no answer within {seconds:g} s")
            return call_within(seconds, late, self._exchange, message, result)
        except ConnectTimeout:
            # it is as silent to all others; an exit that still connects has a bound of its own
            if self.is_connected and self.heard == heard:
                self.close(ExitFailed("the name server is silent"))
            raise
        finally:
            self._waiting.pop(ident, None)
            if not self._waiting:
                self._start_timer()

    def _exchange(self, message: bytes, result: AsyncResult[bytes]) -> bytes:
        data = len(message).to_bytes(2, "big") + message
        try:
            sent = send_now(self._sock.fileno(), data)
        except StreamError as error:
            raise ExitFailed(f"the connection to the name server has ended: {error}") from None
        if sent != len(data):  # as much as a pair of sockets holds waits: no name server takes it
            self.close(ExitFailed("the name server takes no more questions"))
        return cast(bytes, result.get())

    def connected(self) -> None:
        """An exit has connected it."""
        self.is_connected = True

    def read(self) -> None:
        """Hear answers until the connection ends.  Runs in a greenlet of its own."""
        reader = Reader(self._sock)
        error: GsocksError = ExitFailed("the name server has closed the connection")
        try:
            while True:
                size = int.from_bytes(reader.exactly(2, 4096), "big")
                self._hear(reader.exactly(size, 4096))
        except (StreamError, BadAnswer) as broken:
            if not isinstance(broken, StreamError):
                error = ExitFailed(f"the name server has sent {broken}")
        finally:
            self.close(error)

    def _hear(self, message: bytes) -> None:
        ident = ident_of(message)
        if ident < 0:
            raise BadAnswer("less than a header")
        self.heard += 1
        result = self._waiting.pop(ident, None)
        if result is not None:  # else it comes too late
            result.set(message)

    def close(self, error: GsocksError) -> None:
        """End it, and with it the questions that wait, by ``error``.  Never blocks."""
        self._stop_timer()
        self._on_close(self)
        self._sock.close()
        waiting, self._waiting = self._waiting, {}
        for result in waiting.values():
            result.set_exception(error)

    def _start_timer(self) -> None:
        if self._sock.fileno() >= 0 and self._timer is None:
            self._timer = gevent.get_hub().loop.timer(IDLE, ref=False)
            self._timer.start(self.close, ExitFailed("idle"))

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()


class Upstream:
    """Name servers and the connections to them."""

    def __init__(self, servers: Sequence[Address], carry: Carry) -> None:
        self.servers = tuple(servers)
        self._carry = carry
        self._open: dict[Address, list[Connection]] = {server: [] for server in servers}
        #: when a connection could not be made last, in monotonic seconds
        self._failed: dict[Address, float] = {}
        self._greenlets = GreenletPool()

    def __repr__(self) -> str:
        return f"<Upstream {', '.join(map(str, self.servers))}, {self.connections} connections>"

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(map(len, self._open.values()))

    def ask(self, server: Address, make: Callable[[int], bytes], seconds: float) -> bytes:
        """See :meth:`Connection.ask`.  Raises LimitReached if too many questions wait already."""
        return self._connection_to(server).ask(make, seconds)

    def _connection_to(self, server: Address) -> Connection:
        connections = self._open[server]
        least = min(connections, key=lambda each: each.waiting, default=None)
        if least is None or (least.waiting >= MAX_BEHIND and len(connections) < MAX_CONNECTIONS):
            return self._connect(server)
        if least.waiting >= MAX_WAITING:
            raise LimitReached(f"too many questions wait for {server}")
        return least

    def _connect(self, server: Address) -> Connection:
        connections = self._open[server]
        if time.monotonic() < self._failed.get(server, 0.0) + PAUSE:
            raise ExitFailed("no exit could connect a moment ago")

        def closed(connection: Connection) -> None:
            if connection in connections:
                connections.remove(connection)
                if not connection.is_connected:
                    self._failed[server] = time.monotonic()

        try:
            near, far = std_socket.socketpair()
        except OSError as error:
            raise ExitFailed(f"no socket: {error.strerror}") from None
        connection = Connection(_owned(near), closed)
        connections.append(connection)
        self._greenlets.spawn(connection.read)
        self._greenlets.spawn(self._carry, server, _owned(far), connection.connected)
        return connection

    def close(self) -> None:
        """Close all connections.  Never blocks."""
        for connections in self._open.values():
            for connection in list(connections):
                connection.close(ExitFailed("stopped"))

    def end(self) -> None:
        """End the greenlets, behind :meth:`close`."""
        self._greenlets.kill()
        self._greenlets.close()


def _owned(sock: std_socket.socket) -> Socket:
    return Socket(std_socket.AF_UNIX, sock.detach())
