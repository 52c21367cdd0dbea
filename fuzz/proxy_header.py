"""The PROXY protocol, versions 1 and 2, in front of what the client says.

The first byte of the input says how the balancer ends.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from fuzz.greeting import THENS
from fuzz.model import Short, Taker, Wrong
from fuzz.wire import WAYS, Wire
from gsocks.address import Address
from gsocks.errors import ClientError
from gsocks.net.proxy_protocol import read_header

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FOUR = b"\x01\x02\x03\x04\x05\x06\x07\x08\x10\x00\x00\x50"
_SIX = bytes(15) + b"\x01" + bytes(16) + b"\x10\x00\x00\x50"

SEEDS = [
    b"\x00PROXY TCP4 1.2.3.4 5.6.7.8 4096 80\r\nbehind",
    b"\x00PROXY TCP6 ::1 2001:db8::2 65535 0\r\nbehind",
    b"\x00PROXY TCP6 ::ffff:1.2.3.4 ::1 1 2\r\n",
    b"\x00PROXY UNKNOWN\r\nbehind",
    b"\x01PROXY UNKNOWN whatever it is\r\n",
    b"\x00PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"\x01PROXY TCP4 1.2.3.4",
    b"\x00" + _SIGNATURE + b"\x21\x11\x00\x0c" + _FOUR + b"behind",
    b"\x00" + _SIGNATURE + b"\x21\x21\x00\x24" + _SIX + b"behind",
    b"\x00" + _SIGNATURE + b"\x21\x11\x00\x0f" + _FOUR + b"\x04\x00\x00",
    b"\x00" + _SIGNATURE + b"\x20\x00\x00\x00behind",
    b"\x00" + _SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
    b"\x01" + _SIGNATURE + b"\x21\x12\x00\x0c" + _FOUR,
]
WORDS = [_SIGNATURE, b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", b"\x21\x11\x00\x0c", b"\r\n"]

#: bytes of addresses for each family and transport
_SIZES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}


class Heard(NamedTuple):
    client: Address | None
    error: str
    behind: bytes


def check(data: bytes) -> None:
    then, said = THENS[data[0] & 3] if data else "end", data[1:]
    results = {_hear(said, pieces, then) for pieces in WAYS}
    assert len(results) == 1, results
    heard = results.pop()
    try:
        raw, port, behind = _model(said)
    except (Short, Wrong):
        assert heard.error, heard
        return
    assert not heard.error, heard
    assert heard.behind == behind, heard  # what follows is the client's, to its first byte
    assert _raw(heard.client) == (raw, port), heard


def _hear(said: bytes, pieces: object, then: str) -> Heard:
    wire = Wire(said, pieces, then)  # type: ignore[arg-type]
    try:
        client = read_header(wire)  # type: ignore[arg-type]
    except ClientError as error:
        return Heard(None, error.word, b"")
    return Heard(client, "", wire.rest)


def _raw(client: Address | None) -> tuple[bytes, int]:
    """An address as the 16 bytes of IPv6; nothing for none."""
    if client is None:
        return b"", 0
    if ":" in client.host:
        return socket.inet_pton(socket.AF_INET6, client.host), client.port
    return bytes(10) + b"\xff\xff" + socket.inet_aton(client.host), client.port


def _model(said: bytes) -> tuple[bytes, int, bytes]:
    """Client's address and port, and what stands behind the header."""
    if said[:1] == b"P":
        return _line(said)
    take = Taker(said)
    if take(1) != b"\r" or take(11) != _SIGNATURE[1:]:
        raise Wrong
    command, family, body = take(1)[0], take(1)[0], take(int.from_bytes(take(2), "big"))
    if command == 0x20:
        return b"", 0, take.rest
    if command != 0x21 or len(body) < _SIZES.get(family, len(body) + 1):
        raise Wrong
    if family == 0x11:
        source = bytes(10) + b"\xff\xff" + body[:4]
        return source, int.from_bytes(body[8:10], "big"), take.rest
    if family == 0x21:
        return body[:16], int.from_bytes(body[32:34], "big"), take.rest
    return b"", 0, take.rest


def _line(said: bytes) -> tuple[bytes, int, bytes]:
    line, end, rest = said.partition(b"\n")
    if len(line + end) > 107 or not end or line[-1:] != b"\r" or line.count(b"\r") != 1:
        raise Wrong
    words = line[:-1].split(b" ")
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return b"", 0, rest
    family = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}.get(b"".join(words[1:2]))
    if words[0] != b"PROXY" or family is None or len(words) != 6:
        raise Wrong
    source, _ = (_ip(family, word) for word in words[2:4])
    port, _ = (_port(word) for word in words[4:])
    if family == socket.AF_INET:
        source = bytes(10) + b"\xff\xff" + source
    return source, port, rest


def _ip(family: int, word: bytes) -> bytes:
    try:
        return socket.inet_pton(family, word.decode("ascii"))
    except (OSError, ValueError):
        raise Wrong from None


def _port(word: bytes) -> int:
    if not word.isdigit() or str(int(word)).encode() != word or int(word) > 65535:
        raise Wrong
    return int(word)
