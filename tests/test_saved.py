"""What of an exit group outlives the process, and what of it counts afterwards."""

from __future__ import annotations

import math
from random import Random

import pytest
from msgspec import MsgspecError

from gsocks.access.rules import Rules
from gsocks.rotation.group import ExitGroup, Offer
from gsocks.rotation.health import RECHECK
from gsocks.rotation.roster import Member
from gsocks.rotation.saved import SavedDomains, SavedExits, SavedSessions
from gsocks.rotation.session import Like, Sessions, SessionState
from gsocks.rotation.state_clock import Clock
from gsocks.rotation.state_sync import Entry
from gsocks.settings import HealthSettings, SessionSettings

#: before the restart and behind it: another monotonic clock, and a minute later
BEFORE = Clock(monotonic=5000.0, wall=1_000_000.0)
AFTER = Clock(monotonic=20.0, wall=1_000_060.0)

HEALTH = HealthSettings(failures=1, base=600.0, longest=600.0, max_ejected=1.0)


class Named:
    """An exit that only has a label."""

    def __init__(self, label: str) -> None:
        self.label = label

    def close(self) -> None: ...

    def connect(self, request: object) -> object: ...


def group(*names: str, label: str = "") -> ExitGroup:
    offers = [Offer(Named(f"http://{name}{label}"), name=name) for name in names]  # type: ignore[arg-type]
    sessions = Sessions(SessionSettings(idle=600.0, longest=3600.0))
    return ExitGroup(offers, Rules.default(), health=HEALTH, sessions=sessions, random=Random(1))


def member(of: ExitGroup, name: str = "a") -> Member:
    found = of.roster.named(name)
    assert found is not None
    return found


def after_restart(before: ExitGroup, after: ExitGroup, name: str = "a") -> Member:
    """The exit in a group that has read what the other one has written."""
    entry = SavedExits(before).entry(member(before, name), BEFORE)
    assert entry is not None
    SavedExits(after).restore(entry, AFTER)
    return member(after, name)


# --- exits ------------------------------------------------------------------------------------


def test_an_ejection_goes_on_for_as_long_as_it_had_left() -> None:
    one = group("a", "b")
    health = member(one).health
    health.succeeded(4000.0)
    assert health.failed(BEFORE.monotonic)
    health.ejected_until = BEFORE.monotonic + 300.0
    restored = after_restart(one, group("a", "b")).health
    assert restored.ejected_until - AFTER.monotonic == pytest.approx(300.0 - 60.0)
    assert restored.ejections == health.ejections
    assert restored.has_worked
    assert not restored.proven
    ends = restored.ejected_until
    assert restored.state(ends - 1) == "ejected"
    assert restored.state(ends + 1) == "probation"


def test_an_exit_that_has_worked_needs_no_proof_again() -> None:
    one = group("a")
    member(one).health.succeeded(4000.0)
    restored = after_restart(one, group("a")).health
    assert restored.proven
    assert restored.state(AFTER.monotonic) == "ok"


def test_an_exit_that_was_down_is_left_out_until_that_has_to_show_again() -> None:
    one = group("a")
    member(one).health.checked(False, 4000.0)
    saved = SavedExits(one).entry(member(one), BEFORE)
    assert saved is not None
    later = group("a")
    soon = BEFORE._replace(monotonic=7.0, wall=BEFORE.wall + 1)
    SavedExits(later).restore(saved, soon)
    assert member(later).health.ejected_until == pytest.approx(7.0 + RECHECK - 1)
    assert not member(later).health.is_down


def test_a_ban_and_draining_go_on() -> None:
    one = group("a")
    member(one).banned_until = BEFORE.monotonic + 100.0
    member(one).draining = True
    restored = after_restart(one, group("a"))
    assert restored.banned_until - AFTER.monotonic == pytest.approx(40.0)
    assert restored.draining


def test_a_ban_for_ever_stays_one() -> None:
    one = group("a")
    member(one).banned_until = math.inf
    assert after_restart(one, group("a")).banned_until > AFTER.monotonic + 86400 * 365


def test_a_clock_that_was_set_back_does_not_eject_for_longer() -> None:
    one = group("a")
    member(one).health.ejected_until = BEFORE.monotonic + 500.0
    entry = SavedExits(one).entry(member(one), BEFORE)
    later = group("a")
    assert entry is not None
    SavedExits(later).restore(entry, Clock(monotonic=20.0, wall=BEFORE.wall - 86400))
    assert member(later).health.ejected_until == 20.0 + HEALTH.longest


def test_a_name_that_means_another_exit_now_restores_nothing() -> None:
    one = group("a")
    member(one).draining = True
    assert not after_restart(one, group("a", label=":81")).draining


def test_what_is_known_of_an_exit_waits_until_the_exit_comes() -> None:
    one, later = group("a", "b"), group("b")
    member(one).draining = True
    entry = SavedExits(one).entry(member(one), BEFORE)
    assert entry is not None
    saved = SavedExits(later)
    saved.restore(entry, AFTER)
    changes = later.roster.update([Offer(Named("http://a"), name="a")])  # type: ignore[arg-type]
    saved.update(changes)
    assert member(later).draining


def test_a_change_is_noted() -> None:
    one = group("a", "b")
    saved = SavedExits(one)
    assert not saved.changed
    one.ban("a", 60.0)
    assert saved.changed == {member(one)}
    saved.changed.clear()
    one.drain("b")
    assert saved.changed == {member(one, "b")}


# --- pairs of exit and domain -----------------------------------------------------------------


def test_a_domain_that_bans_an_exit_still_does_after_a_restart() -> None:
    one, later = group("a", "b"), group("a", "b")
    saved = SavedDomains(one)
    one.roster.domains.failed("a", "shop.example", BEFORE.monotonic)
    one.roster.domains.ban("b", "shop.example", BEFORE.monotonic + 100.0, BEFORE.monotonic)
    assert saved.changed == {("a", "shop.example"), ("b", "shop.example")}
    ejected_until = one.roster.domains.saved("a", "shop.example", 0.0)
    assert ejected_until is not None
    left = ejected_until[0].ejected_until - BEFORE.monotonic
    restored = SavedDomains(later)
    for key in saved.changed:
        entry = saved.entry(key, BEFORE)
        assert entry is not None
        restored.restore(entry, AFTER)
    domains = later.roster.domains
    assert domains.is_ejected("b", "shop.example", AFTER.monotonic + 39.9)
    assert not domains.is_ejected("b", "shop.example", AFTER.monotonic + 40.1)
    assert not domains.is_ejected("b", "other.example", AFTER.monotonic)
    assert domains.is_ejected("a", "shop.example", AFTER.monotonic) == (left > 60.0)


def test_an_unban_is_written_as_the_end_of_the_record() -> None:
    one = group("a")
    saved = SavedDomains(one)
    one.ban("a", 100.0, "shop.example")
    one.unban("a", "shop.example")
    entry = saved.entry(("a", "shop.example"), BEFORE)
    assert entry is not None
    assert entry.expires <= BEFORE.wall


def test_what_is_known_of_a_domain_is_kept_for_a_day_beyond_the_ban() -> None:
    one = group("a")
    saved = SavedDomains(one)
    one.roster.domains.ban("a", "shop.example", BEFORE.monotonic + 100.0, BEFORE.monotonic)
    entry = saved.entry(("a", "shop.example"), BEFORE)
    assert entry is not None
    assert entry.expires == BEFORE.wall + 100.0 + 86400.0


# --- sessions ---------------------------------------------------------------------------------

KEY = ("alice", "cart-17")


def state(exit_: str, moved: float, last: float | None = None) -> SessionState:
    return SessionState(
        exit=exit_,
        like=Like(("fast",), "de"),
        address="203.0.113.7",
        first=moved - 100.0,
        last=moved if last is None else last,
        moved=moved,
        generation=2,
        is_served=True,
        is_bound=True,
        to_move="",
    )


def test_a_session_is_the_same_after_a_restart() -> None:
    one, later = group("a", "b"), group("a", "b")
    one.sessions.restore(KEY, state("b", 4900.0), BEFORE.monotonic)
    entry = SavedSessions(one).entry(KEY, BEFORE)
    assert entry is not None
    assert entry.expires == pytest.approx(BEFORE.wall - 100.0 + 600.0)
    SavedSessions(later).restore(entry, AFTER)
    restored = later.sessions.state_of(KEY)
    assert restored is not None
    # its times lie before the start of a monotonic clock that began with the machine
    shift = AFTER.monotonic - 60.0 - BEFORE.monotonic
    assert (restored.first, restored.last, restored.moved) == pytest.approx(
        (4800.0 + shift, 4900.0 + shift, 4900.0 + shift)
    )
    assert restored._replace(first=0.0, last=0.0, moved=0.0) == state("b", 4900.0)._replace(
        first=0.0, last=0.0, moved=0.0
    )
    assert later.sessions.exit_of(KEY, AFTER.monotonic) == "b"


def test_of_two_states_the_one_counts_to_which_the_session_moved_last() -> None:
    sessions = group("a", "b").sessions
    sessions.restore(KEY, state("a", 100.0), 300.0)
    sessions.restore(KEY, state("b", 200.0), 300.0)
    assert sessions.exit_of(KEY, 300.0) == "b"
    sessions.restore(KEY, state("a", 150.0, last=290.0), 300.0)
    found = sessions.state_of(KEY)
    assert found is not None
    assert (found.exit, found.last) == ("b", 290.0)


def test_a_session_that_is_idle_for_too_long_is_not_restored() -> None:
    sessions = group("a", "b").sessions
    sessions.restore(KEY, state("a", 100.0), 700.0)
    assert len(sessions) == 0


def test_a_clock_that_was_ahead_makes_no_session_last_longer() -> None:
    sessions = group("a", "b").sessions
    sessions.restore(KEY, state("a", 9000.0), 300.0)
    found = sessions.state_of(KEY)
    assert found is not None
    assert (found.first, found.last, found.moved) == (300.0, 300.0, 300.0)


@pytest.mark.parametrize(
    ("key", "value"), [("x", "{}"), ('["a"]', "{}"), ('["","s"]', '{"exit": 7}'), ("[]", "")]
)
def test_a_record_that_can_not_be_read_raises_what_is_caught(key: str, value: str) -> None:
    with pytest.raises((ValueError, MsgspecError)):
        SavedSessions(group("a")).restore(Entry(key, value, 1.0, 2.0), AFTER)
