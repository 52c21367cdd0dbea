"""Gateways behind a real HAProxy are replaced one by one, and no client notices."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent.socket import socket

from gsocks.address import Address
from tests.support.engine import connect, echo, eventually, read_exactly, serving, through
from tests.support.fleet_programs import GatewayProgram, balancer, running
from tests.support.redis_server import redis_server

#: clients that ask one request after another
CLIENTS = 4


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[list[GatewayProgram]]:
    """Three that share a store, each of which says for 2 s that it is not ready any more."""
    with redis_server(tmp_path / "redis") as server:
        found = [
            GatewayProgram(tmp_path, f"gateway{n}", server.url, "", workers=1, notice="2s")
            for n in (1, 2, 3)
        ]
        with running(found):
            yield found


class Clients:
    """Some that ask one request after another, each by a connection of its own."""

    def __init__(self, inbound: Address, target: Address) -> None:
        self._inbound = inbound
        self._target = target
        self._going = True
        self.served = 0
        self.failures: list[str] = []

    def __enter__(self) -> Clients:
        self._greenlets = [gevent.spawn(self._ask_on) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        gevent.joinall(self._greenlets, raise_error=True)

    def wait_for_more(self, count: int = 20) -> None:
        """Until so many more were served."""
        before = self.served
        eventually(lambda: self.served >= before + count)

    def _ask_on(self) -> None:
        while self._going:
            failure = self._ask()
            if failure:
                self.failures.append(failure)
            else:
                self.served += 1

    def _ask(self) -> str:
        """One request; why it has failed, or nothing."""
        try:
            with through(self._inbound, self._target) as sock:
                say(sock)
        except (OSError, EOFError) as error:
            return repr(error)
        return ""


def say(sock: socket) -> None:
    """A word there and back."""
    sock.sendall(b"word")
    assert read_exactly(sock, 4) == b"word"


def accepts(port: int) -> bool:
    try:
        connect(Address("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def open_at(gateway: GatewayProgram) -> int:
    """How many connections it has open."""
    members = gateway.ask("GET", "/v1/fleet")["members"]
    return int(next(each["connections"] for each in members if each["gateway"] == gateway.name))


def test_no_request_is_lost_while_every_gateway_is_replaced(
    tmp_path: Path, gateways: list[GatewayProgram]
) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(serving(echo))
        inbound = stack.enter_context(balancer(tmp_path, gateways))
        held = {
            each.name: stack.enter_context(_held_at(each, inbound, target)) for each in gateways
        }
        clients = stack.enter_context(Clients(inbound, target))
        clients.wait_for_more()
        for gateway in gateways:
            _replace(gateway, held, clients)
    assert clients.failures == []
    assert clients.served >= 20 * (1 + 2 * len(gateways))


def _held_at(gateway: GatewayProgram, inbound: Address, target: Address) -> socket:
    """A connection through the balancer, which has taken it to that gateway."""
    for _ in range(100):  # HAProxy begins its turns anew whenever it hears of a gateway
        before = open_at(gateway)
        sock = through(inbound, target)
        say(sock)
        if open_at(gateway) > before:
            return sock
        sock.close()
    raise AssertionError(f"{gateway.name} gets none")


def _replace(gateway: GatewayProgram, held: dict[str, socket], clients: Clients) -> None:
    gateway.signal(signal.SIGTERM)
    # first it says so, and is there still for those that have not heard
    eventually(lambda: gateway.ask_health("/readyz") == (503, "shutting down\n"))
    assert accepts(gateway.port)
    assert gateway.count("shutting down, draining") == 0
    # then its listener closes, and what is open goes on
    eventually(lambda: gateway.count("shutting down, draining 1 connection ") == 1)
    eventually(lambda: not accepts(gateway.port))
    for sock in held.values():
        say(sock)
    clients.wait_for_more()
    assert gateway.ask_health("/healthz")[0] == 200
    # and with the last of that it ends
    held.pop(gateway.name).close()
    assert gateway.wait_until_ended() == 0
    gateway.start()
    gateway.wait_until_ready()
    clients.wait_for_more()
