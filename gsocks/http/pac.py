"""Proxy auto-configuration (PAC): the script by which browsers and systems find a proxy.

They call its ``FindProxyForURL(url, host)`` for each URL and connect by what it returns, such as
``PROXY 10.0.0.1:1080``.  It has been a fact since Netscape 2.0 and was never a standard; Chromium,
Firefox, curl's libproxy, Windows and macOS agree on what is used here.  It is ECMAScript 3, as
Windows still runs it, and never looks a name up, by ``isInNet`` or ``dnsResolve``: that would tell
a name server which sites are visited.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable

from gsocks.address import canonical_host
from gsocks.errors import BadAddress

#: the media type of a script
PAC_TYPE = "application/x-ns-proxy-autoconfig"

#: names without a dot, as Chromium's and Windows' lists of exceptions write them
PLAIN_NAMES = "<local>"

#: never through a proxy: its own loopback is another machine's (RFC 6761 section 6.3)
_ALWAYS = ("localhost", "*.localhost", "127.0.0.0/8", "::1")

_SCRIPT = """\
// The proxy auto-configuration of a gsocks listener.
var names = %(names)s;
var suffixes = %(suffixes)s;
var networks = %(networks)s;
var plainNames = %(plain)s;
var proxy = %(proxy)s;

// the words of 16 bits of an IPv4 or IPv6 address; null for a name
function words(host) {
  var i, parts, head, tail;
  if (/^\\d{1,3}(\\.\\d{1,3}){3}$/.test(host)) {
    parts = host.split(".");
    return [parts[0] * 256 + +parts[1], parts[2] * 256 + +parts[3]];
  }
  if (host.indexOf(":") < 0) return null;
  parts = host.split("%%")[0].split("::");
  head = parts[0] ? parts[0].split(":") : [];
  tail = parts[1] ? parts[1].split(":") : [];
  while (head.length + tail.length < 8) head.push("0");
  head = head.concat(tail);
  for (i = 0; i < head.length; i++) head[i] = parseInt(head[i], 16);
  // an IPv4 address that is mapped
  if (/^0,0,0,0,0,65535,/.test(head.join(","))) return head.slice(6);
  return head;
}

function isWithin(address, network, bits) {
  var i, shift;
  if (address.length !== network.length) return false;
  for (i = 0; bits > 0; i++, bits -= 16) {
    shift = bits < 16 ? 16 - bits : 0;
    if (address[i] >> shift !== network[i] >> shift) return false;
  }
  return true;
}

function isDirect(host) {
  var i, at, address = words(host);
  if (address) {
    for (i = 0; i < networks.length; i++)
      if (isWithin(address, networks[i][0], networks[i][1])) return true;
    return false;
  }
  if (plainNames && host.indexOf(".") < 0) return true;
  for (i = 0; i < names.length; i++) if (host === names[i]) return true;
  for (i = 0; i < suffixes.length; i++) {
    at = host.length - suffixes[i].length;
    if (at > 0 && host.indexOf(suffixes[i], at) === at) return true;
  }
  return false;
}

function FindProxyForURL(url, host) {
  host = host.toLowerCase().replace(/^\\[|\\]$/g, "").replace(/\\.$/, "");
  return isDirect(host) ? "DIRECT" : proxy;
}
"""


def parse_direct(text: object) -> str:
    """A host that is reached without the proxy, in its canonical form.  Raises ValueError.

    As in rules: ``corp.example`` is that name alone, ``*.corp.example`` the names below it,
    ``10.0.0.0/8`` a network; ``<local>`` is every name without a dot.
    """
    wrong = f"{text!r} is not a host (expected e.g. *.corp.example, 10.0.0.0/8 or <local>)"
    if not isinstance(text, str):
        raise ValueError(wrong)  # noqa: TRY004 - a wrong value of a config
    if text == PLAIN_NAMES:
        return text
    if "/" in text or ":" in text:
        try:
            return str(ipaddress.ip_network(text, strict=False))
        except ValueError:
            raise ValueError(wrong) from None
    stars = "*." if text.startswith("*.") else ""
    try:
        return stars + canonical_host(text[len(stars) :]).rstrip(".")
    except BadAddress:
        raise ValueError(wrong) from None


class PacScript:
    """The script of a listener, but for the address that it names.

    ``direct``: hosts that are reached without the proxy, as :func:`parse_direct` has them, besides
    loopback.  Raises ValueError.
    """

    __slots__ = ("_parts",)

    def __init__(self, direct: Iterable[object] = ()) -> None:
        names, suffixes, networks = [], [], []
        hosts = [*_ALWAYS, *dict.fromkeys(map(parse_direct, direct))]
        for host in hosts:
            network = _network(host)
            if network is not None:
                networks.append(network)
            elif host.startswith("*."):
                suffixes.append(host[1:])
            elif host != PLAIN_NAMES:
                names.append(host)
        self._parts = {
            "names": json.dumps(names),
            "suffixes": json.dumps(suffixes),
            "networks": json.dumps(networks),
            "plain": json.dumps(PLAIN_NAMES in hosts),
        }

    def naming(self, proxy: str, *, secure: bool) -> str:
        """The script that names the proxy at ``proxy``, a host and a port.

        ``secure``: whether that is reached by TLS.
        """
        word = "HTTPS" if secure else "PROXY"
        return _SCRIPT % {**self._parts, "proxy": json.dumps(f"{word} {proxy}")}


def _network(host: str) -> tuple[list[int], int] | None:
    """The words of 16 bits of a network, and the length of its prefix; None for a name."""
    try:
        network = ipaddress.ip_network(host)
    except ValueError:
        return None
    packed = network.network_address.packed
    found = [int.from_bytes(packed[at : at + 2], "big") for at in range(0, len(packed), 2)]
    return found, network.prefixlen
