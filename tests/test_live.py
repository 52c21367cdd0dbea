"""The live view: what is on the screen, and that the program behind it ends as it should."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from program import TOO_LONG, gsocks
from rich.console import Console

from gsocks.live import LOG_LINES, picture

CONFIG = """
workers: {workers}
local:
  listen: 127.0.0.1:0
  exits: [{{url: direct, name: berlin-1, country: de}}]
"""


def exit_(name: str, **more: Any) -> dict[str, Any]:
    return {
        "section": "local",
        "name": name,
        "label": f"socks5://{name}:1080",
        "country": "de",
        "state": "ok",
        "back_in": 0.0,
        "open": 0,
        "connected": 0,
        "failed": 0,
        "up": 0,
        "down": 0,
        "connect_seconds": 0.05,
        **more,
    }


def seen(exits: list[dict[str, Any]], height: int = 40, lines: list[str] | None = None) -> str:
    door = {"listen": ["127.0.0.1:1080"], "connections": 3, "outcomes": {"ok": 7}}
    known = {
        "workers": 1,
        "doors": {"local": {**door, "up": 10, "down": 2048}},
        "exits": exits,
        "sessions": {"local": 4},
    }
    console = Console(width=120, height=height, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(picture(known, 2.5, lines or [], height))
    return console.export_text()


def test_doors_exits_and_the_log_are_shown() -> None:
    text = seen([exit_("a", open=2, connected=12, down=1024)], lines=["first", "last"])
    assert "gsocks: 1 worker, 4 sessions, 2.5 ended a second" in text
    assert "local 127.0.0.1:1080: 3 open; 7 ok; up 10B, down 2KiB" in text
    assert re.search(r"a +socks5://a:1080 +de +ok +2 +12 +0 +50 +0B +1KiB", text)
    assert text.rstrip().endswith("first\nlast")


def test_exits_in_trouble_come_first_then_the_busiest() -> None:
    exits = [
        exit_("idle"),
        exit_("busy", open=5),
        exit_("dead", state="out", back_in=17.0),
        exit_("gone", state="down", back_in=None),
    ]
    text = seen(exits)
    order = re.findall(r"^(idle|busy|dead|gone) ", text, re.MULTILINE)
    assert order == ["gone", "dead", "busy", "idle"]
    assert "out 17 s" in text


def test_it_fits_the_screen_however_many_exits_there_are() -> None:
    text = seen([exit_(f"e{number}") for number in range(500)], 30, [f"l{n}" for n in range(50)])
    assert len(text.splitlines()) <= 30
    assert "more" in text
    assert len(re.findall(r"^l\d+$", text, re.MULTILINE)) == LOG_LINES


def test_what_a_stranger_wrote_is_shown_as_it_is() -> None:
    assert "[red]x[/red]" in seen([exit_("a", label="[red]x[/red]")], lines=["[bold]y"])
    assert "[bold]y" in seen([], lines=["[bold]y"])


@contextmanager
def on_a_terminal(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    master, terminal = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "gsocks", "-c", path, "--live"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        start_new_session=True,
    )
    os.close(terminal)
    try:
        yield program, master
    finally:
        program.kill()
        program.wait()
        os.close(master)


def read_until(master: int, pattern: bytes) -> bytes:
    text, deadline = b"", time.monotonic() + TOO_LONG
    while not re.search(pattern, text):
        ready, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, text
        try:
            text += os.read(master, 65536)
        except OSError:  # nobody writes any more
            raise AssertionError(text) from None
    return text


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_what_runs_and_ends_with_it(
    tmp_path: Path, workers: int, signum: signal.Signals
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=workers))
    with on_a_terminal(tmp_path / "c.yaml") as (program, master):
        text = read_until(master, b"berlin-1.*direct.*unproven")
        if f"gsocks: {workers} worker".encode() not in text:
            read_until(master, f"gsocks: {workers} worker".encode())
        program.send_signal(signum)
        read_until(master, b"ending|stopp")
        assert program.wait(TOO_LONG) == 0


def test_why_it_did_not_start_stays_on_the_screen(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1).replace("127.0.0.1:0", "192.0.2.1:1"))
    text = (tmp_path / "c.yaml").read_text()
    (tmp_path / "c.yaml").write_text(text.replace("exits:", "allow_anonymous: true\n  exits:"))
    with on_a_terminal(tmp_path / "c.yaml") as (program, master):
        read_until(master, rb"gsocks: 192\.0\.2\.1:1: this machine has no such address")
        assert program.wait(TOO_LONG) == 2


def test_without_a_terminal_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1))
    done = gsocks("-c", tmp_path / "c.yaml", "--live")
    assert (done.returncode, done.stderr) == (2, "gsocks: --live needs a terminal\n")
