"""The script for browsers, run by Node as Windows would, and by Chromium."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gevent import subprocess
from gevent.socket import socket

from gsocks.http.pac import PacScript
from tests.support import needs
from tests.support.engine import serving
from tests.support.listeners import directly
from tests.support.program import run
from tests.support.real import chromium_options
from tests.support.waiting import TOO_LONG

DIRECT = ["intranet.example", "*.corp.example", "10.0.0.0/9", "2001:db8:8000::/33", "192.0.2.7"]

#: hosts, and whether they are reached without the proxy
HOSTS = {
    "localhost": True,
    "LocalHost.": True,
    "a.localhost": True,
    "127.9.9.9": True,
    "::1": True,
    "[::1]": True,
    "::ffff:7f00:1": True,
    "intranet.example": True,
    "a.intranet.example": False,
    "corp.example": False,
    "a.corp.example": True,
    "a.b.CORP.example.": True,
    "notcorp.example": False,
    "10.127.255.255": True,
    "10.128.0.0": False,
    "11.0.0.1": False,
    "192.0.2.7": True,
    "192.0.2.8": False,
    "2001:db8:8000::1": True,
    "2001:db8:ffff:1:2:3:4:5": True,
    "2001:db8:7fff::1": False,
    "::ffff:a00:1": True,
    "fe80::1%eth0": False,
    "10.0.0.1.example": False,
    "plain": False,
    "127.0.0.1.example": False,
}

#: no function of a browser is there that looks names up, and so none is called
ASK = """
const vm = require("vm");
const [script, hosts] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const scope = vm.createContext({});
vm.runInContext(script, scope);
const said = hosts.map(host => scope.FindProxyForURL("http://" + host + "/", host));
process.stdout.write(JSON.stringify(said));
"""


def said_of(script: str, hosts: list[str]) -> list[str]:
    done = run("node", "-e", ASK, stdin=json.dumps([script, hosts]))
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_the_script_says_of_each_host_how_it_is_reached() -> None:
    script = PacScript(DIRECT).naming("10.0.0.1:1080", secure=False)
    said = dict(zip(HOSTS, said_of(script, list(HOSTS)), strict=True))
    assert said == {
        host: "DIRECT" if is_direct else "PROXY 10.0.0.1:1080" for host, is_direct in HOSTS.items()
    }


def test_plain_names_are_direct_where_that_is_wanted_and_tls_is_told() -> None:
    script = PacScript(["<local>"]).naming("proxy.example:443", secure=True)
    assert said_of(script, ["plain", "a.b"]) == ["DIRECT", "HTTPS proxy.example:443"]


def page(sock: socket) -> None:
    said = sock.recv(65536)
    assert said.startswith(b"GET / HTTP/1.1\r\n")
    sock.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n<p>through\r\n"
    )


@pytest.mark.usefixtures("never_hangs")
def test_chromium_finds_the_proxy_by_it(tmp_path: Path) -> None:
    with serving(page) as web, directly(names=lambda _: [web.host]) as ends:
        done = subprocess.run(
            [
                needs.program("chromium"),
                *chromium_options(tmp_path),
                f"--proxy-pac-url=http://{ends.bound}/proxy.pac",
                f"http://site.test:{web.port}/",
            ],
            capture_output=True,
            timeout=TOO_LONG,
            check=False,
        )
        assert b"<p>through" in done.stdout, done.stderr
        assert "site.test" in " ".join(record.dest for record in ends.seen.all)
