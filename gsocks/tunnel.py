"""Frames over one connection, which carry one stream at a time.

A frame is a sealed header (type, length) and, if the length is not 0, a sealed body; the wire is
docs/protocol.md.  A stream is opened by OPEN, answered by OPENED, and ends by a FIN in each
direction; then the tunnel is as new and carries the next one.  Anything else closes it.

    client: connect_tunnel() -> ClientTunnel     .open(request) -> bound, stream
    server: accept_tunnel()  -> ServerTunnel     .accept() -> request, .succeeded() or .failed()
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import gevent
from gevent.event import Event
from gevent.socket import socket

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import (
    EPHEMERAL_SIZE,
    HELLO_HEAD_SIZE,
    Cipher,
    Initiator,
    Key,
    KeyRing,
    Session,
    preferred,
)
from gsocks.errors import (
    ClientError,
    CommandNotSupported,
    ConnectFailed,
    ExitFailed,
    GsocksError,
    ProtocolViolation,
    Stranger,
    StreamClosed,
    StreamError,
    StreamReset,
    Tampered,
    Truncated,
    failure_from_code,
)
from gsocks.replay import ReplayGuard, now_ms
from gsocks.request import Command, Request
from gsocks.stream import (
    CHUNK,
    NOTHING,
    Bytes,
    Pollable,
    Reader,
    Workbench,
    receive_into,
    reset,
    send_all,
    send_now,
)

HEADER_SIZE = 4
#: the largest body of a frame
MAX_BODY = CHUNK
#: fetched together with a header, so that a small frame costs one system call
_READ_AHEAD = 4096
#: OPEN and OPENED are padded by fewer bytes than this
PADDING_LIMIT = 128


class Frame(IntEnum):
    """The type byte of a header."""

    OPEN = 0x01
    OPENED = 0x02
    DATA = 0x03
    FIN = 0x04
    RESET = 0x05
    PING = 0x06
    PONG = 0x07
    DATAGRAM = 0x08
    PAD = 0x09


_COMMANDS = {int(command): command for command in Command}


class Tunnel:
    """What both ends share: sealed frames over a socket that it owns."""

    __slots__ = (
        "_due",
        "_opener",
        "_reader",
        "_sealer",
        "_sock",
        "cipher",
        "last_heard",
        "last_used",
    )

    def __init__(self, sock: socket, session: Session, reader: Reader | None = None) -> None:
        self._sock: socket | None = sock
        self._reader = reader or Reader(sock)
        self._sealer = session.sealer
        self._opener = session.opener
        #: the header whose body has not come yet
        self._due: _Header | None = None
        self.cipher = session.cipher
        #: monotonic seconds when the last stream ended
        self.last_used = time.monotonic()
        #: monotonic seconds of the last sign of life, a stream's or a ping's
        self.last_heard = self.last_used

    def used(self) -> None:
        """A stream has just ended."""
        self.last_used = self.last_heard = time.monotonic()

    def send(self, kind: Frame, body: bytes = b"") -> None:
        """One frame, header and body in one write.  Raises StreamError."""
        self._write(self._frame(kind, body))

    def send_frames(self, *frames: tuple[Frame, bytes]) -> None:
        """Frames that leave together, in one write.  Raises StreamError."""
        self._write(b"".join([self._frame(kind, body) for kind, body in frames]))

    def _write(self, frames: bytes) -> None:
        sock = self._socket()
        try:
            send_all(sock, frames)
        except BaseException:
            # A frame cut in two can't be continued, so nothing may follow it; this includes
            # the timeout or the kill of the greenlet that was sending.
            self.abort()
            raise

    def receive(self) -> tuple[int, bytes]:
        """The next frame's type and body.

        Raises Truncated if the connection ends (its authenticated end is FIN, not EOF),
        Tampered if it is not of the other end's making, ProtocolViolation, another StreamError.
        """
        self._socket()
        reader, overhead = self._reader, self._opener.overhead
        kind, length = self._due = self._read_header(
            self._unseal(reader.exactly(HEADER_SIZE + overhead, _READ_AHEAD))
        )
        # the next header is likely to stand right behind the body
        sealed = reader.exactly(length + overhead, HEADER_SIZE + overhead) if length else b""
        self._due = None
        return kind, self._unseal(sealed) if length else b""

    def receive_nowait(self, expected: Frame, bench: Workbench) -> tuple[int, _Header | None]:
        """All frames that have come whole, without waiting for more.

        The bodies of those that are ``expected`` lie on the bench then, one behind the other:
        how many bytes; and the header of the first one that is something else, behind which
        nothing is read.  Raises as :meth:`receive` does.
        """
        opener = self._opener
        head = HEADER_SIZE + opener.overhead
        plain, sealed = bench.plain, bench.sealed
        kept = self._reader.take_rest()
        end = len(kept)
        sealed[:end] = kept
        # as many of the largest frames as fit: then they end where a read ends, and none is cut
        # that would have to be kept
        whole = bench.room // MAX_BODY * (head + MAX_BODY + opener.overhead)
        if self._due is not None:
            whole -= head
        count = receive_into(self.fileno(), sealed[end:whole])
        end += count or 0
        start, filled, other = 0, 0, None
        while other is None:
            if self._due is None:
                if end - start < head:
                    break
                self._unseal_into(plain[filled:], sealed[start : start + head])
                self._due = self._read_header(plain[filled : filled + HEADER_SIZE])
                start += head
            kind, length = self._due
            size = length + opener.overhead if length else 0
            if end - start < size:
                break
            if size:
                self._unseal_into(plain[filled:], sealed[start : start + size])
                start += size
            if kind == expected and length:
                filled += length
            elif kind != Frame.PAD:
                other = self._due
            self._due = None
        if start < end:
            self._reader.keep(sealed[start:end])
        if count == 0 and not filled and other is None:
            raise Truncated("the connection ended early")
        return filled, other

    def send_nowait(self, kind: Frame, body: Bytes, bench: Workbench) -> memoryview:
        """One frame, or as many as ``body`` needs; what of it could not be sent at once.

        The caller sends that before anything else.  Raises StreamError.
        """
        sealed, sealer = bench.sealed, self._sealer
        end = 0
        for start in range(0, len(body) or 1, MAX_BODY):
            part = body[start : start + MAX_BODY]
            sealer.seal_into(sealed[end:], _header(kind, len(part)))
            end += HEADER_SIZE + sealer.overhead
            if part:
                sealer.seal_into(sealed[end:], part)
                end += len(part) + sealer.overhead
        sent = send_now(self.fileno(), sealed[:end])
        return NOTHING if sent == end else memoryview(bytes(sealed[sent:end]))

    def padding(self) -> bytes:
        """What hides how long a name is: zeros, since they are sealed, of a random number."""
        return bytes(next(_random_bytes) % PADDING_LIMIT)

    def abort(self) -> None:
        """Reset the connection; never raises, does nothing the second time."""
        sock, self._sock = self._sock, None
        if sock is not None:
            reset(sock)

    def close(self) -> None:
        """Close the connection; never raises, does nothing the second time."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def abort_with_reset(self) -> None:
        """Carry a reset through: RESET if it can leave at once, and the connection's end."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        try:
            sock.settimeout(0.0)
            sock.send(self._frame(Frame.RESET))
        except OSError:
            reset(sock)
        else:
            sock.close()

    @property
    def closed(self) -> bool:
        return self._sock is None

    @property
    def between_frames(self) -> bool:
        """Whether no part of a frame has been read."""
        return self._reader.at_boundary and self._due is None

    @property
    def readable(self) -> bool:
        """Whether something waits to be read: on an idle tunnel, its end."""
        if self._sock is None or not self._reader.at_boundary:
            return True
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """The descriptor, to watch an idle tunnel."""
        return self._socket().fileno()

    def _socket(self) -> socket:
        if self._sock is None:
            raise StreamClosed("the tunnel is closed")
        return self._sock

    def _unseal(self, sealed: bytes) -> bytes:
        try:
            return self._opener.open(sealed)
        except Tampered:
            # Whoever read on could be handed a body as a header, so nobody may.
            self.abort()
            raise

    def _unseal_into(self, room: memoryview, sealed: memoryview) -> None:
        try:
            self._opener.open_into(room, sealed)
        except Tampered:
            self.abort()
            raise

    def _read_header(self, header: Bytes) -> _Header:
        kind, length = header[0], int.from_bytes(header[1:], "big")
        if length > MAX_BODY:
            self.abort()
            raise ProtocolViolation(f"a frame of {length} bytes")
        return _Header(kind, length)

    def _frame(self, kind: Frame, body: bytes = b"") -> bytes:
        header = self._sealer.seal(_header(kind, len(body)))
        return header + self._sealer.seal(body) if body else header


class _Header(NamedTuple):
    kind: int
    length: int


def _header(kind: Frame, length: int) -> bytes:
    return (kind << 24 | length).to_bytes(HEADER_SIZE, "big")


class _Inside:
    """What is the same for whatever a tunnel carries from OPENED to both FINs.

    ``ended`` is called once, when it is closed: with True if it had ended in both directions and
    the tunnel can carry the next stream, with False if the tunnel is closed too.
    """

    __slots__ = ("_ended", "_read_ended", "_tunnel", "_write_ended", "_writing")

    def __init__(self, tunnel: Tunnel, ended: Callable[[bool], None]) -> None:
        self._tunnel: Tunnel | None = tunnel
        self._ended = ended
        self._read_ended = False
        self._write_ended = False
        self._writing = False

    def _receive(self, expected: Frame) -> bytes:
        """The body of the next frame that carries something; ``b""`` at the end."""
        tunnel = self._open_tunnel()
        while not self._read_ended:
            kind, body = tunnel.receive()
            if kind == expected and body:
                return body
            if kind != Frame.PAD:
                self._meet(_Header(kind, len(body)))
        return b""

    def _meet(self, header: _Header) -> None:
        """A frame that carries nothing: the end, or its place is not inside a stream."""
        if header == (Frame.FIN, 0):
            self._read_ended = True
        elif header.kind == Frame.RESET:
            raise StreamReset("reset at the far end of the tunnel")
        else:
            raise ProtocolViolation(f"frame {header.kind:#04x} inside a stream")

    def _send(self, kind: Frame, body: bytes) -> None:
        tunnel = self._open_tunnel()
        if self._write_ended:
            raise StreamClosed("this direction has ended")
        self._writing = True
        try:
            tunnel.send(kind, body)
        finally:
            self._writing = False

    def write_eof(self) -> None:
        if self._write_ended:
            return
        tunnel = self._open_tunnel()
        self._writing = True
        try:
            tunnel.send(Frame.FIN)
        finally:
            self._writing = False
        self._write_ended = True

    def abort(self) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is None:
            return
        if self._writing or self._write_ended:
            # in the middle of a frame, or behind the FIN, RESET has no place
            tunnel.abort()
        else:
            tunnel.abort_with_reset()
        self._ended(False)

    def close(self) -> None:
        if not (self._read_ended and self._write_ended):
            self.abort()
            return
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.used()
            self._ended(True)

    def _open_tunnel(self) -> Tunnel:
        if self._tunnel is None:
            raise StreamClosed("closed at this end")
        return self._tunnel


class TunnelStream(_Inside, Pollable):
    """One stream inside a tunnel, as a :class:`gsocks.stream.Stream`."""

    __slots__ = ("_behind", "_unsent")

    def __init__(self, tunnel: Tunnel, ended: Callable[[bool], None]) -> None:
        super().__init__(tunnel, ended)
        #: the rest of a frame, taken by write_nowait
        self._unsent = NOTHING
        #: what stood behind the bytes that were read last, and is no more of them
        self._behind: _Header | None = None

    def read(self) -> bytes:
        return self._receive(Frame.DATA)

    def write(self, data: bytes) -> None:
        if len(data) <= MAX_BODY:
            if data:
                self._send(Frame.DATA, data)
            return
        for start in range(0, len(data), MAX_BODY):
            self._send(Frame.DATA, data[start : start + MAX_BODY])

    # --- carried by the hub -----------------------------------------------------------------

    def fileno(self) -> int:
        return self._open_tunnel().fileno()

    def read_nowait(self, bench: Workbench) -> Bytes | None:
        tunnel = self._open_tunnel()
        if self._read_ended:
            return b""
        behind, self._behind = self._behind, None
        if behind is None:
            count, behind = tunnel.receive_nowait(Frame.DATA, bench)
            if count:
                self._behind = behind
                return bench.plain[:count]
            if behind is None:
                return None
        self._meet(behind)
        return b""

    @property
    def at_hand(self) -> bool:
        return self._behind is not None

    @property
    def read_ahead(self) -> bool:
        return not self._open_tunnel().between_frames

    def write_nowait(self, data: Bytes, bench: Workbench) -> bool:
        return self._sent(self._open_tunnel().send_nowait(Frame.DATA, data, bench))

    def write_eof_nowait(self, bench: Workbench) -> bool:
        tunnel = self._open_tunnel()
        self._write_ended = True
        return self._sent(tunnel.send_nowait(Frame.FIN, b"", bench))

    def flush_nowait(self) -> bool:
        return self._sent(self._unsent[send_now(self.fileno(), self._unsent) :])

    def _sent(self, rest: memoryview) -> bool:
        self._writing = bool(rest)
        self._unsent = rest if rest else NOTHING
        return not rest


class TunnelDatagrams(_Inside):
    """The datagrams of an association inside a tunnel, as a stream of them (gsocks/datagram.py).

    One that is larger than a frame can't be delivered to a client either, whose datagrams have
    a header in front: it is dropped.
    """

    __slots__ = ()

    def read(self) -> bytes:
        return self._receive(Frame.DATAGRAM)

    def write(self, datagram: bytes) -> None:
        if len(datagram) <= MAX_BODY:
            self._send(Frame.DATAGRAM, datagram)


# --- the client's end -----------------------------------------------------------------------


class ClientTunnel(Tunnel):
    """A tunnel as its opener holds it: it asks for streams, one after the other."""

    __slots__ = ("served",)

    def __init__(self, sock: socket, session: Session, reader: Reader) -> None:
        super().__init__(sock, session, reader)
        #: how many streams it has carried; 0: never used
        self.served = 0

    def open(self, request: Request) -> Address:
        """Ask for a stream; returns the bound address at the far end.

        For BIND that is where the peer is waited for, and :meth:`opened_again` follows.

        Raises what the far end answered (a ConnectFailed kind: the tunnel can be used again),
        or a StreamError: the tunnel is broken, and the request had no effect that could be seen.
        """
        self.ask(request)
        return self.opened_again()

    def opened_again(self) -> Address:
        """Wait for the second answer to a BIND; returns the peer's address.

        Raises as :meth:`open` does.
        """
        try:
            return self.answer()
        except (ConnectFailed, ClientError):
            # The refused stream ends like any other: the server's direction with OPENED, ours
            # by FIN, behind which the next OPEN may stand.
            self.send(Frame.FIN)
            self.used()
            raise

    def ask(self, request: Request, *behind: tuple[Frame, bytes]) -> None:
        """Ask for a stream, with the frames that stand ``behind`` OPEN in the same write.

        What came of it is :meth:`answer`'s to tell.  Raises StreamError.
        """
        self.served += 1
        body = bytes((request.command,)) + request.dest.encode()
        self.send_frames((Frame.OPEN, body + self.padding()), *behind)

    def answer(self) -> Address:
        """Wait for the server's answer; returns the bound address.

        Raises as :meth:`open` does.  After a refusal this end's direction has not ended, unless
        it had before.
        """
        code, bound = _decode_opened(self._answer(Frame.OPENED))
        if code:
            raise failure_from_code(code, "told by the far end of the tunnel")
        return bound

    def ping(self) -> None:
        """Ask for a sign of life, and wait for it.  Raises StreamError."""
        self.send(Frame.PING)
        self._answer(Frame.PONG)
        self.last_heard = time.monotonic()

    def _answer(self, expected: Frame) -> bytes:
        kind, body = self.receive()
        while kind == Frame.PAD:
            kind, body = self.receive()
        if kind != expected:
            raise ProtocolViolation(f"frame {kind:#04x} where {expected.name} was due")
        return body


def connect_tunnel(sock: socket, key: Key, offered: Cipher) -> ClientTunnel:
    """Agree on keys over a connected socket, which the tunnel then owns.

    Runs under the caller's timeout.  Raises ExitFailed or StreamError; the socket is the
    caller's to close then.
    """
    initiator = Initiator(key, offered)
    send_all(sock, initiator.hello(now_ms()))
    reader = Reader(sock)
    try:
        ephemeral = reader.exactly(EPHEMERAL_SIZE, _READ_AHEAD)
        rest = reader.exactly(initiator.reply_rest(ephemeral), _READ_AHEAD)
    except StreamError:
        raise ExitFailed(
            "the server closed without an answer: another key, clocks more than 30 s apart,"
            " or no gsocks server at that address"
        ) from None
    return ClientTunnel(sock, initiator.finish(ephemeral, rest), reader)


# --- the server's end -----------------------------------------------------------------------


class ServerTunnel(Tunnel):
    """A tunnel as its acceptor holds it: it is asked for streams."""

    __slots__ = ("_refusing", "key", "user")

    def __init__(self, sock: socket, session: Session, reader: Reader, user: str, key: Key) -> None:
        super().__init__(sock, session, reader)
        #: the key that the other end proved to know, and its name
        self.key = key
        self.user = user
        #: the last request was refused, and the client's direction has not ended yet
        self._refusing = False

    def accept(self) -> Request | None:
        """The next request; None if the other end closed the tunnel, which it may between two.

        Answers pings meanwhile.  Raises StreamError; a ClientError for a command or a
        destination that can't be one, which is then to be answered like any other failure.
        """
        while True:
            try:
                kind, body = self.receive()
            except (Truncated, StreamReset):
                if self.between_frames and not self._refusing:
                    return None
                raise
            if kind == Frame.PAD:
                continue
            if self._refusing:
                self._discard_refused(kind, body)
            elif kind == Frame.OPEN:
                return self._decode_open(body)
            elif kind == Frame.PING:
                self.send(Frame.PONG)
            else:
                raise ProtocolViolation(f"frame {kind:#04x} between two streams")

    def _discard_refused(self, kind: int, body: bytes) -> None:
        """What the client sent before it could know, up to the end of its direction."""
        if kind == Frame.FIN and not body:
            self._refusing = False
        elif kind == Frame.RESET:
            raise StreamReset("reset at the far end of the tunnel")
        elif kind != Frame.DATA or not body:
            raise ProtocolViolation(f"frame {kind:#04x} behind a refused OPEN")

    def succeeded(self, bound: Address, via: str = "") -> None:  # noqa: ARG002
        """Answer the request: connected.  Raises StreamError.

        Which exit serves it is this end's own business, and has no place in OPENED.
        """
        self.send(Frame.OPENED, bytes((0,)) + bound.encode() + self.padding())

    def failed(self, error: GsocksError) -> None:
        """Answer the request: why it was not connected; ends the stream.  Never raises."""
        self._refusing = True
        try:
            self.send(Frame.OPENED, bytes((error.code,)) + UNSPECIFIED.encode() + self.padding())
        except StreamError:
            pass  # the tunnel is closed by it, which whoever waits for a request is told

    def _decode_open(self, body: bytes) -> Request:
        take = _Taker(body)
        command = take(1)[0]
        dest = Address.read(take)
        known = _COMMANDS.get(command)
        if known is None:
            raise CommandNotSupported(f"command {command:#04x}")
        return Request(known, dest, self.user)


def accept_tunnel(sock: socket, keys: KeyRing, guard: ReplayGuard, ciphers: Cipher) -> ServerTunnel:
    """Agree on keys with whoever connected.

    Runs under the caller's timeout.  Raises Stranger or StreamError; then nothing was sent, and
    the caller goes on as :func:`discard` does.
    """
    reader = Reader(sock)
    head = reader.exactly(HELLO_HEAD_SIZE)
    read = b""
    for responder in keys.candidates(head):
        read += reader.exactly(responder.rest - len(read))
        try:
            hello = responder.read(read)
        except Tampered:
            continue
        chosen = preferred(hello.offered & ciphers)
        if chosen is None:
            raise Stranger("offers no cipher that this server has")
        if not guard.admit(hello.token, hello.time_ms):
            raise Stranger("a hello seen before, or made at another time than this server's")
        message, session = responder.reply(chosen)
        send_all(sock, message)
        return ServerTunnel(sock, session, reader, responder.name, responder.key)
    raise Stranger("not the hello of a known key")


def discard(sock: socket, seconds: float) -> None:
    """Read on and throw away until the time is over, then close.

    Whatever a stranger sent, and even if it ended its direction, it sees the same: nothing,
    until the same moment.  Probers count bytes and time (shadowsocks-rust#292).
    """
    try:
        gevent.with_timeout(seconds, _discard_for_ever, sock, timeout_value=None)
    finally:
        sock.close()


def _discard_for_ever(sock: socket) -> None:
    try:
        while sock.recv(CHUNK):
            # what comes faster than it is read would let nobody else run, nor the time end
            gevent.sleep(0)
        Event().wait()
    except OSError:
        pass  # reset by the stranger itself: nobody is left to be told anything


def _draw_random_bytes() -> Iterator[int]:
    # a system call for each would cost more than the padding itself
    while True:
        yield from os.urandom(256)


_random_bytes = _draw_random_bytes()


# --- bodies ---------------------------------------------------------------------------------


class _Taker:
    """``exactly`` for bytes that are all there."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def __call__(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._body):
            raise ProtocolViolation("a frame's body ends early")
        return self._body[start : self._at]


def _decode_opened(body: bytes) -> tuple[int, Address]:
    take = _Taker(body)
    try:
        return take(1)[0], Address.read(take)
    except ClientError as error:  # it is the far end that named this address
        raise ProtocolViolation(f"a bound address that can't be one: {error}") from None
