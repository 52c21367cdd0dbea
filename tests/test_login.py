"""What clients ask of their exit, by whichever protocol they come: it reaches the choice of it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from engine import TOO_LONG, Seen, connect, read_exactly, read_to_end, running_door
from gevent.socket import create_connection
from newcomers import USERS, login

from gsocks.address import Address
from gsocks.errors import ConnectionRefused
from gsocks.exits.base import Connected
from gsocks.local import LocalServer
from gsocks.request import Request
from gsocks.rules import ALLOW_ALL
from gsocks.users import Users
from gsocks.ways_out import Offer, WaysOut
from gsocks.wish import ANY, Wish

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEST = Address("192.0.2.1", 80)


class Noting:
    """An exit that keeps what it is asked for, and serves none of it."""

    label = "by none"

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def start(self) -> None: ...

    def close(self) -> None: ...

    def connect(self, request: Request) -> Connected:
        self.requests.append(request)
        raise ConnectionRefused("as ever")


@pytest.fixture
def way() -> Noting:
    return Noting()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def make_door(way: Noting, seen: Seen) -> Iterator[Callable[..., LocalServer]]:
    with ExitStack() as stack:

        def make(**options: Any) -> LocalServer:
            every_wish = Offer(way, tags=("fast",), any_country=True)
            exits = WaysOut([every_wish], ALLOW_ALL)
            door = LocalServer(("127.0.0.1", 0), exits, observer=seen, **options)
            return stack.enter_context(running_door(door))

        yield make


# --- clients ----------------------------------------------------------------------------------


def socks5(door: LocalServer, name: bytes, password: bytes) -> bytes:
    """What is answered: the method, the status of the login, and the reply."""
    hello = b"\x05\x02\x00\x02" + login(name, password)[3:]
    with connect(door.bound) as sock:
        sock.sendall(hello + b"\x05\x01\x00" + DEST.encode())
        return read_to_end(sock)


def socks4(door: LocalServer, name: bytes, _password: bytes) -> bytes:
    with connect(door.bound) as sock:
        sock.sendall(b"\x04\x01\x00\x50" + bytes((192, 0, 2, 1)) + name + b"\0")
        return read_to_end(sock)


def http_connect(door: LocalServer, name: bytes, password: bytes) -> bytes:
    return _http(door, f"CONNECT {DEST} HTTP/1.1\r\nHost: {DEST}\r\n", name, password)


def http_get(door: LocalServer, name: bytes, password: bytes) -> bytes:
    return _http(door, f"GET http://{DEST}/ HTTP/1.0\r\n", name, password)


def _http(door: LocalServer, head: str, name: bytes, password: bytes) -> bytes:
    credentials = b"Proxy-Authorization: Basic " + b64encode(name + b":" + password)
    with connect(door.bound) as sock:
        sock.sendall(head.encode() + credentials + b"\r\nConnection: close\r\n\r\n")
        return read_to_end(sock)


with_passwords = pytest.mark.parametrize("ask", [socks5, http_connect, http_get])
by_every_protocol = pytest.mark.parametrize("ask", [socks5, socks4, http_connect, http_get])
Ask = Callable[[LocalServer, bytes, bytes], bytes]


# --- what they ask ----------------------------------------------------------------------------


@with_passwords
def test_at_a_door_with_users_the_user_has_the_password_and_the_rest_is_the_wish(
    ask: Ask, make_door, way: Noting, seen: Seen
) -> None:
    door = make_door(users=USERS)
    ask(door, b"customer-alice-cc-DE-sessid-x1-sesstime-10", b"secret")
    (request,) = way.requests
    assert (request.user, request.wish) == ("alice", Wish("x1", 600.0, "de"))
    record = seen.next()
    assert (record.user, record.session, record.exit) == ("alice", "x1", "by none")
    assert list(record.fields()) == [
        *("door", "client", "user", "session", "dest", "exit"),
        *("up", "down", "seconds", "outcome", "detail"),
    ]


@by_every_protocol
def test_at_an_open_door_the_wish_counts_and_the_name_does_not(
    ask: Ask, make_door, way: Noting, seen: Seen
) -> None:
    ask(make_door(), b"who-ever-session-x1-tag-fast", b"what ever")
    (request,) = way.requests
    assert (request.user, request.wish) == (None, Wish("x1", tags=("fast",)))
    assert (seen.next().user, seen.all[0].session) == (None, "x1")


@pytest.mark.parametrize(
    ("ask", "users"),
    [
        *((ask, None) for ask in (socks5, socks4, http_connect, http_get)),
        *((ask, USERS) for ask in (socks5, http_connect, http_get)),
    ],
)
def test_a_wish_that_cannot_be_read_is_a_failed_login_and_told_in_the_log(
    ask: Ask, users: dict[str, str] | None, make_door, way: Noting, seen: Seen
) -> None:
    answer = ask(make_door(users=users), b"alice-session-x1-contry-de", b"secret")
    if ask is socks5:
        assert answer == b"\x05\x02\x01\x01"
    elif ask is socks4:
        assert answer[:2] == b"\x00\x5b"
    else:
        assert answer.startswith(b"HTTP/1.1 407 ")
        assert b"known keys: session, sessid" in answer
    record = seen.next()
    assert record.outcome == "bad_parameters"
    assert "'x1-contry-de' has a hyphen" in record.detail
    assert "known keys: session, sessid, lifetime," in record.detail
    assert "secret" not in record.detail
    assert not way.requests


def test_a_wish_that_cannot_be_read_is_no_attempt_at_a_password(make_door, way: Noting) -> None:
    door = make_door(users=USERS)
    for _ in range(20):
        assert socks5(door, b"alice-sesion-x", b"secret")[:4] == b"\x05\x02\x01\x01"
    socks5(door, b"alice-session-x", b"secret")
    assert [request.wish for request in way.requests] == [Wish("x")]


def test_users_that_come_and_go_are_parted_from_their_wishes(make_door, way: Noting) -> None:
    users = Users(USERS)
    door = make_door(users=users)
    users.replace({"alice-session-x": USERS["alice"]})
    socks5(door, b"alice-session-x", b"secret")
    assert [(request.user, request.wish) for request in way.requests] == [("alice-session-x", ANY)]


@with_passwords
def test_a_listeners_own_wish_counts_where_the_client_says_nothing(
    ask: Ask, make_door, way: Noting
) -> None:
    door = make_door(wish=Wish("browser-1", country="de", tags=("fast",)))
    ask(door, b"", b"")
    ask(door, b"country-fr", b"")
    assert [request.wish for request in way.requests] == [
        Wish("browser-1", country="de", tags=("fast",)),
        Wish("browser-1", country="fr", tags=("fast",)),
    ]


def test_a_listeners_own_wish_counts_for_clients_that_have_no_credentials_to_send(
    make_door, way: Noting
) -> None:
    door = make_door(wish=Wish("browser-1"))
    with connect(door.bound) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00" + DEST.encode())
        assert read_exactly(sock, 2) == b"\x05\x00"
        read_to_end(sock)
    with connect(door.bound) as sock:
        sock.sendall(f"GET http://{DEST}/ HTTP/1.0\r\n\r\n".encode())
        read_to_end(sock)
    assert [request.wish for request in way.requests] == [Wish("browser-1")] * 2


def test_each_client_may_be_a_session(make_door, way: Noting) -> None:
    door = make_door(by_client=True)
    for host in ("127.0.0.1", "127.0.0.2"):
        with create_connection(door.bound, TOO_LONG, (host, 0)) as sock:
            sock.sendall(b"\x05\x01\x00\x05\x01\x00" + DEST.encode())
            read_to_end(sock)
    socks5(door, b"session-x-cc-de", b"")
    socks5(door, b"cc-de", b"")
    assert [request.wish for request in way.requests] == [
        Wish("127.0.0.1"),
        Wish("127.0.0.2"),
        Wish("x", country="de"),
        Wish("127.0.0.1", country="de"),
    ]
    socks5(make_door(by_client=True, wish=Wish("browser-1")), b"", b"")
    assert way.requests[-1].wish == Wish("browser-1")
