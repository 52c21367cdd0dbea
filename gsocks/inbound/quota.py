"""What one user may use at a time: connections, and bytes a second in each direction.

The user is known after the login, so the quota is acquired when a request is to be connected.
A client without a name, at a listener without users, is bounded by ``per_client`` alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from gsocks.errors import LimitReached
from gsocks.lru import LruCache
from gsocks.net.bandwidth import Bucket, LimitedStream
from gsocks.request import UDP_ASSOCIATE, Request
from gsocks.settings import Limits
from gsocks.stream import Stream


class _Buckets(NamedTuple):
    """One for each direction."""

    down: Bucket
    up: Bucket


class Shares(Protocol):
    """The connections of users over several gateways."""

    def acquire(self, user: str, limit: int) -> None:
        """One more.  Raises LimitReached."""

    def release(self, user: str) -> None:
        """One less."""


class Rates(Protocol):
    """The bandwidth of users over several gateways."""

    def first(self, rate: float) -> float:
        """Bytes a second that a user has here who comes, of ``rate`` over all gateways."""


class UserQuota:
    """The quotas of the users of one section; its listeners share them.

    ``clock`` tells monotonic seconds.  Every process counts for itself.
    """

    #: users whose buckets are kept while they have no connection, so that reconnecting gives no
    #: full bucket; beyond, the least recently seen user is forgotten
    MAX_USERS = 10_000

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_user = limits.per_user
        self._user_rate = limits.bandwidth_per_user
        self._connection_rate = limits.bandwidth_per_connection
        #: see the class
        self.clock = clock
        self._open: Counter[str] = Counter()
        #: whether connections are counted although they are not limited
        self.counts = limits.per_user is not None
        self._buckets: LruCache[str, _Buckets] = LruCache(self.MAX_USERS)
        #: of the users whose connections are limited over several gateways; None: only here
        self.shares: Shares | None = None
        #: the same of those whose bandwidth is
        self.rates: Rates | None = None

    def __repr__(self) -> str:
        return f"<UserQuota {self.users}>"

    @property
    def user_rate(self) -> float | None:
        """Bytes a second of one user in each direction; None: not limited."""
        return self._user_rate

    def buckets(self) -> Iterator[tuple[str, Sequence[Bucket]]]:
        """The users of the last time, and the bucket of each direction: down, up."""
        yield from list(self._buckets.items())

    def buckets_of(self, user: str) -> Sequence[Bucket]:
        """Those of one user; none, if the user was not there lately."""
        return self._buckets.peek(user) or ()

    @property
    def users(self) -> dict[str, int]:
        """Users and their open connections; empty where connections are not limited."""
        return dict(self._open)

    def acquire(self, user: str) -> None:
        """One connection of that user more, until :meth:`release`.  Raises LimitReached."""
        if not self.counts:
            return
        if self._per_user is not None and self._open[user] >= self._per_user:
            raise LimitReached(f"{user!r} has {self._per_user} connections open already")
        if self.shares is not None and self._per_user is not None:
            self.shares.acquire(user, self._per_user)
        self._open[user] += 1

    def release(self, user: str) -> None:
        """One less."""
        if not self.counts:
            return
        if self.shares is not None:
            self.shares.release(user)
        self._open[user] -= 1
        if not self._open[user]:
            del self._open[user]

    def change(
        self, per_user: int | None, user_rate: float | None, connection_rate: float | None
    ) -> None:
        """Change the limits: connections of a user, bytes a second of a user and of a connection.

        Open connections keep their bandwidth.  :attr:`counts` must be true.
        """
        self._per_user, self._user_rate = per_user, user_rate
        self._connection_rate = connection_rate
        self._buckets = LruCache(self.MAX_USERS)

    def limited(self, stream: Stream, request: Request) -> Stream:
        """``stream``, slowed to the bandwidth limits of the request's user and connection."""
        user = request.user
        if self._connection_rate is None and (self._user_rate is None or user is None):
            return stream
        buckets = []
        if self._connection_rate is not None:
            buckets.append(self._new_buckets(self._connection_rate))
        if self._user_rate is not None and user is not None:
            buckets.append(self._buckets_of(user, self._user_rate))
        down, up = zip(*buckets, strict=True)
        datagrams = request.command is UDP_ASSOCIATE
        return LimitedStream(stream, down, up, whole=datagrams)

    def _buckets_of(self, user: str, rate: float) -> _Buckets:
        buckets = self._buckets.get(user)
        if buckets is None:
            own = rate if self.rates is None else self.rates.first(rate)
            buckets = self._buckets[user] = self._new_buckets(own)
        return buckets

    def _new_buckets(self, rate: float) -> _Buckets:
        return _Buckets(Bucket(rate, clock=self.clock), Bucket(rate, clock=self.clock))
