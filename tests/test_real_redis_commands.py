"""What an operator tells one gateway, all gateways do: programs that share a real Redis."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gsocks.admin_client import AdminClient, AdminError
from gsocks.crypto import Key, RecordBox
from gsocks.fleet.changes import SharedChanges
from tests.support.fleets import Gateway, becomes, settings
from tests.support.program import Program, gsocks
from tests.support.redis_server import RedisServer, redis_server
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


# --- as programs -------------------------------------------------------------------------------


@contextmanager
def gateway(
    folder: Path, server: RedisServer, name: str, workers: int = 1, *, key: bool = True
) -> Iterator[AdminClient]:
    """The admin of a gateway that is a process, or several."""
    place = folder / name
    place.mkdir(exist_ok=True)
    shared = f", shared_key_file: {folder / 'shared.key'}" if key else ""
    (place / "c.yaml").write_text(
        f"workers: {workers}\n"
        f"state: {{url: '{server.url}', gateway: {name}{shared}}}\n"
        "admin: {listen: 127.0.0.1:0}\n"
        "local:\n"
        "  listen: 127.0.0.1:0\n"
        "  users: {root: '$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10 + "'}\n"
        "  exits:\n"
        "    - {url: direct, name: berlin-1}\n"
        "    - {url: 'socks5://user:secret@127.0.0.1:9', name: lost-1}\n"
    )
    with Program("-c", place / "c.yaml", cwd=place) as program:
        at = program.wait_for(r"admin: listening on (http://\S+) ", workers)[0][1]
        token = (place / "admin.token").read_text().strip()
        with AdminClient(at, token) as admin:
            yield admin


def test_who_rotates_a_session_is_told_whether_the_gateway_knows_it(
    folder: Path, server: RedisServer
) -> None:
    words = ("ctl", "rotate", "cart", "--token-file", folder / "one" / "admin.token", "--admin")
    with gateway(folder, server, "one", 2) as one, gateway(folder, server, "two"):
        eventually(lambda: len(one.fleet()["members"]) == 3)
        told = gsocks(*words, one._url, cwd=folder)
        assert told.stdout == "cart: not known to this gateway; the others were told\n"
        told = gsocks(*words, one._url, "--json", cwd=folder)
        assert json.loads(told.stdout) == {"name": "cart", "done": True, "known": False}
        assert not told.returncode
    with gateway(folder, server, "one") as one, pytest.raises(AdminError, match="there is no"):
        one.rotate("cart")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gsocks("keygen", tmp_path / "shared.key", cwd=tmp_path)
    return tmp_path


def _exits(admin: AdminClient) -> dict[str, Any]:
    return {each["name"]: each for each in admin.exits()}


def _report_session(admin: AdminClient, session: str) -> None:
    body = {"session": session, "domain": "shop.example", "ok": False}
    admin.request("POST", "/v1/sessions/report", body=body)


def _users(admin: AdminClient) -> set[str]:
    return {each["name"] for each in admin.users()}


def test_every_command_to_one_gateway_reaches_all(folder: Path, server: RedisServer) -> None:
    with gateway(folder, server, "one") as one, gateway(folder, server, "two", 2) as two:
        eventually(lambda: len(one.fleet()["members"]) == 3)

        one.ban("lost-1", 60.0)
        eventually(lambda: _exits(two)["lost-1"]["state"] == "banned")
        two.unban("lost-1")
        eventually(lambda: _exits(one)["lost-1"]["state"] != "banned")
        two.drain("berlin-1")
        eventually(lambda: _exits(one)["berlin-1"]["state"] == "draining")
        one.undrain("berlin-1")
        eventually(lambda: _exits(two)["berlin-1"]["state"] != "draining")
        for _ in range(5):
            one.report("lost-1", "shop.example", ok=False)
        eventually(lambda: two.exit("lost-1")["domains"])
        one.unban("lost-1", "shop.example")
        eventually(lambda: not two.exit("lost-1")["domains"])
        assert not two.rotate("cart")  # it has no such session: the others were told

        one.put_exit("paris-1", url="socks5://user:hush-hush@127.0.0.1:10")
        eventually(lambda: _exits(two).get("paris-1", {}).get("source") == "api")
        two.delete_exit("lost-1")
        eventually(lambda: "lost-1" not in _exits(one))
        one.reset_exit("lost-1")
        eventually(lambda: "lost-1" in _exits(two))

        two.put_user("alice", "pass-word")
        eventually(lambda: "alice" in _users(one))
        one.delete_user("alice")
        eventually(lambda: "alice" not in _users(two))
        one.put_quota("local", per_user=7)
        eventually(lambda: two.quotas()["local"]["per_user"] == 7)

        # one that starts later knows it, and the store has no secret
        with gateway(folder, server, "late") as late:
            assert "paris-1" in _exits(late)
            assert late.quotas()["local"]["per_user"] == 7
        client = server.client()
        kept = [client.dump(each) or b"" for each in client.scan_iter(match="*")]
        assert not any(b"hush-hush" in each or b"argon2" in each for each in kept)
        assert any(b"change" in each for each in client.scan_iter(match="*"))


def test_the_gateways_are_listed_on_the_command_line(folder: Path, server: RedisServer) -> None:
    with gateway(folder, server, "one"), gateway(folder, server, "two") as two:
        eventually(lambda: len(two.fleet()["members"]) == 2)
        token = folder / "two" / "admin.token"
        told = gsocks("ctl", "fleet", "--admin", two._url, "--token-file", token, cwd=folder)
        store, head, *rows = told.stdout.splitlines()
        assert store == f"store {server.url}: ok"
        assert head.split() == (
            ["gateway", "worker", "version", "state", "open", "requests", "cpu", "since", "heard"]
        )
        assert [each.split()[0] for each in rows] == ["one", "two"]
        lines = gsocks(
            *("ctl", "fleet", "--json", "--admin", two._url, "--token-file", token), cwd=folder
        ).stdout.splitlines()
        assert [json.loads(each)["gateway"] for each in lines] == ["one", "two"]


def test_without_a_key_what_is_put_stays_where_it_was_put(
    folder: Path, server: RedisServer
) -> None:
    with (
        gateway(folder, server, "one", key=False) as one,
        gateway(folder, server, "two", key=False) as two,
    ):
        one.put_exit("paris-1", url="socks5://127.0.0.1:10")
        one.ban("lost-1", 60.0)
        eventually(lambda: _exits(two)["lost-1"]["state"] == "banned")
        assert "paris-1" not in _exits(two)
        assert not (folder / "one" / "None-changes").exists()


def test_the_exit_of_a_session_of_another_gateway_is_reported_too(
    folder: Path, server: RedisServer
) -> None:
    with gateway(folder, server, "one") as one:
        with pytest.raises(AdminError, match="has no exit"):
            _report_session(one, "cart")
        with gateway(folder, server, "two"):
            eventually(lambda: len(one.fleet()["members"]) == 2)
            _report_session(one, "cart")


# --- what is sealed ----------------------------------------------------------------------------


class Changes:
    """What is changed at run time."""

    def __init__(self) -> None:
        self.all: dict[str, str] = {}
        self.on_change: Any = None

    def put(self, key: str, text: str) -> None:
        self.all[key] = text
        self.on_change([key])

    def change_keys(self) -> Collection[str]:
        return list(self.all)

    def change_of(self, key: str) -> str | None:
        return self.all.get(key)

    def take_shared(self, changes: Mapping[str, str | None]) -> None:
        for key, text in changes.items():
            if text is None:
                self.all.pop(key, None)
            else:
                self.all[key] = text


@contextmanager
def sharing(server: RedisServer, *keys: Key) -> Iterator[list[tuple[Gateway, Changes]]]:
    """Gateways whose changes are sealed by these keys."""
    found = []
    try:
        for number, key in enumerate(keys):
            one, changes = Gateway(settings(server.url), name=f"gw{number}"), Changes()
            one.fleet.sync.share("", [SharedChanges(changes, RecordBox(key))])
            found.append((one, changes))
        yield found
    finally:
        for one, _ in found:
            one.close()


def test_a_change_that_was_sealed_by_another_key_is_not_taken(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    key = Key.generate()
    with sharing(server, key, key, Key.generate()) as ((_, first), (_, second), (_, third)):
        for number in range(3):
            first.put(f"k{number}", json.dumps("v"))
        becomes(lambda: len(second.all) == 3)
        assert not third.all
        assert len([each for each in caplog.messages if "another key" in each]) == 1


def test_an_older_change_is_not_brought_back_by_who_can_write_to_the_store(
    server: RedisServer,
) -> None:
    key = Key.generate()
    with sharing(server, key, key) as ((one, first), (two, second)):
        first.put("k", '"old"')
        becomes(lambda: second.all.get("k") == '"old"')
        name = "gsocks:1:r::change:k"
        becomes(lambda: server.client().get(name))
        old = server.client().get(name)[24:]
        first.put("k", '"new"')
        becomes(lambda: second.all.get("k") == '"new"')
        stamp = one.fleet.sync._clock.now()
        server.client().set(name, stamp.encode() + old)
        two.fleet.sync._read_all()
        two.fleet.sync.wait(5.0)
        assert second.all["k"] == '"new"'
