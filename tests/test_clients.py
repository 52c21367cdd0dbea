"""Both ends in processes of their own: much, many at once, and whatever may end or die."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.support.program import (
    Program,
    both_programs,
    chunks,
    gsocks,
    in_threads,
    kill,
    local_config,
    run,
    sha256_of_bytes,
    web_server,
)
from tests.support.waiting import TOO_LONG, eventually

GIB = 1 << 30


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    with web_server() as port:
        yield port


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, Program]]:
    with both_programs(tmp_path_factory.mktemp("ends")) as programs:
        yield programs


@pytest.fixture(scope="module")
def port(ends: tuple[Program, Program]) -> int:
    return ends[0].port()


# --- much -------------------------------------------------------------------------------------


def test_a_gibibyte_comes_down_whole(port: int, web: int, tmp_path: Path) -> None:
    done = run(
        "bash", "-c",
        f"curl -sS --socks5-hostname 127.0.0.1:{port} http://127.0.0.1:{web}/bytes/{GIB}"
        " | sha256sum",
    )  # fmt: skip
    assert done.stdout.split()[0] == sha256_of_bytes(GIB), done.stderr


def test_a_gibibyte_goes_up_whole(port: int, web: int, tmp_path: Path) -> None:
    path = tmp_path / "gibibyte"
    with path.open("wb") as file:
        for chunk in chunks(GIB):
            file.write(chunk)
    proxy = ("--socks5-hostname", f"127.0.0.1:{port}")
    done = run("curl", "-sS", "--fail", *proxy, "-T", path, f"http://127.0.0.1:{web}/")
    path.unlink()
    assert done.stdout == sha256_of_bytes(GIB), done.stderr


def connect(port: int, target: tuple[str, int]) -> socket.socket:
    """A SOCKS5 client in three lines of the RFC."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=TOO_LONG)
    request = b"\x05\x01\x00\x01" + socket.inet_aton(target[0]) + target[1].to_bytes(2, "big")
    try:
        sock.sendall(b"\x05\x01\x00" + request)
        got = b""
        while len(got) < 12:
            data = sock.recv(12 - len(got))
            if not data:
                raise ConnectionError("the proxy closed")
            got += data
        if got[3]:
            raise ConnectionError(f"REP {got[3]}")
    except BaseException:
        sock.close()
        raise
    return sock


def test_five_hundred_connections_at_once_are_served_and_never_mixed_up(
    tmp_path: Path, web: int
) -> None:
    limits = "  limits: {per_client: 1000}\n"
    with (
        both_programs(tmp_path, local=limits, server=limits) as (near, _),
        closing(socket.create_server(("127.0.0.1", 0), backlog=1024)) as target,
    ):
        everybody_is_in = threading.Barrier(500)
        port = near.port()

        def serve() -> None:
            while True:
                try:
                    conn, _ = target.accept()
                except OSError:
                    return
                threading.Thread(target=echo, args=(conn,), daemon=True).start()

        def echo(conn: socket.socket) -> None:
            with conn:
                while data := conn.recv(65536):
                    conn.sendall(data)

        def connection(number: int) -> None:
            sent = hashlib.shake_128(str(number).encode()).digest(20_000)
            with connect(port, target.getsockname()) as sock:
                everybody_is_in.wait(TOO_LONG)
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)
                got = b""
                while data := sock.recv(65536):
                    got += data
            assert got == sent

        threading.Thread(target=serve, daemon=True).start()
        failures = in_threads(500, connection)
        target.shutdown(socket.SHUT_RDWR)
    assert not failures, failures[:3]


# --- ends -------------------------------------------------------------------------------------


def test_a_half_closed_connection_goes_on_in_the_other_direction(port: int) -> None:
    big = hashlib.shake_128(b"half").digest(1 << 20)
    for client_first in (True, False):
        with closing(socket.create_server(("127.0.0.1", 0))) as target:
            client = connect(port, target.getsockname())
            far, _ = target.accept()
            far.settimeout(TOO_LONG)
            first, second = (client, far) if client_first else (far, client)
            first.sendall(b"that is all")
            first.shutdown(socket.SHUT_WR)
            assert read_all(second) == b"that is all"
            sender = threading.Thread(target=send_and_end, args=(second, big))
            sender.start()
            assert read_all(first) == big
            sender.join(TOO_LONG)
            client.close()
            far.close()


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_a_reset_is_carried_through_as_a_reset(port: int) -> None:
    for client_resets in (True, False):
        with closing(socket.create_server(("127.0.0.1", 0))) as target:
            client = connect(port, target.getsockname())
            far, _ = target.accept()
            far.settimeout(TOO_LONG)
            first, second = (client, far) if client_resets else (far, client)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            with pytest.raises(ConnectionResetError):
                read_all(second)
            second.close()


def test_a_server_killed_in_mid_transfer_gives_the_client_a_reset_and_no_short_end(
    tmp_path: Path,
) -> None:
    with (
        both_programs(tmp_path) as (near, far),
        closing(socket.create_server(("127.0.0.1", 0))) as target,
    ):
        client = connect(near.port(), target.getsockname())
        source, _ = target.accept()
        sender = threading.Thread(target=send_until_it_breaks, args=(source,), daemon=True)
        sender.start()
        assert sum(len(client.recv(65536)) for _ in range(64)) > 0
        kill(far)
        with pytest.raises(ConnectionResetError):
            read_all(client)
        sender.join(TOO_LONG)
        near.wait_for("outcome=remote_(truncated|reset)")
        client.close()
        source.close()


def send_until_it_breaks(sock: socket.socket) -> None:
    try:
        while True:
            sock.sendall(bytes(65536))
    except OSError:
        pass


def test_a_server_killed_and_started_again_under_load_is_used_again_within_two_seconds(
    tmp_path: Path, web: int
) -> None:
    # clients that were cut off may keep sockets open for as long as they like
    quick = "  timeouts: {drain: 100ms}\n"
    with both_programs(tmp_path, local=quick, server=quick) as (near, first):
        port, server_port = near.port(), first.port("server")
        config = tmp_path / "server.yaml"
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{server_port}"))
        stop = threading.Event()
        outcomes: list[str] = []

        def load(number: int) -> None:
            size = 1 << 18
            expected = sha256_of_bytes(size)
            session = requests.Session()
            session.proxies = {"http": f"socks5h://127.0.0.1:{port}"}
            while not stop.is_set():
                outcomes.append(fetch(session, size, expected))
            session.close()

        def fetch(session: requests.Session, size: int, expected: str) -> str:
            url = f"http://127.0.0.1:{web}/bytes/{size}"
            try:
                body = session.get(url, timeout=TOO_LONG).content
            except requests.RequestException:
                return "failed visibly"
            return "right" if hashlib.sha256(body).hexdigest() == expected else "WRONG"

        threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in range(8)]
        for thread in threads:
            thread.start()
        server = first
        for _ in range(2):
            wait_for_more(outcomes, "right", 20)
            kill(server)
            wait_for_more(outcomes, "failed visibly", 5)
            server = Program("-c", config)
            server.port("server")
            # the first request after the return, by a client that has waited for nothing
            proxies = {"http": f"socks5h://127.0.0.1:{port}"}
            url = f"http://127.0.0.1:{web}/text/back"
            assert requests.get(url, proxies=proxies, timeout=TOO_LONG).text == "back"
        wait_for_more(outcomes, "right", 20)
        stop.set()
        for thread in threads:
            thread.join(TOO_LONG)
        with server:
            assert "WRONG" not in outcomes


def wait_for_more(outcomes: list[str], kind: str, count: int) -> None:
    wanted = outcomes.count(kind) + count
    eventually(lambda: outcomes.count(kind) >= wanted, within=TOO_LONG)


def test_a_local_end_whose_server_is_away_says_so_and_answers_at_once(
    tmp_path: Path, web: int
) -> None:
    gsocks("keygen", tmp_path / "gsocks.key")
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        free = sock.getsockname()[1]
    (tmp_path / "local.yaml").write_text(local_config(free))
    with Program("-c", tmp_path / "local.yaml") as near:
        with pytest.raises(ConnectionError, match="REP 1"):
            connect(near.port(), ("127.0.0.1", web))
        near.wait_for("outcome=exit_failed .*Connection refused")
        near.wait_for("no tunnel can be opened: .*Connection refused")


def test_another_key_is_told_by_a_word_that_helps(tmp_path: Path, web: int) -> None:
    quick = "  timeouts: {handshake: 300ms}\n"
    with both_programs(tmp_path, server=quick) as (near, far):
        near.port()
        gsocks("keygen", tmp_path / "other.key")
        config = tmp_path / "other.yaml"
        text = local_config(far.port("server")).replace("gsocks.key", "other.key")
        config.write_text(text)
        with Program("-c", config) as other:
            with pytest.raises(ConnectionError, match="REP 1"):
                connect(other.port(), ("127.0.0.1", web))
            other.wait_for("another key, clocks more than 30 s apart")
        far.wait_for("outcome=stranger")
