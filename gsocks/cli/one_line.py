"""``gsocks local``, ``server`` and ``rotate``: a config that is written as a command line.

The options become a tree as a config file has it, are read by the same code, and can be printed as
that file (``--print-config``).  Relative files are relative to the working directory.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec

from gsocks import config
from gsocks.access.networks import Networks
from gsocks.cli.command_line import has_secret
from gsocks.cli.exit_file import VARIABLE, exit_lines
from gsocks.cli.process import log_to_stderr
from gsocks.cli.run import serve
from gsocks.cli.warn import warn_of_secrets
from gsocks.config.schema import Exits, ExitSources, HealthServer, Routes, RuleLines, Statuses
from gsocks.config.yaml import read_yaml, write_yaml
from gsocks.errors import ConfigError
from gsocks.messages import Mistake, did_you_mean
from gsocks.yaml_tree import Tree

log = logging.getLogger("gsocks")

#: the environment variable of the key of a server, or of an exit without one
KEY_VARIABLE = "GSOCKS_KEY"

#: where each listens unless it is told
LISTEN = {"local": "127.0.0.1:1080", "server": "0.0.0.0:8388"}

_SECTIONS: dict[str, type[config.Section]] = {
    "local": config.Local,
    "server": config.Server,
    "forwards": config.Forwards,
    "redirect": config.Redirect,
}

#: keys whose text is one item of a list
_LISTS = (Networks, Exits, ExitSources, Routes, RuleLines, Statuses)

#: keys, wherever they stand, that name a file
_FILES = frozenset(
    {
        "file",
        "key_file",
        "users_file",
        "cert",
        "cert_key",
        "ca",
        "cache",
        "header_file",
        "client_ca",
    }
    | {"token_file", "geo_file"}
)

_KEY_FILE = re.compile(r"(?:([\w.@-]+)=)?(.+)", re.DOTALL)

_PATH = re.compile(r"[A-Za-z0-9_@-]+(?:\.[A-Za-z0-9_@-]+)*")


@dataclass(frozen=True, kw_only=True)
class OneLine:
    """The options of one command."""

    #: the section that it is
    section: str
    #: keys of the section and their values
    keys: Sequence[tuple[str, str]] = ()
    #: ``path=value``, from the top or from the section
    settings: Sequence[str] = ()
    exits: Sequence[str] = ()
    exit_files: Sequence[Path] = ()
    key_files: Sequence[str] = ()
    #: files or URLs of lists of exits, and the scheme of their lines
    lists: Sequence[str] = ()
    scheme: str | None = None
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)

    @property
    def name(self) -> str:
        """What error messages call the config."""
        return f"gsocks {'rotate' if self.lists else self.section}"


def run_one_line(options: OneLine, *, print_config: bool = False, live: bool = False) -> int:
    """Serve what ``options`` mean until a signal, or print it as YAML.  Raises ConfigError."""
    text = text_of(options)
    settings = config.parse(text, Path.cwd(), name=options.name)
    if print_config:
        print_text(text)
        return 0
    given = [*options.exits, *options.settings, *(f"{name}={text}" for name, text in options.keys)]
    if has_secret(given):
        log_to_stderr(settings.log)
        warn_of_secrets(
            f"--exit @FILE, --key-file FILE, {VARIABLE} and {KEY_VARIABLE} hide it from the start"
        )
    return serve(Path(options.name), settings, partial(loaded, options), live=live)


def print_text(text: str) -> None:
    """Print a config, and a warning if it has secrets."""
    sys.stdout.write(text)
    if has_secret([text]):
        print("gsocks: a key or a password is in it (keep it with mode 0600)", file=sys.stderr)


def loaded(options: OneLine) -> config.Config:
    """The config that ``options`` mean.  Raises ConfigError."""
    return config.parse(text_of(options), Path.cwd(), name=options.name)


def text_of(options: OneLine) -> str:
    """The config that ``options`` mean, as YAML.  Raises ConfigError."""
    try:
        return write_yaml(tree_of(options))
    except Mistake as mistake:
        raise ConfigError(f"{options.name}: {mistake}") from None


def tree_of(options: OneLine) -> dict[str, Tree]:
    """The same as a tree.  Raises Mistake and ConfigError."""
    section: dict[str, Tree] = {}
    tree: dict[str, Tree] = {options.section: section}
    for name, texts in _gathered(options.keys).items():
        values = [_value(text) for text in texts]
        section[name] = values[0] if len(values) == 1 else [*_flattened(values)]
    put_settings(tree, options.section, options.settings)
    _add_exits(section, options)
    if options.section == "server":
        _add_keys(section, options)
    elif "exits" not in section and "exit_sources" not in section:
        raise Mistake(
            f"no exit (expected --exit URL, --exit-file FILE, a list, or {VARIABLE};"
            " --exit direct goes out from here)"
        )
    # listen first, as a reader expects it
    listen = section.pop("listen", LISTEN[options.section])
    tree[options.section] = {"listen": listen, **as_lists(section, options.section)}
    return {name: absolute(value) for name, value in tree.items()}


def _gathered(keys: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, text in keys:
        found.setdefault(name, []).append(text)
    return found


def _flattened(values: Sequence[Tree]) -> list[Tree]:
    """The items of an option that is repeated."""
    found: list[Tree] = []
    for value in values:
        found.extend(value if isinstance(value, list) else [value])
    return found


def _value(text: str) -> Tree:
    """Text as it stands; ``[...]`` and ``{...}`` as YAML, where they are a whole value of it."""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return text
    return read_yaml(f"value: {text}\n")["value"]


def put_settings(tree: dict[str, Tree], section: str, settings: Sequence[str]) -> None:
    """Put the values of ``--set`` into ``tree``, which has the section.  Raises Mistake."""
    for setting in settings:
        path, mark, text = setting.partition("=")
        if not mark or not _PATH.fullmatch(path):
            raise Mistake(f"--set: {_shown(path)} is not path=value (e.g. timeouts.idle=5m)")
        _set(tree, section, path, _value(text))


def _set(tree: dict[str, Tree], section: str, path: str, value: Tree) -> None:
    """Put ``value`` at ``path``, which begins at the top or in the section.  Raises Mistake.

    Both have a ``health``: the keys of its listener are those at the top.
    """
    names = path.split(".")
    known = _SECTIONS[section].__struct_fields__
    at_top = names[0] in config.Config.__struct_fields__
    if names[0] == "health":
        at_top = names[1:] != [] and names[1] in HealthServer.__struct_fields__
    if not at_top:
        if names[0] not in known:
            guess = did_you_mean(names[0], [*known, *config.Config.__struct_fields__])
            raise Mistake(f"--set: {names[0]} is no key{guess}")
        names.insert(0, section)
    place = tree
    for name in names[:-1]:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise Mistake(f"--set {path}: {name} is given as a whole already")
        place = inner
    if names[-1] in place:
        raise Mistake(f"--set {path}: given twice")
    place[names[-1]] = value


def _shown(path: str) -> str:
    return repr(path) if _PATH.fullmatch(path) else "this"


def as_lists(section: dict[str, Tree], name: str) -> dict[str, Tree]:
    """Text becomes a list of one where only a list may stand."""
    kinds = {each.name: each.type for each in msgspec.structs.fields(_SECTIONS[name])}
    found: dict[str, Tree] = {}
    for key, value in section.items():
        kind = kinds.get(key)
        if isinstance(value, (str, dict)) and ({kind, *get_args(kind)} & set(_LISTS)):
            value = [value]
        if key == "exit_sources" and isinstance(value, list):
            value = [_source(each) if isinstance(each, str) else each for each in value]
        found[key] = value
    return found


def _source(text: str) -> Tree:
    return {"url": text} if re.match(r"https?://", text) else {"file": text}


# --- exits and keys ---------------------------------------------------------------------------


def _add_exits(section: dict[str, Tree], options: OneLine) -> None:
    exits: list[Tree] = []
    for text in options.exits:
        if text.startswith("@"):
            exits += [line for _, line in exit_lines(Path(text[1:]))]
        else:
            exits.append(text)
    for file in options.exit_files:
        exits += [line for _, line in exit_lines(file)]
    for text in options.lists:
        source = _source(text)
        if isinstance(source, dict) and options.scheme is not None:
            source["scheme"] = options.scheme
        section["exit_sources"] = [*_flattened([section.get("exit_sources", [])]), source]
    variable = options.environ.get(VARIABLE)
    if not exits and variable and not {"exits", "exit_sources"} & set(section):
        exits = [variable]
    if exits and "exits" in section:
        raise Mistake("--exit and exits are the same key (leave one out)")
    if exits:
        section["exits"] = [
            _with_key(each, options) if options.section == "local" else each for each in exits
        ]


def _with_key(text: Tree, options: OneLine) -> Tree:
    """An exit to a server whose URL has no key, with the key that is given beside it."""
    if not isinstance(text, str) or not re.match(r"(?i)gsocks://(?!.*(?:@|[?&]key_file=))", text):
        return text
    if len(options.key_files) > 1:
        raise Mistake("--key-file: which of them belongs to which exit? (?key_file=FILE behind it)")
    if options.key_files:
        return {"url": text, "key_file": options.key_files[0]}
    return {"url": text, "key_env": KEY_VARIABLE} if KEY_VARIABLE in options.environ else text


def _add_keys(section: dict[str, Tree], options: OneLine) -> None:
    keys: dict[str, Tree] = {}
    for text in options.key_files:
        found = _KEY_FILE.fullmatch(text)
        name, file = (found[1], found[2]) if found is not None else (None, text)
        if (name or "default") in keys:
            raise Mistake(f"--key-file: two keys are called {name or 'default'} (NAME=FILE)")
        keys[name or "default"] = {"file": file}
    if not keys and "keys" not in section and options.environ.get(KEY_VARIABLE):
        keys["default"] = {"env": KEY_VARIABLE}
    if keys and "keys" in section:
        raise Mistake("--key-file and keys are the same key (leave one out)")
    if keys:
        section["keys"] = keys
    if "keys" not in section:
        raise Mistake(
            f"no key (expected --key-file FILE, which is made if missing, or {KEY_VARIABLE})"
        )


def absolute(tree: Tree, base: Path = Path(), key: str = "") -> Tree:
    """``tree`` with absolute paths, so that it means the same wherever it is kept.

    Relative ones are relative to ``base``.
    """
    if isinstance(tree, dict):
        return {name: absolute(value, base, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [absolute(each, base) for each in tree]
    return os.path.abspath(base / os.path.expanduser(tree)) if key in _FILES and tree else tree
