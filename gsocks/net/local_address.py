"""At which of its own addresses a machine was sent a datagram, and from which to answer it.

A socket at 0.0.0.0 or :: has all of them.  If the kernel chose by the route back, the answer might
come from an address that its receiver has never sent to, and would be dropped there.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TypeAlias

# linux/in.h: the number, and struct in_pktinfo (interface, address to answer from, address sent to)
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=i4s4s")
# linux/ipv6.h: struct in6_pktinfo (address, interface)
_PKTINFO6 = struct.Struct("=16sI")

#: bytes of what the kernel tells of a datagram
ROOM = socket.CMSG_SPACE(max(_PKTINFO.size, _PKTINFO6.size))

#: as recvmsg() returns it, and sendmsg() takes it
Ancillary: TypeAlias = "list[tuple[int, int, bytes]]"


def tell_local_address(sock: socket.socket) -> bool:
    """Have the kernel tell at which address a datagram of ``sock`` has come in.

    False, and nothing, if the socket has one address only.
    """
    host = sock.getsockname()[0]
    if not ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        return False
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    return True


def answering(received: Ancillary) -> Ancillary:
    """What makes an answer leave from where a datagram with ``received`` has come in."""
    for level, kind, data in received:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) == _PKTINFO.size:
            here = _PKTINFO.unpack(data)[1]
            return [(level, kind, _PKTINFO.pack(0, here, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and (
            len(data) == _PKTINFO6.size
        ):
            here, interface = _PKTINFO6.unpack(data)
            # an address of one link only means nothing without its interface
            link = interface if ipaddress.IPv6Address(here).is_link_local else 0
            return [(level, kind, _PKTINFO6.pack(here, link))]
    return []
