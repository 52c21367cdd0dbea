"""How a request finds its exit when exits fail: who is asked again, who is blamed, who moves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import gevent
import pytest
from stream_contract import tcp_pair

from gsocks import errors
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.request import Command, Request
from gsocks.rotation.health import HealthSettings
from gsocks.rotation.roster import Member, Offer
from gsocks.rotation.session import Sessions
from gsocks.rules import ALLOW_ALL
from gsocks.stream import SocketStream
from gsocks.ways_out import Way, WaysOut
from gsocks.wish import ANY, Wish

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

BOUND = Address("192.0.2.1", 1234)
DEAD = errors.ExitFailed("dead")
MINE = Wish(session="cart")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsocks.search.BREATH", 0.0)


class House:
    """An exit that does what it is told."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.does: Callable[[], object] = lambda: None
        self.started = 0

    def start(self) -> None:
        self.started += 1

    def connect(self, request: Request) -> Connected:
        self.does()
        near, far = tcp_pair()
        far.close()
        stream = SocketStream(near)
        stream.abort()
        return Connected(stream, BOUND)

    def close(self) -> None:
        self.started -= 1

    def fails(self, error: Exception) -> None:
        def raising() -> None:
            raise error

        self.does = raising

    def works(self) -> None:
        self.does = lambda: None


class Street:
    """Ways out with houses on them."""

    def __init__(self, count: int, offers: Sequence[dict[str, Any]] = (), **options: Any) -> None:
        self.houses = {f"e{number}": House(f"exit{number}") for number in range(count)}
        more = [*offers, *({} for _ in range(count - len(offers)))]
        self.offers = [
            Offer(house, name=name, **how)
            for (name, house), how in zip(self.houses.items(), more, strict=True)
        ]
        self.ways = WaysOut(self.offers, ALLOW_ALL, random=Random(1), **options)

    def ask(self, wish: Wish = ANY, user: str | None = None, host: str = "a.example") -> Way:
        way, self.asked = None, []
        request = Request(Command.CONNECT, Address(host, 443), user, wish=wish)
        way = self.ways.connect(request, self.asked.append)
        way.release()
        return way

    def fails(self, *names: str, error: Exception = DEAD) -> None:
        for name in names:
            self.houses[name].fails(error)

    def member(self, name: str) -> Member:
        member = self.ways.roster.named(name)
        assert member is not None
        return member

    def is_out(self, name: str) -> bool:
        return self.member(name).health.out_until > 0


# --- blame ------------------------------------------------------------------------------------


def test_an_exit_that_fails_three_times_is_asked_no_more() -> None:
    street = Street(2)
    street.fails("e0")
    for _ in range(6):
        assert street.ask().name == "e1"
    assert street.is_out("e0")
    for _ in range(4):
        street.ask()
        assert street.asked == ["exit1"]
    assert street.member("e0").counts.failed == 3


@pytest.mark.parametrize("fault", [errors.ConnectionRefused, errors.NameNotFound, errors.Forbidden])
def test_the_destinations_failure_is_no_exits(fault: type[errors.ConnectFailed]) -> None:
    street = Street(2)
    street.fails("e0", "e1", error=fault("there"))
    for _ in range(10):
        with pytest.raises(fault):
            street.ask()
        assert len(street.asked) == 1
    assert not street.is_out("e0")
    assert not street.is_out("e1")


def test_an_unclear_failure_is_the_exits_if_another_one_does_better() -> None:
    street = Street(2)
    street.fails("e0", error=errors.ConnectTimeout("silence"))
    for _ in range(6):
        assert street.ask().name == "e1"
    assert street.is_out("e0")


def test_a_destination_that_nobody_can_reach_is_nobodys_fault() -> None:
    street = Street(4)
    street.fails(*street.houses, error=errors.ConnectTimeout("silence"))
    for _ in range(10):
        with pytest.raises(errors.ConnectTimeout):
            street.ask()
        assert len(street.asked) == 3
    assert not any(street.is_out(name) for name in street.houses)


# --- wishes -----------------------------------------------------------------------------------


def test_a_wish_is_heeded_and_one_that_nobody_fulfils_is_told() -> None:
    street = Street(4, [{"country": "de"}, {"country": "fr", "tags": ("fast",)}])
    for _ in range(5):
        assert street.ask(Wish(country="de")).name == "e0"
        assert street.ask(Wish(tags=("fast",))).name == "e1"
        assert street.ask(Wish(exit="e3")).name == "e3"
    with pytest.raises(errors.NoExit, match=r"^no exit is of country it and tagged a b$"):
        street.ask(Wish(country="it", tags=("a", "b")))
    with pytest.raises(errors.NoExit, match=r"^no exit is called e9$"):
        street.ask(Wish(session="x", exit="e9"))


def test_when_all_are_banned_that_is_told() -> None:
    street = Street(2)
    street.ways.ban("e0", 60.0)
    street.ways.drain("e1")
    for wish in (ANY, MINE):
        with pytest.raises(errors.NoExit, match="banned or drained"):
            street.ask(wish)
    street.ways.unban("e0")
    assert street.ask().name == "e0"
    street.ways.drain("e1", draining=False)
    assert {street.ask().name, street.ask().name} == {"e0", "e1"}


def test_ways_that_wait_for_their_exits_say_so() -> None:
    ways = WaysOut([], ALLOW_ALL, fed=True)
    with pytest.raises(errors.NoExit, match="no exits known yet"):
        ways.connect(Request(Command.CONNECT, BOUND), lambda _: None)
    ways.update([House("a")])
    assert ways.connect(Request(Command.CONNECT, BOUND), lambda _: None).exit == "a"


# --- sessions ---------------------------------------------------------------------------------


def test_a_session_has_one_exit_and_many_sessions_have_all_of_them() -> None:
    street = Street(5)
    assert len({street.ask(MINE).name for _ in range(20)}) == 1
    assert len({street.ask(Wish(session=f"s{number}")).name for number in range(100)}) == 5


def test_sessions_of_two_users_are_two() -> None:
    street = Street(50)
    named = {user: street.ask(MINE, user).name for user in (None, "alice", "bob")}
    assert len(set(named.values())) == 3
    assert street.ask(MINE, "alice").name == named["alice"]


def test_two_processes_agree_on_a_sessions_exit() -> None:
    one, other = Street(20), Street(20)
    other.ways.update(reversed(other.offers))
    for number in range(50):
        wish = Wish(session=f"s{number}")
        assert one.ask(wish).name == other.ask(wish).name


def test_a_new_session_whose_exit_fails_goes_to_another_one_at_once() -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street = Street(5)
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
    assert street.is_out(home)
    assert caplog.messages[-1] == (f"session cart: from {home} to {moved}, which can't be used now")
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


def test_an_exit_that_is_silent_for_long_loses_its_session() -> None:
    street = Street(5)
    home = street.ask(MINE).name
    street.fails(home, error=errors.ConnectTimeout("silence"))
    for _ in range(3):
        with pytest.raises(errors.ConnectTimeout):
            street.ask(MINE)
    assert street.is_out(home)
    assert street.ask(MINE).name != home


def test_a_session_moves_to_an_exit_of_the_same_kind_or_stays() -> None:
    german = {"country": "de", "tags": ("fast",)}
    street = Street(9, [german, german, {"country": "de"}])
    wish = Wish(session="cart", country="de", tags=("fast",))
    home = street.ask(wish).name
    other = ({"e0", "e1"} - {home}).pop()
    street.fails(home)
    # it is of the same kind though nobody asks for that
    assert street.ask(MINE._replace(country="de")).name == other
    street.fails(other)
    with pytest.raises(errors.ExitFailed):
        street.ask(wish)


def test_a_full_exit_is_no_reason_to_move() -> None:
    street = Street(5, [{"max_connections": 1}] * 5)
    request = Request(Command.CONNECT, BOUND, wish=MINE)
    kept = street.ways.connect(request, lambda _: None)
    with pytest.raises(errors.LimitReached, match="session"):
        street.ask(MINE)
    kept.release()
    assert street.ask(MINE).name == kept.name


def test_a_session_leaves_an_exit_that_is_drained_or_banned_for_its_domain() -> None:
    street = Street(5)
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
    homes = {number: street.ask(Wish(session=f"s{number}")).name for number in range(30)}
    gone = street.offers[2]
    more = [Offer(House(f"new{number}"), name=f"n{number}") for number in range(5)]
    street.ways.update([*(each for each in street.offers if each is not gone), *more])
    for number, home in homes.items():
        now = street.ask(Wish(session=f"s{number}")).name
        assert (now == home) == (home != "e2")


def test_on_demand_a_session_has_another_exit() -> None:
    street = Street(5)
    home = street.ask(MINE, "alice").name
    street.ways.rotate("alice", "cart")
    other = street.ask(MINE, "alice").name
    assert other != home
    assert street.ask(MINE, "alice").name == other


def test_a_session_ends_with_its_lifetime() -> None:
    street = Street(5)
    wish = Wish(session="cart", lifetime=0.02)
    home = street.ask(wish).name
    gevent.sleep(0.03)
    assert street.ask(wish).name != home
    assert street.ways.sessions.longest == Sessions().longest


# --- control ----------------------------------------------------------------------------------


def test_an_unknown_name_is_told() -> None:
    ways = Street(1).ways
    for tell in (
        lambda: ways.ban("x", 1.0),
        lambda: ways.unban("x"),
        lambda: ways.drain("x"),
        lambda: ways.report("x", True, "a.example"),
    ):
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


def test_an_update_starts_and_closes_exits_while_a_door_is_open() -> None:
    street = Street(2)
    new = House("new")
    street.ways.start()
    street.ways.update([street.offers[0], Offer(new)])
    assert [street.houses["e0"].started, street.houses["e1"].started, new.started] == [1, 0, 1]
    with pytest.raises(errors.ConfigError, match="no exits"):
        street.ways.update([])
    assert len(street.ways.roster) == 2
    street.ways.close()
    assert [street.houses["e0"].started, new.started] == [0, 0]
    street.ways.update([Offer(House("later"))])
    assert new.started == 0


@pytest.fixture
def hanging() -> Street:
    street = Street(3, timeout=2.0, health=HealthSettings(failures=1))
    street.houses["e0"].does = lambda: gevent.sleep(60)
    return street


def test_an_exit_that_hangs_leaves_time_to_the_next_one(hanging: Street) -> None:
    assert hanging.ask().name == "e1"
    assert hanging.asked == ["exit0", "exit1"]
    assert hanging.is_out("e0")
