"""Exits that fail in every way, behind a listener: clients notice little, and the exit is ejected.

Each bad exit stands beside a good one.  A client's request succeeds by the good one, within the
time that it has to be connected (else it is refused); the bad exit is put out by what it did, is
left alone then, and serves again when it is well and its time is over.
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
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import ConfigError, ConnectFailed
from gsocks.http.url import WebUrl
from gsocks.local import LocalServer
from gsocks.request import Command, Request
from gsocks.rotation.build import make_exit_group
from gsocks.rotation.checks import Checks
from gsocks.rotation.group import ExitGroup
from gsocks.rotation.roster import Member
from gsocks.settings import CheckSettings, Timeouts
from tests.support.engine import (
    FakeExit,
    Refused,
    ask_echo,
    echo,
    eventually,
    gather,
    is_reset,
    make_exit,
    make_server,
    read_exactly,
    read_to_end,
    running_inbound,
    serving,
    through,
)
from tests.support.ports import free_port
from tests.support.proxies import (
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
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

#: seconds in which a request must be connected
CONNECT = 1.5


def ways_of(*urls: str, connect: float = CONNECT, **options: object) -> ExitGroup:
    return make_exit_group(urls, ["allow all"], timeouts=Timeouts(connect=connect), **options)  # type: ignore[arg-type]


@contextmanager
def inbound_to(exit_group: ExitGroup) -> Iterator[Address]:
    inbound = LocalServer(("127.0.0.1", 0), exit_group)
    inbound.start()
    try:
        yield inbound.bound
    finally:
        inbound.stop(0)


def its_time_is_over(exit_group: ExitGroup, member: Member) -> None:
    """As if the time had passed for which it is out."""
    assert member.health.ejected_until > time.monotonic()
    member.health.ejected_until = time.monotonic()
    exit_group.roster.member_changed(member, time.monotonic())


def is_ejected(member: Member) -> bool:
    return member.health.is_ejected(time.monotonic())


@pytest.fixture
def echo_servers() -> Iterator[list[Address]]:
    """Three destinations: a failure at one of them alone may be its own."""
    with ExitStack() as stack:
        yield [stack.enter_context(serving(echo)) for _ in range(3)]


def assert_served(inbound: Address, *targets: Address, times: int = 1) -> None:
    """Requests succeed, one after the other, each in the time that it has."""
    for number in range(times):
        with through(inbound, targets[number % len(targets)]) as client:
            client.sendall(b"%04d" % number)
            assert read_exactly(client, 4) == b"%04d" % number


@pytest.mark.parametrize("mood", FAILURES, ids=str)
def test_the_bad_exit_goes_out_its_clients_are_served_and_it_comes_back(
    mood: Mood, echo_servers: list[Address]
) -> None:
    with Moody(mood) as bad, microsocks() as good:
        exit_group = ways_of(bad.url, f"socks5://{good}")
        first, second = exit_group.roster
        with inbound_to(exit_group) as inbound:
            assert_served(inbound, *echo_servers, times=6)
            assert is_ejected(first)
            assert not is_ejected(second)
            assert bad.asked == 3
            bad.mood = WELL
            assert_served(inbound, *echo_servers, times=3)
            assert bad.asked == 3
            its_time_is_over(exit_group, first)
            assert_served(inbound, *echo_servers, times=3)
            assert bad.asked > 3
            assert first.health.state(time.monotonic()) == "ok"


def test_an_exit_that_is_away_goes_out_and_comes_back(echo_server: Address) -> None:
    with Moody() as bad, microsocks() as good:
        exit_group = ways_of(bad.url, f"socks5://{good}")
        first, _ = exit_group.roster
        with inbound_to(exit_group) as inbound:
            assert_served(inbound, echo_server, times=2)
            bad.go()
            assert_served(inbound, echo_server, times=6)
            assert is_ejected(first)
            its_time_is_over(exit_group, first)
            assert_served(inbound, echo_server, times=2)
            assert is_ejected(first), "one more failure was one too many"
            bad.come()
            its_time_is_over(exit_group, first)
            assert_served(inbound, echo_server, times=4)
            assert not is_ejected(first)


@pytest.mark.parametrize("step", ["close", "silent"])
@pytest.mark.parametrize("sites", [1, 3])
def test_an_exit_that_lies_about_success_goes_out(
    sites: int, step: str, echo_servers: list[Address]
) -> None:
    """Its clients were told that they are connected, so no other exit can be tried for them.

    Of one site it may be the doing, so that it goes out for that alone.
    """
    with Moody(Mood("lie", step)) as bad, microsocks() as good:
        exit_group = ways_of(bad.url, f"socks5://{good}")
        first, second = exit_group.roster

        def is_out() -> bool:
            states = [state for *_, state, _ in exit_group.roster.domains.listed(time.monotonic())]
            return is_ejected(first) if sites > 1 else "ejected" in states

        lost = 0
        with inbound_to(exit_group) as inbound:
            for number in range(40):
                before = first.counts.connected
                # by turns, so that each destination is asked for by both
                with through(inbound, echo_servers[number // 2 % sites]) as client:
                    client.sendall(b"hello")
                    if first.counts.connected > before:
                        lost += 1
                    else:
                        assert read_exactly(client, 5) == b"hello"
                eventually(lambda: first.open == second.open == 0)
                if is_out():
                    break
        assert is_ejected(first) == (sites > 1)
        assert 3 <= lost <= 8


@pytest.mark.parametrize(
    ("failure", "out"), [(errors.ExitFailed("x"), True), (errors.ConnectionRefused("x"), False)]
)
def test_a_success_that_is_withdrawn_is_held_against_an_exit_that_failed_by_itself(
    failure: errors.ConnectFailed, out: bool, echo_server: Address
) -> None:
    """With fast_open the client was told before the far end has connected."""
    with (
        running_inbound(
            make_server(exit_group=ExitGroup([FakeExit("far", failure)], ALLOW_ALL))
        ) as bad,
        running_inbound(make_server()) as good,
    ):
        exit_group = ExitGroup([make_exit(bad.bound), make_exit(good.bound)], ALLOW_ALL)
        first, second = exit_group.roster
        inbound = LocalServer(("127.0.0.1", 0), exit_group, fast_open=True)
        with running_inbound(inbound):
            for _ in range(8):
                with through(inbound.bound, echo_server) as client:
                    client.sendall(b"hello")
                    client.shutdown(std_socket.SHUT_WR)
                    is_reset(client)  # or echoed, and ended
                eventually(lambda: first.open == second.open == 0)
        assert [is_ejected(member) for member in exit_group.roster] == [out, False]


def test_an_exit_that_is_killed_in_the_middle_goes_out_and_others_serve(
    echo_server: Address,
) -> None:
    def pour(sock: socket) -> None:
        while True:
            sock.sendall(bytes(65536))

    with microsocks() as dying, microsocks() as other, serving(pour) as target:
        exit_group = ways_of(f"socks5://{dying}", f"socks5://{other}")
        with inbound_to(exit_group) as inbound, through(inbound, target) as client:
            read_exactly(client, 100_000)
            send_signal(dying, signal.SIGKILL)
            is_reset(client)  # or not: the kernel of a killed program may end what it had open
            assert_served(inbound, echo_server, times=6)
        assert [is_ejected(member) for member in exit_group.roster] == [True, False]


def test_an_exit_that_cuts_an_answer_short_resets_its_client() -> None:
    with (
        serving(lambda sock: sock.sendall(bytes(100_000))) as target,
        Moody(Mood("die")) as dying,
        inbound_to(ways_of(dying.url)) as inbound,
        through(inbound, target) as client,
        pytest.raises(ConnectionResetError),
    ):
        read_to_end(client)


# --- whose fault it is ------------------------------------------------------------------------


def test_a_destination_that_swallows_everything_puts_no_exit_out(echo_server: Address) -> None:
    with ExitStack() as stack:
        proxies = [stack.enter_context(Moody()) for _ in range(3)]
        exit_group = ways_of(*[proxy.url for proxy in proxies], connect=0.1)
        blackhole = Address("192.0.2.1", 80)
        for proxy in proxies:
            proxy.blackholes.add(blackhole)
        inbound = stack.enter_context(inbound_to(exit_group))
        for outcome in gather([lambda: through(inbound, blackhole)] * 12):
            assert isinstance(outcome, Refused)
        assert not any(is_ejected(member) for member in exit_group.roster)
        assert ask_echo(inbound, echo_server, b"served") == b"served"


def test_a_destination_that_refuses_puts_no_exit_out(echo_server: Address, tmp_path: Path) -> None:
    """However the proxies tell it: as refused, as rejected or failed, as status 500."""
    with microsocks() as one, dante(tmp_path, "127.0.0.9") as two, tinyproxy(tmp_path) as three:
        exit_group = ways_of(f"socks5://{one}", f"socks4a://{two}", f"http://{three}")
        with inbound_to(exit_group) as inbound:
            for _ in range(9):
                with pytest.raises(Refused):
                    through(inbound, Address("127.0.0.1", free_port()))
        assert not any(is_ejected(member) for member in exit_group.roster)


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
        checks = CheckSettings(urls=urls, interval=0.05, timeout=1.0)
        exit_group = ways_of(f"socks5://{killed}", f"socks5://{stopped}", *others, checks=checks)
        roster = list(exit_group.roster)
        inbound = stack.enter_context(inbound_to(exit_group))
        assert_served(inbound, echo_server, times=4)
        send_signal(killed, signal.SIGKILL)
        send_signal(stopped, signal.SIGSTOP)
        eventually(
            lambda: [member.health.is_down for member in roster] == [True, True, False, False]
        )
        connected = [member.counts.connected for member in roster]
        assert_served(inbound, echo_server, times=6)
        assert [member.counts.connected for member in roster[:2]] == connected[:2]
        send_signal(stopped, signal.SIGCONT)
        stack.enter_context(microsocks(port=killed.port))
        eventually(lambda: not any(is_ejected(member) for member in roster))
        assert_served(inbound, echo_server, times=8)
        assert all(
            member.counts.connected > before
            for member, before in zip(roster, connected, strict=True)
        )


# --- many -------------------------------------------------------------------------------------


def test_of_a_thousand_exits_600_are_dead_and_99_of_100_requests_need_two_tries_at_most(
    echo_server: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead are those that refuse, those that are silent, and those that talk nonsense."""
    monkeypatch.setattr(Checks, "max_concurrent", 64)  # all of the silent ones at once

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
        # if the machine stalls for the time of a check, the next one finds what this one missed
        checks = CheckSettings(urls=urls, interval=20.0, timeout=3.0)
        exit_group = ways_of(*exits, connect=8.0, checks=checks)

        def ask() -> tuple[int, bool]:
            tried: list[str] = []
            try:
                way = exit_group.connect(Request(Command.CONNECT, echo_server), tried.append)
            except ConnectFailed:
                return len(tried), False
            way.stream.abort()
            way.release()
            return len(tried), True

        before = gather([ask] * 50)
        assert any(tries > 2 for tries, _ in before)
        exit_group.start()
        stack.callback(exit_group.close)
        dead = [
            member for member, kind in zip(exit_group.roster, kinds, strict=True) if kind != "alive"
        ]
        eventually(lambda: all(member.health.is_down for member in dead), within=TOO_LONG)
        after = [outcome for _ in range(25) for outcome in gather([ask] * 20)]
        assert sum(served and tries <= 2 for tries, served in after) >= 495


# --- lists ------------------------------------------------------------------------------------


def test_all_exits_cannot_be_taken_away_and_those_of_before_serve_on(echo_server: Address) -> None:
    with microsocks() as proxy:
        exit_group = ways_of(f"socks5://{proxy}")
        with inbound_to(exit_group) as inbound:
            with pytest.raises(ConfigError, match="no exits: at least one is needed"):
                exit_group.update([])
            assert_served(inbound, echo_server)
