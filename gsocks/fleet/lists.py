"""Lists of exits that one gateway has fetched, and all use: deflated, and sealed in the store.

They hold the passwords of exits, so that a key is needed which all gateways have.  Each question
has a connection of its own: lists are read before the process takes part in the fleet, and seldom.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any, TypeVar

import gevent
import msgspec
from msgspec import Struct

from gsocks.config.schema import State
from gsocks.crypto import RecordBox
from gsocks.errors import ConfigError, StoreFailed, Tampered
from gsocks.fleet import scripts
from gsocks.fleet.log import log
from gsocks.fleet.store import ask, key_of
from gsocks.keyfile import read_key
from gsocks.rotation.cache import CachedList
from gsocks.rotation.lists import MAX_SIZE
from gsocks.rotation.watch import ListTurn

#: bytes of a list as it is stored; a larger one is not shared
MAX_SEALED = 8 << 20

#: seconds for which a copy can be used at least, and for which one gateway may fetch
LASTS = 86400.0
FETCHING = 60.0

_Made = TypeVar("_Made")


class _Head(Struct):
    """In the first line, before what is deflated."""

    validators: dict[str, str]
    #: milliseconds after which it expires, as of when it was fetched
    lasts: int


class SharedLists:
    """See :class:`gsocks.rotation.watch.ListSharing`.  Raises ConfigError for a missing key."""

    def __init__(self, settings: State) -> None:
        if settings.shared_key_file is None:
            raise ConfigError("state.shared_key_file: missing")
        self._settings = settings
        self._box = RecordBox(read_key(settings.shared_key_file))
        self._token = token_hex(8)
        #: whether the store could not be asked the last time
        self._is_lost = False

    def begin(self, of: bytes, interval: float, *, forced: bool) -> ListTurn:
        """See :class:`gsocks.rotation.watch.ListSharing`, as for the methods below."""
        name = self._box.name(of)

        def found() -> ListTurn:
            list_, fetching = self._key("list", name), self._key("fetching", name)
            sealed, left = ask(self._settings, [("GET", list_), ("PTTL", list_)])
            copy = None if sealed is None else self._opened(sealed, left, name)
            if copy is not None and copy.age < interval and not forced:
                return ListTurn(copy, may_fetch=False)
            lease = ("EVAL", scripts.LEASE, 1, fetching, self._token, int(FETCHING * 1000))
            (is_mine,) = ask(self._settings, [lease])
            return ListTurn(copy, may_fetch=is_mine == 1)

        return self._try(found, ListTurn())

    def write(self, of: bytes, fetched: CachedList, interval: float) -> None:
        name = self._box.name(of)
        lasts = int(max(LASTS, 4 * interval) * 1000)

        def write() -> None:
            sealed = self._sealed(fetched, lasts, name)
            if len(sealed) > MAX_SEALED:
                log.warning("a list is too long to be shared: each gateway fetches it")
            else:
                ask(self._settings, [("SET", self._key("list", name), sealed, "PX", lasts)])
            self._release(name)

        self._try(write, None)

    def give_up(self, of: bytes) -> None:
        self._try(lambda: self._release(self._box.name(of)), None)

    def _release(self, name: str) -> None:
        ask(
            self._settings, [("EVAL", scripts.RELEASE, 1, self._key("fetching", name), self._token)]
        )

    def _key(self, *parts: str) -> str:
        return key_of(self._settings, *parts)

    def _sealed(self, fetched: CachedList, lasts: int, name: str) -> bytes:
        head = msgspec.json.encode(_Head(_texts(fetched.validators), lasts))
        return self._box.seal(head + b"\n" + zlib.compress(fetched.raw), name)

    def _opened(self, sealed: bytes, left: int, name: str) -> CachedList | None:
        """None: it is none that this version can read."""
        try:
            line, _, deflated = self._box.open(sealed, name).partition(b"\n")
            head = msgspec.json.decode(line, type=_Head)
            inflating = zlib.decompressobj()
            raw = inflating.decompress(deflated, MAX_SIZE)
        except (Tampered, msgspec.MsgspecError, zlib.error) as error:
            log.debug("a shared list can't be read: %s", error)
            return None
        if not inflating.eof:
            return None
        return CachedList(raw, head.validators, max(0.0, (head.lasts - left) / 1000))

    def _try(self, call: Callable[[], _Made], otherwise: _Made) -> _Made:
        """What ``call`` makes in a thread, which may wait for the store."""

        def made() -> tuple[Any, StoreFailed | None]:
            try:
                return call(), None
            except StoreFailed as error:  # gevent prints what is raised in its threads
                return otherwise, error

        found, error = gevent.get_hub().threadpool.apply(made)
        if error is not None and not self._is_lost:
            log.warning("%s (lists are fetched by each gateway meanwhile)", error)
        self._is_lost = error is not None
        result: _Made = found
        return result


def _texts(fields: Mapping[str, str]) -> dict[str, str]:
    return dict(fields)
