"""The ring: which exit serves a session, and what moves when exits come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from random import Random
from typing import NamedTuple

import pytest

from gsocks.rotation.ring import Ring


class House(NamedTuple):
    slot: int
    name: str
    weight: float = 1.0


class Street:
    """A ring, and which of its exits may be used."""

    def __init__(self, exits: Iterable[House]) -> None:
        self.usable = {each.slot: each for each in exits}
        self.looks = 0
        self.ring: Ring[House] = Ring(self.find)
        for each in self.usable.values():
            self.ring.add(each)

    def find(self, slot: int) -> House | None:
        self.looks += 1
        return self.usable.get(slot)

    def winners(self, count: int = 2000) -> list[str | None]:
        found = (self.ring.winner(session) for session in sessions(count))
        return [None if each is None else each.name for each in found]


def sessions(count: int) -> list[int]:
    chance = Random(1)
    return [chance.getrandbits(64) for _ in range(count)]


def houses(count: int) -> list[House]:
    return [House(number, f"exit-{number}") for number in range(count)]


def test_without_an_exit_a_session_has_none() -> None:
    assert Street([]).winners(3) == [None] * 3


def test_neither_the_order_nor_the_numbers_of_the_exits_matter() -> None:
    others = [House(7000 - each.slot, each.name) for each in reversed(houses(300))]
    assert Street(houses(300)).winners() == Street(others).winners()


def test_no_release_chooses_another_exit() -> None:
    winners = Street(houses(1000)).winners()
    assert winners[:5] == VECTORS
    assert blake2b(repr(winners).encode(), digest_size=8).hexdigest() == "be19a7c1bd2b98ce"


VECTORS: list[str | None] = ["exit-850", "exit-758", "exit-782", "exit-537", "exit-610"]


@pytest.mark.parametrize("goes", ["unusable", "never there"])
def test_only_the_sessions_of_an_exit_that_goes_have_another_one(goes: str) -> None:
    street = Street(houses(200))
    before = street.winners()
    gone = {7, 8, 60}
    if goes == "unusable":
        for slot in gone:
            del street.usable[slot]
    else:
        street = Street(each for each in houses(200) if each.slot not in gone)
    after = street.winners()
    names = {f"exit-{slot}" for slot in gone}
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert moved == [old for old in before if old in names]
    assert moved
    assert names.isdisjoint(after)


def test_an_exit_that_returns_has_its_sessions_again() -> None:
    street = Street(houses(200))
    before = street.winners()
    for slot in range(100):
        del street.usable[slot]
    street.winners()
    for each in houses(100):
        street.usable[each.slot] = each
        street.ring.add(each)
        street.ring.add(each)
    assert street.winners() == before


def test_an_exit_that_was_forgotten_unasked_has_its_sessions_again_when_it_returns() -> None:
    """Its points go when the ring is made anew, whether or not a session has come across it."""
    street = Street(houses(200))
    before = street.winners()
    gone = houses(100)
    for each in gone:
        del street.usable[each.slot]
    more = [House(slot, f"exit-{slot}") for slot in range(200, 2000)]
    for each in more:  # the ring grows
        street.usable[each.slot] = each
        street.ring.add(each)
    for each in more:
        del street.usable[each.slot]
    for each in gone:
        street.usable[each.slot] = each
        street.ring.add(each)
    assert street.winners() == before


def test_what_a_request_may_not_use_is_passed_over_and_stays() -> None:
    street = Street(houses(100))
    before = street.winners(500)
    of_three = [
        street.ring.winner(session, lambda each: each.slot < 3) for session in sessions(500)
    ]
    assert {each.slot for each in of_three if each is not None} == {0, 1, 2}
    assert street.winners(500) == before
    assert street.ring.winner(1, lambda each: False) is None


def test_a_greater_weight_takes_sessions_and_moves_none_between_others() -> None:
    light, heavy = houses(100), houses(100)
    heavy[3] = House(3, "exit-3", 5.0)
    before, after = Street(light).winners(5000), Street(heavy).winners(5000)
    moved = Counter(new for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {"exit-3"}
    assert after.count("exit-3") > 3 * before.count("exit-3") > 0


def test_the_shares_are_alike() -> None:
    counts = Counter(Street(houses(100)).winners(20_000))
    assert len(counts) == 100
    # of 200 each, with a standard deviation of 14 by chance alone
    assert max(counts.values()) < 270
    assert sum(count < 140 for count in counts.values()) <= 10


def test_a_choice_looks_at_few_exits_however_many_there_are() -> None:
    street = Street(houses(20_000))
    street.looks = 0
    street.winners(100)
    assert street.looks == 100
    # nor when all but a few have gone, once that was found out
    for slot in range(20, 20_000):
        del street.usable[slot]
    street.winners(500)
    street.looks = 0
    assert len(set(street.winners(100))) > 10
    assert street.looks < 200
