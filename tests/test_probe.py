"""gsocks exits: the real program probes real proxies, of which some are dead."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import ROOT, Program, gsocks, write_private
from tests.support.waiting import TOO_LONG


class _Mirror(BaseHTTPRequestHandler):
    """Answers each client with its address; /fail fails."""

    def do_GET(self) -> None:
        body = json.dumps({"ip": self.client_address[0]}).encode()
        self.send_response(500 if self.path == "/fail" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy for SOCKS and HTTP, with a user whose password is right."""
    folder = tmp_path_factory.mktemp("proxy")
    hashed = gsocks("passwd", stdin="right\n").stdout.strip()
    config = folder / "c.yaml"
    config.write_text(
        f"local: {{listen: '127.0.0.1:0', users: {{joe: '{hashed}'}}, rules: [allow all]}}"
    )
    with Program("-c", config) as program:
        yield f"127.0.0.1:{program.port()}"


@contextmanager
def silent() -> Iterator[str]:
    """A server that accepts, and sends nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dead() -> Iterator[str]:
    """A port without a listener, which the kernel gives to no other process meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def config_of(folder: Path, *entries: str, more: str = "") -> Path:
    write_private(folder / "list.txt", "\n".join(entries))
    path = folder / "c.yaml"
    path.write_text(
        f"local: {{listen: '127.0.0.1:0', exit_sources: [{{file: list.txt}}], {more}}}\n"
    )
    return path


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(done.stdout)}


def test_each_exit_fetches_the_page_and_failures_have_a_reason(
    tmp_path: Path, proxy: str, mirror: str
) -> None:
    with dead() as unused, silent() as mute:
        config = config_of(
            tmp_path,
            f"socks5://joe:right@{proxy} name=socks country=de tags=a,b",
            f"{proxy}:joe:right name=http",
            f"{proxy}:joe:wrong-secret name=login",
            f"{unused} name=dead",
            f"{mute} name=mute",
        )
        url = f"http://{mirror}/"
        done = gsocks("exits", "-c", config, "--url", url, "--json", "--timeout", "2s")
        exits = found(done)
        assert done.returncode == 0
        assert {name for name, each in exits.items() if each["works"]} == {"socks", "http"}
        works = exits["socks"]
        assert (works["inbound"], works["country"], works["tags"]) == ("local", "de", ["a", "b"])
        assert works["exit"] == f"socks5://joe:***@{proxy}"
        assert works["address"] == "127.0.0.1"
        assert 0 < works["connect_ms"] < 2000
        for name, why in {
            "login": "the proxy requires other credentials",
            "dead": "refused",
            "mute": "2 s",
        }.items():
            assert why in exits[name]["trouble"], exits[name]
            assert not exits[name]["trouble"].startswith("http")
        assert "2 of 5 exits work" in done.stderr
        assert (
            gsocks("exits", "-c", config, "--url", url, "--timeout", "2s", "--all").returncode == 1
        )
        assert "secret" not in done.stdout + done.stderr


def test_a_web_server_that_is_no_proxy_reaches_no_destination(tmp_path: Path, mirror: str) -> None:
    config = config_of(tmp_path, f"{mirror} name=web")
    done = gsocks("exits", "-c", config, "--to", mirror, "--json")
    assert "501" in found(done)["web"]["trouble"]
    assert done.returncode == 1


def test_the_time_to_connect_to_a_destination_is_that_of_the_connection(
    tmp_path: Path, proxy: str, mirror: str
) -> None:
    config = config_of(tmp_path, f"socks5://joe:right@{proxy} name=socks")
    began = time.monotonic()
    done = gsocks("exits", "-c", config, "--to", mirror, "--json")
    whole = time.monotonic() - began
    assert 0 < found(done)["socks"]["connect_ms"] < whole * 1000


@pytest.mark.parametrize("options", [("--url",), ()], ids=["by --url", "by checks.urls"])
def test_a_proxy_that_serves_plain_pages_in_absolute_form_only_works(
    options: tuple[str, ...], tmp_path: Path, mirror: str
) -> None:
    url = f"http://{mirror}/"
    # the mirror reads absolute form too, and knows no CONNECT: squid refuses that to port 80
    more = "" if options else f"checks: {{urls: ['{url}']}}"
    config = config_of(tmp_path, f"{mirror} name=plain", more=more)
    done = gsocks("exits", "-c", config, *options, *([url] if options else []), "--json")
    plain = found(done)["plain"]
    assert (plain["works"], plain["trouble"], plain["address"]) == (True, None, "127.0.0.1")
    assert plain["connect_ms"] > 0
    assert done.returncode == 0


def test_the_table_has_a_line_for_each_in_the_order_of_the_list(
    tmp_path: Path, proxy: str, mirror: str
) -> None:
    with dead() as unused:
        config = config_of(tmp_path, f"{unused} name=no", f"{proxy}:joe:right name=yes country=de")
        done = gsocks("exits", "-c", config, "--to", mirror)
    head, names, no, yes = done.stdout.splitlines()
    assert head == "local:"
    assert names.split() == ["name", "exit", "country", "tags", "ms", "address", "works"]
    assert re.fullmatch(rf"  no    http://{unused} +-  +-  +- +- +Connection refused", no)
    assert re.fullmatch(rf"  yes   http://joe:\*\*\*@{proxy}  de +-  +\d+ +-  +yes", yes)
    assert done.returncode == 0


def test_a_page_that_fails_is_the_exits_failure(tmp_path: Path, proxy: str, mirror: str) -> None:
    config = config_of(tmp_path, f"{proxy}:joe:right name=a")
    done = gsocks("exits", "-c", config, "--url", f"http://{mirror}/fail", "--json")
    assert found(done)["a"]["trouble"] == "answers with status 500"
    assert done.returncode == 1


def test_the_pages_of_the_configs_checks_are_fetched_until_one_works(
    tmp_path: Path, proxy: str, mirror: str
) -> None:
    with dead() as unused:
        checks = f"checks: {{urls: ['http://{unused}/', 'http://{mirror}/']}}"
        config = config_of(tmp_path, f"{proxy}:joe:right name=a", more=checks)
        assert found(gsocks("exits", "-c", config, "--json"))["a"]["address"] == "127.0.0.1"
        config_of(
            tmp_path, f"{proxy}:joe:right name=a", more=checks[:-1] + ", expect: {status: 204}}"
        )
        assert not found(gsocks("exits", "-c", config, "--json"))["a"]["works"]


def test_without_a_page_an_exit_answers_as_its_kind_does_and_is_not_said_to_work(
    tmp_path: Path, proxy: str, mirror: str
) -> None:
    with dead() as unused, silent() as mute:
        config = config_of(
            tmp_path,
            f"socks5://joe:right@{proxy} name=socks",
            f"socks5://joe:wrong@{proxy} name=login",
            f"{proxy}:joe:right name=http",
            f"{unused} name=dead",
            f"socks5://{mute} name=mute",
            f"socks5://{mirror} name=web",
            f"http://{mirror} name=site",
        )
        done = gsocks("exits", "-c", config, "--json", "--timeout", "2s")
        exits = found(done)
        table = gsocks("exits", "-c", config, "--timeout", "2s").stdout
    answering = {"socks", "http"}
    assert {name for name, each in exits.items() if each["answers"]} == answering
    assert {name for name, each in exits.items() if each["works"] is None} == answering
    assert not any(each["works"] for each in exits.values())
    assert "2 of 7 exits answer" in done.stderr
    assert done.returncode == 0
    assert re.search(r"^  http +.* \d+ +- +answers$", table, re.MULTILINE)
    assert " yes " not in table


def test_a_thousand_exits_are_probed_at_once(tmp_path: Path, proxy: str, mirror: str) -> None:
    with dead() as unused:
        entries = [f"http://u{number}@{unused}" for number in range(990)]
        config = config_of(tmp_path, *entries, *[f"{proxy}:joe:right name=n{n}" for n in range(1)])
        done = gsocks("exits", "-c", config, "--to", mirror, "--json")
    assert len(json.loads(done.stdout)) == 991
    assert "1 of 991 exits work" in done.stderr


def test_at_once_bounds_the_probes_at_a_time(tmp_path: Path) -> None:
    with silent() as mute:
        config = config_of(tmp_path, *[f"http://u{n}@{mute}" for n in range(400)])
        began = os.times().elapsed
        done = gsocks("exits", "-c", config, "--at-once", "400", "--timeout", "1s")
        assert os.times().elapsed - began < 30  # one after the other would take 400 s
    assert "0 of 400 exits work" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_on_a_terminal_it_shows_how_far_it_is_and_ctrl_c_prints_what_is_known(
    rich: bool, tmp_path: Path, proxy: str, mirror: str
) -> None:
    folders = [str(ROOT)]
    if not rich:
        (tmp_path / "rich").mkdir()
        (tmp_path / "rich" / "__init__.py").write_text("raise ImportError")
        folders.insert(0, str(tmp_path))
    ours, theirs = pty.openpty()
    with silent() as mute:
        config = config_of(tmp_path, f"{proxy}:joe:right name=fine", f"{mute} name=mute")
        options = ("--to", mirror, "--timeout", "50s", "--at-once", "1")
        process = subprocess.Popen(
            [sys.executable, "-m", "gsocks", "exits", "-c", config, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(folders)},
        )
        os.close(theirs)
        screen = ""
        while not re.search("1/2" if rich else "1 of 2", screen):
            screen += os.read(ours, 4096).decode()
        process.send_signal(signal.SIGINT)
        table = process.communicate(timeout=TOO_LONG)[0]
    screen += _rest(ours)
    assert process.returncode == 130
    assert re.search(r"^  fine .* yes$", table, re.MULTILINE)
    assert "mute" not in table
    assert "1 of 1 exits work, 1 of 2 were not probed" in screen
    assert "Traceback" not in screen


def _rest(terminal: int) -> str:
    """The rest of the screen, up to its last writer's exit."""
    shown = ""
    try:
        while True:
            shown += os.read(terminal, 4096).decode()
    except OSError:
        return shown
    finally:
        os.close(terminal)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--url", "secret"), "--url: expected e.g. https://example.com/list"),
        (("--to", "nowhere"), "--to: 'nowhere' is not host:port"),
        (("--at-once", "0"), "--at-once: expected a whole number from 1"),
        (("--timeout", "soon"), "--timeout: 'soon' is not a duration"),
        (("--timeout", "0"), "--timeout: expected a duration above zero"),
    ],
)
def test_a_mistake_is_named(options: tuple[str, str], why: str, tmp_path: Path) -> None:
    done = gsocks("exits", "-c", config_of(tmp_path, "10.0.0.7:80"), *options)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert "secret" not in done.stderr


def test_a_list_without_exits_is_reported(tmp_path: Path) -> None:
    done = gsocks("exits", "-c", config_of(tmp_path, "# none"))
    assert done.returncode == 2
    assert "no exits: " in done.stderr
