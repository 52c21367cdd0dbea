"""The DNS listener as a program, with dig as its client, in a network where every leak counts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from tests.support import needs
from tests.support.network import private_network
from tests.support.packet_filter import HERE4, HERE6, documented, nft, public_addresses
from tests.support.ports import free_port
from tests.support.program import Program, gsocks, run
from tests.support.proxies import microsocks
from tests.support.waiting import TOO_LONG, eventually

CONFIG = """
dns_listener:
  listen: ["127.0.0.1:0", "[::1]:0"]
  server: {server}
  exits: ["socks5://127.0.0.1:{exit}"]
"""

#: a user that is not the one whom gsocks runs as here
OTHER_USER = 65534

#: counts what leaves for the name server's address but by the exit, which has another user
COUNTING = """
table inet leaks {{
    counter found {{ }}
    chain output {{
        type filter hook output priority 0
        meta skuid {user} ip daddr {server4} ct state new counter name found
        meta skuid {user} ip6 daddr {server6} ct state new counter name found
        meta skuid {user} meta l4proto udp oifname != "lo" counter name found
    }}
}}
"""


@contextmanager
def upstream(host: str) -> Iterator[int]:
    """A name server for TCP alone, in threads, whose every name has the address 192.0.2.1."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen()

        def serve(sock: socket.socket) -> None:
            with sock, sock.makefile("rb") as file:
                while len(head := file.read(2)) == 2:
                    asked = dns.message.from_wire(file.read(int.from_bytes(head, "big")))
                    made = dns.message.make_response(asked)
                    name = asked.question[0].name.to_text()
                    count = 100 if name.startswith("many.") else 1
                    addresses = [f"192.0.2.{n + 1}" for n in range(count)]
                    made.answer.append(dns.rrset.from_text(name, 300, "IN", "A", *addresses))
                    wire = made.to_wire(max_size=65535)
                    sock.sendall(len(wire).to_bytes(2, "big") + wire)

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(TOO_LONG)


def ports_of(program: Program) -> list[tuple[str, int]]:
    lines = program.wait_for(r"dns_listener: listening on (\S+):(\d+) \(UDP, TCP\)", 2)
    return [(line[1].strip("[]"), int(line[2])) for line in lines]


def dig(host: str, port: int, *words: str) -> str:
    done = run(
        needs.program("dig", "bind9-dnsutils"), f"@{host}", "-p", str(port), "+tries=1",
        "+time=20", "+nocookie", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def gateway(
    folder: Path, server: str, more: str = "", exit_port: int | None = None
) -> Iterator[tuple[Program, list[tuple[str, int]]]]:
    path = folder / "c.yaml"
    with microsocks(port=exit_port) as exit_:
        path.write_text(CONFIG.format(server=server, exit=exit_.port) + more)
        with Program("-c", path) as program:
            yield program, ports_of(program)


def test_dig_is_answered_through_a_socks_exit_and_nothing_leaves_in_another_way(
    tmp_path: Path,
) -> None:
    needs.root()
    with private_network():
        public_addresses()
        port = free_port()
        # the exit alone may go there; microsocks runs as another user
        with (
            upstream(HERE4) as upstream_port,
            socks_of_another_user(port),
            Program("-c", written(tmp_path, f"{HERE4}:{upstream_port}", port)) as program,
        ):
            nft(COUNTING.format(user=os.geteuid(), server4=HERE4, server6=HERE6))
            for host, own in ports_of(program):
                for words in ([], ["+tcp"], ["+tcp", "+keepopen"]):
                    said = dig(host, own, "www.example.com", "mail.example.com", *words)
                    assert said.count("192.0.2.1") == 2
                    assert said.count("status: NOERROR") == 2
            assert leaked() == 0
            # which is counted, if there is any
            with socket.create_connection((HERE4, upstream_port)):
                assert leaked() == 1
            program.signal(signal.SIGTERM)
            assert program.end() == 0
            program.wait_for(rf"inbound=dns .* dest={HERE4}:{upstream_port} exit=socks5://.*=ok")
            assert "example.com" not in program.log


def written(folder: Path, server: str, exit_port: int) -> Path:
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(server=server, exit=exit_port))
    return path


@contextmanager
def socks_of_another_user(port: int) -> Iterator[None]:
    with subprocess.Popen(
        [needs.program("microsocks"), "-i", "127.0.0.1", "-p", str(port)],
        user=OTHER_USER,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def leaked() -> int:
    """Packets that have gone to the name server but by the exit."""
    told = run(needs.program("nft", "nftables"), "list", "counter", "inet", "leaks", "found")
    found = re.search(r"packets (\d+)", told.stdout)
    assert found is not None
    return int(found[1])


def test_dig_asks_over_tcp_for_what_is_too_long(tmp_path: Path) -> None:
    with upstream("127.0.0.1") as port, gateway(tmp_path, f"127.0.0.1:{port}") as (_, ports):
        host, own = ports[0]
        said = dig(host, own, "many.example.com", "+noedns")
        assert "Truncated, retrying in TCP mode" in said
        assert said.count("192.0.2.") == 100
        assert "Truncated" not in dig(host, own, "many.example.com", "+bufsize=4096")


def test_dig_is_told_of_what_is_not_served(tmp_path: Path) -> None:
    with upstream("127.0.0.1") as port, gateway(tmp_path, f"127.0.0.1:{port}") as (_, ports):
        host, own = ports[0]
        assert "status: REFUSED" in dig(host, own, "version.bind", "CH", "TXT")
        assert "status: NOTIMP" in dig(host, own, "example.com", "+opcode=NOTIFY")
        assert "status: BADVERS" in dig(host, own, "example.com", "+edns=1", "+noednsnegotiation")


def test_dig_hears_servfail_where_the_exit_is_gone(tmp_path: Path) -> None:
    closed = f"socks5://127.0.0.1:{free_port()}"
    (tmp_path / "c.yaml").write_text(
        f"dns_listener: {{listen: '127.0.0.1:0', server: '192.0.2.1', exits: ['{closed}']}}"
    )
    with Program("-c", tmp_path / "c.yaml") as program:
        line = program.wait_for(r"dns_listener: listening on (\S+):(\d+) ")[0]
        assert "status: SERVFAIL" in dig(line[1], int(line[2]), "www.example.com")
        program.wait_for("inbound=dns .*dest=192.0.2.1:53 .*outcome=exit_failed")


def test_the_documented_rules_have_names_looked_up_by_it(tmp_path: Path) -> None:
    """Whatever name server a program asks."""
    needs.root()
    with private_network(), upstream("127.0.0.1") as port:
        public_addresses()
        with gateway(tmp_path, f"127.0.0.1:{port}") as (_, ports):
            (_, own), (_, own6) = ports
            rules = documented("nft").replace('"gsocks"', str(os.geteuid()))
            assert rules.count("redirect to :5353") == 1
            nft(rules.replace(":5353", f":{own}"))
            done = subprocess.run(
                [needs.program("dig", "bind9-dnsutils"), "@203.0.113.5", "www.example.com",
                 "+short", "+tries=1", "+time=20"],
                user=OTHER_USER, stdout=subprocess.PIPE, text=True, timeout=TOO_LONG, check=True,
            )  # fmt: skip
            assert done.stdout.strip() == "192.0.2.1"
            assert own6


def test_check_tells_what_it_asks_and_refuses_itself(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dns_listener: {listen: 127.0.0.1:5353, server: [1.1.1.1, 'dns.example:5300']}")
    done = gsocks("check", "-c", path)
    assert "dns_listener: listens on 127.0.0.1:5353, exits: direct" in done.stdout
    assert "dns_listener: asks 1.1.1.1:53, dns.example:5300, over TCP" in done.stdout
    path.write_text("dns_listener: {listen: 0.0.0.0:5353, server: 1.1.1.1, allow_remote: true}")
    done = gsocks("check", "-c", path)
    assert "dns_listener.clients: 0.0.0.0:5353 would be an open resolver" in done.stderr
    path.write_text("dns_listener: {listen: 127.0.0.1:5353, server: 'localhost:5353'}")
    assert "localhost:5353 is the listener itself" in gsocks("check", "-c", path).stderr
    path.write_text(
        "local: {listen: 127.0.0.1:0}\ndns_listener: {listen: 127.0.0.1:5353, server: 10.0.0.1}"
    )
    assert "10.0.0.1:53 is forbidden by local.rules" in gsocks("check", "-c", path).stderr


def test_a_config_without_the_package_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dns_listener: {listen: 127.0.0.1:0, server: 1.1.1.1}")
    hidden = "import sys; sys.modules['dns'] = None; from gsocks.main import main; sys.exit(main())"
    for words in (["check", "-c", str(path)], ["-c", str(path)]):
        done = run(sys.executable, "-c", hidden, *words)
        assert done.returncode != 0
        assert done.stderr.splitlines()[-1].endswith(
            "dns_listener needs the package dnspython (pip install 'gsocks[dns]')"
        )


def test_the_admin_tells_of_it_and_a_reload_takes_other_exits(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = (
        "admin: {listen: 127.0.0.1:0}\n"
        "dns_listener: {listen: '127.0.0.1:0', server: '127.0.0.1:%d', exits: ['%s']}"
    )
    with upstream("127.0.0.1") as port:
        path.write_text(text % (port, f"socks5://127.0.0.1:{free_port()}"))
        with Program("-c", path) as program:
            line = program.wait_for(r"dns_listener: listening on (\S+):(\d+) ")[0]
            host, own = line[1], int(line[2])
            assert "status: SERVFAIL" in dig(host, own, "www.example.com")
            path.write_text(text % (port, "direct"))
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ")
            # for a moment after a failure none is asked
            eventually(lambda: "192.0.2.1" in dig(host, own, "www.example.com"))
            admin = program.wait_for(r"admin: listening on http://(\S+) ")[0][1]
            header = f"Authorization: Bearer {(tmp_path / 'admin.token').read_text().strip()}"
            told = run("curl", "-sS", "-H", header, f"http://{admin}/v1/status").stdout
            assert json.loads(told)["inbounds"]["dns"]["listen"] == [f"{host}:{own}"]
            told = run("curl", "-sS", "-H", header, f"http://{admin}/v1/exits").stdout
            assert '"section": "dns_listener"' in told


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_it(tmp_path: Path, workers: int) -> None:
    own = free_port()
    with upstream("127.0.0.1") as port:
        (tmp_path / "c.yaml").write_text(
            f"workers: {workers}\n"
            f"dns_listener: {{listen: '127.0.0.1:{own}', server: '127.0.0.1:{port}'}}"
        )
        with Program("-c", tmp_path / "c.yaml") as program:
            program.wait_for("dns_listener: listening on ", workers)
            for n in range(6):
                assert "192.0.2.1" in dig("127.0.0.1", own, f"{n}.example.com")
                assert "192.0.2.1" in dig("127.0.0.1", own, f"{n}.example.com", "+tcp")
