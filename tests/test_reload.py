"""Reloads of a running service, one after the other."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from gsocks import config
from gsocks.access.users import Users
from gsocks.service import service as module
from gsocks.service.places import Move
from gsocks.service.service import Service
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")


def test_of_two_reloads_at_once_the_config_that_was_written_last_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.yaml"

    def write(key: str) -> None:
        path.write_text(f"local: {{listen: '127.0.0.1:0', exits: ['{key}://127.0.0.1:9']}}")

    write("socks5")
    service = Service(path, config.load(path))
    first_is_slow = Event()
    served: list[str] = []

    def read_users(local: config.Local, *_: object) -> Users | None:
        kind = local.exits[0].scheme
        if kind == "http" and not served:
            first_is_slow.wait(TOO_LONG)
        return None

    def replace_exits(service: Service) -> bool:
        local = service._settings.local
        assert local is not None
        served.append(local.exits[0].scheme)
        return True

    # nothing listens here, and nothing is to
    monkeypatch.setattr(Service, "_move", lambda self, _: Move(self._at, [], []))
    monkeypatch.setattr(module, "make_users", read_users)
    monkeypatch.setattr(Service, "_replace_exits", replace_exits)
    write("http")
    first = gevent.spawn(service._reload)
    gevent.idle()
    write("socks4")
    second = gevent.spawn(service._reload)
    gevent.idle()
    first_is_slow.set()
    gevent.joinall([first, second], raise_error=True)
    assert served == ["http", "socks4"]
