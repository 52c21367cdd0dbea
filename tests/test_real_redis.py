"""Gateways that share a store, with a real Redis: what one knows all know, come what may."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import gevent
import pytest

from gsocks.access.throttle import Throttle
from gsocks.address import Address
from gsocks.errors import LimitReached, LoginRefused, StoreFailed
from gsocks.exits.budget import Budget
from gsocks.fleet import scripts
from gsocks.fleet.leases import CheckLeases
from gsocks.fleet.store import Store, ask, check
from gsocks.inbound.quota import UserQuota
from gsocks.rotation.group import Offer
from gsocks.settings import Limits
from tests.support.engine import Forwarder
from tests.support.fleets import Gateway, becomes, gateways, group, settings
from tests.support.program import Program
from tests.support.redis_server import RedisServer, cluster, redis_server, sentinel
from tests.support.rosters import UnusedExit
from tests.support.waiting import TOO_LONG, eventually


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
        same = _offer("e1", one.group.roster.named("e1").exit)  # type: ignore[union-attr]
        other = Gateway(of, group([_offer("e0", _Labelled()), same]), "other")
        try:
            one.group.ban("e0", 600.0)
            assert one.fleet.sync.wait(5.0)
            one.group.ban("e1", 600.0)  # what is told later comes later
            becomes(lambda: other.state("e1") == "banned")
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


def _an_hour_ahead() -> float:
    return time.time() + 3600.0


def test_what_is_done_last_counts_though_the_clock_of_a_gateway_is_an_hour_ahead(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    of = settings(server.url)
    one, ahead = Gateway(of, name="one"), Gateway(of, name="ahead", wall=_an_hour_ahead)
    try:
        ahead.group.ban("e0", 600.0)
        becomes(lambda: one.state("e0") == "banned")
        one.group.unban("e0")
        becomes(lambda: ahead.state("e0") == "ok")
        ahead.group.drain("e1")
        becomes(lambda: one.state("e1") == "draining")
        one.group.drain("e1", draining=False)
        becomes(lambda: ahead.state("e1") == "unproven")
        assert not lines(caplog, "ahead by more than a minute")
    finally:
        gevent.joinall([gevent.spawn(each.close) for each in (one, ahead)])


def test_what_a_gateway_an_hour_ahead_did_before_it_knew_the_store_counts_as_of_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path) as server:
        server.kill()
        of = settings(server.url)
        ahead = Gateway(of, name="ahead", wall=_an_hour_ahead)
        one = Gateway(of, name="one")
        try:
            ahead.group.ban("e0", 600.0)
            gevent.sleep(0.3)  # which is gathered and stamped by its own clock
            server.start()
            becomes(lambda: one.state("e0") == "banned")
            one.group.unban("e0")
            becomes(lambda: ahead.state("e0") == "ok")
            assert not lines(caplog, "ahead by more than a minute")
        finally:
            gevent.joinall([gevent.spawn(each.close) for each in (one, ahead)])


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
    ends = int(time.time()) + 60
    assert run(scripts.ADD, "n", "a", 1, 5, 0, ends) == 5
    assert run(scripts.ADD, "n", "b", 1, 6, 0, ends) == 11
    assert run(scripts.ADD, "n", "a", 1, 5, 0, ends) == 11  # again
    assert run(scripts.ADD, "n", "a", 2, 4, 11, ends) == 15
    assert run(scripts.ADD, "n", "c", 0, 0, 20, ends) == 20  # it had lost some
    for number in range(1100):
        assert run(scripts.ADD, "n", f"of {number}", 1, 1, 0, ends) == 21 + number
    assert store.exchange([("HLEN", f"{SCRIPT_KEY}:n")])[0] < 1000  # type: ignore[operator]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9", "redis+cluster://127.0.0.1:9"])
def test_a_store_that_is_not_there_is_one_line(url: str) -> None:
    store = Store(settings(url), "00000000")
    with pytest.raises(StoreFailed, match=rf"{re.escape(url)}: .*refused"):
        store.exchange([("PING",)])
    assert "each gateway goes on alone" in check(settings(url))
    with pytest.raises(StoreFailed, match="refused"):
        ask(settings(url), [("PING",)])
    store.close()


def test_an_answer_of_another_shape_is_a_failure_of_the_store(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        store = Store(settings(server.url), "00000000")
        with pytest.raises(StoreFailed, match="an answer that no Redis gives"):
            store._in_thread(0, lambda: [][0])  # as redis-py does with one that is too short
        assert store.exchange([("PING",)])
        store.close()


# --- work and quotas --------------------------------------------------------------------------


def test_each_exit_is_checked_by_one_process_and_by_all_without_the_store(tmp_path: Path) -> None:
    names = [f"exit-{number}" for number in range(200)]
    with redis_server(tmp_path) as server, gateways(settings(server.url), 3) as found:
        leases = []
        for each in found:
            sync, store = each.fleet.sync, each.fleet.store
            leases.append(CheckLeases("local", sync.members, partial(store.key, "lease", "local")))
            leases[-1].interval = 0.2
            sync.add(leases[-1])
        becomes(lambda: all(sum(each.is_mine(name) for each in leases) == 1 for name in names))
        assert all(any(each.is_mine(name) for name in names) for each in leases)
        found[0].close()
        rest = leases[1:]
        becomes(lambda: all(sum(each.is_mine(name) for each in rest) == 1 for name in names))
        server.kill()
        becomes(lambda: all(each.is_mine(name) for name in names for each in rest))


def test_connections_of_a_user_are_limited_over_all_gateways(server: RedisServer) -> None:
    with gateways(settings(server.url), 3) as found:
        quotas = _quotas(found, 60)
        refused: list[LimitReached] = []

        def connect(quota: UserQuota) -> None:
            try:
                quota.acquire("alice")
            except LimitReached as error:
                refused.append(error)

        gevent.joinall([gevent.spawn(connect, quotas[n % 3]) for n in range(180)])
        total = sum(each.users.get("alice", 0) for each in quotas)
        assert 57 <= total <= 63
        assert total + len(refused) == 180
        # what one gives back another one gets, all that there is
        for quota in quotas[1:]:
            for _ in range(quota.users.get("alice", 0)):
                quota.release("alice")
        gevent.joinall([gevent.spawn(connect, quotas[0]) for _ in range(60)])
        assert 57 <= quotas[0].users["alice"] <= 63
        quotas[1].acquire("bob")  # another user


def _quotas(found: list[Gateway], limit: int) -> list[UserQuota]:
    quotas = []
    for each in found:
        quotas.append(UserQuota(Limits(per_user=limit)))
        each.fleet.share_quota("local", quotas[-1])
    return quotas


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_without_the_store_quotas_fail_as_they_are_told_to(tmp_path: Path, fail: str) -> None:
    with redis_server(tmp_path) as server:
        one = Gateway(settings(server.url, fail=fail))
        try:
            (quota,) = _quotas([one], 50)
            one.fleet.sync.wait(5.0)
            quota.acquire("alice")
            one.fleet.sync.wait(5.0)
            server.kill()
            becomes(lambda: not one.fleet.sync.is_in_touch)
            most = 0
            with suppress(LimitReached):
                for _ in range(60):
                    quota.acquire("alice")
                    most += 1
            assert (most == 49) if fail == "open" else (most < 10)
        finally:
            one.close()


def test_bytes_of_an_exit_count_at_all_gateways(server: RedisServer) -> None:
    budget = Budget(bytes_per_day=1000)
    of = settings(server.url)
    found = [
        Gateway(of, group([Offer(UnusedExit("x"), name="e0", budget=budget)]), f"gw{n}")
        for n in range(2)
    ]
    try:
        members = [each.group.roster.named("e0") for each in found]
        assert members[0] is not None
        found[0].group.budgets._add(members[0], 600)
        becomes(lambda: all(each.spending.today == 600 for each in members))  # type: ignore[union-attr]
        assert members[1] is not None
        found[1].group.budgets._add(members[1], 500)
        becomes(lambda: all(each.spent_until > time.monotonic() for each in members))  # type: ignore[union-attr]
        late = Gateway(of, group([Offer(UnusedExit("x"), name="e0", budget=budget)]), "late")
        found.append(late)
        member = late.group.roster.named("e0")
        becomes(lambda: member.spending.today == 1100)  # type: ignore[union-attr]
    finally:
        gevent.joinall([gevent.spawn(each.close) for each in found])


def _refuses(throttle: Throttle) -> bool:
    return "refused=1" in repr(throttle)


def test_an_address_that_guesses_at_one_gateway_is_refused_at_all(server: RedisServer) -> None:
    with gateways(settings(server.url)) as (one, two):
        throttles = [Throttle(lambda *_: False, sleep=lambda _: None) for _ in range(2)]
        for each, throttle in zip((one, two), throttles, strict=True):
            each.fleet.share_guesses(throttle)
        for number in range(10):
            throttles[number % 2].verify("192.0.2.7", "alice", b"guess")
        one.fleet.sync.wait(5.0)
        for throttle in throttles:
            becomes(partial(_refuses, throttle))
            with pytest.raises(LoginRefused):
                throttle.verify("192.0.2.7", "alice", b"right")


# --- as programs ------------------------------------------------------------------------------


def test_gateways_know_each_other_and_leave_a_balancer_before_they_close(
    tmp_path: Path, server: RedisServer
) -> None:
    def running(name: str, workers: int) -> Program:
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"workers: {workers}\n"
            f"state: {{url: '{server.url}', prefix: programs, gateway: {name}}}\n"
            "health: {listen: 127.0.0.1:0, drain_notice: 400ms}\n"
            "admin: {listen: 127.0.0.1:0}\n"
            "local: {listen: 127.0.0.1:0}\n"
        )
        return Program("-c", path)

    with running("one", 1) as one, running("two", 2) as two:
        health = int(one.wait_for(r"health: listening on \S+:(\d+) ")[0][1])
        admin = int(two.wait_for(r"admin: listening on http://\S+:(\d+) ", 2)[0][1])
        token = (tmp_path / "admin.token").read_text().strip()
        assert _get(health, "/readyz") == (200, b"ok\n")
        assert _get(admin, "/healthz") == (200, b"ok\n")
        eventually(lambda: len(_members(admin, token)) == 3)
        assert {each["gateway"] for each in _members(admin, token)} == {"one", "two"}
        one.signal(signal.SIGTERM)
        eventually(lambda: _get(health, "/readyz") == (503, b"shutting down\n"))
        with socket.create_connection(("127.0.0.1", one.port())):
            pass  # it is accepted still
        assert one.end() == 0
        eventually(lambda: len(_members(admin, token)) == 2)


def _get(port: int, path: str, token: str = "") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=TOO_LONG)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def _members(port: int, token: str) -> list[dict[str, object]]:
    status, body = _get(port, "/v1/fleet", token)
    assert status == 200
    found: list[dict[str, object]] = json.loads(body)["members"]
    return found


def test_sharing_costs_less_than_a_command_for_each_request(server: RedisServer) -> None:
    with gateways(settings(server.url)) as (one, _):
        before = one.fleet.store.commands
        for number in range(4000):
            one.request(f"s{number % 1000}")
            if number < 100:
                one.group.rotate(None, f"s{number}")
        assert one.fleet.sync.wait(5.0)
        assert 100 <= one.fleet.store.commands - before < 1000


def test_a_failover_that_sentinel_makes_is_followed(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path / "a") as master,
        redis_server(tmp_path / "b", "--replicaof", f"127.0.0.1 {master.port}") as replica,
        sentinel(tmp_path / "s", master) as watching,
    ):
        admin = watching.client()
        becomes(lambda: admin.execute_command("SENTINEL", "REPLICAS", "main"))
        with gateways(settings(f"redis+sentinel://127.0.0.1:{watching.port}/main")) as (one, two):
            one.group.ban("e0", 600.0)
            becomes(lambda: two.state("e0") == "banned")
            becomes(lambda: replica.client().keys("gsocks:1:r:local:ban:e0"))
            admin.execute_command("SENTINEL", "FAILOVER", "main")
            becomes(lambda: replica.client().role()[0] == b"master")
            master.kill()
            one.group.ban("e1", 600.0)
            becomes(lambda: two.state("e1") == "banned")
            becomes(lambda: replica.client().keys("gsocks:1:r:local:ban:e1"))


def test_a_gateway_that_is_cut_off_in_silence_goes_on_and_agrees_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Forwarder(Address("127.0.0.1", server.port)) as path:
        here = Gateway(settings(server.url), name="here")
        there = Gateway(settings(f"redis://{path.bound}"), name="there")
        try:
            here.group.ban("e0", 600.0)
            becomes(lambda: there.state("e0") == "banned")
            path.fall_silent()
            here.group.ban("e1", 600.0)
            there.group.ban("e2", 600.0)
            becomes(lambda: not there.fleet.sync.is_in_touch)
            assert there.state("e1") == "unproven"
            assert here.fleet.sync.is_in_touch
            path.cut()  # and it flows again
            becomes(lambda: there.state("e1") == "banned" and here.state("e2") == "banned")
            assert len(lines(caplog, "goes on alone")) == 1
        finally:
            gevent.joinall([gevent.spawn(each.close) for each in (here, there)])
