"""Passwords can't be tried out: whoever fails is slowed, and then refused for a time.

What is counted is failed logins from one address: an IPv4 address, or an IPv6 /64, which is the
least that one customer gets.  Each failure is answered later than the one before; after too many
of them nothing from there is looked at, the right password no more than a wrong one: so a refused
guesser learns nothing and costs nothing.

Guesses that come side by side are counted as those that come one after the other: no more of
them are looked at than may still fail, and the others wait until it is known.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Container
from functools import partial
from ipaddress import IPv6Network
from typing import TypeAlias

import gevent
from gevent.event import Event

from gsocks.address import ip_of
from gsocks.errors import LoginRefused
from gsocks.login import Authenticate
from gsocks.units import format_duration

log = logging.getLogger("gsocks.throttle")

#: an IPv4 address, or the first half of an IPv6 address
_Key: TypeAlias = "str | int"


class Throttle:
    """``authenticate``, for those who have not failed too often; doors may share one.

    ``clock`` tells monotonic seconds; ``sleep`` keeps an answer back so long.  ``users``: the names
    that ``authenticate`` knows, for whoever has to tell them from what stands behind them.  Every
    process counts for itself.
    """

    #: logins from one address that may fail within WINDOW
    MOST_FAILURES = 10
    #: seconds after which a failure is forgotten
    WINDOW = 600.0
    #: seconds for which nothing from an address is looked at after MOST_FAILURES
    REFUSED_FOR = 600.0
    #: seconds before the answer to a first failure; each further one takes twice as long
    FIRST_DELAY = 0.25
    #: seconds, and no more: within ``timeouts.handshake`` the client gets its answer
    LONGEST_DELAY = 4.0
    #: addresses with failures that are remembered; the one that was silent longest is forgotten
    MAX_ADDRESSES = 10_000

    def __init__(
        self,
        authenticate: Authenticate,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = gevent.sleep,
        *,
        users: Container[str] = (),
    ) -> None:
        self.users = users
        self._authenticate = authenticate
        self._clock = clock
        self._sleep = sleep
        self._sources: OrderedDict[_Key, _Source] = OrderedDict()

    def for_client(self, host: str) -> Authenticate:
        """:meth:`verify` for a client at the IP address ``host``."""
        return partial(self.verify, host)

    def verify(self, host: str, name: str, password: bytes) -> bool:
        """What ``authenticate`` says to that name and password, later each time it says no.

        Raises LoginRefused if it isn't asked, and whatever it raises itself, which is no failure
        of the client's.  A success forgives the failures of the same name only: else whoever has
        an account could try out the others' passwords in between.
        """
        key = _key(host)
        source = self._enter(key)
        try:
            self._wait_for_turn(key, source)
            source.under_way += 1
            try:
                right = self._authenticate(name, password)
            finally:
                source.under_way -= 1
                source.wake()
            if right:
                source.forgive(name)
                return True
            delay = self._count(key, source, name)
        finally:
            self._leave(key, source)
        self._sleep(delay)
        return False

    def _enter(self, key: _Key) -> _Source:
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source()
            if len(self._sources) > self.MAX_ADDRESSES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(key)
        source.present += 1
        return source

    def _leave(self, key: _Key, source: _Source) -> None:
        source.present -= 1
        # who has done nothing wrong takes nobody's place
        if source.is_blank and self._sources.get(key) is source:
            del self._sources[key]

    def _wait_for_turn(self, key: _Key, source: _Source) -> None:
        while True:
            now = self._clock()
            if source.refused_until > now:
                left = format_duration(round(source.refused_until - now) or 1)
                raise LoginRefused(f"too many failed logins from {_shown(key)}; wait for {left}")
            source.forget(now - self.WINDOW)
            if len(source.failures) + source.under_way < self.MOST_FAILURES:
                return
            source.wait()

    def _count(self, key: _Key, source: _Source, name: str) -> float:
        """One failure more; the seconds by which its answer comes later."""
        now = self._clock()
        source.failures.append((now, hash(name)))
        failed = len(source.failures)
        if failed >= self.MOST_FAILURES:
            source.refused_until = now + self.REFUSED_FOR
            source.failures.clear()
            log.warning(
                "%s: %d logins have failed in %s, none is looked at for %s",
                _shown(key),
                failed,
                format_duration(self.WINDOW),
                format_duration(self.REFUSED_FOR),
            )
        delay: float = self.FIRST_DELAY * 2 ** (failed - 1)
        return min(delay, self.LONGEST_DELAY)


class _Source:
    """One address: what has failed from there, and what is under way."""

    __slots__ = ("_news", "failures", "present", "refused_until", "under_way")

    def __init__(self) -> None:
        #: when, and for which name (as its hash: a name may be long)
        self.failures: list[tuple[float, int]] = []
        #: monotonic seconds
        self.refused_until = 0.0
        #: logins that are just being looked at
        self.under_way = 0
        #: these, and those that wait to be
        self.present = 0
        self._news: Event | None = None

    @property
    def is_blank(self) -> bool:
        return not (self.present or self.failures or self.refused_until)

    def forgive(self, name: str) -> None:
        if self.failures:
            named = hash(name)
            self.failures = [failure for failure in self.failures if failure[1] != named]

    def forget(self, until: float) -> None:
        """What failed at that time or before; and a refusal, which is over."""
        self.refused_until = 0.0
        if self.failures:
            self.failures = [failure for failure in self.failures if failure[0] > until]

    def wait(self) -> None:
        """Until a login that is under way has an outcome."""
        if self._news is None:
            self._news = Event()
        self._news.wait()

    def wake(self) -> None:
        """Those who wait; runs before the outcome is counted, and they after it."""
        news, self._news = self._news, None
        if news is not None:
            news.set()


def _key(host: str) -> _Key:
    ip = ip_of(host)
    return int(ip) >> 64 if ip is not None and ip.version == 6 else host


def _shown(key: _Key) -> str:
    return key if isinstance(key, str) else str(IPv6Network((key << 64, 64)))
