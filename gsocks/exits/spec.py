"""The written form of an exit, as a URL or a mapping, and its meaning: an :class:`ExitSpec`.

    direct                               direct://?source=203.0.113.0/28
    direct://?interface=wg0&mark=7       socks5+unix:///run/tor/socks
    socks5s://10.0.0.7:1080              (SOCKS5 in TLS)
    gsocks://KEY@vps.example.com:8388    socks5://user:password@10.0.0.7:1080
    socks4a://user@10.0.0.7              http://user:password@10.0.0.7:3128
    gsocks://KEY@vps.example.com:443?transport=wss&path=/updates
    ss://METHOD:PASSWORD@vps.example.com:8388, and the other forms of gsocks/shadowsocks/url.py
    trojan://PASSWORD@vps.example.com:443?sni=www.example.com     (gsocks/exits/trojan_url.py)

or a mapping with the same under ``url`` and options beside it.  The options may as well follow
the URL as its query (``socks5://10.0.0.7?weight=2&tags=de,residential``), which is how a list of
proxies carries them; there an ``@`` is written ``%40``, because a password may hold anything
else: the last ``@`` is the one that ends it.

User names and passwords may be templates, which pass a client's exit selector on:
``me-sessid-{session}`` (see gsocks/exits/credentials.py).

No message here quotes any part of a URL but its scheme: in an invalid URL it is unknown which part
was meant to be the secret.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from gsocks.access.networks import IPNetwork, parse_network
from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.errors import BadAddress, ConfigError
from gsocks.exits import credentials
from gsocks.exits.budget import Budget
from gsocks.exits.trojan_url import split as split_trojan
from gsocks.key_origin import KeyOrigin, parse_command, parse_variable
from gsocks.link import Link
from gsocks.messages import Mistake, did_you_mean, shown, unknown_key
from gsocks.net.endpoint import MAX_PATH
from gsocks.net.route import parse_interface, parse_mark
from gsocks.request import as_country, as_exit, as_tag
from gsocks.shadowsocks.methods import check_packages, keys_of, method_named
from gsocks.shadowsocks.url import SsUrl
from gsocks.shadowsocks.url import split as split_shadowsocks
from gsocks.transport.options import (
    KINDS,
    OVER_TLS,
    OVER_WEBSOCKET,
    parse_alpn,
    parse_host,
    parse_kind,
    parse_url_path,
)
from gsocks.units import parse_size

#: every scheme, with its default port; HTTP proxies have no port that people agree on
SCHEMES: dict[str, int | None] = {
    "direct": None,
    "gsocks": 8388,
    "socks5": 1080,
    "socks5s": 1080,
    "socks4": 1080,
    "socks4a": 1080,
    "http": None,
    "https": None,
    "ss": 8388,
    "trojan": 443,
}

#: how a tunnel's frames may be sealed
CIPHERS = ("secretbox", "aegis256")

# curl selects by the scheme where names are resolved; here every proxy resolves them that can
_ALIASES = {"socks5h": "socks5"}

_WITHOUT_PASSWORD = ("socks4", "socks4a")

#: proxies to which TLS is spoken
_IN_TLS = ("https", "socks5s", "trojan")

#: whose passwords stand alone, and are no templates
_PASSWORD_ALONE = ("ss", "trojan")

#: behind a scheme: the proxy is at a Unix socket, whose path stands in place of a host
_AT_SOCKET = "+unix"
_MAY_BE_AT_SOCKET = ("socks5", "socks4", "socks4a", "http")

#: each name of a scheme, and its text that all exits share
_NAMES = {name: name for name in SCHEMES} | _ALIASES

#: RFC 1929: a user name's and a password's length each travel in one byte
_LONGEST_CREDENTIAL = 255

#: exits behind one another; a chain longer than this is a slip, and each costs its round trips
_MOST_HOPS = 8

#: the weights that one exit may have: with more, no other would ever get a request
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_HOST_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")


class TlsOptions(NamedTuple):
    """How TLS to a proxy or a server is secured; by default as in a browser."""

    #: the certificates of the authorities that are trusted, in PEM; None: the system's
    ca: Path | None = None
    #: whether any certificate is accepted
    insecure: bool = False
    #: the name that is requested and that the certificate must be for; None: the exit's host
    sni: str | None = None
    #: the client's certificate in PEM, with its key unless that has a file of its own
    cert: Path | None = None
    key: Path | None = None
    #: the protocols that ALPN offers; None: http/1.1
    alpn: tuple[str, ...] | None = None

    def in_url(self, name_of_key: str) -> dict[str, str]:
        """The options that are not as by default, as a URL has them."""
        found: dict[str, str] = {}
        for name, value in zip((*self._fields[:-2], name_of_key), self[:-1], strict=True):
            if value:
                found[name] = "true" if value is True else str(value)
        if self.alpn is not None:
            found["alpn"] = ",".join(self.alpn)
        return found


class TransportOptions(NamedTuple):
    """How a tunnel travels; what its TLS is like, if it has any, is in TlsOptions."""

    kind: str
    #: of the WebSocket, if it is one
    path: str = "/"
    #: the value of Host in its request; None: the name that TLS requests, or the server's
    host_header: str | None = None

    def in_url(self) -> dict[str, str]:
        """The options that are not as by default, as a URL has them."""
        found = {"transport": self.kind}
        if self.path != "/":
            found["path"] = self.path
        if self.host_header is not None:
            found["host_header"] = self.host_header
        return found


_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class _Common:
    """What the exits of a list have in common as a rule: one object serves all that have the same.

    See the properties of :class:`ExitSpec`.
    """

    scheme: str
    key: str | None = None
    key_file: Path | None = None
    key_from: KeyOrigin | None = None
    socket: str | None = None
    source: IPNetwork | None = None
    interface: str | None = None
    mark: int | None = None
    cipher: str = CIPHERS[0]
    tls: TlsOptions | None = None
    transport: TransportOptions | None = None
    via: ExitSpec | None = None
    name: str | None = field(default=None, compare=False)
    weight: float = field(default=1.0, compare=False)
    tags: tuple[str, ...] = field(default=(), compare=False)
    country: str | None = field(default=None, compare=False)
    max_connections: int | None = field(default=None, compare=False)
    requests_per_minute: int | None = field(default=None, compare=False)
    budget: Budget | None = field(default=None, compare=False)
    public: bool = field(default=False, compare=False)


#: of these, two that are equal are not the same, or nothing is gained
_NOT_SHARED = frozenset({"key", "name", "via"})


@lru_cache(1024)
def _shared_common(scheme: str, items: tuple[tuple[str, Any], ...]) -> _Common:
    return _Common(scheme, **dict(items))


def _made_common(scheme: str, options: dict[str, Any]) -> _Common:
    if options.keys().isdisjoint(_NOT_SHARED):
        return _shared_common(scheme, tuple(options.items()))
    return _Common(scheme, **options)


def _of_common(name: str) -> Any:
    """A field of the common part, read without a call in Python."""
    return property(attrgetter(f"_common.{name}"))


class ExitSpec:
    """One exit.  Make one with :meth:`parse`; it never changes.

    Two are equal if they are the same exit, credentials included: the same host with other
    credentials is another exit.  ``name``, ``weight``, ``tags``, ``country``, ``max_connections``
    ``requests_per_minute`` and ``budget`` are terms of its use and are not compared.

    Its text and its repr hide the secrets, which are ``password``, ``key`` and :attr:`url`.
    """

    __slots__ = ("_common", "host", "password", "port", "user")

    _common: _Common
    #: canonical; empty for ``direct``, as the port is 0
    host: str
    port: int
    user: str | None
    password: str | None

    scheme: str = _of_common("scheme")
    #: the shared key of a gsocks server, in URL-safe base64; a gsocks exit has it, a file or
    #: an origin
    key: str | None = _of_common("key")
    key_file: Path | None = _of_common("key_file")
    #: where else the key comes from; only a config says so, never a list
    key_from: KeyOrigin | None = _of_common("key_from")
    #: the path of the Unix socket behind which the proxy is, instead of host and port
    socket: str | None = _of_common("socket")
    #: the addresses that ``direct`` goes out from: in turn, and each session from one
    source: IPNetwork | None = _of_common("source")
    #: the network interface by which ``direct`` goes out, and the mark of its packets
    interface: str | None = _of_common("interface")
    mark: int | None = _of_common("mark")
    #: of gsocks; of ss its method
    cipher: str = _of_common("cipher")
    #: of what TLS is spoken to, and of gsocks where its transport has TLS
    tls: TlsOptions | None = _of_common("tls")
    #: of gsocks; None: TCP alone
    transport: TransportOptions | None = _of_common("transport")
    #: the exit through which this one is reached
    via: ExitSpec | None = _of_common("via")
    #: its configured name, in lower case; None: :func:`derived_name` of its label
    name: str | None = _of_common("name")
    #: how much of the traffic, in proportion to the other exits' weights
    weight: float = _of_common("weight")
    #: lower case, as ``country`` is
    tags: tuple[str, ...] = _of_common("tags")
    country: str | None = _of_common("country")
    max_connections: int | None = _of_common("max_connections")
    requests_per_minute: int | None = _of_common("requests_per_minute")
    budget: Budget | None = _of_common("budget")
    #: whether it must be reached at a public address: another party has named it
    public: bool = _of_common("public")

    def __init__(
        self,
        scheme: str,
        host: str = "",
        port: int = 0,
        user: str | None = None,
        password: str | None = None,
        **common: Any,
    ) -> None:
        _fill(self, _made_common(scheme, common), host, port, user, password)

    def at(self, host: str, port: int, user: str | None, password: str | None) -> ExitSpec:
        """The same at another place and with other credentials, which must be valid; in a fifth of
        the time that the constructor takes."""
        made: ExitSpec = _new(ExitSpec)
        _fill(made, self._common, host, port, user, password)
        return made

    def replaced(self, **changes: Any) -> ExitSpec:
        """The same but for ``changes`` of what is neither its place nor its credentials."""
        made: ExitSpec = _new(ExitSpec)
        common = replace(self._common, **changes)
        _fill(made, common, self.host, self.port, self.user, self.password)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an ExitSpec never changes, and so its {name} can't be set")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._common, self.host, self.port, self.user, self.password)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExitSpec):
            return NotImplemented
        return (
            self.host == other.host
            and self.port == other.port
            and self.user == other.user
            and self.password == other.password
            and (self._common is other._common or self._common == other._common)
        )

    @classmethod
    def parse(
        cls,
        entry: str | Mapping[str, object],
        base: Path = Path(),
        given: Mapping[str, Any] = _NOTHING,
    ) -> ExitSpec:
        """The exit that a URL, or a mapping with a ``url``, describes.

        Relative files are relative to ``base``.  ``given``: options that it has where its own
        don't say otherwise, as :func:`parse_option` returns them; tags add up.  Raises
        ConfigError (a :class:`gsocks.messages.Mistake`, which names the wrong key).
        """
        return _parse(entry, base, _MOST_HOPS, given)

    def __hash__(self) -> int:
        # of what differs between the exits of a list; it is asked for several times for each
        return hash((self.host, self.port, self.user, self.password))

    @property
    def address(self) -> Address:
        """The address of the proxy or server; meaningless for ``direct``."""
        return Address.known(self.host, self.port)

    @property
    def label(self) -> str:
        """The exit for logs and screens: ``socks5://user:***@10.0.0.7:1080``."""
        if self.scheme == "direct":
            options = [
                f"{name}={quote(str(value), safe=':/')}"
                for name in ("source", "interface", "mark")
                if (value := getattr(self, name)) is not None
            ]
            return f"direct://?{'&'.join(options)}" if options else "direct"
        user = ""
        if self.scheme == "ss":
            user = f"{self.cipher}:***@"
        elif self.scheme == "trojan":
            user = "***@"
        elif self.user is not None:
            user = credentials.quoted(self.user) + ("" if self.password is None else ":***") + "@"
            # where others have a password, a name that stands alone is a provider's API key
            if not self.password and self.scheme not in _WITHOUT_PASSWORD:
                user = "***@"
        text = f"{self._scheme}://{user}{self._place}"
        return text if self.via is None else f"{text} via {self.via.label}"

    @property
    def url(self) -> str:
        """The exit as one URL, secrets included: the same text for equal exits in every process.

        For keys and hashes that must agree between processes; never for a log.
        """
        if self.scheme == "direct":
            return self.label
        secret = ""
        if self.scheme == "ss":
            secret = f"{self.cipher}:{quote(self.password or '', safe='')}@"
        elif self.scheme == "trojan":
            secret = quote(self.password or "", safe="") + "@"
        elif self.key is not None:
            secret = self.key + "@"
        elif self.user is not None:
            secret = quote(self.user, safe="")
            if self.password is not None:
                secret += ":" + quote(self.password, safe="")
            secret += "@"
        options: dict[str, str] = {}
        if self.key_file is not None:
            options["key_file"] = str(self.key_file)
        if self.key_from is not None:  # what no URL may say; here it tells two exits apart
            options["key_from"] = repr(self.key_from)
        if self.cipher != CIPHERS[0] and self.scheme != "ss":
            options["cipher"] = self.cipher
        if self.transport is not None:
            options |= self.transport.in_url()
        if self.tls is not None:
            options |= self.tls.in_url("key" if self.transport is None else "cert_key")
        if self.via is not None:
            options["via"] = self.via.url
        query = "&".join(f"{name}={quote(text, safe='')}" for name, text in options.items())
        return f"{self._scheme}://{secret}{self._place}" + ("?" + query if query else "")

    @property
    def _scheme(self) -> str:
        """As a URL has it."""
        return self.scheme if self.socket is None else f"{self.scheme}{_AT_SOCKET}"

    @property
    def _place(self) -> str:
        """Where the proxy is, as a URL has it."""
        socket, host = self.socket, self.host
        if socket is not None:
            return quote(socket)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def hops(self) -> int:
        """The number of proxies and servers on the way to it, itself included."""
        return 1 if self.via is None else 1 + self.via.hops

    @property
    def any_country(self) -> bool:
        """Whether it serves every country: the selected one is passed on to it."""
        if not self._may_be_template:
            return False
        return any(credentials.passes_country(text or "") for text in (self.user, self.password))

    @property
    def _may_be_template(self) -> bool:
        """Whether a place may stand in its credentials, as in those of few exits."""
        user, password = self.user, self.password
        return (user is not None and "{" in user) or (password is not None and "{" in password)

    @property
    def passes_session(self) -> bool:
        """Whether it, or an exit on the way to it, is given the sessions that clients ask for.

        Each has an address of its own where there are several.
        """
        if self.source is not None and self.source.num_addresses > 1:
            return True
        if self._may_be_template and credentials.passes_session(
            (self.user or "") + (self.password or "")
        ):
            return True
        return self.via is not None and self.via.passes_session

    @property
    def expects_session(self) -> bool:
        """Whether it, or an exit on the way to it, is given the session of each request."""
        own = credentials.requires_session(self.user or "") or credentials.requires_session(
            self.password or ""
        )
        return own or (self.via is not None and self.via.expects_session)

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<ExitSpec {self.label}>"


_new: Any = object.__new__
_set_common, _set_host, _set_port, _set_user, _set_password = (
    vars(ExitSpec)[name].__set__ for name in ("_common", "host", "port", "user", "password")
)


def _fill(
    spec: ExitSpec, common: _Common, host: str, port: int, user: str | None, password: str | None
) -> None:
    _set_common(spec, common)
    _set_host(spec, host)
    _set_port(spec, port)
    _set_user(spec, user)
    _set_password(spec, password)


def _again(common: _Common, *rest: Any) -> ExitSpec:
    """A spec from what it was pickled or copied as."""
    made: ExitSpec = _new(ExitSpec)
    _fill(made, common, *rest)
    return made


#: characters of a derived name; one that a number makes unique has more
DERIVED_NAME_SIZE = 8


def derived_name(label: str) -> str:
    """The name of an exit to which the config gives none: the same in every process.

    Eight hex digits of BLAKE2b of its label, and so not of its password: exits that differ by
    that alone have the same one.
    """
    return blake2b(label.encode(), digest_size=DERIVED_NAME_SIZE // 2).hexdigest()


#: straight to the destination: the only exit of a section that configures none
DIRECT = ExitSpec("direct")


# --- the URL --------------------------------------------------------------------------------


def _parse(
    entry: str | Mapping[str, object],
    base: Path,
    hops: int,
    given: Mapping[str, Any] = _NOTHING,
) -> ExitSpec:
    if isinstance(entry, str):
        return _build(*_split(entry), base, hops, given)
    options = dict(entry)
    for name in options:
        if name != "url" and name not in _OPTIONS:
            raise unknown_key(name, ("url", *_OPTIONS))
    url = options.pop("url", None)
    if not isinstance(url, str):
        raise Mistake("missing (expected e.g. socks5://10.0.0.7:1080)", ".url")
    try:
        scheme, address, in_url = _split(url)
    except Mistake as mistake:
        raise mistake.prefixed(".url") from None
    for name in options:
        if name in in_url:
            raise Mistake("duplicate: it is in the url too (leave one out)", f".{name}")
    return _build(scheme, address, in_url | options, base, hops, given)


def _split(url: str) -> tuple[str, Address | str | None, dict[str, object]]:
    """A URL's scheme, where it leads, and the options that it holds.

    That is a host and a port, or the path of a Unix socket; of direct it is none.
    """
    scheme, rest = _split_scheme(url)
    if scheme == "ss":
        return _split_shadowsocks(rest)
    if scheme == "trojan":
        return _split_trojan(rest)
    secret, _, rest = rest.rpartition("@")
    place, _, query = rest.partition("?")
    at_socket = scheme.endswith(_AT_SOCKET)
    scheme = scheme.removesuffix(_AT_SOCKET)
    options = _credentials(scheme, secret) if secret else {}
    where = _socket(place) if at_socket else _address(scheme, place.removesuffix("/"))
    return scheme, where, options | _query(query, scheme)


def _split_shadowsocks(rest: str) -> tuple[str, Address | None, dict[str, object]]:
    found = split_shadowsocks(rest)
    options: dict[str, object] = {}
    if found.method is not None:
        options |= {"cipher": found.method, "password": found.password}
    return "ss", _address("ss", found.place), options | _named_query(found, "ss")


def _split_trojan(rest: str) -> tuple[str, Address | None, dict[str, object]]:
    found = split_trojan(rest)
    options: dict[str, object] = {}
    if found.user is not None:
        options["password"] = found.user
    return "trojan", _address("trojan", found.place), options | _named_query(found, "trojan")


def _named_query(found: SsUrl | Link, scheme: str) -> dict[str, object]:
    """The options of a link: its query, and its name unless that is prose."""
    options = _query(found.query, scheme)
    if found.name is not None:
        try:
            options.setdefault("name", as_exit(found.name))
        except ValueError:
            pass
    return options


def _split_scheme(url: str) -> tuple[str, str]:
    if url == "direct":
        return url, ""
    scheme, mark, rest = url.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        raise Mistake("not an exit (expected direct, or a URL such as socks5://10.0.0.7:1080)")
    scheme = scheme.lower()
    plain = scheme.removesuffix(_AT_SOCKET)
    if plain != scheme and _NAMES.get(plain) in _MAY_BE_AT_SOCKET:
        return _NAMES[plain] + _AT_SOCKET, rest
    scheme = _NAMES.get(scheme, scheme)
    if scheme not in SCHEMES:
        guess = did_you_mean(scheme, SCHEMES)
        raise Mistake(f"unknown scheme {scheme}://{guess} (known: {', '.join(SCHEMES)})")
    return scheme, rest


def _address(scheme: str, text: str) -> Address | None:
    if scheme == "direct":
        if text:
            raise Mistake("direct has no host (expected direct or direct://?source=NETWORK)")
        return None
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise Mistake(
            f"what stands behind {scheme}:// is not HOST:PORT"
            " (user and password end with an @, an IPv6 address stands in brackets)"
        )
    port = _port(match["port"]) if match["port"] else SCHEMES[scheme]
    if port is None:
        raise Mistake(f"{scheme}:// needs a port (proxies often use 3128 or 8080)")
    if not 1 <= port <= 0xFFFF:
        raise Mistake(f"the port behind {scheme}:// is not between 1 and 65535")
    try:
        return Address.of(match["host"], port)
    except BadAddress:
        raise Mistake(f"the host behind {scheme}:// is neither a name nor an IP address") from None


def _socket(text: str) -> str:
    """The path of a Unix socket."""
    path = _decoded(text)
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise Mistake(
            "what stands behind +unix:// is not the path of a socket"
            " (expected e.g. socks5+unix:///run/tor/socks)"
        )
    if len(os.fsencode(path)) > MAX_PATH:
        raise Mistake(f"a Unix socket's path has at most {MAX_PATH} bytes, and this one more")
    return path


@lru_cache(1024)
def _port(text: str) -> int:
    return int(text)


def _credentials(scheme: str, text: str) -> dict[str, object]:
    if scheme == "gsocks":
        return {"key": _decoded(text)}
    user, colon, password = credentials.partition(text)
    found: dict[str, object] = {"user": _decoded(user)}
    if colon:
        found["password"] = _decoded(password)
    return found


def _query(text: str, scheme: str) -> dict[str, object]:
    secret = _SECRET - {"key"} if scheme in _IN_TLS else _SECRET  # there it is a file
    allowed = [name for name in _OPTIONS if name not in secret]
    found: dict[str, object] = {}
    for pair in filter(None, text.split("&")):
        name, _, value = pair.partition("=")
        if name not in allowed:
            raise Mistake(f"unknown option behind the ? (known: {', '.join(allowed)})")
        if name in found:
            raise Mistake(f"{name} stands twice behind the ?")
        found[name] = _decoded(value)
    return found


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Mistake("its percent codes are not UTF-8") from None


def _build(
    scheme: str,
    where: Address | str | None,
    options: dict[str, object],
    base: Path,
    hops: int,
    given: Mapping[str, Any],
) -> ExitSpec:
    read = {name: value for name, value in given.items() if _is_for(name, scheme)}
    for name, value in options.items():
        if not _is_for(name, scheme):
            raise Mistake(f"not for {scheme} (only for {', '.join(_ONLY_FOR[name])})", f".{name}")
        kind = _OTHER_MEANINGS.get((scheme, name), name)
        read[name] = _option(name, value, base, hops, kind)
        if name == "tags" and "tags" in given:
            read[name] = tuple(dict.fromkeys(given["tags"] + read[name]))
    if scheme == "gsocks":
        _gather_origin(read)
        _gather_transport(read, options)
    elif scheme in _IN_TLS:
        _gather_tls(read, options, "key")
    if not read.keys().isdisjoint(Budget._fields):
        read["budget"] = _budget(*(read.pop(name, None) for name in Budget._fields))
    if isinstance(where, Address):
        read |= {"host": where.host, "port": where.port}
    elif where is not None:
        if "via" in read:
            raise Mistake("not for a Unix socket, which is on this machine", ".via")
        read["socket"] = where
    spec = ExitSpec(scheme, **read)
    if (
        scheme == "gsocks"
        and (keys := 3 - (spec.key, spec.key_file, spec.key_from).count(None)) != 1
    ):
        more = ", and not both" if keys else ""
        raise Mistake(f"a gsocks exit needs a key or a key_file{more}", ".key_file")
    if scheme == "ss":
        _check_shadowsocks(spec)
    elif scheme == "trojan":
        if not spec.password:
            raise Mistake("a trojan exit needs a password (in the URL before the @)", ".password")
    elif spec.password is not None and spec.user is None:
        raise Mistake("needs a user", ".password")
    if scheme in ("http", "https") and ":" in credentials.literals(spec.user or ""):
        # Basic credentials are user:password (RFC 7617 section 2).
        raise Mistake("HTTP can't carry a user name with a colon", ".user")
    _check_places(spec)
    return spec


def _gather_origin(read: dict[str, Any]) -> None:
    """Put what says where a key comes from, and is no file, into one field.  Raises Mistake."""
    found = [read.pop(name) for name in _KEY_ORIGINS if name in read]
    if len(found) > 1:
        raise Mistake("needs either a key_env or a key_command", ".key_command")
    if found:
        read["key_from"] = found[0]


def _check_shadowsocks(spec: ExitSpec) -> None:
    """Raise Mistake unless method and password go together."""
    if spec.password is None or spec.cipher in CIPHERS:
        raise Mistake("a Shadowsocks exit needs a cipher (its method) and a password", ".password")
    method = method_named(spec.cipher)
    try:
        check_packages(method)
        keys_of(method, spec.password)
    except ConfigError as error:
        raise Mistake(str(error), ".password") from None


def _gather_transport(read: dict[str, Any], own: Mapping[str, object]) -> None:
    """Put the options of a tunnel's transport in ``read`` together; ``own``: as below."""
    kind = read.pop("transport", KINDS[0])
    for names, kinds in ((_OF_TLS, OVER_TLS), (_OF_WEBSOCKET, OVER_WEBSOCKET)):
        for name in names if kind not in kinds else ():
            if name in own:
                only = " and ".join(kinds)
                raise Mistake(f"not for transport {kind} (only for {only})", f".{name}")
            read.pop(name, None)
    if kind != KINDS[0]:
        of_web = {name: read.pop(name) for name in _OF_WEBSOCKET if name in read}
        read["transport"] = TransportOptions(kind, **of_web)
    if kind in OVER_TLS:
        _gather_tls(read, own, "cert_key")


def _gather_tls(read: dict[str, Any], own: Mapping[str, object], name_of_key: str) -> None:
    """Put the options of TLS in ``read`` together.  ``own``: those that the exit itself has."""
    names = {name: name for name in TlsOptions._fields} | {"key": name_of_key}
    tls = TlsOptions(**{to: read.pop(name) for to, name in names.items() if name in read})
    if tls.key is not None and tls.cert is None:
        raise Mistake("needs a cert", f".{name_of_key}")
    if tls.insecure and tls.ca is not None:
        if "insecure" in own and "ca" in own:
            raise Mistake("says that no certificate is checked (leave it or ca out)", ".insecure")
        # what the exit itself says counts over what its list says
        tls = tls._replace(**({"insecure": False} if "ca" in own else {"ca": None}))
    if tls != TlsOptions():
        read["tls"] = tls


def _check_places(spec: ExitSpec) -> None:
    """Checks the places that each request's values are filled into.  Raises Mistake."""
    if "{" not in (spec.user or "") and "{" not in (spec.password or ""):
        return
    if spec.scheme in _PASSWORD_ALONE:
        return
    # a password may have braces that mean nothing
    if credentials.has_unknown_place(spec.user or ""):
        known = " ".join(credentials.PLACES)
        raise Mistake(f"has a word in braces that is none of {known}", ".user")
    for name, text in (("user", spec.user or ""), ("password", spec.password or "")):
        if credentials.longest(text) > _LONGEST_CREDENTIAL:
            raise Mistake(f"can become longer than {_LONGEST_CREDENTIAL} bytes", f".{name}")
        if spec.country is None and credentials.requires_country(text):
            raise Mistake(
                "missing (the credentials pass the country on, and not every client selects one)",
                ".country",
            )


# --- the options ----------------------------------------------------------------------------


def parse_option(name: str, value: object, base: Path) -> object:
    """The value of one of :data:`USES`.  Relative files are relative to ``base``.

    Raises Mistake, which begins with the option's name.
    """
    return _option(name, value, base, _MOST_HOPS)


def _is_for(name: str, scheme: str) -> bool:
    return name not in _ONLY_FOR or scheme in _ONLY_FOR[name]


def _option(name: str, value: object, base: Path, hops: int, kind: str = "") -> object:
    """``kind``: the option's own name, where the same name has another meaning elsewhere."""
    kind = kind or name
    if kind == "via":
        return _via(value, base, hops - 1)
    try:
        if kind in _FILES:
            return parse_path(value, base)
        return (_PARSERS.get(kind) or _PARSERS_OF_OTHERS[kind])(value)
    except (ValueError, ConfigError) as error:
        raise Mistake(str(error), f".{name}") from None


def _via(value: object, base: Path, hops: int) -> ExitSpec:
    if not isinstance(value, str | Mapping):
        raise Mistake("not an exit (expected e.g. socks5://10.0.0.7:1080)", ".via")
    if not hops:
        raise Mistake(f"more than {_MOST_HOPS} exits behind one another", ".via")
    try:
        return _parse(value, base, hops)
    except Mistake as mistake:
        raise mistake.prefixed(".via") from None


def _credential(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("is not printable text (in YAML, quotes make it text)")
    # a template may be longer than what is made of it
    if len(value.encode()) > _LONGEST_CREDENTIAL * (4 if "{" in value else 1):
        raise ValueError(f"is longer than {_LONGEST_CREDENTIAL} bytes")
    credentials.check(value)
    return value


def _method(value: object) -> str:
    if isinstance(value, str):
        return method_named(value).name
    raise ValueError("is not text")


def _password_alone(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("is not printable text (in YAML, quotes make it text)")
    if credentials.passes_session(value) or credentials.passes_country(value):
        raise ValueError("can't be a template, since such servers have no sessions")
    return value


def _key(value: object) -> str:
    if isinstance(value, str):
        return Key.parse(value).text()
    raise ValueError("is not text (in YAML, put quotes around it)")


def parse_path(value: object, base: Path) -> Path:
    """A file, relative to ``base`` unless absolute or under ``~``.  Raises ValueError."""
    if not isinstance(value, str | Path) or not str(value) or not str(value).isprintable():
        raise ValueError(f"{shown(value)} is not the path of a file")
    return base / os.path.expanduser(value)


def _cipher(value: object) -> str:
    if isinstance(value, str) and value in CIPHERS:
        return value
    raise ValueError(f"{shown(value)} is not a cipher (known: {', '.join(CIPHERS)})")


def _switch(value: object) -> bool:
    text = str(value).lower()  # YAML's own True, and the text of a URL
    if text not in ("true", "false"):
        raise ValueError(f"{shown(value)} is not true or false")
    return text == "true"


def _server_name(value: object) -> str:
    try:
        return Address.of(value if isinstance(value, str) else "", 0).host
    except BadAddress:
        raise ValueError(f"{shown(value)} is not the name of a server") from None


def _weight(value: object) -> float:
    weight = _number(value)
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise ValueError(
            f"{shown(value)} is not a weight (expected a number from {MIN_WEIGHT} to {MAX_WEIGHT})"
        )
    return weight


def _number(value: object) -> float:
    """A finite number; 0 for what is none."""
    try:
        number = float(_quantity(value))
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _count(value: object) -> int:
    try:
        count = int(_quantity(value))
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{shown(value)} is not a count (expected a whole number from 1)")
    return count


def _size(value: object) -> int:
    size = parse_size(_quantity(value))
    if size < 1:
        raise ValueError(f"{shown(value)} is not a size above 0 (expected e.g. 10GB)")
    return size


def _cost(value: object) -> float:
    price = _number(value)
    if price <= 0:
        raise ValueError(f"{shown(value)} is not a price (expected a number above 0)")
    return price


@lru_cache(1024)  # the exits of a list have one object for all
def _budget(*bounds: Any) -> Budget:
    budget = Budget(*bounds)
    if budget.cost_per_month is not None and budget.cost_per_gb is None:
        raise Mistake("needs cost_per_gb", ".cost_per_month")
    return budget


def _quantity(value: object) -> str:
    # By way of its text, so that 1.5 is no count, and True (which is 1 to Python) nothing at all.
    return "" if isinstance(value, bool) else str(value)


def _tags(value: object) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if isinstance(words, list | tuple):
        return tuple(dict.fromkeys(_tag(word) for word in words))
    raise ValueError(f"{shown(value)} is not a list of words (expected e.g. [de, residential])")


def _tag(value: object) -> str:
    return as_tag(value.strip() if isinstance(value, str) else value)


def _shared(parse: Callable[[object], object]) -> Callable[[object], object]:
    """The same, with one object for all equal texts: a list's exits have few among them."""
    parse_text = lru_cache(1024)(parse)
    return lambda value: parse_text(value) if isinstance(value, str) else parse(value)


_PARSERS: dict[str, Callable[[object], object]] = {
    "user": _credential,
    "password": _credential,
    "key": _key,
    "key_env": parse_variable,
    "key_command": parse_command,
    "source": parse_network,
    "interface": parse_interface,
    "mark": parse_mark,
    "cipher": _cipher,
    "transport": parse_kind,
    "path": parse_url_path,
    "host_header": parse_host,
    "insecure": _switch,
    "sni": _server_name,
    "alpn": parse_alpn,
    "name": as_exit,
    "weight": _weight,
    "tags": _shared(_tags),
    "country": _shared(as_country),
    "max_connections": _count,
    "requests_per_minute": _count,
    "bytes_per_day": _size,
    "bytes_per_month": _size,
    "cost_per_gb": _cost,
    "cost_per_month": _cost,
}

#: options that mean something else for a scheme
_OTHER_MEANINGS = {
    **{(scheme, "key"): "cert_key" for scheme in _IN_TLS},
    ("ss", "cipher"): "method",
    **{(scheme, "password"): "password_alone" for scheme in _PASSWORD_ALONE},
}

_PARSERS_OF_OTHERS: dict[str, Callable[[object], object]] = {
    "method": _method,
    "password_alone": _password_alone,
}

_FILES = ("key_file", "ca", "cert", "cert_key")

_OPTIONS = (*_PARSERS, *_FILES, "via")

#: options that many exits may have in common
USES = (
    *("weight", "tags", "country", "max_connections", "requests_per_minute", "via"),
    *Budget._fields,
    *("ca", "insecure", "cert"),
)

#: those of a tunnel's transport, if that has TLS, and if it is a WebSocket
_OF_TLS = ("ca", "insecure", "sni", "cert", "cert_key", "alpn")
_OF_WEBSOCKET = ("path", "host_header")

#: what a key comes from that is in no file
_KEY_ORIGINS = ("key_env", "key_command")

#: has its place before the @, or in a config alone, and none in a query
_SECRET = frozenset({"user", "password", "key", *_KEY_ORIGINS})

_ONLY_FOR = {
    "user": ("socks5", "socks5s", "socks4", "socks4a", "http", "https"),
    "password": ("socks5", "socks5s", "http", "https", *_PASSWORD_ALONE),  # SOCKS4 has no passwords
    "key": ("gsocks", *_IN_TLS),
    "key_file": ("gsocks",),
    "key_env": ("gsocks",),
    "key_command": ("gsocks",),
    "cipher": ("gsocks", "ss"),
    "transport": ("gsocks",),
    "path": ("gsocks",),
    "host_header": ("gsocks",),
    "alpn": ("gsocks", "trojan"),
    "cert_key": ("gsocks",),
    "source": ("direct",),
    "interface": ("direct",),
    "mark": ("direct",),
    "ca": ("gsocks", *_IN_TLS),
    "insecure": ("gsocks", *_IN_TLS),
    "sni": ("gsocks", *_IN_TLS),
    "cert": ("gsocks", *_IN_TLS),
    "via": ("gsocks", "socks5", "socks5s", "socks4", "socks4a", "http", "https", "ss", "trojan"),
}
