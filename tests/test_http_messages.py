"""Changes of forwarded messages, the proxy's own responses, and authentication."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from http import HTTPStatus

import h11
import pytest

from gsocks import errors
from gsocks.access.login import OPEN, Authenticator, Identity
from gsocks.address import Address
from gsocks.errors import AuthenticationFailed, BadParameters, GsocksError
from gsocks.http.forward import informational, to_client, to_origin
from gsocks.http.head import RequestTarget
from gsocks.http.status import answer_for, error_type, foreign_members, next_hop
from gsocks.inbound.http_auth import log_in
from gsocks.request import ANY, ExitSelector
from tests.support.waiting import cpu_seconds

Fields = list[tuple[bytes, bytes]]
HOST = (b"Host", b"a")


TARGET = RequestTarget(Address("a", 80), b"/")


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
    sent = to_origin(request(), RequestTarget(dest, b"/x"))
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
def test_hop_by_hop_fields_of_a_request_are_not_forwarded(name: bytes) -> None:
    assert forwarded((name, b"x")) == [CLOSE]


def test_fields_named_by_connection_are_not_forwarded() -> None:
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
def test_a_length_is_never_removed_from_a_message(option: bytes) -> None:
    length = (b"Content-Length", b"3")
    assert forwarded((b"Connection", option), length) == [length, CLOSE]
    assert returned(200, (b"Connection", option), length) == [length]


@pytest.mark.parametrize(
    ("method", "value", "passed"),
    [
        ("TRACE", b"5", b"4"),
        ("OPTIONS", b"1", b"0"),
        ("OPTIONS", b"010", b"9"),
        ("OPTIONS", b"9" * 5000, b"999999998"),
        ("GET", b"5", b"5"),  # it has no meaning there, RFC 9110 section 7.6.2
        ("TRACE", b"-1", b"-1"),
        ("TRACE", b"x", b"x"),
    ],
)
def test_max_forwards_is_decremented(method: str, value: bytes, passed: bytes) -> None:
    assert (b"max-forwards", passed) in list(
        to_origin(request((b"Max-Forwards", value), method=method), TARGET).headers
    )


def test_a_chunked_body_stays_chunked() -> None:
    assert forwarded((b"transfer-encoding", b"CHUNKED")) == [CHUNKED, CLOSE]


def test_expect_of_a_client_without_100_is_not_forwarded() -> None:
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
def test_an_upgrade_is_forwarded(fields: Fields) -> None:
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
def test_an_upgrade_that_cannot_work_is_not_forwarded(fields: Fields) -> None:
    sent = forwarded(*fields)
    assert sent[-1] == CLOSE
    assert b"upgrade" not in {name.lower() for name, _ in sent}


def test_http_1_0_has_no_upgrade() -> None:
    assert forwarded(*WEBSOCKET, version=b"1.0") == [CLOSE]


# --- responses --------------------------------------------------------------------------------


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
def test_hop_by_hop_fields_of_a_response_are_not_forwarded(name: bytes) -> None:
    assert returned(200, (name, b"x"), (b"Set-Cookie", b"a")) == [(b"Set-Cookie", b"a")]


def test_chunks_override_a_length() -> None:
    assert returned(200, (b"Content-Length", b"3"), CHUNKED) == []


@pytest.mark.parametrize(("status", "kept"), [(200, 1), (204, 0), (304, 1)])
def test_a_response_without_content_has_no_length(status: int, kept: int) -> None:
    assert len(returned(status, (b"Content-Length", b"0"))) == kept


def test_a_connection_that_is_closed_is_announced() -> None:
    assert returned(200, closing=True) == [CLOSE]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"cdn; error=dns_error", b"cdn; error=dns_error"),
        (b'a;x="y, gsocks", "b c" ;d=?1', None),
        (
            b'"a, \\"b"; c="gsocks"; n=-1.5; b=:YQ==:; t=*,d',
            b'"a, \\"b"; c="gsocks"; n=-1.5; b=:YQ==:; t=*, d',
        ),
        (b"gsocks; error=connection_refused", None),
        (b'"gsocks"; error=connection_refused', None),
        (b"GSocks", None),
        (b"a, gsocks; error=dns_error ,b; c", b"a, b; c"),
        (b'a; x="', None),
        (b'a; x="\\', None),
        (b"a,", None),
        (b", a", None),
        (b"gsocks error", None),
        (b'"g\\socks"', None),
        (b"", None),
        (b"\xe4", None),
    ],
)
def test_the_proxy_status_of_other_proxies_is_kept_and_ours_is_never_a_servers(
    sent: bytes, kept: bytes | None
) -> None:
    fields = [] if kept is None else [(b"Proxy-Status", kept)]
    assert returned(502, (b"Proxy-Status", sent)) == fields
    hints = h11.InformationalResponse(status_code=103, headers=[(b"Proxy-Status", sent)])
    assert informational(hints).headers.raw_items() == fields


def test_a_proxy_status_takes_no_long_time_however_it_is_made() -> None:
    def read(count: int, times: int) -> None:
        for _ in range(times):
            for part in (b"a; ", b'a="', b"a, ", b"a;b=c, ", b'a;b="c', b"a;b", b' ;"'):
                foreign_members(part * count)

    assert cpu_seconds(lambda: read(30_000, 1)) < 4 * cpu_seconds(lambda: read(300, 100))


def test_an_interim_response_is_forwarded() -> None:
    fields = [(b"Link", b"</a>"), (b"Connection", b"x"), (b"X", b"y"), (b"Content-Length", b"1")]
    sent = informational(h11.InformationalResponse(status_code=103, headers=fields, reason=b"Hm"))
    assert (sent.status_code, sent.reason) == (103, b"Hm")
    assert sent.headers.raw_items() == [(b"Link", b"</a>")]


def test_101_keeps_the_new_protocol() -> None:
    response = h11.InformationalResponse(status_code=101, headers=[*WEBSOCKET, (b"X", b"y")])
    assert informational(response).headers.raw_items() == [(b"X", b"y"), *PASSED]


# --- responses of the proxy itself ------------------------------------------------------------


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
def test_every_error_has_a_readable_response(kind: type[GsocksError]) -> None:
    response, body = answer_for(kind("because \N{WHITE SMILING FACE} \udcff"), closing=False)
    assert HTTPStatus(response.status_code) >= 400
    assert error_type(kind("x"))
    fields = dict(response.headers)
    assert fields[b"content-type"] == b"text/plain; charset=utf-8"
    assert int(fields[b"content-length"]) == len(body)
    assert "because \N{WHITE SMILING FACE} \\udcff" in body.decode()
    assert body.startswith(str(response.status_code).encode())
    assert (b"proxy-authenticate" in fields) is issubclass(kind, AuthenticationFailed)


@pytest.mark.parametrize("kind", [errors.LimitReached, errors.OutOfResources, errors.LoginsBusy])
def test_a_client_is_told_when_to_come_back_to_what_is_full(kind: type[GsocksError]) -> None:
    response, _ = answer_for(kind("x"), closing=False)
    assert (response.status_code, dict(response.headers)[b"retry-after"]) == (503, b"1")
    error = kind("x")
    error.retry_after = 17.2
    response, _ = answer_for(error.of("an exit"), closing=False)
    assert dict(response.headers)[b"retry-after"] == b"18"
    assert b"retry-after" not in dict(answer_for(errors.NoExit(), closing=False)[0].headers)


def test_only_a_closing_response_says_so() -> None:
    ending, _ = answer_for(errors.BadRequest(), closing=True)
    keeping, _ = answer_for(errors.Forbidden(), closing=False)
    assert (b"connection", b"close") in list(ending.headers)
    assert b"connection" not in dict(keeping.headers)


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


# --- authentication ---------------------------------------------------------------------------


def only_alice(name: str, password: bytes) -> bool:
    return (name, password) == ("alice", b"sec:ret")


def basic(credentials: bytes, scheme: bytes = b"Basic ") -> tuple[bytes, bytes]:
    return b"Proxy-Authorization", scheme + b64encode(credentials)


@pytest.mark.parametrize("field", [basic(b"alice:sec:ret"), basic(b"alice:sec:ret", b"bAsIc   ")])
def test_the_right_credentials_identify_the_user(field: tuple[bytes, bytes]) -> None:
    assert log_in(request(field), Authenticator(only_alice, {"alice"})) == ("alice", ANY)


def test_a_selector_stands_behind_the_user() -> None:
    field = basic(b"customer-alice-cc-DE-sessid-x1:sec:ret")
    assert log_in(request(field), Authenticator(only_alice, {"alice"})) == (
        "alice",
        ExitSelector("x1", country="de"),
    )


def test_the_listeners_selector_counts_where_the_client_sets_nothing() -> None:
    field = basic(b"alice-cc-DE:sec:ret")
    login = Authenticator(only_alice, {"alice"}, ExitSelector("browser-1", country="fr"))
    assert log_in(request(field), login) == ("alice", ExitSelector("browser-1", country="de"))
    assert log_in(request(), OPEN._replace(selector=ExitSelector("x"))) == (None, ExitSelector("x"))


def test_without_authentication_every_client_is_accepted() -> None:
    assert log_in(request(), OPEN) == Identity(None, ANY)
    assert log_in(request(basic(b"alice:whatever")), OPEN) == Identity(None, ANY)
    assert log_in(request((b"Proxy-Authorization", b"?")), OPEN) == Identity(None, ANY)


@pytest.mark.parametrize("fields", [[], [(b"Proxy-Authorization", b"?")], [basic(b"nameless")]])
def test_a_listener_that_asks_lets_any_name_in_but_not_none(fields: Fields) -> None:
    asking = OPEN._replace(asks=True)
    with pytest.raises(AuthenticationFailed):
        log_in(request(*fields), asking)
    assert log_in(request(basic(b"session-x1:?")), asking) == Identity(None, ExitSelector("x1"))
    assert log_in(request(basic(b":")), asking) == Identity(None, ANY)


def test_without_authentication_a_name_may_carry_a_selector() -> None:
    assert log_in(request(basic(b"session-x1:")), OPEN) == Identity(None, ExitSelector("x1"))


@pytest.mark.parametrize("login", [OPEN, Authenticator(only_alice, {"alice"})])
def test_an_invalid_selector_is_refused_with_the_known_keys(login: Authenticator) -> None:
    with pytest.raises(BadParameters, match="known keys: session, sessid") as caught:
        log_in(request(basic(b"alice-session-x-contry-de:sec:ret")), login)
    assert "sec:ret" not in str(caught.value)


def test_a_mistake_in_a_selector_is_reported_only_with_the_right_password() -> None:
    with pytest.raises(AuthenticationFailed, match="no user 'alice' with that password") as caught:
        log_in(request(basic(b"alice-sesion-x:guess")), Authenticator(only_alice, {"alice"}))
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
def test_wrong_credentials_are_refused_and_no_password_is_repeated(fields: Fields) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        log_in(request(*fields), Authenticator(only_alice, {"alice"}))
    assert "hunter2" not in str(caught.value)
    assert "sec:ret" not in str(caught.value)


def test_a_user_name_is_utf_8_and_printable() -> None:
    asked: list[tuple[str, bytes]] = []

    def note(name: str, password: bytes) -> bool:
        asked.append((name, password))
        return True

    assert log_in(request(basic("zoë:grün".encode())), Authenticator(note)).user == "zoë"
    assert log_in(request(basic(b"\xff\n:\xff")), Authenticator(note)).user == r"\xff\n"
    assert asked == [("zoë", "grün".encode()), (r"\xff\n", b"\xff")]
