"""What gateways share, without a store: clock, messages, membership, the store's URL."""

from __future__ import annotations

from collections import Counter

import pytest

from gsocks.config.store import StoreUrl
from gsocks.fleet.hybrid_clock import SIZE, HybridClock
from gsocks.fleet.kinds import touched_of
from gsocks.fleet.members import Member as MemberOfFleet
from gsocks.fleet.members import Members, owner
from gsocks.fleet.messages import MAX_SIZE, News, Told, decode, encode
from gsocks.fleet.shares import Use, slots, unasked
from gsocks.messages import Mistake
from gsocks.rotation.member import Member
from tests.support.fleets import group


class Wall:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# --- the clock --------------------------------------------------------------------------------


def test_stamps_of_one_millisecond_are_in_order_and_of_one_size() -> None:
    clock = HybridClock("0000000a", Wall(1000.0))
    stamps = [clock.now() for _ in range(70_000)]
    assert stamps == sorted(set(stamps))
    assert {len(each) for each in stamps} == {SIZE}


def test_what_is_written_after_another_value_was_seen_is_later_whatever_the_clock_says() -> None:
    ahead, behind = HybridClock("0000000a", Wall(1030.0)), HybridClock("0000000b", Wall(1000.0))
    stamp = ahead.now()
    assert behind.saw(stamp)
    assert behind.now() > stamp


def test_a_stamp_of_a_clock_that_is_far_ahead_does_not_count() -> None:
    clock = HybridClock("0000000b", Wall(1000.0))
    assert not clock.saw(HybridClock("0000000a", Wall(1061.0)).now())
    assert clock.now() < HybridClock("0000000a", Wall(1001.0)).now()
    for wrong in ("", "x" * 24, "1" * 23, "1" * 25, "\u0661" * 24):
        assert not clock.saw(wrong)


def test_gateways_go_by_the_clock_of_the_store() -> None:
    monotonic = Wall(10.0)
    clock = HybridClock("0000000a", Wall(5000.0), monotonic)  # an hour ahead and more
    early = clock.now()
    assert clock.follow(990.0)
    assert clock.now() < HybridClock("0000000b", Wall(1001.0)).now() < early
    assert not clock.follow(990.0)


def test_a_clock_that_is_set_changes_no_stamps_once_the_time_of_the_store_is_known() -> None:
    wall, monotonic = Wall(1000.0), Wall(10.0)
    clock = HybridClock("0000000a", wall, monotonic)
    clock.follow(990.0)
    first = clock.now()
    wall.now += 3600.0
    monotonic.now += 1.0
    assert first < clock.now() < HybridClock("0000000b", Wall(1001.5)).now()


# --- messages ---------------------------------------------------------------------------------


def test_a_message_is_read_as_it_was_sent_and_what_a_later_version_adds_is_ignored() -> None:
    news = News("0000000a", "gw", [Told("local", "ban", "e0", "1" * 24, "{}", 5.0)], {"x": [1]})
    assert decode(encode(news)) == news
    assert decode(b'{"node": "a", "gateway": "b", "later": [1]}') == News("a", "b")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"node": 1}', b"\xff", b" " * (MAX_SIZE + 1)])
def test_what_is_no_message_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode(raw)


# --- membership -------------------------------------------------------------------------------


def members(node: str, gone: list[str] | None = None) -> Members:
    heard = [] if gone is None else gone
    return Members(
        node, lambda: MemberOfFleet("gw", "1.0"), lambda of: f"m:{of}", on_gone=heard.append
    )


def test_a_member_that_is_not_heard_of_is_gone_and_none_is_while_the_store_is_away() -> None:
    gone: list[str] = []
    one = members("a", gone)
    one.heard("b", {"gateway": "gw2", "version": "1.0"}, 100.0)
    assert (one.nodes, one.rank) == (["a", "b"], 0)
    one.lost(103.0)
    list(one.operations(106.9))
    assert one.nodes == ["a", "b"]
    list(one.operations(107.1))
    assert (one.nodes, gone) == (["a"], ["b"])


def test_a_member_tells_of_itself_once_in_a_second_and_keeps_a_key_that_expires() -> None:
    one = members("a")
    assert one.told(100.0) is not None
    assert one.told(100.9) is None
    assert one.told(101.0) is not None
    (kept,) = one.operations(100.0)
    assert kept.command[:2] == ("SET", "m:a")
    assert kept.command[3:] == ("PX", 10_000)


def test_work_is_dealt_evenly_and_a_new_member_takes_only_its_own_part() -> None:
    nodes = [f"{number:08x}" for number in range(4)]
    before = {f"shard {n}": owner(f"shard {n}", nodes) for n in range(400)}
    assert all(60 < count < 140 for count in Counter(before.values()).values())
    after = {each: owner(each, [*nodes, "ffffffff"]) for each in before}
    assert {after[each] for each in before if after[each] != before[each]} == {"ffffffff"}


# --- what was touched -------------------------------------------------------------------------


@pytest.mark.parametrize("has_file", [False, True])
def test_an_exit_that_was_touched_is_looked_at_once_by_each_that_shares_something_of_it(
    has_file: bool,
) -> None:
    roster = group(2).roster
    of_file: set[Member] = set()
    if has_file:
        roster.touched = of_file
    readers: list[set[Member]] = [set(), set()]
    for each in readers:
        touched_of(roster).read_by(each)
    first, _ = roster
    for _ in range(3):
        roster.member_changed(first, 0.0)
    assert readers == [set(), set()]  # nothing is done for them on the request's way
    touched_of(roster).deal()
    assert readers == [{first}, {first}]
    assert of_file == ({first} if has_file else set())
    readers[0].clear()
    touched_of(roster).deal()
    assert readers == [set(), {first}]


# --- shares of limits -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "processes", "own"), [(600, 3, 10), (59, 3, 1), (1, 3, 1), (1000, 1, 50)]
)
def test_what_is_used_without_asking_is_a_twentieth_of_the_limit_in_all(
    limit: int, processes: int, own: int
) -> None:
    assert unasked(limit, processes) == own


def test_some_more_than_is_used_is_leased_and_nothing_for_what_is_not_used() -> None:
    assert slots(600, 100) == Use(600, 100, 125, 112, 150)
    assert slots(600, 0) is None
    assert slots(600, 0, missed=True) == Use(600, 0, 2, 1, 4)
    assert slots(600, 0, least=10) == Use(600, 0, 10, 10, 10)
    assert slots(100, 99) == Use(100, 99, 100, 100, 147)


# --- the store's URL --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://valkey", "redis://valkey:6379"),
        ("redis://:p%40ss@valkey:7000/3", "redis://:***@valkey:7000/3"),
        ("rediss://gw:secret@[::1]", "rediss://gw:***@[::1]:6379"),
        ("unix:///run/valkey.sock?db=2", "unix:///run/valkey.sock?db=2"),
        ("redis+sentinel://a,b:7,[::1]/main/1", "redis+sentinel://a:26379,b:7,[::1]:26379/main/1"),
        ("rediss+cluster://a:1,b:2", "rediss+cluster://a:1,b:2"),
    ],
)
def test_a_url_of_a_store_is_read_and_shown_without_its_password(text: str, shown: str) -> None:
    parsed = StoreUrl.parse(text)
    assert str(parsed) == shown
    assert "secret" not in repr(parsed)
    assert parsed.password in (None, "p@ss", "secret")


@pytest.mark.parametrize(
    "text",
    [
        "valkey:6379",
        "http://valkey",
        "redis://",
        "redis://a,b",
        "redis://a/x",
        "redis://a:b:c",
        "redis+sentinel://a",
        "redis+sentinel://a/x y",
        "redis+cluster://a/2",
        "unix://run",
        "unix:///run?x=1",
        "redis+cluster://" + ",".join(f"a{n}" for n in range(33)),
    ],
)
def test_what_is_no_url_of_a_store_is_a_mistake_that_repeats_no_password(text: str) -> None:
    scheme, separator, rest = text.partition("://")
    for each in (text, f"{scheme}{separator}user:hush@{rest}"):
        with pytest.raises(Mistake) as mistake:
            StoreUrl.parse(each)
        assert "hush" not in str(mistake.value)
