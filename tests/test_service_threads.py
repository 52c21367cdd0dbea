"""A thread that reads a list takes the interpreter from the event loop for short times only."""

from __future__ import annotations

import sys

from gsocks.service.service import SWITCH_INTERVAL, share_interpreter
from gsocks.turns import LONGEST_TURN


def test_a_thread_gives_the_interpreter_back_within_a_turn_of_the_loop() -> None:
    before = sys.getswitchinterval()
    try:
        share_interpreter()
        assert sys.getswitchinterval() == SWITCH_INTERVAL < LONGEST_TURN
    finally:
        sys.setswitchinterval(before)
