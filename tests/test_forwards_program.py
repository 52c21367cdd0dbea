"""Static forwards of gsocks as a program, by its config and by its command."""

from __future__ import annotations

import json
import re
import signal
import socket as std_socket
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.program import (
    Program,
    ask_udp,
    both_programs,
    gsocks,
    run,
    udp_echo,
    web_server,
)


def curl(port: int, word: str = "hello") -> str:
    url = f"http://127.0.0.1:{port}/text/{word}"
    return run("curl", "-sS", "--max-time", "20", url).stdout


def forward_port(program: Program, number: int = 0) -> int:
    """The port of a forward, by its place in the log."""
    return int(program.wait_for(r"forward: listening on \S+:(\d+) ", number + 1)[number][1])


def test_a_config_forwards_ports_and_datagrams_through_a_server(tmp_path: Path) -> None:
    with web_server() as web, udp_echo() as echo:
        forwards = (
            "forwards:\n"
            f"  - {{listen: 127.0.0.1:0, to: 127.0.0.1:{web}}}\n"
            f"  - {{listen: 127.0.0.1:0, to: 127.0.0.1:{echo}, udp: true}}\n"
        )
        with both_programs(tmp_path, local=forwards) as (near, far):
            assert curl(forward_port(near)) == "hello"
            assert ask_udp(forward_port(near, 1), b"hello") == b"echo hello"
            near.wait_for(rf"inbound=forward .* dest=127\.0\.0\.1:{web} exit=gsocks://\S+ .*ok")
            far.wait_for(rf"inbound=server .* dest=127\.0\.0\.1:{web} .*outcome=ok")
            near.signal(signal.SIGTERM)
            assert near.end() == 0
            near.wait_for(r"inbound=forward .*command=udp_associate .*outcome=ok")


def test_a_range_of_ports_is_forwarded_port_by_port(tmp_path: Path) -> None:
    with web_server() as one:
        ports = _neighbours()
        (tmp_path / "c.yaml").write_text(
            f"forwards: [{{listen: 127.0.0.1:{ports}-{ports + 1}, to: 127.0.0.1:{one - 1}-{one}}}]"
        )
        with Program("-c", tmp_path / "c.yaml") as program:
            program.wait_for(rf"listening on 127\.0\.0\.1:{ports}-{ports + 1} \(TCP to ")
            assert curl(ports + 1) == "hello"
            assert curl(ports) == ""
            program.wait_for(rf"dest=127\.0\.0\.1:{one - 1} .*outcome=refused")


def _neighbours() -> int:
    """A port that is free, as the next one is."""
    while True:
        port = free_port()
        with std_socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def test_workers_share_forwards_and_each_sender_keeps_its_own(tmp_path: Path) -> None:
    with web_server() as web, udp_echo() as echo:
        (tmp_path / "c.yaml").write_text(
            "workers: 2\n"
            "forwards:\n"
            f"  - {{listen: 127.0.0.1:{free_port()}, to: 127.0.0.1:{web}}}\n"
            f"  - {{listen: 127.0.0.1:{free_port()}, to: 127.0.0.1:{echo}, udp: true}}\n"
        )
        with Program("-c", tmp_path / "c.yaml") as program:
            program.wait_for(r"\[worker [01]\]: forward: listening on \S+ \(UDP", 2)
            tcp, udp = (forward_port(program, number) for number in _first_of_each(program))
            assert curl(tcp) == "hello"
            for _ in range(20):
                assert ask_udp(udp, b"x") == b"echo x"
            program.signal(signal.SIGTERM)
            assert program.end() == 0
            told = {
                line.split("[worker ")[1][0]
                for line in program.lines
                if "command=udp_associate" in line
            }
            assert told == {"0", "1"}


def _first_of_each(program: Program) -> tuple[int, int]:
    """The numbers of a line of TCP and one of UDP among those that tell of forwards."""
    lines = program.wait_for(r"forward: listening on \S+:\d+ \((TCP|UDP)", 4)
    kinds = [line[1] for line in lines]
    return kinds.index("TCP"), kinds.index("UDP")


def test_a_reload_takes_other_exits_for_forwards_of_their_own(tmp_path: Path) -> None:
    with web_server() as web:
        path = tmp_path / "c.yaml"
        text = f"forwards: {{routes: [{{listen: 127.0.0.1:0, to: 127.0.0.1:{web}}}], exits: [%s]}}"
        path.write_text(text % f"socks5://127.0.0.1:{free_port()}")
        with Program("-c", path) as program:
            port = forward_port(program)
            assert curl(port) == ""
            path.write_text(text % "direct")
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ")
            assert curl(port) == "hello"
            path.write_text(f"local: {{listen: 127.0.0.1:0}}\n{text % ''}")
            program.signal(signal.SIGHUP)
            program.wait_for("not reloaded, .*forwards.exits: the first exit of its own, or none,")


def test_the_admin_tells_of_forwards(tmp_path: Path) -> None:
    with web_server() as web:
        (tmp_path / "c.yaml").write_text(
            "admin: {listen: 127.0.0.1:0}\n"
            f"forwards: [{{listen: 127.0.0.1:0, to: 127.0.0.1:{web}}}]"
        )
        with Program("-c", tmp_path / "c.yaml") as program:
            port = forward_port(program)
            admin = program.wait_for(r"admin: listening on http://(\S+) ")[0][1]
            assert curl(port) == "hello"
            program.wait_for("inbound=forward .*outcome=ok")
            token = (tmp_path / "admin.token").read_text().strip()

            def asked(what: str) -> str:
                header = f"Authorization: Bearer {token}"
                return run("curl", "-sS", "-H", header, f"http://{admin}/{what}").stdout

            status = json.loads(asked("v1/status"))
            assert status["inbounds"]["forward"]["listen"] == [f"127.0.0.1:{port}"]
            assert status["inbounds"]["forward"]["outcomes"] == {"ok": 1}
            assert 'gsocks_requests_total{inbound="forward",outcome="ok"} 1.0' in asked("metrics")
            assert '"section": "forwards"' in asked("v1/exits")


def server_with_key(folder: Path) -> Program:
    (folder / "server.yaml").write_text(
        "server:\n  listen: 127.0.0.1:0\n  keys: {default: {file: gsocks.key}}\n"
        "  rules: [allow all]\n"
    )
    return Program("-c", folder / "server.yaml")


def test_the_command_forwards_until_ctrl_c_and_ends_quietly(tmp_path: Path) -> None:
    with web_server() as web, server_with_key(tmp_path) as server:
        key = (server.port("server"), (tmp_path / "gsocks.key").read_text().strip())[1]
        exit_ = f"gsocks://{key}@127.0.0.1:{server.port('server')}"
        with Program(
            "forward", f"127.0.0.1:0:localhost:{web}", f"0:127.0.0.1:{web}", "--exit", exit_
        ) as program:
            assert curl(forward_port(program)) == "hello"
            assert curl(forward_port(program, 1)) == "hello"
            program.wait_for("the command line has a key or a password: it is hidden from ps now")
            program.signal(signal.SIGINT)
            assert program.end() == 0
            assert key not in program.log
            assert "Traceback" not in program.log


@pytest.mark.parametrize("how", ["--exit-file", "--exit"])
def test_an_exit_may_stand_in_a_file(how: str, tmp_path: Path) -> None:
    with web_server() as web, server_with_key(tmp_path) as server:
        port = server.port("server")
        exits = tmp_path / "exits.txt"
        exits.write_text(f"# mine\ngsocks://127.0.0.1:{port}?key_file=gsocks.key\n")
        exits.chmod(0o600)
        file = str(exits) if how == "--exit-file" else f"@{exits}"
        with Program("forward", f"0:localhost:{web}", how, file) as program:
            assert curl(forward_port(program)) == "hello"
            assert "the command line has" not in program.log


def test_an_exit_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSOCKS_EXIT", "direct")
    with web_server() as web, Program("forward", f"0:localhost:{web}") as program:
        assert curl(forward_port(program)) == "hello"


def test_the_exits_may_be_those_of_a_config(tmp_path: Path) -> None:
    with web_server() as web, server_with_key(tmp_path) as server:
        (tmp_path / "c.yaml").write_text(
            "local:\n  listen: 127.0.0.1:1080\n  exits:\n"
            f"    - {{url: 'gsocks://127.0.0.1:{server.port('server')}', key_file: gsocks.key}}\n"
        )
        with Program("forward", f"0:localhost:{web}", "-c", tmp_path / "c.yaml") as program:
            assert curl(forward_port(program)) == "hello"
            program.wait_for(r"inbound=forward .*exit=gsocks://")


def test_datagrams_are_forwarded_by_the_command(tmp_path: Path) -> None:
    with (
        udp_echo() as echo,
        Program("forward", "--udp", f"0:127.0.0.1:{echo}", "--exit", "direct") as program,
    ):
        assert ask_udp(forward_port(program), b"hello") == b"echo hello"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["5432:db"], "'5432:db' is not a forward (expected [ADDRESS:]PORT:HOST:PORT"),
        (["db:5432"], "'db:5432' is not a forward"),
        (["99999:db:1"], "'99999:db:1': port 99999 is not between 0 and 65535"),
        (["1-3:db:1-2"], "'1-3:db:1-2': '127.0.0.1:1-3' has 3 ports, and 'db:1-2' has 2 ports"),
        (["host:1:db:1"], "'host:1:db:1': 'host:1' is not an address to listen on"),
        (["*:1:db:1"], "0.0.0.0:1 would let all machines that can reach it through to db:1 (--al"),
        (["1:db:1"], "no exit (expected --exit URL, --exit-file FILE, -c FILE or GSOCKS_EXIT;"),
        (["1:db:1", "--exit", "sock5://h"], "--exit: unknown scheme sock5://"),
        (["1:db:1", "--exit", "@nowhere"], "nowhere: No such file or directory"),
        (["127.0.0.1:1:127.0.0.1:1", "--exit", "direct"], "forwards: 127.0.0.1:1,"),
    ],
)
def test_a_mistake_in_the_command_is_told_in_one_line(arguments: list[str], message: str) -> None:
    done = gsocks("forward", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(rf"gsocks( forward)?: {re.escape(message)}", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing\n\n", "has no exit"),
        (b"direct\nsocks5:/h\n", "line 2: not an exit (expected direct, or a URL such as"),
        (b"\xff", "not UTF-8"),
        (b"#" * 70_000, "longer than 64KiB"),
    ],
)
def test_so_is_one_in_a_file_of_exits(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "exits").write_bytes(content)
    (tmp_path / "exits").chmod(0o600)
    done = gsocks("forward", "1:db:1", "--exit-file", tmp_path / "exits")
    assert done.returncode == 2
    assert done.stderr.startswith(f"gsocks: {tmp_path}/exits: {message}")
    assert done.stderr.count("\n") == 1


def test_a_config_without_local_has_no_exits_for_the_command(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("forwards: [{listen: 127.0.0.1:1, to: a:1}]")
    done = gsocks("forward", "1:db:1", "-c", tmp_path / "c.yaml")
    assert done.stderr == f"gsocks: {tmp_path}/c.yaml: has no local, whose exits could be used\n"
