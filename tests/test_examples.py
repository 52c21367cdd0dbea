"""The examples do what they say, with the programs that they are made for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gevent
import pytest
import requests
from gevent.pywsgi import WSGIServer
from gevent.ssl import PROTOCOL_TLS_SERVER, SSLContext

from gsocks import Gateway
from gsocks.errors import ConnectionRefused, ConnectTimeout, Forbidden
from tests.support.engine import KEY, make_server, read_to_end, running_inbound, serving
from tests.support.ports import free_port
from tests.support.program import ROOT, Program
from tests.support.proxies import authority, certified
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- requests ---------------------------------------------------------------------------------


class Site:
    """A site in the same hub: a request that blocks the hub waits for it in vain."""

    def __init__(self) -> None:
        #: the address that each request came from, and its session's header
        self.seen: list[tuple[str, str | None]] = []

    def __call__(self, environ: dict[str, Any], start: Any) -> list[bytes]:
        self.seen.append((environ["REMOTE_ADDR"], environ.get("HTTP_GATEWAY_SESSION")))
        if environ["PATH_INFO"] == "/moved":
            start("302 Found", [("Location", "/here")])
            return [b""]
        if environ["PATH_INFO"] == "/slow":
            gevent.sleep(0.05)  # as a slow site does
        start("200 OK", [("Content-Type", "text/plain")])
        return [environ["REMOTE_ADDR"].encode()]


@contextmanager
def site(**tls: Any) -> Iterator[tuple[str, Site]]:
    app = Site()
    server = WSGIServer(("127.0.0.1", 0), app, log=None, **tls)
    server.start()
    try:
        scheme = "https" if tls else "http"
        yield f"{scheme}://127.0.0.1:{server.server_port}", app
    finally:
        server.stop()


def certificate() -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


@contextmanager
def web(**selectors: Any) -> Iterator[tuple[Any, Gateway]]:
    """A session of requests, whose responses have an exit too, and the gateway."""
    exits = [{"url": f"direct://?source=127.0.0.{n}", "name": f"exit-{n}"} for n in range(11, 19)]
    adapter = example("requests_adapter").GatewayAdapter
    with Gateway(exits, rules=["allow all"]) as gateway, requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter(gateway, **selectors))
        yield session, gateway


def test_requests_go_by_exits_in_turn_and_say_which_one_it_was() -> None:
    with site() as (url, seen), web() as (session, _):
        for number in range(11, 14):
            page = session.get(url, headers={"Connection": "close"})
            assert page.exit == f"exit-{number}"
            assert page.text == f"127.0.0.{number}"
        assert {header for _, header in seen.seen} == {None}


def test_a_kept_connection_keeps_its_exit() -> None:
    with site() as (url, _), web() as (session, gateway):
        assert {session.get(url).exit for _ in range(4)} == {"exit-11"}
        assert sum(member.counts.connected for member in gateway.exit_group.roster) == 1


def test_a_request_may_name_its_session_and_a_redirect_keeps_it() -> None:
    with site() as (url, seen), web() as (session, _):
        headers = {"Gateway-Session": "cart-17"}
        pages = [session.get(f"{url}/moved", headers=headers) for _ in range(3)]
        exits = {page.exit for page in pages} | {page.history[0].exit for page in pages}
        assert len(exits) == 1
        assert {header for _, header in seen.seen} == {None}
        others = {session.get(url, headers={"Gateway-Session": str(n)}).exit for n in range(20)}
        assert len(others) > 3


def test_an_adapter_may_have_a_session_of_its_own() -> None:
    with site() as (url, _), web(session="cart-17") as (session, gateway):
        close = {"Connection": "close"}
        (mine,) = {session.get(url, headers=close).exit for _ in range(3)}
        gateway.report(mine, ok=False, domain="127.0.0.1")
        gateway.rotate("cart-17")
        assert session.get(url, headers=close).exit != mine


def test_https_waits_in_its_greenlet_alone() -> None:
    """The site lives in the same hub, and so does the tunnel: nothing would ever come."""
    certificates = authority().cert_pem
    with (
        site(ssl_context=certificate()) as (url, _),
        running_inbound(make_server()) as server,
        certificates.tempfile() as trusted,
        requests.Session() as session,
        Gateway([f"gsocks://{KEY.text()}@{server.bound}"], rules=["allow all"]) as gateway,
    ):
        session.mount("https://", example("requests_adapter").GatewayAdapter(gateway))
        with pytest.raises(requests.exceptions.SSLError):
            session.get(url)
        asking = [gevent.spawn(session.get, f"{url}/slow", verify=trusted) for _ in range(5)]
        assert {each.get().text for each in asking} == {"127.0.0.1"}


def test_https_may_go_without_a_check() -> None:
    with (
        site(ssl_context=certificate()) as (url, _),
        web() as (session, _),
        pytest.warns(match="Unverified HTTPS"),
    ):
        assert session.get(url, verify=False).status_code == 200


def test_the_environments_proxy_is_none_of_its(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with site() as (url, _), web() as (session, _):
        assert session.get(url).status_code == 200


def test_failures_are_those_of_requests_and_their_cause_is_ours() -> None:
    def cause(error: requests.RequestException) -> BaseException | None:
        found: BaseException | None = error.args[0].reason.__cause__
        return found

    with web() as (session, _):
        with pytest.raises(requests.ConnectionError) as caught:
            session.get(f"http://127.0.0.1:{free_port()}/")
        assert isinstance(cause(caught.value), ConnectionRefused)
    with requests.Session() as session, Gateway() as gateway:
        session.mount("http://", example("requests_adapter").GatewayAdapter(gateway))
        with pytest.raises(requests.ConnectionError) as caught:
            session.get("http://127.0.0.1/")
        assert isinstance(cause(caught.value), Forbidden)
    silent = "http://192.0.2.1/"
    with serving(read_to_end) as proxy:
        exits = [f"socks5://{proxy}"]
        with requests.Session() as session, Gateway(exits, rules=["allow all"]) as gateway:
            session.mount("http://", example("requests_adapter").GatewayAdapter(gateway))
            with pytest.raises(requests.ConnectTimeout) as caught:
                session.get(silent, timeout=(0.05, 1))
            assert isinstance(cause(caught.value), ConnectTimeout)


# --- Scrapy -----------------------------------------------------------------------------------

SPIDER = """
from scrapy import Request, Spider
from scrapy_middleware import banned


class Shop(Spider):
    name = "shop"

    async def start(self):
        for scheme in ("http", "https"):
            for n in range(4):
                yield self.page(scheme, f"{scheme} alone", f"/{n}")
                yield self.page(scheme, f"{scheme} cart", f"/{n}", session="cart17", country="de")
        yield self.page("http", "forbidden", "/forbidden", session="cart18")
        yield self.page("http", "captcha", "/captcha", session="cart19")
        yield self.page("http", "never", "/never")

    def page(self, scheme, kind, path, **selector):
        url = getattr(self, scheme) + path
        return Request(url, self.parse, dont_filter=True, meta={"gsocks": selector, "kind": kind})

    def parse(self, response):
        if response.text == "captcha":
            return banned(response.request)
        return {"kind": response.meta["kind"], "status": response.status, "from": response.text}
"""

GATEWAY = """
log: {level: debug}
admin: {listen: 127.0.0.1:0}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  exits:
""" + "".join(
    f"    - {{url: 'direct://?source=127.0.0.{n}', country: {'de' if n < 14 else 'fr'}}}\n"
    for n in range(11, 19)
)


class _Shop(BaseHTTPRequestHandler):
    """Says who came; some pages are not for the first address that asks for them."""

    protocol_version = "HTTP/1.1"
    first: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        who, status = self.client_address[0], 200
        if self.path in ("/forbidden", "/captcha") and who == self.first.setdefault(self.path, who):
            who, status = ("captcha", 200) if self.path == "/captcha" else ("no", 403)
        elif self.path == "/never":
            status = 429
        self.send_response(status)
        self.send_header("Content-Length", str(len(who)))
        self.end_headers()
        self.wfile.write(who.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def shop(tls: bool) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    if tls:
        server.socket = certified("127.0.0.1").wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_scrapy_has_sessions_countries_and_another_exit_after_a_ban(tmp_path: Path) -> None:
    (tmp_path / "spider.py").write_text(SPIDER)
    (tmp_path / "gateway.yaml").write_text(GATEWAY)
    with (
        shop(tls=False) as http,
        shop(tls=True) as https,
        Program("-c", tmp_path / "gateway.yaml") as gateway,
    ):
        settings = {
            "GSOCKS_PROXY": f"http://127.0.0.1:{gateway.port()}",
            "GSOCKS_ADMIN": gateway.wait_for(r"admin: listening on (http://\S+) ")[0][1],
            "GSOCKS_TOKEN": (tmp_path / "admin.token").read_text().strip(),
            "DOWNLOADER_MIDDLEWARES": '{"scrapy_middleware.GsocksMiddleware": 745}',
            "HTTPERROR_ALLOW_ALL": "1",
            "RETRY_ENABLED": "0",
            "TELNETCONSOLE_ENABLED": "0",
        }
        done = subprocess.run(
            [sys.executable, "-m", "scrapy", "runspider", "spider.py", "-O", "pages.json"]
            + [word for key, value in settings.items() for word in ("-s", f"{key}={value}")]
            + ["-a", f"http={http}", "-a", f"https={https}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
            capture_output=True,
            text=True,
            timeout=TOO_LONG,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # /forbidden and /captcha once, and /never at each try but the last
        gateway.wait_for(r"exit \S+: failure reported for 127\.0\.0\.1: banned", 4)
    pages: dict[str, list[tuple[int, str]]] = {}
    for page in json.loads((tmp_path / "pages.json").read_text()):
        pages.setdefault(page["kind"], []).append((page["status"], page["from"]))
    german = {f"127.0.0.{n}" for n in range(11, 14)}
    for scheme in ("http", "https"):
        assert len({who for _, who in pages[f"{scheme} alone"]}) > 1, done.stderr
        (cart,) = {who for _, who in pages[f"{scheme} cart"]}
        assert cart in german
    ((status, who),) = pages["forbidden"]
    assert (status, who) != (200, _Shop.first["/forbidden"])
    assert status == 200
    ((_, who),) = pages["captcha"]
    assert who not in ("captcha", _Shop.first["/captcha"])
    assert [status for status, _ in pages["never"]] == [429]
