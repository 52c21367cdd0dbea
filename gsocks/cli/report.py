"""The results of ``gsocks exits``, as a table and as JSON, and its progress bar."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from gsocks.messages import plural
from gsocks.rotation.probe import ProbeResult
from gsocks.units import format_duration

#: seconds of probing before the time that is left is told
_MIN_ELAPSED = 2.0

_COLUMNS = ("name", "exit", "country", "tags", "ms", "address", "works")
_ALWAYS = ("name", "exit", "ms", "works")

#: reasons that are told apart where dead exits are folded
_MAX_REASONS = 8


def table(results: Sequence[ProbeResult], width: int = 0) -> Iterator[str]:
    """A line for each result, below a line of headings.

    ``width``: columns of the screen, in which each line fits: columns in which there is nothing are
    left out, exit and reason, which stands last, are cut.  0: a file, where nothing is.
    """
    rows = [_COLUMNS, *(_row(result) for result in results)]
    shown = [
        column
        for column in range(len(_COLUMNS))
        if not width or _COLUMNS[column] in _ALWAYS or any(row[column] != "-" for row in rows[1:])
    ]
    widths = {column: max(len(row[column]) for row in rows) for column in shown}
    if width:
        _fit(widths, width)
    for row in rows:
        cells = [_cut(row[column], widths[column]).ljust(widths[column]) for column in shown]
        yield "  ".join(cells).rstrip()


def _fit(widths: dict[int, int], width: int) -> None:
    """Make the widths fit the screen: the reason is cut first, then tags and exits."""
    for name, least in (("works", 20), ("tags", 6), ("exit", 16), ("works", 8), ("name", 8)):
        column = _COLUMNS.index(name)
        surplus = sum(widths.values()) + 2 * (len(widths) - 1) - width
        if surplus > 0 and column in widths:
            widths[column] = max(min(least, widths[column]), widths[column] - surplus)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _row(result: ProbeResult) -> tuple[str, ...]:
    member = result.member
    works = result.trouble or ("answers" if result.only_answers else "yes")
    return (
        member.name,
        member.label,
        member.country or result.country or "-",
        ",".join(member.tags) or "-",
        "-" if result.seconds is None else f"{1000 * result.seconds:.0f}",
        result.address or "-",
        works,
    )


def folded(results: Sequence[ProbeResult]) -> Iterator[str]:
    """How many exits don't work for each reason, the most frequent first."""
    reasons = Counter(_reason(result) for result in results if result.trouble is not None)
    for reason, count in reasons.most_common(_MAX_REASONS):
        yield f"{plural(count, 'exit')}: {reason}"
    rest = len(reasons) - _MAX_REASONS
    if rest > 0:
        yield f"{plural(sum(sorted(reasons.values())[:rest]), 'exit')}: for {rest} other reasons"


def _reason(result: ProbeResult) -> str:
    """The reason without what differs from exit to exit."""
    return re.sub(r"\d+(\.\d+){3}(:\d+)?|\[[0-9a-f:]+\](:\d+)?", "it", result.trouble or "")


#: how results may be sorted
SORTS: dict[str, Callable[[ProbeResult], Any]] = {
    "order": lambda each: each.member.number,
    "speed": lambda each: (each.trouble is not None, each.seconds or math.inf, each.member.number),
    "country": lambda each: (each.member.country or each.country or "~", each.member.number),
    "name": lambda each: each.member.name,
    "reason": lambda each: (each.trouble or "", each.member.number),
}


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
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield from _count(total, stream)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[cyan]{task.fields[left]}"),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("probing", total=total, left="")
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            left = time_left(done, total, time.monotonic() - began)
            bar.update(task, advance=1, left=left)

        yield one_more


def time_left(done: int, total: int, seconds: float) -> str:
    """What is left, at the rate of all that is done in ``seconds``; empty while that says little.

    Not at the rate of the last ones: the dead ones, which take longest, end last of those that are
    probed at a time.
    """
    if seconds < _MIN_ELAPSED or not done:
        return ""
    return f"{format_duration(math.ceil(seconds / done * (total - done)))} left"


def _count(total: int, stream: TextIO) -> Iterator[Callable[[], None]]:
    done, began = 0, time.monotonic()

    def one_more() -> None:
        nonlocal done
        done += 1
        left = time_left(done, total, time.monotonic() - began)
        stream.write(f"\r\033[K{done} of {total}{f', {left}' if left else ''}")
        stream.flush()

    yield one_more
    stream.write("\r\033[K")
    stream.flush()
