"""What other clients notice while one has 500 names looked up that are never answered.

    python -m tests.attack.names [--requests 200]

One worker.  Prints milliseconds of another client's requests, at the median and at the worst: for a
name that is known, for one that is looked up each time, and of first logins, which Argon2 judges.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.attack.flood import Scene
from tests.attack.floods_names import AT_ONCE, LIVE, ask_for_silent_names, config
from tests.attack.witness import Witness
from tests.support.program import gsocks

#: first logins, each of another user
LOGINS = 20


def measured(port: int, requests: int, first: int) -> dict[str, list[float]]:
    """The milliseconds of each kind of request; the logins are of users from number ``first``."""

    def ask(user: int, count: int, host: str = "127.0.0.1") -> list[float]:
        seen = Witness(port, host=host, user=f"user{user}", password="secret").ask(count)
        if seen.failures:
            raise SystemExit(f"not served: {seen.failures}")
        return seen.ms

    kinds: dict[str, Callable[[], list[float]]] = {
        "a first login": lambda: [ask(first + number, 1)[0] for number in range(LOGINS)],
        "a known name": lambda: ask(0, requests, "localhost"),
        "a name that is looked up": lambda: ask(0, requests, LIVE),
    }
    ask(0, 3)
    return {kind: measure() for kind, measure in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    requests = parser.parse_args().requests
    hashed = gsocks("passwd", stdin="secret\n").stdout.strip()
    names = ["mallory", *(f"user{number}" for number in range(2 * LOGINS + 1))]
    users = ", ".join(f"{name}: '{hashed}'" for name in names)
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        try:
            port = scene.gsocks(config(f", users: {{{users}}}")).port()
            alone = measured(port, requests, 1)
            ask_for_silent_names(scene, port, "mallory")
            while scene.done < AT_ONCE:
                time.sleep(0.05)
            beside = measured(port, requests, 1 + LOGINS)
        finally:
            scene.close()
    print(
        "| ms | alone: median, worst | beside the flood | ratio of the medians |\n|---|---|---|---|"
    )
    for kind in alone:
        one, other = alone[kind], beside[kind]
        figures = " | ".join(f"{statistics.median(ms):.2f}, {max(ms):.1f}" for ms in (one, other))
        print(f"| {kind} | {figures} | {statistics.median(other) / statistics.median(one):.2f} |")


if __name__ == "__main__":
    main()
