"""One accepted connection of a client."""

from __future__ import annotations

import socket as std_socket
import struct
import time
from array import array
from enum import Enum
from fcntl import ioctl
from termios import FIONREAD
from typing import Any, Protocol

import gevent
from greenlet import greenlet

from gsocks.address import Address
from gsocks.errors import Evicted, GsocksError, StreamClosed, StreamError
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.context import ListenerContext
from gsocks.observe import Details, Record, Trace, new_connection_id, no_trace, trace_of
from gsocks.sock import AnySocket
from gsocks.stream import close_after_reply, close_with_fin

#: seconds that a client has to read a last answer before its connection is closed for good
CLOSE_GRACE = 2.0

# tcpi_state and, since Linux 4.1, tcpi_bytes_received of struct tcp_info, linux/tcp.h
_TCP_INFO = struct.Struct("@B127xQ")
# linux/tcp_states.h: the peer has sent FIN, which is counted as a byte
_CLOSE_WAIT = 8


class _State(Enum):
    #: not admitted, or not yet
    NEW = "new"
    #: its request or key is not known yet
    HANDSHAKE = "handshake"
    OPEN = "open"
    #: it waits for its next request
    IDLE = "idle"
    CLOSED = "closed"


# to find a member in its class takes ten times as long in Python 3.10 and 3.11
_NEW, _HANDSHAKE, _OPEN, _IDLE, _CLOSED = _State


class Waiting(Protocol):
    """What waits for the next request of a connection, without a greenlet."""

    def evicted(self, error: StreamError) -> None:
        """The connection is closed, because of ``error``.  Never blocks."""


class ClientConnection:
    """From accept to the end of everything that the connection led to.

    It owns the socket and counts in the listener's Admission from :meth:`admit` to :meth:`end`.
    """

    __slots__ = (
        "_counted",
        "_greenlet",
        "_key",
        "_prefix",
        "_state",
        "client",
        "context",
        "id",
        "requests",
        "sock",
        "spoke_at",
        "started",
        "trace",
        "waiting",
        "watcher",
    )

    def __init__(self, context: ListenerContext, sock: AnySocket, client: Address) -> None:
        self.context = context
        self.sock = sock
        self.id = new_connection_id()
        #: logs at debug level what happens to it, under its id
        self.trace = trace_of(self.id)
        #: how many :meth:`next_request` has made
        self.requests = 0
        #: the client's address, which a balancer's header may replace
        self.client = client
        #: monotonic seconds
        self.started = time.monotonic()
        #: when the hub has answered its greeting; None: a greenlet does that, or it has yet to come
        self.spoke_at: float | None = None
        #: of the socket, while the hub reads what it sends
        self.watcher: Any = None
        #: waits for its next request in the hub
        self.waiting: Waiting | None = None
        self._state = _NEW
        #: the client's prefix, for which this connection counts
        self._prefix = ""
        #: whether it counts in ``per_client``
        self._counted = False
        #: the name of the key for which it counts as a tunnel
        self._key: str | None = None
        #: that which serves it, for :meth:`evict`
        self._greenlet: greenlet | None = None

    def __repr__(self) -> str:
        where, state = self.context.name, self._state.value
        return f"<ClientConnection {self.id} from {self.client} at {where}, {state}>"

    # --- its place among the connections of the listener -------------------------------------

    def admit(self, *, behind_balancer: bool = False) -> None:
        """Count it.  Raises LimitReached, ClientForbidden.

        ``behind_balancer``: :meth:`count_for` will be called once the client's address is known.
        """
        admission, host = self.context.admission, self.client.host
        self._prefix = admission.admit(self, host, behind_balancer=behind_balancer)
        self._counted = not behind_balancer
        self._state = _HANDSHAKE
        if self.trace is not no_trace:
            self.trace("accepted from %s by %s", self.client, self.context.name)
        self.context.note_opened()

    def count_for(self, client: Address) -> None:
        """Count it for the client whom a balancer announced.  Raises as :meth:`admit`."""
        self.client = client
        self.trace("announced by a balancer for %s", client)
        self._prefix = self.context.admission.announced(self, self._prefix, client.host)
        self._counted = True

    def uncount_client(self) -> None:
        """Take it out of the ``per_client`` count.  Does nothing the second time."""
        if self._counted:
            self._counted = False
            self.context.admission.uncount_client(self._prefix)

    def count_key(self, key: str, most: int) -> None:
        """Count it as a tunnel of that key, until its end.  Raises LimitReached."""
        self.context.admission.count_key(key, most)
        self._key = key

    def handshake_done(self) -> None:
        """Its request or key is known, and good.  Does nothing the second time."""
        if self._state is _HANDSHAKE:
            self._state = _OPEN
            self.context.admission.handshake_done(self, self._prefix)

    def idle(self) -> None:
        """It waits for its next request, and may be evicted until :meth:`busy`."""
        if self._state is _OPEN:
            self._state = _IDLE
            self.context.admission.idle(self, self._prefix)

    def busy(self) -> None:
        """Its next request begins, or none will.  Does nothing the second time."""
        if self._state is _IDLE:
            self._state = _OPEN
            self.context.admission.busy(self, self._prefix)

    def time_left(self, seconds: float) -> float:
        """What is left of so many seconds since it was accepted."""
        return max(0.0, self.started + seconds - time.monotonic())

    # --- its requests ------------------------------------------------------------------------

    def new_request(self, began: float | None = None) -> ActiveRequest:
        """The only request of the connection, under its id.

        ``began``: monotonic seconds; None: it begins now.
        """
        active = self._new_request(self.id, self.trace)
        if began is not None:
            active.record.start = began
        return active

    def new_record(self, began: float) -> Record:
        """That of the only request of the connection, which began then."""
        record = Record(self.context.name, str(self.client), self.id, self.trace, began)
        if self.context.wants_details:
            record.details = Details(self.context.wants_story)
        return record

    def next_request(self) -> ActiveRequest:
        """A request that begins now on a connection that may have many, under a number."""
        return self._new_request(*self._next_id())

    def next_record(self) -> Record:
        """That of such a request."""
        record = Record(self.context.name, str(self.client), *self._next_id())
        if self.context.wants_details:
            record.details = Details(self.context.wants_story)
        return record

    def _next_id(self) -> tuple[str, Trace]:
        self.requests += 1
        request_id = f"{self.id}.{self.requests}"
        return request_id, no_trace if self.trace is no_trace else trace_of(request_id)

    def retry_request(self, failed: ActiveRequest) -> ActiveRequest:
        """The same request again, with a record of its own under the same id."""
        return self._new_request(failed.record.id, failed.record.trace)

    def _new_request(self, request_id: str, trace: Trace) -> ActiveRequest:
        record = Record(self.context.name, str(self.client), request_id, trace)
        if self.context.wants_details:
            record.details = Details(self.context.wants_story)
        return ActiveRequest(self.context, record)

    # --- eviction ----------------------------------------------------------------------------

    def begin(self) -> bool:
        """The calling greenlet serves it now, until :meth:`finish`; False: it has been evicted."""
        if self._state is _CLOSED:
            return False
        self._greenlet = gevent.getcurrent()
        return True

    def finish(self) -> None:
        """The greenlet of :meth:`begin` has something else to do."""
        self._greenlet = None

    def unserved(self) -> int:
        """Bytes that the client has sent: in its handshake in all, later those that are unread."""
        try:
            if self._state is not _HANDSHAKE:
                unread = array("i", (0,))
                ioctl(self.sock.fileno(), FIONREAD, unread)
                return unread[0]
            info = self.sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_INFO, _TCP_INFO.size)
        except OSError:
            return 0  # it is being closed already
        if len(info) != _TCP_INFO.size:
            return 0
        state, received = _TCP_INFO.unpack(info)
        return int(received) - int(state == _CLOSE_WAIT)

    def evict(self) -> None:
        """Close it for a newcomer, while it is in its handshake or idle.  Never blocks.

        Its greenlet gets Evicted, or StreamClosed where no request is open.
        """
        reason = "no request for longest, and its place was needed"
        self.trace("evicted")
        if self.context.silent.discard(self):
            error = Evicted(reason)
            # a flood of those that have said nothing would drown the log
            error.is_routine = self.spoke_at is None
            self.new_request(self.spoke_at).refused(error)
        elif self.waiting is not None:
            self.waiting.evicted(StreamClosed(reason))
        elif self._greenlet is not None:
            kind = StreamClosed if self._state is _IDLE else Evicted
            loop = gevent.get_hub().loop
            loop.run_callback(self._interrupt, self._greenlet, kind(reason))
        close_with_fin(self.sock)  # a reset would tell a stranger that it was understood
        self.end()

    def _interrupt(self, serving: greenlet, error: GsocksError) -> None:
        if self._greenlet is serving:  # else it has something else to do now
            serving.throw(error)

    # --- its end -----------------------------------------------------------------------------

    def close(self, grace: float | None = None) -> None:
        """Close the socket and :meth:`end`.

        ``grace``: seconds for the client to read a last answer, during which this blocks.
        """
        self.stop_watching()
        if grace is None:
            self.sock.close()
        else:
            close_after_reply(self.sock, grace)
        self.end()

    def stop_watching(self) -> None:
        """Close its watcher.  Does nothing the second time."""
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            watcher.close()

    def end(self) -> None:
        """Count it no more: everything is closed.  Does nothing the second time."""
        if self._state not in (_NEW, _CLOSED):
            if self._state is _HANDSHAKE:
                self.context.admission.handshake_ended(self, self._prefix)
            elif self._state is _IDLE:
                self.busy()
            self._state = _CLOSED
            self.uncount_client()
            if self._key is not None:
                self.context.admission.uncount_key(self._key)
            self.context.admission.leave()
            if self.trace is not no_trace:
                self.trace("closed")
            self.context.note_closed()
