"""The address of a name server, as it is written in a config: ``9.9.9.9``, ``tls://9.9.9.9``."""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from typing import NamedTuple

_FORM = re.compile(
    r"(?:(?P<scheme>[a-z]+)://)?"
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<plain>[^\[\]/#]+?))"
    r"(?P<port>:[0-9]{1,5})?"
    r"(?P<path>/[\x21-\x22\x24-\x7e]*)?"
    r"(?:\#(?P<name>[A-Za-z0-9.-]{1,253}))?"
)


class Transport(Enum):
    """How a name server is asked, by the scheme that says so."""

    #: RFC 1035: over UDP, and over TCP where the answer is too long for that
    PLAIN = "dns"
    #: DNS over TLS, RFC 7858
    TLS = "tls"
    #: DNS over HTTPS, RFC 8484
    HTTPS = "https"


_PORTS = {Transport.PLAIN: 53, Transport.TLS: 853, Transport.HTTPS: 443}


class NameServer(NamedTuple):
    """Where a recursive name server is asked, and how."""

    #: an IP address, of IPv6 with a zone if it has one: a name would have to be looked up first
    host: str
    port: int = 53
    transport: Transport = Transport.PLAIN
    #: the name in its certificate; empty for its address
    tls_name: str = ""
    #: of its URL, for DNS over HTTPS
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> NameServer:
        """A name server from its text.  Raises ValueError, which says what is wrong."""
        if text.count(":") > 1 and "[" not in text and "://" not in text:
            text = f"[{text}]"  # a bare IPv6 address
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError("expected e.g. 9.9.9.9, [2620:fe::fe]:53 or tls://9.9.9.9")
        try:
            transport = Transport(found["scheme"] or "dns")
        except ValueError:
            raise ValueError(f"{found['scheme']}:// is unknown (known: dns, tls, https)") from None
        host = found["bracketed"] or found["plain"]
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(
                "a name server needs an IP address (with tls:// and https://, the name of its"
                " certificate stands behind a #: tls://9.9.9.9#dns.quad9.net)"
            ) from None
        port = int(found["port"][1:]) if found["port"] else _PORTS[transport]
        if not 0 < port < 65536:
            raise ValueError(f"{port} is not a port")
        if found["path"] and transport is not Transport.HTTPS:
            raise ValueError("only https:// has a path")
        if found["name"] and transport is Transport.PLAIN:
            raise ValueError("only tls:// and https:// have the name of a certificate")
        path = (found["path"] or "/dns-query") if transport is Transport.HTTPS else ""
        return cls(str(ip), port, transport, found["name"] or "", path)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "" if self.transport is Transport.PLAIN else f"{self.transport.value}://"
        port = "" if self.port == _PORTS[self.transport] else f":{self.port}"
        return f"{scheme}{host}{port}{self.path}" + (f"#{self.tls_name}" if self.tls_name else "")
