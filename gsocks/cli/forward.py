"""``gsocks forward``: static forwards without a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gsocks import config
from gsocks.address import Address
from gsocks.cli.given_exits import run_with_exits
from gsocks.config.routes import parse_ports
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.net.listen import is_local

# [ADDRESS:]PORTS:HOST:PORTS, or a Unix socket's or a passed one's listening side
_PORTS = r"[0-9]{1,5}(?:-[0-9]{1,5})?"
_HOST = r"\[[^\[\]]+\]|[^\[\]:]*"
_FORWARD = re.compile(
    rf"(?P<listen>(?:unix|systemd):.*|(?:(?:{_HOST}):)?{_PORTS}):(?P<to>(?:{_HOST}):{_PORTS})",
    re.DOTALL,
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
    section = config.Forwards(routes=routes, allow_remote=True)  # which may be so, was asked above
    return run_with_exits("forward", section, exits, exit_files, path)


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
