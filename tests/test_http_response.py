"""A response is read as curl and browsers read it, and passed on in one reading only."""

from __future__ import annotations

import gzip
import http.client
import io
import re
from typing import NamedTuple

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsocks.address import Address
from gsocks.errors import BadResponse, GsocksError
from gsocks.http.body import MAX_CODINGS
from gsocks.http.origin import Origin
from gsocks.http.response import MAX_HEAD, MAX_INTERIM, MAX_LINES, ResponseReader, take_head
from gsocks.stream import SocketStream
from tests.support.stream_contract import tcp_pair
from tests.support.turns import turns_of_others
from tests.support.web import Talk, get, http_inbound, talk_to, web

pytestmark = pytest.mark.usefixtures("never_hangs")

SIZED = b"Content-Length: 5\r\n\r\nfine\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = b"\r\n5\r\nfine\n\r\n0\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"
GZIP = gzip.compress(b"fine\n", mtime=0)
COOKIES = b"".join(b"Set-Cookie: a%d=%b\r\n" % (n, b"y" * 1000) for n in range(90))

#: what a server sends, the fields that are passed on, and whether it was valid as it came
READ: dict[str, tuple[bytes, list[tuple[str, str]], bool]] = {
    "a proper head": (OK + b"Server: x\r\n" + SIZED, [("server", "x")], False),
    "LF only": (
        b"HTTP/1.1 200 OK\nServer: x\nContent-Length: 5\n\nfine\n",
        [("server", "x")],
        False,
    ),
    "a space before the colon": (OK + b"Server \t: x\r\n" + SIZED, [("server", "x")], True),
    "a space before that of the length": (
        OK + b"X: y\r\nContent-Length : 5\r\n\r\nfine\n",
        [("x", "y")],
        True,
    ),
    "a space in a name": (OK + b"X Powered By: x\r\nY: z\r\n" + SIZED, [("y", "z")], True),
    "a slash in a name": (OK + b"get/forum.php: no\r\n" + SIZED, [], True),
    "a name in parentheses": (OK + b"X-(a): no\r\n" + SIZED, [], True),
    "a name that is not ASCII": (OK + b"X-\xe9: no\r\n" + SIZED, [], True),
    "an empty name": (OK + b": x\r\n" + SIZED, [], True),
    "a line without a colon": (OK + b"<!-- a comment -->\r\n" + SIZED, [], True),
    "a line in front that goes on": (
        OK + b" Content-Length: 3\r\nX: y\r\n" + SIZED,
        [("x", "y")],
        True,
    ),
    "a name left out that goes on": (
        OK + b"a b: c\r\n d\r\nX: y\r\n z\r\n" + SIZED,
        [("x", "y z")],
        True,
    ),
    "a vertical tab": (OK + b"X: a\x0bb\r\n" + SIZED, [("x", "a b")], True),
    "a form feed at the end": (OK + b"X: a\x0c\r\n" + SIZED, [("x", "a")], True),
    "a CR inside": (OK + b"X: a\rb\r\n" + SIZED, [("x", "a b")], True),
    "a CR too many": (OK + b"X: a\r\r\n" + SIZED, [("x", "a")], True),
    "a CR in front of a framing": (
        OK + b"X: a\rTransfer-Encoding: chunked\r\n" + SIZED,
        [("x", "a Transfer-Encoding: chunked")],
        True,
    ),
    "a control byte in the reason": (b"HTTP/1.1 200 O\x0bK\r\n" + SIZED, [], True),
    "90 KiB of cookies": (
        OK + COOKIES + SIZED,
        [("set-cookie", f"a{n}=" + "y" * 1000) for n in range(90)],
        False,
    ),
    "identity": (OK + b"Transfer-Encoding: identity\r\n\r\nfine\n", [], True),
    "identity and a length": (OK + b"Transfer-Encoding: Identity\r\n" + SIZED, [], True),
    "no coding": (OK + b"Transfer-Encoding: \r\n" + SIZED, [], True),
    "chunked twice": (
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + CHUNKS,
        [],
        True,
    ),
    "chunked twice in one field": (
        OK + b"Transfer-Encoding: chunked, Chunked\r\n" + CHUNKS,
        [],
        True,
    ),
    "identity, chunked": (
        OK + b"Transfer-Encoding: identity, chunked\r\nContent-Length: 2\r\n" + CHUNKS,
        [],
        True,
    ),
    "chunks in LF": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\nfine\n\n0\n\n", [], True),
    "gzip": (OK + b"Transfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n" + GZIP, [], True),
    "gzip, chunked": (
        OK
        + b"Transfer-Encoding: gzip;q=1, chunked\r\n\r\n"
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GZIP), GZIP),
        [],
        True,
    ),
    "one length three times": (OK + b"Content-Length: 5, 5\r\n" + SIZED, [], False),
}


@pytest.mark.parametrize("name", READ)
def test_a_response_that_browsers_read_is_passed_on_in_canonical_form(name: str) -> None:
    answer, fields, _ = READ[name]
    with http_inbound() as (inbound, _seen), web(answer) as origin, talk_to(inbound) as client:
        for _ in range(2):  # the client's connection goes on
            client.say(get(origin))
            reply = hear_strictly(client)
            assert (reply.status, reply.body) == (200, b"fine\n")
            own = ("proxy-status", "content-length", "transfer-encoding")
            assert [field for field in reply.fields if field[0] not in own] == fields


@pytest.mark.parametrize("name", READ)
def test_a_response_that_was_not_valid_is_known(name: str) -> None:
    """Its connection is not to be used again: the server may have meant another end of it."""
    answer, _, repaired = READ[name]
    received = receive(answer, cut=len(answer) // 2)
    assert (received.body, received.repaired) == (b"fine\n", repaired)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"X: a\0b\r\n" + SIZED,
        OK + b"Content-Length: 5\r\nContent-Length : 4\r\n\r\nfine\n",
        OK + b"Content-Length: 5, 4\r\n\r\nfine\n",
        OK + b"Content-Length: -5\r\n\r\nfine\n",
        OK + b"Content-Length: 5\x0b5\r\n\r\nfine\n",
        OK + b"Content-Length:\r\n\r\nfine\n",
        OK + b"Transfer-Encoding: br\r\n\r\nfine\n",
        OK + b"Transfer-Encoding: chunked, gzip\r\n\r\nfine\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\nfine\n",
        OK + b"Transfer-Encoding: \x0bchunked, br\r\n\r\nfine\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\nfine\n",
        b"HTTP/1.1 2000 OK\r\n" + SIZED,
        b"HTTP/1.1200 OK\r\n" + SIZED,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade : x\r\n\r\n",
        OK + b"X: " + b"y" * MAX_HEAD,
        OK + b"X: y\r\n" * (MAX_HEAD // 6 + 1),
        OK + b"X: y\r\n" * (MAX_LINES - 2) + SIZED,
        OK + b"X: y\r\n" + b" z\r\n" * (MAX_LINES - 3) + SIZED,
        HINTS * (MAX_INTERIM + 1) + OK + SIZED,
    ],
)
def test_what_stays_ambiguous_or_is_no_http_is_refused(answer: bytes) -> None:
    with pytest.raises(BadResponse) as caught:
        receive(answer)
    assert "fine" not in str(caught.value)


def test_a_head_may_have_so_many_bytes_and_lines() -> None:
    lines = OK + b"X: y\r\n" * (MAX_LINES - 3) + SIZED
    size = OK + b"X: " + b"y" * (MAX_HEAD - len(OK + b"X: \r\n" + SIZED) + 5) + b"\r\n" + SIZED
    for answer in (lines, size, size.replace(b"X: y", b"X : ")):
        assert receive(answer).body == b"fine\n"


def test_a_body_may_have_so_many_codings() -> None:
    page = b"fine\n"
    for count in range(1, MAX_CODINGS + 2):
        page = gzip.compress(page, mtime=0)
        answer = OK + b"Transfer-Encoding: " + b"gzip, " * (count - 1) + b"gzip\r\n\r\n" + page
        if count <= MAX_CODINGS:
            assert receive(answer).body == b"fine\n"
        else:
            with pytest.raises(BadResponse, match="codings"):
                receive(answer)


def test_interim_responses_let_others_run_and_so_many_may_come() -> None:
    with turns_of_others() as turns:
        assert receive(HINTS * MAX_INTERIM + OK + SIZED).body == b"fine\n"
    assert turns.count >= MAX_INTERIM


def test_a_body_that_goes_up_is_framed_as_before_when_a_head_was_repaired() -> None:
    request = h11.Request(
        method="PUT", target="/", headers=[("Host", "x"), ("Content-Length", "2")]
    )
    near, far = tcp_pair()
    with near, far:
        origin = Origin(SocketStream(near), request)
        origin.send([h11.Data(b"a")])
        far.sendall(b"HTTP/1.1 100 Continue\r\nX : y\r\n\r\n")
        assert [type(part) for part in origin.receive()] == [h11.InformationalResponse]
        origin.send([h11.Data(b"b"), h11.EndOfMessage()])
        far.sendall(OK + b"X : y\r\n" + SIZED)
        assert [type(part) for part in origin.receive()] == [
            h11.Response,
            h11.Data,
            h11.EndOfMessage,
        ]
        assert far.recv(1000).endswith(b"\r\n\r\nab")


# --- one reading --------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(b"Content-Length", b"Transfer-Encoding", b"X", b"Connection", b": ", b":", b" :", b" "),
        *(b"5", b"3", b"chunked", b"identity", b"gzip", b", ", b"\r\n", b"\n", b"\r", b"\t"),
        *(b"\x0b", b"\x0c", b"\x01", b"\x85", b"\xa0", b"/", b"(", b"close", b"\r\n ", b"\r\n\t"),
        *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer Encoding: x\r\n"),
        *(b"Content-Length : 3\r\n", b"X: y\rContent-Length: 3\r\n", b"Transfer-Encoding:\r\n"),
    ]
)  # fmt: skip
BODIES = st.sampled_from(
    [b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"3\r\nhel\r\n0\r\nX\r\n\r\n"]
)
CANONICAL = re.compile(
    rb"HTTP/1\.1 [0-9]{3} [^\0\r\n\v\f]*\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\0\r\n\v\f]*\r\n)*\r\n"
)


@settings(max_examples=600, deadline=None)
@given(pieces=st.lists(PIECES, max_size=9).map(b"".join), body=BODIES, behind=st.booleans())
@example(
    pieces=b"Content-Length : 5\r\nX: y\rTransfer-Encoding: chunked", body=b"hello", behind=True
)
@example(pieces=b"Transfer-Encoding : chunked\r\nContent-Length: 3", body=b"hello", behind=True)
@example(pieces=b"Transfer-Encoding\x0b: chunked", body=b"5\nhello\n0\n\n", behind=True)
def test_no_response_is_read_in_two_ways_by_the_client(
    pieces: bytes, body: bytes, behind: bool
) -> None:
    """Whatever a server sends: what the client is sent is canonical, and a strict parser, a lenient
    one and ours find the same end; nothing of a second response reaches the client as one."""
    smuggled = OK + b"Content-Length: 8\r\n\r\nsmuggled" if behind else b""
    answer = OK + pieces + b"\r\n\r\n" + body + smuggled
    with http_inbound() as (inbound, _), web(answer) as origin, talk_to(inbound) as client:
        try:
            expected = receive(answer)
        except GsocksError:
            expected = None
        client.say(get(origin, b"/", b"Connection: close"))
        told = b""
        while True:
            try:
                data = client.sock.recv(65536)
            except ConnectionResetError:
                return  # cut off in the middle, which no client takes for an end
            if not data:
                break
            told += data
    head = CANONICAL.match(told)
    assert head, told
    names = re.findall(rb"\r\n([^:\r]+):", head[0].lower())
    assert sum(name in (b"content-length", b"transfer-encoding") for name in names) == 1
    if expected is None:
        assert b"; error=" in head[0]
    strict = h11.Connection(h11.CLIENT)
    strict.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    strict.send(h11.EndOfMessage())
    strict.receive_data(told)
    content = b""
    while not isinstance(event := strict.next_event(), h11.EndOfMessage):
        content += event.data if isinstance(event, h11.Data) else b""
    assert strict.trailing_data == (b"", False)
    lenient = http.client.HTTPResponse(Source(told))  # type: ignore[arg-type]
    lenient.begin()
    assert lenient.read() == content
    if expected is not None:
        assert content == expected.body


class Source:
    """What http.client takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


class Received(NamedTuple):
    status: int
    body: bytes
    repaired: bool


def receive(answer: bytes, cut: int = 0) -> Received:
    """What an Origin makes of a response that comes in two pieces.

    Raises BadResponse, Truncated.
    """
    near, far = tcp_pair()
    with near, far:
        origin = Origin(
            SocketStream(near), h11.Request(method="GET", target="/", headers=[("Host", "x")])
        )
        origin.send([h11.EndOfMessage()])
        status, body = 0, b""
        if cut:
            far.sendall(answer[:cut])
            parts = list(origin.receive())
        else:
            parts = []
        far.sendall(answer[cut:])
        far.shutdown(1)
        while True:
            for part in parts:
                if isinstance(part, h11.Response):
                    status = part.status_code
                elif isinstance(part, h11.Data):
                    body += part.data
                elif isinstance(part, h11.EndOfMessage):
                    return Received(status, body, origin.repaired)
            parts = list(origin.receive())


class Strict(NamedTuple):
    status: int
    fields: list[tuple[str, str]]
    body: bytes


def hear_strictly(client: Talk) -> Strict:
    """The next answer, whose head is canonical."""
    head = client.hear_until(b"\r\n\r\n")
    assert CANONICAL.fullmatch(head), head
    client._ahead = head + client._ahead
    reply = client.hear()
    return Strict(reply.status, reply.fields, reply.body)


# --- of a proxy, to CONNECT ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: x\r\n\r\n",
        b"HTTP/1.1 299 OK\r\nContent Length: a b\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"HTTP/1.0 200 Connection established\nVia : x\n\n",
    ],
)
def test_a_2xx_to_connect_has_no_framing(answer: bytes) -> None:
    """RFC 9110 section 9.3.6: its Content-Length and Transfer-Encoding are ignored."""
    dest = str(Address("a", 443))
    request = h11.Request(method="CONNECT", target=dest, headers=[("Host", dest)])
    buffer = bytearray(answer + b"behind")
    response = ResponseReader(request).parse(take_head(buffer, len(buffer)))
    assert isinstance(response, h11.Response)
    assert response.status_code // 100 == 2
    assert buffer == b"behind"
