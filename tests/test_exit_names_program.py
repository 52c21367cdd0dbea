"""Exits that differ by their API key alone, as the log and commands tell them apart."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.support.ports import free_port
from tests.support.program import Program, gsocks, run

KEYS = ("first-api-key", "second-api-key")


def test_two_exits_of_one_provider_are_told_apart_by_their_names_and_not_by_their_keys(
    tmp_path: Path,
) -> None:
    port = free_port()  # where no proxy is
    exits = ", ".join(f"'http://{key}@127.0.0.1:{port}'" for key in KEYS)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"local: {{listen: '127.0.0.1:0', tries: 1, checks: {{connect: false}},"
        f" exits: [{exits}, {{url: 'http://third@127.0.0.1:{port}', name: home}}]}}\n"
    )
    config.chmod(0o600)
    with Program("-c", config) as program:
        proxy = f"http://127.0.0.1:{program.port()}"
        for _ in range(3):
            run("curl", "-sS", "--max-time", "20", "--proxy", proxy, "http://site.example/")
        lines = program.wait_for(r"gsocks.access: .* exit=(\S+) ", times=3)
        program.signal(signal.SIGTERM)
        program.end()
    named = [line[1] for line in lines]
    label = f"http://***@127.0.0.1:{port}"
    assert label in named
    assert "home" in named
    assert len(set(named)) == 3
    (second,) = set(named) - {label, "home"}
    assert re.fullmatch(re.escape(label) + "#[0-9a-f]{8}-2", second)
    listed = json.loads(gsocks("exits", "-c", config, "--json", "--timeout", "5s").stdout)
    assert len({each["name"] for each in listed}) == 3
    for secret in (*KEYS, "third"):
        assert secret not in program.log + json.dumps(listed)
