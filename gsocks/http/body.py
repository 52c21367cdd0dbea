"""The end of a message's body (RFC 9112 section 6), and which of its bytes are content.

Requests are read strictly, because the server behind may read them otherwise.  What a server sends
is read as browsers read it (lines between chunks may end in LF only), because the client gets it in
chunks of this proxy's own.

h11 can parse bodies too.  But its regular expression needs seconds for a trailer that begins with
a few KiB of spaces, in which no other connection is served; and it accepts some chunks that other
programs read differently.  Trailers are skipped, unless the client has said that it wants them (see
gsocks.http.forward); of those that are kept, each is a valid field, whatever the sender is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from http.client import NO_CONTENT, NOT_MODIFIED
from typing import Protocol

import h11

from gsocks.errors import BadRequest, BodyTooLarge
from gsocks.http.head import MAX_HEAD, wants_trailers
from gsocks.http.message import header
from gsocks.http.token import TOKEN
from gsocks.turns import give_way

# chunk-size and chunk-ext of RFC 9112 section 7.1; 16 digits are more than any file has bytes.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n\0]*)?")
# Some servers send spaces behind the size.
_LENIENT_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\0]*)?")
_TRAILER = re.compile(rf"{TOKEN}:[^\r\n\0]*".encode("ascii"))
#: of a trailer that is kept
_KEPT_TRAILER = re.compile(rf"({TOKEN}):[ \t]*([\t -~\x80-\xff]*)".encode("latin-1"))
#: more than any message has
_MAX_TRAILERS = 64

Trailers = list[tuple[bytes, bytes]]


class Body(Protocol):
    """The decoder of a body, fed with the bytes as they arrive."""

    @property
    def trailers(self) -> Sequence[tuple[bytes, bytes]]:
        """The fields behind it, if they were to be kept."""

    #: whether it was not valid as it came: the sender may have meant another end
    repaired: bool

    @property
    def complete(self) -> bool:
        """Whether the end of the body has been fed."""

    @property
    def trailing_data(self) -> bytes:
        """The bytes behind the end of the body."""

    def feed(self, data: bytes) -> bytes:
        """The content in the next bytes.  Raises BadRequest."""

    def feed_eof(self) -> None:
        """The sender has closed its direction: too early if the body isn't complete now."""


class Sized:
    """A body of a given number of bytes."""

    repaired = False
    trailers = ()

    def __init__(self, size: int) -> None:
        self._left = size
        self.complete = not size
        self.trailing_data = b""

    def feed(self, data: bytes) -> bytes:
        content = data[: self._left]
        self._left -= len(content)
        self.complete = not self._left
        self.trailing_data = data[len(content) :]
        return content

    def feed_eof(self) -> None:
        """The body doesn't end by EOF, so this changes nothing."""


class UntilEof:
    """A body that ends where the sender closes its direction."""

    repaired = False
    trailers = ()

    def __init__(self) -> None:
        self.complete = False
        self.trailing_data = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def feed_eof(self) -> None:
        self.complete = True


class Chunked:
    """A chunked body: chunks, each behind a line with its size, then trailers.

    ``lenient``: lines may end in LF only, a size may have blanks behind it, and trailers may be
    anything.  ``keep_trailers``: whether :attr:`trailers` has those that are valid fields.
    """

    def __init__(self, *, lenient: bool = False, keep_trailers: bool = False) -> None:
        self._lenient = lenient
        self._keeps_trailers = keep_trailers
        self.trailers: Trailers = []
        self.repaired = False
        self._buffer = bytearray()
        #: bytes at its beginning in which the end of the current line was looked for
        self._searched = 0
        #: bytes of the current chunk that are still missing
        self._left = 0
        self._behind_chunk = False
        self._in_trailers = False
        #: bytes since the last chunk, see MAX_HEAD
        self._between = 0
        self.complete = False

    @property
    def trailing_data(self) -> bytes:
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        content = []
        while not self.complete:
            give_way()  # a chunk may be one byte, and one read has thousands of those
            if self._left:
                part = bytes(self._buffer[: self._left])
                if not part:
                    break
                content.append(part)
                del self._buffer[: len(part)]
                self._left -= len(part)
            else:
                line = self._next_line()
                if line is None:
                    break
                self._take(line)
        return b"".join(content)

    def feed_eof(self) -> None:
        """The body doesn't end by EOF, so this changes nothing."""

    def _next_line(self) -> bytes | None:
        """The next line, without its CRLF; None if it is incomplete."""
        end = self._buffer.find(b"\n", self._searched)
        length = end if end >= 0 else len(self._buffer)
        if self._between + length - self._buffer.endswith(b"\r", 0, length) > MAX_HEAD:
            raise BadRequest(f"more than {MAX_HEAD} bytes between two chunks")
        if end < 0:
            self._searched = length
            return None
        self._searched = 0
        self._between += length + 1
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if line.endswith(b"\r"):
            return line[:-1]
        if not self._lenient:
            raise BadRequest("a line between chunks ends in LF without CR")
        self.repaired = True
        return line

    def _take(self, line: bytes) -> None:
        if self._in_trailers:
            if line and not _TRAILER.fullmatch(line):
                if not self._lenient:
                    raise BadRequest("behind the last chunk is a line that is no field")
                self.repaired = True
            self.complete = not line
            if line and self._keeps_trailers and len(self.trailers) < _MAX_TRAILERS:
                field = _KEPT_TRAILER.fullmatch(line)
                if field is not None:
                    self.trailers.append((field[1], field[2].rstrip(b" \t")))
        elif self._behind_chunk:
            if line:
                raise BadRequest("a chunk is longer than its size")
            self._behind_chunk = False
        else:
            size = _SIZE.fullmatch(line)
            if size is None and self._lenient:
                size = _LENIENT_SIZE.fullmatch(line)
                self.repaired = True
            if size is None:
                raise BadRequest("a chunk without a valid size")
            self._left = int(size[1], 16)
            self._behind_chunk = bool(self._left)
            self._in_trailers = not self._left
            if self._left:
                self._between = 0


#: transfer codings besides chunked that can be removed (RFC 9112 section 7.2)
CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})

#: codings of one body; two are as many as were ever seen
MAX_CODINGS = 4

# Bytes of content that are made in one step, in less than a millisecond; and steps for one read,
# which may expand to thousands of times its size, if it is all zeros.
_STEP = 256 * 1024
_MOST_STEPS = 16


class Coded:
    """A body with transfer codings besides chunked, which were applied in the order of ``codings``.

    They are removed: a client that didn't ask for them (by TE) can't do it.
    """

    repaired = True

    def __init__(self, body: Body, codings: Sequence[bytes]) -> None:
        self._body = body
        self._decoders = [_Inflater(coding) for coding in reversed(codings)]

    @property
    def trailers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._body.trailers

    @property
    def complete(self) -> bool:
        return self._body.complete and all(decoder.complete for decoder in self._decoders)

    @property
    def trailing_data(self) -> bytes:
        return self._body.trailing_data

    def feed(self, data: bytes) -> bytes:
        content = self._body.feed(data)
        for decoder in self._decoders:
            content = decoder.feed(content)
        return content

    def feed_eof(self) -> None:
        self._body.feed_eof()


class _Inflater:
    """Removes one coding."""

    def __init__(self, coding: bytes) -> None:
        #: None before the first two bytes of deflate, which tell its form
        self._zlib = None if coding == b"deflate" else zlib.decompressobj(zlib.MAX_WBITS + 16)
        self._kept = b""
        self._begun = False

    @property
    def complete(self) -> bool:
        """Whether the end of the coded data has been fed; none at all is complete."""
        return not self._begun or (self._zlib is not None and self._zlib.eof)

    def feed(self, data: bytes) -> bytes:
        if not data:
            return b""
        self._begun = True
        if self._zlib is None:
            self._kept += data
            if len(self._kept) < 2:
                return b""
            data, self._kept = self._kept, b""
            self._zlib = zlib.decompressobj(_deflate_form(data))
        content = []
        for _ in range(_MOST_STEPS):
            give_way()
            try:
                content.append(self._zlib.decompress(data, _STEP))
            except zlib.error:
                raise BadRequest("a transfer coding that is broken") from None
            data = self._zlib.unconsumed_tail
            if len(content[-1]) < _STEP:
                break
        else:
            raise BadRequest("a transfer coding that expands too far")
        if self._zlib.unused_data:
            raise BadRequest("data behind the end of a transfer coding")
        return b"".join(content)


def _deflate_form(data: bytes) -> int:
    """zlib's number of the format of RFC 1950, or of RFC 1951, which some servers send instead."""
    is_framed = data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if is_framed else -zlib.MAX_WBITS


class Limited:
    """A body of unknown length that must not have more than ``limit`` bytes of content."""

    def __init__(self, body: Body, limit: int) -> None:
        self._body = body
        self._limit = limit
        self._content = 0
        self.feed_eof = body.feed_eof
        self.repaired = False

    @property
    def trailers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._body.trailers

    @property
    def complete(self) -> bool:
        return self._body.complete

    @property
    def trailing_data(self) -> bytes:
        return self._body.trailing_data

    def feed(self, data: bytes) -> bytes:
        content = self._body.feed(data)
        self._content += len(content)
        if self._content > self._limit:
            raise BodyTooLarge(f"a body of more than {self._limit} bytes")
        return content


def body_of_request(request: h11.Request, limit: int | None = None) -> Body:
    """The body behind the head of ``request``; if chunked, with ``limit`` bytes at the most.

    A Content-Length is checked by :func:`gsocks.http.head.check_length`.
    """
    if header(request, b"transfer-encoding") is not None:
        chunked = Chunked(keep_trailers=wants_trailers(request))
        return chunked if limit is None else Limited(chunked, limit)
    return Sized(int(header(request, b"content-length") or 0))


def body_of_response(
    response: h11.Response,
    method: bytes,
    codings: Sequence[bytes] = (),
    *,
    keep_trailers: bool = False,
) -> Body:
    """The body behind the head of ``response`` to a request of that method.

    ``codings``: its transfer codings besides chunked.  ``keep_trailers``: as of :class:`Chunked`.
    """
    without_body = (NO_CONTENT, NOT_MODIFIED)
    if method == b"HEAD" or response.status_code in without_body:
        return Sized(0)
    length = header(response, b"content-length")
    body: Body
    if header(response, b"transfer-encoding") is not None:
        body = Chunked(lenient=True, keep_trailers=keep_trailers)
    else:
        body = UntilEof() if length is None else Sized(int(length))
    return Coded(body, codings) if codings else body
