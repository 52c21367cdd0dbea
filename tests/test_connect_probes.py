"""Connect probes: which exits are asked, what their answers are taken for, and when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest.mock import patch

import gevent
import pytest
from gevent.event import Event

from gsocks.address import UNSPECIFIED, Address
from gsocks.backoff import Backoff
from gsocks.errors import (
    ExitDoubtful,
    ExitFailed,
    ExitHungUp,
    Forbidden,
    GsocksError,
    HostUnreachable,
    NameNotFound,
)
from gsocks.exits.base import Connected
from gsocks.exits.spec import ExitSpec
from gsocks.http.url import WebUrl
from gsocks.request import Command, Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.connect_probes import ConnectProbes
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Member, Offer, Roster
from gsocks.settings import CheckSettings, HealthSettings, Timeouts
from gsocks.stream import SocketStream, Stream
from tests.support.engine import eventually, living_greenlets
from tests.support.proxies import hang, microsocks, stage, tinyproxy, unreachable
from tests.support.stream_contract import tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: soon enough for a test to see several probes
SOON = Backoff(0.01, 0.01)
WANTED = Request(Command.CONNECT, Address("shop.example", 443))


class Asked:
    """An exit that answers probes as a test wants it to."""

    def __init__(self, label: str, answer: GsocksError | None = None) -> None:
        self.label = label
        #: what it raises; None: it waits until it is killed
        self.answer = answer
        self.asked = 0

    def close(self) -> None: ...

    def connect(self, request: Request) -> Connected:
        assert request.dest.host.endswith(".invalid")
        self.asked += 1
        if self.answer is None:
            Event().wait()
        assert self.answer is not None
        raise self.answer


class YesSayer(Asked):
    """An exit that says that it has connected anything."""

    def connect(self, request: Request) -> Connected:
        self.asked += 1
        near, far = tcp_pair()
        far.close()
        return Connected(SocketStream(near), UNSPECIFIED)


def answering(label: str = "answers") -> Asked:
    return Asked(label, NameNotFound("no such name"))


def dead(label: str = "dead") -> Asked:
    return Asked(label, ExitFailed("Connection refused"))


def roster_of(*exits: Asked) -> Roster:
    return Roster([Offer(each, name=each.label) for each in exits], HealthSettings(), Random(1))


@contextmanager
def probing(roster: Roster, **options: Any) -> Iterator[ConnectProbes]:
    timeout = options.pop("timeout", 20.0)
    few = options.pop("few", 0)
    evidence = Evidence(roster, HealthSettings())
    kind = type("Adjusted", (ConnectProbes,), options)
    probes: ConnectProbes = kind(roster, evidence, timeout, Random(1), few=few)
    probes.start()
    try:
        yield probes
    finally:
        probes.close()


def go_round(probes: ConnectProbes) -> None:
    """Have it look for exits that are due, from begin to end: the last time shows that the one
    before is over, and its probes have begun."""
    add_new = probes._add_new
    for _ in range(3):
        begun = Event()

        def note(begun: Event = begun) -> None:
            begun.set()
            add_new()

        with patch.object(probes, "_add_new", note):
            probes._changed.set()
            begun.wait()


def states(roster: Roster) -> dict[str, str]:
    return {member.name: member.health.state(time.monotonic()) for member in roster}


# --- what an answer says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        NameNotFound("no such name"),
        HostUnreachable("no such name, says a proxy with one code for all"),
        ExitDoubtful("the proxy answers 502"),
        Forbidden("the proxy answers 403"),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_exit_that_answers_is_proven_and_asked_no_more(answer: GsocksError) -> None:
    good, bad = Asked("good", answer), dead("bad")
    roster = roster_of(good, bad)
    with probing(roster, backoff=SOON):
        eventually(lambda: bad.asked > 5)
    assert good.asked == 1
    assert states(roster) == {"good": "ok", "bad": "down"}


def test_an_exit_that_says_yes_to_anything_answers() -> None:
    roster = roster_of(YesSayer("yes"))
    with probing(roster):
        eventually(lambda: states(roster) == {"yes": "ok"})


def test_an_exit_that_fails_by_itself_is_down_until_it_answers() -> None:
    turncoat = dead("turncoat")
    roster = roster_of(turncoat)
    with probing(roster, backoff=SOON):
        eventually(lambda: states(roster) == {"turncoat": "down"})
        (member,) = roster
        assert member.counts.last_error == "Connection refused"
        turncoat.answer = NameNotFound("no such name")
        eventually(lambda: states(roster) == {"turncoat": "ok"})


def test_a_silent_exit_is_down_though_its_silence_might_be_the_destinations() -> None:
    late = Asked("late", ExitDoubtful("no answer within 0 s"))
    roster = roster_of(late)
    with probing(roster, timeout=0.0):
        eventually(lambda: states(roster) == {"late": "down"})


def test_an_exit_that_waits_longer_is_not_waited_for() -> None:
    roster = roster_of(Asked("waits"))
    with probing(roster, timeout=0.05):
        eventually(lambda: states(roster) == {"waits": "down"})
        (member,) = roster
        assert member.counts.last_error == "no answer within 0.05 s"


@pytest.mark.parametrize(
    ("status", "state"), [(400, "down"), (405, "down"), (501, "down"), (404, "ok")]
)
def test_a_web_server_that_knows_no_connect_is_no_proxy(status: int, state: str) -> None:
    answer = f"HTTP/1.1 {status} Some Reason\r\nContent-Length: 0\r\n\r\n".encode()

    def handle(stream: Stream) -> None:
        stream.read()
        stream.write(answer)

    with (
        stage(handle) as server,
        started(make_exit_group([f"http://{server}"], listed=True)) as group,
    ):
        (member,) = group.roster
        eventually(lambda: not member.needs_proof or member.health.is_down)
        assert ("down" if member.health.is_down else "ok") == state


def test_an_exit_that_hangs_up_is_no_better_known_than_before() -> None:
    rude = Asked("rude", ExitHungUp("hung up"))
    roster = roster_of(rude)
    with probing(roster, backoff=SOON):
        eventually(lambda: rude.asked > 3)
        assert states(roster) == {"rude": "unproven"}


def test_a_request_that_was_served_says_more_than_a_probe() -> None:
    slow = Asked("slow")
    roster = roster_of(slow)
    (member,) = roster
    evidence = Evidence(roster, HealthSettings())
    with probing(roster, backoff=SOON):
        eventually(lambda: slow.asked == 1)
        evidence.answered(member, WANTED, 0.0, began=0.0, took=0.0)
    evidence.probed(member, False, "too late", 1.0)
    assert states(roster) == {"slow": "ok"}


def test_no_request_waits_for_an_exit_that_is_being_probed_if_there_is_another() -> None:
    silent, good = Asked("silent"), answering("good")
    roster = roster_of(silent, good)
    with probing(roster):
        eventually(lambda: silent.asked == 1 and states(roster)["good"] == "ok")
        for _ in range(200):  # one in ten would have gone to an exit without proof
            chosen = roster.choose(WANTED, (), time.monotonic())
            assert chosen is not None
            assert chosen.name == "good"
    assert silent.asked == 1
    (unproven,) = (member for member in roster if member.name == "silent")
    eventually(lambda: not unproven.health.is_busy)  # once the probe is ended


def test_an_exit_that_has_worked_is_not_probed() -> None:
    proven, other = answering("proven"), answering("other")
    roster = roster_of(proven, other)
    evidence = Evidence(roster, HealthSettings())
    evidence.answered(next(iter(roster)), WANTED, 0.0, began=0.0, took=0.0)
    with probing(roster):
        eventually(lambda: other.asked)
    assert proven.asked == 0


# --- exits that requests have found to fail ---------------------------------------------------


#: so that a test sees several ejections
BRIEF = HealthSettings(base=0.01, longest=0.02)


class Scene:
    """An exit that has worked, and whose requests fail since, beside another one."""

    def __init__(self, answer: GsocksError, settings: HealthSettings) -> None:
        self.exit = Asked("sick", answer)
        exits = (self.exit, answering("other"))
        self.roster = Roster([Offer(each, name=each.label) for each in exits], settings, Random(1))
        self.member, other = self.roster
        self.probes = ConnectProbes(self.roster, Evidence(self.roster, settings), 20.0, Random(1))
        self.probes.retry_delay = 0.0
        for each in (self.member, other):
            self.serves(each)

    def serves(self, member: Member) -> None:
        now = time.monotonic()
        self.probes._evidence.answered(member, WANTED, now, began=now, took=0.0)

    def fails(self, times: int) -> None:
        for _ in range(times):
            now = time.monotonic()
            gone = ExitFailed("gone")
            self.probes._evidence.failed(self.member, WANTED, gone, now, began=now)


@contextmanager
def failing(answer: GsocksError, settings: HealthSettings = BRIEF) -> Iterator[Scene]:
    scene = Scene(answer, settings)
    scene.probes.start()
    try:
        yield scene
    finally:
        scene.probes.close()


def test_an_exit_that_fails_one_request_and_then_a_probe_is_ejected() -> None:
    with failing(ExitFailed("Connection refused")) as scene:
        assert scene.exit.asked == 0
        scene.fails(1)
        eventually(lambda: scene.member.health.ejections)
        assert scene.member.counts.failed == 1  # which counts requests
        assert scene.member.counts.last_error == "Connection refused"


def test_an_ejected_exit_is_asked_before_it_comes_back_and_ejected_anew_if_it_fails() -> None:
    with failing(ExitFailed("Connection refused")) as scene:
        scene.fails(3)
        eventually(lambda: scene.member.health.ejections >= 4)
        assert scene.exit.asked >= 3
        assert scene.member.counts.failed == 3


def test_a_failed_exit_that_answers_is_no_better_and_no_worse_for_it() -> None:
    for failures, ejections in ((1, 0), (3, 1)):
        with failing(NameNotFound("no such name")) as scene:
            scene.fails(failures)
            until = scene.member.health.ejected_until
            eventually(lambda: scene.exit.asked and not scene.member.health.being_probed)
            assert scene.member.health.ejections == ejections
            assert scene.member.health.ejected_until == until
            assert not scene.member.health.proven


def test_a_request_that_was_served_since_says_more_than_the_probe() -> None:
    slow = ExitFailed("too late")
    with failing(slow) as scene:
        began = time.monotonic()
        scene.fails(1)
        scene.serves(scene.member)
        scene.probes._evidence.probe_failed_too(scene.member, "gone", began + 1.0, began=began)
        assert scene.member.health.ejections == 0
        go_round(scene.probes)
        assert scene.exit.asked == 0


def test_probes_eject_no_more_than_requests_may() -> None:
    with failing(ExitFailed("Connection refused"), HealthSettings(base=1e6, longest=1e6)) as scene:
        scene.fails(1)
        eventually(lambda: scene.member.health.ejections)
        (other,) = (each for each in scene.roster if each is not scene.member)
        now = time.monotonic()
        assert scene.member.health.is_ejected(now)  # which is half of them
        scene.probes._evidence.probe_failed_too(other, "gone", now, began=now)
        assert not other.health.is_ejected(now)


# --- when -------------------------------------------------------------------------------------


def test_no_more_are_asked_at_a_time_than_may_be() -> None:
    now, most = 0, 0

    class Counting(Asked):
        def connect(self, request: Request) -> Connected:
            nonlocal now, most
            self.asked += 1
            now += 1
            most = max(most, now)
            gevent.sleep(0)  # for all that may begin
            now -= 1
            raise NameNotFound("no such name")

    exits = [Counting(f"e{number}") for number in range(9)]
    with probing(roster_of(*exits), max_concurrent=3):
        eventually(lambda: all(each.asked for each in exits))
    assert most == 3


def test_of_many_exits_some_are_probed_at_once_and_the_others_at_a_rate() -> None:
    exits = [answering(f"answers-{number}") for number in range(8)]
    hour = 3600.0
    with probing(roster_of(*exits), max_concurrent=3, max_rate=1 / hour) as probes:
        eventually(lambda: sum(each.asked for each in exits) == 3)
        # the fourth has been put off: it is still among those that are due
        eventually(lambda: probes._may_begin > time.monotonic() + hour / 2)
        assert len(probes._due) == len(exits) - 3
    with probing(roster_of(*exits), max_concurrent=3, max_rate=10_000.0):
        eventually(lambda: all(each.asked for each in exits))


def test_those_that_fail_again_are_asked_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []

    class Recorded(Backoff):
        def delay(self, times: int, random: Random) -> float:
            failures.append(times)
            return 0.01

    bad = dead()
    with probing(roster_of(bad), backoff=Recorded(1.0)):
        eventually(lambda: len(failures) >= 4)
    assert failures[:4] == [0, 1, 2, 3]
    spread = {round(ConnectProbes.backoff.delay(0, Random(seed)), 3) for seed in range(9)}
    assert len(spread) == 9
    assert ConnectProbes.backoff.bound(60) == 900.0


def test_the_order_is_another_one_each_time() -> None:
    def order(seed: int) -> list[str]:
        asked: list[str] = []

        class Noting(Asked):
            def connect(self, request: Request) -> Connected:
                asked.append(self.label)
                raise NameNotFound("no such name")

        roster = roster_of(*(Noting(f"e{number}") for number in range(50)))
        probes = ConnectProbes(roster, Evidence(roster, HealthSettings()), 20.0, Random(seed))
        probes.start()
        eventually(lambda: len(asked) == 50)
        probes.close()
        return asked

    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_other_exits_are_asked_at_once_and_removed_ones_no_more() -> None:
    old, stays, new = dead("old"), dead("stays"), answering("new")
    roster = roster_of(old, stays)
    with probing(roster, backoff=SOON) as probes:
        eventually(lambda: old.asked)
        changes = roster.update([Offer(each, name=each.label) for each in (stays, new)])
        probes.update(changes)
        before, stayed = old.asked, stays.asked
        eventually(lambda: states(roster)["new"] == "ok")
        eventually(lambda: stays.asked >= stayed + 5)  # which fails as often as the old one would
        assert old.asked <= before + 1
        assert [member.name for member in probes._failures] == ["stays"]


def test_few_exits_are_left_to_the_requests_until_they_are_many() -> None:
    one, other = answering("one"), answering("other")
    roster = roster_of(one)
    with probing(roster, few=1) as probes:
        go_round(probes)
        assert one.asked == 0
        probes.update(roster.update([Offer(each, name=each.label) for each in (one, other)]))
        eventually(lambda: one.asked == other.asked == 1)


def test_an_exit_that_waits_for_its_next_probe_is_not_asked_besides_when_few_become_many() -> None:
    first, second, third = dead("first"), dead("second"), dead("third")
    roster = roster_of(first, second)
    with probing(roster, few=1, backoff=Backoff(1000.0, 1000.0)) as probes:
        eventually(lambda: list(probes._failures.values()) == [1, 1])
        for exits in ([first], [first, third]):
            probes.update(roster.update([Offer(each, name=each.label) for each in exits]))
        go_round(probes)
        eventually(lambda: third.asked)
    assert first.asked == 1


def test_thousands_are_looked_at_a_slice_at_a_time() -> None:
    exits = [answering(f"e{number}") for number in range(50)]
    with probing(roster_of(*exits), slice=7):
        eventually(lambda: all(each.asked for each in exits))


def test_probes_that_are_stopped_leave_nothing_and_may_start_again() -> None:
    silent = Asked("silent")
    before = living_greenlets()
    with probing(roster_of(silent)) as probes:
        eventually(lambda: silent.asked == 1)
        probes.close()
        probes.close()
        eventually(lambda: living_greenlets() == before)
        probes.start()
        eventually(lambda: silent.asked == 2)


# --- which groups ask -------------------------------------------------------------------------


def services(group: ExitGroup) -> list[str]:
    return [type(each).__name__ for each in group._services]


def group_of(
    count: int, checks: CheckSettings = CheckSettings(), listed: bool = False
) -> ExitGroup:
    return make_exit_group([answering(str(n)) for n in range(count)], checks=checks, listed=listed)


@contextmanager
def started(group: ExitGroup) -> Iterator[ExitGroup]:
    group.start()
    try:
        yield group
    finally:
        group.close()


@pytest.mark.parametrize(
    ("make", "probed"),
    [
        (lambda: group_of(1, listed=True), True),
        (lambda: group_of(16), False),
        (lambda: group_of(17), True),
        (lambda: group_of(1, CheckSettings(connect=True)), True),
        (lambda: group_of(17, CheckSettings(connect=False), listed=True), False),
    ],
    ids=["a list", "few exits", "many exits", "told to", "told not to"],
)
def test_lists_and_many_exits_check_themselves(make: Callable[[], ExitGroup], probed: bool) -> None:
    with started(make()) as group:
        for probes in group._services:
            assert isinstance(probes, ConnectProbes)
            go_round(probes)
        if probed:
            eventually(lambda: all(member.health.has_proof for member in group.roster))
        else:
            assert not any(member.health.has_proof for member in group.roster)


def test_where_pages_are_fetched_no_exit_is_probed_besides() -> None:
    urls = (WebUrl.parse("http://192.0.2.1/"),)
    assert services(group_of(1, CheckSettings(urls=urls), listed=True)) == ["Checks"]
    both = CheckSettings(urls=urls, connect=True)
    assert services(group_of(1, both)) == ["Checks", "ConnectProbes"]


# --- with proxies -----------------------------------------------------------------------------


def test_real_proxies_answer_and_dead_ones_do_not(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gsocks")
    with (
        microsocks() as socks,
        tinyproxy(tmp_path) as http,
        unreachable() as dropping,
        stage(hang) as silent,
        stage(lambda stream: stream.write(b"SSH-2.0-dropbear\r\n")) as other,
    ):
        urls = {
            f"socks5://{socks}": "ok",
            f"http://{http}": "ok",
            f"http://{socks}": "down",
            f"socks5://{http}": "down",
            f"http://{dropping}": "down",
            f"http://{silent}": "down",
            f"socks5://{silent}": "down",
            f"http://{other}": "down",
        }
        timeouts = Timeouts(connect=1.0, exit=0.5)
        with started(make_exit_group(list(urls), timeouts=timeouts, listed=True)) as group:
            eventually(
                lambda: {m.label: m.health.state(time.monotonic()) for m in group.roster} == urls
            )


def test_few_exits_of_one_host_are_asked_at_a_time_and_each_in_the_end() -> None:
    class Slow(Asked):
        most = running = 0

        def connect(self, request: Request) -> Connected:
            kind = type(self)
            kind.running += 1
            kind.most = max(kind.most, kind.running)
            gevent.sleep(0)
            kind.running -= 1
            return super().connect(request)

    class Elsewhere(Slow):
        most = running = 0

    refused = NameNotFound("no such name")
    offers = [
        Offer(kind(f"{kind.__name__}{n}", refused), name=f"{kind.__name__}{n}".lower(), key=spec)
        for kind, host in ((Slow, "192.0.2.1"), (Elsewhere, "192.0.2.2"))
        for n in range(100)
        for spec in [ExitSpec("http", host, 80, user=f"u{n}")]
    ]
    roster = Roster(offers, HealthSettings(), Random(1))
    with probing(roster):
        eventually(lambda: set(states(roster).values()) == {"ok"})
    assert 1 < Slow.most <= 16
    assert 1 < Elsewhere.most <= 16
