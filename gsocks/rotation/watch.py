"""Watches lists of exits, and merges them with the exits of the config.

A file is polled every second, and read once it has changed and then stayed the same for one poll
more, so that a file is not read while it is written.  A URL is fetched at its interval; its last
response is cached on disk, for a start at which the provider can't be reached.  Of several
processes with the same cache file one fetches, and the others read the file when it changes.

After any failure (an empty list, a web page instead of one, a missing file) the previous exits
stay.  A failure is logged once, and once more when it has ended.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from random import Random
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from gsocks.access.rules import ALLOW_ALL, DEFAULT_RULES
from gsocks.backoff import Backoff
from gsocks.errors import ConfigError, FetchFailed
from gsocks.exits import ExitDeps, make_exit
from gsocks.exits.fetch import Page, fetch
from gsocks.exits.spec import DIRECT, ExitSpec
from gsocks.files import FileState, state_of, warn_of_readers
from gsocks.http.token import TOKEN
from gsocks.net.resolve import Resolver
from gsocks.rotation.cache import CachedList, ListCache
from gsocks.rotation.lists import MAX_SIZE, ExitList, parse_list
from gsocks.rotation.sources import FileSource, Source, UrlSource
from gsocks.settings import PoolSettings
from gsocks.turns import give_way, without_collection
from gsocks.units import format_duration, format_size

log = logging.getLogger("gsocks.sources")

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

#: seconds between two polls of a file
POLL_INTERVAL = 1.0

#: seconds for a whole fetch
FETCH_TIMEOUT = 30.0

#: seconds that a start or a reload waits for lists that are neither read nor cached yet
FIRST_WAIT = 10.0

#: seconds of such a wait after which it is logged
WAIT_LOGGED = 1.0

#: seconds before a failed fetch is retried; doubled after each further failure in a row
RETRY_DELAY = 5.0

#: seconds after which it is asked again whether another gateway has fetched a list
RETRY_TURN = 1.0

#: skipped entries of a list that are logged one by one
_MAX_LOGGED = 10

#: bytes
_MAX_HEADER_FILE = 65536

_FIELD = re.compile(rf"({TOKEN}): *([\x21-\x7e][\x20-\x7e]*)")

#: validators of a response, and the conditional request fields for them (RFC 9110 section 13.1)
_VALIDATORS = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}


class ListTurn(NamedTuple):
    """What other gateways have of a list that is due."""

    #: as one of them has fetched it last; None: there is none
    copy: CachedList | None = None
    #: whether it is this process's turn to fetch it
    may_fetch: bool = True


class ListSharing(Protocol):
    """The lists that gateways share.  Every method blocks the greenlet, and never fails."""

    def begin(self, of: bytes, interval: float, *, forced: bool) -> ListTurn:
        """A list is due, which is made known by what it is fetched with.

        ``interval``: seconds for which a copy is fresh.  ``forced``: it is fetched all the same.
        """

    def write(self, of: bytes, fetched: CachedList, interval: float) -> None:
        """It was fetched."""

    def give_up(self, of: bytes) -> None:
        """It could not be fetched."""


class ExitListWatcher:
    """``exits`` and those in the lists of ``sources``, without duplicates."""

    def __init__(
        self,
        exits: Sequence[ExitSpec],
        sources: Sequence[Source],
        resolver: Resolver | None = None,
        sharing: ListSharing | None = None,
    ) -> None:
        """``resolver``: looks the names up of servers that have lists; by default a new one.

        ``sharing``: by which gateways share lists; None: this one fetches all of them.
        """
        self._sharing = sharing
        self._own = tuple(exits)
        self._resolver = resolver or Resolver()
        self._watchers = [self._watcher(spec) for spec in sources]
        self._apply: Callable[[list[ExitSpec]], object] | None = None
        self._telling = BoundedSemaphore()

    def begin(self, wait: float = FIRST_WAIT) -> list[ExitSpec]:
        """Read all lists and begin to watch them; returns all exits.

        ``wait``: seconds for lists that have to be fetched.  Raises ConfigError if there is still
        no exit then.
        """
        for watcher in self._watchers:
            watcher.start()
        try:
            return _some(self._own, self._watchers, wait)
        except BaseException:
            self.close()
            raise

    def follow(self, apply: Callable[[list[ExitSpec]], object]) -> None:
        """Call ``apply`` with all exits whenever a list has changed."""
        self._apply = apply

    def replace(
        self, exits: Sequence[ExitSpec], sources: Sequence[Source], wait: float = FIRST_WAIT
    ) -> list[ExitSpec]:
        """Replace the exits and sources; sources that stay are read again at once.

        Returns all exits, of which :meth:`tell` tells.  Raises ConfigError, and changes nothing, if
        there would be none.
        """
        before = self._watchers
        watchers = []
        for spec in sources:
            known = next((each for each in before if each.spec == spec), None)
            watchers.append(known or self._watcher(spec))
        for watcher in watchers:
            watcher.start()
        try:
            found = _some(exits, watchers, wait)
        except BaseException:
            _close(each for each in watchers if each not in before)
            raise
        _close(each for each in before if each not in watchers)
        self._own, self._watchers = tuple(exits), watchers
        return found

    def origin_of(self, spec: object) -> str:
        """``config``, or the list that has the exit."""
        for watcher in self._watchers:
            if spec in watcher.members and spec not in self._own:
                return str(watcher.spec)
        return "config"

    def close(self) -> None:
        """Stop watching."""
        _close(self._watchers)

    def _watcher(self, spec: Source) -> _SourceWatcher:
        if isinstance(spec, FileSource):
            return _FileFollower(spec, self._changed)
        return _UrlFollower(spec, self._changed, self._resolver, self._sharing)

    def _changed(self, watcher: _SourceWatcher) -> None:
        # not of a source that is only being added, or was removed
        if self._apply is not None and watcher in self._watchers:
            self.tell(self._apply)

    def tell(self, apply: Callable[[list[ExitSpec]], object]) -> None:
        """Call ``apply`` with all exits, once it is not being called any more with previous ones.

        It may give way to other greenlets, in which further lists change.
        """
        with self._telling:
            apply(_all(self._own, self._watchers))


def read_source(spec: Source) -> ExitList | None:
    """The list of a source, without a fetch; None for a URL without a cached response.

    Raises ConfigError, with the source's name.
    """
    try:
        if isinstance(spec, FileSource):
            found = parse_list(_read(spec.file, MAX_SIZE)[1], spec.options)
            _warn_of_readers(spec.file, has_secrets=_have_secrets(found.exits))
            return found
        cached = ListCache(spec.cache, spec.url, MAX_SIZE).read()
        return None if cached is None else parse_list(cached.raw, spec.options)
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error}") from None


def _all(own: Iterable[ExitSpec], watchers: Iterable[_SourceWatcher]) -> list[ExitSpec]:
    found: dict[ExitSpec, None] = {}
    for spec in chain(own, *(watcher.exits for watcher in watchers)):
        found[spec] = None
        give_way()
    return list(found)


def _some(
    own: Iterable[ExitSpec], watchers: Sequence[_SourceWatcher], wait: float
) -> list[ExitSpec]:
    """All exits, once every list was read or ``wait`` seconds have passed.

    Raises ConfigError if there are none.
    """
    _wait(watchers, wait)
    found = _all(own, watchers)
    if not found:
        troubles = (f"{each.spec}: {each.trouble or 'no answer yet'}" for each in watchers)
        raise ConfigError(f"no exits: {'; '.join(troubles)}")
    return found


def _wait(watchers: Sequence[_SourceWatcher], seconds: float) -> None:
    """Wait until every list was read, or for ``seconds``; a long wait is logged."""
    at_first = min(WAIT_LOGGED, seconds)
    gevent.wait([watcher.ready for watcher in watchers], timeout=at_first)
    late = [watcher for watcher in watchers if not watcher.ready.is_set()]
    if late and seconds > at_first:
        lists = ", ".join(str(watcher.spec) for watcher in late)
        log.info("waiting up to %s for %s", format_duration(seconds), lists)
        gevent.wait([watcher.ready for watcher in late], timeout=seconds - at_first)


def _close(watchers: Iterable[_SourceWatcher]) -> None:
    for watcher in watchers:
        watcher.close()


# --- one source -----------------------------------------------------------------------------


class _SourceWatcher:
    """Watches one source in a greenlet, which calls ``changed`` when its list has changed."""

    def __init__(self, spec: Source, changed: Callable[[_SourceWatcher], None]) -> None:
        self.spec = spec
        self.exits: tuple[ExitSpec, ...] = ()
        #: why the previous list stays; None after a success
        self.trouble: str | None = None
        #: set once a first read or fetch has ended, whether by success or failure
        self.ready = Event()
        self._changed = changed
        self._digest = b""
        self._members: frozenset[object] | None = None
        self._wake = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    @property
    def members(self) -> frozenset[object]:
        """Its exits, to be looked up in; made when they are asked for."""
        if self._members is None:
            self._members = frozenset(self.exits)
        return self._members

    def start(self) -> None:
        """Begin to watch; if it watches already, poll at once."""
        self._wake.set()
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)
        else:
            self.ready.clear()

    def close(self) -> None:
        """Stop watching."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        try:
            while True:
                self._wake.wait(POLL_INTERVAL)
                self._wake.clear()
                self._poll()
        finally:
            self._ended()

    def _ended(self) -> None:
        """Release what polling needs."""

    def _poll(self) -> None:
        """Take the list if it has changed, and set :attr:`ready`."""
        raise NotImplementedError

    def _take(self, raw: bytes) -> None:
        """Replace the exits by those in ``raw``.  Raises ConfigError if it is no list of exits."""
        digest = blake2b(raw).digest()
        if digest != self._digest:
            with without_collection():
                found = _in_thread(parse_list, raw, self.spec.options)
            self._digest, self.exits, self._members = digest, found.exits, None
            self._log(found)
            self._changed(self)
        self._succeeded()

    def _log(self, found: ExitList) -> None:
        for place, reason in found.skipped[:_MAX_LOGGED]:
            log.warning("%s: %s skipped: %s", self.spec, place, reason)
        more = len(found.skipped) - _MAX_LOGGED
        if more > 0:
            log.warning("%s: %d more entries skipped", self.spec, more)
        log.info("%s: %d exits, %d duplicates", self.spec, len(found.exits), found.duplicates)

    def _succeeded(self) -> None:
        if self.trouble is not None:
            log.info("%s: can be read again", self.spec)
        self.trouble = None

    def _failed(self, why: str) -> None:
        if why != self.trouble:
            keeping = f" (keeping the previous {len(self.exits)} exits)" if self.exits else ""
            log.error("%s: %s%s", self.spec, why, keeping)
        self.trouble = why


class _FileFollower(_SourceWatcher):
    """Watches a file, which is read again when it changes."""

    def __init__(self, spec: FileSource, changed: Callable[[_SourceWatcher], None]) -> None:
        super().__init__(spec, changed)
        self._file = spec.file
        self._requested = False
        self._seen: FileState = None
        self._taken: FileState = None

    def start(self) -> None:
        """As for every source; a poll that is requested assumes that the file is complete."""
        super().start()
        self._requested = True

    def _poll(self) -> None:
        now = state_of(self._file)
        steady, self._seen = now == self._seen, now
        if self._requested or (steady and now != self._taken):
            self._requested, self._taken = False, now
            try:
                self._taken, raw = _in_thread(_read, self._file, MAX_SIZE)
                self._take(raw)
                has_secrets = _in_thread(_have_secrets, self.exits)
                _warn_of_readers(self._file, has_secrets=has_secrets)
            except ConfigError as error:
                self._failed(str(error))
        self.ready.set()


class _UrlFollower(_SourceWatcher):
    """Watches a URL, which one of the processes that watch it fetches at its interval."""

    def __init__(
        self,
        spec: UrlSource,
        changed: Callable[[_SourceWatcher], None],
        resolver: Resolver,
        sharing: ListSharing | None,
    ) -> None:
        super().__init__(spec, changed)
        self._source = spec
        self._sharing = sharing
        #: whether a fetch was asked for, though a copy may be fresh
        self._is_forced = False
        self._resolver = resolver
        self._cache = ListCache(spec.cache, spec.url, MAX_SIZE)
        self._cache_state: FileState = None
        #: why the response is not cached; None: it is
        self._uncached: str | None = None
        self._validators: Mapping[str, str] = {}
        #: monotonic seconds; when to fetch
        self._due = 0.0
        self._failures = 0
        self._random = Random()  # noqa: S311 - predicting it gains nothing

    def start(self) -> None:
        """As for every source; a poll that is requested also fetches."""
        self._is_forced = self._greenlet is not None
        super().start()
        self._due = 0.0

    def _ended(self) -> None:
        self._cache.close()

    def _poll(self) -> None:
        leads = self._leads()  # first, so that what the last leader has written is read then
        self._read_cache()
        if self.exits:
            self.ready.set()
        if leads and time.monotonic() >= self._due and self._renew():
            self.ready.set()

    def _leads(self) -> bool:
        try:
            return self._cache.lead()
        except OSError as error:
            self._warn_uncached(error)
            return True

    def _read_cache(self) -> None:
        now = self._cache.state()
        if now == self._cache_state:
            return
        self._cache_state = now
        cached = _in_thread(self._cache.read)
        if cached is None:
            return
        try:
            self._take(cached.raw)
        except ConfigError:
            return  # written by a version that could parse it
        self._validators = cached.validators
        self._due = time.monotonic() + self._source.interval - cached.age

    def _renew(self) -> bool:
        """Fetch the list, or take it from a gateway that has; False: it is to be tried again soon,
        as another gateway is fetching it."""
        sharing, turn, of, interval = self._sharing, ListTurn(), b"", self._source.interval
        try:
            if sharing is not None:
                of = self._identity()
                turn = sharing.begin(of, interval, forced=self._is_forced)
        except ConfigError as error:
            self._could_not(str(error))
            return True
        if not turn.may_fetch:
            fresh = 0.0 if turn.copy is None else interval - turn.copy.age
            self._due = time.monotonic() + max(RETRY_TURN, fresh)
            return turn.copy is not None and self._take_copy(turn.copy)
        self._is_forced = False
        fetched = self._fetch(turn.copy)
        if sharing is not None and fetched is not None:
            sharing.write(of, fetched, interval)
        elif sharing is not None:
            sharing.give_up(of)
        return True

    def _identity(self) -> bytes:
        """Equal for two lists that are fetched in the same way.  Raises ConfigError."""
        source = self._source
        fields = [] if source.header_file is None else _fields(source.header_file)
        return repr((source.url, source.url.target, source.url.login, fields)).encode()

    def _take_copy(self, copy: CachedList) -> bool:
        """Take what another gateway has fetched; whether it is a list."""
        try:
            if blake2b(copy.raw).digest() != self._digest:
                self._take(copy.raw)
        except ConfigError:
            return False  # of a version that could parse it
        self._validators = copy.validators
        self._store(lambda: self._cache.write(copy.raw, copy.validators))
        return True

    def _fetch(self, copy: CachedList | None) -> CachedList | None:
        """What was fetched; None: it could not be, and an older ``copy`` is used, if any."""
        try:
            page = self._request()
            if page.status == HTTPStatus.NOT_MODIFIED and self._validators:
                self._succeeded()
                self._store(self._cache.touch)
                fetched = _in_thread(self._cache.read)
            else:
                page.check_status(HTTPStatus.OK)
                raw = page.body
                self._take(raw)
                found = {name: page.field(name) for name in _VALIDATORS}
                self._validators = {name: value for name, value in found.items() if value}
                self._store(lambda: self._cache.write(raw, self._validators))
                fetched = CachedList(raw, self._validators, 0.0)
        except (ConfigError, FetchFailed) as error:
            if copy is not None:
                self._take_copy(copy)
            self._could_not(str(error))
            return None
        self._failures = 0
        self._due = time.monotonic() + self._source.interval
        return fetched

    def _could_not(self, why: str) -> None:
        # with jitter, or all clients would return at once after an outage of the provider
        pause = Backoff(RETRY_DELAY, jitter=(0.75, 1.25)).delay(self._failures, self._random)
        self._failures += 1
        self._due = time.monotonic() + min(self._source.interval, pause)
        self._failed(why)

    def _request(self) -> Page:
        """Raises ConfigError and FetchFailed."""
        source = self._source
        fields = _fields(source.header_file) if source.header_file is not None else []
        fields += [(_VALIDATORS[name], value) for name, value in self._validators.items()]
        via, pool = source.fetch_via or DIRECT, PoolSettings(size=0)
        exit_ = make_exit(via, ExitDeps(ALLOW_ALL, self._resolver, pool=pool))
        # the server may not have this machine's own services read by a redirect
        rules = DEFAULT_RULES if source.options.public else ALLOW_ALL
        elsewhere = make_exit(via, ExitDeps(rules, self._resolver, pool=pool))
        try:
            return fetch(
                source.url,
                exit_,
                fields=fields,
                largest=MAX_SIZE,
                timeout=FETCH_TIMEOUT,
                elsewhere=elsewhere,
                rules=rules,
            )
        finally:
            exit_.close()
            elsewhere.close()

    def _store(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._warn_uncached(error)
        else:
            self._uncached = None
        self._cache_state = self._cache.state()

    def _warn_uncached(self, error: OSError) -> None:
        why = error.strerror or type(error).__name__
        if why != self._uncached:
            log.warning(
                "%s: can't be cached in %s: %s (each worker fetches it)",
                self.spec,
                self._source.cache,
                why,
            )
        self._uncached = why


def _in_thread(call: Callable[_Given, _Made], *given: _Given.args, **named: _Given.kwargs) -> _Made:
    """Run ``call`` in a thread: a long list takes a second and must not block the event loop."""

    def made() -> _Made | ConfigError:
        try:
            return call(*given, **named)
        except ConfigError as error:  # gevent prints what is raised in its threads
            return error

    found: _Made | ConfigError = gevent.get_hub().threadpool.apply(made)
    if isinstance(found, ConfigError):
        raise found
    return found


def _read(path: Path, largest: int) -> tuple[FileState, bytes]:
    """A file's state before it was read, and its content.  Raises ConfigError."""
    try:
        # not blocking, or opening a pipe would wait for its writer
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError("not a file")
            state = state_of(file.fileno())
            raw = file.read(largest + 1)
    except OSError as error:
        raise ConfigError(error.strerror or type(error).__name__) from None
    if len(raw) > largest:
        raise ConfigError(f"larger than {format_size(largest)}")
    return state, raw


def _have_secrets(exits: Iterable[ExitSpec]) -> bool:
    return any(
        each.password or each.key or (each.user and "***" in each.label)  # a provider's API key
        for each in exits
    )


def _warn_of_readers(path: Path, *, has_secrets: bool) -> None:
    with suppress(OSError):  # it has gone meanwhile
        warn_of_readers(path, path.stat(), has_secrets)


def _fields(path: Path) -> list[tuple[str, str]]:
    """Request fields from a file with one ``Name: value`` a line.  Raises ConfigError."""
    try:
        lines = _read(path, _MAX_HEADER_FILE)[1].decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not ASCII") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            field = _FIELD.fullmatch(line.rstrip())
            if field is None:
                raise ConfigError(f"{path}: line {number}: expected Name: value")
            found.append((field[1], field[2]))
    _warn_of_readers(path, has_secrets=bool(found))
    return found
