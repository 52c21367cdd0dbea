"""What one user may use is bounded, whichever listener of a section it comes to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gsocks.address import Address
from gsocks.errors import LimitReached
from gsocks.inbound.quota import UserQuota
from gsocks.net.bandwidth import LimitedStream
from gsocks.request import Command, Request
from gsocks.settings import Limits
from gsocks.stream import SocketStream, Stream
from tests.support.stream_contract import tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def by(user: str | None, command: Command = Command.CONNECT) -> Request:
    return Request(command, Address("192.0.2.1", 1), user)


@pytest.fixture
def stream() -> Iterator[SocketStream]:
    near, far = tcp_pair()
    yield SocketStream(near)
    near.close()
    far.close()


# --- connections ------------------------------------------------------------------------------


def test_a_user_has_no_more_connections_at_a_time_than_its_limit() -> None:
    quota = UserQuota(Limits(per_user=2))
    quota.acquire("alice")
    quota.acquire("alice")
    for _ in range(2):
        with pytest.raises(LimitReached, match="'alice' has 2 connections open already"):
            quota.acquire("alice")
    quota.acquire("bob")
    quota.release("alice")
    quota.acquire("alice")


def test_without_a_limit_a_user_has_any_number() -> None:
    quota = UserQuota(Limits())
    for _ in range(10_000):
        quota.acquire("alice")
    quota.release("alice")


def test_users_that_have_gone_are_forgotten() -> None:
    quota = UserQuota(Limits(per_user=2))
    quota.acquire("alice")
    quota.release("alice")
    assert not quota.users


# --- bandwidth --------------------------------------------------------------------------------


def test_without_limits_a_stream_is_as_it_was(stream: SocketStream) -> None:
    assert UserQuota(Limits()).limited(stream, by("alice")) is stream


def test_a_client_without_a_name_has_no_user_quota(stream: SocketStream) -> None:
    assert UserQuota(Limits(bandwidth_per_user=1e6)).limited(stream, by(None)) is stream


def buckets(stream: Stream) -> LimitedStream:
    assert isinstance(stream, LimitedStream)
    return stream


def test_each_connection_has_its_own_bandwidth_in_each_direction(stream: SocketStream) -> None:
    quota = UserQuota(Limits(bandwidth_per_connection=1e6))
    streams = [buckets(quota.limited(stream, by(user))) for user in ("alice", "alice", None)]
    found = [bucket for each in streams for bucket in (*each._reads, *each._writes)]
    assert len({id(bucket) for bucket in found}) == len(found) == 6
    assert {bucket.rate for bucket in found} == {1e6}


def test_the_connections_of_one_user_share_a_bandwidth_in_each_direction(
    stream: SocketStream,
) -> None:
    quota = UserQuota(Limits(bandwidth_per_user=2e6))
    first, second, other = (
        buckets(quota.limited(stream, by(user))) for user in ("alice", "alice", "bob")
    )
    assert [first._reads, first._writes] == [second._reads, second._writes]
    assert first._reads != first._writes
    assert {*first._reads, *first._writes}.isdisjoint({*other._reads, *other._writes})
    assert first._reads[0].rate == 2e6


def test_both_bandwidths_count(stream: SocketStream) -> None:
    quota = UserQuota(Limits(bandwidth_per_connection=1e6, bandwidth_per_user=2e6))
    both = buckets(quota.limited(stream, by("alice")))
    assert [bucket.rate for bucket in both._reads] == [1e6, 2e6]
    assert [bucket.rate for bucket in both._writes] == [1e6, 2e6]


def test_who_comes_again_finds_the_bucket_as_it_was_left(stream: SocketStream) -> None:
    clock = Clock()
    quota = UserQuota(Limits(bandwidth_per_user=1000), clock)
    first = buckets(quota.limited(stream, by("alice")))
    assert first._reads[0].take(1500) == pytest.approx(0.5)
    first.close()
    again = buckets(quota.limited(stream, by("alice")))
    assert again._reads[0].take(100) == pytest.approx(0.6)


def test_the_buckets_kept_are_bounded_and_those_of_the_longest_away_go(
    stream: SocketStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert UserQuota.MAX_USERS == 10_000
    monkeypatch.setattr(UserQuota, "MAX_USERS", 2)
    quota = UserQuota(Limits(bandwidth_per_user=1000), Clock())

    def bucket(user: str) -> object:
        return buckets(quota.limited(stream, by(user)))._reads[0]

    alice, bob = bucket("alice"), bucket("bob")
    assert bucket("alice") is alice
    bucket("carol")
    assert bucket("alice") is alice
    assert bucket("bob") is not bob


def test_a_datagram_is_not_divided_however_slow_it_is(stream: SocketStream) -> None:
    quota = UserQuota(Limits(bandwidth_per_connection=1))
    for command, divided in ((Command.CONNECT, True), (Command.UDP_ASSOCIATE, False)):
        found = buckets(quota.limited(stream, by("alice", command)))
        assert (found._step < 65536) is divided
