"""Listening sockets, and ports that are reserved for worker processes."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from gevent.socket import socket as GeventSocket  # noqa: N812 - beside the other kind

from gsocks.address import Address
from gsocks.errors import BadAddress, BadPort, ConfigError
from gsocks.messages import shown
from gsocks.stream import tune

#: connections that wait for accept; the kernel caps it at net.core.somaxconn
BACKLOG = 1024

#: seconds after which the kernel hands over a client that has sent nothing; the least possible
DEFER_ACCEPT = 1

_REASONS = {
    errno.EADDRINUSE: "address already in use",
    errno.EACCES: "permission denied (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EAFNOSUPPORT: "this machine has no addresses of that family",
}


def listen(address: Address, *, reuse_port: bool = False) -> socket.socket:
    """A non-blocking socket that listens on ``address``, whose host is an IP address.

    With ``reuse_port`` other sockets may listen on it too, each with its own queue, and the kernel
    distributes the clients; without it, none may.  Port 0 means a free port.  Raises ConfigError.
    """
    return _socket(address, reuse_port=reuse_port, listening=True)


def reserve(address: Address) -> socket.socket:
    """Reserve ``address`` for processes that then call ``listen(..., reuse_port=True)`` on it.

    For the parent of workers, which learns whether the address is free and what port 0 became, but
    accepts no connection itself.  Raises ConfigError.
    """
    sock = _socket(address, reuse_port=False, listening=False)
    # Only now: with SO_REUSEPORT before bind, a second gsocks of the same user would get the port
    # too, and half of the first one's clients.  And SO_REUSEADDR is cleared: with it on both
    # sockets, another process could bind as long as none listens.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


def defer_accept(sock: socket.socket) -> socket.socket:
    """Have the kernel hand over a client of ``sock`` only together with its first bytes.

    For clients of SOCKS and HTTP, which always send first: no process is woken twice for one.  Not
    for the tunnel's server: a peer that sends nothing is handed over a second later than one that
    sends, and its SYN-ACK is repeated; by that a prober could recognize gsocks.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
    return sock


def is_deferred(sock: socket.socket | GeventSocket) -> bool:
    """Whether :func:`defer_accept` was called for a listening socket."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0
    except OSError:  # no TCP
        return False


def listen_address(listener: object) -> Address | None:
    """The address in what a program gives a listener: ``"127.0.0.1:1080"``, a pair of host and
    port, or a listening socket (None for a Unix socket).

    Raises ConfigError for another text, TypeError for another type.
    """
    if hasattr(listener, "getsockname"):
        bound = listener.getsockname()
        return Address.from_sockaddr(bound) if isinstance(bound, tuple) else None
    try:
        if isinstance(listener, str):
            address = Address.parse(listener)
        elif isinstance(listener, tuple) and len(listener) == 2:
            host, port = listener
            if not isinstance(host, str) or not isinstance(port, int):
                raise TypeError(f"not a host and a port: {listener!r}")
            address = Address.of(host or "0.0.0.0", port)
        else:
            raise TypeError(f"a listener takes an address or a socket, not {shown(listener)}")
    except BadPort as error:
        raise ConfigError(str(error)) from None
    except BadAddress:
        address = Address("", 0)
    if address.host == "localhost":
        return Address("127.0.0.1", address.port)
    if address.ip is None:
        raise ConfigError(
            f"{shown(listener)} is not an address to listen on"
            " (expected e.g. 127.0.0.1:1080, [::1]:1080 or 0.0.0.0:1080)"
        )
    return address


def is_local(address: Address) -> bool:
    """Whether only this machine can reach a listener at ``address``."""
    return address.ip is not None and address.ip.is_loopback


def listen_at_path(path: Path) -> socket.socket:
    """A Unix socket that listens at ``path``, and replaces a file there.

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
        raise ConfigError(f"{address}: a listener needs an IP address")
    try:
        sock = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6)
    except OSError as error:
        raise _failure(address, error) from None
    try:
        sock.setblocking(False)
        # connections of an ended process don't prevent the next one from binding its port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ip.version == 6:
            # so that [::]:p and 0.0.0.0:p can be bound side by side
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
