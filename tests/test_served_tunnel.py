"""The server's end of a tunnel, which the hub serves: what its greenlets did, and promised."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.util import wrap_errors

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.crypto import Cipher, KeyRing
from gsocks.errors import ConnectionRefused, StreamError
from gsocks.net.dial import DialAttempt
from gsocks.net.greenlets import GreenletPool
from gsocks.request import Command, Request
from gsocks.rotation.group import ExitGroup
from gsocks.server import RemoteServer
from gsocks.settings import Limits, Timeouts
from gsocks.stream import Bytes, ScratchBuffers, send_now
from gsocks.tunnel.client import ClientTunnel, connect_tunnel
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.server import MAX_PINGS, ServerTunnel
from gsocks.tunnel.streams import TunnelStream
from tests.support.engine import FakeExit, Seen, connect, direct, eventually
from tests.support.ports import free_port
from tests.support.tunnel_parts import KEY, asking, ignore_end
from tests.support.two_ways import BlockingExit
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NOWHERE = Address("192.0.2.1", 80)

Spawned = list[str]


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Spawned:
    """What has gone on in greenlets."""
    found: Spawned = []
    spawn = GreenletPool.spawn

    def noted(self: GreenletPool, function: Callable[..., object], *args: Any) -> None:
        found.append(getattr(args[1], "__name__", ""))
        spawn(self, function, *args)

    monkeypatch.setattr(GreenletPool, "spawn", noted)
    return found


@contextmanager
def running(exits: ExitGroup | None = None, **options: Any) -> Iterator[RemoteServer]:
    server = RemoteServer(("127.0.0.1", 0), exits or direct(), {"alice": KEY}, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@contextmanager
def tunnel_to(server: RemoteServer) -> Iterator[ClientTunnel]:
    """A tunnel that waits for its first request."""
    before = len(server.idle_tunnels)
    with connect(server.bound) as sock:
        tunnel = connect_tunnel(sock, KEY, Cipher.SECRETBOX)
        eventually(lambda: len(server.idle_tunnels) > before)
        yield tunnel


def to(dest: Address) -> Request:
    return Request(Command.CONNECT, dest)


def is_carried(tunnel: ClientTunnel, dest: Address) -> bool:
    """Whether a request to an echo server is, from its OPEN to both FINs."""
    tunnel.open(to(dest))
    stream = TunnelStream(tunnel, ignore_end)
    stream.write(b"hello")
    assert stream.read() == b"hello"
    stream.write_eof()
    ended: bool = stream.read() == b""
    stream.close()
    return ended


def is_over(tunnel: ClientTunnel) -> bool:
    return wrap_errors((StreamError,), tunnel.receive)() is not None


def sealed(tunnel: ClientTunnel, *frames: tuple[Frame, bytes]) -> bytes:
    """Frames that are sent later, all at once or in parts."""
    scratch, end = ScratchBuffers(), 0
    for kind, body in frames:
        end = tunnel.seal(scratch, kind, body, end)
    return bytes(scratch.sealed[:end])


def test_a_stream_that_blocks_is_carried_in_a_greenlet(echo_server: Address) -> None:
    seen = Seen()
    exits = ExitGroup([BlockingExit()], ALLOW_ALL)
    with running(exits, observer=seen) as server, tunnel_to(server) as tunnel:
        for _ in range(2):
            assert is_carried(tunnel, echo_server)
            assert seen.next().outcome == "ok"


def test_a_tunnel_waits_and_has_its_requests_carried_without_a_greenlet(
    spawned: Spawned, echo_server: Address
) -> None:
    seen = Seen()
    with running(observer=seen) as server, tunnel_to(server) as tunnel:
        spawned.clear()
        for number in range(1, 4):
            assert is_carried(tunnel, echo_server)
            record = seen.next()
            assert (record.user, record.dest, record.outcome) == ("alice", str(echo_server), "ok")
            assert (record.up, record.down, record.exit) == (5, 5, "direct")
            assert record.id.endswith(f".{number}")
            tunnel.ping()
        assert not spawned
        assert not server._greenlets._busy


def test_a_traced_tunnel_has_its_requests_carried_by_greenlets(
    spawned: Spawned, echo_server: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gsocks.connection")
    with running() as server, tunnel_to(server) as tunnel:
        spawned.clear()
        assert is_carried(tunnel, echo_server)
        assert spawned == ["_carry"]
    assert caplog.text.count("requested") == 1


def test_a_refusal_goes_on_in_a_greenlet_and_the_tunnel_waits_in_the_hub_again(
    spawned: Spawned, echo_server: Address
) -> None:
    seen = Seen()
    with running(observer=seen) as server, tunnel_to(server) as tunnel:
        spawned.clear()
        with pytest.raises(ConnectionRefused):
            tunnel.open(to(Address("127.0.0.1", free_port())))
        assert seen.next().outcome == ConnectionRefused.word
        assert spawned == ["_carry"]
        assert is_carried(tunnel, echo_server)
        assert spawned == ["_carry"]


def test_a_request_right_behind_the_end_of_the_one_before_it_is_carried(
    echo_server: Address,
) -> None:
    with running() as server, tunnel_to(server) as tunnel:
        tunnel.ask(to(echo_server))
        open_ = bytes((Command.CONNECT,)) + echo_server.encode()
        frames = (Frame.DATA, b"one"), (Frame.FIN, b""), (Frame.PING, b""), (Frame.OPEN, open_)
        tunnel.answer()
        tunnel.send_sealed(sealed(tunnel, *frames[:2]))
        assert [tunnel.receive() for _ in range(2)] == [(Frame.DATA, b"one"), (Frame.FIN, b"")]
        tunnel.send_sealed(sealed(tunnel, (Frame.PAD, b""), *frames[2:], *frames[:1]))
        assert tunnel.receive()[0] == Frame.PONG
        assert tunnel.receive()[0] == Frame.OPENED
        assert tunnel.receive() == (Frame.DATA, b"one")


def test_a_request_that_comes_byte_by_byte_is_carried(echo_server: Address) -> None:
    with running() as server, tunnel_to(server) as tunnel:
        body = bytes((Command.CONNECT,)) + echo_server.encode()
        for byte in sealed(tunnel, (Frame.OPEN, body)):
            tunnel.send_sealed(bytes((byte,)))
            gevent.idle()
        assert tunnel.receive()[0] == Frame.OPENED
        assert not len(server.frame_deadlines)


def test_a_frame_between_two_streams_has_to_come_whole_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(timeouts=Timeouts(handshake=0.1)) as server, tunnel_to(server) as tunnel:
        gevent.sleep(0.15)  # as long as no part of a frame has come there is time
        tunnel.ping()
        rest = sealed(tunnel, (Frame.PAD, b""), (Frame.PAD, bytes(500)))
        began = time.monotonic()
        try:
            for byte in rest:
                tunnel.send_sealed(bytes((byte,)))
                gevent.sleep(0.01)
        except StreamError:
            pass
        assert time.monotonic() - began < 0.01 * len(rest)
    assert "a frame has not come whole in 0.1 s" in caplog.text


def test_pings_between_two_streams_have_a_bound_and_each_has_a_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running() as server, tunnel_to(server) as tunnel:
        for _ in range(MAX_PINGS):
            tunnel.ping()
        tunnel.send(Frame.PING)
        assert is_over(tunnel)
    assert f"more than {MAX_PINGS} PINGs" in caplog.text


def test_a_pong_or_an_answer_for_which_there_is_no_room_is_sent_later(
    monkeypatch: pytest.MonkeyPatch, spawned: Spawned, echo_server: Address
) -> None:
    def send_little(fd: int, data: Bytes) -> int:
        return send_now(fd, data[:7])

    with running() as server, tunnel_to(server) as tunnel:
        spawned.clear()
        monkeypatch.setattr(ServerTunnel, "send_some", staticmethod(send_little))
        tunnel.ping()
        eventually(lambda: bool(server.idle_tunnels))
        assert spawned == ["_pong_on"]
        tunnel.open(to(echo_server))
        assert spawned == ["_pong_on", "_answer_on"]


def test_a_client_that_leaves_before_it_is_answered_is_recorded(
    monkeypatch: pytest.MonkeyPatch, echo_server: Address
) -> None:
    connected = DialAttempt._on_writable

    def gone(self: DialAttempt) -> None:
        tunnel.abort()
        connected(self)

    monkeypatch.setattr(DialAttempt, "_on_writable", gone)
    seen = Seen()
    with running(observer=seen) as server, tunnel_to(server) as tunnel:
        tunnel.ask(to(echo_server))
        assert seen.next().outcome == "client_reset"
        eventually(lambda: server.connections == 0)


def test_what_is_being_connected_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DialAttempt, "_on_writable", lambda _: None)
    seen = Seen()
    with running(observer=seen) as server, tunnel_to(server) as tunnel:
        tunnel.ask(to(Address("127.0.0.1", free_port())))
        eventually(lambda: bool(server.context.connecting))
        server.stop(0)
        assert seen.next().outcome == "stopped"
        assert is_over(tunnel)
        assert server.connections == 0


def test_a_tunnel_that_waits_is_evicted_by_an_end_and_one_in_use_is_not(
    echo_server: Address,
) -> None:
    bounds = Limits(connections=2)
    with running(limits=bounds) as server, tunnel_to(server) as busy, tunnel_to(server) as idle:
        busy.open(to(echo_server))
        stream = TunnelStream(busy, ignore_end)
        with connect(server.bound) as sock:
            newcomer = connect_tunnel(sock, KEY, Cipher.SECRETBOX)
            assert idle._socket().recv(1) == b"", "it is reset"
            assert is_carried(newcomer, echo_server)
        stream.write(b"still here")
        assert stream.read() == b"still here"
        stream.abort()


def test_a_tunnel_whose_key_is_removed_is_closed_while_it_waits_and_after_its_stream(
    echo_server: Address,
) -> None:
    with running() as server, tunnel_to(server) as idle, tunnel_to(server) as busy:
        busy.open(to(echo_server))
        server.replace_keys(KeyRing({}))
        assert is_over(idle)
        stream = TunnelStream(busy, ignore_end)
        stream.write_eof()
        assert stream.read() == b""
        assert is_over(busy)


def test_an_exit_that_needs_a_greenlet_has_one(spawned: Spawned) -> None:
    seen = Seen()
    exits = ExitGroup([FakeExit("far", ConnectionRefused("no"))], ALLOW_ALL)
    with running(exits, observer=seen) as server, tunnel_to(server) as tunnel:
        spawned.clear()
        with pytest.raises(ConnectionRefused):
            tunnel.open(to(NOWHERE))
        record = seen.next()
        assert (record.outcome, record.exit) == (ConnectionRefused.word, "far")
        assert spawned == ["_carry"]


def test_a_command_that_is_none_is_refused_and_the_tunnel_goes_on(echo_server: Address) -> None:
    with running() as server, tunnel_to(server) as tunnel:
        tunnel.send(Frame.OPEN, asking(command=0x77))
        assert tunnel.receive()[0] == Frame.OPENED
        tunnel.send(Frame.FIN)
        assert is_carried(tunnel, echo_server)


def test_a_client_that_never_ends_what_was_refused_has_its_time() -> None:
    bounds = Timeouts(half_closed=0.05)
    with running(timeouts=bounds) as server, tunnel_to(server) as tunnel:
        tunnel.send(Frame.OPEN, asking(command=0x77))
        assert tunnel.receive()[0] == Frame.OPENED
        began = time.monotonic()
        assert is_over(tunnel)
        assert time.monotonic() - began < TOO_LONG / 4
