"""gsocks as a program behind Unix sockets."""

from __future__ import annotations

import os
import signal
import socket as std_socket
from pathlib import Path

from tests.support.program import (
    Program,
    both_programs,
    curl_at_path,
    gsocks,
    run,
    web_server,
)
from tests.support.waiting import TOO_LONG


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


LOCAL = "local: {listen: unix:s, rules: [allow all]}\n"


def test_curl_comes_in_by_a_unix_socket_which_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with web_server() as web, Program("-c", write(tmp_path, LOCAL)) as program:
        program.wait_for(rf"local: listening on unix:{path} ")
        program.wait_for(rf"try it: curl --proxy socks5h://localhost{path} https://")
        assert curl_at_path(path, web).stdout == "hello"
        program.wait_for(rf"inbound=local client=unix:{os.getuid()}:\d+ user=- .*outcome=ok")
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ")
        assert curl_at_path(path, web).stdout == "hello"
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    assert not path.exists()


def test_so_it_does_with_http(tmp_path: Path) -> None:
    """By curl's --unix-socket, which takes the socket for any host, in absolute form."""
    with web_server() as web, Program("-c", write(tmp_path, LOCAL)) as program:
        program.wait_for("local: listening on unix:")
        url = f"http://127.0.0.1:{web}/text/hello"
        command = ["curl", "-sS", "--unix-socket", str(tmp_path / "s"), "--request-target", url]
        assert run(*command, url).stdout == "hello"
        program.wait_for(rf"client=unix:\d+:\d+ .*dest=127\.0\.0\.1:{web} .*outcome=ok")


def test_http_connect_comes_in_too(tmp_path: Path) -> None:
    with web_server() as web, Program("-c", write(tmp_path, LOCAL)) as program:
        program.wait_for("local: listening on unix:")
        with std_socket.socket(std_socket.AF_UNIX) as sock:
            sock.settimeout(TOO_LONG)
            sock.connect(str(tmp_path / "s"))
            sock.sendall(f"CONNECT 127.0.0.1:{web} HTTP/1.1\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
            sock.sendall(b"GET /text/hi HTTP/1.0\r\n\r\n")
            got = b""
            while part := sock.recv(4096):
                got += part
            assert got.endswith(b"hi")


def test_a_live_socket_is_one_clear_line_and_a_dead_ones_file_none(tmp_path: Path) -> None:
    path = write(tmp_path, LOCAL)
    with web_server() as web:
        with Program("-c", path) as program:
            program.wait_for("local: listening on unix:")
            done = gsocks("-c", path)
            assert done.returncode == 2
            assert done.stderr.endswith(
                f"gsocks: unix:{tmp_path}/s: another program listens there already\n"
            )
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"
            program.process.kill()
            program.end()
        assert (tmp_path / "s").exists()
        with Program("-c", path) as program:
            program.wait_for("local: listening on unix:")
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"


def test_an_older_process_that_drains_leaves_the_socket_of_a_newer_one(tmp_path: Path) -> None:
    path = write(tmp_path, LOCAL)
    with (
        web_server() as web,
        Program("-c", path) as old,
        std_socket.socket(std_socket.AF_UNIX) as open_one,
    ):
        old.wait_for("local: listening on unix:")
        open_one.settimeout(TOO_LONG)
        open_one.connect(str(tmp_path / "s"))
        open_one.sendall(f"CONNECT 127.0.0.1:{web} HTTP/1.1\r\n\r\n".encode())
        assert open_one.recv(4096).startswith(b"HTTP/1.1 200 ")
        old.signal(signal.SIGTERM)
        old.wait_for("draining 1 connection")
        with Program("-c", path) as new:
            new.wait_for("local: listening on unix:")
            open_one.close()
            assert old.end() == 0
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"


def test_workers_share_a_unix_socket(tmp_path: Path) -> None:
    with web_server() as web, Program("-c", write(tmp_path, "workers: 2\n" + LOCAL)) as program:
        program.wait_for(r"\[worker [01]\]: local: listening on unix:", 2)
        for _ in range(4):
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"
        (worker,) = _children(program)[:1]
        os.kill(worker, signal.SIGKILL)
        program.wait_for("exited with SIGKILL, restarting")
        program.wait_for(r"local: listening on unix:", 3)
        for _ in range(4):
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"
        program.signal(signal.SIGTERM)
        assert program.end() == 0
    assert not (tmp_path / "s").exists()


def _children(program: Program) -> list[int]:
    pid = program.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_while_workers_drain_no_client_waits_at_the_socket(tmp_path: Path) -> None:
    text = "workers: 2\n" + LOCAL
    with (
        web_server() as web,
        Program("-c", write(tmp_path, text)) as program,
        std_socket.socket(std_socket.AF_UNIX) as open_one,
    ):
        program.wait_for(r"local: listening on unix:", 2)
        open_one.settimeout(TOO_LONG)
        open_one.connect(str(tmp_path / "s"))
        open_one.sendall(f"CONNECT 127.0.0.1:{web} HTTP/1.1\r\n\r\n".encode())
        assert open_one.recv(4096).startswith(b"HTTP/1.1 200 ")
        program.signal(signal.SIGTERM)
        program.wait_for("draining 1 connection")
        assert not (tmp_path / "s").exists()
        open_one.close()
        assert program.end() == 0


def test_the_admin_answers_at_a_unix_socket_to_those_who_have_the_token(tmp_path: Path) -> None:
    text = LOCAL + "admin: {listen: unix:admin.sock}\n"
    with Program("-c", write(tmp_path, text)) as program:
        program.wait_for(rf"admin: listening on unix:{tmp_path}/admin.sock \(dashboard, JSON")
        token = (tmp_path / "admin.token").read_text().strip()

        def ask(*more: str) -> str:
            command = ["curl", "-sS", "--unix-socket", str(tmp_path / "admin.sock"), *more]
            return run(*command, "http://localhost/v1/status").stdout

        assert f'"listen": ["unix:{tmp_path}/s"]' in ask("-H", f"Authorization: Bearer {token}")
        assert "expected Authorization" in ask()
        program.signal(signal.SIGINT)
        assert program.end() == 0
    assert not (tmp_path / "admin.sock").exists()


def test_users_log_in_and_failures_are_counted_for_the_one_who_connects(tmp_path: Path) -> None:
    done = gsocks("passwd", stdin="open-sesame\n")
    text = f"local: {{listen: unix:s, rules: [allow all], users: {{ali: '{done.stdout.strip()}'}}}}"
    with web_server() as web, Program("-c", write(tmp_path, text)) as program:
        program.wait_for("local: listening on unix:")
        assert curl_at_path(tmp_path / "s", web).returncode == 97
        assert curl_at_path(tmp_path / "s", web, "-U", "ali:sesame").returncode == 97
        program.wait_for(rf"client=unix:{os.getuid()}:\d+ .*outcome=auth_failed")
        assert curl_at_path(tmp_path / "s", web, "-U", "ali:open-sesame").stdout == "hello"
        program.wait_for(rf"client=unix:{os.getuid()}:\d+ user=ali .*outcome=ok")


def test_both_ends_may_be_reached_by_unix_sockets(tmp_path: Path) -> None:
    with web_server() as web, both_programs(tmp_path) as (near, _):
        text = (tmp_path / "local.yaml").read_text().replace("127.0.0.1:0", "unix:s")
        (tmp_path / "unix.yaml").write_text(text)
        assert near
        with Program("-c", tmp_path / "unix.yaml") as program:
            program.wait_for("local: listening on unix:")
            assert curl_at_path(tmp_path / "s", web).stdout == "hello"


def test_check_tells_where_it_would_listen(tmp_path: Path) -> None:
    done = gsocks("check", "-c", write(tmp_path, LOCAL))
    assert f"local: listens on unix:{tmp_path}/s, exits: direct" in done.stdout
    assert not (tmp_path / "s").exists()
