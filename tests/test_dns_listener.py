"""The DNS listener: clients by UDP and TCP, name servers by TCP through exits, and bounds."""

from __future__ import annotations

import logging
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks.address import Address
from gsocks.dns_listener.server import DnsServer
from gsocks.dns_listener.upstream import MAX_BEHIND, MAX_CONNECTIONS
from gsocks.errors import ConfigError
from gsocks.exits import ExitDeps
from gsocks.net.listen import listen, listen_for_datagrams
from gsocks.rotation.build import SomeExit, make_exit_group, make_offers, make_rules
from gsocks.settings import Limits, Timeouts
from tests.support.engine import (
    FakeExit,
    Seen,
    connect,
    eventually,
    read_exactly,
    read_to_end,
    serving,
)
from tests.support.name_server import FakeNameServer, name_server, refuses
from tests.support.proxies import honest
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

Ask = Callable[..., dns.message.Message]


@contextmanager
def answering(
    servers: Address | list[Address],
    *exits: SomeExit,
    seen: Seen | None = None,
    host: str = "127.0.0.1",
    stop_within: float = 0,
    **options: Any,
) -> Iterator[DnsServer]:
    tcp = listen(Address(host, 0))
    bound = Address.from_sockaddr(tcp.getsockname())
    (udp,) = listen_for_datagrams(bound)
    timeouts = options.pop("timeouts", Timeouts())
    group = make_exit_group(exits or ["direct"], ["allow all"], timeouts=timeouts)
    servers = [servers] if isinstance(servers, Address) else servers
    inbound = DnsServer(tcp, udp, servers, group, observer=seen, timeouts=timeouts, **options)
    inbound.start()
    try:
        yield inbound
    finally:
        if inbound.started:
            inbound.stop(stop_within)


def at(server: FakeNameServer) -> Address:
    return Address(server.server.host, server.server.port)


def question(name: str = "www.example.com", kind: str = "A", **options: Any) -> Any:
    return dns.message.make_query(name, kind, **options)


@contextmanager
def client_of(inbound: DnsServer) -> Iterator[socket]:
    family = std_socket.AF_INET6 if ":" in inbound.bound.host else std_socket.AF_INET
    with socket(family, std_socket.SOCK_DGRAM) as sock:
        sock.settimeout(TOO_LONG)
        sock.connect(inbound.bound)
        yield sock


def by_udp(inbound: DnsServer, asked: dns.message.Message) -> dns.message.Message:
    with client_of(inbound) as sock:
        sock.send(asked.to_wire())
        return dns.message.from_wire(sock.recv(65535))


def framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


def read_message(sock: socket) -> dns.message.Message:
    size = int.from_bytes(read_exactly(sock, 2), "big")
    return dns.message.from_wire(read_exactly(sock, size))


def by_tcp(inbound: DnsServer, asked: dns.message.Message) -> dns.message.Message:
    with connect(inbound.bound) as sock:
        sock.sendall(framed(asked.to_wire()))
        return read_message(sock)


def wait_for(inbound: DnsServer, count: int) -> None:
    """Until so many questions wait."""
    eventually(lambda: inbound.resolver.waiting == count)


either_way = pytest.mark.parametrize("ask", [by_udp, by_tcp], ids=["UDP", "TCP"])


def addresses(answer: dns.message.Message) -> list[str]:
    return [record.address for rrset in answer.answer for record in rrset]


# --- answers ----------------------------------------------------------------------------------


@either_way
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_question_is_answered_through_an_exit_over_tcp(seen: Seen, ask: Ask, host: str) -> None:
    with (
        name_server(
            host, wWw_eXample_com=["192.0.2.1"], www_example_com=["2001:db8::1"]
        ) as upstream,
        honest("http") as exit_,
        answering(
            at(upstream), f"http://{exit_}", seen=seen, host=host, stop_within=TOO_LONG
        ) as inbound,
    ):
        asked = question("wWw.eXample.com")
        answer = ask(inbound, asked)
        assert addresses(answer) == ["192.0.2.1"]
        assert answer.id == asked.id
        assert answer.question[0].name.to_text() == "wWw.eXample.com."
        assert addresses(ask(inbound, question(kind="AAAA"))) == ["2001:db8::1"]
        assert upstream.asked == [
            ("tcp", "wWw.eXample.com", "A"),
            ("tcp", "www.example.com", "AAAA"),
        ]
        assert upstream.connections == 1
    record = seen.next()
    assert (record.inbound, record.dest, record.outcome) == ("dns", str(at(upstream)), "ok")
    assert record.exit == f"http://{exit_}"
    assert len(seen.all) == 1


@either_way
def test_an_answer_is_kept_for_its_ttl(ask: Ask) -> None:
    with name_server(www_example_com=["192.0.2.1"]) as upstream, answering(at(upstream)) as inbound:
        for letters in ("www.example.com", "WWW.example.com", "www.EXAMPLE.com"):
            answer = ask(inbound, question(letters))
            assert addresses(answer) == ["192.0.2.1"]
            assert answer.question[0].name.to_text() == f"{letters}."
        assert len(upstream.asked) == 1
        upstream.ttl = 0
        upstream.table["other.example.com"] = ["192.0.2.2"]
        for _ in range(2):
            ask(inbound, question("other.example.com"))
        assert len(upstream.asked) == 3


def test_that_there_is_no_such_name_is_kept(seen: Seen) -> None:
    def none(asked: dns.message.Message) -> dns.message.Message:
        made = dns.message.make_response(asked)
        made.set_rcode(dns.rcode.NXDOMAIN)
        soa = "ns.example.com. admin.example.com. 1 2 3 4 60"
        made.authority.append(dns.rrset.from_text("example.com.", 300, "IN", "SOA", soa))
        return made

    with name_server(www_example_com=none) as upstream, answering(at(upstream)) as inbound:
        for _ in range(3):
            answer = by_udp(inbound, question())
            assert answer.rcode() == dns.rcode.NXDOMAIN
            assert answer.authority[0].ttl <= 60
        assert len(upstream.asked) == 1


def test_what_is_too_long_for_a_datagram_comes_over_tcp() -> None:
    many = [f"192.0.2.{n}" for n in range(100)]
    with name_server(www_example_com=many) as upstream, answering(at(upstream)) as inbound:
        plain = by_udp(inbound, question())
        assert plain.flags & dns.flags.TC
        assert not plain.answer
        assert len(addresses(by_udp(inbound, question(use_edns=0, payload=4096)))) == 100
        assert len(addresses(by_tcp(inbound, question()))) == 100


def test_clients_that_ask_the_same_wait_for_one_answer() -> None:
    with name_server(www_example_com=["192.0.2.1"]) as upstream, answering(at(upstream)) as inbound:
        upstream.delay = 0.1
        asking = [gevent.spawn(by_udp, inbound, question()) for _ in range(5)]
        gevent.joinall(asking, raise_error=True)
        assert [addresses(each.get()) for each in asking] == [["192.0.2.1"]] * 5
        assert len(upstream.asked) == 1


# --- many questions on one connection -----------------------------------------------------------


def test_questions_share_a_connection_and_answers_come_in_any_order(seen: Seen) -> None:
    names = [f"{n}.example.com" for n in range(MAX_BEHIND)]

    def backwards(sock: socket) -> None:
        asked = [read_message(sock) for _ in names]
        for each in reversed(asked):
            made = dns.message.make_response(each)
            name = each.question[0].name.to_text()
            made.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", name))
            sock.sendall(framed(made.to_wire()))
        read_to_end(sock)

    with serving(backwards) as server, answering(server, seen=seen) as inbound:
        with connect(inbound.bound) as sock:
            asked = [question(name, "TXT") for name in names]
            sock.sendall(b"".join(framed(each.to_wire()) for each in asked))
            found = {answer.id: answer for answer in (read_message(sock) for _ in names)}
        for each, name in zip(asked, names, strict=True):
            assert found[each.id].answer[0][0].to_text() == f'"{name}."'
        assert inbound.resolver.upstream.connections == 1


def test_more_questions_open_more_connections_up_to_a_bound() -> None:
    with name_server() as upstream, answering(at(upstream), waiting_per_client=1000) as inbound:
        upstream.silent = True
        with client_of(inbound) as sock:
            for n in range(MAX_BEHIND * MAX_CONNECTIONS + 20):
                sock.send(question(f"{n}.example.com").to_wire())
                wait_for(inbound, n + 1)
            assert inbound.resolver.upstream.connections == MAX_CONNECTIONS


def test_a_connection_that_the_name_server_has_closed_is_replaced() -> None:
    def once(sock: socket) -> None:
        asked = read_message(sock)
        made = dns.message.make_response(asked)
        made.answer.append(dns.rrset.from_text("www.example.com.", 0, "IN", "A", "192.0.2.1"))
        sock.sendall(framed(made.to_wire()))

    with serving(once) as server, answering(server) as inbound:
        for _ in range(3):
            assert addresses(by_udp(inbound, question())) == ["192.0.2.1"]


def test_an_idle_connection_is_closed(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.dns_listener.upstream.IDLE", 0.05)
    with (
        name_server(www_example_com=["192.0.2.1"]) as upstream,
        answering(at(upstream), seen=seen) as inbound,
    ):
        by_udp(inbound, question())
        assert seen.next().outcome == "ok"
        assert not inbound.resolver.upstream.connections


# --- what fails -------------------------------------------------------------------------------


@either_way
def test_the_next_name_server_is_asked_where_one_fails(ask: Ask) -> None:
    with (
        name_server(www_example_com=refuses("SERVFAIL")) as sick,
        name_server(www_example_com=["192.0.2.1"]) as well,
        serving(lambda sock: read_exactly(sock, 2)) as closing,
        answering([closing, at(sick), at(well)]) as inbound,
    ):
        assert addresses(ask(inbound, question())) == ["192.0.2.1"]


@either_way
def test_without_an_exit_a_client_is_told_that_there_is_no_answer(seen: Seen, ask: Ask) -> None:
    closed = "http://127.0.0.1:9"
    with name_server() as upstream, answering(at(upstream), closed, seen=seen) as inbound:
        answer = ask(inbound, question())
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert answer.question
        # nothing went there in another way
        assert not upstream.asked
        assert not upstream.connections
    assert seen.next().outcome == "exit_failed"


def test_while_no_exit_connects_none_is_asked_for_each_question(seen: Seen) -> None:
    closed = "http://127.0.0.1:9"
    with name_server() as upstream, answering(at(upstream), closed, seen=seen) as inbound:
        for n in range(20):
            answer = by_udp(inbound, question(f"{n}.example.com"))
            assert answer.rcode() == dns.rcode.SERVFAIL
    assert len(seen.all) < 20


def test_an_exit_that_is_well_again_is_asked_a_moment_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.dns_listener.upstream.PAUSE", 0.0)
    with (
        name_server(www_example_com=["192.0.2.1"]) as upstream,
        answering(at(upstream), "http://127.0.0.1:9") as inbound,
    ):
        assert by_udp(inbound, question()).rcode() == dns.rcode.SERVFAIL
        group = inbound.context.exit_group
        group.update(make_offers(["direct"], ExitDeps(make_rules(["allow all"]))))
        assert addresses(by_udp(inbound, question())) == ["192.0.2.1"]


@either_way
def test_an_answer_that_does_not_come_in_time_is_none(ask: Ask) -> None:
    with name_server() as upstream, answering(at(upstream), timeout=0.05) as inbound:
        upstream.silent = True
        assert ask(inbound, question()).rcode() == dns.rcode.SERVFAIL
        assert not inbound.resolver.waiting


def test_the_failure_of_the_only_name_server_is_passed_on_and_not_kept() -> None:
    with (
        name_server(www_example_com=refuses("REFUSED")) as upstream,
        answering(at(upstream)) as inbound,
    ):
        assert by_udp(inbound, question()).rcode() == dns.rcode.REFUSED
        before = len(upstream.asked)
        assert by_udp(inbound, question()).rcode() == dns.rcode.REFUSED
        assert len(upstream.asked) > before


@pytest.mark.parametrize(
    "said",
    [b"\0\4abcd", b"\0\x0c" + bytes(12), b"\0\0", b"\xff\xff" + bytes(65535)],
    ids=["short", "no answer", "empty", "long"],
)
def test_a_name_server_that_talks_nonsense_is_a_failure(said: bytes) -> None:
    def talk(sock: socket) -> None:
        read_message(sock)
        sock.sendall(said)
        read_to_end(sock)

    with serving(talk) as server, answering(server, timeout=0.2) as inbound:
        assert by_udp(inbound, question()).rcode() == dns.rcode.SERVFAIL


def test_a_silent_connection_is_given_up_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.dns_listener.resolver.Resolver.try_timeout", 0.05)
    connections: list[socket] = []

    def silent_at_first(sock: socket) -> None:
        connections.append(sock)
        asked = read_message(sock)
        if len(connections) > 1:
            made = dns.message.make_response(asked)
            made.answer.append(dns.rrset.from_text("www.example.com.", 9, "IN", "A", "192.0.2.1"))
            sock.sendall(framed(made.to_wire()))
        read_to_end(sock)

    with serving(silent_at_first) as server, answering(server, timeout=TOO_LONG) as inbound:
        assert addresses(by_udp(inbound, question())) == ["192.0.2.1"]
        assert len(connections) == 2


# --- bounds -----------------------------------------------------------------------------------


def test_a_client_has_so_many_questions_at_a_time() -> None:
    with name_server() as upstream, answering(at(upstream), waiting_per_client=3) as inbound:
        upstream.silent = True
        with client_of(inbound) as sock:
            for n in range(4):
                sock.send(question(f"{n}.example.com").to_wire())
            answer = dns.message.from_wire(sock.recv(65535))
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert answer.question[0].name.to_text() == "3.example.com."
            assert inbound.resolver.waiting == 3


def test_when_too_many_wait_the_client_with_most_loses_its_oldest() -> None:
    with (
        name_server() as upstream,
        answering(at(upstream), waiting=3, host="0.0.0.0", allow_remote=True) as inbound,
        socket(type=std_socket.SOCK_DGRAM) as greedy,
        socket(type=std_socket.SOCK_DGRAM) as modest,
    ):
        upstream.silent = True
        port = inbound.bound.port
        for sock, own in ((greedy, "127.0.0.1"), (modest, "127.0.0.2")):
            sock.settimeout(TOO_LONG)
            sock.bind((own, 0))
            sock.connect((own, port))
        for n in range(3):
            greedy.send(question(f"{n}.example.com").to_wire())
            wait_for(inbound, n + 1)
        modest.send(question("modest.example.com").to_wire())
        answer = dns.message.from_wire(greedy.recv(65535))
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert answer.question[0].name.to_text() == "0.example.com."
        assert inbound.resolver.waiting == 3


def test_clients_outside_of_the_networks_get_no_answer(
    seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        name_server(www_example_com=["192.0.2.1"]) as upstream,
        answering(at(upstream), clients=["192.0.2.0/24"], seen=seen) as inbound,
    ):
        with client_of(inbound) as sock:
            sock.send(question().to_wire())
            record = seen.next()
            assert (record.outcome, record.is_routine) == ("client_forbidden", True)
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(65535)
        with connect(inbound.bound) as sock:
            assert read_to_end(sock) == b""
        assert seen.next().outcome == "client_forbidden"
        assert not upstream.asked


def test_a_connection_of_a_client_is_read_no_further_than_so_many_questions_ahead() -> None:
    with name_server() as upstream, answering(at(upstream)) as inbound:
        upstream.silent = True
        with connect(inbound.bound) as sock:
            for n in range(40):
                sock.sendall(framed(question(f"{n}.example.com").to_wire()))
            eventually(lambda: inbound.resolver.waiting == 32)
        # when the client is gone, nothing of it waits
        eventually(lambda: not inbound.resolver.waiting)


def test_limits_of_connections_hold(seen: Seen) -> None:
    limits = Limits(per_client=1)
    with name_server() as upstream, answering(at(upstream), limits=limits, seen=seen) as inbound:
        upstream.silent = True
        with connect(inbound.bound) as first:
            first.sendall(framed(question().to_wire()))
            eventually(lambda: inbound.resolver.waiting == 1)
            with connect(inbound.bound) as second:
                assert read_to_end(second) == b""
            assert seen.next().outcome == "limit"


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x20abc"])
def test_a_connection_that_sends_no_question_in_time_is_closed(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    timeouts = Timeouts(handshake=0.05)
    monkeypatch.setattr("gsocks.dns_listener.server._TcpClient.patience", 0.05)
    with (
        name_server() as upstream,
        answering(at(upstream), timeouts=timeouts, seen=seen) as inbound,
        connect(inbound.bound) as sock,
    ):
        sock.sendall(sent)
        assert read_to_end(sock) == b""
        assert seen.next().outcome == "handshake_timeout"


# --- what is malformed --------------------------------------------------------------------------


def test_a_malformed_question_is_told_in_one_line_and_answered(seen: Seen) -> None:
    with name_server() as upstream, answering(at(upstream), seen=seen) as inbound:
        wire = question().to_wire()[:-1]
        with client_of(inbound) as sock:
            sock.send(wire)
            assert dns.message.from_wire(sock.recv(65535)).rcode() == dns.rcode.FORMERR
        record = seen.next()
        # whose sender may be forged
        assert (record.outcome, record.is_routine) == ("bad_request", True)
        with connect(inbound.bound) as sock:
            sock.sendall(framed(wire))
            assert read_message(sock).rcode() == dns.rcode.FORMERR
            assert read_to_end(sock) == b""
        record = seen.next()
        assert (record.outcome, record.is_routine) == ("bad_request", False)
        assert record.detail.startswith("no message: ")


def test_a_very_long_question_is_refused(seen: Seen) -> None:
    with name_server() as upstream, answering(at(upstream), seen=seen) as inbound:
        with client_of(inbound) as sock:
            sock.send(question().to_wire() + bytes(5000))
            assert dns.message.from_wire(sock.recv(65535)).rcode() == dns.rcode.FORMERR
        seen.next()
        with connect(inbound.bound) as sock:
            sock.sendall(b"\xff\xff")
            assert read_to_end(sock) == b""
        assert seen.next().detail == "a question of 65535 bytes, more than 4096"


def test_names_stand_in_no_line_above_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    for level, is_told in ((logging.INFO, False), (logging.DEBUG, True)):
        caplog.set_level(level)
        with (
            name_server(secret_example_com=["192.0.2.1"]) as upstream,
            answering(at(upstream)) as inbound,
        ):
            by_udp(inbound, question("secret.example.com"))
            by_udp(inbound, question("secret.example.com"))
            by_udp(inbound, question("none.secret.example.com"))
        told = [record for record in caplog.records if "secret.example.com" in record.getMessage()]
        assert bool(told) == is_told
        assert all(record.levelno == logging.DEBUG for record in told)


# --- its life ---------------------------------------------------------------------------------


def test_a_stop_waits_for_answers_that_are_due(seen: Seen) -> None:
    with name_server(www_example_com=["192.0.2.1"]) as upstream:
        upstream.delay = 0.1
        with (
            answering(at(upstream)) as inbound,
            connect(inbound.bound) as sock,
            client_of(inbound) as udp,
        ):
            sock.sendall(framed(question().to_wire()))
            udp.send(question().to_wire())
            eventually(lambda: inbound.resolver.waiting == 2)
            gevent.spawn(inbound.stop, TOO_LONG)
            assert addresses(read_message(sock)) == ["192.0.2.1"]
            assert read_to_end(sock) == b""


def test_a_stop_gives_up_what_does_not_come() -> None:
    hanging = FakeExit("hanging")
    with answering(Address("192.0.2.1", 53), hanging) as inbound, client_of(inbound) as sock:
        sock.send(question().to_wire())
        hanging.asked.wait()
        stopped = Event()
        gevent.spawn(inbound.stop, 0).link(lambda _: stopped.set())
        assert stopped.wait(TOO_LONG)
        assert dns.message.from_wire(sock.recv(65535)).rcode() == dns.rcode.SERVFAIL


def test_other_machines_reach_a_dns_listener_only_if_that_is_said() -> None:
    (sock,) = listen_for_datagrams(Address("0.0.0.0", 0))
    with sock, pytest.raises(ConfigError, match="would answer all machines"):
        DnsServer("0.0.0.0:0", sock, [Address("192.0.2.1", 53)])
