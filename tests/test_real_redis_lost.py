"""What a store loses at once, and what gateways may not do before they have told it all again."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import gevent

from gsocks.address import Address
from gsocks.errors import LimitReached
from gsocks.inbound.quota import UserQuota
from gsocks.settings import Limits
from tests.support.engine import Forwarder
from tests.support.fleets import becomes, gateways, settings
from tests.support.redis_server import redis_server

LIMIT = 60


def acquire(quota: UserQuota, count: int) -> None:
    """So many connections at once, of which some may be refused."""

    def one() -> None:
        with suppress(LimitReached):
            quota.acquire("alice")

    gevent.joinall([gevent.spawn(one) for _ in range(count)])


def test_a_store_that_was_emptied_grants_nothing_that_others_use_still(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 3) as found:
        quotas = [UserQuota(Limits(per_user=LIMIT)) for _ in found]
        for each, quota in zip(found, quotas, strict=True):
            each.fleet.share_quota("local", quota)
        for quota in quotas[:2]:
            acquire(quota, LIMIT // 2)
            acquire(quota, LIMIT // 2)
        had = sum(each.users.get("alice", 0) for each in quotas)
        assert had > LIMIT // 2
        for _ in range(3):
            server.client().flushall()
            acquire(quotas[2], LIMIT)
            assert sum(each.users.get("alice", 0) for each in quotas) <= 1.05 * LIMIT
        # and then there is as much as before
        for quota in quotas[:2]:
            for _ in range(quota.users.get("alice", 0)):
                quota.release("alice")

        def all_are_had() -> bool:
            acquire(quotas[2], 1)
            return quotas[2].users.get("alice", 0) >= 0.95 * LIMIT

        becomes(all_are_had)


def test_no_user_is_refused_because_a_store_falls_silent(tmp_path: Path) -> None:
    refused: list[LimitReached] = []
    with (
        redis_server(tmp_path) as server,
        Forwarder(Address("127.0.0.1", server.port)) as path,
        gateways(settings(f"redis://{path.bound}"), 1) as (one,),
    ):
        quota = UserQuota(Limits(per_user=LIMIT))
        one.fleet.share_quota("local", quota)

        def connect(user: str) -> None:
            try:
                quota.acquire(user)
            except LimitReached as error:
                refused.append(error)

        first = [gevent.spawn(partial(connect, f"first{number}")) for number in range(5)]
        gevent.joinall(first)
        path.fall_silent()
        asked: list[gevent.Greenlet[..., None]] = []
        while one.fleet.sync.is_in_touch:
            asked.append(gevent.spawn(partial(connect, f"u{len(asked)}")))
            gevent.sleep(0.01)
        gevent.joinall(asked)
        assert len(asked) > 50
        path.cut()
    assert not refused


def test_a_gateway_that_has_nothing_to_say_asks_little_of_the_store(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 1) as (one,):
        one.fleet.sync.wait(5.0)
        before, heard = one.fleet.store.commands, one.fleet.sync._echo_at
        # three signs of life, one a second
        becomes(lambda: one.fleet.sync._echo_at > heard + 2.5)
        seconds = one.fleet.sync._echo_at - heard
        assert one.fleet.store.commands - before < 3.5 * seconds
