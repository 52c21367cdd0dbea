"""UDP straight from this machine: where the datagrams of one association leave and come back."""

from __future__ import annotations

import logging
import socket as std_socket
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import gevent
from gevent.pool import Group
from gevent.socket import socket

from gsocks.address import Address, IPAddress
from gsocks.datagram import (
    DROPPED_IN_A_ROW,
    MAX_DATAGRAM,
    MAX_DESTINATIONS,
    address_of,
    head_of,
    split,
    udp_socket,
)
from gsocks.dial import Dialer
from gsocks.errors import (
    AddressFamilyNotSupported,
    BadRequest,
    ConnectFailed,
    Forbidden,
    StreamClosed,
    connect_failure,
    stream_failure,
)

log = logging.getLogger("gsocks.udp")

_SockAddr = tuple[str, int]
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class DirectDatagrams:
    """A stream of datagrams between an association and whatever its client sends to.

    All leave by one socket, so from one port, whatever their destination (endpoint-independent
    mapping, RFC 4787 section 4.1).  What comes back is taken from the addresses that the client
    has sent to, and from any of their ports (address-dependent filtering, section 5), which TFTP
    and many games need.

    The rules are asked about every address, once while it is remembered.  A name is looked up
    beside the traffic, and then keeps its address: datagrams of one conversation must not go to
    two machines.
    """

    #: datagrams that wait for their name to be looked up; what comes beyond is dropped
    MAX_WAITING = 16

    __slots__ = (
        "_dialer",
        "_ended",
        "_heard",
        "_lookups",
        "_routes",
        "_sending",
        "_sock",
        "_user",
        "_versions",
    )

    def __init__(self, dialer: Dialer, user: str | None) -> None:
        """Raises ConnectFailed if there is no socket for it."""
        self._dialer = dialer
        self._user = user
        sock, self._versions = _open_socket(dialer)
        self._sock: socket | None = sock
        #: where the datagrams of each address in wire form go; None: nowhere, they are forbidden
        self._routes: _Recent[bytes, _SockAddr | None] = _Recent(MAX_DESTINATIONS)
        #: the addresses that the client has sent to, as the socket tells them
        self._heard: _Recent[str, bool] = _Recent(MAX_DESTINATIONS)
        self._lookups = Group()
        self._sending = False
        self._ended = False

    def read(self) -> bytes:
        dropped = 0
        while (sock := self._sock) is not None:
            try:
                payload, source = sock.recvfrom(MAX_DATAGRAM)
            except OSError as error:
                if self._sock is None:
                    break
                raise stream_failure(error) from None
            if source[0] in self._heard:
                return head_of(source[:2]) + payload
            dropped += 1
            if dropped % DROPPED_IN_A_ROW == 0:
                gevent.sleep(0)
        if not self._ended:
            raise StreamClosed("closed at this end")
        return b""

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
        """The client has ended; so everything has."""
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
        gevent.with_timeout(
            self._dialer.timeout, self._find_and_send, head, dest, payload, timeout_value=None
        )

    def _find_and_send(self, head: bytes, dest: Address, payload: bytes) -> None:
        """Ask where ``dest`` is, which waits only if it is a name."""
        route: _SockAddr | None = None
        try:
            route = self._route(dest)
        except Forbidden as error:
            log.debug("dropped: %s", error)
        except ConnectFailed as error:
            log.debug("dropped: %s", error)
            return  # another time it may go better
        self._routes[head] = route
        self._send(payload, route)

    def _route(self, dest: Address) -> _SockAddr:
        """The first address that is allowed and can be sent to.  Raises ConnectFailed."""
        for ip in self._dialer.allowed_addresses(dest, self._user):
            if ip.version in self._versions:
                return self._sockaddr(ip), dest.port
        raise AddressFamilyNotSupported(f"{dest}: has no address of a family that is spoken here")

    def _sockaddr(self, ip: IPAddress) -> str:
        # a socket for both families knows IPv4 addresses as IPv6 ones
        return f"::ffff:{ip}" if ip.version == 4 and 6 in self._versions else str(ip)

    def _send(self, payload: bytes, route: _SockAddr | None) -> None:
        # While one waits for room in the socket's buffer, another that has found its address is
        # dropped: two can't wait.
        if route is None or self._sending or self._sock is None:
            return
        self._heard[route[0]] = True
        self._sending = True
        try:
            self._sock.sendto(payload, route)
        except OSError:
            pass  # too long, no way there, closed meanwhile: it is lost, as on any network
        finally:
            self._sending = False


class _Recent(OrderedDict[_K, _V], Generic[_K, _V]):
    """The last so many that were used."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __getitem__(self, key: _K) -> _V:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._count:
            self.popitem(last=False)


def _open_socket(dialer: Dialer) -> tuple[socket, frozenset[int]]:
    """A socket, and the IP versions that it can send to: both, where the machine speaks both.

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
    """Bind it where the exit says; the IP versions that it can send to."""
    if sock.family == std_socket.AF_INET:
        dialer.bind(sock)
        return frozenset((4,))
    if dialer.bind(sock):
        return frozenset((6,))
    sock.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, 0)
    return frozenset((4, 6))
