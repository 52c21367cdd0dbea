"""A member of the roster: one exit, the terms on which it may be used, and its state."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from gsocks.exits.base import Exit
from gsocks.exits.budget import Budget
from gsocks.exits.proxy import ProxyExit
from gsocks.exits.spec import DERIVED_NAME_SIZE
from gsocks.request import RESOLVE, RESOLVE_PTR, Command, ExitSelector, Request
from gsocks.rotation.budget import Spending
from gsocks.rotation.health import Health
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.rotation.part import WHOLE, Part, rested_at
from gsocks.rotation.views import Traits, Viewed

_METHODS = {
    Command.CONNECT: "connect",
    Command.UDP_ASSOCIATE: "associate",
    Command.BIND: "bind",
    RESOLVE: "look_up",
    RESOLVE_PTR: "look_up",
}

#: its checks fail, or it has never worked and is ejected; requests have ejected it; neither
DOWN, EJECTED, UP = range(3)


#: before any time; one object for all exits
_NEVER = -math.inf


class Offer(NamedTuple):
    """An exit and the terms on which it may be used: what a config says of it."""

    exit: Exit
    #: how much of the traffic, in proportion to the other exits' weights
    weight: float = 1.0
    #: connections through it at a time; None: no limit
    max_connections: int | None = None
    #: requests that are sent to it in any 60 seconds; None: no limit
    requests_per_minute: int | None = None
    #: bytes that it may carry; None: any number
    budget: Budget | None = None
    #: unique short name; None: :func:`gsocks.exits.spec.derived_name` of its label
    name: str | None = None
    tags: tuple[str, ...] = ()
    #: two letters, lower case; None: not known
    country: str | None = None
    #: it serves every country, because it passes the selected one on to its provider
    any_country: bool = False
    #: equal for two offers of the same exit; None: the exit itself
    key: object = None
    #: it passes the session of a request on to its provider
    passes_session: bool = False


class Counts:
    """What an exit has done since it was added."""

    __slots__ = ("connected", "down", "failed", "last_error", "up")

    def __init__(self) -> None:
        #: requests that it connected, and those that failed by its fault
        self.connected = 0
        self.failed = 0
        #: bytes to the destinations and from them, of closed connections
        self.up = 0
        self.down = 0
        #: its last failure in words; empty if it never failed
        self.last_error = ""


class Member(Viewed):
    """An exit in the roster, with its state: health, limits in use, bans, counts."""

    __slots__ = (
        "_given_country",
        "any_country",
        "banned_until",
        "begins",
        "country",
        "counts",
        "different_page",
        "draining",
        "due",
        "exit",
        "has_limits",
        "has_own_name",
        "health",
        "key",
        "max_connections",
        "needs_proof",
        "number",
        "outbound",
        "part",
        "passes_session",
        "recent",
        "served",
        "spending",
        "standing",
        "tags",
    )

    def __init__(self, name: str, offer: Offer, health: Health) -> None:
        super().__init__(name, offer.weight)
        #: its place in the order of all exits: the first slot that it had
        self.number = -1
        self.exit = offer.exit
        self.key = key_of(offer)
        self.health = health
        #: the commands that it serves
        self.served = _served(offer.exit)
        #: whether the hub can connect by it (gsocks.exits.base.Begins)
        self.begins = hasattr(offer.exit, "begin")
        #: whether it has yet to show that it works before it gets more than a few requests
        self.needs_proof = False
        #: how the page of a check differs from what most exits get; None: it does not
        self.different_page: str | None = None
        #: monotonic seconds; until then an operator or a program has banned it
        self.banned_until = _NEVER
        #: it gets no new requests, and open connections go on
        self.draining = False
        self.counts = Counts()
        #: as what the roster counts it
        self.standing = UP
        #: when the roster looks at it again; infinity: when something happens to it
        self.due = math.inf
        #: what it has carried of its budget; None: it has none
        self.spending: Spending | None = None
        #: the address that sites see, and its country; None: not learned
        self.outbound: OutboundAddress | None = None
        #: when its latest requests were sent, in monotonic seconds; None: their rate is not limited
        self.recent: deque[float] | None = None
        #: what this process may use of its limits, where gateways share them
        self.part: Part = WHOLE
        self.take(offer)

    def take(self, offer: Offer) -> None:
        """Take the terms of ``offer``, which is for the same exit."""
        self.weight = offer.weight
        self.max_connections = offer.max_connections
        self.tags = offer.tags
        if offer.budget is None:
            self.spending = None
        elif self.spending is None:
            self.spending = Spending(offer.budget)
        else:
            self.spending.budget = offer.budget
        #: whether that is its name in the config, and not one that was made of its label
        self.has_own_name = self.name == offer.name
        self._given_country = offer.country
        learned = None if self.outbound is None else self.outbound.country
        #: that of its list, or else that of its outbound address
        self.country = offer.country or learned
        self.any_country = offer.any_country
        self.passes_session = offer.passes_session
        if offer.requests_per_minute is None:
            self.recent = None
        else:
            self.recent = deque(self.recent or (), maxlen=offer.requests_per_minute)
        #: whether its connections or its requests are limited
        self.has_limits = self.max_connections is not None or self.recent is not None

    def learn(self, found: OutboundAddress) -> None:
        """Take the outbound address, and its country if the list has told none."""
        self.outbound = found
        self.country = self._given_country or found.country

    @property
    def address(self) -> str | None:
        """The address that sites see; None: not learned."""
        return None if self.outbound is None else self.outbound.address

    @property
    def label(self) -> str:
        """Its URL without secrets."""
        return self.exit.label

    @property
    def title(self) -> str:
        """What the log and clients know it by: its name in the config, or else its label.

        Behind the label of one that differs from another exit by its secret alone stands the name
        that was made for it.
        """
        if self.has_own_name:
            return self.name
        label = self.exit.label
        return label if len(self.name) == DERIVED_NAME_SIZE else f"{label}#{self.name}"

    @property
    def traits(self) -> Traits:
        """What selectors tell it by."""
        return Traits(self.country, self.any_country, self.tags, self.served)

    @property
    def heeds_names(self) -> bool:
        """Whether it was given anything by which the user name of a client may select it or what is
        behind it."""
        given = self._given_country is not None or self.tags
        return bool(given or self.any_country or self.passes_session)

    @property
    def is_full(self) -> bool:
        """Whether it has ``max_connections`` open, or this process's part of them."""
        if self.max_connections is None:
            return False
        part = self.part.connections
        return self.open >= (self.max_connections if part is None else part)

    @property
    def rested_at(self) -> float:
        """When ``requests_per_minute`` allows its next request; monotonic seconds."""
        recent = self.recent
        if recent is None or recent.maxlen is None:
            return _NEVER
        part = self.part.requests
        return rested_at(recent, recent.maxlen if part is None else part)

    @property
    def spent_until(self) -> float:
        """Until when its budget is used up; monotonic seconds, in the past if it is not."""
        return -math.inf if self.spending is None else self.spending.until

    def method(self, command: Command) -> Callable[[Request], Any]:
        """The method of the exit for a command that it serves."""
        method: Callable[[Request], Any] = getattr(self.exit, _METHODS[command])
        return method

    def matches(self, selector: ExitSelector) -> bool:
        """Whether it has the name, the country and the tags of ``selector``."""
        return (
            (selector.exit is None or selector.exit == self.name)
            and (selector.country is None or selector.country == self.country or self.any_country)
            and all(tag in self.tags for tag in selector.tags)
        )

    def fits(self, request: Request) -> bool:
        """Whether it serves the command of ``request`` and matches its selector."""
        return request.command in self.served and self.matches(request.selector)

    def __repr__(self) -> str:
        in_flight = self.health.in_flight
        return f"<Member {self.name} ({self.label}) open={self.open} in_flight={in_flight}>"


def key_of(offer: Offer) -> object:
    """Equal for two offers of the same exit."""
    return offer.exit if offer.key is None else offer.key


#: one object for all exits that serve the same
_SERVED: dict[frozenset[Command], frozenset[Command]] = {}

#: the same of kinds of exits, all of which serve the same
_SERVED_BY_KIND: dict[type, frozenset[Command]] = {}


def _served(exit_: Exit) -> frozenset[Command]:
    kind = type(exit_)
    known = _SERVED_BY_KIND.get(kind)
    if known is not None:
        return known
    # Not isinstance() of the protocols, which takes longer than the rest of making a member.
    found = frozenset(
        command for command, name in _METHODS.items() if getattr(exit_, name, None) is not None
    )
    found = _SERVED.setdefault(found, found)
    if issubclass(kind, ProxyExit):  # which have methods of their class alone
        _SERVED_BY_KIND[kind] = found
    return found
