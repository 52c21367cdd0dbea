"""The exits: real proxies, honest ones, and those that fail at every step in every way."""

from __future__ import annotations

import os
import random
import socket as std_socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest
import trustme
from gevent.event import AsyncResult, Event
from gevent.select import select
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, DEFAULT_RULES
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits import Exit, ExitDeps, ExitSpec, make_exit, trust
from gsocks.exits.base import Connected
from gsocks.exits.chain import Chain, Detour
from gsocks.exits.direct import SourceNetwork
from gsocks.exits.handshake import resumed
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.proxy_attempt import ProxyAttempt
from gsocks.exits.socks import Socks5Exit
from gsocks.exits.spec import SCHEMES
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.net.resolve import Resolver
from gsocks.net.tls import TlsStream
from gsocks.request import Command, Request
from gsocks.settings import PoolSettings, Timeouts
from gsocks.stream import (
    Bytes,
    ScratchBuffers,
    SocketStream,
    Stream,
    reset,
    scratch_of_this_hub,
)
from tests.support.engine import KEY, FakeExit, digest, echo, make_server, serving
from tests.support.names import NamesBy
from tests.support.ports import free_port
from tests.support.proxies import (
    Line,
    Speak,
    UpTo,
    at_once,
    authority,
    byte_by_byte,
    certified,
    dante,
    hang,
    honest,
    microsocks,
    play,
    stage,
    tinyproxy,
    trusting,
    unreachable,
)
from tests.support.stream_contract import StreamContract, read_to_end, tcp_pair

#: for all but the streams' contract, whose own greenlets end by exceptions
leaves_nothing = pytest.mark.usefixtures("never_hangs", "nothing_left", "each_way")

DEST = Address("host.example", 443)
IPV4_DEST = Address("192.0.2.7", 443)
IPV6_DEST = Address("2001:db8::7", 443)
BOUND = Address("198.51.100.9", 4660)
PASSWORD = "v3ry s3cr3t"


def no_names(host: str) -> list[str]:
    raise AssertionError(f"{host} was looked up here")


def deps(connect: float = 20.0, reach: float = 20.0) -> ExitDeps:
    return ExitDeps(
        ALLOW_ALL,
        Resolver(NamesBy(no_names)),
        timeouts=Timeouts(connect=connect, exit=reach),
        trust=trusting,
    )


def asking(url: str, **options: float) -> Exit:
    return make_exit(ExitSpec.parse(url), deps(**options))


@pytest.fixture(params=["greenlet", "hub"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies are asked by a greenlet, or by the hub where that is possible."""
    if request.param == "hub":
        monkeypatch.setattr(ProxyExit, "connect", connect_by_hub)


connect_by_greenlet = ProxyExit.connect


def connect_by_hub(way: ProxyExit, request: Request) -> Connected:
    """What the hub makes of a request; or a greenlet, if it has to."""
    done: AsyncResult[Connected] = AsyncResult()

    def tell(made: Connected | errors.GsocksError) -> None:
        assert gevent.getcurrent() is gevent.get_hub()
        if isinstance(made, errors.GsocksError):
            done.set_exception(made)
        else:
            done.set(made)

    attempt = way.begin(request, tell)
    if attempt is None:
        return connect_by_greenlet(way, request)
    try:
        connected = done.get()
        assert connected is not None
        return connected
    finally:
        attempt.cancel()


def to(dest: Address) -> Request:
    return Request(Command.CONNECT, dest)


def request5(dest: Address) -> bytes:
    return b"\x05\x01\x00" + dest.encode()


def http_request(dest: Address, credentials: str = "") -> bytes:
    login = f"Proxy-Authorization: Basic {credentials}\r\n" if credentials else ""
    return f"CONNECT {dest} HTTP/1.1\r\nHost: {dest}\r\n{login}\r\n".encode()


# --- what a good proxy hears and says ---------------------------------------------------------


class Part(NamedTuple):
    """A conversation that ends well, if nothing spoils it."""

    #: the exit, without the proxy's address
    scheme: str
    login: str
    lines: tuple[Line, ...]
    bound: Address
    dest: Address = DEST

    def url(self, proxy: Address) -> str:
        return f"{self.scheme}://{self.login}{proxy}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        return certified("127.0.0.1") if self.scheme == "https" else None

    @property
    def length(self) -> int:
        """Bytes that the proxy says."""
        return sum(len(line.says) for line in self.lines)


_LOGIN = "al%40ice:v3ry%20s3cr3t@"
_BASIC = b64encode(f"al@ice:{PASSWORD}".encode()).decode()
_RFC1929 = b"\x01\x06al@ice\x0b" + PASSWORD.encode()
_OK5 = b"\x05\x00\x00" + BOUND.encode()
_OK_HTTP = b"HTTP/1.1 200 Connection established\r\nProxy-agent: us\r\n\r\n"

PARTS = {
    "socks5": Part(
        "socks5", "", (Line(b"\x05\x01\x00", b"\x05\x00"), Line(request5(DEST), _OK5)), BOUND
    ),
    "socks5 with a login": Part(
        "socks5",
        _LOGIN,
        (
            Line(b"\x05\x01\x02", b"\x05\x02"),
            Line(_RFC1929, b"\x01\x00"),
            Line(request5(IPV6_DEST), _OK5),
        ),
        BOUND,
        IPV6_DEST,
    ),
    "socks4a": Part(
        "socks4a",
        "bob@",
        (
            Line(
                b"\x04\x01\x01\xbb\x00\x00\x00\x01bob\x00host.example\x00",
                b"\x00\x5a\x12\x34" + bytes((198, 51, 100, 9)),
            ),
        ),
        BOUND,
    ),
    "socks4a with an address": Part(
        "socks4a",
        "",
        (Line(b"\x04\x01\x01\xbb\xc0\x00\x02\x07\x00", b"\x00\x5a" + bytes(6)),),
        UNSPECIFIED,
        IPV4_DEST,
    ),
    "http": Part("http", "", (Line(http_request(DEST), _OK_HTTP),), UNSPECIFIED),
    "http with a login": Part(
        "http", _LOGIN, (Line(http_request(IPV6_DEST, _BASIC), _OK_HTTP),), UNSPECIFIED, IPV6_DEST
    ),
    "https": Part("https", "", (Line(http_request(DEST), _OK_HTTP),), UNSPECIFIED),
    "https with a login": Part(
        "https", _LOGIN, (Line(http_request(DEST, _BASIC), _OK_HTTP),), UNSPECIFIED
    ),
}

every_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
#: those with TLS are left to greenlets
BY_HUB = {name: part for name, part in PARTS.items() if not name.startswith("https")}
every_part_by_hub = pytest.mark.parametrize("part", BY_HUB.values(), ids=BY_HUB)


def attempt(part: Part, proxy: Address, **options: float) -> Stream:
    connected = asking(part.url(proxy), **options).connect(to(part.dest))
    assert connected.bound == part.bound
    return connected.stream


def failure(part: Part, proxy: Address, **options: float) -> errors.GsocksError:
    """Why the exit failed, in words that hide the password."""
    with pytest.raises(errors.GsocksError) as caught:
        attempt(part, proxy, **options)
    assert PASSWORD not in str(caught.value)
    assert str(proxy) in str(caught.value)
    return caught.value


@leaves_nothing
@every_part
@pytest.mark.parametrize("speak", [at_once, byte_by_byte])
def test_a_proxy_is_understood_however_its_words_arrive(part: Part, speak: Speak) -> None:
    def handle(stream: Stream) -> None:
        play(stream, part.lines, speak)
        data = read_to_end(stream)
        stream.write(data[::-1])
        stream.write_eof()

    with stage(handle, part.tls) as proxy:
        stream = attempt(part, proxy)
        stream.write(b"payload")
        stream.write_eof()
        assert read_to_end(stream) == b"daolyap"
        stream.close()


@leaves_nothing
@every_part
def test_payload_that_comes_with_the_reply_is_not_lost(part: Part) -> None:
    def speak(stream: Stream, data: bytes) -> None:
        stream.write(data + b"SSH-2.0-first words" if data == part.lines[-1].says else data)

    def handle(stream: Stream) -> None:
        play(stream, part.lines, speak)
        stream.write_eof()
        read_to_end(stream)

    with stage(handle, part.tls) as proxy:
        stream = attempt(part, proxy)
        assert read_to_end(stream) == b"SSH-2.0-first words"
        stream.write_eof()
        stream.close()


@leaves_nothing
@every_part_by_hub
def test_a_proxy_that_answers_as_hoped_for_is_asked_without_a_greenlet(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_greenlet(*_: object) -> None:
        raise AssertionError("a greenlet takes over")

    monkeypatch.setattr(ProxyAttempt, "go_on", no_greenlet)
    with stage(lambda stream: play(stream, part.lines, at_once)) as proxy:
        exit_ = asking(part.url(proxy))
        assert isinstance(exit_, ProxyExit)
        connected = connect_by_hub(exit_, to(part.dest))
        assert connected.bound == part.bound
        connected.stream.abort()


@leaves_nothing
@every_part_by_hub
@pytest.mark.parametrize("at", ["the connection", "an answer"])
def test_a_cancelled_attempt_is_not_told_and_leaves_nothing(part: Part, at: str) -> None:
    asked, hung_up = Event(), Event()

    def handle(stream: Stream) -> None:
        lines = (Line(part.lines[0].hears, part.lines[0].says[:1]),)
        play(stream, lines, at_once)
        asked.set()
        try:
            stream.read()
        except errors.StreamError:
            pass
        hung_up.set()

    with stage(handle) as proxy:
        exit_ = asking(part.url(proxy))
        assert isinstance(exit_, ProxyExit)
        attempt = exit_.begin(to(part.dest), lambda _: pytest.fail("was told"))
        assert attempt is not None
        if at == "an answer":
            asked.wait()
            gevent.sleep(0)
        attempt.cancel()
        attempt.cancel()
        if at == "an answer":
            hung_up.wait()


@leaves_nothing
@every_part
@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_proxy_that_hangs_up_anywhere_is_the_exits_failure(part: Part, end: str) -> None:
    def hang_up(stream: Stream) -> None:
        if end == "RST":
            stream.abort()

    for said in range(part.length):

        def handle(stream: Stream, said: int = said) -> None:
            play(stream, part.lines, UpTo(said, then=hang_up))

        # once it was asked, it may be the destination's failure that is told so
        asked = said >= part.length - len(part.lines[-1].says)
        with stage(handle, part.tls) as proxy:
            expected = errors.ExitHungUp if asked else errors.ExitFailed
            assert type(failure(part, proxy)) is expected


@leaves_nothing
@every_part
def test_a_proxy_that_falls_silent_has_failed_by_itself_unless_it_was_asked(part: Part) -> None:
    with ExitStack() as stages:
        attempts = []
        for said in range(part.length):

            def handle(stream: Stream, said: int = said) -> None:
                play(stream, part.lines, UpTo(said, then=hang))

            proxy = stages.enter_context(stage(handle, part.tls))
            attempts.append(gevent.spawn(failure, part, proxy, connect=1.0))
        for said, each in enumerate(gevent.joinall(attempts, raise_error=True)):
            # once it was asked, it may be waiting for a destination that is silent
            asked = said >= part.length - len(part.lines[-1].says)
            expected = errors.ExitDoubtful if asked else errors.ExitFailed
            assert type(each.value) is expected
            assert "no answer within 1 s" in str(each.value)


@leaves_nothing
@pytest.mark.parametrize("step", ["greeting", "login"])
def test_the_socks5_handshake_has_the_bound_of_the_exit_itself(step: str) -> None:
    with stage(lambda stream: play(stream, lines, at_once)) as proxy:
        lines = [Line(b"\x05\x01\x02", b"")]
        if step == "login":
            lines = [Line(b"\x05\x01\x02", b"\x05\x02"), Line(_RFC1929, b"")]
        lines.append(Line(b"never comes", b""))
        with pytest.raises(errors.ExitFailed, match=r"no handshake within 0\.3 s") as caught:
            asking(f"socks5://{_LOGIN}{proxy}", reach=0.3).connect(to(DEST))
    assert type(caught.value) is errors.ExitFailed


@leaves_nothing
@pytest.mark.parametrize("url", ["socks5://{}", "socks4a://{}", "http://{}", "https://{}"])
def test_a_proxy_whose_tcp_handshake_never_ends_has_failed_by_itself(url: str) -> None:
    with unreachable() as proxy, pytest.raises(errors.ExitFailed) as caught:
        asking(url.format(proxy), connect=20.0, reach=0.2).connect(to(DEST))
    assert type(caught.value) is errors.ExitFailed
    assert "no answer within 0.2 s" in str(caught.value)


@leaves_nothing
def test_a_tls_handshake_that_never_ends_is_the_proxys_own_failure() -> None:
    with stage(hang) as proxy, pytest.raises(errors.ExitFailed) as caught:
        asking(f"https://{proxy}", reach=0.2).connect(to(DEST))
    assert type(caught.value) is errors.ExitFailed
    assert "no handshake within 0.2 s" in str(caught.value)


@leaves_nothing
def test_the_first_hop_of_a_chain_has_the_same_bound_and_so_has_a_gsocks_server() -> None:
    with unreachable() as proxy:
        for last in ("socks5://192.0.2.1:1080", f"gsocks://{KEY.text()}@192.0.2.1:8388"):
            spec = ExitSpec.parse({"url": last, "via": f"http://{proxy}"})
            chain = make_exit(spec, deps(reach=0.2))
            with pytest.raises(errors.ExitFailed, match=r"no answer within 0\.2 s") as caught:
                chain.connect(to(DEST))
            assert type(caught.value) is errors.ExitFailed
            chain.close()
        server = asking(f"gsocks://{KEY.text()}@{proxy}", reach=0.2)
        with pytest.raises(errors.ExitFailed, match=r"no answer (in|within) 0\.2 s"):
            server.connect(to(DEST))
        server.close()


def test_no_exit_has_longer_to_be_reached_than_a_request_has() -> None:
    assert deps(connect=2.0, reach=3.0).reach_timeout == 2.0
    assert deps(connect=20.0, reach=3.0).reach_timeout == 3.0


@leaves_nothing
@every_part
def test_killed_anywhere_it_leaves_nothing(part: Part) -> None:
    for said in range(part.length):
        silent = Event()

        def handle(stream: Stream, said: int = said, silent: Event = silent) -> None:
            def fall_silent(stream: Stream) -> None:
                silent.set()
                hang(stream)

            play(stream, part.lines, UpTo(said, then=fall_silent))

        with stage(handle, part.tls) as proxy:
            attempting = gevent.spawn(attempt, part, proxy)
            silent.wait()
            attempting.kill()


@leaves_nothing
@every_part
def test_the_callers_timeout_passes_through(part: Part) -> None:
    with (
        stage(hang, part.tls) as proxy,
        pytest.raises(gevent.Timeout) as caught,
        gevent.Timeout(0.05) as ours,
    ):
        attempt(part, proxy)
    assert caught.value is ours


@leaves_nothing
@every_part
def test_a_proxy_that_is_not_there_is_the_exits_failure(part: Part) -> None:
    error = failure(part, Address("127.0.0.1", free_port()))
    assert type(error) is errors.ExitFailed
    assert "Connection refused" in str(error)


@leaves_nothing
@pytest.mark.parametrize("lack", [errors.OutOfResources, errors.LimitReached])
def test_what_this_machine_lacks_is_not_the_exits_failure(lack: type[errors.ConnectFailed]) -> None:
    proxy, through = Address("127.0.0.1", 1), FakeExit("direct", lack("no descriptor is left"))
    ways: list[Exit] = [
        Socks5Exit(proxy, through, label="socks5"),
        TunnelExit(proxy, KEY, Detour(through, Timeouts())),
    ]
    for way in ways:
        with pytest.raises(lack):
            way.connect(to(DEST))
        way.close()


_GARBAGE = {
    "an HTTP server": b"HTTP/1.1 301 Moved\r\nContent-Length: 3\r\n\r\nno\n",
    "an SSH server": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS server": bytes.fromhex("15030100020246"),
    "zeros": bytes(400),
    "ones": b"\xff" * 400,
    "an endless line": b"HTTP/1.1 200 " + b"x" * 100_000,
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"X-More: of this\r\n" * 10_000,
    "what costs h11 a second for each KiB": (
        b"HTTP/1.1 200 OK\r\nX:" + b" " * 12_000 + b"\0\r\n\r\n"
    ),
    "endless patience": b"HTTP/1.1 100 Wait\r\n\r\n" * 10_000,
    "noise": random.Random(1).randbytes(400),
    "a SOCKS5 server": b"\x05\x07",
}


@leaves_nothing
@every_part
@pytest.mark.parametrize("garbage", _GARBAGE.values(), ids=_GARBAGE)
def test_garbage_is_the_exits_failure(part: Part, garbage: bytes) -> None:
    def handle(stream: Stream) -> None:
        stream.write(garbage)
        hang(stream)

    with stage(handle, part.tls) as proxy:
        assert type(failure(part, proxy)) is errors.ExitFailed


@leaves_nothing
@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_success_that_was_a_lie_is_an_end_of_the_stream(end: str) -> None:
    def handle(stream: Stream) -> None:
        play(stream, PARTS["socks5"].lines, at_once)
        if end == "RST":
            stream.abort()

    with stage(handle) as proxy:
        stream = attempt(PARTS["socks5"], proxy)
        if end == "RST":
            with pytest.raises(errors.StreamReset):
                stream.read()
        else:
            assert stream.read() == b""
        stream.close()


def test_nothing_that_stands_for_an_exit_shows_its_password() -> None:
    for part in PARTS.values():
        way = asking(part.url(Address("127.0.0.1", 1)))
        assert PASSWORD not in repr(way) + way.label
        assert _BASIC not in repr(way)


# --- SOCKS5 -----------------------------------------------------------------------------------


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
        (_LOGIN, 0xFF, "takes no user name and password"),
        (_LOGIN, 0x00, "takes no user name and password"),
        (_LOGIN, 0x01, "takes no user name and password"),
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
        Line(b"\x05\x01\x02", b"\x05\x02"), Line(_RFC1929, bytes((1, status))), login=_LOGIN
    )
    assert type(error) is errors.ExitFailed
    assert "refuses this user name and password" in str(error)


@leaves_nothing
def test_a_user_name_may_stand_without_a_password() -> None:
    lines = (
        Line(b"\x05\x01\x02", b"\x05\x02"),
        Line(b"\x01\x03bob\x00", b"\x05\x00"),  # a version that RFC 1929 doesn't know, as some do
        Line(request5(DEST), _OK5),
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


# --- SOCKS4a ----------------------------------------------------------------------------------


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


# --- HTTP -------------------------------------------------------------------------------------


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
@pytest.mark.parametrize(("login", "words"), [("", "a user and a pass"), (_LOGIN, "other cred")])
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
    lines = (Line(http_request(DEST, credentials), _OK_HTTP),)
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


# --- TLS --------------------------------------------------------------------------------------


def tls_pair(
    near: Stream, far: Stream, server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[TlsStream, TlsStream]:
    secured, accepting = TlsStream(near, client, "127.0.0.1"), TlsStream(far, server, None)
    handshake = gevent.spawn(accepting.handshake)
    secured.handshake()
    handshake.get()
    return secured, accepting


class TestTlsStream(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TlsStream, TlsStream]]:
        near, far = map(SocketStream, tcp_pair())
        pair = tls_pair(near, far, certified("127.0.0.1"), trusting())
        yield pair
        for stream in pair:
            stream.close()


class CountedReads(SocketStream):
    """Counts its reads."""

    count = 0

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        self.count += 1
        return super().read_nowait(scratch)


def test_tickets_without_end_are_read_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    context = certified("127.0.0.1")  # which others use as well
    monkeypatch.setattr(context, "num_tickets", 1500)  # some 380 kB
    near, far = tcp_pair()
    below = CountedReads(near)
    client, server = tls_pair(below, SocketStream(far), context, trusting())
    scratch = scratch_of_this_hub()
    writing = gevent.spawn(server.write, b"x")
    turns = 0
    while True:
        select([near], [], [])
        below.count = 0
        data = client.read_nowait(scratch)
        assert below.count <= 1
        if data is not None:
            break
        turns += 1
    assert bytes(data) == b"x"
    assert turns > 1
    writing.get()
    client.abort()
    server.abort()


class TestTlsStreamAtTheServersEnd(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TlsStream, TlsStream]]:
        near, far = map(SocketStream, tcp_pair(buffer=4096))
        client, server = tls_pair(near, far, certified("127.0.0.1"), trusting())
        yield server, client
        client.close()
        server.close()

    big = 2 * 1024 * 1024


class TestTls12Stream(StreamContract):
    @pytest.fixture
    def pair(self) -> Iterator[tuple[TlsStream, TlsStream]]:
        near, far = map(SocketStream, tcp_pair())
        context = ssl.create_default_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        authority().configure_trust(context)
        pair = tls_pair(near, far, certified("127.0.0.1"), context)
        yield pair
        for stream in pair:
            stream.close()


class TestResumedStream(StreamContract):
    """A stream of which something was read ahead, and has been read again since."""

    @pytest.fixture
    def pair(self) -> Iterator[tuple[Stream, Stream]]:
        near, far = map(SocketStream, tcp_pair())
        pair = resumed(near, b"ahead"), resumed(far, b"ahead")
        assert [stream.read() for stream in pair] == [b"ahead", b"ahead"]
        yield pair
        for stream in pair:
            stream.close()


@leaves_nothing
def test_what_was_read_ahead_is_read_first_and_goes_with_the_stream() -> None:
    near, far = map(SocketStream, tcp_pair())
    far.write(b" and more")
    far.write_eof()
    stream = resumed(near, b"ahead")
    assert read_to_end(stream) == b"ahead and more"
    far.abort()
    near.abort()
    near, far = map(SocketStream, tcp_pair())
    stream = resumed(near, b"ahead")
    stream.write_eof()
    stream.close()  # unread, so this is no clean end
    with pytest.raises(errors.StreamError):
        read_to_end(far)
        far.write(b"x")
        far.read()
    with pytest.raises(errors.StreamClosed):
        stream.read()
    far.abort()


def test_nothing_read_ahead_leaves_the_stream_as_it_is() -> None:
    near, far = map(SocketStream, tcp_pair())
    assert resumed(near, b"") is near
    near.abort()
    far.abort()


@leaves_nothing
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_another_implementation_of_tls_sees_our_end_and_we_see_its(version: str) -> None:
    """The standard library's own sockets, in a thread of their own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    sent = os.urandom(1_000_000)
    with std_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> tuple[str | None, bytes]:
            sock, _ = listener.accept()
            with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
                data = b""
                while part := tls.recv(65536):
                    data += part
                name = tls.version()
                tls.sendall(data)
                tls.unwrap()
                return name, data

        serving_it = gevent.get_hub().threadpool.spawn(serve)
        stream = TlsStream(connected(listener.getsockname()), trusting(), "127.0.0.1")
        stream.handshake()
        stream.write(sent)
        stream.write_eof()
        assert read_to_end(stream) == sent
        stream.close()
        served = serving_it.get()
    assert served is not None
    name, received = served
    assert received == sent
    assert name == version.replace("_", ".")


def connected(to: tuple[str, int]) -> SocketStream:
    sock = socket()
    sock.connect(to)
    return SocketStream(sock)


@leaves_nothing
@pytest.mark.parametrize("cut", ["FIN", "RST", "garbage"])
def test_tls_that_ends_without_its_end_is_a_failure(cut: str) -> None:
    near, far = map(SocketStream, tcp_pair())
    stream, other = tls_pair(near, far, certified("127.0.0.1"), trusting())
    other.write(b"something")
    if cut == "FIN":
        far.write_eof()
    assert stream.read() == b"something"
    if cut == "RST":
        far.abort()
    elif cut == "garbage":
        far.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    kind = {"FIN": errors.Truncated, "RST": errors.StreamReset, "garbage": errors.TlsFailed}
    with pytest.raises(kind[cut]) as caught:
        stream.read()
    assert type(caught.value) is kind[cut]
    stream.abort()
    far.abort()


@leaves_nothing
def test_after_its_end_tls_takes_no_more_data() -> None:
    near, far = map(SocketStream, tcp_pair())
    stream, other = tls_pair(near, far, certified("127.0.0.1"), trusting())
    stream.write_eof()
    with pytest.raises(errors.StreamError):
        stream.write(b"too late")
    stream.abort()
    other.abort()


@leaves_nothing
def test_a_far_end_that_does_not_close_is_waited_for_behind_the_scene(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.net.tls.CLOSE_GRACE", 0.05)
    near, far = map(SocketStream, tcp_pair())
    context = certified("127.0.0.1")
    stream, other = tls_pair(near, far, context, trusting())
    stream.write_eof()
    assert other.read() == b""
    other._engine.unwrap()  # close_notify without the end of the connection
    other._send_made()
    assert stream.read() == b""
    stream.close()
    with pytest.raises(errors.StreamReset):  # after a while
        while True:
            far.read()
            far.write(b"x")
            gevent.sleep(0.001)  # as a peer that sends little by little
    far.abort()


@leaves_nothing
def test_a_far_end_that_resets_behind_its_end_does_no_harm() -> None:
    near, far = map(SocketStream, tcp_pair())
    stream, other = tls_pair(near, far, certified("127.0.0.1"), trusting())
    stream.write_eof()
    assert other.read() == b""
    other._engine.unwrap()
    other._send_made()
    assert stream.read() == b""
    far.abort()
    stream.close()


@leaves_nothing
def test_tls_can_not_end_before_it_has_begun() -> None:
    near, far = map(SocketStream, tcp_pair())
    stream = TlsStream(near, trusting(), "127.0.0.1")
    with pytest.raises(errors.StreamError, match="TLS failed"):
        stream.write_eof()
    stream.abort()
    far.abort()


class Deaf(SocketStream):
    """A stream that takes one write, and no more."""

    def write(self, data: bytes) -> None:
        super().write(data)
        self.write = self.refuse  # type: ignore[method-assign]

    def refuse(self, data: bytes) -> None:
        raise errors.StreamReset("connection reset by peer")


@leaves_nothing
def test_a_distrusted_far_end_that_is_gone_is_still_told_of_as_distrusted() -> None:
    near, far = tcp_pair()
    accepting = gevent.spawn(tls_server(certified("127.0.0.2")), far)
    stream = TlsStream(Deaf(near), trusting(), "127.0.0.1")
    with pytest.raises(errors.StreamError, match="can't be trusted"):
        stream.handshake()
    stream.abort()
    accepting.join()
    far.close()


def https_failure(handle: Callable[[socket], object], host: str = "127.0.0.1") -> str:
    with serving(handle) as address:
        way = asking(f"https://al:{PASSWORD.replace(' ', '%20')}@{host}:{address.port}")
        with pytest.raises(errors.ExitFailed) as caught:
            way.connect(to(DEST))
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def tls_server(context: ssl.SSLContext) -> Callable[[socket], None]:
    def handle(sock: socket) -> None:
        stream = TlsStream(SocketStream(sock), context, None)
        try:
            stream.handshake()
            hang(stream)
        except errors.StreamError:
            pass  # the exit has hung up

    return handle


@leaves_nothing
def test_a_certificate_for_another_host_is_refused() -> None:
    assert "can't be trusted: IP address mismatch" in https_failure(
        tls_server(certified("127.0.0.2", "localhost"))
    )


@leaves_nothing
def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    told: AsyncResult[str] = AsyncResult()

    def handle(sock: socket) -> None:
        with pytest.raises(errors.StreamError) as caught:
            TlsStream(SocketStream(sock), context, None).handshake()
        told.set(str(caught.value))

    assert "can't be trusted: " in https_failure(handle)
    assert told.get() == "TLS failed: tlsv1 alert unknown ca"


@leaves_nothing
@pytest.mark.parametrize("says", [b"HTTP/1.1 400 no\r\n\r\n", b"\x05\xff", bytes(100), b"\x15\x03"])
def test_what_speaks_no_tls_is_the_exits_failure(says: bytes) -> None:
    def handle(sock: socket) -> None:
        sock.recv(65536)
        sock.sendall(says)
        sock.shutdown(std_socket.SHUT_WR)
        sock.recv(65536)

    message = https_failure(handle)
    assert "speak TLS" in message or "ended without the end of TLS" in message


@leaves_nothing
def test_tls_is_told_for_whom_it_is_meant() -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("proxy.example").configure_cert(context)
    context.sni_callback = lambda _, name, __: names.append(name)
    spec = ExitSpec.parse("https://proxy.example:8443")
    with serving(tls_server(context)) as address:
        named = ExitDeps(
            ALLOW_ALL,
            Resolver(NamesBy(lambda _: ["127.0.0.1"])),
            timeouts=Timeouts(connect=0.3),
            trust=trusting,
        )
        spec = ExitSpec.parse(f"https://proxy.example:{address.port}")
        with pytest.raises(errors.ExitFailed, match="no answer"):
            make_exit(spec, named).connect(to(DEST))
    assert names == ["proxy.example"]


def test_https_trusts_the_systems_authorities_and_checks_names() -> None:
    context = trust()
    assert context is trust()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


# --- real ones --------------------------------------------------------------------------------


def ask_echo(way: Exit, echo_at: Address, size: int = 300_000) -> Address:
    """Send random bytes through the exit to an echo server, and see them come back."""
    connected = way.connect(to(echo_at))
    stream, data = connected.stream, os.urandom(size)
    writer = gevent.spawn(stream.write, data)
    received = b""
    while len(received) < size:
        part = stream.read()
        assert part, "the stream ended early"
        received += part
    assert digest(received) == digest(data)
    writer.get()
    stream.abort()
    return connected.bound


def refused(way: Exit) -> type[errors.GsocksError]:
    with pytest.raises(errors.ConnectFailed) as caught:
        way.connect(to(Address("127.0.0.1", free_port())))
    assert "secret" not in str(caught.value)
    return type(caught.value)


@leaves_nothing
def test_microsocks_serves_and_tells_a_refusal(echo_server: Address) -> None:
    with microsocks() as proxy:
        way = asking(f"socks5://{proxy}")
        ask_echo(way, echo_server)
        assert refused(way) is errors.ConnectionRefused
        with pytest.raises(errors.ExitFailed, match="takes no user name"):
            asking(f"socks5://alice:secret@{proxy}").connect(to(echo_server))


@leaves_nothing
def test_microsocks_with_a_login_serves_those_who_know_it(echo_server: Address) -> None:
    with microsocks("alice", "secret") as proxy:
        ask_echo(asking(f"socks5://alice:secret@{proxy}"), echo_server)
        for login in ("alice:secrets@", "bob:secret@", "alice@", ""):
            assert refused(asking(f"socks5://{login}{proxy}")) is errors.ExitFailed


@leaves_nothing
def test_microsocks_resolves_the_names(echo_server: Address) -> None:
    with microsocks() as proxy:
        ask_echo(asking(f"socks5://{proxy}"), Address("localhost", echo_server.port))


@leaves_nothing
@pytest.mark.parametrize("scheme", ["socks5", "socks4a"])
def test_dante_serves_and_tells_its_bound_address(
    scheme: str, echo_server: Address, tmp_path: Path
) -> None:
    with dante(tmp_path, forbidden="127.0.0.9") as proxy:
        way = asking(f"{scheme}://{proxy}")
        bound = ask_echo(way, echo_server)
        assert bound.host == "127.0.0.1"
        assert bound.port not in (0, echo_server.port)
        five = scheme == "socks5"
        if five:  # with SOCKS4a, dante 1.4 takes the 0.0.0.1 before a name for an address
            ask_echo(way, Address("localhost", echo_server.port))
        assert refused(way) is (errors.ConnectionRefused if five else errors.ExitDoubtful)
        with pytest.raises(errors.Forbidden if five else errors.ExitDoubtful):
            way.connect(to(Address("127.0.0.9", echo_server.port)))


@leaves_nothing
def test_tinyproxy_serves_those_who_know_the_login(echo_server: Address, tmp_path: Path) -> None:
    with tinyproxy(tmp_path, "alice", "secret") as proxy:
        way = asking(f"http://alice:secret@{proxy}")
        ask_echo(way, echo_server)
        ask_echo(way, Address("localhost", echo_server.port))
        assert refused(way) is errors.ExitDoubtful  # 500: HTTP can't tell
        for login in ("alice:secrets@", ""):
            assert refused(asking(f"http://{login}{proxy}")) is errors.ExitFailed


# --- one through another ----------------------------------------------------------------------

KINDS = ("socks5", "socks4a", "http", "https", "gsocks")


@pytest.fixture
def proxies() -> Iterator[dict[str, str]]:
    """One of each kind, by the URLs of the exits that they make."""
    with ExitStack() as running:
        urls = {
            kind: f"{kind}://{running.enter_context(honest(kind))}"
            for kind in ("socks4a", "http", "https")
        }
        local = LocalServer(("127.0.0.1", 0), ["direct"], rules=["allow all"])
        server = make_server()
        for inbound in (local, server):
            inbound.start()
            running.callback(inbound.stop, 0)
        urls["socks5"] = f"socks5://{local.bound}"
        urls["gsocks"] = f"gsocks://{KEY.text()}@{server.bound}"
        yield urls


@leaves_nothing
@pytest.mark.parametrize("nearer", KINDS)
@pytest.mark.parametrize("farther", KINDS)
def test_any_exit_is_reached_through_any_other(
    nearer: str, farther: str, proxies: dict[str, str], echo_server: Address
) -> None:
    spec = ExitSpec.parse({"url": proxies[farther], "via": proxies[nearer]})
    # without a resolver, and with rules that would stop a request to loopback
    strict = ExitDeps(
        DEFAULT_RULES, Resolver(NamesBy(no_names)), trust=trusting, pool=PoolSettings(size=0)
    )
    chain = make_exit(spec, strict)
    assert chain.label == spec.label
    try:
        ask_echo(chain, echo_server)
        half_close(chain, echo_server)
    finally:
        chain.close()


def half_close(way: Exit, echo_at: Address) -> None:
    stream = way.connect(to(echo_at)).stream
    stream.write(b"question")
    stream.write_eof()
    assert read_to_end(stream) == b"question"
    stream.close()


@leaves_nothing
def test_a_chain_of_three_reaches_its_end(proxies: dict[str, str], echo_server: Address) -> None:
    spec = ExitSpec.parse(
        {
            "url": proxies["gsocks"],
            "via": {"url": proxies["https"], "via": {"url": proxies["gsocks"], "via": "direct"}},
        }
    )
    chain = make_exit(spec, deps())
    for _ in range(3):
        ask_echo(chain, echo_server)
    chain.close()


@leaves_nothing
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_whose_nearer_part_is_dead_is_the_exits_failure(
    kind: str, proxies: dict[str, str]
) -> None:
    dead = f"socks5://bob:secret@127.0.0.1:{free_port()}"
    chain = make_exit(ExitSpec.parse({"url": proxies[kind], "via": dead}), deps())
    with pytest.raises(errors.ExitFailed, match="refused") as caught:
        chain.connect(to(DEST))
    assert "secret" not in str(caught.value)
    chain.close()


@leaves_nothing
@pytest.mark.parametrize("nearer", ["socks5", "gsocks"])
def test_tunnels_through_an_exit_wait_in_their_pool(
    nearer: str, proxies: dict[str, str], echo_server: Address
) -> None:
    spec = ExitSpec.parse({"url": proxies["gsocks"], "via": proxies[nearer]})
    chain = make_exit(spec, deps())
    for _ in range(5):
        half_close(chain, echo_server)
    assert isinstance(chain, Chain)
    assert isinstance(chain._last, TunnelExit)
    pool = chain._last.pool
    assert (pool.misses, pool.hits) == (1, 4)
    chain.close()
    assert pool.ready == 0


@leaves_nothing
def test_a_reset_at_the_end_of_a_chain_is_a_reset_here(proxies: dict[str, str]) -> None:
    def handle(sock: socket) -> None:
        sock.recv(1)
        reset(sock)

    with serving(handle) as target:
        for farther in KINDS:
            spec = ExitSpec.parse({"url": proxies[farther], "via": proxies["gsocks"]})
            chain = make_exit(spec, deps())
            stream = chain.connect(to(target)).stream
            stream.write(b"x")
            with pytest.raises(errors.StreamError):
                stream.read()
            stream.close()
            chain.close()


def test_there_is_an_exit_for_every_scheme() -> None:
    for scheme in SCHEMES:
        key = {"gsocks": f"{KEY.text()}@", "ss": "aes-256-gcm:password@"}.get(scheme, "")
        url = scheme if scheme == "direct" else f"{scheme}://{key}127.0.0.1:9"
        way = make_exit(ExitSpec.parse(url), deps())
        assert way.label.startswith(scheme)
        way.close()


# --- straight from here -----------------------------------------------------------------------


def turns(network: str, count: int, seed: int = 1) -> list[str]:
    source = SourceNetwork(ip_network(network), random.Random(seed))
    family = std_socket.AF_INET6 if ":" in network else std_socket.AF_INET
    return [source(family)[0] for _ in range(count)]


@pytest.mark.parametrize(
    ("network", "hosts"),
    [
        ("192.0.2.7/32", 1),
        ("192.0.2.6/31", 2),
        ("192.0.2.4/30", 2),
        ("203.0.113.0/28", 14),
        ("203.0.113.0/24", 254),
        ("2001:db8::7/128", 1),
        ("2001:db8::6/127", 2),
        ("2001:db8::/120", 255),
    ],
)
def test_every_address_of_a_network_has_its_turn_before_any_comes_again(
    network: str, hosts: int
) -> None:
    first, second = turns(network, 2 * hosts)[:hosts], turns(network, 2 * hosts)[hosts:]
    assert first == second
    assert set(first) == {str(ip) for ip in ip_network(network).hosts()}


@pytest.mark.parametrize("text", ["127.0.0.0/8", "2001:db8::/32", "2001:db8::/64"])
def test_a_big_network_gives_addresses_far_apart(text: str) -> None:
    network, drawn = ip_network(text), [ip_address(ip) for ip in turns(text, 10_000)]
    assert len(set(drawn)) == 10_000
    assert all(ip in network for ip in drawn)
    first, sixteenth = int(network.network_address), network.num_addresses // 16
    assert {(int(ip) - first) // sixteenth for ip in drawn[:100]} == set(range(16))


def test_each_process_begins_elsewhere() -> None:
    assert turns("203.0.113.0/28", 1, seed=1) != turns("203.0.113.0/28", 1, seed=2)


@leaves_nothing
def test_each_connection_comes_from_another_address() -> None:
    seen: list[str] = []

    def handle(sock: socket) -> None:
        seen.append(sock.getpeername()[0])
        sock.recv(1)

    way = asking("direct://?source=127.6.0.0/28")
    with serving(handle) as target:
        for _ in range(14):
            bound = half_way(way, target)
            assert bound.host == seen[-1]
            assert bound.port != 0
    assert sorted(map(ip_address, seen)) == list(ip_network("127.6.0.0/28").hosts())


def half_way(way: Exit, target: Address) -> Address:
    connected = way.connect(to(target))
    connected.stream.write_eof()
    assert connected.stream.read() == b""
    connected.stream.close()
    return connected.bound


@leaves_nothing
def test_a_source_network_has_one_family() -> None:
    with pytest.raises(errors.AddressFamilyNotSupported, match=r"only goes out from 127\.6\.0"):
        asking("direct://?source=127.6.0.0/28").connect(to(Address("::1", 9)))


@leaves_nothing
def test_an_ipv4_network_that_is_not_here_is_told_at_once() -> None:
    way = asking("direct://?source=192.0.2.0/24")
    with serving(echo) as target, pytest.raises(errors.NetworkUnreachable, match="assign"):
        way.connect(to(target))


@leaves_nothing
def test_an_ipv6_address_need_not_stand_on_an_interface() -> None:
    """As far as one can see without the right to change routes: it can be bound."""
    way = asking("direct://?source=2001:db8::/64", connect=0.2)
    with socket(std_socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        # nothing brings the answer back to an address that isn't routed here
        with pytest.raises(errors.ConnectTimeout):
            way.connect(to(Address("::1", listener.getsockname()[1])))


@leaves_nothing
def test_a_proxy_can_be_reached_from_a_source_of_its_own(
    proxies: dict[str, str], echo_server: Address
) -> None:
    spec = ExitSpec.parse({"url": proxies["http"], "via": "direct://?source=127.6.0.0/28"})
    ask_echo(make_exit(spec, deps()), echo_server)
