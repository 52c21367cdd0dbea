"""Ports whose number a test must know before anything listens there."""

from __future__ import annotations

import os
import socket

#: descriptors of the sockets that hold the ports
_held: set[int] = set()


def free_port() -> int:
    """A port of every local address on which nothing listens: to connect to it is refused.

    It is held until :func:`release`, by a socket that is bound and does not listen.  So the
    kernel gives it to no other socket, while a program that asks for it by its number can listen
    on it (with SO_REUSEADDR or SO_REUSEPORT, as servers do).
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    sock = socket.socket(family)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", 0))
    # only now: the kernel may choose one port for two sockets that have these options
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port: int = sock.getsockname()[1]
    _held.add(sock.detach())
    return port


def release() -> None:
    """Hold no port any more, as at the end of a test."""
    while _held:
        os.close(_held.pop())


def holds(descriptor: int) -> bool:
    return descriptor in _held
