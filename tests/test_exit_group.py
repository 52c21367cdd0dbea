"""An exit group with real exits: whose failure it is decides which exit is tried next.

How an exit is chosen among many is test_rotation's subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.group import ExitGroup, Outbound
from gsocks.rotation.roster import Changes
from gsocks.server import RemoteServer
from gsocks.settings import Limits
from gsocks.tunnel.server import ServerTunnel
from tests.support.engine import (
    KEY,
    FakeExit,
    both_ends,
    direct,
    eventually,
    make_exit,
    make_server,
    running_inbound,
    serving,
)
from tests.support.names import NamesBy
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NOWHERE = Address("192.0.2.1", 80)


def to(dest: Address) -> Request:
    return Request(Command.CONNECT, dest)


def ask(exit_group: ExitGroup, dest: Address) -> tuple[Outbound, list[str]]:
    """The way to ``dest``, and the exits that were asked for it."""
    asked: list[str] = []
    return exit_group.connect(to(dest), asked.append), asked


def is_echoed(way: Outbound | Connected) -> bool:
    way.stream.write(b"hello")
    try:
        return way.stream.read() == b"hello"
    finally:
        way.stream.abort()


def direct_exit() -> DirectExit:
    return DirectExit(Dialer(ALLOW_ALL, Resolver()))


StartServer = Callable[[ExitGroup], RemoteServer]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    with ExitStack() as stack:
        yield lambda exit_group: stack.enter_context(
            running_inbound(make_server(exit_group=exit_group))
        )


MakeExit = Callable[..., TunnelExit]


@pytest.fixture
def exits() -> Iterator[MakeExit]:
    """Makes exits that are closed when the test is over."""
    with ExitStack() as stack:

        def make(server: Address, **options: Any) -> TunnelExit:
            way = make_exit(server, **options)
            stack.callback(way.close)
            return way

        yield make


# --- whose failure it is ----------------------------------------------------------------------


def test_when_one_server_is_down_the_next_exit_serves(
    exits: MakeExit, echo_server: Address
) -> None:
    down = exits(Address("127.0.0.1", free_port()))
    way, asked = ask(ExitGroup([down, direct_exit()], ALLOW_ALL), echo_server)
    assert asked == [down.label, "direct"]
    assert way.exit == "direct"
    assert is_echoed(way)


def test_when_what_answers_is_no_server_the_next_exit_serves(
    exits: MakeExit, echo_server: Address
) -> None:
    with serving(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as web:
        way, asked = ask(ExitGroup([exits(web), direct_exit()], ALLOW_ALL), echo_server)
    assert len(asked) == 2
    assert is_echoed(way)


def test_when_a_server_says_nothing_the_next_exit_serves(
    exits: MakeExit, echo_server: Address
) -> None:
    with serving(lambda sock: sock.recv(1 << 20) and sock.recv(1)) as silent:
        exit_group = ExitGroup([exits(silent, timeout=0.05), direct_exit()], ALLOW_ALL)
        way, asked = ask(exit_group, echo_server)
    assert len(asked) == 2
    assert is_echoed(way)


@pytest.mark.parametrize(
    "failure",
    [
        errors.ExitFailed,
        errors.ExitDoubtful,
        errors.NetworkUnreachable,
        errors.ConnectTimeout,
        errors.OutOfResources,
        errors.LimitReached,
        errors.ShuttingDown,
    ],
)
def test_a_failure_of_the_far_ends_own_exits_is_the_exits_here_too(
    start_server: StartServer,
    exits: MakeExit,
    echo_server: Address,
    failure: type[errors.ConnectFailed],
) -> None:
    broken = exits(start_server(ExitGroup([FakeExit("far", failure("x"))], ALLOW_ALL)).bound)
    way, asked = ask(ExitGroup([broken, direct_exit()], ALLOW_ALL), echo_server)
    assert asked == [broken.label, "direct"]
    assert is_echoed(way)


@pytest.mark.parametrize(
    "failure",
    [
        errors.Forbidden,
        errors.HostUnreachable,
        errors.NameNotFound,
        errors.ConnectionRefused,
        errors.ConnectFailed,
    ],
)
def test_a_failure_of_the_destination_comes_through_the_tunnel_and_another_exit_confirms_it(
    start_server: StartServer, exits: MakeExit, failure: type[errors.ConnectFailed]
) -> None:
    far = exits(start_server(ExitGroup([FakeExit("far", failure("x"))], ALLOW_ALL)).bound)
    other = FakeExit("other", errors.ExitDoubtful("503"))
    with pytest.raises(errors.ConnectFailed) as caught:
        ask(ExitGroup([far, other], ALLOW_ALL), NOWHERE)
    assert type(caught.value) is failure
    assert other.requests == 1


def test_a_refused_request_costs_no_tunnel(
    start_server: StartServer, exits: MakeExit, echo_server: Address
) -> None:
    way = exits(start_server(direct()).bound)
    way.pool.wake()
    eventually(lambda: way.pool.ready == 8)
    for _ in range(20):
        with pytest.raises(errors.ConnectionRefused):
            way.connect(to(Address("127.0.0.1", 1)))
    assert (way.pool.ready, way.pool.opened) == (8, 8)
    assert is_echoed(way.connect(to(echo_server)))


def test_requests_in_a_row_share_the_tunnels(
    start_server: StartServer, exits: MakeExit, echo_server: Address
) -> None:
    way = exits(start_server(direct()).bound, pool_size=2)
    way.pool.wake()
    eventually(lambda: way.pool.ready == 2)
    for _ in range(20):
        stream, _ = way.connect(to(echo_server))
        stream.write(b"hello")
        stream.write_eof()
        assert stream.read() == b"hello"
        assert stream.read() == b""
        stream.close()
    assert (way.pool.ready, way.pool.opened) == (2, 2)


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (Address("127.0.0.1", 1), "gsocks://127.0.0.1:1: Connection refused"),
        (Address("server.invalid", 8388), "gsocks://server.invalid:8388: server.invalid: "),
    ],
)
def test_a_server_that_cannot_be_reached_is_the_exits_failure_and_not_the_destinations(
    exits: MakeExit, server: Address, why: str
) -> None:
    with pytest.raises(errors.ExitFailed) as caught:
        exits(server).connect(to(NOWHERE))
    assert str(caught.value).startswith(why)


def test_a_server_with_another_key_is_told_without_any_key(start_server: StartServer) -> None:
    other = Key.generate()
    server = start_server(direct())
    way = TunnelExit(server.bound, other, Dialer(ALLOW_ALL, Resolver()), reach_timeout=0.05)
    with pytest.raises(errors.ExitFailed, match="another key") as caught:
        way.connect(to(NOWHERE))
    way.close()
    assert other.text() not in str(caught.value)
    assert KEY.text() not in str(caught.value)


def test_a_full_server_is_the_exits_failure(exits: MakeExit) -> None:
    with (
        running_inbound(make_server(limits=Limits(connections=0))) as server,
        pytest.raises(errors.ExitFailed),
    ):
        exits(server.bound).connect(to(NOWHERE))


# --- before and after -------------------------------------------------------------------------


def test_what_the_rules_deny_is_neither_asked_of_an_exit_nor_looked_up() -> None:
    looked_up: list[str] = []
    rules = Rules.parse(["deny *.example", "deny 10.0.0.0/8", "allow all"])

    def look_up(host: str) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    resolver = Resolver(NamesBy(look_up))
    fake = FakeExit("fake", errors.ExitFailed("asked"))
    exit_group = ExitGroup([fake, DirectExit(Dialer(rules, resolver))], rules)
    for dest in (Address("a.example", 80), Address("10.1.2.3", 80)):
        with pytest.raises(errors.Forbidden, match="rule 'deny"):
            ask(exit_group, dest)
    assert (fake.requests, looked_up) == (0, [])


@pytest.mark.parametrize("host", ["localhost", "www.localhost", "LOCALHOST.", "127.0.0.1", "::1"])
def test_no_upstream_exit_is_asked_for_localhost_unless_a_rule_allows_it(host: str) -> None:
    upstream = FakeExit("upstream", errors.ExitFailed("asked"))
    for rules in (Rules.default(), Rules.parse(["deny self", "allow all"])):
        with pytest.raises(errors.Forbidden, match="rule 'deny"):
            ask(ExitGroup([upstream], rules), Address.of(host, 80))
    assert upstream.requests == 0
    with pytest.raises(errors.ExitFailed, match="asked"):
        ask(ExitGroup([upstream], Rules.parse(["allow loopback"])), Address.of(host, 80))


def test_every_exit_is_closed() -> None:
    fakes = [FakeExit("a"), FakeExit("b"), FakeExit("c")]
    exit_group = ExitGroup(fakes, ALLOW_ALL)
    exit_group.start()
    assert [fake.closed for fake in fakes] == [0] * 3
    exit_group.close()
    assert [fake.closed for fake in fakes] == [1] * 3


def test_the_bound_address_is_the_one_that_the_destination_sees() -> None:
    peers: list[tuple[str, int]] = []

    def note(sock: socket) -> None:
        peers.append(sock.getpeername())

    with serving(note) as target, both_ends() as ends:
        for way_out in (direct_exit(), ends.exit):
            connected = way_out.connect(to(target))
            assert connected.stream.read() == b""
            connected.stream.abort()
            assert tuple(connected.bound) == peers[-1]


def test_a_request_that_is_given_up_takes_its_tunnel_with_it(
    start_server: StartServer, exits: MakeExit
) -> None:
    far = FakeExit("far")
    server = start_server(ExitGroup([far], ALLOW_ALL))
    way = exits(server.bound, pool_size=2)
    way.pool.wake()
    eventually(lambda: way.pool.ready == 2)
    asking = gevent.spawn(way.connect, to(NOWHERE))
    far.asked.wait()
    asking.kill()
    assert way.pool.ready == 1, "its answer is still due, so no other request may have it"
    far.fail(errors.ConnectionRefused("too late"))
    eventually(lambda: server.connections == 1)


def test_a_tunnel_that_died_unnoticed_costs_another_try_and_no_failure(
    start_server: StartServer, exits: MakeExit, echo_server: Address
) -> None:
    server = start_server(direct())
    way = exits(server.bound, pool_size=3)
    way.pool.wake()
    eventually(lambda: way.pool.ready == len(server.idle_tunnels) == 3)
    for tunnel in list(server.idle_tunnels):
        tunnel.abort()  # the pool's watchers have had no time to see it
    assert is_echoed(way.connect(to(echo_server)))


def test_where_even_a_fresh_tunnel_breaks_the_exit_has_failed(
    start_server: StartServer, exits: MakeExit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that agrees on keys and then hangs up on every request."""

    def hang_up(tunnel: ServerTunnel, *_: object) -> Request:
        raise errors.ProtocolViolation("no request is good enough")

    monkeypatch.setattr(ServerTunnel, "decode_open", hang_up)
    way = exits(start_server(direct()).bound, pool_size=2)
    way.pool.wake()
    eventually(lambda: way.pool.ready == 2)
    with pytest.raises(errors.ExitFailed, match="gsocks://"):
        way.connect(to(NOWHERE))


def test_a_closed_exit_serves_no_request(exits: MakeExit) -> None:
    way = exits(Address("127.0.0.1", 1))
    way.close()
    with pytest.raises(errors.ExitFailed, match="shutting down"):
        way.connect(to(NOWHERE))


def test_ways_that_inbounds_share_are_closed_with_the_last_of_them() -> None:
    way = FakeExit("shared")
    closed: list[bool] = []
    way.close = lambda: closed.append(True)  # type: ignore[method-assign]
    exit_group = ExitGroup([way], ALLOW_ALL)
    inbounds = [LocalServer(("127.0.0.1", 0), exit_group) for _ in range(2)]
    for inbound in inbounds:
        inbound.start()
    inbounds[0].stop(0)
    assert not closed
    inbounds[1].stop(0)
    assert closed == [True]


# --- what starts and closes with it -----------------------------------------------------------


class CountingService:
    """A service that counts its calls."""

    def __init__(self) -> None:
        self.started = self.closed = 0
        self.changes: list[Changes] = []

    def start(self) -> None:
        self.started += 1

    def update(self, changes: Changes) -> None:
        self.changes.append(changes)

    def close(self) -> None:
        self.closed += 1


def test_a_service_hears_of_other_exits_while_a_listener_uses_them() -> None:
    service, exit_group = CountingService(), direct()
    exit_group.add_service(service)
    exit_group.update([FakeExit("a")])
    assert service.changes == []
    exit_group.start()
    exit_group.update([FakeExit("b")])
    (changes,) = service.changes
    assert [each.label for each in changes.added] == ["b"]
    assert [each.label for each in changes.removed] == ["a"]
    exit_group.close()


def test_a_service_starts_with_the_first_listener_and_closes_with_the_last() -> None:
    service, exit_group = CountingService(), direct()
    exit_group.add_service(service)
    exit_group.start()
    exit_group.start()
    assert (service.started, service.closed) == (1, 0)
    exit_group.close()
    assert service.closed == 0
    exit_group.close()
    assert (service.started, service.closed) == (1, 1)


# --- whether names matter ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exits", "heeds"),
    [
        (["direct"], False),
        (["direct://?source=127.0.0.1"], False),
        (["direct://?source=127.0.0.0/8"], True),
        ([f"gsocks://{Key.generate().text()}@127.0.0.1:1"], False),
        (["socks5://u:p@127.0.0.1:1"], False),
        (["socks5://u-{user}:p@127.0.0.1:1"], False),
        ([{"url": "direct", "name": "berlin"}], False),
        (["direct", "socks5://127.0.0.1:1"], True),
        ([{"url": "direct", "country": "de"}], True),
        ([{"url": "direct", "tags": ["fast"]}], True),
        (["socks5://u-{session}:p@127.0.0.1:1"], True),
        (["http://u:{session:8}@127.0.0.1:1"], True),
        (["http://u{?-{session}}:p@127.0.0.1:1"], True),
        (["http://u{?-{country}}:p@127.0.0.1:1"], True),
        ([{"url": "socks5://127.0.0.1:1", "via": "http://u-{session}:p@127.0.0.1:2"}], True),
    ],
)
def test_names_matter_where_they_select_an_exit_or_what_is_behind_it(
    exits: list[Any], heeds: bool
) -> None:
    assert make_exit_group(exits).heeds_names is heeds


def test_a_list_may_come_to_have_exits_among_which_names_select() -> None:
    group = ExitGroup([], ALLOW_ALL, fed=True)
    assert group.heeds_names
