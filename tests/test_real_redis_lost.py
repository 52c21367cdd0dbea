"""What a store loses at once, and what gateways may not do before they have told it all again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import gevent
import pytest

from gsocks.address import Address
from gsocks.errors import LimitReached
from gsocks.exits.budget import Budget
from gsocks.fleet.leases import SHARDS, CheckLeases
from gsocks.fleet.settling import Settling
from gsocks.inbound.quota import UserQuota
from gsocks.rotation.group import Offer
from gsocks.settings import Limits
from tests.support.engine import Forwarder
from tests.support.fleets import Gateway, becomes, gateways, group, settings
from tests.support.redis_server import RedisServer, redis_server
from tests.support.rosters import UnusedExit
from tests.support.waiting import TOO_LONG

LIMIT = 60


def acquire(quota: UserQuota, count: int) -> None:
    """So many connections at once, of which some may be refused."""

    def one() -> None:
        with suppress(LimitReached):
            quota.acquire("alice")

    gevent.joinall([gevent.spawn(one) for _ in range(count)])


def test_a_store_that_was_emptied_grants_nothing_that_others_use_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who is not answered, or not told by the others, would be served after a time nevertheless: all
    # of them are one process here, which may have to wait as long for its turn.
    monkeypatch.setattr(Settling, "longest", TOO_LONG)
    with (
        redis_server(tmp_path) as server,
        gateways(settings(server.url, fail="closed"), 3) as found,
    ):
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


def test_who_has_told_after_one_loss_is_not_known_as_one_who_has_after_the_next(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 2) as found:
        client = server.client()
        for each in found:
            assert each.fleet.sync.wait(TOO_LONG)  # it has seen the store as it was
        seen = set()
        for _ in range(2):
            client.flushall()

            def all_have_told() -> bool:
                sets = client.keys("*told*")
                return len(sets) == 1 and client.scard(sets[0]) == len(found)

            becomes(all_have_told)
            seen.update(client.keys("*told*"))
        assert len(seen) == 2


@pytest.mark.parametrize("how", ["flushed", "restarted"])
def test_a_user_without_a_share_waits_for_others_to_tell_of_theirs_and_for_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(Settling, "longest", 3600.0)
    begun: set[Settling] = set()

    def begin(self: Settling, now: float) -> None:
        emptied(self, now)
        begun.add(self)

    emptied = Settling.emptied
    monkeypatch.setattr(Settling, "emptied", begin)
    with redis_server(tmp_path) as server, gateways(settings(server.url), 3) as found:
        quotas = [UserQuota(Limits(per_user=LIMIT)) for _ in found]
        for each, quota in zip(found, quotas, strict=True):
            each.fleet.share_quota("local", quota)
        for quota in quotas[:2]:
            acquire(quota, 10)
        becomes(lambda: all(len(each.fleet.members) == 3 for each in found))
        if how == "flushed":
            server.client().flushall()
        else:
            server.kill()
            becomes(lambda: not any(each.fleet.sync.is_in_touch for each in found))
            server.start()
        becomes(lambda: len(begun) == 3)
        becomes(lambda: not any(each.is_on(time.monotonic()) for each in begun))
        acquire(quotas[2], 10)
        assert quotas[2].users["alice"] == 10


def test_leases_of_checks_are_taken_again_at_once_from_a_store_that_was_emptied(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 1) as (one,):
        sync, store = one.fleet.sync, one.fleet.store
        leases = CheckLeases("local", sync.members, partial(store.key, "lease", "local"))
        leases.interval = 3600.0  # it has no other occasion
        sync.add(leases)
        client = server.client()
        becomes(lambda: len(client.keys("gsocks:1:lease:*")) == SHARDS)
        client.flushall()
        one.fleet.soon()
        becomes(lambda: len(client.keys("gsocks:1:lease:*")) == SHARDS)


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


# --- bytes of exits ---------------------------------------------------------------------------


@contextmanager
def _with_budgets(url: str) -> Iterator[Callable[[str], Gateway]]:
    """Makes gateways that have the same exit, with a budget of bytes."""
    found: list[Gateway] = []

    def one_more(name: str) -> Gateway:
        offers = [Offer(UnusedExit("x"), name="e0", budget=Budget(bytes_per_day=10_000))]
        found.append(Gateway(settings(url), group(offers), name))
        return found[-1]

    try:
        yield one_more
    finally:
        gevent.joinall([gevent.spawn(each.close) for each in found])


def _carry(gateway: Gateway, count: int) -> None:
    member = gateway.group.roster.named("e0")
    assert member is not None
    gateway.group.budgets._add(member, count)


def _carried(gateway: Gateway) -> int:
    """Today, by the exit, as the gateway knows."""
    member = gateway.group.roster.named("e0")
    assert member is not None
    assert member.spending is not None
    return member.spending.today


@pytest.mark.parametrize("how", ["flushed", "restarted"])
def test_a_store_that_comes_back_empty_learns_again_what_exits_have_carried(
    tmp_path: Path, how: str
) -> None:
    with redis_server(tmp_path) as server, _with_budgets(server.url) as gateway:
        one, two = gateway("one"), gateway("two")
        _carry(one, 600)
        becomes(lambda: _carried(two) == 600)
        if how == "flushed":
            server.client().flushall()
        else:
            server.kill()
            server.start()
        late = gateway("late")  # which knows only what the store does
        becomes(lambda: _carried(late) == 600)
        _carry(late, 5)
        _carry(two, 300)
        becomes(lambda: {_carried(each) for each in (one, two, late)} == {905})


def test_what_was_carried_is_counted_once_though_a_frozen_store_gets_it_twice(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as server, _with_budgets(server.url) as gateway:
        one, two = gateway("one"), gateway("two")
        _carry(one, 1)
        becomes(lambda: _carried(two) == 1)
        server.freeze()
        for each in (one, two):
            _carry(each, 600)
            each.fleet.soon()
        becomes(lambda: not one.fleet.sync.is_in_touch and not two.fleet.sync.is_in_touch)
        _carry(one, 50)  # which goes by a later number
        server.thaw()
        becomes(lambda: {_carried(each) for each in (one, two)} == {1251})
        for each in (one, two):
            assert each.fleet.sync.wait(5.0)
        assert _sums(server) == {b"1251"}


def _sums(server: RedisServer) -> set[bytes]:
    """Of the day and of the month."""
    client = server.client()
    return {client.hget(key, "sum") for key in client.keys("gsocks:1:bytes:*")}
