"""A server that does not prove to know the key: each request fails at once, and says why."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gsocks import Key, RemoteServer
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import ExitUnproven
from gsocks.exits.tunnel import TunnelExit
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.settings import PoolSettings

pytestmark = pytest.mark.usefixtures("never_hangs")

KEY, OTHER = Key(bytes(32)), Key(bytes(range(32)))


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    running = RemoteServer("127.0.0.1:0", keys={"me": KEY}, rules=["allow all"])
    running.start()
    yield running
    running.stop(0)


def exit_to(server: RemoteServer, key: Key) -> TunnelExit:
    dialer = Dialer(ALLOW_ALL, Resolver())
    pool = PoolSettings(size=0)
    return TunnelExit(server.bound, key, dialer, reach_timeout=0.1, pool=pool)


def ask(exit_: TunnelExit, dest: Address) -> None:
    exit_.connect(Request(Command.CONNECT, dest)).stream.abort()


def test_the_next_request_does_not_wait_and_both_say_why(
    server: RemoteServer, echo_server: Address
) -> None:
    exit_ = exit_to(server, OTHER)
    with pytest.raises(ExitUnproven, match="another key, clocks more than 30 s apart"):
        ask(exit_, echo_server)
    began = time.monotonic()
    with pytest.raises(ExitUnproven, match=r"^gsocks://127.*: no answer in 0\.1 s: another key"):
        ask(exit_, echo_server)
    assert time.monotonic() - began < 0.1
    exit_.close()


def test_once_the_server_has_the_key_requests_are_served_again(
    server: RemoteServer, echo_server: Address
) -> None:
    exit_ = exit_to(server, OTHER)
    with pytest.raises(ExitUnproven):
        exit_.verify()
    server.replace_keys(type(server.keys)({"me": OTHER}))
    exit_.verify()
    ask(exit_, echo_server)
    exit_.close()


def test_without_a_pool_a_request_tries_again_after_a_while(
    server: RemoteServer, echo_server: Address
) -> None:
    exit_ = exit_to(server, OTHER)
    exit_.unproven_for = 0.0
    with pytest.raises(ExitUnproven):
        exit_.verify()
    server.replace_keys(type(server.keys)({"me": OTHER}))
    ask(exit_, echo_server)
    exit_.close()
