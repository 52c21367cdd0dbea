"""Failed logins are delayed and then refused, and no other client suffers from it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gsocks.access.throttle import Throttle
from gsocks.errors import LoginRefused, LoginsBusy
from gsocks.settings import Timeouts

pytestmark = pytest.mark.usefixtures("never_hangs")

HERE = "192.0.2.7"
THERE = "192.0.2.8"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Logins:
    """A throttle with a clock of the test's own, and logins by it."""

    def __init__(self, kind: type[Throttle] = Throttle) -> None:
        self.clock = Clock()
        #: name and password of each login that was verified
        self.verified: list[tuple[str, bytes]] = []
        #: the delay of each answer
        self.delays: list[float] = []
        self.throttle = kind(self._authenticate, self.clock, self.delays.append)

    def _authenticate(self, name: str, password: bytes, client: str) -> bool:
        self.verified.append((name, password))
        return password == b"right"

    def fail(self, times: int = 1, host: str = HERE, name: str = "alice") -> None:
        for _ in range(times):
            assert not self.throttle.verify(host, name, b"wrong")

    def succeed(self, host: str = HERE, name: str = "alice") -> None:
        assert self.throttle.verify(host, name, b"right")

    def is_refused(self, host: str = HERE, name: str = "alice") -> bool:
        """Whether even the right password isn't verified."""
        before = len(self.verified)
        try:
            self.throttle.verify(host, name, b"right")
        except LoginRefused:
            assert len(self.verified) == before
            return True
        return False


@pytest.fixture
def logins() -> Logins:
    return Logins()


MAX_FAILURES = Throttle.max_failures
EMPTY = "<Throttle addresses=0 refused=0 pending=0>"


def test_the_numbers_are_those_of_the_documentation() -> None:
    assert (MAX_FAILURES, Throttle.window, Throttle.refusal_time) == (10, 600, 600)
    assert Throttle.max_addresses == 10_000


# --- delayed ----------------------------------------------------------------------------------


def test_a_wrong_password_is_wrong_without_a_delay_too() -> None:
    class Prompt(Throttle):
        first_delay = 0.0

    Logins(Prompt).fail()


def test_a_right_password_is_answered_at_once(logins: Logins) -> None:
    logins.succeed()
    assert logins.delays == []


def test_each_failure_is_answered_later_than_the_one_before_up_to_a_bound(
    logins: Logins,
) -> None:
    logins.fail(MAX_FAILURES)
    assert logins.delays == [0.25, 0.5, 1, 2, 4, 4, 4, 4, 4, 4]


def test_the_longest_delay_leaves_time_for_the_answer() -> None:
    assert Timeouts().handshake / 2 > Throttle.max_delay


def test_a_right_password_is_not_delayed_by_failures_before_it(logins: Logins) -> None:
    logins.fail(3)
    logins.delays.clear()
    logins.succeed()
    assert logins.delays == []


def test_failures_are_forgotten_after_their_time(logins: Logins) -> None:
    logins.fail()
    logins.clock.now += Throttle.window - 1
    logins.fail()
    logins.clock.now += 1
    logins.fail()
    assert logins.delays == [0.25, 0.5, 0.5]


def test_an_empty_password_is_answered_at_once_and_does_not_count(logins: Logins) -> None:
    for _ in range(3 * MAX_FAILURES):
        assert not logins.throttle.verify(HERE, "alice", b"")
    assert set(logins.delays) == {0}
    assert repr(logins.throttle) == EMPTY
    logins.fail()
    assert logins.delays[-1] == 0.25
    assert not logins.throttle.verify(HERE, "alice", b"")
    logins.fail()
    assert logins.delays[-1] == 0.5


def test_an_empty_password_is_verified_all_the_same() -> None:
    throttle = Throttle(lambda name, password, client: name == "open" and not password)
    assert throttle.verify(HERE, "open", b"")


def test_an_address_that_is_refused_is_so_without_a_password_too(logins: Logins) -> None:
    logins.fail(MAX_FAILURES)
    with pytest.raises(LoginRefused):
        logins.throttle.verify(HERE, "alice", b"")


# --- refused ----------------------------------------------------------------------------------


def test_after_too_many_failures_not_even_the_right_password_is_verified(
    logins: Logins,
) -> None:
    logins.fail(MAX_FAILURES - 1)
    assert not logins.is_refused(name="bob")
    logins.fail()
    assert logins.is_refused()
    assert logins.is_refused(name="bob")


def test_failures_of_all_names_are_counted_together(logins: Logins) -> None:
    for number in range(MAX_FAILURES):
        logins.fail(name=f"user{number}")
    assert logins.is_refused()


def test_a_refused_login_is_answered_at_once(logins: Logins) -> None:
    logins.fail(MAX_FAILURES)
    logins.delays.clear()
    assert logins.is_refused()
    assert logins.delays == []


def test_a_refusal_ends_after_its_time_however_many_logins_it_refused(logins: Logins) -> None:
    logins.fail(MAX_FAILURES)
    for _ in range(100):
        assert logins.is_refused()
    logins.clock.now += Throttle.refusal_time - 1
    assert logins.is_refused()
    logins.clock.now += 1
    assert not logins.is_refused()
    assert repr(logins.throttle) == EMPTY


def test_after_a_refusal_all_failures_are_counted_from_the_first(logins: Logins) -> None:
    logins.fail(MAX_FAILURES)
    logins.clock.now += Throttle.refusal_time
    logins.delays.clear()
    logins.fail(MAX_FAILURES - 1)
    assert logins.delays[0] == 0.25
    assert not logins.is_refused()


def test_after_a_refusal_shorter_than_the_window_no_failure_counts() -> None:
    class Short(Throttle):
        refusal_time = 10.0

    logins = Logins(Short)
    logins.fail(MAX_FAILURES)
    logins.clock.now += Short.refusal_time
    assert not logins.is_refused()
    logins.delays.clear()
    logins.fail()
    assert logins.delays == [0.25]


def test_failures_at_long_intervals_are_never_too_many(logins: Logins) -> None:
    for _ in range(100):
        logins.fail()
        logins.clock.now += Throttle.window / (MAX_FAILURES - 1) + 0.1
    assert not logins.is_refused(name="bob")


def test_failures_at_slightly_shorter_intervals_are_too_many(logins: Logins) -> None:
    for _ in range(MAX_FAILURES):
        logins.fail()
        logins.clock.now += Throttle.window / MAX_FAILURES - 0.1
    assert logins.is_refused()


def test_the_refusal_says_how_long_it_lasts_and_names_no_user(logins: Logins) -> None:
    logins.fail(MAX_FAILURES, name="alice")
    logins.clock.now += 60
    with pytest.raises(LoginRefused, match=r"^too many .* from 192\.0\.2\.7; retry in 9m$"):
        logins.throttle.verify(HERE, "alice", b"right")
    logins.clock.now += 539.9
    with pytest.raises(LoginRefused, match=r"retry in 1s$"):
        logins.throttle.verify(HERE, "alice", b"right")


def test_a_refusal_is_logged_once(logins: Logins, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gsocks.throttle"):
        logins.fail(MAX_FAILURES)
        assert logins.is_refused()
    assert caplog.messages == ["192.0.2.7: 10 failed logins in 10m, refusing its logins for 10m"]


def test_a_refusal_has_an_outcome_and_a_status() -> None:
    assert (LoginRefused.word, LoginRefused.http_status) == ("auth_refused", 429)
    assert (LoginsBusy.word, LoginsBusy.http_status) == ("auth_busy", 503)


# --- addresses --------------------------------------------------------------------------------


def test_another_address_is_another_client(logins: Logins) -> None:
    logins.fail(MAX_FAILURES)
    assert not logins.is_refused(THERE)
    logins.fail(host=THERE)
    assert logins.delays[-1] == 0.25


def test_loopback_is_counted_like_other_addresses(logins: Logins) -> None:
    logins.fail(MAX_FAILURES, "127.0.0.1")
    assert logins.is_refused("127.0.0.1")
    assert not logins.is_refused("127.0.0.2")


def test_all_addresses_of_an_ipv6_network_of_64_bits_are_one_client(
    logins: Logins, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MAX_FAILURES):
        logins.fail(host=f"2001:db8:1:2:{number}::")
    assert logins.is_refused("2001:db8:1:2:ffff:ffff:ffff:ffff")
    assert not logins.is_refused("2001:db8:1:3::")
    assert caplog.messages[-1].startswith("2001:db8:1:2::/64: 10 failed logins")


def test_the_verifier_of_one_client_counts_its_failures_only(logins: Logins) -> None:
    authenticate = logins.throttle.for_client(HERE)
    assert authenticate("alice", b"right")
    for _ in range(MAX_FAILURES):
        assert not authenticate("alice", b"wrong")
    assert logins.is_refused(HERE)
    assert not logins.is_refused(THERE)


# --- success ----------------------------------------------------------------------------------


def test_a_success_forgives_earlier_failures(logins: Logins) -> None:
    for _ in range(5):
        logins.fail(MAX_FAILURES - 1)
        logins.succeed()
    logins.delays.clear()
    logins.fail()
    assert logins.delays == [0.25]


def test_a_success_does_not_forgive_failures_of_other_names(logins: Logins) -> None:
    """Otherwise a client with an account could guess other users' passwords in between."""
    logins.fail(5, name="bob")
    logins.succeed(name="alice")
    logins.fail(5, name="bob")
    assert logins.is_refused()


# --- concurrent logins ------------------------------------------------------------------------


class SlowLogins:
    """A throttle whose verifications wait until the test releases them."""

    def __init__(
        self, recall: Callable[[str, bytes], bool | None] = lambda name, password: None
    ) -> None:
        self.verifying = 0
        self.total = 0
        self._released = Event()
        self.throttle = Throttle(self._authenticate, Clock(), lambda _: None, recall=recall)

    def _authenticate(self, name: str, password: bytes, client: str) -> bool:
        self.verifying += 1
        self.total += 1
        try:
            self._released.wait()
        finally:
            self.verifying -= 1
        return password == b"right"

    def release(self) -> None:
        self._released.set()

    def start(
        self, count: int, password: bytes, host: str = HERE
    ) -> list[gevent.Greenlet[..., Any]]:
        def log_in() -> bool | None:
            try:
                return self.throttle.verify(host, "alice", password)
            except LoginRefused:
                return None

        greenlets = [gevent.spawn(log_in) for _ in range(count)]
        gevent.idle()
        return greenlets


def outcomes(logins: list[gevent.Greenlet[..., Any]]) -> list[bool | None]:
    return [login.get() for login in logins]


def test_no_more_logins_are_verified_concurrently_than_may_fail() -> None:
    slow = SlowLogins()
    logins = slow.start(100, b"wrong")
    assert slow.verifying == MAX_FAILURES
    slow.release()
    found = outcomes(logins)
    assert (found.count(False), found.count(None)) == (MAX_FAILURES, 90)
    assert slow.total == MAX_FAILURES


def test_after_failures_fewer_logins_are_verified_concurrently() -> None:
    slow = SlowLogins()
    slow.release()
    assert outcomes(slow.start(7, b"wrong")) == [False] * 7
    slow._released.clear()
    logins = slow.start(10, b"wrong")
    assert slow.verifying == 3
    slow.release()
    assert outcomes(logins).count(None) == 7


def test_many_concurrent_logins_with_the_right_password_succeed() -> None:
    slow = SlowLogins()
    logins = slow.start(100, b"right")
    assert slow.verifying == MAX_FAILURES
    slow.release()
    assert outcomes(logins) == [True] * 100


def test_no_login_waits_for_those_of_another_address() -> None:
    slow = SlowLogins()
    here = slow.start(20, b"wrong")
    there = slow.start(5, b"right", THERE)
    assert slow.verifying == MAX_FAILURES + 5
    slow.release()
    assert outcomes(there) == [True] * 5
    assert outcomes(here).count(None) == 10


def test_a_login_whose_client_leaves_before_the_answer_counts_all_the_same() -> None:
    slow = SlowLogins()
    gevent.killall(slow.start(MAX_FAILURES, b"wrong"))
    waiting = slow.start(5, b"right")
    assert slow.total == MAX_FAILURES, "its place is not free before its outcome is known"
    slow.release()
    assert outcomes(waiting) == [None] * 5
    assert repr(slow.throttle) == "<Throttle addresses=1 refused=1 pending=0>"


def test_a_right_login_whose_client_leaves_before_the_answer_is_no_failure() -> None:
    slow = SlowLogins()
    gevent.killall(slow.start(MAX_FAILURES, b"right"))
    slow.release()
    gevent.idle()
    assert repr(slow.throttle) == EMPTY, "an address without failures takes no place"


def test_a_login_killed_while_it_waits_holds_no_place() -> None:
    slow = SlowLogins()
    first = slow.start(MAX_FAILURES, b"right")
    waiting = slow.start(5, b"right")
    gevent.killall(waiting)
    slow.release()
    assert outcomes(first) == [True] * MAX_FAILURES
    assert repr(slow.throttle) == EMPTY


# --- errors and bounds ------------------------------------------------------------------------


def test_an_error_of_authenticate_is_passed_on_and_is_no_failure() -> None:
    def busy(name: str, password: bytes, client: str) -> bool:
        raise LoginsBusy

    throttle = Throttle(busy, Clock(), lambda _: None)
    for _ in range(2 * MAX_FAILURES):
        with pytest.raises(LoginsBusy):
            throttle.verify(HERE, "alice", b"right")
    assert repr(throttle) == EMPTY


def test_the_addresses_are_bounded_and_the_least_recently_seen_is_forgotten() -> None:
    class Small(Throttle):
        max_addresses = 3

    logins = Logins(Small)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        logins.fail(host=host)
    logins.fail(host="10.0.0.1")
    logins.fail(host="10.0.0.4")
    logins.delays.clear()
    logins.fail(host="10.0.0.1")
    logins.fail(host="10.0.0.3")
    logins.fail(host="10.0.0.4")
    assert logins.delays == [1, 0.5, 0.5]
    logins.delays.clear()
    logins.fail(host="10.0.0.2")
    assert logins.delays == [0.25]
    assert repr(logins.throttle) == "<Throttle addresses=3 refused=0 pending=0>"


def test_a_refused_address_is_not_forgotten_for_addresses_with_fewer_failures() -> None:
    class Small(Throttle):
        max_addresses = 3

    logins = Logins(Small)
    logins.fail(MAX_FAILURES)
    for number in range(100):
        assert logins.is_refused()
        logins.fail(host=f"10.0.0.{number}")
    assert logins.is_refused()


def test_a_refused_address_is_not_forgotten_for_any_number_of_others() -> None:
    class Small(Throttle):
        max_addresses = 3

    logins = Logins(Small)
    logins.fail(MAX_FAILURES)
    for number in range(100):  # the /64s of one /48
        logins.fail(host=f"2001:db8:0:{number:x}::1")
    assert logins.is_refused()
    logins.clock.now += Throttle.refusal_time
    assert not logins.is_refused()


def test_the_refused_addresses_are_bounded() -> None:
    class Small(Throttle):
        max_addresses = 3

    logins = Logins(Small)
    for number in range(5):
        logins.fail(MAX_FAILURES, host=f"10.0.0.{number}")
    assert repr(logins.throttle) == "<Throttle addresses=3 refused=3 pending=0>"


def test_clients_that_never_fail_are_not_remembered(logins: Logins) -> None:
    for number in range(100):
        logins.succeed(host=f"10.0.0.{number}")
    logins.fail()
    logins.succeed()
    assert repr(logins.throttle) == EMPTY


def test_forgetting_an_address_does_not_disturb_its_pending_logins() -> None:
    class Small(Throttle):
        max_addresses = 1

    gates: dict[str, Event] = {"alice": Event(), "bob": Event()}

    def authenticate(name: str, password: bytes, client: str) -> bool:
        return gates[name].wait()

    throttle = Small(authenticate, Clock(), lambda _: None)
    first = gevent.spawn(throttle.verify, HERE, "alice", b"")
    gevent.idle()
    second = gevent.spawn(throttle.verify, THERE, "bob", b"")
    gevent.idle()
    gates["alice"].set()
    assert first.get()
    assert repr(throttle) == "<Throttle addresses=1 refused=0 pending=1>"
    gates["bob"].set()
    assert second.get()
    assert repr(throttle) == EMPTY


def test_an_answer_is_delayed_by_gevents_sleep_by_default() -> None:
    class Quick(Throttle):
        first_delay = 0.02

    throttle = Quick(lambda name, password, client: False)
    login = gevent.spawn(throttle.verify, HERE, "alice", b"wrong")
    gevent.idle()
    assert not login.ready()
    assert login.get() is False


# --- remembered logins ------------------------------------------------------------------------


def test_a_remembered_login_passes_while_others_of_its_address_wait() -> None:
    slow = SlowLogins(recall=lambda name, password: password == b"known" if name == "bob" else None)
    others = slow.start(100, b"wrong")
    assert slow.throttle.verify(HERE, "bob", b"known")
    assert slow.total == MAX_FAILURES
    slow.release()
    outcomes(others)


def test_a_refused_address_learns_nothing_from_what_is_remembered() -> None:
    slow = SlowLogins(recall=lambda name, password: password == b"right")
    slow.release()
    outcomes(slow.start(MAX_FAILURES, b"wrong"))
    with pytest.raises(LoginRefused):
        slow.throttle.verify(HERE, "alice", b"right")


def test_no_more_passwords_are_compared_with_what_is_remembered_than_may_fail() -> None:
    compared: list[bytes] = []

    def recall(name: str, password: bytes) -> bool:
        compared.append(password)
        return password == b"right"

    slow = SlowLogins(recall)
    guesses = slow.start(100, b"wrong")
    last = slow.start(1, b"right")
    assert len(compared) == MAX_FAILURES
    slow.release()
    assert outcomes(guesses).count(False) == MAX_FAILURES
    assert outcomes(last) == [None], "its address is refused by now"
    assert len(compared) == MAX_FAILURES
