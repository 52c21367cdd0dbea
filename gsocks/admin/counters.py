"""Outcomes and bytes of each listener's connections: an Observer that counts and passes on."""

from __future__ import annotations

from collections import Counter

from gsocks.observe import Observer, Record

#: different outcomes that are counted for one listener; those beyond are ``other``
MAX_OUTCOMES = 100


class Count:
    """The closed connections of one listener."""

    __slots__ = ("down", "outcomes", "up")

    def __init__(self) -> None:
        #: by the outcome in the access log
        self.outcomes: Counter[str] = Counter()
        #: bytes from clients, and to them
        self.up = 0
        self.down = 0


class ConnectionCounters:
    """Counts each record for its listener, then passes it to the next observer."""

    def __init__(self, then: Observer) -> None:
        self._then = then
        self.inbounds: dict[str, Count] = {}

    @property
    def ended_count(self) -> int:
        """Connections that have ended, at all listeners."""
        return sum(each.outcomes.total() for each in self.inbounds.values())

    def ended(self, record: Record) -> None:
        """See :meth:`gsocks.observe.Observer.ended`."""
        count = self.inbounds.setdefault(record.inbound, Count())
        outcome = record.outcome
        if outcome not in count.outcomes and len(count.outcomes) >= MAX_OUTCOMES:
            outcome = "other"
        count.outcomes[outcome] += 1
        count.up += record.up
        count.down += record.down
        self._then.ended(record)
