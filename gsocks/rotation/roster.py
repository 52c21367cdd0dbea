"""The exits as they stand: which of them may be asked now, and how they have served so far.

A roster is made from offers and may be given others at any time.  It opens nothing and reads no
clock: ``now`` is handed in, in monotonic seconds.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import count
from random import Random
from typing import Any, NamedTuple

from gsocks.address import Address
from gsocks.exits.base import Exit
from gsocks.exits.url import derived_name
from gsocks.request import Command, Request
from gsocks.rotation.health import Domains, Health, HealthSettings, domain_of, usable
from gsocks.rotation.policy import Candidate
from gsocks.wish import Wish

log = logging.getLogger("gsocks.rotation")


class Offer(NamedTuple):
    """An exit, and how it may be used."""

    exit: Exit
    #: how much of the traffic, in proportion to the other exits' weights
    weight: float = 1.0
    #: connections through it at a time; None: no bound
    max_connections: int | None = None
    #: requests that are put to it in any 60 seconds; None: no bound
    requests_per_minute: int | None = None
    #: how it is called where its label is too long; None: :func:`gsocks.exits.url.derived_name`
    name: str | None = None
    tags: tuple[str, ...] = ()
    #: two letters, lower case; None: not known
    country: str | None = None
    #: it serves every country, since it passes on which one is wished for
    any_country: bool = False
    #: what is equal for two offers of the same way out; None: the exit itself
    key: object = None


class Counts:
    """What an exit has done since it came."""

    __slots__ = ("connected", "down", "failed", "last_error", "up")

    def __init__(self) -> None:
        #: requests that it connected, and those in which it failed by itself
        self.connected = 0
        self.failed = 0
        #: bytes to the destinations and from them, of connections that have ended
        self.up = 0
        self.down = 0
        #: in words; empty if it never failed
        self.last_error = ""


class Member(Candidate):
    """An exit, as it stands at present."""

    __slots__ = (
        "_recent",
        "any_country",
        "banned_until",
        "country",
        "counts",
        "doubts",
        "draining",
        "exit",
        "health",
        "hollow",
        "key",
        "max_connections",
        "name",
        "served",
        "tags",
    )

    def __init__(self, number: int, name: str, offer: Offer, health: Health) -> None:
        super().__init__(number, offer.weight)
        self.exit = offer.exit
        self.key = _key(offer)
        self.name = name
        self.health = health
        #: how the exit is asked for each command that it serves
        self.served = _served(offer.exit)
        #: requests in a row that may have failed by it
        self.doubts = 0
        #: connections in a row through which nothing came back, by destination; None: whatever
        #: the destination is, it was not by its doing
        self.hollow: Counter[str | None] = Counter()
        #: monotonic seconds; until then somebody wants it to be left alone
        self.banned_until = -math.inf
        #: it is asked nothing more, and what is open goes on
        self.draining = False
        self.counts = Counts()
        self._recent: deque[float] = deque()
        self.take(offer)

    def take(self, offer: Offer) -> None:
        """Be used from now on as ``offer`` says, whose exit is the same way out."""
        self.weight = offer.weight
        self.max_connections = offer.max_connections
        self.tags = offer.tags
        self.country = offer.country
        self.any_country = offer.any_country
        if offer.requests_per_minute is None:
            self._recent = deque(maxlen=0)
        else:
            self._recent = deque(self._recent, maxlen=offer.requests_per_minute)

    @property
    def label(self) -> str:
        """Its URL without secrets."""
        return self.exit.label

    @property
    def is_full(self) -> bool:
        """Whether it has as many connections as it may have."""
        return self.max_connections is not None and self.open >= self.max_connections

    @property
    def rested_at(self) -> float:
        """When it may be asked again, by its requests a minute; monotonic seconds."""
        recent = self._recent
        return recent[0] + 60.0 if recent and len(recent) == recent.maxlen else -math.inf

    def fulfils(self, wish: Wish) -> bool:
        """Whether it is what a client wishes for."""
        return (
            (wish.exit is None or wish.exit == self.name)
            and (wish.country is None or wish.country == self.country or self.any_country)
            and all(tag in self.tags for tag in wish.tags)
        )

    def fits(self, request: Request) -> bool:
        """Whether it can serve ``request``, and is what that wishes for."""
        return request.command in self.served and self.fulfils(request.wish)

    def note_request(self, now: float) -> None:
        """It is asked once more."""
        self._recent.append(now)


class Changes(NamedTuple):
    """What an update did."""

    added: list[Member]
    removed: list[Member]


class Roster:
    """The exits, in their order.

    ``random`` is where chance comes from, ``settings`` say when an exit is given up for a while.
    """

    def __init__(self, offers: Iterable[Offer], settings: HealthSettings, random: Random) -> None:
        self._settings = settings
        self._random = random
        self._numbers = count()
        self._members: dict[object, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._order: list[Member] = []
        self.domains = Domains(settings, random)
        #: those that may be asked, and until when this is so if nothing happens; None: not known
        self._ready: list[Member] | None = None
        self._ready_until = -math.inf
        self.update(offers)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._order)

    def named(self, name: str) -> Member | None:
        """The member of that name."""
        return self._by_name.get(name)

    # --- which there are --------------------------------------------------------------------

    def update(self, offers: Iterable[Offer]) -> Changes:
        """Have these exits from now on.

        What is known of an exit stays with it, and so does its name; of two offers of the same
        exit the first one counts.
        """
        before = self._members
        wanted: dict[object, Offer] = {}
        for offer in offers:
            wanted.setdefault(_key(offer), offer)
        removed = [member for key, member in before.items() if key not in wanted]
        taken = {member.name for key, member in before.items() if key in wanted}
        numbers: dict[str, int] = {}
        added = []
        members: dict[object, Member] = {}
        for key, offer in wanted.items():
            member = before.get(key)
            if member is None:
                name = _free_name(offer.name or derived_name(offer.exit.label), taken, numbers)
                taken.add(name)
                health = Health(self._settings, self._random)
                member = Member(next(self._numbers), name, offer, health)
                added.append(member)
            else:
                member.take(offer)
            members[key] = member
        self._members = members
        # policies want them by their numbers
        self._order = sorted(members.values(), key=lambda member: member.number)
        self._by_name = {member.name: member for member in self._order}
        self.changed()
        return Changes(added, removed)

    # --- which may be asked -----------------------------------------------------------------

    def changed(self) -> None:
        """Something was done to a member by which it may or may not be asked."""
        self._ready = None

    def fulfilling(self, wish: Wish) -> Sequence[Member]:
        """Those that are what a client wishes for, whether they may be asked or not."""
        if _is_any(wish):
            return self._order
        return [member for member in self._order if member.fulfils(wish)]

    def available(
        self, request: Request, given_up: Collection[Member], now: float
    ) -> Sequence[Member]:
        """Those that may be asked for ``request``, in their order: empty if none may.

        ``given_up`` have failed it already.  Where the health of all others is in doubt, it is
        the least bad ones.
        """
        fit: Sequence[Member] = self._ready_at(now)
        if given_up or not _is_any(request.wish) or request.command is not Command.CONNECT:
            fit = [each for each in fit if each not in given_up and each.fits(request)]
        if not fit:
            fit = self._least_bad(request, given_up, now)
        if self.domains:
            for domain in _domains(request.dest):
                fit = self.domains.usable(fit, domain, now)
        return fit

    def serves(self, member: Member, request: Request, now: float) -> bool:
        """Whether nothing but its limits keeps a member from being asked for ``request``."""
        return (
            not member.draining
            and member.banned_until <= now
            and not member.health.is_out(now)
            and member.fits(request)
            and not any(
                self.domains.is_out(member.name, domain, now)
                for domain in (_domains(request.dest) if self.domains else ())
            )
        )

    def refuses(self, member: Member, now: float) -> bool:
        """Whether it must not be asked, however many others have failed."""
        return (
            member.draining or member.is_full or member.banned_until > now or member.rested_at > now
        )

    def _ready_at(self, now: float) -> list[Member]:
        # gone through only when something has changed: there may be thousands of exits
        if self._ready is None or now >= self._ready_until:
            self._ready_until = math.inf
            self._ready = [member for member in self._order if self._is_ready(member, now)]
        return self._ready

    def _is_ready(self, member: Member, now: float) -> bool:
        if member.draining or member.is_full or member.health.is_busy:
            return False
        back = max(member.banned_until, member.rested_at, member.health.out_until)
        if back > now:
            self._ready_until = min(self._ready_until, back)
        return back <= now

    def _least_bad(
        self, request: Request, given_up: Collection[Member], now: float
    ) -> Sequence[Member]:
        left = [
            member
            for member in self._order
            if member not in given_up and member.fits(request) and not self.refuses(member, now)
        ]
        return usable(left, now)

    # --- how they serve ---------------------------------------------------------------------

    def asked(self, member: Member, now: float) -> None:
        """A request is put to it."""
        member.open += 1
        member.health.asking += 1
        member.note_request(now)
        if member.is_full or member.rested_at > now or member.health.is_busy:
            self.changed()

    def answered(self, member: Member) -> None:
        """It has answered a request, or is not waited for any more."""
        if member.health.is_busy:
            self.changed()
        member.health.asking -= 1

    def connected(self, member: Member, now: float) -> None:
        """It has connected a request."""
        member.counts.connected += 1
        member.doubts = 0
        if not member.health.proven or member.health.is_out(now):
            self.changed()
        member.health.succeeded(now)

    def failed(
        self, member: Member, error: Exception, now: float, *, began: float = math.inf
    ) -> None:
        """It has failed by itself, at a request that was put to it when it ``began``."""
        self._fail(member, str(error), 1, now, began)

    def doubted(
        self, member: Member, error: Exception, now: float, *, began: float = math.inf
    ) -> None:
        """It could not connect a request that no other exit may be asked for.

        One may be the destination's doing; so many in a row that would put it out are its own.
        """
        if member.health.knows_newer(began):
            return
        member.doubts += 1
        if member.doubts >= self._settings.failures:
            self._fail(member, str(error), self._settings.failures, now)

    def checked(self, member: Member, ok: bool, now: float) -> None:
        """An active check has found it well, or not."""
        member.health.checked(ok, now)
        self.changed()

    def left(
        self,
        member: Member,
        up: int,
        down: int,
        now: float,
        *,
        dest: Address | None = None,
        broken: bool = False,
        by_itself: bool = False,
    ) -> None:
        """A connection through it is over, which carried so much.

        An exit that says it is connected when it isn't shows by connections through which nothing
        comes back, though something was sent, or which it breaks.  One destination may do so too,
        or to one exit: then that is not asked for it, and for others is.  ``dest``: None where
        nothing has to come back.  ``by_itself``: the exit has told that it failed.
        """
        if member.is_full:
            self.changed()
        member.open -= 1
        member.counts.up += up
        member.counts.down += down
        if down:
            member.hollow.clear()
        elif by_itself:
            self._note_hollow(member, None, now)
        elif dest is not None and (up or broken):
            self._note_hollow(member, domain_of(dest.host), now)

    def _note_hollow(self, member: Member, domain: str | None, now: float) -> None:
        most, hollow = self._settings.failures, member.hollow
        if len(hollow) > most:  # which of them there were is known well enough
            del hollow[next(iter(hollow))]
        # each began with a success, by which those before it were forgiven
        hollow[domain] += 1
        if hollow[None] + len(hollow.keys() - {None}) >= most:
            self._fail(member, "connected, but nothing came back", most, now)
        elif domain is not None and hollow[domain] >= most and len(self._order) > 1:
            out = [self.domains.failed(member.name, domain, now) for _ in range(most)]
            if any(out):
                log.warning(
                    "exit %s (%s) is out for %s: connected, but nothing came back",
                    member.name,
                    member.label,
                    domain,
                )

    def _fail(
        self, member: Member, why: str, times: int, now: float, began: float = math.inf
    ) -> None:
        member.counts.failed += 1
        member.counts.last_error = why
        everybody = [each.health for each in self._order]
        if any(member.health.failed(now, everybody, began=began) for _ in range(times)):
            seconds = member.health.out_until - now
            log.warning(
                "exit %s (%s) is out for %.0f s: %s", member.name, member.label, seconds, why
            )
        self.changed()


def _key(offer: Offer) -> object:
    return offer.exit if offer.key is None else offer.key


def _free_name(name: str, taken: Collection[str], numbers: dict[str, int]) -> str:
    """``name``, or the first of name-2, name-3... that nobody has.

    ``numbers``: with which of them to begin, because those before it are taken.
    """
    if name not in taken:
        return name
    number = next(n for n in count(numbers.get(name, 2)) if f"{name}-{n}" not in taken)
    numbers[name] = number + 1
    return f"{name}-{number}"


def _is_any(wish: Wish) -> bool:
    return wish.exit is None and wish.country is None and not wish.tags


def _domains(dest: Address) -> Iterator[str]:
    """The domains that a destination belongs to: its name, and those that it is below of."""
    domain = domain_of(dest.host)
    yield domain
    if dest.ip is None:
        while "." in domain:
            domain = domain.partition(".")[2]
            yield domain


def _served(way: Exit) -> dict[Command, Callable[[Request], Any]]:
    served: dict[Command, Callable[[Request], Any]] = {Command.CONNECT: way.connect}
    # Not by isinstance of the protocols, which takes longer than all else that makes a member.
    for command, name in ((Command.UDP_ASSOCIATE, "associate"), (Command.BIND, "bind")):
        if (method := getattr(way, name, None)) is not None:
            served[command] = method
    return served
