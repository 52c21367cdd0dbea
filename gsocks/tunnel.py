"""Frames over one connection, which carry one stream at a time.

A frame is a sealed header (type, length) and, if the length is not 0, a sealed body; the wire is
docs/protocol.md.  A stream is opened by OPEN, answered by OPENED, and ends by a FIN in each
direction; then the tunnel is as new and carries the next one.  Anything else closes it.

    client: connect_tunnel() -> ClientTunnel     .open(request) -> bound, stream
    server: accept_tunnel()  -> ServerTunnel     .accept() -> request, .succeeded() or .failed()
"""

from __future__ import annotations

import logging
import math
import os
import select
import socket as std_socket
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, IntEnum
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, TypeAlias, cast

import gevent

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import (
    HELLO_HEAD_SIZE,
    LOWEST_VERSION,
    REPLY_HEAD_SIZE,
    Area,
    Cipher,
    Feature,
    Initiator,
    Key,
    KeyRing,
    Opener,
    Session,
    agreed_version,
    preferred,
)
from gsocks.deadline import call_with_timeout, call_within
from gsocks.errors import (
    BadAddress,
    ClientError,
    CommandNotSupported,
    ConnectFailed,
    ExitUnproven,
    FrameTimeout,
    GsocksError,
    ProtocolViolation,
    Stranger,
    StreamClosed,
    StreamError,
    StreamReset,
    Tampered,
    TlsFailed,
    Truncated,
    WebSocketFailed,
    failure_from_code,
    stream_failure,
)
from gsocks.observe import Trace, no_trace
from gsocks.replay import ReplayGuard, now_ms
from gsocks.request import BIND, LOOK_UPS, RESOLVE_PTR, UDP_ASSOCIATE, Command, Request
from gsocks.sock import AnySocket
from gsocks.stream import (
    CHUNK,
    NEXT_TURN,
    NOTHING,
    READABLE,
    Blocking,
    Bytes,
    Reader,
    ReadsToTheEnd,
    ScratchBuffers,
    Wait,
    close_with_fin,
    directions,
    receive_into,
    reset,
    scratch_of_this_hub,
    send_all,
    send_now,
)
from gsocks.turns import give_way

log = logging.getLogger("gsocks.tunnel")

HEADER_SIZE = 4
#: the largest body of a frame
MAX_BODY = CHUNK
#: fetched together with a header, so that a small frame costs one system call
_READ_AHEAD = 4096
#: OPEN, OPENED, PING and PONG are padded by fewer bytes than this
PADDING_LIMIT = 128
#: frames decoded in one step, some tenths of a millisecond: a peer may send frames of a few bytes
MAX_FRAMES_AT_ONCE = 64
#: types from here on are ignored wherever PAD may stand, so that a later version can add some
SKIPPED = 0x80
#: PADs, or frames of such types, that may follow each other; PINGs that may come between streams
MAX_PADS = 256
MAX_PINGS = 1024
#: seconds for a stranger that is sending to stop, once the end of its time was shown to it
CLOSE_GRACE = 1.0


class Frame(IntEnum):
    """The type byte of a header."""

    OPEN = 0x01
    OPENED = 0x02
    DATA = 0x03
    FIN = 0x04
    RESET = 0x05
    PING = 0x06
    PONG = 0x07
    DATAGRAM = 0x08
    PAD = 0x09


class TunnelState(str, Enum):
    """Where a tunnel stands at one end, docs/protocol.md section 5.2."""

    IDLE = "idle"
    OPENING = "opening"
    PINGING = "pinging"
    STREAM = "stream"
    REFUSED = "refused"
    CLOSED = "closed"


class TunnelEvent(str, Enum):
    """What moves a tunnel from one state to the next.  CLOSED is reached from every state."""

    OPEN = "OPEN"
    PING = "PING"
    PONG = "PONG"
    #: the last OPENED of a request; a BIND has two
    OPENED = "OPENED with code 0x00"
    REFUSED = "OPENED with another code"
    LOOKED_UP = "OPENED of a look-up"
    #: the direction ends of a client that has no stream: it was refused, or has looked something up
    FIN = "FIN"
    BOTH_FINS = "FIN received and FIN sent"


Transitions: TypeAlias = Mapping[tuple[TunnelState, TunnelEvent], TunnelState]

_S, _E = TunnelState, TunnelEvent

CLIENT_TRANSITIONS: Transitions = {
    (_S.IDLE, _E.OPEN): _S.OPENING,
    (_S.IDLE, _E.PING): _S.PINGING,
    (_S.OPENING, _E.OPENED): _S.STREAM,
    (_S.OPENING, _E.REFUSED): _S.IDLE,
    (_S.OPENING, _E.LOOKED_UP): _S.IDLE,
    (_S.PINGING, _E.PONG): _S.IDLE,
    (_S.STREAM, _E.BOTH_FINS): _S.IDLE,
}

SERVER_TRANSITIONS: Transitions = {
    (_S.IDLE, _E.OPENED): _S.STREAM,
    (_S.IDLE, _E.REFUSED): _S.REFUSED,
    (_S.IDLE, _E.LOOKED_UP): _S.REFUSED,
    (_S.IDLE, _E.PING): _S.IDLE,
    (_S.REFUSED, _E.FIN): _S.IDLE,
    (_S.STREAM, _E.BOTH_FINS): _S.IDLE,
}

_COMMANDS = {int(command): command for command in Command if command not in LOOK_UPS}
#: those of a tunnel that has the feature
_LOOK_UPS = {int(command): command for command in LOOK_UPS}


class Header(NamedTuple):
    """A frame's type, and the length of its body."""

    kind: int
    length: int


#: where the next bytes are those of a header
_NO_HEADER = Header(-1, 0)
#: stands behind the frames that came whole before one that breaks the tunnel
BROKEN = Header(-1, 0)


class FrameDecoder:
    """Sealed bytes in, frames out; it receives nothing itself.

    The bytes lie in the scratch buffers, where they are opened from one buffer into the other.
    Between two calls it keeps what is no whole frame yet.  Nothing may be decoded after an error.
    """

    __slots__ = ("_due", "_opener", "_pads", "failure", "has_backlog", "kept")

    def __init__(self, opener: Opener, received: bytes = b"") -> None:
        #: why nothing can be decoded any more, if that showed behind frames that are good
        self.failure: StreamError | None = None
        self._opener = opener
        #: received, and not decoded yet; perhaps too few bytes for a frame
        self.kept: bytes = received
        #: whether there may be whole frames in these bytes, which are to be decoded before more
        #: is received
        self.has_backlog = bool(received)
        #: how many PADs came last, one behind the other
        self._pads = 0
        #: the header of the frame whose body has not come whole yet
        self._due: Header | None = None

    @property
    def between_frames(self) -> bool:
        """True if no part of a frame has been received."""
        return not self.kept and self._due is None

    @property
    def boxes(self) -> int:
        """How many boxes were opened."""
        return self._opener.count

    def bulk_room(self, scratch: ScratchBuffers) -> memoryview:
        """Where the next bytes are to be received: room for the largest frames.

        As many of those as fit: then they end where a read ends, and none is cut that would have
        to be kept.
        """
        overhead = self._opener.overhead
        end = scratch.room // MAX_BODY * (HEADER_SIZE + MAX_BODY + 2 * overhead)
        if self._due is not None:
            end -= HEADER_SIZE + overhead
        return scratch.sealed[len(self.kept) : end]

    def frame_room(self, scratch: ScratchBuffers) -> memoryview:
        """The same for one frame, so that little is kept of those behind it."""
        overhead = self._opener.overhead
        size = HEADER_SIZE + overhead
        if self._due is not None:
            size += self._due.length + overhead
        return scratch.sealed[len(self.kept) : max(size, _READ_AHEAD)]

    def decode(
        self, scratch: ScratchBuffers, count: int, joined: int = -1
    ) -> tuple[int, Header | None]:
        """Decode ``count`` bytes that have been received into the room.

        The bodies of frames of the type ``joined`` lie in ``scratch.plain`` then, one behind the
        other: returns how many bytes; and the header of the first frame of another type, whose body
        lies behind them, and behind which nothing is decoded.  PAD and types from SKIPPED on are
        ignored.  After ``MAX_FRAMES_AT_ONCE`` frames it returns, and :attr:`has_backlog` is True.

        Raises Tampered if a frame is not of the other end's making, ProtocolViolation.  Behind
        bodies that are good it returns BROKEN first, and keeps the error as :attr:`failure`.
        """
        opener = self._opener
        open_at, overhead = opener.open_at, opener.overhead
        head = HEADER_SIZE + overhead
        plain, sealed, header = scratch.areas or areas_of(scratch)
        kind, length = self._due or _NO_HEADER
        start, end = 0, count
        if kept := self.kept:
            sealed.view[: len(kept)] = kept
            end += len(kept)
        filled, other = 0, None
        pads, frames = self._pads, MAX_FRAMES_AT_ONCE
        self.has_backlog = False
        try:
            while other is None:
                if kind < 0:
                    if end - start < head:
                        break
                    if not frames:
                        self.has_backlog = True
                        break
                    frames -= 1
                    open_at(header, 0, sealed, start, head)
                    word = int.from_bytes(header.view, "big")
                    kind, length = word >> 24, word & 0xFFFFFF
                    if length > MAX_BODY:
                        raise ProtocolViolation(f"a frame of {length} bytes")
                    start += head
                size = length + overhead if length else 0
                if end - start < size:
                    break
                if size:
                    open_at(plain, filled, sealed, start, size)
                    start += size
                if kind == joined and length:
                    filled += length
                    pads = 0
                elif kind != Frame.PAD and kind < SKIPPED:
                    other = Header(kind, length)
                    pads = 0
                elif pads < MAX_PADS:
                    pads += 1
                else:
                    raise ProtocolViolation(f"more than {MAX_PADS} PADs in a row")
                kind = -1
        except StreamError as error:
            if not filled:
                raise
            self.failure = error
            return filled, BROKEN
        self._due = None if kind < 0 else Header(kind, length)
        self._pads = pads
        if start < end:
            self.kept = bytes(sealed.view[start:end])
            if other is not None:
                self.has_backlog = True
        else:
            self.kept = b""
        return filled, other


def areas_of(scratch: ScratchBuffers) -> tuple[Area, Area, Area]:
    """The buffers for what is opened and what is sealed, and one for a frame's header."""
    plain, sealed = cast(bytearray, scratch.plain.obj), cast(bytearray, scratch.sealed.obj)
    areas = Area(plain), Area(sealed), Area(bytearray(HEADER_SIZE))
    scratch.areas = areas
    return areas


class HasBacklog(Protocol):
    """What has bytes of a tunnel that wait to be decoded."""

    @property
    def has_backlog(self) -> bool:
        """True if there are any, although the descriptor may not poll readable."""


class Tunnel:
    """What both ends share: sealed frames over a socket that it owns.

    ``received``: bytes that were received behind the key agreement.
    """

    __slots__ = (
        "_answers_due",
        "_backlog",
        "_decoder",
        "_scratch",
        "_sealer",
        "_sock",
        "cipher",
        "features",
        "frame_timeout",
        "last_heard",
        "last_used",
        "state",
        "trace",
    )

    #: of the end that this is; a tunnel that is only used for its frames has none
    transitions: ClassVar[Transitions] = {}

    def __init__(self, sock: AnySocket, session: Session, received: bytes = b"") -> None:
        self._sock: AnySocket | None = sock
        self._sealer = session.sealer
        self._scratch = scratch_of_this_hub()
        self._decoder = FrameDecoder(session.opener, received)
        #: knows of what was received and not decoded yet
        self._backlog: HasBacklog = self._decoder
        self.state = TunnelState.IDLE
        #: of the connection that has the tunnel at present
        self.trace: Trace = no_trace
        #: how many OPENED the present request is still to have
        self._answers_due = 0
        self.cipher = session.cipher
        self.features = session.features
        #: seconds in which a frame that :meth:`receive` waits for has to come whole, once its first
        #: byte has come, and one of :meth:`send` has to find room; None: its caller has a time for
        #: all of it
        self.frame_timeout: float | None = None
        #: monotonic seconds when the last stream ended
        self.last_used = time.monotonic()
        #: monotonic seconds of the last sign of life, a stream's or a ping's
        self.last_heard = self.last_used

    def __repr__(self) -> str:
        cipher = (self.cipher.name or "").lower()
        return f"<{type(self).__name__}: {self.state.value}, {cipher}>"

    def used(self) -> None:
        """Note that a stream has just ended, or was refused."""
        self.last_used = self.last_heard = time.monotonic()

    def stream_ended(self) -> None:
        """Note that a stream has just ended in both directions: the tunnel can carry another."""
        self._move(TunnelEvent.BOTH_FINS)
        self.used()

    def _move(self, event: TunnelEvent) -> None:
        before = self.state
        if before is TunnelState.CLOSED or not self.transitions:
            return
        self.state = self.transitions[before, event]
        if log.isEnabledFor(logging.DEBUG):
            self._log_change(before, event.value)

    def _log_change(self, before: TunnelState, cause: str) -> None:
        trace = log.debug if self.trace is no_trace else self.trace
        name, number = type(self).__name__, id(self)
        trace("%s %x: %s -> %s (%s)", name, number, before.value, self.state.value, cause)

    def _take_socket(self) -> AnySocket | None:
        """The socket, to close it; None after the first call."""
        sock, self._sock = self._sock, None
        if sock is not None:
            before, self.state = self.state, TunnelState.CLOSED
            if log.isEnabledFor(logging.DEBUG):
                self._log_change(before, "closed at this end")
        return sock

    # --- by a greenlet, between two streams ---------------------------------------------------

    def send(self, kind: Frame, body: bytes = b"") -> None:
        """One frame, header and body in one write.  Raises FrameTimeout, another StreamError."""
        self._socket()
        scratch = self._scratch
        self.send_sealed(bytes(scratch.sealed[: self.seal(scratch, kind, body)]))

    def send_sealed(self, sealed: bytes) -> None:
        """Frames that were sealed already, or the rest of one.  Raises as :meth:`send`."""
        try:
            self._send_all(self._socket(), sealed)
        except BaseException:
            # A frame cut in two can't be continued, so nothing may follow it; this includes
            # the timeout or the kill of the greenlet that was sending.
            self.abort()
            raise

    def _send_all(self, sock: AnySocket, sealed: bytes) -> None:
        sent = self.send_some(sock.fileno(), sealed)
        if sent == len(sealed):
            return
        rest, seconds = sealed[sent:], self.frame_timeout
        if seconds is None:
            send_all(sock, rest)
        else:
            late = FrameTimeout(f"a frame was not taken in {seconds:g} s")
            call_within(seconds, late, send_all, sock, rest)

    def receive(self) -> tuple[int, bytes]:
        """Wait for the next frame that is no PAD; its type and body.

        Raises Truncated if the connection ends (its authenticated end is FIN, not EOF),
        Tampered if it is not of the other end's making, ProtocolViolation, FrameTimeout, another
        StreamError.
        """
        decoder, scratch, begun = self._decoder, self._scratch, None
        while True:
            give_way()
            count = 0
            if not decoder.has_backlog:
                if begun is None and not decoder.between_frames:
                    begun = time.monotonic()
                count = self._receive_more(begun)
            header = self._decode_frame(scratch, count)
            if header is not None:
                return header.kind, bytes(scratch.plain[: header.length])

    def _receive_more(self, begun: float | None) -> int:
        """Wait for more bytes of a frame that has ``begun`` then, if it has; how many came."""
        # What is kept is put in front of them afterwards: while this waits, other greenlets use the
        # buffers.
        sock, room = self._socket(), self._decoder.frame_room(self._scratch)
        try:
            if begun is None or self.frame_timeout is None:
                count: int = sock.recv_into(room)
            else:
                left = begun + self.frame_timeout - time.monotonic()
                late = FrameTimeout(f"a frame has not come whole in {self.frame_timeout:g} s")
                count = call_within(max(0.0, left), late, sock.recv_into, room)
        except OSError as error:
            raise stream_failure(error) from None
        if not count:
            raise Truncated("the connection ended early")
        return count

    # --- by the hub, inside a stream ------------------------------------------------------------

    def receive_nowait(self, scratch: ScratchBuffers, joined: Frame) -> tuple[int, Header | None]:
        """All frames that have come whole, without waiting for more; see FrameDecoder.decode.

        Raises as :meth:`receive` does.
        """
        decoder, count, failure = self._decoder, None, None
        if not decoder.has_backlog:
            try:
                fd = (self._sock or self._socket()).fileno()
                count = self.receive_some(fd, decoder.bulk_room(scratch))
            except StreamError as error:
                failure = error  # behind what has been received before
        try:
            filled, other = decoder.decode(scratch, count or 0, joined)
        except StreamError:
            # A reader that went on could take a body for a header.
            self.abort()
            raise
        if other is None and (failure is not None or count == 0):
            failure = failure or Truncated("the connection ended early")
            if not filled:
                raise failure
            decoder.failure, other = failure, BROKEN
        return filled, other

    def receive_frame_nowait(self, scratch: ScratchBuffers) -> Header | None:
        """The next frame, whose body lies in ``scratch.plain`` then; None: not yet.

        Raises as :meth:`receive` does.
        """
        decoder = self._decoder
        if decoder.has_backlog:
            header = self._decode_frame(scratch, 0)
            if header is not None or decoder.has_backlog:
                return header
        count = self.receive_some(self.fileno(), decoder.frame_room(scratch))
        header = self._decode_frame(scratch, count or 0)
        if count == 0 and header is None:
            raise Truncated("the connection ended early")
        return header

    def look_behind_fin(self, scratch: ScratchBuffers) -> None:
        """See that what has come behind the other end's FIN, and before ours, may stand there.

        That is PAD, if it is a client's.  Raises as :meth:`receive` does.
        """
        header = self.receive_frame_nowait(scratch)
        if header is not None:
            raise ProtocolViolation(f"frame {header.kind:#04x} behind FIN")

    def _decode_frame(self, scratch: ScratchBuffers, count: int) -> Header | None:
        try:
            return self._decoder.decode(scratch, count)[1]
        except StreamError:
            self.abort()
            raise

    def fail(self) -> NoReturn:
        """Raise what stands behind the frames that were received last."""
        failure = self._decoder.failure or StreamClosed("the tunnel is closed")
        if isinstance(failure, (Tampered, ProtocolViolation)):
            self.abort()
        raise failure

    def send_nowait(
        self, scratch: ScratchBuffers, kind: Frame, body: Bytes = b"", behind: int = 0
    ) -> memoryview:
        """One frame, or as many as ``body`` needs; returns what of it could not be sent at once.

        The caller sends that before anything else, by :attr:`send_some`.  ``behind``: so many bytes
        have been sealed already, and leave in the same write.  Raises StreamError.
        """
        end = self.seal(scratch, kind, body, behind)
        sealed = scratch.sealed
        sent = self.send_some((self._sock or self._socket()).fileno(), sealed[:end])
        return NOTHING if sent == end else memoryview(bytes(sealed[sent:end]))

    #: how bytes are received and sent without waiting
    receive_some = staticmethod(receive_into)
    send_some = staticmethod(send_now)

    def seal(self, scratch: ScratchBuffers, kind: Frame, body: Bytes = b"", behind: int = 0) -> int:
        """One frame, or as many as ``body`` needs, as they travel.

        They lie in ``scratch.sealed``, where ``behind`` bytes lie already: returns where they end.
        """
        _, sealed, _ = scratch.areas or areas_of(scratch)
        seal_at, end, size = self._sealer.seal_at, behind, len(body)
        for start in range(0, size or 1, MAX_BODY):
            part = body if size <= MAX_BODY else body[start : start + MAX_BODY]
            length = len(part)
            end = seal_at(sealed, end, (kind << 24 | length).to_bytes(HEADER_SIZE, "big"))
            if length:
                end = seal_at(sealed, end, part)
        return end

    def padding(self) -> bytes:
        """What hides how long a name is, and which frames are pings: zeros, since they are sealed,
        of a random number.
        """
        return bytes(next(_random_bytes) % PADDING_LIMIT)

    def abort(self) -> None:
        """Reset the connection; never raises, does nothing the second time."""
        sock = self._take_socket()
        if sock is not None:
            reset(sock)

    def close(self) -> None:
        """Close the connection; never raises, does nothing the second time."""
        sock = self._take_socket()
        if sock is not None:
            sock.close()

    def abort_with_reset(self) -> None:
        """Carry a reset through: RESET if it can leave at once, and the connection's end."""
        sock = self._take_socket()
        if sock is None:
            return
        sealed = self._scratch.sealed[: self.seal(self._scratch, Frame.RESET)]
        try:
            is_sent = self.send_some(sock.fileno(), sealed) == len(sealed)
        except StreamError:
            is_sent = False
        if is_sent:
            sock.close()
        else:
            reset(sock)

    @property
    def closed(self) -> bool:
        return self._sock is None

    @property
    def between_frames(self) -> bool:
        """True if no part of a frame has been received."""
        return self._decoder.between_frames

    @property
    def has_backlog(self) -> bool:
        """True if frames may have come whole that were not decoded yet."""
        return self._backlog.has_backlog

    @property
    def boxes(self) -> int:
        """How many boxes were sealed and opened in it; of each frame one or two."""
        return self._sealer.count + self._decoder.boxes

    @property
    def readable(self) -> bool:
        """True if something waits to be received: on an idle tunnel, its end."""
        if self._sock is None or self._decoder.kept:
            return True
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """The descriptor, to watch an idle tunnel."""
        return self._socket().fileno()

    def _socket(self) -> AnySocket:
        if self._sock is None:
            raise StreamClosed("the tunnel is closed")
        return self._sock


class _Inside(Blocking):
    """What is the same for a stream and for an association, from OPENED to both FINs.

    ``ended`` is called once, when it is closed: with True if it had ended in both directions and
    the tunnel can carry the next stream, with False if the tunnel is closed too.  ``watcher``: one
    of the tunnel's descriptor that has served before, and is the stream's now.
    """

    __slots__ = ("_ended", "_read_ended", "_tunnel", "_unsent", "_watcher", "_write_ended")

    def __init__(self, tunnel: Tunnel, ended: Callable[[bool], None], watcher: Any = None) -> None:
        self._waiting = ()  # see SocketStream
        #: see take_watcher
        self._watcher = watcher
        self._tunnel: Tunnel | None = tunnel
        self._ended = ended
        self._read_ended = False
        self._write_ended = False
        #: the rest of frames that could not be sent whole
        self._unsent = NOTHING

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._tunnel is None:
            return f"<{name}: closed>"
        state = directions(self._read_ended, self._write_ended)
        return f"<{name}: {state}, {len(self._unsent)} bytes to send, in {self._tunnel!r}>"

    def fileno(self) -> int:
        return self._open_tunnel().fileno()

    @property
    def has_prefetched(self) -> bool:
        return not self._open_tunnel().between_frames

    @property
    def read_wait(self) -> Wait:
        return NEXT_TURN if self._open_tunnel().has_backlog else READABLE

    def _meet(self, header: Header) -> None:
        """A frame that carries nothing: the end, or its place is not inside a stream."""
        if header == (Frame.FIN, 0):
            self._read_ended = True
        elif header is BROKEN:
            self._open_tunnel().fail()
        elif header.kind == Frame.RESET:
            raise StreamReset("reset at the far end of the tunnel")
        else:
            raise ProtocolViolation(f"frame {header.kind:#04x} inside a stream")

    def _send(self, kind: Frame, body: Bytes, scratch: ScratchBuffers) -> bool:
        tunnel = self._tunnel or self._open_tunnel()
        if self._write_ended:
            raise StreamClosed("this direction has ended")
        self._unsent = rest = tunnel.send_nowait(scratch, kind, body)
        return not rest

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        if self._write_ended:
            return True
        all_sent = self._send(Frame.FIN, b"", scratch)
        self._write_ended = True
        return all_sent

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        tunnel, unsent = self._open_tunnel(), self._unsent
        self._unsent = rest = unsent[tunnel.send_some(tunnel.fileno(), unsent) :] or NOTHING
        return not rest

    def take_watcher(self) -> Any:
        watcher, self._watcher = self._watcher, None
        return super().take_watcher() if watcher is None else watcher

    def _close_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def abort(self) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is None:
            return
        self._wake()
        self._close_watcher()
        if self._unsent or self._write_ended:
            # in the middle of a frame, or behind the FIN, RESET has no place
            tunnel.abort()
        else:
            tunnel.abort_with_reset()
        self._ended(False)

    def close(self) -> None:
        if not (self._read_ended and self._write_ended) or self._unsent:
            self.abort()
            return
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            if self._waiting:
                self._wake()
            if self._watcher is not None:
                self._close_watcher()
            tunnel.stream_ended()
            self._ended(True)

    def _open_tunnel(self) -> Tunnel:
        if self._tunnel is None:
            raise StreamClosed("closed at this end")
        return self._tunnel


class TunnelStream(_Inside):
    """One stream inside a tunnel, as a :class:`gsocks.stream.Stream`."""

    __slots__ = ("_behind",)

    def __init__(self, tunnel: Tunnel, ended: Callable[[bool], None], watcher: Any = None) -> None:
        super().__init__(tunnel, ended, watcher)
        #: the frame behind the bytes that were read last, which carries no more of them
        self._behind: Header | None = None

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        tunnel = self._tunnel or self._open_tunnel()
        if self._read_ended:
            return b""
        behind, self._behind = self._behind, None
        if behind is None:
            count, behind = tunnel.receive_nowait(scratch, Frame.DATA)
            if count:
                self._behind = behind
                return scratch.plain[:count]
            if behind is None:
                return None
        self._meet(behind)
        return b""

    def watch_end(self, watcher: Any, reader: ReadsToTheEnd) -> None:
        tunnel = self._tunnel
        if self._write_ended or tunnel is None:
            watcher.close()
            return
        self._watcher = watcher
        watcher.callback, watcher.args = self._on_readable_behind_fin, (reader,)
        if tunnel._decoder.kept:  # as it came with FIN
            tunnel.look_behind_fin(scratch_of_this_hub())

    def _on_readable_behind_fin(self, reader: ReadsToTheEnd) -> None:
        try:
            self._open_tunnel().look_behind_fin(scratch_of_this_hub())
        except StreamError as error:
            reader.broken(error)

    @property
    def has_buffered(self) -> bool:
        if self._behind is not None:
            return True
        # a tunnel that is closed is noticed by the next read
        tunnel = self._tunnel
        return tunnel is not None and not self._read_ended and tunnel._backlog.has_backlog

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        return self._send(Frame.DATA, data, scratch)


class TunnelDatagrams(_Inside):
    """The datagrams of an association inside a tunnel, as a stream of them (net/datagram.py).

    One that is larger than a frame can't be delivered to a client either, whose datagrams have
    a header in front: it is dropped.
    """

    __slots__ = ()

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        tunnel = self._open_tunnel()
        if self._read_ended:
            return b""
        header = tunnel.receive_frame_nowait(scratch)
        if header is None:
            return None
        if header.kind == Frame.DATAGRAM and header.length:
            return scratch.plain[: header.length]
        self._meet(header)
        return b""

    @property
    def has_buffered(self) -> bool:
        return self._tunnel is not None and not self._read_ended and self._tunnel.has_backlog

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        return len(data) > MAX_BODY or self._send(Frame.DATAGRAM, data, scratch)


# --- the client's end -----------------------------------------------------------------------


class ClientTunnel(Tunnel):
    """A tunnel as its opener holds it: it asks for streams, one after the other."""

    __slots__ = ("boxes_in_volume", "expires_at", "max_volume", "served")
    transitions = CLIENT_TRANSITIONS

    def __init__(self, sock: AnySocket, session: Session, received: bytes = b"") -> None:
        super().__init__(sock, session, received)
        #: how many streams it has carried; 0: never used
        self.served = 0
        #: monotonic seconds and bytes behind which it is to carry no other stream, and the number
        #: of boxes up to which it can't have carried so many bytes (gsocks/ageing.py)
        self.expires_at = math.inf
        self.max_volume = math.inf
        self.boxes_in_volume = math.inf

    def open(self, request: Request) -> Address:
        """Ask for a stream; returns the bound address at the far end.

        For BIND that is where the peer is waited for, and :meth:`opened_again` follows.

        Raises what the far end answered (a ConnectFailed kind: the tunnel can be used again),
        or a StreamError: the tunnel is broken, and the request had no effect that could be seen.
        """
        self.ask(request)
        return self.opened_again()

    def opened_again(self) -> Address:
        """Wait for the second answer to a BIND; returns the peer's address.

        Raises as :meth:`open` does.
        """
        try:
            return self.answer()
        except (ConnectFailed, ClientError):
            self._end_without_stream()
            raise

    def look_up(self, request: Request) -> Address:
        """Ask for the address of a name, or for the name of an address; see
        :meth:`gsocks.exits.base.LooksUp.look_up`.

        Raises as :meth:`open` does, and CommandNotSupported, with nothing sent, if the server has
        not chosen that feature.
        """
        if Feature.LOOK_UPS not in self.features:
            error = CommandNotSupported("the server looks nothing up: it is older than this end")
            error.is_last = True
            raise error
        self.ask(request)
        body = self._expect(Frame.OPENED, *self.receive())
        try:
            found = _decode_answer(body)
        except (ConnectFailed, ClientError):
            self._move(TunnelEvent.REFUSED)
            self._end_without_stream()
            raise
        if found.port or (found.ip is None) is not (request.command is RESOLVE_PTR):
            raise ProtocolViolation("the answer to a look-up is not what was asked for")
        self._move(TunnelEvent.LOOKED_UP)
        self._end_without_stream()
        return found

    def _end_without_stream(self) -> None:
        """End a request that has led to no stream.

        It ends as a stream does: the server's direction with OPENED, ours by FIN, behind which the
        next OPEN may stand.
        """
        try:
            self.send(Frame.FIN)
        except StreamError:
            pass  # the tunnel is closed by it; what the far end has answered is known
        else:
            self.used()

    def ask(self, request: Request) -> None:
        """Ask for a stream; :meth:`answer` returns what came of it.  Raises StreamError."""
        self.send(Frame.OPEN, self._open_body(request))

    def ask_nowait(
        self,
        scratch: ScratchBuffers,
        request: Request,
        kind: Frame | None = None,
        body: Bytes = b"",
    ) -> memoryview:
        """The same, with a frame behind OPEN in one write; returns as ``send_nowait``."""
        ours = self._open_body(request)
        if kind is None:
            return self.send_nowait(scratch, Frame.OPEN, ours)
        return self.send_nowait(scratch, kind, body, self.seal(scratch, Frame.OPEN, ours))

    def used(self) -> None:
        """See :meth:`Tunnel.used`."""
        super().used()
        self.trace = no_trace

    def _open_body(self, request: Request) -> bytes:
        self.trace = request.trace
        self._move(TunnelEvent.OPEN)
        self.served += 1
        self._answers_due = 2 if request.command is Command.BIND else 1
        return bytes((request.command,)) + request.dest.encode() + self.padding()

    def answer(self) -> Address:
        """Wait for the server's answer; returns the bound address.

        Raises as :meth:`open` does.  After a refusal this end's direction has not ended, unless
        it had before.
        """
        return self._answered(*self.receive())

    def answer_nowait(self, scratch: ScratchBuffers) -> Address | None:
        """The same without waiting; None: not yet."""
        header = self.receive_frame_nowait(scratch)
        if header is None:
            return None
        return self._answered(header.kind, bytes(scratch.plain[: header.length]))

    def _answered(self, kind: int, body: bytes) -> Address:
        self._expect(Frame.OPENED, kind, body)
        try:
            bound = _decode_answer(body)
        except (ConnectFailed, ClientError):
            self._move(TunnelEvent.REFUSED)
            raise
        self._answers_due -= 1
        if not self._answers_due:
            self._move(TunnelEvent.OPENED)
        return bound

    def look_behind_fin(self, scratch: ScratchBuffers) -> None:
        """See :meth:`Tunnel.look_behind_fin`: of a server's nothing may."""
        decoder = self._decoder
        if decoder.between_frames:
            count = self.receive_some(self.fileno(), decoder.frame_room(scratch))
            if count is None:
                return
            if not count:
                raise Truncated("the connection ended early")
        raise ProtocolViolation("a frame behind the FIN of the server")

    def ping(self) -> None:
        """Ask for a sign of life, and wait for it.  Raises StreamError."""
        self._move(TunnelEvent.PING)
        self.send(Frame.PING, self.padding())
        self._expect(Frame.PONG, *self.receive())
        self._move(TunnelEvent.PONG)
        self.last_heard = time.monotonic()

    def _expect(self, expected: Frame, kind: int, body: bytes) -> bytes:
        if kind != expected:
            raise ProtocolViolation(f"frame {kind:#04x} where {expected.name} was due")
        return body


def connect_tunnel(
    sock: AnySocket,
    key: Key,
    offered: Cipher,
    kind: type[ClientTunnel] = ClientTunnel,
    time_ms: int | None = None,
) -> ClientTunnel:
    """Agree on keys over a connected socket, which the tunnel, of that ``kind``, then owns.

    ``time_ms``: the time that the hello tells, this machine's by default.  Runs under the caller's
    timeout.  Raises ExitFailed or StreamError; the socket is the caller's to close then.
    """
    initiator = Initiator(key, offered)
    send_all(sock, initiator.hello(now_ms() if time_ms is None else time_ms))
    reader = Reader(sock)
    try:
        head = reader.exactly(REPLY_HEAD_SIZE, _READ_AHEAD)
        rest = reader.exactly(initiator.reply_rest(head), _READ_AHEAD)
    except (TlsFailed, WebSocketFailed):
        raise  # which say what it was
    except StreamError:
        raise ExitUnproven(
            "the server closed without an answer: another key, clocks more than 30 s apart,"
            " or no gsocks server at that address"
        ) from None
    return kind(sock, initiator.finish(head, rest), reader.take_rest())


# --- the server's end -----------------------------------------------------------------------


class WaitingTunnel(Protocol):
    """What waits for the next request of a tunnel."""

    def closing(self) -> None:
        """The tunnel is about to be closed by its owner; its descriptor is still open."""


class ServerTunnel(Tunnel):
    """A tunnel as its acceptor holds it: it is asked for streams."""

    __slots__ = ("key", "user", "waiting")
    transitions = SERVER_TRANSITIONS
    #: see :class:`gsocks.handshake.Answer`
    protocol = "tunnel"

    def __init__(self, sock: AnySocket, session: Session, user: str, key: Key) -> None:
        super().__init__(sock, session)
        #: the key that the other end proved to know, and its name
        self.key = key
        self.user = user
        #: waits for its next request in the hub
        self.waiting: WaitingTunnel | None = None

    def _take_socket(self) -> AnySocket | None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.closing()
        return super()._take_socket()

    def accept(self) -> Request | None:
        """The next request; None if the other end closed the tunnel, which it may between two.

        After a refusal :meth:`discard_refused` comes first, here if the caller has not had it.
        Answers pings meanwhile.  Raises StreamError; a ClientError for a command or a
        destination that can't be one, which is then to be answered like any other failure.
        """
        if self.state is TunnelState.REFUSED:
            self.discard_refused()
        pings = 0
        while True:
            try:
                kind, body = self.receive()
            except (Truncated, StreamReset):
                if self.between_frames:
                    return None
                raise
            if kind == Frame.OPEN:
                return self.decode_open(body)
            if kind != Frame.PING:
                raise ProtocolViolation(f"frame {kind:#04x} between two streams")
            pings += 1
            if pings > MAX_PINGS:
                raise ProtocolViolation(f"more than {MAX_PINGS} PINGs between two streams")
            self.send(Frame.PONG, self.padding())
            self._move(TunnelEvent.PING)
            give_way(at_once=True)  # what costs a peer nothing is done once in each turn

    def pong_nowait(self, scratch: ScratchBuffers) -> memoryview:
        """Answer a ping; returns as ``send_nowait``."""
        rest = self.send_nowait(scratch, Frame.PONG, self.padding())
        self._move(TunnelEvent.PING)
        return rest

    def discard_refused(self) -> None:
        """Discard what the client sent before it could know of a refusal, up to its FIN.

        Raises StreamError.
        """
        while True:
            kind, body = self.receive()
            if kind == Frame.FIN and not body:
                self._move(TunnelEvent.FIN)
                return
            if kind == Frame.RESET:
                raise StreamReset("reset at the far end of the tunnel")
            if kind != Frame.DATA or not body:
                raise ProtocolViolation(f"frame {kind:#04x} behind a refused OPEN")
            give_way(at_once=True)

    def succeeded(self, bound: Address, via: str = "") -> None:  # noqa: ARG002
        """Answer the request: connected.  Raises StreamError.

        Which exit serves it is this end's own business, and has no place in OPENED.
        """
        self.send(Frame.OPENED, self._success(bound))
        self._note_success()

    def succeeded_nowait(self, scratch: ScratchBuffers, bound: Address) -> memoryview:
        """The same without waiting; returns as ``send_nowait``."""
        rest = self.send_nowait(scratch, Frame.OPENED, self._success(bound))
        self._note_success()
        return rest

    def looked_up(self, found: Address) -> None:
        """Answer a look-up, of which there is no stream.  Raises StreamError."""
        self.send(Frame.OPENED, self._success(found))
        self._move(TunnelEvent.LOOKED_UP)

    def _success(self, bound: Address) -> bytes:
        return b"\0" + bound.encode() + self.padding()

    def _note_success(self) -> None:
        self._answers_due -= 1
        if not self._answers_due:
            self._move(TunnelEvent.OPENED)

    def failed(self, error: GsocksError) -> None:
        """Answer the request: why it was not connected; ends the stream.  Never raises."""
        self._move(TunnelEvent.REFUSED)
        try:
            self.send(Frame.OPENED, bytes((error.code,)) + UNSPECIFIED.encode() + self.padding())
        except StreamError:
            pass  # the tunnel is closed by it, which the wait for the next request reports

    def decode_open(self, body: bytes, client: str = "", trace: Trace = no_trace) -> Request:
        """The request of ``client`` in the body of an OPEN.  Raises as :meth:`accept`."""
        take = _Taker(body)
        command = take(1)[0]
        known = _COMMANDS.get(command)
        dest = _no_destination(take) if known is UDP_ASSOCIATE else Address.read(take)
        if known is None:
            if Feature.LOOK_UPS in self.features:
                known = _LOOK_UPS.get(command)
            if known is None:
                raise CommandNotSupported(f"command {command:#04x}")
            if known is RESOLVE_PTR and dest.ip is None:
                raise BadAddress(f"{dest.host!r} is no address, whose name could be looked up")
        self._answers_due = 2 if known is BIND else 1
        return Request(known, dest, self.user, client=client, trace=trace)


def accept_tunnel(
    sock: AnySocket,
    keys: KeyRing,
    guard: ReplayGuard,
    ciphers: Cipher,
    kind: type[ServerTunnel] = ServerTunnel,
) -> ServerTunnel:
    """Agree on keys with the peer that connected; the tunnel is of that ``kind``.

    Runs under the caller's timeout.  Raises Stranger or StreamError; then nothing was sent, and
    the caller goes on as :func:`discard` does; but for ProtocolViolation, behind the reply to a
    client that is too old.
    """
    reader = Reader(sock)
    try:
        head = reader.exactly(HELLO_HEAD_SIZE)
    except StreamError as error:
        error.is_routine = reader.at_boundary
        raise
    read = b""
    for responder in keys.candidates(head):
        read += reader.exactly(responder.rest - len(read))
        try:
            hello = responder.read(read)
        except Tampered:
            continue
        chosen = preferred(hello.offered & ciphers)
        if chosen is None:
            raise Stranger("offers no cipher that this server has")
        if not guard.admit(hello.token, hello.time_ms, responder.key.raw()):
            raise Stranger(f"key {responder.name}: {guard.refusal(hello.time_ms)}")
        version = agreed_version(hello.version)
        message, session = responder.reply(chosen, version, hello.features)
        send_all(sock, message)
        if version > hello.version:
            raise ProtocolViolation(
                f"the client speaks version {hello.version} of the protocol, at least"
                f" {LOWEST_VERSION} is needed"
            )
        return kind(sock, session, responder.name, responder.key)
    raise Stranger("not the hello of a known key: it has another key, or is no gsocks client")


def discard(sock: AnySocket, seconds: float) -> None:
    """Read on and throw away until the time is over, then end our direction; close a little later.

    Whatever a stranger sent, even if it ended its direction or is sending still, it sees the same:
    nothing, and at the same moment FIN.  Probers count bytes and time (shadowsocks-rust#292).
    A connection that is closed while bytes come is reset: so it is read from for ``CLOSE_GRACE``
    more, or until the stranger has ended its direction too.
    """
    over = time.monotonic() + seconds
    try:
        ended = call_with_timeout(seconds, _discard_to_end, sock, on_timeout=False)
        if ended:
            gevent.sleep(max(0.0, over - time.monotonic()))
        sock.shutdown(std_socket.SHUT_WR)
        if not ended:
            call_with_timeout(CLOSE_GRACE, _discard_to_end, sock, on_timeout=False)
    except OSError:
        pass  # the peer itself has reset the connection
    finally:
        close_with_fin(sock)


def _discard_to_end(sock: AnySocket) -> bool:
    """Read until the peer has ended its direction; returns True then.  Raises OSError."""
    while sock.recv(CHUNK):
        give_way()
    return True


def _draw_random_bytes() -> Iterator[int]:
    # a system call for each would cost more than the padding itself
    while True:
        yield from os.urandom(256)


_random_bytes = _draw_random_bytes()


# --- bodies ---------------------------------------------------------------------------------


class _Taker:
    """``exactly`` for bytes that are all there."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def __call__(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._body):
            raise ProtocolViolation("a frame's body ends early")
        return self._body[start : self._at]


def _no_destination(take: _Taker) -> Address:
    """The destination of an association, of which each datagram has its own: any address does.

    Raises AddressTypeNotSupported, since it has no known end then, and ProtocolViolation.
    """
    try:
        Address.read(take)
    except BadAddress:
        pass  # it was read whole, and has no meaning
    return UNSPECIFIED


def _decode_answer(body: bytes) -> Address:
    """The bound address in an OPENED; raises what a refusal says, or ProtocolViolation."""
    take = _Taker(body)
    try:
        code, bound = take(1)[0], Address.read(take)
    except ClientError as error:  # it is the far end that named this address
        raise ProtocolViolation(f"a bound address that can't be one: {error}") from None
    if code:
        raise failure_from_code(code, "reported by the far end of the tunnel")
    return bound
