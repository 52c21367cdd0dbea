"""What a config that has mistakes says nevertheless.

For commands that ask a service which runs while its config is edited, and that need a few keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gsocks.config.convert import convert_tree, parse, read_file
from gsocks.config.schema import Config
from gsocks.config.yaml import read_yaml
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.yaml_tree import Tree

#: a section at the top of a file in block style
_SECTION = r"^{}:.*\n(?:[ \t#-].*\n|[ \t]*\n)*"


class Partly(NamedTuple):
    """A config, and the first mistake of its file; with one, only some sections were read."""

    config: Config
    mistake: ConfigError | None


def load_partly(path: Path, needed: Mapping[str, Sequence[str]]) -> Partly:
    """The config in the file ``path``, of which ``needed`` are the sections, by their keys.

    Where the file has mistakes, each of them that has none itself is read alone, and no other.  No
    keys: all of the section.  Raises ConfigError where none of them can be read.
    """
    text = read_file(path)
    try:
        return Partly(parse(text, path.absolute().parent, name=str(path)), None)
    except ConfigError as error:
        mistake = error
    read = {name: _alone(path, text, name, keys) for name, keys in needed.items()}
    own = next((each for each in read.values() if isinstance(each, ConfigError)), None)
    found = {
        name: each
        for name, each in read.items()
        if each is not None and not isinstance(each, ConfigError)
    }
    if not found:
        raise own or mistake
    return Partly(Config(**found), mistake)


def _alone(path: Path, text: str, name: str, keys: Sequence[str]) -> Any:
    """The section that the file has, its mistake, or None."""
    try:
        section = _section(text, name)
        if section is None:
            return None
        if isinstance(section, dict) and keys:
            section = {key: value for key, value in section.items() if key in keys}
        return getattr(convert_tree({name: section}, path.absolute().parent), name)
    except Mistake as error:
        return ConfigError(f"{path}: {error}")


def _section(text: str, name: str) -> Tree | None:
    """The section; None if there is none, or none that can be told apart.  Raises Mistake."""
    try:
        return read_yaml(text).get(name)
    except Mistake:
        pass  # of the file; the section may be whole
    written = re.findall(_SECTION.format(name), f"{text}\n", re.MULTILINE)
    return read_yaml(written[0]).get(name) if len(written) == 1 else None
