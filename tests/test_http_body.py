"""A body ends where its sender meant it to, in whatever pieces it comes."""

from __future__ import annotations

from collections.abc import Callable

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsocks.errors import BadRequest
from gsocks.http.body import Body, Chunked, Sized, UntilEnd, body_of_request, body_of_response
from gsocks.http.head import MAX_HEAD


def from_server() -> Body:
    response = h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")])
    return body_of_response(response, b"GET")


BODIES: dict[str, tuple[Callable[[], Body], bytes, bytes]] = {
    "nothing": (lambda: Sized(0), b"", b""),
    "sized": (lambda: Sized(5), b"hello", b"hello"),
    "no chunks": (Chunked, b"0\r\n\r\n", b""),
    "chunks": (Chunked, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    "a chunk with line ends": (Chunked, b"8\r\n\r\n0\r\n\r\n\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\n"),
    "sizes in hex": (Chunked, b"000A\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
    "extensions": (Chunked, b'1;a\r\nx\r\n1 ;b="c d"\r\ny\r\n0;\r\n\r\n', b"xy"),
    "trailers": (Chunked, b"1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n", b"x"),
    "spaces from a server": (from_server, b"1 \t\r\nx\r\n1  ;a\r\ny\r\n0 \r\n\r\n", b"xy"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("behind", [b"", b"GET ", b"\n", b"\r\n"])
def test_a_body_is_understood_whole_and_what_stands_behind_it_is_left(
    name: str, behind: bytes
) -> None:
    make, said, content = BODIES[name]
    body = make()
    assert body.feed(said + behind) == content
    assert body.over
    assert body.rest == behind


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_body_is_understood_in_pieces_and_not_over_before_its_end(name: str, size: int) -> None:
    make, said, content = BODIES[name]
    body = make()
    got = b""
    for at in range(0, len(said), size):
        assert not body.over
        got += body.feed(said[at : at + size])
    assert (got, body.over, body.rest) == (content, True, b"")


@pytest.mark.parametrize("name", [name for name in BODIES if name != "nothing"])
def test_a_body_that_ends_too_early_is_not_over(name: str) -> None:
    make, said, content = BODIES[name]
    for end in range(len(said)):
        body = make()
        assert content.startswith(body.feed(said[:end]))
        body.end()
        assert not body.over


def test_a_body_without_a_length_ends_with_its_sender() -> None:
    body = UntilEnd()
    assert body.feed(b"any") == b"any"
    assert body.feed(b"\r\n0\r\n\r\n") == b"\r\n0\r\n\r\n"
    assert not body.over
    body.end()
    assert body.over
    assert body.rest == b""


def test_content_comes_as_soon_as_it_is_there() -> None:
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


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("size", [1, 1000])
def test_a_chunk_that_is_none_is_refused_as_soon_as_it_is_known(said: bytes, size: int) -> None:
    body = Chunked()
    with pytest.raises(BadRequest):
        for at in range(0, len(said) + 2, size):
            body.feed((said + b"\r\n")[at : at + size])


def test_what_stands_between_chunks_has_its_bound() -> None:
    body = Chunked()
    extension = b"1;" + b"x" * (MAX_HEAD - 4)
    for _ in range(3):  # each time anew
        assert body.feed(extension + b"\r\ny\r\n") == b"y"
    with pytest.raises(BadRequest):
        body.feed(extension + b"xxx")
    body = Chunked()
    body.feed(b"0\r\n")
    with pytest.raises(BadRequest):
        for _ in range(MAX_HEAD):
            body.feed(b"A:b\r\n")


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
    assert body.over is (not fields)


@pytest.mark.parametrize(
    ("status", "method", "fields", "kind", "over"),
    [
        (200, b"GET", [], UntilEnd, False),
        (200, b"GET", [("Content-Length", "5")], Sized, False),
        (200, b"GET", [("Content-Length", "0")], Sized, True),
        (200, b"GET", [("Transfer-Encoding", "chunked")], Chunked, False),
        (200, b"GET", [("Transfer-Encoding", "chunked"), ("Content-Length", "0")], Chunked, False),
        (200, b"HEAD", [("Content-Length", "5")], Sized, True),
        (200, b"HEAD", [], Sized, True),
        (204, b"GET", [("Transfer-Encoding", "chunked")], Sized, True),
        (304, b"GET", [("Content-Length", "5")], Sized, True),
        (404, b"POST", [], UntilEnd, False),
    ],
)
def test_the_body_of_a_response(
    status: int, method: bytes, fields: list[tuple[str, str]], kind: type[Body], over: bool
) -> None:
    body = body_of_response(h11.Response(status_code=status, headers=fields), method)
    assert type(body) is kind
    assert body.over is over


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    noise=st.none() | st.tuples(st.integers(0, 100), st.binary(max_size=3)),
)
def test_it_makes_no_difference_in_which_pieces_chunks_come(
    parts: list[bytes], cuts: list[int], noise: tuple[int, bytes] | None
) -> None:
    said = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    if noise is not None:
        said = said[: noise[0]] + noise[1] + said[noise[0] :]
    whole = outcome(said, [0])
    assert outcome(said, sorted({0, *(cut for cut in cuts if cut < len(said))})) == whole
    if noise is None:
        assert whole == (b"".join(parts), True, b"")


def outcome(said: bytes, starts: list[int]) -> tuple[bytes, bool, bytes] | str:
    body, content = Chunked(), b""
    for start, end in zip(starts, [*starts[1:], len(said)], strict=True):
        if body.over:
            return content, True, body.rest + said[start:]
        try:
            content += body.feed(said[start:end])
        except BadRequest:
            return "refused"
    return content, body.over, body.rest if body.over else b""
