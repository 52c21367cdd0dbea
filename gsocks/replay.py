"""Every hello is accepted once, whichever worker process it reaches.

The set of hellos seen is exact, lives in memory that forked workers share, and is bounded: a
hash table of fixed-size buckets whose entries are free again once they expire.  Only hellos that
proved knowledge of a key are stored, so a stranger can't fill it (shadowsocks-rust#442).
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import tempfile
import time
import weakref
from types import TracebackType

#: how far a client's clock may be off, in milliseconds
WINDOW_MS = 30_000

_TOKEN_SIZE = 16
_ENTRY_SIZE = _TOKEN_SIZE + 8
_BUCKET_ENTRIES = 16
_BUCKET_SIZE = _ENTRY_SIZE * _BUCKET_ENTRIES


class ReplayGuard:
    """The hellos of the last minute.  Make it before forking; every worker then sees the same.

    ``capacity``: how many hellos fit; a key holder who opens more tunnels than that in a
    minute is refused the surplus (131,072 a minute need 3 MiB, touched as they are used).  As
    buckets fill by chance, one in a thousand is refused at half of it, one in ten at all of it.
    ``started_ms``: hellos made before it are refused, since what was seen before it is forgotten.
    """

    def __init__(self, started_ms: int | None = None, capacity: int = 131_072) -> None:
        self._buckets = max(1, capacity // _BUCKET_ENTRIES)
        self._table = mmap.mmap(-1, self._buckets * _BUCKET_SIZE)
        self._lock = _ProcessLock()
        self._salt = os.urandom(16)
        self._started_ms = now_ms() if started_ms is None else started_ms

    def admit(self, token: bytes, time_ms: int, now: int | None = None) -> bool:
        """True if a hello with the time ``time_ms`` may be accepted; False for its replay.

        All times are milliseconds since 1970.
        """
        now = now_ms() if now is None else now
        if abs(now - time_ms) > WINDOW_MS or time_ms < self._started_ms:
            return False
        digest = hashlib.blake2b(token, digest_size=8 + _TOKEN_SIZE, key=self._salt).digest()
        start = int.from_bytes(digest[:8], "big") % self._buckets * _BUCKET_SIZE
        with self._lock:
            return self._enter(start, digest[8:], expires=time_ms + WINDOW_MS, now=now)

    def _enter(self, start: int, token: bytes, *, expires: int, now: int) -> bool:
        free = None
        for offset in range(start, start + _BUCKET_SIZE, _ENTRY_SIZE):
            until = int.from_bytes(self._table[offset + _TOKEN_SIZE : offset + _ENTRY_SIZE], "big")
            if until < now:
                free = offset if free is None else free
            elif self._table[offset : offset + _TOKEN_SIZE] == token:
                return False
        if free is None:
            return False
        self._table[free : free + _ENTRY_SIZE] = token + expires.to_bytes(8, "big")
        return True

    def close(self) -> None:
        """Release the memory and the lock."""
        self._table.close()
        self._lock.close()


class _ProcessLock:
    """Mutual exclusion between processes.

    A lock of the kernel's, not a semaphore: one that a killed worker held is free again.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="gsocks-replay-") as file:
            self._fd = os.dup(file.fileno())
        #: closes it, at the latest with the last reference to this lock
        self._close = weakref.finalize(self, os.close, self._fd)

    def __enter__(self) -> None:
        # held for microseconds, so that blocking the whole process on it is cheaper than a wait
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        self._close()


def now_ms() -> int:
    """The time that hellos carry: milliseconds since 1970."""
    return time.time_ns() // 1_000_000
