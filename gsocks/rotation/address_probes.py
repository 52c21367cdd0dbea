"""Learns the outbound address of each exit: a page is fetched through it that tells its client's.

That is no check: a page that can't be fetched, or that tells no address, changes nothing for the
exit.  Exits of providers whose address depends on the session have no address of their own, and are
not asked.

Each process asks for itself.
"""

from __future__ import annotations

import heapq
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from itertools import count
from random import Random

import gevent
from gevent.event import Event

from gsocks.backoff import Backoff
from gsocks.errors import FetchFailed
from gsocks.exits import trust as trust_system
from gsocks.exits.fetch import fetch
from gsocks.http.url import WebUrl
from gsocks.rotation.geo import Countries
from gsocks.rotation.outbound_address import OutboundAddress, address_in
from gsocks.rotation.probe_pool import ProbePool
from gsocks.rotation.roster import Changes, Member, Roster
from gsocks.settings import CheckSettings
from gsocks.turns import give_way

log = logging.getLogger("gsocks.checks")


class AddressProbes:
    """Asks the pages of ``settings.ip_urls`` through each exit of ``roster``, at intervals.

    ``countries``: tells an address's country; None: it is not known.
    """

    #: exits that are asked at a time
    max_concurrent = 32
    #: bytes of a page
    max_size = 65536
    #: each interval is longer or shorter by up to this share, so that requests spread
    jitter = 0.1
    #: seconds until an exit is asked again whose page has failed, or that may not be used
    retry = Backoff(30.0, 3600.0, jitter=(0.7, 1.3))

    def __init__(
        self,
        roster: Roster,
        settings: CheckSettings,
        countries: Countries | None,
        random: Random,
        *,
        trust: Callable[[], ssl.SSLContext] = trust_system,
    ) -> None:
        self._roster = roster
        self._settings = settings
        self._countries = countries
        self._random = random
        self._trust = trust
        self._turns = count()
        #: failures of each exit in a row, of those that have any
        self._failures: dict[Member, int] = {}
        #: when each exit is asked next, in monotonic seconds, with a number that breaks ties
        self._due: list[tuple[float, int, Member]] = []
        self._numbers = count()
        self._changed = Event()
        self._pool = ProbePool(self.max_concurrent)
        self._running: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin: all exits at once, in random order."""
        if self._running is None:
            self._running = gevent.spawn(self._run)

    def update(self, changes: Changes) -> None:
        """Ask the exits that were added, and forget those that were removed."""
        if self._running is not None:
            for member in changes.removed:
                self._failures.pop(member, None)
            self._add(changes.added)

    def close(self) -> None:
        """Stop; requests that are running are killed."""
        running, self._running = self._running, None
        if running is not None:
            running.kill(block=False)
            self._pool.kill()
            self._due.clear()
            self._failures.clear()
            if self._countries is not None:
                self._countries.close()

    def _add(self, members: Iterable[Member]) -> None:
        new = [member for member in members if "{" not in member.label]
        self._random.shuffle(new)
        for member in new:
            give_way()
            self._ask_at(time.monotonic(), member)

    def _ask_at(self, due: float, member: Member) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), member))
        self._changed.set()

    def _run(self) -> None:
        self._add(list(self._roster))
        while True:
            self._changed.clear()
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, member = heapq.heappop(self._due)
                self._pool.spawn(self._ask, member)  # blocks while the pool is full
            self._changed.wait(self._due[0][0] - now if self._due else None)

    def _ask(self, member: Member) -> None:
        roster = self._roster
        if roster.named(member.name) is not member:
            return  # it was removed
        known = None
        if not roster.refuses(member, time.monotonic()) and not member.health.is_down:
            known = self._address(member)
        if known is None:
            failures = self._failures[member] = self._failures.get(member, -1) + 1
            self._ask_at(time.monotonic() + self.retry.delay(failures, self._random), member)
            return
        self._failures.pop(member, None)
        country = None if self._countries is None else self._countries.of(known)
        self._learn(member, OutboundAddress(known, country))
        jitter = self._random.uniform(1 - self.jitter, 1 + self.jitter)
        self._ask_at(time.monotonic() + self._settings.ip_interval * jitter, member)

    def _learn(self, member: Member, found: OutboundAddress) -> None:
        before = member.outbound
        if not self._roster.learn(member, found, time.monotonic()):
            return
        level = logging.DEBUG if before is None else logging.INFO
        log.log(level, "exit %s (%s) leaves from %s", member.name, member.label, found)

    def _address(self, member: Member) -> str | None:
        """What the next page tells; None: nothing."""
        urls = self._settings.ip_urls
        url: WebUrl = urls[next(self._turns) % len(urls)]
        try:
            page = fetch(
                url,
                member.exit,
                largest=self.max_size,
                timeout=self._settings.timeout,
                trust=self._trust,
            )
            page.check_status(200)
        except FetchFailed as error:
            log.debug("exit %s (%s): %s: %s", member.name, member.label, url, error)
            return None
        return address_in(page.body)
