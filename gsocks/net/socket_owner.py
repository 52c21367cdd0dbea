"""Which user of this machine has a socket, as the kernel tells (sock_diag(7))."""

from __future__ import annotations

import socket as std_socket
import struct
from enum import IntEnum

from gsocks import netlink
from gsocks.address import Address

# linux/netlink.h, linux/sock_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20

# linux/inet_diag.h: inet_diag_req_v2 up to the socket's identity, and inet_diag_msg
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS = struct.Struct("!HH")  # the socket's own port and its peer's
_REST = struct.Struct("=III")  # interface, and a cookie that matches every socket
_ANY_INTERFACE, _ANY_COOKIE = 0, 0xFFFF_FFFF
_UID_AT = 4 + 48 + 12


class Kind(IntEnum):
    """The protocol of a socket."""

    TCP = std_socket.IPPROTO_TCP
    UDP = std_socket.IPPROTO_UDP


def owner_of(kind: Kind, here: Address, there: Address) -> int | None:
    """The user ID of the socket of this machine at ``here``, which sends to ``there``.

    None if there is no such socket, or if the kernel doesn't tell, as in a sandbox without netlink.
    Takes 30 us.
    """
    # Of UDP the kernel looks for the socket that a packet from the first address to the second
    # would reach, of TCP for the one whose own address is the first (Linux 6.18).
    usual, other = (here, there), (there, here)
    for first, second in (usual, other) if kind is Kind.TCP else (other, usual):
        try:
            found = _ask(kind, first, second)
        except OSError:
            return None
        if found is not None and found[0] == here.port:
            return found[1]
    return None


def _ask(kind: Kind, first: Address, second: Address) -> tuple[int, int] | None:
    """The port and the owner of the socket that the kernel finds; None if it finds none."""
    if first.ip is None or second.ip is None or first.ip.version != second.ip.version:
        return None
    family = std_socket.AF_INET if first.ip.version == 4 else std_socket.AF_INET6
    question = (
        _REQUEST.pack(family, kind, 0, 0xFFFF_FFFF)
        + _PORTS.pack(first.port, second.port)
        + first.ip.packed.ljust(16, b"\0")
        + second.ip.packed.ljust(16, b"\0")
        + _REST.pack(_ANY_INTERFACE, _ANY_COOKIE, _ANY_COOKIE)
    )
    answer = netlink.ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, question)
    if answer.kind != _SOCK_DIAG_BY_FAMILY:
        return None
    (port, _), (uid,) = (
        _PORTS.unpack_from(answer.body, 4),
        struct.unpack_from("=I", answer.body, _UID_AT),
    )
    return int(port), int(uid)
