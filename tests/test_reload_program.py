"""SIGHUP with other addresses to listen at, and with another policy."""

from __future__ import annotations

import json
import signal
import socket as std_socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.program import Program, gsocks, run, web_server
from tests.support.waiting import TOO_LONG, eventually

CHANGED = "c.yaml: changed: "


def fetch(proxy: str, web: int) -> str:
    url = f"http://127.0.0.1:{web}/text/hello"
    return run("curl", "-sS", "--max-time", "20", "--proxy", proxy, url).stdout


def is_refused(port: int) -> bool:
    try:
        std_socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG).close()
    except ConnectionRefusedError:
        return True
    return False


def connected(port: int, web: int) -> std_socket.socket:
    """A connection through the proxy, at which the first byte of a request is outstanding."""
    sock = std_socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG)
    sock.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + web.to_bytes(2, "big"))
    with sock.makefile("rb") as file:
        answer = file.read(12)
    if answer[3:4] != b"\0":
        sock.close()
    assert answer[3:4] == b"\0"
    return sock


def goes_on(sock: std_socket.socket) -> bool:
    sock.sendall(b"GET /text/hello HTTP/1.0\r\n\r\n")
    with sock.makefile("rb") as file:
        return file.read().endswith(b"hello")


class Changing:
    """A config of ``local`` that is changed, and its program told."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.path = folder / "c.yaml"
        self.workers = workers
        self.program: Program | None = None
        self.reloads = 0

    def write(self, listen: str, more: str = "") -> Path:
        self.path.write_text(
            f"workers: {self.workers}\n{more}\n"
            f"local: {{listen: {listen}, exits: [direct], rules: [allow all]}}\n"
        )
        return self.path

    def reload(self, program: Program, listen: str, more: str = "") -> None:
        """Has every process served it."""
        self.write(listen, more)
        program.signal(signal.SIGHUP)
        self.reloads += 1
        program.wait_for("reloaded: keys, users and exits of ", self.reloads * self.workers)


@pytest.fixture(params=[1, 2])
def changing(request: pytest.FixtureRequest, tmp_path: Path) -> Changing:
    return Changing(tmp_path, request.param)


def test_a_reload_moves_a_listener_and_its_open_connections_go_on(changing: Changing) -> None:
    first, second = free_port(), free_port()
    listen = f"127.0.0.1:{first}"
    with web_server() as web, Program("-c", changing.write(listen)) as program:
        program.wait_for("local: listening on ", times=changing.workers)
        with closing(connected(first, web)) as before:
            changing.reload(program, f"127.0.0.1:{second}")
            assert CHANGED + "local.listen" in program.log
            assert "a restart is needed" not in program.log
            assert fetch(f"socks5h://127.0.0.1:{second}", web) == "hello"
            assert is_refused(first)
            assert goes_on(before)
        # and back, in one step with an address more
        changing.reload(program, f"['127.0.0.1:{first}', '127.0.0.1:{second}']")
        for port in (first, second):
            assert fetch(f"socks5h://127.0.0.1:{port}", web) == "hello"
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    told = f"local: no longer listening on 127.0.0.1:{first} (%s)"
    assert told % "1 open connection" in program.log
    assert program.log.count(told % "0 open connections") == changing.workers - 1


def greeting(sock: std_socket.socket) -> bytes:
    """What the proxy answers a client that offers no login; empty if it has left."""
    try:
        sock.sendall(b"\5\1\0")
        return sock.recv(2)
    except ConnectionError:
        return b""


def test_a_client_that_has_said_nothing_yet_is_served_after_a_move(changing: Changing) -> None:
    first, second = free_port(), free_port()
    with Program("-c", changing.write(f"127.0.0.1:{first}")) as program:
        program.wait_for("local: listening on ", times=changing.workers)
        with std_socket.create_connection(("127.0.0.1", first), timeout=TOO_LONG) as silent:
            changing.reload(program, f"127.0.0.1:{second}")
            assert is_refused(first)
            assert greeting(silent) == b"\5\0"


def test_a_client_that_has_said_nothing_yet_is_served_while_draining(changing: Changing) -> None:
    port = free_port()
    with Program("-c", changing.write(f"127.0.0.1:{port}")) as program:
        program.wait_for("local: listening on ", times=changing.workers)
        with std_socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG) as silent:
            program.signal(signal.SIGTERM)
            eventually(lambda: is_refused(port))
            assert greeting(silent) == b"\5\0"


def test_a_second_sigterm_waits_for_no_client(changing: Changing) -> None:
    port = free_port()
    with Program("-c", changing.write(f"127.0.0.1:{port}")) as program:
        program.wait_for("local: listening on ", times=changing.workers)
        with std_socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG) as silent:
            program.signal(signal.SIGTERM)
            program.wait_for("shutting down, draining", times=changing.workers)
            program.signal(signal.SIGTERM)
            program.end()
            assert greeting(silent) == b""


def test_a_busy_address_refuses_the_reload_in_one_line_and_changes_nothing(
    changing: Changing,
) -> None:
    first, third = free_port(), free_port()
    with (
        web_server() as web,
        std_socket.create_server(("127.0.0.1", 0)) as other,
        Program("-c", changing.write(f"127.0.0.1:{first}")) as program,
    ):
        program.wait_for("local: listening on ", times=changing.workers)
        busy = other.getsockname()[1]
        changing.write(f"['127.0.0.1:{third}', '127.0.0.1:{busy}']", "log: {level: debug}")
        program.signal(signal.SIGHUP)
        (refused,) = program.wait_for("not reloaded")
        assert refused.string.endswith(
            f"not reloaded, the previous config stays: 127.0.0.1:{busy}: address already in use"
        )
        assert fetch(f"socks5h://127.0.0.1:{first}", web) == "hello"
        assert is_refused(third)
        assert CHANGED not in program.log
        # and what was refused can be had once it is free
        other.close()
        changing.reload(program, f"127.0.0.1:{busy}")
        assert fetch(f"socks5h://127.0.0.1:{busy}", web) == "hello"
        assert program.log.count("not reloaded") == 1


def test_every_address_and_one_of_them_take_each_others_place(changing: Changing) -> None:
    port = free_port()
    with web_server() as web, Program("-c", changing.write(f"127.0.0.1:{port}")) as program:
        program.wait_for("local: listening on ", times=changing.workers)
        for other in (f"0.0.0.0:{port}", f"127.0.0.1:{port}"):
            changing.path.write_text(
                f"workers: {changing.workers}\n"
                f"local: {{listen: '{other}', exits: [direct], rules: [allow all],"
                " allow_anonymous: true}\n"
            )
            program.signal(signal.SIGHUP)
            changing.reloads += 1
            program.wait_for("reloaded: ", changing.reloads * changing.workers)
            assert fetch(f"socks5h://127.0.0.1:{port}", web) == "hello"


def test_a_unix_socket_comes_and_goes(changing: Changing, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "s.sock"
    with web_server() as web, Program("-c", changing.write(f"127.0.0.1:{port}")) as program:
        program.wait_for("local: listening on ", times=changing.workers)
        changing.reload(program, f"['127.0.0.1:{port}', 'unix:{path}']")
        for _ in range(4):
            assert fetch(f"socks5h://localhost{path}", web) == "hello"
        changing.reload(program, f"127.0.0.1:{port}")
        assert not path.exists()
        assert fetch(f"socks5h://127.0.0.1:{port}", web) == "hello"


def test_a_worker_that_is_started_later_listens_where_the_others_do(tmp_path: Path) -> None:
    changing = Changing(tmp_path, 2)
    first, second, path = free_port(), free_port(), tmp_path / "s.sock"
    with web_server() as web, Program("-c", changing.write(f"127.0.0.1:{first}")) as program:
        program.wait_for("local: listening on ", times=2)
        changing.reload(program, f"['127.0.0.1:{second}', 'unix:{path}']")
        children = f"/proc/{program.process.pid}/task/{program.process.pid}/children"
        for pid in Path(children).read_text().split():
            run("kill", "-KILL", pid)
        program.wait_for(f"listening on 127.0.0.1:{second} ", times=4)
        program.wait_for(f"listening on unix:{path} ", times=4)
        assert fetch(f"socks5h://127.0.0.1:{second}", web) == "hello"
        assert is_refused(first)
        changing.reloads = 1
        changing.reload(program, f"['127.0.0.1:{first}', 'unix:{path}']")
        for proxy in (f"socks5h://127.0.0.1:{first}", f"socks5h://localhost{path}"):
            assert fetch(proxy, web) == "hello"
        assert is_refused(second)


def test_the_server_the_admin_and_health_move_too(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(6)]
    path = tmp_path / "c.yaml"

    def write(server: int, admin: int, health: int) -> None:
        path.write_text(
            f"server: {{listen: '127.0.0.1:{server}', keys: {{me: {{file: k}}}},"
            " rules: [allow all]}\n"
            f"admin: {{listen: '127.0.0.1:{admin}'}}\n"
            f"health: {{listen: '127.0.0.1:{health}'}}\n"
        )

    write(*ports[:3])
    local = tmp_path / "local.yaml"

    def write_local(server: int) -> None:
        local.write_text(
            f"local: {{listen: '127.0.0.1:0', exits: [{{url: 'gsocks://127.0.0.1:{server}',"
            " key_file: k}], rules: [allow all]}\n"
        )

    with web_server() as web, Program("-c", path) as program:
        program.wait_for("health: listening on ")
        write_local(ports[0])
        with Program("-c", local) as near, closing(connected(near.port(), web)) as before:
            write(*ports[3:])
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ")
            for port in ports[:3]:
                assert is_refused(port)
            assert goes_on(before)
            write_local(ports[3])
            near.signal(signal.SIGHUP)
            near.wait_for("reloaded: ")
            assert fetch(f"socks5h://127.0.0.1:{near.port()}", web) == "hello"
        token = (tmp_path / "admin.token").read_text().strip()
        status = json.loads(
            run(
                *("curl", "-sS", "--max-time", "20", "-H", f"Authorization: Bearer {token}"),
                f"http://127.0.0.1:{ports[4]}/v1/status",
            ).stdout
        )
        assert f"127.0.0.1:{ports[3]}" in json.dumps(status)
        assert run("curl", "-sSf", f"http://127.0.0.1:{ports[5]}/healthz").returncode == 0


def test_an_address_that_needs_what_needs_a_restart_is_refused(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "c.yaml"
    path.write_text("local: {listen: '127.0.0.1:0', exits: [direct]}\n")
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    with Program("-c", path) as program:
        program.port()
        path.write_text(
            f"local: {{listen: '0.0.0.0:{port}', exits: [direct],"
            " tls: {cert: cert.pem, key: key.pem, client_ca: ca.pem}}\n"
        )
        program.signal(signal.SIGHUP)
        program.wait_for("not reloaded, the previous config stays: local.listen: 0.0.0.0:.* open")
        assert is_refused(port)


def test_a_reload_takes_another_policy(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"

    def write(rotate: str) -> None:
        path.write_text(f"local: {{listen: '127.0.0.1:0', exits: [direct], rotate: {rotate}}}\n")

    write("fastest")
    with Program("-c", path) as program:
        program.port()
        write("random")
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ")
        assert CHANGED + "local.rotate" in program.log
        assert "a restart is needed" not in program.log
    write("fast")
    assert gsocks("check", "-c", path).returncode == 2
