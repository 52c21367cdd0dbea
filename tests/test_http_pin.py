"""NTLM and Negotiate keep their connection (RFC 4559), which no other client gets."""

from __future__ import annotations

import re
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import pytest
import requests
import spnego
from requests_ntlm import HttpNtlmAuth

from gsocks.address import Address
from gsocks.local import LocalServer
from tests.support import needs
from tests.support.engine import eventually
from tests.support.program import Pages, Program, web_server
from tests.support.proxies import squid, tinyproxy
from tests.support.waiting import TOO_LONG
from tests.support.web import Talk, Web, get, http_inbound, ok, talk_to, web

# --- the real protocol -----------------------------------------------------------------------

USER, SECRET = "alice", "s3cret"

CONFIG = """
local:
  listen: 127.0.0.1:0
  rules: [allow loopback]
  exits: ["direct://?source=127.0.0.2", "direct://?source=127.0.0.3", "direct://?source=127.0.0.4"]
"""


class Guarded(Pages):
    """Pages for those who have proved by NTLM, on this connection, who they are."""

    user = ""
    context: spnego.ContextProxy | None = None

    def handle(self) -> None:
        with suppress(ConnectionResetError):  # a connection that is of no more use
            super().handle()

    def do_GET(self) -> None:
        if self._log_in():
            self.answer(f"{self.user} from {self.client_address[0]}".encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._log_in():
            self.answer(f"{self.user} says {body.decode()}".encode())

    def _log_in(self) -> bool:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        answer = "NTLM"
        if scheme == "NTLM":
            if self.context is None or self.context.complete:
                self.context, self.user = spnego.server(protocol="ntlm"), ""
            try:
                reply = self.context.step(b64decode(token))
            except spnego.exceptions.SpnegoError:
                reply, self.context = None, None
            if self.context is not None and self.context.complete:
                self.user = str(self.context.client_principal)
            elif reply:
                answer += " " + b64encode(reply).decode()
        if self.user:
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", answer)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    users = tmp_path_factory.mktemp("ntlm") / "users"
    users.write_text(f"DOMAIN:{USER}:{SECRET}\n")
    with pytest.MonkeyPatch.context() as patch, web_server(pages=Guarded) as port:
        patch.setenv("NTLM_USER_FILE", str(users))
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Three exits in turn: without care, each request has another one."""
    config = tmp_path_factory.mktemp("gateway") / "config.yaml"
    config.write_text(CONFIG)
    with Program("-c", config) as program:
        yield f"http://127.0.0.1:{program.port()}"


def test_requests_logs_in_by_ntlm_and_stays_logged_in(site: str, proxy: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy}
        session.auth = HttpNtlmAuth(f"DOMAIN\\{USER}", SECRET)
        told = {session.get(site, timeout=TOO_LONG).text for _ in range(3)}
        assert len(told) == 1
        assert re.fullmatch(r"DOMAIN\\alice from 127\.0\.0\.[234]", told.pop())
        posted = session.post(site, data="hello", timeout=TOO_LONG)
        assert posted.text == "DOMAIN\\alice says hello"
        # and without any credentials, on the connection that has shown them
        session.auth = None
        assert session.get(site, timeout=TOO_LONG).text.startswith("DOMAIN\\alice from ")
        another = requests.get(site, proxies={"http": proxy}, timeout=TOO_LONG)
        assert another.status_code == 401
        assert another.headers["Proxy-Support"] == "Session-Based-Authentication"


def test_a_wrong_password_is_refused(site: str, proxy: str) -> None:
    auth = HttpNtlmAuth(f"DOMAIN\\{USER}", "guess")
    answer = requests.get(site, proxies={"http": proxy}, auth=auth, timeout=TOO_LONG)
    assert answer.status_code == 401


@pytest.mark.parametrize("data", [(), ("--data", "hello")])
def test_curl_logs_in_by_ntlm(site: str, proxy: str, data: tuple[str, ...]) -> None:
    urls = [site, site] if not data else [site]
    done = subprocess.run(
        [needs.program("curl"), "-sS", "--ntlm", "-u", f"DOMAIN\\{USER}:{SECRET}", *data,
         "-w", "\n", "-x", proxy, *urls],
        capture_output=True, text=True, timeout=TOO_LONG, check=True,
    )  # fmt: skip
    lines = done.stdout.split("\n")[:-1]
    if data:
        assert lines == ["DOMAIN\\alice says hello"]
    else:
        assert lines[0].startswith("DOMAIN\\alice from ")
        assert lines == [lines[0]] * 2


@pytest.mark.parametrize("start", [squid, tinyproxy])
def test_an_http_exit_carries_it(
    site: str, tmp_path: Path, start: Callable[[Path], AbstractContextManager[Address]]
) -> None:
    """squid refuses CONNECT, and keeps the connections of a client apart that authenticates itself;
    tinyproxy has a new one for each request, unless it is asked for CONNECT."""
    config = tmp_path / "config.yaml"
    with start(tmp_path) as exit_:
        exits = f'exits: ["http://{exit_}"]'
        config.write_text(f"local: {{listen: '127.0.0.1:0', rules: [allow loopback], {exits}}}")
        with Program("-c", config) as program, requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": f"http://127.0.0.1:{program.port()}"}
            session.auth = HttpNtlmAuth(f"DOMAIN\\{USER}", SECRET)
            assert requests.get(site, proxies=session.proxies, timeout=TOO_LONG).status_code == 401
            for _ in range(2):
                answer = session.get(site, timeout=TOO_LONG)
                assert answer.text == "DOMAIN\\alice from 127.0.0.1"
                assert ("squid" in answer.headers.get("Via", "")) is (start is squid)


# --- whose connection it is --------------------------------------------------------------------

pin_tests = pytest.mark.usefixtures("never_hangs", "nothing_left")

TYPE_1 = b"Authorization: NTLM TlRMTVNTUAABAAAA"
NEGOTIATE = b"Authorization: negotiate YIIabc="
CHALLENGE = (
    b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM TlRMTVNTUAACAAAA\r\n"
    b"Content-Length: 0\r\n\r\n"
)


class Site:
    """A web server that counts its connections, each of which answers request after request."""

    def __init__(self, stack: ExitStack, answer: bytes = ok(b"page")) -> None:
        self.connections = 0
        #: the number of the connection on which each request came
        self.requests: list[int] = []
        self.talks: list[Talk] = []
        #: whether the first connection ends when the next request comes
        self.hangs_up = False
        self._answer = answer
        self.web: Web = stack.enter_context(web(self._serve))
        self.inbound: LocalServer
        self.inbound, _ = stack.enter_context(http_inbound())

    def _serve(self, talk: Talk) -> None:
        self.connections += 1
        number = self.connections
        self.talks.append(talk)
        while True:
            self.requests.append(number)
            talk.say(self._answer)
            try:
                talk.head = talk.hear_until(b"\r\n\r\n")
            except (AssertionError, OSError):
                return
            if number == 1 and self.hangs_up:
                return

    def ask(self, client: Talk, *fields: bytes, web: Web | None = None) -> int:
        return client.ask(get(web or self.web, b"/", *fields)).status


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pin_tests
@pytest.mark.parametrize("field", [TYPE_1, NEGOTIATE])
@pytest.mark.parametrize("answer", [CHALLENGE, ok(b"page")])
def test_what_follows_credentials_of_a_connection_goes_over_the_same(
    stack: ExitStack, field: bytes, answer: bytes
) -> None:
    site = Site(stack, answer)
    with talk_to(site.inbound) as client:
        site.ask(client, field)
        for _ in range(2):
            site.ask(client)
        assert site.requests == [1, 1, 1]


@pin_tests
def test_no_other_client_gets_an_authenticated_connection(stack: ExitStack) -> None:
    site = Site(stack)
    with talk_to(site.inbound) as first, talk_to(site.inbound) as second:
        site.ask(first, TYPE_1)
        site.ask(second)
        site.ask(first)
        assert site.requests == [1, 2, 1]
    with talk_to(site.inbound) as third:
        site.ask(third, TYPE_1)
    assert 1 not in site.requests[3:]


@pin_tests
def test_no_other_user_of_one_client_connection_gets_it(stack: ExitStack) -> None:
    """A proxy in front may send the requests of several users over one connection."""
    site = Site(stack)
    session = b"Proxy-Authorization: Basic " + b64encode(b"session-x:")
    with talk_to(site.inbound) as client:
        site.ask(client, TYPE_1)
        site.ask(client, session)
        site.ask(client)
    assert site.requests == [1, 2, 1]


@pin_tests
def test_requests_for_other_servers_leave_it_where_it_is(stack: ExitStack) -> None:
    site, other = Site(stack), Site(stack)
    with talk_to(site.inbound) as client:
        site.ask(client, TYPE_1)
        site.ask(client, web=other.web)
        site.ask(client)
    assert site.requests == [1, 1]
    assert other.requests == [1]


@pin_tests
def test_it_ends_with_the_clients_connection(stack: ExitStack) -> None:
    site = Site(stack)
    with talk_to(site.inbound) as client:
        site.ask(client, TYPE_1)
        (talk,) = site.talks
        assert not talk.over.is_set()
    eventually(lambda: not site.inbound.connections)
    (member,) = site.inbound.context.exit_group.roster
    assert member.open == 0
    assert member.counts.failed == 0


@pin_tests
def test_it_ends_when_the_server_ends_it_and_the_client_goes_on(stack: ExitStack) -> None:
    site = Site(stack)
    with talk_to(site.inbound) as client:
        assert site.ask(client, TYPE_1) == 200
        site.talks[0].sock.close()
        assert site.ask(client) == 200
        assert site.requests == [1, 2]


@pin_tests
def test_the_connection_that_follows_it_is_no_clients_own(stack: ExitStack) -> None:
    """It ended when the next request was on its way, so that this is sent over another one."""
    site = Site(stack)
    with talk_to(site.inbound) as client:
        site.ask(client, TYPE_1)
        site.hangs_up = True
        assert site.ask(client) == 200
        assert site.requests == [1, 2]
        assert len(site.inbound.context.exit_group.kept) == 1


@pin_tests
@pytest.mark.parametrize("how", ["banned", "banned for the site", "drained", "ejected"])
def test_it_is_used_no_more_once_its_exit_may_not_be_used(stack: ExitStack, how: str) -> None:
    site = Site(stack)
    group = site.inbound.context.exit_group
    (member,) = group.roster
    with talk_to(site.inbound) as client:
        assert site.ask(client, TYPE_1) == 200
        if how == "drained":
            group.drain(member.name)
        elif how == "ejected":
            member.health.eject(time.monotonic())
        else:
            group.ban(member.name, 60.0, "127.0.0.1" if how == "banned for the site" else None)
        site.ask(client)
    assert site.requests[:2] != [1, 1]
    assert member.open == 0


@pin_tests
def test_an_answer_that_ends_its_connection_pins_nothing(stack: ExitStack) -> None:
    closing = ok(b"page", b"Connection: close")
    site = Site(stack, closing)
    with talk_to(site.inbound) as client:
        site.ask(client, TYPE_1)
        site.ask(client)
    assert site.requests == [1, 2]


@pin_tests
@pytest.mark.parametrize(
    "field", [b"Authorization: Basic YTpi", b"Authorization: Bearer x", b"X: NTLM"]
)
def test_credentials_of_a_request_pin_nothing(stack: ExitStack, field: bytes) -> None:
    site = Site(stack)
    with talk_to(site.inbound) as client:
        site.ask(client, field)
        assert len(site.inbound.context.exit_group.kept) == 1


@pin_tests
def test_the_client_is_told_that_it_may_authenticate_its_connection(stack: ExitStack) -> None:
    site = Site(stack, CHALLENGE)
    with talk_to(site.inbound) as client:
        answer = client.ask(get(site.web))
        assert answer["proxy-support"] == "Session-Based-Authentication"
        assert answer["www-authenticate"] == "NTLM TlRMTVNTUAACAAAA"
