"""Commands whose exits stand on the command line: ``gsocks forward`` and ``gsocks redirect``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from gsocks import config
from gsocks.cli.command_line import has_secret
from gsocks.cli.exit_file import VARIABLE, exit_lines
from gsocks.cli.one_line import absolute, as_lists, print_text, put_settings
from gsocks.cli.process import check_descriptor_limit, log_to_stderr
from gsocks.cli.warn import warn_of_secrets
from gsocks.config.yaml import read_yaml, write_yaml
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.messages import Mistake
from gsocks.service.activation import Inherited
from gsocks.service.service import Service
from gsocks.yaml_tree import Tree

# what of the exits of local a section by them has in common with it
_OF_EXITS = (
    "exits",
    "exit_sources",
    "rotate",
    "tries",
    "hedge",
    "timeouts",
    "pool",
    "health",
    "checks",
    "per_host",
)

#: options of an exit that name a file; ``key`` does but of a gsocks exit
_FILES = frozenset({"key_file", "ca", "cert", "cert_key", "key"})


@dataclass(frozen=True, kw_only=True)
class WithExits:
    """The options of one command."""

    #: its name, and the section that it is
    command: str
    section: str
    #: the keys of the section that are no options: where it listens
    keys: dict[str, Tree]
    exits: Sequence[str] = ()
    exit_files: Sequence[Path] = ()
    #: of the config whose ``local`` has the exits, if there are no others
    path: Path | None = None
    #: ``path=value``, from the top or from the section
    settings: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What the log calls the config."""
        return f"gsocks {self.command}" if self.path is None else str(self.path)


def run_with_exits(options: WithExits, *, print_config: bool = False) -> int:
    """Run what ``options`` mean until a signal, or print it as YAML.

    Its exits are those given, that of the environment, or those of ``local`` in the config.  Raises
    ConfigError.
    """
    if print_config:
        text = _text(options)
        config.parse(text, Path.cwd(), name=f"gsocks {options.command}")
        print_text(text)
        return 0
    settings, inherited = _loaded(options), Inherited.take()
    log_to_stderr(settings.log)
    check_descriptor_limit(settings)
    if any(map(_shows_secret, options.exits)) or has_secret(options.settings):
        warn_of_secrets(f"--exit-file FILE, --exit @FILE and {VARIABLE} hide it from the start")
    load = partial(_loaded, options)
    return Service(Path(options.name), settings, inherited=inherited, load=load).run()


def _loaded(options: WithExits) -> config.Config:
    """What is to run; read again at a reload.  Raises ConfigError."""
    # a file has been read by itself, so that what is wrong now is so by the command line
    return config.parse(_text(options), Path.cwd(), name=f"gsocks {options.command}")


def _text(options: WithExits) -> str:
    """What is to run as YAML, whose files are absolute.  Raises ConfigError."""
    try:
        return write_yaml(_tree(options))
    except Mistake as mistake:
        raise ConfigError(f"gsocks {options.command}: {mistake}") from None


def _tree(options: WithExits) -> dict[str, Tree]:
    """The same as a tree.  Raises Mistake and ConfigError."""
    section = dict(options.keys)
    tree: dict[str, Tree] = {options.section: section}
    put_settings(tree, options.section, options.settings)
    exits = _given(options)
    if exits and "exits" in section:
        raise Mistake("--exit and exits are the same key (leave one out)")
    if exits:
        section["exits"] = [*exits]
    has_exits = "exits" in section or "exit_sources" in section
    if options.path is not None:
        _take_from(options.path, tree, options.section, with_exits=not has_exits)
    elif not has_exits:
        if VARIABLE not in os.environ:
            raise ConfigError(
                f"no exit (expected --exit URL, --exit-file FILE, -c FILE or {VARIABLE};"
                " --exit direct goes out from here)"
            )
        section["exits"] = [_parsed(os.environ[VARIABLE], VARIABLE)]
    tree[options.section] = as_lists(section, options.section)
    return {name: absolute(value) for name, value in tree.items()}


def _take_from(path: Path, tree: dict[str, Tree], name: str, *, with_exits: bool) -> None:
    """Take from the config ``path`` what ``tree`` has not; its exits are those of ``local``.

    Raises ConfigError.
    """
    found, written = config.load(path), read_yaml(config.read_file(path))
    base = path.absolute().parent
    for key in ("log", "dns"):
        if key in written and key not in tree:
            tree[key] = absolute(written[key], base)
    local, section = written.get("local"), tree[name]
    if not with_exits or not isinstance(section, dict):
        return
    if found.local is None or not isinstance(local, dict):
        raise ConfigError(f"{path}: has no local, whose exits could be used")
    # whose destinations clients choose, but those of forwards are given
    taken = (*_OF_EXITS, "rules") if name == "redirect" else _OF_EXITS
    for key in taken:
        if key in local and key not in section:
            section[key] = absolute(local[key], base)
    exits = section.get("exits")
    if isinstance(exits, list):
        section["exits"] = [_anchored(each, base) for each in exits]


def _given(options: WithExits) -> list[str]:
    """The exits of the command line, of which ``@FILE`` is a file of them.  Raises ConfigError."""
    found: list[str] = []
    for text in options.exits:
        if text.startswith("@"):
            found += _in_file(Path(text[1:]))
        else:
            found.append(_parsed(text, "--exit"))
    for file in options.exit_files:
        found += _in_file(file)
    return [*dict.fromkeys(found)]


def _in_file(path: Path) -> list[str]:
    """The exits in a file, one a line; a ``#`` at the beginning of a line makes it a comment."""
    return [
        _parsed(line, f"{path}: line {number}", path.parent) for number, line in exit_lines(path)
    ]


def _parsed(text: str, place: str, base: Path = Path()) -> str:
    """``text`` with absolute paths, if it is an exit.  Raises ConfigError."""
    try:
        ExitSpec.parse(text, base)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return _url(text, base.absolute())


def _anchored(tree: Tree, base: Path) -> Tree:
    """An exit of a config, with absolute paths in its URL and in those of its chain."""
    if isinstance(tree, str):
        return _url(tree, base)
    if not isinstance(tree, dict):
        return tree
    return {
        key: _anchored(each, base) if key in ("url", "via") else each for key, each in tree.items()
    }


def _url(text: str, base: Path) -> str:
    """The URL of an exit, with absolute paths."""
    address, mark, query = text.partition("?")
    options = [each.partition("=") for each in query.split("&")]
    files = _FILES - {"key"} if address.lower().startswith("gsocks") else _FILES
    made = (f"{key}{equals}{_option(key, value, base, files)}" for key, equals, value in options)
    return f"{address}{mark}{'&'.join(made)}"


def _option(key: str, value: str, base: Path, files: frozenset[str]) -> str:
    if key in files and value:
        return quote(os.path.abspath(base / os.path.expanduser(unquote(value))))
    return quote(_url(unquote(value), base), safe="") if key == "via" else value


def _shows_secret(text: str) -> bool:
    """Whether an exit of the command line has a key or a password in its URL."""
    if text.startswith("@"):
        return False
    spec: ExitSpec | None = ExitSpec.parse(text)
    while spec is not None:
        if spec.key is not None or spec.password is not None or spec.label.count("***"):
            return True
        spec = spec.via
    return False
