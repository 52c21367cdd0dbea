"""Error messages about a user's input: in one line, with its place, and without secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from gsocks.errors import ConfigError

_MAX_SHOWN = 60

# A shared key is 43 digits of base64, with or without its padding.
_LOOKS_SECRET = re.compile(r"[@$]|[A-Za-z0-9+/_-]{43}")

# With one colon too many in YAML, a whole URL becomes a key, password included.
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}")


class Mistake(ConfigError):
    """A ConfigError with its place in the input.

    ``at`` is the path from the value that was read to the wrong part: ``.weight``, ``[2].url``, or
    empty if the whole value is wrong.
    """

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(f"{at.removeprefix('.')}: {message}" if at else message)
        self.message = message
        self.at = at

    def prefixed(self, place: str) -> Mistake:
        """The same mistake, as the reader of the value at ``place`` reports it."""
        return Mistake(self.message, place + self.at)


def shown(value: object) -> str:
    """``value`` for an error message: short, and without a secret in the wrong place."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return "an empty value"
    text = repr(value)
    if len(text) > _MAX_SHOWN or _LOOKS_SECRET.search(text):
        return "this value"
    return text


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` (did you mean WORD?)``, or nothing if no known word is similar enough.

    ``cutoff``: the least similarity, from 0 to 1, as :func:`difflib.get_close_matches` has it.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def check_type(owner: str, name: str, value: object, kind: type) -> None:
    """Raises TypeError in one line if the argument ``name`` of ``owner`` is of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{owner}: {name} takes {kind.__name__}, not {type(value).__name__}")


def unknown_keyword(owner: str, keyword: str, known: Iterable[str]) -> TypeError:
    """The error for a keyword that ``owner`` does not take, with a suggestion."""
    return TypeError(f"{owner} has no option {keyword}{did_you_mean(keyword, known)}")


def unknown_key(key: object, known: Iterable[str]) -> Mistake:
    """The mistake of an unknown key, with a suggestion; a key that may be a secret isn't shown."""
    names = list(known)
    listed = f" (known: {', '.join(names)})"
    if not isinstance(key, str) or not _PLAIN_KEY.fullmatch(key):
        return Mistake(f"a key that is not known here{listed}")
    return Mistake(f"unknown key{did_you_mean(key, names) or listed}", f".{key}")


def plural(count: int, noun: str) -> str:
    """``1 exit``, ``2 exits``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
