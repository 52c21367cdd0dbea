"""Real exits beside a good one, in a network namespace with names and destinations of its own.

    python -m tests.support.exit_world NAME [--sick]       # makes the namespace, needs root

Prints one JSON object: what clients got, and what the exits are thought of then.  There are names
that resolve, to addresses that answer, refuse or have no route, and all others don't exist.  All
that runs is in a process namespace too, so that nothing outlives this program.
"""

from __future__ import annotations

import argparse
import json
import os
import socket as std_socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, cast

import gevent
from gevent.server import DatagramServer, StreamServer

from bench.recipe import ask, serve
from gsocks.exits import Connected, ExitDeps, ExitSpec, make_exit
from gsocks.local import LocalServer
from gsocks.request import Request
from gsocks.rotation.build import make_exit_group, make_rules
from gsocks.rotation.group import ExitGroup
from tests.support.real_exits import EXITS, OUTBOUND, running

#: destinations that answer
GOOD = {f"good{n}.example": f"93.184.215.{20 + n}" for n in range(12)}
REFUSED = {f"refused{n}.example": f"93.184.215.{40 + n}" for n in range(4)}
UNROUTABLE = {f"unroutable{n}.example": f"203.0.113.{n + 1}" for n in range(4)}
NAMES = GOOD | REFUSED | UNROUTABLE

#: requests in a row for a destination that fails, and then for one that answers
BAD, WELL = 3, 4

_NXDOMAIN = 3


# --- names --------------------------------------------------------------------------------------


def _answer(query: bytes) -> bytes:
    """What a DNS server that knows NAMES answers (RFC 1035 section 4)."""
    at, labels = 12, []
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode().lower())
        at += 1 + size
    question, kind = query[12 : at + 5], int.from_bytes(query[at + 1 : at + 3], "big")
    ip = NAMES.get(".".join(labels))
    answer = b""
    if ip is not None and kind == 1:
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + std_socket.inet_aton(ip)
    flags = 0x8580 | (_NXDOMAIN if ip is None else 0)
    counts = b"\0\1" + (b"\0\1" if answer else b"\0\0") + bytes(4)
    return query[:2] + flags.to_bytes(2, "big") + counts + question + answer


def _start_names() -> None:
    def handle(query: Any, peer: Any) -> None:
        server.sendto(_answer(query), peer)

    server = DatagramServer(("127.0.0.1", 53), handle)
    server.start()


def _prepare() -> Path:
    """Loopback, names and shared memory of this namespace's own; an empty folder for all users."""
    addresses = [OUTBOUND, *(GOOD | REFUSED).values()]
    # the folders of tests are not for other users, as which some proxies run
    folder = Path("/media")
    for command in (
        "ip link set lo up",
        *(f"ip address add {ip}/32 dev lo" for ip in addresses),
        f"mount -t tmpfs tmpfs {folder}",
        "mount -t tmpfs tmpfs /dev/shm",
    ):
        subprocess.run(command.split(), check=True)
    for name, text in (
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ):
        (folder / name).write_text(text)
        subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)
    return folder


# --- one listener -------------------------------------------------------------------------------


class Counted:
    """An exit whose requests are counted."""

    def __init__(self, url: str, deps: ExitDeps) -> None:
        self._exit = make_exit(ExitSpec.parse(url), deps)
        self.label = self._exit.label
        self.asked = 0

    def close(self) -> None:
        self._exit.close()

    def connect(self, request: Request) -> Connected:
        self.asked += 1
        return self._exit.connect(request)


@contextmanager
def listener(urls: list[str], rotate: str) -> Iterator[tuple[int, ExitGroup]]:
    deps = ExitDeps(make_rules(None))
    group = make_exit_group([Counted(url, deps) for url in urls], deps=deps, rotate=rotate)
    local = LocalServer(("127.0.0.1", 0), group)
    local.start()
    try:
        yield local.bound.port, group
    finally:
        local.stop(0)


def _thought_of(group: ExitGroup, real: str) -> dict[str, dict[str, object]]:
    now = time.monotonic()
    return {
        "real" if member.label == real else "good": {
            "state": member.health.state(now),
            "asked": cast(Counted, member.exit).asked,
            "why": member.counts.last_error,
        }
        for member in group.roster
    }


def beside_a_good_one(urls: list[str], rotate: str, sessions: bool) -> dict[str, Any]:
    """Clients ask for destinations that fail, and in between for some that answer."""
    asked = {"good": [0, 0], "bad": [0, 0]}

    def client(session: str | None) -> None:
        for turn in range(2):
            bad = [f"refused{turn}.example", f"missing{turn}.example", f"unroutable{turn}.example"]
            for host, times in [*((each, BAD) for each in bad), (f"good{turn}.example", WELL)]:
                kind = "good" if host in GOOD else "bad"
                for _ in range(times):
                    result = ask(port, session, f"{host}:443")
                    asked[kind][0] += 1
                    asked[kind][1] += result.ok

    with listener(urls, rotate) as (port, group):
        names = [f"s{number}" for number in range(4)] if sessions else [None]
        gevent.joinall([gevent.spawn(client, name) for name in names], raise_error=True)
        return {
            "rotate": rotate,
            "sessions": sessions,
            "good": asked["good"],
            "bad": asked["bad"],
            "exits": _thought_of(group, urls[0]),
        }


def beside_a_sick_one(urls: list[str], rotate: str, sessions: bool) -> dict[str, Any]:
    """Two clients ask for destinations that all answer."""
    asked = [0, 0]

    def client(number: int) -> None:
        for turn in range(40):
            session = f"s{number}x{turn}" if sessions else None
            result = ask(port, session, f"good{turn % len(GOOD)}.example:443")
            asked[0] += 1
            asked[1] += result.ok

    with listener(urls, rotate) as (port, group):
        gevent.joinall([gevent.spawn(client, number) for number in range(2)], raise_error=True)
        return {
            "rotate": rotate,
            "sessions": sessions,
            "good": asked,
            "exits": _thought_of(group, urls[0]),
        }


# --- the whole ----------------------------------------------------------------------------------


def run(name: str, *, sick: bool) -> list[dict[str, Any]]:
    """All four ways to ask, at the same time."""
    folder = _prepare()
    _start_names()
    sites = [StreamServer((ip, 443), serve, backlog=1024) for ip in GOOD.values()]
    for site in sites:
        site.start()
    with ExitStack() as stack:
        real = stack.enter_context(running(EXITS[name], folder / "real", sick=sick))
        other = "dante" if name == "microsocks" else "microsocks"
        good = stack.enter_context(running(EXITS[other], folder / "good"))
        scenario = beside_a_sick_one if sick else beside_a_good_one
        ways = product(("round_robin", "fastest"), (False, True))
        runs = [gevent.spawn(scenario, [real, good], *way) for way in ways]
        return [each.get() for each in runs]


def command(name: str, *, sick: bool = False) -> list[str]:
    """The command line that makes the namespace and runs there."""
    return [
        *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *(sys.executable, "-m", "tests.support.exit_world", name, "--here"),
        *(["--sick"] if sick else []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=EXITS)
    parser.add_argument("--sick", action="store_true")
    parser.add_argument("--here", action="store_true", help="in the namespace already")
    given = parser.parse_args()
    if not given.here:
        argv = command(given.name, sick=given.sick)
        os.execvp(argv[0], argv)
    print(json.dumps(run(given.name, sick=given.sick), indent=1))


if __name__ == "__main__":
    main()
