"""Addresses have one canonical form, on the wire and in the rules."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.address import (
    MAX_NAME,
    UNSPECIFIED,
    Address,
    canonical_host,
    ip_of,
)
from gsocks.errors import AddressTypeNotSupported, BadAddress, Truncated


class Wire:
    """Exact reads from bytes, as gsocks.stream.Reader gives them from a socket."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def exactly(self, count: int) -> bytes:
        if len(self.rest) < count:
            raise Truncated
        data, self.rest = self.rest[:count], self.rest[count:]
        return data


def read(data: bytes) -> Address:
    """The address of which ``data`` is the encoding, the whole of it."""
    wire = Wire(data)
    address = Address.read(wire.exactly)
    assert wire.rest == b""
    return address


def named(name: bytes, port: int = 80) -> bytes:
    return bytes((3, len(name))) + name + port.to_bytes(2, "big")


LABELS = st.from_regex(r"-{0,2}[a-z_][a-z0-9_-]{0,10}", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=8).map(".".join)
PORTS = st.integers(0, 0xFFFF)
HOSTS = st.ip_addresses().map(str) | NAMES


# --- wire form ------------------------------------------------------------------------------


@given(host=HOSTS, port=PORTS)
def test_an_address_is_decoded_from_its_encoding(host: str, port: int) -> None:
    address = Address.of(host, port)
    assert read(address.encode()) == address


@given(host=HOSTS, port=PORTS)
def test_an_address_is_parsed_from_its_str(host: str, port: int) -> None:
    address = Address.of(host, port)
    assert Address.parse(str(address)) == address


@given(host=st.text(max_size=30) | HOSTS)
def test_a_canonical_host_is_its_own_canonical_form(host: str) -> None:
    try:
        canonical = canonical_host(host)
    except BadAddress:
        return
    assert canonical_host(canonical) == canonical
    assert canonical.isascii()
    assert canonical.isprintable()
    assert len(canonical) <= MAX_NAME


@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_address_or_a_client_error(data: bytes) -> None:
    try:
        address = Address.read(Wire(data).exactly)
    except (BadAddress, AddressTypeNotSupported, Truncated):
        return
    assert Address.of(*address) == address


@pytest.mark.parametrize(
    ("address", "encoded"),
    [
        (Address("192.0.2.1", 80), "01 c0000201 0050"),
        (Address("2001:db8::1", 443), "04 20010db8000000000000000000000001 01bb"),
        (Address("example.com", 65535), "03 0b 6578616d706c652e636f6d ffff"),
        (UNSPECIFIED, "01 00000000 0000"),
    ],
)
def test_the_encoding_is_rfc_1928s(address: Address, encoded: str) -> None:
    assert address.encode() == bytes.fromhex(encoded)
    assert read(bytes.fromhex(encoded)) == address


def test_a_name_of_255_bytes_is_valid() -> None:
    name = b"a." * 127 + b"b"
    assert len(name) == MAX_NAME
    address = read(named(name))
    assert address.host == name.decode()
    assert address.encode() == named(name)


@pytest.mark.parametrize("kind", [0, 2, 5, 0xFF])
def test_an_unknown_type_is_named(kind: int) -> None:
    with pytest.raises(AddressTypeNotSupported, match=f"{kind:#04x}"):
        Address.read(Wire(bytes((kind,)) + bytes(30)).exactly)


@pytest.mark.parametrize("name", [b"", b"\xff", b"a b", b"/" * 255])
def test_an_invalid_name_is_read_completely_before_it_is_refused(name: bytes) -> None:
    wire = Wire(named(name) + b"payload")
    with pytest.raises(BadAddress):
        Address.read(wire.exactly)
    assert wire.rest == b"payload"


@pytest.mark.parametrize(
    "encoded",
    [
        Address("192.0.2.1", 80).encode(),
        Address("2001:db8::1", 80).encode(),
        Address("example.com", 80).encode(),
    ],
)
def test_the_readers_error_is_raised_at_every_byte(encoded: bytes) -> None:
    for end in range(len(encoded)):
        with pytest.raises(Truncated):
            Address.read(Wire(encoded[:end]).exactly)


# --- one form -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("Example.COM", "example.com"),
        ("example.com", "example.com"),
        ("localhost", "localhost"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("a_b-c.example", "a_b-c.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("stra\u00dfe.de", "xn--strae-oqa.de"),  # IDNA 2003 has strasse.de for it
        ("STRASSE.de", "strasse.de"),
        ("\u03b2\u03cc\u03bb\u03bf\u03c2.com", "xn--nxasmm1c.com"),  # final sigma
        ("\u2603.net", "xn--n3h.net"),  # no letter of IDNA 2008, but registered
        ("\u24d6socks.\u00fc\u3002example", "gsocks.xn--tda.example"),
        ("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.com", "xn--mgba3gch31f060k.com"),
        ("a\u200db.example", "ab.example"),  # a joiner that joins nothing
        ("\U0001f3f4\u200d\u2620\ufe0f.example", "xn--h4hx200o.example"),
        ("1\u05d0.example", "xn--1-0hc.example"),
        ("xn--bcher-kva.\u00fc.example", "xn--bcher-kva.xn--tda.example"),
        ("-example.com", "-example.com"),
        ("example-.com", "example-.com"),
        ("a--.-b.com-", "a--.-b.com-"),
        ("192.0.2.1", "192.0.2.1"),
        ("example.com.", "example.com."),  # interpreted by the resolver and by the rules
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]", "192.0.2.1"),
        ("::", "::"),
    ],
)
def test_a_host_has_one_canonical_form(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical
    assert Address.of(host, 1) == Address(canonical, 1)
    assert read(named(host.encode(), 1)) == Address(canonical, 1)


def test_an_ipv4_mapped_address_is_ipv4_on_the_wire_too() -> None:
    mapped = b"\x04" + bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1)) + b"\x00\x50"
    assert read(mapped) == Address("192.0.2.1", 80)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "..",
        ".example.com",
        "example..com",
        "-",
        "--.example.com",
        "-\u00fc.example",
        "\u00fc-.example",
        "ab--\u00fc.example",
        "exa mple.com",
        " example.com",
        "example.com ",
        "example.com\n",
        "example.com\x00",
        "\x00",
        "exam\x7fple.com",
        "exam'ple.com",
        'exam"ple.com',
        "exam`ple.com",
        "exam\\ple.com",
        "user@example.com",
        "example.com:80",
        "example.com/path",
        "*.example.com",
        "fe80::1%eth0",
        "fe80::1\uff05eth0",  # a full-width %, which IDNA folds
        "[fe80::1%eth0]",
        "example.com%eth0",
        "1.2.3.4%1",
        "[example.com]",
        "[",
        "[]",
        "::1::",
        "1:2",
        "1.2.3.4:80",
        "\u2028example.com",
        "ex\u200dample.com\u0000",
        "\ud800.example",
        "ü" * 64,  # a label too long for IDNA
        "a" * 256,
        "ü" + "a." * 200,
    ],
)
def test_an_invalid_host_is_refused(host: str) -> None:
    with pytest.raises(BadAddress) as caught:
        canonical_host(host)
    assert str(caught.value).isprintable()
    with pytest.raises(BadAddress):
        Address.of(host, 80)


@pytest.mark.parametrize("host", ["a" * 253, "a" * 255])
def test_names_of_up_to_255_bytes_are_accepted(host: str) -> None:
    assert canonical_host(host) == host


@pytest.mark.parametrize("port", [-1, 65536, 1 << 32])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(BadAddress, match=str(port)):
        Address.of("example.com", port)


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_a_port_within_range_is_accepted(port: int) -> None:
    assert Address.of("example.com", port).port == port


# --- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("example.com:80", Address("example.com", 80)),
        ("Example.com:080", Address("example.com", 80)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("[::1]:1080", Address("::1", 1080)),
        ("[::ffff:1.2.3.4]:65535", Address("1.2.3.4", 65535)),
    ],
)
def test_text_is_parsed(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "80",
        ":80",
        "example.com",
        "example.com:",
        "example.com:http",
        "example.com:-1",
        "example.com:+1",
        "example.com: 80",
        "example.com:65536",
        "example.com:000080",
        "example.com:\u0661\u0662",  # digits, but not of ASCII
        "example.com:\u00b2",
        "::1:80",
        "2001:db8::1:80",
        "[::1]",
        "[::1]80",
        "[]:80",
        "[example.com]:80",
        "[127.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "http://example.com:80",
    ],
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        Address.parse(text)


def test_a_missing_bracket_is_explained() -> None:
    with pytest.raises(BadAddress, match=r"needs brackets: \[2001:db8::1\]:80"):
        Address.parse("2001:db8::1:80")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("example.com", 80), "example.com:80"),
        (Address("192.0.2.1", 0), "192.0.2.1:0"),
        (Address("::1", 1080), "[::1]:1080"),
    ],
)
def test_an_address_is_written_with_brackets_where_needed(address: Address, text: str) -> None:
    assert str(address) == text


@pytest.mark.parametrize(
    ("sockaddr", "address"),
    [
        (("127.0.0.1", 80), Address("127.0.0.1", 80)),
        (("::1", 80, 0, 0), Address("::1", 80)),
        (("::ffff:127.0.0.1", 80, 0, 0), Address("127.0.0.1", 80)),
        (("fe80::1%eth0", 80, 0, 2), Address("fe80::1", 80)),
    ],
)
def test_a_sockets_address_is_canonical(
    sockaddr: tuple[str, int] | tuple[str, int, int, int], address: Address
) -> None:
    assert Address.from_sockaddr(sockaddr) == address


@pytest.mark.parametrize(
    ("host", "ip"),
    [
        ("192.0.2.1", ipaddress.IPv4Address("192.0.2.1")),
        ("::1", ipaddress.IPv6Address("::1")),
        ("example.com", None),
        ("", None),
    ],
)
def test_an_address_knows_whether_it_is_a_name(
    host: str, ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None
) -> None:
    assert ip_of(host) == ip
    assert Address(host, 1).ip == ip


# --- names that are numbers in disguise -----------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.1.",
        "1\u3002\uff12.3.4",  # full-width forms, which IDNA folds
        "1.2.3.4.5",
        "1.2.3.4.5.",
        "example.123",
        "example.0x7f",
    ],
)
def test_a_number_that_is_no_canonical_address_is_refused(host: str) -> None:
    """getaddrinfo takes 127.1 and 0177.0.0.1 for 127.0.0.1; no top-level domain is a number
    (RFC 3696 section 2), so a name that ends in one never is what it seems."""
    with pytest.raises(BadAddress):
        canonical_host(host)
