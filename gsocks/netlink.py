"""A question to the kernel over netlink(7), which has answered it when ``send`` returns."""

from __future__ import annotations

import socket as std_socket
import struct
from typing import NamedTuple

# linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NLM_F_REQUEST = 1
_NLM_F_DUMP = 0x300

_HOW = std_socket.SOCK_RAW | std_socket.SOCK_CLOEXEC


class Answer(NamedTuple):
    """The first message of an answer."""

    #: its type; NLMSG_ERROR (2) if the kernel refuses, with a negated errno as its body's begin
    kind: int
    body: bytes


def ask(protocol: int, kind: int, body: bytes, *, dump: bool = False) -> Answer:
    """Ask by one message of the type ``kind``.  Takes 10 us, and blocks for nothing.

    ``protocol``: such as NETLINK_ROUTE (0).  ``dump``: ask for all that match, of which the first
    is returned, NLMSG_DONE (3) if there is none.  Raises OSError, as in a sandbox without netlink.
    """
    flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
    question = _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body
    # the socket of C, which Python's own wraps at twice the price of the question
    netlink = std_socket.SocketType(std_socket.AF_NETLINK, _HOW, protocol)
    try:
        netlink.send(question)
        answer = netlink.recv(8192)
    finally:
        netlink.close()
    return Answer(_HEADER.unpack_from(answer)[1], answer[_HEADER.size :])
