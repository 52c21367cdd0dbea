"""YAML text as a tree of mappings, lists and text, from PyYAML's events.

YAML gives the shape only.  Each scalar stays text until its place in the configuration says what it
means, so that ``country: NO`` is Norway, ``password: 0123`` keeps its zero and ``12:30`` is no
number: what YAML 1.1 makes of an unquoted word never matters here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from yaml.scanner import ScannerError

from gsocks.messages import Mistake, shown
from gsocks.yaml_tree import NOT_YAML, SyntaxFault, Tree, at_mark, read_tree

_QUOTED = re.compile(r"""'[^']*(?:''[^']*)*'|"[^"\\]*(?:\\.[^"\\]*)*\"""", re.DOTALL)

_VERSION = re.compile(r"%YAML[ \t]+1\.[12][ \t]*(?:[ \t]#.*)?")

_QUOTES = ("'", '"')

# what no plain word begins with: YAML 1.2 section 5.3, but for the indicators of flow collections
_INDICATORS = tuple("&*!|>@`%")

_EMPTY = "empty (expected local, server, forwards, redirect or dns_listener)"

# a word that needs no quotes to be read as the same text, by us and by YAML 1.1 and 1.2
_PLAIN = re.compile(r"(?![0-9.]*$)[A-Za-z0-9_./][\w./%+-]*(?::[\w./%+-]+)*", re.ASCII)

# what YAML 1.1 takes for something else than text
_SPECIAL = re.compile(r"(?i)y|n|yes|no|true|false|on|off|null|[-+.0-9_:]+e?[-+.0-9_:]*|0[xob]\w*")

# line breaks of YAML 1.1 that JSON does not escape
_BREAKS = str.maketrans({"\x85": "\\N", "\u2028": "\\L", "\u2029": "\\P"})

_COLON = "a colon is not expected here (a text with one needs quotes)"


def read_yaml(text: str) -> dict[str, Tree]:
    """The one document in ``text``, a mapping.  Raises Mistake."""
    bad = NOT_YAML.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise Mistake(f"line {line}: a character (U+{ord(bad[0]):04X}) that YAML doesn't allow")
    _check_directives(text)
    try:
        tree = read_tree(text)
    except SyntaxFault as error:
        # How far a scanner looks ahead differs: an earlier mistake is reported first.
        mark: Any = error.problem_mark
        with suppress(SyntaxFault):
            read_tree(text[: mark.index])
        raise _syntax_mistake(text, error) from None
    if not tree:
        raise Mistake(_EMPTY)
    if not isinstance(tree, dict):
        raise Mistake(
            f"{shown(tree)} is not a mapping"
            " (expected local, server, forwards, redirect or dns_listener)"
        )
    return tree


def write_yaml(tree: dict[str, Tree]) -> str:
    """A document that :func:`read_yaml` reads as ``tree``, in block style.

    Text that another reader could take for something else is quoted.  Raises Mistake for text that
    is not Unicode.
    """
    return "".join(f"{line}\n" for line in _mapping_lines(tree, ""))


def _mapping_lines(tree: dict[str, Tree], indent: str) -> Iterator[str]:
    for name, value in tree.items():
        if not value or isinstance(value, str):
            yield f"{indent}{_scalar(name)}: {_scalar(value)}"
            continue
        yield f"{indent}{_scalar(name)}:"
        yield from _lines(value, f"{indent}  ")


def _lines(tree: Tree, indent: str) -> Iterator[str]:
    if isinstance(tree, dict):
        yield from _mapping_lines(tree, indent)
        return
    for item in tree:
        if not item or isinstance(item, str):
            yield f"{indent}- {_scalar(item)}"
            continue
        # the first line of what is nested stands behind the dash
        first, *rest = _lines(item, f"{indent}  ")
        yield f"{indent}- {first[len(indent) + 2 :]}"
        yield from rest


def _scalar(value: Tree) -> str:
    """Text, or an empty list or mapping."""
    if not isinstance(value, str):
        return "{}" if isinstance(value, dict) else "[]"
    if _PLAIN.fullmatch(value) and not _SPECIAL.fullmatch(value):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Mistake("an argument that is not UTF-8") from None
    # JSON's escapes are YAML's too; those of C1 and the like are not JSON's to make
    quoted = json.dumps(value, ensure_ascii=False)
    return NOT_YAML.sub(_escape, quoted.translate(_BREAKS))


def _escape(found: re.Match[str]) -> str:
    return f"\\U{ord(found[0]):08x}"


def _check_directives(text: str) -> None:
    """Only ``%YAML 1.1`` or ``%YAML 1.2`` may stand above the document.  Raises Mistake.

    Loaders pass over other directives or refuse them.
    """
    before, versions = True, 0
    for number, line in enumerate(text.splitlines(), 1):
        if line == "..." or line.startswith(("... ", "...\t")):
            before, versions = True, 1
        elif before and line.startswith("%"):
            versions += 1
            if versions > 1 or not _VERSION.fullmatch(line):
                raise Mistake(f"line {number}, column 1: a word that begins with % needs quotes")
        elif line.strip(" \t") and not line.lstrip(" \t").startswith("#"):
            before = False


def _syntax_mistake(text: str, error: SyntaxFault) -> Mistake:
    """The mistake at which a loader gave up, in words that are the same for each loader.

    The words of libyaml and of PyYAML differ from each other and from version to version, and
    some repeat what stands in the file, which may be a password in want of quotes.  So only the
    two marks are taken: where a construct begins and where it goes wrong.
    """
    wrong: Any = error.problem_mark
    start: Any = error.context_mark or wrong
    opening = text[start.index : start.index + 1] if start.index < wrong.index else ""
    found = text[wrong.index : wrong.index + 1]
    if isinstance(error, ScannerError):
        return _scanner_mistake(text, start, opening, wrong, found)
    closing = {"[": "]", "{": "}"}.get(opening)
    if not text[wrong.index :].strip():
        if closing:
            return at_mark(f"{opening} is never closed", start)
        if error.context_mark is None:
            return Mistake(_EMPTY)
        lines = text.rstrip().splitlines()  # where the end is, loaders don't agree
        place = f"line {len(lines)}, column {len(lines[-1]) + 1}"
        return Mistake(f"{place}: [ or {{ is never closed")
    if found == "!":
        return at_mark("a word that begins with ! needs quotes", wrong)
    if closing:
        return at_mark(f"expected , or {closing}", wrong)
    if found == ":":
        return at_mark(_COLON, wrong)
    if found in "]},":
        return at_mark(f"{found} is not expected here", wrong)
    if error.context_mark is None:
        return at_mark("text outside of the document", wrong)
    if not text[wrong.index - wrong.column : wrong.index].strip():
        return at_mark("indented unlike the lines above it", wrong)
    return at_mark("text behind the end of a value (the whole of it needs quotes)", wrong)


def _scanner_mistake(text: str, start: Any, opening: str, wrong: Any, found: str) -> Mistake:
    if opening in _QUOTES:
        quoted = _QUOTED.match(text, start.index)
        if quoted is None:
            return at_mark(f"a quotation mark ({opening}) that is never closed", start)
        if quoted.end() > wrong.index and text.startswith(("---", "..."), wrong.index):
            return at_mark(f"{found * 3} begins a line of a quoted text", wrong)
        if quoted.end() > wrong.index:
            found = opening
    if found in _QUOTES:
        return at_mark("a quoted text with an escape (\\) that YAML doesn't know", start)
    if found == "\t" and opening in ("", "|", ">"):
        return at_mark("a tab, where YAML allows only spaces", wrong)
    if opening in _INDICATORS:
        return at_mark(f"a word that begins with {opening} needs quotes", start)
    if opening:
        return at_mark("a key without a colon and a space behind it", start)
    if found in _INDICATORS:
        return at_mark(f"a word that begins with {found} needs quotes", wrong)
    if found == ":":
        return at_mark(_COLON, wrong)
    return at_mark(f"{found} is not expected here", wrong)
