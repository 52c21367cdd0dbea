"""The state of listeners and exits in one process as plain data, and of several processes merged.

Times are seconds from now: a monotonic clock means nothing to another process.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from heapq import nsmallest
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

from gsocks.access.misspelt import ignored_names
from gsocks.admin.counters import ConnectionCounters, Count
from gsocks.exits.tunnel import TunnelExit
from gsocks.histograms import LOGINS, LOOK_UPS, Histogram
from gsocks.history.latency import RequestLatencies
from gsocks.inbound.context import Inbound
from gsocks.log_output import dropped_lines
from gsocks.loop_lag import LoopLag, quantile
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Member
from gsocks.rotation.views import READY
from gsocks.turns import give_way, in_turns

#: a JSON object, as :mod:`json` reads and writes it
Json: TypeAlias = dict[str, Any]

#: an exit's state, the worst first: of several processes the worst counts, but unproven only where
#: no process knows more
STATES = (
    "draining",
    "banned",
    "spent",
    "down",
    "ejected",
    "probation",
    "degraded",
    "ok",
    "unproven",
)

_NOTHING = Count()

#: in place of an exit's name: all exits, or none of them; neither can be a name
ALL, NONE = "*", "-"

#: the wall clock when the monotonic one was 0; the same for the life of the process
_EPOCH = time.time() - time.monotonic()

#: tells where an exit of a section comes from
SourceOf: TypeAlias = Callable[[str, Member], str]


def from_config(_section: str, _member: Member) -> str:
    """Where nothing else is known."""
    return "config"


class WantedExits(NamedTuple):
    """Which exits; what is empty selects all.  Texts are in lower case, but for the source."""

    section: str = ""
    country: str = ""
    tag: str = ""
    source: str = ""
    #: a part of the name, the label, the address, a tag or the last error
    text: str = ""

    def select(self, section: str, member: Member, source: str) -> bool:
        """Whether that exit is one of them."""
        return (
            (not self.section or section == self.section)
            and (not self.country or member.country == self.country)
            and (not self.tag or self.tag in member.tags)
            and (not self.source or source == self.source)
            and (not self.text or self._has_text(member))
        )

    def _has_text(self, member: Member) -> bool:
        places = (member.name, member.label, member.address or "", member.counts.last_error)
        return any(self.text in each.lower() for each in (*places, *member.tags))


#: all of them
EVERY_EXIT = WantedExits()


class WantedSessions(NamedTuple):
    """Which sessions; what is empty selects all."""

    section: str = ""
    user: str = ""
    exit: str = ""
    #: a part of the session's name or of the user's, in lower case
    text: str = ""
    #: used last at that time, by the wall clock, or before it
    before: float = math.inf

    def select(self, found: Json) -> bool:
        """Whether that session is one of them."""
        user = found["user"] or ""
        return (
            (not self.section or found["section"] == self.section)
            and (not self.user or user == self.user)
            and (not self.exit or found["exit"] == self.exit)
            and (not self.text or self.text in f"{found['session']}\n{user}".lower())
            and found["last_used"] <= self.before
        )


#: all of them
EVERY_SESSION = WantedSessions()


def take(
    inbounds: Iterable[Inbound],
    exit_groups: Mapping[str, ExitGroup],
    counters: ConnectionCounters,
    lag: LoopLag,
    which: str = ALL,
    most: int | None = None,
    wanted: WantedExits = EVERY_EXIT,
    source_of: SourceOf = from_config,
    *,
    domains: bool = True,
    figures: Collection[str] | None = None,
) -> Json:
    """The state of this process.  ``exit_groups``: by the names of their sections.

    ``which``: the name of the exit that is to be in it, or :data:`ALL`, or :data:`NONE`.  ``most``:
    so many of all of a section, those that are not used first and then the busiest, and no domains;
    None: all.  ``wanted``: only these of all; ``source_of``: tells where each comes from;
    ``domains``: with what exits are not used for; ``figures``: of each exit its state and these of
    :data:`FIGURES` alone, which takes a fifth of the time; None: everything.  Other greenlets run
    meanwhile: there may be 100,000 exits.
    """
    now = time.monotonic()
    with_domains = which if domains and most is None else NONE
    described: dict[str, Json] = {}
    for inbound in inbounds:
        counted = counters.inbounds.get(inbound.name, _NOTHING)
        described.setdefault(
            inbound.name,
            {
                "listen": [],
                "connections": 0,
                "outcomes": dict(counted.outcomes),
                "up": counted.up,
                "down": counted.down,
            },
        )
        described[inbound.name]["listen"].append(str(inbound.bound))
        described[inbound.name]["connections"] += inbound.connections
    return {
        "workers": 1,
        "log_dropped": dropped_lines(),
        "ignored_names": ignored_names.count,
        "loop": {"turns": lag.counts(), "seconds": lag.seconds, "longest": lag.longest},
        "inbounds": described,
        "exit_counts": {section: len(each.roster) for section, each in exit_groups.items()},
        **({} if most is None else {"exit_states": _states(exit_groups, now)}),
        "exits": list(_exits(exit_groups, which, now, most, wanted, source_of, figures)),
        "domains": list(_domains(exit_groups, with_domains, now)),
        "sessions": {section: len(each.sessions) for section, each in exit_groups.items()},
    }


def _exits(
    exit_groups: Mapping[str, ExitGroup],
    which: str,
    now: float,
    most: int | None,
    wanted: WantedExits,
    source_of: SourceOf,
    figures: Collection[str] | None,
) -> Iterator[Json]:
    has_all = wanted == EVERY_EXIT
    for section, group in exit_groups.items():
        members: Iterable[Member] = group.roster
        if which != ALL:
            named = group.roster.named(which)
            members = [] if named is None else [named]
        elif most is not None:
            members = nsmallest(most, in_turns(group.roster), key=_notability)
        for member in in_turns(members):
            source = source_of(section, member) if figures is None or wanted.source else ""
            if not has_all and not wanted.select(section, member, source):
                continue
            if figures is None:
                yield {"section": section, "source": source, **exit_(member, now)}
            else:
                yield _figures(section, member, now, figures)


def exits_named(
    exit_groups: Mapping[str, ExitGroup],
    names: Iterable[tuple[str, str]],
    source_of: SourceOf = from_config,
) -> list[Json]:
    """The exits of these sections and names, in full, without those that are gone."""
    now = time.monotonic()
    found = []
    for section, name in names:
        group = exit_groups.get(section)
        member = None if group is None else group.roster.named(name)
        if member is not None:
            source = source_of(section, member)
            found.append({"section": section, "source": source, **exit_(member, now)})
        give_way()
    return found


def _states(exit_groups: Mapping[str, ExitGroup], now: float) -> Json:
    """How many exits of all sections are in each state, the best state first."""
    counts: Counter[str] = Counter()
    for group in exit_groups.values():
        counts.update(state(member, now) for member in in_turns(group.roster))
    return {name: counts[name] for name in (*STATES[-2:], *STATES[-3::-1]) if counts[name]}


def _notability(member: Member) -> tuple[bool, int, int]:
    """The order in which exits are told of: those that are not used, the busiest, the others."""
    return member.tier in READY, -member.open, -member.counts.connected


def _domains(exit_groups: Mapping[str, ExitGroup], which: str, now: float) -> Iterator[Json]:
    for section, group in exit_groups.items():
        # as they are now: some may be forgotten meanwhile
        pairs = list(group.roster.barred(now)) if which != NONE else []
        for name, domain, state, at in pairs:
            if which in (ALL, name):
                pair = {"section": section, "exit": name, "domain": domain, "state": state}
                yield {**pair, **_until(at, now)}
            give_way()


def exit_(member: Member, now: float) -> Json:
    """One exit."""
    health, counts = member.health, member.counts
    described = {
        "name": member.name,
        "label": member.label,
        "country": member.country,
        "address": member.address,
        "address_country": None if member.outbound is None else member.outbound.country,
        "tags": list(member.tags),
        "weight": member.weight,
        "max_connections": member.max_connections,
        "state": state(member, now),
        **_until(max(health.ejected_until, member.banned_until, member.spent_until), now),
        "open": member.open,
        "in_flight": health.in_flight,
        "connected": counts.connected,
        "failed": counts.failed,
        "up": counts.up,
        "down": counts.down,
        "connect_seconds": _rounded(member.connect_time.measured),
        "last_error": counts.last_error,
    }
    if member.spending is not None:
        cost = member.spending.cost(time.time())
        described["budget"] = {
            **member.spending.budget._asdict(),
            "today": member.spending.today,
            "this_month": member.spending.this_month,
            "cost": _rounded(cost),
        }
    if isinstance(member.exit, TunnelExit):
        pool = member.exit.pool
        described["tunnels"] = {
            "ready": pool.ready,
            "opened": pool.opened,
            "hits": pool.hits,
            "misses": pool.misses,
            "found_dead": pool.found_dead,
        }
    return described


#: what exits are sorted by, besides their names and states
FIGURES: Mapping[str, Callable[[Member], Any]] = {
    "country": lambda member: member.country,
    "address": lambda member: member.address,
    "open": lambda member: member.open,
    "connected": lambda member: member.counts.connected,
    "failed": lambda member: member.counts.failed,
    "up": lambda member: member.counts.up,
    "down": lambda member: member.counts.down,
    "connect_seconds": lambda member: _rounded(member.connect_time.measured),
}


def _figures(section: str, member: Member, now: float, figures: Iterable[str]) -> Json:
    """What a page of exits is chosen by."""
    described = {
        "section": section,
        "name": member.name,
        "state": state(member, now),
        "back_in": None,
    }
    for each in figures:
        described[each] = FIGURES[each](member)
    return described


def state(member: Member, now: float) -> str:
    """One of :data:`STATES`."""
    if member.draining:
        return "draining"
    if member.banned_until > now:
        return "banned"
    return "spent" if member.spent_until > now else member.health.state(now)


def loop_lag(snapshot: Json) -> Json:
    """The turns of the event loops in a few figures; all but ``turns`` are seconds.

    Of a quantile the upper bound of its bucket is known.
    """
    counts, longest = snapshot["loop"]["turns"], snapshot["loop"]["longest"]
    parts = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {
        "turns": counts[-1],
        **{name: round(quantile(counts, part, longest), 4) for name, part in parts.items()},
        "longest": round(longest, 4),
    }


def sessions(
    exit_groups: Mapping[str, ExitGroup], limit: int, wanted: WantedSessions = EVERY_SESSION
) -> list[Json]:
    """The sessions that have an exit, those of the latest use first; ``limit`` of a section."""
    now = time.monotonic()
    found: list[Json] = []
    for section, each in exit_groups.items():
        of_section = 0
        for seen in reversed(list(each.sessions.listing(now))):
            session = {
                "section": section,
                "user": seen.key[0] or None,
                "session": seen.key[1],
                "exit": seen.exit,
                "age": round(now - seen.first, 3),
                "idle": round(now - seen.last, 3),
                "last_used": round(_EPOCH + seen.last, 6),
            }
            if wanted.select(session):
                found.append(session)
                of_section += 1
                if of_section == limit:
                    break
            give_way()
    return found


def histograms(latencies: RequestLatencies | None) -> Json:
    """How long things take, by what it is and the name of a listener, or an empty one."""
    found: Json = {
        "argon2": {"": _histogram(LOGINS)},
        "dns_lookup": {"": _histogram(LOOK_UPS)},
    }
    for name, times in () if latencies is None else latencies.inbounds.items():
        for what in ("connect", "first_byte", "duration"):
            found.setdefault(what, {})[name] = _histogram(getattr(times, what))
    return found


def _histogram(of: Histogram) -> Json:
    return {
        "bounds": list(of.bounds),
        "counts": list(of.counts),
        "seconds": of.seconds,
        "exemplars": {str(place): list(each) for place, each in of.exemplars.items()},
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _until(at: float, now: float) -> Json:
    """``back_in``: seconds until the exit is used again; None if that is unknown."""
    return {"back_in": None if math.isinf(at) and at > 0 else max(0.0, round(at - now, 1))}


# --- several processes ------------------------------------------------------------------------

_SUMS = frozenset(
    {
        "workers",
        "connections",
        "up",
        "down",
        "open",
        "in_flight",
        "connected",
        "failed",
        "ready",
        "opened",
        "hits",
        "misses",
        "found_dead",
    }
)


def merged(snapshots: Iterable[Json]) -> Json:
    """The snapshots of several processes as one; other greenlets run meanwhile.

    Counts add up.  An exit has the worst state that it has in any process.  A session that two
    processes know counts twice.
    """
    first, *others = snapshots
    whole = {**first, "inbounds": dict(first["inbounds"]), "sessions": dict(first["sessions"])}
    if not others:
        return whole
    domains = {(each["section"], each["exit"], each["domain"]): each for each in first["domains"]}
    for other in others:
        whole["workers"] += other["workers"]
        whole["log_dropped"] += other["log_dropped"]
        whole["ignored_names"] += other["ignored_names"]
        whole["loop"] = _added_loop(whole["loop"], other["loop"])
        whole["requests_lost"] += other["requests_lost"]
        whole["histograms"] = _added_histograms(whole["histograms"], other["histograms"])
        for name, inbound in other["inbounds"].items():
            whole["inbounds"][name] = _added(whole["inbounds"].get(name), inbound)
        for section, count in other["sessions"].items():
            whole["sessions"][section] = whole["sessions"].get(section, 0) + count
        for each in other["domains"]:
            domains.setdefault((each["section"], each["exit"], each["domain"]), each)
    exits = merged_exits(each["exits"] for each in (first, *others))
    return {**whole, "exits": exits, "domains": list(domains.values())}


def merged_exits(lists: Iterable[Iterable[Json]]) -> list[Json]:
    """The exits of several processes, each of them once; other greenlets run meanwhile."""
    exits: dict[tuple[str, str], Json] = {}
    for each in chain.from_iterable(lists):
        key = (each["section"], each["name"])
        exits[key] = _added(exits.get(key), each)
        give_way()
    return list(exits.values())


def _added_histograms(one: Json, other: Json) -> Json:
    both = {what: dict(named) for what, named in one.items()}
    for what, named in other.items():
        for name, of in named.items():
            mine = both.setdefault(what, {}).get(name)
            if mine is None:
                both[what][name] = of
                continue
            both[what][name] = {
                "bounds": of["bounds"],
                "counts": [sum(pair) for pair in zip(mine["counts"], of["counts"], strict=True)],
                "seconds": mine["seconds"] + of["seconds"],
                "exemplars": {**of["exemplars"], **mine["exemplars"]},
            }
    return both


def _added_loop(one: Json, other: Json) -> Json:
    return {
        "turns": [sum(pair) for pair in zip(one["turns"], other["turns"], strict=True)],
        "seconds": one["seconds"] + other["seconds"],
        "longest": max(one["longest"], other["longest"]),
    }


def _added(one: Json | None, other: Json) -> Json:
    if one is None:
        return other
    both = dict(one)
    for name, value in other.items():
        mine: Any = one.get(name)
        if name in _SUMS:
            both[name] = value + (mine or 0)
        elif name == "outcomes":
            both[name] = dict(Counter(mine) + Counter(value))
        elif name == "tunnels":
            both[name] = _added(mine, value)
        elif name == "state" and STATES.index(value) < STATES.index(mine):
            both |= {"state": value, "back_in": other["back_in"]}
        elif name == "connect_seconds":
            both[name] = max((each for each in (mine, value) if each is not None), default=None)
        elif name in ("last_error", "address", "address_country", "country"):
            both[name] = mine or value
    return both


# --- as bytes ---------------------------------------------------------------------------------


def to_json(value: object) -> bytes:
    """JSON; the items of a list on lines of their own, between which other greenlets run."""
    if not isinstance(value, list):
        return json.dumps(value).encode() + b"\n"
    items = []
    for item in value:
        items.append(json.dumps(item).encode())
        give_way()
    return b"[" + b",\n".join(items) + b"]\n"


def to_lines(snapshot: Json) -> bytes:
    """A snapshot for another process: a line of JSON, and one for each exit and each domain."""
    parts = {name: snapshot[name] for name in _LONG}
    head = {**snapshot, **{name: len(parts[name]) for name in _LONG}}
    lines = [json.dumps(head).encode()]
    for each in chain(*parts.values()):
        lines.append(json.dumps(each).encode())
        give_way()
    return b"\n".join(lines)


def from_lines(raw: bytes) -> Json:
    """The snapshot that :func:`to_lines` has written.  Raises ValueError."""
    head, *lines = raw.splitlines()
    snapshot: Json = json.loads(head)
    read = iter(lines)
    for name in _LONG:
        items = []
        for line in islice(read, snapshot[name]):
            items.append(json.loads(line))
            give_way()
        snapshot[name] = items
    return snapshot


#: the parts of a snapshot that may be long
_LONG = ("exits", "domains")
