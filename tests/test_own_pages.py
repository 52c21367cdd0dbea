"""What the HTTP port answers to a browser that takes the proxy for a web server."""

from __future__ import annotations

import socket as std_socket
from pathlib import Path

import pytest
from gevent.socket import socket

from gsocks import config
from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.http.pac import PAC_TYPE, PacScript, parse_direct
from gsocks.local import LocalServer
from gsocks.net.endpoint import UnixPath
from gsocks.net.unix import listen_at
from gsocks.settings import PacSettings
from tests.support.engine import MakeLocal, Seen, connect, direct, read_to_end, running_inbound
from tests.support.newcomers import cheap

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

BROWSER = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n"


def asked(at: Address, request: str) -> tuple[str, str]:
    """The head and the body of the answer, behind which the connection ends."""
    with connect(at) as client:
        client.sendall(request.encode())
        head, _, body = read_to_end(client).decode().partition("\r\n\r\n")
    return head, body


def get(at: Address, path: str, more: str = "", method: str = "GET") -> tuple[str, str]:
    return asked(at, f"{method} {path} HTTP/1.1\r\nHost: {at}\r\n{more}\r\n")


@pytest.mark.parametrize("path", ["/proxy.pac", "/wpad.dat", "/wpad.dat?v=1"])
def test_a_script_names_the_address_by_which_it_was_asked_for(
    make_local: MakeLocal, seen: Seen, path: str
) -> None:
    at = make_local().bound
    head, body = asked(at, f"GET {path} HTTP/1.1\r\nHost: Proxy.Example:3128\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert f"Content-Type: {PAC_TYPE}\r\n" in head + "\r\n"
    assert 'var proxy = "PROXY proxy.example:3128";' in body
    record = seen.next()
    assert (record.outcome, record.detail) == ("ok", f"was sent {path.partition('?')[0]}")


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("wpad.corp.example", "wpad.corp.example:80"),
        ("[2001:db8::1]:3128", "[2001:db8::1]:3128"),
        ('a";alert(1)//', None),
        ("a b", None),
        ("a:b:c", None),
        ("", None),
    ],
)
def test_a_host_that_is_none_is_never_in_the_script(
    make_local: MakeLocal, host: str, named: str | None
) -> None:
    at = make_local().bound
    _, body = asked(at, f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert f'var proxy = "PROXY {named or at}";' in body


def test_neither_needs_a_login(make_local: MakeLocal, seen: Seen) -> None:
    at = make_local(users={"ali": cheap(b"secret")}).bound
    assert get(at, "/proxy.pac")[0].startswith("HTTP/1.1 200 ")
    assert get(at, "/", BROWSER)[0].startswith("HTTP/1.1 400 ")
    wrong = "Proxy-Authorization: Basic YWxpOndyb25n\r\n"
    right = "Proxy-Authorization: Basic YWxpOnNlY3JldA==\r\n"
    answers = {get(at, "/", BROWSER + login)[1] for login in (wrong, right)}
    assert len(answers) == 1  # no password can be guessed by it
    assert seen.outcomes[:2] == ["ok", "bad_request"]


def test_a_browser_is_told_how_a_proxy_is_set_up(make_local: MakeLocal, seen: Seen) -> None:
    at = make_local().bound
    head, body = get(at, "/index.html", BROWSER)
    assert head.startswith("HTTP/1.1 400 ")
    assert "default-src 'none'" in head
    for shown in (f"--proxy-server=http://{at}", f"http://{at}/proxy.pac", f"port <code>{at.port}"):
        assert shown in body
    record = seen.next()
    assert (record.outcome, record.dest) == ("bad_request", "")


def test_a_page_has_no_body_for_head_and_there_is_no_icon(make_local: MakeLocal) -> None:
    at = make_local().bound
    head, body = get(at, "/", BROWSER, method="HEAD")
    assert (head.startswith("HTTP/1.1 400 "), body) == (True, "")
    assert "Content-Length: 0" not in head
    head, body = get(at, "/favicon.ico")
    assert (head.startswith("HTTP/1.1 404 "), body) == (True, "")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_program_is_told_in_plain_text(make_local: MakeLocal, method: str) -> None:
    more = "" if method == "GET" else BROWSER + "Content-Length: 0\r\n"
    head, body = get(make_local().bound, "/", more, method)
    assert head.startswith("HTTP/1.1 400 ")
    assert body.startswith("400 Bad Request: this is a proxy, not a web server")


def test_a_script_that_is_not_to_be_served_is_not(make_local: MakeLocal) -> None:
    at = make_local(pac={"serve": False}).bound
    assert get(at, "/proxy.pac")[0].startswith("HTTP/1.1 400 ")
    assert "proxy.pac" not in get(at, "/", BROWSER)[1]


def test_a_reload_replaces_the_hosts(make_local: MakeLocal) -> None:
    local = make_local(pac=PacSettings(direct=("a.example",)))
    assert '"a.example"' in get(local.bound, "/proxy.pac")[1]
    local.replace_pac(PacSettings(direct=("b.example",)))
    assert '"b.example"' in get(local.bound, "/proxy.pac")[1]


def test_at_a_unix_socket_only_a_host_can_be_named(tmp_path: Path, seen: Seen) -> None:
    path = str(tmp_path / "s")
    with running_inbound(LocalServer(listen_at(UnixPath(path)), direct(), observer=seen)):
        for host, status in (("proxy.example", "200"), ("?", "400")):
            with socket(std_socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(f"GET /proxy.pac HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert read_to_end(client).startswith(f"HTTP/1.1 {status} ".encode())


# --- what is written in a config ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Intranet.Example.", "intranet.example"),
        ("*.corp.example", "*.corp.example"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("2001:DB8::1", "2001:db8::1/128"),
        ("<local>", "<local>"),
    ],
)
def test_a_host_has_one_form(text: str, canonical: str) -> None:
    assert parse_direct(text) == canonical
    PacScript([canonical])


@pytest.mark.parametrize("text", ["", "a b", "*", "*.", "a*.b", "10.0.0.0/33", "1.2.3", "<x>", 7])
def test_what_is_no_host_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        parse_direct(text)


def test_a_config_names_the_place_of_a_mistake(tmp_path: Path) -> None:
    text = "local: {listen: 127.0.0.1:1, pac: {direct: [a.example, '*']}}"
    with pytest.raises(ConfigError, match=r"local\.pac\.direct\[1\]: '\*' is not a host"):
        config.parse(text, tmp_path)
    with pytest.raises(ConfigError, match="pac: '\\*' is not a host"):
        LocalServer("127.0.0.1:0", pac={"direct": ["*"]})


def test_a_reload_takes_it(tmp_path: Path) -> None:
    before = config.parse("local: {listen: 127.0.0.1:1}", tmp_path)
    after = config.parse("local: {listen: 127.0.0.1:1, pac: {direct: [a.example]}}", tmp_path)
    merged = config.reloaded(before, after)
    assert merged.local is not None
    assert merged.local.pac.direct == ("a.example",)
    assert config.needing_restart(merged, after) == []
