"""Notices when a socket is closed, whichever object owns its descriptor by then.

A program may close a socket, or drop it, and the garbage collector closes it; or it wraps the
socket, and another object owns the descriptor: ``SSLContext.wrap_socket`` calls ``detach()`` for
that.  The first two end the native socket object, which is noticed at once.  After a detach only
the descriptor itself shows whether the socket is open, so it is polled: the socket is open as long
as the descriptor refers to it.

A duplicate, by ``dup()`` or in a child process, doesn't count.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent.monkey import get_original
from gevent.socket import socket

T = TypeVar("T")

# the real thread's, also in a program where threads are greenlets
_thread_ident = get_original("_thread", "get_ident")


class HasFileno(Protocol):
    """A socket of any kind: gevent's, the standard library's, one of ssl."""

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    fd: int
    what: T
    closed: Callable[[], None]


class SocketTracker(Generic[T]):
    """Values that belong to sockets, for as long as these are open.

    It belongs to the hub of the thread that creates it, as sockets do.
    """

    #: seconds between two polls of the detached sockets; a poll costs 1 us for each
    poll_interval = 0.1

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._thread = _thread_ident()
        # By the inode, which is unique while the socket is open, under whatever descriptor.
        self._entries: dict[int, _Entry[T]] = {}
        self._detached: set[int] = set()
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def here(self) -> bool:
        """Whether it belongs to the calling thread."""
        return bool(_thread_ident() == self._thread)

    def add(self, sock: socket, what: T, closed: Callable[[], None]) -> None:
        """Store the value ``what`` of ``sock``, and call ``closed`` once when it is closed.

        The call may be in the hub, or during garbage collection: it must not block.
        """
        fd = sock.fileno()
        inode = os.fstat(fd).st_ino
        self._entries[inode] = _Entry(fd, what, closed)
        native = sock._sock  # type: ignore[attr-defined] # lives until gevent really closes it
        weakref.finalize(native, self._died, inode).atexit = False

    def find(self, sock: HasFileno) -> T | None:
        """The value of ``sock``, or of the socket that it wraps; None once it is closed."""
        try:
            inode = os.fstat(sock.fileno()).st_ino
        except OSError:
            return None
        entry = self._entries.get(inode)
        return None if entry is None else entry.what

    def poll(self) -> bool:
        """Poll the detached sockets; returns whether any of them has been closed."""
        gone = [inode for inode in self._detached if not self._is_open(inode)]
        for inode in gone:
            self._detached.discard(inode)
            self._gone(inode)
        if not self._detached and self._timer is not None:
            self._timer.close()
            self._timer = None
        return bool(gone)

    def _died(self, inode: int) -> None:
        if self.here:
            self._closed_or_detached(inode)
        else:  # collected in another thread
            self._hub.loop.run_callback_threadsafe(self._closed_or_detached, inode)

    def _closed_or_detached(self, inode: int) -> None:
        if not self._is_open(inode):
            self._gone(inode)
            return
        self._detached.add(inode)
        if self._timer is None:
            # ref=False: the program may end although this timer runs
            self._timer = self._hub.loop.timer(self.poll_interval, self.poll_interval, ref=False)
            self._timer.start(self.poll)

    def _is_open(self, inode: int) -> bool:
        try:
            return os.fstat(self._entries[inode].fd).st_ino == inode
        except OSError:
            return False

    def _gone(self, inode: int) -> None:
        self._entries.pop(inode).closed()
