"""Where gsocks spends its CPU time: both ends of a pair, under the loads of the benchmark.

    pip install py-spy
    python -m bench.profile [connections] [echo] [bulk]

For each load: how much of the time is the kernel's, from the operating system, and in which
functions the time is spent, their system calls included, from py-spy, which looks 500 times a
second.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.contenders import CONTENDERS
from bench.figures.bulk import download
from bench.figures.connections import connection_cost
from bench.figures.echo import echoes
from bench.scale import FULL
from bench.stage import Stage, stage

#: seconds that are looked at
SECONDS = 8


def _connections(scene: Stage) -> None:
    connection_cost(scene, 6000)


def _echo(scene: Stage) -> None:
    echoes(scene, 40_000)


def _bulk(scene: Stage) -> None:
    for _ in range(4):
        download(scene, 1, FULL)


LOADS: dict[str, Callable[[Stage], object]] = {
    "connections": _connections,
    "echo": _echo,
    "bulk": _bulk,
}


def main() -> None:
    pair = next(each for each in CONTENDERS if each.name == "gsocks-secretbox")
    for name in sys.argv[1:] or LOADS:
        with stage(pair) as scene, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            outputs = [_watch(pid, Path(folder), stack) for pid in scene.pids]
            before = _ticks(scene.pids)
            LOADS[name](scene)
            after = _ticks(scene.pids)
            user, system = after[0] - before[0], after[1] - before[1]
            stack.close()
            counted: Counter[str] = Counter()
            for path in outputs:
                counted += _by_function(path.read_text())
        print(f"{name}: {system / (user + system):.0%} in the kernel")
        for file, count in counted.most_common(12):
            print(f"  {count / counted.total():4.0%} {file}")


def _watch(pid: int, folder: Path, stack: ExitStack) -> Path:
    output = folder / f"{pid}.txt"
    command = ["py-spy", "record", "--pid", str(pid), "--output", str(output), "--format", "raw"]
    options = ["--rate", "500", "--duration", str(SECONDS), "--nonblocking"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    return output


def _ticks(pids: list[int]) -> tuple[int, int]:
    """User and system time of all, in clock ticks (proc(5))."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) for each in fields), sum(int(each[12]) for each in fields)


def _by_function(text: str) -> Counter[str]:
    """Samples by function and file of the innermost frame, but for those in the event loop."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        match = re.search(r"([^;]*) \(([^()]*?):\d+\)$", stack)
        if match and not match[2].endswith("gevent/hub.py"):
            found[f"{match[1]} in {os.sep.join(match[2].split(os.sep)[-2:])}"] += int(count)
    return found


if __name__ == "__main__":
    main()
