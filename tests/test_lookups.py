"""Look-ups under way: what one client may have of them, and when they end."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocks.errors import HostUnreachable, LimitReached
from gsocks.net.lookups import LookUps
from tests.support.waiting import eventually

#: the greenlets of a test, which would wait for ever
_waiting: list[gevent.Greenlet[..., Any]] = []


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    yield
    while _waiting:
        gevent.killall(_waiting[:])
        _waiting[:] = [each for each in _waiting if not each.dead]


class Silent:
    """Runs look-ups that end when the test says so."""

    def __init__(self, most: int = 100, per_client: int = 100, young: float = 60.0) -> None:
        self.began: list[str] = []
        self.killed: list[str] = []
        self.answers: dict[str, Event] = {}
        self.look_ups: LookUps[str] = LookUps(self._run, most, per_client)
        self.look_ups.young = young

    def _run(self, name: str, owner: Hashable) -> str:
        self.began.append(name)
        _waiting.append(gevent.getcurrent())  # type: ignore[arg-type]
        answer = self.answers.setdefault(name, Event())
        try:
            answer.wait()
        except gevent.GreenletExit:
            self.killed.append(name)
            raise
        return f"{name} found"

    def ask(self, name: str, owner: str) -> gevent.Greenlet[..., str]:
        asking = gevent.spawn(self.look_ups.get, name, owner)
        _waiting.append(asking)
        gevent.idle()
        return asking

    def answer(self, name: str) -> None:
        self.answers.setdefault(name, Event()).set()


def outcome(asking: gevent.Greenlet[..., str]) -> str:
    try:
        return asking.get(timeout=5)
    except LimitReached:
        return "limit"


def test_a_name_is_looked_up_once_for_all_that_wait_for_it() -> None:
    silent = Silent()
    asking = [silent.ask("a", client) for client in ("alice", "bob", "alice")]
    silent.answer("a")
    assert [outcome(each) for each in asking] == ["a found"] * 3
    assert silent.began == ["a"]
    assert len(silent.look_ups) == 0


def test_a_look_up_that_no_request_waits_for_is_dropped() -> None:
    silent = Silent(per_client=1, most=1, young=0.01)
    first, second = silent.ask("a", "alice"), silent.ask("a", "bob")
    waiting = silent.ask("b", "alice")
    first.kill()
    gevent.sleep(0.02)
    assert silent.killed == []
    second.kill()
    gevent.idle()
    assert silent.killed == ["a"]
    silent.answer("b")  # which has its place now
    assert outcome(waiting) == "b found"


def test_names_that_are_asked_for_and_left_alone_have_their_share_too() -> None:
    """Else a client could have name servers asked at any rate."""
    silent = Silent(per_client=2, young=1.0)
    for number in range(100):
        silent.ask(f"a{number}", "alice").kill()
    assert silent.began == ["a0", "a1"]
    last = silent.ask("a1", "alice")
    eventually(lambda: silent.killed == ["a0"], sleep=gevent.sleep)
    silent.answer("a1")
    assert outcome(last) == "a1 found"
    assert silent.killed == ["a0"]


def test_a_name_that_waits_for_its_turn_is_dropped_too() -> None:
    silent = Silent(per_client=1)
    silent.ask("a", "alice")
    silent.ask("b", "alice").kill()
    assert len(silent.look_ups) == 1
    silent.answer("a")
    gevent.idle()
    assert silent.began == ["a"]


def test_a_clients_names_beyond_its_share_wait_for_its_own() -> None:
    silent = Silent(per_client=2)
    for name in ("a1", "a2", "a3", "a4"):
        silent.ask(name, "alice")
    bobs = silent.ask("b1", "bob")
    assert silent.began == ["a1", "a2", "b1"]
    silent.answer("b1")
    assert outcome(bobs) == "b1 found"
    silent.answer("a2")
    gevent.idle()
    assert silent.began == ["a1", "a2", "b1", "a3"]


def test_names_that_stay_silent_hold_up_their_client_for_no_longer_than_a_second() -> None:
    silent = Silent(per_client=2, young=0.05)
    for name in ("a1", "a2", "a3"):
        silent.ask(name, "alice")
    assert silent.began == ["a1", "a2"]
    eventually(lambda: silent.began == ["a1", "a2", "a3"], sleep=gevent.sleep)
    assert silent.killed == []


def test_no_more_than_a_bounded_number_of_a_clients_names_waits() -> None:
    class Few(LookUps[str]):
        max_waiting = 2

    silent = Silent()
    silent.look_ups = Few(silent._run, 1, 1)
    for name in ("a1", "a2", "a3"):
        silent.ask(name, "alice")
    assert outcome(silent.ask("a4", "alice")) == "limit"


def test_the_oldest_look_up_of_the_client_that_has_most_makes_room() -> None:
    silent = Silent(most=4)
    alices = [silent.ask(f"a{n}", "alice") for n in range(3)]
    silent.ask("b0", "bob")
    carols = silent.ask("c0", "carol")
    assert outcome(alices[0]) == "limit"
    assert silent.began == ["a0", "a1", "a2", "b0", "c0"]
    silent.answer("c0")
    assert outcome(carols) == "c0 found"


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_500_silent_names_of_however_many_clients_leave_room_for_another(clients: int) -> None:
    silent = Silent(most=40, per_client=20)
    for number in range(500):
        silent.ask(f"n{number}", f"client {number % clients}")
    assert len(silent.began) - len(silent.killed) <= 40
    for number in range(3):
        bobs = silent.ask(f"b{number}", "bob")
        silent.answer(f"b{number}")
        assert outcome(bobs) == f"b{number} found"


def test_a_request_that_shares_the_look_up_of_a_client_that_has_too_many_keeps_it() -> None:
    silent = Silent(most=2)
    alices = silent.ask("a", "alice")
    bobs = silent.ask("a", "bob")
    silent.ask("b", "alice")
    silent.ask("c", "carol")
    assert outcome(alices) == "limit"
    silent.answer("a")
    assert outcome(bobs) == "a found"


def test_a_client_that_has_most_itself_waits_for_its_own() -> None:
    silent = Silent(most=2)
    alices = [silent.ask(f"a{n}", "alice") for n in range(3)]
    assert silent.began == ["a0", "a1"]
    silent.answer("a0")
    silent.answer("a2")
    assert [outcome(alices[0]), outcome(alices[2])] == ["a0 found", "a2 found"]


def test_a_client_whose_look_ups_made_room_has_its_turn_again() -> None:
    silent = Silent(most=1)
    silent.ask("a0", "alice")
    waits = silent.ask("a1", "alice")  # alice has most, and waits for a0
    carols = silent.ask("c0", "carol")  # for which a0 makes room
    assert silent.killed == ["a0"]
    silent.answer("c0")
    silent.answer("a1")
    assert [outcome(carols), outcome(waits)] == ["c0 found", "a1 found"]


def test_a_wait_may_end_before_the_look_up_does() -> None:
    silent = Silent()
    assert silent.look_ups.get_within(0.001, "a", "alice") is None
    assert silent.killed == []
    asking = silent.ask("a", "alice")
    silent.answer("a")
    assert outcome(asking) == "a found"
    assert silent.began == ["a"]


@pytest.mark.parametrize(
    "get", [LookUps.get, lambda *args: LookUps.get_within(args[0], 9, *args[1:])]
)
def test_a_failure_is_raised_by_all_that_wait(get: Callable[..., object]) -> None:
    def run(name: str, owner: Hashable) -> str:
        raise HostUnreachable(f"{name}: no name server answers")

    look_ups: LookUps[str] = LookUps(run, 1, 1)
    asking = [gevent.spawn(get, look_ups, "a", "alice") for _ in range(2)]
    gevent.joinall(asking)
    assert [str(each.exception) for each in asking] == ["a: no name server answers"] * 2
    assert asking[0].exception is not asking[1].exception
    assert len(look_ups) == 0
