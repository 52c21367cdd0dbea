"""gsocks local, server and rotate: what their options mean, as a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks import config
from gsocks.cli.one_line import OneLine, loaded, run_one_line, text_of
from gsocks.config.yaml import read_yaml, write_yaml
from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.main import main

KEY = Key(bytes(range(32))).text()


def tree(section: str, **options: Any) -> Any:
    options.setdefault("environ", {})
    return read_yaml(text_of(OneLine(section=section, **options)))


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GSOCKS_EXIT", "GSOCKS_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_an_exit_is_all_that_a_local_end_needs() -> None:
    assert tree("local", exits=["direct"]) == {
        "local": {"listen": "127.0.0.1:1080", "exits": ["direct"]}
    }


def test_a_key_file_is_all_that_a_server_needs(in_folder: Path) -> None:
    assert tree("server", key_files=["gsocks.key", "lap=l.key"])["server"] == {
        "listen": "0.0.0.0:8388",
        "keys": {
            "default": {"file": str(in_folder / "gsocks.key")},
            "lap": {"file": str(in_folder / "l.key")},
        },
    }


def test_a_list_is_all_that_a_rotating_proxy_needs(in_folder: Path) -> None:
    found = tree("local", lists=["proxies.txt", "https://h/list"], keys=[("rotate", "fastest")])
    assert found["local"]["exit_sources"] == [
        {"file": str(in_folder / "proxies.txt")},
        {"url": "https://h/list"},
    ]
    assert found["local"]["rotate"] == "fastest"
    assert "exits" not in found["local"]


def test_a_key_and_an_exit_may_be_in_the_environment() -> None:
    variables = {"GSOCKS_KEY": KEY, "GSOCKS_EXIT": "gsocks://h"}
    assert tree("local", environ=variables)["local"]["exits"] == [
        {"url": "gsocks://h", "key_env": "GSOCKS_KEY"}
    ]
    assert tree("server", environ=variables)["server"]["keys"] == {"default": {"env": "GSOCKS_KEY"}}


def test_each_key_of_a_section_is_an_option_and_each_deeper_one_a_setting() -> None:
    found = tree(
        "local",
        exits=["direct"],
        keys=[("rules", "deny private"), ("rules", "allow all"), ("tries", "5")],
        settings=["timeouts.idle=5m", "log.level=debug", "local.pool.size=2", "workers=auto"],
    )
    assert found["local"]["rules"] == ["deny private", "allow all"]
    assert found["local"]["timeouts"] == {"idle": "5m"}
    assert found["local"]["pool"] == {"size": "2"}
    assert (found["log"], found["workers"]) == ({"level": "debug"}, "auto")


def test_an_address_of_ipv6_is_no_list() -> None:
    listen = [("listen", "[::1]:1080"), ("listen", "{address: 127.0.0.1:0, session: a}")]
    found = tree("local", exits=["direct"], keys=listen)["local"]["listen"]
    assert found == ["[::1]:1080", {"address": "127.0.0.1:0", "session": "a"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"section": "local"}, "no exit (expected --exit URL"),
        ({"section": "server"}, "no key (expected --key-file FILE"),
        ({"section": "local", "settings": ["idle"]}, "--set: 'idle' is not path=value"),
        ({"section": "local", "settings": ["rotat=x"]}, "rotat is no key (did you mean rotate?)"),
        ({"section": "local", "settings": ["tries=1", "tries=2"]}, "--set tries: given twice"),
        ({"section": "local", "keys": [("pool", "3")], "settings": ["pool.size=1"]}, "pool is giv"),
        ({"section": "server", "key_files": ["a", "b"]}, "two keys are called default"),
        ({"section": "local", "exit_files": [Path("none")]}, "none: No such file"),
    ],
)
def test_a_mistake_of_the_options_is_one_clear_line(options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        text_of(OneLine(environ={}, **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_of_a_value_is_told_as_that_of_a_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["local", "--exit", "direct", "--rotate", "fast"]) == 2
    assert capsys.readouterr().err.startswith("gsocks local: local.rotate: 'fast' is not a policy")


def test_the_printed_config_means_the_same_wherever_it_is_kept(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_folder / "gsocks.key").write_text(KEY)
    (in_folder / "p.txt").write_text("10.0.0.1:8080:u:p\n")
    options = OneLine(
        section="local",
        exits=["gsocks://h:1?transport=wss&path=/a%26b", "socks5://u:p%40@h", "direct"],
        key_files=["gsocks.key"],
        keys=[("exit_sources", "p.txt"), ("rules", "allow all"), ("rotate", "random")],
        settings=["timeouts.connect=5s", "health.failures=9"],
        environ={},
    )
    assert run_one_line(options, print_config=True) == 0
    printed = capsys.readouterr()
    elsewhere = in_folder / "elsewhere" / "c.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(printed.out)
    elsewhere.chmod(0o600)
    assert config.load(elsewhere) == loaded(options)
    assert "keep it with mode 0600" in printed.err


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TREES = st.recursive(
    TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@given(st.dictionaries(TEXT, TREES, min_size=1, max_size=4))
def test_what_is_written_as_yaml_is_read_as_the_same(found: Any) -> None:
    assert read_yaml(write_yaml(found)) == found


@pytest.mark.parametrize(
    "word", ["no", "0123", "1e5", "12:30", "null", "", " a", "a: b", "- x", "~"]
)
def test_a_word_that_another_reader_takes_for_something_else_is_quoted(word: str) -> None:
    assert write_yaml({"a": word}).startswith('a: "')
