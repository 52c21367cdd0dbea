"""Backoff: how the delay grows, where it ends, and how it is spread."""

from __future__ import annotations

from random import Random

import pytest

from gsocks.backoff import Backoff


def test_each_failure_doubles_the_delay_up_to_the_cap() -> None:
    backoff = Backoff(0.25, 4.0)
    assert [backoff.bound(failures) for failures in range(6)] == [0.25, 0.5, 1, 2, 4, 4]


@pytest.mark.parametrize("failures", [64, 2000, 10**9])
def test_any_number_of_failures_has_a_delay(failures: int) -> None:
    assert Backoff(1.0, 30.0).bound(failures) == 30.0
    assert Backoff(1.0).bound(failures) == 2.0**64


def test_without_jitter_the_delay_is_its_bound() -> None:
    assert [Backoff(1.0, 3.0).delay(n, Random(1)) for n in range(3)] == [1.0, 2.0, 3.0]


def test_jitter_spreads_the_delay_between_two_multiples_of_its_bound() -> None:
    random = Random(1)
    delays = [Backoff(1.0, 8.0, (0.5, 1.25)).delay(5, random) for _ in range(1000)]
    assert 4.0 <= min(delays) < 4.1
    assert 9.9 < max(delays) <= 10.0
