"""``gsocks check``: all mistakes in a config, what it would run, or what its rules decide."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from gsocks import config
from gsocks.address import Address
from gsocks.cli.process import interruptible
from gsocks.config.convert import read_file
from gsocks.config.mistakes import mistakes
from gsocks.errors import ConfigError
from gsocks.net.resolve import Resolver
from gsocks.service.plan import explain_rules, parts_of
from gsocks.service.supervisor import MISTAKE

#: exit status if the rules deny the destination
DENIED = 1


def check(path: Path) -> int:
    """Print what would run, and all that prevents it on standard error; MISTAKE if there is any.

    Raises ConfigError for a file that can't be read.
    """
    text, base = read_file(path), path.absolute().parent
    found = mistakes(text, base, str(path))
    for each in found:
        print(f"gsocks: {each}", file=sys.stderr)
    if found:
        return MISTAKE
    settings = config.parse(text, base, name=str(path))
    # all parts, and not up to the first that fails
    works = [_tell(path, part) for part in parts_of(path, settings)]
    if not all(works):
        return MISTAKE
    print(f"{path}: ok")
    return 0


def _tell(path: Path, part: Iterable[str]) -> bool:
    """Print the lines of a part; whether it has no mistake."""
    try:
        for line in part:
            print(line)
    except ConfigError as error:
        print(f"gsocks: {path}: {error}", file=sys.stderr)
        return False
    return True


def check_destination(path: Path, dest: Address, user: str | None) -> int:
    """Print which rules decide about ``dest``; 0 if all of them allow it, else DENIED."""
    status, settings = 0, config.load(path)
    resolver = Resolver(settings=settings.dns)
    with interruptible():
        for label, explanation in explain_rules(settings, dest, user, resolver):
            for line in explanation.lines:
                print(f"{label}: {line}")
            if not explanation.allowed:
                status = DENIED
    return status
