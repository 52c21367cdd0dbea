"""/healthz and /readyz: whether it is alive and takes requests, told without a token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gsocks.access.rules import Rules
from gsocks.admin.health import HealthApp, Readiness
from gsocks.rotation.group import ExitGroup
from tests.support.rosters import offers


def group() -> ExitGroup:
    return ExitGroup(offers(2), Rules.default())


def ask(app: Any, path: str, method: str = "GET") -> tuple[int, str]:
    statuses: list[str] = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path}
    body = b"".join(app(environ, lambda status, _: statuses.append(status)))
    return int(statuses[0].split()[0]), body.decode()


def test_it_is_ready_while_an_exit_of_each_section_may_be_used(tmp_path: Path) -> None:
    exits = group()
    app = HealthApp(Readiness({"local": exits}, list))
    assert ask(app, "/readyz") == (200, "ok\n")
    exits.ban("e0", 60.0)
    assert ask(app, "/readyz") == (200, "ok\n")
    exits.drain("e1")
    assert ask(app, "/readyz") == (503, "local: no exit can be used now\n")
    assert ask(app, "/healthz") == (200, "ok\n")
    exits.unban("e0")
    assert ask(app, "/readyz") == (200, "ok\n")
    now = time.monotonic()
    for member in exits.roster:
        member.health.checked(False, now)
        exits.roster.member_changed(member, now)
    assert ask(app, "/readyz")[0] == 503


def test_a_key_that_is_gone_and_a_shutdown_are_told(tmp_path: Path) -> None:
    key = tmp_path / "gsocks.key"
    key.touch()
    readiness = Readiness({"server": group()}, lambda: [key])
    app = HealthApp(readiness)
    assert ask(app, "/readyz") == (200, "ok\n")
    key.unlink()
    assert ask(app, "/readyz") == (503, f"{key}: can't be read\n")
    key.touch()
    readiness.is_shutting_down = True
    assert ask(app, "/readyz") == (503, "shutting down\n")
    assert ask(app, "/healthz") == (200, "ok\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/exits", 404), ("POST", "/readyz", 405), ("HEAD", "/readyz", 200)],
)
def test_nothing_else_is_told_there(method: str, path: str, status: int) -> None:
    found = ask(HealthApp(Readiness({"local": group()}, list)), path, method)
    assert found[0] == status
    assert "e0" not in found[1]
    assert method != "HEAD" or not found[1]
