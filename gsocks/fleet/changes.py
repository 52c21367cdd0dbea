"""What the admin API of one gateway has changed, at all: exits, users and quotas.

It holds secrets, so that each change is sealed by the key that the gateways share, with the time at
which it was made: an older one than is known does not count, even if it is written anew.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import gevent
import msgspec
from msgspec import Struct

from gsocks.crypto import RecordBox
from gsocks.errors import Tampered
from gsocks.fleet.kinds import MAX_KNOWN
from gsocks.fleet.log import log
from gsocks.fleet.messages import MAX_VALUE
from gsocks.lru import LruCache
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry

#: seconds for which a change is remembered in the store
LASTS = 400 * 86400.0


class RunTimeChanges(Protocol):
    """What has been changed at run time, by keys."""

    #: called with the keys of what was changed here
    on_change: Callable[[Collection[str]], object]

    def change_keys(self) -> Iterable[str]:
        """The keys of all changes."""

    def change_of(self, key: str) -> str | None:
        """A change; None: it was taken back."""

    def take_shared(self, changes: Mapping[str, str | None]) -> None:
        """Take what other gateways have changed.  May block the greenlet."""


class _Sealed(Struct, omit_defaults=True):
    #: seconds since the epoch, by the store's clock
    made: float
    change: str | None = None


class SharedChanges:
    """A kind of records (:class:`gsocks.fleet.kinds.Kind`)."""

    kind = "change"

    def __init__(self, changes: RunTimeChanges, box: RecordBox) -> None:
        self._changes = changes
        self._box = box
        self.changed: set[str] = set()
        #: when what is known was made
        self._made: LruCache[str, float] = LruCache(MAX_KNOWN)
        #: as it was told or heard, since each sealing is another text
        self._texts: LruCache[str, str] = LruCache(MAX_KNOWN)
        self._heard: dict[str, str | None] = {}
        self._taking = False
        #: whether something was sealed by another key
        self._is_foreign = False
        changes.on_change = self._on_change

    def _on_change(self, keys: Collection[str]) -> None:
        for key in keys:
            self._texts.discard(key)
        self.changed.update(keys)

    def keys(self) -> Iterable[str]:
        """See :class:`gsocks.fleet.kinds.Kind`, as for the methods below."""
        return self._changes.change_keys()

    def tell_missing(self) -> None:
        """Tell of changes of an earlier time of which the store knew nothing at the start."""
        self.changed.update(key for key in self.keys() if key not in self._made)

    def entry(self, key: str, clock: Clock) -> Entry | None:
        text = self._texts.peek(key)
        if text is None:
            # no earlier than what it takes the place of, however the clocks go
            made = max(clock.wall, (self._made.peek(key) or 0.0) + 0.001)
            sealed = msgspec.json.encode(_Sealed(made, self._changes.change_of(key)))
            text = b64encode(self._box.seal(sealed, key)).decode()
            if len(text) > MAX_VALUE:
                log.warning("%s: too long to be told to the other gateways", key)
            self._made[key], self._texts[key] = made, text
        return Entry(key, text, clock.wall, clock.wall + LASTS)

    def restore(self, entry: Entry, clock: Clock) -> None:  # noqa: ARG002
        try:
            opened = self._box.open(b64decode(entry.value, validate=True), entry.key)
        except (binascii.Error, Tampered):
            if not self._is_foreign:
                log.warning("what the admin API of a gateway changes is sealed by another key")
            self._is_foreign = True
            raise ValueError("it was not sealed by the key of this gateway") from None
        told = msgspec.json.decode(opened, type=_Sealed)
        if told.made <= (self._made.peek(entry.key) or 0.0):
            raise ValueError("it is older than what is known")
        self._made[entry.key], self._texts[entry.key] = told.made, entry.value
        self._heard[entry.key] = told.change
        if not self._taking:
            self._taking = True
            gevent.spawn(self._take)

    def forget_told(self) -> None:
        """All texts stay as they are."""

    def _take(self) -> None:
        """Take all that was heard at once: each time a file is written."""
        try:
            while self._heard:
                heard, self._heard = self._heard, {}
                self._changes.take_shared(heard)
        finally:
            self._taking = False
