"""One word for one thing: words that gsocks once had for the field's own are not used again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: a dropped word, in any case and as a part of an identifier, and the word to use
DROPPED = {
    "door": "listener, inbound",
    "ways? out": "exit, exit group",
    "wish(es|ed)?": "exit selector",
    "visit": "client connection",
    "crew": "greenlet pool, peers, supervisor",
    "workbench": "scratch buffers",
    "pollable": "nonblocking stream",
    "tally": "counters",
    "obey": "execute",
    "whoever": "the client, the peer, the caller",
    "somebody": "the client, the peer, the caller",
    "anybody": "any client, any peer",
    "nobody": "no client, no exit, no process",
    "shaky": "degraded",
}

#: what is old keeps its words, and this file names them
EXEMPT = {"CHANGELOG.md", "tests/test_words.py"}

#: what providers are sent for a request without a user, and the system's user of that name
ALLOWED = re.compile(
    r"[\"`']nobody[\"`']|me-nobody|user.unprivileged: nobody|user_id STRING nobody"
)


def sources() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.md", "*.toml", "*.yaml", "*.yml", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [name for name in listed.split("\0") if name and name not in EXEMPT]


@pytest.mark.parametrize("word", DROPPED)
def test_a_dropped_word_is_not_used(word: str) -> None:
    # _ parts the words of an identifier
    pattern = re.compile(rf"(?<![a-z])({word})s?(?![a-z])", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in sources()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if pattern.search(ALLOWED.sub("", line))
    ]
    assert not found, f"use instead: {DROPPED[word]}"
