"""Where a connection was to go before the kernel redirected it to a listener of this machine.

By nftables' ``redirect`` and ``dnat``, and by REDIRECT and DNAT of iptables.  The kernel's
connection tracking knows it, and tells the socket that was accepted.
"""

from __future__ import annotations

import ipaddress
import socket as std_socket
import struct
from weakref import ReferenceType, ref

from gsocks.address import Address
from gsocks.lru import LruCache
from gsocks.sock import AnySocket

#: of this process's latest connections, those that are remembered
MAX_REMEMBERED = 4096

# linux/netfilter_ipv4.h; linux/netfilter_ipv6/ip6_tables.h has the same number
_SO_ORIGINAL_DST = 80
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def original_destination(accepted: AnySocket) -> Address | None:
    """Where the connection ``accepted`` was to go; its own address if it was not redirected.

    None where the kernel tracks no connections.
    """
    is_ipv6 = accepted.family == std_socket.AF_INET6 and not _is_mapped(accepted)
    level = std_socket.IPPROTO_IPV6 if is_ipv6 else std_socket.IPPROTO_IP
    form = _SOCKADDR_IN6 if is_ipv6 else _SOCKADDR_IN
    try:
        port, packed = form.unpack(accepted.getsockopt(level, _SO_ORIGINAL_DST, form.size))
    except (OSError, struct.error):
        return None
    return Address(str(ipaddress.ip_address(packed)), port)


def _is_mapped(accepted: AnySocket) -> bool:
    """Whether a socket of IPv6 has a connection of IPv4, as a listener at :: may accept it.

    Raises OSError.
    """
    host = accepted.getsockname()[0].partition("%")[0]
    return ipaddress.IPv6Address(host).ipv4_mapped is not None


class OwnConnections:
    """This process's connections to elsewhere, none of which is to come back by a redirection.

    Remembered only while there are listeners for redirected connections.
    """

    def __init__(self) -> None:
        #: how many such listeners there are
        self._listeners = 0
        #: by their own ends
        self._latest: LruCache[Address, ReferenceType[AnySocket]] = LruCache(MAX_REMEMBERED)

    def watch(self) -> None:
        """A listener for redirected connections has been opened."""
        self._listeners += 1

    def unwatch(self) -> None:
        """One of them is about to be closed."""
        self._listeners -= 1
        if not self._listeners:
            self._latest = LruCache(MAX_REMEMBERED)

    def begun(self, sock: AnySocket) -> None:
        """A connection to elsewhere has begun.  Raises OSError."""
        if self._listeners:
            self._latest[Address.from_sockaddr(sock.getsockname())] = ref(sock)

    def has(self, client: Address, destination: Address) -> bool:
        """Whether one of them, which is still open, comes from ``client`` and was to go to
        ``destination``."""
        found = self._latest.peek(client)
        sock = None if found is None else found()
        if sock is None:
            return False
        try:
            return Address.from_sockaddr(sock.getpeername()) == destination
        except OSError:  # closed, or not connected yet, which an accepted one is
            return False


#: those of this process
own_connections = OwnConnections()
