"""The WebSocket of a tunnel, as a server grants it, and the frames of a client.

The first byte of the input selects whether the request is in it too, and how the client ends.
"""

from __future__ import annotations

import re
from typing import Any

from wsproto.connection import Connection, ConnectionType

from fuzz.model import Short, Taker, Wrong
from fuzz.wire import WAYS, Wire
from gsocks.errors import ClientError, StreamError, stream_failure
from gsocks.stream import Bytes
from gsocks.transport.websocket import WebSocketServer

_REQUEST = (
    b"GET /t HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
THENS = ("end", "silence", "reset", "end")


def _frame(first: int, payload: bytes, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """A masked one, of up to 125 bytes or as many as two bytes can say."""
    length = len(payload)
    size = bytes((0x80 | length,)) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return bytes((first,)) + size + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


SEEDS = [
    b"\x00" + _REQUEST + _frame(0x82, b"hello"),
    b"\x02" + _REQUEST.replace(b"Upgrade: websocket", b"upgrade: h2c, WebSocket"),
    b"\x00" + _REQUEST.replace(b"websocket", b"h2c"),
    b"\x00" + _REQUEST.replace(b"/t", b"/s"),
    b"\x00" + _REQUEST.replace(b"13", b"8"),
    b"\x02" + _REQUEST[:-2],
    b"\x00GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\x00\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x01" + _frame(0x02, b"one ") + _frame(0x89, b"?") + _frame(0x00, b"") + _frame(0x80, b"two"),
    b"\x01" + _frame(0x82, bytes(300)) + _frame(0x8A, b"") + _frame(0x88, b"\x03\xe8bye"),
    b"\x03" + _frame(0x82, b"cut off")[:-2],
    b"\x01" + _frame(0x82, b"good") + _frame(0x81, b"text"),
    b"\x05" + _frame(0x82, b"good") + b"\x82\x01x",
    b"\x01" + _frame(0x82, b"x") * 70,
]
WORDS = [
    *(_REQUEST, b"\r\n", b"Upgrade: websocket", b"Connection: Upgrade", b"HTTP/1.1", b"/t"),
    *(_frame(first, b"x") for first in (0x02, 0x00, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A)),
    *(b"\x82\xfe\x01\x00", b"\x82\xff" + bytes(6) + b"\x01\x00", b"\xfe\x00\x05"),
]


def check(data: bytes) -> None:
    mode = data[0] if data else 0
    said = data[1:] if not mode & 1 else _REQUEST + data[1:]
    then = THENS[mode >> 1 & 3]
    results = {_hear(said, pieces, then) for pieces in WAYS}
    assert len(results) == 1, results
    granted, payload, end = results.pop()
    if not granted:
        assert not said.startswith(_REQUEST), said
        return
    head, _, frames = said.partition(b"\r\n\r\n")
    assert _is_upgrade(head), head
    read, broken = _model(frames)
    assert payload == read, (payload, read)
    assert (end == "websocket_failed") == (broken == "failed"), (end, broken)
    if broken == "closed":
        assert end == "end"


def _hear(said: bytes, pieces: Any, then: str) -> tuple[bool, bytes, str]:
    """Whether a WebSocket was granted, what came of its frames, and by what that ended."""
    below = _Below(Wire(said, pieces, "end" if then == "silence" else then), then == "silence")
    layer = WebSocketServer("/t", below)
    try:
        while layer.begin(0):
            if not below.wire.rest:
                assert not below.wire.told  # who has not said all is told nothing
                return False, b"", "silence"
    except ClientError as error:
        assert re.match(rb"HTTP/1\.1 4(?:00|04|31) [A-Z].*\r\n\r\n", bytes(below.wire.told), re.S)
        assert b"gsocks" not in below.wire.told.lower()
        return False, b"", error.word
    except StreamError as error:
        assert not below.wire.told
        return False, b"", error.word
    payload, end = _receive(layer, below)
    # all that it has said are frames of a server
    answer = bytes(below.wire.told)
    assert answer.startswith(b"HTTP/1.1 101 ")
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(answer.partition(b"\r\n\r\n")[2])
    assert len(list(client.events())) <= len(said)
    return True, payload, end


def _receive(layer: WebSocketServer, below: _Below) -> tuple[bytes, str]:
    payload, room = b"", memoryview(bytearray(100))
    while True:
        try:
            count = layer.receive_some(0, room)
        except StreamError as error:
            return payload, error.word
        if count is None and below.is_over and not layer.has_backlog:
            return payload, "silence"
        if count == 0:
            return payload, "end"
        payload += room[: count or 0]


class _Below:
    """A wire as what lies below a layer."""

    has_backlog = False

    def __init__(self, wire: Wire, is_silent: bool) -> None:
        self.wire = wire
        self._is_silent = is_silent

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more, not even an end."""
        return self._is_silent and not self.wire.rest

    def receive_some(self, _: int, room: memoryview) -> int | None:
        if self.is_over:
            return None
        try:
            return self.wire.recv_into(room)
        except OSError as error:
            raise stream_failure(error) from None

    def send_some(self, _: int, data: Bytes) -> int:
        return self.wire.send(bytes(data))

    def farewell(self, _: int) -> None:
        """None is due."""


def _is_upgrade(head: bytes) -> bool:
    """Whether it asks for that WebSocket, among whatever else."""
    line, *fields = head.split(b"\r\n")
    found = [field.lower().partition(b":") for field in fields]

    def says(name: bytes, value: bytes) -> bool:
        return any(value in said for named, _, said in found if named == name)

    return (
        line == b"GET /t HTTP/1.1"
        and says(b"upgrade", b"websocket")
        and says(b"connection", b"upgrade")
        and says(b"sec-websocket-version", b"13")
        and says(b"sec-websocket-key", b"==")
    )


def _model(said: bytes) -> tuple[bytes, str]:
    """The payload of binary messages, and ``failed``, ``closed`` or nothing."""
    take, payload, in_message = Taker(said), b"", False
    try:
        while True:
            first, size = take(1)[0], take(1)[0]
            opcode, is_last = first & 15, bool(first & 0x80)
            if opcode not in (0, 1, 2, 8, 9, 10) or (opcode & 8 and not is_last):
                raise Wrong
            length = _length(take, size & 0x7F, control=bool(opcode & 8))
            if first & 0x70 or not size & 0x80:
                raise Wrong
            mask = take(4)
            if opcode & 8:
                body = _masked(take(length), mask)
                if opcode == 8:
                    _check_close(body)
                    return payload, "closed"
                continue
            # what has come of a longer one is read at once
            part = take(min(length, len(take.rest)))
            if length and not part:
                raise Short
            if (opcode == 0) is not in_message or opcode == 1:
                raise Wrong
            payload += _masked(part, mask)
            if len(part) < length:
                raise Short
            in_message = not is_last
    except Short:
        return payload, ""
    except Wrong:
        return payload, "failed"


def _length(take: Taker, short: int, *, control: bool) -> int:
    """Raises Wrong for what the RFC forbids, which must be written as short as can be."""
    if control and short > 125:
        raise Wrong
    if short < 126:
        return short
    size = 2 if short == 126 else 8
    length = int.from_bytes(take(size), "big")
    if length <= (125 if size == 2 else 65535) or length >> 63:
        raise Wrong
    return length


def _check_close(body: bytes) -> None:
    """Raises Wrong for a code that none may send, or a reason that is no text."""
    if not body:
        return
    code = int.from_bytes(body[:2], "big")
    known = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013)
    if len(body) < 2 or not (code in known or 3000 <= code <= 4999):
        raise Wrong
    try:
        body[2:].decode()
    except UnicodeDecodeError:
        raise Wrong from None
