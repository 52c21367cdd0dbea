"""Bounded memory: what clients cost that ask for much and then stop reading."""

from __future__ import annotations

import socket
from functools import partial

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure, every_proxy
from bench.load.conversation import ask
from bench.load.crowd import talk
from bench.load.target import SOURCE
from bench.scale import Scale
from bench.stage import stage

KIB = 1024
_AT_ONCE = 32


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    socks: list[socket.socket] = []
    with stage(contender) as scene:
        scene.settle()
        before = scene.memory()
        try:
            # one byte of the answer is read: it has begun
            talk(
                scene.route,
                partial(ask, message=SOURCE, answer_size=1),
                scale.stalled,
                at_once=_AT_ONCE,
                keep=socks,
            )
            scene.settle(quiet=0.3)
            each = (scene.memory() - before) / scale.stalled
        finally:
            for sock in socks:
                sock.close()
    return {"each": each / KIB}


STALLED = Figure(
    name="stalled",
    title="Bounded memory",
    about=(
        "Clients that ask for more than 100 MB, read one byte and stop; memory of the contender"
        " for each (PSS), once nothing moves any more."
    ),
    measures=(Measure("each", "KiB each", decimals=1),),
    goals=tuple(
        Goal(name, "each", at_most=256)
        for name in ("gsocks-secretbox", "gsocks-aegis256", "gsocks-plain")
    ),
    sample=sample,
    concerns=every_proxy,
)
