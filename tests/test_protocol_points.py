"""What docs/protocol.md decides where two implementers could differ, held at both of our ends.

The other end is written from the document (tests/support/other_end.py).
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.queue import Queue
from gevent.server import StreamServer
from gevent.socket import socket
from nacl.bindings import crypto_scalarmult_base

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.crypto import HELLO_HEAD_SIZE, Cipher, Initiator, KeyRing, Responder
from gsocks.errors import ExitFailed
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.pool import Pool
from gsocks.replay import ReplayGuard, now_ms
from gsocks.rotation.group import ExitGroup
from gsocks.server import RemoteServer
from gsocks.settings import Limits, PoolSettings, Timeouts, UdpSettings
from tests.support import other_end
from tests.support import protocol_document as document
from tests.support.datagrams import Association, association, udp_server
from tests.support.engine import (
    KEY,
    FakeExit,
    QuickExit,
    Refused,
    connect,
    direct,
    eventually,
    make_exit,
    make_server,
    read_exactly,
    read_reply,
    read_to_end,
    running_inbound,
    send_reset,
    serving,
    socks_request,
    through,
)
from tests.support.other_end import (
    DATA,
    DATAGRAM,
    FIN,
    NAMES,
    OPEN,
    OPENED,
    PAD,
    PING,
    PONG,
    RESET,
    SECRETBOX,
)
from tests.support.stream_contract import blocked
from tests.support.tunnel_parts import small_order_hello
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEST = Address("192.0.2.1", 80)
BOUND = Address("192.0.2.7", 50000)
NO_ADDRESS = b"\x01" + bytes(6)

#: seconds, of a timeout that a test waits for
SOON = 0.5

#: more bytes than all buffers between two ends hold
MORE_THAN_BUFFERS = 24 * 1024 * 1024

FrameOf = tuple[int, bytes]


class Peer(NamedTuple):
    """The document's end of a tunnel."""

    sock: socket
    sealing: other_end.Boxes
    opening: other_end.Boxes

    def send(self, *frames: FrameOf) -> None:
        self.sock.sendall(b"".join(self.sealing.frame(kind, body) for kind, body in frames))

    def receive(self) -> FrameOf:
        return self.opening.read_frame(partial(read_exactly, self.sock))

    def answer(self) -> int:
        """The code of the OPENED that comes next."""
        return self.bound()[0]

    def bound(self) -> tuple[int, str, int]:
        """Code, host and port of the OPENED that comes next."""
        kind, body = self.receive()
        assert kind == OPENED
        return other_end.read_answer(body)

    def sees(self) -> str:
        """What comes next: a frame, EOF or RST."""
        try:
            kind, body = self.receive()
        except ConnectionResetError:
            return "RST"
        except EOFError:
            return "EOF"
        return f"OPENED with code {body[0]:#04x}" if kind == OPENED else NAMES[kind]

    def is_given_up(self) -> bool:
        """Whether the other end ends the tunnel, and says no more than that before."""
        seen = self.sees()
        return (self.sees() if seen == "RESET" else seen) in ("EOF", "RST")


# --- our server, and a client by the document ---------------------------------------------------


def agreed_with(server: RemoteServer, client: other_end.Client, hello: bytes) -> Peer:
    """What comes of a hello that is answered."""
    sock = connect(server.bound)
    sock.sendall(hello)
    agreed = client.read_reply(partial(read_exactly, sock))
    return Peer(sock, agreed.sealing, agreed.opening)


@contextmanager
def client_of(server: RemoteServer) -> Iterator[Peer]:
    client = other_end.Client(KEY.raw(), os.urandom(32))
    peer = agreed_with(server, client, client.hello(now_ms(), SECRETBOX))
    with peer.sock:
        yield peer


@contextmanager
def client_of_ours(**options: Any) -> Iterator[Peer]:
    with running_inbound(make_server(**options)) as server, client_of(server) as peer:
        yield peer


@contextmanager
def stream_at_server(**options: Any) -> Iterator[tuple[Peer, socket]]:
    """A stream that our server has opened, and its destination's end."""
    accepted: AsyncResult[socket] = AsyncResult()
    over = Event()

    def hold(sock: socket) -> None:
        accepted.set(sock)
        over.wait()

    with serving(hold) as dest, client_of_ours(**options) as client:
        client.send(connect_to(dest))
        assert client.answer() == 0
        destination = accepted.get()
        assert destination is not None
        try:
            yield client, destination
        finally:
            over.set()


def connect_to(dest: Address) -> FrameOf:
    """An OPEN."""
    return OPEN, b"\x01" + dest.encode()


def named(name: str, port: int = 80) -> bytes:
    """The name as an address."""
    raw = name.encode()
    return bytes((0x03, len(raw))) + raw + port.to_bytes(2, "big")


# --- our local end, and a server by the document ------------------------------------------------


class TheirServer:
    """Agrees with whatever connects; the test has its tunnels in the order in which they came."""

    def __init__(self, features: int = 0) -> None:
        self.features = features
        self._listener = StreamServer(("127.0.0.1", 0), self._agree)
        self._tunnels: Queue[Peer] = Queue()
        self._over = Event()
        #: how many tunnels came
        self.count = 0

    def __enter__(self) -> TheirServer:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.stop()

    @property
    def bound(self) -> Address:
        return Address("127.0.0.1", self._listener.socket.getsockname()[1])

    def _agree(self, sock: socket, _: object) -> None:
        end = other_end.Server(KEY.raw(), os.urandom(32))
        end.read_hello(partial(read_exactly, sock))
        reply, sealing, opening = end.reply(SECRETBOX, features=self.features)
        sock.sendall(reply)
        self.count += 1
        self._tunnels.put(Peer(sock, sealing, opening))
        self._over.wait()  # the socket is closed when this returns

    def next(self) -> Peer:
        return self._tunnels.get(timeout=TOO_LONG)

    def asked(self, *answers: FrameOf) -> Peer:
        """The next tunnel, once it has its OPEN, and the answers have been sent."""
        peer = self.next()
        kind, _ = peer.receive()
        assert kind == OPEN
        peer.send(*answers)
        return peer


@contextmanager
def local_before(
    there: TheirServer, *, within: float = TOO_LONG, **options: Any
) -> Iterator[LocalServer]:
    """Our local end, which opens a tunnel to that server for each request."""
    exits = ExitGroup([make_exit(there.bound, pool_size=0)], ALLOW_ALL, timeout=within)
    with running_inbound(LocalServer(("127.0.0.1", 0), exits, **options)) as inbound:
        yield inbound


def opened(code: int = 0, bound: bytes = BOUND.encode()) -> FrameOf:
    return OPENED, bytes((code,)) + bound


@contextmanager
def stream_at_local(**options: Any) -> Iterator[tuple[socket, Peer]]:
    """A SOCKS client's connection through our local end, and the tunnel that carries it."""
    with TheirServer() as there, local_before(there, **options) as local:
        asked = gevent.spawn(there.asked, opened())
        with through(local.bound, DEST) as client:
            yield client, asked.get()


@contextmanager
def association_at_local(**options: Any) -> Iterator[tuple[Association, Peer]]:
    """The same of an association."""
    with TheirServer() as there, local_before(there, **options) as local:
        asked = gevent.spawn(there.asked, opened(bound=NO_ADDRESS))
        with association(local.bound) as mine:
            yield mine, asked.get()


# --- bodies of DATAGRAM that are none -----------------------------------------------------------

SOURCE = Address("192.0.2.53", 53)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"?",
        b"\x07" + SOURCE.encode() + b"an unknown type",
        SOURCE.encode()[:-1],
        Address("2001:db8::1", 53).encode()[:-1],
        named("example.com", 53) + b"from a name",
        named("no name", 53) + b"from none",
        named("", 53) + b"from none",
        b"\x03\xff" + b"x" * 100,
        b"\x03",
    ],
    ids=bytes.hex,
)
def test_what_is_no_datagram_is_dropped_at_local_and_the_association_goes_on(
    nonsense: bytes,
) -> None:
    with association_at_local() as (mine, server):
        mine.send(SOURCE, b"question")
        assert server.receive() == (DATAGRAM, SOURCE.encode() + b"question")
        server.send((DATAGRAM, nonsense), (DATAGRAM, SOURCE.encode() + b"answer"))
        assert mine.receive() == (SOURCE, b"answer")
        mine.send(SOURCE, b"and again")
        assert server.receive() == (DATAGRAM, SOURCE.encode() + b"and again")


def test_a_source_that_is_ipv4_mapped_is_the_ipv4_address_that_the_client_has_sent_to() -> None:
    with association_at_local() as (mine, server):
        mine.send(SOURCE, b"question")
        server.receive()
        mapped = b"\x04" + bytes(10) + b"\xff\xff" + SOURCE.encode()[1:]
        server.send((DATAGRAM, mapped + b"answer"))
        assert mine.receive() == (SOURCE, b"answer")


def test_what_is_no_datagram_is_dropped_at_a_server_and_the_association_goes_on() -> None:
    with udp_server() as there, client_of_ours() as client:
        client.send((OPEN, b"\x03" + NO_ADDRESS))
        assert client.answer() == 0
        good = there.encode() + b"question"
        for nonsense in (b"?", b"\x07" + good, named("no name") + good, there.encode()[:-1]):
            client.send((DATAGRAM, nonsense))
        client.send((DATAGRAM, good))
        assert client.receive() == (DATAGRAM, good)


# --- look-ups -----------------------------------------------------------------------------------


def looked_up_through(local: LocalServer, command: int = 0xF0) -> tuple[int, bytes]:
    """The reply of our local end to a SOCKS client's look-up, and what its answer is."""
    dest = named("host.example", 42) if command == 0xF0 else b"\x01\xc0\0\x02\x07\0\x2a"
    with connect(local.bound) as sock:
        sock.sendall(b"\x05\x01\0" + bytes((5, command, 0)) + dest)
        said = read_to_end(sock)
    assert said[:3] == b"\x05\0\x05"
    return said[3], said[5:]


def asked_to_look_up(peer: Peer) -> bytes:
    """What its OPEN asks for, without the padding."""
    kind, body = peer.receive()
    assert kind == OPEN
    return body[:1] + Address(*other_end.read_request(body)[1:]).encode()


def test_a_look_up_is_asked_for_in_a_tunnel_that_has_the_feature_and_ended_by_fin() -> None:
    with TheirServer(other_end.LOOK_UPS) as there, local_before(there) as local:
        found = Address("192.0.2.9", 0).encode()
        asking = gevent.spawn(looked_up_through, local)
        peer = there.next()
        assert asked_to_look_up(peer) == b"\xf0" + named("host.example", 42)
        peer.send(opened(bound=found))
        assert asking.get() == (0, found)
        assert peer.receive() == (FIN, b"")


def test_an_older_server_is_sent_no_look_up_and_the_client_is_refused() -> None:
    with TheirServer() as there, local_before(there) as local:
        for command in (0xF0, 0xF1):
            assert looked_up_through(local, command) == (7, b"\x01" + bytes(6))
            assert there.next().is_given_up()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (0xF0, named("host.example", 0)),
        (0xF0, Address("192.0.2.9", 80).encode()),
        (0xF1, Address("192.0.2.9", 0).encode()),
        (0xF1, named("no name", 0)),
        (0xF1, named("host.example", 1)),
        (0xF1, named("host.example", 0)[:-1]),
    ],
    ids=repr,
)
def test_an_answer_to_a_look_up_that_is_none_ends_the_tunnel(command: int, answer: bytes) -> None:
    with TheirServer(other_end.LOOK_UPS) as there, local_before(there) as local:
        asking = gevent.spawn(looked_up_through, local, command)
        there.asked(opened(bound=answer))
        assert asking.get() == (1, b"\x01" + bytes(6))


def test_a_client_without_the_feature_is_refused_a_look_up_and_its_tunnel_goes_on() -> None:
    with client_of_ours() as client:
        for command in (0xF0, 0xF1):
            client.send((OPEN, bytes((command,)) + Address("127.0.0.1", 0).encode()), (FIN, b""))
            assert client.answer() == 7
        client.send((PING, b""))
        assert client.receive()[0] == PONG


def test_a_refused_look_up_is_told_by_its_code() -> None:
    with TheirServer(other_end.LOOK_UPS) as there, local_before(there) as local:
        for code, reply in ((0x14, 4), (0x02, 2), (0x07, 7)):
            asking = gevent.spawn(looked_up_through, local)
            peer = there.asked(opened(code, NO_ADDRESS))
            assert asking.get() == (reply, b"\x01" + bytes(6))
            assert peer.receive() == (FIN, b"")


# --- what can be seen without the key -----------------------------------------------------------

_P = 2**255 - 19


def is_on_the_curve(public: bytes) -> bool:
    """Whether the number is the u of a point of Curve25519, as of every public key."""
    u = int.from_bytes(public, "little")
    square = (u**3 + 486662 * u**2 + u) % _P
    return pow(square, (_P - 1) // 2, _P) <= 1


def seeded(label: str, number: int) -> bytes:
    return hashlib.sha256(f"{label} {number}".encode()).digest()


def test_what_is_sent_of_a_public_key_is_on_the_curve_as_often_as_random_bytes_are() -> None:
    count, seen = 400, {"hello": 0, "reply": 0}
    for number in range(count):
        private, salt = seeded("private", number), seeded("salt", number)[:16]
        public = crypto_scalarmult_base(private)
        assert is_on_the_curve(public)
        hello = Initiator(KEY, Cipher.SECRETBOX, private, salt).hello(0)
        (found,) = KeyRing({"default": KEY}).candidates(hello[:HELLO_HEAD_SIZE])
        padding = found.rest - 11 - 16
        answering = Responder("default", KEY, public, padding, private, salt)
        answering.read(hello[HELLO_HEAD_SIZE:])
        reply, _ = answering.reply(Cipher.SECRETBOX)
        seen["hello"] += is_on_the_curve(hello[20:52])
        seen["reply"] += is_on_the_curve(reply[16:48])
    # the seeds are the same each time; six standard deviations
    assert all(abs(each - count / 2) < 60 for each in seen.values()), seen


# --- the end of the silence ---------------------------------------------------------------------


def test_a_stranger_that_is_still_sending_at_the_end_of_the_silence_sees_fin() -> None:
    def send_for_ever() -> None:
        try:
            while True:
                sock.sendall(bytes(65536))
        except OSError:
            pass

    server = make_server(timeouts=Timeouts(handshake=SOON))
    with running_inbound(server), connect(server.bound) as sock:
        sending = gevent.spawn(send_for_ever)
        assert sock.recv(1) == b""
        sending.get()  # the connection is closed all the same, in the end


# --- a direction that has ended while the other one goes on ---------------------------------------


def test_a_client_may_pad_behind_its_fin() -> None:
    with stream_at_server() as (client, destination):
        client.send((DATA, b"question"), (FIN, b""), (PAD, b"x" * 1000), (0x80, b"y"))
        assert read_to_end(destination) == b"question"
        client.send((PAD, b""), (0xFF, b""))
        destination.sendall(b"answer")
        assert client.receive() == (DATA, b"answer")
        destination.shutdown(std_socket.SHUT_WR)
        assert client.receive() == (FIN, b"")
        client.send((PAD, b""), (PING, b""))
        assert client.receive()[0] == PONG


VIOLATIONS_BEHIND_FIN = [(DATA, b"x"), (RESET, b""), (FIN, b""), (DATAGRAM, b"x"), (0x0A, b"")]


@pytest.mark.parametrize(
    "frame",
    [*VIOLATIONS_BEHIND_FIN, (OPEN, b"\x01" + DEST.encode()), (PING, b"")],
    ids=lambda frame: f"{frame[0]:#04x}",
)
@pytest.mark.parametrize("together", [True, False])
def test_another_frame_behind_its_fin_is_a_clients_violation(
    frame: FrameOf, together: bool
) -> None:
    with stream_at_server() as (client, destination):
        if together:
            client.send((FIN, b""), frame)
        else:
            client.send((FIN, b""))
            assert destination.recv(1) == b""
            client.send(frame)
        assert client.is_given_up()
        eventually(lambda: was_reset(destination))


def was_reset(sock: socket) -> bool:
    """Whether RST has come, behind an end too; nothing is sent to find that out."""
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


@pytest.mark.parametrize("end", [socket.close, send_reset], ids=["EOF", "RST"])
def test_a_client_that_leaves_behind_its_fin_is_noticed_at_once(
    end: Callable[[socket], None],
) -> None:
    with stream_at_server() as (client, destination):
        client.send((FIN, b""))
        assert destination.recv(1) == b""
        end(client.sock)
        eventually(lambda: was_reset(destination))


WITH_AND_WITHOUT_LIMIT = pytest.mark.parametrize(
    "limits", [Limits(), Limits(bandwidth_per_connection=1e6)], ids=["unlimited", "limited"]
)


@pytest.mark.parametrize(
    "frame",
    [*VIOLATIONS_BEHIND_FIN, (PAD, b""), (0x80, b"x"), (OPENED, b"\0" + BOUND.encode())],
    ids=lambda frame: f"{frame[0]:#04x}",
)
@pytest.mark.parametrize("together", [True, False])
@WITH_AND_WITHOUT_LIMIT
def test_any_frame_behind_its_fin_is_a_servers_violation(
    frame: FrameOf, together: bool, limits: Limits
) -> None:
    with stream_at_local(limits=limits) as (client, server):
        if together:
            server.send((FIN, b""), frame)
        else:
            server.send((FIN, b""))
            assert client.recv(1) == b""
            client.sendall(b"goes on")
            assert server.receive() == (DATA, b"goes on")
            server.send(frame)
        assert server.is_given_up()
        eventually(lambda: was_reset(client))


@pytest.mark.parametrize("end", [socket.close, send_reset], ids=["EOF", "RST"])
@WITH_AND_WITHOUT_LIMIT
def test_a_server_that_leaves_behind_its_fin_is_noticed_at_once(
    end: Callable[[socket], None], limits: Limits
) -> None:
    with stream_at_local(limits=limits) as (client, server):
        server.send((FIN, b""))
        assert client.recv(1) == b""
        end(server.sock)
        eventually(lambda: was_reset(client))


def test_a_tunnel_whose_server_sends_behind_both_fins_is_not_used_again() -> None:
    with TheirServer() as there:
        exit_ = make_exit(there.bound, pool_size=1)
        exits = ExitGroup([exit_], ALLOW_ALL)
        with running_inbound(LocalServer(("127.0.0.1", 0), exits)) as local:
            exit_.pool.wake()
            eventually(lambda: exit_.pool.ready == 1)
            asked = gevent.spawn(there.asked, opened(), (DATA, b"answer"))
            with through(local.bound, DEST) as client:
                server = asked.get()
                client.shutdown(std_socket.SHUT_WR)
                assert server.receive() == (FIN, b"")
                server.send((FIN, b""), (DATA, b"of another stream"))
                assert read_to_end(client) == b"answer"
            eventually(lambda: exit_.pool.ready >= 1)
            asked = gevent.spawn(there.asked, opened(), (DATA, b"another answer"))
            with through(local.bound, DEST) as client:
                assert read_exactly(client, 14) == b"another answer"
                assert asked.get() is not server
            assert server.sees() in ("EOF", "RST")


# --- what an expired timeout puts on the wire -----------------------------------------------------


def how_it_ends(sock: socket) -> str:
    """EOF or RST, after whatever comes before."""
    try:
        read_to_end(sock)
    except ConnectionResetError:
        return "RST"
    return "EOF"


def a_hello_that_does_not_come(_: pytest.MonkeyPatch) -> str:
    server = make_server(timeouts=Timeouts(handshake=SOON))
    with running_inbound(server), connect(server.bound) as sock:
        sock.sendall(b"half a hello")
        return how_it_ends(sock)


def a_reply_that_does_not_come(_: pytest.MonkeyPatch) -> str:
    ending: AsyncResult[str] = AsyncResult()
    with serving(lambda sock: ending.set(how_it_ends(sock))) as there:
        exit_ = make_exit(there, pool_size=0, reach_timeout=SOON)
        with pytest.raises(ExitFailed):
            exit_.pool.take()
        return str(ending.get())


def a_frame_that_does_not_come_whole(_: pytest.MonkeyPatch) -> str:
    with client_of_ours(timeouts=Timeouts(handshake=SOON)) as client:
        client.sock.sendall(client.sealing.frame(*connect_to(DEST))[:-1])
        return client.sees()


def a_server_that_is_not_connected(_: pytest.MonkeyPatch) -> str:
    exits = ExitGroup([FakeExit("silent")], ALLOW_ALL, timeout=SOON)
    with client_of_ours(exit_group=exits) as client:
        client.send(connect_to(DEST))
        return client.sees()


def a_client_that_is_not_answered(_: pytest.MonkeyPatch) -> str:
    with (
        TheirServer() as there,
        local_before(there, within=2 * SOON) as local,
        connect(local.bound) as client,
    ):
        client.sendall(socks_request(DEST))
        return there.asked().sees()


def a_refused_client_without_fin(_: pytest.MonkeyPatch) -> str:
    with client_of_ours(timeouts=Timeouts(half_closed=SOON)) as client:
        client.send((OPEN, b"\x77" + NO_ADDRESS))
        assert client.answer() == 0x07
        return client.sees()


def an_idle_tunnel_at_the_server(_: pytest.MonkeyPatch) -> str:
    with client_of_ours(timeouts=Timeouts(idle=SOON)) as client:
        client.send((PING, b""))
        assert client.receive()[0] == PONG
        return client.sees()


@contextmanager
def idle_tunnel_of_ours(**settings: Any) -> Iterator[Peer]:
    with TheirServer() as there:
        pool = PoolSettings(size=1, **settings)
        exit_ = TunnelExit(there.bound, KEY, Dialer(ALLOW_ALL, Resolver()), pool=pool)
        exit_.pool.wake()
        try:
            yield there.next()
        finally:
            exit_.close()


def an_idle_tunnel_at_the_client(_: pytest.MonkeyPatch) -> str:
    with idle_tunnel_of_ours(max_idle=SOON) as server:
        return server.sees()


def an_old_tunnel_at_the_client(_: pytest.MonkeyPatch) -> str:
    with idle_tunnel_of_ours(max_age=SOON) as server:
        return server.sees()


def a_silent_tunnel_at_the_client(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Pool, "ping_after", SOON)
    with idle_tunnel_of_ours() as server:
        return server.sees()


def a_ping_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Pool, "ping_after", SOON)
    monkeypatch.setattr(Pool, "ping_timeout", SOON)
    with idle_tunnel_of_ours() as server:
        assert server.sees() == "PING"
        return server.sees()


def a_peer_that_does_not_come_to_the_server(_: pytest.MonkeyPatch) -> str:
    with client_of_ours(timeouts=Timeouts(bind=SOON)) as client:
        client.send((OPEN, b"\x02" + Address("127.0.0.1", 0).encode()))
        assert client.answer() == 0
        return client.sees()


def bind_request(dest: Address) -> bytes:
    return b"\x05\x01\x00" + b"\x05\x02\x00" + dest.encode()


def a_peer_of_which_the_server_says_nothing(_: pytest.MonkeyPatch) -> str:
    with (
        TheirServer() as there,
        local_before(there, timeouts=Timeouts(bind=SOON)) as local,
        connect(local.bound) as client,
    ):
        client.sendall(bind_request(DEST))
        return there.asked(opened()).sees()


def an_association_without_datagrams(_: pytest.MonkeyPatch) -> str:
    with association_at_local(udp=UdpSettings(idle=SOON)) as (_mine, server):
        return server.sees()


def a_silent_stream(_: pytest.MonkeyPatch) -> str:
    with stream_at_server(timeouts=Timeouts(idle=SOON)) as (client, _destination):
        return client.sees()


def a_stream_whose_other_direction_has_ended(_: pytest.MonkeyPatch) -> str:
    with stream_at_server(timeouts=Timeouts(half_closed=SOON)) as (client, _destination):
        client.send((FIN, b""))
        return client.sees()


def a_stream_whose_own_direction_has_ended(_: pytest.MonkeyPatch) -> str:
    with stream_at_server(timeouts=Timeouts(half_closed=SOON)) as (client, destination):
        destination.shutdown(std_socket.SHUT_WR)
        assert client.sees() == "FIN"
        return client.sees()


EXPIRED: dict[str, Callable[[pytest.MonkeyPatch], str]] = {
    "server: from accept to the hello's last byte; also the end of the silence": (
        a_hello_that_does_not_come
    ),
    "client: from connect to the whole reply": a_reply_that_does_not_come,
    "server: from a frame's first byte to its last, between two streams": (
        a_frame_that_does_not_come_whole
    ),
    "server: from OPEN to OPENED": a_server_that_is_not_connected,
    "client: from OPEN to OPENED": a_client_that_is_not_answered,
    "server: from a refusal to the client's FIN": a_refused_client_without_fin,
    "server: an idle tunnel, in spite of PINGs": an_idle_tunnel_at_the_server,
    "client: an idle tunnel; MUST be less than the server's": an_idle_tunnel_at_the_client,
    "client: the age from which on a tunnel carries no other stream, at most": (
        an_old_tunnel_at_the_client
    ),
    "client: silence before a PING, at most": a_silent_tunnel_at_the_client,
    "client: from PING to PONG": a_ping_without_an_answer,
    "server: from the first OPENED of a BIND to the second": (
        a_peer_that_does_not_come_to_the_server
    ),
    "client: from the first OPENED of a BIND to the second": (
        a_peer_of_which_the_server_says_nothing
    ),
    "client: an association without a datagram in either direction": (
        an_association_without_datagrams
    ),
    "a stream without a byte in either direction": a_silent_stream,
    "the same, once the other end's direction has ended": a_stream_whose_other_direction_has_ended,
    "the same, once its own direction has ended": a_stream_whose_own_direction_has_ended,
}

TIMEOUTS = {row[0]: row[2] for row in document.table("timeout", "default", "then")}


def test_every_timeout_of_the_document_is_waited_for() -> None:
    assert EXPIRED.keys() == TIMEOUTS.keys()


@pytest.mark.parametrize("timeout", EXPIRED)
def test_an_expired_timeout_puts_on_the_wire_what_the_document_says(
    timeout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EXPIRED[timeout](monkeypatch) == TIMEOUTS[timeout]


# --- which answer wins ----------------------------------------------------------------------------

UNKNOWN, CONNECT, BIND, ASSOCIATE = b"\x77", b"\x01", b"\x02", b"\x03"
DENIED = Address("127.0.0.2", 0).encode()
NO_NAME = named("no name", 0)

#: by the row of the document: OPENs to which that row applies, and later ones too
OPENS = {
    "that ends before its command, address and port do": [
        b"",
        UNKNOWN,
        CONNECT,
        UNKNOWN + b"\x01\x7f\0\0\x02\0",
        CONNECT + NO_NAME[:-1],
        UNKNOWN + b"\x03",
        ASSOCIATE + NO_NAME[:-1],
        ASSOCIATE + NO_ADDRESS[:-1],
    ],
    "with an address type that doesn't exist (nothing behind it can be read)": [
        CONNECT + b"\x05",
        CONNECT + b"\x00" + bytes(20),
        UNKNOWN + b"\x05" + bytes(20),
        ASSOCIATE + b"\x02" + bytes(20),
    ],
    "with an invalid name (section 6), if it is no UDP_ASSOCIATE": [
        CONNECT + NO_NAME,
        UNKNOWN + NO_NAME,
        BIND + NO_NAME,
        CONNECT + named("", 0),
    ],
    "with a command that doesn't exist": [
        UNKNOWN + DENIED,
        b"\x00" + DENIED,
        b"\x04" + named("example.com"),
    ],
    "to a destination that the rules deny, if it is no UDP_ASSOCIATE": [
        CONNECT + DENIED,
        CONNECT + named("127.0.0.2", 0),
        BIND + DENIED,
    ],
    "with a command that the server doesn't serve": [
        BIND + DEST.encode(),
        ASSOCIATE + DENIED,
        ASSOCIATE + NO_NAME,
    ],
    "that is a CONNECT to port 0": [
        CONNECT + Address("127.0.0.1", 0).encode(),
        CONNECT + named("missing.invalid", 0),
    ],
}

ANSWERS = dict(document.table("an OPEN", "answer"))


def test_every_answer_of_the_document_is_asked_for() -> None:
    assert [*OPENS, "that fails"] == [*ANSWERS]


@pytest.mark.parametrize(
    ("row", "body"),
    [pytest.param(row, body, id=body.hex()) for row in OPENS for body in OPENS[row]],
)
def test_an_open_is_answered_by_the_first_line_that_applies(row: str, body: bytes) -> None:
    rules = Rules.parse(["deny 127.0.0.2", "allow all"])
    serves_connect_only = row == "with a command that the server doesn't serve"
    exits = ExitGroup([FakeExit("connects")], rules) if serves_connect_only else direct(rules)
    with client_of_ours(exit_group=exits) as client:
        client.send((OPEN, body))
        if ANSWERS[row] == "none: a violation":
            assert client.is_given_up()
            return
        assert client.bound() == (int(ANSWERS[row], 16), "0.0.0.0", 0)
        client.send((FIN, b""), (PING, b""))
        assert client.receive()[0] == PONG


def dest_of(address: bytes) -> tuple[int, str, int]:
    """What our server answers to a CONNECT there, by an exit that answers with the destination."""
    exits = ExitGroup([QuickExit("quick")], ALLOW_ALL)
    with client_of_ours(exit_group=exits) as client:
        client.send((OPEN, CONNECT + address))
        return client.bound()


#: by an example of the document: what it is
CANONICAL = {
    "Example.COM": "example.com",
    "example.com.": "example.com.",
    "192.0.2.1": "192.0.2.1",
    "2001:db8::1": "2001:db8::1",
    "[2001:db8::1]": "2001:db8::1",
}

NAMES_IN_THE_DOCUMENT = [
    (example, meaning)
    for names, meaning in document.table("received as a name", "what it is")
    for example in re.findall(r"`([^`]+)`", names)
]


@pytest.mark.parametrize(("name", "meaning"), NAMES_IN_THE_DOCUMENT)
def test_a_name_is_what_the_document_says(name: str, meaning: str) -> None:
    if meaning.startswith("invalid"):
        assert dest_of(named(name)) == (0x01, "0.0.0.0", 0)
    else:
        assert dest_of(named(name)) == (0, CANONICAL[name], 80)


@pytest.mark.parametrize("name", ["", ".", "a b", "a/b", "a\0", "a" * 64 + "." * 2, "-"])
def test_any_other_name_is_invalid(name: str) -> None:
    assert dest_of(named(name))[0] == 0x01


def test_an_ipv4_mapped_address_is_the_ipv4_address() -> None:
    mapped = b"\x04" + bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1, 0, 80))
    assert dest_of(mapped) == (0, "192.0.2.1", 80)
    assert dest_of(named("::ffff:192.0.2.1")) == (0, "192.0.2.1", 80)


def test_ours_takes_utf_8_for_the_name_that_it_is_in_ascii() -> None:
    assert dest_of(named("bücher.example")) == (0, "xn--bcher-kva.example", 80)
    raw = b"\x03\x02\xff\xfe\0\x50"
    assert dest_of(raw)[0] == 0x01


# --- the destination of an association ------------------------------------------------------------


@pytest.mark.parametrize(
    "dest",
    [
        NO_ADDRESS,
        DENIED,
        NO_NAME,
        named(""),
        named("127.1"),
        named("missing.invalid"),
        b"\x03\x02\xff\xfe\0\0",
        b"\x04" + bytes(18),
    ],
    ids=bytes.hex,
)
def test_an_association_is_served_whatever_its_open_has_for_a_destination(dest: bytes) -> None:
    rules = Rules.parse(["deny 127.0.0.2", "allow all"])
    with udp_server() as there, client_of_ours(exit_group=direct(rules)) as client:
        client.send((OPEN, ASSOCIATE + dest + b"padding"))
        assert client.bound() == (0, "0.0.0.0", 0)
        question = there.encode() + b"question"
        client.send((DATAGRAM, question))
        assert client.receive() == (DATAGRAM, question)


def test_where_a_client_sends_its_datagrams_from_is_not_told_to_the_server() -> None:
    with TheirServer() as there, local_before(there) as local:
        asked = gevent.spawn(there.next)
        announcing = gevent.spawn(_announce, local.bound)
        server = asked.get()
        kind, body = server.receive()
        assert (kind, other_end.read_request(body)) == (OPEN, (0x03, "0.0.0.0", 0))
        server.send(opened(bound=named("ignored.example", 7)))
        announcing.get()


def _announce(inbound: Address) -> None:
    with association(inbound, Address("192.0.2.9", 12345).encode()):
        pass


# --- codes whose low nibble is none ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reply"), [(0x10, 1), (0x20, 1), (0xF0, 1), (0x0F, 1), (0xF5, 5), (0xF8, 8)]
)
def test_only_the_code_zero_is_success(code: int, reply: int) -> None:
    with TheirServer() as there, local_before(there) as local:
        asked = gevent.spawn(there.asked, opened(code, NO_ADDRESS))
        with pytest.raises(Refused, match=f"^{reply}$"):
            through(local.bound, DEST)
        assert asked.get().receive() == (FIN, b"")


# --- a public key that none may use, and what stands behind a hello -------------------------------


def test_a_hello_with_a_point_that_makes_zero_is_a_strangers() -> None:
    server = make_server(timeouts=Timeouts(handshake=SOON))
    with running_inbound(server), connect(server.bound) as sock:
        sock.sendall(small_order_hello())
        assert read_to_end(sock) == b""


@pytest.mark.parametrize("behind", [b"x", bytes(20), bytes(1000)], ids=len)
def test_what_stands_behind_a_hello_is_the_first_box_and_can_not_open(behind: bytes) -> None:
    client = other_end.Client(KEY.raw(), os.urandom(32))
    with running_inbound(make_server()) as server:
        hello = client.hello(now_ms(), SECRETBOX)
        try:
            peer = agreed_with(server, client, hello + behind)
        except ConnectionResetError:
            return  # the end has overtaken the reply
        with peer.sock:
            assert peer.is_given_up()


# --- BIND -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1"])
def test_for_a_peer_the_server_listens_at_its_own_address_towards_it(host: str) -> None:
    towards = "::1" if host == "::1" else "127.0.0.1"
    with client_of_ours() as client:
        client.send((OPEN, BIND + Address(host, 20).encode()))
        code, where, port = client.bound()
        assert (code, where) == (0, towards)
        assert port != 0


def test_what_a_client_sends_while_its_peer_is_awaited_waits_in_the_kernel_and_arrives() -> None:
    chunk = bytes(65536)
    with client_of_ours() as client:
        client.send((OPEN, BIND + Address("127.0.0.1", 0).encode()))
        _, host, port = client.bound()

        def send_all() -> None:
            for _ in range(MORE_THAN_BUFFERS // len(chunk)):
                client.send((DATA, chunk))
            client.send((FIN, b""))

        sending = blocked(send_all)
        with connect(Address(host, port)) as peer:
            assert client.bound() == (0, *peer.getsockname())
            assert len(read_to_end(peer)) == MORE_THAN_BUFFERS
            sending.get()


def test_the_first_answer_to_a_bind_does_not_open_the_stream() -> None:
    with (
        TheirServer() as there,
        local_before(there) as local,
        connect(local.bound) as client,
    ):
        client.sendall(bind_request(DEST))
        asked = gevent.spawn(there.asked, opened(), (PAD, b""), (DATA, b"too early"))
        assert read_exactly(client, 2) == b"\x05\x00"
        assert read_reply(client) == BOUND
        with pytest.raises(Refused, match="1"):
            read_reply(client)
        assert asked.get().is_given_up()


# --- RESET and RST --------------------------------------------------------------------------------


def test_a_reset_is_seen_as_reset_or_rst_and_never_as_an_end() -> None:
    with stream_at_server() as (client, destination):

        def send_for_ever() -> None:
            try:
                while True:
                    client.send((DATA, bytes(65536)))
            except OSError:
                pass

        sending = blocked(send_for_ever)  # so that bytes wait unread at the server
        send_reset(destination)
        assert client.sees() in ("RESET", "RST")
        sending.get()


# --- replays across a restart ---------------------------------------------------------------------


def test_a_hello_of_a_clock_that_is_ahead_is_accepted_again_and_leads_to_no_tunnel() -> None:
    client = other_end.Client(KEY.raw(), os.urandom(32))
    hello = client.hello(now_ms() + 15_000, SECRETBOX)
    with running_inbound(make_server()) as server:
        first = agreed_with(server, client, hello)
        first.send((PING, b""))
        assert first.receive()[0] == PONG
        first.sock.close()
    recorded = Peer(first.sock, other_end.Boxes(first.sealing.key, SECRETBOX), first.opening)
    with running_inbound(make_server()) as restarted, connect(restarted.bound) as sock:
        sock.sendall(hello)
        read_exactly(sock, 48)  # it is answered, by another public key
        sock.sendall(recorded.sealing.frame(PING))
        assert how_it_ends(sock) in ("EOF", "RST")


def test_a_hello_of_a_clock_that_is_not_ahead_is_not_accepted_after_a_restart() -> None:
    client = other_end.Client(KEY.raw(), os.urandom(32))
    made = now_ms()
    hello = client.hello(made, SECRETBOX)
    guard = ReplayGuard(started_ms=made + 1)
    server = make_server(guard=guard, timeouts=Timeouts(handshake=SOON))
    with running_inbound(server), connect(server.bound) as sock:
        sock.sendall(hello)
        assert read_to_end(sock) == b""
    guard.close()
