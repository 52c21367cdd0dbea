"""The exits as they stand: who may be asked now.  Time is handed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.address import Address
from gsocks.errors import ExitFailed
from gsocks.exits.base import Connected
from gsocks.exits.url import derived_name
from gsocks.request import Command, Request
from gsocks.rotation.health import Health, HealthSettings
from gsocks.rotation.roster import Member, Offer, Roster
from gsocks.wish import ANY, Wish

SITE = "shop.example"
FAILED = ExitFailed("dead")


class House:
    """An exit that is never asked."""

    def __init__(self, label: str) -> None:
        self.label = label

    def start(self) -> None: ...

    def connect(self, request: Request) -> Connected:
        raise NotImplementedError

    def close(self) -> None: ...


class Associating(House):
    def associate(self, request: Request) -> Connected:
        raise NotImplementedError


def offers(count: int, **options: Any) -> list[Offer]:
    return [Offer(House(f"exit{number}"), name=f"e{number}", **options) for number in range(count)]


def roster(*given: Offer, settings: HealthSettings = HealthSettings()) -> Roster:
    return Roster(given, settings, Random(1))


def to(host: str = SITE, wish: Wish = ANY, command: Command = Command.CONNECT) -> Request:
    return Request(command, Address(host, 443), wish=wish)


def names(members: Any) -> list[str]:
    return [member.name for member in members]


def available(exits: Roster, now: float = 0.0, *given_up: Member, **of: Any) -> list[str]:
    return names(exits.available(to(**of), given_up, now))


def put_out(exits: Roster, name: str, now: float = 0.0) -> Member:
    member = exits.named(name)
    assert member is not None
    for _ in range(3):
        exits.failed(member, FAILED, now)
    assert member.health.is_out(now)
    return member


# --- names ------------------------------------------------------------------------------------


def test_an_exit_without_a_name_is_called_by_its_label_and_a_second_one_differs() -> None:
    exits = roster(Offer(House("a")), Offer(House("b"), name="mine"), Offer(House("a")))
    assert names(exits) == [derived_name("a"), "mine", derived_name("a") + "-2"]
    assert exits.named("mine") is list(exits)[1]
    assert exits.named("yours") is None


# --- other exits ------------------------------------------------------------------------------


def test_an_update_keeps_what_is_known_of_those_that_stay() -> None:
    one, two, three = offers(3)
    exits = roster(one, two)
    kept = exits.named("e1")
    assert kept is not None
    exits.asked(kept, 0.0)
    changes = exits.update([three, two._replace(weight=5.0, max_connections=1, country="de")])
    assert (names(changes.added), names(changes.removed)) == (["e2"], ["e0"])
    assert exits.named("e1") is kept
    assert (kept.open, kept.weight, kept.is_full, kept.country) == (1, 5.0, True, "de")
    assert names(exits) == ["e1", "e2"]  # who stays keeps its place
    assert available(exits) == ["e2"]


def test_offers_with_one_key_are_one_exit() -> None:
    first, again = Offer(House("a"), key="k", weight=2.0), Offer(House("a"), key="k")
    exits = roster(first, again)
    member = next(iter(exits))
    assert (len(exits), member.weight) == (1, 2.0)
    assert exits.update([again]) == ([], [])
    assert next(iter(exits)).exit is first.exit


def test_a_name_is_free_again_when_its_exit_has_gone() -> None:
    exits = roster(Offer(House("a"), name="x"))
    exits.update([Offer(House("b"), name="x"), Offer(House("c"), name="x")])
    assert names(exits) == ["x", "x-2"]


# --- who may be asked -------------------------------------------------------------------------


def test_who_has_given_up_is_left_out() -> None:
    exits = roster(*offers(3))
    assert available(exits, 0.0, *[exits.named("e1")]) == ["e0", "e2"]
    assert available(exits, 0.0, *exits) == []


def test_a_wish_leaves_those_that_fulfil_it() -> None:
    a, b, c, d = offers(4)
    exits = roster(
        a._replace(country="de", tags=("fast", "mobile")),
        b._replace(country="de", tags=("mobile",)),
        c._replace(country="fr"),
        d._replace(any_country=True),
    )
    assert available(exits, wish=Wish(country="de")) == ["e0", "e1", "e3"]
    assert available(exits, wish=Wish(tags=("fast", "mobile"))) == ["e0"]
    assert available(exits, wish=Wish(exit="e2")) == ["e2"]
    assert available(exits, wish=Wish(exit="e2", country="de")) == []
    assert names(exits.fulfilling(Wish(tags=("mobile",)))) == ["e0", "e1"]
    assert names(exits.fulfilling(Wish(session="x"))) == ["e0", "e1", "e2", "e3"]


def test_who_can_not_serve_a_command_is_not_asked_for_it() -> None:
    exits = roster(Offer(House("a"), name="a"), Offer(Associating("b"), name="b"))
    assert available(exits, command=Command.UDP_ASSOCIATE) == ["b"]
    assert available(exits, command=Command.BIND) == []


def test_a_full_exit_is_left_out_until_a_connection_ends() -> None:
    exits = roster(*offers(2, max_connections=1))
    one = exits.named("e0")
    assert one is not None
    exits.asked(one, 0.0)
    exits.answered(one)
    exits.connected(one, 0.0)
    assert available(exits) == ["e1"]
    exits.left(one, 1, 1, 0.0)
    assert available(exits) == ["e0", "e1"]


def test_so_many_requests_a_minute_and_no_more() -> None:
    exits = roster(*offers(1, requests_per_minute=2))
    one = exits.named("e0")
    assert one is not None
    for now in (0.0, 10.0):
        assert available(exits, now) == ["e0"]
        exits.asked(one, now)
        exits.answered(one)
    for now in (10.0, 59.9):
        assert available(exits, now) == []
    assert available(exits, 60.0) == ["e0"]
    exits.asked(one, 60.0)
    assert available(exits, 69.9) == []
    assert available(exits, 70.0) == ["e0"]


@given(st.lists(st.floats(0, 500), max_size=60).map(sorted), st.integers(1, 5))
def test_in_no_minute_there_are_more(times: list[float], most: int) -> None:
    exits = roster(*offers(1, requests_per_minute=most))
    one = next(iter(exits))
    asked: list[float] = []
    for now in times:
        if available(exits, now):
            exits.asked(one, now)
            exits.answered(one)
            asked.append(now)
    assert all(later - first >= 60 for first, later in zip(asked, asked[most:], strict=False))


def test_of_an_unproven_exit_only_a_few_requests_are_in_doubt_at_a_time() -> None:
    exits = roster(*offers(2))
    dead = exits.named("e0")
    assert dead is not None
    for _ in range(4):
        assert "e0" in available(exits)
        exits.asked(dead, 0.0)
    assert available(exits) == ["e1"]
    exits.answered(dead)
    assert available(exits) == ["e0", "e1"]
    exits.asked(dead, 0.0)
    exits.answered(dead)
    exits.connected(dead, 0.0)  # proven
    for _ in range(20):
        exits.asked(dead, 0.0)
    assert available(exits) == ["e0", "e1"]


def test_where_there_is_nobody_else_an_unproven_exit_takes_more() -> None:
    exits = roster(*offers(1))
    one = next(iter(exits))
    for _ in range(50):
        assert available(exits) == ["e0"]
        exits.asked(one, 0.0)


def test_who_is_out_is_asked_again_when_its_time_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exits = roster(*offers(3))
    with caplog.at_level(logging.WARNING, "gsocks.rotation"):
        member = put_out(exits, "e1")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("exit e1 (exit1) is out for ")
    assert caplog.messages[0].endswith(": dead")
    back = member.health.out_until
    assert 0 < back < 300
    assert available(exits, back / 2) == ["e0", "e2"]
    assert available(exits, back) == ["e0", "e1", "e2"]


def test_requests_put_out_half_of_the_exits_at_most() -> None:
    exits = roster(*offers(4))
    for member in exits:
        for _ in range(10):
            exits.failed(member, FAILED, 0.0)
    assert len(available(exits)) == 2


def test_when_all_that_fit_are_out_the_least_bad_are_asked() -> None:
    exits = roster(*offers(20))
    out = [put_out(exits, f"e{number}") for number in range(6)]
    soonest = sorted(out, key=lambda member: member.health.out_until)[:4]
    fit = exits.available(to(), [each for each in exits if each not in out], 0.0)
    assert set(fit) == set(soonest)


def test_banned_and_drained_exits_are_never_asked() -> None:
    exits = roster(*offers(2))
    one, two = exits
    one.banned_until = 100.0
    two.draining = True
    exits.changed()
    assert available(exits) == []
    assert available(exits, 100.0) == ["e0"]


def test_what_a_check_says_counts_at_once() -> None:
    exits = roster(*offers(2))
    one = exits.named("e0")
    assert one is not None
    assert available(exits) == ["e0", "e1"]
    exits.checked(one, False, 0.0)
    assert available(exits, 1e9) == ["e1"]
    exits.checked(one, True, 1e9)
    assert available(exits, 1e9) == ["e0", "e1"]


# --- for one domain ---------------------------------------------------------------------------


def test_an_exit_banned_for_a_domain_stays_in_use_for_the_others() -> None:
    exits = roster(*offers(2))
    exits.domains.ban("e0", "shop.example", 100.0, 0.0)
    for host in ("shop.example", "www.shop.example", "a.b.shop.example"):
        assert available(exits, 1.0, host=host) == ["e1"]
    for host in ("example", "myshop.example", "other.example", "192.0.2.1"):
        assert available(exits, 1.0, host=host) == ["e0", "e1"]
    assert available(exits, 100.0, host="shop.example") == ["e0", "e1"]
    one = exits.named("e0")
    assert one is not None
    assert not exits.serves(one, to("www.shop.example"), 1.0)
    assert exits.serves(one, to("other.example"), 1.0)


def test_a_domain_that_has_banned_all_is_still_served() -> None:
    exits = roster(*offers(2))
    for name in ("e0", "e1"):
        exits.domains.ban(name, SITE, 100.0, 0.0)
    assert available(exits, 1.0) == ["e0", "e1"]


# --- lies -------------------------------------------------------------------------------------


def serve(
    exits: Roster, member: Member, up: int, down: int, now: float = 0.0, host: str = SITE
) -> None:
    exits.asked(member, now)
    exits.answered(member)
    exits.connected(member, now)
    exits.left(member, up, down, now, dest=Address(host, 443))


def test_who_says_it_is_connected_and_is_not_is_found_out() -> None:
    exits = roster(*offers(2))
    liar = exits.named("e0")
    assert liar is not None
    for number in range(2):
        serve(exits, liar, up=100, down=0, host=f"{number}.example")
    assert not liar.health.is_out(0.0)
    serve(exits, liar, up=100, down=0, host="2.example")
    assert liar.health.is_out(0.0)
    assert liar.counts.last_error == "connected, but nothing came back"
    back = liar.health.out_until
    serve(exits, liar, up=100, down=0, now=back)  # it has learned nothing
    assert liar.health.is_out(back)


def test_a_site_that_never_answers_is_no_failure_of_the_exits_for_others() -> None:
    exits = roster(*offers(3))
    for _ in range(5):
        for member in exits:
            serve(exits, member, up=100, down=0)
    assert available(exits, host="other.example") == ["e0", "e1", "e2"]
    assert available(exits)  # the site itself is still asked, by the least bad ones
    assert [member.counts.failed for member in exits] == [0, 0, 0]


def test_an_exit_through_which_one_site_says_nothing_is_not_asked_for_it() -> None:
    exits = roster(*offers(2))
    member = exits.named("e0")
    assert member is not None
    for _ in range(3):
        assert available(exits) == ["e0", "e1"]
        serve(exits, member, up=100, down=0)
    assert available(exits) == ["e1"]
    ((name, domain, state, back),) = exits.domains.listed(0.0)
    assert (name, domain, state) == ("e0", SITE, "out")
    assert available(exits, now=back) == ["e0", "e1"]
    serve(exits, member, up=100, down=0, now=back)  # it has learned nothing
    assert available(exits, now=back) == ["e1"]


def test_of_what_needs_no_answer_none_is_missed() -> None:
    exits = roster(*offers(2))
    member = exits.named("e0")
    assert member is not None
    for _ in range(10):
        exits.asked(member, 0.0)
        exits.answered(member)
        exits.left(member, 100, 0, 0.0)  # an association's datagrams
    assert available(exits) == ["e0", "e1"]


def test_silence_that_goes_on_is_not_gone_through_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exits = roster(*offers(1))
    (member,) = exits
    calls = []
    failed = Health.failed

    def counted(self: Health, *given: Any, **named: Any) -> bool:
        calls.append(1)
        return failed(self, *given, **named)

    monkeypatch.setattr(Health, "failed", counted)
    for number in range(300):
        serve(exits, member, up=1, down=0, host=f"{number % 7}.example")
        exits.doubted(member, FAILED, 0.0)
    assert len(member.hollow) <= 4
    assert len(calls) <= 300 * 6


@pytest.mark.parametrize(("up", "down"), [(100, 1), (0, 0), (0, 100)])
def test_a_connection_through_which_something_comes_or_nothing_was_asked_is_no_lie(
    up: int, down: int
) -> None:
    exits = roster(*offers(2))
    honest = exits.named("e0")
    assert honest is not None
    for _ in range(10):
        serve(exits, honest, up, down)
    assert not honest.health.is_out(0.0)
    assert (honest.counts.up, honest.counts.down, honest.counts.connected) == (
        10 * up,
        10 * down,
        10,
    )


def test_an_answer_between_two_lies_clears_the_exit() -> None:
    exits = roster(*offers(2))
    member = exits.named("e0")
    assert member is not None
    for down in (0, 0, 5, 0, 0):
        serve(exits, member, 100, down)
    assert not member.health.is_out(0.0)


def test_doubts_in_a_row_put_an_exit_out_and_a_success_clears_them() -> None:
    exits = roster(*offers(2))
    member = exits.named("e0")
    assert member is not None
    for _ in range(2):
        exits.doubted(member, FAILED, 0.0)
    exits.connected(member, 0.0)
    for _ in range(2):
        exits.doubted(member, FAILED, 0.0)
    assert not member.health.is_out(0.0)
    exits.doubted(member, FAILED, 0.0)
    assert member.health.is_out(0.0)


def test_doubts_about_what_was_asked_before_the_last_success_count_for_nothing() -> None:
    exits = roster(*offers(2))
    member = exits.named("e0")
    assert member is not None
    exits.connected(member, 10.0)
    for _ in range(9):
        exits.doubted(member, FAILED, 12.0, began=9.0)
    assert not member.health.is_out(12.0)
    for _ in range(3):
        exits.doubted(member, FAILED, 12.0, began=11.0)
    assert member.health.is_out(12.0)


# --- the remembered answer --------------------------------------------------------------------

_STEPS = ["ask", "answer", "connect", "leave", "fail", "check", "down", "ban", "drain", "update"]


@given(st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 3)), max_size=60))
def test_what_is_remembered_is_what_would_be_found(steps: list[tuple[str, int]]) -> None:
    """Who may be asked is not looked up each time; it is as if it were."""
    every = offers(4, max_connections=2, requests_per_minute=6)
    exits = roster(*every)
    do: dict[str, Callable[[Member, float], object]] = {
        "ask": exits.asked,
        "answer": lambda member, _: member.health.asking and exits.answered(member),
        "connect": exits.connected,
        "leave": lambda member, now: member.open and exits.left(member, 1, 0, now),
        "fail": lambda member, now: exits.failed(member, FAILED, now),
        "check": lambda member, now: exits.checked(member, True, now),
        "down": lambda member, now: exits.checked(member, False, now),
        "ban": lambda member, now: (setattr(member, "banned_until", now + 5), exits.changed()),
        "drain": lambda member, _: (setattr(member, "draining", True), exits.changed()),
        "update": lambda member, _: exits.update(every),
    }
    for turn, (step, number) in enumerate(steps):
        now = 7.0 * turn
        member = list(exits)[number]
        do[step](member, now)
        remembered = available(exits, now)
        exits.changed()
        assert available(exits, now) == remembered


def test_thousands_of_exits_with_one_label_are_taken_in_a_moment() -> None:
    # gateways that have the session in the password
    given = [Offer(House("gate"), key=number) for number in range(10_000)]
    began = time.process_time()
    exits = roster(*given)
    assert time.process_time() - began < 2.0  # 0.1 s where this was written
    assert names(exits)[-1] == f"{derived_name('gate')}-10000"
