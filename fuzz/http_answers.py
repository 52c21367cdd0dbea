"""What an origin server answers, as it is read and passed on to the client.

The first byte of the input says by which method the server was asked, and how it ends.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from fuzz.http_model import read_body
from fuzz.model import Short, Taker, Wrong
from fuzz.wire import WAYS, Wire
from gsocks.address import Address
from gsocks.http.client import Client
from gsocks.http.exchange import Exchange
from gsocks.http.head import Target
from gsocks.stream import SocketStream

_METHODS = (b"GET", b"HEAD")
_THENS = ("end", "reset")

SEEDS = [
    b"\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"\x00HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"\x00HTTP/1.0 404 Not here\nX: y\n\nuntil the end",
    b"\x00HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \r\nContent-Length: 5\r\n\r\n",
    b"\x00HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n",
    b"\x00HTTP/1.1 101 Other\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nbehind",
    b"\x01HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: content-length\r\nX: y\r\n\r\nhello",
    b"\x02HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    b"\x00HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX: y\r\n z\r\n\r\n",
    b"\x00SSH-2.0-OpenSSH_9.6\r\n",
]
WORDS = [
    *(
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 ",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 X\r\n",
    ),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\r\n\r\n",
        b"\n\n",
        b"\n ",
        b"\x0b",
        b"\0",
        b"Upgrade: x\r\n",
    ),
]

_ASKED = b" http://a/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
_TARGET = Target(Address("a", 80), b"/")

_STATUS = re.compile(rb"HTTP/[0-9]\.[0-9] ([0-9]{3})(?: [^\r\n]*)?")


class Answer(NamedTuple):
    """One answer, with those in front of it."""

    statuses: list[int]
    #: None if it has no proper end
    body: bytes | None


def check(data: bytes) -> None:
    mode = data[0] if data else 0
    method, then, said = _METHODS[mode & 1], _THENS[mode >> 1 & 1], data[1:]
    wholes = set()
    for pieces in WAYS:
        told, failed = _pass_on(method, Wire(said, pieces, then))
        answer = _read(told, method, then="end")
        if failed:  # the client is told so, or cut off before the end
            assert answer.body is None or b"\r\nProxy-Status: gsocks; error=" in told, (
                told,
                failed,
            )
        elif answer.statuses[-1:] != [101]:
            assert answer == _read(said, method, then), (told, said)
        # whether an answer had begun to be passed on when it failed, its pieces tell
        wholes.add(failed or (*answer.statuses[-1:], answer.body))
    assert len(wholes) == 1, wholes


def _pass_on(method: bytes, origin: Any) -> tuple[bytes, str]:
    """What the client is told, and what became of it if it failed."""
    wire: Any = Wire(method + _ASKED)
    client = Client(wire)
    request = client.read_request()
    assert request is not None
    stream = SocketStream(origin)
    exchange = Exchange(client, request, _TARGET, stream, "nowhere", idle=60, half_closed=60)
    error = exchange.run().error
    return bytes(wire.told), "" if error is None else error.word


def _read(said: bytes, method: bytes, then: str) -> Answer:
    """An answer, read apart from gsocks; servers are forgiven lines that end in LF only."""
    take, statuses = Taker(said), list[int]()
    while True:
        found = re.search(rb"\n\r?\n", take.rest)
        if found is None:
            return Answer(statuses, None)
        first, *lines = re.split(rb"\r?\n(?![ \t])", take(found.end()).rstrip(b"\r\n"))
        status = _STATUS.fullmatch(first)
        if status is None:
            return Answer(statuses, None)
        statuses.append(int(status[1]))
        if statuses[-1] >= 200 or statuses[-1] == 101:
            break
    fields = [
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)
    ]
    try:
        return Answer(statuses, _body(take, statuses[-1], method, fields, then))
    except (Short, Wrong):
        return Answer(statuses, None)


def _body(
    take: Taker, status: int, method: bytes, fields: list[tuple[bytes, bytes]], then: str
) -> bytes:
    if method == b"HEAD" or status in (101, 204, 304):
        return b""
    if any(name == b"transfer-encoding" for name, _ in fields):
        return read_body(take, None, blanks=True)
    sizes = {value for name, value in fields if name == b"content-length"}
    if sizes:
        return read_body(take, int(sizes.pop().split(b",")[0]))
    if then == "reset":
        raise Short
    return take.rest
