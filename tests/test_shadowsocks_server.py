"""The listeners for Shadowsocks clients: whom they serve, and what a stranger sees of them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.socket import socket

from gsocks import config
from gsocks.access.rules import ALLOW_ALL, Rules
from gsocks.address import UNSPECIFIED, Address
from gsocks.config.changes import needing_restart, reloaded
from gsocks.errors import CommandNotSupported, ConfigError, ExitFailed, StreamError
from gsocks.exits import ExitDeps, make_exit
from gsocks.exits.base import Exit
from gsocks.exits.shadowsocks import ShadowsocksExit
from gsocks.exits.spec import ExitSpec
from gsocks.inbound.shadowsocks import ShadowsocksServer
from gsocks.inbound.shadowsocks_udp import ShadowsocksDatagrams
from gsocks.request import CONNECT, UDP_ASSOCIATE, Request
from gsocks.service.plan import describe, make_shadowsocks_keys
from gsocks.settings import ForwardUdpSettings, Limits, Timeouts
from gsocks.shadowsocks.accept import Guards, ServerKeys
from gsocks.shadowsocks.methods import METHODS, Method, keys_of
from gsocks.shadowsocks.packet import ClientPackets
from gsocks.shadowsocks.stream import ClientStream
from gsocks.stream import SocketStream
from tests.support.datagrams import exchange, udp_server
from tests.support.engine import Seen, connect, direct, echo, eventually, serving
from tests.support.probing import (
    SILENCE,
    Probe,
    assert_all_see_the_same,
    garbage,
    known_greetings,
    speak,
    speak_and_end,
    speak_slowly,
)
from tests.support.stream_contract import read_exactly, tcp_pair

pytestmark = pytest.mark.usefixtures("never_hangs")

AEAD = METHODS["aes-256-gcm"]
OF_2022 = METHODS["2022-blake3-aes-128-gcm"]
BOTH = [AEAD, OF_2022]
MANY = Limits(connections=10_000, per_client=10_000)


def password(method: Method, fill: int = 7) -> str:
    return base64.b64encode(bytes((fill,)) * 16).decode() if method.is_2022 else f"p{fill}"


@contextmanager
def inbound(
    method: Method, users: dict[str, str] | None = None, **options: Any
) -> Iterator[ShadowsocksServer]:
    own = None if users and not method.is_2022 else password(method)
    options.setdefault("limits", MANY)
    exits = options.pop("exits", direct())
    server = ShadowsocksServer(("127.0.0.1", 0), exits, ServerKeys(method, own, users), **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


def exit_at(server: Address, method: Method, text: str | None = None) -> Exit:
    entry = {"url": f"ss://{server}", "cipher": method.name, "password": text or password(method)}
    return make_exit(ExitSpec.parse(entry), ExitDeps(ALLOW_ALL))


def head_of(method: Method) -> bytes:
    near, far = tcp_pair()
    with near, far:
        psks = keys_of(method, password(method))
        client = ClientStream(SocketStream(near), method, psks, Address("192.0.2.1", 9))
        client.write(b"x")
        head: bytes = far.recv(65536)
        client.abort()
    return head


# --- who is served ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_client_reaches_its_destination(method: Method, nothing_left: None) -> None:
    fill = bytes((7,)) * method.key_size
    text = base64.b64encode(fill).decode() if method.is_2022 else "p7"
    seen = Seen()
    server = ShadowsocksServer(
        ("127.0.0.1", 0), direct(), ServerKeys(method, text), limits=MANY, observer=seen
    )
    server.start()
    with serving(echo) as echo_at:
        made = exit_at(server.bound, method, text).connect(Request(CONNECT, echo_at))
        data = os.urandom(100_000)
        writing = gevent.spawn(made.stream.write, data)
        assert read_exactly(made.stream, len(data)) == data
        writing.get()
        made.stream.write_eof()
        assert made.stream.read() == b""
        made.stream.close()
        record = seen.next()
    server.stop(0)
    assert (record.user, record.dest, record.outcome) == ("shadowsocks", str(echo_at), "ok")
    assert (record.up, record.down) == (len(data), len(data))


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_the_first_bytes_of_a_client_leave_with_its_request(
    method: Method, nothing_left: None
) -> None:
    with serving(echo) as echo_at, inbound(method) as server:
        request = Request(CONNECT, echo_at, payload=b"early")
        made = exit_at(server.bound, method).connect(request)
        assert server.connections == 0 or not made.stream.has_buffered  # type: ignore[attr-defined]
        made.stream.write(b"early")
        assert read_exactly(made.stream, 5) == b"early"
        made.stream.abort()


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_a_users_name_is_in_the_log_and_its_limit_counts(
    method: Method, nothing_left: None
) -> None:
    users = {"ann": password(method, 1), "bob": password(method, 2)}
    of_bob = password(method, 2)
    if method.is_2022:
        of_bob = f"{password(method)}:{of_bob}"
    seen = Seen()
    limits = Limits(per_user=1)
    with (
        serving(echo) as echo_at,
        inbound(method, users, limits=limits, observer=seen) as server,
    ):
        way = exit_at(server.bound, method, of_bob)
        first = way.connect(Request(CONNECT, echo_at)).stream
        first.write(b"x")
        assert first.read() == b"x"
        second = way.connect(Request(CONNECT, echo_at)).stream
        with pytest.raises(StreamError):
            second.read()
        record = seen.next()
        assert (record.user, record.outcome) == ("bob", "limit")
        second.abort()
        first.abort()


def test_what_the_rules_forbid_is_reset(nothing_left: None) -> None:
    seen = Seen()
    exits = direct(Rules.parse(["deny 127.0.0.0/8"]))
    with inbound(AEAD, exits=exits, observer=seen) as server:
        made = exit_at(server.bound, AEAD).connect(Request(CONNECT, Address("127.0.0.1", 9)))
        with pytest.raises(StreamError):
            made.stream.read()
        assert seen.next().outcome == "forbidden"
        made.stream.abort()


def test_keys_that_are_replaced_count_for_new_connections(nothing_left: None) -> None:
    with (
        serving(echo) as echo_at,
        inbound(OF_2022, timeouts=Timeouts(handshake=SILENCE)) as server,
    ):
        before = exit_at(server.bound, OF_2022).connect(Request(CONNECT, echo_at)).stream
        before.write(b"x")
        assert before.read() == b"x"
        server.replace_keys(ServerKeys(OF_2022, password(OF_2022, 9)))
        before.write(b"y")
        assert before.read() == b"y"
        late = exit_at(server.bound, OF_2022).connect(Request(CONNECT, echo_at)).stream
        assert late.read() == b""  # as a stranger sees it
        now = exit_at(server.bound, OF_2022, password(OF_2022, 9))
        after = now.connect(Request(CONNECT, echo_at)).stream
        after.write(b"z")
        assert after.read() == b"z"
        for stream in (before, late, after):
            stream.abort()


def test_a_server_that_is_not_there_is_the_exits_failure() -> None:
    with inbound(AEAD) as server:
        at = server.bound
    with pytest.raises(ExitFailed, match=r"ss://aes-256-gcm:\*\*\*@"):
        exit_at(at, AEAD).connect(Request(CONNECT, Address("192.0.2.1", 9)))


def test_a_chain_carries_both_streams_and_datagrams(nothing_left: None) -> None:
    with (
        serving(echo) as echo_at,
        inbound(AEAD) as near,
        inbound(OF_2022) as far,
        datagrams(AEAD) as near_udp,
        datagrams(OF_2022) as far_udp,
        udp_server() as udp_at,
    ):
        for at, method, via in ((far.bound, OF_2022, near.bound), (far_udp, OF_2022, near_udp)):
            entry = {
                "url": f"ss://{at}",
                "cipher": method.name,
                "password": password(method),
                "via": {"url": f"ss://{via}", "cipher": AEAD.name, "password": password(AEAD)},
            }
            way = make_exit(ExitSpec.parse(entry), ExitDeps(ALLOW_ALL))
            if at is far_udp:
                assert exchange(way, udp_at, b"by two servers") == b"by two servers"
                continue
            made = way.connect(Request(CONNECT, echo_at))
            made.stream.write(bytes(200_000))
            assert read_exactly(made.stream, 200_000) == bytes(200_000)
            made.stream.abort()


# --- whom it tells nothing --------------------------------------------------------------------


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_whatever_a_prober_sends_to_shadowsocks_it_sees_nothing_until_the_same_moment(
    method: Method, nothing_left: None
) -> None:
    seen = Seen()
    with inbound(method, timeouts=Timeouts(handshake=SILENCE), observer=seen) as server:
        head, spent = head_of(method), head_of(method)
        with connect(server.bound) as sock:
            sock.sendall(spent)
            eventually(lambda: seen.all)  # whose destination could not be reached

        def changed(data: bytes, at: int) -> bytes:
            return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]

        hows: tuple[Callable[[socket, bytes], None], ...] = (speak, speak_and_end, speak_slowly)
        assert_all_see_the_same(
            server,
            [
                *(Probe(f"{length} bytes", garbage(length)) for length in range(0, 221, 4)),
                *(Probe(f"cut at {at}", head[:at]) for at in range(0, len(head), 3)),
                *(Probe(f"changed at {at}", changed(head, at)) for at in range(len(head))),
                *(Probe(f"replayed {how.__name__}", spent, how) for how in hows),
                *(Probe(f"much {how.__name__}", garbage(100_000), how) for how in hows),
                Probe("replayed with more", spent + garbage(500)),
                *known_greetings(),
            ],
        )
        outcomes = {record.outcome for record in seen.all[1:]}
        assert outcomes <= {"stranger", "handshake_timeout", "truncated"}
    assert server.connections == 0


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_a_replay_that_reaches_another_worker_of_shadowsocks_is_refused(
    method: Method, nothing_left: None
) -> None:
    keys = ServerKeys(method, password(method))
    guards = Guards.of(keys)
    head = head_of(method)
    outcomes = []
    for _ in range(2):  # two workers have the same guards
        seen = Seen()
        server = ShadowsocksServer(
            ("127.0.0.1", 0),
            direct(),
            keys,
            guards,
            timeouts=Timeouts(handshake=SILENCE, connect=0.01),
            observer=seen,
        )
        server.start()
        with connect(server.bound) as sock:
            sock.sendall(head)
            outcomes.append(seen.next().outcome)
        server.stop(0)
    guards.close()
    assert outcomes[1] == "stranger"
    assert outcomes[0] != "stranger"


def test_strangers_beyond_their_number_displace_the_oldest_at_shadowsocks(
    nothing_left: None,
) -> None:
    seen = Seen()
    limits = Limits(handshakes=2)
    with inbound(AEAD, limits=limits, observer=seen) as server, ExitStack() as stack:
        strangers = []
        for _ in range(3):
            strangers.append(stack.enter_context(connect(server.bound)))
            strangers[-1].sendall(garbage(100))
            assert seen.next().outcome == "stranger"
        assert strangers[0].recv(1) == b""


# --- datagrams --------------------------------------------------------------------------------


@contextmanager
def datagrams(method: Method, **options: Any) -> Iterator[Address]:
    with listening(method, **options) as server:
        yield server.bound


@contextmanager
def listening(method: Method, **options: Any) -> Iterator[ShadowsocksDatagrams]:
    sock = socket(2, 2)
    sock.bind(("127.0.0.1", 0))
    keys = ServerKeys(method, password(method))
    server = ShadowsocksDatagrams(sock, direct(), keys, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_datagrams_reach_their_destination_and_come_back(
    method: Method, nothing_left: None
) -> None:
    seen = Seen()
    with udp_server() as echo_at, listening(method, observer=seen) as server:
        for size in (0, 1, 1400, 9000):
            payload = os.urandom(size)
            assert exchange(exit_at(server.bound, method), echo_at, payload) == payload
        assert server.connections == 4
        server.stop(0)
        record = seen.next()
    assert (record.user, record.dest, record.command) == (
        "shadowsocks",
        str(echo_at),
        "udp_associate",
    )


@pytest.mark.parametrize("method", BOTH, ids=lambda method: method.name)
def test_datagrams_of_strangers_and_replays_begin_nothing(
    method: Method, nothing_left: None
) -> None:
    with udp_server() as echo_at, listening(method) as server, socket(2, 2) as sock:
        at = (server.bound.host, server.bound.port)
        for length in range(0, 200, 7):
            sock.sendto(garbage(length), at)
        client = ClientPackets(method, keys_of(method, password(method)))
        packet = client.seal(echo_at.encode() + b"once")
        for _ in range(3):
            sock.sendto(packet, at)
        answer = client.open(sock.recv(2000))
        assert answer is not None
        assert answer.endswith(b"once")
        sock.sendto(client.seal(echo_at.encode() + b"twice"), at)
        answer = client.open(sock.recv(2000))  # nothing has come of the replays between
        assert answer is not None
        assert answer.endswith(b"twice")
        assert server.connections == 1


def test_an_association_beyond_their_number_ends_the_oldest(nothing_left: None) -> None:
    bounds = ForwardUdpSettings(associations=2)
    with udp_server() as echo_at, listening(OF_2022, udp=bounds) as server:
        for _ in range(4):
            assert exchange(exit_at(server.bound, OF_2022), echo_at, b"x") == b"x"
            assert server.connections <= 2


def test_an_exit_behind_one_without_datagrams_carries_none() -> None:
    entry = {
        "url": "ss://127.0.0.1:9",
        "cipher": AEAD.name,
        "password": "p",
        "via": "http://127.0.0.1:9",
    }
    way = make_exit(ExitSpec.parse(entry), ExitDeps(ALLOW_ALL))
    with pytest.raises(CommandNotSupported, match="carries no datagrams"):
        way.associate(Request(UDP_ASSOCIATE, UNSPECIFIED))  # type: ignore[attr-defined]


# --- the config -------------------------------------------------------------------------------


def parsed(section: dict[str, Any], **server: Any) -> config.Config:
    text = json.dumps({"server": {"shadowsocks": section, **server}})
    return config.parse(text, Path())


GOOD = {"listen": "127.0.0.1:0", "method": "aes-256-gcm", "password": "hunter2"}


def test_a_server_may_serve_shadowsocks_alone() -> None:
    settings = parsed(GOOD)
    lines = list(describe(Path("x.yaml"), settings))
    assert "server: Shadowsocks, aes-256-gcm, TCP and UDP, users shadowsocks" in lines
    assert "server: listens on 127.0.0.1:0, exits: direct" in lines
    assert "hunter2" not in repr(settings) + "".join(lines)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"method": "rc4-md5"}, "server.shadowsocks.method: 'rc4-md5' is not a method"),
        ({"method": OF_2022.name}, "server.shadowsocks: a key of 2022-blake3-aes-128-gcm has 16"),
        ({"password": ""}, "server.shadowsocks.password: not a password"),
        ({"users": {"ann": []}}, "server.shadowsocks.users.ann: not a password"),
        ({"listen": "127.0.0.1:80800"}, "server.shadowsocks.listen"),
        ({"nonsense": 1}, "server.shadowsocks.nonsense: unknown key"),
    ],
)
def test_a_mistake_in_its_section_is_named_without_a_secret(
    change: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed({**GOOD, **change})
    assert why in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_password_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from a file\n")
    file.chmod(0o600)
    section = {**GOOD, "password_file": str(file)}
    with pytest.raises(ConfigError, match="either a password or a password_file"):
        parsed(section)
    del section["password"]
    shadowsocks = parsed(section).server.shadowsocks  # type: ignore[union-attr]
    assert shadowsocks is not None
    assert make_shadowsocks_keys(shadowsocks).users == ServerKeys(AEAD, "from a file").users
    file.write_text("two\nlines\n")
    with pytest.raises(ConfigError, match="not one line of text"):
        make_shadowsocks_keys(shadowsocks)


def test_a_reload_takes_passwords_and_leaves_the_rest() -> None:
    running = parsed(GOOD)
    found = parsed({**GOOD, "password": "other", "udp": False})
    changed = reloaded(running, found)
    assert changed.server is not None
    assert changed.server.shadowsocks is not None
    assert changed.server.shadowsocks.password == "other"
    assert changed.server.shadowsocks.udp
    assert needing_restart(running, found) == ["server.shadowsocks.udp"]


def test_an_exit_of_python_takes_method_and_password() -> None:
    with pytest.raises(ConfigError):
        ShadowsocksExit(Address("h", 1), None, "rc4", "p", label="x")  # type: ignore[arg-type]
