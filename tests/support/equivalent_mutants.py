"""Mutants that no test can find, each with its reason: the same program in other words, or one that
differs by memory or time alone.

They are named by what they change, not by a number, so that an edit elsewhere leaves them alone.
tests/test_mutation.py fails if a line that is to be changed is there no longer, or is there twice.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from tests.support.core_tests import source


class Change(NamedTuple):
    """Lines of a module that a mutant has otherwise."""

    module: str
    #: the function or class in which they stand, such as ``Pool.take``
    within: str
    before: str
    after: str

    @property
    def key(self) -> Change:
        """The same without white space, which the maker of mutants puts anywhere."""
        return self._replace(before=_bare(self.before), after=_bare(self.after))


#: changes, and why no test can find them
EQUIVALENT: list[tuple[Change, str]] = [
    (
        Change(
            "rotation/views",
            "Views.leave",
            "elif len(kind.slots) > 2 * kind.size + 100:",
            "elif len(kind.slots) > 3 * kind.size + 100:",
        ),
        "Memory alone: how many slots of exits that are gone are kept before they are tidied away;"
        " members() passes over those that are left.",
    ),
    (
        Change("rotation/policy", "Weighted", "follows_open = False", "follows_open = True"),
        "Time alone: its orders are told of each connection, and _ByDeadline.moved does nothing.",
    ),
    (
        Change("rotation/policy", "LeastRecent.__init__", "self._turn = 0", "self._turn = 1"),
        "Turns are only compared with each other and with 0, which is before all of them either"
        " way: the first one is 1 or 2.",
    ),
    (
        Change("rotation/policy", "_ByDeadline.__init__", "self._clock = 0", "self._clock = -1"),
        "Every deadline counts from the clock that the order began with, so that all of them are"
        " earlier by one and keep their order.",
    ),
    (
        Change(
            "rotation/budget",
            "Spending.__init__",
            "self._day_ends = self._month_ends = -math.inf",
            "self._day_ends = self._month_ends = math.inf",
        ),
        "No time is in a day that ends at either infinity: it would begin there too. So the first"
        " call of _turn sets both ends before any is read.",
    ),
    (
        Change("rotation/roster", "Roster._look_again", "break", "continue"),
        "Time alone: it looks at the same first entry, which is not due, up to _MAX_DUE times.",
    ),
    (
        Change(
            "rotation/ring",
            "Ring._resize",
            "bits = max(0, (self._count // _POINTS_PER_LIST).bit_length() - 1)",
            "bits = max(0, (self._count // _POINTS_PER_LIST).bit_length() - 2)",
        ),
        "Time alone: half as many lists, each with twice as many points in the same order.",
    ),
]


def reasons() -> dict[Change, str]:
    """Why a mutant is equivalent, by its key."""
    return {change.key: why for change, why in EQUIVALENT}


def scope_at(text: str, line: int) -> str:
    """The function or class to which a line belongs; empty for the module itself."""
    return max((scope for scope in _scopes(text) if line in scope.lines), key=_begin).name


def places(change: Change) -> int:
    """How often the lines that it changes stand in its function or class."""
    text = source(change.module)
    lines = [_bare(line) for line in text.splitlines()]
    wanted = [_bare(line) for line in change.before.splitlines()]
    return sum(
        lines[at : at + len(wanted)] == wanted and scope_at(text, at + 1) == change.within
        for at in range(len(lines))
    )


class _Scope(NamedTuple):
    name: str
    lines: range


def _begin(scope: _Scope) -> int:
    return scope.lines.start


def _scopes(text: str) -> list[_Scope]:
    found = [_Scope("", range(text.count("\n") + 2))]

    def collect(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = f"{name}.{child.name}".lstrip(".")
                end = child.end_lineno or child.lineno
                found.append(_Scope(inner, range(child.lineno, end + 1)))
                collect(child, inner)
            else:
                collect(child, name)

    collect(ast.parse(text), "")
    return found


def _bare(text: str) -> str:
    return "".join(text.split())
