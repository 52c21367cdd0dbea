"""``gsocks redirect``: a transparent proxy without a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gsocks import config
from gsocks.address import Address
from gsocks.cli.given_exits import run_with_exits
from gsocks.errors import ConfigError
from gsocks.messages import Mistake
from gsocks.net.endpoint import UnixPath, parse_endpoint
from gsocks.net.listen import is_local


def redirect(
    listen: Sequence[str],
    *,
    exits: Sequence[str],
    exit_files: Sequence[Path],
    path: Path | None,
    allow_remote: bool,
) -> int:
    """Listen at each of ``listen``, such as ``1082`` or ``[::1]:1082``, until a signal.

    The exits are as of :func:`gsocks.cli.given_exits.run_with_exits`.  Raises ConfigError.
    """
    addresses = config.SelectedAddresses(_address(each) for each in dict.fromkeys(listen))
    for each in addresses:
        at = each.address
        if isinstance(at, Address) and not (allow_remote or is_local(at)):
            raise ConfigError(
                f"{at} would carry what all machines that can reach it have redirected there"
                " (--allow-remote if that is intended)"
            )
    section = config.Redirect(listen=addresses, allow_remote=True)  # was asked above
    return run_with_exits("redirect", section, exits, exit_files, path)


def _address(text: str) -> config.ListenAddress:
    written = f"127.0.0.1:{text}" if re.fullmatch("[0-9]{1,5}", text) else text
    try:
        endpoint = parse_endpoint(written)
    except Mistake as mistake:
        raise ConfigError(mistake.message) from None
    if isinstance(endpoint, UnixPath):
        raise ConfigError(f"{endpoint}: connections are not redirected to a Unix socket")
    return config.ListenAddress(endpoint)
