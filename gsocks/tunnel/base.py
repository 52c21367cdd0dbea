"""What both ends of a tunnel share: sealed frames over a socket."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Iterator
from typing import ClassVar, NoReturn

from gsocks.crypto import Session
from gsocks.deadline import call_within
from gsocks.errors import (
    FrameTimeout,
    ProtocolViolation,
    StreamClosed,
    StreamError,
    Tampered,
    Truncated,
    stream_failure,
)
from gsocks.observe import Trace, no_trace
from gsocks.sock import AnySocket
from gsocks.stream import (
    NOTHING,
    Bytes,
    ScratchBuffers,
    receive_into,
    reset,
    scratch_of_this_hub,
    send_all,
    send_now,
)
from gsocks.tunnel.frames import (
    BROKEN,
    HEADER_SIZE,
    MAX_BODY,
    Frame,
    FrameDecoder,
    HasBacklog,
    Header,
    areas_of,
)
from gsocks.tunnel.states import Transitions, TunnelEvent, TunnelState
from gsocks.turns import give_way

log = logging.getLogger("gsocks.tunnel")

#: OPEN, OPENED, PING and PONG are padded by fewer bytes than this
PADDING_LIMIT = 128


def _draw_random_bytes() -> Iterator[int]:
    # a system call for each would cost more than the padding itself
    while True:
        yield from os.urandom(256)


_random_bytes = _draw_random_bytes()


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
