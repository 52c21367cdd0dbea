"""Two sockets are one object until one of them has much to carry, and then two pumps."""

from __future__ import annotations

import os
import socket as std_socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.socket import socket

from gsocks.errors import StreamClosed
from gsocks.net import socket_pair
from gsocks.relay import Relay, Totals
from gsocks.stream import CHUNK, SocketStream, reset
from tests.support.engine import eventually, is_reset, read_exactly, read_to_end, value_of
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

    @property
    def is_pair(self) -> bool:
        return "SocketPair" in repr(self.relay)


@contextmanager
def line() -> Iterator[Line]:
    client, near = tcp_pair()
    far, target = tcp_pair()
    over: AsyncResult[Totals] = AsyncResult()
    relay = Relay(
        SocketStream(near), SocketStream(far), idle=LONG, half_closed=LONG, ended=over.set
    )
    relay.run()
    with client, target:
        yield Line(client, target, relay, over)
        relay.abort(StreamClosed("the test is over"))


def end(sock: socket) -> None:
    sock.shutdown(std_socket.SHUT_WR)


def send_and_end(sock: socket, data: bytes) -> None:
    sock.sendall(data)
    end(sock)


def test_small_messages_pass_both_ways_without_pumps() -> None:
    with line() as wire:
        for number in range(20):
            wire.client.sendall(b"question %d" % number)
            assert wire.target.recv(100) == b"question %d" % number
            wire.target.sendall(b"answer")
            assert wire.client.recv(100) == b"answer"
        assert wire.is_pair
        for sock in (wire.client, wire.target):
            end(sock)
        totals = value_of(wire.over)
        assert (totals.down, totals.word) == (20 * len(b"answer"), "ok")


def test_the_end_of_one_side_is_passed_on_and_the_other_goes_on() -> None:
    with line() as wire:
        end(wire.client)
        assert wire.target.recv(1) == b""
        wire.target.sendall(b"still here")
        assert read_exactly(wire.client, 10) == b"still here"
        assert wire.is_pair
        end(wire.target)
        assert wire.client.recv(1) == b""
        assert value_of(wire.over) == Totals(0, 10, None, "")


@pytest.mark.parametrize("ended", [False, True], ids=["both open", "the other side has ended"])
def test_a_side_with_much_gets_a_pump_and_loses_nothing(ended: bool) -> None:
    with line() as wire:
        wire.target.sendall(b"before")
        assert read_exactly(wire.client, 6) == b"before"
        if ended:
            end(wire.target)
            assert wire.client.recv(1) == b""
        sending = gevent.spawn(wire.client.sendall, MUCH)
        assert read_exactly(wire.target, len(MUCH)) == MUCH
        sending.get()
        assert not wire.is_pair
        end(wire.client)
        assert wire.target.recv(1) == b""
        if not ended:
            wire.target.sendall(b"after")
            end(wire.target)
            assert read_to_end(wire.client) == b"after"
        assert value_of(wire.over) == Totals(len(MUCH), 6 if ended else 11, None, "")


def test_what_finds_no_room_waits_for_it_and_counts_once_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket_pair, "_write", lambda fd, data: os.write(fd, data[:3]))
    with line() as wire:
        wire.client.sendall(b"a message")
        assert read_exactly(wire.target, 9) == b"a message"
        assert not wire.is_pair
        eventually(lambda: wire.relay.carried == [9, 0])


def test_a_socket_that_is_full_stops_its_source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise BlockingIOError

    with line() as wire:
        monkeypatch.setattr(socket_pair, "_write", full)
        wire.client.sendall(b"late")
        assert read_exactly(wire.target, 4) == b"late"
        wire.target.sendall(b"answer")
        assert read_exactly(wire.client, 6) == b"answer"


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_of_one_side_reaches_the_other(who: str) -> None:
    with line() as wire:
        one, other = wire.client, wire.target
        if who == "target":
            one, other = other, one
        reset(one)
        assert is_reset(other)
        assert value_of(wire.over).side == {"client": "client", "target": "remote"}[who]


def test_a_client_that_the_last_bytes_reset_has_no_clean_end() -> None:
    """It has closed, so that what still comes for it goes nowhere."""
    with line() as wire:
        wire.client.close()
        assert wire.target.recv(1) == b""
        wire.target.sendall(b"too late")
        eventually(lambda: wire.relay.carried[1] == len(b"too late"))
        end(wire.target)
        assert value_of(wire.over).word == "client_reset"


def test_a_stream_that_is_aborted_behind_its_relay_takes_no_bytes_of_another_connection() -> None:
    """Its descriptor's number is the next connection's."""
    client, near = tcp_pair()
    far, target = tcp_pair()
    sides = SocketStream(near), SocketStream(far)
    number = near.fileno()
    over: AsyncResult[Totals] = AsyncResult()
    Relay(*sides, idle=LONG, half_closed=LONG, ended=over.set).run()
    with client, target:
        sides[0].abort()
        others = [tcp_pair() for _ in range(3)]
        assert number in [sock.fileno() for pair in others for sock in pair]
        try:
            with suppress(ConnectionError):  # where the relay has noticed it already
                target.sendall(b"for the first")
            assert value_of(over).word in ("closed", "remote_closed", "client_closed")
            for one, other in others:
                one.sendall(b"mine")
                assert read_exactly(other, 4) == b"mine"
                other.sendall(b"yours")
                assert read_exactly(one, 5) == b"yours"
        finally:
            for one, other in others:
                one.close()
                other.close()


def test_a_chunk_that_ends_its_side_is_followed_by_the_end() -> None:
    with line() as wire:
        sending = gevent.spawn(send_and_end, wire.client, bytes(CHUNK))
        assert read_to_end(wire.target) == bytes(CHUNK)
        sending.get()
