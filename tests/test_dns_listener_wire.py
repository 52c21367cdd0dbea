"""Questions and answers of the DNS as the listener passes them on, and how long it keeps them."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.update
import pytest

from gsocks.dns_listener.cache import MAX_KEPT, Cache
from gsocks.dns_listener.wire import (
    BAD_VERSION,
    LARGEST_DATAGRAM,
    MAX_NEGATIVE_TTL,
    MAX_RECORDS,
    MAX_TTL,
    Answer,
    BadAnswer,
    BadQuery,
    Query,
    failure,
    make_question,
    read_answer,
    read_query,
    reply,
)

IN, A = dns.rdataclass.IN, dns.rdatatype.A
ANSWERS = ["192.0.2.1", "192.0.2.2"]


def asked(name: str = "www.example.com", kind: str = "A", **options: object) -> Query:
    return read_query(dns.message.make_query(name, kind, **options).to_wire())  # type: ignore[arg-type]


def response(query: Query, *records: dns.rrset.RRset) -> dns.message.Message:
    sent = dns.message.from_wire(make_question(query.key, query.question, 7))
    made = dns.message.make_response(sent, recursion_available=True)
    made.answer.extend(records)
    return made


def records(ttl: int = 300, *addresses: str, name: str = "www.example.com.") -> dns.rrset.RRset:
    return dns.rrset.from_text(name, ttl, "IN", "A", *(addresses or ANSWERS))


def soa(ttl: int, minimum: int) -> dns.rrset.RRset:
    text = f"ns.example.com. admin.example.com. 1 2 3 4 {minimum}"
    return dns.rrset.from_text("example.com.", ttl, "IN", "SOA", text)


def answer_of(query: Query, *kept: dns.rrset.RRset) -> Answer:
    return read_answer(response(query, *kept).to_wire(), query.key)


# --- questions --------------------------------------------------------------------------------


def test_what_is_asked_has_nothing_of_the_client_but_what_it_asks_for() -> None:
    subnet = dns.edns.ECSOption("198.51.100.0", 24)
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    query = asked(use_edns=0, options=[subnet, cookie], payload=1232, want_dnssec=True)
    sent = dns.message.from_wire(make_question(query.key, query.question, 0x1234))
    assert (sent.id, sent.edns, sent.options) == (0x1234, 0, ())
    assert sent.question == [dns.rrset.RRset(dns.name.from_text("www.example.com."), IN, A)]
    assert sent.ednsflags & dns.flags.DO
    assert sent.flags & dns.flags.RD


@pytest.mark.parametrize(
    ("flag", "dnssec"), [(0, False), (dns.flags.CD, False), (dns.flags.CD, True)]
)
def test_a_question_keeps_the_flags_that_change_its_answer(flag: int, dnssec: bool) -> None:
    query = asked(flags=dns.flags.RD | flag, want_dnssec=dnssec)
    sent = dns.message.from_wire(make_question(query.key, query.question, 1))
    assert bool(sent.flags & dns.flags.CD) == bool(flag)
    assert bool(sent.ednsflags & dns.flags.DO) == dnssec


def test_questions_that_differ_in_letters_alone_are_one_question() -> None:
    assert asked("WWW.example.COM").key == asked("www.Example.com").key
    assert asked("www.example.com", "AAAA").key != asked("www.example.com").key


def bad(packet: bytes) -> BadQuery:
    with pytest.raises(BadQuery) as raised:
        read_query(packet)
    return raised.value


def rcode_of(reply: bytes) -> int:
    return int(dns.message.from_wire(reply).rcode())


def test_what_is_no_question_has_no_answer() -> None:
    assert bad(b"").reply == bad(bytes(11)).reply == b""
    query = dns.message.make_query("www.example.com", "A")
    assert bad(dns.message.make_response(query).to_wire()).reply == b""


def test_a_malformed_question_is_answered_as_such_under_its_id() -> None:
    query = dns.message.make_query("www.example.com", "A").to_wire()
    none, two = query[:4] + b"\0\0" + query[6:], query[:4] + b"\0\2" + query[6:]
    forward = query[:12] + b"\xc0\xff" + query[12:]
    large = query + bytes(5000)
    records_too = query[:6] + b"\0\1" + query[8:] + bytes(11)
    for packet in (query[:-1], query + b"x", none, two, forward, large, records_too):
        found = bad(packet)
        assert rcode_of(found.reply) == dns.rcode.FORMERR
        assert found.reply[:2] == query[:2]
        assert "\n" not in str(found)


def test_what_is_not_served_is_told_so() -> None:
    update = dns.update.UpdateMessage("example.com.").to_wire()
    assert rcode_of(bad(update).reply) == dns.rcode.NOTIMP
    for kind in ("AXFR", "IXFR", "TKEY"):
        transfer = dns.message.make_query("example.com", kind).to_wire()
        assert rcode_of(bad(transfer).reply) == dns.rcode.REFUSED
    chaos = dns.message.make_query("version.bind", "TXT", "CH").to_wire()
    assert rcode_of(bad(chaos).reply) == dns.rcode.REFUSED
    later = dns.message.make_query("www.example.com", "A", use_edns=1).to_wire()
    assert rcode_of(bad(later).reply) == dns.rcode.BADVERS == BAD_VERSION


# --- answers ----------------------------------------------------------------------------------


def test_an_answer_has_the_id_and_the_letters_of_its_client() -> None:
    kept = answer_of(asked(), records())
    query = dns.message.make_query("wWw.eXaMpLe.CoM", "A")
    read = dns.message.from_wire(reply(kept, read_query(query.to_wire())))
    assert read.id == query.id
    assert read.question[0].name.to_text() == "wWw.eXaMpLe.CoM."
    assert read.answer == [records()]
    assert read.flags & (dns.flags.QR | dns.flags.RD | dns.flags.RA)
    assert read.edns == -1


def test_edns_is_answered_by_edns_alone() -> None:
    kept = answer_of(asked(), records())
    for options in ({"use_edns": False}, {"use_edns": 0}, {"want_dnssec": True}):
        query = asked(**options)
        read = dns.message.from_wire(reply(kept, query))
        assert (read.edns == 0) == query.has_edns
        assert bool(read.ednsflags & dns.flags.DO) == query.key.dnssec_ok
        refused = dns.message.from_wire(failure(query))
        assert refused.rcode() == dns.rcode.SERVFAIL
        assert (refused.edns == 0) == query.has_edns


def test_only_a_client_that_asks_for_it_hears_that_an_answer_is_authentic() -> None:
    made = response(asked(), records())
    made.flags |= dns.flags.AD
    kept = read_answer(made.to_wire(), asked().key)
    for flags, dnssec, heard in ((0, False, False), (dns.flags.AD, False, True), (0, True, True)):
        query = asked(flags=flags | dns.flags.RD, want_dnssec=dnssec)
        read = dns.message.from_wire(reply(kept, query))
        assert bool(read.flags & dns.flags.AD) == heard


@pytest.mark.parametrize(("edns", "size"), [(None, 512), (400, 512), (1232, 1232), (9000, 4096)])
def test_what_is_too_long_for_a_datagram_is_asked_for_over_tcp(edns: int | None, size: int) -> None:
    query = asked(use_edns=False) if edns is None else asked(use_edns=0, payload=edns)
    assert query.size == size <= LARGEST_DATAGRAM
    opt = 11 if query.has_edns else 0
    fits = (size - 33 - opt) // 16
    addresses = [f"192.0.{n >> 8}.{n & 255}" for n in range(fits + 1)]
    whole = answer_of(query, records(300, *addresses[:fits]))
    assert len(reply(whole, query, largest=query.size)) <= size
    longer = answer_of(query, records(300, *addresses))
    read = dns.message.from_wire(reply(longer, query, largest=query.size))
    assert read.flags & dns.flags.TC
    assert not read.answer
    assert read.question
    assert not dns.message.from_wire(reply(longer, query)).flags & dns.flags.TC


def test_edns_of_the_name_server_and_what_is_behind_it_is_not_passed_on() -> None:
    query = asked()
    made = response(query, records())
    made.additional.append(records(60, "192.0.2.9", name="ns.example.com."))
    made.use_edns(
        0, payload=1232, options=[dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")]
    )
    wire = made.to_wire()
    behind = records(60, "192.0.2.8", name="x.").to_wire
    assert behind is not None
    tail = b"\1x\0\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4"
    counts = int.from_bytes(wire[10:12], "big") + 1
    wire = wire[:10] + counts.to_bytes(2, "big") + wire[12:] + tail
    read = dns.message.from_wire(reply(read_answer(wire, query.key), query))
    assert read.edns == -1
    assert [each.name.to_text() for each in read.additional] == ["ns.example.com."]


def test_an_answer_to_another_question_is_none() -> None:
    query = asked()
    for other in (asked("www.example.org"), asked("www.example.com", "AAAA")):
        with pytest.raises(BadAnswer, match="another question"):
            read_answer(response(other, records()).to_wire(), query.key)


def test_only_the_name_of_a_question_is_compared_without_its_case() -> None:
    """65 is HTTPS, and 97 would be its lower case."""
    query, other = asked(kind="TYPE65"), asked(kind="TYPE97")
    with pytest.raises(BadAnswer, match="another question"):
        read_answer(response(other).to_wire(), query.key)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda wire: wire[:11], "shorter than a header"),
        (lambda wire: wire[:2] + b"\1\0" + wire[4:], "no answer"),
        (lambda wire: wire[:2] + b"\x83\x80" + wire[4:], "truncated"),
        (lambda wire: wire[:-1], "ends in a record"),
        (lambda wire: wire[:33] + b"\x7f" + wire[34:], "a name without an end"),
        (lambda wire: wire[:6] + b"\xff\xff" + wire[8:], "more than"),
    ],
)
def test_what_is_no_answer_is_refused(change: object, why: str) -> None:
    query = asked(use_edns=False)
    wire = dns.message.make_response(dns.message.make_query("www.example.com", "A"))
    wire.answer.append(records())
    with pytest.raises(BadAnswer, match=why):
        read_answer(change(wire.to_wire()), query.key)  # type: ignore[operator]


def test_an_answer_of_very_many_records_is_refused() -> None:
    query = asked()
    many = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(MAX_RECORDS)]
    # the name server's EDNS is one more
    assert answer_of(query, records(300, *many[:-1])).lifetime == 300
    with pytest.raises(BadAnswer, match="more than 1024"):
        answer_of(query, records(300, *many))


def test_a_failure_without_a_question_is_a_failure() -> None:
    query = asked()
    found = read_answer(b"\0\7\x81\x82" + bytes(8), query.key)
    assert (found.rcode, found.lifetime, found.is_final) == (2, 0, False)
    assert dns.message.from_wire(reply(found, query)).rcode() == dns.rcode.SERVFAIL


# --- for how long -----------------------------------------------------------------------------


def test_an_answer_is_kept_for_its_least_ttl_at_most_a_day() -> None:
    query = asked()
    alias = dns.rrset.from_text("www.example.com.", 40, "IN", "CNAME", "cdn.example.net.")
    made = response(query, alias, records(90, name="cdn.example.net."))
    assert read_answer(made.to_wire(), query.key).lifetime == 40
    assert answer_of(query, records(10**6)).lifetime == MAX_TTL
    assert answer_of(query, records(0)).lifetime == 0


@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN])
def test_that_there_is_none_is_kept_for_as_long_as_the_soa_says(rcode: int) -> None:
    query = asked()

    def of(*authority: dns.rrset.RRset) -> Answer:
        made = response(query)
        made.set_rcode(dns.rcode.Rcode(rcode))
        made.authority.extend(authority)
        return read_answer(made.to_wire(), query.key)

    assert of(soa(600, 60)).lifetime == 60
    assert of(soa(30, 60)).lifetime == 30
    assert of(soa(10**6, 10**6)).lifetime == MAX_NEGATIVE_TTL
    assert of().lifetime == 0
    told = dns.message.from_wire(reply(of(soa(600, 60)), query, 10))
    assert told.authority[0].ttl == 50


def test_an_alias_to_a_name_without_records_is_kept_as_one_that_has_none() -> None:
    query = asked()
    alias = dns.rrset.from_text("www.example.com.", 900, "IN", "CNAME", "cdn.example.com.")
    made = response(query, alias)
    assert read_answer(made.to_wire(), query.key).lifetime == 0
    made.authority.append(soa(600, 60))
    assert read_answer(made.to_wire(), query.key).lifetime == 60


def test_a_kept_answer_tells_how_long_it_is_still_good() -> None:
    query, now = asked(), [100.0]
    cache = Cache(2, lambda: now[0])
    cache.put(query.key, answer_of(query, records(60)))
    now[0] += 59.9
    found = cache.get(query.key)
    assert found is not None
    read = dns.message.from_wire(reply(found[0], query, found[1]))
    assert read.answer[0].ttl == 1
    now[0] += 0.1
    assert cache.get(query.key) is None
    assert not len(cache)


def test_so_many_answers_are_kept_and_no_long_ones() -> None:
    cache = Cache(2)
    queries = [asked(f"{n}.example.com") for n in range(3)]
    for query in queries:
        cache.put(query.key, answer_of(query, records(60, name=f"{query.key.name[1:2].decode()}.")))
    assert [cache.get(query.key) is not None for query in queries] == [False, True, True]
    long = answer_of(asked(), records(60, *(f"10.0.{n >> 8}.{n & 255}" for n in range(300))))
    assert len(long.message) > MAX_KEPT
    cache.put(asked().key, long)
    assert cache.get(asked().key) is None
