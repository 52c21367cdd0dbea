"""UDP associations (RFC 1928 section 7), and datagrams as a stream of them.

A client asks for an association over TCP, is told an address, and sends its datagrams there.  In
front of each stands a header with the address that it goes to; in front of those that come back,
the address that they come from.

    client  <-- RSV, FRAG, ATYP, ADDR, PORT, DATA -->  ClientDatagrams  <-- ATYP, ADDR, PORT, DATA

Behind this door a datagram is bytes in *wire form*: its address as RFC 1928 section 5 lays it
out, and its payload.  A stream of datagrams is a :class:`gsocks.stream.Stream`, of which every
read gives one and every write takes one.  So the relay carries them as it carries bytes, and knows
nothing of it.  What can't be delivered is dropped without a word, as on any network.
"""

from __future__ import annotations

import errno
import itertools
import random
import socket as std_socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any

import gevent
from gevent.socket import socket

from gsocks.address import ATYP_IPV4, ATYP_IPV6, ATYP_NAME, Address
from gsocks.errors import (
    BadRequest,
    ClientError,
    LimitReached,
    StreamClosed,
    connect_failure,
    stream_failure,
)
from gsocks.expiry import Expiry
from gsocks.limits import Udp
from gsocks.stream import CHUNK, Stream, reset

#: bytes asked of the kernel for one datagram, of which the rest would be lost; there is none
#: with more than 65,527 (IPv6) or 65,507 (IPv4) bytes
MAX_DATAGRAM = 65535
#: bytes that the kernel is asked to keep while a greenlet waits for its turn; it gives twice
#: net.core.rmem_max at most.  Of a burst of 200 datagrams of 1,200 bytes the default of 212,992
#: loses half.
RECEIVE_BUFFER = 1024 * 1024
#: destinations of one association that are remembered: the least recently used goes, and is
#: asked about again when it comes back
MAX_DESTINATIONS = 1024
#: datagrams in a row that are dropped before others have their turn: a socket that is always
#: ready never makes its greenlet wait
DROPPED_IN_A_ROW = 16

# RSV and FRAG of the header.  A fragment can't be told from nonsense by who doesn't reassemble,
# and must be dropped (RFC 1928 section 7).
_UNFRAGMENTED = bytes(3)


# --- the wire form --------------------------------------------------------------------------


def split(datagram: bytes, start: int = 0) -> tuple[bytes, bytes]:
    """The address in wire form that begins at ``start``, and the payload behind it.

    Raises BadRequest if there is no whole address.
    """
    kind = datagram[start : start + 2]
    if kind[:1] == bytes((ATYP_IPV4,)):
        end = start + 7
    elif kind[:1] == bytes((ATYP_IPV6,)):
        end = start + 19
    elif kind[:1] == bytes((ATYP_NAME,)) and len(kind) == 2:
        end = start + 4 + kind[1]
    else:
        raise BadRequest("a datagram without an address")
    if len(datagram) < end:
        raise BadRequest("a datagram whose address ends early")
    return datagram[start:end], datagram[end:]


@lru_cache(maxsize=4096)
def address_of(head: bytes) -> Address | None:
    """What an address in wire form says; None where it can't be one."""
    try:
        return Address.read(BytesIO(head).read)
    except ClientError:
        return None


@lru_cache(maxsize=4096)
def head_of(sockaddr: tuple[str, int]) -> bytes:
    """The wire form of a socket's address."""
    return Address.from_sockaddr(sockaddr).encode()


@lru_cache(maxsize=4096)
def _canonical(head: bytes) -> bytes | None:
    address = address_of(head)
    return None if address is None else address.encode()


def without_header(packet: bytes) -> bytes | None:
    """What a client has sent, in wire form; None if it is to be dropped."""
    if packet[:3] != _UNFRAGMENTED:
        return None
    try:
        head, payload = split(packet, 3)
    except BadRequest:
        return None
    canonical = _canonical(head)
    return None if canonical is None else canonical + payload


def with_header(datagram: bytes) -> bytes:
    """What a client is sent."""
    return _UNFRAGMENTED + datagram


class Screened:
    """A stream of datagrams that takes only those whose destination ``allows``.

    It is asked once for each destination while that is remembered; it must not block.
    """

    __slots__ = ("_allows", "_write", "abort", "close", "read", "write_eof")

    def __init__(self, stream: Stream, allows: Callable[[Address], bool]) -> None:
        @lru_cache(maxsize=MAX_DESTINATIONS)
        def allows_head(head: bytes) -> bool:
            dest = address_of(head)
            return dest is not None and allows(dest)

        self._allows = allows_head
        self._write = stream.write
        self.read = stream.read
        self.write_eof = stream.write_eof
        self.abort = stream.abort
        self.close = stream.close

    def write(self, datagram: bytes) -> None:
        try:
            head, _ = split(datagram)
        except BadRequest:
            return
        if self._allows(head):
            self._write(datagram)


def udp_socket(family: int) -> socket:
    """A UDP socket with room for a burst.  Raises ConnectFailed."""
    try:
        sock = socket(family, std_socket.SOCK_DGRAM)
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_RCVBUF, RECEIVE_BUFFER)
    except OSError as error:
        raise connect_failure(error) from None
    return sock


# --- the client's end -----------------------------------------------------------------------


class ClientDatagrams:
    """A client's datagrams, as a stream of them.

    ``sock`` is where it sends them, ``control`` the connection over which it asked; both belong
    to the stream.  It takes them from the IP address of ``client`` only, and once the first has
    come, from its port only.  It ends when the control connection ends, and when for ``idle``
    seconds nothing has passed in either direction.  ``released`` is called once, at its end.
    """

    __slots__ = (
        "_client",
        "_control",
        "_ended",
        "_expiry",
        "_peer",
        "_released",
        "_sock",
        "_watcher",
        "bound",
        "last_byte",
        "told",
    )

    def __init__(
        self,
        sock: socket,
        control: socket,
        client: Address,
        told: Address,
        *,
        idle: float,
        released: Callable[[], None],
    ) -> None:
        self._sock: socket | None = sock
        self._control = control
        self._client = client
        #: where the client is told to send to
        self.told = told
        self._released: Callable[[], None] | None = released
        #: where it sends from, once that is known
        self._peer: object = None
        self._ended = False
        self._watcher: Any = None
        self._expiry = Expiry(self)
        #: seconds that it may be silent
        self.bound = idle
        #: monotonic seconds when the last datagram passed
        self.last_byte = time.monotonic()

    def read(self) -> bytes:
        if self._watcher is None:
            self._watch()
        dropped = 0
        while (sock := self._sock) is not None:
            try:
                packet, source = sock.recvfrom(MAX_DATAGRAM)
            except ConnectionRefusedError:
                continue  # what was sent last found nobody there, which may change
            except OSError as error:
                if self._sock is None:
                    break
                raise stream_failure(error) from None
            datagram = without_header(packet) if self._is_the_clients(source) else None
            if datagram is not None:
                if self._peer is None:
                    self._lock(sock, source)
                self.last_byte = time.monotonic()
                return datagram
            dropped += 1
            if dropped % DROPPED_IN_A_ROW == 0:
                gevent.sleep(0)
        if not self._ended:
            raise StreamClosed("closed at this end")
        return b""

    def write(self, datagram: bytes) -> None:
        if self._sock is None:
            if not self._ended:
                raise StreamClosed("closed at this end")
            return  # it was on its way when the client left
        try:
            self._sock.send(with_header(datagram))
        except OSError:
            return  # too long with its header, or nobody there, or the client has not spoken yet
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
        released, self._released = self._released, None
        if released is None:
            return False
        self._close_socket()
        released()
        return True

    # --- its end ----------------------------------------------------------------------------

    def _watch(self) -> None:
        self._control.settimeout(0.0)
        self._watcher = gevent.get_hub().loop.io(self._control.fileno(), 1)
        self._watcher.start(self._look_at_control)
        self._expiry.restart()

    def _look_at_control(self) -> None:
        """Runs in the hub when the client says something over the control connection, or ends it.

        What it says there has no meaning.
        """
        try:
            said = self._control.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._end()

    def expire(self) -> None:
        """Nothing has passed for :attr:`bound` seconds."""
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

    # --- who the client is ------------------------------------------------------------------

    def _is_the_clients(self, source: tuple[str, int]) -> bool:
        if self._peer is not None:
            return bool(source == self._peer)
        return Address.from_sockaddr(source).host == self._client.host

    def _lock(self, sock: socket, source: tuple[str, int]) -> None:
        """From now on the kernel drops what others send, but not what has come already."""
        self._peer = source
        sock.settimeout(0.0)  # else gevent would have it resolved, in a thread
        sock.connect(source)
        sock.settimeout(None)


class Associations:
    """The associations of one door: how many there may be, and where."""

    def __init__(self, bounds: Udp) -> None:
        self._bounds = bounds
        self._by_client: Counter[str] = Counter()

    @property
    def served(self) -> bool:
        """Whether there may be any."""
        return self._bounds.associations > 0

    @property
    def open(self) -> int:
        """How many there are."""
        return self._by_client.total()

    def associate(self, control: socket, client: Address) -> ClientDatagrams:
        """A place for the datagrams of the client that has asked for it over ``control``.

        Raises LimitReached, or another ConnectFailed if there is no socket for it.
        """
        bounds = self._bounds
        if self.open >= bounds.associations:
            raise LimitReached(f"{self.open} associations are open, and no more may be")
        if self._by_client[client.host] >= bounds.per_client:
            raise LimitReached(f"{client.host} has {bounds.per_client} associations already")
        # Where the client has reached us, it will reach us again.
        sock = _bind(control.getsockname(), self._ports())
        at = Address.from_sockaddr(sock.getsockname())
        self._by_client[client.host] += 1
        return ClientDatagrams(
            sock,
            control,
            client,
            self._as_told(at),
            idle=bounds.idle,
            released=lambda: self._leave(client.host),
        )

    def _leave(self, host: str) -> None:
        self._by_client[host] -= 1
        if not self._by_client[host]:
            del self._by_client[host]

    def _ports(self) -> Iterable[int]:
        """The ports that may be taken, in the order in which they are tried."""
        if self._bounds.ports is None:
            return (0,)
        first, last = self._bounds.ports
        middle = random.randint(first, last)  # noqa: S311
        return itertools.chain(range(middle, last + 1), range(first, middle))

    def _as_told(self, at: Address) -> Address:
        """The address by which the client can reach ``at``."""
        advertised = self._bounds.advertise
        # No client of this machine comes by way of the NAT, and none by another kind of address.
        if advertised is None or at.ip is None or at.ip.is_loopback:
            return at
        there = Address(advertised, at.port)
        return there if there.ip is not None and there.ip.version == at.ip.version else at


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
