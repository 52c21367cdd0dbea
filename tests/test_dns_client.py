"""Names looked up at real name servers on loopback: silent, slow, lying and broken ones too."""

from __future__ import annotations

import socket as std_socket
import ssl
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import gevent
import pytest
import trustme
from gevent import ssl as gevent_ssl

from gsocks.dns import query as query_module
from gsocks.dns import transport as transport_module
from gsocks.dns.client import DnsClient
from gsocks.dns.message import MAX_ADDRESSES
from gsocks.dns.name_server import NameServer, Transport
from gsocks.dns.query import Found
from gsocks.errors import HostUnreachable
from tests.support.name_server import FakeNameServer, name_server, refuses
from tests.support.names import Clock, ips, nothing_left


@pytest.fixture(scope="module", autouse=True)
def hub() -> None:
    """The hub exists before anything is counted."""
    gevent.sleep(0)


@pytest.fixture
def nothing(tmp_path: Path) -> Path:
    """A file of the system that is missing."""
    return tmp_path / "missing"


def client(*servers: FakeNameServer, timeout: float = 30.0, **options: Any) -> DnsClient:
    options.setdefault("hosts", Path("/nonexistent"))
    options.setdefault("longest", 60.0)
    return DnsClient([each.server for each in servers], timeout=timeout, **options)


def test_a_name_has_the_addresses_of_both_families() -> None:
    with nothing_left(), name_server(a_example=["192.0.2.1", "2001:db8::1"]) as server:
        found = client(server).look_up("a.example")
    assert found == Found(ips("2001:db8::1", "192.0.2.1"), 300)
    assert sorted(server.asked) == [("udp", "a.example", "A"), ("udp", "a.example", "AAAA")]


def test_a_name_that_does_not_exist_has_no_address() -> None:
    with name_server() as server:
        assert client(server).look_up("a.example") == Found((), None)


def test_a_name_without_addresses_has_none() -> None:
    with name_server(a_example=[]) as server:
        assert client(server).look_up("a.example") == Found((), None)


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example", "\udc80.example"])
def test_a_name_that_the_dns_cant_have_is_not_found_and_not_asked_for(name: str) -> None:
    with name_server() as server:
        assert client(server).look_up(name).addresses == ()
        assert server.asked == []


@pytest.mark.parametrize("spelling", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1"])
def test_an_address_in_an_old_spelling_is_none(spelling: str) -> None:
    """Address.of refuses these spellings; the C library would read an address in them."""
    with name_server() as server:
        assert client(server).look_up(spelling).addresses == ()


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("192.0.2.7", "7.2.0.192.in-addr.arpa"),
        ("2001:db8::7", f"7.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa"),
    ],
)
def test_an_address_has_the_names_that_its_pointers_have(address: str, asked: str) -> None:
    (ip,) = ips(address)
    with nothing_left(), name_server() as server:
        server.table[asked] = ["Host.example.", "other.example."]
        found = client(server).reverse(ip)
    assert found._replace(names=()) == Found((), 300)
    assert sorted(found.names) == ["host.example", "other.example"]
    assert server.asked == [("udp", asked, "PTR")]


def test_an_address_without_a_pointer_has_no_name() -> None:
    with name_server() as server:
        assert client(server).reverse(*ips("192.0.2.7")) == Found((), None)


def test_an_address_whose_name_no_server_tells_fails() -> None:
    with name_server() as server:
        server.table["7.2.0.192.in-addr.arpa"] = refuses("SERVFAIL")
        with pytest.raises(HostUnreachable):
            client(server, timeout=0.01).reverse(*ips("192.0.2.7"))


def test_the_hosts_file_names_an_address_before_any_server(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("192.0.2.7 www.example www\n192.0.2.7 other\n")
    with name_server() as server:
        found = client(server, hosts=tmp_path / "hosts").reverse(*ips("192.0.2.7"))
        assert (found.names, server.asked) == (("www.example",), [])


def test_a_dot_at_the_end_is_no_part_of_the_name() -> None:
    with name_server(a_example=["192.0.2.1"]) as server:
        assert client(server).look_up("a.example.").addresses == ips("192.0.2.1")


def test_an_ipv6_name_server_is_asked() -> None:
    with name_server("::1", a_example=["192.0.2.1"]) as server:
        assert client(server).look_up("a.example").addresses == ips("192.0.2.1")


def test_a_long_answer_comes_over_tcp_and_is_cut_to_64_addresses() -> None:
    many = [f"10.0.{n >> 8}.{n & 255}" for n in range(4000)]
    with nothing_left(), name_server(a_example=many) as server:
        found = client(server).look_up("a.example")
    assert len(found.addresses) == MAX_ADDRESSES
    assert ("tcp", "a.example", "A") in server.asked


def test_each_family_has_its_half_of_64_addresses() -> None:
    many = [f"10.0.0.{n}" for n in range(100)] + [f"2001:db8::{n:x}" for n in range(100)]
    with name_server(a_example=many) as server:
        found = client(server).look_up("a.example")
    assert [ip.version for ip in found.addresses] == [6] * 32 + [4] * 32


class NoThreads:
    """Stands for gevent's thread pool, which others may have filled."""

    def _used(self, *_: object, **__: object) -> object:
        raise AssertionError("a thread was used")

    apply = spawn = apply_async = _used


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::1%lo", "::1%1"])
@pytest.mark.parametrize("count", [1, 500])
def test_no_thread_is_used_nor_getaddrinfo_which_uses_one_in_a_patched_program(
    host: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [f"10.0.{n >> 8}.{n & 255}" for n in range(count)]  # of which 500 come over TCP
    with name_server(host.partition("%")[0], a_example=addresses) as server:
        asking = DnsClient([server.server._replace(host=host)], timeout=30.0, longest=60.0)
        monkeypatch.setattr(gevent.get_hub(), "_threadpool", NoThreads())
        monkeypatch.setattr(std_socket, "getaddrinfo", NoThreads._used)
        assert len(asking.look_up("a.example").addresses) == min(count, MAX_ADDRESSES)


# --- name servers that do not answer --------------------------------------------------------


def test_the_next_name_server_is_asked_while_one_is_silent() -> None:
    with (
        nothing_left(),
        name_server() as silent,
        name_server(a_example=["192.0.2.1"]) as good,
    ):
        silent.silent = True
        assert client(silent, good, timeout=0.05).look_up("a.example").addresses == ips("192.0.2.1")


def test_a_silent_name_server_is_asked_last_from_then_on_and_tried_again_later() -> None:
    names: dict[str, Any] = {f"n{n}_example": ["192.0.2.1"] for n in range(5)}
    with name_server(**names) as silent, name_server(**names) as good:
        silent.silent = True
        clock = Clock()
        both = client(silent, good, now=clock, timeout=0.3)
        for number in range(3):
            both.look_up(f"n{number}.example")
        assert silent.names_asked() == ["n0.example"]
        silent.silent = False
        clock.seconds += 31
        both.look_up("n3.example")
        both.look_up("n4.example")
        assert silent.names_asked() == ["n0.example", "n3.example", "n4.example"]


def test_a_name_that_no_name_server_answers_puts_none_last() -> None:
    with (
        name_server(a_example=["192.0.2.1"], dead_example=None) as one,
        name_server(dead_example=None) as two,
    ):
        both = client(one, two, longest=0.2, timeout=0.05)
        with pytest.raises(HostUnreachable, match="no name server has answered in time"):
            both.look_up("dead.example")
        both.look_up("a.example")
        assert two.names_asked("A") == ["dead.example"] * len(two.names_asked("A"))


def test_the_answer_of_a_slow_name_server_counts_though_others_were_asked_meanwhile() -> None:
    with name_server(a_example=["192.0.2.1"]) as slow, name_server(a_example=None) as silent:
        slow.delay = 0.12
        assert client(slow, silent, timeout=0.05).look_up("a.example").addresses == ips("192.0.2.1")


def test_a_name_server_that_is_not_there_costs_no_time() -> None:
    with name_server(a_example=["192.0.2.1"]) as good:
        gone = FakeNameServer()
        gone.close()
        both = client(gone, good)
        with gevent.Timeout(10):
            assert both.look_up("a.example").addresses == ips("192.0.2.1")


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
def test_a_name_server_that_fails_costs_no_time(rcode: str) -> None:
    with (
        name_server(a_example=refuses(rcode)) as bad,
        name_server(a_example=["192.0.2.1"]) as good,
        gevent.Timeout(10),
    ):
        both = client(bad, good)
        assert both.look_up("a.example").addresses == ips("192.0.2.1")
        with pytest.raises(HostUnreachable, match="no name server answers"):
            client(bad).look_up("a.example")


def test_a_family_that_is_never_answered_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_module, "OTHER_FAMILY", 0.01)

    def only_a(question: dns.message.Message) -> dns.message.Message | None:
        if question.question[0].rdtype != 1:
            return None
        answer = dns.message.make_response(question)
        answer.answer.append(dns.rrset.from_text("a.example.", 300, "IN", "A", "192.0.2.1"))
        return answer

    with name_server(a_example=only_a) as server, gevent.Timeout(10):
        found = client(server).look_up("a.example")
    assert found == Found(ips("192.0.2.1"), 30)


def test_a_look_up_that_is_killed_leaves_nothing() -> None:
    with nothing_left(), name_server(a_example=None) as server:
        look_up = gevent.spawn(client(server).look_up, "a.example")
        while not server.asked:
            gevent.sleep(0)
        look_up.kill()
        del look_up


# --- answers that are forged ----------------------------------------------------------------


class Forger:
    """A name server that answers each question with guesses, and truly over TCP alone."""

    def __init__(self) -> None:
        self.true = FakeNameServer(a_example=["192.0.2.1"])
        self.true._udp.stop()
        self._sock = std_socket.socket(std_socket.AF_INET, std_socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", self.true.port))
        self._sock.setblocking(False)
        self.guesses = 0
        self._serving = gevent.spawn(self._serve)

    def _serve(self) -> None:
        from gevent.socket import wait_read

        while True:
            wait_read(self._sock.fileno())
            packet, peer = self._sock.recvfrom(512)
            question = dns.message.from_wire(packet)
            for _ in range(4):
                self.guesses += 1
                wrong = dns.message.make_response(question)
                wrong.id = (question.id + self.guesses) % 65536
                wrong.answer.append(
                    dns.rrset.from_text(question.question[0].name, 9, "IN", "A", "198.51.100.66")
                )
                self._sock.sendto(wrong.to_wire(), peer)

    def close(self) -> None:
        self._serving.kill()
        self._sock.close()
        self.true.close()


def test_guessed_answers_are_not_believed_and_make_it_ask_over_tcp() -> None:
    forger = Forger()
    try:
        found = client(forger.true).look_up("a.example")
    finally:
        forger.close()
    assert found.addresses == ips("192.0.2.1")
    assert {over for over, _, _ in forger.true.asked} == {"tcp"}


def test_each_question_has_an_id_and_a_port_of_its_own() -> None:
    ids: set[int] = set()
    peers: set[Any] = set()

    class Noting(FakeNameServer):
        def _datagram(self, packet: Any, peer: Any) -> None:
            ids.add(int.from_bytes(packet[:2], "big"))
            peers.add(peer)
            super()._datagram(packet, peer)

    names: dict[str, Any] = {f"n{n}_example": ["192.0.2.1"] for n in range(20)}
    server = Noting(**names)
    try:
        asking = client(server)
        for number in range(20):
            asking.look_up(f"n{number}.example")
    finally:
        server.close()
    assert len(ids) > 35
    assert len(peers) > 15


def test_an_answer_from_another_address_is_not_heard() -> None:
    with name_server(a_example=None) as silent:
        stranger = std_socket.socket(std_socket.AF_INET, std_socket.SOCK_DGRAM)
        stranger.bind(("127.0.0.2", 0))

        def answer_from_elsewhere(packet: Any, peer: Any) -> None:
            question = dns.message.from_wire(packet)
            answer = dns.message.make_response(question)
            stranger.sendto(answer.to_wire(), peer)

        silent._udp.set_handle(answer_from_elsewhere)
        with stranger, pytest.raises(HostUnreachable):
            client(silent, longest=0.2, timeout=0.05).look_up("a.example")


# --- the system's files ---------------------------------------------------------------------


def test_the_hosts_file_is_asked_first(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.5 a.example\n")
    with name_server(a_example=["192.0.2.1"]) as server:
        asking = client(server, hosts=hosts)
        assert asking.look_up("a.example").addresses == ips("192.0.2.5")
        assert server.asked == []


@pytest.mark.parametrize("name", ["localhost", "a.localhost"])
def test_localhost_is_never_asked_for(name: str) -> None:
    with name_server() as server:
        assert client(server).look_up(name).addresses == ips("::1", "127.0.0.1")
        assert server.asked == []


def test_localhost_is_what_the_systems_hosts_file_says() -> None:
    with open("/etc/hosts") as file:
        entries = [line.split() for line in file if line.strip() and line[0] != "#"]
    wanted = [words[0] for words in entries if "localhost" in words[1:]]
    assert set(ips(*wanted)) <= set(DnsClient().look_up("localhost").addresses)


def test_a_change_of_the_systems_files_is_noticed_within_a_second(tmp_path: Path) -> None:
    clock, hosts, conf = Clock(), tmp_path / "hosts", tmp_path / "resolv.conf"
    conf.write_text("nameserver 192.0.2.53\nsearch corp.example\n")
    system = DnsClient(hosts=hosts, resolv_conf=conf, now=clock)
    changes = system.refresh()
    assert system.names_of("nas") == ("nas.corp.example", "nas")
    hosts.write_text("192.0.2.5 nas\n")
    conf.write_text("nameserver 192.0.2.54\nsearch other.example\n")
    clock.seconds += 0.9
    assert system.refresh() == changes
    clock.seconds += 0.2
    assert system.refresh() == changes + 1
    assert system.names_of("nas") == ("nas",)
    assert system.names_of("printer") == ("printer.other.example", "printer")


def test_name_servers_of_a_config_have_no_search_domains_but_its_own(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search corp.example\n")
    server = NameServer("192.0.2.53")
    assert DnsClient([server], resolv_conf=conf).names_of("nas") == ("nas",)
    assert DnsClient([server], ["a.example"]).names_of("nas") == ("nas.a.example", "nas")
    assert DnsClient([], [], resolv_conf=conf).names_of("nas") == ("nas",)


def test_requests_wait_until_a_long_hosts_file_is_read_for_the_first_time(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "".join(f"0.0.0.0 n{n}.example\n" for n in range(20_000)) + "192.0.2.5 last.example"
    )
    with name_server() as server:
        asking = client(server, hosts=hosts)
        look_ups = [gevent.spawn(asking.look_up, "last.example") for _ in range(3)]
        assert [each.get().addresses for each in look_ups] == [ips("192.0.2.5")] * 3


# --- over TLS and HTTPS ---------------------------------------------------------------------


class Encrypted:
    """A name server over TLS or HTTPS whose certificate is for dns.example and 127.0.0.1."""

    def __init__(self, transport: Transport, *names: str) -> None:
        self.server = FakeNameServer(a_example=["192.0.2.1"], b_example=["192.0.2.2"])
        context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert(*names or ("dns.example", "127.0.0.1")).configure_cert(context)
        listen = self.server.over_tls if transport is Transport.TLS else self.server.over_https
        path = "/dns-query" if transport is Transport.HTTPS else ""
        self.address = NameServer("127.0.0.1", listen(context), transport, "", path)
        self._clients: list[DnsClient] = []

    def client(self, name: str = "") -> DnsClient:
        address = self.address._replace(tls_name=name)
        self._clients.append(
            DnsClient([address], timeout=30.0, longest=60.0, hosts=Path("/nonexistent"))
        )
        return self._clients[-1]

    def close(self) -> None:
        for each in self._clients:
            each.close()
        self.server.close()


AUTHORITY = trustme.CA()

both_transports = pytest.mark.parametrize("transport", [Transport.TLS, Transport.HTTPS])


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    monkeypatch.setattr(transport_module, "_trust", lambda: context)


@both_transports
@pytest.mark.parametrize("name", ["", "dns.example"])
def test_name_servers_are_asked_over_tls_and_https_by_connections_that_are_kept(
    trusted: None, transport: Transport, name: str
) -> None:
    encrypted = Encrypted(transport)
    asking = encrypted.client(name)
    try:
        assert asking.look_up("a.example").addresses == ips("192.0.2.1")
        assert asking.look_up("b.example").addresses == ips("192.0.2.2")
        assert encrypted.server.connections == 1
    finally:
        encrypted.close()


@both_transports
@pytest.mark.parametrize(("name", "names"), [("other.example", []), ("", ["dns.example"])])
def test_a_name_server_with_another_certificate_is_not_asked(
    trusted: None, transport: Transport, name: str, names: list[str]
) -> None:
    encrypted = Encrypted(transport, *names)
    try:
        with pytest.raises(HostUnreachable):
            encrypted.client(name).look_up("a.example")
        assert encrypted.server.asked == []
    finally:
        encrypted.close()


@both_transports
def test_a_connection_that_the_name_server_has_closed_is_opened_again(
    trusted: None, transport: Transport
) -> None:
    encrypted = Encrypted(transport)
    asking = encrypted.client()
    try:
        asking.look_up("a.example")
        encrypted.server.drop()
        assert asking.look_up("b.example").addresses == ips("192.0.2.2")
        assert encrypted.server.connections == 2
    finally:
        encrypted.close()


def test_an_answer_over_https_that_is_no_success_is_none(trusted: None) -> None:
    encrypted = Encrypted(Transport.HTTPS)
    encrypted.server.status = 503
    try:
        with pytest.raises(HostUnreachable):
            encrypted.client().look_up("a.example")
    finally:
        encrypted.close()
