"""Time to first byte on a long link: how many round trips a request has to wait for."""

from __future__ import annotations

import statistics
import time

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure, every_pair
from bench.link import ROUND_TRIP
from bench.load.conversation import ask, hold
from bench.load.target import ECHO
from bench.scale import Scale
from bench.stage import Stage, stage

_MESSAGE = ECHO * 100
#: seconds after the start in which a contender may prepare, and between two requests
_PREPARE = 6 * ROUND_TRIP
_PAUSE = 2 * ROUND_TRIP


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    with stage(contender, far_away=True) as scene:
        time.sleep(_PREPARE)
        seconds = statistics.median(_first_byte(scene) for _ in range(scale.first_bytes))
    return {"trips": seconds / ROUND_TRIP}


def _first_byte(scene: Stage) -> float:
    """Seconds from the client's first move to the first byte of the target's answer."""
    started = time.perf_counter()
    with scene.route.connect() as sock:
        hold(sock, ask(scene.route, _MESSAGE, 1))
        seconds = time.perf_counter() - started
    time.sleep(_PAUSE)
    return seconds


FIRST_BYTE = Figure(
    name="first-byte",
    title="Time to first byte on a 100 ms link",
    about=(
        "A round trip of 100 ms between both ends (without a proxy: between client and target)."
        " The time from the client's connect to the first byte of the target's answer, in round"
        " trips."
    ),
    measures=(Measure("trips", "round trips", decimals=2, compared=False),),
    goals=(
        # the tenth is for the work at both ends, and for the clock of the link
        Goal("gsocks-fast-open", "trips", at_most=1.1),
        Goal("gsocks-secretbox", "trips", at_most=2.1),
    ),
    sample=sample,
    concerns=every_pair,
)
