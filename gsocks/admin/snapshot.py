"""What one process knows of its doors and exits, as plain data; and what several know, as one.

Times are told as seconds from now: a monotonic clock means nothing to whoever reads this.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from gsocks.admin.tally import Count, Tally
from gsocks.door import Door
from gsocks.exits.tunnel import TunnelExit
from gsocks.rotation.roster import Member
from gsocks.ways_out import WaysOut

#: a JSON object, as :mod:`json` reads and writes it
Json: TypeAlias = dict[str, Any]

#: an exit's state, the worst first: one process that sees it so is enough
STATES = ("draining", "banned", "down", "out", "probation", "shaky", "unproven", "ok")

_NOTHING = Count()


def take(doors: Iterable[Door], ways: Mapping[str, WaysOut], tally: Tally) -> Json:
    """The state of this process.  ``ways`` by the names of their sections."""
    now = time.monotonic()
    described: dict[str, Json] = {}
    for door in doors:
        counted = tally.doors.get(door.name, _NOTHING)
        described.setdefault(
            door.name,
            {
                "listen": [],
                "connections": 0,
                "outcomes": dict(counted.outcomes),
                "up": counted.up,
                "down": counted.down,
            },
        )
        described[door.name]["listen"].append(str(door.bound))
        described[door.name]["connections"] += door.connections
    return {
        "workers": 1,
        "doors": described,
        "exits": [
            {"section": section, **exit_(member, now)}
            for section, each in ways.items()
            for member in each.roster
        ],
        "domains": [
            {"section": section, "exit": name, "domain": domain, "state": state, **_until(at, now)}
            for section, each in ways.items()
            for name, domain, state, at in each.roster.domains.listed(now)
        ],
        "sessions": {section: len(each.sessions) for section, each in ways.items()},
    }


def exit_(member: Member, now: float) -> Json:
    """One exit."""
    health, counts = member.health, member.counts
    described = {
        "name": member.name,
        "label": member.label,
        "country": member.country,
        "tags": list(member.tags),
        "weight": member.weight,
        "max_connections": member.max_connections,
        "state": state(member, now),
        **_until(max(health.out_until, member.banned_until), now),
        "open": member.open,
        "asking": health.asking,
        "connected": counts.connected,
        "failed": counts.failed,
        "up": counts.up,
        "down": counts.down,
        "connect_seconds": round(member.connect_time.at(now), 4),
        "last_error": counts.last_error,
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


def state(member: Member, now: float) -> str:
    """One of :data:`STATES`."""
    if member.draining:
        return "draining"
    return "banned" if member.banned_until > now else member.health.state(now)


def sessions(ways: Mapping[str, WaysOut], most: int) -> list[Json]:
    """The sessions that have an exit, those of the latest use first; ``most`` of a section."""
    now = time.monotonic()
    found: list[Json] = []
    for section, each in ways.items():
        latest = list(each.sessions.listing(now))[: -most - 1 : -1]
        found += (
            {
                "section": section,
                "user": seen.key[0] or None,
                "session": seen.key[1],
                "exit": seen.exit,
                "age": round(now - seen.first, 3),
                "idle": round(now - seen.last, 3),
            }
            for seen in latest
        )
    return found


def _until(at: float, now: float) -> Json:
    """``back_in``: seconds until something is over; None if nobody knows."""
    return {"back_in": None if math.isinf(at) and at > 0 else max(0.0, round(at - now, 1))}


# --- several processes ------------------------------------------------------------------------

_SUMS = frozenset(
    {
        "workers",
        "connections",
        "up",
        "down",
        "open",
        "asking",
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
    """What several processes know, as one of them would tell it.

    Counts add up.  An exit is in the worst state in which any process sees it.  A session that
    two processes know counts twice.
    """
    first, *others = snapshots
    whole = {**first, "doors": dict(first["doors"]), "sessions": dict(first["sessions"])}
    exits = {(each["section"], each["name"]): each for each in first["exits"]}
    domains = {(each["section"], each["exit"], each["domain"]): each for each in first["domains"]}
    for other in others:
        whole["workers"] += other["workers"]
        for name, door in other["doors"].items():
            whole["doors"][name] = _added(whole["doors"].get(name), door)
        for section, count in other["sessions"].items():
            whole["sessions"][section] = whole["sessions"].get(section, 0) + count
        for each in other["exits"]:
            key = (each["section"], each["name"])
            exits[key] = _added(exits.get(key), each)
        for each in other["domains"]:
            domains.setdefault((each["section"], each["exit"], each["domain"]), each)
    return {**whole, "exits": list(exits.values()), "domains": list(domains.values())}


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
            both[name] = max(mine, value)
        elif name == "last_error":
            both[name] = mine or value
    return both
