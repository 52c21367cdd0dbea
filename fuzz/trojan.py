"""What a trojan server sends for an association: frames with a datagram in each, in any pieces."""

from __future__ import annotations

from fuzz.model import Short, Taker, Wrong
from gsocks.errors import ProtocolViolation
from gsocks.exits.trojan import FrameReader
from gsocks.net.datagram import with_source

_IPV4 = b"\x01\x01\x02\x03\x04\x00\x35"
_IPV6 = b"\x04" + bytes(15) + b"\x01\x00\x35"
_NAME = b"\x03\x0bexample.com\x00\x35"

#: the first byte of an input is the size of the pieces
SEEDS = [
    b"\x01" + _IPV4 + b"\x00\x06\r\nanswer",
    b"\x07" + _IPV6 + b"\x00\x06\r\nanswer" + _IPV4 + b"\x00\x00\r\n",
    b"\x40" + _NAME + b"\x00\x01\r\nx" + _IPV4 + b"\x00\x01\r\ny",
    b"\x20" + _IPV4 + b"\x00\x06\r\r",
    b"\x20" + _IPV4 + b"\x00\x06\n\nanswer",
    b"\x20" + _IPV4 + b"\xff\xff\r\nmore is to come",
    b"\x03\x05\x00",
]
WORDS = [b"\r\n", _IPV4, _NAME, b"\x04", b"\x00\x00\r\n"]


def check(data: bytes) -> None:
    size, data = max(1, data[0]) if data else 1, data[1:]
    expected, well = _frames(data)
    reader, seen = FrameReader(), []
    try:
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
            while (frame := reader.next()) is not None:
                seen.append(frame)
                with_source(frame)
    except ProtocolViolation:
        assert not well
    else:
        assert well
    assert seen == expected


def _frames(data: bytes) -> tuple[list[bytes], bool]:
    """The datagrams that are whole, and whether what is behind them can still become one."""
    found: list[bytes] = []
    take = Taker(data)
    try:
        while take.rest:
            found.append(_frame(take))
    except Short:
        pass
    except Wrong:
        return found, False
    return found, True


def _frame(take: Taker) -> bytes:
    kind, second = take(1), take(1)  # nothing is said of a single byte
    size = {1: 3, 3: second[0], 4: 15}.get(kind[0])
    if size is None:
        raise Wrong
    head = kind + second + take(size + 2)
    count = int.from_bytes(take(2), "big")
    if take(2) != b"\r\n":
        raise Wrong
    return head + take(count)
