"""The shares that users have of their connections over all gateways, without a store."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from gsocks.errors import LimitReached
from gsocks.fleet.members import Member, Members
from gsocks.fleet.quotas import UserShares
from gsocks.fleet.settling import Settling
from gsocks.fleet.sync import FleetSync


class SlowSync:
    """An exchange that is about to be answered, as far as anyone can tell."""

    is_prompt = True
    members: Any

    def __init__(self, answer: tuple[int, int] | None) -> None:
        self.members = Members("0000000a", lambda: Member("gw", "0.0"), str, lambda _: None)
        self.settling = Settling(self.members, str, lambda: False, lambda: None)
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
        is_early = self.settling.is_on(time.monotonic())
        self.asked_early += is_early
        self._answer = (0, 10) if is_early else None
        super().wait(seconds)
        return is_early


def test_no_user_is_refused_by_a_store_that_was_emptied_before_all_have_told_it_again() -> None:
    sync = SettlingSync(None)
    sync.shares = UserShares("local", cast(FleetSync, sync), str, is_closed=False)
    for part in (sync.settling, sync.shares):
        part.emptied(time.monotonic())
    sync.shares.acquire("alice", 10)
    assert not sync.asked_early  # in vain, and without pause


def _commands(of: UserShares, now: float) -> list[str]:
    return [str(each.command[4]) for each in of.operations(now)]


def test_shares_are_told_again_to_a_store_that_has_not_answered_when_it_was_told() -> None:
    of = shares((6, 4))
    of.acquire("alice", 10)
    assert len(_commands(of, 1.0)) == 1
    assert not _commands(of, 1.1)
    of.emptied(1.2)
    assert of.is_untold()
    assert len(_commands(of, 1.3)) == 1
    assert not of.is_untold()
    of.lost(1.4)  # that they have arrived is not known
    assert of.is_untold()
    assert len(_commands(of, 1.5)) == 1


# --- until when none grows ----------------------------------------------------------------------


class Set:
    """The store's set of those that have told, and what a process does with it."""

    def __init__(self, *nodes: str) -> None:
        self.is_untold = True
        self.asked = 0
        self.members = Members(nodes[0], lambda: Member("gw", "0.0"), str, lambda _: None)
        for node in nodes[1:]:
            self.members.heard(node, {"gateway": "gw", "version": "0.0"}, 0.0)
        self.settling = Settling(self.members, lambda: "told", lambda: self.is_untold, self._soon)
        self.names: set[bytes] = set()

    def _soon(self) -> None:
        self.asked += 1

    def exchange(self, now: float) -> None:
        for operation in list(self.settling.operations(now)):
            if operation.command[0] == "SADD":
                self.names.add(str(operation.command[2]).encode())
            if operation.command[0] == "SMEMBERS":
                operation.answered(list(self.names))
        self.settling.exchanged(now)


def test_shares_grow_as_soon_as_each_process_has_told_of_its_own() -> None:
    of = Set("a", "b")
    of.settling.emptied(0.0)
    of.exchange(0.1)
    assert not of.names  # first it has to tell of its own
    of.is_untold = False
    of.exchange(0.2)
    of.exchange(0.3)
    assert of.names == {b"a"}
    assert of.settling.is_on(0.3)
    of.names.add(b"b")
    of.exchange(0.4)
    assert not of.settling.is_on(0.4)
    # it asks at once for what it has to do itself, and not for others
    assert of.asked == 2
    of.exchange(0.5)
    assert of.asked == 2


def test_a_process_that_does_not_tell_is_waited_for_for_a_time() -> None:
    of = Set("a", "killed")
    of.settling.emptied(0.0)
    of.exchange(0.9 * of.settling.longest)  # it has much to tell, and others may have as much
    assert of.settling.is_on(1.8 * of.settling.longest)
    of.is_untold = False
    of.exchange(1.8 * of.settling.longest)
    assert not of.settling.is_on(2.0 * of.settling.longest)


def test_who_joins_after_a_loss_is_not_waited_for() -> None:
    late = Set("late", "a")
    late.is_untold = False
    late.exchange(0.0)
    late.exchange(0.1)
    assert late.names == {b"late"}


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
