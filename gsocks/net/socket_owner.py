"""Sockets of this machine, as the kernel tells of them (sock_diag(7)): who has one, who waits."""

from __future__ import annotations

import socket as std_socket
import struct
from enum import IntEnum

from gsocks import netlink
from gsocks.address import Address, IPAddress

# linux/netlink.h, linux/sock_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20

# linux/inet_diag.h: inet_diag_req_v2 up to the socket's identity, and inet_diag_msg
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_PORTS = struct.Struct("!HH")  # the socket's own port and its peer's
_REST = struct.Struct("=III")  # interface, and a cookie that matches every socket
_ANY_INTERFACE, _ANY_COOKIE = 0, 0xFFFF_FFFF
_UID_AT = 4 + 48 + 12

_NLMSG_DONE = 3

# the states that are asked for, as bits
_ALL_STATES = 0xFFFF_FFFF
_SYN_RECV = 1 << 3


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
    ends = (first.ip, first.port), (second.ip, second.port)
    question = _question(kind, _ALL_STATES, *ends)
    answer = netlink.ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, question)
    if answer.kind != _SOCK_DIAG_BY_FAMILY:
        return None
    (port, _), (uid,) = (
        _PORTS.unpack_from(answer.body, 4),
        struct.unpack_from("=I", answer.body, _UID_AT),
    )
    return int(port), int(uid)


def has_request_sockets(here: Address) -> bool:
    """Whether a client of the listener of TCP at ``here`` is connected and not yet to be accepted.

    With TCP_DEFER_ACCEPT that is one that has said nothing.  True as well if the kernel doesn't
    tell, as in a sandbox without netlink.  Walks the kernel's table of connections.
    """
    if here.ip is None:
        return True
    end = (here.ip, here.port)
    question = _question(Kind.TCP, _SYN_RECV, end, (here.ip, 0))  # of a dump, only ports count
    try:
        answer = netlink.ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, question, dump=True)
    except OSError:
        return True
    return answer.kind != _NLMSG_DONE


def _question(
    kind: Kind, states: int, first: tuple[IPAddress, int], second: tuple[IPAddress, int]
) -> bytes:
    family = std_socket.AF_INET if first[0].version == 4 else std_socket.AF_INET6
    return (
        _REQUEST.pack(family, kind, 0, states)
        + _PORTS.pack(first[1], second[1])
        + first[0].packed.ljust(16, b"\0")
        + second[0].packed.ljust(16, b"\0")
        + _REST.pack(_ANY_INTERFACE, _ANY_COOKIE, _ANY_COOKIE)
    )
