"""SocketTracker: when a socket is closed, whichever object and thread closes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.socket import socket

from gsocks.net.closing import SocketTracker
from tests.support.engine import eventually
from tests.support.stream_contract import tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs")


@pytest.fixture
def near() -> Iterator[list[socket]]:
    """A connected socket, to which nothing but the list refers."""
    sock, far = tcp_pair()
    held = [sock]
    del sock
    yield held
    held.clear()
    far.close()


def in_another_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda held: held.pop().close(), id="closes it"),
        pytest.param(
            lambda held: held.clear(),
            id="drops the last reference",
            # a socket that is forgotten is what this is about
            marks=pytest.mark.filterwarnings("ignore::ResourceWarning"),
        ),
        pytest.param(lambda held: os.close(held.pop().detach()), id="detaches and closes it"),
    ],
)
def test_a_socket_that_another_thread_closes_is_reported_once_and_in_the_trackers_own_thread(
    near: list[socket], end: Callable[[list[socket]], object]
) -> None:
    tracker: SocketTracker[str] = SocketTracker()
    reported_in: list[int] = []
    tracker.add(near[0], "known", lambda: reported_in.append(threading.get_ident()))
    assert tracker.find(near[0]) == "known"
    in_another_thread(lambda: end(near))
    eventually(lambda: reported_in)
    gevent.sleep(2 * tracker.poll_interval)
    assert reported_in == [threading.get_ident()]
    assert len(tracker) == 0


def test_a_tracker_knows_its_own_thread() -> None:
    tracker: SocketTracker[str] = SocketTracker()
    here: list[bool] = []
    in_another_thread(lambda: here.append(tracker.here))
    assert (tracker.here, here) == (True, [False])


def test_what_is_known_of_a_socket_is_forgotten_with_it(near: list[socket]) -> None:
    tracker: SocketTracker[str] = SocketTracker()
    closed: list[bool] = []
    tracker.add(near[0], "known", lambda: closed.append(True))
    sock = near.pop()
    sock.close()
    assert closed == [True]
    assert tracker.find(sock) is None
