"""Write the tables of a results file into its document in docs/, between two markers.

    python -m bench.document bench/results/full.json       into docs/benchmarks.md
    python -m bench.document bench/results/gateway.json    into docs/benchmarks-gateway.md

docs/comparison.md is written anew too.  No number is typed into these documents, so they contain
only what was measured.  The goals are judged anew by the samples in the file, and written back: a
goal that is newer than the run is among them, and one on a contender that the run did not have is
not measured.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bench import comparison
from bench.figures import FIGURES
from bench.gateway.figures import GATEWAY_FIGURES
from bench.processes import ROOT
from bench.report import report
from bench.run import judged

DOCUMENT = ROOT / "docs" / "benchmarks.md"
GATEWAY_DOCUMENT = ROOT / "docs" / "benchmarks-gateway.md"
BEGIN = "<!-- results: written by python -m bench.document -->"
END = "<!-- end of results -->"


def with_results(text: str, results: str) -> str:
    """``text`` with ``results`` between the markers.  Raises ValueError without these."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the markers of the results are missing")
    return f"{before}{begin}\n\n{results}\n{end}{after}"


def main() -> None:
    source = Path(sys.argv[1]).resolve()
    numbers = json.loads(source.read_text())
    of_gateways = source.stem == "gateway"
    document = GATEWAY_DOCUMENT if of_gateways else DOCUMENT
    numbers["goals"] = judged(numbers, GATEWAY_FIGURES if of_gateways else FIGURES)
    source.write_text(json.dumps(numbers, indent=1) + "\n")
    results = report(numbers)
    picture = source.with_suffix(".png")
    if picture.exists():
        results += f"\n![all measures as bars]({os.path.relpath(picture, document.parent)})\n"
    document.write_text(with_results(document.read_text(), results))
    comparison.main()
    print(f"{os.path.relpath(document)}: results of {os.path.relpath(source)}")


if __name__ == "__main__":
    main()
