"""Sessions: which exit each has, how long, and what makes it move."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from gsocks.request import ANY, ExitSelector
from gsocks.rotation.session import ListedExits, SessionKey, Sessions, fraction, winner
from gsocks.settings import SessionSettings

ALICE = ("alice", "x")


class House(NamedTuple):
    name: str
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    country: str | None = None
    address: str | None = None


def houses(count: int) -> list[House]:
    return [House(f"exit-{number}") for number in range(count)]


def keys(count: int) -> list[SessionKey]:
    return [(f"user-{number % 7}", f"session-{number}") for number in range(count)]


def choose(
    sessions: Sessions,
    exits: Sequence[House],
    now: float = 0.0,
    *,
    out: Sequence[House] = (),
    key: SessionKey = ALICE,
    selector: ExitSelector = ANY,
) -> House:
    available = [each for each in exits if each not in out]
    return sessions.choose(key, selector, ListedExits(selector, exits, available), now)


# --- which exit -------------------------------------------------------------------------------

VECTORS = [
    (("", "x"), 0, "exit-4"),
    (("alice", "x"), 0, "exit-3"),
    (("alice", "x"), 1, "exit-4"),
    (("alice", "550e8400-e29b-41d4-a716-446655440000"), 0, "exit-7"),
    (("Zoë", "y"), 7, "exit-8"),
]


def test_every_process_chooses_the_same_exit() -> None:
    script = (
        "from tests.test_session import *\n"
        "print([winner(key, 0, houses(50)).name for key in keys(20)])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {f"{[winner(key, 0, houses(50)).name for key in keys(20)]}\n"}


@pytest.mark.parametrize(("key", "generation", "name"), VECTORS)
def test_no_release_chooses_another_exit(key: SessionKey, generation: int, name: str) -> None:
    assert winner(key, generation, houses(10)).name == name


def test_the_order_of_the_exits_means_nothing() -> None:
    exits = houses(20)
    for key in keys(50):
        assert winner(key, 0, exits) is winner(key, 0, exits[::-1])


def test_user_and_session_are_told_apart() -> None:
    exits = houses(1000)
    chosen = [winner(key, 0, exits) for key in (("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""))]
    assert len(set(chosen)) == 4


@pytest.mark.parametrize("number", [0, 1, 2**63, 2**64 - 1])
def test_every_hash_is_a_number_between_0_and_1_and_none_of_these(number: int) -> None:
    assert 0.0 < fraction(number) < 1.0
    assert fraction(number) * 2**53 % 2 == 1.0, "the middle of a step"


def test_sessions_are_shared_out_by_weight() -> None:
    exits = [House("a", 1.0), House("b", 2.0), House("c", 0.5), House("d", 6.5)]
    counts = Counter(winner(key, 0, exits).name for key in keys(10_000))
    for each in exits:
        # five standard deviations of a binomial distribution
        share = each.weight / 10
        assert abs(counts[each.name] - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5


def test_only_the_sessions_of_an_exit_that_goes_have_another_one() -> None:
    exits = houses(10)
    gone = exits[3]
    left = [each for each in exits if each is not gone]
    before = {key: winner(key, 0, exits) for key in keys(2000)}
    after = {key: winner(key, 0, left) for key in keys(2000)}
    moved = [key for key in before if before[key] is not after[key]]
    assert moved == [key for key in before if before[key] is gone]
    assert 140 < len(moved) < 260
    # and those that have left spread over all others
    assert {after[key] for key in moved} == set(left)


def test_a_greater_weight_takes_sessions_and_moves_none_between_others() -> None:
    light, heavy = houses(10), houses(10)
    heavy[3] = House("exit-3", 3.0)
    moved = Counter(
        winner(key, 0, heavy).name
        for key in keys(2000)
        if winner(key, 0, heavy).name != winner(key, 0, light).name
    )
    assert set(moved) == {"exit-3"}


# --- how long ---------------------------------------------------------------------------------


def test_a_session_keeps_its_exit_while_others_come_and_go() -> None:
    sessions, exits = Sessions(), houses(10)
    first = {key: choose(sessions, exits, key=key) for key in keys(200)}
    more = exits + [House(f"new-{number}") for number in range(20)]
    assert any(winner(key, 0, more) is not first[key] for key in first)
    for key, home in first.items():
        others = [each for each in more if each.name != "exit-1" or each is home]
        assert choose(sessions, others, 1.0, key=key) is home


def test_a_session_that_moved_does_not_move_back(caplog: pytest.LogCaptureFixture) -> None:
    sessions, exits = Sessions(), houses(5)
    first = choose(sessions, exits)
    with caplog.at_level(logging.INFO, "gsocks.rotation"):
        second = choose(sessions, exits, 1.0, out=[first])
        assert choose(sessions, exits, 2.0) is second
    assert second is winner(ALICE, 0, [each for each in exits if each is not first])
    assert caplog.messages == [
        f"session x of alice moves from exit {first.name} to {second.name}:"
        " its exit can't be used now"
    ]


def test_a_session_moves_to_an_exit_with_the_same_tags_and_country() -> None:
    german = [House(f"de-{n}", 1.0, ("fast", "mobile"), "de") for n in range(3)]
    others = [
        *(House(f"plain-{n}", 1.0, ("mobile",), "de") for n in range(20)),
        *(House(f"fr-{n}", 1.0, ("fast", "mobile"), "fr") for n in range(20)),
    ]
    sessions = Sessions()
    first = choose(sessions, german, selector=ExitSelector(country="de"))
    sessions.served(ALICE, first.name)
    second = choose(sessions, german + others, 1.0, out=[first])
    third = choose(sessions, german + others, 2.0, out=[first, second])
    assert {first, second, third} == set(german)
    # there is no other one: it fails as its exit does
    assert choose(sessions, german + others, 3.0, out=german) is third
    assert choose(sessions, german + others, 4.0, out=german[:2]) == choose(
        sessions, german + others, 5.0
    )


def test_where_a_country_is_selected_an_exit_of_every_country_matches() -> None:
    german, gateway = House("de-1", country="de"), House("gateway", country="us")
    for selector, moves in ((ExitSelector(country="de"), True), (ANY, False)):
        sessions = Sessions()
        assert choose(sessions, [german], selector=selector) is german
        sessions.served(ALICE, german.name)
        moved = choose(sessions, [german, gateway], 1.0, out=[german], selector=selector)
        assert moved is (gateway if moves else german)


def test_a_session_keeps_its_exit_when_the_list_is_read_again() -> None:
    sessions = Sessions()
    first = choose(sessions, houses(5))
    again = choose(sessions, houses(5)[::-1], 1.0)
    assert again.name == first.name
    assert again is not first


def test_a_session_whose_exit_is_gone_moves_to_one_like_it_if_there_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = Sessions()
    choose(sessions, [House("de-1", country="de")])
    sessions.served(ALICE, "de-1")
    others = [House("de-2", country="de"), *houses(50)]
    with caplog.at_level(logging.INFO, "gsocks.rotation"):
        assert choose(sessions, others, 1.0).name == "de-2"
        assert choose(sessions, houses(50), 2.0) == winner(ALICE, 0, houses(50))
    assert caplog.messages[0] == (
        "session x of alice moves from exit de-1 to de-2:"
        " its exit was removed, or does not match the selector"
    )


def test_a_session_that_no_exit_has_served_moves_to_any() -> None:
    sessions = Sessions()
    dead = choose(sessions, [House("de-1", country="de")])
    assert choose(sessions, [dead, *houses(9)], 1.0, out=[dead]) == winner(ALICE, 0, houses(9))


def test_a_session_keeps_the_exit_that_has_served_it_until_it_is_to_have_another() -> None:
    sessions = Sessions(SessionSettings(idle=100.0))
    selector = ExitSelector(session="x", lifetime=50.0)
    assert sessions.kept(ALICE, selector, 0.0) is None
    exit_ = choose(sessions, houses(5), selector=selector)
    assert sessions.kept(ALICE, selector, 0.0) is None
    sessions.served(ALICE, "another")  # a late word of an exit that it has left
    assert sessions.kept(ALICE, selector, 0.0) is None
    sessions.served(ALICE, exit_.name)
    assert sessions.kept(ALICE, selector, 49.0) == exit_.name
    assert sessions.kept(ALICE, selector, 50.0) is None
    sessions.rotate(ALICE, 10.0)
    assert sessions.kept(ALICE, selector, 10.0) is None
    other = choose(sessions, houses(5), 11.0, selector=selector)
    assert sessions.kept(ALICE, selector, 11.0) is None
    sessions.served(ALICE, other.name)
    assert sessions.kept(ALICE, selector, 11.0) != exit_.name
    assert sessions.kept(ALICE, selector, 200.0) is None


def test_a_new_session_goes_to_an_exit_that_can_be_used_if_there_is_one() -> None:
    exits = houses(5)
    best = winner(ALICE, 0, exits)
    second = winner(ALICE, 0, [each for each in exits if each is not best])
    assert choose(Sessions(), exits, out=[best]) is second
    assert choose(Sessions(), exits, out=exits) is best


def test_after_its_lifetime_a_session_has_another_exit(caplog: pytest.LogCaptureFixture) -> None:
    exits = houses(3)
    for key in keys(30):
        sessions = Sessions(SessionSettings(idle=100.0))
        selector = ExitSelector(lifetime=250.0)
        caplog.clear()
        with caplog.at_level(logging.INFO, "gsocks.rotation"):
            homes = [
                choose(sessions, exits, now, key=key, selector=selector)
                for now in range(0, 500, 50)
            ]
        assert set(homes[:5]) == {homes[0]}
        assert set(homes[5:]) == {homes[5]}
        assert homes[5] is not homes[0]
        assert len(caplog.messages) == 1
        assert caplog.messages[0].endswith("its lifetime is over")


def test_no_session_lasts_longer_than_the_inbound_lets_it() -> None:
    sessions, exits = Sessions(SessionSettings(longest=10.0)), houses(3)
    for selector in (ANY, ExitSelector(lifetime=1e9)):
        homes = [
            choose(sessions, exits, now, key=("", str(selector)), selector=selector)
            for now in (0, 9, 10)
        ]
        assert homes[0] is homes[1] is not homes[2]


def test_an_idle_session_is_forgotten_and_comes_to_the_exit_that_every_process_chooses() -> None:
    sessions, exits = Sessions(SessionSettings(idle=10.0)), houses(5)
    home = choose(sessions, exits)
    moved = choose(sessions, exits, 1.0, out=[home])
    assert choose(sessions, exits, 10.0) is moved
    assert choose(sessions, exits, 20.0) is home
    assert len(sessions) == 1


def test_only_exit_stays_after_its_lifetime(caplog: pytest.LogCaptureFixture) -> None:
    sessions, exits = Sessions(SessionSettings(longest=10.0)), houses(1)
    with caplog.at_level(logging.INFO, "gsocks.rotation"):
        assert {choose(sessions, exits, now) for now in (0.0, 10.0, 25.0)} == set(exits)
    assert not caplog.messages


def test_a_session_that_must_move_stays_where_no_other_exit_is_available() -> None:
    for key in keys(10):
        sessions, exits = Sessions(), houses(8)
        home = choose(sessions, exits, key=key)
        sessions.rotate(key, 1.0)
        others = [each for each in exits if each is not home]
        assert choose(sessions, exits, 1.0, out=others, key=key) is home


def test_a_session_whose_exit_is_gone_moves_to_one_that_is_available() -> None:
    for key in keys(10):
        sessions = Sessions()
        choose(sessions, [House("de-1", country="de")], key=key)
        sessions.served(key, "de-1")
        exits = houses(8)
        assert choose(sessions, exits, 1.0, out=exits[:6], key=key) in exits[6:]


# --- another one now --------------------------------------------------------------------------


def test_a_rotated_session_has_another_exit_at_its_next_request() -> None:
    for key in keys(30):
        sessions, exits = Sessions(), houses(3)
        seen = [choose(sessions, exits, key=key)]
        for now in range(1, 10):
            sessions.rotate(key, now)
            seen.append(choose(sessions, exits, now, key=key))
            assert choose(sessions, exits, now, key=key) is seen[-1]
            assert seen[-1] is not seen[-2]


def test_a_rotated_session_has_another_name_for_the_gateways_behind_which_exits_stand() -> None:
    sessions, exits = Sessions(SessionSettings(idle=10.0)), houses(1)
    assert sessions.name_at_exit(ALICE) == "x"
    names = []
    for now in range(3):
        choose(sessions, exits, now)
        names.append(sessions.name_at_exit(ALICE))
        sessions.rotate(ALICE, now)
    assert names == ["x", "x/1", "x/2"]
    choose(sessions, exits, 20.0)
    assert sessions.name_at_exit(ALICE) == "x"


def test_processes_that_are_told_to_rotate_agree_whether_they_know_the_session_or_not() -> None:
    exits = houses(3)
    for key in keys(30):
        knowing, new = Sessions(), Sessions()
        home = choose(knowing, exits, key=key)
        for sessions in (knowing, new):
            sessions.rotate(key, 1.0)
        moved = choose(knowing, exits, 2.0, key=key)
        assert moved is choose(new, exits, 2.0, key=key)
        assert moved is not home


def test_a_session_that_moves_before_its_first_request_has_an_exit_though_none_may_be_used() -> (
    None
):
    for key in keys(10):
        sessions, exits = Sessions(), houses(4)
        sessions.rotate(key, 1.0)
        assert choose(sessions, exits, 2.0, out=exits, key=key) in exits


def test_a_session_that_an_exit_serves_for_the_first_time_is_to_be_written_down() -> None:
    sessions, exits = Sessions(), houses(3)
    sessions.changed = set()
    home = choose(sessions, exits)
    sessions.changed.clear()
    for expected in ({ALICE}, set()):
        sessions.served(ALICE, home.name)
        assert sessions.changed == expected
        sessions.changed.clear()


# --- what is remembered -----------------------------------------------------------------------


def test_so_many_sessions_are_remembered_and_the_silent_ones_are_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sessions, "max_sessions", 10)
    sessions, exits = Sessions(), houses(3)
    for now, key in enumerate(keys(10)):
        choose(sessions, exits, now, key=key)
    choose(sessions, exits, 10.0, key=keys(1)[0])
    for now, key in enumerate(keys(14)[10:], 11):
        choose(sessions, exits, now, key=key)
    assert [seen.key for seen in sessions.listing(20.0)] == [
        *keys(10)[5:],
        keys(1)[0],
        *keys(14)[10:],
    ]


def test_the_listing_tells_where_each_session_is_and_since_when() -> None:
    sessions, exits = Sessions(SessionSettings(idle=100.0)), houses(3)
    home = choose(sessions, exits, 5.0)
    choose(sessions, exits, 50.0)
    sessions.rotate(("bob", "y"), 60.0)  # it has no exit yet
    assert [tuple(seen) for seen in sessions.listing(60.0)] == [(ALICE, home.name, 5.0, 50.0)]
    assert list(sessions.listing(150.0)) == []
    assert len(sessions) == 1
