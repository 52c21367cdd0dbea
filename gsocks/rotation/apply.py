"""The exits of a door are others now: nobody's connection ends by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gevent.lock import BoundedSemaphore

from gsocks.assemble import make_offers
from gsocks.errors import ConfigError
from gsocks.exits import ExitSpec, Ground
from gsocks.feed import Feed
from gsocks.rotation.roster import Changes, Member
from gsocks.rotation.sources import Source
from gsocks.ways_out import WaysOut

log = logging.getLogger("gsocks.sources")

#: exits that are named when they come or go
_MOST_NAMED = 5


class Supply:
    """Keeps the exits of ``ways`` as ``feed`` has them; ``door`` is what the log calls it.

    ``ground``: what the exits stand on, as those do that ``ways`` has already.
    """

    def __init__(self, door: str, ways: WaysOut, ground: Ground, feed: Feed) -> None:
        self._door = door
        self._ways = ways
        self._ground = ground
        self._feed = feed
        self._replacing = BoundedSemaphore()
        feed.follow(self._listed)

    def replace(self, exits: Sequence[ExitSpec], sources: Sequence[Source]) -> None:
        """Take what the config says now.

        Raises ConfigError if there would be no exit, or one that can't be; all stays then.
        """
        with self._replacing:  # it may take a while, and be asked for again meanwhile
            self._apply(self._feed.replace(exits, sources))

    def close(self) -> None:
        """Follow no list any more."""
        self._feed.close()

    def _listed(self, exits: Sequence[ExitSpec]) -> None:
        try:
            self._apply(exits)
        except ConfigError as error:
            log.error("%s: the exits stay as they were: %s", self._door, error)

    def _apply(self, exits: Sequence[ExitSpec]) -> None:
        changes = self._ways.update(make_offers(exits, self._ground, self._ways))
        if changes.added or changes.removed:
            log.info("%s: %s", self._door, _in_words(changes, len(self._ways.roster)))


def _in_words(changes: Changes, count: int) -> str:
    parts = [
        f"{what} {_some(members)}"
        for what, members in (("added", changes.added), ("removed", changes.removed))
        if members
    ]
    return f"{' and '.join(parts)}: {count} exits now"


def _some(members: Sequence[Member]) -> str:
    more = len(members) - _MOST_NAMED
    labels = ", ".join(member.label for member in members[:_MOST_NAMED])
    return f"{labels} and {more} more" if more > 0 else labels
