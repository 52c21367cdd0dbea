"""The rules: what each target matches, and what is decided before a name is resolved."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gsocks.access.rule_index import SOME_PORT
from gsocks.access.rules import ALLOW_ALL, DEFAULT_RULES, Decision, Rule, Rules, Verdict
from gsocks.address import Address
from gsocks.errors import ConfigError
from tests.support.spellings import spellings

ALLOW, DENY, DEPENDS = Verdict.ALLOW, Verdict.DENY, Verdict.DEPENDS


def verdict(rules: list[str], host: str, port: int = 443, user: str | None = None) -> Verdict:
    return Rules.parse(rules).before_resolving(Address(host, port), user).verdict


def is_in(group: str, host: str) -> bool:
    return verdict([f"allow {group}"], host) is ALLOW


# --- look-ups, which have no port -------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["allow all"], ALLOW),
        (["allow all:80,443"], ALLOW),
        (["allow a.example:443"], ALLOW),
        (["allow *.example:1-2"], ALLOW),
        (["allow b.example:443"], DENY),
        (["deny all:25", "allow all"], ALLOW),
        (["deny a.example", "allow all"], DENY),
        (["deny a.example:1-65535", "allow all"], DENY),
        (["deny a.example:1-1000,1001-65535", "allow all"], DENY),
        (["deny a.example:1-1000,900-65535", "allow all"], DENY),
        (["deny a.example:1-1000,1002-65535", "allow all"], ALLOW),
        (["deny a.example:2-65535", "allow all"], ALLOW),
        (["deny a.example:1-65534", "allow all"], ALLOW),
        (["allow a.example:443", "deny all"], ALLOW),
        (["deny all", "allow a.example:443"], DENY),
        (["allow all:443 user alice"], DENY),
        (["deny private:80", "allow all"], ALLOW),
        (["deny private", "allow all:443"], DEPENDS),
    ],
)
def test_a_name_may_be_looked_up_if_it_may_be_reached_at_some_port(
    rules: list[str], expected: Verdict
) -> None:
    assert verdict(rules, "a.example", SOME_PORT) is expected


def test_so_may_an_address_and_users_count() -> None:
    rules = ["allow 192.0.2.0/24:443 user alice", "deny private", "allow all:53"]
    assert verdict(rules, "192.0.2.1", SOME_PORT, "alice") is ALLOW
    assert verdict(rules, "192.0.2.1", SOME_PORT) is DENY
    assert verdict(rules, "1.1.1.1", SOME_PORT) is ALLOW


# --- groups ---------------------------------------------------------------------------------

PRIVATE = """
    0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1
    127.255.255.255 169.254.0.0 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.9
    192.0.0.255 192.0.2.1 192.88.99.1 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255
    198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::7f00:1 ::808:808 100::1 200::1 64:ff9a::1 64:ff9b:0:1::1 64:ff9b:1::1
    64:ff9b:1:fffe::808:808 64:ff9b:2::1 1fff::1 2001:1::1 2001:2::1 2001:10::1 2001:20::1
    2001:1ff:ffff::1 2001:db8::1 3fff::1 3fff:fff::1 4000::1 5f00::1 fc00::1 fdff::1 fe80::1
    febf::1 fec0::1 ff02::1 ff0e::1
"""

GLOBAL = """
    1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255
    128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0
    192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 168.63.129.16
    2000::1 2001:200::1 2001:db7::1 2001:db9::1 2001:4860:4860::8888 2606:4700::1111 2a00::1
    2003::1 3ffe:ffff::1 3fff:1000::1
"""


@pytest.mark.parametrize("host", PRIVATE.split())
def test_an_address_that_is_not_global_unicast_is_private(host: str) -> None:
    assert is_in("private", host)


@pytest.mark.parametrize("host", GLOBAL.split())
def test_an_address_that_is_global_unicast_is_not_private(host: str) -> None:
    assert not is_in("private", host)


@given(st.ip_addresses())
def test_private_contains_every_address_that_python_knows_not_to_be_global(ip: Any) -> None:
    # NAT64, 6to4 and Teredo are in the groups of the IPv4 address inside
    inside = ("64:ff9b::/96", "2002::/16", "2001::/32")
    if ip.version == 6:
        assume(ip.ipv4_mapped is None)
        assume(not any(ip in ipaddress.ip_network(network) for network in inside))
    assume(ip.is_multicast or not ip.is_global)
    assert is_in("private", str(ip))


@pytest.mark.parametrize("spelling", spellings("0.0.0.0"))
@pytest.mark.parametrize("ipv4", ["10.1.2.3", "127.0.0.1", "169.254.169.254", "224.0.0.1"])
def test_an_address_with_a_private_one_inside_is_private(spelling: str, ipv4: str) -> None:
    assert is_in("private", spellings(ipv4)[spelling])


@pytest.mark.parametrize("spelling", spellings("0.0.0.0"))
def test_an_address_with_a_global_one_inside_is_not_private(spelling: str) -> None:
    assert not is_in("private", spellings("8.8.4.4")[spelling])


@given(
    st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "192.168.0.0/16", "100.64.0.0/10"]).flatmap(
        lambda network: st.ip_addresses(network=network)
    )
)
def test_a_denied_private_address_is_denied_in_every_spelling(ip: ipaddress.IPv4Address) -> None:
    for host in spellings(str(ip)).values():
        for text in (host, host.upper(), f"[{host}]" if ":" in host else host):
            assert (
                DEFAULT_RULES.before_resolving(Address.of(text, 80), None).verdict
                is DEFAULT_RULES.for_ip(
                    Address("rebound.example", 80), ipaddress.ip_address(host), None
                ).verdict
                is DENY
            )


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
def test_a_number_that_only_the_resolver_takes_for_an_address_is_not_allowed_before(
    host: str,
) -> None:
    dest = Address(host, 80)  # Address.of refuses it
    assert DEFAULT_RULES.before_resolving(dest, None).verdict is DEPENDS
    assert DEFAULT_RULES.for_ip(dest, ipaddress.ip_address("127.0.0.1"), None).verdict is DENY


@pytest.mark.parametrize(
    ("group", "inside", "outside"),
    [
        (
            "loopback",
            ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST.", "a.b.localhost"]
            + ["localhost.localdomain", "a.localhost.localdomain", "ip6-localhost"]
            + ["localhost4", "localhost6.localdomain6"],
            ["10.0.0.1", "::2", "0.0.0.0", "notlocalhost", "localhost.example", "localdomain"],
        ),
        ("self", ["127.0.0.1", "::1", "0.0.0.0", "localhost"], ["8.8.8.8", "10.255.255.1"]),
        ("link_local", ["169.254.0.1", "fe80::1", "febf::1"], ["169.253.0.1", "fec0::1"]),
        ("multicast", ["224.0.0.1", "239.1.1.1", "ff02::1"], ["223.0.0.1", "240.0.0.1", "fe80::"]),
        (
            "metadata",
            ["169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200"]
            + ["168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"]
            + ["169.254.42.42", "169.254.0.23", "fd00:42::42", "fd00:a9fe:a9fe::1"]
            + ["fd00:c1::a9fe:a9fe", "fd00:100::100:200", "fe80::a9fe:a9fe"]
            + ["metadata.google.internal", "METADATA.google.internal.", "metadata.goog"]
            + ["metadata.tencentyun.com", "api.metadata.cloud.ibm.com", "metadata.exoscale.com"]
            + ["instance-data"],
            ["169.254.169.253", "168.63.129.17", "fd00:ec2::253", "metadata.example.com"],
        ),
    ],
)
def test_a_group_contains_the_addresses_and_names_of_its_kind(
    group: str, inside: str, outside: str
) -> None:
    assert [host for host in inside if not is_in(group, host)] == []
    assert [host for host in outside if is_in(group, host)] == []


def test_a_group_contains_addresses_with_one_of_its_addresses_inside() -> None:
    for host in spellings("168.63.129.16").values():
        assert is_in("metadata", host)
    assert is_in("loopback", "64:ff9b::7f00:1")


# --- targets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "inside", "outside"),
    [
        ("all", ["1.1.1.1", "::1", "a.example"], []),
        ("*", ["1.1.1.1", "::1", "a.example"], []),
        ("93.184.216.34", ["93.184.216.34", "::ffff:5db8:d822"], ["93.184.216.35"]),
        ("93.184.216.0/24", ["93.184.216.0", "93.184.216.255"], ["93.184.217.0", "93.184.215.255"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255", "::ffff:1.1.1.1"], ["::", "2606:4700::1"]),
        ("::/0", ["::", "2606:4700::1", "ffff::"], ["1.1.1.1", "::ffff:1.1.1.1"]),
        ("2001:db8::/32", ["2001:db8::", "2001:db8:ffff::1"], ["2001:db9::", "2001:db7::"]),
        ("[2001:db8::1]", ["2001:db8::1"], ["2001:db8::2"]),
        ("::ffff:10.0.0.0/104", ["10.1.1.1", "::ffff:10.2.2.2"], ["11.0.0.0", "::a00:1"]),
        ("10.0.0.0/8", ["64:ff9b::a01:203"], ["2002:a01:203::1"]),
        ("64:ff9b::/96", ["64:ff9b::808:808"], ["8.8.8.8"]),
        ("example.com", ["example.com", "EXAMPLE.com."], ["a.example.com", "example.org"]),
        ("Example.COM.", ["example.com"], []),
        (
            "*.example.com",
            ["a.example.com", "a.b.Example.com."],
            ["example.com", "badexample.com", "a.example.com.evil", "com"],
        ),
        ("bücher.example", ["xn--bcher-kva.example"], ["bucher.example"]),
        ("*.bücher.example", ["a.xn--bcher-kva.example"], []),
        ("private.", ["private"], ["10.0.0.1"]),
        ("localhost", ["localhost"], ["127.0.0.1", "a.localhost"]),
    ],
)
def test_a_target_matches(target: str, inside: str, outside: str) -> None:
    assert [host for host in inside if not is_in(target, host)] == []
    assert [host for host in outside if is_in(target, host)] == []


def test_a_name_rule_matches_the_name_of_a_resolved_address() -> None:
    rules = Rules.parse(["deny 10.0.0.0/8", "allow *.example.com"])
    dest = Address("www.example.com", 443)
    assert rules.for_ip(dest, ipaddress.ip_address("93.184.216.34"), None).verdict is ALLOW
    assert rules.for_ip(dest, ipaddress.ip_address("10.0.0.1"), None).verdict is DENY
    assert rules.for_ip(dest, ipaddress.ip_address("::ffff:10.0.0.1"), None).verdict is DENY


@pytest.mark.parametrize(
    ("ports", "inside", "outside"),
    [
        (":443", [443], [442, 444]),
        (":8000-8999", [8000, 8500, 8999], [7999, 9000]),
        (":80,443,8000-8999", [80, 443, 8000], [81, 7999]),
        (":1-65535", [1, 65535], []),
        ("", [1, 65535], []),
    ],
)
@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("all", "a.example"),
        ("*", "1.1.1.1"),
        ("private", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[2001:db8::/32]", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("a.example", "a.example"),
        ("*.example", "a.example"),
    ],
)
def test_ports_narrow_any_target(
    target: str, host: str, ports: str, inside: list[int], outside: list[int]
) -> None:
    rule = [f"allow {target}{ports}"]
    assert [port for port in inside if verdict(rule, host, port) is not ALLOW] == []
    assert [port for port in outside if verdict(rule, host, port) is not DENY] == []


def test_an_unbracketed_ipv6_address_has_no_ports() -> None:
    assert verdict(["allow 2001:db8::1:443"], "2001:db8::1:443", 80) is ALLOW


def test_users_narrow_a_rule() -> None:
    rules = ["deny private user bob", "allow all user alice,bob"]
    assert verdict(rules, "1.1.1.1", user="alice") is ALLOW
    assert verdict(rules, "10.0.0.1", user="alice") is ALLOW
    assert verdict(rules, "1.1.1.1", user="bob") is ALLOW
    assert verdict(rules, "10.0.0.1", user="bob") is DENY
    assert verdict(rules, "1.1.1.1", user="carol") is DENY
    assert verdict(rules, "1.1.1.1", user="Alice") is DENY
    assert verdict(rules, "1.1.1.1", user=None) is DENY


# --- decisions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # the default: the name has to be resolved
        (["deny private", "deny metadata", "allow all"], DEPENDS),
        # no address can make a difference
        (["allow all"], ALLOW),
        (["allow a.example", "deny private", "allow all"], ALLOW),
        (["allow private", "allow all"], ALLOW),
        (["deny a.example", "allow all"], DENY),
        (["deny private", "deny a.example", "allow all"], DENY),
        (["deny private", "deny all"], DENY),
        (["deny private"], DENY),
        (["deny private", "deny loopback"], DENY),
        ([], DENY),
        # an address can
        (["allow private", "deny a.example"], DEPENDS),
        (["deny private", "allow a.example"], DEPENDS),
        (["allow 10.0.0.0/8"], DEPENDS),
        (["allow private", "deny loopback", "allow all"], DEPENDS),
        (["deny private", "allow 8.8.8.8", "deny a.example"], DEPENDS),
        # rules about other ports, users and names make no difference
        (["deny private:80", "allow all"], ALLOW),
        (["deny private user bob", "allow all"], ALLOW),
        (["deny b.example", "allow all"], ALLOW),
        (["deny *.a.example", "allow all"], ALLOW),
    ],
)
def test_a_name_is_decided_before_it_is_resolved_only_if_no_address_matters(
    rules: list[str], expected: Verdict
) -> None:
    assert verdict(rules, "a.example") is expected


@pytest.mark.parametrize("host", ["localhost", "www.localhost", "localhost.localdomain"])
def test_localhost_is_denied_before_another_machine_could_take_it_for_itself(host: str) -> None:
    decision = DEFAULT_RULES.before_resolving(Address(host, 80), None)
    assert decision == Decision(DENY, Rule.parse("deny private"))
    # by the names' group, as an address would be
    assert verdict(["allow loopback", "deny private", "allow all"], host) is ALLOW
    assert verdict(["deny self", "allow all"], host) is DENY
    assert verdict(["deny metadata", "allow all"], host) is DEPENDS


def test_metadata_names_are_denied_before_they_are_resolved() -> None:
    decision = DEFAULT_RULES.before_resolving(Address("metadata.google.internal", 80), None)
    assert decision == Decision(DENY, Rule.parse("deny metadata"))


_TARGETS = [
    "all", "private", "loopback", "metadata", "self", "10.0.0.0/8", "8.8.8.8", "0.0.0.0/0", "::/0",
    "a.example", "*.example", "b.example", "metadata.goog",
]  # fmt: skip
_RULE = st.builds(
    "{} {}{}{}".format,
    st.sampled_from(["allow", "deny"]),
    st.sampled_from(_TARGETS).map(lambda target: f"[{target}]" if ":" in target else target),
    st.sampled_from(["", ":443", ":80,8000-8999"]),
    st.sampled_from(["", " user alice", " user bob,alice"]),
)


@given(
    st.lists(_RULE, max_size=6),
    st.sampled_from(["a.example", "b.example", "metadata.goog", "other"]),
    st.sampled_from(["10.0.0.1", "127.0.0.1", "8.8.8.8", "9.9.9.9", "::1", "2606:4700::1"]),
    st.sampled_from([None, "alice", "bob"]),
)
def test_a_decision_before_resolving_holds_for_every_address(
    lines: list[str], host: str, ip: ipaddress.IPv4Address, user: str | None
) -> None:
    rules, dest = Rules.parse(lines), Address(host, 443)
    before = rules.before_resolving(dest, user)
    after = rules.for_ip(dest, ipaddress.ip_address(ip), user)
    assert after.verdict is not DEPENDS
    assert before.verdict in (DEPENDS, after.verdict)


@given(st.lists(_RULE, max_size=6), st.sampled_from(["10.0.0.1", "8.8.8.8", "::1"]))
def test_an_address_is_always_decided_before_resolving(lines: list[str], host: str) -> None:
    rules, dest = Rules.parse(lines), Address(host, 443)
    decision = rules.before_resolving(dest, None)
    assert decision.verdict is not DEPENDS
    assert decision == rules.for_ip(dest, ipaddress.ip_address(host), None)


def test_the_first_rule_that_matches_decides_and_is_named() -> None:
    rules = Rules.parse(["allow 10.0.0.1", "deny private", "allow all"])
    decision = rules.before_resolving(Address("10.0.0.2", 80), None)
    assert tuple(decision) == (DENY, rules.rules[1])
    assert decision.reason == "rule 'deny private'"
    assert rules.before_resolving(Address("10.0.0.1", 80), None).rule is rules.rules[0]


def test_a_destination_that_no_rule_matches_is_denied() -> None:
    decision = Rules.parse(["allow private"]).before_resolving(Address("8.8.8.8", 80), None)
    assert tuple(decision) == (DENY, None)
    assert decision.reason == "no rule allows it"
    assert Decision(DEPENDS).reason == "its addresses decide"


def test_the_default_denies_private_and_metadata_and_allows_the_rest() -> None:
    assert Rules.default() is DEFAULT_RULES
    for host, expected in [("10.0.0.1", DENY), ("168.63.129.16", DENY), ("8.8.8.8", ALLOW)]:
        assert DEFAULT_RULES.before_resolving(Address(host, 443), None).verdict is expected


def test_allow_all_allows_every_destination() -> None:
    for host in ("10.0.0.1", "localhost", "metadata.goog", "ff02::1"):
        assert ALLOW_ALL.before_resolving(Address(host, 22), None).verdict is ALLOW


# --- values ---------------------------------------------------------------------------------


@given(_RULE)
def test_a_rule_is_its_own_source(text: str) -> None:
    rule = Rule.parse(text)
    assert str(rule) == text
    assert Rule.parse(str(rule)) == rule
    assert repr(rule) == f"Rule({text!r})"


def test_rules_of_the_same_meaning_are_equal() -> None:
    assert Rules.parse(["deny  private", " allow *"]) == Rules.parse(["deny private", "allow all"])
    assert hash(Rule.parse("allow a:1,2")) == hash(Rule.parse("allow A.:2,1"))
    assert Rules.parse(["deny private"]) != Rules.parse(["deny loopback"])
    assert Rules.parse(["deny private"]) != Rules.parse(["allow private"])
    assert repr(Rules.parse(["deny  private"])) == "Rules(['deny  private'])"


def test_rules_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        DEFAULT_RULES.rules = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        DEFAULT_RULES.rules[0].verdict = ALLOW  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "is empty; expected allow|deny TARGET"),
        ("alow all", "starts with neither allow nor deny (did you mean allow?)"),
        ("Deny all", "did you mean deny?"),
        ("443", "starts with neither allow nor deny"),
        ("allow", "nothing follows allow"),
        ("allow a.example b.example", "unexpected 'b.example': behind its one target"),
        ("allow a.example,b.example", "more than one target; write one rule for each"),
        ("allow ::1,::2", "is not an IPv6 address"),
        ("allow all users alice", "unexpected 'users'"),
        ("allow all user", "expected names behind user"),
        ("allow all user alice bob", "expected names behind user"),
        ("allow all user alice,", "expected names behind user"),
        ("allow privat", "no group (did you mean private?); a host of that name is 'privat.'"),
        ("allow link-local:80", "did you mean link_local?"),
        ("allow al", "did you mean all?"),
        ("allow 10.0.0.1/8", "'10.0.0.1/8' has host bits set (did you mean 10.0.0.0/8?)"),
        ("allow 10.0.0.0/33", "is not an address or a network"),
        ("allow a.example/24", "is not an address or a network"),
        ("allow 10.0.0.300", "is not a host name"),
        ("allow 10.0.0.1-10.0.0.9", "is not a host name"),
        ("allow 2001:db8::/32:443", "in front of ports it needs brackets"),
        ("allow 2001:db8::g", "is not an IPv6 address"),
        ("allow 2001:db8::1/32", "did you mean 2001:db8::/32?"),
        ("allow fe80::1%eth0", "has a zone"),
        ("allow [fe80::1%eth0]:80", "has a zone"),
        ("allow a%eth0", "has a zone"),
        ("allow [2001:db8::1", "is not [IPv6]:PORTS"),
        ("allow [2001:db8::1]443", "is not [IPv6]:PORTS"),
        ("allow [10.0.0.1]:443", "is not [IPv6]:PORTS"),
        ("allow *example.com", "* means all, or begins a name"),
        ("allow example.*", "* means all, or begins a name"),
        ("allow *.*.example", "is not a host name"),
        ("allow *.", "name is empty"),
        ("allow .example.com", "is not a host name"),
        ("allow a..example", "is not a host name"),
        ("allow a.example:", "'' is not a port"),
        ("allow a.example:http", "'http' is not a port"),
        ("allow a.example:80,", "'' is not a port"),
        ("allow a.example:0", "are not from 1 to 65535"),
        ("allow a.example:65536", "are not from 1 to 65535"),
        ("allow a.example:90-80", "the lower one first"),
        ("allow a.example:-80", "'-80' is not a port"),
        ("allow a.example:٨٠", "is not a port"),
        ("allow https://a.example", "is not a port"),
    ],
)
def test_an_invalid_rule_is_named_with_what_was_expected(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Rules.parse(["allow all", line])
    assert str(caught.value).startswith(f"rule {line!r}: ")
    assert complaint in str(caught.value)
