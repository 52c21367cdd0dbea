"""Many bytes from socket to socket pass through a pipe, and only the time shows it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket as std_socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.socket import socket

from gsocks.errors import StreamClosed
from gsocks.net import splice
from gsocks.net.splice import Pipes, pipes_of_this_hub
from gsocks.relay import Relay, Totals
from gsocks.stream import CHUNK, SocketStream, reset
from tests.support.engine import eventually, is_reset, read_to_end, value_of
from tests.support.stream_contract import tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

LONG = 3600.0
#: more than the kernel keeps for two connections, whatever its buffers have grown to
MUCH = os.urandom(1 << 20) * 24


class Line(NamedTuple):
    client: socket
    target: socket
    relay: Relay
    over: AsyncResult[Totals]


@contextmanager
def line(pending: bytes = b"") -> Iterator[Line]:
    client, near = tcp_pair()
    far, target = tcp_pair()
    over: AsyncResult[Totals] = AsyncResult()
    relay = Relay(
        SocketStream(near, pending), SocketStream(far), idle=LONG, half_closed=LONG, ended=over.set
    )
    relay.run()
    with client, target:
        yield Line(client, target, relay, over)
        relay.abort(StreamClosed("the test is over"))


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each splice has moved."""
    moved: list[int] = []
    really = os.splice

    def note(*args: int, **options: int) -> int:
        count = really(*args, **options)
        moved.append(count)
        return count

    monkeypatch.setattr(os, "splice", note)
    return moved


def send_and_end(sock: socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(std_socket.SHUT_WR)


def pass_much(wire: Line) -> None:
    """There and back, to the end of both directions."""
    for one, other in ((wire.client, wire.target), (wire.target, wire.client)):
        sending = gevent.spawn(send_and_end, one, MUCH)
        assert read_to_end(other) == MUCH
        sending.get()
    assert wire.over.get() == Totals(len(MUCH), len(MUCH), None, "")


def send_until_full(wire: Line) -> tuple[gevent.Greenlet[..., OSError | None], bytes]:
    """A client that sends much, whose relay has a pipe full of it; and what the target has read."""
    sending = gevent.spawn(_send, wire.client)
    got = b""
    while not (pipes_in_use() and "waits for room" in repr(wire.relay)):
        # it may be stuck with what it has copied, and splices when more can go
        eventually(lambda: "waits for room" in repr(wire.relay))
        if not pipes_in_use():
            got += wire.target.recv(CHUNK)
    return sending, got


def _send(sock: socket) -> OSError | None:
    try:
        send_and_end(sock, MUCH)
    except OSError as error:
        return error
    return None


def pipes_in_use() -> int:
    return pipes_of_this_hub().in_use


def test_much_is_spliced_and_arrives_whole(spliced: list[int]) -> None:
    with line() as wire:
        pass_much(wire)
    assert sum(spliced) > len(MUCH)
    assert pipes_in_use() == 0


def test_little_is_copied(spliced: list[int]) -> None:
    with line() as wire:
        for _ in range(100):
            wire.client.sendall(b"question")
            assert wire.target.recv(100) == b"question"
    assert not spliced


def test_what_came_before_the_stream_comes_before_what_is_spliced() -> None:
    with line(pending=bytes(CHUNK) + b"first") as wire:
        sending = gevent.spawn(send_and_end, wire.client, MUCH)
        assert read_to_end(wire.target) == bytes(CHUNK) + b"first" + MUCH
        sending.get()


def test_a_sink_without_room_keeps_its_pipe_and_gets_all_that_is_in_it() -> None:
    with line() as wire:
        sending, got = send_until_full(wire)
        assert pipes_in_use() == 1
        counted = wire.relay.carried[0]
        assert counted < len(MUCH)
        assert got + read_to_end(wire.target) == MUCH
        sending.get()
        assert pipes_in_use() == 0
        assert wire.relay.carried[0] == len(MUCH)


def test_bytes_in_a_pipe_are_no_more_counted_than_they_arrive() -> None:
    with line() as wire:
        sending, got = send_until_full(wire)
        wire.relay.abort(StreamClosed("stopped"))
        assert value_of(wire.over).up < len(MUCH)
        assert pipes_in_use() == 0
        arrived = len(got)
        try:
            while data := wire.target.recv(1 << 20):
                arrived += len(data)
        except ConnectionResetError:
            pass
        assert arrived <= value_of(wire.over).up
        sending.get()


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_while_a_pipe_is_full_reaches_the_other_side(who: str) -> None:
    with line() as wire:
        sending, _ = send_until_full(wire)
        if who == "client":
            reset(wire.client)
            assert is_reset(wire.target)
        else:
            reset(wire.target)
            assert isinstance(sending.get(), ConnectionError)
        assert value_of(wire.over).error is not None
        eventually(lambda: pipes_in_use() == 0)
        sending.get()


def test_a_pump_without_a_pipe_copies(monkeypatch: pytest.MonkeyPatch, spliced: list[int]) -> None:
    monkeypatch.setattr(splice, "MAX_PIPES", 0)
    with line() as wire:
        pass_much(wire)
    assert not spliced


def test_without_descriptors_bytes_are_copied(
    monkeypatch: pytest.MonkeyPatch, spliced: list[int]
) -> None:
    def fail(_: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "no descriptors")

    monkeypatch.setattr(os, "pipe2", fail)
    with line() as wire:
        pass_much(wire)
    assert not spliced


def test_a_user_whose_pipes_may_hold_no_more_gets_small_ones(
    monkeypatch: pytest.MonkeyPatch, spliced: list[int]
) -> None:
    def fail(*_: int) -> int:
        raise PermissionError(errno.EPERM, "too many pages")

    monkeypatch.setattr(fcntl, "fcntl", fail)
    with line() as wire:
        pass_much(wire)
    assert 0 < max(spliced) <= CHUNK


def test_pipes_are_used_again_and_bounded() -> None:
    pipes = Pipes()
    taken = [pipe for _ in range(splice.MAX_PIPES) if (pipe := pipes.take()) is not None]
    assert len(taken) == splice.MAX_PIPES
    assert pipes.take() is None
    for pipe in taken:
        pipes.give_back(pipe, empty=True)
    again = pipes.take()
    assert again in taken
    pipes.give_back(again, empty=False)
    pipes.close()
