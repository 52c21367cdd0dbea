"""The core of the suite with other versions than `make test` has: `make test-matrix`.

    .venv/bin/nox --list          tells the sessions; one for each Python that this machine has
    .venv/bin/nox -s locked-3.12  runs one of them

The core is what a version can break: all but ``NOT_CORE``, which runs the programs of others,
starts many of its own, reads the repository, or measures.  `make test` does that with one set of
versions.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"  # seconds instead of half a minute for each session

NOT_CORE = [
    # clients, servers and browsers of others, and documents and examples that run them
    "test_clients.py",
    "test_docs.py",
    "test_examples.py",
    "test_guides.py",
    "test_http_programs.py",
    "test_operations_doc.py",
    "test_real_*.py",
    # gsocks as a program; test_program.py alone stays
    "test_*_program.py",
    "test_activation.py",
    "test_apply.py",
    "test_conformance.py",
    "test_live.py",
    "test_probe.py",
    # the repository
    "test_architecture.py",
    "test_lock.py",
    "test_repository.py",
    "test_words.py",
    # figures, and what takes long
    "attack",
    "test_bench*.py",
    "test_exit_faults.py",
    "test_exit_simulation.py",
    "test_faults.py",
    "test_fuzz.py",
    "test_list_memory.py",
    "test_many_exits.py",
    "test_soak.py",
]

# tests wait more than they work, so that a few processes are quicker than one even on one core
TESTERS = os.environ.get("TESTERS", "5")


def pythons() -> dict[str, str]:
    """The interpreters of this machine by minor version, in order: those on PATH and pyenv's."""
    question = "import sys; print(*sys.version_info[:2], sys._base_executable)"
    found: dict[tuple[int, int], str] = {}
    for path in candidates():
        try:
            told = subprocess.check_output([path, "-c", question], stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            continue  # a shim of pyenv with no Python behind it
        major, minor, executable = told.decode().split(maxsplit=2)
        found.setdefault((int(major), int(minor)), executable.strip())
    return {f"{major}.{minor}": path for (major, minor), path in sorted(found.items())}


def candidates() -> Iterator[str]:
    """Whatever is called python3.10 or higher."""
    folders = [Path(folder) for folder in os.get_exec_path() if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for folder in [*folders, *sorted(pyenv.glob("versions/*/bin"))]:
        for path in sorted(folder.glob("python3.*")):
            if re.fullmatch(r"python3\.[1-9][0-9]", path.name):
                yield str(path)


def core(session: nox.Session) -> None:
    ignored = [f"--ignore-glob=tests/{name}" for name in NOT_CORE]
    session.run("pytest", "-n", TESTERS, "--dist", "worksteal", *ignored, *session.posargs)


def locked(session: nox.Session, file: str) -> None:
    files = ["-r", "requirements/build.txt", "-r", f"requirements/{file}.txt"]
    session.install("--require-hashes", *files)
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    core(session)


PYTHONS = pythons()


@nox.session(python=next(iter(PYTHONS.values())))
def lowest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml allows, on the oldest Python."""
    locked(session, "lowest")


@nox.session(python=list(PYTHONS.values())[-1])
def newest(session: nox.Session) -> None:
    """The newest versions that pyproject.toml allows, on the newest Python."""
    session.install("--upgrade", "-e", ".[test,clients]")
    core(session)


def add_locked(version: str, path: str) -> None:
    @nox.session(name=f"locked-{version}", python=path)
    def run(session: nox.Session) -> None:
        """The locked versions."""
        locked(session, "core")


for _version, _path in PYTHONS.items():
    add_locked(_version, _path)
