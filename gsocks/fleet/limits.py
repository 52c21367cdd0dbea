"""The limits of which each process has a share: of exits, of pairs of exit and host, of users."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from gsocks.fleet.kinds import touched_of
from gsocks.fleet.members import Members
from gsocks.fleet.shares import MAX_KEYS, Use, slots, unasked
from gsocks.inbound.quota import UserQuota
from gsocks.lru import LruCache
from gsocks.net.bandwidth import Bucket
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.host_limits import HostLimits
from gsocks.rotation.host_limits import Use as UseOfPair
from gsocks.rotation.member import Member
from gsocks.rotation.part import WHOLE, WINDOW, Part
from gsocks.rotation.roster import Changes
from gsocks.turns import give_way

#: while so many exits have a limit, each process has a share of each; of more, of those in use
MANY = 2000

#: a part that is as good as none
_NEVER = 1e9


# --- exits --------------------------------------------------------------------------------------


class _OfExits:
    """A limit of each exit of ``group``."""

    interval = 5.0
    expiry = 15.0

    def __init__(self, name: str, group: ExitGroup, members: Members) -> None:
        self.name = name
        self._roster = group.roster
        self._members = members
        self._changed: set[Member] = set()
        self._touched = touched_of(group.roster)
        self._touched.read_by(self._changed)
        #: exits that have the limit
        self._limited: set[str] = set()
        #: what an exit may use that has no share: ``unasked``, all (None), or nothing
        self._first: str | None = "unasked"
        group.add_service(self)
        self._changed.update(self._roster)
        self._begin(self._roster)

    # --- see gsocks.rotation.group.Service ----------------------------------------------------

    def start(self) -> None:
        """See :class:`gsocks.rotation.group.Service`, as for the next two."""

    def close(self) -> None: ...

    def update(self, changes: Changes) -> None:
        for member in changes.removed:
            self._limited.discard(member.name)
        self._begin(changes.added)
        self._changed.update(changes.added)

    # --- see gsocks.fleet.shares.Limited ------------------------------------------------------

    def changed(self) -> Iterable[str]:
        """See :class:`gsocks.fleet.shares.Limited`, as for the methods below."""
        self._touched.deal()
        changed = list(self._changed)
        self._changed.clear()
        return [member.name for member in changed if self._limit(member) is not None]

    def use(self, key: str, now: float) -> Use | None:
        member = self._roster.named(key)
        limit = None if member is None else self._limit(member)
        if member is None or limit is None:
            self._limited.discard(key)
            return None
        self._limited.add(key)
        is_many = len(self._limited) > MANY
        least = 0 if is_many else unasked(limit, len(self._members))
        return slots(limit, self._used(member, now), least=least)

    def allow(self, key: str, share: int) -> None:
        member = self._roster.named(key)
        if member is not None:
            self._take(member, share)

    def forget(self, key: str, elsewhere: int) -> None:  # noqa: ARG002
        member = self._roster.named(key)
        if member is not None:
            self._begin([member])

    def alone(self, *, is_closed: bool) -> None:
        self._first = "nothing" if is_closed else None
        if not is_closed:
            self._begin(self._roster)

    def together(self) -> None:
        self._first = "unasked"
        self._begin(self._roster)

    def _begin(self, members: Iterable[Member]) -> None:
        """Have exits go by what they may use without a share."""
        for member in list(members):
            limit = self._limit(member)
            if limit is not None:
                own = unasked(limit, len(self._members)) if self._first == "unasked" else 0
                self._take(member, None if self._first is None else own)
            give_way()

    def _take(self, member: Member, share: int | None) -> None:
        part = self._with(member.part, share)
        if part != member.part:
            member.part = part
            self._roster.member_changed(member, time.monotonic())

    def _limit(self, member: Member) -> int | None:
        raise NotImplementedError

    def _used(self, member: Member, now: float) -> int:
        raise NotImplementedError

    def _with(self, part: Part, share: int | None) -> Part:
        raise NotImplementedError


class ExitRequests(_OfExits):
    """``requests_per_minute`` of exits: each request is in use for a minute."""

    interval = 20.0
    expiry = WINDOW + 5.0

    def _limit(self, member: Member) -> int | None:
        return None if member.recent is None else member.recent.maxlen

    def _used(self, member: Member, now: float) -> int:
        recent = member.recent
        if recent is None:
            return 0
        while recent and recent[0] + WINDOW <= now:
            recent.popleft()
        return len(recent)

    def _with(self, part: Part, share: int | None) -> Part:
        return part._replace(requests=share)


class ExitConnections(_OfExits):
    """``max_connections`` of exits."""

    def _limit(self, member: Member) -> int | None:
        return member.max_connections

    def _used(self, member: Member, now: float) -> int:  # noqa: ARG002
        return member.open

    def _with(self, part: Part, share: int | None) -> Part:
        return part._replace(connections=share)


# --- pairs of exit and host ---------------------------------------------------------------------


class PairUses:
    """The pairs that were used, for each of the limits that ``limits`` has."""

    def __init__(self, limits: HostLimits, members: Members) -> None:
        self.limits = limits
        self.members = members
        self._waiting: dict[str, set[tuple[str, str]]] = {}
        self.kinds: list[_OfPairs] = []
        limits.used = set()
        limits.first_part = self.first_part

    def first_part(self, exit_: str, host: str) -> Part:
        """What a pair may use that is new here."""
        part, key = WHOLE, _key(exit_, host)
        for kind in self.kinds:
            part = kind.with_share(part, kind.first(key))
        return part

    def changed(self, kind: str) -> set[tuple[str, str]]:
        """The pairs that were used since this was asked last for one kind of limit."""
        used, self.limits.used = self.limits.used or set(), set()
        for each in self.kinds:
            self._waiting.setdefault(each.name, set()).update(used)
        return self._waiting.pop(kind, set())


class _OfPairs:
    """A limit of each pair.  Of a pair without a share it is known what others have."""

    interval = 2.0
    expiry = 6.0

    def __init__(self, name: str, pairs: PairUses) -> None:
        self.name = name
        self._pairs = pairs
        self._elsewhere: LruCache[str, int] = LruCache(MAX_KEYS)
        #: whether the limits alone count, or nothing is allowed that has no share
        self._is_open = self._is_closed = False
        pairs.kinds.append(self)

    def changed(self) -> Iterable[str]:
        """See :class:`gsocks.fleet.shares.Limited`, as for the methods below."""
        return [_key(*pair) for pair in self._pairs.changed(self.name)]

    def use(self, key: str, now: float) -> Use | None:
        use = self._pairs.limits.use(*_pair(key), now)
        return None if use is None else self._use(use, now)

    def allow(self, key: str, share: int) -> None:
        self._elsewhere.discard(key)
        self._take(key, share)

    def forget(self, key: str, elsewhere: int) -> None:
        self._elsewhere[key] = elsewhere
        self._take(key, self.first(key))

    def alone(self, *, is_closed: bool) -> None:
        self._is_open, self._is_closed = not is_closed, is_closed
        if not is_closed:
            self._take_all(None)

    def together(self) -> None:
        self._is_open = self._is_closed = False
        for exit_, host in self._pairs.limits.keys():  # noqa: SIM118 - not a mapping
            key = _key(exit_, host)
            self._take(key, self.first(key))
            give_way()

    def first(self, key: str) -> int | None:
        """What a pair may use that has no share; None: all."""
        if self._is_open:
            return None
        return 0 if self._is_closed else self._unasked(self._elsewhere.peek(key) or 0)

    def _take_all(self, share: int | None) -> None:
        for exit_, host in self._pairs.limits.keys():  # noqa: SIM118 - not a mapping
            self._take(_key(exit_, host), share)
            give_way()

    def _take(self, key: str, share: int | None) -> None:
        limits, (exit_, host) = self._pairs.limits, _pair(key)
        part = limits.part_of(exit_, host)
        if part is not None:
            limits.allow(exit_, host, self.with_share(part, share), time.monotonic())

    @property
    def limit(self) -> int:
        """Of a pair."""
        raise NotImplementedError

    def _unasked(self, elsewhere: int) -> int | None:
        own = unasked(self.limit, len(self._pairs.members))
        return max(0, min(own, self.limit - elsewhere))

    def _use(self, use: UseOfPair, now: float) -> Use | None:
        raise NotImplementedError

    def with_share(self, part: Part, share: int | None) -> Part:
        """``part`` with another share of this limit."""
        raise NotImplementedError


class PairRequests(_OfPairs):
    """``per_host.requests_per_minute``."""

    interval = 20.0
    expiry = WINDOW + 5.0

    @property
    def limit(self) -> int:
        """See :class:`_OfPairs`."""
        return self._pairs.limits.settings.requests_per_minute or 1

    def _use(self, use: UseOfPair, now: float) -> Use | None:  # noqa: ARG002
        return slots(self.limit, use.requests, missed=use.missed)

    def with_share(self, part: Part, share: int | None) -> Part:
        """See :class:`_OfPairs`."""
        return part._replace(requests=share)


class PairConnections(_OfPairs):
    """``per_host.connections``."""

    @property
    def limit(self) -> int:
        """See :class:`_OfPairs`."""
        return self._pairs.limits.settings.connections or 1

    def _use(self, use: UseOfPair, now: float) -> Use | None:  # noqa: ARG002
        return slots(self.limit, use.open, missed=use.missed)

    def with_share(self, part: Part, share: int | None) -> Part:
        """See :class:`_OfPairs`."""
        return part._replace(connections=share)


class PairIntervals(_OfPairs):
    """``per_host.min_interval``: a rate, in requests in a million seconds, that is divided."""

    _SECONDS = 1e6

    @property
    def limit(self) -> int:
        """See :class:`_OfPairs`."""
        return max(1, int(self._SECONDS / (self._pairs.limits.settings.min_interval or 1.0)))

    def _unasked(self, elsewhere: int) -> int | None:
        return None if not elsewhere else max(0, self.limit - elsewhere)

    def _use(self, use: UseOfPair, now: float) -> Use | None:
        longest = max(WINDOW, 4 * self._SECONDS / self.limit)
        ago = now - use.began
        if ago > longest and not use.missed:
            return None
        rate = self._SECONDS / max(use.pace, ago)
        wanted = self.limit if use.pace > longest else int(rate * (2.0 if use.missed else 1.25)) + 1
        wanted = min(self.limit, wanted)
        return Use(self.limit, 0, wanted, wanted, wanted)

    def with_share(self, part: Part, share: int | None) -> Part:
        """See :class:`_OfPairs`."""
        if share is None:
            return part._replace(interval=None)
        return part._replace(interval=self._SECONDS / share if share else _NEVER)


def pair_limits(section: str, limits: HostLimits, members: Members) -> Iterator[_OfPairs]:
    """Those of the limits for hosts that the settings have."""
    settings, pairs = limits.settings, PairUses(limits, members)
    if settings.requests_per_minute is not None:
        yield PairRequests(f"hosts:requests:{section}", pairs)
    if settings.connections is not None:
        yield PairConnections(f"hosts:connections:{section}", pairs)
    if settings.min_interval is not None:
        yield PairIntervals(f"hosts:interval:{section}", pairs)


def _key(exit_: str, host: str) -> str:
    return f"{exit_} {host}"


def _pair(key: str) -> tuple[str, str]:
    exit_, _, host = key.partition(" ")
    return exit_, host


# --- the bandwidth of users ---------------------------------------------------------------------


class UserBandwidth:
    """``bandwidth_per_user``: the rates of the buckets of ``quota``, of each direction."""

    interval = 2.0
    expiry = 6.0
    #: seconds between two looks at how much the users transfer, and after which one that transfers
    #: nothing has no share any more
    look = 0.5
    idle = 6.0

    #: bytes a second that a user has at least at each process, so that nothing stands still
    least = 1024

    def __init__(self, section: str, quota: UserQuota, members: Members) -> None:
        self.name = f"bandwidth:{section}"
        self._quota = quota
        self._members = members
        self._is_open = False
        self._looked_at = float("-inf")
        #: bytes until the last look, bytes a second since the one before, and when there were some
        self._seen: LruCache[str, tuple[int, float, float]] = LruCache(2 * quota.MAX_USERS)
        quota.rates = self

    def first(self, rate: float) -> float:
        """See :class:`gsocks.inbound.quota.Rates`: an even division."""
        return rate if self._is_open else max(rate / len(self._members), self.least)

    def changed(self) -> Iterable[str]:
        """See :class:`gsocks.fleet.shares.Limited`, as for the methods below."""
        now = self._quota.clock()
        passed = now - self._looked_at
        if self._quota.user_rate is None or passed < self.look:
            return []
        self._looked_at = now
        found = []
        for key, bucket in self._all():
            before, _, at = self._seen.peek(key) or (0, 0.0, float("-inf"))
            more = bucket.carried - before
            if more < 0:  # the limits were changed: it is another bucket
                more = bucket.carried
            if more:
                at = now
                found.append(key)
            self._seen[key] = (bucket.carried, more / passed, at)  # 0 a second at the first look
            give_way()
        return found

    def use(self, key: str, now: float) -> Use | None:
        limit, bucket, now = self._quota.user_rate, self._bucket(key), self._quota.clock()
        _, rate, at = self._seen.peek(key) or (0, 0.0, float("-inf"))
        if limit is None or bucket is None or now - at > self.idle:
            return None
        # what is reserved and not used the others lack
        even, share = limit / len(self._members), 1.1 * rate
        if bucket.owes:
            share = max(2 * bucket.rate, even)
        elif not rate:  # it has just come
            share = even
        most = int(limit)
        wanted = min(most, max(int(share), unasked(most, len(self._members))))
        return Use(most, 0, wanted, int(wanted / 1.05), int(wanted * 1.05))

    def allow(self, key: str, share: int) -> None:
        limit = self._quota.user_rate
        if limit is not None:
            floor = max(limit / (20 * len(self._members)), self.least)
            self._change(key, max(share, floor))

    def forget(self, key: str, elsewhere: int) -> None:  # noqa: ARG002
        limit = self._quota.user_rate
        if limit is not None:
            self._change(key, self.first(limit))

    def alone(self, *, is_closed: bool) -> None:
        self._is_open = not is_closed
        if not is_closed:
            self._change_all()

    def together(self) -> None:
        self._is_open = False
        self._change_all()

    def _change_all(self) -> None:
        for key, _ in self._all():
            self.forget(key, 0)
            give_way()

    def _change(self, key: str, rate: float) -> None:
        bucket = self._bucket(key)
        if bucket is not None and bucket.rate != rate:
            bucket.change(rate)

    def _all(self) -> Iterator[tuple[str, Bucket]]:
        for user, buckets in self._quota.buckets():
            for direction, bucket in zip(_DIRECTIONS, buckets, strict=True):
                yield f"{direction} {user}", bucket

    def _bucket(self, key: str) -> Bucket | None:
        direction, _, user = key.partition(" ")
        buckets: Sequence[Bucket] = self._quota.buckets_of(user)
        return buckets[_DIRECTIONS.index(direction)] if buckets else None


_DIRECTIONS = ("down", "up")
