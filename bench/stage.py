"""One contender, set up for one measurement, with the target behind it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import processes
from bench.contenders import Contender
from bench.contenders.base import Endpoints, Kind
from bench.link import long_link
from bench.load.conversation import receive_exactly
from bench.load.route import PATIENCE, Place, Route
from bench.load.target import COUNT, COUNT_SIZE
from bench.processes import Failed

LOOPBACK = "127.0.0.1"


class Stage:
    """What a figure has to do with: a route to load, and what that costs the contender."""

    def __init__(self, route: Route, pids: list[int], count: socket.socket) -> None:
        self.route = route
        #: all processes of the contender
        self.pids = pids
        self._count = count

    def sunk(self) -> int:
        """Bytes that the target has received and thrown away."""
        self._count.sendall(COUNT)
        return int.from_bytes(receive_exactly(self._count, COUNT_SIZE), "big")

    def cpu(self) -> float:
        """Seconds of CPU time of all processes of the contender so far."""
        return processes.cpu_seconds(self.pids)

    def cpu_when_settled(self) -> float:
        """The same, once the contender is done with what it does on its own afterwards."""
        self.settle()
        return self.cpu()

    def settle(self, *, quiet: float = 0.1) -> None:
        """Wait until it is idle for ``quiet`` seconds."""
        settle(self.pids, quiet=quiet)

    def memory(self) -> int:
        """Bytes of all processes of the contender (PSS)."""
        return processes.memory_bytes(self.pids)

    def largest_process(self) -> int:
        """Bytes of its largest process (RSS)."""
        return processes.largest_rss_bytes(self.pids)


def settle(pids: Sequence[int], *, quiet: float = 0.1, longest: float = 10.0) -> None:
    """Wait until the processes use less than 2% of a core for ``quiet`` seconds."""
    deadline = time.monotonic() + longest
    before = processes.cpu_seconds(pids)
    while time.monotonic() < deadline:
        time.sleep(quiet)
        now = processes.cpu_seconds(pids)
        if now - before < 0.02 * quiet:
            return
        before = now


@contextlib.contextmanager
def stage(contender: Contender, *, far_away: bool = False) -> Iterator[Stage]:
    """Start the contender and the target, and end them afterwards.

    ``far_away``: a long link lies before the far end of a pair, or before the target if there is
    none.  Raises Failed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gsocks-bench-")))
        inbound, far, target = (Place(LOOPBACK, port) for port in processes.free_ports(3))
        far_seen, target_seen = far, target
        if far_away and contender.kind is Kind.NONE:
            target, target_seen = stack.enter_context(long_link(target.port, folder))
        elif far_away:
            far, far_seen = stack.enter_context(long_link(far.port, folder))
        _start_target(stack, target, folder)
        pids = _start_contender(stack, contender, Endpoints(folder, inbound, far, far_seen))
        count = stack.enter_context(socket.create_connection(target, timeout=PATIENCE))
        proxy = None if contender.kind is Kind.NONE else inbound
        yield Stage(Route(proxy, target_seen), pids, count)


def _start_target(stack: contextlib.ExitStack, place: Place, folder: Path) -> None:
    argv = [sys.executable, "-m", "bench.load.target", place.host, str(place.port)]
    # it ends with its stdin
    process = processes.start(argv, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.enter_context(processes.ended_after([process]))
    assert process.stdout is not None
    if not process.stdout.readline():
        raise Failed("the target did not start")


def _start_contender(
    stack: contextlib.ExitStack, contender: Contender, endpoints: Endpoints
) -> list[int]:
    started: list[subprocess.Popen[bytes]] = []
    stack.enter_context(processes.ended_after(started))
    for command in contender.set_up(endpoints):
        path = endpoints.folder / f"{len(started)}.log"
        with path.open("wb") as log:
            process = processes.start(
                command.argv,
                endpoints.folder,
                command.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        started.append(process)
        processes.wait_until_listening(process, command.port, path)
    return [process.pid for process in started]
