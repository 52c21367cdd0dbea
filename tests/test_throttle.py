"""Failed logins are slowed and then refused, and nobody else suffers from it."""

from __future__ import annotations

import logging

import gevent
import pytest
from gevent.event import Event

from gsocks.errors import LoginRefused, LoginsBusy
from gsocks.limits import Timeouts
from gsocks.throttle import Throttle

pytestmark = pytest.mark.usefixtures("never_hangs")

HERE = "192.0.2.7"
THERE = "192.0.2.8"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """A throttle on a clock of the test's own, and what it does."""

    def __init__(self, kind: type[Throttle] = Throttle) -> None:
        self.clock = Clock()
        #: name and password of each login that was looked at
        self.asked: list[tuple[str, bytes]] = []
        #: by how much each answer was kept back
        self.delays: list[float] = []
        self.throttle = kind(self._authenticate, self.clock, self.delays.append)

    def _authenticate(self, name: str, password: bytes) -> bool:
        self.asked.append((name, password))
        return password == b"right"

    def fail(self, times: int = 1, host: str = HERE, name: str = "alice") -> None:
        for _ in range(times):
            assert not self.throttle.verify(host, name, b"wrong")

    def succeed(self, host: str = HERE, name: str = "alice") -> None:
        assert self.throttle.verify(host, name, b"right")

    def is_refused(self, host: str = HERE, name: str = "alice") -> bool:
        """Whether even the right password isn't looked at."""
        before = len(self.asked)
        try:
            self.throttle.verify(host, name, b"right")
        except LoginRefused:
            assert len(self.asked) == before
            return True
        return False


@pytest.fixture
def door() -> Door:
    return Door()


MOST = Throttle.MOST_FAILURES


def test_the_numbers_are_those_of_the_documentation() -> None:
    assert (MOST, Throttle.WINDOW, Throttle.REFUSED_FOR) == (10, 600, 600)
    assert Throttle.MAX_ADDRESSES == 10_000


# --- slowed -----------------------------------------------------------------------------------


def test_a_right_password_is_answered_at_once(door: Door) -> None:
    door.succeed()
    assert door.delays == []


def test_each_failure_is_answered_later_than_the_one_before_up_to_a_bound(door: Door) -> None:
    door.fail(MOST)
    assert door.delays == [0.25, 0.5, 1, 2, 4, 4, 4, 4, 4, 4]


def test_the_longest_delay_leaves_time_for_the_answer() -> None:
    assert Timeouts().handshake / 2 > Throttle.LONGEST_DELAY


def test_a_right_password_is_not_delayed_by_failures_before_it(door: Door) -> None:
    door.fail(3)
    door.delays.clear()
    door.succeed()
    assert door.delays == []


def test_failures_are_forgotten_after_their_time(door: Door) -> None:
    door.fail()
    door.clock.now += Throttle.WINDOW - 1
    door.fail()
    door.clock.now += 1
    door.fail()
    assert door.delays == [0.25, 0.5, 0.5]


# --- refused ----------------------------------------------------------------------------------


def test_after_too_many_failures_not_even_the_right_password_is_looked_at(door: Door) -> None:
    door.fail(MOST - 1)
    assert not door.is_refused(name="bob")
    door.fail()
    assert door.is_refused()
    assert door.is_refused(name="bob")


def test_failures_of_whatever_names_are_counted_together(door: Door) -> None:
    for number in range(MOST):
        door.fail(name=f"user{number}")
    assert door.is_refused()


def test_who_is_refused_is_answered_at_once(door: Door) -> None:
    door.fail(MOST)
    door.delays.clear()
    assert door.is_refused()
    assert door.delays == []


def test_a_refusal_is_over_after_its_time_however_often_it_was_tried(door: Door) -> None:
    door.fail(MOST)
    for _ in range(100):
        assert door.is_refused()
    door.clock.now += Throttle.REFUSED_FOR - 1
    assert door.is_refused()
    door.clock.now += 1
    assert not door.is_refused()
    assert not door.throttle._sources


def test_after_a_refusal_all_failures_are_counted_from_the_first(door: Door) -> None:
    door.fail(MOST)
    door.clock.now += Throttle.REFUSED_FOR
    door.delays.clear()
    door.fail(MOST - 1)
    assert door.delays[0] == 0.25
    assert not door.is_refused()


def test_a_refusal_that_is_shorter_than_the_window_leaves_nothing_behind() -> None:
    class Short(Throttle):
        REFUSED_FOR = 10.0

    door = Door(Short)
    door.fail(MOST)
    door.clock.now += Short.REFUSED_FOR
    assert not door.is_refused()
    door.delays.clear()
    door.fail()
    assert door.delays == [0.25]


def test_failures_that_come_slowly_enough_are_never_too_many(door: Door) -> None:
    for _ in range(100):
        door.fail()
        door.clock.now += Throttle.WINDOW / (MOST - 1) + 0.1
    assert not door.is_refused(name="bob")


def test_failures_that_come_a_little_faster_are_too_many(door: Door) -> None:
    for _ in range(MOST):
        door.fail()
        door.clock.now += Throttle.WINDOW / MOST - 0.1
    assert door.is_refused()


def test_the_refusal_says_how_long_it_lasts_and_names_no_user(door: Door) -> None:
    door.fail(MOST, name="alice")
    door.clock.now += 60
    with pytest.raises(LoginRefused, match=r"^too many .* from 192\.0\.2\.7; wait for 9m$"):
        door.throttle.verify(HERE, "alice", b"right")
    door.clock.now += 539.9
    with pytest.raises(LoginRefused, match=r"wait for 1s$"):
        door.throttle.verify(HERE, "alice", b"right")


def test_the_beginning_of_a_refusal_is_in_the_log_once(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gsocks.throttle"):
        door.fail(MOST)
        assert door.is_refused()
    assert caplog.messages == ["192.0.2.7: 10 logins have failed in 10m, none is looked at for 10m"]


def test_what_the_refusal_is_to_the_protocols() -> None:
    assert (LoginRefused.word, LoginRefused.http_status) == ("auth_refused", 429)
    assert (LoginsBusy.word, LoginsBusy.http_status) == ("auth_busy", 503)


# --- who is meant -----------------------------------------------------------------------------


def test_another_address_is_another_client(door: Door) -> None:
    door.fail(MOST)
    assert not door.is_refused(THERE)
    door.fail(host=THERE)
    assert door.delays[-1] == 0.25


def test_loopback_is_a_client_like_others(door: Door) -> None:
    door.fail(MOST, "127.0.0.1")
    assert door.is_refused("127.0.0.1")
    assert not door.is_refused("127.0.0.2")


def test_all_addresses_of_an_ipv6_network_of_64_bits_are_one_client(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MOST):
        door.fail(host=f"2001:db8:1:2:{number}::")
    assert door.is_refused("2001:db8:1:2:ffff:ffff:ffff:ffff")
    assert not door.is_refused("2001:db8:1:3::")
    assert caplog.messages[-1].startswith("2001:db8:1:2::/64: 10 logins")


def test_the_guard_of_one_client_counts_for_that_client(door: Door) -> None:
    authenticate = door.throttle.for_client(HERE)
    assert authenticate("alice", b"right")
    for _ in range(MOST):
        assert not authenticate("alice", b"wrong")
    assert door.is_refused(HERE)
    assert not door.is_refused(THERE)


# --- success ----------------------------------------------------------------------------------


def test_a_success_forgives_what_failed_before(door: Door) -> None:
    for _ in range(5):
        door.fail(MOST - 1)
        door.succeed()
    door.delays.clear()
    door.fail()
    assert door.delays == [0.25]


def test_a_success_does_not_forgive_what_was_tried_with_other_names(door: Door) -> None:
    """Else whoever has an account could try out the passwords of the others in between."""
    door.fail(5, name="bob")
    door.succeed(name="alice")
    door.fail(5, name="bob")
    assert door.is_refused()


# --- side by side -----------------------------------------------------------------------------


class Hall:
    """A throttle whose logins wait until the test says what comes of them."""

    def __init__(self) -> None:
        self.inside = 0
        self.total = 0
        self._open = Event()
        self.throttle = Throttle(self._authenticate, Clock(), lambda _: None)

    def _authenticate(self, name: str, password: bytes) -> bool:
        self.inside += 1
        self.total += 1
        try:
            self._open.wait()
        finally:
            self.inside -= 1
        return password == b"right"

    def open(self) -> None:
        self._open.set()

    def logins(self, count: int, password: bytes, host: str = HERE) -> list[gevent.Greenlet]:
        def log_in() -> bool | None:
            try:
                return self.throttle.verify(host, "alice", password)
            except LoginRefused:
                return None

        greenlets = [gevent.spawn(log_in) for _ in range(count)]
        gevent.idle()
        return greenlets


def outcomes(logins: list[gevent.Greenlet]) -> list[bool | None]:
    return [login.get() for login in logins]


def test_no_more_guesses_are_looked_at_side_by_side_than_may_fail() -> None:
    hall = Hall()
    logins = hall.logins(100, b"wrong")
    assert hall.inside == MOST
    hall.open()
    found = outcomes(logins)
    assert (found.count(False), found.count(None)) == (MOST, 90)
    assert hall.total == MOST


def test_after_failures_fewer_are_looked_at_side_by_side() -> None:
    hall = Hall()
    hall.open()
    assert outcomes(hall.logins(7, b"wrong")) == [False] * 7
    hall._open.clear()
    logins = hall.logins(10, b"wrong")
    assert hall.inside == 3
    hall.open()
    assert outcomes(logins).count(None) == 7


def test_many_connections_of_a_good_user_all_come_in() -> None:
    hall = Hall()
    logins = hall.logins(100, b"right")
    assert hall.inside == MOST
    hall.open()
    assert outcomes(logins) == [True] * 100


def test_nobody_waits_for_the_logins_of_another_address() -> None:
    hall = Hall()
    here = hall.logins(20, b"wrong")
    there = hall.logins(5, b"right", THERE)
    assert hall.inside == MOST + 5
    hall.open()
    assert outcomes(there) == [True] * 5
    assert outcomes(here).count(None) == 10


def test_a_login_that_is_given_up_is_no_failure_and_makes_room() -> None:
    hall = Hall()
    first = hall.logins(MOST, b"wrong")
    waiting = hall.logins(5, b"right")
    gevent.killall(first)
    gevent.idle()
    assert hall.inside == 5
    gevent.killall(waiting[:2])
    hall.open()
    assert outcomes(waiting[2:]) == [True] * 3
    assert not hall.throttle._sources, "who has done nothing wrong takes nobody's place"


def test_a_login_that_is_given_up_while_it_waits_holds_no_place() -> None:
    hall = Hall()
    first = hall.logins(MOST, b"right")
    waiting = hall.logins(5, b"right")
    gevent.killall(waiting)
    hall.open()
    assert outcomes(first) == [True] * MOST
    assert not hall.throttle._sources


# --- what else may happen ---------------------------------------------------------------------


def test_an_error_of_authenticate_is_passed_on_and_is_no_failure() -> None:
    def busy(name: str, password: bytes) -> bool:
        raise LoginsBusy

    throttle = Throttle(busy, Clock(), lambda _: None)
    for _ in range(2 * MOST):
        with pytest.raises(LoginsBusy):
            throttle.verify(HERE, "alice", b"right")
    assert not throttle._sources


def test_the_addresses_remembered_are_bounded_and_the_most_silent_is_forgotten() -> None:
    class Small(Throttle):
        MAX_ADDRESSES = 3

    door = Door(Small)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        door.fail(host=host)
    door.fail(host="10.0.0.1")
    door.fail(host="10.0.0.4")
    door.delays.clear()
    door.fail(host="10.0.0.1")
    door.fail(host="10.0.0.3")
    door.fail(host="10.0.0.4")
    assert door.delays == [1, 0.5, 0.5]
    door.delays.clear()
    door.fail(host="10.0.0.2")
    assert door.delays == [0.25]
    assert len(door.throttle._sources) == 3


def test_who_is_refused_is_not_forgotten_for_others_that_fail_less() -> None:
    class Small(Throttle):
        MAX_ADDRESSES = 3

    door = Door(Small)
    door.fail(MOST)
    for number in range(100):
        assert door.is_refused()
        door.fail(host=f"10.0.0.{number}")
    assert door.is_refused()


def test_clients_that_never_fail_are_not_remembered(door: Door) -> None:
    for number in range(100):
        door.succeed(host=f"10.0.0.{number}")
    door.fail()
    door.succeed()
    assert not door.throttle._sources


def test_a_forgotten_address_does_not_disturb_those_who_are_still_inside() -> None:
    class Small(Throttle):
        MAX_ADDRESSES = 1

    gates: dict[str, Event] = {"alice": Event(), "bob": Event()}

    def authenticate(name: str, password: bytes) -> bool:
        return gates[name].wait()

    throttle = Small(authenticate, Clock(), lambda _: None)
    first = gevent.spawn(throttle.verify, HERE, "alice", b"")
    gevent.idle()
    second = gevent.spawn(throttle.verify, THERE, "bob", b"")
    gevent.idle()
    gates["alice"].set()
    assert first.get()
    assert list(throttle._sources) == [THERE]
    gates["bob"].set()
    assert second.get()
    assert not throttle._sources


def test_an_answer_is_kept_back_by_gevents_sleep_where_nothing_else_is_given() -> None:
    class Quick(Throttle):
        FIRST_DELAY = 0.02

    throttle = Quick(lambda name, password: False)
    login = gevent.spawn(throttle.verify, HERE, "alice", b"wrong")
    gevent.idle()
    assert not login.ready()
    assert login.get() is False
