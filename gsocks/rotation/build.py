"""From what people write to what runs: the same for a config file and for a Python program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from gsocks.checks import Checks, CheckSettings
from gsocks.crypto import Key, KeyRing
from gsocks.dial import Resolver
from gsocks.errors import ConfigError
from gsocks.exits import Exit, ExitSpec, Ground, make_exit
from gsocks.limits import Timeouts
from gsocks.rotation.health import HealthSettings
from gsocks.rotation.policy import make_policy
from gsocks.rotation.roster import Offer
from gsocks.rotation.session import Sessions
from gsocks.rules import Rules
from gsocks.throttle import Throttle
from gsocks.users import Users
from gsocks.ways_out import WaysOut

#: a URL, a mapping with a ``url``, a parsed one, or any object that fulfils Exit
SomeExit: TypeAlias = str | Mapping[str, object] | ExitSpec | Exit
SomeRules: TypeAlias = Rules | Iterable[str] | None
SomeUsers: TypeAlias = Throttle | Users | Mapping[str, str] | None
SomeKeys: TypeAlias = KeyRing | Mapping[str, Key | str]


def make_ways_out(
    exits: WaysOut | Iterable[SomeExit],
    rules: SomeRules = None,
    *,
    rotate: str = "round_robin",
    timeouts: Timeouts = Timeouts(),
    pool_size: int = 8,
    pool_max_idle: float = 300.0,
    health: HealthSettings = HealthSettings(),
    checks: CheckSettings = CheckSettings(),
    sessions: Sessions | None = None,
    tries: int = 3,
    ground: Ground | None = None,
) -> WaysOut:
    """The exits and the rules behind a door.

    ``rules`` None: private addresses are denied and the rest is allowed.  ``rotate``: the policy
    by which an exit is chosen, one of :data:`gsocks.rotation.policy.POLICIES`.  ``health``: when
    an exit is given up for a while; ``checks``: how exits are found that are down;
    ``sessions``: for how long a session keeps its exit; ``tries``: how many exits a request may
    try.  ``ground``: what the exits stand on, and may be given to later ones too
    (:func:`make_offers`); its rules, timeouts and pool then count.  Raises ConfigError.
    """
    if isinstance(exits, WaysOut):
        return exits
    if ground is None:
        ground = Ground(
            make_rules(rules),
            Resolver(),
            timeouts=timeouts,
            pool_size=pool_size,
            pool_max_idle=pool_max_idle,
        )
    policy = make_policy(rotate, ground.random)
    ways_out = WaysOut(
        make_offers(exits, ground),
        ground.rules,
        policy=policy,
        timeout=ground.timeouts.connect,
        tries=tries,
        health=health,
        sessions=sessions,
        random=ground.random,
    )
    if checks.urls:
        ways_out.accompany(Checks(ways_out.roster, checks, ground.random, trust=ground.trust))
    return ways_out


def make_offers(
    exits: Iterable[SomeExit], ground: Ground, now: WaysOut | None = None
) -> list[Offer]:
    """What :meth:`WaysOut.update` takes, for exits on the same ground as those of before.

    Those that ``now`` has already are not made again.  Raises ConfigError.
    """
    known = {member.key: member.exit for member in now.roster} if now is not None else {}
    return [_offer(entry, ground, known) for entry in exits]


def make_rules(rules: SomeRules) -> Rules:
    """Rules from their lines.  Raises ConfigError."""
    if rules is None:
        return Rules.default()
    return rules if isinstance(rules, Rules) else Rules.parse(rules)


def make_logins(users: SomeUsers) -> Throttle | None:
    """Who may come in, and not by trying; None leaves the door open.  Raises ConfigError."""
    if users is None or isinstance(users, Throttle):
        return users
    known = Users(users) if isinstance(users, Mapping) else users
    return Throttle(known.verify, users=known)


def make_keys(keys: SomeKeys) -> KeyRing:
    """A server's keys, from names and keys or their base64.  Raises ConfigError."""
    if isinstance(keys, KeyRing):
        return keys
    if not keys:
        raise ConfigError("keys: a server needs at least one (gsocks keygen makes one)")
    return KeyRing(
        {name: key if isinstance(key, Key) else Key.parse(key) for name, key in keys.items()}
    )


def _offer(entry: SomeExit, ground: Ground, known: Mapping[object, Exit]) -> Offer:
    if isinstance(entry, (str, Mapping)):
        entry = ExitSpec.parse(entry)
    if isinstance(entry, ExitSpec):
        return Offer(
            known.get(entry) or make_exit(entry, ground),
            weight=entry.weight,
            max_connections=entry.max_connections,
            requests_per_minute=entry.requests_per_minute,
            name=entry.name,
            tags=entry.tags,
            country=entry.country,
            any_country=entry.any_country,
            key=entry,
        )
    return Offer(entry)
