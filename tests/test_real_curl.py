"""curl, in every protocol of the listener."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from gsocks.address import canonical_host
from tests.support import needs
from tests.support.program import web_server
from tests.support.real import (
    GONE_EARLY,
    Certified,
    Listener,
    Listeners,
    guarded_inbound,
    http2_server,
)
from tests.support.waiting import TOO_LONG

SCHEMES = ["socks4", "socks4a", "socks5", "socks5h", "http"]
#: those that leave the name to the proxy
BY_NAME = {"socks4a", "socks5h", "http"}


def curl(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    limits = ["--silent", "--show-error", "--max-time", str(TOO_LONG)]
    return subprocess.run(
        [needs.program("curl"), *limits, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )


def fetched(*words: str | Path, **environment: str) -> str:
    done = curl("--fail", *words, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inbounds_of(inbounds: Listeners, scheme: str) -> list[Listener]:
    """SOCKS4 has no passwords."""
    return [inbounds.open] if scheme.startswith("socks4") else [inbounds.open, inbounds.guarded]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fetches_pages_and_looks_up_names_where_its_scheme_says(
    inbounds: Listeners, web: int, scheme: str
) -> None:
    for inbound in inbounds_of(inbounds, scheme):
        url = f"http://localhost:{web}/text/[1-3]"
        assert fetched("-x", inbound.url(scheme), url) == "123"
        inbound.carried(f"{'localhost' if scheme in BY_NAME else '127.0.0.1'}:{web}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_reaches_a_server_over_tls(
    inbounds: Listeners, secure_web: int, certified: Certified, scheme: str
) -> None:
    for inbound in inbounds_of(inbounds, scheme):
        url = f"https://localhost:{secure_web}/text/secret"
        assert fetched("-x", inbound.url(scheme), "--cacert", certified.authority, url) == "secret"
        inbound.carried(f"{'localhost' if scheme in BY_NAME else '127.0.0.1'}:{secure_web}")


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_it_speaks_http_2(inbounds: Listeners, certified: Certified, scheme: str) -> None:
    with http2_server(certified) as port:
        told = fetched(
            "-x", inbounds.guarded.url(scheme), "--cacert", certified.authority, "--http2",
            "-w", " by HTTP/%{http_version}", f"https://localhost:{port}/",
        )  # fmt: skip
        assert told == "two by HTTP/2"
        # it closes as soon as it has its page, whatever the server has yet to say about windows
        inbounds.guarded.carried(f"localhost:{port}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_it_reaches_ipv6(inbounds: Listeners, scheme: str) -> None:
    with web_server("::1") as web:
        assert fetched("-x", inbounds.open.url(scheme), f"http://[::1]:{web}/text/six") == "six"
        inbounds.open.carried(f"[::1]:{web}")


def test_it_tunnels_a_plain_page_if_it_is_told_to(inbound: Listener, web: int) -> None:
    url = f"http://localhost:{web}/text/dug"
    assert fetched("-x", inbound.url("http"), "--proxytunnel", url) == "dug"
    inbound.carried(f"localhost:{web}")


def test_it_goes_through_one_inbound_to_the_other(inbounds: Listeners, web: int) -> None:
    words = ("--preproxy", inbounds.open.url("socks5h"), "-x", inbounds.guarded.url("http"))
    assert fetched(*words, f"http://localhost:{web}/text/far") == "far"
    inbounds.guarded.carried(f"localhost:{web}")
    inbounds.open.carried(inbounds.guarded.at)


def test_any_url_and_any_host_field_reach_the_page(inbound: Listener, web: int) -> None:
    """curl sends the bytes of its argument as they are, and the Host that it is given."""
    proxied, page = ("-x", inbound.url("http")), f"http://127.0.0.1:{web}/text/"
    assert fetched(*proxied, page + "日本") == "%E6%97%A5%E6%9C%AC"
    assert fetched(*proxied, "-H", "Host: shop.example", page + "hosted") == "hosted"


NAMES = "straße.de faß.de βόλος.com BÜCHER.example ☃.net ⓖsocks.ü。example x_ü.de a\u200db.de"


@pytest.mark.parametrize("name", [*NAMES.split(), "-foo.example", "foo-.a--.example", "1א.de"])
def test_a_name_in_any_script_is_encoded_as_it_encodes_it(name: str) -> None:
    asked: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as proxy:
        at = f"127.0.0.1:{proxy.getsockname()[1]}"

        def note() -> None:
            sock, _ = proxy.accept()
            with sock:
                asked.append(sock.recv(4096).split()[1])
                sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=note)
        thread.start()
        curl("-x", f"http://{at}", f"http://{name}/", LANG="C.UTF-8")
        thread.join(TOO_LONG)
    assert asked == [f"http://{canonical_host(name)}/".encode()]


def test_it_finds_the_proxy_in_its_environment(inbound: Listener, web: int) -> None:
    url = f"http://localhost:{web}/text/found"
    assert fetched(url, ALL_PROXY=inbound.url("socks5h")) == "found"
    inbound.carried(f"localhost:{web}")


def test_without_the_right_password_it_stays_outside_and_says_why(tmp_path: Path, web: int) -> None:
    """With a listener of its own: failed logins delay further ones from that address."""
    url = f"http://localhost:{web}/text/in"
    with guarded_inbound(tmp_path) as inbound:
        for login, told in (("", "No authentication method"), ("ali:nonsense@", "rejected")):
            socks = curl("-x", f"socks5h://{login}{inbound.at}", url)
            assert (socks.returncode, socks.stdout) == (97, "")
            assert told in socks.stderr
            http = curl("-x", f"http://{login}{inbound.at}", "-w", "%{http_code}", url)
            assert http.stdout.endswith("407")
        assert curl("-x", f"socks4a://ali@{inbound.at}", url).returncode == 97
        inbound.refused("auth_failed")
        assert fetched("-x", inbound.url("socks5h"), url) == "in"


def test_it_is_told_the_true_reason_of_a_failure(inbounds: Listeners) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        free = sock.getsockname()[1]
    for dest, reply, status, word in (
        (f"127.0.0.1:{free}", 5, 502, "connection_refused"),
        ("no-such-name.invalid:80", 4, 502, "dns_error"),
        ("192.0.2.1:80", 2, 403, "destination_ip_prohibited"),
    ):
        socks = curl("-x", inbounds.open.url("socks5h"), f"http://{dest}/")
        assert (socks.returncode, f"({reply})" in socks.stderr) == (97, True), socks.stderr
        http = curl("-x", inbounds.open.url("http"), "-i", f"http://{dest}/")
        assert http.stdout.startswith(f"HTTP/1.1 {status} "), http.stdout
        assert word in http.stdout
        assert curl("-x", inbounds.open.url("socks4a"), f"http://{dest}/").returncode == 97
