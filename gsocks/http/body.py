"""Where a body ends (RFC 9112 section 6), and what of its bytes are content.

h11 could tell too.  But a trailer that begins with a few KiB of spaces keeps its regular
expression busy for seconds, in which no other connection is served; and it takes some chunks that
others read differently.  Trailers are dropped anyway (see gsocks.http.forward), so here they are
only read over.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Protocol

import h11

from gsocks.errors import BadRequest, BodyTooLarge
from gsocks.http.head import MAX_HEAD, header

# chunk-size and chunk-ext of RFC 9112 section 7.1; 16 digits are more than any file has bytes.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n\0]*)?")
# Some servers put spaces behind the size.
_SERVERS_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\0]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*")


class Body(Protocol):
    """The body of a message, which is fed to it as it comes."""

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""

    @property
    def rest(self) -> bytes:
        """What came behind its end."""

    def feed(self, data: bytes) -> bytes:
        """The content in the next bytes.  Raises BadRequest."""

    def end(self) -> None:
        """The sender has ended its direction."""


class Sized:
    """So many bytes."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.over = not size
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        content = data[: self._left]
        self._left -= len(content)
        self.over = not self._left
        self.rest = data[len(content) :]
        return content

    def end(self) -> None:
        """Whether that was too early, :attr:`over` tells."""


class UntilEnd:
    """Whatever comes until the sender ends its direction."""

    def __init__(self) -> None:
        self.over = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> None:
        self.over = True


class Chunked:
    """Chunks, each behind a line with its size, and trailers behind the last one."""

    def __init__(self, size: re.Pattern[bytes] = _SIZE) -> None:
        self._size = size
        self._ahead = bytearray()
        #: how many bytes of a chunk are to come
        self._left = 0
        self._behind_chunk = False
        self._in_trailers = False
        #: bytes since the last chunk
        self._between = 0
        self.over = False

    @property
    def rest(self) -> bytes:
        return bytes(self._ahead)

    def feed(self, data: bytes) -> bytes:
        self._ahead += data
        content = []
        while not self.over:
            if self._left:
                part = bytes(self._ahead[: self._left])
                if not part:
                    break
                content.append(part)
                del self._ahead[: len(part)]
                self._left -= len(part)
            else:
                line = self._line()
                if line is None:
                    break
                self._understand(line)
        return b"".join(content)

    def end(self) -> None:
        """Whether that was too early, :attr:`over` tells."""

    def _line(self) -> bytes | None:
        """The next line, without its CRLF; None if more of it has to come."""
        end = self._ahead.find(b"\r\n")
        line = bytes(self._ahead[: end if end >= 0 else None])
        if b"\n" in line:
            raise BadRequest("a line between chunks ends in LF without CR")
        if self._between + len(line) > MAX_HEAD:
            raise BadRequest(f"more than {MAX_HEAD} bytes between two chunks")
        if end < 0:
            return None
        self._between += len(line) + 2
        del self._ahead[: end + 2]
        return line

    def _understand(self, line: bytes) -> None:
        if self._in_trailers:
            if line and not _TRAILER.fullmatch(line):
                raise BadRequest("behind the last chunk stands what is no field")
            self.over = not line
        elif self._behind_chunk:
            if line:
                raise BadRequest("a chunk is longer than its size")
            self._behind_chunk = False
        else:
            size = self._size.fullmatch(line)
            if size is None:
                raise BadRequest("a chunk without a proper size")
            self._left = int(size[1], 16)
            self._behind_chunk = bool(self._left)
            self._in_trailers = not self._left
            if self._left:
                self._between = 0


class Bounded:
    """A body of so many bytes at most, however long it says that it is."""

    def __init__(self, body: Body, most: int) -> None:
        self._body = body
        self._most = most
        self._content = 0
        self.end = body.end

    @property
    def over(self) -> bool:
        return self._body.over

    @property
    def rest(self) -> bytes:
        return self._body.rest

    def feed(self, data: bytes) -> bytes:
        content = self._body.feed(data)
        self._content += len(content)
        if self._content > self._most:
            raise BodyTooLarge(f"a body of more than {self._most} bytes")
        return content


def body_of_request(request: h11.Request, most: int | None = None) -> Body:
    """The body behind the head of ``request``; chunks have ``most`` bytes of content at most.

    A length that is said is for :func:`gsocks.http.head.check_length` to judge.
    """
    if header(request, b"transfer-encoding") is not None:
        return Chunked() if most is None else Bounded(Chunked(), most)
    return Sized(int(header(request, b"content-length") or 0))


def body_of_response(response: h11.Response, method: bytes) -> Body:
    """The body behind the head of ``response`` to a request of that method."""
    without = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    if method == b"HEAD" or response.status_code in without:
        return Sized(0)
    if header(response, b"transfer-encoding") is not None:
        return Chunked(_SERVERS_SIZE)
    length = header(response, b"content-length")
    return UntilEnd() if length is None else Sized(int(length))
