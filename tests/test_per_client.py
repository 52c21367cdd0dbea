"""What a client holds of something bounded, and which client holds most of it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.access.per_client import PerClient

ALICE, BOB, CAROL = "192.0.2.1", "192.0.2.2", "2001:db8::/64"


def held(*things: tuple[str, int]) -> PerClient[str, int]:
    per_client: PerClient[str, int] = PerClient()
    for client, thing in things:
        per_client.add(client, thing)
    return per_client


def test_the_oldest_of_the_client_that_holds_most_comes_first() -> None:
    per_client = held((BOB, 1), (ALICE, 2), (ALICE, 3), (BOB, 4), (ALICE, 5))
    assert list(per_client.held_by_most(CAROL)) == [2, 3, 5]
    assert list(per_client.held_by_most(BOB)) == [2, 3, 5]


def test_a_client_that_would_hold_most_is_the_one_to_lose_something() -> None:
    per_client = held((BOB, 1), (ALICE, 2), (BOB, 3), (ALICE, 4))
    assert list(per_client.held_by_most(ALICE)) == [2, 4]
    assert list(per_client.held_by_most(BOB)) == [1, 3]


def test_among_equals_the_one_that_has_held_for_longest_comes_first() -> None:
    per_client = held((BOB, 1), (ALICE, 2))
    assert list(per_client.held_by_most(CAROL)) == [1, 2]


def test_what_one_client_holds_can_be_seen() -> None:
    per_client = held((BOB, 1), (ALICE, 2), (BOB, 3))
    assert list(per_client.held_by(BOB)) == [1, 3]
    assert list(per_client.held_by(CAROL)) == []
    assert [per_client.count(client) for client in (ALICE, BOB, CAROL)] == [1, 2, 0]
    assert list(per_client.clients()) == [BOB, ALICE]


def test_discarding_tells_whether_the_thing_was_held() -> None:
    per_client = held((BOB, 1), (ALICE, 2), (BOB, 3))
    assert [per_client.discard(BOB, thing) for thing in (1, 2, 3)] == [True, False, True]
    assert not per_client.discard(CAROL, 1)


def test_where_nothing_is_held_there_is_nothing_to_lose() -> None:
    per_client = held()
    assert list(per_client.held_by_most(ALICE)) == []
    per_client.add(ALICE, 1)
    per_client.remove(ALICE, 1)
    assert list(per_client.held_by_most(ALICE)) == list(per_client.held_by_most(BOB)) == []
    assert repr(per_client) == "<PerClient 0 of 0 clients>"


def test_what_is_not_held_can_not_be_removed() -> None:
    per_client = held((BOB, 1))
    with pytest.raises(KeyError):
        per_client.remove(ALICE, 1)
    with pytest.raises(KeyError):
        per_client.remove(BOB, 2)
    assert list(per_client.held_by(BOB)) == [1]
    assert len(per_client) == 1


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_whatever_comes_and_goes_the_counts_are_right(steps: list[tuple[str, bool]]) -> None:
    per_client: PerClient[str, int] = PerClient()
    things: list[tuple[str, int]] = []
    for number, (client, comes) in enumerate(steps):
        if comes:
            per_client.add(client, number)
            things.append((client, number))
        else:
            oldest = next(per_client.held_by(client), None)
            assert oldest == next((n for c, n in things if c == client), None)
            if oldest is not None:
                per_client.remove(client, oldest)
                things.remove((client, oldest))
        counts = Counter(c for c, _ in things)
        most = max(counts.values(), default=0)
        assert len(per_client) == len(things)
        found = list(per_client.held_by_most("stranger"))
        assert sorted(found) == sorted(n for c, n in things if counts[c] == most)
        if counts[client] == most:
            own = [n for c, n in things if c == client]
            assert list(per_client.held_by_most(client)) == own
