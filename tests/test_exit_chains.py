"""One exit through another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import DEFAULT_RULES
from gsocks.address import Address
from gsocks.exits import Exit, ExitDeps, ExitSpec, make_exit
from gsocks.exits.chain import Chain
from gsocks.exits.spec import SCHEMES
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.net.resolve import Resolver
from gsocks.settings import PoolSettings
from gsocks.stream import reset
from tests.support.engine import KEY, make_server, serving
from tests.support.names import NamesBy
from tests.support.ports import free_port
from tests.support.proxies import honest, trusting
from tests.support.proxy_exits import DEST, ask_echo, deps, leaves_nothing, no_names, to
from tests.support.stream_contract import read_to_end

KINDS = ("socks5", "socks4a", "http", "https", "trojan", "gsocks")


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
        urls["trojan"] = f"trojan://secret@{running.enter_context(honest('trojan'))}"
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
        keys = {"gsocks": KEY.text(), "ss": "aes-256-gcm:password", "trojan": "password"}
        key = f"{keys[scheme]}@" if scheme in keys else ""
        url = scheme if scheme == "direct" else f"{scheme}://{key}127.0.0.1:9"
        way = make_exit(ExitSpec.parse(url), deps())
        assert way.label.startswith(scheme)
        way.close()


@leaves_nothing
def test_a_proxy_can_be_reached_from_a_source_of_its_own(
    proxies: dict[str, str], echo_server: Address
) -> None:
    spec = ExitSpec.parse({"url": proxies["http"], "via": "direct://?source=127.6.0.0/28"})
    ask_echo(make_exit(spec, deps()), echo_server)
