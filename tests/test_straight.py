"""The straight way does what the greenlets do: most tests run over both.

A connection that is traced, at ``log.level: debug``, goes by a greenlet.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.errors import Evicted
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.straight import StraightRequest
from gsocks.local import LocalServer
from gsocks.net.dial import DialAttempt, Dialer
from gsocks.net.listen import defer_accept, listen
from gsocks.net.resolve import Resolver
from gsocks.relay import Relay
from gsocks.request import ExitSelector, Request
from gsocks.rotation.beginning import Beginning
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.settings import Limits, Timeouts
from gsocks.stream import reset, send_now
from tests.support.engine import (
    FakeExit,
    MakeLocal,
    Refused,
    Seen,
    ask_echo,
    connect,
    direct,
    eventually,
    is_reset,
    read_answer,
    read_exactly,
    read_reply,
    read_to_end,
    running_inbound,
    socks_request,
    through,
)
from tests.support.ports import free_port
from tests.support.two_ways import Spawned, both_ways

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

GREETING = b"\x05\x01\x00"
FAILED = b"\x05\x01\x00\x01" + bytes(6)
NOWHERE = Address("192.0.2.1", 80)


class Pending:
    """An exit that is asked, and ends no attempt, on either way."""

    label = "pending"

    def __init__(self) -> None:
        self.asked = Event()
        self.given_up = 0

    def begin(self, request: Request, done: Callable[..., None], *args: Any) -> Pending:
        self.asked.set()
        return self

    def cancel(self) -> None:
        self.given_up += 1

    def connect(self, request: Request) -> Connected:
        self.asked.set()
        try:
            Event().wait()
        finally:
            self.given_up += 1
        raise AssertionError

    def close(self) -> None: ...


# --- what is straight -------------------------------------------------------------------------


def test_a_plain_connection_has_no_greenlet(
    make_local: MakeLocal, seen: Seen, spawned: Spawned, echo_server: Address
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(GREETING)
        assert read_exactly(sock, 2) == b"\x05\x00"
        assert len(inbound.context.silent) == 1
        sock.sendall(socks_request(echo_server)[3:])
        read_reply(sock)
        assert len(inbound.context.silent) == 0
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
    record = seen.next()
    assert (record.outcome, record.up, record.down) == ("ok", 5, 5)
    assert (record.dest, record.exit) == (str(echo_server), "direct")
    assert record.command == "connect"
    assert spawned == []
    eventually(lambda: not inbound.connections)
    assert not inbound.context.connecting


def test_nor_has_one_that_sends_everything_at_once(
    make_local: MakeLocal, spawned: Spawned, echo_server: Address
) -> None:
    inbound = make_local()
    with through(inbound.bound, echo_server, payload=b"first words") as sock:
        assert read_exactly(sock, 11) == b"first words"
    assert spawned == []


def test_nor_one_whose_bytes_are_limited(
    make_local: MakeLocal, spawned: Spawned, echo_server: Address
) -> None:
    inbound = make_local(limits=Limits(bandwidth_per_connection=1e6))
    assert ask_echo(inbound.bound, echo_server, b"x" * 5000) == b"x" * 5000
    assert spawned == []


def test_what_is_there_at_the_accept_is_read_at_once(
    seen: Seen, spawned: Spawned, echo_server: Address
) -> None:
    listener = defer_accept(listen(Address("127.0.0.1", 0)))
    with running_inbound(LocalServer(listener, direct(), observer=seen)) as inbound:
        assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
    assert seen.next().outcome == "ok"
    assert spawned == []


def test_what_is_accepted_without_a_byte_is_waited_for(
    make_local: MakeLocal, echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.local.is_deferred", lambda _: True)
    inbound = make_local()
    with connect(inbound.bound) as sock:
        eventually(lambda: len(inbound.context.silent) == 1)
        sock.sendall(socks_request(echo_server))
        read_answer(sock)


@pytest.mark.parametrize(
    "greeting", [b"\x05\x02\x00\x02", b"\x05\x02\x02\x00", b"\x05\x03\x00\x01\x02"]
)
def test_nor_has_one_whose_client_offers_a_login_that_makes_no_difference(
    make_local: MakeLocal, spawned: Spawned, echo_server: Address, greeting: bytes
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(greeting + socks_request(echo_server)[3:])
        read_answer(sock)
    assert spawned == []


@both_ways
@pytest.mark.parametrize("prefers", [False, True])
@pytest.mark.parametrize("methods", [b"\x00", b"\x00\x02", b"\x02\x00", b"\x02", b"\x01", b""])
def test_the_method_is_the_same_on_either_way(
    make_local: MakeLocal, methods: bytes, prefers: bool
) -> None:
    inbound = make_local(prefer_login=prefers)
    with connect(inbound.bound) as sock:
        sock.sendall(bytes((5, len(methods))) + methods)
        takes_login = 2 in methods and (prefers or 0 not in methods)
        method = 2 if takes_login else 0 if 0 in methods else 0xFF
        assert read_exactly(sock, 2) == bytes((5, method))


@pytest.mark.parametrize(
    "said",
    [
        b"\x05\x01\x02",
        b"\x05\x01",
        b"\x04\x01",
        b"GET ",
        b"\x16",
        GREETING + b"\x05",
        GREETING + b"\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x07",
        GREETING + b"\x05\x01\x00\x09",
        GREETING + b"\x05\x01\x00\x03\x01%\x00\x50",
        GREETING + b"\x05\xf0\x00\x03\x01a\x00\x50",
    ],
)
def test_anything_else_goes_by_a_greenlet(
    make_local: MakeLocal, spawned: Spawned, said: bytes
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(said)
        eventually(lambda: spawned)


@both_ways
def test_however_the_bytes_come_the_answer_is_the_same(
    make_local: MakeLocal, echo_server: Address
) -> None:
    inbound = make_local()
    said = socks_request(echo_server) + b"hello"
    for cut in range(1, len(said)):
        with connect(inbound.bound) as sock:
            sock.sendall(said[:cut])
            if cut >= len(GREETING):
                assert read_exactly(sock, 2) == b"\x05\x00"
            else:
                gevent.sleep(0.002)
            sock.sendall(said[cut:])
            if cut < len(GREETING):
                assert read_exactly(sock, 2) == b"\x05\x00"
            read_reply(sock)
            assert read_exactly(sock, 5) == b"hello"


def test_a_fault_of_an_exit_leaves_no_client_waiting(
    make_local: MakeLocal, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty(DirectExit):
        def begin(self, *_: object) -> None:
            raise ValueError("a fault")

    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    exits = ExitGroup([Faulty(Dialer(ALLOW_ALL, Resolver()))], ALLOW_ALL)
    inbound = make_local(exits)
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(NOWHERE))
        assert read_to_end(sock) == b"\x05\x00"
    assert seen.next().outcome == "stopped"
    assert inbound.connections == 0
    (member,) = exits.roster
    assert (member.open, member.health.in_flight) == (0, 0)


@pytest.mark.parametrize("session", [None, "cart7"])
def test_a_choice_that_lasts_for_longer_than_a_turn_is_made_by_a_greenlet(
    session: str | None,
    make_local: MakeLocal,
    echo_server: Address,
    spawned: Spawned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the first one of a country among many exits, which are to be put in order."""
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", -1.0)
    exit_ = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    exits = ExitGroup([Offer(exit_, name=name, country="de") for name in ("a", "b")], ALLOW_ALL)
    inbound = make_local(exits, selector=ExitSelector(session, country="de"))
    for _ in range(2):
        assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
        assert len(spawned) == 1  # it is made once


@both_ways
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_may_be_sent_as_a_name(
    make_local: MakeLocal, echo_server: Address, host: str
) -> None:
    inbound, name = make_local(), host.encode()
    request = b"\x05\x01\x00\x03" + bytes((len(name),)) + name + echo_server.encode()[-2:]
    with connect(inbound.bound) as sock:
        sock.sendall(GREETING + request)
        read_answer(sock)
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"


# --- how its handshake ends -------------------------------------------------------------------


@both_ways
def test_a_client_without_a_request_is_answered_when_its_time_is_over(
    make_local: MakeLocal, seen: Seen
) -> None:
    inbound = make_local(timeouts=Timeouts(handshake=0.05))
    with connect(inbound.bound) as sock:
        sock.sendall(GREETING)
        assert read_to_end(sock) == b"\x05\x00" + FAILED
    record = seen.next()
    assert record.outcome == "handshake_timeout"
    assert not record.is_routine
    eventually(lambda: not inbound.connections)


@both_ways
@pytest.mark.parametrize("said", [b"", GREETING])
@pytest.mark.parametrize("leave", [socket.close, is_reset], ids=["end", "reset"])
def test_a_client_that_leaves_is_told_as_gone(
    make_local: MakeLocal, seen: Seen, said: bytes, leave: Callable[[socket], object]
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        if said:
            sock.sendall(said)
            assert read_exactly(sock, 2) == b"\x05\x00"
        if leave is socket.close:
            sock.close()
        else:
            reset(sock)
    record = seen.next()
    assert record.outcome == "client_gone"
    assert record.is_routine is not bool(said)
    assert record.detail.startswith("disconnected before its request was complete: ")
    eventually(lambda: not inbound.connections)


@both_ways
def test_an_evicted_client_that_has_spoken_is_told(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local(limits=Limits(handshakes=1))
    with connect(inbound.bound) as sock:
        sock.sendall(GREETING)
        assert read_exactly(sock, 2) == b"\x05\x00"
        with connect(inbound.bound):
            assert read_to_end(sock) == b""
            record = seen.next()
            assert (record.outcome, record.is_routine) == (Evicted.word, False)
            assert inbound.connections == 1


@both_ways
def test_a_listener_that_stops_ends_what_has_spoken(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(GREETING)
        assert read_exactly(sock, 2) == b"\x05\x00"
        inbound.stop(0)
        assert read_to_end(sock) == b""
    assert not inbound.connections
    assert not seen.all


# --- how it is connected ----------------------------------------------------------------------


@both_ways
def test_a_refused_destination_is_answered(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local()
    with pytest.raises(Refused, match="5"):
        through(inbound.bound, Address("127.0.0.1", free_port()))
    record = seen.next()
    assert (record.outcome, record.exit) == ("refused", "direct")
    eventually(lambda: not inbound.connections)


@both_ways
def test_a_denied_destination_is_answered(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local(direct(Rules.parse(["deny private", "allow all"])))
    with pytest.raises(Refused, match="2"):
        through(inbound.bound, Address("127.0.0.1", 80))
    assert seen.next().outcome == "forbidden"


@both_ways
def test_the_next_exit_serves_what_the_first_has_failed(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    class Failing(DirectExit):
        def begin(self, request: Request, done: Callable[..., None], *args: Any) -> Any:
            return super().begin(request._replace(dest=closed), done, *args)

        def connect(self, request: Request) -> Connected:
            return super().connect(request._replace(dest=closed))

    closed = Address("127.0.0.1", free_port())
    dialer = Dialer(ALLOW_ALL, Resolver())
    exits = [Failing(dialer, "failing"), DirectExit(dialer, "working")]
    inbound = make_local(ExitGroup(exits, ALLOW_ALL))
    assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
    assert seen.next().exit == "working"


@both_ways
def test_what_the_client_sends_meanwhile_is_delivered(
    make_local: MakeLocal, echo_server: Address
) -> None:
    class Slow(DirectExit):
        asked, go_on = Event(), Event()

        def begin(self, request: Request, done: Callable[..., None], *args: Any) -> Any:
            self.asked.set()
            begin = super().begin
            self.go_on.rawlink(lambda _: begin(request, done, *args))
            return self

        def connect(self, request: Request) -> Connected:
            self.asked.set()
            self.go_on.wait()
            return super().connect(request)

    slow = Slow(Dialer(ALLOW_ALL, Resolver()))
    inbound = make_local(ExitGroup([slow], ALLOW_ALL))
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(echo_server))
        slow.asked.wait()
        sock.sendall(b"too early")
        gevent.sleep(0.01)
        slow.go_on.set()
        read_answer(sock)
        assert read_exactly(sock, 9) == b"too early"


@both_ways
def test_a_listener_that_stops_gives_up_what_is_being_connected(
    make_local: MakeLocal, seen: Seen
) -> None:
    pending = Pending()
    group = ExitGroup([pending], ALLOW_ALL)
    inbound = make_local(group)
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(NOWHERE))
        pending.asked.wait()
        inbound.stop(0)
        assert pending.given_up == 1
        assert read_to_end(sock) == b"\x05\x00"
    assert seen.next().outcome == "stopped"
    assert not inbound.connections
    assert [(each.open, each.health.in_flight) for each in group.roster] == [(0, 0)]


@both_ways
def test_an_exit_without_an_answer_is_given_up(make_local: MakeLocal, seen: Seen) -> None:
    pending = Pending()
    inbound = make_local(ExitGroup([pending], ALLOW_ALL, timeout=0.05))
    with pytest.raises(Refused):
        through(inbound.bound, NOWHERE)
    assert pending.given_up == 1
    record = seen.next()
    assert record.outcome == "connect_timeout"
    assert record.detail == f"{NOWHERE}: not connected within 0.05 s"


@both_ways
def test_an_exit_that_needs_a_greenlet_has_one(
    make_local: MakeLocal, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbound = make_local(ExitGroup([FakeExit("only", FileNotFoundError())], ALLOW_ALL))
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(NOWHERE))
        assert read_to_end(sock) == b"\x05\x00"
    assert seen.next().outcome == "stopped"
    eventually(lambda: not inbound.connections)


# --- how it is answered -----------------------------------------------------------------------


def test_an_answer_without_room_is_sent_by_a_greenlet(
    make_local: MakeLocal,
    spawned: Spawned,
    echo_server: Address,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbound = make_local()

    def narrow(fd: int, data: bytes) -> int:
        return send_now(fd, data[:3])

    monkeypatch.setattr("gsocks.inbound.straight.send_now", narrow)
    assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
    assert len(spawned) == 1


def test_a_fault_ends_the_connection_and_is_told(
    make_local: MakeLocal, seen: Seen, echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    inbound = make_local()
    monkeypatch.setattr("gsocks.inbound.straight.socks5_success", fault)
    told: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *error: told.append(error[2]))
    with connect(inbound.bound) as sock:
        sock.sendall(socks_request(echo_server))
        assert read_to_end(sock) == b"\x05\x00"
    assert seen.next().outcome == "stopped"
    assert [str(each) for each in told] == ["a bug"]
    eventually(lambda: not inbound.connections)


def test_what_has_ended_is_freed_without_the_collector(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local()
    gc.disable()
    try:
        assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
        with pytest.raises(Refused):
            through(inbound.bound, Address("127.0.0.1", free_port()))
        seen.next(), seen.next()
        eventually(lambda: not inbound.connections)
        kinds = (StraightRequest, ClientConnection, Relay, Beginning, DialAttempt, FirstAttempt)
        assert not [each for each in gc.get_objects() if isinstance(each, kinds)]
    finally:
        gc.enable()
