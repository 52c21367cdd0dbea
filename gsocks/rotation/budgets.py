"""Counts what exits carry against their budgets, of open connections too, and has them rest."""

from __future__ import annotations

import logging
from calendar import timegm
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import gevent

from gsocks.rotation.roster import STEPS, Changes, Member, Roster
from gsocks.rotation.state_clock import Clock
from gsocks.turns import give_way
from gsocks.units import format_duration, format_size

log = logging.getLogger("gsocks.rotation")


class Metered(Protocol):
    """A connection through an exit with a budget."""

    @property
    def member(self) -> Member: ...

    @property
    def carried(self) -> Sequence[int]:
        """Bytes up and bytes down until now."""


class Budgets:
    """The budgets of the exits in ``roster``."""

    #: seconds between two looks at open connections
    interval = 5.0

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        #: whether a state file takes :attr:`carried` from time to time
        self.is_kept = False
        #: bytes by exit and period that were carried since they were last written
        self.carried: Counter[tuple[str, str]] = Counter()
        #: the same for a store that gateways share; None: there is none
        self.shared: Counter[tuple[str, str]] | None = None
        #: open connections, and how many of their bytes are counted
        self._open: dict[Metered, int] = {}
        #: what all processes have carried, of exits that are not there
        self._totals: dict[tuple[str, str], int] = {}
        #: other processes that are taken to carry as much as this one, and what they were taken to
        #: have carried, by exit and period
        self._others = 0
        self._assumed: Counter[tuple[str, str]] = Counter()
        self._running: gevent.Greenlet[[], None] | None = None

    def close(self) -> None:
        """Look at open connections no more."""
        running, self._running = self._running, None
        if running is not None:
            running.kill(block=False)

    def update(self, changes: Changes) -> None:
        """Judge by the budgets that the exits have now."""
        clock = Clock.now()
        for member in changes.added:
            for period, _ in () if member.spending is None else member.spending.periods(clock.wall):
                count = self._totals.pop((member.name, period), None)
                if count is not None:
                    self.total(member.name, period, count, clock)
        for number, member in enumerate(self._roster):
            self._judge(member, clock)
            if not number % STEPS:
                give_way()

    # --- connections ------------------------------------------------------------------------

    def opened(self, connection: Metered) -> None:
        """Count what a connection carries from now on."""
        self._open[connection] = 0
        if self._running is None:
            self._running = gevent.spawn(self._run)

    def closed(self, connection: Metered, count: int) -> None:
        """A connection has carried ``count`` bytes in all, and is closed."""
        counted = self._open.pop(connection, 0)
        self._add(connection.member, count - counted)

    def _run(self) -> None:
        while self._open:
            gevent.sleep(self.interval)
            for connection in list(self._open):
                if connection in self._open:
                    count = sum(connection.carried)
                    more, self._open[connection] = count - self._open[connection], count
                    self._add(connection.member, more)
        self._running = None

    def _add(self, member: Member, count: int) -> None:
        spending = member.spending
        if spending is None or count <= 0:
            return
        clock = Clock.now()
        spending.add(count * (1 + self._others), clock.wall)
        for period, _ in spending.periods(clock.wall) if self._others else ():
            self._assumed[member.name, period] += count * self._others
        for counts in (self.carried if self.is_kept else None, self.shared):
            if counts is not None:
                for period, _ in spending.periods(clock.wall):
                    counts[member.name, period] += count
        self._judge(member, clock)

    def _judge(self, member: Member, clock: Clock) -> None:
        spending = member.spending
        if spending is None:
            return
        until = clock.to_monotonic(spending.rests_until(clock.wall))
        rests, rested = until > clock.monotonic, spending.until > clock.monotonic
        if not rests and not rested:
            return
        spending.until = until
        if rests and not rested:
            log.warning(
                "exit %s (%s) has used up its budget and rests for %s: %s today, %s this month",
                member.name,
                member.label,
                format_duration(round(until - clock.monotonic)),
                format_size(spending.today),
                format_size(spending.this_month),
            )
        if rests != rested:
            self._roster.member_changed(member, clock.monotonic)

    def assume(self, others: int) -> None:
        """Take so many other processes to carry as much as this one, since they can't tell; once
        there are none, what was assumed is forgotten."""
        self._others = others
        if others or not self._assumed:
            return
        assumed, self._assumed = self._assumed, Counter()
        clock = Clock.now()
        for (exit_, period), count in assumed.items():
            member = self._roster.named(exit_)
            if member is not None and member.spending is not None:
                member.spending.take_back(period, count, clock.wall)
                self._judge(member, clock)

    def total_of_fleet(self, exit_: str, period: str, count: int, clock: Clock) -> None:
        """All gateways have carried ``count`` bytes, without those in :attr:`shared`."""
        member = self._roster.named(exit_)
        if member is None or member.spending is None:
            return
        own = 0 if self.shared is None else self.shared.get((exit_, period), 0)
        member.spending.restore(period, count + own, clock.wall)
        self._judge(member, clock)

    # --- a state file, see gsocks.rotation.state_sync.Bytes ---------------------------------

    def expires(self, period: str) -> float:
        """When a period's count may be forgotten, by the wall clock."""
        year, month, *day = map(int, period.split("-"))
        begins = timegm((year, month, day[0] if day else 1, 0, 0, 0))
        return begins + (2 if day else 33) * 86400.0

    def total(self, exit_: str, period: str, count: int, clock: Clock) -> None:
        """All processes have carried ``count`` bytes, without those in :attr:`carried`."""
        member = self._roster.named(exit_)
        if member is None:
            self._totals[exit_, period] = count
        elif member.spending is not None:
            own = self.carried.get((exit_, period), 0)
            member.spending.restore(period, count + own, clock.wall)
            self._judge(member, clock)
