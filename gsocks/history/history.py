"""The history of this process: fed by each request's end, kept in files beside the event loop.

What was counted and logged is written together by a thread of its own: rows of the request log
every second, counters every 10 s; so a process that is killed loses no more than that.  Nothing
waits for the disk.  If a file can't be used, that is logged once, what comes is kept for as long as
there is room, and the file is tried again later: a full disk loses history and no request.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from gsocks.errors import HistoryFailed
from gsocks.history.cells import add
from gsocks.history.counters import MemoryCounters
from gsocks.history.latency import RequestLatencies
from gsocks.history.pseudonym import KEY_SIZE, pseudonym
from gsocks.history.requests import EVERY_REQUEST, Page, RequestFilter, RequestRow, TryRow
from gsocks.history.series import Cells, ExitInfo
from gsocks.observe import Details, Observer, Record
from gsocks.settings import RequestLogSettings

if TYPE_CHECKING:
    from gsocks.history.counter_file import CounterFile
    from gsocks.history.request_file import RequestFile

log = logging.getLogger("gsocks.history")

#: requests that wait to be written; more are not logged
MAX_PENDING = 20_000

#: changes of counters that are not written before a minute is over: with 10,000 busy exits each
#: write would be as long as the one of the minute
MANY_CHANGES = 2_000

#: characters of a reason that are kept: an exit's words may stand in it
MAX_DETAIL = 300

#: changes of counters that wait to be written; more are forgotten
MAX_CHANGES = 200_000

_Made = TypeVar("_Made")


class Ended(NamedTuple):
    """A request that has ended, before it is a row."""

    section: str
    record: Record
    #: monotonic seconds
    ended: float


class Also(Protocol):
    """Another use of the details of requests, such as traces or histograms."""

    def ended(self, section: str, record: Record, now: float) -> None:
        """A request has ended; ``now``: monotonic seconds.  Never blocks."""

    def close(self) -> None:
        """Nothing comes any more.  Blocks for seconds at most."""


class SectionObserver:
    """Tells the history of the requests of one section, then the next observer."""

    wants_details = True

    def __init__(self, history: History, section: str, then: Observer) -> None:
        self._history = history
        self._section = section
        self._then = then
        #: the counters do without it
        self.wants_story = history.requests is not None

    def ended(self, record: Record) -> None:
        """See :meth:`gsocks.observe.Observer.ended`."""
        if not record.is_routine:
            self._history.ended(self._section, record)
        self._then.ended(record)


class History:
    """Counts and logs; ``counters`` in memory, ``counter_file`` and ``request_file`` on the disk.

    ``exits``: what is known of an exit, by the name of its series; None: nothing any more.
    ``key``: that of the pseudonyms of hosts, the same in all workers.
    """

    #: seconds between two writes of rows
    interval = 1.0
    #: seconds between two additions to the series, at whole multiples of it
    fold_interval = 10.0
    #: seconds between two writes of many counters
    many_interval = 55.0
    #: seconds between two deletions of what is too old
    prune_interval = 60.0
    #: seconds until a file that can't be used is tried again
    retry_delay = 10.0
    #: seconds that a stop waits for the files
    patience = 6.0

    def __init__(
        self,
        counters: MemoryCounters,
        counter_file: CounterFile | None = None,
        request_file: RequestFile | None = None,
        settings: RequestLogSettings | None = None,
        exits: Callable[[str], ExitInfo | None] = lambda _: None,
        key: bytes = bytes(KEY_SIZE),
        random: Random | None = None,
    ) -> None:
        self.counters = counters
        self._settings = RequestLogSettings() if settings is None else settings
        self._exits = exits
        self._key = key
        self._random = random or Random()  # noqa: S311 - which requests are a sample
        self.also: list[Also] = []
        #: histograms of times; None: there are none
        self.latencies: RequestLatencies | None = None
        #: requests that were not logged, since the file could not be used or was too slow
        self.dropped = 0
        self._pending: deque[Ended] = deque()
        self._counter_file = None if counter_file is None else _Used(counter_file, self.retry_delay)
        self._request_file = None if request_file is None else _Used(request_file, self.retry_delay)
        self.requests = None if request_file is None else FileRequests(request_file)
        self.kept_counters = None if counter_file is None else FileCounters(counter_file)
        if counter_file is not None:
            counters.changes = {}
        self._written_at = -math.inf
        self._known_exits: dict[str, ExitInfo] = {}
        self._thread: ThreadPool | None = None
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._stopping = Event()

    def __repr__(self) -> str:
        return f"<History {self.counters!r} pending={len(self._pending)} dropped={self.dropped}>"

    def count_latencies(self, *, exemplars: bool) -> None:
        """Have :attr:`latencies` count from now on."""
        self.latencies = RequestLatencies(exemplars=exemplars)
        self.also.append(self.latencies)

    def observer(self, section: str, then: Observer) -> SectionObserver:
        """The observer of the listeners whose exits are those of ``section``."""
        return SectionObserver(self, section, then)

    def ended(self, section: str, record: Record) -> None:
        """A request has ended.  Takes microseconds and never blocks."""
        now = time.monotonic()
        self.counters.count(section, record, now)
        if self._request_file is not None:
            self._log(Ended(section, record, now))
        for each in self.also:
            each.ended(section, record, now)

    def _log(self, ended: Ended) -> None:
        sample = self._settings.sample
        if sample < 1.0 and self._random.random() >= sample:
            return
        if len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            return
        self._pending.append(ended)

    def start(self) -> None:
        """Begin to add up and to write, from a greenlet of this thread's hub."""
        self._thread = ThreadPool(1)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Write what there is, and close the files.

        Blocks the calling greenlet, for :attr:`patience` at most.
        """
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is None:
            return
        self._stopping.set()
        greenlet.join(self.patience)  # not killed: its thread would go on
        if not greenlet.ready():
            log.error("the files of the history do not answer, the latest of it may be lost")
            greenlet.kill(block=False)

    # --- the loop ---------------------------------------------------------------------------

    def _run(self) -> None:
        fold_at = self._next_fold()
        prune_at = time.monotonic() + self.interval
        while not self._stopping.wait(max(0.01, min(self.interval, fold_at - time.time()))):
            # or the clock was set back
            is_folded = time.time() >= fold_at or fold_at - time.time() > self.fold_interval
            if is_folded:
                fold_at = self._next_fold()
            is_pruned = time.monotonic() >= prune_at
            if is_pruned:
                prune_at = time.monotonic() + self.prune_interval
            self._work(fold=is_folded, prune=is_pruned)
        self._work(fold=True, prune=False)
        thread = self._thread
        if thread is not None:
            for each in (self._counter_file, self._request_file):
                if each is not None:
                    thread.apply(each.file.close)
            self._thread = None
            thread.kill()
        for also in self.also:
            also.close()
        for reader in (self.requests, self.kept_counters):
            if reader is not None:
                reader.close()

    def _work(self, *, fold: bool, prune: bool) -> None:
        try:
            if fold:
                self.counters.fold()
                self._write_counters()
            self._write_rows()
            if prune:
                self._prune()
        except Exception:
            # a fault of gsocks must not end all history
            log.exception("a part of the history is lost")

    def _next_fold(self) -> float:
        return (time.time() // self.fold_interval + 1) * self.fold_interval

    def _write_counters(self) -> None:
        used, changes = self._counter_file, self.counters.changes
        if used is None or not changes or not used.is_due() or self._waits(changes):
            if changes is not None and len(changes) > MAX_CHANGES:
                changes.clear()
            return
        self.counters.changes = {}
        self._written_at = time.monotonic()
        exits = self._news_of_exits(changes)
        file = used.file
        if not self._try(used, partial(file.add, changes, exits)):
            _put_back(self.counters.changes, changes)
            return
        self._known_exits.update(exits)

    def _waits(self, changes: Collection[object]) -> bool:
        is_soon = time.monotonic() - self._written_at < self.many_interval
        return is_soon and len(changes) > MANY_CHANGES and not self._stopping.is_set()

    def _news_of_exits(
        self, changes: Mapping[tuple[int, int, str, str], Any]
    ) -> dict[str, ExitInfo]:
        found = {}
        for _, _, kind, name in changes:
            if kind == "exit" and name not in found:
                info = self._exits(name)
                if info is not None and self._known_exits.get(name) != info:
                    found[name] = info
        return found

    def _write_rows(self) -> None:
        used, pending = self._request_file, self._pending
        if used is None or not pending or not used.is_due():
            return
        batch = [pending.popleft() for _ in range(len(pending))]
        if not self._try(used, partial(self._add_rows, used.file, batch)):
            pending.extendleft(reversed(batch))
            while len(pending) > MAX_PENDING:
                pending.pop()
                self.dropped += 1

    def _add_rows(self, file: RequestFile, batch: list[Ended]) -> None:
        """In the thread."""
        wall = time.time() - time.monotonic()
        key = self._key if self._settings.redact == "hosts" else None
        file.add(row_of(each, wall, key) for each in batch)

    def _prune(self) -> None:
        now = time.time()
        for used, before in (
            (self._counter_file, now),
            (self._request_file, now - self._settings.keep),
        ):
            if used is not None and used.is_due():
                self._try(used, partial(used.file.prune, before))

    def _try(self, used: _Used, use: Callable[[], None]) -> bool:
        """Whether a file could be used; the log tells when that changes."""
        thread = self._thread
        if thread is None:
            return False
        failure = thread.apply(_failure_of, (use,))
        if failure is not None:
            used.failed(failure)
            return False
        used.worked()
        return True


class _Used:
    """A file, and whether it can be used."""

    def __init__(self, file: Any, retry_delay: float) -> None:
        self.file = file
        self._retry_delay = retry_delay
        self._trouble = ""
        self._retry_at = 0.0

    def is_due(self) -> bool:
        return not self._trouble or time.monotonic() >= self._retry_at

    def failed(self, failure: HistoryFailed) -> None:
        if str(failure) != self._trouble:
            log.error("%s (history is lost meanwhile, and no request)", failure)
        self._trouble = str(failure)
        self._retry_at = time.monotonic() + self._retry_delay

    def worked(self) -> None:
        if self._trouble:
            log.info("%s can be used again", self.file.path)
            self._trouble = ""


class _Asked:
    """Asks a file in a thread."""

    def __init__(self) -> None:
        self._thread: ThreadPool | None = None

    def _call(self, call: Callable[[], _Made]) -> _Made:
        if self._thread is None:
            self._thread = ThreadPool(1)

        def made() -> _Made | HistoryFailed:
            try:
                return call()
            except HistoryFailed as error:  # gevent prints what is raised in its threads
                return error

        found: _Made | HistoryFailed = self._thread.apply(made)
        if isinstance(found, HistoryFailed):
            raise found
        return found

    def close(self) -> None:
        """End the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.kill()


class FileRequests(_Asked):
    """See :class:`gsocks.history.requests.RequestLog`."""

    def __init__(self, file: RequestFile) -> None:
        super().__init__()
        self._file = file

    def search(
        self,
        which: RequestFilter = EVERY_REQUEST,
        limit: int = 100,
        before: int | None = None,
        after: int | None = None,
    ) -> Page:
        """See :meth:`gsocks.history.requests.RequestLog.search`."""
        return self._call(partial(self._file.search, which, limit, before, after))


class FileCounters(_Asked):
    """See :class:`gsocks.history.series.Counters`: minutes and hours, of all workers together.

    Every method raises HistoryFailed.
    """

    def __init__(self, file: CounterFile) -> None:
        super().__init__()
        self._file = file

    def names(self, kind: str) -> list[str]:
        """See :meth:`gsocks.history.series.Counters.names`."""
        return self._call(partial(self._file.names, kind))

    def cells(self, kind: str, name: str, since: float, step: int) -> Cells:
        """See :meth:`gsocks.history.series.Counters.cells`."""
        return self._call(partial(self._file.cells, kind, name, since, step))

    def totals(self, kind: str, since: float, step: int) -> dict[str, list[float]]:
        """See :meth:`gsocks.history.series.Counters.totals`."""
        return self._call(partial(self._file.totals, kind, since, step=step))


def _failure_of(use: Callable[[], None]) -> HistoryFailed | None:
    try:
        use()
    except HistoryFailed as error:
        return error
    return None


def _put_back(
    now: dict[tuple[int, int, str, str], list[float]],
    before: dict[tuple[int, int, str, str], list[float]],
) -> None:
    for key, cell in before.items():
        newer = now.get(key)
        if newer is None:
            now[key] = cell
        else:
            add(newer, cell)


# --- a request as a row -----------------------------------------------------------------------


def row_of(each: Ended, wall: float, key: bytes | None = None) -> RequestRow:
    """The row of a request.  ``wall``: what to add to monotonic seconds; ``key``: of the pseudonyms
    of hosts, without which they are in clear text.  With it no text is taken that may name one.
    """
    record = each.record
    details = record.details or _NO_DETAILS
    dest, detail = record.dest, record.detail[:MAX_DETAIL]
    if key is not None:
        dest, detail = pseudonym(dest, key), ""
    tries: tuple[TryRow, ...] = ()
    if details.tries:
        tries = tuple(
            TryRow(
                each.exit,
                each.word,
                "" if key else each.detail[:MAX_DETAIL],
                round(each.ended - each.began, 6),
            )
            for each in details.tries
        )
    # in one go, as a row costs as much as all of its counters
    return RequestRow(
        0,
        round(wall + record.start, 3),
        record.id,
        record.inbound,
        each.section,
        record.client,
        record.user or "",
        record.session or "",
        record.command,
        dest,
        details.exit,
        details.address,
        record.outcome,
        detail,
        details.status,
        None if details.connect is None else round(details.connect, 6),
        round(details.answered - record.start, 6) if details.answered else None,
        round(each.ended - record.start, 6),
        record.up,
        record.down,
        tries,
        str(details.selector),
        details.matching,
        details.ready,
        details.choice,
    )


_NO_DETAILS = Details()
