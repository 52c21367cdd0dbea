"""Proxies as exits: conversations that end well, and how tests ask for them."""

from __future__ import annotations

import os
import ssl
from base64 import b64encode
from typing import NamedTuple

import gevent
import pytest
from gevent.event import AsyncResult

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits import Exit, ExitDeps, ExitSpec, make_exit
from gsocks.exits.base import Connected
from gsocks.exits.proxy import ProxyExit
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.settings import Timeouts
from gsocks.stream import Stream
from tests.support.engine import digest
from tests.support.names import NamesBy
from tests.support.proxies import Line, certified, trusting

#: for all but the streams' contract, whose own greenlets end by exceptions
leaves_nothing = pytest.mark.usefixtures("never_hangs", "nothing_left", "each_way")
DEST = Address("host.example", 443)
IPV4_DEST = Address("192.0.2.7", 443)
IPV6_DEST = Address("2001:db8::7", 443)
BOUND = Address("198.51.100.9", 4660)
PASSWORD = "v3ry s3cr3t"
#: of that by sha224sum
TROJAN_LOGIN = b"acc90dfd1997c4924bd9e9056a3fe984ca69a39bcb924bae494cf076"


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


def trojan_request(dest: Address, command: int = 1) -> bytes:
    """With the password PASSWORD, whose SHA-224 this is."""
    login = b"%s\r\n" % TROJAN_LOGIN
    return login + bytes((command,)) + dest.encode() + b"\r\n"


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
        return certified("127.0.0.1") if self.scheme in ("https", "trojan") else None

    @property
    def length(self) -> int:
        """Bytes that the proxy says."""
        return sum(len(line.says) for line in self.lines)


LOGIN = "al%40ice:v3ry%20s3cr3t@"
BASIC = b64encode(f"al@ice:{PASSWORD}".encode()).decode()
RFC1929 = b"\x01\x06al@ice\x0b" + PASSWORD.encode()
OK5 = b"\x05\x00\x00" + BOUND.encode()
OK_HTTP = b"HTTP/1.1 200 Connection established\r\nProxy-agent: us\r\n\r\n"
PARTS = {
    "socks5": Part(
        "socks5", "", (Line(b"\x05\x01\x00", b"\x05\x00"), Line(request5(DEST), OK5)), BOUND
    ),
    "socks5 with a login": Part(
        "socks5",
        LOGIN,
        (
            Line(b"\x05\x01\x02", b"\x05\x02"),
            Line(RFC1929, b"\x01\x00"),
            Line(request5(IPV6_DEST), OK5),
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
    "http": Part("http", "", (Line(http_request(DEST), OK_HTTP),), UNSPECIFIED),
    "http with a login": Part(
        "http", LOGIN, (Line(http_request(IPV6_DEST, BASIC), OK_HTTP),), UNSPECIFIED, IPV6_DEST
    ),
    "https": Part("https", "", (Line(http_request(DEST), OK_HTTP),), UNSPECIFIED),
    "https with a login": Part(
        "https", LOGIN, (Line(http_request(DEST, BASIC), OK_HTTP),), UNSPECIFIED
    ),
}

#: those whose proxies have no answer to a request
UNANSWERED = {
    "trojan": Part("trojan", "v3ry%20s3cr3t@", (Line(trojan_request(DEST), b""),), UNSPECIFIED),
    "trojan with an address": Part(
        "trojan",
        "v3ry%20s3cr3t@",
        (Line(trojan_request(IPV6_DEST), b""),),
        UNSPECIFIED,
        IPV6_DEST,
    ),
}


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
