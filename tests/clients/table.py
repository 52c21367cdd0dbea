"""The table of docs/clients.md, and the results that it is made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.program import ROOT

RESULTS = Path(__file__).parent / "results.json"
DOCUMENT = ROOT / "docs" / "clients.md"

BEGIN, END = "<!-- clients: written by make clients -->", "<!-- clients: end -->"


class Row(NamedTuple):
    """A client and what works with it."""

    name: str
    version: str
    works: list[str]
    hint: str


def read() -> list[Row]:
    """What was seen at the last run."""
    return [Row(**row) for row in json.loads(RESULTS.read_text())]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| client | version | works | hint |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.version} | {', '.join(row.works)} | {row.hint} |" for row in rows
    ]
    return "\n".join(line.replace(" |  |", " | |") for line in lines)


def written(document: str, rows: Sequence[Row]) -> str:
    """The document with this table in it."""
    before, begin, rest = document.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{DOCUMENT}: {BEGIN} and {END} are not there")
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{behind}"


def write(rows: Sequence[Row]) -> None:
    RESULTS.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    DOCUMENT.write_text(written(DOCUMENT.read_text(), rows))
