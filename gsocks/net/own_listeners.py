"""Which connections to exits would come back to the listeners that they are made for.

An exit that is one of its own listeners breeds connections without end: each request that it gets
is sent to it once more.  So the address of an exit is compared with those of this process's
listeners before it is connected to, after its name was resolved.  A connection that reaches a
listener all the same, through a redirection in the kernel, is recognised by the socket that it
comes from.

An exit may be another listener of this process, as that of a ``local`` section may be the
``server`` section, as long as the exits there don't lead back.
"""

from __future__ import annotations

import ipaddress
import socket as std_socket
import time
from collections.abc import Callable
from typing import ClassVar, NamedTuple
from weakref import ReferenceType, WeakSet, ref

from gevent.socket import socket

from gsocks.access.own_addresses import is_own
from gsocks.address import Address, IPAddress
from gsocks.lru import LruCache
from gsocks.net.redirection import original_destination
from gsocks.sock import AnySocket

#: seconds for which it is believed that an address is one of this machine's, or is not
FRESH = 30.0

#: addresses of which that is remembered, and connections that are
MAX_REMEMBERED = 4096


class OwnListeners:
    """The listeners in front of one exit group, which its exits must not lead to."""

    __slots__ = ("__weakref__", "_leads_to")

    #: all listeners of this process, by their ports
    _open: ClassVar[dict[int, list[_Listening]]] = {}
    #: the latest connections to exits at this machine, by their own end
    _outgoing: ClassVar[LruCache[tuple[str, int], _Outgoing]] = LruCache(MAX_REMEMBERED)

    def __init__(self) -> None:
        #: those that the exits of this group lead to
        self._leads_to: WeakSet[OwnListeners] = WeakSet()

    # --- the listeners ----------------------------------------------------------------------

    def add(self, listener: std_socket.socket | socket) -> None:
        """A listener of this group has been opened; one at a Unix socket does not count."""
        bound = listener.getsockname()
        if isinstance(bound, tuple):
            self._open.setdefault(bound[1], []).append(_Listening.of(listener, self))

    def remove(self, listener: std_socket.socket | socket) -> None:
        """A listener is about to be closed.  Does nothing for one that was not added."""
        bound = listener.getsockname()
        port = bound[1] if isinstance(bound, tuple) else -1
        left = [each for each in self._open.get(port, ()) if each.fd != listener.fileno()]
        if left:
            self._open[port] = left
        else:
            self._open.pop(port, None)

    def exits_changed(self) -> None:
        """Forget which other listeners the exits lead to."""
        self._leads_to.clear()

    # --- connections to exits ---------------------------------------------------------------

    def leads_back(self, ip: IPAddress, port: int) -> bool:
        """Whether a connection to an exit at this address would come back to this group.

        Raises OutOfResources.
        """
        listeners = self._open.get(port)
        if listeners is None:
            return False
        if ip.version == 6 and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(each.is_at(ip) and self._would_return_by(each.group) for each in listeners)

    def connecting(self, sock: AnySocket, ip: IPAddress) -> None:
        """A connection to an exit at ``ip`` has begun.  Raises OutOfResources."""
        if self._open and _is_own(ip):
            here = sock.getsockname()
            if ip.version == 6:
                here = Address.from_sockaddr(here)
            self._outgoing[here] = _Outgoing(ref(sock), self)

    def comes_back(self, client: Address, accepted: AnySocket) -> bool:
        """Whether a connection that a listener of this group has accepted from ``client`` is one
        to an exit of the same group."""
        if not self._outgoing.entries:
            return False
        outgoing = self._outgoing.peek(client)
        return (
            outgoing is not None
            and outgoing.is_other_end_of(accepted)
            and outgoing.group._would_return_by(self)
        )

    def _would_return_by(self, other: OwnListeners) -> bool:
        """Whether what an exit of this group sends to the listeners of ``other`` comes back."""
        if other._reaches(self):
            return True
        self._leads_to.add(other)
        return False

    def _reaches(self, group: OwnListeners) -> bool:
        seen, to_see = {self}, [self]
        while to_see:
            here = to_see.pop()
            if here is group:
                return True
            new = set(here._leads_to) - seen
            seen |= new
            to_see += new
        return False


class _Listening(NamedTuple):
    """A listening socket."""

    ip: IPAddress
    #: whether one at :: also takes IPv4
    both_families: bool
    fd: int
    group: OwnListeners

    @classmethod
    def of(cls, listener: std_socket.socket | socket, group: OwnListeners) -> _Listening:
        ip = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
        both = ip.version == 6 and not listener.getsockopt(
            std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY
        )
        return cls(ip, both, listener.fileno(), group)

    def is_at(self, ip: IPAddress) -> bool:
        """Whether a connection to ``ip``, at the same port, reaches it.  Raises OutOfResources."""
        return leads_to(ip, self.ip, both_families=self.both_families)


class _Outgoing(NamedTuple):
    """A connection to an exit at this machine."""

    sock: ReferenceType[AnySocket]
    group: OwnListeners

    def is_other_end_of(self, accepted: AnySocket) -> bool:
        """Whether it is still open, and leads to where ``accepted`` was accepted."""
        sock = self.sock()
        if sock is None:
            return False
        try:
            there = Address.from_sockaddr(sock.getpeername())
        except OSError:  # closed, or not connected yet, which its other end can't be
            return False
        return there in (
            Address.from_sockaddr(accepted.getsockname()),
            original_destination(accepted),
        )


def leads_to(ip: IPAddress, listening: IPAddress, *, both_families: bool = False) -> bool:
    """Whether a connection to ``ip`` reaches a listener at the address ``listening``, if the port
    is the same.  ``both_families``: whether one at :: also takes IPv4.  Raises OutOfResources.
    """
    if listening.is_unspecified:
        return (both_families or ip.version == listening.version) and _is_own(ip)
    # to an unspecified address Linux connects as to loopback
    return ip == listening or (
        ip.is_unspecified and listening.is_loopback and ip.version == listening.version
    )


#: whether addresses are this machine's, and when that was asked
_asked: LruCache[IPAddress, tuple[bool, float]] = LruCache(MAX_REMEMBERED)


def _is_own(ip: IPAddress, ask: Callable[[IPAddress], bool] = is_own) -> bool:
    """:func:`is_own`, whose answer is not asked for again at each connection to the same exit."""
    now = time.monotonic()
    known = _asked.peek(ip)  # hashing an address takes as long as the rest, so only once
    if known is None or known[1] < now - FRESH:
        known = _asked[ip] = ask(ip), now
    return known[0]
