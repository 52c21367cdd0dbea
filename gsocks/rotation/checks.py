"""Active checks: every exit is asked now and then for a page that is known to be there.

An exit is down when two checks in a row fail, by different URLs if there are two.  A failure only
counts if the same URL works through another exit, since it was asked for or at once: else it is
the URL that is down, or the network here, and that is no reason to put anybody out.

Each process checks its own exits.
"""

from __future__ import annotations

import heapq
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool

from gsocks.errors import FetchFailed
from gsocks.exits import trust as trust_system
from gsocks.fetch import fetch
from gsocks.http.url import WebUrl
from gsocks.rotation.roster import Member, Roster

log = logging.getLogger("gsocks.checks")


class CheckSettings(NamedTuple):
    """What is asked for, and how often."""

    #: pages that any exit can reach; none: no checks
    urls: tuple[WebUrl, ...] = ()
    #: seconds between two checks of an exit; up to 16 times that for one whose checks fail
    interval: float = 30.0
    #: seconds for an answer
    timeout: float = 10.0
    #: the status that an answer must have; None: any below 500, for a page that has moved, or
    #: that wants a login, has come through the exit all the same
    status: int | None = None


class Checks:
    """The checks of the exits in ``roster``, which finds out how they did."""

    #: pages that are asked for at a time
    AT_ONCE = 32
    #: bytes of an answer; a check URL should give a few hundred
    LARGEST = 1024 * 1024
    #: so many intervals at most pass between two checks of an exit that is down
    RAREST = 16
    #: a check comes so much earlier or later than its interval says, so that they spread
    JITTER = 0.1
    #: exits that are asked whether it is the URL's fault
    WITNESSES = 5

    def __init__(
        self,
        roster: Roster,
        settings: CheckSettings,
        random: Random,
        *,
        trust: Callable[[], ssl.SSLContext] = trust_system,
    ) -> None:
        self._roster = roster
        self._settings = settings
        self._random = random
        self._trust = trust
        self._sites = [_Site(url) for url in settings.urls]
        self._cards: dict[Member, _Card] = {}
        self._pool = Pool(self.AT_ONCE)
        self._running: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Check from now on: all exits at once, and each again at its time."""
        if self._sites and self._running is None:
            self._running = gevent.spawn(self._run)

    def close(self) -> None:
        """Check no longer."""
        running, self._running = self._running, None
        if running is not None:
            running.kill(block=False)
            self._pool.kill(block=False)
            self._cards.clear()

    # --- when -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            for member in self._due():
                self._cards[member].due = None
                self._pool.spawn(self._check, member)  # waits while there are too many
            gevent.sleep(min(1.0, self._settings.interval / 10))

    def _due(self) -> list[Member]:
        now = time.monotonic()
        self._cards = {member: self._cards.get(member) or _Card(now) for member in self._roster}
        due = [
            member
            for member, card in self._cards.items()
            if card.due is not None and card.due <= now
        ]
        self._random.shuffle(due)
        return due

    def _check(self, member: Member) -> None:
        card = self._cards.get(member)
        if card is None:
            return  # it was removed meanwhile
        suspicions: list[tuple[_Site, float, str]] = []
        for site in self._two_sites(card):
            began = time.monotonic()
            why = self._ask(site, member)
            if why is None:
                suspicions.clear()
                break
            suspicions.append((site, began, why))
        card.failures = card.failures + 1 if suspicions else 0
        if not suspicions:
            self._passed(member)
        elif all(self._works(site, began, member) for site, began, _ in suspicions):
            self._failed(member, suspicions[-1][2])
        rarer = min(max(1, card.failures), self.RAREST)
        jitter = self._random.uniform(1 - self.JITTER, 1 + self.JITTER)
        card.due = time.monotonic() + self._settings.interval * rarer * jitter

    def _two_sites(self, card: _Card) -> Iterator[_Site]:
        for _ in range(2):
            site = self._sites[card.turn % len(self._sites)]
            card.turn += 1
            yield site

    # --- what is found ----------------------------------------------------------------------

    def _passed(self, member: Member) -> None:
        if member.health.is_down:
            log.info("exit %s (%s) is back", member.name, member.label)
        self._roster.checked(member, True, time.monotonic())

    def _failed(self, member: Member, why: str) -> None:
        if not member.health.is_down:
            log.warning("exit %s (%s) is down: %s", member.name, member.label, why)
        self._roster.checked(member, False, time.monotonic())

    def _works(self, site: _Site, since: float, accused: Member) -> bool:
        """Whether ``site`` has worked since then, through an exit that is not the accused."""
        # of those that are accused at the same time, one has witnesses called for all
        with site.in_doubt:
            if site.is_dead:
                return False
            for witness in self._witnesses(accused):
                if site.worked_at >= since or self._ask(site, witness) is None:
                    return True
            site.is_dead = True
            log.warning("check URL %s fails through all exits: no exit is blamed", site.url)
            return False

    def _witnesses(self, accused: Member) -> Sequence[Member]:
        """Exits that may know better, those first that were well of late."""
        others = [
            (card.failures > 0, not member.health.proven, self._random.random(), member.number)
            for member, card in self._cards.items()
            if member is not accused
        ]
        by_number = {member.number: member for member in self._cards}
        return [by_number[number] for *_, number in heapq.nsmallest(self.WITNESSES, others)]

    def _ask(self, site: _Site, member: Member) -> str | None:
        """Ask for a page through an exit; why that has failed, None if it has not."""
        settings = self._settings
        try:
            page = fetch(
                site.url,
                member.exit,
                largest=self.LARGEST,
                timeout=settings.timeout,
                trust=self._trust,
            )
        except FetchFailed as error:
            return f"{site.url}: {error}"
        wanted = page.status < 500 if settings.status is None else page.status == settings.status
        if not wanted:
            return f"{site.url}: answers with status {page.status}"
        site.worked_at = time.monotonic()
        if site.is_dead:
            site.is_dead = False
            log.info("check URL %s works again", site.url)
        return None


class _Site:
    """A URL, as it stands at present."""

    def __init__(self, url: WebUrl) -> None:
        self.url = url
        #: monotonic seconds
        self.worked_at = float("-inf")
        #: whether it has failed through every exit that was asked, and has not worked since
        self.is_dead = False
        self.in_doubt = BoundedSemaphore()


class _Card:
    """What is known of an exit's checks."""

    __slots__ = ("due", "failures", "turn")

    def __init__(self, due: float) -> None:
        #: when it is checked next, in monotonic seconds; None: at present
        self.due: float | None = due
        #: checks that have failed in a row
        self.failures = 0
        #: which URL has its turn
        self.turn = 0
