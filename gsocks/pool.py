"""Tunnels opened ahead of need: a request finds one ready and pays for no handshake.

They wait in a gevent queue, the newest on top, so that the oldest can grow too old.  An idle
tunnel that becomes readable is dead: a watcher notices it at once, and it is looked at again
when it is taken.  One greenlet keeps house: it opens what is missing, pings before middleboxes
forget, and lets go what has been idle too long.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from gevent.queue import Empty, LifoQueue

from gsocks.errors import ConnectFailed, GsocksError, ShuttingDown, StreamError
from gsocks.tunnel import ClientTunnel

log = logging.getLogger("gsocks.pool")


class Pool:
    """Ready tunnels to one server.

    ``open_tunnel`` connects and agrees on keys under its own timeout; it raises ConnectFailed
    or StreamError.  ``size``: how many are kept ready; they are opened again when half of them
    are in use, so that short requests share a few tunnels instead of opening ever new ones.
    While requests find the pool empty it grows, up to ``size * growth``.  Size 0 keeps none.
    ``max_idle``: seconds after which an unused tunnel is let go; keep it below the server's
    own bound, so that the server never closes one that is just being taken.
    """

    #: seconds of silence after which an idle tunnel is pinged; NAT and balancers forget after
    #: 30 s to 350 s (wstunnel#6)
    ping_after = 25.0
    #: seconds in which a ping must be answered
    ping_timeout = 5.0
    #: how many times ``size`` may be kept ready while demand lasts
    growth = 8
    #: seconds without an empty pool after which a grown pool is halved
    shrink_after = 30.0
    #: tunnels that are opened at once ahead of need: a server that returns is not stampeded
    opening_at_once = 4
    #: seconds: after the n-th failure in a row, up to min(cap, base * 2**n) pass, at random
    backoff_base = 0.25
    backoff_cap = 15.0

    def __init__(
        self, open_tunnel: Callable[[], ClientTunnel], *, size: int = 8, max_idle: float = 300.0
    ) -> None:
        self._open_tunnel = open_tunnel
        self._size = size
        self._max_idle = max_idle
        # A tunnel that dies or grows too old leaves _alive at once, and the queue when it
        # comes to the top or when the queue is swept.
        self._queue: LifoQueue[ClientTunnel] = LifoQueue()
        self._alive: dict[ClientTunnel, Any] = {}
        self._pinged: set[ClientTunnel] = set()
        self._target = size
        self._filling = True
        self._last_miss = time.monotonic()
        self._failures = 0
        self._not_before = 0.0
        self._openers = Group()
        self._wake = Event()
        self._housekeeper: gevent.Greenlet[[], None] | None = None
        self._closed = False
        #: counts of what happened, for metrics and tests
        self.opened = 0
        self.hits = 0
        self.misses = 0
        self.found_dead = 0

    def start(self) -> None:
        """Begin to keep tunnels ready."""
        if self._size and self._housekeeper is None:
            self._housekeeper = gevent.spawn(self._keep_house)

    def close(self) -> None:
        """Close every idle tunnel and open no more; those in use are their users' to end."""
        self._closed = True
        if self._housekeeper is not None:
            self._housekeeper.kill(block=False)
        self._openers.kill(block=False)
        for tunnel in list(self._alive):
            self._let_go(tunnel)
        for tunnel in self._pinged:
            tunnel.close()

    @property
    def ready(self) -> int:
        """How many tunnels wait."""
        return len(self._alive)

    @property
    def target(self) -> int:
        """How many are to be kept ready at present."""
        return self._target

    def take(self) -> tuple[ClientTunnel, bool]:
        """A tunnel, and whether it was opened for this call just now.

        Raises what ``open_tunnel`` raises, or ShuttingDown.
        """
        while not self._closed:
            try:
                tunnel = self._queue.get_nowait()
            except Empty:
                return self._open_for_request(), True
            if tunnel not in self._alive:
                continue
            if tunnel.readable:
                self._died(tunnel)
                continue
            self._unwatch(tunnel)
            if self._too_few:
                self._wake.set()
            self.hits += 1
            return tunnel, False
        raise ShuttingDown

    def give_back(self, tunnel: ClientTunnel) -> None:
        """A tunnel whose stream has ended cleanly; kept if there is use for it."""
        if self._closed or tunnel.closed or self.ready >= 2 * self._target:
            tunnel.close()
        else:
            watcher = gevent.get_hub().loop.io(tunnel.fileno(), 1)
            watcher.start(self._died, tunnel)
            self._alive[tunnel] = watcher
            self._queue.put_nowait(tunnel)

    def distrust(self, silent_since: float) -> None:
        """Let go the idle tunnels without a sign of life since then: others are opened.

        For a tunnel that turned out to be dead without a word; they took the same way.
        """
        for tunnel in list(self._alive):
            if tunnel.last_heard < silent_since:
                self._died(tunnel)

    def _open_for_request(self) -> ClientTunnel:
        if self._size:
            self.misses += 1
            self._last_miss = time.monotonic()
            self._target = min(self._target + 1, self._size * self.growth)
            self._wake.set()
        return self._open()

    def _open(self) -> ClientTunnel:
        tunnel = self._open_tunnel()
        self.opened += 1
        if self._failures:
            log.info("tunnels can be opened again")
            # what waited for its time to try again need not
            self._failures = 0
            self._not_before = 0.0
            self._wake.set()
        return tunnel

    # --- an idle tunnel's end ---------------------------------------------------------------

    def _unwatch(self, tunnel: ClientTunnel) -> None:
        watcher = self._alive.pop(tunnel)
        watcher.stop()
        watcher.close()

    def _let_go(self, tunnel: ClientTunnel) -> None:
        self._unwatch(tunnel)
        tunnel.close()

    def _died(self, tunnel: ClientTunnel) -> None:
        """Runs in the hub when an idle tunnel becomes readable."""
        self._let_go(tunnel)
        self.found_dead += 1
        self._wake.set()

    # --- housekeeping -----------------------------------------------------------------------

    def _keep_house(self) -> None:
        while not self._closed:
            self._wake.clear()
            self._reap()
            self._refill()
            self._wake.wait(self._until_next_duty())
            self._ping_silent()

    @property
    def _too_few(self) -> bool:
        return 2 * (self.ready + len(self._openers)) < self._target

    def _until_next_duty(self) -> float:
        """Seconds: a fraction of every bound, so that none is overrun by much."""
        routine = min(self.ping_after, self._max_idle, self.shrink_after) / 4
        if self._failures and not self._openers:  # which wake us when they are done
            return max(0.0, min(routine, self._not_before - time.monotonic()))
        return routine

    def _reap(self) -> None:
        """Let go what has been idle too long, and what no request has needed for a while."""
        now = time.monotonic()
        if now - self._last_miss > self.shrink_after and self._target > self._size:
            self._target = max(self._size, self._target // 2)
            self._last_miss = now
        for tunnel in list(self._alive):
            unused = now - tunnel.last_used
            surplus = self.ready > self._target
            if unused > self._max_idle or (surplus and unused > self.shrink_after):
                self._let_go(tunnel)
        if self._queue.qsize() > 2 * self.ready + self._size:
            self._sweep()

    def _sweep(self) -> None:
        """Drop from the queue what is no longer alive, or stands in it twice; the order stays."""
        newest_first = dict.fromkeys(self._queue.get_nowait() for _ in range(self._queue.qsize()))
        for tunnel in reversed(newest_first):
            if tunnel in self._alive:
                self._queue.put_nowait(tunnel)

    def _refill(self) -> None:
        if self.ready >= self._target:
            self._filling = False
        elif self._too_few:
            self._filling = True
        if not self._filling or time.monotonic() < self._not_before:
            return
        # after a failure one tries for all
        at_once = 1 if self._failures else self.opening_at_once
        missing = self._target - self.ready - len(self._openers)
        for _ in range(min(missing, at_once - len(self._openers))):
            self._openers.spawn(self._open_ahead)

    def _open_ahead(self) -> None:
        try:
            tunnel = self._open()
        except (ConnectFailed, StreamError) as error:
            self._back_off(error)
        else:
            self.give_back(tunnel)
        # the housekeeper looks again when this opener doesn't count any more
        gevent.get_hub().loop.run_callback(self._wake.set)

    def _back_off(self, error: GsocksError) -> None:
        if not self._failures:
            log.warning("no tunnel can be opened: %s", error)
        now = time.monotonic()
        if now < self._not_before:
            return  # it began before another failed, which has counted for both
        self._failures += 1
        longest = min(self.backoff_cap, self.backoff_base * 2.0 ** min(self._failures, 16))
        self._not_before = now + random.uniform(longest / 2, longest)  # noqa: S311

    def _ping_silent(self) -> None:
        """Ask the silent ones for a sign of life; at most half of all, so that others are ready."""
        now = time.monotonic()
        silent = [t for t in self._alive if now - t.last_heard > self.ping_after]
        asked = silent[: (self.ready + 1) // 2]
        for tunnel in asked:
            self._unwatch(tunnel)
            self._pinged.add(tunnel)
        gevent.joinall([gevent.spawn(self._ping, tunnel) for tunnel in asked])

    def _ping(self, tunnel: ClientTunnel) -> None:
        try:
            with gevent.Timeout(self.ping_timeout, StreamError("a ping was not answered")):
                tunnel.ping()
        except StreamError:
            tunnel.close()
            self.found_dead += 1
            self._wake.set()
        else:
            self.give_back(tunnel)
        finally:
            self._pinged.discard(tunnel)
