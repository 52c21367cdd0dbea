"""What the kernel knows of a TCP connection: struct tcp_info in linux/tcp.h."""

from __future__ import annotations

import socket as std_socket
import sys
from typing import NamedTuple


class Field(NamedTuple):
    """Where a number stands in the struct."""

    at: int
    size: int


#: milliseconds since the peer's kernel has last acknowledged anything
LAST_ACK_RECV = Field(56, 4)
#: bytes that were sent and acknowledged, and bytes that were received; since Linux 4.1
BYTES_ACKED = Field(120, 8)
BYTES_RECEIVED = Field(128, 8)


def read_tcp_info(fd: int, *fields: Field) -> list[int] | None:
    """The numbers of these fields; None where the kernel does not tell them: it is older, or the
    socket is not one of TCP (a chain's).
    """
    size = max(field.at + field.size for field in fields)
    sock = std_socket.socket(fileno=fd)
    try:
        info = sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_INFO, size)
    except OSError:
        return None
    finally:
        sock.detach()
    if len(info) < size:
        return None
    return [int.from_bytes(info[at : at + size], sys.byteorder) for at, size in fields]
