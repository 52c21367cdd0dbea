"""Admission decides by counts and networks alone; nothing is opened here."""

from __future__ import annotations

from functools import partial

import pytest

from gsocks.access.networks import Networks
from gsocks.errors import ClientForbidden, LimitReached
from gsocks.inbound.admission import Admission
from gsocks.settings import Limits

ALICE, BOB, CAROL = "192.0.2.1", "192.0.2.2", "192.0.2.3"


class Connection:
    """What Admission knows of a connection; leaves as a real one does."""

    def __init__(self, admission: Admission, host: str, said: int = 0) -> None:
        self.admission = admission
        self.said = said
        self.evicted = self.counted = self.waits = self.is_idle = False
        self.client = admission.admit(self, host)
        self.counted = self.waits = True

    def unserved(self) -> int:
        return self.said

    def evict(self) -> None:
        assert not self.evicted
        self.evicted = True
        self.end()

    def handshake_done(self) -> None:
        if self.waits:
            self.waits = False
            self.admission.handshake_done(self, self.client)

    def idle(self) -> None:
        self.is_idle = True
        self.admission.idle(self, self.client)

    def end(self) -> None:
        if self.waits:
            self.waits = False
            self.admission.handshake_ended(self, self.client)
        if self.is_idle:
            self.admission.busy(self, self.client)
        if self.counted:
            self.admission.uncount_client(self.client)
        self.admission.leave()


class Announced(Connection):
    """One behind a balancer at ALICE's address."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.said, self.evicted, self.is_idle = 0, False, False
        self.client = admission.admit(self, ALICE, behind_balancer=True)
        self.counted, self.waits = False, True

    def announce(self, host: str) -> None:
        self.client = self.admission.announced(self, self.client, host)
        self.counted = True


def served(admission: Admission, host: str) -> Connection:
    """A connection whose request is known."""
    connection = Connection(admission, host)
    connection.handshake_done()
    return connection


def test_connections_are_admitted_up_to_the_limit_and_again_after_one_has_left() -> None:
    admission = Admission(Limits(connections=2))
    first = served(admission, ALICE)
    served(admission, BOB)
    with pytest.raises(LimitReached, match=r"too many connections$"):
        Connection(admission, ALICE)
    assert repr(admission) == (
        f"<Admission 2 connections, 0 in handshake, by client {{'{ALICE}': 1, '{BOB}': 1}}>"
    )
    first.end()
    Connection(admission, ALICE)
    assert (admission.connections, admission.handshakes) == (2, 1)


def test_a_connection_counts_among_the_handshakes_until_its_request_is_known() -> None:
    admission = Admission(Limits(handshakes=1))
    alice = Connection(admission, ALICE)
    alice.handshake_done()
    bob = Connection(admission, BOB)
    assert (admission.connections, admission.handshakes) == (2, 1)
    assert not alice.evicted
    assert not bob.evicted


def test_one_address_has_no_more_connections_than_its_limit() -> None:
    admission = Admission(Limits(per_client=1))
    served(admission, ALICE)
    with pytest.raises(LimitReached, match="too many connections from that address"):
        Connection(admission, ALICE)
    Connection(admission, BOB)


def test_all_addresses_of_an_ipv6_network_of_64_bits_have_one_limit() -> None:
    admission = Admission(Limits(per_client=2))
    served(admission, "2001:db8:1:2::1")
    served(admission, "2001:db8:1:2:ffff::1")
    with pytest.raises(LimitReached, match="too many connections from that address"):
        Connection(admission, "2001:db8:1:2::3")
    Connection(admission, "2001:db8:1:3::1")
    assert admission.clients == {"2001:db8:1:2::/64": 2, "2001:db8:1:3::/64": 1}


# --- who goes when it is full ---------------------------------------------------------------

limits = pytest.mark.parametrize(
    "full", [partial(Limits, handshakes=4), partial(Limits, connections=4)], ids=["h", "c"]
)


@limits
def test_the_connection_that_has_waited_longest_goes_of_the_client_that_has_most(
    full: partial[Limits],
) -> None:
    admission = Admission(full())
    bob = Connection(admission, BOB)
    many = [Connection(admission, ALICE) for _ in range(3)]
    carol = Connection(admission, CAROL)
    assert [one.evicted for one in (bob, *many, carol)] == [False, True, False, False, False]
    assert (admission.connections, admission.handshakes) == (4, 4)
    assert admission.clients == {ALICE: 2, BOB: 1, CAROL: 1}


@limits
def test_a_client_that_comes_again_and_again_displaces_only_itself(full: partial[Limits]) -> None:
    admission = Admission(full())
    others = [Connection(admission, host) for host in (BOB, CAROL)]
    many = [Connection(admission, ALICE) for _ in range(100)]
    assert not any(one.evicted for one in others)
    assert [one.evicted for one in many] == [True] * 98 + [False] * 2


@limits
def test_of_a_clients_oldest_connections_the_one_that_has_said_least_goes(
    full: partial[Limits],
) -> None:
    admission = Admission(full())
    said = [Connection(admission, ALICE, said) for said in (7, 2, 2, 9)]
    Connection(admission, BOB)
    assert [one.evicted for one in said] == [False, True, False, False]


def test_few_connections_are_asked_what_they_have_said() -> None:
    admission = Admission(Limits(handshakes=100))
    many = [Connection(admission, ALICE, 5) for _ in range(Admission.candidates)]
    many += [Connection(admission, ALICE, 0) for _ in range(100 - len(many))]
    Connection(admission, BOB)
    assert [number for number, one in enumerate(many) if one.evicted] == [0]


def test_a_client_at_its_own_limit_loses_its_own_oldest_handshake() -> None:
    admission = Admission(Limits(per_client=3))
    bob = Connection(admission, BOB)
    served(admission, ALICE)
    silent = [Connection(admission, ALICE) for _ in range(2)]
    newest = Connection(admission, ALICE)
    assert [one.evicted for one in (bob, *silent, newest)] == [False, True, False, False]


def test_more_clients_than_there_are_places_displace_none_that_was_served_before() -> None:
    admission = Admission(Limits(handshakes=100))
    served(admission, BOB).end()
    bob = Connection(admission, BOB)
    strangers = [Connection(admission, f"198.51.100.{number}") for number in range(200)]
    assert not bob.evicted
    assert [one.evicted for one in strangers] == [True] * 101 + [False] * 99


def test_a_handshake_that_failed_makes_no_client_known() -> None:
    admission = Admission(Limits(handshakes=100))
    Connection(admission, BOB).end()
    bob = Connection(admission, BOB)
    for number in range(200):
        Connection(admission, f"198.51.100.{number}")
    assert bob.evicted


def test_a_known_client_that_comes_again_and_again_displaces_no_stranger() -> None:
    admission = Admission(Limits(handshakes=200))
    served(admission, ALICE).end()
    bob = Connection(admission, BOB)
    many = [Connection(admission, ALICE) for _ in range(500)]
    assert not bob.evicted
    assert sum(not one.evicted for one in many) == 199


def test_half_of_the_places_are_for_clients_that_are_not_known_yet() -> None:
    admission = Admission(Limits(handshakes=100))
    known = [f"198.51.100.{number}" for number in range(200)]
    for host in known:
        served(admission, host).end()
    bob = Connection(admission, BOB)
    many = [Connection(admission, host) for host in known[:99]]
    newcomer = Connection(admission, CAROL)
    assert [one.evicted for one in (bob, *many, newcomer)] == [True] + [False] * 100


@pytest.mark.parametrize("full", [Limits(connections=2), Limits(per_client=2)], ids=["c", "p"])
def test_where_no_handshake_can_go_a_connection_between_two_requests_goes(full: Limits) -> None:
    admission = Admission(full)
    busy, idle = served(admission, ALICE), served(admission, ALICE)
    idle.idle()
    newcomer = Connection(admission, ALICE)
    assert [one.evicted for one in (busy, idle, newcomer)] == [False, True, False]


def test_a_handshake_goes_before_a_connection_between_two_requests() -> None:
    admission = Admission(Limits(connections=2))
    idle, silent = served(admission, ALICE), Connection(admission, BOB, 100)
    idle.idle()
    Connection(admission, ALICE)
    assert [one.evicted for one in (idle, silent)] == [False, True]


# --- networks and balancers -----------------------------------------------------------------


def test_only_the_named_networks_may_come_in_and_no_other_displaces_anyone() -> None:
    admission = Admission(Limits(connections=1), Networks.of(["192.0.2.2/32"]))
    bob = Connection(admission, BOB)
    with pytest.raises(ClientForbidden, match="in none of the networks that may come in"):
        Connection(admission, ALICE)
    assert not bob.evicted


def test_behind_a_balancer_networks_and_the_limit_of_one_address_are_for_the_announced_client() -> (
    None
):
    admission = Admission(Limits(per_client=1), Networks.of([BOB]))
    first, second, third = (Announced(admission) for _ in range(3))
    assert admission.clients == {}
    with pytest.raises(ClientForbidden):
        third.announce(ALICE)
    first.announce(BOB)
    first.handshake_done()
    with pytest.raises(LimitReached):
        second.announce(BOB)
    assert admission.clients == {BOB: 1}
    for connection in (first, second, third):
        connection.end()
    assert (admission.connections, admission.handshakes, admission.clients) == (0, 0, {})


def test_a_client_at_the_address_of_its_balancer_displaces_none_that_has_yet_to_be_announced() -> (
    None
):
    admission = Admission(Limits(per_client=1))
    served, other, newcomer = (Announced(admission) for _ in range(3))
    served.announce(ALICE)
    served.handshake_done()
    with pytest.raises(LimitReached):
        newcomer.announce(ALICE)
    assert not other.evicted
    assert not newcomer.evicted, "for itself"
    for connection in (served, other, newcomer):
        connection.end()
    assert (admission.connections, admission.handshakes, admission.clients) == (0, 0, {})


def test_clients_that_a_balancer_has_announced_displace_only_themselves() -> None:
    admission = Admission(Limits(handshakes=3))
    bob = Announced(admission)
    bob.announce(BOB)
    many = []
    for _ in range(10):
        many.append(Announced(admission))
        many[-1].announce(CAROL)
    assert not bob.evicted
    assert [one.evicted for one in many] == [True] * 8 + [False] * 2


def test_a_refused_connection_counts_nowhere() -> None:
    admission = Admission(Limits(per_client=0))
    with pytest.raises(LimitReached):
        Connection(admission, ALICE)
    assert (admission.connections, admission.handshakes) == (0, 0)


def test_a_client_without_connections_is_forgotten() -> None:
    admission = Admission(Limits())
    first, second = Connection(admission, ALICE), Connection(admission, ALICE)
    first.end()
    assert admission.clients == {ALICE: 1}
    second.end()
    assert admission.clients == {}
