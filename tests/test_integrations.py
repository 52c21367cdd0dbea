"""gsocks.integrations: httpx through a Gateway (requests and Scrapy are tried by the examples)."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import httpx
import pytest
from gevent.ssl import PROTOCOL_TLS_CLIENT, SSLContext

from gsocks.gateway import Gateway
from gsocks.integrations.httpx import GatewayTransport, exit_of
from tests.support.real import Certified

pytestmark = pytest.mark.usefixtures("never_hangs")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    exits = [{"url": "direct", "name": "one"}, {"url": "direct://?source=127.0.0.0/8", "name": "b"}]
    with Gateway(exits, rules=["allow all"]) as made:
        yield made


def test_a_request_goes_by_an_exit_and_a_session_keeps_it(gateway: Gateway, web: int) -> None:
    with httpx.Client(transport=GatewayTransport(gateway)) as client:
        url = f"http://127.0.0.1:{web}/text/hello"
        exits = set()
        for _ in range(3):
            page = client.get(url, extensions={"gsocks": {"session": "cart"}})
            assert page.text == "hello"
            exits.add(exit_of(page))
        assert len(exits) == 1
        only = client.get(url, extensions={"gsocks": {"exit": "b"}})
        assert exit_of(only) == "b"


def test_a_body_is_sent_and_a_long_one_is_streamed(gateway: Gateway, web: int) -> None:
    with httpx.Client(transport=GatewayTransport(gateway)) as client:
        with client.stream("GET", f"http://127.0.0.1:{web}/bytes/300000") as answer:
            assert sum(map(len, answer.iter_bytes())) == 300_000
        assert client.put(f"http://127.0.0.1:{web}/put/x", content=b"abc").status_code == 200


def test_tls_is_checked_by_the_context(
    gateway: Gateway, secure_web: int, certified: Certified
) -> None:
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certified.authority)
    url = f"https://localhost:{secure_web}/text/hello"
    with httpx.Client(transport=GatewayTransport(gateway, verify=context)) as client:
        assert client.get(url).text == "hello"
    with (
        httpx.Client(transport=GatewayTransport(gateway)) as client,
        pytest.raises(httpx.ConnectError, match="certificate"),
    ):
        client.get(url)


def test_what_goes_wrong_is_an_exception_of_httpx(gateway: Gateway) -> None:
    with (
        httpx.Client(transport=GatewayTransport(gateway)) as client,
        pytest.raises(httpx.ConnectError, match="refused"),
    ):
        client.get("http://127.0.0.1:1/")


def test_other_greenlets_run_while_it_waits(gateway: Gateway, web: int) -> None:
    turns: list[None] = []
    gevent.spawn(turns.append, None)
    with httpx.Client(transport=GatewayTransport(gateway)) as client:
        client.get(f"http://127.0.0.1:{web}/text/hello")
    assert turns
