"""The program as it is used: its commands, its config, its signals, its workers."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from gsocks import __version__
from gsocks.crypto import Key
from tests.support.one_process import Held, curl, workers_of, write_config
from tests.support.ports import free_port
from tests.support.program import (
    ROOT,
    Program,
    both_programs,
    gsocks,
    in_threads,
    web_server,
)
from tests.support.waiting import TOO_LONG

# --- both ends with nothing to edit -----------------------------------------------------------


def test_the_example_config_is_both_ends_and_makes_its_key_for_its_owner_only(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.example.yaml").write_text(
        (ROOT / "config.example.yaml")
        .read_text()
        .replace("8388", str(free_port()))
        .replace("1080", str(free_port()))
    )
    with Program("-c", tmp_path / "config.example.yaml") as program:
        port = program.port()
        program.wait_for(rf"try it: curl --socks5-hostname 127\.0\.0\.1:{port} ")
        key_file = tmp_path / "gsocks.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert Key.parse(key_file.read_text()).text() not in program.log


def test_one_process_with_both_ends_carries_traffic(tmp_path: Path) -> None:
    with web_server() as web, Program("-c", write_config(tmp_path)) as program:
        assert curl(program.port(), web).stdout == "hello"


# --- the access log ---------------------------------------------------------------------------


def test_the_log_can_be_json_lines(tmp_path: Path) -> None:
    config = write_config(tmp_path, "log: {format: json}\n")
    with web_server() as web, Program("-c", config) as program:
        port = int(program.wait_for(r'"local: listening on 127\.0\.0\.1:(\d+) [^"]*"')[0][1])
        curl(port, web)
        program.wait_for('"inbound": "local"')
    lines = [json.loads(line) for line in program.lines if line.startswith("{")]
    access = [line for line in lines if line["logger"] == "gsocks.access"]
    assert {line["inbound"] for line in access} == {"local", "server"}
    assert all(line["outcome"] == "ok" and line["down"] > 0 for line in access)


# --- mistakes ---------------------------------------------------------------------------------


def test_no_config_says_how_to_give_one() -> None:
    done = gsocks()
    assert done.returncode == 2
    assert "gsocks -c FILE" in done.stderr


# --- the other commands -----------------------------------------------------------------------


def test_version_is_printed() -> None:
    assert gsocks("--version").stdout.strip() == f"gsocks {__version__}"


def test_help_teaches_the_commands_and_an_example() -> None:
    told = gsocks("--help").stdout
    for word in ("keygen", "passwd", "check -c", "curl --socks5-hostname", "SIGTERM"):
        assert word in told


def test_check_reports_what_would_run_and_starts_nothing(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    done = gsocks("check", "-c", path)
    assert done.returncode == 0, done.stderr
    assert "local: listens on 127.0.0.1" in done.stdout
    assert "will be created at the first start" in done.stdout
    assert not (tmp_path / "gsocks.key").exists()


def test_passwd_hashes_one_line_from_a_pipe() -> None:
    done = gsocks("passwd", stdin="secret\n")
    assert done.stdout.startswith("$argon2id$")
    assert "secret" not in done.stdout + done.stderr


# --- signals ----------------------------------------------------------------------------------


def test_sigterm_lets_connections_end_and_then_stops_with_status_0(tmp_path: Path) -> None:
    with Program("-c", write_config(tmp_path)) as program:
        held = Held(program.port())
        program.signal(signal.SIGTERM)
        program.wait_for(r"shutting down, draining \d+ connections \(")
        held.echo()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", program.port()), timeout=TOO_LONG)
        held.close()
        assert program.end() == 0


def test_sigint_ends_at_once(tmp_path: Path) -> None:
    with Program("-c", write_config(tmp_path)) as program:
        held = Held(program.port())
        program.signal(signal.SIGINT)
        assert program.end() == 0
        held.close()


def test_open_connections_survive_a_reload_of_keys(tmp_path: Path) -> None:
    with both_programs(tmp_path) as (near, far):
        held = Held(near.port())
        (tmp_path / "gsocks.key").write_text(Key.generate().text())
        far.signal(signal.SIGHUP)
        far.wait_for("reloaded: ")
        held.echo()
        held.close()


def test_a_reload_with_a_mistake_changes_nothing_and_logs_it(tmp_path: Path) -> None:
    with web_server() as web, both_programs(tmp_path) as (near, _):
        (tmp_path / "local.yaml").write_text("local: {")
        near.signal(signal.SIGHUP)
        near.wait_for("not reloaded, the previous config stays: .*line 1, column 9")
        assert curl(near.port(), web).stdout == "hello"


# --- workers ----------------------------------------------------------------------------------


def test_workers_share_the_port_and_a_killed_one_is_started_again(tmp_path: Path) -> None:
    config = write_config(tmp_path, "workers: 2\n")
    with web_server() as web, Program("-c", config) as program:
        program.wait_for("local: listening on ", times=2)
        port = program.port()
        children = workers_of(program)
        assert len(children) == 2
        assert all(curl(port, web, str(n)).stdout == str(n) for n in range(4))
        os.kill(children[0], signal.SIGKILL)
        program.wait_for("local: listening on ", times=3)
        assert all(curl(port, web, str(n)).stdout == str(n) for n in range(8))
        program.signal(signal.SIGTERM)
        assert program.end() == 0
        assert program.log.count("try it: ") == 1


def test_a_hello_seen_by_one_worker_is_a_replay_at_every_other(tmp_path: Path) -> None:
    from gsocks.crypto import Cipher, Initiator
    from gsocks.replay import now_ms

    key = Key.generate()
    text = base64.b64encode(key.raw()).decode()
    path = tmp_path / "server.yaml"
    path.write_text(
        f"workers: 4\nserver:\n  listen: 127.0.0.1:0\n  keys: {{a: '{text}'}}\n"
        "  timeouts: {handshake: 500ms}\n"
    )
    with Program("-c", path) as program:
        ports = {
            int(match[1]) for match in program.wait_for(r"server: listening on \S+:(\d+) ", times=4)
        }
        (port,) = ports
        hello = Initiator(key, Cipher.SECRETBOX).hello(now_ms())

        answers: list[bool] = []

        def say_hello(_: int) -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG) as sock:
                sock.sendall(hello)
                answers.append(bool(sock.recv(1)))

        # the kernel spreads connections by their source port: 24 reach more than one of four
        assert not in_threads(24, say_hello)
        assert sorted(answers) == [False] * 23 + [True]
        assert text not in program.log
