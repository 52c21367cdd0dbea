"""The kinds of records: what gateways tell each other of sessions and exits.

Exits are known by their names, and by their labels, which have no secrets; users by their names.
Each kind writes only what the others don't know: its last value is remembered, whether this gateway
has told it or another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from gsocks.lru import LruCache
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.health import HealthState
from gsocks.rotation.host_limits import HostLimits
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.rotation.roster import Changes, Member, Roster
from gsocks.rotation.saved import SavedCoolDowns, SavedDomains, SavedSessions
from gsocks.rotation.session import SessionKey
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry
from gsocks.turns import give_way

#: things of one kind whose last value is remembered, and exits that may come later
MAX_KNOWN = 200_000

#: seconds after which what is known of an exit is forgotten, if no gateway has told it anew
FORGET_EXITS = 30 * 86400.0
FORGET_HEALTH = 86400.0

#: seconds for which an exit whose checks fail at another gateway is left out here
HEARD_DOWN = 600.0

_T = TypeVar("_T")


class Kind(Protocol):
    """Things of one kind."""

    kind: str

    @property
    def changed(self) -> set[Any]:
        """The keys of what may have changed; emptied as it is looked at."""

    def keys(self) -> Iterable[Any]:
        """The keys of all things."""

    def entry(self, key: Any, clock: Clock) -> Entry | None:
        """What to tell of one thing; None: the others know it, or need not."""

    def restore(self, entry: Entry, clock: Clock) -> None:
        """Take what another one has told.  Raises ValueError for what can't be read."""

    def forget_told(self) -> None:
        """The store has lost everything: all has to be told again."""


class Tee(set[_T]):
    """Takes keys for several sets, of several readers; has none itself."""

    def __init__(self, targets: Sequence[set[_T]]) -> None:
        super().__init__()
        self.targets = targets

    def add(self, item: _T, /) -> None:
        """Add a key to all."""
        for each in self.targets:
            each.add(item)


class Touched(set[_T]):
    """Takes keys for several readers at once: adding, on a request's way, costs as much as to one
    set, and the keys are dealt out when a reader looks."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: list[set[_T]] = []

    def read_by(self, reader: set[_T]) -> None:
        """Have ``reader`` get all keys from now on."""
        self._readers.append(reader)

    def deal(self) -> None:
        """Give the readers what they have not got."""
        for each in self._readers if self else ():
            each.update(self)
        self.clear()


def touched_of(roster: Roster) -> Touched[Member]:
    """The exits that were touched, for all that are shared of them; a state file has its own."""
    before = roster.touched
    if isinstance(before, Touched):
        return before
    if isinstance(before, Tee):
        return next(each for each in before.targets if isinstance(each, Touched))
    found = Touched[Member]()
    roster.touched = found if before is None else Tee([before, found])
    return found


def tee(target: set[_T], before: set[_T] | None) -> set[_T]:
    """A set by which ``target`` has the keys too that ``before`` gets."""
    return target if before is None else Tee([target, before])


class SharedSessions(SavedSessions):
    """The sessions that have moved, or must not move; all others are computed anywhere.

    A session is told if another gateway, which has never heard of it, would choose another exit.
    """

    def __init__(self, group: ExitGroup) -> None:
        before = group.sessions.changed
        super().__init__(group)
        self._group = group
        #: sessions that others have been told of
        self._told: LruCache[SessionKey, bool] = LruCache(MAX_KNOWN)
        group.sessions.changed = tee(self.changed, before)
        group.add_service(self)

    def entry(self, key: SessionKey, clock: Clock) -> Entry | None:
        """See :class:`Kind`."""
        state = self._sessions.state_of(key)
        if state is None or not (state.is_bound or state.to_move):
            return None
        selector = self._sessions.selector_of(key)
        is_told = key in self._told or state.generation or state.to_move
        if not is_told and selector is not None:
            computed = self._group.computed(key, selector)
            if computed == state.exit:
                return None
        self._told[key] = True
        return super().entry(key, clock)

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`Kind`."""
        key = msgspec.json.decode(entry.key, type=tuple[str, str])
        # what is only computed here gives way to what was told, whatever the clocks say
        self._restore(entry, clock, always=key not in self._told)
        self._told[key] = True

    def forget_told(self) -> None:
        """See :class:`Kind`."""

    # --- see gsocks.rotation.group.Service ----------------------------------------------------

    def start(self) -> None:
        """Nothing is to be begun."""

    def close(self) -> None:
        """Nor ended."""

    def update(self, changes: Changes) -> None:
        """With other exits, other sessions are computed elsewhere: all are looked at again."""
        if changes.added or changes.removed:
            self.changed.update(self._sessions.keys())


class _OfExits:
    """Something of each exit; of exits that are not there yet, until they come."""

    kind = ""

    def __init__(self, group: ExitGroup) -> None:
        self._group = group
        self._roster = group.roster
        self._changed: set[Member] = set()
        self._touched = touched_of(group.roster)
        self._touched.read_by(self._changed)
        #: the texts by exits
        self._known: LruCache[str, str] = LruCache(MAX_KNOWN)
        self._waiting: LruCache[str, Entry] = LruCache(MAX_KNOWN)
        group.add_service(self)

    @property
    def changed(self) -> set[Member]:
        """See :class:`Kind`."""
        self._touched.deal()
        return self._changed

    def keys(self) -> Iterable[Member]:
        """See :class:`Kind`."""
        return list(self._roster)

    def entry(self, member: Member, clock: Clock) -> Entry | None:
        """See :class:`Kind`."""
        known = self._known.peek(member.name)
        if known is None and self._has_nothing(member, clock):
            return None
        value = self._value(member, clock)
        text = _text(value)
        if text == known:
            return None
        if known is not None and self._is_alike(value, known, clock):
            return None
        self._known[member.name] = text
        return Entry(member.name, text, clock.wall, clock.wall + self._lasts(value, clock))

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`Kind`."""
        member = self._roster.named(entry.key)
        if member is None:
            self._waiting[entry.key] = entry
            return
        if self._take(member, entry.value, clock):
            self._roster.member_changed(member, clock.monotonic)
            # as it is told from here, which may differ by a bound of the settings
            self._known[member.name] = _text(self._value(member, clock))

    def forget_told(self) -> None:
        """See :class:`Kind`."""
        self._known = LruCache(MAX_KNOWN)

    def start(self) -> None:
        """See :class:`gsocks.rotation.group.Service`."""

    def close(self) -> None:
        """See :class:`gsocks.rotation.group.Service`."""

    def update(self, changes: Changes) -> None:
        """Take what is known of the exits that were added."""
        clock = Clock.now()
        for member in changes.removed:
            self._known.discard(member.name)
        for member in changes.added if len(self._waiting) else ():
            entry = self._waiting.peek(member.name)
            if entry is not None:
                self._waiting.discard(member.name)
                self.restore(entry, clock)
            give_way()

    def _value(self, member: Member, clock: Clock) -> Any:
        raise NotImplementedError

    def _has_nothing(self, member: Member, clock: Clock) -> bool:
        """Whether nothing is known of an exit."""
        raise NotImplementedError

    def _is_alike(self, value: Any, known: str, clock: Clock) -> bool:  # noqa: ARG002
        """Whether it differs by nothing but what time has changed."""
        return False

    def _lasts(self, value: Any, clock: Clock) -> float:  # noqa: ARG002
        return FORGET_EXITS

    def _take(self, member: Member, text: str, clock: Clock) -> bool:
        raise NotImplementedError


class _Ban(Struct, omit_defaults=True):
    """The label shows whether the name still means the same exit, here and below."""

    label: str
    #: seconds since the epoch
    banned: int | None = None
    draining: bool = False


class SharedBans(_OfExits):
    """Bans and draining."""

    kind = "ban"

    def _value(self, member: Member, clock: Clock) -> _Ban:
        return _Ban(member.label, _wall(member.banned_until, clock), member.draining)

    def _has_nothing(self, member: Member, clock: Clock) -> bool:
        return not member.draining and member.banned_until <= clock.monotonic

    def _is_alike(self, value: _Ban, known: str, clock: Clock) -> bool:
        before = msgspec.json.decode(known, type=_Ban)
        if before.banned is not None and before.banned <= clock.wall:
            before.banned = None
        return before == value

    def _take(self, member: Member, text: str, clock: Clock) -> bool:
        of = msgspec.json.decode(text, type=_Ban)
        if of.label != member.label:
            return False
        member.banned_until = -math.inf if of.banned is None else clock.to_monotonic(of.banned)
        member.draining = of.draining
        return True


class _Health(Struct, omit_defaults=True):
    label: str
    worked: bool = False
    ejections: int = 0
    probation: bool = False
    down: bool = False
    #: until when, in seconds since the epoch
    ejected: int | None = None


class SharedHealth(_OfExits):
    """Ejections, and what checks and probes have found."""

    kind = "health"

    def _value(self, member: Member, clock: Clock) -> _Health:
        saved, is_down = member.health.saved(clock.monotonic), member.health.is_down
        return _Health(
            member.label,
            saved.has_worked,
            saved.ejections,
            saved.on_probation,
            is_down,
            None if is_down else _wall(saved.ejected_until, clock),
        )

    def _has_nothing(self, member: Member, clock: Clock) -> bool:
        return self._value(member, clock) == _Health(member.label)

    def _is_alike(self, value: _Health, known: str, clock: Clock) -> bool:
        before = msgspec.json.decode(known, type=_Health)
        if before.ejected is not None and before.ejected <= clock.wall:
            before.ejected = None
        return before == value

    def _lasts(self, value: _Health, clock: Clock) -> float:
        return FORGET_HEALTH + max(0.0, (value.ejected or 0) - clock.wall)

    def _take(self, member: Member, text: str, clock: Clock) -> bool:
        of = msgspec.json.decode(text, type=_Health)
        if of.label != member.label:
            return False
        until = -math.inf if of.ejected is None else clock.to_monotonic(of.ejected)
        if of.down:
            until = clock.monotonic + HEARD_DOWN
        state = HealthState(of.worked, 0, of.ejections, of.probation, until)
        member.health.hear(state, clock.monotonic)
        return True


class _Address(Struct, omit_defaults=True):
    label: str
    address: str | None = None
    country: str | None = None


class SharedAddresses(_OfExits):
    """The addresses from which sites see the exits."""

    kind = "address"

    def _value(self, member: Member, clock: Clock) -> _Address:  # noqa: ARG002
        found = member.outbound
        if found is None:
            return _Address(member.label)
        return _Address(member.label, found.address, found.country)

    def _has_nothing(self, member: Member, clock: Clock) -> bool:  # noqa: ARG002
        return member.outbound is None

    def _take(self, member: Member, text: str, clock: Clock) -> bool:
        of = msgspec.json.decode(text, type=_Address)
        if of.label != member.label or of.address is None:
            return False
        found = OutboundAddress(of.address, of.country)
        return self._roster.learn(member, found, clock.monotonic)


class SharedDomains(SavedDomains):
    """What is known of pairs of exit and destination."""

    def __init__(self, group: ExitGroup) -> None:
        before = group.roster.domains.changed
        super().__init__(group)
        self._known: LruCache[str, str] = LruCache(MAX_KNOWN)
        group.roster.domains.changed = tee(self.changed, before)

    def entry(self, key: tuple[str, str], clock: Clock) -> Entry | None:
        """See :class:`Kind`."""
        entry = super().entry(key, clock)
        known = self._known.peek(_text(key))
        if entry is None or entry.value == known or (known is None and entry.value == "{}"):
            return None
        self._known[entry.key] = entry.value
        # of a pair that was forgotten that has to be told, to those too that are away
        return entry._replace(expires=max(entry.expires, clock.wall + 3600.0))

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`Kind`."""
        name, domain = msgspec.json.decode(entry.key, type=tuple[str, str])
        if entry.value == "{}":
            self._domains.unban(name, domain)
        else:
            super().restore(entry, clock)
        now = super().entry((name, domain), clock)
        self._known[entry.key] = entry.value if now is None else now.value

    def forget_told(self) -> None:
        """See :class:`Kind`."""
        self._known = LruCache(MAX_KNOWN)


class SharedCoolDowns(SavedCoolDowns):
    """Which exits must not be used for which hosts for a time."""

    def __init__(self, limits: HostLimits) -> None:
        before = limits.changed
        super().__init__(limits)
        limits.changed = tee(self.changed, before)

    def forget_told(self) -> None:
        """See :class:`Kind`."""


def kinds_of(group: ExitGroup) -> list[Kind]:
    """All kinds of the group of a section."""
    found: list[Kind] = [
        SharedBans(group),
        SharedHealth(group),  # before the sessions that are bound to what has worked
        SharedAddresses(group),
        SharedDomains(group),
        SharedSessions(group),
    ]
    if group.roster.host_limits is not None:
        found.append(SharedCoolDowns(group.roster.host_limits))
    return found


def _wall(until: float, clock: Clock) -> int | None:
    """A moment to come by the wall clock; None: it is over."""
    if until <= clock.monotonic:
        return None
    # rounded, as the clocks drift: what has not changed is told as the same text.  What is for
    # ever is for a year and more
    return round(clock.to_wall(min(until, clock.monotonic + 400 * 86400.0)))


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
