"""What a survey of exits has found, for eyes and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from gsocks.survey import Finding

_COLUMNS = ("name", "exit", "country", "tags", "works", "ms", "address")


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each, below a line of headings."""
    rows = [_COLUMNS, *(_row(finding) for finding in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def _row(finding: Finding) -> tuple[str, ...]:
    member = finding.member
    return (
        member.name,
        member.label,
        member.country or "-",
        ",".join(member.tags) or "-",
        "yes" if finding.trouble is None else finding.trouble,
        "-" if finding.seconds is None else f"{1000 * finding.seconds:.0f}",
        finding.address or "-",
    )


def as_json(found: Mapping[str, Sequence[Finding]]) -> str:
    """One list of objects, ``found`` at each door."""
    return json.dumps([_object(door, each) for door in found for each in found[door]], indent=1)


def _object(door: str, finding: Finding) -> dict[str, object]:
    member = finding.member
    return {
        "door": door,
        "name": member.name,
        "exit": member.label,
        "country": member.country,
        "tags": list(member.tags),
        "works": finding.trouble is None,
        "trouble": finding.trouble,
        "connect_ms": None if finding.seconds is None else round(1000 * finding.seconds, 1),
        "address": finding.address,
    }


def counted(findings: Sequence[Finding], total: int) -> str:
    """``3 of 5 exits work``, and how many were not asked."""
    working = sum(finding.trouble is None for finding in findings)
    left = total - len(findings)
    rest = f", {left} of {total} were not asked to the end" if left else ""
    return f"{working} of {len(findings)} exits work{rest}"


@contextmanager
def progress(total: int, to: TextIO) -> Iterator[Callable[[], None]]:
    """What is to be called for each of ``total`` that is done: a bar for eyes, else nothing.

    The bar is that of rich; without it, it is a count.
    """
    if not to.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield from _count(total, to)
        return
    with Progress(console=Console(file=to), transient=True) as bar:
        task = bar.add_task("asking", total=total)
        yield lambda: bar.advance(task)


def _count(total: int, to: TextIO) -> Iterator[Callable[[], None]]:
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        to.write(f"\r{done} of {total}")
        to.flush()

    yield one_more
    to.write("\r\033[K")
    to.flush()
