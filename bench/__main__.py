"""The command line: ``python -m bench [--quick] [--rounds N] [--figures ...]``.

The results are written to full.json or quick.json; to part.json if only some were asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import signals
from bench.contenders import CONTENDERS
from bench.figures import FIGURES
from bench.options import parser_of, wanted
from bench.plot import can_plot, plot
from bench.processes import ROOT, adopt_orphans
from bench.report import report
from bench.run import run


def main() -> int:
    options = _parser().parse_args()
    adopt_orphans()
    scale, figures, contenders = wanted(options, FIGURES, CONTENDERS)
    results = run(figures, contenders, scale)
    print(report(results))
    options.output.mkdir(parents=True, exist_ok=True)
    # a part of the figures is no replacement for all of them
    whole = len(figures) == len(FIGURES) and len(contenders) == len(CONTENDERS)
    file = options.output / f"{scale.name if whole else 'part'}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(f"results: {file}", file=sys.stderr)
    if can_plot():
        picture = file.with_suffix(".png")
        plot(results, picture)
        print(f"plot:    {picture}", file=sys.stderr)
    else:
        print("no plot: matplotlib is not installed (pip install 'gsocks[bench]')", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "bench", "gsocks beside the other proxies on this machine.", FIGURES, CONTENDERS
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=ROOT / "bench" / "results",
        help="where the results go (default: bench/results)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
