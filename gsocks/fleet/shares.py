"""Limits that hold over all gateways: each process has a share of each, by its recent demand.

What a limit counts is in the tables of this process, which go by the share alone: no request waits
for the store.  Behind the requests the process tells the store how much it uses and how much it
wants, and is granted what the others leave, and of what several want a fair part (max-min
fairness).  It never has to give up what is in use: an open connection, or a request of the last
minute of ``requests_per_minute``.  So the shares of all processes together are never more than the
limit, but for what they use by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

import msgspec

from gsocks.fleet import scripts
from gsocks.fleet.members import Members
from gsocks.fleet.parts import Operation, SilentPart
from gsocks.fleet.settling import Settling
from gsocks.fleet.store import Command
from gsocks.lru import LruCache

#: limits of one kind whose shares are remembered
MAX_KEYS = 100_000

#: limits of one kind that are asked about in one exchange; the others have to wait for the next one
MAX_ASKED = 2000

#: sums that are told in one message
_MAX_TOLD = 1000

#: all processes together may use so large a part of a limit, its reciprocal, without having asked
_UNASKED = 20


class Use(NamedTuple):
    """What this process does with one limit."""

    limit: int
    #: what it can't give up now
    used: int
    #: the share that it is to have, and the smallest and the largest one that will do as well
    wanted: int
    enough: int
    most: int


class Limited(Protocol):
    """Limits of one kind, each with a key."""

    name: str
    #: seconds between two renewals of a share, and after which one that is not renewed is over
    interval: float
    expiry: float

    def changed(self) -> Iterable[str]:
        """The limits of which more or less is used than when this was asked last."""

    def use(self, key: str, now: float) -> Use | None:
        """What is used of one limit, and wanted; None: it is not used, or there is none."""

    def allow(self, key: str, share: int) -> None:
        """Have the tables go by this share."""

    def forget(self, key: str, elsewhere: int) -> None:
        """There is no share any more; other processes have so much."""

    def alone(self, *, is_closed: bool) -> None:
        """The store is away.  ``is_closed``: what has no share is not used; else all that the
        limits themselves allow is."""

    def together(self) -> None:
        """The store is back; :meth:`allow` follows for all limits that have shares."""


def unasked(limit: int, processes: int) -> int:
    """What one of so many processes may use of a limit without having asked: a twentieth of it,
    divided by them, and one at least."""
    return max(1, limit // (_UNASKED * processes))


def slots(limit: int, used: int, *, missed: bool = False, least: int = 0) -> Use | None:
    """The use of a limit of things that are in use for a time, of which some more are leased.

    ``missed``: it was looked at in vain; ``least``: the smallest share, in use or not.
    """
    if not used and not missed:
        least = min(limit, least)
        return Use(limit, 0, least, least, least) if least else None
    more = max(2, used // 4)
    wanted, enough = max(used + more, least), max(used + more // 2, least)
    return Use(limit, used, min(limit, wanted), min(limit, enough), used + 2 * more)


class _Key:
    """What is known of one limit."""

    __slots__ = ("asked_at", "elsewhere", "is_short", "part", "share")

    def __init__(self) -> None:
        #: granted to this process, of which the part may be used from now on; and to all others
        self.share = self.part = self.elsewhere = 0
        #: whether less was granted than was wanted
        self.is_short = False
        self.asked_at = float("-inf")


class LimitShares(SilentPart):
    """The shares of ``limited``; ``key`` makes the name of a key in the store.

    ``is_closed``: while the store is away no more than the share is used.
    """

    #: seconds until more is asked for again of a limit of which there was no more
    patience = 0.5

    def __init__(
        self,
        limited: Limited,
        members: Members,
        settling: Settling,
        key: Callable[[str], str],
        *,
        is_closed: bool,
    ) -> None:
        self.name = f"shares:{limited.name}"
        self._limited = limited
        self._members = members
        self._settling = settling
        self._key = key
        self._is_closed = is_closed
        self._is_alone = False
        #: those that were asked about least recently first
        self._keys: LruCache[str, _Key] = LruCache(MAX_KEYS)
        #: to be asked about at once, and again after a time
        self._due: dict[str, None] = {}
        self._short: dict[str, None] = {}
        self._news: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<LimitShares {self.name} keys={len(self._keys)}>"

    # --- see gsocks.fleet.parts.Part ----------------------------------------------------------

    def operations(self, now: float) -> Iterable[Operation]:
        """Ask for shares that have to change, and renew the others."""
        due, self._due = self._due, {}
        renewed, least = [], now - self._limited.interval
        for key, of in islice(self._keys.items(), MAX_ASKED):
            if of.asked_at > least:
                break
            renewed.append(key)
        asked = 0
        for key in dict.fromkeys(chain(due, renewed, self._limited.changed(), list(self._short))):
            if asked >= MAX_ASKED:
                self._due[key] = None
            elif (operation := self._ask(key, now, is_due=key in due)) is not None:
                asked += 1
                yield operation

    def _ask(self, key: str, now: float, *, is_due: bool) -> Operation | None:
        use, of = self._limited.use(key, now), self._keys.peek(key)
        if use is None:
            self._short.pop(key, None)
            if of is None:
                return None
            self._keys.discard(key)
            self._limited.forget(key, of.elsewhere)
            return Operation(self._command(key, 0, 0, 1), partial(self._given_up, key))
        is_settling = self._settling.is_on(now)
        if of is None:
            if is_settling:  # meanwhile it has what needs no asking
                self._short[key] = None
                return None
            of = _Key()
        elif not is_due and now - of.asked_at < self._limited.interval:
            suits = use.enough <= of.part <= use.most
            if suits or (of.is_short and now - of.asked_at < self.patience):
                return None
        of.asked_at = now
        evicted = self._keys.put(key, of)
        if evicted is not None:
            self._limited.forget(evicted, 0)
        # the others may not have told of theirs yet
        wanted = min(use.wanted, of.part) if is_settling else use.wanted
        command = self._command(key, wanted, use.used, use.limit)
        return Operation(command, partial(self._answered, key, of, use))

    def _command(self, key: str, wanted: int, used: int, limit: int) -> Command:
        lasts = int(self._limited.expiry * 1000)
        node = self._members.node
        return ("EVAL", scripts.PART, 1, self._key(key), node, wanted, used, limit, lasts)

    def _answered(self, key: str, of: _Key, use: Use, answer: Any) -> None:
        share, part, elsewhere, wanted = answer
        is_settling = self._settling.is_on(time.monotonic())
        if is_settling:
            part = min(part, of.part)
        is_short = part < use.wanted
        if not is_settling and (share != of.share or is_short != of.is_short):
            self._news[key] = (share + elsewhere, use.wanted + wanted)
        if is_short:
            self._short[key] = None
        else:
            self._short.pop(key, None)
        of.share, of.part, of.elsewhere, of.is_short = share, part, elsewhere, is_short
        self._limited.allow(key, part)

    def _given_up(self, key: str, answer: Any) -> None:
        _, _, elsewhere, wanted = answer
        self._limited.forget(key, elsewhere)
        self._news[key] = (elsewhere, wanted)

    def exchanged(self, now: float) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`, as for the methods below."""
        if self._is_alone:
            self._is_alone = False
            self._limited.together()
            for key, of in self._keys.items():
                of.asked_at = float("-inf")
                self._limited.allow(key, of.part)

    def lost(self, now: float) -> None:  # noqa: ARG002
        if not self._is_alone:
            self._is_alone = True
            self._limited.alone(is_closed=self._is_closed)

    def emptied(self, now: float) -> None:  # noqa: ARG002
        """Tell the store of all shares again, before any grows; of very many some at a time."""
        for of in self._keys.values():
            of.asked_at = float("-inf")

    def is_untold(self) -> bool:
        oldest = self._keys.oldest()
        return oldest is not None and oldest[1].asked_at == float("-inf")

    def told(self, now: float) -> Any:  # noqa: ARG002
        """The sums of all shares of limits, and of what all processes want."""
        keys = list(islice(self._news, _MAX_TOLD))
        return {key: self._news.pop(key) for key in keys} or None

    def heard(self, node: str, told: Any, now: float) -> None:  # noqa: ARG002
        for key, (total, wanted) in msgspec.convert(told, dict[str, tuple[int, int]]).items():
            of = self._keys.peek(key)
            if of is None:
                if not self._is_alone:
                    self._limited.forget(key, total)
                continue
            of.elsewhere = max(0, total - of.share)
            if of.is_short or wanted > total:
                self._due[key] = None

    def farewell(self) -> Iterable[Command]:
        """Give up what is not in use."""
        for key in list(self._keys):
            use = self._limited.use(key, time.monotonic())
            used = 0 if use is None else use.used
            yield self._command(key, used, used, 0)
