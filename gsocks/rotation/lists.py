"""Lists of exits as people and providers write them: bytes in, ``ExitSpec`` out.

Entries that are no exits are skipped, by their place and with the reason, which repeats nothing
of them.  The formats are in list_entries.py, lines in list_lines.py, objects in list_objects.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gsocks.access.rules import DEFAULT_RULES, Verdict
from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.messages import Mistake
from gsocks.rotation.list_entries import SPOILED, entries, too_many
from gsocks.rotation.list_kinds import scheme_of
from gsocks.rotation.list_lines import Described, describe_line
from gsocks.rotation.list_objects import describe_object
from gsocks.rotation.list_straight import StraightLines
from gsocks.units import format_size

#: bytes; some 200,000 exits
MAX_SIZE = 16 * 1024 * 1024

#: exits in one list
MAX_EXITS = 100_000

# A value that a message quotes: it may be a password in the wrong place.
_VALUE = re.compile(r"^(?:(['\"]).*\1|[0-9]\S*)(?= is )", re.DOTALL)


@dataclass(frozen=True)
class ListOptions:
    """How the entries of a list are read."""

    #: for entries without one
    scheme: str = "http"
    #: options of all entries that don't set them (see :meth:`gsocks.exits.spec.ExitSpec.parse`)
    given: Mapping[str, Any] = field(default_factory=dict)
    #: the folder for relative paths; None for a list from a URL, which may neither name files of
    #: this machine nor use it as a direct exit
    base: Path | None = None
    #: whether its author is trusted with no private address: exits have public ones only, and
    #: weigh no more than those to which their source gives no weight
    public: bool = False
    #: whether a list from a URL may name gsocks servers, of which each has open connections
    gsocks: bool = False


class SkippedEntry(NamedTuple):
    """An entry that is no exit."""

    #: ``line 7``, or ``entry 7`` of JSON
    place: str
    #: without any part of the entry, which may hold a password
    reason: str


class ExitList(NamedTuple):
    """The content of a list."""

    exits: tuple[ExitSpec, ...]
    skipped: tuple[SkippedEntry, ...]
    #: the number of entries that equal an earlier one
    duplicates: int


def parse_list(raw: bytes, options: ListOptions) -> ExitList:
    """The exits in a list, in their order and without duplicates.

    Raises ConfigError if it is no list of exits, or has none, or more than :data:`MAX_EXITS`.
    """
    found = read_list(raw, options)
    if not found.exits:
        first, more = found.skipped[0], len(found.skipped) - 1
        rest = f", and {more} more" if more else ""
        raise ConfigError(f"no list of exits ({first.place}: {first.reason}{rest})")
    return found


def read_list(raw: bytes, options: ListOptions) -> ExitList:
    """The same for a list of which every entry may be skipped."""
    if len(raw) > MAX_SIZE:
        raise ConfigError(f"larger than {format_size(MAX_SIZE)}")
    found: dict[ExitSpec, None] = {}
    skipped: list[SkippedEntry] = []
    base, trusted = options.base or Path(), options.given.get("via")
    given = options.given if trusted or not options.public else {**options.given, "public": True}
    count = 0
    straight = StraightLines()
    for place, item, kind in entries(raw, MAX_EXITS):
        count += 1
        if count > MAX_EXITS:
            raise too_many(MAX_EXITS)
        line = item if kind is None and type(item) is str else None
        try:
            spec = None if line is None else straight.read(line)
            if spec is None:
                scheme = options.scheme if kind is None else _scheme(kind, options.scheme)
                spec = ExitSpec.parse(_described(item, scheme), base, given)
                _check_origins(spec, options)
                if options.base is None:
                    spec = _check_foreign(spec, options)
                if line is not None:
                    straight.learn(line, spec)
            elif options.public:
                _check_public(spec.address)
        except Mistake as mistake:
            skipped.append(SkippedEntry(place, _reason(item, mistake)))
        else:
            found[spec] = None
    if not count:
        raise ConfigError("no exit in it")
    return ExitList(tuple(found), tuple(skipped), count - len(found) - len(skipped))


def _reason(item: object, mistake: Mistake) -> str:
    texts = item.values() if isinstance(item, Mapping) else (item,)
    if any(isinstance(text, str) and SPOILED in text for text in texts):
        return "has a byte that is not UTF-8"
    told = _VALUE.sub("this value", mistake.message)
    return str(Mistake(told, "" if mistake.at == ".url" else mistake.at))


def _scheme(kind: str, default: str) -> str:
    """Raises Mistake."""
    return scheme_of(kind, default) or default


def _described(item: object, scheme: str) -> Described | str:
    """Raises Mistake."""
    if isinstance(item, str):
        return describe_line(item, scheme)
    if isinstance(item, Mapping):
        return describe_object(item, scheme)
    raise item if isinstance(item, Mistake) else Mistake("neither text nor an object")


def _check_origins(spec: ExitSpec, options: ListOptions) -> None:
    """Raises Mistake if a list, which may be another party's, names a command or a variable."""
    link: ExitSpec | None = spec
    while link is not None and link is not options.given.get("via"):
        if link.key_from is not None:
            raise Mistake("a list can't say key_env or key_command")
        link = link.via


def _check_foreign(spec: ExitSpec, options: ListOptions) -> ExitSpec:
    """``spec`` from a URL's list, with what may be said of it.

    Raises Mistake if it uses files or addresses of this machine, as what its source says may do.
    """
    given, public = options.given, options.public
    link: ExitSpec | None = spec
    while link is not None and link is not given.get("via"):
        if link.scheme == "direct" or link.key_file is not None:
            raise Mistake("a list from a URL can't say direct or name a key_file")
        if link.socket is not None:
            raise Mistake("a list from a URL can't name a Unix socket")
        if link.scheme == "gsocks" and not options.gsocks:
            raise Mistake("a gsocks server in a list from a URL (gsocks: true allows them)")
        for name in ("ca", "cert", "key"):
            file = getattr(link.tls, name, None)
            if file is not None and file != given.get(name):
                raise Mistake(f"a list from a URL can't name a file ({name})")
        if public:
            _check_public(link.address)
        link = link.via
    if not public:
        return spec
    # what the operator's own proxy is reached at is the operator's choice
    weight = min(spec.weight, given.get("weight", 1.0))
    return spec.replaced(public=link is None, weight=weight)


def _check_public(address: Address) -> None:
    """Raises Mistake."""
    if _is_private(address):
        raise Mistake(
            "a private address, or one of this machine, in a list from a public URL"
            " (private: true allows them)"
        )


def _is_private(address: Address) -> bool:
    """Whether an address is one of this machine or its network, as far as it shows."""
    if address.host == "localhost" or address.host.endswith(".localhost"):
        return True
    return DEFAULT_RULES.before_resolving(address, None).verdict is Verdict.DENY
