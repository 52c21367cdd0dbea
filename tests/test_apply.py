"""The program's exits are others while it runs, and no connection ends by it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.exits import ExitDeps
from gsocks.rotation.apply import ExitUpdater
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.watch import ExitListWatcher
from tests.support.program import Program, gsocks, run, web_server
from tests.support.waiting import TOO_LONG


@contextmanager
def proxies(folder: Path, count: int) -> Iterator[list[int]]:
    """The ports of so many proxies, each in a process of its own."""
    with ExitStack() as running:
        ports = []
        for number in range(count):
            config = folder / f"behind{number}.yaml"
            config.write_text("local: {listen: '127.0.0.1:0', rules: [allow all]}")
            ports.append(running.enter_context(Program("-c", config)).port())
        yield ports


def config_of(folder: Path, local: str, top: str = "") -> Path:
    path = folder / "front.yaml"
    path.write_text(f"{top}\nlocal: {{listen: '127.0.0.1:0', rules: [allow all], {local}}}\n")
    return path


def replace(path: Path, text: str) -> None:
    """As a careful writer does it: moved into place."""
    other = path.with_name("new")
    other.write_text(text)
    other.rename(path)


def curl(port: int, web: int, word: str) -> str:
    done = run(
        "curl", "-sS", "--max-time", "20", "--socks5", f"127.0.0.1:{port}",
        f"http://127.0.0.1:{web}/text/{word}",
    )  # fmt: skip
    return done.stdout + done.stderr


def keep_talking(port: int, web: int) -> socket.socket:
    """A connection by way of the program, which waits to ask the web server."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG)
    sock.sendall(b"\5\1\0" + b"\5\1\0" + Address("127.0.0.1", web).encode())
    assert sock.recv(2, socket.MSG_WAITALL) == b"\5\0"
    assert sock.recv(10, socket.MSG_WAITALL)[1] == 0
    return sock


def ask(sock: socket.socket, word: str) -> None:
    sock.sendall(f"GET /text/{word} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(word.encode()):
        part = sock.recv(4096)
        assert part, answer
        answer += part


def test_a_list_and_the_config_change_while_a_connection_goes_on(tmp_path: Path) -> None:
    with proxies(tmp_path, 2) as (first, second), web_server() as web:
        exits = tmp_path / "list.txt"
        exits.write_text(f"127.0.0.1:{first} # in HTTP\n")
        config = config_of(tmp_path, "exit_sources: [{file: list.txt}]")
        with Program("-c", config) as program, keep_talking(program.port(), web) as sock:
            ask(sock, "before")
            replace(exits, f"127.0.0.1:{second} name=second\nsocks5://joe:secret@\n")
            program.wait_for(
                f"local: added http://127.0.0.1:{second} and removed http://127.0.0.1:{first}:"
                " 1 exits now"
            )
            program.wait_for(r"list\.txt: line 2 skipped: what stands behind socks5://")
            assert curl(program.port(), web, "two") == "two"
            program.wait_for("exit=second .*outcome=ok")
            ask(sock, "still")

            exits.write_text("<html>secret")
            program.wait_for(
                r"list\.txt: no list of exits \(looks like a web page\)"
                r" \(keeping the previous 1 exits"
            )
            assert curl(program.port(), web, "three") == "three"

            config_of(tmp_path, f"exits: ['socks5://127.0.0.1:{first}']")
            program.signal(signal.SIGHUP)
            program.wait_for(
                f"local: added socks5://127.0.0.1:{first} and removed http://127.0.0.1:{second}"
            )
            program.wait_for("reloaded: keys, users and exits")
            assert curl(program.port(), web, "four") == "four"
            program.wait_for(f"exit=socks5://127.0.0.1:{first} .*outcome=ok")

            config_of(tmp_path, "exits: []")
            program.signal(signal.SIGHUP)
            program.wait_for("not reloaded, the previous config stays: .*exits: needs an exit")
            (tmp_path / "list.txt").write_text("")
            config_of(tmp_path, "exit_sources: [{file: list.txt}]")
            program.signal(signal.SIGHUP)
            program.wait_for(r"local: exits not reloaded, the previous ones stay: .*no exit in it")
            assert curl(program.port(), web, "five") == "five"
            ask(sock, "end")
            program.signal(signal.SIGINT)
            assert program.end() == 0
        assert "secret" not in program.log


def test_a_reload_while_a_start_waits_for_a_list_comes_after_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as provider:
        url = f"http://127.0.0.1:{provider.getsockname()[1]}/list"
        with Program("-c", config_of(tmp_path, f"exit_sources: [{{url: '{url}'}}]")) as program:
            provider.settimeout(TOO_LONG)
            fetch, _ = provider.accept()
            with fetch:
                program.signal(signal.SIGHUP)
                fetch.recv(4096)
                fetch.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n127.0.0.1:9")
            program.port()
            program.wait_for("reloaded: keys, users and exits")


def test_dead_exits_of_a_list_are_passed_over(tmp_path: Path) -> None:
    with proxies(tmp_path, 1) as (alive,), web_server() as web, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and not listening
        dead = closed.getsockname()[1]
        (tmp_path / "list.txt").write_text(f"127.0.0.1:{dead}\n127.0.0.1:{alive}\n")
        source = "exit_sources: [{file: list.txt, scheme: socks5}]"
        with Program("-c", config_of(tmp_path, source)) as program:
            for word in ("one", "two"):
                assert curl(program.port(), web, word) == word
            program.wait_for(f"exit=socks5://127.0.0.1:{alive} .*outcome=ok", times=2)


def test_workers_fetch_a_url_once_and_all_go_out_by_it(tmp_path: Path) -> None:
    with proxies(tmp_path, 1) as (behind,), web_server() as web:
        # the page's text is the last part of its address
        url = f"http://127.0.0.1:{web}/text/127.0.0.1:{behind}"
        config = config_of(tmp_path, f"exit_sources: [{{url: '{url}', cache: kept}}]", "workers: 2")
        with Program("-c", config) as program:
            program.wait_for("local: listening on ", times=2)
            for word in "abcdef":
                assert curl(program.port(), web, word) == word
            program.wait_for(f"exit=http://127.0.0.1:{behind} .*outcome=ok", times=6)
            assert (tmp_path / "kept").read_bytes().endswith(f"127.0.0.1:{behind}".encode())
            taken = r"sources \[worker \d\]: http://127\.0\.0\.1:\d+/\.\.\.: 1 exits"
            program.wait_for(taken, times=2)


def test_a_worker_that_takes_a_dead_ones_place_has_the_exits_of_the_last_reload(
    tmp_path: Path,
) -> None:
    (tmp_path / "list.txt").write_text("10.0.0.7:80\n")
    config = config_of(tmp_path, "exit_sources: [{file: list.txt}]", "workers: 2")
    with proxies(tmp_path, 1) as (now,), web_server() as web, Program("-c", config) as program:
        port = program.port()
        program.wait_for("local: listening on ", times=2)
        config_of(tmp_path, f"exits: ['http://127.0.0.1:{now}']", "workers: 2")
        program.signal(signal.SIGHUP)
        program.wait_for("reloaded: ", times=2)
        (tmp_path / "list.txt").unlink()
        pid = program.process.pid
        for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(worker), signal.SIGKILL)
        program.wait_for("local: listening on ", times=4)
        assert curl(port, web, "again") == "again"
        program.wait_for(f"exit=http://127.0.0.1:{now} .*outcome=ok")


def test_a_program_without_any_exit_says_so_and_ends(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/secret"
        config = config_of(tmp_path, f"exit_sources: [{{url: '{url}'}}]")
        done = gsocks("-c", config)
    assert done.returncode == 2
    assert "gsocks: no exits: http://127.0.0.1:" in done.stderr
    assert "refused" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("content", ["", "<html>"])
def test_a_check_names_a_list_that_cannot_be_used(content: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(content)
    config = config_of(tmp_path, "exits: [direct], exit_sources: [{file: list.txt}]")
    done = gsocks("check", "-c", config)
    assert done.returncode == 2
    assert f"gsocks: {config}: {tmp_path}/list.txt: no " in done.stderr


def test_a_check_tells_what_would_be_fetched_and_fetches_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"exit_sources: [{{url: 'http://joe:secret@127.0.0.1:{port}/secret'}}]"
        done = gsocks("check", "-c", config_of(tmp_path, source))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert f"exits: the list at http://127.0.0.1:{port}/...\n" in done.stdout
    assert "secret" not in done.stdout


class Watched:
    """A watcher that only notes that it was closed."""

    closed = False

    def follow(self, on_change: object) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_an_updater_that_is_closed_watches_no_list_any_more() -> None:
    watched = Watched()
    group = ExitGroup([], ALLOW_ALL, fed=True)
    ExitUpdater("local", group, ExitDeps(ALLOW_ALL), cast(ExitListWatcher, watched)).close()
    assert watched.closed
