"""The command line: ``python -m bench [--quick] [--rounds N] [--figures ...]``.

The results are written to full.json or quick.json; to part.json if only some were asked for.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bench.contenders import CONTENDERS
from bench.figures import FIGURES
from bench.plot import can_plot, plot
from bench.processes import ROOT, adopt_orphans
from bench.report import report
from bench.run import run
from bench.scale import FULL, QUICK


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _end)
    adopt_orphans()
    scale = QUICK if options.quick else FULL
    if options.rounds:
        scale = scale._replace(rounds=options.rounds)
    figures = [figure for figure in FIGURES if figure.name in options.figures]
    contenders = [who for who in CONTENDERS if who.name in options.contenders]
    try:
        results = run(figures, contenders, scale)
    except KeyboardInterrupt:
        print("interrupted: all contenders are ended, nothing is written", file=sys.stderr)
        return 130
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
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="gsocks beside the other proxies on this machine."
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round: shows that it works"
    )
    parser.add_argument("--rounds", metavar="N", type=int, help="rounds, instead of the form's own")
    for option, known in (("figures", FIGURES), ("contenders", CONTENDERS)):
        names = [one.name for one in known]
        parser.add_argument(
            f"--{option}", nargs="+", choices=names, default=names, metavar="NAME",
            help=f"only these (known: {', '.join(names)})",
        )  # fmt: skip
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=ROOT / "bench" / "results",
        help="where the results go (default: bench/results)",
    )
    return parser


def _end(number: int, _: object) -> NoReturn:
    """End on SIGTERM as on Ctrl-C: through everything that cleans up."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
