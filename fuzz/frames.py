"""The content of the tunnel's frames, from a peer that has the key.

Such a peer can seal any bytes, so nothing is sealed here, and the input is the frames themselves.
Its first byte selects the end that receives them, and how the other end ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from fuzz.model import Dest, Short, Taker, Wrong
from fuzz.wire import WAYS, Wire
from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import Area, Cipher, Key, Session
from gsocks.errors import ClientError, ConnectFailed, ConnectionRefused, StreamError, stream_failure
from gsocks.request import Command, Request
from gsocks.stream import Bytes
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.server import ServerTunnel
from gsocks.tunnel.streams import TunnelDatagrams, TunnelStream

THENS = ("end", "reset")
_TO = b"\x01\x01\x02\x03\x04\x00\x50"
_BOUND = Address("1.2.3.4", 80)
_LONGEST = 65536
_SKIPPED = 0x80


def _frame(kind: int, body: bytes = b"") -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


_OPEN = _frame(1, b"\x01" + _TO + bytes(5))
_REFUSED = _frame(1, b"\x01\x01\x01\x02\x03\x04\x00\x51")  # an odd port is refused here
_OPENED = _frame(2, b"\x00" + _TO + bytes(3))
_DATA, _FIN, _RESET, _PING = _frame(3, b"hello"), _frame(4), _frame(5), _frame(6)

SEEDS = [
    b"\x00" + _OPEN + _DATA + _frame(9, bytes(4)) + _FIN + _OPEN + _FIN,
    b"\x00" + _PING + _REFUSED + _DATA + _FIN + _OPEN + _RESET,
    b"\x00" + _frame(1, b"\x03" + _TO) + _frame(8, _TO + b"query") + _FIN,
    b"\x00" + _frame(1, b"\x03\x03\x03a b\x00\x50") + _frame(8, _TO + b"query") + _FIN + _OPEN,
    b"\x00" + _frame(0x80) + _OPEN + _frame(0xFF, bytes(4)) + _DATA + _frame(0x7F),
    b"\x00" + _frame(1, b"\x02\x03\x0bexample.com\x00\x50") + _FIN,
    b"\x00" + _frame(1, b"\x07" + _TO) + _FIN + _frame(1, b"\x01\x07"),
    b"\x00\x03\x01\x00\x01",
    b"\x00" + _frame(1, b"\x01\x01\x01"),
    b"\x02" + _OPEN + b"\x03\x00",
    b"\x01" + _OPENED + _DATA + _FIN + _frame(7) + _OPENED,
    b"\x01" + _frame(2, b"\x05" + _TO) + _frame(7) + _OPENED + _RESET,
    b"\x01" + _frame(2, b"\x00\x03\x00\x00\x00"),
    b"\x03" + _frame(9) + _frame(0xC0, b"x") + _OPENED + _DATA,
]
WORDS = [_frame(kind) for kind in range(1, 10)] + [_OPEN, _REFUSED, _OPENED, _DATA, _TO]


class Heard(NamedTuple):
    """What the frames led to, in their order, and by what it ended."""

    events: tuple[Any, ...]
    error: str
    told: bytes


def check(data: bytes) -> None:
    mode = data[0] if data else 0
    hear, model = (_client, _model_of_client) if mode & 1 else (_server, _model_of_server)
    results = {_hear(hear, data[1:], pieces, THENS[mode >> 1 & 1]) for pieces in WAYS}
    assert len(results) == 1, results
    heard = results.pop()
    expected = _joined(_expected(model, data[1:]))
    for event, wanted in zip(heard.events, expected, strict=False):
        if isinstance(wanted, Asked):
            assert wanted.means(event), (event, wanted)
        else:
            assert event == wanted, (heard, expected)
    if expected and isinstance(expected[-1], Asked) and not expected[-1].dest.is_plain:
        return  # what follows depends on what was made of it
    assert len(heard.events) == len(expected), (heard, expected)


class Asked(NamedTuple):
    """A request, or where one was bound, as the model reads it."""

    what: int
    dest: Dest

    def means(self, event: object) -> bool:
        if isinstance(event, tuple) and event[:1] == ("asked",):
            return bool(event[1] == self.what) and self.dest.is_said_by(*event[2])
        return event in (("bad",), ("refused",)) and not self.dest.is_plain


def _joined(events: Iterable[Any]) -> tuple[Any, ...]:
    """The events with the data of a stream as one, in however many frames it came."""
    joined: list[Any] = []
    for event in events:
        if isinstance(event, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += event
        else:
            joined.append(event)
    return tuple(joined)


def _hear(hear: Callable[..., None], said: bytes, pieces: Any, then: str) -> Heard:
    wire: Any = Wire(said, pieces, then)
    session: Any = Session(Cipher.SECRETBOX, _Unsealed(), _Unsealed())  # type: ignore[arg-type]
    events: list[Any] = []
    try:
        hear(wire, session, events.append)
    except StreamError as error:
        return Heard(_joined(events), error.word, bytes(wire.told))
    return Heard(_joined(events), "", bytes(wire.told))


class _Unsealed:
    """Seals nothing."""

    overhead = 0

    def seal_at(self, area: Area, start: int, content: Bytes) -> int:
        end = start + len(content)
        area.view[start:end] = content
        return end

    def open_at(self, area: Area, to: int, sealed: Area, start: int, length: int) -> None:
        area.view[to : to + length] = sealed.view[start : start + length]


class _OverWire(Tunnel):
    """Over no descriptor, and with answers of one length each, so that they can be compared."""

    def padding(self) -> bytes:
        return b""

    def receive_some(self, _: int, room: memoryview) -> int | None:
        try:
            return self._socket().recv_into(room)
        except OSError as error:
            raise stream_failure(error) from None

    def send_some(self, _: int, data: Bytes) -> int:
        return self._socket().send(data)


class _Server(_OverWire, ServerTunnel):
    pass


class _Client(_OverWire, ClientTunnel):
    pass


def _server(wire: Any, session: Session, note: Callable[[Any], None]) -> None:
    """As :class:`gsocks.server.RemoteServer` serves a tunnel, but for where it leads."""
    tunnel = _Server(wire, session, "key", Key(bytes(32)))
    reusable = True
    while reusable:
        try:
            request = tunnel.accept()
        except ClientError as error:
            note(("bad",))
            tunnel.failed(error)
            continue
        if request is None:
            note(("left",))
            return
        note(("asked", int(request.command), request.dest))
        if request.dest.port % 2:
            tunnel.failed(ConnectionRefused())
            continue
        for _ in range(2 if request.command is Command.BIND else 1):
            tunnel.succeeded(_BOUND)
        reusable = _read(tunnel, request.command, note)


def _client(wire: Any, session: Session, note: Callable[[Any], None]) -> None:
    """Opens a stream, reads it to its end, pings, and begins again."""
    tunnel = _Client(wire, session)
    while True:
        try:
            bound = tunnel.open(Request(Command.CONNECT, _BOUND))
        except ConnectFailed:
            note(("refused",))
        except ClientError:  # the server refuses the request
            note(("refused",))
        else:
            note(("asked", 0, bound))
            _read(tunnel, Command.CONNECT, note)
        tunnel.ping()
        note(("pong",))


def _read(tunnel: Any, command: Command, note: Callable[[Any], None]) -> bool:
    """A stream to its end; whether the tunnel carries another one behind it."""
    ended: list[bool] = []
    kind = TunnelDatagrams if command is Command.UDP_ASSOCIATE else TunnelStream
    stream = kind(tunnel, ended.append)
    try:
        while data := stream.read():
            note(("datagram", data) if kind is TunnelDatagrams else data)
        note(("end",))
        stream.write_eof()
        stream.close()
    finally:
        stream.abort()
    return ended == [True]


# --- the model ------------------------------------------------------------------------------


def _expected(model: Callable[..., None], said: bytes) -> list[Any]:
    events: list[Any] = []
    try:
        model(_Frames(said), events.append)
    except (Short, Wrong):
        pass
    return events


class _Frames:
    def __init__(self, said: bytes) -> None:
        self._take = Taker(said)

    @property
    def over(self) -> bool:
        return not self._take.rest

    def next(self) -> tuple[int, bytes]:
        """The next frame that is not there for its length only."""
        while True:
            header = self._take(4)
            kind, size = header[0], int.from_bytes(header[1:], "big")
            if size > _LONGEST:
                raise Wrong
            try:
                body = self._take(size)
            except Short:
                raise Wrong from None  # it ends inside of a frame
            if kind != Frame.PAD and kind < _SKIPPED:
                return kind, body

    def read_stream(self, expected: int, note: Callable[[Any], None]) -> None:
        while (frame := self.next()) != (Frame.FIN, b""):
            if frame[0] != expected or not frame[1]:
                raise Wrong
            note(("datagram", frame[1]) if expected == Frame.DATAGRAM else frame[1])
        note(("end",))


def _model_of_server(frames: _Frames, note: Callable[[Any], None]) -> None:
    while True:
        if frames.over:
            note(("left",))
            return
        try:
            kind, body = frames.next()
        except Short:
            if frames.over:  # behind frames that are there for their length only
                note(("left",))
            raise
        if kind == Frame.PING:
            continue
        if kind != Frame.OPEN:
            raise Wrong
        take = Taker(body)
        try:
            command = take(1)[0]
            kind_of_dest = take.rest[:1]
            dest = take.dest()
        except Short:
            raise Wrong from None
        except Wrong:
            note(("bad",))
            assert kind_of_dest not in (b"\x01", b"\x03", b"\x04")
            _discard(frames)
            continue
        if command not in (1, 2, 3):
            note(("bad",))
            _discard(frames)
            continue
        if command == 3:  # whatever the address is
            note(("asked", 3, UNSPECIFIED))
            frames.read_stream(Frame.DATAGRAM, note)
            continue
        note(Asked(command, dest))
        if not dest.is_plain:
            raise Wrong
        if dest.port % 2:
            _discard(frames)
        else:
            frames.read_stream(Frame.DATA, note)


def _discard(frames: _Frames) -> None:
    """What may stand behind a request that is refused."""
    while (frame := frames.next()) != (Frame.FIN, b""):
        if frame[0] != Frame.DATA or not frame[1]:
            raise Wrong


def _model_of_client(frames: _Frames, note: Callable[[Any], None]) -> None:
    while True:
        kind, body = frames.next()
        if kind != Frame.OPENED:
            raise Wrong
        take = Taker(body)
        try:
            code, dest = take(1)[0], take.dest()
        except Short:
            raise Wrong from None
        if not dest.is_plain:
            note(Asked(0, dest))
            raise Wrong
        if code:
            note(("refused",))
        else:
            note(Asked(0, dest))
            frames.read_stream(Frame.DATA, note)
        if frames.next()[0] != Frame.PONG:
            raise Wrong
        note(("pong",))
