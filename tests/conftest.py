"""Fixtures that tests ask for by name; none applies by itself."""

from __future__ import annotations

import faulthandler
import gc
from collections.abc import Iterator

import gevent
import pytest
from engine import (
    TOO_LONG,
    Ends,
    both_ends,
    echo,
    eventually,
    living_greenlets,
    open_descriptors,
    serving,
)
from program import web_server
from real import Certified, Door, Doors, both_doors

from gsocks.address import Address
from gsocks.splice import pipes_of_this_hub


@pytest.fixture
def never_hangs() -> Iterator[None]:
    # what blocks the whole process blocks gevent's timeout too
    faulthandler.dump_traceback_later(3 * TOO_LONG, exit=True)
    try:
        with gevent.Timeout(TOO_LONG):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No greenlet and no descriptor outlives the test, and none has died of a fault of ours."""
    faults: list[object] = []
    hub = gevent.get_hub()
    report = hub.handle_error

    def note(context: object, kind: type[BaseException], *rest: object) -> None:
        if not issubclass(kind, hub.NOT_ERROR):
            faults.append((context, kind, rest[0]))
        report(context, kind, *rest)

    monkeypatch.setattr(hub, "handle_error", note)
    pipes_of_this_hub().close()  # which it may keep, for whoever comes next
    descriptors = open_descriptors()
    gc.freeze()  # the collector sees only what is made from here on, which is quick, too
    try:
        yield
        eventually(lambda: not living_greenlets())
        pipes_of_this_hub().close()
        eventually(lambda: open_descriptors() <= descriptors)
    finally:
        gc.unfreeze()
    assert not faults


@pytest.fixture
def echo_server() -> Iterator[Address]:
    with serving(echo) as address:
        yield address


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A local end and a server, connected, that stop when the test is over."""
    with both_ends() as running:
        yield running


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """Programs for real clients to use; see real.py."""
    with both_doors(tmp_path_factory.mktemp("doors")) as running:
        yield running


@pytest.fixture(params=["open", "guarded"])
def door(request: pytest.FixtureRequest, doors: Doors) -> Door:
    """Each of the two in turn."""
    return doors.open if request.param == "open" else doors.guarded


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return Certified(tmp_path_factory.mktemp("certified"))


@pytest.fixture
def web() -> Iterator[int]:
    """A web server of this test's own, so that its port tells its access lines from others'."""
    with web_server() as port:
        yield port


@pytest.fixture
def secure_web(certified: Certified) -> Iterator[int]:
    """The same over TLS."""
    with web_server(tls=certified.server()) as port:
        yield port


def pytest_make_parametrize_id(val: object) -> str | None:
    """A salt is new in each process; the name of its test must be the same in all of them."""
    text = val.decode("latin-1") if isinstance(val, bytes) else val
    return "hash" if isinstance(text, str) and "$argon2" in text else None
