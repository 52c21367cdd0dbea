"""Lists of exits that are kept in files."""

from __future__ import annotations

import logging
from pathlib import Path

from gsocks.errors import ConfigError
from gsocks.exits.url import ExitSpec

log = logging.getLogger("gsocks.sources")


def read_exit_list(path: Path) -> list[ExitSpec]:
    """The exits in ``path``: a URL a line; empty lines and those that begin with # don't count.

    A line that can't be read is told, by its number, and left out.  Raises ConfigError if the
    file can't be read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: {reason}") from None
    exits: dict[ExitSpec, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            spec = _parse(path, number, entry)
            if spec is not None:
                exits[spec] = None
    return list(exits)


def _parse(path: Path, number: int, entry: str) -> ExitSpec | None:
    try:
        return ExitSpec.parse(entry, path.parent)
    except ConfigError as error:
        log.warning("%s: line %d left out: %s", path, number, error)
        return None
