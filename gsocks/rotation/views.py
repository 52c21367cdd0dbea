"""Views: the exits that match one selector, kept up to date, so that none is searched for.

Exits that no selector can tell apart are of one *kind*: they have the same country and tags and
serve the same commands.  A view is made at the first request for it, from the kinds that match, and
is told from then on of each exit of those kinds that comes, goes, or may no longer be used.  So a
request costs the same whatever the number of exits, and a change of an exit costs a little for each
view that it belongs to.

Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from operator import itemgetter
from random import Random
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from gsocks.lru import LruCache
from gsocks.request import Command
from gsocks.rotation.indexed import IndexedSet
from gsocks.rotation.policy import Allows, Candidate, Find, Order, Policy, some
from gsocks.rotation.ring import Ring
from gsocks.rotation.session import Like

#: What may be done with an exit now.  BARRED: nothing, because an operator has taken it out;
#: LIMITED: nothing, because it has as many connections or requests as it may have; UNPROVEN: it has
#: yet to show that it works, and gets a few requests beside those that do; LAST: it is ejected or
#: has as many requests in doubt as it may have, and gets requests for want of others.
BARRED, LIMITED, USABLE, UNPROVEN, LAST = _TIERS = range(5)

#: the tiers from which requests are served while there are any
READY = (USABLE, UNPROVEN)

#: called between the steps of long work; others may run meanwhile, and do if it is given True
GiveWay: TypeAlias = Callable[[bool], None]


class Traits(NamedTuple):
    """What selectors tell exits by."""

    country: str | None
    #: it serves every country
    any_country: bool
    tags: tuple[str, ...]
    served: frozenset[Command]


class Criteria(NamedTuple):
    """Which exits belong to a view."""

    #: None: whatever they serve
    command: Command | None = None
    country: str | None = None
    tags: tuple[str, ...] = ()
    like: Like | None = None

    def match(self, traits: Traits) -> bool:
        """Whether exits with these traits belong to the view."""
        return (
            (self.command is None or self.command in traits.served)
            and (self.country is None or self.country == traits.country or traits.any_country)
            and all(tag in traits.tags for tag in self.tags)
            and (self.like is None or self._is_like(self.like, traits))
        )

    def _is_like(self, like: Like, traits: Traits) -> bool:
        # if a country is selected, all that match serve it, whatever other ones they serve
        same_country = self.country is not None or traits.country == like.country
        return same_country and set(like.tags) == set(traits.tags)


class Kind:
    """Exits that no selector tells apart."""

    __slots__ = ("counts", "size", "slots", "traits", "views")

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        #: of its exits; some that have gone may still be among them
        self.slots: list[int] = []
        self.size = 0
        #: its exits of each tier
        self.counts = [0] * len(_TIERS)
        #: the views that it belongs to
        self.views: list[View[Any]] = []


class Viewed(Candidate):
    """An exit that belongs to views."""

    __slots__ = ("kind", "name", "tier")

    kind: Kind

    def __init__(self, name: str, weight: float) -> None:
        super().__init__(-1, weight)
        #: unique among all exits, and the same in every process
        self.name = name
        self.tier = BARRED


M = TypeVar("M", bound=Viewed)


class View(Generic[M]):
    """The exits that match one selector."""

    __slots__ = (
        "_finds",
        "_last",
        "_orders",
        "_random",
        "counts",
        "filled",
        "kinds",
        "rings",
        "size",
    )

    def __init__(self, policy: Policy, finds: list[Find[M]], random: Random) -> None:
        self._finds = finds
        self._random = random
        self.kinds: set[Kind] = set()
        self.size = 0
        #: its exits of each tier
        self.counts = [0] * len(_TIERS)
        #: whether all exits have been added that it had when it was made
        self.filled = False
        self._orders: dict[int, Order[M]] = {tier: policy.order(finds[tier]) for tier in READY}
        self._last = IndexedSet()
        #: of the tiers in which a session has asked for an exit
        self.rings: dict[int, Ring[M]] = {}

    def add(self, member: M) -> None:
        """An exit that belongs to the view has come to its tier."""
        tier = member.tier
        if tier == LAST:
            self._last.add(member.slot)
        elif tier in self._orders:
            self._orders[tier].add(member)
            if tier in self.rings:
                self.rings[tier].add(member)

    def opened(self, member: M, before: int) -> None:
        """An exit had ``before`` open connections, and has another number of them now."""
        for order in self._orders.values():
            order.moved(member, before)

    def choose(self, tier: int, host: str, now: float, allows: Allows[M] | None) -> M | None:
        """The exit of a tier that the policy chooses for a request to ``host``; None without."""
        return self._orders[tier].choose(host, now, allows)

    def last(self, most: int, allows: Allows[M] | None) -> list[M]:
        """Some of the last tier at random, or all."""
        return some(self._last, most, self._finds[LAST], self._random, allows)


class Views(Generic[M]):
    """All exits, and the views of them; ``policy`` chooses within each."""

    #: views that are kept; the least recently used one is forgotten
    max_views = 256
    #: the same in exits of all views together, for each exit that there is
    max_views_of_one = 8

    def __init__(self, policy: Policy, random: Random, give_way: GiveWay) -> None:
        self._policy = policy
        self._random = random
        self._give_way = give_way
        self._slots: dict[int, M] = {}
        self._new_slots = count()
        self._kinds: dict[Traits, Kind] = {}
        #: those of each set of tags
        self._by_tags: dict[frozenset[str], dict[Traits, Kind]] = {}
        self._views: LruCache[Criteria, View[M]] = LruCache(self.max_views)
        #: the view that was asked for last, as nearly all are for the same one
        self._latest: tuple[Criteria | None, View[M] | None] = (None, None)
        #: what no kind matches: to find that out takes a look at each
        self._empty: LruCache[Criteria, View[M]] = LruCache(self.max_views)
        self._finds = [self._find_of(tier) for tier in _TIERS]
        #: the weight of an exit that has as many points on a ring as most have
        self._unit = 1.0

    def _find_of(self, tier: int) -> Find[M]:
        find = self._slots.get

        def found(slot: int) -> M | None:
            member = find(slot)
            return member if member is not None and member.tier == tier else None

        return found

    # --- exits ------------------------------------------------------------------------------

    def enter(self, member: M, traits: Traits, tier: int = BARRED) -> None:
        """Add an exit in a tier."""
        kind = self._kinds.get(traits)
        if kind is None:
            kind = self._kinds[traits] = Kind(traits)
            self._empty = LruCache(self.max_views)
            self._by_tags.setdefault(frozenset(traits.tags), {})[traits] = kind
            for criteria, view in self._views.items():
                if criteria.match(traits):
                    view.kinds.add(kind)
                    kind.views.append(view)
        member.slot, member.kind, member.tier = next(self._new_slots), kind, tier
        self._slots[member.slot] = member
        kind.slots.append(member.slot)
        kind.size += 1
        kind.counts[tier] += 1
        for view in kind.views:
            view.size += 1
            view.counts[tier] += 1
            view.add(member)

    def leave(self, member: M) -> None:
        """Remove an exit."""
        self.move(member, BARRED)
        kind = member.kind
        kind.size -= 1
        kind.counts[BARRED] -= 1
        for view in kind.views:
            view.size -= 1
            view.counts[BARRED] -= 1
        # orders find no exit by its slot any more
        del self._slots[member.slot]
        member.slot = -1
        if not kind.size:
            del self._kinds[kind.traits]
            tags = frozenset(kind.traits.tags)
            del self._by_tags[tags][kind.traits]
            if not self._by_tags[tags]:
                del self._by_tags[tags]
            for view in kind.views:
                view.kinds.discard(kind)
        elif len(kind.slots) > 2 * kind.size + 100:
            kind.slots = [slot for slot in kind.slots if slot in self._slots]

    def move(self, member: M, tier: int) -> None:
        """Move an exit to another tier."""
        before, kind = member.tier, member.kind
        if tier == before:
            return
        member.tier = tier
        kind.counts[before] -= 1
        kind.counts[tier] += 1
        for view in kind.views:
            view.counts[before] -= 1
            view.counts[tier] += 1
            view.add(member)

    def opened(self, member: M, before: int) -> None:
        """An exit had ``before`` open connections, and has another number of them now."""
        for view in member.kind.views if member.slot >= 0 else ():
            view.opened(member, before)

    def set_unit(self, weight: float) -> None:
        """The weight of an exit that has as many points on a ring as most have."""
        if weight != self._unit:
            self._unit = weight
            for view in self._views.values():
                view.rings.clear()

    def replace_policy(self, policy: Policy) -> None:
        """Have ``policy`` choose from now on; views are made anew when they are asked for."""
        self._policy = policy
        while (oldest := self._views.oldest()) is not None:
            self._forget(*oldest)
        self._empty = LruCache(self.max_views)

    # --- views ------------------------------------------------------------------------------

    def known(self, criteria: Criteria) -> View[M] | None:
        """The view of the exits that match, if there is one already."""
        view = self._views.peek(criteria)
        return view if view is not None and view.filled else None

    def view(self, criteria: Criteria) -> View[M]:
        """The view of the exits that match."""
        latest, view = self._latest
        if criteria is latest and view is not None:  # to hash criteria takes longer than the rest
            return view
        if latest is not None:
            self._views.get(latest)  # it was used until now
        while True:
            view = self._views.get(criteria)
            if view is not None and view.filled:
                self._latest = criteria, view
                return view
            view = view or self._empty.get(criteria)
            if view is None:
                return self._make(criteria)
            if view.filled:
                return view
            self._give_way(True)

    def members(self, view: View[M]) -> Iterator[M]:
        """The exits of a view, those of one kind after another."""
        for kind in list(view.kinds):
            for slot in list(kind.slots):
                member = self._slots.get(slot)
                if member is not None:
                    yield member

    def winner(
        self, view: View[M], tier: int, session: int, allows: Allows[M] | None = None
    ) -> M | None:
        """The exit of a tier that serves a session, whose hash is given; None if there is none."""
        while True:
            ring = view.rings.get(tier)
            if ring is None:
                ring = self._make_ring(view, tier)
            if ring.filled:
                return ring.winner(session, allows)
            self._give_way(True)

    def closest(self, view: View[M], session: int) -> M | None:
        """The exit that would serve a session if all of the view could be used."""
        found = []
        for tier, size in enumerate(view.counts):
            if size and self.winner(view, tier, session) is not None:  # which makes the ring
                closest = view.rings[tier].closest(session)
                if closest is not None:
                    found.append(closest)
        return min(found, key=itemgetter(0))[1] if found else None

    def _make(self, criteria: Criteria) -> View[M]:
        view = View(self._policy, self._finds, self._random)
        known = self._kinds
        if criteria.like is not None:  # there may be as many such views as kinds
            known = self._by_tags.get(frozenset(criteria.like.tags), {})
        kinds = [kind for kind in known.values() if criteria.match(kind.traits)]
        for kind in kinds:
            kind.views.append(view)
            view.size += kind.size
            view.counts = [sum(both) for both in zip(view.counts, kind.counts, strict=True)]
        view.kinds.update(kinds)
        if not kinds:  # a client that asks for what isn't there has no others forgotten
            view.filled = True
            self._empty[criteria] = view
            return view
        self._make_room(view.size)
        self._views[criteria] = view
        try:
            for member in self.members(view):
                view.add(member)
                self._give_way(False)
        except BaseException:
            self._forget(criteria, view)
            raise
        view.filled = True
        return view

    def _make_ring(self, view: View[M], tier: int) -> Ring[M]:
        ring = view.rings[tier] = Ring(self._finds[tier], self._unit)
        try:
            for member in self.members(view):
                if member.tier == tier:
                    ring.add(member)
                self._give_way(False)
        except BaseException:
            view.rings.pop(tier, None)
            raise
        ring.filled = True
        return ring

    def _make_room(self, size: int) -> None:
        entries = size + sum(view.size for view in self._views.values())
        while (oldest := self._views.oldest()) is not None and (
            len(self._views) >= self.max_views
            or entries > max(self.max_views_of_one * len(self._slots), 10_000)
        ):
            entries -= oldest[1].size
            self._forget(*oldest)

    def _forget(self, criteria: Criteria, view: View[M]) -> None:
        self._views.discard(criteria)
        self._latest = None, None
        for kind in view.kinds:
            kind.views.remove(view)
        view.kinds.clear()
