"""Exits that fail in every way, behind a door: clients notice little, and the exit goes out.

Each bad exit stands beside a good one.  A client's request succeeds by the good one, within the
time that it has to be connected; the bad exit is put out by what it did, is left alone then, and
serves again when it is well and its time is over.
"""

from __future__ import annotations

import signal
import socket as std_socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
from engine import (
    FakeExit,
    Refused,
    ask_echo,
    eventually,
    free_port,
    gather,
    is_reset,
    make_exit,
    make_server,
    read_exactly,
    read_to_end,
    running_door,
    serving,
    through,
)
from gevent.socket import socket
from proxies import (
    FAILURES,
    WELL,
    Mood,
    Moody,
    dante,
    hang,
    microsocks,
    send_signal,
    stage,
    tinyproxy,
)

from gsocks import errors
from gsocks.address import Address
from gsocks.assemble import make_ways_out
from gsocks.checks import Checks, CheckSettings
from gsocks.errors import ConfigError, ConnectFailed
from gsocks.http.url import WebUrl
from gsocks.limits import Timeouts
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.rotation.roster import Member
from gsocks.rules import ALLOW_ALL
from gsocks.ways_out import WaysOut

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: seconds in which a request must be connected
CONNECT = 0.6


def ways_of(*urls: str, connect: float = CONNECT, **options: object) -> WaysOut:
    return make_ways_out(urls, ["allow all"], timeouts=Timeouts(connect=connect), **options)  # type: ignore[arg-type]


@contextmanager
def door_to(ways_out: WaysOut) -> Iterator[Address]:
    door = LocalServer(("127.0.0.1", 0), ways_out)
    door.start()
    try:
        yield door.bound
    finally:
        door.stop(0)


def its_time_is_over(ways_out: WaysOut, member: Member) -> None:
    """As if the time had passed for which it is out."""
    assert member.health.out_until > time.monotonic()
    member.health.out_until = time.monotonic()
    ways_out.roster.changed()


def is_out(member: Member) -> bool:
    return member.health.is_out(time.monotonic())


def assert_served(door: Address, target: Address, times: int = 1) -> None:
    """Requests succeed, one after the other, each in the time that it has."""
    for number in range(times):
        began = time.monotonic()
        with through(door, target) as client:
            assert time.monotonic() - began < CONNECT
            client.sendall(b"%04d" % number)
            assert read_exactly(client, 4) == b"%04d" % number


@pytest.mark.parametrize("mood", FAILURES, ids=str)
def test_the_bad_exit_goes_out_its_clients_are_served_and_it_comes_back(
    mood: Mood, echo_server: Address
) -> None:
    with Moody(mood) as bad, microsocks() as good:
        ways_out = ways_of(bad.url, f"socks5://{good}")
        first, second = ways_out.roster
        with door_to(ways_out) as door:
            assert_served(door, echo_server, times=6)
            assert is_out(first)
            assert not is_out(second)
            assert bad.asked == 3
            bad.mood = WELL
            assert_served(door, echo_server, times=3)
            assert bad.asked == 3
            its_time_is_over(ways_out, first)
            assert_served(door, echo_server, times=3)
            assert bad.asked > 3
            assert first.health.state(time.monotonic()) == "ok"


def test_an_exit_that_is_away_goes_out_and_comes_back(echo_server: Address) -> None:
    with Moody() as bad, microsocks() as good:
        ways_out = ways_of(bad.url, f"socks5://{good}")
        first, _ = ways_out.roster
        with door_to(ways_out) as door:
            assert_served(door, echo_server, times=2)
            bad.go()
            assert_served(door, echo_server, times=6)
            assert is_out(first)
            its_time_is_over(ways_out, first)
            assert_served(door, echo_server, times=2)
            assert is_out(first), "one more failure was one too many"
            bad.come()
            its_time_is_over(ways_out, first)
            assert_served(door, echo_server, times=4)
            assert not is_out(first)


@pytest.mark.parametrize("step", ["close", "silent"])
@pytest.mark.parametrize("sites", [1, 3])
def test_an_exit_that_lies_about_success_goes_out(
    sites: int, step: str, echo_server: Address
) -> None:
    """Its clients were told that they are connected, so nobody else can be asked for them.

    Of one site it may be the doing, so that it goes out for that alone.
    """
    with Moody(Mood("lie", step)) as bad, microsocks() as good:
        ways_out = ways_of(bad.url, f"socks5://{good}")
        first, second = ways_out.roster
        targets = [Address(host, echo_server.port) for host in ("127.0.0.1", "localhost", "::1")]
        lost = 0
        with door_to(ways_out) as door:
            for number in range(8):
                # by turns, so that the liar has all of them
                target = targets[number // 2 % sites] if lost < 3 else echo_server
                with through(door, target) as client:
                    client.settimeout(0.1)
                    try:
                        client.sendall(b"hello")
                        lost += client.recv(5) != b"hello"
                    except OSError:
                        lost += 1
                eventually(lambda: first.open == second.open == 0)
            assert is_out(first) == (sites > 1)
            assert lost == 3


@pytest.mark.parametrize(
    ("failure", "out"), [(errors.ExitFailed("x"), True), (errors.ConnectionRefused("x"), False)]
)
def test_a_success_that_is_withdrawn_is_held_against_an_exit_that_failed_by_itself(
    failure: errors.ConnectFailed, out: bool, echo_server: Address
) -> None:
    """With fast_open the client was told before the far end has connected."""
    with (
        running_door(make_server(ways_out=WaysOut([FakeExit("far", failure)], ALLOW_ALL))) as bad,
        running_door(make_server()) as good,
    ):
        ways_out = WaysOut([make_exit(bad.bound), make_exit(good.bound)], ALLOW_ALL)
        first, second = ways_out.roster
        door = LocalServer(("127.0.0.1", 0), ways_out, fast_open=True)
        with running_door(door):
            for _ in range(8):
                with through(door.bound, echo_server) as client:
                    client.sendall(b"hello")
                    client.shutdown(std_socket.SHUT_WR)
                    is_reset(client)  # or echoed, and ended
                eventually(lambda: first.open == second.open == 0)
        assert [is_out(member) for member in ways_out.roster] == [out, False]


def test_an_exit_that_is_killed_in_the_middle_goes_out_and_others_serve(
    echo_server: Address,
) -> None:
    def pour(sock: socket) -> None:
        while True:
            sock.sendall(bytes(65536))

    with microsocks() as dying, microsocks() as other, serving(pour) as target:
        ways_out = ways_of(f"socks5://{dying}", f"socks5://{other}")
        with door_to(ways_out) as door, through(door, target) as client:
            read_exactly(client, 100_000)
            send_signal(dying, signal.SIGKILL)
            is_reset(client)  # or not: the kernel of a killed program may end what it had open
            assert_served(door, echo_server, times=6)
        assert [is_out(member) for member in ways_out.roster] == [True, False]


def test_an_exit_that_cuts_an_answer_short_resets_its_client() -> None:
    with (
        serving(lambda sock: sock.sendall(bytes(100_000))) as target,
        Moody(Mood("die")) as dying,
        door_to(ways_of(dying.url)) as door,
        through(door, target) as client,
        pytest.raises(ConnectionResetError),
    ):
        read_to_end(client)


# --- whose fault it is ------------------------------------------------------------------------


def test_a_destination_that_swallows_everything_puts_no_exit_out(echo_server: Address) -> None:
    with ExitStack() as stack:
        proxies = [stack.enter_context(Moody()) for _ in range(3)]
        ways_out = ways_of(*[proxy.url for proxy in proxies], connect=0.1)
        blackhole = Address("192.0.2.1", 80)
        for proxy in proxies:
            proxy.blackholes.add(blackhole)
        door = stack.enter_context(door_to(ways_out))
        for outcome in gather([lambda: through(door, blackhole)] * 12):
            assert isinstance(outcome, Refused)
        assert not any(is_out(member) for member in ways_out.roster)
        assert ask_echo(door, echo_server, b"served") == b"served"


def test_a_destination_that_refuses_puts_no_exit_out(echo_server: Address, tmp_path: Path) -> None:
    """However the proxies tell it: as refused, as rejected or failed, as status 500."""
    with microsocks() as one, dante(tmp_path, "127.0.0.9") as two, tinyproxy(tmp_path) as three:
        ways_out = ways_of(f"socks5://{one}", f"socks4a://{two}", f"http://{three}")
        with door_to(ways_out) as door:
            for _ in range(9):
                with pytest.raises(Refused):
                    through(door, Address("127.0.0.1", free_port()))
        assert not any(is_out(member) for member in ways_out.roster)


# --- the programs of others -------------------------------------------------------------------


def test_proxies_that_are_killed_and_stopped_are_found_by_checks_and_come_back(
    echo_server: Address, tmp_path: Path
) -> None:
    def page(sock: socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with ExitStack() as stack:
        killed = stack.enter_context(microsocks())
        stopped = stack.enter_context(microsocks())
        others = [
            f"socks5://{stack.enter_context(dante(tmp_path, '127.0.0.9'))}",
            f"http://{stack.enter_context(tinyproxy(tmp_path))}",
        ]
        urls = tuple(WebUrl.parse(f"http://{stack.enter_context(serving(page))}/") for _ in "12")
        checks = CheckSettings(urls, interval=0.05, timeout=0.3)
        ways_out = ways_of(f"socks5://{killed}", f"socks5://{stopped}", *others, checks=checks)
        roster = list(ways_out.roster)
        door = stack.enter_context(door_to(ways_out))
        assert_served(door, echo_server, times=4)
        send_signal(killed, signal.SIGKILL)
        send_signal(stopped, signal.SIGSTOP)
        eventually(
            lambda: [member.health.is_down for member in roster] == [True, True, False, False]
        )
        connected = [member.counts.connected for member in roster]
        assert_served(door, echo_server, times=6)
        assert [member.counts.connected for member in roster[:2]] == connected[:2]
        send_signal(stopped, signal.SIGCONT)
        stack.enter_context(microsocks(port=killed.port))
        eventually(lambda: not any(is_out(member) for member in roster))
        assert_served(door, echo_server, times=8)
        assert all(
            member.counts.connected > before
            for member, before in zip(roster, connected, strict=True)
        )


# --- many -------------------------------------------------------------------------------------


def test_of_a_thousand_exits_600_are_dead_and_99_of_100_requests_need_two_tries_at_most(
    echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead are those that refuse, those that are silent, and those that talk nonsense."""
    monkeypatch.setattr(Checks, "AT_ONCE", 64)  # the silent ones take two seconds each
    connect = 3.0

    def page(sock: socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with ExitStack() as stack:
        proxy, nonsense = Moody(), Moody(Mood("garbage", "greeting"))
        stack.enter_context(proxy)
        stack.enter_context(nonsense)
        silent = stack.enter_context(stage(hang))
        hosts = {
            "alive": proxy.url.rpartition("@")[2],
            "refuses": f"127.0.0.1:{free_port()}",
            "silent": silent,
            "nonsense": nonsense.url.rpartition("@")[2],
        }
        kinds = ["alive"] * 400 + ["refuses"] * 280 + ["nonsense"] * 280 + ["silent"] * 40
        Random(1).shuffle(kinds)
        exits = [f"socks5://{number}:x@{hosts[kind]}" for number, kind in enumerate(kinds)]
        urls = tuple(WebUrl.parse(f"http://{stack.enter_context(serving(page))}/") for _ in "12")
        checks = CheckSettings(urls, interval=1000.0, timeout=1.0)
        ways_out = ways_of(*exits, connect=connect, checks=checks)

        def ask() -> tuple[int, float, bool]:
            tried: list[str] = []
            began = time.monotonic()
            try:
                way = ways_out.connect(Request(Command.CONNECT, echo_server), tried.append)
            except ConnectFailed:
                return len(tried), time.monotonic() - began, False
            way.stream.abort()
            way.release()
            return len(tried), time.monotonic() - began, True

        before = gather([ask] * 50)
        assert all(waited < connect + 0.5 for _, waited, _ in before)
        ways_out.start()
        stack.callback(ways_out.close)
        dead = [
            member for member, kind in zip(ways_out.roster, kinds, strict=True) if kind != "alive"
        ]
        eventually(lambda: all(member.health.is_down for member in dead))
        after = [outcome for _ in range(25) for outcome in gather([ask] * 20)]
        assert all(waited < connect + 0.5 for _, waited, _ in after)
        assert sum(served and tries <= 2 for tries, _, served in after) >= 495


# --- lists ------------------------------------------------------------------------------------


def test_all_exits_cannot_be_taken_away_and_those_of_before_serve_on(echo_server: Address) -> None:
    with microsocks() as proxy:
        ways_out = ways_of(f"socks5://{proxy}")
        with door_to(ways_out) as door:
            with pytest.raises(ConfigError, match="no exits: there would be no way out"):
                ways_out.update([])
            assert_served(door, echo_server)
