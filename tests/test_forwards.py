"""Static forwards: connections and datagrams that have one destination, whatever they say."""

from __future__ import annotations

import socket as std_socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks import config
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.errors import CommandNotSupported, ConfigError, ExitFailed, StreamClosed
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.forward import ForwardServer
from gsocks.inbound.udp_forward import SenderDatagrams, UdpForward
from gsocks.net.dial import Dialer
from gsocks.net.listen import listen_for_datagrams
from gsocks.net.resolve import Resolver
from gsocks.request import ExitSelector, Request
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Offer
from gsocks.settings import ForwardUdpSettings, Limits
from tests.support.datagrams import address, udp_server, udp_socket, who_asks
from tests.support.engine import (
    FakeExit,
    Seen,
    connect,
    direct,
    eventually,
    is_reset,
    make_exit,
    make_server,
    read_exactly,
    read_to_end,
    running_inbound,
    serving,
)
from tests.support.ports import free_port
from tests.support.program import (
    ROOT,
    gsocks,
)
from tests.support.turns import turns_of_others
from tests.support.two_ways import Spawned, both_ways
from tests.support.waiting import TOO_LONG

in_process = pytest.mark.usefixtures("never_hangs", "nothing_left")


@contextmanager
def forwarding(
    to: Address, seen: Seen, exits: ExitGroup | None = None, **options: Any
) -> Iterator[ForwardServer]:
    inbound = ForwardServer(("127.0.0.1", 0), to, exits or direct(), observer=seen, **options)
    with running_inbound(inbound):
        yield inbound


@contextmanager
def through_a_tunnel(rules: Rules = ALLOW_ALL) -> Iterator[ExitGroup]:
    """Exits that are a server of gsocks."""
    with running_inbound(make_server()) as server:
        yield ExitGroup([make_exit(server.bound, pool_size=1)], rules)


@contextmanager
def straight_out() -> Iterator[ExitGroup]:
    yield direct()


either_exit = pytest.mark.parametrize(
    "exits", [straight_out, through_a_tunnel], ids=["directly", "through a tunnel"]
)
Exits = Callable[[], Any]


def banner(sock: socket) -> None:
    """A server that speaks first, as those of SSH and mail do."""
    sock.sendall(b"220 ready\r\n")
    sock.sendall(read_to_end(sock).upper())
    sock.shutdown(std_socket.SHUT_WR)


# --- connections ------------------------------------------------------------------------------


@in_process
@both_ways
@either_exit
def test_a_server_that_speaks_first_is_heard_and_each_direction_ends_by_itself(
    exits: Exits, seen: Seen
) -> None:
    with (
        serving(banner) as to,
        exits() as ways,
        forwarding(to, seen, ways) as inbound,
        connect(inbound.bound) as client,
    ):
        assert read_exactly(client, 11) == b"220 ready\r\n"
        client.sendall(b"hello")
        client.shutdown(std_socket.SHUT_WR)
        assert read_to_end(client) == b"HELLO"
        here = client.getsockname()
    record = seen.next()
    assert (record.inbound, record.outcome, record.command) == ("forward", "ok", "connect")
    assert (record.dest, record.client) == (str(to), f"127.0.0.1:{here[1]}")
    assert (record.up, record.down) == (5, 16)


@in_process
def test_a_connection_has_no_greenlet(seen: Seen, spawned: Spawned) -> None:
    with (
        serving(banner) as to,
        forwarding(to, seen) as inbound,
        connect(inbound.bound) as client,
    ):
        assert read_exactly(client, 11) == b"220 ready\r\n"
        assert inbound.connections == 1
    assert seen.next().outcome
    assert spawned == []


@in_process
@both_ways
@either_exit
def test_a_destination_that_refuses_is_a_reset(exits: Exits, seen: Seen) -> None:
    nowhere = Address("127.0.0.1", free_port())
    with exits() as ways, forwarding(nowhere, seen, ways) as inbound:
        with connect(inbound.bound) as client:
            assert is_reset(client)
        assert seen.next().outcome == "refused"
        eventually(lambda: not inbound.connections)


@in_process
@both_ways
def test_a_destination_that_rules_deny_is_a_reset(seen: Seen) -> None:
    denied = direct(Rules.parse(["deny 127.0.0.0/8", "allow all"]))
    with serving(banner) as to, forwarding(to, seen, denied) as inbound:
        with connect(inbound.bound) as client:
            assert is_reset(client)
        assert seen.next().outcome == "forbidden"


@in_process
def test_the_client_that_a_balancer_announces_is_the_client(seen: Seen) -> None:
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 5432\r\n"
    with (
        serving(banner) as to,
        forwarding(to, seen, proxy_protocol_from=["127.0.0.1"]) as inbound,
        connect(inbound.bound) as client,
    ):
        client.sendall(header + b"hello")
        client.shutdown(std_socket.SHUT_WR)
        assert read_to_end(client) == b"220 ready\r\nHELLO"
        assert seen.next().client == "192.0.2.7:51000"


@in_process
def test_of_an_announced_client_a_failure_is_a_reset_too(seen: Seen) -> None:
    nowhere = Address("127.0.0.1", free_port())
    with forwarding(nowhere, seen, proxy_protocol_from=["127.0.0.1"]) as inbound:
        with connect(inbound.bound) as client:
            client.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 5432\r\n")
            assert is_reset(client)
        record = seen.next()
        assert (record.client, record.outcome) == ("192.0.2.7:51000", "refused")


@in_process
def test_clients_of_other_networks_do_not_come_in(seen: Seen) -> None:
    with (
        serving(banner) as to,
        forwarding(to, seen, clients=["192.0.2.0/24"]) as inbound,
        connect(inbound.bound) as client,
    ):
        assert read_to_end(client) == b""
        assert seen.next().outcome == "client_forbidden"


@in_process
def test_no_more_connections_of_one_client_than_the_limit(seen: Seen) -> None:
    with (
        serving(banner) as to,
        forwarding(to, seen, limits=Limits(per_client=1)) as inbound,
        connect(inbound.bound) as first,
    ):
        assert read_exactly(first, 3) == b"220"
        with connect(inbound.bound) as second:
            assert read_to_end(second) == b""
        assert seen.next().outcome == "limit"


@in_process
@both_ways
def test_a_stop_lets_go_of_what_is_being_connected(seen: Seen) -> None:
    exit_ = FakeExit("slow")
    with (
        forwarding(Address("192.0.2.1", 80), seen, ExitGroup([exit_], ALLOW_ALL)) as inbound,
        connect(inbound.bound) as client,
    ):
        exit_.asked.wait()
        inbound.stop(0)
        assert is_reset(client)
    assert seen.next().outcome == "stopped"


@in_process
def test_a_stop_waits_for_what_is_open(seen: Seen) -> None:
    with serving(banner) as to, forwarding(to, seen) as inbound:
        with connect(inbound.bound) as client:
            read_exactly(client, 11)
            stopping = gevent.spawn(inbound.stop, TOO_LONG)
            gevent.idle()
            client.sendall(b"last words")
            client.shutdown(std_socket.SHUT_WR)
            assert read_to_end(client) == b"LAST WORDS"
        stopping.get()
    assert seen.next().outcome == "ok"


@in_process
def test_a_forward_asks_for_the_exits_of_its_selector(seen: Seen) -> None:
    class Named(DirectExit):
        def __init__(self, label: str) -> None:
            super().__init__(Dialer(ALLOW_ALL, Resolver()), label)

    ways = ExitGroup([Offer(Named(name), name=name) for name in ("one", "two")], ALLOW_ALL)
    with (
        serving(banner) as to,
        forwarding(to, seen, ways, selector=ExitSelector(exit="two")) as inbound,
    ):
        for _ in range(3):
            with connect(inbound.bound) as client:
                read_exactly(client, 11)
            assert seen.next().exit == "two"


@pytest.mark.parametrize("kind", [ForwardServer, UdpForward])
def test_other_machines_reach_a_forward_only_if_that_is_said(kind: Any) -> None:
    to = Address("192.0.2.1", 5432)
    with ExitStack() as stack:
        (udp,) = listen_for_datagrams(Address("0.0.0.0", 0))
        stack.callback(udp.close)
        where = udp if kind is UdpForward else ("0.0.0.0", 0)
        with pytest.raises(ConfigError, match=r"would let all machines .*allow_remote=True"):
            kind(where, to)
        kind(where, to, allow_remote=True)


# --- datagrams --------------------------------------------------------------------------------


@contextmanager
def forwarding_udp(
    to: Address,
    seen: Seen,
    exits: ExitGroup | None = None,
    host: str = "127.0.0.1",
    **options: Any,
) -> Iterator[UdpForward]:
    (sock,) = listen_for_datagrams(Address(host, 0))
    forward = UdpForward(sock, to, exits or direct(), observer=seen, **options)
    forward.start()
    try:
        yield forward
    finally:
        forward.stop(0)


def ask(sock: socket, at: Address, payload: bytes) -> bytes:
    sock.sendto(payload, at)
    answer, source = sock.recvfrom(65535)
    assert Address.from_sockaddr(source) == at
    return answer


@in_process
@either_exit
def test_answers_go_back_to_the_sender_that_asked(exits: Exits, seen: Seen) -> None:
    with (
        udp_server() as to,
        exits() as ways,
        forwarding_udp(to, seen, ways) as forward,
        udp_socket() as one,
        udp_socket() as other,
    ):
        for sock, payload in (
            (one, b"1"),
            (other, b"2"),
            (one, b"3"),
            (other, b""),
            (one, b"x" * 9000),
        ):
            assert ask(sock, forward.bound, payload) == payload
        assert forward.connections == 2
        forward.stop(TOO_LONG)
        records = {record.client: record for record in (seen.next(), seen.next())}
        assert set(records) == {str(address(sock)) for sock in (one, other)}
        record = records[str(address(one))]
        assert (record.inbound, record.command) == ("forward", "udp_associate")
        assert (record.outcome, record.dest) == ("ok", str(to))
        assert record.up == record.down == 3 * len(to.encode()) + 1 + 1 + 9000


@in_process
@either_exit
def test_each_sender_has_an_association_of_its_own_that_lasts(exits: Exits, seen: Seen) -> None:
    with (
        udp_server(handle=who_asks) as to,
        exits() as ways,
        forwarding_udp(to, seen, ways) as forward,
        udp_socket() as one,
        udp_socket() as other,
    ):
        first, second = (ask(sock, forward.bound, b"?") for sock in (one, other))
        assert first != second
        assert (ask(one, forward.bound, b"?"), ask(other, forward.bound, b"?")) == (first, second)


@in_process
def test_a_name_is_looked_up_where_the_exit_goes_out(seen: Seen) -> None:
    with (
        udp_server() as to,
        forwarding_udp(Address("localhost", to.port), seen) as forward,
        udp_socket() as client,
    ):
        assert ask(client, forward.bound, b"hello") == b"hello"


@in_process
def test_what_does_not_come_from_the_destination_is_no_answer(seen: Seen) -> None:
    with udp_socket() as other:

        def answer(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
            other.sendto(b"from another port", source)
            return b"the answer"

        with (
            udp_server(handle=answer) as to,
            forwarding_udp(to, seen) as forward,
            udp_socket() as client,
        ):
            assert ask(client, forward.bound, b"?") == b"the answer"
            assert ask(client, forward.bound, b"?") == b"the answer"


@in_process
def test_a_sender_that_is_silent_loses_its_association(seen: Seen) -> None:
    with (
        udp_server(handle=who_asks) as to,
        forwarding_udp(to, seen, udp=ForwardUdpSettings(idle=0.05)) as forward,
        udp_socket() as client,
    ):
        first = ask(client, forward.bound, b"?")
        assert seen.next().outcome == "ok"
        eventually(lambda: not forward.connections)
        assert ask(client, forward.bound, b"?") != first


@in_process
def test_beyond_the_bound_the_sender_that_is_silent_for_longest_gives_way(seen: Seen) -> None:
    with (
        udp_server(handle=who_asks) as to,
        forwarding_udp(to, seen, udp=ForwardUdpSettings(associations=2)) as forward,
        udp_socket() as first,
        udp_socket() as second,
        udp_socket() as third,
    ):
        kept = ask(first, forward.bound, b"?")
        ask(second, forward.bound, b"?")
        ask(first, forward.bound, b"?")
        ask(third, forward.bound, b"?")
        record = seen.next()
        assert (record.client, record.outcome) == (str(address(second)), "client_closed")
        assert "its place was needed" in record.detail
        assert ask(first, forward.bound, b"?") == kept
        assert forward.connections == 2


@in_process
def test_a_client_that_has_most_associations_loses_its_own(seen: Seen) -> None:
    with (
        udp_server(handle=who_asks) as to,
        forwarding_udp(to, seen, udp=ForwardUdpSettings(associations=3)) as forward,
        udp_socket("127.0.0.2") as modest,
        ExitStack() as stack,
    ):
        kept = ask(modest, forward.bound, b"?")
        for _ in range(5):
            ask(stack.enter_context(udp_socket()), forward.bound, b"?")
        assert [seen.next().client.partition(":")[0] for _ in range(3)] == ["127.0.0.1"] * 3
        assert ask(modest, forward.bound, b"?") == kept


class Associating:
    """An exit that carries datagrams as a test wants it to."""

    label = "associating"

    def __init__(self, associate: Callable[[Request], Connected]) -> None:
        self.associate = associate

    def connect(self, request: Request) -> Connected:
        raise AssertionError

    def close(self) -> None: ...


def waiting_for(released: Event, asked: list[Request]) -> ExitGroup:
    """An exit that keeps its requests waiting."""

    def associate(request: Request) -> Connected:
        asked.append(request)
        released.wait()
        return DirectExit(Dialer(ALLOW_ALL, Resolver())).associate(request)

    return ExitGroup([Associating(associate)], ALLOW_ALL)


@in_process
def test_what_is_being_connected_gives_way_too(seen: Seen) -> None:
    released, asked = Event(), list[Request]()
    with (
        udp_server() as to,
        forwarding_udp(
            to, seen, waiting_for(released, asked), udp=ForwardUdpSettings(associations=1)
        ) as forward,
        udp_socket() as first,
        udp_socket() as second,
    ):
        first.sendto(b"1", forward.bound)
        eventually(lambda: len(asked) == 1)
        second.sendto(b"2", forward.bound)
        record = seen.next()
        assert (record.client, record.outcome) == (str(address(first)), "evicted")
        eventually(lambda: len(asked) == 2)
        released.set()
        assert second.recv(10) == b"2"


@in_process
@pytest.mark.parametrize("bound", [SenderDatagrams, UdpForward], ids=["of a sender", "of all"])
def test_what_comes_while_the_exit_is_reached_is_kept_up_to_a_bound(
    bound: type, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "max_queued", 400)
    released, asked = Event(), list[Request]()
    got: list[bytes] = []

    def note(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes:
        got.append(payload[:1])
        return payload

    with (
        udp_server(handle=note) as to,
        forwarding_udp(to, seen, waiting_for(released, asked)) as forward,
        udp_socket() as client,
    ):
        for number in b"123":
            client.sendto(bytes((number,)) * 100, forward.bound)
        eventually(lambda: forward._senders)
        (sender,) = forward._senders.values()
        eventually(lambda: len(sender._queue) == 2)
        released.set()
        assert [client.recv(200)[:1] for _ in range(2)] == [b"1", b"2"]
        assert ask(client, forward.bound, b"4") == b"4"
        assert got == [b"1", b"2", b"4"]
        assert forward.queued == 0


@in_process
def test_datagrams_without_a_byte_are_bounded_too(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SenderDatagrams, "max_queued", 200)
    released, asked = Event(), list[Request]()
    with (
        udp_server() as to,
        forwarding_udp(to, seen, waiting_for(released, asked)) as forward,
        udp_socket() as client,
    ):
        client.sendto(b"", forward.bound)
        eventually(lambda: asked)
        (sender,) = forward._senders.values()
        for _ in range(5):
            client.sendto(b"", forward.bound)
        client.sendto(b"last", forward.bound)
        sender.last_byte = 0.0
        eventually(lambda: sender.last_byte)
        assert len(sender._queue) == 3
        released.set()


@in_process
def test_a_datagram_of_an_exit_that_is_none_is_dropped(seen: Seen) -> None:
    class Garbage:
        """A stream of what an exit may send that knows no better."""

        def __init__(self) -> None:
            self.left = [b"", b"\x01", b"\x03\xff", b"\x01" + bytes(6) + b"from elsewhere"]
            self.ended = Event()

        def read(self) -> bytes:
            if len(self.left) > 1:
                return self.left.pop()
            self.ended.wait()
            return b""

        def write(self, data: bytes) -> None: ...

        def write_eof(self) -> None:
            self.ended.set()

        abort = close = write_eof

    def garbage(request: Request) -> Connected:
        return Connected(Garbage(), request.dest)

    with (
        forwarding_udp(
            Address("192.0.2.1", 53), seen, ExitGroup([Associating(garbage)], ALLOW_ALL)
        ) as forward,
        udp_socket() as client,
    ):
        client.sendto(b"?", forward.bound)
        eventually(lambda: forward._senders)
        (sender,) = forward._senders.values()
        assert "waiting, open" in repr(sender)
        eventually(lambda: sender.is_carried and not sender._queue)
        assert sender.awaits_answer
        forward.stop(0)
        assert f"{forward!r}" == f"<UdpForward {forward.bound} to 192.0.2.1:53, 0 associations>"
        with pytest.raises(StreamClosed):
            sender.write(Address("192.0.2.1", 53).encode())
        assert "closed" in repr(sender)


@in_process
def test_a_failure_is_logged_once_and_exits_are_asked_again_after_a_while(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def fail(request: Request) -> Connected:
        asked.append(request)
        raise CommandNotSupported("no datagrams here")

    with (
        udp_server() as to,
        forwarding_udp(to, seen, ExitGroup([Associating(fail)], ALLOW_ALL)) as forward,
        udp_socket() as client,
    ):
        client.sendto(b"1", forward.bound)
        assert seen.next().outcome == CommandNotSupported.word
        (sender,) = forward._senders.values()
        sender.last_byte = 0.0
        client.sendto(b"2", forward.bound)
        eventually(lambda: sender.last_byte)
        assert len(asked) == 1
        sender.retry_at = 0.0
        client.sendto(b"3", forward.bound)
        assert seen.next().outcome == CommandNotSupported.word
        assert len(asked) == 2


@in_process
def test_a_sender_whose_exit_has_failed_is_forgotten_when_it_is_silent(seen: Seen) -> None:
    failing = ExitGroup([Associating(_fail)], ALLOW_ALL, tries=1)
    with (
        forwarding_udp(
            Address("192.0.2.1", 53), seen, failing, udp=ForwardUdpSettings(idle=0.05)
        ) as forward,
        udp_socket() as client,
    ):
        client.sendto(b"1", forward.bound)
        seen.next()
        eventually(lambda: not forward.connections)


def _fail(_: Request) -> Connected:
    raise ExitFailed("is down")


@in_process
def test_senders_of_other_networks_are_dropped(seen: Seen) -> None:
    with (
        udp_server() as to,
        forwarding_udp(to, seen, clients=["127.0.0.2"]) as forward,
        udp_socket() as stranger,
        udp_socket("127.0.0.2") as client,
    ):
        stranger.sendto(b"?", forward.bound)
        assert ask(client, forward.bound, b"hello") == b"hello"
        record = seen.next()
        assert (record.client, record.outcome) == (str(address(stranger)), "client_forbidden")
        assert record.is_routine
        assert forward.connections == 1


@in_process
@pytest.mark.parametrize("host", ["127.0.0.5", "127.0.0.6"])
def test_an_answer_comes_from_the_address_that_was_asked(host: str, seen: Seen) -> None:
    with (
        udp_server() as to,
        forwarding_udp(to, seen, host="0.0.0.0", allow_remote=True) as forward,
        udp_socket() as client,
    ):
        assert ask(client, Address(host, forward.bound.port), b"hello") == b"hello"


@in_process
def test_so_it_does_over_ipv6(seen: Seen) -> None:
    with ExitStack() as stack:
        try:
            client = stack.enter_context(udp_socket("::1"))
        except OSError:
            pytest.skip("this machine has no IPv6")
        to = stack.enter_context(udp_server())
        forward = stack.enter_context(forwarding_udp(to, seen, host="::", allow_remote=True))
        assert ask(client, Address("::1", forward.bound.port), b"hello") == b"hello"


@in_process
def test_a_stop_waits_for_an_answer_and_for_no_sender_that_has_one(seen: Seen) -> None:
    held: list[tuple[socket, tuple[str, int]]] = []

    def hold(sock: socket, payload: bytes, source: tuple[str, int]) -> bytes | None:
        if payload != b"slow":
            return payload
        held.append((sock, source))
        return None

    with (
        udp_server(handle=hold) as to,
        forwarding_udp(to, seen) as forward,
        udp_socket() as answered,
        udp_socket() as waiting,
    ):
        ask(answered, forward.bound, b"quick")
        waiting.sendto(b"slow", forward.bound)
        eventually(lambda: held)
        forward.max_stop = TOO_LONG
        stopping = gevent.spawn(forward.stop, TOO_LONG)
        assert seen.next().client == str(address(answered))
        answered.sendto(b"too late", forward.bound)
        sock, source = held[0]
        sock.sendto(b"the answer", source)
        assert waiting.recv(100) == b"the answer"
        stopping.get()
        assert seen.next().client == str(address(waiting))
    assert seen.outcomes == ["ok", "ok"]


@in_process
def test_a_stop_gives_up_what_is_never_answered(seen: Seen) -> None:
    released, asked = Event(), list[Request]()
    with (
        udp_server(handle=lambda *_: None) as silent,
        forwarding_udp(silent, seen) as forward,
        forwarding_udp(silent, seen, waiting_for(released, asked)) as connecting,
        udp_socket() as client,
    ):
        client.sendto(b"1", forward.bound)
        client.sendto(b"1", connecting.bound)
        eventually(lambda: asked and forward._senders)
        forward.stop(0)
        connecting.stop(0)
        assert {seen.next().outcome, seen.next().outcome} <= {"stopped", "closed", "ok"}


@in_process
def test_a_flood_of_senders_lets_others_run(seen: Seen) -> None:
    with (
        udp_server() as to,
        forwarding_udp(to, seen, udp=ForwardUdpSettings(associations=8)) as forward,
        ExitStack() as stack,
    ):
        flood = [stack.enter_context(udp_socket()) for _ in range(200)]
        with turns_of_others() as others:
            for sock in flood:
                sock.sendto(b"?", forward.bound)
            assert ask(flood[-1], forward.bound, b"!") in (b"?", b"!")
        assert others.count
        assert forward.connections == 8


# --- the config -------------------------------------------------------------------------------


def parse(text: str) -> config.Config:
    return config.parse(text, ROOT)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("config.yaml: ")


def test_a_list_of_forwards_goes_by_the_exits_of_local() -> None:
    found = parse(
        """
local: {listen: 127.0.0.1:1080, exits: [socks5://h]}
forwards:
  - {listen: 127.0.0.1:5432, to: db.internal:5432}
  - {listen: 127.0.0.1:8000-8010, to: "web:9000-9010"}
  - {listen: "[::1]:5353", to: 9.9.9.9:53, udp: true, country: NO, exit: Berlin}
"""
    ).forwards
    assert found is not None
    assert not found.has_own_exits
    here = Address("127.0.0.1", 5432)
    assert found.routes[0] == config.Route(here, Address("db.internal", 5432))
    assert [(str(leg.listen), str(leg.to)) for leg in found.legs][1:3] == [
        ("127.0.0.1:8000", "web:9000"),
        ("127.0.0.1:8001", "web:9001"),
    ]
    assert len(found.addresses) == 13
    assert found.routes[2].udp
    assert found.routes[2].selector == ExitSelector(country="no", exit="berlin")
    assert str(found.routes[1]) == "127.0.0.1:8000-8010 (TCP to web:9000-9010)"


def test_forwards_may_have_exits_of_their_own_and_all_keys_of_a_section() -> None:
    found = parse(
        """
local: {listen: 127.0.0.1:1080}
forwards:
  routes: [{listen: 127.0.0.1:5432, to: db.internal:5432}]
  exits: [socks5://h]
  rotate: fastest
  limits: {per_client: 3}
  rules: [deny private, allow all]
  udp: {associations: 5, idle: 10s}
"""
    ).forwards
    assert found is not None
    assert found.has_own_exits
    assert (found.limits.per_client, found.udp.associations, found.udp.idle) == (3, 5, 10.0)


def test_forwards_without_local_go_out_directly() -> None:
    found = parse("forwards: [{listen: 127.0.0.1:5432, to: db.internal:5432}]").forwards
    assert found is not None
    assert [spec.scheme for spec in found.exits] == ["direct"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{listen: 127.0.0.1:1}", "[0].to: missing (expected e.g. 127.0.0.1:5432)"),
        ("{to: a:1}", "[0].listen: missing (expected e.g. 127.0.0.1:5432)"),
        ("{listen: 127.0.0.1:1, to: a}", "[0].to: 'a' is not a destination (expected e.g. db."),
        ("{listen: 127.0.0.1:1, to: a:0}", "[0].to: 'a:0' is not a destination"),
        ("{listen: 127.0.0.1:1, to: [a]}", "[0].to: a list is not an address"),
        ("{listen: host:1, to: a:1}", "[0].listen: 'host:1' is not an address to listen on"),
        (
            "{listen: 127.0.0.1:1-3, to: a:1-2}",
            "[0]: '127.0.0.1:1-3' has 3 ports, and 'a:1-2' has 2 ports (expected as many)",
        ),
        ("{listen: 127.0.0.1:1-3, to: a:1}", "[0]: '127.0.0.1:1-3' has 3 ports, and 'a:1' has 1"),
        ("{listen: 127.0.0.1:3-1, to: a:1-3}", "[0].listen: 3-1 is not a range of ports"),
        ("{listen: 127.0.0.1:0-3, to: a:1-4}", "[0].listen: 0-3 is not a range of ports"),
        ("{listen: 127.0.0.1:1-3, to: a:65534-65536}", "[0].to: 65534-65536 is not a range"),
        ("{listen: 127.0.0.1:1-1025, to: a:1-1025}", "[0].listen: 1-1025 has more than 1,024"),
        ("{listen: 127.0.0.1:1, to: a:1, upd: true}", "[0].upd: unknown key (did you mean udp?)"),
        ("{listen: 127.0.0.1:1, to: a:1, udp: no}", "[0].udp: 'no' is not true or false"),
        ("{listen: unix:/a, to: a:1, udp: true}", "[0].udp: a Unix socket is not forwarded by"),
        ("{listen: unix:/a, to: a:1-2}", "[0]: 'unix:/a' has 1 port, and 'a:1-2' has 2 ports"),
        ("{listen: 127.0.0.1:1, to: a:1, session: a b}", "[0].session: 'a b' is not a session"),
        (
            "{listen: 0.0.0.0:1, to: a:1}",
            "[0].listen: 0.0.0.0:1 would let all machines that can reach it through to a:1"
            " (forwards.allow_remote: true if that is intended)",
        ),
        ("5432", "[0]: '5432' is not a forward (expected e.g. {listen: 127.0.0.1:5432, to: db:5"),
        (
            "{listen: 127.0.0.1:1-3, to: a:1-3}, {listen: 127.0.0.1:2, to: a:1}",
            "[1].listen: duplicate address 127.0.0.1:2",
        ),
    ],
)
def test_a_mistake_in_a_forward_is_named_by_its_place(entry: str, message: str) -> None:
    assert refusal(f"forwards: [{entry}]").startswith(f"forwards{message}")
    assert refusal(f"forwards: {{routes: [{entry}]}}").startswith(f"forwards.routes{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forwards: []", "forwards: needs a route (expected e.g. {listen: "),
        ("forwards: {}", "forwards.routes: missing"),
        ("forwards: 5", "forwards: '5' is not a mapping"),
        (
            "forwards: {routes: [{listen: 127.0.0.1:1, to: a:1}], limits: {per_user: 1}}",
            "forwards.limits.per_user: forwards know no users and no requests",
        ),
        (
            "local: {listen: 127.0.0.1:1080}\n"
            "forwards: {routes: [{listen: 127.0.0.1:1, to: a:1}], rotate: random}",
            "forwards.rotate: needs exits of its own (left out, they are those of local)",
        ),
        (
            "local: {listen: 127.0.0.1:1}\nforwards: [{listen: 127.0.0.1:1, to: a:1}]",
            "forwards: duplicate address 127.0.0.1:1: local listens there",
        ),
        (
            "admin: {listen: 127.0.0.1:1}\nforwards: [{listen: 127.0.0.1:1, to: a:1}]",
            "forwards: duplicate address 127.0.0.1:1: admin listens there",
        ),
        (
            "forwards: {routes: [{listen: 127.0.0.1:1, to: a:1}], users: {}}",
            "forwards.users: not a key of this section (only of local)",
        ),
        (
            "local: {listen: 127.0.0.1:1, routes: []}",
            "local.routes: not a key of this section (only of forwards)",
        ),
    ],
)
def test_so_is_one_of_the_section(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "c.yaml").write_text(text)
    return gsocks("check", "-c", folder / "c.yaml")


def test_a_forward_that_the_rules_of_local_deny_is_refused(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        "local: {listen: 127.0.0.1:1080, exits: [socks5://192.0.2.1]}\n"
        "forwards: [{listen: 127.0.0.1:5432, to: 10.0.0.5:5432}]",
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"gsocks: {tmp_path}/c.yaml: forwards: 10.0.0.5:5432, for 127.0.0.1:5432,"
        " is forbidden by local.rules (rule 'deny private')\n"
    )


def test_a_forward_by_exits_of_its_own_may_have_any_destination(tmp_path: Path) -> None:
    done = check(tmp_path, "forwards: [{listen: 127.0.0.1:1-2, to: 10.0.0.5:7-8, exit: direct}]")
    assert done.returncode == 0
    assert "forwards: listens on 127.0.0.1:1-2 (TCP to 10.0.0.5:7-8) (exit direct)," in done.stdout


@pytest.mark.parametrize(
    "routes",
    [
        "{listen: 127.0.0.1:5432, to: localhost:5432}",
        "{listen: 127.0.0.1:1, to: 127.0.0.1:2}, {listen: 127.0.0.1:2, to: 0.0.0.0:1}",
        "{listen: 127.0.0.1:53, to: 127.0.0.1:53, udp: true}",
    ],
)
def test_a_forward_that_leads_to_itself_is_refused(routes: str, tmp_path: Path) -> None:
    done = check(tmp_path, f"forwards: [{routes}]")
    assert done.returncode == 2
    assert "leads back to it without end" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "forwards: [{listen: 127.0.0.1:53, to: a:53, udp: true},"
        " {listen: 127.0.0.1:54, to: 127.0.0.1:53}]",
        "forwards: {routes: [{listen: 127.0.0.1:5432, to: localhost:5432}],"
        " exits: [socks5://192.0.2.1]}",
    ],
)
def test_one_that_only_looks_so_is_not(text: str, tmp_path: Path) -> None:
    assert check(tmp_path, text).returncode == 0


def test_the_rules_of_forwards_may_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "forwards: {routes: [{listen: 127.0.0.1:1, to: a:1}], rules: [allow 192.0.2.1]}"
    )
    done = gsocks("check", "-c", tmp_path / "c.yaml", "--to", "192.0.2.1:1")
    assert (done.returncode, done.stdout[:10]) == (0, "forwards: ")
    assert gsocks("check", "-c", tmp_path / "c.yaml", "--to", "192.0.2.2:1").returncode == 1


def test_an_exit_that_is_a_forward_by_the_same_exits_is_refused(tmp_path: Path) -> None:
    done = check(
        tmp_path,
        "local: {listen: 127.0.0.1:1080, exits: [socks5://127.0.0.1:1081]}\n"
        "forwards: [{listen: 127.0.0.1:1081, to: proxy.internal:1080}]",
    )
    assert done.returncode == 2
    assert "local.exits[0]: socks5://127.0.0.1:1081 is a listener of this config" in done.stderr
