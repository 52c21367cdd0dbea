"""``python -m bench.history``: what the history costs, as a share of a core at 1,000 requests/s.

Rounds with and without it take turns within one process, so that a busy machine slows both alike;
what is told is CPU time of the whole process, with the thread that writes.  The requests are those
of 50 users by 100 exits, of which a tenth fails after two tries.

With ``--counts`` it is instructions of user code, by callgrind: those hardly depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gevent

from gsocks.address import Address
from gsocks.history.counter_file import CounterFile
from gsocks.history.counters import MemoryCounters
from gsocks.history.history import History
from gsocks.history.request_file import RequestFile
from gsocks.inbound.active_request import ActiveRequest
from gsocks.observe import Details, NullObserver, Observer, Record, Try
from gsocks.request import Command, Request
from gsocks.settings import RequestLogSettings

#: requests of a round, and rounds of each kind
REQUESTS = 10_000
ROUNDS = 5


class _Kind(NamedTuple):
    name: str
    #: whether a request asks whether any of it is on, as it does where none is
    asks: bool = False
    #: whether there are counters, with their file
    counts: bool = False
    #: whether there is a request log
    logs: bool = False


_BASE = _Kind("nothing")
_KINDS = (
    _BASE,
    _Kind("all of it off", asks=True),
    _Kind("counters", counts=True),
    _Kind("counters and log", counts=True, logs=True),
)


def main() -> int:
    """Print a line for each kind."""
    parser = argparse.ArgumentParser(prog="python -m bench.history")
    parser.add_argument("--counts", action="store_true", help="instructions (needs valgrind)")
    parser.add_argument("--within", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        return _count_within(options.within)
    return _count() if options.counts else _time()


def _time() -> int:
    took = dict.fromkeys(_KINDS, 0.0)
    for _ in range(ROUNDS):
        for kind in _KINDS:
            took[kind] += _round(kind)
    for kind in _KINDS[1:]:
        each = (took[kind] - took[_BASE]) / (ROUNDS * REQUESTS)
        share = f"{each * 1000:.2%} of a core at 1,000/s"
        print(f"{kind.name:20} {each * 1e6:6.2f} us a request, {share}")
    return 0


# --- instructions -----------------------------------------------------------------------------


def _count() -> int:
    if shutil.which("valgrind") is None:
        print("no counts: valgrind is missing", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gsocks-counts-") as folder:
        callgrind = (
            "valgrind",
            *("--quiet", "--tool=callgrind", "--instr-atstart=no"),
            *(f"--callgrind-out-file={folder}/%p", f"--vgdb-prefix={folder}/vgdb"),
        )
        itself = (sys.executable, "-m", "bench.history", "--within", folder)
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        return subprocess.run([*callgrind, *itself], env=environment, check=False).returncode


def _count_within(folder: Path) -> int:
    """Count, in a process under callgrind."""
    _tell(folder, "instrumentation", "on")
    base = 0.0
    for kind in _KINDS:
        _round(kind)  # as the specialising interpreter learns
        _taken(folder)
        _round(kind)
        found = _taken(folder) / REQUESTS
        if kind is _BASE:
            base = found
        else:
            each = (found - base) / 1000
            print(f"{kind.name:20} {each:6.2f} k instructions a request", flush=True)
    return 0


def _taken(folder: Path) -> int:
    """Instructions since the last time."""
    _tell(folder, "dump")
    (file,) = folder.glob(f"{os.getpid()}.*")
    total = int(re.findall(r"^totals: (\d+)$", file.read_text(), re.MULTILINE)[-1])
    file.unlink()
    return total


def _tell(folder: Path, *command: str) -> None:
    argv = ["vgdb", f"--vgdb-prefix={folder / 'vgdb'}", f"--pid={os.getpid()}", *command]
    subprocess.run(argv, capture_output=True, timeout=60, check=True)


# --- a round ----------------------------------------------------------------------------------


class _Active:
    """What of a request's connection :meth:`_with_details` sees."""

    def __init__(self, record: Record) -> None:
        self.record = record


def _ask_whether_it_is_on(context: Any, active: Any, request: Request) -> None:
    """What gsocks/inbound does for each request (connection.py, active_request.py)."""
    if context.wants_details:
        raise AssertionError
    ActiveRequest._with_details(active, request)
    if active.record.details is not None:
        raise AssertionError


def _round(kind: _Kind) -> float:
    """CPU seconds of a round: the requests of ten seconds, and all that is written of them."""
    with tempfile.TemporaryDirectory() as folder:
        observer: Observer = NullObserver()
        history = None
        if kind.counts:
            log = RequestFile(Path(folder) / "r", 1 << 30) if kind.logs else None
            history = History(
                MemoryCounters(time.time), CounterFile(Path(folder) / "h"), log,
                RequestLogSettings(),
            )  # fmt: skip
            # a round is over before any interval is, and under callgrind, too
            history.interval = history.fold_interval = history.patience = 3600.0
            observer = history.observer("local", observer)
            history.start()
        off, active = SimpleNamespace(wants_details=False), _Active(Record("local", "x", "c1"))
        request = Request(Command.CONNECT, Address("host.example.com", 443))
        began = time.process_time()
        for number in range(REQUESTS):
            if kind.asks:
                _ask_whether_it_is_on(off, active, request)
            observer.ended(_request(number))
            if number % 1000 == 999:
                gevent.sleep(0.001)
        if history is not None:
            history.close()
        return time.process_time() - began


def _request(number: int) -> Record:
    record = Record("local", "192.0.2.1:5000", f"c1-{number}")
    record.user, record.dest = f"user{number % 50}", f"host{number % 1000}.example.com:443"
    record.outcome, record.up, record.down = "ok", 1000, 20000
    details = record.details = Details()
    details.exit, details.connect = f"exit-{number % 100}", 0.02
    details.answered = record.start + 0.05
    if number % 10 == 0:
        record.outcome = "timed_out"
        details.tries = [
            Try(f"exit-{each}", record.start, record.start, "x", "y") for each in (1, 2)
        ]
    return record


if __name__ == "__main__":
    sys.exit(main())
