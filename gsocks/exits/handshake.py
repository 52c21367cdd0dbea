"""The beginning of a stream that belongs to a handshake, and the rest, which is the stream."""

from __future__ import annotations

from gsocks.errors import Truncated
from gsocks.stream import Stream


class Opening:
    """Exact reads from the beginning of a Stream, whose own reads bring whatever there is."""

    __slots__ = ("_kept", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._kept = b""

    def exactly(self, count: int, part: str) -> bytes:
        """The next ``count`` bytes, which are part of ``part`` of the handshake.

        Raises Truncated, which names the part, or another StreamError.
        """
        while len(self._kept) < count:
            data = self._stream.read()
            if not data:
                raise Truncated(f"hung up before {part} was whole")
            self._kept += data
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken

    def rest(self) -> Stream:
        """The stream behind what was read from it."""
        return resumed(self._stream, self._kept)


def resumed(stream: Stream, pending: bytes) -> Stream:
    """``stream``, from which ``pending`` was read already, as if it had not been."""
    return _Resumed(stream, pending) if pending else stream


class _Resumed:
    __slots__ = ("_pending", "_stream", "write", "write_eof")

    def __init__(self, stream: Stream, pending: bytes) -> None:
        self._stream = stream
        self._pending = pending
        self.write = stream.write
        self.write_eof = stream.write_eof

    def read(self) -> bytes:
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        return self._stream.read()

    def abort(self) -> None:
        self._pending = b""
        self._stream.abort()

    def close(self) -> None:
        if self._pending:
            self.abort()
        else:
            self._stream.close()
