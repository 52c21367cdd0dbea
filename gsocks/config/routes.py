"""Routes: which port is forwarded where, as a config and the command line write it.

127.0.0.1:5432             db.internal:5432
127.0.0.1:8000-8010        web.internal:9000-9010
unix:/run/db.sock          db.internal:5432
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gsocks.address import Address
from gsocks.errors import BadAddress
from gsocks.messages import Mistake, plural, shown
from gsocks.net.endpoint import Endpoint, parse_address, parse_endpoint
from gsocks.request import ANY, ExitSelector

#: ports of one route; each has a listener of its own
MAX_PORTS = 1024

_RANGE = re.compile(r"(.*):([0-9]{1,5})-([0-9]{1,5})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Route:
    """What is forwarded where: one port, or a range of as many on both sides."""

    #: the first of ``ports``
    listen: Endpoint
    #: the destination of the first
    to: Address
    ports: int = 1
    udp: bool = False
    #: the exits that may carry it
    selector: ExitSelector = ANY

    def __str__(self) -> str:
        return self.at(self.listen)

    def at(self, bound: Endpoint) -> str:
        """The route in words, where its first port has become ``bound``."""
        protocol = "UDP" if self.udp else "TCP"
        return f"{self._range(bound)} ({protocol} to {self._range(self.to)})"

    def _range(self, first: Endpoint) -> str:
        if self.ports == 1 or not isinstance(first, Address):
            return str(first)
        return f"{first}-{first.port + self.ports - 1}"

    def legs(self) -> Iterator[Leg]:
        """Each port and its destination."""
        if self.ports == 1 or not isinstance(self.listen, Address):
            yield Leg(self.listen, self.to, self)
            return
        for more in range(self.ports):
            listen, to = (each._replace(port=each.port + more) for each in (self.listen, self.to))
            yield Leg(listen, to, self)


class Leg(NamedTuple):
    """One port of a route."""

    listen: Endpoint
    to: Address
    route: Route


def parse_ports(listen: object, to: object, base: Path = Path()) -> tuple[Endpoint, Address, int]:
    """The first listening place of a route, its destination, and how many ports it has.

    Relative paths are relative to ``base``.  Raises Mistake.
    """
    here, count = _listen(listen, base)
    there, wanted = _to(to)
    if count != wanted:
        raise Mistake(
            f"{shown(listen)} has {plural(count, 'port')}, and {shown(to)} has"
            f" {plural(wanted, 'port')} (expected as many)"
        )
    return here, there, count


def _listen(text: object, base: Path) -> tuple[Endpoint, int]:
    try:
        first, count = _first_of(text)
        if first is None:
            return parse_endpoint(text, base), 1
        return parse_address(first), count
    except Mistake as mistake:
        raise mistake.prefixed(".listen") from None


def _to(text: object) -> tuple[Address, int]:
    try:
        first, count = _first_of(text)
        return _destination(text if first is None else first), count
    except Mistake as mistake:
        raise mistake.prefixed(".to") from None


def _destination(text: object) -> Address:
    try:
        address = Address.parse(text if isinstance(text, str) else "")
    except BadAddress:
        address = None
    if address is None or not address.port:
        raise Mistake(f"{shown(text)} is not a destination (expected e.g. db.internal:5432)")
    return address


def _first_of(text: object) -> tuple[str | None, int]:
    """The first address of a range, None if it is none, and how many there are."""
    found = _RANGE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None, 1
    first, last = int(found[2]), int(found[3])
    if not 0 < first <= last <= 0xFFFF:
        raise Mistake(f"{found[2]}-{found[3]} is not a range of ports (expected e.g. 8000-8010)")
    if last - first >= MAX_PORTS:
        raise Mistake(f"{found[2]}-{found[3]} has more than {MAX_PORTS:,} ports")
    return f"{found[1]}:{first}", last - first + 1
