"""Links to servers, as other programs write them: ``USER@HOST:PORT/?QUERY#NAME``.

``USER`` is a secret of one scheme's own form, ``QUERY`` has options of many programs, and ``NAME``
is anything.  No message repeats any part of a link.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

from gsocks.messages import Mistake

#: a host, with a port or without
PLACE = r"(?:\[[^\[\]]*\]|[^:@\[\]/?#\s]+)(?::[0-9]{1,5})?"
_WHOLE = re.compile(
    rf"(?:(?P<user>.*?)@)?(?P<place>{PLACE})/?(?:\?(?P<query>[^#]*))?(?P<name>#.*)?"
)

#: Options of other programs, each with the values with which a server is one like any other.
#: None: any value.
Harmless: TypeAlias = Mapping[str, frozenset[str] | None]


class Link(NamedTuple):
    """The parts of a link, as text in percent codes, but for the name."""

    #: None: it has none
    user: str | None
    #: host and port
    place: str
    query: str
    #: None: it has none
    name: str | None

    def __repr__(self) -> str:
        return f"<Link {self.place}>"


def split(rest: str) -> Link | None:
    """The parts of what stands behind ``scheme://``; None if it is no link."""
    found = _WHOLE.fullmatch(rest)
    if found is None:
        return None
    return Link(found["user"], found["place"], found["query"] or "", name_of(found["name"]))


def name_of(fragment: str | None) -> str | None:
    """The name that a fragment, with its #, is; None if it is empty."""
    name = unquote((fragment or "#")[1:], errors="replace").strip()
    return name or None


def decoded(text: str) -> str:
    """``text`` without percent codes.  Raises Mistake."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Mistake("its percent codes are not UTF-8") from None


def without_harmless(query: str, harmless: Harmless) -> str:
    """``query`` without the options in ``harmless``.  Raises Mistake for another value of one."""
    kept = []
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in harmless:
            kept.append(pair)
            continue
        values = harmless[name]
        if values is not None and unquote(value) not in values:
            raise Mistake(f"needs what is not supported ({name}=)")
    return "&".join(kept)
