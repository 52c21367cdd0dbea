"""Active checks: which exits they put out, which they don't, and whom they believe."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random

import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import ExitFailed
from gsocks.exits import Connected
from gsocks.exits.direct import DirectExit
from gsocks.http.url import WebUrl
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.checks import Checks
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.roster import Offer, Roster
from gsocks.rotation.views import UNPROVEN, USABLE
from gsocks.settings import CheckSettings, ExpectSettings, HealthSettings
from gsocks.stream import Stream
from tests.support.engine import eventually, living_greenlets, serving
from tests.support.ports import free_port
from tests.support.proxies import certified, microsocks, stage, trusting
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


class Switched:
    """An exit that works or doesn't, as a test wants it to."""

    def __init__(self, label: str, mode: str = "works") -> None:
        self.label = label
        self.mode = mode
        self.asked: list[Address] = []
        self._direct = DirectExit(Dialer(ALLOW_ALL, Resolver()))

    def close(self) -> None:
        pass

    def connect(self, request: Request) -> Connected:
        self.asked.append(request.dest)
        if self.mode == "refuses":
            raise ExitFailed(f"{self.label}: Connection refused")
        if self.mode == "hangs":
            Event().wait()  # until it is killed
        return self._direct.connect(request)


class Site:
    """A web server, whose pages say what a test wants."""

    def __init__(self, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> None:
        self.answer = answer
        self.asked = 0

    def handle(self, sock: socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        self.asked += 1
        sock.sendall(self.answer)


@contextmanager
def site(answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> Iterator[tuple[Site, str]]:
    there = Site(answer)
    with serving(there.handle) as address:
        yield there, f"http://{address}/"


def roster_of(*exits: Switched) -> Roster:
    offers = [Offer(each, name=each.label) for each in exits]
    return Roster(offers, HealthSettings(), Random(1))


def checking(roster: Roster, *urls: str, **settings: float) -> Checks:
    """Checks that are done when a test says so."""
    parsed = tuple(WebUrl.parse(url) for url in urls)
    every = {"interval": 1000.0, "timeout": TOO_LONG, **settings}
    check_settings = CheckSettings(urls=parsed, **every)  # type: ignore[arg-type]
    evidence = Evidence(roster, HealthSettings())
    return Checks(roster, evidence, check_settings, Random(1), trust=trusting)


@contextmanager
def running(checks: Checks) -> Iterator[Checks]:
    checks.start()
    try:
        yield checks
    finally:
        checks.close()


def all_checked(checks: Checks, roster: Roster) -> bool:
    """Whether each exit was checked, and none is at present."""
    states, waiting = checks._states, {member for _, _, member in checks._due}
    return len(states) == len(roster) == len(waiting) and all(
        state.turn > 0 for state in states.values()
    )


def check_all(checks: Checks, roster: Roster) -> None:
    """One check of every exit, as they come at a start."""
    with running(checks):
        eventually(lambda: all_checked(checks, roster))


def down(roster: Roster) -> list[str]:
    return [member.name for member in roster if member.health.is_down]


# --- who is down ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
def test_an_exit_that_fails_by_two_urls_is_down(fault: str) -> None:
    dead = Switched("dead", fault)
    roster = roster_of(Switched("a"), dead, Switched("b"))
    with site() as (_, one), site() as (_, other):
        check_all(checking(roster, one, other, timeout=1.0), roster)
    assert down(roster) == ["dead"]
    assert len(set(dead.asked)) == 2


def test_one_url_is_asked_twice_before_an_exit_is_down() -> None:
    dead = Switched("dead", "refuses")
    roster = roster_of(Switched("alive"), dead)
    with site() as (_, only):
        check_all(checking(roster, only), roster)
    assert down(roster) == ["dead"]
    assert len(dead.asked) == 2


def test_what_was_unproven_is_proven_by_a_check() -> None:
    roster = roster_of(Switched("a"))
    with site() as (_, url):
        check_all(checking(roster, url), roster)
    assert [member.health.state(0.0) for member in roster] == ["ok"]


def test_a_dead_url_takes_no_exit_down(caplog: pytest.LogCaptureFixture) -> None:
    roster = roster_of(Switched("a"), Switched("b"), Switched("c"))
    with site() as (there, alive):
        check_all(checking(roster, f"http://127.0.0.1:{free_port()}/", alive), roster)
        assert there.asked >= 3
    assert down(roster) == []


def test_if_the_only_url_is_dead_no_exit_is_down_and_it_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exits = [Switched(name) for name in "abc"]
    roster = roster_of(*exits)
    url = f"http://127.0.0.1:{free_port()}/?key=s3cret"
    with running(checking(roster, url, interval=0.02)):
        eventually(lambda: all(len(each.asked) >= 8 for each in exits))
    assert down(roster) == []
    told = [record.getMessage() for record in caplog.records if "check URL" in record.getMessage()]
    assert len(told) == 1
    assert "fails through all exits" in told[0]
    assert "s3cret" not in caplog.text


def test_a_url_that_works_again_is_believed_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dead = Switched("dead", "refuses")
    roster = roster_of(Switched("alive"), dead)
    with (
        site(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as (there, url),
        running(checking(roster, url, interval=0.02)),
    ):
        eventually(lambda: "no exit is ejected" in caplog.text)
        assert down(roster) == []
        there.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        eventually(lambda: down(roster) == ["dead"])
    assert "works again" in caplog.text


def test_if_all_exits_fail_none_is_down() -> None:
    roster = roster_of(*[Switched(name, "refuses") for name in "abc"])
    with site() as (_, one), site() as (_, other):
        check_all(checking(roster, one, other), roster)
    assert down(roster) == []


def test_an_exit_that_works_by_one_of_two_urls_is_not_down() -> None:
    """A site may have banned it."""

    class BannedBy(Switched):
        def connect(self, request: Request) -> Connected:
            self.mode = "refuses" if request.dest == enemy else "works"
            return super().connect(request)

    with site() as (_, one), site() as (_, other):
        enemy = WebUrl.parse(one).address
        roster = roster_of(BannedBy("banned"), Switched("a"), Switched("b"))
        for _ in range(3):
            check_all(checking(roster, one, other), roster)
    assert down(roster) == []


def test_an_exit_comes_back_by_its_next_check(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dead = Switched("dead", "refuses")
    roster = roster_of(Switched("alive"), dead)
    with site() as (_, url), running(checking(roster, url, interval=0.02)):
        eventually(lambda: down(roster) == ["dead"])
        dead.mode = "works"
        eventually(lambda: down(roster) == [])
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"exit dead (dead) is down: {url}...: dead: Connection refused",
        "exit dead (dead) is up again",
    ]


# --- what an answer must be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "wanted", "well"),
    [
        (200, None, True),
        (404, None, True),
        (429, None, True),
        (500, None, False),
        (503, None, False),
        (204, 204, True),
        (200, 204, False),
        (503, 503, True),
    ],
)
def test_any_status_below_500_is_an_answer_or_the_one_that_is_wanted(
    status: int, wanted: int | None, well: bool
) -> None:
    answer = f"HTTP/1.1 {status} Some Reason\r\nContent-Length: 0\r\n\r\n".encode()
    roster = roster_of(Switched("a"))
    with site(answer) as (_, url):
        wants = CheckSettings(urls=(WebUrl.parse(url),), expect=ExpectSettings(status=wanted))
        checks = Checks(roster, Evidence(roster, HealthSettings()), wants, Random(1))
        checks.start()
        eventually(lambda: all_checked(checks, roster))
        checks.close()
    assert [member.health.has_worked for member in roster] == [well]


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-"])
def test_an_exit_that_brings_no_whole_answer_is_down(answer: bytes) -> None:
    """It says that it is connected, which it is not, or not to where it was asked for."""
    with site() as (_, url), site(answer) as (_, elsewhere):

        class Liar(Switched):
            def connect(self, request: Request) -> Connected:
                return super().connect(request._replace(dest=WebUrl.parse(elsewhere).address))

        roster = roster_of(Switched("honest"), Liar("liar"))
        check_all(checking(roster, url), roster)
    assert down(roster) == ["liar"]


def test_pages_are_asked_for_over_tls_through_a_real_proxy() -> None:
    def handle(stream: Stream) -> None:
        while b"\r\n\r\n" not in stream.read():
            pass
        stream.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        stream.write_eof()

    with microsocks() as proxy, stage(handle, certified("127.0.0.1")) as web:
        exit_group = make_exit_group([f"socks5://{proxy}", f"socks5://127.0.0.1:{free_port()}"])
        checks = checking(exit_group.roster, f"https://{web}/")
        check_all(checks, exit_group.roster)
    assert [member.health.is_down for member in exit_group.roster] == [False, True]


# --- when -------------------------------------------------------------------------------------


def test_a_failing_exit_is_checked_ever_more_rarely_up_to_16_intervals() -> None:
    dead = Switched("dead", "refuses")
    roster = roster_of(dead)
    checks = checking(roster, f"http://127.0.0.1:{free_port()}/")
    (member,) = roster
    checks._new.append([member])
    checks._add_new()
    pauses = []
    for _ in range(20):
        checks._check(member)
        pauses.append(round(max(checks._due)[0] - time.monotonic()))
    for number, pause in enumerate(pauses, start=1):
        assert min(number, 16) * 900 <= pause <= min(number, 16) * 1100
    assert len(set(pauses[15:])) > 1, "no two at the same time"


def test_a_check_under_way_ends_when_the_checks_are_closed() -> None:
    """nothing_left would find its greenlet."""
    hanging = Switched("hanging", "hangs")
    roster = roster_of(hanging)
    with site() as (_, url), running(checking(roster, url)):
        eventually(lambda: hanging.asked)
    eventually(lambda: not living_greenlets(), within=TOO_LONG / 4)


def test_checks_may_be_closed_while_exits_wait_for_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nothing_left would find the failure of the loop."""
    roster = roster_of(Switched("first"), Switched("second"))
    with site() as (_, url):
        checks = checking(roster, url)
        closed = Event()

        def close_meanwhile(*_: object) -> None:
            checks.close()  # as another greenlet does while the full pool blocks
            closed.set()

        monkeypatch.setattr(checks._pool, "spawn", close_meanwhile)
        checks.start()
        closed.wait()
    eventually(lambda: not living_greenlets(), within=TOO_LONG / 4)


def test_no_more_than_so_many_are_asked_at_a_time() -> None:
    at_once: list[int] = []
    waiting: set[int] = set()
    go = Event()

    class Slow(Switched):
        def connect(self, request: Request) -> Connected:
            waiting.add(id(self))
            at_once.append(len(waiting))
            go.wait()
            waiting.discard(id(self))
            return super().connect(request)

    roster = roster_of(*[Slow(f"{number}") for number in range(100)])
    with site() as (_, url):
        checks = checking(roster, url, timeout=10.0)
        with running(checks):
            eventually(lambda: len(waiting) == Checks.max_concurrent)
            go.set()
            eventually(lambda: all_checked(checks, roster))
    assert max(at_once) == Checks.max_concurrent


def test_exits_that_come_later_are_checked_and_those_that_go_are_forgotten() -> None:
    first, second = Switched("first"), Switched("second")
    roster = roster_of(first)
    with site() as (_, url), running(checking(roster, url, interval=0.02)) as checks:
        eventually(lambda: first.asked)
        checks.update(roster.update([Offer(second)]))
        eventually(lambda: second.asked)
        eventually(lambda: [member.exit for member in checks._states] == [second])
        asked = len(first.asked)
        seen = len(second.asked)
        eventually(lambda: len(second.asked) > seen + 2)
        assert len(first.asked) == asked


def test_an_exit_that_came_and_went_before_its_turn_is_not_checked() -> None:
    stays, passes = Switched("stays"), Switched("passes")
    roster = roster_of(stays)
    with site() as (_, url), running(checking(roster, url, interval=0.02)) as checks:
        eventually(lambda: stays.asked)
        came = roster.update([Offer(stays), Offer(passes)])
        went = roster.update([Offer(stays)])
        checks.update(came)
        checks.update(went)
        seen = len(stays.asked)
        eventually(lambda: len(stays.asked) > seen + 2)
        assert passes.asked == []


def test_among_many_exits_one_that_passes_its_checks_is_found_for_a_cross_check() -> None:
    exits = [Switched(f"{number}", "refuses") for number in range(1000)]
    exits[700].mode = "works"
    roster = roster_of(*exits)
    members = list(roster)
    with site() as (_, url):
        checks = checking(roster, url)
        checks._new.append(members)
        checks._add_new()
        for number in (700, 3):
            checks._check(members[number])
    assert members[3].health.is_down
    assert not members[700].health.is_down
    checks.update(roster.update([Offer(exits[3])]))
    assert checks._for_cross_check(members[3]) == []


def test_exits_that_work_are_the_first_that_a_cross_check_tries() -> None:
    roster = roster_of(*(Switched(f"{number}") for number in range(40)))
    failed, *others = roster
    others[30].health.succeeded(0.0)
    assert checking(roster)._for_cross_check(failed)[0] is others[30]


def test_checks_that_are_started_again_check_each_exit_again() -> None:
    alive = Switched("alive")
    with site() as (_, url):
        checks = checking(roster_of(alive), url)
        for _ in range(2):
            alive.asked.clear()
            checks.start()
            eventually(lambda: len(alive.asked) == 1)
            checks.close()


def test_urls_take_turns() -> None:
    alive = Switched("alive")
    roster = roster_of(alive)
    with ExitStack() as sites:
        urls = [sites.enter_context(site())[1] for _ in range(3)]
        with running(checking(roster, *urls, interval=0.02)):
            eventually(lambda: len(alive.asked) >= 6)
    expected = [WebUrl.parse(url).address for url in urls]
    assert alive.asked[:6] == expected * 2


def test_without_urls_nothing_is_asked_for() -> None:
    alive = Switched("alive")
    checks = checking(roster_of(alive))
    running = living_greenlets()
    checks.start()
    assert living_greenlets() == running
    checks.close()
    assert alive.asked == []


def test_checks_run_as_long_as_a_inbound_does() -> None:
    with site() as (there, url):
        settings = CheckSettings(urls=(WebUrl.parse(url),), interval=0.02)
        exit_group = make_exit_group(["direct"], ["allow all"], checks=settings)
        inbounds = [LocalServer(("127.0.0.1", 0), exit_group) for _ in range(2)]
        for inbound in inbounds:
            inbound.start()
        inbounds[0].stop(0)
        asked = there.asked
        eventually(lambda: there.asked > asked + 2)
        inbounds[1].stop(0)  # nothing is left of them then


# --- pages that differ ------------------------------------------------------------------------


class Elsewhere(Switched):
    """An exit that brings every request to another place while it is told to."""

    def __init__(self, label: str, place: Address) -> None:
        super().__init__(label)
        self.place: Address | None = place

    def connect(self, request: Request) -> Connected:
        return super().connect(request._replace(dest=self.place or request.dest))


def test_an_exit_whose_page_differs_is_doubted_until_it_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    portal = b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n<html>log in here</html>"
    with site() as (_, url), site(portal) as (_, other):
        odd = Elsewhere("odd", WebUrl.parse(other).address)
        roster = roster_of(*(Switched(name) for name in "abcdef"), odd)
        with running(checking(roster, url, interval=0.02)):
            (member,) = [each for each in roster if each.name == "odd"]
            eventually(lambda: member.different_page)
            assert down(roster) == []
            assert {each.tier for each in roster if each is not member} == {USABLE}
            assert member.tier == UNPROVEN
            odd.place = None
            eventually(lambda: member.tier == USABLE)
    told = [each.getMessage() for each in caplog.records if "doubted" in each.getMessage()]
    assert len(told) == 1
    assert re.search("status 200, HTML, where . of . get status 204, empty", told[0])
    assert down(roster) == []


def test_the_page_of_a_removed_exit_is_forgotten() -> None:
    with site() as (_, url):
        roster = roster_of(*(Switched(name) for name in "abcdef"))
        checks = checking(roster, url)
        check_all(checks, roster)
        (there,) = checks._sites
        assert len(there._pages) == 6
        changes = roster.update([Offer(Switched("new"), name="new")])
        checks.update(changes)
        assert len(there._pages) == 0


def test_a_page_that_is_not_as_expected_is_a_failure() -> None:
    with site(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno") as (_, url), site() as (_, well):
        wrong = Elsewhere("wrong", WebUrl.parse(url).address)
        roster = roster_of(Switched("a"), wrong)
        wants = CheckSettings(urls=(WebUrl.parse(well),), expect=ExpectSettings(pattern="^$"))
        checks = Checks(roster, Evidence(roster, HealthSettings()), wants, Random(1))
        check_all(checks, roster)
    assert down(roster) == ["wrong"]
