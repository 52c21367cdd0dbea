"""The command line: ``python -m bench.gateway [--quick] [--rounds N] [--figures ...]``.

A complete run of the full form is written to bench/results/gateway.json, from which ``python -m
bench.document`` writes docs/benchmarks-gateway.md; any other one is only printed.
"""

from __future__ import annotations

import sys

from bench import signals
from bench.gateway.contenders import GATEWAYS
from bench.gateway.figures import GATEWAY_FIGURES
from bench.measure import measure
from bench.processes import ROOT

RESULTS = ROOT / "bench" / "results" / "gateway.json"


def main() -> int:
    about = "gsocks beside other rotating proxies."
    return measure("bench.gateway", about, GATEWAY_FIGURES, GATEWAYS, RESULTS)


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
