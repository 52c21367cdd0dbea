"""How a request finds its exit when exits fail: who is asked again, who is blamed, who moves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import gevent
import pytest

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.group import ExitGroup, Outbound
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.rotation.policy import make_policy
from gsocks.rotation.roster import Member, Offer
from gsocks.rotation.session import Sessions
from gsocks.settings import HealthSettings, PerHostSettings, SessionSettings
from gsocks.stream import SocketStream
from tests.support.stream_contract import tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

BOUND = Address("192.0.2.1", 1234)
DEAD = errors.ExitFailed("dead")
MINE = ExitSelector(session="cart")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.rotation.failover.RETRY_DELAY", 0.0)


class Clock:
    """The time as requests see it."""

    def __init__(self) -> None:
        #: seconds before everybody else's
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gsocks.rotation.failover.time", clock)
    return clock


class House:
    """An exit that does what it is told."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.does: Callable[[], object] = lambda: None
        self.closed = 0

    def connect(self, request: Request) -> Connected:
        self.does()
        near, far = tcp_pair()
        far.close()
        stream = SocketStream(near)
        stream.abort()
        return Connected(stream, BOUND)

    def close(self) -> None:
        self.closed += 1

    def fails(self, error: Exception) -> None:
        def raising() -> None:
            raise error

        self.does = raising

    def works(self) -> None:
        self.does = lambda: None


class Street:
    """An exit group of houses."""

    def __init__(self, count: int, offers: Sequence[dict[str, Any]] = (), **options: Any) -> None:
        self.houses = {f"e{number}": House(f"e{number}") for number in range(count)}
        more = [*offers, *({} for _ in range(count - len(offers)))]
        self.offers = [
            Offer(house, name=name, **how)
            for (name, house), how in zip(self.houses.items(), more, strict=True)
        ]
        self.ways = ExitGroup(self.offers, ALLOW_ALL, random=Random(1), **options)

    def ask(
        self, selector: ExitSelector = ANY, user: str | None = None, host: str = "a.example"
    ) -> Outbound:
        self.asked: list[str] = []
        request = Request(Command.CONNECT, Address(host, 443), user, selector=selector)
        way = self.ways.connect(request, self.asked.append)
        way.release(1, 1)
        return way

    def answer(self, *names: str) -> None:
        """These exits serve a request each."""
        for name in names:
            request = Request(Command.CONNECT, BOUND, selector=ExitSelector(exit=name))
            self.ways.connect(request, lambda _: None).release(1, 1)

    def answer_all(self) -> None:
        self.answer(*self.houses)

    def fails(self, *names: str, error: Exception = DEAD) -> None:
        for name in names:
            self.houses[name].fails(error)

    def member(self, name: str) -> Member:
        member = self.ways.roster.named(name)
        assert member is not None
        return member

    def is_ejected(self, name: str) -> bool:
        return self.member(name).health.ejected_until > 0


# --- blame ------------------------------------------------------------------------------------


def test_an_exit_that_fails_three_times_is_asked_no_more() -> None:
    street = Street(2)
    street.fails("e0")
    for _ in range(6):
        assert street.ask().name == "e1"
    assert street.is_ejected("e0")
    for _ in range(4):
        street.ask()
        assert street.asked == ["e1"]
    counts = street.member("e0").counts
    assert (counts.failed, counts.up, counts.down) == (3, 0, 0)


REFUSALS = [errors.ConnectionRefused, errors.NameNotFound, errors.Forbidden]


@pytest.mark.parametrize("fault", REFUSALS)
def test_what_two_exits_say_of_a_destination_is_its_own_failure(
    fault: type[errors.ConnectFailed],
) -> None:
    street = Street(4)
    street.answer_all()
    street.fails(*street.houses, error=fault("there"))
    with pytest.raises(fault):
        street.ask()
    assert len(street.asked) == 2
    for _ in range(10):  # known by now: each exit is believed
        with pytest.raises(fault):
            street.ask()
        assert len(street.asked) == 1
    assert not any(street.is_ejected(name) for name in street.houses)


@pytest.mark.parametrize("fault", REFUSALS)
def test_what_one_exit_refuses_is_served_by_another_and_a_row_of_that_ejects_it(
    fault: type[errors.ConnectFailed],
) -> None:
    street = Street(2)
    street.fails("e0", error=fault("there"))
    for number in range(6):
        assert street.ask(host=f"{number}.example").name == "e1"
    assert street.is_ejected("e0")


def test_the_precise_word_is_reported_and_not_the_vague_one_of_the_next_exit() -> None:
    street = Street(2)
    street.fails("e0", error=errors.ConnectionRefused("refused there"))
    street.fails("e1", error=errors.ExitDoubtful("503"))
    with pytest.raises(errors.ConnectionRefused):
        street.ask()
    street.fails("e1", error=DEAD)
    with pytest.raises(errors.ConnectionRefused):
        street.ask()


def test_what_the_rules_of_this_end_deny_is_tried_by_no_other_exit() -> None:
    street = Street(2)
    street.fails("e0", error=errors.Denied("the rules"))
    with pytest.raises(errors.Forbidden):
        street.ask()
    assert len(street.asked) == 1


def test_a_destination_that_one_exit_alone_can_not_reach_costs_it_that_destination() -> None:
    street = Street(2)
    street.fails("e0", error=errors.ConnectTimeout("silence"))
    for _ in range(6):
        assert street.ask().name == "e1"
    assert street.asked == ["e1"]
    assert not street.is_ejected("e0")
    street.houses["e0"].works()
    assert {street.ask(host="b.example").name for _ in range(2)} == {"e0", "e1"}


def test_an_unclear_failure_is_the_exits_if_another_one_does_better() -> None:
    street = Street(2)
    street.fails("e0", error=errors.ConnectTimeout("silence"))
    for number in range(6):
        assert street.ask(host=f"{number}.example").name == "e1"
    assert street.is_ejected("e0")


def test_a_destination_that_no_exit_can_reach_is_no_exits_fault() -> None:
    street = Street(4)
    street.fails(*street.houses, error=errors.ConnectTimeout("silence"))
    for _ in range(10):
        with pytest.raises(errors.ConnectTimeout):
            street.ask()
        assert len(street.asked) == 3
    assert not any(street.is_ejected(name) for name in street.houses)


def test_the_next_try_goes_to_an_exit_that_has_worked() -> None:
    street = Street(5)
    street.fails(*street.houses)
    street.houses["e3"].works()
    street.answer("e3")
    for number in range(4):
        assert street.ask(host=f"{number}.example").name == "e3"
        assert len(street.asked) <= 2


# --- selectors -----------------------------------------------------------------------------------


def test_a_selector_is_heeded_and_one_that_no_exit_matches_is_reported() -> None:
    street = Street(4, [{"country": "de"}, {"country": "fr", "tags": ("fast",)}])
    for _ in range(5):
        assert street.ask(ExitSelector(country="de")).name == "e0"
        assert street.ask(ExitSelector(tags=("fast",))).name == "e1"
        assert street.ask(ExitSelector(exit="e3")).name == "e3"
    with pytest.raises(errors.NoExit, match=r"^no exit is of country it and tagged a b$"):
        street.ask(ExitSelector(country="it", tags=("a", "b")))
    with pytest.raises(errors.NoExit, match=r"^no exit is called e9$"):
        street.ask(ExitSelector(session="x", exit="e9"))


def test_when_all_are_banned_that_is_told() -> None:
    street = Street(2)
    street.ways.ban("e0", 60.0)
    street.ways.drain("e1")
    for selector in (ANY, MINE):
        with pytest.raises(errors.NoExit, match="banned or draining"):
            street.ask(selector)
    street.ways.unban("e0")
    assert street.ask().name == "e0"
    street.ways.drain("e1", draining=False)
    assert {street.ask().name, street.ask().name} == {"e0", "e1"}


def test_ways_that_wait_for_their_exits_say_so() -> None:
    ways = ExitGroup([], ALLOW_ALL, fed=True)
    with pytest.raises(errors.NoExit, match="no exits known yet"):
        ways.connect(Request(Command.CONNECT, BOUND), lambda _: None)
    ways.update([House("a")])
    assert ways.connect(Request(Command.CONNECT, BOUND), lambda _: None).exit == "a"


# --- sessions ---------------------------------------------------------------------------------


def test_a_session_has_one_exit_and_many_sessions_have_all_of_them() -> None:
    street = Street(5)
    assert len({street.ask(MINE).name for _ in range(20)}) == 1
    assert len({street.ask(ExitSelector(session=f"s{number}")).name for number in range(100)}) == 5


def test_sessions_of_two_users_are_two() -> None:
    street = Street(50)
    named = {user: street.ask(MINE, user).name for user in (None, "alice", "bob")}
    assert len(set(named.values())) == 3
    assert street.ask(MINE, "alice").name == named["alice"]


@pytest.mark.parametrize("count", [20, 200])
def test_two_processes_agree_on_a_sessions_exit(count: int) -> None:
    one, other = Street(count), Street(count)
    other.ways.update(reversed(other.offers))
    for number in range(50):
        selector = ExitSelector(session=f"s{number}")
        assert one.ask(selector).name == other.ask(selector).name


@pytest.mark.parametrize("count", [5, 200])
def test_a_new_session_whose_exit_fails_goes_to_another_one_at_once(count: int) -> None:
    street = Street(count)
    home = street.ask(MINE).name
    street = Street(count)
    street.fails(home)
    assert street.ask(MINE).name != home
    assert len(street.asked) == 2


def test_the_exit_of_a_session_is_asked_again_before_it_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    street = Street(5)
    home = street.ask(MINE).name
    turns = iter([DEAD, DEAD, None])

    def twice_dead() -> None:
        if error := next(turns):
            raise error

    street.houses[home].does = twice_dead
    assert street.ask(MINE).name == home
    assert len(street.asked) == 3
    street.fails(home)
    with caplog.at_level(logging.INFO, "gsocks.rotation"):
        moved = street.ask(MINE).name
    assert moved != home
    assert street.is_ejected(home)
    assert caplog.messages[-1] == (
        f"session cart moves from exit {home} to {moved}: its exit can't be used now"
    )
    street.houses[home].works()
    assert {street.ask(MINE).name for _ in range(5)} == {moved}


def test_a_destination_that_is_silent_moves_no_session() -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street.fails(home, error=errors.ConnectTimeout("silence"))
    with pytest.raises(errors.ConnectTimeout):
        street.ask(MINE)
    assert set(street.asked) == {street.houses[home].label}
    street.houses[home].works()
    assert street.ask(MINE).name == home


def test_a_session_whose_requests_fail_moves_to_an_exit_that_serves_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street.fails(home, error=errors.ConnectTimeout("silence"))
    for _ in range(3):
        with pytest.raises(errors.ConnectTimeout):
            street.ask(MINE)
        assert set(street.asked) == {street.houses[home].label}
    with caplog.at_level(logging.INFO, "gsocks.rotation"):
        moved = street.ask(MINE).name
    assert moved != home
    assert caplog.messages[-1] == (
        f"session cart moves from exit {home} to {moved}: several of its requests in a row failed"
        " there"
    )
    street.houses[home].works()
    assert {street.ask(MINE).name for _ in range(5)} == {moved}


def test_a_session_that_asks_for_a_dead_destination_stays_and_ejects_no_exit() -> None:
    street = Street(5)
    street.answer_all()
    home = street.ask(MINE).name
    street.fails(*street.houses, error=errors.ExitDoubtful("503"))
    for number in range(20):
        with pytest.raises(errors.ExitDoubtful):
            street.ask(MINE, host=f"{number % 7}.example")
    assert not any(street.is_ejected(name) for name in street.houses)
    for house in street.houses.values():
        house.works()
    assert street.ask(MINE).name == home


def test_a_session_leaves_an_exit_that_has_never_worked() -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street = Street(5)
    request = Request(Command.CONNECT, Address("a.example", 443), selector=MINE)
    silent = street.ways.connect(request, lambda _: None)
    assert silent.name == home
    silent.release(100, 0)  # it says yes, and no byte comes back
    assert street.ask(MINE).name != home


ON_ITS_WAY = Request(Command.CONNECT, Address("page.example", 443), selector=MINE)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "error", [errors.NameNotFound("gone"), errors.ConnectionRefused("no"), errors.ExitDoubtful("?")]
)
def test_a_dead_destination_moves_no_session_while_its_page_is_on_the_way(
    error: errors.ConnectFailed, strict: bool
) -> None:
    selector = MINE._replace(strict=strict)
    street = Street(5)
    page = street.ways.connect(ON_ITS_WAY._replace(selector=selector), lambda _: None)
    street.fails(*street.houses, error=error)
    for _ in range(4):
        with pytest.raises(type(error)):
            street.ask(selector, host="dead.example")
    for house in street.houses.values():
        house.works()
    assert street.ways.exit_of(None, "cart") == page.name
    page.answered()
    assert {street.ask(selector, host=f"{n}.example").name for n in range(5)} == {page.name}
    page.release(1, 1)


def test_nor_do_several_dead_ones_once_the_page_has_come() -> None:
    street = Street(5)
    page = street.ways.connect(ON_ITS_WAY, lambda _: None)
    street.fails(*street.houses, error=errors.NameNotFound("gone"))
    for number in range(6):
        with pytest.raises(errors.NameNotFound):
            street.ask(MINE, host=f"dead{number}.example")
    for house in street.houses.values():
        house.works()
    page.answered()
    assert {street.ask(MINE).name for _ in range(5)} == {page.name}
    page.release(1, 1)


def test_a_late_byte_moves_no_session_that_was_rotated_since() -> None:
    street = Street(5)
    page = street.ways.connect(ON_ITS_WAY, lambda _: None)
    street.ways.rotate(None, "cart")
    now = street.ways.connect(ON_ITS_WAY, lambda _: None)
    assert now.name != page.name
    page.answered()
    assert street.ways.exit_of(None, "cart") == now.name
    page.release(1, 1)
    now.release(1, 1)


def test_a_session_is_where_its_destination_is_served_though_its_own_exit_fails_there() -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street = Street(5)
    street.fails(home, error=errors.HostUnreachable("no"))
    served = street.ask(MINE).name
    assert served != home
    assert street.asked[0] == street.houses[home].label
    street.houses[home].works()
    assert {street.ask(MINE).name for _ in range(5)} == {served}


def test_a_destination_that_is_dead_behind_two_exits_is_asked_for_at_others_next() -> None:
    """Of exits that have never worked: each request finds some that have not failed there yet."""
    street = Street(9)
    street.fails(*street.houses, error=errors.ExitDoubtful("503"))
    tried: list[int] = []
    asked: set[str] = set()
    while len(asked) < 9:
        with pytest.raises(errors.ExitDoubtful):
            street.ask(MINE)
        asked |= set(street.asked)
        tried.append(len(asked))
    assert tried[:2] == [3, 6]
    assert len(tried) < 9


def test_a_session_leaves_an_exit_that_has_never_worked_at_two_destinations() -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street = Street(5)
    street.fails(*street.houses, error=errors.ExitDoubtful("503"))
    for host in ("a.example", "b.example"):
        with pytest.raises(errors.ExitDoubtful):
            street.ask(MINE, host=host)
        assert street.asked[0] == street.houses[home].label
    with pytest.raises(errors.ExitDoubtful):
        street.ask(MINE, host="c.example")
    assert street.houses[home].label not in street.asked


@pytest.mark.parametrize("other", [f"e{number}" for number in range(5)])
def test_a_session_whose_exit_falls_silent_tries_one_that_has_shown_that_it_works(
    other: str,
) -> None:
    street = Street(5)
    home = street.ask(MINE).name
    if other == home:
        other = f"e{(int(home[1:]) + 1) % 5}"
    street.answer(other)
    request = Request(Command.CONNECT, Address("a.example", 443), selector=MINE)
    for _ in range(3):
        street.ways.connect(request, lambda _: None).release(100, 0)
    assert street.ask(MINE).name == other


@pytest.mark.parametrize("others", [[{}] * 6, [{"country": "de"}] * 100])
def test_a_session_moves_to_an_exit_of_the_same_kind_or_stays(
    others: list[dict[str, Any]],
) -> None:
    german = {"country": "de", "tags": ("fast",)}
    street = Street(3 + len(others), [german, german, {"country": "de"}, *others])
    selector = ExitSelector(session="cart", country="de", tags=("fast",))
    home = street.ask(selector).name
    other = ({"e0", "e1"} - {home}).pop()
    street.fails(home)
    # it is of the same kind though no request asks for that
    assert street.ask(MINE._replace(country="de")).name == other
    street.fails(other)
    with pytest.raises(errors.ExitFailed):
        street.ask(selector)


def test_a_session_looks_among_several_for_an_exit_of_its_kind() -> None:
    offers = [{"country": country} for country in ("de", "de", "fr", "fr")]
    street = Street(4, offers, policy=make_policy("least_connections", Random(1)))
    street.answer_all()
    home = street.ask(MINE._replace(country="de")).name
    other = ({"e0", "e1"} - {home}).pop()
    request = Request(Command.CONNECT, BOUND, selector=ExitSelector(exit=other))
    busy = street.ways.connect(request, lambda _: None)  # the policy would have others
    for _ in range(3):
        street.ways.connect(request._replace(selector=MINE), lambda _: None).release(100, 0)
    assert street.ask(MINE).name == other
    busy.release(1, 1)


def test_a_session_tries_no_other_exit_that_is_at_its_limit_for_the_host() -> None:
    street = Street(2, per_host=PerHostSettings(connections=1))
    home = street.ask(MINE).name
    other = ({"e0", "e1"} - {home}).pop()
    request = Request(Command.CONNECT, Address("a.example", 443), selector=MINE)
    busy = street.ways.connect(request._replace(selector=ExitSelector(exit=other)), lambda _: None)
    for _ in range(3):
        street.ways.connect(request, lambda _: None).release(100, 0)
    assert street.ask(MINE).name == home
    busy.release(1, 1)


def test_a_full_exit_is_no_reason_to_move() -> None:
    street = Street(5, [{"max_connections": 1}] * 5)
    street.answer_all()
    request = Request(Command.CONNECT, BOUND, selector=MINE)
    kept = street.ways.connect(request, lambda _: None)
    with pytest.raises(errors.LimitReached, match="session"):
        street.ask(MINE)
    kept.release()
    assert street.ask(MINE).name == kept.name


@pytest.mark.parametrize("count", [5, 200])
def test_a_session_leaves_an_exit_that_is_drained_or_banned_for_its_domain(count: int) -> None:
    street = Street(count)
    home = street.ask(MINE).name
    street.ways.report(home, False, "other.example")
    for _ in range(3):
        street.ways.report(home, False, "A.example")
    assert street.ask(MINE, host="other.example").name == home
    second = street.ask(MINE).name
    assert second != home
    street.ways.drain(second)
    assert street.ask(MINE, host="other.example").name not in (second,)


def test_a_session_keeps_its_exit_when_others_come_and_go() -> None:
    street = Street(5)
    homes = {number: street.ask(ExitSelector(session=f"s{number}")).name for number in range(30)}
    gone = street.offers[2]
    more = [Offer(House(f"new{number}"), name=f"n{number}") for number in range(5)]
    street.ways.update([*(each for each in street.offers if each is not gone), *more])
    for number, home in homes.items():
        now = street.ask(ExitSelector(session=f"s{number}")).name
        assert (now == home) == (home != "e2")


@pytest.mark.parametrize("count", [5, 200])
def test_on_demand_a_session_has_another_exit(count: int) -> None:
    street = Street(count)
    home = street.ask(MINE, "alice").name
    street.ways.rotate("alice", "cart")
    other = street.ask(MINE, "alice").name
    assert other != home
    assert street.ask(MINE, "alice").name == other


def test_a_session_ends_with_its_lifetime(clock: Clock) -> None:
    street = Street(5)
    selector = ExitSelector(session="cart", lifetime=60)
    home = street.ask(selector).name
    clock.ahead = 59
    assert street.ask(selector).name == home
    clock.ahead = 61
    assert street.ask(selector).name != home
    assert street.ways.sessions.settings == SessionSettings()


# --- strict sessions --------------------------------------------------------------------------

STRICT = MINE._replace(strict=True)
ALL_STRICT = SessionSettings(strict=True)


@pytest.mark.parametrize(
    ("selector", "settings"), [(STRICT, SessionSettings()), (MINE, ALL_STRICT)]
)
def test_a_strict_session_fails_rather_than_move(
    selector: ExitSelector, settings: SessionSettings
) -> None:
    street = Street(5, sessions=Sessions(settings))
    home = street.ask(selector).name
    street.fails(home)
    for _ in range(5):
        with pytest.raises(errors.ExitFailed, match="dead"):
            street.ask(selector)
        assert set(street.asked) == {street.houses[home].label}
    assert street.is_ejected(home)
    street.houses[home].works()
    assert street.ask(selector).name == home


def test_a_session_that_is_not_strict_moves_beside_one_that_is() -> None:
    street = Street(5)
    home = street.ask(STRICT).name
    street.fails(home)
    assert street.ask(MINE).name != home


def test_a_strict_session_that_no_exit_has_served_goes_to_one_that_works() -> None:
    home = Street(5).ask(STRICT).name
    street = Street(5)
    street.fails(home)
    second = street.ask(STRICT).name
    assert second != home
    street.fails(second)
    with pytest.raises(errors.ExitFailed):
        street.ask(STRICT)


def test_the_reason_why_a_strict_session_can_not_use_its_exit_is_told() -> None:
    street = Street(5, [{"tags": ("fast",)}] * 5)
    home = street.ask(STRICT).name

    def refused(selector: ExitSelector = STRICT) -> str:
        with pytest.raises(errors.NoExit) as caught:
            street.ask(selector)
        assert street.asked == []
        return str(caught.value)

    this = f"exit {home} of this strict session"
    street.ways.drain(home)
    assert refused() == f"{this} is draining"
    street.ways.drain(home, False)
    street.ways.ban(home, 60)
    assert refused() == f"{this} is banned"
    street.ways.unban(home)
    street.ways.ban(home, 60, "a.example")
    assert refused() == f"{this} is ejected for this destination"
    assert street.ask(STRICT, host="b.example").name == home
    street.ways.unban(home, "a.example")
    assert refused(STRICT._replace(tags=("slow",))) == f"{this} does not match the selector"
    assert street.ask(STRICT).name == home
    street.ways.update([each for each in street.offers if each.name != home])
    assert refused() == f"{this} was removed"
    street.ways.update(street.offers)
    assert street.ask(STRICT).name == home


def test_a_strict_session_goes_on_by_an_exit_with_the_same_address() -> None:
    street = Street(4)
    street.answer_all()
    home = street.ask(STRICT).name
    twin, other, stranger = (name for name in street.houses if name != home)
    for name, address in ((home, 7), (twin, 7), (other, 8), (stranger, 9)):
        found = OutboundAddress(f"203.0.113.{address}")
        street.ways.roster.learn(street.member(name), found, time.monotonic())
    assert street.ask(STRICT).name == home
    street.ways.drain(home)
    assert [street.ask(STRICT).name for _ in range(3)] == [twin] * 3
    street.ways.drain(twin)
    with pytest.raises(errors.NoExit, match="is draining"):
        street.ask(STRICT)


def test_a_strict_session_moves_on_demand_and_at_the_end_of_its_lifetime(clock: Clock) -> None:
    street = Street(5)
    home = street.ask(STRICT).name
    street.ways.rotate(None, "cart")
    second = street.ask(STRICT).name
    assert second != home
    soon = STRICT._replace(lifetime=60)
    assert street.ask(soon).name == second
    clock.ahead = 61
    assert street.ask(soon).name != second


def test_a_session_among_many_exits_stays_where_it_is_if_none_may_be_used() -> None:
    street = Street(100)
    home = street.ask(MINE).name
    for name in street.houses:
        street.ways.drain(name)
    for _ in range(2):
        with pytest.raises(errors.NoExit, match="banned or draining"):
            street.ask(MINE)
    for name in street.houses:
        street.ways.drain(name, draining=False)
    assert street.ask(MINE).name == home


def test_new_sessions_among_many_exits_share_those_that_are_left() -> None:
    street = Street(200)
    for number in range(190):
        street.ways.drain(f"e{number}")
    homes = {street.ask(ExitSelector(session=f"s{number}")).name for number in range(100)}
    assert homes == {f"e{number}" for number in range(190, 200)}


# --- control ----------------------------------------------------------------------------------


def test_an_unknown_name_is_told() -> None:
    ways = Street(1).ways
    calls: list[Callable[[], object]] = [
        lambda: ways.ban("x", 1.0),
        lambda: ways.unban("x"),
        lambda: ways.drain("x"),
        lambda: ways.report("x", True, "a.example"),
    ]
    for tell in calls:
        with pytest.raises(errors.NoExit, match="'x'"):
            tell()


def test_a_good_report_forgives_a_bad_one() -> None:
    street = Street(2)
    for _ in range(3):
        street.ways.report("e0", False, "a.example")
    assert {street.ask().name for _ in range(4)} == {"e1"}
    street.ways.report("e0", True, "a.example")
    assert {street.ask().name for _ in range(4)} == {"e0", "e1"}


def test_unbanning_makes_an_exit_that_failed_be_asked_again() -> None:
    street = Street(2)
    street.fails("e0")
    for _ in range(6):
        street.ask()
    street.houses["e0"].works()
    street.ways.unban("e0")
    assert {street.ask().name for _ in range(4)} == {"e0", "e1"}


def test_an_update_closes_exits_that_are_gone_while_an_inbound_is_open() -> None:
    street = Street(2)
    new = House("new")
    street.ways.start()
    street.ways.update([street.offers[0], Offer(new)])
    assert [street.houses["e0"].closed, street.houses["e1"].closed, new.closed] == [0, 1, 0]
    with pytest.raises(errors.ConfigError, match="no exits"):
        street.ways.update([])
    assert len(street.ways.roster) == 2
    street.ways.close()
    assert [street.houses["e0"].closed, new.closed] == [1, 1]
    street.ways.update([Offer(House("later"))])
    assert new.closed == 1


@pytest.fixture
def hanging() -> Street:
    street = Street(3, timeout=2.0, health=HealthSettings(failures=1))
    street.houses["e0"].does = lambda: gevent.sleep(60)
    return street


def test_an_exit_that_hangs_leaves_time_to_the_next_one(hanging: Street) -> None:
    assert hanging.ask().name == "e1"
    assert hanging.asked == ["e0", "e1"]
    assert hanging.is_ejected("e0")
