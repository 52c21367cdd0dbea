"""Node's ``socks`` package: CONNECT, BIND and UDP ASSOCIATE."""

from __future__ import annotations

import json
import socket
import subprocess

from tests.support import needs
from tests.support.program import ROOT
from tests.support.real import NAME, PASSWORD, Listener, Listeners, answer_with_digest, tcp_server
from tests.support.waiting import TOO_LONG

FOLDER = ROOT / "tests" / "node"


def node(inbound: Listener, command: str, host: str, port: int) -> subprocess.Popen[str]:
    if not (FOLDER / "node_modules" / "socks").exists():
        needs.missing("needs the packages of tests/node: npm ci --prefix tests/node")
    login = (NAME, PASSWORD) if inbound.credentials else ("", "")
    words = (command, str(inbound.port), *login, host, str(port))
    return subprocess.Popen(
        [needs.program("node", "nodejs"), FOLDER / "clients.js", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    told, complaint = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 0, complaint
    return told


def test_it_connects_and_ends_its_side_alone(inbound: Listener) -> None:
    with tcp_server(answer_with_digest) as port:
        told = ended(node(inbound, "connect", "localhost", port))
        assert told == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\n"
        inbound.carried(f"localhost:{port}")


def test_it_waits_for_a_connection(inbound: Listener) -> None:
    process = node(inbound, "bind", "127.0.0.1", 0)
    assert process.stdout is not None
    host, port = process.stdout.readline().split()
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port)), timeout=TOO_LONG) as peer:
        assert process.stdout.readline() == "{} {}\n".format(*peer.getsockname())
        peer.sendall(b"knock")
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(100, socket.MSG_WAITALL) == b"knock"
    assert ended(process) == ""
    inbound.carried("127.0.0.1:0", command="bind")


def test_it_sends_a_datagram_and_hears_the_answer(inbound: Listener) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(TOO_LONG)
        port = server.getsockname()[1]
        process = node(inbound, "associate", "127.0.0.1", port)
        data, source = server.recvfrom(100)
        server.sendto(data.upper(), source)
        told = ended(process)
        assert told == f"127.0.0.1 {port} HELLO\n"
        inbound.carried(f"127.0.0.1:{port}", command="udp_associate")


def test_it_is_told_the_reason_of_a_failure(inbounds: Listeners) -> None:
    process = node(inbounds.open, "connect", "192.0.2.1", 80)
    _, complaint = process.communicate(timeout=TOO_LONG)
    assert process.returncode == 1
    assert "NotAllowed" in complaint


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
