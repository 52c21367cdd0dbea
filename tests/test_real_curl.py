"""curl, in every protocol that the door speaks."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import needs
import pytest
from program import TOO_LONG, web_server
from real import GONE_EARLY, Certified, Door, Doors, guarded_door, http2_server

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


def doors_of(doors: Doors, scheme: str) -> list[Door]:
    """SOCKS4 has no passwords."""
    return [doors.open] if scheme.startswith("socks4") else [doors.open, doors.guarded]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fetches_pages_and_looks_up_names_where_its_scheme_says(
    doors: Doors, web: int, scheme: str
) -> None:
    for door in doors_of(doors, scheme):
        url = f"http://localhost:{web}/text/[1-3]"
        assert fetched("-x", door.url(scheme), url) == "123"
        door.carried(f"{'localhost' if scheme in BY_NAME else '127.0.0.1'}:{web}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_reaches_a_server_over_tls(
    doors: Doors, secure_web: int, certified: Certified, scheme: str
) -> None:
    for door in doors_of(doors, scheme):
        url = f"https://localhost:{secure_web}/text/secret"
        assert fetched("-x", door.url(scheme), "--cacert", certified.authority, url) == "secret"
        door.carried(f"{'localhost' if scheme in BY_NAME else '127.0.0.1'}:{secure_web}")


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_it_speaks_http_2(doors: Doors, certified: Certified, scheme: str) -> None:
    with http2_server(certified) as port:
        told = fetched(
            "-x", doors.guarded.url(scheme), "--cacert", certified.authority, "--http2",
            "-w", " by HTTP/%{http_version}", f"https://localhost:{port}/",
        )  # fmt: skip
        assert told == "two by HTTP/2"
        # it closes as soon as it has its page, whatever the server has yet to say about windows
        doors.guarded.carried(f"localhost:{port}", GONE_EARLY)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_it_reaches_ipv6(doors: Doors, scheme: str) -> None:
    with web_server("::1") as web:
        assert fetched("-x", doors.open.url(scheme), f"http://[::1]:{web}/text/six") == "six"
        doors.open.carried(f"[::1]:{web}")


def test_it_tunnels_a_plain_page_if_it_is_told_to(door: Door, web: int) -> None:
    url = f"http://localhost:{web}/text/dug"
    assert fetched("-x", door.url("http"), "--proxytunnel", url) == "dug"
    door.carried(f"localhost:{web}")


def test_it_goes_through_one_door_to_the_other(doors: Doors, web: int) -> None:
    words = ("--preproxy", doors.open.url("socks5h"), "-x", doors.guarded.url("http"))
    assert fetched(*words, f"http://localhost:{web}/text/far") == "far"
    doors.guarded.carried(f"localhost:{web}")
    doors.open.carried(doors.guarded.at)


def test_it_finds_the_proxy_in_its_environment(door: Door, web: int) -> None:
    url = f"http://localhost:{web}/text/found"
    assert fetched(url, ALL_PROXY=door.url("socks5h")) == "found"
    door.carried(f"localhost:{web}")


def test_without_the_right_password_it_stays_outside_and_says_why(tmp_path: Path, web: int) -> None:
    """At a door of its own: who fails is looked at ever more slowly, and others from there too."""
    url = f"http://localhost:{web}/text/in"
    with guarded_door(tmp_path) as door:
        for login, told in (("", "No authentication method"), ("ali:nonsense@", "rejected")):
            socks = curl("-x", f"socks5h://{login}{door.at}", url)
            assert (socks.returncode, socks.stdout) == (97, "")
            assert told in socks.stderr
            http = curl("-x", f"http://{login}{door.at}", "-w", "%{http_code}", url)
            assert http.stdout.endswith("407")
        assert curl("-x", f"socks4a://ali@{door.at}", url).returncode == 97
        door.refused("auth_failed")
        assert fetched("-x", door.url("socks5h"), url) == "in"


def test_it_is_told_the_true_reason_of_a_failure(doors: Doors) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        free = sock.getsockname()[1]
    for dest, reply, status, word in (
        (f"127.0.0.1:{free}", 5, 502, "connection_refused"),
        ("no-such-name.invalid:80", 4, 502, "dns_error"),
        ("192.0.2.1:80", 2, 403, "destination_ip_prohibited"),
    ):
        socks = curl("-x", doors.open.url("socks5h"), f"http://{dest}/")
        assert (socks.returncode, f"({reply})" in socks.stderr) == (97, True), socks.stderr
        http = curl("-x", doors.open.url("http"), "-i", f"http://{dest}/")
        assert http.stdout.startswith(f"HTTP/1.1 {status} "), http.stdout
        assert word in http.stdout
        assert curl("-x", doors.open.url("socks4a"), f"http://{dest}/").returncode == 97
