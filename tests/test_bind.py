"""BIND by RFC 1928 section 4, and SOCKS4's: the client is told where, and then who came."""

from __future__ import annotations

import errno
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from random import Random
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import Key
from gsocks.errors import (
    AddressFamilyNotSupported,
    CommandNotSupported,
    ConnectFailed,
    ConnectionRefused,
    ConnectTimeout,
    ExitFailed,
    Forbidden,
    OutOfResources,
    StreamClosed,
)
from gsocks.exits.base import PendingBind
from gsocks.exits.bind import DirectListener
from gsocks.exits.chain import Chain
from gsocks.exits.direct import DirectExit, SourceNetwork
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.settings import PoolSettings, Timeouts
from gsocks.stream import hung_up
from gsocks.tunnel.frames import Frame
from tests.support import listeners
from tests.support.datagrams import address
from tests.support.engine import (
    FakeExit,
    Refused,
    Seen,
    both_ends,
    connect,
    eventually,
    is_reset,
    make_exit,
    make_server,
    read_exactly,
    read_reply,
    read_to_end,
    running_inbound,
    send_reset,
)
from tests.support.listeners import Open, directly
from tests.support.ports import free_port
from tests.support.stream_contract import tcp_pair
from tests.support.tunnel_parts import ByHand, opened, our_client, our_server
from tests.support.turns import turns_of_others
from tests.support.waiting import TOO_LONG

HERE = Address("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def _never_hangs(never_hangs: None) -> None:
    """A peer that doesn't come must not stop the tests."""


def look_up(host: str) -> list[str]:
    return {"peer.test": ["127.0.0.1"], "six.test": ["::1"]}[host]


both_ways = listeners.both_ways("opened_by", names=look_up)


def ask(control: socket, expected: Address = HERE) -> Address:
    """Where the peer is waited for; raises Refused."""
    control.sendall(b"\x05\x01\x00" + b"\x05\x02\x00" + expected.encode())
    assert read_exactly(control, 2) == b"\x05\x00"
    return read_reply(control)


def peer_from(host: str, to: Address) -> socket:
    """A connection to ``to`` from ``host``."""
    sock = socket(std_socket.AF_INET6 if ":" in host else std_socket.AF_INET)
    sock.settimeout(TOO_LONG)
    sock.bind((host, 0))
    sock.connect(to)
    return sock


# --- the two replies ------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("expected", "host"),
    [
        (HERE, "127.0.0.1"),
        (Address("127.0.0.1", 20), "127.0.0.1"),
        (Address("::1", 0), "::1"),
        (Address("peer.test", 0), "127.0.0.1"),
        (Address("six.test", 0), "::1"),
    ],
    ids=["IPv4", "with its port", "IPv6", "a name", "a name with IPv6"],
)
def test_the_expected_peer_connects_and_both_talk(
    opened_by: Open, expected: Address, host: str, nothing_left: None
) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        place = ask(control, expected)
        assert place.host == host
        with peer_from(host, place) as peer:
            assert read_reply(control) == address(peer)
            peer.sendall(b"from the peer")
            assert read_exactly(control, 13) == b"from the peer"
            control.sendall(b"from the client")
            control.shutdown(std_socket.SHUT_WR)
            assert read_to_end(peer) == b"from the client"
            peer.sendall(b"half-closed")
            peer.shutdown(std_socket.SHUT_WR)
            assert read_to_end(control) == b"half-closed"
        for record in inbounds.next_records():
            assert (record.command, record.dest) == ("bind", str(expected))
            assert (record.up, record.down, record.outcome) == (15, 24, "ok")
            assert record.fields()["command"] == "bind"


@both_ways
def test_a_socks4_client_is_answered_twice_in_its_own_words(opened_by: Open) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        control.sendall(b"\x04\x02\0\x14" + bytes((127, 0, 0, 1)) + b"\0")
        first = read_exactly(control, 8)
        assert (first[:2], first[4:]) == (b"\0\x5a", bytes((127, 0, 0, 1)))
        place = Address("127.0.0.1", int.from_bytes(first[2:4], "big"))
        with peer_from("127.0.0.1", place) as peer:
            second = read_exactly(control, 8)
            assert second == b"\0\x5a" + address(peer).port.to_bytes(2, "big") + bytes(
                (127, 0, 0, 1)
            )
            peer.sendall(b"hello")
            assert read_exactly(control, 5) == b"hello"


@both_ways
@pytest.mark.parametrize("expected", [UNSPECIFIED, Address("0.0.0.0", 21)])
def test_without_a_named_peer_any_peer_may_connect(opened_by: Open, expected: Address) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        place = ask(control, expected)
        with connect(place) as peer:
            assert read_reply(control) == address(peer)
            peer.sendall(b"hello")
            assert read_exactly(control, 5) == b"hello"


def test_any_peer_connects_to_the_address_towards_the_default_route() -> None:
    with socket(type=std_socket.SOCK_DGRAM) as probe:
        probe.settimeout(0)
        probe.connect(("192.0.2.1", 9))
        towards = probe.getsockname()[0]
    listener = DirectListener(Dialer(ALLOW_ALL, Resolver()), UNSPECIFIED, None)
    assert listener.bound.host == towards
    listener.close()


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "::"])
def test_without_a_default_route_every_address_is_open(
    unspecified: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoRoute(socket):
        def connect(self, address: object) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("gsocks.exits.bind.socket", NoRoute)
    dialer = Dialer(ALLOW_ALL, Resolver())
    listener = DirectListener(dialer, Address(unspecified, 0), None)
    assert listener.bound.host == unspecified
    listener.close()
    with pytest.raises(ConnectFailed, match="unreachable"):
        DirectListener(dialer, Address("192.0.2.1", 0), None)


@both_ways
def test_what_the_client_says_while_it_waits_is_the_streams(opened_by: Open) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        place = ask(control)
        control.sendall(b"too early, ")
        with peer_from("127.0.0.1", place) as peer:
            read_reply(control)
            control.sendall(b"but not lost")
            assert read_exactly(peer, 23) == b"too early, but not lost"


def test_what_the_client_says_while_it_waits_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stays readable, and would keep the loop busy."""
    looked: list[bool] = []

    def look(sock: socket) -> bool:
        looked.append(hung_up(sock))
        return looked[-1]

    monkeypatch.setattr("gsocks.inbound.bind.hung_up", look)
    with directly() as inbounds, connect(inbounds.bound) as control:
        place = ask(control)
        control.sendall(b"early")
        eventually(lambda: looked)
        for _ in range(5):
            gevent.idle()
        with peer_from("127.0.0.1", place) as peer:
            read_reply(control)
            assert read_exactly(peer, 5) == b"early"
    assert looked == [False]


def test_a_wait_counts_as_a_connection_of_its_exit_until_it_is_over(nothing_left: None) -> None:
    exits = [Offer(DirectExit(Dialer(ALLOW_ALL, Resolver())), max_connections=1)]
    seen = Seen()
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup(exits, ALLOW_ALL), observer=seen)
    with running_inbound(inbound):
        for _ in range(2):
            with connect(inbound.bound) as control, connect(inbound.bound) as other:
                ask(control)
                with pytest.raises(Refused, match="1"):
                    ask(other)
                assert seen.next().outcome == "limit"
            assert seen.next().outcome == "client_gone"


def test_the_tunnel_is_used_again(nothing_left: None) -> None:
    with both_ends() as ends:
        eventually(lambda: ends.exit.pool.ready == 8)
        for _ in range(3):
            with connect(ends.local.bound) as control:
                with connect(ask(control)) as peer:
                    read_reply(control)
                    peer.shutdown(std_socket.SHUT_WR)
                    assert read_to_end(control) == b""
                    control.shutdown(std_socket.SHUT_WR)
                    assert read_to_end(peer) == b""
                assert ends.at_local.next().outcome == ends.at_server.next().outcome == "ok"
            eventually(lambda: ends.exit.pool.ready == 8)
        assert ends.exit.pool.opened == 8


# --- who may come ---------------------------------------------------------------------------


@both_ways
def test_another_than_the_expected_peer_is_reset_and_the_wait_goes_on(opened_by: Open) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        place = ask(control, Address("127.0.0.2", 0))
        for _ in range(3):
            with peer_from("127.0.0.3", place) as stranger:
                assert is_reset(stranger)
        with peer_from("127.0.0.2", place) as peer:
            assert read_reply(control) == address(peer)


@both_ways
def test_the_rules_decide_about_the_peer_that_connects(opened_by: Open) -> None:
    # 0.0.0.0, which stands for any peer here, is no address that could be denied
    rules = Rules.parse(["deny loopback", "deny 0.0.0.0/8", "allow all"])
    with opened_by(rules=rules) as inbounds, connect(inbounds.bound) as control:
        place = ask(control, UNSPECIFIED)
        with peer_from("127.0.0.1", place) as stranger:
            assert is_reset(stranger)
        with peer_from(place.host, place) as peer:
            assert read_reply(control) == address(peer)


@both_ways
@pytest.mark.parametrize("expected", [Address("10.0.0.1", 0), Address("peer.test", 0)])
def test_a_forbidden_peer_is_not_even_waited_for(opened_by: Open, expected: Address) -> None:
    with opened_by(rules=Rules.default()) as inbounds, connect(inbounds.bound) as control:
        with pytest.raises(Refused, match="2"):
            ask(control, expected)
        assert {record.outcome for record in inbounds.next_records()} == {"forbidden"}


def test_a_local_end_asks_its_own_rules_too(nothing_left: None) -> None:
    with running_inbound(make_server()) as server:
        ways = ExitGroup([make_exit(server.bound, pool_size=0)], Rules.parse(["deny 127.0.0.1"]))
        inbound = LocalServer(("127.0.0.1", 0), ways)
        with (
            running_inbound(inbound),
            connect(inbound.bound) as control,
            pytest.raises(Refused, match="2"),
        ):
            ask(control)


# --- when no peer connects ----------------------------------------------------------------------


@both_ways
def test_a_peer_that_does_not_come_is_waited_for_so_long(
    opened_by: Open, nothing_left: None
) -> None:
    # the server's own time is over first, or at the same moment
    with opened_by(timeouts=Timeouts(bind=0.05)) as inbounds, connect(inbounds.bound) as control:
        place = ask(control)
        with pytest.raises(Refused, match="6"):
            read_reply(control)
        assert control.recv(1) == b""
        assert "connect_timeout" in {record.outcome for record in inbounds.next_records()}
        with pytest.raises(ConnectionRefusedError):
            connect(place)


def test_a_server_whose_time_is_over_says_so_and_the_tunnel_goes_on(nothing_left: None) -> None:
    server = make_server(timeouts=Timeouts(bind=0.05))
    with running_inbound(server):
        way = make_exit(server.bound)
        inbound = LocalServer(("127.0.0.1", 0), ExitGroup([way], ALLOW_ALL))
        with running_inbound(inbound):
            way.pool.wake()
            eventually(lambda: way.pool.ready == 8)
            for _ in range(2):
                with connect(inbound.bound) as control:
                    ask(control)
                    with pytest.raises(Refused, match="6"):
                        read_reply(control)
                eventually(lambda: way.pool.ready == 8)
            assert way.pool.opened == 8


@both_ways
@pytest.mark.parametrize("leave", [socket.close, send_reset, "half-close"])
def test_a_client_that_hangs_up_is_waited_for_no_longer(
    opened_by: Open, leave: Any, nothing_left: None
) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        place = ask(control)
        if leave == "half-close":
            control.shutdown(std_socket.SHUT_WR)
        else:
            leave(control)
        assert [record.outcome for record in inbounds.next_records()] == ["client_gone"] * len(
            inbounds.ends
        )
        with pytest.raises(ConnectionRefusedError):
            connect(place)


def test_a_client_that_is_gone_before_the_first_reply_leaves_nothing(nothing_left: None) -> None:
    seen = Seen()
    slow = Slow(DirectExit(Dialer(ALLOW_ALL, Resolver())))
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup([slow], ALLOW_ALL), observer=seen)
    with running_inbound(inbound), connect(inbound.bound) as control:
        control.sendall(b"\x05\x01\x00" + b"\x05\x02\x00" + HERE.encode())
        slow.asked.wait()
        send_reset(control)
        slow.go_on.set()
        assert seen.next().outcome == "client_gone"


class Slow(FakeExit):
    """Binds when a test lets it."""

    def __init__(self, way: DirectExit) -> None:
        super().__init__("slow")
        self.way = way
        self.go_on = Event()

    def bind(self, request: Request) -> Any:
        self.asked.set()
        self.go_on.wait()
        return self.way.bind(request)


@both_ways
def test_a_inbound_that_stops_leaves_nothing(opened_by: Open, nothing_left: None) -> None:
    with opened_by() as inbounds, connect(inbounds.bound) as control:
        place = ask(control)
        inbounds.local.stop(0)
        assert read_to_end(control) == b""
        eventually(lambda: not is_open(place))


def is_open(place: Address) -> bool:
    try:
        connect(place).close()
    except OSError:
        return False
    return True


def test_a_server_that_goes_away_is_told_as_the_exits_failure(nothing_left: None) -> None:
    with both_ends() as ends, connect(ends.local.bound) as control:
        ask(control)
        ends.server.stop(0)
        with pytest.raises(Refused, match="1"):
            read_reply(control)
        assert ends.at_local.next().outcome == "exit_failed"


# --- exits that can't -----------------------------------------------------------------------


def test_where_no_exit_can_wait_the_client_is_told_so() -> None:
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup([FakeExit("http://x")], ALLOW_ALL))
    with (
        running_inbound(inbound),
        connect(inbound.bound) as control,
        pytest.raises(Refused, match="7"),
    ):
        ask(control)


def test_an_exit_through_another_one_waits_if_it_can(nothing_left: None) -> None:
    request = Request(Command.BIND, HERE)
    direct = DirectExit(Dialer(ALLOW_ALL, Resolver()))
    Chain(direct, FakeExit("a"), "a, then direct").bind(request).close()
    with pytest.raises(CommandNotSupported, match="a, then b"):
        Chain(FakeExit("b"), FakeExit("a"), "a, then b").bind(request)


# --- the listener itself --------------------------------------------------------------------


def listen(expected: Address = HERE, **options: Any) -> DirectListener:
    return DirectListener(Dialer(ALLOW_ALL, Resolver(), **options), expected, None)


def test_a_listener_that_is_closed_tells_who_waits(nothing_left: None) -> None:
    listener = listen()
    gevent.spawn_later(0, listener.close)
    with pytest.raises(StreamClosed):
        listener.accept()
    with pytest.raises(StreamClosed):
        listener.accept()
    listener.close()


def test_a_connection_that_was_waited_for_is_tuned(nothing_left: None) -> None:
    listener = listen()
    with connect(listener.bound):
        stream = listener.accept().stream
        sock = stream.detach()  # type: ignore[attr-defined]
        assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY)
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE)
        sock.close()
    listener.close()


def test_a_stranger_that_never_stops_coming_lets_others_run(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    listener = listen()
    pairs = [tcp_pair() for _ in range(5)]
    came = [far for _, far in pairs]

    class Crowded:
        def accept(self) -> tuple[socket, tuple[str, int]]:
            if not came:
                raise OSError(errno.EMFILE, "Too many open files")
            return came.pop(), ("127.0.0.9", 9)

    listener.close()
    listener._sock = Crowded()  # type: ignore[assignment]
    with turns_of_others() as others, pytest.raises(OutOfResources):
        listener.accept()
    assert others.count >= len(pairs)
    for near, _ in pairs:
        assert is_reset(near)
        near.close()


@pytest.mark.parametrize(
    ("network", "expected", "failure"),
    [
        ("127.0.0.77/32", HERE, None),
        ("127.0.0.77/32", UNSPECIFIED, None),
        ("127.0.0.77/32", Address("::1", 0), AddressFamilyNotSupported),
        ("192.0.2.252/32", HERE, ConnectFailed),
    ],
    ids=["it", "for any peer", "the other family", "not there"],
)
def test_it_waits_at_a_source_address_if_the_exit_has_any(
    network: str, expected: Address, failure: type[ConnectFailed] | None, nothing_left: None
) -> None:
    source = SourceNetwork(ip_network(network), Random(1))
    if failure is not None:
        with pytest.raises(failure):
            listen(expected, source=source)
        return
    listener = listen(expected, source=source)
    assert listener.bound.host == "127.0.0.77"
    listener.close()


def test_where_no_descriptor_is_left_the_cause_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gsocks.exits.bind.socket", none_left)
    with pytest.raises(OutOfResources):
        listen()


def test_hanging_up_is_seen_behind_unread_bytes() -> None:
    near, far = tcp_pair()
    with near, far:
        assert not hung_up(far)
        near.sendall(b"unread")
        assert not hung_up(far)
        near.shutdown(std_socket.SHUT_WR)
        eventually(lambda: hung_up(far))
    near, far = tcp_pair()
    with far:
        send_reset(near)
        eventually(lambda: hung_up(far))


# --- in the tunnel --------------------------------------------------------------------------


PLACE = Address("192.0.2.1", 5000)


@contextmanager
def waiting_by_hand() -> Iterator[tuple[PendingBind, TunnelExit, ByHand]]:
    """A peer is waited for behind an exit's one tunnel, by a server that the test plays."""
    with our_client() as (client, server):
        way = TunnelExit(
            HERE, Key(bytes(32)), Dialer(ALLOW_ALL, Resolver()), pool=PoolSettings(size=1)
        )
        way.pool.give_back(client)
        binding = gevent.spawn(way.bind, Request(Command.BIND, Address("example.com", 20)))
        kind, body = server.receive()
        assert (kind, body[0]) == (Frame.OPEN, Command.BIND)
        server.send(Frame.OPENED, opened(bound=PLACE))
        yield binding.get(), way, server
        way.close()


def test_a_bind_in_a_tunnel_is_answered_twice() -> None:
    peer = Address("192.0.2.9", 4000)
    with waiting_by_hand() as (listening, _, server):
        assert listening.bound == PLACE
        server.send(Frame.PAD, b"between the answers")
        server.send(Frame.OPENED, opened(bound=peer))
        server.send(Frame.DATA, b"hello")
        connected = listening.accept()
        listening.close()  # there is nothing left to close
        assert connected.bound == peer
        assert connected.stream.read() == b"hello"
        connected.stream.abort()


@pytest.mark.parametrize(
    ("code", "failure"), [(0x06, ConnectTimeout), (0x02, Forbidden), (0x05, ConnectionRefused)]
)
def test_a_second_answer_may_be_a_refusal_and_the_tunnel_goes_on(
    code: int, failure: type[ConnectFailed]
) -> None:
    with waiting_by_hand() as (listening, way, server):
        server.send(Frame.OPENED, opened(code, UNSPECIFIED))
        with pytest.raises(failure):
            listening.accept()
        listening.close()
        assert server.receive() == (Frame.FIN, b"")
        assert way.pool.ready == 1
        with pytest.raises(StreamClosed):
            listening.accept()


@pytest.mark.parametrize(
    "misbehave",
    [
        lambda server: server.send(Frame.DATA, b"no answer"),
        lambda server: server.send(Frame.OPENED, b"\x00"),
        lambda server: server.end(),
    ],
    ids=["another frame", "half an answer", "the end"],
)
def test_anything_else_than_a_second_answer_breaks_the_tunnel(
    misbehave: Callable[[ByHand], None],
) -> None:
    with waiting_by_hand() as (listening, way, server):
        misbehave(server)
        with pytest.raises(ExitFailed):
            listening.accept()
        listening.close()
        assert server.sock.recv(1) == b""
        assert way.pool.ready == 0


def test_a_bind_that_is_given_up_gives_its_tunnel_up() -> None:
    with waiting_by_hand() as (listening, way, _):
        gevent.spawn_later(0, listening.close)
        with pytest.raises(StreamClosed):
            listening.accept()
        assert way.pool.ready == 0


def test_behind_a_second_refusal_a_server_discards_up_to_the_fin() -> None:
    with our_server() as (client, server):
        client.send(Frame.OPEN, bytes((Command.BIND,)) + HERE.encode())
        client.send(Frame.DATA, b"early")
        client.send(Frame.FIN)
        client.send(Frame.OPEN, bytes((Command.CONNECT,)) + HERE.encode())
        assert server.accept() == Request(Command.BIND, HERE, "alice")
        server.succeeded(Address("192.0.2.1", 5000))
        server.failed(ConnectTimeout())
        assert server.accept() == Request(Command.CONNECT, HERE, "alice")
        codes = [client.receive()[1][0] for _ in range(2)]
        assert codes == [0x00, 0x06]


def test_nothing_listens_once_no_client_waits() -> None:
    """So the tests that connect to a place that is closed can tell."""
    with pytest.raises(ConnectionRefusedError):
        connect(Address("127.0.0.1", free_port()))
