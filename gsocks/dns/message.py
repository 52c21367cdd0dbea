"""Questions and answers of the DNS (RFC 1035), as far as addresses and their names need them.

Only what is read is made: an answer may have 4,000 addresses, of which ``MAX_ADDRESSES`` are kept,
and the bytes behind them are not looked at.  A message is made by a stranger: every length, count
and jump in it is bounded.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from gsocks.address import IPAddress, canonical_host, ip_of
from gsocks.errors import BadAddress

#: TYPE, RFC 1035 section 3.2.2 and RFC 3596 section 2.1
A = 1
PTR = 12
AAAA = 28
_CNAME = 5
_SOA = 6
_IN = 1  # CLASS, RFC 1035 section 3.2.4
#: octets of what is asked for; a name has any number
_SIZES = {A: 4, AAAA: 16}

#: RCODE, RFC 1035 section 4.1.1
NO_ERROR = 0
NO_SUCH_NAME = 3

#: addresses or names of one answer, or addresses of one name of the hosts file, that are kept
MAX_ADDRESSES = 64
#: records of one answer that are looked at
MAX_RECORDS = 256
#: names that stand for the next one, from the question to its addresses
MAX_ALIASES = 16
#: jumps to an earlier name in one name; one is usual
_MAX_JUMPS = 16
#: octets of a name and of one of its labels, RFC 1035 section 3.1
_MAX_NAME = 255
_MAX_LABEL = 63

_HEADER = Struct("!HHHHHH")  # ID, flags, QDCOUNT, ANCOUNT, NSCOUNT, ARCOUNT
_TYPE_AND_CLASS = Struct("!HH")
_RECORD = Struct("!HHIH")  # TYPE, CLASS, TTL, RDLENGTH
_RECURSION_DESIRED = 0x0100
_RESPONSE = 0x8000
_OPCODE = 0x7800
_TRUNCATED = 0x0200
_RCODE = 0x000F
_POINTER = 0xC0


class BadName(ValueError):
    """A name that can't be written in a message: an empty label, or one of more than 63 octets."""


class BadMessage(ValueError):
    """A message that ends early, or whose names have no end."""


class Question(NamedTuple):
    """One question, as it is sent and as its answer has to repeat it."""

    ident: int
    #: in wire form, lower case, without compression
    name: bytes
    #: A, AAAA or PTR
    kind: int

    def encode(self) -> bytes:
        """The whole message, which asks a recursive name server."""
        header = _HEADER.pack(self.ident, _RECURSION_DESIRED, 1, 0, 0, 0)
        return header + self.name + _TYPE_AND_CLASS.pack(self.kind, _IN)


class Answer(NamedTuple):
    """What a name server says to a question."""

    rcode: int
    #: whether the rest is to be asked for over TCP
    truncated: bool
    #: at most ``MAX_ADDRESSES``; none if the name has none of that family
    addresses: tuple[IPAddress, ...]
    #: seconds for which this may be kept: of addresses the least TTL on the way to them, of a name
    #: without them what the zone's SOA says (RFC 2308 section 5); None if nothing was said
    ttl: int | None
    #: the same of a PTR question, where there are no addresses; those that hosts can have
    names: tuple[str, ...] = ()


def encode_name(name: str) -> bytes:
    """A name in wire form, lower case.  Raises BadName."""
    try:
        labels = name.lower().encode("ascii").split(b".")
    except UnicodeEncodeError:
        raise BadName("not ASCII") from None
    if not all(0 < len(label) <= _MAX_LABEL for label in labels):
        raise BadName("a label that is empty or too long")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(wire) > _MAX_NAME:
        raise BadName("too long")
    return wire


def ident_of(message: bytes) -> int:
    """The ID of a message; -1 if it is too short to have one."""
    return int.from_bytes(message[:2], "big") if len(message) >= _HEADER.size else -1


def read_answer(message: bytes, question: Question) -> Answer | None:
    """What ``message`` says to ``question``; None if it is the answer to another one, or forged.

    Raises BadMessage.
    """
    if len(message) < _HEADER.size:
        return None
    ident, flags, questions, answers, authorities, _ = _HEADER.unpack_from(message)
    if ident != question.ident or not flags & _RESPONSE or flags & _OPCODE:
        return None
    at = _HEADER.size
    rcode = flags & _RCODE
    if questions:
        at = _behind_question(message, question)
        if not at or questions != 1:
            return None
    elif rcode == NO_ERROR:  # a server that can't read the question leaves it out
        return None
    if flags & _TRUNCATED:
        return Answer(rcode, True, (), None)
    if rcode not in (NO_ERROR, NO_SUCH_NAME):
        return Answer(rcode, False, (), None)
    return _Records(message, question, at).read(rcode, answers, authorities)


def _behind_question(message: bytes, question: Question) -> int:
    """Where the question section ends; 0 if it holds another question."""
    middle = _HEADER.size + len(question.name)
    end = middle + _TYPE_AND_CLASS.size
    # the lengths of labels are below the letters
    if message[_HEADER.size : middle].lower() != question.name:
        return 0
    return end if message[middle:end] == _TYPE_AND_CLASS.pack(question.kind, _IN) else 0


class _Record(NamedTuple):
    owner: bytes
    kind: int
    ttl: int
    #: where its data begin and end
    start: int
    end: int


class _Records:
    """The records of one message, read in their order."""

    def __init__(self, message: bytes, question: Question, at: int) -> None:
        self._message = message
        self._question = question
        self._at = at
        #: the names behind jumps, which most records share
        self._known: dict[int, bytes] = {_HEADER.size: question.name}

    def read(self, rcode: int, answers: int, authorities: int) -> Answer:
        kind = self._question.kind
        size = _SIZES.get(kind)
        #: where the data of each name begin, and their TTL
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        aliases: dict[bytes, tuple[bytes, int]] = {}
        found = 0
        for record in self._next(min(answers, MAX_RECORDS)):
            if record.kind == _CNAME:
                aliases[record.owner] = self._name(record.start)[0], record.ttl
            elif record.kind == kind and size in (None, record.end - record.start):
                wanted.setdefault(record.owner, []).append((record.start, record.ttl))
                found += 1
                if found == MAX_ADDRESSES:
                    break
        name, ttls = self._question.name, []
        for _ in range(MAX_ALIASES):
            if name in wanted or name not in aliases:
                break
            name, ttl = aliases[name]
            ttls.append(ttl)
        records = wanted.get(name, [])
        if not records:
            whole = answers <= MAX_RECORDS and found < MAX_ADDRESSES
            return Answer(rcode, False, (), self._negative_ttl(authorities) if whole else None)
        ttls += [ttl for _, ttl in records]
        if size is None:
            hosts = (self._host(start) for start, _ in records)
            return Answer(rcode, False, (), min(ttls), tuple(dict.fromkeys(filter(None, hosts))))
        ips = (self._ip(start, size) for start, _ in records)
        return Answer(rcode, False, tuple(dict.fromkeys(ips)), min(ttls))

    def _negative_ttl(self, authorities: int) -> int | None:
        for record in self._next(min(authorities, MAX_RECORDS)):
            if record.kind == _SOA and record.end - record.start >= 4:
                minimum = int.from_bytes(self._message[record.end - 4 : record.end], "big")
                return min(record.ttl, minimum)
        return None

    def _ip(self, start: int, size: int) -> IPAddress:
        packed = self._message[start : start + size]
        if size == 4:
            return ipaddress.IPv4Address(packed)
        ip = ipaddress.IPv6Address(packed)
        return ip.ipv4_mapped or ip  # the rules see one form only

    def _host(self, start: int) -> str | None:
        """The name at ``start``; None if no host can have it."""
        wire, at, labels = self._name(start)[0], 0, []
        while wire[at]:
            labels.append(wire[at + 1 : at + 1 + wire[at]])
            at += 1 + wire[at]
        try:
            host = canonical_host(b".".join(labels).decode("ascii"))
        except (UnicodeDecodeError, BadAddress):
            return None
        return host if ip_of(host) is None else None

    def _next(self, count: int) -> Iterator[_Record]:
        for _ in range(count):
            owner, at = self._name(self._at)
            start = at + _RECORD.size
            if start > len(self._message):
                raise BadMessage("ends in a record")
            kind, class_, ttl, length = _RECORD.unpack_from(self._message, at)
            end = self._at = start + length
            if end > len(self._message):
                raise BadMessage("ends in a record")
            if class_ == _IN:
                # with its highest bit a TTL is 0, RFC 2181 section 8
                yield _Record(owner, kind, ttl if ttl < 1 << 31 else 0, start, end)

    def _name(self, at: int) -> tuple[bytes, int]:
        """The name at ``at`` in lower-case wire form, and where the bytes behind it begin."""
        message, begin = self._message, at
        labels = bytearray()
        first = after = 0  # where the first jump leads, and what stands behind it
        for _ in range(_MAX_JUMPS):
            while True:
                length = message[at] if at < len(message) else _POINTER
                if length > _MAX_LABEL:
                    break
                labels += message[at : at + 1 + length]
                at += 1 + length
                if len(labels) > _MAX_NAME or at > len(message):
                    raise BadMessage("a name without an end")
                if not length:
                    name = bytes(labels.lower())
                    if first:
                        self._known[first] = name
                    return name, after or at
            if length < _POINTER or at + 2 > len(message):
                raise BadMessage("a name that ends early")
            target = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            if target >= at:  # only backwards, so that there is an end
                raise BadMessage("a name that goes on behind itself")
            if not after:
                after = at + 2
                if at == begin:  # nothing stands before the jump, as in most names
                    first = target
                    known = self._known.get(target)
                    if known is not None:
                        return known, after
            at = target
        raise BadMessage("a name with too many jumps")
