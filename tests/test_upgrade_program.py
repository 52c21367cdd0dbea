"""A new gsocks beside the old one: no connection is lost by an upgrade, nor by a rollback."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.network import private_network
from tests.support.ports import free_port
from tests.support.program import Program, gsocks, web_server
from tests.support.waiting import TOO_LONG

#: clients that ask one request after another during the upgrade
CLIENTS = 4

#: clients that have connected and said nothing, before the new one is there and after
SILENT = 30


def config(folder: Path, workers: int) -> Path:
    path = folder / "c.yaml"
    path.write_text(
        f"workers: {workers}\nlocal: {{listen: '127.0.0.1:{free_port()}', rules: [allow all]}}\n"
    )
    return path


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TOO_LONG)


def ask(sock: socket.socket, web: int) -> bytes:
    """The answer to one request, to its end."""
    target = f"http://127.0.0.1:{web}/text/hello"
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while data := sock.recv(65536):
        answer += data
    return answer


def request(port: int, web: int) -> bytes:
    """The answer to one request by a connection of its own."""
    with connect(port) as sock:
        return ask(sock, web)


def answer_or_error(of: Callable[[], bytes]) -> bytes:
    try:
        return of()
    except OSError as error:
        return repr(error).encode()


def test_without_a_word_a_second_gsocks_does_not_get_the_port(tmp_path: Path) -> None:
    path = config(tmp_path, 1)
    with Program("-c", path) as program:
        program.port()
        second = gsocks("-c", path)
        assert second.returncode == 2
        assert "address already in use" in second.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_no_connection_is_lost_while_another_one_takes_its_place(
    workers: int, tmp_path: Path
) -> None:
    needs.root()
    with private_network(), web_server() as web:
        # else those whose handshake is under way are reset with the old one's queue
        Path("/proc/sys/net/ipv4/tcp_migrate_req").write_text("1")
        path = config(tmp_path, workers)
        answers: list[bytes] = []
        over = threading.Event()

        def ask_on(port: int) -> None:
            while not over.is_set():
                answers.append(answer_or_error(partial(request, port, web)))

        with Program("-c", path) as old:
            port = old.port()
            clients = [threading.Thread(target=ask_on, args=(port,)) for _ in range(CLIENTS)]
            for client in clients:
                client.start()
            with Program("-c", path, "--beside") as new:
                new.wait_for("local: listening", workers)
                old.signal(signal.SIGTERM)
                assert old.end() == 0
                before = len(answers)
                while len(answers) < before + 20:
                    over.wait(0.01)
                over.set()
                for client in clients:
                    client.join()
        assert not [each for each in answers if not each.endswith(b"hello")]


def listening(port: int) -> int:
    """How many sockets of this thread's network listen there."""
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    found = [line.split() for line in lines]
    return sum(each[1].endswith(f":{port:04X}") and each[3] == "0A" for each in found)


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_that_have_said_nothing_when_the_old_one_is_told_to_end_are_all_served(
    workers: int, tmp_path: Path
) -> None:
    needs.root()
    with private_network(), web_server() as web, ExitStack() as stack:
        Path("/proc/sys/net/ipv4/tcp_migrate_req").write_text("1")
        path = config(tmp_path, workers)
        with Program("-c", path) as old:
            port = old.port()
            early = [stack.enter_context(connect(port)) for _ in range(SILENT)]
            with Program("-c", path, "--beside") as new:
                new.wait_for("local: listening", workers)
                # of these each may be the one's or the other's
                both = [stack.enter_context(connect(port)) for _ in range(SILENT)]
                old.signal(signal.SIGTERM)
                old.wait_for("shutting down, draining", workers)
                while_it_closes = []
                while listening(port) > workers:
                    while_it_closes.append(stack.enter_context(connect(port)))
                    time.sleep(0.01)  # as clients come, one after another
                silent = [*early, *both, *while_it_closes]
                answers = [answer_or_error(partial(ask, sock, web)) for sock in silent]
                assert old.end() == 0
        assert not [each for each in answers if not each.endswith(b"hello")]
        assert len(answers) > 2 * SILENT
