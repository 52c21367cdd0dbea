"""The head of a request: its end, its framing and its target.

h11, which parses heads that are not plain, accepts some that other programs read differently:
lines that end in a bare LF, lines continued on the next one, two lengths of one body.  Where two
programs in a row disagree about the end of a request, a client can smuggle one past the first
(request smuggling).  So such heads are refused (RFC 9112 sections 2.2, 3.2, 5.2, 6.3) before they
are parsed.  CONNECT alone may have LF at the end of every line: nothing of it is forwarded, and no
request follows it.

What a target has that no request target may have, but that programs send and other proxies serve,
is rewritten before it is forwarded: bytes that are not ASCII, a fragment, a user name and password
(:func:`ascii_target`, :func:`normalized`).

An error repeats nothing of a head but the host, because a head contains passwords.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

import h11

from gsocks.address import MAX_NAME, Address, decode_name, ip_of
from gsocks.errors import BadAddress, BadRequest, BodyTooLarge, HeadTooLarge, Http2NotServed
from gsocks.http.message import Message, has_odd_bytes, header
from gsocks.http.token import TOKEN

#: a part of a request or of a response
Event: TypeAlias = (
    h11.Request | h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage
)

#: bytes of a head, and of the lines between two chunks of a body
MAX_HEAD = 65536

#: fields of a request, each of which takes its time before the client has logged in; Apache,
#: Tomcat, HAProxy, Envoy and hyper have half as many by default
MAX_FIELDS = 200

_END = b"\r\n\r\n"
_BARE_END = b"\n\n"
_REQUEST_LINE = re.compile(rf"{TOKEN} [\x21-\x7e\x80-\xff]+ HTTP/1\.[01]".encode("latin-1"))
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_AMBIGUOUS = (
    (re.compile(rb"(?<!\r)\n"), "a line ends in LF without CR"),
    (re.compile(rb"\r[^\n]"), "a CR inside of a line"),
    (re.compile(rb"\n[ \t]"), "a line continues the one before it"),
    # h11 refuses these too, but may need a second for each KiB of spaces before
    (re.compile(rb"[\0\v\f]"), "a control byte in the head"),
)
#: the same where the first line ends in LF
_AMBIGUOUS_BARE = (
    (re.compile(rb"\r"), "a CR in a head whose first line ends in LF without CR"),
    *_AMBIGUOUS[2:],
)

_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
# a percent-encoded byte that is not ASCII
_ENCODED = re.compile(rb"%[89A-Fa-f][0-9A-Fa-f]")
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")
# An IPv6 address and a port, as rsync, Qt, axios and others write it: of CONNECT the last number is
# always the port.
_UNBRACKETED = re.compile(r"([0-9A-Fa-f:.]+):([0-9]{1,5})")

#: the beginning of a connection of HTTP/2 whose client does not ask before (RFC 9113 section 3.4)
_HTTP2 = b"PRI * HTTP/2.0\r\n"

_WORDS = re.compile(r"[A-Za-z -]+")

#: the default port of http:// and ws://
HTTP_PORT = 80
_MAX_AUTHORITY = MAX_NAME + len("[]:65535")

_IS_A_PROXY = (
    "this is a proxy, not a web server: configure it as the HTTP proxy of a program, which then "
    "requests whole URLs (GET http://example.com/) and CONNECT example.com:443"
)


class RequestTarget(NamedTuple):
    """The destination of a request."""

    dest: Address
    #: the request target for the origin server (RFC 9112 section 3.2.1); empty for CONNECT
    path: bytes


def find_end(data: bytes | bytearray, seen: int) -> int:
    """The length of the head at the beginning of ``data``; 0 if it is incomplete.

    ``seen``: how many bytes of ``data`` an earlier call has checked.  Raises BadRequest as soon as
    the bytes can't become a valid head, and HeadTooLarge.
    """
    # first of all, so that it makes no difference in which pieces the bytes arrive
    if data.startswith(_HTTP2):
        raise Http2NotServed(
            "HTTP/2 without asking (prior knowledge, h2c): this proxy speaks HTTP/1.1, which the"
            " client has to be told (curl: without --http2-prior-knowledge)"
        )
    is_bare = _is_bare(data)
    blank = _BARE_END if is_bare else _END
    found = data.find(blank, max(0, seen - len(blank) + 1))
    end = found + len(blank) if found >= 0 else 0
    if not end or seen or is_bare or has_odd_bytes(data[:end]):
        for pattern, what in _AMBIGUOUS_BARE if is_bare else _AMBIGUOUS:
            if pattern.search(data, max(0, seen - 1), end or len(data)):
                raise BadRequest(what)
    line_end = data.find(b"\n", seen)
    if line_end >= 0 and data.find(b"\n") == line_end:
        check_request_line(bytes(data[: line_end if is_bare else line_end - 1]))
    if (end or len(data)) > MAX_HEAD:
        raise HeadTooLarge(f"the head of the request is longer than {MAX_HEAD} bytes")
    # behind the last field is one more line
    if end and data.count(b"\n", 0, end) - 2 > MAX_FIELDS:
        raise HeadTooLarge(f"the head of the request has more than {MAX_FIELDS} fields")
    return end


def _is_bare(data: bytes | bytearray) -> bool:
    """Whether ``data`` begins with a CONNECT whose first line ends in LF without CR, as irssi's
    HOWTO has it."""
    if not data.startswith(b"CONNECT "):
        return False
    line_end = data.find(b"\n")
    return line_end >= 0 and not data.startswith(b"\r", line_end - 1)


def with_crlf(head: bytes) -> bytes:
    """``head``, as :func:`find_end` has found it, with lines that end in CRLF."""
    return head.replace(b"\n", b"\r\n") if head.endswith(_BARE_END) else head


def check_request_line(line: bytes) -> None:
    """Raises BadRequest unless ``line`` is one of HTTP/1.0 or HTTP/1.1 (RFC 9112 section 3)."""
    if not _REQUEST_LINE.fullmatch(line):
        raise BadRequest("the first line is not a request of HTTP/1.1")


def ascii_target(head: bytes) -> bytes:
    """``head`` with those bytes of its target percent-encoded that are not ASCII.

    curl and others send the path of a URL as it was typed.  The origin server decodes the same
    bytes from both forms (RFC 3987 section 3.1), and only the encoded one is a request target.
    """
    line, end, rest = head.partition(b"\r\n")
    if line.isascii():
        return head
    return _NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], line) + end + rest


def with_host(head: bytes) -> bytes:
    """``head`` with a Host field, if it has none and its target says where it goes.

    RFC 9112 section 3.2 has 400 for that, but lftp, links and others leave it out, and as CONNECT
    and an absolute URL go where their target says, nothing depends on it.
    """
    if head.lower().find(b"\nhost:") >= 0:
        return head
    line, end, rest = head.partition(b"\r\n")
    method, _, behind = line.partition(b" ")
    host = behind.partition(b" ")[0]
    if method != b"CONNECT":
        url = _ABSOLUTE.match(host)
        if url is None:
            return head
        host = url[2].rpartition(b"@")[2]
    return line + b"\r\nHost: " + host + end + rest


def normalized(request: h11.Request) -> h11.Request:
    """``request`` without the fragment and the user name that its URL has.

    A fragment is for the client only (RFC 3986 section 3.5), and so are the user name and the
    password (RFC 9110 section 4.2.4): whether and how the origin server is told of them is for the
    client's Authorization, or else a site that asks for Digest would be sent them in clear.
    """
    # not `in`, which first tries whether it is a number
    if request.target.find(b"#") < 0 and request.target.find(b"@") < 0:
        return request
    url = _ABSOLUTE.match(request.target)
    if url is None or not (b"#" in request.target or b"@" in url[2]):
        return request
    return h11.Request(
        method=request.method,
        target=url[1] + b"://" + url[2].rpartition(b"@")[2] + url[3],
        headers=request.headers.raw_items(),
        http_version=request.http_version,
    )


def check_framing(request: h11.Request) -> None:
    """Raises BadRequest if the length of the body is ambiguous (RFC 9112 section 6.3).

    h11 refuses several different lengths, and codings other than chunked.
    """
    length = header(request, b"content-length")
    chunked = header(request, b"transfer-encoding") is not None
    if chunked and length is not None:
        raise BadRequest("Content-Length and Transfer-Encoding in one request")
    if chunked and request.http_version < b"1.1":
        raise BadRequest("Transfer-Encoding in a request of HTTP/1.0")
    if request.method == b"CONNECT" and (chunked or int(length or 0)):
        raise BadRequest("CONNECT has no body")


def check_length(request: h11.Request, limit: int | None) -> None:
    """Raises BodyTooLarge if the Content-Length of ``request`` is more than ``limit`` bytes."""
    if limit is not None and int(header(request, b"content-length") or 0) > limit:
        raise BodyTooLarge(f"a body of more than {limit} bytes")


def target(request: h11.Request) -> RequestTarget:
    """The destination of ``request``, which is :func:`normalized`.

    It is that of the URL: a Host field is ignored (RFC 9112 section 3.2.2).  Raises BadAddress, and
    BadRequest, with an explanation for a program that takes the proxy for a web server.
    """
    if request.method == b"CONNECT":
        return RequestTarget(_authority(request.target, None), b"")
    url = _ABSOLUTE.fullmatch(request.target)
    if url is None:
        raise BadRequest(_IS_A_PROXY)
    scheme, authority, path = url[1].lower(), url[2], url[3]
    if scheme in (b"https", b"wss"):
        secure = scheme.decode("ascii")
        raise BadRequest(f"{secure}:// goes through a proxy by CONNECT, which keeps it encrypted")
    # RFC 6455 has CONNECT for ws:// too, but aiohttp sends it as an ordinary request
    if scheme not in (b"http", b"ws"):
        raise BadRequest(f"{scheme.decode('ascii')[:20]}:// is not served, only http:// is")
    dest = _authority(authority, HTTP_PORT)
    if path.startswith(b"/"):
        return RequestTarget(dest, path)
    if request.method == b"OPTIONS" and not path:  # RFC 9112 section 3.2.4
        return RequestTarget(dest, b"*")
    return RequestTarget(dest, b"/" + path)


def host_of(field: bytes, default_port: int) -> Address:
    """The host in the value of a Host field (RFC 9110 section 7.2).  Raises BadAddress."""
    return _authority(field.strip(), default_port)


def options(message: Message, name: bytes) -> list[bytes]:
    """The members of the comma-separated fields ``name``, as they are written."""
    if header(message, name) is None:
        return []
    values = (value for found, value in message.headers if found == name)
    return [member.strip() for value in values for member in value.split(b",") if member.strip()]


def wants_trailers(request: h11.Request) -> bool:
    """Whether the sender of ``request`` takes trailers, by its TE (RFC 9110 section 10.1.4)."""
    if header(request, b"te") is None or request.http_version < b"1.1":
        return False
    words = (option.partition(b";")[0].strip().lower() for option in options(request, b"te"))
    return b"trailers" in words


def error_reason(error: h11.RemoteProtocolError) -> str:
    """Why h11 refuses a message, without the bytes that it quotes behind a colon."""
    words = _WORDS.match(str(error))
    return words[0] if words else "not HTTP"


@lru_cache(4096)
def _authority(raw: bytes, default_port: int | None) -> Address:
    """``host:port`` or ``host`` (RFC 3986 section 3.2).  Raises BadAddress."""
    if b"@" in raw:
        raise BadAddress("a user name or password in front of the host")
    # a name in another script, RFC 3986 section 3.2.2; an encoded ASCII character has no reason
    name = raw[: 3 * _MAX_AUTHORITY + 1]
    name = _ENCODED.sub(lambda byte: unquote_to_bytes(byte[0]), name)
    if len(name) > _MAX_AUTHORITY:
        raise BadAddress("the destination is longer than any host:port")
    text = decode_name(name)
    six = _UNBRACKETED.fullmatch(text) if default_port is None else None
    if six is not None and ":" in six[1] and ip_of(six[1]) is not None:
        return Address.of(six[1], int(six[2]))
    parts = _AUTHORITY.fullmatch(text)
    if parts is None or not (parts[2] or default_port):
        raise BadAddress("the destination is not host:port")
    return Address.of(parts[1], int(parts[2] or default_port or 0))
