"""A tunnel's keys serve for so long, and for so many bytes; each tunnel draws its own bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import Random

import pytest

from gsocks import ageing
from gsocks.ageing import SHARES, draw_bounds, is_worn
from gsocks.crypto import Cipher
from gsocks.net.tcp_info import BYTES_ACKED, BYTES_RECEIVED, Field, read_tcp_info
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import MAX_BODY, Frame
from gsocks.tunnel.server import ServerTunnel
from tests.support.engine import eventually
from tests.support.stream_contract import tcp_pair
from tests.support.tunnel_parts import our_client, tunnels

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

MIB = 1024 * 1024


class Drawn(Random):
    """Draws one end of each range after the other: the lower, the upper, ..."""

    def __new__(cls, *_: int) -> Drawn:
        return super().__new__(cls)  # that of Python 3.10 takes a seed only

    def __init__(self, *ends: int) -> None:
        super().__init__()
        self._ends = list(ends)

    def uniform(self, a: float, b: float) -> float:
        return (a, b)[self._ends.pop(0)]


@pytest.fixture(params=list(Cipher))
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[ClientTunnel, ServerTunnel]]:
    with tunnels(request.param) as both:
        yield both


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int] | None]:
    """What the kernel has said."""
    answers: list[list[int] | None] = []

    def note(fd: int, *fields: Field) -> list[int] | None:
        answers.append(read_tcp_info(fd, *fields))
        return answers[-1]

    monkeypatch.setattr(ageing, "read_tcp_info", note)
    return answers


def carry(pair: tuple[ClientTunnel, ServerTunnel], count: int, size: int) -> None:
    """So many frames each way, of so many bytes."""
    for _ in range(count):
        for near, far in (pair, pair[::-1]):
            near.send(Frame.PAD, bytes(size))
            near.send(Frame.DATA, b"behind")
            assert far.receive() == (Frame.DATA, b"behind")


def test_a_bound_is_drawn_between_three_quarters_of_what_is_set_and_all_of_it() -> None:
    assert SHARES == (0.75, 1.0)
    with our_client() as (tunnel, _):
        for end, share in ((0, 0.75), (1, 1.0)):
            before = time.monotonic()
            draw_bounds(tunnel, 3600.0, 64 * MIB, Drawn(end, 1 - end))
            assert before <= tunnel.expires_at - 3600 * share <= time.monotonic()
            assert tunnel.max_volume == 64 * MIB * (1.75 - share)


def test_a_tunnel_without_bounds_serves_for_ever() -> None:
    with our_client() as (tunnel, _):
        tunnel.send(Frame.PAD)
        assert not is_worn(tunnel)


def test_a_tunnel_is_worn_once_it_comes_back_at_its_age() -> None:
    with our_client() as (tunnel, _):
        draw_bounds(tunnel, 3600.0, MIB, Random())
        assert not is_worn(tunnel)
        tunnel.expires_at = time.monotonic()
        assert not is_worn(tunnel)
        tunnel.used()
        assert is_worn(tunnel)


def test_boxes_that_can_not_be_too_much_cost_no_question(
    pair: tuple[ClientTunnel, ServerTunnel], asked: list[list[int] | None]
) -> None:
    near, _ = pair
    draw_bounds(near, 3600.0, 16 * MAX_BODY, Drawn(1, 1))
    carry(pair, 2, 10)
    assert near.boxes == 16
    assert not is_worn(near)
    assert not asked


def test_many_small_frames_are_no_volume_and_the_kernel_is_asked_once(
    pair: tuple[ClientTunnel, ServerTunnel], asked: list[list[int] | None]
) -> None:
    near, _ = pair
    draw_bounds(near, 3600.0, 16 * MAX_BODY, Drawn(1, 1))
    carry(pair, 10, 10)
    assert not is_worn(near)
    assert not is_worn(near)
    (answer,) = asked
    assert answer is not None
    assert sum(answer) < MAX_BODY
    carry(pair, 1, 10)
    assert not is_worn(near)
    assert len(asked) == 1, "the boxes since then can't be too much"


def test_a_volume_is_that_of_both_directions(
    pair: tuple[ClientTunnel, ServerTunnel], asked: list[list[int] | None]
) -> None:
    near, _ = pair
    draw_bounds(near, 3600.0, MIB, Drawn(1, 1))
    carry(pair, 4, MAX_BODY)  # half a MiB
    assert not is_worn(near)
    carry(pair, 5, MAX_BODY)
    assert is_worn(near)
    assert len(asked) == 2


def test_where_the_kernel_can_not_tell_the_boxes_count(asked: list[list[int] | None]) -> None:
    with our_client() as (tunnel, _):  # over a pair of sockets, as the tunnel of a chain
        draw_bounds(tunnel, 3600.0, MIB, Drawn(1, 1))
        for _ in range(16):
            tunnel.send(Frame.FIN)
        assert not is_worn(tunnel)
        tunnel.send(Frame.FIN)
        assert is_worn(tunnel)
        assert asked == [None]


def test_the_kernel_tells_what_was_sent_and_received() -> None:
    near, far = tcp_pair()
    with near, far:
        near.sendall(bytes(1000))
        far.sendall(bytes(500))
        assert len(near.recv(1000)) == 500

        def told() -> list[int] | None:
            return read_tcp_info(near.fileno(), BYTES_RECEIVED, BYTES_ACKED)

        eventually(lambda: told() in ([500, 1000], [500, 1001]))  # with a SYN of its own


def test_a_field_that_the_kernel_does_not_have_is_not_told() -> None:
    near, far = tcp_pair()
    with near, far:
        assert read_tcp_info(near.fileno(), Field(4000, 8)) is None
