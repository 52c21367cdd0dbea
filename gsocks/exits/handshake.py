"""Exact reads of a handshake at the beginning of a stream, and the stream behind it."""

from __future__ import annotations

from gsocks.errors import Truncated
from gsocks.stream import Blocking, Bytes, ScratchBuffers, Stream, Wait, inner_stream


class Opening:
    """Exact reads from the beginning of a Stream, whose own reads return any number of bytes."""

    __slots__ = ("_kept", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._kept = b""

    def exactly(self, count: int, part: str) -> bytes:
        """The next ``count`` bytes; ``part``: the part of the handshake that they belong to.

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
        """The stream behind the handshake."""
        return resumed(self._stream, self._kept)


def resumed(stream: Stream, pending: bytes) -> Stream:
    """``stream`` with ``pending``, which was read from it already, put back."""
    return _Resumed(stream, pending) if pending else stream


class _Resumed(Blocking):
    __slots__ = ("_pending", "_stream")

    def __init__(self, stream: Stream, pending: bytes) -> None:
        super().__init__()
        self._stream = inner_stream(stream)
        self._pending = pending

    def __repr__(self) -> str:
        return f"<{len(self._pending)} bytes, then {self._stream!r}>"

    @property
    def never_blocks(self) -> bool:
        return self._stream.never_blocks

    def fileno(self) -> int:
        return self._stream.fileno()

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        return self._stream.read_nowait(scratch)

    @property
    def read_wait(self) -> Wait:
        return self._stream.read_wait

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        return self._stream.write_nowait(data, scratch)

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        return self._stream.write_eof_nowait(scratch)

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:
        return self._stream.flush_nowait(scratch)

    @property
    def write_wait(self) -> Wait:
        return self._stream.write_wait

    @property
    def has_buffered(self) -> bool:
        return bool(self._pending) or self._stream.has_buffered

    @property
    def has_prefetched(self) -> bool:
        return bool(self._pending) or self._stream.has_prefetched

    def abort(self) -> None:
        self._pending = b""
        self._wake()
        self._stream.abort()

    def close(self) -> None:
        if self._pending:
            self.abort()
        else:
            self._wake()
            self._stream.close()
