"""AddressProbes: what is learned of exits, from which pages, and what that means for sessions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.backoff import Backoff
from gsocks.errors import ExitFailed
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.base import Connected
from gsocks.http.url import WebUrl
from gsocks.request import Command, ExitSelector, Request
from gsocks.rotation.address_probes import AddressProbes
from gsocks.rotation.choices import session_exits
from gsocks.rotation.geo import open_countries
from gsocks.rotation.member import Member, Offer
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.rotation.roster import Changes, Roster
from gsocks.rotation.session import Sessions
from gsocks.settings import CheckSettings, HealthSettings
from tests.support.engine import eventually
from tests.support.mmdb import write_mmdb
from tests.support.waiting import TOO_LONG

SOON = Backoff(0.01, 0.01)
DEST = Address("shop.example", 443)


class _Mirror(BaseHTTPRequestHandler):
    """Answers with the address of its client, or with what ``says`` has for its path."""

    says: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        body = self.says.get(self.path, self.client_address[0]).encode()
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mirror)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    _Mirror.says.clear()
    server.shutdown()
    server.server_close()


def leaving_from(address: str) -> Any:
    spec = ExitSpec.parse({"url": "direct", "source": f"{address}/32"})
    return make_exit(spec, ExitDeps(ALLOW_ALL))


class Labelled:
    """An exit that fails, with that label."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.asked = 0

    def close(self) -> None: ...

    def connect(self, request: Request) -> Connected:
        self.asked += 1
        raise ExitFailed("dead")


def roster_of(*offers: Offer) -> Roster:
    return Roster(offers, HealthSettings(), Random(1))


def offers(*addresses: str) -> list[Offer]:
    return [Offer(leaving_from(each), name=each) for each in addresses]


def named(roster: Roster, name: str) -> Member:
    found = roster.named(name)
    assert found is not None
    return found


@contextmanager
def probing(
    roster: Roster, *urls: str, geo_file: Path | None = None, interval: float = TOO_LONG
) -> Iterator[AddressProbes]:
    settings = CheckSettings(
        ip_urls=tuple(WebUrl.parse(url) for url in urls), ip_interval=interval, timeout=TOO_LONG
    )
    probes = AddressProbes(roster, settings, open_countries(geo_file), Random(1))
    probes.retry = SOON
    probes.start()
    try:
        yield probes
    finally:
        probes.close()


# --- what is learned --------------------------------------------------------------------------


@pytest.mark.usefixtures("never_hangs")
def test_the_address_that_a_page_sees_is_learned(mirror: str) -> None:
    roster = roster_of(*offers("127.0.1.1", "127.0.1.2"))
    with probing(roster, mirror):
        eventually(lambda: [each.address for each in roster] == ["127.0.1.1", "127.0.1.2"])


@pytest.mark.usefixtures("never_hangs")
def test_its_country_is_that_of_an_exit_whose_list_has_told_none(
    mirror: str, tmp_path: Path
) -> None:
    file = tmp_path / "country.mmdb"
    write_mmdb(file, {"5.9.0.0/16": {"country": "DE"}})
    _Mirror.says = {"/": "5.9.1.1"}
    one, two = offers("127.0.1.1", "127.0.1.2")
    roster = roster_of(one, two._replace(country="fr"))
    german = ExitSelector(country="de")
    assert roster.count(german) == 0
    with probing(roster, mirror, geo_file=file):
        eventually(lambda: all(each.outbound for each in roster))
    assert [str(each.outbound) for each in roster] == ["5.9.1.1 (de)"] * 2
    assert [each.country for each in roster] == ["de", "fr"]
    assert roster.matching(german, Command.CONNECT) == [named(roster, "127.0.1.1")]
    # also when the list is loaded again
    roster.update([one._replace(weight=2.0), two])
    assert [each.country for each in roster] == ["de", "de"]
    roster.update([one._replace(country="at"), two])
    assert [each.country for each in roster] == ["at", "de"]
    assert roster.count(german) == 1


@pytest.mark.usefixtures("never_hangs")
def test_an_address_that_changes_is_logged(mirror: str, caplog: pytest.LogCaptureFixture) -> None:
    roster = roster_of(*offers("127.0.1.1"))
    _Mirror.says = {"/": "203.0.113.7"}
    caplog.set_level(logging.INFO, logger="gsocks.checks")
    with probing(roster, mirror, interval=0.01):
        eventually(lambda: [each.address for each in roster] == ["203.0.113.7"])
        _Mirror.says = {"/": "203.0.113.8"}
        eventually(lambda: [each.address for each in roster] == ["203.0.113.8"])
    label = named(roster, "127.0.1.1").label
    assert caplog.messages == [f"exit 127.0.1.1 ({label}) leaves from 203.0.113.8"]


@pytest.mark.usefixtures("never_hangs")
def test_a_page_that_fails_or_tells_nothing_leaves_it_to_the_next(mirror: str) -> None:
    _Mirror.says = {"/nothing": "<html>hello</html>"}
    roster = roster_of(*offers("127.0.1.1"))
    with probing(roster, f"{mirror}/broken", f"{mirror}/nothing", f"{mirror}/good"):
        eventually(lambda: [each.address for each in roster] == ["127.0.1.1"])
    assert [each.health.state(time.monotonic()) for each in roster] == ["unproven"]


@pytest.mark.usefixtures("never_hangs")
def test_exits_that_come_are_asked_and_those_that_go_are_forgotten(mirror: str) -> None:
    one, two = offers("127.0.1.1", "127.0.1.2")
    roster = roster_of(one)
    with probing(roster, mirror) as probes:
        eventually(lambda: len(roster.addresses) == 1)
        probes.update(roster.update([two]))
        eventually(lambda: [each.address for each in roster] == ["127.0.1.2"])
        assert list(roster.addresses.sharing("127.0.1.1")) == []


@pytest.mark.usefixtures("never_hangs")
def test_a_gateway_whose_address_depends_on_the_session_is_not_asked(mirror: str) -> None:
    gateway, other = Labelled("http://{session}:***@gate.example"), Labelled("http://a.example")
    roster = roster_of(Offer(gateway, name="gate"), Offer(other, name="other"))
    with probing(roster, mirror):
        eventually(lambda: other.asked > 3)
    assert gateway.asked == 0


@pytest.mark.usefixtures("never_hangs")
def test_an_exit_that_tells_nothing_is_asked_again_ever_more_rarely() -> None:
    failures: list[int] = []

    class Noting(Backoff):
        def delay(self, failures_before: int, random: Random) -> float:
            failures.append(failures_before)
            return 0.0

    with probing(roster_of(Offer(Labelled("http://a.example"))), "http://b.example") as probes:
        probes.retry = Noting(0.0)
        eventually(lambda: len(failures) > 3)
    assert failures[:3] == [0, 1, 2]


# --- what it means for sessions ---------------------------------------------------------------

KEY = ("", "cart-17")


def settled(count: int, at: str = "exit-0") -> tuple[Roster, Sessions]:
    """Exits of one country, and a session that is at home at one of them."""
    made = [
        Offer(Labelled(f"http://exit-{number}"), name=f"exit-{number}", country="de")
        for number in range(count)
    ]
    roster, sessions = roster_of(*made), Sessions()
    for number, member in enumerate(roster):
        address = f"198.51.{number // 200}.{number % 200}"
        roster.learn(member, OutboundAddress(address, "de"), 0.0)
    learn(roster, at, "203.0.113.7")
    request = Request(Command.CONNECT, DEST, selector=ExitSelector(session="x", exit=at))
    exits = session_exits(roster, request, (), None, 0.0)
    assert sessions.choose(KEY, request.selector, exits, 0.0).name == at
    sessions.served(KEY, at)
    return roster, sessions


def learn(roster: Roster, name: str, address: str) -> None:
    roster.learn(named(roster, name), OutboundAddress(address, "de"), 0.0)


def lose(roster: Roster, name: str) -> None:
    member = named(roster, name)
    member.draining = True
    roster.member_changed(member, 1.0)


def exit_of(roster: Roster, sessions: Sessions) -> str:
    request = Request(Command.CONNECT, DEST, selector=ExitSelector(session="x"))
    exits = session_exits(roster, request, (), None, 1.0)
    return sessions.choose(KEY, request.selector, exits, 1.0).name


@pytest.mark.parametrize("count", [12, 300])
def test_a_session_whose_exit_dies_keeps_its_address_or_else_its_network(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    roster, sessions = settled(count)
    learn(roster, "exit-5", "203.0.113.7")
    learn(roster, "exit-8", "203.0.113.200")
    with caplog.at_level(logging.INFO, logger="gsocks.rotation"):
        lose(roster, "exit-0")
        assert exit_of(roster, sessions) == "exit-5"
        lose(roster, "exit-5")
        assert exit_of(roster, sessions) == "exit-8"
        lose(roster, "exit-8")
        assert exit_of(roster, sessions) not in ("exit-0", "exit-5", "exit-8")
    assert [message.partition(" to ")[2] for message in caplog.messages[:2]] == [
        "exit-5 (the same address, 203.0.113.7): its exit can't be used now",
        "exit-8 (the same network, 203.0.113.0/24): its exit can't be used now",
    ]
    assert "(the same" not in caplog.messages[2]


@pytest.mark.parametrize("count", [12, 300])
def test_a_rotation_leads_to_another_address(count: int) -> None:
    roster, sessions = settled(count)
    for number in range(1, count - 1):
        learn(roster, f"exit-{number}", "203.0.113.7")
    names = set()
    for _ in range(20):
        before = named(roster, sessions.exit_of(KEY, 1.0) or "").address
        sessions.rotate(KEY, 1.0)
        names.add(exit_of(roster, sessions))
        after = named(roster, sessions.exit_of(KEY, 1.0) or "").address
        if count == 12:  # of many exits with one address only some are passed over
            assert before != after
    assert f"exit-{count - 1}" in names or count > 12


def test_a_rotation_among_exits_with_one_address_changes_the_exit_all_the_same() -> None:
    roster, sessions = settled(4)
    for number in range(4):
        learn(roster, f"exit-{number}", "203.0.113.7")
    sessions.rotate(KEY, 1.0)
    assert exit_of(roster, sessions) != "exit-0"


def test_removed_exits_are_no_neighbours_any_more() -> None:
    roster, _ = settled(4)
    learn(roster, "exit-1", "203.0.113.7")
    changes: Changes = roster.update([Offer(Labelled("http://new"), name="new")])
    assert len(changes.removed) == 4
    assert len(roster.addresses) == 0
