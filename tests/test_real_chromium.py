"""Chromium, without a window, with gsocks as its proxy."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.program import Pages, web_server
from tests.support.real import (
    GONE_EARLY,
    Certified,
    Listeners,
    chromium_options,
    websocket_echo,
)
from tests.support.waiting import TOO_LONG

#: its script asks a TLS server and a WebSocket server, and writes down what they say; the picture
#: comes when that is done, so that the page is complete then and not before
PAGE = """<!doctype html><title>t</title><p id=said>nothing yet</p><img src=/picture><script>
(async () => {
  const page = await (await fetch("/text/plain")).text();
  const secret = await (await fetch("https://localhost:%(secure)d/text/secret")).text();
  const socket = new WebSocket("ws://localhost:%(echo)d/");
  const echo = await new Promise(heard => {
    socket.onopen = () => socket.send("echo");
    socket.onmessage = event => heard(event.data);
  });
  socket.close();
  document.getElementById("said").textContent = [page, secret, echo].join(" ");
})().catch(error => document.getElementById("said").textContent = error)
  .finally(() => fetch("/done"));
</script>"""


@contextmanager
def page_server(secure: int, echo: int) -> Iterator[int]:
    done = threading.Event()

    class Page(Pages):
        def do_GET(self) -> None:
            if self.path == "/":
                self.answer((PAGE % {"secure": secure, "echo": echo}).encode())
            elif self.path == "/picture":
                done.wait(TOO_LONG)
                self.answer(b"")
            elif self.path == "/done":
                done.set()
                self.answer(b"")
            else:
                super().do_GET()

    with web_server(pages=Page) as port:
        yield port


def chromium(folder: Path, proxy: str, url: str) -> str:
    """The page as it is when everything that belongs to it has come."""
    done = subprocess.run(
        [
            needs.program("chromium"),
            *chromium_options(folder),
            f"--proxy-server={proxy}",
            "--proxy-bypass-list=<-loopback>",  # else loopback is asked without the proxy
            url,
        ],
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_it_loads_a_page_whose_script_asks_for_more(
    inbounds: Listeners, certified: Certified, tmp_path: Path, scheme: str
) -> None:
    with (
        web_server(tls=certified.server()) as secure,
        websocket_echo() as echo,
        page_server(secure, echo) as web,
    ):
        shown = chromium(tmp_path, inbounds.open.url(scheme), f"http://localhost:{web}/")
        assert '<p id="said">plain secret echo</p>' in shown
        for port in (web, secure, echo):
            inbounds.open.carried(f"localhost:{port}", GONE_EARLY)
