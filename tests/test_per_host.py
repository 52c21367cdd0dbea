"""per_host in an exit group and in the program: turns, other exits, and what sites ask for."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import ClassVar

import gevent
import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import LimitReached
from gsocks.exits.forward import HttpConnection
from gsocks.request import ANY, Command, ExitSelector, Request
from gsocks.rotation.group import ExitGroup, Outbound
from gsocks.rotation.host_limits import HostLimits
from gsocks.rotation.member import Offer
from gsocks.rotation.policy import POLICIES, make_policy
from gsocks.rotation.roster import Roster
from gsocks.settings import HealthSettings, PerHostSettings
from gsocks.stream import SocketStream
from tests.support.admin_api import Admin
from tests.support.engine import QuickExit
from tests.support.mirror import EXITS
from tests.support.program import Program
from tests.support.stream_contract import tcp_pair
from tests.support.waiting import TOO_LONG

in_this_process = pytest.mark.usefixtures("never_hangs", "nothing_left")

SITE, OTHER = Address("shop.example", 443), Address("other.example", 443)
CART = ExitSelector(session="cart")


def group(count: int, *, timeout: float = 2.0, **limits: float) -> ExitGroup:
    offers = [Offer(QuickExit(f"e{number}"), name=f"e{number}") for number in range(count)]
    settings = PerHostSettings(**limits)  # type: ignore[arg-type]
    return ExitGroup(offers, ALLOW_ALL, timeout=timeout, random=Random(1), per_host=settings)


def ask(of: ExitGroup, dest: Address = SITE, selector: ExitSelector = ANY) -> Outbound:
    outbound = of.connect(Request(Command.CONNECT, dest, selector=selector), lambda _: None)
    outbound.stream.abort()
    return outbound


# --- an exit group ----------------------------------------------------------------------------


@in_this_process
def test_an_exit_that_rests_for_a_host_leaves_it_to_others() -> None:
    exits = group(3, min_interval=1000.0)
    assert {ask(exits).name for _ in range(3)} == {"e0", "e1", "e2"}
    with pytest.raises(LimitReached):
        ask(exits)
    assert {ask(exits, OTHER).name for _ in range(3)} == {"e0", "e1", "e2"}


@in_this_process
def test_of_many_exits_those_that_rest_are_passed_over() -> None:
    exits = group(300, min_interval=1000.0)
    assert len({ask(exits).name for _ in range(300)}) == 300


@pytest.mark.parametrize("rotate", POLICIES)
def test_where_all_rest_few_are_looked_at_and_none_is_lost(
    rotate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = HostLimits(PerHostSettings(min_interval=1000.0))
    random = Random(1)
    offers = [Offer(QuickExit(f"e{number}"), name=f"e{number}") for number in range(5000)]
    policy = make_policy(rotate, random)
    roster = Roster(offers, HealthSettings(), random, policy, host_limits=limits)
    request = Request(Command.CONNECT, SITE)
    for number, each in enumerate(roster):
        limits.take(each.name, SITE.host, number / 1000.0, 0.0)
    looks = Counter[str]()
    usable_at = limits.usable_at

    def counted(name: str, host: str) -> float:
        looks[host] += 1
        return usable_at(name, host)

    monkeypatch.setattr(limits, "usable_at", counted)
    soonest = roster.choose(request, (), 10.0)
    assert soonest is not None
    assert soonest.name == "e0"
    assert looks[SITE.host] < 1100
    # once their rest is over, each of them is used again
    used = set()
    for _ in range(5000):
        chosen = roster.choose(request, (), 2000.0)
        assert chosen is not None
        assert roster.take_turn(chosen, request, 2000.0, 0.0) == 2000.0
        used.add(chosen.name)
    assert len(used) == 5000


@in_this_process
@pytest.mark.parametrize("selector", [ANY, CART], ids=["none", "session"])
def test_a_request_waits_for_its_turn_if_that_comes_in_time(selector: ExitSelector) -> None:
    exits = group(1, min_interval=0.05)
    began = time.monotonic()
    asking = [gevent.spawn(ask, exits, SITE, selector) for _ in range(4)]
    gevent.joinall(asking)
    assert [each.get().name for each in asking] == ["e0"] * 4
    assert time.monotonic() - began >= 0.15


@in_this_process
def test_a_session_stays_at_an_exit_that_is_at_its_limit_and_says_so() -> None:
    exits = group(5, min_interval=1000.0)
    first = ask(exits, selector=CART)
    with pytest.raises(
        LimitReached, match=f"exit {first.name} is at its limit for shop.example"
    ) as full:
        ask(exits, selector=CART)
    assert 900 < (full.value.retry_after or 0) <= 1000
    assert ask(exits, OTHER, CART).name == first.name


@in_this_process
def test_a_refused_request_is_told_when_an_exit_rests_no_more() -> None:
    exits = [Offer(QuickExit(f"e{n}"), name=f"e{n}", requests_per_minute=1) for n in range(2)]
    limited = ExitGroup(exits, ALLOW_ALL)
    for _ in exits:
        ask(limited)
    for selector in (ANY, CART):
        with pytest.raises(LimitReached, match="every exit is at its limit") as full:
            ask(limited, selector=selector)
        assert 50 < (full.value.retry_after or 0) <= 60


@in_this_process
def test_connections_to_a_host_are_free_again_once_closed() -> None:
    exits = group(2, connections=1)
    first, second = ask(exits), ask(exits)
    assert {first.name, second.name} == {"e0", "e1"}
    with pytest.raises(LimitReached):
        ask(exits)
    second.release(1, 1)
    assert ask(exits).name == second.name


@in_this_process
def test_a_request_over_the_connection_of_its_client_counts_and_frees_no_other_place() -> None:
    exits = group(1, timeout=0.05, connections=1)
    other = ask(exits)
    request = Request(Command.CONNECT, SITE)
    (member,) = exits.roster
    near, far = tcp_pair()
    pinned = exits.forward_over(HttpConnection(SocketStream(near), SITE, request), member)
    pinned.abort()
    with pytest.raises(LimitReached):
        ask(exits)
    other.abort()
    ask(exits).abort()
    far.close()


def test_a_request_that_is_given_up_while_it_waits_gives_its_place_back() -> None:
    exits = group(1, timeout=100.0, min_interval=20.0, connections=2)
    ask(exits).release(1, 1)
    waiting = gevent.spawn(ask, exits)
    gevent.sleep(0)
    limits = exits.roster.host_limits
    assert limits is not None
    held = limits._pairs.peek(("e0", SITE.host))
    assert held is not None
    assert held.open == 1
    waiting.kill()
    assert held.open == 0


def test_without_limits_nothing_is_counted() -> None:
    assert group(1).roster.host_limits is None


# --- the program ------------------------------------------------------------------------------


class _Site(BaseHTTPRequestHandler):
    """Refuses an address that has made as many requests as ``patience`` allows."""

    patience: ClassVar[int] = 2
    retry_after: ClassVar[str] = "600"
    seen: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        address = self.client_address[0]
        self.seen[address] += 1
        refuses = self.seen[address] > self.patience
        self.send_response(429 if refuses else 200)
        if refuses:
            self.send_header("Retry-After", self.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    _Site.seen.clear()
    yield server.server_port
    server.shutdown()
    server.server_close()


def statuses(port: int, url: str, count: int) -> list[int]:
    found = []
    for _ in range(count):
        client = HTTPConnection("127.0.0.1", port, timeout=TOO_LONG)
        client.request("GET", url)
        found.append(client.getresponse().status)
        client.close()
    return found


def config(folder: Path, more: str) -> Path:
    exits = "".join(
        f"    - {{url: direct, source: {address}/32, name: e{at}}}\n"
        for at, address in enumerate(EXITS[:3])
    )
    path = folder / "c.yaml"
    path.write_text(
        "state: {file: gsocks.db}\nadmin: {listen: 127.0.0.1:0}\n"
        f"local:\n  listen: 127.0.0.1:0\n  rules: [allow all]\n{more}  exits:\n{exits}"
    )
    return path


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_an_exit_that_a_site_refuses_rests_for_it_as_long_as_asked(
    tmp_path: Path, site: int, form: str
) -> None:
    date = formatdate(time.time() + 600, usegmt=True)
    _Site.retry_after = "600" if form == "seconds" else date
    path = config(tmp_path, "  per_host: {cool_down: 1h}\n")
    url = f"http://127.0.0.1:{site}/"
    with Program("-c", path) as program:
        # each exit is refused once, and then no more: after that all are at their limit
        assert Counter(statuses(program.port(), url, 12)) == {200: 6, 429: 3, 503: 3}
        assert set(_Site.seen.values()) == {3}
        program.wait_for(
            r"exit e\d \(direct\S*\) rests for (600|5\d\d) s for 127.0.0.1, which has answered 429",
            times=3,
        )
        admin = Admin(program, tmp_path)
        (resting,) = admin.ask("GET", "/v1/exits/e1")["domains"]
        assert (resting["domain"], resting["state"]) == ("127.0.0.1", "cooling")
        assert 500 < resting["back_in"] <= 600
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    with Program("-c", path) as program:  # and a restart forgets none of it
        assert statuses(program.port(), url, 2) == [503, 503]


def test_requests_to_a_host_are_an_interval_apart(tmp_path: Path, site: int) -> None:
    path = config(tmp_path, "  per_host: {min_interval: 1h}\n")
    url = f"http://127.0.0.1:{site}/"
    with Program("-c", path) as program:
        assert statuses(program.port(), url, 5) == [200, 200, 200, 503, 503]
        assert _Site.seen == dict.fromkeys(EXITS[:3], 1)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("{requests_per_minute: 0}", "requests_per_minute: '0' is not a whole number from 1"),
        ("{min_interval: soon}", "min_interval: 'soon' is not a duration"),
        ("{cooldown: 1m}", "per_host.cooldown: unknown key (did you mean cool_down?"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, mistake: str) -> None:
    with Program("check", "-c", config(tmp_path, f"  per_host: {text}\n")) as program:
        assert program.end() == 2
        assert mistake in program.log
