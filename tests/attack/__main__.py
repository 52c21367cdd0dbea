"""How long another client waits while one peer floods gsocks.

    python -m tests.attack [--requests 200] [NAME...]

One worker.  Prints a row for each flood: the milliseconds of the other client's requests, one after
the other, and those until the log tells that SIGTERM was heard.  Where the flood is a list that
takes seconds, the other client asks, every 20 ms at the end, until one was read meanwhile.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.attack.flood import Flood, floods, under

#: milliseconds of the other client's requests at the median and at the worst, and until SIGTERM is
#: heard
MEDIAN, WORST, SIGTERM = 20.0, 100.0, 1000.0

HEAD = """| while | served | median ms | worst ms | SIGTERM heard after ms |
|---|---|---|---|---|"""


def row(flood: Flood, requests: int) -> tuple[str, bool]:
    """A row of the table, and whether the goals are met."""
    with (
        tempfile.TemporaryDirectory() as folder,
        under(flood.start, Path(folder)) as (scene, attacked),
    ):
        time.sleep(0.5)  # it comes to full speed
        seen, flooded = attacked.ask(scene, requests)
        began = time.perf_counter()
        attacked.program.signal(signal.SIGTERM)
        attacked.program.wait_for("shutting down")
        heard = 1000 * (time.perf_counter() - began)
        attacked.program.signal(signal.SIGTERM)
        attacked.program.end()
    ms = seen.ms or [float("inf")]
    median, worst = statistics.median(ms), max(ms)
    well = (
        flooded and not seen.failures and median <= MEDIAN and worst <= WORST and heard <= SIGTERM
    )
    figures = f"{median:.1f} | {worst:.1f} | {heard:.0f}"
    missed = "" if well else " (missed)" if flooded else " (no flood)"
    asked = max(requests, seen.served + len(seen.failures))
    return f"| {flood.title}{missed} | {seen.served} of {asked} | {figures} |", well


def main() -> int:
    """The exit status is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the function")
    options = parser.parse_args()
    chosen = [each for each in floods() if not options.names or each.name in options.names]
    print(HEAD, flush=True)
    all_well = True
    for each in chosen:
        text, well = row(each, options.requests)
        all_well &= well
        print(text, flush=True)
    return not all_well


if __name__ == "__main__":
    sys.exit(main())
