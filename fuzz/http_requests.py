"""HTTP of a client: CONNECT and absolute-form requests, one after the other.

The listener is the real one, except for the sockets on either side of it.  The origin server
answers each request as soon as it is complete.  The request that it receives must be the client's,
in its only reading; and an ambiguous request must not reach it.

The first byte of the input selects whether the listener has users, and how the client ends.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Any, NamedTuple
from unittest.mock import patch

import gevent
from gevent.event import Event

from fuzz.greeting import ALICE
from fuzz.http_model import Message, Url, read_authority, read_body, read_head, read_host, read_url
from fuzz.model import Dest, Short, Taker, Wrong
from fuzz.username import model_split
from fuzz.wire import Wire, WireStream, at_random, byte_by_byte, whole
from gsocks.access.login import OPEN, Authenticator
from gsocks.access.rules import ALLOW_ALL
from gsocks.address import Address
from gsocks.errors import GsocksError, StreamClosed
from gsocks.exits.base import Connected
from gsocks.handshake import printable
from gsocks.http.pac import PAC_TYPE
from gsocks.inbound.active_request import ActiveRequest, Endable
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.http_client import HTTP2_REFUSAL
from gsocks.local import LocalServer
from gsocks.observe import Record, Trace
from gsocks.request import Request
from gsocks.rotation.group import ExitGroup
from gsocks.stream import SocketStream, Stream, scratch_of_this_hub

_TO = b" http://a/ HTTP/1.1\r\nHost: a\r\n"
_GET = b"GET" + _TO + b"\r\n"
_ALICE = b"Proxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n"

SEEDS = [
    b"\x00" + _GET + _GET,
    b"\x00GET http://a:81?x HTTP/1.0\r\nHost: A:81\r\n\r\n",
    b"\x00POST" + _TO + b"Content-Length: 5\r\n\r\nhello" + _GET,
    b"\x00PUT"
    + _TO
    + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n"
    + _GET,
    b"\x00CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nbehind",
    b"\x00CONNECT [::1]:443 HTTP/1.0\r\n\r\n",
    b"\x00CONNECT ::1:443 HTTP/1.1\r\n\r\nbehind",
    b"\x00CONNECT a:443 HTTP/1.0\n\nbehind",
    b"\x00CONNECT a:443 HTTP/1.1\nX: y\n\nbehind\r\n\r\n",
    b"\x00GET http://u@a/ HTTP/1.1\r\n\r\n" + _GET,
    b"\x00GET" + _TO + b"Connection: close, X\r\nX: y\r\nKeep-Alive: 5\r\n\r\n" + _GET,
    b"\x00GET" + _TO + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"\x00POST" + _TO + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    b"\x00OPTIONS http://a HTTP/1.1\r\nHost: a\r\nMax-Forwards: 5\r\n\r\n",
    b"\x00TRACE" + _TO + b"Max-Forwards: 0\r\nCookie: x\r\n\r\n" + _GET,
    b"\x00GET http://u:p@a/b#c HTTP/1.1\r\nHost: b\r\n\r\n",
    b"\x00GET http://a/caf\xe9?\xc3\xbc HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\n\r\n",
    b"\x00HEAD http://[::1]:8080/x HTTP/1.1\r\nHost: [::1]:8080\r\nTE: trailers\r\n\r\n",
    b"\x00PUT" + _TO + b"TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
    b"\x00PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00" + _GET + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00POST" + _TO + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"\x00POST" + _TO + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\x02POST" + _TO + b"Content-Length: 5\r\n\r\nhel",
    b"\x00GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b'\x00GET /wpad.dat HTTP/1.1\r\nHost: a"\r\n\r\n' + _GET,
    b"\x01HEAD /proxy.pac?x HTTP/1.1\r\nHost: a\r\n\r\n" + _GET,
    b"\x01GET / HTTP/1.1\r\nHost: [::1]\r\nAccept: text/html\r\n\r\n" + _GET,
    b"\x00GET" + _TO + b"X: y\r\n z\r\n\r\n",
    b"\x01GET" + _TO + _ALICE + b"\r\n" + _GET,
    b"\x01" + _GET + b"GET" + _TO + _ALICE + b"\r\n",
    b"\x01CONNECT a:443 HTTP/1.1\r\nHost: a\r\n" + _ALICE + b"\r\nbehind",
]
WORDS = [
    *(
        b"GET",
        b"POST",
        b"CONNECT",
        b"HEAD",
        b"OPTIONS",
        b" http://a/",
        b"u:p@",
        b"#",
        b" HTTP/1.1\r\n",
        b"Host: a\r\n",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        _ALICE,
    ),
    *(
        b"Connection: ",
        b"Upgrade: ",
        b"Expect: 100-continue\r\n",
        b"TE: ",
        b"trailers",
        b"X: y\r\n",
        b"\r\n\r\n",
    ),
    *(
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"identity",
        b"gzip, chunked",
        b"\n",
        b"\r",
        b"\t",
        b"\x0b",
        b"\0",
    ),
    *(
        _GET,
        b"HTTP/1.0",
        b"Proxy-Connection: keep-alive\r\n",
        b"Content-Length: 0\r\n",
        b"Max-Forwards: ",
    ),
]

_THENS = ("end", "reset")
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
_ANSWER_HEAD = re.compile(
    rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*"
    rb"(?:\r\n(?:Content-Length: ([0-9]+)|[^:\r\n]+: [^\r\n]*))+\r\n\r\n"
)
#: for one connection, or for this proxy only (RFC 9110 section 7.6.1)
_BETWEEN_TWO = {
    *(b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding"),
    *(b"upgrade", b"proxy-authorization", b"proxy-authenticate", b"http2-settings"),
    b"proxy-authentication-info",
}


class Asked(NamedTuple):
    """What one origin server was asked."""

    dest: Address
    connect: bool
    #: empty for CONNECT
    head: bytes
    #: the body, or what stood behind CONNECT; None if it was reset before its end
    body: bytes | None


class Served(NamedTuple):
    asked: list[Asked]
    told: bytes


def check(data: bytes) -> None:
    mode = data[0] if data else 0
    users, said = bool(mode & 1), data[1:]
    if not re.match(rb"[A-Z]", said):  # by which the listener detects the protocol
        said = b"G" + said
    wanted, all_plain, settled = _model(said, users=users)
    wholly_said = sum(one.body is not None for one in wanted)
    wholes = set()
    then = _THENS[mode >> 1 & 1]
    for pieces in (whole, (byte_by_byte, at_random)[len(said) % 2]):
        asked, told = _serve(said, pieces, then, users=users)
        assert len(asked) <= len(wanted) or not settled, (asked, wanted)
        assert not all_plain or len(asked) >= wholly_said, (asked, wanted)
        for one, want in zip(asked, wanted, strict=False):
            # a client that resets behind its request may be noticed before it is answered
            if one.body is not None or then != "reset":
                want.compare(one)
        answers = _read_answers(told, asked)
        wholes.add((*(one for one in asked if one.body is not None), *answers))
    assert len(wholes) == 1 or not settled or then == "reset", wholes


# --- the listener, between two sides in memory ------------------------------------------------


def _serve(said: bytes, pieces: Any, then: str, *, users: bool) -> Served:
    wire: Any = Wire(said, pieces, then)
    faults: list[object] = []
    hub = gevent.get_hub()
    with patch.object(hub, "handle_error", lambda *fault: faults.append(fault)):
        _LISTENER.begin(ALICE if users else OPEN)
        _LISTENER.serve(_Connection(_LISTENER.context, wire, Address("192.0.2.1", 50000)))
        _ORIGINS.settle()
    assert wire.closed
    assert not faults, faults
    assert "stopped" not in _LISTENER.outcomes
    return Served([origin.asked() for origin in _ORIGINS.all], bytes(wire.told))


class _Listener(LocalServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ExitGroup([_ORIGINS], ALLOW_ALL), observer=self)

    def begin(self, login: Authenticator) -> None:
        """Forget what was, and let those in."""
        self.outcomes: list[str] = []
        self._welcomes = login
        _ORIGINS.all.clear()

    def authenticator_for(self, client: Address) -> Authenticator:
        return self._welcomes

    def ended(self, record: Record) -> None:
        assert record.detail.isprintable()
        self.outcomes.append(record.outcome)


class _Connection(ClientConnection):
    def _new_request(self, request_id: str, trace: Trace) -> ActiveRequest:
        record = Record("local", str(self.client), request_id, trace)
        return _ActiveRequest(self.context, record)


class _ActiveRequest(ActiveRequest):
    def carry(
        self,
        request: Request,
        answer: Any,
        client: Stream,
        ending: Endable | None = None,
        sock: object = None,
        after: object = None,
    ) -> bool:
        """CONNECT: what stands behind it is any protocol."""
        answer.succeeded(request.dest, "nowhere")
        origin = _ORIGINS.add(request.dest, connect=True)
        assert isinstance(client, SocketStream)
        scratch = scratch_of_this_hub()
        while client.has_buffered:
            origin.said += client.read_nowait(scratch) or b""
        stream = WireStream(client.detach())  # type: ignore[arg-type]
        try:
            while data := stream.read():
                origin.said += data
        except GsocksError:
            pass  # reset, as it may be
        stream.close()
        assert ending is not None
        ending.end()
        return True


class _Origins:
    """An exit, behind which every server answers."""

    label = "nowhere"

    def __init__(self) -> None:
        self.all: list[_Origin] = []

    def start(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing is kept."""

    def connect(self, request: Request) -> Connected:
        return Connected(self.add(request.dest), request.dest)

    def add(self, dest: Address, *, connect: bool = False) -> _Origin:
        self.all.append(_Origin(dest, connect=connect))
        return self.all[-1]

    def settle(self) -> None:
        """Wait until all is closed: the listener drains a server's stream in the background."""
        for origin in self.all:
            origin.closed.wait()


class _Origin:
    """A stream to a server that answers once its request is whole."""

    def __init__(self, dest: Address, *, connect: bool) -> None:
        self._dest = dest
        self._connect = connect
        self.said = b""
        self._answers = [b""]
        self._whole = Event()
        self._broken = False
        self._ambiguous = False
        self.closed = Event()
        if connect:
            self.closed.set()

    def asked(self) -> Asked:
        assert not self._ambiguous, self.said
        if self._connect:
            return Asked(self._dest, True, b"", self.said)
        take = Taker(self.said)
        if self._broken:
            return Asked(self._dest, False, self.said[: self.said.find(b"\r\n\r\n") + 4], None)
        body = read_body(take, read_head(take).size())
        return Asked(self._dest, False, self.said[: self.said.find(b"\r\n\r\n") + 4], body)

    def read(self) -> bytes:
        self._whole.wait()
        if self._broken:
            raise StreamClosed
        return self._answers.pop() if self._answers else b""

    def write(self, data: bytes) -> None:
        self.said += data
        take = Taker(self.said)
        try:
            head = read_head(take)
            read_body(take, head.size())
        except Short:
            return
        except Wrong:
            self._ambiguous = True
            head = read_head(Taker(self.said))
        # one request, and no other is smuggled in behind it
        self._ambiguous = self._ambiguous or bool(take.rest)
        if not self._whole.is_set():
            self._answers.append(_ANSWER + (b"" if head.method == b"HEAD" else b"ok"))
            self._whole.set()

    def write_eof(self) -> None:
        """It has heard all that it will hear."""

    def abort(self) -> None:
        if not self.closed.is_set():
            self._broken = True
            self._whole.set()
            self.closed.set()

    def close(self) -> None:
        self.closed.set()


_ORIGINS = _Origins()
_LISTENER = _Listener()


# --- what it should have come to ----------------------------------------------------------------


class Wanted(NamedTuple):
    """A request as the model reads it."""

    message: Message
    url: Url
    #: None if the client has not said all of it, or has said what is no body
    body: bytes | None
    #: what stands behind CONNECT
    behind: bytes

    def compare(self, asked: Asked) -> None:
        assert Dest(3, self.url.host, self.url.port).is_said_by(*asked.dest), (self, asked)
        assert asked.connect == (self.message.method == b"CONNECT"), (self, asked)
        assert asked.body == (self.behind if asked.connect else self.body), (self, asked)
        if asked.head:
            self._compare_heads(read_head(Taker(asked.head)), asked)

    def _compare_heads(self, head: Message, asked: Asked) -> None:
        assert (head.method, head.target, head.modern) == (self.message.method, self.url.path, True)
        host = read_authority(read_host(head) or b"")
        assert Dest(3, host.host, host.port).is_said_by(*asked.dest), asked
        takes = _takes_trailers(self.message)
        assert set(head.members(b"connection")) <= {b"close", b"upgrade", *([b"te"] * takes)}
        assert head.members(b"te") == [b"trailers"] * takes, asked
        counted = {b"max-forwards"} if _forwards(self.message) is not None else set()
        assert _forwards(head) == (_forwards(self.message) or 0) - 1 or not counted, asked
        named = {
            *_BETWEEN_TWO,
            *counted,
            b"host",
            b"content-length",
            *self.message.members(b"connection"),
        }
        if not self.message.modern:
            named.add(b"expect")
        others = _others(self.message, named | {b"expect"})
        assert _others(head, named | {b"expect"}) == others, asked
        assert not head.values(b"proxy-authorization"), asked


def _takes_trailers(message: Message) -> bool:
    """Whether its client does, so that the server is told."""
    words = [word.partition(b";")[0].strip() for word in message.members(b"te")]
    return message.modern and b"trailers" in words


def _others(message: Message, but: set[bytes]) -> list[tuple[bytes, bytes]]:
    return [field for field in message.fields if field[0].lower() not in but]


def _model(said: bytes, *, users: bool) -> tuple[list[Wanted], bool, bool]:
    """The requests that may reach a server; whether there is no reason to refuse any; and whether
    there can be no others.

    The exit selector in a user's name may be refused.  Behind a CONNECT without credentials is
    another request, or data that its client sent for the tunnel too early; and the body behind
    other requests without credentials is read if it is there.  Which of the two it is depends on
    whether it arrived before the refusal.
    """
    take, wanted, plain, settled = Taker(said), list[Wanted](), True, True
    try:
        while True:
            message = read_head(take)
            size = message.size()
            read_host(message)  # there is one, whatever it says
            if message.method == b"CONNECT" and size != 0:
                raise Wrong
            if users and not _is_alice(message):
                if _is_alice(message, selecting=True):
                    settled = False
                    break
                if message.method == b"CONNECT" or size != 0:
                    settled = not take.rest
                    break
                if _gets_own_page(message):  # without a login, and no other behind it
                    break
                if b"close" in message.members(b"connection") or not message.modern:
                    break
                continue
            url = read_url(message)
            plain = plain and _is_plain(message, url)
            if message.method == b"CONNECT":
                wanted.append(Wanted(message, url, b"", take.rest))
                break
            if _forwards(message) == 0:
                read_body(take, size)
                if b"close" in message.members(b"connection") or not message.modern:
                    break
                continue
            wanted.append(Wanted(message, url, None, b""))
            wanted[-1] = Wanted(message, url, read_body(take, size), b"")
            if b"close" in message.members(b"connection") or not message.modern:
                break
    except (Short, Wrong):
        pass
    return wanted, plain and not users, settled


def _forwards(message: Message) -> int | None:
    """How many may pass it on, if it says so."""
    said = message.values(b"max-forwards")[:1]
    if message.method not in (b"TRACE", b"OPTIONS") or not said or not said[0].isdigit():
        return None
    return min(int(said[0]), 999_999_999)


def _gets_own_page(message: Message) -> bool:
    """Whether it is what a browser asks a web server for."""
    if message.method not in (b"GET", b"HEAD") or not message.target.startswith(b"/"):
        return False
    if message.values(b"content-length") or message.values(b"transfer-encoding"):
        return False
    accepted = b"".join(message.values(b"accept")[:1]).lower()
    own = (b"/proxy.pac", b"/wpad.dat", b"/favicon.ico")
    return message.target.partition(b"?")[0] in own or b"text/html" in accepted


def _is_alice(message: Message, *, selecting: bool = False) -> bool:
    """Whether the credentials are Alice's; ``selecting``: also with an exit selector."""
    given = message.values(b"proxy-authorization")
    if len(given) != 1:
        return False
    scheme, _, rest = given[0].partition(b" ")
    try:
        name, _, password = b64decode(rest.strip()).partition(b":")
    except ValueError:
        return False
    user, selector = model_split(printable(name), {"alice"})
    hers = scheme.lower() == b"basic" and (user, password) == ("alice", b"secret")
    return hers and (selecting or (not selector and rest.strip() == _ALICE.split()[2]))


def _is_plain(message: Message, url: Url) -> bool:
    """Whether there is no reason to refuse it."""
    fields = (b"content-length", b"transfer-encoding", b"host", b"x", b"expect")
    return (
        url.host == b"a"
        and all(
            name.lower() in fields and value.isascii() and value.decode("ascii").isprintable()
            for name, value in message.fields
        )
        and message.values(b"expect") in ([], [b"100-continue"])
    )


def _read_answers(told: bytes, asked: list[Asked]) -> list[tuple[bytes, bool]]:
    """The status of each answer, and whether it ends the connection.

    Each server's answer has come, each refusal is told, and nothing stands behind an end.
    """
    answers: list[tuple[bytes, bool]] = []
    # which has no answers, but one refusal
    take, served, ends = Taker(told.removesuffix(HTTP2_REFUSAL)), 0, False
    while take.rest:
        assert not ends, told
        found = _ANSWER_HEAD.match(take.rest)
        assert found is not None, told
        take(found.end())
        size, ends = int(found[2] or 0), b"\r\nConnection: close\r\n" in found[0]
        if b"\r\nProxy-Status: " not in found[0]:
            assert found[1] == b"200", told  # what was for the proxy only
            if take.rest or PAC_TYPE.encode() not in found[0]:  # of which HEAD has no body
                take(size)
        else:
            head = not take.rest or take.rest.startswith(b"HTTP/1.1 ")
            if found[1] == b"200":
                served += 1
                head = asked[served - 1].head.startswith(b"HEAD ")
            else:
                assert b"\r\nProxy-Status: gsocks; error=" in found[0], told
            assert head or len(take(size)) == size, told
        answers.append((found[1], ends))
    assert served == sum(one.body is not None for one in asked), (told, asked)
    return answers
