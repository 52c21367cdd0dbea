"""Names to addresses, and addresses to connected sockets; loopback only."""

from __future__ import annotations

import gc
import ipaddress
import os
import resource
import socket as std_socket
import time
import weakref
from contextlib import contextmanager

import gevent
import greenlet
import pytest
from gevent.event import Event
from gevent.socket import socket

from gsocks import errors
from gsocks.address import Address
from gsocks.dial import Dialer, Resolver, _interleave, system_lookup
from gsocks.rules import ALLOW_ALL, DEFAULT_RULES, Rules


def ips(*texts):
    return tuple(ipaddress.ip_address(text) for text in texts)


class Names:
    """A look-up that answers from a table, counts, and waits while it is told to."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked = []
        self.asking = Event()
        self.go_on = Event()
        self.go_on.set()

    def __call__(self, host):
        self.asked.append(host)
        self.asking.set()
        self.go_on.wait()
        answer = self.answers[host]
        if isinstance(answer, OSError):
            raise answer
        return answer


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


NO_SUCH_NAME = std_socket.gaierror(std_socket.EAI_NONAME, "Name or service not known")


@pytest.fixture(scope="module", autouse=True)
def hub():
    """The hub and its threads exist before anything is counted."""
    system_lookup("localhost")


@contextmanager
def nothing_left():
    """What happens inside leaves no descriptor and no greenlet."""

    def descriptors():
        return sorted(os.listdir("/proc/self/fd"))

    def greenlets():
        gc.collect()
        return {
            id(thing)
            for thing in gc.get_objects()
            if isinstance(thing, greenlet.greenlet) and not thing.dead
        }

    before = descriptors(), greenlets()
    yield
    # less than before is what an earlier test's end has still been busy with
    assert set(descriptors()) <= set(before[0])
    assert greenlets() <= before[1]


@contextmanager
def listening(*hosts):
    """Listeners on one port of several addresses; gives the port."""
    opened = []
    try:
        port = 0
        for host in hosts:
            family = std_socket.AF_INET6 if ":" in host else std_socket.AF_INET
            sock = socket(family, std_socket.SOCK_STREAM)
            opened.append(sock)
            sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(8)
            port = sock.getsockname()[1]
        yield port
    finally:
        for sock in opened:
            sock.close()


@contextmanager
def silent(host, port=0):
    """A listener whose queue is full, so that the kernel drops whatever comes; gives the port."""
    family = std_socket.AF_INET6 if ":" in host else std_socket.AF_INET
    with (
        std_socket.socket(family) as listener,
        std_socket.socket(family) as filler,
    ):
        listener.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port():
    """A port that is bound, so that nobody else gets it, and not listened to."""
    with std_socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def dialer(*addresses, rules=ALLOW_ALL, timeout=5.0, delay=None, **options):
    """A dialer to whom host.example has the given addresses."""
    made = Dialer if delay is None else type("Quick", (Dialer,), {"ATTEMPT_DELAY": delay})
    return made(rules, Resolver(Names(host_example=addresses)), timeout=timeout, **options)


def host(port):
    return Address("host.example", port)


class Begun:
    """A source that tells when so many attempts have begun."""

    def __init__(self, attempts):
        self._missing = attempts
        self.all = Event()

    def __call__(self, family):
        self._missing -= 1
        if not self._missing:
            self.all.set()


# --- the resolver ---------------------------------------------------------------------------


def test_a_name_gives_its_addresses_in_their_order_and_each_once():
    names = Names(a_example=["127.0.0.2", "::1", "127.0.0.1", "::1", "::ffff:127.0.0.2"])
    assert Resolver(names).resolve("a.example") == ips("127.0.0.2", "::1", "127.0.0.1")


def test_a_zone_in_the_systems_answer_is_left_out():
    assert Resolver(Names(a_example=["fe80::1%lo"])).resolve("a.example") == ips("fe80::1")


@pytest.mark.parametrize("literal", ["127.0.0.1", "::1", "2001:db8::1"])
def test_an_address_is_never_looked_up(literal):
    names = Names()
    assert Resolver(names).resolve(literal) == ips(literal)
    assert names.asked == []


def test_the_system_resolves_localhost():
    found = Resolver().resolve("localhost")
    assert set(found) <= set(ips("127.0.0.1", "::1"))
    with open("/etc/hosts") as hosts:
        entries = [line.split() for line in hosts if line.strip() and line[0] != "#"]
    wanted = {words[0] for words in entries if "localhost" in words[1:]}
    assert set(ips(*wanted)) <= set(found)


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example", "\udc80.example"])
def test_a_name_that_the_dns_cant_have_is_not_found_and_not_looked_up(name, capfd):
    resolver = Resolver()
    with pytest.raises(errors.NameNotFound):
        resolver.resolve(name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NO_SUCH_NAME, errors.NameNotFound),
        (std_socket.gaierror(-5, "No address associated with hostname"), errors.NameNotFound),
        (std_socket.gaierror(std_socket.EAI_AGAIN, "Temporary failure"), errors.HostUnreachable),
        (std_socket.gaierror(std_socket.EAI_FAIL, "Non-recoverable"), errors.HostUnreachable),
        (std_socket.gaierror(std_socket.EAI_MEMORY, "Out of memory"), errors.OutOfResources),
        (OSError(24, "Too many open files"), errors.OutOfResources),
        ([], errors.NameNotFound),
    ],
)
def test_a_failed_look_up_is_told_as_one_of_ours(failure, expected):
    with pytest.raises(errors.ConnectFailed, match=r"a\.example: ") as caught:
        Resolver(Names(a_example=failure)).resolve("a.example")
    assert type(caught.value) is expected


def test_addresses_are_kept_for_a_minute():
    names, clock = Names(a_example=["127.0.0.1"]), Clock()
    resolver = Resolver(names, now=clock)
    assert resolver.resolve("a.example") == ips("127.0.0.1")
    names.answers["a.example"] = ["127.0.0.2"]
    clock.seconds += 59.9
    assert resolver.resolve("a.example") == ips("127.0.0.1")
    clock.seconds += 0.1
    assert resolver.resolve("a.example") == ips("127.0.0.2")
    assert len(names.asked) == 2


def test_a_missing_name_is_kept_for_five_seconds():
    names, clock = Names(a_example=NO_SUCH_NAME), Clock()
    resolver = Resolver(names, now=clock)
    for _ in range(3):
        with pytest.raises(errors.NameNotFound):
            resolver.resolve("a.example")
    assert len(names.asked) == 1
    names.answers["a.example"] = ["127.0.0.1"]
    clock.seconds += 5
    assert resolver.resolve("a.example") == ips("127.0.0.1")


def test_a_silent_name_server_is_asked_again_at_once():
    names = Names(a_example=std_socket.gaierror(std_socket.EAI_AGAIN, "Temporary failure"))
    resolver = Resolver(names)
    with pytest.raises(errors.HostUnreachable):
        resolver.resolve("a.example")
    names.answers["a.example"] = ["127.0.0.1"]
    assert resolver.resolve("a.example") == ips("127.0.0.1")


def test_the_least_recently_used_name_leaves_a_full_cache():
    class Small(Resolver):
        MAX_NAMES = 2

    names = Names(a=["127.0.0.1"], b=["127.0.0.2"], c=["127.0.0.3"])
    resolver = Small(names)
    for name in ("a", "b", "a", "c"):
        resolver.resolve(name)
    assert names.asked == ["a", "b", "c"]
    resolver.resolve("a")
    assert names.asked == ["a", "b", "c"]
    resolver.resolve("b")
    assert names.asked == ["a", "b", "c", "b"]


def test_those_who_ask_for_one_name_at_once_share_one_look_up():
    names = Names(a_example=["127.0.0.1"])
    names.go_on.clear()
    resolver = Resolver(names)
    askers = [gevent.spawn(resolver.resolve, "a.example") for _ in range(10)]
    names.asking.wait()
    names.go_on.set()
    assert [asker.get() for asker in askers] == [ips("127.0.0.1")] * 10
    assert names.asked == ["a.example"]


def test_those_who_share_a_failed_look_up_get_an_error_each():
    names = Names(a_example=NO_SUCH_NAME)
    resolver = Resolver(names)
    askers = [gevent.spawn(resolver.resolve, "a.example") for _ in range(3)]
    gevent.joinall(askers)
    assert [type(asker.exception) for asker in askers] == [errors.NameNotFound] * 3
    assert len({id(asker.exception) for asker in askers}) == 3
    assert names.asked == ["a.example"]


def test_an_asker_who_leaves_takes_the_look_up_from_nobody():
    names = Names(a_example=["127.0.0.1"])
    names.go_on.clear()
    resolver = Resolver(names)
    with nothing_left():
        first = gevent.spawn(resolver.resolve, "a.example")
        second = gevent.spawn(resolver.resolve, "a.example")
        names.asking.wait()
        first.kill()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            resolver.resolve("a.example")
        names.go_on.set()
        assert second.get() == ips("127.0.0.1")
        assert resolver.resolve("a.example") == ips("127.0.0.1")
        del first, second
    assert names.asked == ["a.example"]


def test_no_more_than_a_bounded_number_of_names_is_looked_up_at_once():
    class Small(Resolver):
        MAX_LOOKUPS = 2

    names = Names(a=["127.0.0.1"], b=["127.0.0.2"], c=["127.0.0.3"])
    names.go_on.clear()
    resolver = Small(names)
    askers = [gevent.spawn(resolver.resolve, name) for name in ("a", "b", "a")]
    names.asking.wait()
    with pytest.raises(errors.LimitReached):
        resolver.resolve("c")
    names.go_on.set()
    assert [asker.get() for asker in askers] == [ips(f"127.0.0.{n}") for n in (1, 2, 1)]
    assert resolver.resolve("c") == ips("127.0.0.3")


# --- connecting -----------------------------------------------------------------------------


@pytest.mark.parametrize("literal", ["127.0.0.1", "127.0.0.5", "::1"])
def test_an_address_is_connected_to_and_the_socket_tuned(literal):
    with listening(literal) as port, nothing_left():
        with Dialer(ALLOW_ALL, Resolver(Names())).connect(Address(literal, port)) as sock:
            assert sock.getpeername()[:2] == (literal, port)
            assert sock.gettimeout() is None
            assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY)
            assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE)
        del sock


def test_the_socket_carries_bytes_both_ways():
    with socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with dialer("127.0.0.1").connect(host(port)) as near, listener.accept()[0] as far:
            near.sendall(b"ping")
            assert far.recv(10) == b"ping"
            far.sendall(b"pong")
            assert near.recv(10) == b"pong"


def test_localhost_is_connected_to_by_the_systems_resolver():
    with (
        listening("127.0.0.1", "::1") as port,
        Dialer(ALLOW_ALL, Resolver()).connect(Address("localhost", port)) as sock,
    ):
        assert sock.getpeername()[1] == port


def test_refused_is_told_as_refused(closed_port):
    with nothing_left(), pytest.raises(errors.ConnectionRefused):
        dialer("127.0.0.1").connect(host(closed_port))


def test_silence_is_told_after_the_timeout():
    told = pytest.raises(errors.ConnectTimeout, match=r"host.example:\d+: .* 0.05 s")
    with silent("127.0.0.1") as port, nothing_left(), told:
        dialer("127.0.0.1", timeout=0.05).connect(host(port))


def test_name_and_connection_share_one_timeout():
    names = Names(host_example=["127.0.0.1"])
    names.go_on.clear()
    with nothing_left():
        with pytest.raises(errors.ConnectTimeout):
            Dialer(ALLOW_ALL, Resolver(names), timeout=0.02).connect(host(80))
        names.go_on.set()
        gevent.idle()


def test_a_name_that_is_not_found_is_told_so():
    with pytest.raises(errors.NameNotFound):
        Dialer(ALLOW_ALL, Resolver(Names(host_example=NO_SUCH_NAME))).connect(host(80))


def test_port_0_is_refused_before_anything_else():
    names = Names()
    with pytest.raises(errors.ConnectFailed, match="port 0"):
        Dialer(ALLOW_ALL, Resolver(names)).connect(host(0))
    assert names.asked == []


def test_no_descriptor_left_is_told_as_that():
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


# --- rules ----------------------------------------------------------------------------------


def test_a_denied_name_is_not_looked_up():
    names = Names()
    denying = Dialer(Rules.parse(["deny *.example", "allow all"]), Resolver(names))
    with pytest.raises(errors.Forbidden, match=r"host.example:80 .*rule 'deny \*.example'"):
        denying.connect(host(80))
    assert names.asked == []


def test_a_denied_address_is_not_connected_to():
    with listening("127.0.0.1") as port:
        for text in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"):
            with pytest.raises(errors.Forbidden, match="rule 'deny private'"):
                dialer(rules=DEFAULT_RULES).connect(Address(text, port))
            with pytest.raises(errors.Forbidden, match="rule 'deny private'"):
                dialer(text, rules=DEFAULT_RULES).connect(host(port))


@pytest.mark.parametrize("spelling", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1"])
def test_an_address_in_an_old_spelling_is_still_denied(spelling):
    """Address.of refuses these; should one come past it, the resolver would read it."""
    with pytest.raises(errors.Forbidden):
        Dialer(DEFAULT_RULES, Resolver()).connect(Address(spelling, 80))


def test_of_several_addresses_only_the_allowed_are_tried():
    rules = Rules.parse(["deny ::1", "deny 127.0.0.2", "allow all"])
    with listening("::1", "127.0.0.2", "127.0.0.3") as port:
        made = dialer("::1", "127.0.0.2", "127.0.0.3", rules=rules)
        assert made.allowed_addresses(host(port)) == list(ips("127.0.0.3"))
        with made.connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.3"


def test_rules_may_depend_on_the_user():
    rules = Rules.parse(["allow loopback user alice"])
    with listening("127.0.0.1") as port:
        dialer("127.0.0.1", rules=rules).connect(host(port), "alice").close()
        for user in ("bob", None):
            with pytest.raises(errors.Forbidden, match="no rule allows it"):
                dialer("127.0.0.1", rules=rules).connect(host(port), user)


def test_an_address_that_changes_between_rules_and_connect_is_not_followed():
    answers = iter([["127.0.0.2"], ["127.0.0.3"]])
    rules = Rules.parse(["allow 127.0.0.2"])
    with listening("127.0.0.2", "127.0.0.3") as port:
        clock = Clock()
        rebinding = Dialer(rules, Resolver(lambda _: next(answers), now=clock))
        with rebinding.connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"
        clock.seconds += Resolver.POSITIVE_SECONDS
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
def test_families_take_turns(addresses, first, expected):
    assert _interleave(ips(*addresses.split()), first) == list(ips(*expected.split()))


@pytest.mark.parametrize(("prefer", "expected"), [(6, "::1"), (4, "127.0.0.1")])
def test_the_preferred_family_is_tried_first(prefer, expected):
    with (
        listening("127.0.0.1", "::1") as port,
        dialer("127.0.0.1", "::1", prefer=prefer).connect(host(port)) as sock,
    ):
        assert sock.getpeername()[0] == expected


def test_a_silent_address_loses_to_the_next_after_the_attempt_delay():
    with listening("127.0.0.3") as port, silent("127.0.0.2", port), nothing_left():
        begun = time.monotonic()
        with dialer("127.0.0.2", "127.0.0.3", delay=0.05).connect(host(port)) as sock:
            took = time.monotonic() - begun
            assert sock.getpeername()[0] == "127.0.0.3"
        del sock
    assert 0.04 < took < 0.9  # below a second: no SYN was sent twice


def test_a_silent_ipv6_loses_to_ipv4():
    with listening("127.0.0.1") as port, silent("::1", port), nothing_left():
        with dialer("127.0.0.1", "::1", delay=0.02).connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        del sock


def test_an_earlier_attempt_may_win_after_a_later_one_has_failed():
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
def test_after_a_failure_the_next_address_is_tried_at_once(lost):
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
def test_when_all_fail_the_most_telling_failure_is_told(addresses, expected):
    """127.0.0.9 refuses, 127.0.0.2 is silent, 224.0.0.1 and ff02::1 can't be reached."""
    with silent("127.0.0.2") as port, nothing_left(), pytest.raises(expected):
        dialer(*addresses, timeout=0.1, delay=0.01).connect(host(port))


def test_of_the_addresses_of_a_name_only_so_many_are_tried():
    tried = []

    class Short(Dialer):
        MAX_ADDRESSES = 3

    names = Names(host_example=[f"127.0.0.{n}" for n in range(2, 99)])
    with silent("127.0.0.1") as port, pytest.raises(errors.ConnectionRefused):
        Short(ALLOW_ALL, Resolver(names), source=tried.append).connect(host(port))
    assert len(tried) == 3


# --- the source address ---------------------------------------------------------------------


def test_a_connection_comes_from_the_source_it_is_given():
    sources = {std_socket.AF_INET: ("127.0.0.77", 0), std_socket.AF_INET6: ("::1", 0)}
    with listening("127.0.0.1", "::1") as port:
        for text, expected in [("127.0.0.1", "127.0.0.77"), ("::1", "::1")]:
            with dialer(text, source=sources.get).connect(host(port)) as sock:
                assert sock.getsockname()[0] == expected
                # bound late, or one source would have 28,000 ports for all destinations together
                assert sock.getsockopt(std_socket.IPPROTO_IP, 24) == 1


def test_a_source_that_this_machine_has_not_fails_that_family_only():
    sources = {std_socket.AF_INET6: ("2001:db8::1", 0)}
    with listening("127.0.0.1", "::1") as port, nothing_left():
        made = dialer("::1", "127.0.0.1", delay=3600, source=sources.get)
        with made.connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        del sock


def test_a_source_may_decline_a_family():
    def only_ipv4(family):
        if family == std_socket.AF_INET6:
            raise errors.AddressFamilyNotSupported("no IPv6 source")

    with listening("127.0.0.1", "::1") as port, nothing_left():
        with dialer("::1", "127.0.0.1", source=only_ipv4).connect(host(port)) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        del sock
        with pytest.raises(errors.AddressFamilyNotSupported):
            dialer("::1", source=only_ipv4).connect(host(port))


# --- nothing is left ------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3", "::1"]])
def test_killed_in_the_middle_it_leaves_nothing(addresses):
    with (
        silent("127.0.0.2") as port,
        silent("127.0.0.3", port),
        silent("::1", port),
        nothing_left(),
    ):
        begun = Begun(len(addresses))
        caller = gevent.spawn(dialer(*addresses, delay=0.001, source=begun).connect, host(port))
        begun.all.wait()
        caller.kill()
        assert isinstance(caller.value, gevent.GreenletExit)
        del caller


def test_hit_by_its_callers_timeout_it_leaves_nothing_and_lets_it_pass():
    with silent("127.0.0.2") as port, silent("127.0.0.3", port), nothing_left():
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05) as outer:
            dialer("127.0.0.2", "127.0.0.3", delay=0.001).connect(host(port))
        assert caught.value is outer
        del caught, outer


def test_killed_while_its_name_is_looked_up_it_leaves_the_look_up_alone():
    names = Names(host_example=["127.0.0.1"])
    names.go_on.clear()
    with listening("127.0.0.1") as port, nothing_left():
        made = Dialer(ALLOW_ALL, Resolver(names))
        first = gevent.spawn(made.connect, host(port))
        second = gevent.spawn(made.connect, host(port))
        names.asking.wait()
        first.kill()
        names.go_on.set()
        second.get().close()
        del first, second
    assert names.asked == ["host.example"]


@pytest.mark.parametrize("timeout", [5.0, 0.01])
def test_a_failed_connect_leaves_no_cycle_for_the_collector(timeout, closed_port):
    """5 s for a refusal, 0.01 s for silence."""

    def fail(port):
        try:
            dialer("127.0.0.1", timeout=timeout).connect(host(port))
        except errors.ConnectFailed as error:
            return weakref.ref(error)

    gc.disable()
    try:
        with silent("127.0.0.1") as silent_port:
            assert fail(closed_port if timeout > 1 else silent_port)() is None
    finally:
        gc.enable()
