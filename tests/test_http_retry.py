"""A plain HTTP request that one exit serves badly goes by another one, where that harms nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random

import pytest
from engine import Seen, eventually, running_door
from web import Reply, Web, ok, talk_to, web

from gsocks.address import Address
from gsocks.dial import Dialer, Resolver
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.local import LocalServer
from gsocks.request import Request
from gsocks.rotation.roster import Offer
from gsocks.rules import ALLOW_ALL
from gsocks.ways_out import WaysOut

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

BANNED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nbanned"
URL = b"http://shop.example/a"


class To(DirectExit):
    """An exit whose destination is the same one, whoever is asked for."""

    def __init__(self, label: str, address: Address) -> None:
        super().__init__(Dialer(ALLOW_ALL, Resolver()), label)
        self._address = address

    def connect(self, request: Request) -> Connected:
        return super().connect(request._replace(dest=self._address))


class Place:
    """A door whose exits lead to servers of their own, each with one answer."""

    def __init__(self, stack: ExitStack, *answers: bytes, **options: object) -> None:
        self.servers: list[Web] = [stack.enter_context(web(answer)) for answer in answers]
        offers = [
            Offer(To(f"exit{number}", server.address), name=f"e{number}")
            for number, server in enumerate(self.servers)
        ]
        self.seen = Seen()
        self.ways = WaysOut(offers, ALLOW_ALL, random=Random(1))
        options = {"retry_on": (403, 429), **options}
        self.door = stack.enter_context(
            running_door(
                LocalServer(("127.0.0.1", 0), self.ways, observer=self.seen, **options)  # type: ignore[arg-type]
            )
        )

    def ask(self, method: bytes = b"GET", more: bytes = b"", body: bytes = b"") -> Reply:
        with talk_to(self.door) as talk:
            head = method + b" " + URL + b" HTTP/1.1\r\nHost: shop.example\r\n" + more
            return talk.ask(head + b"\r\n" + body, method.decode())

    @property
    def asked(self) -> list[int]:
        return [len(server.heads) for server in self.servers]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_an_unwanted_answer_makes_another_exit_be_tried(stack: ExitStack) -> None:
    place = Place(stack, BANNED, ok(b"welcome"))
    reply = place.ask()
    assert (reply.status, reply.body) == (200, b"welcome")
    assert reply["proxy-status"] == 'gsocks; next-hop="exit1"'
    assert place.asked == [1, 1]
    assert place.servers[0].heads == place.servers[1].heads
    first, second = place.seen.next(), place.seen.next()
    assert (first.exit, first.outcome) == ("exit0", "http_403")
    assert (second.exit, second.outcome) == ("exit1", "ok")


def test_the_last_answer_is_passed_on_whatever_it_is(stack: ExitStack) -> None:
    place = Place(stack, BANNED, BANNED)
    for _ in range(2):
        reply = place.ask()
        assert (reply.status, reply.body) == (403, b"banned")
    assert place.asked == [2, 2]


def test_no_more_than_three_exits_are_tried(stack: ExitStack) -> None:
    place = Place(stack, BANNED, BANNED, BANNED, ok(b"too late"))
    assert place.ask().status == 403
    assert place.asked == [1, 1, 1, 0]


def test_an_exit_that_a_site_has_banned_is_left_out_for_that_site(stack: ExitStack) -> None:
    place = Place(stack, BANNED, ok(b"welcome"))
    for _ in range(10):
        assert place.ask().status == 200
    assert place.asked == [3, 10]
    (listed,) = place.ways.roster.domains.listed(0.0)
    assert listed[:2] == ("e0", "shop.example")


def test_without_being_asked_to_nobody_looks_at_the_answer(stack: ExitStack) -> None:
    place = Place(stack, BANNED, ok(b"welcome"), retry_on=())
    assert place.ask().status == 403
    assert not place.ways.roster.domains


@pytest.mark.parametrize(
    ("method", "more", "body"),
    [
        (b"POST", b"", b""),
        (b"PATCH", b"Content-Length: 0\r\n", b""),
        (b"PUT", b"Content-Length: 3\r\n", b"abc"),
        (b"PUT", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    ],
)
def test_what_may_not_be_said_twice_is_said_once(
    stack: ExitStack, method: bytes, more: bytes, body: bytes
) -> None:
    place = Place(stack, BANNED, ok(b"welcome"))
    assert place.ask(method, more, body).status == 403
    assert place.asked == [1, 0]


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
def test_what_may_be_said_twice_is(stack: ExitStack, method: bytes) -> None:
    place = Place(stack, BANNED, ok(b""))
    assert place.ask(method, b"Content-Length: 0\r\n" if method == b"PUT" else b"").status == 200


def test_a_session_stays_with_its_exit_and_its_answer(stack: ExitStack) -> None:
    place = Place(stack, BANNED, BANNED, ok(b"welcome"))
    more = b"Proxy-Authorization: Basic c2Vzc2lvbi14Og==\r\n"  # session-x:
    statuses = [place.ask(more=more).status for _ in range(6)]
    assert max(place.asked) >= 3
    assert sum(place.asked) == 6
    assert statuses == sorted(statuses, reverse=True)  # once it has moved to another, no more 403


def test_a_server_that_hangs_up_before_its_answer_is_asked_by_another_exit(
    stack: ExitStack,
) -> None:
    place = Place(stack, b"", ok(b"welcome"), retry_on=())
    reply = place.ask()
    assert (reply.status, reply.body) == (200, b"welcome")
    assert place.seen.next().outcome == "remote_truncated"
    assert place.seen.next().outcome == "ok"


def test_with_one_exit_its_failure_is_told(stack: ExitStack) -> None:
    place = Place(stack, b"", retry_on=())
    assert place.ask().status == 502
    assert place.asked == [1]


def test_a_post_is_not_repeated_after_a_failure(stack: ExitStack) -> None:
    place = Place(stack, b"", ok(b"welcome"))
    assert place.ask(b"POST", b"Content-Length: 3\r\n", b"abc").status == 502
    assert place.asked == [1, 0]


def test_half_an_answer_is_no_answer_to_try_again_after(stack: ExitStack) -> None:
    place = Place(stack, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", ok(b"welcome"))
    with pytest.raises(OSError, match="reset"):
        place.ask()
    assert place.asked == [1, 0]


class Going(To):
    """An exit that is no more by the time that its server answers: its list is another one."""

    def __init__(self, label: str, address: Address, gone: Callable[[], object]) -> None:
        super().__init__(label, address)
        self._gone = gone

    def connect(self, request: Request) -> Connected:
        connected = super().connect(request)
        self._gone()
        return connected


@pytest.mark.parametrize("answer", [ok(b"welcome"), BANNED])
def test_an_exit_that_goes_while_it_serves_is_missed_by_nobody(
    stack: ExitStack, answer: bytes
) -> None:
    place = Place(stack, ok(b"welcome"))
    (stays,) = place.ways.roster
    server = stack.enter_context(web(answer))

    def gone() -> None:
        place.ways.update([Offer(stays.exit, name="e0")])

    going = Going("going", server.address, gone)
    place.ways.update([Offer(going, name="going")])
    (member,) = place.ways.roster
    reply = place.ask()
    assert (reply.status, reply.body) == (200, b"welcome")
    place.seen.next()
    assert [each.name for each in place.ways.roster] == ["e0"]
    eventually(lambda: member.open == 0)
