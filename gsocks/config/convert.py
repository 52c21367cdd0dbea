"""From the text of a configuration file to a :class:`~gsocks.config.schema.Config`.

A mistake is a ConfigError of one line that names its place, its value and what was expected:

    config.yaml: local.timeouts.idle: 'ten minutes' is not a duration (expected e.g. 30s, ...)

msgspec checks the shape and calls a parser (:func:`_parsers`) for the text of each type of its
own.  It reports the path of a mistake, which is then described in our words.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin

import msgspec
from msgspec.structs import replace

from gsocks.access.networks import Networks
from gsocks.access.rules import Rule
from gsocks.access.username_style import parse_styles
from gsocks.address import Address, canonical_host, ip_of
from gsocks.config.changes import SECTIONS, sharing_sections
from gsocks.config.reach import check_open, is_remote
from gsocks.config.routes import Route, parse_ports
from gsocks.config.schema import (
    Addresses,
    AdminToken,
    AdminTokens,
    Config,
    DnsListener,
    Exits,
    ExitSources,
    FilePath,
    Forwards,
    HostNames,
    KeySource,
    KeySources,
    ListenAddress,
    ListenAddresses,
    Local,
    Passphrase,
    Passphrases,
    Pseudonym,
    Redirect,
    Routes,
    RuleLines,
    Secret,
    Section,
    SelectedAddresses,
    Server,
    ServerAddresses,
    SharingSection,
    State,
    Statuses,
    UserHashes,
    UserNameStyles,
)
from gsocks.config.store import StoreUrl
from gsocks.config.yaml import read_yaml
from gsocks.crypto import Key
from gsocks.dns.name_server import NameServer
from gsocks.errors import BadAddress, ConfigError
from gsocks.exits.spec import DIRECT, ExitSpec, parse_path
from gsocks.files import as_utf8, open_guarded, warn_of_readers
from gsocks.http.pac import parse_direct
from gsocks.http.token import TOKEN
from gsocks.http.url import WebUrl
from gsocks.key_origin import KeyOrigin, parse_command, parse_variable
from gsocks.messages import Mistake, shown, unknown_key
from gsocks.net.endpoint import Endpoint, UnixPath, parse_endpoint
from gsocks.request import MAX_WORD, ExitSelector, as_country, as_exit, as_session, as_tag
from gsocks.rotation.sources import Source, parse_source
from gsocks.settings import (
    CheckUrls,
    DirectHosts,
    Domains,
    FieldPath,
    IPLiteral,
    NameServers,
    Ports,
    Protocols,
    Rate,
    RegularExpression,
    Seconds,
    Share,
    Size,
    UrlPath,
)
from gsocks.shadowsocks.methods import METHODS, keys_of
from gsocks.transport import options as transport
from gsocks.units import format_rate, format_size, parse_duration, parse_rate, parse_size
from gsocks.yaml_tree import Tree

#: bytes; 4 MiB hold some 50,000 exits, and a longer list belongs into a file of exit_sources
MAX_FILE_SIZE = 4 * 1024 * 1024

#: RFC 1929: a user name's length travels in one byte
_MAX_NAME_BYTES = 255

#: bytes a second; with less, a stream would hardly move from one timeout to the next
_MIN_RATE = 1024

_PERCENT = re.compile(r"([0-9]{1,3})%")

_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")

_PLAIN_NAME = re.compile(r"[\w-]{1,40}")

# a key or a password in a config: before the @ of a URL, behind its name, or by the form of a key
# of gsocks; not a hash
_SECRETS = re.compile(
    r"""
    ://[^\s/@'"]+@ | ://[^\s@'":]*:[^\s@'"]+@
    | (?:^|[\s{,])(?:key|password)\s*:\s*[^\s{}#]
    | (?<![\w+/-])[\w+/-]{43}=?(?![\w+/=-])
    """,
    re.MULTILINE | re.VERBOSE | re.ASCII,
)

# what msgspec appends to a message: " - at `$[0].local.timeouts.idle`"
_PATH = re.compile(r" - at `\$\[0\]([^`]*)`\Z")

_Parsers: TypeAlias = dict[Any, Callable[[Tree], object]]

# the section of each key, for a key that stands in the wrong one
_SECTIONS = {
    **dict.fromkeys(Forwards.__struct_fields__, "forwards"),
    **dict.fromkeys(Redirect.__struct_fields__, "redirect"),
    **dict.fromkeys(DnsListener.__struct_fields__, "dns_listener"),
    **dict.fromkeys(Local.__struct_fields__, "local"),
    **dict.fromkeys(Server.__struct_fields__, "server"),
    **dict.fromkeys(SharingSection.__struct_fields__, "forwards, redirect or dns_listener"),
    **dict.fromkeys(Section.__struct_fields__, "local, server, forwards, redirect or dns_listener"),
    "listen": "local, server, redirect or dns_listener",
    "udp": "local or forwards",
}

#: of a name server that is written without a port
DNS_PORT = 53

# what a section that takes the exits of another one can't have besides
_OF_EXITS = ("rotate", "tries", "hedge", "rules", "pool", "health", "checks", "per_host")

# keys of the state that only a store has
_STORE_DEFAULTS = {
    name: getattr(State(), name)
    for name in (
        "password_file",
        "ca",
        "cert",
        "key",
        "prefix",
        "shared_key_file",
        "gateway",
        "fail",
    )
}

# the limits that need users
_OF_USERS = ("per_user", "bandwidth_per_user")


def load(path: Path) -> Config:
    """The configuration in the file ``path``.  Raises ConfigError."""
    return parse(read_file(path), path.absolute().parent, name=str(path))


def read_file(path: Path) -> str:
    """The text of the file ``path``.  Raises ConfigError.

    A warning in the log says if a file with secrets can be read by others.
    """
    try:
        with open_guarded(path) as file:
            raw = file.read(MAX_FILE_SIZE + 1)
            status = os.fstat(file.fileno())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_FILE_SIZE:
        raise ConfigError(
            f"{path}: larger than {format_size(MAX_FILE_SIZE)}, which no configuration needs"
            " (a long list of exits goes into a file of exit_sources)"
        )
    try:
        raw = as_utf8(raw)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: begins as UTF-16 and is not") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8") from None
    warn_of_readers(path, status, _SECRETS.search(text) is not None)
    return text


def parse(text: str, base: Path, *, name: str = "config.yaml") -> Config:
    """The configuration in ``text``; its relative files are relative to the folder ``base``.

    ``name`` is what errors call the file.  Raises ConfigError.
    """
    tree: dict[str, Tree] = {}
    try:
        tree = read_yaml(text)
        config = completed(convert_tree(tree, base))
        for found in mistakes_together(config):
            raise found
    except Mistake as mistake:
        raise ConfigError(f"{name}: {as_written(mistake, tree)}") from None
    return config


def convert_tree(tree: dict[str, Tree], base: Path) -> Config:
    """The configuration in ``tree``, whose parts may contradict each other.  Raises Mistake."""
    return _convert(_spelled_out(tree), _parsers(base))


def completed(config: Config) -> Config:
    """``config`` with the exit of sections that have none, and no ``local`` to share its ones."""
    if config.local is not None:
        return config
    without = {
        name: replace(section, exits=Exits((DIRECT,)))
        for name, section in sharing_sections(config)
        if not section.has_own_exits
    }
    return replace(config, **without) if without else config


def _spelled_out(tree: dict[str, Tree]) -> dict[str, Tree]:
    """``tree`` with no exits where there are only sources of them.

    Else the default would mix ``direct``, and with it this machine's own address, into a list
    of proxies.  And with the routes of forwards in their place, where these are all that there is.
    """
    if isinstance(tree.get("forwards"), list):
        tree = {**tree, "forwards": {"routes": tree["forwards"]}}
    return {
        name: {"exits": [], **part} if isinstance(part, dict) and "exit_sources" in part else part
        for name, part in tree.items()
    }


def as_written(mistake: Mistake, tree: dict[str, Tree]) -> Mistake:
    """``mistake`` with its place in the file, where that is spelled out otherwise here."""
    place = ".forwards.routes"
    if not isinstance(tree.get("forwards"), list) or not mistake.at.startswith(place):
        return mistake
    return Mistake(mistake.message, ".forwards" + mistake.at.removeprefix(place))


class _Rejected(ValueError):
    """Carries a Mistake through msgspec, which passes on its path for a ValueError only."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__()
        self.mistake = mistake


def _convert(tree: dict[str, Tree], parsers: _Parsers) -> Config:
    def parse_value(kind: Any, value: Tree) -> object:
        try:
            return parsers[kind](value)
        except Mistake as mistake:
            raise _Rejected(mistake) from None

    try:
        # in a list, so that the message ends with a path even if the mistake is at the top
        (config,) = msgspec.convert([tree], tuple[Config], strict=False, dec_hook=parse_value)
    except msgspec.ValidationError as error:
        raise _mistake(tree, error) from None
    return config


def _mistake(tree: Tree, error: msgspec.ValidationError) -> Mistake:
    """The first mistake in the file, which made msgspec give up."""
    found = _PATH.search(str(error))
    at = found[1] if found else ""
    if isinstance(error.__cause__, _Rejected):
        return error.__cause__.mistake.prefixed(at)
    kind: Any = Config
    for name in at.split(".")[1:]:
        tree = tree[name]  # type: ignore[index]  # a mapping: msgspec was inside
        kind = _fields(kind)[name].type
        if type(None) in get_args(kind):
            kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        return Mistake(f"{shown(tree)} is not {kind.__metadata__[0].description}", at)
    if not isinstance(tree, dict):
        return Mistake(f"{shown(tree)} is not a mapping", at)
    fields = _fields(kind)
    for name in tree:
        if name in fields:
            continue
        if name in _SECTIONS and at != ".dns":  # where `server` is a misspelt `servers`
            return Mistake(f"not a key of this section (only of {_SECTIONS[name]})", f"{at}.{name}")
        if at.removeprefix(".") in SECTIONS and name in _fields(Config):
            return Mistake(
                "not a key of this section (it belongs to the top level)", f"{at}.{name}"
            )
        return unknown_key(name, fields).prefixed(at)
    missing = next(field for field in fields.values() if field.required and field.name not in tree)
    return Mistake("missing", f"{at}.{missing.name}")


def _fields(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(struct)}


def mistakes_together(config: Config) -> Iterator[Mistake]:
    """The mistakes that only several keys or sections together show."""
    checks = (_check_sections, _check_local, _check_server, _check_forwards, _check_redirect)
    for check in (
        *checks,
        _check_dns_listener,
        _check_admin,
        _check_requests,
        _check_state,
        _check_addresses,
    ):
        if (found := _mistake_of(check, config)) is not None:
            yield found


def _mistake_of(check: Callable[[Config], None], config: Config) -> Mistake | None:
    try:
        check(config)
    except Mistake as mistake:
        return mistake
    return None


def _check_state(config: Config) -> None:
    state = config.state
    if state is None:
        return
    if state.file is None and state.url is None:
        raise Mistake("needs a file, or a url of a store that gateways share", ".state.file")
    for name, default in _STORE_DEFAULTS.items():
        if state.url is None and getattr(state, name) != default:
            raise Mistake("only a url of a store has it", f".state.{name}")
    if state.url is not None and state.url.password is not None and state.password_file is not None:
        raise Mistake("the url has a password already", ".state.password_file")
    for name in ("ca", "cert", "key"):
        if state.url is not None and getattr(state, name) is not None and not state.url.tls:
            raise Mistake("needs TLS (a url that begins with rediss)", f".state.{name}")
    if state.key is not None and state.cert is None:
        raise Mistake("needs the certificate that it belongs to", ".state.cert")


def _check_sections(config: Config) -> None:
    local, server = config.local, config.server
    if local is None and server is None and not any(sharing_sections(config)):
        raise Mistake("needs local, server, forwards, redirect or dns_listener")
    for name, section in (("local", local), ("server", server)):
        if section is not None and not section.exits and not section.exit_sources:
            raise Mistake("needs an exit (left out, it is direct)", f".{name}.exits")


def _check_local(config: Config) -> None:
    local = config.local
    if local is not None and local.limits.per_key is not None:
        raise Mistake("only a server has keys", ".local.limits.per_key")
    if local is not None:
        _check_tls(local)
        _check_open_inbound(local)


def _check_tls(local: Local) -> None:
    tls = local.tls
    if tls is None and any(each.tls for each in local.listen):
        raise Mistake("an address has tls: true, and needs a certificate here", ".local.tls")
    if tls is not None and tls.client_ca is None and tls.client_cert != "required":
        raise Mistake(
            "needs client_ca, by which certificates are verified", ".local.tls.client_cert"
        )


def _check_server(config: Config) -> None:
    if config.server is not None:
        _check_listens(config.server)
        try:
            transport.check(config.server.transport)
        except Mistake as mistake:
            raise mistake.prefixed(".server.transport") from None


def _check_admin(config: Config) -> None:
    admin = config.admin
    if admin is not None and not admin.allow_remote:
        for address in filter(is_remote, admin.listen):
            raise Mistake(
                f"{address} can be reached by other machines, and the token would travel"
                " unencrypted (allow_remote: true if that is intended)",
                ".admin.listen",
            )


def _check_requests(config: Config) -> None:
    if config.requests is not None and (config.state is None or config.state.file is None):
        raise Mistake("needs state (file: PATH), beside which it is kept", ".requests")


def _check_listens(server: Server) -> None:
    """Raise Mistake unless it serves tunnels, Shadowsocks clients, or both."""
    shadowsocks = server.shadowsocks
    for name in ("listen", "keys"):
        if not getattr(server, name) and (shadowsocks is None or server.listen or server.keys):
            raise Mistake("missing", f".server.{name}")
    if shadowsocks is None:
        return
    for address in shadowsocks.listen:
        if address in server.listen and not _is_any_port(address):
            raise Mistake(
                f"duplicate address {address}: tunnels come there", ".server.shadowsocks.listen"
            )
    if shadowsocks.password is not None and shadowsocks.password_file is not None:
        raise Mistake("needs either a password or a password_file", ".server.shadowsocks.password")
    method = METHODS[shadowsocks.method]
    try:
        for password in (shadowsocks.password, *shadowsocks.users.values()):
            if password is not None:
                keys_of(method, password)
    except ConfigError as error:
        raise Mistake(str(error), ".server.shadowsocks") from None


def _check_addresses(config: Config) -> None:
    """Raise Mistake if two sections listen at the same place.

    SO_REUSEPORT would let both have it, and a client would reach either listener by chance.
    """
    others: dict[str, Collection[Endpoint]] = {}
    for own, addresses in _listening(config):
        for name, taken in others.items():
            for address in addresses:
                if address in taken and not _is_any_port(address):
                    raise Mistake(
                        f"duplicate address {address}: {name} listens there", f".{own}.listen"
                    )
        others[own] = addresses
    forwards = config.forwards
    for leg in forwards.legs if forwards is not None else ():
        for name, addresses in others.items():
            is_beside = leg.route.udp and name != "dns_listener"
            if leg.listen in addresses and not is_beside and not _is_any_port(leg.listen):
                raise Mistake(
                    f"duplicate address {leg.listen}: {name} listens there", ".forwards.routes"
                )


def _listening(config: Config) -> Iterator[tuple[str, Collection[Endpoint]]]:
    """Name and addresses of each section that listens, without the forwards."""
    for name, section in (("local", config.local), ("server", config.server)):
        if section is not None:
            yield name, section.addresses
    for name, sharing in sharing_sections(config):
        if not isinstance(sharing, Forwards):
            yield name, sharing.addresses
    for name, plain in (("admin", config.admin), ("health", config.health)):
        if plain is not None:
            yield name, plain.listen


def _check_open_inbound(local: Local) -> None:
    check_open(local)
    has_users = bool(local.users) or local.users_file is not None
    certified = local.tls is not None and local.tls.client_ca is not None
    for name in _OF_USERS:
        if getattr(local.limits, name) is not None and not (has_users or certified):
            raise Mistake("needs users, whom it limits", f".local.limits.{name}")


def _check_forwards(config: Config) -> None:
    forwards = config.forwards
    if forwards is None:
        return
    for number, route in enumerate(forwards.routes):
        if is_remote(route.listen) and not forwards.allow_remote:
            raise Mistake(
                f"{route.listen} would let all machines that can reach it through to {route.to}"
                " (forwards.allow_remote: true if that is intended)",
                f".forwards.routes[{number}].listen",
            )
    _check_sharing("forwards", forwards, "forwards know no users and no requests")


def _check_redirect(config: Config) -> None:
    redirect = config.redirect
    if redirect is None:
        return
    for address in redirect.addresses:
        if isinstance(address, UnixPath):
            raise Mistake(
                f"{address}: connections are not redirected to a Unix socket", ".redirect.listen"
            )
        if is_remote(address) and not redirect.allow_remote:
            raise Mistake(
                f"{address} would carry what all machines that can reach it have redirected there"
                " (redirect.allow_remote: true if that is intended)",
                ".redirect.listen",
            )
    _check_sharing("redirect", redirect, "redirected connections have no users and no requests")


def _check_dns_listener(config: Config) -> None:
    section = config.dns_listener
    if section is None:
        return
    for address in section.addresses:
        if not isinstance(address, Address):
            raise Mistake(
                f"{address}: clients ask at an IP address and port", ".dns_listener.listen"
            )
        if is_remote(address) and not section.allow_remote:
            raise Mistake(
                f"{address} would answer all machines that can reach it"
                " (dns_listener.allow_remote: true if that is intended, with clients)",
                ".dns_listener.listen",
            )
        if is_remote(address) and section.clients is None:
            raise Mistake(
                f"{address} would be an open resolver: needs the networks that may ask",
                ".dns_listener.clients",
            )
    _check_sharing("dns_listener", section, "questions have no users and no requests")


def _check_sharing(name: str, section: SharingSection, why: str) -> None:
    """Raise Mistake for what a section without users, or without exits of its own, can't have."""
    for limit in ("per_key", *_OF_USERS, "request_body"):
        if getattr(section.limits, limit) is not None:
            raise Mistake(why, f".{name}.limits.{limit}")
    if not section.has_own_exits:
        fields = _fields(type(section))
        for key in _OF_EXITS:
            if getattr(section, key) != fields[key].default:
                raise Mistake(
                    "needs exits of its own (left out, they are those of local)",
                    f".{name}.{key}",
                )


def _is_any_port(endpoint: Endpoint) -> bool:
    return isinstance(endpoint, Address) and not endpoint.port


# --- parsers of values ----------------------------------------------------------------------


def _parsers(base: Path) -> _Parsers:
    return {
        Seconds: _seconds,
        Size: _size,
        Rate: _rate,
        Statuses: _statuses,
        Pseudonym: _pseudonym,
        Networks: _networks,
        Addresses: partial(_addresses, base=base),
        ListenAddresses: partial(_listen_addresses, base=base),
        ServerAddresses: _server_addresses,
        SelectedAddresses: partial(_selected_addresses, base=base),
        Routes: partial(_routes, base=base),
        AdminTokens: partial(_admin_tokens, base=base),
        HostNames: _host_names,
        Exits: partial(_exits, base=base),
        ExitSources: partial(_exit_sources, base=base),
        RuleLines: _rules,
        Path: partial(_existing_file, base=base),
        FilePath: lambda tree: FilePath(_path(tree, base)),
        IPLiteral: _ip_literal,
        Ports: _ports,
        Share: _share,
        CheckUrls: _check_urls,
        RegularExpression: _regular_expression,
        FieldPath: _field_path,
        Protocols: _protocols,
        UrlPath: _url_path,
        DirectHosts: _direct_hosts,
        NameServers: _name_servers,
        Domains: _domains,
        UserHashes: _users,
        Passphrase: _passphrase,
        Passphrases: _passphrases,
        UserNameStyles: _username_styles,
        KeySources: partial(_keys, base=base),
        StoreUrl: _store_url,
    }


def _store_url(tree: Tree) -> StoreUrl:
    return StoreUrl.parse(tree if isinstance(tree, str) else "")


def _seconds(tree: Tree) -> Seconds:
    try:
        seconds = parse_duration(tree) if isinstance(tree, str) else 0.0
    except ValueError as error:
        raise Mistake(str(error)) from None
    if not seconds:
        raise Mistake(f"{shown(tree)} is not a duration above zero (expected e.g. 30s or 10m)")
    return Seconds(seconds)


def _size(tree: Tree) -> Size:
    try:
        return Size(parse_size(tree if isinstance(tree, str) else ""))
    except ValueError:
        raise Mistake(f"{shown(tree)} is not a size (expected e.g. 64KiB or 10MB)") from None


def _rate(tree: Tree) -> Rate:
    try:
        rate = parse_rate(tree if isinstance(tree, str) else "")
    except ValueError:
        raise Mistake(f"{shown(tree)} is not a rate (expected e.g. 64KiB/s or 10MB/s)") from None
    if rate < _MIN_RATE:
        raise Mistake(f"{shown(tree)} is less than {format_rate(_MIN_RATE)}, the minimum")
    return Rate(rate)


def _statuses(tree: Tree) -> Statuses:
    found: dict[int, None] = {}
    for at, item in _items(tree):
        if not isinstance(item, str) or not re.fullmatch("[45][0-9]{2}", item):
            raise Mistake(f"{shown(item)} is not a status of a failure (expected e.g. 429)", at)
        found[int(item)] = None
    return Statuses(found)


def _pseudonym(tree: Tree) -> Pseudonym:
    if not isinstance(tree, str) or not re.fullmatch(TOKEN, tree) or len(tree) > MAX_WORD:
        raise Mistake(f"{shown(tree)} is not a name for Via (expected e.g. gsocks)")
    return Pseudonym(tree)


def _networks(tree: Tree) -> Networks:
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


def _addresses(tree: Tree, base: Path) -> Addresses:
    found = _one_or_more(tree, lambda at: ListenAddress(parse_endpoint(at, base)))
    return Addresses(each.address for each in found)


def _listen_addresses(tree: Tree, base: Path) -> ListenAddresses:
    return ListenAddresses(_one_or_more(tree, partial(_listen_address, base=base)))


def _server_addresses(tree: Tree) -> ServerAddresses:
    found: dict[Address, None] = {}
    for at, item in _items(tree if isinstance(tree, list) else [tree]):
        where = at if isinstance(tree, list) else ""
        address = _server_address(item, where)
        if address in found:
            raise Mistake(f"duplicate address {address}", where)
        found[address] = None
    if not found:
        raise Mistake("needs a name server (expected e.g. 1.1.1.1:53)")
    return ServerAddresses(found)


def _server_address(tree: Tree, at: str) -> Address:
    text = tree if isinstance(tree, str) else ""
    host = text.removeprefix("[").removesuffix("]")
    try:
        if ip_of(host) is not None:
            return Address.of(host, DNS_PORT)
        address = Address.parse(text)
    except BadAddress:
        address = None
    if address is None or not address.port or address.is_unspecified:
        raise Mistake(f"{shown(tree)} is not a name server (expected e.g. 1.1.1.1:53)", at)
    return address


def _selected_addresses(tree: Tree, base: Path) -> SelectedAddresses:
    read = partial(_listen_address, base=base, keys=_SELECTOR_KEYS)
    return SelectedAddresses(_one_or_more(tree, read))


def _one_or_more(tree: Tree, read: Callable[[Tree], ListenAddress]) -> list[ListenAddress]:
    if not isinstance(tree, list):
        return [read(tree)]
    if not tree:
        raise Mistake("needs an address (expected e.g. 127.0.0.1:1080)")
    found: list[ListenAddress] = []
    for at, item in _items(tree):
        try:
            listener = read(item)
        except Mistake as mistake:
            raise mistake.prefixed(at) from None
        address = listener.address
        if not _is_any_port(address) and any(each.address == address for each in found):
            raise Mistake(f"duplicate address {address}", at)
        found.append(listener)
    return found


def _listen_address(
    tree: Tree, base: Path, keys: Mapping[str, Callable[[Tree], object]] | None = None
) -> ListenAddress:
    """``keys``: those that may stand beside the address; None: all."""
    if not isinstance(tree, dict):
        return ListenAddress(parse_endpoint(tree, base))
    address_of: Callable[[Tree], object] = partial(parse_endpoint, base=base)
    options = _options(tree, {"address": address_of, **(LISTEN_KEYS if keys is None else keys)})
    if "address" not in options:
        raise Mistake("missing (expected e.g. 127.0.0.1:1081)", ".address")
    address, styles = options.pop("address"), options.pop("username_style", None)
    switches = [options.pop(name, None) for name in ("ask", "prefer_login", "tls")]
    return ListenAddress(address, ExitSelector(**options), styles, *switches)


def _options(tree: dict[str, Tree], keys: Mapping[str, Callable[[Tree], object]]) -> dict[str, Any]:
    """The values of a mapping, each made by that of ``keys``.  Raises Mistake."""
    options: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in keys:
            raise unknown_key(name, keys)
        try:
            options[name] = keys[name](value)
        except Mistake as mistake:
            raise mistake.prefixed(f".{name}") from None
        except ValueError as error:
            raise Mistake(str(error), f".{name}") from None
    return options


def _routes(tree: Tree, base: Path) -> Routes:
    found: list[Route] = []
    taken: set[tuple[Endpoint, bool]] = set()
    for at, item in _items(tree):
        try:
            route = _route(item, base)
        except Mistake as mistake:
            raise mistake.prefixed(at) from None
        for leg in route.legs():
            if (leg.listen, route.udp) in taken and not _is_any_port(leg.listen):
                raise Mistake(f"duplicate address {leg.listen}", f"{at}.listen")
            taken.add((leg.listen, route.udp))
        found.append(route)
    if not found:
        raise Mistake("needs a route (expected e.g. {listen: 127.0.0.1:5432, to: db:5432})")
    return Routes(found)


def _route(tree: Tree, base: Path) -> Route:
    if not isinstance(tree, dict):
        raise Mistake(
            f"{shown(tree)} is not a forward"
            " (expected e.g. {listen: 127.0.0.1:5432, to: db:5432})"
        )
    options = _options(tree, {"listen": _text, "to": _text, **ROUTE_KEYS})
    for name in ("listen", "to"):
        if name not in options:
            raise Mistake("missing (expected e.g. 127.0.0.1:5432)", f".{name}")
    here, there, ports = parse_ports(options.pop("listen"), options.pop("to"), base)
    udp = options.pop("udp", False)
    if udp and isinstance(here, UnixPath):
        raise Mistake("a Unix socket is not forwarded by UDP", ".udp")
    return Route(here, there, ports, udp, ExitSelector(**options))


def _admin_tokens(tree: Tree, base: Path) -> AdminTokens:
    found: dict[str, AdminToken] = {}
    for at, item in _items(tree):
        try:
            token = _admin_token(item, base)
        except Mistake as mistake:
            raise mistake.prefixed(at) from None
        if token.name in found or token.name == "admin":
            raise Mistake(f"duplicate name {token.name!r}", f"{at}.name")
        found[token.name] = token
    return AdminTokens(found.values())


def _admin_token(tree: Tree, base: Path) -> AdminToken:
    if not isinstance(tree, dict):
        raise Mistake(
            f"{shown(tree)} is not a token (expected e.g. {{name: eve, role: viewer, file: eve}})"
        )
    options = _options(
        tree,
        {
            "name": _token_name,
            "role": _role,
            "file": partial(parse_path, base=base),
            "sha256": _sha256,
        },
    )
    for name in ("name", "role"):
        if name not in options:
            raise Mistake("missing", f".{name}")
    if ("file" in options) == ("sha256" in options):
        raise Mistake("a token needs a file or a sha256, and not both", ".file")
    return AdminToken(**options)


def _token_name(tree: Tree) -> str:
    if not isinstance(tree, str) or not _PLAIN_NAME.fullmatch(tree):
        raise Mistake(f"{shown(tree)} is not a name (expected 1 to 40 letters, digits, _ -)")
    return tree


def _role(tree: Tree) -> str:
    if tree not in ("viewer", "operator"):
        raise Mistake(f"{shown(tree)} is not a role (known: viewer, operator)")
    return str(tree)


def _sha256(tree: Tree) -> str:
    if not isinstance(tree, str) or not re.fullmatch("[0-9a-fA-F]{64}", tree):
        raise Mistake("not a SHA-256 (expected 64 hex digits)")
    return tree


def _host_names(tree: Tree) -> HostNames:
    found = []
    for at, item in _items([tree] if isinstance(tree, str) else tree):
        found.append(_host_name(item, at))
    return HostNames(found)


def _host_name(tree: Tree, at: str) -> str:
    try:
        return canonical_host(str(tree)).lower()
    except BadAddress as error:
        raise Mistake(str(error), at) from None


def _text(tree: Tree) -> str:
    if not isinstance(tree, str):
        raise Mistake(f"{shown(tree)} is not an address")
    return tree


def _tags(tree: Tree) -> tuple[str, ...]:
    words = tree if isinstance(tree, list) else [tree]
    return tuple(sorted({as_tag(word) for word in words}))


def _switch(tree: Tree) -> bool:
    try:
        return msgspec.convert(tree, bool, strict=False)
    except msgspec.ValidationError:
        raise Mistake(f"{shown(tree)} is not true or false") from None


def _username_styles(tree: Tree) -> UserNameStyles:
    return UserNameStyles(parse_styles(tree))


#: of an exit selector
_SELECTOR_KEYS: dict[str, Callable[[Tree], object]] = {
    "session": as_session,
    "lifetime": _seconds,
    "country": as_country,
    "tags": _tags,
    "exit": as_exit,
    "strict": _switch,
}

#: beside the address of a listener
LISTEN_KEYS: dict[str, Callable[[Tree], object]] = {
    **_SELECTOR_KEYS,
    "username_style": _username_styles,
    "ask": _switch,
    "prefer_login": _switch,
    "tls": _switch,
}

#: beside the two addresses of a route
ROUTE_KEYS: dict[str, Callable[[Tree], object]] = {"udp": _switch, **_SELECTOR_KEYS}


def _ip_literal(tree: Tree) -> IPLiteral:
    try:
        address = Address.of(tree if isinstance(tree, str) else "", 0)
    except BadAddress:
        address = None
    if address is None or address.ip is None or address.is_unspecified:
        raise Mistake(f"{shown(tree)} is not an IP address (expected e.g. 203.0.113.7)")
    return IPLiteral(address.host)


def _ports(tree: Tree) -> Ports:
    found = _PORTS.fullmatch(tree) if isinstance(tree, str) else None
    if found is not None:
        first, last = int(found[1]), int(found[2])
        if 0 < first <= last <= 65535:
            return Ports((first, last))  # type: ignore[operator, no-any-return]  # a class, see settings.py
    raise Mistake(f"{shown(tree)} is not a range of ports (expected e.g. 40000-40999)")


def _share(tree: Tree) -> Share:
    found = _PERCENT.fullmatch(tree) if isinstance(tree, str) else None
    if found is None or int(found[1]) > 100:
        raise Mistake(f"{shown(tree)} is not a share (expected e.g. 50%)")
    return Share(int(found[1]) / 100)


def _regular_expression(tree: Tree) -> RegularExpression:
    if not isinstance(tree, str) or not tree:
        raise Mistake(f"{shown(tree)} is not a regular expression")
    try:
        re.compile(tree)
    except re.error as error:
        raise Mistake(f"{shown(tree)} is not a regular expression ({error})") from None
    return RegularExpression(tree)


def _field_path(tree: Tree) -> FieldPath:
    if not isinstance(tree, str) or not all(tree.split(".")):
        raise Mistake(f"{shown(tree)} is not a field (expected e.g. ip, or geo.ip)")
    return FieldPath(tree)


def _protocols(tree: Tree) -> Protocols:
    try:
        return Protocols(transport.parse_alpn(tree))
    except ValueError as error:
        raise Mistake(str(error)) from None


def _url_path(tree: Tree) -> UrlPath:
    try:
        return UrlPath(transport.parse_url_path(tree))
    except ValueError as error:
        raise Mistake(str(error)) from None


def _direct_hosts(tree: Tree) -> DirectHosts:
    found: dict[str, None] = {}
    for at, item in _items(tree):
        try:
            found[parse_direct(item)] = None
        except ValueError as error:  # noqa: PERF203
            raise Mistake(str(error), at) from None
    return DirectHosts(found)


def _check_urls(tree: Tree) -> CheckUrls:
    found: list[WebUrl] = []
    for at, item in _items(tree):
        try:
            url = WebUrl.parse(item if isinstance(item, str) else "")
        except ValueError as error:  # the URL may hold a key, and is not repeated
            raise Mistake(f"not an http:// or https:// URL: {error}", at) from None
        if url in found:
            raise Mistake(f"duplicate URL {url}", at)
        found.append(url)
    return CheckUrls(found)


def _name_servers(tree: Tree) -> NameServers:
    found: list[NameServer] = []
    for at, item in _items(tree):
        try:
            server = NameServer.parse(item if isinstance(item, str) else "")
        except ValueError as error:
            raise Mistake(f"{shown(item)} is not a name server: {error}", at) from None
        if server in found:
            raise Mistake(f"duplicate name server {server}", at)
        found.append(server)
    if not found:
        raise Mistake("needs a name server (left out, those of /etc/resolv.conf are used)")
    return NameServers(found)


def _domains(tree: Tree) -> Domains:
    found: dict[str, None] = {}
    for at, item in _items(tree):
        try:
            domain = canonical_host(item.strip(".") if isinstance(item, str) else "")
        except BadAddress:
            domain = ""
        if not domain or ip_of(domain) is not None:
            raise Mistake(f"{shown(item)} is not a domain (expected e.g. corp.example)", at)
        found[domain] = None
    return Domains(found)


def _exits(tree: Tree, base: Path) -> Exits:
    found: dict[ExitSpec, None] = {}
    names: set[str | None] = set()
    for at, item in _items(tree):
        if isinstance(item, list):
            raise Mistake("a list is not an exit (expected e.g. socks5://10.0.0.7:1080)", at)
        try:
            spec = ExitSpec.parse(item, base)
        except Mistake as mistake:
            raise mistake.prefixed(at) from None
        if spec in found:
            raise Mistake(f"duplicate exit {spec} (use weight for a larger share)", at)
        if spec.name is not None and spec.name in names:
            raise Mistake(f"duplicate name {spec.name}", f"{at}.name")
        found[spec] = None
        names.add(spec.name)
    return Exits(found)


def _exit_sources(tree: Tree, base: Path) -> ExitSources:
    found: list[Source] = []
    for at, item in _items(tree):
        if not isinstance(item, dict):
            raise Mistake(f"{shown(item)} is not a mapping (expected e.g. file: proxies.txt)", at)
        try:
            source = parse_source(item, base)
        except Mistake as mistake:
            raise mistake.prefixed(at) from None
        for file in source.needs:
            _check_is_file(file, at)
        if any(source.kept == other.kept for other in found):
            raise Mistake(
                "duplicate source: the same list, or the same cache file, as another one", at
            )
        found.append(source)
    return ExitSources(found)


def _rules(tree: Tree) -> RuleLines:
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


def _existing_file(tree: Tree, base: Path) -> Path:
    path = _path(tree, base)
    _check_is_file(path)
    return path


def _check_is_file(path: Path, at: str = "") -> None:
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)  # is_file() tells no reason from 3.14 on
    except (FileNotFoundError, NotADirectoryError):
        is_file = False
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}", at) from None
    if not is_file:
        raise Mistake(f"{path} does not exist, or is not a file", at)


def _users(tree: Tree) -> UserHashes:
    found = UserHashes()
    for name, at, value in _named(tree):
        if ":" in name:
            raise Mistake("a user name can't hold a colon (HTTP ends it there)")
        if not isinstance(value, str) or not value.startswith("$argon2id$"):
            raise Mistake("not the hash of a password (expected what gsocks passwd prints)", at)
        found[name] = Secret(value)
    return found


def _passphrase(tree: Tree) -> Passphrase:
    if not isinstance(tree, str) or not tree or not tree.isprintable():
        raise Mistake("not a password (in YAML, quotes make it text)")
    return Passphrase(tree)


def _passphrases(tree: Tree) -> Passphrases:
    found = Passphrases()
    for name, at, value in _named(tree):
        if not isinstance(value, str) or not value or not value.isprintable():
            raise Mistake("not a password (in YAML, quotes make it text)", at)
        found[name] = Secret(value)
    return found


def _keys(tree: Tree, base: Path) -> KeySources:
    found = KeySources()
    for name, at, value in _named(tree):
        try:
            source = _key_source(value, base)
        except Mistake as mistake:
            raise mistake.prefixed(at) from None
        for other, known in found.items():
            if known == source:
                raise Mistake(f"duplicate key: the same as {other}", at)
        found[name] = source
    if not found:
        raise Mistake("needs a key (expected e.g. default: {file: gsocks.key})")
    return found


_KEY_ORIGINS: dict[str, Callable[[object], KeyOrigin]] = {
    "env": parse_variable,
    "command": parse_command,
}

_KEY_SOURCES = ("file", "key", *_KEY_ORIGINS)


def _key_source(tree: Tree, base: Path) -> KeySource:
    if not isinstance(tree, dict):
        return KeySource(key=_key(tree))
    for name in tree:
        if name not in _KEY_SOURCES:
            raise unknown_key(name, _KEY_SOURCES)
    if len(tree) != 1:
        raise Mistake("needs either a file or a key")
    for name, parse_origin in _KEY_ORIGINS.items():
        if name in tree:
            try:
                return KeySource(origin=parse_origin(tree[name]))
            except Mistake as mistake:
                raise mistake.prefixed(f".{name}") from None
    if "key" in tree:
        try:
            return KeySource(key=_key(tree["key"]))
        except Mistake as mistake:
            raise mistake.prefixed(".key") from None
    try:
        return KeySource(file=_path(tree["file"], base))
    except Mistake as mistake:
        raise mistake.prefixed(".file") from None


def _key(tree: Tree) -> str:
    try:
        return Key.parse(tree if isinstance(tree, str) else "").text()
    except ConfigError as error:
        raise Mistake(str(error)) from None


def _path(tree: Tree, base: Path) -> Path:
    try:
        return parse_path(tree, base)
    except ValueError as error:
        raise Mistake(str(error)) from None


def _items(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Each item of a list behind its place."""
    if not isinstance(tree, list):
        raise Mistake(f"{shown(tree)} is not a list")
    for index, item in enumerate(tree):
        yield f"[{index}]", item


def _named(tree: Tree) -> Iterator[tuple[str, str, Tree]]:
    """Each value of a mapping behind its name and its place."""
    if not isinstance(tree, dict):
        raise Mistake(f"{shown(tree)} is not a mapping of names")
    for name, value in tree.items():
        if not name or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
            raise Mistake(
                f"a name that is empty, not printable or longer than {_MAX_NAME_BYTES} bytes"
            )
        yield name, f".{name}" if _PLAIN_NAME.fullmatch(name) else f"[{shown(name)}]", value
