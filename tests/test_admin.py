"""The admin API: its queries about exits, and its commands."""

from __future__ import annotations

import json
import logging
import os
import re
import socket as std_socket
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args, get_type_hints

import gevent
import msgspec
import pytest
from gevent import socket
from gevent.event import Event
from prometheus_client.parser import text_string_to_metric_families as families

from gsocks import events as happened
from gsocks.access.misspelt import ignored_names
from gsocks.address import Address
from gsocks.admin import metrics, server, shapes, snapshot
from gsocks.admin.commands import Commands
from gsocks.admin.counters import MAX_OUTCOMES, ConnectionCounters
from gsocks.admin.history import AskedHistory
from gsocks.admin.peers import Peers
from gsocks.admin.routes import MAX_BODY, Role
from gsocks.admin.server import AdminServer
from gsocks.admin.sign_in import LIFETIME, SignedIn
from gsocks.admin.snapshot import from_lines, merged, to_lines
from gsocks.admin.token import Token, Tokens, read_or_make_token
from gsocks.admin.worker_app import WorkerApp
from gsocks.admin_client import AdminClient, AdminError
from gsocks.errors import ConfigError
from gsocks.history.counters import MemoryCounters
from gsocks.loop_lag import BUCKETS, LoopLag
from gsocks.net.endpoint import UnixPath
from gsocks.net.unix import listen_at
from gsocks.observe import Details, NullObserver, Record
from gsocks.request import Command, ExitSelector, Request
from tests.support.admin_desk import TOKEN, TOKENS, VIEWER, Answer, Desk, direct, open_desk
from tests.support.engine import connect, eventually, read_to_end, running_inbound, through
from tests.support.ports import free_port
from tests.support.turns import turns_of_others

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield from open_desk()


# --- who may ask ------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", "\u00e9" * 26])
@pytest.mark.parametrize("target", ["/v1/exits", "/metrics", "/nothing", "/own/snapshot"])
def test_without_the_token_a_query_is_refused(desk: Desk, token: str, target: str) -> None:
    answer = desk.ask("GET", target, token=token)
    assert answer.status == 401
    assert answer.fields["WWW-Authenticate"] == 'Bearer realm="gsocks"'
    assert answer.fields["Content-Type"] == "application/problem+json"
    assert (answer.said["status"], answer.said["title"]) == (401, "Unauthorized")


def test_without_the_token_a_command_is_refused(desk: Desk) -> None:
    answer = desk.ask("POST", "/v1/exits/a/drain", token="x")
    assert answer.status == 401
    assert [each["state"] for each in desk.get("/v1/exits")["items"]] == ["unproven", "unproven"]


@pytest.mark.parametrize("line", [b"\x05\x01\x00 secret\r\n", b"GET / HTTP/9.9\r\n", b"%s\r\n"])
def test_what_is_no_http_is_logged_by_its_client_alone(
    desk: Desk, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), connect(desk.server.bound) as sock:
        sock.sendall(line + b"\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 400 ")
        host, port = sock.getsockname()
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"invalid HTTP request from {host}:{port}"]


_REFUSED = {
    "no version": (400, b"GET / HTTP/9.9\r\n\r\n"),
    "a length that is no number": (400, b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"),
    "a chunk that is none": (
        400,
        b"POST /v1/exits/a/ban HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    "a long first line": (414, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n"),
    "a first line that goes on": (414, b"GET /" + b"x" * 900_000),
    "many fields": (431, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"),
    "a long field": (431, b"GET / HTTP/1.1\r\na: " + b"x" * 70_000 + b"\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "sent"), _REFUSED.values(), ids=_REFUSED)
def test_what_is_no_request_is_refused_with_a_problem_that_the_client_can_read(
    desk: Desk, status: int, sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = desk.raw(sent)
    assert (answer.status, answer.fields["Connection"]) == (status, "close")
    assert answer.fields["Content-Type"] == "application/problem+json"
    assert answer.said["status"] == status
    assert answer.said["detail"]
    assert len(answer.body) == int(answer.fields["Content-Length"])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_fault_of_gsocks_is_a_problem_without_its_cause(
    desk: Desk, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    told: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *what: told.append(what[2]))
    monkeypatch.setattr(desk.server, "application", fail)
    answer = desk.ask(method, "/v1/status")
    assert (answer.status, answer.fields["Content-Type"]) == (500, "application/problem+json")
    assert b"secret" not in answer.body
    assert (answer.body == b"") is (method == "HEAD")
    assert [str(each) for each in told] == ["a secret"]


def test_a_client_that_goes_on_sending_after_a_refusal_is_disconnected(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_BYTES", 65536)
    with connect(desk.server.bound) as sock, pytest.raises(OSError, match=r"reset|pipe"):
        for _ in range(1000):
            sock.sendall(b"x" * 65536)


def test_a_client_that_keeps_a_refused_connection_is_disconnected(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.05)
    with connect(desk.server.bound) as sock:
        sock.sendall(b"GET / HTTP/9.9\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 400 ")
        eventually(lambda: not desk.server.strangers)


def test_the_paths_for_other_workers_are_not_served_at_the_admins_address(desk: Desk) -> None:
    assert desk.ask("GET", "/own/snapshot").status == 404


# --- what it tells ----------------------------------------------------------------------------


def test_the_exits_are_listed_with_their_counts(desk: Desk, echo_server: Address) -> None:
    desk.used(ExitSelector(exit="a"))
    a, b = desk.get("/v1/exits")["items"]
    assert (a["name"], a["label"], a["section"]) == ("a", "direct a", "local")
    assert (a["country"], a["tags"], a["state"]) == ("de", ["x"], "ok")
    assert (a["connected"], a["failed"], a["open"], a["back_in"]) == (1, 0, 0, 0.0)
    assert 0 < a["connect_seconds"] < 10
    assert (b["state"], b["connected"], b["connect_seconds"]) == ("unproven", 0, None)


def test_the_exits_can_be_filtered(desk: Desk) -> None:
    def names(query: str) -> list[str]:
        return [each["name"] for each in desk.get(f"/v1/exits?{query}")["items"]]

    assert names("country=de") == names("tag=x") == ["a"]
    assert names("state=unproven&section=local") == ["a", "b"]
    assert names("section=server") == []
    answer = desk.ask("GET", "/v1/exits?colour=red")
    assert (answer.status, answer.said["parameter"]) == (422, "colour")


def test_a_snapshot_may_have_the_exits_that_are_not_used_and_the_busiest_alone() -> None:
    for desk in open_desk(*(direct(f"e{number}") for number in range(100))):
        desk.post("/v1/exits/e40/ban", {"seconds": 60})
        assert desk.used(ExitSelector(exit="e70")) == "e70"
        taken = desk.commands.snapshot(most=3)
        assert [each["name"] for each in taken["exits"][:2]] == ["e40", "e70"]
        assert len(taken["exits"]) == 3
        assert taken["exit_counts"] == {"local": 100}
        assert len(desk.commands.snapshot()["exits"]) == 100


def test_the_status_counts_connections_and_how_they_ended(desk: Desk, echo_server: Address) -> None:
    with through(desk.inbound.bound, echo_server) as sock:
        inbound = desk.get("/v1/status")["inbounds"]["local"]
        assert inbound["connections"] == 1
        assert inbound["listen"] == [str(desk.inbound.bound)]
        sock.sendall(b"hello")
        sock.shutdown(std_socket.SHUT_WR)
        assert read_to_end(sock) == b"hello"
    desk.counters._then.next()  # type: ignore[attr-defined]
    inbound = desk.get("/v1/status")["inbounds"]["local"]
    assert (inbound["outcomes"], inbound["up"], inbound["down"]) == ({"ok": 1}, 5, 5)


def test_the_sessions_are_listed_with_their_exits(desk: Desk) -> None:
    for session in ("one", "two"):
        desk.used(ExitSelector(session=session))
    sessions = desk.get("/v1/sessions")["items"]
    assert [each["session"] for each in sessions] == ["two", "one"]
    assert {each["exit"] for each in sessions} <= {"a", "b"}
    assert sessions[0]["user"] is None
    assert len(desk.get("/v1/sessions?limit=1")["items"]) == 1
    assert desk.ask("GET", "/v1/sessions?limit=many").status == 422
    assert desk.get("/v1/status")["sessions"] == {"local": 2}


def test_metrics_are_what_prometheus_reads(desk: Desk) -> None:
    desk.used(ExitSelector(exit="a", session="s"))
    desk.counters.ended(Record("local", "127.0.0.1:1"))
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
    assert told["gsocks_requests_total", (("inbound", "local"), ("outcome", ""))] == 1
    assert told["gsocks_sessions", (("section", "local"),)] == 1
    assert told["gsocks_workers", ()] == 1
    assert told["gsocks_user_names_ignored_total", ()] == ignored_names.count


def test_metrics_of_many_exits_are_written_in_turns(desk: Desk) -> None:
    snapshot = desk.commands.snapshot()
    some = {**snapshot["exits"][0], "state": "ok", "connect_seconds": 0.1}
    snapshot["exits"] = [{**some, "name": f"exit-{number}"} for number in range(1000)]
    with turns_of_others() as turns:
        text = metrics.exposition(snapshot)
    # one between each two exits as they are counted, and between each two lines
    assert turns.count > 1000 + text.count(b"exit-")


def test_the_turns_of_the_loops_are_shown(peers: tuple[Desk, Desk]) -> None:
    desk, other = peers
    for each in peers:
        each.lag.start()
    for _ in range(3):
        gevent.sleep(1e-6)
    for each in peers:
        each.lag.stop()
    turns = desk.lag.counts()[-1] + other.lag.counts()[-1]
    assert turns > 0
    loop = desk.get("/v1/status")["loop"]
    assert loop["turns"] == turns
    assert loop["p50"] <= loop["p99"] <= loop["p99.9"]
    family = next(
        each
        for each in families(desk.ask("GET", "/metrics").body.decode())
        if each.name == "gsocks_loop_lag_seconds"
    )
    assert family.type == "histogram"
    buckets = [each for each in family.samples if each.name.endswith("_bucket")]
    assert [float(each.labels["le"]) for each in buckets] == [*BUCKETS, float("inf")]
    assert buckets[-1].value == turns
    (total,) = (each.value for each in family.samples if each.name.endswith("_sum"))
    assert total == pytest.approx(desk.lag.seconds + other.lag.seconds)


def test_thousands_of_exits_don_t_make_thousands_of_series() -> None:
    for desk in open_desk(*(direct(f"e{number}") for number in range(2000))):
        desk.used(ExitSelector(exit="e1999"))
        text = desk.ask("GET", "/metrics").body.decode()
    assert text.count("gsocks_exit_usable{") == metrics.MAX_EXITS
    assert 'gsocks_exit_connects_total{exit="other",section="local"} 1.0' in text


def test_outcomes_that_never_end_are_counted_together() -> None:
    counters = ConnectionCounters(NullObserver())
    for number in range(2 * MAX_OUTCOMES):
        record = Record("local", "x")
        record.outcome = f"word{number}"
        counters.ended(record)
    outcomes = counters.inbounds["local"].outcomes
    assert len(outcomes) == MAX_OUTCOMES + 1
    assert outcomes["other"] == MAX_OUTCOMES


# --- what it does -----------------------------------------------------------------------------


def test_a_banned_exit_gets_no_request_until_it_is_unbanned(desk: Desk) -> None:
    assert desk.post("/v1/exits/a/ban", {"seconds": 600}).said == {"done": True}
    a = desk.get("/v1/exits/a")
    assert a["state"] == "banned"
    assert 590 < a["back_in"] <= 600
    assert {desk.used() for _ in range(4)} == {"b"}
    desk.post("/v1/exits/a/unban")
    assert {desk.used() for _ in range(4)} == {"a", "b"}


def test_an_exit_banned_for_a_domain_serves_the_others(desk: Desk) -> None:
    here = "127.0.0.1"
    desk.post("/v1/exits/a/ban", {"seconds": 600, "domain": here})
    assert {desk.used() for _ in range(4)} == {"b"}
    a = desk.get("/v1/exits/a")
    assert a["state"] == "unproven"
    (pair,) = a["domains"]
    assert (pair["domain"], pair["state"]) == (here, "banned")
    desk.post("/v1/exits/a/unban", {"domain": here})
    assert desk.get("/v1/exits/a")["domains"] == []


def test_a_draining_exit_gets_no_request_until_it_is_undrained(desk: Desk) -> None:
    desk.post("/v1/exits/a/drain")
    assert desk.get("/v1/exits/a")["state"] == "draining"
    assert {desk.used() for _ in range(4)} == {"b"}
    desk.post("/v1/exits/a/undrain")
    assert {desk.used() for _ in range(4)} == {"a", "b"}


def test_three_bad_reports_eject_an_exit_for_a_domain(desk: Desk) -> None:
    for _ in range(3):
        said = {"domain": "127.0.0.1", "ok": False, "reason": "captcha"}
        assert desk.post("/v1/exits/a/report", said).status == 200
    assert {desk.used() for _ in range(4)} == {"b"}
    desk.post("/v1/exits/a/report", {"domain": "127.0.0.1", "ok": True})
    assert {desk.used() for _ in range(4)} == {"a", "b"}


def test_a_session_is_rotated_now(desk: Desk) -> None:
    selector = ExitSelector(session="cart")
    home = desk.used(selector)
    answer = desk.post("/v1/sessions/rotate", {"session": "cart"})
    assert (answer.status, answer.said) == (200, {"done": True, "known": True})
    assert desk.used(selector) != home


def test_a_session_that_does_not_exist_is_not_rotated(desk: Desk) -> None:
    desk.used(ExitSelector(session="cart"))
    for body, said in (
        ({"session": "card"}, "there is no session 'card' without a user"),
        ({"session": "cart", "user": "eve"}, "there is no session 'cart' of the user 'eve'"),
    ):
        for _ in range(2):
            answer = desk.post("/v1/sessions/rotate", body)
            assert (answer.status, answer.said["detail"]) == (404, said)


def test_a_report_may_name_a_session_instead_of_its_exit(desk: Desk) -> None:
    selector = ExitSelector(session="cart")
    home = desk.used(selector)
    said = {"session": "cart", "domain": "127.0.0.1", "ok": False}
    for _ in range(3):
        desk.post("/v1/sessions/report", said)
    assert desk.get(f"/v1/exits/{home}")["domains"][0]["state"] == "ejected"
    answer = desk.post("/v1/sessions/report", {**said, "session": "unused"})
    assert (answer.status, answer.said["detail"]) == (404, "session 'unused' has no exit")


@pytest.mark.parametrize(
    ("target", "body", "status", "error"),
    [
        ("/v1/exits/x/drain", None, 404, "no exit is called 'x'"),
        ("/v1/exits/a/paint", None, 404, "no such path"),
        ("/v1/exits/a/drain?section=server", None, 404, "no section 'server' runs here"),
        ("/v1/exits/a/ban", None, 422, "missing required field `seconds`"),
        ("/v1/exits/a/ban", {"seconds": 0}, 422, "> 0"),
        ("/v1/exits/a/ban", {"seconds": 1e12}, 422, "<= "),
        ("/v1/exits/a/ban", {"seconds": 1, "colour": "red"}, 422, "colour"),
        ("/v1/exits/a/ban", {"seconds": 1, "domain": "a b"}, 422, "'a b'"),
        ("/v1/exits/a/ban", b"{", 400, "truncated"),
        ("/v1/exits/a/ban", b"\xff", 400, "malformed"),
        ("/v1/exits/a/report", {"domain": "a.example"}, 422, "`ok`"),
        ("/v1/sessions/rotate", {"session": ""}, 422, "length >= 1"),
    ],
)
def test_a_bad_command_is_answered_with_its_error(
    desk: Desk, target: str, body: object, status: int, error: str
) -> None:
    answer = desk.post(target, body)
    assert answer.status == status
    assert error in answer.said["detail"]


def test_a_body_without_end_is_not_read(desk: Desk) -> None:
    assert desk.post("/v1/exits/a/ban", b" " * (MAX_BODY + 1)).status == 413
    head = b"POST /v1/exits/a/ban HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
    chunked = b"\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    assert desk.raw(head + TOKEN.encode() + chunked).status == 422


def test_a_body_in_chunks_is_read_like_any_other(desk: Desk) -> None:
    head = "POST /v1/exits/a/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"

    def told(command: str, body: bytes) -> int:
        return desk.raw(
            head.format(command).encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        ).status

    desk.post("/v1/exits/a/ban", {"seconds": 60})
    assert told("unban", b'{"domain": "shop.example"}') == 200
    assert desk.get("/v1/exits/a")["state"] == "banned"  # for the domain alone it was lifted
    assert told("unban", b" " * (MAX_BODY + 1)) == 413
    assert desk.get("/v1/exits/a")["state"] == "banned"


@pytest.mark.parametrize("most", ["%C2%B2", "-1", "9" * 5000, ""])
def test_a_limit_that_is_no_number_is_refused(desk: Desk, most: str) -> None:
    answer = desk.ask("GET", f"/v1/sessions?limit={most}")
    assert answer.status == 422


# --- clients without the token ----------------------------------------------------------------


@pytest.fixture
def few_strangers(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(server, "MAX_STRANGERS", 3)
    return 3


def test_clients_that_do_not_show_the_token_can_t_occupy_the_admin(
    few_strangers: int, desk: Desk
) -> None:
    with ExitStack() as closing:
        silent = [
            closing.enter_context(connect(desk.server.bound))
            for _ in range(server.MAX_CONNECTIONS + 10 * few_strangers)
        ]
        assert desk.get("/v1/status")["workers"] == 1
        assert silent[0].recv(1) == b""  # the oldest had to go
        assert len(desk.server.strangers) == few_strangers - 1  # and one for the request
    eventually(lambda: not desk.server.strangers)


def test_a_client_with_the_token_keeps_its_connection_while_others_come(
    few_strangers: int, desk: Desk
) -> None:
    request = f"GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with connect(desk.server.bound) as sock, ExitStack() as closing:
        sock.sendall(f"{request}\r\n".encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        for _ in range(10 * few_strangers):
            closing.enter_context(connect(desk.server.bound))
        sock.sendall(f"{request}Connection: close\r\n\r\n".encode())
        assert b"HTTP/1.1 200 " in read_to_end(sock)


def test_a_client_without_the_token_has_one_request(desk: Desk) -> None:
    answer = desk.raw(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 2)  # until the end
    assert answer.status == 401
    assert answer.fields["Connection"] == "close"
    assert answer.body.count(b"HTTP/1.1") == 0


def test_a_client_without_the_token_has_so_much_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STRANGER_SECONDS", 0.05)
    with connect(desk.server.bound) as sock:
        sock.sendall(b"GET /sta")
        assert read_to_end(sock) == b""


_SLOW = {
    "says nothing": b"",
    "stops in its first line": b"GET /sta",
    "stops in its head": b"GET /v1/status HTTP/1.1\r\nHost: x\r\nAuthor",
    "stops in its body": b"POST /v1/exits/a/ban HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n{",
    "stops in an unwanted body": b"POST /x HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: 999999999999\r\n\r\n{",
}


@pytest.mark.parametrize("patience", ["IO_TIMEOUT", "MAX_REQUEST_SECONDS"])
@pytest.mark.parametrize("said", _SLOW.values(), ids=_SLOW)
def test_a_slow_client_is_disconnected_without_a_line_in_the_log(
    desk: Desk,
    said: bytes,
    patience: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(server, patience, 0.05)
    with connect(desk.server.bound) as sock:
        sock.sendall(said)
        read_to_end(sock)
    assert desk.get("/v1/status")["workers"] == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", ["ends", "resets"])
@pytest.mark.parametrize("said", _SLOW.values(), ids=_SLOW)
def test_a_client_that_disconnects_early_leaves_no_line_in_the_log(
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
    assert desk.get("/v1/exits/a")["state"] == "unproven"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("end", [b"", b"x", b"Host: x", b"Host: x\r\n"])
def test_a_request_whose_head_has_no_end_is_none(desk: Desk, end: bytes) -> None:
    with connect(desk.server.bound) as sock:
        token = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
        sock.sendall(b"POST /v1/exits/a/drain HTTP/1.1\r\n" + token + end)
        sock.shutdown(std_socket.SHUT_WR)
        assert read_to_end(sock) == b""
    assert desk.get("/v1/exits/a")["state"] == "unproven"


@pytest.mark.parametrize("end", [b"", b"Content-Length: 99999\r\n\r\n"])
@pytest.mark.parametrize("token", [b"", b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"])
def test_a_client_that_sends_byte_by_byte_is_disconnected_too(
    desk: Desk, token: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_REQUEST_SECONDS", 0.1)
    with connect(desk.server.bound) as sock, pytest.raises(OSError, match=r"reset|pipe"):
        sock.sendall(b"POST /v1/exits/a/drain HTTP/1.1\r\n" + token + end)
        for _ in range(500):
            sock.sendall(b"x")
            gevent.sleep(0.01)  # as a slow client does
    assert desk.get("/v1/exits/a")["state"] == "unproven"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(desk: Desk, method: str) -> None:
    assert desk.ask(method, "/v1/exits").status == 405


def test_head_has_the_fields_of_get_and_no_body(desk: Desk) -> None:
    answer = desk.ask("HEAD", "/v1/status")
    assert (answer.status, answer.body) == (200, b"")


def test_a_name_may_need_escaping() -> None:
    for desk in open_desk(direct("a b"), direct("b")):
        assert desk.get("/v1/exits/a%20b")["name"] == "a b"
        assert desk.post("/v1/exits/a%20b/drain").status == 200


# --- many workers -----------------------------------------------------------------------------


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[tuple[Desk, Desk]]:
    """Two workers; the admin speaks to the first one, which knows where the second one is."""
    meeting = tmp_path / "1.sock"
    for second in open_desk(direct("a"), direct("b")):
        own = AdminServer(listen_at(UnixPath(str(meeting))), WorkerApp(second.commands))
        own.start()
        for first in open_desk(direct("a"), direct("b"), others=(meeting, tmp_path / "gone")):
            yield first, second
        own.stop(0)


def test_the_state_of_several_workers_is_merged(peers: tuple[Desk, Desk]) -> None:
    first, second = peers
    first.used(ExitSelector(exit="a", session="s1"))
    first.ways.sessions._sessions["", "s1"].last -= 5.0
    second.used(ExitSelector(exit="a", session="s2"))
    second.used(ExitSelector(exit="b", session="s1"))
    second.ways.ban("b", 60.0)
    a, b = first.get("/v1/exits")["items"]
    assert (a["connected"], b["connected"]) == (2, 1)
    assert (a["state"], b["state"]) == ("ok", "banned")
    assert 50 < b["back_in"] <= 60
    assert first.get("/v1/exits/b")["connected"] == 1
    status = first.get("/v1/status")
    assert status["workers"] == 2
    assert len(status["inbounds"]["local"]["listen"]) == 1
    assert [(each["session"], each["exit"]) for each in first.get("/v1/sessions")["items"]] == [
        ("s1", "b"),
        ("s2", "a"),
    ]


def test_an_exit_that_one_worker_has_not_used_yet_is_what_the_others_know(
    peers: tuple[Desk, Desk],
) -> None:
    first, second = peers
    second.used(ExitSelector(exit="a"))
    for desk in (first, second):
        a, b = desk.get("/v1/exits")["items"]
        assert (a["state"], b["state"]) == ("ok", "unproven")
        assert a["connect_seconds"] > 0
        assert b["connect_seconds"] is None


def test_a_command_is_for_all_workers(peers: tuple[Desk, Desk]) -> None:
    first, second = peers
    first.post("/v1/exits/a/drain")
    assert {desk.used() for desk in peers for _ in range(3)} == {"b"}
    home = second.used(ExitSelector(session="far"))
    said = {"session": "far", "domain": "127.0.0.1", "ok": False}
    assert first.post("/v1/sessions/report", said).status == 200  # known to the other one alone
    assert second.ways.roster.domains.listed(0.0)
    assert home == "b"
    assert first.post("/v1/exits/x/drain").status == 404


def test_a_snapshot_is_the_same_for_another_worker(desk: Desk) -> None:
    desk.ways.ban("a", 60.0, "shop.example")
    taken = desk.commands.snapshot()
    assert [each["domain"] for each in taken["domains"]] == ["shop.example"]
    assert from_lines(to_lines(taken)) == taken
    with pytest.raises(ValueError, match="Expecting"):
        from_lines(b"<html>")


def test_the_state_of_many_exits_is_taken_while_others_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.turns.LONGEST_TURN", 0.0)
    turns, over = [0], Event()

    def count() -> None:
        while not over.is_set():
            turns[0] += 1
            gevent.sleep(1e-6)

    counting = gevent.spawn(count)
    desk.ways.update([direct(f"e{number}") for number in range(200)])
    for target, body in (("/v1/exits", 2000), ("/metrics", 2000)):
        turns[0] = 0
        assert len(desk.ask("GET", target).body) > body
        assert turns[0] > 100, target
    over.set()
    counting.join()


def test_counts_of_different_kinds_are_added() -> None:
    one, other = Desk(direct("a")), Desk(direct("a"), direct("b"))
    snapshots = []
    for desk, outcome in ((one, "ok"), (other, "ok"), (other, "limit")):
        record = Record("local", "x")
        record.outcome, record.up = outcome, 3
        desk.counters.ended(record)
    for desk in (one, other):
        with running_inbound(desk.inbound):
            snapshots.append(desk.commands.snapshot())
    whole = merged(snapshots)
    assert whole["inbounds"]["local"]["outcomes"] == {"ok": 2, "limit": 1}
    assert whole["inbounds"]["local"]["up"] == 9
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


def test_a_token_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written there: No such file"):
        read_or_make_token(tmp_path / "no" / "folder")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_or_make_token(tmp_path)


def test_a_dead_exit_is_listed_with_its_last_error() -> None:
    dead = f"socks5://127.0.0.1:{free_port()}"
    from gsocks.rotation.build import make_exit_group

    ways = make_exit_group([dead, "direct"], ["allow all"])
    counters = ConnectionCounters(NullObserver())
    commands = Commands([], {"local": ways}, counters, LoopLag(lambda _: None))
    with pytest.raises(Exception, match="refused"):
        ways.connect(
            Request(
                Command.CONNECT,
                Address("127.0.0.1", 9),
                selector=ExitSelector(exit=next(iter(ways.roster)).name),
            ),
            lambda _: None,
        )
    told = commands.snapshot()["exits"][0]
    assert (told["failed"], told["state"]) == (1, "degraded")
    assert "refused" in told["last_error"].lower()


# --- tokens, browsers, the document -----------------------------------------------------------


def browser(desk: Desk, method: str, target: str, body: str = "", **fields: str) -> Answer:
    """What a page of the dashboard sends."""
    host = f"127.0.0.1:{desk.server.bound.port}"
    sent = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    sent |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
    return desk.raw(
        f"{method} {target} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}".encode()
    )


def signed_in(desk: Desk, token: str = TOKEN) -> str:
    answer = browser(desk, "POST", "/sign-in", json.dumps({"token": token}))
    assert answer.status == 200, answer
    cookie = answer.fields["Set-Cookie"]
    assert "; HttpOnly; SameSite=Strict" in cookie
    return cookie.partition(";")[0]


def test_a_viewer_sees_and_does_not_act(desk: Desk) -> None:
    assert desk.ask("GET", "/v1/exits", token=VIEWER).status == 200
    assert desk.ask("GET", "/v1/me", token=VIEWER).said == {"name": "eve", "role": "viewer"}
    for route in desk.api.routes:
        if route.method != "GET":
            target = route.path.replace("{name}", "a").replace("{section}", "local")
            assert desk.ask(route.method, target, {}, token=VIEWER).status == 403, target
    assert desk.get("/v1/exits/a")["state"] == "unproven"


def test_a_wrong_token_is_answered_later_each_time_and_the_right_one_at_once(desk: Desk) -> None:
    slept: list[float] = []
    desk.app._sleep = slept.append
    statuses = [desk.ask("GET", "/v1/status", token="x" * 20).status for _ in range(10)]
    assert statuses == [401] * 9 + [429]
    assert slept[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert desk.get("/v1/status")["workers"] == 1
    assert len(slept) == 10


def test_a_browser_signs_in_and_out(desk: Desk) -> None:
    assert browser(desk, "POST", "/sign-in", '{"token": "no"}').status == 401
    cookie = signed_in(desk)
    assert browser(desk, "GET", "/v1/me", Cookie=cookie).said["role"] == "operator"
    assert browser(desk, "POST", "/v1/exits/a/drain", Cookie=cookie).status == 200
    assert desk.get("/v1/exits/a")["state"] == "draining"
    assert browser(desk, "POST", "/sign-out", Cookie=cookie).status == 200
    assert browser(desk, "GET", "/v1/me", Cookie=cookie).status == 401


def test_another_sites_page_changes_nothing(desk: Desk) -> None:
    cookie = signed_in(desk)
    for foreign in (
        {"Origin": "http://evil.example"},
        {"Origin": ""},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": "http://127.0.0.1:1"},
    ):
        answer = browser(desk, "POST", "/v1/exits/a/drain", Cookie=cookie, **foreign)
        assert answer.status == 403, foreign
        assert browser(desk, "POST", "/sign-in", f'{{"token": "{TOKEN}"}}', **foreign).status == 403
    assert browser(desk, "GET", "/v1/exits", Cookie=cookie, Sec_Fetch_Site="cross-site").status
    assert desk.get("/v1/exits/a")["state"] == "unproven"


def test_a_name_that_points_here_is_refused(desk: Desk) -> None:
    cookie = signed_in(desk)
    port = desk.server.bound.port
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", ""):
        for method, target in (("GET", "/"), ("GET", "/v1/exits"), ("POST", "/sign-in")):
            answer = browser(
                desk, method, target, Host=host or "x", Cookie=cookie, Origin=f"http://{host}"
            )
            assert answer.status in (401, 421), (host, target)
    assert browser(desk, "GET", "/", Host=f"[::1]:{port}").status == 200
    assert browser(desk, "GET", "/", Host=f"localhost:{port}").status == 200


def test_a_session_that_is_not_ours_or_has_ended_is_none(desk: Desk) -> None:
    now = [1e9]
    sessions = SignedIn(TOKENS, b"k" * 32, lambda: now[0])
    token = TOKENS.named("eve")
    assert token is not None
    value = sessions.begin(token)
    assert sessions.check(value) == token
    assert SignedIn(TOKENS, b"k" * 32, lambda: now[0]).check(value) == token  # another worker
    assert SignedIn(TOKENS, b"l" * 32, lambda: now[0]).check(value) is None
    assert SignedIn(Tokens([]), b"k" * 32, lambda: now[0]).check(value) is None
    other = Tokens([Token.of("eve", Role.VIEWER, "another token of eve")])
    assert SignedIn(other, b"k" * 32, lambda: now[0]).check(value) is None
    for wrong in ("", "...", value[:-1], "\u00e9", value.replace(".", "!", 1), "a" * 5000):
        assert sessions.check(wrong) is None
    now[0] += LIFETIME
    assert sessions.check(value) is None


def test_a_browser_asks_who_has_signed_in_while_it_loads_the_script(desk: Desk) -> None:
    cookie = signed_in(desk)
    link = browser(desk, "GET", "/", Cookie=cookie).fields["Link"]
    assert re.findall("<(.*?)>; rel=preload; as=fetch; crossorigin", link) == [
        "/v1/me",
        "/v1/status",
    ]
    assert "Link" not in browser(desk, "GET", "/web/app.js", Cookie=cookie).fields
    assert "Link" not in browser(desk, "GET", "/").fields  # each would be refused
    assert "Link" not in browser(desk, "GET", "/", Cookie=f"{cookie}x").fields


def test_pages_may_load_nothing_from_elsewhere(desk: Desk) -> None:
    answer = browser(desk, "GET", "/")
    policy = answer.fields["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert browser(desk, "GET", "/", If_None_Match=answer.fields["ETag"]).status == 304
    folder = Path(server.__file__).parent / "web"
    size = 0
    for path in folder.iterdir():
        text = path.read_text()
        size += len(text.encode())
        assert "innerHTML" not in text
        assert "style=" not in text
        assert not re.search(r"https?://(?!www\.w3\.org)", text), path
        assert path.name == "index.html" or browser(desk, "GET", f"/web/{path.name}").status == 200
    assert size < 150 * 1024
    assert browser(desk, "GET", "/web/../app.py").status == 401


def test_the_document_describes_each_route(desk: Desk) -> None:
    told = desk.get("/openapi.json")
    assert told["openapi"] == "3.1.0"
    for route in desk.api.routes:
        operation = told["paths"][route.path][route.method.lower()]
        names = [each["name"] for each in operation["parameters"]]
        assert names == [*route.names, *route.query.__struct_fields__]


def test_answers_are_what_the_document_says(desk: Desk) -> None:
    desk.used(ExitSelector(session="s", exit="a"))
    for route in desk.api.routes:
        if route.method == "GET" and route.kind == "application/json":
            answer = desk.ask("GET", route.path.replace("{name}", "a"))
            if answer.status == 200:
                msgspec.convert(answer.said, route.answer)
            else:
                assert answer.status in (404, 501), route.path


def test_pages_of_exits_miss_none_whatever_changes(desk: Desk) -> None:
    desk.ways.update([direct(f"e{number:03}") for number in range(25)])
    for sort in ("name", "failed", "country", "connect_seconds", "success"):
        for order in ("asc", "desc"):
            seen: list[str] = []
            cursor = ""
            while cursor is not None:
                target = f"/v1/exits?limit=10&sort={sort}&order={order}&cursor={cursor}"
                page = desk.get(target)
                seen += [each["name"] for each in page["items"]]
                cursor = page["next"]
            assert len(seen) == len(set(seen)) == 25
            assert page["total"] == 25
    for wrong in ("x", "WzFd", "eA"):
        answer = desk.ask("GET", f"/v1/exits?cursor={wrong}")
        assert (answer.status, answer.said["parameter"]) == (422, "cursor")


def test_a_page_of_many_exits_describes_in_full_those_alone_that_it_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described: list[str] = []

    def seen(member: Any, now: float) -> Any:
        described.append(member.name)
        return exit_(member, now)

    exit_ = snapshot.exit_
    monkeypatch.setattr(snapshot, "exit_", seen)
    for desk in open_desk(*(direct(f"e{number:03}") for number in range(300))):
        for sort in get_args(get_type_hints(shapes.ExitQuery)["sort"]):
            described.clear()
            page = desk.get(f"/v1/exits?limit=7&sort={sort}&order=desc")
            assert described == [each["name"] for each in page["items"]]
            assert (len(described), page["total"]) == (7, 300)
            assert page["items"][0]["source"] == "config"


def test_a_page_is_sorted_by_what_all_workers_know(peers: tuple[Desk, Desk]) -> None:
    first, second = peers
    for desk, name in ((first, "a"), (second, "a"), (second, "b"), (second, "b"), (second, "b")):
        desk.used(ExitSelector(exit=name))
    for sort in ("connected", "success", "traffic", "connect_seconds", "state", "name"):
        items = first.get(f"/v1/exits?sort={sort}&order=desc")["items"]
        assert {each["name"]: each["connected"] for each in items} == {"a": 2, "b": 3}
        assert sort != "connected" or [each["name"] for each in items] == ["b", "a"]


def test_the_exits_of_a_long_page_are_asked_of_other_workers_in_parts(tmp_path: Path) -> None:
    meeting, names = tmp_path / "1.sock", [f"{number:03}{'ü' * 100}" for number in range(40)]
    for second in open_desk(*(direct(name) for name in names)):
        own = AdminServer(listen_at(UnixPath(str(meeting))), WorkerApp(second.commands))
        own.start()
        for first in open_desk(*(direct(name) for name in names), others=(meeting,)):
            for name in names:
                second.used(ExitSelector(exit=name))
            items = first.get("/v1/exits")["items"]
            assert [(each["name"], each["connected"]) for each in items] == [
                (name, 1) for name in names
            ]
        own.stop(0)


def test_what_is_counted_of_an_exit_is_called_tries_and_of_others_requests() -> None:
    counters = MemoryCounters(time.time)
    record = Record("local", "127.0.0.1:1")
    record.user, record.outcome = "bob", "ok"
    record.details = Details()
    record.details.exit = "a"
    counters.count("local", record, 1.0)
    counters.fold()
    for desk in open_desk(history=AskedHistory(counters, Peers())):
        for kind, name, said, other in (
            ("exit", "local/a", "tries", "requests"),
            ("user", "bob", "requests", "tries"),
            ("outcome", "ok", "requests", "tries"),
        ):
            for sort in ("requests", "tries"):
                (item,) = desk.get(f"/v1/top?kind={kind}&sort={sort}")["items"]
                assert (item["name"], item[said], other in item) == (name, 1, False)
                assert msgspec.convert(item, shapes.TopItem)
            series = desk.get(f"/v1/series?kind={kind}&name={name}&step=60")
            assert (sum(series[said]), other in series) == (1, False)
            assert msgspec.convert(series, shapes.Series)


def test_pages_of_changes_miss_none_even_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        happened.Event(number, 1e9 + number // 4, "banned", f"e{number % 2}", "", f"no. {number}")
        for number in range(1, 30)
    ]
    monkeypatch.setattr(happened.EVENTS, "_ring", deque(events))
    history = AskedHistory(MemoryCounters(time.time), Peers())
    for desk in open_desk(history=history):
        found: list[Any] = []
        cursor = ""
        while cursor is not None:
            page = desk.get(f"/v1/changes?limit=3&exit=e1&cursor={cursor}")
            assert len(page["items"]) <= 3
            found += page["items"]
            cursor = page["next"]
        assert sorted(each["text"] for each in found) == sorted(
            each.text for each in events if each.exit == "e1"
        )
        times = [each["time"] for each in found]
        assert times == sorted(times, reverse=True)
        for wrong in ("x", "WzFd"):
            answer = desk.ask("GET", f"/v1/changes?cursor={wrong}")
            assert (answer.status, answer.said["parameter"]) == (422, "cursor")


def test_several_exits_are_banned_at_once(desk: Desk) -> None:
    said = {"names": ["a", "gone"], "action": "ban", "seconds": 60}
    assert desk.post("/v1/exits/actions", said).said == {"done": True, "unknown": ["gone"]}
    assert desk.get("/v1/exits/a")["state"] == "banned"


def test_events_are_told_and_a_client_that_leaves_is_forgotten(desk: Desk) -> None:
    with connect(desk.server.bound) as sock:
        sock.sendall(
            f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        read = b""
        while b"event: status" not in read:
            read += sock.recv(65536)
        assert b"text/event-stream" in read
        assert len(desk.api._streams._streams) == 1
    desk.api.close()
    eventually(lambda: not desk.api._streams._streams)


def test_a_client_that_reads_no_events_is_disconnected_and_holds_up_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "STREAM_TIMEOUT", 0.5)
    monkeypatch.setattr("gsocks.admin.event_stream.INTERVAL", 0.01)
    streams = desk.api._streams
    taken = streams._status
    # so much that a second one fits into no buffer
    monkeypatch.setattr(streams, "_status", lambda: {**taken(), "filler": "x" * 300_000})
    with socket.socket() as slow, AdminClient(f"http://{desk.server.bound}", TOKEN) as admin:
        slow.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", desk.server.bound.port))
        slow.sendall(
            f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        eventually(lambda: len(streams._streams) == 1)
        events = admin.events(topics="status")
        while len(streams._streams) < 2 or streams.number < 5:
            kind, _ = next(events)
            assert kind == "status"
            assert desk.get("/v1/me")["name"] == "admin"
        eventually(lambda: len(streams._streams) == 1 or next(events) is None)
        assert next(events)[0] == "status"
        # it was not told what it had missed: nothing of it was kept
        assert len(read_to_end(slow)) < 1_000_000
        events.close()
    desk.api.close()
    eventually(lambda: not streams._streams)
    assert capfd.readouterr().err == ""


def test_no_more_clients_follow_the_events_than_may(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsocks.admin.event_stream.MAX_STREAMS", 0)
    answer = desk.ask("GET", "/v1/events")
    assert (answer.status, answer.fields["Retry-After"]) == (503, "10")


def test_the_client_does_what_the_api_offers(desk: Desk) -> None:
    with AdminClient(f"http://{desk.server.bound}", TOKEN) as admin:
        assert [each["name"] for each in admin.exits(tag="x")] == ["a"]
        admin.ban("a", 60)
        assert admin.exit("a")["state"] == "banned"
        admin.unban("a")
        admin.drain("b")
        assert [each["name"] for each in admin.exits(state="draining")] == ["b"]
        admin.undrain("b")
        desk.used(ExitSelector(session="s"))
        assert [each["session"] for each in admin.sessions()] == ["s"]
        admin.rotate("s")
        with pytest.raises(AdminError, match="no exit is called 'x'") as caught:
            admin.ban("x", 60)
        assert caught.value.status == 404
        kind, told = next(admin.events())
        assert (kind, told["workers"]) == ("status", 1)
    desk.api.close()
    with pytest.raises(AdminError, match="expected http"):
        AdminClient("ftp://x", TOKEN).status()
    assert TOKEN not in repr(AdminClient("unix:/x", TOKEN))
