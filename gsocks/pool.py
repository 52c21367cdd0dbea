"""Tunnels opened ahead of need: a request finds one ready and pays for no handshake.

Idle tunnels are in a gevent queue, last in first out, so that surplus ones reach the idle timeout.
An idle tunnel that becomes readable is dead: a watcher closes it at once, and it is checked again
when it is taken.  The maintenance greenlet opens missing tunnels, pings before middleboxes drop
their state, and closes tunnels that were idle for too long or have served for long enough.

A pool that no request asks sleeps: it has no tunnel and no greenlet.  Of thousands of exits only
those in use have connections.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from random import Random, SystemRandom
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from gevent.queue import Empty, LifoQueue

from gsocks.ageing import draw_bounds, is_worn
from gsocks.backoff import Backoff
from gsocks.deadline import call_with_timeout
from gsocks.errors import ConnectFailed, ShuttingDown, StreamError
from gsocks.settings import PoolSettings
from gsocks.tunnel.client import ClientTunnel

log = logging.getLogger("gsocks.pool")

# has no state that forked workers would share
_RANDOM = SystemRandom()

#: between which parts of ``Pool.ping_after`` the silence before each ping is drawn
PING_SHARES = (0.6, 1.0)


class Pool:
    """Ready tunnels to one server.

    ``open_tunnel`` connects and agrees on keys under its own timeout; it raises ConnectFailed
    or StreamError.  ``label``: the exit's, for the log.

    ``settings.size``: how many are kept ready; they are opened again when half of them are in use,
    so that short requests share a few tunnels instead of opening ever new ones.
    While requests find the pool empty it grows, up to ``size * growth``.  Size 0 keeps none.
    ``max_idle``: seconds after which an unused tunnel is closed, and a pool falls asleep that no
    request has asked; keep it below the server's idle timeout, so that the server never closes a
    tunnel that is just being taken.  ``max_age``, ``max_volume``: seconds and bytes after which no
    request gets a tunnel any more (gsocks/ageing.py).
    """

    #: seconds of silence after which an idle tunnel is pinged, at the latest; NAT and balancers
    #: forget after 30 s to 350 s (wstunnel#6)
    ping_after = 25.0
    #: seconds in which a ping must be answered
    ping_timeout = 5.0
    #: how many times ``size`` may be kept ready while demand lasts
    growth = 8
    #: seconds without an empty pool after which a grown pool is halved
    shrink_after = 30.0
    #: tunnels opened concurrently ahead of need: a server that comes back up is not flooded
    opening_at_once = 4
    #: seconds after which a tunnel that carries nothing shows that the server keeps new ones.  One
    #: that dies sooner counts as a failure: such a server would be dialled again without a pause.
    min_uptime = 30.0
    #: seconds: after the n-th failure in a row, up to min(cap, base * 2**n) pass, at random
    backoff_base = 0.25
    backoff_cap = 15.0

    def __init__(
        self,
        open_tunnel: Callable[[], ClientTunnel],
        *,
        label: str,
        settings: PoolSettings = PoolSettings(),
        random: Random = _RANDOM,
    ) -> None:
        self._open_tunnel = open_tunnel
        self._label = label
        self._settings = settings
        self._size = settings.size
        self._max_idle = settings.max_idle
        self._random = random
        # A tunnel that dies or grows too old leaves _alive at once, and the queue when it
        # comes to the top or when the queue is swept.
        self._queue: LifoQueue[ClientTunnel] = LifoQueue()
        self._alive: dict[ClientTunnel, Any] = {}
        self._pinged: set[ClientTunnel] = set()
        #: of idle tunnels: when each was heard last, and after which part of ``ping_after`` from
        #: then on it is pinged
        self._silences: dict[ClientTunnel, tuple[float, float]] = {}
        self._target = settings.size
        self._filling = True
        self._last_miss = time.monotonic()
        self._failures = 0
        #: whether the last failure was the death of a new tunnel: to open one proves nothing then
        self._doubted = False
        self._not_before = -math.inf
        #: monotonic seconds of the last request
        self._last_asked = 0.0
        self._openers = Group()
        self._wake = Event()
        self._maintainer: gevent.Greenlet[[], None] | None = None
        self._closed = False
        #: counts of what happened, for metrics and tests
        self.opened = 0
        self.hits = 0
        self.misses = 0
        self.found_dead = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.ready} of {self._target} tunnels ready"
        counts = f"{len(self._openers)} opening, {self._failures} failed in a row"
        return f"<Pool of {self._label}: {state}, {counts}>"

    def wake(self) -> None:
        """Keep tunnels ready, from now on until no request has come for ``max_idle``."""
        self._last_asked = time.monotonic()
        if self._size and not self._closed:
            self._look_after()

    def close(self) -> None:
        """Close every idle tunnel and open no more; the connections close those in use."""
        self._closed = True
        if self._maintainer is not None:
            self._maintainer.kill(block=False)
        self._openers.kill(block=False)
        for tunnel in list(self._alive):
            self._close_idle(tunnel)
        for tunnel in self._pinged:
            tunnel.close()

    @property
    def ready(self) -> int:
        """The number of idle tunnels."""
        return len(self._alive)

    @property
    def target(self) -> int:
        """The number of tunnels to keep ready at present."""
        return self._target

    def take(self) -> tuple[ClientTunnel, bool]:
        """A tunnel, and whether it was opened for this call just now.

        Wakes the pool.  Raises what ``open_tunnel`` raises, or ShuttingDown.
        """
        self.wake()
        while not self._closed:
            try:
                tunnel = self._queue.get_nowait()
            except Empty:
                return self._open_for_request(), True
            if tunnel not in self._alive:
                continue
            if tunnel.expires_at <= self._last_asked:
                self._close_idle(tunnel)
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

    def take_new(self) -> ClientTunnel:
        """A tunnel that is opened for this call, although others may be ready.

        Wakes the pool.  Raises as :meth:`take` does.
        """
        self.wake()
        if self._closed:
            raise ShuttingDown
        return self._open()

    def take_ready(self) -> tuple[ClientTunnel, Any] | None:
        """A tunnel, and the watcher of its descriptor, which is active and the caller's then.

        None if no tunnel is ready.  It may have died without the event loop knowing yet, which the
        caller has to be prepared for anyway.  Wakes the pool.  Never blocks.
        """
        self.wake()
        while self._alive:
            tunnel = self._queue.get_nowait()
            if tunnel not in self._alive:
                continue
            if tunnel.expires_at <= self._last_asked:
                self._close_idle(tunnel)
                continue
            if not tunnel.between_frames:
                self._died(tunnel)
                continue
            watcher = self._alive.pop(tunnel)
            if self._too_few:
                self._wake.set()
            self.hits += 1
            return tunnel, watcher
        return None

    def give_back(self, tunnel: ClientTunnel, *, carried: bool = False) -> None:
        """Take back a tunnel whose stream has ended cleanly.

        It is closed if the pool is full, or if it has served for long enough.  ``carried``: there
        was a stream in it, and no refusal.
        """
        if carried and self._doubted:
            self._recovered()
        if self._closed or tunnel.closed or self.ready >= 2 * self._target or is_worn(tunnel):
            tunnel.close()
        else:
            watcher = gevent.get_hub().loop.io(tunnel.fileno(), 1)
            watcher.start(self._on_readable, tunnel)
            self._alive[tunnel] = watcher
            self._queue.put_nowait(tunnel)
            self._look_after()  # a pool falls asleep while its last tunnels are in use

    def distrust(self, silent_since: float) -> None:
        """Close the idle tunnels that received nothing since then, and have others opened.

        For a tunnel that died without FIN or RST: the others use the same network path.
        """
        for tunnel in list(self._alive):
            if tunnel.last_heard < silent_since:
                self._close_dead(tunnel)

    def _open_for_request(self) -> ClientTunnel:
        if self._size:
            self.misses += 1
            self._last_miss = time.monotonic()
            self._target = min(self._target + 1, self._size * self.growth)
            self._wake.set()
        return self._open()

    def _open(self) -> ClientTunnel:
        tunnel, settings = self._open_tunnel(), self._settings
        draw_bounds(tunnel, settings.max_age, settings.max_volume, self._random)
        self.opened += 1
        if self._failures and not self._doubted:
            self._recovered()
        return tunnel

    def _recovered(self) -> None:
        log.info("%s: tunnels can be opened again", self._label)
        # the retry delay has no reason any more
        self._failures = 0
        self._doubted = False
        self._not_before = -math.inf
        self._wake.set()

    # --- an idle tunnel's end ---------------------------------------------------------------

    def _unwatch(self, tunnel: ClientTunnel) -> None:
        watcher = self._alive.pop(tunnel)
        watcher.stop()
        watcher.close()

    def _close_idle(self, tunnel: ClientTunnel) -> None:
        self._unwatch(tunnel)
        tunnel.close()

    def _on_readable(self, tunnel: ClientTunnel) -> None:
        """Runs in the hub when the descriptor of an idle tunnel becomes readable."""
        if tunnel.readable:
            self._died(tunnel)

    def _died(self, tunnel: ClientTunnel) -> None:
        """An idle tunnel has become readable, so it has ended."""
        if not tunnel.served and time.monotonic() - tunnel.last_used < self.min_uptime:
            self._back_off("the server closes new tunnels")
            self._doubted = True
        self._close_dead(tunnel)

    def _close_dead(self, tunnel: ClientTunnel) -> None:
        self._close_idle(tunnel)
        self.found_dead += 1
        self._wake.set()

    # --- housekeeping -----------------------------------------------------------------------

    def _look_after(self) -> None:
        """Have the maintenance greenlet run, as long as there is something to do."""
        if self._maintainer is None:
            self._filling = True
            self._maintainer = gevent.spawn(self._maintain)

    def _maintain(self) -> None:
        while not self._closed:
            self._wake.clear()
            self._reap()
            if self._is_asleep:
                break
            due = min(self._refill(), self._ping_silent())
            self._wake.wait(self._until_next_run(due))
        self._maintainer = None

    @property
    def _is_unasked(self) -> bool:
        return time.monotonic() - self._last_asked > self._max_idle

    @property
    def _is_asleep(self) -> bool:
        return self._is_unasked and not self._kept and not self._openers

    @property
    def _kept(self) -> int:
        """The number of idle tunnels, those that are being pinged among them."""
        return len(self._alive) + len(self._pinged)

    @property
    def _too_few(self) -> bool:
        return 2 * (self._kept + len(self._openers)) < self._target

    def _until_next_run(self, due: float = math.inf) -> float:
        """Seconds until ``due``, or until the first tunnel ends by its age.

        At most a fraction of the shortest bound, so that none is exceeded by much.
        """
        interval = min(self.ping_after, self._max_idle, self.shrink_after) / 4
        due = min([due, *(tunnel.expires_at for tunnel in self._alive)])
        return max(0.0, min(interval, due - time.monotonic()))

    def _reap(self) -> None:
        """Close tunnels idle for ``max_idle`` or of their ``max_age``, and the surplus that no
        request has needed.
        """
        now = time.monotonic()
        if now - self._last_miss > self.shrink_after and self._target > self._size:
            self._target = max(self._size, self._target // 2)
            self._last_miss = now
        for tunnel in list(self._alive):
            unused = now - tunnel.last_used
            if self._doubted and unused > self.min_uptime:
                self._recovered()
            surplus = self.ready > self._target
            if (
                unused > self._max_idle
                or tunnel.expires_at <= now
                or (surplus and unused > self.shrink_after)
            ):
                self._close_idle(tunnel)
        if self._queue.qsize() > 2 * self.ready + self._size:
            self._sweep()

    def _sweep(self) -> None:
        """Drop closed tunnels and duplicates from the queue; the order stays."""
        newest_first = dict.fromkeys(self._queue.get_nowait() for _ in range(self._queue.qsize()))
        for tunnel in reversed(newest_first):
            if tunnel in self._alive:
                self._queue.put_nowait(tunnel)

    def _refill(self) -> float:
        """Open what is missing; returns when to go on, unless _wake is set before."""
        if self._kept >= self._target:
            self._filling = False
        elif self._too_few:
            self._filling = True
        if not self._filling or self._is_unasked:
            return math.inf
        if self._doubted and self.ready:
            return math.inf  # that one is to show that the server keeps it
        if time.monotonic() < self._not_before:
            return self._not_before
        # after a failure a single attempt probes the server
        at_once = 1 if self._failures else self.opening_at_once
        missing = self._target - self._kept - len(self._openers)
        for _ in range(min(missing, at_once - len(self._openers))):
            self._openers.spawn(self._open_ahead)
        return math.inf

    def _open_ahead(self) -> None:
        try:
            tunnel = self._open()
        except (ConnectFailed, StreamError) as error:
            self._back_off(f"no tunnel can be opened: {error}")
        else:
            self.give_back(tunnel)
        # the maintenance greenlet runs again when this opener is no longer counted
        gevent.get_hub().loop.run_callback(self._wake.set)

    def _back_off(self, reason: str) -> None:
        if not self._failures:
            log.warning("%s: %s", self._label, reason)
        now = time.monotonic()
        if now < self._not_before:
            return  # began before another attempt failed, which was counted for both
        self._failures += 1
        backoff = Backoff(self.backoff_base, self.backoff_cap, jitter=(0.5, 1.0))
        self._not_before = now + backoff.delay(self._failures, self._random)

    def _ping_silent(self) -> float:
        """Ping the tunnels whose time has come; returns when the next one's comes.

        At most half of all are pinged at a time, so that the others stay ready.  Infinity: when
        one of these has answered, which sets _wake.
        """
        now, most = time.monotonic(), (self._kept + 1) // 2
        times = self._ping_times(now)
        for tunnel in sorted(times, key=times.__getitem__):
            if len(self._pinged) >= most:
                break
            if times[tunnel] > now:
                return times[tunnel]
            self._unwatch(tunnel)
            self._pinged.add(tunnel)
            gevent.spawn(self._ping, tunnel)
        return math.inf

    def _ping_times(self, now: float) -> dict[ClientTunnel, float]:
        """When each tunnel that has been silent for a while is pinged, in monotonic seconds.

        Drawn anew after each sign of life, so that tunnels that were heard together are not pinged
        together; but not for those that requests use all the time.
        """
        drawn, self._silences = self._silences, {}
        lately = now - self.ping_after * PING_SHARES[0] / 2
        for tunnel in self._alive:
            if tunnel.last_heard > lately:
                continue
            silence = drawn.get(tunnel)
            if silence is None or silence[0] != tunnel.last_heard:
                silence = tunnel.last_heard, self._random.uniform(*PING_SHARES)
            self._silences[tunnel] = silence
        return {
            tunnel: heard + share * self.ping_after
            for tunnel, (heard, share) in self._silences.items()
        }

    def _ping(self, tunnel: ClientTunnel) -> None:
        try:
            if call_with_timeout(self.ping_timeout, tunnel.ping, on_timeout=True):
                raise StreamError("a ping was not answered")
        except StreamError:
            tunnel.close()
            self.found_dead += 1
        else:
            self.give_back(tunnel)
        finally:
            self._pinged.discard(tunnel)
            self._wake.set()
