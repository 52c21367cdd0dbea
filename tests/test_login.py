"""Exit selectors of clients reach the choice of an exit, in every protocol."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gevent.socket import create_connection

from gsocks.access.rules import ALLOW_ALL
from gsocks.access.throttle import Throttle
from gsocks.access.users import Users
from gsocks.address import Address
from gsocks.errors import ConnectionRefused
from gsocks.exits.base import Connected
from gsocks.local import LocalServer
from gsocks.request import ANY, ExitSelector, Request
from gsocks.rotation.group import ExitGroup, Offer
from tests.support.engine import Seen, connect, read_exactly, read_to_end, running_inbound
from tests.support.newcomers import USERS, login
from tests.support.two_ways import both_ways
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEST = Address("192.0.2.1", 80)


class RecordingExit:
    """An exit that records the requests and refuses them."""

    label = "by none"

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def close(self) -> None: ...

    def connect(self, request: Request) -> Connected:
        self.requests.append(request)
        raise ConnectionRefused("always")


@pytest.fixture
def exit_() -> RecordingExit:
    return RecordingExit()


@pytest.fixture
def seen() -> Seen:
    return Seen()


MakeInbound = Callable[..., LocalServer]


@pytest.fixture
def make_inbound(exit_: RecordingExit, seen: Seen) -> Iterator[MakeInbound]:
    with ExitStack() as stack:

        def make(**options: Any) -> LocalServer:
            offer = Offer(exit_, tags=("fast",), any_country=True)
            exits = ExitGroup([offer], ALLOW_ALL)
            inbound = LocalServer(("127.0.0.1", 0), exits, observer=seen, **options)
            return stack.enter_context(running_inbound(inbound))

        yield make


# --- clients ----------------------------------------------------------------------------------


def socks5(inbound: LocalServer, name: bytes, password: bytes) -> bytes:
    """The answer: the method, the status of the login, and the reply."""
    hello = b"\x05\x02\x00\x02" + login(name, password)[3:]
    with connect(inbound.bound) as sock:
        sock.sendall(hello + b"\x05\x01\x00" + DEST.encode())
        return read_to_end(sock)


def socks4(inbound: LocalServer, name: bytes, _password: bytes) -> bytes:
    with connect(inbound.bound) as sock:
        sock.sendall(b"\x04\x01\x00\x50" + bytes((192, 0, 2, 1)) + name + b"\0")
        return read_to_end(sock)


def http_connect(inbound: LocalServer, name: bytes, password: bytes) -> bytes:
    return _http(inbound, f"CONNECT {DEST} HTTP/1.1\r\nHost: {DEST}\r\n", name, password)


def http_get(inbound: LocalServer, name: bytes, password: bytes) -> bytes:
    return _http(inbound, f"GET http://{DEST}/ HTTP/1.0\r\n", name, password)


def _http(inbound: LocalServer, head: str, name: bytes, password: bytes) -> bytes:
    credentials = b"Proxy-Authorization: Basic " + b64encode(name + b":" + password)
    with connect(inbound.bound) as sock:
        sock.sendall(head.encode() + credentials + b"\r\nConnection: close\r\n\r\n")
        return read_to_end(sock)


with_passwords = pytest.mark.parametrize("ask", [socks5, http_connect, http_get])
by_every_protocol = pytest.mark.parametrize("ask", [socks5, socks4, http_connect, http_get])
Ask = Callable[[LocalServer, bytes, bytes], bytes]


# --- selectors --------------------------------------------------------------------------------


@with_passwords
def test_with_authentication_the_parameters_behind_the_user_are_the_selector(
    ask: Ask, make_inbound: MakeInbound, exit_: RecordingExit, seen: Seen
) -> None:
    inbound = make_inbound(users=USERS)
    ask(inbound, b"customer-alice-cc-DE-sessid-x1-sesstime-10", b"secret")
    (request,) = exit_.requests
    assert (request.user, request.selector) == ("alice", ExitSelector("x1", 600.0, "de"))
    record = seen.next()
    assert (record.user, record.session, record.exit) == ("alice", "x1", "by none")
    assert list(record.fields()) == [
        *("id", "inbound", "client", "user", "session", "dest", "exit"),
        *("up", "down", "seconds", "outcome", "detail"),
    ]


@by_every_protocol
def test_without_authentication_the_selector_counts_and_the_name_does_not(
    ask: Ask, make_inbound: MakeInbound, exit_: RecordingExit, seen: Seen
) -> None:
    ask(make_inbound(), b"who-ever-session-x1-tag-fast", b"what ever")
    (request,) = exit_.requests
    assert (request.user, request.selector) == (None, ExitSelector("x1", tags=("fast",)))
    assert (seen.next().user, seen.all[0].session) == (None, "x1")


@pytest.mark.parametrize(
    ("ask", "users"),
    [(ask, users) for users in (None, USERS) for ask in (socks5, http_connect, http_get)],
)
def test_an_invalid_selector_is_a_failed_login_and_logged(
    ask: Ask,
    users: dict[str, str] | None,
    make_inbound: MakeInbound,
    exit_: RecordingExit,
    seen: Seen,
) -> None:
    answer = ask(make_inbound(users=users), b"alice-session-x1-contry-de", b"secret")
    if ask is socks5:
        assert answer == b"\x05\x02\x01\x01"
    else:
        assert answer.startswith(b"HTTP/1.1 407 ")
        assert b"known keys: session, sessid" in answer
    record = seen.next()
    assert record.outcome == "bad_parameters"
    assert "'x1-contry-de' has a hyphen" in record.detail
    assert "known keys: session, sessid, lifetime," in record.detail
    assert "secret" not in record.detail
    assert not exit_.requests


@by_every_protocol
@pytest.mark.parametrize(
    "name", [b"web-session", b"svc-session-a-b", b"me-cc-nowhere", b"vpn-exit"]
)
def test_a_name_without_a_password_that_is_no_selector_selects_nothing(
    ask: Ask, make_inbound: MakeInbound, exit_: RecordingExit, seen: Seen, name: bytes
) -> None:
    """As that of the user of the client's machine, which Java and SOCKS4 clients send."""
    ask(make_inbound(selector=ExitSelector("browser-1")), name, b"")
    assert [request.selector for request in exit_.requests] == [ExitSelector("browser-1")]
    assert (seen.next().outcome, seen.all[0].session) == ("refused", "browser-1")


@by_every_protocol
def test_a_name_without_a_password_may_be_a_selector(
    ask: Ask, make_inbound: MakeInbound, exit_: RecordingExit
) -> None:
    ask(make_inbound(), b"session-x1", b"")
    assert [request.selector for request in exit_.requests] == [ExitSelector("x1")]


@pytest.mark.parametrize(
    ("offers", "options", "heeds"),
    [
        ([Offer(RecordingExit())], {}, False),
        ([Offer(RecordingExit(), name="berlin")], {}, False),
        ([Offer(RecordingExit()), Offer(RecordingExit())], {}, True),
        ([Offer(RecordingExit(), tags=("fast",))], {}, True),
        ([Offer(RecordingExit(), country="de")], {}, True),
        ([Offer(RecordingExit(), any_country=True)], {}, True),
        ([Offer(RecordingExit(), passes_session=True)], {}, True),
        ([Offer(RecordingExit())], {"prefer_login": True}, True),
        ([Offer(RecordingExit())], {"ask": True}, True),
        ([Offer(RecordingExit())], {"ask": True, "prefer_login": False}, False),
        ([Offer(RecordingExit()), Offer(RecordingExit())], {"prefer_login": False}, False),
        ([Offer(RecordingExit())], {"by_client": True}, False),
        ([Offer(RecordingExit())], {"users": USERS}, True),
    ],
)
@both_ways
def test_an_open_listener_asks_for_a_login_where_a_name_can_matter(
    offers: list[Offer], options: dict[str, Any], heeds: bool
) -> None:
    """A client that offers both methods is asked; and one that offers a login alone, anywhere."""
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup(offers, ALLOW_ALL), **options)
    with running_inbound(inbound):
        for methods, method in ((b"\x00\x02", 2 if heeds else 0), (b"\x02", 2)):
            with connect(inbound.bound) as sock:
                sock.sendall(bytes((5, len(methods))) + methods)
                assert read_exactly(sock, 2) == bytes((5, method))


@both_ways
def test_exits_that_come_and_go_decide_anew_whether_names_matter(exit_: RecordingExit) -> None:
    exits = ExitGroup([Offer(exit_)], ALLOW_ALL)
    with running_inbound(LocalServer(("127.0.0.1", 0), exits)) as inbound:
        for offers, method in (
            ([exit_], 0),
            ([exit_, RecordingExit()], 2),
            ([Offer(exit_, tags=("fast",))], 2),
            ([exit_], 0),
        ):
            exits.update(offers)
            with connect(inbound.bound) as sock:
                sock.sendall(b"\x05\x02\x00\x02")
                assert read_exactly(sock, 2) == bytes((5, method))


def test_an_empty_password_is_no_guess_in_any_protocol(
    make_inbound: MakeInbound, exit_: RecordingExit, seen: Seen
) -> None:
    """As Java sends it without a login: eleven programs locked their address out."""
    inbound = make_inbound(users=USERS)
    for ask in (socks5, http_connect, http_get):
        for name in (b"alice", b"bob", b""):
            for _ in range(Throttle.max_failures + 1):
                ask(inbound, name, b"")
    assert {record.outcome for record in seen.all} == {"auth_failed"}
    socks5(inbound, b"alice", b"secret")
    assert [request.user for request in exit_.requests] == ["alice"]


def test_an_invalid_selector_with_the_right_password_is_not_throttled(
    make_inbound: MakeInbound, exit_: RecordingExit
) -> None:
    inbound = make_inbound(users=USERS)
    for _ in range(20):
        assert socks5(inbound, b"alice-sesion-x", b"secret")[:4] == b"\x05\x02\x01\x01"
    socks5(inbound, b"alice-session-x", b"secret")
    assert [request.selector for request in exit_.requests] == [ExitSelector("x")]


def test_selectors_are_separated_from_users_that_were_replaced(
    make_inbound: MakeInbound, exit_: RecordingExit
) -> None:
    users = Users(USERS)
    inbound = make_inbound(users=users)
    users.replace({"alice-session-x": USERS["alice"]})
    socks5(inbound, b"alice-session-x", b"secret")
    assert [(request.user, request.selector) for request in exit_.requests] == [
        ("alice-session-x", ANY)
    ]


@with_passwords
def test_a_listeners_selector_counts_where_the_client_sets_nothing(
    ask: Ask, make_inbound: MakeInbound, exit_: RecordingExit
) -> None:
    inbound = make_inbound(selector=ExitSelector("browser-1", country="de", tags=("fast",)))
    ask(inbound, b"", b"")
    ask(inbound, b"country-fr", b"")
    assert [request.selector for request in exit_.requests] == [
        ExitSelector("browser-1", country="de", tags=("fast",)),
        ExitSelector("browser-1", country="fr", tags=("fast",)),
    ]


def test_a_listeners_selector_counts_for_clients_without_credentials(
    make_inbound: MakeInbound, exit_: RecordingExit
) -> None:
    inbound = make_inbound(selector=ExitSelector("browser-1"))
    with connect(inbound.bound) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00" + DEST.encode())
        assert read_exactly(sock, 2) == b"\x05\x00"
        read_to_end(sock)
    with connect(inbound.bound) as sock:
        sock.sendall(f"GET http://{DEST}/ HTTP/1.0\r\n\r\n".encode())
        read_to_end(sock)
    assert [request.selector for request in exit_.requests] == [ExitSelector("browser-1")] * 2


def test_each_client_may_be_a_session(make_inbound: MakeInbound, exit_: RecordingExit) -> None:
    inbound = make_inbound(by_client=True)
    for host in ("127.0.0.1", "127.0.0.2"):
        with create_connection(inbound.bound, TOO_LONG, (host, 0)) as sock:
            sock.sendall(b"\x05\x01\x00\x05\x01\x00" + DEST.encode())
            read_to_end(sock)
    socks5(inbound, b"session-x-cc-de", b"")
    socks5(inbound, b"cc-de", b"")
    assert [request.selector for request in exit_.requests] == [
        ExitSelector("127.0.0.1"),
        ExitSelector("127.0.0.2"),
        ExitSelector("x", country="de"),
        ExitSelector("127.0.0.1", country="de"),
    ]
    socks5(make_inbound(by_client=True, selector=ExitSelector("browser-1")), b"", b"")
    assert exit_.requests[-1].selector == ExitSelector("browser-1")
