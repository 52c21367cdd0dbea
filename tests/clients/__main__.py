"""``python -m tests.clients [NAME...]``"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.progress import Steps
from tests.clients import commands, scripts, serving_clients  # noqa: F401  # they add the rows
from tests.clients.client import CLIENTS
from tests.clients.scene import scene, version_of
from tests.clients.table import RESULTS, Row, read, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="all if none")
    names = parser.parse_args().names or list(CLIENTS)
    unknown = set(names) - set(CLIENTS)
    if unknown:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    rows = {row.name: row for row in read()} if RESULTS.exists() else {}
    failed = 0
    with (
        Steps(len(names)) as steps,
        tempfile.TemporaryDirectory(prefix="gsocks-clients-") as folder,
        scene(Path(folder)) as at,
    ):
        for name in names:
            steps.begin(name)
            client = CLIENTS[name]
            version = version_of(client)
            if version is None:
                print(f"{name}: not here ({client.source})")
                failed += 1
                continue
            trials = at.try_client(client)
            for trial in trials:
                if trial.failure is not None:
                    failed += 1
                    print(f"{name}, {trial.what}: {trial.failure}")
            works = [trial.what for trial in trials if trial.failure is None]
            rows[name] = Row(name, version, works, client.hint)
    write([rows[name] for name in CLIENTS if name in rows])
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except json.JSONDecodeError as error:
        sys.exit(f"{RESULTS}: {error}")
