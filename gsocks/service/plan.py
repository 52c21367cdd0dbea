"""What a config would run, without running it: for ``gsocks check`` and ``gsocks exits``."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gsocks import config
from gsocks.access.explain import Explanation, explain
from gsocks.access.rules import ALLOW_ALL, ReplaceableRules, Rules, Verdict
from gsocks.access.users import Users, go_on
from gsocks.access.users_file import FileUsers
from gsocks.address import Address, IPAddress, ip_of
from gsocks.admin.routes import Role
from gsocks.admin.token import MAIN, Token, Tokens, read_or_make_token, read_token
from gsocks.crypto import Key, KeyRing
from gsocks.errors import ConfigError, ConnectFailed, StateFailed
from gsocks.exits import ExitDeps, ExitSpec
from gsocks.exits.client_tls import load as load_tls
from gsocks.keyfile import read_key, read_line
from gsocks.messages import did_you_mean
from gsocks.net.endpoint import Endpoint, UnixPath
from gsocks.net.listen import is_local
from gsocks.net.own_listeners import leads_to
from gsocks.net.resolve import Resolver
from gsocks.net.route import Route, warn_if_unusable
from gsocks.request import ANY
from gsocks.rotation.build import make_exit_group, make_rules
from gsocks.rotation.geo import open_countries
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.lists import ExitList
from gsocks.rotation.probe import ProbeTarget
from gsocks.rotation.sources import Source, UrlSource
from gsocks.rotation.watch import ExitListWatcher, read_source
from gsocks.settings import (
    PoolSettings,
    SessionSettings,
    Timeouts,
    TlsSettings,
    TracingSettings,
    TransportSettings,
)
from gsocks.transport.options import OVER_WEBSOCKET
from gsocks.transport.server import ServerTransport
from gsocks.units import format_duration

if TYPE_CHECKING:
    from gsocks.shadowsocks.accept import ServerKeys

log = logging.getLogger("gsocks")

_LOCALHOST = [ip_address("127.0.0.1"), ip_address("::1")]


def describe(path: Path, settings: config.Config) -> Iterator[str]:
    """What the config in ``path`` would run, a line each.

    Raises ConfigError for a mistake that only another file or the whole of it shows.
    """
    for part in parts_of(path, settings, ask_store=False):
        with _at(str(path)):
            yield from part


def parts_of(
    path: Path, settings: config.Config, *, ask_store: bool = True
) -> Iterator[Iterable[str]]:
    """The same in parts, each of which raises its own ConfigError, while others go on.

    ``ask_store``: whether the store that gateways share is asked whether it answers, which may take
    some seconds.
    """
    created = missing_keys(settings)
    yield _checked(refuse_loops, settings)
    yield _checked(refuse_denied, settings)
    for name, sharing in sharing_exits(settings):
        yield [f"{name}: {_listens(sharing)}, exits: those of local"]
    for name, section in sections(settings):
        for at, spec in enumerate(section.exits):
            yield _checked_exit(f"{name}.exits[{at}]", spec, created)
        yield _described(name, section, settings, created)
    local, server = settings.local, settings.server
    if local is not None:
        yield _described_users(local)
        if local.tls is not None:
            yield _described_tls(local.tls)
        if local.sessions != SessionSettings():
            yield [f"local: {_session_lifetime(local.sessions)}"]
    if server is not None:
        for key, source in server.keys.items():
            if source.file not in created:
                yield _checked_key(key, source)
        if server.keys:
            yield [f"server: keys {_first_of(server.keys)}"]
            yield _described_transport(server)
        if server.shadowsocks is not None:
            yield _described_shadowsocks(server.shadowsocks)
    if settings.state is not None and settings.state.file is not None:
        yield [_state(Path(settings.state.file))]
        if settings.admin is not None or settings.requests is not None:
            from gsocks.history.files import describe as describe_history

            yield describe_history(settings.state, settings.requests)
    if settings.dns_listener is not None:
        yield _described_dns(settings.dns_listener)
    if settings.tracing is not None:
        yield _described_tracing(settings.tracing)
    if settings.state is not None and settings.state.url is not None:
        yield _described_store(settings.state, ask_store)
    for each in created:
        yield _to_be_created("server.keys", "server", each)
    if settings.admin is not None:
        yield _described_token(token_file(settings.admin, path))
        yield _described_tokens(settings.admin)


def _checked(check: Callable[[config.Config], object], settings: config.Config) -> Iterator[str]:
    check(settings)
    yield from ()


def _checked_exit(at: str, spec: ExitSpec, created: Container[Path]) -> Iterator[str]:
    with _at(at):
        _check_files(spec, created)
    yield from ()


def _checked_key(name: str, source: config.KeySource) -> Iterator[str]:
    with _at(f"server.keys.{name}"):
        key_of(source)
    yield from ()


def _described(
    name: str, section: SomeSection, settings: config.Config, created: Container[Path]
) -> Iterator[str]:
    rules = rules_of(section)
    lists = [(each, read_source(each)) for each in section.exit_sources]
    exits = _all_exits(section, [found for _, found in lists])
    for spec in set(exits).difference(section.exits):
        _check_files(spec, created)
    yield f"{name}: {_listens(section)}, exits: {_exit_labels(section, exits)}"
    if rules.forget_self:
        yield f"{name}: rules allow this machine's public addresses ('deny self' denies them)"
    for origin, found in lists:
        if found is not None:
            yield from _skipped_entries(origin, found)
            yield from _own_listeners_in(name, settings, origin, found)


def _described_users(local: config.Local) -> Iterator[str]:
    users = make_users(local)
    if users is not None:
        yield f"local: users {_first_of(users.names) or 'none yet, so no login succeeds'}"


def _described_tls(tls: TlsSettings) -> Iterator[str]:
    check_tls(tls)
    shown = ""
    if tls.client_ca is not None:
        shown = f", certificates of clients by {tls.client_ca} ({tls.client_cert})"
    yield f"local: TLS, certificate {tls.cert}{shown}"


def _described_shadowsocks(settings: config.Shadowsocks) -> Iterator[str]:
    keys = make_shadowsocks_keys(settings)
    users = _first_of(user.name for user in keys.users)
    carries = "TCP and UDP" if settings.udp else "TCP"
    yield f"server: Shadowsocks, {settings.method}, {carries}, users {users}"


def _described_transport(server: config.Server) -> Iterator[str]:
    make_transport(server)
    if server.transport.kind != "tcp":
        yield f"server: tunnels travel in {_travel(server.transport)}"


def _described_dns(dns: config.DnsListener) -> Iterator[str]:
    check_dns_listener()
    yield f"dns_listener: asks {', '.join(map(str, dns.server))}, over TCP"


def check_dns_listener() -> None:
    """Raise ConfigError if the package that the DNS listener needs is not installed."""
    if importlib.util.find_spec("dns") is None:
        raise ConfigError("dns_listener needs the package dnspython (pip install 'gsocks[dns]')")


def _described_tracing(tracing: TracingSettings) -> Iterator[str]:
    from gsocks.history.files import check_tracing

    check_tracing()
    yield f"tracing: sent to {tracing.endpoint}"


# 32 bytes in base64
_KEY = re.compile(r"[A-Za-z0-9+/_-]{43}=?")


def _to_be_created(at: str, name: str, path: Path) -> Iterator[str]:
    """Raises ConfigError if the folder of a file that a start makes can't take it."""
    if _KEY.fullmatch(str(path)):
        raise ConfigError(f"{at}: looks like a key, where the name of a file is expected")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{at}: {path} can't be created: there is no such folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{at}: {path} can't be created: its folder can't be written")
    yield f"{name}: {path} will be created at the first start"


def _described_token(path: Path) -> Iterator[str]:
    if path.exists():
        read_token(path)
    else:
        yield from _to_be_created("admin.token_file", "admin", path)


def _described_tokens(settings: config.Admin) -> Iterator[str]:
    if found := [*more_tokens(settings)]:
        yield f"admin: tokens {', '.join(f'{each.name} ({each.role})' for each in found)}"


def explain_rules(
    settings: config.Config, dest: Address, user: str | None, resolver: Resolver
) -> Iterator[tuple[str, Explanation]]:
    """Which rules decide about a request of ``user`` for ``dest``, at each end in the config.

    Each explanation comes with the end and its user.  At a server the users are its keys: without
    the name of one, all keys are explained.  Raises ConfigError, also for an unknown user.
    """
    local, server = settings.local, settings.server
    users = make_users(local) if local is not None else None
    names = users.names if users is not None else []
    keys = list(server.keys) if server is not None else []
    if server is not None and server.shadowsocks is not None:
        keys += server.shadowsocks.users or ["shadowsocks"]
    if user is not None and user not in names and user not in keys:
        known = did_you_mean(user, [*names, *keys])
        raise ConfigError(f"no user and no key is called {user!r}{known}")
    if local is not None:
        of_local = user if user in names else None
        label = "local" if of_local is None else f"local, user {of_local}"
        yield label, _explain(local, dest, of_local, resolver)
    if server is not None:
        keys_of: dict[Explanation, list[str]] = {}
        for key in [user] if user in keys else keys:
            keys_of.setdefault(_explain(server, dest, key, resolver), []).append(str(key))
        for explanation, names_of_keys in keys_of.items():
            yield f"server, key {_first_of(names_of_keys)}", explanation
    for name, section in sections(settings):
        if isinstance(section, config.SharingSection):
            yield name, _explain(section, dest, None, resolver)


def exits_to_probe(
    settings: config.Config, timeout: float
) -> Iterator[tuple[str, ExitGroup, ProbeTarget]]:
    """For each section its name, its exits, and what they are probed with by the config's checks.

    Exits that are never used, as :func:`warn_of_own_listeners` tells, are not among them.  Lists
    are read, and fetched if need be.  ``timeout``: seconds for an exit to connect.  Raises
    ConfigError.
    """
    resolver = Resolver(settings=settings.dns)
    for name, section in sections(settings):
        watcher = ExitListWatcher(section.exits, section.exit_sources, resolver)
        try:
            exits = watcher.begin()
        finally:
            watcher.close()
        unused = warn_of_own_listeners(name, settings, exits)
        deps = replace(
            exit_deps(section, resolver),
            timeouts=Timeouts(connect=timeout, exit=timeout),
            pool=PoolSettings(size=0),
        )
        checks = section.checks
        target = ProbeTarget(
            (*checks.ip_urls, *checks.urls),
            expect=checks.expect,
            countries=open_countries(checks.geo_file),
        )
        used = (spec for spec in exits if spec not in unused)
        yield name, make_exit_group(used, deps=deps), target


# --- from the config's structs to the engine's parts ------------------------------------------


SomeSection: TypeAlias = config.Local | config.Server | config.Sharing


def sections(settings: config.Config) -> Iterator[tuple[str, SomeSection]]:
    """The sections of ``settings`` that have exits of their own, behind their names."""
    # the server first, so that a local end in the same process finds it listening
    if settings.server is not None:
        yield "server", settings.server
    if settings.local is not None:
        yield "local", settings.local
    for name, section in config.sharing_sections(settings):
        if section.has_own_exits:
            yield name, section


def sharing_exits(settings: config.Config) -> Iterator[tuple[str, config.Sharing]]:
    """The sections of ``settings`` that share the exits of ``local``, behind their names."""
    for name, section in config.sharing_sections(settings):
        if not section.has_own_exits:
            yield name, section


def shares_exits(section: config.SharingSection | None) -> bool:
    """Whether its exits are those of ``local``."""
    return section is not None and not section.has_own_exits


def rules_of(section: config.Section) -> Rules:
    """The rules of the exits of ``section``.  Raises ConfigError."""
    if isinstance(section, config.Forwards | config.DnsListener) and section.rules is None:
        return ALLOW_ALL  # its destinations are those of the config, and not of its clients
    return make_rules(section.rules)


def missing_keys(settings: config.Config) -> list[Path]:
    """The files of the server's own keys that don't exist; a start creates them."""
    server = settings.server
    sources = server.keys.values() if server is not None else ()
    return [s.file for s in sources if s.file is not None and not s.file.exists()]


def token_file(settings: config.Admin, config_file: Path) -> Path:
    """The file of the admin's token."""
    if settings.token_file is None:
        return config_file.absolute().parent / "admin.token"
    return Path(settings.token_file)


def make_tokens(settings: config.Admin, config_file: Path) -> Tokens:
    """The tokens of the admin, of which the main one is made if it is missing.

    Raises ConfigError.
    """
    main = read_or_make_token(token_file(settings, config_file))
    return Tokens([Token.of(MAIN, Role.OPERATOR, main), *more_tokens(settings)])


def more_tokens(settings: config.Admin) -> Iterator[Token]:
    """The tokens besides the main one.  Raises ConfigError."""
    for number, each in enumerate(settings.tokens):
        with _at(f"admin.tokens[{number}]"):
            role = Role.named(each.role)
            if each.sha256 is not None:
                yield Token(each.name, role, bytes.fromhex(each.sha256))
            elif each.file is not None:
                yield Token.of(each.name, role, read_token(each.file))


def exit_deps(section: config.Section, resolver: Resolver) -> ExitDeps:
    """What the exits of ``section`` need."""
    rules = rules_of(section)
    if rules is not ALLOW_ALL:
        rules = ReplaceableRules.of(rules)
    return ExitDeps(rules, resolver, timeouts=section.timeouts, pool=section.pool)


def make_users(local: config.Local, give_way: Callable[[], object] = go_on) -> Users | None:
    """The users of ``local``; None if it has none.  Raises ConfigError.

    ``give_way`` is called for each line of their file.
    """
    if local.users_file is not None:
        return FileUsers(local.users_file, local.users, give_way=give_way)
    return Users(local.users) if local.users else None


def make_key_ring(server: config.Server) -> KeyRing:
    """The keys of ``server``.  Raises ConfigError."""
    return KeyRing({name: key_of(source) for name, source in server.keys.items()})


def make_shadowsocks_keys(settings: config.Shadowsocks) -> ServerKeys:
    """The keys of Shadowsocks clients.  Raises ConfigError, also for a package that is missing."""
    # here, since most programs do without its packages
    from gsocks.shadowsocks.accept import ServerKeys
    from gsocks.shadowsocks.methods import METHODS, check_packages

    method, password = METHODS[settings.method], settings.password
    with _at("server.shadowsocks"):
        check_packages(method)
        if settings.password_file is not None:
            return ServerKeys(method, read_line(settings.password_file), settings.users)
        return ServerKeys(method, password, settings.users)


def check_tls(tls: TlsSettings) -> None:
    """Read the files of ``local.tls``.  Raises ConfigError."""
    # here, since most programs do without it
    from gsocks.inbound.tls import make_context

    with _at("local.tls"):
        make_context(tls)


def make_transport(server: config.Server) -> ServerTransport:
    """The transport of ``server``, whose certificate is read.  Raises ConfigError."""
    with _at("server.transport"):
        return ServerTransport(server.transport)


def key_of(source: config.KeySource) -> Key:
    if source.origin is not None:
        return source.origin.read()
    return read_key(source.file) if source.file is not None else Key.parse(source.key or "")


def check_reach(
    settings: config.Config,
    *,
    local: Iterable[Address],
    forwards: Iterable[Address],
    redirect: Iterable[Address],
    dns: Iterable[Address],
    admin: Iterable[Address],
) -> None:
    """Raise ConfigError if a passed socket is where other machines can reach it, and must not be.

    The listeners of each section are bound there, of ``local`` those without a login.  The config
    has answered for all others.
    """
    meant = (
        ("local", local, False, "add users, or allow_anonymous: true"),
        ("forwards", forwards, _allows_remote(settings.forwards), "allow_remote: true"),
        ("redirect", redirect, _allows_remote(settings.redirect), "allow_remote: true"),
        ("dns_listener", dns, _allows_remote(settings.dns_listener), "allow_remote: true"),
        ("admin", admin, _allows_remote(settings.admin), "allow_remote: true"),
    )
    for name, addresses, is_meant, mends in meant:
        for address in addresses:
            if not is_meant and address.ip is not None and not is_local(address):
                raise ConfigError(
                    f"{name}: the socket that was passed is at {address}, where other machines can"
                    f" reach it ({mends} if that is intended)"
                )


def _allows_remote(section: config.SharingSection | config.Admin | None) -> bool:
    return section is not None and section.allow_remote


# --- forwards that would never reach their destination -----------------------------------------


def refuse_denied(settings: config.Config) -> None:
    """Raise ConfigError for a forward that its rules deny, or that leads to itself; and for a name
    server of the DNS listener that is so.

    Neither is seen of a destination that is written as a name.
    """
    forwards, dns = settings.forwards, settings.dns_listener
    if forwards is not None:
        for leg in forwards.legs:
            _refuse_denied("forwards", forwards, settings, leg.to, f"{leg.to}, for {leg.listen},")
        if _goes_out_from_here(forwards, settings):
            _refuse_circles(forwards)
    if dns is not None:
        for server in dns.server:
            _refuse_denied("dns_listener", dns, settings, server, str(server))
        if _goes_out_from_here(dns, settings):
            _refuse_itself(dns)


def _exits_of(
    name: str, section: config.Sharing, settings: config.Config
) -> tuple[str, config.Section]:
    """The section whose exits and rules ``section`` has, behind its name."""
    if shares_exits(section) and settings.local is not None:
        return "local", settings.local
    return name, section


def _refuse_denied(
    name: str, section: config.Sharing, settings: config.Config, to: Address, told: str
) -> None:
    """Raise ConfigError if its rules deny a destination of ``section``."""
    owner, used = _exits_of(name, section, settings)
    decision = rules_of(used).before_resolving(to, None)
    if decision.verdict is Verdict.DENY:
        raise ConfigError(f"{name}: {told} is forbidden by {owner}.rules ({decision.reason})")


def _goes_out_from_here(section: config.Sharing, settings: config.Config) -> bool:
    return any(spec.scheme == "direct" for spec in _exits_of("", section, settings)[1].exits)


def _refuse_itself(dns: config.DnsListener) -> None:
    """Raise ConfigError if the DNS listener is a name server of its own."""
    for address in dns.addresses:
        here = address.ip if isinstance(address, Address) else None
        for server in dns.server:
            ips = _ips_of(server.host) if _port_of(address) == server.port else ()
            if here is not None and any(leads_to(ip, here) for ip in ips):
                raise ConfigError(f"dns_listener: {server} is the listener itself")


def _port_of(endpoint: Endpoint) -> int:
    return endpoint.port if isinstance(endpoint, Address) else 0


def _refuse_circles(forwards: config.Forwards) -> None:
    """Raise ConfigError if what is forwarded directly would come in again."""
    at_port: dict[tuple[int, bool], list[config.Leg]] = {}
    for leg in forwards.legs:
        if isinstance(leg.listen, Address) and leg.listen.port:
            at_port.setdefault((leg.listen.port, leg.route.udp), []).append(leg)
    following = {
        leg: [
            other
            for other in at_port.get((leg.to.port, leg.route.udp), ())
            for ip in _ips_of(leg.to.host)
            if _is_reached_at(ip, other)
        ]
        for leg in forwards.legs
    }
    try:
        TopologicalSorter(following).prepare()
    except CycleError as error:
        leg = error.args[1][0]
        raise ConfigError(
            f"forwards: {leg.to}, for {leg.listen}, leads back to it without end"
        ) from None


def _is_reached_at(ip: IPAddress, leg: config.Leg) -> bool:
    here = leg.listen.ip if isinstance(leg.listen, Address) else None
    return here is not None and leads_to(ip, here)


def _ips_of(host: str) -> list[IPAddress]:
    """The addresses of a host that are known without looking it up."""
    if host == "localhost":
        return list(_LOCALHOST)
    ip = ip_of(host)
    return [] if ip is None else [ip]


# --- exits that are listeners of the same config ----------------------------------------------


def refuse_loops(settings: config.Config) -> None:
    """Raise ConfigError for an exit that leads back to the section that it is in.

    That is not seen of an exit that is written with a name, which may be other addresses later:
    it is never connected to there (gsocks/net/own_listeners.py).
    """
    reached = {
        name: {to for spec in section.exits for to in _sections_at(spec, settings)}
        for name, section in sections(settings)
    }
    for name, section in sections(settings):
        for at, spec in enumerate(section.exits):
            for to in _sections_at(spec, settings):
                if name == to or name in reached[to]:
                    raise ConfigError(
                        f"{name}.exits[{at}]: {spec.label} is a listener of this config,"
                        " and its requests would come back without end"
                    )


def warn_of_own_listeners(
    name: str, settings: config.Config, exits: Iterable[ExitSpec]
) -> set[ExitSpec]:
    """Which of all exits of a section are its own listeners, after a warning in the log.

    They are of lists, since :func:`refuse_loops` has seen the others.
    """
    own = [spec for spec in exits if name in _sections_at(spec, settings)]
    if own:
        labels = _first_of(spec.label for spec in own)
        log.warning("%s: listeners of this config are never used as exits: %s", name, labels)
    return set(own)


def _sections_at(spec: ExitSpec, settings: config.Config) -> list[str]:
    """The sections that listen where an exit is first connected to."""
    nearest = spec
    while nearest.via is not None:
        nearest = nearest.via
    if nearest.scheme == "direct":
        return []
    if nearest.socket is not None:
        return [name for name, path in _listening_files(settings) if path == nearest.socket]
    at_port = [
        (name, listening.ip)
        for name, listening in _listening(settings)
        if listening.port == nearest.port and listening.ip is not None
    ]
    if not at_port:  # of most exits of a long list
        return []
    return [
        name
        for name, listening_ip in at_port
        for ip in _ips_of(nearest.host)
        if leads_to(ip, listening_ip)
    ]


def _endpoints(settings: config.Config) -> Iterator[tuple[str, Endpoint]]:
    """Where all listeners are, behind the section whose exits they lead to."""
    for name, section in sections(settings):
        yield from ((name, each) for each in section.addresses)
    for _, sharing in sharing_exits(settings):
        yield from (("local", each) for each in sharing.addresses)


def _listening(settings: config.Config) -> Iterator[tuple[str, Address]]:
    """Those at addresses."""
    return ((name, each) for name, each in _endpoints(settings) if isinstance(each, Address))


def _listening_files(settings: config.Config) -> Iterator[tuple[str, str]]:
    """The paths of those at Unix sockets."""
    return ((name, each.path) for name, each in _endpoints(settings) if isinstance(each, UnixPath))


def _own_listeners_in(
    name: str, settings: config.Config, source: Source, found: ExitList
) -> Iterator[str]:
    """A line for each exit of a list that is a listener of its own section."""
    for spec in found.exits:
        if name in _sections_at(spec, settings):
            yield f"{source}: {spec.label} is a listener of this config, and is never used"


def _check_files(spec: ExitSpec, created: Container[Path]) -> None:
    """Read the files of an exit and of those on the way to it, and look at its interface.

    Raises ConfigError.
    """
    if spec.key_file is not None and spec.key_file not in created:
        read_key(spec.key_file)
    if spec.key_from is not None:
        spec.key_from.read()
    if spec.tls is not None:
        load_tls(spec.tls)
    route = Route(spec.interface, spec.mark)
    if route != Route():
        warn_if_unusable(route)
    if spec.via is not None:
        _check_files(spec.via, created)


def _known_exits(section: config.Section) -> list[ExitSpec]:
    """All exits that are known without fetching a list.  Raises ConfigError."""
    return _all_exits(section, [read_source(source) for source in section.exit_sources])


def _all_exits(section: config.Section, lists: Iterable[ExitList | None]) -> list[ExitSpec]:
    listed = (spec for found in lists if found for spec in found.exits)
    return list(dict.fromkeys([*section.exits, *listed]))


def _explain(
    section: config.Section, dest: Address, user: str | None, resolver: Resolver
) -> Explanation:
    """The decision of the rules of ``section``; only some exits resolve names at this end."""
    here = any(spec.scheme in ("direct", "socks4") for spec in _known_exits(section))
    rules = rules_of(section)
    found = explain(rules, dest, user, resolver.resolve if here else None)
    complete = _complete(dest, resolver) if here else dest
    if complete == dest or not found.allowed:
        return found
    of_complete = explain(rules, complete, user, resolver.look_up)
    return Explanation(of_complete.allowed, (*found.lines, *of_complete.lines))


def _complete(dest: Address, resolver: Resolver) -> Address:
    """``dest`` as a search domain completes it."""
    *completed, _ = resolver.names_of(dest.host)
    for name in completed:
        with suppress(ConnectFailed):
            resolver.look_up(name)
            return Address(name, dest.port)
    return dest


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put the place in the config before a mistake in another file that it names."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


# --- words ------------------------------------------------------------------------------------


def _exit_labels(section: config.Section, exits: Sequence[ExitSpec]) -> str:
    labels = [spec.label for spec in exits[:3]]
    if len(exits) > 3:
        labels.append(f"{len(exits) - 3} more")
    urls = [str(each) for each in section.exit_sources if isinstance(each, UrlSource)]
    return ", ".join(labels + [f"the list at {url}" for url in urls])


def _skipped_entries(source: Source, found: ExitList) -> Iterator[str]:
    """A line for each entry that was skipped."""
    for place, reason in found.skipped:
        yield f"{source}: {place} skipped: {reason}"


def _listens(section: SomeSection) -> str:
    return f"listens on {', '.join(_places(section))}"


def _places(section: SomeSection) -> Iterator[str]:
    """Each address, and the exit selector of its clients."""
    if isinstance(section, config.Server):
        yield from map(str, section.addresses)
        return
    if isinstance(section, config.Forwards):
        for route in section.routes:
            yield f"{route}{_noted([] if route.selector == ANY else [str(route.selector)])}"
        return
    for each in section.listen:
        notes = [] if each.selector == ANY else [str(each.selector)]
        if isinstance(section, config.Local):
            notes += _notes_of(section, each)
        yield f"{each.address}{_noted(notes)}"


def _notes_of(local: config.Local, listener: config.ListenAddress) -> Iterator[str]:
    if not (local.users or local.users_file) and local.asks(listener):
        yield "asks for credentials"
    if local.tls is not None:
        yield "without TLS" if local.tls_of(listener) is None else "in TLS"


def _noted(notes: Sequence[str]) -> str:
    return f" ({', '.join(notes)})" if notes else ""


def _travel(transport: TransportSettings) -> str:
    where = f" at {transport.path}" if transport.kind in OVER_WEBSOCKET else ""
    shown = f", certificate {transport.cert}" if transport.cert is not None else ""
    return f"{transport.kind}{where}{shown}"


def _session_lifetime(sessions: SessionSettings) -> str:
    longest, idle = format_duration(sessions.longest), format_duration(sessions.idle)
    strict = ", and fails rather than move" if sessions.strict else ""
    by_client = "; without one, a client's address is its session" if sessions.by_client else ""
    kept = f"a session keeps its exit for {longest}, or until it is idle for {idle}"
    return kept + strict + by_client


def _described_store(state: config.State, ask: bool) -> Iterator[str]:
    if not ask:
        yield f"state: shared at {state.url}"
        return
    # here, since most programs do without redis-py, which takes 9 MiB
    from gsocks.fleet.store import check

    yield f"state: {check(state)}"


def _state(path: Path) -> str:
    # here, since most programs do without SQLite
    from gsocks.rotation.state_file import StateFile
    from gsocks.rotation.state_sync import NOT_KEPT

    try:
        StateFile(path).check()
    except StateFailed as error:
        return f"state: {error} ({NOT_KEPT})"
    return f"state: kept in {path}"


def _first_of(names: Iterable[str]) -> str:
    """The first ten of many names."""
    listed = list(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more
