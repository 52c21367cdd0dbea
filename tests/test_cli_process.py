"""The descriptor limit of a process: raised at the start, with a warning if it is too low."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from gsocks import config
from gsocks.cli import process


class Limit:
    """RLIMIT_NOFILE as the system would have it."""

    def __init__(self, soft: int, hard: int) -> None:
        self.value = (soft, hard)

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.value

    def set(self, which: int, value: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.value = value


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    limit = Limit(256, 1000)
    monkeypatch.setattr(resource, "getrlimit", limit.get)
    monkeypatch.setattr(resource, "setrlimit", limit.set)
    return limit


def settings(local: int, server: int = 1) -> config.Config:
    text = """
local: {listen: 127.0.0.1:1, limits: {connections: %d}}
server: {listen: 127.0.0.1:2, keys: {a: {file: k}}, limits: {connections: %d}}
"""
    return config.parse(text % (local, server), Path())


def test_the_soft_limit_is_raised_to_the_hard_one(limit: Limit) -> None:
    assert process.raise_descriptor_limit() == 1000
    assert limit.value == (1000, 1000)


@pytest.mark.parametrize(("local", "server"), [(501, 1), (1, 501)])
def test_too_few_descriptors_for_the_connections_are_warned_of(
    limit: Limit, caplog: pytest.LogCaptureFixture, local: int, server: int
) -> None:
    process.check_descriptor_limit(settings(local, server))
    assert limit.value == (1000, 1000)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        (
            "WARNING",
            "limits.connections may need 1002 descriptors, and the system allows 1000 (ulimit -n)",
        )
    ]


@pytest.mark.parametrize("hard", [1000, resource.RLIM_INFINITY])
def test_enough_descriptors_are_no_news(
    limit: Limit, caplog: pytest.LogCaptureFixture, hard: int
) -> None:
    limit.value = (256, hard)
    process.check_descriptor_limit(settings(500 if hard == 1000 else 10**6))
    assert caplog.messages == []
