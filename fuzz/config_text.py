"""A config as its user writes it: what is read can be written, and all mistakes of it can be told.

What is secret in it stands in no mistake.
"""

from __future__ import annotations

from pathlib import Path

from gsocks import config
from gsocks.config import mistakes, yaml
from gsocks.errors import ConfigError
from gsocks.messages import Mistake

SEEDS = [
    b"local: {listen: 127.0.0.1:1080, exits: [direct]}",
    b"local:\n  listen: '[::1]:0'\n  exits: [{url: socks5://u:7f3a9c@h, weight: -1}, ftp://x]\n",
    b"server: {listen: nowhere, keys: {a: short, b: {env: 'a b'}}, transport: {kind: tcpp}}",
    b"forwards: [{listen: x, to: y}, 7]\nadmin: {listen: 0.0.0.0:9}\nwhat: 1",
    b"local: {listen: 0.0.0.0:1, users: {al: x}, timeouts: {idle: 1, drain: no}, rules: [a, b]}",
    b"a: [1, [2, {b: {}}], '', \"\\x85\\u2028\"]\nno: 'no'\n",
]
#: what no word of gsocks has in it
MARK = "7f3a9c"

WORDS = [
    *(b"local: ", b"server: ", b"forwards: ", b"listen: ", b"exits: ", b"keys: ", b"users: "),
    *(b"rules: ", b"timeouts: ", b"limits: ", b"{", b"}", b"[", b"]", b", ", b": ", b"\n", b"  "),
    *(b"- ", b"'", b'"', b"127.0.0.1:0", b"direct", b"socks5://u:7f3a9c@h", b"&a ", b"*a", b"5s"),
]


def check(data: bytes) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return  # refused before
    found = [str(each) for each in mistakes.mistakes(text, Path("/nowhere"), "c")]
    assert found[:1] == _first(text), found
    assert len(set(found)) == len(found), found
    assert not any("\n" in each for each in found), found
    if text.count(MARK) == text.count(f"://u:{MARK}@h"):
        assert not any(MARK in each for each in found), found
    try:
        tree = yaml.read_yaml(text)
    except Mistake:
        return
    assert yaml.read_yaml(yaml.write_yaml(tree)) == tree, tree


def _first(text: str) -> list[str]:
    """The mistake at which a reader stops."""
    try:
        config.parse(text, Path("/nowhere"), name="c")
    except ConfigError as error:
        return [str(error)]
    return []
