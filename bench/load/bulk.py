"""Bulk: as many bytes as will go, on a few connections, for so many seconds."""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from collections.abc import Callable

from bench.processes import Failed

#: bytes for one system call
CHUNK = 1 << 20

_waste = mmap.mmap(-1, CHUNK)


def bulk_file() -> int:
    """The descriptor of a file of CHUNK random bytes that lives in memory."""
    descriptor = os.memfd_create("bulk")
    os.write(descriptor, os.urandom(CHUNK))
    return descriptor


def discard(sock: socket.socket) -> int:
    """Receive what is there without looking at it; how many bytes that was."""
    return sock.recv_into(_waste, CHUNK, socket.MSG_TRUNC)


def receive_for(socks: list[socket.socket], seconds: float) -> int:
    """Receive on all of them for so long; returns the bytes."""
    return _pump(socks, select.EPOLLIN, discard, seconds)


def send_for(socks: list[socket.socket], seconds: float, file: int) -> int:
    """Send on all of them for so long; returns the bytes that the first hop has taken."""
    return _pump(
        socks, select.EPOLLOUT, lambda sock: os.sendfile(sock.fileno(), file, 0, CHUNK), seconds
    )


def _pump(
    socks: list[socket.socket], event: int, move: Callable[[socket.socket], int], seconds: float
) -> int:
    total = 0
    by_descriptor = {sock.fileno(): sock for sock in socks}
    deadline = time.perf_counter() + seconds
    with select.epoll() as poll:
        for sock in socks:
            sock.setblocking(False)
            poll.register(sock.fileno(), event)
        while (left := deadline - time.perf_counter()) > 0:
            for descriptor, _ in poll.poll(left):
                try:
                    moved = move(by_descriptor[descriptor])
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise Failed(f"broke a bulk transfer ({error})") from None
                if not moved:
                    raise Failed("ended a bulk transfer")
                total += moved
    return total
