"""docs/operations.md is true: its commands run, its tables are complete."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from gsocks import errors
from tests.support.program import ROOT, Program, run, web_server

TEXT = (ROOT / "docs" / "operations.md").read_text()

CONFIG = """
admin: {listen: 127.0.0.1:0}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  exits: [{url: direct, name: berlin-1}, {url: 'direct://?source=127.0.0.0/8', name: b}]
"""


def every_error(kind: type[errors.GsocksError] = errors.GsocksError) -> set[str]:
    return {kind.word}.union(*map(every_error, kind.__subclasses__()))


def test_every_word_of_the_log_is_explained() -> None:
    table = TEXT.split("| word |")[1].split("\n\n")[0]
    told = {
        word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    # an embedder's, and those that no connection ends by
    assert every_error() - told <= {
        "error",
        "bad_config",
        "withdrawn",
        "fetch_failed",
        "state_failed",
        "state_lost",
        "history_failed",
        "store_failed",
    }
    assert told - every_error() == {"stopped"}


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "c.yaml").write_text(CONFIG)
    with Program("-c", tmp_path / "c.yaml") as running:
        yield running


def test_the_admins_commands_run_as_they_stand(program: Program, tmp_path: Path) -> None:
    port = program.wait_for(r"admin: listening on http://127\.0\.0\.1:(\d+)")[0][1]
    with web_server() as web:  # there is a session only once it was used
        proxy = f"socks5h://session-cart17:x@127.0.0.1:{program.port()}"
        used = run("curl", "-sS", "-x", proxy, f"http://127.0.0.1:{web}/text/hello")
        assert used.stdout == "hello", used.stderr
    script = TEXT.split("```sh\n")[1].split("```")[0].replace(":9090", f":{port}")
    done = run("bash", "-euc", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()[:7]
    assert "problem" not in done.stdout
    told_each = [json.loads(line) for line in answers[3:]]
    assert {"done": True, "known": True} in told_each  # of the session
    assert [each["done"] for each in told_each] == [True] * 4
    told = {
        sample.name
        for family in families("\n".join(done.stdout.splitlines()[7:]) + "\n")
        for sample in family.samples
    }
    table = TEXT.split("| metric |")[1].split("\n\n")[0]
    listed = set(re.findall(r"`(gsocks_\w+)`", table))
    # without connections of clients there is nothing to be counted yet
    assert told <= listed
    assert listed - told <= {"gsocks_requests_total", "gsocks_exit_connect_seconds"}


def test_every_request_of_the_admin_is_listed() -> None:
    from gsocks.admin.api import Api
    from gsocks.admin.peers import Peers

    text = (ROOT / "docs" / "admin.md").read_text()
    commands: Any = None  # which none of them is asked for
    for route in Api(commands, Peers()).routes:
        assert f"| `{route.method} {route.path}` | {route.role} |" in text
