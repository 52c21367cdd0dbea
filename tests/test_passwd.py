"""gsocks passwd --file: one line of a users file is changed, all others stay."""

from __future__ import annotations

import io
import stat
import sys
from pathlib import Path

import pytest

from gsocks.access.users_file import FileUsers
from gsocks.main import main

pytestmark = pytest.mark.usefixtures("own_log")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users.txt"


def passwd(monkeypatch: pytest.MonkeyPatch, *arguments: object, typed: str = "secret") -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{typed}\n".encode())))
    return main(["passwd", *map(str, arguments)])


def test_a_user_is_added_changed_and_removed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passwd(monkeypatch, "--file", file, "al") == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert passwd(monkeypatch, "--file", file, "bo", typed="other") == 0
    assert FileUsers(file).verify("al", b"secret")
    file.write_text("# people\n" + file.read_text())
    assert passwd(monkeypatch, "--file", file, "al", typed="new") == 0
    users = FileUsers(file)
    assert users.verify("al", b"new")
    assert users.verify("bo", b"other")
    assert file.read_text().startswith("# people\nal:$argon2id$")
    assert passwd(monkeypatch, "--file", file, "al", "--delete") == 0
    assert FileUsers(file).names == ["bo"]


def test_the_file_keeps_its_mode_for_a_service_that_reads_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("")
    file.chmod(0o640)
    assert passwd(monkeypatch, "--file", file, "al") == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "f"], "--file FILE needs the NAME"),
        (["al"], "NAME needs --file FILE"),
        (["--file", "f", "a:b"], "holds no colon"),
        (["--file", "none/f", "al"], "none/f: No such file or directory"),
        (["--file", "f", "al", "--delete"], "f: has no user al"),
    ],
)
def test_a_mistake_is_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert passwd(monkeypatch, *arguments) == 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert "secret" not in printed.err
    assert not list(tmp_path.iterdir())
