"""The PROXY protocol: valid headers of a balancer are parsed, invalid ones refused."""

from __future__ import annotations

import ipaddress
import socket as std_socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.socket import socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsocks.address import Address
from gsocks.errors import BadProxyHeader, ClientGone
from gsocks.net.proxy_protocol import MAX_LINE, read_header
from gsocks.stream import reset
from tests.support.stream_contract import tcp_pair

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

pytestmark = pytest.mark.usefixtures("never_hangs")


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + body


def addresses(source: str, dest: str, source_port: int, dest_port: int) -> bytes:
    packed = b"".join(ipaddress.ip_address(text).packed for text in (source, dest))
    return packed + source_port.to_bytes(2, "big") + dest_port.to_bytes(2, "big")


V4 = addresses("192.0.2.7", "198.51.100.1", 51000, 1080)
V6 = addresses("2001:db8::7", "2001:db8::1", 51001, 1080)
#: PP2_TYPE_ALPN and PP2_TYPE_NOOP of section 2.2
TLVS = b"\x01\x00\x02h2" + b"\x04\x00\x03\0\0\0"

ACCEPTED: dict[str, tuple[bytes, Address | None]] = {
    "v1 tcp4": (
        b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 1080\r\n",
        Address("192.0.2.7", 51000),
    ),
    "v1 tcp6": (
        b"PROXY TCP6 2001:DB8::7 2001:db8::1 51001 1080\r\n",
        Address("2001:db8::7", 51001),
    ),
    "v1 port 0": (b"PROXY TCP4 192.0.2.7 198.51.100.1 0 0\r\n", Address("192.0.2.7", 0)),
    "v1 the highest port": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Address("255.255.255.255", 65535),
    ),
    "v1 the longest line": (
        b"PROXY TCP6 " + b" ".join([b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2)
        + b" 65535 65535\r\n",
        Address("ffff:" * 7 + "ffff", 65535),
    ),
    "v1 a mapped address": (
        b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n",
        Address("192.0.2.7", 1),
    ),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown with more": (
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        None,
    ),
    "v2 tcp4": (v2(0x21, 0x11, V4), Address("192.0.2.7", 51000)),
    "v2 tcp6": (v2(0x21, 0x21, V6), Address("2001:db8::7", 51001)),
    "v2 tcp4 with TLVs": (v2(0x21, 0x11, V4 + TLVS), Address("192.0.2.7", 51000)),
    "v2 tcp6 with TLVs": (v2(0x21, 0x21, V6 + TLVS), Address("2001:db8::7", 51001)),
    "v2 a mapped address": (
        v2(0x21, 0x21, addresses("::ffff:192.0.2.7", "::1", 9, 9)),
        Address("192.0.2.7", 9),
    ),
    "v2 local": (v2(0x20, 0x00, b""), None),
    "v2 local whatever family": (v2(0x20, 0x11, V4), None),
    "v2 local an unknown family": (v2(0x20, 0xEE, b"x" * 9), None),
    "v2 unspecified": (v2(0x21, 0x00, b""), None),
    "v2 unspecified with TLVs": (v2(0x21, 0x00, TLVS), None),
    "v2 udp4": (v2(0x21, 0x12, V4), None),
    "v2 udp6": (v2(0x21, 0x22, V6), None),
    "v2 unix": (v2(0x21, 0x31, bytes(216)), None),
    "v2 unix datagrams with TLVs": (v2(0x21, 0x32, bytes(216) + TLVS), None),
}  # fmt: skip

REFUSED: dict[str, bytes] = {
    "socks5": b"\x05\x01\x00",
    "socks4": b"\x04\x01",
    "http": b"GET http://example.com/ HTTP/1.1\r\n",
    "tls": b"\x16\x03\x01",
    "post": b"POST / HTTP/1.1\r\n",
    "v1 in small letters": b"proxy TCP4 192.0.2.7 198.51.100.1 51000 1080\r\n",
    "v1 another family": b"PROXY UDP4 192.0.2.7 198.51.100.1 51000 1080\r\n",
    "v1 nothing": b"PROXY\r\n",
    "v1 unknown and something": b"PROXY UNKNOWNS\r\n",
    "v1 line feed alone": b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 1080\n",
    "v1 unknown, line feed alone": b"PROXY UNKNOWN\n",
    "v1 carriage return inside": b"PROXY UNKNOWN a\rb\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 51000 1080\r\n",
    "v1 a space at the end": b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 1080 \r\n",
    "v1 a tab": b"PROXY\tTCP4 192.0.2.7 198.51.100.1 51000 1080\r\n",
    "v1 no destination": b"PROXY TCP4 192.0.2.7 51000\r\n",
    "v1 ipv6 as tcp4": b"PROXY TCP4 ::1 ::1 51000 1080\r\n",
    "v1 ipv4 as tcp6": b"PROXY TCP6 192.0.2.7 192.0.2.7 51000 1080\r\n",
    "v1 half an address": b"PROXY TCP4 192.0.2 198.51.100.1 51000 1080\r\n",
    "v1 a bad destination": b"PROXY TCP4 192.0.2.7 198.51.100 51000 1080\r\n",
    "v1 an octet too big": b"PROXY TCP4 192.0.2.256 198.51.100.1 51000 1080\r\n",
    "v1 an octal octet": b"PROXY TCP4 192.0.02.7 198.51.100.1 51000 1080\r\n",
    "v1 a name": b"PROXY TCP4 localhost 198.51.100.1 51000 1080\r\n",
    "v1 a zone": b"PROXY TCP6 fe80::1%1 ::1 51000 1080\r\n",
    "v1 a port too high": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 1080\r\n",
    "v1 a destination port too high": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 99999\r\n",
    "v1 a port of six digits": b"PROXY TCP4 192.0.2.7 198.51.100.1 510000 1080\r\n",
    "v1 a port with a zero before it": b"PROXY TCP4 192.0.2.7 198.51.100.1 051 1080\r\n",
    "v1 a negative port": b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 1080\r\n",
    "v1 too long": b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 14),
    "v1 too long by one": b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 15) + b"\r\n",
    "v2 a bad signature": b"\r\n\r\n\0\r\nQUIP\n\x21\x11\x00\x0c",
    "v2 version 1": v2(0x11, 0x11, V4),
    "v2 version 3": v2(0x31, 0x11, V4),
    "v2 an unknown command": v2(0x22, 0x11, V4),
    "v2 an unknown family": v2(0x21, 0x41, V4),
    "v2 an unknown transport": v2(0x21, 0x13, V4),
    "v2 a family without transport": v2(0x21, 0x10, V4),
    "v2 shorter than IPv4": v2(0x21, 0x11, V4[:-1]),
    "v2 shorter than IPv6": v2(0x21, 0x21, V6[:-1]),
    "v2 ipv6 with IPv4's length": v2(0x21, 0x21, V4),
    "v2 shorter than unix": v2(0x21, 0x31, bytes(215)),
}


def names(cases: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", cases, ids=lambda name: name.replace(" ", "-"))


@contextmanager
def balancer() -> Iterator[tuple[socket, socket]]:
    """The listener's socket, and the balancer's."""
    near, far = tcp_pair()
    try:
        yield near, far
    finally:
        near.close()
        far.close()


# --- what is understood -----------------------------------------------------------------------


@names(ACCEPTED)
def test_a_header_tells_the_client_and_what_follows_it_stays(name: str) -> None:
    header, client = ACCEPTED[name]
    for payload in (b"\x05\x01\x00", b"\r\n", b"PROXY UNKNOWN\r\n", header):
        with balancer() as (near, far):
            far.sendall(header + payload)
            assert read_header(near) == client
            assert near.recv(1000) == payload


@names(ACCEPTED)
def test_a_header_may_come_byte_by_byte(name: str) -> None:
    header, client = ACCEPTED[name]
    with balancer() as (near, far):
        reading = gevent.spawn(read_header, near)
        for at in range(len(header)):
            assert not reading.ready()
            far.sendall(header[at : at + 1])
            gevent.idle()
        assert reading.get() == client


@names(ACCEPTED)
def test_a_header_may_be_split_anywhere(name: str) -> None:
    header, client = ACCEPTED[name]
    for at in range(1, len(header)):
        with balancer() as (near, far):
            far.sendall(header[:at])
            reading = gevent.spawn(read_header, near)
            gevent.idle()
            far.sendall(header[at:] + b"rest")
            assert reading.get() == client
            assert near.recv(4) == b"rest"


@names(ACCEPTED)
def test_a_balancer_that_hangs_up_early_is_gone(name: str) -> None:
    header, _ = ACCEPTED[name]
    for at in range(len(header)):
        with balancer() as (near, far):
            far.sendall(header[:at])
            far.shutdown(std_socket.SHUT_WR)
            with pytest.raises(ClientGone, match="before its PROXY header was complete"):
                read_header(near)


@pytest.mark.parametrize("said", [b"", b"PROXY TCP4 ", SIGNATURE + b"\x21"])
def test_a_balancer_that_resets_is_gone(said: bytes) -> None:
    with balancer() as (near, far):
        far.sendall(said)
        reading = gevent.spawn(read_header, near)
        gevent.idle()
        reset(far)
        with pytest.raises(ClientGone):
            reading.get()


def test_the_longest_line_is_as_long_as_the_specification_has_it() -> None:
    assert len(ACCEPTED["v1 the longest line"][0]) == 104  # with UNKNOWN in front it is 107
    assert MAX_LINE == 107
    line = b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 16) + b"\r\n"
    assert len(line) == MAX_LINE
    with balancer() as (near, far):
        far.sendall(line + b"rest")
        assert read_header(near) is None
        assert near.recv(4) == b"rest"


def test_the_longest_header_is_taken_and_its_TLVs_are_left_alone() -> None:
    with balancer() as (near, far):
        body = V4 + bytes(0xFFFF - len(V4))
        sending = gevent.spawn(far.sendall, v2(0x21, 0x11, body) + b"rest")
        assert read_header(near) == Address("192.0.2.7", 51000)
        assert near.recv(4) == b"rest"
        sending.get()


# --- what is refused --------------------------------------------------------------------------


@names(REFUSED)
def test_what_is_no_header_is_refused_without_waiting_for_more(name: str) -> None:
    with balancer() as (near, far):
        far.sendall(REFUSED[name])
        with pytest.raises(BadProxyHeader):
            read_header(near)


@names(REFUSED)
def test_what_is_no_header_is_refused_byte_by_byte(name: str) -> None:
    with balancer() as (near, far):
        reading = gevent.spawn(read_header, near)
        for byte in REFUSED[name]:
            far.sendall(bytes((byte,)))
            gevent.idle()
        with pytest.raises(BadProxyHeader):
            reading.get()


@pytest.mark.parametrize("first", [b"\x05", b"\x04", b"G", b"C", b"\x16", b"\n", b"\0"])
def test_a_client_without_a_header_is_told_apart_by_its_first_byte(first: bytes) -> None:
    with balancer() as (near, far):
        far.sendall(first)
        with pytest.raises(BadProxyHeader, match=f"begins with {first[0]:#04x}"):
            read_header(near)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21"]), st.data())
def test_whatever_comes_it_ends_in_an_address_or_one_of_two_errors(
    start: bytes, data: st.DataObject
) -> None:
    sent = start + data.draw(st.binary(max_size=300))
    with balancer() as (near, far):
        far.sendall(sent)
        far.shutdown(std_socket.SHUT_WR)
        try:
            client = read_header(near)
        except (BadProxyHeader, ClientGone):
            return
        assert client is None or client.ip is not None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.ip_addresses(), st.integers(0, 65535), st.booleans(), st.binary(max_size=50))
def test_every_address_is_told_as_it_was_sent(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, binary: bool, tlvs: bytes
) -> None:
    family = 4 if ip.version == 4 else 6
    if binary:
        body = addresses(str(ip), str(ip), port, 1080) + tlvs
        header = v2(0x21, 0x11 if family == 4 else 0x21, body)
    else:
        header = f"PROXY TCP{family} {ip} {ip} {port} 1080\r\n".encode()
    with balancer() as (near, far):
        far.sendall(header)
        assert read_header(near) == Address.from_sockaddr((str(ip), port))
