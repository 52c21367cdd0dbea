"""docs/protocol.md as data: the tests read its tables, so that it can't say what isn't so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

TEXT = (Path(__file__).parent.parent.parent / "docs" / "protocol.md").read_text()

#: where a frame may arrive, as the frame table's columns are called
PLACES = (
    "idle",
    "refused",
    "stream",
    "association",
    "client ended",
    "server ended",
    "opening",
    "pinging",
)


def table(*header: str) -> list[list[str]]:
    """The rows of the one table whose columns begin with these names."""
    found = [rows for rows in _tables() if tuple(rows[0][: len(header)]) == header]
    if len(found) != 1:
        raise LookupError(f"{len(found)} tables begin with {header}")
    return found[0][1:]


def _tables() -> Iterator[list[list[str]]]:
    for block in re.findall(r"(?:^\|.*\|$\n?)+", TEXT, re.MULTILINE):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        yield [lines[0], *lines[2:]]  # without the rule under the header


def frame_matrix() -> dict[str, dict[str, bool]]:
    """Whether a frame of this type may arrive at that place."""
    return {
        row[1]: {place: cell == "yes" for place, cell in zip(PLACES, row[3:], strict=True)}
        for row in table("number", "type", "body", *PLACES)
    }


def transitions(end: str) -> set[tuple[str, str, str]]:
    """The transitions of section 5.2 at one end, ``client`` or ``server``: state, event, state.

    Those that lead from a state to itself on a frame that is only discarded are left out.
    """
    (block,) = re.findall(rf"^The {end}'s end:\n\n((?: {{4}}.*\n)+)", TEXT, re.MULTILINE)
    found, state, words = set(), "", ""
    for line in block.splitlines():
        state = line[4:13].strip().lower() or state
        words += " " + line[13:].partition("->")[0].strip()
        if "->" in line:
            found.add((state, _event(words), line.partition("->")[2].strip().lower()))
            words = ""
    return {each for each in found if each[1] != "DATA"}


def _event(words: str) -> str:
    """The event that a line of section 5.2 is about."""
    for event in _EVENTS:
        if event in words:
            return event
    raise LookupError(f"no event in {words!r}")


_EVENTS = (
    "FIN received and FIN sent",
    "OPENED with code 0x00",
    "OPENED with another code",
    "OPENED of a look-up",
    "OPEN",
    "PING",
    "PONG",
    "FIN",
    "DATA",
)


def number(cell: str) -> int:
    """``65,536 bytes``, ``10 s``, ``30,000 ms``: the number."""
    found = re.fullmatch(r"([0-9,]+) (?:bytes|s|ms)|([0-9,]+)", cell)
    if found is None:
        raise ValueError(f"{cell!r} is not one number")
    return int((found[1] or found[2]).replace(",", ""))


def example() -> dict[str, str]:
    """The worked example: what is named there, as hex."""
    (block,) = re.findall(r"^```\n(key .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    values: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        name = line[:16].strip() or name
        values[name] = values.get(name, "") + line[16:].strip()
    return values


def example_boxes() -> list[bytes]:
    """What the example's first boxes open to, in their order."""
    lines = re.findall(r"^nonce \d+ +((?:[0-9a-f]+ )+) +[A-Z]", TEXT, re.MULTILINE)
    return [bytes.fromhex(line) for line in lines]
