"""Connections that have said nothing cost no greenlet, and end when their time is over."""

from __future__ import annotations

import gc
import socket as std_socket
from contextlib import ExitStack

import pytest
from gevent.select import select
from greenlet import greenlet

from gsocks.address import Address
from gsocks.settings import Limits, Timeouts
from tests.support.engine import (
    MakeLocal,
    Seen,
    connect,
    eventually,
    make_server,
    read_answer,
    running_inbound,
    socks_request,
)
from tests.support.newcomers import is_turned_away
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


def living_greenlets() -> int:
    gc.collect()
    return sum(isinstance(each, greenlet) and not each.dead for each in gc.get_objects())


def test_a_client_that_says_nothing_has_no_greenlet(
    make_local: MakeLocal, echo_server: Address
) -> None:
    inbound = make_local()
    before = living_greenlets()
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(inbound.bound)) for _ in range(50)]
        eventually(lambda: inbound.connections == 50)
        assert living_greenlets() < before + 10
        assert len(inbound.context.silent) == 50
        silent[30].sendall(socks_request(echo_server))
        read_answer(silent[30])
        assert len(inbound.context.silent) == 49


def test_each_silent_client_is_let_go_when_its_own_time_is_over(
    make_local: MakeLocal, seen: Seen
) -> None:
    inbound = make_local(timeouts=Timeouts(handshake=0.05))
    for _ in range(2):  # the second time by a timer of its own
        with connect(inbound.bound) as first, connect(inbound.bound) as second:
            assert first.recv(1) == second.recv(1) == b""
        assert [seen.next().outcome for _ in range(2)] == ["handshake_timeout"] * 2
    eventually(lambda: inbound.connections == 0)


def test_more_silent_clients_than_are_closed_in_one_turn_are_all_let_go(
    make_local: MakeLocal, seen: Seen
) -> None:
    inbound = make_local(timeouts=Timeouts(handshake=0.2))
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(inbound.bound)) for _ in range(120)]
        assert all(sock.recv(1) == b"" for sock in silent)
    assert seen.outcomes == ["handshake_timeout"] * 120
    assert inbound.connections == 0


def test_a_silent_client_that_hangs_up_is_told_as_gone(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local()
    connect(inbound.bound).close()
    assert seen.next().outcome == "client_gone"
    assert len(inbound.context.silent) == 0


def test_an_evicted_silent_client_is_told_once(make_local: MakeLocal, seen: Seen) -> None:
    inbound = make_local(limits=Limits(handshakes=1), timeouts=Timeouts(handshake=0.2))
    with connect(inbound.bound) as first, connect(inbound.bound) as second:
        assert first.recv(1) == second.recv(1) == b""
    assert seen.outcomes == ["evicted", "handshake_timeout"]


def test_a_peer_that_ended_without_a_word_goes_before_one_that_has_said_a_byte() -> None:
    server = make_server(limits=Limits(handshakes=2), timeouts=Timeouts(handshake=60))
    with running_inbound(server), connect(server.bound) as spoke, connect(server.bound) as ended:
        spoke.sendall(b"?")
        ended.shutdown(std_socket.SHUT_WR)
        eventually(lambda: server.connections == 2 and not len(server.context.silent))
        with connect(server.bound):
            assert select([spoke, ended], [], [], TOO_LONG)[0] == [ended]


def test_a_server_that_stops_closes_silent_peers_at_once() -> None:
    server = make_server(timeouts=Timeouts(handshake=60))
    with running_inbound(server), connect(server.bound) as sock:
        eventually(lambda: server.connections == 1)
        server.stop(30)
        assert is_turned_away(sock)
        assert server.connections == 0
