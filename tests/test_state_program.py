"""State that lasts: a running program is restarted, also by a kill, and moves no session."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gsocks.rotation.state_file import StateFile
from gsocks.rotation.state_sync import NOT_KEPT
from tests.support.admin_api import Admin
from tests.support.mirror import EXITS, exit_of
from tests.support.program import Program, gsocks, kill
from tests.support.waiting import eventually

SESSIONS = [f"s{number}" for number in range(12)]


def config(folder: Path, *, workers: int = 1, state: str = "gsocks.db") -> Path:
    exits = "".join(
        f"    - {{url: direct, source: {address}/32, name: exit-{at}, country: de}}\n"
        for at, address in enumerate(EXITS)
    )
    path = folder / "c.yaml"
    path.write_text(
        f"workers: {workers}\nstate: {{file: {state}}}\nadmin: {{listen: 127.0.0.1:0}}\n"
        f"local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n  exits:\n{exits}"
    )
    return path


@contextmanager
def running(path: Path) -> Iterator[Program]:
    with Program("-c", path) as program:
        program.port()
        yield program


def written(path: Path) -> dict[str, dict[str, Any]]:
    """The sessions in the file."""
    file = StateFile(path)
    found = file.load(time.time()).records
    file.close()
    return {
        json.loads(each.key)[1]: json.loads(each.value) for each in found if each.kind == "session"
    }


def moved_sessions(program: Program, folder: Path, mirror: str) -> dict[str, str]:
    """Requests of all sessions, which then leave the exits that a fresh start would give them."""
    port = program.port()
    first = {name: exit_of(port, mirror, f"session-{name}") for name in SESSIONS}
    for name in SESSIONS:
        Admin(program, folder).ask("POST", "/v1/sessions/rotate", {"session": name})
    then = {name: exit_of(port, mirror, f"session-{name}") for name in SESSIONS}
    assert all(first[name] != then[name] for name in SESSIONS)
    return then


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_restart_each_session_has_its_exit(
    tmp_path: Path, mirror: str, workers: int
) -> None:
    path = config(tmp_path, workers=workers)
    with running(path) as program:
        had = moved_sessions(program, tmp_path, mirror)
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    with running(path) as program:
        port = program.port()
        assert had == {name: exit_of(port, mirror, f"session-{name}") for name in SESSIONS}


def test_a_kill_moves_no_session_either(tmp_path: Path, mirror: str) -> None:
    path = config(tmp_path)
    with running(path) as program:
        had = moved_sessions(program, tmp_path, mirror)
        eventually(
            lambda: (
                {
                    name: EXITS[int(each["exit"].removeprefix("exit-"))]
                    for name, each in written(tmp_path / "gsocks.db").items()
                    if each.get("served")
                }
                == had
            )
        )
        kill(program)
    with running(path) as program:
        port = program.port()
        assert had == {name: exit_of(port, mirror, f"session-{name}") for name in SESSIONS}


def test_bans_and_draining_outlive_a_restart(tmp_path: Path, mirror: str) -> None:
    path = config(tmp_path)
    with running(path) as program:
        admin = Admin(program, tmp_path)
        admin.ask("POST", "/v1/exits/exit-1/ban", {"seconds": 3600})
        admin.ask("POST", "/v1/exits/exit-2/ban", {"seconds": 3600, "domain": "example.com"})
        admin.ask("POST", "/v1/exits/exit-3/drain")
        admin.ask("POST", "/v1/exits/exit-4/ban", {"seconds": 3600})
        admin.ask("POST", "/v1/exits/exit-4/unban")
        program.signal(signal.SIGINT)
        assert program.end() == 0
    with running(path) as program:
        admin = Admin(program, tmp_path)
        states = admin.states()
        assert states["exit-1"] == "banned"
        assert states["exit-3"] == "draining"
        assert states["exit-4"] not in ("banned", "draining")
        (banned,) = admin.ask("GET", "/v1/exits/exit-2")["domains"]
        assert (banned["domain"], banned["state"]) == ("example.com", "banned")
        assert 3500 < banned["back_in"] <= 3600
        port = program.port()
        used = {exit_of(port, mirror) for _ in range(16)}
        assert used == {EXITS[at] for at in range(8) if at not in (1, 3)}


def test_a_worker_that_is_restarted_keeps_bans(tmp_path: Path) -> None:
    path = config(tmp_path, workers=2)
    with running(path) as program:
        admin = Admin(program, tmp_path)
        program.wait_for("local: listening on ", times=2)
        admin.ask("POST", "/v1/exits/exit-1/ban", {"seconds": 3600})

        def banned() -> bool:
            file = StateFile(tmp_path / "gsocks.db")
            found = file.load(time.time()).records
            file.close()
            return any(each.key == "exit-1" and "banned" in each.value for each in found)

        eventually(banned)
        children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        program.wait_for("local: listening on ", times=4)
        assert Admin(program, tmp_path).states()["exit-1"] == "banned"


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with running(config(tmp_path)):
        mode = (tmp_path / "gsocks.db").stat().st_mode
        assert mode & 0o777 == 0o600


def test_the_state_file_holds_no_password(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(
        path.read_text() + "    - {url: 'socks5://joe:s3cret@127.0.0.1:9', name: paid}\n"
    )
    with running(path) as program:
        admin = Admin(program, tmp_path)
        admin.ask("POST", "/v1/exits/paid/ban", {"seconds": 3600})
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    content = b"".join(each.read_bytes() for each in tmp_path.glob("gsocks.db*"))
    assert b"socks5://joe:***@127.0.0.1:9" in content
    assert b"s3cret" not in content


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_can_not_be_used_is_one_line_and_the_program_goes_on(
    tmp_path: Path, mirror: str, workers: int
) -> None:
    foreign = tmp_path / "gsocks.db"
    foreign.write_text("an important letter, longer than the head of a database" * 3)
    before = foreign.read_bytes()
    with running(config(tmp_path, workers=workers)) as program:
        program.wait_for("local: listening on ", times=workers)
        assert exit_of(program.port(), mirror, "session-a") in EXITS
        told = [line for line in program.lines if str(foreign) in line]
        assert len(told) == 1
        assert told[0].endswith(f"{foreign}: file is not a database ({NOT_KEPT})")
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    assert foreign.read_bytes() == before


def test_check_says_where_state_is_kept_or_why_it_can_not_be(tmp_path: Path) -> None:
    told = gsocks("check", "-c", config(tmp_path)).stdout
    assert f"state: kept in {tmp_path / 'gsocks.db'}\n" in told
    assert not (tmp_path / "gsocks.db").exists()
    (tmp_path / "gsocks.db").write_text("not a database, but as long as the head of one" * 3)
    told = gsocks("check", "-c", config(tmp_path)).stdout
    assert f"state: {tmp_path / 'gsocks.db'}: file is not a database ({NOT_KEPT})\n" in told
    told = gsocks("check", "-c", config(tmp_path, state="missing/gsocks.db")).stdout
    assert f"state: {tmp_path / 'missing/gsocks.db'}: no such folder ({NOT_KEPT})\n" in told


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("state: gsocks.db", "state: 'gsocks.db' is not a mapping"),
        ("state: {}", "state.file: needs a file, or a url of a store"),
        ("state: {file: x, prefix: y}", "state.prefix: only a url of a store has it"),
        ("state: {url: 'redis://a/x'}", "state.url: "),
        ("state: {file: gsocks.db, path: x}", "state.path: "),
        ("state: {file: ''}", "state.file: "),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, mistake: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{text}\nlocal: {{listen: '127.0.0.1:0'}}\n")
    ended = gsocks("check", "-c", path)
    assert ended.returncode == 2
    assert mistake in ended.stderr
    assert ended.stderr.count("\n") == 1
