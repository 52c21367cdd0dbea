"""A new gsocks beside the old one: no connection is lost by an upgrade, nor by a rollback."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.network import private_network
from tests.support.ports import free_port
from tests.support.program import Program, gsocks, web_server

#: requests and connections that fall into the upgrade
CLIENTS = 4


def config(folder: Path, workers: int) -> Path:
    path = folder / "c.yaml"
    path.write_text(
        f"workers: {workers}\nlocal: {{listen: '127.0.0.1:{free_port()}', rules: [allow all]}}\n"
    )
    return path


def request(port: int, web: int) -> bytes:
    """The answer to one request by a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        target = f"http://127.0.0.1:{web}/text/hello"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def answer_or_error(port: int, web: int) -> bytes:
    try:
        return request(port, web)
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

        def ask(port: int) -> None:
            while not over.is_set():
                answers.append(answer_or_error(port, web))

        with Program("-c", path) as old:
            port = old.port()
            clients = [threading.Thread(target=ask, args=(port,)) for _ in range(CLIENTS)]
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
