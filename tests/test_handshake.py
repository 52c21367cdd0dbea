"""What clients say is understood however it arrives, and answered to the byte."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Collection, Iterator

import gevent
import pytest
from gevent.socket import socket, socketpair
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsocks import errors
from gsocks.access.login import OPEN, Authenticator, VerifyPassword
from gsocks.address import Address
from gsocks.errors import (
    AddressTypeNotSupported,
    AuthenticationFailed,
    BadAddress,
    BadParameters,
    BadRequest,
    ClientError,
    ClientGone,
    CommandNotSupported,
    GsocksError,
    HandshakeTimeout,
    StreamError,
)
from gsocks.handshake import CONNECT_ONLY, Answer, SpeaksHttp, negotiate
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.stream import reset
from tests.support.grammar import (
    Case,
    Grammar,
    Watched,
    Wire,
    accept_all,
    accept_none,
    check,
    connected,
    only_alice,
    run,
)
from tests.support.waiting import TOO_LONG

ALL_COMMANDS = frozenset(Command)


# --- the wire, piece by piece ---------------------------------------------------------------


def greeting(*methods: int) -> bytes:
    return bytes((5, len(methods), *methods))


def login(name: bytes, password: bytes) -> bytes:
    return bytes((1, len(name))) + name + bytes((len(password),)) + password


def named(name: bytes, port: int) -> bytes:
    return bytes((3, len(name))) + name + port.to_bytes(2, "big")


IPV4 = bytes((1, 192, 0, 2, 1)) + (80).to_bytes(2, "big")
IPV6 = bytes((4,)) + bytes.fromhex("20010db8000000000000000000000001") + (443).to_bytes(2, "big")
NAME = named(b"example.com", 8080)
CONNECT = b"\x05\x01\x00"
NO_LOGIN = greeting(0)
ALICE = greeting(2) + login(b"alice", b"secret")

METHOD_0, METHOD_2, NO_METHOD = b"\x05\x00", b"\x05\x02", b"\x05\xff"
LOGIN_OK, LOGIN_BAD = b"\x01\x00", b"\x01\x01"


def failure(reply: int) -> bytes:
    return bytes((5, reply, 0, 1, 0, 0, 0, 0, 0, 0))


def connect(host: str, port: int, user: str | None = None, selector: ExitSelector = ANY) -> Request:
    return Request(Command.CONNECT, Address(host, port), user, selector=selector)


ACCEPTED = [
    Case("ipv4", NO_LOGIN + CONNECT + IPV4, [METHOD_0], connect("192.0.2.1", 80)),
    Case("ipv6", NO_LOGIN + CONNECT + IPV6, [METHOD_0], connect("2001:db8::1", 443)),
    Case("name", NO_LOGIN + CONNECT + NAME, [METHOD_0], connect("example.com", 8080)),
    Case(
        "name in capitals",
        NO_LOGIN + CONNECT + named(b"EXAMPLE.com", 1),
        [METHOD_0],
        connect("example.com", 1),
    ),
    Case(
        "name of one byte",
        NO_LOGIN + CONNECT + named(b"a", 65535),
        [METHOD_0],
        connect("a", 65535),
    ),
    Case(
        "name of 255 bytes",
        NO_LOGIN + CONNECT + named(b"a." * 127 + b"b", 80),
        [METHOD_0],
        connect("a." * 127 + "b", 80),
    ),
    Case(
        "ipv4 sent as a name, as Chromium does",
        NO_LOGIN + CONNECT + named(b"192.0.2.1", 80),
        [METHOD_0],
        connect("192.0.2.1", 80),
    ),
    Case(
        "ipv6 sent as a name",
        NO_LOGIN + CONNECT + named(b"2001:DB8:0::1", 80),
        [METHOD_0],
        connect("2001:db8::1", 80),
    ),
    Case(
        "ipv4 mapped into ipv6",
        NO_LOGIN + CONNECT + b"\x04" + bytes(10) + b"\xff\xff\x0a\x00\x00\x01\x00\x50",
        [METHOD_0],
        connect("10.0.0.1", 80),
    ),
    Case(
        "reserved byte that is not zero",
        NO_LOGIN + b"\x05\x01\xff" + IPV4,
        [METHOD_0],
        connect("192.0.2.1", 80),
    ),
    *(
        Case(
            f"without authentication, the methods {methods.hex()} where names make no difference",
            greeting(*methods) + CONNECT + IPV4,
            [METHOD_0],
            connect("192.0.2.1", 80),
        )
        for methods in (b"\0\2", b"\2\0", b"\0\1\2")
    ),
    *(
        Case(
            f"without authentication, the methods {methods.hex()} where names do",
            greeting(*methods) + login(b"who", b"ever") + CONNECT + IPV4,
            [METHOD_2, LOGIN_OK],
            connect("192.0.2.1", 80),
            prefers_login=True,
        )
        for methods in (b"\0\2", b"\2\0", b"\0\1\2")
    ),
    Case(
        "without authentication, a client without a user name where names make a difference",
        NO_LOGIN + CONNECT + IPV4,
        [METHOD_0],
        connect("192.0.2.1", 80),
        prefers_login=True,
    ),
    Case(
        "without authentication, a selector behind any name",
        greeting(0, 2) + login(b"who-session-x1-cc-DE", b"ever") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, selector=ExitSelector("x1", country="de")),
        prefers_login=True,
    ),
    Case(
        "without authentication, the selector of a client that offers only a login",
        greeting(2) + login(b"session-x1", b"") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, selector=ExitSelector("x1")),
    ),
    *(
        Case(
            f"without authentication and password, the name {name.decode()}",
            greeting(0, 2) + login(name, b"") + CONNECT + IPV4,
            [METHOD_2, LOGIN_OK],
            connect("192.0.2.1", 80),
            prefers_login=True,
        )
        for name in (b"web-session", b"vpn-exit", b"session-x-contry-de", b"svc-session-a-b")
    ),
    Case(
        "without authentication, any credentials of a client that offers only these",
        greeting(2) + login(b"who", b"ever") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80),
    ),
    Case(
        "without authentication, empty credentials",
        greeting(1, 2) + login(b"", b"") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80),
    ),
    Case(
        "selector of a user",
        greeting(0, 2) + login(b"customer-alice-sessid-x1", b"secret") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, "alice", ExitSelector("x1")),
        only_alice,
    ),
    Case(
        "254 methods",
        greeting(*range(1), *range(3, 256)) + CONNECT + IPV4,
        [METHOD_0],
        connect("192.0.2.1", 80),
    ),
    Case(
        "one method offered twice",
        greeting(0, 0) + CONNECT + IPV4,
        [METHOD_0],
        connect("192.0.2.1", 80),
    ),
    Case(
        "user and password",
        ALICE + CONNECT + NAME,
        [METHOD_2, LOGIN_OK],
        connect("example.com", 8080, "alice"),
        only_alice,
    ),
    Case(
        "with users, a user name is required even if no authentication is offered",
        greeting(0, 1, 2) + login(b"alice", b"secret") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, "alice"),
        only_alice,
    ),
    Case(
        "empty credentials that are right",
        greeting(2) + login(b"", b"") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, ""),
        lambda name, password: (name, password) == ("", b""),
    ),
    Case(
        "user and password of 255 bytes",
        greeting(2) + login(b"u" * 255, bytes(range(1, 256))) + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, "u" * 255),
        lambda name, password: (name, password) == ("u" * 255, bytes(range(1, 256))),
    ),
    Case(
        "user name in UTF-8",
        greeting(2) + login("zoë".encode(), b"") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, "zoë"),
        accept_all,
    ),
    Case(
        "user name that is no UTF-8, or would break a log line",
        greeting(2) + login(b"z\xeb\n\x1b[2J", b"") + CONNECT + IPV4,
        [METHOD_2, LOGIN_OK],
        connect("192.0.2.1", 80, r"z\xeb\n\x1b[2J"),
        accept_all,
    ),
    Case(
        "udp associate where it is served",
        NO_LOGIN + b"\x05\x03\x00\x01" + bytes(6),
        [METHOD_0],
        Request(Command.UDP_ASSOCIATE, Address("0.0.0.0", 0)),
        commands=ALL_COMMANDS,
    ),
    Case(
        "bind where it is served",
        NO_LOGIN + b"\x05\x02\x00" + IPV4,
        [METHOD_0],
        Request(Command.BIND, Address("192.0.2.1", 80)),
        commands=ALL_COMMANDS,
    ),
    Case(
        "a look-up of a name",
        NO_LOGIN + b"\x05\xf0\x00" + named(b"example.com", 42),
        [METHOD_0],
        Request(Command.RESOLVE, Address("example.com", 42)),
        commands=ALL_COMMANDS,
    ),
    Case(
        "a look-up of what is an address already",
        NO_LOGIN + b"\x05\xf0\x00" + IPV6,
        [METHOD_0],
        Request(Command.RESOLVE, Address("2001:db8::1", 443)),
        commands=ALL_COMMANDS,
    ),
    Case(
        "a look-up of an address",
        NO_LOGIN + b"\x05\xf1\x00" + IPV4,
        [METHOD_0],
        Request(Command.RESOLVE_PTR, Address("192.0.2.1", 80)),
        commands=ALL_COMMANDS,
    ),
    Case(
        "a look-up of an address that is sent as a name",
        NO_LOGIN + b"\x05\xf1\x00" + named(b"192.0.2.1", 0),
        [METHOD_0],
        Request(Command.RESOLVE_PTR, Address("192.0.2.1", 0)),
        commands=ALL_COMMANDS,
    ),
]


def refused_command(command: int, commands: Collection[Command] = CONNECT_ONLY) -> Case:
    return Case(
        f"command {command}",
        NO_LOGIN + bytes((5, command, 0)) + NAME,
        [METHOD_0, failure(7)],
        CommandNotSupported,
        commands=commands,
    )


def refused_name(what: str, name: bytes) -> Case:
    return Case(
        f"name with {what}",
        NO_LOGIN + CONNECT + named(name, 80),
        [METHOD_0, failure(1)],
        BadAddress,
    )


REFUSED = [
    Case("no methods", greeting(), [NO_METHOD], AuthenticationFailed),
    Case("no methods, with users", greeting(), [NO_METHOD], AuthenticationFailed, accept_all),
    Case("gssapi only", greeting(1), [NO_METHOD], AuthenticationFailed),
    Case("unknown methods", greeting(0x80, 0xFF), [NO_METHOD], AuthenticationFailed),
    Case(
        "no authentication, with users",
        greeting(0, 1),
        [NO_METHOD],
        AuthenticationFailed,
        accept_all,
    ),
    Case(
        "wrong password",
        greeting(2) + login(b"alice", b"Secret"),
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        only_alice,
    ),
    Case(
        "wrong user",
        greeting(2) + login(b"mallory", b"secret"),
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        only_alice,
    ),
    Case(
        "empty user",
        greeting(2) + login(b"", b"secret"),
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        only_alice,
    ),
    Case(
        "empty password",
        greeting(2) + login(b"alice", b""),
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        only_alice,
    ),
    Case(
        "empty user and password",
        greeting(2) + login(b"", b""),
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        accept_none,
    ),
    Case(
        "login of version 5",
        greeting(2) + b"\x05" + login(b"alice", b"secret")[1:],
        [METHOD_2, LOGIN_BAD],
        BadRequest,
        only_alice,
        decided_at=5,
    ),
    Case(
        "login of version 0, without authentication",
        greeting(2) + b"\x00" + login(b"alice", b"secret")[1:],
        [METHOD_2, LOGIN_BAD],
        BadRequest,
        decided_at=5,
    ),
    Case(
        "request of version 4",
        NO_LOGIN + b"\x04\x01\x00" + IPV4,
        [METHOD_0, failure(1)],
        BadRequest,
        decided_at=6,
    ),
    Case(
        "login where none was asked for",
        greeting(0) + login(b"alice", b"secret"),
        [METHOD_0, failure(1)],
        BadRequest,
        decided_at=6,
    ),
    Case(
        "invalid selector, without authentication",
        greeting(0, 2) + login(b"session-x-contry-de", b"any"),
        [METHOD_2, LOGIN_BAD],
        BadParameters,
        prefers_login=True,
    ),
    Case(
        "a reverse look-up of a name",
        NO_LOGIN + b"\x05\xf1\x00" + NAME,
        [METHOD_0, failure(1)],
        BadAddress,
        commands=ALL_COMMANDS,
    ),
    Case(
        "invalid selector of alice",
        greeting(2) + login(b"alice-sesion-x", b"secret"),
        [METHOD_2, LOGIN_BAD],
        BadParameters,
        only_alice,
    ),
    Case(
        "selector with a wrong password",
        greeting(2) + login(b"alice-sesion-x", b"guess"),
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        only_alice,
    ),
    refused_command(Command.BIND),
    refused_command(Command.UDP_ASSOCIATE),
    refused_command(Command.RESOLVE),
    refused_command(Command.RESOLVE_PTR),
    refused_command(0x00),
    refused_command(0x00, ALL_COMMANDS),
    refused_command(0x04, ALL_COMMANDS),
    refused_command(0xF2, ALL_COMMANDS),
    refused_command(0xFF, ALL_COMMANDS),
    *(
        Case(
            f"address type {kind}",
            NO_LOGIN + CONNECT + bytes((kind,)) + NAME[1:],
            [METHOD_0, failure(8)],
            AddressTypeNotSupported,
            decided_at=7,
        )
        for kind in (0, 2, 5, 0xFF)
    ),
    refused_name("nothing in it", b""),
    refused_name("a NUL", b"example.com\x00"),
    refused_name("a quote", b"exam'ple.com"),
    refused_name("a double quote", b'exam"ple.com'),
    refused_name("a control byte", b"example.com\x07"),
    refused_name("a line end", b"example.com\r\nX: y"),
    refused_name("a space", b"example .com"),
    refused_name("a zone", b"fe80::1%eth0"),
    refused_name("bytes that are no text", b"\xff\xfe"),
    refused_name("255 times nothing sensible", b"/" * 255),
    Case(
        "failed login before anything else was looked at",
        greeting(2) + login(b"alice", b"wrong") + b"\x05\x09\x00\x09",
        [METHOD_2, LOGIN_BAD],
        AuthenticationFailed,
        only_alice,
        decided_at=3 + 13,
    ),
]


class TestSocks5(Grammar):
    accepted = ACCEPTED
    refused = REFUSED

    def test_said_step_by_step_as_a_polite_client_does(self, case: Case, wire: Wire) -> None:
        """Whatever was sent ahead of its reply, the replies come in order."""
        client, inbound = wire
        greeted = 2 + case.sent[1]

        def feed() -> None:
            client.send(case.sent[:greeted])
            assert client.recv(2) == case.replies[0]
            client.send(case.sent[greeted:])

        check(case, run(inbound, case, feed))
        assert inbound.sends == case.replies


# --- clients that fail, and clients that are slow -------------------------------------------


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


@pytest.fixture
def ends() -> Iterator[Wire]:
    """The client's end of a TCP connection and the listener's."""
    with connected() as wire:
        yield wire


def test_a_client_that_resets_is_gone(ends: Wire) -> None:
    client, inbound = ends
    client.send(greeting(0))
    negotiation = gevent.spawn(negotiate, inbound, OPEN)
    assert client.recv(2) == METHOD_0
    reset(client)
    with pytest.raises(ClientGone):
        negotiation.get()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (NO_LOGIN + CONNECT + IPV4, ClientGone),  # the reply to the greeting can't be sent
        (greeting(), AuthenticationFailed),  # neither can this, but the cause is known
        (b"\x04\x09\x00\x50" + bytes(5), CommandNotSupported),
    ],
)
def test_a_reply_that_cannot_be_sent_is_no_other_error(
    sent: bytes, error: type[ClientError], ends: Wire
) -> None:
    client, inbound = ends
    client.send(sent)
    inbound.shutdown(std_socket.SHUT_WR)  # so that each send fails
    with pytest.raises(error):
        negotiate(inbound, OPEN)


def test_a_inbound_closed_meanwhile_ends_the_negotiation(ends: Wire) -> None:
    _client, inbound = ends
    negotiation = gevent.spawn(negotiate, inbound, OPEN)
    inbound.wanted.wait()
    inbound.close()
    with pytest.raises(ClientGone):
        negotiation.get()


def test_the_callers_timeout_passes_through(ends: Wire) -> None:
    client, inbound = ends
    client.send(NO_LOGIN)
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as timeout:
        negotiate(inbound, OPEN)
    assert caught.value is timeout


def test_a_client_that_is_too_slow_with_its_request_is_told_so(
    ends: Wire,
) -> None:
    """As gsocks.local bounds a handshake: the timeout is an error of the tree."""
    client, inbound = ends
    client.send(NO_LOGIN + CONNECT)
    late = HandshakeTimeout()
    with pytest.raises(HandshakeTimeout) as caught, gevent.Timeout(0.02, late):
        negotiate(inbound, OPEN)
    assert caught.value is late
    assert client.recv(100) == METHOD_0 + failure(1)


def test_the_password_is_in_no_message(ends: Wire) -> None:
    client, inbound = ends
    client.send(greeting(2) + login(b"alice", b"hunter2"))
    with pytest.raises(AuthenticationFailed) as caught:
        negotiate(inbound, Authenticator(only_alice))
    assert "alice" in str(caught.value)
    assert "hunter2" not in str(caught.value)


# --- answers --------------------------------------------------------------------------------


@pytest.fixture
def asked(ends: Wire) -> tuple[socket, Watched, Answer]:
    """A client that has asked for a connection, and how to answer it."""
    client, inbound = ends
    client.send(NO_LOGIN + CONNECT + NAME)
    negotiated = negotiate(inbound, OPEN)
    assert not isinstance(negotiated, SpeaksHttp)
    answer = negotiated[1]
    assert client.recv(100) == METHOD_0
    inbound.sends.clear()
    return client, inbound, answer


@pytest.mark.parametrize(
    ("bound", "reply"),
    [
        (Address("192.0.2.7", 40000), "05 00 00 01 c0000207 9c40"),
        (Address("2001:db8::7", 1), "05 00 00 04 20010db8000000000000000000000007 0001"),
    ],
)
def test_success_tells_the_bound_address_in_one_write(
    asked: tuple[socket, Watched, Answer], bound: Address, reply: str
) -> None:
    client, inbound, answer = asked
    answer.succeeded(bound, "direct")
    assert inbound.sends == [bytes.fromhex(reply)]
    assert client.recv(100) == bytes.fromhex(reply)


def kinds_of(kind: type[GsocksError]) -> Iterator[type[GsocksError]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from kinds_of(derived)


#: REP by cause; every error that isn't here is a general failure
REPLIES = {
    errors.Forbidden: 2,
    errors.Denied: 2,
    errors.NetworkUnreachable: 3,
    errors.HostUnreachable: 4,
    errors.NameNotFound: 4,
    errors.ConnectionRefused: 5,
    errors.ConnectTimeout: 6,
    errors.CommandNotSupported: 7,
    errors.AddressTypeNotSupported: 8,
    errors.AddressFamilyNotSupported: 8,
}


@pytest.mark.parametrize("kind", [*kinds_of(GsocksError)], ids=lambda kind: kind.__name__)
def test_failure_tells_its_cause_in_one_write_of_full_length(
    asked: tuple[socket, Watched, Answer], kind: type[GsocksError]
) -> None:
    client, inbound, answer = asked
    answer.failed(kind("because"))
    assert inbound.sends == [failure(REPLIES.get(kind, 1))]
    assert client.recv(100) == failure(REPLIES.get(kind, 1))


def test_telling_a_failure_to_a_client_that_has_gone_is_silent(
    asked: tuple[socket, Watched, Answer],
) -> None:
    _client, inbound, answer = asked
    inbound.shutdown(std_socket.SHUT_WR)
    answer.failed(errors.ConnectionRefused())
    inbound.close()
    answer.failed(errors.ConnectionRefused())


def test_telling_success_to_a_client_that_has_gone_is_a_stream_error(
    asked: tuple[socket, Watched, Answer],
) -> None:
    _client, inbound, answer = asked
    inbound.close()
    with pytest.raises(StreamError):
        answer.succeeded(Address("192.0.2.7", 40000), "direct")


# --- who speaks something else --------------------------------------------------------------

METHODS = b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH PROPFIND get !#$%&'*+-.^_`|~0"


@pytest.mark.parametrize("method", METHODS.split())
def test_what_begins_with_a_method_is_http_and_nothing_of_it_is_lost(
    ends: Wire, method: bytes
) -> None:
    client, inbound = ends
    said = method + b" http://example.com/ HTTP/1.1\r\n\r\n"
    client.sendall(said)
    assert negotiate(inbound, OPEN) == SpeaksHttp(said)
    assert inbound.sends == []


@pytest.mark.parametrize("first", range(256))
def test_each_first_byte_belongs_to_one_protocol_or_to_none(ends: Wire, first: int) -> None:
    client, inbound = ends
    client.send(bytes((first,)))
    client.shutdown(std_socket.SHUT_WR)
    token = chr(first) in "!#$%&'*+-.^_`|~0123456789" or (chr(first).isalpha() and first < 128)
    if token:
        assert negotiate(inbound, OPEN) == SpeaksHttp(bytes((first,)))
        return
    with pytest.raises(ClientError) as caught:
        negotiate(inbound, OPEN)
    assert type(caught.value) is (ClientGone if first in (4, 5) else BadRequest)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "TLS"),
        (b"\x00", "0x00"),
        (b"\r\nGET / HTTP/1.1\r\n", "0x0d"),
    ],
)
def test_a_stranger_is_told_to_the_inbounds_owner_by_what_it_looks_like(
    ends: Wire, sent: bytes, message: str
) -> None:
    client, inbound = ends
    client.send(sent)
    with pytest.raises(BadRequest, match=message) as caught:
        negotiate(inbound, OPEN)
    assert type(caught.value) is BadRequest
    assert inbound.sends == []


# --- anything -------------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.integers(0, 255), max_size=5).map(lambda methods: greeting(*methods)),
    st.builds(login, st.binary(max_size=20), st.binary(max_size=20)),
    st.builds(
        lambda command, name, port: bytes((5, command, 0)) + named(name, port),
        st.integers(0, 4),
        st.binary(max_size=20) | st.sampled_from([b"example.com", b"::1", b"1.2.3.4", b"xn--"]),
        st.integers(0, 65535),
    ),
    st.sampled_from([NO_LOGIN, ALICE, CONNECT + IPV4, CONNECT + IPV6, CONNECT + NAME]),
    st.builds(
        lambda command, ip, user, name: bytes((4, command, 0, 80)) + ip + user + b"\0" + name,
        st.integers(0, 3),
        st.sampled_from([bytes((192, 0, 2, 1)), bytes((0, 0, 0, 1)), bytes(4)]),
        st.binary(max_size=5),
        st.binary(max_size=5) | st.sampled_from([b"example.com\0", b"::1\0", b"\0"]),
    ),
)


@settings(max_examples=600)
@given(
    pieces=st.lists(PIECES, max_size=5),
    authenticate=st.sampled_from([None, only_alice, accept_all, accept_none]),
    commands=st.sampled_from([CONNECT_ONLY, ALL_COMMANDS]),
)
@example(pieces=[], authenticate=None, commands=CONNECT_ONLY)
def test_no_bytes_give_anything_but_a_request_or_a_client_error(
    pieces: list[bytes], authenticate: VerifyPassword | None, commands: Collection[Command]
) -> None:
    sent = b"".join(pieces)
    case = Case("anything", sent, [], ClientError, authenticate, commands)
    client, inbound = socketpair()
    with client, inbound:
        client.sendall(sent)
        client.shutdown(std_socket.SHUT_WR)
        result = run(inbound, case, lambda: None)
    if isinstance(result, ClientError):
        assert str(result).isprintable()
    elif isinstance(result, SpeaksHttp):
        assert sent.startswith(result.said)
        assert result.said[:1] > b" "
    else:
        request, _answer = result
        assert request.command in commands
        assert request.dest == Address.of(*request.dest)
        assert (request.user is None) is (authenticate is None)
        assert sent.endswith(request.payload)
