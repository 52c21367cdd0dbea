"""The log never makes gsocks wait for its reader, and tells what that cost."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gsocks import log_output
from gsocks.log_output import LogOutput
from tests.attack.witness import Witness
from tests.support.program import ROOT
from tests.support.waiting import TOO_LONG, eventually

#: two descriptors: what is written to the one is read from the other
Ends = tuple[int, int]


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with ExitStack() as closing:
        if request.param == "socket":
            one, other = socket.socketpair()
            pair = (one.detach(), other.detach())
        elif request.param == "pipe":
            reading, writing = os.pipe()
            pair = (writing, reading)
        else:
            outside, inside = pty.openpty()
            mode = termios.tcgetattr(inside)
            mode[1] &= ~termios.OPOST  # a line ends as it was written
            termios.tcsetattr(inside, termios.TCSANOW, mode)
            pair = (inside, outside)
        for fd in pair:
            closing.callback(os.close, fd)
        yield pair


@pytest.fixture
def make_output() -> Iterator[Callable[[int], LogOutput]]:
    made = []

    def make(fd: int) -> LogOutput:
        made.append(LogOutput(fd))
        return made[-1]

    yield make
    for each in made:
        each.flush()


def say(output: LogOutput, text: str) -> None:
    output.handle(logging.LogRecord("gsocks", logging.INFO, __file__, 1, text, None, None))


def read_until(fd: int, last: bytes) -> list[bytes]:
    got = b""
    while not got.endswith(last + b"\n"):
        got += os.read(fd, 65536)
    return got.splitlines()


def test_lines_beyond_the_bound_are_dropped_and_counted_and_the_others_arrive_whole(
    ends: Ends, make_output: Callable[[int], LogOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, reading = ends
    monkeypatch.setattr(log_output, "MAX_PENDING", 10_000)
    output = make_output(writing)
    said = [f"{number} ".ljust(100, ".") for number in range(10_000)]
    for line in said:
        say(output, line)  # never waits, though nothing is read
    assert 0 < output.dropped < len(said)
    got, told = b"", 0
    lines: list[str] = []
    while len(lines) + told < len(said):
        got += os.read(reading, 65536)
        whole = got[: got.rfind(b"\n") + 1].decode()
        # several notes, if room came and went: a terminal moves on by itself what was written
        told = sum(map(int, re.findall(r"^(\d+) lines of the log were dropped", whole, re.M)))
        lines = re.findall(r"^\d+ \.+$", whole, re.M)
    assert told == output.dropped
    kept = set(lines)
    assert lines == [line for line in said if line in kept]  # in their order, and whole
    eventually(lambda: output._thread is None)
    say(output, "as before")
    assert read_until(reading, b"as before") == [b"as before"]


def test_what_is_slow_to_be_read_is_complete(
    ends: Ends, make_output: Callable[[int], LogOutput]
) -> None:
    writing, reading = ends
    output = make_output(writing)
    said = [f"{number} ".ljust(5000, ".") for number in range(100)]
    for line in said:
        say(output, line)
    assert [line.decode() for line in read_until(reading, said[-1].encode())] == said
    assert output.dropped == 0


def test_others_that_share_the_descriptor_still_block(
    ends: Ends, make_output: Callable[[int], LogOutput]
) -> None:
    writing, _ = ends
    say(make_output(writing), "hello")
    assert not fcntl.fcntl(writing, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_pipe_that_can_t_be_opened_again_is_never_waited_for_either(
    make_output: Callable[[int], LogOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    reading, writing = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        output = make_output(writing)
    said = [f"{number} ".ljust(100, ".") for number in range(2000)]
    for line in said:
        say(output, line)
    assert [line.decode() for line in read_until(reading, said[-1].encode())] == said
    eventually(lambda: output._thread is None)
    os.close(reading)
    os.close(writing)


def test_a_reader_that_is_gone_costs_its_lines_and_nothing_else(
    make_output: Callable[[int], LogOutput],
) -> None:
    reading, writing = os.pipe()
    output = make_output(writing)
    for _ in range(1000):
        say(output, "x" * 100)
    os.close(reading)
    eventually(lambda: output._thread is None)
    dropped = output.dropped
    assert dropped
    say(output, "x")
    assert output.dropped == dropped + 1
    os.close(writing)


def test_lines_that_could_not_be_written_are_told_of_with_the_next_one_that_can(
    make_output: Callable[[int], LogOutput], tmp_path: Path
) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    output = make_output(writing)
    os.close(reading)
    for _ in range(3):
        say(output, "lost")
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    say(output, "here")
    say(output, "and here")
    told, *said = read_until(reading, b"and here")
    assert told.startswith(b"3 lines of the log were dropped")
    assert said == [b"here", b"and here"]
    for fd in (reading, writing):
        os.close(fd)


def test_a_child_process_writes_nothing_that_its_parent_has_pending(
    make_output: Callable[[int], LogOutput],
) -> None:
    reading, writing = os.pipe()
    output = make_output(writing)
    for number in range(1000):
        say(output, f"{number} ".ljust(100, "."))
    child = os.fork()
    if not child:
        say(output, "the child's ".ljust(100, "."))  # the pipe is full for it as well
        os._exit(len(output._pending))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    lines = read_until(reading, b"999 ".ljust(100, b"."))
    assert len(lines) == 1000
    eventually(lambda: output._thread is None)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unread_log_pipe_stops_no_request(tmp_path: Path, workers: int) -> None:
    (tmp_path / "c.yaml").write_text(
        f"workers: {workers}\nlocal: {{listen: '127.0.0.1:0', rules: [allow all]}}\n"
    )
    command = [sys.executable, "-m", "gsocks", "-c", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        fcntl.fcntl(program.stderr, fcntl.F_SETPIPE_SZ, 4096)
        head = b""
        while not (found := re.search(rb"local: listening on \S+:(\d+) ", head)):
            head += os.read(program.stderr.fileno(), 4096)
        try:
            seen = Witness(int(found[1])).ask(200)
            assert seen.failures == []
            assert seen.served == 200
        finally:
            program.send_signal(signal.SIGTERM)
        rest = program.stderr.read().decode()
        assert program.wait(TOO_LONG) == 0
    # each line of the log is there in the end, and whole
    assert rest.count("outcome=ok\n") == 200
    assert rest.endswith("shut down\n") or workers == 2
