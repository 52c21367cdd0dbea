"""What it costs to choose among many exits:
``python -m bench.choice [--exits N] [--rounds N] [--instructions]``.

An exit group with N exits (100,000) of 100 countries and 20 tags, half of them ejected, is compared
with one of 10 exits, of which none is: by the CPU time of a choice alone (the roster's, or that of
the sessions), and by that of a whole request through the exit group, whose exits connect at once to
nothing.  Of "dead site" every second request is for a site that refuses all exits, so that some try
another one.  A real request costs some 300 us more, at either number.

Rounds of both are interleaved, and the best of each counts: it is the one that other processes have
disturbed least.  ``--instructions`` counts those of user code instead, under callgrind, which are
the same whatever else runs.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeAlias

from bench.compare.counts import missing
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import ConnectionRefused
from gsocks.exits.base import Connected
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.policy import POLICIES, make_policy
from gsocks.rotation.roster import Offer
from gsocks.stream import Stream

COUNTRIES = [a + b for a in "abcdefghij" for b in "abcdefghij"]
TAGS = [f"t{number}" for number in range(20)]

SELECTORS = {
    "any": ANY,
    "country": ExitSelector(country="aa"),
    "tag": ExitSelector(tags=("t0",)),
    "both": ExitSelector(country="aa", tags=("t0",)),
}
SESSIONS = ("no session", "kept session", "new session", "dead site")

#: of new sessions
_NUMBERS = count()

#: requests of a round
REQUESTS = 400


class Cost(NamedTuple):
    """Microseconds of CPU time."""

    choice: float
    request: float


class NullStream:
    """The end of a connection through which nothing is carried."""

    def abort(self) -> None:
        """Does nothing."""


class NullExit:
    """An exit that is connected at once, but for sites that refuse it."""

    __slots__ = ("label",)

    def __init__(self, label: str) -> None:
        self.label = label

    def start(self) -> None:
        """Does nothing."""

    def connect(self, request: Request) -> Connected:
        if request.dest.host.startswith("dead"):
            raise ConnectionRefused("refused")
        stream: Stream = NullStream()  # type: ignore[assignment]
        return Connected(stream, UNSPECIFIED)

    def close(self) -> None:
        """Does nothing."""


def make_group(policy: str, exits: int) -> ExitGroup:
    """A group of so many exits."""
    offers = [
        Offer(
            NullExit(f"http://10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8080"),
            country="aa" if exits == 10 else COUNTRIES[number % len(COUNTRIES)],
            tags=("t0",) if exits == 10 else (TAGS[number // len(COUNTRIES) % len(TAGS)],),
            weight=1.0 + number % 3,
        )
        for number in range(exits)
    ]
    made = make_policy(policy, Random(2))
    # under callgrind the first request for a view takes long
    return ExitGroup(offers, ALLOW_ALL, policy=made, random=Random(3), timeout=3600.0)


def eject_half(group: ExitGroup) -> None:
    """Eject every other exit, at random, for longer than this program runs."""
    now = time.monotonic()
    chance = Random(4)
    for member in group.roster:
        if chance.random() < 0.5:
            member.health.ejected_until = now + 3600
        else:
            member.health.succeeded(now)
        group.roster.member_changed(member, now)


class Load:
    """Requests with one selector to one group."""

    def __init__(self, group: ExitGroup, selector: ExitSelector, session: str) -> None:
        self._group = group
        self._selector = selector
        self._session = session

    def requests(self) -> Iterator[Request]:
        """The requests of one round, each to one of 50 hosts."""
        # else one whose exit does not match would move at each
        kept = f"{self._selector.country} {self._selector.tags}"
        for number in range(REQUESTS):
            selector = self._selector
            if self._session == "kept session":
                selector = selector._replace(session=f"{kept} {number % 100}")
            elif self._session == "new session":
                selector = selector._replace(session=f"new{next(_NUMBERS)}")
            site = f"{number % 50}.example"
            if self._session == "dead site" and number % 2:
                site = f"dead{site}"
            yield Request(Command.CONNECT, Address(site, 443), selector=selector)

    def whole(self) -> None:
        """Connect and release each."""
        group = self._group
        for request in self.requests():
            with suppress(ConnectionRefused):  # by a dead site
                group.connect(request, _ignore).release(100, 1000)

    def choices(self) -> None:
        """Choose an exit for each, without a session."""
        roster = self._group.roster
        now = time.monotonic()
        for request in self.requests():
            roster.choose(request, (), now)


def _ignore(_: str) -> None:
    """Nothing is made of it."""


#: what one call costs
Measure: TypeAlias = Callable[[Callable[[], None]], float]


def cpu_time(work: Callable[[], None]) -> float:
    """Microseconds of CPU time."""
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e6


class Instructions:
    """Thousands of instructions of this process, which runs under callgrind.

    ``folder``: where callgrind writes its counts, and has its pipes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = 0.0
        # what it takes to ask
        self._own = min(self(_nothing) for _ in range(5))

    def __call__(self, work: Callable[[], None]) -> float:
        # what is not counted, as making 100,000 exits, is ten times as fast
        self._tell("instrumentation", "on")
        self._tell("zero")
        work()
        self._tell("dump")
        self._tell("instrumentation", "off")
        (file,) = self._folder.glob(f"{os.getpid()}.*")
        text = file.read_text()
        file.unlink()
        total = int(re.findall(r"^totals: (\d+)$", text, re.MULTILINE)[-1])
        return total / 1000 - self._own

    def _tell(self, *command: str) -> None:
        asked = ["vgdb", f"--vgdb-prefix={self._folder}/vgdb", f"--pid={os.getpid()}", *command]
        subprocess.run(asked, capture_output=True, timeout=120, check=True)


def _nothing() -> None:
    """Costs what it costs to measure."""


def count_instructions() -> int:
    """Run this program under callgrind; its exit status."""
    if obstacle := missing():
        print(f"no counts: {obstacle}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gsocks-choice-") as folder:
        valgrind = (
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder}/%p",
            f"--vgdb-prefix={folder}/vgdb",
        )
        ours = (sys.executable, "-m", "bench.choice", *sys.argv[1:], "--folder", folder)
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        return subprocess.run([*valgrind, *ours], env=environment, check=False).returncode


def main() -> int:
    options = _parser().parse_args()
    if options.instructions and options.folder is None:
        return count_instructions()
    measure: Measure = cpu_time if options.folder is None else Instructions(options.folder)
    unit = "us of CPU" if options.folder is None else "thousand instructions"
    print(f"{unit:30}{'choice':>20}{'request':>24}")
    print(f"{'':30}{'10':>8}{options.exits:>12,}{'10':>8}{options.exits:>12,}{'ratio':>8}")
    for policy in options.policies:
        few, many = make_group(policy, 10), make_group(policy, options.exits)
        eject_half(many)
        gc.collect()
        gc.freeze()
        for name, selector in SELECTORS.items():
            for session in SESSIONS:
                row = f"{policy}, {name}, {session}"
                _row(row, few, many, selector, session, options.rounds, measure)
    return 0


def _row(
    name: str,
    few: ExitGroup,
    many: ExitGroup,
    selector: ExitSelector,
    session: str,
    rounds: int,
    measure: Measure,
) -> None:
    costs: list[list[float]] = [[], [], [], []]
    loads = [Load(group, selector, session) for group in (few, many)]
    for load in loads:  # views are made at the first request
        load.whole()
    for _ in range(rounds):
        for number, load in enumerate(loads):
            if session == "no session":
                costs[number].append(measure(load.choices) / REQUESTS)
            costs[2 + number].append(measure(load.whole) / REQUESTS)
    best = [min(each, default=float("nan")) for each in costs]
    ratio = best[3] / best[2]
    print(
        f"{name:38}{best[0]:8.1f}{best[1]:12.1f}{best[2]:8.1f}{best[3]:12.1f}{ratio:8.2f}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.choice", description="The cost of a choice among many exits."
    )
    parser.add_argument("--exits", metavar="N", type=int, default=100_000)
    parser.add_argument("--rounds", metavar="N", type=int, default=5)
    parser.add_argument(
        "--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES), metavar="NAME"
    )
    parser.add_argument("--instructions", action="store_true", help="count instructions (valgrind)")
    # of the process under callgrind
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
