"""The target: what stands behind the proxies.  One process, one thread, until its stdin ends.

    python -m bench.load.target HOST PORT      prints a line when it listens

The first byte of a connection says what it is for.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys

from bench.load.bulk import CHUNK, bulk_file, discard

#: everything comes back, this byte too
ECHO = b"E"
#: bytes without end
SOURCE = b"S"
#: bytes are counted and thrown away
SINK = b"K"
#: answered by the count of all bytes thrown away so far, 8 bytes
COUNT = b"?"
COUNT_SIZE = 8

_MESSAGE = 65536


class Target:
    """All connections, served as epoll says."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._roles: dict[int, bytes] = {}
        self._bulk = bulk_file()
        self._sunk = 0

    def run(self, until: int) -> None:
        """Serve until the descriptor ``until`` can be read."""
        listener = self._listener.fileno()
        self._poll.register(listener, select.EPOLLIN)
        self._poll.register(until, select.EPOLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == until:
                    return
                if descriptor == listener:
                    self._accept()
                    continue
                try:
                    self._serve(descriptor)
                except BlockingIOError:
                    pass
                except OSError:
                    self._close(descriptor)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socks[sock.fileno()] = sock
                self._poll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self, descriptor: int) -> None:
        sock = self._socks[descriptor]
        role = self._roles.get(descriptor)
        if role == SOURCE:
            os.sendfile(descriptor, self._bulk, 0, CHUNK)
        elif role == SINK:
            self._sink(sock, discard(sock))
        else:
            data = sock.recv(_MESSAGE)
            if not data:
                self._close(descriptor)
            elif role is None:
                self._begin(sock, data)
            else:
                sock.send(data)

    def _begin(self, sock: socket.socket, data: bytes) -> None:
        role = data[:1]
        if role == COUNT:
            sock.send(self._sunk.to_bytes(COUNT_SIZE, "big"))
            return
        self._roles[sock.fileno()] = role
        if role == ECHO:
            sock.send(data)
        elif role == SOURCE:
            self._poll.modify(sock.fileno(), select.EPOLLOUT)
        elif role == SINK:
            self._sink(sock, len(data))
        else:
            self._close(sock.fileno())

    def _sink(self, sock: socket.socket, count: int) -> None:
        self._sunk += count
        if not count:
            self._close(sock.fileno())

    def _close(self, descriptor: int) -> None:
        self._roles.pop(descriptor, None)
        self._socks.pop(descriptor).close()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096)
    listener.setblocking(False)
    print("ready", flush=True)
    Target(listener).run(until=sys.stdin.fileno())


if __name__ == "__main__":
    main()
