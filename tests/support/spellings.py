"""IPv6 addresses that carry an IPv4 address."""

from __future__ import annotations

import ipaddress


def v6(prefix: str, ipv4: str, shift: int = 0) -> str:
    """An IPv6 address with an IPv4 address put in, ``shift`` bits from the right."""
    inner = int(ipaddress.IPv4Address(ipv4))
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | inner << shift))


def spellings(ipv4: str) -> dict[str, str]:
    """The addresses that carry an IPv4 address inside."""
    inverted = str(ipaddress.IPv4Address(int(ipaddress.IPv4Address(ipv4)) ^ 0xFFFFFFFF))
    return {
        "plain": ipv4,
        "mapped": v6("::ffff:0:0", ipv4),
        "NAT64": v6("64:ff9b::", ipv4),
        "6to4": v6("2002::1", ipv4, 80),
        "Teredo client": v6("2001:0:0808:0808::", inverted),
        "Teredo server": v6("2001::f7f7:f7f7", ipv4, 64),
    }
