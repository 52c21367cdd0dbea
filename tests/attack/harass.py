"""Attacks upon a gsocks that others use meanwhile, one kind after another: for the soak.

    python -m tests.attack.harass PORT ADMIN_PORT SECONDS SEED

prints as JSON how often each kind got something done.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.attack.flood import Scene

#: seconds of one kind
SPELL = 3.0

#: the attackers' addresses, none of which is another client's
_SOURCES = [f"127.0.9.{number}" for number in range(1, 11)]


def pipelined_requests(scene: Scene, port: int, admin: int) -> None:
    request = b"OPTIONS http://a.example/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"
    scene.pour(port, request * 1000, source=_SOURCES[0])


def garbage(scene: Scene, port: int, admin: int) -> None:
    scene.pour(port, Random(port).randbytes(1 << 16), source=_SOURCES[0])


def silence(scene: Scene, port: int, admin: int) -> None:
    for number in range(300):
        scene.connect(port, _SOURCES[number % len(_SOURCES)])
        scene.note_done()


def short_connections(scene: Scene, port: int, admin: int) -> None:
    scene.keep_doing(lambda: scene.connect(port, _SOURCES[0]).close())


def refused_logins(scene: Scene, port: int, admin: int) -> None:
    scene.pour(admin, b"GET /v1/exits HTTP/1.1\r\nHost: a\r\n\r\n" * 100, source=_SOURCES[0])


ATTACKS: list[Callable[[Scene, int, int], None]] = [
    pipelined_requests,
    garbage,
    silence,
    short_connections,
    refused_logins,
]


def main() -> None:
    port, admin, seconds, seed = map(int, sys.argv[1:])
    chance = Random(seed)
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        attack = chance.choice(ATTACKS)
        with tempfile.TemporaryDirectory() as folder:
            scene = Scene(Path(folder))
            try:
                attack(scene, port, admin)
                time.sleep(min(SPELL, left))
            except OSError:
                time.sleep(0.1)  # the worker that had the connection was killed
            finally:
                scene.close()
        done[attack.__name__] += scene.done
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
