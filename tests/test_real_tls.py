"""Real clients of a listener in TLS: curl and Chromium, and gsocks by SOCKS and HTTP."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

from gsocks.local import LocalServer
from tests.support import needs
from tests.support.engine import ask_echo, echo, running_inbound, serving
from tests.support.listeners import Listeners, directly
from tests.support.program import Program, run, web_server
from tests.support.proxy_tls import NAME, Files
from tests.support.real import chromium_options
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def page(sock: Any) -> None:
    sock.recv(65536)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n<p>through")


def curl(ends: Listeners, files: Files, *options: str) -> subprocess.CompletedProcess[str]:
    command = [needs.program("curl"), "-sS", "--proxy", f"https://{ends.bound}"]
    trusted = ["--proxy-cacert", str(files.folder / "ca.pem")]
    return subprocess.run(
        [*command, *trusted, *options],
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        check=False,
    )


@pytest.mark.parametrize("tunnel", [(), ("--proxytunnel",)], ids=["get", "connect"])
def test_curl_takes_it_for_an_https_proxy(files: Files, tunnel: tuple[str, ...]) -> None:
    with serving(page) as web, directly(tls=files.tls()) as ends:
        done = curl(ends, files, *tunnel, f"http://{web}/")
        assert (done.stdout, done.stderr) == ("<p>through", "")


def test_curl_comes_in_by_its_certificate(files: Files) -> None:
    with serving(page) as web, directly(tls=files.by_certificate()) as ends:
        url = f"http://{web}/"
        shown = curl(ends, files, "--proxy-cert", str(files.folder / "ali.pem"), url)
        assert shown.stdout == "<p>through", shown.stderr
        assert ends.seen.next().user == "ali"
        assert curl(ends, files, url).returncode == 56
        assert ends.seen.next().outcome == "tls_failed"


def test_chromium_takes_it_for_an_https_proxy(files: Files, tmp_path: Path) -> None:
    with serving(page) as web, directly(tls=files.tls(), names=lambda _: [web.host]) as ends:
        done = subprocess.run(
            [
                needs.program("chromium"),
                *chromium_options(tmp_path),
                f"--proxy-server=https://{ends.bound}",
                f"http://site.test:{web.port}/",
            ],
            capture_output=True,
            timeout=TOO_LONG,
            check=False,
        )
        assert b"<p>through" in done.stdout, done.stderr


@pytest.mark.parametrize("scheme", ["socks5s", "https"])
def test_gsocks_itself_has_it_as_an_exit(files: Files, scheme: str) -> None:
    with serving(echo) as dest, directly(tls=files.by_certificate()) as ends:
        options = f"ca={files.folder}/ca.pem&cert={files.folder}/eve.pem&sni={NAME}"
        url = f"{scheme}://{ends.bound}?{options}"
        near = LocalServer("127.0.0.1:0", [url], rules=["allow all"])
        with running_inbound(near):
            assert ask_echo(near.bound, dest, b"x" * 100_000) == b"x" * 100_000
        assert ends.seen.next().user == "eve"


def test_a_program_with_workers_reads_renewed_files_again(tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text(
        "workers: 2\nlocal: {listen: 127.0.0.1:0, tls: {cert: proxy.pem}, rules: [allow all]}\n"
    )
    with Program("-c", path) as program, web_server() as web:
        program.wait_for(r"try it: curl --proxy https://127\.0\.0\.1:\d+ ")
        port = program.port()

        def fetched() -> str:
            trusted = ("--proxy-cacert", str(tmp_path / "ca.pem"))
            proxy = ("--proxy", f"https://127.0.0.1:{port}")
            return run("curl", "-sS", *proxy, *trusted, f"http://127.0.0.1:{web}/text/x").stdout

        assert fetched() == "x"
        files.proxies = type(files.proxies)()
        files.proxies.cert_pem.write_to_path(tmp_path / "ca.pem")
        files.renew()
        program.signal(signal.SIGHUP)
        program.wait_for(r"\[worker 1\].* reloaded: ")
        assert fetched() == "x"
        path.write_text(path.read_text().replace("proxy.pem", "none.pem"))
        program.signal(signal.SIGHUP)
        program.wait_for(r"not reloaded, the previous config stays: .*none\.pem")
        assert fetched() == "x"
