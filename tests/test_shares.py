"""What one user may use is bounded, whichever door of a section it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest
from engine import eventually
from gevent.event import Event
from stream_contract import tcp_pair

from gsocks.address import Address
from gsocks.bandwidth import LimitedStream
from gsocks.errors import LimitReached
from gsocks.limits import Limits
from gsocks.request import Command, Request
from gsocks.shares import Shares
from gsocks.stream import SocketStream
from gsocks.ways_out import Way

pytestmark = pytest.mark.usefixtures("never_hangs")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def by(user: str | None, command: Command = Command.CONNECT) -> Request:
    return Request(command, Address("192.0.2.1", 1), user)


class Ways:
    """Ways to nowhere, and how many of them were released."""

    def __init__(self) -> None:
        self.released = 0
        self._sockets: list = []

    def connect(self) -> Way:
        near, far = tcp_pair()
        self._sockets += [near, far]
        return Way(SocketStream(near), Address("192.0.2.1", 1), "direct", self._release)

    def _release(self) -> None:
        self.released += 1

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def ways() -> Iterator[Ways]:
    ways = Ways()
    yield ways
    ways.close()


# --- connections ------------------------------------------------------------------------------


def test_a_user_has_no_more_connections_at_a_time_than_its_limit(ways: Ways) -> None:
    shares = Shares(Limits(per_user=2))
    first = shares.find_way(by("alice"), ways.connect)
    shares.find_way(by("alice"), ways.connect)
    with pytest.raises(LimitReached, match="'alice' has 2 connections open already"):
        shares.find_way(by("alice"), ways.connect)
    shares.find_way(by("bob"), ways.connect)
    first.release()
    assert ways.released == 1
    shares.find_way(by("alice"), ways.connect)


def test_a_request_counts_from_its_beginning(ways: Ways) -> None:
    shares = Shares(Limits(per_user=1))
    connected = Event()

    def connect() -> Way:
        connected.wait()
        return ways.connect()

    slow = gevent.spawn(shares.find_way, by("alice"), connect)
    gevent.idle()
    with pytest.raises(LimitReached):
        shares.find_way(by("alice"), ways.connect)
    connected.set()
    slow.get().release()
    shares.find_way(by("alice"), ways.connect)


@pytest.mark.parametrize("failure", [LimitReached("full"), gevent.GreenletExit(), KeyError()])
def test_a_request_that_fails_counts_no_more(ways: Ways, failure: BaseException) -> None:
    shares = Shares(Limits(per_user=1))

    def fail() -> Way:
        raise failure

    with pytest.raises(type(failure)):
        shares.find_way(by("alice"), fail)
    shares.find_way(by("alice"), ways.connect).release()
    assert not shares._open, "users that have gone are forgotten"


def test_whoever_has_no_name_is_not_counted(ways: Ways) -> None:
    shares = Shares(Limits(per_user=1, bandwidth_per_user=1e6))
    for _ in range(5):
        assert type(shares.find_way(by(None), ways.connect).stream) is SocketStream


def test_without_limits_a_way_is_as_it_was_found(ways: Ways) -> None:
    way = ways.connect()
    assert Shares(Limits()).find_way(by("alice"), lambda: way) is way


# --- bandwidth --------------------------------------------------------------------------------


def buckets(way: Way) -> LimitedStream:
    assert isinstance(way.stream, LimitedStream)
    return way.stream


def test_each_connection_has_its_own_bandwidth_in_each_direction(ways: Ways) -> None:
    shares = Shares(Limits(bandwidth_per_connection=1e6))
    streams = [
        buckets(shares.find_way(by(user), ways.connect)) for user in ("alice", "alice", None)
    ]
    found = [bucket for each in streams for bucket in (*each._reads, *each._writes)]
    assert len({id(bucket) for bucket in found}) == len(found) == 6
    assert {bucket.rate for bucket in found} == {1e6}


def test_the_connections_of_one_user_share_a_bandwidth_in_each_direction(ways: Ways) -> None:
    shares = Shares(Limits(bandwidth_per_user=2e6))
    first, second, other = (
        buckets(shares.find_way(by(user), ways.connect)) for user in ("alice", "alice", "bob")
    )
    assert [first._reads, first._writes] == [second._reads, second._writes]
    assert first._reads != first._writes
    assert {*first._reads, *first._writes}.isdisjoint({*other._reads, *other._writes})
    assert first._reads[0].rate == 2e6


def test_both_bandwidths_count(ways: Ways) -> None:
    shares = Shares(Limits(bandwidth_per_connection=1e6, bandwidth_per_user=2e6))
    stream = buckets(shares.find_way(by("alice"), ways.connect))
    assert [bucket.rate for bucket in stream._reads] == [1e6, 2e6]
    assert [bucket.rate for bucket in stream._writes] == [1e6, 2e6]


def test_who_comes_again_finds_the_bucket_as_it_was_left(ways: Ways) -> None:
    clock = Clock()
    shares = Shares(Limits(bandwidth_per_user=1000), clock)
    way = shares.find_way(by("alice"), ways.connect)
    assert buckets(way)._reads[0].take(1500) == pytest.approx(0.5)
    way.release()
    again = buckets(shares.find_way(by("alice"), ways.connect))
    assert again._reads[0].take(100) == pytest.approx(0.6)


def test_the_buckets_kept_are_bounded_and_those_of_the_longest_away_go(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Shares.MAX_USERS == 10_000
    monkeypatch.setattr(Shares, "MAX_USERS", 2)
    shares = Shares(Limits(bandwidth_per_user=1000), Clock())

    def bucket(user: str) -> object:
        return buckets(shares.find_way(by(user), ways.connect))._reads[0]

    alice, bob = bucket("alice"), bucket("bob")
    assert bucket("alice") is alice
    bucket("carol")
    assert bucket("alice") is alice
    assert bucket("bob") is not bob


def test_a_limited_stream_is_released_with_its_connection(ways: Ways) -> None:
    shares = Shares(Limits(bandwidth_per_connection=1e6, per_user=1))
    way = shares.find_way(by("alice"), ways.connect)
    way.stream.abort()
    way.release()
    sock: Callable[[], int] = ways._sockets[0].fileno
    eventually(lambda: sock() == -1)
    assert ways.released == 1


def test_a_datagram_is_not_divided_however_slow_it_is(ways: Ways) -> None:
    shares = Shares(Limits(bandwidth_per_connection=1))
    for command, divided in ((Command.CONNECT, True), (Command.UDP_ASSOCIATE, False)):
        stream = buckets(shares.find_way(by("alice", command), ways.connect))
        assert (stream._step < 65536) is divided
