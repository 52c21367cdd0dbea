"""Connections straight from here, from addresses of a network of its own."""

from __future__ import annotations

import random
import socket as std_socket
from ipaddress import ip_address, ip_network

import pytest
from gevent.socket import socket

from gsocks import errors
from gsocks.address import Address
from gsocks.exits import Exit
from gsocks.exits.direct import SourceNetwork
from tests.support.engine import echo, serving
from tests.support.proxy_exits import asking, leaves_nothing, to


def turns(network: str, count: int, seed: int = 1) -> list[str]:
    source = SourceNetwork(ip_network(network), random.Random(seed))
    family = std_socket.AF_INET6 if ":" in network else std_socket.AF_INET
    return [source(family)[0] for _ in range(count)]


@pytest.mark.parametrize(
    ("network", "hosts"),
    [
        ("192.0.2.7/32", 1),
        ("192.0.2.6/31", 2),
        ("192.0.2.4/30", 2),
        ("203.0.113.0/28", 14),
        ("203.0.113.0/24", 254),
        ("2001:db8::7/128", 1),
        ("2001:db8::6/127", 2),
        ("2001:db8::/120", 255),
    ],
)
def test_every_address_of_a_network_has_its_turn_before_any_comes_again(
    network: str, hosts: int
) -> None:
    first, second = turns(network, 2 * hosts)[:hosts], turns(network, 2 * hosts)[hosts:]
    assert first == second
    assert set(first) == {str(ip) for ip in ip_network(network).hosts()}


@pytest.mark.parametrize("text", ["127.0.0.0/8", "2001:db8::/32", "2001:db8::/64"])
def test_a_big_network_gives_addresses_far_apart(text: str) -> None:
    network, drawn = ip_network(text), [ip_address(ip) for ip in turns(text, 10_000)]
    assert len(set(drawn)) == 10_000
    assert all(ip in network for ip in drawn)
    first, sixteenth = int(network.network_address), network.num_addresses // 16
    assert {(int(ip) - first) // sixteenth for ip in drawn[:100]} == set(range(16))


def test_each_process_begins_elsewhere() -> None:
    assert turns("203.0.113.0/28", 1, seed=1) != turns("203.0.113.0/28", 1, seed=2)


@leaves_nothing
def test_each_connection_comes_from_another_address() -> None:
    seen: list[str] = []

    def handle(sock: socket) -> None:
        seen.append(sock.getpeername()[0])
        sock.recv(1)

    way = asking("direct://?source=127.6.0.0/28")
    with serving(handle) as target:
        for _ in range(14):
            bound = half_way(way, target)
            assert bound.host == seen[-1]
            assert bound.port != 0
    assert sorted(map(ip_address, seen)) == list(ip_network("127.6.0.0/28").hosts())


def half_way(way: Exit, target: Address) -> Address:
    connected = way.connect(to(target))
    connected.stream.write_eof()
    assert connected.stream.read() == b""
    connected.stream.close()
    return connected.bound


@leaves_nothing
def test_a_source_network_has_one_family() -> None:
    with pytest.raises(errors.AddressFamilyNotSupported, match=r"only goes out from 127\.6\.0"):
        asking("direct://?source=127.6.0.0/28").connect(to(Address("::1", 9)))


@leaves_nothing
def test_an_ipv4_network_that_is_not_here_is_told_at_once() -> None:
    way = asking("direct://?source=192.0.2.0/24")
    with serving(echo) as target, pytest.raises(errors.NetworkUnreachable, match="assign"):
        way.connect(to(target))


@leaves_nothing
def test_an_ipv6_address_need_not_stand_on_an_interface() -> None:
    """As far as one can see without the right to change routes: it can be bound."""
    way = asking("direct://?source=2001:db8::/64", connect=0.2)
    with socket(std_socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        # nothing brings the answer back to an address that isn't routed here
        with pytest.raises(errors.ConnectTimeout):
            way.connect(to(Address("::1", listener.getsockname()[1])))
