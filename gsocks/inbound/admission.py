"""Who may come in, and who goes when it is full: a decision by counts, without socket or clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from gsocks.access.networks import Networks, client_prefix
from gsocks.access.per_client import PerClient
from gsocks.errors import ClientForbidden, LimitReached
from gsocks.lru import LruCache
from gsocks.settings import Limits


class Evictable(Protocol):
    """A connection that loses nothing but a place if it is closed: its peer has no request open."""

    def unserved(self) -> int:
        """Bytes that its peer has sent and that were not served."""

    def evict(self) -> None:
        """Close it for another one; it counts no more when this returns.  Never blocks."""


class Admission:
    """Counts the connections of one listener against ``limits``, by client prefix.

    ``clients``: the networks that may come in; None means all.

    When a limit is reached, a connection whose handshake is not complete is evicted for the
    newcomer: of the client that has most of them, the one that has said least and has waited
    longest.  So clients that say nothing displace each other and no one else, however many come.
    A client that was served before comes last, with a few handshakes: a flood from more addresses
    than there are places displaces strangers, and no one who is known, however slow his network.
    If there is no handshake, an idle connection goes: between two requests of HTTP or of a tunnel.
    Only if every connection has a request open is the newcomer refused.
    """

    #: connections of the client that has most, from the oldest on, of which the one that has said
    #: least is evicted
    candidates = 8

    #: clients that are remembered because they were served
    max_known = 10_000

    #: handshakes of one known client that are evicted last; a part of ``limits.handshakes``, and of
    #: all known clients together half of it: the other half is for those who are not known yet
    protected = 1 / 100

    __slots__ = (
        "_by_client",
        "_by_key",
        "_clients",
        "_handshakes",
        "_idle",
        "_known",
        "_known_handshakes",
        "_limits",
        "connections",
    )

    def __init__(self, limits: Limits, clients: Networks | None = None) -> None:
        self._limits = limits
        self._clients = clients
        #: not a Counter, which calls a function for each client that it does not hold yet
        self._by_client: dict[str, int] = {}
        self._by_key: Counter[str] = Counter()
        self._handshakes: PerClient[str, Evictable] = PerClient()
        #: those that are evicted last
        self._known_handshakes: PerClient[str, Evictable] = PerClient()
        #: the clients that were served lately
        self._known: LruCache[str, bool] = LruCache(self.max_known)
        self._idle: PerClient[str, Evictable] = PerClient()
        #: open connections
        self.connections = 0

    def replace_limits(self, limits: Limits) -> None:
        """Have newcomers admitted by ``limits``; open connections are not affected."""
        self._limits = limits

    def __repr__(self) -> str:
        return (
            f"<Admission {self.connections} connections, {self.handshakes} in handshake,"
            f" by client {self.clients}>"
        )

    @property
    def handshakes(self) -> int:
        """The open connections whose request or key is not known yet."""
        return self._handshakes.size + self._known_handshakes.size

    @property
    def clients(self) -> dict[str, int]:
        """The prefixes of the clients, and how many connections each has."""
        return dict(self._by_client)

    # --- a connection begins and ends -------------------------------------------------------

    def admit(self, connection: Evictable, host: str, *, behind_balancer: bool = False) -> str:
        """Count ``connection``, which begins with its handshake; returns for whom.

        That is its client's prefix.  ``host``: the address that it comes from; ``behind_balancer``:
        that of a balancer, whose header has yet to announce the client, for :meth:`announced`.  May
        evict another connection.  Raises LimitReached or ClientForbidden, and counts nothing then.
        """
        client, limits = client_prefix(host), self._limits
        if behind_balancer:
            # of clients unknown yet, and so not those of a client at the balancer's address
            client = f"balancer {client}"
        else:
            self._check(client, host)
        if self._handshakes.size + self._known_handshakes.size >= limits.handshakes:
            self._evict_handshake(client)
        if self.connections >= limits.connections and not self._make_room(client):
            raise LimitReached("too many connections")
        self.connections += 1
        self._begin_handshake(connection, client)
        if not behind_balancer:
            self._by_client[client] = self._by_client.get(client, 0) + 1
        return client

    def announced(self, connection: Evictable, balancer: str, host: str) -> str:
        """Count a connection for the client at ``host`` whom a balancer has announced.

        ``balancer``: what :meth:`admit` returned.  Returns the client's prefix; may evict,
        and raises, as :meth:`admit`.
        """
        client = client_prefix(host)
        self._check(client, host)
        self.handshake_ended(connection, balancer)
        self._begin_handshake(connection, client)
        self._by_client[client] = self._by_client.get(client, 0) + 1
        return client

    def make_room(self, host: str) -> bool:
        """Evict a connection for one from ``host``, for which there is no descriptor.

        False if there is none that can be evicted.
        """
        return self._make_room(client_prefix(host))

    def uncount_client(self, client: str) -> None:
        """One connection counts no more for ``per_client``; a client without any is forgotten."""
        left = self._by_client[client] - 1
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]

    def count_key(self, key: str, most: int) -> None:
        """Count a tunnel for its key.  Raises LimitReached if there are so many already."""
        if self._by_key[key] >= most:
            raise LimitReached(f"key {key} has {most} tunnels open already")
        self._by_key[key] += 1

    def uncount_key(self, key: str) -> None:
        """Undo :meth:`count_key`; a key without tunnels is forgotten."""
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]

    def handshake_done(self, connection: Evictable, client: str) -> None:
        """The request or the key of a connection is known, and is good: so is its client now."""
        self._known[client] = True
        if not self._handshakes.discard(client, connection):
            self._known_handshakes.remove(client, connection)

    def handshake_ended(self, connection: Evictable, client: str) -> None:
        """The handshake of a connection has failed, or goes on for another client."""
        if not self._handshakes.discard(client, connection):
            self._known_handshakes.remove(client, connection)

    def leave(self) -> None:
        """One connection is closed."""
        self.connections -= 1

    # --- between two requests ---------------------------------------------------------------

    def idle(self, connection: Evictable, client: str) -> None:
        """A connection waits for its next request, until :meth:`busy`."""
        self._idle.add(client, connection)

    def busy(self, connection: Evictable, client: str) -> None:
        """The next request of an idle connection begins, or the connection ends."""
        self._idle.remove(client, connection)

    # --- its bounds -------------------------------------------------------------------------

    def _begin_handshake(self, connection: Evictable, client: str) -> None:
        known, most = self._known_handshakes, self._limits.handshakes
        if (
            self._known.get(client)
            and known.count(client) < self.protected * most
            and known.size < most // 2
        ):
            known.add(client, connection)
        else:
            self._handshakes.add(client, connection)

    def _check(self, client: str, host: str) -> None:
        if self._clients is not None and host not in self._clients:
            raise ClientForbidden("in none of the networks that may come in")
        if self._by_client.get(client, 0) >= self._limits.per_client and not (
            self._evict(self._handshakes.held_by(client))
            or self._evict(self._known_handshakes.held_by(client))
            or self._evict(self._idle.held_by(client))
        ):
            raise LimitReached("too many connections from that address")

    def _make_room(self, client: str) -> bool:
        return self._evict_handshake(client) or self._evict(self._idle.held_by_most(client))

    def _evict_handshake(self, client: str) -> bool:
        return self._evict(self._handshakes.held_by_most(client)) or self._evict(
            self._known_handshakes.held_by_most(client)
        )

    def _evict(self, evictable: Iterator[Evictable]) -> bool:
        """Evict the connection that has said least among the first; False if there is none."""
        chosen, least = None, 0
        for connection in islice(evictable, self.candidates):
            said = connection.unserved()
            if chosen is None or said < least:
                chosen, least = connection, said
            if not said:
                break
        if chosen is None:
            return False
        chosen.evict()
        return True
