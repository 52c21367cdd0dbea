"""The admin API of the running program: its token, its workers, its config."""

from __future__ import annotations

import json
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from gsocks.access.users import hash_password
from gsocks.admin_client import AdminClient
from tests.support.program import Program, gsocks
from tests.support.waiting import TOO_LONG

CONFIG = """
workers: {workers}
admin: {{listen: 127.0.0.1:0}}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  exits: [{{url: direct, name: here}}, {{url: 'socks5://127.0.0.1:9', name: there, tags: [x]}}]
"""


class Admin:
    """A client that has the token."""

    def __init__(self, program: Program, token: Path) -> None:
        self.at = program.wait_for(r"admin: listening on (http://\S+) .* in (.*)\)$")[0][1]
        self.token = token.read_text().strip()

    def ask(self, target: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self.at + target,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=TOO_LONG) as answer:
            return json.load(answer)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_the_admin_does_holds_for_every_worker(tmp_path: Path, workers: int) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=workers))
    with Program("-c", tmp_path / "c.yaml") as program:
        program.wait_for(r"local: listening on ", workers)
        token = tmp_path / "admin.token"
        admin = Admin(program, token)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert admin.token not in program.log
        program.wait_for("admin: listening on ", workers)
        # whichever worker answers, it tells the same
        assert {admin.ask("/v1/status")["workers"] for _ in range(2 * workers)} == {workers}
        assert admin.ask("/v1/exits/there/drain", {}) == {"done": True}
        for _ in range(2 * workers):
            states = {each["name"]: each["state"] for each in admin.ask("/v1/exits")["items"]}
            assert states == {"here": "unproven", "there": "draining"}
        own = [each["listen"] for each in admin.ask("/v1/status")["inbounds"].values()]
        assert len(own) == 1
        assert admin.ask("/v1/status")["loop"]["turns"] > 0
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{admin.at}/v1/exits", timeout=TOO_LONG)
        program.process.terminate()
        assert program.end() == 0


def test_an_admin_whom_others_could_hear_is_refused_unless_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "admin: {listen: 0.0.0.0:9090}\nlocal: {listen: 127.0.0.1:1080}\n"
    )
    done = gsocks("check", "-c", tmp_path / "c.yaml")
    assert done.returncode == 2
    assert "admin.listen: 0.0.0.0:9090 can be reached by other machines" in done.stderr
    assert "allow_remote: true" in done.stderr
    (tmp_path / "c.yaml").write_text(
        "admin: {listen: 0.0.0.0:9090, allow_remote: true}\nlocal: {listen: 127.0.0.1:1080}\n"
    )
    assert gsocks("check", "-c", tmp_path / "c.yaml").returncode == 0


def test_a_token_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1))
    (tmp_path / "admin.token").write_text("my password")
    for command in ((), ("check",)):
        done = gsocks(*command, "-c", tmp_path / "c.yaml")
        assert done.returncode == 2
        assert "admin.token: not a token" in done.stderr
        assert "my password" not in done.stderr


def test_check_makes_no_token(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1))
    assert gsocks("check", "-c", tmp_path / "c.yaml").returncode == 0
    assert not (tmp_path / "admin.token").exists()


def test_what_is_put_is_there_in_every_worker_and_after_a_restart(tmp_path: Path) -> None:
    more = f"  users: {{known: '{hash_password(b'x')}'}}\nstate: {{file: state.db}}\n"
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=2) + more)
    for is_first in (True, False):
        with Program("-c", tmp_path / "c.yaml", cwd=tmp_path) as program:
            program.wait_for("admin: listening on ", 2)
            admin = Admin(program, tmp_path / "admin.token")
            with AdminClient(admin.at, admin.token) as client:
                if is_first:
                    client.put_exit("new", url="socks5://127.0.0.1:8")
                    client.put_exit("here", url="socks5://127.0.0.1:7")
                    client.reset_exit("here")
                    client.put_user("adam", "a password")
                    client.put_user("eve", "a password")
                    client.delete_user("eve")
                    client.put_quota("local", per_user=3)
                assert client.quotas()["local"]["per_user"] == 3
            for _ in range(6):
                found = {each["name"]: each["source"] for each in admin.ask("/v1/exits")["items"]}
                assert found == {"here": "config", "there": "config", "new": "api"}
                told = admin.ask("/v1/users")
                assert {each["name"]: each["source"] for each in told["items"]} == {
                    "known": "config",
                    "adam": "api",
                }
                assert told["quotas"]["local"]["per_user"] == 3
            program.process.terminate()
            assert program.end() == 0
