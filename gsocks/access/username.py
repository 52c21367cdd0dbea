"""A wish in a user name, because that is all that every client can send to a proxy.

    alice-session-x1-country-de            customer-alice-cc-DE-sessid-x1-sesstime-10
    alice-exit-berlin-1                    user-alice-country-us-tag-mobile-tag-fast

``USER(-key-value)*``, as the gateways of the proxy trade have it; keys in any case:

    session, sessid                        requests with the same one have the same exit
    lifetime, sesstime, sessionduration    for how long: minutes, or 30s, 10m, 2h
    country, cc                            the exit is there
    tag                                    the exit has it; may stand several times
    exit                                   the exit's name

A user's name may have hyphens itself, and look like a parameter: the longest beginning that is a
user's name is taken for it.  ``customer-`` or ``user-`` may stand in front of it.  At an open door
there are no users, and the name ends where the first key begins; it may be empty.

A value goes on until the next key.  Only tags, names of exits and UUIDs as sessions may have
hyphens: so a key that is spelled wrongly is found out, and becomes no part of a session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import Any

from gsocks.errors import BadParameters
from gsocks.units import parse_duration
from gsocks.wish import ANY, Wish, as_country, as_exit, as_session, as_tag
from gsocks.wording import did_you_mean, shown

#: characters of a user name with its parameters; RFC 1929's bound for all clients
LONGEST_NAME = 255

# RFC 9562 section 4
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

#: seconds; what is longer is a slip
_LONGEST_LIFETIME = 366 * 86400

_PREFIXES = ("", "customer-", "user-")


def split(name: str, users: Container[str] | None) -> tuple[str, str]:
    """The user in ``name``, and the parameters behind it; empty if there are none.

    ``users``: whom the door knows.  If nobody of them is in it, the whole name is the user, whom
    nobody knows.  None: an open door, at which nobody is a user.
    """
    if users is None:
        words = name.split("-")
        first = next((at for at, word in enumerate(words) if word.lower() in _KEYS), len(words))
        return "", "-".join(words[first:])
    if len(name) > LONGEST_NAME:  # nobody's, and not worth the search
        return name, ""
    end = len(name)
    while end > 0:
        for prefix in _PREFIXES:
            user = name[len(prefix) : end]
            if name.startswith(prefix) and user in users:
                return user, name[end + 1 :] if end < len(name) else ""
        end = name.rfind("-", 0, end)
    return name, ""


def read_parameters(text: str) -> Wish:
    """The wish in ``key-value-key-value``.  Raises BadParameters, which tells the known keys."""
    if not text:
        return ANY
    if len(text) > LONGEST_NAME:
        raise BadParameters(f"a user name longer than {LONGEST_NAME} characters")
    found: dict[str, Any] = {}
    tags: set[str] = set()
    words = text.split("-")
    while words:
        key = words.pop(0).lower()
        if key not in _KEYS:
            raise _mistake(f"{shown(key)} is not a key{did_you_mean(key, _KEYS)}")
        field, read = _KEYS[key]
        try:
            value = read(_take_value(words))
        except ValueError as error:
            raise _mistake(f"{key}: {error}") from None
        if field == "tags":
            tags.add(value)
        elif field in found:
            raise _mistake(f"{key}: said before")
        else:
            found[field] = value
    return Wish(**found, tags=tuple(sorted(tags)))


def _take_value(words: list[str]) -> str:
    """What stands at the beginning of ``words`` until the next key; it is taken from them."""
    taken = 1
    while taken < len(words) and words[taken].lower() not in _KEYS:
        taken += 1
    value = "-".join(words[:taken])
    del words[:taken]
    return value


def _mistake(what: str) -> BadParameters:
    return BadParameters(f"in a user name: {what}; known keys: {', '.join(_KEYS)}")


def _session(text: str) -> str:
    if "-" in text and not _UUID.fullmatch(text):
        raise ValueError(f"{shown(text)} has a hyphen, as of sessions only a UUID may")
    return as_session(text)


def _lifetime(text: str) -> float:
    if text.isascii() and text.isdigit():
        text += "m"
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("a session that ends at once is none")
    if seconds > _LONGEST_LIFETIME:
        raise ValueError("no session lasts longer than a year")
    return seconds


#: each key, what it says of the Wish, and how it is read
_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "session": ("session", _session),
    "sessid": ("session", _session),
    "lifetime": ("lifetime", _lifetime),
    "sesstime": ("lifetime", _lifetime),
    "sessionduration": ("lifetime", _lifetime),
    "country": ("country", as_country),
    "cc": ("country", as_country),
    "tag": ("tags", as_tag),
    "exit": ("exit", as_exit),
}
