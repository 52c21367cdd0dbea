"""Listeners at Unix sockets: their files, and clients that have users and no addresses."""

from __future__ import annotations

import logging
import os
import socket as std_socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer
from gevent.socket import socket

from gsocks import config
from gsocks.address import Address
from gsocks.errors import ConfigError
from gsocks.forward import ForwardServer
from gsocks.inbound.listener import Listener
from gsocks.local import LocalServer
from gsocks.net.endpoint import MAX_PATH, Activated, UnixPath, parse_endpoint
from gsocks.net.unix import SocketFile, UnixClient, listen_at
from gsocks.request import CONNECT, Request
from gsocks.settings import Limits
from gsocks.stream import reset
from tests.support.datagrams import ask_for_association, udp_server, udp_socket
from tests.support.engine import (
    KEY,
    Seen,
    both_ends,
    direct,
    echo,
    eventually,
    make_exit,
    make_server,
    read_answer,
    read_exactly,
    read_to_end,
    running_inbound,
    serving,
    socks_request,
)
from tests.support.program import (
    ROOT,
)
from tests.support.two_ways import Spawned
from tests.support.waiting import TOO_LONG

in_process = pytest.mark.usefixtures("never_hangs", "nothing_left")


def connect_to(path: str | Path) -> socket:
    sock = socket(std_socket.AF_UNIX)
    sock.settimeout(TOO_LONG)
    sock.connect(str(path))
    return sock


@contextmanager
def local_at(path: Path, seen: Seen, **options: Any) -> Iterator[LocalServer]:
    inbound = LocalServer(listen_at(UnixPath(str(path))), direct(), observer=seen, **options)
    with running_inbound(inbound):
        yield inbound


def me(pid: int | None = None) -> str:
    """How this process is called as a client."""
    return f"unix:{os.getuid()}:{os.getpid() if pid is None else pid}"


# --- its file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_socket_is_for_its_owner_alone_unless_that_is_said(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        for name, mode in (("a", 0o600), ("b", 0o660)):
            with listen_at(UnixPath(str(tmp_path / name), mode)):
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(before)


def test_what_a_dead_process_has_left_is_replaced(tmp_path: Path) -> None:
    path = UnixPath(str(tmp_path / "s"))
    listen_at(path).close()
    with listen_at(path), std_socket.socket(std_socket.AF_UNIX) as client:
        client.connect(path.path)


def test_what_another_program_listens_at_is_not(tmp_path: Path) -> None:
    path = UnixPath(str(tmp_path / "s"))
    with listen_at(path) as first:
        with pytest.raises(ConfigError, match=r"^unix:/.*/s: another program listens there alr"):
            listen_at(path)
        first.setblocking(True)
        first.settimeout(TOO_LONG)
        with std_socket.socket(std_socket.AF_UNIX) as client:
            client.connect(path.path)


def test_nor_what_is_asked_by_so_many_that_they_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        std_socket.socket(std_socket.AF_UNIX) as busy,
        std_socket.socket(std_socket.AF_UNIX) as one,
    ):
        busy.bind(path)
        busy.listen(0)
        one.connect(path)
        with pytest.raises(ConfigError, match="another program listens there already"):
            listen_at(UnixPath(path))


def test_nor_a_socket_of_datagrams(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with std_socket.socket(std_socket.AF_UNIX, std_socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(ConfigError, match="another program listens there already"):
            listen_at(UnixPath(path))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="there is a file that is no socket"):
            listen_at(UnixPath(str(tmp_path / name)))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/no/s: No such file or directory$"):
        listen_at(UnixPath(str(tmp_path / "no" / "s")))


def test_a_file_is_removed_unless_it_is_another_one(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listen_at(UnixPath(path)):
        mine = SocketFile.at(path)
        os.rename(path, tmp_path / "kept")
        with listen_at(UnixPath(path)):
            mine.remove()
            assert Path(path).exists()
            SocketFile.at(path).remove()
            assert not Path(path).exists()
            SocketFile(path, mine.device, mine.inode).remove()


# --- its clients ------------------------------------------------------------------------------


@in_process
def test_a_plain_connection_has_no_greenlet_and_its_client_is_its_user(
    tmp_path: Path, seen: Seen, spawned: Spawned
) -> None:
    with serving(echo) as dest, local_at(tmp_path / "s", seen) as inbound:
        assert str(inbound.bound) == f"unix:{tmp_path}/s"
        with connect_to(tmp_path / "s") as client:
            client.sendall(socks_request(dest))
            read_answer(client)
            client.sendall(b"hello")
            client.shutdown(std_socket.SHUT_WR)
            assert read_to_end(client) == b"hello"
        record = seen.next()
        assert (record.client, record.outcome) == (me(), "ok")
        assert (record.up, record.down) == (5, 5)
        eventually(lambda: not inbound.connections)
    assert spawned == []


@in_process
def test_much_passes_in_both_directions(tmp_path: Path, seen: Seen) -> None:
    data = os.urandom(3_000_000)
    with serving(echo) as dest, local_at(tmp_path / "s", seen):
        with connect_to(tmp_path / "s") as client:
            client.sendall(socks_request(dest))
            read_answer(client)
            sending = gevent.spawn(client.sendall, data)
            assert read_exactly(client, len(data)) == data
            sending.get()
            client.shutdown(std_socket.SHUT_WR)
            assert read_to_end(client) == b""
        assert seen.next().outcome == "ok"


@in_process
def test_limits_count_a_user_and_networks_do_not_matter(tmp_path: Path, seen: Seen) -> None:
    options = {"limits": Limits(per_client=1), "clients": ["192.0.2.0/24"]}
    with (
        serving(echo) as dest,
        local_at(tmp_path / "s", seen, **options) as inbound,
        connect_to(tmp_path / "s") as first,
    ):
        first.sendall(socks_request(dest))
        read_answer(first)
        assert set(inbound.context.admission.clients) == {f"unix:{os.getuid()}"}
        with connect_to(tmp_path / "s") as second:
            second.sendall(socks_request(dest))
            assert read_exactly(second, 4)[3] == 1  # REP: general failure
        assert seen.next().outcome == "limit"


@in_process
def test_a_client_that_says_nothing_is_evicted_for_another(tmp_path: Path, seen: Seen) -> None:
    with (
        serving(echo) as dest,
        local_at(tmp_path / "s", seen, limits=Limits(handshakes=1)) as inbound,
        connect_to(tmp_path / "s") as silent,
    ):
        eventually(lambda: inbound.connections)
        with connect_to(tmp_path / "s") as client:
            client.sendall(socks_request(dest))
            read_answer(client)
            assert read_to_end(silent) == b""
        assert seen.next().outcome == "evicted"


@in_process
def test_datagrams_of_a_client_pass_by_loopback(tmp_path: Path, seen: Seen) -> None:
    with (
        udp_server() as dest,
        local_at(tmp_path / "s", seen) as inbound,
        connect_to(tmp_path / "s") as control,
        udp_socket() as mine,
    ):
        relay = ask_for_association(control)
        assert relay.host == "127.0.0.1"
        mine.sendto(bytes(3) + dest.encode() + b"hello", relay)
        assert mine.recv(100) == bytes(3) + dest.encode() + b"hello"
        control.close()
        assert seen.next().client == me()
        eventually(lambda: not inbound.connections)


@in_process
def test_a_client_of_another_user_would_send_no_datagrams() -> None:
    stranger = UnixClient("unix:12345", 1)
    assert stranger.user == 12345
    assert str(stranger) == "unix:12345:1"


@in_process
def test_a_server_has_tunnels_at_a_unix_socket(tmp_path: Path, seen: Seen) -> None:
    """Which come by way of another program, such as a balancer."""
    path = tmp_path / "s"

    def pass_on(near: socket, _: object) -> None:
        with connect_to(path) as far:
            back = gevent.spawn(_copy, far, near)
            _copy(near, far)
            back.join()

    server = make_server(listen_at(UnixPath(str(path))), observer=seen)
    balancer = StreamServer(("127.0.0.1", 0), pass_on)
    with running_inbound(server), serving(echo) as dest:
        balancer.start()
        exit_ = make_exit(Address.from_sockaddr(balancer.socket.getsockname()), pool_size=0)
        try:
            stream = exit_.connect(Request(CONNECT, dest)).stream
            stream.write(b"hello")
            stream.write_eof()
            assert stream.read() == b"hello"
            assert stream.read() == b""
            stream.close()
        finally:
            exit_.close()
            balancer.stop()
        record = seen.next()
        assert (record.client, record.user) == (me(), "default")
        assert server.keys


def _copy(source: socket, sink: socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(std_socket.SHUT_WR)
    except OSError:
        pass


@in_process
@pytest.mark.parametrize("level", ["INFO", "DEBUG"], ids=["by the hub", "in a greenlet"])
def test_a_forward_listens_at_a_unix_socket(
    level: str, tmp_path: Path, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(getattr(logging, level), "gsocks.connection")
    with serving(echo) as dest:
        inbound: Listener = ForwardServer(
            listen_at(UnixPath(str(tmp_path / "s"))), dest, direct(), observer=seen
        )
        with running_inbound(inbound), connect_to(tmp_path / "s") as client:
            client.sendall(b"hello")
            client.shutdown(std_socket.SHUT_WR)
            assert read_to_end(client) == b"hello"
        assert (seen.next().client, len(seen.all)) == (me(), 1)


@in_process
def test_a_connection_that_is_cut_ends(tmp_path: Path) -> None:
    """As an end: the kernel knows no reset of a Unix socket.  SECURITY.md tells so."""
    seen = Seen()
    with both_ends() as ends, serving(_cut) as dest:
        group = ends.local.context.exit_group
        inbound = LocalServer(listen_at(UnixPath(str(tmp_path / "s"))), group, observer=seen)
        with running_inbound(inbound), connect_to(tmp_path / "s") as client:
            client.sendall(socks_request(dest))
            read_answer(client)
            client.sendall(b"x")
            assert read_to_end(client) == b""
        assert seen.next().outcome == "remote_reset"


def _cut(sock: socket) -> None:
    sock.recv(1)
    reset(sock)


# --- the config -------------------------------------------------------------------------------


def test_every_listener_may_be_at_a_unix_socket() -> None:
    found = config.parse(
        f"""
server: {{listen: unix:run/server.sock?mode=666, keys: {{a: {KEY.text()}}}}}
local:
  listen:
    - unix:/run/a.sock
    - {{address: "unix:/run/b.sock?mode=0660", session: one}}
admin: {{listen: [127.0.0.1:9090, unix:/run/admin.sock]}}
forwards: [{{listen: unix:/run/db.sock, to: db:5432}}]
""",
        Path("/etc/gsocks"),
    )
    assert found.server is not None
    assert found.local is not None
    assert found.admin is not None
    assert found.forwards is not None
    assert [(str(each), each.mode) for each in found.server.listen] == [  # type: ignore[union-attr]
        ("unix:/etc/gsocks/run/server.sock", 0o666)
    ]
    assert [(str(each), each.mode) for each in found.local.addresses] == [  # type: ignore[union-attr]
        ("unix:/run/a.sock", 0o600),
        ("unix:/run/b.sock", 0o660),
    ]
    assert str(found.admin.listen[1]) == "unix:/run/admin.sock"
    assert str(found.forwards.routes[0]) == "unix:/run/db.sock (TCP to db:5432)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unix:", "unix: needs the path of a socket (expected e.g. unix:/run/gsocks.sock)"),
        ("unix:?mode=600", "unix: needs the path of a socket"),
        ("unix:/a\tb", "unix: needs the path of a socket"),
        ("unix:/a?mode=rw", "'mode=rw' is not the mode of a socket (expected e.g. ?mode=660)"),
        ("unix:/a?mode=1777", "'mode=1777' is not the mode of a socket"),
        ("unix:/a?user=1", "'user=1' is not the mode of a socket"),
        (f"unix:/{'a' * MAX_PATH}", f"a Unix socket's path has at most {MAX_PATH} bytes, and"),
        (f"unix:/{'ä' * 60}", f"a Unix socket's path has at most {MAX_PATH} bytes, and"),
        ("systemd:a:b", "'systemd:a:b' is not a socket of systemd (expected systemd:NAME)"),
        ("[unix:/a, unix:/a?mode=660]", "duplicate address unix:/a"),
        ("['systemd:a', 'systemd:a']", "duplicate address systemd:a"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    listen = text if text.startswith("[") else f'"{text}"'.replace("\t", "\\t")
    at = r"\[1\]" if text.startswith("[") else ""
    with pytest.raises(ConfigError, match=rf"^config.yaml: local\.listen{at}: ") as caught:
        config.parse(f"local: {{listen: {listen}}}", ROOT)
    assert message in str(caught.value)


def test_a_path_of_107_bytes_is_no_mistake(tmp_path: Path) -> None:
    whole = f"/{'a' * (MAX_PATH - 1)}"
    assert parse_endpoint(f"unix:{whole}") == UnixPath(whole)
    assert parse_endpoint("unix:s", tmp_path) == UnixPath(str(tmp_path / "s"))
    assert parse_endpoint("unix:~/s") == UnixPath(os.path.expanduser("~/s"))
    assert parse_endpoint("systemd:") == Activated("")


def test_two_sections_at_one_socket_are_refused() -> None:
    text = f"local: {{listen: unix:/a}}\nserver: {{listen: unix:/a, keys: {{a: {KEY.text()}}}}}"
    with pytest.raises(ConfigError, match=r"server\.listen: duplicate address unix:/a: local l"):
        config.parse(text, ROOT)


def test_a_unix_socket_needs_no_users() -> None:
    config.parse("local: {listen: unix:/a?mode=666}\nadmin: {listen: unix:/b}", ROOT)
