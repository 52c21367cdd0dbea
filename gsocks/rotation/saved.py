"""What of an exit group outlives the process, as records of a state file.

Sessions, exits and pairs of exit and domain are written as JSON, without keys and passwords; the
exits are known by their names and labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from gsocks.rotation.group import ExitGroup
from gsocks.rotation.health import HealthState
from gsocks.rotation.host_limits import HostLimits
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.rotation.roster import Changes, Member
from gsocks.rotation.session import Like, SessionKey, SessionState
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry, Kept, StateSync

#: seconds for which an exit that is gone is remembered: a list may lack it for a time
_FORGET_EXITS = 30 * 86400.0

#: seconds for which pairs of exit and domain are remembered, beyond their ejection or ban
_FORGET_PAIRS = 86400.0

#: seconds that no clock is wrong about; a ban that seems to be longer is for ever
_LONGEST_BAN = 400 * 86400.0


class _Session(Struct, omit_defaults=True):
    """A session.  Times are the wall clock's here and below."""

    exit: str | None
    first: float
    last: float
    moved: float
    tags: tuple[str, ...] = ()
    country: str | None = None
    address: str | None = None
    generation: int = 0
    served: bool = False
    bound: bool = False
    move: str = ""


class _Health(Struct, omit_defaults=True):
    worked: bool = False
    failures: int = 0
    ejections: int = 0
    probation: bool = False
    ejected: float | None = None
    banned: float | None = None


class _Exit(_Health, omit_defaults=True):
    """An exit; the label shows whether the name still means the same one."""

    label: str = ""
    draining: bool = False
    #: its outbound address, and the country of that
    address: str | None = None
    country: str | None = None


class SavedSessions:
    """The sessions of a group."""

    kind = "session"
    shared = True

    def __init__(self, group: ExitGroup) -> None:
        self._sessions = group.sessions
        self.changed: set[SessionKey] = set()
        group.sessions.changed = self.changed

    def keys(self) -> Iterable[SessionKey]:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        return self._sessions.keys()

    def entry(self, key: SessionKey, clock: Clock) -> Entry | None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        state = self._sessions.state_of(key)
        if state is None:
            return None  # it was forgotten, as it is in the file
        first, last, moved = map(clock.to_wall, (state.first, state.last, state.moved))
        value = _Session(
            state.exit,
            first,
            last,
            moved,
            state.like.tags,
            state.like.country,
            state.address,
            state.generation,
            state.is_served,
            state.is_bound,
            state.to_move,
        )
        expires = last + self._sessions.settings.idle
        return Entry(_text(key), _text(value), moved, expires)

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        self._restore(entry, clock, always=False)

    def _restore(self, entry: Entry, clock: Clock, *, always: bool) -> None:
        key = msgspec.json.decode(entry.key, type=tuple[str, str])
        of = msgspec.json.decode(entry.value, type=_Session)
        first, last, moved = map(clock.to_monotonic, (of.first, of.last, of.moved))
        state = SessionState(
            of.exit,
            Like(of.tags, of.country),
            of.address,
            first,
            last,
            moved,
            of.generation,
            of.served,
            of.bound,
            of.move,
        )
        self._sessions.restore(key, state, clock.monotonic, always=always)


class SavedExits:
    """The health and the bans of the exits; of exits that are not there yet, until they come."""

    kind = "exit"
    shared = False

    def __init__(self, group: ExitGroup) -> None:
        self._roster = group.roster
        self.changed: set[Member] = set()
        self._waiting: dict[str, Entry] = {}
        group.roster.touched = self.changed
        group.add_service(self)

    def start(self) -> None:
        """See :class:`gsocks.rotation.group.Service`."""

    def close(self) -> None:
        """See :class:`gsocks.rotation.group.Service`."""

    def update(self, changes: Changes) -> None:
        """Restore what is known of the exits that were added."""
        if self._waiting:
            clock = Clock.now()
            for member in changes.added:
                entry = self._waiting.pop(member.name, None)
                if entry is not None:
                    self._restore(member, entry, clock)

    def keys(self) -> Iterable[Member]:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        return list(self._roster)

    def entry(self, member: Member, clock: Clock) -> Entry | None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        saved = member.health.saved(clock.monotonic)
        value = _Exit(
            **_of_health(saved, member.banned_until, clock),
            label=member.label,
            draining=member.draining,
            address=member.address,
            country=None if member.outbound is None else member.outbound.country,
        )
        return Entry(member.name, _text(value), clock.wall, clock.wall + _FORGET_EXITS)

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        member = self._roster.named(entry.key)
        if member is None:
            self._waiting[entry.key] = entry
        else:
            self._restore(member, entry, clock)

    def _restore(self, member: Member, entry: Entry, clock: Clock) -> None:
        of = msgspec.json.decode(entry.value, type=_Exit)
        if of.label != member.label:
            return  # the name means another exit now
        member.health.restore(_health(of, clock), clock.monotonic)
        member.banned_until = _until(of.banned, clock)
        member.draining = of.draining
        if of.address is not None:
            found = OutboundAddress(of.address, of.country)
            self._roster.learn(member, found, clock.monotonic)
        self._roster.member_changed(member, clock.monotonic)


class SavedDomains:
    """What is known of pairs of exit and domain."""

    kind = "domain"
    shared = False

    def __init__(self, group: ExitGroup) -> None:
        self._domains = group.roster.domains
        self.changed: set[tuple[str, str]] = set()
        group.roster.domains.changed = self.changed

    def keys(self) -> Iterable[tuple[str, str]]:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        return self._domains.keys()

    def entry(self, key: tuple[str, str], clock: Clock) -> Entry | None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        saved = self._domains.saved(*key, clock.monotonic)
        if saved is None:
            return Entry(_text(key), "{}", clock.wall, clock.wall)
        value = _Health(**_of_health(*saved, clock))
        ends = max(at for at in (clock.wall, value.ejected, value.banned) if at is not None)
        return Entry(_text(key), _text(value), clock.wall, ends + _FORGET_PAIRS)

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        name, domain = msgspec.json.decode(entry.key, type=tuple[str, str])
        of = msgspec.json.decode(entry.value, type=_Health)
        until = _until(of.banned, clock)
        self._domains.restore(name, domain, _health(of, clock), until, clock.monotonic)


class SavedCoolDowns:
    """Which exits must not be used for which hosts for a time."""

    kind = "cooldown"
    shared = False

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self.changed: set[tuple[str, str]] = set()
        limits.changed = self.changed

    def keys(self) -> Iterable[tuple[str, str]]:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        return self._limits.keys()

    def entry(self, key: tuple[str, str], clock: Clock) -> Entry | None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        until = self._limits.cools_until(*key)
        if until <= clock.monotonic:
            return None
        ends = clock.to_wall(until)
        return Entry(_text(key), _text(ends), clock.wall, ends)

    def restore(self, entry: Entry, clock: Clock) -> None:
        """See :class:`gsocks.rotation.state_sync.Kept`."""
        name, host = msgspec.json.decode(entry.key, type=tuple[str, str])
        until = clock.to_monotonic(msgspec.json.decode(entry.value, type=float))
        if until > clock.monotonic:
            self._limits.cool(name, host, until, clock.monotonic)


def keep(sync: StateSync, groups: Iterable[tuple[str, ExitGroup]]) -> None:
    """Have ``sync`` keep what the groups of these sections must not forget."""
    for section, group in groups:
        kept: list[Kept] = [SavedSessions(group), SavedExits(group), SavedDomains(group)]
        if group.roster.host_limits is not None:
            kept.append(SavedCoolDowns(group.roster.host_limits))
        group.budgets.is_kept = True
        sync.follow(section, kept, group.budgets)


def _of_health(saved: HealthState, banned_until: float, clock: Clock) -> dict[str, Any]:
    return {
        "worked": saved.has_worked,
        "failures": saved.failures,
        "ejections": saved.ejections,
        "probation": saved.on_probation,
        "ejected": _wall(saved.ejected_until, clock),
        "banned": _wall(banned_until, clock),
    }


def _health(of: _Health, clock: Clock) -> HealthState:
    until = _until(of.ejected, clock)
    return HealthState(of.worked, of.failures, of.ejections, of.probation, until)


def _wall(until: float, clock: Clock) -> float | None:
    """A moment to come by the wall clock; None: it is over."""
    if until <= clock.monotonic:
        return None
    # rounded, as the clocks drift: what has not changed is to be written as the same text
    return round(clock.to_wall(min(until, clock.monotonic + _LONGEST_BAN)))


def _until(wall: float | None, clock: Clock) -> float:
    return -math.inf if wall is None else clock.to_monotonic(wall)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
