"""A transparent proxy as a program: by its config and by its command, with real clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.network import ip, private_network
from tests.support.packet_filter import HERE4, HERE6, documented, nft, public_addresses
from tests.support.ports import free_port
from tests.support.program import Program, gsocks, run, web_server
from tests.support.waiting import TOO_LONG

#: a user that is not the one whom gsocks runs as here
OTHER_USER = 65534


@pytest.fixture
def network() -> Iterator[None]:
    """A network with public addresses, in which nothing is redirected yet."""
    needs.root()
    with private_network():
        public_addresses()
        yield


def port_of(program: Program) -> int:
    return int(program.wait_for(r"redirect: listening on \S+:(\d+) \(connections that")[0][1])


def fetched(url: str, *within: str) -> str:
    """A page, got by a program of another user that knows no proxy."""
    done = subprocess.run(
        [*within, needs.program("curl"), "-sS", "--noproxy", "*", "--max-time", "20", url],
        user=OTHER_USER if not within else None,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TOO_LONG,
        check=False,
    )
    return done.stdout


def take_rules(port: int) -> None:
    """Those of the page, for the user whom gsocks runs as here."""
    nft(documented("nft").replace('"gsocks"', str(os.geteuid())).replace(":1082", f":{port}"))


@pytest.mark.parametrize("here", [HERE4, HERE6], ids=["IPv4", "IPv6"])
def test_the_documented_rules_carry_what_other_users_open(
    network: None, tmp_path: Path, here: str
) -> None:
    host, listen = (f"[{here}]", "[::1]") if ":" in here else (here, "127.0.0.1")
    (tmp_path / "c.yaml").write_text(
        f"redirect: {{listen: '{listen}:0', exits: [direct], rules: [allow all]}}"
    )
    with web_server(here) as web, Program("-c", tmp_path / "c.yaml") as program:
        take_rules(port_of(program))
        assert fetched(f"http://{host}:{web}/text/hello") == "hello"
        (line,) = program.wait_for(r"inbound=redirect .* dest=(\S+) exit=direct .*outcome=ok")
        assert line[1] == f"{host}:{web}"


def test_a_router_carries_what_other_machines_open(network: None, tmp_path: Path) -> None:
    """With the documented chain; the other machine is a namespace behind the other end of a
    cable."""
    ip("address add 192.168.7.1/24 dev card")
    (tmp_path / "c.yaml").write_text(
        "redirect: {listen: '192.168.7.1:0', allow_remote: true, clients: [192.168.7.0/24],"
        " exits: [direct], rules: [allow all]}"
    )
    with (
        another_machine() as within,
        web_server(HERE4) as web,
        Program("-c", tmp_path / "c.yaml") as program,
    ):
        rules = documented("nft").replace("chain output", f"{documented('nft-chain')} chain output")
        rules = rules.replace('"gsocks"', str(os.geteuid())).replace('"lan0"', '"card"')
        nft(rules.replace(":1082", f":{port_of(program)}"))
        assert fetched(f"http://{HERE4}:{web}/text/hello", *within) == "hello"
        program.wait_for(rf"client=192\.168\.7\.2:\d+ .*dest={HERE4}:{web} .*outcome=ok")


@contextmanager
def another_machine() -> Iterator[list[str]]:
    """What makes a command run at 192.168.7.2, whose router is this network."""
    with subprocess.Popen(
        [needs.program("unshare", "util-linux"), "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        machine.stdout.readline()  # it is in its own network now
        within = [needs.program("nsenter", "util-linux"), "--target", str(machine.pid), "--net"]
        ip(f"link set cable netns {machine.pid}")
        for command in (
            "link set cable up",
            "address add 192.168.7.2/24 dev cable",
            "route add default via 192.168.7.1",
        ):
            subprocess.run([*within, "ip", *command.split()], check=True, timeout=TOO_LONG)
        yield within
        machine.stdin.close()


def test_the_command_needs_no_config(network: None) -> None:
    with (
        web_server(HERE4) as web,
        Program("redirect", "0", "--exit", "direct") as program,
    ):
        take_rules(port_of(program))
        # whose rules deny this machine's own addresses
        assert fetched(f"http://{HERE4}:{web}/text/hello") == ""
        program.wait_for(rf"inbound=redirect .*dest={HERE4}:{web} .*outcome=forbidden")
        program.signal(signal.SIGTERM)
        assert program.end() == 0


def test_the_command_takes_exits_and_rules_of_local(network: None, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "local: {listen: '127.0.0.1:0', exits: [direct], rules: [allow all]}"
    )
    with (
        web_server(HERE4) as web,
        Program("redirect", "0", "-c", tmp_path / "c.yaml") as program,
    ):
        take_rules(port_of(program))
        assert fetched(f"http://{HERE4}:{web}/text/hello") == "hello"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["1082"], "no exit (expected --exit URL"),
        (["0.0.0.0:1082", "--exit", "direct"], "0.0.0.0:1082 would carry what all machines"),
        (["unix:/run/x.sock", "--exit", "direct"], "are not redirected to a Unix socket"),
        (["nowhere", "--exit", "direct"], "'nowhere' is not"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_told(arguments: list[str], said: str) -> None:
    done = gsocks("redirect", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_beside_local_it_has_its_exits_and_check_tells_that(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "local: {listen: 127.0.0.1:1080}\n"
        "redirect: {listen: [127.0.0.1:1082, {address: 127.0.0.1:1083, country: de}]}"
    )
    done = gsocks("check", "-c", path)
    listens = "listens on 127.0.0.1:1082, 127.0.0.1:1083 (country de)"
    assert f"redirect: {listens}, exits: those of local" in done.stdout


def test_a_reload_takes_other_exits_and_rules(network: None, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "redirect: {listen: 127.0.0.1:0, exits: [%s], rules: [%s allow all]}"
    with web_server(HERE4) as web:
        url = f"http://{HERE4}:{web}/text/hello"
        path.write_text(text % (f"'socks5://127.0.0.1:{free_port()}'", ""))
        with Program("-c", path) as program:
            take_rules(port_of(program))
            assert fetched(url) == ""
            path.write_text(text % ("direct", ""))
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ")
            assert fetched(url) == "hello"
            path.write_text(text % ("direct", f"deny {HERE4},"))
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ", 2)
            assert fetched(url) == ""
            path.write_text("local: {listen: 127.0.0.1:0}\nredirect: {listen: 127.0.0.1:0}")
            program.signal(signal.SIGHUP)
            program.wait_for("not reloaded, .*redirect.exits: the first exit of its own, or none,")


def test_the_admin_tells_of_it_and_health_finds_it(network: None, tmp_path: Path) -> None:
    path, port = tmp_path / "c.yaml", free_port()
    path.write_text(
        "admin: {listen: 127.0.0.1:0}\n"
        f"redirect: {{listen: '127.0.0.1:{port}', exits: [direct], rules: [allow all]}}"
    )
    assert f"redirect: 127.0.0.1:{port}: " in gsocks("health", "-c", path).stdout
    with web_server(HERE4) as web, Program("-c", path) as program:
        take_rules(port_of(program))
        admin = program.wait_for(r"admin: listening on http://(\S+) ")[0][1]
        assert fetched(f"http://{HERE4}:{web}/text/hello") == "hello"
        program.wait_for("inbound=redirect .*outcome=ok")
        token = (tmp_path / "admin.token").read_text().strip()

        def asked(what: str) -> str:
            header = f"Authorization: Bearer {token}"
            return run("curl", "-sS", "-H", header, f"http://{admin}/{what}").stdout

        status = json.loads(asked("v1/status"))
        assert status["inbounds"]["redirect"]["listen"] == [f"127.0.0.1:{port}"]
        assert status["inbounds"]["redirect"]["outcomes"] == {"ok": 1}
        assert 'gsocks_requests_total{inbound="redirect",outcome="ok"} 1.0' in asked("metrics")
        assert '"section": "redirect"' in asked("v1/exits")
        assert gsocks("health", "-c", path).returncode == 0


def test_workers_share_it(network: None, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "c.yaml").write_text(
        f"workers: 2\nredirect: {{listen: '127.0.0.1:{port}', exits: [direct], rules: [allow all]}}"
    )
    with web_server(HERE4) as web, Program("-c", tmp_path / "c.yaml") as program:
        program.wait_for(r"\[worker [01]\]: redirect: listening on ", 2)
        take_rules(port)
        for _ in range(8):
            assert fetched(f"http://{HERE4}:{web}/text/hello") == "hello"
