"""The roster: all exits of a group, and which of them may be used now.

A roster is made from offers, which can be replaced at any time.  It does no I/O and reads no clock:
``now`` is handed in, in monotonic seconds.

Nothing here goes through all exits for a request.  Each exit is in one tier (rotation/views.py),
from which it moves when something happens to it: a request that is sent or that fails, a check, a
command.  What time alone ends, such as an ejection, stands in a queue.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import count, islice
from operator import attrgetter
from random import Random
from typing import NamedTuple

from gsocks.exits.spec import derived_name
from gsocks.request import ANY, LOOK_UPS, UDP_ASSOCIATE, Command, ExitSelector, Request
from gsocks.rotation.health import DomainHealth, Health, domain_of, scopes_of, usable
from gsocks.rotation.host_limits import HostLimits
from gsocks.rotation.member import DOWN, EJECTED, UP, Member, Offer, key_of
from gsocks.rotation.outbound_address import AddressIndex, OutboundAddress
from gsocks.rotation.policy import Allows, Policy, RoundRobin
from gsocks.rotation.session import Like, SessionKey, session_hash, winner
from gsocks.rotation.views import (
    BARRED,
    LAST,
    LIMITED,
    READY,
    UNPROVEN,
    USABLE,
    Criteria,
    GiveWay,
    View,
    Views,
)
from gsocks.settings import HealthSettings

__all__ = ["FEW", "Changes", "Member", "Offer", "Roster"]

#: a group of so many exits spreads its sessions over them by rendezvous hashing, a larger one over
#: any part of its exits by a ring; so many exits that match are gone through for a last try, and
#: for want of better ones, of more so many are drawn
FEW = 64

#: the share of the requests that unproven exits get while there are others: the largest one, which
#: is halved with each that they fail and doubled with each that they serve, and the smallest one
_MOST_UNPROVEN, _LEAST_UNPROVEN = 0.1, 0.01

#: exits that are looked at again for one request
_MAX_DUE = 500

#: exits that are searched for one that may be used, where most may not be used for a domain
_MAX_SEARCHED = 2000

#: exits that rest for a host and are passed over, until all are believed to
_MAX_RESTING = 1000

#: steps of an update, of some 20 us each, between two looks at the time
STEPS = 16

_number = attrgetter("number")


class _Unlimited:
    """Which exits a request may use, whose host has limits that some of them have reached.

    Once too many have, any of them will do: the policy's search ends by that.
    """

    def __init__(self, allows: Callable[[Member], bool], is_free: Callable[[Member], bool]) -> None:
        self._allows = allows
        self._is_free = is_free
        self._passed_over = 0

    @property
    def has_given_up(self) -> bool:
        return self._passed_over > _MAX_RESTING

    def __call__(self, member: Member) -> bool:
        if not self._allows(member):
            return False
        if self._is_free(member):
            return True
        self._passed_over += 1
        return self.has_given_up


def _word_of(policy: Policy) -> str:
    words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(policy).__name__).lower()
    return words.removeprefix("at_")


class Changes(NamedTuple):
    """The result of an update."""

    added: list[Member]
    removed: list[Member]


def at_once(_: bool) -> None:
    """For a roster whose long work may take all the time that it needs."""


class Roster:
    """All exits of a group, in the order in which they were added.

    ``settings``: when failures eject an exit; ``random``: the source of randomness; ``policy``:
    chooses the exit for a request, None is round robin.  ``few``: in a larger group, exits have to
    show that they work before they get more than a few requests; None: in none.  ``give_way``:
    called during long work (rotation/views.py).  ``host_limits``: the limits of each exit for each
    host.
    """

    def __init__(
        self,
        offers: Iterable[Offer],
        settings: HealthSettings,
        random: Random,
        policy: Policy | None = None,
        *,
        few: int | None = None,
        give_way: GiveWay = at_once,
        host_limits: HostLimits | None = None,
    ) -> None:
        self._settings = settings
        self._random = random
        self._policy = RoundRobin() if policy is None else policy
        #: the policy as a config names it
        self.policy_word = _word_of(self._policy)
        self._few = few
        self._give_way = give_way
        self._members: dict[object, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._order: list[Member] = []
        self._views: Views[Member] = Views(self._policy, random, give_way)
        self.domains = DomainHealth(settings, random)
        self.host_limits = host_limits
        #: exits whose checks don't fail, and those of them that requests have ejected
        self._up = self._ejected = 0
        self._unproven_share = _MOST_UNPROVEN
        #: a heap: when to look at which exit again, because something ends by time
        self._due: list[tuple[float, int, Member]] = []
        self._now = -math.inf
        #: which exits leave from which address
        self.addresses: AddressIndex[Member] = AddressIndex()
        #: the members whose state has changed, for a state file; None: there is none
        self.touched: set[Member] | None = None
        self.update(offers)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._order)

    #: whether there is one exit: an attribute, which is asked for at each request
    has_one: bool

    def __repr__(self) -> str:
        return f"<Roster exits={len(self)}>"

    @property
    def is_short(self) -> bool:
        """Whether the exits of a session are gone through one by one.

        That depends on how many there are, and not on how many match: else the sessions that select
        a country would move when it has one exit more.
        """
        return len(self._members) <= FEW

    def replace_policy(self, policy: Policy) -> None:
        """Have ``policy`` choose the exits of the next requests; sessions keep theirs."""
        self._policy, self.policy_word = policy, _word_of(policy)
        for member in self._order:
            member.turn = 0  # of a count that the policy before had
        self._views.replace_policy(policy)

    def sample(self, most: int) -> list[Member]:
        """So many members at random, or all of them."""
        return self._random.sample(self._order, min(most, len(self._order)))

    def has_usable(self, now: float) -> bool:
        """Whether an exit may be used, now or once it is no more at a limit."""
        self._look_again(now)
        counts = self._views.view(Criteria(Command.CONNECT)).counts
        return any(counts[tier] for tier in (USABLE, UNPROVEN, LIMITED))

    def named(self, name: str) -> Member | None:
        """The member of that name; None if there is none."""
        return self._by_name.get(name)

    # --- the list of exits ------------------------------------------------------------------

    def update(self, offers: Iterable[Offer]) -> Changes:
        """Replace the exits by those of ``offers``.

        An exit that stays keeps its state and its name; of two offers of the same exit the first
        one counts.  While this is at work requests are served: by each new exit as soon as it was
        added, and by each old one until all were.  The caller sees to it that no two updates are.
        """
        give_way, members, by_name = self._give_way, self._members, self._by_name
        wanted: dict[object, Offer] = {}
        for number, offer in enumerate(offers):
            wanted.setdefault(key_of(offer), offer)
            if not number % STEPS:
                give_way(False)
        removed = []
        taken = set()
        staying: dict[object, Member] = {}
        for number, (key, member) in enumerate(members.items()):
            if key in wanted:
                staying[key] = member
                taken.add(member.name)
            else:
                removed.append(member)
            if not number % STEPS:
                give_way(False)
        needs_proof = self._few is not None and len(wanted) > self._few
        numbers: dict[str, int] = {}
        added = []
        weights = 0.0
        for number, (key, offer) in enumerate(wanted.items()):
            # each look costs the hash of a key, which is as much as to make its name
            known = staying.get(key) if staying else None
            if known is not None:
                self._take(known, offer)
            else:
                name = _free_name(offer.name or derived_name(offer.exit.label), taken, numbers)
                taken.add(name)
                health = Health(self._settings, self._random)
                member = Member(name, offer, health)
                member.needs_proof = needs_proof
                # one that goes may have had the name
                members[key] = by_name[name] = member
                self._enter(member)
                added.append(member)
            weights += offer.weight
            if not number % STEPS:
                give_way(False)
        for member in removed:
            self._leave(member)
            give_way(False)
        give_way(True)  # each of the following takes as long as a turn, or longer
        self._order = list(members.values())  # as they were added, and so by their numbers
        self.has_one = len(members) == 1
        give_way(True)
        if members:
            # the same in every process that has these exits
            self._views.set_unit(2.0 ** round(math.log2(weights / len(members))))
            self._views.view(Criteria(Command.CONNECT))
        return Changes(added, removed)

    def _enter(self, member: Member) -> None:
        """A new member, which is in no other tier than these, and of which nothing ends by time."""
        self._up += 1
        self._views.enter(member, member.traits, UNPROVEN if member.needs_proof else USABLE)
        member.number = member.slot
        if self.touched is not None:
            self.touched.add(member)

    def _leave(self, member: Member) -> None:
        self._count(member, -1)
        self._views.leave(member)
        self.addresses.forget(member)
        del self._members[member.key]
        if self._by_name[member.name] is member:
            del self._by_name[member.name]

    def _take(self, member: Member, offer: Offer) -> None:
        before = (member.traits, member.weight)
        member.take(offer)
        if (member.traits, member.weight) != before:
            # as if it were another one: what orders know of it holds no longer
            self._views.leave(member)
            self._views.enter(member, member.traits)
        self.member_changed(member, self._now)

    def learn(self, member: Member, found: OutboundAddress, now: float) -> bool:
        """Take the outbound address of an exit; whether it is another one than before."""
        if member.slot < 0 or not self.addresses.learn(member, found):
            return False
        before = member.traits
        member.learn(found)
        if member.traits != before:
            self._views.leave(member)
            self._views.enter(member, member.traits)
        self.member_changed(member, now)
        return True

    def beside(
        self, address: str, request: Request, excluded: Collection[Member], now: float
    ) -> Sequence[Member]:
        """Exits that may be used for ``request`` and leave from ``address``.

        Without any, those of its network; a few of them, if there are many.
        """
        self._look_again(now)
        allows = self._allows(request, excluded, now)
        for members in (self.addresses.sharing(address), self.addresses.near(address)):
            fit = [
                member
                for member in islice(members, FEW)
                if member.tier in READY and member.fits(request) and (not allows or allows(member))
            ]
            if fit:
                return fit
        return []

    # --- the state of one exit --------------------------------------------------------------

    def member_changed(self, member: Member, now: float) -> None:
        """The state of ``member`` has changed, so that it may, or may not, be used now."""
        if member.slot < 0:
            return  # it was removed
        self._now = now = max(now, self._now)
        health = member.health
        if health.has_proof and not health.failures:
            member.needs_proof = False
        elif health.ejections or health.failures:
            member.needs_proof = self._few is not None and len(self._members) > self._few
        standing = UP
        if health.is_ejected(now):
            standing = DOWN if health.is_down or not health.has_worked else EJECTED
        if standing != member.standing:
            self._count(member, -1)
            member.standing = standing
            self._count(member, 1)
        if self.touched is not None:
            self.touched.add(member)
        self._views.move(member, self._tier(member, now))
        ends = (
            health.ejected_until,
            member.banned_until,
            member.rested_at,
            member.spent_until,
        )
        due = min((end for end in ends if end > now), default=math.inf)
        if due < member.due:
            member.due = due
            heapq.heappush(self._due, (due, member.number, member))

    def _tier(self, member: Member, now: float) -> int:
        if member.draining or member.banned_until > now:
            return BARRED
        if member.is_full or member.rested_at > now or member.spent_until > now:
            return LIMITED
        if member.health.is_busy or member.health.is_ejected(now):
            return LAST
        is_doubted = member.health.is_doubted or member.different_page is not None
        return UNPROVEN if member.needs_proof or is_doubted else USABLE

    def _count(self, member: Member, by: int) -> None:
        if member.standing != DOWN:
            self._up += by
        if member.standing == EJECTED:
            self._ejected += by

    def _look_again(self, now: float) -> None:
        """Look at the exits of which time has ended something."""
        if now > self._now:
            self._now = now
        queue = self._due
        if not queue or queue[0][0] > now:
            return
        for _ in range(_MAX_DUE):
            if not queue or queue[0][0] > now:
                break
            due, _, member = heapq.heappop(queue)
            if due == member.due:
                member.due = math.inf
                self.member_changed(member, now)

    def unproven_tried(self, served: bool) -> None:
        """An exit of the tier UNPROVEN has served a request, or failed it by its own fault.

        Clients pay for what unproven exits fail, so that these get the fewer requests the more of
        them fail.
        """
        share = self._unproven_share * (2.0 if served else 0.5)
        self._unproven_share = max(_LEAST_UNPROVEN, min(share, _MOST_UNPROVEN))

    def may_eject(self, member: Member, now: float) -> bool:
        """Whether requests may eject ``member`` too.

        If many exits fail at once, the fault is hardly theirs, and the rest would be overloaded
        (Envoy, outlier_detection.max_ejection_percent).  Exits that are down don't count: the share
        is one of those that pass their checks.  Nor do exits that have never worked, once they are
        ejected: they are no loss.  A single exit is never ejected.
        """
        if not member.health.has_worked:
            return len(self._order) > 1
        self._look_again(now)
        return self._ejected + 1 <= self._settings.max_ejected * self._up

    # --- which may be used ------------------------------------------------------------------

    def choose(
        self,
        request: Request,
        excluded: Collection[Member],
        now: float,
        *,
        proven_only: bool = False,
    ) -> Member | None:
        """The exit for ``request`` that the policy chooses; None if none may be used.

        ``excluded`` have failed the request already.  If all others are ejected or busy, it is one
        of the least bad ones.  ``proven_only``: no exit that has yet to show that it works, unless
        there is no other one; of a few exits, one that has served a request, if there is one.
        """
        self._look_again(now)
        host = request.dest.host
        if len(self._members) == 1 and request.selector is ANY:
            only = self._only(request, excluded)
            if only is not None:
                self._policy.served_by(only, host)
                return only
        view = self._view(request)
        if view is None:
            return self._among(self.available(request, excluded, now), host, now)
        if proven_only and view.size <= FEW:
            fit = self._available(self._views.members(view), request, excluded, now)
            proven = [each for each in fit if each.health.proven]
            if proven:
                return self._among(sorted(proven, key=_number), host, now)
        allows = self._allows(request, excluded, now)
        usable_count, unproven = view.counts[USABLE], view.counts[UNPROVEN]
        tiers = READY
        may_try = not proven_only and not excluded and unproven and usable_count
        if may_try and self._random.random() < self._unproven_share:
            tiers = (UNPROVEN, USABLE)
        for tier in tiers:
            if view.counts[tier]:
                chosen = view.choose(tier, host, now, allows)
                if isinstance(allows, _Unlimited) and allows.has_given_up:
                    return self._soonest(request, excluded, now) or chosen
                if chosen is not None:
                    return chosen
        return self._among(self._least_bad(view, request, excluded, now), host, now)

    def _only(self, request: Request, excluded: Collection[Member]) -> Member | None:
        """The only exit of the group, if nothing speaks against it: then there is no choice."""
        (member,) = self._members.values()
        if (
            member.tier not in READY
            or member in excluded
            or request.command not in member.served
            or self.domains.by_domain
            or self.host_limits is not None
        ):
            return None
        return member

    def has_other(self, request: Request, excluded: Collection[Member], now: float) -> bool:
        """Whether another exit than ``excluded`` may be used for ``request``."""
        self._look_again(now)
        view = self._view(request)
        if view is None:
            return bool(self.available(request, excluded, now))
        usual = (USABLE, UNPROVEN, LAST)
        others = sum(view.counts[tier] for tier in usual)
        return others > sum(each.tier in usual and each.fits(request) for each in excluded)

    def winner(
        self,
        key: SessionKey,
        generation: int,
        request: Request,
        excluded: Collection[Member],
        now: float,
        like: Like | None,
    ) -> Member | None:
        """The exit of a session among those that may be used for ``request``; None if none may.

        ``excluded`` have failed the request already; ``like``: what the exit has to be like.
        """
        self._look_again(now)
        view = self._views.view(_like(request, like))
        if self.is_short:
            fit = self._available(self._views.members(view), request, excluded, now)
            return winner(key, generation, fit) if fit else None
        session = int.from_bytes(session_hash(key, generation).digest(), "big")
        allows = self._allows(request, excluded, now)
        for tier in READY:
            if view.counts[tier]:
                found = self._views.winner(view, tier, session, allows)
                if found is not None:
                    return found
        fit = self._least_bad(view, request, excluded, now)
        return winner(key, generation, fit) if fit else None

    def computed(self, key: SessionKey, selector: ExitSelector) -> Member | None:
        """The exit of a session of which nothing is known, if all exits could be used."""
        if selector.exit is not None:
            return self.named(selector.exit)
        view = self._views.view(Criteria(Command.CONNECT, selector.country, selector.tags))
        if not view.size:
            return None
        if self.is_short:
            return winner(key, 0, list(self._views.members(view)))
        return self._views.closest(view, int.from_bytes(session_hash(key, 0).digest(), "big"))

    def may_use(
        self, member: Member, request: Request, excluded: Collection[Member], now: float
    ) -> bool:
        """Whether ``request`` may use an exit; one that is ejected, only if all others are."""
        self._look_again(now)
        allows = self._allows(request, excluded, now)
        if not member.fits(request) or (allows is not None and not allows(member)):
            return False
        view = self._view(request)
        ready = 0 if view is None else view.counts[USABLE] + view.counts[UNPROVEN]
        return member.tier in READY or (member.tier == LAST and not ready)

    def available(
        self, request: Request, excluded: Collection[Member], now: float
    ) -> Sequence[Member]:
        """The members that may be used for ``request``, in their order; empty if there are none.

        As :meth:`choose` finds them, but all of them: only for a few.
        """
        self._look_again(now)
        matching = self.matching(request.selector, request.command)
        return self._available(matching, request, excluded, now)

    def matching(self, selector: ExitSelector, command: Command) -> list[Member]:
        """All members that match, in their order, whether they may be used or not."""
        if selector.exit is not None:
            named = self.named(selector.exit)
            matches = named is not None and command in named.served and named.matches(selector)
            return [named] if named is not None and matches else []
        view = self._views.view(Criteria(command, selector.country, selector.tags))
        return sorted(self._views.members(view), key=_number)

    def first(self, request: Request) -> Member:
        """Some member that fits ``request``, always the same one; there must be one."""
        view = self._views.view(_criteria(request))
        return next(self._views.members(view))

    def count(self, selector: ExitSelector, command: Command | None = None) -> int:
        """How many members match, whether they may be used or not; ``command`` None: whatever they
        serve.
        """
        if selector.exit is not None:
            named = self.named(selector.exit)
            return int(
                named is not None
                and named.matches(selector)
                and (command is None or command in named.served)
            )
        return self._views.view(Criteria(command, selector.country, selector.tags)).size

    def has_limited(self, request: Request, now: float) -> bool:
        """Whether a member that fits ``request`` is at its limit."""
        self._look_again(now)
        view = self._view(request)
        if view is None:
            named = self.named(request.selector.exit or "")
            return named is not None and named.tier == LIMITED
        return view.counts[LIMITED] > 0

    def rested_at(self, request: Request, now: float) -> float:
        """When the first of the members that are at their limit may be used again, of the first
        few that fit ``request``; in the past if that is when a connection ends."""
        found = islice(self, _MAX_SEARCHED)
        limited = (each for each in found if each.tier == LIMITED and each.fits(request))
        rests = (now if each.is_full else max(each.rested_at, each.spent_until) for each in limited)
        return min(rests, default=now)

    def serves(self, member: Member, request: Request, now: float) -> bool:
        """Whether a member may be used for ``request``, apart from its limits."""
        return (
            not member.draining
            and member.banned_until <= now
            and member.spent_until <= now
            and not member.health.is_ejected(now)
            and member.fits(request)
            and not any(
                self.domains.is_ejected(member.name, scope, now)
                for scope in (scopes_of(request) if self.domains.by_domain else ())
            )
        )

    def refuses(self, member: Member, now: float) -> bool:
        """Whether a member must not be used, even if all others have failed."""
        return (
            member.draining
            or member.is_full
            or max(member.banned_until, member.rested_at, member.spent_until) > now
        )

    def tell(self, request: Request) -> tuple[int | None, int | None]:
        """How many exits match ``request``, and how many of them are ready to serve it; None: that
        is not known without going through them."""
        name = request.selector.exit
        if len(self._members) == 1 or name is not None:
            only = next(iter(self._members.values())) if name is None else self.named(name)
            return (0, 0) if only is None else (1, int(only.tier in READY))
        view = self._views.known(_criteria(request))
        if view is None:
            return None, None  # to make it may take longer than a turn
        return view.size, sum(view.counts[tier] for tier in READY)

    def _view(self, request: Request) -> View[Member] | None:
        """The exits that fit; None if the request names its exit."""
        return self._views.view(_criteria(request)) if request.selector.exit is None else None

    def _barring(self, request: Request) -> list[str]:
        """The scopes of a request for which some exits may not be used."""
        if not self.domains.by_domain:
            return []
        return [scope for scope in scopes_of(request) if self.domains.has(scope)]

    def _allows(
        self, request: Request, excluded: Collection[Member], now: float
    ) -> Allows[Member] | None:
        """Which exits the request may use of those that others may use; None: all of them."""
        domains = self.domains
        if not excluded and not domains.by_domain and self.host_limits is None:
            return None  # as nearly always
        barring = self._barring(request)
        host, limits = self._limited_host(request), self.host_limits
        if host is not None and limits is not None and request.selector.session is None:
            return _Unlimited(
                lambda member: (
                    member not in excluded
                    and not any(domains.is_ejected(member.name, domain, now) for domain in barring)
                ),
                lambda member: limits.usable_at(member.name, host) <= now,
            )
        if not barring:
            return (lambda member: member not in excluded) if excluded else None
        return lambda member: (
            member not in excluded
            and not any(domains.is_ejected(member.name, domain, now) for domain in barring)
        )

    def _soonest(self, request: Request, excluded: Collection[Member], now: float) -> Member | None:
        """Of exits that rest for the host of ``request``, the one whose rest ends first."""
        limits = self.host_limits
        names = () if limits is None else limits.soonest(domain_of(request.dest.host), FEW, now)
        for name in names:
            member = self.named(name)
            if (
                member is not None
                and member not in excluded
                and member.tier in READY
                and member.fits(request)
            ):
                return member
        return None

    def _limited_host(self, request: Request) -> str | None:
        """The host of a request, if some exit has a limit for it that may be reached."""
        limits = self.host_limits
        if limits is None or request.command in _WITHOUT_HOST:
            return None
        host = domain_of(request.dest.host)
        return host if limits.has(host) else None

    def _available(
        self,
        members: Iterable[Member],
        request: Request,
        excluded: Collection[Member],
        now: float,
    ) -> Sequence[Member]:
        fit = [each for each in members if each not in excluded]
        ready = [each for each in fit if each.tier == USABLE]
        ready = ready or [each for each in fit if each.tier == UNPROVEN]
        return self._not_barred(
            ready or usable([each for each in fit if each.tier == LAST], now), request, now
        )

    def _least_bad(
        self, view: View[Member], request: Request, excluded: Collection[Member], now: float
    ) -> Sequence[Member]:
        """Some exits for want of better ones; empty if none may be used."""
        if view.size <= FEW:
            members = sorted(self._views.members(view), key=_number)
            return self._available(members, request, excluded, now)
        if view.counts[USABLE] + view.counts[UNPROVEN] > 0:  # which the destination has barred
            searched = islice(self._views.members(view), _MAX_SEARCHED)
            ready = (each for each in searched if each.tier in READY and each not in excluded)
            fit: Sequence[Member] = list(islice(ready, FEW))
        else:
            fit = []
        fit = fit or usable(view.last(FEW, lambda member: member not in excluded), now)
        return self._not_barred(fit, request, now)

    def _not_barred(
        self, members: Sequence[Member], request: Request, now: float
    ) -> Sequence[Member]:
        for domain in self._barring(request):
            members = self.domains.usable(members, domain, now)
        host, limits = self._limited_host(request), self.host_limits
        if host is None or limits is None or request.selector.session is not None:
            return members
        at = [limits.usable_at(member.name, host) for member in members]
        soonest = max(now, min(at, default=now))
        return [each for each, free in zip(members, at, strict=True) if free <= soonest]

    def _among(self, members: Sequence[Member], host: str, now: float) -> Member | None:
        """The one of a few that the policy chooses."""
        by_slot = {member.slot: member for member in members}
        order = self._policy.order(by_slot.get)
        for member in members:
            order.add(member)
        return order.choose(host, now)

    def barred(self, now: float) -> Iterator[tuple[str, str, str, float]]:
        """What is known of pairs of exit and domain: exit, domain, state, and when the exit may be
        used there again."""
        yield from self.domains.listed(now)
        if self.host_limits is not None:
            for name, host, until in self.host_limits.cooling(now):
                yield name, host, "cooling", until

    # --- requests ---------------------------------------------------------------------------

    def take_turn(self, member: Member, request: Request, now: float, wait: float) -> float | None:
        """When a request may be sent to the exit, by its limits for the host: in at most ``wait``
        seconds, or None.

        Its end is then reported by :meth:`connection_closed`, or by :meth:`give_turn_back`.
        """
        if self.host_limits is None or request.command in _WITHOUT_HOST:
            return now
        return self.host_limits.take(member.name, domain_of(request.dest.host), now, wait)

    def turn_at(self, member: Member, request: Request) -> float:
        """When the exit may be sent a request for the host; infinity: once a connection ends."""
        if self.host_limits is None:
            return -math.inf
        return self.host_limits.usable_at(member.name, domain_of(request.dest.host))

    def join(self, member: Member, request: Request, now: float) -> None:
        """The same for a request that only one connection can carry: it has its turn at once."""
        if self.host_limits is not None:
            self.host_limits.joined(member.name, domain_of(request.dest.host), now)

    def give_turn_back(self, member: Member, request: Request) -> None:
        """The request was not sent, or its connection is closed."""
        if self.host_limits is not None and request.command not in _WITHOUT_HOST:
            self.host_limits.closed(member.name, domain_of(request.dest.host))

    def request_sent(self, member: Member, now: float) -> None:
        """A request is sent to the exit: it has one connection more."""
        health = member.health
        member.open += 1
        health.in_flight += 1
        if member.recent is not None:
            member.recent.append(now)
        if member.has_limits or not health.proven:  # so that one more may be one too many
            self.member_changed(member, now)
        if self._policy.follows_open:
            self._views.opened(member, member.open - 1)

    def request_done(self, member: Member) -> None:
        """A request was answered by its destination, or it failed, or was given up."""
        health = member.health
        health.in_flight -= 1
        if member.has_limits or not health.proven:
            self.member_changed(member, self._now)

    def connection_closed(
        self, member: Member, request: Request, up: int = 0, down: int = 0
    ) -> None:
        """The connection of ``request`` through the exit is closed, or was not made.

        ``up`` and ``down`` are the bytes that it carried.
        """
        if self.host_limits is not None:
            self.give_turn_back(member, request)
        member.open -= 1
        counts = member.counts
        counts.up += up
        counts.down += down
        if member.has_limits or not member.health.proven:
            self.member_changed(member, self._now)
        if self._policy.follows_open:
            self._views.opened(member, member.open + 1)


def _free_name(name: str, taken: Collection[str], numbers: dict[str, int]) -> str:
    """``name``, or the first of name-2, name-3... that is not taken.

    ``numbers``: for each name the number to begin with, because those before it are taken.
    """
    if name not in taken:
        return name
    number = next(n for n in count(numbers.get(name, 2)) if f"{name}-{n}" not in taken)
    numbers[name] = number + 1
    return f"{name}-{number}"


#: commands that reach no host, or many
_WITHOUT_HOST = LOOK_UPS | {UDP_ASSOCIATE}

#: of requests that any exit may serve, as nearly all
_ANY = {command: Criteria(command) for command in Command}


def _criteria(request: Request) -> Criteria:
    selector = request.selector
    if selector is ANY:
        return _ANY[request.command]
    return Criteria(request.command, selector.country, selector.tags)


def _like(request: Request, like: Like | None) -> Criteria:
    if like is None:
        return _criteria(request)
    country = request.selector.country
    if country is not None:  # that counts, whichever the exit before had: one view for all of these
        like = like._replace(country=None)
    return _criteria(request)._replace(like=like)
