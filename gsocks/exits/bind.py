"""BIND straight from this machine (RFC 1928 section 4): a peer that connects to us."""

from __future__ import annotations

import errno
import socket as std_socket

import gevent
from gevent.socket import socket

from gsocks.address import Address, IPAddress
from gsocks.dial import Dialer
from gsocks.errors import ConnectFailed, StreamClosed, connect_failure
from gsocks.exits.base import Connected
from gsocks.stream import SocketStream, reset, tune

# Connections that come at once; the one that is expected is among the first, or knocks again.
_BACKLOG = 16

_FAMILY = {4: std_socket.AF_INET, 6: std_socket.AF_INET6}

# Addresses that nobody has (RFC 5737, RFC 3849), so that only a default route leads there.
_ANYWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}
_SOME_PORT = 9


class DirectListener:
    """A port of this machine that waits for one connection, from ``dest``.

    It is open at the address from which this machine would connect to ``dest``.  If that is
    0.0.0.0 or ::, anybody may come whom the rules allow; then it is the address towards the
    default route, or where there is none, every address, and the client is told 0.0.0.0 or ::.
    """

    __slots__ = ("_dialer", "_expected", "_sock", "_user", "bound")

    def __init__(self, dialer: Dialer, dest: Address, user: str | None) -> None:
        """Raises ConnectFailed."""
        self._dialer = dialer
        self._user = user
        expected = () if dest.is_unspecified else dialer.allowed_addresses(dest, user)
        #: whose connection is taken; none: anybody's
        self._expected = frozenset(expected)
        if expected:
            self._sock = _listen(dialer, expected[0].version, expected[0])
        else:
            self._sock = _listen(dialer, 6 if ":" in dest.host else 4, None)
        #: where it waits
        self.bound = Address.from_sockaddr(self._sock.getsockname())

    def accept(self) -> Connected:
        """Wait for the peer; its connection, and in place of the bound address its own.

        Others are reset, and it waits on.  Raises StreamClosed if it is closed meanwhile,
        ConnectFailed if nothing can be accepted.
        """
        while True:
            try:
                sock, sockaddr = self._sock.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise StreamClosed("closed at this end") from None
                raise connect_failure(error) from None
            peer = Address.from_sockaddr(sockaddr)
            if self._is_welcome(peer):
                return Connected(SocketStream(sock), peer)
            reset(sock)
            gevent.sleep(0)  # somebody who connects without pause lets others run

    def close(self) -> None:
        """Wait no longer.  Never raises, never blocks."""
        self._sock.close()

    def _is_welcome(self, peer: Address) -> bool:
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
        tune(sock)  # what is accepted inherits it
        if not dialer.bind(sock):
            sock.bind((_address_towards(version, expected), 0))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise connect_failure(error) from None
    except ConnectFailed:  # no source address of this family
        sock.close()
        raise
    return sock


def _address_towards(version: int, ip: IPAddress | None) -> str:
    """The address of ours that ``ip`` would see, or that the default route begins at."""
    with socket(_FAMILY[version], std_socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.0)  # else gevent would have the address resolved, in a thread
        try:
            probe.connect((str(ip or _ANYWHERE[version]), _SOME_PORT))  # nothing is sent by it
        except OSError:
            if ip is not None:
                raise
            return ""
        address: str = probe.getsockname()[0]
        return address
