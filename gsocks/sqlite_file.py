"""SQLite files of gsocks: made for their owner alone, recognised, bounded, and given up.

Every call here blocks, on the disk or on another process, so that it belongs into a thread.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from gsocks.errors import GsocksError

#: seconds that another process may hold a file
BUSY_TIMEOUT = 5.0

#: bytes that the write-ahead log keeps once its content is in the file
_MAX_LOG = 4 * 1024 * 1024


class SqliteFile:
    """The file ``path``, of ``max_size`` bytes at most.

    A subclass is a kind of it.  Every method but :meth:`close` raises ``failed``, with one line.
    """

    #: PRAGMA application_id, and user_version: the layout of the tables
    application = 0
    layout = 1
    #: what makes an empty file one of this kind, and what is set before
    tables: Sequence[str] = ()
    settings: Sequence[str] = ()
    #: the error of this kind
    failed: type[GsocksError] = GsocksError

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
        """Open the file for writing; it is made, with mode 0600, if there is none.

        A file of another program is left alone.
        """
        if self._connection is not None:
            return self._connection
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

    def was_replaced(self) -> bool:
        """Whether the file that is open is no longer the one at ``path``."""
        return self._connection is not None and self._identity_now() != self._identity

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
        if not self.path.exists():
            if not self.path.parent.is_dir():
                raise self.failed(f"{self.path}: no such folder")
            return
        try:
            with closing(self._read_only()) as connection:
                self._identify(connection)
        except (OSError, sqlite3.Error, ValueError) as error:
            raise self.failure(error) from None

    def failure(self, error: Exception) -> GsocksError:
        """``error`` in one line."""
        if isinstance(error, OSError):
            return self.failed(f"{self.path}: {error.strerror or type(error).__name__}")
        return self.failed(f"{self.path}: {error}")

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

    def _read_only(self) -> sqlite3.Connection:
        self._check_kind()  # to open a FIFO would wait for its other end
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._identify(connection):
            for setting in self.settings:
                connection.execute(setting)
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
