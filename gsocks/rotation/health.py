"""The health of the exits: which are ejected, for how long, and which are tried if all are.

An exit that has failed by itself so many times in a row is ejected for a time, which is longer each
time that the exit returns and fails again.  Whose fault a failure is, and what other evidence
ejects an exit, rotation/evidence.py decides.  Active health follows from the checks of
rotation/checks.py: an exit is down for as long as they fail.

Nothing here does I/O or reads a clock: ``now`` is monotonic seconds, and randomness is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import IPv6Network
from random import Random
from typing import NamedTuple, Protocol, TypeVar

from gsocks.address import Address, canonical_host
from gsocks.backoff import Backoff
from gsocks.lru import LruCache
from gsocks.request import Request
from gsocks.settings import HealthSettings

#: seconds for which an exit that was down is left out after a restart, unless a check passes before
RECHECK = 60.0


class HealthState(NamedTuple):
    """What of an exit's health outlives the process.

    ``ejected_until``: monotonic seconds; of an exit whose checks fail, when that has to show again.
    """

    has_worked: bool
    failures: int
    ejections: int
    on_probation: bool
    ejected_until: float


#: before any time; one object for all exits
_NEVER = -math.inf


def _always() -> bool:
    return True


class Health:
    """The health of one exit, or of one exit for one destination."""

    __slots__ = (
        "_before",
        "_chance",
        "_changed_at",
        "_down_since",
        "_on_probation",
        "_settings",
        "being_probed",
        "ejected_until",
        "ejections",
        "failures",
        "has_proof",
        "has_worked",
        "in_flight",
        "is_doubted",
        "proven",
    )

    def __init__(self, settings: HealthSettings, chance: Random) -> None:
        self._settings = settings
        self._chance = chance
        #: requests that wait for the exit to connect them, or for the first byte behind it,
        #: counted by the roster
        self.in_flight = 0
        #: whether a connect probe of it is under way, which is to spare requests the same wait
        self.being_probed = False
        #: own failures in a row since it was last ejected
        self.failures = 0
        #: ejections in a row, without a success in between
        self.ejections = 0
        #: whether its last result was a success
        self.proven = False
        #: whether it has ever had a success
        self.has_worked = False
        #: whether it has had a success or answered a probe since it was last ejected
        self.has_proof = False
        #: whether it has failed at several destinations in a row of which nothing else is known
        self.is_doubted = False
        #: when its ejection ends; infinity while it is down, in the past if it is not ejected
        self.ejected_until = _NEVER
        #: when it had its last success or was ejected
        self._changed_at = _NEVER
        self._down_since: float | None = None
        self._on_probation = False
        #: what it was before it was ejected on the word of one client, if it is that
        self._before: HealthState | None = None

    # --- results ----------------------------------------------------------------------------

    def succeeded(self, now: float) -> None:
        """A request was served: reset all counts, and end an ejection."""
        self._recover(now)
        self._before = None
        self.failures = self.ejections = 0
        self._on_probation = False

    def connected(self) -> None:
        """The exit says that a request is connected, which proves no more than that it speaks its
        protocol: the row of its own failures ends."""
        self.failures = 0

    def failed(
        self, now: float, may_eject: Callable[[], bool] = _always, *, began: float = math.inf
    ) -> bool:
        """A request failed by the exit's own fault; returns whether that ejects it.

        ``may_eject``: whether another exit may be ejected; called only if this one is due.
        ``began``: when the request was sent to the exit; the failure is ignored if there is a newer
        result.
        """
        if self.knows_newer(began):
            return False
        self.proven = False
        if self.is_ejected(now):
            # A request that began before the ejection, or that was tried because all are ejected.
            return False
        self.failures += 1
        if self.failures < self.limit or not may_eject():
            return False
        self.eject(now)
        return True

    def eject(self, now: float, *, by_one_client: bool = False) -> None:
        """Eject it: for a time that doubles with each ejection without a success in between.

        ``by_one_client``: no other client has seen it fail, so that :meth:`pardon` may follow.
        """
        if not by_one_client:
            self._before = None
        elif self._before is None:
            self._before = self.saved(now)
        # Full jitter: exits that are ejected together don't return together.
        backoff = Backoff(self._settings.base, self._settings.longest, jitter=(0.0, 1.0))
        self.ejected_until = now + backoff.delay(self.ejections, self._chance)
        self.failures = 0
        self.ejections += 1
        self.proven = self.has_proof = self.is_doubted = False
        self._on_probation = True
        self._changed_at = now

    def pardon(self) -> bool:
        """End what one client alone has said of it; False if others have said it too."""
        before, self._before = self._before, None
        if before is None or self.is_down:
            return False
        self.proven = self.has_proof = before.has_worked
        self.failures, self.ejections = before.failures, before.ejections
        self._on_probation = before.on_probation
        self.ejected_until = before.ejected_until
        return True

    def checked(self, ok: bool, now: float) -> None:
        """The result of an active check.

        A success ends an ejection at once, but the exit is on probation if requests had ejected it:
        a check page may be reachable where their destinations are not.  For the same reason the
        failures of requests stay counted.
        """
        if ok:
            self._recover(now)
            return
        self.proven = self.has_proof = False
        if self._down_since is None:
            self._down_since = now
        self.ejected_until = math.inf

    def probed(self, ok: bool, now: float) -> None:
        """The result of a connect probe of an exit that has yet to serve a request.

        A failure is as that of an active check.  A success shows no more than that the exit is
        there: it ends no ejection by requests.
        """
        if not ok:
            self.checked(False, now)
            return
        self.failures = 0
        self.has_proof = True
        if self._down_since is not None:
            self._down_since = None
            self.ejected_until = min(self.ejected_until, now)

    # --- state ------------------------------------------------------------------------------

    def is_ejected(self, now: float) -> bool:
        """Whether requests have ejected it, or it is down."""
        return now < self.ejected_until

    def knows_newer(self, began: float) -> bool:
        """Whether it had a success or was ejected after a request ``began``.

        A request that fails by a timeout reports late.
        """
        return began < self._changed_at

    @property
    def limit(self) -> int:
        """How many failures eject it: on probation, after an ejection, the first one."""
        return 1 if self._on_probation else self._settings.failures

    @property
    def is_down(self) -> bool:
        """Whether it is ejected because its checks fail."""
        return self._down_since is not None

    @property
    def is_busy(self) -> bool:
        """Whether an exit without a recent success has as many requests in flight as it may have.

        A dead exit that does not answer would take many requests before the first of them fails.
        While it is being probed it may have none.
        """
        if self.proven:
            return False
        return self.being_probed or self.in_flight >= self._settings.unproven

    @property
    def sort_key(self) -> tuple[float, float]:
        """The order among ejected exits: the one whose ejection ends first comes first.

        Exits that are down come last, the one that went down last first.
        """
        return self.ejected_until, -(self._down_since or 0.0)

    def state(self, now: float) -> str:
        """The state in one word, for status pages and logs.

        ``down``: its checks fail; ``ejected``: requests have ejected it; ``probation``: the
        ejection has ended, and it has had no success since; ``degraded``: it has failed since its
        last success, but not often enough; ``unproven``: it has had no success yet, and has not
        answered a probe; ``ok``.
        """
        if self.is_down:
            return "down"
        if self.is_ejected(now):
            return "ejected"
        if self._on_probation:
            return "probation"
        if self.failures or self.is_doubted:
            return "degraded"
        return "ok" if self.has_worked or self.has_proof else "unproven"

    def saved(self, now: float) -> HealthState:
        """What is to be remembered, and told to others that serve other clients."""
        if self._before is not None and not self.is_down:
            return self._before
        until = now + RECHECK if self.is_down else self.ejected_until
        return HealthState(
            self.has_worked, self.failures, self.ejections, self._on_probation, until
        )

    def restore(self, saved: HealthState, now: float) -> None:
        """Go on from what was remembered.

        No ejection lasts longer than the settings allow, whatever the clock has done meanwhile.
        """
        self.has_worked = self.has_proof = self.proven = saved.has_worked
        self.failures, self.ejections = saved.failures, saved.ejections
        self._on_probation = saved.on_probation
        if saved.ejected_until > now:
            self.proven = self.has_proof = False
            self.ejected_until = min(saved.ejected_until, now + self._settings.longest)

    def hear(self, told: HealthState, now: float) -> None:
        """Take what another process knows of it, by what its own clients have seen.

        Failures that have led to nothing yet stay counted here.  As for :meth:`restore`, no
        ejection lasts longer than the settings allow.
        """
        self._before = None
        self.has_worked = self.has_worked or told.has_worked
        self.ejections, self._on_probation = told.ejections, told.on_probation
        if told.ejected_until > now:
            self.proven = self.has_proof = self.is_doubted = False
            self.failures = 0
            self.ejected_until = min(told.ejected_until, now + self._settings.longest)
        else:
            self._down_since = None
            self.ejected_until = min(self.ejected_until, now)
            self.has_proof = self.has_proof or told.has_worked
            self.proven = self.proven or (told.has_worked and not self.failures)
        self._changed_at = now

    def _recover(self, now: float) -> None:
        self.proven = self.has_worked = self.has_proof = True
        self.is_doubted = False
        self._changed_at = now
        self._down_since = None
        if self.ejected_until > now:
            self.ejected_until = now


# --- many exits -------------------------------------------------------------------------------


class HasHealth(Protocol):
    """An exit with a health."""

    @property
    def health(self) -> Health:
        """Its health for all destinations."""


class HasName(Protocol):
    """An exit with a name."""

    @property
    def name(self) -> str:
        """Its name, unique among all exits."""


M = TypeVar("M", bound=HasHealth)
N = TypeVar("N", bound=HasName)
T = TypeVar("T")

#: if all exits are ejected, a quarter of them is tried all the same, and no fewer than this
_MIN_LEAST_BAD = 4


def usable(members: Sequence[M], now: float) -> Sequence[M]:
    """The members that are neither ejected nor busy, in their order.

    If there are none, the busy ones; if all are ejected, the least bad (:attr:`Health.sort_key`).
    Empty only if ``members`` is.
    """
    not_ejected = [each for each in members if not each.health.is_ejected(now)]
    if not not_ejected:
        return _least_bad(members, [each.health.sort_key for each in members])
    return [each for each in not_ejected if not each.health.is_busy] or not_ejected


def _least_bad(members: Sequence[T], sort_key: Sequence[tuple[float, float]]) -> Sequence[T]:
    order = sorted(range(len(members)), key=sort_key.__getitem__)
    return [members[each] for each in sorted(order[: max(_MIN_LEAST_BAD, len(order) // 4)])]


# --- one exit, one destination or client ------------------------------------------------------


def domain_of(host: str) -> str:
    """The key of a destination's health: its canonical host name or IP address.

    Not the registered domain (eTLD+1): that takes the Public Suffix List, which has to be kept up
    to date; the hosts of one owner are often run by different companies, each with bans of its own;
    and a report is about the host that it names.  Raises BadAddress.
    """
    return canonical_host(host).rstrip(".")


def destination_of(dest: Address) -> str:
    """The key of failures to reach a destination: its host as of :func:`domain_of`, and its port.

    With the port, since an exit that serves no other port than 443 works for its host.
    """
    return f"{domain_of(dest.host)}:{dest.port}"


def client_of(request: Request) -> str:
    """Who sends a request: the key of evidence that comes from one client.

    The user, or without users the client's address: not the session, of which one client may have
    any number.  Of IPv6 the first 64 bits, since one machine has all the rest.
    """
    if request.user is not None:
        return f"user {request.user}"
    host = request.client.rpartition(":")[0]
    if not host.startswith("["):
        return f"client {host}"
    return f"client {IPv6Network((host[1:-1], 64), strict=False)}"


def scopes_of(request: Request) -> Iterator[str]:
    """All keys under which an exit may be ejected or banned for a request.

    The client, the destination, its domain and, of a name, each parent of that.
    """
    yield client_of(request)
    dest = request.dest
    domain = domain_of(dest.host)
    yield f"{domain}:{dest.port}"
    yield domain
    if dest.ip is None:
        while "." in domain:
            domain = domain.partition(".")[2]
            yield domain


class _PairHealth(Health):
    """The health of one exit for one domain, destination or client."""

    __slots__ = ("banned_until", "reported_at")

    def __init__(self, settings: HealthSettings, chance: Random) -> None:
        super().__init__(settings, chance)
        self.banned_until = -math.inf
        #: when it was last reported on
        self.reported_at = -math.inf

    @property
    def usable_at(self) -> float:
        """When ejection and ban are over, in monotonic seconds."""
        return max(self.ejected_until, self.banned_until)


class DomainHealth:
    """The health of every exit for single domains: one that works otherwise may be banned there.

    It follows from reports of programs that have seen the answers (a captcha, an HTTP status), for
    a domain; and from failures to reach a destination that others reach, for that destination
    (:func:`destination_of`), or for the only client that has seen them (:func:`client_of`).

    ``max_pairs``: pairs of exit and domain that are remembered; the one whose last report is the
    oldest is forgotten first.
    """

    #: seconds without a report after which a pair is forgotten
    forget_after = 24 * 3600.0

    def __init__(
        self, settings: HealthSettings, chance: Random, *, max_pairs: int = 100_000
    ) -> None:
        self._settings = settings
        self._chance = chance
        # by domain and name; a report is a use
        self._pairs: LruCache[tuple[str, str], _PairHealth] = LruCache(max_pairs)
        #: by domain and the name of the exit; empty while nothing is known.  To be read only
        self.by_domain: dict[str, dict[str, _PairHealth]] = {}
        #: pairs of name and domain that have changed, for a state file; None: there is none
        self.changed: set[tuple[str, str]] | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    def keys(self) -> list[tuple[str, str]]:
        """The pairs of exit and domain of which something is known."""
        return [(name, domain) for domain, name in self._pairs]

    def failed(self, name: str, domain: str, now: float, *, began: float = math.inf) -> bool:
        """A failure of the exit ``name`` for ``domain``; returns whether it is ejected for it.

        ``began``: when the request was sent to the exit; of requests that were in flight at the
        same time one failure counts.
        """
        known = self._pairs.peek((domain, name))
        if known is not None and began < known.reported_at:
            return False
        return self._pair(name, domain, now).failed(now)

    def succeeded(self, name: str, domain: str, now: float) -> None:
        """A success: reset the failures and end an ejection.  A ban stays."""
        pair = self._pairs.peek((domain, name))
        if pair is None:
            return
        if pair.banned_until > now:
            pair.succeeded(now)
        else:
            self._forget(domain, name)

    def ban(self, name: str, domain: str, until: float, now: float) -> None:
        """Don't use the exit for that domain until then."""
        self._pair(name, domain, now).banned_until = until

    def unban(self, name: str, domain: str) -> None:
        """End a ban and an ejection of the exit for that domain."""
        if (domain, name) in self._pairs:
            self._forget(domain, name)

    def has(self, domain: str) -> bool:
        """Whether something is known of any exit for that domain."""
        return domain in self.by_domain

    def is_ejected(self, name: str, domain: str, now: float) -> bool:
        """Whether the exit is ejected or banned for that domain."""
        pair = self._pairs.peek((domain, name))
        return pair is not None and now < pair.usable_at

    def ejected_for(self, domain: str, now: float) -> Collection[str]:
        """The names of all exits that are ejected or banned for that domain."""
        pairs = self.by_domain.get(domain, {})
        return {name for name, pair in pairs.items() if now < pair.usable_at}

    def usable(self, members: Sequence[N], domain: str, now: float) -> Sequence[N]:
        """The members that are neither ejected nor banned for that domain, in their order.

        If there are none, the least bad.  Empty only if ``members`` is.
        """
        pairs = [self._pairs.peek((domain, each.name)) for each in members]
        usable_at = [-math.inf if pair is None else pair.usable_at for pair in pairs]
        return [
            each for each, at in zip(members, usable_at, strict=True) if at <= now
        ] or _least_bad(members, [(at, 0.0) for at in usable_at])

    def listed(self, now: float) -> Iterator[tuple[str, str, str, float]]:
        """Every remembered pair: exit, domain, state, and when the exit is usable there again."""
        for (domain, name), pair in self._pairs.items():
            state = "banned" if now < pair.banned_until else pair.state(now)
            yield name, domain, state, pair.usable_at

    def _pair(self, name: str, domain: str, now: float) -> _PairHealth:
        """The pair, which is reported on now."""
        key = (domain, name)
        pair = self._pairs.get(key)
        if pair is None:
            pair = _PairHealth(self._settings, self._chance)
            self.by_domain.setdefault(domain, {})[name] = pair
            evicted = self._pairs.put(key, pair)
            if evicted is not None:
                self._unlist(*evicted)
        pair.reported_at = now
        self._forget_old(now)
        if self.changed is not None:
            self.changed.add((name, domain))
        return pair

    def _forget_old(self, now: float) -> None:
        while (oldest := self._pairs.oldest()) is not None:
            key, pair = oldest
            if now < max(pair.reported_at + self.forget_after, pair.banned_until):
                return
            self._forget(*key)

    def saved(self, name: str, domain: str, now: float) -> tuple[HealthState, float] | None:
        """The health of a pair and until when it is banned; None: nothing is remembered of it."""
        pair = self._pairs.peek((domain, name))
        return None if pair is None else (pair.saved(now), pair.banned_until)

    def restore(
        self, name: str, domain: str, saved: HealthState, banned_until: float, now: float
    ) -> None:
        """Go on from what was remembered of a pair."""
        pair = self._pair(name, domain, now)
        pair.restore(saved, now)
        pair.banned_until = banned_until

    def _forget(self, domain: str, name: str) -> None:
        if self.changed is not None:
            self.changed.add((name, domain))
        del self._pairs[domain, name]
        self._unlist(domain, name)

    def _unlist(self, domain: str, name: str) -> None:
        pairs = self.by_domain[domain]
        del pairs[name]
        if not pairs:
            del self.by_domain[domain]
