"""At ``log.level: debug`` the log tells the life of each connection, and no secret."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nacl.pwhash import argon2id

from gsocks.crypto import Key
from tests.support.ports import free_port
from tests.support.program import Program, both_programs, run, web_server

LOCAL = """
log: {{level: debug}}
local:
  listen: 127.0.0.1:0
  users: {{alice: "{hash}"}}
  rules: [allow all]
  exits:
    - {{url: "socks5://provider:hidden-word@127.0.0.1:{closed}", name: first}}
    - {{url: direct, name: second}}
"""


DEBUG = "log: {level: debug}\n"


def lines_of(program: Program, connection: str) -> list[str]:
    """What the log says of one connection, without times and ports."""
    found = []
    for line in program.lines:
        if re.search(rf"\b{connection}\b", line):
            _, _, message = line.partition(" debug gsocks.connection: ")
            found.append(re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", message or line.split(" ", 2)[2]))
    return found


def test_a_connection_is_followed_by_one_id_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    hash_ = argon2id.str(b"open sesame", 1, argon2id.MEMLIMIT_MIN).decode()
    (tmp_path / "config.yaml").write_text(LOCAL.format(hash=hash_, closed=free_port()))
    with web_server() as web, Program("-c", tmp_path / "config.yaml") as program:
        proxy = f"socks5h://alice:open%20sesame@127.0.0.1:{program.port()}"
        done = run("curl", "-sS", "--proxy", proxy, f"http://127.0.0.1:{web}/text/hello")
        assert done.stdout == "hello"
        id_ = program.wait_for(r"gsocks\.connection: (\S+) closed$")[0][1]
    assert re.fullmatch(r"[0-9a-f]+-1", id_)
    *lines, access, closed = lines_of(program, id_)
    begins = [
        f"{id_} accepted from ADDRESS by local",
        f"{id_} requested: SOCKS5 connect ADDRESS, user alice, exit: any",
        f"{id_} trying exit first (socks5://provider:***@ADDRESS)",
        f"{id_} exit first failed: exit_failed: socks5://provider:***@ADDRESS: Connection refused",
    ]
    assert lines[: len(begins)] == begins
    ends = lines[len(begins) :]
    assert ends[:-1] == [
        f"{id_} retrying exit second (direct)",
        f"{id_} connected by exit second, bound to ADDRESS",
    ]
    assert re.fullmatch(rf"{id_} ended: ok, \d+ bytes up, \d+ bytes down, \d+\.\d{{3}} s", ends[-1])
    assert access.startswith(f"gsocks.access: id={id_} inbound=local client=ADDRESS user=alice ")
    assert closed == f"{id_} closed"


def test_the_requests_of_a_tunnel_are_numbered_behind_its_id(tmp_path: Path) -> None:
    with (
        web_server() as web,
        both_programs(tmp_path, top=DEBUG, local=DEBUG) as (near, far),
    ):
        for _ in range(2):
            url = f"http://127.0.0.1:{web}/text/hello"
            proxy = f"socks5h://127.0.0.1:{near.port()}"
            assert run("curl", "-sS", "--proxy", proxy, url).stdout == "hello"
        ended = far.wait_for(r"gsocks\.connection: (\S+)\.(\d+) ended: ok", times=2)
        far.wait_for(rf"gsocks\.connection: {ended[0][1]} tunnel opened with key default$")
        request = f"{ended[0][1]}.{ended[0][2]}"
        # what becomes of the tunnel stands under the connection that has it, at both ends
        near.wait_for(r"gsocks\.connection: \S+-1 ClientTunnel \S+ idle -> opening \(OPEN\)$")
        near.wait_for(r"gsocks\.connection: \S+-1 ClientTunnel \S+ \S+ -> idle \(\w.*\)$")
        server_id = re.escape(ended[0][1])
        far.wait_for(rf"gsocks\.connection: {server_id} ServerTunnel \S+ idle -> stream ")
        far.wait_for(rf"gsocks\.access: id={re.escape(request)} inbound=server .*user=default")
        assert lines_of(far, request)[0] == (
            f"{request} requested: tunnel connect ADDRESS, user default, exit: any"
        )


def test_the_requests_of_an_http_connection_are_numbered_behind_its_id(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "log: {level: debug}\nlocal: {listen: '127.0.0.1:0', rules: [allow all], exits: [direct]}\n"
    )
    with web_server() as web, Program("-c", config) as program:
        proxy = f"http://x-session-cart17@127.0.0.1:{program.port()}"
        url = f"http://127.0.0.1:{web}/text/hello?token=hidden-word"
        run("curl", "-sS", "--proxy", proxy, url, url)
        id_ = program.wait_for(r"gsocks\.connection: (\S+) closed$")[0][1]
    requested = [line for line in lines_of(program, id_) if "requested" in line]
    assert requested == [
        f"{id_}.{number} requested: HTTP GET ADDRESS, user -, exit: session cart17"
        for number in (1, 2)
    ]
    assert "hidden-word" not in program.log


@contextmanager
def refusing_proxy() -> Iterator[int]:
    """A SOCKS5 proxy that takes no credentials."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock, suppress(ConnectionError):  # not every exit speaks SOCKS5
                    sock.recv(100)
                    sock.sendall(b"\x05\x02")
                    sock.recv(600)
                    sock.sendall(b"\x01\x01")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nothing_secret_is_logged_at_debug_level(tmp_path: Path) -> None:
    secrets = ["open sesame", "wrong-guess", "api-key-1234", "hidden-word", "b3BlbiBzZXNhbWU"]
    key = Key.generate().text()
    (tmp_path / "gsocks.key").write_text(key)
    hash_ = argon2id.str(b"open sesame", 1, argon2id.MEMLIMIT_MIN).decode()
    with refusing_proxy() as port, web_server() as web:
        text = LOCAL.format(hash=hash_, closed=port)
        text += (
            f'    - {{url: "http://api-key-1234@127.0.0.1:{port}"}}\n'
            f'    - {{url: "gsocks://{key}@127.0.0.1:{port}"}}\n'
        )
        (tmp_path / "config.yaml").write_text(text)
        with Program("-c", tmp_path / "config.yaml") as program:
            at = f"127.0.0.1:{program.port()}"
            for scheme in ("socks5h", "http"):
                for password in ("open%20sesame", "wrong-guess"):
                    url = f"http://user:hidden-word@127.0.0.1:{web}/text/hello?key=hidden-word"
                    proxy = f"{scheme}://alice:{password}@{at}"
                    run("curl", "-sS", "--max-time", "20", "--proxy", proxy, url)
            program.wait_for(r"ended: ", times=4)
            program.wait_for("exit first failed: ")
    for secret in [*secrets, key, hash_]:
        assert secret not in program.log, secret
