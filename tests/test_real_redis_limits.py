"""Limits that hold over all gateways, with a real Redis: uneven demand, and a store that goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from gsocks.address import Address
from gsocks.exits.budget import Budget
from gsocks.inbound.quota import UserQuota
from gsocks.net.bandwidth import Bucket
from gsocks.request import Command, Request
from gsocks.rotation.group import Offer
from gsocks.settings import Limits, PerHostSettings
from tests.support.fleets import Gateway, becomes, group, settings
from tests.support.redis_server import RedisServer, redis_server
from tests.support.rosters import UnusedExit

#: how often each of three gateways has a request, in proportion to the others
DEMAND = (8, 3, 1)

#: seconds that no attempt may take, however the store is: it would be the store's timeout
LONG = 1.0

Attempt = Callable[[], bool]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


@contextmanager
def three(
    url: str, per_host: PerHostSettings = PerHostSettings(), fail: str = "open", **terms: Any
) -> Iterator[list[Gateway]]:
    """Gateways that have the same exit, on these terms."""
    found: list[Gateway] = []
    try:
        for number in range(3):
            offers = [Offer(UnusedExit("http://exit"), name="e0", **terms)]
            exits = group(offers, per_host=per_host)
            found.append(Gateway(settings(url, fail=fail), exits, f"gw{number}"))
        becomes(lambda: all(len(each.fleet.members) == 3 for each in found))
        yield found
    finally:
        gevent.joinall([gevent.spawn(each.close) for each in found])


def request() -> Request:
    return Request(Command.CONNECT, Address("shop.example", 443))


class Ticks:
    """The clock in steps, so that no pause of this process makes it leap."""

    #: seconds
    step = 0.005

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now

    def go_on(self) -> None:
        """One step, once it is that late."""
        self.now += self.step
        while (early := self.now - time.monotonic()) > 0:
            gevent.sleep(early)
        gevent.sleep(0)


def by_exit(gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> Attempt:
    """A request that goes by the exit at once, or not at all."""

    def attempt() -> bool:
        roster, now, asked = gateway.group.roster, clock(), request()
        member = roster.choose(asked, (), now)
        if member is None or roster.take_turn(member, asked, now, 0.0) is None:
            return False
        roster.request_sent(member, now)
        roster.request_done(member)
        return True

    return attempt


def press(attempts: list[Attempt], rounds: int, pause: float = 0.002) -> list[int]:
    """How many attempts of each gateway are let through, as often as each has one."""
    served = [0, 0, 0]
    for _ in range(rounds):
        for at, attempt in enumerate(attempts):
            for _ in range(DEMAND[at]):
                began = time.monotonic()
                served[at] += attempt()
                assert time.monotonic() - began < LONG
        gevent.sleep(pause)
    return served


def press_until(attempts: list[Attempt], total: int) -> list[int]:
    """The same until so many are let through in all."""
    served = [0, 0, 0]

    def is_enough() -> bool:
        for at, more in enumerate(press(attempts, 1)):
            served[at] += more
        return sum(served) >= total

    becomes(is_enough)
    return served


# --- requests of a minute ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_host", "terms"),
    [
        (PerHostSettings(), {"requests_per_minute": 600}),
        (PerHostSettings(requests_per_minute=600), {}),
    ],
    ids=["of an exit", "of a host"],
)
def test_requests_of_a_minute_are_as_many_as_the_limit_over_all_gateways(
    server: RedisServer, per_host: PerHostSettings, terms: dict[str, Any]
) -> None:
    with three(server.url, per_host, **terms) as found:
        attempts = [by_exit(each) for each in found]
        capped = [attempts[0], _no_more_than(90, attempts[1]), _no_more_than(30, attempts[2])]
        served = press_until(capped, 570)
        for at, more in enumerate(press(capped, 200)):
            served[at] += more
        assert served[1:] == [90, 30]
        assert 570 <= sum(served) <= 630
        assert sum(press(attempts, 100)) + sum(served) <= 630


def _no_more_than(most: int, attempt: Attempt) -> Attempt:
    """A demand that ends once so many were served."""
    left = [most]

    def bounded() -> bool:
        served = left[0] > 0 and attempt()
        left[0] -= served
        return served

    return bounded


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize(("fail", "most"), [("open", 3 * 300), ("closed", 315)])
def test_requests_go_on_while_the_store_is_away_and_their_number_is_bounded(
    tmp_path: Path, fail: str, most: int, how: str
) -> None:
    limits = PerHostSettings(requests_per_minute=300)
    with redis_server(tmp_path) as server, three(server.url, limits, fail) as found:
        attempts = [by_exit(each) for each in found]
        before = sum(press_until(attempts, 100))
        server.kill() if how == "killed" else server.freeze()
        served = before + sum(press(attempts, 20))
        becomes(lambda: not any(each.fleet.sync.is_in_touch for each in found))
        if fail == "open":  # each as if alone
            served += sum(press_until(attempts, most - served))
        served += sum(press(attempts, 300, 0.0))
        assert served <= most
        server.start() if how == "killed" else server.thaw()
        becomes(lambda: all(each.fleet.sync.is_in_touch for each in found))
        for each in found:
            each.fleet.sync.wait(5.0)
        assert sum(press(attempts, 50)) + served <= most


def test_an_exit_of_one_request_a_minute_serves_one(server: RedisServer) -> None:
    with three(server.url, requests_per_minute=1) as found:
        attempts = [by_exit(each) for each in found]
        press_until(attempts, 1)
        assert sum(press(attempts, 300)) == 0


# --- connections -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_host", "terms"),
    [
        (PerHostSettings(), {"max_connections": 60}),
        (PerHostSettings(connections=60), {}),
    ],
    ids=["of an exit", "of a host"],
)
def test_connections_are_as_many_as_the_limit_and_move_to_where_they_are_wanted(
    server: RedisServer, per_host: PerHostSettings, terms: dict[str, Any]
) -> None:
    with three(server.url, per_host, **terms) as found:
        attempts = [by_exit(each) for each in found]
        opened = press_until(attempts, 57)
        for at, more in enumerate(press(attempts, 200)):
            opened[at] += more
        assert 57 <= sum(opened) <= 63
        _close(found[0], opened[0])  # those of the busiest one end, and it wants no more
        rest = [lambda: False, *attempts[1:]]
        press_until(rest, opened[0] - 6)
        assert sum(press(rest, 200)) <= 9


@pytest.mark.parametrize(
    ("per_host", "terms"),
    [
        (PerHostSettings(), {"max_connections": 60}),
        (PerHostSettings(connections=60), {}),
    ],
    ids=["of an exit", "of a host"],
)
def test_a_store_that_was_emptied_grants_no_connections_that_others_have_open(
    server: RedisServer, per_host: PerHostSettings, terms: dict[str, Any]
) -> None:
    with three(server.url, per_host, **terms) as found:
        attempts = [by_exit(each) for each in found]
        opened = sum(press_until([attempts[0], attempts[1], lambda: False], 54))
        last_alone: list[Attempt] = [lambda: False, lambda: False, attempts[2]]
        for _ in range(2):
            server.client().flushall()
            while not _all_have_told(server):
                opened += sum(press(last_alone, 5))
            opened += sum(press(last_alone, 50))
            assert opened <= 63
        _close(found[0], 10)
        press_until(last_alone, 5)  # it goes on as before


def _all_have_told(server: RedisServer) -> bool:
    client = server.client()
    return any(client.hlen(key) == 3 for key in client.keys("gsocks:1:limits:*:connections:*"))


def _close(gateway: Gateway, count: int) -> None:
    member = gateway.group.roster.named("e0")
    assert member is not None
    for _ in range(count):
        gateway.group.roster.connection_closed(member, request())


# --- rates -------------------------------------------------------------------------------------


def test_the_interval_between_requests_holds_in_the_mean_over_all_gateways(
    server: RedisServer,
) -> None:
    with three(server.url, PerHostSettings(min_interval=0.02)) as found:
        clock = Ticks()

        def served_in(seconds: float) -> int:
            served = 0
            for _ in range(round(seconds / clock.step)):
                served += sum(attempt() for attempt in attempts)
                clock.go_on()
            return served

        attempts = [by_exit(each, clock) for each in found]
        served_in(3.0)  # by then they agree
        # an interval ends between two steps, and is seen at the next one
        assert 0.85 * 50 * 2.0 <= served_in(2.0) <= 1.05 * 50 * 2.0


RATE = 2_000_000


class Streams:
    """What streams of one user do at three gateways."""

    def __init__(self) -> None:
        self.clock = Ticks()
        self.buckets: list[Bucket] = []
        self._free_at = [0.0, 0.0, 0.0]

    def come(self, gateway: Gateway) -> None:
        quota = UserQuota(Limits(bandwidth_per_user=RATE), self.clock)
        gateway.fleet.share_quota("local", quota)
        self.buckets.append(quota._buckets_of("alice", RATE).down)

    def transfer(self, demand: tuple[float, ...], seconds: float) -> list[float]:
        """How much of the limit each gets of what it demands, both as a part of the limit."""
        before, clock = [each.carried for each in self.buckets], self.clock
        for tick in range(1, round(seconds / clock.step) + 1):
            for at, bucket in enumerate(self.buckets):
                asked = demand[at] * RATE * clock.step * tick - (bucket.carried - before[at])
                while asked >= 1 and self._free_at[at] <= clock.now:
                    step = min(asked, 1024.0)
                    self._free_at[at] = clock.now + bucket.take(int(step))
                    asked -= step
            clock.go_on()
        carried = zip(self.buckets, before, strict=True)
        return [(each.carried - was) / RATE / seconds for each, was in carried]


@contextmanager
def _streams(url: str, fail: str = "open") -> Iterator[tuple[list[Gateway], Streams]]:
    with three(url, fail=fail) as found:
        streams = Streams()
        for each in found:
            streams.come(each)
        yield found, streams


@pytest.mark.parametrize(
    ("demand", "gets"),
    [
        ((2, 2, 2), (0.33, 0.33, 0.33)),
        ((2, 0.2, 0.05), (0.72, 0.2, 0.05)),
        ((2, 0, 0), (1, 0, 0)),
    ],
    ids=["all want all", "uneven", "one alone"],
)
def test_the_bandwidth_of_a_user_is_the_limit_over_all_gateways(
    server: RedisServer, demand: tuple[float, ...], gets: tuple[float, ...]
) -> None:
    with _streams(server.url) as (_, streams):
        streams.transfer(demand, 4.0)  # by then they agree, and no bucket is full
        got = streams.transfer(demand, 2.0)
        assert 0.95 <= sum(got) <= 1.05
        assert all(one >= 0.9 * other for one, other in zip(got, gets, strict=True))


@pytest.mark.parametrize(("fail", "most"), [("open", 3.0), ("closed", 1.0)])
def test_bandwidth_is_bounded_while_the_store_is_away(
    tmp_path: Path, fail: str, most: float
) -> None:
    demand = (2, 2, 2)
    with redis_server(tmp_path) as server, _streams(server.url, fail) as (found, streams):
        streams.transfer(demand, 3.0)
        server.kill()
        becomes(lambda: not any(each.fleet.sync.is_in_touch for each in found))
        streams.transfer(demand, 1.5)
        got = streams.transfer(demand, 1.0)
        assert 0.95 * most <= sum(got) <= 1.05 * most


# --- budgets -----------------------------------------------------------------------------------


def _spend(found: list[Gateway], step: int, rounds: int) -> int:
    """Carry bytes by the exit, while it has some left, as often as each gateway has a request."""
    carried = 0
    for _ in range(rounds):
        for at, gateway in enumerate(found):
            member = gateway.group.roster.named("e0")
            assert member is not None
            for _ in range(DEMAND[at]):
                if member.spent_until <= time.monotonic():
                    gateway.group.budgets._add(member, step)
                    carried += step
        gevent.sleep(0.02)
    return carried


def test_a_budget_is_spent_once_over_all_gateways(server: RedisServer) -> None:
    with three(server.url, budget=Budget(bytes_per_day=1_000_000)) as found:
        assert 1_000_000 <= _spend(found, 500, 250) <= 1_050_000


def test_while_the_store_is_away_a_budget_fails_closed(tmp_path: Path) -> None:
    budget = Budget(bytes_per_day=1_000_000)
    with redis_server(tmp_path) as server, three(server.url, fail="closed", budget=budget) as found:
        carried = _spend(found, 500, 50)
        for each in found:
            each.fleet.sync.wait(5.0)
        server.kill()
        becomes(lambda: not any(each.fleet.sync.is_in_touch for each in found))
        carried += _spend(found, 500, 400)
        assert carried <= 1_050_000
        server.start()
        becomes(lambda: all(each.fleet.sync.is_in_touch for each in found))
