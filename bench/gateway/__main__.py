"""The command line: ``python -m bench.gateway [--quick] [--rounds N] [--figures ...]``.

A complete run of the full form is written to bench/results/gateway.json, from which ``python -m
bench.document`` writes docs/benchmarks-gateway.md; any other one is only printed.
"""

from __future__ import annotations

import json
import sys

from bench import signals
from bench.gateway.contenders import GATEWAYS
from bench.gateway.figures import GATEWAY_FIGURES
from bench.options import parser_of, wanted
from bench.processes import ROOT, adopt_orphans
from bench.report import report
from bench.run import run

RESULTS = ROOT / "bench" / "results" / "gateway.json"


def main() -> int:
    about = "gsocks beside other rotating proxies."
    options = parser_of("bench.gateway", about, GATEWAY_FIGURES, GATEWAYS).parse_args()
    adopt_orphans()
    scale, figures, contenders = wanted(options, GATEWAY_FIGURES, GATEWAYS)
    results = run(figures, contenders, scale)
    print(report(results))
    whole = len(figures) == len(GATEWAY_FIGURES) and len(contenders) == len(GATEWAYS)
    if whole and not options.quick:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"results: {RESULTS}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
