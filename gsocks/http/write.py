"""Messages as bytes: a request to a server, and the answer to a client's request.

Bodies are framed as their heads say: by a length, or in chunks.  An answer whose length is not
known is sent in chunks, or to a client of HTTP/1.0 until the connection ends.
"""

from __future__ import annotations

from http.client import NO_CONTENT, NOT_MODIFIED

import h11

from gsocks.http.body import Body
from gsocks.http.head import Event, options
from gsocks.http.message import encode_fields, encode_request, full_items, header

_LENGTH, _CODING, _CONNECTION = b"content-length", b"transfer-encoding", b"connection"


def chunk(data: bytes) -> bytes:
    """``data`` as a chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
#: the end of a message without trailers
END = h11.EndOfMessage()

# What may stand in the head alone: it frames or routes the message, asks or proves who sends it,
# says how the body is to be read, or is about one connection (RFC 9110 section 6.5.1).
_NO_TRAILERS = frozenset(
    b"""
    accept-encoding age allow authorization cache-control connection content-encoding
    content-length content-range content-type cookie date expect expires host if-match
    if-modified-since if-none-match if-range if-unmodified-since keep-alive location max-forwards
    origin pragma proxy-authenticate proxy-authentication-info proxy-authorization
    proxy-connection proxy-status range retry-after set-cookie te trailer transfer-encoding
    upgrade vary via warning www-authenticate
    """.split()
)


def end_of(body: Body) -> h11.EndOfMessage:
    """The end of a message with that body, with the trailers that may be passed on."""
    if not body.trailers:
        return END
    kept = [each for each in body.trailers if each[0].lower() not in _NO_TRAILERS]
    return h11.EndOfMessage(headers=kept) if kept else END


def _last_chunk(part: h11.EndOfMessage) -> bytes:
    if part is END:
        return LAST_CHUNK
    return b"0\r\n" + encode_fields(full_items(part.headers))


class RequestWriter:
    """Writes ``request`` and its body."""

    __slots__ = ("_chunked", "head")

    def __init__(self, request: h11.Request) -> None:
        self._chunked = header(request, _CODING) is not None
        #: the encoded head
        self.head = encode_request(request)

    def encode(self, part: Event) -> bytes:
        """A part of the body."""
        if type(part) is h11.Data:  # isinstance() of an abstract class is slow
            return chunk(part.data) if self._chunked else part.data
        if not self._chunked:
            return b""
        return _last_chunk(part) if type(part) is h11.EndOfMessage else LAST_CHUNK


class AnswerWriter:
    """Writes the answer to ``request``; None: to what was no request."""

    __slots__ = ("_chunked", "_method", "_persistent", "_version", "complete")

    def __init__(self, request: h11.Request | None = None) -> None:
        self._method = b"" if request is None else request.method
        self._version = b"" if request is None else request.http_version
        self._persistent = (
            request is not None and self._version >= b"1.1" and not _wants_to_close(request)
        )
        self._chunked = False
        #: whether the answer has been written to its end, and another may follow
        self.complete = False

    def encode(self, part: Event) -> bytes:
        """A part of the answer."""
        if type(part) is h11.Data:  # isinstance() of an abstract class is slow
            return chunk(part.data) if self._chunked else part.data
        if type(part) is h11.EndOfMessage:
            self.complete = self._persistent
            return _last_chunk(part) if self._chunked else b""
        if type(part) is h11.Response:
            return self._head(part)
        if type(part) is h11.InformationalResponse:
            return _status_line(part) + encode_fields(full_items(part.headers))
        raise TypeError(f"no part of an answer: {part!r}")

    def _head(self, response: h11.Response) -> bytes:
        fields = list(full_items(response.headers))
        if not _has_no_body(response) and not any(name == _LENGTH for _, name, _ in fields):
            fields = [field for field in fields if field[1] != _CODING]
            if self._version >= b"1.1":
                fields.append((b"Transfer-Encoding", _CODING, b"chunked"))
                self._chunked = self._method != b"HEAD"
            elif self._method != b"HEAD":
                self._persistent = False
        if not self._persistent:
            fields = [field for field in fields if field[1] != _CONNECTION]
            fields.append((b"Connection", _CONNECTION, b"close"))
        self._persistent = self._persistent and not _wants_to_close(response)
        return _status_line(response) + encode_fields(fields)


def _status_line(response: h11.Response | h11.InformationalResponse) -> bytes:
    return b"HTTP/1.1 %d %s\r\n" % (response.status_code, response.reason)


def _has_no_body(response: h11.Response) -> bool:
    return response.status_code in (NO_CONTENT, NOT_MODIFIED)


def _wants_to_close(message: h11.Request | h11.Response) -> bool:
    found = options(message, _CONNECTION)
    return bool(found) and any(option.lower() == b"close" for option in found)
