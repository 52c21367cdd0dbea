"""gsocks forward and redirect: what their options mean, as a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gsocks import config
from gsocks.config.yaml import read_yaml
from gsocks.main import main
from gsocks.service.supervisor import MISTAKE

LOCAL = """\
log: {level: debug}
local:
  listen: 127.0.0.1:0
  rotate: fastest
  rules: [allow all]
  exits: ['gsocks://h?key_file=k', {url: 'socks5://h:1', name: home}]
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GSOCKS_EXIT", raising=False)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--print-config"]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    config.parse(text, Path("/nowhere"))
    return read_yaml(text)


def test_a_forward_is_printed_as_the_config_that_it_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("5432:db:5432", "127.0.0.2:70-72:h:80-82", "--udp", "--exit", "direct")
    assert printed(capsys, "forward", *words) == {
        "forwards": {
            "routes": [
                {"listen": "127.0.0.1:5432", "to": "db:5432", "udp": "true"},
                {"listen": "127.0.0.2:70-72", "to": "h:80-82", "udp": "true"},
            ],
            "allow_remote": "true",
            "exits": ["direct"],
        }
    }


def test_a_redirect_is_printed_with_what_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "timeouts.idle=5m", "--set", "log.level=debug")
    assert printed(capsys, "redirect", "1082", "--exit", "direct", *settings) == {
        "redirect": {
            "listen": ["127.0.0.1:1082"],
            "allow_remote": "true",
            "timeouts": {"idle": "5m"},
            "exits": ["direct"],
        },
        "log": {"level": "debug"},
    }


def test_files_are_absolute_wherever_an_exit_was_written(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = in_folder / "etc"
    folder.mkdir()
    via = quote("gsocks://v?key_file=v.key", safe="")
    (folder / "exits").touch(0o600)
    (folder / "exits").write_text(f"gsocks://h?key_file=h.key&via={via}\n")
    words = ("--exit-file", "etc/exits", "--exit", "https://h:1?ca=a&cert=c&key=k")
    found = printed(capsys, "redirect", "1082", *words)
    absolute = quote(f"gsocks://v?key_file={folder}/v.key", safe="")
    assert found["redirect"]["exits"] == [
        f"https://h:1?ca={in_folder}/a&cert={in_folder}/c&key={in_folder}/k",
        f"gsocks://h?key_file={folder}/h.key&via={absolute}",
    ]


@pytest.mark.parametrize("command", [("redirect", "1082"), ("forward", "1:h:1")])
def test_the_exits_of_a_config_are_taken_with_what_belongs_to_them(
    command: tuple[str, ...], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_folder / "etc").mkdir()
    (in_folder / "etc" / "c.yaml").write_text(LOCAL)
    given = ("-c", "etc/c.yaml", "--set", "rotate=random")
    found = printed(capsys, *command, *given)
    (section,) = [each for name, each in found.items() if name != "log"]
    assert section["exits"] == [
        f"gsocks://h?key_file={in_folder}/etc/k",
        {"url": "socks5://h:1", "name": "home"},
    ]
    assert section["rotate"] == "random"
    assert section.get("rules") == (["allow all"] if command[0] == "redirect" else None)
    assert found["log"] == {"level": "debug"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "nothing=1", "--exit", "direct"], "--set: nothing is no key"),
        (["--set", "routes=1", "--exit", "direct"], "--set routes: given twice"),
        (["--set", "exits=direct", "--exit", "direct"], "--exit and exits are the same key"),
        (["--set", "rotate=1", "--exit", "direct"], "forwards.rotate: "),
        ([], "no exit (expected --exit URL"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forward", "5432:db:5432", *words]) == MISTAKE
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
