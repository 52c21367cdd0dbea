"""SQLite files of the history: read while others write, and bounded in time.

Every call here blocks, on the disk or on another process, so that it belongs into a thread.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from gsocks.errors import HistoryFailed
from gsocks.sqlite_file import SqliteFile

#: seconds of a search, which then has found what it has found
MAX_SEARCH = 2.0

#: steps of SQLite's machine between two looks at the clock
_STEPS = 20_000


class HistoryFile(SqliteFile):
    """The file ``path``, of ``max_size`` bytes at most.

    A subclass is a kind of it.  Every method but ``close`` raises HistoryFailed, with one line.
    """

    failed = HistoryFailed
    # a page that nothing uses goes back to the disk
    settings = ("PRAGMA auto_vacuum = INCREMENTAL",)

    def open(self) -> sqlite3.Connection:
        """Open the file for writing, a new one if it was replaced."""
        if self.was_replaced():
            self.close()
        return super().open()

    def reader(self) -> sqlite3.Connection:
        """A connection of its own that can only read; its searches are bounded in time.

        ``rows`` of a search that was ended early are those that it has found.
        """
        try:
            connection = self._read_only()
            try:
                if self._identify(connection):
                    raise ValueError("has nothing yet")
            except BaseException:
                connection.close()
                raise
        except (OSError, sqlite3.Error, ValueError) as error:
            raise self.failure(error) from None
        return connection

    def rows(
        self, query: str, values: Sequence[object] = (), seconds: float = MAX_SEARCH
    ) -> tuple[list[Any], bool]:
        """What a query finds in ``seconds``, and whether it was ended early."""
        with closing(self.reader()) as connection:
            deadline = time.monotonic() + seconds
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            found: list[Any] = []
            try:
                found.extend(connection.execute(query, values))
            except sqlite3.OperationalError as error:
                if time.monotonic() <= deadline:
                    raise self.failure(error) from None
                return found, True
            except sqlite3.Error as error:
                raise self.failure(error) from None
            return found, False

    def write(self, statements: Sequence[tuple[str, Sequence[Sequence[object]]]]) -> None:
        """Run statements, each for many rows, in one transaction: all or nothing is written."""
        connection = self.open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, rows in statements:
                    connection.executemany(statement, rows)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            self.close()
            raise self.failure(error) from None
