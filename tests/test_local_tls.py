"""TLS in front of a local listener: HTTPS proxy, SOCKS in TLS, and certificates as users."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from gsocks import config
from gsocks.access.rules import Rules
from gsocks.address import UNSPECIFIED, Address
from gsocks.errors import AuthenticationFailed, ConfigError, StreamError, StreamReset
from gsocks.inbound.tls import user_of
from gsocks.local import LocalServer
from gsocks.net.tls import TlsStream
from gsocks.settings import Limits, Timeouts
from gsocks.stream import SocketStream
from tests.support.engine import (
    MakeLocal,
    Seen,
    connect,
    direct,
    echo,
    eventually,
    is_reset,
    read_to_end,
    send_reset,
    serving,
    socks_request,
)
from tests.support.newcomers import cheap
from tests.support.program import gsocks
from tests.support.proxy_tls import NAME, Files

pytestmark = pytest.mark.usefixtures("never_hangs")

#: of a request that is connected
CONNECTED = b"\x05\x00\x05\x00\x00\x01"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def said(stream: TlsStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = stream.read()
        assert part, data
        data += part
    return data


def all_of(stream: TlsStream) -> bytes:
    parts = []
    while part := stream.read():
        parts.append(part)
    return b"".join(parts)


def ask(stream: TlsStream, dest: Address, payload: bytes = b"") -> None:
    stream.write(socks_request(dest) + payload)
    assert said(stream, 12)[:6] == CONNECTED


# --- what it carries ----------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_each_direction_of_socks_in_tls_ends_by_itself(
    files: Files, make_local: MakeLocal, seen: Seen, size: int
) -> None:
    data = os.urandom(size)
    with serving(lambda sock: sock.sendall(read_to_end(sock))) as dest:
        stream = files.connect(make_local(tls=files.tls()).bound)
        ask(stream, dest, data[:1000])
        stream.write(data[1000:])
        stream.write_eof()
        assert all_of(stream) == data
        stream.close()
    record = seen.next()
    assert (record.outcome, record.up, record.down) == ("ok", size, size)


@pytest.mark.usefixtures("nothing_left")
def test_a_connection_without_the_end_of_tls_is_no_end(
    files: Files, make_local: MakeLocal, seen: Seen
) -> None:
    ends: list[bool] = []
    with serving(lambda sock: ends.append(is_reset(sock))) as dest:
        local = make_local(tls=files.tls())
        sock = connect(local.bound)
        stream = TlsStream(SocketStream(sock), files.context(), NAME)
        stream.handshake()
        ask(stream, dest, b"half of it")
        sock.shutdown(1)
        assert seen.next().outcome == "client_truncated"
        eventually(lambda: ends)
        sock.close()
    assert ends == [True]


@pytest.mark.usefixtures("nothing_left")
def test_a_reset_of_the_destination_is_one_for_the_client(
    files: Files, make_local: MakeLocal, seen: Seen
) -> None:
    with serving(send_reset) as dest:
        stream = files.connect(make_local(tls=files.tls()).bound)
        ask(stream, dest)
        with pytest.raises(StreamReset):
            all_of(stream)
        stream.abort()
    assert seen.next().outcome == "remote_reset"


def page(sock: Any) -> None:
    while head := sock.recv(65536):
        path = head.split(b" ")[1]
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path) + path)


@pytest.mark.usefixtures("nothing_left")
def test_http_goes_on_over_one_connection(files: Files, make_local: MakeLocal, seen: Seen) -> None:
    with serving(page) as web, serving(echo) as dest:
        stream = files.connect(make_local(tls=files.tls()).bound)
        for path in (b"/first", b"/second"):
            stream.write(b"GET http://%s%s HTTP/1.1\r\nHost: x\r\n\r\n" % (str(web).encode(), path))
            answer = b""
            while not answer.endswith(b"\r\n\r\n" + path):
                answer += stream.read()
        stream.write(b"CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\nbehind" % str(dest).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\nbehind"):
            answer += stream.read()
        stream.write_eof()
        assert all_of(stream) == b""
        stream.close()
        assert [seen.next().outcome for _ in range(3)] == ["ok"] * 3


@pytest.mark.usefixtures("nothing_left")
def test_an_http_client_that_has_left_is_noticed_before_the_answer(
    files: Files, make_local: MakeLocal, seen: Seen
) -> None:
    asked = gevent.event.Event()

    def silent(sock: Any) -> None:
        sock.recv(65536)
        asked.set()
        read_to_end(sock)

    with serving(silent) as web:
        timeouts = Timeouts(half_closed=0.05)
        stream = files.connect(make_local(tls=files.tls(), timeouts=timeouts).bound)
        stream.write(b"GET http://%s/ HTTP/1.1\r\nHost: x\r\n\r\n" % str(web).encode())
        asked.wait()
        stream.write_eof()
        assert seen.next().outcome == "half_closed_timeout"
        stream.abort()


def test_datagrams_would_not_be_encrypted_and_are_not_served(
    files: Files, make_local: MakeLocal, seen: Seen
) -> None:
    stream = files.connect(make_local(tls=files.tls()).bound)
    stream.write(b"\x05\x01\x00" + b"\x05\x03\x00" + UNSPECIFIED.encode())
    assert said(stream, 12)[:4] == b"\x05\x00\x05\x07"
    stream.abort()
    assert seen.next().outcome == "bad_command"


def test_alpn_is_http_1_1_and_old_versions_are_refused(
    files: Files, make_local: MakeLocal, seen: Seen
) -> None:
    at = make_local(tls=files.tls()).bound
    stream = files.connect(at)
    assert stream.alpn == "http/1.1"
    stream.abort()
    old = files.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the version that is to be refused
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(StreamError):
        files.connect(at, context=old)
    eventually(lambda: "tls_failed" in seen.outcomes)


# --- clients that don't speak it, or stop --------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("hello", "answer", "told"),
    [
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n", "HTTP"),
        (b"\x05\x01\x00", b"\x05\xff", "SOCKS5"),
        (b"\x04\x01\x00\x50\x01\x02\x03\x04\x00", b"\x00\x5b\x00\x00\x00\x00\x00\x00", "SOCKS4"),
        (b"\x00\x01", b"", "0x00"),
    ],
)
def test_a_client_without_tls_is_told_so(
    files: Files, make_local: MakeLocal, seen: Seen, hello: bytes, answer: bytes, told: str
) -> None:
    with connect(make_local(tls=files.tls()).bound) as client:
        client.sendall(hello)
        got = read_to_end(client)
    record = seen.next()
    assert got.startswith(answer)
    assert bool(got) == bool(answer)
    assert (record.outcome, told in record.detail) == ("bad_request", True)
    assert "takes TLS only" in record.detail
    if told == "HTTP":
        assert b"curl --proxy https://" in got


@pytest.mark.usefixtures("nothing_left")
def test_a_handshake_has_its_time_and_no_more(
    files: Files, make_local: MakeLocal, seen: Seen
) -> None:
    local = make_local(tls=files.tls(), timeouts=Timeouts(handshake=0.1))
    with connect(local.bound) as client:
        client.sendall(b"\x16\x03\x01\x02\x00")
        assert read_to_end(client) == b""
    assert seen.next().outcome == "handshake_timeout"
    eventually(lambda: not local.connections)


@pytest.mark.usefixtures("nothing_left")
def test_handshakes_that_stop_halfway_are_evicted_by_others(
    files: Files, make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    local = make_local(tls=files.tls(), limits=Limits(handshakes=4))
    stalled = [connect(local.bound) for _ in range(4)]
    for client in stalled:
        client.sendall(b"\x16\x03\x01\x02\x00")
    eventually(lambda: local.context.admission.handshakes == 4)
    stream = files.connect(local.bound)
    ask(stream, echo_server)
    assert "evicted" in seen.outcomes
    stream.abort()
    for client in stalled:
        client.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_connection_beyond_a_limit_costs_no_handshake(
    files: Files, make_local: MakeLocal, seen: Seen, echo_server: Address
) -> None:
    local = make_local(tls=files.tls(), limits=Limits(per_client=1))
    stream = files.connect(local.bound)
    ask(stream, echo_server)
    with connect(local.bound) as client:
        assert read_to_end(client) == b""
    assert seen.next().outcome == "limit"
    stream.abort()


# --- certificates of clients ---------------------------------------------------------------------


@pytest.fixture
def served(files: Files, make_local: MakeLocal, echo_server: Address) -> Callable[..., bytes]:
    """What a client with a certificate, or none, hears from an echo server, by HTTP."""

    def asking(client: str | None, more: bytes = b"", **options: Any) -> bytes:
        stream = files.connect(make_local(**options).bound, client)
        at = str(echo_server).encode()
        stream.write(b"CONNECT %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (at, more))
        try:
            return stream.read().partition(b"\r\n")[0]
        finally:
            stream.abort()

    return asking


def test_the_name_in_a_certificate_is_the_user(
    files: Files, seen: Seen, served: Callable[..., bytes]
) -> None:
    assert served("ali", tls=files.by_certificate()).startswith(b"HTTP/1.1 200")
    assert seen.next().user == "ali"


def test_rules_and_limits_are_about_that_user(
    files: Files,
    seen: Seen,
    served: Callable[..., bytes],
    make_local: MakeLocal,
    echo_server: Address,
) -> None:
    rules = Rules.parse(["allow all user ali"])
    for name, status in (("ali", b"200"), ("eve", b"403")):
        answer = served(name, tls=files.by_certificate(), exit_group=direct(rules))
        assert answer.startswith(b"HTTP/1.1 " + status)
    local = make_local(tls=files.by_certificate(), limits=Limits(per_user=1))
    first = files.connect(local.bound, "ali")
    ask(first, echo_server)
    second = files.connect(local.bound, "ali")
    second.write(socks_request(echo_server))
    assert said(second, 4)[3] != 0
    eventually(lambda: "limit" in seen.outcomes)
    first.abort()
    second.abort()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("client", [None, "stranger"])
def test_a_client_without_a_trusted_certificate_does_not_come_in(
    files: Files, make_local: MakeLocal, seen: Seen, client: str | None
) -> None:
    at = make_local(tls=files.by_certificate()).bound
    with pytest.raises(StreamError):  # by TLS 1.3 after its own handshake
        stream = files.connect(at, client)
        try:
            stream.write(socks_request(Address("127.0.0.1", 1)))
            said(stream, 2)
        finally:
            stream.abort()
    record = seen.next()
    assert record.outcome == "tls_failed"
    assert "certificate" in record.detail
    assert not record.is_routine


def test_where_there_are_users_it_has_to_be_one_of_them(
    files: Files, seen: Seen, served: Callable[..., bytes]
) -> None:
    users = {"ali": cheap(b"secret")}
    tls = files.by_certificate(client_cert="optional")
    login = b"Proxy-Authorization: Basic YWxpOnNlY3JldA==\r\n"
    assert b" 200 " in served("ali", tls=tls, users=users)
    assert b" 407 " in served("eve", tls=tls, users=users)
    assert b" 200 " in served("eve", login, tls=tls, users=users)
    assert b" 407 " in served(None, tls=tls, users=users)
    assert b" 200 " in served(None, login, tls=tls, users=users)
    eventually(lambda: len(seen.all) == 5)
    served_users = [each.user for each in seen.all if each.outcome != "auth_failed"]
    assert served_users == ["ali"] * 3


def test_a_user_name_beside_the_certificate_only_selects(
    files: Files, seen: Seen, served: Callable[..., bytes]
) -> None:
    login = b"Proxy-Authorization: Basic ZXZlLXNlc3Npb24tYTpub25l\r\n"  # eve-session-a
    assert b" 200 " in served("ali", login, tls=files.by_certificate())
    record = seen.next()
    assert (record.user, record.session) == ("ali", "a")


def test_certificates_make_a_listener_fit_for_other_machines(files: Files) -> None:
    LocalServer("0.0.0.0:0", tls=files.by_certificate())
    for tls in (files.tls(), files.by_certificate(client_cert="optional")):
        with pytest.raises(ConfigError, match="would be an open proxy"):
            LocalServer("0.0.0.0:0", tls=tls)


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        ({"subject": ((("commonName", "ali"),),), "subjectAltName": (("DNS", "x"),)}, "ali"),
        ({"subject": (), "subjectAltName": (("IP Address", "::1"), ("email", "a@b"))}, "a@b"),
        ({"subject": ((("organizationName", "x"),),), "subjectAltName": (("DNS", "d"),)}, "d"),
        ({"subjectAltName": (("URI", "spiffe://x/y"),)}, "spiffe://x/y"),
    ],
)
def test_a_certificate_names_its_user(certificate: dict[str, Any], name: str) -> None:
    assert user_of(certificate) == name


@pytest.mark.parametrize(
    "certificate",
    [
        {"subject": ((("organizationName", "x"),),)},
        {"subject": ((("commonName", "a"),), (("commonName", "b"),))},
        {"subject": ((("commonName", "a\nb"),),)},
        {"subject": ((("commonName", "a\0"),),)},
        {"subject": ((("commonName", ""),),)},
        {"subject": ((("commonName", "x" * 256),),)},
    ],
)
def test_a_certificate_that_names_none_or_several_is_refused(certificate: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationFailed, match="its certificate"):
        user_of(certificate)


# --- files ---------------------------------------------------------------------------------------


def serial_of(files: Files, to: Address) -> Any:
    stream = files.connect(to)
    certificate = stream.peer_certificate
    stream.abort()
    assert certificate is not None
    return certificate["serialNumber"]


def test_renewed_files_count_for_new_connections_and_broken_ones_do_not(
    tmp_path: Path, make_local: MakeLocal, echo_server: Address, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)
    local = make_local(tls=files.tls())
    before = files.connect(local.bound)
    ask(before, echo_server)
    first = serial_of(files, local.bound)
    files.renew()
    second = serial_of(files, local.bound)
    assert first != second
    with caplog.at_level(logging.WARNING):
        (tmp_path / "proxy.pem").write_text("-----BEGIN CERTIFICATE-----\nsecret words\n")
        assert [serial_of(files, local.bound) for _ in range(3)] == [second] * 3
        (tmp_path / "proxy.pem").unlink()
        assert serial_of(files, local.bound) == second
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2  # one for each change
    assert all(line.startswith("the previous TLS files stay in use: ") for line in lines)
    assert "secret words" not in caplog.text
    before.write(b"still here")
    assert said(before, 10) == b"still here"
    before.abort()


@pytest.mark.parametrize(
    ("tls", "told"),
    [
        ({"cert": "ca.pem"}, "ca.pem: not a certificate and its key in PEM"),
        ({"cert": "proxy.pem", "key": "ali.pem"}, "ali.pem: is not the key of the certificate"),
        ({"cert": "proxy.pem", "client_ca": "empty"}, "empty: has no certificates in PEM"),
        ({"cert": "none.pem"}, "none.pem: No such file"),
        ({}, "tls.cert: missing"),
        ({"cert": "proxy.pem", "client_cert": "optional"}, "client_cert: needs client_ca"),
    ],
)
def test_files_that_can_not_be_used_are_told(files: Files, tls: dict[str, str], told: str) -> None:
    (files.folder / "empty").touch()
    given = {
        key: value if key == "client_cert" else str(files.folder / value)
        for key, value in tls.items()
    }
    with pytest.raises(ConfigError, match=told):
        LocalServer("127.0.0.1:0", tls=given)


# --- in a config ---------------------------------------------------------------------------------


def parsed(files: Files, text: str) -> config.Config:
    return config.parse(f"local: {{{text}}}", files.folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listen: {address: 127.0.0.1:1, tls: true}", "local.tls: an address has tls: true"),
        ("listen: 127.0.0.1:1, tls: {key: proxy.pem}", "local.tls.cert: missing"),
        ("listen: 127.0.0.1:1, tls: {cert: proxy.pem, client_cert: optional}", "needs client_ca"),
        ("listen: 0.0.0.0:1, tls: {cert: proxy.pem}", "would be an open proxy"),
        (
            "listen: [{address: 0.0.0.0:1, tls: false}],"
            " tls: {cert: proxy.pem, client_ca: clients.pem}",
            "would be an open proxy",
        ),
    ],
)
def test_a_mistake_is_told(files: Files, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parsed(files, text)


def test_a_certificate_of_clients_is_as_good_as_users(files: Files) -> None:
    parsed(
        files,
        "listen: 0.0.0.0:1, tls: {cert: proxy.pem, client_ca: clients.pem}, limits: {per_user: 5}",
    )


def test_a_reload_takes_files_and_never_opens_a_listener(files: Files) -> None:
    guarded = "tls: {cert: proxy.pem, client_ca: clients.pem}"
    running = parsed(files, f"listen: 0.0.0.0:1, {guarded}")
    for tls in ("tls: {cert: proxy.pem}", "allow_anonymous: false"):
        found = parsed(files, f"listen: 127.0.0.1:1, {tls}")
        merged = config.reloaded(running, found)
        assert merged.local is not None
        assert running.local is not None
        assert merged.local.tls == running.local.tls
        assert all(map(merged.local.is_guarded, merged.local.listen))
        assert any(path.startswith("local.tls") for path in config.needing_restart(running, found))
    shutil.copy(files.folder / "ca.pem", files.folder / "more.pem")
    found = parsed(files, f"listen: 0.0.0.0:1, {guarded.replace('clients', 'more')}")
    assert config.reloaded(running, found) == found


def test_check_tells_of_it_and_of_files_that_are_wrong(files: Files) -> None:
    path = files.folder / "c.yaml"
    path.write_text(
        "local: {listen: [127.0.0.1:1, {address: 127.0.0.1:2, tls: false}],"
        " tls: {cert: proxy.pem, client_ca: clients.pem}}"
    )
    done = gsocks("check", "-c", path)
    assert "127.0.0.1:1 (in TLS), 127.0.0.1:2 (without TLS)" in done.stdout, done.stderr
    assert f"local: TLS, certificate {files.folder}/proxy.pem, certificates of clients by" in (
        done.stdout
    )
    path.write_text("local: {listen: 127.0.0.1:1, tls: {cert: ca.pem}}")
    done = gsocks("check", "-c", path)
    assert done.returncode == 2, done.stdout
    assert "local.tls: " in done.stderr
