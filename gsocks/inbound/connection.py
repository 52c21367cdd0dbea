"""What every door does, whatever it speaks: admit, connect, answer, relay, count, drain.

local.py and server.py say how a client is understood; all that comes before and after is here.
"""

from __future__ import annotations

import errno
import logging
import os
import socket as std_socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, cast

import gevent
from gevent.event import Event
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks.address import Address
from gsocks.assemble import SomeExit, SomeRules, make_ways_out
from gsocks.crew import Crew
from gsocks.errors import (
    ClientError,
    ClientForbidden,
    ConnectFailed,
    Fault,
    GsocksError,
    HandshakeTimeout,
    LimitReached,
    OutOfResources,
    StreamClosed,
    StreamError,
    Withdrawn,
)
from gsocks.handshake import Answer
from gsocks.limits import Limits, Timeouts
from gsocks.networks import Networks, SomeNetworks
from gsocks.observe import NullObserver, Observer, Record
from gsocks.proxy_protocol import read_header
from gsocks.relay import Relay, Totals
from gsocks.request import Command, Request
from gsocks.shares import Shares
from gsocks.stream import Stream, tune
from gsocks.waiting import WaitingClient
from gsocks.ways_out import Release, Way, WaysOut

log = logging.getLogger("gsocks.door")

# Out of descriptors, in this process or in the system: one that was kept back helps.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# Out of something that others will give back: waiting helps.
_EXHAUSTED = (*_NO_DESCRIPTOR, errno.ENOBUFS, errno.ENOMEM)


class Visit:
    """One accepted connection, from accept to the end of everything that it led to."""

    __slots__ = ("_door", "client", "counted", "sock", "started")

    def __init__(self, door: Door, sock: socket, client: Address) -> None:
        self._door: Door | None = door
        self.sock = sock
        self.client = client
        #: monotonic seconds
        self.started = time.monotonic()
        #: whether it is one of those of its client
        self.counted = False

    def time_left(self, seconds: float) -> float:
        """What is left of so many seconds since it was accepted."""
        return max(0.0, self.started + seconds - time.monotonic())

    def understood(self) -> None:
        """It is known what the client wants.  Does nothing the second time."""
        if self._door is not None:
            self._door._greeting.discard(self)

    def end(self) -> None:
        """Everything is closed.  Does nothing the second time."""
        door, self._door = self._door, None
        if door is not None:
            door._leave(self)


class _Carried:
    """What is to be done when a relay is over: the little that a connection keeps until then."""

    __slots__ = ("_door", "_ended", "_record", "_release", "relay")

    relay: Relay

    def __init__(
        self, door: Door, record: Record, release: Release, ended: Callable[[], None] | None
    ) -> None:
        self._door = door
        self._record = record
        self._release = release
        self._ended = ended

    def __call__(self, totals: Totals) -> None:
        door, record, error = self._door, self._record, totals.error
        # what left with a request that was refused has come nowhere
        carried = 0 if isinstance(error, Withdrawn) else totals.up
        self._release(carried, totals.down, *_broken(totals))
        door._relays.discard(self.relay)
        record.up += totals.up
        record.down += totals.down
        word = error.word if isinstance(error, Withdrawn) else totals.word
        door._over(record, word, str(error or ""))
        if self._ended is not None:
            self._ended()
        door._notice_desertion()


class Door(StreamServer):
    """A gevent StreamServer in front of ways out.

    ``listener``: ``(host, port)``, ``"host:port"`` or a listening socket; port 0 takes a free
    one, and :attr:`bound` tells which after :meth:`start`.  ``exits`` and ``rules`` are as in the
    config; or ``exits`` is a WaysOut of its own making, which doors may share.  ``clients``: the
    networks that may come in; None means all.  ``proxy_protocol_from``: the networks of balancers,
    whose connections begin with a PROXY header.  ``shares``: what each user uses, counted over
    all doors that share it.

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
        clients: SomeNetworks = None,
        proxy_protocol_from: SomeNetworks = None,
        shares: Shares | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(listener, spawn=None)  # the hub admits; greeters serve
        if isinstance(listener, std_socket.socket):
            listener.setblocking(False)  # gevent accepts until nobody waits any more
            tune(listener)
        self.timeouts = timeouts
        self.limits = limits
        self._ways_out = make_ways_out(exits, rules, timeouts=timeouts)
        self._clients = Networks.of(clients)
        self._balancers = Networks.of(proxy_protocol_from)
        self._shares = Shares(limits) if shares is None else shares
        self._observer = observer or NullObserver()
        self._visits: set[Visit] = set()
        #: those of which it is not known yet what they want
        self._greeting: set[Visit] = set()
        self._by_client: Counter[str] = Counter()
        self._greeters = Crew()
        self._relays: set[Relay] = set()
        #: who has a share for which connection
        self._sharing: dict[Record, str] = {}
        self._deserted = Event()
        self._deserted.set()
        self._last_complaint = 0.0
        #: a descriptor that is given up to refuse somebody when all others are in use
        self._reserve: int | None = None
        self.stopping = False

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen and serve, from greenlets of this thread's hub; returns at once."""
        super().start()
        self._keep_reserve()
        self._ways_out.start()

    @classmethod
    def get_listener(cls, *address: Any, **options: Any) -> socket:
        """A listening socket, whose options those that it accepts inherit.  gevent's hook."""
        listener: socket = super().get_listener(*address, **options)
        tune(listener)
        return listener

    @property
    def bound(self) -> Address:
        """Where it listens; known after :meth:`start`."""
        return Address.from_sockaddr(cast(tuple[str, int], self.address))

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._visits)

    def stop(self, timeout: float | None = None) -> None:
        """Listen no more; reset what is still open after ``timeout`` seconds (default 1)."""
        self.stopping = True
        self.close()
        self._give_up_reserve()
        self.drain()
        if not self._deserted.wait(self.stop_timeout if timeout is None else timeout):
            self._greeters.kill()
            for relay in list(self._relays):
                relay.abort(StreamClosed("stopped"))
            self._deserted.wait()
        self._greeters.close()
        self._ways_out.close()

    def drain(self) -> None:
        """Called once when stopping: end what is open but idle."""

    # --- admission --------------------------------------------------------------------------

    def do_read(self) -> Any:
        """Accept one connection.  gevent's hook; where it prints a traceback, we wait."""
        try:
            return super().do_read()
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR and self._give_up_reserve():
                self._refuse_next(error)
            elif error.errno in _EXHAUSTED:
                self._pause_accepting(error)
            elif error.errno == errno.EBADF:
                raise
            # else: the client was gone before it was accepted (ECONNABORTED and its like)
            return None

    def _refuse_next(self, error: OSError) -> None:
        """Close the connection that waits longest: better soon than when there is room again.

        The reserve has been given up for it.
        """
        self._complain(error, "whoever comes is turned away")
        try:
            accepted = super().do_read()
        except OSError:
            accepted = None  # somebody was faster, another thread or another process
        if accepted is not None:
            sock, sockaddr = accepted
            sock.close()
            record = Record(self.name, str(Address.from_sockaddr(sockaddr)))
            self._over(record, OutOfResources.word, error.strerror or "")
        self._keep_reserve()

    def _keep_reserve(self) -> None:
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            pass  # the next who comes finds none, and waits

    def _give_up_reserve(self) -> bool:
        """Whether there was one."""
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            os.close(reserve)
        return reserve is not None

    def _pause_accepting(self, error: OSError) -> None:
        self._complain(error, f"trying again every {self.accept_pause:g} s")
        self.stop_accepting()
        gevent.spawn_later(self.accept_pause, self._resume_accepting)

    def _complain(self, error: OSError, then: str) -> None:
        now = time.monotonic()
        if now - self._last_complaint > 10:
            self._last_complaint = now
            log.error(
                "%s can't accept: %s, with %d connections open; %s",
                self.name,
                error.strerror,
                self.connections,
                then,
            )

    def _resume_accepting(self) -> None:
        if self.started:
            if self._reserve is None:
                self._keep_reserve()
            self.start_accepting()

    def handle(self, sock: socket, sockaddr: tuple[str, int]) -> None:
        """Admit one connection; gevent calls it in the hub, where nothing may block."""
        visit = Visit(self, sock, Address.from_sockaddr(sockaddr))
        behind_balancer = self._balancers is not None and visit.client.host in self._balancers
        try:
            if len(self._visits) >= self.limits.connections:
                raise LimitReached("too many connections")
            if len(self._greeting) >= self.limits.handshakes:
                raise LimitReached("too many handshakes at a time")
            if not behind_balancer:
                self._count(visit)
        except (ClientForbidden, LimitReached) as error:
            self._refuse(visit, error)
            return
        self._visits.add(visit)
        self._greeting.add(visit)
        self._deserted.clear()
        self.spawn(visit, self._serve_balanced if behind_balancer else self.serve, visit)

    def _count(self, visit: Visit) -> None:
        """One of its client's connections more.  Raises ClientForbidden, LimitReached."""
        host = visit.client.host
        if self._clients is not None and host not in self._clients:
            raise ClientForbidden("in none of the networks that may come in")
        if self._by_client[host] >= self.limits.per_client:
            raise LimitReached("too many connections from that address")
        self._by_client[host] += 1
        visit.counted = True

    def _refuse(self, visit: Visit, error: GsocksError) -> None:
        self._over(Record(self.name, str(visit.client)), error.word, str(error))
        if isinstance(error, LimitReached):
            self.turn_away(visit.sock, error)
        else:
            visit.sock.close()

    def turn_away(self, sock: socket, error: LimitReached) -> None:  # noqa: ARG002
        """Close a connection for which there is no room; may tell it, but must not block."""
        sock.close()

    def do_close(self, *args: object) -> None:
        """gevent would close the socket when ``handle`` returns; ours lives on in its visit."""

    def _serve_balanced(self, visit: Visit) -> None:
        """Serve whoever stands behind a balancer."""
        try:
            with gevent.Timeout(self.timeouts.handshake, HandshakeTimeout()):
                client = read_header(visit.sock)
            visit.client = client or visit.client
            self._count(visit)
        except (ClientError, LimitReached) as error:
            visit.end()
            self._refuse(visit, error)
        else:
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
        self._greeting.discard(visit)
        self.uncount(visit)
        self._notice_desertion()

    def uncount(self, visit: Visit) -> None:
        """It is none of its address's ``per_client`` connections any more."""
        if visit.counted:
            visit.counted = False
            host = visit.client.host
            self._by_client[host] -= 1
            if not self._by_client[host]:
                del self._by_client[host]

    def _notice_desertion(self) -> None:
        # a tunnel's visit may end before its last relay has been told of
        if not self._visits and not self._relays:
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
        sock: socket | None = None,
    ) -> bool:
        """Connect one request, answer it, and relay until it is over.

        ``sock`` is the client's own connection where it may ask for a BIND, which it ends by
        hanging up.

        Returns True once the relay runs by itself, which calls ``ended`` after everything is
        closed; False if there is none, after the client was answered.
        """
        # The error itself is not returned: whoever kept it would be in its traceback, and that is
        # a cycle, which only the garbage collector can let go.
        try:
            waiting = None
            if request.command is Command.BIND and sock is not None:
                waiting = WaitingClient(sock, answer)
            way = self._find_way(request, record, waiting)
        except (ConnectFailed, ClientError) as error:
            answer.failed(error)
            return False
        try:
            answer.succeeded(way.bound, way.exit)
        except StreamError as error:
            way.stream.abort()
            way.release()
            self._over(record, f"client_{error.word}", str(error))
            return False
        except BaseException:
            way.stream.abort()
            way.release()
            self._over(record, "stopped")
            raise
        self._relay(client, way, record, ended)
        return True

    def _find_way(
        self,
        request: Request,
        record: Record,
        waiting: WaitingClient | None = None,
        failed: Collection[str] = (),
    ) -> Way:
        """A way for ``request``, by none of the ``failed`` exits.

        That there is none is in the access log when it is raised.
        """
        record.user = request.user
        record.session = request.wish.session
        record.command = request.command.name.lower()
        if request.command is not Command.UDP_ASSOCIATE:
            record.dest = str(request.dest)
        try:
            if request.user is not None:
                self._shares.enter(request.user)
                self._sharing[record] = request.user
            way = self._ask_exits(request, record, waiting, failed)
            return way._replace(stream=self._shares.limited(way.stream, request))
        except (ConnectFailed, ClientError) as error:
            self._over(record, error.word, str(error))
            raise
        except BaseException:
            self._over(record, "stopped")
            raise

    def _ask_exits(
        self,
        request: Request,
        record: Record,
        waiting: WaitingClient | None,
        failed: Collection[str],
    ) -> Way:
        tried = partial(setattr, record, "exit")
        if request.command is Command.UDP_ASSOCIATE:
            return self._ways_out.associate(request, tried, partial(_note_first, record))
        if waiting is not None:
            seconds = self.timeouts.bind
            return waiting.wait(partial(self._ways_out.bind, request, tried, seconds))
        return self._ways_out.connect(request, tried, failed)

    def _relay(
        self, client: Stream, way: Way, record: Record, ended: Callable[[], None] | None
    ) -> None:
        carried = _Carried(self, record, way.release, ended)
        carried.relay = relay = Relay(
            client,
            way.stream,
            idle=self.timeouts.idle,
            half_closed=self.timeouts.half_closed,
            ended=carried,
        )
        self._relays.add(relay)
        relay.run()

    def _over(self, record: Record, outcome: str, detail: str = "") -> None:
        user = self._sharing.pop(record, None)
        if user is not None:
            self._shares.leave(user)
        record.outcome = outcome
        record.detail = detail
        try:
            self._observer.ended(record)
        except Exception:
            # it may be anybody's code, and the connection is not to suffer from its mistakes
            log.exception("the observer of %s failed", self.name)


def _broken(totals: Totals) -> tuple[bool, bool]:
    """Whether the exit, or the destination, broke a connection that was there; and whether it is
    known that the exit did."""
    error = totals.error
    if isinstance(error, Withdrawn) and error.cause is not None:
        fault = error.cause.fault
        return fault in (Fault.EXIT, Fault.UNCLEAR), fault is Fault.EXIT
    return totals.side == "remote", False


def _note_first(record: Record, dest: Address) -> None:
    """An association's first destination; the client need not send anywhere else."""
    if not record.dest:
        record.dest = str(dest)
