"""Small messages: how long one takes there and back."""

from __future__ import annotations

import socket
import time

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure, everybody
from bench.load.conversation import ask, hold, receive_exactly
from bench.load.target import ECHO
from bench.scale import Scale
from bench.stage import Stage, stage

MESSAGE = ECHO * 64
_WARM_UP = 100


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    with stage(contender) as scene:
        times = sorted(echoes(scene, scale.echoes))
    return {"p50": times[len(times) // 2] / 1000, "p99": times[len(times) * 99 // 100] / 1000}


def echoes(scene: Stage, count: int) -> list[int]:
    """Nanoseconds of each message on one connection, after some that don't count."""
    with scene.route.connect() as sock:
        hold(sock, ask(scene.route, MESSAGE, len(MESSAGE)))
        return [there_and_back(sock) for _ in range(_WARM_UP + count)][_WARM_UP:]


def there_and_back(sock: socket.socket) -> int:
    """Nanoseconds."""
    started = time.perf_counter_ns()
    sock.send(MESSAGE)
    receive_exactly(sock, len(MESSAGE))
    return time.perf_counter_ns() - started


ECHO_FIGURE = Figure(
    name="echo",
    title="Small messages",
    about="One connection on which 64 bytes go to the target and back, one after the other.",
    measures=(Measure("p50", "us, median"), Measure("p99", "us, p99")),
    goals=(
        Goal("gsocks-secretbox", "p50", "ss-libev-chacha20", at_most=1.1),
        Goal("gsocks-secretbox", "p99", "ss-libev-chacha20", at_most=1.5),
    ),
    sample=sample,
    concerns=everybody,
)
