"""What one user may use at a time: connections, and bytes a second in each direction.

Who the user is shows at login, so this is asked when a request wants a way, and no earlier.
Whoever has no name, at an open door, is bounded by ``per_client`` alone.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from gsocks.bandwidth import Bucket, LimitedStream
from gsocks.errors import LimitReached
from gsocks.limits import Limits
from gsocks.request import Command, Request
from gsocks.stream import Stream


class _Buckets(NamedTuple):
    """One for each direction."""

    down: Bucket
    up: Bucket


class Shares:
    """The shares of the users of one section; its doors have them in common.

    ``clock`` tells monotonic seconds.  Every process counts for itself.
    """

    #: users whose bucket is kept when they have gone, so that nobody gets a full one by coming
    #: again; beyond, the one who was away longest is forgotten
    MAX_USERS = 10_000

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_user = limits.per_user
        self._user_rate = limits.bandwidth_per_user
        self._connection_rate = limits.bandwidth_per_connection
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._buckets: OrderedDict[str, _Buckets] = OrderedDict()

    def enter(self, user: str) -> None:
        """One connection of that user more, until :meth:`leave`.  Raises LimitReached."""
        if self._per_user is None:
            return
        if self._open[user] >= self._per_user:
            raise LimitReached(f"{user!r} has {self._per_user} connections open already")
        self._open[user] += 1

    def leave(self, user: str) -> None:
        """One less."""
        if self._per_user is None:
            return
        self._open[user] -= 1
        if not self._open[user]:
            del self._open[user]

    def limited(self, stream: Stream, request: Request) -> Stream:
        """``stream`` as slow as it has to be for who asks."""
        user = request.user
        buckets = []
        if self._connection_rate is not None:
            buckets.append(self._new_buckets(self._connection_rate))
        if self._user_rate is not None and user is not None:
            buckets.append(self._buckets_of(user, self._user_rate))
        if not buckets:
            return stream
        down, up = zip(*buckets, strict=True)
        datagrams = request.command is Command.UDP_ASSOCIATE
        return LimitedStream(stream, down, up, whole=datagrams)

    def _buckets_of(self, user: str, rate: float) -> _Buckets:
        buckets = self._buckets.get(user)
        if buckets is None:
            buckets = self._buckets[user] = self._new_buckets(rate)
            if len(self._buckets) > self.MAX_USERS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(user)
        return buckets

    def _new_buckets(self, rate: float) -> _Buckets:
        return _Buckets(Bucket(rate, clock=self._clock), Bucket(rate, clock=self._clock))
