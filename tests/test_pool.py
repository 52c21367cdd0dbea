"""The pool: a tunnel is ready before it is needed, and no user ever meets a dead one."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from ctypes import CDLL, get_errno
from typing import Any

import gevent
import pytest
from gevent import subprocess
from gevent.event import Event
from gevent.socket import socket
from gevent.subprocess import PIPE, Popen

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import (
    ConnectionRefused,
    ConnectTimeout,
    ExitFailed,
    ShuttingDown,
    StreamError,
    StreamReset,
    Withdrawn,
)
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.pool import Pool
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.server import RemoteServer
from gsocks.settings import PoolSettings
from gsocks.stream import Bytes, send_now
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.server import ServerTunnel
from tests.support import needs
from tests.support.engine import (
    KEY,
    FakeExit,
    Forwarder,
    ask_echo,
    eventually,
    gather,
    make_exit,
    make_server,
    running_inbound,
    tunnel_pair,
)
from tests.support.ports import free_port
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: seconds that are never waited for
LONG = 10_000.0


class Opener:
    """Opens tunnels for a pool to a far end that does what a test says."""

    def __init__(self) -> None:
        #: raised instead of opening
        self.failure: Exception | None = None
        #: cleared, openers wait
        self.may_open = Event()
        self.may_open.set()
        #: whether the far ends answer pings
        self.answers = True
        #: whether the far ends close their tunnels at once
        self.closes = False
        #: monotonic seconds of each attempt
        self.attempts: list[float] = []
        #: how many tried at once, at most
        self.most_at_once = 0
        self._at_once = 0
        #: in the order in which they were opened
        self.tunnels: list[tuple[ClientTunnel, ServerTunnel]] = []
        self._far_ends: list[gevent.Greenlet[..., object]] = []

    def __call__(self) -> ClientTunnel:
        self.attempts.append(time.monotonic())
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            gevent.sleep(0)  # as any connect
            self.may_open.wait()
            if self.failure is not None:
                raise self.failure
            pair = tunnel_pair()
        finally:
            self._at_once -= 1
        self.tunnels.append(pair)
        if self.closes:
            pair[1].close()
        self._far_ends.append(gevent.spawn(self._answer, pair[1]))
        return pair[0]

    def _answer(self, far: ServerTunnel) -> None:
        try:
            if self.answers:
                far.accept()  # answers pings until the end
        except StreamError:
            pass  # closed by the test

    def close(self) -> None:
        gevent.killall(self._far_ends)
        for pair in self.tunnels:
            for end in pair:
                end.close()


@pytest.fixture
def opener() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    opener.close()


MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool(opener: Opener) -> Iterator[MakePool]:
    pools = []

    def make(
        size: int = 4, *, max_idle: float = LONG, started: bool = True, **tunables: Any
    ) -> Pool:
        settings = PoolSettings(size=size, max_idle=max_idle)
        pool = Pool(opener, label="gsocks://far", settings=settings)
        # what happens in a test happens because of what it does, and not because time goes by
        pool.ping_after = pool.ping_timeout = pool.shrink_after = LONG
        for name, value in tunables.items():
            assert hasattr(pool, name)
            setattr(pool, name, value)
        pools.append(pool)
        if started:
            pool.wake()
        return pool

    yield make
    for pool in pools:
        pool.close()


def full(pool: Pool) -> bool:
    return pool.ready >= pool.target


def age(opener: Opener) -> float:
    """Make every tunnel one that was silent for too long; returns since when."""
    long_ago = time.monotonic() - 2 * LONG
    for near, _ in opener.tunnels:
        near.last_heard = long_ago
    return long_ago


def look_after(pool: Pool) -> None:
    """Have the housekeeper do its round now."""
    pool._wake.set()
    gevent.idle()


# --- ahead of need ----------------------------------------------------------------------------


def test_the_repr_of_a_pool_has_its_counts(opener: Opener, make_pool: MakePool) -> None:
    pool = make_pool(2)
    eventually(lambda: full(pool))
    eventually(
        lambda: (
            repr(pool)
            == "<Pool of gsocks://far: 2 of 2 tunnels ready, 0 opening, 0 failed in a row>"
        )
    )
    opener.failure = ExitFailed("no server")
    pool.distrust(time.monotonic() + LONG)
    eventually(
        lambda: (
            repr(pool)
            == "<Pool of gsocks://far: 0 of 2 tunnels ready, 0 opening, 1 failed in a row>"
        )
    )
    pool.close()
    assert repr(pool) == "<Pool of gsocks://far: closed, 0 opening, 1 failed in a row>"


def test_a_started_pool_fills_by_itself(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    assert (pool.ready, pool.opened) == (4, 4)


def test_a_server_that_ends_each_tunnel_at_its_request_is_not_asked_as_fast_as_tunnels_are_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = TunnelExit(Address("127.0.0.1", 1), KEY, Dialer(ALLOW_ALL, Resolver()))
    asked: list[str] = []

    class Ended:
        def __init__(self, name: str, last_heard: float) -> None:
            self.name = name
            self.last_heard = last_heard

        def ask(self, request: Request) -> None:
            asked.append(self.name)
            raise StreamReset

        def abort(self) -> None:
            pass

    def waiting() -> Iterator[Ended]:
        yield Ended("idle", time.monotonic() - 10)
        for _ in range(100):  # the pool is filled while the request is on its way
            yield Ended("new", time.monotonic())

    tunnels = waiting()
    monkeypatch.setattr(way.pool, "take", lambda: (next(tunnels), False))
    monkeypatch.setattr(way, "_ask_waiting", lambda tunnel, request, ask: ask(tunnel, request))
    with pytest.raises(ExitFailed, match="gsocks:"):
        way.connect(Request(Command.CONNECT, Address("192.0.2.1", 9)))
    assert asked == ["idle", "new"]
    way.close()


def test_an_exit_has_no_tunnel_until_it_is_asked(echo_server: Address) -> None:
    server = make_server()
    server.start()
    way = TunnelExit(server.bound, KEY, Dialer(ALLOW_ALL, Resolver()), pool=PoolSettings(size=3))
    try:
        gevent.sleep(0)
        assert way.pool.opened == 0
        assert way.pool._maintainer is None
        connected = way.connect(Request(Command.CONNECT, echo_server))
        connected.stream.abort()
        eventually(lambda: full(way.pool))
    finally:
        way.close()
        server.stop(0)


def test_a_pool_that_is_not_asked_falls_asleep_and_wakes_with_the_next_request(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=2, max_idle=0.05)
    eventually(lambda: full(pool))
    eventually(lambda: pool._maintainer is None)
    assert pool.ready == 0
    opened = pool.opened
    tunnel, _ = pool.take()
    tunnel.close()
    eventually(lambda: full(pool))
    assert pool.opened > opened


def test_a_tunnel_that_comes_back_to_a_pool_asleep_is_looked_after_and_closed_in_its_time(
    make_pool: MakePool,
) -> None:
    pool = make_pool(size=2, max_idle=0.05)
    tunnel, _ = pool.take()
    eventually(lambda: pool._maintainer is None)
    tunnel.used()
    pool.give_back(tunnel, carried=True)
    assert pool.ready == 1
    eventually(lambda: tunnel.closed)
    eventually(lambda: pool._maintainer is None)


def test_a_ready_tunnel_is_taken_without_opening_one(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    opener.may_open.clear()
    tunnel, fresh = pool.take()
    assert not fresh
    assert not tunnel.closed
    assert (pool.hits, pool.misses, pool.opened) == (1, 0, 4)
    tunnel.close()


def test_a_request_costs_one_round_trip_and_no_handshake(echo_server: Address) -> None:
    with running_inbound(make_server()) as server, Forwarder(server.bound) as between:
        way = make_exit(between.bound)
        way.pool.wake()
        eventually(lambda: full(way.pool))
        connections = between.connections
        between.turns.clear()
        stream, bound = way.connect(Request(Command.CONNECT, echo_server))
        assert between.turns == ["up", "down"]
        assert between.connections == connections
        assert bound.host == "127.0.0.1"
        stream.write(b"here")
        assert stream.read() == b"here"
        stream.abort()
        way.close()


def test_the_newest_is_taken_first(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    taken = [pool.take()[0] for _ in range(3)]
    assert taken == [near for near, _ in reversed(opener.tunnels)][:3]
    for tunnel in taken[1:]:
        pool.give_back(tunnel)
    assert pool.take()[0] is taken[2]
    taken[0].close()
    taken[2].close()


def test_a_tunnel_that_is_given_back_is_used_again(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=2)
    eventually(lambda: full(pool))
    first, _ = pool.take()
    pool.give_back(first)
    assert pool.take() == (first, False)
    assert pool.opened == 2
    first.close()


def test_a_closed_tunnel_is_not_taken_back(make_pool: MakePool) -> None:
    pool = make_pool(size=2)
    eventually(lambda: full(pool))
    tunnel, _ = pool.take()
    tunnel.close()
    before = pool.ready
    pool.give_back(tunnel)
    assert pool.ready == before


def test_more_than_twice_the_target_is_not_kept(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=2, started=False, growth=1)
    tunnels = [opener() for _ in range(5)]
    for tunnel in tunnels:
        pool.give_back(tunnel)
    assert pool.ready == 4
    assert tunnels[4].closed


def test_size_0_keeps_nothing_and_opens_for_each_request(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=0)
    gevent.idle()
    assert pool.opened == 0
    tunnel, fresh = pool.take()
    assert fresh
    pool.give_back(tunnel)
    assert (pool.ready, tunnel.closed) == (0, True)


# --- a tunnel that dies while it waits --------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_dead_idle_tunnel_is_noticed_at_once(
    make_pool: MakePool, opener: Opener, how: str
) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    near, far = opener.tunnels[1]
    getattr(far, how)()
    eventually(lambda: pool.found_dead == 1)
    assert near.closed
    assert pool.ready == 3


def test_dead_idle_tunnels_are_replaced(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=4, min_uptime=0.0)
    eventually(lambda: full(pool))
    for _, far in opener.tunnels:
        far.close()
    eventually(lambda: pool.found_dead == 4 and full(pool))
    assert pool.opened == 8
    assert not any(near.closed for near, _ in opener.tunnels[4:])


def test_a_tunnel_that_has_just_died_is_not_taken(make_pool: MakePool, opener: Opener) -> None:
    opener.answers = False  # gevent closes a socket later on which a greenlet waits
    pool = make_pool(size=2)
    eventually(lambda: full(pool))
    alive, dying = opener.tunnels[0], opener.tunnels[1]
    dying[1].close()  # the hub has not run since, so no watcher has noticed
    assert pool.take() == (alive[0], False)
    assert pool.found_dead == 1
    alive[0].close()


def test_nothing_that_was_let_go_gathers_in_the_queue(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=2, min_uptime=0.0)
    for died in range(0, 40, 2):
        eventually(lambda: full(pool))
        for _, far in opener.tunnels[-2:]:
            far.close()
        expected = died + 2
        eventually(lambda: pool.found_dead == expected)  # noqa: B023 - called in this turn only
    eventually(lambda: full(pool))
    assert pool._queue.qsize() <= 3 * 2


def test_sweeping_keeps_the_order_and_each_tunnel_once(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    nears = [near for near, _ in opener.tunnels]
    oldest, second, third, newest = nears
    pool._unwatch(second)  # as a ping does
    pool.give_back(second)
    pool._close_idle(third)
    pool._sweep()
    assert pool._queue.qsize() == 3
    assert [pool.take()[0] for _ in range(3)] == [second, newest, oldest]
    for near in nears:
        near.close()


def test_only_those_that_were_silent_since_then_are_distrusted(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    age(opener)
    opener.tunnels[2][0].used()
    pool.distrust(time.monotonic() - 1)
    assert [near.closed for near, _ in opener.tunnels] == [True, True, False, True]
    eventually(lambda: full(pool))


# --- refilling --------------------------------------------------------------------------------


def test_it_is_filled_again_when_half_are_in_use_and_then_to_the_full(make_pool: MakePool) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    taken = [pool.take()[0] for _ in range(2)]
    look_after(pool)
    assert (pool.ready, pool.opened) == (2, 4), "short requests share a few tunnels"
    taken.append(pool.take()[0])
    eventually(lambda: full(pool))
    assert (pool.ready, pool.opened) == (4, 7)
    for tunnel in taken:
        tunnel.close()


def test_only_so_many_are_opened_ahead_at_once(make_pool: MakePool, opener: Opener) -> None:
    opener.may_open.clear()
    pool = make_pool(size=32)
    gevent.idle()
    assert len(opener.attempts) == pool.opening_at_once == 4
    opener.may_open.set()
    eventually(lambda: full(pool))
    assert opener.most_at_once == 4


def test_while_the_server_is_down_one_tries_with_ever_longer_pauses(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.failure = ConnectionRefused()
    make_pool(size=8, opening_at_once=1, backoff_base=0.002, backoff_cap=0.064)
    eventually(lambda: len(opener.attempts) > 9)
    pauses = [later - earlier for earlier, later in itertools.pairwise(opener.attempts)]
    longest = [min(0.064, 0.002 * 2**n) for n in range(1, len(pauses) + 1)]
    assert all(pause >= least / 2 for pause, least in zip(pauses, longest, strict=True))
    assert opener.most_at_once == 1


def test_after_a_failure_one_tries_for_all_until_it_succeeds(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.failure = ConnectionRefused()
    pool = make_pool(size=8, backoff_base=0.001, backoff_cap=0.001)
    eventually(lambda: len(opener.attempts) > 4)
    opener.most_at_once = 0
    eventually(lambda: len(opener.attempts) > 10)
    assert opener.most_at_once == 1
    opener.failure = None
    eventually(lambda: full(pool))
    assert 1 < opener.most_at_once <= 4


def test_openers_that_fail_together_count_as_one_failure(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.failure = ConnectionRefused()
    pool = make_pool(size=8, backoff_base=100.0, backoff_cap=1e9)
    eventually(lambda: len(opener.attempts) == 4)
    gevent.idle()
    assert 0 < pool._not_before - time.monotonic() <= 200
    assert len(opener.attempts) == 4


def close_far_ends(opener: Opener, since: int = 0) -> None:
    for _, far in opener.tunnels[since:]:
        far.close()


def test_a_server_that_closes_new_tunnels_is_asked_with_ever_longer_pauses(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.closes = True
    pool = make_pool(size=8, opening_at_once=1, backoff_base=0.002, backoff_cap=0.064)
    eventually(lambda: pool.found_dead)
    first = len(opener.attempts) - 1
    eventually(lambda: len(opener.attempts) > first + 9)
    pauses = [later - earlier for earlier, later in itertools.pairwise(opener.attempts[first:])]
    longest = [min(0.064, 0.002 * 2**n) for n in range(1, len(pauses) + 1)]
    assert all(pause >= least / 2 for pause, least in zip(pauses, longest, strict=True))


def test_after_such_a_death_one_tunnel_has_to_show_that_it_stays(
    make_pool: MakePool, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gsocks.pool")
    pool = make_pool(size=4, backoff_base=0.001, backoff_cap=0.001)
    eventually(lambda: full(pool))
    close_far_ends(opener)
    eventually(lambda: pool.found_dead == 4)
    eventually(lambda: pool.ready == 1)
    look_after(pool)
    assert pool.opened == 5
    opener.tunnels[-1][0].last_used -= pool.min_uptime
    look_after(pool)
    eventually(lambda: full(pool))
    assert [record.getMessage() for record in caplog.records] == [
        "gsocks://far: the server closes new tunnels",
        "gsocks://far: tunnels can be opened again",
    ]


def test_while_that_tunnel_shows_it_the_housekeeper_sleeps(
    make_pool: MakePool, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[None] = []
    pool = make_pool(size=4, backoff_base=0.001, backoff_cap=0.001)
    eventually(lambda: full(pool))
    close_far_ends(opener)
    eventually(lambda: pool.ready == 1 and pool._not_before < time.monotonic())
    monkeypatch.setattr(pool, "_reap", lambda: rounds.append(None))
    look_after(pool)
    for _ in range(50):
        gevent.sleep(0.001)  # a timer that begins after each one of its own
    assert len(rounds) < 10


def test_a_stream_shows_too_that_the_server_keeps_its_tunnels_and_a_refusal_does_not(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=4, backoff_base=0.001, backoff_cap=0.001)
    eventually(lambda: full(pool))
    close_far_ends(opener)
    eventually(lambda: pool.ready == 1)
    pool.give_back(pool.take()[0])
    look_after(pool)
    assert pool.opened == 5
    pool.give_back(pool.take()[0], carried=True)
    eventually(lambda: full(pool))


def test_tunnels_that_served_or_were_old_when_they_died_are_replaced_at_once(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=4, backoff_base=LONG, backoff_cap=LONG)
    eventually(lambda: full(pool))
    for near, _ in opener.tunnels[:2]:
        near.served = 1
    for near, _ in opener.tunnels[2:]:
        near.last_used -= pool.min_uptime
    close_far_ends(opener)
    eventually(lambda: pool.found_dead == 4)
    eventually(lambda: full(pool))


def test_two_pools_do_not_come_back_at_the_same_moment(make_pool: MakePool, opener: Opener) -> None:
    opener.failure = ConnectionRefused()
    pools = [make_pool(size=1, backoff_base=1000.0, backoff_cap=1e9) for _ in range(8)]
    eventually(lambda: len(opener.attempts) == 8)
    gevent.idle()
    assert len({round(pool._not_before, 3) for pool in pools}) > 1


def test_the_failure_is_told_once_and_its_end_too(
    make_pool: MakePool, opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gsocks.pool")
    opener.failure = ConnectionRefused("Connection refused")
    pool = make_pool(size=2, backoff_base=0.001, backoff_cap=0.001)
    eventually(lambda: len(opener.attempts) > 5)
    opener.failure = None
    eventually(lambda: full(pool))
    assert [record.getMessage() for record in caplog.records] == [
        "gsocks://far: no tunnel can be opened: Connection refused",
        "gsocks://far: tunnels can be opened again",
    ]


def test_a_request_does_not_wait_for_the_backoff_and_ends_it(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.failure = ConnectionRefused()
    pool = make_pool(size=2, backoff_base=1000.0, backoff_cap=1000.0)
    eventually(lambda: opener.attempts)
    gevent.idle()
    assert pool.ready == 0
    opener.failure = None
    tunnel, fresh = pool.take()
    assert fresh
    tunnel.close()
    eventually(lambda: full(pool))


def test_a_request_is_told_why_no_tunnel_can_be_opened(make_pool: MakePool, opener: Opener) -> None:
    opener.failure = ConnectionRefused("told")
    with pytest.raises(ConnectionRefused, match="told"):
        make_pool(size=0).take()


# --- the size follows the demand --------------------------------------------------------------


def test_each_miss_makes_it_larger_up_to_a_bound(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=2, growth=3, opening_at_once=0)
    tunnels = [pool.take()[0] for _ in range(10)]
    assert (pool.misses, pool.target) == (10, 6)
    for tunnel in tunnels:
        tunnel.close()


def test_a_grown_pool_is_halved_when_no_request_misses_any_more(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=2, shrink_after=LONG)
    tunnels = [pool.take()[0] for _ in range(14)]
    assert pool.target > 2
    pool.shrink_after = 0.02
    look_after(pool)
    for tunnel in tunnels:
        pool.give_back(tunnel)
    eventually(lambda: pool.target == 2 and pool.ready == 2)
    assert sum(not tunnel.closed for tunnel, _ in opener.tunnels) == 2


def test_a_tunnel_unused_for_too_long_is_closed(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    for number in (0, 2, 3):  # most of them, so that they are replaced
        opener.tunnels[number][0].last_used -= 2 * LONG
    look_after(pool)
    eventually(lambda: full(pool))
    closed = [near.closed for near, _ in opener.tunnels]
    assert closed == [True, False, True, True, False, False, False]


def test_it_looks_often_enough_to_overrun_no_bound_by_much(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_idle=0.2)
    assert pool._until_next_run() == 0.05
    pool = make_pool(size=1, ping_after=0.1)
    assert pool._until_next_run() == 0.025


# --- age and volume ---------------------------------------------------------------------------


def test_tunnels_that_were_opened_together_have_bounds_of_their_own(
    make_pool: MakePool, opener: Opener
) -> None:
    before = time.monotonic()
    pool = make_pool(size=8)
    eventually(lambda: full(pool))
    ages = {near.expires_at - before for near, _ in opener.tunnels}
    assert len(ages) == len({near.max_volume for near, _ in opener.tunnels}) == 8
    least, most = 0.75 * PoolSettings().max_age, PoolSettings().max_age
    assert all(least <= each <= most + time.monotonic() - before for each in ages)


@pytest.mark.parametrize("bound", ["expires_at", "max_volume"])
def test_a_tunnel_over_a_bound_is_closed_when_its_stream_has_ended_and_not_before(
    make_pool: MakePool, opener: Opener, bound: str
) -> None:
    pool = make_pool(size=2)
    eventually(lambda: full(pool))
    tunnel, other = pool.take()[0], pool.take()[0]
    tunnel.send(Frame.PAD)  # of the stream
    setattr(tunnel, bound, 0)
    tunnel.boxes_in_volume = 0
    look_after(pool)
    assert not tunnel.closed
    for each in (tunnel, other):
        each.used()
        pool.give_back(each, carried=True)
    assert (tunnel.closed, other.closed) == (True, False)


def test_a_tunnel_that_has_come_of_age_while_it_is_idle_is_closed(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    opener.tunnels[1][0].expires_at = time.monotonic()
    look_after(pool)
    assert [near.closed for near, _ in opener.tunnels[:4]] == [False, True, False, False]
    assert pool.found_dead == 0


@pytest.mark.parametrize("take", [Pool.take, Pool.take_ready])
def test_a_tunnel_that_has_come_of_age_is_given_to_no_request(
    make_pool: MakePool, opener: Opener, take: Callable[[Pool], Any]
) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    (last, _), (first, _) = opener.tunnels[0], opener.tunnels[-1]
    for near, _ in opener.tunnels:
        near.expires_at = math.inf if near is last else time.monotonic()
    tunnel, watcher = take(pool)
    assert tunnel is last
    assert first.closed
    assert (pool.found_dead, pool.hits) == (0, 1)
    if take is Pool.take_ready:
        watcher.close()
    eventually(lambda: full(pool))
    tunnel.close()


# --- pings ------------------------------------------------------------------------------------


def test_a_silent_tunnel_is_pinged_and_stays(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=2)
    eventually(lambda: full(pool))
    long_ago = age(opener)
    for _ in range(2):  # half of them each time
        look_after(pool)
    eventually(lambda: all(near.last_heard > long_ago for near, _ in opener.tunnels))
    assert (pool.ready, pool.opened, pool.found_dead) == (2, 2, 0)


def test_a_tunnel_that_does_not_answer_a_ping_is_replaced(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.answers = False
    pool = make_pool(size=1, ping_timeout=0.02)
    eventually(lambda: full(pool))
    opener.answers = True
    age(opener)
    look_after(pool)
    eventually(lambda: opener.tunnels[0][0].closed and full(pool))
    assert (pool.found_dead, pool.opened) == (1, 2)


def test_a_tunnel_that_died_before_its_ping_is_replaced(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=1)
    eventually(lambda: full(pool))
    near, far = opener.tunnels[0]
    pool._unwatch(near)
    far.abort()
    pool._ping(near)
    assert near.closed
    eventually(lambda: full(pool))


def test_at_most_half_are_pinged_at_once_so_that_others_are_ready(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.answers = False
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    age(opener)
    look_after(pool)
    assert pool.ready == 2
    tunnel, fresh = pool.take()
    assert not fresh
    tunnel.close()


def test_tunnels_that_fell_silent_together_have_times_of_their_own_for_a_ping(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=8)
    eventually(lambda: full(pool))
    since = time.monotonic() - LONG / 2
    nears = [near for near, _ in opener.tunnels]
    for near in nears:
        near.last_heard = since
    times = pool._ping_times(time.monotonic())
    assert set(times) == set(nears)
    assert len(set(times.values())) == 8
    assert all(0.6 * LONG <= at - since <= LONG for at in times.values())
    assert pool._ping_times(time.monotonic()) == times
    nears[0].last_heard += 1.0
    again = pool._ping_times(time.monotonic())
    assert [near for near in nears if again[near] != times[near]] == nears[:1]


def test_tunnels_that_are_in_use_again_and_again_have_no_time_for_a_ping(
    make_pool: MakePool,
) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    now = time.monotonic()
    assert not pool._ping_times(now + 0.29 * LONG)
    assert len(pool._ping_times(now + 0.3 * LONG)) == 4


def test_a_tunnel_is_pinged_when_its_own_time_comes_and_no_other_one_with_it(
    make_pool: MakePool, opener: Opener
) -> None:
    opener.answers = False
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    now = time.monotonic()
    for (near, _), silent in zip(opener.tunnels, (0.0, 0.5, 2.0, 0.55), strict=True):
        near.last_heard = now - silent * LONG
    look_after(pool)
    assert pool._pinged == {opener.tunnels[2][0]}
    assert pool.opened == 4, "what is being pinged is not missing"


def test_the_housekeeper_sleeps_until_something_is_due(make_pool: MakePool) -> None:
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    assert pool._until_next_run() == LONG / 4
    assert LONG / 8 < pool._until_next_run(time.monotonic() + LONG / 5) <= LONG / 5
    first, *_ = pool._alive
    first.expires_at = time.monotonic() + LONG / 10
    assert LONG / 16 < pool._until_next_run(time.monotonic() + LONG / 5) <= LONG / 10


def test_an_observer_sees_pings_of_many_sizes_at_many_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[tuple[type, int], list[tuple[float, int]]] = {}

    def note(kind: type[Tunnel]) -> None:
        def send(fd: int, data: Bytes) -> int:
            seen.setdefault((kind, fd), []).append((time.monotonic(), len(data)))
            return send_now(fd, data)

        monkeypatch.setattr(kind, "send_some", staticmethod(send))

    note(ClientTunnel)
    note(ServerTunnel)
    with running_inbound(make_server()) as server:
        way = make_exit(server.bound, pool_size=4)
        way.pool.ping_after = 0.2
        way.pool.wake()
        eventually(lambda: len(seen) == 8 and all(len(each) >= 6 for each in seen.values()))
        way.close()
    gaps = []
    for sent in seen.values():
        times, sizes = zip(*sent, strict=True)
        assert len(set(sizes)) > 1
        assert all(20 <= size <= 36 + 127 for size in sizes)
        gaps += [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) > 0.119
    assert len({round(gap, 3) for gap in gaps}) > len(gaps) / 3


# --- the end ----------------------------------------------------------------------------------


def test_close_closes_what_waits_and_leaves_what_is_in_use(
    make_pool: MakePool, opener: Opener
) -> None:
    pool = make_pool(size=3)
    eventually(lambda: full(pool))
    tunnel, _ = pool.take()
    pool.close()
    assert pool.ready == 0
    assert [near.closed for near, _ in opener.tunnels] == [True, True, False]
    assert not tunnel.closed
    pool.give_back(tunnel)
    assert tunnel.closed
    assert pool.ready == 0


def test_close_closes_what_is_just_being_pinged(make_pool: MakePool, opener: Opener) -> None:
    opener.answers = False
    pool = make_pool(size=4)
    eventually(lambda: full(pool))
    age(opener)
    look_after(pool)
    assert pool.ready == 2
    pool.close()
    assert all(near.closed for near, _ in opener.tunnels)


def test_close_ends_the_openers_and_opens_no_more(make_pool: MakePool, opener: Opener) -> None:
    opener.may_open.clear()
    pool = make_pool(size=4)
    eventually(lambda: len(opener.attempts) == 4)
    pool.close()
    pool.close()
    opener.may_open.set()
    gevent.idle()
    assert (pool.opened, pool.ready, len(opener.attempts)) == (0, 0, 4)


def test_a_closed_pool_gives_nothing(make_pool: MakePool) -> None:
    pool = make_pool(size=1)
    eventually(lambda: full(pool))
    pool.close()
    with pytest.raises(ShuttingDown):
        pool.take()


def test_starting_twice_keeps_one_house(make_pool: MakePool, opener: Opener) -> None:
    pool = make_pool(size=2)
    pool.wake()
    eventually(lambda: full(pool))
    gevent.idle()
    assert pool.opened == 2


# --- a real server that goes and comes back ---------------------------------------------------


class Restartable:
    """A RemoteServer at one address, which a test stops and starts."""

    def __init__(self) -> None:
        self.port = free_port()
        self.server: RemoteServer | None = None
        self.start()

    def start(self) -> None:
        self.server = make_server(("127.0.0.1", self.port))
        self.server.start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop(0)
            self.server = None

    @property
    def bound(self) -> Address:
        return Address("127.0.0.1", self.port)


@pytest.fixture
def remote() -> Iterator[Restartable]:
    remote = Restartable()
    yield remote
    remote.stop()


@pytest.fixture
def way(remote: Restartable) -> Iterator[TunnelExit]:
    way = make_exit(remote.bound, pool_size=8)
    way.pool.wake()
    yield way
    way.close()


@pytest.fixture
def local(way: TunnelExit) -> Iterator[LocalServer]:
    server = LocalServer(("127.0.0.1", 0), ExitGroup([way], ALLOW_ALL))
    with running_inbound(server):
        yield server


def test_a_server_that_restarts_at_once_is_noticed_by_no_user(
    remote: Restartable, local: LocalServer, way: TunnelExit, echo_server: Address
) -> None:
    for _ in range(3):
        eventually(lambda: full(way.pool))
        remote.stop()
        remote.start()
        calls = [lambda: ask_echo(local.bound, echo_server, b"any peer there?")] * 20
        assert gather(calls) == [b"any peer there?"] * 20


def test_a_server_that_restarts_between_two_requests_is_noticed_by_no_user(
    remote: Restartable, local: LocalServer, way: TunnelExit, echo_server: Address
) -> None:
    for _ in range(10):
        remote.stop()
        remote.start()
        assert ask_echo(local.bound, echo_server, b"still there?") == b"still there?"


def test_a_server_that_was_away_for_long_serves_the_first_request_after_its_return(
    remote: Restartable, local: LocalServer, way: TunnelExit, echo_server: Address
) -> None:
    eventually(lambda: full(way.pool))
    way.pool.backoff_base = way.pool.backoff_cap = 3600.0
    remote.stop()
    eventually(lambda: way.pool.ready == 0 and way.pool._not_before)
    assert all(isinstance(each, Exception) for each in ask_in_turn(local, echo_server, 3))
    remote.start()
    assert ask_echo(local.bound, echo_server, b"back?") == b"back?"
    eventually(lambda: full(way.pool))


def ask_in_turn(local: LocalServer, dest: Address, times: int) -> list[object]:
    return [gather([lambda: ask_echo(local.bound, dest, b"x")])[0] for _ in range(times)]


# --- paths that die without a word ------------------------------------------------------------


class FarNetwork:
    """A network namespace behind a virtual cable: an address here and one there.

    It belongs to a process that ends when its input does, so nothing is left of a killed test.
    """

    def __init__(self) -> None:
        pid = os.getpid()
        self._near, self._far = f"gs{pid}n", f"gs{pid}f"
        net = f"198.18.{pid % 256}"
        self.here, self.elsewhere, self.there = f"{net}.2", f"{net}.3", f"{net}.1"
        self._owner = Popen(["unshare", "-n", "cat"], stdin=PIPE)
        self._namespace = f"/proc/{self._owner.pid}/ns/net"

    def __enter__(self) -> FarNetwork:
        eventually(lambda: os.readlink(self._namespace) != os.readlink("/proc/self/ns/net"))
        ip("link add", self._near, "type veth peer name", self._far, "netns", self._owner.pid)
        ip("address add", self.here + "/24 dev", self._near)
        ip("link set", self._near, "up")
        self._ip_there("address add", self.there + "/24 dev", self._far)
        self.plug_in()
        return self

    def __exit__(self, *_: object) -> None:
        # first the cable: sockets that TCP is not done with can keep the namespace for a while
        ip("link delete", self._near)
        self._owner.communicate()

    def listener(self) -> socket:
        """A listening socket there; its server may be here."""
        with open("/proc/self/ns/net") as here, open(self._namespace) as there:
            enter_network(there.fileno())
            try:
                listener = socket()
                listener.bind((self.there, 0))
                listener.listen()
                return listener
            finally:
                enter_network(here.fileno())

    def unplug(self) -> None:
        """From now on nothing arrives, and no end is told."""
        self._ip_there("link set", self._far, "down")

    def plug_in(self) -> None:
        self._ip_there("link set", self._far, "up")

    def move(self) -> None:
        """We get another address, as from another network; the old one leads nowhere now."""
        ip("address delete", self.here + "/24 dev", self._near)
        ip("address add", self.elsewhere + "/24 dev", self._near)

    def _ip_there(self, *words: object) -> None:
        run("nsenter", f"--net={self._namespace}", "ip", *words)


def ip(*words: object) -> None:
    run("ip", *words)


def run(*words: object) -> None:
    subprocess.run(" ".join(map(str, words)).split(), check=True, timeout=TOO_LONG)


def enter_network(namespace: int) -> None:
    """setns(2), which Python has since 3.12."""
    if CDLL(None, use_errno=True).setns(namespace, 0x40000000):
        raise OSError(get_errno(), os.strerror(get_errno()))


@pytest.fixture
def far_network() -> Iterator[FarNetwork]:
    needs.root()
    needs.program("ip", "iproute2")
    with FarNetwork() as network:
        yield network


@pytest.fixture
def far_exit(far_network: FarNetwork) -> Iterator[TunnelExit]:
    """An exit whose server is in the far network, with its pool filled."""
    with running_inbound(make_server(far_network.listener())) as server:
        way = make_exit(server.bound, pool_size=4, timeout=2.0)
        way.pool.wake()
        eventually(lambda: full(way.pool))
        yield way
        way.close()


def test_when_we_move_to_another_network_the_first_request_still_succeeds_soon(
    far_network: FarNetwork, far_exit: TunnelExit, echo_server: Address
) -> None:
    far_exit.acknowledged_within = 0.2
    far_network.move()
    stream, _ = far_exit.connect(Request(Command.CONNECT, echo_server))
    stream.write(b"moved")
    assert stream.read() == b"moved"
    stream.abort()
    assert far_exit.pool.found_dead == 3, "those that waited beside it are let go, too"
    eventually(lambda: full(far_exit.pool))


def test_an_attempt_of_the_hub_over_a_dead_path_is_left_to_another_tunnel(
    far_network: FarNetwork, far_exit: TunnelExit, echo_server: Address
) -> None:
    far_exit.acknowledged_within = 0.2
    far_network.move()
    ends: list[Any] = []
    assert far_exit.begin(Request(Command.CONNECT, echo_server), ends.append) is not None
    eventually(lambda: ends == [None])
    assert far_exit.pool.found_dead == 3, "those that waited beside it are let go, too"
    eventually(lambda: full(far_exit.pool))


def test_a_pool_on_a_dead_path_is_noticed_by_its_pings(
    far_network: FarNetwork, far_exit: TunnelExit
) -> None:
    pool = far_exit.pool
    pool.ping_after = pool.ping_timeout = 0.05
    far_network.unplug()
    look_after(pool)
    eventually(lambda: pool.found_dead >= 4)


def test_a_dead_path_is_told_as_the_exits_failure_and_it_recovers_with_the_path(
    far_network: FarNetwork, far_exit: TunnelExit, echo_server: Address
) -> None:
    far_exit.acknowledged_within = far_exit._timeout = 0.2
    request = Request(Command.CONNECT, echo_server)
    far_network.unplug()
    with pytest.raises(ExitFailed):
        far_exit.connect(request)
    far_network.plug_in()
    far_exit._timeout = 10.0
    stream, _ = far_exit.connect(request)
    stream.abort()
    eventually(lambda: full(far_exit.pool))


def test_a_dead_path_is_reported_soon_to_the_client_that_was_told_of_success_and_distrusted(
    far_network: FarNetwork, far_exit: TunnelExit, echo_server: Address
) -> None:
    far_exit.acknowledged_within = 0.2
    far_network.move()
    stream, _ = far_exit.connect(Request(Command.CONNECT, echo_server, fast_open=True))
    with pytest.raises(Withdrawn, match="path is dead"):
        stream.read()
    assert far_exit.pool.found_dead == 3, "those that waited beside it are let go, too"


def test_a_slow_destination_is_not_taken_for_a_dead_path(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = FakeExit("slow")
    looked, doubt = Event(), TunnelExit._doubt

    def look(self: TunnelExit, tunnel: ClientTunnel, sent_at: float) -> None:
        doubt(self, tunnel, sent_at)
        looked.set()

    monkeypatch.setattr(TunnelExit, "_doubt", look)
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = make_exit(server.bound, pool_size=2)
        way.acknowledged_within = 0.1  # Linux may delay an acknowledgement by 40 ms
        way.pool.wake()
        eventually(lambda: full(way.pool))
        asking = gevent.spawn(
            gather, [lambda: way.connect(Request(Command.CONNECT, Address("192.0.2.1", 80)))]
        )
        slow.asked.wait()
        looked.wait()  # the time for a sign of life is over
        slow.fail(ConnectionRefused("at last"))
        assert [type(each) for each in asking.get()] == [ConnectionRefused]
        assert (way.pool.found_dead, way.pool.ready, way.pool.opened) == (0, 2, 2)
        way.close()


def test_a_slow_destination_is_not_taken_for_a_dead_path_by_the_hub() -> None:
    slow = FakeExit("slow")
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = make_exit(server.bound, pool_size=2)
        way.acknowledged_within = 0.1
        way.pool.wake()
        eventually(lambda: full(way.pool))
        ends: list[Any] = []
        request = Request(Command.CONNECT, Address("192.0.2.1", 80))
        assert way.begin(request, ends.append) is not None
        slow.asked.wait()
        eventually(lambda: not way.doubts)  # the time for a sign of life is over
        assert not ends
        slow.fail(ConnectionRefused("at last"))
        eventually(lambda: bool(ends))
        assert [type(each) for each in ends] == [ConnectionRefused]
        assert (way.pool.found_dead, way.pool.ready, way.pool.opened) == (0, 2, 2)
        way.close()


def test_early_bytes_that_a_slow_destination_leaves_waiting_are_not_taken_for_a_dead_path() -> None:
    slow = FakeExit("slow")
    with running_inbound(make_server(exit_group=ExitGroup([slow], ALLOW_ALL))) as server:
        way = make_exit(server.bound, pool_size=2)
        way.acknowledged_within = 1.0  # a closed window is probed after 0.2, 0.6 and 1.4 s
        way.pool.wake()
        eventually(lambda: full(way.pool))
        dest = Address("192.0.2.1", 80)
        stream, _ = way.connect(Request(Command.CONNECT, dest, fast_open=True))
        writing = gevent.spawn(gather, [lambda: stream.write(bytes(16 * 1024 * 1024))])
        reading = gevent.spawn(gather, [stream.read])
        slow.asked.wait()
        gevent.sleep(1.5)  # the bound for a sign of life has to pass
        assert not reading.ready()
        slow.fail(ConnectionRefused("at last"))
        assert [each.word for each in reading.get()] == ["refused"]
        writing.join()
        assert way.pool.found_dead == 0
        way.close()


def test_a_server_that_takes_a_request_and_says_nothing_costs_the_connect_timeout_only(
    echo_server: Address,
) -> None:
    with running_inbound(make_server()) as server, Forwarder(server.bound) as between:
        way = make_exit(between.bound, pool_size=2)
        exit_group = ExitGroup([way], ALLOW_ALL, timeout=0.1)
        way.pool.wake()
        eventually(lambda: full(way.pool))
        between.fall_silent()
        with pytest.raises(ConnectTimeout):
            exit_group.connect(Request(Command.CONNECT, echo_server), lambda _: None)
        assert way.pool.ready == 1, "a tunnel whose answer is still due is not given back"
        between.flow()
        exit_group.connect(Request(Command.CONNECT, echo_server), lambda _: None).stream.abort()
        exit_group.close()
