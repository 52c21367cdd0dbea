"""docs/cookbook.md: each recipe is run, in this process and in a folder of its own."""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from gsocks import config
from gsocks.crypto import Key
from gsocks.main import main
from tests.support.program import ROOT

pytestmark = pytest.mark.usefixtures("own_log")

TEXT = (ROOT / "docs" / "cookbook.md").read_text()

RECIPES = {
    part.partition("\n")[0]: re.findall(r"^```(sh|yaml)\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
    for part in TEXT.split("\n## ")[1:]
}

HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10 + "dGE"

#: commands that would serve, and print what they would serve instead
SERVING = ("local", "server", "rotate")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "proxies.txt").write_text("10.0.0.1:8080 country=de\n10.0.0.2:8080 country=us\n")
    (tmp_path / "users.txt").write_text(f"bob:{HASH}\n")
    for name in ("server.pem", "server.key"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_twenty_recipes_and_each_has_something_to_run() -> None:
    assert len(RECIPES) >= 20
    assert all(RECIPES.values())


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs(
    title: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for kind, text in RECIPES[title]:
        if kind == "yaml":
            (folder / "gsocks.key").write_text(Key.generate().text())
            config.parse(text, folder)
            continue
        for line in text.splitlines():
            typed, _, command = line.rpartition(" | ")
            said = shlex.split(typed)[1:] if typed else []
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(" ".join(said).encode())))
            program, *arguments = shlex.split(command)
            assert program == "gsocks"
            if arguments[0] in SERVING:
                arguments.append("--print-config")
                capfd.readouterr()
            assert main(arguments) == 0, capfd.readouterr().err
            if arguments[0] in SERVING:
                assert config.parse(capfd.readouterr().out, folder)
