"""What the results of requests say about the exits.  Time is handed in.

``MODEL`` and ``WORDS`` are the tables of docs/exits.md, word by word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import h11
import pytest

from gsocks import errors
from gsocks.address import Address
from gsocks.errors import Fault
from gsocks.exits.http_refusal import refusal
from gsocks.exits.socks import _failure as socks5_failure
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.evidence import Evidence
from gsocks.rotation.health import client_of, destination_of
from gsocks.rotation.roster import Member, Roster
from gsocks.settings import HealthSettings
from tests.support.rosters import offers
from tests.support.waiting import cpu_seconds

DOCUMENT = Path(__file__).parent.parent / "docs" / "exits.md"

DEAD = errors.ExitFailed("dead")
REFUSES = errors.ConnectionRefused("refused")
VAGUE = errors.ExitDoubtful("503")


class Scene:
    """Exits, and what comes of requests to them; a second passes between two of these."""

    def __init__(self, count: int = 4, settings: HealthSettings = HealthSettings()) -> None:
        self.roster = Roster(offers(count), settings, Random(1))
        self.evidence = Evidence(self.roster, settings)
        self.now = 0.0
        #: sends the requests that name no other
        self.client = "192.0.2.1"

    def member(self, name: str) -> Member:
        member = self.roster.named(name)
        assert member is not None
        return member

    def request(self, host: str, client: str = "", session: str | None = None) -> Request:
        selector = ANY if session is None else ExitSelector(session=session)
        client = f"{client or self.client}:50000"
        return Request(Command.CONNECT, Address(host, 443), selector=selector, client=client)

    def serves(self, name: str, host: str = "any.example", client: str = "") -> None:
        """A byte comes back."""
        request, member = self.request(host, client), self.member(name)
        self.evidence.connected(member, request, self.now)
        self.evidence.answered(member, request, self.now, began=self.now, took=0.1)
        self.now += 1

    def fails(
        self,
        name: str,
        host: str = "any.example",
        error: errors.GsocksError = VAGUE,
        client: str = "",
        session: str | None = None,
        lasted: float = 0.0,
    ) -> None:
        """The exit does not connect; ``lasted``: seconds until that was known."""
        request, began = self.request(host, client, session), self.now - lasted
        self.evidence.failed(self.member(name), request, error, self.now, began=began)
        if session is not None:
            self.evidence.request_failed(request)
        self.now += 1

    def is_silent(self, name: str, host: str, client: str = "", session: str | None = None) -> None:
        """The exit says "connected", and no byte comes back."""
        request, member = self.request(host, client, session), self.member(name)
        self.evidence.connected(member, request, self.now)
        self.evidence.closed(member, request, self.now, began=self.now)
        self.now += 1

    def costs(self, *hosts: str, client: str = "") -> str:
        """What e0 is ejected for: ``the exit``, one of ``hosts``, ``the client``, or nothing."""
        member = self.member("e0")
        if member.health.is_ejected(self.now):
            return "ejected"
        domains = self.roster.domains
        if domains.is_ejected("e0", client_of(self.request("x", client)), self.now):
            return "ejected for that client"
        for host in hosts:
            if domains.is_ejected("e0", destination_of(Address(host, 443)), self.now):
                return "ejected for that destination"
        return "nothing"


def hosts(count: int) -> list[str]:
    return [f"{number}.example" for number in range(count)]


# --- the table of the model -------------------------------------------------------------------


def fails_by_itself() -> str:
    scene = Scene()
    for _ in range(3):
        scene.fails("e0", error=DEAD)
    return scene.costs()


def fails_by_itself_and_connects_in_between() -> str:
    scene = Scene()
    for _ in range(3):
        scene.fails("e0", error=DEAD)
        scene.fails("e0", error=DEAD)
        scene.evidence.connected(scene.member("e0"), scene.request("a.example"), scene.now)
    return scene.costs()


def fails_where_no_other_exit_was() -> str:
    scene = Scene()
    scene.serves("e1")
    for host in hosts(3):
        scene.fails("e0", host)
    return scene.costs(*hosts(3))


def fails_at_one_destination_that_another_serves() -> str:
    scene = Scene()
    for _ in range(3):
        scene.fails("e0", "a.example")
        scene.serves("e1", "a.example")
    return scene.costs("a.example")


def fails_at_several_destinations_that_another_serves() -> str:
    scene = Scene()
    for host in hosts(3):
        scene.fails("e0", host, REFUSES)
        scene.serves("e1", host)
    return scene.costs(*hosts(3))


def the_same_by_two_clients() -> str:
    scene = Scene()
    for number, host in enumerate(hosts(4)):
        scene.fails("e0", host, client=f"192.0.2.{number % 2}")
        scene.serves("e1", host, client=f"192.0.2.{number % 2}")
    return scene.costs(*hosts(4))


def the_same_by_one_client_of_several() -> str:
    scene = Scene()
    for host in hosts(8):
        scene.fails("e0", host, client="192.0.2.66")
        scene.serves("e1", host, client="192.0.2.66")
        scene.serves("e1", client="192.0.2.7")
    assert scene.costs(client="192.0.2.7") == "nothing"
    return scene.costs(client="192.0.2.66")


def the_same_before_another_client_came() -> str:
    scene = Scene()
    for _ in range(4):  # longer each time
        for host in hosts(3):
            scene.fails("e0", host, client="192.0.2.66")
            scene.serves("e1", host, client="192.0.2.66")
        scene.now += 240
    for host in hosts(3):
        scene.fails("e0", host, client="192.0.2.66")
        scene.serves("e1", host, client="192.0.2.66")
    assert scene.costs() == "ejected"
    assert not scene.member("e0").health.saved(scene.now).on_probation
    scene.evidence.arrived(scene.request("any.example", "192.0.2.66"), scene.now)
    assert scene.costs() == "ejected"
    scene.evidence.arrived(scene.request("any.example", "192.0.2.7"), scene.now)
    assert scene.costs(client="192.0.2.7") == "nothing"
    assert scene.member("e0").health.state(scene.now) == "degraded"
    return scene.costs(client="192.0.2.66")


def the_same_and_serves_in_between() -> str:
    scene = Scene()
    for number, host in enumerate(hosts(20)):
        scene.fails("e0", host)
        scene.serves("e1", host)
        if number % 2:
            scene.serves("e0")
    return scene.costs(*hosts(20))


def fails_where_another_fails_too() -> str:
    scene = Scene()
    scene.serves("e1")
    scene.serves("e0")
    for host in hosts(20):
        scene.fails("e0", host, REFUSES)
        scene.fails("e1", host)
    return scene.costs(*hosts(20))


def another_says_connected_and_no_more() -> str:
    scene = Scene()
    for host in hosts(20):
        scene.fails("e0", host)
        scene.is_silent("e1", host)
    assert not scene.member("e1").health.is_ejected(scene.now)
    return scene.costs(*hosts(20))


def is_silent_at_one_destination() -> str:
    scene = Scene()
    for _ in range(3):
        scene.is_silent("e0", "a.example")
    return scene.costs("a.example")


def is_silent_at_several_destinations_that_another_serves() -> str:
    scene = Scene()
    for host in hosts(3):
        scene.is_silent("e0", host)
        scene.serves("e1", host)
    return scene.costs(*hosts(3))


def fails_everywhere_while_others_serve() -> str:
    scene = Scene()
    scene.serves("e0")
    for number, host in enumerate(hosts(20)):
        if scene.costs() == "ejected":
            break
        scene.is_silent("e0", host)
        scene.serves("e1", f"other{number}.example")
    return scene.costs()


def fails_everywhere_as_others_do() -> str:
    scene = Scene()
    for number, host in enumerate(hosts(100)):
        scene.is_silent("e0", host)
        if number % 2:
            scene.serves("e1", f"other{number}.example")
        else:
            scene.is_silent("e1", f"other{number}.example")
        if number % 5 == 4:
            scene.serves("e0")
    return scene.costs()


def a_session_asks_for_dead_destinations() -> str:
    scene = Scene()
    scene.serves("e0")
    for _ in range(30):
        scene.fails("e0", "dead.example", session="cart")
        scene.is_silent("e0", "dead.example", session="cart")
        scene.serves("e1")
    for host in hosts(30):
        scene.fails("e0", host, session="cart")
        scene.serves("e1")
    return scene.costs("dead.example", *hosts(30))


def failed_before_it_served() -> str:
    scene = Scene()
    scene.serves("e0")
    for host in hosts(9):
        scene.fails("e0", host, DEAD, lasted=8.0)
        scene.fails("e0", host, lasted=scene.now - 0.5 if scene.now < 1 else 60.0)
        scene.serves("e1", host)
        scene.serves("e0")
    return scene.costs(*hosts(9))


def lacks_something_here() -> str:
    scene = Scene()
    for error in (errors.OutOfResources, errors.LimitReached, errors.Denied) * 5:
        scene.fails("e0", error=error("x"))
        scene.serves("e1")
    return scene.costs("any.example")


def fails_again_on_probation() -> str:
    scene = Scene()
    for host in hosts(3):
        scene.fails("e0", host)
        scene.serves("e1", host)
    scene.now = back = scene.member("e0").health.ejected_until
    scene.fails("e0", "a.example")
    scene.serves("e1", "a.example")
    assert scene.member("e0").health.ejected_until > back
    assert scene.member("e0").health.ejections == 2
    return scene.costs()


class Row(NamedTuple):
    seen: str
    fault: str
    costs: str
    happens: Callable[[], str]


MODEL = [
    Row(
        "It can't be reached, breaks its protocol or refuses its login, three times in a row",
        "the exit's",
        "ejected",
        fails_by_itself,
    ),
    Row(
        "The same, but it connects a request in between",
        "the exit's",
        "nothing",
        fails_by_itself_and_connects_in_between,
    ),
    Row(
        "It fails at destinations that no other exit has tried",
        "not known",
        "nothing",
        fails_where_no_other_exit_was,
    ),
    Row(
        "It fails at one destination three times, and another exit serves that each time",
        "the exit's, there",
        "ejected for that destination",
        fails_at_one_destination_that_another_serves,
    ),
    Row(
        "It fails at three different destinations in a row, each of which another exit serves",
        "the exit's",
        "ejected",
        fails_at_several_destinations_that_another_serves,
    ),
    Row("The same, seen by two clients", "the exit's", "ejected", the_same_by_two_clients),
    Row(
        "The same, seen by one client alone while there are others",
        "the exit's or the client's",
        "ejected for that client",
        the_same_by_one_client_of_several,
    ),
    Row(
        "The same before there are others: ejected until the first request of another one",
        "the exit's or the client's",
        "ejected for that client",
        the_same_before_another_client_came,
    ),
    Row(
        "The same, but it serves a request in between",
        "the destinations'",
        "nothing",
        the_same_and_serves_in_between,
    ),
    Row(
        "It fails where another exit, which has served requests, fails too",
        "the destination's",
        "nothing",
        fails_where_another_fails_too,
    ),
    Row(
        'It fails where another exit says "connected", and no byte comes back from there either',
        "the destination's",
        "nothing",
        another_says_connected_and_no_more,
    ),
    Row(
        'It says "connected" for one destination three times, and no byte comes back',
        "not known",
        "ejected for that destination",
        is_silent_at_one_destination,
    ),
    Row(
        "The same for three different destinations, each of which another exit serves",
        "the exit's",
        "ejected",
        is_silent_at_several_destinations_that_another_serves,
    ),
    Row(
        "It fails at five or more different destinations in a row, each tried once, while others"
        " serve nearly all that they try",
        "the exit's, or chance below 1 in 10,000",
        "ejected",
        fails_everywhere_while_others_serve,
    ),
    Row(
        "The same while others fail as often",
        "the destinations'",
        "nothing",
        fails_everywhere_as_others_do,
    ),
    Row(
        "A session asks its exit for dead destinations, again and again",
        "not known",
        "nothing",
        a_session_asks_for_dead_destinations,
    ),
    Row(
        "It fails what it was sent before it last served a request",
        "forgiven",
        "nothing",
        failed_before_it_served,
    ),
    Row(
        "This machine has no descriptor left, a limit is reached, the rules of this end deny it",
        "no exit's",
        "nothing",
        lacks_something_here,
    ),
    Row(
        "After an ejection, it fails the first destination, which another exit serves",
        "the exit's",
        "ejected",
        fails_again_on_probation,
    ),
]


@pytest.mark.parametrize("row", MODEL, ids=[row.happens.__name__ for row in MODEL])
def test_what_is_seen_costs_an_exit_what_the_model_says(row: Row) -> None:
    assert row.happens() == row.costs


def tables(heading: str) -> list[tuple[str, ...]]:
    """The rows of the table under a heading of docs/exits.md, without its head."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def test_the_document_has_the_model_as_it_is_tested() -> None:
    assert tables("Evidence") == [(row.seen, row.fault, row.costs) for row in MODEL]


# --- the table of words -----------------------------------------------------------------------


def http(status: int, reason: str = "", **fields: str) -> errors.ConnectFailed:
    headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
    answer = h11.Response(status_code=status, reason=reason.encode(), headers=headers)
    return refusal(answer, Address("host.example", 443), had_credentials=False)


def socks5(reply: int, host: str = "host.example") -> errors.ConnectFailed:
    return socks5_failure(reply, Address(host, 443))


def all_of(*said: errors.ConnectFailed) -> Fault:
    (fault,) = {each.fault for each in said}
    return fault


def squid(page: str) -> errors.ConnectFailed:
    return http(503, X_Squid_Error=page)


WORDS: list[tuple[str, Fault]] = [
    ("407; 401 (tinyproxy)", all_of(http(407), http(401))),
    ("403; SOCKS5 02", all_of(http(403), socks5(2))),
    ("any other 4xx (privoxy's 404), any 5xx but 504", all_of(*map(http, (404, 429, 500, 503)))),
    ("504; SOCKS5 03, 06", all_of(http(504), socks5(3), socks5(6))),
    ("SOCKS5 04, 05", all_of(socks5(4), socks5(5))),
    ("SOCKS5 01, any above 08, and 08 for a name (hev)", all_of(*map(socks5, (1, 8, 9)))),
    ("SOCKS5 07", all_of(socks5(7))),
    ("SOCKS5 08 for an address", all_of(socks5(8, "192.0.2.1"), socks5(8, "2001:db8::1"))),
    (
        "X-Squid-Error: ERR_CONNECT_FAIL 111 or 113, ERR_DNS_FAIL, ERR_ACCESS_DENIED",
        all_of(
            squid("ERR_CONNECT_FAIL 111"),
            squid("ERR_CONNECT_FAIL 113"),
            squid("ERR_DNS_FAIL 0"),
            squid("ERR_ACCESS_DENIED 0"),
        ),
    ),
    (
        "X-Squid-Error: ERR_CONNECT_FAIL 101 or 110, ERR_CANNOT_FORWARD, any other",
        all_of(
            squid("ERR_CONNECT_FAIL 101"),
            squid("ERR_CONNECT_FAIL 110"),
            squid("ERR_CANNOT_FORWARD 0"),
            squid("ERR_X"),
        ),
    ),
    (
        "Proxy-Status: error= dns_error, dns_timeout, destination_not_found, connection_refused,"
        " destination_ip_prohibited, http_request_denied",
        all_of(
            *(
                http(502, Proxy_Status=f"x; error={error}")
                for error in (
                    "dns_error",
                    "dns_timeout",
                    "destination_not_found",
                    "connection_refused",
                    "destination_ip_prohibited",
                    "http_request_denied",
                )
            )
        ),
    ),
    (
        "Proxy-Status: error= connection_timeout, destination_ip_unroutable, any other",
        all_of(
            *(
                http(502, Proxy_Status=f"x; error={error}")
                for error in ("connection_timeout", "destination_ip_unroutable", "tls_alert")
            )
        ),
    ),
    (
        "Proxy-Status: error= proxy_configuration_error, proxy_loop_detected",
        all_of(
            http(502, Proxy_Status="x; error=proxy_configuration_error"),
            http(502, Proxy_Status="x; error=proxy_loop_detected"),
        ),
    ),
    ("proxy-chain: 590 UPSTREAM403", all_of(http(590, "UPSTREAM403"))),
    (
        "proxy-chain: 590 UPSTREAM407, 593, 594, 597",
        all_of(http(590, "UPSTREAM407"), http(593), http(594), http(597)),
    ),
    (
        "proxy-chain: 590 UPSTREAM500 and the like",
        all_of(http(590, "UPSTREAM500"), http(590, "UPSTREAM404")),
    ),
    (
        "proxy-chain: 599 ... ConnectionRefused, HostUnreachable, NotAllowed",
        all_of(
            *(
                http(599, f"Socks5 proxy rejected connection - {reply}")
                for reply in ("ConnectionRefused", "HostUnreachable", "NotAllowed")
            )
        ),
    ),
    (
        "proxy-chain: 599 ... NetworkUnreachable, TTLExpired, Failure",
        all_of(
            *(
                http(599, f"Socks5 proxy rejected connection - {reply}")
                for reply in ("NetworkUnreachable", "TTLExpired", "Failure")
            )
        ),
    ),
]


def test_the_document_has_the_words_as_they_are_read() -> None:
    assert tables("Words") == [(words, fault.value) for words, fault in WORDS]


# --- beside the table -------------------------------------------------------------------------


def test_a_client_is_its_user_or_its_address_or_its_64_bits_of_ipv6() -> None:
    def client(address: str, user: str | None = None, session: str | None = None) -> str:
        selector = ExitSelector(session=session)
        dest = Address("a.example", 443)
        return client_of(Request(Command.CONNECT, dest, user, b"", selector, client=address))

    assert client("192.0.2.1:5") == client("192.0.2.1:6", session="x")
    assert client("192.0.2.1:5") != client("192.0.2.2:5")
    assert client("192.0.2.1:5", "alice") == client("192.0.2.2:5", "alice")
    assert client("[2001:db8::1]:5") == client("[2001:db8::2:0:0:0:9]:5".replace("2:0:0:0:", ""))
    assert client("[2001:db8::1]:5") != client("[2001:db8:0:1::1]:5")


def test_a_refusal_is_believed_once_another_exit_has_failed_there_and_not_for_long() -> None:
    scene = Scene()
    request = scene.request("dead.example")
    for name in ("e0", "e1", "e2"):
        scene.serves(name)

    def believes(member: Member, request: Request, now: float) -> bool:
        vague = scene.evidence.believes(member, request, Fault.UNCLEAR, now)
        assert scene.evidence.believes(member, request, Fault.DESTINATION, now) == vague
        return vague

    assert not believes(scene.member("e0"), request, scene.now)
    scene.fails("e0", "dead.example", REFUSES)
    assert not believes(scene.member("e0"), request, scene.now), "its own word alone"
    assert believes(scene.member("e1"), request, scene.now)
    scene.fails("e1", "dead.example")
    assert believes(scene.member("e0"), request, scene.now)
    scene.now += 61
    assert not believes(scene.member("e0"), request, scene.now)
    scene.fails("e1", "dead.example")
    scene.serves("e2", "dead.example")
    assert not believes(scene.member("e0"), request, scene.now), "it works again"


def test_an_exit_that_has_served_nothing_vouches_for_no_destination() -> None:
    scene = Scene()
    scene.fails("e1", "a.example", REFUSES)
    request = scene.request("a.example")
    e0 = scene.member("e0")
    assert not scene.evidence.believes(e0, request, Fault.DESTINATION, scene.now)


def test_an_exit_whose_refusals_were_confirmed_is_believed_for_most_of_the_next_ones() -> None:
    scene = Scene()
    for name in ("e0", "e1"):
        scene.serves(name)
    for host in hosts(5):
        scene.fails("e0", host, REFUSES)
        scene.fails("e1", host, REFUSES)
    e0 = scene.member("e0")

    def believed(count: int, fault: Fault = Fault.DESTINATION) -> int:
        requests = (scene.request(f"new{number}.example") for number in range(count))
        return sum(scene.evidence.believes(e0, request, fault, scene.now) for request in requests)

    assert believed(80) == 70
    assert believed(80, Fault.UNCLEAR) == 0, "a vague word may stand for its own failure"
    scene.fails("e0", "wrong.example", REFUSES)
    scene.serves("e1", "wrong.example")
    assert believed(80) == 0


def test_an_exit_that_was_ejected_has_to_have_its_refusals_confirmed_again() -> None:
    scene = Scene()
    for name in ("e0", "e1"):
        scene.serves(name)
    for host in hosts(6):
        scene.fails("e0", host, REFUSES)
        scene.fails("e1", host, REFUSES)
    scene.serves("e0")
    e0, request = scene.member("e0"), scene.request("new.example")
    assert scene.evidence.believes(e0, request, Fault.DESTINATION, scene.now)
    for _ in range(3):
        scene.fails("e0", error=DEAD)
    assert scene.costs() == "ejected"
    scene.now = e0.health.ejected_until
    scene.serves("e0")
    assert not scene.evidence.believes(e0, request, Fault.DESTINATION, scene.now)


@pytest.mark.parametrize(
    ("failures", "by_others", "costs"),
    [
        (3, 1, "ejected for that client"),
        (4, 2, "ejected"),
        (5, 1, "ejected for that client"),
        (5, 2, "ejected"),
        (2, 0, "ejected for that client"),
        (2, 1, "ejected"),
    ],
)
def test_an_exit_is_ejected_for_all_once_two_failures_are_not_one_clients(
    failures: int, by_others: int, costs: str
) -> None:
    """Or one, where two failures eject it."""
    scene = Scene(settings=HealthSettings(failures=failures))
    for number, host in enumerate(hosts(failures)):
        client = "192.0.2.7" if number < by_others else "192.0.2.66"
        scene.fails("e0", host, client=client)
        scene.serves("e1", host, client="192.0.2.7")
    assert scene.costs(client="192.0.2.66") == costs


def test_refusals_of_what_another_exit_has_refused_before_are_confirmed_too() -> None:
    scene = Scene()
    for name in ("e0", "e1"):
        scene.serves(name)
    for host in hosts(6):
        scene.fails("e1", host, REFUSES)
        scene.fails("e0", host, REFUSES)
    e0, request = scene.member("e0"), scene.request("new.example")
    believed = [
        scene.evidence.believes(e0, request, Fault.DESTINATION, scene.now) for _ in range(8)
    ]
    assert believed.count(True) == 7


def test_failures_that_others_contradict_and_those_of_unknown_destinations_are_one_row() -> None:
    scene = Scene(settings=HealthSettings(failures=9))
    scene.serves("e0")
    scene.fails("e0", "a.example")
    scene.serves("e1", "a.example")
    scene.fails("e0", "b.example")
    assert not scene.member("e0").health.is_doubted
    scene.fails("e0", "c.example")
    assert scene.member("e0").health.is_doubted


@pytest.mark.parametrize(("session", "row"), [(None, 5), ("cart", 14)])
def test_what_sessions_are_served_makes_no_failures_of_others_unlikely(
    session: str | None, row: int
) -> None:
    """One exit fails wherever it is asked, while another one serves ten times as many requests."""
    scene = Scene()
    scene.serves("e0")
    e1, failed = scene.member("e1"), 0
    while scene.costs() == "nothing":
        failed += 1
        scene.fails("e0", f"{failed}.example", client=f"192.0.2.{failed}")
        for number in range(10):
            request = scene.request(f"{failed}-{number}.example", session=session)
            scene.evidence.answered(e1, request, scene.now, began=scene.now, took=0.1)
    assert failed == row


def test_where_others_serve_one_request_for_each_failure_the_sixth_in_a_row_is_no_accident() -> (
    None
):
    scene = Scene()
    scene.serves("e0")
    failed = 0
    while scene.costs() == "nothing":
        failed += 1
        scene.fails("e0", f"{failed}.example", client=f"192.0.2.{failed}")
        scene.serves("e1", f"{failed}.other")
    assert failed == 6, "five, if each request that is served counted twice"


def test_a_connection_that_proves_nothing_gains_an_exit_nothing() -> None:
    scene = Scene()
    e0 = scene.member("e0")
    for host in hosts(20):
        scene.evidence.connected(e0, scene.request(host), scene.now)
    assert (e0.health.proven, e0.health.has_worked) == (False, False)
    assert e0.connect_time.at(scene.now) == 0.0
    assert e0.counts.connected == 20


def test_an_exit_that_says_connected_in_vain_and_has_never_served_is_not_the_fastest() -> None:
    scene = Scene()
    scene.serves("e1", "a.example")
    for name in ("e0", "e1"):
        scene.is_silent(name, "dead.example")
    assert scene.member("e0").connect_time.at(scene.now) > 5.0
    assert scene.member("e1").connect_time.at(scene.now) < 1.0


def test_the_time_to_connect_counts_failures_only_where_the_exit_is_blamed() -> None:
    scene = Scene()
    e0 = scene.member("e0")
    for host in hosts(30):
        scene.fails("e0", host, REFUSES)
    assert e0.connect_time.at(scene.now) == 0.0
    assert e0.counts.failed == 0
    scene.serves("e1", "29.example")
    assert e0.connect_time.at(scene.now) > 5.0
    assert (e0.counts.failed, e0.counts.last_error) == (1, "refused")


def test_an_exit_that_is_doubted_leaves_most_requests_to_others_until_it_serves_one() -> None:
    scene = Scene(2)
    e0 = scene.member("e0")
    for name in ("e0", "e1"):
        scene.serves(name)
    for host in hosts(3):
        assert e0.health.state(scene.now) == "ok"
        scene.is_silent("e0", host)
    assert (e0.health.state(scene.now), scene.costs(*hosts(3))) == ("degraded", "nothing")

    def share() -> int:
        request = scene.request("a.example")
        return sum(scene.roster.choose(request, (), scene.now) is e0 for _ in range(200))

    assert 0 < share() < 50
    scene.serves("e0")
    assert share() == 100


def test_a_probe_shows_that_an_exit_may_be_tried_and_not_that_it_works() -> None:
    scene = Scene()
    e0, e1, e2 = map(scene.member, ("e0", "e1", "e2"))
    scene.evidence.probed(e0, True, "", scene.now)
    assert (e0.health.has_proof, e0.health.has_worked, e0.health.proven) == (True, False, False)
    scene.evidence.probed(e1, False, "no answer", scene.now)
    assert e1.health.is_down
    assert e1.counts.last_error == "no answer"
    scene.evidence.probed(e1, True, "", scene.now)
    assert (e1.health.is_down, e1.health.is_ejected(scene.now)) == (False, False)
    for _ in range(3):
        scene.fails("e2", error=DEAD)
    scene.evidence.probed(e2, True, "", scene.now)
    assert e2.health.is_ejected(scene.now), "requests have ejected it"


def test_what_ejects_an_exit_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gsocks.rotation"):
        fails_at_several_destinations_that_another_serves()
        fails_at_one_destination_that_another_serves()
    ejected, for_one = caplog.messages[0], caplog.messages[-1]
    assert ejected.startswith("exit e0 (exit0) is ejected for ")
    assert ejected.endswith(" s: refused")
    assert for_one == "exit e0 (exit0) is ejected for a.example:443: 503"


@pytest.mark.parametrize("fails", [Scene.fails, Scene.is_silent])
def test_strangers_fill_no_memory(fails: Callable[..., None]) -> None:
    scene = Scene(3)
    evidence = scene.evidence
    limits = {
        "_destinations": "max_destinations",
        "_runs": "max_exits",
        "_unserved": "max_clients",
        "_troubled": "max_sessions",
    }
    for bound in limits.values():
        setattr(evidence, bound, 50)
    evidence = scene.evidence = Bounded(scene.roster, HealthSettings())
    for number in range(1000):
        client, session = f"192.0.2.{number}", f"s{number}"
        fails(scene, f"e{number % 3}", f"{number}.example", client=client)
        fails(scene, f"e{number % 3}", f"{number}.example", client=client, session=session)
    for cache in limits:
        assert len(getattr(evidence, cache)) <= 50
    for run in evidence._runs.items():
        assert len(run[1].unknown) <= 32
    for host in ["one.example"] * 100:
        for name in ("e0", "e1", "e2"):
            fails(scene, name, host)
    assert all(len(each.doubts) <= 8 for _, each in evidence._destinations.items())


def test_a_result_takes_no_longer_with_many_exits() -> None:
    def work(count: int) -> Callable[[], None]:
        scene = Scene(count)
        for number in range(count):
            scene.serves(f"e{number}")

        def results() -> None:
            for number in range(500):
                scene.fails("e0", f"{number % 40}.example")
                scene.serves("e1", f"{number % 40}.example")
                scene.is_silent("e1", f"{number % 30}.other")
                scene.fails("e0", error=DEAD)
                scene.serves("e0")

        return results

    few, many = work(4), work(4000)
    assert cpu_seconds(many) < 4 * cpu_seconds(few)


class Bounded(Evidence):
    max_destinations = max_exits = max_clients = max_sessions = 50


@pytest.mark.parametrize("failed", [5, 6])
def test_a_row_of_failures_may_be_an_accident_where_others_have_served_little(failed: int) -> None:
    scene = Scene()
    scene.serves("e1")
    for number, host in enumerate(hosts(failed)):
        scene.fails("e0", host, client=f"192.0.2.{10 + number}")
    assert scene.costs(*hosts(failed)) == "nothing"
