"""Listening sockets of TCP and UDP, and ports that are reserved for worker processes."""

from __future__ import annotations

import errno
import socket

from gevent.socket import socket as GeventSocket  # noqa: N812 - beside the other kind

from gsocks.address import Address
from gsocks.errors import BadAddress, BadPort, ConfigError
from gsocks.messages import shown
from gsocks.net.datagram import RECEIVE_BUFFER
from gsocks.net.endpoint import NOWHERE, checked, parse_address
from gsocks.net.unix import BACKLOG
from gsocks.stream import tune

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

    With ``reuse_port`` others may listen there already, each with its own queue, and the kernel
    distributes the clients; without it, none may.  Those that listen there later have to ask for
    that themselves.  Port 0 means a free port.  Raises ConfigError.
    """
    sock = _socket(address, reuse_port=reuse_port, listening=True)
    # only now, as in reserve: a successor may be started beside this process
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def reserve(address: Address, *, beside: bool = False) -> socket.socket:
    """Reserve ``address`` for processes that then call ``listen(..., reuse_port=True)`` on it.

    For the parent of workers, which learns whether the address is free and what port 0 became, but
    accepts no connection itself.  ``beside``: another gsocks of this user may have it already.
    Raises ConfigError.
    """
    sock = _socket(address, reuse_port=beside, listening=False)
    # Only now: with SO_REUSEPORT before bind, a second gsocks of the same user would get the port
    # too, and half of the first one's clients.  And SO_REUSEADDR is cleared: with it on both
    # sockets, another process could bind as long as none listens.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


def defer_accept(sock: socket.socket) -> socket.socket:
    """Have the kernel hand over a client of ``sock``, if of TCP, only with its first bytes.

    For clients of SOCKS and HTTP, which always send first: no process is woken twice for one.  Not
    for the tunnel's server: a peer that sends nothing is handed over a second later than one that
    sends, and its SYN-ACK is repeated; by that a prober could recognize gsocks.
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
    return sock


def stop_deferring(sock: socket.socket | GeventSocket) -> None:
    """Have the kernel hand over new clients at once.

    Of those that are connected already and have said nothing it asks again whether they are there,
    a second after they came, and hands them over with their answer (Linux 6.18).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)


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
    if isinstance(listener, str):
        return parse_address(listener)
    if not isinstance(listener, tuple) or len(listener) != 2:
        raise TypeError(f"a listener takes an address or a socket, not {shown(listener)}")
    host, port = listener
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError(f"not a host and a port: {listener!r}")
    try:
        address = Address.of(host or "0.0.0.0", port)
    except BadPort as error:
        raise ConfigError(str(error)) from None
    except BadAddress:
        address = NOWHERE
    return checked(address, listener)


def is_local(address: Address) -> bool:
    """Whether only this machine can reach a listener at ``address``."""
    return address.ip is not None and address.ip.is_loopback


def listen_for_datagrams(address: Address, count: int = 1) -> list[socket.socket]:
    """So many non-blocking UDP sockets at ``address``, each for a process of its own.

    The kernel gives each of them the datagrams of certain senders, which stay the same.  All are
    opened here: a socket that no process reads would swallow what it is given, so that none can be
    reserved as :func:`reserve` does.  Raises ConfigError.
    """
    first = _datagram_socket(address, reuse_port=False)
    if count == 1:
        return [first]
    # only now: before bind, another program would share the port
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound = Address.from_sockaddr(first.getsockname())
    return [first, *(_datagram_socket(bound, reuse_port=True) for _ in range(1, count))]


def _datagram_socket(address: Address, *, reuse_port: bool) -> socket.socket:
    sock = _new_socket(address, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _failure(address, error) from None
    return sock


def _socket(address: Address, *, reuse_port: bool, listening: bool) -> socket.socket:
    sock = _new_socket(address, socket.SOCK_STREAM)
    try:
        # connections of an ended process don't prevent the next one from binding its port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if listening:
            tune(sock)
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _failure(address, error) from None
    return sock


def _new_socket(address: Address, kind: int) -> socket.socket:
    """A socket that may be bound to ``address``.  Raises ConfigError."""
    ip = address.ip
    if ip is None:
        raise ConfigError(f"{address}: a listener needs an IP address")
    try:
        sock = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, kind)
    except OSError as error:
        raise _failure(address, error) from None
    sock.setblocking(False)
    if ip.version == 6:
        # so that [::]:p and 0.0.0.0:p can be bound side by side
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _failure(address: Address, error: OSError) -> ConfigError:
    reason = _REASONS.get(error.errno or 0) or error.strerror
    return ConfigError(f"{address}: {reason}")
