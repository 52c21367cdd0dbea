"""The listeners: whom they admit, what becomes of every connection, and how they stop."""

from __future__ import annotations

import errno
import gc
import random
import socket as std_socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.socket import create_connection, socket

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.errors import ExitFailed, HostUnreachable, OutOfResources
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.listener import Listener
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.listen import listen
from gsocks.net.resolve import Resolver
from gsocks.observe import Record
from gsocks.request import Request
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Offer
from gsocks.settings import Limits, Timeouts
from gsocks.sock import AnySocket
from gsocks.stream import reset
from tests.support.engine import (
    Ends,
    FakeExit,
    MakeLocal,
    Refused,
    Seen,
    ask_echo,
    both_ends,
    connect,
    direct,
    eventually,
    gather,
    is_reset,
    printed_address,
    read_answer,
    read_exactly,
    read_to_end,
    running,
    running_inbound,
    serving,
    socks_request,
    through,
)
from tests.support.newcomers import is_turned_away
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NOWHERE = Address("192.0.2.1", 80)


# --- admission --------------------------------------------------------------------------------


def test_no_more_connections_are_admitted_than_the_limit(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(limits=Limits(connections=2))
    with (
        through(inbound.bound, echo_server) as first,
        through(inbound.bound, echo_server) as second,
    ):
        with connect(inbound.bound) as third:
            third.shutdown(std_socket.SHUT_WR)
            assert is_turned_away(third)
        refused = seen.next()
        assert (refused.outcome, refused.client) == ("limit", f"127.0.0.1:{port_of(refused)}")
        for admitted in (first, second):
            admitted.sendall(b"served")
            assert read_exactly(admitted, 6) == b"served"
    eventually(lambda: inbound.connections == 0)
    assert ask_echo(inbound.bound, echo_server, b"again") == b"again"


def port_of(record: Record) -> str:
    return record.client.rpartition(":")[2]


def test_no_more_connections_are_admitted_from_one_address_than_its_limit(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(limits=Limits(per_client=2))
    with through(inbound.bound, echo_server), through(inbound.bound, echo_server):
        with connect(inbound.bound) as third:
            third.shutdown(std_socket.SHUT_WR)
            assert is_turned_away(third)
        assert seen.next().outcome == "limit"
        with create_connection(inbound.bound, source_address=("127.0.0.2", 0)) as other:
            other.sendall(socks_request(echo_server))
            read_answer(other)
    eventually(lambda: inbound.connections == 0)
    assert ask_echo(inbound.bound, echo_server, b"again") == b"again"
    assert not inbound.context.admission.clients, "addresses that have gone are forgotten"


def test_of_more_clients_than_may_be_in_their_handshake_each_that_has_asked_gets_its_turn(
    make_local: MakeLocal, echo_server: Address, seen: Seen
) -> None:
    inbound = make_local(limits=Limits(handshakes=20))
    with ExitStack() as stack:
        clients = [stack.enter_context(connect_at_once(inbound.bound)) for _ in range(200)]
        for client in clients:
            client.send(socks_request(echo_server))
        for client in clients:
            read_answer(client)
    eventually(lambda: inbound.connections == 0)
    assert set(seen.outcomes) == {"ok"}


def connect_at_once(address: Address) -> socket:
    """Connect without giving the listener a turn: the kernel accepts first."""
    with std_socket.create_connection(address) as sock:
        return socket(sock.family, sock.type, fileno=sock.detach())


def test_where_it_listens_can_be_read_after_the_start(make_local: MakeLocal) -> None:
    inbound = make_local()
    assert inbound.bound.host == "127.0.0.1"
    assert inbound.bound.port > 0


def test_a_listener_is_shown_by_where_it_listens_and_what_it_carries(
    make_local: MakeLocal, echo_server: Address
) -> None:
    inbound = make_local()
    with through(inbound.bound, echo_server), connect(inbound.bound):
        eventually(lambda: inbound.connections == 2)
        assert repr(inbound) == (
            f"<LocalServer {inbound.bound}, 2 connections, 1 in handshake, 1 relays>"
        )
    inbound.stop(0)
    assert repr(inbound) == ("<LocalServer not listening, 0 connections, 0 in handshake, 0 relays>")


def test_it_serves_on_a_plain_listening_socket_and_blocks_no_greenlet(
    seen: Seen, echo_server: Address
) -> None:
    listener = std_socket.create_server(("127.0.0.1", 0))
    assert listener.getblocking()
    with running_inbound(LocalServer(listener, direct(), observer=seen)) as inbound:
        assert ask_echo(inbound.bound, echo_server, b"served") == b"served"


def test_a_client_that_is_gone_before_it_is_accepted_delays_no_other(
    make_local: MakeLocal, echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbound = make_local()
    failures = [OSError(errno.ECONNABORTED, "Software caused connection abort")]
    accept = Listener._accept

    def fail_first(server: Listener) -> object:
        if failures and server is inbound:
            raise failures.pop()
        return accept(server)

    monkeypatch.setattr(Listener, "_accept", fail_first)
    assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
    assert not failures


def test_it_serves_ipv6_clients(seen: Seen, echo_server: Address) -> None:
    with running_inbound(LocalServer(("::1", 0), direct(), observer=seen)) as inbound:
        assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
    assert seen.next().client.startswith("[::1]:")


_INHERITED = {
    "SO_KEEPALIVE": (std_socket.SOL_SOCKET, 1),
    "TCP_KEEPIDLE": (std_socket.IPPROTO_TCP, 60),
    "TCP_KEEPINTVL": (std_socket.IPPROTO_TCP, 15),
    "TCP_USER_TIMEOUT": (std_socket.IPPROTO_TCP, 120_000),
    "TCP_NODELAY": (std_socket.IPPROTO_TCP, 1),
}


@pytest.mark.parametrize(
    "listener",
    [
        lambda: ("127.0.0.1", 0),
        lambda: listen(Address("127.0.0.1", 0)),
        lambda: std_socket.create_server(("127.0.0.1", 0)),
    ],
    ids=["address", "ours", "another's"],
)
def test_an_accepted_connection_has_no_delay_and_is_noticed_when_dead(
    listener: Callable[[], Any],
) -> None:
    """By what the kernel lets accepted sockets inherit."""

    class Capturing(LocalServer):
        def serve(self, connection: ClientConnection, received: bytes = b"") -> None:
            accepted.set(connection.sock)
            super().serve(connection, received)

    accepted: AsyncResult[AnySocket] = AsyncResult()
    with running_inbound(Capturing(listener(), direct())) as inbound, connect(inbound.bound) as us:
        us.sendall(b"\x05")
        sock = accepted.get()
        assert sock is not None
        for name, (level, value) in _INHERITED.items():
            assert sock.getsockopt(level, getattr(std_socket, name)) == value, name


def fails_at(dest: Address) -> Callable[[Ends, Address], None]:
    def ask(ends: Ends, _: Address) -> None:
        with connect(ends.local.bound) as sock:
            sock.sendall(socks_request(dest))
            with pytest.raises(Refused):
                read_answer(sock)

    return ask


def succeeds(ends: Ends, target: Address) -> None:
    assert ask_echo(ends.local.bound, target, b"hello") == b"hello"


def is_aborted(ends: Ends, target: Address) -> None:
    with through(ends.local.bound, target) as sock:
        reset(sock)


@pytest.mark.parametrize(
    "ask",
    [
        succeeds,
        is_aborted,
        fails_at(Address("127.0.0.1", 1)),
        fails_at(Address("10.0.0.1", 80)),
    ],
    ids=["succeeds", "aborted", "refused", "forbidden"],
)
def test_a_connection_leaves_nothing_for_the_garbage_collector(
    echo_server: Address, ask: Callable[[Ends, Address], None]
) -> None:
    with both_ends(exit_group=direct(Rules.parse(["deny 10.0.0.0/8", "allow all"]))) as ends:

        def ask_and_wait() -> None:
            ask(ends, echo_server)
            eventually(lambda: ends.local.connections == 0)
            eventually(lambda: ends.server.connections == ends.exit.pool.ready)
            gevent.idle()

        ask_and_wait()  # what is made once is made
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            ask_and_wait()
            gc.collect()
            ours = [each for each in gc.garbage if type(each).__module__.startswith("gsocks.")]
            assert not ours
        finally:
            gc.garbage.clear()
            gc.set_debug(0)
            gc.enable()


# --- what becomes of a connection -------------------------------------------------------------


def test_a_connection_that_ends_well_is_told_at_both_ends(ends: Ends, echo_server: Address) -> None:
    assert ask_echo(ends.local.bound, echo_server, b"four") == b"four"
    for seen, inbound, way in (
        (ends.at_local, "local", ends.exit.label),
        (ends.at_server, "server", "direct"),
    ):
        record = seen.next()
        assert (record.inbound, record.exit, record.dest) == (inbound, way, str(echo_server))
        assert (record.outcome, record.detail, record.up, record.down) == ("ok", "", 4, 4)
    assert ends.at_server.all[0].user == "default", "the name of the key"


def test_the_reply_names_the_true_outbound_address(ends: Ends) -> None:
    peers = []
    with serving(lambda sock: peers.append(sock.getpeername())) as target:
        with connect(ends.local.bound) as sock:
            sock.sendall(socks_request(target))
            bound = read_answer(sock)
            assert read_to_end(sock) == b""
            sock.shutdown(std_socket.SHUT_WR)
        assert [tuple(bound)] == peers


class Never:
    """A destination that can't be reached, and how that is answered and told."""

    def __init__(self, dest: Address, reply: int, word: str) -> None:
        self.dest, self.reply, self.word = dest, reply, word

    def __str__(self) -> str:
        return self.word


@pytest.mark.parametrize(
    "never",
    [
        Never(Address("127.0.0.1", 1), 5, "refused"),
        Never(Address("nothing.invalid", 80), 4, "name_not_found"),
        Never(Address("10.0.0.1", 80), 2, "forbidden"),
    ],
    ids=str,
)
def test_a_destination_that_cannot_be_reached_is_told_with_its_cause(never: Never) -> None:
    rules = Rules.parse(["deny 10.0.0.0/8", "allow all"])
    with both_ends(exit_group=direct(rules)) as ends:
        with pytest.raises(Refused) as refused:
            through(ends.local.bound, never.dest)
        assert refused.value.args == (never.reply,)
        for seen in (ends.at_local, ends.at_server):
            record = seen.next()
            assert (record.outcome, record.dest) == (never.word, str(never.dest))
            assert record.detail
        eventually(lambda: ends.local.connections == 0)
        eventually(lambda: ends.server.connections == ends.exit.pool.ready > 0)


@pytest.mark.parametrize(
    ("failure", "reply", "word"),
    [
        (ExitFailed("broken"), 1, "exit_failed"),
        (OutOfResources("no descriptor"), 1, "out_of_resources"),
    ],
)
def test_an_exit_that_fails_is_told_as_such(
    make_local: MakeLocal, seen: Seen, failure: Exception, reply: int, word: str
) -> None:
    inbound = make_local(ExitGroup([FakeExit("broken", failure)], ALLOW_ALL))
    with pytest.raises(Refused) as refused:
        through(inbound.bound, NOWHERE)
    record = seen.next()
    assert refused.value.args == (reply,)
    assert (record.outcome, record.exit, record.detail) == (word, "broken", str(failure))


def test_a_detail_names_the_exit_that_it_speaks_of_if_that_is_not_the_last(
    make_local: MakeLocal, seen: Seen
) -> None:
    berlin = Offer(FakeExit("x://1", HostUnreachable("no answer")), name="berlin")
    paris = Offer(FakeExit("x://2", ExitFailed("x://2: gone")), name="paris")
    for offers, told in (
        ([berlin, paris], ("paris", "host_unreachable", "at exit berlin: no answer")),
        ([paris], ("paris", "exit_failed", "x://2: gone")),
    ):
        inbound = make_local(ExitGroup(offers, ALLOW_ALL))
        with pytest.raises(Refused):
            through(inbound.bound, NOWHERE)
        record = seen.next()
        assert (record.exit, record.outcome, record.detail) == told


def test_a_destination_that_never_answers_is_told_when_the_time_is_over(
    make_local: MakeLocal, seen: Seen
) -> None:
    inbound = make_local(ExitGroup([FakeExit("hangs")], ALLOW_ALL, timeout=0.05))
    with pytest.raises(Refused) as refused:
        through(inbound.bound, NOWHERE)
    assert refused.value.args == (6,)
    assert seen.next().outcome == "connect_timeout"


def test_a_client_that_says_nothing_is_let_go_when_the_time_is_over(
    make_local: MakeLocal, seen: Seen
) -> None:
    inbound = make_local(timeouts=Timeouts(handshake=0.05))
    with connect(inbound.bound) as silent, connect(inbound.bound) as slow:
        slow.sendall(b"\x05")
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
    assert [seen.next().outcome for _ in range(2)] == ["handshake_timeout"] * 2
    eventually(lambda: inbound.connections == 0)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"", "client_gone"),
        (b"\x05\x01", "client_gone"),
        (b"\x05\x01\x00\x05\x01\x00\x01\x7f", "client_gone"),
        (b"\x16\x03\x01", "bad_request"),
        (b"\x05\x01\x7f", "auth_failed"),
        (b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "bad_command"),
        (b"\x05\x01\x00\x05\x01\x00\x09", "bad_address_type"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", "bad_address"),
    ],
)
@pytest.mark.parametrize("how", ["ends", "is reset"])
def test_a_client_that_asks_for_nothing_that_can_be_served_is_told_once(
    make_local: MakeLocal, seen: Seen, said: bytes, word: str, how: str
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(said)
        if how == "ends":
            sock.shutdown(std_socket.SHUT_WR)
            read_to_end(sock)
        else:
            eventually(lambda: inbound.connections)
            reset(sock)
        record = seen.next()
        assert record.outcome in (word, "client_gone")
        assert record.is_routine is (not said)
    eventually(lambda: inbound.connections == 0)
    assert len(seen.all) == 1


class LateExit(DirectExit):
    """Connects when a test lets it; by the hub, or else by a greenlet."""

    def __init__(self, by_hub: bool) -> None:
        super().__init__(Dialer(ALLOW_ALL, Resolver()))
        self.asked, self.may_connect = Event(), Event()
        self._by_hub = by_hub

    def begin(self, request: Request, done: Callable[..., None], *args: Any) -> Any:
        if not self._by_hub:
            return None
        self.asked.set()
        begin = super().begin
        self.may_connect.rawlink(lambda _: begin(request, done, *args))
        return self

    def connect(self, request: Request) -> Connected:
        self.asked.set()
        self.may_connect.wait()
        return super().connect(request)


@pytest.mark.parametrize("by_hub", [True, False])
def test_what_is_connected_for_a_client_that_has_left_is_reset(
    make_local: MakeLocal, seen: Seen, by_hub: bool
) -> None:
    way = LateExit(by_hub)
    ended: AsyncResult[object] = AsyncResult()
    inbound = make_local(ExitGroup([way], ALLOW_ALL))
    with serving(lambda sock: ended.set(is_reset(sock))) as target:
        with connect(inbound.bound) as sock:
            sock.sendall(socks_request(target))
            way.asked.wait()
            reset(sock)
        way.may_connect.set()
        assert seen.next().outcome == "client_reset"
        assert ended.get() is True
    eventually(lambda: inbound.connections == 0)


def test_a_failure_for_a_client_that_has_left_is_told_all_the_same(
    make_local: MakeLocal, seen: Seen
) -> None:
    way = FakeExit("slow")
    inbound = make_local(ExitGroup([way], ALLOW_ALL))
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(NOWHERE))
        way.asked.wait()
        reset(sock)
    way.fail(ExitFailed("too late"))
    assert seen.next().outcome == "exit_failed"
    eventually(lambda: inbound.connections == 0)


def test_an_observer_that_fails_takes_nothing_else_with_it(
    echo_server: Address, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def ended(self, record: Record) -> None:
            raise ZeroDivisionError

    inbound = LocalServer(
        ("127.0.0.1", 0), direct(), observer=Broken(), limits=Limits(connections=3)
    )
    with running_inbound(inbound):
        assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
        with pytest.raises(Refused):
            through(inbound.bound, Address("127.0.0.1", 1))
        with connect(inbound.bound) as sock:
            sock.sendall(b"\x16")
            assert read_to_end(sock) == b""
        eventually(lambda: inbound.connections == 0)
        assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
        eventually(lambda: inbound.connections == 0)
    assert {record.getMessage() for record in caplog.records} == {"the observer of local failed"}


# --- stopping ---------------------------------------------------------------------------------


def test_stop_lets_open_connections_end_and_admits_no_more(
    make_local: MakeLocal, echo_server: Address
) -> None:
    inbound = make_local()
    address = inbound.bound
    with through(address, echo_server) as sock:
        stopping = gevent.spawn(inbound.stop, TOO_LONG)
        gevent.idle()
        with pytest.raises(ConnectionRefusedError):
            connect(address)
        sock.sendall(bytes(100_000))
        assert read_exactly(sock, 100_000) == bytes(100_000)
        assert not stopping.ready()
        sock.shutdown(std_socket.SHUT_WR)
        assert read_to_end(sock) == b""
        stopping.get()


@pytest.mark.parametrize("end", ["local", "server"])
def test_stop_resets_what_is_still_open_and_tells_of_it_before_it_returns(
    ends: Ends, echo_server: Address, end: str
) -> None:
    inbound = getattr(ends, end)
    with through(ends.local.bound, echo_server) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        inbound.stop(0.01)
        assert getattr(ends, f"at_{end}").outcomes == ["closed"]
        assert inbound.connections == 0
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_stop_resets_a_half_closed_connection_too(make_local: MakeLocal) -> None:
    inbound, over = make_local(), Event()
    with (
        serving(lambda sock: (read_to_end(sock), over.wait())) as target,
        through(inbound.bound, target) as sock,
    ):
        sock.shutdown(std_socket.SHUT_WR)
        eventually(
            lambda: (
                ["one direction open" in repr(relay) for relay in inbound.context.relays] == [True]
            )
        )
        inbound.stop(0)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        over.set()


def test_stop_waits_for_no_client_that_has_asked_for_nothing(make_local: MakeLocal) -> None:
    inbound = make_local()
    with connect(inbound.bound) as silent, connect(inbound.bound) as slow:
        slow.sendall(b"\x05\x01")
        eventually(lambda: inbound.connections == 2)
        inbound.stop(0)
        assert is_turned_away(silent)
        assert is_turned_away(slow)


def test_stop_ends_a_request_that_is_just_being_connected(
    make_local: MakeLocal, seen: Seen
) -> None:
    way = FakeExit("hangs")
    inbound = make_local(ExitGroup([way], ALLOW_ALL))
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(NOWHERE))
        way.asked.wait()
        inbound.stop(0)
        assert read_exactly(sock, 2) == b"\x05\x00"
        assert is_turned_away(sock)
    assert seen.outcomes == ["stopped"]


def test_a_stopping_server_closes_idle_tunnels_at_once_and_lets_busy_ones_finish(
    ends: Ends, echo_server: Address
) -> None:
    pool = ends.exit.pool
    eventually(lambda: pool.ready == pool.target)
    with through(ends.local.bound, echo_server) as sock:
        stopping = gevent.spawn(ends.server.stop, TOO_LONG)
        eventually(lambda: pool.ready == 0)
        assert ends.server.connections == 1
        sock.sendall(b"still served")
        assert read_exactly(sock, 12) == b"still served"
        sock.shutdown(std_socket.SHUT_WR)
        assert read_to_end(sock) == b""
        stopping.get()
    assert ends.server.connections == 0


def test_a_second_stop_does_nothing(make_local: MakeLocal) -> None:
    inbound = make_local()
    inbound.stop()
    inbound.stop()


def test_a_inbound_that_was_never_started_can_be_stopped() -> None:
    LocalServer(("127.0.0.1", 0), direct()).stop()


# --- whatever happens, nothing is left --------------------------------------------------------


def deaths(ends: Ends, target: Address, bad: Address) -> list[Callable[[], object]]:
    """Every way in which a connection can end, as functions that bring it about."""
    inbound = ends.local.bound

    def resets_in_the_handshake() -> None:
        with connect(inbound) as sock:
            sock.sendall(b"\x05\x01\x00\x05")
            reset(sock)

    def resets_before_the_answer() -> None:
        with connect(inbound) as sock:
            sock.sendall(socks_request(target))
            reset(sock)

    def resets_in_the_middle() -> None:
        with through(inbound, target) as sock:
            sock.sendall(bytes(10_000))
            read_exactly(sock, 5_000)
            reset(sock)

    def closes_without_reading() -> None:
        with through(inbound, target) as sock:
            sock.sendall(bytes(50_000))

    def half_closes_and_goes() -> None:
        with through(inbound, target) as sock:
            sock.sendall(bytes(50_000))
            sock.shutdown(std_socket.SHUT_WR)

    def says_garbage() -> None:
        with connect(inbound) as sock:
            sock.sendall(random.randbytes(100))
            sock.shutdown(std_socket.SHUT_WR)
            read_to_end(sock)

    def comes_to_the_server_as_a_stranger() -> None:
        with connect(ends.server.bound) as sock:
            sock.sendall(random.randbytes(300))
            reset(sock)

    return [
        resets_in_the_handshake,
        resets_before_the_answer,
        resets_in_the_middle,
        closes_without_reading,
        half_closes_and_goes,
        says_garbage,
        comes_to_the_server_as_a_stranger,
        lambda: connect(inbound).close(),
        lambda: ask_echo(inbound, target, bytes(10_000)),
        lambda: ask_echo(inbound, bad, bytes(10_000)),
        lambda: through(inbound, Address("127.0.0.1", 1)),
        lambda: through(inbound, Address("nothing.invalid", 1)),
    ]


def test_nothing_is_left_of_200_connections_that_died_in_every_way(echo_server: Address) -> None:
    random.seed(7)

    def misbehave(sock: socket) -> None:
        if random.random() < 0.5:
            sock.recv(100)
        reset(sock)

    with both_ends(timeouts=Timeouts(handshake=1.0)) as ends, serving(misbehave) as bad:
        ways = deaths(ends, echo_server, bad)
        gather(ways)  # whatever is opened once and kept, such as the resolver's threads
        gather([random.choice(ways) for _ in range(200)])
        eventually(lambda: ends.local.connections == 0)
        # a tunnel that is idle at one end is idle at the other
        eventually(lambda: ends.server.connections == ends.exit.pool.ready)
        assert not ends.local.context.relays
        assert not ends.server.context.relays
        assert ask_echo(ends.local.bound, echo_server, b"and it works") == b"and it works"


# --- when descriptors run out -----------------------------------------------------------------

_SCARCE = """
import logging, resource, sys, threading, gevent
from gsocks.inbound.connection import ClientConnection
from gsocks.local import LocalServer
logging.basicConfig(format="%(message)s", stream=sys.stderr)
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
local = LocalServer("127.0.0.1:0", ["direct"], rules=["allow all"])
local.start()
print(local.bound.port, flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.read)
"""


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100  # utime, stime; see proc(5)


def test_without_descriptors_it_says_so_once_never_spins_and_serves_again_when_they_return(
    echo_server: Address, tmp_path: Path
) -> None:
    with (
        open(tmp_path / "log", "w+") as log,
        running(_SCARCE, stderr=log) as process,
        ExitStack() as open_ones,
    ):
        inbound = printed_address(process)

        def logged() -> str:
            return (tmp_path / "log").read_text()

        for _ in range(100):
            open_ones.enter_context(connect(inbound))
        eventually(lambda: "can't accept" in logged())
        before = cpu_seconds(process.pid)
        gevent.sleep(0.6)  # the time over which its CPU time is measured, more than two pauses
        assert cpu_seconds(process.pid) - before < 0.2, "it spins"
        assert len(logged().splitlines()) == 1, "told once, not for each attempt"
        assert "Too many open files" in logged()
        open_ones.close()

        def is_served() -> bool:
            try:
                return ask_echo(inbound, echo_server, b"served again") == b"served again"
            except (EOFError, ConnectionError):
                return False  # it may be accepted before the others' ends are seen

        eventually(is_served)


# --- inside another program -------------------------------------------------------------------

_GUEST = """
import signal, socket, ssl, subprocess, sys, threading, time
before = [socket.socket, socket.getaddrinfo, threading.Thread, time.sleep, ssl.SSLSocket,
          subprocess.Popen, sys.excepthook]
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}

import gevent, gevent.monkey
from gevent.socket import create_connection
import gsocks

key = gsocks.Key.generate()
server = gsocks.RemoteServer("127.0.0.1:0", keys={"mine": key}, rules=["allow all"])
server.start()
local = gsocks.LocalServer("127.0.0.1:0", [f"gsocks://{key.text()}@{server.bound}"],
                           rules=["allow all"])
local.start()

ticks = []
def mine():
    while True:
        ticks.append(1)
        gevent.sleep(0.001)  # the host program's own work, which must go on
ticker = gevent.spawn(mine)

sock = create_connection(local.bound)
sock.sendall(b"\\x05\\x01\\x00\\x05\\x01\\x00" + server.bound.encode())
assert sock.recv(2) == b"\\x05\\x00"
assert sock.recv(100)[:2] == b"\\x05\\x00"
sock.close()
assert ticks
assert not ticker.dead
local.stop(0)
server.stop(0)

assert before == [socket.socket, socket.getaddrinfo, threading.Thread, time.sleep, ssl.SSLSocket,
                  subprocess.Popen, sys.excepthook]
assert not any(gevent.monkey.is_module_patched(name) for name in
               ("socket", "ssl", "threading", "thread", "time", "select", "os", "signal",
                "subprocess", "queue", "sys"))
assert handlers == {number: signal.getsignal(number) for number in signal.valid_signals()}
import logging
assert not logging.getLogger().handlers and not logging.getLogger("gsocks").handlers
ticker.kill()
print("fine")
"""


def test_inside_a_gevent_program_it_changes_nothing_but_what_it_was_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _GUEST], capture_output=True, text=True, timeout=TOO_LONG
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
