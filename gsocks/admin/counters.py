"""How the connections of each door have ended: an Observer that counts and passes on."""

from __future__ import annotations

from collections import Counter

from gsocks.observe import Observer, Record

#: different outcomes that are counted for one door; whatever comes beyond is ``other``
MOST_OUTCOMES = 100


class Count:
    """What came through one door and has ended."""

    __slots__ = ("down", "outcomes", "up")

    def __init__(self) -> None:
        #: by the word of the access log
        self.outcomes: Counter[str] = Counter()
        #: bytes from clients, and to them
        self.up = 0
        self.down = 0


class Tally:
    """Counts each record for its door, then tells the next observer."""

    def __init__(self, then: Observer) -> None:
        self._then = then
        self.doors: dict[str, Count] = {}

    def ended(self, record: Record) -> None:
        """See :meth:`gsocks.observe.Observer.ended`."""
        count = self.doors.setdefault(record.door, Count())
        outcome = record.outcome
        if outcome not in count.outcomes and len(count.outcomes) >= MOST_OUTCOMES:
            outcome = "other"
        count.outcomes[outcome] += 1
        count.up += record.up
        count.down += record.down
        self._then.ended(record)
