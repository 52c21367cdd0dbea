"""The response of an origin server, as it is parsed and forwarded to the client.

The first byte of the input selects the method of the request, and how the response ends.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from fuzz.http_model import TOKEN, read_body
from fuzz.model import Short, Taker, Wrong
from fuzz.wire import WAYS, Wire, WireStream
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.http.head import RequestTarget
from gsocks.inbound.http_client import Client
from gsocks.inbound.http_exchange import Exchange, RetryRules
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts

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
    b"\x00HTTP/1.1 200 OK\r\nContent-Length : 5\r\nX Y: z\r\n: x\r\na/b: c\r\n\r\nhello",
    b"\x00HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    b"\x00HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nuntil the end",
    b"\x00HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\nhello\n0\n\n",
    b"\x00HTTP/1.1 200 O\x0bK\r\n X: y\r\nX: a\rb\x0c\r\nno colon\r\n z\r\n\r\nuntil the end",
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
        b" ",
        b"\r",
        b": ",
        b"identity",
        b", ",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Upgrade: x\r\n",
    ),
]

_ASKED = b" http://a/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
_TIMEOUTS = Timeouts(idle=60, half_closed=60)
_TARGET = RequestTarget(Address("a", 80), b"/")

_STRICT_HEAD = re.compile(
    rb"HTTP/1\.1 [0-9]{3} [^\r\n\0\v\f]*\r\n(?:" + TOKEN + rb": [^\r\n\0\v\f]*\r\n)*"
)
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
        _check_canonical(told)
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
    group = ExitGroup([_Nowhere(WireStream(origin))], ALLOW_ALL)
    wanted = Request(Command.CONNECT, _TARGET.dest)
    outbound = group.forward(wanted, lambda _: None, repeatable=False)
    exchange = Exchange(client, request, _TARGET, outbound, _TIMEOUTS, RetryRules())
    error = exchange.run().error
    return bytes(wire.told), "" if error is None else error.word


class _Nowhere:
    """An exit with one stream."""

    label = "nowhere"

    def __init__(self, stream: WireStream) -> None:
        self._stream = stream

    def start(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing is kept."""

    def connect(self, request: Request) -> Connected:
        return Connected(self._stream, request.dest)


def _read(said: bytes, method: bytes, then: str) -> Answer:
    """An answer, read apart from gsocks and as browsers read it; Chromium's rules, mostly."""
    take, statuses = Taker(said), list[int]()
    while True:
        found = re.search(rb"\n\r?\n", take.rest)
        if found is None:
            return Answer(statuses, None)
        head = take(found.end())
        first, *lines = (re.sub(rb"\r?$", b"", line) for line in head.rstrip(b"\r\n").split(b"\n"))
        status = _STATUS.fullmatch(re.sub(rb"[\r\v\f]", b" ", first))
        if status is None or b"\0" in head:
            return Answer(statuses, None)
        statuses.append(int(status[1]))
        if statuses[-1] >= 200 or statuses[-1] == 101:
            break
    text = b"\n".join(re.sub(rb"[\r\v\f]", b" ", line) for line in lines)
    text = re.sub(rb"\A(?:[ \t][^\n]*(?:\n|\Z))+", b"", text)  # in front of the first field
    fields = [
        (name.rstrip(b" \t").lower(), value.strip())
        for name, value in re.findall(rb"(?m)^([^\n:]+):((?:[^\n]|\n[ \t])*)$", text)
        if re.fullmatch(TOKEN + rb"[ \t]*", name)
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
    codings = [
        word.split(b";")[0].strip().lower()
        for name, value in fields
        if name == b"transfer-encoding"
        for word in value.split(b",")
    ]
    codings = [word for word in codings if word and word != b"identity"]
    if codings:
        if set(codings) != {b"chunked"}:
            raise Wrong  # coded, which is tested elsewhere
        return read_body(take, None, lenient=True)
    sizes = {
        size.strip()
        for name, value in fields
        if name == b"content-length"
        for size in value.split(b",")
    }
    if sizes:
        if len(sizes) > 1:
            raise Wrong
        return read_body(take, int(sizes.pop()))
    if then == "reset":
        raise Short
    return take.rest


def _check_canonical(told: bytes) -> None:
    """What the client is told has one reading, by every rule of RFC 9112."""
    take = Taker(told)
    while take.rest:
        head = take.until(b"\r\n\r\n", len(told)) + b"\r\n"
        assert _STRICT_HEAD.fullmatch(head), told
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:-1]]
        assert sum(name in (b"content-length", b"transfer-encoding") for name in names) <= 1, told
        if head[9:10] != b"1" or head[9:12] == b"101":
            break
