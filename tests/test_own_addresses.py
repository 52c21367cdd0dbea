"""The addresses of this machine: as the kernel knows them, in every form, as they come and go."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsocks import netlink
from gsocks.access import own_addresses
from gsocks.access.own_addresses import OwnAddresses, ask_kernel, is_own
from gsocks.access.rules import DEFAULT_RULES
from gsocks.address import Address, IPAddress
from gsocks.errors import Denied, OutOfResources
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from tests.attack.witness import read_exactly
from tests.support.names import NamesBy
from tests.support.network import ip, private_network
from tests.support.program import Program
from tests.support.spellings import spellings
from tests.support.waiting import TOO_LONG, eventually


def own(host: str) -> bool:
    return is_own(ipaddress.ip_address(host))


@pytest.fixture
def network() -> Iterator[None]:
    with private_network():
        yield


@pytest.fixture
def without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox such as systemd's RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX."""

    def forbidding(family: int, *_: int) -> None:
        assert family == socket.AF_NETLINK
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "SocketType", forbidding)


LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_and_the_unspecified_addresses_are_own(host: str) -> None:
    assert own(host)
    assert OwnAddresses(lambda _: False).is_own(ipaddress.ip_address(host))


@pytest.mark.parametrize("host", ["8.8.8.8", "224.0.0.1", "2001:4860:4860::8888", "ff02::1"])
def test_no_other_machine_s_address_is_own(host: str, network: None) -> None:
    ip("address add 93.184.216.34/24 dev card")
    ip("address add 2a00::34/64 dev card nodad")
    assert not own(host)
    assert not own("93.184.216.35")
    assert not own("2a00::35")


def test_an_address_is_own_from_when_it_is_added_until_it_is_removed(network: None) -> None:
    addresses = ["93.184.216.34/24", "93.184.216.40/24", "2a00::34/64"]
    for address in addresses:
        assert not own(address.partition("/")[0])
        ip(f"address add {address} dev card" + " nodad" * (":" in address))
        # the kernel adds the route of an IPv6 address a little later
        eventually(lambda: own(address.partition("/")[0]))  # noqa: B023 - called in this turn only
    for address in reversed(addresses):
        assert own(address.partition("/")[0])
        ip(f"address delete {address} dev card")
        eventually(lambda: not own(address.partition("/")[0]))  # noqa: B023


def test_every_address_of_a_network_that_is_routed_to_this_machine_is_own(network: None) -> None:
    ip("route add local 93.184.217.0/24 dev lo")
    ip("-6 route add local 2a00:1::/64 dev lo")
    eventually(lambda: own("93.184.217.77"))
    eventually(lambda: own("2a00:1::77"))
    assert not own("93.184.218.77")
    assert not own("2a00:2::77")


def test_the_address_of_all_routers_of_a_network_is_a_router_s_own(network: None) -> None:
    ip("address add 2a00::34/64 dev card nodad")
    assert not own("2a00::")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")  # RFC 4291 section 2.6.1
    eventually(lambda: own("2a00::"))


@pytest.mark.parametrize("route", ["blackhole", "prohibit", "unreachable"])
def test_an_address_to_which_no_route_leads_is_not_own(network: None, route: str) -> None:
    ip(f"route add {route} 93.184.0.0/16")
    ip(f"-6 route add {route} 2a00::/16")
    assert not own("93.184.216.34")
    assert not own("2a00::1")


def test_a_kernel_that_refuses_the_question_is_asked_by_a_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As gVisor's, which knows netlink and not this message."""
    refusal = netlink.Answer(2, struct.pack("=i", -errno.EOPNOTSUPP) + bytes(16))
    monkeypatch.setattr(own_addresses, "_route_to", lambda _: refusal)
    assert ask_kernel(ipaddress.ip_address("127.0.0.1"))
    assert not ask_kernel(ipaddress.ip_address("8.8.8.8"))


def test_a_link_local_address_of_this_machine_is_own(network: None) -> None:
    ip("address add fe80::77/64 dev card nodad")
    eventually(lambda: own("fe80::77"))  # the kernel adds its route a little later
    assert not own("fe80::78")


@pytest.mark.parametrize("spelling", spellings("0.0.0.0"))
def test_an_own_ipv4_address_is_own_in_every_form(spelling: str) -> None:
    asked: list[IPAddress] = []

    def is_local(ip: IPAddress) -> bool:
        asked.append(ip)
        return str(ip) == "93.184.216.34"

    machine = OwnAddresses(is_local)
    assert machine.is_own(ipaddress.ip_address(spellings("93.184.216.34")[spelling]))
    assert not machine.is_own(ipaddress.ip_address(spellings("93.184.216.35")[spelling]))
    assert not any(isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped for ip in asked)


def test_without_netlink_an_address_is_own_if_it_can_be_bound(
    network: None, without_netlink: None
) -> None:
    ip("address add 93.184.216.34/24 dev card")
    ip("address add 2a00::34/64 dev card nodad")
    for address in ("93.184.216.34", "2a00::34"):
        eventually(lambda: own(address))  # noqa: B023 - called in this turn only
    for address in ("93.184.216.35", "2a00::35", "8.8.8.8"):
        assert not own(address)


@pytest.mark.parametrize("sandbox", ["open", "without netlink"])
def test_without_a_free_descriptor_no_address_is_taken_for_another_machine_s(
    sandbox: str, request: pytest.FixtureRequest
) -> None:
    if sandbox != "open":
        request.getfixturevalue("without_netlink")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OutOfResources):
            ask_kernel(ipaddress.ip_address("8.8.8.8"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- behind the rules -------------------------------------------------------------------------


@pytest.mark.parametrize("dest", ["93.184.216.34", "::ffff:93.184.216.34", "ours.example"])
def test_a_service_of_this_machine_is_not_reached_at_a_public_address(
    network: None, dest: str
) -> None:
    dialer = Dialer(DEFAULT_RULES, Resolver(NamesBy(lambda _: ["93.184.216.34"])))
    with socket.create_server(("0.0.0.0", 0)) as service:
        port = service.getsockname()[1]
        for _ in range(2):  # with the name in the resolver's cache, too
            ip("address add 93.184.216.34/24 dev card")
            with pytest.raises(Denied, match="rule 'deny self'"):
                dialer.connect(Address.of(dest, port))
            ip("address delete 93.184.216.34/24 dev card")
            assert dialer.allowed_addresses(Address.of(dest, port))
        service.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.accept()


def test_a_program_denies_every_way_to_its_machine(network: None, tmp_path: Path) -> None:
    ip("address add 93.184.216.34/24 dev card")
    ip("address add 2a00::34/64 dev card nodad")
    config = tmp_path / "c.yaml"
    config.write_text("local: {listen: '127.0.0.1:0'}")
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as service,
        Program("-c", config) as program,
    ):
        port, inbound = service.getsockname()[1], ("127.0.0.1", program.port())
        for host in ("93.184.216.34", "2a00::34", "::ffff:93.184.216.34", "localhost"):
            name = host.encode()
            request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")
            with socket.create_connection(inbound, TOO_LONG) as client:
                client.sendall(b"\x05\x01\x00" + request)
                assert read_exactly(client, 4)[3] == 2, f"{host} is reached by SOCKS5"
            dest = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for line in (f"CONNECT {dest}", f"GET http://{dest}/"):
                with socket.create_connection(inbound, TOO_LONG) as client:
                    client.sendall(f"{line} HTTP/1.1\r\nHost: {dest}\r\n\r\n".encode())
                    assert read_exactly(client, 12) == b"HTTP/1.1 403", f"{host} is reached"
        service.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.accept()


def test_no_datagram_reaches_a_service_of_this_machine(network: None, tmp_path: Path) -> None:
    ip("address add 93.184.216.34/24 dev card")
    with (
        socket.socket(type=socket.SOCK_DGRAM) as denied,
        socket.socket(type=socket.SOCK_DGRAM) as allowed,
    ):
        for service in (denied, allowed):
            service.bind(("0.0.0.0", 0))
            service.settimeout(TOO_LONG)
        config = tmp_path / "c.yaml"
        config.write_text(
            "local:\n  listen: 127.0.0.1:0\n"
            f"  rules: ['allow self:{allowed.getsockname()[1]}', deny self, allow all]"
        )
        with (
            Program("-c", config) as program,
            socket.create_connection(("127.0.0.1", program.port()), TOO_LONG) as client,
            socket.socket(type=socket.SOCK_DGRAM) as sender,
        ):
            client.sendall(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
            reply = read_exactly(client, 12)
            assert reply[3] == 0
            relay = socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:12], "big")
            for service in (denied, allowed):
                at = socket.inet_aton("93.184.216.34") + service.getsockname()[1].to_bytes(2, "big")
                sender.sendto(b"\0\0\0\x01" + at + b"hello", relay)
            assert allowed.recv(100) == b"hello"  # sent after the other one
        denied.setblocking(False)
        with pytest.raises(BlockingIOError):
            denied.recv(100)
