"""Properties of every grammar that a client may speak to the listener, as tests over cases.

class TestMyGrammar(Grammar):
    accepted = ACCEPTED
    refused = REFUSED
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket, socketpair

from gsocks.access.login import Authenticator, VerifyPassword
from gsocks.errors import ClientError, ClientGone
from gsocks.handshake import CONNECT_ONLY, Answer, SpeaksHttp, negotiate
from gsocks.request import Command, Request
from gsocks.stream import SocketStream, close_after_reply
from tests.support.stream_contract import tcp_pair
from tests.support.waiting import TOO_LONG


def only_alice(name: str, password: bytes) -> bool:
    return (name, password) == ("alice", b"secret")


def accept_none(name: str, password: bytes) -> bool:
    return False


def accept_all(name: str, password: bytes) -> bool:
    return True


class Case(NamedTuple):
    """What a client sends, and what must come of it."""

    name: str
    sent: bytes
    #: each of them in one write, in this order
    replies: list[bytes]
    outcome: Request | type[ClientError]
    authenticate: VerifyPassword | None = None
    commands: Collection[Command] = CONNECT_ONLY
    #: how many bytes must be there before the outcome is known; all of them if None
    decided_at: int | None = None
    #: see Authenticator
    prefers_login: bool = False

    @property
    def login(self) -> Authenticator:
        return Authenticator(self.authenticate, {"alice"}, prefers_login=self.prefers_login)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


class Watched(socket):
    """A socket that records the bytes of each send, and each receive."""

    def __init__(self, sock: socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.sends: list[bytes] = []
        self.wanted = Event()

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        self.sends.append(bytes(data))
        return super().send(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.wanted.set()
        return super().recv(size, flags)


class Wire(NamedTuple):
    """The client's end of a TCP connection and the listener's."""

    client: socket
    inbound: Watched


@contextmanager
def connected() -> Iterator[Wire]:
    client, accepted = tcp_pair()
    client.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
    with client, Watched(accepted) as inbound:
        yield Wire(client, inbound)


Result = tuple[Request, Answer] | SpeaksHttp | ClientError


def run(inbound: socket, case: Case, feed: Callable[[], object]) -> Result:
    """What negotiate makes of ``feed``, which runs beside it."""
    feeder = gevent.spawn(feed)
    result: Result
    try:
        result = negotiate(inbound, case.login, case.commands)
    except ClientError as error:
        result = error
    feeder.kill()
    feeder.get()  # raises what it has raised
    return result


def accepted(result: Result) -> Request:
    assert not isinstance(result, (SpeaksHttp, ClientError)), result
    return result[0]


def check(case: Case, result: Result) -> None:
    if isinstance(case.outcome, Request):
        assert accepted(result)._replace(payload=b"") == case.outcome
    else:
        assert type(result) is case.outcome


def receive_all(client: socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


class Grammar:
    """Each test is one sentence about all cases, or about those that are accepted or refused."""

    accepted: ClassVar[list[Case]]
    refused: ClassVar[list[Case]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cases = {
            "case": self.accepted + self.refused,
            "accepted_case": self.accepted,
            "refused_case": self.refused,
        }
        for name in cases.keys() & set(metafunc.fixturenames):
            metafunc.parametrize(name, cases[name], ids=str)

    @pytest.fixture(autouse=True)
    def _never_hangs(self) -> Iterator[None]:
        with gevent.Timeout(TOO_LONG):
            yield

    @pytest.fixture
    def wire(self) -> Iterator[Wire]:
        with connected() as wire:
            yield wire

    def test_said_in_one_write(self, case: Case, wire: Wire) -> None:
        client, inbound = wire
        client.sendall(case.sent)
        check(case, run(inbound, case, lambda: None))
        assert inbound.sends == case.replies
        inbound.close()
        assert receive_all(client) == b"".join(case.replies)

    def test_said_byte_by_byte(self, case: Case, wire: Wire) -> None:
        client, inbound = wire
        sent = 0

        def feed() -> None:
            nonlocal sent
            for byte in case.sent:
                inbound.wanted.wait()  # what came before was taken, and more is waited for
                inbound.wanted.clear()
                sent += client.send(bytes((byte,)))

        check(case, run(inbound, case, feed))
        assert sent == (case.decided_at or len(case.sent))
        assert inbound.sends == case.replies
        inbound.close()
        assert receive_all(client) == b"".join(case.replies)

    @pytest.mark.parametrize("size", [1, 517, 10_000, 100_000])
    def test_what_comes_behind_the_request_is_payload(
        self, accepted_case: Case, size: int, wire: Wire
    ) -> None:
        client, inbound = wire
        payload = bytes(range(256)) * (size // 256) + bytes(range(size % 256))

        def send() -> None:
            client.sendall(accepted_case.sent + payload)
            client.shutdown(std_socket.SHUT_WR)

        sender = gevent.spawn(send)
        result = run(inbound, accepted_case, lambda: None)
        check(accepted_case, result)
        early = accepted(result).payload
        assert early == payload[: len(early)]
        if size <= 517:  # so much is on its way together with the request
            assert early == payload

        stream = SocketStream(inbound, early)
        received = b""
        while part := stream.read():
            received += part
        assert received == payload
        sender.get()

    def test_a_refusal_arrives_although_more_was_sent(self, refused_case: Case, wire: Wire) -> None:
        client, inbound = wire
        sender = gevent.spawn(client.sendall, refused_case.sent + bytes(100_000))
        check(refused_case, run(inbound, refused_case, lambda: None))
        closing = gevent.spawn(close_after_reply, inbound, TOO_LONG)
        assert receive_all(client) == b"".join(refused_case.replies)
        sender.get()
        client.close()
        closing.get()

    def test_a_client_that_hangs_up_early_is_gone_at_every_byte(self, case: Case) -> None:
        for end in range(case.decided_at or len(case.sent)):
            client, inbound = socketpair()
            with client, inbound:
                client.send(case.sent[:end])
                client.shutdown(std_socket.SHUT_WR)
                with pytest.raises(ClientGone):
                    negotiate(inbound, case.login, case.commands)
