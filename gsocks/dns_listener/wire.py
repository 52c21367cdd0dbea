"""Messages of the DNS as the listener passes them on (RFC 1035, RFC 6891).

A question is written anew before it is sent, so that nothing of a client travels with it but what
it asks for: no option of EDNS, no cookie, no client subnet.  An answer is passed on as it
is, but for what is between two neighbours: its ID, flags, EDNS, and its TTLs, from which the time
is taken for which it was kept.

Both are made by strangers.  dnspython reads questions, of which one has a few bytes.  For an answer
of 65,535 bytes it would take a second, in which nothing else goes on; of that only the ends of
names and records are looked for here, and no more records than ``MAX_RECORDS``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype

_HEADER = struct.Struct("!HHHHHH")  # ID, flags, QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT
_KIND = struct.Struct("!HH")  # TYPE and CLASS
_RECORD = struct.Struct("!HHIH")  # TYPE, CLASS, TTL, RDLENGTH
_OPT = struct.Struct("!BHHIH")  # its root owner, TYPE, size, the rest of RCODE and flags, RDLENGTH

# RFC 1035 section 4.1.1, RFC 4035 section 3.2
_RESPONSE, _TRUNCATED = 0x8000, 0x0200
_RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x0100, 0x0080
_AUTHENTIC, _UNCHECKED = 0x0020, 0x0010
_DNSSEC_OK = 0x8000
_OPCODE, _RCODE = 0x7800, 0x000F
# of an answer; RD and CD are those of each client
_KEPT_FLAGS = _RESPONSE | _RECURSION_AVAILABLE | _AUTHENTIC | _RCODE
_POINTER, _MAX_LABEL = 0xC0, 63  # RFC 1035 section 4.1.4
_ANSWER, _AUTHORITY, _ADDITIONAL = range(3)
#: octets of the data of a SOA with two names that are pointers
_SOA_SIZE = 2 * 1 + 5 * 4

NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 1, 2, 3
NOT_IMPLEMENTED, REFUSED, BAD_VERSION = 4, 5, 16

#: bytes of an answer by UDP where the question has no EDNS, RFC 1035 section 2.3.4
PLAIN_SIZE = 512
#: and at most, whatever the question allows
LARGEST_DATAGRAM = 4096
#: bytes of a message over TCP, whose length has 16 bits
LARGEST = 65535
#: bytes of a question, which has a name of 255 at most and what EDNS adds
LARGEST_QUERY = 4096
#: records of one answer, of which most have ten
MAX_RECORDS = 1024
#: seconds for which a TTL is believed, RFC 8767 section 4 names a week at most; without an address
#: RFC 2308 section 5 names one to three hours
MAX_TTL, MAX_NEGATIVE_TTL = 86400, 10800

# questions that are not about a name's records: zone transfers, and what EDNS and TSIG are made of
_NO_QUESTIONS = frozenset(
    (
        dns.rdatatype.AXFR,
        dns.rdatatype.IXFR,
        dns.rdatatype.OPT,
        dns.rdatatype.TSIG,
        dns.rdatatype.TKEY,
        dns.rdatatype.MAILA,
        dns.rdatatype.MAILB,
    )
)


class BadQuery(ValueError):
    """A message that can't be asked for; ``reply`` is sent back, if it is not empty."""

    def __init__(self, detail: str, reply: bytes = b"") -> None:
        super().__init__(detail)
        self.reply = reply


class BadAnswer(ValueError):
    """What a name server has sent is no answer to the question."""


class Key(NamedTuple):
    """What an answer depends on."""

    #: in lower case, in wire form
    name: bytes
    kind: int
    #: RD, CD and DO of the question
    recursion_desired: bool
    unchecked: bool
    dnssec_ok: bool


class Query(NamedTuple):
    """A client's question."""

    key: Key
    #: as it has to be repeated, with the letters that the client wrote
    question: bytes
    ident: int
    #: whether it has EDNS, and so has its answer
    has_edns: bool
    #: whether it asks for the AD flag
    authentic: bool
    #: bytes of an answer by UDP
    size: int

    def __str__(self) -> str:
        name = dns.name.from_wire(self.question, 0)[0]
        return f"{name} {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(self.key.kind))}"


class Answer(NamedTuple):
    """A name server's answer, for every client that asks for it."""

    #: without an ID and without EDNS
    message: bytes
    #: where its TTLs are
    ttls: tuple[int, ...]
    rcode: int
    #: seconds for which it may be kept
    lifetime: int

    @property
    def is_final(self) -> bool:
        """Whether another name server would say the same."""
        return self.rcode in (NO_ERROR, NO_SUCH_NAME)


# --- questions --------------------------------------------------------------------------------


def read_query(packet: bytes) -> Query:
    """A client's question.  Raises BadQuery."""
    if len(packet) < _HEADER.size:
        raise BadQuery("shorter than a header")
    _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(packet)
    if flags & _RESPONSE:
        raise BadQuery("an answer, not a question")
    if dns.opcode.from_flags(flags) is not dns.opcode.QUERY:
        raise BadQuery("an opcode that is none of a question", _refusal(packet, NOT_IMPLEMENTED))
    if questions != 1:
        raise BadQuery(f"{questions} questions, not one", _refusal(packet, FORMAT_ERROR))
    if answers or authorities or additional > 2 or len(packet) > LARGEST_QUERY:
        raise BadQuery("more than a question", _refusal(packet, FORMAT_ERROR))
    try:
        read = dns.message.from_wire(packet)
    except (dns.exception.DNSException, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadQuery(f"no message: {reason}", _refusal(packet, FORMAT_ERROR)) from None
    (asked,) = read.question
    name = asked.name.to_wire() or b""
    question = name + _KIND.pack(asked.rdtype, asked.rdclass)
    query = Query(
        Key(
            name.lower(),
            int(asked.rdtype),
            bool(flags & _RECURSION_DESIRED),
            bool(flags & _UNCHECKED),
            bool(read.ednsflags & _DNSSEC_OK),
        ),
        question,
        read.id,
        read.edns >= 0,
        bool(flags & _AUTHENTIC),
        min(max(read.payload, PLAIN_SIZE), LARGEST_DATAGRAM) if read.edns >= 0 else PLAIN_SIZE,
    )
    if read.edns > 0:
        raise BadQuery("a version of EDNS other than 0", failure(query, BAD_VERSION))
    if asked.rdtype in _NO_QUESTIONS or asked.rdclass != dns.rdataclass.IN:
        raise BadQuery("not a question about a name of the internet", failure(query, REFUSED))
    return query


def make_question(key: Key, question: bytes, ident: int) -> bytes:
    """What a name server is asked, as its ``question`` writes the name."""
    flags = _AUTHENTIC
    flags |= _RECURSION_DESIRED if key.recursion_desired else 0
    flags |= _UNCHECKED if key.unchecked else 0
    header = _HEADER.pack(ident, flags, 1, 0, 0, 1)
    return header + question + _opt(LARGEST, dnssec_ok=key.dnssec_ok)


def _refusal(packet: bytes, rcode: int) -> bytes:
    """The answer to what can't be read but for its header."""
    ident, flags, *_ = _HEADER.unpack_from(packet)
    kept = flags & (0x7800 | _RECURSION_DESIRED)
    return _HEADER.pack(ident, _RESPONSE | kept | rcode, 0, 0, 0, 0)


def _opt(size: int, *, dnssec_ok: bool, rcode: int = 0) -> bytes:
    rest = (rcode >> 4) << 24 | (_DNSSEC_OK if dnssec_ok else 0)
    return _OPT.pack(0, dns.rdatatype.OPT, size, rest, 0)


# --- answers ----------------------------------------------------------------------------------


def ident_of(message: bytes) -> int:
    """The ID of a message; -1 if it is too short to have one."""
    return int.from_bytes(message[:2], "big") if len(message) >= _HEADER.size else -1


def read_answer(message: bytes, key: Key) -> Answer:
    """The answer that ``message`` has to what ``key`` asks for.  Raises BadAnswer."""
    if len(message) < _HEADER.size:
        raise BadAnswer("shorter than a header")
    _, flags, questions, *counts = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or flags & _OPCODE:
        raise BadAnswer("no answer to a question")
    if flags & _TRUNCATED:
        raise BadAnswer("truncated, over TCP")
    rcode = flags & _RCODE
    name, kind = key.name, _KIND.pack(key.kind, dns.rdataclass.IN)
    question, end = name + kind, _HEADER.size + len(name)
    begin = end + len(kind)
    if not questions and rcode not in (NO_ERROR, NO_SUCH_NAME):
        # a server that can't read the question leaves it out
        message, counts = message[: _HEADER.size] + question, [0, 0, 0]
    elif (
        questions != 1
        or message[_HEADER.size : end].lower() != name.lower()
        or message[end:begin] != kind
    ):
        raise BadAnswer("the answer to another question")
    if sum(counts) > MAX_RECORDS:
        raise BadAnswer(f"{sum(counts)} records, more than {MAX_RECORDS}")
    kept = _Records(message, key.kind)
    kept.read(begin, counts)
    made = bytearray(message[: kept.end])
    _HEADER.pack_into(made, 0, 0, flags & _KEPT_FLAGS, 1, *kept.counts)
    lifetime = kept.lifetime(rcode)
    if kept.negative_at:  # RFC 2308 section 5
        struct.pack_into("!I", made, kept.negative_at, kept.negative)
    return Answer(bytes(made), tuple(kept.ttls), rcode, lifetime)


class _Records:
    """What of the records of an answer is passed on, and for how long.

    Of the additional section only what stands before the name server's own EDNS: that and what may
    be behind it is between it and gsocks, and clients do without glue.
    """

    def __init__(self, message: bytes, kind: int) -> None:
        self._message = message
        self._kind = kind
        self.counts: list[int] = []
        #: where their TTLs are, and where the last of them ends
        self.ttls: list[int] = []
        self.end = 0
        #: of a SOA that says for how long there is none: where its TTL is, and what it is to be
        self.negative_at = self.negative = 0
        self._least = MAX_TTL
        self._has_records = False

    def read(self, at: int, counts: list[int]) -> None:
        """Read them, which begin at ``at``.  Raises BadAnswer."""
        self.end = at
        for section, count in enumerate(counts):
            kept = 0
            for kept in range(count):  # noqa: B007 - how many, if the loop is left
                if not self._record(section):
                    break
            else:
                kept = count
            self.counts.append(kept)

    def _record(self, section: int) -> bool:
        """Read the next one; False if it is not passed on."""
        message = self._message
        at = _behind_name(message, self.end)
        start = at + _RECORD.size
        if start > len(message):
            raise BadAnswer("ends in a record")
        kind, _, ttl, length = _RECORD.unpack_from(message, at)
        end = start + length
        if end > len(message):
            raise BadAnswer("ends in a record")
        if kind in (dns.rdatatype.OPT, dns.rdatatype.TSIG):
            if kind == dns.rdatatype.OPT and ttl >> 24:
                raise BadAnswer("an RCODE that only EDNS has")
            if section != _ADDITIONAL:
                raise BadAnswer("EDNS or a signature among the records")
            return False
        ttl = ttl if ttl < 1 << 31 else 0  # RFC 2181 section 8
        self.ttls.append(at + _KIND.size)
        self._least = min(self._least, ttl)
        if section == _ANSWER and self._kind in (kind, dns.rdatatype.ANY):
            self._has_records = True
        if section == _AUTHORITY and kind == dns.rdatatype.SOA and length >= _SOA_SIZE:
            self.negative_at = at + _KIND.size
            self.negative = min(ttl, int.from_bytes(message[end - 4 : end], "big"))
        self.end = end
        return True

    def lifetime(self, rcode: int) -> int:
        """Seconds for which it may be kept."""
        if rcode == NO_ERROR and self._has_records:
            self.negative_at = 0
            return self._least if self.ttls else 0
        if rcode not in (NO_ERROR, NO_SUCH_NAME) or not self.negative_at:
            return 0
        return min(self._least, self.negative, MAX_NEGATIVE_TTL)


def _behind_name(message: bytes, at: int) -> int:
    """Where a name ends that begins at ``at``.  Raises BadAnswer."""
    end = len(message)
    while at < end:
        length = message[at]
        if length >= _POINTER:
            return at + 2
        if length > _MAX_LABEL:
            break
        at += 1 + length
        if not length:
            return at
    raise BadAnswer("a name without an end")


def reply(answer: Answer, query: Query, age: int = 0, *, largest: int = LARGEST) -> bytes:
    """``answer`` to a client's ``query``, ``age`` seconds after it came.

    What is longer than ``largest`` becomes an answer that tells the client to ask over TCP.
    """
    made = bytearray(answer.message)
    (flags,) = struct.unpack_from("!H", made, 2)
    flags |= _asked_flags(query)
    if not (query.authentic or query.key.dnssec_ok):
        flags &= ~_AUTHENTIC
    opt = _opt(LARGEST_DATAGRAM, dnssec_ok=query.key.dnssec_ok) if query.has_edns else b""
    if len(made) + len(opt) > largest:
        return _short(query, flags | _TRUNCATED, opt)
    struct.pack_into("!HH", made, 0, query.ident, flags)
    made[_HEADER.size : _HEADER.size + len(query.question)] = query.question
    for at in answer.ttls if age else ():
        (ttl,) = struct.unpack_from("!I", made, at)
        struct.pack_into("!I", made, at, max(0, ttl - age))
    if opt:
        (records,) = struct.unpack_from("!H", made, 10)
        struct.pack_into("!H", made, 10, records + 1)
        made += opt
    return bytes(made)


def failure(query: Query, rcode: int = SERVER_FAILURE) -> bytes:
    """The answer to a question that has none."""
    opt = b""
    if query.has_edns:
        opt = _opt(LARGEST_DATAGRAM, dnssec_ok=query.key.dnssec_ok, rcode=rcode)
    flags = _RESPONSE | _RECURSION_AVAILABLE | _asked_flags(query) | (rcode & 0xF)
    return _short(query, flags, opt)


def _asked_flags(query: Query) -> int:
    """Those that an answer repeats."""
    key = query.key
    desired = _RECURSION_DESIRED if key.recursion_desired else 0
    return desired | (_UNCHECKED if key.unchecked else 0)


def _short(query: Query, flags: int, opt: bytes) -> bytes:
    return _HEADER.pack(query.ident, flags, 1, 0, 0, 1 if opt else 0) + query.question + opt
