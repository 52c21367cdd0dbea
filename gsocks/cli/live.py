"""The live view of ``gsocks -c FILE --live``: exits, doors and the latest lines of the log.

The program runs in a child of its own, as it does without the view; what is shown is what its
workers tell at their Unix sockets (gsocks/admin/crew.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import gevent
from gevent.os import nb_read
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gsocks.admin.crew import Crew
from gsocks.admin.snapshot import STATES, Json, merged
from gsocks.units import format_size

#: seconds between two looks
EVERY = 1.0

#: lines of the log at the bottom
LOG_LINES = 8

_COLOURS = {
    "ok": "green",
    "unproven": "",
    "shaky": "yellow",
    "probation": "yellow",
    "out": "red",
    "down": "red",
    "banned": "magenta",
    "draining": "cyan",
}

_PR_SET_PDEATHSIG = 1  # prctl(2)


def show(program: Callable[[Path], int]) -> int:
    """Run ``program`` in a child, and show what its workers tell; returns its exit status.

    ``program`` is given the folder in which the workers are to listen.  Signals are passed on to
    it.  The caller must have no gevent hub and no other thread.
    """
    with TemporaryDirectory(prefix="gsocks-") as folder:
        log, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(log)
            _live(program, Path(folder), theirs)
        os.close(theirs)
        return _View(child, log, Path(folder)).run()


def _live(program: Callable[[Path], int], folder: Path, log: int) -> NoReturn:
    """The child's life."""
    status = 1
    try:
        # Without the view nobody would know that it runs.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        os.setpgid(0, 0)  # Ctrl-C is the view's to pass on
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        status = program(folder)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _View:
    """The parent's side."""

    def __init__(self, child: int, log: int, folder: Path) -> None:
        self._child = child
        self._log = log
        self._folder = folder
        self._lines: deque[str] = deque(maxlen=200)
        self._before: tuple[float, int] | None = None

    def run(self) -> int:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            gevent.signal_handler(signum, self._pass_on, signum)
        reader = gevent.spawn(self._read)
        console = Console()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not reader.ready():
                live.update(self._look(console), refresh=True)
                reader.join(EVERY)
        _, status = os.waitpid(self._child, 0)
        os.close(self._log)
        # the screen is gone, and with it what may have been the reason
        sys.stderr.writelines(line + "\n" for line in list(self._lines)[-LOG_LINES:])
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, signum: signal.Signals) -> None:
        try:
            os.kill(self._child, signum)
        except ProcessLookupError:
            pass  # it was faster

    def _read(self) -> None:
        """The log, until its last writer has ended."""
        os.set_blocking(self._log, False)
        kept = b""
        while data := nb_read(self._log, 65536):
            *lines, kept = (kept + data).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines)

    def _look(self, console: Console) -> RenderableType:
        told = Crew(sorted(self._folder.glob("*.sock"))).ask("GET", "/own/snapshot")
        if not told:
            return Text("starting...")
        known, now = merged(each.said for each in told), time.monotonic()
        over = sum(sum(door["outcomes"].values()) for door in known["doors"].values())
        before, self._before = self._before, (now, over)
        rate = None if before is None else (over - before[1]) / (now - before[0])
        return picture(known, rate, self._lines, console.height)


def picture(known: Json, rate: float | None, lines: Iterable[str], height: int) -> RenderableType:
    """What is seen: doors, the exits that most is to be told of, the end of the log.

    ``rate``: connections that have ended in a second; ``height``: lines of the screen.
    """
    doors = [_door(name, door) for name, door in known["doors"].items()]
    sessions = sum(known["sessions"].values())
    speed = "" if rate is None else f", {rate:.1f} ended a second"
    workers = _count(known["workers"], "worker")
    head = Text(f"gsocks: {workers}, {_count(sessions, 'session')}{speed}", "bold")
    tail = [Text(line, "dim", no_wrap=True) for line in list(lines)[-LOG_LINES:]]
    # the head, the doors, the table's own lines, what was left out, and the log
    room = max(3, height - len(doors) - len(tail) - 7)
    return Group(head, *doors, _exits(known["exits"], room), *tail)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _door(name: str, door: Json) -> Text:
    outcomes = sorted(door["outcomes"].items(), key=lambda each: -each[1])[:5]
    ended = ", ".join(f"{count} {word}" for word, count in outcomes) or "none ended yet"
    where = ", ".join(door["listen"])
    traffic = f"up {format_size(door['up'])}, down {format_size(door['down'])}"
    return Text(f"{name} {where}: {door['connections']} open; {ended}; {traffic}", no_wrap=True)


def _exits(exits: Sequence[Json], room: int) -> RenderableType:
    """The busiest first, and before them those that are in trouble."""
    order = sorted(
        exits,
        key=lambda each: (
            each["state"] in ("ok", "unproven"),
            -each["open"],
            -each["connected"],
            STATES.index(each["state"]),
        ),
    )
    table = Table(box=None, pad_edge=False, expand=True)
    for title in ("exit", "label", "country", "state"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title in ("open", "connected", "failed", "ms", "up", "down"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in order[:room]:
        back = f" {each['back_in']:.0f} s" if each["back_in"] else ""
        table.add_row(
            Text(each["name"]),
            Text(each["label"]),
            each["country"] or "",
            Text(each["state"] + back, _COLOURS[each["state"]]),
            str(each["open"]),
            str(each["connected"]),
            str(each["failed"]),
            f"{1000 * each['connect_seconds']:.0f}",
            format_size(each["up"]),
            format_size(each["down"]),
        )
    hidden = len(order) - room
    return Group(table, Text(f"and {hidden} more", "dim")) if hidden > 0 else table
