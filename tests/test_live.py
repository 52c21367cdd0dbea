"""The live view: what is on the screen, and that the program behind it ends as it should."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gsocks.admin.peers import Peers
from gsocks.cli.live import LOG_LINES, Order, _View, picture
from tests.support.program import gsocks
from tests.support.waiting import TOO_LONG

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
        "address": "203.0.113.7",
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


def seen(
    exits: list[dict[str, Any]],
    height: int = 40,
    lines: list[str] | None = None,
    count: int | None = None,
) -> str:
    inbound = {"listen": ["127.0.0.1:1080"], "connections": 3, "outcomes": {"ok": 7}}
    known = {
        "workers": 1,
        "loop": {"turns": [90, 98, 99, 100, 100, 100, 100, 100, 100], "longest": 0.021},
        "inbounds": {"local": {**inbound, "up": 10, "down": 2048}},
        "exits": exits,
        "exit_counts": {"local": len(exits) if count is None else count},
        "sessions": {"local": 4},
    }
    console = Console(width=120, height=height, record=True, file=io.StringIO())
    console.print(picture(known, 2.5, lines or [], height))
    return console.export_text()


def test_inbounds_exits_and_the_log_are_shown() -> None:
    text = seen([exit_("a", open=2, connected=12, down=1024)], lines=["first", "last"])
    assert (
        "gsocks: 1 worker, 4 sessions, 2.5 closed a second, loop lag p99 10 ms, longest 21 ms"
        in text
    )
    assert "local 127.0.0.1:1080: 3 open; 7 ok; up 10B, down 2KiB" in text
    assert re.search(r"a +socks5://a:1080 +203.0.113.7 +de +ok +2 +12 +0 +50 +0B +1KiB", text)
    assert text.rstrip().endswith("first\nlast")


def test_exits_in_trouble_come_first_then_the_busiest() -> None:
    exits = [
        exit_("idle"),
        exit_("busy", open=5),
        exit_("dead", state="ejected", back_in=17.0),
        exit_("gone", state="down", back_in=None),
    ]
    text = seen(exits)
    order = re.findall(r"^(idle|busy|dead|gone) ", text, re.MULTILINE)
    assert order == ["gone", "dead", "busy", "idle"]
    assert "ejected 17 s" in text


def test_it_fits_the_screen_however_many_exits_there_are() -> None:
    text = seen([exit_(f"e{number}") for number in range(500)], 30, [f"l{n}" for n in range(50)])
    assert len(text.splitlines()) <= 30
    assert "more" in text
    assert len(re.findall(r"^l\d+$", text, re.MULTILINE)) == LOG_LINES


def test_exits_that_were_not_asked_for_are_counted() -> None:
    text = seen([exit_("a"), exit_("b")], count=100_000)
    assert "and 99998 more" in text


def narrow(exits: list[dict[str, Any]], order: Order | None = None, height: int = 24) -> str:
    known = {
        "workers": 2,
        "loop": {"turns": [90, 98, 99, 100, 100, 100, 100, 100, 100], "longest": 0.021},
        "inbounds": {},
        "exits": exits,
        "exit_counts": {"local": len(exits)},
        "exit_states": {"ok": len(exits) - 1, "down": 1},
        "sessions": {"local": 4},
    }
    console = Console(width=80, height=height, record=True, file=io.StringIO())
    console.print(picture(known, 2.5, ["x" * 200], height, 80, order))
    return console.export_text()


def test_eighty_columns_are_enough_for_states_counts_and_the_last_error() -> None:
    text = narrow([exit_("a", state="down", last_error="socks5://a:1080: Connection refused"),
                   exit_("berlin-with-a-long-name")])  # fmt: skip
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "2 exits: 1 ok, 1 down  (q quits, s sorts, now by trouble" in text
    assert re.search(r"a +socks5://a:10.* +down +0 +0 +0 +50 +Connection", text)


def test_keys_sort_and_scroll() -> None:
    order, exits = Order(), [exit_(f"e{n:03}", failed=n) for n in range(100)]
    assert order.pressed(b"s")
    assert order.pressed(b"s")
    assert order.by == "failures"
    assert "e099" in narrow(exits, order)
    assert order.pressed(b"\x1b[6~")
    assert order.first == order.page
    assert "e099" not in narrow(exits, order)
    assert order.pressed(b"k")
    assert f"{order.page - 1} above" in narrow(exits, order)
    for _ in range(100):
        order.pressed(b" ")
    assert "e000" in narrow(exits, order)
    assert order.pressed(b"g")
    assert order.first == 0
    assert not order.pressed(b"x")


def test_what_a_stranger_wrote_is_shown_as_it_is() -> None:
    assert "[red]x[/red]" in seen([exit_("a", label="[red]x[/red]")], lines=["[bold]y"])
    assert "[bold]y" in seen([], lines=["[bold]y"])


def test_no_more_exits_are_asked_for_than_the_screen_has_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(_: object, method: str, target: str, **__: object) -> list[object]:
        asked.append(f"{method} {target}")
        return []

    monkeypatch.setattr(Peers, "ask", ask)
    _View(0, 0, tmp_path)._query(Console(height=40))
    assert asked == ["GET /own/snapshot?which=%2A&most=40"]


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
        except OSError:  # no process writes any more
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
        read_until(master, b"shutting down")
        assert program.wait(TOO_LONG) == 0


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *descendants(child))]


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 3)])
def test_a_view_that_is_killed_leaves_no_proxy_running(
    tmp_path: Path, workers: int, processes: int
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=workers))
    with on_a_terminal(tmp_path / "c.yaml") as (program, master), ExitStack() as stack:
        read_until(master, f"gsocks: {workers} worker".encode())
        left = {os.pidfd_open(pid): pid for pid in descendants(program.pid)}
        for descriptor, pid in left.items():
            stack.callback(os.close, descriptor)
            stack.callback(kill, pid)
        assert len(left) == processes
        program.kill()
        while left:
            ended, _, _ = select.select(left, [], [], TOO_LONG)
            assert ended, f"still running: {list(left.values())}"
            for descriptor in ended:
                del left[descriptor]


def test_a_view_whose_terminal_is_closed_shuts_its_proxy_down(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1))
    with on_a_terminal(tmp_path / "c.yaml") as (program, master):
        read_until(master, b"gsocks: 1 worker")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, master)  # closes the terminal
        os.close(nothing)
        assert program.wait(TOO_LONG) == 0, "the proxy's status, after which the view ends"


def test_a_proxy_that_is_killed_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1))
    with on_a_terminal(tmp_path / "c.yaml") as (program, master):
        read_until(master, b"gsocks: 1 worker")
        (proxy,) = descendants(program.pid)
        kill(proxy)
        # before the wait: a terminal that is not read stops the program
        said = read_to_end(master)
        assert b"gsocks: the proxy was killed by SIGKILL" in said
        assert program.wait(TOO_LONG) == 128 + signal.SIGKILL


def read_to_end(master: int) -> bytes:
    """What is still written to the terminal."""
    text = b""
    with suppress(OSError):  # no process writes any more
        while more := os.read(master, 65536):
            text += more
    return text


def kill(pid: int) -> None:
    """So that a failed test leaves nothing behind."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_why_it_did_not_start_stays_on_the_screen(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1).replace("127.0.0.1:0", "192.0.2.1:1"))
    text = (tmp_path / "c.yaml").read_text()
    (tmp_path / "c.yaml").write_text(text.replace("exits:", "allow_anonymous: true\n  exits:"))
    with on_a_terminal(tmp_path / "c.yaml") as (program, master):
        read_until(master, rb"gsocks: 192\.0\.2\.1:1: this machine has no such address")
        assert program.wait(TOO_LONG) == 2


def test_without_a_terminal_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(workers=1))
    done = gsocks("-c", tmp_path / "c.yaml", "--live")
    assert (done.returncode, done.stderr) == (2, "gsocks: --live needs a terminal\n")
