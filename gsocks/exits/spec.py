"""One way out as its user writes it, and what that says: an :class:`ExitSpec`.

    direct                               direct://?source=203.0.113.0/28
    gsocks://KEY@vps.example.com:8388    socks5://user:password@10.0.0.7:1080
    socks4a://user@10.0.0.7              http://user:password@10.0.0.7:3128

or a mapping with the same under ``url`` and options beside it.  The options may as well follow
the URL as its query (``socks5://10.0.0.7?weight=2&tags=de,residential``), which is how a list of
proxies carries them; there an ``@`` is written ``%40``, because a password may hold anything
else: the last ``@`` is the one that ends it.

User names and passwords may pass on what a client wishes for: ``me-sessid-{session}`` (see
gsocks/exits/credentials.py).

No message here repeats any part of a URL but its scheme.  Where a URL is wrong, nobody can tell
which part of it was meant to be the secret one.
"""

from __future__ import annotations

import ipaddress
import math
import os.path
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from gsocks.address import Address
from gsocks.crypto import Key
from gsocks.errors import BadAddress, ConfigError
from gsocks.exits.credentials import PLACES, has_unknown_place, longest, passes_country
from gsocks.wording import Mistake, did_you_mean, shown, unknown_key

#: every scheme, with its default port; HTTP proxies have no port that people agree on
SCHEMES: dict[str, int | None] = {
    "direct": None,
    "gsocks": 8388,
    "socks5": 1080,
    "socks4a": 1080,
    "http": None,
    "https": None,
}

#: how a tunnel's frames may be sealed
CIPHERS = ("secretbox", "aegis256")

# curl tells by the scheme who resolves names; here it is always the proxy
_ALIASES = {"socks5h": "socks5", "socks4": "socks4a"}

#: RFC 1929: a user name's and a password's length each travel in one byte
_LONGEST_CREDENTIAL = 255

#: exits behind one another; a chain longer than this is a slip, and each costs its round trips
_MOST_HOPS = 8

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_HOST_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_COUNTRY = re.compile(r"[A-Za-z]{2}")

_NOTHING: Mapping[str, Any] = {}

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, repr=False)
class ExitSpec:
    """One way out.  Make one with :meth:`parse`.

    Two are equal if they are the same way out, credentials included: the same host with other
    credentials is another exit.  ``name``, ``weight``, ``tags``, ``country``, ``max_connections``
    and ``requests_per_minute`` say how it is used, not which one it is, and don't count.

    Its text and its repr hide the secrets, which are ``password``, ``key`` and :attr:`url`.
    """

    scheme: str
    #: canonical; empty for ``direct``, as the port is 0
    host: str = ""
    port: int = 0
    user: str | None = None
    password: str | None = None
    #: the shared key of a gsocks server, in URL-safe base64; a gsocks exit has it or a file
    key: str | None = None
    key_file: Path | None = None
    #: the addresses that ``direct`` goes out from, in turn
    source: IPNetwork | None = None
    cipher: str = CIPHERS[0]
    #: the exit through which this one is reached
    via: ExitSpec | None = None
    #: what its user calls it, in lower case; None: :func:`derived_name` of its label
    name: str | None = field(default=None, compare=False)
    #: how much of the traffic, in proportion to the other exits' weights
    weight: float = field(default=1.0, compare=False)
    #: lower case, as ``country`` is
    tags: tuple[str, ...] = field(default=(), compare=False)
    country: str | None = field(default=None, compare=False)
    max_connections: int | None = field(default=None, compare=False)
    requests_per_minute: int | None = field(default=None, compare=False)

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
        ConfigError (a :class:`gsocks.wording.Mistake`, which tells the key at fault).
        """
        return _parse(entry, base, _MOST_HOPS, given)

    @property
    def address(self) -> Address:
        """Where the proxy or server listens; nothing that ``direct`` could tell."""
        return Address(self.host, self.port)

    @property
    def label(self) -> str:
        """The exit for logs and screens: ``socks5://user:***@10.0.0.7:1080``."""
        if self.scheme == "direct":
            return "direct" if self.source is None else f"direct://?source={self.source}"
        user = ""
        if self.user is not None:
            user = quote(self.user, safe="{}") + ("" if self.password is None else ":***") + "@"
            # where others have a password, a name that stands alone is a provider's API key
            if not self.password and self.scheme != "socks4a":
                user = "***@"
        text = f"{self.scheme}://{user}{self.address}"
        return text if self.via is None else f"{text} via {self.via.label}"

    @property
    def url(self) -> str:
        """The exit as one URL, secrets included: the same text for equal exits in every process.

        For keys and hashes that must agree between processes; never for a log.
        """
        if self.scheme == "direct":
            return self.label
        secret = ""
        if self.key is not None:
            secret = self.key + "@"
        elif self.user is not None:
            secret = quote(self.user, safe="")
            if self.password is not None:
                secret += ":" + quote(self.password, safe="")
            secret += "@"
        options: dict[str, str] = {}
        if self.key_file is not None:
            options["key_file"] = str(self.key_file)
        if self.cipher != CIPHERS[0]:
            options["cipher"] = self.cipher
        if self.via is not None:
            options["via"] = self.via.url
        query = "&".join(f"{name}={quote(text, safe='')}" for name, text in options.items())
        return f"{self.scheme}://{secret}{self.address}" + ("?" + query if query else "")

    @property
    def any_country(self) -> bool:
        """Whether it serves every country: which one is wished for is passed on to it."""
        return passes_country((self.user or "") + (self.password or ""))

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<ExitSpec {self.label}>"


def derived_name(label: str) -> str:
    """What an exit is called that its user has given no name: the same word in every process.

    Eight hex digits of BLAKE2b of its label, and so not of its password: exits that differ by
    that alone have the same one.
    """
    return blake2b(label.encode(), digest_size=4).hexdigest()


#: straight to the destination: what goes out where nothing else is said
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
        raise mistake.within(".url") from None
    for name in options:
        if name in in_url:
            raise Mistake("the url says it as well (leave one out)", f".{name}")
    return _build(scheme, address, in_url | options, base, hops, given)


def _split(url: str) -> tuple[str, Address | None, dict[str, object]]:
    """A URL's scheme, its host and port (none for direct), and the options that it holds."""
    scheme, rest = _split_scheme(url)
    secret, _, rest = rest.rpartition("@")
    place, _, query = rest.partition("?")
    options = _credentials(scheme, secret) if secret else {}
    return scheme, _address(scheme, place.removesuffix("/")), options | _query(query)


def _split_scheme(url: str) -> tuple[str, str]:
    if url == "direct":
        return url, ""
    scheme, mark, rest = url.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        raise Mistake("not an exit (expected direct, or a URL such as socks5://10.0.0.7:1080)")
    scheme = scheme.lower()
    scheme = _ALIASES.get(scheme, scheme)
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
    port = int(match["port"]) if match["port"] else SCHEMES[scheme]
    if port is None:
        raise Mistake(f"{scheme}:// needs a port (proxies often use 3128 or 8080)")
    if not 1 <= port <= 0xFFFF:
        raise Mistake(f"the port behind {scheme}:// is not between 1 and 65535")
    try:
        return Address.of(match["host"], port)
    except BadAddress:
        raise Mistake(f"the host behind {scheme}:// is neither a name nor an IP address") from None


def _credentials(scheme: str, text: str) -> dict[str, object]:
    if scheme == "gsocks":
        return {"key": _decoded(text)}
    user, colon, password = text.partition(":")
    found: dict[str, object] = {"user": _decoded(user)}
    if colon:
        found["password"] = _decoded(password)
    return found


def _query(text: str) -> dict[str, object]:
    allowed = [name for name in _OPTIONS if name not in _SECRET]
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
    address: Address | None,
    options: dict[str, object],
    base: Path,
    hops: int,
    given: Mapping[str, Any],
) -> ExitSpec:
    read = {name: value for name, value in given.items() if _is_for(name, scheme)}
    for name, value in options.items():
        if not _is_for(name, scheme):
            raise Mistake(f"not for {scheme} (only for {', '.join(_ONLY_FOR[name])})", f".{name}")
        read[name] = _option(name, value, base, hops)
        if name == "tags" and "tags" in given:
            read[name] = tuple(dict.fromkeys(given["tags"] + read[name]))
    if address is not None:
        read |= {"host": address.host, "port": address.port}
    spec = ExitSpec(scheme, **read)
    if scheme == "gsocks" and (spec.key is None) == (spec.key_file is None):
        raise Mistake("a gsocks exit needs a key or a key_file, and not both", ".key_file")
    if spec.password is not None and spec.user is None:
        raise Mistake("needs a user", ".password")
    if scheme in ("http", "https") and ":" in (spec.user or ""):
        # Basic credentials are user:password (RFC 7617 section 2).
        raise Mistake("HTTP can't carry a user name with a colon", ".user")
    _check_places(spec)
    return spec


def _check_places(spec: ExitSpec) -> None:
    """What is filled in for each request must be known, and must not become too long."""
    if has_unknown_place(spec.user or ""):  # a password may have braces that mean nothing
        raise Mistake(f"has a word in braces that is none of {' '.join(PLACES)}", ".user")
    for name, text in (("user", spec.user), ("password", spec.password)):
        if longest(text or "") > _LONGEST_CREDENTIAL:
            raise Mistake(f"can become longer than {_LONGEST_CREDENTIAL} bytes", f".{name}")
    if spec.any_country and spec.country is None:
        raise Mistake(
            "missing (the credentials pass the country on, and not every client asks for one)",
            ".country",
        )


# --- the options ----------------------------------------------------------------------------


def parse_option(name: str, value: object, base: Path) -> object:
    """What one of :data:`USES` says.  Relative files are relative to ``base``.

    Raises Mistake, which begins with the option's name.
    """
    return _option(name, value, base, _MOST_HOPS)


def _is_for(name: str, scheme: str) -> bool:
    return name not in _ONLY_FOR or scheme in _ONLY_FOR[name]


def _option(name: str, value: object, base: Path, hops: int) -> object:
    if name == "via":
        return _via(value, base, hops - 1)
    try:
        return parse_path(value, base) if name == "key_file" else _PARSERS[name](value)
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
        raise mistake.within(".via") from None


def _credential(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("is not printable text (in YAML, quotes make it text)")
    if len(value.encode()) > _LONGEST_CREDENTIAL:
        raise ValueError(f"is longer than {_LONGEST_CREDENTIAL} bytes")
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


def _source(value: object) -> IPNetwork:
    text = value if isinstance(value, str) else ""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
    except ValueError:
        hint = "expected e.g. 203.0.113.0/28"
    raise ValueError(f"{shown(value)} is not a network ({hint})")


def _cipher(value: object) -> str:
    if isinstance(value, str) and value in CIPHERS:
        return value
    raise ValueError(f"{shown(value)} is not a cipher (known: {', '.join(CIPHERS)})")


def _weight(value: object) -> float:
    try:
        weight = float(_quantity(value))
    except ValueError:
        weight = 0.0
    if not 0 < weight < math.inf:
        raise ValueError(f"{shown(value)} is not a weight (expected a number above 0)")
    return weight


def _count(value: object) -> int:
    try:
        count = int(_quantity(value))
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{shown(value)} is not a count (expected a whole number from 1)")
    return count


def _quantity(value: object) -> str:
    # By way of its text, so that 1.5 is no count, and True (which is 1 to Python) nothing at all.
    return "" if isinstance(value, bool) else str(value)


def _tags(value: object) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if isinstance(words, list | tuple):
        return tuple(dict.fromkeys(_tag(word) for word in words))
    raise ValueError(f"{shown(value)} is not a list of words (expected e.g. [de, residential])")


def _tag(value: object) -> str:
    word = value.strip() if isinstance(value, str) else ""
    if not _WORD.fullmatch(word):
        raise ValueError(f"{shown(value)} is not a word (in YAML, put quotes around it)")
    return word.lower()


def _name(value: object) -> str:
    # A number that YAML has read may have lost digits: 010 is 8.
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value.lower()
    raise ValueError(f"{shown(value)} is not a word (expected e.g. berlin-1)")


def _country(value: object) -> str:
    if isinstance(value, str) and _COUNTRY.fullmatch(value):
        return value.lower()
    hint = "; in YAML, put quotes around it" if isinstance(value, bool) else ""
    raise ValueError(
        f"{shown(value)} is not a country (expected a two-letter code such as de{hint})"
    )


_PARSERS: dict[str, Callable[[object], object]] = {
    "user": _credential,
    "password": _credential,
    "key": _key,
    "source": _source,
    "cipher": _cipher,
    "name": _name,
    "weight": _weight,
    "tags": _tags,
    "country": _country,
    "max_connections": _count,
    "requests_per_minute": _count,
}

_OPTIONS = (*_PARSERS, "key_file", "via")

#: options that many exits may have in common
USES = ("weight", "tags", "country", "max_connections", "requests_per_minute", "via")

#: has its place before the @, and none in a query
_SECRET = frozenset({"user", "password", "key"})

_ONLY_FOR = {
    "user": ("socks5", "socks4a", "http", "https"),
    "password": ("socks5", "http", "https"),  # SOCKS4 has no passwords
    "key": ("gsocks",),
    "key_file": ("gsocks",),
    "cipher": ("gsocks",),
    "source": ("direct",),
    "via": ("gsocks", "socks5", "socks4a", "http", "https"),
}
