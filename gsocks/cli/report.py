"""The results of ``gsocks exits``, as a table and as JSON, and its progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from gsocks.rotation.probe import ProbeResult

_COLUMNS = ("name", "exit", "country", "tags", "works", "ms", "address")


def table(results: Sequence[ProbeResult]) -> Iterator[str]:
    """A line for each result, below a line of headings."""
    rows = [_COLUMNS, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def _row(result: ProbeResult) -> tuple[str, ...]:
    member = result.member
    return (
        member.name,
        member.label,
        member.country or result.country or "-",
        ",".join(member.tags) or "-",
        result.trouble or ("answers" if result.only_answers else "yes"),
        "-" if result.seconds is None else f"{1000 * result.seconds:.0f}",
        result.address or "-",
    )


def as_json(found: Mapping[str, Sequence[ProbeResult]]) -> str:
    """One list of objects; ``found`` has the results of each section."""
    return json.dumps(
        [_object(inbound, each) for inbound in found for each in found[inbound]], indent=1
    )


def _object(inbound: str, result: ProbeResult) -> dict[str, object]:
    member = result.member
    return {
        "inbound": inbound,
        "name": member.name,
        "exit": member.label,
        "country": member.country,
        "tags": list(member.tags),
        # null: it answers, and was to reach nothing
        "works": None if result.only_answers else result.trouble is None,
        "answers": result.trouble is None,
        "trouble": result.trouble,
        "connect_ms": None if result.seconds is None else round(1000 * result.seconds, 1),
        "address": result.address,
        "address_country": result.country,
    }


def summary(results: Sequence[ProbeResult], total: int) -> str:
    """``3 of 5 exits work`` (or ``answer``), and how many of ``total`` have no result."""
    working = sum(result.trouble is None for result in results)
    left = total - len(results)
    rest = f", {left} of {total} were not probed" if left else ""
    do = "answer" if any(result.only_answers for result in results) else "work"
    return f"{working} of {len(results)} exits {do}{rest}"


@contextmanager
def progress(total: int, stream: TextIO) -> Iterator[Callable[[], None]]:
    """A function to call when one of ``total`` is done, which advances a bar on a terminal.

    The bar is that of rich; without rich it is a count.  Nothing is shown where ``stream`` is no
    terminal.
    """
    if not stream.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield from _count(total, stream)
        return
    with Progress(console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("probing", total=total)
        yield lambda: bar.advance(task)


def _count(total: int, stream: TextIO) -> Iterator[Callable[[], None]]:
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        stream.write(f"\r{done} of {total}")
        stream.flush()

    yield one_more
    stream.write("\r\033[K")
    stream.flush()
