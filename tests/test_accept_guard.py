"""What is done about an accept() that fails, and how often that is logged."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from gsocks.inbound.accept_guard import AcceptGuard, Reaction

EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@pytest.fixture
def guard() -> Iterator[AcceptGuard]:
    made = AcceptGuard("local")
    yield made
    made.give_up_reserve()


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_descriptors_the_reserve_is_given_up_to_refuse_one_connection(
    guard: AcceptGuard, number: int
) -> None:
    guard.take_reserve()
    assert repr(guard) == "<AcceptGuard of local, holds a reserve>"
    assert guard.reaction(failure(number)) is Reaction.USE_RESERVE
    assert repr(guard) == "<AcceptGuard of local, no reserve>"


@pytest.mark.parametrize("number", EXHAUSTED)
def test_without_a_reserve_accepting_pauses(guard: AcceptGuard, number: int) -> None:
    assert guard.reaction(failure(number)) is Reaction.PAUSE


def test_a_reserve_is_no_help_against_want_of_memory_and_stays(guard: AcceptGuard) -> None:
    guard.take_reserve()
    assert guard.reaction(failure(errno.ENOMEM)) is Reaction.PAUSE
    assert guard.has_reserve


def test_a_client_that_was_gone_first_is_ignored_and_a_closed_listener_is_not(
    guard: AcceptGuard,
) -> None:
    assert guard.reaction(failure(errno.ECONNABORTED)) is Reaction.IGNORE
    assert guard.reaction(failure(errno.EBADF)) is Reaction.RAISE


def test_a_second_reserve_takes_no_second_descriptor(guard: AcceptGuard) -> None:
    guard.take_reserve()
    before = os.listdir("/proc/self/fd")
    guard.take_reserve()
    assert os.listdir("/proc/self/fd") == before


def test_the_failure_is_logged_once_in_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    guard = AcceptGuard("local", clock=lambda: now)
    for _ in range(100):
        guard.log_failure(failure(errno.EMFILE), 7, "retrying every 0.25 s")
    now += guard.log_interval + 1
    guard.log_failure(failure(errno.EMFILE), 8, "closing new connections")
    assert [record.getMessage() for record in caplog.records] == [
        "local can't accept: Too many open files, with 7 connections open; retrying every 0.25 s",
        "local can't accept: Too many open files, with 8 connections open; closing new connections",
    ]


def test_the_first_failure_is_logged_however_young_the_clock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    AcceptGuard("local", clock=lambda: 0.5).log_failure(failure(errno.EMFILE), 1, "retrying")
    assert len(caplog.records) == 1
