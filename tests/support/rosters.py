"""Rosters of exits that are never asked, for tests of what decides without I/O."""

from __future__ import annotations

from random import Random
from typing import Any

from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.roster import Member, Offer, Roster
from gsocks.settings import HealthSettings

SITE = "shop.example"


class UnusedExit:
    """An exit that is never asked."""

    def __init__(self, label: str) -> None:
        self.label = label

    def connect(self, request: Request) -> Connected:
        raise NotImplementedError

    def close(self) -> None: ...


class AssociatingExit(UnusedExit):
    def associate(self, request: Request) -> Connected:
        raise NotImplementedError


def offers(count: int, **options: Any) -> list[Offer]:
    return [
        Offer(UnusedExit(f"exit{number}"), name=f"e{number}", **options) for number in range(count)
    ]


def roster(*given: Offer, settings: HealthSettings = HealthSettings(), **options: Any) -> Roster:
    return Roster(given, settings, Random(1), **options)


def judging(exits: Roster, settings: HealthSettings = HealthSettings()) -> Evidence:
    """What is known of ``exits`` by their results."""
    return Evidence(exits, settings)


def to(
    host: str = SITE, selector: ExitSelector = ANY, command: Command = Command.CONNECT
) -> Request:
    return Request(command, Address(host, 443), selector=selector)


def names(members: Any) -> list[str]:
    return [member.name for member in members]


def available(exits: Roster, now: float = 0.0, *given_up: Member, **of: Any) -> list[str]:
    return names(exits.available(to(**of), given_up, now))
