"""The exits as they stand: who may be asked now.  Time is handed in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.errors import ExitFailed
from gsocks.exits.spec import derived_name
from gsocks.request import ANY, Command, ExitSelector
from gsocks.rotation import roster as roster_of_exits
from gsocks.rotation.host_limits import HostLimits
from gsocks.rotation.outbound_address import OutboundAddress
from gsocks.rotation.policy import POLICIES, Weighted, make_policy
from gsocks.rotation.roster import FEW, Member, Offer, Roster
from gsocks.rotation.session import Like
from gsocks.rotation.views import Criteria, Traits, Views
from gsocks.settings import HealthSettings, PerHostSettings
from tests.support.rosters import (
    SITE,
    AssociatingExit,
    UnusedExit,
    available,
    judging,
    names,
    offers,
    roster,
    to,
)
from tests.support.waiting import cpu_seconds

FAILED = ExitFailed("dead")


def put_out(exits: Roster, name: str, now: float = 0.0) -> Member:
    member = exits.named(name)
    assert member is not None
    for _ in range(3):
        judging(exits).failed(member, to(), FAILED, now, began=now)
    assert member.health.is_ejected(now)
    return member


def serve(exits: Roster, member: Member, now: float) -> None:
    """A byte has come back through the exit."""
    judging(exits).answered(member, to(), now, began=now, took=0.0)


# --- names ------------------------------------------------------------------------------------


def test_an_exit_without_a_name_is_called_by_its_label_and_a_second_one_differs() -> None:
    exits = roster(
        Offer(UnusedExit("a")), Offer(UnusedExit("b"), name="mine"), Offer(UnusedExit("a"))
    )
    assert names(exits) == [derived_name("a"), "mine", derived_name("a") + "-2"]
    assert exits.named("mine") is list(exits)[1]
    assert exits.named("yours") is None


# --- other exits ------------------------------------------------------------------------------


def test_an_update_keeps_what_is_known_of_those_that_stay() -> None:
    one, two, three = offers(3)
    exits = roster(one, two)
    kept = exits.named("e1")
    assert kept is not None
    exits.request_sent(kept, 0.0)
    changes = exits.update([three, two._replace(weight=5.0, max_connections=1, country="de")])
    assert (names(changes.added), names(changes.removed)) == (["e2"], ["e0"])
    assert exits.named("e1") is kept
    assert (kept.open, kept.weight, kept.is_full, kept.country) == (1, 5.0, True, "de")
    assert names(exits) == ["e1", "e2"]  # who stays keeps its place
    assert available(exits) == ["e2"]


def test_offers_with_one_key_are_one_exit() -> None:
    first, again = Offer(UnusedExit("a"), key="k", weight=2.0), Offer(UnusedExit("a"), key="k")
    exits = roster(first, again)
    member = next(iter(exits))
    assert (len(exits), member.weight) == (1, 2.0)
    assert exits.update([again]) == ([], [])
    assert next(iter(exits)).exit is first.exit


def test_a_name_is_free_again_when_its_exit_has_gone() -> None:
    exits = roster(Offer(UnusedExit("a"), name="x"))
    exits.update([Offer(UnusedExit("b"), name="x"), Offer(UnusedExit("c"), name="x")])
    assert names(exits) == ["x", "x-2"]


# --- who may be asked -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_only_exit_serves_every_request_that_it_may_serve(policy: str) -> None:
    exits = roster(*offers(1), policy=make_policy(policy, Random(1)))
    (only,) = exits
    assert [exits.choose(to(), (), 0.0) for _ in range(3)] == [only] * 3
    assert exits.choose(to(), {only}, 0.0) is None
    only.draining = True
    exits.member_changed(only, 0.0)
    assert exits.choose(to(), (), 0.0) is None


@pytest.mark.parametrize("policy", ["round_robin", "least_recent"])
def test_the_turns_of_an_exit_without_others_count_when_others_come(policy: str) -> None:
    first, second = offers(2)
    exits = roster(first, policy=make_policy(policy, Random(1)))
    exits.choose(to(), (), 0.0)
    exits.update([first, second])
    chosen = exits.choose(to(), (), 0.0)
    assert chosen is exits.named("e1")


@pytest.mark.parametrize("policy", POLICIES)
def test_another_policy_chooses_among_all_exits_and_the_first_one_does_again(policy: str) -> None:
    exits = roster(*offers(4))
    for _ in range(10):  # so that their turns are far on
        exits.choose(to(), (), 0.0)
    exits.replace_policy(make_policy(policy, Random(1)))
    assert exits.policy_word == policy
    assert {exits.choose(to(), (), 0.0) for _ in range(64)} == set(exits)
    put_out(exits, "e3")
    assert available(exits) == ["e0", "e1", "e2"]
    exits.replace_policy(make_policy("round_robin", Random(1)))
    chosen = [exits.choose(to(), (), 0.0) for _ in range(6)]
    assert Counter(chosen) == {exits.named(name): 2 for name in ("e0", "e1", "e2")}


def test_a_ban_of_the_only_exit_for_a_domain_is_heeded_as_among_others() -> None:
    exits = roster(*offers(1))
    exits.domains.ban("e0", SITE, 60.0, 0.0)
    with_others = roster(*offers(2))
    for name in ("e0", "e1"):
        with_others.domains.ban(name, SITE, 60.0, 0.0)
    # the least bad one
    assert (exits.choose(to(), (), 0.0) is None) == (with_others.choose(to(), (), 0.0) is None)


def test_an_exit_that_does_not_serve_the_command_is_not_chosen_for_want_of_others() -> None:
    exits = roster(*offers(1))
    request = to()._replace(command=Command.UDP_ASSOCIATE)
    assert exits.choose(request, (), 0.0) is None


def test_who_has_given_up_is_left_out() -> None:
    exits = roster(*offers(3))
    named = exits.named("e1")
    assert named is not None
    assert available(exits, 0.0, named) == ["e0", "e2"]
    assert available(exits, 0.0, *exits) == []


def test_a_selector_leaves_the_exits_that_match_it() -> None:
    a, b, c, d = offers(4)
    exits = roster(
        a._replace(country="de", tags=("fast", "mobile")),
        b._replace(country="de", tags=("mobile",)),
        c._replace(country="fr"),
        d._replace(any_country=True),
    )
    assert available(exits, selector=ExitSelector(country="de")) == ["e0", "e1", "e3"]
    assert available(exits, selector=ExitSelector(tags=("fast", "mobile"))) == ["e0"]
    assert available(exits, selector=ExitSelector(exit="e2")) == ["e2"]
    assert available(exits, selector=ExitSelector(exit="e2", country="de")) == []
    assert names(exits.matching(ExitSelector(tags=("mobile",)), Command.CONNECT)) == ["e0", "e1"]
    assert names(exits.matching(ExitSelector(session="x"), Command.CONNECT)) == [
        "e0",
        "e1",
        "e2",
        "e3",
    ]


def test_who_can_not_serve_a_command_is_not_asked_for_it() -> None:
    exits = roster(Offer(UnusedExit("a"), name="a"), Offer(AssociatingExit("b"), name="b"))
    assert available(exits, command=Command.UDP_ASSOCIATE) == ["b"]
    assert available(exits, command=Command.BIND) == []


def test_a_full_exit_is_left_out_until_a_connection_ends() -> None:
    exits = roster(*offers(2, max_connections=1))
    one = exits.named("e0")
    assert one is not None
    exits.request_sent(one, 0.0)
    exits.request_done(one)
    serve(exits, one, 0.0)
    assert available(exits) == ["e1"]
    exits.connection_closed(one, to(), 1, 1)
    assert available(exits) == ["e0", "e1"]


def test_so_many_requests_a_minute_and_no_more() -> None:
    exits = roster(*offers(1, requests_per_minute=2))
    one = exits.named("e0")
    assert one is not None
    for now in (0.0, 10.0):
        assert available(exits, now) == ["e0"]
        exits.request_sent(one, now)
        exits.request_done(one)
    for now in (10.0, 59.9):
        assert available(exits, now) == []
    assert available(exits, 60.0) == ["e0"]
    exits.request_sent(one, 60.0)
    assert available(exits, 69.9) == []
    assert available(exits, 70.0) == ["e0"]


@given(st.lists(st.floats(0, 500), max_size=60).map(sorted), st.integers(1, 5))
def test_in_no_minute_there_are_more(times: list[float], most: int) -> None:
    exits = roster(*offers(1, requests_per_minute=most))
    one = next(iter(exits))
    asked: list[float] = []
    for now in times:
        if available(exits, now):
            exits.request_sent(one, now)
            exits.request_done(one)
            asked.append(now)
    assert all(later - first >= 60 for first, later in zip(asked, asked[most:], strict=False))


def test_of_an_unproven_exit_only_a_few_requests_are_in_doubt_at_a_time() -> None:
    exits = roster(*offers(2))
    dead = exits.named("e0")
    assert dead is not None
    for _ in range(4):
        assert "e0" in available(exits)
        exits.request_sent(dead, 0.0)
    assert available(exits) == ["e1"]
    exits.request_done(dead)
    assert available(exits) == ["e0", "e1"]
    exits.request_sent(dead, 0.0)
    exits.request_done(dead)
    serve(exits, dead, 0.0)  # proven
    for _ in range(20):
        exits.request_sent(dead, 0.0)
    assert available(exits) == ["e0", "e1"]


def test_where_there_is_no_other_exit_an_unproven_exit_takes_more() -> None:
    exits = roster(*offers(1))
    one = next(iter(exits))
    for _ in range(50):
        assert available(exits) == ["e0"]
        exits.request_sent(one, 0.0)


def test_who_is_out_is_asked_again_when_its_time_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exits = roster(*offers(3))
    with caplog.at_level(logging.WARNING, "gsocks.rotation"):
        member = put_out(exits, "e1")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("exit e1 (exit1) is ejected for ")
    assert caplog.messages[0].endswith(": dead")
    back = member.health.ejected_until
    assert 0 < back < 300
    assert available(exits, back / 2) == ["e0", "e2"]
    assert available(exits, back) == ["e0", "e1", "e2"]


def test_requests_put_out_half_of_the_exits_at_most() -> None:
    exits = roster(*offers(4))
    for member in exits:
        serve(exits, member, -1.0)
    for member in exits:
        for _ in range(10):
            judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
    assert len(available(exits)) == 2


def test_a_single_exit_is_never_ejected_by_requests() -> None:
    exits = roster(*offers(1))
    (member,) = exits
    for _ in range(10):
        judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
    assert member.health.state(0.0) == "degraded"


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (11, 5), (100, 50)])
def test_requests_eject_no_more_than_half_of_those_that_have_worked(count: int, most: int) -> None:
    exits = roster(*offers(count))
    for member in exits:
        serve(exits, member, -1.0)
    for _ in range(10):
        for member in exits:
            judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
    assert sum(member.health.is_ejected(0.0) for member in exits) == most


def test_exits_that_are_down_or_have_never_worked_are_no_part_of_the_share() -> None:
    exits = roster(*offers(12))
    every = list(exits)
    for member in every[:4]:
        judging(exits).checked(member, False, -1.0)
    for member in every[8:]:
        serve(exits, member, -1.0)
    for member in every[4:]:
        for _ in range(3):
            judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
    ejected = [member.health.is_ejected(0.0) for member in every[4:]]
    assert ejected == [True] * 4 + [True, True, False, False]


def test_when_one_comes_back_the_next_that_fails_is_ejected_at_once() -> None:
    exits = roster(*offers(2))
    first, second = exits
    for member in (first, second):
        serve(exits, member, -1.0)
    for _ in range(5):
        for member in (first, second):
            judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
    assert not second.health.is_ejected(0.0)
    back = first.health.ejected_until
    judging(exits).failed(second, to(), FAILED, back, began=back)
    assert second.health.is_ejected(back)


def test_when_all_that_fit_are_out_the_least_bad_are_asked() -> None:
    exits = roster(*offers(20))
    out = [put_out(exits, f"e{number}") for number in range(6)]
    soonest = sorted(out, key=lambda member: member.health.ejected_until)[:4]
    fit = exits.available(to(), [each for each in exits if each not in out], 0.0)
    assert set(fit) == set(soonest)


def test_banned_and_drained_exits_are_never_asked() -> None:
    exits = roster(*offers(2))
    one, two = exits
    one.banned_until = 100.0
    two.draining = True
    for each in exits:
        exits.member_changed(each, 0.0)
    assert available(exits) == []
    assert available(exits, 100.0) == ["e0"]


def test_what_a_check_says_counts_at_once() -> None:
    exits = roster(*offers(2))
    one = exits.named("e0")
    assert one is not None
    assert available(exits) == ["e0", "e1"]
    judging(exits).checked(one, False, 0.0)
    assert available(exits, 1e9) == ["e1"]
    judging(exits).checked(one, True, 1e9)
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


# --- the remembered answer --------------------------------------------------------------------

_STEPS = ["ask", "answer", "connect", "leave", "fail", "check", "down", "ban", "drain", "update"]


def is_ready(member: Member, now: float) -> bool:
    """Whether it gets requests before others do, from all that is known of it."""
    return not (
        member.draining
        or member.is_full
        or member.banned_until > now
        or member.rested_at > now
        or member.health.is_ejected(now)
        or member.health.is_busy
    )


def may_eject(exits: Roster, member: Member, now: float) -> bool:
    """Whether half of those that are in use, or were until requests ejected them, stay in use."""
    if not member.health.has_worked:
        return True
    up = [
        each.health
        for each in exits
        if not each.health.is_down and (each.health.has_worked or not each.health.is_ejected(now))
    ]
    return sum(each.is_ejected(now) for each in up) + 1 <= len(up) / 2


@given(st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 3)), max_size=60))
def test_what_is_remembered_is_what_would_be_found(steps: list[tuple[str, int]]) -> None:
    """Who may be asked is not looked up each time; it is as if it were."""
    every = offers(4, max_connections=2, requests_per_minute=6)
    exits = roster(*every)

    def ban(member: Member, now: float) -> None:
        member.banned_until = now + 5
        exits.member_changed(member, now)

    def drain(member: Member, now: float) -> None:
        member.draining = True
        exits.member_changed(member, now)

    def leave(member: Member) -> None:
        if member.open:
            exits.connection_closed(member, to(), 1)

    do: dict[str, Callable[[Member, float], object]] = {
        "ask": exits.request_sent,
        "answer": lambda member, _: exits.request_done(member) if member.health.in_flight else None,
        "connect": lambda member, now: serve(exits, member, now),
        "leave": lambda member, _: leave(member),
        "fail": lambda member, now: judging(exits).failed(member, to(), FAILED, now, began=now),
        "check": lambda member, now: judging(exits).checked(member, True, now),
        "down": lambda member, now: judging(exits).checked(member, False, now),
        "ban": ban,
        "drain": drain,
        "update": lambda member, _: exits.update(every),
    }
    for turn, (step, number) in enumerate(steps):
        now = 7.0 * turn
        member = list(exits)[number]
        do[step](member, now)
        ready = [each.name for each in exits if is_ready(each, now)]
        if ready:
            assert available(exits, now) == ready
            chosen = exits.choose(to(), (), now)
            assert chosen is not None
            assert chosen.name in ready
        assert exits.has_other(to(), (), now) == bool(available(exits, now))
        assert exits.may_eject(member, now) == may_eject(exits, member, now)


def test_exits_with_one_label_are_taken_as_quickly_as_those_with_many() -> None:
    # gateways that have the session in the password
    given = [Offer(UnusedExit("gate"), key=number) for number in range(10_000)]
    others = [Offer(UnusedExit(f"gate{number}"), key=number) for number in range(10_000)]
    exits = roster(*given)
    assert cpu_seconds(lambda: roster(*given)) < 10 * cpu_seconds(lambda: roster(*others))
    assert names(exits)[-1] == f"{derived_name('gate')}-10000"


# --- many -------------------------------------------------------------------------------------


def test_other_weights_count_at_once() -> None:
    light, heavy = offers(2)
    exits = roster(light._replace(weight=0.001), heavy, policy=Weighted())
    for _ in range(5):
        exits.choose(to(), (), 0.0)
    exits.update([light, heavy])
    chosen = Counter(names(exits.choose(to(), (), 0.0) for _ in range(20)))
    assert chosen == {"e0": 10, "e1": 10}


def test_of_exits_that_have_gone_none_counts_for_the_share_that_may_be_ejected() -> None:
    exits = roster(*offers(10))
    everybody = list(exits)
    for member in everybody[:6]:
        judging(exits).checked(member, False, -1.0)
    for member in everybody[6:]:
        serve(exits, member, -1.0)
    for member in everybody[6:]:
        for _ in range(3):
            judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
    assert [member.health.is_ejected(0.0) for member in everybody[6:]] == [True, True, False, False]
    exits.update([Offer(member.exit, name=member.name) for member in everybody[6:]])
    assert not exits.may_eject(everybody[9], 0.0)
    exits.update([Offer(member.exit, name=member.name) for member in everybody[8:]])
    assert exits.may_eject(everybody[9], 0.0)


def test_an_exit_of_many_has_to_show_again_that_it_works_after_an_ejection() -> None:
    exits = roster(*offers(20), few=16)
    member = next(iter(exits))
    serve(exits, member, 0.0)
    assert not member.needs_proof
    put_out(exits, member.name, 1.0)
    assert member.needs_proof
    back = member.health.ejected_until
    judging(exits).probed(member, True, "", back)
    assert member.needs_proof, "probes say nothing of exits that have worked"
    serve(exits, member, back)
    assert not member.needs_proof


def test_exits_that_have_yet_to_show_that_they_work_get_a_few_requests_beside_those_that_do() -> (
    None
):
    exits = roster(*offers(20), few=16)
    proven = list(exits)[:5]
    assert {chosen(exits).name for _ in range(60)} == set(names(exits))
    for member in proven:
        serve(exits, member, 0.0)
    counts = Counter(chosen(exits) in proven for _ in range(1000))
    assert 50 < counts[False] < 150
    # never for the last try of a request, nor for its second one
    for _ in range(200):
        assert exits.choose(to(), (), 0.0, proven_only=True) in proven
        assert exits.choose(to(), proven[:1], 0.0) in proven[1:]
    # for want of others they are all there is
    assert exits.choose(to(), proven, 0.0, proven_only=True) in list(exits)[5:]


def test_an_exit_of_many_that_has_failed_by_itself_has_to_show_that_it_works() -> None:
    exits = roster(*offers(20), few=16)
    first, second = list(exits)[:2]
    for member in (first, second):
        serve(exits, member, 0.0)
    judging(exits).failed(first, to(), FAILED, 1.0, began=1.0)
    assert (first.needs_proof, second.needs_proof) == (True, False)
    assert exits.choose(to(), (), 1.0, proven_only=True) is second
    serve(exits, first, 2.0)
    assert not first.needs_proof


def test_each_failure_of_an_unproven_exit_halves_the_requests_of_all_of_them() -> None:
    exits = roster(*offers(1000), few=16)
    proven, first, *_ = exits
    serve(exits, proven, 0.0)
    judging(exits).failed(first, to(), FAILED, 1.0, began=1.0)
    asked = sum(exits.choose(to(), (), 1.0) is not proven for _ in range(2000))
    assert 60 < asked < 140, "one in 20"


def test_what_is_asked_for_all_the_time_is_not_forgotten_for_what_is_rare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Views, "max_views", 3)
    countries = ["de", "fr", "it", "es", "pt"]
    given = offers(len(countries))
    exits = roster(
        *(offer._replace(country=word) for offer, word in zip(given, countries, strict=True))
    )
    usual = to()
    assert exits.choose(usual, (), 0.0)
    view = exits._views.known(Criteria(Command.CONNECT))
    assert view is not None
    for word in countries:
        for _ in range(3):
            assert exits.choose(usual, (), 0.0)
        assert exits.choose(to(selector=ExitSelector(country=word)), (), 0.0)
    assert exits._views.known(Criteria(Command.CONNECT)) is view


def test_what_was_asked_for_last_follows_the_exits() -> None:
    first, second = offers(2)
    exits = roster(first)
    assert exits.choose(to(), (), 0.0) is exits.named("e0")
    exits.update([second])
    chosen = exits.choose(to(), (), 0.0)
    assert chosen is exits.named("e1")
    assert chosen is not None


def test_an_exit_whose_country_is_learnt_is_among_the_exits_of_that_country() -> None:
    exits = roster(*offers(3))
    member = list(exits)[1]
    assert exits.learn(member, OutboundAddress("198.51.100.7", "de"), 0.0)
    assert exits.choose(to(selector=ExitSelector(country="de")), (), 0.0) is member
    assert len({exits.choose(to(), (), 0.0) for _ in range(3)}) == 3


def test_a_ban_holds_until_its_end_and_not_at_it() -> None:
    exits = roster(*offers(2))
    member = next(iter(exits))
    member.banned_until = 5.0
    assert exits.refuses(member, 4.9)
    assert not exits.refuses(member, 5.0)


@pytest.mark.parametrize("count", [2, 100])
def test_an_exit_that_rests_for_a_host_is_not_available_for_it_until_its_rest_is_over(
    count: int,
) -> None:
    limits = HostLimits(PerHostSettings(min_interval=5.0))
    exits = roster(*offers(count), host_limits=limits)
    first, second = list(exits)[:2]
    for member in list(exits)[2:]:
        member.draining = True
        exits.member_changed(member, 0.0)
    for now, member in ((0.0, first), (1.0, second)):
        assert exits.choose(to(), (), now) is member
        assert exits.take_turn(member, to(), now, 0.0) == now
        exits.give_turn_back(member, to())
    assert available(exits, 5.0) == [first.name]
    # by the turns of the policy the first one is next
    assert exits.choose(to(), (), 5.0) is first
    assert exits.choose(to(), (), 6.0) is second


def test_unproven_exits_get_the_fewer_requests_the_more_they_fail() -> None:
    exits = roster(*offers(1000), few=16)
    proven, *others = exits
    serve(exits, proven, 0.0)

    def share() -> int:
        return sum(exits.choose(to(), (), 1.0) is not proven for _ in range(2000))

    assert 140 < share() < 260
    for member in others[:5]:
        judging(exits).failed(member, to(), FAILED, 1.0, began=1.0)
    assert share() < 50
    for member in others[5:12]:
        serve(exits, member, 1.0)
    fresh = [member for member in others if member.needs_proof]
    assert 140 < sum(exits.choose(to(), (), 1.0) in fresh for _ in range(2000)) < 260


def test_a_few_exits_need_not_show_that_they_work() -> None:
    exits = roster(*offers(16), few=16)
    serve(exits, next(iter(exits)), 0.0)
    assert {chosen(exits).name for _ in range(16)} == set(names(exits))


def test_exits_that_are_added_to_a_short_list_have_to_show_that_they_work() -> None:
    some = offers(20)
    exits = roster(*some[:10], few=16)
    exits.update(some)
    assert [member.needs_proof for member in exits] == [False] * 10 + [True] * 10


def chosen(exits: Roster) -> Member:
    member = exits.choose(to(), (), 0.0)
    assert member is not None
    return member


@pytest.mark.parametrize("count", [10, 100])
def test_of_many_that_are_ejected_one_is_asked_that_is_back_soon(count: int) -> None:
    exits = roster(*offers(count), settings=HealthSettings(max_ejected=1.0))
    for number, member in enumerate(exits):
        for _ in range(3):
            judging(exits).failed(member, to(), FAILED, 0.0, began=0.0)
        member.health.ejected_until = 100.0 + number
    soon = list(exits)[: count // 2]
    for _ in range(20):
        assert chosen(exits) in soon
    assert exits.has_other(to(), soon, 0.0)
    assert exits.choose(to(), list(exits), 0.0) is None
    assert not exits.has_other(to(), list(exits), 0.0)


@pytest.mark.parametrize("count", [3, 100])
def test_a_domain_that_has_banned_nearly_all_is_served_by_the_others(count: int) -> None:
    exits = roster(*offers(count))
    for number in range(1, count):
        exits.domains.ban(f"e{number}", SITE, 100.0 + number, 0.0)
    assert {chosen(exits).name for _ in range(10)} == {"e0"}
    exits.domains.ban("e0", SITE, 50.0, 0.0)
    assert all(chosen(exits).name in names(exits)[: max(3, count // 2)] for _ in range(10))
    other = exits.choose(to("other.example"), (), 0.0)
    assert other is not None


@pytest.mark.parametrize("count", [5, 200])
def test_an_update_is_seen_by_every_view(count: int) -> None:
    some = offers(count, country="de", tags=("a",))
    exits = roster(*some)
    german, tagged = ExitSelector(country="de"), ExitSelector(tags=("a", "b"))
    assert exits.count(german) == count
    assert exits.choose(to(selector=tagged), (), 0.0) is None
    others = [offer._replace(tags=("a", "b")) for offer in some[:3]]
    exits.update([*others, *(offer._replace(country="fr") for offer in some[3:])])
    assert (exits.count(german), exits.count(tagged)) == (3, 3)
    for selector in (german, tagged):
        found = {exits.choose(to(selector=selector), (), 0.0) for _ in range(30)}
        assert found == set(list(exits)[:3])
    exits.update(others[:1])
    assert exits.choose(to(selector=german), (), 0.0) is next(iter(exits))
    assert exits.choose(to(selector=ExitSelector(country="fr")), (), 0.0) is None


def test_clients_that_ask_for_ever_other_exits_take_no_more_memory() -> None:
    tags = [f"t{number}" for number in range(12)]
    exits = roster(*(offer._replace(tags=tuple(tags)) for offer in offers(3)))
    for some in range(2**12):
        selected = tuple(tag for place, tag in enumerate(tags) if some >> place & 1)
        assert exits.choose(to(selector=ExitSelector(tags=selected)), (), 0.0) is not None
    (member, *_) = exits
    assert len(member.kind.views) <= 256


def test_sessions_that_come_from_anywhere_to_a_country_share_one_view_of_it() -> None:
    some = [offer._replace(country="de", tags=("fast",)) for offer in offers(FEW + 1)]
    exits = roster(*some)
    request = to(selector=ExitSelector(country="de", session="cart"))
    for country in ("fr", "es", "it", None):
        like = Like(("fast",), country)
        assert exits.winner(("", "cart"), 0, request, (), 0.0, like) is not None
    (member, *_) = exits
    assert len(member.kind.views) == 2  # of all exits, and this one


def test_how_many_exits_match_moves_no_session_among_those_that_stay() -> None:
    german = to(selector=ExitSelector(country="de"))

    def winners(count: int) -> list[Member]:
        some = [
            offer._replace(country="de" if number < count else "fr")
            for number, offer in enumerate(offers(FEW + 40))
        ]
        exits = roster(*some)
        found = [exits.winner(("", f"s{n}"), 0, german, (), 0.0, None) for n in range(300)]
        return [each for each in found if each is not None]

    more, fewer = names(winners(FEW + 1)), names(winners(FEW))
    moved = [old for old, new in zip(more, fewer, strict=True) if old != new]
    assert moved == [f"e{FEW}"] * more.count(f"e{FEW}")
    assert len(set(fewer)) > 40


def test_what_no_exit_matches_is_looked_for_once_until_there_is_one() -> None:
    some = offers(3)
    exits = roster(*some)
    italian = ExitSelector(country="it")
    looks = []

    class Counted(Criteria):
        def match(self, traits: Traits) -> bool:
            looks.append(1)
            return super().match(traits)

    view = exits._views.view(Counted(Command.CONNECT, "it"))
    for _ in range(10):
        assert exits.choose(to(selector=italian), (), 0.0) is None
        assert exits._views.view(Counted(Command.CONNECT, "it")) is view
    assert len(looks) == 1
    exits.update([*some, Offer(UnusedExit("rome"), country="it")])
    assert exits.choose(to(selector=italian), (), 0.0) is list(exits)[3]


def test_requests_are_served_while_an_update_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the exits that go until all others are there, and by each new one as soon as it is."""
    monkeypatch.setattr(roster_of_exits, "STEPS", 1)
    some, served = offers(300), list[str]()

    def give_way(_: bool) -> None:
        if exits is not None:
            served.append(chosen(exits).name)

    exits: Roster | None = None
    exits = Roster(some[:5], HealthSettings(), Random(1), give_way=give_way)
    exits.update(some[5:])
    assert len(served) >= 600
    assert set(served) >= {"e0", "e4", "e5", "e298"}
    assert {chosen(exits).name for _ in range(300)} == set(names(exits))


@pytest.mark.parametrize("name", POLICIES)
def test_a_request_costs_the_same_among_5000_exits_and_among_10(name: str) -> None:
    def made(count: int) -> Roster:
        some = [
            offer._replace(country="de" if number % 2 else "fr", tags=(f"t{number % 5}",))
            for number, offer in enumerate(offers(count))
        ]
        exits = roster(*some, policy=make_policy(name, Random(1)))
        for member in exits:
            if member.number % 4 == 3:
                judging(exits).checked(member, False, 0.0)
        return exits

    def serve(exits: Roster) -> None:
        evidence = judging(exits)
        for number in range(300):
            selector = (ANY, ExitSelector(country="de"), ExitSelector(tags=("t1",)))[number % 3]
            member = exits.choose(to(f"{number % 20}.example", selector=selector), (), 1.0)
            assert member is not None
            exits.request_sent(member, 1.0)
            exits.request_done(member)
            if number % 5:
                evidence.checked(member, True, 1.0)
            exits.connection_closed(member, to(), 1, 1)

    few, many = made(10), made(5000)
    for exits in (few, many):
        serve(exits)  # which makes the views
    costs = [
        min(cpu_seconds(lambda exits=exits: serve(exits)) for _ in range(3))  # type: ignore[misc]
        for exits in (few, many)
    ]
    assert costs[1] < 4 * costs[0]


def test_a_selector_that_comes_late_counts_no_exit_that_left_its_tier_before() -> None:
    exits = roster(*offers(2, tags=("fast",)))
    first, second = exits
    first.draining = True
    exits.member_changed(first, 0.0)
    assert not exits.has_other(to(selector=ExitSelector(tags=("fast",))), [second], 0.0)


@pytest.mark.usefixtures("never_hangs")
def test_requests_for_exits_that_are_still_being_sorted_wait_for_it() -> None:
    def give_way(_: bool) -> None:
        gevent.sleep(0)

    exits = Roster(offers(FEW + 1, tags=("fast",)), HealthSettings(), Random(1), give_way=give_way)
    request = to(selector=ExitSelector(tags=("fast",)))
    winner = partial(exits.winner, ("", "cart"), 0, request, (), 0.0, None)
    asked: list[Callable[[], Member | None]] = [lambda: exits.choose(request, (), 0.0), winner]
    waiting = [gevent.spawn(ask) for ask in asked * 2]
    chosen = [each.get() for each in waiting]
    assert None not in chosen
    assert chosen[1] is chosen[3]


def test_among_many_exits_only_the_sessions_of_one_that_goes_have_another_one() -> None:
    def winners(count: int, seed: int) -> list[Member]:
        exits = Roster(offers(count), HealthSettings(), Random(seed))
        found = [exits.winner(("", f"s{n}"), 0, to(), (), 0.0, None) for n in range(500)]
        return [each for each in found if each is not None]

    before, after = names(winners(300, 1)), names(winners(299, 2))
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert moved == ["e299"] * before.count("e299")
    assert len(set(before)) > 150


def test_an_outbound_address_is_learned_once_until_it_changes() -> None:
    (member,) = exits = roster(*offers(1))
    for address, is_new in (("203.0.113.7", True), ("203.0.113.7", False), ("203.0.113.8", True)):
        assert exits.learn(member, OutboundAddress(address, None), 0.0) == is_new
