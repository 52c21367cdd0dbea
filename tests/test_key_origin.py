"""Keys from the environment and from a command, for vaults."""

from __future__ import annotations

import sys
from pathlib import Path

import gevent
import pytest

from gsocks import config, key_origin
from gsocks.crypto import Key
from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.key_origin import KeyCommand, KeyVariable
from gsocks.rotation.lists import ListOptions, parse_list
from gsocks.service.plan import make_key_ring

KEY = Key(bytes(range(32)))


def printing(text: str, status: int = 0) -> KeyCommand:
    return KeyCommand((sys.executable, "-c", f"print({text!r}); raise SystemExit({status})"))


def test_a_server_has_its_keys_from_where_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_LAPTOP", KEY.text())
    text = (
        "server: {listen: 127.0.0.1:0, keys: {laptop: {env: OF_LAPTOP}, phone: {command: ["
        f"{sys.executable}, -c, \"print('{Key(bytes(32)).text()}')\"]}}}}}}"
    )
    server = config.parse(text, Path()).server
    assert server is not None
    ring = make_key_ring(server)
    assert (ring.key("laptop"), ring.key("phone")) == (KEY, Key(bytes(32)))


def test_an_exit_has_its_key_from_where_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_HOME", KEY.text())
    spec = ExitSpec.parse({"url": "gsocks://h", "key_env": "OF_HOME"})
    assert spec.key_from == KeyVariable("OF_HOME")
    assert KEY.text() not in f"{spec!r} {spec.url}"
    other = ExitSpec.parse({"url": "gsocks://h", "key_command": ["pass", "show", "x"]})
    assert other != spec
    assert other.url != spec.url


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        (KeyVariable("GSOCKS_NO_SUCH"), "the environment has no variable GSOCKS_NO_SUCH"),
        (KeyCommand(("/no/such",)), "/no/such: No such file or directory"),
        (printing("hush-hush"), "printed something that is no key"),
        (printing(KEY.text(), 3), "failed with status 3"),
    ],
)
def test_what_goes_wrong_is_one_clear_line_without_what_was_said(
    origin: key_origin.KeyOrigin, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        origin.read()
    assert message in str(caught.value)
    assert not {"hush-hush", KEY.text()} & set(str(caught.value).split())


def test_a_command_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_origin, "COMMAND_TIMEOUT", 0.05)
    with pytest.raises(ConfigError, match=r"has printed no key in 0\.05 s"):
        KeyCommand((sys.executable, "-c", "while True: pass")).read()


def test_the_event_loop_turns_while_a_command_runs() -> None:
    turns: list[None] = []
    gevent.spawn(turns.append, None)
    assert printing(KEY.text()).read() == KEY
    assert turns


@pytest.mark.parametrize(
    "line",
    [
        'gsocks://h?key_command=["touch","x"]',
        "gsocks://h key_command=x",
        "gsocks://h?key_env=HOME",
        "gsocks://h key_env=HOME",
        '[{"url": "gsocks://h", "key_command": ["touch", "x"]}]',
    ],
)
def test_a_list_of_exits_can_name_neither(line: str) -> None:
    with pytest.raises(ConfigError, match="no list of exits"):
        parse_list(line.encode(), ListOptions(base=Path()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{command: pass show x}", "not a list of words"),
        ("{command: []}", "needs a command"),
        ("{env: 'a b'}", "is not the name of an environment variable"),
        ("{env: A, file: b}", "needs either a file or a key"),
    ],
)
def test_a_mistake_of_the_config_is_told_with_its_place(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"server\.keys\.a.*{message}"):
        config.parse(f"server: {{listen: 127.0.0.1:0, keys: {{a: {source}}}}}", Path())
