"""The health of the exits: who is out, for how long, and who is asked when nobody is well.

What requests meet is passive health: so many failures in a row put an exit out for a time, which
is longer each time that it comes back and fails again.  Whose fault a failure is, errors.py says.
What checks.py finds is active health: an exit is down for as long as its checks fail.

Nothing here opens anything or reads a clock: ``now`` is monotonic seconds, and chance is handed
in.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple, Protocol, TypeVar

from gsocks.address import canonical_host


class HealthSettings(NamedTuple):
    """The bounds of passive health."""

    #: failures in a row that put an exit out
    failures: int = 3
    #: seconds that an exit is out at most for the first time, and twice that each next time
    base: float = 300.0
    #: seconds that it is out at most
    longest: float = 3600.0
    #: requests that may be on their way through an exit while nothing shows that it works
    unproven: int = 4
    #: the share of the exits that requests may put out
    most_out: float = 0.5


class Health:
    """How one exit does, or how it does for one destination."""

    __slots__ = (
        "_chance",
        "_down_since",
        "_news_at",
        "_on_probation",
        "_settings",
        "asking",
        "ejections",
        "failures",
        "has_worked",
        "out_until",
        "proven",
    )

    def __init__(self, settings: HealthSettings, chance: Random) -> None:
        self._settings = settings
        self._chance = chance
        #: requests that are on their way through it, counted by whoever sends them
        self.asking = 0
        #: failures in a row, since it is not out
        self.failures = 0
        #: how often in a row it was put out
        self.ejections = 0
        #: whether its last news was good
        self.proven = False
        #: whether it ever had good news
        self.has_worked = False
        #: when it is back; infinity while it is down, and in the past if it is not out
        self.out_until = -math.inf
        #: when it had its last success, or was put out
        self._news_at = -math.inf
        self._down_since: float | None = None
        self._on_probation = False

    # --- what it meets ----------------------------------------------------------------------

    def succeeded(self, now: float) -> None:
        """A request got through: all is forgiven, and it is back if it was out."""
        self._recover(now)
        self.failures = 0
        self.ejections = 0
        self._on_probation = False

    def failed(
        self, now: float, among: Iterable[Health] | None = None, *, began: float = math.inf
    ) -> bool:
        """A request failed by its fault; whether that puts it out.

        ``among``: all exits, this one too, of which only a share may be out; they are gone
        through only if this one should go out.  None: there is no such bound.  ``began``: when
        the request was put to it; it counts for nothing if newer is known.
        """
        if self.knows_newer(began):
            return False
        self.proven = False
        if self.is_out(now):
            # Of a request that began before, or that was tried in despair: it is out already.
            return False
        self.failures += 1
        # An exit that has come back is on probation: one more is one too many.
        if self.failures < (1 if self._on_probation else self._settings.failures):
            return False
        if among is not None and not _is_room(among, self._settings.most_out, now):
            return False
        self._put_out(now)
        return True

    def checked(self, ok: bool, now: float) -> None:
        """What active checks have found.

        Good news bring it back at once, but on probation if requests had put it out: what a
        check can reach says little about what they want.  For the same reason their failures
        stay counted.
        """
        if ok:
            self._recover(now)
            return
        self.proven = False
        if self._down_since is None:
            self._down_since = now
        self.out_until = math.inf

    # --- how it stands ----------------------------------------------------------------------

    def is_out(self, now: float) -> bool:
        """Whether it is better not asked."""
        return now < self.out_until

    def knows_newer(self, began: float) -> bool:
        """Whether it had a success, or was put out, after a request ``began``.

        What fails by silence is old news by then.
        """
        return began < self._news_at

    @property
    def is_down(self) -> bool:
        """Whether it is out because its checks fail."""
        return self._down_since is not None

    @property
    def is_busy(self) -> bool:
        """Whether it has enough to do for one of which nothing good is known.

        A dead exit that is silent would take many requests until the first of them fails.
        """
        return not self.proven and self.asking >= self._settings.unproven

    @property
    def badness(self) -> tuple[float, float]:
        """The order among those that are out, the least bad first: who is back soonest.

        Those that are down come last, the latest of them first.
        """
        return self.out_until, -(self._down_since or 0.0)

    def state(self, now: float) -> str:
        """One word for people.

        ``down``: its checks fail; ``out``: requests have put it out; ``probation``: it is back
        from that, and has had no success yet; ``shaky``: it has failed lately, but not often
        enough; ``unproven``: nothing good is known yet; ``ok``.
        """
        if self.is_down:
            return "down"
        if self.is_out(now):
            return "out"
        if self._on_probation:
            return "probation"
        if self.failures:
            return "shaky"
        return "ok" if self.has_worked else "unproven"

    def _recover(self, now: float) -> None:
        self.proven = self.has_worked = True
        self._news_at = now
        self._down_since = None
        self.out_until = min(self.out_until, now)

    def _put_out(self, now: float) -> None:
        # Full jitter: exits that went out together don't come back together.
        most = min(self._settings.longest, self._settings.base * 2.0 ** min(self.ejections, 64))
        self.out_until = now + self._chance.uniform(0, most)
        self.failures = 0
        self.ejections += 1
        self._on_probation = True
        self._news_at = now


# --- many exits -------------------------------------------------------------------------------


def _is_room(among: Iterable[Health], most_out: float, now: float) -> bool:
    """Whether one more may be put out by requests.

    If many fail at once then it is hardly they who are ill, and the rest would drown in what
    they had to carry (Envoy, outlier_detection.max_ejection_percent).  Those that are down don't
    count: the share is one of the exits that may be well.
    """
    standing = out = 0
    for health in among:
        if not health.is_down:
            standing += 1
            out += health.is_out(now)
    return out + 1 <= most_out * standing


class HasHealth(Protocol):
    """An exit that may be asked."""

    @property
    def health(self) -> Health:
        """How it does."""


class HasName(Protocol):
    """An exit that has a name."""

    @property
    def name(self) -> str:
        """Its name, which is no other's."""


M = TypeVar("M", bound=HasHealth)
N = TypeVar("N", bound=HasName)
T = TypeVar("T")

#: if all exits are out, the quarter of them that is the least bad is tried, and no fewer than this
_FEW = 4


def usable(members: Sequence[M], now: float) -> Sequence[M]:
    """Those of ``members`` that are better asked than the others, in their order.

    They are not out, and not unproven and busy; where that leaves nobody, the busy ones too; and
    where all are out, the least bad.  Empty only if ``members`` is.
    """
    standing = [each for each in members if not each.health.is_out(now)]
    if not standing:
        return _least_bad(members, [each.health.badness for each in members])
    return [each for each in standing if not each.health.is_busy] or standing


def _least_bad(members: Sequence[T], badness: Sequence[tuple[float, float]]) -> Sequence[T]:
    order = sorted(range(len(members)), key=badness.__getitem__)
    return [members[each] for each in sorted(order[: max(_FEW, len(order) // 4)])]


# --- one exit, one destination ----------------------------------------------------------------


def domain_of(host: str) -> str:
    """What a destination's health is kept under: its host, as a name or an IP address.

    Not the domain that is registered (eTLD+1).  That takes the Public Suffix List, which must be
    kept up to date; the hosts of one owner often stand with different companies, which ban each
    for itself; and a report is about the host that it names.  Raises BadAddress.
    """
    return canonical_host(host).rstrip(".")


class _Pair(Health):
    """How one exit does for one domain."""

    __slots__ = ("banned_until", "latest")

    def __init__(self, settings: HealthSettings, chance: Random) -> None:
        super().__init__(settings, chance)
        self.banned_until = -math.inf
        #: when something was last told of it
        self.latest = -math.inf

    @property
    def back(self) -> float:
        return max(self.out_until, self.banned_until)


class Domains:
    """Which exits don't do for which domains, though they may be well for all others.

    Fed by what somebody says who has seen an answer: a scraper that was asked for a captcha, an
    HTTP status; and by connections through which nothing came back.  That an exit can't connect is
    never counted here.

    ``most``: pairs of exit and domain that are remembered; those of which nothing was told for
    the longest time are forgotten.
    """

    #: seconds after which a pair is forgotten of which nothing was told
    FORGOTTEN_AFTER = 24 * 3600.0

    def __init__(self, settings: HealthSettings, chance: Random, *, most: int = 100_000) -> None:
        self._settings = settings
        self._chance = chance
        self._most = most
        # (domain, name), in the order in which something was told of them
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()
        self._names: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def failed(self, name: str, domain: str, now: float) -> bool:
        """The exit ``name`` did not do for ``domain``; whether it is out for it from now on."""
        return self._pair(name, domain, now).failed(now)

    def succeeded(self, name: str, domain: str, now: float) -> None:
        """It did: what was counted against it is forgiven.  A ban stays."""
        pair = self._pairs.get((domain, name))
        if pair is None:
            return
        if pair.banned_until > now:
            pair.succeeded(now)
        else:
            self._forget(domain, name)

    def ban(self, name: str, domain: str, until: float, now: float) -> None:
        """The exit is not to be asked for that domain until then."""
        self._pair(name, domain, now).banned_until = until

    def unban(self, name: str, domain: str) -> None:
        """Forget all that is held against it for that domain."""
        if (domain, name) in self._pairs:
            self._forget(domain, name)

    def is_out(self, name: str, domain: str, now: float) -> bool:
        """Whether the exit is better not asked for that domain."""
        pair = self._pairs.get((domain, name))
        return pair is not None and now < pair.back

    def out_for(self, domain: str, now: float) -> Collection[str]:
        """The names of all exits that are better not asked for that domain."""
        names = self._names.get(domain, ())
        return {name for name in names if now < self._pairs[domain, name].back}

    def usable(self, members: Sequence[N], domain: str, now: float) -> Sequence[N]:
        """Those of ``members`` that are better asked for that domain, in their order.

        Where all are out for it, the least bad.  Empty only if ``members`` is.
        """
        out = self.out_for(domain, now)
        if not out:
            return members
        return [each for each in members if each.name not in out] or _least_bad(
            members, [(self._pairs[domain, each.name].back, 0.0) for each in members]
        )

    def listed(self, now: float) -> Iterator[tuple[str, str, str, float]]:
        """Every pair that is remembered: exit, domain, its state, and when it is back."""
        for (domain, name), pair in self._pairs.items():
            state = "banned" if now < pair.banned_until else pair.state(now)
            yield name, domain, state, pair.back

    def _pair(self, name: str, domain: str, now: float) -> _Pair:
        """The pair, of which something is told now."""
        key = (domain, name)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Pair(self._settings, self._chance)
            self._names.setdefault(domain, set()).add(name)
        pair.latest = now
        self._pairs.move_to_end(key)
        self._forget_old(now)
        return pair

    def _forget_old(self, now: float) -> None:
        while self._pairs:
            key, oldest = next(iter(self._pairs.items()))
            kept_until = max(oldest.latest + self.FORGOTTEN_AFTER, oldest.banned_until)
            if len(self._pairs) <= self._most and now < kept_until:
                return
            self._forget(*key)

    def _forget(self, domain: str, name: str) -> None:
        del self._pairs[domain, name]
        names = self._names[domain]
        names.discard(name)
        if not names:
            del self._names[domain]
