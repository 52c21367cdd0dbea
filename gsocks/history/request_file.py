"""The request log in SQLite: rows are added at its end and deleted at its begin.

Several processes may add rows: each adds a batch at a time, and SQLite gives them their numbers.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

from gsocks.errors import HistoryFailed
from gsocks.history.requests import (
    EVERY_REQUEST,
    MAX_PAGE,
    Page,
    RequestFilter,
    RequestRow,
    TryRow,
    host_of,
)
from gsocks.history.sqlite import MAX_SEARCH, HistoryFile

_COLUMNS = (
    "time",
    "id",
    "inbound",
    "section",
    "client",
    "user",
    "session",
    "command",
    "dest",
    "exit",
    "address",
    "outcome",
    "detail",
    "status",
    "connect",
    "first_byte",
    "total",
    "up",
    "down",
    "tries",
    "selector",
    "matching",
    "ready",
    "choice",
    # for the filters: hosts without ports, and the exits that have failed
    "host",
    "client_host",
    "failed_exits",
)

_SELECT = f"SELECT number, {', '.join(_COLUMNS[:24])} FROM requests"  # noqa: S608 - no input

#: rows of one statement, which costs two thirds of as many statements; SQLite takes 999 values
_ROWS = 32


def _insert(rows: int) -> str:
    values = f"({', '.join('?' * len(_COLUMNS))})"
    return (
        f"INSERT INTO requests ({', '.join(_COLUMNS)})"  # noqa: S608 - no input
        f" VALUES {', '.join([values] * rows)}"
    )


_INSERT, _INSERT_MANY = _insert(1), _insert(_ROWS)

#: rows that a search goes through before it looks at the clock
_AT_ONCE = 20_000

#: the part of the rows that is deleted when there are too many bytes of them
_PART = 10

_EXACT = {
    "outcome": "outcome",
    "user": "user",
    "session": "session",
    "client": "client_host",
    "inbound": "inbound",
    "id": "id",
}


class RequestFile(HistoryFile):
    """The file of the request log.  See :class:`gsocks.history.requests.RequestLog`."""

    application = 0x67736F72  # gsor
    tables = (
        """
        CREATE TABLE requests (
            number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, id TEXT NOT NULL,
            inbound TEXT NOT NULL, section TEXT NOT NULL, client TEXT NOT NULL,
            user TEXT NOT NULL, session TEXT NOT NULL, command TEXT NOT NULL, dest TEXT NOT NULL,
            exit TEXT NOT NULL, address TEXT NOT NULL, outcome TEXT NOT NULL,
            detail TEXT NOT NULL, status INTEGER NOT NULL, connect REAL, first_byte REAL,
            total REAL NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL, tries TEXT NOT NULL,
            selector TEXT NOT NULL, matching INTEGER, ready INTEGER, choice TEXT NOT NULL,
            host TEXT NOT NULL, client_host TEXT NOT NULL, failed_exits TEXT NOT NULL
        )
        """,
        "CREATE INDEX requests_time ON requests (time)",
        "CREATE INDEX requests_id ON requests (id)",
    )

    def __init__(self, path: Path, max_size: int) -> None:
        super().__init__(path, max_size)

    def add(self, rows: Iterable[RequestRow]) -> None:
        """Add rows; their numbers don't count.  If the file is full, the oldest ones give way."""
        values = [_values(row) for row in rows]
        end = len(values) // _ROWS * _ROWS
        many = [tuple(chain(*values[at : at + _ROWS])) for at in range(0, end, _ROWS)]
        statements = [(_INSERT_MANY, many), (_INSERT, values[end:])]
        try:
            self.write(statements)
        except HistoryFailed:
            if not self.path.exists() or self._used_bytes() < self.max_size / 2:
                raise  # not this file is full, but the disk, or something else is wrong
            self._delete_oldest()
            self.write(statements)

    def prune(self, before: float) -> None:
        """Delete what is older than that (wall clock), and the oldest if the file is nearly full.

        What is free within it is given back to the disk, a little at a time.
        """
        self.write([("DELETE FROM requests WHERE time < ?", [(before,)])])
        if self._used_bytes() > self.max_size * (100 - _PART) / 100:
            self._delete_oldest()
        try:
            self.open().execute("PRAGMA incremental_vacuum(1000)").fetchall()
        except sqlite3.Error as error:
            raise self.failure(error) from None

    def _used_bytes(self) -> int:
        connection = self.open()
        try:
            (page,) = connection.execute("PRAGMA page_size").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        except sqlite3.Error as error:
            raise self.failure(error) from None
        return int(pages - free) * int(page)

    def _delete_oldest(self) -> None:
        """Delete a part of the rows."""
        try:
            query = "SELECT min(number), max(number) FROM requests"
            low, high = self.open().execute(query).fetchone()
        except sqlite3.Error as error:
            raise self.failure(error) from None
        if low is not None:
            end = low + max(1, (high - low) * _PART // 100)
            self.write([("DELETE FROM requests WHERE number < ?", [(end,)])])

    def search(
        self,
        which: RequestFilter = EVERY_REQUEST,
        limit: int = 100,
        before: int | None = None,
        after: int | None = None,
    ) -> Page:
        """See :meth:`gsocks.history.requests.RequestLog.search`; blocks the thread."""
        limit = max(1, min(limit, MAX_PAGE))
        where, values = _where(which)
        query = (
            f"{_SELECT} WHERE {' AND '.join([*where, 'number >= ?', 'number < ?'])}"
            " ORDER BY number DESC LIMIT ?"
        )
        deadline = time.monotonic() + MAX_SEARCH
        found: list[RequestRow] = []
        with closing(self.reader()) as connection:
            try:
                low, high = self._range(connection, which, before, after)
                # some at a time, so that a search that takes long can be gone on with
                while low < high and len(found) <= limit:
                    if time.monotonic() > deadline:
                        return Page(found, high, True)
                    begin = max(low, high - _AT_ONCE)
                    wanted = (*values, begin, high, limit + 1 - len(found))
                    found += [_row(each) for each in connection.execute(query, wanted)]
                    high = begin
            except sqlite3.Error as error:
                raise self.failure(error) from None
        if len(found) > limit:
            return Page(found[:limit], found[limit - 1].number)
        return Page(found, None)

    def _range(
        self,
        connection: sqlite3.Connection,
        which: RequestFilter,
        before: int | None,
        after: int | None,
    ) -> tuple[int, int]:
        """Among which numbers the rows are: from the first one on, and before the second one."""
        where, values = ["1"], list[object]()
        if which.since is not None:
            where.append("time >= ?")
            values.append(which.since)
        if which.id and not which.id.startswith("!"):
            where.append("id = ?")
            values.append(which.id)
        condition = " AND ".join(where)
        query = f"SELECT min(number), max(number) FROM requests WHERE {condition}"  # noqa: S608
        low, high = connection.execute(query, values).fetchone()
        if low is None:
            return 0, 0
        low = low if after is None else max(low, after + 1)
        return low, high + 1 if before is None else min(high + 1, before)


def _values(row: RequestRow) -> tuple[object, ...]:
    tries = failed = ""
    if row.tries:
        tries = json.dumps([list(each) for each in row.tries])
        failed = "".join(f" {each.exit} " for each in row.tries)
    return (
        *row[1:20],
        tries,
        *row[21:],
        host_of(row.dest),
        host_of(row.client),
        failed,
    )


def _row(values: Sequence[object]) -> RequestRow:
    found = list(values)
    tries = found[20]
    found[20] = tuple(TryRow(*each) for each in json.loads(str(tries))) if tries else ()
    return RequestRow(*found)  # type: ignore[arg-type]  # as the columns are


def _where(which: RequestFilter) -> tuple[list[str], list[object]]:
    """Conditions of SQL, and the values in them."""
    where: list[str] = []
    values: list[object] = []

    def add(condition: str, *given: object, negated: bool = False) -> None:
        where.append(f"NOT ({condition})" if negated else condition)
        values.extend(given)

    if which.since is not None:
        add("time >= ?", which.since)
    if which.until is not None:
        add("time < ?", which.until)
    for name, column in _EXACT.items():
        wanted = str(getattr(which, name))
        if wanted:
            negated, wanted = _unnegated(wanted)
            add(f"{column} = ?", wanted, negated=negated)
    if which.exit:
        negated, wanted = _unnegated(which.exit)
        add("exit = ? OR instr(failed_exits, ?)", wanted, f" {wanted} ", negated=negated)
        where[-1] = f"({where[-1]})"
    if which.status:
        negated, wanted = _unnegated(which.status)
        add("CAST(status AS TEXT) = ?", wanted, negated=negated)
    if which.dest:
        negated, wanted = _unnegated(which.dest)
        if wanted.startswith("."):
            add(
                "host = ? OR substr(host, ?) = ?", wanted[1:], -len(wanted), wanted, negated=negated
            )
            where[-1] = f"({where[-1]})"
        else:
            add("host = ?", wanted, negated=negated)
    if which.text:
        places = " OR ".join(
            f"instr(lower({each}), ?)" for each in ("dest", "exit", "user", "session", "detail")
        )
        add(f"({places})", *[which.text.lower()] * 5)
    return where, values


def _unnegated(wanted: str) -> tuple[bool, str]:
    return wanted.startswith("!"), wanted.removeprefix("!")
