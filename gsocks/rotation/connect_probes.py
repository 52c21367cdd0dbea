"""Connect probes: exits that may be dead are asked before clients need them.

A list of proxies is mostly dead.  Without ``checks`` nothing would tell which ones live but the
requests of clients, each of which would wait for some of the dead.  So each exit without a success
is asked, in the background, for a destination that doesn't exist: an answer shows that a proxy is
there, speaks its protocol and accepts the login.  Whether it reaches anything is left to requests.

One that fails by itself or is silent is down, and is asked again later and later.  One that works,
by its answer or by a request that it has served meanwhile, is asked no more.

One that a request has found to fail by itself is asked again, so that no other request has to find
out whether it still does: it is ejected if it fails again.  An ejected one is asked before its
ejection ends, and is ejected anew if it fails.  An answer changes nothing, since it does not show
what fails behind the exit.

Each process probes its own exits.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count, islice
from random import Random

import gevent
from gevent.event import Event

from gsocks.backoff import Backoff
from gsocks.deadline import call_with_timeout
from gsocks.errors import ExitDoubtful, GsocksError
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.probe import ask_for_nothing
from gsocks.rotation.probe_pool import ProbePool
from gsocks.rotation.roster import Changes, Member, Roster
from gsocks.turns import give_way

log = logging.getLogger("gsocks.checks")


class ConnectProbes:
    """The probes of the exits in ``roster``, whose results go to ``evidence``.

    ``timeout``: seconds in which an exit must answer.  ``few``: a
    roster of so many exits or fewer is left to the requests.
    """

    #: exits that are probed at a time
    max_concurrent = 200
    #: probes that begin in a second, once the first ``max_concurrent`` have: each takes 0.4 ms of
    #: CPU, so that nine tenths of a core are left to requests while 100,000 exits are probed
    max_rate = 250.0
    #: seconds after which an exit is asked again that has failed a request: it may be restarting
    retry_delay = 1.0
    #: new exits that are looked at before other greenlets have their turn
    slice = 500
    #: an exit that has failed is probed again after a time that doubles; the jitter spreads those
    #: that have failed together
    backoff = Backoff(10.0, 900.0, jitter=(0.7, 1.3))

    def __init__(
        self, roster: Roster, evidence: Evidence, timeout: float, random: Random, *, few: int = 0
    ) -> None:
        self._roster = roster
        self._evidence = evidence
        self._timeout = timeout
        self._random = random
        self._few = few
        self._few_exits = True
        #: probes of each exit that have failed in a row; exits that are not probed are not in it
        self._failures: dict[Member, int] = {}
        #: when the next probe of each is due, in monotonic seconds, with a number that breaks ties
        self._due: list[tuple[float, int, Member]] = []
        #: the same for exits that requests have found to fail: they come first, since there may be
        #: 100,000 others
        self._again: list[tuple[float, int, Member]] = []
        #: when each of these is to be asked; another time in the queue counts no longer
        self._again_at: dict[Member, float] = {}
        self._numbers = count()
        #: exits that are to be looked at
        self._new: deque[Iterator[Member]] = deque()
        self._changed = Event()
        self._pool = ProbePool(self.max_concurrent)
        #: when the next probe may begin, in monotonic seconds; in the past, if fewer have begun
        self._may_begin = -math.inf
        self._running: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin with all exits that have yet to work, in random order."""
        if self._running is None:
            self._few_exits = len(self._roster) <= self._few
            self._evidence.on_failed = self._note_failed
            self._look_at(self._roster)
            self._running = gevent.spawn(self._run)

    def update(self, changes: Changes) -> None:
        """Probe the exits that were added, and forget those that were removed."""
        if self._running is None:
            return
        for member in changes.removed:
            self._failures.pop(member, None)
            self._again_at.pop(member, None)
        had_few, self._few_exits = self._few_exits, len(self._roster) <= self._few
        self._look_at(self._roster if had_few else changes.added)

    def close(self) -> None:
        """Stop; probes that are running are killed."""
        running, self._running = self._running, None
        if running is not None:
            running.kill(block=False)
            self._pool.kill()
            self._evidence.on_failed = None
            self._failures.clear()
            self._due.clear()
            self._again.clear()
            self._again_at.clear()
            self._new.clear()

    # --- schedule ---------------------------------------------------------------------------

    def _look_at(self, members: Iterable[Member]) -> None:
        if not self._few_exits:
            self._new.append(iter(list(members)))
            self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.clear()
            self._add_new()
            while queue := self._due_now():
                self._await_turn()
                due, _, member = heapq.heappop(queue)
                # blocks while the pool is full
                if queue is self._due:
                    self._pool.spawn(self._probe, member)
                elif self._again_at.get(member) == due:
                    del self._again_at[member]
                    self._pool.spawn(self._probe_again, member)
            nearest = [queue[0][0] for queue in (self._again, self._due) if queue]
            self._changed.wait(min(nearest) - time.monotonic() if nearest else None)

    def _due_now(self) -> list[tuple[float, int, Member]] | None:
        """The queue whose first probe is due; None: none is."""
        now = time.monotonic()
        for queue in (self._again, self._due):
            if queue and queue[0][0] <= now:
                return queue
        return None

    def _note_failed(self, member: Member) -> None:
        """Schedule a probe of an exit that has failed a request, or was ejected."""
        if self._few_exits or member in self._failures:
            return
        now = time.monotonic()
        left = member.health.ejected_until - now
        if left > 0:
            # in its second half, so that the result is there when the ejection ends
            due = now + max(left / 2, left - self._timeout)
        elif member in self._again_at:
            return
        else:
            due = now + self.retry_delay
        self._again_at[member] = due
        heapq.heappush(self._again, (due, next(self._numbers), member))
        self._changed.set()

    def _await_turn(self) -> None:
        """Wait until ``max_rate`` lets a probe begin."""
        now, each = time.monotonic(), 1 / self.max_rate
        self._may_begin = max(self._may_begin, now - self.max_concurrent * each) + each
        if self._may_begin > now:
            gevent.sleep(self._may_begin - now)

    def _add_new(self) -> None:
        """Schedule the new exits, a slice at a time: there may be 100,000."""
        while self._new:
            members = list(islice(self._new[0], self.slice))
            if not members:
                self._new.popleft()
            now = time.monotonic()
            for member in members:
                if member not in self._failures and not member.health.has_worked:
                    self._failures[member] = 0
                    # at once, but in random order
                    due = now - self._random.random()
                    heapq.heappush(self._due, (due, next(self._numbers), member))
            give_way(at_once=True)

    def _ask(self, member: Member) -> bool:
        """See :func:`ask_for_nothing`."""
        answered = call_with_timeout(
            self._timeout, ask_for_nothing, member.exit, self._timeout, on_timeout=None
        )
        if answered is None:
            raise ExitDoubtful(f"no answer within {self._timeout:g} s")
        return answered

    def _probe(self, member: Member) -> None:
        if self._roster.named(member.name) is not member:  # it was removed
            self._failures.pop(member, None)
            return
        if member.health.has_worked:
            del self._failures[member]
            return
        answered, why = self._answer_of(member)
        if member not in self._failures:
            return  # it was removed meanwhile
        if answered:
            del self._failures[member]
            self._evidence.probed(member, True, "", time.monotonic())
            return
        if why:
            self._evidence.probed(member, False, why, time.monotonic())
        # one that has hung up is no better known than before
        due = time.monotonic() + self.backoff.delay(self._failures[member], self._random)
        self._failures[member] += 1
        heapq.heappush(self._due, (due, next(self._numbers), member))
        self._changed.set()

    def _probe_again(self, member: Member) -> None:
        began = time.monotonic()
        if self._roster.named(member.name) is not member or member.health.proven:
            return  # it was removed, or has served a request since
        _, why = self._answer_of(member)
        if why:
            self._evidence.probe_failed_too(member, why, time.monotonic(), began=began)

    def _answer_of(self, member: Member) -> tuple[bool, str]:
        """Whether the exit has answered, and how it has failed, if it has."""
        self._mark(member, True)
        try:
            return self._ask(member), ""
        except GsocksError as error:
            return False, str(error)
        finally:
            self._mark(member, False)

    def _mark(self, member: Member, probed: bool) -> None:
        """Keep requests away from an exit while it is being probed, if there are others."""
        member.health.being_probed = probed
        self._roster.member_changed(member, time.monotonic())
