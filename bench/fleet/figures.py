"""What is measured of gateways that share a store.

Gateways with a store and as many without one run at the same time, and are given the load in turns,
a part of it at a time: what else happens on the machine meets both alike.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import processes
from bench.contenders import Contender
from bench.contenders.base import Command
from bench.figures.base import Figure, Goal, Measure
from bench.fleet.contenders import FLEETS, gateways_of, local_of, size_of
from bench.fleet.store import Store, far_away, running_store
from bench.gateway.clients import by_connect, load
from bench.gateway.figures import AT_ONCE, exits_at_work
from bench.load.route import Place
from bench.processes import Failed
from bench.scale import Scale
from bench.stage import settle

#: exits behind the gateways, and session names in the requests
EXITS = 200
SESSIONS = 1000

#: parts into which the load is divided, and requests of each at least
_PARTS = 10
_LEAST = 10

#: seconds that the gateways are watched without requests
_IDLE = 3.0

#: seconds that news takes to the far store, and answers take back
FAR = 0.05

_LOOPBACK = "127.0.0.1"


class Side:
    """Some gateways, and what they have used and taken so far."""

    def __init__(self, places: Sequence[Place], pids: list[int]) -> None:
        self._places = places
        self.pids = pids
        self.cpu = 0.0
        self.requests = 0
        #: seconds of each request
        self.times: list[float] = []

    def serve(self, requests: int, at_once: int) -> None:
        """So many requests, by the gateways in turns.  Raises Failed."""
        before = processes.cpu_seconds(self.pids)
        result = load(
            self._places[0], by_connect, requests, at_once=at_once, users=SESSIONS,
            others=self._places[1:],
        )  # fmt: skip
        self.cpu += processes.cpu_seconds(self.pids) - before
        if result.failures:
            raise Failed(f"failed {result.failures} of {requests} requests")
        self.requests += requests
        self.times += result.times

    def forget(self) -> None:
        """What it has done so far was to warm up."""
        self.cpu, self.requests, self.times = 0.0, 0, []

    @property
    def cost(self) -> float:
        """CPU microseconds of a request."""
        return self.cpu / self.requests * 1e6

    @property
    def median(self) -> float:
        """Milliseconds of a request."""
        return statistics.median(self.times) * 1e3


@contextlib.contextmanager
def _side(folder: Path, commands: Sequence[Command], places: Sequence[Place]) -> Iterator[Side]:
    started: list[subprocess.Popen[bytes]] = []
    with processes.ended_after(started):
        for command, place in zip(commands, places, strict=True):
            log = folder / f"{place.port}.log"
            with log.open("wb") as file:
                started.append(
                    processes.start(
                        command.argv, folder, command.environment, stdin=subprocess.DEVNULL,
                        stdout=file, stderr=file,
                    )
                )  # fmt: skip
        for process, place in zip(started, places, strict=True):
            processes.wait_until_listening(process, place.port, folder / f"{place.port}.log")
        yield Side(places, [process.pid for process in started])


@contextlib.contextmanager
def _both_sides(contender: Contender, *, delay: float = 0.0) -> Iterator[tuple[Side, Side, Store]]:
    """The gateways alone, and as many that share the store, which is so far away."""
    size, local = size_of(contender), local_of(contender)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gsocks-bench-")))
        exits = stack.enter_context(exits_at_work(folder, EXITS))
        store = stack.enter_context(running_store(folder))
        url = stack.enter_context(far_away(store, delay, folder)) if delay else store.url
        ports = processes.free_ports(2 * size)
        places = [Place(_LOOPBACK, port) for port in ports]
        sides = []
        for of, its in (("", places[:size]), (url, places[size:])):
            commands = gateways_of(folder, its, exits, local, of)
            sides.append(stack.enter_context(_side(folder, commands, its)))
        alone, shared = sides
        for side in sides:
            settle(side.pids, quiet=0.3)
            side.serve(max(2 * SESSIONS // 10, 2 * AT_ONCE), AT_ONCE)
            side.forget()
        yield alone, shared, store


def _sharing(contender: Contender, scale: Scale) -> dict[str, float]:
    part = max(_LEAST, scale.connections // _PARTS)
    with _both_sides(contender) as (alone, shared, store):
        operations = 0
        for number in range(_PARTS):
            for side in (alone, shared) if number % 2 else (shared, alone):
                before = store.operations()
                side.serve(part, AT_ONCE)
                operations += store.operations() - before if side is shared else 0
        for side in (alone, shared):
            settle(side.pids, quiet=0.3)
        used = [processes.cpu_seconds(side.pids) for side in (alone, shared)]
        before, began = store.operations(), time.monotonic()
        time.sleep(_IDLE)
        seconds = time.monotonic() - began
        idle = (store.operations() - before) / seconds
        of_alone, of_shared = (
            processes.cpu_seconds(side.pids) - earlier
            for side, earlier in zip((alone, shared), used, strict=True)
        )
        return {
            "alone": alone.cost,
            "shared": shared.cost,
            "ratio": shared.cost / alone.cost,
            "operations": operations / shared.requests,
            "idle": idle / size_of(contender),
            "idle_cpu": 1000 * (of_shared - of_alone) / seconds / size_of(contender),
        }


def _far(contender: Contender, scale: Scale) -> dict[str, float]:
    part = max(_LEAST, scale.connections // _PARTS // 3)
    with _both_sides(contender, delay=FAR) as (alone, shared, _):
        for number in range(_PARTS):
            for side in (alone, shared) if number % 2 else (shared, alone):
                side.serve(part, 1)
        return {
            "alone": alone.median,
            "shared": shared.median,
            "added": shared.median - alone.median,
        }


def _goals(measure: str, **bound: Any) -> tuple[Goal, ...]:
    return tuple(Goal(each.name, measure, **bound) for each in FLEETS)


def _is_fleet(contender: Contender) -> bool:
    return contender in FLEETS


SHARING = Figure(
    "fleet_sharing",
    "What sharing costs",
    f"{AT_ONCE} clients at once and {SESSIONS:,} sessions: CONNECT and a small GET, over and over,"
    f" by one of the gateways after the other; {EXITS} exits. CPU time of all gateways for a"
    " request, without a store and with one; commands that the store executes for a request, those"
    " of scripts too, and in a second for each gateway while nothing is asked of them; and the CPU"
    " time that sharing takes meanwhile.",
    (
        Measure("alone", "CPU us a request, alone"),
        Measure("shared", "CPU us a request, shared"),
        Measure("ratio", "x", decimals=3, compared=False),
        Measure("operations", "operations a request", decimals=3, compared=False),
        Measure("idle", "operations/s of a gateway, idle", decimals=1, compared=False),
        Measure("idle_cpu", "CPU ms/s more of a gateway, idle", decimals=1, compared=False),
    ),
    (*_goals("ratio", at_most=1.05), *_goals("operations", at_most=1.0)),
    _sharing,
    _is_fleet,
)
FAR_STORE = Figure(
    "fleet_far_store",
    "A store that is far away",
    f"The store is behind a relay that hands everything on {1000 * FAR:.0f} ms later, each way; one"
    " client at a time, with the same requests.",
    (
        Measure("alone", "ms alone, median", decimals=2),
        Measure("shared", "ms shared, median", decimals=2),
        Measure("added", "ms more", decimals=2, compared=False),
    ),
    _goals("added", at_most=0.2),
    _far,
    _is_fleet,
)

FLEET_FIGURES = (SHARING, FAR_STORE)
