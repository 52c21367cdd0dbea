"""Connections and tunnels of one case: what they wait for is bounded by the time of the case."""

from __future__ import annotations

import socket
import struct
import time
from typing import NamedTuple

from nacl.exceptions import CryptoError

from tests.conformance.cases import Failed
from tests.support import other_end
from tests.support.other_end import NAMES, OPENED, PAD, PING, PONG, RESET, SKIPPED, Boxes, Taker

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

FrameOf = tuple[int, bytes]


class Deadline:
    """The end of a case's time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; never 0, which a socket takes for another mode."""
        return max(0.001, self._at - time.monotonic())


class Ended(Exception):
    """The connection has ended; the argument is how: ``EOF`` or ``RST``."""


class Nothing(Failed):
    """Nothing has come within the time."""

    def __init__(self, seconds: float) -> None:
        super().__init__("something within the time", f"nothing in {seconds:g} s")


class Connection:
    """A TCP connection."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self._deadline = deadline
        self.began = time.monotonic()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def bound_by(self, deadline: Deadline) -> None:
        """Let a case have it, whose time counts from here on."""
        self._deadline = deadline

    @property
    def age(self) -> float:
        """Seconds since it was connected."""
        return time.monotonic() - self.began

    def send(self, data: bytes) -> None:
        """All of it.  Raises Ended."""
        self.sock.settimeout(self._deadline.left)
        try:
            self.sock.sendall(data)
        except TimeoutError:
            raise Failed("that it is read", "no room to send") from None
        except OSError:
            raise Ended("RST") from None

    def receive(self, count: int = 65536) -> bytes:
        """What comes next.  Raises Ended."""
        self.sock.settimeout(self._deadline.left)
        try:
            data = self.sock.recv(count)
        except TimeoutError:
            raise Nothing(self._deadline.seconds) from None
        except OSError:
            raise Ended("RST") from None
        if not data:
            raise Ended("EOF")
        return data

    def exactly(self, count: int) -> bytes:
        """So many bytes.  Raises Ended."""
        data = b""
        while len(data) < count:
            data += self.receive(count - len(data))
        return data

    def to_its_end(self) -> tuple[bytes, str]:
        """All that comes before the end, and how it ends."""
        data = b""
        try:
            while True:
                data += self.receive()
        except Ended as ended:
            return data, str(ended)

    def end(self) -> None:
        """Send FIN."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            raise Ended("RST") from None

    def reset(self) -> None:
        """Send RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    def expect(self, data: bytes) -> None:
        """That these bytes come next."""
        try:
            seen = self.exactly(len(data))
        except Ended as ended:
            raise Failed(f"{len(data)} bytes", str(ended)) from None
        if seen != data:
            raise Failed(shown(data), shown(seen))

    def expect_end(self, how: str, *others: str) -> None:
        """That nothing comes but an end of this kind, or of one of the others."""
        data, seen = self.to_its_end()
        if data:
            raise Failed(how, f"{len(data)} bytes")
        if seen not in (how, *others):
            raise Failed(how, seen)


def shown(data: bytes) -> str:
    """Bytes in a message."""
    return repr(data) if len(data) <= 20 else f"{len(data)} bytes"


def named(kind: int, body: bytes) -> str:
    """A frame in a message."""
    name = NAMES.get(kind, f"a frame {kind:#04x}")
    if kind == OPENED and body:
        return f"{name} with code {body[0]:#04x}"
    return f"{name} of {len(body)} bytes" if body else name


class Bound(NamedTuple):
    """What an OPENED says."""

    code: int
    host: str
    port: int


class Tunnel:
    """An agreed connection: frames, and what a case expects of them."""

    def __init__(self, connection: Connection, sealing: Boxes, opening: Boxes) -> None:
        self.connection = connection
        self.sealing = sealing
        self.opening = opening

    def sealed(self, *frames: FrameOf) -> bytes:
        """The next frames, as they travel."""
        return b"".join(self.sealing.frame(kind, body) for kind, body in frames)

    def send(self, *frames: FrameOf) -> None:
        """In one write."""
        self.connection.send(self.sealed(*frames))

    def receive(self) -> FrameOf:
        """The next frame that is no padding.  Raises Ended."""
        while True:
            try:
                kind, body = self.opening.read_frame(self.connection.exactly)
            except CryptoError:
                raise Failed("a box that opens", "one that doesn't") from None
            except ValueError as error:
                raise Failed("a frame", str(error)) from None
            if kind != PAD and kind < SKIPPED:
                return kind, body

    def expect(self, kind: int, body: bytes | None = None) -> bytes:
        """That a frame of this type comes next, with this body if one is given; its body."""
        wanted = named(kind, body or b"")
        try:
            came, seen = self.receive()
        except Ended as ended:
            raise Failed(wanted, str(ended)) from None
        if came != kind or (body is not None and seen != body):
            raise Failed(wanted, named(came, seen))
        return seen

    def expect_opened(self, code: int = 0x00) -> Bound:
        """That OPENED with this code comes next, in the form that the document gives it."""
        body = self.expect(OPENED)
        bound = self.read_answer(body)
        if bound.code != code:
            raise Failed(f"OPENED with code {code:#04x}", named(OPENED, body))
        return bound

    def read_answer(self, body: bytes) -> Bound:
        """The body of an OPENED."""
        take = Taker(body)
        try:
            bound = Bound(take(1)[0], *other_end.read_address(take))
        except ValueError as error:
            raise Failed("OPENED with a code and an address", str(error)) from None
        if len(take.rest) > 127 or any(take.rest):
            raise Failed("0 to 127 zeros behind the address", shown(take.rest))
        if bound.code and bound[1:] != ("0.0.0.0", 0):
            raise Failed("0.0.0.0, port 0 in a refusal", f"{bound.host}, port {bound.port}")
        return bound

    def expect_data(self, data: bytes) -> None:
        """That these bytes come, in whatever frames."""
        came = b""
        while len(came) < len(data):
            came += self.expect(other_end.DATA)
        if came != data:
            raise Failed(shown(data), shown(came))

    def expect_given_up(self) -> None:
        """That the other end closes the tunnel; RESET may come before, and nothing else."""
        try:
            kind, body = self.receive()
            if kind == RESET:
                kind, body = self.receive()
        except Ended:
            return
        raise Failed("the end of the tunnel", named(kind, body))

    def expect_alive(self) -> None:
        """That the other end, a server, answers PING."""
        self.send((PING, b""))
        self.expect(PONG)
