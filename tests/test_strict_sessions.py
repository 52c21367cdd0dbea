"""Strict sessions at a listener: what a client is told when the exit of its session is gone."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from gsocks.address import Address
from gsocks.local import LocalServer
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.group import ExitGroup
from tests.support.engine import connect, read_exactly, running_inbound
from tests.support.newcomers import login
from tests.support.web import Reply, ok, talk_to, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NAME = "session-cart-strict"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.rotation.failover.RETRY_DELAY", 0.0)


class Gateway(NamedTuple):
    """A listener with three proxies behind it."""

    inbound: LocalServer
    group: ExitGroup
    proxies: dict[str, ExitStack]

    def ask(self, method: str, target: object, name: str = NAME) -> Reply:
        """The answer to a request that comes alone."""
        basic = b64encode(f"{name}:".encode()).decode()
        with talk_to(self.inbound) as talk:
            request = (
                f"{method} {target} HTTP/1.1\r\nHost: {str(target).removeprefix('http://')}\r\n"
                f"Connection: close\r\nProxy-Authorization: Basic {basic}\r\n\r\n"
            )
            return talk.ask(request.encode(), method)

    def ask_by_socks(self, dest: Address, name: str = NAME) -> int:
        """REP of the answer."""
        with connect(self.inbound.bound) as sock:
            sock.sendall(login(name.encode(), b"") + b"\x05\x01\x00" + dest.encode())
            assert read_exactly(sock, 4) == b"\x05\x02\x01\x00"
            return read_exactly(sock, 2)[1]

    @property
    def home(self) -> str:
        """The name of the session's exit."""
        found = self.group.exit_of(None, "cart")
        assert found is not None
        return found


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with ExitStack() as stack:
        proxies: dict[str, ExitStack] = {}
        exits = []
        for name in ("a", "b", "c"):
            proxies[name] = stack.enter_context(ExitStack())
            proxy = LocalServer(("127.0.0.1", 0), rules=["allow all"])
            proxies[name].enter_context(running_inbound(proxy))
            exits.append({"url": f"http://{proxy.bound}", "name": name})
        group = make_exit_group(exits, ["allow all"])
        inbound = stack.enter_context(running_inbound(LocalServer(("127.0.0.1", 0), group)))
        yield Gateway(inbound, group, proxies)


def test_a_client_is_told_why_its_strict_session_fails(
    gateway: Gateway, echo_server: Address
) -> None:
    assert gateway.ask("CONNECT", echo_server).status == 200
    home = gateway.home
    gateway.proxies[home].close()
    for _ in range(3):
        reply = gateway.ask("CONNECT", echo_server)
        assert reply.status == 502
        assert reply["proxy-status"].startswith("gsocks; error=")
        assert gateway.ask_by_socks(echo_server) == 0x01
        assert gateway.home == home
    gateway.group.drain(home)
    reply = gateway.ask("CONNECT", echo_server)
    assert reply.status == 503
    assert reply["proxy-status"].startswith("gsocks; error=")
    assert f"exit {home} of this strict session is draining" in reply.body.decode()
    assert gateway.ask_by_socks(echo_server) == 0x01
    # other sessions have other exits, and so has this one once it is rotated
    assert gateway.ask("CONNECT", echo_server, "session-other-strict").status == 200
    gateway.group.rotate(None, "cart")
    assert gateway.ask("CONNECT", echo_server).status == 200
    assert gateway.home != home


def test_a_plain_request_of_a_strict_session_is_sent_by_no_other_exit(gateway: Gateway) -> None:
    with web(ok(b"ok", b"Connection: close")) as running:
        origin = running.address
        assert gateway.ask("GET", f"http://{origin}/").status == 200
        home = gateway.home
        gateway.proxies[home].close()
        reply = gateway.ask("GET", f"http://{origin}/")
        assert reply.status == 502
        assert reply["proxy-status"].startswith("gsocks; error=")
        assert gateway.home == home
