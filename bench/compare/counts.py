"""Instructions of user code: what hardly depends on the machine, nor on what else it does.

A build runs under callgrind: a pair, a plain proxy, and a gateway with 200 exits.  The counting is
off until everything has started, and the counter is read and set to zero between two loads, by
vgdb, so that start-up falls out.  Connections come one after another, and hash seeds are fixed:
what remains of the spread is how many bytes a read finds, and when the garbage collector runs.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.compare.measures import Sample
from bench.compare.table import Row, Samples, no_samples
from bench.contenders.gsocks import Build, contenders_of, gateway_of
from bench.figures.bulk import streams_of
from bench.figures.echo import MESSAGE, there_and_back
from bench.gateway.clients import Talk, by_absolute_form, by_connect, by_socks5, load
from bench.gateway.figures import EXITS, Running, gateway
from bench.load.conversation import ask, hold
from bench.load.crowd import talk
from bench.load.route import PATIENCE
from bench.load.target import SINK
from bench.processes import Failed, family
from bench.progress import Steps
from bench.stage import Stage, settle, stage

#: samples of each build
SLICES = 5
#: new connections to a proxy in a sample, and requests of each kind to a gateway
CONNECTIONS = 40
ECHOES = 100
MEGABYTES = 8
#: before the first sample, so that the specialising interpreter has seen all code
_WARM_UP = 100

#: the processes of a pair, in the order in which they start
_ENDS = ("server", "local")

#: what a gateway's clients say, by the key of the row
_TALKS: dict[str, Callable[[bytes, str], Talk]] = {
    "count_gateway_connect": by_connect,
    "count_gateway_socks5": by_socks5,
    "count_gateway_absolute": by_absolute_form,
}

#: with the budgets that the project has set itself
ROWS = (
    Row("count_connection_plain", "new connection, plain", "k instr.", 1, budget=200),
    *(
        Row(f"count_connection_{end}", f"new connection, {end}", "k instr.", 1, budget=250)
        for end in _ENDS
    ),
    *(Row(f"count_echo_{end}", f"echo of 64 bytes, {end}", "k instr.", 1, 50) for end in _ENDS),
    *(Row(f"count_up_{end}", f"bulk from the client, {end}", "k instr./MB", 0) for end in _ENDS),
    Row("count_gateway_connect", "gateway, CONNECT", "k instr.", 1, budget=400),
    Row("count_gateway_socks5", "gateway, SOCKS5", "k instr.", 1),
    Row("count_gateway_absolute", "gateway, GET http://", "k instr.", 1),
)


def missing() -> str:
    """Why nothing can be counted here; "" if it can."""
    absent = [program for program in ("valgrind", "vgdb") if shutil.which(program) is None]
    return f"not found: {', '.join(absent)} (in Debian's package valgrind)" if absent else ""


def count(builds: Mapping[str, Build], slices: int = SLICES) -> Samples:
    """Of the builds of the sides "base" and "new", or of one, one after the other.

    Shows its progress on stderr.  Raises Failed.
    """
    samples = no_samples(ROWS)
    with Steps(len(builds) * (1 + slices)) as progress:
        for side, build in builds.items():
            progress.begin(f"counts: start {side} under valgrind")
            with _blamed_on(side), _started(build) as counted:
                for number in range(slices):
                    progress.begin(f"counts: {side}, {number + 1} of {slices}")
                    for key, value in counted.sample().items():
                        samples[key][side].append(value)
    return samples


@contextlib.contextmanager
def _blamed_on(side: str) -> Iterator[None]:
    """A failure names the build that it is of."""
    try:
        yield
    except (Failed, OSError) as error:
        raise Failed(f"counts, {side}: {error}") from error


class _Counted:
    """The processes of one build under callgrind, which writes its counts into ``folder``."""

    def __init__(self, pair: Stage, plain: Stage, gateway: Running, folder: Path) -> None:
        self._pair = pair
        self._plain = plain
        self._gateway = gateway
        self._folder = folder

    def warm_up(self) -> None:
        for scene in (self._plain, self._pair):
            _connections(scene, _WARM_UP)
        for talk_ in _TALKS.values():
            # in absolute form each exit has a connection afterwards, which is kept
            _requests(self._gateway, talk_, EXITS)
        for pid in family([*self._plain.pids, *self._pair.pids, *self._gateway.pids]):
            self._tell(pid, "instrumentation", "on")
        self.sample()

    def sample(self) -> Sample:
        plain, pair = self._plain, self._pair
        with self._counts(plain.pids, CONNECTIONS) as of_plain:
            _connections(plain, CONNECTIONS)
        with self._counts(pair.pids, CONNECTIONS) as of_connections:
            _connections(pair, CONNECTIONS)
        with pair.route.connect() as sock:
            hold(sock, ask(pair.route, MESSAGE, len(MESSAGE)))
            with self._counts(pair.pids, ECHOES) as of_echoes:
                for _ in range(ECHOES):
                    there_and_back(sock)
        with (
            streams_of(pair.route, 1, SINK) as (sock,),
            self._counts(pair.pids, MEGABYTES) as of_bulk,
        ):
            _send(pair, sock, MEGABYTES * 1_000_000)
        return (
            {"count_connection_plain": of_plain[0]}
            | _by_end("count_connection", of_connections)
            | _by_end("count_echo", of_echoes)
            | _by_end("count_up", of_bulk)
            | {key: self._of_requests(talk_) for key, talk_ in _TALKS.items()}
        )

    def _of_requests(self, talk_: Callable[[bytes, str], Talk]) -> float:
        """Thousands of instructions of the gateway for each request."""
        with self._counts(self._gateway.pids, CONNECTIONS) as found:
            _requests(self._gateway, talk_, CONNECTIONS)
        return found[0]

    @contextlib.contextmanager
    def _counts(self, pids: Sequence[int], times: int) -> Iterator[list[float]]:
        """Of each process, thousands of instructions in the block, for one of so many times.

        The list is filled at the end of the block.
        """
        settle(pids)
        self._take(pids)
        found: list[float] = []
        yield found
        settle(pids)
        found += [count / times / 1000 for count in self._take(pids)]

    def _take(self, pids: Sequence[int]) -> list[int]:
        """Instructions of each process and its children since the last time."""
        return [sum(map(self._taken, family([pid]))) for pid in pids]

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
        build = Build((*valgrind, *build.command), environment)
        pair, plain = contenders_of(build)
        # neither probes of the exits nor connections that have been idle for long blur the counts
        rotating = gateway_of(
            "gateway", "gateway", build, checks={"connect": False}, reuse={"max_idle": "1h"}
        )
        counted = _Counted(
            stack.enter_context(stage(pair)),
            stack.enter_context(stage(plain)),
            stack.enter_context(gateway(rotating)),
            folder,
        )
        counted.warm_up()
        yield counted


def _connections(scene: Stage, number: int) -> None:
    talk(scene.route, partial(ask, message=MESSAGE, answer_size=len(MESSAGE)), number, at_once=1)


def _requests(running: Running, talk_: Callable[[bytes, str], Talk], number: int) -> None:
    """One after the other, each by the next exit; in absolute form all on one connection.

    Raises Failed.
    """
    keep = talk_ is by_absolute_form
    if failures := load(running.place, talk_, number, at_once=1, keep=keep).failures:
        raise Failed(f"failed {failures} of {number} requests")


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
