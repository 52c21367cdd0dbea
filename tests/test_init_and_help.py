"""gsocks init, help and completion."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gsocks import config
from gsocks.cli.help import topics
from gsocks.cli.init import KINDS, template
from gsocks.main import main, make_parser
from tests.support.program import ROOT


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_is_a_config_that_a_newcomer_may_run(kind: str, tmp_path: Path) -> None:
    (tmp_path / "proxies.txt").write_text("10.0.0.1:8080\n")
    config.parse(template(kind), tmp_path)


def test_the_example_of_the_package_is_that_of_the_repository() -> None:
    assert template("example") == (ROOT / "config.example.yaml").read_text()


def test_a_config_is_written_for_its_owner_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "server"]) == 0
    file = tmp_path / "server.yaml"
    assert file.read_text() == template("server")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["init", "server"]) == 2
    assert "server.yaml: exists already" in capsys.readouterr().err
    assert main(["init", "gateway", "-o", "-"]) == 0
    assert capsys.readouterr().out == template("gateway")


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("timeouts.idle", "local.timeouts.idle, server.timeouts.idle, forwards.timeouts.idle,\n"),
        ("rules", "local.rules, server.rules, redirect.rules: rules"),
        ("exits[]", "exits[].key_command: words"),
        ("share", "usage: gsocks share"),
        ("signals", "SIGHUP"),
    ],
)
def test_help_explains_commands_keys_and_subjects(
    topic: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["help", topic]) == 0
    assert text in capsys.readouterr().out


def test_help_without_a_topic_lists_them_and_an_unknown_one_is_guessed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in topics())
    assert main(["help", "signal"]) == 2
    assert "did you mean signals?" in capsys.readouterr().err


def test_every_command_is_in_the_first_page_of_the_help() -> None:
    parser = make_parser()
    (commands,) = [each.choices for each in parser._actions if isinstance(each.choices, dict)]
    text = parser.description or ""
    assert all(f"gsocks {name}" in text for name in commands)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completions(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("doctor", "key-file", "print-config"))


def test_an_example_that_is_written_names_itself_and_nothing_that_is_not_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["init", "-o", str(path)]) == 0
    written = path.read_text()
    assert f"gsocks -c {path}\n" in written
    assert "config.example.yaml" not in written
    assert "schema" not in written


def test_the_help_names_no_file_that_only_the_repository_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["help"]) == 0
    assert "config.example.yaml" not in capsys.readouterr().out
