"""The guards of both listeners, as clients and peers meet them."""

from __future__ import annotations

import base64
import errno
import os
import socket as std_socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import create_connection, socket

from gsocks import local as local_inbound
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.access.throttle import Throttle
from gsocks.access.users import Users
from gsocks.address import Address
from gsocks.crypto import Cipher
from gsocks.errors import ConfigError, LoginsBusy
from gsocks.exits.tunnel import TunnelExit
from gsocks.inbound.listener import Listener
from gsocks.inbound.quota import UserQuota
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Limits, Timeouts
from gsocks.stream import reset
from gsocks.tunnel.client import connect_tunnel
from tests.support.datagrams import association, udp_server
from tests.support.engine import (
    KEY,
    FakeExit,
    MakeLocal,
    Refused,
    Seen,
    ask_echo,
    connect,
    direct,
    eventually,
    make_exit,
    make_server,
    printed_address,
    read_answer,
    read_exactly,
    read_to_end,
    running,
    running_inbound,
    serving,
    socks_request,
    through,
)
from tests.support.newcomers import LOCAL, USERS, V1, V2, is_turned_away, login
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


NOWHERE = Address("192.0.2.1", 80)


class Prompt(Throttle):
    """Counts as the real one does, and lets no test wait."""

    first_delay = 0.0


@pytest.fixture
def logins() -> Prompt:
    return Prompt(Users(USERS).verify)


# --- clients ----------------------------------------------------------------------------------


def come_from(inbound: Listener, host: str = "127.0.0.1") -> socket:
    return create_connection(inbound.bound, timeout=TOO_LONG, source_address=(host, 0))


def log_in(inbound: Listener, name: bytes, password: bytes, host: str = "127.0.0.1") -> int:
    """The status of RFC 1929; the connection must end after one that isn't 0."""
    with come_from(inbound, host) as sock:
        sock.sendall(login(name, password))
        assert read_exactly(sock, 3) == b"\x05\x02\x01"
        status = read_exactly(sock, 1)[0]
        if status:
            assert read_to_end(sock) == b""
        return status


def through_as(inbound: Listener, name: bytes, password: bytes, dest: Address) -> socket:
    sock = come_from(inbound)
    try:
        request = b"\x05\x01\x00" + dest.encode()
        sock.sendall(login(name, password) + request)
        assert read_exactly(sock, 4) == b"\x05\x02\x01\x00"
        answer = read_exactly(sock, 10)
        if answer[1]:
            raise Refused(answer[1])
    except BaseException:
        sock.close()
        raise
    return sock


def http_status(inbound: Listener, head: bytes, host: str = "127.0.0.1") -> tuple[int, bytes]:
    """The status of a request without a body, and all that was answered until the end."""
    with come_from(inbound, host) as sock:
        sock.sendall(head + b"\r\n\r\n")
        answer = read_to_end(sock)
    return int(answer.split(b" ")[1]), answer


def credentials(name: str, password: str) -> bytes:
    return b"\r\nProxy-Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode())


def connect_to(dest: Address) -> bytes:
    return f"CONNECT {dest} HTTP/1.1\r\nHost: {dest}".encode()


# --- passwords can't be tried out -------------------------------------------------------------


def test_after_too_many_failures_not_even_the_right_password_comes_in_by_any_protocol(
    make_local: MakeLocal, seen: Seen, logins: Prompt, echo_server: Address
) -> None:
    inbound = make_local(users=logins)
    for number in range(Prompt.max_failures):
        if number % 2:
            assert log_in(inbound, b"alice", b"guess") == 1
        else:
            request = connect_to(echo_server) + credentials("alice", "guess")
            with come_from(inbound) as sock:
                sock.sendall(request + b"\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.1 407 ")
        assert seen.next().outcome == "auth_failed"
    assert log_in(inbound, b"alice", b"secret") == 1
    refused = seen.next()
    assert refused.outcome == "auth_refused"
    assert "127.0.0.1" in refused.detail
    status, answer = http_status(inbound, connect_to(echo_server) + credentials("alice", "secret"))
    assert status == 429
    assert b"Proxy-Status: gsocks; error=http_request_denied\r\n" in answer
    assert b"Proxy-Authenticate" not in answer, "there is no use in asking again"
    assert seen.next().outcome == "auth_refused"
    assert log_in(inbound, b"alice", b"secret", "127.0.0.2") == 0


def test_a_login_that_may_not_wait_is_refused_by_both_protocols(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    def busy(name: str, password: bytes, client: str) -> bool:
        raise LoginsBusy("too many other logins wait to be verified")

    inbound = make_local(users=Throttle(busy))
    assert log_in(inbound, b"alice", b"secret") == 1
    status, _ = http_status(inbound, connect_to(echo_server) + credentials("alice", "secret"))
    assert status == 503
    assert [seen.next().outcome for _ in range(2)] == ["auth_busy"] * 2


def test_an_answer_is_kept_back_but_comes_before_the_handshakes_time_is_over(
    make_local: MakeLocal, seen: Seen
) -> None:
    class Slow(Throttle):
        first_delay = max_delay = 1000.0

    inbound = make_local(
        users=Slow(lambda name, password, client: False), timeouts=Timeouts(handshake=0.1)
    )
    begin = time.monotonic()
    assert log_in(inbound, b"alice", b"guess") == 1
    assert time.monotonic() - begin >= 0.09
    assert seen.next().outcome == "handshake_timeout"


def test_inbounds_that_share_a_throttle_count_together(
    make_local: MakeLocal, logins: Prompt
) -> None:
    first, second = make_local(users=logins), make_local(users=logins)
    for inbound in (first, second) * (Prompt.max_failures // 2):
        assert log_in(inbound, b"alice", b"guess") == 1
    assert log_in(first, b"alice", b"secret") == 1
    assert log_in(second, b"alice", b"secret") == 1


def test_users_given_as_a_mapping_are_guarded_too(
    make_local: MakeLocal, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Throttle, "first_delay", 0.0)
    inbound = make_local(users=USERS)
    assert log_in(inbound, b"alice", b"secret") == 0
    assert seen.next().outcome == "client_gone", "without a request"
    for _ in range(Throttle.max_failures):
        assert log_in(inbound, b"alice", b"guess") == 1
        assert seen.next().outcome == "auth_failed"
    assert log_in(inbound, b"alice", b"secret") == 1
    assert seen.next().outcome == "auth_refused"


# --- users have their shares ------------------------------------------------------------------


def test_a_user_beyond_its_connections_is_told_by_the_protocols_own_code(
    make_local: MakeLocal, seen: Seen, logins: Prompt, echo_server: Address
) -> None:
    inbound = make_local(users=logins, limits=Limits(per_user=1))
    with through_as(inbound, b"alice", b"secret", echo_server):
        with pytest.raises(Refused) as refused:
            through_as(inbound, b"alice", b"secret", echo_server)
        assert refused.value.args == (1,)
        record = seen.next()
        assert (record.outcome, record.user, record.dest) == ("limit", "alice", str(echo_server))
        asked = connect_to(echo_server) + credentials("alice", "secret")
        status, answer = http_status(inbound, asked)
        assert status == 503
        assert b"error=connection_limit_reached" in answer
        assert seen.next().outcome == "limit"
        through_as(inbound, b"bob", b"hidden", echo_server).close()
    eventually(lambda: inbound.connections == 0)
    through_as(inbound, b"alice", b"secret", echo_server).close()


def test_inbounds_that_share_their_shares_count_together(
    make_local: MakeLocal, logins: Prompt, echo_server: Address
) -> None:
    quota = UserQuota(Limits(per_user=1))
    first, second = (make_local(users=logins, quota=quota) for _ in range(2))
    with through_as(first, b"alice", b"secret", echo_server), pytest.raises(Refused):
        through_as(second, b"alice", b"secret", echo_server)


def test_a_request_of_http_is_over_for_its_user_when_it_is_answered(
    make_local: MakeLocal, logins: Prompt
) -> None:
    """And not only when the origin server has hung up too."""

    def answer(sock: socket) -> None:
        while sock.recv(65536):
            sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    inbound = make_local(users=logins, limits=Limits(per_user=1))
    with serving(answer) as web, connect(inbound.bound) as sock:
        head = f"GET http://{web}/ HTTP/1.1\r\nHost: {web}".encode()
        for _ in range(5):
            sock.sendall(head + credentials("alice", "secret") + b"\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 204 ")


def test_a_connection_that_is_reset_counts_no_more(
    make_local: MakeLocal, seen: Seen, logins: Prompt, echo_server: Address
) -> None:
    quota = UserQuota(Limits(per_user=1))
    inbound = make_local(users=logins, quota=quota)
    with through_as(inbound, b"alice", b"secret", echo_server) as sock:
        assert quota.users == {"alice": 1}
        reset(sock)
    assert seen.next().outcome == "client_reset"
    assert not quota.users


@pytest.mark.parametrize(
    ("dest", "word"),
    [(Address("10.0.0.1", 80), "forbidden"), (Address("192.0.2.1", 80), "connect_timeout")],
)
def test_a_request_that_is_refused_counts_no_more(
    seen: Seen, logins: Prompt, dest: Address, word: str
) -> None:
    quota = UserQuota(Limits(per_user=1))
    rules = Rules.parse(["deny 10.0.0.0/8", "allow all"])
    ways = ExitGroup([FakeExit("hangs")], rules, timeout=0.05)
    inbound = LocalServer(("127.0.0.1", 0), ways, users=logins, quota=quota, observer=seen)
    with running_inbound(inbound), pytest.raises(Refused):
        through_as(inbound, b"alice", b"secret", dest)
    assert seen.next().outcome == word
    assert not quota.users


def test_a_request_that_is_stopped_counts_no_more(seen: Seen, logins: Prompt) -> None:
    quota = UserQuota(Limits(per_user=1))
    way = FakeExit("hangs")
    ways = ExitGroup([way], ALLOW_ALL)
    inbound = LocalServer(("127.0.0.1", 0), ways, users=logins, quota=quota, observer=seen)
    with running_inbound(inbound), connect(inbound.bound) as sock:
        sock.sendall(login(b"alice", b"secret") + b"\x05\x01\x00" + NOWHERE.encode())
        way.asked.wait()
        assert quota.users == {"alice": 1}
        inbound.stop(0)
    assert seen.next().outcome == "stopped"
    assert not quota.users


def test_a_key_is_the_user_of_a_server(seen: Seen, echo_server: Address) -> None:
    with running_inbound(make_server(limits=Limits(per_user=1), observer=seen)) as server:
        way = make_exit(server.bound)
        with running_inbound(LocalServer(("127.0.0.1", 0), [way], rules=["allow all"])) as local:
            with through(local.bound, echo_server):
                with pytest.raises(Refused) as refused:
                    through(local.bound, echo_server)
                assert refused.value.args == (1,)
                record = seen.next()
                assert (record.outcome, record.user) == ("limit", "default")
            eventually(lambda: not server.context.relays)
            assert ask_echo(local.bound, echo_server, b"again") == b"again"


@pytest.mark.parametrize("limit", ["bandwidth_per_connection", "bandwidth_per_user"])
def test_bytes_come_no_faster_than_the_bandwidth_allows_and_all_of_them(
    make_local: MakeLocal, seen: Seen, logins: Prompt, echo_server: Address, limit: str
) -> None:
    """300 kB at 200 kB/s: the first second's are there already, and the rest takes half of one."""
    limits: Any = {limit: 200_000.0}
    inbound = make_local(users=logins, limits=Limits(**limits))
    data = bytes(range(250)) * 1200
    with through_as(inbound, b"alice", b"secret", echo_server) as sock:
        begin = time.monotonic()
        sender = gevent.spawn(sock.sendall, data)
        assert read_exactly(sock, len(data)) == data
        assert time.monotonic() - begin >= 0.49
        sender.get()
    record = seen.next()
    assert (record.up, record.down) == (len(data), len(data))


def test_the_bandwidth_holds_for_requests_of_http_too(
    make_local: MakeLocal, seen: Seen, logins: Prompt
) -> None:
    body = bytes(150_000)

    def answer(sock: socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 150000\r\n\r\n" + body)
        sock.shutdown(std_socket.SHUT_WR)

    inbound = make_local(limits=Limits(bandwidth_per_connection=100_000.0))
    with serving(answer) as web:
        begin = time.monotonic()
        head = f"GET http://{web}/ HTTP/1.1\r\nHost: {web}\r\nConnection: close".encode()
        status, answered = http_status(inbound, head)
    assert time.monotonic() - begin >= 0.49
    assert status == 200
    assert answered.endswith(body)


def test_datagrams_count_too_and_are_never_divided(make_local: MakeLocal, seen: Seen) -> None:
    """60 kB there and back at 40 kB/s: the first second's are there, the rest takes half of one."""
    inbound = make_local(limits=Limits(bandwidth_per_connection=40_000.0))
    payload = bytes(range(200)) * 150
    with udp_server() as dest, association(inbound.bound) as client:
        begin = time.monotonic()
        for _ in range(2):
            assert client.ask(dest, payload) == (dest, payload)
        assert time.monotonic() - begin >= 0.49


def test_a_connection_that_waits_for_its_bandwidth_is_stopped_at_once(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(limits=Limits(bandwidth_per_connection=1024.0))
    with through(inbound.bound, echo_server, bytes(50_000)) as sock:
        assert read_exactly(sock, 1024)
        begin = time.monotonic()
        inbound.stop(0)
        assert time.monotonic() - begin < TOO_LONG / 4, "it waited for its 48 s"
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)
    assert seen.next().outcome == "closed"


# --- beyond a limit ---------------------------------------------------------------------------


@contextmanager
def full(make_local: Callable[..., LocalServer], **options: Any) -> Iterator[LocalServer]:
    """A listener that allows one client per address, and that client, whose request is open."""
    inbound = make_local(limits=Limits(per_client=1), **options)
    over = Event()
    with serving(lambda _: over.wait()) as target:
        come = (
            partial(through_as, inbound, b"alice", b"secret")
            if options.get("users")
            else partial(through, inbound.bound)
        )
        with come(dest=target):
            yield inbound
        over.set()


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (socks_request(NOWHERE), b"\x05\x00\x05\x01\x00\x01" + bytes(6)),
        (
            login(b"alice", b"guess") + b"\x05\x01\x00" + NOWHERE.encode(),
            b"\x05\x02\x01\x00\x05\x01\x00\x01" + bytes(6),
        ),
        (b"\x04\x01\x00\x50\xc0\x00\x02\x01me\0", b"\0\x5b" + bytes(6)),
        (b"\x05\x01\x01", b"\x05\xff"),
        (b"\x16\x03\x01", b""),
    ],
    ids=["socks5", "socks5 with a password", "socks4", "no method", "tls"],
)
@pytest.mark.parametrize("users", [None, USERS], ids=["open", "with users"])
def test_a_client_for_whom_there_is_no_room_is_told_in_its_own_protocol(
    make_local: MakeLocal, seen: Seen, asked: bytes, answered: bytes, users: dict[str, str] | None
) -> None:
    with full(make_local, users=users) as inbound, connect(inbound.bound) as sock:
        sock.sendall(asked)
        assert read_to_end(sock) == answered
        record = seen.next()
        assert (record.outcome, record.detail) == (
            "limit",
            "too many connections from that address",
        )
        assert inbound.connections == 1


@pytest.mark.parametrize(
    "head", [connect_to(NOWHERE), b"GET http://192.0.2.1/ HTTP/1.1\r\nHost: x"]
)
def test_an_http_client_for_whom_there_is_no_room_is_told_so(
    make_local: MakeLocal, head: bytes
) -> None:
    with full(make_local) as inbound:
        status, answer = http_status(inbound, head.replace(b"Host: x", b"Host: 192.0.2.1"))
    assert status == 503
    assert b"Proxy-Status: gsocks; error=connection_limit_reached\r\n" in answer
    assert b"too many connections from that address" in answer
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("said", [b"", b"\x05", b"G", b"GET / HTTP/1.1\r\n"])
def test_a_client_without_room_that_says_nothing_is_let_go_soon(
    make_local: MakeLocal, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_inbound, "CLOSE_GRACE", 0.05)
    with full(make_local) as inbound, connect(inbound.bound) as sock:
        sock.sendall(said)
        assert is_turned_away(sock)


@pytest.mark.parametrize("said", [b"", b"\x05\x01", b"GET / HT"])
def test_a_client_without_room_that_hangs_up_leaves_nothing(
    make_local: MakeLocal, said: bytes
) -> None:
    with full(make_local) as inbound:
        with connect(inbound.bound) as sock:
            sock.sendall(said)
            sock.shutdown(std_socket.SHUT_WR)
            read_to_end(sock)
        eventually(lambda: inbound.refusals == 0)


def test_few_are_told_at_a_time_and_more_are_closed_at_once(
    make_local: MakeLocal, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_inbound, "MAX_REFUSALS", 2)
    with (
        full(make_local) as inbound,
        connect(inbound.bound) as first,
        connect(inbound.bound) as second,
    ):
        eventually(lambda: inbound.refusals == 2)
        with connect(inbound.bound) as third:
            assert is_turned_away(third)
        for sock in (first, second):
            sock.sendall(socks_request(NOWHERE))
            with pytest.raises(Refused):
                read_answer(sock)
    assert seen.outcomes[:3] == ["limit"] * 3


def test_who_is_being_turned_away_holds_up_no_stop(
    make_local: MakeLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_inbound, "CLOSE_GRACE", TOO_LONG)
    with full(make_local) as inbound, connect(inbound.bound) as waiting:
        eventually(lambda: inbound.refusals == 1)
        begin = time.monotonic()
        inbound.stop(0)
        assert is_turned_away(waiting)
        assert time.monotonic() - begin < TOO_LONG / 4


def test_a_server_without_room_says_nothing(seen: Seen) -> None:
    server, over = make_server(limits=Limits(connections=1), observer=seen), Event()
    with (
        serving(lambda _: over.wait()) as target,
        running_inbound(server),
        connect(server.bound) as first,
    ):
        tunnel = connect_tunnel(first, KEY, Cipher.SECRETBOX)
        tunnel.open(Request(Command.CONNECT, target))
        with connect(server.bound) as second:
            assert is_turned_away(second)
        assert seen.next().outcome == "limit"
        tunnel.close()
        over.set()


def test_clients_that_have_not_said_what_they_want_are_bounded_and_lock_out_no_other(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(limits=Limits(handshakes=2))
    with ExitStack() as silent:
        first, second = (silent.enter_context(connect(inbound.bound)) for _ in range(2))
        eventually(lambda: inbound.connections == 2)
        with through(inbound.bound, echo_server):
            assert is_turned_away(first)
            record = seen.next()
            assert (record.outcome, record.client) == (
                "evicted",
                str(Address.from_sockaddr(first.getsockname())),
            )
            assert inbound.connections == 2
            second.sendall(socks_request(echo_server))
            read_answer(second)
    eventually(lambda: inbound.connections == 0)
    with ExitStack() as busy:
        for _ in range(5):
            busy.enter_context(through(inbound.bound, echo_server))
        assert inbound.connections == 5
        assert inbound.context.admission.handshakes == 0


def test_an_http_client_between_two_requests_is_no_handshake(make_local: MakeLocal) -> None:
    def answer(sock: socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        sock.shutdown(std_socket.SHUT_WR)

    inbound = make_local(limits=Limits(handshakes=1))
    with serving(answer) as web, connect(inbound.bound) as sock:
        sock.sendall(b"GET ")
        eventually(lambda: inbound.context.admission.handshakes == 1)
        sock.sendall(f"http://{web}/ HTTP/1.1\r\nHost: {web}\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 204 ")
        assert inbound.connections == 1
        assert inbound.context.admission.handshakes == 0


def test_a_stranger_at_a_server_gives_its_place_to_a_peer_that_comes_later(seen: Seen) -> None:
    server = make_server(timeouts=Timeouts(handshake=5), limits=Limits(handshakes=1), observer=seen)
    with running_inbound(server), connect(server.bound) as stranger:
        stranger.sendall(bytes(2000))
        assert seen.next().outcome == "stranger"
        assert server.context.admission.handshakes == 1
        with connect(server.bound) as sock:
            tunnel = connect_tunnel(sock, KEY, Cipher.SECRETBOX)
            assert stranger.recv(1) == b"", "no reset, which would tell that bytes were unread"
            eventually(lambda: len(server.idle_tunnels) == 1)
            assert server.context.admission.handshakes == 0
            tunnel.close()
    assert seen.outcomes == ["stranger"], "told once"


# --- who may come at all ----------------------------------------------------------------------


def test_only_clients_of_the_named_networks_are_served(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(clients=["127.0.0.2", "::1", "10.0.0.0/8"])
    with come_from(inbound) as stranger:
        assert is_turned_away(stranger)
    record = seen.next()
    assert (record.outcome, record.dest) == ("client_forbidden", "")
    with come_from(inbound, "127.0.0.2") as friend:
        friend.sendall(socks_request(echo_server))
        read_answer(friend)
    assert not inbound.context.admission.clients.get("127.0.0.1")


def test_a_server_serves_only_clients_of_the_named_networks(seen: Seen) -> None:
    with running_inbound(make_server(clients=["127.0.0.2"], observer=seen)) as server:
        with connect(server.bound) as stranger:
            assert is_turned_away(stranger)
        assert seen.next().outcome == "client_forbidden"
        with come_from(server, "127.0.0.2") as friend:
            connect_tunnel(friend, KEY, Cipher.SECRETBOX).close()


@pytest.mark.parametrize("option", ["clients", "proxy_protocol_from"])
def test_what_is_no_network_is_refused_when_the_inbound_is_made(option: str) -> None:
    with pytest.raises(ConfigError, match="'example\\.com' is not an address or a network"):
        options: Any = {option: ["example.com"]}
        LocalServer(("127.0.0.1", 0), direct(), **options)


# --- behind a balancer ------------------------------------------------------------------------


def announced(inbound: Listener, header: bytes, rest: bytes = b"") -> socket:
    sock = connect(inbound.bound)
    sock.sendall(header + rest)
    return sock


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_the_client_is_who_the_balancer_says(
    make_local: MakeLocal, seen: Seen, echo_server: Address, header: bytes
) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.0/8"])
    with announced(inbound, header, socks_request(echo_server) + b"ping") as sock:
        read_answer(sock)
        assert read_exactly(sock, 4) == b"ping"
        assert inbound.context.admission.clients == {"192.0.2.7": 1}
    assert seen.next().client == "192.0.2.7:51000"
    eventually(lambda: not inbound.context.admission.clients)


def test_a_balancer_may_connect_for_itself(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.1"])
    with announced(inbound, LOCAL, socks_request(echo_server)) as sock:
        read_answer(sock)
        assert inbound.context.admission.clients == {"127.0.0.1": 1}
    assert seen.next().client.startswith("127.0.0.1:")


def test_a_balancer_must_announce_its_client(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.1"])
    with announced(inbound, b"", socks_request(echo_server)) as sock:
        assert is_turned_away(sock)
    record = seen.next()
    assert record.outcome == "bad_proxy_header"
    assert record.client.startswith("127.0.0.1:")
    assert inbound.connections == 0


@pytest.mark.parametrize(
    ("header", "word"),
    [(V1[:20], "handshake_timeout"), (b"", "handshake_timeout"), (V2[:-1], "handshake_timeout")],
)
def test_a_header_that_does_not_come_to_its_end_has_the_time_of_a_handshake(
    make_local: MakeLocal, seen: Seen, header: bytes, word: str
) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.1"], timeouts=Timeouts(handshake=0.05))
    with announced(inbound, header) as sock:
        assert is_turned_away(sock)
    assert seen.next().outcome == word


@pytest.mark.parametrize("said", [b"", b"PROXY UNKNOWN\r\n"])
def test_a_balancer_that_checks_whether_it_can_connect_is_routine(
    make_local: MakeLocal, seen: Seen, said: bytes
) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.1"])
    with announced(inbound, said) as sock:
        sock.shutdown(std_socket.SHUT_WR)
        record = seen.next()
    assert (record.outcome, record.is_routine) == ("client_gone", True)


def test_header_and_request_have_one_time_together(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.1"], timeouts=Timeouts(handshake=0.6))
    with announced(inbound, V1[:20]) as sock:
        gevent.sleep(0.4)  # as a slow client does, twice: each pause alone were within the bound
        sock.sendall(V1[20:])
        gevent.sleep(0.4)  # the second time
        with suppress(ConnectionError):
            sock.sendall(socks_request(NOWHERE))
        assert is_turned_away(sock)
    record = seen.next()
    assert (record.outcome, record.client) == ("handshake_timeout", "192.0.2.7:51000")


def test_a_header_that_ends_early_is_a_client_that_has_gone(
    make_local: MakeLocal, seen: Seen
) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.1"])
    with announced(inbound, V1[:20]) as sock:
        sock.shutdown(std_socket.SHUT_WR)
        assert is_turned_away(sock)
    assert seen.next().outcome == "client_gone"


def test_no_other_peer_may_send_a_header(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local(proxy_protocol_from=["127.0.0.2"])
    with announced(inbound, V2) as sock:
        assert is_turned_away(sock)
    record = seen.next()
    assert record.outcome == "bad_request"
    assert record.client.startswith("127.0.0.1:")


def test_limits_and_networks_are_for_the_client_and_not_for_its_balancer(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local(
        proxy_protocol_from=["127.0.0.1"], clients=["192.0.2.0/24"], limits=Limits(per_client=1)
    )
    other = V1.replace(b"192.0.2.7", b"192.0.2.8")
    stranger = V1.replace(b"192.0.2.7", b"203.0.113.1")
    asked = socks_request(echo_server)
    with announced(inbound, V1, asked) as first, announced(inbound, other, asked) as second:
        read_answer(first)
        read_answer(second)
        with announced(inbound, V1, asked) as third, pytest.raises(Refused):
            read_answer(third)
        record = seen.next()
        assert (record.outcome, record.client) == ("limit", "192.0.2.7:51000")
        for header, client in ((stranger, "203.0.113.1:51000"), (LOCAL, "127.0.0.1:")):
            with announced(inbound, header, asked) as turned_away:
                assert is_turned_away(turned_away)
            record = seen.next()
            assert record.outcome == "client_forbidden"
            assert record.client.startswith(client)
    eventually(lambda: inbound.connections == 0)
    assert not inbound.context.admission.clients


def test_failed_logins_are_those_of_the_client_and_not_of_its_balancer(
    make_local: MakeLocal, logins: Prompt
) -> None:
    inbound = make_local(users=logins, proxy_protocol_from=["127.0.0.1"])

    def status(header: bytes, password: bytes) -> int:
        with announced(inbound, header, login(b"alice", password)) as sock:
            return read_exactly(sock, 4)[3]

    for _ in range(Prompt.max_failures):
        assert status(V1, b"guess") == 1
    assert status(V1, b"secret") == 1
    assert status(V1.replace(b"192.0.2.7", b"192.0.2.8"), b"secret") == 0


def test_a_tunnel_may_come_through_a_balancer(seen: Seen, echo_server: Address) -> None:
    class Announcing:
        """Dials as a balancer does."""

        def connect(self, dest: Address) -> socket:
            sock = connect(dest)
            sock.sendall(V2)
            return sock

    with running_inbound(make_server(proxy_protocol_from=["127.0.0.1"], observer=seen)) as server:
        way = TunnelExit(server.bound, KEY, Announcing())
        with running_inbound(LocalServer(("127.0.0.1", 0), [way], rules=["allow all"])) as local:
            assert ask_echo(local.bound, echo_server, b"through") == b"through"
        assert seen.next().client == "192.0.2.7:51000"


# --- when descriptors run out -----------------------------------------------------------------

_SCARCE = """
import logging, resource, sys, gevent
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.observe import AccessLog
logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.INFO)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
listener = LocalServer("127.0.0.1:0", ["direct"], rules=["allow all"], observer=AccessLog())
listener.start()
print(listener.bound.port, flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.read)
"""


def outcome(inbound: Address, dest: Address) -> str:
    """What becomes of a connection that asks for an echo; it is closed then."""
    try:
        with through(inbound, dest, b"ping") as sock:
            return "served" if read_exactly(sock, 4) == b"ping" else "garbled"
    except Refused as refused:
        return f"refused {refused.args[0]}"
    except (EOFError, ConnectionError):
        return "closed"


def test_without_descriptors_new_clients_are_refused_at_once_and_others_served(
    echo_server: Address, tmp_path: Path
) -> None:
    with (
        open(tmp_path / "log", "w+") as log,
        running(_SCARCE, stderr=log) as process,
        ExitStack() as stack,
    ):
        inbound = printed_address(process)
        held: list[socket] = []
        # two descriptors for each, so that one of the last gets one and wants another
        with suppress(Refused, EOFError, ConnectionError):
            while len(held) < 32:
                held.append(stack.enter_context(through(inbound, echo_server)))
        assert 20 < len(held) < 32
        idle = [stack.enter_context(connect(inbound)) for _ in range(3)]
        begin = time.monotonic()
        found = [outcome(inbound, echo_server) for _ in range(50)]
        assert time.monotonic() - begin < TOO_LONG / 2, "no client waits for its answer"
        assert set(found) <= {"closed", "refused 1"}
        for sock in held:
            sock.sendall(b"still here")
            assert read_exactly(sock, 10) == b"still here"
        told = (tmp_path / "log").read_text()
        complaints = [line for line in told.splitlines() if "can't accept" in line]
        assert len(complaints) == 1, "told once, not for each who comes"
        assert "Too many open files" in complaints[0]
        assert told.count("outcome=out_of_resources") >= 50
        for sock in [*held, *idle]:
            sock.close()
        eventually(lambda: outcome(inbound, echo_server) == "served")
        assert [outcome(inbound, echo_server) for _ in range(30)] == ["served"] * 30
        assert [outcome(inbound, Address("127.0.0.1", 1)) for _ in range(3)] == ["refused 5"] * 3


def test_a_inbound_without_a_reserve_waits_until_descriptors_are_back(
    make_local: MakeLocal,
    monkeypatch: pytest.MonkeyPatch,
    echo_server: Address,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where something else in the process has taken it."""
    inbound = make_local()
    inbound.accept_pause = 0.05
    inbound.accept_guard.give_up_reserve()
    accept = Listener._accept
    refusals = iter([errno.EMFILE, errno.ENFILE, errno.ENOMEM])

    def exhausted(self: Listener) -> object:
        number = next(refusals, None)
        if number is None:
            return accept(self)
        monkeypatch.setattr(
            inbound.accept_guard, "take_reserve", lambda: None
        )  # nor is there one to keep
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Listener, "_accept", exhausted)
    assert ask_echo(inbound.bound, echo_server, b"late") == b"late"
    assert [record.message for record in caplog.records] == [
        "local can't accept: Too many open files, with 0 connections open; retrying every 0.05 s"
    ]
    monkeypatch.undo()
    inbound.accept_pause = 0.05
    assert ask_echo(inbound.bound, echo_server, b"again") == b"again"


def test_a_client_that_comes_without_a_free_descriptor_is_closed_and_logged(
    make_local: MakeLocal, seen: Seen, monkeypatch: pytest.MonkeyPatch, echo_server: Address
) -> None:
    inbound = make_local()
    accept = Listener._accept
    failures = [OSError(errno.EMFILE, "Too many open files")]

    def exhausted(self: Listener) -> object:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(Listener, "_accept", exhausted)
    with connect(inbound.bound) as sock:
        assert is_turned_away(sock)
    record = seen.next()
    assert (record.outcome, record.detail) == ("out_of_resources", "Too many open files")
    assert record.client.startswith("127.0.0.1:")
    assert inbound.accept_guard.has_reserve
    assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
    inbound.stop(0)
    assert not inbound.accept_guard.has_reserve, "a stopped listener holds no descriptor"


def test_without_a_free_descriptor_a_silent_client_gives_its_own_to_a_newcomer(
    make_local: MakeLocal, seen: Seen, monkeypatch: pytest.MonkeyPatch, echo_server: Address
) -> None:
    inbound = make_local()
    accept = Listener._accept
    failures: list[OSError] = []

    def exhausted(self: Listener) -> object:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(Listener, "_accept", exhausted)
    with connect(inbound.bound) as silent:
        eventually(lambda: inbound.connections == 1)
        failures.append(OSError(errno.EMFILE, "Too many open files"))
        assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
        assert not failures
        assert silent.recv(1) == b""
    assert seen.outcomes == ["evicted", "ok"]
    assert inbound.accept_guard.has_reserve


def test_a_reserve_that_was_given_up_in_vain_is_kept_again(
    make_local: MakeLocal, monkeypatch: pytest.MonkeyPatch, echo_server: Address
) -> None:
    """Another call was faster: another thread took the descriptor, or the client had gone."""
    inbound = make_local()
    accept = Listener._accept
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2

    def exhausted(self: Listener) -> object:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(Listener, "_accept", exhausted)
    assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
    assert not failures
    assert inbound.accept_guard.has_reserve


def test_a_reserve_that_could_not_be_kept_is_kept_when_it_can_be(
    make_local: MakeLocal, monkeypatch: pytest.MonkeyPatch, echo_server: Address
) -> None:
    inbound = make_local()
    inbound.accept_pause = 0.01
    accept, open_file = Listener._accept, os.open
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3

    def exhausted(self: Listener) -> object:
        if failures:
            raise failures.pop()
        return accept(self)

    def no_file(path: str, flags: int, *mode: int) -> int:
        if failures:
            raise OSError(errno.EMFILE, "Too many open files")
        return open_file(path, flags, *mode)

    monkeypatch.setattr(Listener, "_accept", exhausted)
    monkeypatch.setattr(os, "open", no_file)
    assert ask_echo(inbound.bound, echo_server, b"served") == b"served"
    assert inbound.accept_guard.has_reserve
