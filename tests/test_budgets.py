"""Budgets of exits: what counts, when an exit rests, and what outlives a restart."""

from __future__ import annotations

import logging
import signal
import time
from calendar import timegm
from http.client import HTTPConnection
from pathlib import Path
from random import Random

import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import ConfigError, LimitReached
from gsocks.exits.budget import Budget
from gsocks.exits.spec import ExitSpec
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.budgets import Budgets
from gsocks.rotation.group import ExitGroup, Outbound
from gsocks.rotation.lists import ListOptions, parse_list
from gsocks.rotation.member import Member, Offer
from gsocks.rotation.sources import parse_source
from gsocks.rotation.state_clock import Clock
from tests.support.admin_api import Admin
from tests.support.engine import QuickExit, eventually, living_greenlets
from tests.support.mirror import EXITS
from tests.support.program import Program, web_server

in_this_process = pytest.mark.usefixtures("never_hangs", "nothing_left")

SITE = Address("shop.example", 443)


def group(*budgets: Budget | None) -> ExitGroup:
    offers = [
        Offer(QuickExit(f"e{number}"), name=f"e{number}", budget=budget, key=number)
        for number, budget in enumerate(budgets)
    ]
    return ExitGroup(offers, ALLOW_ALL, random=Random(1))


def ask(of: ExitGroup, selector: ExitSelector = ANY) -> Outbound:
    outbound = of.connect(Request(Command.CONNECT, SITE, selector=selector), lambda _: None)
    outbound.stream.abort()
    return outbound


def member(of: ExitGroup, name: str) -> Member:
    found = of.roster.named(name)
    assert found is not None
    return found


# --- an exit group ----------------------------------------------------------------------------


@in_this_process
def test_an_exit_whose_budget_is_used_up_rests(caplog: pytest.LogCaptureFixture) -> None:
    exits = group(Budget(bytes_per_day=1000), None)
    by_first = ask(exits, ExitSelector(exit="e0"))
    with caplog.at_level(logging.WARNING, logger="gsocks.rotation"):
        by_first.release(600, 500)
    assert "has used up its budget and rests for " in caplog.text
    assert {ask(exits).name for _ in range(6)} == {"e1"}
    with pytest.raises(LimitReached):
        ask(exits, ExitSelector(exit="e0"))
    until = member(exits, "e0").spent_until - time.monotonic()
    assert 0 < until <= 86400
    exits.close()


@in_this_process
def test_a_session_moves_when_the_budget_of_its_exit_is_used_up() -> None:
    exits = group(Budget(bytes_per_month=10), Budget(bytes_per_month=10**9))
    cart = ExitSelector(session="cart")
    first = ask(exits, cart)
    while first.name != "e0":
        first.release(0, 1)
        exits.rotate(None, "cart")
        first = ask(exits, cart)
    first.release(5, 5)
    other = ask(exits, cart)
    assert other.name == "e1"
    other.release(0, 1)
    exits.close()


@in_this_process
def test_bytes_of_an_open_connection_count_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Budgets, "interval", 0.01)
    exits = group(Budget(bytes_per_day=1000))
    outbound = ask(exits)
    carried = [0, 0]
    outbound.carried = carried
    carried[:] = [400, 700]
    eventually(lambda: member(exits, "e0").spent_until > time.monotonic())
    outbound.release(400, 900)
    spending = member(exits, "e0").spending
    assert spending is not None
    assert spending.today == 1300
    exits.close()


@in_this_process
def test_open_connections_are_looked_at_no_more_once_their_group_is_closed() -> None:
    before = living_greenlets()
    exits = group(Budget(bytes_per_day=1000))
    outbound = ask(exits)
    assert living_greenlets() != before
    exits.close()
    eventually(lambda: living_greenlets() == before)
    outbound.release(0, 1)


@in_this_process
def test_a_greater_budget_ends_the_rest() -> None:
    exits = group(Budget(bytes_per_day=10))
    ask(exits).release(10, 0)
    with pytest.raises(LimitReached):
        ask(exits)
    offer = Offer(QuickExit("e0"), name="e0", budget=Budget(bytes_per_day=100), key=0)
    exits.update([offer])
    ask(exits).release(0, 0)
    exits.close()


def test_what_all_processes_have_carried_counts() -> None:
    exits = group(Budget(bytes_per_month=1000))
    budgets, clock = exits.budgets, Clock.now()
    month = time.strftime("%Y-%m", time.gmtime(clock.wall))
    budgets.is_kept = True
    budgets.carried["e0", month] += 300  # of this one, not written yet
    budgets.total("e0", month, 600, clock)
    assert member(exits, "e0").spent_until < clock.monotonic
    budgets.total("e0", month, 700, clock)
    assert member(exits, "e0").spent_until > clock.monotonic
    assert budgets.expires(month) > clock.wall + 86400


def test_the_count_of_a_period_is_kept_until_it_is_over_everywhere() -> None:
    budgets = Budgets(group(None).roster)
    assert budgets.expires("2026-11-29") == timegm((2026, 12, 1, 0, 0, 0))
    assert budgets.expires("2026-11") == timegm((2026, 12, 4, 0, 0, 0))


def test_the_total_of_an_exit_that_is_not_there_yet_waits_for_it() -> None:
    exits = group(None)
    clock = Clock.now()
    month = time.strftime("%Y-%m", time.gmtime(clock.wall))
    exits.budgets.total("late", month, 700, clock)
    late = Offer(QuickExit("late"), name="late", budget=Budget(bytes_per_month=500))
    exits.update([late])
    assert member(exits, "late").spent_until > clock.monotonic


# --- as it is written -------------------------------------------------------------------------


def test_a_budget_is_a_term_of_an_exit_and_of_a_list() -> None:
    entry = {"url": "http://10.0.0.7:8080", "bytes_per_day": "10GB", "cost_per_gb": "3.5"}
    assert ExitSpec.parse(entry).budget == Budget(10 * 10**9, None, 3.5, None)
    assert ExitSpec.parse("http://10.0.0.7:8080").budget is None
    line = b"10.0.0.7:8080 bytes_per_month=1GB\n10.0.0.8:8080"
    source = parse_source({"file": "x", "cost_per_gb": 2, "cost_per_month": 50})
    first, second = parse_list(line, ListOptions(given=source.options.given)).exits
    assert first.budget == Budget(None, 10**9, 2.0, 50.0)
    assert second.budget == Budget(None, None, 2.0, 50.0)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("bytes_per_day", "0", "'0' is not a size above 0"),
        ("bytes_per_day", "10G", "'10G' is not a size"),
        ("cost_per_gb", "free", "'free' is not a price"),
        ("cost_per_gb", True, "true is not a price"),
        ("cost_per_gb", "nan", "'nan' is not a price"),
        ("cost_per_month", "5", "needs cost_per_gb"),
    ],
)
def test_a_mistake_names_its_key(key: str, value: object, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExitSpec.parse({"url": "http://10.0.0.7:8080", key: value})
    assert f"{key}: {why}" in str(caught.value)
    if key == "cost_per_month":
        with pytest.raises(ConfigError, match="cost_per_month: needs cost_per_gb"):
            parse_source({"file": "x", key: value})


# --- the program ------------------------------------------------------------------------------


def test_a_budget_that_is_used_up_stays_so_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "state: {file: gsocks.db}\nadmin: {listen: 127.0.0.1:0}\n"
        "local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n  exits:\n"
        f"    - {{url: direct, source: {EXITS[0]}/32, name: metered, bytes_per_month: 10kB,"
        " cost_per_gb: 1000}\n"
    )
    with web_server() as web:
        url = f"http://127.0.0.1:{web}/bytes/20000"
        with Program("-c", path) as program:
            assert _status(program.port(), url) == 200
            program.wait_for(r"exit metered \(direct\S*\) has used up its budget and rests for ")
            assert _status(program.port(), url) == 503
            program.signal(signal.SIGTERM)
            assert program.end() == 0
        with Program("-c", path) as program:
            assert _status(program.port(), url) == 503
            (metered,) = Admin(program, tmp_path).ask("GET", "/v1/exits")["items"]
            assert metered["state"] == "spent"
            assert metered["back_in"] > 0
            assert metered["budget"]["this_month"] > 20_000
            assert 0.02 < metered["budget"]["cost"] < 0.03


def _status(port: int, url: str) -> int:
    client = HTTPConnection("127.0.0.1", port, timeout=60)
    client.request("GET", url)
    answer = client.getresponse()
    answer.read()
    client.close()
    return answer.status
