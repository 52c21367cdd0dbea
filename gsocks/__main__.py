"""The program ``gsocks``, and ``python -m gsocks``."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def start() -> int:
    """Import and run the command line; Ctrl-C ends it quietly from here on."""
    # A KeyboardInterrupt would be lost where an import runs callbacks, and print a traceback
    # elsewhere.  A shell has set SIGINT to be ignored in what it runs in the background.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _end)
    # before what takes most of a second
    from gsocks.cli.command_line import hide_secrets

    hide_secrets()
    from gsocks.main import main

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _end(signum: int, _: object) -> NoReturn:
    os._exit(128 + signum)


if __name__ == "__main__":
    sys.exit(start())
