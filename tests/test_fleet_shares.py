"""The shares that users have of their connections over all gateways, without a store."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from gsocks.errors import LimitReached
from gsocks.fleet.quotas import UserShares
from gsocks.fleet.sync import FleetSync


class SlowSync:
    """An exchange that is about to be answered, as far as anyone can tell."""

    is_prompt = True
    members: Any

    def __init__(self, answer: tuple[int, int] | None) -> None:
        self.members = type("Members", (), {"node": "0000000a", "__len__": lambda _: 1})()
        self.shares: UserShares
        self._answer = answer

    def wait(self, seconds: float) -> bool:
        for operation in self.shares.operations(0.0):
            if self._answer is not None:
                operation.answered(self._answer)
        return False


def shares(answer: tuple[int, int] | None, *, is_closed: bool = False) -> UserShares:
    sync = SlowSync(answer)
    sync.shares = UserShares("local", cast(FleetSync, sync), str, is_closed=is_closed)
    return sync.shares


def test_a_user_is_refused_only_if_the_store_has_answered_that_there_is_no_more() -> None:
    shares(None).acquire("alice", 10)
    shares((3, 7)).acquire("alice", 10)
    with pytest.raises(LimitReached):
        shares((0, 10)).acquire("alice", 10)


def test_without_an_answer_none_is_let_in_where_quotas_fail_closed() -> None:
    with pytest.raises(LimitReached):
        shares(None, is_closed=True).acquire("alice", 10)


def test_without_an_answer_a_user_has_the_limit_of_one_gateway() -> None:
    of = shares(None)
    for _ in range(10):
        of.acquire("alice", 10)
    with pytest.raises(LimitReached):
        of.acquire("alice", 10)


class SettlingSync(SlowSync):
    """A store that was emptied: it grants nothing yet, and later it is silent."""

    asked_early = 0

    def wait(self, seconds: float) -> bool:
        is_early = time.monotonic() < self.shares._settled_at
        self.asked_early += is_early
        self._answer = (0, 10) if is_early else None
        super().wait(seconds)
        return is_early


def test_no_user_is_refused_by_a_store_that_was_emptied_before_all_have_told_it_again() -> None:
    sync = SettlingSync(None)
    sync.shares = UserShares("local", cast(FleetSync, sync), str, is_closed=False)
    sync.shares.emptied(time.monotonic())
    sync.shares.acquire("alice", 10)
    assert not sync.asked_early  # in vain, and without pause


def test_what_is_given_back_is_not_used_while_the_answer_is_on_its_way() -> None:
    of = shares((6, 4))
    of.acquire("alice", 10)
    of.release("alice")
    assert [each.command[-4] for each in of.operations(1.0)] == [0]
    # the others may have all of it from now on
    with pytest.raises(LimitReached):
        for _ in range(2):
            _asked_in_vain(of).acquire("alice", 10)


def _asked_in_vain(of: UserShares) -> UserShares:
    cast(SlowSync, of._sync)._answer = (0, 10)
    return of
