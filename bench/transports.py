"""What a transport costs: ``python -m bench.transports [--rounds N]``.

A pair of gsocks for each of tcp, tls, ws and wss, all at the same time on one core, loaded in short
turns one after the other, forth and back: so a machine whose speed drifts slows all alike.  CPU
time is that of both ends together.  A new tunnel is a connection of a pair without a pool: it
opens its own, with all handshakes.  The certificate is one of ECDSA on P-256, as web servers have
them; it is made by ``openssl``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.compare.measures import COMPARE
from bench.contenders.gsocks import over_transport
from bench.figures.bulk import download, upload
from bench.figures.connections import connection_cost
from bench.figures.echo import echoes
from bench.figures.idle import KIB, bytes_each
from bench.processes import adopt_orphans, raise_descriptor_limit
from bench.progress import Steps
from bench.stage import Stage, stage

KINDS = ("tcp", "tls", "ws", "wss")


class Scenes(NamedTuple):
    """The processes of one transport."""

    pooled: Stage
    unpooled: Stage


def _echo(scenes: Scenes) -> float:
    scene = scenes.pooled
    before = scene.cpu_when_settled()
    echoes(scene, COMPARE.echoes)
    return (scene.cpu_when_settled() - before) / COMPARE.echoes * 1e6


class Row(NamedTuple):
    """One number of each transport."""

    title: str
    unit: str
    decimals: int
    sample: Callable[[Scenes], float]
    #: samples in a round
    turns: int = 4


ROWS = (
    # first, in processes that have carried nothing else; a second one would meet a grown heap
    Row("idle connection", "KiB", 1, lambda s: bytes_each(s.pooled, 300) / KIB, turns=1),
    Row("bulk to the client", "CPU s/GB", 2, lambda s: download(s.pooled, 1, COMPARE)[1]),
    Row("bulk from the client", "CPU s/GB", 2, lambda s: upload(s.pooled, 1, COMPARE)[1]),
    Row("new connection, ready tunnel", "CPU us", 0, lambda s: connection_cost(s.pooled, 200)[0]),
    Row("new connection, new tunnel", "CPU us", 0, lambda s: connection_cost(s.unpooled, 100)[0]),
    Row("echo of 64 bytes", "CPU us", 1, _echo),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.transports")
    parser.add_argument("--rounds", metavar="N", type=int, default=5)
    rounds = parser.parse_args().rounds
    adopt_orphans()
    raise_descriptor_limit()
    samples: dict[str, dict[str, list[float]]] = {
        row.title: {kind: [] for kind in KINDS} for row in ROWS
    }
    with tempfile.TemporaryDirectory(prefix="gsocks-bench-") as name:
        cert = _certificate(Path(name))
        with Steps(rounds * len(ROWS)) as progress:
            for number in range(rounds):
                _round(number, cert, samples, progress)
    print("\n".join(_table(samples)))


def _round(
    number: int, cert: Path, samples: dict[str, dict[str, list[float]]], progress: Steps
) -> None:
    with contextlib.ExitStack() as stack:
        before = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {sorted(before)[number % len(before)]})
        scenes = {
            kind: Scenes(
                *(
                    stack.enter_context(stage(over_transport(kind, cert, has_pool=has_pool)))
                    for has_pool in (True, False)
                )
            )
            for kind in KINDS
        }
        for row in ROWS:
            progress.begin(f"round {number + 1}: {row.title}")
            for turn in range(row.turns):
                for kind in KINDS[:: 1 if (number + turn) % 2 else -1]:
                    samples[row.title][kind].append(row.sample(scenes[kind]))


def _certificate(folder: Path) -> Path:
    """A certificate for localhost that is its own authority, with its key."""
    file = folder / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    run = [*command, "-days", "2", "-keyout", str(file), "-out", str(folder / "cert.pem")]
    subprocess.run(run, check=True, stderr=subprocess.DEVNULL)
    file.write_text(file.read_text() + (folder / "cert.pem").read_text())
    return file


def _table(samples: dict[str, dict[str, list[float]]]) -> list[str]:
    """Medians, and in brackets the ratio to tcp, which is of samples of the same turn."""
    lines = [f"| | unit | {' | '.join(KINDS)} |", "|---|---|" + "---|" * len(KINDS)]
    for row in ROWS:
        found = samples[row.title]
        cells = []
        for kind in KINDS:
            median = f"{statistics.median(found[kind]):.{row.decimals}f}"
            ratios = [a / b for a, b in zip(found[kind], found["tcp"], strict=True)]
            cells.append(median if kind == "tcp" else f"{median} ({statistics.median(ratios):.2f})")
        lines.append(f"| {row.title} | {row.unit} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
