"""Sockets and streams in memory, whose other end has sent all its bytes already."""

from __future__ import annotations

import errno
import random
import zlib
from collections.abc import Callable, Iterator
from socket import MSG_PEEK, socketpair
from typing import Any

from gsocks.errors import HandshakeTimeout, stream_failure
from gsocks.stream import CHUNK

#: a division into pieces: from all bytes to the size of each piece
Pieces = Callable[[bytes], Iterator[int]]


def whole(said: bytes) -> Iterator[int]:
    yield len(said)


def byte_by_byte(said: bytes) -> Iterator[int]:
    while True:
        yield 1


def at_random(said: bytes) -> Iterator[int]:
    """Cut anywhere, but the same bytes always in the same way."""
    choose = random.Random(zlib.crc32(said))  # noqa: S311
    while True:
        yield choose.choice((1, 2, 3, 5, 8, 40, 200))


#: between these it may make no difference
WAYS: tuple[Pieces, ...] = (whole, byte_by_byte, at_random)

_READY, _OTHER_END = socketpair()
_OTHER_END.setblocking(False)
_OTHER_END.send(b"x")


class Wire:
    """A socket, as far as parsers use one.

    Behind ``said`` the other end ends its direction, resets, or falls silent; who waits for more
    of a silent one meets the end of its patience at once.
    """

    def __init__(self, said: bytes, pieces: Pieces = whole, then: str = "end") -> None:
        self._said = said
        self._at = 0
        self._pieces = pieces(said)
        self._piece = 0
        self._then = then
        #: what it was told
        self.told = bytearray()
        self.closed = False

    @property
    def rest(self) -> bytes:
        """The bytes that were not read."""
        return self._said[self._at :]

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._at == len(self._said):
            return self._nothing_more()
        if not self._piece:
            self._piece = max(1, next(self._pieces))
        data = self._said[self._at : self._at + min(size, self._piece)]
        if not flags & MSG_PEEK:
            self._at += len(data)
            self._piece = max(0, self._piece - len(data))
        return data

    def getsockname(self) -> tuple[str, int]:
        """Where the other end has connected to."""
        return "127.0.0.1", 1080

    def fileno(self) -> int:
        """A descriptor that is always ready: nothing here has to be waited for."""
        try:
            while _OTHER_END.recv(CHUNK):
                pass  # what was written to it, which would fill it after some thousand inputs
        except BlockingIOError:
            pass
        return _READY.fileno()

    def recv_into(self, room: memoryview) -> int:
        data = self.recv(len(room))
        room[: len(data)] = data
        return len(data)

    def _nothing_more(self) -> bytes:
        if self._then == "silence":
            raise HandshakeTimeout
        if self._then == "reset":
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return b""

    def send(self, data: bytes, flags: int = 0) -> int:
        self.told += data
        return len(data)

    def shutdown(self, how: int) -> None:
        """Has no effect on the other end."""

    def close(self) -> None:
        self.closed = True

    def setsockopt(self, *option: Any) -> None:
        """There is nothing to tune."""

    def settimeout(self, seconds: float | None) -> None:
        """Nothing ever blocks."""


class WireStream:
    """A wire as a :class:`gsocks.stream.Stream`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def read(self) -> bytes:
        try:
            return self._wire.recv(CHUNK)
        except OSError as error:
            raise stream_failure(error) from None

    def write(self, data: bytes) -> None:
        self._wire.send(data)

    def write_eof(self) -> None:
        """The other end does not look at it."""

    def abort(self) -> None:
        self._wire.close()

    close = abort
