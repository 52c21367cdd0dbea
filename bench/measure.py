"""A part of the benchmarks as a command: ``python -m bench.fleet``, ``bench.gateway``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.contenders import Contender
from bench.figures import Figure
from bench.options import parser_of, wanted
from bench.processes import adopt_orphans
from bench.report import report
from bench.run import run


def measure(
    module: str,
    about: str,
    figures: Sequence[Figure],
    contenders: Sequence[Contender],
    results_file: Path,
) -> int:
    """Measure what the command line asks for, and print it.

    A complete run of the full form is written to ``results_file``, any other one is only printed.
    """
    options = parser_of(module, about, figures, contenders).parse_args()
    adopt_orphans()
    scale, chosen, measured = wanted(options, figures, contenders)
    results = run(chosen, measured, scale)
    print(report(results))
    is_whole = len(chosen) == len(figures) and len(measured) == len(contenders)
    if is_whole and not options.quick:
        results_file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"results: {results_file}", file=sys.stderr)
    return 0
