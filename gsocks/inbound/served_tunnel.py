"""A client's tunnel at the server: it waits for a request, carries it, and waits for the next one.

    OPEN ->  ExitGroup.begin  <- OPENED   the pumps of the relay   both FINs, and again

The hub does all that where a request waits for nothing but its destination
(docs/adr/0023-the-straight-way.md); so a tunnel that waits costs no greenlet.  Anything else, a
refusal among it, goes on in a greenlet from the point that it has reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gevent

from gsocks.address import Address
from gsocks.deadline import call_within
from gsocks.errors import (
    ClientError,
    FrameTimeout,
    GsocksError,
    HalfClosedTimeout,
    IdleTimeout,
    LimitReached,
    ProtocolViolation,
    StreamClosed,
    StreamError,
    StreamReset,
    Truncated,
)
from gsocks.inbound.active_request import ActiveRequest
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.context import ListenerContext
from gsocks.inbound.hub_request import HubRequest
from gsocks.net.deadlines import Deadlines
from gsocks.observe import Record, no_trace
from gsocks.request import LOOK_UPS, UDP_ASSOCIATE, Request
from gsocks.rotation.connected import Outbound
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.settings import Timeouts
from gsocks.stream import READ, Bytes, ScratchBuffers, close_with_fin, scratch_of_this_hub
from gsocks.tunnel.frames import Frame, Header
from gsocks.tunnel.server import MAX_PINGS, ServerTunnel
from gsocks.tunnel.states import TunnelState
from gsocks.tunnel.streams import TunnelDatagrams, TunnelStream


class TunnelListener(Protocol):
    """The listener of tunnels."""

    timeouts: Timeouts
    #: tunnels that wait for a request
    idle_tunnels: set[ServerTunnel]
    #: bounds how long they wait, and how long a frame takes that has begun to come
    idle_deadlines: Deadlines
    frame_deadlines: Deadlines

    def is_accepted(self, tunnel: ServerTunnel) -> bool:
        """Whether the tunnel may have another request."""

    def log_end(
        self, connection: ClientConnection, tunnel: ServerTunnel, error: StreamError
    ) -> None:
        """A tunnel has ended between two requests."""

    def spawn(
        self, connection: ClientConnection, function: Callable[..., None], *args: object
    ) -> None:
        """Serve a part of ``connection`` in a greenlet; the connection is closed if that fails."""


class ServedTunnel:
    """A tunnel from the first wait for a request to its end, and what its streams call at theirs.

    One frame is read in each turn of the loop: what costs a peer nothing is done once in a turn.
    """

    __slots__ = (
        "_frame_begun",
        "_later",
        "_listener",
        "_pings",
        "_watcher",
        "connection",
        "tunnel",
    )

    def __init__(
        self, listener: TunnelListener, connection: ClientConnection, tunnel: ServerTunnel
    ) -> None:
        self._listener = listener
        self.connection = connection
        self.tunnel = tunnel
        #: of the tunnel's descriptor, while there is no stream
        self._watcher: Any = None
        #: a timer for frames that have been received already
        self._later: Any = None
        #: PINGs since the last stream
        self._pings = 0
        #: whether a part of the next frame has come
        self._frame_begun = False

    def __call__(self, reusable: bool) -> None:
        """Its stream is closed."""
        if reusable:
            self.wait()
        else:
            self.close()

    def wait(self) -> None:
        """Wait for the next request.  Never blocks."""
        listener, tunnel, connection = self._listener, self.tunnel, self.connection
        if tunnel.closed or not listener.is_accepted(tunnel):
            self.close()
            return
        self._pings = 0
        self._frame_begun = False
        tunnel.waiting = connection.waiting = self
        listener.idle_tunnels.add(tunnel)
        listener.idle_deadlines.add(self, time.monotonic())
        connection.idle()
        self._watcher = gevent.get_hub().loop.io(tunnel.fileno(), READ)
        if tunnel.has_backlog:
            self._read_later()
        else:
            self._watcher.start(self._on_readable)

    def close(self) -> None:
        """Close the tunnel and the connection."""
        self.stop_watching()
        self.tunnel.close()
        self.connection.end()

    # --- between two requests ----------------------------------------------------------------

    def evicted(self, error: StreamError) -> None:
        """See :class:`gsocks.inbound.connection.Waiting`."""
        self._stop_waiting()
        self.stop_watching()
        close_with_fin(self.connection.sock)  # not reset, whatever the client has sent
        self._broken(error)

    def closing(self) -> None:
        """See :class:`gsocks.tunnel.server.WaitingTunnel`."""
        self._stop_waiting()
        self.stop_watching()
        error = StreamClosed("closed at this end")
        self._listener.log_end(self.connection, self.tunnel, error)
        self.connection.end()

    def expired(self) -> None:
        """See :meth:`gsocks.net.deadlines.Expires.expired`, here of two bounds."""
        timeouts = self._listener.timeouts
        if self._listener.idle_deadlines.discard(self):
            seconds = timeouts.handshake
            self._ended(FrameTimeout(f"a frame has not come whole in {seconds:g} s"))
        else:
            self._ended(IdleTimeout(f"silent for {timeouts.idle:g} s"))

    def _ended(self, error: StreamError | None) -> None:
        """The tunnel ends; ``error``: None if the client has closed it, which it may."""
        self._stop_waiting()
        if error is None:
            self.close()
        else:
            self._broken(error)

    def _broken(self, error: StreamError) -> None:
        self._listener.log_end(self.connection, self.tunnel, error)
        self.close()

    def _stop_waiting(self) -> None:
        listener, tunnel, connection = self._listener, self.tunnel, self.connection
        tunnel.waiting = connection.waiting = None
        listener.idle_tunnels.discard(tunnel)
        listener.idle_deadlines.discard(self)
        if self._frame_begun:
            listener.frame_deadlines.discard(self)
        connection.busy()

    def _read_later(self) -> None:
        """Read on in the next turn."""
        self._watcher.stop()
        self._later = gevent.get_hub().loop.timer(0)
        self._later.start(self._read_on)

    def _read_on(self) -> None:
        self._close_later()
        self._watcher.start(self._on_readable)
        self._on_readable()

    def _on_readable(self) -> None:
        tunnel, scratch = self.tunnel, scratch_of_this_hub()
        tunnel.waiting = None  # it may be closed by a frame, of which this knows more
        try:
            header = tunnel.receive_frame_nowait(scratch)
            if header is not None:
                self._take(header, scratch)
            else:
                self._wait_on()
        except (Truncated, StreamReset) as error:
            self._ended(None if tunnel.between_frames else error)
        except StreamError as error:
            self._ended(error)
        except BaseException:  # a fault of gsocks
            self._stop_waiting()
            self.close()
            raise

    def _wait_on(self) -> None:
        tunnel = self.tunnel
        tunnel.waiting = self
        if tunnel.has_backlog:
            self._read_later()
        elif not self._frame_begun and not tunnel.between_frames:
            self._frame_begun = True
            self._listener.frame_deadlines.add(self, time.monotonic())

    def _take(self, header: Header, scratch: ScratchBuffers) -> None:
        if header.kind == Frame.OPEN:
            self._open(bytes(scratch.plain[: header.length]))
        elif header.kind == Frame.PING:
            self._pong(scratch)
        else:
            raise ProtocolViolation(f"frame {header.kind:#04x} between two streams")

    def _pong(self, scratch: ScratchBuffers) -> None:
        self._pings += 1
        if self._pings > MAX_PINGS:
            raise ProtocolViolation(f"more than {MAX_PINGS} PINGs between two streams")
        rest = self.tunnel.pong_nowait(scratch)
        if rest:
            self._stop_waiting()
            self.stop_watching()
            self.spawn(self._pong_on, bytes(rest))
            return
        if self._frame_begun:
            self._frame_begun = False
            self._listener.frame_deadlines.discard(self)
        self._wait_on()

    def _pong_on(self, rest: bytes) -> None:
        """Send the rest of a PONG, for which there was no room, in a greenlet."""
        pings = self._pings
        try:
            self.tunnel.send_sealed(rest)
        except StreamError as error:
            self._broken(error)
        else:
            self.wait()
            self._pings = pings

    # --- a request ---------------------------------------------------------------------------

    def spawn(self, function: Callable[..., None], *args: object) -> None:
        """Go on in a greenlet."""
        self._listener.spawn(self.connection, function, *args)

    def _open(self, body: bytes) -> None:
        connection = self.connection
        record = connection.next_record()
        active = TunnelRequest(connection.context, record, self)
        try:
            request = self.tunnel.decode_open(body, record.client, record.trace)
        except ClientError as error:
            self._stop_waiting()
            self.stop_watching()
            self.spawn(self._refuse, active, error.with_traceback(None))
            return
        self._stop_waiting()
        # the relay takes the watcher over; what the client sends before waits
        self._watcher.callback = self._watcher.stop
        active.begin(request)

    def _refuse(self, active: ActiveRequest, error: ClientError) -> None:
        active.finish(error.word, str(error))
        self.tunnel.failed(error)
        self.resume()

    def resume(self) -> None:
        """Wait for the next request, in a greenlet: behind what a refused client still sends."""
        tunnel = self.tunnel
        if tunnel.state is TunnelState.REFUSED and self._listener.is_accepted(tunnel):
            seconds = self._listener.timeouts.half_closed
            try:
                call_within(seconds, HalfClosedTimeout(), tunnel.discard_refused)
            except StreamError as error:
                self._broken(error)
                return
        self.wait()

    def take_stream(self) -> TunnelStream:
        """The stream of the present request, which the hub carries."""
        watcher, self._watcher = self._watcher, None
        return TunnelStream(self.tunnel, self, watcher)

    def stop_watching(self) -> None:
        """Leave the descriptor to a greenlet.  Does nothing the second time."""
        self._close_later()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def _close_later(self) -> None:
        later, self._later = self._later, None
        if later is not None:
            later.close()


class TunnelRequest(HubRequest):
    """A request of a tunnel."""

    __slots__ = ("_served",)

    def __init__(self, context: ListenerContext, record: Record, served: ServedTunnel) -> None:
        super().__init__(context, record)
        self._served = served

    def begin(self, request: Request) -> None:
        """Connect and carry ``request``: in a greenlet, if it has to wait for anything else."""
        self._request = request
        if request.trace is not no_trace:  # which the greenlet writes
            self._go_on(None)
            return
        self._note_request(request, ServerTunnel.protocol, "", ())
        try:
            self._acquire_quota(request)
        except LimitReached:  # as the greenlet finds
            self._go_on(None)
        else:
            self._begin()

    # --- see HubRequest -----------------------------------------------------------------------

    def _answer_now(self, outbound: Outbound) -> Bytes:
        return self._served.tunnel.succeeded_nowait(scratch_of_this_hub(), outbound.bound)

    def _send(self, unsent: bytes) -> None:
        if unsent:
            self._served.tunnel.send_sealed(unsent)

    def _client(self) -> tuple[TunnelStream, None]:
        return self._served.take_stream(), None

    def _in_greenlet(self, function: Callable[..., None], *args: object) -> None:
        self._served.stop_watching()
        self._served.spawn(function, *args)

    def _carry(self, first: FirstAttempt | None) -> None:
        served, request = self._served, self._request
        tunnel, sock = served.tunnel, served.connection.sock
        if request.command in LOOK_UPS:
            self.look_up(request, _LookUpAnswer(tunnel))
            served.resume()
            return
        kind = TunnelDatagrams if request.command is UDP_ASSOCIATE else TunnelStream
        if not self.carry(request, tunnel, kind(tunnel, served), sock=sock, after=first):
            served.resume()

    def _client_left(self) -> None:
        self._served.close()

    _left_in_greenlet = _client_left

    def _close(self) -> None:
        self._served.close()


class _LookUpAnswer(NamedTuple):
    """The answer to a look-up, which opens no stream."""

    tunnel: ServerTunnel

    @property
    def protocol(self) -> str:
        return self.tunnel.protocol

    def succeeded(self, bound: Address, via: str) -> None:  # noqa: ARG002
        self.tunnel.looked_up(bound)

    def failed(self, error: GsocksError) -> None:
        self.tunnel.failed(error)
