"""What is known of names: bounded, and no client's names evict those of the others."""

from __future__ import annotations

import random

from gsocks.net.name_cache import NameCache


def test_the_names_of_one_client_evict_its_own() -> None:
    cache: NameCache[int] = NameCache(400)
    for number in range(50):
        cache.put(f"b{number}", number, "bob")
    for number in range(100_000):
        cache.put(f"a{number}", number, "alice")
    assert [cache.get(f"b{number}") for number in range(50)] == list(range(50))
    assert len(cache) == 150


def test_of_a_clients_names_the_least_recently_used_goes() -> None:
    cache: NameCache[int] = NameCache(8)
    cache.put("a", 1, "alice")
    cache.put("b", 2, "alice")
    assert cache.get("a") == 1
    cache.put("c", 3, "alice")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_of_all_names_the_least_recently_used_goes() -> None:
    cache: NameCache[int] = NameCache(4)
    for number in range(4):
        cache.put(f"n{number}", number, number)
    cache.get("n0")
    cache.put("n4", 4, 4)
    assert [cache.get(f"n{number}") for number in range(5)] == [0, None, 2, 3, 4]


def test_a_name_is_known_as_it_was_put_last_and_is_that_clients() -> None:
    cache: NameCache[int] = NameCache(4)
    cache.put("a", 1, "alice")
    cache.put("a", 2, "bob")
    cache.put("b", 3, "bob")
    assert (cache.get("a"), cache.get("b")) == (None, 3)


def test_whatever_is_put_it_stays_within_its_bounds() -> None:
    choose = random.Random(7)
    cache: NameCache[int] = NameCache(20)
    for number in range(5000):
        name, owner = f"n{choose.randrange(60)}", choose.randrange(9)
        cache.put(name, number, owner)
        assert cache.get(name) == number
        cache.get(f"n{choose.randrange(60)}")
        assert len(cache) <= 20
        sizes = [len(names) for names in cache._of_owner.values()]
        assert max(sizes) <= 5
        assert sum(sizes) == len(cache)
    cache.clear()
    assert (len(cache), cache._of_owner) == (0, {})
