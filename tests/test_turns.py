"""Long work that lets others run."""

from __future__ import annotations

import gc
import weakref

import gevent
import pytest
from gevent import socket

from gsocks.turns import LONGEST_TURN, MANY_OBJECTS, give_way, in_turns, without_collection
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")
#: not where the collector is what is tested: the fixture freezes it
leaves_nothing = pytest.mark.usefixtures("nothing_left")


@leaves_nothing
def test_sockets_are_read_while_a_loop_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", 0.0)
    near, far = socket.socketpair()
    with near, far:
        reading = gevent.spawn(far.recv, 1)
        gevent.idle()
        near.sendall(b"x")
        turns = 0
        while not reading.ready():
            give_way()
            turns += 1
        assert turns <= 3
        assert reading.get() == b"x"


@leaves_nothing
def test_a_loop_goes_on_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", TOO_LONG)
    other = gevent.spawn(lambda: None)
    for _ in range(100):
        give_way()
    assert not other.dead
    assert not other.ready()
    give_way(at_once=True)
    assert other.ready()


@leaves_nothing
def test_the_time_counts_from_the_turns_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("gsocks.turns.time.perf_counter", lambda: clock[0])
    clock[0] += 60.0  # idle for a minute
    gevent.sleep(1e-6)
    other = gevent.spawn(lambda: None)
    for seconds in (0.8 * LONGEST_TURN, 0.1 * LONGEST_TURN):
        clock[0] += seconds
        give_way()
        assert not other.ready()
    clock[0] += 0.2 * LONGEST_TURN
    give_way()
    assert other.ready()


@leaves_nothing
def test_the_time_of_a_turn_is_shared_by_all_that_find_work_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("gsocks.turns.time.perf_counter", lambda: clock[0])
    steps = []

    def work(name: int) -> None:
        for _ in range(5):
            steps.append(name)
            clock[0] += LONGEST_TURN * 0.75
            give_way()

    gevent.sleep(1e-6)
    gevent.joinall([gevent.spawn(work, name) for name in range(3)])
    # the first has its time, and each of the others one step in the same turn
    assert steps[:4] == [0, 0, 1, 2]


def test_no_collection_goes_through_what_is_made_meanwhile() -> None:
    begun = gc.get_freeze_count()
    with without_collection():
        assert not gc.isenabled()
        made = [[] for _ in range(2 * MANY_OBJECTS)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= begun + len(made)
    with without_collection(), without_collection():
        pass
    assert gc.isenabled()


def test_garbage_is_collected_after_few_objects_were_made() -> None:
    garbage = type("Garbage", (), {})()
    garbage.cycle = garbage
    is_left = weakref.ref(garbage)
    with without_collection():  # as for each reload
        del garbage
    gc.collect()
    assert is_left() is None


def test_what_is_made_at_the_start_is_never_looked_at() -> None:
    begun = gc.get_freeze_count()
    with without_collection(at_start=True):
        made = [[]]  # type: ignore[var-annotated]
    assert gc.get_freeze_count() >= begun + len(made)


@leaves_nothing
def test_what_is_gone_over_in_turns_is_whole_and_lets_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", 0.0)
    seen: list[int] = []
    other = gevent.spawn(lambda: seen.append(-1))
    seen.extend(in_turns(range(10), at_once=4))
    assert other.ready()
    assert seen == [0, 1, 2, 3, -1, 4, 5, 6, 7, 8, 9]
    assert list(in_turns(())) == []
