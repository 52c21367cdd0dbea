"""Python's clients: requests, httpx, aiohttp, PySocks, dnspython, and three of WebSocket."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import aiohttp_socks
import dns.flags
import dns.message
import dns.query
import dns.resolver
import dns.rrset
import httpx
import pytest
import requests
import socks
import websocket
import websockets.asyncio.client
import websockets.sync.client

from tests.support.program import Program
from tests.support.real import (
    GONE_EARLY,
    NAME,
    PASSWORD,
    Certified,
    Listener,
    Listeners,
    answer_with_digest,
    http2_server,
    tcp_server,
    websocket_echo,
)
from tests.support.waiting import TOO_LONG

# what the clients of others leave unclosed (aiohttp its TLS transports) is not for gsocks to mend
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

T = TypeVar("T")


def inbounds_of(inbounds: Listeners, scheme: str) -> list[Listener]:
    """SOCKS4 has no passwords."""
    return [inbounds.open] if scheme.startswith("socks4") else [inbounds.open, inbounds.guarded]


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, and no connection is left: aiohttp leaves those of TLS to the collector.

    Which has what is made here to look at, and not what thousands of tests have left.
    """
    gc.freeze()
    try:
        return asyncio.run(work)
    finally:
        gc.collect()


# --- HTTP clients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "host"),
    [
        ("socks4", "127.0.0.1"),
        ("socks4a", "localhost"),
        ("socks5", "127.0.0.1"),
        ("socks5h", "localhost"),
        ("http", "localhost"),
    ],
)
def test_requests_fetches_pages_and_looks_up_names_where_its_scheme_says(
    inbounds: Listeners, web: int, secure_web: int, certified: Certified, scheme: str, host: str
) -> None:
    for inbound in inbounds_of(inbounds, scheme):
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": inbound.url(scheme), "https": inbound.url(scheme)}
            session.verify = str(certified.authority)

            def fetch(url: str, session: requests.Session = session) -> str:
                return session.get(url, timeout=TOO_LONG).text

            assert fetch(f"http://localhost:{web}/text/one") == "one"
            assert fetch(f"http://localhost:{web}/text/two") == "two"
            assert fetch(f"https://localhost:{secure_web}/text/three") == "three"
        inbound.carried(f"{host}:{web}")
        inbound.carried(f"{host}:{secure_web}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "http"])
def test_httpx_fetches_pages_and_leaves_names_to_the_proxy(
    inbound: Listener, web: int, certified: Certified, scheme: str
) -> None:
    with (
        http2_server(certified) as two,
        httpx.Client(
            proxy=inbound.url(scheme),
            verify=certified.client(),
            http2=True,
            timeout=TOO_LONG,
            trust_env=False,
        ) as client,
    ):
        assert client.get(f"http://localhost:{web}/text/one").text == "one"
        answer = client.get(f"https://localhost:{two}/")
        assert (answer.text, answer.http_version) == ("two", "HTTP/2")
        client.close()
        inbound.carried(f"localhost:{web}")
        inbound.carried(f"localhost:{two}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_httpx_asks_for_many_pages_at_once(inbound: Listener, web: int, scheme: str) -> None:
    async def fetch_all() -> list[str]:
        async with httpx.AsyncClient(proxy=inbound.url(scheme), trust_env=False) as client:
            urls = [f"http://localhost:{web}/text/{number}" for number in range(20)]
            answers = await asyncio.gather(*(client.get(url, timeout=TOO_LONG) for url in urls))
            return [answer.text for answer in answers]

    assert asyncio.run(fetch_all()) == [str(number) for number in range(20)]
    inbound.carried(f"localhost:{web}")


def test_aiohttp_by_its_own_http_proxy(
    inbound: Listener, web: int, secure_web: int, certified: Certified
) -> None:
    async def fetch_all() -> list[str]:
        async with aiohttp.ClientSession(proxy=inbound.url("http")) as session:
            texts = []
            for url in (f"http://localhost:{web}/text", f"https://localhost:{secure_web}/text"):
                for word in ("one", "two"):
                    async with session.get(f"{url}/{word}", ssl=certified.client()) as answer:
                        texts.append(await answer.text())
            return texts

    assert run_to_the_end(fetch_all()) == ["one", "two"] * 2
    inbound.carried(f"localhost:{web}")
    inbound.carried(f"localhost:{secure_web}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "http"])
@pytest.mark.parametrize("rdns", [False, True])
def test_aiohttp_with_aiohttp_socks(inbounds: Listeners, web: int, scheme: str, rdns: bool) -> None:
    async def fetch(url: str) -> str:
        connector = aiohttp_socks.ProxyConnector.from_url(url, rdns=rdns)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://localhost:{web}/text/found") as answer,
        ):
            return await answer.text()

    for inbound in inbounds_of(inbounds, scheme):
        assert run_to_the_end(fetch(inbound.url(scheme))) == "found"
        # HTTP has no other way than to leave names to the proxy
        inbound.carried(f"{'localhost' if rdns or scheme == 'http' else '127.0.0.1'}:{web}")


def test_keep_alive_pins_the_exit_but_not_that_of_plain_pages_by_http(
    inbounds: Listeners, tmp_path: Path, web: int
) -> None:
    upstream = [inbound.url("socks5") for inbound in inbounds]
    config = tmp_path / "rotating.yaml"
    config.write_text(
        f"local: {{listen: '127.0.0.1:0', rules: [allow all], exits: {json.dumps(upstream)}}}"
    )

    def fetch_three(scheme: str, host: str) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": f"{scheme}://127.0.0.1:{program.port()}"}
            for word in ("one", "two", "three"):
                url = f"http://{host}:{web}/text/{word}"
                assert session.get(url, timeout=TOO_LONG).text == word

    def exits_to(host: str, times: int) -> list[str]:
        return [line[1] for line in program.wait_for(rf"dest={host}:\d+ exit=(\S+)", times)]

    with Program("-c", config) as program:
        fetch_three("http", "127.0.0.1")
        first, second, third = exits_to("127.0.0.1", times=3)
        assert first == third != second
        fetch_three("socks5h", "localhost")
        exits_to("localhost", times=1)
        assert program.log.count("dest=localhost:") == 1


# --- PySocks ------------------------------------------------------------------------------------


def proxied(inbound: Listener, kind: int = socks.SOCKS5, rdns: bool = True) -> dict[str, Any]:
    login = (NAME, PASSWORD) if inbound.credentials else (None, None)
    return {
        "proxy_type": kind,
        "proxy_addr": "127.0.0.1",
        "proxy_port": inbound.port,
        "proxy_rdns": rdns,
        "proxy_username": login[0],
        "proxy_password": login[1],
    }


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "http"])
def test_pysocks_connects_and_ends_its_side_alone(inbounds: Listeners, scheme: str) -> None:
    kind = {"socks4": socks.SOCKS4, "socks5": socks.SOCKS5, "http": socks.HTTP}[scheme]
    with tcp_server(answer_with_digest) as port:
        for inbound in inbounds_of(inbounds, scheme):
            with socks.create_connection(
                ("localhost", port), timeout=TOO_LONG, **proxied(inbound, kind)
            ) as sock:
                sock.sendall(bytes(1000))
                sock.shutdown(socket.SHUT_WR)
                assert len(sock.recv(100)) == 64
            inbound.carried(f"localhost:{port}")


def test_pysocks_is_told_the_reason_of_a_failure(inbounds: Listeners) -> None:
    with pytest.raises(socks.GeneralProxyError) as raised:
        socks.create_connection(("192.0.2.1", 80), **proxied(inbounds.open))
    assert "0x02: Connection not allowed by ruleset" in str(raised.value)


# --- DNS ----------------------------------------------------------------------------------------


@contextmanager
def name_server() -> Iterator[int]:
    """Knows every name; the answer for one is too long for UDP, and has to be asked by TCP."""

    def answer(wire: bytes, by_tcp: bool) -> bytes:
        query = dns.message.from_wire(wire)
        told = dns.message.make_response(query)
        name = query.question[0].name
        if str(name) == "long.example.com." and not by_tcp:
            told.flags |= dns.flags.TC
        else:
            told.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.99"))
        return told.to_wire()

    def serve_udp() -> None:
        while True:
            wire, source = udp.recvfrom(65535)
            if not wire:
                return
            udp.sendto(answer(wire, by_tcp=False), source)

    def serve_tcp(sock: socket.socket) -> None:
        size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
        told = answer(sock.recv(size, socket.MSG_WAITALL), by_tcp=True)
        sock.sendall(len(told).to_bytes(2, "big") + told)

    with tcp_server(serve_tcp) as port, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", port))
        thread = threading.Thread(target=serve_udp, daemon=True)
        thread.start()
        yield port
        with socket.socket(type=socket.SOCK_DGRAM) as stop:
            stop.sendto(b"", ("127.0.0.1", port))
        thread.join(TOO_LONG)


@pytest.mark.parametrize("name", ["short.example.com", "long.example.com"])
def test_a_resolver_looks_up_names_by_udp_and_what_is_too_long_by_tcp(
    inbound: Listener, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_socket(family: int, kind: int, protocol: int) -> socks.socksocket:
        sock = socks.socksocket(family, kind, protocol)
        how = proxied(inbound)
        sock.set_proxy(
            how["proxy_type"], how["proxy_addr"], how["proxy_port"],
            username=how["proxy_username"], password=how["proxy_password"],
        )  # fmt: skip
        if kind == socket.SOCK_DGRAM:
            sock.bind(("", 0))  # asks for the association, while it still may block
        return sock

    monkeypatch.setattr(dns.query, "socket_factory", make_socket)
    with name_server() as port:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], port, TOO_LONG
        assert [str(found) for found in resolver.resolve(name, "A")] == ["192.0.2.99"]
        inbound.carried(f"127.0.0.1:{port}", command="udp_associate")
        if name.startswith("long"):
            inbound.carried(f"127.0.0.1:{port}")


# --- WebSocket ----------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["ws", "wss"])
def echoes(request: pytest.FixtureRequest, certified: Certified) -> Iterator[str]:
    """A WebSocket server's URL."""
    secure = certified if request.param else None
    with websocket_echo(secure) as port:
        yield f"{'wss' if secure else 'ws'}://localhost:{port}/"


def port_of(url: str) -> str:
    return url.strip("/").rpartition(":")[2]


MESSAGES = ["hello", "x" * 200_000, "bye"]


@pytest.mark.parametrize("scheme", ["socks4a", "socks5h", "http"])
def test_websockets_exchanges_messages(
    inbounds: Listeners, certified: Certified, echoes: str, scheme: str
) -> None:
    """By asyncio, in one thread.

    The threads of its other interface read and write one TLS connection at the same time, which
    OpenSSL does not allow (https://github.com/openssl/openssl/issues/20446): what one writes while
    the other takes in a session ticket is never sent, although the call succeeds. So a few
    connections in a hundred wait in vain for the answer to their opening handshake, with a proxy
    or without one.
    """

    async def exchange(inbound: Listener) -> list[str | bytes]:
        async with websockets.asyncio.client.connect(
            echoes,
            proxy=inbound.url(scheme),
            ssl=certified.client() if echoes.startswith("wss") else None,
            max_size=None,
            open_timeout=TOO_LONG,
            close_timeout=TOO_LONG,
            ping_interval=None,
        ) as connection:
            heard: list[str | bytes] = []
            for message in MESSAGES:
                await connection.send(message)
                heard.append(await asyncio.wait_for(connection.recv(), TOO_LONG))
            return heard

    for inbound in inbounds_of(inbounds, scheme):
        assert run_to_the_end(exchange(inbound)) == MESSAGES
        inbound.carried(f"localhost:{port_of(echoes)}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks4a", "socks5h", "http"])
def test_websockets_exchanges_messages_in_threads(inbounds: Listeners, scheme: str) -> None:
    """Without TLS, at which two threads may use a connection."""
    with websocket_echo() as port:
        for inbound in inbounds_of(inbounds, scheme):
            with websockets.sync.client.connect(
                f"ws://localhost:{port}/",
                proxy=inbound.url(scheme),
                max_size=None,
                open_timeout=TOO_LONG,
                close_timeout=TOO_LONG,
                ping_interval=None,
            ) as connection:
                for message in MESSAGES:
                    connection.send(message)
                    assert connection.recv(TOO_LONG) == message
            inbound.carried(f"localhost:{port}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_websocket_client_exchanges_messages(
    inbound: Listener, certified: Certified, echoes: str, scheme: str
) -> None:
    connection = websocket.create_connection(
        echoes,
        timeout=TOO_LONG,
        sslopt={"context": certified.client()},
        proxy_type=scheme,
        http_proxy_host="127.0.0.1",
        http_proxy_port=inbound.port,
        http_proxy_auth=(NAME, PASSWORD) if inbound.credentials else None,
        http_no_proxy=["nowhere"],  # else localhost is spared
    )
    try:
        for message in MESSAGES:
            connection.send(message)
            assert connection.recv() == message
    finally:
        connection.close()
    inbound.carried(f"localhost:{port_of(echoes)}", GONE_EARLY)


def test_aiohttp_upgrades_to_websocket_in_absolute_form(
    inbound: Listener, certified: Certified, echoes: str
) -> None:
    """To a proxy it says ``GET ws://...`` with Upgrade, and CONNECT only for wss."""

    async def exchange() -> list[str | bytes]:
        async with (
            aiohttp.ClientSession(proxy=inbound.url("http")) as session,
            session.ws_connect(echoes, ssl=certified.client(), max_msg_size=0) as connection,
        ):
            heard: list[str | bytes] = []
            for message in MESSAGES:
                await connection.send_str(message)
                heard.append(await connection.receive_str(timeout=TOO_LONG))
            return heard

    assert run_to_the_end(exchange()) == MESSAGES
    inbound.carried(f"localhost:{port_of(echoes)}", GONE_EARLY)
