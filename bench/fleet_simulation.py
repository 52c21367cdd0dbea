"""How many sessions move, and how many records are written, when exits or a gateway go.

    python -m bench.fleet_simulation [--exits 1000] [--sessions 20000] [--url redis://...]

The rosters, sessions and records are gsocks' own; clients, exits and the network are not there.
With ``--url`` the memory of the records in a real store is measured too.  The figures are in
docs/scaling.md.
"""

from __future__ import annotations

import argparse
import time
from random import Random
from typing import Any

from gsocks.access.rules import Rules
from gsocks.address import Address
from gsocks.fleet.kinds import SharedSessions
from gsocks.request import Command, ExitSelector, Request
from gsocks.rotation.choices import session_exits
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.rotation.session import Sessions
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry
from gsocks.settings import HealthSettings, SessionSettings

#: shares of the exits that go at once
SHARES = (0.01, 0.1, 0.3)


class NoExit:
    """An exit that is never asked."""

    def __init__(self, number: int) -> None:
        self.label = f"http://exit{number}.example:8080"

    def connect(self, request: Request) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


class Gateway:
    """The tables of one gateway."""

    def __init__(self, exits: int, sessions: int) -> None:
        offers = [Offer(NoExit(n), name=f"exit-{n}") for n in range(exits)]
        health = HealthSettings(max_ejected=1.0)
        kept = Sessions(SessionSettings())
        kept.max_sessions = sessions
        self.group = ExitGroup(
            offers, Rules.default(), health=health, sessions=kept, random=Random(1)
        )
        self.records = SharedSessions(self.group)

    def request(self, name: str) -> str:
        """The exit of a session, which serves a request of it."""
        selector, now = ExitSelector(session=name), time.monotonic()
        request = Request(Command.CONNECT, Address("shop.example", 443), selector=selector)
        exits = session_exits(self.group.roster, request, (), None, now)
        chosen = self.group.sessions.choose(("", name), selector, exits, now)
        self.group.sessions.served(("", name), chosen.name)
        return chosen.name

    def eject(self, share: float) -> None:
        """So many exits go, at random."""
        members, now = list(self.group.roster), time.monotonic()
        for member in Random(2).sample(members, round(share * len(members))):
            member.health.has_worked = True
            member.health.eject(now)
            member.health.ejected_until = now + 600.0
            self.group.roster.member_changed(member, now)

    def written(self) -> list[Entry]:
        """The records of what has changed."""
        keys, clock = list(self.records.changed), Clock.now()
        self.records.changed.clear()
        found = (self.records.entry(key, clock) for key in keys)
        return [entry for entry in found if entry is not None]


def simulate(exits: int, sessions: int, share: float) -> tuple[int, int, list[Entry]]:
    """Sessions that moved, records that were written before, and the records of the moves."""
    gateway = Gateway(exits, sessions)
    names = [f"s{number}" for number in range(sessions)]
    before = {name: gateway.request(name) for name in names}
    at_first = len(gateway.written())
    gateway.eject(share)
    moved = sum(gateway.request(name) != before[name] for name in names)
    return moved, at_first, gateway.written()


def agreeing(exits: int, sessions: int) -> int:
    """Sessions that another gateway, which knows nothing of them, gives the same exit."""
    one, other = Gateway(exits, sessions), Gateway(exits, sessions)
    return sum(one.request(f"s{n}") == other.request(f"s{n}") for n in range(sessions))


def memory(url: str, entries: list[Entry]) -> float:
    """Bytes of a record in a real store, on average."""
    import redis

    client: Any = redis.Redis.from_url(url)
    total = 0
    for entry in entries[:1000]:
        key = f"gsocks-bench:1:r:local:session:{entry.key}"
        client.set(key, "0" * 24 + entry.value, px=60_000)
        total += client.memory_usage(key)
        client.delete(key)
    return total / max(1, len(entries[:1000]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--exits", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--url", help="measure the memory of records there")
    options = parser.parse_args()
    exits, sessions = options.exits, options.sessions
    same = agreeing(exits, sessions)
    print(f"{exits} exits, {sessions} sessions")
    print(f"another gateway goes: {sessions - same} sessions move, 0 records are written")
    entries: list[Entry] = []
    for share in SHARES:
        moved, at_first, entries = simulate(exits, sessions, share)
        print(
            f"{share:.0%} of the exits go: {moved} sessions move ({moved / sessions:.1%}),"
            f" {len(entries)} records are written, {at_first} before"
        )
    if options.url and entries:
        print(f"a record takes {memory(options.url, entries):.0f} bytes in the store")


if __name__ == "__main__":
    main()
