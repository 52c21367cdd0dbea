"""The gateway: a connected socket by whichever exit, and an exit that knows when it is closed."""

from __future__ import annotations

import gc
import http.client
import math
import os
import select
import socket as std_socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue
from gevent.socket import socket
from gevent.ssl import PROTOCOL_TLS_CLIENT, PROTOCOL_TLS_SERVER, SSLContext

import gsocks
from gsocks import Gateway
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import (
    BadAddress,
    ConfigError,
    ConnectionRefused,
    ConnectTimeout,
    Forbidden,
    LimitReached,
    NoExit,
    OutOfResources,
    ShuttingDown,
)
from gsocks.exits import ExitDeps, ExitSpec, make_exit
from gsocks.inbound.bridge import loopback_pair
from gsocks.local import LocalServer
from gsocks.rotation.group import ExitGroup, Offer
from tests.support.engine import (
    KEY,
    FakeExit,
    Forwarder,
    echo,
    eventually,
    is_reset,
    make_server,
    read_exactly,
    read_to_end,
    running_inbound,
    send_reset,
    serving,
)
from tests.support.ports import free_port
from tests.support.program import run
from tests.support.proxies import authority, honest, trusting

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: more than all buffers on the way hold
BIG = 16 * 1024 * 1024

KINDS = ("direct", "socks5", "socks4a", "http", "https", "gsocks", "gsocks via socks5")
#: those whose streams are no sockets
BRIDGED = ("https", "gsocks", "gsocks via socks5")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_bridged_kind = pytest.mark.parametrize("kind", BRIDGED)


@contextmanager
def by(kind: str, through: Callable[[Address], Address] = lambda to: to) -> Iterator[Gateway]:
    """A gateway with one exit of that kind, reached at the place that ``through`` makes of its."""
    with ExitStack() as open_until_then:
        authenticate = open_until_then.enter_context
        if kind == "direct":
            url = "direct"
        elif kind == "socks5":
            local = authenticate(running_inbound(LocalServer("127.0.0.1:0", rules=["allow all"])))
            url = f"socks5://{through(local.bound)}"
        elif kind.startswith("gsocks"):
            server = authenticate(running_inbound(make_server()))
            url = f"gsocks://{KEY.text()}@{through(server.bound)}"
        else:
            url = f"{kind}://{through(authenticate(honest(kind)))}"
        spec = ExitSpec.parse(url)
        if kind == "gsocks via socks5":
            local = authenticate(running_inbound(LocalServer("127.0.0.1:0", rules=["allow all"])))
            spec = ExitSpec.parse({"url": url, "via": f"socks5://{local.bound}"})
        exit_ = make_exit(spec, ExitDeps(ALLOW_ALL, trust=trusting))
        yield authenticate(Gateway([exit_], rules=["allow all"]))


def open_at(gateway: Gateway) -> int:
    """Connections through all exits of the gateway."""
    return sum(member.open for member in gateway.exit_group.roster)


def names(gateway: Gateway) -> list[str]:
    return [member.name for member in gateway.exit_group.roster]


def trusting_cooperatively() -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


@contextmanager
def tls_echo() -> Iterator[Address]:
    context = SSLContext(PROTOCOL_TLS_SERVER)  # gevent's: the standard library's blocks the hub
    authority().issue_cert("127.0.0.1").configure_cert(context)

    def serve(sock: socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            echo(tls)

    with serving(serve) as address:
        yield address


# --- a socket like any other ------------------------------------------------------------------


@every_kind
def test_what_comes_out_is_a_connected_socket_of_gevents(kind: str, echo_server: Address) -> None:
    with by(kind) as gateway, gateway.connect(*echo_server) as sock:
        assert isinstance(sock, socket)
        assert sock.family == std_socket.AF_INET
        sock.setsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY, 1)
        sock.sendall(b"there")
        assert read_exactly(sock, 5) == b"there"


@every_kind
def test_one_direction_ends_and_the_other_goes_on(kind: str) -> None:
    def answer_at_the_end(sock: socket) -> None:
        sock.sendall(read_to_end(sock)[::-1])

    with by(kind) as gateway, serving(answer_at_the_end) as dest:
        with gateway.connect(*dest) as sock:
            sock.sendall(b"question")
            sock.shutdown(std_socket.SHUT_WR)
            assert read_to_end(sock) == b"noitseuq"
        eventually(lambda: open_at(gateway) == 0)


@every_kind
def test_a_loss_is_never_an_end(kind: str) -> None:
    def begin_and_fail(sock: socket) -> None:
        sock.sendall(b"half of the ans")
        sock.recv(1)
        send_reset(sock)

    with by(kind) as gateway, serving(begin_and_fail) as dest:
        with gateway.connect(*dest) as sock:
            assert read_exactly(sock, 15) == b"half of the ans"
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        eventually(lambda: open_at(gateway) == 0)


@every_bridged_kind
def test_a_tunnel_that_breaks_is_never_an_end(kind: str, echo_server: Address) -> None:
    with ExitStack() as until_then:
        paths: list[Forwarder] = []

        def through(to: Address) -> Address:
            paths.append(until_then.enter_context(Forwarder(to)))
            return paths[0].bound

        with by(kind, through) as gateway, gateway.connect(*echo_server) as sock:
            sock.sendall(b"there")
            assert read_exactly(sock, 5) == b"there"
            paths[0].cut()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


@every_kind
def test_what_was_written_before_the_close_arrives(kind: str) -> None:
    received: Queue[int] = Queue()
    go_on = Event()

    def take(sock: socket) -> None:
        go_on.wait()
        received.put(len(read_to_end(sock)))

    with by(kind) as gateway, serving(take) as dest:
        sock = gateway.connect(*dest)
        writer = gevent.spawn(sock.sendall, bytes(BIG))
        gevent.sleep(0)
        go_on.set()
        writer.get()
        sock.close()
        assert received.get() == BIG


@every_kind
def test_a_reset_by_the_program_is_one_at_the_destination(kind: str) -> None:
    reset: Queue[bool] = Queue()
    with by(kind) as gateway, serving(lambda sock: reset.put(is_reset(sock))) as dest:
        send_reset(gateway.connect(*dest))
        assert reset.get() is True
        eventually(lambda: open_at(gateway) == 0)


@every_kind
def test_a_socket_serves_ssl_http_and_poll(kind: str, echo_server: Address) -> None:
    with by(kind) as gateway, tls_echo() as dest:
        with trusting_cooperatively().wrap_socket(
            gateway.connect(*dest), server_hostname="127.0.0.1"
        ) as tls:
            tls.sendall(b"sealed")
            assert read_exactly(tls, 6) == b"sealed"
        eventually(lambda: open_at(gateway) == 0)

        with gateway.connect(*echo_server) as sock:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            assert poll.poll(0) == []
            sock.settimeout(0.01)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(None)
            sock.sendall(b"x")
            eventually(lambda: poll.poll(0) == [(sock.fileno(), select.POLLIN)])

        def page(client: socket) -> None:
            assert client.recv(4096).startswith(b"GET /x HTTP/1.1\r\n")
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")

        with serving(page) as site:
            connection = http.client.HTTPConnection(site.host, site.port)
            connection.sock = gateway.connect(*site)
            connection.request("GET", "/x")
            assert connection.getresponse().read() == b"page"
            connection.close()
        eventually(lambda: open_at(gateway) == 0)


def test_the_timeout_is_the_sockets_too(echo_server: Address) -> None:
    with by("direct") as gateway:
        with gateway.connect(*echo_server) as sock:
            assert sock.gettimeout() is None
        with gateway.connect(*echo_server, timeout=7) as sock:
            assert sock.gettimeout() == 7


@pytest.mark.parametrize("kind", ["direct", "gsocks"])
def test_many_greenlets_connect_at_once(kind: str, echo_server: Address) -> None:
    def ask(gateway: Gateway, number: int) -> None:
        with gateway.connect(*echo_server) as sock:
            sock.sendall(b"%4d" % number)
            assert read_exactly(sock, 4) == b"%4d" % number

    with by(kind) as gateway:
        asking = [gevent.spawn(ask, gateway, number) for number in range(100)]
        gevent.joinall(asking, raise_error=True)
        eventually(lambda: open_at(gateway) == 0)


# --- which exit serves ------------------------------------------------------------------------


@contextmanager
def many_exits(count: int = 8, **options: Any) -> Iterator[Gateway]:
    """Exits that the destination tells apart by their addresses, 127.0.0.11 and so on."""
    exits = [
        {
            "url": f"direct://?source=127.0.0.{11 + number}",
            "name": f"exit-{number}",
            "country": "de" if number < 2 else "fr",
            "tags": ["fast"] if number % 2 else [],
        }
        for number in range(count)
    ]
    with Gateway(exits, rules=["allow all"], **options) as gateway:
        yield gateway


def exits_of(gateway: Gateway, times: int, dest: Address, **selectors: Any) -> list[str]:
    """The exits that serve so many connections, which the destination confirms."""
    found = []
    for _ in range(times):
        with gateway.connect(*dest, **selectors) as sock:
            sock.sendall(b"?")
            name = gateway.exit_of(sock)
            assert read_to_end(sock) == b"127.0.0.%d" % (11 + int(name.removeprefix("exit-")))
            found.append(name)
    return found


@pytest.fixture
def tells_who_came() -> Iterator[Address]:
    def tell(sock: socket) -> None:
        sock.recv(1)
        sock.sendall(sock.getpeername()[0].encode())

    with serving(tell) as address:
        yield address


def test_exits_take_turns_and_it_can_be_asked_which_one_serves(tells_who_came: Address) -> None:
    with many_exits(3) as gateway:
        expected = ["exit-0", "exit-1", "exit-2"] * 2
        assert exits_of(gateway, 6, tells_who_came) == expected


def test_a_session_keeps_its_exit_until_another_one_is_asked_for(tells_who_came: Address) -> None:
    with many_exits() as gateway:
        (before,) = set(exits_of(gateway, 5, tells_who_came, session="cart-17"))
        assert len({exits_of(gateway, 1, tells_who_came, session=f"{n}")[0] for n in range(30)}) > 3
        gateway.rotate("cart-17")
        (after,) = set(exits_of(gateway, 5, tells_who_came, session="cart-17"))
        assert after != before


def test_a_strict_session_fails_rather_than_move(tells_who_came: Address) -> None:
    with many_exits() as gateway:
        (home,) = exits_of(gateway, 1, tells_who_came, session="cart", strict=True)
        gateway.exit_group.drain(home)
        with pytest.raises(NoExit, match=f"exit {home} of this strict session is draining"):
            gateway.connect(*tells_who_came, session="cart", strict=True)
        assert exits_of(gateway, 1, tells_who_came, session="cart") != [home]
        gateway.rotate("cart")
        exits_of(gateway, 1, tells_who_came, session="cart", strict=True)


def test_the_first_requests_of_a_session_at_once_have_one_exit(tells_who_came: Address) -> None:
    """Also if they are more than an exit is given of which nothing good is known yet."""
    with many_exits() as gateway:
        asking = [
            gevent.spawn(exits_of, gateway, 1, tells_who_came, session="cart-17") for _ in range(20)
        ]
        assert len({each.get()[0] for each in asking}) == 1


def test_a_session_ends_with_its_lifetime(
    tells_who_came: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    with many_exits() as gateway:
        asked = partial(exits_of, gateway, 1, tells_who_came, session="a", lifetime=60)
        before = asked()
        assert asked() == before
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + 61)
        assert asked() != before


def test_a_country_tags_or_a_name_select_the_exit(tells_who_came: Address) -> None:
    with many_exits() as gateway:
        asked = partial(exits_of, gateway, 4, tells_who_came)
        assert set(asked(country="DE")) == {"exit-0", "exit-1"}
        assert set(asked(country="de", tags=["Fast"])) == {"exit-1"}
        assert set(asked(exit="exit-6")) == {"exit-6"}
        with pytest.raises(NoExit):
            asked(country="jp")


@pytest.mark.parametrize(
    "selector",
    [
        {"country": "Germany"},
        {"tags": ["two words"]},
        {"exit": ""},
        {"session": ""},
        {"session": "x" * 256},
        {"lifetime": 0},
        {"lifetime": math.nan},
    ],
)
def test_an_invalid_selector_is_refused(selector: dict[str, Any]) -> None:
    with Gateway() as gateway, pytest.raises(ConfigError):
        gateway.connect("example.com", 443, **selector)


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "by socket"])
def test_an_exit_that_is_reported_for_a_domain_is_not_asked_for_it(
    tells_who_came: Address, by_name: bool
) -> None:
    with many_exits(2) as gateway:
        for _ in range(3):
            with gateway.connect(*tells_who_came, exit="exit-0") as sock:
                if by_name:
                    gateway.report("exit-0", ok=False, domain=tells_who_came.host)
                else:
                    gateway.report(sock, ok=False)
        assert exits_of(gateway, 3, tells_who_came) == ["exit-1"] * 3
        gateway.exit_group.unban("exit-0", tells_who_came.host)
        assert set(exits_of(gateway, 4, tells_who_came)) == {"exit-0", "exit-1"}


def test_a_report_says_of_what(tells_who_came: Address) -> None:
    with many_exits(1) as gateway:
        sock = gateway.connect(*tells_who_came)
        gateway.report(sock, ok=True)
        gateway.report(sock, ok=True, domain="example.com")
        sock.close()
        with socket() as stranger:
            for nothing in (sock, stranger):
                with pytest.raises(ConfigError):
                    gateway.report(nothing, ok=False)
                with pytest.raises(ConfigError):
                    gateway.exit_of(nothing)
        with pytest.raises(ConfigError):
            gateway.report("exit-0", ok=False)
        with pytest.raises(NoExit):
            gateway.report("exit-9", ok=False, domain="example.com")


def test_other_exits_may_come_while_connections_are_open(tells_who_came: Address) -> None:
    with many_exits(2) as gateway, gateway.connect(*tells_who_came, exit="exit-0") as sock:
        sources = {"url": "direct://?source=127.0.0.12", "name": "exit-1"}
        gateway.update([sources, {"url": "direct://?source=127.0.0.19", "name": "exit-8"}])
        assert set(exits_of(gateway, 4, tells_who_came)) == {"exit-1", "exit-8"}
        with pytest.raises(ConfigError):
            gateway.update([])
        with pytest.raises(ConfigError):
            gateway.update(["nonsense://"])
        assert gateway.exit_of(sock) == "exit-0"
        sock.sendall(b"?")
        assert read_to_end(sock) == b"127.0.0.11"


def test_an_exit_that_fails_is_replaced_by_the_next_one(tells_who_came: Address) -> None:
    dead = f"socks5://127.0.0.1:{free_port()}"
    with Gateway([dead, "direct"], rules=["allow all"]) as gateway:
        for _ in range(3):
            with gateway.connect(*tells_who_came) as sock:
                assert gateway.exit_of(sock) == names(gateway)[1]


@every_bridged_kind
def test_what_a_bridge_has_carried_is_counted_for_its_exit(kind: str, echo_server: Address) -> None:
    with by(kind) as gateway:
        with gateway.connect(*echo_server) as sock:
            sock.sendall(b"there")
            sock.shutdown(std_socket.SHUT_WR)
            assert read_to_end(sock) == b"there"
        eventually(lambda: open_at(gateway) == 0)
        (member,) = gateway.exit_group.roster
        assert (member.counts.up, member.counts.down) == (5, 5)


# --- how it ends ------------------------------------------------------------------------------


def forget(_: Gateway, sock: socket) -> None:
    del sock


def forget_in_a_cycle(_: Gateway, sock: socket) -> None:
    ring: list[object] = [sock]
    ring.append(ring)
    del ring, sock
    gc.collect()


def close_while_a_file_reads(_: Gateway, sock: socket) -> None:
    with sock.makefile("rb") as file:
        sock.close()
        del file


def detach_and_close(_: Gateway, sock: socket) -> None:
    os.close(sock.detach())


def hand_over_to_the_standard_library(_: Gateway, sock: socket) -> None:
    std_socket.socket(fileno=sock.detach()).close()


def collect_in_another_thread(_: Gateway, sock: socket) -> None:
    held = [sock]
    del sock
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # which some do on purpose
@pytest.mark.parametrize("kind", ["direct", "gsocks"])
@pytest.mark.parametrize(
    "end",
    [
        lambda _, sock: sock.close(),
        forget,
        forget_in_a_cycle,
        close_while_a_file_reads,
        detach_and_close,
        hand_over_to_the_standard_library,
        collect_in_another_thread,
    ],
    ids=["close", "forget", "cycle", "makefile", "detach", "hand over", "thread"],
)
def test_however_a_socket_ends_its_exit_has_one_connection_less(
    kind: str, end: Callable[[Gateway, socket], None], echo_server: Address
) -> None:
    with by(kind) as gateway:
        sockets = [gateway.connect(*echo_server) for _ in range(3)]
        assert open_at(gateway) == 3
        end(gateway, sockets.pop())
        eventually(lambda: open_at(gateway) == 2)
        for sock in sockets:
            sock.close()
        eventually(lambda: open_at(gateway) == 0)


def test_a_gateway_is_shown_by_its_exits_and_open_sockets(echo_server: Address) -> None:
    with by("direct") as gateway:
        assert repr(gateway) == "<Gateway of 1 exits, 0 open sockets>"
        with gateway.connect(*echo_server):
            assert repr(gateway) == "<Gateway of 1 exits, 1 open sockets>"
    assert repr(gateway) == "<Gateway of 1 exits, closed>"


def test_a_close_is_known_at_once(echo_server: Address) -> None:
    with by("direct") as gateway:
        gateway.connect(*echo_server).close()
        assert open_at(gateway) == 0


@pytest.mark.parametrize("kind", ["direct", "gsocks"])
def test_an_ssl_socket_counts_until_it_is_closed(kind: str) -> None:
    with by(kind) as gateway, tls_echo() as dest:
        context = trusting_cooperatively()
        tls = context.wrap_socket(gateway.connect(*dest), server_hostname="127.0.0.1")
        for _ in range(2):
            # the end of another one is noticed by a poll, which is one of both
            context.wrap_socket(gateway.connect(*dest), server_hostname="127.0.0.1").close()
            eventually(lambda: open_at(gateway) == 1)
        assert open_at(gateway) == 1
        assert [gateway.exit_of(tls)] == names(gateway)
        tls.sendall(b"still open")
        assert read_exactly(tls, 10) == b"still open"
        tls.close()
        eventually(lambda: open_at(gateway) == 0)


def test_a_descriptor_that_is_used_again_is_another_socket(echo_server: Address) -> None:
    with by("direct") as gateway:
        fd = gateway.connect(*echo_server).detach()
        with socket() as other:
            os.dup2(other.fileno(), fd)
            eventually(lambda: open_at(gateway) == 0)
        os.close(fd)


def test_an_exit_is_not_full_of_what_has_just_been_closed(echo_server: Address) -> None:
    exit_group = ExitGroup([Offer(_direct(), max_connections=1)], ALLOW_ALL)
    with Gateway(exit_group) as gateway:
        for _ in range(3):
            os.close(gateway.connect(*echo_server).detach())
        with gateway.connect(*echo_server), pytest.raises(LimitReached):
            gateway.connect(*echo_server)


def _direct() -> gsocks.exits.Exit:
    return make_exit(ExitSpec.parse("direct"), ExitDeps(ALLOW_ALL))


def test_a_destination_that_never_ends_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed socket looks half-closed from the far end of a bridge."""
    monkeypatch.setattr("gsocks.inbound.bridge.DRAIN_TIMEOUT", 0.05)
    done = Event()
    with by("gsocks") as gateway, serving(lambda _: done.wait()) as dest:
        gateway.connect(*dest).close()
        eventually(lambda: open_at(gateway) == 0)
        done.set()


def test_a_destination_that_takes_nothing_is_left_some_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsocks.inbound.bridge.IO_TIMEOUT", 0.05)
    done = Event()
    with by("gsocks") as gateway, serving(lambda _: done.wait()) as dest:
        sock = gateway.connect(*dest)
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):  # all buffers on the way are full
            while True:
                sock.send(bytes(1 << 20))
        sock.close()
        eventually(lambda: open_at(gateway) == 0)
        done.set()


def test_a_tunnel_carries_the_next_connection_after_a_clean_end(echo_server: Address) -> None:
    with running_inbound(make_server()) as server, Forwarder(server.bound) as path:
        url = f"gsocks://{KEY.text()}@{path.bound}"
        with Gateway([url], rules=["allow all"]) as gateway:
            for _ in range(3):
                sock = gateway.connect(*echo_server)
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                sock.close()
                eventually(lambda: open_at(gateway) == 0)
        assert path.connections < 15, "eight wait in the pool, and few are opened meanwhile"


# --- what can go wrong ------------------------------------------------------------------------


def test_private_addresses_are_denied_unless_rules_allow_them(echo_server: Address) -> None:
    with Gateway() as careful, pytest.raises(Forbidden):
        careful.connect(*echo_server)
    with Gateway(rules=["allow loopback"]) as gateway:
        gateway.connect(*echo_server).close()


def test_errors_are_those_of_the_tree() -> None:
    with Gateway(rules=["allow all"]) as gateway:
        with pytest.raises(BadAddress):
            gateway.connect("not a name", 80)
        with pytest.raises(BadAddress):
            gateway.connect("example.com", 65536)
        with pytest.raises(ConnectionRefused):
            gateway.connect("127.0.0.1", free_port())
        assert open_at(gateway) == 0
    with pytest.raises(ShuttingDown):
        gateway.connect("127.0.0.1", 80)
    with pytest.raises(ConfigError):
        Gateway(["nonsense://"])


def test_a_connect_that_times_out_or_is_killed_leaves_nothing() -> None:
    hangs = FakeExit("hangs")
    with Gateway([hangs], rules=["allow all"]) as gateway:
        with pytest.raises(ConnectTimeout, match=r"192\.0\.2\.1:80"):
            gateway.connect("192.0.2.1", 80, timeout=0.02)
        assert open_at(gateway) == 0
        hangs.asked.clear()
        connecting = gevent.spawn(gateway.connect, "192.0.2.1", 80)
        hangs.asked.wait()
        assert open_at(gateway) == 1
        connecting.kill()
        assert open_at(gateway) == 0


def test_without_descriptors_for_a_bridge_nothing_stays_behind(
    echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> tuple[socket, socket]:
        raise OSError(24, "Too many open files")

    with by("gsocks") as gateway:
        with monkeypatch.context() as patch:
            patch.setattr("gsocks.gateway.loopback_pair", none_left)
            with pytest.raises(OutOfResources):
                gateway.connect(*echo_server)
        assert open_at(gateway) == 0
        gateway.connect(*echo_server).close()


def test_a_stranger_who_connects_to_a_bridge_first_gets_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strangers = []

    class Watched(socket):
        def listen(self, backlog: int = 1, /) -> None:
            super().listen(backlog)
            strangers.append(socket())
            strangers[0].connect(self.getsockname())

    monkeypatch.setattr("gsocks.inbound.bridge.socket", Watched)
    near, far = loopback_pair()
    with near, far, strangers[0] as stranger:
        near.sendall(b"private")
        assert far.recv(100) == b"private"
        assert stranger.recv(100) == b""


def test_another_thread_is_told_to_have_a_gateway_of_its_own(echo_server: Address) -> None:
    raised: list[BaseException] = []

    def use(gateway: Gateway) -> None:
        try:
            gateway.connect(*echo_server)
        except ConfigError as error:
            raised.append(error)

    with by("direct") as gateway:
        gateway.connect(*echo_server).close()
        thread = threading.Thread(target=use, args=(gateway,))
        thread.start()
        thread.join()
    assert [str(error) for error in raised] == [
        "a gateway serves one thread: another thread needs its own"
    ]


# --- life -------------------------------------------------------------------------------------


def test_the_exit_group_is_started_by_the_first_use_and_closed_once(echo_server: Address) -> None:
    fake = FakeExit("fake", ConnectionRefused("no"))
    gateway = Gateway([fake], rules=["allow all"])
    assert "inbounds=0" in repr(gateway.exit_group)
    for _ in range(2):
        with pytest.raises(ConnectionRefused):
            gateway.connect(*echo_server)
    assert "inbounds=1" in repr(gateway.exit_group)
    gateway.close()
    gateway.close()
    assert fake.closed == 1


def test_a_gateway_that_was_never_used_closes_nothing() -> None:
    fake = FakeExit("fake")
    with Gateway([fake]):
        pass
    assert fake.closed == 0


def test_open_sockets_outlive_the_gateway(echo_server: Address) -> None:
    with by("gsocks") as gateway:
        sock = gateway.connect(*echo_server)
        gateway.close()
        with sock:
            sock.sendall(b"still")
            assert read_exactly(sock, 5) == b"still"


def test_ways_out_may_be_shared_with_a_inbound(echo_server: Address) -> None:
    exit_group = ExitGroup([_direct()], ALLOW_ALL)
    with running_inbound(LocalServer("127.0.0.1:0", exit_group)), Gateway(exit_group) as gateway:
        assert gateway.exit_group is exit_group
        gateway.connect(*echo_server).close()


def test_nothing_is_patched_by_import_or_use() -> None:
    code = (
        "import socket, ssl, gevent.monkey; before = socket.socket, ssl.SSLContext\n"
        "from gsocks import Gateway, GsocksError\n"
        "with Gateway(rules=['allow all']) as gateway:\n"
        "    try: gateway.connect('127.0.0.1', 9)\n"
        "    except GsocksError as error: print(error.word)\n"
        "assert not gevent.monkey.saved and before == (socket.socket, ssl.SSLContext)\n"
    )
    assert run(sys.executable, "-c", code).stdout == "refused\n"
