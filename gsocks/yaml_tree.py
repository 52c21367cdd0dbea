"""YAML text as a tree of mappings, lists and text, from PyYAML's events, within bounds.

Each scalar stays text: what YAML 1.1 makes of an unquoted ``NO`` or ``0123`` never matters here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import yaml
from yaml.scanner import ScannerError

from gsocks.messages import Mistake, shown

#: values in a text, those behind an alias counted at each use of it: ten lines of aliases to
#: aliases are a billion values
MAX_VALUES = 1_000_000

#: mappings and lists inside one another; the deepest place in a configuration is half of that
MAX_DEPTH = 32

#: what YAML holds once every scalar is text
Tree: TypeAlias = "str | list[Tree] | dict[str, Tree]"

#: what PyYAML raises for a text that is no YAML, with its marks
SyntaxFault = yaml.MarkedYAMLError

#: a character outside of YAML 1.2 section 5.1, c-printable
NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# what PyYAML's own scanner makes of an escape such as \ud800
_SURROGATE = re.compile("[\ud800-\udfff]")


class _PythonLoader(yaml.BaseLoader):
    """For a PyYAML that was built without libyaml: refuses the escapes that libyaml refuses."""

    def scan_flow_scalar(self, style: str) -> Any:
        start = self.get_mark()
        with suppress(ValueError):  # of an escape above U+10FFFF
            token = super().scan_flow_scalar(style)
            if not _SURROGATE.search(token.value):
                return token
        raise ScannerError(None, None, "an escape that is no character", start)


_Loader: Any = getattr(yaml, "CBaseLoader", _PythonLoader)


def read_tree(text: str) -> Tree:
    """The one document in ``text``, in which no character is NOT_YAML; an empty text if none.

    Raises Mistake, with line and column, for what is beyond the bounds or not a tree of text,
    and SyntaxFault.
    """
    return _Reader(text).document()


class _Reader:
    """Text, lists and mappings from YAML's events.

    Not by ``yaml.load``: libyaml's composer overflows the stack, and takes the process along,
    where brackets are nested 100,000 deep; and it knows neither bounds nor duplicate keys.
    """

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        #: what an anchor stands for, and how many values that are
        self._anchors: dict[str, tuple[Tree, int]] = {}
        self._values = 0

    def document(self) -> Tree:
        """The document; an empty text if there is none."""
        tree: Tree = ""
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise at_mark("a second document (---) in one file", event.start_mark)
                tree = self._value(next(self._events), MAX_DEPTH)
        return tree

    def _value(self, event: Any, depth: int) -> Tree:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise at_mark("a word that begins with * needs quotes", event.start_mark)
            tree, size = self._anchors[event.anchor]
            self._count(size, event)
            return tree
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise at_mark("a word that begins with ! needs quotes", event.start_mark)
        before = self._values
        self._count(1, event)
        if isinstance(event, yaml.ScalarEvent):
            tree = event.value
        elif not depth:
            raise at_mark(f"nested more than {MAX_DEPTH} deep", event.start_mark)
        elif isinstance(event, yaml.SequenceStartEvent):
            tree = self._list(depth - 1)
        else:
            tree = self._mapping(depth - 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = tree, self._values - before
        return tree

    def _list(self, depth: int) -> list[Tree]:
        found: list[Tree] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, depth))
        return found

    def _mapping(self, depth: int) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth)
            if not isinstance(key, str):
                raise at_mark("a key that is not a word", event.start_mark)
            if key in found:
                raise at_mark(f"duplicate key {shown(key)}", event.start_mark)
            found[key] = self._value(next(self._events), depth)
        return found

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise at_mark(f"more than {MAX_VALUES:,} values", event.start_mark)


def at_mark(message: str, mark: Any) -> Mistake:
    """A Mistake that begins with the place of ``mark``, one of PyYAML's."""
    return Mistake(f"line {mark.line + 1}, column {mark.column + 1}: {message}")
