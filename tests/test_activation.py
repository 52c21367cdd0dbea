"""Socket activation: listeners at sockets that another program has opened, as systemd does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gsocks import config
from gsocks.errors import ConfigError
from gsocks.service.activation import Inherited, check_kind
from tests.support import needs
from tests.support.activation import launching
from tests.support.ports import free_port
from tests.support.program import Program, ask_udp, curl_at_path, run, udp_echo, web_server
from tests.support.waiting import TOO_LONG


def curl(port: int, web: int, *more: str) -> str:
    return run(
        "curl", "-sS", "--max-time", "20", "--socks5-hostname", f"127.0.0.1:{port}", *more,
        f"http://127.0.0.1:{web}/text/hello",
    ).stdout  # fmt: skip


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def listening(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0))


def at_path(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


@contextmanager
def launched(path: Path, names: str, *sockets: socket.socket) -> Iterator[Program]:
    """gsocks with a config, which is passed the sockets; they are closed here."""
    with Program(
        "-c",
        path,
        within=launching(names, *sockets),
        pass_fds=[sock.fileno() for sock in sockets],
    ) as program:
        for sock in sockets:
            sock.close()
        yield program


# --- the launcher of systemd ------------------------------------------------------------------


def test_systemds_own_launcher_starts_it_by_the_first_connection(tmp_path: Path) -> None:
    launcher = needs.program("systemd-socket-activate", "systemd")
    port = free_port()
    path = write(tmp_path, "local: {listen: 'systemd:proxy', rules: [allow all]}")
    within = [launcher, "-l", f"127.0.0.1:{port}", "--fdname=proxy"]
    with web_server() as web, Program("-c", path, within=within) as program:
        program.wait_for("Listening on")
        assert curl(port, web) == "hello"
        program.wait_for(rf"local: listening on 127\.0\.0\.1:{port} ")
        program.wait_for("inbound=local .*outcome=ok")
        program.signal(signal.SIGTERM)
        assert program.end() == 0


def test_the_only_socket_needs_no_name(tmp_path: Path) -> None:
    launcher = needs.program("systemd-socket-activate", "systemd")
    sock = tmp_path / "s"
    path = write(tmp_path, "local: {listen: 'systemd:', rules: [allow all]}")
    with web_server() as web, Program("-c", path, within=[launcher, "-l", str(sock)]) as program:
        program.wait_for("Listening on")
        assert curl_at_path(sock, web).stdout == "hello"
        program.wait_for(rf"client=unix:{os.getuid()}:\d+ .*outcome=ok")


# --- several sockets, by their names ----------------------------------------------------------


def test_each_listener_has_the_socket_of_its_name(tmp_path: Path) -> None:
    with web_server() as web, udp_echo() as echo, ExitStack() as stack:
        first, second, admin = (stack.enter_context(listening()) for _ in range(3))
        unix = stack.enter_context(at_path(tmp_path / "s"))
        udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in (first, second, admin, udp)]
        path = write(
            tmp_path,
            f"""
local: {{listen: ['systemd:proxy', 'systemd:unix'], rules: [allow all]}}
admin: {{listen: 'systemd:admin'}}
forwards:
  - {{listen: 'systemd:web', to: 127.0.0.1:{web}}}
  - {{listen: 'systemd:dns', to: 127.0.0.1:{echo}, udp: true}}
""",
        )
        names = "proxy:web:admin:unix:dns"
        with launched(path, names, first, second, admin, unix, udp) as program:
            program.wait_for("admin: listening on http://")
            assert curl(ports[0], web) == "hello"
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"
            assert run("curl", "-sS", f"http://127.0.0.1:{ports[1]}/text/hi").stdout == "hi"
            token = (tmp_path / "admin.token").read_text().strip()
            header = f"Authorization: Bearer {token}"
            status = run(
                "curl", "-sS", "-H", header, f"http://127.0.0.1:{ports[2]}/v1/status"
            ).stdout
            assert f'"127.0.0.1:{ports[0]}", "unix:{tmp_path}/s"' in status
            assert ask_udp(ports[3], b"hello") == b"echo hello"
            program.signal(signal.SIGTERM)
            assert program.end() == 0
    assert (tmp_path / "s").exists(), "its file is of who has opened it"


def test_sockets_of_one_name_are_one_listener(tmp_path: Path) -> None:
    with web_server() as web, ExitStack() as stack:
        sockets = [stack.enter_context(listening()) for _ in range(2)]
        ports = [sock.getsockname()[1] for sock in sockets]
        path = write(tmp_path, "local: {listen: 'systemd:', rules: [allow all]}")
        with launched(path, "gsocks.socket:gsocks.socket", *sockets) as program:
            program.wait_for("local: listening on", 2)
            assert [curl(port, web) for port in ports] == ["hello", "hello"]
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ")
            assert [curl(port, web) for port in ports] == ["hello", "hello"]


def test_workers_share_passed_sockets_and_one_has_those_of_datagrams(tmp_path: Path) -> None:
    with web_server() as web, udp_echo() as echo, ExitStack() as stack:
        tcp = stack.enter_context(listening())
        udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in (tcp, udp)]
        path = write(
            tmp_path,
            "workers: 2\nlocal: {listen: 'systemd:a', rules: [allow all]}\n"
            f"forwards: [{{listen: 'systemd:b', to: 127.0.0.1:{echo}, udp: true}}]",
        )
        with launched(path, "a:b", tcp, udp) as program:
            program.wait_for("local: listening on", 2)
            assert [curl(ports[0], web) for _ in range(4)] == ["hello"] * 4
            assert [ask_udp(ports[1], b"x") for _ in range(10)] == [b"echo x"] * 10
            program.signal(signal.SIGTERM)
            assert program.end() == 0
            told = [line for line in program.lines if "command=udp_associate" in line]
            assert len(told) == 10
            assert all("[worker 0]" in line for line in told)


def test_what_connects_while_it_is_not_running_waits_for_the_next_start(tmp_path: Path) -> None:
    """As systemd holds the socket: no client of a restart is refused."""
    with web_server() as web, listening() as held:
        port = held.getsockname()[1]
        path = write(tmp_path, "local: {listen: 'systemd:a', rules: [allow all]}")
        with launched(path, "a", held.dup()) as program:
            assert program.port() == port
            program.signal(signal.SIGTERM)
            assert program.end() == 0
        client = socket.create_connection(("127.0.0.1", port), TOO_LONG)
        client.sendall(f"CONNECT 127.0.0.1:{web} HTTP/1.1\r\n\r\n".encode())
        with launched(path, "a", held.dup()), client:  # which is gone before the program drains
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


# --- mistakes ---------------------------------------------------------------------------------


def told(folder: Path, listen: str, names: str, *sockets: socket.socket) -> str:
    """The only line of a start that fails."""
    path = write(folder, listen)
    with launched(path, names, *sockets) as program:
        assert program.end() == 2
        return program.log.removesuffix("\n(ended)")


LOCAL = "local: {listen: 'systemd:%s'}"


def test_a_name_that_was_not_passed_is_told(tmp_path: Path) -> None:
    message = told(tmp_path, LOCAL % "web", "proxy", listening())
    assert message == "gsocks: systemd:web: no such socket was passed (passed: proxy)"


def test_what_is_no_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file:
        path = write(tmp_path, LOCAL % "a")
        within = launching("a", file)
        with Program("-c", path, within=within, pass_fds=[file.fileno()]) as program:
            assert program.end() == 2
            assert "gsocks: systemd:a: what was passed is no socket" in program.log


def test_without_a_name_there_may_be_one_only(tmp_path: Path) -> None:
    message = told(tmp_path, LOCAL % "", "a:b", listening(), listening())
    assert message == "gsocks: systemd: needs a name (sockets were passed: a, b)"


def test_a_socket_of_another_kind_is_told(tmp_path: Path) -> None:
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    assert "a socket of another kind" in told(tmp_path, LOCAL % "a", "a", udp)
    text = "forwards: [{listen: 'systemd:a', to: 'b:1', udp: true}]"
    assert "expected one of UDP (ListenDatagram=)" in told(tmp_path, text, "a", listening())


def test_a_socket_that_other_machines_can_reach_needs_users(tmp_path: Path) -> None:
    message = told(tmp_path, LOCAL % "a", "a", listening("0.0.0.0"))
    assert "local: the socket that was passed is at 0.0.0.0:" in message
    text = "local: {listen: 'unix:s'}\nadmin: {listen: 'systemd:a'}"
    assert "allow_remote: true" in told(tmp_path, text, "a", listening("0.0.0.0"))
    text = "forwards: [{listen: 'systemd:a', to: 'b:1'}]"
    assert "forwards: the socket that" in told(tmp_path, text, "a", listening("0.0.0.0"))


def test_a_socket_that_no_listener_uses_is_warned_of(tmp_path: Path) -> None:
    with launched(write(tmp_path, "local: {listen: 'unix:s'}"), "a", listening()) as program:
        program.wait_for("warning gsocks: systemd:a: a socket was passed that no listener uses")


def test_what_was_passed_to_another_process_is_none_of_it() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}
    inherited = Inherited.take(environ)
    assert inherited.names == []
    assert len(environ) == 3
    with pytest.raises(ConfigError, match=r"systemd:a: no such socket was passed \(passed: none"):
        inherited.named("a")


@pytest.mark.parametrize("count", ["", "x", "-1", "1025", "9" * 5000])
def test_a_count_that_is_none_is_told(count: str) -> None:
    with pytest.raises(ConfigError, match=r"^LISTEN_FDS: .* is not a number of sockets$"):
        Inherited.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_none_of_it_is_passed_on_to_other_processes() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", "OTHER": "1"}
    assert Inherited.take(environ).names == []
    assert environ == {"OTHER": "1"}


def test_a_connection_is_no_listener() -> None:
    with listening() as server, socket.create_connection(server.getsockname()) as connected:
        with pytest.raises(ConfigError, match=r"does not listen \(expected Accept=no\)"):
            check_kind(connected, "a", udp=False)
        check_kind(server, "a", udp=False)


def test_one_listener_has_it() -> None:
    text = "local: {listen: 'systemd:a'}\nforwards: [{listen: 'systemd:a', to: 'b:1'}]"
    with pytest.raises(ConfigError, match="duplicate address systemd:a: local listens there"):
        config.parse(text, Path())
