"""Limits of each exit for each host that is requested through it, and cool-downs after refusals.

Sites count the requests of an address, and ban it when there are too many.  So a request takes its
place in the queue of its pair of exit and host: it may be sent at once, has to wait its turn, or is
too early by more than it may wait.

Nothing here does I/O or reads a clock: ``now`` is monotonic seconds.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import timezone
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import NamedTuple

from gsocks.lru import LruCache
from gsocks.rotation.part import WHOLE, WINDOW, Part, rested_at
from gsocks.settings import PerHostSettings

#: statuses by which a site tells that it has had too many requests from an address
REFUSALS = frozenset({403, 429})

#: the same, if it tells for how long (RFC 9110 section 15.6.4)
_BUSY = 503

#: statuses that may bar an address for a time
BARRING = REFUSALS | {_BUSY}


class HostLimits:
    """The requests of each exit for each host, as far as they count in the limits of ``settings``.

    ``max_pairs``: pairs of exit and host that are remembered; the least recently used one is
    forgotten first.
    """

    def __init__(self, settings: PerHostSettings, *, max_pairs: int = 100_000) -> None:
        self.settings = settings
        self._limits_requests = (
            settings.requests_per_minute is not None
            or settings.connections is not None
            or settings.min_interval is not None
        )
        self._pairs: LruCache[tuple[str, str], _Pair] = LruCache(max_pairs)
        #: how many pairs of each host are remembered
        self._hosts: Counter[str] = Counter()
        self._rests: dict[str, _Rests] = {}
        #: pairs that have begun to cool down, for a state file to write; None: there is none
        self.changed: set[tuple[str, str]] | None = None
        #: the same of pairs that were used, or looked at in vain, for what shares the limits with
        #: other gateways
        self.used: set[tuple[str, str]] | None = None
        #: what a pair may use that is used for the first time
        self.first_part: Callable[[str, str], Part] = lambda _exit, _host: WHOLE
        self._now = -math.inf

    def __len__(self) -> int:
        return len(self._pairs)

    def keys(self) -> list[tuple[str, str]]:
        """The pairs of exit and host of which something is known."""
        return list(self._pairs)

    def has(self, host: str) -> bool:
        """Whether anything is known of the host."""
        return host in self._hosts

    def take(self, exit_: str, host: str, now: float, wait: float) -> float | None:
        """When a request may be sent through an exit, after at most ``wait`` seconds.

        Its turn is taken then; its end has to be reported by :meth:`closed`.  None: it would have
        to wait for longer, and nothing is taken.
        """
        if not self._limits_requests:
            cools_until = self.usable_at(exit_, host)
            return max(now, cools_until) if cools_until <= now + wait else None
        self._now = now
        pair = self._pair(exit_, host)
        start = max(now, pair.usable_at(self.settings))
        if self.used is not None:
            self.used.add((exit_, host))
        if start > now + wait:
            pair.is_missed = True
            return None
        pair.taken(start, self.settings)
        self._note_rest(exit_, host, pair, now)
        return start

    def joined(self, exit_: str, host: str, now: float) -> None:
        """Count a request that can't wait, since only the connection that it has can carry it.

        As for :meth:`take`, its end has to be reported.
        """
        if self._limits_requests:
            pair = self._pair(exit_, host)
            pair.taken(now, self.settings)
            if self.used is not None:
                self.used.add((exit_, host))
            self._note_rest(exit_, host, pair, now)

    def closed(self, exit_: str, host: str) -> None:
        """A request is over: failed, or its connection closed."""
        pair = self._pairs.peek((exit_, host))
        if pair is not None and pair.open:
            pair.open -= 1
            if self.used is not None:
                self.used.add((exit_, host))

    def refused(
        self, exit_: str, host: str, status: int, retry_after: float | None, now: float
    ) -> float:
        """Note a site's answer; returns until when the exit must not be used for the host.

        ``retry_after``: seconds, as :func:`parse_retry_after` has them.  Minus infinity: it may be
        used as before.
        """
        default = self.settings.cool_down
        asked = status in REFUSALS or (status == _BUSY and retry_after is not None)
        if default is None or not asked:
            return -math.inf
        seconds = default if retry_after is None else retry_after
        if self.changed is not None:
            self.changed.add((exit_, host))
        return self.cool(exit_, host, now + seconds, now)

    def cool(self, exit_: str, host: str, until: float, now: float) -> float:
        """Don't use an exit for a host until then, within the bound of the settings.

        Returns until when, which may be later.
        """
        pair = self._pair(exit_, host)
        until = min(until, now + self.settings.longest_cool_down)
        pair.cools_until = max(pair.cools_until, until)
        self._note_rest(exit_, host, pair, now)
        return pair.cools_until

    def cools_until(self, exit_: str, host: str) -> float:
        """Until when an exit must not be used for a host; minus infinity: it may be."""
        pair = self._pairs.peek((exit_, host))
        return -math.inf if pair is None else pair.cools_until

    def cooling(self, now: float) -> Iterator[tuple[str, str, float]]:
        """Each exit that must not be used for a host, that host, and until when."""
        for (exit_, host), pair in self._pairs.items():
            if pair.cools_until > now:
                yield exit_, host, pair.cools_until

    def usable_at(self, exit_: str, host: str) -> float:
        """When the exit may be sent a request for the host; infinity: once a connection closes."""
        pair = self._pairs.peek((exit_, host))
        if pair is None:
            return -math.inf
        at = pair.usable_at(self.settings)
        if self.used is not None and at > self._now:
            pair.is_missed = True
            self.used.add((exit_, host))
        return at

    def soonest(self, host: str, count: int, now: float) -> Iterator[str]:
        """Some exits whose rest for a host is over, and then some that rest, the one first whose
        rest ends first."""
        if host in self._rests:
            rests = self._rests[host]
            self._look_again(host, rests, now)
            yield from islice(rests.over, count)
            yield from (exit_ for _, exit_ in sorted(rests.until[:count]))

    # --- for what shares the limits with other gateways ---------------------------------------

    def use(self, exit_: str, host: str, now: float) -> Use | None:
        """What is used of the limits of a pair; None: nothing is known of it.

        Whether it was looked at in vain is told once.
        """
        pair = self._pairs.peek((exit_, host))
        if pair is None:
            return None
        missed, pair.is_missed = pair.is_missed, False
        return Use(pair.recent(now), pair.open, pair.pace, pair.began, missed)

    def allow(self, exit_: str, host: str, part: Part, now: float) -> None:
        """Have a pair go by its part from now on."""
        pair = self._pairs.peek((exit_, host))
        if pair is not None and pair.part != part:
            pair.take(part, self.settings, now)
            self._note_rest(exit_, host, pair, now)

    def part_of(self, exit_: str, host: str) -> Part | None:
        """What this process may use of the limits of a pair; None: nothing is known of that."""
        pair = self._pairs.peek((exit_, host))
        return None if pair is None else pair.part

    def _note_rest(self, exit_: str, host: str, pair: _Pair, now: float) -> None:
        rests = self._rests.setdefault(host, _Rests())
        self._look_again(host, rests, now)
        rests.over.pop(exit_, None)
        until = pair.usable_at(self.settings)
        if now < until < math.inf:
            heapq.heappush(rests.until, (until, exit_))

    def _look_again(self, host: str, rests: _Rests, now: float) -> None:
        while rests.until and rests.until[0][0] <= now:
            _, exit_ = heapq.heappop(rests.until)
            if self.usable_at(exit_, host) <= now:
                rests.over[exit_] = None

    def _pair(self, exit_: str, host: str) -> _Pair:
        pair = self._pairs.get((exit_, host))
        if pair is None:
            pair = _Pair()
            pair.take(self.first_part(exit_, host), self.settings, self._now)
            self._hosts[host] += 1
            evicted = self._pairs.put((exit_, host), pair)
            if evicted is not None:
                if evicted[1] in self._rests:
                    self._rests[evicted[1]].over.pop(evicted[0], None)
                self._hosts[evicted[1]] -= 1
                if not self._hosts[evicted[1]]:
                    del self._hosts[evicted[1]]
                    self._rests.pop(evicted[1], None)
        return pair


class _Rests:
    """The exits that rest for one host."""

    __slots__ = ("over", "until")

    def __init__(self) -> None:
        #: a heap: when which exit may be sent a request again
        self.until: list[tuple[float, str]] = []
        #: exits that may be again, and have not been since
        self.over: dict[str, None] = {}


class Use(NamedTuple):
    """What a pair has used of its limits."""

    #: requests that were sent in the last 60 seconds, and those that are not over
    requests: int
    open: int
    #: seconds between the last two requests, and when the last one began; infinity: there were none
    pace: float
    began: float
    #: whether it could not be used when it was looked at
    missed: bool


class _Pair:
    """What one exit has done for one host."""

    __slots__ = ("_next", "_recent", "began", "cools_until", "is_missed", "open", "pace", "part")

    def __init__(self) -> None:
        #: requests that are not over
        self.open = 0
        #: when the site's patience may be tried again
        self.cools_until = -math.inf
        #: see :class:`Use`
        self.began = -math.inf
        self.pace = math.inf
        self.is_missed = False
        self.part = WHOLE
        #: when ``min_interval`` allows the next request
        self._next = -math.inf
        #: when the latest requests were sent, or are going to be; None: none yet
        self._recent: deque[float] | None = None

    def usable_at(self, settings: PerHostSettings) -> float:
        part = self.part
        if settings.connections is not None:
            most = settings.connections if part.connections is None else part.connections
            if self.open >= most:
                return math.inf
        at = max(self.cools_until, self._next)
        if settings.requests_per_minute is None:
            return at
        most = settings.requests_per_minute if part.requests is None else part.requests
        return max(at, rested_at(self._recent or (), most))

    def taken(self, start: float, settings: PerHostSettings) -> None:
        self.open += 1
        self.pace, self.began = start - self.began, start
        if settings.min_interval is not None:
            self._next = start + self._interval(settings)
        if settings.requests_per_minute is not None:
            if self._recent is None:
                self._recent = deque(maxlen=settings.requests_per_minute)
            self._recent.append(start)

    def take(self, part: Part, settings: PerHostSettings, now: float) -> None:
        """Go by another part, from the last request on, or from now if others have sent it."""
        self.part = part
        if settings.min_interval is not None:
            began = now if self.began == -math.inf and part.interval is not None else self.began
            self._next = began + self._interval(settings)

    def recent(self, now: float) -> int:
        """How many requests count still."""
        recent = self._recent
        if recent is None:
            return 0
        while recent and recent[0] + WINDOW <= now:
            recent.popleft()
        return len(recent)

    def _interval(self, settings: PerHostSettings) -> float:
        interval = self.part.interval
        return (settings.min_interval or 0.0) if interval is None else interval


def make_host_limits(settings: PerHostSettings) -> HostLimits | None:
    """None: ``settings`` limit nothing."""
    limits = (
        settings.requests_per_minute,
        settings.connections,
        settings.min_interval,
        settings.cool_down,
    )
    return HostLimits(settings) if any(limit is not None for limit in limits) else None


def parse_retry_after(text: str | None, wall: float) -> float | None:
    """Seconds in the value of a Retry-After field (RFC 9110 section 10.2.3).

    It has seconds or a date.  ``wall``: the time of the wall clock.  None: there is no such field,
    or it can't be read.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), 1e9)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:  # the obsolete form of asctime() is in GMT
            date = date.replace(tzinfo=timezone.utc)
        return max(0.0, date.timestamp() - wall)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
