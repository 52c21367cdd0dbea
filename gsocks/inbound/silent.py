"""Connections whose client has asked for nothing yet, which the hub watches without a greenlet.

A client may connect long before it has something to say, and one that never will costs as little
as can be: its socket, and a timer that all of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import gevent

from gsocks.sock import READ, AnySocket

#: connections that are closed in one turn of the loop because their time is over
_AT_ONCE = 50


class Accepted(Protocol):
    """An accepted connection."""

    #: of its socket, while it is watched; closed by its close()
    watcher: Any

    @property
    def sock(self) -> AnySocket: ...

    def time_left(self, seconds: float) -> float:
        """What is left of so many seconds since it was accepted."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Accepted)


class SilentConnections(Generic[C]):
    """Watches connections, and calls ``late`` for one after ``seconds``, counted from its accept.

    The call comes in the hub, where nothing may block, and the connection is watched no more then.
    """

    __slots__ = ("_connections", "_late", "_seconds", "_timer")

    def __init__(self, seconds: float, late: Callable[[C], object]) -> None:
        self._seconds = seconds
        self._late = late
        #: the oldest first
        self._connections: dict[C, None] = {}
        #: for the oldest of them, or for one before it
        self._timer: Any = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._connections)

    def add(self, connection: C, readable: Callable[..., object], *args: object) -> None:
        """Watch an accepted connection: ``readable(*args)`` is called while it can be read.

        In the hub; it has to read then, or to have the connection discarded or released.
        """
        watcher = connection.watcher = gevent.get_hub().loop.io(connection.sock.fileno(), READ)
        self._connections[connection] = None
        watcher.start(readable, *args)
        if self._timer is None:
            self._start_timer(connection)

    def discard(self, connection: C) -> bool:
        """Watch a connection no more; False if it was not.  Before its socket closes."""
        if connection not in self._connections:
            return False
        del self._connections[connection]
        connection.watcher.close()
        connection.watcher = None
        return True

    def release(self, connection: C) -> None:
        """Leave a connection to its caller, which goes on with its watcher."""
        del self._connections[connection]

    def close(self) -> None:
        """Close all of them."""
        for connection in list(self._connections):
            self.discard(connection)
            connection.close()
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _start_timer(self, oldest: C) -> None:
        # ref=False: a program may end although this timer runs
        self._timer = gevent.get_hub().loop.timer(oldest.time_left(self._seconds), ref=False)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        self._timer.close()
        self._timer = None
        for connection in list(islice(self._connections, _AT_ONCE)):
            if connection.time_left(self._seconds) > 0:
                break
            self.discard(connection)
            self._late(connection)
        oldest = next(iter(self._connections), None)
        if oldest is not None:
            self._start_timer(oldest)
