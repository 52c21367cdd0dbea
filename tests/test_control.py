"""What the admin API changes in the service: exits, users and quotas, and what is stored of it."""

from __future__ import annotations

import stat
from pathlib import Path
from random import Random

import pytest

from gsocks import config
from gsocks.access.rules import ALLOW_ALL
from gsocks.access.users import Users
from gsocks.admin.problems import ApiError
from gsocks.admin.shapes import ExitTerms, Quota, UserSecret
from gsocks.errors import LimitReached
from gsocks.exits import ExitDeps
from gsocks.inbound.quota import UserQuota
from gsocks.net.resolve import Resolver
from gsocks.rotation.apply import ExitUpdater
from gsocks.rotation.build import make_offers
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.watch import ExitListWatcher
from gsocks.service.control import ServiceControl, spec_of
from gsocks.settings import Limits

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

HASH = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "dGFn" * 10 + "dGE"
TEXT = f"""
local:
  listen: 127.0.0.1:0
  users: {{eve: '{HASH}'}}
  exits: [{{url: direct, name: here}}, {{url: 'socks5://u:secret@10.0.0.1:1080', name: far}}]
"""


class Worker:
    """What a worker has of the service."""

    def __init__(self, path: Path | None) -> None:
        settings = config.parse(TEXT, Path())
        assert settings.local is not None
        deps = ExitDeps(ALLOW_ALL, Resolver())
        watcher = ExitListWatcher(settings.local.exits, ())
        self.group = ExitGroup(make_offers(watcher.begin(), deps), ALLOW_ALL, random=Random(1))
        self.updater = ExitUpdater("local", self.group, deps, watcher)
        self.users = Users(settings.local.users)
        self.quota = UserQuota(Limits())
        self.control = ServiceControl(
            "c.yaml", lambda: settings, lambda: settings, list, path, lasting=True, in_worker=False
        )
        self.control.groups = {"local": self.group}
        self.control.updaters = {"local": self.updater}
        self.control.user_table = self.users
        self.control.user_quotas = {"local": self.quota}
        self.control.begin({"local": settings.local.limits})

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.group.roster]


@pytest.mark.parametrize("is_stored", [False, True])
def test_exits_are_added_replaced_removed_and_as_the_config_says_again(
    tmp_path: Path, is_stored: bool
) -> None:
    worker = Worker(tmp_path / "changes" if is_stored else None)
    control = worker.control
    control.put_exit("local", "new", ExitTerms(url="http://10.0.0.2:80", tags=["x"]))
    control.put_exit("local", "far", ExitTerms(url="socks5://10.0.0.3"))
    control.delete_exit("local", "here")
    assert sorted(worker.names) == ["far", "new"]
    far = worker.group.roster.named("far")
    assert far is not None
    assert far.label == "socks5://10.0.0.3:1080"
    assert worker.updater.source_of(far) == "api"
    control.reset_exit("local", "far")
    control.reset_exit("local", "here")
    assert sorted(worker.names) == ["far", "here", "new"]
    assert "secret" not in repr(control.config())


def test_what_was_changed_is_there_after_a_restart_and_in_other_workers(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    first, second = Worker(path), Worker(path)
    first.control.put_exit("local", "new", ExitTerms(url="http://u:p@10.0.0.2:80"))
    first.control.put_user("adam", UserSecret(hash=HASH))
    first.control.put_quota("local", Quota(per_user=1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second.control.take_changes()
    second.control.delete_exit("local", "far")
    for worker in (second, Worker(path)):
        assert worker.names == ["here", "new"]
        assert worker.users.names == ["adam", "eve"]
        worker.quota.acquire("eve")
        with pytest.raises(LimitReached):
            worker.quota.acquire("eve")
        worker.quota.release("eve")
        assert worker.quota.users == {}


def test_a_file_that_is_damaged_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "changes"
    path.write_text("{")
    worker = Worker(path)
    assert worker.names == ["here", "far"]
    assert "is not what gsocks has written" in caplog.text
    with pytest.raises(ApiError, match="is not what gsocks has written"):
        worker.control.delete_exit("local", "far")
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    "terms",
    [
        ExitTerms(url="gsocks://10.0.0.1?key_file=/etc/passwd"),
        ExitTerms(url="https://10.0.0.1:443?ca=/etc/passwd"),
        ExitTerms(url="socks5://10.0.0.1", via="gsocks://10.0.0.1?key_file=/etc/passwd"),
    ],
)
def test_an_exit_that_is_put_names_no_file_of_this_machine(terms: ExitTerms) -> None:
    with pytest.raises(ApiError, match="this machine") as caught:
        spec_of("x", terms)
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("name", "url", "status"),
    [
        ("Big", "socks5://10.0.0.9", 422),
        ("a b", "socks5://10.0.0.9", 422),
        ("new", "ftp://10.0.0.9", 422),
        ("new", "socks5://u:secret@10.0.0.1:1080", 409),
    ],
)
def test_an_exit_that_can_not_be_is_refused_and_nothing_changes(
    name: str, url: str, status: int
) -> None:
    worker = Worker(None)
    with pytest.raises(ApiError) as caught:
        worker.control.put_exit("local", name, ExitTerms(url=url))
    assert caught.value.status == status
    assert "secret" not in str(caught.value)
    assert worker.names == ["here", "far"]


def test_the_last_exit_stays() -> None:
    worker = Worker(None)
    worker.control.delete_exit("local", "far")
    with pytest.raises(ApiError, match="no exits") as caught:
        worker.control.delete_exit("local", "here")
    assert caught.value.status == 409
    assert worker.names == ["here"]


def test_users_are_added_and_removed() -> None:
    worker = Worker(None)
    worker.control.put_user("adam", UserSecret(password="a password"))
    assert worker.users.verify("adam", b"a password")
    assert worker.control.users() == {"adam": "api", "eve": "config"}
    worker.control.delete_user("eve")
    assert worker.users.names == ["adam"]
    for name, secret in (
        ("x", UserSecret()),
        ("x", UserSecret(password="a", hash=HASH)),
        ("x", UserSecret(hash="no")),
        ("a:b", UserSecret(password="a")),
    ):
        with pytest.raises(ApiError):
            worker.control.put_user(name, secret)


def test_the_specs_of_exits_are_shown_without_secrets() -> None:
    worker = Worker(None)
    shown = {each.key: each.value for each in worker.control.config().keys}
    assert shown["local.users.eve"] == "***"
    assert shown["local.exits[1]"] == "far: socks5://u:***@10.0.0.1:1080"
    assert worker.control.check().changes == []
