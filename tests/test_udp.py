"""A client's end of UDP associations: its socket, its address, and when it ends."""

from __future__ import annotations

import errno
import socket as std_socket
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.socket import socket
from gevent.util import wrap_errors

from gsocks.address import Address
from gsocks.errors import ConnectFailed, LimitReached, OutOfResources, StreamClosed, StreamError
from gsocks.inbound import udp
from gsocks.inbound.udp import Associations, ClientDatagrams
from gsocks.settings import UdpSettings
from tests.support.datagrams import Flood, udp_socket
from tests.support.stream_contract import tcp_pair
from tests.support.turns import turns_of_others
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")

#: the largest payload of a datagram over IPv4, in bytes
LARGEST_OVER_IPV4 = 65_507


@contextmanager
def open_datagrams(idle: float = TOO_LONG) -> Iterator[tuple[ClientDatagrams, Address]]:
    """A client's datagrams, whose control connection stays open, and where it sends them."""
    near, far = tcp_pair()
    with near:
        datagrams = Associations(UdpSettings(idle=idle)).associate(far, Address("127.0.0.1", 1))
        try:
            yield datagrams, datagrams.relay_address
        finally:
            datagrams.close()


def test_a_clients_stream_ends_for_good() -> None:
    with open_datagrams() as (datagrams, _):
        datagrams.write_eof()
        assert [datagrams.read(), datagrams.read()] == [b"", b""]
        datagrams.write(Address("192.0.2.1", 9).encode())  # too late: dropped
        datagrams.write_eof()
        datagrams.close()


@pytest.mark.parametrize("end", ["abort", "close"])
def test_a_clients_stream_that_is_given_up_tells_so(end: str) -> None:
    with open_datagrams() as (datagrams, _):
        reading = gevent.spawn(wrap_errors((StreamClosed,), datagrams.read))
        gevent.idle()
        getattr(datagrams, end)()
        assert isinstance(reading.get(), StreamClosed)
        with pytest.raises(StreamClosed):
            datagrams.read()
        with pytest.raises(StreamClosed):
            datagrams.write(Address("192.0.2.1", 9).encode())
        datagrams.abort()
        datagrams.close()


def test_nothing_is_sent_to_a_client_that_has_not_spoken() -> None:
    with open_datagrams() as (datagrams, _), udp_socket() as mine:
        datagrams.write(Address("192.0.2.1", 9).encode() + b"unasked")
        mine.sendto(bytes(3) + Address("192.0.2.1", 9).encode(), datagrams.relay_address)
        datagrams.read()
        datagrams.write(Address("192.0.2.1", 9).encode() + b"asked")
        assert mine.recv(100).endswith(b"asked")


def test_a_client_whose_port_is_closed_for_a_while_is_served_after_it() -> None:
    dest = Address("192.0.2.1", 9).encode()
    with open_datagrams() as (datagrams, relay):
        with udp_socket() as mine:
            mine.sendto(bytes(3) + dest, relay)
            assert datagrams.read() == dest
            port = mine.getsockname()
        datagrams.write(dest + b"refused")
        reading = gevent.spawn(datagrams.read)
        gevent.idle()
        datagrams.write(dest + b"refused")
        with socket(type=std_socket.SOCK_DGRAM) as mine:
            mine.bind(port)
            mine.sendto(bytes(3) + dest + b"back", relay)
            assert reading.get() == dest + b"back"


def test_a_spurious_wake_up_of_the_control_connection_means_nothing() -> None:
    with open_datagrams() as (datagrams, _):
        reading = gevent.spawn(datagrams.read)
        gevent.idle()
        datagrams._on_control_readable()
        gevent.idle()
        assert not reading.dead
        reading.kill()


def test_a_datagram_in_either_direction_puts_its_end_off_and_a_dropped_one_does_not() -> None:
    dest = Address("192.0.2.1", 9).encode()
    with open_datagrams() as (datagrams, relay), udp_socket() as mine:
        for packet, counts in ((bytes(3) + dest, True), (b"nonsense", False)):
            datagrams.last_byte = 0.0
            reading = gevent.spawn(wrap_errors((StreamClosed,), datagrams.read))
            mine.sendto(packet, relay)
            if counts:
                reading.get()
            else:
                gevent.idle()
                reading.kill()
            assert (datagrams.last_byte > 0) is counts
        for size, counts in ((100, True), (LARGEST_OVER_IPV4, False)):
            datagrams.last_byte = 0.0
            datagrams.write(dest + bytes(size))
            assert (datagrams.last_byte > 0) is counts


@pytest.mark.parametrize(
    ("packet", "source"),
    [(b"garbage", ("127.0.0.1", 9)), (bytes(10), ("127.0.0.9", 9))],
    ids=["of garbage", "of a stranger"],
)
def test_a_flood_lets_others_run(packet: bytes, source: tuple[str, int]) -> None:
    near, far = tcp_pair()
    flooded = Flood(packet, source, 64)
    datagrams = ClientDatagrams(
        flooded,  # type: ignore[arg-type]
        far,
        Address("127.0.0.1", 1),
        Address("127.0.0.1", 2),
        idle=TOO_LONG,
        on_released=lambda: None,
    )
    with near:
        with turns_of_others() as others, pytest.raises(StreamError):
            datagrams.read()
        assert others.count >= 64
        datagrams.close()


def test_what_others_sent_before_the_client_was_known_is_dropped_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel keeps in its queue what came before the socket was connected."""
    monkeypatch.setattr(udp, "is_own", lambda _: False)
    with (
        udp_socket("127.0.0.2") as stranger,
        udp_socket() as other,
        udp_socket() as mine,
        open_datagrams() as (datagrams, relay),
    ):
        dest = Address("192.0.2.1", 9)
        mine.sendto(bytes(3) + dest.encode() + b"1", relay)
        stranger.sendto(bytes(3) + dest.encode() + b"another host", relay)
        other.sendto(bytes(3) + dest.encode() + b"another port", relay)
        mine.sendto(bytes(3) + dest.encode() + b"2", relay)
        assert datagrams.read() == dest.encode() + b"1"
        assert datagrams.read() == dest.encode() + b"2"


# --- behind NAT -----------------------------------------------------------------------------


def associate_from(
    associations: Associations, near: tuple[str, int], client: str
) -> ClientDatagrams:
    class Control:
        def getsockname(self) -> tuple[str, int]:
            return near

        def close(self) -> None:
            pass

    return associations.associate(Control(), Address(client, 1000))  # type: ignore[arg-type]


def own_address() -> str:
    """One of this machine that is not loopback, if it has one."""
    with socket(type=std_socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        sock.connect(("192.0.2.1", 9))
        return str(sock.getsockname()[0])


def test_an_advertised_address_is_told_in_place_of_the_own_one() -> None:
    associations = Associations(UdpSettings(advertise="203.0.113.7"))
    here = own_address()
    if here.startswith("127."):
        pytest.fail("this machine has loopback only, and can't show it")
    datagrams = associate_from(associations, (here, 1080), "198.51.100.1")
    assert datagrams.relay_address.host == "203.0.113.7"
    with socket(type=std_socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
        other.bind((here, datagrams.relay_address.port))
    datagrams.close()


@pytest.mark.parametrize(
    ("advertised", "near"), [("203.0.113.7", "127.0.0.1"), ("2001:db8::7", own_address())]
)
def test_an_advertised_address_is_not_told_to_whom_it_says_nothing(
    advertised: str, near: str
) -> None:
    datagrams = associate_from(Associations(UdpSettings(advertise=advertised)), (near, 1080), near)
    assert datagrams.relay_address.host == near
    datagrams.close()


def test_all_addresses_of_an_ipv6_network_of_64_bits_are_one_client() -> None:
    associations = Associations(UdpSettings(per_client=1))
    first = associate_from(associations, ("127.0.0.1", 1080), "2001:db8::1")
    with pytest.raises(LimitReached, match="2001:db8::/64 has 1 associations"):
        associate_from(associations, ("127.0.0.1", 1080), "2001:db8::2")
    associate_from(associations, ("127.0.0.1", 1080), "2001:db8:0:1::1").close()
    first.close()
    assert associations.open == 0


def test_an_address_that_is_not_ours_is_refused_with_a_cause() -> None:
    with pytest.raises(ConnectFailed, match="assign"):
        associate_from(Associations(UdpSettings()), ("192.0.2.250", 1080), "192.0.2.1")


def test_where_no_descriptor_is_left_the_cause_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gsocks.net.datagram.socket", none_left)
    with pytest.raises(OutOfResources):
        associate_from(Associations(UdpSettings()), ("127.0.0.1", 1080), "127.0.0.1")
