"""The README's rotating proxy on a list that is mostly dead: bench/recipe.py in small.

Successes are counted, and no time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import gevent
import pytest

from bench.recipe import Figures, a_round, say_nothing, serve
from gsocks.local import LocalServer
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.group import ExitGroup
from gsocks.settings import Timeouts
from tests.support.engine import eventually, running_inbound, serving
from tests.support.ports import free_port
from tests.support.proxies import unreachable

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

LIVE, SILENT, UNREACHABLE, REFUSING = 5, 24, 6, 15


@contextmanager
def recipe() -> Iterator[tuple[LocalServer, ExitGroup]]:
    """A listener in front of a list, of which a tenth lives."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(serving(serve)) for _ in range(LIVE)]
        proxies += [stack.enter_context(serving(say_nothing)) for _ in range(SILENT)]
        proxies += [stack.enter_context(unreachable()) for _ in range(UNREACHABLE)]
        urls = [f"http://{proxy}" for proxy in proxies]
        urls += [f"http://127.0.0.1:{free_port()}" for _ in range(REFUSING)]
        group = make_exit_group(
            urls, rotate="fastest", timeouts=Timeouts(connect=2.0, exit=0.6), listed=True
        )
        inbound = LocalServer(("127.0.0.1", 0), group)
        stack.enter_context(running_inbound(inbound))
        yield inbound, group


def served(inbound: LocalServer, count: int, *, sessions: bool) -> int:
    results = a_round(inbound.bound.port, count, 10, sessions=sessions)
    return Figures.of(results).served


@pytest.mark.parametrize("sessions", [False, True], ids=["no sessions", "sessions"])
def test_a_list_that_is_mostly_dead_serves_every_request_once_it_has_checked_itself(
    sessions: bool,
) -> None:
    with recipe() as (inbound, group):
        early = gevent.spawn(served, inbound, 30, sessions=sessions)
        eventually(lambda: _down(group) == SILENT + UNREACHABLE + REFUSING)
        assert early.get() >= 25  # as at least 50 of 60 in the first round
        for _ in range(2):
            assert served(inbound, 60, sessions=sessions) == 60
        assert _down(group) == SILENT + UNREACHABLE + REFUSING


def _down(group: ExitGroup) -> int:
    now = time.monotonic()
    return sum(member.health.state(now) == "down" for member in group.roster)
