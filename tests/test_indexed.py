"""The set from which random elements are drawn, against Python's own."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gsocks.rotation.indexed import IndexedSet


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80), st.integers(0, 99))
def test_it_has_what_a_set_has(steps: list[tuple[bool, int]], seed: int) -> None:
    made, known, random = IndexedSet(), set[int](), Random(seed)
    for adds, item in steps:
        if adds:
            made.add(item)
            known.add(item)
        else:
            assert made.discard(item) == (item in known)
            known.discard(item)
        assert sorted(made.draws(random)) == sorted(known)
        assert (len(made), item in made) == (len(known), item in known)


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)), st.integers(0, 99))
def test_what_is_drawn_may_be_discarded_at_once(
    items: set[int], useless: set[int], seed: int
) -> None:
    made, drawn = IndexedSet(items), []
    for item in made.draws(Random(seed)):
        drawn.append(item)
        if item in useless:
            made.discard(item)
    assert sorted(drawn) == sorted(items)
    assert set(made.draws(Random(seed))) == items - useless


def test_every_order_is_as_likely_as_any_other() -> None:
    made, random = IndexedSet(range(3)), Random(1)
    counts = Counter(tuple(made.draws(random)) for _ in range(6000))
    assert len(counts) == 6
    assert all(850 < count < 1150 for count in counts.values())


def test_the_first_draws_go_through_no_others() -> None:
    made = IndexedSet(range(100_000))
    calls = []

    class Counted(Random):
        def random(self) -> float:
            calls.append(1)
            return super().random()

    draws = made.draws(Counted(1))
    assert next(draws) != next(draws)
    assert len(calls) == 2
