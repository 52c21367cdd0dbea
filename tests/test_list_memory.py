"""What the reading of a list takes at most, whatever stands in it."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import pytest

from gsocks.errors import ConfigError
from gsocks.rotation import lists
from gsocks.rotation.lists import ListOptions, parse_list

HERE = ListOptions(base=Path("/etc/gsocks"))


@pytest.mark.parametrize(
    "raw",
    [
        b'[{"url": "10.0.0.7:80"}, {"a": [%s]}]' % b",".join([b"{}"] * 200_000),
        b'{"data": {"a": {"b": {"c": [%s]}}}}' % b",".join([b"{}"] * 200_000),
        b"[%s]" % b",".join([b"{}"] * 200_000),
        b"{}\n" * 200_000,
        b"ab\n" * 200_000,
        b"ab " * 200_000,
        b"\n" * 700_000,
        b"a, " * 300_000,
        b"a,b\n" * 200_000,
        "# \u00e4\n".encode() * 200_000,
        b"- {}\n" * 600_000,
    ],
    ids=lambda raw: f"{raw[:5]!r} and so on",
)
def test_a_list_takes_little_memory_beside_its_exits(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "MAX_EXITS", 1000)  # each skipped entry has a reason
    tracemalloc.start()
    try:
        with contextlib.suppress(ConfigError):
            parse_list(raw, HERE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 13_000_000
