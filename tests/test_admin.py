"""The admin's door: what it tells of the exits, and what it does to them."""

from __future__ import annotations

import json
import logging
import os
import socket as std_socket
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import gevent
import pytest
from engine import Seen, connect, free_port, read_to_end, running_door, through
from prometheus_client.parser import text_string_to_metric_families as families

from gsocks.address import Address
from gsocks.admin import listener, metrics
from gsocks.admin.app import LARGEST_BODY, App
from gsocks.admin.crew import Crew
from gsocks.admin.listener import AdminServer
from gsocks.admin.panel import Panel
from gsocks.admin.snapshot import merged
from gsocks.admin.tally import MOST_OUTCOMES, Tally
from gsocks.admin.token import read_or_make_token
from gsocks.dial import Dialer, Resolver
from gsocks.errors import ConfigError
from gsocks.exits.direct import DirectExit
from gsocks.listen import listen_at_path
from gsocks.local import LocalServer
from gsocks.observe import NullObserver, Record
from gsocks.request import Command, Request
from gsocks.rotation.roster import Offer
from gsocks.rules import ALLOW_ALL
from gsocks.ways_out import WaysOut
from gsocks.wish import ANY, Wish

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

TOKEN = "abcdefghijklmnopqrstuvwxyz"


def direct(name: str, **how: Any) -> Offer:
    return Offer(DirectExit(Dialer(ALLOW_ALL, Resolver()), f"direct {name}"), name=name, **how)


class Answer(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


class Desk:
    """A door with exits, and the admin's beside it."""

    def __init__(self, *offers: Offer, others: tuple[Path, ...] = ()) -> None:
        self.tally = Tally(Seen())
        self.ways = WaysOut(offers, ALLOW_ALL, random=Random(1))
        self.door = LocalServer(("127.0.0.1", 0), self.ways, observer=self.tally)
        self.panel = Panel([self.door], {"local": self.ways}, self.tally)
        self.server = AdminServer(("127.0.0.1", 0), App(self.panel, Crew(others), TOKEN))

    def raw(self, data: bytes) -> Answer:
        with connect(self.server.bound) as sock:
            sock.sendall(data)
            head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        return Answer(int(first.split()[1]), fields, body)

    def ask(self, method: str, target: str, body: object = None, token: str = TOKEN) -> Answer:
        sent = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {token}\r\nContent-Length: {len(sent)}\r\n\r\n"
        return self.raw(head.encode() + sent)

    def get(self, target: str) -> Any:
        answer = self.ask("GET", target)
        assert answer.status == 200, answer
        return answer.said

    def post(self, target: str, body: object = None) -> Answer:
        return self.ask("POST", target, body)

    def used(self, wish: Wish = ANY, dest: Address | None = None) -> str:
        request = Request(Command.CONNECT, dest or self.server.bound, wish=wish)
        way = self.ways.connect(request, lambda _: None)
        way.stream.abort()
        way.release()
        return way.name


def open_desk(*offers: Offer, **options: Any) -> Iterator[Desk]:
    desk = Desk(*(offers or (direct("a", country="de", tags=("x",)), direct("b"))), **options)
    with running_door(desk.door):
        desk.server.start()
        yield desk
        desk.server.stop(0)


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield from open_desk()


# --- who may ask ------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", "\u00e9" * 26])
@pytest.mark.parametrize("target", ["/exits", "/metrics", "/nothing", "/own/snapshot"])
def test_without_the_token_nothing_is_told(desk: Desk, token: str, target: str) -> None:
    answer = desk.ask("GET", target, token=token)
    assert answer.status == 401
    assert answer.fields["WWW-Authenticate"] == 'Bearer realm="gsocks"'
    assert answer.said == {"error": "expected Authorization: Bearer TOKEN"}


def test_without_the_token_nothing_is_done(desk: Desk) -> None:
    answer = desk.ask("POST", "/exits/a/drain", token="x")
    assert answer.status == 401
    assert [each["state"] for each in desk.get("/exits")] == ["unproven", "unproven"]


def test_what_is_for_the_other_workers_is_not_told_to_the_admin(desk: Desk) -> None:
    assert desk.ask("GET", "/own/snapshot").status == 404


# --- what it tells ----------------------------------------------------------------------------


def test_the_exits_are_listed_with_what_they_did(desk: Desk, echo_server: Address) -> None:
    desk.used(Wish(exit="a"))
    a, b = desk.get("/exits")
    assert (a["name"], a["label"], a["section"]) == ("a", "direct a", "local")
    assert (a["country"], a["tags"], a["state"]) == ("de", ["x"], "ok")
    assert (a["connected"], a["failed"], a["open"], a["back_in"]) == (1, 0, 0, 0.0)
    assert 0 < a["connect_seconds"] < 10
    assert (b["state"], b["connected"], b["connect_seconds"]) == ("unproven", 0, 0)


def test_the_exits_can_be_filtered(desk: Desk) -> None:
    def names(query: str) -> list[str]:
        return [each["name"] for each in desk.get(f"/exits?{query}")]

    assert names("country=de") == names("tag=x") == ["a"]
    assert names("state=unproven&section=local") == ["a", "b"]
    assert names("section=server") == []
    answer = desk.ask("GET", "/exits?colour=red")
    assert (answer.status, answer.said) == (400, {"error": "no such filter: colour"})


def test_the_status_counts_connections_and_how_they_ended(desk: Desk, echo_server: Address) -> None:
    with through(desk.door.bound, echo_server) as sock:
        door = desk.get("/status")["doors"]["local"]
        assert door["connections"] == 1
        assert door["listen"] == [str(desk.door.bound)]
        sock.sendall(b"hello")
        sock.shutdown(std_socket.SHUT_WR)
        assert read_to_end(sock) == b"hello"
    desk.tally._then.next()  # type: ignore[attr-defined]
    door = desk.get("/status")["doors"]["local"]
    assert (door["outcomes"], door["up"], door["down"]) == ({"ok": 1}, 5, 5)


def test_the_sessions_are_listed_with_their_exits(desk: Desk) -> None:
    for session in ("one", "two"):
        desk.used(Wish(session=session))
    sessions = desk.get("/sessions")
    assert [each["session"] for each in sessions] == ["two", "one"]
    assert {each["exit"] for each in sessions} <= {"a", "b"}
    assert sessions[0]["user"] is None
    assert len(desk.get("/sessions?most=1")) == 1
    assert desk.ask("GET", "/sessions?most=many").status == 400
    assert desk.get("/status")["sessions"] == {"local": 2}


def test_metrics_are_what_prometheus_reads(desk: Desk) -> None:
    desk.used(Wish(exit="a", session="s"))
    desk.tally.ended(Record("local", "127.0.0.1:1"))
    answer = desk.ask("GET", "/metrics")
    assert answer.fields["Content-Type"] == metrics.CONTENT_TYPE
    told = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(answer.body.decode())
        for sample in family.samples
    }
    a = (("exit", "a"), ("section", "local"))
    assert told["gsocks_exit_connects_total", a] == 1
    assert told["gsocks_exit_usable", a] == 1
    assert told["gsocks_exits", (("section", "local"), ("state", "ok"))] == 1
    assert told["gsocks_requests_total", (("door", "local"), ("outcome", ""))] == 1
    assert told["gsocks_sessions", (("section", "local"),)] == 1
    assert told["gsocks_workers", ()] == 1


def test_thousands_of_exits_don_t_make_thousands_of_series() -> None:
    for desk in open_desk(*(direct(f"e{number}") for number in range(2000))):
        desk.used(Wish(exit="e1999"))
        text = desk.ask("GET", "/metrics").body.decode()
    assert text.count("gsocks_exit_usable{") == metrics.MOST_EXITS
    assert 'gsocks_exit_connects_total{exit="other",section="local"} 1.0' in text


def test_outcomes_that_never_end_are_counted_together() -> None:
    tally = Tally(NullObserver())
    for number in range(2 * MOST_OUTCOMES):
        record = Record("local", "x")
        record.outcome = f"word{number}"
        tally.ended(record)
    outcomes = tally.doors["local"].outcomes
    assert len(outcomes) == MOST_OUTCOMES + 1
    assert outcomes["other"] == MOST_OUTCOMES


# --- what it does -----------------------------------------------------------------------------


def test_a_banned_exit_is_left_alone_until_it_is_unbanned(desk: Desk) -> None:
    assert desk.post("/exits/a/ban", {"seconds": 600}).said == {"done": True}
    a = desk.get("/exits/a")
    assert a["state"] == "banned"
    assert 590 < a["back_in"] <= 600
    assert {desk.used() for _ in range(4)} == {"b"}
    desk.post("/exits/a/unban")
    assert {desk.used() for _ in range(4)} == {"a", "b"}


def test_an_exit_banned_for_a_domain_serves_the_others(desk: Desk) -> None:
    here = "127.0.0.1"
    desk.post("/exits/a/ban", {"seconds": 600, "domain": here})
    assert {desk.used() for _ in range(4)} == {"b"}
    a = desk.get("/exits/a")
    assert a["state"] == "unproven"
    (pair,) = a["domains"]
    assert (pair["domain"], pair["state"]) == (here, "banned")
    desk.post("/exits/a/unban", {"domain": here})
    assert desk.get("/exits/a")["domains"] == []


def test_a_drained_exit_is_asked_nothing_until_it_is_in_use_again(desk: Desk) -> None:
    desk.post("/exits/a/drain")
    assert desk.get("/exits/a")["state"] == "draining"
    assert {desk.used() for _ in range(4)} == {"b"}
    desk.post("/exits/a/undrain")
    assert {desk.used() for _ in range(4)} == {"a", "b"}


def test_three_bad_reports_put_an_exit_out_for_a_domain(desk: Desk) -> None:
    for _ in range(3):
        said = {"domain": "127.0.0.1", "ok": False, "reason": "captcha"}
        assert desk.post("/exits/a/report", said).status == 200
    assert {desk.used() for _ in range(4)} == {"b"}
    desk.post("/exits/a/report", {"domain": "127.0.0.1", "ok": True})
    assert {desk.used() for _ in range(4)} == {"a", "b"}


def test_a_session_is_rotated_now(desk: Desk) -> None:
    wish = Wish(session="cart")
    home = desk.used(wish)
    assert desk.post("/sessions/rotate", {"session": "cart"}).status == 200
    assert desk.used(wish) != home


def test_a_report_may_name_a_session_instead_of_its_exit(desk: Desk) -> None:
    wish = Wish(session="cart")
    home = desk.used(wish)
    said = {"session": "cart", "domain": "127.0.0.1", "ok": False}
    for _ in range(3):
        desk.post("/sessions/report", said)
    assert desk.get(f"/exits/{home}")["domains"][0]["state"] == "out"
    answer = desk.post("/sessions/report", {**said, "session": "nobodys"})
    assert (answer.status, answer.said) == (404, {"error": "no session 'nobodys' has an exit"})


@pytest.mark.parametrize(
    ("target", "body", "status", "error"),
    [
        ("/exits/x/drain", None, 404, "no exit is called 'x'"),
        ("/exits/a/paint", None, 404, "no such command"),
        ("/exits/a/drain?section=server", None, 404, "no section 'server' runs here"),
        ("/exits/a/ban", None, 400, "missing required field `seconds`"),
        ("/exits/a/ban", {"seconds": 0}, 400, "> 0"),
        ("/exits/a/ban", {"seconds": 1e12}, 400, "<= "),
        ("/exits/a/ban", {"seconds": 1, "colour": "red"}, 400, "colour"),
        ("/exits/a/ban", {"seconds": 1, "domain": "a b"}, 400, "domain: "),
        ("/exits/a/ban", b"{", 400, "truncated"),
        ("/exits/a/ban", b"\xff", 400, "malformed"),
        ("/exits/a/report", {"domain": "a.example"}, 400, "`ok`"),
        ("/sessions/rotate", {"session": ""}, 400, "length >= 1"),
    ],
)
def test_what_can_not_be_done_is_told(
    desk: Desk, target: str, body: object, status: int, error: str
) -> None:
    answer = desk.post(target, body)
    assert answer.status == status
    assert error in answer.said["error"]


def test_a_body_without_end_is_not_read(desk: Desk) -> None:
    assert desk.post("/exits/a/ban", b" " * (LARGEST_BODY + 1)).status == 413
    head = b"POST /exits/a/ban HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
    chunked = b"\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    assert desk.raw(head + TOKEN.encode() + chunked).status == 400


def test_a_body_in_chunks_is_read_like_any_other(desk: Desk) -> None:
    head = "POST /exits/a/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"

    def told(command: str, body: bytes) -> int:
        return desk.raw(
            head.format(command).encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        ).status

    desk.post("/exits/a/ban", {"seconds": 60})
    assert told("unban", b'{"domain": "shop.example"}') == 200
    assert desk.get("/exits/a")["state"] == "banned"  # for the domain alone it was lifted
    assert told("unban", b" " * (LARGEST_BODY + 1)) == 413
    assert desk.get("/exits/a")["state"] == "banned"


@pytest.mark.parametrize("most", ["%C2%B2", "-1", "9" * 5000, ""])
def test_a_number_that_is_none_is_told(desk: Desk, most: str) -> None:
    answer = desk.ask("GET", f"/sessions?most={most}")
    assert answer.status == (400 if most else 200)


_SLOW = {
    "says nothing": b"",
    "stops in its first line": b"GET /sta",
    "stops in its head": b"GET /status HTTP/1.1\r\nHost: x\r\nAuthor",
    "stops in its body": b"POST /exits/a/ban HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n{",
    "stops in a body that nobody wants": b"POST /x HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: 999999999999\r\n\r\n{",
}


@pytest.mark.parametrize("patience", ["PATIENCE", "LONGEST"])
@pytest.mark.parametrize("said", _SLOW.values(), ids=_SLOW)
def test_whoever_is_slow_is_left_without_a_word_in_the_log(
    desk: Desk,
    said: bytes,
    patience: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(listener, patience, 0.05)
    with connect(desk.server.bound) as sock:
        sock.sendall(said)
        read_to_end(sock)
    assert desk.get("/status")["workers"] == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", ["ends", "resets"])
@pytest.mark.parametrize("said", _SLOW.values(), ids=_SLOW)
def test_whoever_goes_before_all_is_said_leaves_no_word_in_the_log(
    desk: Desk, said: bytes, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(desk.server.bound) as sock:
        sock.sendall(said)
        gevent.sleep(0)
        if how == "ends":
            sock.shutdown(std_socket.SHUT_WR)
            read_to_end(sock)
        else:
            sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert desk.get("/exits/a")["state"] == "unproven"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("end", [b"", b"Content-Length: 99999\r\n\r\n"])
@pytest.mark.parametrize("token", [b"", b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"])
def test_whoever_goes_on_byte_by_byte_is_left_too(
    desk: Desk, token: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LONGEST", 0.1)
    with connect(desk.server.bound) as sock, pytest.raises(OSError, match=r"reset|pipe"):
        sock.sendall(b"POST /exits/a/drain HTTP/1.1\r\n" + token + end)
        for _ in range(500):
            sock.sendall(b"x")
            gevent.sleep(0.01)
    assert desk.get("/exits/a")["state"] == "unproven"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(desk: Desk, method: str) -> None:
    assert desk.ask(method, "/exits").status == 405


def test_head_tells_what_get_would_without_saying_it(desk: Desk) -> None:
    answer = desk.ask("HEAD", "/status")
    assert (answer.status, answer.body) == (200, b"")


def test_a_name_may_need_escaping() -> None:
    for desk in open_desk(direct("a b"), direct("b")):
        assert desk.get("/exits/a%20b")["name"] == "a b"
        assert desk.post("/exits/a%20b/drain").status == 200


# --- many workers -----------------------------------------------------------------------------


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[tuple[Desk, Desk]]:
    """Two workers; the admin speaks to the first one, which knows where the second one is."""
    meeting = tmp_path / "1.sock"
    for second in open_desk(direct("a"), direct("b")):
        own = AdminServer(listen_at_path(meeting), App(second.panel, Crew(), None))
        own.start()
        for first in open_desk(direct("a"), direct("b"), others=(meeting, tmp_path / "gone")):
            yield first, second
        own.stop(0)


def test_what_workers_know_is_told_as_one(crew: tuple[Desk, Desk]) -> None:
    first, second = crew
    first.used(Wish(exit="a", session="s1"))
    first.ways.sessions._sessions["", "s1"].last -= 5.0
    second.used(Wish(exit="a", session="s2"))
    second.used(Wish(exit="b", session="s1"))
    second.ways.ban("b", 60.0)
    a, b = first.get("/exits")
    assert (a["connected"], b["connected"]) == (2, 1)
    assert (a["state"], b["state"]) == ("ok", "banned")
    assert 50 < b["back_in"] <= 60
    status = first.get("/status")
    assert status["workers"] == 2
    assert len(status["doors"]["local"]["listen"]) == 1
    assert [(each["session"], each["exit"]) for each in first.get("/sessions")] == [
        ("s1", "b"),
        ("s2", "a"),
    ]


def test_a_command_is_for_all_workers(crew: tuple[Desk, Desk]) -> None:
    first, second = crew
    first.post("/exits/a/drain")
    assert {desk.used() for desk in crew for _ in range(3)} == {"b"}
    home = second.used(Wish(session="far"))
    said = {"session": "far", "domain": "127.0.0.1", "ok": False}
    assert first.post("/sessions/report", said).status == 200  # known to the other one alone
    assert second.ways.roster.domains.listed(0.0)
    assert home == "b"
    assert first.post("/exits/x/drain").status == 404


def test_counts_of_different_kinds_are_added() -> None:
    one, other = Desk(direct("a")), Desk(direct("a"), direct("b"))
    snapshots = []
    for desk, outcome in ((one, "ok"), (other, "ok"), (other, "limit")):
        record = Record("local", "x")
        record.outcome, record.up = outcome, 3
        desk.tally.ended(record)
    for desk in (one, other):
        with running_door(desk.door):
            snapshots.append(desk.panel.snapshot())
    whole = merged(snapshots)
    assert whole["doors"]["local"]["outcomes"] == {"ok": 2, "limit": 1}
    assert whole["doors"]["local"]["up"] == 9
    assert [each["name"] for each in whole["exits"]] == ["a", "b"]


# --- the token --------------------------------------------------------------------------------


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.token"
    token = read_or_make_token(path)
    assert len(token) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_make_token(path) == token


@pytest.mark.parametrize(
    "content", [b"", b"short\n", b"x" * 600, b"two words of a secret", b"\xff" * 20]
)
def test_what_is_no_token_is_refused_without_repeating_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "admin.token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a token") as caught:
        read_or_make_token(path)
    assert "secret" not in str(caught.value)


def test_a_token_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "admin.token"
    read_or_make_token(path)
    os.chmod(path, 0o644)
    with caplog.at_level(logging.WARNING):
        read_or_make_token(path)
    assert "can be read by others" in caplog.text


def test_where_no_token_can_be_kept_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be kept there: No such file"):
        read_or_make_token(tmp_path / "no" / "folder")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_or_make_token(tmp_path)


def test_an_exit_that_is_dead_is_told_with_its_last_words() -> None:
    dead = f"socks5://127.0.0.1:{free_port()}"
    from gsocks.assemble import make_ways_out

    ways = make_ways_out([dead, "direct"], ["allow all"])
    tally = Tally(NullObserver())
    panel = Panel([], {"local": ways}, tally)
    with pytest.raises(Exception, match="refused"):
        ways.connect(
            Request(
                Command.CONNECT,
                Address("127.0.0.1", 9),
                wish=Wish(exit=next(iter(ways.roster)).name),
            ),
            lambda _: None,
        )
    told = panel.snapshot()["exits"][0]
    assert (told["failed"], told["state"]) == (1, "shaky")
    assert "refused" in told["last_error"].lower()
