"""Commands whose exits stand on the command line: ``gsocks forward`` and ``gsocks redirect``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from gsocks import config
from gsocks.cli.exit_file import VARIABLE, exit_lines
from gsocks.cli.process import check_descriptor_limit, log_to_stderr
from gsocks.cli.warn import warn_of_secrets
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.service.activation import Inherited
from gsocks.service.service import Service

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


def run_with_exits(
    name: str,
    section: config.Forwards | config.Redirect,
    exits: Sequence[str],
    exit_files: Sequence[Path],
    path: Path | None,
) -> int:
    """Run ``section``, which the command ``name`` describes, until a signal.

    Its exits are ``exits``, those of ``exit_files``, that of the environment, or those of ``local``
    in the config ``path``.  Raises ConfigError.
    """
    log_to_stderr((config.Config() if path is None else config.load(path)).log)
    make = partial(_settings, section, tuple(exits), tuple(exit_files), path)
    settings, inherited = make(), Inherited.take()
    check_descriptor_limit(settings)
    if any(_shows_secret(each) for each in exits):
        warn_of_secrets(f"--exit-file FILE, --exit @FILE and {VARIABLE} hide it from the start")
    label = Path(f"gsocks {name}") if path is None else path
    return Service(label, settings, inherited=inherited, load=make).run()


def _settings(
    section: config.Forwards | config.Redirect,
    exits: tuple[str, ...],
    exit_files: tuple[Path, ...],
    path: Path | None,
) -> config.Config:
    """What is to run; read again at a reload.  Raises ConfigError."""
    found = config.Config() if path is None else config.load(path)
    specs = [*_written(exits), *(spec for file in exit_files for spec in _in_file(file))]
    if not specs and path is None:
        if VARIABLE not in os.environ:
            raise ConfigError(
                f"no exit (expected --exit URL, --exit-file FILE, -c FILE or {VARIABLE};"
                " --exit direct goes out from here)"
            )
        specs = [_parse(os.environ[VARIABLE], VARIABLE)]
    section = replace(section, exits=config.Exits(dict.fromkeys(specs)))
    if not specs:
        if found.local is None:
            raise ConfigError(f"{path}: has no local, whose exits could be used")
        taken = {key: getattr(found.local, key) for key in _OF_EXITS}
        if isinstance(section, config.Redirect):  # whose destinations clients choose
            taken["rules"] = found.local.rules
        section = replace(section, **taken)
    if isinstance(section, config.Redirect):
        return config.Config(log=found.log, dns=found.dns, redirect=section)
    return config.Config(log=found.log, dns=found.dns, forwards=section)


def _written(exits: Sequence[str]) -> list[ExitSpec]:
    """The exits of the command line, of which ``@FILE`` is a file of them."""
    found: list[ExitSpec] = []
    for text in exits:
        if text.startswith("@"):
            found += _in_file(Path(text[1:]))
        else:
            found.append(_parse(text, "--exit"))
    return found


def _in_file(path: Path) -> list[ExitSpec]:
    """The exits in a file, one a line; a ``#`` at the beginning of a line makes it a comment."""
    return [
        _parse(line, f"{path}: line {number}", path.parent) for number, line in exit_lines(path)
    ]


def _parse(text: str, place: str, base: Path = Path()) -> ExitSpec:
    try:
        return ExitSpec.parse(text, base)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


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
