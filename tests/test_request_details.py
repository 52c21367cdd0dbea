"""What is told of a request beyond its access line: exits tried, times, status, choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits.direct import DirectExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.observe import MAX_TRIES, Details, Record
from gsocks.request import ExitSelector, Request
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Offer
from tests.support.engine import (
    Refused,
    Seen,
    connect,
    echo,
    eventually,
    read_to_end,
    running_inbound,
    serving,
    through,
)

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


class Curious(Seen):
    """An observer that wants details."""

    wants_details = True

    def details(self) -> Details:
        details = self.next().details
        assert details is not None
        return details


class Broken:
    """An exit that fails each request."""

    label = "http://broken.example:1"

    def connect(self, request: Request) -> Any:
        raise errors.ExitFailed(f"{self.label}: Connection refused")

    def close(self) -> None:
        pass


def good() -> DirectExit:
    return DirectExit(Dialer(ALLOW_ALL, Resolver()))


Open = Callable[..., LocalServer]


@pytest.fixture
def seen() -> Curious:
    return Curious()


@pytest.fixture
def local(seen: Curious) -> Iterator[LocalServer]:
    group = ExitGroup([Offer(good(), name="good")], ALLOW_ALL)
    with running_inbound(LocalServer(("127.0.0.1", 0), group, observer=seen)) as found:
        yield found


def ask(to: Address, dest: Address) -> None:
    with through(to, dest) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_a_request_of_the_straight_way_tells_its_exit_and_its_times(
    local: LocalServer, seen: Curious
) -> None:
    with serving(echo) as dest:
        ask(local.bound, dest)
    record = seen.next()
    details = record.details
    assert details is not None
    assert (details.exit, details.address) == ("good", "127.0.0.1")
    assert (details.matching, details.ready, details.choice) == (1, 1, "the only one")
    assert details.connect is not None
    assert record.start < details.connected < details.answered
    assert details.tries == []


def test_the_tries_that_failed_are_told_with_their_reasons(seen: Curious) -> None:
    offers = [Offer(Broken(), name="broken"), Offer(good(), name="good")]
    local = LocalServer(("127.0.0.1", 0), ExitGroup(offers, ALLOW_ALL), observer=seen)
    with running_inbound(local), serving(echo) as dest:
        for _ in range(2):
            ask(local.bound, dest)
    found = [seen.details(), seen.details()]
    tried, *_ = [each for each in found if each.tries]
    (failed,) = tried.tries
    assert (tried.exit, failed.exit, failed.word) == ("good", "broken", "exit_failed")
    assert failed.detail == "http://broken.example:1: Connection refused"
    assert failed.began <= failed.ended <= tried.connected
    assert (tried.matching, tried.choice) == (2, "round_robin")


def test_a_request_that_no_exit_serves_tells_the_last_one(seen: Curious) -> None:
    offers = [Offer(Broken(), name=name) for name in ("one", "two")]
    local = LocalServer(("127.0.0.1", 0), ExitGroup(offers, ALLOW_ALL), observer=seen)
    with running_inbound(local), pytest.raises(Refused):
        through(local.bound, Address("192.0.2.1", 80))
    details = seen.details()
    assert sorted(each.exit for each in details.tries) == ["one", "two"]
    assert details.exit == details.tries[-1].exit
    assert (details.connect, details.answered) == (None, 0.0)


def test_a_session_and_a_named_exit_are_told_as_the_choice(seen: Curious) -> None:
    group = ExitGroup([Offer(good(), name="a"), Offer(good(), name="b")], ALLOW_ALL)
    for selector, choice in (
        (ExitSelector(session="s1"), "of session s1"),
        (ExitSelector(exit="b"), "named by the client"),
    ):
        local = LocalServer(("127.0.0.1", 0), group, observer=seen, selector=selector)
        with running_inbound(local), serving(echo) as dest:
            ask(local.bound, dest)
        details = seen.details()
        assert details.choice == choice
        assert str(details.selector) == str(selector)


def test_the_status_of_a_plain_http_request_is_told(local: LocalServer, seen: Curious) -> None:
    def not_found(sock: Any) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with serving(not_found) as dest, connect(local.bound) as sock:
        sock.sendall(f"GET http://{dest}/ HTTP/1.1\r\nHost: {dest}\r\n".encode())
        sock.sendall(b"Connection: close\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 404 ")
    details = seen.details()
    assert (details.status, details.exit) == (404, "good")
    assert details.answered > 0


def test_an_observer_that_does_not_want_details_gets_none() -> None:
    seen = Seen()
    group = ExitGroup([good()], ALLOW_ALL)
    local = LocalServer(("127.0.0.1", 0), group, observer=seen)
    with running_inbound(local), serving(echo) as dest:
        ask(local.bound, dest)
        eventually(lambda: seen.all)
    assert seen.next().details is None


def test_no_more_tries_are_kept_than_are_told_of() -> None:
    details = Details()
    for number in range(2 * MAX_TRIES):
        details.failed(f"exit{number}", 0.0, "refused", "")
    assert len(details.tries) == MAX_TRIES
    assert details.exit == f"exit{2 * MAX_TRIES - 1}"


def test_a_record_has_no_details_by_itself() -> None:
    assert Record("local", "192.0.2.1:1").details is None
