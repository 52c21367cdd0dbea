"""A file of exits for the command line, where their secrets can't be seen: one URL a line."""

from __future__ import annotations

import logging
from pathlib import Path

from gsocks.errors import ConfigError
from gsocks.files import as_utf8, read_secret
from gsocks.units import format_size

log = logging.getLogger("gsocks")

#: the environment variable of an exit
VARIABLE = "GSOCKS_EXIT"

#: bytes of a file of exits
MAX_FILE = 65536


def exit_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of ``path`` that have an exit, each behind its number.

    A ``#`` at the beginning of a line makes it a comment.  Raises ConfigError, also for none.
    """
    try:
        raw = read_secret(path, MAX_FILE + 1, log)
        if len(raw) > MAX_FILE:
            raise ConfigError(f"{path}: longer than {format_size(MAX_FILE)}")
        text = as_utf8(raw).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    found = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    if not found:
        raise ConfigError(f"{path}: has no exit")
    return found
