"""Connections to exits that are kept for the next HTTP request, as the tunnel pool keeps tunnels.

The newest is taken first, so that surplus ones reach the idle timeout; a connection that has ended
meanwhile, or over which something came unasked, is found when it is taken, or by a sweep.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import gevent

from gsocks.exits.base import Exit
from gsocks.exits.forward import HttpConnection
from gsocks.settings import ReuseSettings


class _Kept:
    """The connections of one exit, by their keys; the newest is the last."""

    __slots__ = ("by_key", "count")

    def __init__(self) -> None:
        self.by_key: dict[Hashable, list[HttpConnection]] = {}
        self.count = 0


class KeptConnections:
    """Idle connections of any number of exits; ``settings``: how many, and for how long."""

    #: sweeps in the time for which a connection is kept
    sweeps = 4

    def __init__(self, settings: ReuseSettings = ReuseSettings()) -> None:
        self._settings = settings
        self._exits: dict[Exit, _Kept] = {}
        #: all of them with their exits, the oldest first
        self._order: OrderedDict[HttpConnection, Exit] = OrderedDict()
        self._timer: Any = None
        #: counts of what happened, for metrics and tests
        self.reused = 0
        self.found_dead = 0

    def __len__(self) -> int:
        return len(self._order)

    def __repr__(self) -> str:
        return f"<KeptConnections: {len(self)} of {len(self._exits)} exits>"

    def count(self, exit_: Exit) -> int:
        """How many connections of an exit are kept."""
        kept = self._exits.get(exit_)
        return 0 if kept is None else kept.count

    def take(self, exit_: Exit, key: Hashable) -> HttpConnection | None:
        """The connection of that key that was used last; None if there is none."""
        kept = self._exits.get(exit_)
        while kept is not None and (connections := kept.by_key.get(key)):
            connection = connections[-1]
            self._remove(connection)
            if not connection.is_dead:
                self.reused += 1
                connection.reused = True
                return connection
            self._close_dead(connection)
        return None

    def keep(self, exit_: Exit, connection: HttpConnection) -> None:
        """Keep a connection over which no response is due; closes it where it may not be kept."""
        settings = self._settings
        if connection.key is None or not settings.per_exit or not settings.total:
            connection.stream.abort()
            return
        kept = self._exits.setdefault(exit_, _Kept())
        if kept.count >= settings.per_exit:
            self.close_oldest(exit_)
            kept = self._exits.setdefault(exit_, kept)
        elif len(self._order) >= settings.total:
            self._close(next(iter(self._order)))
            kept = self._exits.setdefault(exit_, kept)
        kept.by_key.setdefault(connection.key, []).append(connection)
        kept.count += 1
        connection.kept_at = time.monotonic()
        self._order[connection] = exit_
        if self._timer is None:
            period = settings.max_idle / self.sweeps
            # ref=False: a program may end although connections are kept
            self._timer = gevent.get_hub().loop.timer(period, period, ref=False)
            self._timer.start(self._sweep, update=True)

    def close_oldest(self, exit_: Exit) -> bool:
        """Close the connection of an exit that has been idle for longest; False if it has none."""
        kept = self._exits.get(exit_)
        if kept is None:
            return False
        firsts = (connections[0] for connections in kept.by_key.values())
        self._close(min(firsts, key=lambda connection: connection.kept_at))
        return True

    def close_all_of(self, exit_: Exit) -> None:
        """Close the connections of an exit."""
        while exit_ in self._exits:
            self.close_oldest(exit_)

    def close(self) -> None:
        """Close all."""
        for connection in list(self._order):
            self._close(connection)

    def _sweep(self) -> None:
        """Close what is idle for too long, or dead.  Runs in the hub."""
        latest = time.monotonic() - self._settings.max_idle
        for connection in list(self._order):
            if connection.kept_at <= latest:
                self._close(connection)
            elif connection.is_dead:
                self._remove(connection)
                self._close_dead(connection)

    def _close_dead(self, connection: HttpConnection) -> None:
        self.found_dead += 1
        connection.stream.abort()

    def _close(self, connection: HttpConnection) -> None:
        self._remove(connection)
        # a reset, by which the far end knows at once that nothing more will come
        connection.stream.abort()

    def _remove(self, connection: HttpConnection) -> None:
        exit_ = self._order.pop(connection)
        kept = self._exits[exit_]
        connections = kept.by_key[connection.key]
        connections.remove(connection)
        kept.count -= 1
        if not connections:
            del kept.by_key[connection.key]
        if not kept.count:
            del self._exits[exit_]
        if not self._order and self._timer is not None:
            self._timer.close()
            self._timer = None
