"""Hedging: which of two exits serves a request, and what becomes of the other one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.group import ExitGroup, Outbound
from gsocks.rotation.member import Member, Offer
from gsocks.stream import SocketStream
from tests.support.engine import eventually
from tests.support.program import Program
from tests.support.stream_contract import tcp_pair
from tests.support.waiting import TOO_LONG

in_this_process = pytest.mark.usefixtures("never_hangs", "nothing_left")

BOUND = Address("192.0.2.1", 1234)
DEST = Address("a.example", 443)


class Waiting:
    """An exit that connects when it is told to; from the beginning, unless ``slow``."""

    def __init__(self, label: str, *, slow: bool = False) -> None:
        self.label = label
        self.may_answer = Event()
        self.error: Exception | None = None
        self.asked = 0
        #: the far ends of its connections
        self.far: list[socket.socket] = []
        if not slow:
            self.may_answer.set()

    def close(self) -> None:
        for far in self.far:
            far.close()

    def connect(self, request: Request) -> Connected:
        self.asked += 1
        self.may_answer.wait()
        if self.error is not None:
            raise self.error
        near, far = tcp_pair()
        self.far.append(far)
        return Connected(SocketStream(near), BOUND)

    def fails(self, error: Exception) -> None:
        self.error = error
        self.may_answer.set()


@contextmanager
def group(*exits: Waiting, hedge: float | None = 0.01, **options: Any) -> Iterator[ExitGroup]:
    offers = [Offer(each, name=each.label) for each in exits]
    made = ExitGroup(offers, ALLOW_ALL, hedge=hedge, timeout=4 * TOO_LONG, **options)
    made.start()
    try:
        yield made
    finally:
        made.close()


def ask(
    of: ExitGroup,
    tried: Callable[[str], None] = lambda _: None,
    selector: ExitSelector = ANY,
    **more: Any,
) -> Outbound:
    return of.connect(Request(Command.CONNECT, DEST, selector=selector, **more), tried)


def member(of: ExitGroup, name: str) -> Member:
    found = of.roster.named(name)
    assert found is not None
    return found


def end(outbound: Outbound) -> None:
    outbound.stream.abort()
    outbound.release(1, 1)


def is_idle(of: ExitGroup, name: str) -> bool:
    return member(of, name).open == 0 and member(of, name).health.in_flight == 0


@in_this_process
def test_an_exit_that_keeps_a_request_waiting_is_joined_by_another_one() -> None:
    slow, quick = Waiting("slow", slow=True), Waiting("quick")
    with group(slow, quick) as exits:
        tried: list[str] = []
        outbound = ask(exits, tried.append)
        assert outbound.name == "quick"
        assert tried == ["slow", "quick", "quick"]  # the last one is what the log names
        end(outbound)
        assert slow.asked == quick.asked == 1


@in_this_process
def test_a_quick_exit_is_joined_by_none() -> None:
    first, second = Waiting("first"), Waiting("second")
    with group(first, second, hedge=TOO_LONG) as exits:
        end(ask(exits))
        assert second.asked == 0


@in_this_process
def test_a_late_connection_is_closed_without_a_byte_and_costs_no_blame() -> None:
    slow, quick = Waiting("slow", slow=True), Waiting("quick")
    with group(slow, quick) as exits:
        outbound = ask(exits, payload=b"secret")
        slow.may_answer.set()
        eventually(lambda: is_idle(exits, "slow"))
        (far,) = slow.far
        try:
            assert far.recv(100) == b""
        except ConnectionResetError:
            pass  # closed all the same
        counts = member(exits, "slow").counts
        assert (counts.failed, counts.connected) == (0, 1)
        assert not member(exits, "slow").health.failures
        end(outbound)
        assert is_idle(exits, "quick")


@in_this_process
def test_a_late_failure_is_blamed_as_it_deserves() -> None:
    slow, quick = Waiting("slow", slow=True), Waiting("quick")
    with group(slow, quick) as exits:
        end(ask(exits))
        slow.fails(errors.ExitFailed("broken"))
        eventually(lambda: is_idle(exits, "slow"))
        assert member(exits, "slow").counts.failed == 1


@in_this_process
def test_the_first_exit_may_still_win() -> None:
    first, second = Waiting("first", slow=True), Waiting("second", slow=True)
    with group(first, second) as exits:
        asking = gevent.spawn(ask, exits)
        eventually(lambda: second.asked == 1)
        first.may_answer.set()
        outbound = asking.get()
        assert outbound.name == "first"
        second.may_answer.set()
        eventually(lambda: is_idle(exits, "second"))
        end(outbound)


@in_this_process
def test_when_both_fail_the_next_exit_is_tried_within_the_tries() -> None:
    exits = [Waiting(f"e{number}", slow=True) for number in range(4)]
    with group(*exits, tries=3) as of:
        asking = gevent.spawn(pytest.raises, errors.ExitFailed, ask, of)
        for each in exits[:3]:
            eventually(lambda each=each: each.asked == 1)  # type: ignore[misc]
            each.fails(errors.ExitFailed("dead"))
        asking.get()
        assert exits[3].asked == 0
        assert all(is_idle(of, each.label) for each in exits)


@in_this_process
@pytest.mark.parametrize(
    "more", [{"selector": ExitSelector(session="cart")}, {"fast_open": True}], ids=str
)
def test_a_session_and_fast_open_are_not_hedged(more: dict[str, Any]) -> None:
    exits = [Waiting(f"e{number}", slow=True) for number in range(3)]
    with group(*exits, hedge=0.001) as of:
        asking = gevent.spawn(ask, of, **more)
        eventually(lambda: sum(each.asked for each in exits) == 1)
        # one that is hedged, and begins later: the first one's hedge would have come before
        tried: list[str] = []
        hedged = gevent.spawn(ask, of, tried.append)
        eventually(lambda: len(tried) == 2)
        assert sum(each.asked for each in exits) == 3
        for each in exits:
            each.may_answer.set()
        end(asking.get())
        end(hedged.get())
        eventually(lambda: all(is_idle(of, each.label) for each in exits))


@in_this_process
def test_two_silent_exits_leave_time_to_the_next_one() -> None:
    first, second, third = (Waiting(f"e{n}", slow=n < 2) for n in range(3))
    with group(first, second, third, tries=3) as exits:
        exits.timeout = 0.5
        outbound = ask(exits)
        assert outbound.name == "e2"
        end(outbound)


@in_this_process
def test_a_silent_exit_that_none_may_join_leaves_time_to_the_next_one() -> None:
    """One that is down joins no other one."""

    class Slow(Waiting):
        def connect(self, request: Request) -> Connected:
            gevent.sleep(0.05)  # as one that is far away
            return super().connect(request)

    silent, down = Waiting("silent", slow=True), Slow("down")
    with group(silent, down) as exits:
        exits.timeout = 1.0
        exits.evidence.checked(member(exits, "down"), False, time.monotonic())
        outbound = ask(exits)
        assert outbound.name == "down"
        assert silent.asked == 1
        end(outbound)


@in_this_process
def test_a_request_that_is_given_up_ends_both_attempts() -> None:
    first, second = Waiting("first", slow=True), Waiting("second", slow=True)
    with group(first, second) as exits:
        asking = gevent.spawn(ask, exits)
        eventually(lambda: second.asked == 1)
        asking.kill()
        eventually(lambda: is_idle(exits, "first") and is_idle(exits, "second"))
        assert [member(exits, name).counts.failed for name in ("first", "second")] == [0, 0]


@in_this_process
def test_late_attempts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.rotation.hedging.Hedge.max_late", 1)
    slow, quick = Waiting("slow", slow=True), Waiting("quick")
    with group(slow, quick) as exits:
        for _ in range(6):
            end(ask(exits))
        assert slow.asked > 1
        eventually(lambda: member(exits, "slow").open == 1)
        assert member(exits, "slow").counts.failed == 0


@in_this_process
def test_the_end_of_the_group_ends_late_attempts() -> None:
    slow, quick = Waiting("slow", slow=True), Waiting("quick")
    with group(slow, quick) as exits:
        end(ask(exits))
    eventually(lambda: is_idle(exits, "slow"))


# --- the program ------------------------------------------------------------------------------


def test_a_silent_exit_keeps_no_client_waiting(tmp_path: Path) -> None:
    """With bounds so long that a request could not be served without a hedge."""
    received: list[bytes] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as echo,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):

        def serve() -> None:
            while True:
                try:
                    sock, _ = echo.accept()
                except OSError:
                    return
                with sock:
                    data = sock.recv(100)
                    received.append(data)
                    sock.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        path = tmp_path / "c.yaml"
        path.write_text(
            "local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n  hedge: 50ms\n"
            f"  timeouts: {{connect: {8 * TOO_LONG}s, exit: {8 * TOO_LONG}s}}\n"
            "  exits:\n"
            f"    - socks5://127.0.0.1:{silent.getsockname()[1]}\n    - direct\n"
        )
        with Program("-c", path) as program:
            port, there = program.port(), echo.getsockname()[1]
            for number in range(4):
                with socket.create_connection(("127.0.0.1", port), TOO_LONG) as client:
                    request = b"\5\1\0" + b"\5\1\0\1" + socket.inet_aton("127.0.0.1")
                    client.sendall(request + there.to_bytes(2, "big") + b"hello %d" % number)
                    told = client.makefile("rb")
                    assert told.read(12)[:4] == b"\5\0\5\0"
                    assert told.read(7) == b"hello %d" % number
                    told.close()
            program.wait_for(r"exit=direct up=7 down=7 .* outcome=ok", times=4)
        assert received == [b"hello %d" % number for number in range(4)]
