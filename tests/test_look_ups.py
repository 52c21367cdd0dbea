"""RESOLVE and RESOLVE_PTR of Tor's SOCKS extensions: an exit looks names and addresses up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import gevent
import pytest
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, DEFAULT_RULES, Rules
from gsocks.address import Address
from gsocks.exits.base import Connected, Exit
from gsocks.exits.chain import Chain
from gsocks.exits.credentials import Credentials
from gsocks.exits.direct import DirectExit
from gsocks.exits.socks import Socks4aExit, Socks5Exit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import CONNECT, RESOLVE, RESOLVE_PTR, Command, ExitSelector, Request
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.settings import Limits, PerHostSettings, Timeouts
from tests.support.engine import (
    MakeLocal,
    Seen,
    both_ends,
    connect,
    eventually,
    read_exactly,
    read_to_end,
    serving,
)
from tests.support.names import NO_SUCH_NAME, Names
from tests.support.newcomers import USERS, login
from tests.support.proxies import honest
from tests.support.two_ways import both_ways

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

GREETING, METHOD = b"\x05\x01\x00", b"\x05\x00"


def named(host: str, port: int = 0) -> bytes:
    return b"\x03" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big")


def addressed(host: str) -> bytes:
    return Address(host, 0).encode()


def socks5(inbound: LocalServer, command: int, dest: bytes, greeting: bytes = GREETING) -> bytes:
    """The reply, behind which the connection ends."""
    with connect(inbound.bound) as sock:
        sock.sendall(greeting + bytes((5, command, 0)) + dest)
        said = read_to_end(sock)
    assert said[:2] in (METHOD, b"\x05\x02")
    return said[2 if said[:2] == METHOD else 4 :]


def socks4(inbound: LocalServer, command: int, host: str) -> bytes:
    with connect(inbound.bound) as sock:
        said = bytes((4, command, 0, 0)) + b"\0\0\0\1" + b"me\0" + host.encode() + b"\0"
        sock.sendall(said)
        return read_to_end(sock)


def failed(reply: int) -> bytes:
    return bytes((5, reply, 0, 1)) + bytes(6)


def found(host: str) -> bytes:
    return b"\x05\x00\x00" + Address(host, 0).encode()


NAMES: dict[str, Sequence[str] | errors.ConnectFailed] = {
    "host.example": ["2001:db8::7", "192.0.2.7", "192.0.2.8"],
    "six.example": ["2001:db8::7"],
    "inner.example": ["10.0.0.7"],
    "both.example": ["10.0.0.7", "198.18.0.1", "1.1.1.1"],
    "gone.example": NO_SUCH_NAME,
    "silent.example": errors.HostUnreachable("silent.example: no name server answers"),
    "192.0.2.7": ["host.example"],
    "2001:db8::7": ["six.example"],
    "192.0.2.9": NO_SUCH_NAME,
    "10.0.0.7": ["inner.example"],
}


def names() -> Names:
    source = Names()
    source.answers = dict(NAMES)
    return source


def direct(rules: Rules = ALLOW_ALL, source: Names | None = None) -> ExitGroup:
    return ExitGroup([DirectExit(Dialer(rules, Resolver(source or names())))], rules)


# --- at a direct exit -------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("command", "dest", "reply"),
    [
        (0xF0, named("host.example"), found("192.0.2.7")),
        (0xF0, named("HOST.example", 42), found("192.0.2.7")),
        (0xF0, named("six.example"), found("2001:db8::7")),
        (0xF0, named("192.0.2.9"), found("192.0.2.9")),
        (0xF0, addressed("192.0.2.9"), found("192.0.2.9")),
        (0xF0, addressed("2001:db8::9"), found("2001:db8::9")),
        (0xF0, named("gone.example"), failed(4)),
        (0xF0, named("silent.example"), failed(4)),
        (0xF1, addressed("192.0.2.7"), found("host.example")),
        (0xF1, named("192.0.2.7"), found("host.example")),
        (0xF1, addressed("2001:db8::7"), found("six.example")),
        (0xF1, addressed("192.0.2.9"), failed(4)),
        (0xF1, named("host.example"), failed(1)),
        (0xF0, named("not a name"), failed(1)),
        (0xF2, named("host.example"), failed(7)),
    ],
)
def test_what_is_looked_up_is_the_bound_address_of_the_reply(
    make_local: MakeLocal, command: int, dest: bytes, reply: bytes
) -> None:
    assert socks5(make_local(direct()), command, dest) == reply


@both_ways
@pytest.mark.parametrize(
    ("command", "host", "reply"),
    [
        (0xF0, "host.example", "00 5a 0000 c0000207"),
        (0xF0, "192.0.2.9", "00 5a 0000 c0000209"),
        (0xF0, "six.example", "00 5b 0000 00000000"),
        (0xF0, "gone.example", "00 5b 0000 00000000"),
        (0xF1, "192.0.2.7", "00 5b 0000 00000000"),
    ],
)
def test_so_it_is_in_socks4_which_has_ipv4_addresses_only(
    make_local: MakeLocal, command: int, host: str, reply: str
) -> None:
    assert socks4(make_local(direct()), command, host) == bytes.fromhex(reply)


@both_ways
def test_the_answer_is_the_same_however_the_bytes_come(make_local: MakeLocal) -> None:
    inbound = make_local(direct())
    said = GREETING + b"\x05\xf0\x00" + named("host.example", 42)
    for cut in range(1, len(said)):
        with connect(inbound.bound) as sock:
            sock.sendall(said[:cut])
            gevent.sleep(0.002)
            sock.sendall(said[cut:])
            assert read_to_end(sock) == METHOD + found("192.0.2.7")


@pytest.mark.parametrize(
    ("command", "dest", "word"),
    [(0xF0, named("host.example", 42), "resolve"), (0xF1, addressed("192.0.2.7"), "resolve_ptr")],
)
def test_a_look_up_is_in_the_access_log(
    make_local: MakeLocal, seen: Seen, command: int, dest: bytes, word: str
) -> None:
    inbound = make_local(direct())
    socks5(inbound, command, dest)
    socks5(inbound, 0xF0, named("gone.example"))
    first, second = seen.next(), seen.next()
    assert (first.command, first.outcome, first.exit) == (word, "ok", "direct")
    assert first.dest in ("host.example:42", "192.0.2.7:0")
    assert (second.outcome, second.dest) == ("name_not_found", "gone.example:0")
    eventually(lambda: not inbound.connections)


def test_a_client_of_socks4_is_told_of_no_ipv6_address_and_the_log_why(
    make_local: MakeLocal, seen: Seen
) -> None:
    socks4(make_local(direct()), 0xF0, "six.example")
    assert seen.next().outcome == "address_family"


def test_a_listener_that_stops_ends_a_look_up(make_local: MakeLocal, seen: Seen) -> None:
    source = names()
    source.go_on.clear()
    inbound = make_local(direct(source=source))
    with connect(inbound.bound) as sock:
        sock.sendall(GREETING + b"\x05\xf0\x00" + named("host.example"))
        source.querying.wait()
        inbound.stop(0)
        assert read_to_end(sock) == METHOD
    assert seen.next().outcome == "stopped"
    source.go_on.set()


def test_a_look_up_has_the_time_of_a_connection(make_local: MakeLocal, seen: Seen) -> None:
    source = names()
    source.go_on.clear()
    exit_ = DirectExit(Dialer(ALLOW_ALL, Resolver(source)))
    inbound = make_local(ExitGroup([exit_], ALLOW_ALL, timeout=0.05))
    assert socks5(inbound, 0xF0, named("host.example")) == failed(6)
    assert seen.next().outcome == "connect_timeout"
    source.go_on.set()


def test_users_log_in_for_a_look_up_and_have_a_quota(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local(direct(), users=USERS, limits=Limits(per_user=1))
    assert socks5(inbound, 0xF0, named("host.example"), login(b"alice", b"secret")) == found(
        "192.0.2.7"
    )
    assert (seen.next().user, inbound.context.quota.users) == ("alice", {})


# --- what the rules say -----------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("command", "dest", "reply", "asked"),
    [
        (0xF0, named("both.example"), found("1.1.1.1"), {"both.example"}),
        (0xF0, named("inner.example"), failed(2), {"inner.example"}),
        (0xF0, named("localhost"), failed(2), set()),
        (0xF0, addressed("10.0.0.7"), failed(2), set()),
        (0xF1, addressed("10.0.0.7"), failed(2), set()),
        (0xF1, addressed("127.0.0.1"), failed(2), set()),
    ],
)
def test_no_name_of_a_private_address_is_looked_up_and_no_private_address_told(
    make_local: MakeLocal,
    seen: Seen,
    command: int,
    dest: bytes,
    reply: bytes,
    asked: set[str],
) -> None:
    source = names()
    assert socks5(make_local(direct(DEFAULT_RULES, source)), command, dest) == reply
    assert set(source.queried) == asked
    if reply == failed(2):
        assert " is forbidden: rule 'deny " in seen.next().detail
        assert ":" not in seen.all[0].detail.partition(" is forbidden")[0]


def test_a_denied_name_is_not_looked_up(make_local: MakeLocal) -> None:
    source = names()
    rules = Rules.parse(["deny *.example", "allow all"])
    assert socks5(make_local(direct(rules, source)), 0xF0, named("host.example")) == failed(2)
    assert source.queried == []


@pytest.mark.parametrize("port", [0, 42, 443])
def test_a_name_is_looked_up_that_may_be_reached_at_any_port(
    make_local: MakeLocal, port: int
) -> None:
    """Whatever the client writes there: torsocks has 42, and tor-resolve none."""
    inbound = make_local(direct(Rules.parse(["deny all:25", "allow all:80,443"])))
    assert socks5(inbound, 0xF0, named("host.example", port)) == found("192.0.2.7")


# --- at a SOCKS5 proxy ------------------------------------------------------------------------


class Tor(NamedTuple):
    """A proxy with the extensions, and what it was asked behind the greeting."""

    address: Address
    asked: list[bytes]


@contextmanager
def tor(reply: bytes, greeting: bytes = GREETING) -> Iterator[Tor]:
    """Answers each look-up with ``reply``, or hangs up."""
    asked: list[bytes] = []

    def serve(sock: socket) -> None:
        with sock:
            said = read_exactly(sock, 3)
            assert said == greeting
            sock.sendall(bytes((5, said[2])))
            if said[2] == 2:
                head = read_exactly(sock, 2)
                name = read_exactly(sock, head[1])
                asked.append(name)
                read_exactly(sock, read_exactly(sock, 1)[0])
                sock.sendall(b"\x01\x00")
            asked.append(sock.recv(1000))
            sock.sendall(reply)

    with serving(serve) as address:
        yield Tor(address, asked)


def proxy(address: Address, credentials: Credentials | None = None) -> Socks5Exit:
    through = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    return Socks5Exit(address, through, label="tor", credentials=credentials)


@both_ways
@pytest.mark.parametrize(
    ("command", "dest", "reply"),
    [
        (0xF0, named("host.example", 42), found("192.0.2.7")),
        (0xF0, named("x.onion"), found("2001:db8::7")),
        (0xF1, addressed("192.0.2.7"), found("host.example")),
        (0xF0, named("host.example"), failed(4)),
        (0xF0, named("host.example"), failed(2)),
        (0xF0, named("host.example"), failed(1)),
    ],
)
def test_a_proxy_that_looks_names_up_is_asked_for_them(
    make_local: MakeLocal, seen: Seen, command: int, dest: bytes, reply: bytes
) -> None:
    with tor(reply) as running:
        inbound = make_local(ExitGroup([proxy(running.address)], ALLOW_ALL))
        assert socks5(inbound, command, dest) == reply
    assert running.asked[0] == bytes((5, command, 0)) + dest[:-2] + b"\0\0"
    assert seen.next().exit == "tor"


@pytest.mark.parametrize(
    "reply",
    [
        failed(7),
        failed(7)[:2],
        b"",
        found("host.example"),
        found("0.0.0.0"),
        b"\x05\x00\x00" + Address("192.0.2.7", 40000).encode(),
    ],
)
def test_a_proxy_that_knows_no_look_ups_serves_none_and_is_not_blamed(
    make_local: MakeLocal, seen: Seen, reply: bytes
) -> None:
    """Also one that takes every command for CONNECT, and tells the address that it has used."""
    with tor(reply) as running:
        exits = ExitGroup([proxy(running.address)], ALLOW_ALL)
        inbound = make_local(exits)
        for number in range(10):
            assert socks5(inbound, 0xF0, named(f"n{number}.example")) == failed(7)
    assert {record.outcome for record in seen.all} == {"bad_command"}
    (member,) = exits.roster
    assert (member.health.failures, member.open, member.health.in_flight) == (0, 0, 0)
    assert not exits.evidence.has_doubts(member)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errors.ExitFailed),
        (b"\x05\x00\x00\x03\x00\x00\x00", errors.NameNotFound),
        (b"\x05\x00\x00\x05\x00\x00\x00", errors.NameNotFound),
        (b"\x05\x00\x00\x01\x01", errors.ExitHungUp),
    ],
)
def test_a_proxys_odd_answer_is_told_as_what_it_is(
    reply: bytes, error: type[errors.GsocksError]
) -> None:
    with tor(reply) as running, pytest.raises(errors.GsocksError) as caught:
        proxy(running.address).look_up(Request(RESOLVE, Address("host.example", 42)))
    assert type(caught.value) is error


def test_a_proxy_that_says_nothing_is_given_up() -> None:
    def serve(sock: socket) -> None:
        with sock:
            read_exactly(sock, 3)
            sock.sendall(METHOD)
            read_to_end(sock)

    through = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    with serving(serve) as address:
        exit_ = Socks5Exit(address, through, label="tor", timeout=0.05)
        with pytest.raises(errors.ExitDoubtful, match=r"^tor: no answer within 0\.05 s$"):
            exit_.look_up(Request(RESOLVE, Address("host.example", 0)))


def test_a_proxy_that_is_not_there_has_failed_by_itself(make_local: MakeLocal) -> None:
    with serving(lambda _: None) as address:
        pass
    exits = ExitGroup([proxy(address)], ALLOW_ALL)
    assert socks5(make_local(exits), 0xF0, named("host.example")) == failed(1)
    (member,) = exits.roster
    assert member.health.failures == 1


def test_the_session_of_a_look_up_reaches_the_proxy(make_local: MakeLocal) -> None:
    """Tor has a circuit for each login."""
    credentials = Credentials("me-{session}", "x")
    with tor(found("192.0.2.7"), b"\x05\x01\x02") as running:
        offer = Offer(proxy(running.address, credentials), passes_session=True)
        inbound = make_local(ExitGroup([offer], ALLOW_ALL))
        greeting = b"\x05\x02\x00\x02" + login(b"session-a", b"x")[3:]
        assert socks5(inbound, 0xF0, named("host.example"), greeting) == found("192.0.2.7")
    assert running.asked[0] == b"me-a"


def test_an_address_that_a_proxy_tells_is_one_that_may_be_reached(
    make_local: MakeLocal, seen: Seen
) -> None:
    with tor(found("10.0.0.7")) as running:
        inbound = make_local(ExitGroup([proxy(running.address)], DEFAULT_RULES))
        assert socks5(inbound, 0xF0, named("host.example")) == failed(2)
    assert seen.next().outcome == "forbidden"


# --- at other exits ---------------------------------------------------------------------------


def test_a_gsocks_server_looks_up_what_is_asked_for_at_the_other_end() -> None:
    with both_ends(exit_group=direct()) as ends:
        for _ in range(3):  # a tunnel is used again behind each
            assert socks5(ends.local, 0xF0, named("host.example", 42)) == found("192.0.2.7")
            assert socks5(ends.local, 0xF1, addressed("192.0.2.7")) == found("host.example")
            assert socks4(ends.local, 0xF0, "host.example")[:2] == b"\x00\x5a"
            assert socks5(ends.local, 0xF0, named("gone.example")) == failed(4)
            assert socks5(ends.local, 0xF1, addressed("192.0.2.9")) == failed(4)
        at_local, at_server = ends.at_local.next(), ends.at_server.next()
        assert (at_local.command, at_local.outcome) == ("resolve", "ok")
        assert (at_server.command, at_server.dest) == ("resolve", "host.example:42")
        assert (at_server.outcome, at_server.user) == ("ok", "default")
        member = next(iter(ends.local.context.exit_group.roster))
        assert (member.open, member.health.in_flight, member.counts.failed) == (0, 0, 0)


def test_the_rules_of_the_server_decide_about_look_ups_too() -> None:
    with both_ends(exit_group=direct(DEFAULT_RULES)) as ends:
        assert socks5(ends.local, 0xF0, named("inner.example")) == failed(2)
        assert socks5(ends.local, 0xF1, addressed("10.0.0.7")) == failed(2)
        assert socks5(ends.local, 0xF0, named("both.example")) == found("1.1.1.1")
        assert ends.at_server.next().outcome == "forbidden"


def test_a_server_whose_exits_look_nothing_up_says_so() -> None:
    through = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    with honest("socks4a") as address:
        exits = ExitGroup([Socks4aExit(address, through, label="4a")], ALLOW_ALL)
        with both_ends(exit_group=exits) as ends:
            for _ in range(2):
                assert socks5(ends.local, 0xF0, named("localhost")) == failed(7)
                assert ends.at_server.next().outcome == "bad_command"


def test_a_look_up_that_the_server_answers_late_is_given_up_and_its_tunnel_with_it() -> None:
    class Slow(DirectExit):
        def look_up(self, request: Request) -> Address:
            gevent.sleep(3600)
            raise AssertionError

    exits = ExitGroup([Slow(Dialer(ALLOW_ALL, Resolver()))], ALLOW_ALL)
    with both_ends(exit_group=exits, timeouts=Timeouts(connect=0.1)) as ends:
        assert socks5(ends.local, 0xF0, named("host.example")) == failed(6)


def test_nor_does_a_proxy_of_another_kind(make_local: MakeLocal) -> None:
    with honest("socks4a") as address:
        through = DirectExit(Dialer(ALLOW_ALL, Resolver()))
        inbound = make_local(ExitGroup([Socks4aExit(address, through, label="4a")], ALLOW_ALL))
        assert socks5(inbound, 0xF0, named("localhost")) == failed(7)


def test_of_several_exits_one_that_can_is_asked(make_local: MakeLocal, seen: Seen) -> None:
    through = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    with honest("socks4a") as address:
        other = Socks4aExit(address, through, label="4a")
        exits: list[Exit] = [other, other, DirectExit(Dialer(ALLOW_ALL, Resolver(names())))]
        inbound = make_local(ExitGroup([Offer(each, key=object()) for each in exits], ALLOW_ALL))
        for _ in range(5):
            assert socks5(inbound, 0xF0, named("host.example")) == found("192.0.2.7")
            assert seen.next().exit == "direct"


def test_the_last_exit_of_a_chain_is_asked() -> None:
    through = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    request = Request(RESOLVE, Address("host.example", 0))
    with tor(found("192.0.2.7")) as running:
        chain = Chain(proxy(running.address), through, "tor via direct")
        assert chain.look_up(request) == Address("192.0.2.7", 0)
    other = Chain(Socks4aExit(running.address, through, label="4a"), through, "4a via direct")
    with pytest.raises(errors.CommandNotSupported, match="4a via direct looks nothing up"):
        other.look_up(request)


# --- what it leaves alone ---------------------------------------------------------------------


def test_a_look_up_says_nothing_about_how_an_exit_connects() -> None:
    """Neither a failed one, of which a client may have any number, nor one that has succeeded."""
    exits = direct()
    for host in ("gone.example", "silent.example", "host.example"):
        for number in range(20):
            request = Request(RESOLVE, Address(host, number))
            try:
                exits.look_up(request, lambda _: None)
            except errors.ConnectFailed:
                pass
    (member,) = exits.roster
    assert not exits.evidence.has_doubts(member)
    assert not member.health.proven
    assert (member.counts.connected, member.open, member.health.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("command", [RESOLVE, RESOLVE_PTR])
def test_a_look_up_is_no_request_for_a_host_that_has_limits(command: Command) -> None:
    exit_ = DirectExit(Dialer(ALLOW_ALL, Resolver(names())))
    settings = PerHostSettings(requests_per_minute=1, connections=1)
    exits = ExitGroup([exit_], ALLOW_ALL, per_host=settings, timeout=0.05)
    dest = Address("host.example" if command is RESOLVE else "192.0.2.7", 0)
    for _ in range(5):
        exits.look_up(Request(command, dest), lambda _: None)


def test_a_look_up_of_a_session_has_the_exit_of_its_connections() -> None:
    class Both(DirectExit):
        def connect(self, request: Request) -> Connected:
            raise errors.ConnectionRefused("always")

    exits = ExitGroup(
        [Both(Dialer(ALLOW_ALL, Resolver(names())), label=f"exit {n}") for n in range(8)],
        ALLOW_ALL,
    )
    selector = ExitSelector("cart7", strict=True)
    tried: list[str] = []
    request = Request(RESOLVE, Address("host.example", 0), selector=selector)
    for _ in range(3):
        exits.look_up(request, tried.append)
    with pytest.raises(errors.ConnectionRefused):
        exits.connect(request._replace(command=CONNECT), tried.append)
    assert len(set(tried)) == 1
