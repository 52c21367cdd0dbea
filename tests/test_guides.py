"""docs/scraping.md and docs/embedding.md at their word: what stands there runs, in a world of its
own where it needs one."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest

from gsocks import errors
from gsocks.errors import GsocksError, Reply
from gsocks.rotation.policy import POLICIES
from tests.support import needs
from tests.support.program import ROOT, Program
from tests.support.waiting import TOO_LONG
from tests.support.world import HOSTS, PROXIES

SCRAPING = (ROOT / "docs" / "scraping.md").read_text()
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text()
GERMAN = {PROXIES[f"proxy{n}.example.net"] for n in (3, 4)}


def blocks(heading: str, language: str, document: str = SCRAPING) -> list[str]:
    """The blocks of one section, which ends where the next one of any depth begins."""
    section = re.split(rf"^#+ {re.escape(heading)}\n", document, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


class World:
    """A network namespace with programs in it; see tests/support/world.py.

    It belongs to a process that ends when its input does, so nothing is left of a killed test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = ExitStack()

    def __enter__(self) -> World:
        (self.folder / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in HOSTS.items()))
        owner = self._start(["unshare", "--net", "--mount", "sh", "-c", "echo ready; exec cat"])
        self.within = [
            *("nsenter", f"--target={owner.pid}", "--net", "--mount"),
            f"--wd={self.folder}",
        ]
        addresses = [ip for ip in HOSTS.values() if ip != "127.0.0.1"]
        for command in (
            "ip link set lo up",
            *(f"ip address add {ip}/32 dev lo" for ip in addresses),
            f"mount --bind {self.folder}/hosts /etc/hosts",
        ):
            subprocess.run([*self.within, *command.split()], check=True)
        self._start(
            [*self.within, sys.executable, str(ROOT / "tests" / "support" / "world.py"), "."]
        )
        program = Program("-c", "gateway.yaml", within=self.within)
        self._programs.enter_context(program)
        program.wait_for("local: listening on ", times=2)
        return self

    def __exit__(self, *_: object) -> None:
        self._programs.close()

    def run(self, *command: str) -> list[str]:
        """The lines that a program prints there."""
        authority = str(self.folder / "ca.pem")
        done = subprocess.run(
            [*self.within, *command],
            env={
                **{name: text for name, text in os.environ.items() if "proxy" not in name.lower()},
                "HOME": str(self.folder),
                "SSL_CERT_FILE": authority,
                "REQUESTS_CA_BUNDLE": authority,
                "CURL_CA_BUNDLE": authority,
            },
            capture_output=True,
            text=True,
            timeout=TOO_LONG,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    def run_python(self, code: str, *command: str) -> list[str]:
        (self.folder / "snippet.py").write_text(code)
        return self.run(sys.executable, *command, "snippet.py")

    @contextmanager
    def running(self, *command: str) -> Iterator[Iterator[str]]:
        """The lines that a program writes, which goes on until they were read."""
        program = subprocess.Popen(
            [*self.within, sys.executable, "-u", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert program.stdout is not None
        try:
            yield (line.strip() for line in program.stdout)
        finally:
            # with its children, and without their patience
            os.killpg(program.pid, signal.SIGKILL)
            program.communicate(timeout=TOO_LONG)

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        """A program that says when it is ready, and ends when its input does."""
        program = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # clients that end in the middle of TLS
            text=True,
        )
        self._programs.callback(program.wait, TOO_LONG)
        assert program.stdin is not None
        assert program.stdout is not None
        self._programs.callback(program.stdout.close)
        self._programs.callback(program.stdin.close)
        assert program.stdout.readline() == "ready\n"
        return program


def config() -> str:
    """The first config of the document, with the listeners of others."""
    (first,) = blocks("The exits", "yaml")
    (second,) = blocks("Clients that send no user name", "yaml")
    (third,) = blocks("Clients that send a user name only when asked", "yaml")
    listen = "  listen: 127.0.0.1:1080\n"
    assert listen in first
    own = [line for line in third.splitlines(keepends=True) if line.startswith("    - {")]
    return first.replace(listen, second.removeprefix("local:\n") + "".join(own))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs.root()
    folder = tmp_path_factory.mktemp("world")
    (folder / "gateway.yaml").write_text(config())
    with World(folder) as running:
        yield running


def test_curl_goes_by_exits_in_turn_and_by_sessions(world: World) -> None:
    (commands,) = blocks("curl", "sh")
    found = [world.run(*line.split(), "-sS") for line in commands.splitlines()]
    addresses = [lines[0] for lines in found]
    assert set(addresses) <= set(PROXIES.values())
    assert addresses[0] != addresses[1]
    assert addresses[2] in GERMAN


@pytest.mark.parametrize("heading", ["requests", "httpx", "aiohttp"])
def test_a_session_has_one_address_for_http_and_https(world: World, heading: str) -> None:
    (code,) = blocks(heading, "python")
    first, second = world.run_python(code)
    assert first == second
    assert first in PROXIES.values()


def test_scrapy_does_too(world: World) -> None:
    (code,) = blocks("Scrapy", "python")
    options = ("-m", "scrapy", "runspider", "-L", "ERROR", "-s", "TELNETCONSOLE_ENABLED=0")
    first, second = world.run_python(code, *options)
    assert first == second
    assert first in PROXIES.values()


@pytest.mark.parametrize("heading", ["Playwright", "Selenium"])
def test_a_browser_goes_by_its_session(world: World, heading: str) -> None:
    needs.program("chromium")
    needs.program("chromedriver", "chromium-driver")
    (code,) = blocks(heading, "python")
    # A session is free to move until an exit has served it, and a browser begins by requests of
    # its own, to names that this world lacks.
    world.run_python(code)
    addresses = {world.run_python(code)[0] for _ in range(3)}
    assert len(addresses) == 1
    assert addresses <= set(PROXIES.values())


def test_each_user_of_locust_has_an_exit(world: World) -> None:
    if find_spec("locust") is None:
        needs.missing("needs locust, which needs Python 3.11")
    (code,) = blocks("locust", "python")
    (world.folder / "locustfile.py").write_text(code)
    addresses = set()
    with world.running("-m", "locust", "--headless", "-u", "8", "-r", "8") as lines:
        for line in islice(lines, 10_000):
            addresses |= {line} & set(PROXIES.values())
            if len(addresses) == 2:
                return
    pytest.fail("all have the same one")


def test_the_address_changes_when_the_document_says_so(world: World) -> None:
    (code,) = blocks("Why does my IP not change?", "python")
    counts = [len(ast.literal_eval(line)) for line in world.run_python(code)]
    told = re.findall(r"# (one|four)", code)
    assert counts == [{"one": 1, "four": 4}[word] for word in told]


# --- embedding --------------------------------------------------------------------------------


def without_digits(text: str) -> str:
    return re.sub(r"\d+", "0", text)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=re.sub(r"\W+", "-", heading))
        for heading in re.findall(r"^##+ (.*)$", EMBEDDING, re.MULTILINE)
        for code in blocks(heading, "python", EMBEDDING)
        if heading != "gunicorn"
    ],
)
def test_the_python_of_embedding_prints_what_it_says(world: World, code: str) -> None:
    told = re.findall(r"^\s*print\(.*\)  # (.*)$", code, re.MULTILINE)
    printed = world.run_python(code)
    assert told
    assert dict.fromkeys(map(without_digits, printed)) == dict.fromkeys(map(without_digits, told))


def test_gunicorns_workers_have_a_gateway_each(world: World) -> None:
    (code,) = blocks("gunicorn", "python", EMBEDDING)
    (command,) = blocks("gunicorn", "sh", EMBEDDING)
    (world.folder / "app.py").write_text(code)
    with world.running("-m", *command.split()) as lines:
        assert any("Booting worker" in line for line in lines)
        pages = [world.run("curl", "-sS", "http://127.0.0.1:8000/")[0] for _ in range(4)]
    assert set(pages) <= set(PROXIES.values())


# --- what it says of gsocks -------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    section = SCRAPING.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_every_policy_is_told() -> None:
    assert [row[0] for row in rows("The exits")[1 : len(POLICIES) + 1]] == list(POLICIES)


def test_every_refusal_is_told_as_it_is() -> None:
    def kinds(kind: type[GsocksError]) -> Iterator[type[GsocksError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from kinds(each)

    by_word = {kind.word: kind for kind in kinds(errors.GsocksError)}
    for word, status, reply, _ in rows("What a refusal means"):
        kind = by_word[word]
        assert kind.http_status == int(status), word
        if reply != "login failed":
            assert kind.reply == Reply(int(reply, 16)), word
