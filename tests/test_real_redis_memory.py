"""What records and shares take of a real Redis' memory, which docs/scaling.md tells.

``pytest -s`` prints the figures.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import gevent

from gsocks.inbound.quota import UserQuota
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.settings import Limits, PerHostSettings
from tests.support.fleets import Gateway, becomes, group, settings
from tests.support.redis_server import RedisServer, redis_server
from tests.support.rosters import UnusedExit, to

EXITS, USERS = 200, 20

#: bytes, the key's name included; of shares for three processes
MOST = 320


def _exits() -> ExitGroup:
    offers = [
        Offer(
            UnusedExit(f"http://exit-{number}.provider.example:8080"),
            name=f"exit-{number}",
            requests_per_minute=600,
            max_connections=600,
        )
        for number in range(EXITS)
    ]
    per_host = PerHostSettings(requests_per_minute=600, connections=600, min_interval=0.001)
    return group(offers, per_host=per_host)


def _use(gateway: Gateway, quota: UserQuota) -> None:
    """A request by each exit, and a transfer of each user."""
    roster, now, request = gateway.group.roster, time.monotonic(), to()
    for member in roster:
        roster.take_turn(member, request, now, 0.0)
        roster.request_sent(member, now)
    for number in range(USERS):
        quota.acquire(f"user-{number}")
        for bucket in quota._buckets_of(f"user-{number}", 1e7):
            bucket.take(1_000_000)


def _learn(gateway: Gateway) -> None:
    """All that there are records of."""
    roster, now = gateway.group.roster, time.monotonic()
    for number, member in enumerate(roster):
        gateway.eject(member.name)
        gateway.group.ban(member.name, 600.0)
        roster.learn(member, OutboundAddress(f"192.0.2.{number}", "de"), now)


def _sizes(server: RedisServer) -> dict[str, list[int]]:
    """The memory of each key, by its kind."""
    found: dict[str, list[int]] = defaultdict(list)
    client = server.client()
    for name in client.scan_iter(match="*", count=1000):
        words = name.decode().split(":")
        first = 2 if words[2] == "limits" else 3
        kind = " ".join(words[2:5]) if first == 2 else words[4] if words[2] == "r" else words[2]
        found[kind].append(client.memory_usage(name, samples=0))
    return found


def test_a_record_of_an_exit_and_a_share_take_no_more_than_is_told(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        gateways = [Gateway(settings(server.url), _exits(), f"gw{n}") for n in range(3)]
        try:
            becomes(lambda: all(len(each.fleet.members) == 3 for each in gateways))
            for each in gateways:
                quota = UserQuota(Limits(per_user=1000, bandwidth_per_user=10_000_000))
                each.fleet.share_quota("local", quota)
                _use(each, quota)
            _learn(gateways[0])
            kinds = {
                *("ban", "health", "address", "member", "users", "limits bandwidth local"),
                *("limits exits requests", "limits exits connections", "limits hosts requests"),
                *("limits hosts connections", "limits hosts interval"),
            }
            becomes(lambda: kinds <= _sizes(server).keys())
            for each in gateways:
                each.fleet.sync.wait(5.0)
            sizes = _sizes(server)
            for kind in sorted(kinds):
                mean = sum(sizes[kind]) / len(sizes[kind])
                print(f"{kind}: {mean:.0f} bytes, of {len(sizes[kind])}")
                assert mean <= MOST, kind
        finally:
            gevent.joinall([gevent.spawn(each.close) for each in gateways])
