"""``gsocks requests`` and ``gsocks explain``: the request log, and one request's story."""

from __future__ import annotations

import csv
import json as json_module
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from gsocks.cli.past import Past, milliseconds, moment, printable, size, table, unusable
from gsocks.errors import ConfigError, HistoryFailed
from gsocks.history.requests import MAX_PAGE, RequestFilter, RequestRow

#: exit status if nothing was found
NOTHING = 1

#: seconds between two looks with --follow
POLL = 0.5

_HINT = "a config with state and requests makes it"

_HEAD = ("time", "id", "client", "user", "dest", "exit", "outcome", "ms", "up", "down", "tries")


def show_requests(
    past: Past,
    filters: Mapping[str, str],
    *,
    since: float,
    limit: int,
    how: Literal["text", "json", "csv"],
    follow: bool,
) -> int:
    """Print the latest requests that match, the oldest of them first.

    ``since``: seconds back.  Raises ConfigError.
    """
    which = RequestFilter(since=time.time() - since, **filters)  # type: ignore[arg-type]
    try:
        found = _latest(past, which, limit)
        _print(found, how, head=True)
        last = found[-1].number if found else 0
        while follow:
            time.sleep(POLL)
            page = past.requests.search(which, MAX_PAGE, after=last)
            if page.rows:
                last = page.rows[0].number
                _print(page.rows[::-1], how, head=False)
                sys.stdout.flush()
    except HistoryFailed as error:
        raise unusable(error, _HINT) from None
    if not found and how == "text":
        print("no request matches", file=sys.stderr)
    return 0 if found else NOTHING


def _latest(past: Past, which: RequestFilter, limit: int) -> list[RequestRow]:
    found: list[RequestRow] = []
    before: int | None = None
    while len(found) < limit:
        page = past.requests.search(which, min(MAX_PAGE, limit - len(found)), before)
        found += page.rows
        before = page.before
        if before is None:
            break
    return found[::-1]


def _print(rows: list[RequestRow], how: str, *, head: bool) -> None:
    if how == "json":
        for row in rows:
            print(json_module.dumps(as_object(row)))
    elif how == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if head:
            writer.writerow([*RequestRow._fields[:20], "tries", *RequestRow._fields[21:]])
        for row in rows:
            values = row._replace(tries=())._asdict()
            values["tries"] = "; ".join(f"{each.exit}: {each.why}" for each in row.tries)
            values["time"] = moment(row.time)
            writer.writerow([_cell(value) for value in values.values()])
    elif rows:
        lines = list(table([_HEAD, *map(_line, rows)], frozenset({7, 8, 9})))
        print("\n".join(lines if head else lines[1:]))


def _cell(value: object) -> object:
    """A value that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if value is None else value


def _line(row: RequestRow) -> tuple[str, ...]:
    return (
        moment(row.time),
        row.id,
        row.client,
        row.user or "-",
        row.dest or "-",
        row.exit or "-",
        row.outcome,
        milliseconds(row.total),
        size(row.up),
        size(row.down),
        ", ".join(f"{each.exit}: {each.why}" for each in row.tries) or "-",
    )


def as_object(row: RequestRow) -> dict[str, object]:
    """A row for JSON."""
    return {**row._asdict(), "tries": [each._asdict() for each in row.tries]}


# --- one request's story ----------------------------------------------------------------------


def explain(past: Past, request_id: str, *, json: bool) -> int:
    """Print the story of the requests of that id.  Raises ConfigError."""
    try:
        rows = _named(past, request_id)
        labels = _labels(past)
    except HistoryFailed as error:
        raise unusable(error, _HINT) from None
    if not rows:
        print(f"no request {printable(request_id)} was logged", file=sys.stderr)
        return NOTHING
    if json:
        print(json_module.dumps([as_object(row) for row in rows], indent=1))
        return 0
    print("\n\n".join("\n".join(story(row, labels)) for row in rows))
    return 0


def _named(past: Past, request_id: str) -> list[RequestRow]:
    if request_id.startswith("#"):
        number = request_id[1:]
        if not (number.isascii() and number.isdigit() and len(number) < 18):
            raise ConfigError("ID: expected # and a number")
        return past.requests.search(limit=1, before=int(number) + 1, after=int(number) - 1).rows
    return past.requests.search(RequestFilter(id=request_id), MAX_PAGE).rows[::-1]


def _labels(past: Past) -> dict[str, str]:
    """The URLs of exits, without secrets, by section and name."""
    try:
        return {name: info.label for name, info in past.counters.exits().items()}
    except HistoryFailed:
        return {}


def story(row: RequestRow, labels: Mapping[str, str]) -> Iterator[str]:
    """What has happened, a line for each step."""

    def at(seconds: float) -> str:
        return f"  {seconds * 1000:9.1f} ms  "

    def exit_(name: str) -> str:
        label = labels.get(f"{row.section}/{name}")
        return f"{name} ({label})" if label and label != name else name

    def lines() -> Iterator[str]:
        user = f", user {row.user}" if row.user else ""
        session = f", session {row.session}" if row.session else ""
        yield f"request {row.id} (#{row.number}) at {moment(row.time)}"
        yield f"  {row.client} at {row.inbound}{user}{session}: {row.command} {row.dest or '-'}"
        wanted = f", wanted: {row.selector}" if row.selector else ""
        if row.matching is not None:
            ready = "" if row.ready is None else f", {row.ready} of them ready"
            yield f"  candidates: {row.matching} exits of {row.section} match{ready}{wanted}"
        elif row.choice:
            yield f"  candidates: exits of {row.section}{wanted}"
        if row.choice:
            yield f"  choice: {row.choice}"
        for number, each in enumerate(row.tries, 1):
            why = f"{each.why}: {each.detail}" if each.detail else each.why
            after = f"{each.seconds * 1000:.1f} ms"
            yield f"  try {number}: exit {exit_(each.exit)} failed after {after}: {why}"
        if row.connect is not None:
            address = f", seen as {row.address}" if row.address else ""
            number = len(row.tries) + 1
            yield (
                f"  try {number}: exit {exit_(row.exit)} connected in"
                f" {row.connect * 1000:.1f} ms{address}"
            )
        elif row.exit and row.outcome == "ok":  # it was looked up
            yield f"  try {len(row.tries) + 1}: exit {exit_(row.exit)} answered"
        elif row.exit and not row.tries:
            yield f"  exit {exit_(row.exit)} did not connect it"
        if row.first_byte is not None:
            yield at(row.first_byte) + "first byte came back"
        status = f", status {row.status}" if row.status else ""
        detail = f" ({row.detail})" if row.detail else ""
        yield (
            f"{at(row.total)}ended: {row.outcome}{detail}{status},"
            f" {size(row.up)} up, {size(row.down)} down"
        )

    yield from map(printable, lines())
