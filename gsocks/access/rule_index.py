"""Finds the first rule that matches, without going over all of them.

A request costs the same few look-ups for ten rules and for 100,000: in a dictionary for names,
one for names below others, one for networks of each length, and for each target the first rule of
every user and port.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from gsocks.access.address_groups import SELF, classify, groups_of_name
from gsocks.access.networks import IPV4_BIT, AddressRange
from gsocks.address import IPAddress


@dataclass(frozen=True, slots=True)
class Everything:
    """The target ``all``."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of addresses, by its bit in :mod:`gsocks.access.address_groups`."""

    bit: int


@dataclass(frozen=True, slots=True)
class Name:
    """One name, lower-case and without a dot at its end."""

    name: str


@dataclass(frozen=True, slots=True)
class NamesBelow:
    """All names that end with ``suffix``, which begins with a dot."""

    suffix: str


#: an AddressRange is a network
Target: TypeAlias = Everything | Group | AddressRange | Name | NamesBelow

#: first and last port of each range, in ascending order; empty for all ports
PortRanges: TypeAlias = tuple[tuple[int, int], ...]


class IndexedRule(NamedTuple):
    """What the index needs to know about a rule."""

    target: Target
    ports: PortRanges
    #: None for all users
    users: frozenset[str] | None
    allows: bool


#: the number of "no rule"; greater than that of any
NONE = 1 << 62

#: the port of what has none, such as a look-up.  Rules that allow any port match it, and of those
#: that deny the ones that leave no port.
SOME_PORT = 0x10000


def _ranges(rule: IndexedRule) -> PortRanges:
    """The ports that a rule matches; empty for all, as for the rule itself."""
    ports = rule.ports
    if not ports or not (rule.allows or _are_all(ports)):
        return ports
    return (*ports, (SOME_PORT, SOME_PORT))


def _are_all(ports: PortRanges) -> bool:
    end = 0
    for first, last in ports:
        if first > end + 1:
            return False
        end = max(end, last)
    return end == 0xFFFF


class _ByPort:
    """The first rule for each port, of rules with one target and one user."""

    __slots__ = ("_first", "_starts")

    def __init__(self, rules: Iterable[tuple[int, PortRanges]]) -> None:
        """``rules``: numbers and ports, in ascending order."""
        begins: dict[int, list[tuple[int, int]]] = defaultdict(list)
        starts = {0}
        for number, ports in rules:
            for first, last in ports or ((0, SOME_PORT),):
                begins[first].append((number, last))
                starts |= {first, last + 1}
        #: where another rule may become the first one
        self._starts = sorted(starts)
        self._first: list[int] = []
        open_: list[tuple[int, int]] = []
        for start in self._starts:
            for begun in begins[start]:
                heapq.heappush(open_, begun)
            while open_ and open_[0][1] < start:
                heapq.heappop(open_)
            self._first.append(open_[0][0] if open_ else NONE)

    def first(self, port: int) -> int:
        return self._first[bisect_right(self._starts, port) - 1]


class _ByUser:
    """The first rule for each user and port, of rules with one target."""

    __slots__ = ("_by_port",)

    def __init__(self, rules: Iterable[tuple[int, IndexedRule]]) -> None:
        of_user: dict[str | None, list[tuple[int, PortRanges]]] = defaultdict(list)
        for number, rule in rules:
            for user in (None,) if rule.users is None else rule.users:
                known = of_user[user]
                if not known or known[-1][1]:  # else those behind never are the first
                    known.append((number, _ranges(rule)))
        #: the only rule if it is about all ports
        self._by_port: dict[str | None, _ByPort | int] = {
            user: found[0][0] if not found[0][1] else _ByPort(found)
            for user, found in of_user.items()
        }

    def first(self, port: int, user: str | None) -> int:
        number = self._first(port, None)
        return number if user is None else min(number, self._first(port, user))

    def _first(self, port: int, user: str | None) -> int:
        found = self._by_port.get(user, NONE)
        return found if isinstance(found, int) else found.first(port)


#: the first rules of one target: a number if that one is about all ports and users
_First: TypeAlias = "_ByUser | int"


def _make_first(rules: list[tuple[int, IndexedRule]]) -> _First:
    if not rules:
        return NONE
    number, rule = rules[0]
    return number if not rule.ports and rule.users is None else _ByUser(rules)


def _first(found: _First, port: int, user: str | None) -> int:
    return found if isinstance(found, int) else found.first(port, user)


class NameMatch(NamedTuple):
    """The first rules, by their numbers, that match a name or may match an address of it."""

    #: by the name itself
    name: int
    #: by its address, if it has such a one
    allowing: int
    denying: int


_EVERYTHING = NameMatch(0, NONE, NONE)


class AddressMatch(NamedTuple):
    """The first rules, by their numbers, that match an address."""

    number: int
    #: the rule about ``self`` that is the first one if the address is this machine's own; ``NONE``
    #: if that makes no difference
    own: int


_EVERY_ADDRESS = AddressMatch(0, NONE)


class _GroupIndex(NamedTuple):
    """The rules about one group."""

    bit: int
    rules: _First
    allowing: _First
    denying: _First


#: the networks of one length: its mask, and the rules of each network by its base
_NetworkIndex: TypeAlias = tuple[int, Mapping[int, _First]]


class RuleIndex:
    """Numbers of rules by what they match; ``NONE`` where none does.  Immutable.

    ``user`` None finds only rules that are about all users.  Names are lower-case and have no dot
    at their end.
    """

    __slots__ = (
        "_allowing",
        "_denying",
        "_everything",
        "_groups",
        "_has_networks",
        "_names",
        "_networks",
        "_self",
        "_suffixes",
    )

    def __init__(self, rules: Iterable[IndexedRule]) -> None:
        by_target: dict[Target, list[tuple[int, IndexedRule]]] = defaultdict(list)
        for number, rule in enumerate(rules):
            by_target[rule.target].append((number, rule))
            if isinstance(rule.target, Everything) and not rule.ports and rule.users is None:
                break  # no rule behind it is ever reached
        self._everything = _make_first(by_target.pop(Everything(), []))
        self._names: dict[str, _First] = {}
        self._suffixes: dict[str, _First] = {}
        self._groups: list[_GroupIndex] = []
        self._self: _First = NONE
        networks: dict[tuple[bool, int], dict[int, _First]] = defaultdict(dict)
        of_networks: list[tuple[int, IndexedRule]] = []
        for target, found in by_target.items():
            first = _make_first(found)
            if isinstance(target, Name):
                self._names[target.name] = first
            elif isinstance(target, NamesBelow):
                self._suffixes[target.suffix] = first
            elif isinstance(target, AddressRange):
                networks[target.base >= IPV4_BIT, target.mask][target.base] = first
                of_networks += found
            elif isinstance(target, Group):
                self._groups.append(_GroupIndex(target.bit, first, *_by_verdict(found)))
                if target.bit == SELF:
                    self._self = first
        #: those of IPv6, and those of IPv4
        self._networks: tuple[list[_NetworkIndex], list[_NetworkIndex]] = ([], [])
        for (is_ipv4, mask), of_length in networks.items():
            self._networks[is_ipv4].append((mask, of_length))
        self._has_networks = bool(of_networks)
        self._allowing, self._denying = _by_verdict(sorted(of_networks, key=itemgetter(0)))

    def for_name(self, name: str, port: int, user: str | None) -> NameMatch:
        """The rules about a name that is not resolved."""
        first = _first(self._everything, port, user)
        if first == 0:
            return _EVERYTHING
        if self._names or self._suffixes:
            first = min(first, self._by_name(name, port, user))
        allowing, denying = NONE, NONE
        if self._has_networks:
            allowing = _first(self._allowing, port, user)
            denying = _first(self._denying, port, user)
        groups = groups_of_name(name)
        for group in self._groups:
            if group.bit & groups:
                first = min(first, _first(group.rules, port, user))
                continue
            if group.allowing != NONE:
                allowing = min(allowing, _first(group.allowing, port, user))
            if group.denying != NONE:
                denying = min(denying, _first(group.denying, port, user))
        return NameMatch(first, allowing, denying)

    def for_ip(self, ip: IPAddress, name: str | None, port: int, user: str | None) -> AddressMatch:
        """The rules about an address, which is the destination or that of the name ``name``."""
        first = _first(self._everything, port, user)
        if first == 0:
            return _EVERY_ADDRESS  # of many exits, most addresses are not cached
        integer, translated, groups = classify(ip)
        if name is not None:
            groups |= groups_of_name(name)
            first = min(first, self._by_name(name, port, user))
        for group in self._groups:
            if group.bit & groups:
                first = min(first, _first(group.rules, port, user))
        for value in (integer,) if integer == translated else (integer, translated):
            for mask, networks in self._networks[value >= IPV4_BIT]:
                found = networks.get(value & mask)
                if found is not None:
                    first = min(first, _first(found, port, user))
        own = _first(self._self, port, user)
        return AddressMatch(first, own if own < first else NONE)

    def _by_name(self, name: str, port: int, user: str | None) -> int:
        first = _first(self._names.get(name, NONE), port, user)
        if self._suffixes:
            dot = name.find(".")
            while dot >= 0:
                found = self._suffixes.get(name[dot:])
                if found is not None:
                    first = min(first, _first(found, port, user))
                dot = name.find(".", dot + 1)
        return first


def _by_verdict(rules: list[tuple[int, IndexedRule]]) -> tuple[_First, _First]:
    """Those that allow, and those that deny."""
    allowing = [each for each in rules if each[1].allows]
    return _make_first(allowing), _make_first([each for each in rules if not each[1].allows])
