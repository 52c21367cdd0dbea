"""The index finds what going over the rules one by one would find, however many there are."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.access.address_groups import SELF, classify, groups_of_name
from gsocks.access.networks import AddressRange, inner_ipv4
from gsocks.access.own_addresses import is_own
from gsocks.access.rule_index import Everything, Group, Name, NamesBelow
from gsocks.access.rules import Decision, Rule, Rules, Verdict
from gsocks.address import Address, IPAddress
from tests.support.waiting import cpu_seconds

NAMES = ["a.example", "b.a.example", "c.b.a.example", "example", "other", "metadata.goog"]
NAMES += ["localhost", "a.localhost"]
ADDRESSES = ["10.0.0.1", "10.1.0.1", "127.0.0.1", "8.8.8.8", "::1", "2606:4700::1"]
ADDRESSES += ["64:ff9b::a00:1", "2606:4700:1::1", "fe80::1"]
TARGETS = [
    *("all", "private", "loopback", "metadata", "self", "multicast"),
    *("10.0.0.0/8", "10.0.0.0/16", "10.0.0.1", "8.8.8.8", "0.0.0.0/0", "::/0", "64:ff9b::/96"),
    *("2606:4700::/32", "2606:4700::/48", "a.example", "*.a.example", "*.example", "b.a.example"),
]
PORTS = ["", ":443", ":80", ":80,400-500", ":440-450,8000-8999", ":1-65535", ":65535"]
USERS = ["", " user alice", " user bob,alice", " user bob"]
RULES = st.builds(
    "{} {}{}{}".format,
    st.sampled_from(["allow", "deny"]),
    st.sampled_from(TARGETS).map(lambda target: f"[{target}]" if ":" in target else target),
    st.sampled_from(PORTS),
    st.sampled_from(USERS),
)


def is_about(rule: Rule, port: int, user: str | None) -> bool:
    if rule.users is not None and user not in rule.users:
        return False
    return not rule.ports or any(first <= port <= last for first, last in rule.ports)


def matches_name(rule: Rule, name: str) -> bool | None:
    """None if it depends on the name's addresses."""
    target = rule.target
    if isinstance(target, AddressRange):
        return None
    if isinstance(target, Group):
        return bool(groups_of_name(name) & target.bit) or None
    if isinstance(target, NamesBelow):
        return name.endswith(target.suffix)
    return isinstance(target, Everything) or target == Name(name)


def matches_ip(rule: Rule, ip: IPAddress) -> bool:
    target, found = rule.target, classify(ip)
    if isinstance(target, AddressRange):
        return target.base in (found.integer & target.mask, found.translated & target.mask)
    if isinstance(target, Group):
        return is_own(ip) if target.bit == SELF else bool(found.groups & target.bit)
    return isinstance(target, Everything)


def one_by_one(rules: Rules, dest: Address, user: str | None, ip: IPAddress | None) -> Decision:
    undecided: set[Verdict] = set()
    for rule in rules.rules:
        if not is_about(rule, dest.port, user):
            continue
        by_name = matches_name(rule, dest.host) if dest.ip is None else False
        if by_name or (ip is not None and matches_ip(rule, ip)):
            if undecided - {rule.verdict}:
                break
            return Decision(rule.verdict, rule)
        if by_name is None and ip is None:
            undecided.add(rule.verdict)
    return Decision(Verdict.DEPENDS if Verdict.ALLOW in undecided else Verdict.DENY)


QUESTIONS = (
    st.lists(RULES, max_size=12),
    st.sampled_from([80, 443, 449, 500, 8000, 65535]),
    st.sampled_from([None, "alice", "bob", "carol"]),
)


@given(*QUESTIONS, st.sampled_from(NAMES))
def test_a_name_is_decided_as_by_going_over_the_rules(
    lines: list[str], port: int, user: str | None, name: str
) -> None:
    rules, dest = Rules.parse(lines), Address(name, port)
    assert rules.before_resolving(dest, user) == one_by_one(rules, dest, user, None)


@given(*QUESTIONS, st.sampled_from([None, *NAMES]), st.sampled_from(ADDRESSES))
def test_an_address_is_decided_as_by_going_over_the_rules(
    lines: list[str], port: int, user: str | None, name: str | None, host: str
) -> None:
    rules, dest = Rules.parse(lines), Address(name or host, port)
    ip = ipaddress.ip_address(host)
    decision = rules.for_ip(dest, ip, user)
    expected = one_by_one(rules, dest, user, ip)
    assert decision == expected
    assert decision.rule is expected.rule  # the very one, of two that mean the same


MANY = 20_000
KINDS: dict[str, Callable[[int], str]] = {
    "names": lambda n: f"deny host{n}.example",
    "names below": lambda n: f"deny *.host{n}.example",
    "addresses": lambda n: f"deny {ipaddress.IPv4Address(0x0B000000 + n)}",
    "networks": lambda n: (
        f"deny {ipaddress.ip_network((0x2A << 120 | n << 60, 16 + n % 113), strict=False)}"
    ),
    "users": lambda n: f"deny all user user{n}",
    "ports": lambda n: f"deny all:{1000 + n}",
    "ports of a name": lambda n: f"deny a.example:{1000 + n}-{60000 - n}",
    "ports of a user": lambda n: f"deny private:{1000 + n} user user{n % 7}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_many_rules_cost_a_request_no_more_than_a_few(kind: str) -> None:
    """One by one, 20,000 cost 500 times as much as ten."""
    few, many = (
        Rules.parse([*map(KINDS[kind], range(count)), "allow all:443"]) for count in (10, MANY)
    )

    def ask(rules: Rules) -> None:
        for number in range(200):  # each destination once: what is known of it costs nothing
            for name in (f"www{number}.a.example", f"8.8.8.{number}", f"2606:4700::{number:x}"):
                rules.before_resolving(Address(name, 443), "user3")
            rules.for_ip(Address("a.example", 443), ipaddress.ip_address("8.8.8.8"), "user3")

    assert cpu_seconds(lambda: ask(many)) < 20 * cpu_seconds(lambda: ask(few))


def test_only_an_answer_that_makes_a_difference_is_asked_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[IPAddress] = []

    def answer(ip: IPAddress) -> bool:
        asked.append(ip)
        return False

    monkeypatch.setattr("gsocks.access.rules.is_own", answer)
    rules = Rules.parse(["deny private", "allow all:80", "deny self user bob", "allow all"])
    for host, port, user in [
        ("10.0.0.1", 443, "bob"),
        ("8.8.8.8", 80, "bob"),
        ("8.8.8.8", 443, None),
        ("8.8.4.4", 443, "bob"),
    ]:
        rules.before_resolving(Address(host, port), user)
    assert asked == [ipaddress.ip_address("8.8.4.4")]


def test_an_address_may_become_own_between_two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    own: list[IPAddress] = []
    monkeypatch.setattr("gsocks.access.rules.is_own", lambda ip: ip in own)
    rules = Rules.default()
    dest = Address("93.184.216.34", 443)
    assert rules.before_resolving(dest, None).verdict is Verdict.ALLOW
    own.append(ipaddress.ip_address(dest.host))
    assert rules.before_resolving(dest, None).verdict is Verdict.DENY
    own.clear()
    assert rules.before_resolving(dest, None).verdict is Verdict.ALLOW


def test_what_is_known_of_a_destination_is_known_for_its_port_and_user_only() -> None:
    rules = Rules.parse(["allow 93.184.216.34:443 user alice", "allow a.example:80"])
    for _ in range(2):
        for host, port, user, verdict in [
            ("93.184.216.34", 443, "alice", Verdict.ALLOW),
            ("93.184.216.34", 443, "bob", Verdict.DENY),
            ("93.184.216.34", 443, None, Verdict.DENY),
            ("93.184.216.34", 80, "alice", Verdict.DENY),
            ("a.example", 80, "bob", Verdict.ALLOW),
            ("a.example", 443, None, Verdict.DENY),
        ]:
            assert rules.before_resolving(Address(host, port), user).verdict is verdict


def test_an_own_address_inside_of_another_is_denied_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ipaddress.ip_address("93.184.216.34")
    monkeypatch.setattr("gsocks.access.rules.is_own", lambda ip: own in (ip, *inner_ipv4(ip)))
    rules = Rules.default()
    for host in ("93.184.216.34", "::ffff:5db8:d822", "64:ff9b::5db8:d822", "2002:5db8:d822::1"):
        decision = rules.before_resolving(Address.of(host, 443), None)
        assert decision.reason == "rule 'deny self'"
    assert rules.before_resolving(Address("93.184.216.35", 443), None).verdict is Verdict.ALLOW
