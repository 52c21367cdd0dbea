"""Reference of the configuration file, generated from its structs: tables and a JSON schema.

    python -m gsocks.config.document

writes the tables of keys into docs/config.md, between two markers, and docs/config.schema.json
(JSON Schema, draft 2020-12), by which editors complete and check a config while it is written.  A
key's description is the comment (``#:``) of its field; msgspec knows type and default.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import Meta

from gsocks.access.networks import Networks
from gsocks.access.username_style import MEANINGS, STYLES
from gsocks.config.changes import SECTIONS
from gsocks.config.schema import (
    Addresses,
    Admin,
    AdminTokens,
    Config,
    DnsListener,
    Exits,
    ExitSources,
    FilePath,
    Forwards,
    HealthServer,
    HostNames,
    KeySources,
    ListenAddresses,
    Local,
    Log,
    Passphrase,
    Passphrases,
    Pseudonym,
    Redirect,
    Routes,
    RuleLines,
    Section,
    SelectedAddresses,
    Server,
    ServerAddresses,
    Shadowsocks,
    SharingSection,
    State,
    Statuses,
    UserHashes,
    UserNameStyles,
)
from gsocks.config.store import StoreUrl
from gsocks.exits.spec import MAX_WEIGHT, MIN_WEIGHT
from gsocks.request import MAX_WORD
from gsocks.rotation.sources import INTERVAL
from gsocks.settings import (
    CheckSettings,
    CheckUrls,
    Count,
    DirectHosts,
    DnsSettings,
    Domains,
    ExpectSettings,
    FieldPath,
    ForwardUdpSettings,
    HealthSettings,
    IPLiteral,
    Limits,
    NameServers,
    PacSettings,
    PerHostSettings,
    PoolSettings,
    Ports,
    Protocols,
    Rate,
    RegularExpression,
    RequestLogSettings,
    ReuseSettings,
    Seconds,
    SessionSettings,
    Share,
    Size,
    Switch,
    Timeouts,
    TlsSettings,
    TracingSettings,
    Transport,
    TransportSettings,
    UdpSettings,
    UrlPath,
)
from gsocks.shadowsocks.methods import METHODS
from gsocks.units import format_duration, format_size

BEGIN = "<!-- keys: written by python -m gsocks.config.document -->"
END = "<!-- end of keys -->"

Schema: TypeAlias = dict[str, Any]


class Key(NamedTuple):
    """One key of a mapping."""

    name: str
    #: its values, in a word or two
    values: str
    schema: Schema
    description: str
    #: as it would be written; None: there is none, or it is in the description
    default: Any = None
    required: bool = False


class Values(NamedTuple):
    """How the text of a type is written."""

    words: str
    schema: Schema


# --- the values -------------------------------------------------------------------------------

_TEXT: Schema = {"type": "string", "minLength": 1}
# YAML makes numbers and booleans of words such as 7 and true, which gsocks reads as text
_WORD: Schema = {"type": ["string", "number", "boolean"]}
_NUMBER = r"(\d+(\.\d*)?|\.\d+)"
_DURATION: Schema = {
    "anyOf": [
        {"type": "string", "pattern": rf"^({_NUMBER}(ms|s|m|h|d)?)+$"},
        {"type": "number", "exclusiveMinimum": 0},
    ]
}
_Cipher = Annotated[
    str, Meta(description=f"a cipher (known: secretbox, aegis256, {', '.join(METHODS)})")
]
_ListScheme = Annotated[
    Literal["socks5", "socks5s", "socks4", "socks4a", "http", "https"],
    Meta(description="a scheme (known: socks5, socks5s, socks4, socks4a, http, https)"),
]
_Role = Annotated[
    Literal["viewer", "operator"], Meta(description="a role (known: viewer, operator)")
]
_Place = Annotated[Literal["user", "password"], Meta(description="a place (known: user, password)")]
_Unit = Annotated[
    Literal["minutes", "seconds"], Meta(description="a unit (known: minutes, seconds)")
]
_IP = r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)"
_ADDRESS: Schema = {
    "anyOf": [
        {"type": "string", "pattern": rf"^{_IP}:\d{{1,5}}$"},
        {"type": "string", "pattern": r"^unix:[^?]+(\?mode=0?[0-7]{3})?$"},
        {"type": "string", "pattern": r"^systemd:[^:]*$"},
    ]
}
_PORTS: Schema = {"type": "string", "pattern": rf"^{_IP}:\d{{1,5}}(-\d{{1,5}})?$"}
_NAMES: Schema = {"maxLength": 255, "minLength": 1}


def _quantity(units: str) -> Schema:
    return {
        "anyOf": [
            {"type": "string", "pattern": rf"^{_NUMBER} ?{units}$"},
            {"type": "number", "minimum": 0},
        ]
    }


def _object(keys: list[Key]) -> Schema:
    return {
        "type": "object",
        "properties": {
            key.name: {**key.schema, "description": key.description}
            | ({} if key.default is None else {"default": key.default})
            for key in keys
        },
        "required": [key.name for key in keys if key.required],
        "additionalProperties": False,
    }


def _one_or_more(item: Schema) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


# mappings whose parsers stand elsewhere (exits/spec.py, rotation/sources.py, config/convert.py), as
# structs only so that they are described like the others


class Text(str):
    __slots__ = ()


class Word(str):
    __slots__ = ()


class Variable(str):
    __slots__ = ()


class Command(tuple[str, ...]):
    __slots__ = ()


class Words(tuple[str, ...]):
    __slots__ = ()


class CountryCode(str):
    __slots__ = ()


class ExitText(str):
    __slots__ = ()


class ListUrl(str):
    __slots__ = ()


class Separator(str):
    __slots__ = ()


class Meanings(dict[str, str]):
    pass


class ListenText(str):
    __slots__ = ()


class RouteListenText(str):
    __slots__ = ()


class RouteText(str):
    __slots__ = ()


class Weight(float):
    __slots__ = ()


class Price(float):
    __slots__ = ()


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """How an exit is used."""

    #: The share of the traffic, in proportion to the weights of the other exits.
    weight: Weight = Weight(1)
    #: Words by which clients select exits.
    tags: Words | None = None
    #: A country by which clients select exits; `no` needs no quotes.
    country: CountryCode | None = None
    #: Open connections of one exit at a time, in each worker, or over all that share a `state.url`.
    #: Left out: no limit.
    max_connections: Count | None = None
    #: Requests that may begin through one exit in each minute, in each worker, or over all that
    #: share a `state.url`. Left out: no limit.
    requests_per_minute: Count | None = None
    #: Bytes of one exit in a day (of UTC), after which it rests until the next.
    bytes_per_day: Size | None = None
    #: The same in a calendar month.
    bytes_per_month: Size | None = None
    #: The price of a gigabyte (10^9 bytes) in any currency, by which the admin API tells the cost.
    cost_per_gb: Price | None = None
    #: What one exit may cost in a calendar month, after which it rests; needs `cost_per_gb`.
    cost_per_month: Price | None = None
    #: The exit through which the proxy is reached.
    via: ExitText | None = None
    #: `https`, `socks5s`, `trojan`, or a `transport` with TLS: a file of the certificates that are
    #: trusted, in PEM. Left out: the system's.
    ca: FilePath | None = None
    #: The same: whether the exit's certificate is not checked at all.
    insecure: Switch = False
    #: The same: a file with a certificate of gsocks' own, which the exit wants to see, in PEM.
    cert: FilePath | None = None


class ExitKeys(Use, frozen=True, kw_only=True):
    """An exit as a mapping."""

    #: `direct`, or `SCHEME://HOST:PORT` with a user and a password, or a key, before an `@`.
    #: Schemes: `gsocks`, `socks5`, `socks5s` (SOCKS5 in TLS), `socks4a`, `socks4` (names are
    #: resolved here), `http`, `https`, `ss` (Shadowsocks), whose URLs are those of SIP002, and
    #: `trojan://PASSWORD@HOST:PORT`. A proxy at a Unix socket is `socks5+unix:///run/tor/socks`, or
    #: the same with `http+unix`, `socks4+unix`, `socks4a+unix`.
    url: Text
    #: The name in logs and for clients, in small letters; no two exits have the same. Left out:
    #: eight hex digits, made of the URL without the password (or a user name that has none, which
    #: is taken for an API key, and hidden like one).
    name: Word | None = None
    #: The proxy's user name, if it is not in the URL.
    user: Word | None = None
    #: The proxy's password, if it is not in the URL; of a method of 2022 its key in base64, or
    #: several with colons between them.
    password: Word | None = None
    #: `gsocks`: the file of the server's key.
    key_file: FilePath | None = None
    #: `gsocks`: the server's key itself, in base64. `https`, `socks5s`, `trojan`: the file with the
    #: key of `cert`, if that has none.
    key: Text | None = None
    #: `gsocks`: an environment variable that has the key; not in a list of exits.
    key_env: Variable | None = None
    #: `gsocks`: a command that prints the key, as a list of words, without a shell; not in a list
    #: of exits.
    key_command: Command | None = None
    #: `gsocks`: `aegis256` where both ends have AES instructions. `ss`: its method, if it is not in
    #: the URL.
    cipher: _Cipher = "secretbox"
    #: `https`, `socks5s`, `trojan`, or a `transport` with TLS: the name to ask the exit for (SNI),
    #: which its certificate must have. Left out: the host of the URL.
    sni: Word | None = None
    #: `gsocks`: what the tunnels travel in, as `server.transport.kind` at the other end; or `wss`
    #: to a web server in front of a server with `ws`.
    transport: Transport = "tcp"
    #: `transport: ws` or `wss`: the path of the WebSocket.
    path: UrlPath = UrlPath("/")
    #: `transport: ws` or `wss`: the host that its request names. Left out: `sni`, or that of the
    #: URL.
    host_header: Word | None = None
    #: `trojan`, or a `transport` with TLS: the protocols that are offered by ALPN; `[]` for none.
    alpn: Protocols = ("http/1.1",)
    #: A `transport` with TLS: the file with the key of `cert`, if that has none.
    cert_key: FilePath | None = None
    #: `direct`: the address, or the network, that connections leave from: its addresses in turn,
    #: and each session from one of its own.
    source: Text | None = None
    #: `direct`: the network interface by which connections leave (SO_BINDTODEVICE).
    interface: Word | None = None
    #: `direct`: the mark of their packets, as `ip rule` and nftables know it (SO_MARK), such as
    #: `7` or `0x1f`; needs CAP_NET_ADMIN.
    mark: Word | None = None


class ExitSourceKeys(Use, frozen=True, kw_only=True):
    """A list of exits in a file or at a URL; a line may say otherwise about its exit."""

    #: The list; a source has either a file or a url.
    file: FilePath | None = None
    #: Where the list is fetched.
    url: ListUrl | None = None
    #: The scheme of lines that have none.
    scheme: _ListScheme = "http"
    #: `url`: from one fetch to the next.
    interval: Seconds = INTERVAL
    #: `url`: the file that keeps the last response. Left out: a hidden file beside the config.
    cache: FilePath | None = None
    #: `url`: a file of header fields for the request, one `Name: value` a line.
    header_file: FilePath | None = None
    #: `url`: the exit through which it is fetched. Left out: directly.
    fetch_via: ExitText | None = None
    #: `url`: whether its exits, and servers to which it redirects, may have private addresses, and
    #: whether a line may give its exit more weight. Left out: only if the URL has one itself.
    private: Switch | None = None
    #: `url`: whether its exits may be gsocks servers.
    gsocks: Switch = False


class _SelectorKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Which exits the clients of an address are served by."""

    #: The session of all its clients: they keep one exit.
    session: Word | None = None
    #: How long that session keeps its exit, at most `sessions.longest` of `local`.
    lifetime: Seconds | None = None
    #: Only exits of that country.
    country: CountryCode | None = None
    #: Only exits that have all these tags.
    tags: Words | None = None
    #: Only the exit of that name.
    exit: Word | None = None
    #: Whether that session fails rather than move to another exit.
    strict: Switch = False


class ListenKeys(_SelectorKeys, frozen=True, kw_only=True):
    """An address of `local.listen` as a mapping."""

    #: IP address and port.
    address: ListenText
    #: How its clients write parameters into their credentials. Left out: `local.username_style`.
    username_style: UserNameStyles | None = None
    #: Whether HTTP clients without credentials are asked for some (407): browsers, Java and others
    #: send a user name, and so their session, only then. Left out: `local.ask`; without that, where
    #: `sessions.strict` is on or an exit of `exits` has `{session}` in its credentials, unless this
    #: address has a `session` or `sessions.by_client` is on.
    ask: Switch | None = None
    #: Whether SOCKS5 clients that offer a login besides none are asked for it, where there are no
    #: `users`: curl, Go and others have one then, whose name may carry a session. Java, Emacs,
    #: connect-proxy, tsocks and dante's socksify offer the same and have none: they prompt, hang or
    #: send the name of their machine's user. Left out: `local.prefer_login`; without that, where it
    #: asks by HTTP, and where a name can matter: with several exits, or one that has a country or
    #: tags, or `{session}` or `{country}` in its credentials. A client that offers nothing but a
    #: login is asked for it in any case.
    prefer_login: Switch | None = None
    #: `false`: its clients come without TLS, although there is `local.tls`.
    tls: Switch | None = None


class SelectedListenKeys(_SelectorKeys, frozen=True, kw_only=True):
    """An address of a listener without users as a mapping."""

    #: IP address and port.
    address: ListenText


class RouteKeys(_SelectorKeys, frozen=True, kw_only=True):
    """A route."""

    #: Where it listens, as at `local`; a range of ports is `127.0.0.1:8000-8010`, 1,024 of them at
    #: most.
    listen: RouteListenText
    #: Host and port, or as many ports; a name is looked up where the exit goes out.
    to: RouteText
    #: Whether datagrams are forwarded, and not connections.
    udp: Switch = False


class AdminTokenKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the admin."""

    #: Its name, in the log and for sessions of the dashboard.
    name: Word
    #: `viewer` sees, `operator` also acts.
    role: _Role
    #: A file with the token in one line, of at least 16 characters.
    file: FilePath | None = None
    #: The SHA-256 of the token in hex (`printf %s TOKEN | sha256sum`), instead of a file. The token
    #: has to be random, as `openssl rand -hex 24` makes one: a hash of a word can be guessed at.
    sha256: Text | None = None


class UserNameStyleKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A style of user names as a mapping."""

    #: What separates the user (or the password) from the first parameter. Left out: as `pairs`.
    start: Separator | None = None
    #: What separates two parameters.
    pairs: Separator = Separator("-")
    #: What separates a key from its value.
    values: Separator = Separator("-")
    #: Texts of which one may precede a user's name.
    prefixes: Words | None = None
    #: Where the parameters stand: behind the user name or behind the password.
    place: _Place = "user"
    #: What a lifetime without a unit counts.
    lifetime_unit: _Unit = "minutes"
    #: More keys, and what each means: `session`, `strict_session` (one that fails rather than
    #: move), `strict` (which has no value), `lifetime`, `country`, `tag`, `exit` or `ignored`.
    keys: Meanings | None = None


_VARIABLE: Schema = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
_COMMAND: Schema = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 100}

_KEY_SOURCE: Schema = {
    "anyOf": [
        _TEXT,
        {
            "type": "object",
            "properties": {"file": _TEXT, "key": _TEXT, "env": _VARIABLE, "command": _COMMAND},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ]
}

#: how the types that have a parser of their own (config/convert.py) are written
VALUES: dict[Any, Values] = {
    Text: Values("text", _TEXT),
    Word: Values("word", _WORD),
    Variable: Values("variable", _VARIABLE),
    Command: Values("words", _COMMAND),
    Words: Values("words", {"anyOf": [_WORD, {"type": "array", "items": _WORD}]}),
    CountryCode: Values("two letters", {"type": ["string", "boolean"]}),
    Weight: Values(
        f"number from {MIN_WEIGHT} to {MAX_WEIGHT}",
        {"type": "number", "minimum": MIN_WEIGHT, "maximum": MAX_WEIGHT},
    ),
    Price: Values("number", {"type": "number", "exclusiveMinimum": 0}),
    ExitText: Values("exit", {"anyOf": [_TEXT, {"$ref": "#/$defs/ExitKeys"}]}),
    ListUrl: Values("URL", {"type": "string", "pattern": "^https?://"}),
    ListenText: Values("address", _ADDRESS),
    RouteListenText: Values("address", {"anyOf": [_PORTS, *_ADDRESS["anyOf"][1:]]}),
    RouteText: Values("destination", _PORTS),
    ServerAddresses: Values("name servers", _one_or_more(_TEXT)),
    SelectedAddresses: Values(
        "addresses", _one_or_more({"anyOf": [_ADDRESS, {"$ref": "#/$defs/SelectedListenKeys"}]})
    ),
    Routes: Values(
        "routes", {"type": "array", "items": {"$ref": "#/$defs/RouteKeys"}, "minItems": 1}
    ),
    AdminTokens: Values("tokens", {"type": "array", "items": {"$ref": "#/$defs/AdminTokenKeys"}}),
    HostNames: Values("names", _one_or_more(_TEXT)),
    Separator: Values("signs", {"type": "string", "pattern": r"^[!-/;-@\[-`{-~]{1,4}$"}),
    Meanings: Values(
        "mapping", {"type": "object", "additionalProperties": {"enum": list(MEANINGS)}}
    ),
    UserNameStyles: Values(
        "style",
        _one_or_more({"anyOf": [{"enum": list(STYLES)}, {"$ref": "#/$defs/UserNameStyleKeys"}]}),
    ),
    Seconds: Values("duration", _DURATION),
    Size: Values("size", _quantity("([KMGT]i?B|[kKMGT]B|B)?")),
    Rate: Values("rate", _quantity("(([KMGT]i?B|[kKMGT]B|B)(/s)?)?")),
    Share: Values("percentage", {"type": "string", "pattern": r"^(\d{1,2}|100)%$"}),
    IPLiteral: Values("IP address", _TEXT),
    Ports: Values("range", {"type": "string", "pattern": r"^\d{1,5}-\d{1,5}$"}),
    CheckUrls: Values(
        "URLs", {"type": "array", "items": {"type": "string", "pattern": "^https?://"}}
    ),
    RegularExpression: Values("regular expression", {**_TEXT, "format": "regex"}),
    NameServers: Values("name servers", {"type": "array", "items": _TEXT, "minItems": 1}),
    Domains: Values("domains", {"type": "array", "items": _TEXT}),
    DirectHosts: Values("hosts", {"type": "array", "items": _TEXT}),
    UrlPath: Values("path", {"type": "string", "pattern": '^/[!-"$-~]*$'}),
    Protocols: Values("words", {"anyOf": [_WORD, {"type": "array", "items": _WORD}]}),
    FieldPath: Values("field", {"type": "string", "pattern": r"^[^.]+(\.[^.]+)*$"}),
    Networks: Values("networks", {"type": "array", "items": _TEXT, "minItems": 1}),
    Addresses: Values("addresses", _one_or_more(_ADDRESS)),
    ListenAddresses: Values(
        "addresses", _one_or_more({"anyOf": [_ADDRESS, {"$ref": "#/$defs/ListenKeys"}]})
    ),
    Exits: Values(
        "exits", {"type": "array", "items": {"anyOf": [_TEXT, {"$ref": "#/$defs/ExitKeys"}]}}
    ),
    ExitSources: Values("lists", {"type": "array", "items": {"$ref": "#/$defs/ExitSourceKeys"}}),
    RuleLines: Values(
        "rules",
        {"type": "array", "items": {"type": "string", "pattern": "^(allow|deny) "}, "minItems": 1},
    ),
    Pseudonym: Values("word", {**_TEXT, "maxLength": MAX_WORD}),
    Statuses: Values(
        "statuses",
        {"type": "array", "items": {"type": "integer", "minimum": 400, "maximum": 599}},
    ),
    StoreUrl: Values(
        "URL", {"type": "string", "pattern": "^(rediss?([+](sentinel|cluster))?|unix)://"}
    ),
    Path: Values("path", _TEXT),
    FilePath: Values("path", _TEXT),
    UserHashes: Values(
        "mapping",
        {
            "type": "object",
            "propertyNames": {**_NAMES, "pattern": "^[^:]*$"},
            "additionalProperties": {"type": "string", "pattern": r"^\$argon2id\$"},
        },
    ),
    Passphrase: Values("text", _TEXT),
    Passphrases: Values(
        "mapping",
        {"type": "object", "propertyNames": _NAMES, "additionalProperties": _TEXT},
    ),
    KeySources: Values(
        "mapping",
        {
            "type": "object",
            "propertyNames": _NAMES,
            "additionalProperties": _KEY_SOURCE,
            "minProperties": 1,
        },
    ),
}


_FORWARDS: Schema = {"anyOf": [{"$ref": "#/$defs/Forwards"}, VALUES[Routes].schema]}


# --- the structs ------------------------------------------------------------------------------


def keys_of(struct: type[msgspec.Struct]) -> list[Key]:
    """The keys of ``struct``, its own before those of its base."""
    described = dict(pair for base in reversed(struct.__mro__) for pair in _descriptions(base))
    found: list[Key] = []
    for field in msgspec.structs.fields(struct):
        kind = get_args(field.type)[0] if type(None) in get_args(field.type) else field.type
        default: Any = None
        if kind is Forwards:  # of which the routes alone may be written
            words, schema = "mapping or routes", _FORWARDS
        elif _is_struct(kind):
            words, schema = "mapping", {"$ref": f"#/$defs/{kind.__name__}"}
        else:
            words, schema = VALUES.get(kind) or _simple(kind)
            default = _written(kind, field.default)
        description = described.get(field.name) or inspect.cleandoc(kind.__doc__)
        found.append(Key(field.name, words, schema, description, default, field.required))
    return sorted(found, key=lambda key: key.name not in struct.__annotations__)


def _descriptions(struct: type) -> Iterator[tuple[str, str]]:
    """Each field's name with the comment above it."""
    if not _is_struct(struct) or struct is msgspec.Struct:
        return
    lines: list[str] = []
    for line in inspect.getsource(struct).splitlines():
        if comment := re.fullmatch(r"    #: (.*)", line):
            lines.append(comment[1])
            continue
        if lines and (field := re.match(r"    (\w+):", line)):
            yield field[1], " ".join(lines)
        lines = []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _simple(kind: Any) -> Values:
    """Numbers, words and booleans, which msgspec converts without us."""
    schema = msgspec.json.schema(kind)
    words = schema.pop("description")
    if known := re.search(r"\(known: (.*)\)", words):
        schema = {"enum": known[1].split(", ")}  # in their order, which msgspec doesn't keep
        words = ", ".join(f"`{word}`" for word in schema["enum"])
    return Values(words.removeprefix("a whole ").removeprefix("a ").replace("a whole ", ""), schema)


def _written(kind: Any, default: Any) -> Any:
    """A default as a config would have it; None if there is none."""
    if default in (None, msgspec.NODEFAULT) or default == ():
        return None
    if kind is Seconds:
        return format_duration(default)
    if kind is Size:
        return format_size(default)
    if kind is Share:
        return f"{default:.0%}"
    if kind is Weight:
        return int(default)
    return [str(each) for each in default] if isinstance(default, tuple) else default


# --- what is written --------------------------------------------------------------------------


def schema() -> Schema:
    """The JSON schema of a configuration file."""
    structs: list[type[msgspec.Struct]] = [
        Log,
        Local,
        Server,
        Forwards,
        Redirect,
        DnsListener,
        DnsSettings,
        Admin,
        RequestLogSettings,
        HealthServer,
        State,
        TracingSettings,
        Limits,
        Timeouts,
        PoolSettings,
    ]
    structs += [
        HealthSettings,
        CheckSettings,
        PerHostSettings,
        ExpectSettings,
        UdpSettings,
        ForwardUdpSettings,
        SessionSettings,
        ReuseSettings,
        PacSettings,
        TlsSettings,
        TransportSettings,
    ]
    structs += [Shadowsocks, ListenKeys, SelectedListenKeys, RouteKeys, ExitKeys]
    structs += [UserNameStyleKeys, AdminTokenKeys]
    listens = {"anyOf": [{"required": ["listen", "keys"]}, {"required": ["shadowsocks"]}]}
    sources = {"oneOf": [{"required": ["file"]}, {"required": ["url"]}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gsocks configuration",
        **_object(keys_of(Config)),
        "anyOf": [{"required": [name]} for name in SECTIONS],
        "$defs": {
            **{struct.__name__: _object(keys_of(struct)) for struct in structs},
            "Server": {**_object(keys_of(Server)), **listens},
            "ExitSourceKeys": {**_object(keys_of(ExitSourceKeys)), **sources},
        },
    }


def tables() -> str:
    """The tables of all keys, in Markdown."""
    common = {key.name for key in keys_of(Section)}
    only = {
        struct: [key for key in keys_of(struct) if key.name not in common]
        for struct in (Local, Server)
    }
    parts = [
        _table("The process", "", keys_of(Config)),
        _table("`log`", "log.", keys_of(Log)),
        _table("`local` and `server`", "", keys_of(Section)),
        _table("`local` only", "", only[Local]),
        _table("`server` only", "", only[Server]),
        _table("`forwards`, beside the keys of both", "forwards.", _own_keys(Forwards)),
        _table("`redirect`, beside the keys of both", "redirect.", _own_keys(Redirect)),
        _table("`dns_listener`, beside the keys of both", "dns_listener.", _own_keys(DnsListener)),
    ]
    parts += [
        _table(f"`{field.name}`", f"{field.name}.", keys_of(field.type))
        for field in msgspec.structs.fields(Local)
        if _is_struct(field.type)
    ]
    parts += [
        _table("`shadowsocks`", "shadowsocks.", keys_of(Shadowsocks)),
        _table("`tls`", "tls.", keys_of(TlsSettings)),
        _table("`transport`", "transport.", keys_of(TransportSettings)),
        _table("`checks.expect`", "checks.expect.", keys_of(ExpectSettings)),
        _table("`dns`", "dns.", keys_of(DnsSettings)),
        _table("`admin`", "admin.", keys_of(Admin)),
        _table("`health` of the process", "health.", keys_of(HealthServer)),
        _table("`state`", "state.", keys_of(State)),
        _table("`requests`", "requests.", keys_of(RequestLogSettings)),
        _table("`tracing`", "tracing.", keys_of(TracingSettings)),
        _table("`forwards.udp`", "forwards.udp.", keys_of(ForwardUdpSettings)),
        _table("An address of `local.listen` as a mapping", "listen[].", keys_of(ListenKeys)),
        _table("A route of `forwards`", "forwards.routes[].", keys_of(RouteKeys)),
        _table(
            "An address of `redirect.listen` or `dns_listener.listen` as a mapping",
            "listen[].",
            keys_of(SelectedListenKeys),
        ),
        _table("A token of `admin`", "admin.tokens[].", keys_of(AdminTokenKeys)),
        _table("A style of user names as a mapping", "username_style.", keys_of(UserNameStyleKeys)),
        _table("An exit as a mapping", "exits[].", keys_of(ExitKeys)),
        _table("A list of exits", "exit_sources[].", keys_of(ExitSourceKeys)),
    ]
    return "\n".join(parts)


def _own_keys(struct: type[SharingSection]) -> list[Key]:
    """Those that `local` and `server` don't have, or that mean something else there."""
    own = struct.__annotations__ | SharingSection.__annotations__
    return [key for key in keys_of(struct) if key.name in own]


def _table(title: str, prefix: str, keys: list[Key]) -> str:
    rows = [
        f"| `{prefix}{key.name}` | {key.values} | {_cell(key)} | {key.description} |"
        for key in keys
        if not key.schema.get("$ref", "").startswith("#/$defs/") or prefix
    ]
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"### {title}", "", *head, *rows, ""])


def _cell(key: Key) -> str:
    if key.default is None:
        return "required" if key.required else ""
    default = key.default
    if isinstance(default, list):
        default = ", ".join(default)
    return f"`{json.dumps(default) if isinstance(default, bool) else default}`"


def with_tables(text: str) -> str:
    """docs/config.md with the tables as they are now.  Raises ValueError for a missing marker."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the markers of the keys are missing")
    return f"{before}{begin}\n\n{tables()}\n{end}{after}"


def schema_text() -> str:
    """The content of docs/config.schema.json."""
    return json.dumps(schema(), indent=2) + "\n"


def main() -> None:
    """Write both files of this checkout."""
    folder = Path(__file__).parent.parent.parent / "docs"
    document = folder / "config.md"
    document.write_text(with_tables(document.read_text()))
    (folder / "config.schema.json").write_text(schema_text())


if __name__ == "__main__":
    main()
