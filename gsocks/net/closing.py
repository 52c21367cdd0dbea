"""When a socket is closed, whoever has it by then.

A program does with a socket what it likes.  It closes it, or forgets it, and the garbage collector
closes it; it has it wrapped, and then another object has the descriptor: ``SSLContext.wrap_socket``
calls ``detach()`` for that.  The first two end the native socket object, which is noticed at once.
What goes on behind a detach shows only in the descriptor itself, which is looked at again and
again: it is open as long as it leads to the same socket.

A duplicate, by ``dup()`` or in a child process, doesn't count.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import gevent
from gevent.monkey import get_original
from gevent.socket import socket

T = TypeVar("T")

# the real thread's, also in a program where threads are greenlets
_thread_ident = get_original("_thread", "get_ident")


class HasFileno(Protocol):
    """A socket of any kind: gevent's, the standard library's, one of ssl."""

    def fileno(self) -> int: ...


class _Entry(NamedTuple, Generic[T]):
    fd: int
    what: T
    closed: Callable[[], None]


class OpenSockets(Generic[T]):
    """What is known of sockets, for as long as they are open.

    Belongs to the hub of the thread that makes it, as sockets do.
    """

    #: seconds between two looks at what was detached; a look costs 1 us for each
    LOOK_EVERY = 0.1

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._thread = _thread_ident()
        # By the inode, which is one socket's for as long as it is open, under whatever descriptor.
        self._entries: dict[int, _Entry[T]] = {}
        self._detached: set[int] = set()
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def here(self) -> bool:
        """Whether the calling thread is the one that it belongs to."""
        return bool(_thread_ident() == self._thread)

    def add(self, sock: socket, what: T, closed: Callable[[], None]) -> None:
        """Remember ``what`` of ``sock``, and call ``closed`` once when it is closed.

        That may be in the hub, or wherever garbage is collected: it must not block.
        """
        fd = sock.fileno()
        inode = os.fstat(fd).st_ino
        self._entries[inode] = _Entry(fd, what, closed)
        native = sock._sock  # type: ignore[attr-defined] # lives until gevent really closes it
        weakref.finalize(native, self._died, inode).atexit = False

    def find(self, sock: HasFileno) -> T | None:
        """What is known of ``sock``, or of the one that it wraps; None once it is closed."""
        try:
            inode = os.fstat(sock.fileno()).st_ino
        except OSError:
            return None
        entry = self._entries.get(inode)
        return None if entry is None else entry.what

    def look(self) -> bool:
        """Look at what was detached; whether anything of that has been closed."""
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
            # the program may end, if this is all that it would wait for
            self._timer = self._hub.loop.timer(self.LOOK_EVERY, self.LOOK_EVERY, ref=False)
            self._timer.start(self.look)

    def _is_open(self, inode: int) -> bool:
        try:
            return os.fstat(self._entries[inode].fd).st_ino == inode
        except OSError:
            return False

    def _gone(self, inode: int) -> None:
        self._entries.pop(inode).closed()
