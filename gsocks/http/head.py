"""What the head of a request may look like, and where the request wants to go.

h11 parses heads, and forgives some that others read differently: lines that end in a bare LF,
lines continued on the next one, two answers to how long the body is.  Where two programs in a row
disagree about the end of a request, a client can smuggle one past the first of them.  So such
heads are refused here (RFC 9112 sections 2.2, 3.2, 5.2, 6.3), before anything is made of them.

Nothing that a client wrote is repeated in an error but a host: a head has passwords in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

import h11

from gsocks.address import MAX_NAME, Address
from gsocks.errors import BadAddress, BadRequest, BodyTooLarge, HeadTooLarge

#: bytes of a head, and of what stands between two chunks of a body
MAX_HEAD = 65536

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e]+ HTTP/1\.[01]")
_AMBIGUOUS = (
    (re.compile(rb"(?<!\r)\n"), "a line ends in LF without CR"),
    (re.compile(rb"\r[^\n]"), "a CR stands inside of a line"),
    (re.compile(rb"\n[ \t]"), "a line continues the one before it"),
    # h11 refuses these too, but may take a second for each KiB of spaces before it does
    (re.compile(rb"[\0\v\f]"), "a control byte stands in the head"),
)

_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")

_WORDS = re.compile(r"[A-Za-z -]+")

#: of http:// and ws://, where no other is named
HTTP_PORT = 80
_LONGEST_AUTHORITY = MAX_NAME + len("[]:65535")

_IS_A_PROXY = (
    "this is a proxy, not a web server: it is asked for whole URLs (GET http://example.com/) and "
    "for CONNECT example.com:443, as a program does that has it configured as its HTTP proxy"
)


#: what has a head
Message: TypeAlias = h11.Request | h11.Response | h11.InformationalResponse


class Target(NamedTuple):
    """Where a request wants to go."""

    dest: Address
    #: what is asked of the origin server there (RFC 9112 section 3.2.1); empty for CONNECT
    path: bytes


def find_end(said: bytes | bytearray, seen: int) -> int:
    """Where the head at the beginning of ``said`` ends; 0 if more of it has to come.

    ``seen``: how much of ``said`` was looked at before.  Raises BadRequest as soon as this can't
    become a proper head any more, and HeadTooLarge.
    """
    found = said.find(_END, max(0, seen - len(_END) + 1))
    end = found + len(_END) if found >= 0 else 0
    for pattern, what in _AMBIGUOUS:
        if pattern.search(said, max(0, seen - 1), end or len(said)):
            raise BadRequest(what)
    first_line = said.find(b"\r\n")
    if seen < first_line + 2 and first_line >= 0:
        check_request_line(bytes(said[:first_line]))
    if (end or len(said)) > MAX_HEAD:
        raise HeadTooLarge(f"the head of the request is longer than {MAX_HEAD} bytes")
    return end


def check_request_line(line: bytes) -> None:
    """Raises BadRequest unless it is one of HTTP/1.0 or HTTP/1.1 (RFC 9112 section 3)."""
    if not _REQUEST_LINE.fullmatch(line):
        raise BadRequest("the first line is not a request of HTTP/1.1")


def check_framing(request: h11.Request) -> None:
    """Raises BadRequest if the length of its body can be read in two ways (RFC 9112 section 6.3).

    Lengths that differ and codings other than chunked are refused by h11.
    """
    length = header(request, b"content-length")
    chunked = header(request, b"transfer-encoding") is not None
    if chunked and length is not None:
        raise BadRequest("Content-Length and Transfer-Encoding in one request")
    if chunked and request.http_version < b"1.1":
        raise BadRequest("Transfer-Encoding in a request of HTTP/1.0")
    if request.method == b"CONNECT" and (chunked or int(length or 0)):
        raise BadRequest("CONNECT has no body")


def check_length(request: h11.Request, most: int | None) -> None:
    """Raises BodyTooLarge if the request says that its body has more than ``most`` bytes."""
    if most is not None and int(header(request, b"content-length") or 0) > most:
        raise BodyTooLarge(f"a body of more than {most} bytes")


def target(request: h11.Request) -> Target:
    """Where ``request`` wants to go.

    Raises BadRequest, with words for whoever has mistaken the proxy for something else, and
    BadAddress.
    """
    if request.method == b"CONNECT":
        return Target(_authority(request.target, None), b"")
    url = _ABSOLUTE.fullmatch(request.target)
    if url is None:
        raise BadRequest(_IS_A_PROXY)
    scheme, authority, path = url[1].lower(), url[2], url[3]
    if scheme in (b"https", b"wss"):
        told = scheme.decode("ascii")
        raise BadRequest(f"{told}:// goes through a proxy by CONNECT, which keeps it secret")
    # RFC 6455 would have CONNECT for ws:// too, but aiohttp upgrades a request like any other
    if scheme not in (b"http", b"ws"):
        raise BadRequest(f"{scheme.decode('ascii')[:20]}:// is not served, only http:// is")
    dest = _authority(authority, HTTP_PORT)
    host = header(request, b"host")
    if host is not None and _authority(host, HTTP_PORT) != dest:
        raise BadRequest("the Host field names another server than the URL does")
    if path.startswith(b"/"):
        return Target(dest, path)
    if request.method == b"OPTIONS" and not path:  # RFC 9112 section 3.2.4
        return Target(dest, b"*")
    return Target(dest, b"/" + path)


def header(message: Message, name: bytes) -> bytes | None:
    """The value of the first field called ``name``, in small letters; None if there is none."""
    return next((value for found, value in message.headers if found == name), None)


def options(message: Message, name: bytes) -> list[bytes]:
    """The members of the comma-separated fields called ``name``, as they are written."""
    values = (value for found, value in message.headers if found == name)
    return [member.strip() for value in values for member in value.split(b",") if member.strip()]


def words(error: h11.RemoteProtocolError) -> str:
    """What h11 objects to, without the bytes that it quotes behind a colon."""
    said = _WORDS.match(str(error))
    return said[0] if said else "not HTTP"


def _authority(raw: bytes, default_port: int | None) -> Address:
    """``host:port`` or ``host`` (RFC 3986 section 3.2).  Raises BadAddress."""
    if b"@" in raw:
        raise BadAddress("a user name or password stands in front of the host")
    parts = _AUTHORITY.fullmatch(raw.decode("latin-1"))
    if len(raw) > _LONGEST_AUTHORITY or parts is None or not (parts[2] or default_port):
        raise BadAddress("the destination is not host:port")
    return Address.of(parts[1], int(parts[2] or default_port or 0))
