"""UDP associations (RFC 1928 section 7), seen from the client.

A client requests an association over TCP, learns an address, and sends its datagrams there.  In
front of each stands a header with the address that it goes to; in front of those that come back,
the address that they come from.

    client  <-- RSV, FRAG, ATYP, ADDR, PORT, DATA -->  ClientDatagrams  <-- ATYP, ADDR, PORT, DATA

Towards the relay a datagram has its wire form, see :mod:`gsocks.net.datagram`.
"""

from __future__ import annotations

import errno
import itertools
import random
import socket as std_socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.socket import socket

from gsocks.access.networks import client_prefix
from gsocks.access.own_addresses import is_own
from gsocks.address import ATYP_NAME, UNSPECIFIED, Address
from gsocks.errors import LimitReached, StreamClosed, connect_failure
from gsocks.lru import LruCache
from gsocks.net.datagram import (
    MAX_DESTINATIONS,
    DatagramReader,
    split,
    udp_socket,
    with_header,
    without_header,
)
from gsocks.net.idle import IdleTimer
from gsocks.net.socket_owner import Kind, owner_of
from gsocks.net.unix import UnixClient
from gsocks.settings import UdpSettings
from gsocks.sock import AnySocket, receive_now
from gsocks.stream import CHUNK, reset

#: where clients at a Unix socket, which has no address, send their datagrams
LOOPBACK = "127.0.0.1"


class ClientDatagrams(DatagramReader):
    """A client's datagrams, as a stream of them.

    ``sock`` is where the client sends them, ``control`` the connection over which it requested the
    association; both belong to the stream.  Datagrams are taken from the IP address of ``client``
    only.  Of another machine, they are from the port of the first one only, or from that of
    ``announced``, the address that the client has said it sends from (RFC 1928 section 7), as soon
    as one comes from there: not every client tells the truth.  Of this machine, and so of a client
    at a Unix socket, they are from any port of the same user, whom the kernel tells; each gets the
    answers to its own.  So no other user, and no other program, takes the client's place by being
    first.

    The stream ends when the control connection ends, and after ``idle`` seconds without a datagram
    in either direction.  ``on_released`` is called once, at its end.
    """

    #: ports of this machine of which it is remembered whether they are the same user's
    max_ports = 64

    __slots__ = (
        "_announced",
        "_asked",
        "_client",
        "_control",
        "_expiry",
        "_host",
        "_is_connected",
        "_may_send",
        "_on_released",
        "_owner",
        "_peer",
        "_watcher",
        "bound",
        "last_byte",
        "relay_address",
    )

    def __init__(
        self,
        sock: socket,
        control: AnySocket,
        client: Address,
        relay_address: Address,
        *,
        idle: float,
        on_released: Callable[[], None],
        announced: Address = UNSPECIFIED,
    ) -> None:
        super().__init__(sock)
        self._control = control
        self._client = client
        #: where its datagrams come from
        self._host = LOOPBACK if isinstance(client, UnixClient) else client.host
        #: where the client is to send its datagrams
        self.relay_address = relay_address
        self._on_released: Callable[[], None] | None = on_released
        self._announced = announced.port
        #: where the client sends from, once that is known; the latest of several ports
        self._peer: tuple[str, int] | None = None
        #: whether the kernel drops what others send
        self._is_connected = False
        #: of this machine: the client's user; None if that is unknown, or it is another machine
        self._owner = _owner_of_client(control, client)
        #: ports of this machine, and whether they are the same user's
        self._may_send: LruCache[tuple[str, int], bool] = LruCache(self.max_ports)
        #: which port has sent to a destination, where there may be several
        self._asked: LruCache[bytes, tuple[str, int]] = LruCache(MAX_DESTINATIONS)
        self._watcher: Any = None
        self._expiry = IdleTimer(self)
        #: seconds that it may be silent
        self.bound = idle
        #: monotonic seconds when the last datagram passed
        self.last_byte = time.monotonic()

    def __repr__(self) -> str:
        state = "closed" if self._sock is None else "open"
        return f"<ClientDatagrams of {self._client} at {self.relay_address}, {state}>"

    def read(self) -> bytes:
        if self._watcher is None:
            self._watch()
        return super().read()

    def _accept(self, packet: bytes, source: tuple[str, int]) -> bytes | None:
        datagram = without_header(packet) if self._is_from_client(source) else None
        if datagram is not None:
            self._note_peer(datagram, source)
            self.last_byte = time.monotonic()
        return datagram

    def write(self, datagram: bytes) -> None:
        if self._sock is None:
            if not self._ended:
                raise StreamClosed("closed at this end")
            return  # it was on its way when the client left
        peer = self._peer if self._owner is None else self._who_asked(datagram)
        if peer is None:
            return  # the client has not sent anything yet
        packet = with_header(datagram)
        try:
            self._sock.send(packet) if self._is_connected else self._sock.sendto(packet, peer)
        except OSError:
            return  # too long with its header, or refused
        self.last_byte = time.monotonic()

    def write_eof(self) -> None:
        """The other side has ended; so the association has."""
        self._end()

    def abort(self) -> None:
        if self.release():
            reset(self._control)

    def close(self) -> None:
        if self.release():
            self._control.close()

    def release(self) -> bool:
        """Close all but the control connection; whether that was still to be done."""
        on_released, self._on_released = self._on_released, None
        if on_released is None:
            return False
        self._close_socket()
        on_released()
        return True

    # --- its end ----------------------------------------------------------------------------

    def _watch(self) -> None:
        self._watcher = gevent.get_hub().loop.io(self._control.fileno(), 1)
        self._watcher.start(self._on_control_readable)
        self._expiry.restart()

    def _on_control_readable(self) -> None:
        """Runs in the hub when the client sends over the control connection, or ends it.

        Bytes there have no meaning.
        """
        try:
            received = receive_now(self._control, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._end()

    def on_idle(self) -> None:
        """No datagram has passed for :attr:`bound` seconds."""
        self._end()

    def _end(self) -> None:
        if self._sock is not None:
            self._ended = True
            self._close_socket()

    def _close_socket(self) -> None:
        self._expiry.stop()
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()  # which wakes the reader

    # --- the client's address ---------------------------------------------------------------

    def _is_from_client(self, source: tuple[str, int]) -> bool:
        if source == self._peer:
            return True
        if Address.from_sockaddr(source).host != self._host:
            return False
        if self._owner is None:
            return self._peer is None or source[1] == self._announced
        may_send = self._may_send.get(source)
        if may_send is None and self._sock is not None:
            here, there = map(Address.from_sockaddr, (source, self._sock.getsockname()))
            may_send = self._may_send[source] = owner_of(Kind.UDP, here, there) == self._owner
        return bool(may_send)

    def _note_peer(self, datagram: bytes, source: tuple[str, int]) -> None:
        """A datagram of the client has come from ``source``."""
        if self._owner is not None:
            self._asked[_destination(datagram)] = source
        elif source != self._peer and self._sock is not None and not self._is_connected:
            # what is not from the announced port may not be the client's
            self._is_connected = self._announced in (0, source[1])
            if self._is_connected:
                _connect(self._sock, source)
        self._peer = source

    def _who_asked(self, datagram: bytes) -> tuple[str, int] | None:
        """The port that has sent to where ``datagram`` is from, else to any name with the same
        port, else anywhere."""
        head = split(datagram)[0]
        return self._asked.get(head) or self._asked.get(head[-2:]) or self._peer


def _owner_of_client(control: AnySocket, client: Address) -> int | None:
    """The user of this machine who has requested an association; None if that is unknown."""
    if isinstance(client, UnixClient):
        return client.user
    if client.ip is None or not is_own(client.ip):
        return None
    return owner_of(Kind.TCP, client, Address.from_sockaddr(control.getsockname()))


def _destination(datagram: bytes) -> bytes:
    """What an answer to ``datagram`` is known by: its address, or of a name its port."""
    head = split(datagram)[0]
    return head[-2:] if head[0] == ATYP_NAME else head


def _connect(sock: socket, source: tuple[str, int]) -> None:
    """From now on the kernel drops other senders' datagrams, but not those already queued."""
    sock.settimeout(0.0)  # else gevent would resolve the address, in a thread
    sock.connect(source)
    sock.settimeout(None)


class Associations:
    """The associations of one listener: how many there may be, and where."""

    def __init__(self, bounds: UdpSettings) -> None:
        self._bounds = bounds
        self._by_client: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Associations {dict(self._by_client)}>"

    @property
    def served(self) -> bool:
        """Whether there may be any."""
        return self._bounds.associations > 0

    @property
    def open(self) -> int:
        """How many there are."""
        return self._by_client.total()

    def associate(
        self, control: AnySocket, client: Address, announced: Address = UNSPECIFIED
    ) -> ClientDatagrams:
        """A socket for the datagrams of the client that requested them over ``control``.

        ``announced``: where the client says that it sends from; the unspecified address says
        nothing.
        Raises LimitReached, or another ConnectFailed if there is no socket for it.
        """
        bounds = self._bounds
        if self.open >= bounds.associations:
            raise LimitReached(f"{self.open} associations are open, and no more may be")
        prefix = client_prefix(client.host)
        if self._by_client[prefix] >= bounds.per_client:
            raise LimitReached(f"{prefix} has {bounds.per_client} associations already")
        # at the address that the client has reached once, it will reach this socket too
        here = (LOOPBACK, 0) if isinstance(client, UnixClient) else control.getsockname()
        sock = _bind(here, self._ports())
        bound = Address.from_sockaddr(sock.getsockname())
        self._by_client[prefix] += 1
        return ClientDatagrams(
            sock,
            control,
            client,
            self._as_seen_by_client(bound),
            idle=bounds.idle,
            on_released=lambda: self._leave(prefix),
            announced=announced,
        )

    def _leave(self, prefix: str) -> None:
        self._by_client[prefix] -= 1
        if not self._by_client[prefix]:
            del self._by_client[prefix]

    def _ports(self) -> Iterable[int]:
        """The ports that may be taken, in the order in which they are tried."""
        if self._bounds.ports is None:
            return (0,)
        first, last = self._bounds.ports
        middle = random.randint(first, last)  # noqa: S311
        return itertools.chain(range(middle, last + 1), range(first, middle))

    def _as_seen_by_client(self, bound: Address) -> Address:
        """The address by which the client can reach ``bound``."""
        advertised = self._bounds.advertise
        # A client of this machine does not come through the NAT, nor one by another address family.
        if advertised is None or bound.ip is None or bound.ip.is_loopback:
            return bound
        there = Address(advertised, bound.port)
        return there if there.ip is not None and there.ip.version == bound.ip.version else bound


def _bind(here: tuple[Any, ...], ports: Iterable[int]) -> socket:
    """A UDP socket at the address ``here`` of a TCP socket.  Raises ConnectFailed."""
    ip = Address.from_sockaddr(here[:2]).ip  # of a socket for both families, the IPv4 address
    family = std_socket.AF_INET6 if ip is not None and ip.version == 6 else std_socket.AF_INET
    sock = udp_socket(family)
    for port in ports:
        try:
            # an address of one link only comes with the number of its interface
            sock.bind((str(ip), port, *(here[2:] if family == std_socket.AF_INET6 else ())))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            sock.close()
            raise connect_failure(error) from None
        return sock
    sock.close()
    raise LimitReached("every port for associations is in use")
