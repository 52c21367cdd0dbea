"""``python -m bench.history``: what the history costs, as a share of a core at 1,000 requests/s.

Rounds with and without it take turns within one process, so that a busy machine slows both alike;
what is told is CPU time of the whole process, with the thread that writes.  The requests are those
of 50 users by 100 exits, of which a tenth fails after two tries.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import gevent

from gsocks.history.counter_file import CounterFile
from gsocks.history.counters import MemoryCounters
from gsocks.history.history import History
from gsocks.history.request_file import RequestFile
from gsocks.observe import Details, NullObserver, Observer, Record, Try
from gsocks.settings import RequestLogSettings

#: requests of a round, and rounds of each kind
REQUESTS = 10_000
ROUNDS = 5


def main() -> int:
    """Print a line for each kind."""
    rows = (("nothing", False, False), ("counters", True, False), ("counters and log", True, True))
    took = {name: 0.0 for name, _, _ in rows}
    for _ in range(ROUNDS):
        for name, counts, logs in rows:
            took[name] += _round(counts, logs)
    for name in took:
        each = (took[name] - took["nothing"]) / (ROUNDS * REQUESTS)
        print(f"{name:20} {each * 1e6:6.2f} us a request, {each * 1000:.2%} of a core at 1,000/s")
    return 0


def _round(counts: bool, logs: bool) -> float:
    """CPU seconds of a round: the requests of ten seconds, and all that is written of them."""
    with tempfile.TemporaryDirectory() as folder:
        observer: Observer = NullObserver()
        history = None
        if counts:
            log = RequestFile(Path(folder) / "r", 1 << 30) if logs else None
            history = History(
                MemoryCounters(time.time), CounterFile(Path(folder) / "h"), log,
                RequestLogSettings(),
            )  # fmt: skip
            observer = history.observer("local", observer)
            history.start()
        began = time.process_time()
        for number in range(REQUESTS):
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
