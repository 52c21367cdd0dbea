"""How a mistake in what a user wrote is told: in one line, with its place, and without secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from gsocks.errors import ConfigError

_LONGEST_SHOWN = 60

# A shared key is 43 digits of base64, with or without its padding.
_LOOKS_SECRET = re.compile(r"[@$]|[A-Za-z0-9+/_-]{43}")

# A whole URL, password included, becomes a key by one colon too many in YAML.
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}")


class Mistake(ConfigError):
    """A ConfigError that knows its place.

    ``at`` leads from what was being read to the part at fault: ``.weight``, ``[2].url``, or
    nothing if it is the whole.
    """

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(f"{at.removeprefix('.')}: {message}" if at else message)
        self.message = message
        self.at = at

    def within(self, place: str) -> Mistake:
        """The same mistake as whoever reads the whole has to tell it."""
        return Mistake(self.message, place + self.at)


def shown(value: object) -> str:
    """``value`` for an error message: short, and no secret that stands in the wrong place."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return "an empty value"
    text = repr(value)
    if len(text) > _LONGEST_SHOWN or _LOOKS_SECRET.search(text):
        return "this value"
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean WORD?)``, or nothing if no known word comes near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def unknown_key(key: object, known: Iterable[str]) -> Mistake:
    """A key that nobody reads, and what it may have meant; unless plain it is not repeated."""
    names = list(known)
    listed = f" (known: {', '.join(names)})"
    if not isinstance(key, str) or not _PLAIN_KEY.fullmatch(key):
        return Mistake(f"a key that is not known here{listed}")
    return Mistake(f"unknown key{did_you_mean(key, names) or listed}", f".{key}")
