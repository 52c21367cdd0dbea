"""Ctrl-C at any moment of any command: no traceback, and the status of an interrupted program."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.program import ROOT, Program
from tests.support.waiting import TOO_LONG, eventually

MODULE = (sys.executable, "-m", "gsocks")
SCRIPT = (str(Path(sys.executable).with_name("gsocks")),)

#: a module of the standard library that is imported by nothing but gsocks.main
SLOW = "import os, time\nos.write(1, b'importing\\n')\ntime.sleep(90)\n"


def started(command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def interrupted(process: subprocess.Popen[bytes]) -> bytes:
    """What it prints after SIGINT, which ends it as one expects."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 130, err
    return out + err


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["module", "script"])
def test_while_it_is_imported(command: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = started(command, tmp_path, PYTHONPATH=path)
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    assert interrupted(process) == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "config.yaml"),
        ("check", "-c", "config.yaml"),
        ("check", "-c", "config.yaml", "--to", "127.0.0.1:80"),
        ("exits", "-c", "config.yaml"),
    ],
    ids=" ".join,
)
def test_while_it_waits_for_a_file(arguments: Sequence[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    process = started([*MODULE, *arguments], tmp_path, PYTHONPATH=str(ROOT))
    writer = os.open(tmp_path / "config.yaml", os.O_WRONLY)  # returns when it reads
    assert interrupted(process) == b""
    os.close(writer)


@pytest.mark.parametrize("arguments", [("passwd",), ("import", "-")], ids=" ".join)
def test_while_it_waits_for_its_input(arguments: Sequence[str], tmp_path: Path) -> None:
    process = started([*MODULE, *arguments], ROOT)
    assert process.stdin is not None
    pipe = process.stdin.fileno()
    os.write(pipe, b"half a line")
    # all of it has been read, so the rest is waited for
    eventually(lambda: not any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))))
    assert interrupted(process) == b""


@pytest.mark.parametrize("command", ["", "exits "])
def test_while_it_waits_for_a_list_of_exits(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(TOO_LONG)
        source = f"{{url: 'http://127.0.0.1:{mute.getsockname()[1]}/list'}}"
        config = tmp_path / "c.yaml"
        config.write_text(f"local: {{listen: '127.0.0.1:0', exit_sources: [{source}]}}")
        with Program(*command.split(), "-c", config) as program:
            fetching, _ = mute.accept()
            with fetching:
                program.signal(signal.SIGINT)
                assert program.end() == 130
    assert "Traceback" not in program.log


def test_while_it_serves(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("local: {listen: '127.0.0.1:0'}")
    with Program("-c", config) as program:
        program.port()
        program.signal(signal.SIGINT)
        assert program.end() == 0
    assert program.lines[-2].endswith("gsocks: shut down")
