"""What a proxy changes in a message, what it says itself, and whom it lets in."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from http import HTTPStatus

import h11
import pytest

from gsocks import errors
from gsocks.address import Address
from gsocks.errors import AuthenticationFailed, BadParameters, GsocksError
from gsocks.http.forward import informational, to_client, to_origin
from gsocks.http.head import Target
from gsocks.http.login import log_in
from gsocks.http.status import answer_for, error_type, next_hop
from gsocks.login import OPEN, Caller, Login
from gsocks.wish import ANY, Wish

Fields = list[tuple[bytes, bytes]]
HOST = (b"Host", b"a")


TARGET = Target(Address("a", 80), b"/")


def request(
    *fields: tuple[bytes, bytes], version: bytes = b"1.1", method: str = "GET"
) -> h11.Request:
    return h11.Request(
        method=method, target=b"http://a/", headers=[HOST, *fields], http_version=version
    )


def forwarded(*fields: tuple[bytes, bytes], version: bytes = b"1.1") -> Fields:
    """The fields that the origin server gets, without Host."""
    sent = to_origin(request(*fields, version=version), TARGET)
    host, *rest = sent.headers.raw_items()
    assert host == HOST
    return rest


def returned(status: int, *fields: tuple[bytes, bytes], closing: bool = False) -> Fields:
    """The fields that the client gets, without Proxy-Status."""
    response = h11.Response(status_code=status, headers=list(fields), reason=b"Why")
    sent = to_client(response, "direct", closing=closing)
    assert (sent.status_code, sent.reason) == (status, b"Why")
    items = sent.headers.raw_items()
    items.remove((b"Proxy-Status", b'gsocks; next-hop="direct"'))
    return items


CLOSE = (b"Connection", b"close")
CHUNKED = (b"Transfer-Encoding", b"chunked")
WEBSOCKET = (b"Connection", b"upgrade"), (b"Upgrade", b"websocket")
PASSED = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]


# --- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dest", "host"),
    [
        (Address("example.com", 80), b"example.com"),
        (Address("example.com", 8080), b"example.com:8080"),
        (Address("example.com", 8), b"example.com:8"),
        (Address("192.0.2.1", 80), b"192.0.2.1"),
        (Address("2001:db8::80", 80), b"[2001:db8::80]"),
        (Address("2001:db8::80", 443), b"[2001:db8::80]:443"),
    ],
)
def test_the_host_is_that_of_the_url(dest: Address, host: bytes) -> None:
    sent = to_origin(request(), Target(dest, b"/x"))
    assert sent.target == b"/x"
    assert sent.headers.raw_items() == [(b"Host", host), CLOSE]


def test_fields_keep_their_order_and_spelling() -> None:
    fields = [(b"user-AGENT", b"me"), (b"Cookie", b"a"), (b"cookie", b"b"), (b"Via", b"x")]
    assert forwarded(*fields) == [*fields, CLOSE]


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"HTTP2-Settings",
        b"Keep-Alive",
        b"proxy-authorization",
        b"Proxy-Connection",
        b"TE",
        b"Trailer",
        b"Upgrade",
    ],
)
def test_what_is_for_the_proxy_stays_there(name: bytes) -> None:
    assert forwarded((name, b"x")) == [CLOSE]


def test_the_client_names_more_that_is_for_the_proxy() -> None:
    fields = [
        (b"Connection", b"close, X-A"),
        (b"x-a", b"1"),
        (b"X-B", b"2"),
        (b"connection", b"x-b,"),
    ]
    assert forwarded(*fields) == [CLOSE]


@pytest.mark.parametrize(
    "option", [b"Content-Length", b"content-length, x", b"close,CONTENT-LENGTH"]
)
def test_a_length_is_never_taken_from_a_message(option: bytes) -> None:
    length = (b"Content-Length", b"3")
    assert forwarded((b"Connection", option), length) == [length, CLOSE]
    assert returned(200, (b"Connection", option), length) == [length]


@pytest.mark.parametrize(
    ("method", "said", "passed"),
    [
        ("TRACE", b"5", b"4"),
        ("OPTIONS", b"1", b"0"),
        ("OPTIONS", b"010", b"9"),
        ("OPTIONS", b"9" * 5000, b"999999998"),
        ("GET", b"5", b"5"),  # it means nothing there, RFC 9110 section 7.6.2
        ("TRACE", b"-1", b"-1"),
        ("TRACE", b"x", b"x"),
    ],
)
def test_one_proxy_less_may_pass_it_on(method: str, said: bytes, passed: bytes) -> None:
    assert (b"max-forwards", passed) in list(
        to_origin(request((b"Max-Forwards", said), method=method), TARGET).headers
    )


def test_a_chunked_body_stays_chunked() -> None:
    assert forwarded((b"transfer-encoding", b"CHUNKED")) == [CHUNKED, CLOSE]


def test_nothing_is_expected_for_a_client_that_knows_no_100() -> None:
    expect = (b"Expect", b"100-continue")
    assert forwarded(expect) == [expect, CLOSE]
    assert forwarded(expect, version=b"1.0") == [CLOSE]


@pytest.mark.parametrize(
    "fields",
    [
        WEBSOCKET,
        [(b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"websocket")],
        [(b"Connection", b"upgrade"), (b"Upgrade", b"h2c, websocket")],
        [*WEBSOCKET, (b"Content-Length", b"0")],
    ],
)
def test_an_upgrade_is_passed(fields: Fields) -> None:
    assert forwarded(*fields)[-2:] == PASSED


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Upgrade", b"websocket")],
        [(b"Connection", b"upgrade")],
        [(b"Connection", b"upgrade"), (b"Upgrade", b"H2C")],
        [*WEBSOCKET, (b"Content-Length", b"1")],
        [*WEBSOCKET, CHUNKED],
    ],
)
def test_an_upgrade_that_cannot_work_is_not(fields: Fields) -> None:
    sent = forwarded(*fields)
    assert sent[-1] == CLOSE
    assert b"upgrade" not in {name.lower() for name, _ in sent}


def test_http_1_0_knows_no_upgrade() -> None:
    assert forwarded(*WEBSOCKET, version=b"1.0") == [CLOSE]


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Authenticate",
        b"Proxy-Authentication-Info",
        b"Proxy-Connection",
        b"Trailer",
        b"Upgrade",
    ],
)
def test_what_the_server_says_to_the_proxy_stays_there(name: bytes) -> None:
    assert returned(200, (name, b"x"), (b"Set-Cookie", b"a")) == [(b"Set-Cookie", b"a")]


def test_chunks_override_a_length() -> None:
    assert returned(200, (b"Content-Length", b"3"), CHUNKED) == []


@pytest.mark.parametrize(("status", "kept"), [(200, 1), (204, 0), (304, 1)])
def test_an_answer_without_content_has_no_length(status: int, kept: int) -> None:
    assert len(returned(status, (b"Content-Length", b"0"))) == kept


def test_a_connection_that_ends_is_told_to() -> None:
    assert returned(200, closing=True) == [CLOSE]


def test_what_others_said_of_themselves_is_kept() -> None:
    other = (b"Proxy-Status", b"cdn; error=dns_error")
    assert returned(502, other) == [other]


def test_an_answer_in_front_of_the_real_one() -> None:
    fields = [(b"Link", b"</a>"), (b"Connection", b"x"), (b"X", b"y"), (b"Content-Length", b"1")]
    sent = informational(h11.InformationalResponse(status_code=103, headers=fields, reason=b"Hm"))
    assert (sent.status_code, sent.reason) == (103, b"Hm")
    assert sent.headers.raw_items() == [(b"Link", b"</a>")]


def test_the_new_protocol_is_told() -> None:
    response = h11.InformationalResponse(status_code=101, headers=[*WEBSOCKET, (b"X", b"y")])
    assert informational(response).headers.raw_items() == [(b"X", b"y"), *PASSED]


# --- what the proxy says itself ---------------------------------------------------------------


def kinds_of(kind: type[GsocksError]) -> Iterator[type[GsocksError]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from kinds_of(derived)


TYPES = {
    errors.ConfigError: (502, "proxy_configuration_error"),
    errors.BadRequest: (400, "http_request_error"),
    errors.HeadTooLarge: (431, "http_request_error"),
    errors.TransferCodingNotSupported: (501, "http_request_error"),
    errors.CommandNotSupported: (501, "http_request_error"),
    errors.AuthenticationFailed: (407, "http_request_error"),
    errors.HandshakeTimeout: (408, "http_request_error"),
    errors.ConnectFailed: (502, "destination_unavailable"),
    errors.ExitFailed: (502, "destination_unavailable"),
    errors.Forbidden: (403, "destination_ip_prohibited"),
    errors.NetworkUnreachable: (502, "destination_ip_unroutable"),
    errors.HostUnreachable: (502, "destination_unavailable"),
    errors.AddressFamilyNotSupported: (502, "destination_ip_unroutable"),
    errors.NameNotFound: (502, "dns_error"),
    errors.ConnectionRefused: (502, "connection_refused"),
    errors.ConnectTimeout: (504, "connection_timeout"),
    errors.LimitReached: (503, "connection_limit_reached"),
    errors.OutOfResources: (503, "proxy_internal_error"),
    errors.ShuttingDown: (503, "proxy_internal_error"),
    errors.StreamReset: (502, "connection_terminated"),
    errors.Truncated: (502, "http_response_incomplete"),
    errors.BadResponse: (502, "http_protocol_error"),
    errors.IdleTimeout: (504, "http_response_timeout"),
    errors.HalfClosedTimeout: (504, "http_response_timeout"),
}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_each_error_has_its_status_and_its_type(kind: type[GsocksError]) -> None:
    response, _ = answer_for(kind("x"), closing=False)
    status, error = TYPES[kind]
    assert response.status_code == status
    assert dict(response.headers)[b"proxy-status"] == f"gsocks; error={error}".encode()


@pytest.mark.parametrize("kind", [*kinds_of(GsocksError)], ids=lambda kind: kind.__name__)
def test_every_error_can_be_told_and_read(kind: type[GsocksError]) -> None:
    response, body = answer_for(kind("because \N{WHITE SMILING FACE} \udcff"), closing=False)
    assert HTTPStatus(response.status_code) >= 400
    assert error_type(kind("x"))
    fields = dict(response.headers)
    assert fields[b"content-type"] == b"text/plain; charset=utf-8"
    assert int(fields[b"content-length"]) == len(body)
    assert "because \N{WHITE SMILING FACE} \\udcff" in body.decode()
    assert body.startswith(str(response.status_code).encode())
    assert (b"proxy-authenticate" in fields) is issubclass(kind, AuthenticationFailed)


def test_only_a_connection_that_ends_says_so() -> None:
    ending, _ = answer_for(errors.BadRequest(), closing=True)
    going_on, _ = answer_for(errors.Forbidden(), closing=False)
    assert (b"connection", b"close") in list(ending.headers)
    assert b"connection" not in dict(going_on.headers)


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ("direct", 'gsocks; next-hop="direct"'),
        ("socks5://10.0.0.7:1080", 'gsocks; next-hop="socks5://10.0.0.7:1080"'),
        ('a"b\\c', 'gsocks; next-hop="a\\"b\\\\c"'),
        ("zoë\r\nX: y", 'gsocks; next-hop="zo???X: y"'),
    ],
)
def test_an_exit_is_named_as_a_string_of_structured_fields(label: str, field: str) -> None:
    assert next_hop(label) == field.encode()


# --- whom it lets in --------------------------------------------------------------------------


def only_alice(name: str, password: bytes) -> bool:
    return (name, password) == ("alice", b"sec:ret")


def basic(credentials: bytes, scheme: bytes = b"Basic ") -> tuple[bytes, bytes]:
    return b"Proxy-Authorization", scheme + b64encode(credentials)


@pytest.mark.parametrize("field", [basic(b"alice:sec:ret"), basic(b"alice:sec:ret", b"bAsIc   ")])
def test_the_right_credentials_tell_the_user(field: tuple[bytes, bytes]) -> None:
    assert log_in(request(field), Login(only_alice, {"alice"})) == ("alice", ANY)


def test_a_wish_stands_behind_the_user() -> None:
    field = basic(b"customer-alice-cc-DE-sessid-x1:sec:ret")
    assert log_in(request(field), Login(only_alice, {"alice"})) == (
        "alice",
        Wish("x1", country="de"),
    )


def test_what_the_door_asks_for_everybody_counts_where_the_client_says_nothing() -> None:
    field = basic(b"alice-cc-DE:sec:ret")
    login = Login(only_alice, {"alice"}, Wish("browser-1", country="fr"))
    assert log_in(request(field), login) == ("alice", Wish("browser-1", country="de"))
    assert log_in(request(), OPEN._replace(wish=Wish("x"))) == (None, Wish("x"))


def test_an_open_door_asks_nobody() -> None:
    assert log_in(request(), OPEN) == Caller(None, ANY)
    assert log_in(request(basic(b"alice:whatever")), OPEN) == Caller(None, ANY)
    assert log_in(request((b"Proxy-Authorization", b"?")), OPEN) == Caller(None, ANY)


def test_an_open_door_reads_the_wish_of_who_gives_a_name() -> None:
    assert log_in(request(basic(b"session-x1:")), OPEN) == Caller(None, Wish("x1"))


@pytest.mark.parametrize("login", [OPEN, Login(only_alice, {"alice"})])
def test_a_wish_that_cannot_be_read_is_told_with_what_can(login: Login) -> None:
    with pytest.raises(BadParameters, match="known keys: session, sessid") as caught:
        log_in(request(basic(b"alice-session-x-contry-de:sec:ret")), login)
    assert "sec:ret" not in str(caught.value)


def test_what_is_wrong_with_a_wish_is_told_to_nobody_without_the_password() -> None:
    with pytest.raises(AuthenticationFailed, match="no user 'alice' with that password") as caught:
        log_in(request(basic(b"alice-sesion-x:guess")), Login(only_alice, {"alice"}))
    assert not isinstance(caught.value, BadParameters)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Authorization", b"Basic " + b64encode(b"alice:sec:ret"))],
        [basic(b"alice:hunter2")],
        [basic(b"Alice:sec:ret")],
        [basic(b"alicesec")],
        [basic(b"\0")],
        [basic(b"alice:sec:ret", b"Bearer ")],
        [basic(b"alice:sec:ret", b"")],
        [(b"Proxy-Authorization", b"Basic")],
        [(b"Proxy-Authorization", b"")],
        [(b"Proxy-Authorization", b"Basic hunter2!")],
        [(b"Proxy-Authorization", b"Basic \xe4\xf6")],
        [basic(b"alice:sec:ret"), basic(b"alice:sec:ret")],
    ],
)
def test_others_stay_outside_and_no_password_is_told(fields: Fields) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        log_in(request(*fields), Login(only_alice, {"alice"}))
    assert "hunter2" not in str(caught.value)
    assert "sec:ret" not in str(caught.value)


def test_a_user_name_is_utf_8_and_fit_for_a_log() -> None:
    asked: list[tuple[str, bytes]] = []

    def note(name: str, password: bytes) -> bool:
        asked.append((name, password))
        return True

    assert log_in(request(basic("zoë:grün".encode())), Login(note)).user == "zoë"
    assert log_in(request(basic(b"\xff\n:\xff")), Login(note)).user == r"\xff\n"
    assert asked == [("zoë", "grün".encode()), (r"\xff\n", b"\xff")]
