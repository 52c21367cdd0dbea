"""Networks, as they are written: which clients may connect, which peers send PROXY headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from gsocks.address import IPAddress, ip_of
from gsocks.errors import ConfigError
from gsocks.messages import shown

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: what stands for networks in a config and in a program; None means that the option is not set
SomeNetworks: TypeAlias = "Networks | Iterable[str] | None"

_MAPPED_BITS = 96  # the prefix of ::ffff:0:0/96, RFC 4291 section 2.5.5.2

#: bits that the IPv6 addresses of one customer have in common at most (RFC 6177, RFC 7421)
CLIENT_PREFIX_BITS = 64

# Addresses are compared as integers of one space: IPv6 as it is, IPv4 above it.
IPV4_BIT = 1 << 128


def parse_network(text: object) -> IPNetwork:
    """A network from ``10.0.0.0/8`` or ``2001:db8::/32``, or of one address from ``::1``.

    A network of IPv4-mapped IPv6 addresses becomes that IPv4 network, as such an address becomes
    IPv4 in :func:`gsocks.address.canonical_host`.  Raises ValueError, which says what is wrong.
    """
    written = text if isinstance(text, str) else ""  # ip_network takes integers too
    try:
        network = ipaddress.ip_network(written, strict=False)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an address or a network (expected e.g. 10.0.0.0/8 or ::1)"
        ) from None
    if "%" in written:
        raise ValueError(f"{shown(text)} has a zone, which means nothing at another machine")
    if ipaddress.ip_address(written.partition("/")[0]) != network.network_address:
        raise ValueError(f"{shown(text)} has host bits set (did you mean {network}?)")
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


class AddressRange(NamedTuple):
    """The addresses of one network: those with ``integer_of(ip) & mask == base``."""

    base: int
    mask: int


def integer_of(ip: IPAddress) -> int:
    """``ip`` as an integer, different for each address of either family."""
    return int(ip) | IPV4_BIT if isinstance(ip, ipaddress.IPv4Address) else int(ip)


def range_of(network: IPNetwork) -> AddressRange:
    """The addresses of ``network``."""
    every_bit = IPV4_BIT | (IPV4_BIT - 1)
    return AddressRange(integer_of(network.network_address), every_bit ^ int(network.hostmask))


_LOW_32 = 0xFFFF_FFFF

_NAT64 = range_of(ipaddress.IPv6Network("64:ff9b::/96"))
_SIX_TO_FOUR = range_of(ipaddress.IPv6Network("2002::/16"))
_TEREDO = range_of(ipaddress.IPv6Network("2001::/32"))


def nat64_ipv4(ip: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a NAT64 with the well-known prefix connects ``ip`` to (RFC 6052)."""
    integer = integer_of(ip)
    if integer & _NAT64.mask == _NAT64.base:
        return ipaddress.IPv4Address(integer & _LOW_32)
    return None


def inner_ipv4(ip: IPAddress) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses inside ``ip``, which packets to it may reach in the end.

    Inside of IPv4-mapped, NAT64, 6to4 and Teredo addresses; there are none inside of IPv4 ones.
    """
    if isinstance(ip, ipaddress.IPv4Address):
        return ()
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    integer = int(ip)
    translated = nat64_ipv4(ip)
    if translated is not None:
        return (translated,)
    if integer & _SIX_TO_FOUR.mask == _SIX_TO_FOUR.base:  # RFC 3056 section 2
        return (ipaddress.IPv4Address(integer >> 80 & _LOW_32),)
    if integer & _TEREDO.mask == _TEREDO.base:  # RFC 4380 section 4; the client's is inverted
        server, client = integer >> 64 & _LOW_32, integer & _LOW_32 ^ _LOW_32
        return ipaddress.IPv4Address(server), ipaddress.IPv4Address(client)
    return ()


def client_prefix(host: str) -> str:
    """What all addresses of one client have in common, by which everything is counted for it.

    An IPv4 address is itself, also in its mapped form, and so is a name; an IPv6 address is its
    /64, such as ``2001:db8:1:2::/64``: a client has all 2**64 addresses of it, and could come from
    another one each time.  The result is no address; it is a key of counts and a text for logs.
    """
    return _ipv6_prefix(host) if ":" in host else host


@lru_cache(maxsize=4096)
def _ipv6_prefix(host: str) -> str:
    ip = ip_of(host)
    if not isinstance(ip, ipaddress.IPv6Address):
        return host
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip), CLIENT_PREFIX_BITS), strict=False))


class Networks:
    """Networks of IPv4 and IPv6: ``host in networks`` tells whether an address is in one of them.

    ``host`` is canonical, as that of every :class:`gsocks.address.Address` is; a name is in none.
    Immutable.
    """

    __slots__ = ("_ranges", "_texts")

    def __init__(self, texts: Iterable[str]) -> None:
        """Networks from addresses (``::1``) and networks (``10.0.0.0/8``).

        Raises ConfigError, which names the text that is neither.
        """
        self._texts = tuple(texts)
        try:
            self._ranges = tuple(range_of(parse_network(text)) for text in self._texts)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @classmethod
    def of(cls, networks: SomeNetworks) -> Networks | None:
        """Networks from any of the forms that an option takes.  Raises ConfigError."""
        return networks if networks is None or isinstance(networks, Networks) else cls(networks)

    def __contains__(self, host: str) -> bool:
        ip = ip_of(host)
        if ip is None:
            return False
        value = integer_of(ip)
        return any(value & mask == base for base, mask in self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(self._ranges)

    def __repr__(self) -> str:
        return f"Networks({list(self._texts)!r})"
