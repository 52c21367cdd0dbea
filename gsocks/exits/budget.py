"""Budgets: how many bytes an exit may carry in a day and in a month, and what they cost."""

from __future__ import annotations

import math
from typing import NamedTuple

#: bytes of a gigabyte on a provider's bill
GB = 1000**3


class Budget(NamedTuple):
    """What an exit may carry; None: no bound."""

    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    #: the price of a gigabyte (10**9 bytes), in any currency
    cost_per_gb: float | None = None
    #: in the same currency; needs ``cost_per_gb``
    cost_per_month: float | None = None

    @property
    def monthly(self) -> float:
        """Bytes in a month; infinity: no bound."""
        bounds = [math.inf]
        if self.bytes_per_month is not None:
            bounds.append(self.bytes_per_month)
        if self.cost_per_month is not None and self.cost_per_gb:
            bounds.append(self.cost_per_month / self.cost_per_gb * GB)
        return min(bounds)


#: without any bound
UNLIMITED = Budget()
