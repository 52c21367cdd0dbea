"""gsocks with history and a request log, as a process with workers that is killed."""

from __future__ import annotations

import json
import signal
import stat
from pathlib import Path

import pytest

from gsocks.errors import HistoryFailed
from gsocks.history.request_file import RequestFile
from gsocks.history.requests import RequestRow
from gsocks.main import main
from tests.support.program import Program, kill, run, web_server
from tests.support.waiting import eventually

CONFIG = """
workers: 2
local: {listen: "127.0.0.1:0", rules: [allow all]}
admin: {listen: "127.0.0.1:0"}
state: {file: s}
requests: {}
"""


def rows(folder: Path) -> list[RequestRow]:
    try:
        return RequestFile(folder / "s-requests", 1).search(limit=1000).rows
    except HistoryFailed:
        return []


def fetch(program: Program, web: int, count: int) -> None:
    for _ in range(count):
        proxy = f"socks5h://127.0.0.1:{program.port()}"
        url = f"http://127.0.0.1:{web}/text/hello"
        assert run("curl", "-sS", "--proxy", proxy, url).stdout == "hello"


def test_what_was_logged_outlives_a_kill_and_what_was_counted_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    with web_server() as web:
        program = Program("-c", path)
        program.wait_for("local: listening on ", times=2)
        fetch(program, web, 6)
        eventually(lambda: len(rows(tmp_path)) == 6)
        kill(program)
        assert len(rows(tmp_path)) == 6
        with Program("-c", path) as program:
            program.wait_for("local: listening on ", times=2)
            fetch(program, web, 2)
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded")
            program.signal(signal.SIGTERM)
            assert program.end() == 0
    found = rows(tmp_path)
    assert [each.number for each in found] == list(range(8, 0, -1))
    assert {each.outcome for each in found} == {"ok"}
    for name in ("s-history", "s-requests"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert main(["explain", "-c", str(path), found[0].id]) == 0
    assert "try 1: exit" in capsys.readouterr().out
    assert main(["top", "-c", str(path), "--by", "outcome", "--json"]) == 0
    (counted,) = json.loads(capsys.readouterr().out)
    # those of the process that was killed may have been in the last 10 s
    assert counted["name"] == "ok"
    assert 2 <= counted["requests"] <= 8
