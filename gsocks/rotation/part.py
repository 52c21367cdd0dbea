"""The part of a limit that this process may use, where gateways share the limit.

Whatever shares the limits (gsocks/fleet/) sets it; the tables here go by it without asking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: seconds in which ``requests_per_minute`` counts
WINDOW = 60.0


class Part(NamedTuple):
    """None: as much as the limit itself allows."""

    #: in any 60 seconds, and open at a time
    requests: int | None = None
    connections: int | None = None
    #: seconds between the beginnings of two requests
    interval: float | None = None


#: of limits that are not shared
WHOLE = Part()


def rested_at(sent: Sequence[float], most: int) -> float:
    """When one request more than those that were ``sent`` is one of ``most`` in 60 seconds.

    ``sent``: in monotonic seconds, ascending.  Infinity: ``most`` is 0; minus infinity: by now.
    """
    if most <= 0:
        return math.inf
    return sent[-most] + WINDOW if len(sent) >= most else -math.inf
