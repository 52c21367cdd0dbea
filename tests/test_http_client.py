"""Whatever a client says in HTTP, or almost in HTTP: understood in one way, or refused at once."""

from __future__ import annotations

import re
import socket as std_socket
from contextlib import suppress

import gevent
import pytest
from gevent.socket import socket, socketpair
from hypothesis import given, settings
from hypothesis import strategies as st

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import BadRequest, ClientError, ClientGone
from gsocks.exits.base import Connected
from gsocks.http.head import MAX_HEAD, RequestTarget, target
from gsocks.inbound.http_client import MAX_BLANK, Client
from gsocks.local import LocalServer
from gsocks.request import Request
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts
from gsocks.stream import SocketStream, reset
from tests.support.engine import Seen, eventually, is_reset, read_to_end
from tests.support.stream_contract import tcp_pair
from tests.support.waiting import TOO_LONG, cpu_seconds
from tests.support.web import get, http_inbound, ok, talk_to, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


# --- heads that are refused -------------------------------------------------------------------


# ORIGIN stands for the server's address.
TO = b"http://ORIGIN/ HTTP/1.1\r\nHost: ORIGIN\r\n"
POST = b"POST " + TO

#: what each is answered, and what was said
REFUSED: dict[str, tuple[int, bytes]] = {
    "both lengths": (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n"),
    "two lengths in one": (400, POST + b"Content-Length: 5, 6\r\n\r\n"),
    "a signed length": (400, POST + b"Content-Length: +5\r\n\r\n"),
    "a length in hex": (400, POST + b"Content-Length: 0x5\r\n\r\n"),
    "an endless length": (400, POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n"),
    "no length": (400, POST + b"Content-Length: \r\n\r\n"),
    "gzip": (501, POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    "gzip and chunks": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "chunks twice": (501, POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n"),
    "chunks with a parameter": (501, POST + b"Transfer-Encoding: chunked;x=y\r\n\r\n"),
    "an empty coding": (501, POST + b"Transfer-Encoding: \r\n\r\n"),
    "identity": (501, POST + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n"),
    "a tab before the colon": (400, POST + b"Transfer-Encoding\t: chunked\r\n\r\n"),
    "a first field that goes on": (
        400,
        b"POST http://ORIGIN/ HTTP/1.1\r\n X: y\r\nHost: ORIGIN\r\n\r\n",
    ),
    "a tab in the first line": (400, POST.replace(b" HTTP", b"\tHTTP") + b"\r\n"),
    "a version beyond": (400, POST.replace(b"1.1", b"1.10") + b"\r\n"),
    "hidden chunks": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n"),
    "chunks with a control byte": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n"),
    "chunks in HTTP/1.0": (
        400,
        POST.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
    ),
    "a space before the colon": (400, POST + b"Content-Length : 5\r\n\r\n"),
    "a name with a space": (400, POST + b"Content Length: 5\r\n\r\n"),
    "no name": (400, POST + b": 5\r\n\r\n"),
    "no colon": (400, POST + b"Content-Length\r\n\r\n"),
    "a line that goes on": (400, POST + b"X: y\r\n Content-Length: 5\r\n\r\n"),
    "a bare LF": (400, POST + b"X: y\nContent-Length: 5\r\n\r\n"),
    "a bare CR": (400, POST + b"X: y\rContent-Length: 5\r\n\r\n"),
    "a NUL": (400, POST + b"X: y\0\r\n\r\n"),
    "two hosts": (400, POST + b"Host: ORIGIN\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "a path": (400, b"GET / HTTP/1.1\r\nHost: ORIGIN\r\n\r\n"),
    "https": (400, b"GET https://ORIGIN/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "connect with a body": (
        400,
        b"CONNECT ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\nContent-Length: 5\r\n\r\n",
    ),
    "connect with chunks": (
        400,
        b"CONNECT ORIGIN HTTP/1.1\r\nHost: ORIGIN\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "HTTP/2": (400, b"GET / HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "SSH": (400, b"SSH-2.0-OpenSSH_9.6\r\n"),
    "too much": (431, POST + b"X: " + b"y" * MAX_HEAD),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("behind", [b"", b"5\r\nhello\r\n0\r\n\r\nGET http://x/ HTTP/1.1\r\n\r\n"])
def test_a_refused_head_reaches_no_server_and_ends_the_connection(name: str, behind: bytes) -> None:
    with http_inbound() as (inbound, seen), web(ok(b"wrong")) as origin, talk_to(inbound) as client:
        status, said = REFUSED[name]
        reply = client.ask(said.replace(b"ORIGIN", origin.host) + behind)
        assert (reply.status, reply["connection"]) == (status, "close")
        assert reply["proxy-status"] == "gsocks; error=http_request_error"
        client.hear_end()
        assert origin.heads == []
        record = seen.next()
        assert record.outcome.startswith(("bad_", "head_too_large"))
        assert record.detail.isprintable()


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "too much"])
def test_a_refusal_comes_as_soon_as_it_is_due_byte_by_byte(name: str) -> None:
    near, far = socketpair()
    with near, far:
        status, said = REFUSED[name]
        client = Client(far)
        reading = gevent.spawn(read_request, client)
        for byte in said:
            if reading.ready():
                break
            near.send(bytes((byte,)))
            gevent.idle()
        error = reading.get()
        assert isinstance(error, ClientError)
        assert error.http_status == status


def read_request(client: Client) -> RequestTarget | ClientError | None:
    """Where the client wants to go; None if it has hung up, or what is wrong with its request."""
    try:
        request = client.read_request()
        return None if request is None else target(request)
    except ClientError as error:
        return error


def to(dest: Address, path: bytes) -> RequestTarget:
    return RequestTarget(dest, path)


HEADS = {
    "absolute": (
        b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
        to(Address("a", 80), b"/b"),
    ),
    "1.0": (b"GET http://a HTTP/1.0\r\n\r\n", to(Address("a", 80), b"/")),
    "connect": (
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        to(Address("a", 443), b""),
    ),
    "empty lines": (
        b"\r\n\r\nGET http://a/ HTTP/1.0\r\n\r\n",
        to(Address("a", 80), b"/"),
    ),
    "largest": (
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n") % (b"y" * (MAX_HEAD - 40)),
        to(Address("a", 80), b"/"),
    ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("behind", [b"", b"\x16\x03\x01payload", b"GET http://b/ HTTP/1.0\r\n\r\n"])
def test_a_head_is_understood_whole_and_what_stands_behind_it_is_kept(
    name: str, behind: bytes
) -> None:
    said, wanted = HEADS[name]
    for ahead in (0, 1, len(said), len(said + behind)):
        near, far = socketpair()
        with near, far:
            client = Client(far, (said + behind)[:ahead])
            sender = gevent.spawn(near.sendall, (said + behind)[ahead:])
            assert read_request(client) == wanted
            sender.get()
            near.shutdown(std_socket.SHUT_WR)
            stream = client.stream()
            rest = b""
            while part := stream.read():
                rest += part
            assert rest == behind


@pytest.mark.parametrize("name", [name for name in HEADS if name != "largest"])
def test_a_head_is_understood_byte_by_byte_and_gone_if_it_ends_before(name: str) -> None:
    said, wanted = HEADS[name]
    near, far = socketpair()
    with near, far:
        reading = gevent.spawn(read_request, Client(far))
        for byte in said:
            assert not reading.ready()
            near.send(bytes((byte,)))
            gevent.idle()
        assert reading.get() == wanted
    for end in range(len(said)):
        near, far = socketpair()
        with near, far:
            near.send(said[:end])
            near.shutdown(std_socket.SHUT_WR)
            came_of_it = read_request(Client(far))
            begun = said[:end].strip(b"\r\n")
            assert isinstance(came_of_it, ClientGone) if begun else came_of_it is None


@pytest.mark.parametrize("ahead", [True, False])
def test_empty_lines_without_end_are_no_request(ahead: bool) -> None:
    near, far = socketpair()
    with near, far:
        said = b"\r\n" * MAX_BLANK
        if not ahead:
            near.send(said)
        client = Client(far, said if ahead else b"")
        assert isinstance(read_request(client), BadRequest)


def test_a_client_that_resets_in_its_head_is_gone_and_between_two_has_ended() -> None:
    near, far = tcp_pair()
    with far:
        near.send(b"GET http")
        client = Client(far)
        reading = gevent.spawn(read_request, client)
        gevent.idle()
        reset(near)
        assert isinstance(reading.get(), ClientGone)
        assert read_request(Client(far)) is None
        client.failed(errors.BadRequest())  # which no client receives
        client.hang_up()


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFFFFFF\r\n",
        b"\r\n\r\n",
        b"0\r\n\n",
        b"0\r\nX: y\n\n",
        b"0\r\nX: y\r\n\nGET ",
        b"0\r\nX : y\r\n\r\n",
        b"5;" + b"x" * 2 * MAX_HEAD,
    ],
    ids=range(16),
)
@pytest.mark.parametrize("together", [True, False])
def test_a_chunk_that_is_none_is_refused(body: bytes, together: bool) -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        head = get(origin, b"/", b"Transfer-Encoding: chunked", method=b"POST")
        if together:
            client.say(head + body)
        else:
            client.say(head)
            with origin.next() as heard:
                client.say(body)
                assert is_reset(heard.sock)
        reply = client.hear("POST")
        assert (reply.status, reply["connection"]) == (400, "close")
        assert reply["proxy-status"] == "gsocks; error=http_request_error"
        client.hear_end()
        assert seen.next().outcome == "bad_request"


# --- anything ---------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        b"GET http://a/ HTTP/1.1\r\n",
        b"POST http://a:81/x?y HTTP/1.1\r\n",
        b"CONNECT a:443 HTTP/1.1\r\n",
        b"HEAD http://a HTTP/1.0\r\n",
        b"GET / HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Host: a:81\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"Proxy-Authorization: Basic YTpi\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
    ]
)
FIELDS = st.sampled_from(
    [
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"X: y\r\n",
        b"Host: b\r\n",
    ]
)


def asked_well(
    line: bytes, fields: list[bytes], behind: bytes, noise: tuple[int, int, bytes]
) -> bytes:
    """A request that is proper, but for what ``noise`` makes of it."""
    host = b"Host: a:81\r\n" if b":81" in line else b"Host: a\r\n"
    said = line + host + b"".join(fields) + b"\r\n" + behind
    at, gone, new = noise
    return said[:at] + new + said[at + gone :]


ASKED = st.builds(
    asked_well,
    st.sampled_from(
        [
            b"GET http://a/ HTTP/1.1\r\n",
            b"POST http://a:81/x?y HTTP/1.1\r\n",
            b"CONNECT a:443 HTTP/1.1\r\n",
            b"HEAD http://a HTTP/1.0\r\n",
        ]
    ),
    st.lists(FIELDS, max_size=2),
    st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"GET http://a/ HTTP/1.0\r\n\r\n"]),
    st.just((0, 0, b"")) | st.tuples(st.integers(0, 90), st.integers(0, 3), st.binary(max_size=3)),
)
SAID = ASKED | st.lists(LINES | LINES | LINES | st.binary(max_size=6), max_size=9).map(b"".join)
WELL_FORMED = re.compile(
    rb"(?:\r\n)*[!-~]+ (?:http://(?:[^/?#]*@)?a(?::81)?(?:[/?#][!-~\x80-\xff]*)?|a:443)"
    rb" HTTP/1\.[01]\r\n"
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*\r\n)*\r\n"
)


class Nowhere:
    """An exit that notes who is asked for, and plays a server that echoes what it was sent."""

    label = "nowhere"

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def close(self) -> None:
        """Nothing is kept."""

    def connect(self, request: Request) -> Connected:
        self.asked.append(request)
        near, far = tcp_pair()
        gevent.spawn(self._play, far)
        return Connected(SocketStream(near), request.dest)

    def _play(self, sock: socket) -> None:
        with sock, suppress(OSError):  # the listener may close at any time
            sock.recv(65536)
            sock.sendall(ok(b"!"))
            sock.shutdown(std_socket.SHUT_WR)
            read_to_end(sock)


@settings(max_examples=400)
@given(said=SAID, ended=st.booleans())
def test_no_bytes_hang_the_inbound_or_make_it_fail_or_accept_what_is_wrong(
    said: bytes, ended: bool
) -> None:
    seen, nowhere = Seen(), Nowhere()
    bounds = Timeouts(handshake=0.03, connect=1, keep_alive=0.03, idle=0.03, half_closed=0.03)
    inbound = LocalServer(
        ("127.0.0.1", 0), ExitGroup([nowhere], ALLOW_ALL), timeouts=bounds, observer=seen
    )
    inbound.start()
    try:
        with talk_to(inbound) as client, gevent.Timeout(TOO_LONG):
            client.say(b"G" + said[1:] if said[:1] in b"\x04\x05" else said)
            if ended:
                client.sock.shutdown(std_socket.SHUT_WR)
            is_reset(client.sock)  # either end will do, as long as there is one
        eventually(lambda: not inbound.connections)
    finally:
        inbound.stop(0)
    assert "stopped" not in seen.outcomes
    if nowhere.asked:
        head = WELL_FORMED.match(said)
        assert head
        names = re.findall(rb"\r\n([^:\r]+):", head[0].lower())
        assert names.count(b"host") <= 1
        assert not {b"content-length", b"transfer-encoding"} <= set(names)
        assert {request.dest.host for request in nowhere.asked} == {"a"}
    for record in seen.all:
        assert record.detail.isprintable()


def test_a_head_made_to_keep_a_parser_busy_is_read_or_refused_at_once() -> None:
    """h11 alone takes 16 seconds for each of them."""

    def asked(spaces: int) -> None:
        for control in (0, 11, 12, 13):
            field = b"X:" + b" " * spaces + b"%c\r\n\r\n" % control
            with http_inbound() as (inbound, _), web(b"HTTP/1.1 200 OK\r\n" + field) as origin:
                with talk_to(inbound) as client:
                    # a server's control bytes are replaced, but for NUL
                    assert client.ask(get(origin)).status == (200 if control else 502)
                    assert client.ask(get(origin)[:-2] + field).status == 400
                chunked = get(origin, b"/", b"Transfer-Encoding: chunked", method=b"POST")
                # the server answers before it has the body: what had begun then is cut by a reset
                with talk_to(inbound) as client, suppress(ConnectionResetError):
                    assert client.ask(chunked + b"0\r\n" + field, "POST").status in (200, 400, 502)

    assert cpu_seconds(lambda: asked(60_000)) < 50 * cpu_seconds(lambda: asked(1))
