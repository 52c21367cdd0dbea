"""Libraries that catch a program's connections: torsocks, tsocks, socksify; and tor-resolve.

They spare loopback, so the web server has an address of a network of this test alone (as root).
"""

from __future__ import annotations

import os
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.support import needs
from tests.support.network import ip, private_network
from tests.support.program import Program, both_programs, web_server
from tests.support.waiting import TOO_LONG

ADDRESS = "192.0.2.7"
#: what the name server knows, by name and type
NAMES = {
    ("host.example", "A"): [ADDRESS],
    ("host.example", "AAAA"): ["2001:db8::7"],
    ("six.example", "AAAA"): ["2001:db8::7"],
    ("7.2.0.192.in-addr.arpa", "PTR"): ["host.example."],
}
KNOWN = {name for name, _ in NAMES}


class _Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        packet, sock = self.request
        question = dns.message.from_wire(packet)
        asked = question.question[0]
        name, kind = asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype)
        response = dns.message.make_response(question)
        values = NAMES.get((name, kind))
        if values is not None:
            response.answer.append(dns.rrset.from_text_list(asked.name, 60, "IN", kind, values))
        elif name not in KNOWN:
            response.set_rcode(dns.rcode.NXDOMAIN)
        sock.sendto(response.to_wire(), self.client_address)


@contextmanager
def name_server() -> Iterator[int]:
    """Answers from threads; gives its port."""
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Names) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()


@contextmanager
def direct(folder: Path) -> Iterator[Program]:
    """A listener without users that goes out directly, and looks names up at that server."""
    with name_server() as port:
        config = folder / "config.yaml"
        config.write_text(
            f"dns: {{servers: ['127.0.0.1:{port}']}}\n"
            "local: {listen: '127.0.0.1:0', rules: [allow all]}\n"
        )
        with Program("-c", config) as program:
            program.port()
            yield program


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with direct(tmp_path) as running:
        yield running


class Elsewhere(NamedTuple):
    """A web server that is not on loopback, and gsocks, which can reach it."""

    program: Program
    web: int

    def page(self, host: str = ADDRESS) -> str:
        return f"http://{host}:{self.web}/text/caught"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    needs.root()
    with private_network():
        ip(f"addr add {ADDRESS}/24 dev card")
        with web_server(ADDRESS) as web, direct(tmp_path) as program:
            yield Elsewhere(program, web)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without a terminal, on which some would ask for a password."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        check=False,
        start_new_session=True,
        env={"PATH": os.environ["PATH"], **environment},
    )


def fetch(url: str) -> list[str]:
    """A program that knows of no proxy."""
    return [needs.program("curl"), "-sS", "--noproxy", "*", url]


# --- tor-resolve ----------------------------------------------------------------------------------


def tor_resolve(program: Program, *words: str) -> subprocess.CompletedProcess[str]:
    return run(needs.program("tor-resolve", "tor"), *words, f"127.0.0.1:{program.port()}")


@pytest.mark.parametrize(
    ("words", "answer", "logged"),
    [
        (["host.example"], ADDRESS, "resolve dest=host.example:0"),
        (["-4", "host.example"], ADDRESS, "resolve dest=host.example:0"),
        (["six.example"], "2001:db8::7", "resolve dest=six.example:0"),
        (["-x", ADDRESS], "host.example", f"resolve_ptr dest={ADDRESS}:0"),
    ],
)
def test_tor_resolve_is_told_what_it_asks_for(
    program: Program, words: list[str], answer: str, logged: str
) -> None:
    done = tor_resolve(program, *words)
    assert (done.returncode, done.stdout.strip()) == (0, answer), done.stderr
    program.wait_for(rf"command={re.escape(logged)} exit=direct .*outcome=ok")


@pytest.mark.parametrize("words", [["gone.example"], ["-4", "gone.example"], ["-4", "six.example"]])
def test_tor_resolve_is_told_of_a_failure(program: Program, words: list[str]) -> None:
    done = tor_resolve(program, *words)
    assert (done.returncode, done.stdout) == (1, "")
    program.wait_for(r"command=resolve .*outcome=(name_not_found|address_family)")


@contextmanager
def through_a_tunnel(folder: Path) -> Iterator[Program]:
    """A local end that knows no names, before a server that asks a name server."""
    with name_server() as port:
        dns = f"dns: {{servers: ['127.0.0.1:{port}']}}\n"
        with both_programs(folder, top=dns) as (near, _):
            yield near


def test_tor_resolve_is_told_through_a_tunnel_what_it_asks_for(tmp_path: Path) -> None:
    with through_a_tunnel(tmp_path) as near:
        for words, answer in ((["host.example"], ADDRESS), (["-x", ADDRESS], "host.example")):
            done = tor_resolve(near, *words)
            assert (done.returncode, done.stdout.strip()) == (0, answer), done.stderr
        done = tor_resolve(near, "gone.example")
        assert (done.returncode, done.stdout) == (1, "")
        near.wait_for(r"command=resolve dest=gone\.example:0 .*outcome=name_not_found")


# --- libraries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["host.example", ADDRESS])
def test_torsocks_leaves_names_to_the_proxy(elsewhere: Elsewhere, host: str) -> None:
    at = ("-a", "127.0.0.1", "-P", str(elsewhere.program.port()))
    done = run(needs.program("torsocks"), *at, *fetch(elsewhere.page(host)))
    assert done.stdout == "caught", done.stderr
    if host != ADDRESS:
        elsewhere.program.wait_for(r"command=resolve dest=host\.example:42 .*outcome=ok")
    elsewhere.program.wait_for(rf"dest={re.escape(ADDRESS)}:{elsewhere.web} .*outcome=ok")


def test_torsocks_reaches_names_through_a_tunnel(tmp_path: Path) -> None:
    needs.root()
    with private_network():
        ip(f"addr add {ADDRESS}/24 dev card")
        with web_server(ADDRESS) as web, through_a_tunnel(tmp_path) as near:
            at = ("-a", "127.0.0.1", "-P", str(near.port()))
            page = f"http://host.example:{web}/text/caught"
            done = run(needs.program("torsocks"), *at, *fetch(page))
            assert done.stdout == "caught", done.stderr


def test_torsocks_is_told_that_a_name_does_not_exist(elsewhere: Elsewhere) -> None:
    at = ("-a", "127.0.0.1", "-P", str(elsewhere.program.port()))
    done = run(needs.program("torsocks"), *at, *fetch(elsewhere.page("gone.example")))
    assert done.returncode == 6, done.stderr
    elsewhere.program.wait_for(r"command=resolve dest=gone\.example:42 .*outcome=name_not_found")


def test_tsocks_is_asked_for_no_password(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """It offers a login always, and has none."""
    config = tmp_path / "tsocks.conf"
    config.write_text(
        f"server = 127.0.0.1\nserver_port = {elsewhere.program.port()}\nserver_type = 5\n"
    )
    command = [needs.program("tsocks"), *fetch(elsewhere.page())]
    done = run(*command, TSOCKS_CONF_FILE=str(config))
    assert done.stdout == "caught", done.stderr
    elsewhere.program.wait_for(rf"dest={re.escape(ADDRESS)}:{elsewhere.web} .*outcome=ok")


def test_socksify_is_asked_for_no_password(elsewhere: Elsewhere, tmp_path: Path) -> None:
    config = tmp_path / "socks.conf"
    config.write_text(
        "route {\n"
        f"  from: 0.0.0.0/0 to: {ADDRESS}/32 via: 127.0.0.1 port = {elsewhere.program.port()}\n"
        "  proxyprotocol: socks_v5\n"
        "  command: connect\n"
        "}\n"
    )
    command = [needs.program("socksify", "dante-client"), *fetch(elsewhere.page())]
    # which it would spare, since this machine is in it
    done = run(*command, SOCKS_CONF=str(config), SOCKS_AUTOADD_LANROUTES="no")
    assert done.stdout == "caught", done.stderr
    elsewhere.program.wait_for(rf"dest={re.escape(ADDRESS)}:{elsewhere.web} .*outcome=ok")
