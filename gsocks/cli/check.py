"""``gsocks check``: report a mistake in a config, what it would run, or what its rules decide."""

from __future__ import annotations

from pathlib import Path

from gsocks import config
from gsocks.address import Address
from gsocks.admin.token import read_token
from gsocks.cli.process import interruptible
from gsocks.net.resolve import Resolver
from gsocks.service.plan import describe, explain_rules, token_file

#: exit status if the rules deny the destination
DENIED = 1


def check(path: Path) -> int:
    """Print what would run."""
    settings = config.load(path)
    for line in describe(path, settings):
        print(line)
    if settings.admin is not None and (file := token_file(settings.admin, path)).exists():
        read_token(file)
    print(f"{path}: ok")
    return 0


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
