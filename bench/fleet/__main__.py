"""The command line: ``python -m bench.fleet [--quick] [--rounds N] [--figures ...]``.

A complete run of the full form is written to bench/results/fleet.json; the figures in
docs/scaling.md are from it.  Any other run is only printed.
"""

from __future__ import annotations

import json
import sys

from bench import signals
from bench.fleet.contenders import FLEETS
from bench.fleet.figures import FLEET_FIGURES
from bench.options import parser_of, wanted
from bench.processes import ROOT, adopt_orphans
from bench.report import report
from bench.run import run

RESULTS = ROOT / "bench" / "results" / "fleet.json"


def main() -> int:
    about = "What it costs gateways to share a store."
    options = parser_of("bench.fleet", about, FLEET_FIGURES, FLEETS).parse_args()
    adopt_orphans()
    scale, figures, contenders = wanted(options, FLEET_FIGURES, FLEETS)
    results = run(figures, contenders, scale)
    print(report(results))
    whole = len(figures) == len(FLEET_FIGURES) and len(contenders) == len(FLEETS)
    if whole and not options.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"results: {RESULTS}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
