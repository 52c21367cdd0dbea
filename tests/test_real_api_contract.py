"""The admin's API at its document's word: schemathesis asks what /openapi.json allows, and more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.program import ROOT, Program, run

CONFIG = """
admin: {listen: 127.0.0.1:0}
state: {file: state.db}
requests: {}
local:
  listen: 127.0.0.1:0
  exits: [{url: direct, name: a}, {url: 'socks5://127.0.0.1:9', name: b}]
"""

#: what is wrong may also be longer than a first line may be
CHECKS = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 406, 414, 422, 428]
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
@pytest.mark.parametrize(
    ("operations", "examples"),
    [
        (("--exclude-operation-id", "events"), 8),
        # a stream has no end, and is read for seconds
        (("--include-operation-id", "events"), 4),
    ],
    ids=["answers", "events"],
)
def test_the_api_does_what_its_document_says(
    tmp_path: Path, operations: tuple[str, ...], examples: int
) -> None:
    pytest.importorskip("schemathesis")
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "schemathesis.toml").write_text(CHECKS)
    with Program("-c", tmp_path / "c.yaml", cwd=tmp_path) as program:
        at = program.wait_for(r"admin: listening on (http://\S+) ")[0][1]
        token = (tmp_path / "admin.token").read_text().strip()
        done = run(
            Path(sys.executable).with_name("schemathesis"),
            *("run", f"{at}/openapi.json", "-H", f"Authorization: Bearer {token}"),
            *("--phases", "fuzzing", "-n", str(examples), "--seed", "1", "--workers", "1"),
            *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
            *("--checks", "response_schema_conformance,negative_data_rejection"),
            *("--generation-database", "none", "--no-color", *operations),
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_commands_of_a_shell_reach_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    with Program("-c", tmp_path / "c.yaml", cwd=tmp_path) as program:
        at = program.wait_for(r"admin: listening on (http://\S+) ")[0][1]

        def ctl(*words: str) -> str:
            where = ("--admin", at, "--token-file", str(tmp_path / "admin.token"))
            done = run(sys.executable, "-m", "gsocks", "ctl", *words, *where, cwd=ROOT)
            return done.stdout + done.stderr

        assert ctl("ban", "a", "--for", "1h") == "a: done\n"
        lines = ctl("exits").splitlines()
        assert lines[0].split()[:3] == ["exit", "state", "open"]
        assert lines[1].split()[:2] == ["a", "banned"]
        assert ctl("exits", "--state", "banned", "--json").startswith('{"section": "local"')
        assert ctl("drain", "x") == "gsocks: no exit is called 'x'\n"
