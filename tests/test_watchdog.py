"""A long turn of the loop is reported, with what it was at."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import gevent
import pytest

from gsocks.address import Address
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.context import ListenerContext
from gsocks.loop_lag import LONG_TURN
from gsocks.observe import Record
from gsocks.service import watchdog as module
from gsocks.service.watchdog import Watchdog, culprit_of
from gsocks.turns import clock_of_this_hub
from tests.support.engine import MakeLocal, through
from tests.support.waiting import TOO_LONG, eventually

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the watchdog looks at what a turn is at."""
    looked = threading.Event()

    def look(frame: FrameType | None) -> str:
        found = culprit_of(frame)
        looked.set()
        return found

    monkeypatch.setattr(module, "culprit_of", look)
    return looked


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog()
    watchdog.start()
    gevent.sleep(1e-6)
    yield watchdog
    watchdog.stop()


def hog(looked: threading.Event) -> None:
    """A turn of the loop that is long, and in which the watchdog has looked."""
    began = clock_of_this_hub().began
    assert looked.wait(TOO_LONG)
    while time.perf_counter() - began <= LONG_TURN:
        time.sleep(0.001)


def long_turn(looked: threading.Event) -> None:
    looked.clear()
    gevent.sleep(1e-6)
    hog(looked)
    gevent.sleep(1e-6)


def test_a_long_turn_is_a_line_that_names_the_place(
    watchdog: Watchdog, looked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    long_turn(looked)
    (line,) = (each.getMessage() for each in caplog.records)
    assert line.startswith("event loop blocked for ")
    assert Path(threading.__file__).name in line  # where hog() waits


def test_more_long_turns_are_counted_and_told_later(
    watchdog: Watchdog,
    looked: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        long_turn(looked)
    assert len(caplog.records) == 1
    monkeypatch.setattr(module, "REPORT_EVERY", 0.0)
    long_turn(looked)
    assert "(2 other times since the last report)" in caplog.records[1].getMessage()


def test_a_turn_that_does_not_end_is_reported_meanwhile(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STUCK", LONG_TURN)
    gevent.sleep(1e-6)
    eventually(lambda: caplog.records)  # without the loop, which is stuck here
    assert "event loop blocked" in caplog.records[0].getMessage()
    assert "still is: " in caplog.records[0].getMessage()


def test_the_watchdog_sleeps_while_the_loop_is_idle_and_wakes_with_it(
    watchdog: Watchdog, looked: threading.Event
) -> None:
    clock = clock_of_this_hub()
    asleep = []

    def idle() -> None:  # in another thread, so that the loop of this one has nothing to do
        eventually(lambda: clock.wake is not None)
        asleep.append(True)

    gevent.get_hub().threadpool.apply(idle)
    assert asleep
    long_turn(looked)  # which it has to see


def test_a_loop_that_has_nothing_to_do_from_the_start_on_is_idle() -> None:
    clock = clock_of_this_hub()
    gevent.sleep(1e-6)
    watchdog = Watchdog()
    # before the poll: no turn begins for it
    gevent.get_hub().loop.run_callback(watchdog.start)
    gevent.get_hub().threadpool.apply(lambda: eventually(lambda: clock.wake is not None))
    watchdog.stop()


def test_the_client_and_the_exit_are_named_and_the_destination_is_not(
    make_local: MakeLocal, echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    records: list[Record] = []

    def note(_: ListenerContext, record: Record) -> None:
        found.append(culprit_of(sys._getframe(1)))
        records.append(record)

    monkeypatch.setattr(ListenerContext, "report", note)
    local = make_local()
    with through(local.bound, echo_server) as sock:
        sock.close()
    eventually(lambda: found, sleep=gevent.sleep)
    assert found[0].startswith("gsocks/")
    assert f"client {records[0].client} ({records[0].id})" in found[0]
    assert f"exit {records[0].exit}" in found[0]
    assert records[0].dest == str(echo_server)
    assert str(echo_server) not in found[0]


@pytest.fixture
def own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of a file that counts as gsocks' own.

    It lies in another folder: coverage asks for the source of all that has run in the package's.
    """
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "gsocks")
    return str(tmp_path / "gsocks/service/x.py")


def test_a_frame_of_a_library_is_named_with_who_calls_it(own_file: str) -> None:
    def called_by_gsocks(source: str) -> str:
        scope: dict[str, object] = {"look": lambda: culprit_of(sys._getframe())}
        exec(compile(source, own_file, "exec"), scope)
        return str(scope["found"])

    found = called_by_gsocks("def f():\n    return look()\nfound = f()")
    assert (
        found == f"tests/test_watchdog.py:{line_of_look()} (<lambda>) for gsocks/service/x.py:2 (f)"
    )


def test_an_object_that_is_just_being_made_is_not_named(own_file: str) -> None:
    connection = ClientConnection.__new__(ClientConnection)
    scope: dict[str, object] = {"look": lambda: culprit_of(sys._getframe(1)), "half": connection}
    source = "def f(connection):\n    return look()\nfound = f(half)"
    exec(compile(source, own_file, "exec"), scope)
    assert scope["found"] == "gsocks/service/x.py:2 (f)"


def line_of_look() -> int:
    text = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(text, 1) if '"look": lambda' in line)


def test_nothing_of_python_has_no_place() -> None:
    assert culprit_of(None) == "not in Python"
