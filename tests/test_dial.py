"""Dialer: from a destination to a connected socket; loopback only."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket as std_socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks import errors
from gsocks.access.rules import ALLOW_ALL, DEFAULT_RULES, Rules
from gsocks.address import Address
from gsocks.net.dial import Dialer, _interleave
from gsocks.net.resolve import Resolver
from gsocks.sock import Socket
from tests.support import needs
from tests.support.names import NO_SUCH_NAME, Clock, Names, NamesBy, ips, nothing_left


@pytest.fixture(scope="module", autouse=True)
def hub() -> None:
    """The hub and its threads exist before anything is counted."""
    gevent.get_hub()


@contextmanager
def listening(*hosts: str, silent: Sequence[str] = ()) -> Iterator[int]:
    """Listeners on one port of several addresses; gives the port.

    The queues of those at ``silent`` addresses are full: the kernel drops every SYN.
    """
    for _ in range(100):
        with ExitStack() as opened:
            try:
                port = _listen_at(hosts, silent, opened)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue  # others have that port at one of the addresses
            yield port
            return
    pytest.fail("no port is free at all of the addresses")


def _listen_at(hosts: Sequence[str], silent: Sequence[str], opened: ExitStack) -> int:
    port = 0
    for host in (*hosts, *silent):
        family = std_socket.AF_INET6 if ":" in host else std_socket.AF_INET
        listener = opened.enter_context(std_socket.socket(family))
        listener.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0 if host in silent else 8)
        port = listener.getsockname()[1]
        if host in silent:
            filler = opened.enter_context(std_socket.socket(family))
            filler.connect(listener.getsockname())
    return port


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, so that no other process gets it, and not listening."""
    with std_socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def dialer(
    *addresses: str,
    rules: Rules = ALLOW_ALL,
    timeout: float = 5.0,
    delay: float | None = None,
    **options: Any,
) -> Dialer:
    """A dialer for which host.example has the given addresses."""
    made: type[Dialer] = Dialer
    if delay is not None:
        made = type("Quick", (Dialer,), {"attempt_delay": delay})
    return made(rules, Resolver(Names(host_example=addresses)), timeout=timeout, **options)


def host(port: int) -> Address:
    return Address("host.example", port)


class Begun:
    """A ``source`` that sets an event when that many attempts have begun."""

    def __init__(self, attempts: int) -> None:
        self._missing = attempts
        self.all = Event()

    def __call__(self, family: int) -> Any:
        self._missing -= 1
        if not self._missing:
            self.all.set()


# --- connecting -----------------------------------------------------------------------------


@pytest.mark.parametrize("literal", ["127.0.0.1", "127.0.0.5", "::1"])
def test_an_address_is_connected_to_and_the_socket_tuned(literal: str) -> None:
    with listening(literal) as port, nothing_left():
        with Dialer(ALLOW_ALL, Resolver(Names())).connect(Address(literal, port)) as sock:
            assert sock.getpeername()[:2] == (literal, port)
            assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY)
            assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE)
        del sock


def test_the_socket_carries_bytes_both_ways() -> None:
    with socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with dialer("127.0.0.1").connect(host(port)) as near, listener.accept()[0] as far:
            near.sendall(b"ping")
            assert far.recv(10) == b"ping"
            far.sendall(b"pong")
            assert near.recv(10) == b"pong"


def test_localhost_is_connected_to_by_the_systems_resolver() -> None:
    with (
        listening("127.0.0.1", "::1") as port,
        Dialer(ALLOW_ALL, Resolver()).connect(Address("localhost", port)) as sock,
    ):
        assert sock.getpeername()[1] == port


def test_a_refused_connection_raises_connection_refused(closed_port: int) -> None:
    with nothing_left(), pytest.raises(errors.ConnectionRefused):
        dialer("127.0.0.1").connect(host(closed_port))


def test_silence_raises_connect_timeout_after_the_timeout() -> None:
    timed_out = pytest.raises(errors.ConnectTimeout, match=r"host.example:\d+: .* 0.05 s")
    with listening(silent=["127.0.0.1"]) as port, nothing_left(), timed_out:
        dialer("127.0.0.1", timeout=0.05).connect(host(port))


def test_name_and_connection_share_one_timeout() -> None:
    names = Names(host_example=["127.0.0.1"])
    names.go_on.clear()
    with nothing_left():
        with pytest.raises(errors.ConnectTimeout):
            Dialer(ALLOW_ALL, Resolver(names), timeout=0.02).connect(host(80))
        names.go_on.set()
        gevent.idle()


def test_a_name_that_is_not_found_raises_name_not_found() -> None:
    with pytest.raises(errors.NameNotFound):
        Dialer(ALLOW_ALL, Resolver(Names(host_example=NO_SUCH_NAME))).connect(host(80))


def test_port_0_is_refused_before_anything_else() -> None:
    names = Names()
    with pytest.raises(errors.ConnectFailed, match="port 0"):
        Dialer(ALLOW_ALL, Resolver(names)).connect(host(0))
    assert names.queried == []


def test_running_out_of_descriptors_raises_out_of_resources() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening("127.0.0.1") as port, nothing_left():
        next_descriptor = os.dup(0)
        os.close(next_descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor, limits[1]))
        try:
            with pytest.raises(errors.OutOfResources):
                dialer("127.0.0.1").connect(host(port))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


#: run in a network namespace with two local ports; 2001:db8:: is routed, and has no source address
IN_A_NAMESPACE = """
import errno, socket, subprocess, sys
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import GsocksError
from gsocks.net.dial import Dialer
from gsocks.net.resolve import Resolver
from gsocks.sock import Socket

subprocess.run(
    "ip link set lo up && sysctl -qw net.ipv4.ip_local_port_range='50000 50001'"
    " && ip -6 route add 2001:db8::/32 dev lo", shell=True, check=True)
dialer = Dialer(ALLOW_ALL, Resolver())
servers = [socket.create_server((h, 20001), family=f) for h, f in (
    ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))]
held = []
def connect(host):
    try:
        held.append(dialer.connect(Address(host, 20001)))
        return "ok"
    except GsocksError as error:
        return error.word
for host in ("127.0.0.1", "::1"):
    print(*[connect(host) for _ in range(3)])
subprocess.run("ip -6 address delete ::1/128 dev lo", shell=True, check=True)
print(connect("2001:db8::1"))
for sock in held + servers:
    sock.close()
"""


def test_running_out_of_local_ports_raises_out_of_resources() -> None:
    needs.root()
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", IN_A_NAMESPACE],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "ok ok out_of_resources",
        "ok ok out_of_resources",
        "network_unreachable",
    ]


# --- rules ----------------------------------------------------------------------------------


def test_a_denied_name_is_not_looked_up() -> None:
    names = Names()
    denying = Dialer(Rules.parse(["deny *.example", "allow all"]), Resolver(names))
    with pytest.raises(errors.Forbidden, match=r"host.example:80 .*rule 'deny \*.example'"):
        denying.connect(host(80))
    assert names.queried == []


def test_a_denied_address_is_not_connected_to() -> None:
    with listening("127.0.0.1") as port:
        for text in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"):
            with pytest.raises(errors.Forbidden, match="rule 'deny private'"):
                dialer(rules=DEFAULT_RULES).connect(Address(text, port))
            with pytest.raises(errors.Forbidden, match="rule 'deny private'"):
                dialer(text, rules=DEFAULT_RULES).connect(host(port))


def corp(*rules: str) -> tuple[Dialer, Names]:
    """A dialer whose names without a dot are completed by corp.example."""
    names = Names(nas_corp_example=["127.0.0.2"], www_corp_example=[], www=["127.0.0.3"])
    names.search = ("corp.example",)
    return Dialer(Rules.parse([*rules, "allow all"]), Resolver(names)), names


def test_a_search_domain_leads_around_no_rule() -> None:
    made, names = corp("deny *.corp.example")
    with pytest.raises(errors.Denied, match=r"nas.corp.example:80 is forbidden: rule 'deny \*"):
        made.allowed_addresses(Address("nas", 80))
    assert names.queried == []


@pytest.mark.parametrize("rule", ["deny nas", "deny 127.0.0.2", "deny loopback"])
def test_what_is_denied_stays_so_whatever_a_search_domain_makes_of_it(rule: str) -> None:
    with pytest.raises(errors.Denied, match="rule 'deny"):
        corp(rule)[0].allowed_addresses(Address("nas", 80))


def test_the_first_name_that_there_is_counts() -> None:
    made, names = corp()
    assert made.allowed_addresses(Address("nas", 80)) == ips("127.0.0.2")
    assert made.allowed_addresses(Address("www", 80)) == ips("127.0.0.3")
    assert names.queried == ["nas.corp.example", "www.corp.example", "www"]


def test_of_several_addresses_only_the_allowed_are_tried() -> None:
    rules = Rules.parse(["deny ::1", "deny 127.0.0.2", "allow all"])
    with listening("::1", "127.0.0.2", "127.0.0.3") as port:
        made = dialer("::1", "127.0.0.2", "127.0.0.3", rules=rules)
        assert made.allowed_addresses(host(port)) == ips("127.0.0.3")
        with made.connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.3"


def test_a_name_is_looked_up_to_an_allowed_address_of_ipv4_if_there_is_one() -> None:
    names = Names(host_example=["2001:db8::1", "127.0.0.1", "192.0.2.7"], six=["2001:db8::1"])
    dialer = Dialer(Rules.parse(["deny loopback", "allow all:443"]), Resolver(names))
    assert [str(dialer.look_up(name)) for name in ("host.example", "six", "192.0.2.8")] == [
        "192.0.2.7",
        "2001:db8::1",
        "192.0.2.8",
    ]


@pytest.mark.parametrize("host", ["inner.example", "host.example", "127.0.0.1", "localhost"])
def test_what_the_rules_deny_is_not_looked_up(host: str) -> None:
    names = Names(host_example=["127.0.0.1"])
    dialer = Dialer(
        Rules.parse(["deny inner.example", "deny loopback", "allow all"]), Resolver(names)
    )
    with pytest.raises(errors.Denied, match=f"^{host} is forbidden: rule 'deny "):
        dialer.look_up(host)
    assert set(names.queried) <= {"host.example"}


def test_the_name_of_an_address_is_looked_up_if_the_rules_allow_that() -> None:
    names = Names()
    names.answers["192.0.2.7"] = ["host.example"]
    dialer = Dialer(Rules.parse(["deny 10.0.0.0/8", "allow all user alice"]), Resolver(names))
    assert dialer.reverse(ip_address("192.0.2.7"), user="alice") == "host.example"
    for address, user in (("10.0.0.1", "alice"), ("192.0.2.7", "bob")):
        with pytest.raises(errors.Denied, match=f"^{address} is forbidden"):
            dialer.reverse(ip_address(address), user=user)
    assert names.queried == ["192.0.2.7"]


def test_rules_may_depend_on_the_user() -> None:
    rules = Rules.parse(["allow loopback user alice"])
    with listening("127.0.0.1") as port:
        dialer("127.0.0.1", rules=rules).connect(host(port), "alice").close()
        for user in ("bob", None):
            with pytest.raises(errors.Forbidden, match="no rule allows it"):
                dialer("127.0.0.1", rules=rules).connect(host(port), user)


def test_an_address_that_changes_between_rules_and_connect_is_not_followed() -> None:
    answers = iter([["127.0.0.2"], ["127.0.0.3"]])
    rules = Rules.parse(["allow 127.0.0.2"])
    with listening("127.0.0.2", "127.0.0.3") as port:
        clock = Clock()
        rebinding = Dialer(rules, Resolver(NamesBy(lambda _: next(answers)), now=clock))
        with rebinding.connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"
        clock.seconds += 60
        with pytest.raises(errors.Forbidden):
            rebinding.connect(host(port))


# --- racing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "first", "expected"),
    [
        ("1.1.1.1 2.2.2.2", 6, "1.1.1.1 2.2.2.2"),
        ("1.1.1.1 2.2.2.2 ::1 ::2 ::3", 6, "::1 1.1.1.1 ::2 2.2.2.2 ::3"),
        ("1.1.1.1 2.2.2.2 ::1 ::2 ::3", 4, "1.1.1.1 ::1 2.2.2.2 ::2 ::3"),
        ("::2 1.1.1.1 2.2.2.2 ::1", 6, "::2 1.1.1.1 ::1 2.2.2.2"),
    ],
)
def test_families_take_turns(addresses: str, first: int, expected: str) -> None:
    assert _interleave(ips(*addresses.split()), first) == list(ips(*expected.split()))


@pytest.mark.parametrize(
    ("options", "family"),
    [({}, std_socket.AF_INET6), ({"prefer": 4}, std_socket.AF_INET)],
    ids=["default", "prefer IPv4"],
)
def test_ipv6_is_tried_first_unless_ipv4_is_preferred(options: dict[str, Any], family: int) -> None:
    """RFC 8305 section 4."""
    tried: list[int] = []
    with listening("127.0.0.1", "::1") as port:
        made = dialer("127.0.0.1", "::1", delay=3600, source=tried.append, **options)
        made.connect(host(port)).close()
    assert tried == [family]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every socket that a dialer opens, so that none is closed by the garbage collector."""
    sockets: list[Socket] = []

    def open_socket(family: int) -> Socket:
        sockets.append(Socket(family))
        return sockets[-1]

    monkeypatch.setattr("gsocks.net.dial.Socket", open_socket)
    yield sockets
    for each in sockets:
        each.close()


def test_the_losers_of_a_race_are_closed(opened: list[Any]) -> None:
    """127.0.0.2 and 127.0.0.3 are silent, 127.0.0.9 refuses."""
    with listening("127.0.0.4", silent=["127.0.0.2", "127.0.0.3"]) as port:
        made = dialer("127.0.0.2", "127.0.0.3", "127.0.0.9", "127.0.0.4", delay=0.01)
        winner = made.connect(host(port))
        assert [sock.fileno() < 0 for sock in opened] == [True, True, True, False]
        assert opened[-1] is winner


def test_a_race_without_a_winner_closes_every_socket(opened: list[Any]) -> None:
    with listening(silent=["127.0.0.2", "127.0.0.3"]) as port:
        made = dialer("127.0.0.2", "127.0.0.3", "127.0.0.9", delay=0.01, timeout=1.0)
        with pytest.raises(errors.ConnectionRefused):
            made.connect(host(port))
    assert [sock.fileno() < 0 for sock in opened] == [True, True, True]


def test_a_silent_address_loses_to_the_next_after_the_attempt_delay() -> None:
    with listening("127.0.0.3", silent=["127.0.0.2"]) as port, nothing_left():
        begun = time.monotonic()
        with dialer("127.0.0.2", "127.0.0.3", delay=0.05).connect(host(port)) as sock:
            took = time.monotonic() - begun
            assert sock.getpeername()[0] == "127.0.0.3"
        del sock
    assert took > 0.04


def test_a_silent_ipv6_loses_to_ipv4() -> None:
    with listening("127.0.0.1", silent=["::1"]) as port, nothing_left():
        with dialer("127.0.0.1", "::1", delay=0.02).connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        del sock


def test_an_earlier_attempt_may_win_after_a_later_one_has_failed() -> None:
    """::1 is silent until its listener takes what fills its queue; 127.0.0.2 refuses."""
    with std_socket.socket(std_socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        filler = std_socket.create_connection(("::1", port))
        both = Begun(2)
        made = dialer("::1", "127.0.0.2", delay=0.01, source=both)
        winner = gevent.spawn(made.connect, host(port))
        both.all.wait()
        gevent.idle()
        assert not winner.ready()
        listener.accept()[0].close()
        filler.close()
        with winner.get() as sock:
            assert sock.getpeername()[0] == "::1"


@pytest.mark.parametrize("lost", ["127.0.0.2", "ff02::1", "224.0.0.1"])
def test_after_a_failure_the_next_address_is_tried_at_once(lost: str) -> None:
    """127.0.0.2 refuses; the multicast addresses fail inside connect, as IPv6 does without it."""
    with listening("127.0.0.3") as port, nothing_left():
        with dialer(lost, "127.0.0.3", delay=3600).connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.3"
        del sock


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["224.0.0.1", "127.0.0.9"], errors.ConnectionRefused),
        (["127.0.0.9", "224.0.0.1"], errors.ConnectionRefused),
        (["127.0.0.9", "127.0.0.2"], errors.ConnectionRefused),
        (["224.0.0.1", "127.0.0.2"], errors.ConnectTimeout),
        (["224.0.0.1", "ff02::1"], errors.NetworkUnreachable),
    ],
)
def test_when_all_addresses_fail_the_most_telling_failure_is_raised(
    addresses: list[str], expected: Any
) -> None:
    """127.0.0.9 refuses, 127.0.0.2 is silent, 224.0.0.1 and ff02::1 can't be reached."""
    with listening(silent=["127.0.0.2"]) as port, nothing_left(), pytest.raises(expected):
        dialer(*addresses, timeout=0.1, delay=0.01).connect(host(port))


def test_no_more_than_max_addresses_of_a_name_are_tried() -> None:
    tried: list[int] = []

    class Short(Dialer):
        max_addresses = 3

    names = Names(host_example=[f"127.0.0.{n}" for n in range(2, 99)])
    with listening(silent=["127.0.0.1"]) as port, pytest.raises(errors.ConnectionRefused):
        Short(ALLOW_ALL, Resolver(names), source=tried.append).connect(host(port))
    assert len(tried) == 3


# --- the source address ---------------------------------------------------------------------


def test_a_connection_comes_from_the_given_source_address() -> None:
    sources = {std_socket.AF_INET: ("127.0.0.77", 0), std_socket.AF_INET6: ("::1", 0)}
    with listening("127.0.0.1", "::1") as port:
        for text, expected in [("127.0.0.1", "127.0.0.77"), ("::1", "::1")]:
            with dialer(text, source=sources.get).connect(host(port)) as sock:
                assert sock.getsockname()[0] == expected
                # bound late, or one source would have 28,000 ports for all destinations together
                assert sock.getsockopt(std_socket.IPPROTO_IP, 24) == 1


def test_a_source_address_that_this_machine_lacks_fails_its_family_only() -> None:
    sources = {std_socket.AF_INET6: ("2001:db8::1", 0)}
    with listening("127.0.0.1", "::1") as port, nothing_left():
        made = dialer("::1", "127.0.0.1", delay=3600, source=sources.get)
        with made.connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        del sock


def test_a_source_may_decline_a_family() -> None:
    def only_ipv4(family: int) -> tuple[str, int] | None:
        if family == std_socket.AF_INET6:
            raise errors.AddressFamilyNotSupported("no IPv6 source")
        return None

    with listening("127.0.0.1", "::1") as port, nothing_left():
        with dialer("::1", "127.0.0.1", source=only_ipv4).connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        del sock
        with pytest.raises(errors.AddressFamilyNotSupported):
            dialer("::1", source=only_ipv4).connect(host(port))


# --- no socket and no greenlet is left --------------------------------------------------------


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3", "::1"]])
def test_a_race_that_is_killed_leaves_nothing_open(addresses: list[str]) -> None:
    with listening(silent=["127.0.0.2", "127.0.0.3", "::1"]) as port, nothing_left():
        begun = Begun(len(addresses))
        caller = gevent.spawn(dialer(*addresses, delay=0.001, source=begun).connect, host(port))
        begun.all.wait()
        caller.kill()
        assert isinstance(caller.value, gevent.GreenletExit)
        del caller


def test_a_timeout_of_the_caller_passes_through_and_leaves_nothing_open() -> None:
    with listening(silent=["127.0.0.2", "127.0.0.3"]) as port, nothing_left():
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as outer:
            dialer("127.0.0.2", "127.0.0.3", delay=0.001).connect(host(port))
        assert caught.value is outer
        del caught, outer


def test_a_caller_killed_while_resolving_leaves_the_look_up_running() -> None:
    names = Names(host_example=["127.0.0.1"])
    names.go_on.clear()
    with listening("127.0.0.1") as port, nothing_left():
        made = Dialer(ALLOW_ALL, Resolver(names))
        first = gevent.spawn(made.connect, host(port))
        second = gevent.spawn(made.connect, host(port))
        names.querying.wait()
        first.kill()
        names.go_on.set()
        second.get().close()
        del first, second
    assert names.queried == ["host.example"]


@pytest.mark.parametrize("timeout", [5.0, 0.01])
def test_a_failed_connect_leaves_no_cycle_for_the_collector(
    timeout: float, closed_port: int
) -> None:
    """5 s for a refusal, 0.01 s for silence."""

    def fail(port: int) -> weakref.ref[errors.ConnectFailed]:
        try:
            dialer("127.0.0.1", timeout=timeout).connect(host(port))
        except errors.ConnectFailed as error:
            return weakref.ref(error)
        raise AssertionError("it has connected")

    gc.disable()
    try:
        with listening(silent=["127.0.0.1"]) as silent_port:
            assert fail(closed_port if timeout > 1 else silent_port)() is None
    finally:
        gc.enable()
