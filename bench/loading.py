"""What loading a long list takes: ``python -m bench.loading [--exits N] [--credentials] [--json]``.

A list of N exits (100,000) of 100 countries and 20 tags is read as the program reads it, and
replaces the exits of a running group: the CPU time of each step, and the longest time that the
event loop was held meanwhile, in CPU time as well, so that what else runs on the machine doesn't
count.  Then the memory that each exit takes, list, exit and roster together, by tracemalloc, in a
second run.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import gevent

from gsocks.access.rules import ALLOW_ALL
from gsocks.exits import ExitDeps
from gsocks.rotation.build import make_exit_group, make_offers
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.lists import ExitList, ListOptions, parse_list
from gsocks.turns import without_collection

_T = TypeVar("_T")


def made_json(exits: int) -> bytes:
    """A list of objects of JSON."""
    return json.dumps(
        [
            {"ip": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", "port": 8080, "protocol": "http"}
            for n in range(exits)
        ]
    ).encode()


def made_list(exits: int, credentials: bool) -> bytes:
    """A list with a line for each exit."""
    lines = []
    for number in range(exits):
        line = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8080"
        if credentials:
            line += f":user{number}:password{number}"
        country = f"{chr(97 + number % 10)}{chr(97 + number // 10 % 10)}"
        lines.append(f"{line} country={country} tags=t{number // 100 % 20}")
    return "\n".join(lines).encode()


class Watch:
    """How long the loop is held."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._greenlet = gevent.spawn(self._run)

    def step(self, name: str, work: Callable[[], _T]) -> _T:
        """Do a step of the work, and print what it has taken."""
        gevent.sleep(0.01)
        self.longest = 0.0
        begun = time.process_time()
        result = work()
        cpu = time.process_time() - begun
        gevent.sleep(0.01)
        print(f"{name:30}{cpu:8.2f} s of CPU{self.longest * 1e3:8.1f} ms at most", flush=True)
        return result

    def _run(self) -> None:
        last = time.process_time()
        while True:
            gevent.sleep(0.001)
            now = time.process_time()
            self.longest = max(self.longest, now - last)
            last = now


def load(raw: bytes, watch: Watch | None = None) -> tuple[ExitGroup, ExitList]:
    """A group of the exits in a list, and the list, which is kept as the program keeps it."""
    step = _silent if watch is None else watch.step
    deps = ExitDeps(ALLOW_ALL)
    group = make_exit_group(["direct"], deps=deps, listed=True)
    pool = gevent.get_hub().threadpool
    with without_collection():
        found = step("read the list, in a thread", lambda: pool.apply(_parse, (raw,)))
        offers = step("make the exits", lambda: make_offers(found.exits, deps))
        step("update the group", lambda: group.update(offers))
    return group, found


def _parse(raw: bytes) -> ExitList:
    return parse_list(raw, ListOptions())


def _silent(_: str, work: Callable[[], _T]) -> _T:
    return work()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.loading", description="The cost of loading many exits."
    )
    parser.add_argument("--exits", metavar="N", type=int, default=100_000)
    parser.add_argument("--credentials", action="store_true", help="a user and password for each")
    parser.add_argument("--json", action="store_true", help="a list of objects of JSON")
    options = parser.parse_args()
    raw = made_list(options.exits, options.credentials)
    if options.json:
        raw = made_json(options.exits)
    loaded = load(raw, Watch())
    del loaded
    gc.unfreeze()
    gc.collect()
    tracemalloc.start()
    loaded = load(raw)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    print(f"{'memory':30}{size / len(loaded[0].roster):8.0f} bytes an exit")


if __name__ == "__main__":
    main()
