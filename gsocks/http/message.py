"""Plain heads, read and written without h11's state machine, which costs five times as much.

Almost every head is plain: its lines end in CRLF, and no field about the framing is odd.  Those are
read here, into the same objects that h11 makes of them.  Every other head gets None, and is read by
h11, whose verdict counts.  So what is accepted does not change; tests/test_http_message.py compares
both over heads of all kinds.

What is written was read before, or is this proxy's own; so it is valid, and is not validated again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import h11
from h11._headers import Headers  # the type of Request.headers, which takes it as it is

from gsocks.http.token import TCHARS

#: a field as it was written, its name in lower case, and its value
Field = tuple[bytes, bytes, bytes]

# bytes that a head may have between the ends of its lines; programs read the others differently
_PLAIN = bytes(each for each in range(256) if each not in b"\0\v\f\r\n")
_TOKEN_BYTES = TCHARS.encode("ascii")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([2-9][0-9][0-9])(?: ([^\r]*))?")
_TARGET = re.compile(rb"[\x21-\x7e]+")
# they are frozen
_set = object.__setattr__
#: digits of a length that h11 reads
_MAX_DIGITS = 20


#: a message with a head
Message: TypeAlias = h11.Request | h11.Response | h11.InformationalResponse


class Fields(Headers):
    """The fields of a head, which are quicker to walk through than those of h11."""

    __slots__ = ("_pairs", "first")

    def __init__(self, full_items: list[Field]) -> None:
        self._full_items = full_items
        self._pairs = pairs = [each[1:] for each in full_items]
        #: the first value of each name
        self.first = dict(reversed(pairs))

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._pairs)


def header(message: Message, name: bytes) -> bytes | None:
    """The value of the first field ``name``, given in lower case; None if there is none."""
    headers = message.headers
    if type(headers) is Fields:
        return headers.first.get(name)
    return next((value for found, value in headers if found == name), None)


def has_any(message: Message, names: frozenset[bytes]) -> bool:
    """Whether it has a field with one of ``names``, given in lower case."""
    headers = message.headers
    if type(headers) is Fields:
        return not names.isdisjoint(headers.first)
    return any(name in names for name, _ in headers)


def field(name: bytes, value: bytes) -> Field:
    """A field of this proxy's own."""
    return name, name.lower(), value


def full_items(headers: Headers) -> Sequence[Field]:
    """The fields of a head that was read, in all their forms."""
    if type(headers) is Fields:  # isinstance() of an abstract class is slow
        return headers._full_items
    return [
        (raw, name, value)
        for (raw, _), (name, value) in zip(headers.raw_items(), headers, strict=True)
    ]


def parse_request(head: bytes) -> h11.Request | None:
    """The request with this head, whose request line was checked; None if it is not plain."""
    lines = _lines(head)
    if lines is None:
        return None
    parts = lines[0].split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return None
    method, target, version = parts
    fields = _fields(lines)
    if fields is None or not _TARGET.fullmatch(target) or not _is_token(method):
        return None
    hosts = [name for _, name, _ in fields if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        return None
    return request(method, target, fields, version[5:])


def parse_response(head: bytes) -> h11.Response | None:
    """The response with this head; None if it is not plain, or not final (1xx)."""
    lines = _lines(head)
    if lines is None:
        return None
    status = _STATUS_LINE.fullmatch(lines[0])
    fields = None if status is None else _fields(lines)
    if status is None or fields is None:
        return None
    return response(int(status[2]), status[3] or b"", fields, status[1])


def request(
    method: bytes, target: bytes, fields: list[Field], version: bytes = b"1.1"
) -> h11.Request:
    """A request of valid parts."""
    made = object.__new__(h11.Request)  # its constructor validates them again
    _set(made, "method", method)
    _set(made, "target", target)
    _set(made, "headers", Fields(fields))
    _set(made, "http_version", version)
    return made


def response(
    status: int, reason: bytes, fields: list[Field], version: bytes = b"1.1"
) -> h11.Response:
    """A response of valid parts."""
    made = object.__new__(h11.Response)
    _set(made, "status_code", status)
    _set(made, "reason", reason)
    _set(made, "headers", Fields(fields))
    _set(made, "http_version", version)
    return made


def encode_request(message: h11.Request) -> bytes:
    """The head of a request, in HTTP/1.1."""
    first = b"%s %s HTTP/1.1\r\n" % (message.method, message.target)
    return first + encode_fields(full_items(message.headers))


def encode_fields(fields: Iterable[Field]) -> bytes:
    """The lines of the fields, and the end of the head."""
    return b"".join([b"%s: %s\r\n" % (raw, value) for raw, _, value in fields]) + b"\r\n"


def has_odd_bytes(head: bytes | bytearray) -> bool:
    """Whether a head has lines that end otherwise than in CRLF, or go on in the next one, or bytes
    that no head may have."""
    ends = head.count(b"\r\n")
    return (
        head.translate(None, _PLAIN) != b"\r\n" * ends
        or head.find(b"\n ") >= 0  # `in` first tries whether it is a number
        or head.find(b"\n\t") >= 0
    )


#: names of fields that were found valid, in lower case, as they were written; those that come again
#: and again are among the first
_names: dict[bytes, bytes] = {}
_MAX_NAMES = 1000
_MAX_NAME = 64


def _valid_name(raw: bytes) -> bytes:
    """The name of a field in lower case; empty if it is none."""
    if not _is_token(raw):
        return b""
    name = raw.lower()
    if len(_names) < _MAX_NAMES and len(raw) <= _MAX_NAME:
        _names[raw] = name
    return name


def _is_token(word: bytes) -> bool:
    return bool(word) and not word.translate(None, _TOKEN_BYTES)


def _lines(head: bytes) -> list[bytes] | None:
    """The lines of a plain head, without those behind it."""
    if not head.endswith(b"\r\n\r\n") or has_odd_bytes(head):
        return None
    return head[:-4].split(b"\r\n")


def _fields(lines: list[bytes]) -> list[Field] | None:
    """The fields behind the first line, as h11 has them; None if it may have them otherwise."""
    found: list[Field] = []
    framing = False
    for line in lines[1:]:
        raw, colon, value = line.partition(b":")
        name = _names.get(raw) or _valid_name(raw)
        if not colon or not name:
            return None
        value = value.strip(b" \t")
        if name == b"content-length":
            if framing or not value.isdigit() or len(value) > _MAX_DIGITS:
                return None
            framing = True
        elif name == b"transfer-encoding":
            value = value.lower()
            if framing or value != b"chunked":
                return None
            framing = True
        found.append((raw, name, value))
    return found
