"""A head is read in one way or refused, in whatever pieces it arrives."""

from __future__ import annotations

import re

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsocks.address import Address
from gsocks.errors import BadAddress, BadRequest, ClientError, HeadTooLarge, Http2NotServed
from gsocks.http.forward import to_origin
from gsocks.http.head import (
    MAX_FIELDS,
    MAX_HEAD,
    RequestTarget,
    ascii_target,
    check_framing,
    error_reason,
    find_end,
    normalized,
    target,
    with_crlf,
    with_host,
)

REQUEST = b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nX: y\r\n\r\n"


def parse(head: bytes) -> h11.Request:
    http = h11.Connection(h11.SERVER)
    http.receive_data(head)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    return request


def asked(line: bytes, *fields: bytes, host: bytes | None = None) -> h11.Request:
    """A request as h11 parses it, with a Host that matches unless another is given."""
    if host is None:
        url = line.split(b" ")[1]
        host = re.split(rb"[/?]", url)[2] if b"://" in url else url
    lines = [line, b"Host: " + host, *fields]
    return parse(b"\r\n".join(lines) + b"\r\n\r\n")


# --- where a head ends ------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"", b"x", b"\n", b" \0\n\r\r\n\r\n", b"GET"])
def test_the_end_is_found_whatever_bytes_follow(behind: bytes) -> None:
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
    "a byte that is not ASCII in the method": b"G\xe4T http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a bare LF behind a field of CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "a bare LF at the end of CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\n",
    "a CRLF behind bare LFs": b"CONNECT a:1 HTTP/1.1\nHost: a\r\n\r\n",
    "a CR behind bare LFs": b"CONNECT a:1 HTTP/1.1\nHost: a\rb\n\n",
    "a CRLF at the end of bare LFs": b"CONNECT a:1 HTTP/1.1\nHost: a\n\r\n",
    "a line that goes on behind a bare LF": b"CONNECT a:1 HTTP/1.1\nX: y\n z\n\n",
    "a NUL behind a bare LF": b"CONNECT a:1 HTTP/1.1\nX: \0\n\n",
    "no version in front of a bare LF": b"CONNECT a:1\n\n",
    "CONNECT in small letters with bare LFs": b"connect a:1 HTTP/1.1\n\n",
}


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_ambiguous_or_invalid_head_is_refused(head: bytes, size: int) -> None:
    with pytest.raises(BadRequest) as caught:
        for seen in range(0, len(head), size):
            assert find_end(head[: seen + size], seen) == 0
    assert type(caught.value) is (Http2NotServed if head.startswith(b"PRI ") else BadRequest)


@pytest.mark.parametrize("fields", [b"", b"Host: b\n", b"Host: b\nX: y\n"])
@pytest.mark.parametrize("behind", [b"", b"NICK a\r\n", b"\r\n\r\n", b"\n", b"\0"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_all_lines_of_a_connect_may_end_in_lf(fields: bytes, behind: bytes, size: int) -> None:
    """As irssi sends it, and talks on at once."""
    head = b"CONNECT a:6667 HTTP/1.0\n" + fields + b"\n"
    said = head + behind
    ends = [find_end(said[: seen + size], seen) for seen in range(0, len(head), size)]
    assert ends == [0] * (len(ends) - 1) + [len(head)]
    request = parse(with_crlf(head))
    assert target(request).dest == Address("a", 6667)
    assert len(request.headers) == fields.count(b"\n")


def test_a_head_of_bare_lfs_has_the_bounds_of_others() -> None:
    head = b"CONNECT a:1 HTTP/1.1\n" + b"A:\n" * MAX_FIELDS
    with pytest.raises(HeadTooLarge):
        find_end(b"CONNECT a:1 HTTP/1.1\nX: " + b"y" * MAX_HEAD, 0)
    assert find_end(head + b"\n", 0) == len(head) + 1
    with pytest.raises(HeadTooLarge):
        find_end(head + b"A:\n\n", 0)


@pytest.mark.parametrize("head", [REQUEST, b"CONNECT a:1 HTTP/1.1\r\n\r\n"])
def test_a_head_whose_lines_end_in_crlf_stays_as_it_is(head: bytes) -> None:
    assert with_crlf(head) == head


def test_an_invalid_first_line_is_refused_before_the_head_is_complete() -> None:
    with pytest.raises(BadRequest):
        find_end(b"SSH-2.0-OpenSSH_9.6\r\n", 0)


def head_of(size: int) -> bytes:
    start = b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: "
    return start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"


def test_the_size_of_a_head_is_bounded() -> None:
    assert find_end(head_of(MAX_HEAD) + b"body", 0) == MAX_HEAD
    with pytest.raises(HeadTooLarge):
        find_end(head_of(MAX_HEAD + 1), 0)
    assert find_end(b"GET " + b"x" * (MAX_HEAD - 4), 0) == 0
    with pytest.raises(HeadTooLarge):
        find_end(b"GET " + b"x" * (MAX_HEAD - 3), MAX_HEAD)


def test_the_fields_of_a_head_are_bounded() -> None:
    head = b"GET http://a/ HTTP/1.1\r\n" + b"A:\r\n" * MAX_FIELDS
    assert find_end(head + b"\r\n", 0) == len(head) + 2
    for seen in (0, len(head)):
        with pytest.raises(HeadTooLarge, match="fields"):
            find_end(head + b"A:\r\n\r\n", seen)


# --- framing of the body ----------------------------------------------------------------------


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


def test_http_1_0_has_no_chunks() -> None:
    with pytest.raises(BadRequest):
        check_framing(asked(b"POST http://a/ HTTP/1.0", b"Transfer-Encoding: chunked"))
    check_framing(asked(b"POST http://a/ HTTP/1.1", b"Transfer-Encoding: chunked"))


def test_connect_has_no_body() -> None:
    for field in (b"Content-Length: 1", b"Transfer-Encoding: chunked"):
        with pytest.raises(BadRequest):
            check_framing(asked(b"CONNECT a:80 HTTP/1.1", field))
    check_framing(asked(b"CONNECT a:80 HTTP/1.1", b"Content-Length: 0"))


# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "host", "port", "path"),
    [
        (b"GET http://example.com/", "example.com", 80, b"/"),
        (b"GET http://example.com", "example.com", 80, b"/"),
        (b"GET http://example.com?a=b", "example.com", 80, b"/?a=b"),
        (b"GET HTTP://EXAMPLE.com/A?b=/c?d", "example.com", 80, b"/A?b=/c?d"),
        (b"GET http://example.com:8080/a//b", "example.com", 8080, b"/a//b"),
        (b"GET http://example.com:/", "example.com", 80, b"/"),
        (b"GET ws://example.com/chat", "example.com", 80, b"/chat"),  # as aiohttp sends it
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
        (b"CONNECT 2001:db8::1:443", "2001:db8::1", 443, b""),
        (b"CONNECT ::1:80", "::1", 80, b""),
        (b"CONNECT 2001:db8:0:1:2:3:4:5:443", "2001:db8:0:1:2:3:4:5", 443, b""),
        (b"CONNECT ::ffff:192.0.2.1:443", "192.0.2.1", 443, b""),
    ],
)
def test_the_target_of_a_request(line: bytes, host: str, port: int, path: bytes | None) -> None:
    expected = RequestTarget(
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
        (b"CONNECT example.com:443", b"whatever"),  # it is ignored
    ],
)
def test_a_host_field_may_spell_the_same_server_differently(line: bytes, host: bytes) -> None:
    target(asked(line + b" HTTP/1.1", host=host))


def test_http_1_0_needs_no_host_field() -> None:
    request = parse(b"GET http://example.com/ HTTP/1.0\r\n\r\n")
    assert target(request) == RequestTarget(Address("example.com", 80), b"/")


@pytest.mark.parametrize(
    "host",
    [b"other.example", b"example.com:81", b"", b"example.com.", b"a b", b"\xe4", b"a@b", b":"],
)
def test_a_host_field_that_names_another_server_is_ignored(host: bytes) -> None:
    """As in RFC 9112 section 3.2.2; what the origin server gets is the host of the URL."""
    request = asked(b"GET http://example.com/ HTTP/1.1", host=host)
    destination = target(request)
    assert destination == RequestTarget(Address("example.com", 80), b"/")
    hosts = [value for name, value in to_origin(request, destination).headers if name == b"host"]
    assert hosts == [b"example.com"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"GET /", "this is a proxy, not a web server"),
        (b"OPTIONS *", "this is a proxy"),
        (b"GET example.com:80", "this is a proxy"),
        (b"GET mailto:someone", "this is a proxy"),
        (b"GET https://example.com/", "CONNECT"),
        (b"GET ftp://example.com/", "ftp:// is not served"),
        (b"GET wss://example.com/", "wss:// goes through a proxy by CONNECT"),
    ],
)
def test_other_targets_are_refused_with_a_helpful_message(line: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
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
        b"CONNECT ::",
        b"CONNECT ::443",
        b"CONNECT 2001:db8:1:443",
        b"CONNECT 1:2:3:4:5:6:7:8:9:443",
        b"CONNECT fe80::1%25eth0:443",
        b"CONNECT ::1:65536",
        b"CONNECT /",
        b"CONNECT http://example.com/",
    ],
)
def test_an_invalid_destination_is_refused(line: bytes) -> None:
    with pytest.raises(BadAddress) as caught:
        target(asked(line + b" HTTP/1.1", host=b"a"))
    assert len(str(caught.value)) < 400


def test_credentials_in_connect_are_refused_and_never_repeated() -> None:
    with pytest.raises(BadAddress) as caught:
        target(asked(b"CONNECT a:hunter2@b:443 HTTP/1.1", host=b"b"))
    assert "hunter2" not in str(caught.value)


# --- targets that no request target is, as squid serves them ------------------------------------


def rewritten(url: bytes, *fields: bytes) -> h11.Request:
    """A request for ``url`` as a client's connection hands it on."""
    lines = [b"GET " + url + b" HTTP/1.1", b"Host: x", *fields]
    return normalized(parse(ascii_target(b"\r\n".join(lines) + b"\r\n\r\n")))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://a/\u65e5\u672c?q=\u00fc".encode(), b"/%E6%97%A5%E6%9C%AC?q=%C3%BC"),
        (b"http://a/caf\xe9", b"/caf%E9"),  # Latin-1
        (b"http://a/%C3%BC\xfc", b"/%C3%BC%FC"),
        (b"http://a/a#b", b"/a"),
        (b"http://a/a?b#c?d", b"/a?b"),
        (b"http://a#b", b"/"),
        (b"http://a/#", b"/"),
        (b"http://a/@b", b"/@b"),
        (b"http://a/?u:p@b", b"/?u:p@b"),
    ],
)
def test_the_path_is_the_urls_percent_encoded_and_without_a_fragment(
    url: bytes, path: bytes
) -> None:
    request = rewritten(url)
    assert target(request) == RequestTarget(Address("a", 80), path)
    assert [name for name, _ in request.headers] == [b"host"]


def test_only_the_target_is_percent_encoded() -> None:
    head = b"GET http://a/ HTTP/1.1\r\nHost: x\r\nX: \xe9\r\n\r\n"
    assert ascii_target(head) == head
    assert dict(parse(ascii_target(head.replace(b"a/", b"a/\xe9"))).headers)[b"x"] == b"\xe9"


@pytest.mark.parametrize(
    "authority", [b"u:p@", b"u@", b"u:@", b":p@", b"u:p@x@", b"u%40x:p%3a%2F@", b"\xfc:p@", b"@"]
)
def test_a_login_in_the_url_is_dropped_and_no_field_made_of_it(authority: bytes) -> None:
    request = rewritten(b"http://" + authority + b"b:81/c")
    assert target(request) == RequestTarget(Address("b", 81), b"/c")
    assert request.target == b"http://b:81/c"
    assert [name for name, _ in request.headers] == [b"host"]


def test_an_authorization_of_the_clients_own_is_left_as_it_is_beside_a_login_in_the_url() -> None:
    """As aria2, elinks, LWP and PHP send both, and others when the site has asked for it."""
    request = rewritten(b"http://u:p@b/", b"authorization: Bearer x")
    assert [value for name, value in request.headers if name == b"authorization"] == [b"Bearer x"]


def test_every_field_is_kept_as_it_is_spelled() -> None:
    request = rewritten(b"http://u:p@b/#c", b"X-a: 1", b"x-A: 2")
    assert request.headers.raw_items()[:3] == [(b"Host", b"x"), (b"X-a", b"1"), (b"x-A", b"2")]
    assert request.http_version == b"1.1"
    old = normalized(parse(b"GET http://u@b/ HTTP/1.0\r\n\r\n"))
    assert (old.http_version, old.target) == (b"1.0", b"http://b/")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_connect_needs_no_host_field(version: bytes) -> None:
    head = b"CONNECT a:443 HTTP/" + version + b"\r\nX: y\r\n\r\n"
    request = parse(with_host(head))
    assert dict(request.headers) == {b"host": b"a:443", b"x": b"y"}
    assert target(request).dest == Address("a", 443)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (b"http://a/", b"a"),
        (b"http://a:81?b", b"a:81"),
        (b"http://[::1]:81/b", b"[::1]:81"),
        (b"http://u:p@a/b@c", b"a"),
        (b"http://a#b", b"a"),
    ],
)
def test_a_whole_url_needs_no_host_field(url: bytes, host: bytes) -> None:
    request = parse(with_host(b"GET " + url + b" HTTP/1.1\r\nX: y\r\n\r\n"))
    assert dict(request.headers) == {b"host": host, b"x": b"y"}
    assert str(target(normalized(request)).dest).removesuffix(":80").encode() == host


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT a:443 HTTP/1.1\r\nhOST: b\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nX: y\r\nHost:\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
    ],
)
def test_a_head_with_a_host_or_with_no_server_in_it_stays_as_it_is(head: bytes) -> None:
    assert with_host(head) == head


@pytest.mark.parametrize("url", ["http://stra\u00dfe.example/", "http://stra%C3%9Fe.example/"])
def test_a_host_may_be_in_another_script(url: str) -> None:
    assert target(rewritten(url.encode())).dest.host.startswith("xn--strae-")


@pytest.mark.parametrize("url", [b"http://caf\xe9/", b"http://a%C3/", b"http://a%2fb%c3%9f/"])
def test_a_host_that_is_no_text_is_refused(url: bytes) -> None:
    with pytest.raises(BadAddress):
        target(rewritten(url))


def test_h11s_reason_is_reported_without_the_bytes_that_it_quotes() -> None:
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"GET / HTTP/1.1\r\nProxy-Authorization : hunter2\r\n\r\n")
    with pytest.raises(h11.RemoteProtocolError) as caught:
        http.next_event()
    assert "hunter2" in str(caught.value)
    assert error_reason(caught.value) == "illegal header line"
    assert error_reason(h11.RemoteProtocolError("")) == "not HTTP"


# --- any bytes --------------------------------------------------------------------------------

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
    st.sampled_from([b"CONNECT a:1 HTTP/1.1\n", b"CONNECT a:1 HTTP/1.1\r\n", b"X: y\n", b"\n\n"]),
)


@settings(max_examples=800)
@given(pieces=st.lists(PIECES, max_size=8), cuts=st.lists(st.integers(0, 60), max_size=5))
@example(pieces=[REQUEST], cuts=[])
def test_it_makes_no_difference_in_which_pieces_a_head_arrives(
    pieces: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(pieces)
    whole = outcome(data, [0])
    assert outcome(data, sorted({0, *(cut for cut in cuts if cut < len(data))})) == whole
    if isinstance(whole, int) and whole:
        head = with_crlf(data[:whole])
        assert head.endswith(b"\r\n\r\n")
        assert head.count(b"\r\n\r\n") == 1
        for line in head[:-4].split(b"\r\n"):
            assert not set(line) & set(b"\r\n\0")
            assert line[:1] not in (b" ", b"\t")


def outcome(data: bytes, starts: list[int]) -> int | str:
    """The length of the head, 0, or "refused"."""
    for seen, end in zip(starts, [*starts[1:], len(data)], strict=True):
        try:
            found = find_end(data[:end], seen)
        except ClientError:
            return "refused"
        if found:
            return found
    return 0
