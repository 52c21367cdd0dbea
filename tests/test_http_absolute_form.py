"""Plain requests go to HTTP exits in absolute form, and by CONNECT where that is refused."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks.access.rules import ALLOW_ALL
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.exits.absolute import HttpForwardExit
from gsocks.exits.fetch import fetch
from gsocks.http.url import WebUrl
from gsocks.rotation.probe import ask_for_nothing
from gsocks.settings import ReuseSettings
from tests.support import needs
from tests.support.engine import serving
from tests.support.forwarding import Place, proxy
from tests.support.proxies import squid, tinyproxy
from tests.support.web import Talk, Web, ok, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: "user:pass"
LOGIN = b"Basic dXNlcjpwYXNz"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def origin(stack: ExitStack) -> Web:
    return stack.enter_context(web(ok(b"origin")))


# --- the form ---------------------------------------------------------------------------------


def test_a_plain_request_goes_to_an_http_exit_in_absolute_form(stack: ExitStack) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://user:pass@{address}")
    reply = place.ask(b"http://shop.example/a?b=c", b"Proxy-Authorization: Basic bWU6bWU=")
    assert reply.body == b"by proxy"
    (head,) = ours.heads
    assert head == (
        b"GET http://shop.example/a?b=c HTTP/1.1\r\n"
        b"Host: shop.example\r\n"
        b"Proxy-Authorization: " + LOGIN + b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "url", "line"),
    [
        (b"GET", b"http://shop.example:8080", b"GET http://shop.example:8080/ HTTP/1.1"),
        (b"GET", b"http://[::1]:80/x", b"GET http://[::1]/x HTTP/1.1"),
        (b"OPTIONS", b"http://shop.example", b"OPTIONS http://shop.example HTTP/1.1"),
        (b"OPTIONS", b"http://shop.example/", b"OPTIONS http://shop.example/ HTTP/1.1"),
    ],
)
def test_the_absolute_form_is_that_of_the_rfc(
    stack: ExitStack, method: bytes, url: bytes, line: bytes
) -> None:
    ours, address = stack.enter_context(proxy())
    Place(stack, f"http://{address}").ask(url, method=method)
    assert ours.lines == [line]


def test_an_upgrade_goes_by_connect(stack: ExitStack, origin: Web) -> None:
    ours, address = stack.enter_context(proxy(connects=True))
    place = Place(stack, f"http://{address}")
    assert place.ask(origin.url, b"Connection: Upgrade", b"Upgrade: chat").body == b"origin"
    assert ours.lines == [b"CONNECT " + origin.host + b" HTTP/1.1"]


@pytest.mark.parametrize("status", [b"400 x", b"403 x", b"404 x", b"405 x", b"501 x"])
def test_an_exit_that_refuses_absolute_form_gets_connect_from_then_on(
    stack: ExitStack, origin: Web, status: bytes
) -> None:
    refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    ours, address = stack.enter_context(proxy(refusal, connects=True))
    place = Place(stack, f"http://{address}", reuse=ReuseSettings(per_exit=0))
    for _ in range(2):
        assert place.ask(origin.url).body == b"origin"
    connected = b"CONNECT " + origin.host + b" HTTP/1.1"
    assert ours.lines == [b"GET " + origin.url + b"/ HTTP/1.1", connected, connected]


def test_an_answer_that_connect_gets_too_is_the_servers_own(stack: ExitStack) -> None:
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
    ours, address = stack.enter_context(proxy(missing, connects=True))
    server = stack.enter_context(web(missing))
    place = Place(stack, f"http://{address}")
    for _ in range(3):
        assert place.ask(server.url).status == 404
    assert [line.split()[0] for line in ours.lines] == [b"GET", b"CONNECT", b"GET", b"GET"]


def test_an_answer_after_which_connect_is_refused_is_the_servers_own(stack: ExitStack) -> None:
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
    ours, address = stack.enter_context(proxy(missing))
    place = Place(stack, f"http://{address}")
    for _ in range(2):
        reply = place.ask()
        assert (reply.status, reply.body) == (404, b"gone")
    assert [line.split()[0] for line in ours.lines] == [b"GET", b"CONNECT", b"GET", b"GET"]


def test_a_proxy_that_has_taken_absolute_form_is_not_asked_again(stack: ExitStack) -> None:
    answers = [ok(b"page"), b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]
    ours, address = stack.enter_context(proxy(lambda _: answers.pop(0), connects=True))
    place = Place(stack, f"http://{address}")
    assert [place.ask().status for _ in range(2)] == [200, 404]
    assert not any(line.startswith(b"CONNECT") for line in ours.lines)


def test_a_request_that_may_not_be_sent_twice_begins_by_connect_at_an_unknown_proxy(
    stack: ExitStack, origin: Web
) -> None:
    refusal = b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n"
    ours, address = stack.enter_context(proxy(refusal, connects=True))
    place = Place(stack, f"http://{address}")
    reply = place.ask(origin.url, b"Content-Length: 2", method=b"POST", body=b"ab")
    assert reply.body == b"origin"
    assert ours.lines == [b"CONNECT " + origin.host + b" HTTP/1.1"]


def test_a_request_that_may_not_be_sent_twice_goes_in_absolute_form_where_connect_is_refused(
    stack: ExitStack,
) -> None:
    ours, address = stack.enter_context(proxy())
    place = Place(stack, f"http://{address}")
    reply = place.ask(b"http://shop.example/", b"Content-Length: 0", method=b"POST")
    assert reply.body == b"by proxy"
    assert ours.lines == [
        b"CONNECT shop.example:80 HTTP/1.1",
        b"POST http://shop.example/ HTTP/1.1",
    ]


# --- exits that refuse everything ---------------------------------------------------------------

REFUSED = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("status", [403, 502, 503, 504])
def test_an_exit_that_refuses_what_another_one_serves_is_ejected_for_it(
    stack: ExitStack, status: int
) -> None:
    sick, one = stack.enter_context(proxy(REFUSED % status))
    _, other = stack.enter_context(proxy())
    place = Place(stack, f"http://{one}", f"http://{other}")
    statuses = [place.ask().status for _ in range(20)]
    assert statuses.count(status) <= 4
    assert statuses[-10:] == [200] * 10
    first, second = place.group.roster
    assert not first.health.has_worked
    assert second.health.has_worked
    for number in range(200):  # of other destinations, too; who is asked is a matter of chance
        if not first.health.ejections:
            place.ask(b"http://%d.example/" % number)
    assert first.health.ejections
    assert len(sick.lines) <= 20


@pytest.mark.parametrize("status", [403, 503])
def test_a_site_that_refuses_a_session_moves_it_to_no_other_exit(
    stack: ExitStack, status: int
) -> None:
    def answer(head: bytes) -> bytes:
        return REFUSED % status if b"/private" in head else ok(b"page")

    exits = [stack.enter_context(proxy(answer))[1] for _ in range(3)]
    place = Place(stack, *(f"http://{each}" for each in exits), by_client=True)
    place.ask()
    (session,) = place.group.sessions.listing(0.0)
    for _ in range(10):
        assert place.ask(b"http://shop.example/private").status == status
    assert place.ask().status == 200
    (later,) = place.group.sessions.listing(0.0)
    assert later.exit == session.exit


# --- the exit's own answers ---------------------------------------------------------------------


def test_the_407_of_an_exit_never_reaches_the_client(stack: ExitStack) -> None:
    refused = (
        b"HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"
    )
    _, one = stack.enter_context(proxy(refused))
    _, other = stack.enter_context(proxy(ok(b"other")))
    place = Place(stack, f"http://u:p@{one}", f"http://{other}")
    for _ in range(2):
        assert place.ask().body == b"other"
    assert place.seen.next().outcome == "exit_doubtful"
    alone = Place(stack, f"http://u:secret@{one}")
    reply = alone.ask()
    assert reply.status == 502
    assert b"the proxy requires other credentials" in reply.body
    assert b"secret" not in reply.body


@pytest.mark.parametrize(
    "said",
    [
        b"407 Login\r\nProxy-Authenticate: Basic realm=x",
        b"502 Bad Gateway\r\nProxy-Status: x; error=proxy_configuration_error",
        b"503 Unavailable\r\nX-Squid-Error: ERR_CACHE_ACCESS_DENIED 0",
        b"594 Upstream",
    ],
)
def test_a_server_that_talks_like_a_proxy_ejects_no_exit(stack: ExitStack, said: bytes) -> None:
    """Proxies pass such answers on, and a client may have a server of its own."""

    def answer(head: bytes) -> bytes:
        if b"hostile.example" in head:
            return b"HTTP/1.1 " + said + b"\r\nContent-Length: 0\r\n\r\n"
        return ok(b"page")

    proxies = [stack.enter_context(proxy(answer))[1] for _ in range(4)]
    place = Place(stack, *(f"http://u:p@{address}" for address in proxies))
    for _ in proxies:
        assert place.ask().body == b"page"
    for _ in range(10):
        assert place.ask(b"http://hostile.example/").status == 502
    now = time.monotonic()
    assert not [member for member in place.group.roster if member.health.is_ejected(now)]


def test_an_exit_that_requires_a_login_for_everything_is_ejected(stack: ExitStack) -> None:
    ours, sick = stack.enter_context(proxy(b"HTTP/1.1 407 x\r\nContent-Length: 0\r\n\r\n"))
    _, good = stack.enter_context(proxy(ok(b"good")))
    place = Place(stack, f"http://u:p@{sick}", f"http://{good}")
    for number in range(20):
        assert place.ask(b"http://shop%d.example/" % number).body == b"good"
    first, second = place.group.roster
    assert first.health.is_ejected(time.monotonic())
    assert not second.health.is_ejected(time.monotonic())
    assert len(ours.heads) <= 4


@pytest.mark.parametrize("said", [b"407 x", b"403 x\r\nX-Squid-Error: ERR_ACCESS_DENIED 0"])
def test_a_session_leaves_an_exit_that_begins_to_refuse_everything(
    stack: ExitStack, said: bytes
) -> None:
    is_sick = {b"one": False, b"two": False}

    def answer(name: bytes) -> Callable[[bytes], bytes]:
        refused = b"HTTP/1.1 " + said + b"\r\nContent-Length: 0\r\n\r\n"
        return lambda _: refused if is_sick[name] else ok(name)

    proxies = [stack.enter_context(proxy(answer(name)))[1] for name in is_sick]
    place = Place(stack, *(f"http://u:p@{address}" for address in proxies))
    session = b"Proxy-Authorization: Basic " + b64encode(b"session-x:")
    first = place.ask(b"http://shop.example/", session).body
    is_sick[first] = True
    statuses = [place.ask(b"http://shop%d.example/" % n, session).status for n in range(8)]
    assert statuses[4:] == [200] * 4
    assert place.ask(b"http://shop.example/", session).body != first


def test_a_cause_that_the_exit_names_is_reported_as_for_connect(stack: ExitStack) -> None:
    failed = (
        b"HTTP/1.1 502 Bad Gateway\r\nProxy-Status: x; error=dns_error\r\n"
        b"Content-Length: 4\r\n\r\npage"
    )
    _, address = stack.enter_context(proxy(failed))
    reply = Place(stack, f"http://{address}").ask()
    assert reply.status == 502
    assert reply["proxy-status"] == "gsocks; error=dns_error"


UNAVAILABLE = b"HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nsick"


def test_an_exit_that_reaches_no_server_is_left_for_another_and_ejected(stack: ExitStack) -> None:
    ours, sick = stack.enter_context(proxy(UNAVAILABLE))
    _, good = stack.enter_context(proxy(ok(b"good")))
    place = Place(stack, f"http://{sick}", f"http://{good}")
    for number in range(20):
        assert place.ask(b"http://shop%d.example/" % number).body == b"good"
    first, second = place.group.roster
    assert first.health.is_ejected(time.monotonic())
    assert not second.health.is_ejected(time.monotonic())
    assert len(ours.heads) <= 4


def test_a_server_that_is_unavailable_ejects_no_exit_and_its_answer_is_passed_on(
    stack: ExitStack,
) -> None:
    one, first = stack.enter_context(proxy(UNAVAILABLE))
    two, second = stack.enter_context(proxy(UNAVAILABLE))
    three, third = stack.enter_context(proxy(UNAVAILABLE))
    place = Place(stack, *(f"http://{address}" for address in (first, second, third)))
    for _ in range(6):
        assert place.ask().body == b"sick"
    assert sum(len(each.heads) for each in (one, two, three)) == 12  # no more than two of them
    assert not any(each.counts.failed for each in place.group.roster)


def test_a_request_that_may_not_be_sent_twice_gets_the_answer_of_its_exit(
    stack: ExitStack,
) -> None:
    _, sick = stack.enter_context(proxy(UNAVAILABLE))
    _, good = stack.enter_context(proxy(ok(b"good")))
    place = Place(stack, f"http://{sick}", f"http://{good}")
    statuses = {place.ask(method=b"POST").status for _ in range(2)}
    assert statuses == {200, 503}


def test_a_silent_exit_that_has_never_worked_is_left_for_another(stack: ExitStack) -> None:
    def silent(sock: socket) -> None:
        while sock.recv(65536):
            pass

    quiet = stack.enter_context(serving(silent))
    _, good = stack.enter_context(proxy(ok(b"good")))
    place = Place(stack, f"http://{quiet}", f"http://{good}", connect=1.0)
    assert place.ask().body == b"good"
    assert place.seen.next().outcome == "exit_doubtful"


@pytest.mark.parametrize("status", [None, b"no HTTP", b"HTTP/1.1 503 x", b"HTTP/1.1 407 x"])
def test_an_exit_that_falls_silent_is_left_and_a_slow_server_is_waited_for(
    stack: ExitStack, status: bytes | None
) -> None:
    """Told apart by a request for a name that can't exist, over another connection."""
    silent, checked = Event(), Event()
    answers_others = status is not None and status.startswith(b"HTTP")

    def serve(sock: socket) -> None:
        talk = Talk(sock)
        with suppress(AssertionError, OSError):
            while True:
                head = talk.hear_until(b"\r\n\r\n")
                if head.startswith(b"CONNECT gsocks.invalid"):
                    if status is None:
                        talk.hear_until(b"never")
                        return
                    talk.say(b"%b\r\nContent-Length: 0\r\n\r\n" % status)
                    if answers_others:
                        checked.set()
                    return
                if silent.is_set():
                    checked.wait()
                talk.say(ok(b"slow" if silent.is_set() else b"first"))

    one = stack.enter_context(serving(serve))
    _, good = stack.enter_context(proxy(ok(b"good")))
    place = Place(stack, {"url": f"http://{one}", "name": "one"}, f"http://{good}", connect=0.6)  # type: ignore[arg-type]
    assert {place.ask().body for _ in range(2)} == {b"first", b"good"}
    silent.set()
    bodies = {place.ask().body for _ in range(2)}
    assert bodies == ({b"slow", b"good"} if answers_others else {b"good"})
    checked.set()


def test_a_request_that_may_not_be_sent_twice_fails_when_its_exit_falls_silent(
    stack: ExitStack,
) -> None:
    silent = Event()

    def serve(sock: socket) -> None:
        talk = Talk(sock)
        with suppress(AssertionError, OSError):
            while True:
                talk.hear_until(b"\r\n\r\n")
                if silent.is_set():
                    talk.hear_until(b"never")
                talk.say(ok(b"first"))

    place = Place(stack, f"http://{stack.enter_context(serving(serve))}", connect=0.6)
    assert place.ask().body == b"first"
    silent.set()
    reply = place.ask(b"http://shop.example/", b"Content-Length: 0", method=b"POST")
    assert reply.status == 502
    assert b"fell silent" in reply.body


# --- the real squid -----------------------------------------------------------------------------


def test_squid_serves_plain_pages_with_its_default_configuration(
    stack: ExitStack, tmp_path: Path, origin: Web
) -> None:
    """It refuses CONNECT to every port but 443."""
    address = stack.enter_context(squid(tmp_path))
    place = Place(stack, f"http://{address}")
    for path in (b"/one", b"/two"):
        reply = place.ask(origin.url + path)
        assert (reply.status, reply.body) == (200, b"origin")
    assert [head.split()[1] for head in origin.heads] == [b"/one", b"/two"]
    (member,) = place.group.roster
    assert place.group.kept.reused == 1
    assert not member.counts.failed
    reply = place.ask(origin.url, b"Content-Length: 2", method=b"POST", body=b"ab")
    assert reply.body == b"origin"


def test_squid_gets_requests_for_two_servers_over_one_connection(
    stack: ExitStack, tmp_path: Path, origin: Web
) -> None:
    address = stack.enter_context(squid(tmp_path))
    place = Place(stack, f"http://{address}")
    others = [stack.enter_context(web(ok(b"other"))) for _ in range(4)]
    (member,) = place.group.roster
    # as connect probes do
    assert ask_for_nothing(member.exit, 10)
    for _ in range(2):
        for server in (origin, *others):
            body = b"origin" if server is origin else b"other"
            assert place.ask(server.url + b"/page", b"Cookie: of " + server.url).body == body
    for server in (origin, *others):
        assert all(b"Cookie: of " + server.url in head for head in server.heads)
    assert (len(place.group.kept), place.group.kept.reused) == (1, 9)


def test_tinyproxy_which_closes_each_connection_serves_two_servers(
    stack: ExitStack, tmp_path: Path, origin: Web
) -> None:
    needs.program("tinyproxy")
    place = Place(stack, f"http://{stack.enter_context(tinyproxy(tmp_path))}")
    other = stack.enter_context(web(ok(b"other")))
    (member,) = place.group.roster
    assert ask_for_nothing(member.exit, 10)
    for _ in range(2):
        assert place.ask(origin.url).body == b"origin"
        assert place.ask(other.url).body == b"other"
    assert isinstance(member.exit, HttpForwardExit)
    assert member.exit.goes_by_each_url is False


def test_a_check_takes_the_same_form_as_a_request(
    stack: ExitStack, tmp_path: Path, origin: Web
) -> None:
    address = stack.enter_context(squid(tmp_path))
    exit_ = make_exit(ExitSpec.parse(f"http://{address}"), ExitDeps(ALLOW_ALL))
    page = fetch(WebUrl.parse(origin.url.decode() + "/check"), exit_, largest=1000, timeout=5)
    assert (page.status, page.body) == (200, b"origin")


def test_a_check_goes_by_connect_where_absolute_form_is_refused(
    stack: ExitStack, origin: Web
) -> None:
    refusal = b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n"
    ours, address = stack.enter_context(proxy(refusal, connects=True))
    exit_ = make_exit(ExitSpec.parse(f"http://u:p@{address}"), ExitDeps(ALLOW_ALL))
    for _ in range(2):
        page = fetch(WebUrl.parse(origin.url.decode() + "/check"), exit_, largest=1000, timeout=5)
        assert page.body == b"origin"
    assert [line.split()[0] for line in ours.lines] == [b"GET", b"CONNECT", b"CONNECT"]
    assert all(b"Proxy-Authorization: Basic dTpw" in head for head in ours.heads)
    assert not any(b"uthorization" in head for head in origin.heads)
