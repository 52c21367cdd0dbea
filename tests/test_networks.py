"""Networks contain the addresses that their author means, and no others."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gsocks.access.networks import Networks, client_prefix, parse_network
from gsocks.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_has_one_form(text: str, network: str) -> None:
    assert parse_network(text) == ipaddress.ip_network(network)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10.0.0.0/33", r"'10\.0\.0\.0/33' is not an address or a network \(expected e\.g\. 10"),
        ("example.com", "'example.com' is not an address or a network"),
        ("", "an empty value is not an address or a network"),
        (None, "None is not an address or a network"),
        (167772160, "167772160 is not an address or a network"),
        ("10.0.0.1/8", r"'10\.0\.0\.1/8' has host bits set \(did you mean 10\.0\.0\.0/8\?\)"),
        ("fe80::1%eth0", "'fe80::1%eth0' has a zone"),
    ],
)
def test_an_invalid_network_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_network(value)


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (["10.0.0.0/8"], ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0", "::a00:0"]),
        (["192.0.2.7"], ["192.0.2.7"], ["192.0.2.6", "192.0.2.8"]),
        (["::1"], ["::1"], ["::", "::2", "0.0.0.1"]),
        (["2001:db8::/32"], ["2001:db8::", "2001:db8:ffff::1"], ["2001:db9::", "32.1.13.184"]),
        (["0.0.0.0/0"], ["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
        (["::/0"], ["::", "ffff::"], ["0.0.0.0", "127.0.0.1"]),
        (["10.0.0.0/8", "::1"], ["10.1.2.3", "::1"], ["::2", "127.0.0.1"]),
        ([], [], ["0.0.0.0", "::"]),
    ],
)
def test_an_address_is_in_a_network_of_its_own_kind_and_range(
    networks: list[str], inside: list[str], outside: list[str]
) -> None:
    found = Networks(networks)
    assert all(host in found for host in inside)
    assert not any(host in found for host in outside)


@pytest.mark.parametrize(
    ("mapped", "plain"),
    [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:192.0.2.7", "192.0.2.7")],
)
def test_a_network_of_mapped_addresses_is_the_ipv4_network_of_its_clients(
    mapped: str, plain: str
) -> None:
    assert Networks([mapped]) == Networks([plain])


def test_a_name_is_in_no_network() -> None:
    assert "example.com" not in Networks(["0.0.0.0/0", "::/0"])


@pytest.mark.parametrize(
    "text",
    ["", "example.com", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "::1/129", "/8", "all", "1", "::g"],
)
def test_an_invalid_network_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Networks(["10.0.0.0/8", text])
    named = repr(text) if text else "an empty value"
    assert str(caught.value).startswith(f"{named} is not an address or a network")


def test_host_bits_are_a_mistake_with_a_proposal() -> None:
    with pytest.raises(ConfigError, match=r"'10\.0\.0\.1/8' .*did you mean 10\.0\.0\.0/8\?"):
        Networks(["10.0.0.1/8"])


def test_a_zone_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="zone"):
        Networks(["fe80::1%eth0"])


def test_networks_are_made_of_texts_of_networks_or_of_none() -> None:
    made = Networks(["::1"])
    assert Networks.of(made) is made
    assert Networks.of(["::1"]) == made
    assert Networks.of(None) is None


def test_equal_networks_have_the_same_hash_and_others_are_not_equal() -> None:
    assert hash(Networks(["::1"])) == hash(Networks(["::1/128"]))
    assert Networks(["::1"]) != Networks(["::2"])
    assert Networks(["::1"]) != ["::1"]


def test_a_repr_shows_them() -> None:
    assert repr(Networks(["10.0.0.0/8", "::1"])) == "Networks(['10.0.0.0/8', '::1'])"


@given(st.ip_addresses(), st.ip_addresses(), st.data())
def test_it_agrees_with_the_standard_library(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    near: ipaddress.IPv4Address | ipaddress.IPv6Address,
    data: st.DataObject,
) -> None:
    # IPv4-mapped addresses are IPv4 here, and IPv6 in the standard library
    assume(not any(getattr(each, "ipv4_mapped", None) for each in (ip, near)))
    prefix = data.draw(st.integers(0, near.max_prefixlen))
    network = ipaddress.ip_network((near, prefix), strict=False)
    assert (str(ip) in Networks([str(network)])) == (ip in network)
    assert str(near) in Networks([str(network)])


@pytest.mark.parametrize(
    ("host", "prefix"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1", "fe80::/64"),
        ("client.example", "client.example"),
    ],
)
def test_one_clients_addresses_have_one_prefix(host: str, prefix: str) -> None:
    assert client_prefix(host) == prefix
