"""``gsocks forward``: static forwards without a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gsocks import config
from gsocks.address import Address
from gsocks.cli.given_exits import WithExits, run_with_exits
from gsocks.config.routes import parse_ports
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.net.listen import is_local
from gsocks.yaml_tree import Tree

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
    settings: Sequence[str] = (),
    print_config: bool = False,
) -> int:
    """Listen at each of ``forwards``, such as ``5432:db.internal:5432``, until a signal.

    The exits are as of :func:`gsocks.cli.given_exits.run_with_exits`; ``settings`` and
    ``print_config``, too.  Raises ConfigError.
    """
    routes = [_route(each) for each in forwards]
    for route in routes:
        here = route.route.listen
        if isinstance(here, Address) and not (allow_remote or is_local(here)):
            raise ConfigError(
                f"{here} would let all machines that can reach it through to {route.route.to}"
                " (--allow-remote if that is intended)"
            )
    told: list[Tree] = [
        {"listen": each.listen, "to": each.to, **({"udp": "true"} if udp else {})}
        for each in routes
    ]
    options = WithExits(
        command="forward",
        section="forwards",
        keys={"routes": told, "allow_remote": "true"},  # which may be so, was asked above
        exits=exits,
        exit_files=exit_files,
        path=path,
        settings=settings,
    )
    return run_with_exits(options, print_config=print_config)


class _Given(NamedTuple):
    """A route, and its ends as a config has them."""

    route: config.Route
    listen: str
    to: str


def _route(text: str) -> _Given:
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
    return _Given(config.Route(here, there, ports), listen, found["to"])
