"""Fixtures that tests ask for by name; none applies by itself."""

from __future__ import annotations

import faulthandler
import gc
import logging
import signal
from collections.abc import Callable, Iterator
from types import TracebackType

import gevent
import hypothesis
import pytest

from gsocks.address import Address
from gsocks.exits.proxy import ProxyExit
from gsocks.net.greenlets import GreenletPool
from gsocks.net.splice import pipes_of_this_hub
from tests.support import ports
from tests.support.engine import (
    Ends,
    MakeLocal,
    Seen,
    both_ends,
    echo,
    eventually,
    living_greenlets,
    local_listeners,
    open_descriptors,
    serving,
)
from tests.support.mirror import mirror_server
from tests.support.program import web_server
from tests.support.proxy_exits import connect_by_hub
from tests.support.real import Certified, Listener, Listeners, both_inbounds
from tests.support.two_ways import Spawned
from tests.support.waiting import TOO_LONG
from tests.support.web import Talk, Web, http_inbound, talk_to
from tests.support.web import web as played_web

# the same examples each time (other ones are what the fuzzers try), however busy the machine is
hypothesis.settings.register_profile(
    "gsocks",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("gsocks")


def pytest_configure() -> None:
    """Give SIGINT its default back.

    A shell starts a background job with SIGINT ignored, Python leaves that as it is, and every
    process started by a test would inherit it: Ctrl-C could not end any of them.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exempt what collecting has made from garbage collection, as it lasts as long as the tests.

    A full collection took 0.7 s among 13,000 tests, and a test of what is left behind makes two.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    ports.release()


@pytest.fixture
def own_log() -> Iterator[None]:
    """What a command of the program makes of gsocks' logger is undone when the test is over."""
    log = logging.getLogger("gsocks")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


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

    def note(
        context: object,
        kind: type[BaseException],
        value: BaseException | str | None,
        trace: TracebackType | None,
    ) -> None:
        if not issubclass(kind, hub.NOT_ERROR):
            faults.append((context, kind, value))
        report(context, kind, value, trace)

    monkeypatch.setattr(hub, "handle_error", note)
    pipes_of_this_hub().close()  # which it may keep for the next connections
    descriptors = open_descriptors()
    gc.freeze()  # the collector sees only what is made from here on, which is quick, too
    try:
        yield
        try:
            eventually(lambda: not living_greenlets())
        except AssertionError:
            raise AssertionError(f"still alive: {living_greenlets()}") from None
        pipes_of_this_hub().close()
        eventually(lambda: open_descriptors() <= descriptors)
    finally:
        gc.unfreeze()
    assert not faults


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Spawned:
    """What connections have had done in greenlets."""
    found: Spawned = []
    spawn = GreenletPool.spawn

    def noted(self: GreenletPool, function: Callable[..., object], *args: object) -> None:
        found.append(function)
        spawn(self, function, *args)

    monkeypatch.setattr(GreenletPool, "spawn", noted)
    return found


@pytest.fixture(params=["straight", "in a greenlet"])
def is_straight(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> bool:
    """Each of the two ways in turn; whether it is the hub's."""
    if request.param != "straight":
        caplog.set_level(logging.DEBUG, "gsocks.connection")
    return bool(request.param == "straight")


@pytest.fixture
def echo_server() -> Iterator[Address]:
    with serving(echo) as address:
        yield address


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def make_local(seen: Seen) -> Iterator[MakeLocal]:
    """Starts local listeners, whose records ``seen`` has; they stop when the test is over."""
    with local_listeners(seen) as make:
        yield make


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A local end and a server, connected, that stop when the test is over."""
    with both_ends() as running:
        yield running


@pytest.fixture(scope="session")
def inbounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    """Programs for real clients to use; see real.py."""
    with both_inbounds(tmp_path_factory.mktemp("inbounds")) as running:
        yield running


@pytest.fixture(params=["open", "guarded"])
def inbound(request: pytest.FixtureRequest, inbounds: Listeners) -> Listener:
    """Each of the two in turn."""
    return inbounds.open if request.param == "open" else inbounds.guarded


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return Certified(tmp_path_factory.mktemp("certified"))


@pytest.fixture
def web() -> Iterator[int]:
    """A web server of this test's own, so that its port tells its access lines from others'."""
    with web_server() as port:
        yield port


@pytest.fixture
def mirror() -> Iterator[str]:
    """The URL of a page that tells which address asks for it, and so which exit."""
    with mirror_server() as url:
        yield url


@pytest.fixture
def origin() -> Iterator[Web]:
    """A web server whose connections the test plays."""
    with played_web() as running:
        yield running


@pytest.fixture
def client() -> Iterator[Talk]:
    """A client of an HTTP listener, which the test plays too."""
    with http_inbound() as (running, _), talk_to(running) as talk:
        yield talk


@pytest.fixture
def secure_web(certified: Certified) -> Iterator[int]:
    """The same over TLS."""
    with web_server(tls=certified.server()) as port:
        yield port


def pytest_make_parametrize_id(val: object) -> str | None:
    """A salt is new in each process; the name of its test must be the same in all of them."""
    text = val.decode("latin-1") if isinstance(val, bytes) else val
    return "hash" if isinstance(text, str) and "$argon2" in text else None


@pytest.fixture(params=["greenlet", "hub"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies are asked by a greenlet, or by the hub where that is possible."""
    if request.param == "hub":
        monkeypatch.setattr(ProxyExit, "connect", connect_by_hub)
