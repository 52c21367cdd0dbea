"""Datagrams as a stream: their wire form, and filtering by destination.

A datagram in *wire form* is its address as RFC 1928 section 5 lays it out, and its payload.  A
stream of datagrams is a :class:`gsocks.stream.Stream`: each read returns one and each write takes
one.  So the relay carries them as it carries bytes.  A datagram that can't be delivered is dropped
silently, as on any network.

Between a SOCKS client and gsocks a header stands in front (RFC 1928 section 7):
:func:`with_header` and :func:`without_header`.
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

from gevent.socket import socket

from gsocks.address import ATYP_IPV4, ATYP_IPV6, ATYP_NAME, Address
from gsocks.errors import (
    BadRequest,
    ClientError,
    ConnectFailed,
    StreamClosed,
    connect_failure,
    stream_failure,
)
from gsocks.stream import Stream
from gsocks.turns import give_way

#: bytes requested from the kernel for one datagram, of which the rest would be lost; there is none
#: with more than 65,527 (IPv6) or 65,507 (IPv4) bytes
MAX_DATAGRAM = 65535
#: bytes that the kernel is asked to keep while a greenlet waits for its turn; it gives twice
#: net.core.rmem_max at most.  Of a burst of 200 datagrams of 1,200 bytes the default of 212,992
#: loses half.
RECEIVE_BUFFER = 1024 * 1024
#: destinations of one association that are remembered: the least recently used goes, and is
#: checked again when it comes back
MAX_DESTINATIONS = 1024

# RSV and FRAG of the header.  Without reassembly a fragment can't be told from garbage,
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
    return in_canonical_form(packet, 3) if packet[:3] == _UNFRAGMENTED else None


def with_source(datagram: bytes) -> bytes | None:
    """What the other end of a tunnel has sent for a client, in wire form; None if it is to be
    dropped: what a datagram comes from is an address, and never a name."""
    return None if datagram[:1] == bytes((ATYP_NAME,)) else in_canonical_form(datagram)


def in_canonical_form(datagram: bytes, start: int = 0) -> bytes | None:
    """The datagram that begins at ``start``, in wire form; None if that is none, or its address
    can't be one."""
    try:
        head, payload = split(datagram, start)
    except BadRequest:
        return None
    canonical = _canonical(head)
    return None if canonical is None else canonical + payload


def with_header(datagram: bytes) -> bytes:
    """What a client is sent."""
    return _UNFRAGMENTED + datagram


class DatagramReader:
    """The reading half of a stream of datagrams that has a UDP socket of its own."""

    __slots__ = ("_ended", "_sock")

    def __init__(self, sock: socket) -> None:
        #: None once it is closed
        self._sock: socket | None = sock
        #: whether the stream has ended, rather than been closed at this end
        self._ended = False

    def read(self) -> bytes:
        while (sock := self._sock) is not None:
            try:
                packet, source = sock.recvfrom(MAX_DATAGRAM)
            except ConnectionRefusedError:
                continue  # the peer had no socket for the last datagram, which may change
            except OSError as error:
                if self._sock is None:
                    break
                raise stream_failure(error) from None
            datagram = self._accept(packet, source)
            if datagram is not None:
                return datagram
            give_way()  # a socket that is always ready never makes its greenlet wait
        if not self._ended:
            raise StreamClosed("closed at this end")
        return b""

    def _accept(self, packet: bytes, source: tuple[str, int]) -> bytes | None:
        """What was received, in wire form; None if it is to be dropped."""
        raise NotImplementedError


class FilteredDatagrams:
    """A stream of datagrams that takes only those whose destination ``allows``.

    ``allows`` is called once for each destination while that is remembered; it must not block.  If
    it raises ConnectFailed, the datagram is dropped and it is called again for the next one.
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
            allowed = self._allows(head)
        except (BadRequest, ConnectFailed):
            return
        if allowed:
            self._write(datagram)


def udp_socket(family: int) -> socket:
    """A UDP socket with room for a burst.  Raises ConnectFailed."""
    try:
        sock = socket(family, std_socket.SOCK_DGRAM)
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_RCVBUF, RECEIVE_BUFFER)
    except OSError as error:
        raise connect_failure(error) from None
    return sock
