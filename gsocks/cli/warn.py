"""Warnings of commands: of secrets on a command line, and of a config that is read in part."""

from __future__ import annotations

import logging
import sys

from gsocks.cli.command_line import hide_secrets
from gsocks.errors import ConfigError

log = logging.getLogger("gsocks")


def warn_of_secrets(instead: str) -> None:
    """Hide the secrets of this process' command line, and say what that can't mend.

    ``instead``: what hides them from the start.
    """
    if hide_secrets():
        log.warning(
            "the command line has a key or a password: it is hidden from ps now, but was visible"
            " until then, and is in the shell's history (%s)",
            instead,
        )
    else:
        log.warning(
            "the command line has a key or a password, which all users of this machine can see"
            " (%s)",
            instead,
        )


def warn_of_mistake(mistake: ConfigError | None, needed: str) -> None:
    """Say, if there is a ``mistake``, that only what is ``needed`` of the config was read."""
    if mistake is not None:
        print(f"gsocks: {mistake} (only {needed} was read)", file=sys.stderr)
