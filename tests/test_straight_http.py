"""A CONNECT of HTTP is carried by the hub where nothing has to be waited for; the rest is the same.

A connection that is traced, at ``log.level: debug``, goes by a greenlet.
"""

from __future__ import annotations

import gc
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.access.throttle import Throttle
from gsocks.access.users import Users, hash_password
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.straight_http import StraightConnect
from gsocks.net.dial import DialAttempt
from gsocks.relay import Relay
from gsocks.request import ExitSelector, Request
from gsocks.rotation.beginning import Beginning
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Limits
from gsocks.stream import send_now
from tests.support.engine import (
    MakeLocal,
    Seen,
    connect,
    direct,
    eventually,
    read_exactly,
    read_to_end,
)
from tests.support.ports import free_port
from tests.support.two_ways import Spawned, both_ways

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

ALICE = hash_password(b"secret")
NOWHERE = Address("192.0.2.1", 80)


def head(dest: Address, login: bytes = b"", *fields: bytes) -> bytes:
    lines = [b"CONNECT %s HTTP/1.1" % str(dest).encode(), b"Host: " + str(dest).encode(), *fields]
    if login:
        lines.append(b"Proxy-Authorization: Basic " + b64encode(login))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def read_head(sock: Any) -> bytes:
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        said += read_exactly(sock, 1)
    return said


def connected(sock: Any, dest: Address, login: bytes = b"", *fields: bytes) -> bytes:
    """CONNECT, and see that it leads to an echo; the answer."""
    sock.sendall(head(dest, login, *fields))
    answer = read_head(sock)
    assert answer.startswith(b"HTTP/1.1 200 ")
    sock.sendall(b"hello")
    assert read_exactly(sock, 5) == b"hello"
    return answer


@contextmanager
def remembered(
    make_local: MakeLocal, echo_server: Address, group: ExitGroup | None = None, **options: Any
) -> Iterator[Any]:
    """A listener that has seen the login of alice."""
    inbound = make_local(group or direct(), users={"alice": ALICE}, **options)
    with connect(inbound.bound) as sock:
        connected(sock, echo_server, b"alice:secret")
    yield inbound


def test_a_connect_has_no_greenlet(
    make_local: MakeLocal, seen: Seen, spawned: Spawned, echo_server: Address
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        answer = connected(sock, echo_server, b"", b"User-Agent: me")
    assert answer == (
        b'HTTP/1.1 200 Connection established\r\nProxy-Status: gsocks; next-hop="direct"\r\n\r\n'
    )
    record = seen.next()
    assert (record.outcome, record.up, record.down) == ("ok", 5, 5)
    assert (record.dest, record.exit, record.command) == (str(echo_server), "direct", "connect")
    assert record.id.endswith(".1")
    assert spawned == []
    eventually(lambda: not inbound.connections)


def test_a_head_that_came_before_is_asked_for_a_login_where_others_are(
    make_local: MakeLocal, echo_server: Address
) -> None:
    with connect(make_local().bound) as sock:
        connected(sock, echo_server)
    for inbound in (make_local(users={"alice": ALICE}), make_local(ask=True)):
        with connect(inbound.bound) as sock:
            sock.sendall(head(echo_server))
            assert read_head(sock).startswith(b"HTTP/1.1 407 ")


def test_nor_has_one_with_words_behind_it(
    make_local: MakeLocal, spawned: Spawned, echo_server: Address
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(head(echo_server) + b"first words")
        read_head(sock)
        assert read_exactly(sock, 11) == b"first words"
    assert spawned == []


def test_nor_has_one_of_a_user_who_is_remembered(
    make_local: MakeLocal, seen: Seen, spawned: Spawned, echo_server: Address
) -> None:
    with remembered(make_local, echo_server) as inbound:
        seen.next()
        spawned.clear()
        with connect(inbound.bound) as sock:
            connected(sock, echo_server, b"alice-session-cart:secret")
    record = seen.next()
    assert (record.user, record.session) == ("alice", "cart")
    assert spawned == []


def test_nor_has_one_whose_client_is_its_session(
    make_local: MakeLocal, seen: Seen, spawned: Spawned, echo_server: Address
) -> None:
    inbound = make_local(by_client=True)
    with connect(inbound.bound) as sock:
        connected(sock, echo_server)
    assert seen.next().session == "127.0.0.1"
    assert spawned == []


@pytest.mark.parametrize(
    "said",
    [
        b"CONNECT ",
        head(NOWHERE)[:-1],
        head(NOWHERE, b"", b"Content-Length: 0"),
        head(NOWHERE, b"", b"Transfer-Encoding: chunked"),
        head(NOWHERE, b"", b"Max-Forwards: 0"),
        head(NOWHERE).replace(b"\r\n", b"\n"),
        head(NOWHERE).replace(b"Host", b"Ho st"),
        head(NOWHERE, b"", *[b"A: b"] * 250),
        head(NOWHERE).replace(b"192", b"me@192"),
        b"CONNECT 192.0.2.1:80 HTTP/2\r\nHost: a\r\n\r\n",
        b"CONNECT 192.0.2.1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://192.0.2.1/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_anything_else_goes_by_a_greenlet(
    make_local: MakeLocal, spawned: Spawned, said: bytes
) -> None:
    inbound = make_local()
    with connect(inbound.bound) as sock:
        sock.sendall(said)
        eventually(lambda: spawned)


@pytest.mark.parametrize("login", [b"", b"alice:wrong", b"bob:secret", b"alice-colour-red:secret"])
def test_a_login_that_is_not_remembered_has_a_greenlet(
    make_local: MakeLocal, spawned: Spawned, echo_server: Address, login: bytes
) -> None:
    with remembered(make_local, echo_server) as inbound:
        spawned.clear()
        with connect(inbound.bound) as sock:
            sock.sendall(head(echo_server, login))
            assert read_head(sock).startswith((b"HTTP/1.1 407 ", b"HTTP/1.1 400 "))
    assert len(spawned) == 1


def test_where_logins_have_failed_another_is_not_recalled_by_the_hub() -> None:
    users = Users({"alice": ALICE})
    throttle = Throttle(users.verify, sleep=lambda _: None, users=users, recall=users.recall)
    host = "192.0.2.1"
    assert not throttle.recall(host, "alice", b"secret")
    assert throttle.verify(host, "alice", b"secret")
    assert throttle.recall(host, "alice", b"secret")
    assert not throttle.recall(host, "alice", b"wrong")
    assert not throttle.verify(host, "bob", b"secret")
    assert not throttle.recall(host, "alice", b"secret")
    assert throttle.recall("192.0.2.9", "alice", b"secret")


@both_ways
def test_however_the_bytes_come_the_answer_is_the_same(
    make_local: MakeLocal, echo_server: Address
) -> None:
    inbound = make_local()
    said = head(echo_server) + b"hello"
    for cut in range(1, len(said)):
        with connect(inbound.bound) as sock:
            sock.sendall(said[:cut])
            gevent.sleep(0.002)
            sock.sendall(said[cut:])
            assert read_head(sock).startswith(b"HTTP/1.1 200 ")
            assert read_exactly(sock, 5) == b"hello"


@both_ways
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("fields", [[], [b"Host: elsewhere.example"], [b"User-Agent: me"]])
def test_a_connect_is_served_as_programs_write_it(
    make_local: MakeLocal,
    echo_server: Address,
    version: bytes,
    end: bytes,
    fields: list[bytes],
) -> None:
    """lftp and links leave Host out, and irssi the CR of each line."""
    line = b"CONNECT %s HTTP/%s" % (str(echo_server).encode(), version)
    with connect(make_local().bound) as sock:
        sock.sendall(end.join([line, *fields, b"", b""]) + b"first\r\n\r\n")
        assert read_head(sock) == (
            b"HTTP/1.1 200 Connection established\r\n"
            b'Proxy-Status: gsocks; next-hop="direct"\r\n\r\n'
        )
        assert read_exactly(sock, 9) == b"first\r\n\r\n"


@both_ways
@pytest.mark.parametrize("dest", [b"::1:%d", b"[::1]:%d", b"::ffff:127.0.0.1:%d"])
def test_the_last_colon_of_a_connect_without_brackets_is_the_ports(
    make_local: MakeLocal, seen: Seen, dest: bytes
) -> None:
    """As rsync, Qt, axios and others write an IPv6 address."""
    port = free_port()
    with connect(make_local().bound) as sock:
        sock.sendall(b"CONNECT " + dest % port + b" HTTP/1.1\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 502 ")
    host = "127.0.0.1" if b"127" in dest else "[::1]"
    assert (seen.next().dest, seen.all[0].outcome) == (f"{host}:{port}", "refused")


@both_ways
def test_a_refused_destination_is_answered(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local()
    dest = Address("127.0.0.1", free_port())
    with connect(inbound.bound) as sock:
        sock.sendall(head(dest))
        answer = read_to_end(sock)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"Proxy-Status: gsocks; error=connection_refused\r\n" in answer
    assert b"Connection: close\r\n" in answer
    record = seen.next()
    assert (record.outcome, record.exit) == ("refused", "direct")
    eventually(lambda: not inbound.connections)


@both_ways
def test_a_user_beyond_the_quota_is_answered(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    with remembered(make_local, echo_server, limits=Limits(per_user=1)) as inbound:
        assert seen.next().outcome == "ok"
        with connect(inbound.bound) as first, connect(inbound.bound) as second:
            connected(first, echo_server, b"alice:secret")
            second.sendall(head(echo_server, b"alice:secret"))
            assert read_to_end(second).startswith(b"HTTP/1.1 503 ")
            assert seen.next().outcome == "limit"
        eventually(lambda: not inbound.connections)
        assert seen.next().outcome == "ok"
        with connect(inbound.bound) as third:
            connected(third, echo_server, b"alice:secret")


@both_ways
def test_a_session_goes_to_its_exit(make_local: MakeLocal, echo_server: Address) -> None:
    group = direct()
    with remembered(make_local, echo_server, group) as inbound, connect(inbound.bound) as it:
        connected(it, echo_server, b"alice-session-cart:secret")
        (member,) = group.roster
        assert group.exit_of("alice", "cart") == member.name
        assert member.open == 1
    selector = ExitSelector(session="cart")
    eventually(lambda: group.sessions.kept(("alice", "cart"), selector, 0.0) is not None)


def test_an_answer_without_room_is_sent_by_a_greenlet(
    make_local: MakeLocal,
    spawned: Spawned,
    echo_server: Address,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbound = make_local()

    def narrow(fd: int, data: bytes) -> int:
        return send_now(fd, data[:3])

    monkeypatch.setattr("gsocks.inbound.straight.send_now", narrow)
    with connect(inbound.bound) as sock:
        connected(sock, echo_server)
    assert len(spawned) == 1


def test_an_exit_that_needs_a_greenlet_has_one(
    make_local: MakeLocal, spawned: Spawned, echo_server: Address
) -> None:
    class Waiting:
        label = "waiting"

        def connect(self, request: Request) -> Connected:
            return next(iter(direct().roster)).exit.connect(request)

        def close(self) -> None: ...

    inbound = make_local(ExitGroup([Waiting()], ALLOW_ALL))
    with connect(inbound.bound) as sock:
        connected(sock, echo_server)
    assert len(spawned) == 1


def test_what_has_ended_is_freed_without_the_collector(
    make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    inbound = make_local()
    gc.disable()
    try:
        with connect(inbound.bound) as sock:
            connected(sock, echo_server)
        with connect(inbound.bound) as sock:
            sock.sendall(head(Address("127.0.0.1", free_port())))
            read_to_end(sock)
        seen.next(), seen.next()
        eventually(lambda: not inbound.connections)
        kinds = (StraightConnect, ClientConnection, Relay, Beginning, DialAttempt)
        assert not [each for each in gc.get_objects() if isinstance(each, kinds)]
    finally:
        gc.enable()
