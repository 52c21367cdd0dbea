"""Long documents of JSON, of which no more than one entry is held at a time.

:func:`json.loads` makes a hundred times the memory of a document of empty objects, and reads it in
one step of half a second, in which no other thread of the process runs.  Here a list is read again
each time that it is gone through, and an entry is read only if it is no longer than
:data:`MAX_ENTRY`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gsocks.messages import Mistake

#: characters of one entry; an exit has hundreds
MAX_ENTRY = 65536

#: objects within each other that may hold the list
_MAX_DEPTH = 3

# characters in which the end of an entry is looked for at first
_USUAL = 4096
# characters that one step goes through
_STEP = 65536

# RFC 8259 section 2
_BLANKS = re.compile(r"[ \t\n\r]*")
# a bracket, a string, or the beginning of one that has escapes or is long
_SIGN = re.compile(r'[\[\]{}]|"[^"\\]*"|"')

_read = json.JSONDecoder().raw_decode


class TooMany(ValueError):
    """A list or an object with more members than there may be entries."""


class Items:
    """The items of a list; those that are too long are Mistakes."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: str, at: int) -> None:
        self._text = text
        self._at = at

    def __iter__(self) -> Iterator[Any]:
        return (item for item, _ in _items(self._text, self._at))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | Items) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # as of a list


def loads(text: str, most: int = 100_000) -> object:
    """What :func:`json.loads` makes of ``text``, with :class:`Items` in place of lists that are not
    within an entry.

    Raises ValueError, RecursionError, and TooMany if a list or an object has more than ``most``
    members.
    """
    value, at = _value(text, next_part(text, 0), most, _MAX_DEPTH)
    if next_part(text, at) != len(text):
        raise ValueError("more than one value")
    return value


def next_part(text: str, at: int) -> int:
    """The index of the next character that is not blank; that of the end if there is none."""
    while (found := _BLANKS.match(text, at, at + _STEP)) is not None and found.end() > at:
        at = found.end()
    return at


def _value(text: str, at: int, most: int, depth: int) -> tuple[Any, int]:
    """The value that begins at an index, and where it ends."""
    if text.startswith("[", at):
        end = next_part(text, at + 1) + 1
        for count, (_, behind) in enumerate(_items(text, at)):
            if count >= most:
                raise TooMany
            end = behind
        return Items(text, at), end
    if depth and text.startswith("{", at):
        return _pairs(text, at, most, depth - 1)
    return _entry(text, at)


def _items(text: str, at: int) -> Iterator[tuple[Any, int]]:
    """Each item of a list, and where the next part begins behind it."""
    at = next_part(text, at + 1)
    ended = text.startswith("]", at)
    while not ended:
        item, at = _entry(text, at)
        at, ended = _behind(text, at, "]")
        yield item, at


def _pairs(text: str, at: int, most: int, depth: int) -> tuple[dict[str, Any], int]:
    pairs: dict[str, Any] = {}
    at = next_part(text, at + 1)
    if text.startswith("}", at):
        return pairs, at + 1
    while True:
        if not text.startswith('"', at):
            raise ValueError("a key that is no string")
        key, at = _entry(text, at)
        at = next_part(text, at)
        if not text.startswith(":", at):
            raise ValueError("a key without a value")
        pairs[str(key)], at = _value(text, next_part(text, at + 1), most, depth)
        if len(pairs) > most:
            raise TooMany
        at, ended = _behind(text, at, "}")
        if ended:
            return pairs, at


def _entry(text: str, at: int) -> tuple[Any, int]:
    """A value that is read whole, or a Mistake in its place, and where it ends."""
    for length in (_USUAL, MAX_ENTRY + 1):
        part = text[at : at + length]
        try:
            value, size = _read(part)
        except ValueError:
            if len(part) < length:
                raise
        else:
            # a number may go on behind the part
            if size < length:
                return value, at + size
    end = _end_of(text, at) if text[at] in '"[{' else at
    if end - at <= MAX_ENTRY:
        raise ValueError("no JSON")
    return Mistake(f"longer than {MAX_ENTRY:,} characters"), end


def _end_of(text: str, at: int) -> int:
    """Where a string, a list or an object ends by its quotes and brackets."""
    depth = 0
    while at < len(text):
        behind = at + _STEP
        for found in _SIGN.finditer(text, at, behind):
            sign, end = found[0], found.end()
            if sign in "[{":
                depth += 1
            elif sign in "]}":
                depth -= 1
            elif sign == '"':
                end = behind = _end_of_string(text, end)
            if not depth:
                return end
            if sign == '"':
                break
        at = behind
    raise ValueError("a value without an end")


def _end_of_string(text: str, at: int) -> int:
    """The same of a string, from within it."""
    while (quote := text.find('"', at)) >= 0:
        before = text[at:quote]
        at = quote + 1
        if (len(before) - len(before.rstrip("\\"))) % 2 == 0:
            return at
    raise ValueError("a string without an end")


def _behind(text: str, at: int, closing: str) -> tuple[int, bool]:
    """Where the next part begins, behind a comma; or where all ends, and True."""
    at = next_part(text, at)
    if text.startswith(closing, at):
        return at + 1, True
    if not text.startswith(",", at):
        raise ValueError("neither a comma nor an end")
    return next_part(text, at + 1), False
