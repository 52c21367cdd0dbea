"""The policies: what each promises of its choices, exactly or by how they are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest

from gsocks.errors import ConfigError
from gsocks.rotation.policy import (
    POLICIES,
    Candidate,
    DecayedAverage,
    LeastRecent,
    Policy,
    make_policy,
)

every_policy = pytest.mark.parametrize("name", POLICIES)


def candidates(*weights: float) -> list[Candidate]:
    return [Candidate(number, weight) for number, weight in enumerate(weights)]


def policy(name: str, seed: int = 1) -> Policy:
    return make_policy(name, Random(seed))


def choices(
    chooser: Policy, among: Sequence[Candidate], count: int, host: str = "a.example"
) -> list[int]:
    return [chooser.choose(among, host, now).number for now in map(float, range(count))]


def assert_fits(counts: Counter[int], expected: dict[int, float]) -> None:
    """Pearson's chi-square; beyond the bound once in a million for up to ten exits."""
    statistic = sum((counts[each] - share) ** 2 / share for each, share in expected.items())
    assert statistic < 45
    assert set(counts) <= set(expected)


# --- what all promise -------------------------------------------------------------------------


@every_policy
def test_the_only_candidate_is_chosen(name: str) -> None:
    assert choices(policy(name), candidates(1.0), 5) == [0] * 5


@every_policy
def test_only_candidates_are_chosen(name: str) -> None:
    chooser, everybody, chance = policy(name), candidates(*[1.0] * 9), Random(3)
    for now in range(500):
        some = sorted(chance.sample(everybody, chance.randint(1, 9)), key=lambda each: each.number)
        assert chooser.choose(some, f"{now % 7}.example", float(now)) in some


@every_policy
def test_the_same_chance_makes_the_same_choices(name: str) -> None:
    first, second = (choices(policy(name, 7), candidates(1.0, 2.0, 3.0), 200) for _ in "12")
    assert first == second


@every_policy
def test_equal_exits_get_equal_shares(name: str) -> None:
    counts = Counter(choices(policy(name), candidates(*[1.0] * 10), 10_000))
    assert_fits(counts, dict.fromkeys(range(10), 1000.0))


@pytest.mark.parametrize("name", ["random", "least_connections", "fastest", "least_recent"])
def test_another_chance_makes_other_choices(name: str) -> None:
    among = candidates(*[1.0] * 10)
    assert choices(policy(name, 1), among, 50) != choices(policy(name, 2), among, 50)


def test_an_unknown_policy_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"'rond_robin' is not a policy \(did you mean round_"
    ) as e:
        make_policy("rond_robin", Random())
    for name in POLICIES:
        assert name in str(e.value)


# --- round_robin ------------------------------------------------------------------------------


def test_round_robin_goes_on_in_the_order() -> None:
    assert choices(policy("round_robin"), candidates(1, 1, 1), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_stays_even_while_some_are_missing() -> None:
    everybody, chooser = candidates(*[1.0] * 6), policy("round_robin")
    there = [everybody[0], everybody[1], everybody[5]]
    assert choices(chooser, there, 6) == [0, 1, 5, 0, 1, 5]
    # those that come back have had no turn for longest, and get one each, not all that they missed
    assert choices(chooser, everybody, 9) == [2, 3, 4, 0, 1, 5, 2, 3, 4]


def test_round_robin_starves_nobody_where_wishes_of_two_kinds_take_turns() -> None:
    everybody, chooser = candidates(*[1.0] * 6), policy("round_robin")
    of_a_country = everybody[3:]
    any_, some = Counter[int](), Counter[int]()
    for _ in range(600):
        any_.update(choices(chooser, everybody, 1))
        some.update(choices(chooser, of_a_country, 1))
    assert min((any_ + some)[each.number] for each in everybody) >= 150
    assert some == {3: 200, 4: 200, 5: 200}


def test_round_robin_starves_nobody_while_the_candidates_change_all_the_time() -> None:
    everybody, chooser, chance = candidates(*[1.0] * 10), policy("round_robin"), Random(5)
    counts = Counter[int]()
    for _ in range(2000):
        some = sorted(chance.sample(everybody, 7), key=lambda each: each.number)
        counts.update(choices(chooser, some, 1))
    assert max(counts.values()) - min(counts.values()) <= 10


# --- weighted ---------------------------------------------------------------------------------


def test_weights_are_exact_over_each_round_and_spread_evenly() -> None:
    assert choices(policy("weighted"), candidates(5, 1, 1), 14) == [0, 0, 1, 0, 2, 0, 0] * 2
    counts = Counter(choices(policy("weighted"), candidates(0.5, 1.5, 3), 1000))
    assert counts == {0: 100, 1: 300, 2: 600}


def test_weights_hold_among_those_that_are_there() -> None:
    everybody, chooser = candidates(1, 2, 3), policy("weighted")
    choices(chooser, everybody, 5)
    counts = Counter(choices(chooser, everybody[1:], 500))
    assert counts[1] == pytest.approx(200, abs=1)
    counts = Counter(choices(chooser, everybody, 600))
    assert counts == pytest.approx({0: 100, 1: 200, 2: 300}, abs=2)


def test_what_weights_owed_among_many_is_no_burst_among_the_few_that_are_left() -> None:
    everybody, chooser = candidates(*[1.0] * 1000), policy("weighted")
    choices(chooser, everybody, 500)
    few = [everybody[0], everybody[999]]  # that had its turn, and one that waits for it
    counts = Counter(choices(chooser, few, 20))
    assert min(counts[each.number] for each in few) >= 9


def test_other_weights_count_at_once() -> None:
    among, chooser = candidates(1000, 1), policy("weighted")
    choices(chooser, among, 501)
    for each in among:
        each.weight = 1
    counts = Counter(choices(chooser, among, 20))
    assert min(counts[each.number] for each in among) >= 9


# --- least_connections ------------------------------------------------------------------------


def test_least_connections_levels_what_is_open() -> None:
    among, chooser = candidates(1, 1, 1, 1), policy("least_connections")
    among[1].open, among[3].open = 7, 2
    for _ in range(23):
        chooser.choose(among, "a.example", 0.0).open += 1
    assert [each.open for each in among] == [8, 8, 8, 8]


def test_least_connections_weighs() -> None:
    among, chooser = candidates(1, 3), policy("least_connections")
    for _ in range(400):
        chooser.choose(among, "a.example", 0.0).open += 1
    assert [each.open for each in among] == [100, 300]


# --- fastest ----------------------------------------------------------------------------------


def test_of_two_the_fastest_is_chosen() -> None:
    among = candidates(1, 1)
    among[0].connect_time.add(0.3, 0.0)
    among[1].connect_time.add(0.2, 0.0)
    assert set(choices(policy("fastest"), among, 20)) == {1}


def test_the_faster_the_more_often() -> None:
    among = candidates(*[1.0] * 5)
    for each in among:
        each.connect_time.add(0.1 * (each.number + 1), 0.0)
    chooser = policy("fastest")
    counts = Counter(chooser.choose(among, "a.example", 1.0).number for _ in range(10_000))
    # of the 10 pairs, the fastest is in 4 and wins them all, the next wins 3...
    assert_fits(counts, {0: 4000.0, 1: 3000.0, 2: 2000.0, 3: 1000.0})


def test_who_was_never_tried_is_tried() -> None:
    among = candidates(1, 1)
    among[0].connect_time.add(0.001, 0.0)
    assert choices(policy("fastest"), among, 3) == [1, 1, 1]


def test_among_equally_fast_ones_the_less_busy_is_chosen() -> None:
    among = candidates(1, 1)
    among[0].open = 1
    assert choices(policy("fastest"), among, 3) == [1, 1, 1]


def test_who_was_slow_is_tried_again_after_a_while() -> None:
    among, chooser = candidates(1, 1), policy("fastest")
    among[0].connect_time.add(10.0, 0.0)
    first_try = None
    for now in range(1000):
        among[1].connect_time.add(0.1, float(now))
        if chooser.choose(among, "a.example", float(now)) is among[0]:
            first_try = now
            break
    # 10 s fade to 0.1 s in log2(100) half-lives of 30 s
    assert first_try == pytest.approx(200, abs=2)


def test_an_average_follows_what_is_new_and_forgets_by_time() -> None:
    average = DecayedAverage()
    assert average.at(5.0) == 0
    average.add(0.8, 5.0)
    assert average.at(5.0) == 0.8
    average.add(0.0, 5.0)  # at once, and yet it counts for an eighth
    assert average.at(5.0) == pytest.approx(0.7)
    assert average.at(35.0) == pytest.approx(0.35)
    average.add(0.1, 35.0)  # half of the old, half of the new
    assert average.at(35.0) == pytest.approx(0.4)
    average.add(0.2, 1e9)
    assert average.at(1e9) == 0.2


# --- least_recent -----------------------------------------------------------------------------


def test_a_host_sees_every_exit_before_it_sees_one_again() -> None:
    chooser, among = policy("least_recent"), candidates(*[1.0] * 8)
    for host in ("a.example", "b.example"):
        drawn = choices(chooser, among, 24, host)
        assert set(drawn[:8]) == set(range(8))
        assert drawn[:8] == drawn[8:16] == drawn[16:]


def test_hosts_are_told_apart() -> None:
    chooser, among = policy("least_recent"), candidates(1, 1)
    seen: dict[str, list[int]] = {"a.example": [], "b.example": []}
    for now, host in enumerate(["a.example", "b.example", "b.example", "b.example"] * 5):
        seen[host].append(chooser.choose(among, host, float(now)).number)
    for drawn in seen.values():
        assert all(one != other for one, other in pairwise(drawn))


def test_only_so_many_hosts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeastRecent, "MAX_PAIRS", 10)
    chooser, among = LeastRecent(Random(1)), candidates(1, 1)
    first = chooser.choose(among, "a.example", 0.0)
    for number in range(9):
        chooser.choose(among, f"{number}.example", 0.0)
    assert chooser.choose(among, "a.example", 0.0) is not first
    assert len(chooser._seen) == 10
