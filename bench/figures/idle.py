"""Idle memory: what a connection costs that is open and silent."""

from __future__ import annotations

from functools import partial

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure, every_proxy
from bench.load.conversation import ask
from bench.load.crowd import talk
from bench.load.open_connections import open_connections
from bench.load.target import ECHO
from bench.scale import Scale
from bench.stage import Stage, stage

KIB = 1024
_MESSAGE = ECHO * 100
#: connections before the first look, so that what is made once is not counted as theirs
_WARM_UP = 64


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    with stage(contender) as scene:
        scene.settle()
        at_start = scene.largest_process()
        each = bytes_each(scene, scale.idle)
    return {"each": each / KIB, "start": at_start / KIB / KIB}


def bytes_each(scene: Stage, count: int) -> float:
    """Bytes of memory for each of ``count`` idle connections."""
    conversation = partial(ask, message=_MESSAGE, answer_size=len(_MESSAGE))
    talk(scene.route, conversation, _WARM_UP, at_once=_WARM_UP)
    scene.settle()
    before = scene.memory()
    with open_connections(scene.route, count):
        scene.settle()
        return (scene.memory() - before) / count


IDLE = Figure(
    name="idle",
    title="Idle memory",
    about=(
        "Memory of all processes of the contender with so many connections open, each of which"
        " has sent 100 bytes and had them back, less what it was before them (PSS, from"
        " /proc/PID/smaps_rollup); and the largest process just after the start (RSS). What the"
        " kernel keeps for sockets is not in it."
    ),
    measures=(
        Measure("each", "KiB each", decimals=1),
        Measure("start", "MiB at start", decimals=1, compared=False),
    ),
    goals=(
        Goal("gsocks-secretbox", "each", at_most=6),
        Goal("gsocks-secretbox", "each", "ss-libev-chacha20", at_most=0.3),
        Goal("gsocks-plain", "each", at_most=2.5),
        Goal("gsocks-secretbox", "start", at_most=40),
        Goal("gsocks-plain", "start", at_most=40),
    ),
    sample=sample,
    concerns=every_proxy,
)
