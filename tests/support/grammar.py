"""What holds for every grammar that a client may speak at the door, as tests over cases.

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
from stream_contract import tcp_pair

from gsocks.errors import ClientError, ClientGone
from gsocks.handshake import CONNECT_ONLY, Answer, SpeaksHttp, negotiate
from gsocks.login import Authenticate, Login
from gsocks.request import Command, Request
from gsocks.stream import SocketStream, close_after_reply

TOO_LONG = 20


def only_alice(name: str, password: bytes) -> bool:
    return (name, password) == ("alice", b"secret")


def nobody(name: str, password: bytes) -> bool:
    return False


def anybody(name: str, password: bytes) -> bool:
    return True


class Case(NamedTuple):
    """What a client sends, and what must come of it."""

    name: str
    sent: bytes
    #: each of them in one write, in this order
    replies: list[bytes]
    outcome: Request | type[ClientError]
    authenticate: Authenticate | None = None
    commands: Collection[Command] = CONNECT_ONLY
    #: how many bytes must be there before the outcome is known; all of them if None
    decided_at: int | None = None

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


class Watched(socket):
    """A socket that tells what was sent with each call, and when somebody wants to receive."""

    def __init__(self, sock: socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.sends: list[bytes] = []
        self.wanted = Event()

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
        self.sends.append(bytes(data))
        return super().send(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:  # type: ignore[override]
        self.wanted.set()
        return super().recv(size, flags)


class Wire(NamedTuple):
    """The client's end of a TCP connection and the door's."""

    client: socket
    door: Watched


@contextmanager
def connected() -> Iterator[Wire]:
    client, accepted = tcp_pair()
    client.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
    with client, Watched(accepted) as door:
        yield Wire(client, door)


Result = tuple[Request, Answer] | SpeaksHttp | ClientError


def run(door: socket, case: Case, feed: Callable[[], object]) -> Result:
    """What negotiate makes of ``feed``, which runs beside it."""
    feeder = gevent.spawn(feed)
    result: Result
    try:
        result = negotiate(door, Login(case.authenticate, {"alice"}), case.commands)
    except ClientError as error:
        result = error
    feeder.kill()
    feeder.get()  # raises what it has raised
    return result


def check(case: Case, result: Result) -> None:
    if isinstance(case.outcome, Request):
        assert isinstance(result, tuple), result
        assert result[0]._replace(payload=b"") == case.outcome
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
        client, door = wire
        client.sendall(case.sent)
        check(case, run(door, case, lambda: None))
        assert door.sends == case.replies
        door.close()
        assert receive_all(client) == b"".join(case.replies)

    def test_said_byte_by_byte(self, case: Case, wire: Wire) -> None:
        client, door = wire
        sent = 0

        def feed() -> None:
            nonlocal sent
            for byte in case.sent:
                door.wanted.wait()  # what came before was taken, and more is waited for
                door.wanted.clear()
                sent += client.send(bytes((byte,)))

        check(case, run(door, case, feed))
        assert sent == (case.decided_at or len(case.sent))
        assert door.sends == case.replies
        door.close()
        assert receive_all(client) == b"".join(case.replies)

    @pytest.mark.parametrize("size", [1, 517, 10_000, 100_000])
    def test_what_comes_behind_the_request_is_payload(
        self, accepted_case: Case, size: int, wire: Wire
    ) -> None:
        client, door = wire
        payload = bytes(range(256)) * (size // 256) + bytes(range(size % 256))

        def send() -> None:
            client.sendall(accepted_case.sent + payload)
            client.shutdown(std_socket.SHUT_WR)

        sender = gevent.spawn(send)
        result = run(door, accepted_case, lambda: None)
        check(accepted_case, result)
        assert isinstance(result, tuple)
        assert result[0].payload == payload[: len(result[0].payload)]
        if size <= 517:  # so much is on its way together with the request
            assert result[0].payload == payload

        stream = SocketStream(door, result[0].payload)
        received = b""
        while part := stream.read():
            received += part
        assert received == payload
        sender.get()

    def test_a_refusal_arrives_although_more_was_sent(self, refused_case: Case, wire: Wire) -> None:
        client, door = wire
        sender = gevent.spawn(client.sendall, refused_case.sent + bytes(100_000))
        check(refused_case, run(door, refused_case, lambda: None))
        closing = gevent.spawn(close_after_reply, door, TOO_LONG)
        assert receive_all(client) == b"".join(refused_case.replies)
        sender.get()
        client.close()
        closing.get()

    def test_a_client_that_hangs_up_early_is_gone_at_every_byte(self, case: Case) -> None:
        for end in range(case.decided_at or len(case.sent)):
            client, door = socketpair()
            with client, door:
                client.send(case.sent[:end])
                client.shutdown(std_socket.SHUT_WR)
                with pytest.raises(ClientGone):
                    negotiate(door, Login(case.authenticate, {"alice"}), case.commands)
