"""The two clocks of what outlives a process."""

from __future__ import annotations

import time
from typing import NamedTuple


class Clock(NamedTuple):
    """A moment by both clocks: a file has the wall clock's time, a process the monotonic one's."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> Clock:
        """This moment."""
        return cls(time.monotonic(), time.time())

    def to_wall(self, monotonic: float) -> float:
        """A moment of the monotonic clock by the wall clock."""
        return self.wall + (monotonic - self.monotonic)

    def to_monotonic(self, wall: float) -> float:
        """A moment of the wall clock by the monotonic clock."""
        return self.monotonic + (wall - self.wall)
