"""Sockets to listen on, and ports held for those who will."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.stream import tune

#: connections that wait to be accepted; the kernel caps it at net.core.somaxconn
BACKLOG = 1024

#: seconds after which the kernel hands over a client that has said nothing; the least there is
FIRST_WORDS = 1

_REASONS = {
    errno.EADDRINUSE: "address already in use",
    errno.EACCES: "permission denied (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EAFNOSUPPORT: "this machine doesn't speak that kind of address",
}


def listen(address: Address, *, reuse_port: bool = False) -> socket.socket:
    """A socket that listens on ``address``, whose host is an IP address; never blocks.

    With ``reuse_port`` others may listen beside it, each with a queue of its own among which the
    kernel spreads the clients; without, nobody may.  Port 0 takes a free one.  Raises ConfigError.
    """
    return _socket(address, reuse_port=reuse_port, listening=True)


def reserve(address: Address) -> socket.socket:
    """Hold ``address`` for others, who then ``listen(..., reuse_port=True)`` on what it got.

    For a parent of workers: it learns here whether the address is free, and which port 0 means,
    but receives no connection itself.  Raises ConfigError.
    """
    sock = _socket(address, reuse_port=False, listening=False)
    # Only now: with SO_REUSEPORT before bind, a second gsocks of the same user would get the
    # port as well, and half of the first one's clients.  And SO_REUSEADDR no longer: with it on
    # both, another could bind as long as nobody listens.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


def await_first_words(sock: socket.socket) -> socket.socket:
    """Have the kernel hand over whoever comes to ``sock`` together with its first words.

    For clients of SOCKS and HTTP, who always speak first: nobody is woken twice for them.  Not
    for strangers of a server: who says nothing is handed over a second later than who speaks,
    and its SYN-ACK is sent again; by that a prober could tell it from other programs.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, FIRST_WORDS)
    return sock


def listen_at_path(path: Path) -> socket.socket:
    """A Unix socket that listens at ``path``, in place of whatever was there.

    Raises ConfigError.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"{path}: {error.strerror}") from None
    return sock


def _socket(address: Address, *, reuse_port: bool, listening: bool) -> socket.socket:
    ip = address.ip
    if ip is None:
        raise ConfigError(f"{address}: not an IP address, and only those can be listened on")
    try:
        sock = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6)
    except OSError as error:
        raise _failure(address, error) from None
    try:
        sock.setblocking(False)
        # connections of a process that has ended don't keep the next one from its port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ip.version == 6:
            # so that [::]:p and 0.0.0.0:p can stand side by side
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        if listening:
            tune(sock)
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _failure(address, error) from None
    return sock


def _failure(address: Address, error: OSError) -> ConfigError:
    reason = _REASONS.get(error.errno or 0) or error.strerror
    return ConfigError(f"{address}: {reason}")
