"""Bulk: how fast bytes go through, and what each GB costs."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from bench.contenders import Contender
from bench.figures.base import Figure, Goal, Measure, everybody
from bench.load.bulk import bulk_file, receive_for, send_for
from bench.load.conversation import ask, hold
from bench.load.route import Route
from bench.load.target import SINK, SOURCE
from bench.processes import Failed
from bench.scale import Scale
from bench.stage import Stage, stage

STREAMS = (1, 16)


def sample(contender: Contender, scale: Scale) -> dict[str, float]:
    values: dict[str, float] = {}
    with stage(contender) as scene:
        for streams in STREAMS:
            rate, cost = download(scene, streams, scale)
            values |= {f"down_{streams}_rate": rate, f"down_{streams}_cpu": cost}
            rate, cost = upload(scene, streams, scale)
            values |= {f"up_{streams}_rate": rate, f"up_{streams}_cpu": cost}
    return values


def download(scene: Stage, streams: int, scale: Scale) -> tuple[float, float]:
    """MB/s from the target to the client, and the contender's CPU seconds for each GB."""
    with streams_of(scene.route, streams, SOURCE) as socks:
        receive_for(socks, scale.warm_up)
        cpu, started = scene.cpu(), time.perf_counter()
        count = receive_for(socks, scale.window)
        return _rate_and_cost(count, time.perf_counter() - started, scene.cpu() - cpu)


def upload(scene: Stage, streams: int, scale: Scale) -> tuple[float, float]:
    """The same from the client to the target, counted where it arrives."""
    file = bulk_file()
    with streams_of(scene.route, streams, SINK) as socks, open(file, "rb"):
        send_for(socks, scale.warm_up, file)
        cpu, started, before = scene.cpu(), time.perf_counter(), scene.sunk()
        send_for(socks, scale.window, file)
        count, seconds = scene.sunk() - before, time.perf_counter() - started
        return _rate_and_cost(count, seconds, scene.cpu() - cpu)


def _rate_and_cost(count: int, seconds: float, cpu: float) -> tuple[float, float]:
    if not count:
        raise Failed("moved nothing in a bulk transfer")
    return count / seconds / 1e6, cpu / (count / 1e9)


@contextlib.contextmanager
def streams_of(route: Route, count: int, role: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(route.connect()) for _ in range(count)]
        for sock in socks:
            # a sink answers nothing, and what a source sends is not read yet
            hold(sock, ask(route, role, 0))
        yield socks


def _measures() -> Iterator[Measure]:
    for streams in STREAMS:
        for direction, words in (("down", "to the client"), ("up", "from the client")):
            group = f"{streams} stream{'s' * (streams > 1)} {words}"
            yield Measure(f"{direction}_{streams}_rate", "MB/s", more_is_better=True, group=group)
            yield Measure(f"{direction}_{streams}_cpu", "CPU s/GB", group=group, decimals=2)


def _goals() -> Iterator[Goal]:
    """The same for one stream and for many, in each direction."""
    for way in (f"{direction}_{streams}" for streams in STREAMS for direction in ("down", "up")):
        for name, versus, rate, cpu in (
            ("gsocks-secretbox", "ss-libev-chacha20", 1.2, 0.8),
            ("gsocks-secretbox", "ss-rust-chacha20", 1.0, None),
            ("gsocks-aegis256", "ss-libev-chacha20", 2.0, 0.5),
            ("gsocks-aegis256", "ss-libev-aes256", 2.0, 0.5),
            ("gsocks-aegis256", "ss-rust-aes256", 1.0, None),
            ("gsocks-aegis256", "ss-rust-2022-aes256", 1.0, 1.0),
            ("gsocks-ss-chacha20", "ss-libev-chacha20", 1.0, None),
            ("gsocks-ss-aes256", "ss-libev-aes256", 1.0, None),
            ("gsocks-plain", "dante", 1.1, 0.4),
            ("gsocks-plain", "microsocks", 1.1, None),
        ):
            yield Goal(name, f"{way}_rate", versus, at_least=rate)
            if cpu is not None:
                yield Goal(name, f"{way}_cpu", versus, at_most=cpu)


BULK = Figure(
    name="bulk",
    title="Bulk",
    about=(
        "Streams that never end run for a moment to get going and are then watched for a while:"
        " bytes where they arrive, and the CPU time of all processes of the contender."
    ),
    measures=tuple(_measures()),
    goals=tuple(_goals()),
    sample=sample,
    concerns=everybody,
)
