"""SQLite files of the history: made for their owner alone, recognised, bounded, and given up.

Every call here blocks, on the disk or on another process, so that it belongs into a thread.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gsocks.errors import HistoryFailed

#: seconds that another process may hold a file
BUSY_TIMEOUT = 5.0

#: seconds of a search, which then has found what it has found
MAX_SEARCH = 2.0

#: steps of SQLite's machine between two looks at the clock
_STEPS = 20_000

#: bytes that the write-ahead log keeps once its content is in the file
_MAX_LOG = 4 * 1024 * 1024


class HistoryFile:
    """The file ``path``, of ``max_size`` bytes at most.

    A subclass is a kind of it.  Every method but :meth:`close` raises HistoryFailed, with one line.
    """

    #: PRAGMA application_id, and user_version: the layout of the tables
    application = 0
    layout = 1
    #: what makes an empty file one of this kind
    tables: Sequence[str] = ()

    def __init__(self, path: Path, max_size: int) -> None:
        self.path = path
        self.max_size = max_size
        self._connection: sqlite3.Connection | None = None
        #: the device and the number of the file that is open
        self._identity: tuple[int, int] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else "open"
        return f"<{type(self).__name__} {self.path} {state}>"

    def open(self) -> sqlite3.Connection:
        """Open the file for writing; it is made, with mode 0600, if there is none."""
        connection = self._connection
        if connection is not None:
            if self._identity_now() == self._identity:
                return connection
            self.close()  # it was deleted or replaced: begin anew
        try:
            self._make()
            connection = self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self._prepare(connection)
            self._identity = self._identity_now()
        except (OSError, sqlite3.Error, ValueError) as error:
            self.close()
            raise self.failure(error) from None
        except BaseException:
            self.close()
            raise
        return connection

    def reader(self) -> sqlite3.Connection:
        """A connection of its own that can only read; its searches are bounded in time.

        ``rows`` of a search that was ended early are those that it has found.
        """
        try:
            self._check_kind()
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
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

    def close(self) -> None:
        """Close it; the last process that does folds the log into the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass  # what it could not write, it could not write before either

    def check(self) -> None:
        """Only look whether the file can be used, or made if there is none."""
        if self.path.exists():
            try:
                with closing(self.reader()):
                    pass
            except HistoryFailed as error:
                if not str(error).endswith("has nothing yet"):
                    raise
        elif not self.path.parent.is_dir():
            raise HistoryFailed(f"{self.path}: no such folder")

    def failure(self, error: Exception) -> HistoryFailed:
        """``error`` in one line."""
        if isinstance(error, OSError):
            return HistoryFailed(f"{self.path}: {error.strerror or type(error).__name__}")
        return HistoryFailed(f"{self.path}: {error}")

    # --- within a call ----------------------------------------------------------------------

    def _make(self) -> None:
        """Create an empty file that its owner alone may read; SQLite's two others follow it."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            self._check_kind()

    def _check_kind(self) -> None:
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            raise OSError(0, "not a file") from None

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._identify(connection):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            # another process may have been faster
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.execute(f"PRAGMA application_id = {self.application}")
                connection.execute(f"PRAGMA user_version = {self.layout}")
                for table in self.tables:
                    connection.execute(table)
            connection.execute("COMMIT")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG}")
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count = {max(self.max_size // page, 16)}")

    def _identify(self, connection: sqlite3.Connection) -> bool:
        """Whether it is empty.  Raises ValueError for a file that is none of this kind."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            return True
        if application != self.application:
            raise ValueError("a database of another program, or of another kind")
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout != self.layout:
            raise ValueError("written by another version of gsocks")
        return False

    def _identity_now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino
