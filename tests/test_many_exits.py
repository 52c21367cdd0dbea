"""What a request costs among many exits: as many calls as among ten, whatever it asks for.

``python -m bench.choice --instructions`` counts the same in instructions, with 100,000 exits.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from itertools import product
from types import FrameType

import pytest

from bench.choice import SELECTORS, SESSIONS, Load, eject_half, make_group
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
        loads = [Load(group, SELECTORS[selector], session) for group in (few, many)]
        for load in loads:  # the first requests make the views
            load.whole()
        counts = [min(calls(load.whole) for _ in range(2)) for load in loads]
        if counts[1] > 1.1 * counts[0]:
            costly.append((selector, session, counts[1] / counts[0]))
    assert costly == []
