"""All mistakes of a configuration file at once, for ``gsocks check``.

Reading stops at the first mistake.  Here its value is then taken out of the tree, or replaced by a
good one where it can't be missing, and the rest is read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TypeAlias

from gsocks.config.convert import as_written, completed, convert_tree, mistakes_together
from gsocks.config.schema import Config
from gsocks.config.yaml import read_yaml
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.yaml_tree import Tree

#: mistakes that are told
MOST = 100

#: what stands in for a value that is wrong and can't be missing
_GOOD: dict[str, Tree] = {
    ".local.listen": "127.0.0.1:0",
    ".server.listen": "127.0.0.1:0",
    ".server.keys": {"default": "A" * 43},
    ".forwards.routes": [{"listen": "127.0.0.1:0", "to": "localhost:1"}],
    ".forwards": [{"listen": "127.0.0.1:0", "to": "localhost:1"}],
    ".redirect.listen": "127.0.0.1:0",
    ".dns_listener.listen": "127.0.0.1:0",
    ".dns_listener.server": "127.0.0.1:53",
    ".state.file": "gsocks.db",
}

#: what stands in for a hash, so that there still is a user
_HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10 + "dGE"

#: the items that were taken out of each list, by their places in the file
_Removed: TypeAlias = dict[str, list[int]]

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]")


def mistakes(text: str, base: Path, name: str) -> list[ConfigError]:
    """Those of the configuration in ``text``, in their order.

    The arguments are those of :func:`gsocks.config.convert.parse`.
    """
    try:
        tree = read_yaml(text)
    except Mistake as mistake:  # behind which nothing can be read
        return [ConfigError(f"{name}: {mistake}")]
    return [ConfigError(f"{name}: {as_written(each, tree)}") for each in _all(tree, base)]


def _all(tree: dict[str, Tree], base: Path) -> Iterator[Mistake]:
    rest = deepcopy(tree)
    told: set[str] = set()
    removed: _Removed = {}
    for _ in range(MOST):
        found = _convert(rest, base)
        if isinstance(found, Config):
            for mistake in mistakes_together(found):
                # what was taken out may be what another key needs
                if _section(mistake.at) not in map(_section, told):
                    yield mistake
            return
        mistake = as_written(found, rest)
        place = _original(mistake.at, removed)
        if place not in told and not _was_taken_out(place, told):
            yield Mistake(mistake.message, place)
        told.add(place)
        if not _mend(rest, mistake.at, removed):
            return


def _convert(tree: dict[str, Tree], base: Path) -> Config | Mistake:
    try:
        return completed(convert_tree(tree, base))
    except Mistake as mistake:
        return mistake


def _was_taken_out(place: str, told: set[str]) -> bool:
    """Whether a value is only missing because it was taken out."""
    return any(at.startswith((f"{place}.", f"{place}[")) for at in told)


def _original(place: str, removed: _Removed) -> str:
    """``place`` as it is in the file, where items have not been taken out of lists."""
    found, current = "", ""
    for step in _STEP.finditer(place):
        text = step[0]
        if step[2] is not None:
            index = int(step[2])
            for other in removed.get(current, ()):
                index += other <= index
            text = f"[{index}]"
        current += step[0]
        found += text
    return found


def _section(place: str) -> str:
    return place.split(".")[1] if "." in place else ""


def _mend(tree: dict[str, Tree], place: str, removed: _Removed) -> bool:
    """Take out the value at ``place``, or what it is in; False if there is nothing to take out."""
    steps = [name or quoted or number for name, number, quoted in _STEP.findall(place)]
    if place in _GOOD and _put(tree, steps, deepcopy(_GOOD[place])):
        return True
    if len(steps) == 3 and steps[:2] == ["local", "users"] and _put(tree, steps, _HASH):
        return True
    while steps:
        if _take_out(tree, steps, removed):
            return True
        steps.pop()
    return False


def _inner(tree: Tree, steps: list[str]) -> Tree | None:
    """The value that holds the last step; None if the path leads nowhere."""
    for step in steps[:-1]:
        if isinstance(tree, dict) and step in tree:
            tree = tree[step]
        elif isinstance(tree, list) and step.isdigit() and int(step) < len(tree):
            tree = tree[int(step)]
        else:
            return None
    return tree


def _put(tree: Tree, steps: list[str], value: Tree) -> bool:
    """Put ``value`` at the place; False if it is there already, or there is no such place."""
    holder = _inner(tree, steps)
    if not isinstance(holder, dict) or holder.get(steps[-1]) == value:
        return False
    holder[steps[-1]] = value
    return True


def _take_out(tree: Tree, steps: list[str], removed: _Removed) -> bool:
    holder = _inner(tree, steps)
    last = steps[-1]
    if isinstance(holder, dict) and last in holder:
        del holder[last]
        return True
    if not isinstance(holder, list) or not last.isdigit() or int(last) >= len(holder):
        return False
    del holder[int(last)]
    place = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps[:-1])
    gone = removed.setdefault(place, [])
    index = int(last)
    for other in gone:
        index += other <= index
    gone.append(index)
    gone.sort()
    if not holder and len(steps) > 1:  # an empty list would be another mistake
        good = _GOOD.get(place)
        if good is None or not _put(tree, steps[:-1], deepcopy(good)):
            return _take_out(tree, steps[:-1], removed)
    return True
