"""A layer takes and gives bytes without waiting; WebSocket is that of RFC 6455, TLS that of ssl."""

from __future__ import annotations

import gc
import os
import random
import ssl
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from gsocks.errors import (
    BadRequest,
    ClientError,
    HeadTooLarge,
    LayerFailed,
    Stranger,
    StreamClosed,
    StreamError,
    StreamReset,
    TlsFailed,
    Truncated,
    WebSocketFailed,
    stream_failure,
)
from gsocks.sock import READ, WRITE
from gsocks.stream import Bytes, reset
from gsocks.transport.layers import Layer, LayeredSocket
from gsocks.transport.tls import TlsLayer
from gsocks.transport.websocket import (
    MAX_FRAMES_AT_ONCE,
    MAX_HEAD,
    MAX_MESSAGE,
    WebSocketClient,
    WebSocketServer,
)
from tests.support.stream_contract import tcp_pair
from tests.support.transports import KINDS, NAME, PATH, Certificates, layered_pair
from tests.support.waiting import TOO_LONG

pytestmark = pytest.mark.usefixtures("never_hangs")

#: of no descriptor: the layers below have none
FD = -1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


class Wire:
    """What lies below a layer: what it sends is kept, as far as there is room for it."""

    def __init__(self) -> None:
        self.has_backlog = False
        #: bytes that it takes yet; None: all
        self.room: int | None = None
        self.sent = bytearray()
        #: what comes, a piece for each call; b"": an end
        self.coming: deque[bytes] = deque()
        self.said_farewell = False

    def receive_some(self, fd: int, room: memoryview) -> int | None:
        if not self.coming:
            return None
        data = self.coming.popleft()
        part = data[: len(room)]
        if part != data:
            self.coming.appendleft(data[len(part) :])
        room[: len(part)] = part
        return len(part)

    def send_some(self, fd: int, data: Bytes) -> int:
        part = data if self.room is None else data[: self.room]
        if self.room is not None:
            self.room -= len(part)
        self.sent += part
        return len(part)

    def farewell(self, fd: int) -> None:
        self.said_farewell = True


def carry(source: Wire, sink: Wire) -> None:
    """What was sent at one end comes at the other."""
    if source.sent:
        sink.coming.append(bytes(source.sent))
        source.sent.clear()


def begin_both(near: Layer, near_wire: Wire, far: Layer, far_wire: Wire) -> None:
    waits = [1, 1]
    while any(waits):
        waits[0] = waits[0] and near.begin(FD)
        carry(near_wire, far_wire)
        waits[1] = waits[1] and far.begin(FD)
        carry(far_wire, near_wire)


class Ends:
    """Both ends of a kind of layer, over wires."""

    def __init__(self, kind: str, certificates: Certificates) -> None:
        self.near_wire, self.far_wire = Wire(), Wire()
        near, far = self.near_wire, self.far_wire
        if kind == "tls":
            trusting = ssl.create_default_context(cafile=certificates.ca)
            certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certified.load_cert_chain(certificates.server)
            self.near: Layer = TlsLayer(trusting, NAME, near)
            self.far: Layer = TlsLayer(certified, None, far)
        else:
            self.near = WebSocketClient(NAME, PATH, near)
            self.far = WebSocketServer(PATH, far)
        begin_both(self.near, near, self.far, far)
        # what a server of TLS says behind its handshake
        assert received(self.near, 100) == received(self.far, 100) == b""


LAYERS = pytest.mark.parametrize("kind", ["tls", "ws"])


def received(layer: Layer, size: int) -> bytes:
    """All that one call after the other receives, each with that much room, until none is there."""
    wire: Any = layer._below
    found = b""
    room = memoryview(bytearray(size))
    while True:
        count = layer.receive_some(FD, room)
        if count == 0 or (count is None and not (layer.has_backlog or wire.coming)):
            return found
        found += room[: count or 0]


# --- what both kinds do -----------------------------------------------------------------------


@LAYERS
def test_all_that_was_taken_arrives_however_little_room_there_is(
    kind: str, certificates: Certificates
) -> None:
    ends, choose = Ends(kind, certificates), random.Random(kind)
    for source, source_wire, sink, sink_wire in (
        (ends.near, ends.near_wire, ends.far, ends.far_wire),
        (ends.far, ends.far_wire, ends.near, ends.near_wire),
    ):
        data = os.urandom(300_000)
        rest, found = memoryview(data), b""
        while rest:
            source_wire.room = choose.choice((0, 1, 7, 1000, 20_000, 200_000))
            taken = source.send_some(FD, rest[: choose.choice((1, 2, 100, 65_000, 133_120))])
            rest = rest[taken:]
            carry(source_wire, sink_wire)
            found += received(sink, choose.choice((1, 40, 4096, 131_072)))
        # the last byte is taken when nothing is owed any more
        assert found == data


@LAYERS
def test_what_was_made_and_has_no_room_is_made_once(kind: str, certificates: Certificates) -> None:
    ends = Ends(kind, certificates)
    ends.near_wire.room = 10
    assert ends.near.send_some(FD, b"x" * 100) == 99
    for _ in range(3):
        assert ends.near.send_some(FD, b"x") == 0
    ends.near_wire.room = None
    assert ends.near.send_some(FD, b"x") == 1
    carry(ends.near_wire, ends.far_wire)
    assert received(ends.far, 1000) == b"x" * 100


@LAYERS
def test_what_is_sent_behind_the_owed_byte_goes_with_it(
    kind: str, certificates: Certificates
) -> None:
    ends = Ends(kind, certificates)
    ends.near_wire.room = 0
    assert ends.near.send_some(FD, b"a") == 0
    ends.near_wire.room = None
    assert ends.near.send_some(FD, b"abc") == 3
    carry(ends.near_wire, ends.far_wire)
    assert received(ends.far, 1000) == b"abc"


@LAYERS
def test_more_than_was_asked_for_is_a_backlog(kind: str, certificates: Certificates) -> None:
    ends = Ends(kind, certificates)
    ends.near.send_some(FD, bytes(range(200)))
    carry(ends.near_wire, ends.far_wire)
    room = memoryview(bytearray(150))
    if kind == "tls":
        assert ends.far.receive_some(FD, room) == 150
    else:  # eight of them are the head of the message
        assert ends.far.receive_some(FD, room) == 142
    assert ends.far.has_backlog or ends.far_wire.coming
    assert received(ends.far, 150) == bytes(range(200))[150 if kind == "tls" else 142 :]
    assert not ends.far.has_backlog


@LAYERS
def test_a_part_of_a_record_is_nothing_yet(kind: str, certificates: Certificates) -> None:
    ends = Ends(kind, certificates)
    ends.near.send_some(FD, b"whole")
    sent = bytes(ends.near_wire.sent)
    for at in range(len(sent)):
        ends.far_wire.coming.append(sent[at : at + 1])
    assert received(ends.far, 100) == b"whole"


@LAYERS
@pytest.mark.parametrize("said_farewell", [True, False])
def test_an_end_is_an_end_with_a_farewell_or_without(
    kind: str, said_farewell: bool, certificates: Certificates
) -> None:
    ends = Ends(kind, certificates)
    ends.near.send_some(FD, b"last words")
    if said_farewell:
        ends.near.farewell(FD)
        assert ends.near_wire.said_farewell
    carry(ends.near_wire, ends.far_wire)
    if not said_farewell:
        ends.far_wire.coming.append(b"")
    room = memoryview(bytearray(100))
    assert ends.far.receive_some(FD, room) == 10
    assert [ends.far.receive_some(FD, room) for _ in range(3)] == [0, 0, 0]


@LAYERS
def test_a_farewell_that_can_not_leave_at_once_is_left_out(
    kind: str, certificates: Certificates
) -> None:
    ends = Ends(kind, certificates)
    ends.near_wire.room = 5
    ends.near.send_some(FD, b"cut off")
    ends.near.farewell(FD)
    assert len(ends.near_wire.sent) == 5
    assert ends.near_wire.said_farewell  # that of what is below


@LAYERS
def test_bytes_that_the_layer_does_not_know_break_it_behind_those_that_it_does(
    kind: str, certificates: Certificates
) -> None:
    ends = Ends(kind, certificates)
    ends.near.send_some(FD, b"good")
    ends.far_wire.coming.append(bytes(ends.near_wire.sent) + b"\xff" * 40)
    room = memoryview(bytearray(1000))
    assert ends.far.receive_some(FD, room) == 4
    for _ in range(2):
        with pytest.raises(TlsFailed if kind == "tls" else WebSocketFailed):
            ends.far.receive_some(FD, room)


@LAYERS
def test_a_layer_holds_no_more_than_a_record_of_what_it_has_passed_on(
    kind: str, certificates: Certificates
) -> None:
    ends = Ends(kind, certificates)
    assert ends.near.send_some(FD, bytes(133_120)) == 133_120
    carry(ends.near_wire, ends.far_wire)
    assert len(received(ends.far, 131_072)) == 133_120
    held = [each for each in gc.get_referents(ends.near, ends.far) if isinstance(each, memoryview)]
    assert all(each.nbytes == 0 and each.obj == b"" for each in held)


# --- TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["other.example", "127.0.0.2"])
def test_a_certificate_for_another_name_is_refused(name: str, certificates: Certificates) -> None:
    near, far = Wire(), Wire()
    trusting = ssl.create_default_context(cafile=certificates.ca)
    certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certified.load_cert_chain(certificates.server)
    with pytest.raises(TlsFailed, match=r"its certificate can't be trusted: .*mismatch"):
        begin_both(TlsLayer(trusting, name, near), near, TlsLayer(certified, None, far), far)
    assert near.sent  # an alert, which says so


def test_a_far_end_that_speaks_tls_wrongly_gets_an_alert(certificates: Certificates) -> None:
    wire = Wire()
    certified = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certified.load_cert_chain(certificates.server)
    wire.coming.append(b"\x16\x03\x01\x00\x09\x01\x00\x00\x05hello")
    with pytest.raises(TlsFailed):
        TlsLayer(certified, None, wire).begin(FD)
    assert wire.sent[:1] == b"\x15"


def test_a_handshake_waits_for_room_too(certificates: Certificates) -> None:
    wire = Wire()
    wire.room = 10
    layer = TlsLayer(ssl.create_default_context(cafile=certificates.ca), NAME, wire)
    assert layer.begin(FD) == WRITE
    wire.room = None
    assert layer.begin(FD) == READ
    wire.coming.append(b"")
    with pytest.raises(Truncated):
        layer.begin(FD)


def test_a_tls_layer_is_shown_by_its_version(certificates: Certificates) -> None:
    layer = TlsLayer(ssl.create_default_context(), NAME, Wire())
    assert repr(layer) == "<TlsLayer: no version yet>"
    assert repr(Ends("tls", certificates).near) == "<TlsLayer: TLSv1.3>"


# --- WebSocket --------------------------------------------------------------------------------


class ByHand:
    """A server's layer, and the client's engine of its WebSocket."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.layer = WebSocketServer(PATH, self.wire)
        self.wire.coming.append(upgrade())
        assert self.layer.begin(FD) == 0
        assert self.wire.sent.endswith(b"\r\n\r\n")
        self.wire.sent.clear()
        self.engine = Connection(ConnectionType.CLIENT)

    def say(self, *events: Any) -> None:
        self.wire.coming.append(b"".join(map(self.engine.send, events)))

    def heard(self) -> list[Any]:
        """What the layer has said."""
        self.engine.receive_data(bytes(self.wire.sent))
        self.wire.sent.clear()
        return list(self.engine.events())


KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(path: str = PATH, **changes: str | None) -> bytes:
    """A request for a WebSocket; a field of it is changed, or left out."""
    fields: dict[str, str | None] = {
        "host": NAME,
        "upgrade": "websocket",
        "connection": "keep-alive, Upgrade",
        "sec_websocket_key": KEY.decode(),
        "sec_websocket_version": "13",
        **changes,
    }
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def test_the_answer_to_a_request_for_a_websocket_is_that_of_the_rfc() -> None:
    wire = Wire()
    wire.coming.append(upgrade())
    assert WebSocketServer(PATH, wire).begin(FD) == 0
    assert wire.sent == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /updates HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /updates HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        upgrade("/"),
        upgrade("/updates/"),
        upgrade("/updates?"),
        upgrade(upgrade=None),
        upgrade(upgrade="h2c"),
        upgrade(connection="close"),
        upgrade(connection=None),
        upgrade(sec_websocket_version="8"),
        upgrade(sec_websocket_version=None),
        upgrade(sec_websocket_key=None),
        upgrade(sec_websocket_key="short"),
        upgrade().replace(b"GET", b"PUT"),
        upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_any_other_request_is_answered_as_a_server_without_pages_does(request_: bytes) -> None:
    wire = Wire()
    wire.coming.append(request_)
    with pytest.raises(Stranger):
        WebSocketServer(PATH, wire).begin(FD)
    head, _, body = bytes(wire.sent).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 404 Not Found"
    assert {line.partition(b":")[0] for line in lines[1:]} == {
        *(b"Date", b"Content-Type", b"Content-Length", b"Connection")
    }
    assert body == b"404 Not Found\n"
    assert b"gsocks" not in wire.sent.lower()


def test_the_answer_to_head_has_no_body() -> None:
    wire = Wire()
    wire.coming.append(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    with pytest.raises(Stranger):
        WebSocketServer(PATH, wire).begin(FD)
    assert wire.sent.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert wire.sent.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\n", b"400 Bad Request", BadRequest),
        (b"GET / HTTP/1.1\nHost: h\n\n", b"400 Bad Request", BadRequest),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request", BadRequest),
        (
            b"GET / HTTP/1.1\r\nx: " + b"y" * MAX_HEAD,
            b"431 Request Header Fields Too",
            HeadTooLarge,
        ),
        (upgrade(x="y" * MAX_HEAD), b"431 Request Header Fields Too", HeadTooLarge),
    ],
)
def test_what_is_no_request_is_answered_so(
    said: bytes, status: bytes, kind: type[ClientError]
) -> None:
    wire = Wire()
    wire.coming.append(said)
    with pytest.raises(kind):
        WebSocketServer(PATH, wire).begin(FD)
    assert wire.sent.startswith(b"HTTP/1.1 " + status)


def test_a_head_may_come_in_pieces_and_frames_behind_it() -> None:
    wire = Wire()
    engine = Connection(ConnectionType.CLIENT)
    said = upgrade() + engine.send(BytesMessage(b"at once"))
    layer = WebSocketServer(PATH, wire)
    for at in range(len(said)):
        assert layer.begin(FD) == READ if at < len(upgrade()) else True
        wire.coming.append(said[at : at + 1])
    assert layer.begin(FD) == 0
    assert received(layer, 100) == b"at once"


def test_an_end_before_the_whole_head_is_told() -> None:
    wire = Wire()
    wire.coming += [upgrade()[:-1], b""]
    with pytest.raises(Truncated):
        WebSocketServer(PATH, wire).begin(FD)
    assert not wire.sent


def test_the_answer_waits_for_room() -> None:
    wire = Wire()
    wire.room = 3
    wire.coming.append(upgrade())
    layer = WebSocketServer(PATH, wire)
    assert layer.begin(FD) == WRITE
    wire.room = None
    assert layer.begin(FD) == 0
    assert wire.sent.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered with status 404"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered with status 502"),
        (b"HTTP/1.1 200\r\n\r\n", "answered with status 200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "doesn't speak HTTP/1.1"),
        (b"HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\r\n\r\n", "doesn't speak HTTP/1.1"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "has not read its req"),
        (b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: x\r\n\r\n", "has not read its request"),
        (b"x" * (MAX_HEAD + 1), "longer than any"),
    ],
)
def test_a_server_that_grants_no_websocket_is_told(answer: bytes, reason: str) -> None:
    wire = Wire()
    layer = WebSocketClient(NAME, PATH, wire)
    assert layer.begin(FD) == READ
    wire.coming.append(answer)
    with pytest.raises(WebSocketFailed, match=reason):
        layer.begin(FD)


def test_an_extension_that_was_not_offered_is_refused() -> None:
    wire = Wire()
    layer = WebSocketClient(NAME, PATH, wire)
    layer.begin(FD)
    (key,) = [line[19:] for line in wire.sent.split(b"\r\n") if line.startswith(b"Sec-WebSocket-K")]
    wire.coming.append(
        b"HTTP/1.1 101 x\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
        b"sec-websocket-accept: " + generate_accept_token(bytes(key)) + b"\r\n\r\n"
    )
    with pytest.raises(WebSocketFailed, match="extension"):
        layer.begin(FD)


def test_the_request_of_a_client_is_that_of_the_rfc() -> None:
    wire = Wire()
    WebSocketClient("www.example:8443", "/a?b=c", wire).begin(FD)
    lines = bytes(wire.sent).split(b"\r\n")
    assert lines[:4] == [
        b"GET /a?b=c HTTP/1.1",
        b"Host: www.example:8443",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
    ]
    assert lines[5:] == [b"Sec-WebSocket-Version: 13", b"", b""]
    other = Wire()
    WebSocketClient("www.example:8443", "/a?b=c", other).begin(FD)
    assert wire.sent != other.sent  # by the key


def test_the_frames_of_a_client_are_masked_by_a_key_of_their_own() -> None:
    wire = Wire()
    layer = WebSocketClient(NAME, PATH, wire)
    layer.begin(FD)
    wire.sent.clear()
    layer._open(ConnectionType.CLIENT, 0)
    masks = set()
    for _ in range(3):
        layer.send_some(FD, b"the same")
        assert wire.sent[:2] == bytes((0x82, 0x80 | 8))
        masks.add(bytes(wire.sent[2:6]))
        mask, masked = wire.sent[2:6] * 2, wire.sent[6:]
        assert bytes(a ^ b for a, b in zip(mask, masked, strict=True)) == b"the same"
        wire.sent.clear()
    assert len(masks) == 3


def test_messages_are_one_stream_of_bytes_whatever_their_bounds() -> None:
    hand = ByHand()
    hand.say(
        BytesMessage(b"a", message_finished=False),
        BytesMessage(b"", message_finished=False),
        Ping(b"between"),
        BytesMessage(b"b"),
        BytesMessage(b""),
        BytesMessage(b"c"),
    )
    assert received(hand.layer, 100) == b"abc"
    assert hand.heard() == [Pong(b"between")]


def test_of_many_pings_the_last_is_answered_when_there_is_room() -> None:
    hand = ByHand()
    hand.wire.room = 1
    hand.layer.send_some(FD, b"data")
    for number in range(3):
        hand.say(Ping(b"%d" % number))
        assert received(hand.layer, 100) == b""
    hand.wire.room = None
    assert hand.layer.send_some(FD, b"a") == 1  # which was made before
    assert hand.layer.send_some(FD, b"more") == 4
    assert hand.heard() == [BytesMessage(b"data"), Pong(b"2"), BytesMessage(b"more")]


def test_a_pong_that_was_not_asked_for_is_nothing() -> None:
    hand = ByHand()
    hand.say(Pong(b""), BytesMessage(b"x"))
    assert received(hand.layer, 100) == b"x"
    assert hand.heard() == []


def test_a_close_is_answered_and_is_the_end() -> None:
    hand = ByHand()
    hand.say(BytesMessage(b"last"), CloseConnection(CloseReason.GOING_AWAY, "bye"))
    room = memoryview(bytearray(100))
    assert hand.layer.receive_some(FD, room) == 4
    assert hand.layer.has_backlog
    assert hand.layer.receive_some(FD, room) == 0
    (answer,) = hand.heard()
    assert (answer.code, answer.reason) == (CloseReason.GOING_AWAY, "bye")
    with pytest.raises(WebSocketFailed):
        hand.layer.send_some(FD, b"x")
    hand.layer.farewell(FD)
    assert not hand.wire.sent


def test_the_farewell_is_a_close_and_what_comes_behind_it_is_read() -> None:
    hand = ByHand()
    hand.layer.farewell(FD)
    hand.wire.coming.append(
        Connection(ConnectionType.CLIENT).send(BytesMessage(b"crossing"))
        + Connection(ConnectionType.CLIENT).send(Ping(b"too"))
    )
    assert received(hand.layer, 100) == b"crossing"
    (close,) = hand.heard()
    assert close.code == CloseReason.NORMAL_CLOSURE
    hand.wire.coming.append(hand.engine.send(close.response()))
    assert hand.layer.receive_some(FD, memoryview(bytearray(10))) == 0
    assert not hand.wire.sent


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\x81\x81\0\0\0\0x", CloseReason.UNSUPPORTED_DATA),  # text
        (b"\x82\x01x", CloseReason.PROTOCOL_ERROR),  # not masked
        (b"\xc2\x81\0\0\0\0x", CloseReason.PROTOCOL_ERROR),  # a reserved bit
        (b"\x83\x81\0\0\0\0x", CloseReason.PROTOCOL_ERROR),  # a reserved opcode
        (b"\x80\x81\0\0\0\0x", CloseReason.PROTOCOL_ERROR),  # continues nothing
        (b"\x09\x80\0\0\0\0", CloseReason.PROTOCOL_ERROR),  # a ping in fragments
        (b"\x82\xff" + struct.pack("!Q", 1 << 63), CloseReason.PROTOCOL_ERROR),
    ],
)
def test_what_the_rfc_forbids_is_answered_by_its_code(said: bytes, code: CloseReason) -> None:
    hand = ByHand()
    hand.say(BytesMessage(b"before"))
    hand.wire.coming.append(hand.wire.coming.pop() + said)
    room = memoryview(bytearray(100))
    assert hand.layer.receive_some(FD, room) == 6
    with pytest.raises(WebSocketFailed):
        hand.layer.receive_some(FD, room)
    (close,) = hand.heard()
    assert close.code == code


def test_a_message_is_bounded() -> None:
    hand = ByHand()
    for _ in range(MAX_MESSAGE // 65536):
        hand.say(BytesMessage(bytes(65536), message_finished=False))
    assert len(received(hand.layer, 131_072)) == MAX_MESSAGE
    hand.say(BytesMessage(b"x"))
    with pytest.raises(WebSocketFailed, match="too long"):
        received(hand.layer, 100)
    (close,) = hand.heard()
    assert close.code == CloseReason.MESSAGE_TOO_BIG


def test_any_number_of_messages_is_not() -> None:
    hand = ByHand()
    for _ in range(3):
        hand.say(BytesMessage(bytes(MAX_MESSAGE)))
        assert len(received(hand.layer, 131_072)) == MAX_MESSAGE


def test_small_frames_are_read_some_at_a_time() -> None:
    hand = ByHand()
    hand.say(*[BytesMessage(b"x")] * (3 * MAX_FRAMES_AT_ONCE - 1))
    room = memoryview(bytearray(131_072))
    counts = []
    while True:
        counts.append(hand.layer.receive_some(FD, room))
        if not hand.layer.has_backlog:
            break
    assert counts == [MAX_FRAMES_AT_ONCE, MAX_FRAMES_AT_ONCE, MAX_FRAMES_AT_ONCE - 1]
    hand.say(*[Ping()] * (2 * MAX_FRAMES_AT_ONCE), BytesMessage(b"end"))
    assert hand.layer.receive_some(FD, room) is None
    assert hand.layer.has_backlog
    assert received(hand.layer, 10) == b"end"


# --- the socket -------------------------------------------------------------------------------


@contextmanager
def sockets(kind: str, certificates: Certificates) -> Iterator[tuple[LayeredSocket, LayeredSocket]]:
    near, far = layered_pair(kind, certificates, *tcp_pair())
    with near, far:
        yield near, far


@pytest.mark.parametrize("kind", KINDS)
def test_a_layered_socket_waits_as_any_other(kind: str, certificates: Certificates) -> None:
    with sockets(kind, certificates) as (near, far):
        for source, sink in ((near, far), (far, near)):
            reading = gevent.spawn(sink.recv, 100)
            gevent.idle()
            assert not reading.ready()
            assert source.send(b"hello") == 5
            assert reading.get() == b"hello"
        data = os.urandom(20_000_000)

        def send_all() -> None:
            rest = memoryview(data)
            while rest:
                rest = rest[near.send(rest[:133_120]) :]
            near.close()

        sending = gevent.spawn(send_all)
        gevent.idle()
        assert not sending.ready()  # there is no room for so much
        parts = []
        while part := far.recv(65536):
            parts.append(part)
        assert b"".join(parts) == data
        sending.get()


@pytest.mark.parametrize("kind", KINDS)
def test_a_close_wakes_who_waits_and_a_reset_is_one(kind: str, certificates: Certificates) -> None:
    with sockets(kind, certificates) as (near, far):
        reading = gevent.spawn(near.recv, 1)
        gevent.idle()
        reset(near)
        with pytest.raises(OSError) as closed:
            reading.get()
        assert isinstance(stream_failure(closed.value), StreamClosed)
        with pytest.raises(LayerFailed) as ended:
            far.recv(1)
        assert isinstance(stream_failure(ended.value), StreamReset)
        with pytest.raises(LayerFailed):
            while True:
                far.send(b"x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_close_is_seen_as_an_end_and_can_be_made_twice(
    kind: str, certificates: Certificates
) -> None:
    with sockets(kind, certificates) as (near, far):
        near.send(b"last")
        near.close()
        near.close()
        assert [far.recv(10), far.recv(10), far.recv(10)] == [b"last", b"", b""]


def test_a_handshake_that_is_ended_here_is_told() -> None:
    near, far = tcp_pair()
    sock = LayeredSocket(near)
    with far:
        beginning = gevent.spawn(sock.begin, WebSocketClient(NAME, PATH))
        gevent.idle()
        sock.close()
        with pytest.raises(StreamError):
            beginning.get(timeout=TOO_LONG)
