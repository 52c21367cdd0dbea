"""``gsocks -c FILE --live``: listeners, exits and the latest lines of the log on the terminal.

The program runs in a child process, as it does without the view, which queries its workers at their
Unix sockets (gsocks/admin/peers.py).
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import gevent
from gevent.event import Event
from gevent.os import nb_read
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gsocks.admin.peers import Peers
from gsocks.admin.snapshot import ALL, STATES, Json, loop_lag, merged
from gsocks.cli.process import INTERRUPTED
from gsocks.errors import ConfigError
from gsocks.messages import plural
from gsocks.service.child import die_with_parent
from gsocks.service.socket_folder import socket_folder
from gsocks.units import format_size

#: seconds between two updates of the screen
INTERVAL = 1.0

#: lines of the log at the bottom
LOG_LINES = 8

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: columns from which on there is room for addresses and traffic
WIDE = 110

#: exits that are asked for where they are not sorted by trouble, which the program does itself
MOST_SORTED = 5000

#: a key, or the sequence of one that has no character
_KEYS = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|.", re.DOTALL)

#: lines and pages that a key scrolls by
_SCROLLS = {
    b"j": (1, 0),
    b"\x1b[B": (1, 0),
    b"k": (-1, 0),
    b"\x1b[A": (-1, 0),
    b" ": (0, 1),
    b"\x1b[6~": (0, 1),
    b"b": (0, -1),
    b"\x1b[5~": (0, -1),
}

_SORT_KEYS: dict[str, Callable[[Json], tuple[Any, ...]]] = {
    # failing exits first, then the busiest
    "trouble": lambda each: (
        each["state"] in ("ok", "unproven"),
        -each["open"],
        -each["connected"],
        STATES.index(each["state"]),
    ),
    "load": lambda each: (-each["open"], -each["connected"]),
    "failures": lambda each: (-each["failed"], -each["connected"]),
    "slowness": lambda each: (-(each["connect_seconds"] or 0.0),),
    "traffic": lambda each: (-each["up"] - each["down"],),
    "name": lambda each: (each["name"],),
}

SORTS = tuple(_SORT_KEYS)

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
    with socket_folder() as folder:
        if folder is None:
            raise ConfigError("--live needs a folder for a Unix socket (TMPDIR, XDG_RUNTIME_DIR)")
        parent = os.getpid()
        log, log_end = os.pipe()
        # which are then forwarded; a Ctrl-C that came in a hook of the fork would be lost
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        child = os.fork()
        if not child:
            os.close(log)
            _run_child(program, folder, log_end, parent, mask)
        os.close(log_end)
        return _View(child, log, folder).run()


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
        self.order = Order()
        #: a key has changed what is to be shown
        self._changed = Event()

    def run(self) -> int:
        for signum in _FORWARDED:
            gevent.signal_handler(signum, self._forward, signum)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        reader = gevent.spawn(self._read)
        console = Console()
        reader.rawlink(lambda _: self._changed.set())
        try:
            with (
                _keys_at_once() as has_keys,
                Live(console=console, screen=True, auto_refresh=False) as live,
            ):
                keys = gevent.spawn(self._read_keys) if has_keys else None
                while not reader.ready() and sys.stdout.isatty():
                    live.update(self._query(console), refresh=True)
                    self._changed.wait(INTERVAL)
                    self._changed.clear()
                if keys is not None:
                    keys.kill()
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

    def _read_keys(self) -> None:
        """Do what the keys say; ends with the terminal."""
        os.set_blocking(sys.stdin.fileno(), False)
        with suppress(OSError):
            while data := nb_read(sys.stdin.fileno(), 64):
                for key in _KEYS.findall(data):
                    if key in (b"q", b"Q"):
                        self._forward(signal.SIGTERM)
                    elif self.order.pressed(key):
                        self._changed.set()

    def _query(self, console: Console) -> RenderableType:
        # no more exits than the screen has lines: there may be 100,000
        order = self.order
        most = order.first + console.height if order.by == SORTS[0] else MOST_SORTED
        peers = Peers(sorted(self._folder.glob("*.sock")))
        snapshots = peers.snapshots(ALL, most=most)
        if not snapshots:
            return Text("starting...")
        snapshot, now = merged(snapshots), time.monotonic()
        closed = sum(sum(each["outcomes"].values()) for each in snapshot["inbounds"].values())
        before, self._before = self._before, (now, closed)
        rate = None if before is None else (closed - before[1]) / (now - before[0])
        return picture(snapshot, rate, self._lines, console.height, console.width, order)


@contextmanager
def _keys_at_once() -> Iterator[bool]:
    """Have the terminal pass each key on as it comes; whether there is one to read from."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield True
    finally:
        with suppress(OSError, termios.error):  # the terminal may be gone
            os.set_blocking(sys.stdin.fileno(), True)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Order:
    """Which exits are on the screen: how they are sorted, and which is the first one."""

    def __init__(self) -> None:
        #: one of SORTS
        self.by = SORTS[0]
        #: exits that are scrolled past
        self.first = 0
        #: lines of the table, by which a page is scrolled
        self.page = 10

    def pressed(self, key: bytes) -> bool:
        """Whether the key has a meaning, which is done then."""
        if key in (b"s", b"S"):
            self.by = SORTS[(SORTS.index(self.by) + 1) % len(SORTS)]
            self.first = 0
        elif key in _SCROLLS:
            lines, pages = _SCROLLS[key]
            self.first = max(0, self.first + lines + pages * self.page)
        elif key in (b"g", b"\x1b[H", b"\x1b[1~"):
            self.first = 0
        else:
            return False
        return True

    def sorted(self, exits: Sequence[Json]) -> list[Json]:
        """All that are known, in their order."""
        return sorted(exits, key=_SORT_KEYS[self.by])


def picture(
    snapshot: Json,
    rate: float | None,
    lines: Iterable[str],
    height: int,
    width: int = WIDE,
    order: Order | None = None,
) -> RenderableType:
    """The screen: listeners, counts of exits, failing and busy exits, the end of the log.

    ``rate``: connections closed in a second; ``height``, ``width``: of the screen.
    """
    order = Order() if order is None else order
    inbounds = [_inbound(name, inbound) for name, inbound in snapshot["inbounds"].items()]
    sessions = sum(snapshot["sessions"].values())
    speed = "" if rate is None else f", {rate:.1f} closed a second"
    workers = plural(snapshot["workers"], "worker")
    lag = loop_lag(snapshot)
    loop = f", loop lag p99 {1000 * lag['p99']:.0f} ms, longest {1000 * lag['longest']:.0f} ms"
    head = Text(
        f"gsocks: {workers}, {plural(sessions, 'session')}{speed}{loop}", "bold", no_wrap=True
    )
    tail = [Text(line, "dim", no_wrap=True) for line in list(lines)[-LOG_LINES:]]
    count = sum(snapshot["exit_counts"].values())
    states = _states(snapshot.get("exit_states", {}), count, order)
    # without the head, the listeners, the headings of the table, "and N more" and the log
    room = max(3, height - len(inbounds) - len(tail) - 8)
    order.page = room
    order.first = min(order.first, max(0, count - room))
    table = _exits(order.sorted(snapshot["exits"]), count, room, width, order.first)
    for line in (head, states, *inbounds, *tail):
        line.overflow = "ellipsis"
    return Group(head, states, *inbounds, table, *tail)


def _states(states: Mapping[str, int], count: int, order: Order) -> Text:
    """How many exits there are of each state, and what the keys do."""
    text = Text(f"{plural(count, 'exit')}: ", no_wrap=True)
    parts = [Text(f"{number} {name}", _COLOURS[name]) for name, number in states.items()]
    text.append_text(Text(", ").join(parts))
    text.append(f"  (q quits, s sorts, now by {order.by}, arrows scroll)", "dim")
    return text


def _inbound(name: str, inbound: Json) -> Text:
    outcomes = sorted(inbound["outcomes"].items(), key=lambda each: -each[1])[:5]
    ended = ", ".join(f"{count} {word}" for word, count in outcomes) or "none closed yet"
    where = ", ".join(inbound["listen"])
    traffic = f"up {format_size(inbound['up'])}, down {format_size(inbound['down'])}"
    return Text(f"{name} {where}: {inbound['connections']} open; {ended}; {traffic}", no_wrap=True)


def _exits(exits: Sequence[Json], count: int, room: int, width: int, first: int) -> RenderableType:
    """``exits`` in their order, of which those before ``first`` are scrolled past; ``count``: all
    that there are."""
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("exit", no_wrap=True, overflow="ellipsis", max_width=None if wide else 12)
    for title in ("label", "address", "country", "state") if wide else ("label", "state"):
        shared = 1 if title == "label" and not wide else None
        table.add_column(title, no_wrap=True, overflow="ellipsis", ratio=shared)
    titles = ("open", "connected", "failed", "ms", "up", "down")
    for title in titles if wide else ("open", "conn", "fail", "ms"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("last error", no_wrap=True, overflow="ellipsis", ratio=None if wide else 1)
    shown = exits[first : first + room]
    for each in shown:
        table.add_row(*_row(each, wide=wide))
    hidden = count - first - len(shown)
    if hidden <= 0:
        return table
    above = f", {first} above" if first else ""
    return Group(table, Text(f"and {hidden} more{above}", "dim"))


def _row(each: Json, *, wide: bool) -> Iterator[str | Text]:
    back = f" {each['back_in']:.0f} s" if each["back_in"] else ""
    yield Text(each["name"])
    yield Text(each["label"])
    if wide:
        yield each["address"] or ""
        yield each["country"] or ""
    yield Text(each["state"] + back, _COLOURS[each["state"]])
    yield str(each["open"])
    yield str(each["connected"])
    yield str(each["failed"])
    yield "-" if each["connect_seconds"] is None else f"{1000 * each['connect_seconds']:.0f}"
    if wide:
        yield format_size(each["up"])
        yield format_size(each["down"])
    error = each.get("last_error") or ""
    yield Text(error.removeprefix(f"{each['label']}: "), "red")
