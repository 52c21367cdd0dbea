"""BIND on this machine (RFC 1928 section 4): a port to which one peer connects."""

from __future__ import annotations

import errno
import socket as std_socket

from gevent.socket import socket

from gsocks.address import Address, IPAddress
from gsocks.errors import ConnectFailed, StreamClosed, connect_failure
from gsocks.exits.base import Connected
from gsocks.net.dial import Dialer
from gsocks.stream import SocketStream, reset, tune
from gsocks.turns import give_way

# Pending connections; the expected one is among the first, or is retried by its peer.
_BACKLOG = 16

_FAMILY = {4: std_socket.AF_INET, 6: std_socket.AF_INET6}

# Documentation addresses (RFC 5737, RFC 3849), to which only a default route leads.
_ANYWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}
_SOME_PORT = 9


class DirectListener:
    """A port of this machine that waits for one connection, from ``dest``.

    It listens at the address from which this machine would connect to ``dest``.  If that is
    0.0.0.0 or ::, any peer that the rules allow may connect; then the port listens at the address
    towards the default route, or without one at every address, and the bound address is 0.0.0.0
    or ::.
    """

    __slots__ = ("_dialer", "_expected", "_sock", "_user", "bound")

    def __init__(self, dialer: Dialer, dest: Address, user: str | None, client: str = "") -> None:
        """``client``: its address and port.  Raises ConnectFailed."""
        self._dialer = dialer
        self._user = user
        expected = () if dest.is_unspecified else dialer.allowed_addresses(dest, user, client)
        #: the addresses whose connection is accepted; empty: any
        self._expected = frozenset(expected)
        if expected:
            self._sock = _listen(dialer, expected[0].version, expected[0])
        else:
            self._sock = _listen(dialer, 6 if ":" in dest.host else 4, None)
        #: the address of the port
        self.bound = Address.from_sockaddr(self._sock.getsockname())

    def accept(self) -> Connected:
        """Wait for the peer: its connection, with the peer's address as the bound one.

        Other connections are reset.  Raises StreamClosed if the port is closed meanwhile,
        ConnectFailed if accepting fails.
        """
        while True:
            try:
                sock, sockaddr = self._sock.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise StreamClosed("closed at this end") from None
                raise connect_failure(error) from None
            peer = Address.from_sockaddr(sockaddr)
            if self._is_expected(peer):
                return Connected(SocketStream(sock), peer)
            reset(sock)
            give_way()  # a flood of connections must not starve other greenlets

    def close(self) -> None:
        """Close the port.  Never raises, never blocks."""
        self._sock.close()

    def _is_expected(self, peer: Address) -> bool:
        if self._expected and peer.ip not in self._expected:
            return False
        try:
            self._dialer.allowed_addresses(peer, self._user)
        except ConnectFailed:
            return False
        return True


def _listen(dialer: Dialer, version: int, expected: IPAddress | None) -> socket:
    try:
        sock = socket(_FAMILY[version], std_socket.SOCK_STREAM)
    except OSError as error:
        raise connect_failure(error) from None
    try:
        tune(sock)  # accepted sockets inherit the options
        if not dialer.bind(sock):
            sock.bind((_address_towards(dialer, version, expected), 0))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise connect_failure(error) from None
    except ConnectFailed:  # no source address of this family
        sock.close()
        raise
    return sock


def _address_towards(dialer: Dialer, version: int, ip: IPAddress | None) -> str:
    """This machine's address towards ``ip``, or without one towards the default route."""
    with socket(_FAMILY[version], std_socket.SOCK_DGRAM) as probe:
        dialer.route(probe)
        probe.settimeout(0.0)  # else gevent would resolve the address in a thread
        try:
            probe.connect((str(ip or _ANYWHERE[version]), _SOME_PORT))  # sends nothing
        except OSError:
            if ip is not None:
                raise
            return ""
        address: str = probe.getsockname()[0]
        return address
