"""Which exit serves a request, and what happens when it can't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gevent

from gsocks.address import Address
from gsocks.errors import (
    ConfigError,
    ConnectTimeout,
    ExitFailed,
    Forbidden,
    LimitReached,
    OutOfResources,
    ShuttingDown,
)
from gsocks.exits.base import Exit
from gsocks.request import Request
from gsocks.rules import Rules, Verdict
from gsocks.stream import Stream

# What says nothing about the destination: another exit may do better.
_EXITS_OWN = (ExitFailed, LimitReached, OutOfResources, ShuttingDown)


class Way(NamedTuple):
    """A connected request."""

    stream: Stream
    #: the true bound address at the far end
    bound: Address
    #: the label of the exit that serves it
    exit: str


class WaysOut:
    """The exits behind a door, and the rules for what may be asked of them.

    ``timeout``: seconds in which a request must be connected, whatever is tried for it.
    ``tries``: how many exits a request may try, while nothing has flowed.
    """

    def __init__(
        self, exits: Sequence[Exit], rules: Rules, *, timeout: float = 10.0, tries: int = 3
    ) -> None:
        if not exits:
            raise ConfigError("no exits: there is no way out")
        self._exits = list(exits)
        self._rules = rules
        self._timeout = timeout
        self._tries = min(tries, len(self._exits))
        self._next = 0

    def start(self) -> None:
        """Let every exit begin to prepare."""
        for way in self._exits:
            way.start()

    def close(self) -> None:
        """Let go what is idle in every exit."""
        for way in self._exits:
            way.close()

    def connect(self, request: Request, tried: Callable[[str], None]) -> Way:
        """Reach the destination by one exit, or by the next ones if it fails.

        ``tried`` is told the label of each exit that is asked.  Raises ConnectFailed or
        ClientError: the destination's failure at once, the last exit's own when all have failed.
        """
        decision = self._rules.before_resolving(request.dest, request.user)
        if decision.verdict is Verdict.DENY:
            raise Forbidden(f"{request.dest} is forbidden: {decision.reason}")
        late = ConnectTimeout(f"{request.dest}: not connected within {self._timeout:g} s")
        with gevent.Timeout(self._timeout, late):
            for tries_left in reversed(range(self._tries)):
                chosen = self._choose()
                tried(chosen.label)
                try:
                    return Way(*chosen.connect(request), chosen.label)
                except _EXITS_OWN:
                    if not tries_left:
                        raise
        raise AssertionError("at least one exit was tried")

    def _choose(self) -> Exit:
        chosen = self._exits[self._next % len(self._exits)]
        self._next += 1
        return chosen
