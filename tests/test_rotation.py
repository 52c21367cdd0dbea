"""ExitGroup with several exits: who is asked, who is asked next, and who is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, cast

import gevent
import pytest
from gevent.event import Event

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import Address
from gsocks.exits import Connected, ExitDeps, ExitSpec, make_exit
from gsocks.local import LocalServer
from gsocks.request import Command, ExitSelector, Request
from gsocks.rotation.build import make_exit_group, make_rules
from gsocks.rotation.group import ExitGroup, Offer, Outbound
from gsocks.rotation.policy import POLICIES, make_policy
from gsocks.stream import SocketStream, Stream
from tests.support.engine import Refused, Seen, ask_echo, through
from tests.support.ports import free_port
from tests.support.proxies import hang, microsocks, stage
from tests.support.stream_contract import tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

DEST = Address("host.example", 443)
BOUND = Address("192.0.2.1", 1234)


class Fake:
    """An exit that does what it is told, and counts."""

    def __init__(self, label: str, does: Callable[[], object] | Exception | None = None) -> None:
        self.label = label
        self.does = does
        self.asked = 0

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


def ways(*exits: Fake | Offer, **options: Any) -> ExitGroup:
    return ExitGroup(exits, ALLOW_ALL, **options)


def ask(exit_group: ExitGroup, host: str = DEST.host) -> Outbound:
    """A connection through which a byte has come back."""
    way = exit_group.connect(Request(Command.CONNECT, Address(host, 443)), lambda _: None)
    way.answered()
    return way


def tried(exit_group: ExitGroup) -> tuple[list[str], errors.GsocksError]:
    """Whom a request asks that can't be served, and what it is told."""
    labels: list[str] = []
    with pytest.raises(errors.GsocksError) as caught:
        exit_group.connect(Request(Command.CONNECT, DEST), labels.append)
    return labels, caught.value


FAILED = errors.ExitFailed("dead")


# --- who is asked -----------------------------------------------------------------------------


def test_without_an_exit_there_is_no_way_out() -> None:
    with pytest.raises(errors.ConfigError, match="no exits"):
        ways()


def test_what_the_rules_deny_is_asked_of_no_exit() -> None:
    exit_ = Fake("a")
    with pytest.raises(errors.Forbidden, match=r"host\.example:443 .*'deny \*\.example'"):
        ask(ExitGroup([exit_], Rules.parse(["deny *.example", "allow all"])))
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
    # slow on purpose: what is compared is the time that a connection takes
    slow, fast = Fake("slow", lambda: gevent.sleep(0.3)), Fake("fast")
    rotating = ways(slow, fast, policy=make_policy("fastest", Random(1)))
    used = [ask(rotating).exit for _ in range(30)]
    assert Counter(used) == {"slow": 1, "fast": 29}


def test_a_failure_is_not_fast() -> None:
    dead, alive = Fake("dead", FAILED), Fake("alive")
    rotating = ways(dead, alive, policy=make_policy("fastest", Random(1)))
    assert {ask(rotating).exit for _ in range(30)} == {"alive"}
    assert dead.asked <= 1


def test_a_failure_that_is_not_the_exits_leaves_it_as_fast_as_it_was() -> None:
    vague = Fake("vague")
    rotating = ways(vague, policy=make_policy("fastest", Random(1)))
    ask(rotating)
    (member,) = rotating.roster
    before = member.connect_time.at(0.0)
    vague.does = errors.ExitDoubtful("503")
    for number in range(30):
        with pytest.raises(errors.ExitDoubtful):
            ask(rotating, f"{number}.example")
    assert member.connect_time.at(0.0) == before


def test_least_recent_goes_by_host() -> None:
    rotating = ways(*fakes(4), policy=make_policy("least_recent", Random(1)))
    seen: dict[str, set[object]] = {"a.example": set(), "b.example": set()}
    for _ in range(4):  # round robin would give each host the same two again
        for host, exits in seen.items():
            exits.add(ask(rotating, host).exit)
    assert [len(exits) for exits in seen.values()] == [4, 4]


@pytest.mark.parametrize("name", POLICIES)
def test_the_policy_that_is_named_is_the_one_that_chooses(name: str) -> None:
    assert ways(*fakes(2), policy=make_policy(name, Random(1))).roster.policy_word == name


def test_what_people_write_reaches_the_policy_and_the_bounds() -> None:
    rotating = make_exit_group(
        [{"url": "direct", "weight": 3}, "socks5://10.0.0.7?max_connections=5"],
        rotate="weighted",
    )
    assert rotating.roster.policy_word == "weighted"
    assert [each.weight for each in rotating.roster] == [3, 1]
    assert [each.max_connections for each in rotating.roster] == [None, 5]
    with pytest.raises(errors.ConfigError, match="not a policy"):
        make_exit_group(["direct"], rotate="rotund")


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
def test_a_failure_of_the_destination_is_told_when_another_exit_has_confirmed_it(
    failure: type[errors.ConnectFailed],
) -> None:
    exits = [Fake(name) for name in "abcd"]
    rotating = ways(*exits)
    for _ in exits:
        ask(rotating)
    for each in exits:
        each.does = failure("no")
    labels, error = tried(rotating)
    assert labels == ["a", "b"]
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


def test_another_exit_may_be_tried_while_there_is_one_and_tries_are_left() -> None:
    request = Request(Command.CONNECT, DEST)
    three = ways(*(Offer(Fake(name), name=name) for name in "abc"), tries=2)
    assert three.may_try_again(request, ["a"])
    assert not three.may_try_again(request, ["a", "b"])
    assert not ways(Offer(Fake("a"), name="a"), tries=2).may_try_again(request, ["a"])


def test_a_request_of_a_session_is_not_tried_again_by_another_exit() -> None:
    of_session = Request(Command.CONNECT, DEST, selector=ExitSelector(session="s"))
    exits = [Offer(Fake(name), name=name) for name in "abc"]
    assert not ways(*exits).may_try_again(of_session, ["a"])


# --- who owns a connection that was made ---------------------------------------------------------


def test_a_block_that_raises_aborts_the_stream_and_releases_the_exit() -> None:
    rotating = ways(Offer(Fake("a"), max_connections=1))
    stream = Aborted()
    with pytest.raises(KeyError), ask(rotating) as outbound:
        outbound.stream = cast(Stream, stream)
        raise KeyError
    assert stream.times == 1, "the stream as its owner has wrapped it"
    assert ask(rotating).exit == "a"


def test_a_block_that_ends_leaves_stream_and_exit_to_the_owner() -> None:
    rotating = ways(Offer(Fake("a"), max_connections=1))
    stream = Aborted()
    with ask(rotating) as outbound:
        outbound.stream = cast(Stream, stream)
    assert stream.times == 0
    assert type(tried(rotating)[1]) is errors.LimitReached


def test_a_second_release_does_nothing() -> None:
    rotating = ways(Offer(Fake("a"), max_connections=2))
    outbound = ask(rotating)
    ask(rotating)
    outbound.release(3, 4)
    outbound.release(3, 4)
    (member,) = rotating.roster
    assert (member.open, member.counts.up, member.counts.down) == (1, 3, 4)


@pytest.mark.parametrize(("up", "doubted"), [(0, False), (1, True)])
def test_an_exit_through_which_bytes_went_and_none_came_is_doubted(up: int, doubted: bool) -> None:
    rotating = ways(*fakes(2))
    way = rotating.connect(Request(Command.CONNECT, DEST), lambda _: None)
    way.release(up, 0)
    assert rotating.evidence.has_doubts(way.member) == doubted


def test_the_repr_of_an_outbound_names_its_exit_without_secrets() -> None:
    exit_ = Fake("socks5://me:***@10.0.0.7:1080")
    outbound = ask(ways(Offer(exit_, name="berlin")))
    assert repr(outbound) == (
        "<Outbound bound to 192.0.2.1:1234 by exit berlin (socks5://me:***@10.0.0.7:1080)>"
    )
    outbound.release()
    assert repr(outbound) == "<Outbound released by exit berlin (socks5://me:***@10.0.0.7:1080)>"


def test_no_repr_of_an_exit_group_has_a_secret() -> None:
    rotating = make_exit_group(["socks5://me:hunter2@10.0.0.7:1080?name=berlin"])
    (member,) = rotating.roster
    assert repr(rotating) == "<ExitGroup exits=1 policy=round_robin inbounds=0>"
    assert repr(rotating.roster) == "<Roster exits=1>"
    assert repr(member) == "<Member berlin (socks5://me:***@10.0.0.7:1080) open=0 in_flight=0>"
    assert repr(rotating.sessions) == "<Sessions remembered=0>"


class Aborted:
    """A stream that counts how often it is aborted."""

    def __init__(self) -> None:
        self.times = 0

    def abort(self) -> None:
        self.times += 1


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
    small = Fake("small")

    def fail_after_another_request() -> None:
        first.does = None
        ask(rotating)  # by the other exit, whose turn it is, and which is full by that
        raise FAILED

    first = Fake("first", fail_after_another_request)
    rotating = ways(first, Offer(small, max_connections=1))
    labels, error = tried(rotating)
    assert labels == ["first"]
    assert error is FAILED


# --- with listeners and real proxies --------------------------------------------------------------


def rotating_inbound(*urls: str, observer: Seen, **terms: Any) -> LocalServer:
    deps = ExitDeps(ALLOW_ALL)
    exits = [Offer(make_exit(ExitSpec.parse(url), deps), **terms) for url in urls]
    return LocalServer(("127.0.0.1", 0), ExitGroup(exits, ALLOW_ALL, timeout=5), observer=observer)


def test_a_client_notices_nothing_of_a_dead_proxy(echo_server: Address) -> None:
    seen = Seen()
    with microsocks() as alive, stage(lambda stream: None) as hangs_up:
        dead = f"socks5://127.0.0.1:{free_port()}"
        works = f"socks5://{alive}"
        inbound = rotating_inbound(dead, f"http://{hangs_up}", works, observer=seen)
        inbound.start()
        try:
            for _ in range(3):
                with through(inbound.bound, echo_server) as client:
                    client.sendall(b"hello")
                    assert client.recv(5) == b"hello"
                assert seen.next().exit == works
        finally:
            inbound.stop(0)


def test_a_client_notices_little_of_a_silent_proxy(echo_server: Address) -> None:
    with stage(hang) as silent:
        deps = ExitDeps(ALLOW_ALL)
        exits = [make_exit(ExitSpec.parse(url), deps) for url in (f"http://{silent}", "direct")]
        inbound = LocalServer(("127.0.0.1", 0), ExitGroup(exits, ALLOW_ALL, timeout=0.4))
        inbound.start()
        try:
            assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
        finally:
            inbound.stop(0)


def test_each_end_of_a_connection_makes_room_for_the_next(echo_server: Address) -> None:
    """A clean end, a reset, a refusal, and no room."""
    seen = Seen()
    inbound = rotating_inbound("direct", observer=seen, max_connections=1)
    inbound.start()
    try:
        assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
        assert seen.next().outcome == "ok"
        with through(inbound.bound, echo_server) as client:
            client.sendall(b"x")
        assert seen.next().outcome == "client_reset"
        with pytest.raises(Refused, match="5"):
            through(inbound.bound, Address("127.0.0.1", free_port()))
        assert seen.next().outcome == "refused"
        with through(inbound.bound, echo_server):
            with pytest.raises(Refused, match="1"):
                through(inbound.bound, echo_server)
            assert seen.next().outcome == "limit"
        seen.next()
        assert ask_echo(inbound.bound, echo_server, b"hello") == b"hello"
    finally:
        inbound.stop(0)


def test_a_inbound_that_stops_leaves_no_connection_counted(echo_server: Address) -> None:
    exit_group = ExitGroup(
        [Offer(make_exit(ExitSpec.parse("direct"), ExitDeps(ALLOW_ALL)))], ALLOW_ALL
    )
    inbound = LocalServer(("127.0.0.1", 0), exit_group)
    inbound.start()
    clients = [through(inbound.bound, echo_server) for _ in range(3)]
    assert next(iter(exit_group.roster)).open == 3
    inbound.stop(0)
    assert next(iter(exit_group.roster)).open == 0
    for client in clients:
        client.close()


def test_rules_are_read_once_for_all_who_ask_for_them() -> None:
    lines = ["deny private", "allow all"]
    assert make_rules(lines) is make_rules(tuple(lines))
    assert make_rules(lines) == Rules.parse(lines)
    assert make_rules(None) is Rules.default()
