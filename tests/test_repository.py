"""The version, the changelog, the forms and the targets agree with each other and with the code."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import tomli
import yaml

import gsocks
from tests.support.program import ROOT

FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

YAML_FILES = [
    *FORMS,
    ROOT / ".github" / "dependabot.yml",
    ROOT / ".pre-commit-config.yaml",
    ROOT / "config.example.yaml",
]


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_newest_release_of_the_changelog_is_the_version() -> None:
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\S+)", head) for head in heads[1:]]
    told = [(release[1], date.fromisoformat(release[2])) for release in releases if release]
    assert len(told) == len(releases)
    assert told[0][0] == gsocks.__version__
    dates = [day for _, day in told]
    assert dates == sorted(dates, reverse=True)


def test_the_package_takes_its_version_and_its_license_from_one_place() -> None:
    pyproject = tomli.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in pyproject["project"]["dynamic"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gsocks.__version__"}
    assert pyproject["project"]["license"] == "MIT"
    (author,) = pyproject["project"]["authors"]
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n\nCopyright (c) 2026 " + author["name"])


def test_a_wheel_holds_every_module_and_the_license(tmp_path: Path) -> None:
    names = ("gsocks", "share", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
    for name in (*names, "config.example.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"gsocks-{gsocks.__version__}-*.whl")
    held = set(ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gsocks").rglob("*.py")}
    assert modules == {name for name in held if name.endswith(".py")}
    assert {"gsocks/py.typed", f"gsocks-{gsocks.__version__}.dist-info/licenses/LICENSE"} <= held
    data = f"gsocks-{gsocks.__version__}.data/data/share"
    beside = ("man/man1/gsocks.1", "zsh/site-functions/_gsocks", "doc/gsocks/config.example.yaml")
    assert {f"{data}/{name}" for name in beside} <= held
    assert {"gsocks/cli/templates/gateway.yaml", "gsocks/cli/topics/signals.txt"} <= held


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_a_yaml_file_of_the_repository_parses(path: Path) -> None:
    assert isinstance(loaded(path), dict)


@pytest.mark.parametrize(
    "path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.name
)
def test_an_issue_form_asks_under_names_that_differ(path: Path) -> None:
    form = loaded(path)
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["type"] in {"input", "textarea", "dropdown", "checkboxes"} for part in asked)
    for names in ([part["id"] for part in asked], [part["attributes"]["label"] for part in asked]):
        assert len(set(names)) == len(names) > 0


def test_dependabot_looks_into_folders_that_hold_dependencies() -> None:
    for update in loaded(ROOT / ".github" / "dependabot.yml")["updates"]:
        names = {"pip": ("*.toml", "*.txt"), "npm": ("package.json",)}[update["package-ecosystem"]]
        for folder in update.get("directories") or [update["directory"]]:
            assert any(list((ROOT / folder.strip("/")).glob(name)) for name in names), folder
        for path in update.get("exclude-paths", []):
            assert (ROOT / path).is_file()


def test_the_commands_of_pre_commit_are_installed() -> None:
    for repo in loaded(ROOT / ".pre-commit-config.yaml")["repos"]:
        for hook in repo["hooks"]:
            folder, _, command = hook["entry"].split()[0].rpartition("/")
            assert folder == ".venv/bin"
            assert (Path(sys.executable).parent / command).is_file(), command


def test_the_makefile_tells_of_each_target() -> None:
    text = (ROOT / "Makefile").read_text()
    told = set(re.findall(r"^# make (\S+)", text, re.MULTILINE))
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets is not None
    assert told == set(targets[1].split()) - {"clean"}


def test_contributing_is_one_screen_and_names_only_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 40
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([\w-]+)", text + (ROOT / "RELEASING.md").read_text()):
        assert f"\n{target}:" in makefile, target


def test_what_the_matrix_leaves_out_exists() -> None:
    module = ast.parse((ROOT / "noxfile.py").read_text())
    (value,) = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_CORE"
    ]
    for pattern in ast.literal_eval(value):
        assert list((ROOT / "tests").glob(pattern)), pattern
