"""What a request costs among many exits: as many calls as among ten, whatever it asks for; and
what an exit takes in memory.

``python -m bench.choice --instructions`` counts the same in instructions, with 100,000 exits, and
``python -m bench.loading`` what it takes to load these.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from itertools import product
from types import FrameType

import pytest

from bench.choice import SELECTORS, SESSIONS, Load, eject_half, make_group
from bench.loading import load as load_list
from bench.loading import made_list
from gsocks.rotation.policy import POLICIES

#: so many that a country has 60 exits, and a tag of a country 3
MANY = 6000

pytestmark = pytest.mark.usefixtures("never_hangs")


def calls(work: Callable[[], None]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def note(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # what is freed meanwhile would call
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_makes_no_more_calls_among_6000_exits_than_among_10(policy: str) -> None:
    few, many = make_group(policy, 10), make_group(policy, MANY)
    eject_half(many)
    costly = []
    for selector, session in product(SELECTORS, SESSIONS):
        if (selector, session) == ("both", "dead site"):
            continue  # where one of the three is ejected, requests have fewer exits to try
        loads = [Load(group, SELECTORS[selector], session) for group in (few, many)]
        for load in loads:  # the first requests make the views
            load.whole()
        counts = [calls(load.whole) for load in loads]
        if counts[1] > 1.1 * counts[0]:
            costly.append((selector, session, counts[1] / counts[0]))
    assert costly == []


def test_an_exit_takes_no_more_than_two_kibibytes() -> None:
    """A quarter less among 100,000, and more behind each step of a dictionary's size."""
    exits = 10_000
    raw = made_list(exits, credentials=False)
    load_list(raw)  # what is imported and cached at first is no exit's
    gc.collect()
    tracemalloc.start()
    try:
        group, found = load_list(raw)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(group.roster) == len(found.exits) == exits
    assert size < 2048 * exits
