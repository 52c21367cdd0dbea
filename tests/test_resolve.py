"""Resolver: names to addresses, its cache, and the look-ups that callers share."""

from __future__ import annotations

import socket as std_socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import gevent
import pytest

from gsocks import config, errors
from gsocks.address import Address
from gsocks.dns.client import DnsClient
from gsocks.net.resolve import Resolver
from gsocks.service.plan import explain_rules
from gsocks.settings import DnsSettings
from tests.support.name_server import name_server
from tests.support.names import NO_SUCH_NAME, Clock, Names, ips, nothing_left
from tests.support.waiting import eventually


def test_a_name_gives_its_addresses_in_their_order_and_each_once() -> None:
    names = Names(a_example=["127.0.0.2", "::1", "127.0.0.1", "::1"])
    assert Resolver(names).resolve("a.example") == ips("127.0.0.2", "::1", "127.0.0.1")


@pytest.mark.parametrize("literal", ["127.0.0.1", "::1", "2001:db8::1"])
def test_an_address_is_never_looked_up(literal: str) -> None:
    names = Names()
    assert Resolver(names).resolve(literal) == ips(literal)
    assert names.queried == []


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NO_SUCH_NAME, errors.NameNotFound),
        (errors.HostUnreachable("a.example: no name server answers"), errors.HostUnreachable),
        (errors.OutOfResources("a.example: no descriptor is left"), errors.OutOfResources),
    ],
)
def test_a_failed_look_up_raises_an_error_of_gsocks(
    failure: Any, expected: type[errors.ConnectFailed]
) -> None:
    with pytest.raises(errors.ConnectFailed, match=r"a\.example: ") as caught:
        Resolver(Names(a_example=failure)).resolve("a.example")
    assert type(caught.value) is expected


def test_addresses_are_cached_for_their_ttl() -> None:
    names, clock = Names(a_example=["127.0.0.1"]), Clock()
    resolver = Resolver(names, now=clock)
    assert resolver.resolve("a.example") == ips("127.0.0.1")
    names.answers["a.example"] = ["127.0.0.2"]
    clock.seconds += 59.9
    assert resolver.resolve("a.example") == ips("127.0.0.1")
    clock.seconds += 0.1
    assert resolver.resolve("a.example") == ips("127.0.0.2")
    assert len(names.queried) == 2


def test_a_missing_name_is_cached_for_five_seconds() -> None:
    names, clock = Names(a_example=NO_SUCH_NAME), Clock()
    resolver = Resolver(names, now=clock)
    for _ in range(3):
        with pytest.raises(errors.NameNotFound):
            resolver.resolve("a.example")
    assert len(names.queried) == 1
    names.answers["a.example"] = ["127.0.0.1"]
    clock.seconds += 5
    assert resolver.resolve("a.example") == ips("127.0.0.1")


def test_the_failure_of_a_name_server_is_not_cached() -> None:
    names = Names(a_example=errors.HostUnreachable("a.example: no name server answers"))
    resolver = Resolver(names)
    with pytest.raises(errors.HostUnreachable):
        resolver.resolve("a.example")
    names.answers["a.example"] = ["127.0.0.1"]
    assert resolver.resolve("a.example") == ips("127.0.0.1")


def test_a_full_cache_evicts_the_least_recently_used_name() -> None:
    names = Names(a=["127.0.0.1"], b=["127.0.0.2"], c=["127.0.0.3"])
    resolver = Resolver(names, DnsSettings(cache_size=8))
    for name in ("a", "b", "a", "c"):
        resolver.resolve(name)
    assert names.queried == ["a", "b", "c"]
    resolver.resolve("a")
    assert names.queried == ["a", "b", "c"]
    resolver.resolve("b")
    assert names.queried == ["a", "b", "c", "b"]


def test_an_address_gives_its_first_name_which_is_cached() -> None:
    names, clock = Names(), Clock()
    names.answers = {"192.0.2.7": ["host.example", "other.example"]}
    resolver = Resolver(names, now=clock)
    for _ in range(3):
        assert resolver.reverse(ip_address("192.0.2.7")) == "host.example"
    assert names.queried == ["192.0.2.7"]
    clock.seconds += 60
    names.answers["192.0.2.7"] = errors.HostUnreachable("no name server answers")
    assert resolver.reverse(ip_address("192.0.2.7")) == "host.example", "while none answers"
    assert resolver.resolve("192.0.2.7") == ips("192.0.2.7")
    assert len(names.queried) == 2


def test_an_address_without_a_name_is_not_found() -> None:
    names = Names()
    names.answers["2001:db8::7"] = NO_SUCH_NAME
    resolver = Resolver(names)
    for _ in range(2):
        with pytest.raises(errors.NameNotFound, match="2001:db8::7: has no name"):
            resolver.reverse(ip_address("2001:db8::7"))
    assert names.queried == ["2001:db8::7"]


def test_callers_that_resolve_one_name_at_once_share_one_look_up() -> None:
    names = Names(a_example=["127.0.0.1"])
    names.go_on.clear()
    resolver = Resolver(names)
    callers = [gevent.spawn(resolver.resolve, "a.example") for _ in range(10)]
    names.querying.wait()
    names.go_on.set()
    assert [caller.get() for caller in callers] == [ips("127.0.0.1")] * 10
    assert names.queried == ["a.example"]


def test_callers_that_share_a_failed_look_up_get_an_error_each() -> None:
    names = Names(a_example=NO_SUCH_NAME)
    resolver = Resolver(names)
    callers = [gevent.spawn(resolver.resolve, "a.example") for _ in range(3)]
    gevent.joinall(callers)
    assert [type(caller.exception) for caller in callers] == [errors.NameNotFound] * 3
    assert len({id(caller.exception) for caller in callers}) == 3
    assert names.queried == ["a.example"]


def test_a_caller_that_gives_up_leaves_the_look_up_to_the_others() -> None:
    names = Names(a_example=["127.0.0.1"])
    names.go_on.clear()
    resolver = Resolver(names)
    with nothing_left():
        first = gevent.spawn(resolver.resolve, "a.example")
        second = gevent.spawn(resolver.resolve, "a.example")
        names.querying.wait()
        first.kill()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            resolver.resolve("a.example")
        names.go_on.set()
        assert second.get() == ips("127.0.0.1")
        assert resolver.resolve("a.example") == ips("127.0.0.1")
        del first, second
    assert names.queried == ["a.example"]


# --- how long answers are kept --------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "kept"), [(60, 60), (0, 5), (None, 5), (86400, 3600)], ids=["", "short", "none", "long"]
)
def test_addresses_are_kept_within_the_bounds_of_the_settings(
    ttl: float | None, kept: float
) -> None:
    names, clock = Names(a_example=["127.0.0.1"]), Clock()
    names.ttl = ttl
    resolver = Resolver(names, now=clock)
    resolver.resolve("a.example")
    clock.seconds += kept - 0.1
    resolver.resolve("a.example")
    assert len(names.queried) == 1
    clock.seconds += 0.2
    resolver.resolve("a.example")
    assert len(names.queried) == 2


def test_a_missing_name_is_kept_no_longer_than_its_zone_says() -> None:
    names, clock = Names(a_example=NO_SUCH_NAME), Clock()
    names.ttl = 1
    resolver = Resolver(names, now=clock)
    for _ in range(2):
        with pytest.raises(errors.NameNotFound):
            resolver.resolve("a.example")
        clock.seconds += 1.1
    assert len(names.queried) == 2


def test_all_is_looked_up_anew_once_the_systems_files_have_changed() -> None:
    names, clock = Names(a_example=["127.0.0.1"]), Clock()
    resolver = Resolver(names, now=clock)
    resolver.resolve("a.example")
    names.answers["a.example"] = ["127.0.0.2"]
    names.changes += 1
    clock.seconds += 1
    assert resolver.resolve("a.example") == ips("127.0.0.2")


def test_a_change_that_a_name_without_a_dot_notices_first_is_noticed_for_all(
    tmp_path: Path,
) -> None:
    clock, hosts = Clock(), tmp_path / "hosts"
    hosts.write_text("192.0.2.1 nas\n192.0.2.2 a.example\n")
    client = DnsClient(hosts=hosts, resolv_conf=tmp_path / "missing", now=clock)
    resolver = Resolver(client, now=clock)
    assert resolver.resolve("a.example") == ips("192.0.2.2")
    hosts.write_text("192.0.2.1 nas\n192.0.2.222 a.example\n")
    clock.seconds += 1.1
    assert resolver.resolve("nas") == ips("192.0.2.1")
    assert resolver.resolve("a.example") == ips("192.0.2.222")


# --- stale answers, RFC 8767 ----------------------------------------------------------------

DOWN = errors.HostUnreachable("a.example: no name server answers")


class Impatient(Resolver):
    stale_wait = 0.01


def expired(**settings: float) -> tuple[Resolver, Names, Clock]:
    """A resolver that knows a.example, whose TTL is over, and whose name servers are down."""
    names, clock = Names(a_example=["127.0.0.1"]), Clock()
    resolver = Impatient(names, DnsSettings(**settings), clock)  # type: ignore[arg-type]
    resolver.resolve("a.example")
    names.answers["a.example"] = DOWN
    clock.seconds += 61
    return resolver, names, clock


def test_an_expired_answer_serves_while_no_name_server_answers() -> None:
    resolver, names, clock = expired()
    for _ in range(3):
        assert resolver.resolve("a.example") == ips("127.0.0.1")
    assert len(names.queried) == 2  # and they are not asked again at once
    clock.seconds += 31
    assert resolver.resolve("a.example") == ips("127.0.0.1")
    assert len(names.queried) == 3
    names.answers["a.example"] = ["127.0.0.9"]
    clock.seconds += 31
    assert resolver.resolve("a.example") == ips("127.0.0.9")


def test_an_answer_that_expired_too_long_ago_does_not_serve() -> None:
    resolver, _, clock = expired(max_stale=100.0)
    clock.seconds += 100
    with pytest.raises(errors.HostUnreachable):
        resolver.resolve("a.example")


def test_a_name_that_exists_no_more_is_not_served_stale() -> None:
    resolver, names, _ = expired()
    names.answers["a.example"] = NO_SUCH_NAME
    with pytest.raises(errors.NameNotFound):
        resolver.resolve("a.example")


def test_an_expired_answer_serves_while_the_name_servers_are_silent() -> None:
    resolver, names, _ = expired()
    names.go_on.clear()
    for _ in range(3):
        assert resolver.resolve("a.example") == ips("127.0.0.1")
    assert len(names.queried) == 2
    # the look-up goes on, and its answer counts
    names.answers["a.example"] = ["127.0.0.9"]
    names.go_on.set()
    eventually(lambda: resolver.resolve("a.example") == ips("127.0.0.9"), sleep=gevent.sleep)
    assert len(names.queried) == 2


# --- search domains -------------------------------------------------------------------------


def test_a_name_without_a_dot_is_completed_and_then_asked_for_as_it_is() -> None:
    names = Names(www_corp_example=["127.0.0.1"], nas_corp_example=[], nas=["127.0.0.2"])
    names.search = ("corp.example",)
    resolver = Resolver(names)
    assert resolver.resolve("www") == ips("127.0.0.1")
    assert resolver.resolve("nas") == ips("127.0.0.2")
    assert names.queried == ["www.corp.example", "nas.corp.example", "nas"]


@pytest.mark.parametrize("name", ["a.www", "www."])
def test_a_name_with_a_dot_is_complete(name: str) -> None:
    names = Names()
    names.search = ("corp.example",)
    names.answers[name] = []
    with pytest.raises(errors.NameNotFound):
        Resolver(names).resolve(name)
    assert names.queried == [name]


# --- the order of addresses -----------------------------------------------------------------


def test_ipv4_is_first_where_ipv6_can_not_be_reached() -> None:
    """2001:db8::/32 is routed nowhere, or this machine has no IPv6 at all."""
    unroutable = "100::1"  # discard-only, RFC 6666
    names = Names(a_example=[unroutable, "127.0.0.1"], b_example=["::1", "127.0.0.1"])
    resolver = Resolver(names)
    found = resolver.resolve("a.example")
    with std_socket.socket(std_socket.AF_INET6, std_socket.SOCK_DGRAM) as sock:
        reachable = sock.connect_ex((unroutable, 9)) == 0
    assert found == (ips(unroutable, "127.0.0.1") if reachable else ips("127.0.0.1", unroutable))


# --- settings, and what `gsocks check` says ---------------------------------------------------


def test_a_program_may_write_name_servers_as_text() -> None:
    with name_server(a_example=["127.0.0.9"]) as server:
        resolver = Resolver(settings=DnsSettings(servers=(str(server.server),)))
        assert resolver.resolve("a.example") == ips("127.0.0.9")
    with pytest.raises(errors.ConfigError, match="is not a name server"):
        Resolver(settings=DnsSettings(servers=("dns.example",)))


def test_check_says_what_the_rules_decide_about_the_complete_name() -> None:
    names = Names(nas_corp_example=["127.0.0.1"])
    names.search = ("corp.example",)
    settings = config.parse(
        "local: {listen: 127.0.0.1:0, rules: [deny *.corp.example, allow all]}", Path("/")
    )
    ((label, told),) = explain_rules(settings, Address("nas", 80), None, Resolver(names))
    assert (label, told.allowed) == ("local", False)
    assert told.lines == (
        "nas:80 is allowed: rule 'allow all'",
        "nas.corp.example:80 is denied: rule 'deny *.corp.example'",
    )


def test_what_is_known_is_told_without_a_question() -> None:
    names = Names(a_test=["192.0.2.1"], b_test=NO_SUCH_NAME)
    clock = Clock()
    resolver = Resolver(names, now=clock)
    assert resolver.known("a.test") == ()
    resolver.look_up("a.test")
    with pytest.raises(errors.NameNotFound):
        resolver.look_up("b.test")
    assert resolver.known("a.test") == ips("192.0.2.1")
    assert resolver.known("b.test") == ()
    clock.seconds += 61.0
    assert resolver.known("a.test") == ()
    resolver.look_up("a.test")
    names.changes += 1
    assert resolver.known("a.test") == ()
    assert names.queried == ["a.test", "b.test", "a.test"]
