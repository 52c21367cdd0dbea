"""Gateways that share a store, with a real Redis: what one knows all know, come what may."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from gsocks.errors import StoreFailed
from gsocks.fleet import scripts
from gsocks.fleet.store import Store, check
from gsocks.rotation.group import Offer
from tests.support.fleets import Gateway, becomes, gateways, group, settings
from tests.support.redis_server import RedisServer, cluster, redis_server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


# --- what is shared ---------------------------------------------------------------------------


def test_bans_drains_and_ejections_are_known_to_all_within_a_second(server: RedisServer) -> None:
    with gateways(settings(server.url), 3) as (one, two, three):
        one.group.ban("e0", 600.0)
        two.group.drain("e1")
        three.eject("e2")
        wanted = ["banned", "draining", "ejected", "unproven"]
        took = becomes(
            lambda: all(
                [each.state(f"e{n}") for n in range(4)] == wanted for each in (one, two, three)
            )
        )
        assert took < 1.0
        three.group.unban("e0")
        one.group.drain("e1", draining=False)
        becomes(lambda: two.state("e0") == "ok" and three.state("e1") == "unproven")


def test_a_ban_for_a_domain_and_its_end_are_known_to_all(server: RedisServer) -> None:
    with gateways(settings(server.url)) as (one, two):
        one.group.ban("e0", 600.0, "shop.example")
        domains = two.group.roster.domains
        becomes(lambda: domains.is_ejected("e0", "shop.example", time.monotonic()))
        two.group.unban("e0", "shop.example")
        becomes(
            lambda: not one.group.roster.domains.is_ejected("e0", "shop.example", time.monotonic())
        )


def test_a_session_that_has_moved_has_its_exit_at_every_gateway(server: RedisServer) -> None:
    with gateways(settings(server.url)) as (one, two):
        first = one.request("cart")
        assert two.request("cart") == first  # computed, without having asked
        one.group.rotate(None, "cart")
        then = one.request("cart")
        assert then != first
        becomes(lambda: two.group.sessions.exit_of(("", "cart"), time.monotonic()) == then)
        assert two.request("cart") == then


def test_sessions_that_any_gateway_computes_are_not_in_the_store(server: RedisServer) -> None:
    with gateways(settings(server.url), 1) as (one,):
        for number in range(50):
            one.request(f"s{number}")
        one.group.rotate(None, "s7")
        one.request("s7")
        keys = server.client().keys
        becomes(lambda: keys("gsocks:1:r:local:session:*"))
        one.fleet.sync.wait(5.0)
        (name,) = keys("gsocks:1:r:local:session:*")
        assert name.endswith(b'["","s7"]')
        assert 0 < server.client().pttl(name) <= 600_000


def test_a_session_must_not_move_where_an_exit_was_added(server: RedisServer) -> None:
    of = settings(server.url)
    with gateways(of, 1) as (one,):
        had = {f"s{number}": one.request(f"s{number}") for number in range(40)}
        offers = [(member.name, member.exit) for member in one.group.roster]
        more = group(8)
        one.group.update(
            [*(_offer(name, exit_) for name, exit_ in offers)]
            + [_offer(f"e{n}", more.roster.named(f"e{n}").exit) for n in range(4, 8)]  # type: ignore[union-attr]
        )
        assert {name: one.request(name) for name in had} == had
        one.fleet.sync.wait(5.0)
        becomes(lambda: server.client().keys("gsocks:1:r:local:session:*"))
        one.fleet.sync.wait(5.0)
        newcomer = Gateway(of, more, "late")
        try:
            assert {name: newcomer.request(name) for name in had} == had
        finally:
            newcomer.close()


def _offer(name: str, exit_: object) -> Offer:
    return Offer(exit_, name=name)  # type: ignore[arg-type]


def test_a_gateway_that_starts_later_learns_what_was_told_before(server: RedisServer) -> None:
    of = settings(server.url)
    with gateways(of, 1) as (one,):
        one.group.ban("e0", 600.0)
        one.eject("e1")
        assert one.fleet.sync.wait(5.0)
        late = Gateway(of, name="late")
        try:
            assert late.state("e0") == "banned"
            assert late.state("e1") == "ejected"
            assert {each["gateway"] for each in late.fleet.listing()["members"]} == {"gw0", "late"}
        finally:
            late.close()
        becomes(lambda: len(one.fleet.members) == 1)  # it has said farewell


def test_the_name_of_another_exit_means_nothing_here(server: RedisServer) -> None:
    of = settings(server.url)
    with gateways(of, 1) as (one,):
        other = Gateway(of, group([_offer("e0", _Labelled())]), "other")
        try:
            one.group.ban("e0", 600.0)
            assert one.fleet.sync.wait(5.0)
            gevent.sleep(0.3)
            assert other.state("e0") == "unproven"
        finally:
            other.close()


class _Labelled:
    label = "http://quite.another"

    def close(self) -> None: ...

    def connect(self, request: object) -> object: ...


def test_a_report_at_one_gateway_is_executed_by_the_others(server: RedisServer) -> None:
    with gateways(settings(server.url)) as (one, two):
        body = b'{"domain": "a.example", "ok": true}'
        one.fleet.command(["exits", "e0", "report"], "local", body)
        one.fleet.command(["exits", "e0", "ban"], "local", b'{"seconds": 5}')  # a record
        becomes(lambda: two.executed)
        assert two.executed == [(["exits", "e0", "report"], "local", body)]
        assert not one.executed


# --- what becomes of the store ----------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [each.getMessage() for each in caplog.records if what in each.getMessage()]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_store_that_is_away_is_told_once_and_what_was_meant_meanwhile_is_merged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level(logging.INFO)
    with redis_server(tmp_path) as server, gateways(settings(server.url)) as (one, two):
        one.group.ban("e3", 600.0)
        becomes(lambda: two.state("e3") == "banned")
        server.kill() if how == "killed" else server.freeze()
        becomes(lambda: not one.fleet.sync.is_in_touch and not two.fleet.sync.is_in_touch)
        longest = 0.0
        one.group.ban("e0", 600.0)
        two.group.ban("e1", 600.0)
        gevent.sleep(0.3)  # it is later by any clock
        one.group.unban("e3")
        for _ in range(20):  # nothing stops the loop meanwhile
            began = time.monotonic()
            gevent.sleep(0.01)
            longest = max(longest, time.monotonic() - began - 0.01)
        assert longest < 0.25
        assert len(lines(caplog, "goes on alone")) == 2  # one of each gateway
        server.start() if how == "killed" else server.thaw()
        took = becomes(
            lambda: all(
                [each.state(f"e{n}") for n in (0, 1, 3)] == ["banned", "banned", "ok"]
                for each in (one, two)
            )
        )
        assert took < 4.0
        becomes(lambda: one.fleet.sync.is_in_touch and two.fleet.sync.is_in_touch)
        assert len(lines(caplog, "goes on alone")) == 2
        assert len(lines(caplog, "answers again")) == 2


def test_what_a_store_has_lost_is_written_again(server: RedisServer) -> None:
    of = settings(server.url)
    with gateways(of, 1) as (one,):
        one.group.ban("e0", 600.0)
        one.group.rotate(None, "cart")
        had = one.request("cart")
        becomes(lambda: len(server.client().keys("gsocks:1:r:*")) >= 2)
        server.client().flushall()
        becomes(lambda: len(server.client().keys("gsocks:1:r:*")) >= 2)
        late = Gateway(of, name="late")
        try:
            assert late.state("e0") == "banned"
            assert late.request("cart") == had
        finally:
            late.close()


def test_a_store_that_is_away_at_the_start_delays_it_by_seconds_only() -> None:
    began = time.monotonic()
    with gateways(settings("redis://127.0.0.1:9"), 1) as (one,):
        assert time.monotonic() - began < 4.0
        assert one.request("cart")
        assert not one.fleet.sync.is_in_touch
        assert "127.0.0.1:9" in one.fleet.listing()["store"]["state"]


def test_a_full_store_refuses_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path) as server, gateways(settings(server.url), 1) as (one,):
        admin = server.client()
        admin.config_set("maxmemory", "1")
        one.group.ban("e0", 600.0)
        becomes(lambda: not one.fleet.sync.is_in_touch)
        assert lines(caplog, "maxmemory")
        admin.config_set("maxmemory", "0")
        becomes(lambda: admin.keys("gsocks:1:r:local:ban:e0"))


# --- the store itself -------------------------------------------------------------------------


def test_a_password_is_taken_from_its_file_and_stands_in_no_message(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret-word\n")
    secret.chmod(0o600)
    with redis_server(tmp_path / "redis") as server:
        may = ("on", ">s3cret-word", "~gsocks:*", "&gsocks:*", "+@all", "-@dangerous")
        server.client().execute_command("ACL", "SETUSER", "gw", *may)
        server.client().execute_command("ACL", "SETUSER", "default", "off")
        url = f"redis://gw@127.0.0.1:{server.port}"
        of = settings(url, password_file=secret)
        assert check(of).startswith("shared at redis://gw:***@127.0.0.1")
        with gateways(of) as (one, two):
            one.group.ban("e0", 60.0)
            becomes(lambda: two.state("e0") == "banned")
            assert "s3cret" not in repr(one.fleet.store) + repr(one.fleet) + repr(of)
        secret.write_text("wrong-word\n")
        assert "wrong" not in check(of).replace("invalid username-password pair", "")
        assert "goes on alone" in check(of)


SCRIPT_KEY = "gsocks:1:test"


def test_scripts_do_what_they_say_here_and_in_a_cluster(
    server: RedisServer, tmp_path: Path
) -> None:
    with cluster(tmp_path) as nodes:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in nodes)
        for url in (server.url, f"redis+cluster://{hosts}"):
            store = Store(settings(url), "00000000")
            try:
                _try_scripts(store)
            finally:
                store.close()
        with gateways(settings(f"redis+cluster://{hosts}")) as (one, two):
            one.group.ban("e0", 600.0)
            one.group.rotate(None, "cart")
            had = one.request("cart")
            assert becomes(lambda: two.state("e0") == "banned") < 2.0
            becomes(lambda: two.group.sessions.exit_of(("", "cart"), time.monotonic()) == had)
            late = Gateway(settings(f"redis+cluster://{hosts}"), name="late")
            try:
                assert late.state("e0") == "banned"
                assert late.request("cart") == had
            finally:
                late.close()


def _try_scripts(store: Store) -> None:
    def run(script: str, name: str, *arguments: str | int) -> object:
        return store.exchange([("EVAL", script, 1, f"{SCRIPT_KEY}:{name}", *arguments)])[0]

    older, newer = "1" * 24, "2" * 24
    assert run(scripts.WRITE, "w", newer + "b", 60_000) == 1
    assert run(scripts.WRITE, "w", older + "a", 60_000) == 0
    assert run(scripts.WRITE, "w", newer + "b", 60_000) == 1  # the same again: it lasts longer
    assert store.exchange([("GET", f"{SCRIPT_KEY}:w")]) == [(newer + "b").encode()]
    assert run(scripts.LEASE, "l", "me", 60_000) == 1
    assert run(scripts.LEASE, "l", "other", 60_000) == 0
    assert run(scripts.LEASE, "l", "me", 60_000) == 1
    assert run(scripts.RELEASE, "l", "other") == 0
    assert run(scripts.RELEASE, "l", "me") == 1
    assert run(scripts.LEASE, "l", "other", 60_000) == 1
    assert run(scripts.SHARE, "s", "a", 7, 5, 10, 60_000) == [7, 0]
    assert run(scripts.SHARE, "s", "b", 7, 1, 10, 60_000) == [3, 7]
    assert run(scripts.SHARE, "s", "c", 4, 2, 10, 60_000) == [2, 10]  # it has them already
    assert run(scripts.SHARE, "s", "a", 0, 0, 10, 60_000) == [0, 5]
    assert run(scripts.SHARE, "s", "b", 9, 1, 10, 1) == [8, 2]
    assert run(scripts.ADD, "n", 5, int(time.time()) + 60) == 5
    assert run(scripts.ADD, "n", 6, int(time.time()) + 60) == 11


def test_a_store_that_is_not_there_is_one_line() -> None:
    store = Store(settings("redis://127.0.0.1:9"), "00000000")
    with pytest.raises(StoreFailed, match=r"redis://127.0.0.1:9: .*refused"):
        store.exchange([("PING",)])
    store.close()
