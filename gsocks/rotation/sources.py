"""Where a list of exits is, as its user writes it, and what is true of all exits in it.

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

from gsocks.exits.url import SCHEMES, USES, ExitSpec, parse_option, parse_path
from gsocks.http.url import WebUrl
from gsocks.rotation.lists import Manner
from gsocks.units import parse_duration
from gsocks.wording import Mistake, did_you_mean, shown, unknown_key

#: seconds between two fetches of a URL, where nothing else is said
INTERVAL = 600.0

#: seconds; whoever wants a list oftener wants an API
_SHORTEST_INTERVAL = 1.0

_ONLY_FOR_URL = ("interval", "cache", "header_file", "fetch_via")
#: what a source may say
KEYS = ("file", "url", "scheme", *USES, *_ONLY_FOR_URL)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of this machine."""

    manner: Manner
    file: Path

    @property
    def kept(self) -> Path:
        """The file that the list is in."""
        return self.file

    @property
    def needs(self) -> tuple[Path, ...]:
        """The files that have to be there."""
        return (self.file,)

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True, slots=True)
class UrlSource:
    """What a provider's server says.  Its text names no more than the server."""

    manner: Manner
    url: WebUrl
    #: where what it said last is kept
    cache: Path
    #: seconds from one fetch to the next
    interval: float = INTERVAL
    #: fields for the request, one ``Name: value`` a line
    header_file: Path | None = None
    #: the exit through which it is fetched; None: directly
    fetch_via: ExitSpec | None = None

    @property
    def kept(self) -> Path:
        """The file that the list is in, once it was fetched."""
        return self.cache

    @property
    def needs(self) -> tuple[Path, ...]:
        """The files that have to be there."""
        return () if self.header_file is None else (self.header_file,)

    def __str__(self) -> str:
        return str(self.url)


Source: TypeAlias = FileSource | UrlSource


def parse_source(entry: Mapping[str, object], base: Path = Path()) -> Source:
    """The source that a mapping describes.

    Relative files are relative to ``base``, where what a URL says is kept too unless ``cache``
    says otherwise.  Raises ConfigError (a :class:`gsocks.wording.Mistake`).
    """
    for name in entry:
        if name not in KEYS:
            raise unknown_key(name, KEYS)
    if ("file" in entry) == ("url" in entry):
        raise Mistake("has either a file or a url, and needs one")
    given = {name: parse_option(name, entry[name], base) for name in USES if name in entry}
    scheme = _scheme(entry.get("scheme", Manner.scheme))
    if "file" in entry:
        for name in _ONLY_FOR_URL:
            if name in entry:
                raise Mistake("only for a url", f".{name}")
        file = _path("file", entry, base)
        return FileSource(Manner(scheme, given, file.parent), file)
    kept = {"cache": _usual_cache(entry["url"]), **entry}
    return UrlSource(
        Manner(scheme, given),
        url=_url(entry["url"]),
        cache=_path("cache", kept, base),
        interval=_interval(entry.get("interval", INTERVAL)),
        header_file=_path("header_file", entry, base) if "header_file" in entry else None,
        fetch_via=_fetch_via(entry["fetch_via"], base) if "fetch_via" in entry else None,
    )


def _scheme(value: object) -> str:
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


def _interval(value: object) -> float:
    try:
        seconds = parse_duration(value if isinstance(value, str | int | float) else "")
    except ValueError as error:
        raise Mistake(str(error), ".interval") from None
    if seconds < _SHORTEST_INTERVAL:
        raise Mistake(f"{shown(value)} is less than a second", ".interval")
    return seconds


def _path(name: str, entry: Mapping[str, object], base: Path) -> Path:
    try:
        return parse_path(entry[name], base)
    except ValueError as error:
        raise Mistake(str(error), f".{name}") from None


def _usual_cache(url: object) -> str:
    """A hidden file, for which no two URLs have the same name."""
    return f".exits-{blake2b(str(url).encode(), digest_size=8).hexdigest()}"


def _fetch_via(value: object, base: Path) -> ExitSpec:
    if not isinstance(value, str | Mapping):
        raise Mistake("not an exit (expected e.g. socks5://10.0.0.7:1080)", ".fetch_via")
    try:
        return ExitSpec.parse(value, base)
    except Mistake as mistake:
        raise mistake.within(".fetch_via") from None
