"""A plain HTTP request that one exit serves badly is retried through another, if that is safe."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from random import Random

import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits.base import Connected
from gsocks.exits.direct import DirectExit
from gsocks.local import LocalServer
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Offer
from gsocks.stream import Stream
from tests.support.engine import Seen, connect, eventually, read_exactly, running_inbound
from tests.support.proxies import stage
from tests.support.stream_contract import read_to_end
from tests.support.web import Reply, Web, ok, talk_to, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

BANNED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nbanned"
URL = b"http://shop.example/a"


class To(DirectExit):
    """An exit with the same destination for every request."""

    def __init__(self, label: str, address: Address) -> None:
        super().__init__(Dialer(ALLOW_ALL, Resolver()), label)
        self._address = address

    def connect(self, request: Request) -> Connected:
        return super().connect(request._replace(dest=self._address))


class Place:
    """A listener whose exits lead to servers of their own, each with one answer."""

    def __init__(self, stack: ExitStack, *answers: bytes, **options: object) -> None:
        self.servers: list[Web] = [stack.enter_context(web(answer)) for answer in answers]
        offers = [
            Offer(To(f"exit{number}", server.address), name=f"e{number}")
            for number, server in enumerate(self.servers)
        ]
        self.seen = Seen()
        self.ways = ExitGroup(offers, ALLOW_ALL, random=Random(1))
        options = {"retry_on": (403, 429), **options}
        self.inbound = stack.enter_context(
            running_inbound(
                LocalServer(("127.0.0.1", 0), self.ways, observer=self.seen, **options)  # type: ignore[arg-type]
            )
        )

    def ask(self, method: bytes = b"GET", more: bytes = b"", body: bytes = b"") -> Reply:
        with talk_to(self.inbound) as talk:
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
    assert reply["proxy-status"] == 'gsocks; next-hop="e1"'
    assert place.asked == [1, 1]
    assert place.servers[0].heads == place.servers[1].heads
    first, second = place.seen.next(), place.seen.next()
    assert (first.exit, first.outcome) == ("e0", "http_403")
    assert (second.exit, second.outcome) == ("e1", "ok")


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


def test_without_retry_on_the_status_of_a_response_is_ignored(stack: ExitStack) -> None:
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
def test_an_exit_that_goes_while_it_serves_is_noticed_by_no_client(
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


# --- an exit's own answers ----------------------------------------------------------------------


class Proxies:
    """A listener in front of HTTP proxies, each with one answer to CONNECT."""

    def __init__(self, stack: ExitStack, *answers: bytes, **options: object) -> None:
        self.asked = [0] * len(answers)
        proxies = [
            stack.enter_context(stage(partial(self._answer, number, answer)))
            for number, answer in enumerate(answers)
        ]
        self.group = make_exit_group([f"http://{proxy}" for proxy in proxies])
        inbound = LocalServer(("127.0.0.1", 0), self.group, **options)  # type: ignore[arg-type]
        self.inbound = stack.enter_context(running_inbound(inbound))

    def _answer(self, number: int, answer: bytes, stream: Stream) -> None:
        self.asked[number] += 1
        stream.read()
        stream.write(answer)
        read_to_end(stream)

    def connect(self, session: str = "") -> int:
        login = b64encode(f"session-{session}:".encode()).decode() if session else ""
        field = f"Proxy-Authorization: Basic {login}\r\n" if session else ""
        with talk_to(self.inbound) as talk:
            head = f"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n{field}\r\n"
            talk.say(head.encode())
            return int(talk.sock.recv(65536).split()[1])


REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize("answer", [REFUSED, BUSY], ids=["403", "429"])
def test_an_exits_own_answer_to_connect_makes_other_exits_be_tried(
    stack: ExitStack, answer: bytes
) -> None:
    place = Proxies(stack, answer, answer, CONNECTED, retry_on=(403, 429))
    for _ in range(4):
        assert place.connect() == 200
    listed = list(place.group.roster.domains.listed(0.0))
    refusing = {member.name for member in list(place.group.roster)[:2]}
    assert {(name, domain) for name, domain, *_ in listed if domain == "shop.example"} == {
        (name, "shop.example") for name in refusing
    }


def test_so_does_it_for_a_client_of_socks(stack: ExitStack) -> None:
    place = Proxies(stack, REFUSED, REFUSED, CONNECTED, retry_on=(403,))
    with connect(place.inbound.bound) as sock:
        sock.sendall(b"\x05\x01\x00\x05\x01\x00" + Address("shop.example", 443).encode())
        assert read_exactly(sock, 4) == b"\x05\x00\x05\x00"
    assert place.asked == [1, 1, 1]


def test_no_more_exits_are_tried_than_tries_allow_and_the_last_word_is_passed_on(
    stack: ExitStack,
) -> None:
    place = Proxies(stack, REFUSED, REFUSED, REFUSED, CONNECTED, retry_on=(403,))
    assert place.connect() == 403
    assert place.asked == [1, 1, 1, 0]


def test_without_retry_on_an_exit_that_refuses_is_reported_to_no_domain(stack: ExitStack) -> None:
    place = Proxies(stack, REFUSED, CONNECTED)
    assert place.connect() == 200
    assert not place.group.roster.domains


def test_a_session_keeps_its_exit_whatever_that_answers(stack: ExitStack) -> None:
    place = Proxies(stack, REFUSED, REFUSED, REFUSED, retry_on=(403,))
    place.connect("a")
    assert not place.group.roster.domains


def test_an_exits_own_answer_in_absolute_form_is_reported_for_its_domain(stack: ExitStack) -> None:
    denied = b"X-Squid-Error: ERR_ACCESS_DENIED 0\r\n"
    squid = b"HTTP/1.1 403 Forbidden\r\n" + denied + b"Content-Length: 0\r\n\r\n"
    welcome = ok(b"welcome")
    place = Proxies(stack, squid, welcome, retry_on=(403,))
    with talk_to(place.inbound) as talk:
        reply = talk.ask(b"GET " + URL + b" HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    assert reply.body == b"welcome"
    (member, _) = place.group.roster
    listed = [each[:2] for each in place.group.roster.domains.listed(0.0)]
    assert (member.name, "shop.example") in listed
