"""Quotas that hold over all gateways: connections of users, and bytes of exits.

A process leases a share of a user's connections in advance, and lets so many in without asking.
Only a user who needs more than the share waits for an exchange with the store, a fraction of a
second; so no more are let in than the limit, over all processes.

Bytes of exits are added up in the store, and each process goes by the sum.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import gevent
import msgspec

from gsocks.errors import LimitReached
from gsocks.fleet import scripts
from gsocks.fleet.members import Members
from gsocks.fleet.parts import Operation, SilentPart
from gsocks.fleet.store import Command
from gsocks.fleet.sync import FleetSync
from gsocks.lru import LruCache
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.state_clock import Clock

#: users whose shares are remembered
MAX_USERS = 100_000

#: sums of exits, by periods, that are remembered, and that are asked about in one exchange besides
#: those that have grown
MAX_SUMS = 200_000
MAX_DUE = 2000

#: shares and sums that are told in one message
_MAX_TOLD = 1000

#: an exit and a day or a month
_Period: TypeAlias = tuple[str, str]


class _User:
    """What this process has of a user's connections."""

    __slots__ = (
        "answered",
        "asked",
        "asked_at",
        "elsewhere",
        "is_short",
        "limit",
        "open",
        "share",
        "waiting",
    )

    def __init__(self) -> None:
        #: connections that may be open here, and that are
        self.share = self.open = 0
        #: requests that wait for more
        self.waiting = 0
        #: shares of other processes, as far as known
        self.elsewhere = 0
        self.limit = 0
        #: how often the store was asked, and which of these questions it has answered last
        self.asked = self.answered = 0
        #: whether less was granted then than was wanted
        self.is_short = False
        self.asked_at = float("-inf")


class UserShares(SilentPart):
    """The users of ``section``.  ``is_closed``: without the store none gets more than its share."""

    #: seconds between two renewals, and after which a share that is not renewed is over
    interval = 2.0
    expiry = 6.0
    #: seconds that a request waits for a larger share, and until it asks again
    patience = 0.5
    pause = 0.1

    def __init__(
        self, section: str, sync: FleetSync, key: Callable[[str], str], *, is_closed: bool
    ) -> None:
        self.name = f"users:{section}"
        self._sync = sync
        self._members: Members = sync.members
        self._key = key
        self._is_closed = is_closed
        self._users: LruCache[str, _User] = LruCache(MAX_USERS)
        self._dirty: dict[str, None] = {}
        self._news: dict[str, int] = {}
        self._settling = sync.settling
        #: whether all shares have to be told to the store, which may not know them
        self._has_to_tell = False

    def __repr__(self) -> str:
        return f"<UserShares {self.name} users={len(self._users)}>"

    def acquire(self, user: str, limit: int) -> None:
        """One connection more, of ``limit`` over all gateways.  Raises LimitReached.

        Blocks the calling greenlet if the share is used up, for :attr:`patience` at most.  In the
        hub that is LimitReached at once.
        """
        of = self._of(user, limit)
        if of.open < of.share or self._may_begin(of):
            of.open += 1
        else:
            self._wait(user, of)
        self._dirty[user] = None

    def release(self, user: str) -> None:
        """One less."""
        of = self._users.peek(user)
        if of is not None and of.open:
            of.open -= 1
            self._dirty[user] = None

    def _of(self, user: str, limit: int) -> _User:
        of = self._users.get(user)
        if of is None:
            of = self._users[user] = _User()
        of.limit = limit
        return of

    def _may_begin(self, of: _User) -> bool:
        """Whether a user of whom nothing was asked yet gets the first connections at once.

        All processes together give a twentieth of what is left, by which the limit may be passed
        if others lease all of it at the same moment.
        """
        if of.share or not self._sync.is_prompt:
            return False
        left = max(0, of.limit - of.elsewhere)
        return of.open < left // (20 * len(self._members))

    def _wait(self, user: str, of: _User) -> None:
        """Count it once the share is large enough."""
        full = LimitReached(f"{user!r} has {of.limit} connections open already")
        before = of.asked
        if self._sync.is_prompt:
            if gevent.getcurrent() is gevent.get_hub():
                raise full
            of.waiting += 1
            try:
                self._ask_until_granted(user, of)
            finally:
                of.waiting -= 1
        if of.open < of.share:
            of.open += 1
        elif self._is_closed or of.open >= of.limit or (of.answered > before and of.is_short):
            raise full
        else:  # alone, or the store is too slow to tell: the limit of one gateway
            of.open += 1

    def _ask_until_granted(self, user: str, of: _User) -> None:
        """Or until the patience is at its end, or the store does not answer."""
        ends = time.monotonic() + self.patience
        while of.open >= of.share:
            now = time.monotonic()
            left = max(ends, self._settling.until + self.patience) - now
            if left <= 0:
                break
            if not self._settling.is_on(now):
                self._dirty[user] = None
                if not self._sync.wait(left) or of.open < of.share:
                    break
            gevent.sleep(self.pause)

    # --- see gsocks.fleet.parts.Part ----------------------------------------------------------

    def operations(self, now: float) -> Iterable[Operation]:
        """Ask for shares that have to change, and renew the others."""
        dirty, self._dirty = self._dirty, {}
        least = now - self.interval
        if self._has_to_tell:
            self._has_to_tell, least = False, float("inf")
        for user, of in list(self._users.items()):
            is_used = of.open or of.share or of.waiting
            if user in dirty or (is_used and of.asked_at <= least):
                of.asked_at = now
                yield self._ask(user, of, now)

    def _ask(self, user: str, of: _User, now: float) -> Operation:
        left = max(0, of.limit - of.share - of.elsewhere)
        ahead = min(max(2, of.open // 4), left // len(self._members)) if of.open else 0
        wanted = of.open + of.waiting + ahead
        if self._settling.is_on(now):
            wanted = min(wanted, of.share)
        # what is given back is not used any more while the answer is on its way
        of.share = min(of.share, max(wanted, of.open))
        lasts = int(self.expiry * 1000)
        command = (
            *("EVAL", scripts.SHARE, 1, self._key(user), self._members.node),
            *(wanted, of.open, of.limit, lasts),
        )
        of.asked += 1
        return Operation(command, partial(self._answered, user, of, of.asked, wanted))

    def _answered(self, user: str, of: _User, question: int, wanted: int, answer: Any) -> None:
        share, elsewhere = answer
        if self._settling.is_on(time.monotonic()):  # the others may not have told of theirs yet
            share = min(share, of.share)
        else:
            of.answered, of.is_short = question, share < wanted
        if of.share != share:
            self._news[user] = share + elsewhere
        of.share, of.elsewhere = max(share, of.open), elsewhere

    def lost(self, now: float) -> None:  # noqa: ARG002
        """What was on its way may not have arrived."""
        self._has_to_tell = True

    def emptied(self, now: float) -> None:  # noqa: ARG002
        """Tell the store of all shares again, before any grows."""
        self._has_to_tell = True

    def is_untold(self) -> bool:
        """See :class:`gsocks.fleet.parts.Part`."""
        return self._has_to_tell

    def told(self, now: float) -> Any:  # noqa: ARG002
        """The sums of all shares of users."""
        users = list(self._news)[:_MAX_TOLD]
        return {user: self._news.pop(user) for user in users} or None

    def heard(self, node: str, told: Any, now: float) -> None:  # noqa: ARG002
        """What another process has found."""
        for user, total in msgspec.convert(told, dict[str, int]).items():
            of = self._users.peek(user)
            if of is None:
                of = self._users[user] = _User()
            of.elsewhere = max(0, total - of.share)

    def farewell(self) -> Iterable[Command]:
        """Give all shares up."""
        for user, of in self._users.items():
            if of.share:
                yield ("HDEL", self._key(user), self._members.node)


class _Sum:
    """What is known of one exit's bytes in one period."""

    __slots__ = ("count", "number", "total")

    def __init__(self) -> None:
        #: what all processes have carried, as the store has told
        self.total = 0
        #: what is on its way to the store, and by which number; 0: nothing is
        self.count = self.number = 0


class ExitBytes(SilentPart):
    """What the exits of ``group`` carry of their budgets, at all gateways.

    What was sent and not answered is sent again as it was, by the same number, so that the store
    counts it once; meanwhile more of it waits in ``budgets.shared``.

    ``is_closed``: while the store is away each process takes for granted that the others carry as
    much as it does itself, so that it uses no more than its part of what was left.
    """

    def __init__(
        self,
        section: str,
        group: ExitGroup,
        members: Members,
        key: Callable[[str], str],
        *,
        is_closed: bool,
    ) -> None:
        self.name = f"bytes:{section}"
        self._group = group
        self._members = members
        self._is_closed = is_closed
        self._key = key
        #: the number that was given last
        self._number = 0
        self._sums: LruCache[_Period, _Sum] = LruCache(MAX_SUMS)
        #: to be asked about, and those that are on their way
        self._due: dict[_Period, None] = {}
        self._sent: dict[_Period, _Sum] = {}
        self._news: dict[_Period, int] = {}
        #: whether all sums were asked for
        self._has_asked = False
        self._shared: Counter[_Period] = Counter()
        group.budgets.shared = self._shared

    def operations(self, now: float) -> Iterable[Operation]:  # noqa: ARG002
        """Add what was carried, and learn the sums."""
        if not self._has_asked:
            self._ask_all()
        for period in [each for each in self._shared if each not in self._sent]:
            self._number += 1
            of = self._sent[period] = self._of(period)
            of.count, of.number = self._shared.pop(period), self._number
        for period in dict.fromkeys([*self._sent, *islice(self._due, MAX_DUE)]):
            yield self._operation(period, self._sent.get(period) or self._of(period))

    def _ask_all(self) -> None:
        wall = time.time()
        for member in self._group.roster:
            if member.spending is not None:
                self._has_asked = True
                self._due.update(
                    ((member.name, period), None) for period, _ in member.spending.periods(wall)
                )

    def _of(self, period: _Period) -> _Sum:
        of = self._sums.get(period)
        if of is None:
            of = self._sums[period] = _Sum()
        return of

    def _operation(self, period: _Period, of: _Sum) -> Operation:
        key = self._key(":".join(period))
        ends = int(self._group.budgets.expires(period[1]))
        command: Command = (
            *("EVAL", scripts.ADD, 1, key, self._members.node),
            *(of.number, of.count, of.total, ends),
        )
        return Operation(command, partial(self._answered, period, of))

    def _answered(self, period: _Period, of: _Sum, total: int) -> None:
        of.count = of.number = 0
        of.total = max(of.total, total)
        self._sent.pop(period, None)
        self._due.pop(period, None)
        self._news[period] = total
        self._group.budgets.total_of_fleet(*period, total, Clock.now())

    def exchanged(self, now: float) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        self._group.budgets.assume(0)

    def lost(self, now: float) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        if self._is_closed:
            self._group.budgets.assume(len(self._members) - 1)

    def emptied(self, now: float) -> None:  # noqa: ARG002
        """Tell the store the sums that are known."""
        wall = time.time()
        self._due.update(
            (period, None)
            for period, of in self._sums.items()
            if of.total and self._group.budgets.expires(period[1]) > wall
        )

    def told(self, now: float) -> Any:  # noqa: ARG002
        """The sums that were learned."""
        keys = list(islice(self._news, _MAX_TOLD))
        return [(*key, self._news.pop(key)) for key in keys] or None

    def heard(self, node: str, told: Any, now: float) -> None:  # noqa: ARG002
        """Another process has added to sums."""
        clock = Clock.now()
        for exit_, period, total in msgspec.convert(told, list[tuple[str, str, int]]):
            of = self._of((exit_, period))
            of.total = max(of.total, total)
            self._group.budgets.total_of_fleet(exit_, period, total, clock)
