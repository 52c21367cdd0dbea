"""How tests wait: for an event or a condition, with a bound that only a failing test reaches."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

#: seconds; generous, as the machine may be busy with something else; the mutation tests, in which
#: many a test hangs, set another bound
TOO_LONG = int(os.environ.get("TESTS_TOO_LONG", "90"))


def eventually(
    condition: Callable[[], object],
    within: float = TOO_LONG / 2,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Poll for what reports no event: a count, an entry in /proc, another process's state."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        sleep(0.002)


def cpu_seconds(work: Callable[[], object]) -> float:
    """The CPU time of this process that ``work`` takes: to be compared with another one's only.

    Without the garbage collector's, which looks through the objects of all tests before this one.
    """
    gc.disable()
    try:
        begun = time.process_time()
        work()
        return time.process_time() - begun
    finally:
        gc.enable()
