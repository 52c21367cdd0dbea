"""A head is understood in one way or not at all, however it arrives."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsocks.address import Address
from gsocks.errors import BadAddress, BadRequest, ClientError, HeadTooLarge
from gsocks.http.head import MAX_HEAD, Target, check_framing, find_end, target, words

REQUEST = b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nX: y\r\n\r\n"


def parse(head: bytes) -> h11.Request:
    http = h11.Connection(h11.SERVER)
    http.receive_data(head)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    return request


def asked(line: bytes, *fields: bytes, host: bytes | None = None) -> h11.Request:
    """A request as h11 hands it over, with a Host that fits unless another is given."""
    if host is None:
        url = line.split(b" ")[1]
        host = re.split(rb"[/?]", url)[2] if b"://" in url else url
    lines = [line, b"Host: " + host, *fields]
    return parse(b"\r\n".join(lines) + b"\r\n\r\n")


# --- where a head ends ------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"", b"x", b"\n", b" \0\n\r\r\n\r\n", b"GET"])
def test_the_end_is_found_whatever_stands_behind_it(behind: bytes) -> None:
    assert find_end(REQUEST + behind, 0) == len(REQUEST)


def test_the_end_is_found_byte_by_byte_and_not_before() -> None:
    for seen in range(len(REQUEST) - 1):
        assert find_end(REQUEST[: seen + 1], seen) == 0
    assert find_end(REQUEST, len(REQUEST) - 1) == len(REQUEST)


@pytest.mark.parametrize("size", range(1, len(REQUEST) + 1))
def test_the_end_is_found_in_pieces_of_any_size(size: int) -> None:
    ends = [
        find_end((REQUEST + b"rest")[: seen + size], seen) for seen in range(0, len(REQUEST), size)
    ]
    assert ends[:-1] == [0] * (len(ends) - 1)
    assert ends[-1] == len(REQUEST)


AMBIGUOUS = {
    "a bare LF behind the first line": b"GET http://a/ HTTP/1.1\nHost: a\r\n\r\n",
    "a bare LF behind a field": b"GET http://a/ HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "a bare LF at the end": b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\n",
    "bare LFs only": b"GET http://a/ HTTP/1.1\nHost: a\n\n",
    "a CR in a value": b"GET http://a/ HTTP/1.1\r\nHost: a\rb\r\n\r\n",
    "two CRs": b"GET http://a/ HTTP/1.1\r\nHost: a\r\r\n\r\n",
    "a line that goes on": b"GET http://a/ HTTP/1.1\r\nX: y\r\n z\r\nHost: a\r\n\r\n",
    "a line that goes on by a tab": b"GET http://a/ HTTP/1.1\r\nX: y\r\n\tz\r\nHost: a\r\n\r\n",
    "a first field that goes on": b"GET http://a/ HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n",
    "a NUL in a value": b"GET http://a/ HTTP/1.1\r\nHost: a\0\r\n\r\n",
    "a NUL in a name": b"GET http://a/ HTTP/1.1\r\nHo\0st: a\r\n\r\n",
    "a NUL in the target": b"GET http://a/\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the target": b"GET http://a/ b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space behind the version": b"GET http://a/ HTTP/1.1 \r\nHost: a\r\n\r\n",
    "a space in front": b" GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": b"GET http://a/\r\nHost: a\r\n\r\n",
    "version 0.9": b"GET http://a/ HTTP/0.9\r\nHost: a\r\n\r\n",
    "version 1.2": b"GET http://a/ HTTP/1.2\r\nHost: a\r\n\r\n",
    "version 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version in small letters": b"GET http://a/ http/1.1\r\nHost: a\r\n\r\n",
    "a method that is none": b"G(T http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that is not ASCII": b"GET http://\xe4/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_what_can_be_read_in_two_ways_or_none_is_refused(head: bytes, size: int) -> None:
    with pytest.raises(BadRequest) as caught:
        for seen in range(0, len(head), size):
            assert find_end(head[: seen + size], seen) == 0
    assert type(caught.value) is BadRequest


def test_a_wrong_first_line_is_refused_before_the_head_is_whole() -> None:
    with pytest.raises(BadRequest):
        find_end(b"SSH-2.0-OpenSSH_9.6\r\n", 0)


def head_of(size: int) -> bytes:
    start = b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


def test_a_head_has_its_bound() -> None:
    assert find_end(head_of(MAX_HEAD) + b"body", 0) == MAX_HEAD
    with pytest.raises(HeadTooLarge):
        find_end(head_of(MAX_HEAD + 1), 0)
    assert find_end(b"GET " + b"x" * (MAX_HEAD - 4), 0) == 0
    with pytest.raises(HeadTooLarge):
        find_end(b"GET " + b"x" * (MAX_HEAD - 3), MAX_HEAD)


# --- how long its body is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
    ],
)
def test_a_body_has_one_length(fields: tuple[bytes, ...]) -> None:
    with pytest.raises(BadRequest):
        check_framing(asked(b"POST http://a/ HTTP/1.1", *fields))


def test_http_1_0_knows_no_chunks() -> None:
    with pytest.raises(BadRequest):
        check_framing(asked(b"POST http://a/ HTTP/1.0", b"Transfer-Encoding: chunked"))
    check_framing(asked(b"POST http://a/ HTTP/1.1", b"Transfer-Encoding: chunked"))


def test_connect_has_no_body() -> None:
    for field in (b"Content-Length: 1", b"Transfer-Encoding: chunked"):
        with pytest.raises(BadRequest):
            check_framing(asked(b"CONNECT a:80 HTTP/1.1", field))
    check_framing(asked(b"CONNECT a:80 HTTP/1.1", b"Content-Length: 0"))


# --- where it wants to go ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "host", "port", "path"),
    [
        (b"GET http://example.com/", "example.com", 80, b"/"),
        (b"GET http://example.com", "example.com", 80, b"/"),
        (b"GET http://example.com?a=b", "example.com", 80, b"/?a=b"),
        (b"GET HTTP://EXAMPLE.com/A?b=/c?d", "example.com", 80, b"/A?b=/c?d"),
        (b"GET http://example.com:8080/a//b", "example.com", 8080, b"/a//b"),
        (b"GET http://example.com:/", "example.com", 80, b"/"),
        (b"GET ws://example.com/chat", "example.com", 80, b"/chat"),  # as aiohttp asks
        (b"GET http://192.0.2.1:1/", "192.0.2.1", 1, b"/"),
        (b"GET http://[2001:DB8::1]/", "2001:db8::1", 80, b"/"),
        (b"GET http://[::ffff:192.0.2.1]:81/", "192.0.2.1", 81, b"/"),
        (b"OPTIONS http://example.com", "example.com", 80, b"*"),
        (b"OPTIONS http://example.com/", "example.com", 80, b"/"),
        (b"OPTIONS http://example.com?a", "example.com", 80, b"/?a"),
        (b"GET http://example.com/http://other.example/", "example.com", 80, None),
        (b"CONNECT example.com:443", "example.com", 443, b""),
        (b"CONNECT [2001:db8::1]:443", "2001:db8::1", 443, b""),
        (b"CONNECT 192.0.2.1:65535", "192.0.2.1", 65535, b""),
    ],
)
def test_the_target_of_a_request(line: bytes, host: str, port: int, path: bytes | None) -> None:
    expected = Target(
        Address(host, port), path or b"/http://other.example/" if path is None else path
    )
    assert target(asked(line + b" HTTP/1.1")) == expected


@pytest.mark.parametrize(
    ("line", "host"),
    [
        (b"GET http://example.com/", b"EXAMPLE.com"),
        (b"GET http://example.com/", b"example.com:80"),
        (b"GET http://example.com:80/", b"example.com"),
        (b"GET http://[::ffff:192.0.2.1]/", b"192.0.2.1"),
        (b"CONNECT example.com:443", b"example.com"),  # PySocks
        (b"CONNECT example.com:443", b"whatever"),  # nothing is made of it
    ],
)
def test_a_host_field_may_spell_the_same_server_otherwise(line: bytes, host: bytes) -> None:
    target(asked(line + b" HTTP/1.1", host=host))


def test_http_1_0_needs_no_host_field() -> None:
    request = parse(b"GET http://example.com/ HTTP/1.0\r\n\r\n")
    assert target(request) == Target(Address("example.com", 80), b"/")


@pytest.mark.parametrize(
    "host",
    [b"other.example", b"example.com:81", b"", b"example.com.", b"a b", b"\xe4", b"a@b", b":"],
)
def test_a_host_field_that_names_another_server_is_refused(host: bytes) -> None:
    with pytest.raises(BadRequest):
        target(asked(b"GET http://example.com/ HTTP/1.1", host=host))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"GET /", "this is a proxy, not a web server"),
        (b"OPTIONS *", "this is a proxy"),
        (b"GET example.com:80", "this is a proxy"),
        (b"GET mailto:someone", "this is a proxy"),
        (b"GET http://example.com/#part", "this is a proxy"),
        (b"GET https://example.com/", "CONNECT"),
        (b"GET ftp://example.com/", "ftp:// is not served"),
        (b"GET wss://example.com/", "wss:// goes through a proxy by CONNECT"),
    ],
)
def test_other_targets_are_refused_in_words_that_help(line: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)):
        target(asked(line + b" HTTP/1.1", host=b"example.com"))


@pytest.mark.parametrize(
    "line",
    [
        b"GET http:///path",
        b"GET http://:80/",
        b"GET http://a:b/",
        b"GET http://a:65536/",
        b"GET http://a:000080/",
        b"GET http://a:+80/",
        b"GET http://a:80:80/",
        b"GET http://::1/",
        b"GET http://[::1/",
        b"GET http://[::1]x/",
        b"GET http://[fe80::1%25eth0]/",
        b"GET http://[example.com]/",
        b"GET http://a%2eb/",
        b"GET http://a\\b/",
        b"GET http://127.1/",
        b"GET http://" + b"a" * 300 + b"/",
        b"CONNECT example.com",
        b"CONNECT example.com:",
        b"CONNECT :443",
        b"CONNECT /",
        b"CONNECT http://example.com/",
    ],
)
def test_a_destination_that_cannot_be_one_is_refused(line: bytes) -> None:
    with pytest.raises(BadAddress) as caught:
        target(asked(line + b" HTTP/1.1", host=b"a"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("line", [b"GET http://a:hunter2@b/", b"CONNECT a:hunter2@b:443"])
def test_credentials_in_a_target_are_refused_and_never_repeated(line: bytes) -> None:
    with pytest.raises(BadAddress) as caught:
        target(asked(line + b" HTTP/1.1", host=b"b"))
    assert "hunter2" not in str(caught.value)


def test_what_h11_objects_to_is_told_without_what_it_quotes() -> None:
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"GET / HTTP/1.1\r\nProxy-Authorization : hunter2\r\n\r\n")
    with pytest.raises(h11.RemoteProtocolError) as caught:
        http.next_event()
    assert "hunter2" in str(caught.value)
    assert words(caught.value) == "illegal header line"
    assert words(h11.RemoteProtocolError("")) == "not HTTP"


# --- anything ---------------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b"\0",
            b":",
            b"\r\n\r\n",
            b"HTTP/1.1",
            b"GET ",
            REQUEST,
        ]
    ),
    st.sampled_from([b"GET http://a/ HTTP/1.1\r\n", b"Host: a\r\n", b"X: y\r\n", b"X:y"]),
)


@settings(max_examples=800, deadline=None, derandomize=True)
@given(pieces=st.lists(PIECES, max_size=8), cuts=st.lists(st.integers(0, 60), max_size=5))
@example(pieces=[REQUEST], cuts=[])
def test_it_makes_no_difference_in_which_pieces_a_head_comes(
    pieces: list[bytes], cuts: list[int]
) -> None:
    said = b"".join(pieces)
    whole = outcome(said, [0])
    assert outcome(said, sorted({0, *(cut for cut in cuts if cut < len(said))})) == whole
    if isinstance(whole, int) and whole:
        head = said[:whole]
        assert head.endswith(b"\r\n\r\n")
        assert head.count(b"\r\n\r\n") == 1
        for line in head[:-4].split(b"\r\n"):
            assert not set(line) & set(b"\r\n\0")
            assert line[:1] not in (b" ", b"\t")


def outcome(said: bytes, starts: list[int]) -> int | str:
    """The end of the head, 0, or that it was refused."""
    for seen, end in zip(starts, [*starts[1:], len(said)], strict=True):
        try:
            found = find_end(said[:end], seen)
        except ClientError:
            return "refused"
        if found:
            return found
    return 0
