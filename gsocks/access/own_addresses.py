"""Which addresses are this machine's own.

Not only those that are configured on an interface: ``ip route add local 198.51.100.0/24 dev lo``
makes 256 addresses local at once, and addresses come and go while gsocks runs.  So the kernel's
routing is asked each time, as a connection would ask it; that takes 10 us and blocks for nothing.

What no kernel knows: an address that a router in front of this machine translates to one of its own
(the "elastic" or "floating" addresses of clouds).
"""

from __future__ import annotations

import errno
import ipaddress
import socket as std_socket
import struct
from collections.abc import Callable
from functools import lru_cache

from gsocks import netlink
from gsocks.access.networks import inner_ipv4
from gsocks.address import IPAddress
from gsocks.errors import connect_failure

# linux/netlink.h, linux/rtnetlink.h
_NETLINK_ROUTE = 0
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, length of the destination, ..., type, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ERROR = struct.Struct("=i")
_RTM_NEWROUTE = 24
_RTM_GETROUTE = 26
_RTA_DST = 1
_RTN_LOCAL = 2
_RTN_ANYCAST = 4

# How a table without a route, and one that has it as unreachable, prohibit or blackhole, answers.
_NO_ROUTE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL))
# What a sandbox answers that allows no netlink: systemd's RestrictAddressFamilies=, seccomp.
_NO_NETLINK = frozenset((errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES, errno.EPROTONOSUPPORT))


def ask_kernel(ip: IPAddress) -> bool:
    """Whether packets to ``ip`` stay on this machine, by the routing tables.

    Where it can't be asked, whether a socket can be bound to ``ip``: nearly the same, but for
    ``net.ipv4.ip_nonlocal_bind`` (every address seems to be local) and for IPv6 networks that
    are local only as a route.  Raises OutOfResources.
    """
    try:
        kind, body = _route_to(ip)
    except OSError as error:
        if error.errno in _NO_NETLINK:
            return _can_be_bound(ip)
        raise connect_failure(error) from None
    if kind == _RTM_NEWROUTE:
        return body[7] in (_RTN_LOCAL, _RTN_ANYCAST)
    (code,) = _ERROR.unpack_from(body)
    return -code not in _NO_ROUTE and _can_be_bound(ip)


def _route_to(ip: IPAddress) -> netlink.Answer:
    """The kernel's answer about the route to ``ip``."""
    return netlink.ask(_NETLINK_ROUTE, _RTM_GETROUTE, _question(ip))


# the questions and not the answers, which may differ the next time
@lru_cache(maxsize=4096)
def _question(ip: IPAddress) -> bytes:
    family = std_socket.AF_INET if ip.version == 4 else std_socket.AF_INET6
    dest = ip.packed
    return (
        _ROUTE.pack(family, 8 * len(dest), 0, 0, 0, 0, 0, 0, 0)
        + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(dest), _RTA_DST)
        + dest
    )


def _can_be_bound(ip: IPAddress) -> bool:
    family = std_socket.AF_INET if ip.version == 4 else std_socket.AF_INET6
    try:
        with std_socket.socket(family, std_socket.SOCK_DGRAM) as sock:
            sock.bind((str(ip), 0))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise connect_failure(error) from None
        return False
    return True


class OwnAddresses:
    """The addresses of this machine.  ``is_local`` tells it of an address without inner ones."""

    __slots__ = ("_is_local",)

    def __init__(self, is_local: Callable[[IPAddress], bool] = ask_kernel) -> None:
        self._is_local = is_local

    def is_own(self, ip: IPAddress) -> bool:
        """Whether a connection to ``ip`` ends at this machine, now.

        Also if ``ip`` has one of this machine's IPv4 addresses inside: IPv4-mapped, NAT64, 6to4 and
        Teredo.  Loopback and the unspecified addresses, which the kernel takes for it, are own in
        any case.  Raises OutOfResources.
        """
        to_ask_for = _to_ask_for(ip)
        return to_ask_for is None or any(map(self._is_local, to_ask_for))


@lru_cache(maxsize=4096)
def _to_ask_for(ip: IPAddress) -> tuple[IPAddress, ...] | None:
    """The addresses to ask the kernel for: ``ip`` and those inside; None: it is own in any case."""
    addresses = (ip, *inner_ipv4(ip))
    if any(each.is_loopback or each.is_unspecified for each in addresses):
        return None
    # the kernel routes no mapped address as IPv6
    return tuple(
        each
        for each in addresses
        if not isinstance(each, ipaddress.IPv6Address) or each.ipv4_mapped is None
    )


#: the machine that this process runs on
THIS_MACHINE = OwnAddresses()

#: see :meth:`OwnAddresses.is_own`
is_own = THIS_MACHINE.is_own
