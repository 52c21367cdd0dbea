"""New connections: the cost of a short one."""

from __future__ import annotations

from functools import partial

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure, everybody
from bench.load.conversation import ask
from bench.load.crowd import talk
from bench.load.target import ECHO
from bench.scale import Scale
from bench.stage import Stage, stage

AT_ONCE = 32
_MESSAGE = ECHO * 100
#: connections before the ones that count: pools fill, lazy things get made
_WARM_UP = 64


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    with stage(contender) as scene:
        cost, per_second = connection_cost(scene, scale.connections)
        return {"cpu": cost, "rate": per_second}


def connection_cost(scene: Stage, count: int) -> tuple[float, float]:
    """The contender's CPU microseconds for each connection, and connections for each second."""
    conversation = partial(ask, message=_MESSAGE, answer_size=len(_MESSAGE))
    talk(scene.route, conversation, _WARM_UP, at_once=AT_ONCE)
    before = scene.cpu_when_settled()
    seconds = talk(scene.route, conversation, count, at_once=AT_ONCE)
    # what is done after the last answer, to close and to clear up, belongs to the price
    return (scene.cpu_when_settled() - before) / count * 1e6, count / seconds


CONNECTIONS = Figure(
    name="connections",
    title="New connections",
    about=(
        f"{AT_ONCE} clients at once, each of which connects, sends 100 bytes, has them back and"
        " closes, over and over; the CPU time counts until the contender is quiet again."
    ),
    measures=(
        Measure("cpu", "CPU us each"),
        Measure("rate", "connections/s", more_is_better=True),
    ),
    goals=(
        Goal("gsocks-secretbox", "cpu", "ss-libev-chacha20", at_most=1.5),
        Goal("gsocks-secretbox", "cpu", "pproxy", at_most=0.33),
        Goal("gsocks-secretbox", "rate", "sing-box-2022", at_least=1.0),
        Goal("gsocks-plain", "cpu", "hev", at_most=1.5),
        Goal("gsocks-plain", "rate", "sing-box", at_least=1.0),
    ),
    sample=sample,
    concerns=everybody,
)
