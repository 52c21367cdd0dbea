"""What a proxy may leave out and this one passes on: trailers, Via, an Upgrade by a proxy."""

from __future__ import annotations

from contextlib import ExitStack

import h11
import pytest

from gsocks.address import Address
from gsocks.errors import Http2NotServed
from gsocks.http.body import Chunked
from gsocks.http.forward import to_client, to_origin
from gsocks.http.head import RequestTarget, find_end, wants_trailers
from gsocks.http.write import END, end_of
from gsocks.inbound.http_client import HTTP2_REFUSAL
from tests.support.forwarding import Place, proxy
from tests.support.web import Talk, Web, get, http_inbound, ok, talk_to, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"


# --- trailers -----------------------------------------------------------------------------------


def test_trailers_of_an_answer_reach_a_client_that_takes_some(client: Talk, origin: Web) -> None:
    for _ in range(2):  # and another request may follow
        client.say(get(origin, b"/", b"TE: trailers"))
        with origin.next() as heard:
            assert b"\r\nTE: trailers\r\n" in heard.head
            assert b"\r\nConnection: TE\r\n" in heard.head
            heard.say(CHUNKED + b"Trailer: X-Sum, X-Took\r\n\r\n2\r\nhi\r\n")
            client.hear_until(b"hi\r\n")
            heard.say(b"0\r\nX-Sum: abc\r\nx-took:  7 ms \r\n\r\n")
            client.hear_exactly(b"0\r\nX-Sum: abc\r\nx-took: 7 ms\r\n\r\n")


def test_a_client_is_told_which_are_to_come(client: Talk) -> None:
    with web(CHUNKED + b"Trailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n") as origin:
        reply = client.ask(get(origin, b"/", b"TE: deflate, Trailers;q=0.5"))
        assert (reply["trailer"], reply.body) == ("X-Sum", b"hi")
        assert "trailer" not in client.ask(get(origin))


def test_trailers_of_a_request_reach_the_server_of_a_client_that_takes_some(
    client: Talk, origin: Web
) -> None:
    fields = (b"TE: trailers", b"Trailer: X-Sum", b"Transfer-Encoding: chunked")
    client.say(get(origin, b"/", *fields, method=b"PUT") + b"2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n")
    with origin.next() as heard:
        assert b"\r\nTrailer: X-Sum\r\n" in heard.head
        heard.hear_exactly(b"2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n")
        heard.say(ok(b""))
        assert client.hear("PUT").status == 200


@pytest.mark.parametrize("te", [b"X: y", b"TE: gzip", b"TE: trailersx", b"TE:", b"Connection: TE"])
def test_they_are_dropped_in_both_directions_of_any_other(
    client: Talk, origin: Web, te: bytes
) -> None:
    fields = (te, b"Transfer-Encoding: chunked")
    client.say(get(origin, b"/", *fields, method=b"PUT") + b"2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n")
    with origin.next() as heard:
        assert b"\r\nTE:" not in heard.head
        heard.hear_exactly(b"2\r\nhi\r\n0\r\n\r\n")
        heard.say(CHUNKED + b"\r\n2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n")
        client.hear_until(b"2\r\nhi\r\n")
        client.hear_exactly(b"0\r\n\r\n")


SMUGGLED = (
    *(b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Host: other", b"Trailer: x"),
    *(b"Authorization: x", b"Proxy-Authorization: x", b"Cookie: a", b"Set-Cookie: a"),
    *(b"Connection: close", b"Upgrade: x", b"Content-Encoding: gzip", b"TE: gzip", b"Via: x"),
    *(b"LOCATION: /", b"proxy-status: x", b"content-type: a", b"Max-Forwards: 0"),
)


@pytest.mark.parametrize("field", SMUGGLED)
def test_what_may_stand_in_the_head_alone_is_never_passed_on(
    client: Talk, origin: Web, field: bytes
) -> None:
    """A recipient that merges trailers into the head would take it for checked."""
    fields = (b"TE: trailers", b"Transfer-Encoding: chunked")
    trailers = field + b"\r\nX-Sum: abc\r\n\r\n"
    client.say(get(origin, b"/", *fields, method=b"PUT") + b"2\r\nhi\r\n0\r\n" + trailers)
    with origin.next() as heard:
        heard.hear_exactly(b"2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n")
        heard.say(CHUNKED + b"\r\n2\r\nhi\r\n0\r\n" + trailers)
        client.hear_until(b"2\r\nhi\r\n")
        client.hear_exactly(b"0\r\nX-Sum: abc\r\n\r\n")


def test_a_server_s_trailer_that_is_no_field_is_left_out() -> None:
    body = Chunked(lenient=True, keep_trailers=True)
    body.feed(b"0\r\nA B: x\r\n: y\r\nno field\r\nX-A: \x01\r\nX-B: \xe4\nX-C:\r\n\r\n")
    assert body.complete
    assert body.trailers == [(b"X-B", b"\xe4"), (b"X-C", b"")]


def test_their_number_is_bounded() -> None:
    body = Chunked(keep_trailers=True)
    body.feed(b"0\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(500)) + b"\r\n")
    assert body.complete
    assert len(body.trailers) == 64
    assert end_of(Chunked()) is END


def test_a_client_of_http_1_0_gets_none() -> None:
    answer = CHUNKED + b"\r\n2\r\nhi\r\n0\r\nX-Sum: abc\r\n\r\n"
    with http_inbound() as (inbound, _), talk_to(inbound) as client, web(answer) as origin:
        client.say(get(origin, b"/", b"TE: trailers").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.hear_until(b"\r\n\r\nhi").startswith(b"HTTP/1.1 200 OK\r\n")
        client.hear_end()


@pytest.mark.parametrize("persistent", [True, False])
def test_te_is_named_by_connection(persistent: bool) -> None:
    asked = h11.Request(
        method="GET", target="http://a/", headers=[("Host", "a"), ("TE", "trailers")]
    )
    assert wants_trailers(asked)
    sent = to_origin(asked, RequestTarget(Address("a", 80), b"/"), persistent=persistent)
    assert (b"connection", b"TE" if persistent else b"TE, close") in list(sent.headers)


# --- Via ----------------------------------------------------------------------------------------


def test_via_is_there_only_if_it_has_a_name() -> None:
    for name in (None, "gate-1"):
        own = b"" if name is None else b"Via: 1.1 gate-1\r\n"
        with (
            http_inbound(via=name) as (inbound, _),
            talk_to(inbound) as client,
            web() as origin,
        ):
            client.say(get(origin, b"/", b"Via: 1.0 before"))
            with origin.next() as heard:
                assert b"Via: 1.0 before\r\n" + own in heard.head
                assert heard.head.count(b"Via:") == (1 if name is None else 2)
                heard.say(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            reply = client.hear()
            told = [value for field, value in reply.fields if field == "via"]
            assert told == ([] if name is None else ["1.0 gate-1"])


def test_it_names_the_version_that_was_received() -> None:
    asked = h11.Request(method="GET", target="http://a/", headers=[], http_version="1.0")
    sent = to_origin(asked, RequestTarget(Address("a", 80), b"/"), via="me")
    assert (b"via", b"1.0 me") in list(sent.headers)
    told = h11.Response(status_code=200, headers=[], http_version="1.1")
    assert (b"via", b"1.1 me") in list(
        to_client(told, "direct", closing=False, own_name="me").headers
    )


# --- an Upgrade by a proxy ----------------------------------------------------------------------

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"


def test_an_upgrade_goes_in_absolute_form_where_the_proxy_refuses_connect() -> None:
    """As squid does to port 80, by its own default config."""
    with ExitStack() as stack:
        ours, address = stack.enter_context(proxy(SWITCHING + b"hello"))
        place = Place(stack, f"http://user:pass@{address}")
        with talk_to(place.inbound) as client:
            client.say(
                b"GET http://shop.example/chat HTTP/1.1\r\nHost: shop.example\r\n"
                b"Connection: Upgrade\r\nUpgrade: chat\r\n\r\n"
            )
            assert client.hear_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            client.hear_exactly(b"hello")
        connect, upgrade = ours.heads
        assert connect.startswith(b"CONNECT shop.example:80 HTTP/1.1\r\n")
        assert upgrade.startswith(b"GET http://shop.example/chat HTTP/1.1\r\n")
        assert b"\r\nConnection: Upgrade\r\nUpgrade: chat\r\n" in upgrade
        assert b"\r\nProxy-Authorization: Basic " in upgrade


def test_a_refused_upgrade_is_answered_as_the_server_says() -> None:
    with ExitStack() as stack:
        _, address = stack.enter_context(proxy())
        place = Place(stack, f"http://{address}")
        fields = (b"Connection: Upgrade", b"Upgrade: chat")
        assert place.ask(b"http://shop.example/chat", *fields).body == b"by proxy"


# --- HTTP/2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b"\r\nSM\r\n\r\n", b"\r\nSM\r\n\r\n\x00\x00\x12\x04" + bytes(23)])
def test_http_2_by_prior_knowledge_is_refused_in_http_2_and_told_in_one_line(rest: bytes) -> None:
    with http_inbound() as (inbound, seen), talk_to(inbound) as client:
        client.say(b"PRI * HTTP/2.0\r\n" + rest)
        client.hear_exactly(HTTP2_REFUSAL)
        client.hear_end()
        record = seen.next()
        assert record.outcome == "bad_request"
        assert record.detail.startswith("HTTP/2 without asking (prior knowledge, h2c): this proxy")
        assert "\n" not in record.detail


def test_the_refusal_is_settings_and_goaway() -> None:
    assert HTTP2_REFUSAL[:9] == bytes.fromhex("000000 04 00 00000000")
    goaway = HTTP2_REFUSAL[9:]
    assert goaway[3:5] == b"\x07\x00"
    assert int.from_bytes(goaway[:3], "big") == len(goaway) - 9
    assert goaway[9:17] == bytes.fromhex("00000000 0000000d")


def test_the_preface_is_known_by_its_first_line() -> None:
    for end in range(len(b"PRI * HTTP/2.0\r\n")):
        assert find_end(b"PRI * HTTP/2.0\r\n"[:end], 0) == 0
    with pytest.raises(Http2NotServed):
        find_end(b"PRI * HTTP/2.0\r\n", 0)
