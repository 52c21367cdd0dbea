"""LruCache: what counts as a use, and which entry is evicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gsocks.lru import LruCache


def filled(*keys: str, capacity: int = 3) -> LruCache[str, int]:
    cache: LruCache[str, int] = LruCache(capacity)
    for number, key in enumerate(keys):
        cache[key] = number
    return cache


def test_a_full_cache_evicts_the_entry_that_was_set_first() -> None:
    cache = filled("a", "b", "c", "d")
    assert list(cache.items()) == [("b", 1), ("c", 2), ("d", 3)]
    assert len(cache) == 3


def test_put_returns_the_key_that_it_evicts() -> None:
    cache = filled("a", "b")
    assert [cache.put("c", 2), cache.put("a", 3), cache.put("d", 4)] == [None, None, "b"]


@pytest.mark.parametrize("use", [LruCache.get, LruCache.__getitem__, lambda c, k: c.put(k, 0)])
def test_reading_and_setting_an_entry_are_uses(
    use: Callable[[LruCache[str, int], str], object],
) -> None:
    cache = filled("a", "b", "c")
    use(cache, "a")
    cache["d"] = 3
    assert list(cache) == ["c", "a", "d"]


@pytest.mark.parametrize("look", [LruCache.peek, LruCache.__contains__, lambda c, _: c.oldest()])
def test_looking_at_an_entry_is_no_use(look: Callable[[LruCache[str, int], str], object]) -> None:
    cache = filled("a", "b", "c")
    assert look(cache, "a") is not None
    cache["d"] = 3
    assert list(cache) == ["b", "c", "d"]


def test_a_missing_entry_is_no_entry() -> None:
    cache = filled()
    assert (cache.get("a"), cache.peek("a"), "a" in cache, cache.oldest()) == (None,) * 2 + (
        False,
        None,
    )
    cache.discard("a")
    with pytest.raises(KeyError):
        cache["a"]


def test_a_removed_entry_makes_room() -> None:
    cache = filled("a", "b", "c")
    del cache["a"]
    cache.discard("b")
    cache["d"] = 3
    assert list(cache) == ["c", "d"]


def test_the_oldest_entry_is_the_least_recently_used() -> None:
    cache = filled("a", "b")
    assert cache.oldest() == ("a", 0)
    cache["a"] = 5
    assert cache.oldest() == ("b", 1)
