"""Every hello is accepted once, whichever worker process it reaches.

The set of hellos seen is exact, lives in memory that forked workers share, and is bounded: each key
has a region of its own, a hash table of fixed-size buckets whose entries are free again once they
expire.  What has expired stays until its place is needed, the oldest goes first: if the clock is
stepped back, the times of old hellos come again.  Only hellos that proved knowledge of a key are
stored, so a stranger can't fill it (shadowsocks-rust#442), and the holder of one key fills no other
key's region.

    owners      for each region a hash of its key
    ends        for each region when the last of its hellos expires; until then it stays its key's
    regions     as many hash tables of the same size, and one more for keys that find none free
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
import weakref
from types import TracebackType

#: how far a client's clock may be off, in milliseconds
WINDOW_MS = 30_000

#: by how much the clock must have been set to count as set: both clocks can't be read at once
_LEAST_STEP_MS = 1000

_TOKEN_SIZE = 16
_TIME_SIZE = 8
_ENTRY_SIZE = _TOKEN_SIZE + _TIME_SIZE
_BUCKET_ENTRIES = 16
_BUCKET_SIZE = _ENTRY_SIZE * _BUCKET_ENTRIES
_OWNER_SIZE = 16

#: regions beyond two for each key of the start
_SPARE_REGIONS = 8
#: bytes of all regions together, and buckets that each has all the same
_MEMORY = 256 * 1024 * 1024
_FEWEST_BUCKETS = 64


class ReplayGuard:
    """The hellos of the last minute.  Make it before forking; every worker then sees the same.

    ``keys``: how many there are at the start.  A reload may add some: there are regions for twice
    as many and eight more.  A key takes one with its first hello, and has it for as long as any of
    its hellos would be accepted again; so only keys of the last minute have one.  Those that find
    none free share one, and so its bound.

    ``capacity``: how many hellos of one key fit; a key holder who opens more tunnels than that in a
    minute is refused the surplus (131,072 a minute need 3 MiB, touched as they are used).  As
    buckets fill by chance, one in a thousand is refused at half of it, one in ten at all of it.
    With more than 38 keys it is less, so that all regions have 256 MiB at most: 5,552 with 1,000
    keys; and 1,024 with any number.

    ``started_ms``: hellos made before it are refused, since what was seen before it is forgotten.
    How long ago that was is told by a clock that is never set: after a step of the other one, a
    hello is as old as before, and so is this guard.
    """

    #: milliseconds by which the time of a hello may differ, and for which it is remembered then
    window_ms = WINDOW_MS
    #: whether one more than a bucket has room for takes the place of the oldest, or is refused
    forgets_oldest = False

    def __init__(
        self, started_ms: int | None = None, keys: int = 1, capacity: int = 131_072
    ) -> None:
        self._regions = 2 * keys + _SPARE_REGIONS
        tables = self._regions + 1
        most = max(_FEWEST_BUCKETS, _MEMORY // tables // _BUCKET_SIZE)
        self._buckets = max(1, min(capacity // _BUCKET_ENTRIES, most))
        #: where the ends and the tables begin
        self._ends = self._regions * _OWNER_SIZE
        self._tables = self._ends + tables * _TIME_SIZE
        self._memory = mmap.mmap(-1, self._tables + tables * self._buckets * _BUCKET_SIZE)
        self._all_ends = struct.Struct(f">{self._regions}Q")
        self._lock = _ProcessLock()
        self._salt = os.urandom(16)
        now = now_ms()
        self._started_ms = now if started_ms is None else started_ms
        #: the time of the boot by the clock of that time
        self._boot_ms = now - _since_boot_ms()

    def admit(self, token: bytes, time_ms: int, key: bytes, now: int | None = None) -> bool:
        """True if a hello with the time ``time_ms`` may be accepted; False for its replay.

        ``key``: the one that it proved, of which only a salted hash is kept.  Not its name: a
        reload may give it another one.  All times are milliseconds since 1970.
        """
        now = now_ms() if now is None else now
        if abs(now - time_ms) > self.window_ms or time_ms < self._start_ms:
            return False
        owner = hashlib.blake2b(key, digest_size=_OWNER_SIZE, key=self._salt).digest()
        entry = hashlib.blake2b(owner + token, digest_size=8 + _TOKEN_SIZE, key=self._salt)
        digest = entry.digest()
        bucket = int.from_bytes(digest[:8], "big") % self._buckets
        with self._lock:
            region = self._region_of(owner, now)
            expires = time_ms + self.window_ms
            return self._enter(region, bucket, digest[8:], expires=expires, now=now)

    @property
    def _start_ms(self) -> int:
        """When it started, as the clock tells it that was set since."""
        step = now_ms() - _since_boot_ms() - self._boot_ms
        return self._started_ms + (step if abs(step) > _LEAST_STEP_MS else 0)

    def refusal(self, time_ms: int) -> str:
        """Why a hello of that time was not admitted just now, for the log."""
        off = time_ms - now_ms()
        side = "ahead of" if off > 0 else "behind"
        if abs(off) > WINDOW_MS:
            seconds = WINDOW_MS // 1000
            return f"its clock is {_duration(abs(off))} {side} this one, {seconds} s are allowed"
        age = now_ms() - self._start_ms
        if -off > age:
            return (
                f"a hello from before the start of this server, {_duration(age)} ago:"
                f" its clock is {_duration(-off)} behind this one, or it is a replay"
            )
        return "a hello seen before"

    def _region_of(self, owner: bytes, now: int) -> int:
        """The region of a key, which takes a free one if it has none; or the one that is shared."""
        at = self._memory.find(owner, 0, self._ends)
        if at >= 0:  # at a place of its own: by no chance do two other hashes have it between them
            return at // _OWNER_SIZE
        ends = self._all_ends.unpack_from(self._memory, self._ends)
        oldest = min(ends)
        free = ends.index(oldest) if oldest < now else self._regions
        if free < self._regions:
            at = free * _OWNER_SIZE
            self._memory[at : at + _OWNER_SIZE] = owner
        return free

    def _enter(self, region: int, bucket: int, token: bytes, *, expires: int, now: int) -> bool:
        seen, free = self._look(region, bucket, token, now)
        shared = self._regions
        if region != shared and self._end(shared) >= now:
            # where it may have come before its key found a region of its own
            seen = seen or self._look(shared, bucket, token, now)[0]
        if seen or free is None:
            return False
        # in this order: a process that is killed between the two has accepted nothing
        if expires > self._end(region):
            at = self._ends + region * _TIME_SIZE
            self._memory[at : at + _TIME_SIZE] = expires.to_bytes(_TIME_SIZE, "big")
        self._memory[free : free + _ENTRY_SIZE] = token + expires.to_bytes(_TIME_SIZE, "big")
        return True

    def _end(self, region: int) -> int:
        """When the last hello of a region expires; in the past if it is free."""
        at = self._ends + region * _TIME_SIZE
        return int.from_bytes(self._memory[at : at + _TIME_SIZE], "big")

    def _look(self, region: int, bucket: int, token: bytes, now: int) -> tuple[bool, int | None]:
        """Whether a hello is in its bucket; where a free entry is, None: the bucket is full."""
        memory, free = self._memory, None
        oldest = 1 << 64 if self.forgets_oldest else now
        start = self._tables + (region * self._buckets + bucket) * _BUCKET_SIZE
        for at in range(start, start + _BUCKET_SIZE, _ENTRY_SIZE):
            if memory[at : at + _TOKEN_SIZE] == token:
                return True, None
            until = int.from_bytes(memory[at + _TOKEN_SIZE : at + _ENTRY_SIZE], "big")
            if until < oldest:
                free, oldest = at, until
        return False, free

    def close(self) -> None:
        """Release the memory and the lock."""
        self._memory.close()
        self._lock.close()


class _ProcessLock:
    """Mutual exclusion between processes.

    A lock of the kernel's, not a semaphore: one that a killed worker held is free again.
    """

    def __init__(self) -> None:
        # no file has a name, and so none needs a folder that may be written
        self._fd = os.memfd_create("gsocks-replay")
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


def _since_boot_ms() -> int:
    """Milliseconds since the boot, by a clock that no one sets, and that sleeps don't stop."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _duration(milliseconds: int) -> str:
    """``12 s``, ``1 h 3 min``: no more than two units."""
    seconds = milliseconds // 1000
    for size, unit, size_below, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // size_below} {below}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
