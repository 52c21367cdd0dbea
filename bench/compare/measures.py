"""What is measured of two builds, in rounds with fresh processes of both.

Within a round both builds run at the same time, on one core, and are loaded in short turns,
A B B A A B B A: a machine whose speed drifts slows both alike, and a ratio is of two samples that
follow each other.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bench.compare.table import Row, Samples, no_samples
from bench.contenders.gsocks import Build, contenders_of
from bench.figures.bulk import download, upload
from bench.figures.connections import connection_cost
from bench.figures.echo import echoes
from bench.figures.idle import KIB, bytes_each
from bench.processes import Failed
from bench.progress import Steps
from bench.scale import FULL, Scale
from bench.stage import Stage, stage

COMPARE = FULL._replace(
    name="compare",
    rounds=5,
    window=0.25,
    warm_up=0.1,
    connections=200,
    idle=1500,
    echoes=600,
)
QUICK_COMPARE = COMPARE._replace(
    name="quick",
    rounds=2,
    idle=1000,
)

#: a number for each row's key
Sample = dict[str, float]


class Scenes(NamedTuple):
    """The processes of one build."""

    pair: Stage
    plain: Stage


@dataclass(frozen=True)
class Measurement:
    """One load, with the rows of the table that it yields."""

    title: str
    rows: tuple[Row, ...]
    #: raises Failed
    sample: Callable[[Scenes, Scale], Sample]
    #: samples of each build in a round
    turns: int = 4


def _idle(scenes: Scenes, scale: Scale) -> Sample:
    # with half as many a pair has more than as much memory to be measured
    return {
        "idle_pair": bytes_each(scenes.pair, scale.idle // 2) / KIB,
        "idle_plain": bytes_each(scenes.plain, scale.idle) / KIB,
    }


def _bulk(scenes: Scenes, scale: Scale) -> Sample:
    return {
        "down_pair": download(scenes.pair, 1, scale)[1],
        "up_pair": upload(scenes.pair, 1, scale)[1],
        "down_plain": download(scenes.plain, 1, scale)[1],
    }


def _connections(scenes: Scenes, scale: Scale) -> Sample:
    return {
        f"connection_{name}": connection_cost(scene, scale.connections)[0]
        for name, scene in scenes._asdict().items()
    }


def _echo(scenes: Scenes, scale: Scale) -> Sample:
    scene = scenes.pair
    before = scene.cpu_when_settled()
    times = echoes(scene, scale.echoes)
    cost = scene.cpu_when_settled() - before
    return {"echo_cpu": cost / scale.echoes * 1e6, "echo_p50": statistics.median(times) / 1e3}


MEASUREMENTS = (
    # first, in processes that have carried nothing else
    Measurement(
        "idle connections",
        (
            Row("idle_pair", "idle connection, pair", "KiB", 2),
            Row("idle_plain", "idle connection, plain", "KiB", 2),
        ),
        _idle,
        # a second one would meet a heap that the first has grown
        turns=1,
    ),
    Measurement(
        "new connections",
        (
            Row("connection_pair", "new connection, pair", "CPU us", 0),
            Row("connection_plain", "new connection, plain", "CPU us", 0),
        ),
        _connections,
    ),
    Measurement(
        "small messages",
        (
            Row("echo_cpu", "echo of 64 bytes, pair", "CPU us", 1),
            Row("echo_p50", "echo of 64 bytes, pair", "us, p50", 1),
        ),
        _echo,
    ),
    Measurement(
        "bulk",
        (
            Row("down_pair", "bulk to the client, pair", "CPU s/GB", 2),
            Row("up_pair", "bulk from the client, pair", "CPU s/GB", 2),
            Row("down_plain", "bulk to the client, plain", "CPU s/GB", 3),
        ),
        _bulk,
    ),
)


ROWS = tuple(row for measurement in MEASUREMENTS for row in measurement.rows)


def measure(base: Build, new: Build, scale: Scale) -> Samples:
    """All rounds.  Shows its progress on stderr.  Raises Failed."""
    samples = no_samples(ROWS)
    with Steps(scale.rounds * len(MEASUREMENTS)) as progress:
        for number in range(scale.rounds):
            with contextlib.ExitStack() as stack:
                stack.enter_context(_on_one_core(number))
                builds = {"base": base, "new": new}
                scenes = {
                    side: stack.enter_context(_started(builds[side])) for side in in_turn(number)
                }
                for measurement in MEASUREMENTS:
                    progress.begin(f"round {number + 1} of {scale.rounds}: {measurement.title}")
                    for turn in range(measurement.turns):
                        for side in in_turn(number + turn):
                            sample = _sample(measurement, side, scenes[side], scale)
                            for key, value in sample.items():
                                samples[key][side].append(value)
    return samples


@contextlib.contextmanager
def _on_one_core(number: int) -> Iterator[None]:
    """This process and all that it starts run on one core, on another one for the next number.

    Where the kernel puts the four processes that pass on a small message makes up to a factor of
    two of its price, and stays the same for as long as they live.
    """
    before = os.sched_getaffinity(0)
    # two comparisons at the same time should not choose the same core
    os.sched_setaffinity(0, {sorted(before)[(os.getpid() + number) % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_turn(number: int) -> tuple[str, str]:
    """Both builds, the first one first: called for 0, 1, ... this is A B, B A, ..."""
    return ("new", "base") if number % 2 else ("base", "new")


def _sample(measurement: Measurement, side: str, scenes: Scenes, scale: Scale) -> Sample:
    try:
        return measurement.sample(scenes, scale)
    except (Failed, OSError) as error:
        raise Failed(f"{measurement.title}, {side}: {error}") from error


@contextlib.contextmanager
def _started(build: Build) -> Iterator[Scenes]:
    pair, plain = contenders_of(build)
    with stage(pair) as pair_stage, stage(plain) as plain_stage:
        yield Scenes(pair_stage, plain_stage)
