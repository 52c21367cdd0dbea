"""Health: when an exit goes out, for how long, and who is asked when few are left.

All time is told to it, and all chance is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from gsocks import errors
from gsocks.errors import Fault, GsocksError
from gsocks.rotation.health import DomainHealth, Health, domain_of, usable
from gsocks.settings import HealthSettings

SETTINGS = HealthSettings(base=300.0)


class Longest(Random):
    """Always as long as it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


def health(**settings: float) -> Health:
    return Health(replace(SETTINGS, **settings), Longest())


def put_out(patient: Health, now: float = 0.0) -> Health:
    while not patient.failed(now):
        pass
    return patient


def down(patient: Health, now: float = 0.0) -> Health:
    patient.checked(False, now)
    return patient


class Member(NamedTuple):
    name: str
    health: Health


def members(*patients: Health) -> list[Member]:
    return [Member(f"exit{number}", patient) for number, patient in enumerate(patients)]


def names(some: Iterable[Member]) -> list[str]:
    return [each.name for each in some]


# --- one exit, passively ----------------------------------------------------------------------


def test_the_third_failure_in_a_row_puts_an_exit_out() -> None:
    patient = health()
    assert [patient.failed(0.0) for _ in range(3)] == [False, False, True]
    assert patient.is_ejected(0.0)


def test_a_success_in_between_begins_the_count_anew() -> None:
    patient = health()
    for _ in range(10):
        assert not patient.failed(0.0)
        assert not patient.failed(0.0)
        patient.succeeded(0.0)
    assert not patient.is_ejected(0.0)


def test_it_is_back_when_its_time_is_over_and_not_before() -> None:
    patient = put_out(health(base=60.0), 1000.0)
    assert patient.ejected_until == 1060.0
    assert patient.is_ejected(1059.9)
    assert not patient.is_ejected(1060.0)


def test_each_time_that_it_comes_back_and_fails_it_is_out_for_twice_as_long_up_to_an_hour() -> None:
    patient = health()
    now, times = 0.0, []
    for _ in range(7):
        put_out(patient, now)
        times.append(patient.ejected_until - now)
        now = patient.ejected_until
    assert times == [300.0, 600.0, 1200.0, 2400.0, 3600.0, 3600.0, 3600.0]


def test_it_never_overflows_however_long_an_exit_is_dead() -> None:
    patient = health()
    now = 0.0
    for _ in range(2000):
        put_out(patient, now)
        now = patient.ejected_until
    assert patient.ejections == 2000


def test_how_long_it_is_out_is_any_time_up_to_the_bound_so_that_not_all_come_back_at_once() -> None:
    chance = Random(1)
    times = sorted(put_out(Health(SETTINGS, chance)).ejected_until for _ in range(1000))
    # Kolmogorov-Smirnov against uniform(0, 300); beyond the bound once in a million
    gap = max(abs(time / 300 - (rank + 0.5) / 1000) for rank, time in enumerate(times))
    assert gap < 2.7 / math.sqrt(1000)
    assert times[-1] <= 300


def test_an_exit_that_has_come_back_is_out_again_by_one_failure() -> None:
    patient = put_out(health())
    assert patient.failed(300.0)
    assert patient.ejected_until == 300.0 + 600.0


def test_a_success_forgives_all() -> None:
    patient = put_out(health())
    patient.failed(300.0)
    patient.succeeded(900.0)
    assert [patient.failed(900.0) for _ in range(3)] == [False, False, True]
    assert patient.ejected_until == 900.0 + 300.0


def test_requests_that_began_before_it_went_out_make_nothing_worse() -> None:
    patient = put_out(health())
    assert not any(patient.failed(1.0) for _ in range(30))
    assert (patient.ejected_until, patient.ejections) == (300.0, 1)


def test_a_failed_check_is_the_last_result() -> None:
    patient = health()
    patient.succeeded(10.0)
    down(patient, 11.0)
    assert not patient.proven


def test_a_request_that_fails_late_says_nothing_of_what_was_learnt_meanwhile() -> None:
    """An exit was silent for a while: what was asked then fails seconds after it is well again."""
    patient = health()
    patient.succeeded(10.0)
    assert not any(patient.failed(12.0, began=9.9) for _ in range(10))
    assert patient.proven
    assert [patient.failed(12.0, began=10.1) for _ in range(3)] == [False, False, True]
    back = patient.ejected_until
    assert not patient.failed(back, began=11.9)
    assert patient.failed(back, began=12.1)


def test_a_success_of_an_exit_that_is_out_brings_it_back() -> None:
    patient = put_out(health())
    patient.succeeded(10.0)
    assert not patient.is_ejected(10.0)


@pytest.mark.parametrize("failures", [1, 2, 7])
def test_how_many_failures_it_takes_is_a_setting(failures: int) -> None:
    patient = health(failures=failures)
    assert [patient.failed(0.0) for _ in range(failures)] == [False] * (failures - 1) + [True]


# --- actively ---------------------------------------------------------------------------------


def test_an_exit_whose_checks_fail_is_out_until_they_succeed() -> None:
    patient = down(health())
    assert patient.is_ejected(1e9)
    assert patient.is_down
    patient.checked(True, 1e9)
    assert not patient.is_ejected(1e9)
    assert not patient.is_down


def test_a_request_that_gets_through_brings_it_back_too() -> None:
    patient = down(health())
    patient.succeeded(5.0)
    assert not patient.is_ejected(5.0)


def test_a_check_brings_back_what_requests_have_put_out_but_on_probation() -> None:
    patient = put_out(health())
    patient.checked(True, 10.0)
    assert not patient.is_ejected(10.0)
    assert patient.failed(10.0)
    assert patient.ejected_until == 10.0 + 600.0


def test_checks_that_succeed_forgive_no_failures_of_requests() -> None:
    patient = health()
    for _ in range(2):
        assert not patient.failed(0.0)
        patient.checked(True, 0.0)
    assert patient.failed(0.0)


def test_failures_of_an_exit_that_is_down_count_for_nothing() -> None:
    patient = down(health())
    assert not any(patient.failed(0.0) for _ in range(10))
    patient.checked(True, 1.0)
    assert not patient.failed(1.0)


# --- in words ---------------------------------------------------------------------------------


def test_people_are_told_its_state_in_one_word() -> None:
    patient = health()
    assert patient.state(0.0) == "unproven"
    patient.succeeded(0.0)
    assert patient.state(0.0) == "ok"
    patient.failed(0.0)
    assert patient.state(0.0) == "degraded"
    put_out(patient)
    assert patient.state(0.0) == "ejected"
    assert patient.state(300.0) == "probation"
    patient.checked(False, 300.0)
    assert patient.state(300.0) == "down"
    patient.checked(True, 300.0)
    assert patient.state(300.0) == "probation"
    patient.succeeded(300.0)
    assert patient.state(300.0) == "ok"


# --- in flight --------------------------------------------------------------------------------


def test_an_exit_of_which_nothing_good_is_known_is_busy_with_four_requests() -> None:
    patient = health()
    patient.in_flight = 3
    assert not patient.is_busy
    patient.in_flight = 4
    assert patient.is_busy
    patient.succeeded(0.0)
    assert not patient.is_busy
    patient.failed(0.0)
    assert patient.is_busy
    patient.checked(True, 0.0)
    assert not patient.is_busy


def test_others_are_asked_rather_than_a_busy_one_which_is_asked_rather_than_none() -> None:
    busy, also_busy, idle = health(), health(), health()
    busy.in_flight = also_busy.in_flight = 4
    assert names(usable(members(busy, idle, also_busy), 0.0)) == ["exit1"]
    assert names(usable(members(busy, put_out(health()), also_busy), 0.0)) == ["exit0", "exit2"]


# --- among many -------------------------------------------------------------------------------


def test_those_that_are_out_are_not_asked() -> None:
    some = members(health(), put_out(health()), down(health()), health())
    assert names(usable(some, 299.0)) == ["exit0", "exit3"]
    assert names(usable(some, 300.0)) == ["exit0", "exit1", "exit3"]


def test_whether_another_may_be_ejected_is_a_question_only_where_one_is_due() -> None:
    questions = []

    def never() -> bool:
        questions.append(1)
        return False

    patient = health()
    patient.failed(0.0, never)
    patient.failed(0.0, never)
    assert not questions
    assert not patient.failed(0.0, never)
    assert questions == [1]
    assert not patient.is_ejected(0.0)
    assert patient.failed(0.0)  # as soon as it may be


def test_when_all_are_out_those_that_are_back_soonest_are_asked() -> None:
    everybody = [put_out(health(), float(now)) for now in (50, 10, 40, 30, 20, 60)]
    assert names(usable(members(*everybody), 99.0)) == ["exit1", "exit2", "exit3", "exit4"]


def test_of_many_that_are_all_out_a_quarter_is_asked() -> None:
    everybody = [put_out(health(), float(now)) for now in range(100)]
    assert names(usable(members(*everybody), 99.0)) == [f"exit{number}" for number in range(25)]


def test_those_that_are_down_are_the_worst_and_the_longest_of_them_most() -> None:
    everybody = [down(health(), float(now)) for now in range(1, 6)] + [put_out(health(), 90.0)]
    assert names(usable(members(*everybody), 99.0)) == ["exit2", "exit3", "exit4", "exit5"]


def test_no_exits_give_no_candidates() -> None:
    assert not usable([], 0.0)


# --- whose fault it is ------------------------------------------------------------------------


def every_error(kind: type[GsocksError] = GsocksError) -> list[type[GsocksError]]:
    return [kind, *[each for sub in kind.__subclasses__() for each in every_error(sub)]]


def test_every_error_says_whose_fault_it_is() -> None:
    """The whole tree: a new error is to be thought of here."""
    faults = {kind: kind.fault for kind in every_error() if kind.fault is not Fault.REQUEST}
    assert faults == {
        errors.ConnectFailed: Fault.DESTINATION,
        errors.Forbidden: Fault.DESTINATION,
        errors.HostUnreachable: Fault.DESTINATION,
        errors.NameNotFound: Fault.DESTINATION,
        errors.ConnectionRefused: Fault.DESTINATION,
        errors.ExitFailed: Fault.EXIT,
        errors.ExitUnproven: Fault.EXIT,
        errors.LoopDetected: Fault.EXIT,
        errors.ShuttingDown: Fault.EXIT,
        errors.ExitDoubtful: Fault.UNCLEAR,
        errors.ExitHungUp: Fault.UNCLEAR,
        errors.NetworkUnreachable: Fault.UNCLEAR,
        errors.ConnectTimeout: Fault.UNCLEAR,
        errors.LimitReached: Fault.NONE,
        errors.NoExit: Fault.NONE,
        errors.OutOfResources: Fault.NONE,
        errors.AddressFamilyNotSupported: Fault.NONE,
        errors.CommandNotSupported: Fault.NONE,
    }


@pytest.mark.parametrize("kind", [kind for kind in every_error() if kind.code != GsocksError.code])
def test_whose_fault_it_is_comes_through_a_tunnel(kind: type[GsocksError]) -> None:
    # the rules of the far end are those of an exit
    expected = Fault.DESTINATION if kind is errors.Denied else kind.fault
    assert errors.failure_from_code(kind.code).fault is expected


# --- for one domain ---------------------------------------------------------------------------

SITE = "shop.example"


def domains(**options: int) -> DomainHealth:
    return DomainHealth(SETTINGS, Longest(), **options)


def banned_by(site: str, *exits: str) -> DomainHealth:
    known = domains()
    for name in exits:
        for _ in range(3):
            known.failed(name, site, 0.0)
    return known


def test_an_exit_that_one_site_has_banned_stays_in_use_for_all_others() -> None:
    known = banned_by(SITE, "exit1")
    some = members(health(), health(), health())
    assert names(known.usable(some, SITE, 0.0)) == ["exit0", "exit2"]
    assert names(known.usable(some, "other.example", 0.0)) == ["exit0", "exit1", "exit2"]
    assert names(known.usable(some, SITE, 300.0)) == ["exit0", "exit1", "exit2"]


def test_the_third_bad_answer_in_a_row_is_a_ban() -> None:
    known = domains()
    assert [known.failed("a", SITE, 0.0) for _ in range(3)] == [False, False, True]
    assert known.is_ejected("a", SITE, 0.0)
    assert known.ejected_for(SITE, 0.0) == {"a"}


def test_a_site_may_ban_all_exits_and_those_that_are_back_soonest_are_asked() -> None:
    known = domains()
    some = members(*[health() for _ in range(6)])
    for number in range(6):
        for _ in range(3):
            known.failed(f"exit{number}", SITE, float(number))
    assert names(known.usable(some, SITE, 10.0)) == ["exit0", "exit1", "exit2", "exit3"]


def test_a_good_answer_is_all_forgiven_and_forgotten() -> None:
    known = banned_by(SITE, "a")
    known.succeeded("a", SITE, 1.0)
    assert not known.is_ejected("a", SITE, 1.0)
    assert len(known) == 0


def test_good_answers_of_exits_that_never_failed_cost_no_memory() -> None:
    known = domains()
    known.succeeded("a", SITE, 0.0)
    assert len(known) == 0


def test_a_ban_by_hand_lasts_as_long_as_was_said_whatever_the_answers() -> None:
    known = domains()
    known.ban("a", SITE, until=100.0, now=0.0)
    known.succeeded("a", SITE, 1.0)
    assert known.is_ejected("a", SITE, 99.0)
    assert not known.is_ejected("a", SITE, 100.0)


def test_a_ban_by_hand_can_be_lifted() -> None:
    known = domains()
    known.ban("a", SITE, until=100.0, now=0.0)
    known.unban("a", SITE)
    known.unban("a", "never.example")
    assert not known.is_ejected("a", SITE, 1.0)


def test_pairs_are_listed_with_their_state() -> None:
    known = banned_by(SITE, "a")
    known.failed("b", SITE, 0.0)
    known.ban("a", "other.example", until=50.0, now=0.0)
    assert list(known.listed(1.0)) == [
        ("a", SITE, "ejected", 300.0),
        ("b", SITE, "degraded", -math.inf),
        ("a", "other.example", "banned", 50.0),
    ]


def test_no_more_pairs_are_remembered_than_may_be_and_the_oldest_is_forgotten() -> None:
    known = domains(max_pairs=3)
    for number in range(100):
        known.failed("a", f"{number}.example", 0.0)
        known.ban("b", "kept.example", until=9.0, now=0.0)
    assert len(known) == 3
    assert known.is_ejected("b", "kept.example", 0.0)
    assert len(known.by_domain) == 3


def test_what_nothing_is_told_of_for_a_day_is_forgotten_but_not_a_ban() -> None:
    known = domains()
    day = known.forget_after
    known.failed("a", SITE, 0.0)
    known.failed("b", SITE, 1.0)
    known.failed("c", SITE, day)
    assert [name for name, *_ in known.listed(day)] == ["b", "c"]
    known.ban("d", SITE, until=9 * day, now=day)
    known.failed("e", SITE, 3 * day)
    assert [name for name, *_ in known.listed(3 * day)] == ["d", "e"]


def test_an_exit_whose_ban_ends_is_ejected_for_no_domain() -> None:
    known = domains()
    known.ban("a", SITE, until=100.0, now=0.0)
    assert known.ejected_for(SITE, 1.0) == {"a"}
    known.unban("a", SITE)
    assert not known.ejected_for(SITE, 1.0)


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("Shop.Example", SITE),
        ("shop.example.", SITE),
        ("www.shop.example", "www.shop.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_a_domain_is_the_host_in_one_spelling(host: str, domain: str) -> None:
    assert domain_of(host) == domain


def test_what_is_no_host_is_no_domain() -> None:
    with pytest.raises(errors.BadAddress):
        domain_of("https://shop.example/")
