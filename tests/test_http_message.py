"""Plain heads are read, and messages written, exactly as h11 does it."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gsocks.http.head import Event
from gsocks.http.message import encode_request, full_items, parse_request, parse_response
from gsocks.http.write import AnswerWriter, RequestWriter

_NAMES = [
    b"Host",
    b"content-length",
    b"Transfer-Encoding",
    b"X-A",
    b"Connection",
    b"",
    b"x y",
    b"a:",
]
_VALUES = [
    *(b"a", b"5", b"5, 5", b"+5", b"\xb2", b"chunked", b"Chunked", b"gzip, chunked", b"", b" \t "),
    *(b"a b", b"\x00", b"\x0b", b"\x7f", b"\x01", b"\xff", b"a\rb", b"a\nb", b" x ", b"close"),
    *(b"9" * 21, b"05", b"\x1c", b"\x85"),
]
_ENDS = [b"\r\n", b"\n", b"\r\n ", b"\r\n\t", b"\r", b":", b" :"]

_lines = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    st.sampled_from(_NAMES),
    st.sampled_from([b": ", b":", b"", b" : ", b":\t"]),
    st.sampled_from(_VALUES) | st.binary(max_size=6),
    st.sampled_from([b"\r\n"] * 6 + _ENDS),
)
_fields = st.lists(_lines, max_size=5).map(b"".join)


def described(message: h11.Request | h11.Response) -> tuple[object, ...]:
    first: tuple[object, ...]
    if isinstance(message, h11.Request):
        first = message.method, message.target
    else:
        first = message.status_code, message.reason
    headers = message.headers
    return (*first, message.http_version, list(headers), headers.raw_items(), full_items(headers))


def by_h11(role: type[h11.CLIENT] | type[h11.SERVER], head: bytes) -> object:
    http = h11.Connection(role)
    if role is h11.CLIENT:
        http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    http.receive_data(head)
    try:
        return http.next_event()
    except h11.RemoteProtocolError as error:
        return error


@given(
    st.sampled_from([b"GET", b"a(b", b"POST"]),
    st.sampled_from([b"/", b"http://a/", b"*", b"\xff", b"a b"]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"]),
    _fields,
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r\nx"]),
)
@example(b"GET", b"/", b"HTTP/1.1", b"Host: a\r\n", b"\r\n")
@example(b"GET", b"/", b"HTTP/1.1", b"Host: a\r\nhost: b\r\n", b"\r\n")
@example(b"GET", b"/", b"HTTP/1.1", b"", b"\r\n")
@example(
    b"POST", b"/", b"HTTP/1.1", b"Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n", b"\r\n"
)
def test_a_request_that_is_read_as_plain_is_what_h11_reads(
    method: bytes, target: bytes, version: bytes, fields: bytes, end: bytes
) -> None:
    head = b" ".join((method, target, version)) + b"\r\n" + fields + end
    plain = parse_request(head)
    if plain is not None:
        other = by_h11(h11.SERVER, head)
        assert isinstance(other, h11.Request)
        assert described(plain) == described(other)


@given(
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/11"]),
    st.sampled_from([b"200", b"099", b"100", b"101", b"204", b"599", b"999", b"20", b"+20"]),
    st.sampled_from([b" OK", b"", b" ", b"  x", b" \xff", b" \t", b" a\rb", b" \x00", b"\tOK"]),
    _fields,
    st.sampled_from([b"\r\n", b"\r\n", b"\n"]),
)
@example(b"HTTP/1.1", b"200", b" OK", b"Content-Length: 5\r\nX: y\r\n", b"\r\n")
@example(
    b"HTTP/1.1", b"200", b" OK", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"\r\n"
)
def test_a_response_that_is_read_as_plain_is_what_h11_reads(
    version: bytes, status: bytes, reason: bytes, fields: bytes, end: bytes
) -> None:
    head = version + b" " + status + reason + b"\r\n" + fields + end
    plain = parse_response(head)
    if plain is not None:
        other = by_h11(h11.CLIENT, head)
        assert isinstance(other, h11.Response)
        assert described(plain) == described(other)


def test_usual_heads_are_plain() -> None:
    assert parse_request(b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: y z\r\nE:\r\n\r\n") is not None
    assert parse_response(b"HTTP/1.1 404 Not Found\r\nSet-Cookie: a=b; c\r\n\r\n") is not None


# --- what is written ------------------------------------------------------------------------------

_BODIES: list[list[Event]] = [
    [h11.EndOfMessage()],
    [h11.Data(b"hello"), h11.EndOfMessage()],
]


@pytest.mark.parametrize("asked_to_close", [False, True])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    ("method", "status"),
    [
        *((method, status) for method in ("GET", "HEAD") for status in (200, 204, 304, 404)),
        ("CONNECT", 404),  # the answer to a CONNECT that is served is written elsewhere
    ],
)
@pytest.mark.parametrize("field", [[], [("Content-Length", "5")], [("Connection", "close")]])
def test_an_answer_is_framed_as_h11_frames_it(
    asked_to_close: bool, version: bytes, method: str, status: int, field: list[tuple[str, str]]
) -> None:
    fields = [("Host", "a")] + ([("Connection", "x, Close")] if asked_to_close else [])
    request = h11.Request(method=method, target="/", headers=fields, http_version=version)
    has_body = (
        method != "HEAD" and status not in (204, 304) and (method, status) != ("CONNECT", 200)
    )
    response = h11.Response(status_code=status, headers=[*field, ("X", "y")], reason=b"R")
    parts = [response, *_BODIES[has_body]]
    http = h11.Connection(h11.SERVER)
    http.receive_data(encode_request(request).replace(b"HTTP/1.1", b"HTTP/" + version, 1))
    http.next_event()
    if method != "CONNECT":
        http.next_event()
    writer = AnswerWriter(request)
    assert [writer.encode(part) for part in parts] == [http.send(part) for part in parts]
    assert writer.complete == (http.our_state is h11.DONE)


@pytest.mark.parametrize(
    "field", [[], [("Content-Length", "5")], [("Transfer-Encoding", "chunked")]]
)
def test_a_request_is_written_as_h11_writes_it(field: list[tuple[str, str]]) -> None:
    request = h11.Request(method="PUT", target="/x", headers=[("Host", "a"), *field, ("X", "y")])
    http, writer = h11.Connection(h11.CLIENT), RequestWriter(request)
    assert writer.head == http.send(request)
    for part in _BODIES[bool(field)]:
        assert writer.encode(part) == http.send(part)
