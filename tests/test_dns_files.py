"""/etc/hosts and /etc/resolv.conf, as the C library reads them, and their changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gsocks.dns.hosts import HostsFile
from gsocks.dns.name_server import NameServer, Transport
from gsocks.dns.resolv_conf import ResolvConf, ResolvConfFile
from gsocks.dns.system_file import SystemFile
from tests.support.names import ips

HOSTS = """\
# the machine
127.0.0.1\tlocalhost
::1 localhost ip6-localhost   # behind it
192.0.2.7  WWW.Example.com www
192.0.2.8  www
fe80::1%eth0 router
::ffff:192.0.2.9 mapped
not-an-address nas
192.0.2.300 nas
192.0.2.1
"""


def hosts(tmp_path: Path, text: str | bytes = HOSTS) -> HostsFile:
    path = tmp_path / "hosts"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    file = HostsFile(path)
    assert file.refresh()
    return file


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        ("www.example.com", ["192.0.2.7"]),
        ("wWw", ["192.0.2.7", "192.0.2.8"]),
        ("router", ["fe80::1"]),
        ("mapped", ["192.0.2.9"]),
        ("nas", []),
        ("behind", []),
        ("example.com", []),
    ],
)
def test_a_hosts_file_has_the_addresses_of_its_names(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    assert hosts(tmp_path).get(name) == ips(*expected)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1", "localhost"),
        ("::1", "localhost"),
        ("192.0.2.7", "www.example.com"),
        ("192.0.2.8", "www"),
        ("fe80::1", "router"),
        ("192.0.2.9", "mapped"),
        ("192.0.2.1", None),
        ("192.0.2.10", None),
    ],
)
def test_the_first_name_of_an_address_is_its_own(
    tmp_path: Path, address: str, name: str | None
) -> None:
    assert hosts(tmp_path).name_of(*ips(address)) == name


@pytest.mark.parametrize("name", [b"\xff", b"192.0.2.2", b"127.1", b"a%b"])
def test_a_name_in_a_hosts_file_that_no_host_can_have_is_no_name_of_an_address(
    tmp_path: Path, name: bytes
) -> None:
    assert hosts(tmp_path, b"192.0.2.1 " + name + b"\n").name_of(*ips("192.0.2.1")) is None


def test_a_hosts_file_that_is_no_text_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    assert hosts(tmp_path, b"\xff\xfe\0\n\xff a\n127.0.0.3 a \xff\n").get("a") == ips("127.0.0.3")


def test_a_name_has_64_addresses_at_most(tmp_path: Path) -> None:
    text = "".join(f"10.0.0.{n} many\n" for n in range(200))
    assert len(hosts(tmp_path, text).get("many")) == 64


def test_a_hosts_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = hosts(tmp_path)
    assert not file.refresh()
    (tmp_path / "new").write_text("127.0.0.4 www\n")
    os.replace(tmp_path / "new", tmp_path / "hosts")
    assert file.refresh()
    assert file.get("www") == ips("127.0.0.4")
    (tmp_path / "hosts").unlink()
    assert file.refresh()
    assert file.get("www") == ()


def test_of_a_file_that_is_too_long_whole_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"first\nsecond\nthird\n")
    assert SystemFile(path, 14).read_if_changed() == b"first\nsecond\n"


# --- resolv.conf ----------------------------------------------------------------------------


def servers(*texts: str) -> tuple[NameServer, ...]:
    return tuple(NameServer.parse(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.1\n", (["192.0.2.1"], [])),
        (
            "nameserver 2001:db8::1\nnameserver fe80::1%eth0\n",
            (["2001:db8::1", "fe80::1%eth0"], []),
        ),
        ("# nameserver 192.0.2.1\n; nameserver 192.0.2.2\n", (["127.0.0.1"], [])),
        ("", (["127.0.0.1"], [])),
        ("nameserver\nnameserver name.example\nnameserver 192.0.2.1", (["192.0.2.1"], [])),
        (
            "".join(f"nameserver 192.0.2.{n}\n" for n in range(9)),
            ([f"192.0.2.{n}" for n in range(3)], []),
        ),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1", (["192.0.2.1"], [])),
        ("search A.example b.example.", (["127.0.0.1"], ["a.example", "b.example"])),
        ("domain a.example b.example", (["127.0.0.1"], ["a.example"])),
        ("search a.example\ndomain b.example", (["127.0.0.1"], ["b.example"])),
        ("domain b.example\nsearch a.example\n", (["127.0.0.1"], ["a.example"])),
        ("search .", (["127.0.0.1"], [])),
        ("options ndots:5 timeout:30 attempts:9", (["127.0.0.1"], [])),
        (
            "search " + " ".join(f"d{n}" for n in range(9)),
            (["127.0.0.1"], [f"d{n}" for n in range(6)]),
        ),
    ],
)
def test_resolv_conf_names_servers_and_search_domains(
    text: str, expected: tuple[list[str], list[str]]
) -> None:
    assert ResolvConf.parse(text, "machine") == (servers(*expected[0]), tuple(expected[1]))


def test_the_machines_own_domain_is_searched_if_no_other_is_named() -> None:
    assert ResolvConf.parse("", "machine.corp.example").search == ("corp.example",)
    assert ResolvConf.parse("search .", "machine.corp.example").search == ()


def test_a_change_of_resolv_conf_that_changes_nothing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\nsearch .\n")
    file = ResolvConfFile(path)
    assert file.refresh()
    path.write_text("# made anew\nnameserver 192.0.2.1\nsearch .\n")
    assert not file.refresh()
    path.write_text("nameserver 192.0.2.2\nsearch .\n")
    assert file.refresh()
    assert file.content.servers == servers("192.0.2.2")


# --- the name servers of a config -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9.9.9.9", NameServer("9.9.9.9")),
        ("9.9.9.9:5353", NameServer("9.9.9.9", 5353)),
        ("dns://9.9.9.9", NameServer("9.9.9.9")),
        ("2620:fe::fe", NameServer("2620:fe::fe")),
        ("[2620:fe::fe]:54", NameServer("2620:fe::fe", 54)),
        ("fe80::1%eth0", NameServer("fe80::1%eth0")),
        ("tls://9.9.9.9", NameServer("9.9.9.9", 853, Transport.TLS)),
        (
            "tls://[2620:fe::fe]:8853#dns.quad9.net",
            NameServer("2620:fe::fe", 8853, Transport.TLS, "dns.quad9.net"),
        ),
        ("https://9.9.9.9", NameServer("9.9.9.9", 443, Transport.HTTPS, "", "/dns-query")),
        (
            "https://9.9.9.9:444/x?y=z#dns.quad9.net",
            NameServer("9.9.9.9", 444, Transport.HTTPS, "dns.quad9.net", "/x?y=z"),
        ),
    ],
)
def test_a_name_server_is_read_from_its_text(text: str, expected: NameServer) -> None:
    assert NameServer.parse(text) == expected
    assert NameServer.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "expected"),
        ("dns.quad9.net", "needs an IP address"),
        ("tls://dns.quad9.net", "needs an IP address"),
        ("udp://9.9.9.9", "udp:// is unknown"),
        ("9.9.9.9:0", "0 is not a port"),
        ("9.9.9.9:70000", "70000 is not a port"),
        ("tls://9.9.9.9/path", "only https:// has a path"),
        ("9.9.9.9#dns.quad9.net", "only tls:// and https://"),
        ("9.9.9.9 8.8.8.8", "needs an IP address"),
        ("[9.9.9.9", "expected"),
        ("https://9.9.9.9/a b", "expected"),
    ],
)
def test_what_is_no_name_server_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        NameServer.parse(text)
