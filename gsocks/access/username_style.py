"""How clients write an exit selector into their credentials: the styles of providers, and own ones.

A style is a table: what separates the parameters, which words are keys and what they mean, and
whether they stand behind the user name or behind the password.  The known ones
(:data:`STYLES`) are those of providers, so that programs made for one come in unchanged; what each
takes stands in docs/providers.md.  Reading credentials by them: gsocks/access/username.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gsocks.messages import Mistake, did_you_mean, shown, unknown_key

#: the meanings that a key may have
MEANINGS = ("session", "strict_session", "strict", "lifetime", "country", "tag", "exit", "ignored")

#: of one listener
MAX_STYLES = 8

_MAX_KEYS = 64
_MAX_PREFIXES = 8

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
_SEPARATOR = re.compile(r"[!-/;-@\[-`{-~]{1,4}")  # punctuation; HTTP ends a user name at a colon
_PREFIX = re.compile(r"[!-9;-~]{1,64}")

_COMMON = {
    "session": "session",
    "sessid": "session",
    "lifetime": "lifetime",
    "sesstime": "lifetime",
    "sessionduration": "lifetime",
    "country": "country",
    "cc": "country",
    "tag": "tag",
    "exit": "exit",
    "strict": "strict",
}


@dataclass(frozen=True)
class UserNameStyle:
    """One way to write parameters into credentials.

    ``alice-session-x-country-de`` has the separator ``-`` three times: between the user and the
    first parameter (``start``), between parameters (``pairs``), and between a key and its value
    (``values``).
    """

    start: str = "-"
    pairs: str = "-"
    values: str = "-"
    #: texts of which one may precede a user's name
    prefixes: tuple[str, ...] = ()
    #: whether the parameters stand behind the password, and not behind the user's name
    in_password: bool = False
    #: of a lifetime without one, as :func:`gsocks.units.parse_duration` has it
    lifetime_unit: str = "m"
    #: each key in lower case, and one of MEANINGS
    keys: Mapping[str, str] = field(default_factory=lambda: _COMMON)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.start, self.pairs, self.values, self.prefixes, self.in_password))

    @functools.cached_property
    def opening(self) -> re.Pattern[str]:
        """Finds the separator before the first parameter."""
        return re.compile(f"{re.escape(self.start)}(?={self._first_key})", re.IGNORECASE)

    @functools.cached_property
    def opening_or_begin(self) -> re.Pattern[str]:
        """The same, for text that may be parameters from its beginning."""
        return re.compile(f"(?:^|{re.escape(self.start)})(?={self._first_key})", re.IGNORECASE)

    def begins_parameter(self, token: str) -> bool:
        """Whether a part between two separators of pairs begins another parameter."""
        if self.pairs == self.values:
            return token.lower() in self.keys
        key, mark, _ = token.partition(self.values)
        meaning = self.keys.get(key.lower())
        return meaning is not None and bool(mark) == (meaning != "strict")

    @property
    def _first_key(self) -> str:
        # the longest first: sessid_oneip begins with sessid
        keys = sorted(self.keys, key=len, reverse=True)
        flags = "|".join(re.escape(key) for key in keys if self.keys[key] == "strict")
        others = "|".join(re.escape(key) for key in keys if self.keys[key] != "strict")
        return f"(?:(?:{others})(?:{re.escape(self.values)}|$)" + (
            f"|(?:{flags})(?:{re.escape(self.pairs)}|$))" if flags else ")"
        )


#: the style of a listener that has no other
STANDARD = UserNameStyle(prefixes=("customer-", "user-"))


def _keys(*tags: str, **more: str) -> dict[str, str]:
    """Common keys, words that select a place or a network by a tag, and more."""
    return {**_COMMON, **dict.fromkeys(tags, "tag"), **more}


#: the known styles by name; each has the grammar of a provider's own documentation
STYLES: dict[str, UserNameStyle] = {
    "standard": STANDARD,
    "brightdata": UserNameStyle(
        prefixes=("brd-customer-", "lum-customer-"),
        keys=_keys("zone", "state", "city", "zip", "asn"),
    ),
    "dataimpulse": UserNameStyle(
        start="__",
        pairs=";",
        values=".",
        keys=_keys("city", "state", "zip", "asn", cr="country", sessttl="lifetime"),
    ),
    "decodo": UserNameStyle(
        prefixes=("user-",), keys=_keys("continent", "state", "city", "zip", "asn")
    ),
    "evomi": UserNameStyle(
        start="_",
        pairs="_",
        in_password=True,
        keys=_keys(
            "region", "city", "zip", "asn", "isp", hardsession="strict_session", mode="ignored"
        ),
    ),
    "geonode": UserNameStyle(
        prefixes=("geonode_",), keys=_keys("type", "state", "city", "zip", "asn")
    ),
    "iproyal": UserNameStyle(
        start="_",
        pairs="_",
        in_password=True,
        keys=_keys("region", "state", "city", "isp"),
    ),
    "oxylabs": UserNameStyle(
        prefixes=("customer-",),
        keys=_keys("city", "st", "asn", sessid_oneip="strict_session"),
    ),
    "soax": UserNameStyle(
        prefixes=("package-",),
        lifetime_unit="s",
        keys=_keys("region", "city", "isp", sessionid="session", sessionlength="lifetime"),
    ),
    "webscrapingapi": UserNameStyle(
        start="+", pairs="+", values="=", prefixes=("username=",), keys=_keys()
    ),
}

#: a known name, a mapping as in a config, or a style
SomeStyle: TypeAlias = "str | Mapping[str, object] | UserNameStyle"


def parse_styles(value: object) -> tuple[UserNameStyle, ...]:
    """One style or a list of them.  Raises Mistake."""
    if not isinstance(value, list | tuple):
        return (parse_style(value),)
    if not 1 <= len(value) <= MAX_STYLES:
        raise Mistake(f"needs 1 to {MAX_STYLES} styles")
    found = []
    for index, each in enumerate(value):
        try:
            style = parse_style(each)
        except Mistake as mistake:
            raise mistake.prefixed(f"[{index}]") from None
        if style in found:
            raise Mistake("duplicate style", f"[{index}]")
        found.append(style)
    return tuple(found)


def parse_style(value: object) -> UserNameStyle:
    """A style by its name, or as a mapping of separators and keys.  Raises Mistake."""
    if isinstance(value, UserNameStyle):
        return value
    if not isinstance(value, Mapping):
        if isinstance(value, str) and value in STYLES:
            return STYLES[value]
        guess = did_you_mean(str(value), STYLES)
        raise Mistake(
            f"{shown(value)} is not a style of user names{guess} (known: {', '.join(STYLES)})"
        )
    read: dict[str, object] = {}
    for name, each in value.items():
        if name not in _PARSERS:
            raise unknown_key(name, _PARSERS)
        attribute, parse = _PARSERS[name]
        try:
            read[attribute] = parse(each)
        except Mistake as mistake:
            raise mistake.prefixed(f".{name}") from None
    if "start" not in read and "pairs" in read:
        read["start"] = read["pairs"]
    style = UserNameStyle(**read)  # type: ignore[arg-type]
    for key in style.keys:
        if any(separator in key for separator in (style.start, style.pairs, style.values)):
            raise Mistake(f"{shown(key)} has a separator in it", ".keys")
    return style


def _separator(value: object) -> str:
    if isinstance(value, str) and _SEPARATOR.fullmatch(value):
        return value
    raise Mistake(
        f"{shown(value)} is not a separator (expected up to four of - _ . , ; + = and the like)"
    )


def _prefixes(value: object) -> tuple[str, ...]:
    texts = value if isinstance(value, list | tuple) else [value]
    if len(texts) > _MAX_PREFIXES:
        raise Mistake(f"more than {_MAX_PREFIXES} prefixes")
    for text in texts:
        if not isinstance(text, str) or not _PREFIX.fullmatch(text):
            raise Mistake(f"{shown(text)} is not a prefix (expected e.g. customer-)")
    return tuple(texts)


def _place(value: object) -> bool:
    if value in ("user", "password"):
        return value == "password"
    raise Mistake(f"{shown(value)} is not a place (known: user, password)")


def _unit(value: object) -> str:
    if value in ("seconds", "minutes"):
        return str(value)[0]
    raise Mistake(f"{shown(value)} is not a unit (known: seconds, minutes)")


def _own_keys(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise Mistake(f"{shown(value)} is not a mapping of keys to what they mean")
    if len(value) > _MAX_KEYS:
        raise Mistake(f"more than {_MAX_KEYS} keys")
    found = dict(_COMMON)
    for key, meaning in value.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise Mistake(f"{shown(key)} is not a key (expected a word)")
        if meaning not in MEANINGS:
            raise Mistake(
                f"{shown(meaning)} is not a meaning (known: {', '.join(MEANINGS)})", f".{key}"
            )
        found[key.lower()] = str(meaning)
    return found


#: the keys of a style in a config: the attribute that each sets, and the parser of its value
_PARSERS: dict[str, tuple[str, Callable[[object], object]]] = {
    "start": ("start", _separator),
    "pairs": ("pairs", _separator),
    "values": ("values", _separator),
    "prefixes": ("prefixes", _prefixes),
    "place": ("in_password", _place),
    "lifetime_unit": ("lifetime_unit", _unit),
    "keys": ("keys", _own_keys),
}
