"""Growth: whether a connection or a GB costs more when many others are open."""

from __future__ import annotations

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure
from bench.figures.bulk import download
from bench.figures.connections import connection_cost
from bench.load.open_connections import open_connections
from bench.scale import Scale
from bench.stage import Stage, stage


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    few, many = scale.others
    with stage(contender) as scene:
        with open_connections(scene.route, few):
            connection, gigabyte = _costs(scene, scale)
        with open_connections(scene.route, many - few):
            later, gigabyte_later = _costs(scene, scale)
    return {
        "connection": later / connection,
        "gigabyte": gigabyte_later / gigabyte,
    }


def _costs(scene: Stage, scale: Scale) -> tuple[float, float]:
    """CPU time for a connection and for a GB."""
    scene.settle()
    return connection_cost(scene, scale.connections)[0], download(scene, 1, scale)[1]


_CONCERNED = ("gsocks-secretbox", "gsocks-aegis256", "gsocks-plain", "ss-libev-chacha20")

GROWTH = Figure(
    name="growth",
    title="Growth",
    about=(
        "The CPU time of a new connection, and of a GB on one stream, with thousands of others"
        " open, divided by the same with ten others open, in the same processes."
    ),
    measures=(
        Measure("connection", "x for a connection", decimals=2, compared=False),
        Measure("gigabyte", "x for a GB", decimals=2, compared=False),
    ),
    goals=tuple(
        Goal(name, measure, at_most=1.2)
        for name in ("gsocks-secretbox", "gsocks-plain")
        for measure in ("connection", "gigabyte")
    ),
    sample=sample,
    concerns=lambda contender: contender.name in _CONCERNED,
)
