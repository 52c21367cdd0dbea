"""``gsocks import``: what a list of exits says, as one URL a line, and what of it is skipped."""

from __future__ import annotations

import sys
from pathlib import Path

from gsocks.cli.exit_line import exit_line
from gsocks.errors import ConfigError
from gsocks.files import replace_secret
from gsocks.messages import Mistake
from gsocks.rotation.lists import MAX_SIZE, ListOptions, read_list
from gsocks.rotation.sources import parse_scheme

#: exit status if the list has no exit
NO_EXIT = 1


def import_list(
    path: Path, scheme: str, *, with_credentials: bool = False, output: Path | None = None
) -> int:
    """Print the exits of the list at ``path`` (``-``: the standard input), a URL a line.

    ``scheme``: that of entries without one.  Passwords and keys are masked unless
    ``with_credentials``.  With ``output`` that file is written instead, with them and mode 0600,
    and replaced if it exists.  Skipped entries and a summary go to stderr.  0 if the list has an
    exit, else NO_EXIT, and then ``output`` is left alone.  Raises ConfigError for a file that is
    no list, or can't be written.
    """
    try:
        options = ListOptions(parse_scheme(scheme), base=path.parent)
    except Mistake as mistake:
        raise ConfigError(f"--scheme: {mistake.message}") from None
    try:
        found = read_list(_read(path), options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if output is None:
        for spec in found.exits:
            print(exit_line(spec, with_credentials=with_credentials))
    elif found.exits:
        _write(output, "".join(f"{exit_line(spec)}\n" for spec in found.exits))
    for place, reason in found.skipped:
        print(f"{path}: {place} skipped: {reason}", file=sys.stderr)
    duplicates = f", {found.duplicates} duplicates" if found.duplicates else ""
    print(f"{len(found.exits)} exits{duplicates}, {len(found.skipped)} skipped", file=sys.stderr)
    return 0 if found.exits else NO_EXIT


def _read(path: Path) -> bytes:
    """Raises ConfigError."""
    try:
        if path == Path("-"):
            return sys.stdin.buffer.read(MAX_SIZE + 1)
        with path.open("rb") as file:
            return file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(error.strerror or type(error).__name__) from None


def _write(path: Path, text: str) -> None:
    """Raises ConfigError."""
    path = path.resolve()  # the target of a link, which stays one
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: not a file")
    try:
        replace_secret(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or type(error).__name__}") from None
