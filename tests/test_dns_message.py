"""Messages of the DNS, held against dnspython, and against what a stranger may send."""

from __future__ import annotations

import itertools
import random
import struct

import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.dns.message import (
    AAAA,
    MAX_ADDRESSES,
    MAX_ALIASES,
    MAX_RECORDS,
    NO_SUCH_NAME,
    PTR,
    A,
    Answer,
    BadMessage,
    BadName,
    Question,
    encode_name,
    read_answer,
)
from tests.support.names import ips

WWW = Question(0x1234, encode_name("www.example.com"), A)


def message(*records: tuple[str, int, str, list[str]], kind: int = A) -> bytes:
    """An answer by dnspython to a question for www.example.com."""
    asked = dns.message.make_query("www.example.com", dns.rdatatype.RdataType(kind), id=0x1234)
    answer = dns.message.make_response(asked)
    for owner, ttl, type_, values in records:
        for value in values:  # of one set dnspython shuffles the records
            answer.answer.append(dns.rrset.from_text(owner, ttl, "IN", type_, value))
    return answer.to_wire(max_size=65535)


def test_a_question_is_one_that_dnspython_makes() -> None:
    theirs = dns.message.make_query("www.example.com", "AAAA", id=0x1234)
    assert WWW._replace(kind=AAAA).encode() == theirs.to_wire()


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example", "", "\udc80.a", "a.", "é.a"])
def test_a_name_that_the_dns_cant_have_is_not_asked_for(name: str) -> None:
    with pytest.raises(BadName):
        encode_name(name)


def test_the_longest_name_has_255_octets() -> None:
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert len(encode_name(longest)) == 255
    with pytest.raises(BadName):
        encode_name(longest + "a")


def test_addresses_come_in_their_order_each_once() -> None:
    answer = message(("www.example.com.", 60, "A", ["192.0.2.2", "192.0.2.1", "192.0.2.3"]))
    assert read_answer(answer, WWW) == Answer(
        0, False, ips("192.0.2.2", "192.0.2.1", "192.0.2.3"), 60
    )


def test_an_ipv4_mapped_address_is_that_ipv4_address() -> None:
    answer = message(("www.example.com.", 60, "AAAA", ["::ffff:127.0.0.1"]), kind=AAAA)
    found = read_answer(answer, WWW._replace(kind=AAAA))
    assert found is not None
    assert found.addresses == ips("127.0.0.1")


def test_a_chain_of_aliases_is_followed_and_its_least_ttl_counts() -> None:
    chain = [
        ("www.example.com.", 300, "CNAME", ["a.example.net."]),
        ("a.example.net.", 7, "CNAME", ["B.example.ORG."]),
        ("b.example.org.", 60, "A", ["192.0.2.1"]),
    ]
    for records in (chain, chain[::-1]):
        assert read_answer(message(*records), WWW) == Answer(0, False, ips("192.0.2.1"), 7)


def test_addresses_of_another_name_are_not_this_names() -> None:
    answer = message(
        ("www.example.com.", 300, "CNAME", ["a.example.net."]),
        ("b.example.net.", 60, "A", ["192.0.2.1"]),
    )
    found = read_answer(answer, WWW)
    assert found is not None
    assert found.addresses == ()


def test_aliases_that_go_round_have_an_end() -> None:
    answer = message(
        ("www.example.com.", 300, "CNAME", ["a.example.net."]),
        ("a.example.net.", 300, "CNAME", ["www.example.com."]),
        ("b.example.net.", 60, "A", ["192.0.2.1"]),
    )
    found = read_answer(answer, WWW)
    assert found is not None
    assert found.addresses == ()


def test_more_aliases_than_any_name_has_are_not_followed() -> None:
    names = ["www.example.com.", *(f"n{n}.example." for n in range(MAX_ALIASES + 1))]
    chain = [(a, 9, "CNAME", [b]) for a, b in itertools.pairwise(names)]
    found = read_answer(message(*chain, (names[-1], 9, "A", ["192.0.2.1"])), WWW)
    assert found is not None
    assert found.addresses == ()


POINTER = Question(0x1234, encode_name("www.example.com"), PTR)


def pointers(*records: tuple[str, int, str, list[str]]) -> Answer:
    found = read_answer(message(*records, kind=PTR), POINTER)
    assert found is not None
    return found


def test_the_names_of_an_address_come_in_their_order_each_once() -> None:
    names = ["Host.Example.", "b.example.com.", "host.example."]
    found = pointers(("www.example.com.", 60, "PTR", names))
    assert found == Answer(0, False, (), 60, ("host.example", "b.example.com"))


def test_a_pointer_may_be_reached_by_an_alias() -> None:
    """As of networks smaller than a /24, RFC 2317."""
    found = pointers(
        ("www.example.com.", 300, "CNAME", ["7.net.example."]),
        ("7.net.example.", 9, "PTR", ["host.example."]),
    )
    assert (found.names, found.ttl) == (("host.example",), 9)


@pytest.mark.parametrize(
    "name", [".", "192.0.2.1.", "\\255.example.", "a\\010b.example.", "a\\032b.", "127.1."]
)
def test_a_name_that_no_host_can_have_is_no_name_of_an_address(name: str) -> None:
    assert pointers(("www.example.com.", 60, "PTR", [name, "host.example."])).names == (
        "host.example",
    )
    assert pointers(("www.example.com.", 60, "PTR", [name])).names == ()


def test_of_many_names_64_are_read() -> None:
    names = [f"n{number}.example." for number in range(MAX_RECORDS)]
    assert len(pointers(("www.example.com.", 60, "PTR", names)).names) == MAX_ADDRESSES


def test_of_4000_addresses_64_are_made_and_no_byte_behind_them_is_read() -> None:
    many = [f"10.{n >> 8}.{n & 255}.1" for n in range(4000)]
    wire = message(("www.example.com.", 60, "A", many))
    found = read_answer(wire, WWW)
    assert found is not None
    assert len(found.addresses) == MAX_ADDRESSES
    assert read_answer(wire[: 33 + 16 * MAX_ADDRESSES], WWW) == found


def test_no_more_than_a_bounded_number_of_records_is_read() -> None:
    texts = [f'"{n}"' for n in range(MAX_RECORDS)]
    found = read_answer(
        message(
            ("www.example.com.", 60, "TXT", texts), ("www.example.com.", 60, "A", ["192.0.2.1"])
        ),
        WWW,
    )
    assert found == Answer(0, False, (), None)


def test_a_missing_name_is_kept_as_long_as_its_zone_says() -> None:
    asked = dns.message.make_query("www.example.com", "A", id=0x1234)
    answer = dns.message.make_response(asked)
    answer.set_rcode(dns.rcode.NXDOMAIN)
    soa = "ns.example.com. host.example.com. 1 2 3 4 77"
    answer.authority.append(dns.rrset.from_text("example.com.", 300, "IN", "SOA", soa))
    assert read_answer(answer.to_wire(), WWW) == Answer(NO_SUCH_NAME, False, (), 77)


def changed(wire: bytes, at: int, value: bytes) -> bytes:
    return wire[:at] + value + wire[at + len(value) :]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\x12\x35"),  # another ID
        (2, b"\x01\x00"),  # a question
        (2, b"\xa8\x00"),  # another operation
        (4, b"\x00\x00"),  # no question
        (4, b"\x00\x02"),  # two
        (13, b"x"),  # another name
        (30, b"\x1c"),  # another type
        (32, b"\x03"),  # another class
    ],
)
def test_what_does_not_repeat_the_question_is_no_answer_to_it(at: int, value: bytes) -> None:
    wire = message(("www.example.com.", 60, "A", ["192.0.2.1"]))
    assert read_answer(wire, WWW) is not None
    assert read_answer(changed(wire, at, value), WWW) is None


def test_the_question_may_come_back_in_other_letters() -> None:
    wire = message(("www.example.com.", 60, "A", ["192.0.2.1"]))
    found = read_answer(changed(wire, 12, b"\x03wWw\x07EXample"), WWW)
    assert found is not None
    assert found.addresses == ips("192.0.2.1")


def test_the_end_of_a_long_answer_is_left_to_tcp() -> None:
    wire = message(("www.example.com.", 60, "A", ["192.0.2.1"]))
    assert read_answer(changed(wire, 2, b"\x83\x80"), WWW) == Answer(0, True, (), None)


def record(owner: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def answer_of(*records: bytes) -> bytes:
    head = struct.pack("!HHHHHH", 0x1234, 0x8180, 1, len(records), 0, 0)
    return head + WWW.name + b"\0\1\0\1" + b"".join(records)


@pytest.mark.parametrize(
    "owner",
    [
        b"\xc0\x21",  # to itself
        b"\xc0\x22",  # forwards
        b"\x01a\xc0\x21",  # to itself, behind a label
        b"\x40a\0",  # a label of a kind that there is not
        b"\x3f" + b"a" * 20,  # ends early
        b"\xc0",
        b"",
        b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 3 + b"\x01a\0",  # 258 octets
    ],
)
def test_a_name_without_an_end_is_refused(owner: bytes) -> None:
    with pytest.raises(BadMessage):
        read_answer(answer_of(owner if len(owner) < 60 else record(owner, 1, b"abcd")), WWW)


def test_a_name_of_many_jumps_is_refused() -> None:
    # each record's owner is a jump to the one before
    size = 2 + 10 + 4
    records = [record(b"\xc0\x0c", 16, b"abcd")]
    for number in range(40):
        at = 33 + number * (size + 2)
        records.append(record(b"\x01a" + (0xC000 | at).to_bytes(2, "big"), 16, b"abcd"))
        size = 2 + 10 + 4
    with pytest.raises(BadMessage):
        read_answer(answer_of(*records), WWW)


def test_a_name_of_thousands_of_jumps_in_a_row_is_refused() -> None:
    jumps = [33 + 12, *range(33 + 12, 33 + 12 + 8000, 2)]
    targets = [0x0C, *jumps[1:]]
    chain = b"".join((0xC000 | target).to_bytes(2, "big") for target in targets)
    last = 33 + 12 + len(chain) - 2
    owner = (0xC000 | last).to_bytes(2, "big")
    answer = answer_of(record(b"\xc0\x0c", 16, chain), record(owner, 1, b"\1\2\3\4"))
    with pytest.raises(BadMessage):
        read_answer(answer, WWW)


@pytest.mark.parametrize("length", [0, 1, 5, 11, 12, 32])
def test_what_is_too_short_is_no_answer(length: int) -> None:
    assert read_answer(message()[:length], WWW) is None


def test_a_record_that_ends_early_is_refused() -> None:
    wire = message(("www.example.com.", 60, "A", ["192.0.2.1"]))
    for length in range(33, len(wire)):
        with pytest.raises(BadMessage):
            read_answer(wire[:length], WWW)


def test_the_highest_bit_of_a_ttl_makes_it_zero() -> None:
    found = read_answer(answer_of(record(b"\xc0\x0c", 1, b"\1\2\3\4", 1 << 31)), WWW)
    assert found is not None
    assert found.ttl == 0


@given(st.binary(max_size=600))
def test_garbage_is_read_without_an_end_or_refused(tail: bytes) -> None:
    head = struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 200, 200, 0) + WWW.name + b"\0\1\0\1"
    try:
        found = read_answer(head + tail, WWW)
    except BadMessage:
        return
    assert found is None or len(found.addresses) <= MAX_ADDRESSES


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_it_reads_what_dnspython_reads(rng: random.Random, aliases: int) -> None:
    names = ["www.example.com.", *(f"{'ab'[n % 2] * (n + 1)}.example.com." for n in range(aliases))]
    chain = [(a, rng.randrange(1000), "CNAME", [b]) for a, b in itertools.pairwise(names)]
    addresses = [f"10.0.{n}.{rng.randrange(256)}" for n in range(rng.randrange(1, 20))]
    wire = message(*chain, (names[-1], rng.randrange(1000), "A", addresses))
    found = read_answer(wire, WWW)
    theirs = dns.message.from_wire(wire)
    assert isinstance(theirs, dns.message.QueryMessage)
    chaining = theirs.resolve_chaining()
    assert found is not None
    assert [str(ip) for ip in found.addresses] == [str(each) for each in chaining.answer or ()]
    assert found.ttl == chaining.minimum_ttl
