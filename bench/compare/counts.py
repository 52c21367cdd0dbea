"""Instructions of user code: what hardly depends on the machine, nor on what else it does.

Both builds run under callgrind.  Its counting is off until everything has started, and its counter
is read and set to zero between two loads, by vgdb, so that start-up falls out.  Connections come
one after another, and hash seeds are fixed: what remains of the spread is how many bytes a read
finds, and when the garbage collector runs.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.compare.measures import Sample, in_turn
from bench.compare.table import Row, Samples, no_samples
from bench.contenders.gsocks import Build, contenders_of
from bench.figures.bulk import streams_of
from bench.figures.echo import MESSAGE, there_and_back
from bench.load.conversation import ask, hold
from bench.load.crowd import talk
from bench.load.route import PATIENCE
from bench.load.target import SINK
from bench.processes import Failed, family
from bench.progress import Steps
from bench.stage import Stage, stage

#: samples of each build
SLICES = 5
CONNECTIONS = 40
ECHOES = 100
MEGABYTES = 8
#: before the first sample, so that the specialising interpreter has seen all code
_WARM_UP = 100

#: the processes of a pair, in the order in which they start
_ENDS = ("server", "local")

ROWS = (
    Row("count_connection_plain", "new connection, plain", "k instr.", 1),
    *(Row(f"count_connection_{end}", f"new connection, {end}", "k instr.", 1) for end in _ENDS),
    *(Row(f"count_echo_{end}", f"echo of 64 bytes, {end}", "k instr.", 1) for end in _ENDS),
    *(Row(f"count_up_{end}", f"bulk from the client, {end}", "k instr./MB", 0) for end in _ENDS),
)


def missing() -> str:
    """Why nothing can be counted here; "" if it can."""
    absent = [program for program in ("valgrind", "vgdb") if shutil.which(program) is None]
    return f"not found: {', '.join(absent)} (in Debian's package valgrind)" if absent else ""


def count(base: Build, new: Build) -> Samples:
    """Shows its progress on stderr.  Raises Failed."""
    samples = no_samples(ROWS)
    with contextlib.ExitStack() as stack, Steps(2 + 2 * SLICES) as progress:
        counted: dict[str, _Counted] = {}
        for side, build in (("base", base), ("new", new)):
            progress.begin(f"counts: start {side} under valgrind")
            counted[side] = stack.enter_context(_started(build))
        for number in range(SLICES):
            for side in in_turn(number):
                progress.begin(f"counts: {number + 1} of {SLICES}: {side}")
                try:
                    sample = counted[side].sample()
                except (Failed, OSError) as error:
                    raise Failed(f"counts, {side}: {error}") from error
                for key, value in sample.items():
                    samples[key][side].append(value)
    return samples


class _Counted:
    """The processes of one build under callgrind, which writes its counts into ``folder``."""

    def __init__(self, pair: Stage, plain: Stage, folder: Path) -> None:
        self._pair = pair
        self._plain = plain
        self._folder = folder

    def warm_up(self) -> None:
        for scene in (self._plain, self._pair):
            _connections(scene, _WARM_UP)
            for pid in family(scene.pids):
                self._tell(pid, "instrumentation", "on")
        self.sample()

    def sample(self) -> Sample:
        plain, pair = self._plain, self._pair
        with self._counts(plain, CONNECTIONS) as of_plain:
            _connections(plain, CONNECTIONS)
        with self._counts(pair, CONNECTIONS) as of_connections:
            _connections(pair, CONNECTIONS)
        with pair.route.connect() as sock:
            hold(sock, ask(pair.route, MESSAGE, len(MESSAGE)))
            with self._counts(pair, ECHOES) as of_echoes:
                for _ in range(ECHOES):
                    there_and_back(sock)
        with streams_of(pair.route, 1, SINK) as (sock,), self._counts(pair, MEGABYTES) as of_bulk:
            _send(pair, sock, MEGABYTES * 1_000_000)
        return (
            {"count_connection_plain": of_plain[0]}
            | _by_end("count_connection", of_connections)
            | _by_end("count_echo", of_echoes)
            | _by_end("count_up", of_bulk)
        )

    @contextlib.contextmanager
    def _counts(self, scene: Stage, times: int) -> Iterator[list[float]]:
        """Of each process, thousands of instructions in the block, for one of so many times.

        The list is filled at the end of the block.
        """
        scene.settle()
        self._take(scene)
        found: list[float] = []
        yield found
        scene.settle()
        found += [count / times / 1000 for count in self._take(scene)]

    def _take(self, scene: Stage) -> list[int]:
        """Instructions of each process and its children since the last time."""
        return [sum(map(self._taken, family([pid]))) for pid in scene.pids]

    def _taken(self, pid: int) -> int:
        self._tell(pid, "dump")
        (file,) = self._folder.glob(f"{pid}.*")
        text = file.read_text()
        file.unlink()
        return int(re.findall(r"^totals: (\d+)$", text, re.MULTILINE)[-1])

    def _tell(self, pid: int, *command: str) -> None:
        argv = ["vgdb", f"--vgdb-prefix={self._folder / 'vgdb'}", f"--pid={pid}", *command]
        run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if run.returncode:
            raise Failed(f"vgdb: {run.stderr.strip()}")


@contextlib.contextmanager
def _started(build: Build) -> Iterator[_Counted]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gsocks-counts-")))
        valgrind = (
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder}/%p",
            f"--vgdb-prefix={folder}/vgdb",
        )
        environment = {**(build.environment or {}), "PYTHONHASHSEED": "0"}
        pair, plain = contenders_of(Build((*valgrind, *build.command), environment))
        scenes = stack.enter_context(stage(pair)), stack.enter_context(stage(plain))
        counted = _Counted(*scenes, folder)
        counted.warm_up()
        yield counted


def _connections(scene: Stage, number: int) -> None:
    talk(scene.route, partial(ask, message=MESSAGE, answer_size=len(MESSAGE)), number, at_once=1)


def _send(scene: Stage, sock: socket.socket, size: int) -> None:
    """Send so many bytes and wait until the target has them.  Raises Failed."""
    before = scene.sunk()
    sock.settimeout(PATIENCE)
    sock.sendall(bytes(size))
    deadline = time.monotonic() + PATIENCE
    while scene.sunk() - before < size:
        if time.monotonic() > deadline:
            raise Failed(f"did not carry {size} bytes in {PATIENCE:g} s")
        time.sleep(0.01)


def _by_end(prefix: str, counts: list[float]) -> Sample:
    return {f"{prefix}_{end}": number for end, number in zip(_ENDS, counts, strict=True)}
