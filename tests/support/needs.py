"""Real programs that tests run.

On a newcomer's machine a test whose program is missing is skipped, and says what to install; in
CI, which installs them all, it fails.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str, package: str | None = None) -> str:
    """The path of a program, which Debian has in ``package``."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        missing(f"needs {name}: apt-get install {package or name}")
    return path


def root() -> None:
    """The right to create network namespaces."""
    if os.geteuid() != 0:
        missing("needs root, to make a network namespace")


def missing(what: str) -> NoReturn:
    """Skip this test, or in CI fail it."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
