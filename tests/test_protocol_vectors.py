"""The captured sessions open by docs/protocol.md alone, and our code makes them to the byte."""

from __future__ import annotations

import ast
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import nacl.bindings
import pytest
from gevent.socket import socket
from nacl.exceptions import CryptoError

from gsocks import crypto
from gsocks.address import ATYP_IPV4, ATYP_IPV6, ATYP_NAME, Address
from gsocks.crypto import Cipher, Feature, Key, KeyRing
from gsocks.errors import (
    AddressTypeNotSupported,
    CommandNotSupported,
    ConnectFailed,
    ConnectionRefused,
    ProtocolViolation,
    Reply,
    failure_from_code,
)
from gsocks.exits.tunnel import TunnelExit
from gsocks.pool import Pool
from gsocks.replay import WINDOW_MS, now_ms
from gsocks.request import Command, Request
from gsocks.server import RemoteServer
from gsocks.settings import Limits, PoolSettings, Timeouts, UdpSettings
from gsocks.tunnel.base import PADDING_LIMIT
from gsocks.tunnel.client import connect_tunnel
from gsocks.tunnel.frames import HEADER_SIZE, MAX_BODY, MAX_PADS, Frame
from gsocks.tunnel.server import MAX_PINGS
from gsocks.tunnel.streams import TunnelStream
from tests.support import make_vectors, other_end
from tests.support import protocol_document as document
from tests.support.datagrams import udp_server
from tests.support.engine import connect, direct, echo, read_exactly, serving
from tests.support.stream_contract import tcp_pair
from tests.support.waiting import TOO_LONG

SESSIONS = sorted(make_vectors.SESSIONS)


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


def read_session(name: str) -> dict[str, Any]:
    session: dict[str, Any] = json.loads((make_vectors.VECTORS / name).read_text())
    return session


def of(session: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(session[name])


def agree(session: dict[str, Any]) -> dict[str, other_end.Boxes]:
    """What opens each sender's boxes, from the captured messages and the two private keys."""
    server_end = other_end.Server(
        of(session, "key"), of(session, "server_private"), of(session, "reply_salt")
    )
    server_end.read_hello(other_end.Taker(of(session, "hello")))
    _, to_client, to_server = server_end.reply(session["chosen"])
    return {"client": to_server, "server": to_client}


def meaning(kind: int, body: bytes) -> dict[str, Any]:
    """A frame in the words of the vectors."""
    if kind == other_end.OPEN:
        command, host, port = other_end.read_request(body)
        return {"type": "OPEN", "command": command, "host": host, "port": port}
    if kind == other_end.OPENED:
        code, host, port = other_end.read_answer(body)
        return {"type": "OPENED", "code": code, "host": host, "port": port}
    if kind == other_end.DATA:
        return {"type": "DATA", "data": body.hex()}
    if kind == other_end.DATAGRAM:
        host, port, payload = other_end.read_datagram(body)
        return {"type": "DATAGRAM", "host": host, "port": port, "data": payload.hex()}
    padded = {other_end.PAD: "PAD", other_end.PING: "PING", other_end.PONG: "PONG"}
    if kind in padded:
        assert not any(body)
        return {"type": padded[kind], "padding": len(body)}
    if kind >= other_end.SKIPPED:
        return {"type": "SKIPPED", "number": kind, "data": body.hex()}
    assert body == b""
    return {"type": other_end.NAMES[kind]}


# --- the captured sessions --------------------------------------------------------------------


def test_the_other_end_knows_nothing_of_ours() -> None:
    tree = ast.parse(Path(other_end.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names]  # fmt: skip
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} == {
        "__future__",
        "collections",
        "hashlib",
        "hmac",
        "ipaddress",
        "nacl",
        "os",
        "typing",
    }


@pytest.mark.parametrize("name", SESSIONS)
def test_a_captured_hello_is_as_the_document_describes_it(name: str) -> None:
    session = read_session(name)
    hello = of(session, "hello")
    said = other_end.Server(of(session, "key"), bytes(32)).read_hello(other_end.Taker(hello))
    padding = bytes(session["hello_padding"])
    offer = (session["version"], session["offered"], session["offered_features"])
    assert said == (session["time_ms"], *offer, padding)
    assert hello[:16] == of(session, "hello_salt")
    mask = other_end.hello_shape(of(session, "key"), hello[:16]).mask
    assert other_end.xor(hello[20:52], mask) == of(session, "client_public")
    assert len(hello) == 16 + 4 + 32 + 11 + session["hello_padding"] + 16


@pytest.mark.parametrize("name", SESSIONS)
def test_a_captured_agreement_is_reproduced_from_the_document_in_both_roles(name: str) -> None:
    session = read_session(name)
    client = other_end.Client(
        of(session, "key"), of(session, "client_private"), of(session, "hello_salt")
    )
    offered = {"offered": session["offered"], "features": session["offered_features"]}
    assert client.hello(session["time_ms"], **offered) == of(session, "hello")
    answering = other_end.Server(
        of(session, "key"), of(session, "server_private"), of(session, "reply_salt")
    )
    answering.read_hello(other_end.Taker(of(session, "hello")))
    chosen_features = session["chosen_features"]
    reply, _, _ = answering.reply(session["chosen"], features=chosen_features)
    assert reply == of(session, "reply")
    assert len(reply) == 16 + 32 + 3 + session["reply_padding"] + 16
    sealing, opening, version, features = client.read_reply(other_end.Taker(reply))
    assert (version, features) == (session["version"], chosen_features)
    keys = agree(session)
    assert (sealing.key, opening.key) == (keys["client"].key, keys["server"].key)
    assert (sealing.cipher, opening.cipher) == (session["chosen"], session["chosen"])


@pytest.mark.parametrize("name", SESSIONS)
def test_a_captured_session_opens_by_the_document_alone(name: str) -> None:
    session = read_session(name)
    boxes = agree(session)
    for frame in session["frames"]:
        (opened,) = boxes[frame["from"]].frames(bytes.fromhex(frame["hex"]))
        said = {"from": frame["from"], **meaning(*opened), "hex": frame["hex"]}
        if opened[0] in (other_end.OPEN, other_end.OPENED):
            said["padding"] = frame["padding"]
            assert opened[1].endswith(bytes(frame["padding"]))
        assert said == frame


@pytest.mark.parametrize("name", SESSIONS)
def test_a_captured_frame_that_was_changed_does_not_open(name: str) -> None:
    session = read_session(name)
    for position in range(len(session["frames"][0]["hex"]) // 2):
        changed = bytearray.fromhex(session["frames"][0]["hex"])
        changed[position] ^= 1
        with pytest.raises(CryptoError):
            list(agree(session)["client"].frames(bytes(changed)))


def test_the_sessions_show_every_type_of_frame_that_has_a_use() -> None:
    for name in SESSIONS:
        shown = {frame["type"] for frame in read_session(name)["frames"]}
        assert shown == {frame.name for frame in Frame} | {"SKIPPED"}


@pytest.mark.parametrize("name", SESSIONS)
def test_our_two_ends_make_the_captured_session_to_the_byte(name: str) -> None:
    assert make_vectors.capture(*make_vectors.SESSIONS[name]) == read_session(name)


# --- the captured agreements ------------------------------------------------------------------

AGREEMENTS = range(len(make_vectors.AGREEMENTS))


def read_agreement(number: int) -> dict[str, Any]:
    """An agreement, with what all of them have in common."""
    common = read_session(make_vectors.AGREEMENTS_FILE)
    return {**common, **common["agreements"][number]}


@pytest.mark.parametrize("number", AGREEMENTS)
def test_an_agreement_of_different_versions_is_reproduced_from_the_document_in_both_roles(
    number: int,
) -> None:
    agreement = read_agreement(number)
    client = other_end.Client(
        of(agreement, "key"), of(agreement, "client_private"), of(agreement, "hello_salt")
    )
    offer = (agreement["offered"], agreement["version"], agreement["offered_features"])
    assert client.hello(agreement["time_ms"], *offer) == of(agreement, "hello")
    answering = other_end.Server(
        of(agreement, "key"), of(agreement, "server_private"), of(agreement, "reply_salt")
    )
    said = answering.read_hello(other_end.Taker(of(agreement, "hello")))
    assert (said.offered, said.version, said.features) == offer
    chosen = (agreement["chosen"], agreement["reply_version"], agreement["chosen_features"])
    assert answering.reply(*chosen)[0] == of(agreement, "reply")
    agreed = client.read_reply(other_end.Taker(of(agreement, "reply")))
    assert (agreed.sealing.cipher, agreed.version, agreed.features) == chosen


def test_our_two_ends_make_their_parts_of_the_captured_agreements_to_the_byte() -> None:
    captured = read_session(make_vectors.AGREEMENTS_FILE)
    assert make_vectors.capture_agreements() == captured
    newer, old, featured, _ = captured["agreements"]
    assert (newer["reply_version"], newer["chosen"]) == (crypto.VERSION, Cipher.SECRETBOX)
    assert (newer["chosen_features"], featured["chosen_features"]) == (0, crypto.FEATURES)
    assert old["reply_version"] == crypto.LOWEST_VERSION


def test_our_client_reads_in_the_captured_reply_that_it_is_too_old() -> None:
    agreement = read_agreement(len(AGREEMENTS) - 1)
    initiator = crypto.Initiator(
        Key(of(agreement, "key")),
        Cipher(agreement["offered"]),
        of(agreement, "client_private"),
        of(agreement, "hello_salt"),
    )
    assert initiator.hello(agreement["time_ms"]) == of(agreement, "hello")
    reply, size = of(agreement, "reply"), crypto.REPLY_HEAD_SIZE
    with pytest.raises(ProtocolViolation, match=f"version {crypto.VERSION + 1} "):
        initiator.finish(reply[:size], reply[size:])


# --- the other end, alive ---------------------------------------------------------------------


def taking(sock: socket) -> Callable[[int], bytes]:
    return lambda count: read_exactly(sock, count)


@pytest.mark.parametrize("offered", [other_end.SECRETBOX, 0xFF])
def test_a_client_written_from_the_document_is_served_stream_after_stream(
    offered: int, nothing_left: None
) -> None:
    key = os.urandom(32)
    inbound = RemoteServer(
        ("127.0.0.1", 0),
        direct(),
        KeyRing({"default": Key(key)}),
        ciphers=Cipher.SECRETBOX | Cipher.AEGIS256,
    )
    inbound.start()
    with serving(echo) as echo_at, connect(inbound.bound) as sock:
        exactly = taking(sock)
        client = other_end.Client(key, os.urandom(32))
        sock.sendall(client.hello(now_ms(), offered))
        ours, theirs = client.read_reply(exactly)[:2]
        assert ours.cipher == (other_end.SECRETBOX if offered == 1 else other_end.AEGIS256)
        for count in range(3):
            # all that the client has to say leaves before anything is answered
            sock.sendall(
                ours.frame(other_end.PAD, b"anything")
                + ours.frame(other_end.OPEN, other_end.connect_to("localhost", echo_at.port, 9))
                + ours.frame(other_end.DATA, b"question %d" % count)
                + ours.frame(other_end.FIN)
            )
            kind, body = theirs.read_frame(exactly)
            assert (kind, body[0]) == (other_end.OPENED, 0)
            received = b""
            while (frame := theirs.read_frame(exactly))[0] == other_end.DATA:
                received += frame[1]
            assert frame == (other_end.FIN, b"")
            assert received == b"question %d" % count
            sock.sendall(ours.frame(other_end.PING))
            kind, body = theirs.read_frame(exactly)
            assert (kind, any(body)) == (other_end.PONG, False)
    inbound.stop()


def test_a_client_written_from_the_document_receives_the_cause_and_may_retry(
    nothing_left: None,
) -> None:
    key = os.urandom(32)
    inbound = RemoteServer(("127.0.0.1", 0), direct(), KeyRing({"default": Key(key)}))
    inbound.start()
    with serving(echo) as echo_at, connect(inbound.bound) as sock:
        exactly = taking(sock)
        client = other_end.Client(key, os.urandom(32))
        sock.sendall(client.hello(now_ms(), other_end.SECRETBOX))
        ours, theirs = client.read_reply(exactly)[:2]
        here = bytes((0x01, 127, 0, 0, 1)) + echo_at.port.to_bytes(2, "big")
        for body, code in (
            (other_end.connect_to("missing.invalid", 80), 0x14),
            (other_end.connect_to("not a name", 80), 0x01),
            (b"\x00" + here, 0x07),
            (b"\x77" + here, 0x07),
            (b"\x01\x05" + here, 0x18),
            (b"\x01" + here, 0x00),
        ):
            # sent before the client can know that it is refused, and then discarded
            sock.sendall(
                ours.frame(other_end.OPEN, body)
                + ours.frame(other_end.DATA, b"x" * 1000)
                + ours.frame(other_end.FIN)
            )
            kind, answer = theirs.read_frame(exactly)
            assert (kind, answer[0]) == (other_end.OPENED, code)
            if code:
                assert other_end.read_answer(answer)[1:] == ("0.0.0.0", 0)
        assert theirs.read_frame(exactly) == (other_end.DATA, b"x" * 1000)
        assert theirs.read_frame(exactly) == (other_end.FIN, b"")
    inbound.stop()


def test_a_client_written_from_the_document_is_served_datagrams_and_a_peer(
    nothing_left: None,
) -> None:
    key = os.urandom(32)
    inbound = RemoteServer(("127.0.0.1", 0), direct(), KeyRing({"default": Key(key)}))
    inbound.start()
    with udp_server() as four, udp_server("::1") as six, connect(inbound.bound) as sock:
        exactly = taking(sock)
        client = other_end.Client(key, os.urandom(32))
        sock.sendall(client.hello(now_ms(), other_end.SECRETBOX))
        ours, theirs = client.read_reply(exactly)[:2]
        sock.sendall(ours.frame(other_end.OPEN, b"\x03\x01" + bytes(6) + b"padding"))
        kind, body = theirs.read_frame(exactly)
        assert (kind, other_end.read_answer(body)) == (other_end.OPENED, (0, "0.0.0.0", 0))
        for there in (four, six):
            asked = other_end.datagram_to(there.host, there.port, b"question")
            for nonsense in (b"?", b"\x07" + asked, b"\x03\x03a b\0\x35" + asked):
                sock.sendall(ours.frame(other_end.DATAGRAM, nonsense))
            sock.sendall(ours.frame(other_end.DATAGRAM, asked))
            kind, body = theirs.read_frame(exactly)
            assert kind == other_end.DATAGRAM
            assert other_end.read_datagram(body) == (there.host, there.port, b"question")
        sock.sendall(ours.frame(other_end.FIN))
        assert theirs.read_frame(exactly) == (other_end.FIN, b"")

        sock.sendall(ours.frame(other_end.OPEN, b"\x02\x01" + bytes((127, 0, 0, 1, 0, 20))))
        code, host, port = other_end.read_answer(theirs.read_frame(exactly)[1])
        assert (code, host) == (0, "127.0.0.1")
        with connect(Address(host, port)) as peer:
            came = other_end.read_answer(theirs.read_frame(exactly)[1])
            assert came == (0, *peer.getsockname())
            peer.sendall(b"hello")
            assert theirs.read_frame(exactly) == (other_end.DATA, b"hello")
    inbound.stop()


@pytest.mark.parametrize("chosen", [other_end.SECRETBOX, other_end.AEGIS256])
def test_our_client_is_served_by_a_server_written_from_the_document(chosen: int) -> None:
    key = os.urandom(32)
    near, far = tcp_pair()
    exactly = taking(far)

    def serve() -> None:
        end = other_end.Server(key, os.urandom(32))
        said = end.read_hello(exactly)
        assert said.offered == 3
        assert abs(said.time_ms - now_ms()) < WINDOW_MS
        reply, ours, theirs = end.reply(chosen)
        far.sendall(reply)
        kind, body = theirs.read_frame(exactly)
        assert (kind, other_end.read_request(body)) == (other_end.OPEN, (1, "example.com", 443))
        answer = b"\x00" + bytes((0x01, 192, 0, 2, 7, 0xC3, 0x50)) + b"whatever else"
        far.sendall(ours.frame(other_end.PAD) + ours.frame(other_end.OPENED, answer))
        while (frame := theirs.read_frame(exactly))[0] == other_end.DATA:
            far.sendall(ours.frame(other_end.DATA, frame[1].upper()))
        assert frame == (other_end.FIN, b"")
        far.sendall(ours.frame(other_end.FIN))
        assert theirs.read_frame(exactly)[0] == other_end.PING
        far.sendall(ours.frame(other_end.PONG))

    serving_it = gevent.spawn(serve)
    with near, far:
        client = connect_tunnel(near, Key(key), Cipher.SECRETBOX | Cipher.AEGIS256)
        bound = client.open(Request(Command.CONNECT, Address("example.com", 443)))
        assert bound == Address("192.0.2.7", 50000)
        stream = TunnelStream(client, lambda _: None)
        stream.write(b"question")
        assert stream.read() == b"QUESTION"
        stream.write_eof()
        assert stream.read() == b""
        stream.close()
        client.ping()
        serving_it.get()


# --- the document's numbers -------------------------------------------------------------------


def test_the_documents_frame_numbers_are_the_codes() -> None:
    rows = document.table("number", "type", "body", *document.PLACES)
    assert {row[1]: int(row[0], 16) for row in rows} == {frame.name: frame for frame in Frame}


def test_the_documents_commands_are_the_codes() -> None:
    rows = document.table("command", "name")
    assert {row[1]: int(row[0], 16) for row in rows} == {each.name: each for each in Command}


def test_the_documents_features_are_the_codes() -> None:
    rows = document.table("bit", "feature", "what it adds")
    told = {row[1]: int(row[0], 16) for row in rows}
    # (Python 3.10 iterates over NONE as well)
    assert told == {each.name.lower(): each for each in Feature if each.name and each}
    assert sum(told.values()) == crypto.FEATURES
    assert told == {"look_ups": other_end.LOOK_UPS}


def test_the_documents_address_types_are_the_codes() -> None:
    rows = document.table("type", "address")
    assert [int(row[0], 16) for row in rows] == [ATYP_IPV4, ATYP_NAME, ATYP_IPV6]


def failures(kind: type[ConnectFailed] = ConnectFailed) -> Iterator[type[ConnectFailed]]:
    """Those that a server reports: a kind without a code of its own is reported as its base."""
    if "code" in vars(kind) or kind is ConnectFailed:
        yield kind
    for each in kind.__subclasses__():
        yield from failures(each)


def test_the_documents_codes_of_opened_are_those_of_the_errors() -> None:
    rows = {int(row[0], 16): row[1] for row in document.table("code", "cause", "meaning")}
    assert rows.pop(0x00) == "ok"
    told: list[Any] = [*failures(), CommandNotSupported, AddressTypeNotSupported]
    assert rows == {kind.code: kind.word for kind in told}
    for kind in told:
        assert type(failure_from_code(kind.code)) is kind
        assert Reply(kind.code & 0x0F) is kind.reply


def test_an_unknown_answer_is_taken_by_its_low_nibble() -> None:
    known = {int(row[0], 16) for row in document.table("code", "cause", "meaning")}
    for code in set(range(1, 256)) - known:
        low = code & 0x0F
        expected = failure_from_code(low if low and low in known else 0x01)
        assert type(failure_from_code(code)) is type(expected)


def test_the_documents_ciphers_are_the_codes() -> None:
    rows = document.table("bit", "cipher", "nonce", "overhead")
    nonces = {
        "SECRETBOX": nacl.bindings.crypto_secretbox_NONCEBYTES,
        "AEGIS256": nacl.bindings.crypto_aead_aegis256_NPUBBYTES,
    }
    for bit, name, nonce, overhead, _ in rows:
        cipher = Cipher[name.upper()]
        assert cipher == int(bit, 16)
        assert nonces[cipher.name or ""] == int(nonce)
        session = crypto._session(cipher, Feature.NONE, send=bytes(32), receive=bytes(32))
        assert session.overhead == len(session.seal(b"x")) - 1 == int(overhead)
    assert {row[1] for row in rows} == {(cipher.name or "").lower() for cipher in Cipher}


def test_the_documents_bounds_are_the_codes() -> None:
    hello = crypto.HELLO_HEAD_SIZE + 11 + crypto.TAG_SIZE
    reply = crypto.REPLY_HEAD_SIZE + 3 + crypto.TAG_SIZE
    assert dict(document.table("bound", "value")) == {
        "a key": f"{crypto.KEY_SIZE} bytes",
        "a hello": f"{hello} to {hello + 255} bytes",
        "a reply": f"{reply} to {reply + 255} bytes",
        "a frame's header": f"{HEADER_SIZE} bytes",
        "a frame's body": f"{MAX_BODY:,} bytes",
        "padding of OPEN, OPENED, PING and PONG, less than": f"{PADDING_LIMIT} bytes",
        "the client's clock, before or behind the server's": f"{WINDOW_MS:,} ms",
        "peers without a proven key, by default (`limits.handshakes`)": f"{Limits().handshakes:,}",
        "PADs and skipped frames in a row": f"{MAX_PADS}",
        "PINGs between two streams": f"{MAX_PINGS:,}",
    }


def test_the_documents_timeouts_are_the_codes() -> None:
    times, of_exit = Timeouts(), inspect.signature(TunnelExit).parameters
    told = document.table("timeout", "default", "then")
    assert {name: document.number(cell) for name, cell, _ in told} == {
        "server: from accept to the hello's last byte; also the end of the silence": (
            times.handshake
        ),
        "client: from connect to the whole reply": of_exit["reach_timeout"].default,
        "server: from a frame's first byte to its last, between two streams": times.handshake,
        "server: from OPEN to OPENED": times.connect,
        "client: from OPEN to OPENED": times.connect,
        "server: from a refusal to the client's FIN": times.half_closed,
        "server: an idle tunnel, in spite of PINGs": times.idle,
        "client: an idle tunnel; MUST be less than the server's": PoolSettings().max_idle,
        "client: the age from which on a tunnel carries no other stream, at most": (
            PoolSettings().max_age
        ),
        "client: silence before a PING, at most": Pool.ping_after,
        "client: from PING to PONG": Pool.ping_timeout,
        "server: from the first OPENED of a BIND to the second": times.bind,
        "client: from the first OPENED of a BIND to the second": times.bind,
        "client: an association without a datagram in either direction": UdpSettings().idle,
        "a stream without a byte in either direction": times.idle,
        "the same, once the other end's direction has ended": times.half_closed,
        "the same, once its own direction has ended": times.half_closed,
    }
    assert of_exit["reach_timeout"].default == times.exit
    assert PoolSettings().max_idle < times.idle


def test_the_document_names_the_strings_that_are_hashed() -> None:
    for constant in (crypto._PROTOCOL, crypto.PROLOGUE):
        assert f"`{constant.decode()}`" in document.TEXT
    for purpose in ("hello", "reply"):
        person = f"{crypto.PROLOGUE.decode()} {purpose}"
        assert f'personalization "{person}"' in document.TEXT


def test_the_documents_example_is_the_captured_session() -> None:
    session = read_session("session.json")
    example = document.example()
    boxes = agree(session)
    of_client = ("client_private", "client_public", "hello_salt")
    of_server = ("server_private", "server_public", "reply_salt")
    shown = [f"{frame['from']} {frame['type']}" for frame in session["frames"][:7]]
    assert example == {
        **{name: session[name] for name in ("key", *of_client, *of_server, "hello", "reply")},
        "hint": session["hello"][32:40],
        "to_server": boxes["client"].key.hex(),
        "to_client": boxes["server"].key.hex(),
        **{name: session["frames"][number]["hex"] for number, name in enumerate(shown)},
    }
    first = other_end.Taker(bytes.fromhex(example["client OPEN"]))
    assert document.example_boxes() == [
        boxes["client"].open(first(20)),
        boxes["client"].open(first(38)),
    ]
    assert f"its time is {session['time_ms']}, P is {session['hello_padding']} " in document.TEXT
    assert f"and Q is {session['reply_padding']}." in document.TEXT.replace("\n", " ")
    assert type(failure_from_code(session["frames"][10]["code"])) is ConnectionRefused
