"""WebSocket (RFC 6455) as a layer of a tunnel: for the way through a web server or a CDN.

The bytes of a direction are the payload of its binary messages, whose bounds mean nothing.  HTTP is
spoken for one request only; the server answers one that does not ask for its WebSocket as a web
server does that has no pages.
"""

from __future__ import annotations

import hmac
import re
from email.utils import formatdate
from http import HTTPStatus

import h11
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, generate_accept_token, generate_nonce

from gsocks.errors import (
    BadRequest,
    ClientError,
    HeadTooLarge,
    Stranger,
    Truncated,
    WebSocketFailed,
)
from gsocks.http.head import find_end, options
from gsocks.http.message import has_odd_bytes, header, parse_request
from gsocks.sock import READ, WRITE
from gsocks.stream import NOTHING, Bytes
from gsocks.transport.layers import BARE, Below, Layer

#: bytes of a message, and of the head of a request or an answer
MAX_MESSAGE = 1 << 20
MAX_HEAD = 16384
#: frames that are read in one step, some tenths of a millisecond: they may be of a byte each
MAX_FRAMES_AT_ONCE = 16
#: bytes of a head that are received at once
_AT_ONCE = 4096

_VERSION = b"13"
#: 16 bytes in base64
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [^\r\n]*)?")


class _WebSocketLayer(Layer):
    """What both ends share: messages, behind the handshake."""

    __slots__ = ("_answer_due", "_engine", "_head", "_is_cut", "_left", "_message")

    #: set by the handshake
    _engine: Connection

    def __init__(self, below: Below) -> None:
        super().__init__(below)
        #: of the handshake, as much as has come
        self._head = bytearray()
        #: payload for which there was no room
        self._left: Bytes | bytearray = NOTHING
        #: whether the engine may have more frames
        self._is_cut = False
        #: bytes of the present message that have come
        self._message = 0
        #: see _make_answer
        self._answer_due = b""

    def receive_some(self, fd: int, room: memoryview) -> int | None:
        """See :meth:`gsocks.transport.layers.Below.receive_some`."""
        filled = self._deliver(room)
        if not (filled or self._is_cut or self._is_over or self._failure):
            count = self._below.receive_some(fd, room)
            if count:
                self._engine.receive_data(bytes(room[:count]))
                self._is_cut = True
                filled = self._deliver(room)
            elif count == 0:
                self._is_over = True
        self.has_backlog = bool(self._left) or self._is_cut or self._below.has_backlog
        return self._received(fd, filled)

    def _deliver(self, room: memoryview) -> int:
        """Payload of the frames that have come, as far as there is room."""
        left, self._left = self._left, NOTHING
        filled = self._put(left, room)
        events, frames = self._engine.events(), MAX_FRAMES_AT_ONCE
        while self._is_cut and frames and not self._left:
            event = next(events, None)
            frames -= 1
            if isinstance(event, BytesMessage):
                self._message += len(event.data)
                if self._message > MAX_MESSAGE:
                    self._fail(CloseReason.MESSAGE_TOO_BIG, "a message is too long")
                else:
                    filled += self._put(event.data, room[filled:])
                if event.message_finished:
                    self._message = 0
            elif event is None:
                self._is_cut = False
            else:
                self._control(event)
        return filled

    def _put(self, data: Bytes | bytearray, room: memoryview) -> int:
        part = data[: len(room)]
        room[: len(part)] = part
        self._left = data[len(part) :] or NOTHING
        return len(part)

    def _control(self, event: Event) -> None:
        """What is no payload."""
        is_open = self._engine.state is ConnectionState.OPEN
        if isinstance(event, Ping):
            if is_open:  # to answer the last of many is enough
                self._answer_due = self._engine.send(event.response())
        elif isinstance(event, TextMessage):
            self._fail(CloseReason.UNSUPPORTED_DATA, "a message of text")
        elif isinstance(event, CloseConnection):
            if is_open:  # the far end has not sent that, but what makes it due
                self._fail(event.code, "a frame that RFC 6455 forbids")
                return
            self._is_over, self._is_cut = True, False
            if self._engine.state is ConnectionState.REMOTE_CLOSING:
                self._answer_due = self._engine.send(event.response())

    def _fail(self, code: int, why: str) -> None:
        self._failure = WebSocketFailed(why)
        self._is_cut = False
        if self._engine.state is ConnectionState.OPEN:
            self._answer_due = self._engine.send(CloseConnection(code))

    def _make(self, data: Bytes) -> memoryview:
        try:
            frame = self._engine.send(BytesMessage(bytes(data)))
        except LocalProtocolError:
            raise WebSocketFailed("the WebSocket is closed") from None
        return memoryview(bytes(self._make_answer()) + frame)

    def _make_answer(self) -> Bytes:
        answer, self._answer_due = self._answer_due, b""
        return answer

    def _make_farewell(self) -> Bytes:
        answer = self._make_answer()
        if self._engine.state is ConnectionState.OPEN:
            return bytes(answer) + self._engine.send(CloseConnection(CloseReason.NORMAL_CLOSURE))
        return answer

    # --- the handshake ------------------------------------------------------------------------

    def _read_head(self, fd: int) -> int:
        """How long the far end's head is; 0: it has not come whole yet.  Raises GsocksError."""
        room = memoryview(bytearray(_AT_ONCE))
        end = 0
        while not end:
            count = self._below.receive_some(fd, room)
            if count == 0:
                raise Truncated("the connection ended during the handshake of WebSocket")
            if count:
                seen = len(self._head)
                self._head += room[:count]
                end = self._end_of_head(seen)
            elif not self._below.has_backlog:
                break
        return end

    def _end_of_head(self, seen: int) -> int:
        """The length of the head; 0 if it is incomplete; ``seen``: as for :func:`find_end`."""
        raise NotImplementedError

    def _open(self, kind: ConnectionType, end: int) -> None:
        """Begin with the frames behind the head."""
        self._engine = Connection(kind, trailing_data=bytes(self._head[end:]))
        self._head = bytearray()
        self._is_cut = self.has_backlog = True


class WebSocketClient(_WebSocketLayer):
    """The end that asks for ``path``; ``host``: what its request has as Host."""

    __slots__ = ("_key",)

    def __init__(self, host: str, path: str, below: Below = BARE) -> None:
        super().__init__(below)
        self._key = generate_nonce()
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self._key.decode('ascii')}",
            f"Sec-WebSocket-Version: {_VERSION.decode('ascii')}",
        )
        self._owed = "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")

    def begin(self, fd: int) -> int:
        """See :meth:`gsocks.transport.layers.Layer.begin`."""
        if not self._flush(fd):
            return WRITE
        end = self._read_head(fd)
        if not end:
            return READ
        self._check(bytes(self._head[:end]))
        self._open(ConnectionType.CLIENT, end)
        return 0

    def _end_of_head(self, seen: int) -> int:
        found = self._head.find(b"\r\n\r\n", max(0, seen - 3))
        if found < 0 and len(self._head) > MAX_HEAD:
            raise WebSocketFailed("the answer to its request is longer than any")
        return found + 4 if found >= 0 else 0

    def _check(self, head: bytes) -> None:
        """Raises WebSocketFailed unless the server has granted the upgrade."""
        lines = head[:-4].split(b"\r\n")
        found = _STATUS_LINE.fullmatch(lines[0])
        if found is None or has_odd_bytes(head):
            raise WebSocketFailed("the far end doesn't speak HTTP/1.1")
        if found[1] != b"101":
            status = found[1].decode("ascii")
            raise WebSocketFailed(f"its request for a WebSocket is answered with status {status}")
        named = [line.partition(b":") for line in lines[1:]]
        fields = {name.lower(): value.strip(b" \t") for name, _, value in named}
        if fields.get(b"sec-websocket-accept") != generate_accept_token(self._key):
            raise WebSocketFailed("the far end has not read its request for a WebSocket")
        if b"sec-websocket-extensions" in fields:
            raise WebSocketFailed("the far end wants an extension of WebSocket")


class WebSocketServer(_WebSocketLayer):
    """The end that grants the upgrade of requests for ``path``."""

    __slots__ = ("_is_answered", "_path", "_refusal")

    def __init__(self, path: str, below: Below = BARE) -> None:
        super().__init__(below)
        self._path = path.encode("ascii")
        self._is_answered = False
        #: why there is no WebSocket
        self._refusal: ClientError | None = None

    def begin(self, fd: int) -> int:
        """See :meth:`gsocks.transport.layers.Layer.begin`."""
        if not self._is_answered:
            try:
                end = self._read_head(fd)
                if not end:
                    return READ
                self._owed = self._grant(parse_request(bytes(self._head[:end])))
            except ClientError as error:
                self._refusal = error.with_traceback(None)
                self._owed = _page(error, self._head)
            else:
                self._open(ConnectionType.SERVER, end)
            self._is_answered = True
        if not self._flush(fd):
            return WRITE
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        return 0

    def _end_of_head(self, seen: int) -> int:
        end = find_end(self._head, seen)
        if (end or len(self._head)) > MAX_HEAD:
            raise HeadTooLarge(f"the head of the request is longer than {MAX_HEAD} bytes")
        return end

    def _grant(self, request: h11.Request | None) -> bytes:
        """The answer that grants the upgrade.  Raises BadRequest, Stranger."""
        if request is None:
            raise BadRequest("the head of the request is not valid")
        key = header(request, b"sec-websocket-key") or b""
        is_upgrade = (
            (request.method, request.http_version) == (b"GET", b"1.1")
            and _has(request, b"upgrade", b"websocket")
            and _has(request, b"connection", b"upgrade")
            and header(request, b"sec-websocket-version") == _VERSION
            and _KEY.fullmatch(key) is not None
        )
        # the path of a server that is not found by its pages is not to be guessed by the time
        if not hmac.compare_digest(request.target, self._path) or not is_upgrade:
            raise Stranger("asks for no WebSocket, or for one at another path")
        lines = (
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + generate_accept_token(key),
        )
        return b"".join(b"%s\r\n" % line for line in (*lines, b""))


def _has(request: h11.Request, name: bytes, option: bytes) -> bool:
    return any(found.lower() == option for found in options(request, name))


def _page(error: ClientError, head: Bytes | bytearray) -> bytes:
    """What a web server without pages answers."""
    status = HTTPStatus.NOT_FOUND if isinstance(error, Stranger) else HTTPStatus(error.http_status)
    body = f"{status.value} {status.phrase}\n"
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    answer = "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")
    return answer if bytes(head[:5]) == b"HEAD " else answer + body.encode("ascii")
