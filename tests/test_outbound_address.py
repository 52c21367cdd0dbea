"""Outbound addresses: how pages tell them, and which exits share one."""

from __future__ import annotations

import pytest

from gsocks.rotation.outbound_address import AddressIndex, OutboundAddress, address_in, network_of


@pytest.mark.parametrize(
    ("body", "address"),
    [
        (b"203.0.113.7\n", "203.0.113.7"),
        (b"2001:DB8::0:7", "2001:db8::7"),
        (b"::ffff:203.0.113.7", "203.0.113.7"),
        (b'{"ip": "203.0.113.7"}', "203.0.113.7"),
        (b'"203.0.113.7"', "203.0.113.7"),
        (b'{"status": "success", "query": "203.0.113.7"}', "203.0.113.7"),
        # one that lists what a proxy claims, and then what it has seen itself
        (b'{"origin": "10.1.2.3, 203.0.113.7"}', "203.0.113.7"),
        (b"fl=1\nh=example.com\nip=203.0.113.7\nts=1.5\n", "203.0.113.7"),
        (b"", None),
        (b"0.0.0.0", None),
        (b"<html>203.0.113.7</html>", None),
        (b'{"ip": 7}', None),
        (b'{"ip": null}', None),
        (b"[" * 100_000, None),
        (b"\xff\xfe", None),
        (b"fe80::1%eth0", None),
    ],
)
def test_a_page_tells_its_clients_address(body: bytes, address: str | None) -> None:
    assert address_in(body) == address


def test_a_network_is_what_has_one_owner() -> None:
    assert network_of("203.0.113.7") == "203.0.113.0/24"
    assert network_of("2001:db8:1:2::7") == "2001:db8:1::/48"


def test_members_are_found_by_address_and_by_network() -> None:
    index: AddressIndex[str] = AddressIndex()
    for name, address in (("a", "203.0.113.7"), ("b", "203.0.113.7"), ("c", "203.0.113.9")):
        assert index.learn(name, OutboundAddress(address, "de"))
    assert index.learn("d", OutboundAddress("198.51.100.1"))
    assert list(index.sharing("203.0.113.7")) == ["a", "b"]
    assert list(index.near("203.0.113.7")) == list(index.near("203.0.113.200")) == ["a", "b", "c"]
    assert list(index.sharing("192.0.2.1")) == list(index.near("192.0.2.1")) == []
    assert index.of("c") == OutboundAddress("203.0.113.9", "de")
    assert index.of("e") is None


def test_a_member_that_leaves_from_elsewhere_or_is_gone_is_moved() -> None:
    index: AddressIndex[str] = AddressIndex()
    index.learn("a", OutboundAddress("203.0.113.7"))
    assert not index.learn("a", OutboundAddress("203.0.113.7"))
    assert index.learn("a", OutboundAddress("2001:db8::1"))
    assert list(index.near("203.0.113.7")) == []
    assert list(index.sharing("2001:db8::1")) == ["a"]
    index.forget("a")
    index.forget("a")
    assert len(index) == 0
    assert list(index.sharing("2001:db8::1")) == []
