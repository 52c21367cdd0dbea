"""The exits behind a door as they stand: those of the config, and those of lists that change.

A file is looked at every second, and read when it has changed and then stayed as it is for one
look more, so that one that is being written is not taken for whole.  A URL is fetched at its
interval; what it said last is kept in a file, from which a start takes it when the provider can't
be reached.  Of several processes with the same such file one fetches, and the others read the
file when it changes.

Whatever goes wrong, the exits of before stay: an empty list, a web page in place of one, a file
that is gone.  That is told once, and once that it is over.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from random import Random
from typing import ParamSpec, TypeVar

import gevent
from gevent.event import Event

from gsocks.errors import ConfigError, FetchFailed
from gsocks.exits import Ground, make_exit
from gsocks.exits.url import DIRECT, ExitSpec
from gsocks.fetch import Page, fetch
from gsocks.keep import Keep, State, state, state_of
from gsocks.rotation.lists import LARGEST, ExitList, parse_list
from gsocks.rotation.sources import FileSource, Source, UrlSource
from gsocks.rules import ALLOW_ALL
from gsocks.units import format_size

log = logging.getLogger("gsocks.sources")

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

#: seconds between two looks at a file
LOOK_EVERY = 1.0

#: seconds for all of a fetch
FETCH_TIMEOUT = 30.0

#: seconds that a start, or a reload, waits for lists that were never there before
FIRST_WAIT = 10.0

#: seconds before a failed fetch is repeated the first time; each next one waits twice as long
FIRST_RETRY = 5.0

#: entries that are told one by one when they are left out
_MOST_TOLD = 10

#: bytes; fields for a request
_LARGEST_HEADER_FILE = 65536

_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): *([\x21-\x7e][\x20-\x7e]*)")

#: what a server calls a list, and how it is asked whether it has another (RFC 9110 section 13.1)
_VALIDATORS = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}


class Feed:
    """``exits``, and those in the lists of ``sources``, each once."""

    def __init__(self, exits: Sequence[ExitSpec], sources: Sequence[Source]) -> None:
        self._own = tuple(exits)
        self._followers = [_follower(spec, self._changed) for spec in sources]
        self._apply: Callable[[list[ExitSpec]], object] | None = None

    def begin(self, wait: float = FIRST_WAIT) -> list[ExitSpec]:
        """Read all lists, and follow them from now on; returns all exits.

        ``wait``: seconds for lists that have to be fetched.  Raises ConfigError if there is no
        exit at all then.
        """
        for follower in self._followers:
            follower.start()
        try:
            return _some(self._own, self._followers, wait)
        except BaseException:
            self.close()
            raise

    def follow(self, apply: Callable[[list[ExitSpec]], object]) -> None:
        """Have ``apply`` called with all exits whenever a list has changed."""
        self._apply = apply

    def replace(
        self, exits: Sequence[ExitSpec], sources: Sequence[Source], wait: float = FIRST_WAIT
    ) -> list[ExitSpec]:
        """Take other exits and sources, and look at once at those that stay.

        Returns all exits, which are the caller's to apply.  Raises ConfigError if there would be
        none; then it follows what it did before.
        """
        before = self._followers
        followers = []
        for spec in sources:
            known = next((each for each in before if each.spec == spec), None)
            followers.append(known or _follower(spec, self._changed))
        for follower in followers:
            follower.start()
        try:
            found = _some(exits, followers, wait)
        except BaseException:
            _close(each for each in followers if each not in before)
            raise
        _close(each for each in before if each not in followers)
        self._own, self._followers = tuple(exits), followers
        return found

    def close(self) -> None:
        """Follow no longer."""
        _close(self._followers)

    def _changed(self, follower: _Follower) -> None:
        # one that is about to come, or gone, says nothing
        if self._apply is not None and follower in self._followers:
            self._apply(_all(self._own, self._followers))


def read_source(spec: Source) -> ExitList | None:
    """What a source says, without fetching anything; None for a URL of which nothing is kept.

    Raises ConfigError, with the source's name.
    """
    try:
        if isinstance(spec, FileSource):
            return parse_list(_read(spec.file, LARGEST)[1], spec.manner)
        kept = Keep(spec.cache, spec.url, LARGEST).read()
        return None if kept is None else parse_list(kept.raw, spec.manner)
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error}") from None


def _all(own: Iterable[ExitSpec], followers: Iterable[_Follower]) -> list[ExitSpec]:
    return list(dict.fromkeys(chain(own, *(follower.exits for follower in followers))))


def _some(own: Iterable[ExitSpec], followers: Sequence[_Follower], wait: float) -> list[ExitSpec]:
    """All exits, once those of the lists are known or ``wait`` seconds are over.

    Raises ConfigError if there are none.
    """
    gevent.wait([follower.ready for follower in followers], timeout=wait)
    found = _all(own, followers)
    if not found:
        troubles = (f"{each.spec}: {each.trouble or 'no answer yet'}" for each in followers)
        raise ConfigError(f"no exits: {'; '.join(troubles)}")
    return found


def _close(followers: Iterable[_Follower]) -> None:
    for follower in followers:
        follower.close()


# --- one source -----------------------------------------------------------------------------


def _follower(spec: Source, changed: Callable[[_Follower], None]) -> _Follower:
    if isinstance(spec, FileSource):
        return _FileFollower(spec, changed)
    return _UrlFollower(spec, changed)


class _Follower:
    """One source, followed by a greenlet that calls ``changed`` when its list is another."""

    def __init__(self, spec: Source, changed: Callable[[_Follower], None]) -> None:
        self.spec = spec
        self.exits: tuple[ExitSpec, ...] = ()
        #: why the list of before stays; None: all is well
        self.trouble: str | None = None
        #: whether there is no use in waiting for it
        self.ready = Event()
        self._changed = changed
        self._digest = b""
        self._wake = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Look from now on; if it does that already, look at once."""
        self._wake.set()
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)
        else:
            self.ready.clear()

    def close(self) -> None:
        """Look no longer."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        try:
            while True:
                self._wake.wait(LOOK_EVERY)
                self._wake.clear()
                self._look()
        finally:
            self._ended()

    def _ended(self) -> None:
        """Let go whatever looking takes."""

    def _look(self) -> None:
        """Take the list if it is another one, and set :attr:`ready`."""
        raise NotImplementedError

    def _take(self, raw: bytes) -> None:
        """Have these exits from now on.  Raises ConfigError if they are none."""
        digest = blake2b(raw).digest()
        if digest != self._digest:
            found = _in_thread(parse_list, raw, self.spec.manner)
            self._digest, self.exits = digest, found.exits
            self._tell(found)
            self._changed(self)
        self._well()

    def _tell(self, found: ExitList) -> None:
        for place, reason in found.left_out[:_MOST_TOLD]:
            log.warning("%s: %s left out: %s", self.spec, place, reason)
        more = len(found.left_out) - _MOST_TOLD
        if more > 0:
            log.warning("%s: %d more entries left out", self.spec, more)
        log.info("%s: %d exits, %d repeated", self.spec, len(found.exits), found.repeated)

    def _well(self) -> None:
        if self.trouble is not None:
            log.info("%s: can be read again", self.spec)
        self.trouble = None

    def _fail(self, why: str) -> None:
        if why != self.trouble:
            stay = f" (the {len(self.exits)} exits of before stay)" if self.exits else ""
            log.error("%s: %s%s", self.spec, why, stay)
        self.trouble = why


class _FileFollower(_Follower):
    """A file, read again when it changes."""

    def __init__(self, spec: FileSource, changed: Callable[[_Follower], None]) -> None:
        super().__init__(spec, changed)
        self._file = spec.file
        self._told = False
        self._seen: State = None
        self._taken: State = None

    def start(self) -> None:
        """See above; at once means that whoever says so has written all of it."""
        super().start()
        self._told = True

    def _look(self) -> None:
        now = state_of(self._file)
        steady, self._seen = now == self._seen, now
        if self._told or (steady and now != self._taken):
            self._told, self._taken = False, now
            try:
                self._taken, raw = _in_thread(_read, self._file, LARGEST)
                self._take(raw)
            except ConfigError as error:
                self._fail(str(error))
        self.ready.set()


class _UrlFollower(_Follower):
    """A URL, fetched at its interval by one of the processes that follow it."""

    def __init__(self, spec: UrlSource, changed: Callable[[_Follower], None]) -> None:
        super().__init__(spec, changed)
        self._source = spec
        self._keep = Keep(spec.cache, spec.url, LARGEST)
        self._kept_state: State = None
        #: why nothing is kept; None: it is
        self._not_kept: str | None = None
        self._validators: Mapping[str, str] = {}
        #: monotonic seconds; when to fetch
        self._due = 0.0
        self._failures = 0
        self._random = Random()  # noqa: S311 - nobody gains by foreseeing it

    def start(self) -> None:
        """See above; at once is not only to look at what is kept."""
        super().start()
        self._due = 0.0

    def _ended(self) -> None:
        self._keep.close()

    def _look(self) -> None:
        leads = self._leads()  # first, so that whatever the last one has written is seen then
        self._look_at_kept()
        if self.exits:
            self.ready.set()
        if leads and time.monotonic() >= self._due:
            self._fetch()
            self.ready.set()

    def _leads(self) -> bool:
        try:
            return self._keep.lead()
        except OSError as error:
            self._tell_not_kept(error)
            return True

    def _look_at_kept(self) -> None:
        now = self._keep.state()
        if now == self._kept_state:
            return
        self._kept_state = now
        kept = _in_thread(self._keep.read)
        if kept is None:
            return
        try:
            self._take(kept.raw)
        except ConfigError:
            return  # it was kept by a version that understood it
        self._validators = kept.validators
        self._due = time.monotonic() + self._source.interval - kept.age

    def _fetch(self) -> None:
        try:
            page = self._ask()
            if page.status == HTTPStatus.NOT_MODIFIED and self._validators:
                self._well()
                self._remember(self._keep.touch)
            else:
                raw = _content(page)
                self._take(raw)
                found = {name: page.field(name) for name in _VALIDATORS}
                self._validators = {name: value for name, value in found.items() if value}
                self._remember(lambda: self._keep.write(raw, self._validators))
        except (ConfigError, FetchFailed) as error:
            # a jitter, or all whom a provider's pause has sent away would come back at once
            pause = FIRST_RETRY * 2**self._failures * self._random.uniform(0.75, 1.25)
            self._failures = min(self._failures + 1, 16)
            self._due = time.monotonic() + min(self._source.interval, pause)
            self._fail(str(error))
        else:
            self._failures = 0
            self._due = time.monotonic() + self._source.interval

    def _ask(self) -> Page:
        """Raises ConfigError and FetchFailed."""
        source = self._source
        fields = _fields(source.header_file) if source.header_file is not None else []
        fields += [(_VALIDATORS[name], value) for name, value in self._validators.items()]
        way = make_exit(source.fetch_via or DIRECT, Ground(ALLOW_ALL, pool_size=0))
        try:
            return fetch(source.url, way, fields=fields, largest=LARGEST, timeout=FETCH_TIMEOUT)
        finally:
            way.close()

    def _remember(self, keep: Callable[[], None]) -> None:
        try:
            keep()
        except OSError as error:
            self._tell_not_kept(error)
        else:
            self._not_kept = None
        self._kept_state = self._keep.state()

    def _tell_not_kept(self, error: OSError) -> None:
        why = error.strerror or type(error).__name__
        if why != self._not_kept:
            log.warning(
                "%s: what it says can't be kept in %s: %s (each worker fetches it by itself)",
                self.spec,
                self._source.cache,
                why,
            )
        self._not_kept = why


def _in_thread(call: Callable[_Given, _Made], *given: _Given.args, **named: _Given.kwargs) -> _Made:
    """What ``call`` makes of it, or raises: a long list takes a second, in which others want to
    be served."""

    def made() -> _Made | ConfigError:
        try:
            return call(*given, **named)
        except ConfigError as error:  # which a thread of gevent's would tell the whole world
            return error

    found: _Made | ConfigError = gevent.get_hub().threadpool.apply(made)
    if isinstance(found, ConfigError):
        raise found
    return found


def _content(page: Page) -> bytes:
    if page.status != HTTPStatus.OK:
        raise FetchFailed(f"answers with status {page.status}")
    return page.body


def _read(path: Path, largest: int) -> tuple[State, bytes]:
    """What a file holds, and its state before that was read.  Raises ConfigError."""
    try:
        # a pipe would be waited for
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError("not a file")
            raw = file.read(largest + 1)
    except OSError as error:
        raise ConfigError(error.strerror or type(error).__name__) from None
    if len(raw) > largest:
        raise ConfigError(f"larger than {format_size(largest)}")
    return state(found), raw


def _fields(path: Path) -> list[tuple[str, str]]:
    """Fields for a request, from a file with one ``Name: value`` a line.  Raises ConfigError."""
    try:
        lines = _read(path, _LARGEST_HEADER_FILE)[1].decode("ascii").splitlines()
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
    return found
