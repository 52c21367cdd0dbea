"""``gsocks -c FILE --live``: listeners, exits and the latest lines of the log on the terminal.

The program runs in a child process, as it does without the view, which queries its workers at their
Unix sockets (gsocks/admin/peers.py).
"""

from __future__ import annotations

import logging
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

from gsocks.admin.peers import Peers
from gsocks.admin.snapshot import ALL, STATES, Json, loop_lag, merged
from gsocks.cli.process import INTERRUPTED
from gsocks.messages import plural
from gsocks.service.child import die_with_parent
from gsocks.units import format_size

#: seconds between two updates of the screen
INTERVAL = 1.0

#: lines of the log at the bottom
LOG_LINES = 8

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_COLOURS = {
    "ok": "green",
    "unproven": "",
    "degraded": "yellow",
    "probation": "yellow",
    "ejected": "red",
    "down": "red",
    "banned": "magenta",
    "spent": "magenta",
    "draining": "cyan",
}


def show(program: Callable[[Path], int]) -> int:
    """Run ``program`` in a child process, and show its state; returns its exit status.

    ``program`` gets the folder for the Unix sockets of its workers.  Signals are forwarded to it.
    The caller must have no gevent hub and no other thread.
    """
    with TemporaryDirectory(prefix="gsocks-") as folder:
        parent = os.getpid()
        log, log_end = os.pipe()
        # which are then forwarded; a Ctrl-C that came in a hook of the fork would be lost
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        child = os.fork()
        if not child:
            os.close(log)
            _run_child(program, Path(folder), log_end, parent, mask)
        os.close(log_end)
        return _View(child, log, Path(folder)).run()


def _run_child(
    program: Callable[[Path], int],
    folder: Path,
    log: int,
    parent: int,
    mask: set[signal.Signals] | set[int],
) -> NoReturn:
    """The child's side: ``program`` with ``log`` as its output and ``mask`` of blocked signals."""
    status = 1
    try:
        # a proxy that outlives its view would go unnoticed
        die_with_parent(parent, signal.SIGTERM)
        os.setpgid(0, 0)  # the view forwards Ctrl-C
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        status = program(folder)
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        logging.shutdown()
        os._exit(status)


class _View:
    """The parent's side: the screen."""

    def __init__(self, child: int, log: int, folder: Path) -> None:
        self._child = child
        self._log = log
        self._folder = folder
        self._lines: deque[str] = deque(maxlen=200)
        self._before: tuple[float, int] | None = None

    def run(self) -> int:
        for signum in _FORWARDED:
            gevent.signal_handler(signum, self._forward, signum)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        reader = gevent.spawn(self._read)
        console = Console()
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while not reader.ready() and sys.stdout.isatty():
                    live.update(self._query(console), refresh=True)
                    reader.join(INTERVAL)
        except OSError:
            if sys.stdout.isatty():
                raise
        if closed := not sys.stdout.isatty():  # a proxy that outlives its view would go unnoticed
            with open(os.devnull, "wb") as nothing:  # for what is written at the end of the process
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            self._forward(signal.SIGTERM)
            reader.join()
        _, status = os.waitpid(self._child, 0)
        os.close(self._log)
        if not closed:  # the screen is cleared, and the reason of an exit may be among these lines
            sys.stderr.writelines(line + "\n" for line in list(self._lines)[-LOG_LINES:])
        exit_status = os.waitstatus_to_exitcode(status)
        if exit_status >= 0:
            return exit_status
        killed_by = signal.Signals(-exit_status)
        print(f"gsocks: the proxy was killed by {killed_by.name}", file=sys.stderr)
        return 128 + killed_by

    def _forward(self, signum: signal.Signals) -> None:
        try:
            os.kill(self._child, signum)
        except ProcessLookupError:
            pass  # it has exited already

    def _read(self) -> None:
        """Read the log until its last writer has exited."""
        os.set_blocking(self._log, False)
        kept = b""
        while data := nb_read(self._log, 65536):
            *lines, kept = (kept + data).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines)

    def _query(self, console: Console) -> RenderableType:
        # no more exits than the screen has lines: there may be 100,000
        peers = Peers(sorted(self._folder.glob("*.sock")))
        snapshots = peers.snapshots(ALL, most=console.height)
        if not snapshots:
            return Text("starting...")
        snapshot, now = merged(snapshots), time.monotonic()
        closed = sum(sum(each["outcomes"].values()) for each in snapshot["inbounds"].values())
        before, self._before = self._before, (now, closed)
        rate = None if before is None else (closed - before[1]) / (now - before[0])
        return picture(snapshot, rate, self._lines, console.height)


def picture(
    snapshot: Json, rate: float | None, lines: Iterable[str], height: int
) -> RenderableType:
    """The screen: listeners, failing and busy exits, the end of the log.

    ``rate``: connections closed in a second; ``height``: lines of the screen.
    """
    inbounds = [_inbound(name, inbound) for name, inbound in snapshot["inbounds"].items()]
    sessions = sum(snapshot["sessions"].values())
    speed = "" if rate is None else f", {rate:.1f} closed a second"
    workers = plural(snapshot["workers"], "worker")
    lag = loop_lag(snapshot)
    loop = f", loop lag p99 {1000 * lag['p99']:.0f} ms, longest {1000 * lag['longest']:.0f} ms"
    head = Text(f"gsocks: {workers}, {plural(sessions, 'session')}{speed}{loop}", "bold")
    tail = [Text(line, "dim", no_wrap=True) for line in list(lines)[-LOG_LINES:]]
    # without the head, the listeners, the headings of the table, "and N more" and the log
    room = max(3, height - len(inbounds) - len(tail) - 7)
    count = sum(snapshot["exit_counts"].values())
    return Group(head, *inbounds, _exits(snapshot["exits"], count, room), *tail)


def _inbound(name: str, inbound: Json) -> Text:
    outcomes = sorted(inbound["outcomes"].items(), key=lambda each: -each[1])[:5]
    ended = ", ".join(f"{count} {word}" for word, count in outcomes) or "none closed yet"
    where = ", ".join(inbound["listen"])
    traffic = f"up {format_size(inbound['up'])}, down {format_size(inbound['down'])}"
    return Text(f"{name} {where}: {inbound['connections']} open; {ended}; {traffic}", no_wrap=True)


def _exits(exits: Sequence[Json], count: int, room: int) -> RenderableType:
    """Failing exits first, then the busiest; ``count``: all exits, of which these are some."""
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
    for title in ("exit", "label", "address", "country", "state"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for title in ("open", "connected", "failed", "ms", "up", "down"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in order[:room]:
        back = f" {each['back_in']:.0f} s" if each["back_in"] else ""
        table.add_row(
            Text(each["name"]),
            Text(each["label"]),
            each["address"] or "",
            each["country"] or "",
            Text(each["state"] + back, _COLOURS[each["state"]]),
            str(each["open"]),
            str(each["connected"]),
            str(each["failed"]),
            "-" if each["connect_seconds"] is None else f"{1000 * each['connect_seconds']:.0f}",
            format_size(each["up"]),
            format_size(each["down"]),
        )
    hidden = count - min(len(order), room)
    return Group(table, Text(f"and {hidden} more", "dim")) if hidden > 0 else table
