"""UDP: the header of RFC 1928 section 7, and the wire form in which datagrams go on."""

from __future__ import annotations

from fuzz.model import Short, Taker, Wrong
from gsocks.address import Address
from gsocks.errors import BadRequest
from gsocks.net.datagram import FilteredDatagrams, address_of, split, with_header, without_header

SEEDS = [
    b"\x00\x00\x00\x01\x01\x02\x03\x04\x00\x35query",
    b"\x00\x00\x00\x04" + bytes(15) + b"\x01\x00\x35query",
    b"\x00\x00\x00\x04" + bytes(10) + b"\xff\xff\x01\x02\x03\x04\x00\x35query",
    b"\x00\x00\x00\x03\x0bexample.com\x00\x35query",
    b"\x00\x00\x00\x03\x09127.0.0.1\x00\x35query",
    b"\x00\x00\x01\x01\x01\x02\x03\x04\x00\x35a fragment",
    b"\x00\x00\x00\x05\x01",
    b"\x00\x00\x00\x03\xff",
]
WORDS = [b"\x00\x00\x00\x01", b"\x00\x00\x00\x03", b"\x00\x00\x00\x04", b"127.0.0.1", b"[::1]"]


def check(data: bytes) -> None:
    _look_at_wire_form(data)
    datagram = without_header(data)
    take = Taker(data)
    try:
        if take(3) != bytes(3):
            raise Wrong
        dest = take.dest()
    except (Short, Wrong):
        assert datagram is None
        return
    if datagram is None:
        assert not dest.is_plain, dest
        return
    head, payload = split(datagram)
    assert payload == take.rest
    address = address_of(head)
    assert address is not None
    assert dest.is_said_by(*address)
    assert address.encode() == head  # there is one way to write it
    assert without_header(with_header(datagram)) == datagram
    # the rules are asked about where it goes, and nothing else passes
    assert _passed(datagram, lambda dest: dest == address) == [datagram]
    assert _passed(datagram, lambda dest: dest != address) == []


def _look_at_wire_form(datagram: bytes) -> None:
    """What another end sends is in wire form already, or isn't."""
    asked: list[Address] = []
    passed = _passed(datagram, lambda dest: not asked.append(dest))  # type: ignore[func-returns-value]
    try:
        head, payload = split(datagram)
    except BadRequest:
        assert passed == []
        return
    assert head + payload == datagram
    assert passed == [datagram] * len(asked)


def _passed(datagram: bytes, allows: object) -> list[bytes]:
    out = _Out()
    FilteredDatagrams(out, allows).write(datagram)  # type: ignore[arg-type]
    return out.written


class _Out:
    """A stream that keeps what it is given."""

    read = write_eof = abort = close = None

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, datagram: bytes) -> None:
        self.written.append(datagram)
