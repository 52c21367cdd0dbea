"""The command line: ``python -m bench.compare BASE [NEW] [--counts] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import signals
from bench.compare import counts
from bench.compare.builds import WORKING_TREE, Source, UnknownRevision, checked_out
from bench.compare.measures import COMPARE, QUICK_COMPARE, ROWS, measure
from bench.compare.table import CONFIDENCE, TOLERATED, Row, Samples, as_json, outcomes, table
from bench.processes import Failed, adopt_orphans, raise_descriptor_limit
from bench.scale import Scale


def main() -> int:
    options = _parser().parse_args()
    adopt_orphans()
    scale = None if options.counts_only else _scale(options.quick, options.rounds)
    with_counts = options.counts or options.counts_only
    if with_counts and (obstacle := counts.missing()):
        print(f"no counts: {obstacle}", file=sys.stderr)
        return 1
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f"gsocks-compare-{os.getpid()}-") as folder,
            # names of the same length: the paths of all modules are in the processes' memory
            checked_out(options.base, Path(folder, "old")) as base,
            checked_out(options.new, Path(folder, "new")) as new,
        ):
            results = _compare(base, new, scale, with_counts)
    except (UnknownRevision, Failed) as error:
        print(error, file=sys.stderr)
        return 1
    print(results["text"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _scale(quick: bool, rounds: int | None) -> Scale:
    scale = QUICK_COMPARE if quick else COMPARE
    return scale._replace(rounds=rounds or scale.rounds).within(raise_descriptor_limit())


def _compare(base: Source, new: Source, scale: Scale | None, with_counts: bool) -> dict[str, Any]:
    """The text to print, and all numbers behind it.  ``scale``: None for the counts alone."""
    rows: list[Row] = []
    samples: Samples = {}
    load, started = os.getloadavg()[0], time.monotonic()
    if scale is not None:
        rows += ROWS
        samples |= measure(base.build, new.build, scale)
    if with_counts:
        rows += counts.ROWS
        samples |= counts.count({"base": base.build, "new": new.build})
    seconds = round(time.monotonic() - started)
    print(f"took {seconds} s", file=sys.stderr)
    found = outcomes(rows, samples)
    rounds = f", {scale.rounds} rounds" if scale is not None else ""
    heading = (
        f"base {base.commit}, new {new.commit}{rounds}, load average before {load:.1f}\n"
        f"medians; ratio new/base with the range of its median, {CONFIDENCE:.0%} sure\n"
        f"!: more than {TOLERATED - 1:.0%} worse; ?: may be so, within the noise"
    )
    return {
        "base": {"name": base.name, "commit": base.commit},
        "new": {"name": new.name, "commit": new.commit},
        "rounds": scale.rounds if scale is not None else 0,
        "seconds": seconds,
        "load_before": load,
        "rows": as_json(found, samples),
        "text": f"{heading}\n\n{table(found)}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description="CPU time and memory of two builds of gsocks, measured in turn.",
    )
    parser.add_argument("base", metavar="BASE", help="a git revision")
    parser.add_argument(
        "new", metavar="NEW", nargs="?", default=WORKING_TREE,
        help="another one (default: the working tree, as it is when the run starts)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="2 rounds of smaller sizes")
    parser.add_argument("--rounds", metavar="N", type=int, help=f"default: {COMPARE.rounds}")
    parser.add_argument(
        "--counts", action="store_true", help="also count instructions of user code (valgrind)"
    )
    parser.add_argument(
        "--counts-only", action="store_true", help="count instructions and measure nothing else"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
    return parser


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
