"""Secrets on the command line: what of it other users of the machine see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gsocks.cli.command_line import has_secret, masked
from gsocks.crypto import Key
from tests.support.program import ROOT, Program

KEY = Key(bytes(range(32))).text()


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (f"gsocks://{KEY}@h:1", f"gsocks://{'*' * len(KEY)}@h:1"),
        ("socks5://user:pass@h", "socks5://*********@h"),
        ("--exit=http://key@h:1", "--exit=http://***@h:1"),
        ("local.users.alice=secret", "local.users.alice=******"),
        ("--set=keys.a=abc", "--set=keys.a=***"),
        ("{a: $argon2id$v=19$m=1,t=2$xx}", "{a: *************************}"),
    ],
)
def test_what_could_be_a_secret_is_masked_at_its_length(argument: str, shown: str) -> None:
    assert masked(argument) == shown
    assert has_secret([argument])
    assert len(masked(argument)) == len(argument)


@pytest.mark.parametrize(
    "argument",
    ["--exit", "gsocks://h:1", "--key-file=gsocks.key", "timeouts.idle=5m", "users_file=u", "@f"],
)
def test_what_is_no_secret_stays(argument: str) -> None:
    assert masked(argument) == argument


def test_a_secret_of_the_command_line_is_hidden_from_ps_and_told_of(tmp_path: Path) -> None:
    exit_ = f"gsocks://{KEY}@127.0.0.1:9"
    listen = "127.0.0.1:0"
    with Program("local", "--listen", listen, "--exit", exit_, cwd=tmp_path, within=()) as program:
        program.wait_for("the command line has a key or a password: it is hidden from ps now")
        shown = Path(f"/proc/{program.process.pid}/cmdline").read_bytes()
        assert KEY.encode() not in shown
        assert b"--exit\0gsocks://***" in shown
        assert KEY not in program.log


def test_the_secret_is_hidden_before_anything_else_is_done() -> None:
    code = (
        "import sys; from gsocks.cli.command_line import hide_secrets;"
        "assert hide_secrets(); print(open('/proc/self/cmdline').read().replace('\\0', ' '))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"gsocks://{KEY}@h"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert KEY not in done.stdout
