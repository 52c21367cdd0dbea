"""What each answer of a proxy means, in SOCKS5, SOCKS4a and HTTP."""

from __future__ import annotations

from base64 import b64encode

import gevent
import pytest

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.request import Command, Request
from gsocks.settings import PoolSettings
from gsocks.stream import Stream
from tests.support.engine import KEY
from tests.support.proxies import Line, at_once, hang, play, stage
from tests.support.proxy_exits import (
    BOUND,
    DEST,
    IPV6_DEST,
    LOGIN,
    OK5,
    OK_HTTP,
    PARTS,
    PASSWORD,
    RFC1929,
    Part,
    asking,
    attempt,
    failure,
    http_request,
    leaves_nothing,
    request5,
    to,
)
from tests.support.stream_contract import read_to_end


def socks5_failure(*lines: Line, login: str = "", dest: Address = DEST) -> errors.GsocksError:
    part = Part("socks5", login, lines, UNSPECIFIED, dest)

    def handle(stream: Stream) -> None:
        play(stream, lines, at_once)
        hang(stream)

    with stage(handle) as proxy:
        return failure(part, proxy)


@leaves_nothing
@pytest.mark.parametrize("reply", range(1, 256))
def test_each_reply_of_socks5_is_told_as_what_it_means(reply: int) -> None:
    expected = {
        2: errors.Forbidden,
        3: errors.NetworkUnreachable,
        4: errors.HostUnreachable,
        5: errors.ConnectionRefused,
        6: errors.ConnectTimeout,
        7: errors.ExitFailed,
        8: errors.ExitDoubtful,  # a name has no address family
    }
    # two bytes are enough to know, and some proxies send no more
    error = socks5_failure(
        Line(b"\x05\x01\x00", b"\x05\x00"), Line(request5(DEST), bytes((5, reply)))
    )
    assert type(error) is expected.get(reply, errors.ExitDoubtful)
    assert str(DEST) in str(error)


@leaves_nothing
@pytest.mark.parametrize(
    ("login", "chosen", "message"),
    [
        ("", 0xFF, "wants a user name and password"),
        ("", 0x02, "wants a user name and password"),
        (LOGIN, 0xFF, "takes no user name and password"),
        (LOGIN, 0x00, "takes no user name and password"),
        (LOGIN, 0x01, "takes no user name and password"),
    ],
)
def test_a_method_that_was_not_offered_is_the_exits_failure(
    login: str, chosen: int, message: str
) -> None:
    greeting = b"\x05\x01\x02" if login else b"\x05\x01\x00"
    error = socks5_failure(Line(greeting, bytes((5, chosen))), login=login)
    assert type(error) is errors.ExitFailed
    assert message in str(error)


@leaves_nothing
@pytest.mark.parametrize("status", [1, 0xFF])
def test_a_refused_login_is_the_exits_failure(status: int) -> None:
    error = socks5_failure(
        Line(b"\x05\x01\x02", b"\x05\x02"), Line(RFC1929, bytes((1, status))), login=LOGIN
    )
    assert type(error) is errors.ExitFailed
    assert "refuses this user name and password" in str(error)


@leaves_nothing
def test_a_user_name_may_stand_without_a_password() -> None:
    lines = (
        Line(b"\x05\x01\x02", b"\x05\x02"),
        Line(b"\x01\x03bob\x00", b"\x05\x00"),  # a version that RFC 1929 doesn't know, as some do
        Line(request5(DEST), OK5),
    )
    with stage(lambda stream: play(stream, lines, at_once)) as proxy:
        attempt(Part("socks5", "bob@", lines, BOUND), proxy).abort()


@leaves_nothing
def test_a_proxy_that_speaks_http_is_recognised() -> None:
    error = socks5_failure(Line(b"\x05\x01\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert "probably an HTTP proxy" in str(error)


@leaves_nothing
@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (b"\x01\x00\x00\x00\x00\x00\x00", UNSPECIFIED),
        (b"\x04" + bytes.fromhex("20010db8") + bytes(11) + b"\x01\x00\x50", "[2001:db8::1]:80"),
        (b"\x03\x00\x00\x50", UNSPECIFIED),  # no name
        (b"\x03\x04host\x00\x50", UNSPECIFIED),  # a name is no bound address
        (b"\x03\x04ho\x00t\x00\x50", UNSPECIFIED),
        (b"\x03\x09192.0.2.1\x00\x50", "192.0.2.1:80"),
    ],
)
def test_a_bound_address_is_one_or_none(bound: bytes, expected: object) -> None:
    lines = (
        Line(b"\x05\x01\x00", b"\x05\x00"),
        Line(request5(DEST), b"\x05\x00\x00" + bound + b"payload"),
    )

    def handle(stream: Stream) -> None:
        play(stream, lines, at_once)
        hang(stream)

    with stage(handle) as proxy:
        connected = asking(f"socks5://{proxy}").connect(to(DEST))
        assert str(connected.bound) == str(expected)
        assert connected.stream.read() == b"payload"
        connected.stream.abort()


@leaves_nothing
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_request_is_sent_once_whether_the_hub_or_a_greenlet_reads_its_answer(pieces: int) -> None:
    reply = b"\x05\x00\x00" + (Address("2001:db8::9", 4660) if pieces == 1 else BOUND).encode()
    lines = Line(b"\x05\x01\x00", b"\x05\x00"), Line(request5(DEST), reply)

    def speak(stream: Stream, data: bytes) -> None:
        for piece in (data,) if data != reply or pieces == 1 else (data[:4], data[4:]):
            stream.write(piece)
            gevent.idle()

    def handle(stream: Stream) -> None:
        play(stream, lines, speak)
        stream.write(read_to_end(stream))
        stream.write_eof()

    with stage(handle) as proxy:
        stream = asking(f"socks5://{proxy}").connect(to(DEST)).stream
        stream.write(b"payload")
        stream.write_eof()
        assert read_to_end(stream) == b"payload"
        stream.close()


@leaves_nothing
def test_a_bound_address_of_an_unknown_type_is_the_exits_failure() -> None:
    error = socks5_failure(
        Line(b"\x05\x01\x00", b"\x05\x00"), Line(request5(DEST), b"\x05\x00\x00\x09" + bytes(20))
    )
    assert type(error) is errors.ExitFailed


@leaves_nothing
@pytest.mark.parametrize("reply", [0x5B, 0x5C, 0x5D, 0x00, 0x01])
def test_a_rejection_of_socks4a_tells_little(reply: int) -> None:
    part = PARTS["socks4a"]
    lines = (Line(part.lines[0].hears, bytes((0, reply)) + bytes(6)),)
    with stage(lambda stream: play(stream, lines, at_once)) as proxy:
        error = failure(part, proxy)
    # rejected or failed, which tells nothing; the others are about identd, or no answers at all
    assert type(error) is (errors.ExitDoubtful if reply == 0x5B else errors.ExitFailed)
    assert f"{reply:#04x}" in str(error)


@leaves_nothing
def test_socks4a_has_no_way_to_ipv6_addresses() -> None:
    with stage(hang) as proxy:
        error = failure(Part("socks4a", "", (), UNSPECIFIED, IPV6_DEST), proxy)
    assert type(error) is errors.AddressFamilyNotSupported
    assert "SOCKS4a has no IPv6 addresses" in str(error)


def http_failure(answer: bytes, login: str = "") -> errors.GsocksError:
    part = Part("http", login, (), UNSPECIFIED)

    def handle(stream: Stream) -> None:
        stream.read()
        stream.write(answer)
        hang(stream)

    with stage(handle) as proxy:
        return failure(part, proxy)


@leaves_nothing
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, errors.ExitFailed),
        (400, errors.ExitDoubtful),
        (401, errors.ExitFailed),  # tinyproxy, of wrong credentials
        (402, errors.ExitDoubtful),
        (403, errors.Forbidden),
        (404, errors.ExitDoubtful),  # privoxy, of a name that does not exist
        (405, errors.ExitDoubtful),
        (429, errors.ExitDoubtful),
        (500, errors.ExitDoubtful),
        (502, errors.ExitDoubtful),
        (503, errors.ExitDoubtful),
        (504, errors.ConnectTimeout),
        (599, errors.ExitDoubtful),
    ],
)
def test_each_status_is_told_as_what_it_can_mean(
    status: int, expected: type[errors.ConnectFailed]
) -> None:
    error = http_failure(f"HTTP/1.1 {status} {PASSWORD}\r\nContent-Length: 0\r\n\r\n".encode())
    assert type(error) is expected
    assert str(status) in str(error)


@leaves_nothing
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("us; error=connection_refused", errors.ConnectionRefused),
        ("us;error=connection_timeout", errors.ConnectTimeout),
        ("us; error=dns_error; rcode=NXDOMAIN", errors.NameNotFound),
        ("us; received-status=502; error = dns_timeout", errors.HostUnreachable),
        ("us; error=destination_ip_unroutable", errors.NetworkUnreachable),
        ("us; error=destination_ip_prohibited", errors.Forbidden),
        ("us; error=http_request_denied", errors.Forbidden),
        (
            "far; error=connection_refused, near; error=proxy_internal_error",
            errors.ConnectionRefused,
        ),
        ("us; error=proxy_internal_error", errors.ExitDoubtful),
        ("us; error=destination_unavailable", errors.ExitDoubtful),  # it may be one of its exits
        ("us; error=connection_limit_reached", errors.ExitDoubtful),
        ("us", errors.ExitDoubtful),
    ],
)
def test_proxy_status_says_more_than_the_status(
    field: str, expected: type[errors.ConnectFailed]
) -> None:
    error = http_failure(f"HTTP/1.1 502 no\r\nServer: us\r\nProxy-Status: {field}\r\n\r\n".encode())
    assert type(error) is expected


@leaves_nothing
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 111", errors.ConnectionRefused),
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 101", errors.NetworkUnreachable),
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 113", errors.HostUnreachable),
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 110", errors.ConnectTimeout),
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 24", errors.ExitDoubtful),
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 99999", errors.ExitDoubtful),
        ("503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL", errors.ExitDoubtful),
        ("503 x\r\nX-Squid-Error: ERR_DNS_FAIL 0", errors.NameNotFound),
        ("500 x\r\nX-Squid-Error: ERR_CANNOT_FORWARD 0", errors.ExitDoubtful),
        ("403 x\r\nX-Squid-Error: ERR_ACCESS_DENIED 0", errors.Forbidden),
        ("503 x\r\nX-Squid-Error: ERR_CACHE_ACCESS_DENIED 0", errors.ExitFailed),
        ("590 UPSTREAM403", errors.Forbidden),
        ("590 UPSTREAM407", errors.ExitFailed),
        ("590 UPSTREAM503", errors.ExitDoubtful),
        ("590 UPSTREAM404", errors.ExitDoubtful),
        ("590 UPSTREAM", errors.ExitDoubtful),
        ("594 ECONNREFUSED", errors.ExitFailed),
        ("597 UPSTREAM407", errors.ExitFailed),
        ("599 Socks5 proxy rejected connection - ConnectionRefused", errors.ConnectionRefused),
        ("599 Socks5 proxy rejected connection - NetworkUnreachable", errors.NetworkUnreachable),
        ("599 Socks5 proxy rejected connection - HostUnreachable", errors.HostUnreachable),
        ("599 Socks5 proxy rejected connection - TTLExpired", errors.ConnectTimeout),
        ("599 Socks5 proxy rejected connection - NotAllowed", errors.Forbidden),
        ("599 Socks5 proxy rejected connection - Failure", errors.ExitDoubtful),
    ],
)
def test_the_precise_words_of_a_proxy_are_read(
    said: str, expected: type[errors.ConnectFailed]
) -> None:
    """As squid 5.7 and proxy-chain 3.0.1 say them."""
    error = http_failure(f"HTTP/1.1 {said}\r\nContent-Length: 0\r\n\r\n".encode())
    assert type(error) is expected
    assert str(DEST) in str(error)


@leaves_nothing
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_family_that_a_socks5_proxy_does_not_serve_is_told(host: str) -> None:
    dest = Address(host, 443)
    error = socks5_failure(
        Line(b"\x05\x01\x00", b"\x05\x00"), Line(request5(dest), b"\x05\x08"), dest=dest
    )
    assert type(error) is errors.AddressFamilyNotSupported


@leaves_nothing
@pytest.mark.parametrize(("login", "words"), [("", "a user and a pass"), (LOGIN, "other cred")])
def test_a_proxy_that_asks_for_credentials_is_the_exits_failure(login: str, words: str) -> None:
    error = http_failure(
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nProxy-Status: a; error=dns_error\r\n\r\n",
        login,
    )
    assert type(error) is errors.ExitFailed
    assert f"requires {words}" in str(error)


@leaves_nothing
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks4a", "gsocks"])
def test_a_proxy_that_another_party_has_named_is_reached_at_public_addresses_only(
    scheme: str,
) -> None:
    key = f"{KEY.text()}@" if scheme == "gsocks" else ""
    with stage(lambda stream: pytest.fail("it was reached")) as proxy:
        url = f"{scheme}://{key}localhost:{proxy.port}"
        for options in ({}, {"via": ExitSpec.parse(f"http://localhost:{proxy.port}")}):
            spec = ExitSpec.parse(url, given={"public": True, **options})
            exit_ = make_exit(spec, ExitDeps(ALLOW_ALL, pool=PoolSettings(size=0)))
            with pytest.raises(errors.ExitFailed, match="deny private"):
                exit_.connect(Request(Command.CONNECT, DEST))
            exit_.close()


@leaves_nothing
def test_credentials_are_utf8() -> None:
    credentials = b64encode("Jörg:pässwörd".encode()).decode()
    lines = (Line(http_request(DEST, credentials), OK_HTTP),)
    with stage(lambda stream: play(stream, lines, at_once)) as proxy:
        attempt(Part("http", "J%C3%B6rg:pässwörd@", lines, UNSPECIFIED), proxy).abort()


@leaves_nothing
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 200 OK\nServer : x\nX Y: z\n\n",
        b"HTTP/1.1 200 OK\r\n" + b"Set-Cookie: " + b"y" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 204 Fine\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 100 Wait\r\n\r\nHTTP/1.1 103 Not yet\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_any_2xx_is_a_success_whatever_its_head_says_of_a_body(answer: bytes) -> None:
    lines = (Line(http_request(DEST), answer + b"12345678"),)

    def handle(stream: Stream) -> None:
        play(stream, lines, at_once)
        stream.write_eof()
        hang(stream)

    with stage(handle) as proxy:
        stream = attempt(Part("http", "", lines, UNSPECIFIED), proxy)
        assert read_to_end(stream) == b"12345678"
        stream.abort()
