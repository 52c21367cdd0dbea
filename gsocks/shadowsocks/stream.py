"""Chunks over a stream: what a client and a server of Shadowsocks send each other.

A direction begins with a salt, from which its key is derived.  Then follows a sealed length and the
sealed bytes, again and again; in the edition of 2022 headers stand before the first of them.

    AEAD, both directions   salt, [length][bytes] ...    a client's first bytes are the destination
    2022, from a client     salt, [type, time, length][destination, padding, bytes], [length] ...
    2022, from a server     salt, [type, time, the client's salt, length][bytes], [length] ...

The end of a direction is the end of the stream below, which nothing seals: if that is cut
between two chunks, it looks like a proper end.  Within a chunk it is a failure.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable
from itertools import pairwise

from gsocks.address import Address
from gsocks.crypto import TAG_SIZE, Opener, Sealer
from gsocks.errors import ProtocolViolation, StreamClosed, StreamError, Tampered, Truncated
from gsocks.shadowsocks import ciphers, keys
from gsocks.shadowsocks.methods import Method
from gsocks.stream import (
    NEXT_TURN,
    NOTHING,
    Blocking,
    Bytes,
    ScratchBuffers,
    SocketStream,
    Stream,
    StreamOver,
    Wait,
    directions,
    receive_into,
    scratch_of_this_hub,
)
from gsocks.tunnel.frames import areas_of

#: a sealed length
LENGTH_BOX = 2 + TAG_SIZE

#: the types of SIP022 section 3.1.3
FROM_CLIENT, FROM_SERVER = 0, 1
#: type, time and length, sealed
FIXED_BOX = 1 + 8 + 2 + TAG_SIZE
#: bytes of padding at most, the same section
MAX_PADDING = 900
#: seconds by which the clocks of both ends may differ
MAX_SKEW = 30

#: chunks that are opened in one step: a peer may send them with one byte each
MAX_CHUNKS_AT_ONCE = 64
#: chunks without a byte that may follow each other
MAX_EMPTY = 256

#: where the next bytes are those of a length
_NO_LENGTH = -1


def now() -> int:
    """The time in headers: seconds since 1970."""
    return int(time.time())


def is_now(seconds: int) -> bool:
    """Whether a time in a header is near enough to this machine's."""
    return abs(now() - seconds) <= MAX_SKEW


class ChunkDecoder:
    """Sealed chunks in, their bytes out; it receives nothing itself.

    The chunks lie in the scratch buffers, where they are opened from one buffer into the other.
    Between two calls it keeps what is no whole chunk yet.
    """

    __slots__ = ("_due", "_empty", "_max_chunk", "_opener", "failure", "has_backlog", "kept")

    def __init__(self, max_chunk: int) -> None:
        self._max_chunk = max_chunk
        #: None: the salt is still to come
        self._opener: Opener | None = None
        #: the length of the chunk that has not come whole yet
        self._due = _NO_LENGTH
        #: how many chunks without a byte came last
        self._empty = 0
        #: received, and not opened yet
        self.kept: bytes = b""
        #: whether there may be whole chunks in these bytes
        self.has_backlog = False
        #: why nothing can be opened any more
        self.failure: StreamError | None = None

    def begin(self, opener: Opener, received: bytes, due: int = _NO_LENGTH) -> None:
        """The key is known; ``received``: the bytes behind what was needed for that.

        ``due``: the length of the next chunk, if a header has said it.
        """
        self._opener = opener
        self._due = due
        self.kept = received
        self.has_backlog = bool(received)

    @property
    def has_begun(self) -> bool:
        """Whether the key is known."""
        return self._opener is not None

    @property
    def between_chunks(self) -> bool:
        """True if no part of a chunk has been received."""
        return not self.kept and self._due == _NO_LENGTH

    def room(self, scratch: ScratchBuffers) -> memoryview:
        """Where the next bytes are to be received."""
        return scratch.sealed[len(self.kept) : scratch.room]

    def decode(self, scratch: ScratchBuffers, count: int) -> int:
        """Open what is kept and ``count`` bytes that have been received into the room.

        The bytes of the chunks lie in ``scratch.plain`` then: returns how many.  Raises Tampered,
        ProtocolViolation; if that shows behind chunks that are good, with the next call.
        """
        opener = self._opener
        if opener is None or self.failure is not None:
            raise self.failure or ProtocolViolation("no salt yet")
        open_at, max_chunk = opener.open_at, self._max_chunk
        plain, sealed, header = scratch.areas or areas_of(scratch)
        start, end = 0, count
        if kept := self.kept:
            sealed.view[: len(kept)] = kept
            end += len(kept)
        filled, due, left = 0, self._due, MAX_CHUNKS_AT_ONCE
        self.has_backlog = False
        try:
            while True:
                if due < 0:
                    if end - start < LENGTH_BOX:
                        break
                    if not left:
                        self.has_backlog = True
                        break
                    left -= 1
                    open_at(header, 0, sealed, start, LENGTH_BOX)
                    start += LENGTH_BOX
                    due = int.from_bytes(header.view[:2], "big")
                    if due > max_chunk:
                        raise ProtocolViolation(f"a chunk of {due} bytes")
                if end - start < due + TAG_SIZE:
                    break
                open_at(plain, filled, sealed, start, due + TAG_SIZE)
                start += due + TAG_SIZE
                filled += due
                self._count_empty(due)
                due = _NO_LENGTH
        except StreamError as error:
            self.failure = error
            if not filled:
                raise
            self.kept, self.has_backlog = b"", True
            return filled
        self._due = due
        self.kept = bytes(sealed.view[start:end]) if start < end else b""
        return filled

    def _count_empty(self, length: int) -> None:
        self._empty = 0 if length else self._empty + 1
        if self._empty > MAX_EMPTY:
            raise ProtocolViolation(f"more than {MAX_EMPTY} chunks without a byte")


class ShadowsocksStream(StreamOver):
    """Chunks over ``stream``, which it owns, as a :class:`gsocks.stream.Stream`."""

    __slots__ = (
        "_decoder",
        "_ending",
        "_is_socket",
        "_method",
        "_raw",
        "_read_ended",
        "_sealer",
        "_write_ended",
    )

    def __init__(self, stream: Stream, method: Method) -> None:
        super().__init__(stream)
        self._is_socket = type(stream) is SocketStream
        self._method = method
        self._decoder = ChunkDecoder(method.max_chunk)
        #: read from the stream, and not decoded yet
        self._raw: Bytes = NOTHING
        #: None: the head of this direction is still to be sent
        self._sealer: Sealer | None = None
        self._read_ended = False
        self._write_ended = False
        #: whether the end of the stream below is to follow a head that is on its way
        self._ending = False

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._stream is None:
            return f"<{name}: closed>"
        state = directions(self._read_ended, self._write_ended)
        return f"<{name}: {state}, {self._method.name}, over {self._stream!r}>"

    # --- reading ------------------------------------------------------------------------------

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        stream, decoder = self._stream or self._open_stream(), self._decoder
        if self._read_ended:
            return b""
        count = 0
        if not decoder.has_backlog:
            received = self._receive(stream, scratch)
            if received is None:
                return None
            if not received:
                return self._end()
            count = received
        if not decoder.has_begun:
            if not self._begin_reading(bytes(scratch.sealed[len(decoder.kept) :][:count])):
                return None
            count = 0
        filled = decoder.decode(scratch, count)
        return scratch.plain[:filled] if filled else None

    def _receive(self, stream: Blocking, scratch: ScratchBuffers) -> int | None:
        """Have bytes in the decoder's room; returns as :func:`gsocks.stream.receive_into`."""
        room = self._decoder.room(scratch)
        if self._is_socket and not stream.has_buffered:
            count = receive_into(stream.fileno(), room)
            if count == 0:
                stream.read_nowait(scratch)  # which so knows of the end too
            return count
        raw = self._raw or stream.read_nowait(scratch)
        if raw is None:
            return None
        part = raw[: len(room)]
        room[: len(part)] = part
        self._raw = memoryview(bytes(raw[len(part) :])) if len(part) < len(raw) else NOTHING
        return len(part)

    def _end(self) -> bytes:
        if not self._decoder.between_chunks:
            raise Truncated("the connection ended within a chunk")
        self._read_ended = True
        return b""

    def _begin_reading(self, received: bytes) -> bool:
        """Read the head of the other end's direction; False: it has not come whole yet.

        ``received``: what has come behind what the decoder keeps.  Raises StreamError.
        """
        raise NotImplementedError

    @property
    def read_wait(self) -> Wait:
        if self._decoder.has_backlog or self._raw:
            return NEXT_TURN
        return self._open_stream().read_wait

    @property
    def has_buffered(self) -> bool:
        if self._decoder.has_backlog or self._raw:
            return True
        # one that is closed is noticed by the next read
        return self._stream is not None and self._stream.has_buffered

    @property
    def has_prefetched(self) -> bool:
        return self.has_buffered or bool(self._decoder.kept) or self._open_stream().has_prefetched

    # --- writing ------------------------------------------------------------------------------

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        stream = self._stream or self._open_stream()
        if self._write_ended:
            raise StreamClosed("this direction has ended")
        if not data:
            return True
        end = 0
        if self._sealer is None:
            end, data = self._begin_writing(scratch, data)
        return self._pass_on(stream, scratch, self._seal(scratch, data, end))

    def _seal(self, scratch: ScratchBuffers, data: Bytes, end: int) -> int:
        """Seal ``data`` into ``scratch.sealed`` from ``end`` on; returns where that ends."""
        sealer, size, most = self._sealer, len(data), self._method.max_chunk
        if sealer is None or not size:
            return end
        _, sealed, _ = scratch.areas or areas_of(scratch)
        seal_at = sealer.seal_at
        if size > most:
            data = memoryview(data)
        for start in range(0, size, most):
            part = data[start : start + most]
            end = seal_at(sealed, end, len(part).to_bytes(2, "big"))
            end = seal_at(sealed, end, part)
        return end

    def _begin_writing(self, scratch: ScratchBuffers, data: Bytes) -> tuple[int, Bytes]:
        """Make the head of this direction, at the front of ``scratch.sealed``, and the sealer.

        Returns where it ends, and what of ``data`` is not in it.
        """
        raise NotImplementedError

    def _pass_on(self, stream: Blocking, scratch: ScratchBuffers, end: int) -> bool:
        """Write what was sealed; returns as :meth:`write_nowait`."""
        sealed = scratch.sealed[:end]
        # what is no socket may seal into the same buffer
        return stream.write_nowait(sealed if self._is_socket else bytes(sealed), scratch)

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        stream = self._open_stream()
        if self._write_ended:
            return True
        self._write_ended = True
        if not self._end_of_head(stream, scratch):
            self._ending = True
            return False
        return stream.write_eof_nowait(scratch)

    def _end_of_head(self, stream: Blocking, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        """Send the head of this direction, which ends without a byte; as :meth:`write_nowait`."""
        return True

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:
        stream = self._open_stream()
        if not stream.flush_nowait(scratch):
            return False
        ending, self._ending = self._ending, False
        return not ending or stream.write_eof_nowait(scratch)

    # --- the end ------------------------------------------------------------------------------

    def abort(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._raw = NOTHING
            self._wake()
            stream.abort()

    def close(self) -> None:
        if not (self._read_ended and self._write_ended) or self._ending:
            self.abort()
            return
        stream, self._stream = self._stream, None
        if stream is not None:
            self._wake()
            stream.close()


# --- the client's end -----------------------------------------------------------------------


class ClientStream(ShadowsocksStream):
    """A stream to ``dest``, by a server that knows ``psks`` (see methods.keys_of).

    The head, which asks for the destination, leaves with the first bytes that are written, or by
    :meth:`send_head`.  The server has no answer to it: that the destination was not reached is
    seen by an end, or a reset, without a byte.
    """

    __slots__ = ("_dest", "_psks", "_salt")

    def __init__(
        self, stream: Stream, method: Method, psks: tuple[bytes, ...], dest: Address
    ) -> None:
        super().__init__(stream, method)
        self._psks = psks
        self._dest = dest
        self._salt = b""

    def send_head(self, scratch: ScratchBuffers) -> bool:
        """Ask for the destination now; returns as ``write_nowait``.  Raises StreamError."""
        return self._end_of_head(self._open_stream(), scratch)

    def ask(self) -> None:
        """The same, and wait until it has left."""
        if not self.send_head(scratch_of_this_hub()):
            self._flush()

    def _end_of_head(self, stream: Blocking, scratch: ScratchBuffers) -> bool:
        if self._sealer is not None:
            return True
        end, _ = self._begin_writing(scratch, b"")
        return self._pass_on(stream, scratch, end)

    def _begin_writing(self, scratch: ScratchBuffers, data: Bytes) -> tuple[int, Bytes]:
        method, psk = self._method, self._psks[-1]
        self._salt = salt = os.urandom(method.key_size)
        self._sealer = sealer = ciphers.sealer(method, keys.subkey(method, psk, salt))
        dest, sealed = self._dest.encode(), scratch.sealed
        head = salt
        if not method.is_2022:
            sealed[: len(head)] = head
            first = min(len(data), method.max_chunk - len(dest))
            end = self._seal(scratch, dest + bytes(data[:first]), len(head))
            return end, data[first:]
        head += _identity_headers(self._psks, salt)
        # without padding a request without a byte would show how long its destination is
        padding = b"" if data else os.urandom(_padding_length())
        asked = dest + len(padding).to_bytes(2, "big") + padding
        first = min(len(data), method.max_chunk - len(asked))
        asked += bytes(data[:first])
        fixed = bytes((FROM_CLIENT,)) + now().to_bytes(8, "big") + len(asked).to_bytes(2, "big")
        head += sealer.seal(fixed) + sealer.seal(asked)
        sealed[: len(head)] = head
        return len(head), data[first:]

    def _begin_reading(self, received: bytes) -> bool:
        decoder, method = self._decoder, self._method
        received = decoder.kept + received
        size = method.key_size
        fixed = FIXED_BOX + size if method.is_2022 else 0
        if len(received) < size + fixed:
            decoder.kept = received
            return False
        salt, box, rest = received[:size], received[size : size + fixed], received[size + fixed :]
        opener = ciphers.opener(method, keys.subkey(method, self._psks[-1], salt))
        if not method.is_2022:
            decoder.begin(opener, rest)
            return True
        header = opener.open(box)
        _check_header(header, FROM_SERVER)
        if not hmac.compare_digest(header[9 : 9 + size], self._salt):
            raise Tampered("a response to another request")
        decoder.begin(opener, rest, int.from_bytes(header[-2:], "big"))
        return True


def _identity_headers(psks: tuple[bytes, ...], salt: bytes) -> bytes:
    """Of each key but the last, what says which one is the next, SIP023."""
    headers = b""
    for own, following in pairwise(psks):
        encrypt, _ = keys.block_cipher(keys.identity_subkey(own, salt))
        headers += encrypt(keys.identity_of(following))
    return headers


def _padding_length() -> int:
    return 1 + int.from_bytes(os.urandom(2), "big") % MAX_PADDING


def _check_header(header: bytes, kind: int) -> None:
    """Check type and time of a fixed-length header.  Raises ProtocolViolation."""
    if header[0] != kind:
        raise ProtocolViolation(f"a header of type {header[0]}, where {kind} was due")
    if not is_now(int.from_bytes(header[1:9], "big")):
        raise ProtocolViolation(
            f"made at another time than this machine's (more than {MAX_SKEW} s apart)"
        )


# --- the server's end -----------------------------------------------------------------------


class ServerStream(ShadowsocksStream):
    """The stream of a client whose head was read (accept.py).

    ``key``: the client's; ``request_salt``: that of its direction, whose ``opener`` has been used
    for the head.  ``payload``: the bytes that came in the head, ``received``: what came behind it.
    ``note_salt`` is told the salt of this end's direction.
    """

    __slots__ = ("_key", "_note_salt", "_payload", "_request_salt")

    def __init__(
        self,
        stream: Stream,
        method: Method,
        key: bytes,
        request_salt: bytes,
        opener: Opener,
        *,
        payload: bytes = b"",
        received: bytes = b"",
        note_salt: Callable[[bytes], object] | None = None,
    ) -> None:
        super().__init__(stream, method)
        self._key = key
        self._request_salt = request_salt
        self._payload = payload
        self._note_salt = note_salt
        self._decoder.begin(opener, received)

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        if self._payload and self._stream is not None:
            data, self._payload = self._payload, b""
            return data
        return super().read_nowait(scratch)

    @property
    def has_buffered(self) -> bool:
        return bool(self._payload) or super().has_buffered

    def close(self) -> None:
        if self._payload:
            self.abort()
        else:
            super().close()

    def _begin_writing(self, scratch: ScratchBuffers, data: Bytes) -> tuple[int, Bytes]:
        method = self._method
        salt = os.urandom(method.key_size)
        if self._note_salt is not None:
            self._note_salt(salt)
        self._sealer = sealer = ciphers.sealer(method, keys.subkey(method, self._key, salt))
        head, rest = salt, data
        if method.is_2022:
            first, rest = data[: method.max_chunk], data[method.max_chunk :]
            fixed = bytes((FROM_SERVER,)) + now().to_bytes(8, "big") + self._request_salt
            head += sealer.seal(fixed + len(first).to_bytes(2, "big")) + sealer.seal(bytes(first))
        scratch.sealed[: len(head)] = head
        return len(head), rest
