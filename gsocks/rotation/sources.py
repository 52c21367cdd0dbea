"""Sources of exit lists: where a list is, and the options of all exits in it.

    file: proxies.txt
    scheme: socks5

or

    url: https://user:password@provider.example/list
    interval: 10m
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

from gsocks.access.rules import Rules, Verdict
from gsocks.address import Address
from gsocks.exits.spec import SCHEMES, USES, ExitSpec, parse_option, parse_path
from gsocks.http.url import WebUrl
from gsocks.messages import Mistake, did_you_mean, shown, unknown_key
from gsocks.rotation.lists import ListOptions
from gsocks.units import parse_duration

#: default seconds between two fetches of a URL
INTERVAL = 600.0

#: seconds
_MIN_INTERVAL = 1.0

_PRIVATE = Rules.parse(("deny private", "allow all"))

_ONLY_FOR_URL = ("interval", "cache", "header_file", "fetch_via", "private", "gsocks")
#: all options of a source
KEYS = ("file", "url", "scheme", *USES, *_ONLY_FOR_URL)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A list in a file of this machine."""

    options: ListOptions
    file: Path

    @property
    def kept(self) -> Path:
        """The file that the list is in."""
        return self.file

    @property
    def needs(self) -> tuple[Path, ...]:
        """The files that have to exist."""
        return (self.file,)

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A list at a URL.  Its text names the server only, since paths may hold secrets."""

    options: ListOptions
    url: WebUrl
    #: the file for its last response
    cache: Path
    #: seconds from one fetch to the next
    interval: float = INTERVAL
    #: a file with request fields, one ``Name: value`` a line
    header_file: Path | None = None
    #: the exit through which it is fetched; None: directly
    fetch_via: ExitSpec | None = None

    @property
    def kept(self) -> Path:
        """The file that the list is in, once it was fetched."""
        return self.cache

    @property
    def needs(self) -> tuple[Path, ...]:
        """The files that have to exist."""
        return () if self.header_file is None else (self.header_file,)

    def __str__(self) -> str:
        return str(self.url)


Source: TypeAlias = FileSource | UrlSource


def parse_source(entry: Mapping[str, object], base: Path = Path()) -> Source:
    """The source that a mapping describes.

    Relative files are relative to ``base``, where the cache of a URL is too unless ``cache`` says
    otherwise.  Raises ConfigError (a :class:`gsocks.messages.Mistake`).
    """
    for name in entry:
        if name not in KEYS:
            raise unknown_key(name, KEYS)
    if ("file" in entry) == ("url" in entry):
        raise Mistake("has either a file or a url, and needs one")
    given = {name: parse_option(name, entry[name], base) for name in USES if name in entry}
    if "cost_per_month" in given and "cost_per_gb" not in given:
        raise Mistake("needs cost_per_gb", ".cost_per_month")
    scheme = parse_scheme(entry.get("scheme", ListOptions.scheme))
    if "file" in entry:
        for name in _ONLY_FOR_URL:
            if name in entry:
                raise Mistake("only for a url", f".{name}")
        file = _path("file", entry, base)
        return FileSource(ListOptions(scheme, given, file.parent), file)
    kept = {"cache": _usual_cache(entry["url"]), **entry}
    url = _url(entry["url"])
    private = _switch("private", entry) if "private" in entry else _is_private(url.address)
    gsocks = "gsocks" in entry and _switch("gsocks", entry)
    return UrlSource(
        ListOptions(scheme, given, public=not private, gsocks=gsocks),
        url=url,
        cache=_path("cache", kept, base),
        interval=_interval(entry.get("interval", INTERVAL)),
        header_file=_path("header_file", entry, base) if "header_file" in entry else None,
        fetch_via=_fetch_via(entry["fetch_via"], base) if "fetch_via" in entry else None,
    )


def parse_scheme(value: object) -> str:
    """The kind of the proxies of a list.  Raises Mistake."""
    known = [scheme for scheme in SCHEMES if scheme not in ("direct", "gsocks")]
    if value in known:
        return str(value)
    guess = did_you_mean(str(value), known)
    raise Mistake(
        f"{shown(value)} is no kind of proxy{guess} (known: {', '.join(known)})", ".scheme"
    )


def _url(value: object) -> WebUrl:
    try:
        return WebUrl.parse(value if isinstance(value, str) else "")
    except ValueError as error:
        raise Mistake(f"not the URL of a list ({error})", ".url") from None


def _is_private(address: Address) -> bool:
    """Whether a server is in this machine's network, as far as its address shows.

    A public address of this machine does not count: what is served there may be a stranger's list.
    """
    if address.ip is None:
        return address.host == "localhost"
    return _PRIVATE.before_resolving(address, None).verdict is Verdict.DENY


def _switch(name: str, entry: Mapping[str, object]) -> bool:
    text = str(entry[name]).lower()
    if text in ("true", "false"):
        return text == "true"
    raise Mistake(f"{shown(entry[name])} is not true or false", f".{name}")


def _interval(value: object) -> float:
    try:
        seconds = parse_duration(value if isinstance(value, str | int | float) else "")
    except ValueError as error:
        raise Mistake(str(error), ".interval") from None
    if seconds < _MIN_INTERVAL:
        raise Mistake(f"{shown(value)} is less than a second", ".interval")
    return seconds


def _path(name: str, entry: Mapping[str, object], base: Path) -> Path:
    try:
        return parse_path(entry[name], base)
    except ValueError as error:
        raise Mistake(str(error), f".{name}") from None


def _usual_cache(url: object) -> str:
    """A hidden file, with another name for each URL."""
    return f".exits-{blake2b(str(url).encode(), digest_size=8).hexdigest()}"


def _fetch_via(value: object, base: Path) -> ExitSpec:
    if not isinstance(value, str | Mapping):
        raise Mistake("not an exit (expected e.g. socks5://10.0.0.7:1080)", ".fetch_via")
    try:
        return ExitSpec.parse(value, base)
    except Mistake as mistake:
        raise mistake.prefixed(".fetch_via") from None
