"""UDP straight from this machine: the socket of one association."""

from __future__ import annotations

import logging
import socket as std_socket

from gevent.pool import Group
from gevent.socket import socket

from gsocks.address import Address, IPAddress
from gsocks.deadline import call_with_timeout
from gsocks.errors import (
    AddressFamilyNotSupported,
    BadRequest,
    ConnectFailed,
    Forbidden,
    StreamClosed,
    connect_failure,
)
from gsocks.lru import LruCache
from gsocks.net.datagram import (
    MAX_DESTINATIONS,
    DatagramReader,
    address_of,
    head_of,
    split,
    udp_socket,
)
from gsocks.net.dial import Dialer

log = logging.getLogger("gsocks.udp")

_SockAddr = tuple[str, int]


class DirectDatagrams(DatagramReader):
    """A stream of datagrams between an association and the destinations that its client sends to.

    All leave by one socket, so from one port, whatever their destination (endpoint-independent
    mapping, RFC 4787 section 4.1).  Datagrams are accepted from the addresses that the client has
    sent to, and from any of their ports (address-dependent filtering, section 5), which TFTP and
    many games need.

    The rules are checked for every address, once while it is remembered.  A name is resolved beside
    the traffic, and then keeps its address: datagrams of one conversation must not go to two
    machines.
    """

    #: datagrams that wait for their name to be resolved; further ones are dropped
    MAX_WAITING = 16

    __slots__ = (
        "_client",
        "_dialer",
        "_heard",
        "_lookups",
        "_routes",
        "_sending",
        "_user",
        "_versions",
    )

    def __init__(self, dialer: Dialer, user: str | None, client: str = "") -> None:
        """``client``: its address and port.  Raises ConnectFailed if there is no socket for it."""
        self._dialer = dialer
        self._user = user
        self._client = client
        sock, self._versions = _open_socket(dialer)
        super().__init__(sock)
        #: the socket address for each address in wire form; None: forbidden
        self._routes: LruCache[bytes, _SockAddr | None] = LruCache(MAX_DESTINATIONS)
        #: the addresses that the client has sent to, as the socket reports them
        self._heard: LruCache[str, bool] = LruCache(MAX_DESTINATIONS)
        self._lookups = Group()
        self._sending = False

    def _accept(self, packet: bytes, source: tuple[str, int]) -> bytes | None:
        return head_of(source[:2]) + packet if source[0] in self._heard else None

    def write(self, datagram: bytes) -> None:
        if self._sock is None:
            raise StreamClosed("closed at this end")
        try:
            head, payload = split(datagram)
        except BadRequest:
            return
        if head in self._routes:
            self._send(payload, self._routes[head])
            return
        dest = address_of(head)
        if dest is None:
            return
        if dest.ip is not None:
            self._find_and_send(head, dest, payload)
        elif len(self._lookups) < self.MAX_WAITING:
            self._lookups.spawn(self._look_up_and_send, head, dest, payload)

    def write_eof(self) -> None:
        """The client has ended the association."""
        self._ended = True
        self._release()

    def abort(self) -> None:
        self._release()

    def close(self) -> None:
        self._release()

    def _release(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()  # which wakes the reader
            self._lookups.kill(block=False)

    # --- one datagram -----------------------------------------------------------------------

    def _look_up_and_send(self, head: bytes, dest: Address, payload: bytes) -> None:
        call_with_timeout(
            self._dialer.timeout, self._find_and_send, head, dest, payload, on_timeout=None
        )

    def _find_and_send(self, head: bytes, dest: Address, payload: bytes) -> None:
        """Resolve ``dest``, which blocks only for a name, and send."""
        route: _SockAddr | None = None
        try:
            route = self._route(dest)
        except Forbidden as error:
            log.debug("dropped: %s", error)
        except ConnectFailed as error:
            log.debug("dropped: %s", error)
            return  # the next datagram tries again
        self._routes[head] = route
        self._send(payload, route)

    def _route(self, dest: Address) -> _SockAddr:
        """The first address that is allowed and can be sent to.  Raises ConnectFailed."""
        for ip in self._dialer.allowed_addresses(dest, self._user, self._client):
            if ip.version in self._versions:
                return self._sockaddr(ip), dest.port
        raise AddressFamilyNotSupported(f"{dest}: has no address of a supported family")

    def _sockaddr(self, ip: IPAddress) -> str:
        # a dual-stack socket uses IPv4-mapped IPv6 addresses
        return f"::ffff:{ip}" if ip.version == 4 and 6 in self._versions else str(ip)

    def _send(self, payload: bytes, route: _SockAddr | None) -> None:
        # While one datagram waits for space in the socket's buffer, another one whose name was just
        # resolved is dropped: only one greenlet can wait.
        if route is None or self._sending or self._sock is None:
            return
        self._heard[route[0]] = True
        self._sending = True
        try:
            self._sock.sendto(payload, route)
        except OSError:
            pass  # too long, no route, closed meanwhile: it is lost, as on any network
        finally:
            self._sending = False


def _open_socket(dialer: Dialer) -> tuple[socket, frozenset[int]]:
    """A socket, and the IP versions that it can send to: both, if the machine supports both.

    Raises ConnectFailed.
    """
    failure: ConnectFailed = AddressFamilyNotSupported("no family for datagrams")
    for family in (std_socket.AF_INET6, std_socket.AF_INET):
        try:
            sock = udp_socket(family)
        except ConnectFailed as error:
            failure = error
            continue
        try:
            return sock, _prepare(sock, dialer)
        except OSError as error:
            failure = connect_failure(error)
        except ConnectFailed as error:  # no source address of this family
            failure = error
        sock.close()
    raise failure


def _prepare(sock: socket, dialer: Dialer) -> frozenset[int]:
    """Bind a socket to the exit's source address; returns the IP versions that it can send to."""
    if sock.family == std_socket.AF_INET:
        dialer.bind(sock)
        return frozenset((4,))
    if dialer.bind(sock):
        return frozenset((6,))
    sock.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, 0)
    return frozenset((4, 6))
