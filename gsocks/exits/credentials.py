"""User name and password for a proxy, which may pass on a client's exit selector.  ::

    customer-me{?-cc-{country}}-sessid-{session}{?-sesstime-{lifetime:m}}

Behind the gateway of a provider stand many exits, and the credentials select one.  So they may be
templates, in which each request's values replace the places in braces:

``{session}``, ``{session:8}``, ``{session:1-25:word}``
    the session of the request, or a new one if it has none; of that length and of that alphabet
    (:data:`ALPHABETS`)
``{country}``, ``{COUNTRY}``
    the selected country, in lower or upper case; without one, the exit's own
``{lifetime}``, ``{lifetime:m}``, ``{lifetime:m:3-1440}``
    the session's lifetime: with a unit (``90s``, ``10m``, ``2h``), or as a number of ``s``, ``m``,
    ``h`` or ``d``, within those bounds; without one, a day
``{user}``
    the user, with a length and an alphabet as for a session; ``nobody`` if the request has none
``{?...}``
    a part that is left out unless the request (or the exit's country) has a value for each place
    in it

Only letters and digits are filled in, unless an alphabet says otherwise, so that no value can be
read as another parameter.  A session or a user that does not fit is replaced by a hash of it that
does: the same in every process.
"""

from __future__ import annotations

import math
import re
import secrets
from hashlib import blake2b
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

from gsocks.request import MAX_WORD, Request

#: the names of places
PLACES = ("{session}", "{country}", "{COUNTRY}", "{user}", "{lifetime}")

_PLACE = r"\{(?:session|country|COUNTRY|user|lifetime)(?::[^{}]*)?\}"
_OPTIONAL = rf"\{{\?(?:[^{{}}]|{_PLACE})*{_PLACE}(?:[^{{}}]|{_PLACE})*\}}"
#: splits a template at its places and optional parts, which are every second item then
_TOKEN = re.compile(f"({_OPTIONAL}|{_PLACE})")
#: the same in a URL; to ask so takes a fifth of the time that urllib needs
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")
_IN_BRACES = re.compile(r"\{[\w:?.-]*\}")
_LENGTH = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")
_BOUNDS = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")

#: letters and digits that are never mistaken for one another, as base 32 has them (RFC 4648)
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"

#: the characters that a value may have, as a class of regular expressions, and those of a hash
ALPHABETS = {
    "alnum": ("A-Za-z0-9", _BASE32),
    "word": ("A-Za-z0-9_", _BASE32),
    "lower": ("a-z0-9", _BASE32),
    "upper": ("A-Z0-9", _BASE32.upper()),
    "letters": ("A-Za-z", _BASE32[:26]),
    "digits": ("0-9", "0123456789"),
    "hex": ("0-9a-f", "0123456789abcdef"),
}

#: characters of a hash, where its length is not given
_HASH_LENGTH = 8

#: seconds of each unit, the largest first
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

#: seconds that stand for a request without a lifetime, and the longest lifetime
_DEFAULT_LIFETIME = 86400.0
_MAX_LIFETIME = 366 * 86400.0


class Filled(NamedTuple):
    """Credentials for one request."""

    user: str
    password: str


class Credentials:
    """Credentials that may be templates.

    ``country``: the value of ``{country}`` for requests without one.  Raises ValueError for a
    format of a place that is not known.
    """

    __slots__ = ("_country", "_password", "_user")

    def __init__(self, user: str, password: str = "", country: str | None = None) -> None:
        #: as text where nothing has to be filled in, which takes a third of the memory
        self._user: tuple[_Part, ...] | str = user
        self._password: tuple[_Part, ...] | str = password
        self._country = country
        if "{" not in user and "{" not in password:
            return  # as nearly all of a long list
        parts, others = _parse(user), _parse(password)
        if len(parts) > 1 or len(others) > 1:
            self._user, self._password = parts, others

    def differ_each_time(self, request: Request) -> bool:
        """Whether each request like this one may have another exit behind the gateway.

        A request without a session has: a new name each time, or none at all if the place for it
        is optional, so that the gateway rotates.
        """
        return (
            not isinstance(self._user, str)
            and request.selector.session is None
            and any(_has_session(part) for part in (*self._user, *self._password))
        )

    def filled(self, request: Request) -> Filled:
        """Those for ``request``."""
        if isinstance(self._user, str) or isinstance(self._password, str):
            return Filled(str(self._user), str(self._password))
        selector = request.selector
        values = _Values(
            session=selector.session,
            country=selector.country or self._country,
            lifetime=selector.lifetime,
            user=request.user,
            fresh=b"" if selector.session is not None else secrets.token_bytes(_MAX_DIGEST),
        )
        return Filled(_fill(self._user, values), _fill(self._password, values))


def check(text: str) -> None:
    """Raises ValueError for a place whose format is not known, without repeating it."""
    _parse(text)


def passes_country(text: str) -> bool:
    """Whether a country is filled in."""
    return "{country}" in text or "{COUNTRY}" in text


def passes_session(text: str) -> bool:
    """Whether a session is filled in."""
    return "{session" in text


def requires_country(text: str) -> bool:
    """The same, and not only in a part that may be left out."""
    return _requires(text, "country")


def requires_session(text: str) -> bool:
    """Whether a session is filled in, and not only in a part that may be left out."""
    return _requires(text, "session")


def _requires(text: str, name: str) -> bool:
    return any(isinstance(part, _Place) and part.name == name for part in _parse(text))


def has_unknown_place(text: str) -> bool:
    """Whether a word in braces stands there that is no place."""
    return any(_IN_BRACES.search(literal) for literal in _split(text)[::2])


def longest(text: str) -> int:
    """The number of bytes that it can have when it is filled in."""
    return sum(_longest(part) for part in _parse(text))


def literals(text: str) -> str:
    """What of ``text`` is filled in nowhere."""
    return "".join(part for part in _parse(text, with_optional=True) if isinstance(part, str))


def quoted(text: str) -> str:
    """``text`` in the form of a URL, in which places remain readable."""
    if _PLAIN.fullmatch(text):
        return text
    tokens = _split(text)
    tokens[::2] = [quote(literal, safe="{}") for literal in tokens[::2]]
    return "".join(tokens)


def partition(text: str) -> tuple[str, str, str]:
    """User, colon and password; a colon within a place does not separate them."""
    tokens = _split(text)
    for at in range(0, len(tokens), 2):
        before, colon, after = tokens[at].partition(":")
        if colon:
            return "".join([*tokens[:at], before]), colon, "".join([after, *tokens[at + 1 :]])
    return text, "", ""


# --- templates --------------------------------------------------------------------------------


class _Values(NamedTuple):
    """What a request has for each place."""

    session: str | None
    country: str | None
    lifetime: float | None
    user: str | None
    #: random bytes, which make the session of a request without one
    fresh: bytes


class _Place(NamedTuple):
    """A place for a value."""

    name: str
    #: of a session or a user: the text that fits, and the symbols and the length of a hash
    fits: re.Pattern[str] = re.compile("")
    symbols: str = _BASE32
    length: int = _HASH_LENGTH
    longest: int = MAX_WORD
    #: of a country
    upper: bool = False
    #: of a lifetime; empty: the value with a unit of its own
    unit: str = ""
    bounds: tuple[int, int] = (1, math.ceil(_MAX_LIFETIME))

    def value(self, values: _Values) -> str:
        if self.name == "session":
            if values.session is None:
                return self._word(values.fresh)
            return self._fitting(values.session)
        if self.name == "user":
            return "nobody" if values.user is None else self._fitting(values.user)
        if self.name == "country":
            country = values.country or ""
            return country.upper() if self.upper else country.lower()
        return self._lifetime(_DEFAULT_LIFETIME if values.lifetime is None else values.lifetime)

    def _fitting(self, text: str) -> str:
        if self.fits.fullmatch(text):
            return text
        raw = text.encode("utf-8", "surrogatepass")
        size = _digest_size(self.length, self.symbols)
        return self._word(blake2b(raw, digest_size=size).digest())

    def _word(self, raw: bytes) -> str:
        """A word of the place's symbols and length, made of the first bytes of ``raw``."""
        number = int.from_bytes(raw[: _digest_size(self.length, self.symbols)], "big")
        word = ""
        for _ in range(self.length):
            number, digit = divmod(number, len(self.symbols))
            word = self.symbols[digit] + word
        return word

    def _lifetime(self, seconds: float) -> str:
        if self.unit:
            count = math.ceil(seconds / _UNITS[self.unit])
            return str(min(max(count, self.bounds[0]), self.bounds[1]))
        whole = math.ceil(seconds)
        unit = next(unit for unit, size in _UNITS.items() if whole % size == 0)
        return f"{whole // _UNITS[unit]}{unit}"


class _Optional(NamedTuple):
    """A part that is left out unless there is a value for each of its places."""

    parts: tuple[str | _Place, ...]


_Part: TypeAlias = "str | _Place | _Optional"


def _split(text: str) -> list[str]:
    """Literal text, and at every second index a place or an optional part."""
    return _TOKEN.split(text) if "{" in text else [text]


def _parse(text: str, with_optional: bool = False) -> tuple[_Part, ...]:
    """Literal text and places by turns; one item if there is no place.

    ``with_optional``: optional parts are not one item but several.  Raises ValueError.
    """
    tokens = _split(text)
    parts: list[_Part] = []
    for at, token in enumerate(tokens):
        if at % 2 == 0:
            parts.append(token)
        elif not token.startswith("{?"):
            parts.append(_place(token))
        else:
            inner = [
                _place(each) if number % 2 else each
                for number, each in enumerate(_TOKEN.split(token[2:-1]))
            ]
            parts.extend(inner if with_optional else [_Optional(tuple(inner))])
    return tuple(parts)


def _fill(parts: tuple[_Part, ...], values: _Values) -> str:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif isinstance(part, _Place):
            text += part.value(values)
        elif all(getattr(values, each.name) is not None for each in _places(part)):
            text += _fill(part.parts, values)
    return text


def _has_session(part: _Part) -> bool:
    if isinstance(part, _Optional):
        return any(map(_has_session, part.parts))
    return isinstance(part, _Place) and part.name == "session"


def _places(optional: _Optional) -> list[_Place]:
    return [part for part in optional.parts if isinstance(part, _Place)]


def _longest(part: _Part) -> int:
    if isinstance(part, str):
        return len(part.encode())
    if isinstance(part, _Optional):
        return sum(map(_longest, part.parts))
    if part.name == "country":
        return 2
    if part.name == "lifetime":
        return len(str(part.bounds[1])) + (0 if part.unit else 1)
    return part.longest


def _place(token: str) -> _Place:
    """Raises ValueError."""
    name, *words = token[1:-1].split(":")
    if name in ("country", "COUNTRY"):
        if words:
            raise ValueError(f"{{{name}}} has no format")
        return _Place("country", upper=name == "COUNTRY")
    return _lifetime_place(words) if name == "lifetime" else _word_place(name, words)


def _word_place(name: str, words: list[str]) -> _Place:
    alphabet, shortest, longest_ = "alnum", 1, MAX_WORD
    lengths = [found for word in words if (found := _LENGTH.fullmatch(word))]
    alphabets = [word for word in words if word in ALPHABETS]
    if lengths:
        shortest = int(lengths[0][1])
        longest_ = int(lengths[0][2] or shortest)
    if alphabets:
        alphabet = alphabets[0]
    fits = len(lengths) <= 1 and len(alphabets) <= 1
    if (
        len(words) > len(lengths) + len(alphabets)
        or not fits
        or not (1 <= shortest <= longest_ <= MAX_WORD)
    ):
        raise ValueError(
            f"a format of {{{name}}} is not a length of 1 to {MAX_WORD} or an alphabet (expected"
            f" e.g. {{{name}:8}} or {{{name}:1-25:word}}; known: {', '.join(ALPHABETS)})"
        )
    allowed, symbols = ALPHABETS[alphabet]
    return _Place(
        name,
        re.compile(f"[{allowed}]{{{shortest},{longest_}}}"),
        symbols,
        max(shortest, min(longest_, _HASH_LENGTH)),
        longest_,
    )


def _lifetime_place(words: list[str]) -> _Place:
    if not words:
        return _Place("lifetime")
    bounds = _BOUNDS.fullmatch(words[1]) if len(words) == 2 else None
    if words[0] not in _UNITS or len(words) > 2 or (bounds is None and len(words) == 2):
        raise ValueError(
            "a format of {lifetime} is not a unit and bounds (expected e.g. {lifetime:m} or"
            f" {{lifetime:m:3-1440}}; known units: {', '.join(_UNITS)})"
        )
    if bounds is None:
        return _Place("lifetime", unit=words[0])
    low, high = int(bounds[1]), int(bounds[2])
    if not 1 <= low <= high:
        raise ValueError("the bounds of {lifetime} are not two numbers from 1, the smaller first")
    return _Place("lifetime", unit=words[0], bounds=(low, high))


def _digest_size(length: int, symbols: str) -> int:
    """Bytes for a word: as many as it takes where they give every symbol the same chance."""
    bits = length * math.log2(len(symbols))
    exact = len(symbols) in (16, 32)
    return math.ceil(bits / 8) + (0 if exact else 4)


#: of the longest word, and blake2b has 64
_MAX_DIGEST = _digest_size(MAX_WORD, _BASE32)
