"""What docs/clients.md tells people to type does what it says."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.program import ROOT, Pages, web_server
from tests.support.real import NAME, PASSWORD, Listeners, websocket_echo
from tests.support.waiting import TOO_LONG

TEXT = (ROOT / "docs" / "clients.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.split(f"\n## {title}\n", 1)[1], flags=re.MULTILINE)[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


COMMANDS = re.findall(r"^ {4}(\S.*)$", section("Commands").split("\n- ")[0], re.MULTILINE)


class Page(Pages):
    def do_GET(self) -> None:
        self.answer(b"found\n")


class Replaced:
    """The code of the document, with the tests' listeners and servers."""

    def __init__(self, inbounds: Listeners, web: int, websocket: int, udp: int) -> None:
        self._inbounds = inbounds
        self._web = web
        self._replacements = {
            f"{NAME}:{PASSWORD}@127.0.0.1:1080": f"{NAME}:{PASSWORD}@{inbounds.guarded.at}",
            f'port: 1080, type: 5, userId: "{NAME}"': f"port: {inbounds.guarded.port}, "
            f'type: 5, userId: "{NAME}"',
            "127.0.0.1:1080": inbounds.open.at,
            '"127.0.0.1", 1080': f'"127.0.0.1", {inbounds.open.port}',
            "http_proxy_port=1080": f"http_proxy_port={inbounds.open.port}",
            "ws://example.com/": f"ws://localhost:{websocket}/",
            "http://example.com/": f"http://localhost:{web}/",
            "example.com 80": f"localhost {web}",
            'host: "example.com", port: 80': f'host: "localhost", port: {web}',
            '("127.0.0.1", 9)': f'("127.0.0.1", {udp})',
        }

    def __call__(self, code: str) -> str:
        for old, new in self._replacements.items():
            code = code.replace(old, new)
        assert "1080" not in code
        assert "example.com" not in code
        return code

    def carried(self, code: str) -> None:
        """Wait until the listeners in the code have carried some of its traffic."""
        if f"{NAME}:{PASSWORD}" in code or f'userId: "{NAME}"' in code:
            self._inbounds.guarded.carried(f"localhost:{self._web}")
        else:
            self._inbounds.open.carried(f"localhost:{self._web}")


@pytest.fixture
def replaced(inbounds: Listeners) -> Iterator[Replaced]:
    with ExitStack() as stack:
        web = stack.enter_context(web_server(pages=Page))
        websocket = stack.enter_context(websocket_echo())
        udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))

        def echo() -> None:
            while True:
                data, source = udp.recvfrom(2000)
                if not data:
                    return
                udp.sendto(data, source)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        yield Replaced(inbounds, web, websocket, udp.getsockname()[1])
        udp.sendto(b"", udp.getsockname())
        thread.join(TOO_LONG)


def output_of(*command: str | Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TOO_LONG, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_fetch_a_page(replaced: Replaced, command: str, tmp_path: Path) -> None:
    for word in ("curl", "wget", "ncat"):
        if re.search(rf"\b{word}\b", command):
            needs.program(word)
    if re.search(r"\bnc\b", command):
        # Debian has two programs of that name
        (tmp_path / "nc").symlink_to(needs.program("nc.openbsd", "netcat-openbsd"))
    line = f"PATH={tmp_path}:$PATH; {replaced(command)}"
    assert output_of("bash", "-c", line).endswith("found\n")
    replaced.carried(command)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_the_python_does_what_it_says(replaced: Replaced, code: str) -> None:
    told = output_of(sys.executable, "-c", replaced(code)).split()
    assert told == [{"http": "found", "ws": "hello", "udp": "hello"}[what] for what in asked(code)]
    if "http" in asked(code):
        replaced.carried(code)


def asked(code: str) -> list[str]:
    """What its servers are, in their order."""
    found = re.findall(r"(http|ws)://example\.com|(SOCK_DGRAM)", code)
    return [web or "udp" for web, _ in found]


def test_the_javascript_fetches_a_page(replaced: Replaced) -> None:
    (code,) = blocks("js")
    if not (ROOT / "tests" / "node" / "node_modules" / "socks").exists():
        needs.missing("needs the packages of tests/node: npm ci --prefix tests/node")
    code = replaced(code).replace('require("socks")', 'require("./tests/node/node_modules/socks")')
    assert output_of(needs.program("node", "nodejs"), "-e", code).endswith("found\n")
    replaced.carried(code)


def test_the_table_tells_the_versions_that_are_tested() -> None:
    told = dict(re.findall(r"^\| ([\w() -]+) \| (\S+) \|", TEXT, re.MULTILINE))
    pinned = dict(
        re.findall(
            r"""^ {4}"([\w-]+)(?:\[\S*\])?==([\w.]+)(?:; python_version >= '[\d.]+')?",""",
            (ROOT / "pyproject.toml").read_text(),
            re.M,
        )
    )
    for name in set(told) & set(pinned):
        assert told[name] == pinned[name], name
    assert {"requests", "httpx", "aiohttp", "PySocks", "websockets"} <= set(told) & set(pinned)
    packages = json.loads((ROOT / "tests" / "node" / "package.json").read_text())
    assert packages["dependencies"]["socks"] == told["socks (Node)"]
