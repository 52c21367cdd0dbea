"""Success told early (``fast_open``): what it saves, and what becomes of it if it was not true."""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent.socket import socket, socketpair

from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import ConnectionRefused, ExitFailed, StreamClosed, StreamError, Withdrawn
from gsocks.exits.base import Connected
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.stream import Reader, Stream, reset
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.streams import TunnelStream
from tests.support.engine import (
    FakeExit,
    Forwarder,
    Refused,
    Seen,
    ask_echo,
    connect,
    direct,
    eventually,
    is_reset,
    make_exit,
    make_server,
    read_answer,
    read_exactly,
    read_to_end,
    running_inbound,
    serving,
    socks_request,
    through,
)
from tests.support.ports import free_port
from tests.support.stream_contract import Pair, StreamContract, blocked
from tests.support.tunnel_parts import BOUND, DEST, ByHand, opened, sessions, tunnels
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")

NOWHERE = Address("127.0.0.1", 1)
MIN_UPTIME = Request(Command.CONNECT, DEST, fast_open=True)


class Parts:
    """Both ends, with a path between them that counts how often the word has passed."""

    def __init__(self, stack: ExitStack, *, rules: Rules = ALLOW_ALL, **options: Any) -> None:
        self.at_local, self.at_server = Seen(), Seen()
        self.server = stack.enter_context(running_inbound(make_server(observer=self.at_server)))
        self.path = stack.enter_context(Forwarder(self.server.bound))
        # one more than is used at a time, so that none is opened meanwhile
        self.exit = make_exit(self.path.bound, pool_size=2)
        settings = {"observer": self.at_local, "fast_open": True, **options}
        inbound = LocalServer(("127.0.0.1", 0), ExitGroup([self.exit], rules), **settings)
        self.inbound = stack.enter_context(running_inbound(inbound))
        self.exit.pool.wake()
        eventually(lambda: self.exit.pool.ready == 2)
        self.path.turns.clear()


Start = Callable[..., Parts]


@pytest.fixture
def start(nothing_left: None) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **options: Parts(stack, **options)


def http_connect(inbound: Address, dest: Address) -> socket:
    sock = connect(inbound)
    sock.sendall(f"CONNECT {dest} HTTP/1.1\r\nHost: {dest}\r\n\r\n".encode())
    assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    return sock


def socks4(inbound: Address, dest: Address) -> socket:
    ip = dest.ip
    assert ip is not None
    sock = connect(inbound)
    sock.sendall(b"\x04\x01" + dest.port.to_bytes(2, "big") + ip.packed + b"\0")
    assert read_exactly(sock, 8) == b"\x00\x5a" + bytes(6), "granted, from no address"
    return sock


# --- what it saves ----------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [through, socks4, http_connect])
def test_an_answer_takes_one_round_trip(
    start: Start, echo_server: Address, ask: Callable[[Address, Address], socket]
) -> None:
    parts = start()
    parts.exit.first_words_within = TOO_LONG  # whatever else this machine has to do
    with ask(parts.inbound.bound, echo_server) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        assert parts.path.turns == ["up", "down"]


def test_without_it_an_answer_takes_two_round_trips(start: Start, echo_server: Address) -> None:
    parts = start(fast_open=False)
    with through(parts.inbound.bound, echo_server) as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        assert parts.path.turns == ["up", "down", "up", "down"]


def test_what_came_behind_the_request_travels_with_it(start: Start, echo_server: Address) -> None:
    parts = start()
    with through(parts.inbound.bound, echo_server, b"hello") as sock:
        assert read_exactly(sock, 5) == b"hello"
        assert parts.path.turns == ["up", "down"]


def test_a_destination_may_speak_first(start: Start) -> None:
    parts = start()
    greets = serving(lambda sock: sock.sendall(b"220 ready\r\n"))
    with greets as target, through(parts.inbound.bound, target) as sock:
        assert read_to_end(sock) == b"220 ready\r\n"


def test_more_than_a_frame_arrives_whole_and_so_does_the_end_behind_it(
    start: Start, echo_server: Address
) -> None:
    parts = start()
    data = bytes(range(256)) * 1000
    assert ask_echo(parts.inbound.bound, echo_server, data) == data
    for seen in (parts.at_local, parts.at_server):
        record = seen.next()
        assert (record.outcome, record.up, record.down) == ("ok", len(data), len(data))


def test_the_tunnel_is_used_again(start: Start, echo_server: Address) -> None:
    parts = start()
    for _ in range(5):
        assert ask_echo(parts.inbound.bound, echo_server, b"again") == b"again"
        eventually(lambda: parts.exit.pool.ready == 2)
    assert parts.path.connections == 2


# --- what is told the client ------------------------------------------------------------------


def test_success_comes_from_no_address_because_none_is_known_yet(
    start: Start, echo_server: Address
) -> None:
    with connect(start().inbound.bound) as sock:
        sock.sendall(socks_request(echo_server))
        assert read_answer(sock) == UNSPECIFIED


def say_nothing(sock: socket) -> None:
    pass


def say_something(sock: socket) -> None:
    sock.sendall(b"hello")


def end_at_once(sock: socket) -> None:
    sock.shutdown(std_socket.SHUT_WR)


def say_all(sock: socket) -> None:
    say_something(sock)
    end_at_once(sock)


@pytest.mark.parametrize("act", [say_nothing, say_something, end_at_once, say_all])
def test_a_success_that_was_not_true_is_a_reset_and_the_log_has_the_cause(
    start: Start, act: Callable[[socket], object]
) -> None:
    parts = start()
    with through(parts.inbound.bound, NOWHERE) as sock:
        act(sock)
        assert is_reset(sock)
    for seen in (parts.at_local, parts.at_server):
        record = seen.next()
        assert (record.outcome, record.dest) == ("refused", str(NOWHERE))
        assert record.detail
    eventually(lambda: parts.inbound.connections == 0)


def test_a_tunnel_survives_a_success_that_was_not_true(start: Start, echo_server: Address) -> None:
    parts = start()
    for act in (say_nothing, say_something, end_at_once, say_all):
        with through(parts.inbound.bound, NOWHERE) as sock:
            act(sock)
            assert is_reset(sock)
        eventually(lambda: parts.exit.pool.ready == 2)
    assert ask_echo(parts.inbound.bound, echo_server, b"again") == b"again"
    assert parts.path.connections == 2


def test_what_the_rules_here_forbid_is_told_as_such(start: Start) -> None:
    parts = start(rules=Rules.parse(["deny 127.0.0.0/8", "allow all"]))
    with pytest.raises(Refused) as refused:
        through(parts.inbound.bound, NOWHERE)
    assert refused.value.args == (2,)


def test_success_is_not_told_before_there_is_a_tunnel(echo_server: Address) -> None:
    """Whether the server can be reached is known in time, so another exit may serve."""
    seen = Seen()
    down = make_exit(Address("127.0.0.1", free_port()), pool_size=0)
    ways = ExitGroup([down, *exits_of(direct())], ALLOW_ALL)
    with running_inbound(
        LocalServer(("127.0.0.1", 0), ways, fast_open=True, observer=seen)
    ) as inbound:
        assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
        assert seen.next().exit == "direct"


def exits_of(ways: ExitGroup) -> list[Any]:
    return [member.exit for member in ways.roster]


def test_an_exit_without_tunnels_tells_the_truth_as_ever() -> None:
    inbound = LocalServer(("127.0.0.1", 0), direct(), fast_open=True)
    with running_inbound(inbound), pytest.raises(Refused) as refused:
        through(inbound.bound, NOWHERE)
    assert refused.value.args == (5,)


class BindingExit(FakeExit):
    """Hears what it is asked, and fails."""

    def __init__(self) -> None:
        super().__init__("hears")
        self.heard: list[Request] = []

    def connect(self, request: Request) -> Connected:
        self.heard.append(request)
        raise ExitFailed("has heard enough")

    associate = bind = connect


@pytest.mark.parametrize("command", [Command.BIND, Command.UDP_ASSOCIATE])
def test_only_connect_is_opened_early(command: Command) -> None:
    way = BindingExit()
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup([way], ALLOW_ALL), fast_open=True)
    with running_inbound(inbound):
        for asked in (command, Command.CONNECT):
            with connect(inbound.bound) as sock, pytest.raises(Refused):
                sock.sendall(b"\x05\x01\x00\x05" + bytes((asked, 0)) + NOWHERE.encode())
                read_answer(sock)
    assert [request.fast_open for request in way.heard] == [False, True]


def test_a_request_for_a_page_is_not_opened_early() -> None:
    way = BindingExit()
    inbound = LocalServer(("127.0.0.1", 0), ExitGroup([way], ALLOW_ALL), fast_open=True)
    with running_inbound(inbound), connect(inbound.bound) as sock:
        sock.sendall(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 502 ")
    assert [request.fast_open for request in way.heard] == [False]


def test_a_client_that_leaves_before_it_says_anything_costs_the_server_nothing(
    start: Start,
) -> None:
    parts = start()
    parts.exit.first_words_within = TOO_LONG
    with through(parts.inbound.bound, NOWHERE) as sock:
        reset(sock)
        assert parts.at_local.next().outcome == "client_reset"
    assert parts.exit.pool.ready == 2
    assert parts.path.turns == []
    assert parts.at_server.all == []


# --- the stream -------------------------------------------------------------------------------


@contextmanager
def early_stream(
    kind: std_socket.SocketKind = std_socket.SOCK_STREAM, **options: Any
) -> Iterator[tuple[Stream, ByHand, TunnelExit]]:
    """A stream for which nothing has been sent; its server is by hand."""
    near, far = socketpair(std_socket.AF_UNIX, kind)
    at_client, at_server = sessions()
    way = make_exit(NOWHERE, pool_size=1, **options)
    way.pool.give_back(ClientTunnel(near, at_client))
    with near, far:
        connected = way.connect(MIN_UPTIME)
        assert connected.bound == UNSPECIFIED
        yield connected.stream, ByHand(far, at_server), way
        connected.stream.abort()
        way.close()


def in_one_write(server: ByHand) -> list[tuple[int, bytes]]:
    """The frames of one write, over a socket that keeps writes apart."""
    data = Reader(OneRecord(server.sock.recv(1 << 20)))  # type: ignore[arg-type]
    frames = []
    while True:
        header = data.exactly(4 + server.session.overhead)
        header = server.session.open(header)
        length = int.from_bytes(header[1:], "big")
        sealed = data.exactly(length + server.session.overhead) if length else b""
        frames.append((header[0], server.session.open(sealed) if length else b""))
        if data.at_boundary:
            return frames


class OneRecord:
    """``recv`` of what has been received."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, _: int) -> bytes:
        data, self._data = self._data, b""
        return data


def test_the_first_bytes_leave_in_one_write_with_the_request() -> None:
    with early_stream(std_socket.SOCK_SEQPACKET) as (stream, server, _):
        stream.write(b"hello")
        (kind, body), *behind = in_one_write(server)
        assert kind == Frame.OPEN
        assert body[1:].startswith(DEST.encode())
        assert behind == [(Frame.DATA, b"hello")]


def test_so_does_the_end_of_a_client_that_says_nothing() -> None:
    with early_stream(std_socket.SOCK_SEQPACKET) as (stream, server, _):
        stream.write_eof()
        assert [kind for kind, _ in in_one_write(server)] == [Frame.OPEN, Frame.FIN]


def test_nothing_is_written_behind_an_end_that_left_with_the_request() -> None:
    with early_stream() as (stream, _, _):
        stream.write_eof()
        stream.write_eof()
        with pytest.raises(StreamClosed):
            stream.write(b"too late")


def test_the_request_leaves_once_whichever_side_is_first() -> None:
    with early_stream() as (stream, server, way):
        way.first_words_within = 0.0
        reading = gevent.spawn(stream.read)
        assert server.receive()[0] == Frame.OPEN
        stream.write(b"later")
        assert server.receive() == (Frame.DATA, b"later")
        server.send(Frame.OPENED, opened())
        server.send(Frame.DATA, b"answer")
        assert reading.get() == b"answer"


@contextmanager
def asked() -> Iterator[tuple[Stream, ByHand, TunnelExit]]:
    """A stream for which the request has left."""
    with early_stream() as (stream, server, way):
        stream.write(b"hello")
        assert [server.receive()[0] for _ in range(2)] == [Frame.OPEN, Frame.DATA]
        yield stream, server, way


def test_reader_and_writer_are_told_why_there_is_no_stream() -> None:
    with asked() as (stream, server, way):
        server.send(Frame.OPENED, opened(ConnectionRefused.code))
        for call in (stream.read, lambda: stream.write(b"more"), stream.read, stream.write_eof):
            with pytest.raises(Withdrawn) as told:
                call()
            assert (told.value.word, type(told.value.cause)) == ("refused", ConnectionRefused)
        assert server.receive() == (Frame.FIN, b""), "once, and then the tunnel is as new"
        assert way.pool.ready == 1


def test_a_request_is_not_repeated_once_bytes_have_left_with_it() -> None:
    with asked() as (stream, server, way):
        server.end()
        with pytest.raises(Withdrawn) as told:
            stream.read()
        assert told.value.word == "exit_failed"
        assert (way.pool.ready, way.pool.misses) == (0, 0)


def test_a_server_that_says_nothing_has_as_long_as_for_any_request() -> None:
    with asked() as (stream, _, way):
        way._timeout = 0.01
        with pytest.raises(Withdrawn) as told:
            stream.read()
        assert told.value.word == "connect_timeout"
        assert way.pool.ready == 0, "an answer is still due"


def test_a_refusal_in_the_middle_of_a_frame_ends_the_tunnel() -> None:
    with asked() as (stream, server, way):
        writing = blocked(lambda: stream.write(bytes(8 << 20)))
        server.send(Frame.OPENED, opened(ConnectionRefused.code))
        with pytest.raises(Withdrawn):
            stream.read()
        writing.join()
        assert isinstance(writing.exception, StreamError)
        assert way.pool.ready == 0


@pytest.mark.parametrize("reading", [True, False])
def test_a_stream_that_is_given_up_before_its_request_has_left_was_never_asked_for(
    reading: bool,
) -> None:
    with early_stream() as (stream, _, way):
        way.first_words_within = TOO_LONG
        reader = blocked(stream.read) if reading else None
        stream.abort()
        assert way.pool.ready == 1
        for call in (stream.read, lambda: stream.write(b"x"), stream.write_eof):
            with pytest.raises(StreamClosed):
                call()
        if reader is not None:
            with pytest.raises(StreamClosed):
                reader.get()


def test_one_that_is_given_up_before_its_answer_is_reset_at_the_server() -> None:
    with asked() as (stream, server, way):
        reader = blocked(stream.read)
        stream.abort()
        assert server.receive()[0] == Frame.RESET
        with pytest.raises(StreamClosed):
            reader.get()
        assert way.pool.ready == 0


class TestEarlyStream(StreamContract):
    """Its answer has not been read when a test begins."""

    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        with tunnels() as (client, server):
            way = make_exit(NOWHERE, pool_size=1)
            way.pool.give_back(client)
            near = way.connect(MIN_UPTIME).stream
            near.write(b"first")
            assert server.accept() is not None
            server.succeeded(BOUND)
            far = TunnelStream(server, lambda _: None)
            assert far.read() == b"first"
            yield near, far
            way.close()
