"""The warning of secrets on a command line, once they are hidden as far as that is possible."""

from __future__ import annotations

import logging

from gsocks.cli.command_line import hide_secrets

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
