"""The PROXY protocol, versions 1 and 2, by which a load balancer reports its client's address.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt; "section" below means its sections.

A peer that may send the header may claim any address, so it is read only from the networks of the
config, and required from them (section 2: "it must be configured").  Not one byte behind the header
is read, so that the next one is the client's first.
"""

from __future__ import annotations

import ipaddress
import re
from socket import MSG_PEEK

from gsocks.address import Address
from gsocks.errors import BadProxyHeader, ClientGone, ConnectedOnly, StreamError, stream_failure
from gsocks.sock import AnySocket
from gsocks.stream import Reader

#: bytes of a header of version 1 with its CRLF, section 2.1
MAX_LINE = 107

_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|TCP4 ([0-9.]+) ([0-9.]+) " + _PORT + rb" " + _PORT + rb""
    rb"|TCP6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + rb" " + _PORT + rb")\r\n"
)

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"  # section 2.2
_VERSION = 2
_LOCAL = 0
_PROXY = 1
_TCP4 = 0x11
_TCP6 = 0x21
#: bytes of the addresses for each family and transport that section 2.2 knows
_ADDRESS_BYTES = {0x00: 0, _TCP4: 12, 0x12: 12, _TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}


def read_header(sock: AnySocket) -> Address | None:
    """The address of the client for which the balancer has connected, from its header.

    None means that the connection's own address is the client's: the balancer connects for itself
    (LOCAL, a health check), or for a client without an IP address or with an unknown one.

    Blocks; the caller bounds the time by a gevent.Timeout.  Raises BadProxyHeader as soon as the
    bytes can't be a header; ClientGone.
    """
    try:
        first = Reader(sock).exactly(1)
    except StreamError as error:
        raise ConnectedOnly(f"disconnected before its PROXY header was complete: {error}") from None
    try:
        if first == b"P":
            return _version_1(b"P" + _rest_of_line(sock))
        if first == b"\r":
            return _version_2(Reader(sock))
    except StreamError as error:
        raise ClientGone(f"disconnected before its PROXY header was complete: {error}") from None
    raise BadProxyHeader(
        f"begins with {first[0]:#04x}, and connections from this network need a PROXY header"
    )


# --- version 1, a line of text: section 2.1 -------------------------------------------------


def _rest_of_line(sock: AnySocket) -> bytes:
    """The line behind its first byte, including CRLF if it is complete.

    Its length is not known in advance: so the bytes are peeked at, and only the line's are read.
    """
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < MAX_LINE - 1:
            ahead = sock.recv(MAX_LINE - 1 - len(line), MSG_PEEK)
            if not ahead:
                raise ClientGone("disconnected before its PROXY header was complete")
            line += sock.recv(ahead.find(b"\n") + 1 or len(ahead))
    except OSError as error:
        raise stream_failure(error) from None
    return line


def _version_1(line: bytes) -> Address | None:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadProxyHeader("a PROXY line that version 1 doesn't allow")
    source, dest, *ports = match.groups()[:4] if match[1] else match.groups()[4:]
    if source is None:
        return None
    kind = ipaddress.IPv4Address if match[1] else ipaddress.IPv6Address
    try:
        host, _ = str(kind(source.decode("ascii"))), kind(dest.decode("ascii"))
    except ValueError:
        raise BadProxyHeader("a PROXY line with an invalid IP address") from None
    port, other = map(int, ports)
    if max(port, other) > 0xFFFF:
        raise BadProxyHeader("a PROXY line with a port beyond 65535")
    return Address.from_sockaddr((host, port))


# --- version 2, binary: section 2.2 ---------------------------------------------------------


def _version_2(reader: Reader) -> Address | None:
    head = reader.exactly(15)
    if head[:11] != _SIGNATURE[1:]:
        raise BadProxyHeader("an invalid signature of a PROXY header of version 2")
    version, command, family = head[11] >> 4, head[11] & 0x0F, head[12]
    if version != _VERSION or command not in (_LOCAL, _PROXY):
        raise BadProxyHeader(f"a PROXY header of version {version} with command {command}")
    # addresses, and behind them TLVs, which are ignored
    body = reader.exactly(int.from_bytes(head[13:], "big"))
    if command == _LOCAL:
        return None  # whatever its family, section 2.2
    size = _ADDRESS_BYTES.get(family)
    if size is None:
        raise BadProxyHeader(f"a PROXY header with address family {family:#04x}")
    if len(body) < size:
        raise BadProxyHeader("a PROXY header that is shorter than its addresses")
    if family == _TCP4:
        return Address(str(ipaddress.IPv4Address(body[:4])), int.from_bytes(body[8:10], "big"))
    if family == _TCP6:
        host = str(ipaddress.IPv6Address(body[:16]))
        return Address.from_sockaddr((host, int.from_bytes(body[32:34], "big")))
    return None
