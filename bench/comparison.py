"""Writes docs/comparison.md: gsocks beside each program, in the rows that were measured.

    python -m bench.comparison

All numbers come from bench/results/full.json and bench/results/gateway.json; what a run did not
have, or what failed in it, is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.processes import ROOT
from bench.summary import ratio, spread, values

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "comparison.md"

#: the results, what is compared in them, and the title of each table
TABLES = (
    ("full", "gsocks-aegis256", "Tunnels, with AEGIS-256"),
    ("full", "gsocks-secretbox", "Tunnels, with SecretBox"),
    ("full", "gsocks-plain", "Plain SOCKS5 servers"),
    ("gateway", "gsocks", "Rotating proxies"),
)

_HEAD = """\
# Compared with others

gsocks beside the programs that people use instead of it, in all that was measured, won or lost. No
row is typed in: `python -m bench.comparison` writes this page from the samples of
[benchmarks](benchmarks.md) and [benchmarks of the rotating proxy](benchmarks-gateway.md), where
each program, its version and its setup stand, and a test holds it to them. What was not measured
is not here.

A cell is gsocks' number divided by the other program's, the median of the rounds. Where it is
**bold**, gsocks is better: of MB/s and other rates above 1, of times, CPU and memory below 1.
"""


def document() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, own, title in TABLES:
        results = json.loads((RESULTS / f"{name}.json").read_text())
        parts.append("\n".join(_section(results, own, title)))
    return "\n".join(parts) + "\n"


def _section(results: dict[str, Any], own: str, title: str) -> Iterator[str]:
    labels = {each["name"]: each["label"] for each in results["contenders"]}
    kinds = {each["name"]: each["kind"] for each in results["contenders"]}
    peers = [
        name
        for name, kind in kinds.items()
        if kind == kinds[own] and not name.startswith("gsocks") and _is_measured(results, name)
    ]
    about, better, cells = results["about"], 0, 0
    rows = []
    for figure in results["figures"]:
        for measure in figure["measures"]:
            key, wants_more = measure["key"], measure["more_is_better"]
            found = [ratio(figure, own, peer, key) for peer in peers]
            mine = spread(values(figure, own, key))
            if not measure["compared"] or mine is None or not any(found):
                continue
            row = []
            for each in found:
                if each is None:
                    row.append("-")
                    continue
                is_better = each.median > 1 if wants_more else each.median < 1
                cells, better = cells + 1, better + is_better
                row.append(f"**{each.median:.2f}x**" if is_better else f"{each.median:.2f}x")
            what = ", ".join(filter(None, (figure["title"], measure["group"], measure["unit"])))
            number = f"{mine.median:.{measure['decimals']}f}"
            rows.append(f"| {what} | {number} | {' | '.join(row)} |")
    machine, rounds = about["machine"], about["scale"]["rounds"]
    yield f"## {title}\n"
    yield (
        f"{about['date']}, {labels[own]} of {about['commit']}, {machine['cores']} cores"
        f" ({machine['processor']}), {rounds} round{'s' if rounds != 1 else ''}:"
        f" better in {better} of {cells} cells.\n"
    )
    yield f"| measured | {labels[own]} | {' | '.join(labels[each] for each in peers)} |"
    yield f"| :-- | --: |{' --: |' * len(peers)}"
    yield from rows
    yield ""


def _is_measured(results: dict[str, Any], name: str) -> bool:
    return any(any(figure["samples"].get(name, [])) for figure in results["figures"])


def main() -> None:
    DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()
