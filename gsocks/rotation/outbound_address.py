"""The outbound address of an exit: the one that sites see, which is hardly ever the proxy's own.

Exits with one outbound address are one exit to a site, and those of one network are much alike.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

from gsocks.address import canonical_host
from gsocks.errors import BadAddress

#: bits of a network whose addresses usually have one owner and one reputation
IPV4_PREFIX = 24
IPV6_PREFIX = 48

#: JSON names under which pages return the address of their client
_NAMES = ("ip", "origin", "address", "query", "ip_addr", "ip_address", "client_ip")

_LINE = re.compile(r"^ip=(\S+)$", re.MULTILINE)

M = TypeVar("M", bound=Hashable)


class OutboundAddress(NamedTuple):
    """What is known of the address that an exit leaves from."""

    #: in its canonical form
    address: str
    #: two letters, lower case; None: not known
    country: str | None = None

    def __str__(self) -> str:
        return self.address if self.country is None else f"{self.address} ({self.country})"


def address_in(body: bytes) -> str | None:
    """The IP address in a page: text, JSON or lines such as ``ip=``; None if there is none.

    Of several, as a page behind a proxy may list them, the last one is what the page has seen.
    """
    text = body.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        line = _LINE.search(text)
        found = text if line is None else line[1]
    if isinstance(found, dict):
        found = next((found[name] for name in _NAMES if name in found), None)
    return _canonical(found.rpartition(",")[2].strip()) if isinstance(found, str) else None


def network_of(address: str) -> str:
    """The network of an address: its /24, or /48 of IPv6."""
    ip = ipaddress.ip_address(address)
    prefix = IPV4_PREFIX if ip.version == 4 else IPV6_PREFIX
    return str(ipaddress.ip_network((ip, prefix), strict=False))


class AddressIndex(Generic[M]):
    """Which members leave from which address and which network."""

    def __init__(self) -> None:
        self._known: dict[M, OutboundAddress] = {}
        # insertion-ordered sets
        self._by_address: dict[str, dict[M, None]] = {}
        self._by_network: dict[str, dict[M, None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, member: M, found: OutboundAddress) -> bool:
        """Note a member's outbound address; whether it is another one than before."""
        before = self._known.get(member)
        if before == found:
            return False
        self.forget(member)
        self._known[member] = found
        self._by_address.setdefault(found.address, {})[member] = None
        self._by_network.setdefault(network_of(found.address), {})[member] = None
        return True

    def forget(self, member: M) -> None:
        """The member is gone, or its address is not known any more."""
        found = self._known.pop(member, None)
        if found is not None:
            _remove(self._by_address, found.address, member)
            _remove(self._by_network, network_of(found.address), member)

    def of(self, member: M) -> OutboundAddress | None:
        """What is known of a member."""
        return self._known.get(member)

    def sharing(self, address: str) -> Iterable[M]:
        """The members that leave from ``address``."""
        return self._by_address.get(address, {}).keys()

    def near(self, address: str) -> Iterable[M]:
        """The members that leave from the network of ``address``, those of the address too."""
        return self._by_network.get(network_of(address), {}).keys()


def _remove(index: dict[str, dict[M, None]], key: str, member: M) -> None:
    members = index[key]
    del members[member]
    if not members:
        del index[key]


def _canonical(text: str) -> str | None:
    try:
        ip = ipaddress.ip_address(text)
        return None if ip.is_unspecified else canonical_host(str(ip))
    except (ValueError, BadAddress):
        return None
