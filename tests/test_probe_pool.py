"""ProbePool: which probes run at a time, and how they end."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from gsocks.exits.spec import ExitSpec
from gsocks.rotation.member import Member
from gsocks.rotation.probe_pool import ProbePool
from gsocks.rotation.roster import Offer
from tests.support.rosters import UnusedExit, roster

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


def members(*hosts: str) -> list[Member]:
    """Exits at these hosts, each with a login of its own."""
    keys = [ExitSpec("http", host, 80, user=f"u{number}") for number, host in enumerate(hosts)]
    return list(roster(*(Offer(UnusedExit(str(key)), key=key) for key in keys)))


def test_probes_of_one_host_run_a_few_at_a_time_and_others_do_not_wait_for_them() -> None:
    pool, may_end = ProbePool(9, per_host=2), Event()
    begun: list[Member] = []

    def probe(member: Member) -> None:
        begun.append(member)
        may_end.wait()

    exits = members("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")
    for each in exits:
        pool.spawn(probe, each)
    gevent.idle()
    assert begun == [exits[0], exits[1], exits[4]]
    may_end.set()
    gevent.idle()
    assert begun[3:] == [exits[2], exits[3]]
    pool.spawn(probe, exits[0])
    gevent.idle()
    assert begun[5:] == [exits[0]], "the host has its places again"


def test_to_end_the_probes_waits_for_none_of_them() -> None:
    pool, killed, may_end = ProbePool(9, per_host=1), Event(), Event()
    ended: list[Member] = []

    def probe(member: Member) -> None:
        try:
            Event().wait()
        finally:  # as one that tidies up, or whose library takes its time
            killed.set()
            may_end.wait()
            ended.append(member)

    exits = members("192.0.2.1", "192.0.2.1")
    for each in exits:
        pool.spawn(probe, each)
    gevent.idle()
    pool.kill()
    assert not ended
    killed.wait()
    may_end.set()
    gevent.idle()
    assert ended == [exits[0]], "the one that waited never begins"
