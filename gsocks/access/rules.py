"""Who may reach what: a list of rules, of which the first that matches decides.

    deny private
    allow *.example.com:443 user alice,bob
    allow all

A rule is ``allow|deny TARGET[:PORTS] [user NAME[,NAME]]`` with one target:

=====================  =========================================================================
``all`` or ``*``       every destination
a group's name         ``private``, ``loopback``, ``link_local``, ``multicast``, ``metadata``
``203.0.113.0/24``     an address or a network; IPv6 stands in brackets where ports follow:
                       ``2001:db8::/32`` but ``[2001:db8::/32]:443``
``example.com``        this name and no other
``*.example.com``      the names below example.com, and not example.com itself
=====================  =========================================================================

PORTS are ``443``, ``8000-8999`` or a list ``80,443,8000-8999``; without them the rule is about
all ports, and without users about everybody.  What no rule matches is denied, so a list that
wants to allow the rest ends with ``allow all``.

The groups, of addresses and the names that are known to lead to them:

- ``private``: every address that is not global unicast, by the IANA special-purpose registries
  (RFC 6890 and its successors), and IPv6 addresses that carry such an IPv4 address inside;
- ``loopback``, ``link_local``, ``multicast``: what their names say, each a part of ``private``;
- ``metadata``: where clouds serve credentials to the machines inside them.

The Python versions disagree about ``ipaddress.is_global``, so the tables here are our own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, Protocol

from gsocks.address import Address, IPAddress, canonical_host, ip_of
from gsocks.errors import BadAddress, ConfigError


class Verdict(Enum):
    """What the rules say."""

    ALLOW = "allow"
    DENY = "deny"
    #: the destination is a name, and its addresses make the difference
    DEPENDS = "depends"


class Decision(NamedTuple):
    """A verdict, and the rule that gave it; no rule means that none matched."""

    verdict: Verdict
    rule: Rule | None = None

    @property
    def reason(self) -> str:
        """Why, for a message and a log: ``rule 'deny private'`` or ``no rule allows it``."""
        if self.rule is not None:
            return f"rule {self.rule.text!r}"
        return "its addresses decide" if self.verdict is Verdict.DEPENDS else "no rule allows it"


_DEPENDS = Decision(Verdict.DEPENDS)
_NO_RULE_MATCHED = Decision(Verdict.DENY)


@dataclass(frozen=True, slots=True, repr=False)
class Rules:
    """The rules of one section of the config, in their order.  Immutable."""

    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Rules:
        """Rules from their texts.  Raises ConfigError, which names the bad line."""
        return cls(tuple(Rule.parse(line) for line in lines))

    @classmethod
    def default(cls) -> Rules:
        """The rules of a config that has none: :data:`DEFAULT_RULES`."""
        return DEFAULT_RULES

    def before_resolving(self, dest: Address, user: str | None) -> Decision:
        """What can be said before the destination's name is looked up.

        Final if the host is an IP address.  A name is allowed or denied only where that holds
        whatever its addresses are; so a denied name never shows in the DNS.
        """
        ip = dest.ip
        if ip is not None:
            return self.for_ip(dest, ip, user)
        name = _comparable(dest.host)
        undecided: Verdict | None = None
        for rule in self.rules:
            if not rule.concerns(dest.port, user):
                continue
            matches = rule.target.matches_name(name)
            if matches is None:
                if undecided is not None and undecided is not rule.verdict:
                    return _DEPENDS
                undecided = rule.verdict
            elif matches:
                agreed = undecided is None or undecided is rule.verdict
                return Decision(rule.verdict, rule) if agreed else _DEPENDS
        return _DEPENDS if undecided is Verdict.ALLOW else _NO_RULE_MATCHED

    def for_ip(self, dest: Address, ip: IPAddress, user: str | None) -> Decision:
        """Whether ``dest`` may be reached at ``ip``, one of its addresses.  Always final."""
        seen = _look_at(ip)
        name = _comparable(dest.host) if dest.ip is None else None
        for rule in self.rules:
            if rule.concerns(dest.port, user) and (
                rule.target.matches_ip(seen)
                or (name is not None and rule.target.matches_name(name))
            ):
                return Decision(rule.verdict, rule)
        return _NO_RULE_MATCHED

    def __repr__(self) -> str:
        return f"Rules({[rule.text for rule in self.rules]!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Rule:
    """One rule.  Its ``str`` is its source; two are equal if they mean the same."""

    verdict: Verdict
    target: Target
    #: first and last port of each range; none means all ports
    ports: tuple[tuple[int, int], ...]
    #: None means everybody
    users: frozenset[str] | None
    text: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """A rule from its text.  Raises ConfigError, which names the text and what is wrong."""
        try:
            verdict, target, users = _split(text)
            host, ports = _split_ports(target)
            return cls(verdict, _target(host), _ports(ports), users, text.strip())
        except _Unreadable as error:
            raise ConfigError(f"rule {text!r}: {error}") from None

    def concerns(self, port: int, user: str | None) -> bool:
        """Whether this rule is about that port and that user."""
        if self.users is not None and user not in self.users:
            return False
        return not self.ports or any(first <= port <= last for first, last in self.ports)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"


# --- how an address looks to the rules ------------------------------------------------------

# All addresses are compared as integers of one space: IPv6 as it is, IPv4 above it.  A network
# is a base and a mask there.
_IPV4 = 1 << 128
_LOW_32 = 0xFFFF_FFFF


class _Network(NamedTuple):
    base: int
    mask: int


def _key(ip: IPAddress) -> int:
    return int(ip) | _IPV4 if ip.version == 4 else int(ip)


def _network(text: str) -> _Network:
    """The network that ``text`` spells; one of IPv4-mapped addresses is IPv4.

    Raises ValueError.
    """
    network = ipaddress.ip_network(text)
    address, prefix = network.network_address, network.prefixlen
    if isinstance(address, ipaddress.IPv6Address) and prefix >= 96:
        mapped = address.ipv4_mapped
        if mapped is not None:
            address, prefix = mapped, prefix - 96
    host_bits = (1 << (address.max_prefixlen - prefix)) - 1
    return _Network(_key(address), (_IPV4 | (_IPV4 - 1)) ^ host_bits)


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(_network(text) for text in texts)


_PRIVATE, _LOOPBACK, _LINK_LOCAL, _MULTICAST, _METADATA = (1 << bit for bit in range(5))

_GROUPS = {
    "private": _PRIVATE,
    "loopback": _LOOPBACK,
    "link_local": _LINK_LOCAL,
    "multicast": _MULTICAST,
    "metadata": _METADATA,
}

_ADDRESSES_OF_GROUP: dict[int, tuple[_Network, ...]] = {
    _PRIVATE: _networks(
        "0.0.0.0/8",  # "this network"; Linux connects 0.0.0.0 to itself
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
        # Global unicast is 2000::/3 (RFC 4291); these are the rest of it.  So everything is in
        # that is special now or may be one day: ::1, IPv4-compatible ::/96, fc00::/7, fe80::/10,
        # fec0::/10, ff00::/8.  So is the local NAT64 64:ff9b:1::/48 as a whole: where in it the
        # IPv4 address stands is the operator's secret (RFC 6052 section 2.2 has six ways).
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # IETF protocols (RFC 2928)
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation, RFC 9637
    ),
    _LOOPBACK: _networks("127.0.0.0/8", "::1"),
    _LINK_LOCAL: _networks("169.254.0.0/16", "fe80::/10"),
    _MULTICAST: _networks("224.0.0.0/4", "ff00::/8"),
    _METADATA: _networks(
        "169.254.169.254",  # EC2, GCP, Azure, OpenStack and nearly everybody
        "169.254.170.2",  # ECS tasks
        "169.254.170.23",  # EKS pods
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's wire server, in the public range
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # EC2
        "fd00:ec2::23",  # EKS pods
        "fd20:ce::254",  # GCP
        "fe80::a9fe:a9fe",  # OpenStack
    ),
}

_NAMES_OF_GROUP: dict[int, frozenset[str]] = {
    _METADATA: frozenset(
        ("metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal")
    ),
}

_NAT64 = _network("64:ff9b::/96")
_SIX_TO_FOUR = _network("2002::/16")
_TEREDO = _network("2001::/32")


class _Seen(NamedTuple):
    """What the rules know of an address."""

    key: int
    #: the key of the IPv4 address that a NAT64 reaches by it, else the same as ``key``
    translated: int
    groups: int


@lru_cache(maxsize=4096)
def _look_at(ip: IPAddress) -> _Seen:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    key = _key(ip)
    # An address that carries an IPv4 address inside is judged by that one.
    if key & _NAT64.mask == _NAT64.base:  # RFC 6052
        inner = key & _LOW_32 | _IPV4
        return _Seen(key, inner, _groups_of(inner))
    if key & _SIX_TO_FOUR.mask == _SIX_TO_FOUR.base:  # RFC 3056 section 2
        return _Seen(key, key, _groups_of(key >> 80 & _LOW_32 | _IPV4))
    if key & _TEREDO.mask == _TEREDO.base:  # RFC 4380 section 4: the server, the inverted client
        server = key >> 64 & _LOW_32 | _IPV4
        client = key & _LOW_32 ^ _LOW_32 | _IPV4
        return _Seen(key, key, _groups_of(server) | _groups_of(client))
    return _Seen(key, key, _groups_of(key))


def _groups_of(key: int) -> int:
    groups = 0
    for group, networks in _ADDRESSES_OF_GROUP.items():
        if any(key & mask == base for base, mask in networks):
            groups |= group
    return groups


# --- targets --------------------------------------------------------------------------------


class Target(Protocol):
    """What a rule is about."""

    def matches_name(self, name: str, /) -> bool | None:
        """Whether a name is meant; None where that depends on the name's addresses."""

    def matches_ip(self, seen: _Seen, /) -> bool:
        """Whether an address is meant."""


@dataclass(frozen=True, slots=True)
class _Everything:
    def matches_name(self, _: str, /) -> bool:
        return True

    def matches_ip(self, _: _Seen, /) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Group:
    bit: int

    def matches_name(self, name: str, /) -> bool | None:
        return name in _NAMES_OF_GROUP.get(self.bit, ()) or None

    def matches_ip(self, seen: _Seen, /) -> bool:
        return bool(seen.groups & self.bit)


@dataclass(frozen=True, slots=True)
class _Addresses:
    base: int
    mask: int

    def matches_name(self, _: str, /) -> None:
        return None

    def matches_ip(self, seen: _Seen, /) -> bool:
        return seen.key & self.mask == self.base or seen.translated & self.mask == self.base


@dataclass(frozen=True, slots=True)
class _Name:
    name: str

    def matches_name(self, name: str, /) -> bool:
        return name == self.name

    def matches_ip(self, _: _Seen, /) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class _NamesBelow:
    dotted: str

    def matches_name(self, name: str, /) -> bool:
        return name.endswith(self.dotted)

    def matches_ip(self, _: _Seen, /) -> bool:
        return False


def _comparable(name: str) -> str:
    return name.lower().removesuffix(".")


# --- reading a rule -------------------------------------------------------------------------

_PORT_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class _Unreadable(Exception):
    """What is wrong with a rule."""


def _split(text: str) -> tuple[Verdict, str, frozenset[str] | None]:
    """Verdict, target and users."""
    words = text.split()
    if not words:
        raise _Unreadable("is empty; expected allow|deny TARGET[:PORTS] [user NAME[,NAME]]")
    if words[0] not in ("allow", "deny"):
        raise _Unreadable(
            "starts with neither allow nor deny" + _did_you_mean(words[0], ("allow", "deny"))
        )
    if len(words) == 1:
        raise _Unreadable(f"nothing follows {words[0]}; expected a target, such as all or private")
    verdict = Verdict(words[0])
    if len(words) == 2:
        return verdict, words[1], None
    if words[2] != "user":
        raise _Unreadable(
            f"{words[2]!r} is too much: a rule has one target, and only user NAME[,NAME] after it"
        )
    if len(words) != 4 or not all(words[3].split(",")):
        raise _Unreadable("expected names behind user, as in: user alice,bob")
    return verdict, words[1], frozenset(words[3].split(","))


def _split_ports(target: str) -> tuple[str, str | None]:
    """Host and ports; a bracketed IPv6 address loses its brackets."""
    if target.startswith("["):
        host, bracket, rest = target[1:].partition("]")
        if not bracket or ":" not in host or (rest and rest[0] != ":"):
            raise _Unreadable(f"{target!r} is not [IPv6]:PORTS")
        return host, rest[1:] if rest else None
    if target.count(":") > 1:  # IPv6 without ports
        if "," in target or not _is_network(target):
            raise _Unreadable(
                f"{target!r} is not an IPv6 address; with ports it stands in brackets: "
                "[2001:db8::/32]:443"
            )
        return target, None
    host, colon, ports = target.rpartition(":")
    return (host, ports) if colon else (target, None)


def _ports(text: str | None) -> tuple[tuple[int, int], ...]:
    if text is None:
        return ()
    ranges = set()
    for part in text.split(","):
        match = _PORT_RANGE.fullmatch(part)
        if match is None:
            raise _Unreadable(f"{part!r} is not a port; expected 443, 8000-8999 or 80,443")
        first = int(match[1])
        last = int(match[2] or first)
        if not 1 <= first <= last <= 0xFFFF:
            raise _Unreadable(f"ports {part} are not from 1 to 65535, the lower one first")
        ranges.add((first, last))
    return tuple(sorted(ranges))


def _target(text: str) -> Target:
    text = text.lower()
    if text in ("all", "*"):
        return _Everything()
    if text in _GROUPS:
        return _Group(_GROUPS[text])
    if "," in text:
        raise _Unreadable(f"{text!r} is more than one target; write a rule for each")
    if "/" in text or ip_of(text) is not None:
        return _Addresses(*_written_network(text))
    if text.startswith("*."):
        return _NamesBelow("." + _name(text[2:]))
    if "*" in text:
        raise _Unreadable(f"{text!r}: a star may only stand for all or begin a name, *.example.com")
    if "." not in text and (hint := _did_you_mean(text, (*_GROUPS, "all"))):
        raise _Unreadable(f"{text!r} is no group{hint} (the host of that name is {text + '.'!r})")
    return _Name(_name(text))


def _name(text: str) -> str:
    try:
        return _comparable(canonical_host(text))
    except BadAddress as error:
        raise _Unreadable(str(error)) from None


def _written_network(text: str) -> _Network:
    if "%" in text:
        raise _Unreadable(f"{text!r} has a zone, which no destination has")
    try:
        return _network(text)
    except ValueError:
        pass  # told below
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _Unreadable(f"{text!r} is not a network; expected one such as 10.0.0.0/8") from None
    raise _Unreadable(f"{text!r} has bits set behind its prefix; did you mean {network}?")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word.lower(), list(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


#: everything but the private ranges and the clouds' metadata
DEFAULT_RULES = Rules.parse(("deny private", "deny metadata", "allow all"))

#: no limits: for destinations that the operator has configured
ALLOW_ALL = Rules.parse(("allow all",))
