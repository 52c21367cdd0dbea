"""``trojan://`` exits: their URLs, the bytes that a server is sent, and servers that fail."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import gevent
import pytest
from gevent.event import AsyncResult

from gsocks import errors
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits import ExitSpec, make_exit, trojan_url
from gsocks.exits.spec import TlsOptions
from gsocks.exits.trojan import FrameReader
from gsocks.local import LocalServer
from gsocks.request import CONNECT, UDP_ASSOCIATE, Request
from gsocks.stream import Stream
from tests.support.engine import through
from tests.support.proxies import authority, certified, hang, honest, stage
from tests.support.proxy_exits import (
    DEST,
    IPV4_DEST,
    PASSWORD,
    TROJAN_LOGIN,
    asking,
    deps,
    leaves_nothing,
    to,
    trojan_request,
)
from tests.support.stream_contract import read_exactly, read_to_end

LOGIN = quote(PASSWORD) + "@"


# --- the URL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trojan://hunter2@h", "trojan://hunter2@h:443"),
        ("TROJAN://hunter2@10.0.0.7:8443/", "trojan://hunter2@10.0.0.7:8443"),
        ("trojan://hunter2@[2001:db8::7]:443", "trojan://hunter2@[2001:db8::7]:443"),
        ("trojan://hunter2%40%3A%2F%23@h:1", "trojan://hunter2%40%3A%2F%23@h:1"),
        ("trojan://hunter2:x@y@h:1", "trojan://hunter2%3Ax%40y@h:1"),
        ("trojan://hunter2@h:1?sni=a.example#x@y", "trojan://hunter2@h:1?sni=a.example"),
        ("trojan://hunter2@h:1?peer=a.example&sni=", "trojan://hunter2@h:1?sni=a.example"),
        ("trojan://hunter2@h:1?allowInsecure=1", "trojan://hunter2@h:1?insecure=true"),
        ("trojan://hunter2@h:1?allowInsecure=0&insecure=", "trojan://hunter2@h:1"),
        (
            "trojan://hunter2@h:1?type=tcp&security=tls&fp=chrome&headerType=none&path=%2F&host=x",
            "trojan://hunter2@h:1",
        ),
        (
            "trojan://hunter2@h:1?alpn=h2%2Chttp%2F1.1",
            "trojan://hunter2@h:1?alpn=h2%2Chttp%2F1.1",
        ),
        ("trojan://hunter2@h:1?weight=2#a-name", "trojan://hunter2@h:1"),
    ],
)
def test_a_url_is_read_as_subscriptions_have_it(text: str, expected: str) -> None:
    spec = ExitSpec.parse(text)
    assert spec == ExitSpec.parse(expected)
    assert ExitSpec.parse(spec.url) == spec
    assert "hunter2" not in spec.label + repr(spec) + str(spec)
    assert spec.label.startswith("trojan://***@")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("trojan://h:1", "password: a trojan exit needs a password"),
        ("trojan://@h:1", "password: a trojan exit needs a password"),
        ("trojan://hunter2@h:1?type=ws&path=%2F", r"needs what is not supported \(type=\)"),
        ("trojan://hunter2@h:1?type=grpc", r"needs what is not supported \(type=\)"),
        ("trojan://hunter2@h:1?security=reality", r"needs what is not supported \(security=\)"),
        ("trojan://hunter2@h:1?nonsense=1", "unknown option behind the"),
        ("trojan://hunter2@h:1?insecure=perhaps", "insecure: 'perhaps' is not true or false"),
        ("trojan://hunter2@h:0", "not between 1 and 65535"),
        ("trojan://hunter2@2001:db8::7:443", "is not PASSWORD@HOST:PORT"),
        ("trojan://hunter2@a b:1", "is not PASSWORD@HOST:PORT"),
        ("trojan://%ffhunter2@h:1", "its percent codes are not UTF-8"),
        ("trojan://hunter2{session}@h:1", "can't be a template"),
    ],
)
def test_what_can_not_be_used_is_told_in_one_line_without_the_password(text: str, why: str) -> None:
    with pytest.raises(errors.ConfigError, match=why) as raised:
        ExitSpec.parse(text)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_password_may_stand_beside_the_url() -> None:
    entry = {"url": "trojan://h", "password": "p {x}", "sni": "a.example", "insecure": True}
    spec = ExitSpec.parse(entry)
    assert (spec.password, spec.tls) == ("p {x}", TlsOptions(insecure=True, sni="a.example"))


def test_the_parts_of_a_url_are_shown_without_the_password() -> None:
    assert repr(trojan_url.split("hunter2@h:1#name")) == "<Link h:1>"
    assert ExitSpec.parse("trojan://hunter2@h:1#name").name == "name"
    assert ExitSpec.parse("trojan://hunter2@h:1#a long story").name is None


# --- what a server is sent --------------------------------------------------------------------


@leaves_nothing
def test_a_request_leaves_at_once_where_the_client_waits_for_the_destination() -> None:
    first: AsyncResult[bytes] = AsyncResult()

    def handle(stream: Stream) -> None:
        first.set(stream.read())
        stream.write(b"220 ready")
        read_to_end(stream)

    with stage(handle, certified("127.0.0.1")) as server:
        made = asking(f"trojan://{LOGIN}{server}").connect(to(DEST))
        assert first.get() == TROJAN_LOGIN + b"\r\n\x01\x03\x0chost.example\x01\xbb\r\n"
        assert made.bound == UNSPECIFIED
        assert read_exactly(made.stream, 9) == b"220 ready"
        made.stream.abort()


@leaves_nothing
@pytest.mark.parametrize("size", [1, 12_000])
def test_the_first_bytes_of_a_client_are_in_the_record_of_the_request(size: int) -> None:
    first: AsyncResult[bytes] = AsyncResult()
    data = bytes(size)

    def handle(stream: Stream) -> None:
        first.set(stream.read())
        read_to_end(stream)

    with stage(handle, certified("127.0.0.1")) as server:
        way = asking(f"trojan://{LOGIN}{server}")
        made = way.connect(Request(CONNECT, IPV4_DEST, payload=data))
        gevent.sleep(0)
        assert not first.ready()
        made.stream.write(data)
        assert first.get() == trojan_request(IPV4_DEST) + data
        made.stream.abort()


@leaves_nothing
def test_a_client_that_ends_without_the_byte_it_promised_has_asked_all_the_same() -> None:
    heard: AsyncResult[bytes] = AsyncResult()

    def handle(stream: Stream) -> None:
        heard.set(read_to_end(stream))
        stream.write_eof()

    with stage(handle, certified("127.0.0.1")) as server:
        way = asking(f"trojan://{LOGIN}{server}")
        made = way.connect(Request(CONNECT, DEST, payload=b"x"))
        made.stream.write_eof()
        assert heard.get() == trojan_request(DEST)
        assert made.stream.read() == b""
        made.stream.close()


@leaves_nothing
def test_datagrams_have_their_frames_in_both_directions() -> None:
    peer = Address("192.0.2.9", 53)
    heard: AsyncResult[bytes] = AsyncResult()
    request = trojan_request(UNSPECIFIED, 3)
    sent = peer.encode() + b"\0\5\r\nquery" + DEST.encode() + b"\0\0\r\n"

    def handle(stream: Stream) -> None:
        heard.set(read_exactly(stream, len(request + sent)))
        # a name is no source
        frames = DEST.encode() + b"\0\1\r\nx" + peer.encode() + b"\0\6\r\nanswer"
        frames += peer.encode() + b"\0\0\r\n"
        for start in range(len(frames)):
            stream.write(frames[start : start + 1])
        stream.write_eof()
        read_to_end(stream)

    with stage(handle, certified("127.0.0.1")) as server:
        way = asking(f"trojan://{LOGIN}{server}")
        stream = way.associate(Request(UDP_ASSOCIATE, UNSPECIFIED)).stream  # type: ignore[attr-defined]
        stream.write(peer.encode() + b"query")
        stream.write(DEST.encode())
        assert heard.get() == request + sent
        assert stream.read() == peer.encode() + b"answer"
        assert stream.read() == peer.encode()
        assert stream.read() == b""
        stream.write_eof()
        stream.close()


@pytest.mark.parametrize(
    "frames", [b"\x05\x01", b"\x01\x7f\0\0\x01\0\x35\0\1\n\nx", b"\x03\x01a\0\x35\0\1\r\rx"]
)
def test_frames_that_can_not_be_end_the_association(frames: bytes) -> None:
    reader = FrameReader()
    reader.feed(frames)
    with pytest.raises(errors.ProtocolViolation):
        reader.next()


@leaves_nothing
def test_an_end_within_a_datagram_is_no_proper_end() -> None:
    def handle(stream: Stream) -> None:
        read_exactly(stream, len(trojan_request(UNSPECIFIED, 3)))
        stream.write(DEST.encode() + b"\0\5\r\nfou")
        stream.write_eof()

    with stage(handle, certified("127.0.0.1")) as server:
        way = asking(f"trojan://{LOGIN}{server}")
        stream = way.associate(Request(UDP_ASSOCIATE, UNSPECIFIED)).stream  # type: ignore[attr-defined]
        with pytest.raises(errors.Truncated, match="within a datagram"):
            stream.read()
        stream.abort()


# --- servers that fail ------------------------------------------------------------------------


def _refusing_tls(stream: Stream) -> None:
    stream.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    read_to_end(stream)


def _ending(stream: Stream) -> None:
    stream.write_eof()
    read_to_end(stream)


@leaves_nothing
@pytest.mark.parametrize(
    ("handle", "why"),
    [
        (lambda stream: stream.abort(), "reset"),
        (_ending, "ended"),
        (_refusing_tls, "doesn't speak TLS"),
        (hang, r"no handshake within 0\.2 s"),
    ],
    ids=["RST", "FIN", "no TLS", "silence"],
)
@pytest.mark.parametrize("command", [CONNECT, UDP_ASSOCIATE])
def test_a_server_that_fails_before_the_request_is_the_exits_failure(
    handle: Callable[[Stream], object], why: str, command: object
) -> None:
    with stage(handle) as server:
        way = asking(f"trojan://{LOGIN}{server}", reach=0.2)
        with pytest.raises(errors.ExitFailed, match=why) as caught:
            if command is CONNECT:
                way.connect(to(DEST))
            else:
                way.associate(Request(UDP_ASSOCIATE, UNSPECIFIED))  # type: ignore[attr-defined]
        assert type(caught.value) is errors.ExitFailed
        assert str(caught.value).startswith(f"trojan://***@{server}: ")
        assert PASSWORD not in str(caught.value)


@leaves_nothing
def test_a_certificate_for_another_name_is_the_exits_failure_and_sends_no_password() -> None:
    heard: AsyncResult[bytes] = AsyncResult()

    def handle(stream: Stream) -> None:
        heard.set(read_to_end(stream))

    with stage(handle, certified("other.example")) as server:
        with pytest.raises(errors.ExitFailed, match="its certificate can't be trusted"):
            asking(f"trojan://{LOGIN}{server}").connect(to(DEST))
        assert not heard.ready()
        spec = ExitSpec.parse(f"trojan://{LOGIN}{server}?sni=other.example")
        stream = make_exit(spec, deps()).connect(to(DEST)).stream
        stream.write_eof()
        assert heard.get() == trojan_request(DEST)
        stream.abort()


@leaves_nothing
def test_a_server_that_wants_a_certificate_gets_it(tmp_path: Path) -> None:
    authority().issue_cert("me@example.com").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "me.pem"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    def handle(stream: Stream) -> None:
        read_exactly(stream, len(trojan_request(DEST)))
        stream.write(b"220 ready")
        read_to_end(stream)

    with stage(handle, context) as server:
        url = f"trojan://{LOGIN}{server}?insecure=true"
        stream = asking(f"{url}&cert={tmp_path / 'me.pem'}").connect(to(DEST)).stream
        assert read_exactly(stream, 9) == b"220 ready"
        stream.abort()
        # by TLS 1.3 the server says so behind the handshake
        stream = asking(url).connect(Request(CONNECT, DEST, payload=b"x")).stream
        with pytest.raises(errors.StreamError, match=r"required|reset"):
            stream.read()
        stream.abort()


@leaves_nothing
def test_a_destination_that_is_not_reached_is_an_end_without_a_byte() -> None:
    def handle(stream: Stream) -> None:
        read_exactly(stream, len(trojan_request(DEST)))
        stream.write_eof()
        read_to_end(stream)

    with stage(handle, certified("127.0.0.1")) as server:
        stream = asking(f"trojan://{LOGIN}{server}").connect(to(DEST)).stream
        assert stream.read() == b""
        stream.abort()


def test_what_is_made_shows_neither_the_password_nor_what_is_as_good() -> None:
    way = asking("trojan://hunter2@127.0.0.1:9")
    shown = repr(way) + way.label + repr(ExitSpec.parse("trojan://hunter2@h").tls)
    assert "hunter2" not in shown


@leaves_nothing
def test_an_exit_whose_connections_end_without_a_byte_is_ejected_for_that_destination(
    echo_server: Address,
) -> None:
    asked = 0

    def refuse(stream: Stream) -> None:
        nonlocal asked
        asked += 1
        stream.read()
        stream.write_eof()
        read_to_end(stream)

    with (
        stage(refuse, certified("127.0.0.1")) as sick,
        honest("trojan") as well,
        ExitStack() as running,
    ):
        exits = [f"trojan://{LOGIN}{each}?insecure=true" for each in (sick, well)]
        local = LocalServer(("127.0.0.1", 0), exits, rules=["allow all"])
        local.start()
        running.callback(local.stop, 0)
        for _ in range(12):
            with through(local.bound, echo_server, b"x") as sock, suppress(ConnectionResetError):
                sock.recv(1)
        assert asked == 3
