"""HostLimits: turns of requests, cool-downs, and what Retry-After says."""

from __future__ import annotations

import math

import pytest

from gsocks.rotation.host_limits import HostLimits, parse_retry_after
from gsocks.settings import PerHostSettings

A, B = "a", "b"
SITE, OTHER = "shop.example", "other.example"


def limits(**settings: float) -> HostLimits:
    return HostLimits(PerHostSettings(**settings))  # type: ignore[arg-type]


def test_requests_of_one_exit_to_one_host_are_an_interval_apart() -> None:
    held = limits(min_interval=2.0)
    assert held.take(A, SITE, 100.0, 0.0) == 100.0
    assert held.take(A, SITE, 101.9, 0.0) is None
    assert held.take(A, SITE, 102.0, 0.0) == 102.0


def test_other_exits_and_other_hosts_have_limits_of_their_own() -> None:
    held = limits(min_interval=2.0, connections=1, requests_per_minute=1)
    assert [held.take(*pair, 100.0, 0.0) for pair in ((A, SITE), (B, SITE), (A, OTHER))] == [
        100.0,
        100.0,
        100.0,
    ]


def test_requests_that_may_wait_get_one_turn_after_the_other() -> None:
    held = limits(min_interval=2.0)
    assert [held.take(A, SITE, 100.0, 5.0) for _ in range(4)] == [100.0, 102.0, 104.0, None]
    assert held.take(A, SITE, 101.0, 5.0) == 106.0


def test_a_minute_has_no_more_requests_than_allowed_wherever_it_begins() -> None:
    held = limits(requests_per_minute=3)
    turns = [held.take(A, SITE, 100.0 + second, 0.0) for second in range(200)]
    sent = [turn for turn in turns if turn is not None]
    assert sent == [
        100.0,
        101.0,
        102.0,
        160.0,
        161.0,
        162.0,
        220.0,
        221.0,
        222.0,
        280.0,
        281.0,
        282.0,
    ]


def test_turns_in_the_future_count_in_their_own_minute() -> None:
    held = limits(requests_per_minute=2)
    assert [held.take(A, SITE, 100.0, 100.0) for _ in range(5)] == [
        100.0,
        100.0,
        160.0,
        160.0,
        None,
    ]


def test_connections_are_free_again_once_closed() -> None:
    held = limits(connections=2)
    assert [held.take(A, SITE, 100.0, 9.0) for _ in range(3)] == [100.0, 100.0, None]
    assert held.usable_at(A, SITE) == math.inf
    held.closed(A, SITE)
    assert held.take(A, SITE, 100.0, 9.0) == 100.0
    for _ in range(5):
        held.closed(A, SITE)
    assert [held.take(A, SITE, 100.0, 9.0) for _ in range(3)] == [100.0, 100.0, None]


@pytest.mark.parametrize("status", [403, 429])
def test_a_refusal_cools_the_exit_down_for_that_host_alone(status: int) -> None:
    held = limits(cool_down=30.0)
    assert held.refused(A, SITE, status, None, 100.0) == 130.0
    assert held.take(A, SITE, 129.9, 0.0) is None
    assert held.take(A, SITE, 130.0, 0.0) == 130.0
    assert held.take(B, SITE, 100.0, 0.0) == held.take(A, OTHER, 100.0, 0.0) == 100.0


def test_retry_after_counts_instead_up_to_a_bound() -> None:
    held = limits(cool_down=30.0, longest_cool_down=600.0)
    assert held.refused(A, SITE, 429, 5.0, 100.0) == 105.0
    assert held.refused(A, SITE, 503, 20.0, 100.0) == 120.0
    assert held.refused(A, SITE, 429, 1e9, 100.0) == 700.0
    # a later, shorter one ends no earlier one
    assert held.refused(A, SITE, 429, 1.0, 101.0) == 700.0


@pytest.mark.parametrize("status", [200, 301, 404, 500, 503])
def test_other_answers_cool_nothing_down(status: int) -> None:
    held = limits(cool_down=30.0)
    assert held.refused(A, SITE, status, None, 100.0) == -math.inf
    assert len(held) == 0


def test_without_cool_down_a_refusal_means_nothing() -> None:
    held = limits(min_interval=1.0)
    assert held.refused(A, SITE, 429, 60.0, 100.0) == -math.inf


def test_the_pairs_that_are_remembered_are_bounded() -> None:
    held = HostLimits(PerHostSettings(min_interval=5.0), max_pairs=3)
    for exit_ in range(10):
        held.take(str(exit_), SITE, 100.0, 0.0)
    assert len(held) == 3
    held.closed("0", SITE)  # of a pair that was forgotten
    assert held.take("0", SITE, 100.0, 0.0) == 100.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("999999999", 999_999_999.0),
        ("1000000001", 1e9),
        ("99999999999999999999", 1e9),
        ("Sun, 29 Nov 2026 12:01:00 GMT", 60.0),
        ("Sunday, 29-Nov-26 12:01:00 GMT", 60.0),
        ("Sun Nov 29 12:01:00 2026", 60.0),
        ("Sun, 29 Nov 2026 11:00:00 GMT", 0.0),
        ("", None),
        (None, None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("Sun, 99 Nov 2026 12:01:00 GMT", None),
        ("Sun, 29 Nov 99999 12:01:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None) -> None:
    noon = 1795953600.0  # 2026-11-29 12:00:00 UTC
    assert parse_retry_after(text, noon) == seconds


def test_a_host_all_of_whose_exits_are_forgotten_has_no_limits_any_more() -> None:
    held = HostLimits(PerHostSettings(min_interval=5.0), max_pairs=1)
    held.take(A, SITE, 100.0, 0.0)
    assert held.has(SITE)
    held.take(A, OTHER, 100.0, 0.0)
    assert not held.has(SITE)


def test_an_exit_that_is_forgotten_for_a_host_is_no_more_among_those_that_have_rested() -> None:
    held = HostLimits(PerHostSettings(min_interval=5.0), max_pairs=3)
    held.take(A, SITE, 100.0, 0.0)
    held.take(B, SITE, 104.0, 0.0)
    assert list(held.soonest(SITE, 9, 106.0)) == [A, B]
    for host in (OTHER, "third.example"):
        held.take(B, host, 106.0, 0.0)
    assert list(held.soonest(SITE, 9, 106.0)) == [B]
