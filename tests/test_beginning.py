"""A request's first attempt by the hub: begun without a greenlet, and counted as any other."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.net.dial import Dialer
from gsocks.net.own_listeners import OwnListeners
from gsocks.net.resolve import Resolver
from gsocks.request import Command, ExitSelector, Request
from gsocks.rotation.beginning import Beginning
from gsocks.rotation.first_attempt import FirstAttempt
from gsocks.rotation.group import ExitGroup, Offer, Outbound
from gsocks.settings import PerHostSettings
from tests.support.names import Names
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

NOWHERE = Address("192.0.2.1", 80)
NAMED = Address("name.test", 80)


def direct_exit(label: str = "direct", **options: Any) -> DirectExit:
    return DirectExit(Dialer(ALLOW_ALL, Resolver(), **options), label)


def to(dest: Address, **fields: Any) -> Request:
    return Request(Command.CONNECT, dest, **fields)


class Slow:
    """An exit of which the test decides how its attempts end."""

    def __init__(self, label: str = "slow") -> None:
        self.label = label
        self.cancelled = 0
        self.asked: list[Request] = []
        self.done: Callable[[Any], None]

    def begin(self, request: Request, done: Callable[[Any], None], *_: object) -> Slow:
        self.done = done
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def connect(self, request: Request) -> Connected:
        self.asked.append(request)
        raise errors.ExitFailed("dead")

    def close(self) -> None: ...


class Blocking:
    """An exit that needs a greenlet."""

    def __init__(self, label: str) -> None:
        self.label = label

    def connect(self, request: Request) -> Connected:
        raise errors.HostUnreachable("by that one")

    def close(self) -> None: ...


@dataclass
class Owner:
    """What the exit group has told of one request."""

    attempts: list[str] = field(default_factory=list)
    outbound: Outbound | None = None
    first: FirstAttempt | None = None
    told: Event = field(default_factory=Event)

    def attempted(self, label: str) -> None:
        self.attempts.append(label)

    def connected(self, outbound: Outbound) -> None:
        self.outbound = outbound
        self.told.set()

    def failed(self, first: FirstAttempt) -> None:
        self.first = first
        self.told.set()


def counts(group: ExitGroup) -> list[tuple[int, int]]:
    return [(member.open, member.health.in_flight) for member in group.roster]


def test_a_request_to_an_address_is_connected(echo_server: Address) -> None:
    group, owner = ExitGroup([direct_exit()], ALLOW_ALL), Owner()
    assert isinstance(group.begin(to(echo_server), owner), Beginning)
    assert owner.outbound is None
    assert counts(group) == [(1, 1)]
    owner.told.wait()
    assert owner.attempts == ["direct"]
    outbound = owner.outbound
    assert outbound is not None
    assert outbound.bound.host == "127.0.0.1"
    outbound.stream.write(b"hello")
    assert outbound.stream.read() == b"hello"
    outbound.answered()
    assert counts(group) == [(1, 0)]
    outbound.abort()
    assert counts(group) == [(0, 0)]
    assert [member.counts.connected for member in group.roster] == [1]


def test_after_a_failure_the_next_exit_is_tried() -> None:
    group, owner = ExitGroup([direct_exit("one"), Blocking("two")], ALLOW_ALL, tries=2), Owner()
    request = to(Address("127.0.0.1", free_port()))
    group.begin(request, owner)
    owner.told.wait()
    assert counts(group) == [(0, 0), (0, 0)]
    first = owner.first
    assert first is not None
    assert isinstance(first.failure, errors.ConnectionRefused)
    with pytest.raises(errors.ConnectionRefused):
        group.connect(request, owner.attempted, after=first)
    assert owner.attempts == ["one", "two"]
    assert counts(group) == [(0, 0), (0, 0)]


def test_the_failure_of_the_only_exit_is_that_of_the_request() -> None:
    group, owner = ExitGroup([direct_exit()], ALLOW_ALL), Owner()
    request = to(Address("127.0.0.1", free_port()))
    group.begin(request, owner)
    owner.told.wait()
    with pytest.raises(errors.ConnectionRefused):
        group.connect(request, owner.attempted, after=owner.first)
    assert owner.attempts == ["direct"]


def test_what_fails_at_once_is_a_failed_attempt() -> None:
    class Leads(OwnListeners):
        def leads_back(self, *_: object) -> bool:
            return True

    leading_back = direct_exit("one", own_listeners=Leads())
    group, owner = ExitGroup([leading_back, Blocking("two")], ALLOW_ALL, tries=2), Owner()
    request = to(NOWHERE)
    first = group.begin(request, owner)
    assert isinstance(first, FirstAttempt)
    assert isinstance(first.failure, errors.LoopDetected)
    assert owner.first is None
    assert counts(group) == [(0, 0), (0, 0)]
    with pytest.raises(errors.HostUnreachable):
        group.connect(request, owner.attempted, after=first)
    assert owner.attempts == ["one", "two"]


def test_what_only_connect_can_tell_is_left_to_it() -> None:
    group, owner = ExitGroup([direct_exit()], ALLOW_ALL), Owner()
    request = to(Address("127.0.0.1", 0))
    first = group.begin(request, owner)
    assert isinstance(first, FirstAttempt)
    with pytest.raises(errors.ConnectFailed, match="port 0"):
        group.connect(request, owner.attempted, after=first)
    assert counts(group) == [(0, 0)]


def test_an_exit_that_has_to_wait_keeps_its_turn() -> None:
    blocking, other = Blocking("one"), Blocking("two")
    group = ExitGroup([Offer(blocking, requests_per_minute=1), other], ALLOW_ALL, tries=2)
    owner = Owner()
    request = to(NOWHERE)
    first = group.begin(request, owner)
    assert isinstance(first, FirstAttempt)
    assert first.failure is None
    assert counts(group) == [(1, 1), (0, 0)]
    with pytest.raises(errors.HostUnreachable):
        group.connect(request, owner.attempted, after=first)
    assert owner.attempts == ["one", "one", "two"]
    assert counts(group) == [(0, 0), (0, 0)]


def test_a_name_that_is_known_is_connected(echo_server: Address) -> None:
    names = Names(echo_test=["127.0.0.1"])
    dialer = Dialer(ALLOW_ALL, Resolver(names))
    group, owner = ExitGroup([DirectExit(dialer)], ALLOW_ALL), Owner()
    request = to(Address("echo.test", echo_server.port))
    group.connect(request, owner.attempted).abort()
    assert isinstance(group.begin(request, owner), Beginning)
    owner.told.wait()
    assert names.queried == ["echo.test"]
    assert owner.outbound is not None
    assert owner.outbound.bound.host == "127.0.0.1"
    owner.outbound.abort()


def test_the_rules_are_asked_for_its_address(echo_server: Address) -> None:
    rules = Rules.parse(["deny loopback", "allow all"])
    resolver = Resolver(Names(echo_test=["127.0.0.1"]))
    resolver.resolve("echo.test")
    group, owner = ExitGroup([DirectExit(Dialer(rules, resolver))], rules), Owner()
    first = group.begin(to(Address("echo.test", echo_server.port)), owner)
    assert isinstance(first, FirstAttempt)
    assert isinstance(first.failure, errors.Denied)
    assert counts(group) == [(0, 0)]


def test_several_addresses_are_raced_in_a_greenlet(echo_server: Address) -> None:
    resolver = Resolver(Names(echo_test=["127.0.0.2", "127.0.0.1"]))
    resolver.resolve("echo.test")
    group, owner = ExitGroup([DirectExit(Dialer(ALLOW_ALL, resolver))], ALLOW_ALL), Owner()
    request = to(Address("echo.test", echo_server.port))
    first = group.begin(request, owner)
    assert isinstance(first, FirstAttempt)
    assert is_told_nothing(owner)
    group.connect(request, owner.attempted, after=first).abort()


def is_told_nothing(owner: Owner) -> bool:
    return owner.outbound is None and owner.first is None


def test_a_name_is_looked_up_in_a_greenlet() -> None:
    group, owner = ExitGroup([direct_exit()], ALLOW_ALL), Owner()
    first = group.begin(to(NAMED), owner)
    assert isinstance(first, FirstAttempt)
    assert first.failure is None


@pytest.mark.parametrize(
    "request_",
    [
        Request(Command.BIND, NOWHERE),
        to(NOWHERE, trace=print),
        to(Address("192.0.2.7", 80)),
    ],
    ids=["bind", "trace", "denied"],
)
def test_what_is_not_plain_is_left_to_a_greenlet_and_counts_nothing(request_: Request) -> None:
    rules = Rules.parse(["deny 192.0.2.7", "allow all"])
    group, owner = ExitGroup([Slow()], rules), Owner()
    assert group.begin(request_, owner) is None
    assert owner.attempts == []
    assert counts(group) == [(0, 0)]


def test_without_an_exit_that_may_be_used_nothing_is_begun() -> None:
    group = ExitGroup([Slow()], ALLOW_ALL)
    (member,) = group.roster
    group.drain(member.name)
    assert group.begin(to(NOWHERE), Owner()) is None
    hedged = ExitGroup([Slow()], ALLOW_ALL, hedge=1.0)
    assert hedged.begin(to(NOWHERE), Owner()) is None
    assert isinstance(hedged.begin(to(NOWHERE, fast_open=True), Owner()), Beginning)


def test_a_turn_that_has_to_be_waited_for_is_left_to_a_greenlet() -> None:
    group = ExitGroup([Slow()], ALLOW_ALL, per_host=PerHostSettings(connections=1))
    assert isinstance(group.begin(to(NOWHERE), Owner()), Beginning)
    assert group.begin(to(NOWHERE), Owner()) is None
    assert counts(group) == [(1, 1)]


def test_exits_take_turns_on_either_way() -> None:
    one, two = Slow("one"), Slow("two")
    group, owner = ExitGroup([one, two], ALLOW_ALL), Owner()
    for _ in range(4):
        group.begin(to(NOWHERE), owner)
    assert sorted(owner.attempts[:2]) == ["one", "two"]
    assert owner.attempts[:2] == owner.attempts[2:]


def test_a_cancelled_attempt_leaves_nothing(echo_server: Address) -> None:
    group, owner = ExitGroup([direct_exit()], ALLOW_ALL), Owner()
    attempt = group.begin(to(echo_server), owner)
    assert isinstance(attempt, Beginning)
    attempt.cancel()
    attempt.cancel()
    later = Owner()
    group.begin(to(echo_server), later)
    later.told.wait()  # by then the first one would have been told
    assert later.outbound is not None
    later.outbound.abort()
    assert not owner.told.is_set()
    assert counts(group) == [(0, 0)]


def test_an_attempt_behind_which_others_wait_has_half_the_time() -> None:
    one, two = Slow("one"), Slow("two")
    group, owner = ExitGroup([one, two], ALLOW_ALL, timeout=0.1), Owner()
    began = time.monotonic()
    group.begin(to(NOWHERE), owner)
    owner.told.wait()
    assert 0.04 < time.monotonic() - began < 0.1
    assert one.cancelled + two.cancelled == 1
    first = owner.first
    assert first is not None
    assert isinstance(first.failure, errors.ExitDoubtful)
    with pytest.raises(errors.ExitFailed, match="dead"):
        group.connect(to(NOWHERE), owner.attempted, after=first)
    assert sorted(owner.attempts) == ["one", "two"]
    assert counts(group) == [(0, 0), (0, 0)]


def test_the_only_attempt_has_all_of_it() -> None:
    slow = Slow()
    group, owner = ExitGroup([slow], ALLOW_ALL, timeout=0.05), Owner()
    group.begin(to(NOWHERE), owner)
    group.begin(to(NOWHERE), Owner())
    owner.told.wait()
    assert slow.cancelled >= 1
    with pytest.raises(errors.ConnectTimeout, match=r"not connected within 0\.05 s"):
        group.connect(to(NOWHERE), owner.attempted, after=owner.first)
    assert not slow.asked
    gevent.idle()
    assert counts(group) == [(0, 0)]


def test_a_dialer_of_less_patience_ends_its_own_attempt() -> None:
    group, owner = ExitGroup([direct_exit(timeout=0.05)], ALLOW_ALL), Owner()
    attempt = group.begin(to(NOWHERE), owner)
    if isinstance(attempt, FirstAttempt):
        pytest.skip("this machine has no route to a documentation address")
    owner.told.wait()
    assert owner.first is not None
    assert isinstance(owner.first.failure, errors.ConnectFailed)


def test_a_raised_failure_is_in_no_cycle_with_its_attempt() -> None:
    group, owner = ExitGroup([direct_exit()], ALLOW_ALL), Owner()
    request = to(Address("127.0.0.1", free_port()))
    group.begin(request, owner)
    owner.told.wait()
    first, owner.first = owner.first, None
    assert first is not None
    failure = weakref.ref(first.failure)
    gc.disable()
    try:
        with pytest.raises(errors.ConnectionRefused):
            group.connect(request, owner.attempted, after=first)
        assert failure() is None
    finally:
        gc.enable()


CART = ExitSelector(session="cart")


def test_the_requests_of_a_session_keep_their_exit() -> None:
    slow = [Slow(str(number)) for number in range(5)]
    group, owner = ExitGroup(slow, ALLOW_ALL), Owner()
    for _ in range(3):
        attempt = group.begin(to(NOWHERE, selector=CART), owner)
        assert isinstance(attempt, Beginning)
        attempt.cancel()
    assert len(set(owner.attempts)) == 1
    assert counts(group) == [(0, 0)] * 5


def test_a_session_that_was_connected_stays_at_its_exit(echo_server: Address) -> None:
    exits = [direct_exit(str(number)) for number in range(3)]
    group, owner = ExitGroup(exits, ALLOW_ALL), Owner()
    request = to(echo_server, selector=ExitSelector(session="cart", strict=True), user="alice")
    group.begin(request, owner)
    owner.told.wait()
    assert owner.outbound is not None
    assert group.sessions.kept(("alice", "cart"), request.selector, time.monotonic()) == (
        owner.outbound.name
    )
    owner.outbound.abort()


def test_the_exit_of_a_session_is_given_its_name_behind_it() -> None:
    class Noting(Slow):
        def begin(self, request: Request, done: Callable[[Any], None], *_: object) -> Slow:
            self.asked.append(request)
            return super().begin(request, done)

    noting = Noting()
    group = ExitGroup([noting], ALLOW_ALL)
    group.begin(to(NOWHERE, selector=CART), Owner())
    group.rotate(None, "cart")
    group.begin(to(NOWHERE, selector=CART), Owner())
    assert [request.selector.session for request in noting.asked] == ["cart", "cart/1"]


def test_a_session_whose_exit_fails_is_retried_there() -> None:
    class Refusing(Slow):
        def connect(self, request: Request) -> Connected:
            self.asked.append(request)
            raise errors.ConnectionRefused("no")

    refusing = Refusing("one")
    group, owner = ExitGroup([refusing], ALLOW_ALL), Owner()
    request = to(NOWHERE, selector=ExitSelector(session="cart", strict=True))
    group.begin(request, owner)
    (member,) = group.roster
    group.sessions.served(("", "cart"), member.name)
    refusing.done(errors.ExitHungUp("gone"))
    assert owner.first is not None
    with pytest.raises(errors.ConnectionRefused):
        group.connect(request, owner.attempted, after=owner.first)
    assert len(refusing.asked) >= 1
    assert counts(group) == [(0, 0)]


def test_a_session_whose_exit_is_full_is_left_to_a_greenlet() -> None:
    group = ExitGroup([Offer(Slow(), max_connections=1)], ALLOW_ALL)
    request = to(NOWHERE, selector=ExitSelector(session="cart", strict=True))
    assert isinstance(group.begin(request, Owner()), Beginning)
    assert group.begin(request, Owner()) is None
    assert counts(group) == [(1, 1)]
