"""The command line: ``python -m bench.fleet [--quick] [--rounds N] [--figures ...]``.

A complete run of the full form is written to bench/results/fleet.json; the figures in
docs/scaling.md are from it.  Any other run is only printed.
"""

from __future__ import annotations

import sys

from bench import signals
from bench.fleet.contenders import FLEETS
from bench.fleet.figures import FLEET_FIGURES
from bench.measure import measure
from bench.processes import ROOT

RESULTS = ROOT / "bench" / "results" / "fleet.json"


def main() -> int:
    about = "What it costs gateways to share a store."
    return measure("bench.fleet", about, FLEET_FIGURES, FLEETS, RESULTS)


if __name__ == "__main__":
    sys.exit(signals.interruptible(main))
