"""Pages of checks: whether one is what the operator expects, and what most exits get.

An exit may bring a page that works and is another one: a captive portal's, a block, an
advertisement.  What it is like can't be known beforehand, but most exits get the right one: so
pages of one URL are compared by their status, by what they are (JSON, HTML, text), by the names in
JSON, and by their size.  No page is compared while fewer than :data:`FEW` other exits have got one,
or while no kind is that of two thirds of them: what the majority gets is never strange.

Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import NamedTuple

from gsocks.errors import FetchFailed
from gsocks.exits.fetch import Page
from gsocks.settings import ExpectSettings

#: other exits that have got a page before one is compared with theirs
FEW = 4
#: the share of them that makes a majority
MOST = 2 / 3

#: bytes of a page that are looked at
_LOOKED_AT = 64 * 1024
#: names of a JSON object that are looked at
_MAX_NAMES = 64
#: a page of HTML that has less than a quarter of the usual bytes, or more than four times as many,
#: is another one; in bits of its size
_BITS = 2


class Shape(NamedTuple):
    """What a page is like."""

    status: int
    #: JSON object, JSON, HTML, text, binary, or empty
    kind: str
    #: the names in a JSON object
    names: frozenset[str] = frozenset()
    #: of its size in bytes
    bits: int = 0


def shape_of(page: Page) -> Shape:
    """What ``page`` is like."""
    body = page.body[:_LOOKED_AT].strip()
    if not body:
        return Shape(page.status, "empty")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return Shape(page.status, "binary")
    if text.startswith("<"):
        return Shape(page.status, "HTML", bits=len(page.body).bit_length())
    found = _json(text)
    if isinstance(found, dict):
        return Shape(page.status, "JSON object", frozenset(sorted(found)[:_MAX_NAMES]))
    # a number is the text of an address's beginning, and no more JSON than that
    return Shape(page.status, "JSON" if isinstance(found, list) else "text")


class Pages:
    """The latest pages of one URL through many exits, each of which has a number."""

    def __init__(self) -> None:
        self._shapes: dict[int, Shape] = {}
        self._kinds: Counter[tuple[int, str]] = Counter()
        #: of each kind, how many pages have a name, and how many a size
        self._names: dict[tuple[int, str], Counter[str]] = {}
        self._bits: dict[tuple[int, str], Counter[int]] = {}

    def __len__(self) -> int:
        return len(self._shapes)

    def add(self, number: int, shape: Shape) -> str | None:
        """Take the page of an exit in place of its last one; how it differs from most others.

        None if it does not, or if there is no majority.
        """
        self.forget(number)
        different = self._different(shape)
        self._shapes[number] = shape
        self._count(shape, 1)
        return different

    def forget(self, number: int) -> None:
        """Forget the page of an exit."""
        shape = self._shapes.pop(number, None)
        if shape is not None:
            self._count(shape, -1)

    def _different(self, shape: Shape) -> str | None:
        total = len(self._shapes)
        if total < FEW:
            return None
        (usual, count) = self._kinds.most_common(1)[0]
        if count <= MOST * total:
            return None
        if usual != (shape.status, shape.kind):
            told = f"status {shape.status}, {shape.kind}"
            return f"{told}, where {count} of {total} get status {usual[0]}, {usual[1]}"
        names = {name for name, times in self._names[usual].items() if times > MOST * count}
        if 2 * len(names & shape.names) < len(names):
            missing = ", ".join(sorted(names - shape.names)[:3])
            return f"JSON without names that most have ({missing}...)"
        bits = _median(self._bits[usual], count)
        if abs(bits - shape.bits) > _BITS:
            return f"{shape.kind} of another size than most get"
        return None

    def _count(self, shape: Shape, by: int) -> None:
        kind = (shape.status, shape.kind)
        self._kinds[kind] += by
        names = self._names.setdefault(kind, Counter())
        for name in shape.names:
            names[name] += by
            if not names[name]:
                del names[name]
        self._bits.setdefault(kind, Counter())[shape.bits] += by
        if not self._kinds[kind]:
            del self._kinds[kind], self._names[kind], self._bits[kind]


def check(page: Page, expect: ExpectSettings) -> None:
    """Raise FetchFailed, which quotes nothing of the page, unless it is as expected."""
    page.check_status(expect.status)
    if expect.pattern is None and expect.json is None:
        return
    text = page.body[:_LOOKED_AT].decode("utf-8", "replace")
    if expect.pattern is not None and not re.search(expect.pattern, text):
        raise FetchFailed("the page does not match the pattern")
    if expect.json is not None:
        found: object = _json(text)
        for name in expect.json.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            raise FetchFailed(f"the page is no JSON with {expect.json}")


def _json(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def _median(sizes: Counter[int], count: int) -> int:
    passed = 0
    for bits in sorted(sizes):
        passed += sizes[bits]
        if 2 * passed >= count:
            return bits
    return 0
