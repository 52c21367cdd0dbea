"""User name and password for a proxy, in which a client's wish may be passed on.

    customer-me-cc-{country}-sessid-{session}

Behind the gateways of the proxy trade stand many exits, and the user name says which one is wanted.
So what stands in braces is filled in for each request:

    {session}            the session that the client asks for; where it asks for none, a new one
    {country} {COUNTRY}  the country that it asks for, in small letters or in capitals; where it
                         asks for none, the exit's own
    {user}               the user, or nobody

Letters and digits are all that is filled in, so nothing in it can be read as more parameters, and
every gateway takes it.  A session or a user with anything else becomes eight letters and digits
worked out of it, the same in every process.
"""

from __future__ import annotations

import re
import secrets
from base64 import b32encode
from hashlib import blake2b
from typing import NamedTuple

from gsocks.request import Request
from gsocks.wish import LONGEST_WORD

PLACES = ("{session}", "{country}", "{COUNTRY}", "{user}")

_PLACE = re.compile("|".join(map(re.escape, PLACES)))
_IN_BRACES = re.compile(r"\{\w*\}")
_PLAIN = re.compile(rf"[A-Za-z0-9]{{1,{LONGEST_WORD}}}")

#: of a word that is worked out or made up, before it is letters and digits
_BYTES = 5


class Filled(NamedTuple):
    """Credentials for one request."""

    user: str
    password: str


class Credentials:
    """Credentials with places to be filled in, or without.

    ``country``: what ``{country}`` is for those who ask for none; needed where that stands.
    """

    __slots__ = ("_country", "_fixed", "_password", "_user")

    def __init__(self, user: str, password: str = "", country: str | None = None) -> None:
        self._user = user
        self._password = password
        self._country = country or ""
        has_places = _PLACE.search(user) or _PLACE.search(password)
        self._fixed = None if has_places else Filled(user, password)

    def filled(self, request: Request) -> Filled:
        """Those for ``request``."""
        if self._fixed is not None:
            return self._fixed
        wish = request.wish
        country = wish.country or self._country
        new = _word(secrets.token_bytes(_BYTES))
        values = {
            "{session}": new if wish.session is None else plain(wish.session),
            "{country}": country.lower(),
            "{COUNTRY}": country.upper(),
            "{user}": "nobody" if request.user is None else plain(request.user),
        }
        return Filled(*(_fill(text, values) for text in (self._user, self._password)))


def plain(text: str) -> str:
    """``text`` where it is letters and digits, else such a word in its place."""
    if _PLAIN.fullmatch(text):
        return text
    return _word(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest())


def passes_country(text: str) -> bool:
    """Whether a country is filled in."""
    return "{country}" in text or "{COUNTRY}" in text


def has_unknown_place(text: str) -> bool:
    """Whether a word in braces stands there that is not filled in."""
    return any(found not in PLACES for found in _IN_BRACES.findall(text))


def longest(text: str) -> int:
    """Bytes that it can have when it is filled in."""
    values = dict.fromkeys(PLACES, "x" * LONGEST_WORD)
    return len(_fill(text, values | {"{country}": "xx", "{COUNTRY}": "XX"}).encode())


def _fill(text: str, values: dict[str, str]) -> str:
    # in one pass, so that nothing that was filled in is filled in again
    return _PLACE.sub(lambda place: values[place[0]], text)


def _word(raw: bytes) -> str:
    return b32encode(raw).decode("ascii").lower()
