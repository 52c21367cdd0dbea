"""Failed logins: an address that guesses passwords at one gateway is known at all."""

from __future__ import annotations

from typing import Any

import msgspec

from gsocks.access.throttle import Throttle
from gsocks.fleet.parts import SilentPart


class Guesses(SilentPart):
    """The failures that ``throttle`` counts.  Of a name there is only a hash of 64 bits."""

    name = "guesses"
    has_events = True
    #: failures that wait to be told; of more the oldest are forgotten
    max_waiting = 1000

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._waiting: list[tuple[str, int]] = []
        throttle.on_failure = self._failed

    def _failed(self, prefix: str, name: int) -> None:
        self._waiting.append((prefix, name))
        del self._waiting[: -self.max_waiting]

    def told(self, now: float) -> Any:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        waiting, self._waiting = self._waiting, []
        return waiting or None

    def heard(self, node: str, told: Any, now: float) -> None:  # noqa: ARG002
        """See :class:`gsocks.fleet.parts.Part`."""
        for prefix, name in msgspec.convert(told, list[tuple[str, int]])[: self.max_waiting]:
            self._throttle.hear(prefix, name)
