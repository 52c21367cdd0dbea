"""Workers and their parent, in processes of their own, and what they tell while they run."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest

from gsocks.supervisor import worker_count

#: seconds; only a test that fails ever waits for it
TOO_LONG = 20

# Parent and workers tell what happens by lines in one pipe, each written at once.
PROLOGUE = """
import errno, logging, os, signal, sys
from gsocks import supervisor
from gsocks.errors import ConfigError

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Teller(logging.Handler):
    def emit(self, record):
        tell("log:", record.levelname, self.format(record))

log = logging.getLogger("test")
log.setLevel("DEBUG")
log.addHandler(Teller())

def wait(index, *signals):
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    tell("up", index, os.getpid())
    signum = signal.Signals(signal.sigwait(signals)).name
    tell(signum, index, os.getpid())
    return signum
"""

EPILOGUE = """
tell("returned", supervisor.run_workers(COUNT, work, log=log))
"""

#: a worker that does as it is asked, and says what it was asked
OBEDIENT = """
def work(index):
    while wait(index, signal.SIGTERM, signal.SIGINT, signal.SIGHUP) == "SIGHUP":
        pass
    return 0
"""


class Supervised:
    """A parent with its workers, and the lines they tell."""

    def __init__(self, work: str, count: int) -> None:
        script = PROLOGUE + textwrap.dedent(work) + EPILOGUE.replace("COUNT", str(count))
        self.process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self._pipe = self.process.stdout.fileno()
        self._unread = b""
        self.lines: list[str] = []

    def expect(self, pattern: str) -> re.Match[str]:
        """The next line that is all of ``pattern``; those before it are kept in ``lines``."""
        while (line := self._line()) is not None:
            match = re.fullmatch(pattern, line)
            if match:
                return match
        raise AssertionError(f"ended without {pattern!r}: {self.lines}")

    def expect_up(self, count: int) -> dict[int, int]:
        """The process ids of ``count`` workers, by their index."""
        told = [self.expect(r"up (\d+) (\d+)") for _ in range(count)]
        return {int(line[1]): int(line[2]) for line in told}

    def expect_all(self, *patterns: str) -> None:
        """A line for each of ``patterns``, in any order."""
        waiting = list(patterns)
        while waiting:
            line = self._line()
            assert line is not None, f"ended without {waiting}: {self.lines}"
            waiting = [pattern for pattern in waiting if not re.fullmatch(pattern, line)]

    def expect_end(self) -> None:
        """Wait until nobody is left who could tell anything."""
        while self._line() is not None:
            pass

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def _line(self) -> str | None:
        deadline = time.monotonic() + TOO_LONG
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._pipe], [], [], deadline - time.monotonic())
            assert ready, f"nothing more was told after {self.lines}"
            data = os.read(self._pipe, 65536)
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        self.lines.append(line.decode())
        return self.lines[-1]


@pytest.fixture
def run() -> Iterator[Callable[..., Supervised]]:
    running: list[Supervised] = []

    def start(work: str = OBEDIENT, count: int = 2) -> Supervised:
        running.append(Supervised(work, count))
        return running[-1]

    yield start
    for supervised in running:
        if not any(line.startswith("returned") for line in supervised.lines):
            supervised.process.kill()
        supervised.process.wait(TOO_LONG)
        assert supervised.process.stdout is not None
        supervised.process.stdout.close()


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers_and_then_the_parent(
    run: Callable[..., Supervised], signum: signal.Signals
) -> None:
    crew = run(count=3)
    pids = crew.expect_up(3)
    crew.send(signum)
    crew.expect_all(*(f"{signum.name} {index} {pid}" for index, pid in pids.items()))
    crew.expect("returned 0")
    assert crew.process.wait() == 0
    assert all(is_gone(pid) for pid in pids.values())


def test_a_worker_without_handlers_ends_cleanly_too(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        def work(index):
            tell("up", index, os.getpid())
            while True:
                signal.pause()
        """
    )
    crew.expect_up(2)
    crew.send(signal.SIGHUP)
    crew.send(signal.SIGTERM)
    crew.expect("returned 0")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
def test_a_second_signal_kills_a_worker_that_ignores_the_first(
    run: Callable[..., Supervised], first: signal.Signals, second: signal.Signals
) -> None:
    crew = run(
        """
        def work(index):
            while True:
                wait(index, signal.SIGTERM, signal.SIGINT)
        """
    )
    pids = crew.expect_up(2)
    crew.send(first)
    crew.expect_all(*(f"{first.name} {index} {pid}" for index, pid in pids.items()))
    crew.send(second)
    crew.expect(f"log: WARNING {second.name} again: killing the workers")
    crew.expect("returned 137")
    assert all(is_gone(pid) for pid in pids.values())


def test_while_it_drains_sigint_asks_for_a_quicker_end(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        def work(index):
            while wait(index, signal.SIGTERM, signal.SIGINT) != "SIGINT":
                pass
            return 0
        """
    )
    crew.expect_up(2)
    crew.send(signal.SIGTERM)
    crew.expect_all(r"SIGTERM 0 \d+", r"SIGTERM 1 \d+")
    crew.send(signal.SIGINT)
    crew.expect_all(r"SIGINT 0 \d+", r"SIGINT 1 \d+")
    crew.expect("returned 0")


def test_the_worst_status_of_a_worker_is_the_parents(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        def work(index):
            wait(index, signal.SIGTERM)
            return (0, 7, 3)[index]
        """,
        count=3,
    )
    crew.expect_up(3)
    crew.send(signal.SIGTERM)
    crew.expect("returned 7")


def test_workers_die_with_a_parent_that_is_killed(run: Callable[..., Supervised]) -> None:
    crew = run(count=3)
    crew.expect_up(3)
    crew.send(signal.SIGKILL)
    crew.expect_end()


def test_a_worker_born_to_a_dead_parent_ends(run: Callable[..., Supervised]) -> None:
    crew = run("os.getppid = lambda: 1\n" + OBEDIENT)
    crew.expect(r"log: WARNING worker 0 \(process \d+\) ended: status 1; starts again in 1s")
    assert not any(line.startswith("up") for line in crew.lines)


# --- reload ---------------------------------------------------------------------------------


def test_sighup_reaches_every_worker_each_time(run: Callable[..., Supervised]) -> None:
    crew = run(count=3)
    pids = crew.expect_up(3)
    for _ in range(3):
        crew.send(signal.SIGHUP)
        crew.expect_all(
            *(f"{word} {index} {pid}" for index, pid in pids.items() for word in ("SIGHUP", "up"))
        )


# --- starting again -------------------------------------------------------------------------


def test_a_worker_that_was_killed_is_replaced_and_leaves_no_zombie(
    run: Callable[..., Supervised],
) -> None:
    crew = run("supervisor.FIRST_DELAY = 0.001\n" + OBEDIENT)
    pids = crew.expect_up(2)
    os.kill(pids[0], signal.SIGKILL)
    crew.expect(rf"log: WARNING worker 0 \(process {pids[0]}\) ended: SIGKILL; starts again in 1ms")
    again = crew.expect_up(1)
    assert list(again) == [0]
    assert is_gone(pids[0])
    assert not is_gone(pids[1])
    crew.send(signal.SIGTERM)
    crew.expect_all(f"SIGTERM 0 {again[0]}", f"SIGTERM 1 {pids[1]}")
    crew.expect("returned 0")


def test_workers_that_end_at_the_same_time_are_all_replaced(
    run: Callable[..., Supervised],
) -> None:
    crew = run("supervisor.FIRST_DELAY = 0.001\n" + OBEDIENT, count=4)
    pids = crew.expect_up(4)
    crew.send(signal.SIGSTOP)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    crew.send(signal.SIGCONT)
    again = crew.expect_up(4)
    assert set(again) == set(pids)
    assert not set(again.values()) & set(pids.values())


def test_failed_starts_are_repeated_ever_more_slowly(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        supervisor.FIRST_DELAY = 0.001
        supervisor.LONGEST_DELAY = 0.006

        def work(index):
            return 3
        """,
        count=1,
    )
    ends = [crew.expect(r".* ended: status 3; starts again in (\S+)")[1] for _ in range(5)]
    assert ends == ["1ms", "2ms", "4ms", "6ms", "6ms"]


def test_after_a_long_life_a_worker_is_replaced_at_once(run: Callable[..., Supervised]) -> None:
    crew = run("supervisor.EARLY = 0\n" + OBEDIENT, count=1)
    for _ in range(2):
        (pid,) = crew.expect_up(1).values()
        os.kill(pid, signal.SIGTERM)
        crew.expect(r".* ended: status 0; starts again in 0s")
    crew.expect_up(1)


def test_an_exception_is_told_and_its_worker_replaced(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        supervisor.FIRST_DELAY = 0.001

        def work(index):
            raise ZeroDivisionError("a fault of ours")
        """,
        count=1,
    )
    for _ in range(2):
        crew.expect("log: CRITICAL worker 0 failed")
        crew.expect("ZeroDivisionError: a fault of ours")
        crew.expect(r".* ended: status 1; starts again in \S+")


def test_a_signal_ends_the_wait_for_the_next_start(run: Callable[..., Supervised]) -> None:
    crew = run("supervisor.FIRST_DELAY = 1000\ndef work(index):\n    return 3\n", count=1)
    crew.expect(".* starts again in 16m40s")
    crew.send(signal.SIGHUP)
    crew.send(signal.SIGTERM)
    crew.expect("returned 0")


def test_a_fork_that_fails_is_tried_again(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        supervisor.FIRST_DELAY = 0.001
        fork, failures = os.fork, [errno.EAGAIN, errno.ENOMEM]

        def fork_at_last():
            if failures:
                code = failures.pop()
                raise OSError(code, os.strerror(code))
            return fork()

        os.fork = fork_at_last
        """
        + textwrap.indent(OBEDIENT, " " * 8),
        count=1,
    )
    crew.expect("log: ERROR worker 0 can't be started: Cannot allocate memory")
    crew.expect("log: ERROR worker 0 can't be started: Resource temporarily unavailable")
    crew.expect_up(1)
    crew.send(signal.SIGTERM)
    crew.expect("returned 0")


# --- giving up ------------------------------------------------------------------------------


def test_when_all_workers_fail_with_status_2_the_parent_gives_up(
    run: Callable[..., Supervised],
) -> None:
    crew = run("supervisor.FIRST_DELAY = 1000\ndef work(index):\n    return 2\n", count=3)
    crew.expect("log: ERROR no worker can run with this config: giving up")
    crew.expect("returned 2")


def test_a_mistake_in_the_config_is_told_in_one_line(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        def work(index):
            raise ConfigError("127.0.0.1:1080: address already in use")
        """,
        count=1,
    )
    crew.expect("log: ERROR worker 0: 127.0.0.1:1080: address already in use")
    crew.expect("returned 2")
    assert not any("Traceback" in line for line in crew.lines)


def test_while_one_worker_can_run_it_does_not_give_up(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        supervisor.FIRST_DELAY = supervisor.LONGEST_DELAY = 0.001

        def work(index):
            if index:
                return 2
            wait(index, signal.SIGTERM)
            return 0
        """
    )
    pids = crew.expect_up(1)
    for _ in range(3):
        crew.expect(".*worker 1 .* ended: status 2; starts again in 1ms")
    assert not is_gone(pids[0])
    crew.send(signal.SIGTERM)
    crew.expect("returned 0")


# --- what a worker finds --------------------------------------------------------------------


def test_a_worker_starts_as_a_process_should(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})
        signal.signal(signal.SIGTERM, lambda *_: tell("the parent's handler"))

        def work(index):
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            tell("blocked", *sorted(signal.Signals(each).name for each in blocked))
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                tell(each.name, signal.Handlers(signal.getsignal(each)).name)
            tell("leads its group", os.getpgid(0) == os.getpid())
            wait(index, signal.SIGTERM)
            return 0
        """,
        count=1,
    )
    crew.expect("blocked SIGUSR1")
    crew.expect("SIGTERM SIG_DFL")
    crew.expect("SIGINT SIG_DFL")
    crew.expect("SIGHUP SIG_IGN")
    crew.expect("SIGCHLD SIG_DFL")
    crew.expect("leads its group True")
    crew.expect_up(1)
    crew.send(signal.SIGTERM)
    crew.expect("returned 0")


def test_the_parent_is_afterwards_as_it_was(run: Callable[..., Supervised]) -> None:
    crew = run(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGCHLD)

        import atexit
        @atexit.register
        def look():
            now = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGCHLD)
            tell("as before", now == before)

        def work(index):
            return 2
        """
    )
    crew.expect("returned 2")
    crew.expect("as before True")


def test_text_that_was_not_written_before_the_fork_is_written_once(
    run: Callable[..., Supervised],
) -> None:
    crew = run(
        """
        sys.stdout.write("from before\\n")

        def work(index):
            sys.stdout.write(f"from {index}\\n")
            return 2
        """
    )
    crew.expect_end()
    assert sorted(line for line in crew.lines if line.startswith("from ")) == [
        "from 0",
        "from 1",
        "from before",
    ]


def test_workers_may_be_started_without_standard_output(run: Callable[..., Supervised]) -> None:
    crew = run("sys.stdout = None\ndef work(index):\n    return 2\n")
    crew.expect("returned 2")


def test_each_worker_has_an_event_loop_of_its_own_and_the_parent_none(
    run: Callable[..., Supervised],
) -> None:
    crew = run(
        """
        import gevent
        from gevent._hub_local import get_hub_if_exists
        from gevent.event import Event

        def work(index):
            ended = Event()
            gevent.signal_handler(signal.SIGTERM, ended.set)
            gevent.spawn(tell, "up", index, os.getpid())
            ended.wait(timeout=20)
            tell("drained", index)
            return 0

        import atexit
        atexit.register(lambda: tell("hub", get_hub_if_exists()))
        """
    )
    crew.expect_up(2)
    crew.send(signal.SIGTERM)
    crew.expect_all("drained 0", "drained 1")
    crew.expect("returned 0")
    crew.expect("hub None")


def test_auto_is_a_worker_for_each_core_that_may_be_used() -> None:
    assert worker_count("auto") == len(os.sched_getaffinity(0))
    assert worker_count(3) == 3
