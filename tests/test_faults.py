"""Faults from outside: killed processes, garbage, crowds; truncation is never taken for EOF."""

from __future__ import annotations

import gc
import os
import random
import socket as std_socket
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.socket import socket

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.local import LocalServer
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Limits, Timeouts
from gsocks.stream import reset
from tests.support.engine import (
    Ends,
    Forwarder,
    Refused,
    ask_echo,
    both_ends,
    connect,
    eventually,
    gather,
    is_reset,
    make_exit,
    make_server,
    printed_address,
    read_exactly,
    read_to_end,
    running,
    running_inbound,
    server_process,
    serving,
    socks_request,
    through,
)
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


@contextmanager
def local_to(server: Address, **options: Any) -> Iterator[LocalServer]:
    exit_group = ExitGroup([make_exit(server, **options)], ALLOW_ALL)
    with running_inbound(LocalServer(("127.0.0.1", 0), exit_group)) as local:
        yield local


# --- a process that is killed -----------------------------------------------------------------


def pour(sock: socket) -> None:
    """Send for ever, as fast as it is taken."""
    while True:
        sock.sendall(bytes(65536))


def test_a_server_killed_in_the_middle_of_a_download_resets_the_client() -> None:
    with (
        serving(pour) as target,
        server_process() as (process, server),
        local_to(server) as local,
        through(local.bound, target) as sock,
    ):
        read_exactly(sock, 1 << 20)
        process.kill()
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)


def test_a_server_killed_in_the_middle_of_an_upload_resets_the_client() -> None:
    with (
        serving(read_to_end) as target,
        server_process() as (process, server),
        local_to(server) as local,
        through(local.bound, target) as sock,
    ):
        sock.sendall(bytes(1 << 20))
        process.kill()
        with pytest.raises(ConnectionError):
            pour(sock)


def test_a_server_killed_before_its_answer_is_whole_resets_a_client_that_has_ended() -> None:
    killed = Event()

    def answer_half(sock: socket) -> None:
        read_to_end(sock)
        sock.sendall(b"half an answer")
        killed.wait()

    with (
        serving(answer_half) as target,
        server_process() as (process, server),
        local_to(server) as local,
        through(local.bound, target) as sock,
    ):
        sock.shutdown(std_socket.SHUT_WR)
        assert read_exactly(sock, 14) == b"half an answer"
        process.kill()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        killed.set()


_LOCAL = """
import sys, gevent
from gsocks.crypto import Key
from gsocks.local import LocalServer
key = Key(bytes(range(32)))
local = LocalServer("127.0.0.1:0", [f"gsocks://{key.text()}@{sys.argv[1]}"], rules=["allow all"])
local.start()
print(local.bound.port, flush=True)
gevent.get_hub().threadpool.apply(sys.stdin.read)
"""


def test_a_local_end_killed_in_the_middle_of_an_upload_resets_the_target() -> None:
    ended: AsyncResult[bool] = AsyncResult()
    arrived = Event()

    def handle(sock: socket) -> None:
        read_exactly(sock, 1 << 20)
        arrived.set()
        ended.set(is_reset(sock))

    with (
        serving(handle) as target,
        running_inbound(make_server()) as server,
        running(_LOCAL, str(server.bound)) as process,
    ):
        local = printed_address(process)
        with through(local, target) as sock:
            sender = gevent.spawn(gather, [lambda: pour(sock)])
            arrived.wait()
            process.kill()
            assert ended.get() is True
            assert isinstance(sender.get()[0], ConnectionError)


def test_every_transfer_is_whole_or_fails_visibly_while_the_server_is_killed_again_and_again(
    echo_server: Address,
) -> None:
    port = free_port()
    over = Event()
    chance = random.Random(5)
    whole: list[int] = []
    wrong: list[int] = []
    failed: list[Exception] = []

    def keep_asking(local: LocalServer) -> None:
        while not over.is_set():
            data = chance.randbytes(chance.randrange(100_000))
            try:
                answer = ask_echo(local.bound, echo_server, data)
            except (OSError, EOFError, Refused) as error:
                failed.append(error)
                gevent.sleep(0.01)  # a client's pause before it tries again
            else:
                (whole if answer == data else wrong).append(len(data))

    with local_to(Address("127.0.0.1", port)) as local:
        clients = [gevent.spawn(keep_asking, local) for _ in range(50)]
        for _ in range(2):
            with server_process(port):
                so_far = len(whole)
                eventually(lambda: len(whole) > so_far + 100)  # noqa: B023 - in this turn only
        with server_process(port):
            so_far = len(whole)
            eventually(lambda: len(whole) > so_far + 100)
            over.set()
            gevent.joinall(clients, raise_error=True)
            assert not wrong, "a clean end, and not all of the data"
            assert failed, "the server was never missed, so nothing has been tested"
            payloads = [os.urandom(10_000) for _ in range(50)]
            assert ask_all(local.bound, echo_server, payloads) == payloads


def ask_all(inbound: Address, echo_at: Address, payloads: list[bytes]) -> list[object]:
    return gather([partial(ask_echo, inbound, echo_at, data) for data in payloads])


# --- crowds -----------------------------------------------------------------------------------


def test_500_connections_at_once_each_get_their_own_answer(echo_server: Address) -> None:
    with both_ends(limits=Limits(per_client=1000)) as ends:
        payloads = [b"%d " % number * 2_000 for number in range(500)]
        assert ask_all(ends.local.bound, echo_server, payloads) == payloads
        eventually(lambda: ends.local.connections == 0)


def test_an_idle_connection_holds_no_buffers(echo_server: Address) -> None:
    count = 100
    with both_ends(limits=Limits(per_client=1000), pool_size=0) as ends, ExitStack() as stack:

        def open_and_use() -> None:
            sock = stack.enter_context(through(ends.local.bound, echo_server))
            sender = gevent.spawn(sock.sendall, bytes(100_000))
            read_exactly(sock, 100_000)
            sender.get()

        gc.collect()
        tracemalloc.start()
        try:
            gather([open_and_use] * count)
            gc.collect()
            blocks = [trace.size for trace in tracemalloc.take_snapshot().traces]
        finally:
            tracemalloc.stop()
        assert ends.local.connections == count
    # the last chunk of each was at least 16 KiB long, and everything else is far smaller
    assert sum(size > 16_000 for size in blocks) < count / 10


# --- garbage ----------------------------------------------------------------------------------

HANDSHAKES = {
    "IPv4": socks_request(Address("127.0.0.1", 1)),
    "IPv6": socks_request(Address("::1", 1)),
    "name": socks_request(Address("localhost", 1)),
    "login": b"\x05\x01\x02" + b"\x01\x05alice\x06secret" + b"\x05\x01\x00\x01\x7f\0\0\x01\0\x01",
}


@pytest.mark.parametrize("handshake", HANDSHAKES.values(), ids=HANDSHAKES)
@pytest.mark.parametrize("how", ["ends", "is reset"])
def test_a_handshake_that_stops_at_any_byte_leaves_nothing(
    ends: Ends, handshake: bytes, how: str
) -> None:
    def stop_at(count: int) -> None:
        with connect(ends.local.bound) as sock:
            sock.sendall(handshake[:count])
            if how == "ends":
                sock.shutdown(std_socket.SHUT_WR)
                read_to_end(sock)
            else:
                reset(sock)

    gather([partial(stop_at, count) for count in range(len(handshake) + 1)])
    eventually(lambda: ends.local.connections == 0)
    eventually(lambda: len(ends.at_local.all) == len(handshake) + 1)


def test_garbage_is_closed_and_the_next_client_is_served(ends: Ends, echo_server: Address) -> None:
    chance = random.Random(3)

    def talk_nonsense() -> None:
        with connect(ends.local.bound) as sock:
            sock.sendall(chance.randbytes(chance.randrange(1, 2000)))
            sock.shutdown(std_socket.SHUT_WR)
            read_to_end(sock)

    gather([talk_nonsense] * 200)
    assert ask_echo(ends.local.bound, echo_server, b"served") == b"served"
    eventually(lambda: ends.local.connections == 0)
    assert "ok" in ends.at_local.outcomes


@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_flipped_bit_in_a_tunnel_is_a_reset_and_never_wrong_data(
    echo_server: Address, direction: str
) -> None:
    with (
        running_inbound(make_server()) as server,
        Forwarder(server.bound) as between,
        # no tunnel is opened beside it, whose bit could be the flipped one
        local_to(between.bound, pool_size=0) as local,
        through(local.bound, echo_server) as sock,
    ):
        sock.sendall(b"untouched")
        assert read_exactly(sock, 9) == b"untouched"
        between.flip_a_bit(direction)
        sock.sendall(bytes(100_000))
        got = []
        with pytest.raises(ConnectionResetError):
            while part := sock.recv(65536):
                got.append(part)
        assert not any(b"".join(got))


# --- targets ----------------------------------------------------------------------------------


def test_a_target_that_resets_at_once_is_a_reset_for_the_client(ends: Ends) -> None:
    with serving(reset) as target:
        outcome = gather([lambda: ask_echo(ends.local.bound, target, bytes(100_000))])[0]
        assert isinstance(outcome, ConnectionError)
    assert ends.at_server.next().outcome in ("remote_reset", "client_reset")
    assert "ok" not in ends.at_local.outcomes


def test_a_target_that_resets_after_part_of_its_answer_is_a_reset_for_the_client(
    ends: Ends,
) -> None:
    def lose_interest(sock: socket) -> None:
        sock.sendall(b"the beginning of a lo")
        sock.recv(1)
        reset(sock)

    with serving(lose_interest) as target, through(ends.local.bound, target) as sock:
        assert read_exactly(sock, 21) == b"the beginning of a lo"
        sock.sendall(b".")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert ends.at_server.next().outcome == "remote_reset"
    assert ends.at_local.next().outcome == "remote_reset"


def test_a_target_that_says_nothing_is_given_up_when_idle_is_over() -> None:
    with (
        both_ends(timeouts=Timeouts(idle=0.1)) as ends,
        serving(lambda sock: sock.recv(1)) as target,
        through(ends.local.bound, target) as sock,
    ):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert "idle_timeout" in (ends.at_local.next().outcome, ends.at_server.next().outcome)
