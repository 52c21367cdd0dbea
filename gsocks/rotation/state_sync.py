"""Keeps what a restart must not forget in a state file, beside the event loop.

Whatever has changed is written together, every half a second, by a thread of its own; so a process
that is killed loses no more than that.  What other processes have written is read at the same
time, and at the start.  If the file can't be used, that is logged once, everything goes on without
it, and it is tried again later.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool
from msgspec import MsgspecError

from gsocks.deadline import call_with_timeout
from gsocks.errors import StateFailed, StateLost
from gsocks.lru import LruCache
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_file import News, Record, StateFile, Traffic
from gsocks.turns import give_way

log = logging.getLogger("gsocks.state")

#: records that are remembered, and the seconds after which one is written again
#: although nothing has changed, so that it does not expire
MAX_WRITTEN = 20_000
REWRITE = 86400.0

#: what it means that a state file can't be used
NOT_KEPT = "sessions, bans and budgets are not kept for a restart meanwhile"

_Made = TypeVar("_Made")


class Entry(NamedTuple):
    """What is written of one thing.  Times are the wall clock's."""

    key: str
    value: str
    #: when this came about
    stamp: float
    #: when it may be forgotten
    expires: float


class Kept(Protocol):
    """Things of one kind that outlive the process, such as the sessions of a listener."""

    kind: str
    #: whether what other processes write counts at once, and not only at the start
    shared: bool
    #: the keys of what has changed; emptied as it is written
    changed: set[Any]

    def keys(self) -> Iterable[Any]:
        """The keys of all things."""

    def entry(self, key: Any, clock: Clock) -> Entry | None:
        """What to write of one thing; None: there is nothing to be written."""

    def restore(self, entry: Entry, clock: Clock) -> None:
        """Take what was written.  Raises ValueError or MsgspecError for what can't be read."""


class Bytes(Protocol):
    """The bytes that exits have carried."""

    #: bytes by exit and period that were carried since they were last written
    carried: Counter[tuple[str, str]]

    def expires(self, period: str) -> float:
        """When a period's count may be forgotten, by the wall clock."""

    def total(self, exit_: str, period: str, count: int, clock: Clock) -> None:
        """All processes have carried ``count`` bytes, without those in :attr:`carried`."""


class StateSync:
    """Reads and writes ``file`` for the sections that :meth:`follow` names.

    ``alone``: no other process uses the file while this one runs; ``trouble``: a failure that has
    been logged already.
    """

    #: seconds between two writes
    interval = 0.5
    #: seconds between two deletions of what has expired
    prune_interval = 60.0
    #: seconds until a file that can't be used is tried again
    retry_delay = 10.0
    #: seconds that a start waits for the file, and a stop
    patience = 6.0
    #: things that are turned into text, or back, before others have their turn
    slice = 500

    def __init__(self, file: StateFile, *, alone: bool, trouble: str | None = None) -> None:
        self._file = file
        self._alone = alone
        self._kept: dict[tuple[str, str], Kept] = {}
        self._bytes: dict[str, Bytes] = {}
        self._trouble = trouble
        self._prune_at = -math.inf
        #: the hash of the value, and the expiry, of the latest records that were written
        self._written: LruCache[tuple[str, str, str], tuple[int, float]] = LruCache(MAX_WRITTEN)
        self._loaded = False
        self._thread: ThreadPool | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._stopping = Event()

    def __repr__(self) -> str:
        return f"<StateSync {self._file.path} trouble={self._trouble}>"

    def follow(self, section: str, kept: Sequence[Kept], carried: Bytes | None = None) -> None:
        """Keep these things under the name of a section.  Before :meth:`start`."""
        for each in kept:
            self._kept[section, each.kind] = each
        if carried is not None:
            self._bytes[section] = carried

    def start(self) -> None:
        """Restore what the file has, and begin to write.

        Blocks the calling greenlet, for :attr:`patience` at most.
        """
        self._thread = ThreadPool(1)
        call_with_timeout(self.patience, self._try, self._load, on_timeout=None)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Write what has changed, and close the file.

        Blocks the calling greenlet, for :attr:`patience` at most.
        """
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is None:
            return
        self._stopping.set()
        # not killed: what its thread is writing must not be written twice
        greenlet.join(self.patience)
        if not greenlet.ready():
            log.error("%s: does not answer, the latest changes may be lost", self._file.path)
            greenlet.kill(block=False)

    # --- the loop ---------------------------------------------------------------------------

    def _run(self) -> None:
        delay = self.interval
        while not self._stopping.wait(delay):
            used = self._try(self._write if self._loaded else self._load)
            delay = self.interval if used else self.retry_delay
        thread = self._thread
        if thread is None:
            return
        if self._loaded and self._trouble is None:
            self._try(self._write)
        _call(thread, self._file.close)
        self._thread = None
        thread.kill()

    def _try(self, use: Callable[[], None]) -> bool:
        """Whether the file could be used; the log tells when that changes."""
        try:
            use()
        except StateFailed as error:
            if str(error) != self._trouble:
                log.error("%s (%s)", error, NOT_KEPT)
            self._trouble = str(error)
            if isinstance(error, StateLost):
                self._write_all()
            return False
        if self._trouble is not None:
            log.info("%s can be used again", self._file.path)
        self._trouble = None
        return True

    def _write_all(self) -> None:
        """Have everything written, whether or not it has changed."""
        self._written = LruCache(MAX_WRITTEN)
        for each in self._kept.values():
            each.changed.update(each.keys())

    def _load(self) -> None:
        news = self._in_thread(partial(self._file.load, time.time()))
        began = Clock.now()
        self._take(news, began, at_start=True)
        self._loaded = True
        sessions = sum(record.kind == "session" for record in news.records)
        log.info("%s: %d records, %d of sessions", self._file.path, len(news.records), sessions)

    def _write(self) -> None:
        queue = [(each, key) for each in self._kept.values() for key in _taken(each)]
        queue.reverse()
        traffic = list(self._traffic())
        try:
            while queue or traffic or not self._alone:
                records = list(self._records(queue[-self.slice :]))
                news = self._in_thread(partial(self._file.sync, records, traffic, time.time()))
                del queue[-self.slice :]
                traffic = []
                self._remember(records)
                self._take(news, Clock.now(), at_start=False)
                if not queue:
                    break
        except BaseException:
            self._put_back(queue, traffic)
            raise
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + self.prune_interval
            self._in_thread(partial(self._file.prune, time.time()))

    def _in_thread(self, call: Callable[[], _Made]) -> _Made:
        """Raises StateFailed."""
        thread = self._thread
        if thread is None:
            raise StateFailed(f"{self._file.path}: closed")
        found = _call(thread, call)
        if isinstance(found, StateFailed):
            raise found
        return found

    # --- to text and back -------------------------------------------------------------------

    def _records(self, things: Sequence[tuple[Kept, Any]]) -> Iterator[Record]:
        clock = Clock.now()
        sections = {id(each): section for (section, _), each in self._kept.items()}
        for each, key in things:
            entry = each.entry(key, clock)
            if entry is not None and not self._is_written(sections[id(each)], each, entry):
                yield Record(sections[id(each)], each.kind, *entry)

    def _is_written(self, section: str, kept: Kept, entry: Entry) -> bool:
        """Whether the file has this already: many things change and change back."""
        if kept.shared:
            return False  # others may have written something else meanwhile
        last = self._written.peek((section, kept.kind, entry.key))
        if last is None:
            return False
        value, expires = last
        return value == hash(entry.value) and entry.expires < expires + REWRITE

    def _remember(self, records: Iterable[Record]) -> None:
        for record in records:
            if not self._kept[record.section, record.kind].shared:
                key = (record.section, record.kind, record.key)
                self._written[key] = (hash(record.value), record.expires)

    def _traffic(self) -> Iterator[Traffic]:
        for section, each in self._bytes.items():
            carried, each.carried = each.carried, Counter()
            for (exit_, period), count in carried.items():
                yield Traffic(section, exit_, period, count, each.expires(period))

    def _put_back(self, things: Sequence[tuple[Kept, Any]], traffic: Sequence[Traffic]) -> None:
        """After a failure: all of it has still to be written."""
        for each, key in things:
            each.changed.add(key)
        for more in traffic:
            self._bytes[more.section].carried[more.exit, more.period] += more.bytes

    def _take(self, news: News, clock: Clock, *, at_start: bool) -> None:
        for number, record in enumerate(news.records):
            if number % self.slice == self.slice - 1:
                give_way(at_once=True)
            kept = self._kept.get((record.section, record.kind))
            if kept is None or not (at_start or kept.shared):
                continue
            try:
                kept.restore(Entry(*record[2:]), clock)
            except (ValueError, MsgspecError) as error:
                log.debug("%s: %s %s: %s", self._file.path, record.kind, record.key, error)
        for more in news.traffic:
            if (carried := self._bytes.get(more.section)) is not None:
                carried.total(more.exit, more.period, more.bytes, clock)


def _taken(kept: Kept) -> list[Any]:
    keys = list(kept.changed)
    kept.changed.clear()
    return keys


def _call(thread: ThreadPool, call: Callable[[], _Made]) -> _Made | StateFailed:
    def made() -> _Made | StateFailed:
        try:
            return call()
        except StateFailed as error:  # gevent prints what is raised in its threads
            return error

    found: _Made | StateFailed = thread.apply(made)
    return found
