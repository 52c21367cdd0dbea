"""Host names to IP addresses, and back, with a cache.

What is known is returned at once, whatever else is looked up.  While no name server answers, what
was known before is used (RFC 8767).  What one client's look-ups may cost the others is bounded in
gsocks/net/lookups.py.
"""

from __future__ import annotations

import socket as std_socket
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Protocol

from gsocks.access.networks import client_prefix
from gsocks.address import IPAddress, ip_of
from gsocks.dns.client import DnsClient
from gsocks.dns.name_server import NameServer
from gsocks.dns.query import Found
from gsocks.errors import ConfigError, ConnectFailed, NameNotFound
from gsocks.histograms import LOOK_UPS
from gsocks.net.lookups import LookUps
from gsocks.net.name_cache import NameCache
from gsocks.settings import DnsSettings


class NameSource(Protocol):
    """Where names are looked up; see :class:`gsocks.dns.client.DnsClient`."""

    def refresh(self) -> int:
        """A number that grows when what was looked up before may be wrong."""

    def names_of(self, host: str) -> tuple[str, ...]:
        """The names that are looked up for ``host`` in turn, until one is found."""

    def look_up(self, name: str) -> Found:
        """The addresses of ``name``; none if it has none.  Raises ConnectFailed."""

    def reverse(self, ip: IPAddress) -> Found:
        """The names of ``ip``; none if it has none.  Raises ConnectFailed."""

    def close(self) -> None:
        """Close what is idle."""


class _Entry:
    """What is known of a name or an address."""

    __slots__ = ("addresses", "expires", "names", "retry_at")

    def __init__(
        self, addresses: tuple[IPAddress, ...], names: tuple[str, ...], expires: float
    ) -> None:
        #: of a name; empty if there is no such name, or it has none
        self.addresses = addresses
        #: of an address; empty if it has none
        self.names = names
        self.expires = expires
        #: until then no name server is asked again: none has answered the last time
        self.retry_at = 0.0

    @property
    def has_any(self) -> bool:
        """Whether anything was found."""
        return bool(self.addresses or self.names)


class Resolver:
    """Resolves names, with a cache, and with one look-up at a time for each name.

    ``source`` asks the name servers, by default those of ``settings``; ``now`` is the clock of the
    cache, in seconds.  Raises ConfigError for a name server that is none.
    """

    #: seconds for which a look-up may make a request wait whose answer is known but expired: the
    #: client response timer of RFC 8767 section 5
    stale_wait = 1.8
    #: seconds for which the name servers are not asked again for such a name, if they don't
    #: answer: the failure recheck timer, the same section
    stale_recheck = 30.0

    __slots__ = ("_cache", "_changes", "_look_ups", "_now", "_settings", "_source")

    def __init__(
        self,
        source: NameSource | None = None,
        settings: DnsSettings = DnsSettings(),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source or DnsClient(
            [_name_server(server) for server in settings.servers],
            settings.search,
            timeout=settings.timeout,
            longest=settings.total_timeout,
        )
        self._settings = settings
        self._now = now
        #: by name; addresses, whose names are wanted, as texts that no name has
        self._cache: NameCache[_Entry] = NameCache(settings.cache_size)
        self._look_ups: LookUps[_Entry] = LookUps(
            self._look_up, settings.lookups, settings.lookups_per_client
        )
        #: what ``refresh`` of the source has returned the last time
        self._changes = 0

    def names_of(self, host: str) -> tuple[str, ...]:
        """The names that are looked up for ``host`` in turn, until one is found.

        That is the host itself, unless it has no dot and search domains complete it.
        """
        if "." in host or ":" in host:
            return (host,)
        return self._source.names_of(host)

    def resolve(
        self, host: str, user: str | None = None, client: str = ""
    ) -> tuple[IPAddress, ...]:
        """The addresses of ``host``, at least one: of the first of its names that has some.

        Raises as :meth:`look_up`, which has the same arguments.
        """
        *before, last = self.names_of(host)
        for name in before:
            with suppress(NameNotFound):
                return self.look_up(name, user, client)
        return self.look_up(last, user, client)

    def look_up(
        self, name: str, user: str | None = None, client: str = ""
    ) -> tuple[IPAddress, ...]:
        """The addresses of ``name``, which is complete; at least one, at most 64.

        An IP literal is its own address.  ``user`` and ``client``, its address and port, tell for
        whom it is.  Raises NameNotFound; HostUnreachable if the name servers don't answer;
        OutOfResources; LimitReached if this client looks up too many names.
        """
        ip = ip_of(name)
        if ip is not None:
            return (ip,)
        entry = self._entry(name, user, client)
        if not entry.addresses:
            raise NameNotFound(f"{name}: there is no such name, or it has no address")
        return entry.addresses

    def reverse(self, ip: IPAddress, user: str | None = None, client: str = "") -> str:
        """The name of ``ip``, or one of them.

        Raises as :meth:`look_up`, which has the same arguments.
        """
        entry = self._entry(str(ip), user, client)
        if not entry.names:
            raise NameNotFound(f"{ip}: has no name")
        return entry.names[0]

    def _entry(self, name: str, user: str | None, client: str) -> _Entry:
        self._forget_if_changed()
        now = self._now()
        entry = self._cache.get(name)
        if entry is None or now >= entry.expires:
            entry = self._renew(name, entry, now, _share(user, client))
        return entry

    def known(self, name: str) -> Sequence[IPAddress]:
        """What :meth:`look_up` would return without asking; empty if it would ask, or raise.

        Never waits.
        """
        if self._cache.get(name) is None:  # and perhaps the source has yet to read its files
            return ()
        self._forget_if_changed()
        entry = self._cache.get(name)
        return () if entry is None or self._now() >= entry.expires else entry.addresses

    def close(self) -> None:
        """Close what is idle: connections to name servers over TLS."""
        self._source.close()

    def _forget_if_changed(self) -> None:
        changes = self._source.refresh()
        if changes != self._changes:
            self._changes = changes
            self._cache = NameCache(self._settings.cache_size)

    def _renew(self, name: str, known: _Entry | None, now: float, share: Hashable) -> _Entry:
        """Look ``name`` up; what was ``known`` of it serves if the name servers don't answer."""
        settings = self._settings
        if known is None or not known.has_any or now >= known.expires + settings.max_stale:
            return self._look_ups.get(name, share)
        if now < known.retry_at:
            return known
        try:
            found = self._look_ups.get_within(self.stale_wait, name, share)
        except ConnectFailed:
            found = None
        if found is None:
            known.retry_at = self._now() + self.stale_recheck
        return found or known

    def _look_up(self, name: str, share: Hashable) -> _Entry:
        cache = self._cache
        ip = ip_of(name)
        began = time.monotonic()
        try:
            found = self._source.look_up(name) if ip is None else self._source.reverse(ip)
        finally:
            LOOK_UPS.add(time.monotonic() - began)
        settings, ttl = self._settings, found.ttl
        if found.addresses or found.names:
            seconds = min(max(ttl or 0.0, settings.min_ttl), settings.max_ttl)
        else:
            seconds = min(
                settings.max_negative_ttl if ttl is None else ttl, settings.max_negative_ttl
            )
        entry = _Entry(_usable_first(found.addresses), found.names, self._now() + seconds)
        cache.put(name, entry, share)  # not into one that was emptied meanwhile
        return entry


def _name_server(server: NameServer | str) -> NameServer:
    if isinstance(server, NameServer):
        return server
    try:
        return NameServer.parse(server)
    except ValueError as error:
        raise ConfigError(f"{server!r} is not a name server: {error}") from None


def _share(user: str | None, client: str) -> Hashable:
    """Whose share of the look-ups a request has: its user's at its client's addresses."""
    return user, client_prefix(client.rpartition(":")[0].strip("[]")) if client else ""


def _usable_first(addresses: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    """IPv4 first on a machine that can't reach IPv6 (RFC 6724 section 6, rule 1)."""
    versions = {ip.version for ip in addresses}
    if len(versions) < 2 or addresses[0].version == 4 or _has_route(addresses[0]):
        return addresses
    return tuple(sorted(addresses, key=lambda ip: ip.version))


def _has_route(ip: IPAddress) -> bool:
    """Whether this machine has a route to an IPv6 address.  Nothing is sent."""
    try:
        with std_socket.socket(std_socket.AF_INET6, std_socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # else gevent would resolve the address, in a thread
            sock.connect((str(ip), 9))
    except OSError:
        return False
    return True
