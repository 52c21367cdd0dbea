"""Sealed bytes in, frames out: the frames of both ends, and their decoder (docs/protocol.md, 4)."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol, cast

from gsocks.crypto import Area, Opener
from gsocks.errors import ProtocolViolation, StreamError
from gsocks.stream import CHUNK, ScratchBuffers

HEADER_SIZE = 4
#: the largest body of a frame
MAX_BODY = CHUNK
#: fetched together with a header, so that a small frame costs one system call
READ_AHEAD = 4096
#: frames decoded in one step, some tenths of a millisecond: a peer may send frames of a few bytes
MAX_FRAMES_AT_ONCE = 64
#: types from here on are ignored wherever PAD may stand, so that a later version can add some
SKIPPED = 0x80
#: PADs, or frames of such types, that may follow each other
MAX_PADS = 256


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
        return scratch.sealed[len(self.kept) : max(size, READ_AHEAD)]

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
