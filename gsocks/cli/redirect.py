"""``gsocks redirect``: a transparent proxy without a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gsocks.address import Address
from gsocks.cli.given_exits import WithExits, run_with_exits
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.net.endpoint import Endpoint, UnixPath, parse_endpoint
from gsocks.net.listen import is_local


def redirect(
    listen: Sequence[str],
    *,
    exits: Sequence[str],
    exit_files: Sequence[Path],
    path: Path | None,
    allow_remote: bool,
    settings: Sequence[str] = (),
    print_config: bool = False,
) -> int:
    """Listen at each of ``listen``, such as ``1082`` or ``[::1]:1082``, until a signal.

    The exits are as of :func:`gsocks.cli.given_exits.run_with_exits`; ``settings`` and
    ``print_config``, too.  Raises ConfigError.
    """
    addresses = [_address(each) for each in dict.fromkeys(listen)]
    for at in addresses:
        if isinstance(at, Address) and not (allow_remote or is_local(at)):
            raise ConfigError(
                f"{at} would carry what all machines that can reach it have redirected there"
                " (--allow-remote if that is intended)"
            )
    options = WithExits(
        command="redirect",
        section="redirect",
        keys={"listen": [str(each) for each in addresses], "allow_remote": "true"},  # asked above
        exits=exits,
        exit_files=exit_files,
        path=path,
        settings=settings,
    )
    return run_with_exits(options, print_config=print_config)


def _address(text: str) -> Endpoint:
    written = f"127.0.0.1:{text}" if re.fullmatch("[0-9]{1,5}", text) else text
    try:
        endpoint = parse_endpoint(written)
    except Mistake as mistake:
        raise ConfigError(mistake.message) from None
    if isinstance(endpoint, UnixPath):
        raise ConfigError(f"{endpoint}: connections are not redirected to a Unix socket")
    return endpoint
