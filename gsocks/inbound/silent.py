"""Connections whose client has asked for nothing yet, which the hub watches without a greenlet.

A client may connect long before it has something to say, and one that never will costs as little
as can be: its socket, and a timer that all of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import gevent

from gsocks.net.deadlines import DeadlineQueue
from gsocks.sock import READ, AnySocket


class Accepted(Protocol):
    """An accepted connection."""

    #: of its socket, while it is watched; closed by its close()
    watcher: Any
    #: monotonic seconds
    started: float

    @property
    def sock(self) -> AnySocket: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Accepted)


class SilentConnections(DeadlineQueue[C]):
    """Watches connections, and calls ``late`` for one after ``seconds``, counted from its accept.

    The call comes in the hub, where nothing may block, and the connection is watched no more then.
    """

    __slots__ = ("_late",)

    def __init__(self, seconds: float, late: Callable[[C], object]) -> None:
        super().__init__(seconds)
        self._late = late

    def watch(self, connection: C, readable: Callable[..., object], *args: object) -> None:
        """Watch an accepted connection: ``readable(*args)`` is called while it can be read.

        In the hub; it has to read then, or to have the connection discarded or released.
        """
        watcher = connection.watcher = gevent.get_hub().loop.io(connection.sock.fileno(), READ)
        watcher.start(readable, *args)
        self.add(connection, connection.started)

    def release(self, connection: C) -> bool:
        """Leave a connection to its caller, which goes on with its watcher; False if it was not
        among them."""
        return super().discard(connection)

    def discard(self, connection: C) -> bool:
        """Watch a connection no more; False if it was not.  Before its socket closes."""
        if not self.release(connection):
            return False
        _unwatch(connection)
        return True

    def close(self) -> None:
        """Close all of them."""
        for connection in list(self):
            self.discard(connection)
            connection.close()

    def _tell(self, one: C) -> None:
        _unwatch(one)
        self._late(one)


def _unwatch(connection: Accepted) -> None:
    connection.watcher.close()
    connection.watcher = None
