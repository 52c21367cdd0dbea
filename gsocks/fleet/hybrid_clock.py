"""A hybrid logical clock (Kulkarni, Demirbas, Madappa, Avva and Leone, 2014).

Its stamps order what gateways write: of two values the one with the later stamp counts.  A stamp is
the wall clock's time, but never before one that was seen, and a count among those of the same
millisecond.  So what was written after another value was known wins over that value, however wrong
the clocks are; and of values that were written independently, the later one by the clocks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

#: characters of a stamp: milliseconds, count and node, each of a fixed width, so that stamps are
#: ordered as texts, in Lua too
SIZE = 24

_STAMP = re.compile(r"[0-9a-f]{24}")
_MAX_COUNT = 0xFFFF
_MAX_MS = (1 << 48) - 1


class HybridClock:
    """The clock of ``node``, which is 8 hex digits.

    All gateways go by the store's clock, and between two looks at it by the ``monotonic`` one of
    their machine: so one whose clock is wrong, or is set, writes no stamps of the future.  Until
    the store has told its time it is that of ``wall``, in seconds since the epoch.
    """

    #: seconds by which a stamp may be ahead; one of a clock that is further ahead does not count
    max_ahead = 60.0

    def __init__(
        self,
        node: str,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        self._wall = wall
        self._monotonic = monotonic
        #: what the store's clock is ahead of the monotonic one; None: not known
        self._offset: float | None = None
        self._last = 0
        self._count = 0

    def __repr__(self) -> str:
        return f"<HybridClock {self.node} offset={self._offset}>"

    def follow(self, offset: float) -> bool:
        """Go by the store's clock, which is so many seconds ahead of the monotonic one.

        True: stamps that were made before are of the future, and have to be made anew.
        """
        self._offset = offset
        if self._last <= (self.wall() + self.max_ahead) * 1000:
            return False
        self._last = self._count = 0
        return True

    def wall(self) -> float:
        """The time of the store's clock, as far as it is known."""
        return self._wall() if self._offset is None else self._monotonic() + self._offset

    def now(self) -> str:
        """A stamp that is later than all that were made or seen."""
        present = min(max(0, int(self.wall() * 1000)), _MAX_MS)
        if present > self._last:
            self._last, self._count = present, 0
        elif self._count < _MAX_COUNT:
            self._count += 1
        else:
            self._last, self._count = self._last + 1, 0
        return f"{self._last:012x}{self._count:04x}{self.node}"

    def saw(self, stamp: str) -> bool:
        """Note a stamp of another node; False if it is none, or too far ahead to count."""
        if not _STAMP.fullmatch(stamp):
            return False
        ms, count = int(stamp[:12], 16), int(stamp[12:16], 16)
        if ms > (self.wall() + self.max_ahead) * 1000:
            return False
        if (ms, count) > (self._last, self._count):
            self._last, self._count = ms, count
        return True
