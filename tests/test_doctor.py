"""gsocks doctor: one line for each thing, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest

from gsocks import Key, RemoteServer
from gsocks.cli.doctor import FAILED, doctor
from gsocks.cli.one_line import OneLine, loaded
from gsocks.exits import clock_probe
from gsocks.exits.clock_probe import offsets
from gsocks.replay import ReplayGuard
from tests.support.name_server import name_server

pytestmark = pytest.mark.usefixtures("own_log", "never_hangs")

KEY = Key(bytes(range(32)))

Look = Callable[..., tuple[int, str]]


class AnotherClock(ReplayGuard):
    """Of a server whose clock is ahead."""

    ahead_ms = 0

    def admit(self, token: bytes, time_ms: int, key: bytes, now: int | None = None) -> bool:
        return super().admit(token, time_ms - self.ahead_ms, key, now)


@pytest.fixture
def guard() -> Iterator[AnotherClock]:
    made = AnotherClock(started_ms=0)
    yield made
    made.close()


@pytest.fixture
def server(guard: AnotherClock) -> Iterator[RemoteServer]:
    running = RemoteServer("127.0.0.1:0", keys={"me": KEY}, guard=guard)
    running.start()
    yield running
    running.stop(0)


@pytest.fixture
def look(server: RemoteServer, capfd: pytest.CaptureFixture[str]) -> Look:
    def run(*, key: Key = KEY, timeout: float = 1.0) -> tuple[int, str]:
        exit_ = f"gsocks://{key.text()}@{server.bound}"
        settings = loaded(OneLine(section="local", exits=[exit_], settings=["listen=127.0.0.1:0"]))
        status = doctor(None, settings, timeout=timeout)
        return status, capfd.readouterr().out

    return run


def test_a_good_exit_has_the_right_key_and_clock(look: Look) -> None:
    status, printed = look()
    assert status == 0
    assert "answers, key and clock are right" in printed
    assert KEY.text() not in printed
    for line in printed.splitlines():
        assert line.startswith(("ok   ", "warn "))


@pytest.mark.parametrize(
    ("ahead", "told"),
    [
        (120, "behind the server's"),
        (-3600, "1h ahead of the server's"),
        (5 * 3600 + 1800, "5h30m behind the server's"),
    ],
)
def test_a_clock_that_differs_is_told_with_by_how_much(
    look: Look, guard: AnotherClock, ahead: int, told: str
) -> None:
    guard.ahead_ms = 1000 * ahead
    status, printed = look(timeout=0.3)
    assert status == FAILED
    assert "FAIL exit gsocks://" in printed
    assert "the key is right, this machine's clock is about" in printed
    assert told in printed


def test_another_key_is_told(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_probe, "offsets", lambda: [0, 3600])
    status, printed = look(key=Key.generate(), timeout=0.2)
    assert status == FAILED
    assert "it has another key, or is no gsocks server" in printed


def test_an_exit_that_refuses_is_told(server: RemoteServer, look: Look) -> None:
    server.stop(0)
    status, printed = look()
    assert status == FAILED
    assert "Connection refused" in printed


def test_offsets_leave_no_gap_nearby_and_reach_all_time_zones() -> None:
    found = sorted(offsets())
    near = [each for each in found if abs(each) <= 900]
    assert all(
        each + 60 in found or any(each < other <= each + 60 for other in near) for each in near[:-1]
    )
    assert {14 * 3600, -12 * 3600, 20700 - 900} <= set(found)


def test_without_a_config_the_machine_is_looked_at(capfd: pytest.CaptureFixture[str]) -> None:
    with gevent.Timeout(30):
        doctor(None, None, timeout=1.0)
    printed = capfd.readouterr().out
    assert all(f" {what}: " in printed for what in ("descriptors", "somaxconn", "clock", "dns"))


def test_a_name_that_is_not_found_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with name_server() as names:
        wanted = ["listen=127.0.0.1:0", f"dns.servers=[127.0.0.1:{names.port}]"]
        exit_ = "socks5://nowhere.test:1080"
        settings = loaded(OneLine(section="local", exits=[exit_], settings=wanted))
        doctor(None, settings, timeout=1.0)
    printed = capfd.readouterr().out
    assert "FAIL dns: nowhere.test: there is no such name, or it has no address\n" in printed
