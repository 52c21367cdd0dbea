"""Groups of addresses, and of names that are known to resolve to them, which rules can name.

- ``private``: every address that is not global unicast, by the IANA special-purpose registries
  (RFC 6890 and its successors), and IPv6 addresses with such an IPv4 address inside;
- ``loopback``, ``link_local``, ``multicast``: those networks, each a part of ``private``;
- ``metadata``: the addresses where clouds serve credentials to their virtual machines;
- ``self``: every address of the machine that asks (gsocks/access/own_addresses.py).

``localhost`` and the names below it are in ``loopback``, and so in ``private`` and ``self``
(RFC 6761 section 6.3): what another machine would take them for is nothing that a client of this
one can mean.

The Python versions disagree about ``ipaddress.is_global``, so the tables are in this module.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

from gsocks.access.networks import (
    AddressRange,
    inner_ipv4,
    integer_of,
    nat64_ipv4,
    parse_network,
    range_of,
)
from gsocks.address import IPAddress

PRIVATE, LOOPBACK, LINK_LOCAL, MULTICAST, METADATA, SELF = (1 << bit for bit in range(6))

#: the bit of each group
GROUPS = {
    "private": PRIVATE,
    "loopback": LOOPBACK,
    "link_local": LINK_LOCAL,
    "multicast": MULTICAST,
    "metadata": METADATA,
    "self": SELF,
}


def _ranges(*texts: str) -> tuple[AddressRange, ...]:
    return tuple(range_of(parse_network(text)) for text in texts)


_RANGES_OF_GROUP: dict[int, tuple[AddressRange, ...]] = {
    PRIVATE: _ranges(
        "0.0.0.0/8",  # "this network"; Linux connects 0.0.0.0 to the local host
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's NAT, RFC 6598
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocols, with the NAT's own PCP server (RFC 7723)
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, abolished by RFC 7526
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        # Global unicast is 2000::/3 (RFC 4291); the next three are all other addresses.  They
        # include all that are special now or may become so: ::1, IPv4-compatible ::/96, fc00::/7,
        # fe80::/10, fec0::/10, ff00::/8.  They also include all of the local NAT64 prefix
        # 64:ff9b:1::/48: where the IPv4 address is inside, only its operator knows (RFC 6052
        # section 2.2 has six formats).
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # IETF protocols (RFC 2928)
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation, RFC 9637
    ),
    LOOPBACK: _ranges("127.0.0.0/8", "::1"),
    LINK_LOCAL: _ranges("169.254.0.0/16", "fe80::/10"),
    MULTICAST: _ranges("224.0.0.0/4", "ff00::/8"),
    # where each of these is documented: docs/config.md
    METADATA: _ranges(
        "169.254.169.254",  # EC2, GCP, Azure, OpenStack and most others
        "169.254.170.2",  # ECS tasks
        "169.254.170.23",  # EKS pods
        "169.254.42.42",  # Scaleway
        "169.254.0.23",  # Tencent
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's wire server, in the public range
        "192.0.0.192",  # Oracle Classic
        "fd00:ec2::254",  # EC2
        "fd00:ec2::23",  # EKS pods
        "fd20:ce::254",  # GCP
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:100::100:200",  # Alibaba
        "fd00:42::42",  # Scaleway
        "fd00:a9fe:a9fe::1",  # Akamai (Linode)
        "fe80::a9fe:a9fe",  # OpenStack, Akamai
    ),
}

_LOCALHOST = LOOPBACK | PRIVATE | SELF

_GROUPS_OF_NAME = {
    "metadata.google.internal": METADATA,
    "metadata.goog": METADATA,
    "metadata.tencentyun.com": METADATA,
    "api.metadata.cloud.ibm.com": METADATA,
    "metadata.exoscale.com": METADATA,
    "instance-data": METADATA,
    "instance-data.ec2.internal": METADATA,
    "localhost": _LOCALHOST,
    # nss-myhostname(8) takes these, and the names below them, for the local host
    "localhost.localdomain": _LOCALHOST,
    # /etc/hosts of Debian and of Red Hat
    "ip6-localhost": _LOCALHOST,
    "ip6-loopback": _LOCALHOST,
    "localhost4": _LOCALHOST,
    "localhost4.localdomain4": _LOCALHOST,
    "localhost6": _LOCALHOST,
    "localhost6.localdomain6": _LOCALHOST,
}
_BELOW_LOCALHOST = (".localhost", ".localhost.localdomain")


class Classified(NamedTuple):
    """An address, prepared for the comparison with rules."""

    #: see :func:`gsocks.access.networks.integer_of`
    integer: int
    #: the integer of the IPv4 address that NAT64 translates it to, else the same as ``integer``
    translated: int
    #: the bits of all groups that contain it, but ``self``, which only the machine knows
    groups: int


@lru_cache(maxsize=4096)
def classify(ip: IPAddress) -> Classified:
    """What rules need to know about ``ip``, apart from whether it is this machine's own."""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    integer = integer_of(ip)
    # An address with an IPv4 address inside is in the groups of that one.
    groups = 0
    for each in inner_ipv4(ip) or (ip,):
        groups |= _groups_of(integer_of(each))
    return Classified(integer, integer_of(nat64_ipv4(ip) or ip), groups)


def _groups_of(integer: int) -> int:
    groups = 0
    for group, ranges in _RANGES_OF_GROUP.items():
        if any(integer & mask == base for base, mask in ranges):
            groups |= group
    return groups


def groups_of_name(name: str) -> int:
    """The bits of all groups that contain a name, which is lower-case and has no dot at its end."""
    found = _GROUPS_OF_NAME.get(name, 0)
    return _LOCALHOST if not found and name.endswith(_BELOW_LOCALHOST) else found
