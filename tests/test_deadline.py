"""A call that takes too long is abandoned."""

from __future__ import annotations

import gevent
import pytest

from gsocks.deadline import call_with_timeout, call_within

pytestmark = pytest.mark.usefixtures("never_hangs")


class Late(Exception):
    """The error of these tests."""


class Later(Exception):
    """Another one."""


def test_a_call_in_time_returns_what_it_returns() -> None:
    assert call_within(60, Late(), divmod, 7, 2) == (3, 1)
    assert call_with_timeout(60, divmod, 7, 2, on_timeout=None) == (3, 1)


def test_a_call_that_takes_longer_gets_the_error_where_it_waits() -> None:
    late, seen = Late(), list[Exception]()

    def wait() -> None:
        try:
            gevent.sleep(60)
        except Late as error:
            seen.append(error)
            raise

    with pytest.raises(Late) as caught:
        call_within(0.01, late, wait)
    assert [caught.value] == seen == [late]


def test_the_error_of_an_outer_call_passes_through_an_inner_one() -> None:
    with pytest.raises(Late):
        call_within(0.01, Late(), lambda: call_with_timeout(60, gevent.sleep, 60, on_timeout=None))


def test_no_error_comes_after_the_call() -> None:
    call_within(0.01, Late(), int)
    with pytest.raises(Later):  # the other one's turn would be before
        call_within(0.01, Later(), gevent.sleep, 60)
