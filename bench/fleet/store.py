"""A real Redis for one measurement, near or far, and what it counts."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import processes
from bench.contenders.base import find
from bench.load.route import PATIENCE

_CALLS = re.compile(r"^cmdstat_([^:]+):calls=(\d+)", re.MULTILINE)


class Store:
    """A Redis at ``port`` of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    @property
    def url(self) -> str:
        """As gateways name it."""
        return f"redis://127.0.0.1:{self.port}"

    def operations(self) -> int:
        """Commands that it has executed, those of scripts too, but for what asks for this."""
        self._sock.sendall(b"INFO commandstats\r\n")
        with self._sock.makefile("rb") as answer:
            size = int(answer.readline()[1:])
            text = answer.read(size + 2).decode()
        return sum(int(calls) for name, calls in _CALLS.findall(text) if name != "info")

    def close(self) -> None:
        """Let go of the connection."""
        self._sock.close()


@contextlib.contextmanager
def running_store(folder: Path) -> Iterator[Store]:
    """A Redis that keeps nothing.  Raises Failed."""
    (port,) = processes.free_ports(1)
    argv = [find("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    log = folder / "redis.log"
    with log.open("wb") as file:
        process = processes.start(argv, folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    with processes.ended_after([process]):
        processes.wait_until_listening(process, port, log)
        with contextlib.closing(Store(port)) as store:
            yield store


@contextlib.contextmanager
def far_away(store: Store, seconds: float, folder: Path) -> Iterator[str]:
    """The URL of the store behind a relay that hands everything on so much later, each way."""
    argv = [sys.executable, "-m", "bench.link.relay", str(store.port), str(seconds)]
    with (folder / "relay.log").open("wb") as log:
        process = processes.start(argv, folder, stdout=subprocess.PIPE, stderr=log)
    with processes.ended_after([process]):
        assert process.stdout is not None
        said = process.stdout.readline().decode().split()
        if not said:
            raise processes.Failed("the relay before the store did not start")
        yield f"redis://127.0.0.1:{said[2]}"
