"""Gateways of a fleet in this process: exit groups that share a store, without listeners."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import gevent
from msgspec.structs import replace

from gsocks import config
from gsocks.access.rules import Rules
from gsocks.config.store import StoreUrl
from gsocks.fleet.fleet import Fleet, Load
from gsocks.request import ExitSelector
from gsocks.rotation.choices import session_exits
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.rotation.session import Sessions
from gsocks.settings import HealthSettings, PerHostSettings, SessionSettings
from tests.support.rosters import UnusedExit, to
from tests.support.waiting import TOO_LONG

HEALTH = HealthSettings(failures=1, base=600.0, longest=600.0, max_ejected=1.0)


def settings(url: str, **more: Any) -> config.State:
    return replace(config.State(), url=StoreUrl.parse(url), **more)


def group(
    exits: int | Sequence[Offer] = 4, *, per_host: PerHostSettings = PerHostSettings()
) -> ExitGroup:
    if isinstance(exits, int):
        exits = [Offer(UnusedExit(f"http://exit{n}"), name=f"e{n}") for n in range(exits)]
    sessions = Sessions(SessionSettings(idle=600.0, longest=3600.0))
    return ExitGroup(
        exits,
        Rules.default(),
        health=HEALTH,
        sessions=sessions,
        random=Random(1),
        per_host=per_host,
    )


class Gateway:
    """A member of the fleet, with its exits."""

    def __init__(
        self,
        of: config.State,
        exits: ExitGroup | None = None,
        name: str = "gw",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.group = group() if exits is None else exits
        self.executed: list[tuple[Sequence[str], str, bytes]] = []
        self.fleet = Fleet(
            replace(of, gateway=name),
            {"local": self.group},
            0,
            lambda: Load(1, 2, True),
            lambda path, section, body: self.executed.append((path, section, body)),
            "0.0",
            wall,
        )
        self.group.start()
        self.fleet.start()

    def request(self, session: str, user: str = "") -> str:
        """The exit that serves a request of a session."""
        selector, now, key = ExitSelector(session=session), time.monotonic(), (user, session)
        exits = session_exits(self.group.roster, to(selector=selector), (), None, now)
        chosen = self.group.sessions.choose(key, selector, exits, now)
        self.group.sessions.served(key, chosen.name)
        return chosen.name

    def state(self, name: str) -> str:
        member = self.group.roster.named(name)
        assert member is not None
        now = time.monotonic()
        if member.draining:
            return "draining"
        return "banned" if member.banned_until > now else member.health.state(now)

    def eject(self, name: str) -> None:
        member, now = self.group.roster.named(name), time.monotonic()
        assert member is not None
        member.health.eject(now)
        member.health.ejected_until = now + 500.0
        self.group.roster.member_changed(member, now)

    def close(self) -> None:
        self.fleet.close()
        self.group.close()


@contextmanager
def gateways(of: config.State, count: int = 2, exits: int = 4) -> Iterator[list[Gateway]]:
    found: list[Gateway] = []
    try:
        for number in range(count):
            found += [Gateway(of, group(exits), name=f"gw{number}")]
        yield found
    finally:
        closing = [gevent.spawn(each.close) for each in found]
        gevent.joinall(closing)


def becomes(condition: Callable[[], object], within: float = TOO_LONG / 2) -> float:
    """Wait for a condition, while the gateways go on; the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within, "it never happened"
        gevent.sleep(0.005)
    return time.monotonic() - began
