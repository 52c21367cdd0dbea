"""HTTP clients are served as their protocol says: every request, every answer, every mistake."""

from __future__ import annotations

import re
import socket as std_socket
from base64 import b64encode

import gevent
import h11
import pytest
from gevent.select import select
from gevent.socket import socket
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gsocks import errors
from gsocks.access.throttle import Throttle
from gsocks.access.users import Users, hash_password
from gsocks.address import Address
from gsocks.http.response import MAX_HEAD
from gsocks.inbound.http_client import MAX_REFUSED_LOGINS, Client
from gsocks.local import LocalServer
from gsocks.settings import Limits, Timeouts
from gsocks.stream import reset
from tests.support.engine import (
    Seen,
    both_ends,
    eventually,
    is_reset,
    read_to_end,
)
from tests.support.ports import free_port
from tests.support.stream_contract import tcp_pair
from tests.support.turns import turns_of_others
from tests.support.waiting import TOO_LONG
from tests.support.web import Talk, Web, get, http_inbound, ok, talk_to, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


# --- what the origin server gets --------------------------------------------------------------


def test_a_request_goes_on_as_it_is_but_for_what_is_between_client_and_proxy(
    client: Talk, origin: Web
) -> None:
    client.say(
        b"GET " + origin.url + b"/a?b=c HTTP/1.1\r\n"
        b"user-agent: me\r\n"
        b"HOST: " + origin.host + b"\r\n"
        b"Proxy-Connection: keep-alive\r\n"
        b"Proxy-Authorization: Basic c2VjcmV0OnNlY3JldA==\r\n"
        b"Connection: X-Mine, keep-alive\r\n"
        b"x-mine: hop\r\n"
        b"Keep-Alive: timeout=5\r\n"
        b"TE: trailers\r\n"
        b"Trailer: X-Checksum\r\n"
        b"Cookie: a=b\r\n"
        b"cookie: c=d\r\n"
        b"X-Empty:\r\n"
        b"X-Wide:  \xe4 \t\r\n"
        b"\r\n"
    )
    with origin.next() as heard:
        assert heard.head == (
            b"GET /a?b=c HTTP/1.1\r\n"
            b"Host: " + origin.host + b"\r\n"
            b"user-agent: me\r\n"
            b"Cookie: a=b\r\n"
            b"cookie: c=d\r\n"
            b"X-Empty: \r\n"
            b"X-Wide: \xe4\r\n"
            b"Trailer: X-Checksum\r\n"
            b"TE: trailers\r\n"
            b"Connection: TE\r\n"
            b"\r\n"
        )
        heard.say(ok(b""))
    assert client.hear().status == 200


@pytest.mark.parametrize("fields", [b"", b"Host: elsewhere.example\r\n", b"Host:\r\n"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("login", [b"", b"u:p@"])
@pytest.mark.parametrize("authorization", [b"", b"Authorization: Digest x\r\n"])
def test_the_server_is_that_of_the_url_and_is_told_of_no_login_but_the_clients_field(
    client: Talk, origin: Web, fields: bytes, version: bytes, login: bytes, authorization: bytes
) -> None:
    url = b"http://" + login + origin.host + b"/a"
    client.say(b"GET " + url + b" HTTP/" + version + b"\r\n" + fields + authorization + b"\r\n")
    with origin.next() as heard:
        lines = heard.head.split(b"\r\n")
        assert lines[:2] == [b"GET /a HTTP/1.1", b"Host: " + origin.host]
        assert [line for line in lines if line.startswith(b"Auth")] == authorization.splitlines()
        heard.say(ok(b""))
    assert client.hear().status == 200


def test_a_client_that_pipelines_lets_others_run_behind_each_answer(client: Talk) -> None:
    with turns_of_others() as turns:
        client.say(b"OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n" * 200)
        for _ in range(200):
            assert client.hear("OPTIONS").status == 200
    assert turns.count >= 200


def test_what_a_client_has_pipelined_is_not_served_once_it_is_gone() -> None:
    with web() as origin, http_inbound() as (inbound, seen):
        client = talk_to(inbound)
        client.say(get(origin, b"/first") + get(origin, b"/second"))
        first = origin.next()
        reset(client.sock)
        assert seen.next().outcome == "client_reset"
        eventually(lambda: not inbound.connections)
        first.over.set()
        assert (len(seen.all), len(origin.heads)) == (1, 1)


@pytest.mark.parametrize("option", [b"content-length", b"host", b"Content-Length, Host"])
def test_a_request_cannot_take_its_own_length_or_host_from_itself(
    client: Talk, origin: Web, option: bytes
) -> None:
    client.say(get(origin, b"/", b"Connection: " + option, b"Content-Length: 3") + b"abc")
    with origin.next() as heard:
        assert b"\r\nContent-Length: 3\r\n" in heard.head
        assert b"\r\nHost: " + origin.host in heard.head
        heard.hear_exactly(b"abc")
        heard.say(ok(b""))
    assert client.hear().status == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "M-X"])
def test_any_method_is_passed(client: Talk, method: str) -> None:
    with web(ok(b"done")) as origin:
        reply = client.ask(get(origin, method=method.encode()), method)
        assert (reply.status, reply.body) == (200, b"done")
        assert origin.heads[0].startswith(method.encode() + b" / HTTP/1.1\r\n")


# --- what the client gets ---------------------------------------------------------------------


def test_an_answer_comes_back_as_it_is_and_tells_the_exit(client: Talk) -> None:
    answer = (
        b"HTTP/1.1 299 Not Sure\r\nserver: s\r\nSet-Cookie: a\r\nContent-Length: 2\r\n"
        b"Set-Cookie: b\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\nhi"
    )
    with web(answer) as origin:
        client.say(get(origin))
        client.hear_exactly(
            b"HTTP/1.1 299 Not Sure\r\nserver: s\r\nSet-Cookie: a\r\nContent-Length: 2\r\n"
            b'Set-Cookie: b\r\nProxy-Status: gsocks; next-hop="direct"\r\n\r\nhi'
        )


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\nup to the end", b"up to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nup to the end", b"up to the end"),
        (b"HTTP/1.1 200\nX: y\n\nlenient", b"lenient"),
        (b"HTTP/1.1 200 OK\r\nX: folded\r\n line\r\nContent-Length: 1\r\n\r\n!", b"!"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"
            b"2;x=y\r\nhi\r\n0\r\nTrailer: no\r\n\r\n",
            b"hi",
        ),
    ],
)
def test_an_answer_ends_where_it_says(client: Talk, answer: bytes, body: bytes) -> None:
    with web(answer) as origin:
        for _ in range(2):  # and another request may follow
            reply = client.ask(get(origin))
            assert (reply.status, reply.body) == (200, body)
            assert "trailer" not in reply


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 404 Not Found\r\n\r\nbut there is a body"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_an_answer_without_a_body_has_none(client: Talk, method: str, answer: bytes) -> None:
    with web(answer) as origin:
        for _ in range(2):
            reply = client.ask(get(origin, method=method.encode()), method)
            assert reply.body == b""
            assert reply.status == int(answer.split()[1])
    if method == "HEAD" and b"1000" in answer:
        assert reply["content-length"] == "1000"


def test_each_request_of_a_connection_goes_where_it_says_by_a_way_of_its_own() -> None:
    with http_inbound() as (inbound, seen), web(ok(b"one")) as one, web(ok(b"two")) as two:
        with talk_to(inbound) as client:
            for origin, body in ((one, b"one"), (two, b"two"), (two, b"two"), (one, b"one")):
                assert client.ask(get(origin)).body == body
            client.say(get(two, b"/", b"Connection: close"))
            last = client.hear()
            assert (last.body, last["connection"]) == (b"two", "close")
            client.hear_end()
        records = [seen.next() for _ in range(5)]
    wanted = [str(origin.address) for origin in (one, two, two, one, two)]
    assert [record.dest for record in records] == wanted
    assert [record.outcome for record in records] == ["ok"] * 5
    assert {record.exit for record in records} == {"direct"}
    assert len({record.client for record in records}) == 1
    for record, heads in zip(records, (one, two, two, one), strict=False):
        assert record.up == len(heads.heads[0])
        assert record.down == len(ok(b"one"))


def test_requests_that_come_at_once_are_answered_in_their_order(client: Talk) -> None:
    def answer(talk: Talk) -> None:
        length = re.findall(rb"Content-Length: (\d+)", talk.head)
        body = talk.hear_bytes(int(length[0])) if length else b""
        talk.say(ok(talk.head.split(b" ")[1] + body))

    with web(answer) as origin:
        posting = [get(origin, b"/%d" % n, b"Content-Length: 3", method=b"POST") for n in range(3)]
        client.say(
            get(origin, b"/a")
            + b"\r\n"  # in front of the next one, as some clients put it behind a body
            + get(origin, b"/b")
            + b"".join(post + b"xyz" for post in posting)
            + get(origin, b"/c")
        )
        bodies = [client.hear().body for _ in range(6)]
    assert bodies == [b"/a", b"/b", b"/0xyz", b"/1xyz", b"/2xyz", b"/c"]


# --- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_003])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_any_size_goes_up_and_comes_down_whole(
    client: Talk, size: int, chunked: bool
) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    def answer(talk: Talk) -> None:
        received = talk.hear_body()
        if chunked:
            talk.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(received))
        else:
            talk.say(ok(received))

    with web(answer) as origin:
        field = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        client.say(get(origin, b"/", field, method=b"POST"))
        sender = gevent.spawn(client.say, chunks(body) if chunked else body)
        assert client.hear("POST").body == body
        sender.get()
        assert field in origin.heads[0]


def chunks(body: bytes, size: int = 10_007) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%X;why=not\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_passed_on_as_it_comes_and_never_held(
    client: Talk, origin: Web, chunked: bool
) -> None:
    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if chunked else data

    field = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 6"
    client.say(get(origin, b"/", field, method=b"POST"))
    with origin.next() as heard:
        client.say(framed(b"abc"))
        heard.hear_exactly(framed(b"abc"))  # while the rest has not been sent
        client.say(framed(b"def"))
        heard.hear_exactly(framed(b"def"))
        if chunked:
            client.say(b"0\r\nX-Trailer: is dropped\r\n\r\n")
            heard.hear_exactly(b"0\r\n\r\n")
        heard.say(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n" + framed(b"uvw"))
        client.hear_until(framed(b"uvw"))
        heard.say(framed(b"xyz") + (b"0\r\n\r\n" if chunked else b""))
        client.hear_exactly(framed(b"xyz"))


def test_a_body_waits_for_who_does_not_take_it() -> None:
    """Backpressure, both ways: no more is under way than the sockets hold."""
    with http_inbound() as (inbound, _), web() as origin, talk_to(inbound) as client:
        client.say(get(origin, b"/", b"Content-Length: 1000000000", method=b"POST"))
        with origin.next() as heard:
            heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            for sock in (client.sock, heard.sock):
                sent = 0
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    while sent < 1_000_000_000:
                        sent += sock.send(bytes(65536))
                assert sent < 100_000_000


# --- 100 (Continue) and its kin ---------------------------------------------------------------

EXPECTING = (b"Expect: 100-continue", b"Content-Length: 5")


def test_a_client_that_expects_100_gets_it_from_the_server(client: Talk, origin: Web) -> None:
    client.say(get(origin, b"/", *EXPECTING, method=b"PUT"))
    with origin.next() as heard:
        assert b"\r\nExpect: 100-continue\r\n" in heard.head
        heard.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.hear_exactly(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.say(b"hello")
        heard.hear_exactly(b"hello")
        heard.say(ok(b"thanks"))
        reply = client.hear("PUT")
    assert (reply.body, "connection" in reply) == (b"thanks", False)


def test_a_client_whose_body_is_not_wanted_is_told_that_its_connection_ends(
    client: Talk, origin: Web
) -> None:
    client.say(get(origin, b"/", *EXPECTING, method=b"PUT"))
    with origin.next() as heard:
        heard.say(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
        reply = client.hear("PUT")
    assert (reply.status, reply.body, reply["connection"]) == (417, b"no", "close")
    client.hear_end()


def test_a_client_of_http_1_0_is_not_told_what_it_does_not_know(client: Talk, origin: Web) -> None:
    client.say(
        b"PUT " + origin.url + b"/ HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    )
    with origin.next() as heard:
        assert b"Expect" not in heard.head
        heard.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
        client.say(b"hello")
        heard.hear_exactly(b"hello")
        heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        reply = client.hear("PUT")
    assert (reply.before, reply.body) == ([], b"hi")
    assert "transfer-encoding" not in reply
    assert reply["connection"] == "close"
    client.hear_end()


def test_early_hints_are_passed(client: Talk) -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    with web(answer + ok(b"")) as origin:
        assert client.ask(get(origin)).before == [103, 102]


@pytest.mark.parametrize("hangs_up", [True, False])
def test_an_answer_before_the_end_of_its_request_arrives_whole(
    client: Talk, origin: Web, hangs_up: bool
) -> None:
    """As 413 does: the server answers, and takes no more of what is still being sent."""
    client.say(get(origin, b"/", b"Content-Length: 1000000000", method=b"POST"))
    sender = gevent.spawn(send_until_it_breaks, client.sock)
    with origin.next() as heard:
        heard.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
        if hangs_up:
            heard.sock.close()  # with unread data, so by a reset
        reply = client.hear("POST")
        assert (reply.status, reply.body) == (413, b"too large")
        assert reply["connection"] == "close"
        sender.kill()
        client.hear_end()


def send_until_it_breaks(sock: socket, first: bytes = b"", more: bytes = bytes(65536)) -> None:
    try:
        sock.sendall(first)
        while True:
            sock.sendall(more)
    except OSError:
        pass  # as it had to


# --- servers that do not close ----------------------------------------------------------------


@pytest.mark.parametrize("way", ["talks on", "resets", "waits"])
def test_a_server_that_does_not_close_behind_its_answer_is_left(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("gsocks.http.origin.DRAIN_TIMEOUT", 0.05)
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        with origin.next() as heard:
            heard.say(ok(b"all", b"Connection: close"))
            assert client.hear().body == b"all"
            if way == "talks on":
                send_until_it_breaks(heard.sock)
            elif way == "resets":
                reset(heard.sock)
            else:
                heard.hear_end()
                send_until_it_breaks(heard.sock)
        assert seen.next().outcome == "ok"


# --- answers that fail ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "outcome"),
    [
        (b"", "http_response_incomplete", "remote_truncated"),
        (b"HTTP/1.1 200 OK\r\nX: y", "http_response_incomplete", "remote_truncated"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "http_protocol_error", "remote_bad_response"),
        (b"HTTP/1.1 200 OK\r\nX\0: y\r\n\r\n", "http_protocol_error", "remote_bad_response"),
        (b"HTTP/1.1 101 Hm\r\nUpgrade: x\r\n\r\n", "http_protocol_error", "remote_bad_response"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: br\r\n\r\n",
            "http_protocol_error",
            "remote_bad_response",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "http_protocol_error",
            "remote_bad_response",
        ),
        (
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD,
            "http_protocol_error",
            "remote_bad_response",
        ),
    ],
    ids=range(8),
)
def test_an_answer_that_is_none_is_told_and_the_client_may_go_on(
    answer: bytes, error: str, outcome: str
) -> None:
    with http_inbound() as (inbound, seen), web(answer) as origin, talk_to(inbound) as client:
        for _ in range(2):
            reply = client.ask(get(origin))
            assert (reply.status, reply["proxy-status"]) == (502, f"gsocks; error={error}")
            assert reply.body.startswith(b"502 Bad Gateway: the server")
            assert seen.next().outcome == outcome


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "remote_truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "remote_truncated"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nx\r\n",
            "remote_bad_response",
        ),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(
    answer: bytes, outcome: str, version: bytes
) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(b"GET " + origin.url + b"/ HTTP/" + version + b"\r\nHost: " + origin.host)
        client.say(b"\r\n\r\n")
        with origin.next() as heard:
            heard.say(head + b"\r\n\r\n")
            client.hear_until(b"\r\n\r\n")
            heard.say(body)
        assert is_reset(client.sock)
        assert seen.next().outcome == outcome


def test_an_answer_that_is_reset_is_reset() -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        with origin.next() as heard:
            heard.say(b"HTTP/1.1 200 OK\r\n\r\nup to the end")
            client.hear_until(b"up to the end")
            reset(heard.sock)
            assert is_reset(client.sock)
        assert seen.next().outcome == "remote_reset"


def test_what_cannot_be_reached_is_told_and_the_client_may_go_on() -> None:
    with http_inbound() as (inbound, seen), web(ok(b"fine")) as origin, talk_to(inbound) as client:
        port = free_port()
        reply = client.ask(
            b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (port, port)
        )
        assert (reply.status, reply["proxy-status"]) == (502, "gsocks; error=connection_refused")
        assert reply["content-type"].startswith("text/plain")
        assert client.ask(get(origin)).body == b"fine"
        assert [seen.next().outcome, seen.next().outcome] == ["refused", "ok"]


def test_what_the_rules_deny_is_told_and_the_client_may_go_on() -> None:
    seen = Seen()
    inbound = LocalServer(("127.0.0.1", 0), observer=seen)
    inbound.start()
    with web(ok(b"secret")) as origin, talk_to(inbound) as client:
        for method in ("GET", "HEAD"):
            reply = client.ask(get(origin, method=method.encode()), method)
            assert reply.status == 403
            assert reply["proxy-status"] == "gsocks; error=destination_ip_prohibited"
            assert (b"deny private" in reply.body) is (method == "GET")
        # what was not sent with the request would have to be waited for
        reply = client.ask(get(origin, b"/", b"Content-Length: 5", method=b"POST"), "POST")
        assert (reply.status, reply["connection"]) == (403, "close")
        assert origin.heads == []
    inbound.stop(0)
    assert seen.outcomes == ["forbidden"] * 3


# --- Upgrade ----------------------------------------------------------------------------------

UPGRADE = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x")
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: y\r\n\r\n"
)


def test_a_websocket_goes_through() -> None:
    """With bytes right behind both heads, and half-closed at the end."""
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin, b"/chat", *UPGRADE) + b"first frame")
        with origin.next() as heard:
            assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" in heard.head
            assert b"\r\nSec-WebSocket-Key: x\r\n" in heard.head
            heard.say(SWITCHING + b"greeting")
            head = client.hear_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
            assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head
            assert b"\r\nSec-WebSocket-Accept: y\r\n" in head
            client.hear_exactly(b"greeting")
            heard.hear_exactly(b"first frame")
            for _ in range(3):
                client.say(b"there")
                heard.hear_exactly(b"there")
                heard.say(b"back")
                client.hear_exactly(b"back")
            client.sock.shutdown(std_socket.SHUT_WR)
            heard.hear_end()
            heard.say(b"bye")
            client.hear_exactly(b"bye")
        client.hear_end()
        record = seen.next()
        assert record.outcome == "ok"
        assert record.up == len(heard.head) + len(b"first frame" + 3 * b"there")
        assert record.down == len(SWITCHING) + len(b"greeting" + 3 * b"back" + b"bye")


def test_a_websocket_that_is_refused_is_a_request_like_any_other(client: Talk) -> None:
    with web(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno") as origin:
        for _ in range(2):
            reply = client.ask(get(origin, b"/chat", *UPGRADE))
            assert (reply.status, reply.body) == (403, b"no")


def test_a_client_that_is_gone_before_its_upgrade_is_answered_ends_it(origin: Web) -> None:
    with http_inbound() as (inbound, seen), talk_to(inbound) as client:
        client.say(get(origin, b"/chat", *UPGRADE))
        with origin.next() as heard:
            reset(client.sock)
            assert seen.next().outcome == "client_reset"
            assert is_reset(heard.sock)


# --- CONNECT ----------------------------------------------------------------------------------


def connect(origin: Web, *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"CONNECT " + origin.host + b" HTTP/" + version, b"Host: " + origin.host, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("payload", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5000])
def test_connect_names_the_exit_and_carries_what_stands_behind_it(
    version: bytes, payload: bytes
) -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        sender = gevent.spawn(client.say, connect(origin, version=version) + payload + b"\r\n\r\n")
        client.hear_exactly(
            b"HTTP/1.1 200 Connection established\r\n"
            b'Proxy-Status: gsocks; next-hop="direct"\r\n\r\n'
        )
        sender.get()
        with origin.next() as heard:
            whole = payload + b"\r\n\r\n"
            heard.hear_exactly(whole[len(heard.head) :])
            heard.say(b"bytes\0and\r\nbytes")
            client.hear_exactly(b"bytes\0and\r\nbytes")
            client.sock.shutdown(std_socket.SHUT_WR)
            heard.hear_end()
        client.hear_end()
        record = seen.next()
        assert (record.outcome, record.up) == ("ok", len(whole))


def test_connect_to_what_cannot_be_reached_is_told_and_ends() -> None:
    """What the client may have sent in hope must not be taken for another request."""
    with http_inbound() as (inbound, seen), web(ok(b"")) as origin, talk_to(inbound) as client:
        client.say(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % free_port() + get(origin))
        reply = client.hear()
        assert (reply.status, reply["proxy-status"]) == (502, "gsocks; error=connection_refused")
        assert reply["connection"] == "close"
        client.hear_end()
        assert seen.next().outcome == "refused"
        assert origin.heads == []


def test_a_client_that_is_gone_when_connect_succeeds_is_an_outcome() -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(connect(origin))
        reset(client.sock)
        assert seen.next().outcome in ("client_reset", "client_closed")


def test_one_length_said_twice_goes_on_once(client: Talk, origin: Web) -> None:
    field = b"Content-Length: 5, 5\r\nContent-Length: 5"
    client.say(get(origin, b"/", field, method=b"POST") + b"hello")
    with origin.next() as heard:
        assert heard.head.lower().count(b"content-length: 5\r\n") == 1
        assert heard.head.lower().count(b"content-length") == 1
        assert heard.hear_body() == b"hello"


def test_what_stands_around_chunks_stays_here(client: Talk, origin: Web) -> None:
    head = get(origin, b"/", b"Transfer-Encoding: chunked", b"Trailer: X-Admin", method=b"POST")
    client.say(head + b"0005;ext=1\r\nhello\r\n000\r\nX-Admin: yes\r\n\r\n")
    with origin.next() as heard:
        assert b"railer" not in heard.head
        assert heard.hear_until(b"0\r\n\r\n").endswith(b"5\r\nhello\r\n0\r\n\r\n")
        heard.say(ok(b""))
        assert client.hear("POST").status == 200


# --- bodies that are too large -------------------------------------------------------------------

SMALL = Limits(request_body=5)


def test_a_body_of_the_largest_size_is_served() -> None:
    with (
        http_inbound(limits=SMALL) as (inbound, _),
        web(ok(b"")) as origin,
        talk_to(inbound) as client,
    ):
        whole = get(origin, b"/", b"Content-Length: 5", method=b"POST") + b"hello"
        assert client.ask(whole, "POST").status == 200
        chunked = get(origin, b"/", b"Transfer-Encoding: chunked", method=b"POST")
        assert client.ask(chunked + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", "POST").status == 200


@pytest.mark.parametrize(
    "field", [b"Content-Length: 6", b"Content-Length: 6\r\nExpect: 100-continue"]
)
def test_a_length_beyond_the_limit_is_refused_before_any_server_is_requested(field: bytes) -> None:
    with (
        http_inbound(limits=SMALL) as (inbound, seen),
        web(ok(b"")) as origin,
        talk_to(inbound) as client,
    ):
        reply = client.ask(get(origin, b"/", field, method=b"POST"), "POST")
        assert (reply.status, reply["connection"]) == (413, "close")
        assert reply["proxy-status"] == "gsocks; error=http_request_error"
        assert reply.body.decode() == "413 Content Too Large: a body of more than 5 bytes\n"
        client.hear_end()
        assert origin.connections.empty()
        assert seen.next().outcome == "body_too_large"


def test_chunks_beyond_the_limit_are_refused_where_they_pass_it(origin: Web) -> None:
    with http_inbound(limits=SMALL) as (inbound, seen), talk_to(inbound) as client:
        client.say(get(origin, b"/", b"Transfer-Encoding: chunked", method=b"POST"))
        with origin.next() as heard:
            client.say(b"3\r\nhel\r\n")
            assert heard.hear_until(b"hel\r\n").endswith(b"3\r\nhel\r\n")
            client.say(b"3\r\nlo!\r\n")
            assert is_reset(heard.sock)  # no server takes a part for the whole
        reply = client.hear("POST")
        assert (reply.status, reply["connection"]) == (413, "close")
        client.hear_end()
        assert seen.next().outcome == "body_too_large"


def test_chunks_beyond_the_limit_end_an_answer_that_has_begun(origin: Web) -> None:
    with http_inbound(limits=SMALL) as (inbound, seen), talk_to(inbound) as client:
        client.say(get(origin, b"/", b"Transfer-Encoding: chunked", method=b"POST"))
        with origin.next() as heard:
            heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel")
            client.hear_until(b"hel")
            client.say(b"6\r\nhello!\r\n")
            assert is_reset(client.sock)
        assert seen.next().outcome == "body_too_large"


def test_strangers_are_asked_for_a_password_before_their_body_is_judged() -> None:
    options = {"users": users(), "limits": SMALL}
    with http_inbound(**options) as (inbound, _), web() as origin, talk_to(inbound) as client:
        ask = get(origin, b"/", b"Content-Length: 6", method=b"POST")
        assert client.ask(ask, "POST").status == 407


# --- for whom a request is ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS"])
def test_a_request_that_may_go_no_further_is_answered_here(client: Talk, method: str) -> None:
    """Twice: it is a whole answer, behind which another request may stand."""
    with web(ok(b"wrong")) as origin:
        for _ in range(2):
            fields = (b"Max-Forwards: 0", b"X: y", credentials(), b"Cookie: secret")
            reply = client.ask(get(origin, b"/a", *fields, method=method.encode()), method)
            assert reply.status == 200
            if method == "TRACE":
                assert reply["content-type"] == "message/http"
                assert reply.body == (
                    b"TRACE " + origin.url + b"/a HTTP/1.1\r\nHost: " + origin.host + b"\r\n"
                    b"Max-Forwards: 0\r\nX: y\r\n\r\n"
                )
            else:
                assert (reply.body, reply["content-length"]) == (b"", "0")
            assert "proxy-status" not in reply
        assert origin.heads == []


def test_who_asks_only_this_proxy_is_in_the_log() -> None:
    with http_inbound() as (inbound, seen), talk_to(inbound) as client:
        client.ask(
            b"OPTIONS http://192.0.2.1:81 HTTP/1.1\r\nHost: 192.0.2.1:81\r\n"
            b"Max-Forwards: 0\r\n\r\n",
            "OPTIONS",
        )
        record = seen.next()
        assert (record.outcome, record.dest, record.exit) == ("ok", "192.0.2.1:81", "")


# --- who may come in --------------------------------------------------------------------------

USERS = Users({"alice": hash_password(b"wonder:land")})


def users() -> Throttle:
    """Who may come in; a wrong password is answered at once."""
    return Throttle(USERS.verify, sleep=lambda seconds: None)


def credentials(password: bytes = b"wonder:land") -> bytes:
    return b"Proxy-Authorization: Basic " + b64encode(b"alice:" + password)


def test_a_inbound_with_users_asks_again_and_lets_in_who_belongs() -> None:
    with (
        http_inbound(users=users()) as (inbound, seen),
        web(ok(b"in")) as origin,
        talk_to(inbound) as client,
    ):
        for fields in ([], [credentials(b"hunter2")]):
            reply = client.ask(get(origin, b"/", *fields))
            assert reply.status == 407
            assert reply["proxy-authenticate"] == 'Basic realm="gsocks", charset="UTF-8"'
            assert b"hunter2" not in reply.body
        assert client.ask(get(origin, b"/", credentials())).body == b"in"
        assert client.ask(get(origin)).status == 407  # each request says who asks
        records = [seen.next() for _ in range(4)]
        assert [record.outcome for record in records] == [*["auth_failed"] * 2, "ok", "auth_failed"]
        assert [record.user for record in records] == [None, None, "alice", None]
        assert not any("hunter2" in str(record.fields()) for record in records)
        assert b"Authorization" not in origin.heads[0]


def test_a_listener_with_users_refuses_clients_without_credentials() -> None:
    with (
        http_inbound(users=users()) as (inbound, seen),
        web(ok(b"in")) as origin,
        talk_to(inbound) as client,
    ):
        assert client.ask(connect(origin)).status == 407
        client.say(connect(origin, credentials()))
        assert client.hear_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        client.say(b"\r\n\r\n")
        client.hear_exactly(ok(b"in"))
        client.sock.shutdown(std_socket.SHUT_WR)
        client.hear_end()
        assert [seen.next().user, seen.next().user] == [None, "alice"]


def test_what_was_sent_behind_a_connect_without_credentials_is_no_request() -> None:
    with (
        http_inbound(users=users()) as (inbound, _),
        web(ok(b"in")) as origin,
        talk_to(inbound) as client,
    ):
        client.say(connect(origin) + get(origin, b"/", credentials()))
        reply = client.hear()
        assert (reply.status, reply["connection"]) == (407, "close")
        client.hear_end()
        assert origin.heads == []


def test_guessing_has_its_bound_on_each_connection() -> None:
    with (
        http_inbound(users=users()) as (inbound, _),
        web(ok(b"in")) as origin,
        talk_to(inbound) as client,
    ):
        for attempt in range(1, MAX_REFUSED_LOGINS + 1):
            reply = client.ask(get(origin, b"/", credentials(b"%d" % attempt)))
            assert reply.status == 407
            assert ("connection" in reply) is (attempt == MAX_REFUSED_LOGINS)
        client.hear_end()


def test_a_refused_request_whose_body_has_not_come_ends_the_connection() -> None:
    with (
        http_inbound(users=users()) as (inbound, _),
        web(ok(b"in")) as origin,
        talk_to(inbound) as client,
    ):
        # a body that is there is taken, and the next request is found behind it
        whole = get(origin, b"/", b"Content-Length: 5", method=b"POST") + b"hello"
        assert client.ask(whole, "POST").status == 407
        assert client.ask(get(origin, b"/", credentials())).body == b"in"
        reply = client.ask(get(origin, b"/", b"Content-Length: 5", method=b"POST"), "POST")
        assert (reply.status, reply["connection"]) == (407, "close")
        client.hear_end()


# --- clients that hang up, or say nothing -----------------------------------------------------

SHORT = Timeouts(handshake=0.1, keep_alive=0.1, idle=0.1, half_closed=0.1)


@pytest.mark.parametrize("said", [b"G", b"GET http://a/ HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_takes_too_long_is_told_so(said: bytes) -> None:
    with http_inbound(timeouts=SHORT) as (inbound, seen), talk_to(inbound) as client:
        reply = client.ask(said)
        assert (reply.status, reply["connection"]) == (408, "close")
        client.hear_end()
        assert seen.next().outcome == "handshake_timeout"


def test_a_second_head_that_takes_too_long_is_told_so() -> None:
    with http_inbound(timeouts=SHORT) as (inbound, seen), web(ok(b"")) as origin:
        with talk_to(inbound) as client:
            client.say(get(origin) + b"GET ")
            assert [client.hear().status, client.hear().status] == [200, 408]
        assert [seen.next().outcome, seen.next().outcome] == ["ok", "handshake_timeout"]


@pytest.mark.parametrize("behind", [b"", b"\r\n"])
def test_silence_behind_an_answer_is_the_end_without_a_word(behind: bytes) -> None:
    with http_inbound(timeouts=SHORT) as (inbound, seen), web(ok(b"")) as origin:
        with talk_to(inbound) as client:
            client.say(get(origin) + behind)
            assert client.hear().status == 200
            client.hear_end()
        eventually(lambda: not inbound.connections)
        assert seen.outcomes == ["ok"]


def test_between_two_requests_a_client_has_more_time_than_for_a_head() -> None:
    bounds = replace(SHORT, keep_alive=TOO_LONG)
    with (
        http_inbound(timeouts=bounds) as (inbound, seen),
        web(ok(b"")) as origin,
        talk_to(inbound) as client,
    ):
        assert client.ask(get(origin)).status == 200
        readable, _, _ = select([client.sock], [], [], 3 * SHORT.handshake)
        assert not readable  # the listener does not hang up
        assert client.ask(get(origin)).status == 200
        assert client.ask(b"GET ").status == 408  # and a head that has begun has its own bound
        assert seen.outcomes == ["ok", "ok", "handshake_timeout"]


def test_a_stranger_has_no_time_between_two_requests() -> None:
    bounds = replace(SHORT, keep_alive=TOO_LONG)
    options = {"users": users(), "timeouts": bounds}
    with http_inbound(**options) as (inbound, _), web() as origin, talk_to(inbound) as client:
        assert client.ask(get(origin)).status == 407
        client.hear_end()


def test_a_client_that_hangs_up_between_two_requests_is_no_event() -> None:
    with http_inbound() as (inbound, seen), web(ok(b"")) as origin:
        with talk_to(inbound) as client:
            client.ask(get(origin))
        eventually(lambda: not inbound.connections)
        assert seen.outcomes == ["ok"]


@pytest.mark.parametrize("answering", [False, True])
def test_a_client_that_resets_while_it_waits_ends_the_request(answering: bool) -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        with origin.next() as heard:
            if answering:
                heard.say(b"HTTP/1.1 200 OK\r\n\r\nnot all")
                client.hear_until(b"not all")
            reset(client.sock)
            assert is_reset(heard.sock)
        assert seen.next().outcome == "client_reset"


def test_a_client_that_has_ended_its_direction_still_gets_its_answer() -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        client.sock.shutdown(std_socket.SHUT_WR)
        with origin.next() as heard:
            heard.say(ok(b"here"))
            assert client.hear().body == b"here"
        client.hear_end()
        assert seen.next().outcome == "ok"


def test_a_client_that_has_ended_its_direction_is_waited_for_less_long() -> None:
    bounds = Timeouts(idle=TOO_LONG, half_closed=0.1)
    with (
        http_inbound(timeouts=bounds) as (inbound, seen),
        web() as origin,
        talk_to(inbound) as client,
    ):
        client.say(get(origin))
        client.sock.shutdown(std_socket.SHUT_WR)
        with origin.next() as heard:
            reply = client.hear()
            assert is_reset(heard.sock)
        assert reply.status == 504
        assert seen.next().outcome == "half_closed_timeout"


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_request_that_breaks_off_never_reaches_the_server_as_a_whole_one(field: bytes) -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin, b"/", field, method=b"POST"))
        with origin.next() as heard:
            client.say(b"4\r\n")
            heard_of_it = gevent.spawn(is_reset, heard.sock)
            client.sock.shutdown(std_socket.SHUT_WR)
            assert heard_of_it.get()
        assert client.hear("POST").status == 400
        assert seen.next().outcome == "client_gone"


# --- silence on both sides --------------------------------------------------------------------


def test_a_server_that_says_nothing_is_given_up_and_the_client_may_go_on() -> None:
    with (
        http_inbound(timeouts=SHORT) as (inbound, seen),
        web() as origin,
        talk_to(inbound) as client,
    ):
        for _ in range(2):
            client.say(get(origin))
            with origin.next() as heard:
                reply = client.hear()
                assert is_reset(heard.sock)
            assert (reply.status, reply["proxy-status"]) == (
                504,
                "gsocks; error=http_response_timeout",
            )
            assert seen.next().outcome == "idle_timeout"


def test_an_answer_that_stops_is_given_up_and_not_taken_for_a_whole_one() -> None:
    with (
        http_inbound(timeouts=SHORT) as (inbound, seen),
        web() as origin,
        talk_to(inbound) as client,
    ):
        client.say(get(origin))
        with origin.next() as heard:
            heard.say(b"HTTP/1.1 200 OK\r\n\r\nnot all")
            assert is_reset(client.sock)
            assert is_reset(heard.sock)
        assert seen.next().outcome == "idle_timeout"


def test_a_client_that_does_not_take_its_answer_is_given_up() -> None:
    with (
        http_inbound(timeouts=SHORT) as (inbound, seen),
        web() as origin,
        talk_to(inbound) as client,
    ):
        client.say(get(origin))
        with origin.next() as heard:
            sender = gevent.spawn(
                send_until_it_breaks, heard.sock, b"HTTP/1.1 200 OK\r\n\r\n" + bytes(65536)
            )
            assert seen.next().outcome == "idle_timeout"
            sender.get()
        assert is_reset(client.sock)


@pytest.mark.parametrize("upwards", [True, False])
def test_bytes_in_one_direction_keep_both_alive(upwards: bool) -> None:
    bounds = Timeouts(handshake=TOO_LONG, idle=0.8, half_closed=0.8)
    with (
        http_inbound(timeouts=bounds) as (inbound, seen),
        web() as origin,
        talk_to(inbound) as client,
    ):
        client.say(get(origin, b"/", b"Content-Length: 10", method=b"POST"))
        with origin.next() as heard:
            heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n")
            client.hear_until(b"\r\n\r\n")
            near, far = (client, heard) if upwards else (heard, client)
            for _ in range(10):  # twice as long as the bound, in all
                gevent.sleep(0.16)  # the client's pauses
                near.say(b"x")
                far.hear_exactly(b"x")
            if not upwards:
                client.say(b"0123456789")
                heard.hear_exactly(b"0123456789")
            heard.say(b"0123456789."[-1 if not upwards else -11 :])
            client.hear_until(b".")
        assert seen.next().outcome == "ok"


def test_a_client_that_does_not_take_what_precedes_its_answer_is_given_up() -> None:
    with (
        http_inbound(timeouts=SHORT) as (inbound, seen),
        web() as origin,
        talk_to(inbound) as client,
    ):
        client.say(get(origin))
        with origin.next() as heard:
            sender = gevent.spawn(
                send_until_it_breaks,
                heard.sock,
                b"",
                b"HTTP/1.1 103 X\r\nLink: %b\r\n\r\n" % (b"x" * 60_000),
            )
            assert seen.next().outcome == "idle_timeout"
            sender.get()
        assert is_reset(client.sock)


def test_a_client_that_does_not_take_the_proxys_own_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.inbound.http_client.WRITE_TIMEOUT", 0.05)
    near, far = tcp_pair(4096)
    with near, far:
        near.send(b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
        client = Client(far)
        assert client.read_request() is not None
        far.settimeout(0.05)
        with pytest.raises(TimeoutError):
            far.sendall(bytes(100_000_000))
        with pytest.raises(TimeoutError):
            while True:
                far.send(b"x")
        far.settimeout(None)
        client.failed(errors.ConnectionRefused())
        assert far.fileno() == -1
        assert client.read_request() is None


# --- close of the listener --------------------------------------------------------------------


def test_a_inbound_that_stops_ends_the_connections_that_wait_at_once() -> None:
    with http_inbound() as (inbound, seen), web(ok(b"")) as origin, talk_to(inbound) as client:
        client.ask(get(origin))
        stopping = gevent.spawn(inbound.stop, TOO_LONG)
        client.hear_end()
        client.sock.close()
        stopping.get()
        assert seen.outcomes == ["ok"]


def test_a_inbound_that_stops_lets_a_request_end_but_takes_no_other() -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        with origin.next() as heard:
            stopping = gevent.spawn(inbound.stop, TOO_LONG)
            gevent.idle()
            assert not stopping.ready()
            heard.say(ok(b"done"))
            assert client.hear().body == b"done"
            client.hear_end()
        client.sock.close()
        stopping.get()
        assert seen.outcomes == ["ok"]


@pytest.mark.parametrize("answering", [False, True])
def test_a_inbound_that_stops_at_once_ends_everything(answering: bool) -> None:
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        with origin.next() as heard:
            if answering:
                heard.say(b"HTTP/1.1 200 OK\r\n\r\nnot all")
                client.hear_until(b"not all")
            inbound.stop(0)
            assert seen.outcomes == ["stopped"]
            assert is_reset(heard.sock)
        assert not inbound.connections


def test_the_bytes_of_a_request_that_is_stopped_are_counted() -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all"
    with http_inbound() as (inbound, seen), web() as origin, talk_to(inbound) as client:
        client.say(get(origin))
        with origin.next() as heard:
            heard.say(begun)
            client.hear_until(b"not all")
            inbound.stop(0)
        record = seen.next()
        (member,) = inbound.context.exit_group.roster
        assert record.up > 0
        assert record.down == len(begun)
        assert (member.counts.up, member.counts.down) == (record.up, record.down)


# --- through a tunnel -------------------------------------------------------------------------


def test_requests_through_a_tunnel_use_it_again() -> None:
    with both_ends(pool_size=4) as ends, web(ok(b"hello")) as origin:
        pool = ends.exit.pool
        with talk_to(ends.local) as client:
            for _ in range(5):
                eventually(lambda: pool.ready == 4)
                reply = client.ask(get(origin))
                assert reply.body == b"hello"
                assert reply["proxy-status"] == f'gsocks; next-hop="{ends.exit.label}"'
            eventually(lambda: pool.ready == 4)
        assert pool.opened == 4
        assert ends.at_local.outcomes == ends.at_server.outcomes == ["ok"] * 5


def test_a_failure_at_the_far_end_is_told_as_it_is() -> None:
    with both_ends() as ends, talk_to(ends.local) as client:
        for line in (b"GET http://127.0.0.1:%d/", b"CONNECT 127.0.0.1:%d"):
            line = line % free_port()
            host = line.split(b"/")[2] if b"/" in line else b"x"
            reply = client.ask(line + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            assert (reply.status, reply["proxy-status"]) == (
                502,
                "gsocks; error=connection_refused",
            )
            assert b": refused, reported by the far end of the tunnel" in reply.body


# --- one port ---------------------------------------------------------------------------------


def test_one_port_serves_every_protocol() -> None:
    with http_inbound() as (inbound, seen), web(ok(b"hello")) as origin:
        ip, port = origin.address
        with talk_to(inbound) as client:
            assert client.ask(get(origin)).body == b"hello"
        for hello, granted in (
            (b"\x05\x01\x00\x05\x01\x00" + origin.address.encode(), b"\x05\x00\x05\x00\x00\x01"),
            (b"\x04\x01" + port.to_bytes(2, "big") + std_socket.inet_aton(ip) + b"\0", b"\0\x5a"),
            (connect(origin), b"HTTP/1.1 200 Connection established\r\n"),
        ):
            with talk_to(inbound) as client:
                client.say(hello + b"GET / HTTP/1.0\r\n\r\n")
                client.sock.shutdown(std_socket.SHUT_WR)
                heard = read_to_end(client.sock)
                assert heard.startswith(granted)
                assert heard.endswith(ok(b"hello"))
        with talk_to(inbound) as client:
            refused = Address(ip, free_port())
            client.say(b"\x05\x01\x00\x05\x01\x00" + refused.encode())
            assert read_to_end(client.sock) == b"\x05\x00\x05\x05\x00\x01" + bytes(6)
        with talk_to(inbound) as client:
            client.say(b"\x16\x03\x01")
            client.hear_end()
        assert seen.outcomes == [*["ok"] * 4, "refused", "bad_request"]


# --- anything ---------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    said=st.lists(
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.0 404 No\r\n",
                b"HTTP/1.1 204 \r\n",
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 101 Other\r\nUpgrade: x\r\n\r\n",
                b"Content-Length: 3\r\n",
                b"Content-Length: 2\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Connection: content-length\r\n",
                b"X: y\r\n z\r\n",
                b"\r\n",
                b"\n",
                b"3\r\nabc\r\n",
                b"0\r\n\r\n",
                b"abc",
            ]
        )
        | st.binary(max_size=4),
        max_size=8,
    ).map(b"".join),
    method=st.sampled_from(["GET", "HEAD"]),
    upgrade=st.booleans(),
)
def test_no_answer_of_a_server_makes_the_inbound_fail(
    said: bytes, method: str, upgrade: bool
) -> None:
    with http_inbound() as (inbound, seen), web(said) as origin, talk_to(inbound) as client:
        fields = UPGRADE if upgrade else ()
        client.say(get(origin, b"/", *fields, b"Connection: close", method=method.encode()))
        try:
            reply = client.hear(method)
        except (ConnectionResetError, h11.RemoteProtocolError):
            reply = None  # it broke off in the middle
        client.sock.close()
        record = seen.next()
        assert record.outcome == "ok" or record.outcome.startswith("remote_")
        if record.outcome == "ok":
            assert reply is not None
            assert reply.status != 502
        elif reply is not None:
            assert reply.status == 502
