"""Active checks: a known page is fetched through every exit at intervals.

An exit is down when two fetches in a row fail, of different URLs if there are two.  A failure only
counts if the same URL works through another exit, after the failed fetch began or when tried at
once: else the URL is down, or the network of this machine, and no exit is ejected for it.

An exit whose page differs from what most exits get (rotation/pages.py) is doubted: it gets a few
requests beside others, as one that has yet to work, until it gets the same page.

Each process checks its own exits.
"""

from __future__ import annotations

import heapq
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from gsocks.errors import FetchFailed
from gsocks.events import note
from gsocks.exits import trust as trust_system
from gsocks.exits.fetch import Page, fetch
from gsocks.http.url import WebUrl
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.indexed import IndexedSet
from gsocks.rotation.pages import Pages, check, shape_of
from gsocks.rotation.probe_pool import ProbePool
from gsocks.rotation.roster import Changes, Member, Roster
from gsocks.settings import CheckSettings
from gsocks.turns import give_way

log = logging.getLogger("gsocks.checks")


class Checks:
    """The checks of the exits in ``roster``, whose results go to ``evidence``."""

    #: concurrent fetches
    max_concurrent = 32
    #: bytes of a page; a check URL should return a few hundred
    max_size = 1024 * 1024
    #: intervals between two checks of an exit whose checks keep failing
    max_intervals = 16
    #: each interval is longer or shorter by up to this share, so that checks spread
    jitter = 0.1
    #: other exits that are tried to find out whether the URL is down
    max_cross_checks = 5
    #: exits that have not passed a check, among which these are looked for
    max_looks = 64

    def __init__(
        self,
        roster: Roster,
        evidence: Evidence,
        settings: CheckSettings,
        random: Random,
        *,
        trust: Callable[[], ssl.SSLContext] = trust_system,
    ) -> None:
        self._roster = roster
        self._evidence = evidence
        self._settings = settings
        self._random = random
        self._trust = trust
        self._sites = [_Site(url) for url in settings.urls]
        #: of the exits that are checked
        self._states: dict[Member, _CheckState] = {}
        #: a heap: when the next check of each is due, in monotonic seconds; one that is running
        #: is not in it, and one that was removed may be
        self._due: list[tuple[float, int, Member]] = []
        #: exits that were added, and those that have passed their last check, by their numbers
        self._new: deque[Sequence[Member]] = deque()
        self._passing = IndexedSet()
        self._by_number: dict[int, Member] = {}
        self._changed = Event()
        self._pool = ProbePool(self.max_concurrent)
        self._running: gevent.Greenlet[[], None] | None = None
        #: whether this process is to check the exit of that name; None: all of them
        self.is_mine: Callable[[str], bool] | None = None

    def start(self) -> None:
        """Begin: all exits at once, and then each at its interval."""
        if self._sites and self._running is None:
            self._new.append(list(self._roster))
            self._running = gevent.spawn(self._run)

    def update(self, changes: Changes) -> None:
        """Check the exits that were added, and no more those that were removed."""
        for member in changes.removed:
            self._states.pop(member, None)
            self._by_number.pop(member.number, None)
            self._passing.discard(member.number)
            for site in self._sites:
                site.forget(member)
        if self._running is not None:
            self._new.append(changes.added)
            self._changed.set()

    def close(self) -> None:
        """Stop; fetches that are running are killed."""
        running, self._running = self._running, None
        if running is not None:
            running.kill(block=False)
            self._pool.kill()
            for each in (self._states, self._due, self._new, self._by_number):
                each.clear()
            self._passing = IndexedSet()

    # --- schedule ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._changed.clear()
            self._add_new()
            while self._due and self._due[0][0] <= time.monotonic():
                member = heapq.heappop(self._due)[2]
                self._pool.spawn(self._check, member)  # blocks while the pool is full
            self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)

    def _add_new(self) -> None:
        while self._new:
            for member in self._new.popleft():
                if self._roster.named(member.name) is member and member not in self._states:
                    self._states[member] = _CheckState()
                    self._by_number[member.number] = member
                    # at once, but in random order
                    self._plan(member, time.monotonic() - self._random.random())
                give_way()

    def _plan(self, member: Member, at: float) -> None:
        heapq.heappush(self._due, (at, member.number, member))
        if self._due[0][2] is member:
            self._changed.set()

    def _check(self, member: Member) -> None:
        state = self._states.get(member)
        if state is None:
            return  # it was removed meanwhile
        if self.is_mine is not None and not self.is_mine(member.name):
            jitter = self._random.uniform(1 - self.jitter, 1 + self.jitter)
            self._plan(member, time.monotonic() + self._settings.interval * jitter)
            return
        failures: list[tuple[_Site, float, str]] = []
        for site in self._two_sites(state):
            began = time.monotonic()
            why = self._fetch(site, member)
            if why is None:
                failures.clear()
                break
            failures.append((site, began, why))
        state.failures = state.failures + 1 if failures else 0
        if not failures:
            self._passed(member)
            self._compare(member)
        elif all(self._works(site, began, member) for site, began, _ in failures):
            self._failed(member, failures[-1][2])
        intervals = min(max(1, state.failures), self.max_intervals)
        jitter = self._random.uniform(1 - self.jitter, 1 + self.jitter)
        if member in self._states:
            (self._passing.discard if failures else self._passing.add)(member.number)
            self._plan(member, time.monotonic() + self._settings.interval * intervals * jitter)

    def _two_sites(self, state: _CheckState) -> Iterator[_Site]:
        for _ in range(2):
            site = self._sites[state.turn % len(self._sites)]
            state.turn += 1
            yield site

    # --- results ----------------------------------------------------------------------------

    def _passed(self, member: Member) -> None:
        if member.health.is_down:
            log.info("exit %s (%s) is up again", member.name, member.label)
            note("up", "its checks pass again", exit=member.name)
        self._evidence.checked(member, True, time.monotonic())

    def _failed(self, member: Member, why: str) -> None:
        if not member.health.is_down:
            log.warning("exit %s (%s) is down: %s", member.name, member.label, why)
            note("down", f"its checks fail: {why}", exit=member.name)
        self._evidence.checked(member, False, time.monotonic())

    def _compare(self, member: Member) -> None:
        """Doubt an exit whose pages differ from what most exits get, as long as they do."""
        different = [
            f"{site.url}: {site.different[member]}"
            for site in self._sites
            if member in site.different
        ]
        if different and member.different_page is None:
            log.warning("exit %s (%s) is doubted: %s", member.name, member.label, different[0])
        elif not different and member.different_page is not None:
            log.info("exit %s (%s) gets the same pages as others", member.name, member.label)
        self._evidence.compared(member, different[0] if different else None, time.monotonic())

    def _works(self, site: _Site, since: float, failed: Member) -> bool:
        """Whether ``site`` has worked since then through another exit than the ``failed`` one."""
        # if several exits fail at the same time, one cross-check is enough for all
        with site.cross_checking:
            if site.is_down:
                return False
            for member in self._for_cross_check(failed):
                if site.worked_at >= since or self._fetch(site, member) is None:
                    return True
            site.is_down = True
            log.warning("check URL %s fails through all exits: no exit is ejected", site.url)
            return False

    def _for_cross_check(self, failed: Member) -> list[Member]:
        """Other exits to try a URL through, those first whose last results were good."""
        numbers = islice(self._passing.draws(self._random), self.max_cross_checks + 1)
        found = [self._by_number[number] for number in numbers]
        # of the others a few are looked at, or all if there are few
        some = self._roster.sample(self.max_looks)
        some.sort(key=lambda member: not member.health.proven)
        others = [each for each in dict.fromkeys(found + some) if each is not failed]
        return others[: self.max_cross_checks]

    def _fetch(self, site: _Site, member: Member) -> str | None:
        """Fetch a page through an exit; why that has failed, None if it has not."""
        settings = self._settings
        try:
            page = fetch(
                site.url,
                member.exit,
                largest=self.max_size,
                timeout=settings.timeout,
                trust=self._trust,
            )
            check(page, settings.expect)
        except FetchFailed as error:
            return f"{site.url}: {error}"
        if member in self._states:  # else it was removed meanwhile
            site.compare(member, page)
        site.worked_at = time.monotonic()
        if site.is_down:
            site.is_down = False
            log.info("check URL %s works again", site.url)
        return None


class _Site:
    """A check URL and its state."""

    def __init__(self, url: WebUrl) -> None:
        self.url = url
        #: monotonic seconds
        self.worked_at = float("-inf")
        #: whether it has failed through every exit of a cross-check, and has not worked since
        self.is_down = False
        self.cross_checking = BoundedSemaphore()
        self._pages = Pages()
        #: how the pages of some exits differ from those of most others
        self.different: dict[Member, str] = {}

    def compare(self, member: Member, page: Page) -> None:
        """Compare a page with those that other exits have got."""
        different = self._pages.add(member.number, shape_of(page))
        if different is None:
            self.different.pop(member, None)
        else:
            self.different[member] = different

    def forget(self, member: Member) -> None:
        """Forget the page of an exit that is gone."""
        self._pages.forget(member.number)
        self.different.pop(member, None)


class _CheckState:
    """The state of one exit's checks."""

    __slots__ = ("failures", "turn")

    def __init__(self) -> None:
        #: checks that have failed in a row
        self.failures = 0
        #: counts fetches, to take the URLs in turn
        self.turn = 0
