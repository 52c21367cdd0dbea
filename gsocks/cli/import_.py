"""``gsocks import``: what a list of exits says, as one URL a line, and what of it is skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
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
            print(_line(spec, with_credentials=with_credentials))
    elif found.exits:
        _write(output, "".join(f"{_line(spec, with_credentials=True)}\n" for spec in found.exits))
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


def _line(spec: ExitSpec, *, with_credentials: bool) -> str:
    """A line that a list of exits may have; with masked credentials, it is one to look at."""
    url = spec.url if with_credentials else replace(spec, via=None).label
    return " ".join([url, *_options(spec, with_credentials=with_credentials)])


def _options(spec: ExitSpec, *, with_credentials: bool) -> Iterator[str]:
    if spec.via is not None and not with_credentials:
        yield f"via={quote(spec.via.label, safe=':/@*')}"
    if spec.name is not None:
        yield f"name={spec.name}"
    if spec.country is not None:
        yield f"country={spec.country}"
    if spec.tags:
        yield f"tags={','.join(spec.tags)}"
    if spec.weight != 1.0:
        yield f"weight={spec.weight:g}"
    if spec.max_connections is not None:
        yield f"max_connections={spec.max_connections}"
    if spec.requests_per_minute is not None:
        yield f"requests_per_minute={spec.requests_per_minute}"
    for name, bound in ({} if spec.budget is None else spec.budget._asdict()).items():
        if bound is not None:
            yield f"{name}={bound:g}" if isinstance(bound, float) else f"{name}={bound}"
