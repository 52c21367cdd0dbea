"""The policies: what each promises of its choices, exactly or by how they are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from random import Random

import pytest

from gsocks.errors import ConfigError
from gsocks.rotation.policy import (
    POLICIES,
    Candidate,
    DecayedAverage,
    LeastRecent,
    Order,
    Policy,
    make_policy,
)

every_policy = pytest.mark.parametrize("name", POLICIES)


def candidates(*weights: float) -> list[Candidate]:
    return [Candidate(number, weight) for number, weight in enumerate(weights)]


class Orders:
    """The orders of one policy, each of some of the candidates that may be used."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._usable: dict[int, Candidate] = {}
        self._orders: dict[frozenset[int], Order[Candidate]] = {}

    def choose(
        self,
        among: Sequence[Candidate],
        host: str,
        now: float,
        allows: Callable[[Candidate], bool] | None = None,
    ) -> Candidate:
        """By the order of these, which no others have ever belonged to."""
        key = frozenset(each.slot for each in among)
        if key not in self._orders:
            self._orders[key] = self._policy.order(self._usable.get)
            for each in among:
                self._usable[each.slot] = each
                self._orders[key].add(each)
        chosen = self._orders[key].choose(host, now, allows)
        assert chosen is not None
        return chosen

    def open(self, candidate: Candidate, by: int = 1) -> None:
        """Open connections, or close them."""
        before = candidate.open
        candidate.open += by
        for order in self._orders.values():
            order.moved(candidate, before)


class Standing:
    """One order, whose candidates come and go."""

    def __init__(self, policy: Policy) -> None:
        self.usable: dict[int, Candidate] = {}
        self.order: Order[Candidate] = policy.order(self.usable.get)

    def set(self, some: Iterable[Candidate]) -> None:
        """These may be used, and no others."""
        self.usable.clear()
        for each in some:
            self.usable[each.slot] = each
            self.order.add(each)

    def choose(self, count: int, host: str = "a.example") -> list[int]:
        chosen = [self.order.choose(host, 0.0) for _ in range(count)]
        return [each.slot for each in chosen if each is not None]


def policy(name: str, seed: int = 1) -> Orders:
    return Orders(make_policy(name, Random(seed)))


def standing(name: str, seed: int = 1) -> Standing:
    return Standing(make_policy(name, Random(seed)))


def choices(
    chooser: Orders, among: Sequence[Candidate], count: int, host: str = "a.example"
) -> list[int]:
    return [chooser.choose(among, host, now).slot for now in map(float, range(count))]


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
        some = sorted(chance.sample(everybody, chance.randint(1, 9)), key=lambda each: each.slot)
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
    everybody, chooser = candidates(*[1.0] * 6), standing("round_robin")
    chooser.set([everybody[0], everybody[1], everybody[5]])
    assert chooser.choose(6) == [0, 1, 5, 0, 1, 5]
    # those that come back have had no turn for longest, and get one each, not all that they missed
    chooser.set(everybody)
    assert chooser.choose(9) == [2, 3, 4, 0, 1, 5, 2, 3, 4]


def test_round_robin_starves_no_exit_where_selectors_of_two_kinds_take_turns() -> None:
    everybody, chooser = candidates(*[1.0] * 6), policy("round_robin")
    of_a_country = everybody[3:]
    any_, some = Counter[int](), Counter[int]()
    for _ in range(600):
        any_.update(choices(chooser, everybody, 1))
        some.update(choices(chooser, of_a_country, 1))
    assert min((any_ + some)[each.slot] for each in everybody) >= 150
    assert some == {3: 200, 4: 200, 5: 200}


def test_round_robin_starves_no_exit_while_the_candidates_change_all_the_time() -> None:
    everybody, chooser, chance = candidates(*[1.0] * 10), standing("round_robin"), Random(5)
    counts = Counter[int]()
    for _ in range(2000):
        chooser.set(chance.sample(everybody, 7))
        counts.update(chooser.choose(1))
    assert max(counts.values()) - min(counts.values()) <= 10


def test_round_robin_is_exact_among_those_that_other_orders_have_overtaken() -> None:
    everybody, chooser = candidates(*[1.0] * 50), policy("round_robin")
    some = everybody[10:30]
    assert choices(chooser, some, 5) == list(range(10, 15))
    assert choices(chooser, everybody, 50)[-5:] == list(range(10, 15))
    assert choices(chooser, some, 20) == [*range(15, 30), *range(10, 15)]


def test_round_robin_takes_note_of_so_many_turns_at_a_time_and_starves_no_exit() -> None:
    everybody, chooser = candidates(*[1.0] * 1000), policy("round_robin")
    some = everybody[:900]
    choices(chooser, some, 10)
    choices(chooser, everybody, 2000)
    assert set(choices(chooser, some, 1100)) == set(range(900))


# --- weighted ---------------------------------------------------------------------------------


def test_weights_are_exact_over_each_round_and_spread_evenly() -> None:
    chosen = choices(policy("weighted"), candidates(5, 1, 1), 70)
    for start in range(0, 70, 7):
        assert Counter(chosen[start : start + 7]) == {0: 5, 1: 1, 2: 1}
    assert not any(0 not in three for three in zip(chosen, chosen[1:], chosen[2:], strict=False))
    counts = Counter(choices(policy("weighted"), candidates(0.5, 1.5, 3), 1000))
    assert counts == {0: 100, 1: 300, 2: 600}


def test_weights_hold_among_those_that_are_there() -> None:
    everybody, chooser = candidates(1, 2, 3), standing("weighted")
    chooser.set(everybody)
    chooser.choose(5)
    chooser.set(everybody[1:])
    assert Counter(chooser.choose(500))[1] == pytest.approx(200, abs=1)
    chooser.set(everybody)
    assert Counter(chooser.choose(600)) == pytest.approx({0: 100, 1: 200, 2: 300}, abs=2)


def test_weights_hold_in_each_order_by_itself() -> None:
    everybody, chooser = candidates(1, 2, 3), policy("weighted")
    of_any, of_some = Counter[int](), Counter[int]()
    for _ in range(600):
        of_any.update(choices(chooser, everybody, 1))
        of_some.update(choices(chooser, everybody[:2], 1))
    assert of_any == {0: 100, 1: 200, 2: 300}
    assert of_some == {0: 200, 1: 400}


def test_what_weights_owed_among_many_is_no_burst_among_the_few_that_are_left() -> None:
    everybody, chooser = candidates(*[1.0] * 1000), standing("weighted")
    chooser.set(everybody)
    chooser.choose(500)
    few = [everybody[0], everybody[999]]
    chooser.set(few)
    counts = Counter(chooser.choose(20))
    assert min(counts[each.slot] for each in few) >= 9


def test_an_exit_that_returns_has_no_burst_of_the_turns_that_it_missed() -> None:
    everybody, chooser = candidates(1, 1, 1), standing("weighted")
    chooser.set(everybody)
    chooser.choose(3)
    chooser.set(everybody[1:])
    chooser.choose(1000)
    chooser.set(everybody)
    assert Counter(chooser.choose(30)) == pytest.approx(dict.fromkeys(range(3), 10), abs=1)


def test_exits_of_one_weight_do_not_wait_for_all_others_to_have_theirs() -> None:
    chosen = choices(policy("weighted"), candidates(*[1.0] * 50, *[10.0] * 5), 1000)
    heavy = [number >= 50 for number in chosen]
    # half of the turns; never more than a few in a row
    assert heavy.count(True) == pytest.approx(500, abs=5)
    assert all(any(heavy[at : at + 12]) for at in range(988))
    assert not any(all(heavy[at : at + 12]) for at in range(988))


# --- least_connections ------------------------------------------------------------------------


def test_least_connections_levels_what_is_open() -> None:
    among, chooser = candidates(1, 1, 1, 1), policy("least_connections")
    among[1].open, among[3].open = 7, 2
    for _ in range(23):
        chooser.open(chooser.choose(among, "a.example", 0.0))
    assert [each.open for each in among] == [8, 8, 8, 8]


def test_least_connections_weighs() -> None:
    among, chooser = candidates(1, 3), policy("least_connections")
    for _ in range(400):
        chooser.open(chooser.choose(among, "a.example", 0.0))
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
        each.connect_time.add(0.1 * (each.slot + 1), 0.0)
    chooser = policy("fastest")
    counts = Counter(chooser.choose(among, "a.example", 1.0).slot for _ in range(10_000))
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


def test_the_average_of_what_was_measured_follows_it_by_an_eighth_and_forgets_nothing() -> None:
    average = DecayedAverage()
    assert average.measured is None
    average.add(0.8, 5.0)
    assert average.measured == 0.8
    average.add(0.0, 1e6)
    assert average.measured == pytest.approx(0.7)
    average.penalise(10.0, 1e6)
    assert average.measured == pytest.approx(0.7)


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
        seen[host].append(chooser.choose(among, host, float(now)).slot)
    for drawn in seen.values():
        assert all(one != other for one, other in pairwise(drawn))


def test_only_so_many_hosts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeastRecent, "max_pairs", 10)
    chooser, among = Orders(LeastRecent(Random(1))), candidates(1, 1)
    first = chooser.choose(among, "a.example", 0.0)
    for number in range(9):
        chooser.choose(among, f"{number}.example", 0.0)
    assert chooser.choose(among, "a.example", 0.0) is not first
    assert isinstance(chooser._policy, LeastRecent)
    assert len(chooser._policy) == 10


def test_of_many_exits_a_host_sees_nearly_every_one_before_it_sees_one_again() -> None:
    chosen = choices(policy("least_recent"), candidates(*[1.0] * 1000), 1000)
    assert len(set(chosen)) > 950
    assert len(set(chosen[:900])) > 895


# --- what a choice costs ----------------------------------------------------------------------


@every_policy
def test_those_that_the_request_may_not_use_are_left_for_others(name: str) -> None:
    among, chooser = candidates(*[1.0] * 8), policy(name)
    for _ in range(50):
        assert chooser.choose(among, "a.example", 0.0, lambda each: each.slot in (3, 5)).slot in (
            3,
            5,
        )
    assert set(choices(chooser, among, 200)) == set(range(8))


@every_policy
def test_where_a_request_may_use_none_there_is_none(name: str) -> None:
    none: dict[int, Candidate] = {}
    order: Order[Candidate] = make_policy(name, Random(1)).order(none.get)
    assert order.choose("a.example", 0.0) is None
    among = candidates(1, 1, 1)
    order = make_policy(name, Random(1)).order({each.slot: each for each in among}.get)
    for each in among:
        order.add(each)
    assert order.choose("a.example", 0.0, lambda _: False) is None
    assert order.choose("a.example", 0.0) in among


@every_policy
def test_exits_that_come_and_go_are_known_once(name: str) -> None:
    """However often they do, they have one share each, and take no more memory."""
    among, chooser = candidates(*[1.0] * 10), standing(name)
    for _ in range(200):
        chooser.set(among[:5])
        chooser.choose(3)
        chooser.set(among)
    counts = Counter(chooser.choose(10_000))
    assert_fits(counts, dict.fromkeys(range(10), 1000.0))


@every_policy
def test_a_choice_among_many_looks_at_few(name: str) -> None:
    many = {number: Candidate(number) for number in range(20_000)}
    looks = 0

    def find(slot: int) -> Candidate | None:
        nonlocal looks
        looks += 1
        return many.get(slot)

    order: Order[Candidate] = make_policy(name, Random(1)).order(find)
    for each in many.values():
        order.add(each)
    for slot in range(0, 20_000, 2):
        del many[slot]
    for _ in range(1000):
        assert order.choose("a.example", 0.0) is not None
    # two for each choice, and each of those that have gone at most once
    assert looks <= 2000 + 10_000
    assert name == "round_robin" or looks < 6000


@every_policy
def test_among_many_that_were_all_used_a_request_gets_none_that_it_may_not_use(name: str) -> None:
    chooser, everybody = policy(name), candidates(*[1.0] * 200)
    choices(chooser, everybody, 1000)
    for number in range(300):
        chosen = chooser.choose(everybody, "a.example", 1000.0, lambda each: each.slot % 2 == 0)
        assert chosen.slot % 2 == 0, number
