"""The addresses of a name, and the names of an address, in the system's order: /etc/hosts, then the
name servers.

Of nsswitch.conf, what else it may name (mDNS, LDAP, the machine's own name) is not asked: see
docs/dns.md.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gevent.lock import BoundedSemaphore

from gsocks.address import IPAddress
from gsocks.dns.hosts import HostsFile
from gsocks.dns.message import PTR, BadName
from gsocks.dns.name_server import NameServer
from gsocks.dns.query import Found, Query, ServerList
from gsocks.dns.resolv_conf import ResolvConfFile
from gsocks.dns.transport import Connections

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")

_LOOPBACK = (ipaddress.ip_address("::1"), ipaddress.ip_address("127.0.0.1"))


class DnsClient:
    """Looks names up; keeps nothing but what the system's files say."""

    #: seconds for which those files are not looked at again
    refresh_interval = 1.0

    def __init__(
        self,
        servers: Sequence[NameServer] = (),
        search: Sequence[str] | None = None,
        *,
        timeout: float = 1.0,
        longest: float = 5.0,
        hosts: Path = HOSTS,
        resolv_conf: Path = RESOLV_CONF,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``servers`` empty and ``search`` None: those of resolv.conf; with servers of its own it
        has no search domains but its own.  ``timeout``, ``longest``: see
        :class:`gsocks.dns.query.Query`.
        """
        self._timeout = timeout
        self._longest = longest
        self._now = now
        self._hosts = HostsFile(hosts)
        self._resolv_conf = None if servers else ResolvConfFile(resolv_conf)
        self._servers = ServerList(servers, now)
        self._own_search = search if search is not None or not servers else ()
        self._search: tuple[str, ...] = tuple(self._own_search or ())
        self._connections = Connections()
        #: how many changes of those files were noticed
        self._changes = 0
        self._refreshed: float | None = None
        self._first = BoundedSemaphore()

    def refresh(self) -> int:
        """Notice changes of the system's files; returns how many were noticed up to now.

        If that has grown, what was looked up before may be wrong.
        """
        if self._refreshed is None:
            with self._first:  # none looks a name up before the files are read
                if self._refreshed is None:
                    self._read()
                    self._refreshed = self._now()
        now = self._now()
        if now - self._refreshed >= self.refresh_interval:
            self._refreshed = now
            self._read()
        return self._changes

    def _read(self) -> None:
        changed = self._hosts.refresh()
        if self._resolv_conf is not None and self._resolv_conf.refresh():
            changed = True
            content = self._resolv_conf.content
            self._servers = ServerList(content.servers, self._now)
            if self._own_search is None:
                self._search = content.search
        self._changes += changed

    def names_of(self, host: str) -> tuple[str, ...]:
        """The names that are looked up for ``host`` in turn, until one is found.

        A name with a dot is complete, also if the dot is at its end.  One without is completed by
        each search domain first, as by the C library, unless the hosts file has it.
        """
        self.refresh()
        if "." in host or not self._search or self._is_local(host) or self._hosts.get(host):
            return (host.removesuffix("."),)
        return (*(f"{host}.{domain}" for domain in self._search), host)

    def look_up(self, name: str) -> Found:
        """The addresses of ``name``, which is complete.

        Raises HostUnreachable if no name server answers, OutOfResources.
        """
        self.refresh()
        name = name.removesuffix(".")
        found = self._hosts.get(name)
        if found:
            return Found(found, None)
        if self._is_local(name):
            return Found(_LOOPBACK, None)
        try:
            query = Query(name, self._servers, self._connections, self._timeout, self._longest)
        except BadName:
            return Found((), None)
        return query.run()

    def reverse(self, ip: IPAddress) -> Found:
        """The names of ``ip``.  Raises as :meth:`look_up`."""
        self.refresh()
        name = self._hosts.name_of(ip)
        if name is not None:
            return Found((), None, (name,))
        query = Query(
            ip.reverse_pointer,
            self._servers,
            self._connections,
            self._timeout,
            self._longest,
            (PTR,),
        )
        return query.run()

    def close(self) -> None:
        """Close the connections to name servers that are kept."""
        self._connections.close()

    @staticmethod
    def _is_local(name: str) -> bool:
        """localhost and the names below it are this machine, and are never asked for: RFC 6761
        section 6.3.
        """
        return name == "localhost" or name.endswith(".localhost")
