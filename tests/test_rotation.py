"""WaysOut with several exits: who is asked, who is asked next, and who is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import gevent
import pytest
from engine import Refused, Seen, ask_echo, free_port, through
from gevent.event import Event
from proxies import hang, microsocks, stage
from stream_contract import tcp_pair

from gsocks import errors
from gsocks.address import Address
from gsocks.assemble import make_ways_out
from gsocks.exits import Connected, ExitSpec, Ground, make_exit
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.rotation.policy import POLICIES, Weighted, make_policy
from gsocks.rules import ALLOW_ALL, Rules
from gsocks.stream import SocketStream
from gsocks.ways_out import Offer, Way, WaysOut

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEST = Address("host.example", 443)
BOUND = Address("192.0.2.1", 1234)


class Fake:
    """An exit that does what it is told, and counts."""

    def __init__(self, label: str, does: Callable[[], object] | Exception | None = None) -> None:
        self.label = label
        self.does = does
        self.asked = 0

    def start(self) -> None:
        pass

    def connect(self, request: Request) -> Connected:
        self.asked += 1
        if isinstance(self.does, Exception):
            raise self.does
        if self.does is not None:
            self.does()
        near, far = tcp_pair()
        far.close()
        stream = SocketStream(near)
        stream.abort()
        return Connected(stream, BOUND)

    def close(self) -> None:
        pass


def fakes(count: int) -> list[Fake]:
    return [Fake(f"exit{number}") for number in range(count)]


def ways(*exits: Fake | Offer, **options: Any) -> WaysOut:
    return WaysOut(exits, ALLOW_ALL, **options)


def ask(ways_out: WaysOut, host: str = DEST.host) -> Way:
    return ways_out.connect(Request(Command.CONNECT, Address(host, 443)), lambda _: None)


def tried(ways_out: WaysOut) -> tuple[list[str], errors.GsocksError]:
    """Whom a request asks that can't be served, and what it is told."""
    labels: list[str] = []
    with pytest.raises(errors.GsocksError) as caught:
        ways_out.connect(Request(Command.CONNECT, DEST), labels.append)
    return labels, caught.value


FAILED = errors.ExitFailed("dead")


# --- who is asked -----------------------------------------------------------------------------


def test_without_an_exit_there_is_no_way_out() -> None:
    with pytest.raises(errors.ConfigError, match="no exits"):
        ways()


def test_what_the_rules_deny_is_asked_of_nobody() -> None:
    exit_ = Fake("a")
    with pytest.raises(errors.Forbidden, match=r"host\.example:443 .*'deny \*\.example'"):
        ask(WaysOut([exit_], Rules.parse(["deny *.example", "allow all"])))
    assert exit_.asked == 0


def test_left_to_itself_it_takes_turns() -> None:
    rotating = ways(*fakes(3))
    assert [ask(rotating).exit for _ in range(5)] == ["exit0", "exit1", "exit2", "exit0", "exit1"]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_finds_its_way_to_every_exit(name: str) -> None:
    rotating = ways(*fakes(4), policy=make_policy(name, Random(1)))
    used = {ask(rotating).exit for _ in range(200)}
    assert used == {"exit0", "exit1", "exit2", "exit3"}


def test_weights_come_with_the_offers() -> None:
    one, other = fakes(2)
    rotating = ways(Offer(one, weight=3), Offer(other), policy=make_policy("weighted", Random()))
    for _ in range(8):
        ask(rotating)
    assert (one.asked, other.asked) == (6, 2)


def test_least_connections_counts_what_is_open_and_not_what_was() -> None:
    rotating = ways(*fakes(2), policy=make_policy("least_connections", Random(1)))
    kept = ask(rotating)
    for _ in range(10):
        way = ask(rotating)
        assert way.exit != kept.exit
        way.release()
    kept.release()
    assert {ask(rotating).exit, ask(rotating).exit} == {"exit0", "exit1"}


def test_fastest_finds_the_fast_one() -> None:
    slow, fast = Fake("slow", lambda: gevent.sleep(0.02)), Fake("fast")
    rotating = ways(slow, fast, policy=make_policy("fastest", Random(1)))
    used = [ask(rotating).exit for _ in range(30)]
    assert Counter(used) == {"slow": 1, "fast": 29}


def test_a_failure_is_not_fast() -> None:
    dead, alive = Fake("dead", FAILED), Fake("alive")
    rotating = ways(dead, alive, policy=make_policy("fastest", Random(1)))
    assert {ask(rotating).exit for _ in range(30)} == {"alive"}
    assert dead.asked <= 1


def test_least_recent_goes_by_host() -> None:
    rotating = ways(*fakes(5), policy=make_policy("least_recent", Random(1)))
    for host in ("a.example", "b.example"):
        assert len({ask(rotating, host).exit for _ in range(5)}) == 5


def test_what_people_write_reaches_the_policy_and_the_bounds() -> None:
    rotating = make_ways_out(
        [{"url": "direct", "weight": 3}, "socks5://10.0.0.7?max_connections=5"],
        rotate="weighted",
    )
    assert isinstance(rotating._policy, Weighted)
    assert [each.weight for each in rotating.roster] == [3, 1]
    assert [each.max_connections for each in rotating.roster] == [None, 5]
    with pytest.raises(errors.ConfigError, match="not a policy"):
        make_ways_out(["direct"], rotate="rotund")


# --- who is asked next ------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "failure",
    [
        errors.ExitFailed("x"),
        errors.LimitReached("x"),
        errors.OutOfResources("x"),
        errors.ShuttingDown("x"),
        errors.AddressFamilyNotSupported("x"),
    ],
    ids=lambda failure: failure.word,
)
def test_no_exit_is_asked_twice_for_one_request(name: str, failure: errors.ConnectFailed) -> None:
    exits = [Fake(f"exit{number}", failure) for number in range(5)]
    labels, error = tried(ways(*exits, tries=4, policy=make_policy(name, Random(1))))
    assert error is failure
    assert len(labels) == len(set(labels)) == 4


def test_a_request_asks_as_many_as_there_are() -> None:
    labels, error = tried(ways(Fake("a", FAILED), Fake("b", FAILED), tries=5))
    assert labels == ["a", "b"]
    assert error is FAILED


@pytest.mark.parametrize(
    "failure",
    [errors.Forbidden, errors.ConnectionRefused, errors.NameNotFound, errors.HostUnreachable],
)
def test_a_failure_of_the_destination_is_final(failure: type[errors.ConnectFailed]) -> None:
    exits = [Fake("a", failure("no")), Fake("b")]
    labels, error = tried(ways(*exits))
    assert labels == ["a"]
    assert type(error) is failure


def test_an_exit_that_says_nothing_leaves_time_to_the_next() -> None:
    rotating = ways(Fake("silent", Event().wait), Fake("alive"), timeout=0.2)
    assert ask(rotating).exit == "alive"


def test_the_last_exit_has_all_the_time_that_is_left() -> None:
    silent = [Fake(f"silent{number}", Event().wait) for number in range(5)]
    labels, error = tried(ways(*silent, timeout=0.1))
    assert labels == ["silent0", "silent1", "silent2"]
    assert type(error) is errors.ConnectTimeout
    assert str(error) == f"{DEST}: not connected within 0.1 s"


def test_a_single_exit_has_all_of_the_time() -> None:
    labels, error = tried(ways(Fake("silent", Event().wait), timeout=0.05))
    assert labels == ["silent"]
    assert type(error) is errors.ConnectTimeout


def test_when_the_time_is_over_nothing_more_is_tried_whatever_an_exit_makes_of_it() -> None:
    def wait() -> None:
        try:
            Event().wait()
        except errors.GsocksError:  # what an exit does with the failures of its own parts
            raise FAILED from None

    labels, error = tried(ways(Fake("silent", wait), Fake("b", wait), tries=2, timeout=0.1))
    assert labels == ["silent", "b"]
    assert type(error) is errors.ConnectTimeout


# --- who is full ------------------------------------------------------------------------------


def test_a_full_exit_is_left_out_until_a_connection_ends() -> None:
    small, big = fakes(2)
    rotating = ways(Offer(small, max_connections=2), Offer(big))
    open_ways = [ask(rotating) for _ in range(8)]
    assert Counter(way.exit for way in open_ways) == {"exit0": 2, "exit1": 6}
    open_ways[0].release()
    assert [ask(rotating).exit, ask(rotating).exit] == ["exit0", "exit1"]


def test_where_all_are_full_the_limit_is_told() -> None:
    rotating = ways(Offer(Fake("a"), max_connections=1), Offer(Fake("b"), max_connections=1))
    first = ask(rotating)
    ask(rotating)
    labels, error = tried(rotating)
    assert labels == []
    assert type(error) is errors.LimitReached
    first.release()
    assert ask(rotating).exit == first.exit


def test_a_connection_that_is_being_made_counts() -> None:
    go_on = Event()
    rotating = ways(Offer(Fake("a", go_on.wait), max_connections=1))
    under_way = gevent.spawn(ask, rotating)
    gevent.idle()
    assert type(tried(rotating)[1]) is errors.LimitReached
    go_on.set()
    under_way.get().release()
    assert ask(rotating).exit == "a"


@pytest.mark.parametrize("failure", [FAILED, errors.ConnectionRefused("no"), ValueError("a bug")])
def test_a_connection_that_was_not_made_does_not_count(failure: Exception) -> None:
    exit_ = Fake("a", failure)
    rotating = ways(Offer(exit_, max_connections=1))
    for _ in range(3):
        with pytest.raises(type(failure)):
            ask(rotating)
    exit_.does = None
    assert ask(rotating).exit == "a"


def test_a_connection_given_up_does_not_count() -> None:
    silent = Fake("a", Event().wait)
    rotating = ways(Offer(silent, max_connections=1), timeout=0.05)
    assert type(tried(rotating)[1]) is errors.ConnectTimeout
    asking = gevent.spawn(ask, rotating)
    gevent.idle()
    asking.kill()
    silent.does = None
    assert ask(rotating).exit == "a"


def test_an_exit_that_filled_up_meanwhile_is_not_asked_next() -> None:
    small, rotating = Fake("small"), None

    def fail_after_another_request() -> None:
        first.does = None
        ask(rotating)  # by the other exit, whose turn it is, and which is full by that
        raise FAILED

    first = Fake("first", fail_after_another_request)
    rotating = ways(first, Offer(small, max_connections=1))
    labels, error = tried(rotating)
    assert labels == ["first"]
    assert error is FAILED


# --- with doors and real proxies --------------------------------------------------------------


def rotating_door(*urls: str, observer: Seen, **terms: Any) -> LocalServer:
    ground = Ground(ALLOW_ALL)
    exits = [Offer(make_exit(ExitSpec.parse(url), ground), **terms) for url in urls]
    return LocalServer(("127.0.0.1", 0), WaysOut(exits, ALLOW_ALL, timeout=5), observer=observer)


def test_a_client_notices_nothing_of_a_dead_proxy(echo_server: Address) -> None:
    seen = Seen()
    with microsocks() as alive, stage(lambda stream: None) as hangs_up:
        dead = f"socks5://127.0.0.1:{free_port()}"
        works = f"socks5://{alive}"
        door = rotating_door(dead, f"http://{hangs_up}", works, observer=seen)
        door.start()
        try:
            for _ in range(3):
                with through(door.bound, echo_server) as client:
                    client.sendall(b"hello")
                    assert client.recv(5) == b"hello"
                assert seen.next().exit == works
        finally:
            door.stop(0)


def test_a_client_notices_little_of_a_silent_proxy(echo_server: Address) -> None:
    with stage(hang) as silent:
        ground = Ground(ALLOW_ALL)
        exits = [make_exit(ExitSpec.parse(url), ground) for url in (f"http://{silent}", "direct")]
        door = LocalServer(("127.0.0.1", 0), WaysOut(exits, ALLOW_ALL, timeout=0.4))
        door.start()
        try:
            assert ask_echo(door.bound, echo_server, b"hello") == b"hello"
        finally:
            door.stop(0)


def test_each_end_of_a_connection_makes_room_for_the_next(echo_server: Address) -> None:
    """A clean end, a reset, a refusal, and no room."""
    seen = Seen()
    door = rotating_door("direct", observer=seen, max_connections=1)
    door.start()
    try:
        assert ask_echo(door.bound, echo_server, b"hello") == b"hello"
        assert seen.next().outcome == "ok"
        with through(door.bound, echo_server) as client:
            client.sendall(b"x")
        assert seen.next().outcome == "client_reset"
        with pytest.raises(Refused, match="5"):
            through(door.bound, Address("127.0.0.1", free_port()))
        assert seen.next().outcome == "refused"
        with through(door.bound, echo_server):
            with pytest.raises(Refused, match="1"):
                through(door.bound, echo_server)
            assert seen.next().outcome == "limit"
        seen.next()
        assert ask_echo(door.bound, echo_server, b"hello") == b"hello"
    finally:
        door.stop(0)


def test_a_door_that_stops_leaves_no_connection_counted(echo_server: Address) -> None:
    ways_out = WaysOut([Offer(make_exit(ExitSpec.parse("direct"), Ground(ALLOW_ALL)))], ALLOW_ALL)
    door = LocalServer(("127.0.0.1", 0), ways_out)
    door.start()
    clients = [through(door.bound, echo_server) for _ in range(3)]
    assert next(iter(ways_out.roster)).open == 3
    door.stop(0)
    assert next(iter(ways_out.roster)).open == 0
    for client in clients:
        client.close()
