"""Exit groups, rules, users and keys from their written form, for config files and programs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

from gsocks.access.rules import Rules
from gsocks.access.throttle import Throttle
from gsocks.access.users import Users
from gsocks.crypto import Key, KeyRing
from gsocks.errors import ConfigError
from gsocks.exits import Exit, ExitDeps, ExitSpec, make_exit
from gsocks.messages import shown
from gsocks.net.resolve import Resolver
from gsocks.rotation.address_probes import AddressProbes
from gsocks.rotation.checks import Checks
from gsocks.rotation.connect_probes import ConnectProbes
from gsocks.rotation.geo import Countries, open_countries
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.policy import make_policy
from gsocks.rotation.roster import Offer
from gsocks.rotation.session import Sessions
from gsocks.settings import (
    CheckSettings,
    HealthSettings,
    PerHostSettings,
    PoolSettings,
    ReuseSettings,
    Timeouts,
)
from gsocks.turns import give_way

log = logging.getLogger("gsocks.rotation")

#: a URL, a mapping with a ``url``, a parsed spec, or any object with the methods of Exit
SomeExit: TypeAlias = str | Mapping[str, object] | ExitSpec | Exit
SomeRules: TypeAlias = Rules | Iterable[str] | None
SomeUsers: TypeAlias = Throttle | Users | Mapping[str, str] | None
SomeKeys: TypeAlias = KeyRing | Mapping[str, Key | str]

#: exits that are made, in some 10 us each, between two looks at the time
_STEPS = 16

#: so many exits that come from no list are believed to work until they fail
FEW_EXITS = 16


def make_exit_group(
    exits: ExitGroup | Iterable[SomeExit],
    rules: SomeRules = None,
    *,
    rotate: str = "round_robin",
    timeouts: Timeouts = Timeouts(),
    pool: PoolSettings = PoolSettings(),
    health: HealthSettings = HealthSettings(),
    checks: CheckSettings = CheckSettings(),
    sessions: Sessions | None = None,
    reuse: ReuseSettings = ReuseSettings(),
    tries: int = 3,
    deps: ExitDeps | None = None,
    listed: bool = False,
    hedge: float | None = None,
    per_host: PerHostSettings = PerHostSettings(),
) -> ExitGroup:
    """The exits and the rules behind a listener.

    ``rules`` None: private addresses are denied and all others allowed.  ``rotate``: the policy,
    one of :data:`gsocks.rotation.policy.POLICIES`.  ``health``: when failures eject an exit;
    ``checks``: the active checks; ``sessions``: for how long a session keeps its exit; ``reuse``:
    which connections are kept for further HTTP requests; ``tries``: how many exits a request may
    try; ``listed``: whether the exits come from a list, in which many may be dead; ``hedge``: after
    how many seconds a second exit is tried, if the first one has not connected; ``per_host``: the
    limits of each exit for each host.  ``deps``: the
    dependencies of the exits, to be shared with later ones (:func:`make_offers`); its rules,
    timeouts and pool then count.  Raises ConfigError.
    """
    if isinstance(exits, ExitGroup):
        return exits
    if deps is None:
        deps = ExitDeps(
            make_rules(rules),
            Resolver(),
            timeouts=timeouts,
            pool=pool,
        )
    policy = make_policy(rotate, deps.random)
    exit_group = ExitGroup(
        make_offers(exits, deps),
        deps.rules,
        policy=policy,
        timeout=deps.timeouts.connect,
        tries=tries,
        health=health,
        sessions=sessions,
        reuse=reuse,
        random=deps.random,
        few=0 if listed else FEW_EXITS,
        hedge=hedge,
        per_host=per_host,
        own_listeners=deps.own_listeners,
    )
    roster, evidence = exit_group.roster, exit_group.evidence
    if checks.urls:
        exit_group.add_service(Checks(roster, evidence, checks, deps.random, trust=deps.trust))
    if checks.ip_urls:
        exit_group.add_service(
            AddressProbes(roster, checks, _countries(checks), deps.random, trust=deps.trust)
        )
    if checks.connect or (checks.connect is None and not checks.urls):
        few = 0 if listed or checks.connect else FEW_EXITS
        # as long as the first exit of a request has
        timeout = deps.timeouts.connect / 2
        exit_group.add_service(ConnectProbes(roster, evidence, timeout, deps.random, few=few))
    return exit_group


def _countries(checks: CheckSettings) -> Countries | None:
    """Raises ConfigError."""
    countries = open_countries(checks.geo_file)
    if countries is None:
        log.warning("outbound addresses have no country (pip install 'gsocks[geo]')")
    return countries


def make_offers(
    exits: Iterable[SomeExit], deps: ExitDeps, now: ExitGroup | None = None
) -> list[Offer]:
    """Makes what :meth:`gsocks.rotation.group.ExitGroup.update` takes, with the deps of before.

    Those that ``now`` has already are not made again.  Other greenlets run meanwhile.  Raises
    ConfigError.
    """
    if isinstance(exits, (str, Mapping)) or not isinstance(exits, Iterable):
        raise ConfigError(f"{shown(exits)} is not a list of exits (expected e.g. ['direct'])")
    known: dict[object, Exit] = {}
    made = []
    for member in now.roster if now is not None else ():
        known[member.key] = member.exit
        give_way()
    for number, entry in enumerate(exits):
        made.append(_offer(entry, deps, known))
        if not number % _STEPS:
            give_way()
    return made


def make_rules(rules: SomeRules) -> Rules:
    """Rules from their lines.  Raises ConfigError."""
    if rules is None:
        return Rules.default()
    if isinstance(rules, Rules):
        return rules
    if isinstance(rules, str):
        raise ConfigError(f"{shown(rules)} is not a list of rules (expected e.g. ['allow all'])")
    return _parsed(tuple(rules))


@lru_cache(maxsize=8)
def _parsed(lines: tuple[str, ...]) -> Rules:
    """100,000 rules take a second, and are asked for by the exits, their group and each worker."""
    return Rules.parse(lines)


def make_authenticator(users: SomeUsers) -> Throttle | None:
    """The users behind a throttle against guessing; None for no users.  Raises ConfigError."""
    if users is None or isinstance(users, Throttle):
        return users
    if isinstance(users, str):
        raise ConfigError("a text is not the users (expected names and their Argon2id hashes)")
    known = Users(users) if isinstance(users, Mapping) else users
    return Throttle(known.verify, users=known, recall=known.recall)


def make_keys(keys: SomeKeys) -> KeyRing:
    """A server's keys, from names and keys or their base64.  Raises ConfigError."""
    if isinstance(keys, KeyRing):
        return keys
    if keys and not isinstance(keys, Mapping):
        raise ConfigError("keys: expected names and keys, e.g. {'me': key}")
    if not keys:
        raise ConfigError("keys: a server needs at least one (gsocks keygen makes one)")
    return KeyRing(
        {name: key if isinstance(key, Key) else Key.parse(key) for name, key in keys.items()}
    )


def _offer(entry: SomeExit, deps: ExitDeps, known: Mapping[object, Exit]) -> Offer:
    if isinstance(entry, (str, Mapping)):
        entry = ExitSpec.parse(entry)
    if isinstance(entry, ExitSpec):
        # by position: keywords take a dictionary and a call more for each of 100,000 exits
        return Offer(
            (known.get(entry) if known else None) or make_exit(entry, deps),
            entry.weight,
            entry.max_connections,
            entry.requests_per_minute,
            entry.budget,
            entry.name,
            entry.tags,
            entry.country,
            entry.any_country,
            entry,
            entry.passes_session,
        )
    if not hasattr(entry, "connect"):
        raise ConfigError(
            f"{shown(entry)} is not an exit (expected direct, a URL such as"
            " socks5://10.0.0.7:1080, or an object with the methods of an exit)"
        )
    return Offer(entry)
