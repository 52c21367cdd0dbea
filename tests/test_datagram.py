"""UDP associations by the rules of RFC 1928 section 7, directly and through the pair."""

from __future__ import annotations

import errno
import os
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from random import Random
from typing import Any

import dns.message
import dns.query
import dns.rrset
import gevent
import pytest
import socks
from gevent.event import Event
from gevent.socket import socket
from gevent.util import wrap_errors
from hypothesis import given
from hypothesis import strategies as st

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import ATYP_NAME, UNSPECIFIED, Address
from gsocks.errors import (
    BadRequest,
    CommandNotSupported,
    ConnectFailed,
    OutOfResources,
    StreamClosed,
    StreamError,
)
from gsocks.exits.chain import Chain
from gsocks.exits.direct import DirectExit, SourceNetwork
from gsocks.exits.udp import DirectDatagrams
from gsocks.inbound import udp as inbound_udp
from gsocks.inbound.listener import Listener
from gsocks.local import LocalServer
from gsocks.net.datagram import (
    MAX_DESTINATIONS,
    FilteredDatagrams,
    split,
    with_header,
    without_header,
)
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts, UdpSettings
from gsocks.tunnel.frames import MAX_BODY
from gsocks.tunnel.streams import TunnelDatagrams
from tests.support import listeners
from tests.support.datagrams import (
    Association,
    Flood,
    address,
    ask_for_association,
    association,
    family_of,
    udp_server,
    udp_socket,
    who_asks,
)
from tests.support.engine import (
    Ends,
    FakeExit,
    Refused,
    Seen,
    both_ends,
    connect,
    eventually,
    is_reset,
    make_exit,
    make_server,
    open_descriptors,
    running_inbound,
)
from tests.support.listeners import Open, directly, go_out
from tests.support.names import NamesBy
from tests.support.tunnel_parts import ignore_end, tunnels
from tests.support.turns import turns_of_others
from tests.support.waiting import TOO_LONG

#: the largest datagrams that the IP versions have, in bytes
LARGEST_OVER_IPV4, LARGEST_OVER_IPV6 = 65_507, 65_527


@pytest.fixture(autouse=True)
def _never_hangs(never_hangs: None) -> None:
    """A datagram that is lost must not stop the tests."""


class Names:
    """A look-up that knows some names, and counts how often it is asked."""

    def __init__(self, **known: str) -> None:
        self.known = known
        self.asked: list[str] = []
        #: look-ups wait for it
        self.answering = Event()
        self.answering.set()

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        self.answering.wait()
        name = host.partition(".")[0]
        if name not in self.known:
            return []
        return self.known[name].split()


both_ways = listeners.both_ways("opened")


# --- the header -----------------------------------------------------------------------------

names = st.from_regex(r"[a-z]{1,40}(\.[a-z]{1,40}){0,5}", fullmatch=True)
addresses = st.builds(Address.of, st.ip_addresses().map(str) | names, st.integers(0, 65535))


@given(addresses, st.binary(max_size=100))
def test_what_a_client_sends_is_its_address_and_its_payload(dest: Address, payload: bytes) -> None:
    datagram = without_header(b"\0\0\0" + dest.encode() + payload)
    assert datagram is not None
    assert split(datagram) == (dest.encode(), payload)
    assert with_header(datagram) == b"\0\0\0" + dest.encode() + payload


@given(addresses)
def test_a_header_that_ends_early_is_dropped_wherever_it_does(dest: Address) -> None:
    header = b"\0\0\0" + dest.encode()
    for end in range(len(header)):
        assert without_header(header[:end]) is None
        if end < len(dest.encode()):
            with pytest.raises(BadRequest):
                split(dest.encode()[:end])


@given(st.binary(max_size=300))
def test_no_bytes_make_trouble(packet: bytes) -> None:
    for said in (packet, b"\0\0\0" + packet):
        datagram = without_header(said)
        if datagram is not None:
            assert without_header(with_header(datagram)) == datagram


@pytest.mark.parametrize("at", [0, 1, 2], ids=["RSV", "RSV, second byte", "FRAG"])
def test_a_reserved_byte_that_is_not_zero_drops_the_datagram(at: int) -> None:
    packet = bytearray(3) + Address("192.0.2.1", 53).encode() + b"?"
    for value in range(1, 256):
        packet[at] = value
        assert without_header(bytes(packet)) is None


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (bytes((ATYP_NAME, 9)) + b"192.0.2.1" + b"\0\x35", Address("192.0.2.1", 53)),
        (bytes((ATYP_NAME, 7)) + b"A.Test." + b"\0\x35", Address("a.test.", 53)),
        (b"\x04" + bytes(10) + b"\xff\xff\xc0\0\2\1" + b"\0\x35", Address("192.0.2.1", 53)),
    ],
    ids=["an address as a name", "capitals", "IPv4 in IPv6"],
)
def test_an_address_goes_on_in_its_one_form(sent: bytes, meant: Address) -> None:
    assert without_header(b"\0\0\0" + sent + b"payload") == meant.encode() + b"payload"


@pytest.mark.parametrize(
    "head",
    [
        b"\x03\x00\0\x35",
        b"\x03\x03a b\0\x35",
        b"\x03\x011\0\x35",
        b"\x03\x02\xff\xfe\0\x35",
        b"\x02\x01\0\0\1\0\x35",
    ],
    ids=["no name", "a space", "a number", "no text", "another type"],
)
def test_what_can_be_no_address_is_dropped(head: bytes) -> None:
    assert without_header(b"\0\0\0" + head + b"payload") is None


# --- there and back -------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_datagram_comes_back_with_its_true_source(
    opened: Open, host: str, nothing_left: None
) -> None:
    with udp_server(host) as there, opened() as inbound, association(inbound.bound) as mine:
        assert mine.ask(there, b"hello") == (there, b"hello")


@both_ways
def test_a_name_is_looked_up_where_the_datagrams_leave(opened: Open, nothing_left: None) -> None:
    names = Names(six="::1", four="127.0.0.1")
    with (
        udp_server() as four,
        udp_server("::1") as six,
        opened(names=names) as inbound,
        association(inbound.bound) as mine,
    ):
        for _ in range(2):
            assert mine.ask(Address("four.test", four.port), b"4") == (four, b"4")
            assert mine.ask(Address("six.test", six.port), b"6") == (six, b"6")
    assert sorted(names.asked) == ["four.test", "six.test"]


def test_a_name_keeps_its_address_as_long_as_the_association_lasts() -> None:
    names = Names(it="127.0.0.1")
    resolver = Resolver(NamesBy(names), now=iter(range(0, 10**9, 1000)).__next__)  # forgets at once
    ways = ExitGroup([DirectExit(Dialer(ALLOW_ALL, resolver))], ALLOW_ALL)
    with (
        udp_server() as there,
        running_inbound(LocalServer(("127.0.0.1", 0), ways)) as inbound,
        association(inbound.bound) as mine,
    ):
        dest = Address("it.test", there.port)
        assert mine.ask(dest, b"before")[1] == b"before"
        names.known["it"] = "127.0.0.9"
        assert mine.ask(dest, b"after") == (there, b"after")


@both_ways
def test_a_name_that_was_not_found_is_asked_about_again(opened: Open) -> None:
    names = Names()
    with udp_server() as there, opened(names=names) as inbound, association(inbound.bound) as mine:
        dest = Address("late.test", there.port)
        mine.send(dest, b"lost")
        eventually(lambda: names.asked)
        assert mine.ask(there, b"meanwhile")[1] == b"meanwhile"
        # a negative answer is kept for some seconds, by its own clock
        names.known["late"] = "127.0.0.1"
        other = Address("late.other", there.port)
        assert mine.ask(other, b"found") == (there, b"found")


@both_ways
def test_all_destinations_see_one_port_and_another_association_another(opened: Open) -> None:
    with (
        udp_server(handle=who_asks) as one,
        udp_server(handle=who_asks) as two,
        opened() as inbound,
        association(inbound.bound) as mine,
        association(inbound.bound) as yours,
    ):
        ports = {mine.ask(there, b"")[1] for there in (one, two, one)}
        assert len(ports) == 1
        assert yours.ask(one, b"")[1] not in ports


@both_ways
def test_both_families_leave_by_one_port(opened: Open) -> None:
    with (
        udp_server(handle=who_asks) as four,
        udp_server("::1", handle=who_asks) as six,
        opened() as inbound,
        association(inbound.bound) as mine,
    ):
        ports = {mine.ask(there, b"")[1].rpartition(b":")[2] for there in (four, six)}
        assert len(ports) == 1


@both_ways
def test_an_answer_may_come_from_another_port_of_the_same_host(opened: Open) -> None:
    """TFTP answers so (RFC 1350 section 4)."""
    with (
        udp_socket() as other,
        opened() as inbound,
        association(inbound.bound) as mine,
    ):

        def answer(sock: socket, payload: bytes, source: tuple[str, int]) -> None:
            other.sendto(payload, source)

        with udp_server(handle=answer) as there:
            assert mine.ask(there, b"read") == (address(other), b"read")  # fmt: skip


@both_ways
def test_nothing_is_let_in_from_an_address_that_was_never_sent_to(opened: Open) -> None:
    with (
        udp_server(handle=who_asks) as there,
        udp_socket("127.0.0.2") as stranger,
        udp_server("127.0.0.2") as made_known,
        opened() as inbound,
        association(inbound.bound) as mine,
    ):
        mapped = Address.parse(mine.ask(there, b"")[1].decode())
        stranger.sendto(b"let me in", mapped)
        assert mine.ask(there, b"")[0] == there
        mine.ask(made_known, b"now I have spoken to that host")
        stranger.sendto(b"may I now", mapped)
        assert mine.receive() == (address(stranger), b"may I now")


# --- sizes ----------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_datagram_is_cut_whatever_its_size(opened: Open, host: str) -> None:
    header = 3 + len(Address(host, 0).encode())
    largest = (LARGEST_OVER_IPV4 if host == "127.0.0.1" else LARGEST_OVER_IPV6) - header
    with (
        udp_server(host) as there,
        opened((host, 0)) as inbound,
        association(inbound.bound) as mine,
    ):
        for size in (0, 1, 1472, 8192, 8193, 65_000, largest - 1, largest):
            payload = bytes(size % 251 for size in range(size))
            assert mine.ask(there, payload) == (there, payload)


@both_ways
def test_an_answer_that_has_no_room_for_its_header_is_lost_and_no_other(opened: Open) -> None:
    def answer(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
        return bytes(int(payload))

    largest = LARGEST_OVER_IPV4 - 10
    with (
        udp_server(handle=answer) as there,
        udp_server("::1", handle=answer) as six,
        opened() as inbound,
        association(inbound.bound) as mine,
    ):
        # with its address the last one is longer than a frame of the tunnel
        for lost in ((there, largest + 1), (there, LARGEST_OVER_IPV4), (six, LARGEST_OVER_IPV6)):
            mine.send(lost[0], b"%d" % lost[1])
            assert mine.ask(there, b"%d" % largest) == (there, bytes(largest))


# --- who may use it -------------------------------------------------------------------------


@pytest.fixture
def as_if_from_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_udp, "is_own", lambda _: False)


@both_ways
def test_a_program_that_sends_first_takes_no_association_over(opened: Open) -> None:
    with (
        udp_server() as there,
        udp_server() as elsewhere,
        opened(names=Names(there="127.0.0.1")) as inbound,
        association(inbound.bound) as mine,
        udp_socket() as other,
    ):
        first = Association(mine.control, mine.relay, other)
        assert first.ask(there, b"I was first") == (there, b"I was first")
        name = Address("there.example", elsewhere.port)
        for _ in range(2):
            assert mine.ask(there, b"mine") == (there, b"mine")
            assert mine.ask(name, b"by its name") == (elsewhere, b"by its name")
            assert first.ask(there, b"not mine") == (there, b"not mine")
            assert mine.ask(elsewhere, b"mine") == (elsewhere, b"mine")


@contextmanager
def another_user() -> Iterator[None]:
    """The sockets that are made meanwhile are another user's (needs root)."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@both_ways
def test_another_user_of_this_machine_sends_nothing_through_an_association(opened: Open) -> None:
    with ExitStack() as stack:
        there = stack.enter_context(udp_server())
        inbound = stack.enter_context(opened())
        mine = stack.enter_context(association(inbound.bound))
        with another_user():
            strangers = [stack.enter_context(udp_socket()) for _ in range(3)]
        for stranger in strangers * 16:
            stranger.sendto(bytes(3) + there.encode() + b"not mine", mine.relay)
        assert mine.ask(there, b"mine") == (there, b"mine")
        for stranger in strangers:
            stranger.settimeout(0)
            with pytest.raises(BlockingIOError):
                stranger.recvfrom(1)


@both_ways
@pytest.mark.usefixtures("as_if_from_another_machine")
def test_the_announced_port_goes_before_the_first_one(opened: Open) -> None:
    with (
        udp_server() as there,
        opened() as inbound,
        connect(inbound.bound) as control,
        udp_socket() as sock,
        udp_socket() as other,
    ):
        mine = Association(control, ask_for_association(control, address(sock).encode()), sock)
        first = Association(control, mine.relay, other)
        assert first.ask(there, b"I was first") == (there, b"I was first")
        assert mine.ask(there, b"mine") == (there, b"mine")
        first.send(there, b"not mine")
        assert mine.ask(there, b"still here") == (there, b"still here")
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.recvfrom(1)


@both_ways
@pytest.mark.usefixtures("as_if_from_another_machine")
def test_only_the_first_port_of_the_client_is_listened_to(opened: Open) -> None:
    with (
        udp_server() as there,
        opened() as inbound,
        association(inbound.bound) as mine,
        udp_socket() as other,
    ):
        mine.ask(there, b"I was first")
        other.sendto(bytes(3) + there.encode() + b"so was I", mine.relay)
        assert mine.ask(there, b"still here") == (there, b"still here")
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.recvfrom(1)


def test_a_datagram_of_another_host_makes_no_client() -> None:
    with (
        udp_server() as there,
        directly(("127.0.0.1", 0)) as inbound,
        association(inbound.bound) as mine,
        udp_socket("127.0.0.2") as stranger,
    ):
        for _ in range(32):
            stranger.sendto(bytes(3) + there.encode() + b"from elsewhere", mine.relay)
        assert mine.ask(there, b"mine") == (there, b"mine")


@both_ways
def test_garbage_is_dropped_silently_and_locks_no_client_out(opened: Open) -> None:
    with (
        udp_server() as there,
        opened() as inbound,
        association(inbound.bound) as mine,
        udp_socket() as clumsy,
    ):
        for packet in (b"", b"\0", bytes(3), b"\0\0\1" + there.encode() + b"a fragment"):
            clumsy.sendto(packet, mine.relay)
        for _ in range(32):
            mine.send_packet(b"nonsense")
        assert mine.ask(there, b"sense") == (there, b"sense")


@both_ways
@pytest.mark.parametrize(
    "announced",
    [
        UNSPECIFIED.encode(),
        Address("127.0.0.1", 9).encode(),
        Address("203.0.113.9", 4000).encode(),
        Address("::", 0).encode(),
        Address("my-laptop.local", 7).encode(),
        b"\x03\x010\x1f\x90",
        b"\x03\x00\0\0",
    ],
    ids=["zeros", "another port", "another host", "IPv6", "a name", "PySocks's 0", "no name"],
)
def test_a_client_is_not_held_to_the_address_that_it_announced(
    opened: Open, announced: bytes
) -> None:
    with udp_server() as there, opened() as inbound, association(inbound.bound, announced) as mine:
        assert mine.ask(there, b"from where I am") == (there, b"from where I am")


@pytest.mark.parametrize(
    ("listens", "reached"), [("0.0.0.0", "127.0.0.5"), ("::1", "::1"), ("::", "127.0.0.6")]
)
def test_the_place_for_datagrams_is_at_the_address_that_the_client_has_reached(
    listens: str, reached: str
) -> None:
    with (
        udp_server() as there,
        directly((listens, 0)) as inbound,
        association(Address(reached, inbound.bound.port)) as mine,
    ):
        assert mine.relay.host == reached
        assert mine.relay.port != inbound.bound.port
        assert mine.ask(there, b"hello") == (there, b"hello")


# --- rules ----------------------------------------------------------------------------------


@both_ways
def test_the_rules_are_asked_about_every_address(opened: Open) -> None:
    names = Names(ok="127.0.0.1", both="127.0.0.2 127.0.0.1", bad="127.0.0.2")
    got: list[bytes] = []
    rules = Rules.parse(["deny 127.0.0.2", "deny ::1", "deny *.secret.test", "allow all"])

    def note(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
        got.append(payload)
        return payload

    with (
        udp_server(handle=note) as there,
        udp_server("::1", handle=note) as six,
        opened(rules=rules, names=names) as inbound,
        association(inbound.bound) as mine,
    ):
        for _ in range(2):
            mine.send(Address("127.0.0.2", there.port), b"forbidden")
            mine.send(six, b"forbidden")
            mine.send(Address("bad.test", there.port), b"forbidden by its address")
            mine.send(Address("ok.secret.test", there.port), b"forbidden by its name")
            eventually(lambda: "bad.test" in names.asked)
            for host in ("127.0.0.1", "ok.test", "both.test"):
                assert mine.ask(Address(host, there.port), host.encode()) == (there, host.encode())
    assert got == [b"127.0.0.1", b"ok.test", b"both.test"] * 2
    assert "ok.secret.test" not in names.asked


@both_ways
def test_private_addresses_are_denied_where_no_rules_are_given(opened: Open) -> None:
    names = Names(rebound="127.0.0.1")
    got: list[bytes] = []
    with (
        udp_server(handle=lambda *it: got.append(it[1])) as there,
        opened(rules=Rules.default(), names=names) as inbound,
        association(inbound.bound) as mine,
    ):
        mine.send(there, b"by address")
        mine.send(Address("rebound.test", there.port), b"by name")
        eventually(lambda: names.asked)
        mine.control.close()
        record = inbound.seen.next()
        assert record.outcome == "ok"
        assert record.up > 0
    assert got == []


def test_a_local_end_asks_its_own_rules_too_before_a_datagram_enters_the_tunnel() -> None:
    seen = Seen()
    with make_running_server(observer=seen) as server, udp_server() as there:
        rules = Rules.parse(["deny 127.0.0.2", "deny no.test", "allow all"])
        ways = ExitGroup([make_exit(server.bound, pool_size=0)], rules)
        with running_inbound(LocalServer(("127.0.0.1", 0), ways)) as inbound:
            with association(inbound.bound) as mine:
                mine.send(Address("127.0.0.2", 9), b"forbidden")
                mine.send(Address("no.test", 9), b"forbidden")
                assert mine.ask(there, b"allowed") == (there, b"allowed")
            record = seen.next()
            assert record.up == len(there.encode() + b"allowed")
            assert record.dest == str(there)


@contextmanager
def make_running_server(**options: Any) -> Iterator[Listener]:
    with running_inbound(make_server(exit_group=go_out(), **options)) as server:
        yield server


# --- its end --------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("with_reset", [False, True])
def test_it_ends_with_its_control_connection(
    opened: Open, with_reset: bool, nothing_left: None
) -> None:
    with udp_server() as there, opened() as inbound:
        with association(inbound.bound) as mine:
            mine.ask(there, b"so that what is opened once is open")
        inbound.seen.next()
        eventually(lambda: not inbound.local.connections)
        before = open_descriptors()
        with association(inbound.bound) as mine:
            mine.ask(there, b"hello")
            if with_reset:
                mine.control.setsockopt(
                    std_socket.SOL_SOCKET, std_socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
            mine.control.close()
            assert inbound.seen.next().outcome == "ok"
        eventually(lambda: open_descriptors() <= before)
        assert inbound.local.connections == 0


def test_its_tunnel_is_used_again(nothing_left: None) -> None:
    with both_ends() as ends, udp_server() as there:
        eventually(lambda: ends.exit.pool.ready == 8)
        for _ in range(3):
            with association(ends.local.bound) as mine:
                mine.ask(there, b"hello")
            assert ends.at_local.next().outcome == ends.at_server.next().outcome == "ok"
            eventually(lambda: ends.exit.pool.ready == 8)
        assert ends.exit.pool.opened == 8


@both_ways
def test_what_the_client_says_over_the_control_connection_has_no_meaning(opened: Open) -> None:
    with udp_server() as there, opened() as inbound, association(inbound.bound) as mine:
        mine.control.sendall(b"hello? " * 50_000)
        assert mine.ask(there, b"hello") == (there, b"hello")


@both_ways
def test_it_ends_when_nothing_passes(opened: Open, nothing_left: None) -> None:
    with opened(udp=UdpSettings(idle=0.05)) as inbound, association(inbound.bound) as mine:
        assert mine.control.recv(1) == b""
        assert inbound.seen.next().outcome == "ok"


def test_a_server_that_goes_away_ends_it_by_a_reset(nothing_left: None) -> None:
    with both_ends() as ends, udp_server() as there, association(ends.local.bound) as mine:
        mine.ask(there, b"hello")
        ends.server.stop(0)
        assert is_reset(mine.control)
        assert ends.at_local.next().outcome == "remote_reset"


def test_a_server_that_finds_it_silent_ends_it(nothing_left: None) -> None:
    with (
        both_ends(timeouts=Timeouts(idle=0.05), pool_size=0) as ends,
        association(ends.local.bound) as mine,
    ):
        assert is_reset(mine.control)
        assert {ends.at_local.next().outcome, ends.at_server.next().outcome} & {"idle_timeout"}


@both_ways
def test_a_inbound_that_stops_leaves_nothing(opened: Open, nothing_left: None) -> None:
    with udp_server() as there, opened() as inbound, association(inbound.bound) as mine:
        mine.ask(there, b"hello")
        inbound.local.stop(0)
        assert is_reset(mine.control)


def test_a_look_up_under_way_ends_with_the_association(nothing_left: None) -> None:
    names = Names(slow="127.0.0.1")
    names.answering.clear()
    with directly(names=names) as inbound:
        with association(inbound.bound) as mine:
            mine.send(Address("slow.test", 9), b"?")
            eventually(lambda: names.asked)
        assert inbound.seen.next().outcome == "ok"
        names.answering.set()


# --- bounds ---------------------------------------------------------------------------------


def test_no_more_associations_than_allowed(nothing_left: None) -> None:
    bounds = UdpSettings(associations=2, per_client=10)
    with udp_server() as there, directly(udp=bounds) as inbound, ExitStack() as stack:
        first = stack.enter_context(association(inbound.bound))
        stack.enter_context(association(inbound.bound))
        with connect(inbound.bound) as control:
            with pytest.raises(Refused) as refused:
                ask_for_association(control)
            assert refused.value.args == (1,)
            assert control.recv(1) == b""
        record = inbound.seen.next()
        assert (record.outcome, record.command) == ("limit", "udp_associate")
        first.control.close()
        assert inbound.seen.next().outcome == "ok"
        again = stack.enter_context(association(inbound.bound))
        assert again.ask(there, b"there is room") == (there, b"there is room")


def test_no_more_associations_of_one_client_than_allowed() -> None:
    with directly(("0.0.0.0", 0), udp=UdpSettings(per_client=1)) as inbound, ExitStack() as stack:
        here = Address("127.0.0.1", inbound.bound.port)
        stack.enter_context(association(here))
        with connect(here) as control, pytest.raises(Refused, match="1"):
            ask_for_association(control)
        with socket() as other:
            other.bind(("127.0.0.3", 0))
            other.connect(here)
            ask_for_association(other)
    assert inbound.seen.all[0].outcome == "limit"


@pytest.mark.parametrize("reason", ["none allowed", "no exit that could"])
def test_where_none_are_served_the_client_is_told_so(reason: str) -> None:
    ways = go_out() if reason == "none allowed" else ExitGroup([FakeExit("socks5://x")], ALLOW_ALL)
    udp = UdpSettings(associations=0) if reason == "none allowed" else UdpSettings()
    seen = Seen()
    inbound = LocalServer(("127.0.0.1", 0), ways, udp=udp, observer=seen)
    with running_inbound(inbound), connect(inbound.bound) as control:
        with pytest.raises(Refused) as refused:
            ask_for_association(control)
        assert refused.value.args == (7,)
    assert seen.next().outcome == "bad_command"


def test_the_exit_that_carries_datagrams_is_found_among_others(nothing_left: None) -> None:
    class CanNot(FakeExit):
        """Turns out not to, as a server of another kind might."""

        def associate(self, request: Request) -> Any:
            self.requests += 1
            raise CommandNotSupported

    others = [FakeExit("http://x"), CanNot("gsocks://y")]
    ways = ExitGroup([*others, DirectExit(Dialer(ALLOW_ALL, Resolver()))], ALLOW_ALL)
    seen = Seen()
    with (
        udp_server() as there,
        running_inbound(LocalServer(("127.0.0.1", 0), ways, observer=seen)) as inbound,
    ):
        for _ in range(3):
            with association(inbound.bound) as mine:
                assert mine.ask(there, b"hello") == (there, b"hello")
            assert seen.next().exit == "direct"
    assert others[0].requests == 0
    assert 0 < others[1].requests <= 3


def test_an_exit_through_another_one_carries_datagrams_if_it_can() -> None:
    direct = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    request = Request(Command.UDP_ASSOCIATE, UNSPECIFIED)
    stream = Chain(direct, FakeExit("a"), "a, then direct").associate(request).stream
    stream.close()
    with pytest.raises(CommandNotSupported, match="a, then b"):
        Chain(FakeExit("b"), FakeExit("a"), "a, then b").associate(request)


def test_a_refusal_comes_before_the_place_is_given_away(nothing_left: None) -> None:
    seen = Seen()
    ways = ExitGroup([Refusing("x", OutOfResources("no descriptor"))], ALLOW_ALL)
    one = UdpSettings(associations=1)
    with running_inbound(LocalServer(("127.0.0.1", 0), ways, udp=one, observer=seen)) as inbound:
        for _ in range(3):
            with connect(inbound.bound) as control, pytest.raises(Refused, match="1"):
                ask_for_association(control)
            assert seen.next().outcome == "out_of_resources"


class Refusing(FakeExit):
    def associate(self, request: Request) -> Any:
        return self.connect(request)


def test_a_inbound_that_stops_while_an_exit_is_asked_leaves_nothing(nothing_left: None) -> None:
    silent = Refusing("x")
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup([silent], ALLOW_ALL))
    with running_inbound(inbound), connect(inbound.bound) as control:
        control.sendall(b"\x05\x01\x00" + b"\x05\x03\x00" + UNSPECIFIED.encode())
        silent.asked.wait()
        inbound.stop(0)


def test_while_a_name_is_looked_up_others_pass_and_no_more_wait_than_may() -> None:
    names = Names(slow="127.0.0.1")
    names.answering.clear()
    got: list[bytes] = []
    with (
        udp_server(handle=lambda *it: got.append(it[1])) as slow,
        udp_server() as there,
        directly(names=names) as inbound,
        association(inbound.bound) as mine,
    ):
        for number in range(DirectDatagrams.MAX_WAITING + 20):
            mine.send(Address("slow.test", slow.port), b"%d" % number)
        assert mine.ask(there, b"I can't wait") == (there, b"I can't wait")
        assert names.asked == ["slow.test"]
        names.answering.set()
        eventually(lambda: len(got) >= DirectDatagrams.MAX_WAITING)
        assert mine.ask(there, b"and now")[1] == b"and now"
    assert sorted(got, key=int) == [b"%d" % each for each in range(DirectDatagrams.MAX_WAITING)]


def test_a_look_up_that_takes_too_long_is_given_up() -> None:
    names = Names(slow="127.0.0.1")
    names.answering.clear()
    dialer = Dialer(ALLOW_ALL, Resolver(NamesBy(names)), timeout=0.02)
    out = DirectDatagrams(dialer, None)
    for _ in range(3 * DirectDatagrams.MAX_WAITING):
        out.write(Address("slow.test", 9).encode() + b"?")
        gevent.sleep(0)
    assert len(out._lookups) == DirectDatagrams.MAX_WAITING
    eventually(lambda: not out._lookups)
    names.answering.set()
    out.close()


def test_a_pending_look_up_ends_with_the_stream() -> None:
    names = Names(slow="127.0.0.1")
    names.answering.clear()
    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver(NamesBy(names))), None)
    out.write(Address("slow.test", 9).encode() + b"?")
    eventually(lambda: names.asked)
    assert out._lookups
    out.close()
    eventually(lambda: not out._lookups)
    names.answering.set()


def test_a_flood_of_destinations_is_remembered_up_to_a_bound() -> None:
    class Counting(Dialer):
        asked = 0

        def allowed_addresses(
            self, dest: Address, user: str | None = None, client: str = ""
        ) -> Any:
            Counting.asked += dest.host == "127.0.0.1"
            return super().allowed_addresses(dest, user, client)

    out = DirectDatagrams(Counting(ALLOW_ALL, Resolver()), None)
    with udp_socket() as there:
        out.write(address(there).encode() + b"first")
        for number in range(MAX_DESTINATIONS + 100):
            dest = Address(f"127.{number >> 8 & 255}.{number & 255}.2", 9)
            out.write(dest.encode())
            out.write(address(there).encode() + b"again")  # in use, so not the one to go
            assert there.recv(10)
        assert len(out._routes) == len(out._heard) == MAX_DESTINATIONS
        assert address(there).encode() in out._routes
        assert Counting.asked == 1
    out.close()


def replace_socket(datagrams: Any, replacement: object) -> None:
    datagrams._sock.close()
    datagrams._sock = replacement


def test_a_flood_from_outside_lets_others_run() -> None:
    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver()), None)
    replace_socket(out, Flood(b"unasked", ("::ffff:192.0.2.1", 9), 64))
    with turns_of_others() as others, pytest.raises(StreamError):
        out.read()
    assert others.count >= 64
    out.close()


@both_ways
def test_a_flood_through_it_is_lost_in_part_and_hurts_no_other_client(opened: Open) -> None:
    with (
        udp_server() as there,
        opened() as inbound,
        association(inbound.bound) as mine,
        association(inbound.bound) as yours,
    ):
        for _ in range(2000):
            mine.send(there, bytes(1200))
        assert yours.ask(there, b"mine passes") == (there, b"mine passes")
        assert mine.receive() == (there, bytes(1200))


# --- ports ------------------------------------------------------------------------------------


def free_range(count: int) -> tuple[int, int]:
    """Ports in a row that are free at present."""
    for first in range(40_000, 60_000, count):
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    sock = stack.enter_context(socket(type=std_socket.SOCK_DGRAM))
                    sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first, first + count - 1
    raise AssertionError("no free ports")


def test_only_ports_of_the_range_are_used_and_each_once(nothing_left: None) -> None:
    first, last = free_range(4)
    bounds = UdpSettings(ports=(first, last))
    with udp_server() as there, directly(udp=bounds) as inbound, ExitStack() as stack:
        mine = [stack.enter_context(association(inbound.bound)) for _ in range(4)]
        assert sorted(each.relay.port for each in mine) == [*range(first, last + 1)]
        assert mine[2].ask(there, b"hello") == (there, b"hello")
        with connect(inbound.bound) as control, pytest.raises(Refused, match="1"):
            ask_for_association(control)
        record = inbound.seen.next()
        assert (record.outcome, record.detail) == ("limit", "every port for associations is in use")
        port = mine[1].relay.port
        mine[1].control.close()
        inbound.seen.next()
        assert stack.enter_context(association(inbound.bound)).relay.port == port


def test_without_a_descriptor_the_cause_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gsocks.net.datagram.socket", none_left)
    with pytest.raises(OutOfResources):
        DirectDatagrams(Dialer(ALLOW_ALL, Resolver()), None)


# --- the streams themselves -----------------------------------------------------------------


def test_a_direct_stream_ends_for_good(nothing_left: None) -> None:
    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver()), None)
    reading = gevent.spawn(out.read)
    gevent.idle()
    out.write_eof()
    assert [reading.get(), out.read()] == [b"", b""]
    with pytest.raises(StreamClosed):
        out.write(Address("192.0.2.1", 9).encode())
    out.close()


def test_a_direct_stream_that_is_given_up_tells_so(nothing_left: None) -> None:
    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver()), None)
    reading = gevent.spawn(wrap_errors((StreamClosed,), out.read))
    gevent.idle()
    out.abort()
    assert isinstance(reading.get(), StreamClosed)
    with pytest.raises(StreamClosed):
        out.write(b"")


@pytest.mark.parametrize("datagram", [b"", b"\x01\x02", b"\x03\x01!\0\x09", b"\x09" + bytes(9)])
def test_what_has_no_address_goes_nowhere(datagram: bytes) -> None:
    class Sink:
        def write(self, datagram: bytes) -> None:
            raise AssertionError("it was sent")

        read = write_eof = abort = close = write

    FilteredDatagrams(Sink(), lambda _: True).write(datagram)  # type: ignore[arg-type]
    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver()), None)
    out.write(datagram)
    assert not out._routes
    out.close()


def test_a_destination_that_could_not_be_judged_loses_a_datagram_and_is_judged_again() -> None:
    sent: list[bytes] = []

    class Sink:
        def write(self, datagram: bytes) -> None:
            sent.append(datagram)

        read = write_eof = abort = close = write

    failures = [OutOfResources("too many open files")]

    def allows(_: Address) -> bool:
        if failures:
            raise failures.pop()
        return True

    datagrams = FilteredDatagrams(Sink(), allows)  # type: ignore[arg-type]
    for payload in (b"one", b"two", b"three"):
        datagrams.write(Address("192.0.2.1", 9).encode() + payload)
    assert [split(datagram)[1] for datagram in sent] == [b"two", b"three"]


def test_a_datagram_that_is_longer_than_a_frame_is_lost_and_the_tunnel_is_not() -> None:
    with tunnels() as (client, server):
        near = TunnelDatagrams(client, ignore_end)
        far = TunnelDatagrams(server, ignore_end)
        for size in (MAX_BODY + 1, MAX_BODY, 1):
            near.write(bytes(size))
        assert [len(far.read()), len(far.read())] == [MAX_BODY, 1]


def test_where_two_wait_for_room_in_the_socket_the_second_is_lost() -> None:
    sent: list[bytes] = []
    room = Event()

    class Full:
        def sendto(self, payload: bytes, route: object) -> None:
            room.wait()
            sent.append(payload)

        def close(self) -> None:
            pass

    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver()), None)
    replace_socket(out, Full())
    head = Address("192.0.2.1", 9).encode()
    writing = gevent.spawn(out.write, head + b"waits")
    gevent.idle()
    out.write(head + b"lost")
    room.set()
    writing.get()
    out.write(head + b"after")
    assert sent == [b"waits", b"after"]
    out.close()


# --- where it leaves from -------------------------------------------------------------------


def network_exit(text: str) -> DirectExit:
    source = SourceNetwork(ip_network(text), Random(1))
    names = Names(both="127.0.0.1 ::1" if ":" in text else "::1 127.0.0.1")
    return DirectExit(Dialer(ALLOW_ALL, Resolver(NamesBy(names)), source=source))


@pytest.mark.parametrize(("network", "other"), [("127.0.0.77/32", "::1"), ("::1/128", "127.0.0.1")])
def test_an_exit_with_source_addresses_sends_from_one_of_them(network: str, other: str) -> None:
    source = network.partition("/")[0]
    host = "127.0.0.1" if "." in source else "::1"
    ways = ExitGroup([network_exit(network)], ALLOW_ALL)
    with (
        udp_server(host, handle=who_asks) as there,
        udp_server(other) as elsewhere,
        running_inbound(LocalServer(("127.0.0.1", 0), ways)) as inbound,
        association(inbound.bound) as mine,
    ):
        mine.send(elsewhere, b"no way there")
        mine.ask(Address("both.test", there.port), b"by the address that can be reached")
        _, asked_by = mine.ask(there, b"")
        assert Address.parse(asked_by.decode()).host == source


def test_a_source_address_that_is_not_there_is_told(nothing_left: None) -> None:
    with pytest.raises(ConnectFailed, match="assign"):
        network_exit("192.0.2.252/32").associate(Request(Command.UDP_ASSOCIATE, UNSPECIFIED))


def test_a_machine_without_ipv6_sends_to_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ipv6(family: int, *rest: int) -> socket:
        if family == std_socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return socket(family, *rest)

    monkeypatch.setattr("gsocks.net.datagram.socket", without_ipv6)
    names = Names(both="::1 127.0.0.1", six="::1")
    out = DirectDatagrams(Dialer(ALLOW_ALL, Resolver(NamesBy(names))), None)
    with udp_socket() as there:
        out.write(Address("::1", 9).encode() + b"no way there")
        out.write(Address("six.test", 9).encode() + b"no way there")
        out.write(Address("both.test", address(there).port).encode() + b"by the other")
        assert there.recv(100) == b"by the other"
    out.close()


# --- real clients ---------------------------------------------------------------------------


def in_a_thread(call: Callable[[], Any]) -> Any:
    """Run code that blocks beside the listeners of this thread."""
    return gevent.get_hub().threadpool.apply(call)


def py_socks(inbound: Address) -> socks.socksocket:
    sock = socks.socksocket(family_of(inbound.host), std_socket.SOCK_DGRAM)
    sock.set_proxy(socks.SOCKS5, inbound.host, inbound.port)
    sock.settimeout(TOO_LONG)
    return sock


@both_ways
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "name.test"])
def test_pysocks_sends_and_receives(opened: Open, host: str, nothing_left: None) -> None:
    def talk() -> list[tuple[bytes, tuple[str, int]]]:
        with py_socks(inbound.bound) as sock:
            heard = []
            for payload in (b"hello", b"", bytes(60_000)):
                sock.sendto(payload, (host, there.port))
                heard.append(sock.recvfrom(65_535))
            return heard

    names = Names(name="127.0.0.1")
    bound = host if host != "name.test" else "127.0.0.1"
    with udp_server(bound) as there, opened(names=names) as inbound:
        heard = in_a_thread(talk)
        assert [payload for payload, _ in heard] == [b"hello", b"", bytes(60_000)]
        assert {Address.of(*source) for _, source in heard} == {there}
        assert inbound.seen.next().outcome == "ok"


def answer_dns(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
    query = dns.message.from_wire(payload)
    answer = dns.message.make_response(query)
    answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.99"))
    return bytes(answer.to_wire())


@both_ways
def test_a_dns_query_is_answered_through_it(opened: Open, nothing_left: None) -> None:
    def look_up() -> dns.message.Message:
        query = dns.message.make_query("www.example.com", "A")
        with py_socks(inbound.bound) as sock:
            sock.bind(("", 0))
            sock.setblocking(False)
            return dns.query.udp(query, there.host, TOO_LONG, there.port, sock=sock)

    with udp_server(handle=answer_dns) as there, opened() as inbound:
        answer = in_a_thread(look_up)
        assert [str(item) for rrset in answer.answer for item in rrset] == ["192.0.2.99"]
        record = inbound.seen.next()
        assert record.dest == str(there)
        assert record.fields()["command"] == "udp_associate"


# --- what the access log says ---------------------------------------------------------------


def test_both_ends_tell_the_first_destination_and_the_bytes(ends: Ends) -> None:
    with udp_server() as one, udp_server("::1") as two, association(ends.local.bound) as mine:
        mine.ask(one, bytes(100))
        mine.ask(two, bytes(1000))
        mine.control.close()
        for record in (ends.at_local.next(), ends.at_server.next()):
            assert record.command == "udp_associate"
            assert record.dest == str(one)
            assert record.up == record.down == 7 + 100 + 19 + 1000
            assert record.outcome == "ok"


def test_an_association_that_sent_nothing_has_no_destination(ends: Ends) -> None:
    with association(ends.local.bound):
        pass
    for record in (ends.at_local.next(), ends.at_server.next()):
        assert (record.fields()["dest"], record.up, record.down) == ("-", 0, 0)
        assert record.outcome == "ok"
