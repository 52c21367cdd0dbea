"""The socket of a connection: its calls wait in their greenlet, and its end is told to them."""

from __future__ import annotations

import errno
import socket as std_socket
from collections.abc import Callable

import gevent
import pytest
from gevent.socket import socket as gevent_socket

from gsocks.sock import Socket, as_gevent_socket, receive_now
from tests.support.waiting import eventually


def pair() -> tuple[Socket, std_socket.socket]:
    """A socket, and the standard library's at its other end."""
    with std_socket.create_server(("127.0.0.1", 0)) as server:
        peer = std_socket.create_connection(server.getsockname())
        descriptor, _ = server._accept()  # type: ignore[attr-defined]
    return Socket(std_socket.AF_INET, descriptor), peer


def waiting(sock: Socket, call: Callable[[], object]) -> gevent.Greenlet[[], object]:
    """The greenlet of a call, which waits by now."""
    before = len(sock._waiting)
    greenlet = gevent.spawn(call)
    eventually(lambda: len(sock._waiting) > before, sleep=gevent.sleep)
    return greenlet


def test_a_read_waits_for_bytes_while_other_greenlets_run() -> None:
    sock, peer = pair()
    with sock, peer:
        reader = waiting(sock, lambda: sock.recv(10))
        peer.sendall(b"words")
        assert reader.get(timeout=5) == b"words"
        assert not sock._waiting


def test_a_read_into_a_buffer_waits_too() -> None:
    sock, peer = pair()
    room = bytearray(10)
    with sock, peer:
        reader = waiting(sock, lambda: sock.recv_into(room))
        peer.sendall(b"words")
        assert reader.get(timeout=5) == 5
        assert room.startswith(b"words")


def test_a_write_waits_for_room_while_another_greenlet_reads() -> None:
    sock, peer = pair()
    with sock, peer:
        reader = waiting(sock, lambda: sock.recv(10))

        def fill() -> None:
            while not peer_reads:
                sock.send(bytes(65536))

        peer_reads: list[bool] = []
        writer = waiting(sock, fill)
        peer_reads.append(True)
        peer.setblocking(False)

        def drained() -> bool:
            try:
                peer.recv(1_000_000)
            except BlockingIOError:
                pass
            return writer.ready()

        eventually(drained, sleep=gevent.sleep)
        assert not reader.ready()
        peer.sendall(b"words")
        assert reader.get(timeout=5) == b"words"


def test_the_end_of_the_peer_is_the_end_of_the_bytes() -> None:
    sock, peer = pair()
    with sock:
        peer.close()
        assert sock.recv(10) == b""


def test_a_close_ends_the_calls_that_wait() -> None:
    sock, peer = pair()
    with peer:
        reader = waiting(sock, lambda: sock.recv(10))
        sock.close()
        with pytest.raises(OSError, match="Bad file descriptor") as raised:
            reader.get(timeout=5)
        assert raised.value.errno == errno.EBADF
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.recv(10)
        sock.close()


def test_a_greenlet_that_is_killed_in_a_call_waits_no_more() -> None:
    sock, peer = pair()
    with sock, peer:
        waiting(sock, lambda: sock.recv(10)).kill()
        assert not sock._waiting
        peer.sendall(b"words")
        assert sock.recv(10) == b"words"


def test_what_has_not_arrived_is_not_waited_for_where_nothing_may_block() -> None:
    sock, peer = pair()
    with sock, peer:
        with pytest.raises(BlockingIOError):
            receive_now(sock, 10)
        peer.sendall(b"words")
        eventually(
            lambda: receive_now(sock, 10, std_socket.MSG_PEEK) == b"words", sleep=gevent.sleep
        )
        assert receive_now(sock, 10) == b"words"


def test_a_program_gets_the_connection_as_a_gevent_socket() -> None:
    sock, peer = pair()
    with peer, as_gevent_socket(sock) as made:
        assert isinstance(made, gevent_socket)
        assert sock.fileno() == -1
        assert as_gevent_socket(made) is made
        reader = gevent.spawn(made.recv, 10)
        gevent.sleep(0)
        peer.sendall(b"words")
        assert reader.get(timeout=5) == b"words"
