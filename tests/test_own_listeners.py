"""Exits that lead back to the listener that asks them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address
from socket import SO_REUSEADDR, SOL_SOCKET
from typing import Any

import pytest
from gevent.socket import socket

from gsocks import errors
from gsocks.address import Address
from gsocks.exits import ExitDeps
from gsocks.local import LocalServer
from gsocks.net.own_listeners import OwnListeners
from gsocks.net.resolve import Resolver
from gsocks.rotation.build import SomeExit, make_exit_group, make_offers, make_rules
from tests.support.engine import (
    KEY,
    Refused,
    Seen,
    ask_echo,
    connect,
    echo,
    make_server,
    read_answer,
    running_inbound,
    serving,
    socks_request,
    through,
)
from tests.support.names import Names
from tests.support.network import ip, private_network
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEST = Address("192.0.2.7", 443)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(
    stack: ExitStack,
    seen: Seen,
    listen: Address,
    exits: list[SomeExit],
    names: Names | None = None,
    **options: Any,
) -> LocalServer:
    resolver = Resolver() if names is None else Resolver(names)
    group = make_exit_group(exits, deps=ExitDeps(make_rules(["allow all"]), resolver))
    local = LocalServer(listen, group, observer=seen, **options)
    return stack.enter_context(running_inbound(local))


def assert_one_request_ends_as_a_loop(local: LocalServer, seen: Seen) -> None:
    with pytest.raises(Refused):
        through(local.bound, DEST)
    assert seen.next().outcome == "loop"
    assert len(seen.all) == 1


@pytest.mark.parametrize("kind", ["http", "socks5", "socks4a"])
@pytest.mark.parametrize(
    ("listen", "exit_host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("127.0.0.1", "own.example"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.9.9.9"),
        ("0.0.0.0", "own.example"),
    ],
)
def test_an_exit_that_is_its_own_listener_is_never_connected_to(
    stack: ExitStack, seen: Seen, kind: str, listen: str, exit_host: str
) -> None:
    port = free_port()
    names = Names(own_example=["127.0.0.1"])
    exits = [f"{kind}://{exit_host}:{port}"]
    options = {"allow_anonymous": True}
    local = start(stack, seen, Address(listen, port), list(exits), names, **options)
    assert_one_request_ends_as_a_loop(local, seen)


def test_every_address_of_this_machine_is_a_listener_at_all_of_them(seen: Seen) -> None:
    with private_network(), ExitStack() as stack:
        ip("addr add 198.51.100.7/32 dev card")
        exits: list[SomeExit] = ["http://198.51.100.7:3128"]
        local = start(stack, seen, Address("0.0.0.0", 3128), exits, allow_anonymous=True)
        assert local.bound.port == 3128
        with pytest.raises(Refused):
            through(Address("127.0.0.1", 3128), DEST)
        assert seen.next().outcome == "loop"


def test_the_request_goes_to_another_exit_and_the_own_listener_is_found_out(
    stack: ExitStack, seen: Seen
) -> None:
    port = free_port()
    echo_at = stack.enter_context(serving(echo))
    exits: list[SomeExit] = [f"http://127.0.0.1:{port}", "direct"]
    local = start(stack, seen, Address("127.0.0.1", port), exits)
    for _ in range(6):
        assert ask_echo(local.bound, echo_at, b"hello") == b"hello"
    own, straight = local.context.exit_group.roster
    assert (own.counts.failed, straight.counts.failed) == (3, 0)  # and then it is ejected
    assert "listener of this gateway" in own.counts.last_error


def test_two_listeners_that_are_each_others_exits_refuse_the_first_request(
    stack: ExitStack, seen: Seen
) -> None:
    here, there = free_port(), free_port()
    local = start(stack, seen, Address("127.0.0.1", here), [f"http://127.0.0.1:{there}"])
    start(stack, seen, Address("127.0.0.1", there), [f"socks5://127.0.0.1:{here}"])
    with pytest.raises(Refused):
        through(local.bound, DEST)
    assert seen.next().outcome == "loop"
    seen.next()
    assert len(seen.all) == 2


def test_another_listener_of_this_process_is_an_exit_as_any(stack: ExitStack, seen: Seen) -> None:
    echo_at = stack.enter_context(serving(echo))
    server = stack.enter_context(running_inbound(make_server()))
    near = start(stack, seen, Address("127.0.0.1", 0), [f"gsocks://{KEY.text()}@{server.bound}"])
    far = start(stack, seen, Address("127.0.0.1", 0), [f"http://{near.bound}"])
    for local in (near, far, near):
        assert ask_echo(local.bound, echo_at, b"hello") == b"hello"


def test_a_tunnel_to_its_own_server_is_never_opened(stack: ExitStack, seen: Seen) -> None:
    port = free_port()
    deps = ExitDeps(make_rules(["allow all"]))
    group = make_exit_group([f"gsocks://{KEY.text()}@127.0.0.1:{port}"], deps=deps)
    server = stack.enter_context(running_inbound(make_server(("127.0.0.1", port), group)))
    local = start(stack, seen, Address("127.0.0.1", 0), [f"gsocks://{KEY.text()}@{server.bound}"])
    with pytest.raises(Refused):
        through(local.bound, DEST)
    assert seen.next().outcome == "loop"


def test_an_exit_that_was_removed_leads_nowhere_any_more(stack: ExitStack, seen: Seen) -> None:
    here, there = free_port(), free_port()
    echo_at = stack.enter_context(serving(echo))
    one = start(stack, seen, Address("127.0.0.1", here), [f"http://127.0.0.1:{there}"])
    two = start(stack, seen, Address("127.0.0.1", there), ["direct"])
    assert ask_echo(one.bound, echo_at, b"hello") == b"hello"
    for local, exit_ in (one, "direct"), (two, f"http://127.0.0.1:{here}"):
        group = local.context.exit_group
        deps = ExitDeps(make_rules(["allow all"]), own_listeners=group.own_listeners)
        group.update(make_offers([exit_], deps))
    assert ask_echo(two.bound, echo_at, b"hello") == b"hello"


# --- recognised by its socket -----------------------------------------------------------------


def test_a_connection_that_was_redirected_to_its_own_listener_is_recognised(
    stack: ExitStack, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as if the kernel sent it elsewhere than to the address of the exit
    monkeypatch.setattr(OwnListeners, "leads_back", lambda *_: False)
    port = free_port()
    local = start(stack, seen, Address("127.0.0.1", port), [f"http://127.0.0.1:{port}"])
    with pytest.raises(Refused):
        through(local.bound, DEST)
    assert {seen.next().outcome, seen.next().outcome} == {"loop", "exit_doubtful"}
    assert len(seen.all) == 2


def test_a_client_that_has_the_port_of_a_connection_elsewhere_comes_in(
    stack: ExitStack, seen: Seen
) -> None:
    """Two connections may have the same address and port, if they lead to different ones."""
    echo_at = stack.enter_context(serving(echo))
    local = start(stack, seen, Address("127.0.0.1", 0), ["direct"])
    client = stack.enter_context(closing(socket()))
    client.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    for _ in range(100):
        elsewhere = stack.enter_context(closing(connect(echo_at)))
        elsewhere.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        try:
            client.bind(elsewhere.getsockname())
        except OSError:
            continue  # a connection of another test has that port as well
        break
    local.context.exit_group.own_listeners.connecting(elsewhere, ip_address("127.0.0.1"))
    client.connect(local.bound)
    client.sendall(socks_request(echo_at))
    assert read_answer(client)


def test_a_loop_is_told_in_every_protocol() -> None:
    error = errors.LoopDetected("x")
    assert (error.http_status, error.code & 0x0F, error.fault) == (508, 1, errors.Fault.EXIT)
    assert type(errors.failure_from_code(error.code)) is errors.LoopDetected
