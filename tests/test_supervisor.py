"""Workers and their parent, in processes of their own, which report what happens."""

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
from pathlib import Path

import pytest

from gsocks.service.supervisor import worker_count
from tests.support.waiting import TOO_LONG

# Parent and workers tell what happens by lines in one pipe, each written at once.
PROLOGUE = """
import errno, logging, os, signal, sys
from gsocks.service import supervisor
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
reload = globals().get("reload", lambda: True)
tell("returned", supervisor.run_workers(COUNT, work, log=log, reload=reload))
"""

#: a worker that follows its signals, and reports each of them
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
        lines = [self.expect(r"up (\d+) (\d+)") for _ in range(count)]
        return {int(line[1]): int(line[2]) for line in lines}

    def expect_all(self, *patterns: str) -> None:
        """A line for each of ``patterns``, in any order."""
        waiting = list(patterns)
        while waiting:
            line = self._line()
            assert line is not None, f"ended without {waiting}: {self.lines}"
            waiting = [pattern for pattern in waiting if not re.fullmatch(pattern, line)]

    def expect_end(self) -> None:
        """Wait until the pipe has no writer left."""
        while self._line() is not None:
            pass

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def _line(self) -> str | None:
        deadline = time.monotonic() + TOO_LONG
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._pipe], [], [], deadline - time.monotonic())
            assert ready, f"no more lines after {self.lines}"
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


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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
    supervised = run(count=3)
    pids = supervised.expect_up(3)
    supervised.send(signum)
    supervised.expect_all(*(f"{signum.name} {index} {pid}" for index, pid in pids.items()))
    supervised.expect("returned 0")
    assert supervised.process.wait() == 0
    assert all(is_gone(pid) for pid in pids.values())


def test_a_worker_without_handlers_ends_cleanly_too(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        def work(index):
            tell("up", index, os.getpid())
            while True:
                signal.pause()
        """
    )
    supervised.expect_up(2)
    supervised.send(signal.SIGHUP)
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 0")


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
    supervised = run(
        """
        def work(index):
            while True:
                wait(index, signal.SIGTERM, signal.SIGINT)
        """
    )
    pids = supervised.expect_up(2)
    supervised.send(first)
    supervised.expect_all(*(f"{first.name} {index} {pid}" for index, pid in pids.items()))
    supervised.send(second)
    supervised.expect(f"log: WARNING {second.name} again: killing the workers")
    supervised.expect("returned 137")
    assert all(is_gone(pid) for pid in pids.values())


def test_sigint_stops_a_worker_that_drains(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        def work(index):
            while wait(index, signal.SIGTERM, signal.SIGINT) != "SIGINT":
                pass
            return 0
        """
    )
    supervised.expect_up(2)
    supervised.send(signal.SIGTERM)
    supervised.expect_all(r"SIGTERM 0 \d+", r"SIGTERM 1 \d+")
    supervised.send(signal.SIGINT)
    supervised.expect_all(r"SIGINT 0 \d+", r"SIGINT 1 \d+")
    supervised.expect("returned 0")


def test_the_worst_status_of_a_worker_is_the_parents(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        def work(index):
            wait(index, signal.SIGTERM)
            return (0, 7, 3)[index]
        """,
        count=3,
    )
    supervised.expect_up(3)
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 7")


def test_workers_die_with_a_parent_that_is_killed(run: Callable[..., Supervised]) -> None:
    supervised = run(count=3)
    supervised.expect_up(3)
    supervised.send(signal.SIGKILL)
    supervised.expect_end()


def test_a_worker_born_to_a_dead_parent_ends(run: Callable[..., Supervised]) -> None:
    supervised = run("os.getppid = lambda: 1\n" + OBEDIENT)
    supervised.expect(r"log: WARNING worker 0 \(pid \d+\) exited with status 1, restarting in 1s")
    assert not any(line.startswith("up") for line in supervised.lines)


# --- reload ---------------------------------------------------------------------------------


def test_sighup_reaches_every_worker_each_time(run: Callable[..., Supervised]) -> None:
    supervised = run(count=3)
    pids = supervised.expect_up(3)
    for _ in range(3):
        supervised.send(signal.SIGHUP)
        supervised.expect_all(
            *(f"{word} {index} {pid}" for index, pid in pids.items() for word in ("SIGHUP", "up"))
        )


def test_a_sighup_while_a_worker_starts_waits_until_it_can_reload(
    run: Callable[..., Supervised],
) -> None:
    supervised = run(
        """
        def work(index):
            tell("starting", index)
            signal.sigwait([signal.SIGUSR1])
            signal.signal(signal.SIGHUP, lambda *_: tell("reloads", index))
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            supervisor.accept_reloads()
            # a handler of Python waits for the end of a call, and the parent may not have sent yet
            while signal.sigtimedwait({signal.SIGTERM}, 0.01) is None:
                pass
            return 0

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        reload = lambda: tell("parent") or True
        """
    )
    supervised.expect_all("starting 0", "starting 1")
    supervised.send(signal.SIGHUP)
    supervised.expect("parent")
    for pid in children_of(supervised.process.pid):
        os.kill(pid, signal.SIGUSR1)
    supervised.expect_all("reloads 0", "reloads 1")


def test_what_a_reload_changes_in_the_parent_is_what_later_workers_find(
    run: Callable[..., Supervised],
) -> None:
    supervised = run(
        """
        users = "those of the start"

        def reload():
            global users
            users = "those of the reload"
            return True

        def work(index):
            tell("users are", users)
            return 1 if wait(index, signal.SIGTERM, signal.SIGHUP) == "SIGHUP" else 0
        """,
        count=1,
    )
    supervised.expect("users are those of the start")
    supervised.expect_up(1)
    supervised.send(signal.SIGHUP)
    supervised.expect("users are those of the reload")


def test_a_reload_that_fails_in_the_parent_does_not_reach_the_workers(
    run: Callable[..., Supervised],
) -> None:
    supervised = run("reload = lambda: bool(tell('refused'))\n" + OBEDIENT)
    supervised.expect_up(2)
    supervised.send(signal.SIGHUP)
    supervised.expect("refused")
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 0")
    assert not any("SIGHUP" in line for line in supervised.lines)


# --- starting again -------------------------------------------------------------------------


def test_a_worker_that_was_killed_is_replaced_and_leaves_no_zombie(
    run: Callable[..., Supervised],
) -> None:
    supervised = run("supervisor.FIRST_DELAY = 0.001\n" + OBEDIENT)
    pids = supervised.expect_up(2)
    os.kill(pids[0], signal.SIGKILL)
    supervised.expect(
        rf"log: WARNING worker 0 \(pid {pids[0]}\) exited with SIGKILL, restarting in 1ms"
    )
    again = supervised.expect_up(1)
    assert list(again) == [0]
    assert is_gone(pids[0])
    assert not is_gone(pids[1])
    supervised.send(signal.SIGTERM)
    supervised.expect_all(f"SIGTERM 0 {again[0]}", f"SIGTERM 1 {pids[1]}")
    supervised.expect("returned 0")


def test_workers_that_end_at_the_same_time_are_all_replaced(
    run: Callable[..., Supervised],
) -> None:
    supervised = run("supervisor.FIRST_DELAY = 0.001\n" + OBEDIENT, count=4)
    pids = supervised.expect_up(4)
    supervised.send(signal.SIGSTOP)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    supervised.send(signal.SIGCONT)
    again = supervised.expect_up(4)
    assert set(again) == set(pids)
    assert not set(again.values()) & set(pids.values())


def test_failed_starts_are_repeated_ever_more_slowly(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        supervisor.FIRST_DELAY = 0.001
        supervisor.MAX_DELAY = 0.006

        def work(index):
            return 3
        """,
        count=1,
    )
    ends = [supervised.expect(r".* exited with status 3, restarting in (\S+)")[1] for _ in range(5)]
    assert ends == ["1ms", "2ms", "4ms", "6ms", "6ms"]


def test_after_a_long_life_a_worker_is_replaced_at_once(run: Callable[..., Supervised]) -> None:
    supervised = run("supervisor.MIN_UPTIME = 0\n" + OBEDIENT, count=1)
    for _ in range(2):
        (pid,) = supervised.expect_up(1).values()
        os.kill(pid, signal.SIGTERM)
        supervised.expect(r".* exited with status 0, restarting in 0s")
    supervised.expect_up(1)


def test_an_exception_is_logged_and_its_worker_restarted(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        supervisor.FIRST_DELAY = 0.001

        def work(index):
            raise ZeroDivisionError("a fault of ours")
        """,
        count=1,
    )
    for _ in range(2):
        supervised.expect("log: CRITICAL worker 0 failed")
        supervised.expect("ZeroDivisionError: a fault of ours")
        supervised.expect(r".* exited with status 1, restarting in \S+")


def test_a_signal_ends_the_wait_for_the_next_start(run: Callable[..., Supervised]) -> None:
    supervised = run(
        "supervisor.FIRST_DELAY = supervisor.MAX_DELAY = 1000\ndef work(index):\n    return 3\n",
        count=1,
    )
    supervised.expect(".* restarting in 16m40s")
    supervised.send(signal.SIGHUP)
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 0")


def test_a_fork_that_fails_is_tried_again(run: Callable[..., Supervised]) -> None:
    supervised = run(
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
    supervised.expect("log: ERROR worker 0 can't be started: Cannot allocate memory")
    supervised.expect("log: ERROR worker 0 can't be started: Resource temporarily unavailable")
    supervised.expect_up(1)
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 0")


# --- giving up ------------------------------------------------------------------------------


def test_when_all_workers_fail_with_status_2_the_parent_gives_up(
    run: Callable[..., Supervised],
) -> None:
    supervised = run(
        "supervisor.FIRST_DELAY = supervisor.MAX_DELAY = 1000\ndef work(index):\n    return 2\n",
        count=3,
    )
    supervised.expect("log: ERROR no worker can run with this config: giving up")
    supervised.expect("returned 2")


def test_a_mistake_in_the_config_is_logged_in_one_line(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        def work(index):
            raise ConfigError("127.0.0.1:1080: address already in use")
        """,
        count=1,
    )
    supervised.expect("log: ERROR worker 0: 127.0.0.1:1080: address already in use")
    supervised.expect("returned 2")
    assert not any("Traceback" in line for line in supervised.lines)


def test_while_one_worker_can_run_it_does_not_give_up(run: Callable[..., Supervised]) -> None:
    supervised = run(
        """
        supervisor.FIRST_DELAY = supervisor.MAX_DELAY = 0.001

        def work(index):
            if index:
                return 2
            wait(index, signal.SIGTERM)
            return 0
        """
    )
    pids = supervised.expect_up(1)
    for _ in range(3):
        supervised.expect(".*worker 1 .* exited with status 2, restarting in 1ms")
    assert not is_gone(pids[0])
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 0")


# --- what a worker finds --------------------------------------------------------------------


def test_a_worker_starts_as_a_process_should(run: Callable[..., Supervised]) -> None:
    supervised = run(
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
    supervised.expect("blocked SIGHUP SIGUSR1")
    supervised.expect("SIGTERM SIG_DFL")
    supervised.expect("SIGINT SIG_DFL")
    supervised.expect("SIGHUP SIG_DFL")
    supervised.expect("SIGCHLD SIG_DFL")
    supervised.expect("leads its group True")
    supervised.expect_up(1)
    supervised.send(signal.SIGTERM)
    supervised.expect("returned 0")


def test_the_parent_is_afterwards_as_it_was(run: Callable[..., Supervised]) -> None:
    supervised = run(
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
    supervised.expect("returned 2")
    supervised.expect("as before True")


def test_text_that_was_not_written_before_the_fork_is_written_once(
    run: Callable[..., Supervised],
) -> None:
    supervised = run(
        """
        sys.stdout.write("from before\\n")

        def work(index):
            sys.stdout.write(f"from {index}\\n")
            return 2
        """
    )
    supervised.expect_end()
    assert sorted(line for line in supervised.lines if line.startswith("from ")) == [
        "from 0",
        "from 1",
        "from before",
    ]


def test_workers_may_be_started_without_standard_output(run: Callable[..., Supervised]) -> None:
    supervised = run("sys.stdout = None\ndef work(index):\n    return 2\n")
    supervised.expect("returned 2")


def test_each_worker_has_an_event_loop_of_its_own_and_the_parent_none(
    run: Callable[..., Supervised],
) -> None:
    supervised = run(
        """
        import gevent
        from gevent._hub_local import get_hub_if_exists
        from gevent.event import Event

        def work(index):
            ended = Event()
            gevent.signal_handler(signal.SIGTERM, ended.set)
            gevent.spawn(tell, "up", index, os.getpid())
            ended.wait(timeout=90)
            tell("drained", index)
            return 0

        import atexit
        atexit.register(lambda: tell("hub", get_hub_if_exists()))
        """
    )
    supervised.expect_up(2)
    supervised.send(signal.SIGTERM)
    supervised.expect_all("drained 0", "drained 1")
    supervised.expect("returned 0")
    supervised.expect("hub None")


def test_auto_is_a_worker_for_each_core_that_may_be_used() -> None:
    assert worker_count("auto") == len(os.sched_getaffinity(0))
    assert worker_count(3) == 3
