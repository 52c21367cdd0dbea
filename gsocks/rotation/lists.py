"""Lists of exits as people and providers write them: bytes in, :class:`ExitSpec` out.

    # a comment
    10.0.0.7:8080                         10.0.0.7:8080:user:password
    user:password@10.0.0.7:8080           user:password:10.0.0.7:8080
    [2001:db8::7]:8080                    10.0.0.7:8080@user:password
    socks5://user:password@10.0.0.7       whatever else ExitSpec reads
    10.0.0.7:8080 country=de tags=fast,cheap name=berlin

A line without a scheme has that of its list.  Where it has two parts that could be host and
port, the one with an IP address is, then the one with a dot in its name; then what comes first,
or stands behind an @.

JSON is a list of such texts, or of objects with the names that providers have for the same
things; CSV has these names in its first line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from gsocks.address import Address
from gsocks.errors import BadAddress, ConfigError
from gsocks.exits.url import SCHEMES, ExitSpec, parse_option
from gsocks.units import format_size
from gsocks.wording import Mistake

#: bytes; some 200,000 exits
LARGEST = 16 * 1024 * 1024

#: exits in one list
MOST_EXITS = 100_000

#: characters of an entry; no URL of an exit comes near
_LONGEST_ENTRY = 4096

_PLACE = r"(?:\[[^\[\]]*\]|[^:@\[\]/?#\s]+):[0-9]{1,5}"
_PLACE_FIRST = re.compile(rf"(?P<place>{_PLACE})(?P<mark>[:@])(?P<login>.+)")
_PLACE_LAST = re.compile(rf"(?P<login>.+)(?P<mark>[:@])(?P<place>{_PLACE})(?P<query>\?\S*)?")
_PLACE_ONLY = re.compile(rf"{_PLACE}(?:\?\S*)?")
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|direct$")

_COMMENT = re.compile(r"\s#.*")
_LAST_OPTION = re.compile(r"(?P<rest>.*\S)\s+(?P<name>[a-z_]+)=(?P<value>\S*)")

# What a mistake says of a value that stands in the wrong place, and may be a password.
_VALUE = re.compile(r"^(?:(['\"]).*\1|[0-9]\S*)(?= is )", re.DOTALL)

# [2001:db8::7]:8080 begins with a bracket as well
_JSON = re.compile(r"\s*(?:\{|\[\s*[\"{\]])")

_NOT_AN_EXIT = (
    "not an exit (expected e.g. 10.0.0.7:8080, 10.0.0.7:8080:USER:PASSWORD or"
    " socks5://USER:PASSWORD@10.0.0.7:1080)"
)

_Entry: TypeAlias = "str | Mapping[str, object]"


@dataclass(frozen=True)
class Manner:
    """How the entries of a list are meant."""

    #: of those that name none
    scheme: str = "http"
    #: what all have, unless they say otherwise (see :meth:`ExitSpec.parse`)
    given: Mapping[str, Any] = field(default_factory=dict)
    #: what relative files are relative to; None if the list comes from elsewhere, and may
    #: neither read files of this machine nor go out directly from it
    base: Path | None = None


class LeftOut(NamedTuple):
    """An entry that is no exit."""

    #: ``line 7``, or ``entry 7`` of JSON
    place: str
    #: nothing of what the entry says: it may hold a password
    reason: str


class ExitList(NamedTuple):
    """What a list says."""

    exits: tuple[ExitSpec, ...]
    left_out: tuple[LeftOut, ...]
    #: entries that say again what one before them says
    repeated: int


def parse_list(raw: bytes, manner: Manner) -> ExitList:
    """The exits in a list, each once and in their order.

    Raises ConfigError if it is no list of exits, or has none, or more than :data:`MOST_EXITS`.
    """
    found: dict[ExitSpec, None] = {}
    left_out: list[LeftOut] = []
    entries = 0
    for place, entry in _entries(_text(raw)):
        entries += 1
        if entries > MOST_EXITS:
            raise ConfigError(f"more than {MOST_EXITS:,} entries")
        try:
            found[_exit(entry, manner)] = None
        except Mistake as mistake:
            told = _VALUE.sub("this value", mistake.message)
            at = "" if mistake.at == ".url" else mistake.at
            left_out.append(LeftOut(place, str(Mistake(told, at))))
    if not entries:
        raise ConfigError("no exit in it")
    if not found:
        first = left_out[0]
        raise ConfigError(f"no list of exits ({first.place}: {first.reason})")
    return ExitList(tuple(found), tuple(left_out), entries - len(found) - len(left_out))


def _text(raw: bytes) -> str:
    if len(raw) > LARGEST:
        raise ConfigError(f"larger than {format_size(LARGEST)}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("no list of exits (not UTF-8)") from None
    if "\0" in text:
        raise ConfigError("no list of exits (not text)")
    if text.lstrip().startswith("<"):
        raise ConfigError("no list of exits (looks like a web page)")
    return text


# --- entries --------------------------------------------------------------------------------


def _entries(text: str) -> Iterator[tuple[str, _Entry]]:
    """Each entry behind its place.  Raises ConfigError."""
    if _JSON.match(text):
        for number, item in enumerate(_items(text), start=1):
            yield f"entry {number}", item
        return
    lines = _lines(text)
    first = next(lines, None)
    if first is None:
        return
    columns = _columns(first[1])
    if columns is None:
        yield f"line {first[0]}", first[1]
        for number, line in lines:
            yield f"line {number}", line
        return
    names, comma = columns
    for number, line in lines:
        try:
            cells = next(csv.reader([line], delimiter=comma))
        except csv.Error:
            cells = []
        yield f"line {number}", dict(zip(names, cells, strict=False))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, _COMMENT.sub("", line).rstrip() if "#" in line else line


def _columns(line: str) -> tuple[list[str], str] | None:
    """The names in the first line of CSV, and what stands between them; None if it isn't."""
    for comma in ",;\t":
        names = [name.strip(' "').lower() for name in line.split(comma)]
        if not _HOSTS.isdisjoint(names) and "port" in names:
            return names, comma
    return None


def _items(text: str) -> list[Any]:
    """The entries of a JSON document.  Raises ConfigError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError("no list of exits (begins as JSON, and isn't)") from None
    # providers wrap the list once or twice
    for _ in range(3):
        if isinstance(document, list):
            return document
        if not isinstance(document, dict):
            break
        document = next((document[key] for key in _WRAPPERS if key in document), None)
    raise ConfigError(f"no list of exits (JSON without a list under {', '.join(_WRAPPERS)})")


_WRAPPERS = ("proxies", "results", "data", "items", "list", "exits")


# --- one entry ------------------------------------------------------------------------------


def _exit(entry: _Entry, manner: Manner) -> ExitSpec:
    """Raises Mistake."""
    if isinstance(entry, str):
        described: _Entry = _of_line(entry, manner.scheme)
    elif isinstance(entry, dict):
        described = _of_object(entry, manner.scheme)
    else:
        raise Mistake("neither text nor an object")
    spec = ExitSpec.parse(described, manner.base or Path(), manner.given)
    if manner.base is None:
        _check_foreign(spec, manner.given.get("via"))
    return spec


def _check_foreign(spec: ExitSpec, trusted: ExitSpec | None) -> None:
    """Raises Mistake if an exit of somebody else's list is made of what is this machine's."""
    link: ExitSpec | None = spec
    while link is not None and link is not trusted:
        if link.scheme == "direct" or link.key_file is not None:
            raise Mistake("a list from a URL can't say direct or name a key_file")
        link = link.via


def _of_line(line: str, scheme: str) -> _Entry:
    """What :meth:`ExitSpec.parse` takes.  Raises Mistake."""
    if len(line) > _LONGEST_ENTRY:
        raise Mistake(f"longer than {_LONGEST_ENTRY} characters")
    options: dict[str, object] = {}
    while "=" in line and (found := _LAST_OPTION.fullmatch(line)):
        if found["name"] in options:
            raise Mistake("stands here twice", f".{found['name']}")
        options[found["name"]] = found["value"]
        line = found["rest"]
    if _HAS_SCHEME.match(line):
        return {"url": line, **options} if options else line
    return {**_of_bare(line, scheme), **options}


def _of_bare(line: str, scheme: str) -> dict[str, object]:
    """The same, where no scheme is named.  Raises Mistake."""
    if _PLACE_ONLY.fullmatch(line):
        return {"url": f"{scheme}://{line}"}
    first, last = _PLACE_FIRST.fullmatch(line), _PLACE_LAST.fullmatch(line)
    at_first = _likelihood(first) if first is not None else 0
    at_last = _likelihood(last) if last is not None else 0
    by_at = last is not None and last["mark"] == "@"
    found = last if at_last > at_first or (at_last == at_first and by_at) else first
    if found is None or not max(at_first, at_last):
        raise Mistake(_NOT_AN_EXIT)
    query = (found["query"] or "") if found is last else ""
    if found["mark"] == "@":  # as in a URL, percent codes too
        return {"url": f"{scheme}://{found['login']}@{found['place']}{query}"}
    user, _, password = found["login"].partition(":")
    return {"url": f"{scheme}://{found['place']}{query}", "user": user, "password": password}


def _likelihood(found: re.Match[str]) -> int:
    """How much host and port look like what they are taken for; 0 if they can't be that."""
    if found["mark"] == ":" and ":" not in found["login"]:
        return 0  # one word more than host and port: of what kind, nobody knows
    try:
        address = Address.parse(found["place"])
    except BadAddress:
        return 0
    if not address.port:
        return 0
    if address.ip is not None:
        return 3
    return 2 if "." in address.host else 1


# --- objects of JSON, lines of CSV ------------------------------------------------------------

_HOSTS = frozenset({"host", "hostname", "ip", "ip_address", "proxy_address", "address", "server"})
_URLS = ("url", "proxy", "proxy_url")
_COUNTRIES = ("country_code", "countrycode", "cc", "country")
_PROTOCOLS = ("scheme", "protocol", "protocols", "type")

#: what an option is called elsewhere, the best name first
_NAMES = {
    "user": ("username", "user", "login"),
    "password": ("password", "pass"),
    "tags": ("tags",),
    "weight": ("weight",),
    "max_connections": ("max_connections",),
    "requests_per_minute": ("requests_per_minute",),
}


def _of_object(item: Mapping[object, object], scheme: str) -> dict[str, object]:
    """What :meth:`ExitSpec.parse` takes; what else stands there is the provider's own.

    Raises Mistake.
    """
    fields = {
        str(name).lower(): str(value) if type(value) is int else value
        for name, value in item.items()
        if value not in (None, "")
    }
    options = {
        option: value
        for option, names in _NAMES.items()
        if (value := _first(fields, names)) is not None
    }
    for option, names in (("country", _COUNTRIES), ("name", ("name",))):
        value = _first(fields, names)
        if _is_one(option, value):
            options[option] = value
    url = _first(fields, _URLS)
    if isinstance(url, str):
        described = _of_line(url, scheme)
        return {**({"url": described} if isinstance(described, str) else described), **options}
    host, port = _first(fields, sorted(_HOSTS)), fields.get("port")
    if not isinstance(host, str) or not isinstance(port, str):
        raise Mistake("an object needs a url, or a host (or ip) and a port")
    place = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return {"url": f"{_scheme(fields, scheme)}://{place}:{port}", **options}


def _is_one(option: str, value: object) -> bool:
    """Whether it is what we call so, and not a provider's prose."""
    try:
        parse_option(option, value, Path())
    except Mistake:
        return False
    return True


def _first(fields: Mapping[str, object], names: Iterable[str]) -> object:
    return next((fields[name] for name in names if name in fields), None)


def _scheme(fields: Mapping[str, object], default: str) -> str:
    said = _first(fields, _PROTOCOLS)
    if isinstance(said, list) and said:
        said = said[-1]  # the best of them: socks4 stands before socks5
    word = said.strip().lower() if isinstance(said, str) else ""
    if word == "https":
        # Elsewhere it says for which sites an HTTP proxy is good, and here that it speaks TLS.
        return default if default in ("http", "https") else "http"
    return word if word in SCHEMES or word.startswith("socks") else default
