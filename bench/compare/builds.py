"""A revision of gsocks as something to start: its own source tree, the same dependencies.

The interpreter runs with ``-S``, without ``site``, and finds its dependencies by PYTHONPATH.
An editable install of gsocks is a hook that ``site`` loads: it would supply each module that the
compared tree lacks, from another tree.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import signals
from bench.contenders.gsocks import Build
from bench.processes import ROOT

#: how the working tree is named in the table, and told from a revision
WORKING_TREE = "working tree"


class UnknownRevision(Exception):
    """The text says which."""


class Source(NamedTuple):
    """One side of the comparison."""

    #: as it was asked for: a git revision, or WORKING_TREE
    name: str
    #: the short commit; with "-dirty" for a working tree with changes
    commit: str
    build: Build


@contextlib.contextmanager
def checked_out(name: str, folder: Path) -> Iterator[Source]:
    """The revision's source tree in ``folder``, which must not exist, until the end of the block.

    The working tree is copied, so that it may be edited during the run.  Raises UnknownRevision.
    """
    if name == WORKING_TREE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "gsocks", folder / "gsocks", ignore=ignored)
        yield Source(name, _described(), _build(folder))
        return
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "--short", f"{name}^{{commit}}")
    except subprocess.CalledProcessError:
        raise UnknownRevision(f"no such revision: {name}") from None
    try:
        # git that is killed half-way leaves a locked worktree behind
        with signals.held():
            _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        yield Source(name, commit, _build(folder))
    finally:
        with signals.held():
            _git("worktree", "remove", "--force", str(folder))


def commit_before() -> str | None:
    """The commit that the working tree's modules are to be compared with.

    HEAD if they differ from it, else its first parent; None where there is no such commit, as in
    the root of a history, a shallow clone or an unpacked archive.
    """
    try:
        changed = _git("status", "--porcelain", "--", "gsocks")
        return _git("rev-parse", "--verify", "--quiet", "HEAD" if changed else "HEAD~1")
    except (OSError, subprocess.CalledProcessError):
        return None


def _described() -> str:
    """The commit of the working tree, with "-dirty" behind it where it has changes."""
    try:
        return _git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "not from a repository"


def _build(folder: Path) -> Build:
    """Compiles the modules first, so that no measured process does."""
    python = [sys.executable, "-S", "-m"]
    subprocess.run([*python, "compileall", "-q", str(folder / "gsocks")], check=True)
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    path = os.pathsep.join([str(folder), *packages])
    return Build((*python, "gsocks"), {"PYTHONPATH": path})


def _git(*arguments: str) -> str:
    """What git prints.  Raises CalledProcessError."""
    run = subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return run.stdout.strip()
