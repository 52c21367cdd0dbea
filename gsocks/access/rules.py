"""Rules about destinations, such as ``deny private``; the first that matches decides.  ::

    deny private
    allow *.example.com:443 user alice,bob
    allow all

A rule is ``allow|deny TARGET[:PORTS] [user NAME[,NAME]]`` with one target:

=====================  =========================================================================
``all`` or ``*``       every destination
a group's name         ``private``, ``loopback``, ``link_local``, ``multicast``, ``metadata``,
                       ``self``
``203.0.113.0/24``     an address or a network; IPv6 needs brackets in front of ports:
                       ``2001:db8::/32`` but ``[2001:db8::/32]:443``
``example.com``        only this name
``*.example.com``      the names below example.com, but not example.com itself
=====================  =========================================================================

PORTS are ``443``, ``8000-8999`` or a list ``80,443,8000-8999``; without them the rule applies to
all ports, and without users to all users.  A destination that no rule matches is denied, so a list
that is to allow the rest ends with ``allow all``.  What is looked up and not connected to has no
port: ``SOME_PORT`` stands for that, and it is allowed where some port is.

The groups are described in gsocks/access/address_groups.py.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache, partial
from typing import NamedTuple

from gsocks.access.address_groups import GROUPS, PRIVATE, SELF
from gsocks.access.networks import AddressRange, parse_network, range_of
from gsocks.access.own_addresses import is_own
from gsocks.access.rule_index import (
    NONE,
    SOME_PORT,
    Everything,
    Group,
    IndexedRule,
    Name,
    NamesBelow,
    PortRanges,
    RuleIndex,
    Target,
)
from gsocks.address import Address, IPAddress, canonical_host, ip_of
from gsocks.errors import BadAddress, ConfigError, Denied
from gsocks.messages import did_you_mean


class Verdict(Enum):
    """Whether a request may reach a destination."""

    ALLOW = "allow"
    DENY = "deny"
    #: the destination is a name, and the verdict depends on its addresses
    DEPENDS = "depends"


class Decision(NamedTuple):
    """A verdict and the rule that decided it; None if no rule matched."""

    verdict: Verdict
    rule: Rule | None = None

    @property
    def reason(self) -> str:
        """Why, for messages and logs: ``rule 'deny private'`` or ``no rule allows it``."""
        if self.rule is not None:
            return f"rule {self.rule.text!r}"
        return "its addresses decide" if self.verdict is Verdict.DEPENDS else "no rule allows it"


def denied(dest: Address, decision: Decision) -> Denied:
    """The error for a destination that is denied; one with ``SOME_PORT`` is told without a port."""
    what = dest.host if dest.port == SOME_PORT else dest
    return Denied(f"{what} is forbidden: {decision.reason}")


#: as members of an Enum are found, which Python 3.10 and 3.11 do by a call
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY

_DEPENDS = Decision(Verdict.DEPENDS)
_NO_RULE_MATCHED = Decision(Verdict.DENY)

#: destinations of which each list of rules remembers what it says; a request asks twice
_MAX_KNOWN = 1024


class _Known(NamedTuple):
    """What rules say of a destination, as long as they are what they are."""

    decision: Decision
    #: another one, if the address is this machine's own: only the kernel knows that, at the time
    own: Decision | None = None
    #: the address to ask the kernel for
    ip: IPAddress | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Rules:
    """The rules of one section of the config, in their order.  Immutable."""

    rules: tuple[Rule, ...]
    _index: RuleIndex = field(init=False, compare=False)
    _known: Callable[[Address, str | None], _Known] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        index = RuleIndex(
            IndexedRule(rule.target, rule.ports, rule.users, rule.verdict is Verdict.ALLOW)
            for rule in self.rules
        )
        object.__setattr__(self, "_index", index)
        # not of a method of this object, which would be a cycle
        known = lru_cache(_MAX_KNOWN)(partial(_find, self.rules, index))
        object.__setattr__(self, "_known", known)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Rules:
        """Rules from their texts.  Raises ConfigError, which names the invalid rule."""
        return cls(tuple(Rule.parse(line) for line in lines))

    @classmethod
    def default(cls) -> Rules:
        """The rules of a config without ``rules``: :data:`DEFAULT_RULES`."""
        return DEFAULT_RULES

    def before_resolving(self, dest: Address, user: str | None) -> Decision:
        """The decision that is possible before the destination's name is resolved.

        Final if the host is an IP address.  A name is allowed or denied only if its addresses make
        no difference; so a denied name never causes a DNS query.  Raises OutOfResources.
        """
        known = self._known(dest, user)
        return known.decision if known.own is None else _ask_kernel(known)

    def for_ip(self, dest: Address, ip: IPAddress, user: str | None) -> Decision:
        """Whether ``dest`` may be reached at ``ip``, one of its addresses.  Always final.

        Raises OutOfResources if it can't be told whether ``ip`` is in ``self``.
        """
        known = _find_ip(self.rules, self._index, dest, ip, user)
        return known.decision if known.own is None else _ask_kernel(known)

    @property
    def forget_self(self) -> bool:
        """Whether they deny private addresses and leave this machine's public ones to ``all``."""
        is_about = {(rule.target, rule.verdict) for rule in self.rules}
        return (
            (Group(PRIVATE), Verdict.DENY) in is_about
            and (Everything(), Verdict.ALLOW) in is_about
            and not any(rule.target == Group(SELF) for rule in self.rules)
        )

    def __repr__(self) -> str:
        return f"Rules({[rule.text for rule in self.rules]!r})"


class ReplaceableRules(Rules):
    """Rules that a reload replaces in place, wherever they are held."""

    __slots__ = ()

    @classmethod
    def of(cls, rules: Rules) -> ReplaceableRules:
        """The same rules, of which nothing else holds this object."""
        own = object.__new__(cls)
        own.replace(rules)
        return own

    def replace(self, rules: Rules) -> None:
        """Have the next decision made by ``rules``."""
        for name in ("rules", "_index", "_known"):
            object.__setattr__(self, name, getattr(rules, name))


@dataclass(frozen=True, slots=True, repr=False)
class Rule:
    """One rule.  ``str`` returns its source; rules are equal if they have the same meaning."""

    verdict: Verdict
    target: Target
    ports: PortRanges
    #: None for all users
    users: frozenset[str] | None
    text: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """A rule from its text.  Raises ConfigError, which names the text and what is wrong."""
        try:
            verdict, target, users = _split(text)
            host, ports = _split_ports(target)
            return cls(verdict, _target(host), _ports(ports), users, text.strip())
        except _InvalidRule as error:
            raise ConfigError(f"rule {text!r}: {error}") from None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"


def _find(rules: tuple[Rule, ...], index: RuleIndex, dest: Address, user: str | None) -> _Known:
    """What the rules say before the name of ``dest`` is resolved."""
    ip = dest.ip
    if ip is not None:
        return _find_ip(rules, index, dest, ip, user)
    number, allowing, denying = index.for_name(_comparable(dest.host), dest.port, user)
    if number == NONE:
        return _Known(_NO_RULE_MATCHED if allowing == NONE else _DEPENDS)
    rule = rules[number]
    other = denying if rule.verdict is Verdict.ALLOW else allowing
    return _Known(_DEPENDS if other < number else Decision(rule.verdict, rule))


def _find_ip(
    rules: tuple[Rule, ...], index: RuleIndex, dest: Address, ip: IPAddress, user: str | None
) -> _Known:
    """What the rules say of ``dest`` at one of its addresses."""
    name = _comparable(dest.host) if dest.ip is None else None
    number, own = index.for_ip(ip, name, dest.port, user)
    decision = _decision(rules, number)
    return _Known(decision) if own == NONE else _Known(decision, _decision(rules, own), ip)


def _decision(rules: tuple[Rule, ...], number: int) -> Decision:
    if number == NONE:
        return _NO_RULE_MATCHED
    rule = rules[number]
    return Decision(rule.verdict, rule)


def _ask_kernel(known: _Known) -> Decision:
    """The decision about an address that may be this machine's own.  Raises OutOfResources."""
    decision, own, ip = known
    return own if own is not None and ip is not None and is_own(ip) else decision


def _comparable(name: str) -> str:
    return name.lower().removesuffix(".")


# --- parsing a rule -------------------------------------------------------------------------

# Higher than the default: the name of a host may resemble the name of a group.
_LEAST_SIMILARITY = 0.75

_PORT_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class _InvalidRule(Exception):
    """The mistake in a rule, without the rule's text."""


def _split(text: str) -> tuple[Verdict, str, frozenset[str] | None]:
    """Verdict, target and users."""
    words = text.split()
    if not words:
        raise _InvalidRule("is empty; expected allow|deny TARGET[:PORTS] [user NAME[,NAME]]")
    if words[0] not in ("allow", "deny"):
        raise _InvalidRule(
            "starts with neither allow nor deny" + _similar(words[0], ("allow", "deny"))
        )
    if len(words) == 1:
        raise _InvalidRule(f"nothing follows {words[0]}; expected a target, such as all or private")
    verdict = Verdict(words[0])
    if len(words) == 2:
        return verdict, words[1], None
    if words[2] != "user":
        raise _InvalidRule(
            f"unexpected {words[2]!r}: behind its one target a rule has only user NAME[,NAME]"
        )
    if len(words) != 4 or not all(words[3].split(",")):
        raise _InvalidRule("expected names behind user, as in: user alice,bob")
    return verdict, words[1], frozenset(words[3].split(","))


def _split_ports(target: str) -> tuple[str, str | None]:
    """Host and ports; a bracketed IPv6 address loses its brackets."""
    if target.startswith("["):
        host, bracket, rest = target[1:].partition("]")
        if not bracket or ":" not in host or (rest and rest[0] != ":"):
            raise _InvalidRule(f"{target!r} is not [IPv6]:PORTS")
        return host, rest[1:] if rest else None
    if target.count(":") > 1:  # an IPv6 address without ports
        if "," in target or not _is_network(target):
            raise _InvalidRule(
                f"{target!r} is not an IPv6 address; in front of ports it needs brackets: "
                "[2001:db8::/32]:443"
            )
        return target, None
    host, colon, ports = target.rpartition(":")
    return (host, ports) if colon else (target, None)


def _ports(text: str | None) -> PortRanges:
    if text is None:
        return ()
    ranges = set()
    for part in text.split(","):
        match = _PORT_RANGE.fullmatch(part)
        if match is None:
            raise _InvalidRule(f"{part!r} is not a port; expected 443, 8000-8999 or 80,443")
        first = int(match[1])
        last = int(match[2] or first)
        if not 1 <= first <= last <= 0xFFFF:
            raise _InvalidRule(f"ports {part} are not from 1 to 65535, the lower one first")
        ranges.add((first, last))
    return tuple(sorted(ranges))


def _target(text: str) -> Target:
    text = text.lower()
    if text in ("all", "*"):
        return Everything()
    if text in GROUPS:
        return Group(GROUPS[text])
    if "," in text:
        raise _InvalidRule(f"{text!r} is more than one target; write one rule for each")
    if "/" in text or ip_of(text) is not None:
        return _addresses(text)
    if text.startswith("*."):
        return NamesBelow("." + _name(text[2:]))
    if "*" in text:
        raise _InvalidRule(f"{text!r}: * means all, or begins a name as in *.example.com")
    if "." not in text and (hint := _similar(text, (*GROUPS, "all"))):
        raise _InvalidRule(f"{text!r} is no group{hint}; a host of that name is {text + '.'!r}")
    return Name(_name(text))


def _name(text: str) -> str:
    try:
        return _comparable(canonical_host(text))
    except BadAddress as error:
        raise _InvalidRule(str(error)) from None


def _addresses(text: str) -> AddressRange:
    try:
        return range_of(parse_network(text))
    except ValueError as error:
        raise _InvalidRule(str(error)) from None


def _similar(word: str, known: Iterable[str]) -> str:
    return did_you_mean(word.lower(), known, _LEAST_SIMILARITY)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


#: allow all destinations but private addresses, the clouds' metadata and this machine
DEFAULT_RULES = Rules.parse(("deny private", "deny metadata", "deny self", "allow all"))

#: allow every destination: for those that the operator has configured
ALLOW_ALL = Rules.parse(("allow all",))
