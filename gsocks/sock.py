"""A TCP socket whose calls wait in their greenlet, and nothing besides.

gevent's sockets have two watchers each, take every call through a method of their own, and tell the
loop of each close.  To make and close one takes 34,000 instructions of user code, of this one 4,000
(valgrind), and a proxy has two for each connection.
"""

from __future__ import annotations

import _socket
import errno
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import gevent
from gevent.hub import Waiter
from gevent.socket import socket as GeventSocket  # noqa: N812 - beside the other kind

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

#: events of a descriptor, as the event loop has them
READ, WRITE = 1, 2

_TYPE = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK
# the native calls, which never wait, because the descriptor does not block
_recv, _recv_into, _send = _socket.socket.recv, _socket.socket.recv_into, _socket.socket.send
_close = _socket.socket.close


class Socket(_socket.socket):
    """A TCP socket, new or with a descriptor, which it owns.  Raises OSError.

    ``recv``, ``recv_into`` and ``send`` wait in the calling greenlet; everything else never waits,
    ``connect`` among it.  As with gevent's sockets, one greenlet may read while another one writes.
    """

    __slots__ = ("__weakref__", "_waiting")

    def __init__(self, family: int = _socket.AF_INET, fileno: int | None = None) -> None:
        super().__init__(family, _TYPE, 0, fileno)
        if fileno is not None:
            self.setblocking(False)
        #: the greenlets that wait now, and their watchers
        self._waiting: tuple[tuple[Any, Any], ...] = ()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Wait for bytes: at most so many, none at the end.  Raises OSError."""
        while True:
            try:
                return _recv(self, size, flags)
            except BlockingIOError:  # noqa: PERF203 - it ends the round
                self._wait(READ)

    def recv_into(self, room: WriteableBuffer, size: int = 0, flags: int = 0) -> int:
        """The same into ``room``; how many bytes."""
        while True:
            try:
                return _recv_into(self, room, size, flags)
            except BlockingIOError:  # noqa: PERF203
                self._wait(READ)

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Wait for room, and send what there is room for; how many bytes.  Raises OSError."""
        while True:
            try:
                return _send(self, data, flags)
            except BlockingIOError:  # noqa: PERF203
                self._wait(WRITE)

    def receive_now(self, size: int, flags: int = 0) -> bytes:
        """See :func:`receive_now`."""
        return _recv(self, size, flags)

    def close(self) -> None:
        """Close it; greenlets that wait in a call get an OSError.  Never blocks."""
        for waiter, watcher in self._waiting:
            watcher.close()
            closed = OSError(errno.EBADF, os.strerror(errno.EBADF))
            gevent.get_hub().loop.run_callback(waiter.throw, closed)
        _close(self)

    def _wait(self, events: int) -> None:
        hub = gevent.get_hub()
        waiter: Any = Waiter(hub)
        watcher = hub.loop.io(self.fileno(), events)
        watcher.start(waiter.switch, None)
        waiting = waiter, watcher
        self._waiting += (waiting,)
        try:
            waiter.get()
        finally:
            watcher.close()
            self._waiting = tuple([other for other in self._waiting if other is not waiting])


#: what a program may have made by itself is gevent's
AnySocket: TypeAlias = Socket | GeventSocket


def receive_now(sock: AnySocket, size: int, flags: int = 0) -> bytes:
    """What has arrived: at most so many bytes, none at the end.

    Never waits.  Raises BlockingIOError if nothing has, and OSError.
    """
    if isinstance(sock, Socket):
        return sock.receive_now(size, flags)
    return _recv(sock._sock, size, flags)  # type: ignore[attr-defined]


def as_gevent_socket(sock: AnySocket) -> GeventSocket:
    """The same connection as a gevent socket, for a program; ``sock`` is closed then."""
    if isinstance(sock, Socket):
        return GeventSocket(sock.family, _socket.SOCK_STREAM, 0, fileno=sock.detach())
    return sock
