"""Connections to exits are kept for later requests, and never carry what belongs to another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from random import Random

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks.access.rules import DEFAULT_RULES
from gsocks.address import UNSPECIFIED, Address
from gsocks.exits.absolute import HttpForwardExit
from gsocks.exits.direct import DirectExit
from gsocks.exits.forward import HttpConnection, key_for
from gsocks.exits.kept import KeptConnections
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.request import Command, Request
from gsocks.settings import ReuseSettings
from gsocks.stream import SocketStream, reset
from tests.support.engine import FakeExit, eventually, is_reset, serving
from tests.support.forwarding import Place, proxy
from tests.support.proxies import microsocks
from tests.support.stream_contract import tcp_pair
from tests.support.web import Talk, Web, ok, talk_to

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


APACHE = b"502 Proxy Error\r\nServer: Apache/2.4.71 (Debian)"


class Keeping(Web):
    """A web server that answers request after request on each connection."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        #: the connections that it has had
        self.socks: list[socket] = []


@pytest.fixture
def server(stack: ExitStack) -> Keeping:
    return keeping(stack, lambda _: ok(b"page"))


def keeping(stack: ExitStack, answer: Callable[[bytes], bytes | None]) -> Keeping:
    def serve(sock: socket) -> None:
        running.socks.append(sock)
        talk = Talk(sock)
        while True:
            try:
                head = talk.hear_until(b"\r\n\r\n")
            except (AssertionError, OSError):
                return
            running.heads.append(head)
            said = answer(head)
            if said is None:
                return
            sock.sendall(said)

    running: Keeping
    address = stack.enter_context(serving(serve))
    running = Keeping(address)
    return running


# --- they are used again ------------------------------------------------------------------------


def test_one_connection_to_an_http_exit_carries_requests_of_any_client_to_one_server(
    stack: ExitStack,
) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}")
    for host in (b"a", b"b", b"a", b"b"):
        assert place.ask(b"http://" + host + b".example/").body == b"by proxy"
    assert (ours.connections, len(ours.heads)) == (2, 4)
    (member,) = place.group.roster
    assert (member.open, member.counts.connected, member.counts.failed) == (0, 4, 0)
    assert member.counts.up == sum(map(len, ours.heads))


def test_a_proxy_that_remains_with_its_first_server_gets_no_request_for_another_one(
    stack: ExitStack,
) -> None:
    """As pproxy and proxy.py do, with whatever Host the second request has."""
    asked: list[tuple[socket, bytes]] = []

    def remain(sock: socket) -> None:
        talk = Talk(sock)
        with suppress(AssertionError, OSError):
            first = head = talk.hear_until(b"\r\n\r\n")
            while True:
                asked.append((sock, head.split()[1]))
                talk.say(ok(first.split()[1]))
                head = talk.hear_until(b"\r\n\r\n")

    place = Place(stack, f"http://{stack.enter_context(serving(remain))}")
    for url in (b"http://a.example/", b"http://b.example/", b"http://a.example:81/") * 2:
        assert place.ask(url, b"Cookie: of " + url).body == url
    assert len({sock for sock, target in asked if target.startswith(b"http")}) == 3


def refusing_connect(refusal: bytes, told: Event, socks: set[socket]) -> Callable[[socket], None]:
    """A proxy that answers each page with its URL, on ``socks``, and CONNECT with ``refusal``."""

    def serve(sock: socket) -> None:
        talk = Talk(sock)
        with suppress(AssertionError, OSError):
            while True:
                head = talk.hear_until(b"\r\n\r\n")
                if head.startswith(b"CONNECT"):
                    talk.say(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % refusal)
                    told.set()
                    return
                socks.add(sock)
                talk.say(ok(head.split()[1]))

    return serve


@pytest.mark.parametrize(
    "refusal",
    [b"503 No\r\nServer: squid/6.1", b"502 Proxy Error\r\nServer: Apache", APACHE],
    ids=["squid", "Apache that names no version", "Apache"],
)
def test_an_exit_that_tells_by_connect_what_it_is_serves_many_servers_over_one_connection(
    stack: ExitStack, refusal: bytes
) -> None:
    """These go by the URL of each request; one is asked once enough connections are kept."""
    told, socks = Event(), set[socket]()
    serve = refusing_connect(refusal, told, socks)
    place = Place(stack, f"http://{stack.enter_context(serving(serve))}")
    urls = [b"http://%c.example/" % letter for letter in b"abcdefghij"]
    for url in urls[:3]:
        assert place.ask(url).body == url
    told.wait()
    exit_: HttpForwardExit = next(iter(place.group.roster)).exit  # type: ignore[assignment]
    eventually(lambda: exit_.goes_by_each_url)
    before = len(socks)
    for url in urls * 2:
        assert place.ask(url).body == url
    assert len(socks) == before + 1


@pytest.mark.parametrize(
    "refusal",
    [
        b"405 Method Not Allowed\r\nServer: Apache/2.4.71 (Debian)",
        b"502 Bad Gateway\r\nServer: Apache-Coyote/1.1",
        b"502 Bad Gateway\r\nServer: nginx",
        b"502 Bad Gateway\r\nVia: 1.1 a (Apache/2.4.71)",
    ],
    ids=["a web server", "Tomcat", "nginx", "one behind it"],
)
def test_an_exit_that_may_remain_with_its_first_server_has_a_connection_for_each(
    stack: ExitStack, refusal: bytes
) -> None:
    told, socks = Event(), set[socket]()
    serve = refusing_connect(refusal, told, socks)
    place = Place(stack, f"http://{stack.enter_context(serving(serve))}")
    urls = [b"http://%c.example/" % letter for letter in b"abcde"]
    for url in urls[:3]:
        assert place.ask(url).body == url
    told.wait()
    for url in urls * 2:
        assert place.ask(url).body == url
    assert len(socks) == len(urls)


def test_no_server_behind_an_exit_can_tell_what_that_is(stack: ExitStack) -> None:
    """It would be sent what is meant for others, if the exit remains with its first server."""
    said = b"Server: squid/6.1", b"X-Squid-Error: ERR_DNS_FAIL 0", b"Via: 1.1 a (squid/6.1)"
    ours, address = stack.enter_context(proxy(ok(b"page", *said), connects=True))
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        for host in b"ab":
            assert place.ask(b"http://%c.example/" % host).body == b"page"
    assert ours.connections == 2


def test_requests_of_two_users_share_a_connection_where_the_exit_has_one_login(
    stack: ExitStack,
) -> None:
    _ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://me:p@{address}")
    exit_ = next(iter(place.group.roster)).exit
    requests = [Request(Command.CONNECT, Address("shop.example", 80), user) for user in "ab"]
    assert key_for(exit_, requests[0]) == key_for(exit_, requests[1])
    ruled = DirectExit(Dialer(DEFAULT_RULES, Resolver()))
    assert key_for(ruled, requests[0]) != key_for(ruled, requests[0]._replace(user="b"))


def test_a_socks_exit_keeps_a_connection_for_each_server(stack: ExitStack, server: Keeping) -> None:
    other = keeping(stack, lambda _: ok(b"other"))
    place = Place(stack, f"socks5://{stack.enter_context(microsocks())}")
    for _ in range(2):
        assert place.ask(server.url).body == b"page"
        assert place.ask(other.url).body == b"other"
    assert (len(server.socks), len(other.socks)) == (1, 1)


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_chunked_answer_leaves_its_connection_to_the_next_request(
    stack: ExitStack, size: int
) -> None:
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n" if size else b""
    body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
    ours, address = stack.enter_context(proxy(body))
    place = Place(stack, f"http://{address}")
    for _ in range(3):
        assert len(place.ask().body) == size
    assert ours.connections == 1


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_an_answer_without_a_body_leaves_its_connection(stack: ExitStack, method: bytes) -> None:
    status = b"200 OK\r\nContent-Length: 5" if method == b"HEAD" else b"304 Not Modified"
    ours, address = stack.enter_context(proxy(b"HTTP/1.1 " + status + b"\r\n\r\n"))
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        assert place.ask(method=method).body == b""
    assert ours.connections == 1


def test_a_request_that_may_not_be_sent_twice_takes_no_kept_connection(stack: ExitStack) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}")
    place.ask()
    for _ in range(2):
        place.ask(b"http://shop.example/", b"Content-Length: 0", method=b"POST")
    assert ours.connections == 3
    # but it leaves its own
    assert place.group.kept.count(next(iter(place.group.roster)).exit) == 3


def test_the_newest_connection_is_taken_first(stack: ExitStack) -> None:
    exit_, kept = FakeExit("x"), KeptConnections()
    connections = [_connection(stack) for _ in range(3)]
    for connection in connections:
        kept.keep(exit_, connection)
    assert [kept.take(exit_, "k") for _ in range(4)] == [*reversed(connections), None]
    for connection in connections:
        connection.stream.abort()


# --- they belong to one exit and one login --------------------------------------------------------


def test_a_kept_connection_belongs_to_the_credentials_that_were_filled_in(
    stack: ExitStack,
) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://me-{{session}}:p@{address}")
    names = (b"c2Vzc2lvbi14Og==", b"c2Vzc2lvbi15Og==", b"c2Vzc2lvbi14Og==")  # session-x, -y, -x
    for name in names:
        place.ask(b"http://shop.example/", b"Proxy-Authorization: Basic " + name)
    assert ours.connections == 2
    sent = [head.partition(b"Proxy-Authorization: ")[2].strip() for head in ours.heads]
    assert sent[0] == sent[2] != sent[1]


def test_no_connection_is_kept_where_each_request_has_a_session_of_its_own(
    stack: ExitStack,
) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://me-{{session}}:p@{address}")
    for _ in range(3):
        place.ask()
    assert ours.connections == 3
    assert all(b"Connection: close\r\n" in head for head in ours.heads)


def test_no_connection_is_kept_where_the_gateway_rotates_without_a_session(
    stack: ExitStack,
) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://me{{?-sid-{{session}}}}:p@{address}")
    for _ in range(3):
        place.ask()
    assert ours.connections == 3


def test_the_login_of_one_exit_is_never_sent_to_another(stack: ExitStack) -> None:
    one, first = stack.enter_context(proxy())
    two, second = stack.enter_context(proxy())
    place = Place(stack, f"http://a:a@{first}", f"http://b:b@{second}")
    for _ in range(4):
        place.ask(b"http://shop.example/", b"Proxy-Authorization: Basic YzpjCg==")
    assert {head.partition(b"Basic ")[2].strip() for head in one.heads} == {b"YTph"}
    assert {head.partition(b"Basic ")[2].strip() for head in two.heads} == {b"Yjpi"}


# --- what is never used again ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nProxy-Connection: Close\r\n\r\npage",
        b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\nConnection: keep-alive\r\n\r\npage",
        # the rest would be taken for the answer to the next request
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npageHTTP/1.1 200 OK\r\n\r\nforged",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npage\r\n0\r\n\r\nx",
        # two lengths
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n"
        b"4\r\npage\r\n0\r\n\r\n",
        # it authenticates the connection, not the request
        b"HTTP/1.1 200 OK\r\nWWW-Authenticate: Negotiate abc=\r\nContent-Length: 4\r\n\r\npage",
        b"HTTP/1.1 200 OK\r\nWWW-Authenticate: NTLM\r\nContent-Length: 4\r\n\r\npage",
    ],
)
def test_an_answer_after_which_another_could_be_misread_ends_its_connection(
    stack: ExitStack, answer: bytes
) -> None:
    ours, address = stack.enter_context(proxy(answer))
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        assert place.ask().body == b"page"
    assert ours.connections == 2
    assert not len(place.group.kept)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_a_body_where_none_may_be_reaches_no_other_client(stack: ExitStack, status: bytes) -> None:
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(forged) + forged
    ours, address = stack.enter_context(proxy(answer))
    place = Place(stack, f"http://{address}")
    for _ in range(3):
        assert place.ask().body == b""
    assert ours.connections == 3


def test_an_answer_to_head_with_a_body_reaches_no_other_client(stack: ExitStack) -> None:
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(forged) + forged
    ours, address = stack.enter_context(proxy(answer))
    place = Place(stack, f"http://{address}")
    place.ask(method=b"HEAD")
    assert place.ask().body == forged
    assert ours.connections == 2


def test_bytes_that_come_unasked_end_a_kept_connection(stack: ExitStack) -> None:
    """The body of an answer to HEAD, which comes late; or an answer that was not asked for."""
    socks: list[socket] = []

    def serve(sock: socket) -> None:
        socks.append(sock)
        Talk(sock).hear_until(b"\r\n\r\n")
        sock.sendall(ok(b"page"))
        held.wait()

    held = Event()
    address = stack.enter_context(serving(serve))
    place = Place(stack, f"http://{address}")
    assert place.ask().body == b"page"
    eventually(lambda: len(place.group.kept) == 1)
    socks[0].sendall(ok(b"forged"))
    assert place.ask().body == b"page"
    assert len(socks) == 2
    assert place.group.kept.found_dead == 1
    held.set()


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"


def _in_chunks(own: bytes, fields: bytes = b"", end: bytes = b"\r\n") -> bytes:
    return _CHUNKED + fields + b"\r\n" + end.join([b"%x" % len(own), own, b"0", b"", b""])


#: answers of each shape, and what stands behind them
_SHAPES: list[tuple[Callable[[bytes], bytes], bytes]] = [
    (ok, b""),
    (ok, ok(b"forged")),
    (ok, b"\r\n"),
    (ok, b"HTTP/1.1 103 Hints\r\n\r\n"),
    (_in_chunks, b""),
    (_in_chunks, ok(b"forged")),
    (lambda own: _in_chunks(own, end=b"\n"), ok(b"forged")),
    (lambda own: _in_chunks(own, b"Content-Length : 3\r\n"), b""),
    (lambda own: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + own, b""),
    (lambda own: b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(own), own), b""),
    (lambda own: b"HTTP/1.1 103 Hints\r\n\r\n" + ok(own), b""),
    (lambda own: b"HTTP/1.1 200 OK\nContent-Length: %d\n\n%s" % (len(own), own), b""),
]


def test_no_bytes_of_one_answer_ever_reach_another_client(stack: ExitStack) -> None:
    """Whatever stands behind an answer, and in how many pieces that comes."""
    random = Random(7)
    answers: dict[bytes, tuple[bytes, bytes]] = {}

    def answer_all(talk: Talk) -> None:
        while True:
            head = talk.hear_until(b"\r\n\r\n")
            answer, behind = answers[head.split()[1].rpartition(b"/")[2]]
            at = random.randrange(len(answer))
            talk.say(answer[:at])
            gevent.sleep(0)
            talk.say(answer[at:] + behind)
            if b"Connection: close" in answer or b"HTTP/1.0" in answer:
                return

    def serve(sock: socket) -> None:
        with suppress(AssertionError, OSError):  # the other end has closed
            answer_all(Talk(sock))

    place = Place(stack, f"http://{stack.enter_context(serving(serve))}")
    wrong: list[object] = []

    def client(name: bytes) -> None:
        for number in range(40):
            own = name + b"%d" % number
            shape, behind = random.choice(_SHAPES)
            answers[own] = shape(b"answer to " + own), behind
            reply = place.ask(b"http://shop.example/" + own)
            if (reply.status, reply.body) != (200, b"answer to " + own):
                wrong.append((answers[own], reply))

    gevent.joinall([gevent.spawn(client, name) for name in (b"a", b"b", b"c")], raise_error=True)
    assert not wrong
    assert place.group.kept.reused > 20


def test_a_request_for_ntlm_gets_a_connection_that_no_other_gets(stack: ExitStack) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        place.ask(b"http://shop.example/", b"Authorization: NTLM TlRMTVNTUAAB")
        assert not len(place.group.kept)
    assert ours.connections == 4  # for each first a CONNECT, which this proxy refuses


def test_an_answer_that_came_before_the_end_of_its_request_ends_the_connection(
    stack: ExitStack,
) -> None:
    _ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}")
    place.ask()  # absolute form is known from now on
    lines = [b"POST http://shop.example/ HTTP/1.1", b"Host: shop.example", b"Content-Length: 5"]
    with talk_to(place.inbound) as client:
        assert client.ask(b"\r\n".join(lines) + b"\r\n\r\nab").body == b"by proxy"
        client.say(b"cde")
        client.hear_end()
    assert len(place.group.kept) == 1  # that of the first request


# --- those that have died -------------------------------------------------------------------------


def test_a_connection_that_ended_while_it_was_idle_is_found_when_it_is_taken(
    stack: ExitStack,
) -> None:
    ours, address = stack.enter_context(proxy(closes=True))
    place = Place(stack, f"http://{address}")
    for _ in range(3):
        assert place.ask().status == 200
    assert ours.connections == 3
    (member,) = place.group.roster
    assert member.counts.failed == 0


@pytest.mark.parametrize("how", ["ends", "resets"])
def test_a_connection_that_ends_as_it_is_used_again_loses_no_request(
    stack: ExitStack, how: str
) -> None:
    connections = 0

    def serve(sock: socket) -> None:
        nonlocal connections
        connections += 1
        talk = Talk(sock)
        talk.hear_until(b"\r\n\r\n")
        sock.sendall(ok(b"page"))
        if connections == 1:
            talk.hear_until(b"\r\n\r\n")  # hears the second request, and is gone
            if how == "resets":
                reset(sock)
        else:
            held.wait()

    held = Event()
    address = stack.enter_context(serving(serve))
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        assert place.ask().body == b"page"
    assert connections == 2
    (member,) = place.group.roster
    assert (member.counts.failed, member.counts.connected, member.open) == (0, 2, 0)
    assert [place.seen.next().outcome for _ in range(2)] == ["ok", "ok"]
    held.set()


def test_an_answer_that_has_begun_is_not_requested_again(stack: ExitStack) -> None:
    heads: list[bytes] = []

    def serve(sock: socket) -> None:
        talk = Talk(sock)
        for answer in (ok(b"page"), ok(b"cut off")[:-3]):
            heads.append(talk.hear_until(b"\r\n\r\n"))
            talk.say(answer)

    place = Place(stack, f"http://{stack.enter_context(serving(serve))}")
    assert place.ask().body == b"page"
    with talk_to(place.inbound) as client:
        client.say(b"GET http://shop.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        client.hear_until(b"cut ")
        assert is_reset(client.sock)
    assert len(heads) == 2
    assert [place.seen.next().outcome for _ in range(2)] == ["ok", "remote_truncated"]


def test_a_kept_connection_whose_path_is_dead_is_replaced(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.inbound.http_exchange.ACKNOWLEDGED_WITHIN", 0.1)
    monkeypatch.setattr("gsocks.exits.forward.HttpConnection.is_unacknowledged", lambda *_: True)
    answers = [ok(b"first"), b"", ok(b"third")]
    ours, address = stack.enter_context(proxy(lambda _: answers.pop(0)))
    place = Place(stack, f"http://{address}")
    assert place.ask().body == b"first"
    assert place.ask().body == b"third"
    assert ours.connections == 2


def test_a_slow_answer_over_a_kept_connection_is_waited_for(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.inbound.http_exchange.ACKNOWLEDGED_WITHIN", 0.05)
    looked = Event()
    is_unacknowledged = HttpConnection.is_unacknowledged

    def look(connection: HttpConnection, since: float) -> bool:
        looked.set()
        return is_unacknowledged(connection, since)

    monkeypatch.setattr("gsocks.exits.forward.HttpConnection.is_unacknowledged", look)
    answers = 0

    def answer(_: bytes) -> bytes:
        nonlocal answers
        answers += 1
        if answers == 2:
            looked.wait()
        return ok(b"page")

    ours, address = stack.enter_context(proxy(answer))
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        assert place.ask().body == b"page"
    assert ours.connections == 1
    assert looked.is_set()


# --- bounds -------------------------------------------------------------------------------------


def _connection(stack: ExitStack, key: str | None = "k") -> HttpConnection:
    near, far = tcp_pair()
    stack.callback(far.close)
    request = Request(Command.CONNECT, Address("192.0.2.1", 80))
    return HttpConnection(SocketStream(near), UNSPECIFIED, request, key=key)


def _is_open(connection: HttpConnection) -> bool:
    return "closed" not in repr(connection.stream)


def test_an_exit_keeps_no_more_than_its_share_and_the_oldest_goes(stack: ExitStack) -> None:
    exit_, kept = FakeExit("x"), KeptConnections(ReuseSettings(per_exit=2))
    connections = [_connection(stack, key) for key in "aabc"]
    for connection in connections:
        kept.keep(exit_, connection)
    assert [_is_open(each) for each in connections] == [False, False, True, True]
    assert kept.count(exit_) == 2
    kept.close()
    assert not len(kept)


def test_all_exits_together_keep_no_more_than_the_total(stack: ExitStack) -> None:
    kept = KeptConnections(ReuseSettings(total=2))
    exits = [FakeExit(str(number)) for number in range(3)]
    connections = [_connection(stack) for _ in exits]
    for exit_, connection in zip(exits, connections, strict=True):
        kept.keep(exit_, connection)
    assert [_is_open(each) for each in connections] == [False, True, True]
    kept.close_all_of(exits[1])
    assert [kept.count(exit_) for exit_ in exits] == [0, 0, 1]
    kept.close()


@pytest.mark.parametrize("settings", [ReuseSettings(per_exit=0), ReuseSettings(total=0)])
def test_none_is_kept_where_none_may_be(stack: ExitStack, settings: ReuseSettings) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}", reuse=settings)
    for _ in range(2):
        place.ask()
    assert ours.connections == 2


def test_an_idle_connection_is_closed_in_time(stack: ExitStack) -> None:
    _ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}", reuse=ReuseSettings(max_idle=0.1))
    place.ask()
    eventually(lambda: not len(place.group.kept))


def test_a_connection_that_ends_while_it_is_idle_is_not_held_until_its_time_is_over(
    stack: ExitStack,
) -> None:
    _ours, address = stack.enter_context(proxy(closes=True))
    place = Place(stack, f"http://{address}", reuse=ReuseSettings(max_idle=2))
    place.ask()
    eventually(lambda: place.group.kept.found_dead == 1)


def test_a_kept_connection_gives_way_where_an_exit_may_have_no_more(stack: ExitStack) -> None:
    ours, address = stack.enter_context(proxy())
    exit_ = {"url": f"http://{address}", "max_connections": 1}
    place = Place(stack, exit_)  # type: ignore[arg-type]
    place.ask()
    assert len(place.group.kept) == 1
    place.ask(b"http://shop.example/", b"Content-Length: 0", method=b"POST")
    assert ours.connections == 2
    assert len(place.group.kept) == 1


def test_a_kept_connection_stays_where_an_exit_may_have_one_more(stack: ExitStack) -> None:
    ours, address = stack.enter_context(proxy())
    exit_ = {"url": f"http://{address}", "max_connections": 2}
    place = Place(stack, exit_)  # type: ignore[arg-type]
    place.ask()
    place.ask(b"http://shop.example/", b"Content-Length: 0", method=b"POST")
    assert ours.connections == 2
    assert len(place.group.kept) == 2


def test_the_connections_of_an_exit_that_is_removed_are_closed(stack: ExitStack) -> None:
    _ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}")
    place.ask()
    place.group.update([FakeExit("other")])
    assert not len(place.group.kept)


def slow_place(stack: ExitStack) -> tuple[Place, Event, Event]:
    """A gateway, and two events: its exit answers after the first; the second is its request."""
    held, asked = Event(), Event()

    def answer(_: bytes) -> bytes:
        asked.set()
        held.wait()
        return ok(b"late")

    _, address = stack.enter_context(proxy(answer))
    return Place(stack, f"http://{address}"), held, asked


def test_a_connection_is_not_kept_for_an_exit_that_was_removed_meanwhile(
    stack: ExitStack,
) -> None:
    place, held, asked = slow_place(stack)
    with talk_to(place.inbound) as client:
        client.say(b"GET http://shop.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        asked.wait()
        place.group.update([FakeExit("other")])
        held.set()
        assert client.hear().body == b"late"
    assert place.seen.next().outcome == "ok"
    assert not len(place.group.kept)


def test_a_connection_is_not_kept_for_an_exit_that_is_draining(stack: ExitStack) -> None:
    place, held, asked = slow_place(stack)
    (member,) = place.group.roster
    with talk_to(place.inbound) as client:
        client.say(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
        asked.wait()
        place.group.drain(member.name)
        held.set()
        assert client.hear().body == b"late"
    assert place.seen.next().outcome == "ok"
    assert not len(place.group.kept)
