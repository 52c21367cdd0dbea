"""A list of networks, as its writer means it: who may connect, and who speaks for others."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

from gsocks.address import ip_of
from gsocks.errors import ConfigError

#: what stands for networks in a config and in a program; None is "nothing was said"
SomeNetworks: TypeAlias = "Networks | Iterable[str] | None"

_MAPPED_BITS = 96  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2


class Networks:
    """Networks of IPv4 and IPv6: ``host in networks`` tells whether an address is in one of them.

    ``host`` is canonical, as that of every :class:`gsocks.address.Address` is; a name is in none.
    Immutable.
    """

    __slots__ = ("_ranges", "_texts")

    def __init__(self, texts: Iterable[str]) -> None:
        """Networks from addresses (``::1``) and networks (``10.0.0.0/8``).

        Raises ConfigError, which names the one that is neither.
        """
        self._texts = tuple(texts)
        self._ranges = tuple(_range(text) for text in self._texts)

    @classmethod
    def of(cls, networks: SomeNetworks) -> Networks | None:
        """Networks however they were given.  Raises ConfigError."""
        return networks if networks is None or isinstance(networks, Networks) else cls(networks)

    def __contains__(self, host: str) -> bool:
        ip = ip_of(host)
        if ip is None:
            return False
        version, value = ip.version, int(ip)
        return any(
            version == version_here and value & mask == base
            for version_here, base, mask in self._ranges
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(self._ranges)

    def __repr__(self) -> str:
        return f"Networks({list(self._texts)!r})"


def _range(text: str) -> tuple[int, int, int]:
    """IP version, base and mask."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"{text!r} is not an address or a network (expected e.g. 10.0.0.0/8 or ::1)"
        ) from None
    if ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
        raise ConfigError(f"{text!r} has bits set behind its prefix (did you mean {network}?)")
    address = network.network_address
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ConfigError(f"{text!r} has a zone, which no client's address is told with")
        mapped = address.ipv4_mapped
        # a client of that kind shows as what it is, IPv4
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network.version, int(network.network_address), int(network.netmask)
