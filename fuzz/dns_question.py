"""Questions of the DNS listener's clients and the answers of its name servers.

The first byte says which of both the rest is; of an answer, what stands behind a header's ID.
"""

from __future__ import annotations

import re
import struct

import dns.exception
import dns.message

from gsocks.dns_listener.wire import (
    LARGEST_DATAGRAM,
    MAX_TTL,
    PLAIN_SIZE,
    BadAnswer,
    BadQuery,
    failure,
    make_question,
    read_answer,
    read_query,
    reply,
)

_NAME = b"\3wWw\7example\3com\0"
_HEAD = b"\x12\x34\1\0\0\1\0\0\0\0\0"
_EDNS = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"
_QUESTION = _HEAD + b"\0" + _NAME + b"\0\1\0\1"
_ASKED = read_query(_QUESTION)


def _record(kind: int, data: bytes, ttl: int = 60) -> bytes:
    return b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def _answer(flags: bytes, *counts: int) -> bytes:
    return b"\1" + flags + struct.pack("!4H", 1, *counts) + _NAME + b"\0\1\0\1"


_SOA = b"\2ns\xc0\x10\xc0\x10" + struct.pack("!5I", 1, 2, 3, 4, 5)

SEEDS = [
    b"\0" + _QUESTION,
    b"\0" + _HEAD + b"\1" + _NAME + b"\0\x1c\0\1" + _EDNS,
    b"\0" + _HEAD + b"\1" + _NAME + b"\0\xff\0\1" + _EDNS[:-2] + b"\0\4\0\x0a\0\0",
    b"\0" + _HEAD + b"\0" + b"\xc0\0" + b"\0\1\0\1",
    b"\0" + b"\0\1\x28\0" + bytes(8),
    _answer(b"\x81\x80", 1, 0, 0) + _record(1, b"\1\2\3\4"),
    _answer(b"\x81\xa0", 2, 0, 1) + _record(5, b"\xc0\x10") + _record(1, b"\1\2\3\4", 7) + _EDNS,
    _answer(b"\x81\x83", 0, 1, 0) + _record(6, _SOA),
    _answer(b"\x81\x80", 0, 0, 2) + _EDNS + _record(1, b"\1\2\3\4"),
    b"\1\x81\x82" + bytes(8),
]
WORDS = [_EDNS, b"\xc0\x0c", b"\0\1\0\1", b"\0\x29", b"\0\6\0\1", b"\x81\x80", b"\x83\x80"]


def check(data: bytes) -> None:
    if data[:1] == b"\1":
        _check_answer(b"\0\7" + data[1:])
    else:
        _check_question(data[1:])


def _check_question(packet: bytes) -> None:
    try:
        query = read_query(packet)
    except BadQuery as bad:
        assert str(bad)
        assert "\n" not in str(bad)
        if bad.reply:
            told = dns.message.from_wire(bad.reply)
            assert told.id == int.from_bytes(packet[:2], "big")
            assert told.rcode() != 0
        return
    asked = dns.message.from_wire(packet).question[0]
    sent = dns.message.from_wire(make_question(query.key, query.question, 1))
    assert [(each.name, each.rdtype) for each in sent.question] == [(asked.name, asked.rdtype)]
    assert not sent.options
    assert PLAIN_SIZE <= query.size <= LARGEST_DATAGRAM
    told = dns.message.from_wire(failure(query))
    assert told.question[0].name.to_wire() == asked.name.to_wire()  # letter by letter
    assert (told.id, told.edns) == (query.ident, 0 if query.has_edns else -1)


def _check_answer(message: bytes) -> None:
    try:
        answer = read_answer(message, _ASKED.key)
    except BadAnswer as bad:
        assert "\n" not in str(bad)
        return
    assert 0 <= answer.lifetime <= MAX_TTL
    told = reply(answer, _ASKED, 1)
    assert told[:2] == _QUESTION[:2]
    assert told[12 : len(_QUESTION)] == _QUESTION[12:]
    short = reply(answer, _ASKED, largest=PLAIN_SIZE)
    assert len(short) <= PLAIN_SIZE
    try:
        whole = dns.message.from_wire(message)
    except (dns.exception.DNSException, ValueError):
        return  # the data of a record are the client's to read
    if re.search(rb"\xc0[\0-\x0b]", message):
        return  # a name that goes on in the header, which each client has another one of
    read = dns.message.from_wire(told)
    assert read.edns == -1
    assert read.rcode() == answer.rcode == whole.rcode()
    if whole.question:
        assert [each.name for each in read.answer] == [each.name for each in whole.answer]
