"""A short soak of three gateways that share a store; `make soak-fleet` has the long one."""

from __future__ import annotations

import gevent

from tests.support.fleet_soak import FleetSoak
from tests.support.waiting import TOO_LONG

#: one of each kind that the processes of this test survive in a few seconds
FAULTS = ("exits away", "store emptied", "gateway killed", "store killed", "path parted",
          "gateway replaced")  # fmt: skip


def test_sessions_keep_their_exits_whatever_becomes_of_gateways_and_of_the_store() -> None:
    with gevent.Timeout(3 * TOO_LONG):
        soak = FleetSoak(sessions=150, exits=20, seed=1, rate=25.0, lasting=1.0, calm=0.5, limit=10)
        soak.run_faults(FAULTS)
    assert not soak.violations, soak.told() + "\n" + "\n".join(soak.violations[:20])
    assert soak.counts["whole"] > 50
    assert soak.counts["most_held"] >= 8
    assert set(soak.recoveries) == {"store emptied", "store killed", "path parted"}
