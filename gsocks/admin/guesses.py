"""Wrong tokens, by the address that they come from: each is answered later than the one before.

The right token is never refused, wherever wrong ones come from: a scraper of metrics shares its
address with all programs of its machine.  It has at least 16 characters, so that what can be
guessed at the rate that is left is nothing: no more than 64 connections without a token are held,
each of which has one request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from gsocks.access.networks import client_prefix
from gsocks.backoff import Backoff
from gsocks.lru import LruCache
from gsocks.units import format_duration

log = logging.getLogger("gsocks.admin")


class Verdict(NamedTuple):
    """What becomes of a wrong token."""

    #: seconds before the answer
    delay: float
    #: seconds after which that client should try again; None: it has not failed often
    retry_after: int | None


class Guesses:
    """The wrong tokens of the last minutes.  ``clock``: monotonic seconds."""

    #: seconds before the answer to the first; doubled by each further one
    first_delay = 0.25
    #: seconds
    max_delay = 4.0
    #: seconds after which one no longer counts
    window = 600.0
    #: from which on the answer says that they are too many
    many = 10
    #: addresses that are remembered; beyond, the one that has failed least lately is forgotten
    max_addresses = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: how many each address has sent in a row, and when the latest
        self._failed: LruCache[str, tuple[int, float]] = LruCache(self.max_addresses)

    def __repr__(self) -> str:
        return f"<Guesses of {len(self._failed)} addresses>"

    def failed(self, host: str) -> Verdict:
        """A wrong one has come from that address."""
        now, key = self._clock(), client_prefix(host)
        count, last = self._failed.peek(key) or (0, now)
        count = 1 if now - last > self.window else count + 1
        self._failed[key] = count, now
        if count == self.many:
            log.warning("%s: %d wrong tokens in %s", key, count, format_duration(self.window))
        delay = Backoff(self.first_delay, self.max_delay).bound(count - 1)
        return Verdict(delay, round(self.window) if count >= self.many else None)

    def succeeded(self, host: str) -> None:
        """The holder of a token has signed in from that address."""
        self._failed.discard(client_prefix(host))
