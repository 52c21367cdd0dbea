"""A body ends where its sender ended it, in whatever pieces it arrives."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsocks.errors import BadRequest
from gsocks.http.body import Body, Chunked, Sized, UntilEof, body_of_request, body_of_response
from gsocks.http.head import MAX_HEAD
from tests.support.turns import turns_of_others
from tests.support.waiting import cpu_seconds

CHUNKED = (("Transfer-Encoding", "chunked"),)
PAGE = b"a page " * 40


def in_chunks(data: bytes, size: int = 10) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def from_server(*codings: bytes, fields: tuple[tuple[str, str], ...] = CHUNKED) -> Body:
    response = h11.Response(status_code=200, headers=list(fields))
    return body_of_response(response, b"GET", codings)


BODIES: dict[str, tuple[Callable[[], Body], bytes, bytes]] = {
    "nothing": (lambda: Sized(0), b"", b""),
    "sized": (lambda: Sized(5), b"hello", b"hello"),
    "no chunks": (Chunked, b"0\r\n\r\n", b""),
    "chunks": (Chunked, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    "a chunk with line ends": (Chunked, b"8\r\n\r\n0\r\n\r\n\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\n"),
    "sizes in hex": (Chunked, b"000A\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
    "extensions": (Chunked, b'1;a\r\nx\r\n1 ;b="c d"\r\ny\r\n0;\r\n\r\n', b"xy"),
    "trailers": (Chunked, b"1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n", b"x"),
    "line ends from a server": (from_server, b"2\nhe\n3\r\nllo\n0\nA: b\n\n", b"hello"),
    "trailers from a server": (from_server, b"1\r\nx\r\n0\r\nA B\r\n: \0\r\n\r\n", b"x"),
    "gzip": (lambda: from_server(b"gzip"), in_chunks(gzip.compress(PAGE, mtime=0)), PAGE),
    "deflate": (lambda: from_server(b"deflate"), in_chunks(zlib.compress(PAGE)), PAGE),
    "raw deflate": (lambda: from_server(b"deflate"), in_chunks(raw_deflate(PAGE)), PAGE),
    "gzip twice": (
        lambda: from_server(b"deflate", b"x-gzip"),
        in_chunks(gzip.compress(zlib.compress(PAGE), mtime=0)),
        PAGE,
    ),
    "no gzip at all": (lambda: from_server(b"gzip"), b"0\r\n\r\n", b""),
    "spaces from a server": (from_server, b"1 \t\r\nx\r\n1  ;a\r\ny\r\n0 \r\n\r\n", b"xy"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("behind", [b"", b"GET ", b"\n", b"\r\n"])
def test_a_body_is_decoded_whole_and_the_bytes_behind_it_are_left(name: str, behind: bytes) -> None:
    make, data, content = BODIES[name]
    body = make()
    assert body.feed(data + behind) == content
    assert body.complete
    assert body.trailing_data == behind


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_body_is_decoded_in_pieces_and_not_complete_before_its_end(name: str, size: int) -> None:
    make, data, content = BODIES[name]
    body = make()
    got = b""
    for at in range(0, len(data), size):
        assert not body.complete
        got += body.feed(data[at : at + size])
    assert (got, body.complete, body.trailing_data) == (content, True, b"")


@pytest.mark.parametrize("name", [name for name in BODIES if name != "nothing"])
def test_a_body_that_ends_too_early_is_not_complete(name: str) -> None:
    make, data, content = BODIES[name]
    for end in range(len(data)):
        body = make()
        assert content.startswith(body.feed(data[:end]))
        body.feed_eof()
        assert not body.complete


def test_a_body_without_a_length_ends_by_eof() -> None:
    body = UntilEof()
    assert body.feed(b"any") == b"any"
    assert body.feed(b"\r\n0\r\n\r\n") == b"\r\n0\r\n\r\n"
    assert not body.complete
    body.feed_eof()
    assert body.complete
    assert body.trailing_data == b""


def test_content_is_returned_as_soon_as_it_arrives() -> None:
    body = Chunked()
    assert body.feed(b"5\r\nhe") == b"he"
    assert body.feed(b"ll") == b"ll"
    assert body.feed(b"o\r\n1\r\n!") == b"o!"


WRONG = [
    b"\r\n",
    b"x\r\n",
    b"-1\r\n",
    b"+1\r\n",
    b"0x1\r\n",
    b" 1\r\n",
    b"1_0\r\n",
    b"\xb2\r\n",
    b"1 \r\n",
    b"1 a\r\n",
    b"1\n",
    b"1;a\nb\r\n",
    b"1;a\rb\r\n",
    b"1;a\0\r\n",
    b"1\r\nxy",
    b"1\r\nx\ny",
    b"1\r\nx\n",
    b"00000000000000001\r\n",
    b"0\r\n\n",
    b"0\r\nA: b\n\n",
    b"0\r\n: b\r\n",
    b"0\r\nA : b\r\n",
    b"0\r\nA: b\r\n c\r\n",
    b"0\r\nA: b\rc\r\n",
    b"0\r\nA: b\0\r\n",
    b"0\r\nGET / HTTP/1.1\r\n",
]


@pytest.mark.parametrize("data", WRONG)
@pytest.mark.parametrize("size", [1, 1000])
def test_an_invalid_chunk_is_refused_as_soon_as_it_is_recognized(data: bytes, size: int) -> None:
    body = Chunked()
    with pytest.raises(BadRequest):
        for at in range(0, len(data) + 2, size):
            body.feed((data + b"\r\n")[at : at + size])


@pytest.mark.parametrize("data", WRONG)
def test_what_is_forgiven_a_server_is_known_to_be_no_valid_body(data: bytes) -> None:
    """So that its connection is not used for another request."""
    body = from_server()
    try:
        body.feed(data + b"\r\n\r\n")
    except BadRequest:
        return
    assert body.repaired


@pytest.mark.parametrize(
    "data",
    [
        b"no gzip",
        gzip.compress(PAGE, mtime=0)[:-4] + b"\0\0\0\0",  # another length
        gzip.compress(PAGE, mtime=0) + b"and more",
        gzip.compress(bytes(9_000_000), mtime=0),
    ],
)
def test_a_coding_that_is_broken_or_a_bomb_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        from_server(b"gzip", fields=()).feed(data)


def test_a_coded_body_that_ends_by_eof_is_complete_only_with_its_last_byte() -> None:
    coded = gzip.compress(PAGE, mtime=0)
    for end, complete in ((len(coded), True), (len(coded) - 1, False), (3, False)):
        body = from_server(b"gzip", fields=())
        assert PAGE.startswith(body.feed(coded[:end]))
        body.feed_eof()
        assert (body.complete, body.repaired) == (complete, True)


def test_the_bytes_between_two_chunks_are_bounded() -> None:
    body = Chunked()
    extension = b"1;" + b"x" * (MAX_HEAD - 4)
    for _ in range(3):  # counted anew behind each chunk
        assert body.feed(extension + b"\r\ny\r\n") == b"y"
    with pytest.raises(BadRequest):
        body.feed(extension + b"xxx")
    body = Chunked()
    body.feed(b"0\r\n")
    with pytest.raises(BadRequest):
        for _ in range(MAX_HEAD):
            body.feed(b"A:b\r\n")


def test_chunks_of_one_byte_let_others_run_however_many_come_at_once() -> None:
    with turns_of_others() as turns:
        assert Chunked().feed(b"1\r\nx\r\n" * 1000) == b"x" * 1000
    assert turns.count >= 1000


def test_a_line_between_chunks_takes_no_longer_byte_by_byte_the_longer_it_is() -> None:
    def fed(lines: int, length: int) -> None:
        for _ in range(lines):
            body = Chunked()
            for byte in b"1;" + b"x" * length:
                body.feed(bytes((byte,)))

    assert cpu_seconds(lambda: fed(1, 60_000)) < 2 * cpu_seconds(lambda: fed(60, 1000))


def test_a_coding_expands_in_steps_that_let_others_run() -> None:
    page = bytes(3_000_000)
    body = from_server(b"gzip", fields=())
    with turns_of_others() as turns:
        assert body.feed(gzip.compress(page, mtime=0)) == page
    assert turns.count >= 10
    assert body.feed(b"") == b""
    body.feed_eof()
    assert body.complete


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ([], Sized),
        ([("Content-Length", "5")], Sized),
        ([("Transfer-Encoding", "chunked")], Chunked),
    ],
)
def test_the_body_of_a_request(fields: list[tuple[str, str]], kind: type[Body]) -> None:
    request = h11.Request(method="GET", target="/", headers=[("Host", "a"), *fields])
    body = body_of_request(request)
    assert type(body) is kind
    assert body.complete is (not fields)


@pytest.mark.parametrize(
    ("status", "method", "fields", "kind", "complete"),
    [
        (200, b"GET", [], UntilEof, False),
        (200, b"GET", [("Content-Length", "5")], Sized, False),
        (200, b"GET", [("Content-Length", "0")], Sized, True),
        (200, b"GET", [("Transfer-Encoding", "chunked")], Chunked, False),
        (200, b"GET", [("Transfer-Encoding", "chunked"), ("Content-Length", "0")], Chunked, False),
        (200, b"HEAD", [("Content-Length", "5")], Sized, True),
        (200, b"HEAD", [], Sized, True),
        (204, b"GET", [("Transfer-Encoding", "chunked")], Sized, True),
        (304, b"GET", [("Content-Length", "5")], Sized, True),
        (404, b"POST", [], UntilEof, False),
    ],
)
def test_the_body_of_a_response(
    status: int, method: bytes, fields: list[tuple[str, str]], kind: type[Body], complete: bool
) -> None:
    body = body_of_response(h11.Response(status_code=status, headers=fields), method)
    assert type(body) is kind
    assert body.complete is complete


@settings(max_examples=500)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    noise=st.none() | st.tuples(st.integers(0, 100), st.binary(max_size=3)),
)
def test_it_makes_no_difference_in_which_pieces_chunks_arrive(
    parts: list[bytes], cuts: list[int], noise: tuple[int, bytes] | None
) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    if noise is not None:
        data = data[: noise[0]] + noise[1] + data[noise[0] :]
    whole = outcome(data, [0])
    assert outcome(data, sorted({0, *(cut for cut in cuts if cut < len(data))})) == whole
    if noise is None:
        assert whole == (b"".join(parts), True, b"")


def outcome(data: bytes, starts: list[int]) -> tuple[bytes, bool, bytes] | str:
    body, content = Chunked(), b""
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        if body.complete:
            return content, True, body.trailing_data + data[start:]
        try:
            content += body.feed(data[start:end])
        except BadRequest:
            return "refused"
    return content, body.complete, body.trailing_data if body.complete else b""
