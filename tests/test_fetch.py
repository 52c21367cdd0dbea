"""A page of the web is had through an exit, whatever its server does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocks.access.rules import ALLOW_ALL
from gsocks.errors import ExitFailed, FetchFailed
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.base import Exit
from gsocks.exits.fetch import Page, fetch
from gsocks.http.url import WebUrl
from gsocks.stream import Stream
from tests.support.engine import FakeExit
from tests.support.ports import free_port
from tests.support.proxies import certified, honest, stage, trusting
from tests.support.web import Talk, ok, web

pytestmark = pytest.mark.usefixtures("never_hangs")


def way(url: str = "direct") -> Exit:
    return make_exit(ExitSpec.parse(url), ExitDeps(ALLOW_ALL))


def get(url: str, through: Exit | None = None, **options: Any) -> Page:
    wanted: dict[str, Any] = {"largest": 10_000, "timeout": 20.0, "trust": trusting, **options}
    return fetch(WebUrl.parse(url), through or way(), **wanted)


def failure(url: str, **options: Any) -> str:
    with pytest.raises(FetchFailed) as caught:
        get(url, **options)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


# --- the URL --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "target", "host"),
    [
        ("https://p.example", "p.example:443", "/", "p.example"),
        ("http://p.example?a=b", "p.example:80", "/?a=b", "p.example"),
        ("http://P.example:8080/a?b=c#d", "p.example:8080", "/a?b=c", "p.example:8080"),
        ("https://[2001:db8::1]/x", "[2001:db8::1]:443", "/x", "[2001:db8::1]"),
    ],
)
def test_a_url_says_whom_to_ask_what(text: str, address: str, target: str, host: str) -> None:
    url = WebUrl.parse(text)
    assert (str(url.address), url.target, url.host) == (address, target, host)


def test_a_url_is_shown_by_its_server_alone() -> None:
    url = WebUrl.parse("https://secret:secret@p.example/secret?key=secret")
    assert str(url) == "https://p.example/..."
    assert "secret" not in repr(url)
    assert url.authorization == "Basic c2VjcmV0OnNlY3JldA=="


@pytest.mark.parametrize(
    "text",
    ["", "secret", "ftp://secret/", "https://", "https:///secret", "http://a b/secret",
     "http://h:secret/", "http://h:99999/", "http://[secret/", "http://secret..h/", "http://h/\u20ac",
     "http://h/\r\nsecret: x", "http://" + "h" * 9000],
)  # fmt: skip
def test_what_is_no_url_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        WebUrl.parse(text)
    assert "secret" not in str(caught.value)


# --- answers --------------------------------------------------------------------------------


def test_a_page_is_asked_for_and_read_to_its_end() -> None:
    with web(ok(b"hello", b"ETag: x")) as server:
        page = get(f"http://joe:pw@{server.address}/a?b=c", fields=[("X-Key", "k")])
    assert (page.status, page.body, page.field("etag")) == (200, b"hello", "x")
    head = server.heads[0].decode().lower()
    assert head.startswith("get /a?b=c http/1.1\r\n")
    for field in (f"host: {server.address}", "authorization: basic am9lonb3", "x-key: k"):
        assert f"\r\n{field}\r\n" in head


def test_a_page_may_come_over_tls_and_through_a_proxy() -> None:
    def serve(stream: Stream) -> None:
        stream.read()
        stream.write(ok(b"safe"))

    with stage(serve, certified("127.0.0.1")) as secure, honest("http") as proxy:
        assert get(f"https://{secure}/").body == b"safe"
        assert get(f"https://{secure}/", way(f"http://{proxy}")).body == b"safe"
    with stage(serve, certified("other.example")) as other:
        assert "its certificate can't be trusted" in failure(f"https://{other}/")


def test_redirects_are_followed_and_only_the_first_server_is_told_secrets() -> None:
    with web(ok(b"there")) as other, web(None) as server:
        first = gevent.spawn(
            get, f"http://joe:secret@{server.address}/a/b", fields=[("X-Key", "secret")]
        )
        with server.next() as talk:
            talk.say(redirect("../c?d"))
        with server.next() as talk:
            assert talk.head.startswith(b"GET /c?d ")
            assert b"Authorization" in talk.head
            assert b"X-Key" in talk.head
            talk.say(redirect(f"http://eve:x@{other.address}/e"))
        assert first.get().body == b"there"
    assert b"uthorization" not in other.heads[0]
    assert b"-Key" not in other.heads[0]


def test_a_circle_of_redirects_is_left() -> None:
    with web(redirect("/again")) as server:
        assert failure(f"http://{server.address}/").endswith("redirects more than 5 times")
    assert len(server.heads) == 6


def test_nothing_is_fetched_openly_that_began_in_secret() -> None:
    def serve(stream: Stream) -> None:
        stream.read()
        stream.write(redirect("http://p.example/secret"))

    with stage(serve, certified("127.0.0.1")) as secure:
        told = failure(f"https://{secure}/")
    assert told.endswith("redirects from https:// to http://")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection before its response was complete"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "response is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsecret", "before its response was complete"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n", "is not HTTP/1.1"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "is not HTTP/1.1"),
        (ok(b"x" * 10_001), "more than 9.8KiB"),
        (redirect("ftp://secret"), "redirects to an invalid URL"),
        (ok(b"secret", b"Content-Encoding: gzip"), "in an encoding that was not requested"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_told(answer: bytes, why: str) -> None:
    with web(answer) as server:
        assert why in failure(f"http://{server.address}/secret")


def test_an_answer_without_end_is_left_at_its_bound() -> None:
    def babble(talk: Talk) -> None:
        talk.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            talk.say(b"x" * 65536)

    with web(babble) as server:
        assert "more than" in failure(f"http://{server.address}/")


def _says_nothing(talk: Talk) -> None:
    talk.sock.recv(1)


def _says_little(talk: Talk) -> None:
    talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsec")
    talk.sock.recv(1)


@pytest.mark.parametrize("answer", [_says_nothing, _says_little])
def test_a_server_that_hangs_is_left_in_time(answer: Callable[[Talk], None]) -> None:
    left = Event()

    def serve(talk: Talk) -> None:
        try:
            answer(talk)
        finally:
            left.set()

    with web(serve) as server:
        assert "no whole answer within 0.05 s" in failure(f"http://{server.address}/", timeout=0.05)
        assert left.wait(20)


def test_a_way_that_fails_is_told() -> None:
    assert "no answer there" in failure(
        "http://p.example/", through=FakeExit("x", ExitFailed("no answer there"))
    )
    assert "refused" in failure(f"http://127.0.0.1:{free_port()}/")


def test_a_field_that_http_cannot_carry_is_refused() -> None:
    with web(ok(b"")) as server:
        told = failure(f"http://{server.address}/", fields=[("X", "secret\r\nY: z")])
    assert "a field for the request that HTTP can't carry" in told
    assert not server.heads
