"""What every door does, whatever it speaks: admit, connect, answer, relay, count, drain.

local.py and server.py say how a client is understood; all that comes before and after is here.
"""

from __future__ import annotations

import errno
import logging
import socket as std_socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks.address import Address
from gsocks.assemble import SomeExit, SomeRules, make_ways_out
from gsocks.errors import ClientError, ConnectFailed, GsocksError, StreamClosed, StreamError
from gsocks.handshake import Answer
from gsocks.limits import Limits, Timeouts
from gsocks.observe import NullObserver, Observer, Record
from gsocks.relay import Relay, Totals
from gsocks.request import Request
from gsocks.stream import Stream, tune
from gsocks.ways_out import WaysOut

log = logging.getLogger("gsocks.door")

# Out of something that others will give back: waiting helps.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Visit:
    """One accepted connection, from accept to the end of everything that it led to."""

    __slots__ = ("_door", "client", "sock", "started")

    def __init__(self, door: Door, sock: socket, client: Address) -> None:
        self._door: Door | None = door
        self.sock = sock
        self.client = client
        #: monotonic seconds
        self.started = time.monotonic()

    def end(self) -> None:
        """Everything is closed.  Does nothing the second time."""
        door, self._door = self._door, None
        if door is not None:
            door._leave(self)


class Door(StreamServer):
    """A gevent StreamServer in front of ways out.

    ``listener``: ``(host, port)``, ``"host:port"`` or a listening socket; port 0 takes a free
    one, and :attr:`bound` tells which after :meth:`start`.  ``exits`` and ``rules`` are as in the
    config; or ``exits`` is a WaysOut of its own making, which doors may share.

    Raises ConfigError for what can't be used.
    """

    #: connections that wait to be accepted; the kernel caps it at net.core.somaxconn
    backlog = 1024
    #: seconds between two attempts to accept while descriptors have run out
    accept_pause = 0.25
    #: what the door is called in the access log
    name = "door"

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: WaysOut | Iterable[SomeExit] = ("direct",),
        *,
        rules: SomeRules = None,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        observer: Observer | None = None,
    ) -> None:
        super().__init__(listener, spawn=None)  # the hub admits; greeters serve
        self.timeouts = timeouts
        self.limits = limits
        self._ways_out = make_ways_out(exits, rules, timeouts=timeouts)
        self._observer = observer or NullObserver()
        self._visits: set[Visit] = set()
        self._by_client: Counter[str] = Counter()
        self._greeters = Group()
        self._relays: set[Relay] = set()
        self._deserted = Event()
        self._deserted.set()
        self._last_complaint = 0.0
        self.stopping = False

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen and serve, from greenlets of this thread's hub; returns at once."""
        super().start()
        self._ways_out.start()

    @property
    def bound(self) -> Address:
        """Where it listens; known after :meth:`start`."""
        return Address.from_sockaddr(self.socket.getsockname())

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._visits)

    def stop(self, timeout: float | None = None) -> None:
        """Listen no more; reset what is still open after ``timeout`` seconds (default 1)."""
        self.stopping = True
        self.close()
        self.drain()
        if not self._deserted.wait(self.stop_timeout if timeout is None else timeout):
            self._greeters.kill(block=False)
            for relay in list(self._relays):
                relay.abort(StreamClosed("stopped"))
            self._deserted.wait()
        self._ways_out.close()

    def drain(self) -> None:
        """Called once when stopping: end what is open but idle."""

    # --- admission --------------------------------------------------------------------------

    def do_read(self) -> Any:
        """Accept one connection.  gevent's hook; where it prints a traceback, we wait."""
        try:
            return super().do_read()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause_accepting(error)
            elif error.errno == errno.EBADF:
                raise
            # else: the client was gone before it was accepted (ECONNABORTED and its like)
            return None

    def _pause_accepting(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._last_complaint > 10:
            self._last_complaint = now
            log.error(
                "%s can't accept: %s, with %d connections open; trying again every %g s",
                self.name,
                error.strerror,
                self.connections,
                self.accept_pause,
            )
        self.stop_accepting()
        gevent.spawn_later(self.accept_pause, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self.started:
            self.start_accepting()

    def handle(self, sock: socket, sockaddr: tuple[str, int]) -> None:
        """Admit one connection; gevent calls it in the hub, where nothing may block."""
        client = Address.from_sockaddr(sockaddr)
        if (
            len(self._visits) >= self.limits.connections
            or self._by_client[client.host] >= self.limits.per_client
        ):
            sock.close()
            self._over(Record(self.name, str(client)), "limit", "too many connections")
            return
        visit = Visit(self, sock, client)
        self._visits.add(visit)
        self._by_client[client.host] += 1
        self._deserted.clear()
        self.spawn(visit, self._serve, visit)

    def do_close(self, *args: object) -> None:
        """gevent would close the socket when ``handle`` returns; ours lives on in its visit."""

    def _serve(self, visit: Visit) -> None:
        tune(visit.sock)
        self.serve(visit)

    def spawn(self, visit: Visit, function: Callable[..., None], *args: object) -> None:
        """Run a part of a visit in a greenlet of its own, after whose failure nothing is open."""
        self._greeters.spawn(self._guarded, visit, function, *args)

    def _guarded(self, visit: Visit, function: Callable[..., None], *args: object) -> None:
        try:
            function(*args)
        except BaseException as error:
            visit.sock.close()
            visit.end()
            if not isinstance(error, StreamError):  # killed by stop(), or a fault of ours
                raise

    def _leave(self, visit: Visit) -> None:
        self._visits.discard(visit)
        host = visit.client.host
        self._by_client[host] -= 1
        if not self._by_client[host]:
            del self._by_client[host]
        if not self._visits:
            self._deserted.set()

    # --- service ----------------------------------------------------------------------------

    def serve(self, visit: Visit) -> None:
        """Understand the client and carry its requests; ends the visit, or has it ended later."""
        raise NotImplementedError

    def carry(
        self,
        request: Request,
        answer: Answer,
        client: Stream,
        record: Record,
        ended: Callable[[], None] | None = None,
    ) -> GsocksError | None:
        """Connect one request, answer it, and relay until it is over.

        Returns None once the relay runs by itself, which calls ``ended`` after everything is
        closed; or why there is none, after the client was answered.
        """
        record.user = request.user
        record.dest = str(request.dest)
        try:
            way = self._ways_out.connect(request, partial(setattr, record, "exit"))
        except (ConnectFailed, ClientError) as error:
            self._over(record, error.word, str(error))
            answer.failed(error)
            return error
        except BaseException:
            self._over(record, "stopped")
            raise
        try:
            answer.succeeded(way.bound)
        except StreamError as error:
            way.stream.abort()
            self._over(record, f"client_{error.word}", str(error))
            return error
        except BaseException:
            way.stream.abort()
            self._over(record, "stopped")
            raise
        self._relay(client, way.stream, record, ended)
        return None

    def _relay(
        self, client: Stream, remote: Stream, record: Record, ended: Callable[[], None] | None
    ) -> None:
        def over(totals: Totals) -> None:
            self._relays.discard(relay)
            record.up, record.down = totals.up, totals.down
            self._over(record, totals.word, str(totals.error or ""))
            if ended is not None:
                ended()

        relay = Relay(
            client,
            remote,
            idle=self.timeouts.idle,
            half_closed=self.timeouts.half_closed,
            ended=over,
        )
        self._relays.add(relay)
        relay.run()

    def _over(self, record: Record, outcome: str, detail: str = "") -> None:
        record.outcome = outcome
        record.detail = detail
        self._observer.ended(record)
