"""The state file: what a restart must not forget, in SQLite.

It holds records, each a short text under a section, a kind and a key, and how many bytes each exit
has carried in a day and in a month.  Any number of processes share it: each transaction has a
revision, by which the others find what is new.  What is in the texts is for
gsocks/rotation/state_sync.py to say.

Every call here blocks, on the disk or on another process, so that it belongs into a thread; always
the same one, or one after another.  A commit survives the death of the process, but is not flushed
to the disk at once: after a power failure the latest ones may be missing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

from gsocks.errors import StateFailed, StateLost
from gsocks.sqlite_file import SqliteFile

#: bytes of the file at most
MAX_SIZE = 512 * 1024 * 1024

_TABLES = (
    """
    CREATE TABLE records (
        section TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
        stamp REAL NOT NULL, expires REAL NOT NULL,
        revision INTEGER NOT NULL, writer INTEGER NOT NULL,
        PRIMARY KEY (section, kind, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX records_revision ON records (revision)",
    "CREATE INDEX records_expires ON records (kind, expires)",
    """
    CREATE TABLE traffic (
        section TEXT NOT NULL, exit TEXT NOT NULL, period TEXT NOT NULL, bytes INTEGER NOT NULL,
        expires REAL NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (section, exit, period)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX traffic_revision ON traffic (revision)",
    "CREATE TABLE clock (revision INTEGER NOT NULL)",
    "INSERT INTO clock VALUES (0)",
)


class Record(NamedTuple):
    """A text, and for how long it counts.  Times are those of the wall clock."""

    section: str
    kind: str
    key: str
    value: str
    #: when the value came about: of two writers the later one counts
    stamp: float
    #: when it may be deleted
    expires: float


class Traffic(NamedTuple):
    """Bytes that an exit has carried in a period: more of them, or all."""

    section: str
    exit: str
    #: ``2026-11`` or ``2026-11-29``
    period: str
    bytes: int
    #: wall clock; when it may be deleted
    expires: float


class News(NamedTuple):
    """What has changed since the last look."""

    #: of other processes
    records: list[Record]
    #: the sums of all processes
    traffic: list[Traffic]


class StateFile(SqliteFile):
    """The file ``path``.  Every method but ``close`` raises StateFailed, with one line."""

    application = 0x67736F63  # gsoc
    tables = _TABLES
    failed = StateFailed

    #: records of one kind; those that expire first are deleted
    max_records = 200_000
    #: bytes of a value; a longer one is not kept
    max_value = 4096

    def __init__(self, path: Path, max_size: int = MAX_SIZE) -> None:
        super().__init__(path, max_size)
        self._writer = SystemRandom().getrandbits(62)
        self._seen = 0

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else f"revision {self._seen}"
        return f"<StateFile {self.path} {state}>"

    def load(self, now: float) -> News:
        """All that has not expired by ``now``, of all processes."""
        connection = self._opened()
        try:
            connection.execute("BEGIN")
            self._seen = _revision(connection)
            records = connection.execute(
                "SELECT section, kind, key, value, stamp, expires FROM records WHERE expires > ?",
                (now,),
            ).fetchall()
            traffic = connection.execute(
                "SELECT section, exit, period, bytes, expires FROM traffic WHERE expires > ?",
                (now,),
            ).fetchall()
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.close()
            raise self.failure(error) from None
        return _news(records, traffic)

    def sync(self, records: Iterable[Record], traffic: Iterable[Traffic], now: float) -> News:
        """Write ``records`` and add ``traffic``; return what is new since :meth:`load` or before.

        All or nothing is written.  A stamp in the future, of a clock that was wrong, doesn't count.
        """
        rows = [each for each in records if len(each.value) <= self.max_value]
        more = list(traffic)
        connection = self._opened()
        try:
            if not rows and not more and not self._has_news(connection):
                return News([], [])
            connection.execute("BEGIN IMMEDIATE")
            try:
                revision, news = self._exchange(connection, rows, more, now)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            self.close()
            raise self.failure(error) from None
        self._seen = revision
        return news

    def prune(self, now: float) -> None:
        """Delete what has expired, and what is too much of a kind."""
        connection = self._opened()
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM traffic WHERE expires <= ?", (now,))
            for (kind,) in connection.execute("SELECT DISTINCT kind FROM records").fetchall():
                connection.execute(
                    "DELETE FROM records WHERE kind = ? AND expires <= ?", (kind, now)
                )
            too_many = connection.execute(
                "SELECT kind, count(*) - :most FROM records GROUP BY kind HAVING count(*) > :most",
                {"most": self.max_records},
            )
            for each in too_many.fetchall():
                connection.execute(
                    "DELETE FROM records WHERE (section, kind, key) IN (SELECT section, kind,"
                    " key FROM records WHERE kind = ? ORDER BY expires LIMIT ?)",
                    each,
                )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.close()
            raise self.failure(error) from None

    # --- within a call ----------------------------------------------------------------------

    def _prepare(self, connection: sqlite3.Connection) -> None:
        super()._prepare(connection)
        connection.execute("BEGIN IMMEDIATE")  # one that may not be written shows now
        connection.execute("UPDATE clock SET revision = revision")
        connection.execute("COMMIT")

    def _has_news(self, connection: sqlite3.Connection) -> bool:
        return _revision(connection) != self._seen

    def _exchange(
        self,
        connection: sqlite3.Connection,
        records: Sequence[Record],
        traffic: Sequence[Traffic],
        now: float,
    ) -> tuple[int, News]:
        """The new revision, and what is new; within a transaction."""
        revision = _revision(connection)
        if records or traffic:
            revision += 1
            connection.execute("UPDATE clock SET revision = ?", (revision,))
        mine = (revision, self._writer)
        connection.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " value = excluded.value, stamp = excluded.stamp, expires = excluded.expires,"
            " revision = excluded.revision, writer = excluded.writer"
            " WHERE excluded.stamp >= stamp OR stamp > ?",
            [(*each, *mine, now) for each in records],
        )
        connection.executemany(
            "INSERT INTO traffic VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " bytes = bytes + excluded.bytes, revision = excluded.revision",
            [(*each, revision) for each in traffic],
        )
        found = connection.execute(
            "SELECT section, kind, key, value, stamp, expires FROM records"
            " WHERE revision > ? AND writer != ?",
            (self._seen, self._writer),
        ).fetchall()
        sums = connection.execute(
            "SELECT section, exit, period, bytes, expires FROM traffic WHERE revision > ?",
            (self._seen,),
        ).fetchall()
        return revision, _news(found, sums)

    def _opened(self) -> sqlite3.Connection:
        """Raises StateLost once, if it is another file now: what is written to the old one is lost
        with the last process that has it open."""
        if self.was_replaced():
            self.close()
            self._seen = 0
            raise StateLost(f"{self.path}: was deleted or replaced while in use")
        return self.open()


def _revision(connection: sqlite3.Connection) -> int:
    """The latest one.  Raises DatabaseError for what no process has written."""
    found = connection.execute("SELECT revision FROM clock").fetchall()
    if len(found) != 1 or not isinstance(found[0][0], int) or not 0 <= found[0][0] < 1 << 62:
        raise sqlite3.DatabaseError("damaged")
    revision: int = found[0][0]
    return revision


def _news(records: Iterable[tuple[str, ...]], traffic: Iterable[tuple[str, ...]]) -> News:
    return News([Record(*row) for row in records], [Traffic(*row) for row in traffic])  # type: ignore[arg-type]
