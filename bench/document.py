"""Write the tables of a results file into docs/benchmarks.md, between its two markers.

    python -m bench.document bench/results/full.json

Nobody types a number into that document, so it says what was measured and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from bench.processes import ROOT
from bench.report import report

DOCUMENT = ROOT / "docs" / "benchmarks.md"
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
    results = report(json.loads(source.read_text()))
    picture = source.with_suffix(".png")
    if picture.exists():
        results += f"\n![all measures as bars]({os.path.relpath(picture, DOCUMENT.parent)})\n"
    DOCUMENT.write_text(with_results(DOCUMENT.read_text(), results))
    print(f"{os.path.relpath(DOCUMENT)}: results of {os.path.relpath(source)}")


if __name__ == "__main__":
    main()
