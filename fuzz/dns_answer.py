"""Answers of name servers: the input is what stands behind the question of one.

Its first two bytes are the flags and its next six the counts of the other sections; a header and
the question stand in front.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from fuzz.model import Wrong
from gsocks.address import Address
from gsocks.dns import message
from gsocks.dns.message import BadMessage, Question, encode_name

_NAME = encode_name("www.example.com")


def _record(kind: int, data: bytes, owner: bytes = b"\xc0\x0c", ttl: int = 60) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


_OK = b"\x81\x80"
_ALIAS = _record(5, b"\x03cdn\x07example\x03net\x00")
_SOA = _record(6, b"\x02ns\xc0\x10\xc0\x10" + struct.pack("!5I", 1, 2, 3, 4, 5))

SEEDS = [
    _OK + b"\0\1\0\0\0\0" + _record(1, b"\1\2\3\4"),
    _OK + b"\0\2\0\0\0\0" + _record(1, b"\1\2\3\4") + _record(1, b"\1\2\3\5", ttl=7),
    _OK + b"\0\2\0\0\0\0" + _ALIAS + _record(1, b"\1\2\3\4", b"\xc0\x2d", 9),
    _OK + b"\0\1\0\0\0\0" + _record(12, b"\x04host\xc0\x10"),
    _OK + b"\0\1\0\0\0\0" + _record(28, bytes(10) + b"\xff\xff\1\2\3\4"),
    b"\x81\x83\0\0\0\1\0\0" + _SOA,
    _OK + b"\0\0\0\1\0\0" + _SOA,
    b"\x83\x80\0\0\0\0\0\0",
    b"\x81\x82\0\0\0\0\0\0",
    _OK + b"\x0f\xa0\0\0\0\0" + b"".join(_record(1, bytes((9, 9, 9, n))) for n in range(70)),
]
WORDS = [b"\xc0\x0c", b"\xc0\x21", b"\0\1\0\1", b"\0\5\0\1", b"\0\x1c\0\1", b"\0\6\0\1", _OK]


def check(data: bytes) -> None:
    flags, counts, behind = data[:2].ljust(2, b"\0"), data[2:8].ljust(6, b"\0"), data[8:]
    for kind in (message.A, message.AAAA, message.PTR):
        question = Question(0x1234, _NAME, kind)
        head = b"\x12\x34" + flags + b"\0\1" + counts
        whole = head + _NAME + struct.pack("!HH", kind, 1) + behind
        try:
            found = message.read_answer(whole, question)
        except BadMessage:
            found = None
        if found is None or found.truncated or found.rcode not in (0, 3):
            continue
        assert len(found.addresses) + len(found.names) <= message.MAX_ADDRESSES
        for name in found.names:
            assert kind == message.PTR
            assert Address.of(name, 0).host == name
            assert name.encode("ascii").split(b".")[0] in whole.lower(), (found, whole)
        if found.addresses:  # which every reader has to find there
            true = _model(whole, kind, len(head) + len(_NAME) + 4)
            assert {ip.packed for ip in found.addresses} <= true, (found, true)
            assert found.ttl is not None
            assert 0 <= found.ttl < 1 << 31


def _model(whole: bytes, kind: int, at: int) -> set[bytes]:
    """The addresses of all names that the question's name may stand for, in whatever order."""
    (answers,) = struct.unpack_from("!H", whole, 6)
    addresses: dict[tuple[bytes, ...], set[bytes]] = {}
    aliases: dict[tuple[bytes, ...], set[tuple[bytes, ...]]] = {}
    try:
        for _ in range(answers):
            owner, at = _labels(whole, at)
            type_, class_, _, length = struct.unpack_from("!HHIH", whole, at)
            data = whole[at + 10 : at + 10 + length]
            if len(data) < length:
                break
            if class_ == 1 and type_ == kind and length == (4 if kind == 1 else 16):
                addresses.setdefault(owner, set()).add(_one_form(data))
            elif class_ == 1 and type_ == 5:
                aliases.setdefault(owner, set()).add(_labels(whole, at + 10)[0])
            at += 10 + length
    except (Wrong, struct.error):
        pass  # what gsocks has read stands before that
    names: set[tuple[bytes, ...]] = {(b"www", b"example", b"com")}
    found: set[bytes] = set()
    while names:
        name = names.pop()
        found |= addresses.get(name, set())
        names |= aliases.pop(name, set())
    return found


def _one_form(packed: bytes) -> bytes:
    if len(packed) == 4:
        return IPv4Address(packed).packed
    ip = IPv6Address(packed)
    return (ip.ipv4_mapped or ip).packed


def _labels(whole: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """A name's labels, and where it ends."""
    labels: list[bytes] = []
    end = 0
    for _ in range(1000):
        if at >= len(whole):
            raise Wrong
        length = whole[at]
        if length >= 0xC0:
            if at + 1 >= len(whole):
                raise Wrong
            end = end or at + 2
            at = (length & 0x3F) << 8 | whole[at + 1]
        elif length > 63:
            raise Wrong
        elif length == 0:
            return tuple(labels), end or at + 1
        else:
            labels.append(whole[at + 1 : at + 1 + length].lower())
            at += 1 + length
    raise Wrong
