"""``gsocks forward``: static forwards without a config."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from gsocks import config
from gsocks.address import Address
from gsocks.cli.exit_file import VARIABLE, exit_lines
from gsocks.cli.process import check_descriptor_limit, log_to_stderr
from gsocks.cli.warn import warn_of_secrets
from gsocks.config.routes import parse_ports
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.messages import Mistake
from gsocks.net.listen import is_local
from gsocks.service.activation import Inherited
from gsocks.service.service import Service

log = logging.getLogger("gsocks")

# [ADDRESS:]PORTS:HOST:PORTS, or a Unix socket's or a passed one's listening side
_PORTS = r"[0-9]{1,5}(?:-[0-9]{1,5})?"
_HOST = r"\[[^\[\]]+\]|[^\[\]:]*"
_FORWARD = re.compile(
    rf"(?P<listen>(?:unix|systemd):.*|(?:(?:{_HOST}):)?{_PORTS}):(?P<to>(?:{_HOST}):{_PORTS})",
    re.DOTALL,
)

# what of the exits of local a forward by them has in common with it; not its rules, which are for
# destinations that clients choose
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


def forward(
    forwards: Sequence[str],
    *,
    udp: bool,
    exits: Sequence[str],
    exit_files: Sequence[Path],
    path: Path | None,
    allow_remote: bool,
) -> int:
    """Listen at each of ``forwards``, such as ``5432:db.internal:5432``, until a signal.

    The exits are ``exits``, those of ``exit_files``, that of the environment, or those of ``local``
    in the config ``path``; or else ``direct``.  Raises ConfigError.
    """
    routes = config.Routes(_route(each, udp=udp) for each in forwards)
    for route in routes:
        if isinstance(route.listen, Address) and not (allow_remote or is_local(route.listen)):
            raise ConfigError(
                f"{route.listen} would let all machines that can reach it through to {route.to}"
                " (--allow-remote if that is intended)"
            )
    log_to_stderr((config.Config() if path is None else config.load(path)).log)
    make = partial(_settings, routes, tuple(exits), tuple(exit_files), path)
    settings, inherited = make(), Inherited.take()
    check_descriptor_limit(settings)
    if any(_shows_secret(each) for each in exits):
        warn_of_secrets(f"--exit-file FILE, --exit @FILE and {VARIABLE} hide it from the start")
    name = Path("gsocks forward") if path is None else path
    return Service(name, settings, inherited=inherited, load=make).run()


def _route(text: str, *, udp: bool) -> config.Route:
    found = _FORWARD.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{text!r} is not a forward (expected [ADDRESS:]PORT:HOST:PORT,"
            " e.g. 5432:db.internal:5432)"
        )
    listen = found["listen"]
    if re.fullmatch(_PORTS, listen):
        listen = f"127.0.0.1:{listen}"
    elif listen.startswith((":", "*:")):  # as ssh has it
        listen = f"0.0.0.0:{listen.partition(':')[2]}"
    try:
        here, there, ports = parse_ports(listen, found["to"])
    except Mistake as mistake:
        raise ConfigError(f"{text!r}: {mistake.message}") from None
    return config.Route(here, there, ports, udp)


def _settings(
    routes: config.Routes,
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
    forwards = config.Forwards(
        routes=routes,
        exits=config.Exits(dict.fromkeys(specs)),
        allow_remote=True,  # which of them may be so, was asked before
    )
    if not specs:
        if found.local is None:
            raise ConfigError(f"{path}: has no local, whose exits could be used")
        forwards = replace(forwards, **{name: getattr(found.local, name) for name in _OF_EXITS})
    return config.Config(log=found.log, dns=found.dns, forwards=forwards)


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
