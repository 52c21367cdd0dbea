"""All mistakes of a config at once, as gsocks check tells them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks import config
from gsocks.config.mistakes import mistakes
from gsocks.config.yaml import write_yaml
from gsocks.errors import ConfigError
from gsocks.main import main
from gsocks.yaml_tree import Tree

MANY = """
workers: many
log: {level: loud}
local:
  listen: nowhere
  rotat: x
  timeouts: {idle: ten minutes, connect: 5s, drain: no}
  exits: [ftp://x, {url: "socks5://h", weight: -1, tags: [1, "a b"]}, direct, gopher://y]
  rules: [permit all]
  users: {al: plain}
server:
  keys: {a: short}
  transport: {kind: tcpp}
admin: {listen: 0.0.0.0:9}
what: 1
"""


def told(text: str) -> list[str]:
    return [str(each).removeprefix("c: ").partition(": ")[0] for each in _all(text)]


def _all(text: str) -> list[ConfigError]:
    return mistakes(text, Path("/nowhere"), "c")


def test_every_mistake_is_told_once_at_its_place_in_the_file() -> None:
    assert told(MANY) == [
        "workers",
        "log.level",
        "local.listen",
        "local.rotat",
        "local.timeouts.idle",
        "local.timeouts.drain",
        "local.exits[0]",
        "local.exits[1].weight",
        "local.exits[1].tags",
        "local.exits[3]",
        "local.rules[0]",
        "local.users.al",
        "server.keys.a",
        "server.transport.kind",
        "what",
        "admin.listen",
    ]


def test_what_several_keys_show_together_is_told_too() -> None:
    text = "local: {listen: 0.0.0.0:1, limits: {per_key: 1}}\nadmin: {listen: 0.0.0.0:2}"
    assert told(text) == ["local.limits.per_key", "admin.listen"]


def test_a_mistake_is_not_told_as_another_one_that_it_causes() -> None:
    # without the bad hash there would be no user, and an open proxy
    assert told("local: {listen: 0.0.0.0:1, users: {al: x}}") == ["local.users.al"]
    assert told("server: {listen: 127.0.0.1:1, keys: {a: x}}") == ["server.keys.a"]


def test_a_good_config_has_none() -> None:
    assert not _all("local: {listen: 127.0.0.1:1}")


WORDS = st.sampled_from(
    ["", "direct", "127.0.0.1:0", "5s", "x", "socks5://h", "true", "3", "allow all", "[0]", "a.b"]
)
KEYS = st.sampled_from(
    [*config.Config.__struct_fields__, *config.Local.__struct_fields__, "keys", "routes", "file",
     "a", "url", "idle"]
)  # fmt: skip
TREES: st.SearchStrategy[Tree] = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
def test_it_ends_and_agrees_with_the_reader_on_whether_there_is_one(tree: dict[str, Tree]) -> None:
    text = write_yaml(tree)
    found = [str(each) for each in _all(text)]
    assert found[:1] == _first(text)
    assert len(set(found)) == len(found)


def _first(text: str) -> list[str]:
    try:
        config.parse(text, Path("/nowhere"), name="c")
    except ConfigError as error:
        return [str(error)]
    return []


@pytest.mark.usefixtures("own_log")
def test_check_tells_mistakes_of_other_files_and_folders_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("10.0.0.1:8080\nnothing at all\n")
    (tmp_path / "bad.key").write_text("x")
    path = tmp_path / "c.yaml"
    path.write_text(
        "local:\n  listen: 127.0.0.1:0\n  exit_sources: [{file: p.txt}]\n"
        "  exits: [{url: 'gsocks://h', key_file: no.key}, {url: 'gsocks://h', key_file: bad.key}]\n"
        "server: {listen: 127.0.0.1:0, keys: {a: {file: none/a.key}, b: {file: bad.key}}}\n"
        "admin: {listen: 127.0.0.1:0, token_file: none/admin.token}\n"
    )
    assert main(["check", "-c", str(path)]) == 2
    printed = capfd.readouterr()
    places = ["local.exits[0]", "local.exits[1]", "server.keys.b", "server.keys", "admin.token_fil"]
    assert all(f"c.yaml: {place}" in printed.err for place in places)
    assert "line 2 skipped" in printed.out
    assert "ok" not in printed.out
