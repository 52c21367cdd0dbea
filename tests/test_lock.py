"""The lock files hold exact versions with hashes, and versions that pyproject.toml allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.program import ROOT

PYPROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text())

FOLDER = ROOT / "requirements"

#: the extras that a file has besides the dependencies
EXTRAS = {
    "run": [],
    "dev": ["test", "lint", "clients", "contract", "scraping"],
    "core": ["test", "clients"],
    "lowest": ["test", "clients"],
    "docs": ["docs"],
    "fuzz": ["fuzz"],
    "mutation": ["mutation"],
    "bench": ["bench"],
}

GROUPS = ["build", "tools"]

FILES = [*EXTRAS, *GROUPS]

PYTHONS = re.findall(r":: (3\.\d+)$", "\n".join(PYPROJECT["project"]["classifiers"]), re.MULTILINE)

PIN = re.compile(
    r"(?P<pin>[a-z0-9-]+==[0-9a-z.]+(?: ; [^\\]+?)?) \\\n"
    r"(?:    --hash=sha256:[0-9a-f]{64} \\\n)*    --hash=sha256:[0-9a-f]{64}\n"
)


def wanted(file: str) -> list[Requirement]:
    """What pyproject.toml says that a file is for."""
    if file in GROUPS:
        lines = PYPROJECT["dependency-groups"][file]
    else:
        extras = PYPROJECT["project"]["optional-dependencies"]
        lines = [*PYPROJECT["project"]["dependencies"]]
        lines += [line for extra in EXTRAS[file] for line in extras[extra]]
    return [Requirement(line) for line in lines]


def applies(requirement: Requirement, python: str) -> bool:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def locked(file: str, python: str) -> Iterator[tuple[str, Version]]:
    """Each package that a file installs with a Python, and its version."""
    for match in PIN.finditer((FOLDER / f"{file}.txt").read_text()):
        pin = Requirement(match["pin"])
        if applies(pin, python):
            (specifier,) = pin.specifier
            yield pin.name, Version(specifier.version)


def test_every_lock_file_is_known_here() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{name}.txt" for name in FILES)
    assert PYTHONS[0] == PYPROJECT["project"]["requires-python"].removeprefix(">=")


@pytest.mark.parametrize("file", FILES)
def test_a_lock_file_has_nothing_but_exact_versions_with_hashes(file: str) -> None:
    text = (FOLDER / f"{file}.txt").read_text()
    rest = PIN.sub("", text)
    assert all(line.startswith("#") for line in rest.splitlines()), rest
    assert "/" not in text.replace("\n    --hash", "")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", FILES)
def test_a_lock_file_has_each_dependency_in_a_version_that_is_allowed(
    file: str, python: str
) -> None:
    pins = list(locked(file, python))
    versions = dict(pins)
    assert len(pins) == len(versions)  # one of each
    for requirement in wanted(file):
        if applies(requirement, python):
            version = versions[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lowest_versions_are_the_lowest_that_are_allowed(python: str) -> None:
    versions = dict(locked("lowest", python))
    for requirement in wanted("lowest"):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                assert versions[canonicalize_name(requirement.name)] == Version(bound.version)


@pytest.mark.parametrize("python", PYTHONS)
def test_a_package_has_the_same_version_in_all_lock_files(python: str) -> None:
    together: dict[str, Version] = {}
    for file in FILES:
        for name, version in locked(file, python) if file != "lowest" else ():
            assert together.setdefault(name, version) == version, f"{name} in {file}"


def test_gsocks_is_built_by_the_locked_setuptools() -> None:
    assert PYPROJECT["dependency-groups"]["build"] == PYPROJECT["build-system"]["requires"]
