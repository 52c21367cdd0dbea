"""The counters in SQLite: minutes of a day and hours of 30 days, of all processes together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gsocks.history.cells import ALL_PLACES, LAG, PLACES
from gsocks.history.series import ExitInfo
from gsocks.history.sqlite import HistoryFile

#: seconds for which each step is kept
KEPT = {60: 86400.0, 3600: 30 * 86400.0}

#: cells of a step at most; the oldest are deleted first
MAX_CELLS = {60: 2_000_000, 3600: 8_000_000}

#: bytes of the file at most
MAX_SIZE = 1 << 30

_PLACES = [f"p{place}" for place in range(PLACES)]
_ALL_PLACES = [f"p{place}" for place in range(ALL_PLACES)]


def _added(columns: Sequence[str]) -> str:
    return ", ".join(
        f"{each} = max({each}, excluded.{each})"
        if each == f"p{LAG}"
        else f"{each} = {each} + excluded.{each}"
        for each in columns
    )


def _insert(table: str, keys: Sequence[str], columns: Sequence[str]) -> str:
    names = [*keys, *columns]
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - no input
        f" ON CONFLICT DO UPDATE SET {_added(columns)}"
    )


_INSERT_CELL = (
    f"INSERT INTO cells (step, at, series, {', '.join(_PLACES)})"  # noqa: S608 - no input
    f" SELECT ?, ?, number, {', '.join('?' * PLACES)} FROM series WHERE kind = ? AND name = ?"
    f" ON CONFLICT DO UPDATE SET {_added(_PLACES)}"
)
_INSERT_TOTAL = _insert("totals", ("step", "at"), _ALL_PLACES)


class CounterFile(HistoryFile):
    """The file of the counters."""

    application = 0x67736F68  # gsoh
    tables = (
        """
        CREATE TABLE series (
            number INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL,
            UNIQUE (kind, name)
        )
        """,
        f"""
        CREATE TABLE cells (
            step INTEGER NOT NULL, at INTEGER NOT NULL, series INTEGER NOT NULL,
            {", ".join(f"{each} NUMERIC NOT NULL" for each in _PLACES)},
            PRIMARY KEY (step, at, series)
        ) WITHOUT ROWID
        """,
        f"""
        CREATE TABLE totals (
            step INTEGER NOT NULL, at INTEGER NOT NULL,
            {", ".join(f"{each} NUMERIC NOT NULL" for each in _ALL_PLACES)},
            PRIMARY KEY (step, at)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE exits (
            name TEXT PRIMARY KEY, label TEXT NOT NULL, country TEXT NOT NULL, tags TEXT NOT NULL,
            cost_per_gb REAL
        ) WITHOUT ROWID
        """,
    )

    def __init__(self, path: Path, max_size: int = MAX_SIZE) -> None:
        super().__init__(path, max_size)

    def add(
        self,
        changes: Mapping[tuple[int, int, str, str], Sequence[float]],
        exits: Mapping[str, ExitInfo],
    ) -> None:
        """Add to the cells what was counted, and note what exits there are.

        The keys of ``changes`` are step, time of the begin, kind and name; of ``exits`` the names
        of series.
        """
        totals, cells = [], []
        names = set()
        for (step, at, kind, name), cell in changes.items():
            numbers = [_short(value) for value in cell]
            if kind == "total":
                totals.append((step, at, *numbers))
            else:
                names.add((kind, name))
                cells.append((step, at, *numbers, kind, name))
        self.write(
            [
                ("INSERT OR IGNORE INTO series (kind, name) VALUES (?, ?)", sorted(names)),
                (_INSERT_CELL, cells),
                (_INSERT_TOTAL, totals),
                (
                    "INSERT OR REPLACE INTO exits VALUES (?, ?, ?, ?, ?)",
                    [(name, *info) for name, info in exits.items()],
                ),
            ]
        )

    def prune(self, now: float) -> None:
        """Delete what is too old, and what is too much."""
        statements: list[tuple[str, Sequence[Sequence[object]]]] = []
        for step, seconds in KEPT.items():
            for table in ("cells", "totals"):
                statement = f"DELETE FROM {table} WHERE step = ? AND at < ?"  # noqa: S608
                statements.append((statement, [(step, now - seconds)]))
        self.write(statements)
        for step, most in MAX_CELLS.items():
            found, _ = self.rows("SELECT count(*) FROM cells WHERE step = ?", (step,))
            if found and found[0][0] > most:
                query = "SELECT at FROM cells WHERE step = ? ORDER BY at LIMIT 1 OFFSET ?"
                edge, _ = self.rows(query, (step, found[0][0] - most))
                for (at,) in edge:
                    self.write([("DELETE FROM cells WHERE step = ? AND at <= ?", [(step, at)])])
        known = "SELECT DISTINCT series FROM cells WHERE step = 3600"
        self.write(
            [
                (f"DELETE FROM series WHERE number NOT IN ({known})", [()]),  # noqa: S608
                (
                    "DELETE FROM exits WHERE name NOT IN"
                    " (SELECT name FROM series WHERE kind = 'exit')",
                    [()],
                ),
            ]
        )

    def names(self, kind: str) -> list[str]:
        """The names of the series of a kind."""
        found, _ = self.rows("SELECT name FROM series WHERE kind = ? ORDER BY name", (kind,))
        return [name for (name,) in found]

    def cells(
        self, kind: str, name: str, since: float, step: int
    ) -> list[tuple[int, Sequence[float]]]:
        """See :meth:`gsocks.history.series.Counters.cells`."""
        if kind == "total":
            query = f"SELECT at, {', '.join(_ALL_PLACES)} FROM totals WHERE step = ? AND at > ?"  # noqa: S608
            found, _ = self.rows(f"{query} ORDER BY at", (step, since - step))
        else:
            query = (
                f"SELECT at, {', '.join(_PLACES)} FROM cells JOIN series ON series = number"  # noqa: S608
                " WHERE kind = ? AND name = ? AND step = ? AND at > ? ORDER BY at"
            )
            found, _ = self.rows(query, (kind, name, step, since - step))
        return [(each[0], each[1:]) for each in found]

    def totals(
        self, kind: str, since: float, until: float | None = None, step: int = 3600
    ) -> dict[str, list[float]]:
        """The cells of all series of a kind since then, each added up to one."""
        return dict(self._totals(kind, since, until, step))

    def _totals(
        self, kind: str, since: float, until: float | None, step: int
    ) -> Iterator[tuple[str, list[float]]]:
        sums = ", ".join(f"sum({each})" for each in _PLACES)
        found, _ = self.rows(
            f"SELECT name, {sums} FROM cells JOIN series ON series = number"  # noqa: S608
            " WHERE kind = ? AND step = ? AND at > ? AND at < ? GROUP BY name",
            (kind, step, since - step, time.time() + step if until is None else until),
            seconds=30.0,
        )
        for name, *cell in found:
            yield name, cell

    def exits(self) -> dict[str, ExitInfo]:
        """What is known of each exit, by the names of their series."""
        found, _ = self.rows("SELECT name, label, country, tags, cost_per_gb FROM exits")
        return {name: ExitInfo(*info) for name, *info in found}


def _short(value: float) -> float | int:
    """Whole numbers take less room as such; times are to the microsecond."""
    return int(value) if value == int(value) else round(value, 6)
