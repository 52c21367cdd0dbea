"""Tunnels over TLS and WebSocket are tunnels: at both ends, as programs, and behind HAProxy."""

from __future__ import annotations

import hashlib
import os
import socket as std_socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent.ssl
import pytest
from gevent.socket import socket
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, Ping, Pong

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.crypto import Cipher
from gsocks.errors import ConfigError, ExitFailed, Truncated
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.tunnel import TunnelExit
from gsocks.local import LocalServer
from gsocks.observe import Record
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.server import RemoteServer
from gsocks.settings import PoolSettings, Timeouts, TransportSettings
from gsocks.stream import scratch_of_this_hub
from gsocks.transport.options import OVER_TLS, OVER_WEBSOCKET
from gsocks.transport.server import ServerTransport
from gsocks.transport.websocket import WebSocketServer
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.streams import TunnelStream
from tests.support.datagrams import udp_server
from tests.support.engine import (
    KEY as SHARED,
)
from tests.support.engine import (
    Forwarder,
    Seen,
    ask_echo,
    connect,
    echo,
    eventually,
    gather,
    make_server,
    running_inbound,
    serving,
    through,
)
from tests.support.stream_contract import StreamContract
from tests.support.transports import KINDS, NAME, PATH, Certificates, layered_tunnels
from tests.support.tunnel_parts import CONNECT, hello_from, open_stream

pytestmark = pytest.mark.usefixtures("never_hangs")

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


# --- a stream in a tunnel over layers is a stream ---------------------------------------------

Streams = tuple[TunnelStream, TunnelStream]


class TestTunnelStreamOverLayers(StreamContract):
    @pytest.fixture(params=KINDS)
    def pair(self, request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Streams]:
        with layered_tunnels(request.param, certificates) as (client, server):
            yield open_stream(client, server)


class TestTunnelStreamOverLayersSeenFromTheServer(StreamContract):
    @pytest.fixture(params=KINDS)
    def pair(self, request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Streams]:
        with layered_tunnels(request.param, certificates, Cipher.AEGIS256) as (client, server):
            near, far = open_stream(client, server)
            yield far, near


class TestTunnelStreamOverLayersWithSmallBuffers(StreamContract):
    """Every write of some size is a partial one, at each layer."""

    big = 2 * 1024 * 1024

    @pytest.fixture(params=KINDS)
    def pair(self, request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Streams]:
        with layered_tunnels(request.param, certificates, buffer=4096) as (client, server):
            yield open_stream(client, server)


@kinds
def test_a_tunnel_over_layers_carries_stream_after_stream(
    kind: str, certificates: Certificates
) -> None:
    ended: list[bool] = []
    with layered_tunnels(kind, certificates) as (client, server):
        for count in range(3):
            near, far = open_stream(client, server, ended.append, ended.append)
            near.write(b"question %d" % count)
            assert far.read() == b"question %d" % count
            far.write_eof()
            near.write_eof()
            assert near.read() == far.read() == b""
            near.close()
            far.close()
            assert ended == [True, True] * (count + 1)
            assert client.between_frames
            assert not client.readable
            accepting = gevent.spawn(server.accept)
            client.ping()
            accepting.kill()


@kinds
def test_frames_that_a_layer_still_has_are_read_without_another_byte(
    kind: str, certificates: Certificates
) -> None:
    with layered_tunnels(kind, certificates) as (client, server):
        near, far = open_stream(client, server)
        scratch = scratch_of_this_hub()
        sealed = b""
        for number in range(300):
            body = b"%d," % number
            sealed += bytes(scratch.sealed[: client.seal(scratch, Frame.DATA, body)])
        client.send_sealed(sealed + bytes(scratch.sealed[: client.seal(scratch, Frame.FIN)]))
        found = b""
        while part := far.read():  # each of some frames, behind which nothing comes any more
            found += part
        assert found == b"".join(b"%d," % number for number in range(300))
        near.abort()


@kinds
def test_an_end_of_the_connection_without_a_frame_is_truncation(
    kind: str, certificates: Certificates
) -> None:
    with layered_tunnels(kind, certificates) as (client, server):
        near, far = open_stream(client, server)
        near.write(b"half of")
        assert far.read() == b"half of"
        client.close()  # with the farewell of each layer
        with pytest.raises(Truncated):
            far.read()


# --- both ends --------------------------------------------------------------------------------


def exit_to(at: Address, query: str, *, pool_size: int = 8, **timeouts: float) -> TunnelExit:
    spec = ExitSpec.parse(f"gsocks://{SHARED.text()}@{at}?{query}")
    deps = ExitDeps(ALLOW_ALL, pool=PoolSettings(size=pool_size), timeouts=Timeouts(**timeouts))
    made = make_exit(spec, deps)
    assert isinstance(made, TunnelExit)
    return made


class Both:
    """A server and a local end in front of it."""

    def __init__(self, local: LocalServer, exit_: TunnelExit, server: RemoteServer) -> None:
        self.local, self.exit, self.server = local, exit_, server
        self.at_server: Seen
        self.at_local: Seen


@contextmanager
def both_ends(
    kind: str, certificates: Certificates, to: Address | None = None, **options: Any
) -> Iterator[Both]:
    """``to``: what lies in front of the server, for the local end."""
    at_server, at_local = Seen(), Seen()
    server = make_server(transport=certificates.settings(kind), observer=at_server, **options)
    with running_inbound(server):
        way = exit_to(to or server.bound, certificates.query(kind))
        local = LocalServer(("127.0.0.1", 0), ExitGroup([way], ALLOW_ALL), observer=at_local)
        with running_inbound(local):
            both = Both(local, way, server)
            both.at_server, both.at_local = at_server, at_local
            yield both


@pytest.fixture
def echo_server(nothing_left: None) -> Iterator[Address]:
    with serving(echo) as at:
        yield at


@kinds
def test_ten_megabytes_go_both_ways_and_the_tunnel_is_used_again(
    kind: str, certificates: Certificates, echo_server: Address
) -> None:
    data = os.urandom(10_000_000)
    with both_ends(kind, certificates) as both:
        for _ in range(2):
            answer = ask_echo(both.local.bound, echo_server, data)
            assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
            eventually(lambda: both.exit.pool.ready)
        assert ask_echo(both.local.bound, echo_server, b"short") == b"short"
        assert both.exit.pool.found_dead == 0
        assert set(both.at_local.outcomes) == {"ok"}


@kinds
def test_many_connections_at_once_go_their_ways(
    kind: str, certificates: Certificates, echo_server: Address
) -> None:
    with both_ends(kind, certificates) as both:
        said = [os.urandom(1 + n * 997) for n in range(60)]

        def ask(data: bytes) -> Callable[[], bytes]:
            return lambda: ask_echo(both.local.bound, echo_server, data)

        assert gather(map(ask, said)) == said


@kinds
def test_a_direction_ends_and_the_other_goes_on(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    def answer_behind_the_end(sock: socket) -> None:
        total = 0
        while part := sock.recv(65536):
            total += len(part)
        sock.sendall(b"%d bytes" % total)

    with serving(answer_behind_the_end) as at, both_ends(kind, certificates) as both:
        assert ask_echo(both.local.bound, at, bytes(300_000)) == b"300000 bytes"


@kinds
def test_a_slow_reader_holds_its_writer_up_and_gets_all(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    sent = 0
    size = 40_000_000

    def pour(sock: socket) -> None:
        nonlocal sent
        block = bytes(1_000_000)
        while sent < size:
            sock.sendall(block)
            sent += len(block)
        sock.shutdown(std_socket.SHUT_WR)

    with (
        serving(pour) as at,
        both_ends(kind, certificates) as both,
        through(both.local.bound, at) as sock,
    ):
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            gevent.sleep(0.3)
        assert sent < size
        count = 0
        while part := sock.recv(65536):
            count += len(part)
        assert count == size


@kinds
def test_a_reset_reaches_the_client_and_the_destination(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    def reset_it(sock: socket) -> None:
        sock.recv(1)
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with serving(reset_it) as at, both_ends(kind, certificates) as both:
        with through(both.local.bound, at, b"x") as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert both.at_local.next().outcome == "remote_reset"


@kinds
def test_datagrams_travel_too(kind: str, certificates: Certificates, nothing_left: None) -> None:
    with udp_server() as at, both_ends(kind, certificates) as both:
        request = Request(Command.UDP_ASSOCIATE, Address("0.0.0.0", 0))
        stream = both.exit.associate(request).stream
        stream.write(at.encode() + b"query")
        assert stream.read().endswith(b"query")
        stream.abort()


def test_a_chain_carries_the_layers_of_its_last_tunnel(
    certificates: Certificates, echo_server: Address
) -> None:
    server = make_server(transport=certificates.settings("wss"))
    with running_inbound(make_server()) as first, running_inbound(server):
        via = f"gsocks%3A%2F%2F{SHARED.text()}%40{first.bound}"
        exit_ = exit_to_chain(server.bound, f"{certificates.query('wss')}&via={via}")
        stream = exit_.connect(Request(Command.CONNECT, echo_server)).stream
        stream.write(b"through both")
        assert stream.read() == b"through both"
        stream.abort()
        exit_.close()


def exit_to_chain(at: Address, query: str) -> Any:
    spec = ExitSpec.parse(f"gsocks://{SHARED.text()}@{at}?{query}")
    return make_exit(spec, ExitDeps(ALLOW_ALL, pool=PoolSettings(size=0)))


@kinds
def test_idle_tunnels_stay_open_and_are_seen_to_end(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    """TLS 1.3 has tickets behind its handshake, which are no end."""
    with both_ends(kind, certificates) as both:
        pool = both.exit.pool
        pool.wake()
        eventually(lambda: pool.ready == pool.target)
        gevent.sleep(0.1)  # for what the server may still send
        assert pool.found_dead == 0
        assert len(both.server.idle_tunnels) == pool.ready
        both.server.stop(0)
        eventually(lambda: pool.found_dead)


def test_a_ping_of_websocket_is_answered_by_an_idle_tunnel_which_stays(
    certificates: Certificates, echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    pongs: list[Event] = []
    control = WebSocketServer._control

    def noted(layer: WebSocketServer, event: Event) -> None:
        pongs.append(event)
        control(layer, event)

    monkeypatch.setattr(WebSocketServer, "_control", noted)
    with both_ends("ws", certificates) as both:
        pool = both.exit.pool
        pool.wake()
        eventually(lambda: len(both.server.idle_tunnels) == pool.ready == pool.target)
        tunnels = list(both.server.idle_tunnels)
        for tunnel in tunnels:
            layer: Any = tunnel._backlog
            os.write(tunnel.fileno(), layer.layer._engine.send(Ping(b"still there?")))
        eventually(lambda: len(pongs) == len(tunnels))
        assert set(map(str, pongs)) == {str(Pong(b"still there?"))}
        assert pool.ready == len(tunnels)
        assert pool.found_dead == 0
        assert ask_echo(both.local.bound, echo_server, b"x") == b"x"


@kinds
def test_a_server_that_has_died_is_noticed_and_another_tunnel_opened(
    kind: str, certificates: Certificates, echo_server: Address
) -> None:
    server = make_server(transport=certificates.settings(kind))
    with running_inbound(server), Forwarder(server.bound) as path:
        way = exit_to(path.bound, certificates.query(kind))
        way.acknowledged_within = 0.2
        way.pool.ping_after = 0.5  # seconds
        local = LocalServer(("127.0.0.1", 0), ExitGroup([way], ALLOW_ALL))
        with running_inbound(local):
            assert ask_echo(local.bound, echo_server, b"before") == b"before"
            eventually(lambda: way.pool.ready == way.pool.target)
            path.cut()
            eventually(lambda: way.pool.found_dead >= way.pool.target)
            assert ask_echo(local.bound, echo_server, b"behind") == b"behind"


# --- what does not fit ------------------------------------------------------------------------


def refusal(at: Address, query: str, **timeouts: float) -> str:
    """In what words an exit fails."""
    exit_ = exit_to(at, query, pool_size=0, **timeouts)
    with pytest.raises(ExitFailed) as failed:
        exit_.connect(CONNECT)
    assert "\n" not in str(failed.value)
    assert SHARED.text() not in str(failed.value)
    return str(failed.value).removeprefix(f"gsocks://{at}: ")


def test_a_server_that_can_not_be_trusted_is_refused_in_one_line(
    certificates: Certificates, tmp_path: Path, nothing_left: None
) -> None:
    others = Certificates(tmp_path)
    with running_inbound(make_server(transport=certificates.settings("tls"))) as server:
        at = server.bound
        untrusted = "its certificate can't be trusted: "
        assert refusal(at, f"transport=tls&ca={others.ca}&sni={NAME}").startswith(untrusted)
        assert refusal(at, f"transport=tls&sni={NAME}").startswith(untrusted)
        assert refusal(at, f"transport=tls&ca={certificates.ca}&sni=x.example") == (
            f"{untrusted}Hostname mismatch, certificate is not valid for 'x.example'."
        )
        way = exit_to(at, "transport=tls&insecure=true", pool_size=0)
        with pytest.raises(Exception, match="name not found"):
            way.connect(Request(Command.CONNECT, Address("nowhere.invalid", 1)))


def test_ends_of_different_transports_say_so_in_one_line(
    certificates: Certificates, nothing_left: None
) -> None:
    def served(kind: str) -> RemoteServer:
        transport = TransportSettings() if kind == "tcp" else certificates.settings(kind)
        return make_server(transport=transport, timeouts=Timeouts(handshake=0.2))

    with ExitStack() as stack:
        at = {
            kind: stack.enter_context(running_inbound(served(kind))).bound
            for kind in ("tcp", *KINDS)
        }
        tls, ws, wss = map(certificates.query, KINDS)
        closed = "the server closed without an answer: another key, "
        wrong = "the key agreement failed: another key, or changed bytes"
        assert refusal(at["tls"], "transport=tcp").startswith(closed)
        assert refusal(at["ws"], tls) == "the far end doesn't speak TLS"
        # what a web server answers may be shorter than the reply that the key expects
        no_reply = refusal(at["wss"], tls)
        assert no_reply == wrong or no_reply.startswith(closed)
        assert refusal(at["tls"], wss) == ("the connection ended during the handshake of WebSocket")
        assert refusal(at["ws"], f"transport=ws&path={PATH}s") == (
            "its request for a WebSocket is answered with status 404"
        )
        assert refusal(at["tcp"], tls) == "the connection ended during the handshake of TLS"
        assert refusal(at["tcp"], ws) == ("the connection ended during the handshake of WebSocket")


def test_a_web_server_that_speaks_http2_only_is_told(certificates: Certificates) -> None:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    context.set_alpn_protocols(["h2"])

    def serve(sock: socket) -> None:
        with context.wrap_socket(sock, server_side=True) as secured:
            secured.recv(1)

    with serving(serve) as at:
        query = f"transport=wss&ca={certificates.ca}&sni={NAME}"
        assert refusal(at, f"{query}&alpn=h2") == (
            "the far end has selected h2, which has no WebSocket"
        )


# --- strangers --------------------------------------------------------------------------------


class Stranger:
    """A client that speaks TLS and WebSocket, and knows no key."""

    def __init__(self, kind: str, certificates: Certificates, at: Address) -> None:
        self.sock: Any = connect(at)
        if kind in OVER_TLS:
            context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(certificates.ca)
            self.sock = context.wrap_socket(self.sock, server_hostname=NAME)
        self.engine: Connection | None = None
        if kind in OVER_WEBSOCKET:
            self.sock.sendall(
                f"GET {PATH} HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self.sock.recv(1)
            self.engine = Connection(ConnectionType.CLIENT)

    def say(self, data: bytes) -> None:
        if data:
            made = data if self.engine is None else self.engine.send(BytesMessage(data))
            self.sock.sendall(made)

    def end(self) -> None:
        """End its direction by FIN alone."""
        with std_socket.socket(fileno=os.dup(self.sock.fileno())) as bare:
            bare.shutdown(std_socket.SHUT_WR)

    def to_the_end(self) -> tuple[bytes, str]:
        """What it hears, and by what that ends."""
        heard = b""
        try:
            while part := self.sock.recv(65536):
                heard += part
        except ConnectionResetError:
            return heard, "reset"
        except ssl.SSLError as error:
            return heard, str(error.reason)
        return heard, "end"

    def close(self) -> None:
        self.sock.close()


#: seconds that the probed servers keep silent
SILENCE = 0.5


@kinds
def test_a_stranger_behind_the_layers_sees_nothing_until_the_same_moment(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    said = (b"", b"x", os.urandom(36), os.urandom(400), hello_from()[:-1], os.urandom(100_000))
    timeouts = Timeouts(handshake=SILENCE)
    seen = Seen()
    server = make_server(transport=certificates.settings(kind), timeouts=timeouts, observer=seen)
    with running_inbound(server):

        def probe(data: bytes) -> Callable[[], tuple[bytes, str, bool]]:
            def run_it() -> tuple[bytes, str, bool]:
                began = time.monotonic()
                stranger = Stranger(kind, certificates, server.bound)
                stranger.say(data)
                heard, ended = stranger.to_the_end()
                stranger.close()
                return heard, ended, SILENCE - 0.05 < time.monotonic() - began < SILENCE + 1.5

            return run_it

        # the Close of WebSocket, with the code of a normal one
        expected = b"\x88\x02\x03\xe8" if kind in OVER_WEBSOCKET else b""
        assert set(gather(map(probe, said))) == {(expected, "end", True)}
        assert {seen.next().outcome for _ in said} <= {"stranger", "handshake_timeout"}


@kinds
def test_a_stranger_that_ends_its_direction_waits_as_long(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    server = make_server(
        transport=certificates.settings(kind), timeouts=Timeouts(handshake=SILENCE)
    )
    with running_inbound(server):
        began = time.monotonic()
        stranger = Stranger(kind, certificates, server.bound)
        stranger.say(os.urandom(50))
        stranger.end()
        _, ended = stranger.to_the_end()
        assert ended == "end"
        assert time.monotonic() - began > SILENCE - 0.05
        stranger.close()


def test_the_pings_of_a_stranger_are_answered_before_and_behind_its_hello(
    certificates: Certificates, nothing_left: None
) -> None:
    server = make_server(
        transport=certificates.settings("ws"), timeouts=Timeouts(handshake=SILENCE)
    )
    with running_inbound(server):
        stranger = Stranger("ws", certificates, server.bound)
        assert stranger.engine is not None
        for data in (b"", os.urandom(400)):
            stranger.say(data)
            stranger.sock.sendall(stranger.engine.send(Ping(b"?")))
            stranger.engine.receive_data(stranger.sock.recv(100))
            assert list(stranger.engine.events()) == [Pong(b"?")]
        stranger.to_the_end()
        stranger.close()


@kinds
def test_a_handshake_that_stops_halfway_has_its_time_and_no_more(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    seen = Seen()
    server = make_server(
        transport=certificates.settings(kind), timeouts=Timeouts(handshake=0.3), observer=seen
    )
    begun = b"GET " if kind == "ws" else b"\x16\x03\x01\x02\x00\x01\x00"
    with running_inbound(server), connect(server.bound) as sock:
        sock.sendall(begun)
        assert sock.recv(100) == b""
        assert seen.next().outcome == "handshake_timeout"


@kinds
def test_a_connection_that_says_nothing_and_leaves_is_routine(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    seen = Seen()
    server = make_server(transport=certificates.settings(kind), observer=seen)
    with running_inbound(server):
        connect(server.bound).close()
        record: Record = seen.next()
        assert (record.outcome, record.is_routine) == ("truncated", True)
        with connect(server.bound) as sock:
            sock.sendall(b"G" if kind == "ws" else b"\x16")
        assert not seen.next().is_routine


@kinds
def test_a_server_that_stops_ends_handshakes_under_way(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    server = make_server(transport=certificates.settings(kind))
    with running_inbound(server), connect(server.bound) as sock:
        sock.sendall(b"GET " if kind == "ws" else b"\x16\x03\x01")
        eventually(lambda: server._unproven)
        server.stop(0)
        assert sock.recv(100) == b""


@kinds
def test_what_speaks_something_else_gets_the_answer_of_an_ordinary_server(
    kind: str, certificates: Certificates, nothing_left: None
) -> None:
    seen = Seen()
    server = make_server(transport=certificates.settings(kind), observer=seen)
    with running_inbound(server), connect(server.bound) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = b""
        while part := sock.recv(4096):
            answer += part
        if kind == "ws":
            assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
            assert seen.next().outcome == "stranger"
        else:
            assert answer == b""  # as OpenSSL has it for HTTP; an alert for anything else
            assert seen.next().outcome == "tls_failed"


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "tls"}, "cert: missing (tls needs a certificate)"),
        ({"kind": "wss", "path": "/x"}, "cert: missing (wss needs a certificate)"),
        ({"cert": Path("c.pem")}, "cert: not for tcp (only for tls and wss)"),
        ({"kind": "ws", "key": Path("c.key")}, "key: not for ws (only for tls and wss)"),
        ({"kind": "ws", "alpn": ()}, "alpn: not for ws (only for tls and wss)"),
        (
            {"kind": "tls", "cert": Path("c"), "path": "/x"},
            "path: not for tls (only for ws and wss",
        ),
        ({"kind": "tls", "cert": Path("c.pem")}, "c.pem: No such file or directory"),
    ],
)
def test_settings_that_can_not_be_are_refused_in_one_line(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        RemoteServer("127.0.0.1:0", keys={"a": SHARED}, transport=TransportSettings(**settings))
    assert str(refused.value).startswith(message)


def test_a_program_may_leave_the_certificate_of_a_running_server_behind(
    certificates: Certificates, tmp_path: Path, nothing_left: None
) -> None:
    others = Certificates(tmp_path)
    with running_inbound(make_server(transport=certificates.settings("tls"))) as server:
        query = f"transport=tls&ca={others.ca}&sni={NAME}"
        assert "can't be trusted" in refusal(server.bound, query)
        server.replace_transport(ServerTransport(others.settings("tls")))
        way = exit_to(server.bound, query, pool_size=0)
        tunnel, fresh = way.pool.take()
        assert fresh
        tunnel.close()
