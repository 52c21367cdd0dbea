"""Fleets of one, two and three gateways, of one worker each, with the same list of exits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.contenders.base import Command, Contender, Endpoints, Kind
from bench.contenders.gsocks import gateway_command, gsocks_version
from bench.load.route import Place
from bench.processes import Failed

#: the user of the requests, whose password is ``x``, by the cheapest hash there is
USER = "scraper"
_HASH = (
    "$argon2id$v=19$m=8,t=1,p=1$78/fN39CbZRSpM3/7eGxiA$AYiGy5RTDrAF3lq+ZFniUyDm3rlZNbWuB2ynfSgtdnc"
)

#: a limit that no load reaches, which all gateways divide all the same
_LIMITED: dict[str, Any] = {"users": {USER: _HASH}, "limits": {"per_user": 10_000}}


def gateways_of(
    folder: Path, inbound: Sequence[Place], exits: Sequence[Place], local: dict[str, Any], url: str
) -> list[Command]:
    """A gateway at each of ``inbound``; ``url``: the store that they share, "" for none."""
    commands = []
    for number, place in enumerate(inbound):
        own = folder / f"{'shared' if url else 'alone'}{number}"
        own.mkdir()
        endpoints = Endpoints(own, place, place, place, exits)
        state = {"state": {"url": url, "gateway": f"gateway{number}"}} if url else {}
        commands.append(gateway_command(endpoints, local, state))
    return commands


def _fleet(name: str, label: str) -> Contender:
    def set_up(_: Endpoints) -> list[Command]:
        raise Failed("a fleet is started by its figure")

    return Contender(name, label, Kind.GATEWAY, ("redis-server",), set_up, gsocks_version)


def size_of(contender: Contender) -> int:
    """How many gateways it has."""
    return int(contender.name.split("-")[1])


def local_of(contender: Contender) -> dict[str, Any]:
    """The keys of its sections ``local``."""
    return _LIMITED if contender.name.endswith("-limits") else {}


FLEETS = (
    _fleet("fleet-1", "one gateway"),
    _fleet("fleet-2", "two gateways"),
    _fleet("fleet-3", "three gateways"),
    _fleet("fleet-3-limits", "three gateways, limits.per_user"),
)
