"""Clients that show a user name only after 407 keep their session at a listener that asks."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.program import Pages, Program, web_server
from tests.support.waiting import TOO_LONG

#: enough for three exits in turn to be seen
REQUESTS = 6

EXITS = {"127.0.0.2", "127.0.0.3", "127.0.0.4"}

CONFIG = """
local:
  listen:
    - {address: 127.0.0.1:0, ask: true}
    - 127.0.0.1:0
  rules: [allow loopback]
  exits: ["direct://?source=127.0.0.2", "direct://?source=127.0.0.3", "direct://?source=127.0.0.4"]
"""


class Address(Pages):
    """Answers the address from which a page was fetched."""

    def do_GET(self) -> None:
        self.answer(self.client_address[0].encode())


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with web_server(pages=Address) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of a listener that asks, and of one that doesn't."""
    config = tmp_path_factory.mktemp("asking") / "config.yaml"
    config.write_text(CONFIG)
    with Program("-c", config) as program:
        first, second = program.wait_for(r"local: listening on (\S+) ", times=2)
        yield first[1], second[1]


def output(*command: str, said: str = "") -> str:
    done = subprocess.run(
        command, input=said, capture_output=True, text=True, timeout=TOO_LONG, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def curl(proxy: str, page: str, *options: str) -> str:
    return output(needs.program("curl"), "-sS", *options, "-x", f"http://{proxy}", page)


CURL = {
    "credentials at once": ("-U", "session-cart17:x"),
    "credentials after 407": ("-U", "session-cart17:x", "--proxy-anyauth"),
    "a tunnel after 407": ("-U", "session-cart17:x", "--proxy-anyauth", "--proxytunnel"),
}


@pytest.mark.parametrize("options", CURL.values(), ids=CURL)
def test_curl_keeps_its_session(
    listeners: tuple[str, str], page: str, options: tuple[str, ...]
) -> None:
    asking, _ = listeners
    assert len({curl(asking, page, *options) for _ in range(REQUESTS)}) == 1


def test_curl_loses_a_session_that_it_is_not_asked_for(
    listeners: tuple[str, str], page: str
) -> None:
    """Which is why there is ``ask``."""
    _, silent = listeners
    options = CURL["credentials after 407"]
    assert {curl(silent, page, *options) for _ in range(REQUESTS)} == EXITS


def test_an_exit_that_a_reload_brings_may_expect_a_session(tmp_path: Path, page: str) -> None:
    """The gateway of a provider is given the session of a request."""
    config = tmp_path / "config.yaml"
    text = "local: {listen: '127.0.0.1:0', rules: [allow loopback], exits: [%s]}\n"
    config.write_text(text % "direct")
    with Program("-c", config) as program:
        proxy = f"127.0.0.1:{program.port()}"
        assert curl(proxy, page) == "127.0.0.1"
        for reloads, (exit_, asked) in enumerate(
            [("'http://me-{session}:pw@127.0.0.1:9'", True), ("direct", False)], 1
        ):
            config.write_text(text % exit_)
            program.signal(signal.SIGHUP)
            program.wait_for("reloaded: ", times=reloads)
            assert ("407" in curl(proxy, page, "-i").partition("\n")[0]) is asked


def test_a_client_without_credentials_is_told_what_is_asked(
    listeners: tuple[str, str], page: str
) -> None:
    asking, _ = listeners
    answer = curl(asking, page, "-i")
    assert answer.startswith("HTTP/1.1 407 ")
    assert "a user name, which may name a session" in answer
    socks = output(needs.program("curl"), "-sS", "-x", f"socks5h://{asking}", page)
    assert socks in EXITS  # SOCKS5 has no way to ask a client that offers no name


def test_ncat_keeps_its_session(listeners: tuple[str, str], page: str) -> None:
    asking, _ = listeners
    host, _, port = page.removeprefix("http://").strip("/").partition(":")
    command = [needs.program("ncat"), "--proxy", asking, "--proxy-type", "http"]
    seen = {
        output(
            *(*command, "--proxy-auth", "session-cart17:x", host, port),
            said="GET / HTTP/1.0\r\n\r\n",
        ).rpartition("\n")[2]
        for _ in range(REQUESTS)
    }
    assert len(seen) == 1


PLAYWRIGHT = """
import sys
from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path=sys.argv[3],
        args=["--no-sandbox", "--proxy-bypass-list=<-loopback>"],
        proxy={"server": f"http://{sys.argv[1]}", "username": "session-cart17", "password": "x"},
    )
    for name in (None, "a", "b", "c", "d"):
        proxy = {"server": f"http://{sys.argv[1]}", "username": f"session-{name}", "password": "x"}
        context = browser.new_context(proxy=proxy) if name else browser
        page = context.new_page()
        seen = set()
        for number in range(4):
            page.goto(f"{sys.argv[2]}{number}")
            seen.add(page.inner_text("body"))
        print(*seen)
    browser.close()
"""


def test_playwright_keeps_its_session_in_each_context(
    listeners: tuple[str, str], page: str
) -> None:
    asking, _ = listeners
    chromium = needs.program("chromium")
    lines = output(sys.executable, "-c", PLAYWRIGHT, asking, page, chromium).splitlines()
    assert len(lines) == 5
    assert set(lines) <= EXITS  # one address in each line
    assert len(set(lines)) > 1  # they are sessions of their own


JAVA = """
import java.net.*;
import java.net.http.*;

class Fetch {
    public static void main(String[] words) throws Exception {
        var proxy = new InetSocketAddress("127.0.0.1", Integer.parseInt(words[0]));
        var client = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .proxy(ProxySelector.of(proxy))
            .authenticator(new Authenticator() {
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication("session-cart17", new char[] {'x'});
                }
            })
            .build();
        for (int number = 0; number < 6; number++) {
            var request = HttpRequest.newBuilder(URI.create(words[1] + number)).build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
        }
    }
}
"""


def test_javas_http_client_keeps_its_session(
    listeners: tuple[str, str], page: str, tmp_path: Path
) -> None:
    asking, _ = listeners
    java = needs.program("java", "default-jdk-headless")
    (tmp_path / "Fetch.java").write_text(JAVA)
    told = output(java, str(tmp_path / "Fetch.java"), asking.rpartition(":")[2], page).split()
    assert (len(told), len(set(told))) == (REQUESTS, 1)
    assert set(told) < EXITS
