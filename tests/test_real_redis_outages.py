"""What happens while the store is away, for one or all, and how soon the gateways are one again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import gevent
import pytest

from gsocks.access.throttle import Throttle
from gsocks.address import Address
from gsocks.backoff import Backoff
from gsocks.fleet.members import Members
from gsocks.fleet.settling import Settling
from gsocks.fleet.store import TIMEOUT
from gsocks.fleet.sync import FleetSync
from tests.support.engine import Forwarder
from tests.support.fleets import Gateway, becomes, gateways, settings
from tests.support.redis_server import redis_server
from tests.support.waiting import TOO_LONG

REPORT = ["exits", "e0", "report"]


@contextmanager
def gateway(url: str, name: str) -> Iterator[Gateway]:
    found = Gateway(settings(url), name=name)
    try:
        yield found
    finally:
        found.close()


def report(gateway: Gateway, body: bytes) -> None:
    gateway.fleet.command(REPORT, "local", body)


def reports(gateway: Gateway) -> list[bytes]:
    """Those of other gateways that were executed here."""
    return [body for _, _, body in gateway.executed]


def is_alone(gateway: Gateway) -> bool:
    return not gateway.fleet.sync.is_in_touch


# --- nothing is lost --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_what_happened_while_the_store_was_away_is_heard_once_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url)) as (one, two):
        throttles = [Throttle(lambda *_: False, sleep=lambda _: None) for _ in range(2)]
        for each, throttle in zip((one, two), throttles, strict=True):
            each.fleet.share_guesses(throttle)
        heard: list[str] = []
        monkeypatch.setattr(throttles[1], "hear", lambda prefix, _: heard.append(prefix))
        server.kill() if how == "killed" else server.freeze()
        report(one, b"first")
        throttles[0].verify("192.0.2.7", "alice", b"guess")
        becomes(lambda: is_alone(one) and is_alone(two))
        report(one, b"second")
        throttles[0].verify("192.0.2.8", "alice", b"guess")
        server.start() if how == "killed" else server.thaw()
        becomes(lambda: reports(two) == [b"first", b"second"] and len(heard) == 2)
        report(one, b"third")
        becomes(lambda: reports(two)[2:] == [b"third"])
        assert heard == ["192.0.2.7", "192.0.2.8"]


def test_a_gateway_that_was_cut_off_hears_of_what_happened_meanwhile(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as server,
        Forwarder(Address("127.0.0.1", server.port)) as path,
        gateway(server.url, "one") as one,
        gateway(f"redis://{path.bound}", "two") as two,
    ):
        becomes(lambda: len(one.fleet.members) == 2)
        path.fall_silent()
        becomes(lambda: is_alone(two))
        for number in range(150):
            report(one, b"%d" % number)
            assert one.fleet.sync.wait(TOO_LONG)
        path.cut()
        kept = [b"%d" % number for number in range(50, 150)]  # of more the oldest are forgotten
        becomes(lambda: reports(two) == kept)
        with gateway(server.url, "late") as late:
            report(one, b"later")
            becomes(lambda: reports(late) == [b"later"])  # the others were before its time
        assert reports(two) == [*kept, b"later"]


def test_long_reports_reach_all_in_several_messages(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url)) as (one, two):
        for _ in range(500):  # more than is read of one message
            report(one, b"x" * 4000)
        becomes(lambda: len(two.executed) == 500)


# --- soon -------------------------------------------------------------------------------------


def test_all_waits_until_gateways_are_one_again_are_shorter_than_two_seconds() -> None:
    random = Random(1)
    pauses = [FleetSync.backoff.delay(number, random) for number in range(1000)]
    back = max(FleetSync.least_pause, *pauses) + TIMEOUT
    emptied = Members.interval + FleetSync.interval  # it is found by a sign of life
    assert max(back, emptied) + Settling.longest <= 1.9
    # those that reach it again later than others are waited for
    assert max(pauses) < Settling.longest
    # those that have failed together do not return together
    assert len(set(pauses)) == len(pauses)
    assert min(pauses[10:]) < 0.8 * max(pauses)


@pytest.mark.parametrize("first", ["writing", "listening"])
def test_who_finds_first_that_the_store_is_back_wakes_the_other(tmp_path: Path, first: str) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 1) as (one,):
        sync = one.fleet.sync
        sync.backoff = Backoff(3600.0)
        server.kill()
        becomes(lambda: len(sync._troubles) == 2)
        server.start()
        (sync._wake if first == "writing" else sync._retry).set()
        becomes(lambda: sync.is_in_touch)


def test_a_store_that_has_lost_all_is_filled_again_without_a_sign_of_life_between(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 1) as (one,):
        one.group.ban("e0", 600.0)
        client = server.client()
        becomes(lambda: client.exists("gsocks:1:r:local:ban:e0"))
        one.fleet.sync.interval = one.fleet.members.interval = 3600.0
        assert one.fleet.sync.wait(TOO_LONG)
        client.flushall()
        one.fleet.soon()
        becomes(lambda: client.exists("gsocks:1:r:local:ban:e0"))


def test_who_finds_that_the_store_has_lost_all_has_the_others_look_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url)) as (one, two):
        lost: list[float] = []
        monkeypatch.setattr(two.fleet.members, "emptied", lost.append)
        becomes(lambda: len(one.fleet.members) == 2)
        for each in (one, two):
            each.fleet.sync.interval = each.fleet.members.interval = 3600.0
            assert each.fleet.sync.wait(TOO_LONG)
        server.client().flushall()
        one.fleet.soon()
        becomes(lambda: lost)


def test_a_channel_that_may_be_dead_since_an_outage_is_left(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 1) as (one,):
        sync = one.fleet.sync
        sync.deaf = 3600.0
        admin = server.client()
        before = {each["id"] for each in admin.client_list(_type="pubsub")}
        admin.config_set("maxmemory", "1")  # writing fails alone
        one.group.ban("e0", 600.0)
        becomes(lambda: is_alone(one))
        admin.config_set("maxmemory", "0")
        becomes(lambda: sync.is_in_touch)
        becomes(lambda: {each["id"] for each in admin.client_list(_type="pubsub")} - before)


def test_what_is_told_is_heard_while_many_records_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url)) as (one, two):
        read_all, is_reading = two.fleet.store.read_all, gevent.event.Event()

        def endless(*parts: str) -> Iterator[list[tuple[str, bytes]]]:
            yield from read_all(*parts)
            is_reading.set()
            while parts == ("r",) and two.state("e0") != "banned":
                yield []
                gevent.sleep(0.001)

        monkeypatch.setattr(two.fleet.store, "read_all", endless)
        two.fleet.sync._lost_at = float("inf")  # it begins to listen anew
        assert is_reading.wait(TOO_LONG)
        two.fleet.sync._lost_at = float("-inf")
        one.group.ban("e0", 600.0)
        becomes(lambda: two.state("e0") == "banned")
