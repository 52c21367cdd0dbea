"""Instructions beside their budgets: ``python -m bench.budgets [--quick] [--json FILE]``.

What a connection, a small message, a MB and a request to a gateway cost in instructions of user
code, of the working tree and of the commit before it (compare/counts.py).  A missed budget is
shown and fails nothing; the exit status tells whether the working tree could be counted.

The least of a few samples counts.  What the clock brings, such as a turn of the loop that is over
its time because other programs had the core, can only add to them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import signals
from bench.compare import counts
from bench.compare.builds import WORKING_TREE, UnknownRevision, checked_out, commit_before
from bench.compare.table import Row, aligned
from bench.processes import Failed, adopt_orphans

#: samples in the quick form
_QUICK_SLICES = 2
_NOTHING = "-"

#: by a row's key: its samples
Counted = dict[str, list[float]]


def main() -> int:
    options = _parser().parse_args()
    adopt_orphans()
    if obstacle := counts.missing():
        print(f"no counts: {obstacle}", file=sys.stderr)
        return 1
    slices = _QUICK_SLICES if options.quick else counts.SLICES
    with tempfile.TemporaryDirectory(prefix=f"gsocks-compare-{os.getpid()}-") as folder:
        try:
            # names of the same length: the paths of all modules are in the processes' memory
            now, commit = _counted("new", WORKING_TREE, Path(folder, "new"), slices)
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
        before, commit_of_before = _counted_before(Path(folder, "old"), slices)
    print(f"{commit}, before it {commit_of_before}; callgrind, least of {slices} samples\n")
    print(table(counts.ROWS, now, before))
    if options.json:
        options.json.write_text(json.dumps({"now": now, "before": before}, indent=1) + "\n")
    return 0


def _counted(side: str, name: str, folder: Path, slices: int) -> tuple[Counted, str]:
    """The samples of one build, and its commit.  Raises Failed, and what checked_out does."""
    with checked_out(name, folder) as source:
        samples = counts.count({side: source.build}, slices)
    return {key: sides[side] for key, sides in samples.items()}, source.commit


def _counted_before(folder: Path, slices: int) -> tuple[Counted, str]:
    """The same of the commit before; nothing of one that is not there or can't be counted."""
    name = commit_before()
    if name is None:
        return {}, "nothing"
    try:
        return _counted("base", name, folder, slices)
    except (Failed, UnknownRevision, OSError, subprocess.SubprocessError) as error:
        print(f"no counts of the commit before: {error}", file=sys.stderr)
        return {}, "nothing that can be counted"


def table(rows: Sequence[Row], now: Counted, before: Counted) -> str:
    """The least of the samples, of the commit before too, and budgets; in at most 80 columns."""
    lines: list[tuple[str, ...]] = [("", "", "now", "before", "ratio", "budget", "")]
    lines += [_line(row, now[row.key], before.get(row.key)) for row in rows]
    return "\n".join(aligned(lines))


def _line(row: Row, now: Sequence[float], before: Sequence[float] | None) -> tuple[str, ...]:
    least = min(now)
    then, ratio, budget, mark = _NOTHING, _NOTHING, _NOTHING, ""
    if before:
        then = f"{min(before):.{row.decimals}f}"
        ratio = f"{least / min(before):.3f}"
    if row.budget is not None:
        budget = f"{row.budget:g}"
        mark = "over" if least > row.budget else ""
    return row.label, row.unit, f"{least:.{row.decimals}f}", then, ratio, budget, mark


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.budgets",
        description="Instructions of user code, beside those of the commit before and budgets.",
    )
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_SLICES} samples, not 5")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
    return parser


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
