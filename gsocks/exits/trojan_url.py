"""``trojan://`` URLs, as servers and subscriptions print them.

    trojan://PASSWORD@HOST:PORT?sni=NAME&...#name

The name, the checks and the ALPN of TLS have other names elsewhere, which are read too.  What says
nothing of the connection is passed over; another transport than TCP is refused.  No message repeats
any part of a URL.
"""

from __future__ import annotations

from gsocks.link import Harmless, Link, decoded, without_harmless
from gsocks.link import split as split_link
from gsocks.messages import Mistake

_NO = frozenset({"", "0", "false"})

#: what other programs add, and what it may say for a server as any other
_HARMLESS: Harmless = {
    "type": frozenset({"", "tcp", "raw", "original"}),
    "network": frozenset({"", "tcp"}),
    "security": frozenset({"", "tls"}),
    "tls": frozenset({"", "1", "true"}),
    "encryption": frozenset({"", "none"}),
    "headerType": frozenset({"", "none"}),
    "flow": frozenset({""}),
    "mux": _NO,
    "ws": _NO,
    "obfs": frozenset({"", "none"}),
    "plugin": frozenset({"", "none"}),
    # of transports that are refused by their type, and left behind where there is none
    "host": None,
    "path": None,
    "serviceName": None,
    "mode": None,
    # how a ClientHello looks, and whether it goes into a SYN
    "fp": None,
    "tfo": None,
    "udp": None,
    "group": None,
    "remarks": None,
}

_SNI = ("sni", "peer", "servername")
_INSECURE = ("insecure", "allowInsecure", "allowinsecure", "allow_insecure", "skip-cert-verify")


def split(rest: str) -> Link:
    """The parts of what stands behind ``trojan://``; the user is the password.  Raises Mistake."""
    found = split_link(rest)
    if found is None:
        raise Mistake(
            "what stands behind trojan:// is not PASSWORD@HOST:PORT"
            " (an IPv6 address stands in brackets)"
        )
    password = None if found.user is None else decoded(found.user)
    query = _own_names(without_harmless(found.query, _HARMLESS))
    return found._replace(user=password, query=query)


def _own_names(query: str) -> str:
    """``query`` with the names and values that options have here; of two with one name the first,
    and without those that are empty."""
    kept: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, mark, value = pair.partition("=")
        if name in _INSECURE:
            name, value = "insecure", {"1": "true", "0": "false"}.get(value, value)
        elif name in _SNI:
            name = "sni"
        if value or not mark:
            kept.setdefault(name, f"{name}{mark}{value}")
    return "&".join(kept.values())
