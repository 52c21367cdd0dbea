"""HTTP/1.1 messages, parsed independently of gsocks and h11, and only if they are unambiguous.

An ambiguous message is Wrong here (RFC 9112 sections 2.2, 3.2, 5, 6.3, 7.1).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fuzz.model import Taker, Wrong

#: a method or the name of a field
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(
    rb"(" + TOKEN + rb") ([!-~\x80-\xff]+) HTTP/1\.([01])\r\n"
    rb"((?:" + TOKEN + rb":[^\r\n\0\v\f]*\r\n)*)\r\n"
)
#: a CONNECT may have LF at the end of each line
_BARE_HEAD = re.compile(
    rb"(CONNECT) ([!-~\x80-\xff]+) HTTP/1\.([01])\n"
    rb"((?:" + TOKEN + rb":[^\r\n\0\v\f]*\n)*)\n"
)
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n\0]*)?")
_LONGEST = 65536


class Message(NamedTuple):
    method: bytes
    target: bytes
    #: whether it is one of HTTP/1.1
    modern: bool
    #: in their order; values without blanks around them
    fields: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        """Of the fields called ``name``, in small letters."""
        return [value for found, value in self.fields if found.lower() == name]

    def members(self, name: bytes) -> list[bytes]:
        """Of the lists in the fields called ``name``, in small letters."""
        parts = b",".join(self.values(name)).split(b",")
        return [part.strip(b" \t").lower() for part in parts if part.strip(b" \t")]

    def size(self) -> int | None:
        """How long the body is; None if it comes in chunks."""
        sizes = {
            size.strip(b" \t")
            for value in self.values(b"content-length")
            for size in value.split(b",")
        }
        codings = self.values(b"transfer-encoding")
        if codings:
            if sizes or [coding.lower() for coding in codings] != [b"chunked"] or not self.modern:
                raise Wrong
            return None
        if len(sizes) > 1 or not all(re.fullmatch(rb"[0-9]{1,20}", size) for size in sizes):
            raise Wrong
        return int(sizes.pop()) if sizes else 0


def read_head(take: Taker) -> Message:
    """The next head.  Raises Wrong, also for one that is not whole."""
    while take.rest.startswith(b"\r\n"):
        take(2)
    found = _HEAD.match(take.rest) or _BARE_HEAD.match(take.rest)
    if found is None:
        raise Wrong
    take(found.end())
    lines = [line.partition(b":") for line in found[4].splitlines()]
    fields = [(name, value.strip(b" \t")) for name, _, value in lines]
    return Message(found[1], found[2], found[3] == b"1", fields)


def read_body(take: Taker, size: int | None, *, lenient: bool = False) -> bytes:
    """The body behind a head.  Raises Wrong, and Short if it is not all there.

    ``lenient``: as it is read from a server, with blanks behind sizes, lines that end in LF only
    and any trailers.
    """
    if size is not None:
        return take(size)
    body = b""
    while True:
        line = _line(take, lenient)
        found = _SIZE.fullmatch(line.rstrip(b" \t") if lenient else line)
        if found is None:
            raise Wrong
        size = int(found[1], 16)
        if not size:
            break
        body += take(size)
        if _line(take, lenient):
            raise Wrong
    while line := _line(take, lenient):
        if not lenient and not re.fullmatch(TOKEN + rb":[^\r\n\0]*", line):
            raise Wrong
    return body


def _line(take: Taker, lenient: bool) -> bytes:
    if not lenient:
        return take.until(b"\r\n", _LONGEST)
    return take.until(b"\n", _LONGEST + 1).removesuffix(b"\r")


class Url(NamedTuple):
    host: bytes
    port: int
    #: with its other bytes than ASCII percent-encoded
    path: bytes


def read_url(message: Message) -> Url:
    """Where a request to a proxy wants to go.  Raises Wrong."""
    if message.method == b"CONNECT":
        six = re.fullmatch(rb"([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*):([0-9]{1,5})", message.target)
        whole = b"[%b]:%b" % six.groups() if six is not None else message.target
        return _authority(whole, None, b"")
    found = re.fullmatch(rb"(?i:http|ws)://([^/?#]*)(/[^#]*|\?[^#]*|)(?:#.*)?", message.target)
    if found is None:
        raise Wrong
    path = b"".join(b"%%%02X" % byte if byte > 0x7F else bytes((byte,)) for byte in found[2])
    if not path.startswith(b"/"):
        path = b"*" if message.method == b"OPTIONS" and not path else b"/" + path
    return _authority(found[1].rpartition(b"@")[2], 80, path)


def _decoded(text: bytes) -> bytes:
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda code: bytes.fromhex(code[1].decode("ascii")), text)


def _authority(raw: bytes, port: int | None, path: bytes) -> Url:
    high = re.sub(rb"%[89A-Fa-f][0-9A-Fa-f]", lambda code: _decoded(code[0]), raw)
    found = re.fullmatch(rb"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@%]+)(?::([0-9]{0,5}))?", high)
    if found is None or (not found[2] and port is None):
        raise Wrong
    number = int(found[2] or port or 0)
    if number > 65535:
        raise Wrong
    return Url(found[1], number, path)


def read_host(message: Message) -> bytes | None:
    """Its Host field; None if it has none, as HTTP/1.0, CONNECT and a whole URL may.

    Raises Wrong.
    """
    hosts = message.values(b"host")
    has_server = message.method == b"CONNECT" or _SCHEME.match(message.target)
    if len(hosts) > 1 or not (hosts or has_server or not message.modern):
        raise Wrong
    return hosts[0] if hosts else None


def read_authority(raw: bytes) -> Url:
    """Which server a Host field names.  Raises Wrong."""
    return _authority(raw, 80, b"")
