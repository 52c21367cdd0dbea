"""A hello is accepted once, in its time, by all workers together."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gsocks import replay
from gsocks.replay import WINDOW_MS, ReplayGuard, now_ms
from tests.support.engine import open_descriptors
from tests.support.waiting import TOO_LONG, eventually

NOW = 1_767_225_600_000
KEY, OTHER = bytes(32), bytes(range(32))


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    """A bound that also ends a wait in the kernel, of which gevent knows nothing."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(TOO_LONG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def guard() -> Iterator[ReplayGuard]:
    made = ReplayGuard(started_ms=0)
    yield made
    made.close()


def token(number: int) -> bytes:
    return hashlib.sha256(b"token %d" % number).digest()


# --- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off", "admitted"),
    [
        (-WINDOW_MS - 1, False),
        (-WINDOW_MS, True),
        (-1, True),
        (0, True),
        (1, True),
        (WINDOW_MS, True),
        (WINDOW_MS + 1, False),
        (-NOW, False),
        (2**64 - 1 - NOW, False),
    ],
)
def test_a_hello_is_accepted_within_half_a_minute_of_the_servers_clock(
    guard: ReplayGuard, off: int, admitted: bool
) -> None:
    assert WINDOW_MS == 30_000
    assert guard.admit(token(0), NOW + off, KEY, NOW) is admitted


@pytest.mark.parametrize(("before", "admitted"), [(2, False), (1, False), (0, True), (-1, True)])
def test_a_hello_from_before_the_start_is_refused(before: int, admitted: bool) -> None:
    guard = ReplayGuard(started_ms=NOW)
    assert guard.admit(token(0), NOW - before, KEY, NOW) is admitted
    guard.close()


def test_a_guard_starts_when_it_is_made_and_reads_the_clock_itself() -> None:
    before = now_ms()
    guard = ReplayGuard()
    assert not guard.admit(token(0), before - 1, KEY)
    assert guard.admit(token(1), now_ms(), KEY)
    assert not guard.admit(token(2), now_ms() - WINDOW_MS - 1, KEY)
    guard.close()


def test_time_is_in_milliseconds_since_1970() -> None:
    before = time.time()
    assert before * 1000 - 1 <= now_ms() <= time.time() * 1000 + 1


# --- once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [-WINDOW_MS, -1, 0, 1, WINDOW_MS])
def test_a_hello_is_refused_for_as_long_as_its_time_would_be_accepted(
    guard: ReplayGuard, off: int
) -> None:
    said = NOW + off
    assert guard.admit(token(0), said, KEY, NOW)
    for now in (NOW, NOW + 1, said + WINDOW_MS - 1, said + WINDOW_MS, said + WINDOW_MS + 1):
        assert not guard.admit(token(0), said, KEY, now)


def test_a_hello_whose_time_was_wrong_has_not_been_seen(guard: ReplayGuard) -> None:
    assert not guard.admit(token(0), NOW - WINDOW_MS - 1, KEY, NOW)
    assert guard.admit(token(0), NOW, KEY, NOW)


def test_of_ten_thousand_hellos_each_is_accepted_once(guard: ReplayGuard) -> None:
    tokens = [token(number) for number in range(10_000)]
    assert all(guard.admit(each, NOW, KEY, NOW) for each in tokens)
    assert not any(guard.admit(each, NOW, KEY, NOW) for each in tokens)
    assert not any(guard.admit(each, NOW, KEY, NOW + WINDOW_MS) for each in reversed(tokens))


def test_the_set_is_bounded_and_what_is_in_it_stays() -> None:
    guard = ReplayGuard(started_ms=0, capacity=160)
    admitted = [each for each in map(token, range(3000)) if guard.admit(each, NOW, KEY, NOW)]
    assert len(admitted) == 160  # 3000 fill every bucket
    assert not any(guard.admit(token(number), NOW, KEY, NOW) for number in range(3000, 3100))
    assert not any(guard.admit(each, NOW, KEY, NOW) for each in admitted)
    guard.close()


def test_a_hello_over_its_time_makes_room_and_not_a_moment_earlier() -> None:
    guard = ReplayGuard(started_ms=0, capacity=16)
    early, late = NOW - 100, NOW + 100
    assert all(guard.admit(token(number), early, KEY, NOW) for number in range(8))
    assert all(guard.admit(token(number), late, KEY, NOW) for number in range(8, 16))
    full_until = early + WINDOW_MS
    assert not guard.admit(token(99), full_until, KEY, full_until)
    after = full_until + 1
    assert all(guard.admit(token(number), after, KEY, after) for number in range(100, 108))
    assert not guard.admit(token(108), after, KEY, after)
    assert not any(guard.admit(token(number), late, KEY, after) for number in range(8, 16))
    guard.close()


def test_the_smallest_set_holds_something() -> None:
    guard = ReplayGuard(started_ms=0, capacity=1)
    assert guard.admit(token(0), NOW, KEY, NOW)
    assert not guard.admit(token(0), NOW, KEY, NOW)
    guard.close()


def test_a_closed_guard_leaves_no_descriptor() -> None:
    before = open_descriptors()
    guard = ReplayGuard()
    assert open_descriptors() != before
    guard.close()
    assert open_descriptors() == before


# --- key by key -------------------------------------------------------------------------------


def key(number: int) -> bytes:
    return hashlib.sha256(b"key %d" % number).digest()


@pytest.fixture
def small() -> Iterator[ReplayGuard]:
    """For 16 hellos of each key; it has ten regions."""
    made = ReplayGuard(started_ms=0, capacity=16)
    yield made
    made.close()


def fill(guard: ReplayGuard, owner: bytes, now: int = NOW) -> None:
    """All of a key's region."""
    for number in range(16):
        assert guard.admit(token(number), now, owner, now)


def test_a_key_that_has_filled_its_share_is_refused_and_others_are_not(small: ReplayGuard) -> None:
    fill(small, KEY)
    assert not small.admit(token(16), NOW, KEY, NOW)
    fill(small, OTHER)
    assert not small.admit(token(16), NOW, OTHER, NOW)


def test_a_hello_is_one_of_its_key(guard: ReplayGuard) -> None:
    for owner in (KEY, OTHER):
        assert guard.admit(token(0), NOW, owner, NOW)
        assert not guard.admit(token(0), NOW, owner, NOW)


def test_keys_that_come_later_have_regions_of_their_own_and_the_last_ones_share_one(
    small: ReplayGuard,
) -> None:
    for number in range(10):
        fill(small, key(number))
    for number in range(16):
        assert small.admit(token(number), NOW, key(10 + number), NOW)
    for number in range(10, 30):
        assert not small.admit(token(100), NOW, key(number), NOW)


def test_a_region_goes_to_another_key_once_nothing_in_it_would_be_accepted_again(
    small: ReplayGuard,
) -> None:
    for number in range(10):
        fill(small, key(number), NOW + number)
    until = NOW + WINDOW_MS  # when those of the first one are still refused
    assert not any(small.admit(token(number), NOW, key(0), until) for number in range(16))
    assert small.admit(token(0), until, key(10), until), "in the region that is shared"
    for number in range(1, 17):
        assert small.admit(token(number), until + 1, key(11), until + 1)
    assert not small.admit(token(17), until + 1, key(11), until + 1)
    for number in range(1, 10):  # none has lost anything
        assert not any(
            small.admit(token(each), NOW + number, key(number), until + 1) for each in range(16)
        )


def test_a_hello_that_came_while_its_key_had_no_region_is_refused_in_its_own_one_too(
    small: ReplayGuard,
) -> None:
    for number in range(10):
        assert small.admit(token(0), NOW - WINDOW_MS, key(number), NOW)
    assert small.admit(token(1), NOW, key(10), NOW)
    after = NOW + 1  # all ten are free
    assert small.admit(token(2), after, key(10), after)
    assert not small.admit(token(1), NOW, key(10), after)
    assert not small.admit(token(1), NOW, key(10), NOW + WINDOW_MS)


@pytest.mark.parametrize("keys", [0, 1, 38, 39, 1000])
def test_a_key_has_as_much_room_as_the_memory_of_all_allows(keys: int) -> None:
    guard = ReplayGuard(keys=keys)
    buckets = {1000: 347, 39: 8035}.get(keys, 131_072 // 16)
    assert guard._buckets == buckets
    assert len(guard._memory) <= 256 * 1024 * 1024 + 1024 * 1024
    guard.close()


def test_any_number_of_keys_has_some_room() -> None:
    guard = ReplayGuard(keys=6_000)
    assert guard._buckets * 16 == 1024
    guard.close()


# --- between processes ------------------------------------------------------------------------


class Worker:
    """A forked process, as a worker of ours is, that runs one function and tells its result."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            # nothing of the test's own may run here: no fixture's end, no flush of its output
            try:
                os.write(writing, work())
            finally:
                os._exit(0)
        os.close(writing)

    def result(self) -> bytes:
        parts = []
        while part := os.read(self._reading, 65536):
            parts.append(part)
        os.waitpid(self.pid, 0)
        os.close(self._reading)
        return b"".join(parts)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.result() == b""


def waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel has a process waiting for one; /proc/locks marks them with an arrow."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(pid) in line.split() for line in lines)


@contextmanager
def holding_the_lock(guard: ReplayGuard) -> Iterator[Worker]:
    """A worker that stays inside the guard's critical section until it is killed."""
    inside, tell = os.pipe()

    def stay() -> bytes:
        with guard._lock:
            os.write(tell, b"in")
            signal.pause()
        return b""

    worker = Worker(stay)
    assert os.read(inside, 2) == b"in"
    os.close(inside)
    os.close(tell)
    yield worker


def flags(outcomes: Iterator[bool]) -> bytes:
    return bytes(outcomes)


def test_a_replay_that_reaches_another_worker_is_refused(guard: ReplayGuard) -> None:
    assert guard.admit(token(0), NOW, KEY, NOW)
    worker = Worker(lambda: flags(guard.admit(token(n), NOW, KEY, NOW) for n in (0, 1, 1)))
    assert worker.result() == bytes((False, True, False))
    assert not guard.admit(token(1), NOW, KEY, NOW)
    sibling = Worker(lambda: flags(guard.admit(token(n), NOW, KEY, NOW) for n in (0, 1, 2)))
    assert sibling.result() == bytes((False, False, True))


def test_workers_that_meet_the_same_hellos_at_once_accept_each_once(guard: ReplayGuard) -> None:
    count = 2000
    gate, opener = os.pipe()

    def race() -> bytes:
        os.close(opener)
        os.read(gate, 1)  # all start when the gate closes
        return flags(guard.admit(token(number), NOW, KEY, NOW) for number in range(count))

    workers = [Worker(race) for _ in range(4)]
    os.close(gate)
    os.close(opener)
    results = [worker.result() for worker in workers]
    assert [len(result) for result in results] == [count] * 4
    assert [sum(column) for column in zip(*results, strict=True)] == [1] * count


def test_one_worker_at_a_time_is_in_the_set_and_a_killed_one_does_not_stay_there(
    guard: ReplayGuard,
) -> None:
    with holding_the_lock(guard) as holder:
        waiting = Worker(lambda: flags(guard.admit(token(0), NOW, KEY, NOW) for _ in range(2)))
        eventually(lambda: waits_for_a_lock(waiting.pid))
        holder.kill()
        assert waiting.result() == bytes((True, False))
    assert not guard.admit(token(0), NOW, KEY, NOW)
    assert guard.admit(token(1), NOW, KEY, NOW)


def test_a_full_region_of_one_key_is_full_in_all_workers_and_others_are_not(
    small: ReplayGuard,
) -> None:
    fill(small, KEY)
    worker = Worker(
        lambda: flags(small.admit(token(99), NOW, owner, NOW) for owner in (KEY, OTHER, key(2)))
    )
    assert worker.result() == bytes((False, True, True))
    assert [small.admit(token(99), NOW, owner, NOW) for owner in (OTHER, key(2), key(3))] == [
        False,
        False,
        True,
    ]


def test_workers_that_meet_new_keys_at_once_give_each_one_region(small: ReplayGuard) -> None:
    gate, opener = os.pipe()

    def race() -> bytes:
        os.close(opener)
        os.read(gate, 1)
        return flags(
            small.admit(token(number), NOW, key(owner), NOW)
            for owner in range(10)
            for number in range(17)
        )

    workers = [Worker(race) for _ in range(4)]
    os.close(gate)
    os.close(opener)
    results = [worker.result() for worker in workers]
    assert sum(sum(result) for result in results) == 10 * 16
    assert small.admit(token(0), NOW, key(10), NOW), "by the region that is shared"


class Clock:
    """The two clocks of a machine, of which one may be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.boot = NOW, 5_000
        monkeypatch.setattr(replay, "now_ms", lambda: self.real)
        monkeypatch.setattr(replay, "_since_boot_ms", lambda: self.boot)

    def pass_by(self, milliseconds: int) -> None:
        self.real += milliseconds
        self.boot += milliseconds


@pytest.mark.parametrize("step", [-7_200_000, 7_200_000])
def test_a_clock_that_is_set_after_the_start_locks_no_client_out(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with closing(ReplayGuard()) as made:
        clock.pass_by(1000)
        assert made.admit(token(0), clock.real, KEY)
        clock.real += step
        assert made.admit(token(1), clock.real, KEY)
        assert not made.admit(token(2), clock.real - 1001, KEY), "from before the start"


def test_a_hello_is_not_accepted_again_when_its_time_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    with closing(ReplayGuard()) as made:
        clock.pass_by(100_000)
        said = clock.real
        assert made.admit(token(0), said, KEY)
        clock.pass_by(10 * WINDOW_MS)
        clock.real -= 10 * WINDOW_MS
        assert made.admit(token(1), said, KEY), "its time is as good as before"
        assert not made.admit(token(0), said, KEY)


def test_why_a_hello_is_refused_is_told_with_how_far_off_its_clock_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    with closing(ReplayGuard()) as made:
        clock.pass_by(5000)
        assert "its clock is 1 h 1 min behind this one, 30 s are" in made.refusal(NOW - 3_660_000)
        assert "its clock is 2 min 0 s ahead of this one" in made.refusal(clock.real + 120_000)
        assert "before the start of this server, 5 s ago" in made.refusal(NOW - 1)
        assert made.refusal(clock.real) == "a hello seen before"
