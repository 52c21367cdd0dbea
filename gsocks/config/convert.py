"""The configuration file: YAML in, frozen structs out, and every mistake told in one line.

A mistake is a ConfigError that names its place, its value and what was expected:

    config.yaml: local.timeouts.idle: 'ten minutes' is not a duration (expected e.g. 30s, ...)

YAML gives the shape only.  Each scalar is text until the place where it stands says what it
means, so that ``country: NO`` is Norway, ``password: 0123`` keeps its zero and ``12:30`` is no
number: what YAML 1.1 makes of a word that nobody has quoted never matters here.

Nothing at run time imports this file; main.py takes the structs apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta, Struct
from msgspec.structs import replace

from gsocks import limits
from gsocks.address import Address
from gsocks.checks import CheckSettings
from gsocks.crypto import Key
from gsocks.errors import BadAddress, ConfigError
from gsocks.exits.url import DIRECT, ExitSpec, parse_path
from gsocks.http.url import WebUrl
from gsocks.networks import Networks
from gsocks.rotation.health import HealthSettings
from gsocks.rotation.sources import Source, parse_source
from gsocks.rules import Rule
from gsocks.units import format_rate, format_size, parse_duration, parse_rate, parse_size
from gsocks.wish import ANY, Wish, as_country, as_exit, as_session, as_tag
from gsocks.wording import Mistake, shown, unknown_key

try:
    from yaml import CBaseLoader as _Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import BaseLoader as _Loader  # type: ignore[assignment]

#: bytes; 4 MiB hold some 50,000 exits, and more are better off in a file of exit_sources
LARGEST_FILE = 4 * 1024 * 1024

#: values in a file, those behind an alias counted at each use of it: ten lines of aliases to
#: aliases are a billion values
MOST_VALUES = 1_000_000

#: mappings and lists inside one another; the deepest place in a configuration is half of that
DEEPEST = 32

#: RFC 1929: a user name's length travels in one byte
_LONGEST_NAME = 255

#: bytes a second; with less, a stream would hardly move from one timeout to the next
_SLOWEST = 1024

_PERCENT = re.compile(r"([0-9]{1,3})%")

_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")

_PLAIN_NAME = re.compile(r"[\w-]{1,40}")

# YAML 1.2 section 5.1, c-printable
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# PyYAML without libyaml repeats the anchor or tag it stumbles over: perhaps a password in want of
# quotes.
_QUOTED_WORD = re.compile(r"'[\w!.-]{2,}'")


# --- the shape ------------------------------------------------------------------------------


class Secret(str):
    """Text that its repr hides."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Seconds(float):
    """A duration longer than zero."""

    __slots__ = ()


class Addresses(tuple[Address, ...]):
    """Where a door listens: one address or more, each with an IP; port 0 takes a free one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients come in, and what is asked of the exit for all who come in there."""

    address: Address
    wish: Wish = ANY


class Listeners(tuple[Listener, ...]):
    """As :class:`Addresses`, each perhaps with a wish."""

    __slots__ = ()


class Exits(tuple[ExitSpec, ...]):
    """One way out or more, none of them twice, and no name either."""

    __slots__ = ()


class ExitSources(tuple[Source, ...]):
    """Lists of exits that are kept elsewhere; files are there, and none is named twice."""

    __slots__ = ()


class RuleLines(tuple[str, ...]):
    """Rules that :meth:`gsocks.rules.Rules.parse` takes."""

    __slots__ = ()


class Statuses(tuple[int, ...]):
    """HTTP statuses that tell of a failure."""

    __slots__ = ()


class IPLiteral(str):
    """An IP address, in its canonical form."""

    __slots__ = ()


class FilePath(str):
    """A file that need not be there yet."""

    __slots__ = ()


class Size(int):
    """Bytes."""

    __slots__ = ()


class Rate(float):
    """Bytes a second, not so few that nothing would come through."""

    __slots__ = ()


class Share(float):
    """A part of all, from 0 to 1."""

    __slots__ = ()


class CheckUrls(tuple[WebUrl, ...]):
    """Pages that exits are checked with, none of them twice."""

    __slots__ = ()


class Ports(tuple[int, int]):
    """The first and the last of some ports."""

    __slots__ = ()


class UserHashes(dict[str, Secret]):
    """User names and their Argon2id hashes."""


class KeySources(dict[str, "KeySource"]):
    """Key names and where each key comes from."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a shared key comes from: a file that holds it, or its text.  One of them is None."""

    file: Path | None = None
    key: str | None = field(default=None, repr=False)


_Count = Annotated[int, Meta(ge=1, description="a whole number from 1")]
_CountOrNone = Annotated[int, Meta(ge=0, description="a whole number from 0")]
_Status = Annotated[int, Meta(ge=100, le=599, description="a status from 100 to 599")]
_Switch = Annotated[bool, Meta(description="true or false")]
_Level = Annotated[
    Literal["debug", "info", "warning", "error"],
    Meta(description="a level (known: debug, info, warning, error)"),
]
_Format = Annotated[Literal["text", "json"], Meta(description="a format (known: text, json)")]
_Workers = Annotated[
    Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"],
    Meta(description="auto or a whole number from 1 to 1024"),
]
_Tries = Annotated[int, Meta(ge=1, le=10, description="a whole number from 1 to 10")]
_Rotate = Annotated[
    Literal["round_robin", "random", "weighted", "least_connections", "fastest", "least_recent"],
    Meta(
        description="a policy (known: round_robin, random, weighted, least_connections, fastest,"
        " least_recent)"
    ),
]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping whose keys are all known."""


class Log(_Strict, frozen=True, kw_only=True):
    level: _Level = "info"
    format: _Format = "text"
    #: one line for each connection when it ends
    access: _Switch = True


class Limits(_Strict, frozen=True, kw_only=True):
    """The counts and rates of :class:`gsocks.limits.Limits`."""

    connections: _Count = limits.Limits().connections
    per_client: _Count = limits.Limits().per_client
    handshakes: _Count = limits.Limits().handshakes
    per_user: _Count | None = None
    request_body: Size | None = None
    bandwidth_per_connection: Rate | None = None
    bandwidth_per_user: Rate | None = None


class Timeouts(_Strict, frozen=True, kw_only=True):
    """The seconds of :class:`gsocks.limits.Timeouts`."""

    handshake: Seconds = Seconds(limits.Timeouts().handshake)
    connect: Seconds = Seconds(limits.Timeouts().connect)
    keep_alive: Seconds = Seconds(limits.Timeouts().keep_alive)
    idle: Seconds = Seconds(limits.Timeouts().idle)
    half_closed: Seconds = Seconds(limits.Timeouts().half_closed)
    bind: Seconds = Seconds(limits.Timeouts().bind)
    drain: Seconds = Seconds(limits.Timeouts().drain)


class Pool(_Strict, frozen=True, kw_only=True):
    """Tunnels opened ahead of need, for each exit that is a tunnel."""

    #: 0: none, each request opens its own
    size: _CountOrNone = 8
    max_idle: Seconds = Seconds(300)


class Health(_Strict, frozen=True, kw_only=True):
    """The bounds of :class:`gsocks.rotation.health.HealthSettings`."""

    failures: _Count = HealthSettings().failures
    base: Seconds = Seconds(HealthSettings().base)
    longest: Seconds = Seconds(HealthSettings().longest)
    unproven: _Count = HealthSettings().unproven
    most_out: Share = Share(HealthSettings().most_out)


class Checks(_Strict, frozen=True, kw_only=True):
    """What :class:`gsocks.checks.CheckSettings` says."""

    #: empty: no checks
    urls: CheckUrls = CheckUrls()
    interval: Seconds = Seconds(CheckSettings().interval)
    timeout: Seconds = Seconds(CheckSettings().timeout)
    #: None: any below 500
    status: _Status | None = None


class Udp(_Strict, frozen=True, kw_only=True):
    """The bounds of :class:`gsocks.limits.Udp`."""

    advertise: IPLiteral | None = None
    ports: Ports | None = None
    #: 0: none are served
    associations: _CountOrNone = limits.Udp().associations
    per_client: _Count = limits.Udp().per_client
    idle: Seconds = Seconds(limits.Udp().idle)


class Sessions(_Strict, frozen=True, kw_only=True):
    """How long a session keeps its exit."""

    idle: Seconds = Seconds(600)
    longest: Seconds = Seconds(86400)
    #: whether each client's address is a session, where it names none
    by_client: _Switch = False


class Section(_Strict, frozen=True, kw_only=True):
    """What both doors have: ``local`` and ``server`` differ in who may come in."""

    #: None: all may come in
    clients: Networks | None = None
    #: None: nobody connects for others
    proxy_protocol_from: Networks | None = None
    #: empty only where there are ``exit_sources``
    exits: Exits = Exits((DIRECT,))
    exit_sources: ExitSources = ExitSources()
    rotate: _Rotate = "round_robin"
    #: exits that a request may try, while nothing has flowed
    tries: _Tries = 3
    #: None: the rules of :meth:`gsocks.rules.Rules.default`
    rules: RuleLines | None = None
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()
    health: Health = Health()
    checks: Checks = Checks()


class Local(Section, frozen=True, kw_only=True):
    """The door that clients come to."""

    listen: Listeners
    #: empty, and no file: nobody is asked for a password
    users: UserHashes = msgspec.field(default_factory=UserHashes)
    users_file: Path | None = None
    #: whether the door may be open to other machines without users
    allow_anonymous: _Switch = False
    udp: Udp = Udp()
    #: whether clients are told of success before it is known
    fast_open: _Switch = False
    #: HTTP statuses that make another exit be tried
    retry_on: Statuses = Statuses()
    sessions: Sessions = Sessions()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens."""
        return tuple(each.address for each in self.listen)


class Server(Section, frozen=True, kw_only=True):
    """The door that tunnels come to."""

    listen: Addresses
    keys: KeySources

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens."""
        return self.listen


class Admin(_Strict, frozen=True, kw_only=True):
    """The door for whoever runs it: JSON and metrics."""

    listen: Addresses = Addresses((Address("127.0.0.1", 9090),))
    #: what has to be shown, made at the first start; None: admin.token beside the config
    token_file: FilePath | None = None
    #: whether it may listen where other machines can reach it, unencrypted as it is
    allow_remote: _Switch = False


class Config(_Strict, frozen=True, kw_only=True):
    """A configuration file; ``local``, ``server`` or both are there."""

    workers: _Workers = 1
    log: Log = Log()
    local: Local | None = None
    server: Server | None = None
    admin: Admin | None = None


#: which section a key belongs to, for whoever has put it elsewhere
_HOMES = {
    **dict.fromkeys((*Section.__struct_fields__, "listen"), "local or server"),
    "users": "local",
    "users_file": "local",
    "allow_anonymous": "local",
    "udp": "local",
    "sessions": "local",
    "fast_open": "local",
    "retry_on": "local",
    "keys": "server",
}


# --- reading --------------------------------------------------------------------------------

#: what YAML holds once every scalar is text
_Tree: TypeAlias = "str | list[_Tree] | dict[str, _Tree]"
_Hooks: TypeAlias = dict[Any, Callable[[_Tree], object]]


def load(path: Path) -> Config:
    """The configuration in the file ``path``.  Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError(
            f"{path}: larger than {format_size(LARGEST_FILE)}, which no configuration needs"
            " (a long list of exits goes into a file of exit_sources)"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8") from None
    return parse(text, path.absolute().parent, name=str(path))


def parse(text: str, base: Path, *, name: str = "config.yaml") -> Config:
    """The configuration in ``text``; its relative files are relative to the folder ``base``.

    ``name`` is what errors call the file.  Raises ConfigError.
    """
    try:
        tree = _read_yaml(text)
        config = _convert(_spelled_out(tree), _hooks(base))
        _check_together(config)
    except Mistake as mistake:
        raise ConfigError(f"{name}: {mistake}") from None
    return config


def with_exits(config: Config, of: Config) -> Config:
    """``config`` with the exits that ``of`` has at the same doors."""
    changed: dict[str, Section] = {}
    for name in ("local", "server"):
        section, other = getattr(config, name), getattr(of, name)
        if section is not None and other is not None:
            changed[name] = replace(section, exits=other.exits, exit_sources=other.exit_sources)
    return replace(config, **changed)


def _spelled_out(tree: dict[str, _Tree]) -> dict[str, _Tree]:
    """``tree`` with no exits where there are only sources of them.

    Else the default would mix ``direct``, and with it this machine's own address, into a list
    of proxies.
    """
    return {
        name: {"exits": [], **part} if isinstance(part, dict) and "exit_sources" in part else part
        for name, part in tree.items()
    }


def _convert(tree: dict[str, _Tree], hooks: _Hooks) -> Config:
    try:
        return msgspec.convert(
            tree, Config, strict=False, dec_hook=lambda kind, value: hooks[kind](value)
        )
    except (msgspec.ValidationError, Mistake):
        # msgspec tells the place in words, and not the one inside of what a hook has read; so
        # look for it part by part.
        raise next(_mistakes(tree, Config, hooks)) from None


def _mistakes(tree: _Tree, kind: Any, hooks: _Hooks, at: str = "") -> Iterator[Mistake]:
    """What keeps ``tree`` from being a ``kind``, from the top of the file to its end."""
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        try:
            msgspec.convert(tree, kind, strict=False)
        except msgspec.ValidationError:
            yield Mistake(f"{shown(tree)} is not {kind.__metadata__[0].description}", at)
    elif get_origin(kind) is tuple:
        if not isinstance(tree, list):
            yield Mistake(f"{shown(tree)} is not a list", at)
        else:
            for index, item in enumerate(tree):
                yield from _mistakes(item, get_args(kind)[0], hooks, f"{at}[{index}]")
    elif kind in hooks:
        try:
            hooks[kind](tree)
        except Mistake as mistake:
            yield mistake.within(at)
    elif not isinstance(tree, dict):
        yield Mistake(f"{shown(tree)} is not a mapping", at)
    else:
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        for name, part in tree.items():
            if name in fields:
                yield from _mistakes(part, fields[name].type, hooks, f"{at}.{name}")
            elif name in _HOMES:
                yield Mistake(f"not a key of this place (only of {_HOMES[name]})", f"{at}.{name}")
            else:
                yield unknown_key(name, fields).within(at)
        for name, expected in fields.items():
            if expected.required and name not in tree:
                yield Mistake("missing", f"{at}.{name}")


def _check_together(config: Config) -> None:
    """What no part of the file can be asked for alone.  Raises Mistake."""
    local, server = config.local, config.server
    if local is None and server is None:
        raise Mistake("neither local nor server is there, so there is nothing to run")
    for name, section in (("local", local), ("server", server)):
        if section is not None and not section.exits and not section.exit_sources:
            raise Mistake("needs an exit (left out, it is direct)", f".{name}.exits")
    if local is not None and not local.users and local.users_file is None:
        _check_open_door(local)
    admin = config.admin
    if admin is not None and not admin.allow_remote:
        for address in admin.listen:
            if address.ip is None or not address.ip.is_loopback:
                raise Mistake(
                    f"{address} can be reached by other machines, and the token would travel"
                    " unencrypted (allow_remote: true if that is what you want)",
                    ".admin.listen",
                )
    if local is not None and server is not None:
        # SO_REUSEPORT would let both have it, and a client would meet either door by chance.
        for address in server.addresses:
            if address.port and address in local.addresses:
                raise Mistake(f"{address} is where local listens", ".server.listen")


def _check_open_door(local: Local) -> None:
    if not local.allow_anonymous:
        for address in local.addresses:
            if address.ip is None or not address.ip.is_loopback:
                raise Mistake(
                    f"{address} would be open to everybody who can reach it"
                    " (add users, or allow_anonymous: true if that is what you want)",
                    ".local.listen",
                )
    for name in ("per_user", "bandwidth_per_user"):
        if getattr(local.limits, name) is not None:
            raise Mistake("there are no users whom this could limit", f".local.limits.{name}")


# --- what a value says ----------------------------------------------------------------------


def _hooks(base: Path) -> _Hooks:
    return {
        Seconds: _seconds,
        Size: _size,
        Rate: _rate,
        Statuses: _statuses,
        Networks: _networks,
        Addresses: _addresses,
        Listeners: _listeners,
        Exits: partial(_exits, base=base),
        ExitSources: partial(_exit_sources, base=base),
        RuleLines: _rules,
        Path: partial(_existing_file, base=base),
        FilePath: lambda tree: FilePath(_path(tree, base)),
        IPLiteral: _ip_literal,
        Ports: _ports,
        Share: _share,
        CheckUrls: _check_urls,
        UserHashes: _users,
        KeySources: partial(_keys, base=base),
    }


def _seconds(tree: _Tree) -> Seconds:
    try:
        seconds = parse_duration(tree) if isinstance(tree, str) else 0.0
    except ValueError as error:
        raise Mistake(str(error)) from None
    if not seconds:
        raise Mistake(f"{shown(tree)} is not a duration above zero (expected e.g. 30s or 10m)")
    return Seconds(seconds)


def _size(tree: _Tree) -> Size:
    try:
        return Size(parse_size(tree if isinstance(tree, str) else ""))
    except ValueError:
        raise Mistake(f"{shown(tree)} is not a size (expected e.g. 64KiB or 10MB)") from None


def _rate(tree: _Tree) -> Rate:
    try:
        rate = parse_rate(tree if isinstance(tree, str) else "")
    except ValueError:
        raise Mistake(f"{shown(tree)} is not a rate (expected e.g. 64KiB/s or 10MB/s)") from None
    if rate < _SLOWEST:
        raise Mistake(f"{shown(tree)} is less than {format_rate(_SLOWEST)}, the least there may be")
    return Rate(rate)


def _statuses(tree: _Tree) -> Statuses:
    found: dict[int, None] = {}
    for at, item in _items(tree):
        if not isinstance(item, str) or not re.fullmatch("[45][0-9]{2}", item):
            raise Mistake(f"{shown(item)} is not a status of a failure (expected e.g. 429)", at)
        found[int(item)] = None
    return Statuses(found)


def _networks(tree: _Tree) -> Networks:
    texts: list[str] = []
    for at, item in _items(tree):
        if not isinstance(item, str):
            raise Mistake(f"{shown(item)} is not an address or a network", at)
        try:
            Networks([item])
        except ConfigError as error:
            raise Mistake(str(error), at) from None
        texts.append(item)
    if not texts:
        raise Mistake("needs a network (expected e.g. 10.0.0.0/8 or ::1)")
    return Networks(texts)


def _addresses(tree: _Tree) -> Addresses:
    return Addresses(each.address for each in _one_or_more(tree, lambda at: Listener(_address(at))))


def _listeners(tree: _Tree) -> Listeners:
    return Listeners(_one_or_more(tree, _listener))


def _one_or_more(tree: _Tree, read: Callable[[_Tree], Listener]) -> list[Listener]:
    if not isinstance(tree, list):
        return [read(tree)]
    if not tree:
        raise Mistake("needs an address (expected e.g. 127.0.0.1:1080)")
    found: list[Listener] = []
    for at, item in _items(tree):
        try:
            listener = read(item)
        except Mistake as mistake:
            raise mistake.within(at) from None
        address = listener.address
        if address.port and any(each.address == address for each in found):
            raise Mistake(f"{address} stands here twice", at)
        found.append(listener)
    return found


def _listener(tree: _Tree) -> Listener:
    if not isinstance(tree, dict):
        return Listener(_address(tree))
    said: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in _OF_A_LISTENER:
            raise unknown_key(name, _OF_A_LISTENER)
        try:
            said[name] = _OF_A_LISTENER[name](value)
        except Mistake as mistake:
            raise mistake.within(f".{name}") from None
        except ValueError as error:
            raise Mistake(str(error), f".{name}") from None
    if "address" not in said:
        raise Mistake("missing (expected e.g. 127.0.0.1:1081)", ".address")
    return Listener(said.pop("address"), Wish(**said))


def _tags(tree: _Tree) -> tuple[str, ...]:
    words = tree if isinstance(tree, list) else [tree]
    return tuple(sorted({as_tag(word) for word in words}))


def _address(tree: _Tree) -> Address:
    try:
        address = Address.parse(tree if isinstance(tree, str) else "")
    except BadAddress:
        address = None
    if address is not None and address.host == "localhost":
        address = Address("127.0.0.1", address.port)
    # A name would be looked up anew at each start, and could come to mean another interface.
    if address is None or address.ip is None:
        raise Mistake(
            f"{shown(tree)} is not an address to listen on"
            " (expected e.g. 127.0.0.1:1080, [::1]:1080 or 0.0.0.0:1080)"
        )
    return address


_OF_A_LISTENER: dict[str, Callable[[_Tree], object]] = {
    "address": _address,
    "session": as_session,
    "lifetime": _seconds,
    "country": as_country,
    "tags": _tags,
    "exit": as_exit,
}


def _ip_literal(tree: _Tree) -> IPLiteral:
    try:
        address = Address.of(tree if isinstance(tree, str) else "", 0)
    except BadAddress:
        address = None
    if address is None or address.ip is None or address.is_unspecified:
        raise Mistake(f"{shown(tree)} is not an IP address (expected e.g. 203.0.113.7)")
    return IPLiteral(address.host)


def _ports(tree: _Tree) -> Ports:
    found = _PORTS.fullmatch(tree) if isinstance(tree, str) else None
    if found is not None:
        first, last = int(found[1]), int(found[2])
        if 0 < first <= last <= 65535:
            return Ports((first, last))
    raise Mistake(f"{shown(tree)} is not a range of ports (expected e.g. 40000-40999)")


def _share(tree: _Tree) -> Share:
    found = _PERCENT.fullmatch(tree) if isinstance(tree, str) else None
    if found is None or int(found[1]) > 100:
        raise Mistake(f"{shown(tree)} is not a share (expected e.g. 50%)")
    return Share(int(found[1]) / 100)


def _check_urls(tree: _Tree) -> CheckUrls:
    found: list[WebUrl] = []
    for at, item in _items(tree):
        try:
            url = WebUrl.parse(item if isinstance(item, str) else "")
        except ValueError as error:  # the URL may hold a key, and is not repeated
            raise Mistake(f"not an http:// or https:// URL: {error}", at) from None
        if url in found:
            raise Mistake(f"{url} stands here twice", at)
        found.append(url)
    return CheckUrls(found)


def _exits(tree: _Tree, base: Path) -> Exits:
    found: dict[ExitSpec, None] = {}
    names: set[str | None] = set()
    for at, item in _items(tree):
        if isinstance(item, list):
            raise Mistake("a list is not an exit (expected e.g. socks5://10.0.0.7:1080)", at)
        try:
            spec = ExitSpec.parse(item, base)
        except Mistake as mistake:
            raise mistake.within(at) from None
        if spec in found:
            raise Mistake(f"{spec} stands here twice (use weight for a larger share)", at)
        if spec.name is not None and spec.name in names:
            raise Mistake(f"another exit is called {spec.name} too", f"{at}.name")
        found[spec] = None
        names.add(spec.name)
    return Exits(found)


def _exit_sources(tree: _Tree, base: Path) -> ExitSources:
    found: list[Source] = []
    for at, item in _items(tree):
        if not isinstance(item, dict):
            raise Mistake(f"{shown(item)} is not a mapping (expected e.g. file: proxies.txt)", at)
        try:
            source = parse_source(item, base)
        except Mistake as mistake:
            raise mistake.within(at) from None
        for file in source.needs:
            _check_is_file(file, at)
        if any(source.kept == other.kept for other in found):
            raise Mistake("the list of another source, or kept in the same file", at)
        found.append(source)
    return ExitSources(found)


def _rules(tree: _Tree) -> RuleLines:
    lines: list[str] = []
    for at, item in _items(tree):
        if not isinstance(item, str):
            raise Mistake(f"{shown(item)} is not a rule (put quotes around it)", at)
        try:
            Rule.parse(item)
        except ConfigError as error:
            raise Mistake(str(error), at) from None
        lines.append(item)
    if not lines:
        raise Mistake("needs a rule (left out, it denies private ranges and allows the rest)")
    return RuleLines(lines)


def _existing_file(tree: _Tree, base: Path) -> Path:
    path = _path(tree, base)
    _check_is_file(path)
    return path


def _check_is_file(path: Path, at: str = "") -> None:
    try:
        is_file = path.is_file()
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}", at) from None
    if not is_file:
        raise Mistake(f"{path} is not there, or not a file", at)


def _users(tree: _Tree) -> UserHashes:
    found = UserHashes()
    for name, at, value in _named(tree):
        if ":" in name:
            raise Mistake("a user name can't hold a colon (HTTP ends it there)")
        if not isinstance(value, str) or not value.startswith("$argon2id$"):
            raise Mistake("not the hash of a password (expected what gsocks passwd prints)", at)
        found[name] = Secret(value)
    return found


def _keys(tree: _Tree, base: Path) -> KeySources:
    found = KeySources()
    for name, at, value in _named(tree):
        try:
            source = _key_source(value, base)
        except Mistake as mistake:
            raise mistake.within(at) from None
        for other, known in found.items():
            if known == source:
                raise Mistake(f"the same key as {other}, so nobody could tell them apart", at)
        found[name] = source
    if not found:
        raise Mistake("needs a key (expected e.g. default: {file: gsocks.key})")
    return found


def _key_source(tree: _Tree, base: Path) -> KeySource:
    if not isinstance(tree, dict):
        return KeySource(key=_key(tree))
    for name in tree:
        if name not in ("file", "key"):
            raise unknown_key(name, ("file", "key"))
    if len(tree) != 1:
        raise Mistake("has either a file or a key, and needs one")
    if "key" in tree:
        try:
            return KeySource(key=_key(tree["key"]))
        except Mistake as mistake:
            raise mistake.within(".key") from None
    try:
        return KeySource(file=_path(tree["file"], base))
    except Mistake as mistake:
        raise mistake.within(".file") from None


def _key(tree: _Tree) -> str:
    try:
        return Key.parse(tree if isinstance(tree, str) else "").text()
    except ConfigError as error:
        raise Mistake(str(error)) from None


def _path(tree: _Tree, base: Path) -> Path:
    try:
        return parse_path(tree, base)
    except ValueError as error:
        raise Mistake(str(error)) from None


def _items(tree: _Tree) -> Iterator[tuple[str, _Tree]]:
    """Each item of a list behind its place."""
    if not isinstance(tree, list):
        raise Mistake(f"{shown(tree)} is not a list")
    for index, item in enumerate(tree):
        yield f"[{index}]", item


def _named(tree: _Tree) -> Iterator[tuple[str, str, _Tree]]:
    """Each value of a mapping behind its name and its place."""
    if not isinstance(tree, dict):
        raise Mistake(f"{shown(tree)} is not a mapping of names")
    for name, value in tree.items():
        if not name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
            raise Mistake(
                f"a name that is empty, not printable or longer than {_LONGEST_NAME} bytes"
            )
        yield name, f".{name}" if _PLAIN_NAME.fullmatch(name) else f"[{shown(name)}]", value


# --- YAML -----------------------------------------------------------------------------------


def _read_yaml(text: str) -> dict[str, _Tree]:
    """The one document in ``text``, a mapping.  Raises Mistake."""
    bad = _NOT_YAML.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise Mistake(f"line {line}: a character (U+{ord(bad[0]):04X}) that YAML doesn't allow")
    try:
        tree = _Reader(text).document()
    except yaml.MarkedYAMLError as error:
        problem = _QUOTED_WORD.sub("this word", error.problem or "not YAML")
        context = f" ({error.context})" if error.context else ""
        raise _at_mark(f"{problem}{context}", error.problem_mark) from None
    if not tree:
        raise Mistake("empty (expected local, server or both)")
    if not isinstance(tree, dict):
        raise Mistake(f"{shown(tree)} is not a mapping (expected local, server or both)")
    return tree


class _Reader:
    """Text, lists and mappings from YAML's events.

    Not by ``yaml.load``: libyaml's composer overflows the stack, and takes the process along,
    where brackets are nested 100,000 deep; and it knows neither bounds nor duplicate keys.
    """

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        #: what an anchor stands for, and how many values that are
        self._anchors: dict[str, tuple[_Tree, int]] = {}
        self._values = 0

    def document(self) -> _Tree:
        """The document; an empty text if there is none."""
        tree: _Tree = ""
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _at_mark("a second document (---) in one file", event.start_mark)
                tree = self._value(next(self._events), DEEPEST)
        return tree

    def _value(self, event: Any, depth: int) -> _Tree:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _at_mark("a word that begins with * needs quotes", event.start_mark)
            tree, size = self._anchors[event.anchor]
            self._count(size, event)
            return tree
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise _at_mark("a word that begins with ! needs quotes", event.start_mark)
        before = self._values
        self._count(1, event)
        if isinstance(event, yaml.ScalarEvent):
            tree = event.value
        elif not depth:
            raise _at_mark(f"nested more than {DEEPEST} deep", event.start_mark)
        elif isinstance(event, yaml.SequenceStartEvent):
            tree = self._list(depth - 1)
        else:
            tree = self._mapping(depth - 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = tree, self._values - before
        return tree

    def _list(self, depth: int) -> list[_Tree]:
        found: list[_Tree] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, depth))
        return found

    def _mapping(self, depth: int) -> dict[str, _Tree]:
        found: dict[str, _Tree] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth)
            if not isinstance(key, str):
                raise _at_mark("a key that is not a word", event.start_mark)
            if key in found:
                raise _at_mark(f"{shown(key)} stands here twice", event.start_mark)
            found[key] = self._value(next(self._events), depth)
        return found

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise _at_mark(f"more than {MOST_VALUES:,} values", event.start_mark)


def _at_mark(message: str, mark: Any) -> Mistake:
    return Mistake(f"line {mark.line + 1}, column {mark.column + 1}: {message}")
