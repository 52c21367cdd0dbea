"""An address as it travels: a host and a port, and their wire form.

SOCKS5 requests and replies, UDP headers and tunnel frames all carry ATYP, address, port as in
RFC 1928 section 5; this is their only encoder and decoder.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from socket import AF_INET, inet_ntoa, inet_pton
from typing import NamedTuple

from gsocks.errors import AddressTypeNotSupported, BadAddress

ATYP_IPV4 = 0x01
ATYP_NAME = 0x03
ATYP_IPV6 = 0x04

#: a name's length travels in one byte (RFC 1928 section 5)
MAX_NAME = 255

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Underscores are not host name letters (RFC 952), but real names in the DNS have them.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# The C library reads 127.1, 0177.0.0.1 and 0x7f000001 as 127.0.0.1, and so might a proxy further
# on, past the rules; no name in the DNS ends in a number (WHATWG URL, "ends in a number").
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")


class Address(NamedTuple):
    """A destination or a bound address.

    ``host`` is an IP literal in its canonical form or a lower-case ASCII name; make one from
    untrusted input with :meth:`of` or :meth:`parse`, which see to that.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Address:
        """An address from untrusted parts.  Raises BadAddress."""
        if not 0 <= port <= 0xFFFF:
            raise BadAddress(f"port {port} is not between 0 and 65535")
        return cls(canonical_host(host), port)

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address from ``host:port`` or ``[v6]:port``.  Raises BadAddress."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
            raise BadAddress(f"{text!r} is not host:port")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if ":" not in host:
                raise BadAddress(f"{text!r} has brackets around what is not an IPv6 address")
        elif ":" in host:
            raise BadAddress(f"{text!r} needs brackets: [{host}]:{port}")
        return cls.of(host, int(port))

    @property
    def ip(self) -> IPAddress | None:
        """The host as an IP address, or None if it is a name."""
        return ip_of(self.host)

    @property
    def is_unspecified(self) -> bool:
        """Whether the host is 0.0.0.0 or ::, which stands for no address, or for any."""
        ip = ip_of(self.host)
        return ip is not None and ip.is_unspecified

    def encode(self) -> bytes:
        """ATYP, address and port, as RFC 1928 section 5 lays them out."""
        ip = ip_of(self.host)
        port = self.port.to_bytes(2, "big")
        if ip is None:
            name = self.host.encode("ascii")
            return bytes((ATYP_NAME, len(name))) + name + port
        kind = ATYP_IPV4 if ip.version == 4 else ATYP_IPV6
        return bytes((kind,)) + ip.packed + port

    @classmethod
    def read(cls, exactly: Callable[[int], bytes]) -> Address:
        """Decode one address; ``exactly(n)`` gives the next n bytes.

        The whole field is consumed before a bad one is refused.  Raises BadAddress,
        AddressTypeNotSupported, and whatever ``exactly`` raises.
        """
        kind = exactly(1)[0]
        if kind == ATYP_IPV4:
            raw = exactly(6)
            return cls(inet_ntoa(raw[:4]), int.from_bytes(raw[4:], "big"))
        if kind == ATYP_IPV6:
            raw = exactly(18)
            return cls(
                _canonical_ip(ipaddress.IPv6Address(raw[:16])), int.from_bytes(raw[16:], "big")
            )
        if kind == ATYP_NAME:
            length = exactly(1)[0]
            raw = exactly(length + 2)
            return cls(
                canonical_host(decode_name(raw[:length])), int.from_bytes(raw[length:], "big")
            )
        raise AddressTypeNotSupported(f"address type {kind:#04x}")

    @classmethod
    def from_sockaddr(cls, sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Address:
        """The address of a socket, as getsockname() and accept() tell it."""
        host, port = sockaddr[:2]
        if ":" not in host:  # the kernel's IPv4 addresses have one form only
            return cls(host, port)
        return cls(_canonical_ip(ipaddress.ip_address(host.partition("%")[0])), port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: what is told where no address is known: a failed request's bound address
UNSPECIFIED = Address("0.0.0.0", 0)


@lru_cache(maxsize=4096)
def ip_of(host: str) -> IPAddress | None:
    """``host`` as an IP address, or None if it is a name."""
    try:
        if ":" in host:
            return ipaddress.IPv6Address(host)
        # the C library's strictest reader, which is five times as fast as IPv4Address's own
        return ipaddress.IPv4Address(inet_pton(AF_INET, host))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def canonical_host(host: str) -> str:
    """A host from untrusted text: a canonical IP literal or a lower-case ASCII name.

    An IP literal sent as a name is the address it spells (Chromium sends all of them so), and
    an IPv4-mapped IPv6 address is that IPv4 address, so that rules see one form only.  Raises
    BadAddress.
    """
    if "%" in host:
        raise BadAddress(f"{host!r} has a zone, which means nothing at another machine")
    literal = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    ip = ip_of(literal)
    if ip is not None:
        return _canonical_ip(ip)
    if not host:
        raise BadAddress("the destination's name is empty")
    if not host.isascii():
        host = _to_ascii(host)
    host = host.lower()
    if len(host) > MAX_NAME or not _NAME.fullmatch(host) or _NUMBER.fullmatch(host):
        raise BadAddress(f"{host[:MAX_NAME]!r} is not a host name")
    return host


def _canonical_ip(ip: IPAddress) -> str:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip)


def _to_ascii(host: str) -> str:
    if len(host) > MAX_NAME:  # before the codec, whose cost grows with the square of the length
        raise BadAddress("the destination's name is too long")
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise BadAddress(f"{host!r} is not a host name") from None


def decode_name(raw: bytes) -> str:
    """A name as it came over the wire, for :func:`canonical_host`.  Raises BadAddress."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadAddress("the destination's name is not text") from None
