"""A short soak; `make soak` has the long one."""

from __future__ import annotations

import gevent

from tests.support.soak import Soak
from tests.support.waiting import TOO_LONG


def test_while_exits_die_and_return_no_byte_is_lost_and_sessions_stay() -> None:
    with gevent.Timeout(5 * TOO_LONG):
        soak = Soak(clients=200, exits=8, seed=1)
        soak.run(6.0)
    assert not soak.violations, soak.told()
    assert soak.counts["whole"] > 200
    assert soak.counts["absences"] > 5
    assert soak.counts["moves"] > 0
