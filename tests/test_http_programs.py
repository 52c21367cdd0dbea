"""Real programs with gsocks as their HTTP proxy: curl, requests, urllib."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
import requests
import trustme
from gevent import ssl, subprocess
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks.access.users import Users, hash_password
from gsocks.address import Address
from tests.support import needs
from tests.support.waiting import TOO_LONG
from tests.support.web import Talk, Web, http_inbound, ok, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


USERS = Users({"alice": hash_password(b"wonder:land")})


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [
        needs.program("curl"),
        "--silent",
        "--show-error",
        "--max-time",
        str(TOO_LONG),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def page(talk: Talk) -> None:
    """A page that tells what it was asked."""
    if b"\r\nExpect: 100-continue\r\n" in talk.head:
        talk.say(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = talk.hear_body()
    talk.say(ok(b"%d bytes by %b" % (len(body), talk.head.split(b"\r\n")[0])))


@pytest.fixture
def pages() -> Iterator[Web]:
    with web(page) as running:
        yield running


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Address, Path]]:
    """A web server over TLS, and the certificate of who vouches for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    def serve(sock: socket, _: object) -> None:
        with Talk(sock) as talk:
            talk.hear_until(b"\r\n\r\n")
            talk.say(ok(b"secret"))

    server = StreamServer(("127.0.0.1", 0), serve, ssl_context=context)
    server.start()
    yield Address("localhost", server.socket.getsockname()[1]), tmp_path / "ca.pem"
    server.stop()


@pytest.fixture(params=[False, True], ids=["open", "with users"])
def proxy(request: pytest.FixtureRequest) -> Iterator[str]:
    """A listener's URL, with credentials if it requires them."""
    users = USERS if request.param else None
    with http_inbound(users=users) as (inbound, _):
        login = "alice:wonder%3Aland@" if users else ""
        yield f"http://{login}{inbound.bound}"


def test_curl_asks_for_pages(proxy: str, pages: Web) -> None:
    url = pages.url.decode()
    done = curl("-x", proxy, f"{url}/a?b", f"{url}/c", "-w", "%{num_connects} ")
    assert done.stdout == "0 bytes by GET /a?b HTTP/1.11 0 bytes by GET /c HTTP/1.10 "
    assert curl("-x", proxy, "-I", url).stdout.startswith("HTTP/1.1 200 OK")
    assert curl("-x", proxy, "-0", url).stdout == "0 bytes by GET / HTTP/1.1"


@pytest.mark.parametrize("arguments", [[], ["-H", "Transfer-Encoding: chunked"]])
def test_curl_uploads_a_file_once_it_may(
    proxy: str, pages: Web, tmp_path: Path, arguments: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(3_000_000))
    url = pages.url.decode() + "/up"
    done = curl("-x", proxy, "-H", "Expect: 100-continue", *arguments, "-T", file, url)
    assert done.stdout == "3000000 bytes by PUT /up HTTP/1.1"


def test_curl_reaches_a_server_over_tls(proxy: str, secure: tuple[Address, Path]) -> None:
    server, authority = secure
    done = curl("-x", proxy, "--cacert", authority, f"https://{server}/", "-v")
    assert done.stdout == "secret"
    assert 'Proxy-Status: gsocks; next-hop="direct"' in done.stderr


def test_curl_without_credentials_is_told_to_have_some(pages: Web) -> None:
    with http_inbound(users=USERS) as (inbound, _):
        for arguments in ([], ["-p"], ["-U", "alice:wrong"]):
            done = curl("-x", f"http://{inbound.bound}", "-v", *arguments, pages.url.decode())
            assert "407 Proxy Authentication Required" in done.stderr
        done = curl(
            "-x",
            f"http://alice:wonder%3Aland@{inbound.bound}",
            "--proxy-anyauth",
            pages.url.decode(),
        )
        assert done.stdout == "0 bytes by GET / HTTP/1.1"
    assert len(pages.heads) == 1


def test_curl_that_takes_the_proxy_for_a_web_server_is_told() -> None:
    with http_inbound() as (inbound, _):
        assert "this is a proxy, not a web server" in curl(str(inbound.bound)).stdout


def test_requests_asks_for_pages(proxy: str, pages: Web, secure: tuple[Address, Path]) -> None:
    def ask() -> list[str]:
        server, authority = secure
        with requests.Session() as session:
            session.proxies = {"http": proxy, "https": proxy}
            session.trust_env = False
            return [
                session.get(pages.url.decode() + "/a").text,
                session.post(pages.url.decode(), data=iter([b"ab", b"c"])).text,
                session.get(f"https://{server}/", verify=str(authority)).text,
            ]

    texts = gevent.get_hub().threadpool.apply(ask)
    assert texts == ["0 bytes by GET /a HTTP/1.1", "3 bytes by POST / HTTP/1.1", "secret"]


URLLIB = """
import sys, urllib.request
handler = urllib.request.ProxyHandler({"http": sys.argv[1]})
opener = urllib.request.build_opener(handler)
print(opener.open(sys.argv[2], data=b"abc", timeout=90).read().decode(), end="")
"""


def test_urllib_asks_for_a_page(proxy: str, pages: Web) -> None:
    command = [sys.executable, "-c", URLLIB, proxy, pages.url.decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("3 bytes by POST / HTTP/1.1", "")
