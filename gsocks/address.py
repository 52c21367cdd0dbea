"""Addresses: a host and a port, and their encoding on the wire.

SOCKS5 requests and replies, UDP headers and tunnel frames all carry ATYP, address and port as in
RFC 1928 section 5; their only encoder and decoder is here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from socket import AF_INET, inet_ntoa, inet_pton
from typing import NamedTuple

import idna

from gsocks.errors import AddressTypeNotSupported, BadAddress, BadPort
from gsocks.tuples import new_tuple

ATYP_IPV4 = 0x01
ATYP_NAME = 0x03
ATYP_IPV6 = 0x04

#: bytes of a host name, whose length is sent in one byte (RFC 1928 section 5)
MAX_NAME = 255

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Underscores are no letters of host names (RFC 952), but names in the DNS have them.
# The DNS also has labels that begin or end with a hyphen, which RFC 952 forbids: names of users of
# a service, for example.
_LABEL = r"-*[a-z0-9_][a-z0-9_-]*"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_JOINER = re.compile("[\u200c\u200d]")
#: bytes of a label (RFC 1035 section 2.3.4) behind the prefix of RFC 5890 section 2.3.2.1
_MAX_PUNYCODE = 63 - len("xn--")
# The C library reads 127.1, 0177.0.0.1 and 0x7f000001 as 127.0.0.1, and an upstream proxy may do
# so after the rules have seen a name; no name in the DNS ends in a number (WHATWG URL, "ends in a
# number").
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")


class Address(NamedTuple):
    """A destination or a bound address.

    ``host`` is an IP literal in its canonical form or a lower-case ASCII name.  Untrusted input
    becomes an address by :meth:`of` or :meth:`parse`, which ensure that.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Address:
        """An address from untrusted parts.  Raises BadAddress."""
        if not 0 <= port <= 0xFFFF:
            raise BadPort(f"port {port} is not between 0 and 65535")
        return cls(canonical_host(host), port)

    @classmethod
    def known(cls, host: str, port: int) -> Address:
        """An address from parts that are known to be one's, in a third of the time."""
        return new_tuple(cls, (host, port))

    @classmethod
    def of_ipv4(cls, raw: bytes) -> Address:
        """An address from the four bytes of an IPv4 address and the two of a port."""
        return new_tuple(cls, (inet_ntoa(raw[:4]), int.from_bytes(raw[4:], "big")))

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
        """Whether the host is 0.0.0.0 or ::, which means no address or any address."""
        ip = ip_of(self.host)
        return ip is not None and ip.is_unspecified

    def encode(self) -> bytes:
        """ATYP, address and port, encoded as in RFC 1928 section 5."""
        return _encode_host(self.host) + self.port.to_bytes(2, "big")

    @classmethod
    def read(cls, exactly: Callable[[int], bytes]) -> Address:
        """Decode one address; ``exactly(n)`` returns the next n bytes.

        An invalid address is read completely before it is refused.  Raises BadAddress,
        AddressTypeNotSupported, and the errors of ``exactly``.
        """
        kind = exactly(1)[0]
        if kind == ATYP_IPV4:
            return cls.of_ipv4(exactly(6))
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
        """The address of a socket, from what getsockname() and accept() return."""
        if ":" not in sockaddr[0]:  # the kernel's IPv4 addresses have one form only
            return new_tuple(cls, sockaddr[:2])
        host, port = sockaddr[:2]
        return cls(_canonical_ip(ipaddress.ip_address(host.partition("%")[0])), port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: sent where no address is known, such as the bound address of a failed request
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
def _encode_host(host: str) -> bytes:
    ip = ip_of(host)
    if ip is None:
        name = host.encode("ascii")
        return bytes((ATYP_NAME, len(name))) + name
    return bytes((ATYP_IPV4 if ip.version == 4 else ATYP_IPV6,)) + ip.packed


@lru_cache(maxsize=4096)
def canonical_host(host: str) -> str:
    """A host from untrusted text: a canonical IP literal or a lower-case ASCII name.

    An IP literal that is sent as a name becomes that address (Chromium sends every literal so), and
    an IPv4-mapped IPv6 address becomes IPv4, so that the rules see one form only.  Raises
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
    """A name in any script as the DNS has it, and as curl and browsers send it.

    That is IDNA 2008 (RFC 5891), mapped as in UTS 46: sharp s and final sigma are letters of their
    own, so that ``straße.de`` is another name than ``strasse.de``.  Raises BadAddress.
    """
    if len(host) > MAX_NAME:  # before the codec, whose cost grows with the length
        raise BadAddress("the destination's name is too long")
    try:
        try:
            return _encode_labels(host)
        except idna.IDNAError:
            if not _JOINER.search(host):
                raise
            # an invisible joiner that joins nothing: dropped, as libidn2 does for curl
            return _encode_labels(_JOINER.sub("", host))
    except UnicodeError:  # idna.IDNAError is one
        raise BadAddress(f"{host!r} is not a host name") from None


def _encode_labels(host: str) -> str:
    mapped = idna.uts46_remap(host, std3_rules=False)
    return ".".join(map(_to_a_label, mapped.split(".")))


def _to_a_label(label: str) -> str:
    if label.isascii():
        return label
    try:
        return idna.alabel(label).decode("ascii")
    except (idna.InvalidCodepoint, idna.IDNABidiError):
        # Symbols, and digits in front of Hebrew: IDNA 2008 leaves them out, but names such as
        # ☃.net were registered before, and UTS 46 maps them.
        if _JOINER.search(label):
            raise
        encoded = label.encode("punycode").decode("ascii")
    if len(encoded) > _MAX_PUNYCODE:
        raise BadAddress("a label of the destination's name is too long")
    return f"xn--{encoded}"


def decode_name(raw: bytes) -> str:
    """A name as received, for :func:`canonical_host`.  Raises BadAddress."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadAddress("the destination's name is not text") from None
