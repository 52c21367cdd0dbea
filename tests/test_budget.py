"""Budgets: what is counted in which day and month, and when an exit rests."""

from __future__ import annotations

import math
from calendar import timegm

import pytest

from gsocks.exits.budget import GB, UNLIMITED, Budget
from gsocks.rotation.budget import Spending


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    return float(timegm((year, month, day, hour, minute, second)))


NOON = at(2026, 11, 29, 12)
MIDNIGHT = at(2026, 11, 30)
DECEMBER = at(2026, 12, 1)


def spent(count: int, wall: float = NOON, budget: Budget = UNLIMITED) -> Spending:
    spending = Spending(budget)
    spending.add(count, wall)
    return spending


def test_an_exit_rests_from_its_daily_budget_until_midnight_of_utc() -> None:
    budget = Budget(bytes_per_day=1000)
    assert spent(999, budget=budget).rests_until(NOON) == -math.inf
    spending = spent(1000, budget=budget)
    assert spending.rests_until(NOON) == MIDNIGHT
    assert spending.rests_until(MIDNIGHT - 1) == MIDNIGHT
    assert spending.rests_until(MIDNIGHT) == -math.inf
    assert (spending.today, spending.this_month) == (0, 1000)


def test_an_exit_rests_from_its_monthly_budget_until_the_next_month() -> None:
    budget = Budget(bytes_per_day=10_000, bytes_per_month=1000)
    spending = spent(600, budget=budget)
    spending.add(600, MIDNIGHT + 1)
    assert (spending.today, spending.this_month) == (600, 1200)
    assert spending.rests_until(MIDNIGHT + 1) == DECEMBER
    assert spending.rests_until(DECEMBER) == -math.inf
    assert (spending.today, spending.this_month) == (0, 0)


def test_december_ends_in_the_next_year() -> None:
    spending = spent(5, at(2026, 12, 31, 23, 59, 59), Budget(bytes_per_month=5))
    assert spending.rests_until(at(2026, 12, 31)) == at(2027, 1, 1)


def test_money_bounds_the_month_as_bytes_do() -> None:
    budget = Budget(bytes_per_month=10 * GB, cost_per_gb=4.0, cost_per_month=10.0)
    spending = spent(2 * GB, budget=budget)
    assert spending.rests_until(NOON) == -math.inf
    assert spending.cost(NOON) == pytest.approx(8.0)
    spending.add(GB // 2, NOON)
    assert spending.rests_until(NOON) == DECEMBER
    assert spending.cost(DECEMBER) == 0.0


def test_an_exit_has_carried_nothing_at_first() -> None:
    spending = Spending()
    assert (spending.today, spending.this_month) == (0, 0)


def test_without_a_budget_nothing_rests_and_nothing_has_a_price() -> None:
    spending = spent(10**15)
    assert spending.rests_until(NOON) == -math.inf
    assert spending.cost(NOON) is None


def test_a_clock_that_is_set_back_begins_its_own_day() -> None:
    spending = spent(7)
    spending.add(5, NOON - 3 * 86400)
    assert spending.today == 5
    assert spending.this_month == 12


def test_a_clock_that_is_set_back_by_a_second_over_midnight_is_in_the_day_before() -> None:
    spending = spent(7, MIDNIGHT)
    spending.add(5, MIDNIGHT)
    assert spending.today == 12
    spending.add(5, MIDNIGHT - 1)
    assert spending.today == 5


def test_what_other_processes_have_carried_is_taken_for_the_present_periods() -> None:
    spending = Spending()
    assert list(spending.periods(NOON)) == [("2026-11-29", MIDNIGHT), ("2026-11", DECEMBER)]
    for period, count in (("2026-11-29", 3), ("2026-11", 40), ("2026-11-28", 500), ("2026-10", 6)):
        spending.restore(period, count, NOON)
    assert (spending.today, spending.this_month) == (3, 40)
