"""How long a client's look-ups take while another client has 500 silent names looked up.

    python -m tests.attack.lookups

In one process, by turns alone and beside the other client, so that what else the machine does
counts for both.  Prints microseconds of the loop's time, the name server's included.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import suppress

import gevent

from gsocks.errors import ConnectFailed
from gsocks.net.resolve import Resolver
from gsocks.settings import DnsSettings
from tests.attack.floods_names import AT_ONCE, LIVE

ROUNDS = 6
LOOKUPS = 150

_SERVER = """
import time
from tests.attack.floods_names import NameServer
print(NameServer().port, flush=True)
time.sleep(600)
"""


def silent(resolver: Resolver, number: int) -> None:
    """A look-up of the other client."""
    with suppress(ConnectFailed):
        resolver.resolve(f"n{number}.silent.example", "alice", "10.0.0.1:1")


def measured(resolver: Resolver, begin: int) -> tuple[list[float], list[float]]:
    """The microseconds of names that are looked up, and of one that is known."""
    found: list[float] = []
    known: list[float] = []
    for number in range(begin, begin + LOOKUPS):
        for name, took in ((f"n{number}.{LIVE}", found), (f"n{number}.{LIVE}", known)):
            began = time.perf_counter()
            resolver.resolve(name, "bob", "10.0.0.2:1")
            took.append(1e6 * (time.perf_counter() - began))
        gevent.sleep(0.0005)
    return found, known


def main() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        settings = DnsSettings(servers=(f"127.0.0.1:{int(server.stdout.readline())}",))
        resolver = Resolver(settings=settings)
        took: dict[str, tuple[list[float], list[float]]] = {"alone": ([], []), "beside": ([], [])}
        numbers = iter(range(0, 10**9, LOOKUPS))
        for start in range(ROUNDS):
            for which in took:
                others = [
                    gevent.spawn(silent, resolver, AT_ONCE * start + number)
                    for number in range(AT_ONCE if which == "beside" else 0)
                ]
                gevent.sleep(0.1)
                for total, new in zip(took[which], measured(resolver, next(numbers)), strict=True):
                    total += new
                gevent.killall(others)
                gevent.sleep(resolver.stale_wait)  # what was left alone has ended
        server.kill()
    print("| us | looked up: median, worst | known: median, worst |\n|---|---|---|")
    for which, kinds in took.items():
        figures = " | ".join(f"{statistics.median(us):.1f}, {max(us):.0f}" for us in kinds)
        print(f"| {which} | {figures} |")


if __name__ == "__main__":
    main()
