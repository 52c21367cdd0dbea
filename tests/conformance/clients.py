"""Tries a client: the tester is its server, and does with each of its requests what a case wants.

The client is driven by a SOCKS5 listener of its own (``--socks``), or by hand.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from nacl.exceptions import CryptoError

from tests.conformance.cases import Cases, Failed, NotTried
from tests.conformance.trial import Place, now_ms
from tests.conformance.wire import (
    Connection,
    Deadline,
    Ended,
    FrameOf,
    Nothing,
    Tunnel,
    named,
)
from tests.support import other_end
from tests.support.other_end import (
    AEGIS256,
    DATA,
    DATAGRAM,
    FIN,
    OPEN,
    OPENED,
    PAD,
    PING,
    PONG,
    RESET,
    SECRETBOX,
    VERSION,
)

clients = Cases["ClientTrial"]("client")

#: where the tester has the client go; it is never looked up nor connected to
DESTINATION = ("conformance.example", 80)

BOUND = b"\x01" + bytes((192, 0, 2, 7, 0xC3, 0x50))
NO_ADDRESS = b"\x01" + bytes(6)
GRANTED: FrameOf = (OPENED, b"\0" + BOUND)
REFUSED: FrameOf = (OPENED, b"\x01" + NO_ADDRESS)


class Hello(NamedTuple):
    """A hello as it came, and what it says."""

    raw: bytes
    said: other_end.Said
    received_ms: int


class Asked(NamedTuple):
    """A tunnel in which a request waits for its answer."""

    tunnel: Tunnel
    request: tuple[int, str, int]
    padding: bytes


#: makes the reply of what the server's part would say; then the client is to close
Spoil = Callable[[other_end.Server, Hello], bytes]


class Server:
    """Agrees with the client again and again, until it is closed."""

    def __init__(self, place: Place, key: bytes, seconds: float) -> None:
        self._key = key
        self.seconds = seconds
        self.hellos: list[Hello] = []
        #: why a hello was none
        self.refused: list[str] = []
        #: requests that a case waits for
        self._asked: queue.Queue[Asked] = queue.Queue()
        #: connections whose reply a case has spoiled
        self.spoiled: queue.Queue[tuple[Connection, Hello]] = queue.Queue()
        self._lock = threading.Lock()
        self._spoil: Spoil | None = None
        self._wanted = False
        self._closed = False
        self._listener = socket.create_server(place)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Accept no more."""
        self._closed = True
        self._listener.close()

    def spoil_next(self, spoil: Spoil | None) -> None:
        """Have the next reply made by that."""
        with self._lock:
            self._spoil = spoil

    def want(self, wanted: bool) -> None:
        """Whether a case takes the next request; all others are refused."""
        with self._lock:
            self._wanted = wanted

    def forget_requests(self) -> None:
        """Close the tunnels of requests that no case has taken in its time."""
        while not self._asked.empty():
            self._asked.get().tunnel.connection.sock.close()

    def next_asked(self, within: float) -> Asked:
        """The request that the case takes.  Raises queue.Empty."""
        return self._asked.get(timeout=within)

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        # a tunnel may be idle for as long as the client likes
        connection = Connection(sock, Deadline(3600))
        try:
            tunnel = self._agree(connection)
            if tunnel is not None:
                self._answer(tunnel)
        except (Ended, Failed, CryptoError):
            sock.close()

    def _agree(self, connection: Connection) -> Tunnel | None:
        raw = b""

        def exactly(count: int) -> bytes:
            nonlocal raw
            data = connection.exactly(count)
            raw += data
            return data

        end = other_end.Server(self._key, os.urandom(32))
        try:
            said = end.read_hello(exactly)
        except (ValueError, CryptoError) as error:
            self.refused.append(str(error) or "its payload does not open")
            raise Ended("EOF") from None
        hello = Hello(raw, said, now_ms())
        self.hellos.append(hello)
        with self._lock:
            spoil, self._spoil = self._spoil, None
        if spoil is not None:
            connection.send(spoil(end, hello))
            self.spoiled.put((connection, hello))
            return None
        reply, sealing, opening = end.reply(SECRETBOX)
        connection.send(reply)
        return Tunnel(connection, sealing, opening)

    def _answer(self, tunnel: Tunnel) -> None:
        """Answer pings, refuse what no case has asked for, and leave the rest to the case."""
        while True:
            kind, body = tunnel.receive()
            if kind == PING:
                tunnel.send((PONG, os.urandom(5)))
            elif kind == OPEN:
                take = other_end.Taker(body)
                request = (take(1)[0], *other_end.read_address(take))
                with self._lock:
                    wanted, self._wanted = self._wanted, False
                if wanted:
                    self._asked.put(Asked(tunnel, request, take.rest))
                    return
                tunnel.send(REFUSED)
            elif kind not in (DATA, FIN):  # behind a refusal
                raise Ended("EOF")


class Application:
    """A program that uses the client by SOCKS5."""

    def __init__(self, socks: Place, deadline: Deadline) -> None:
        self._socks = socks
        self._deadline = deadline
        #: REP, or why there is none
        self.reply: int | None = None
        self.connection: Connection | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            sock = socket.create_connection(self._socks, self._deadline.left)
            self.connection = connection = Connection(sock, self._deadline)
            name, port = DESTINATION
            raw = name.encode()
            request = b"\x05\x01\0\x03" + bytes((len(raw),)) + raw + port.to_bytes(2, "big")
            connection.send(b"\x05\x01\0" + request)
            reply = connection.exactly(2 + 4)
            rest = {1: 4, 4: 16}.get(reply[5], 0) + 2
            connection.exactly(rest)
            self.reply = reply[3]
        except (OSError, Ended, Failed):
            pass  # it has no reply, which the case finds

    def answered(self) -> int | None:
        """REP; None: the connection has ended instead."""
        self._thread.join(self._deadline.left)
        return self.reply

    def close(self) -> None:
        self._thread.join(self._deadline.left)
        if self.connection is not None:
            self.connection.sock.close()


class ClientTrial:
    """What one case does with the client."""

    def __init__(self, server: Server, socks: Place | None) -> None:
        self.server = server
        self.deadline = Deadline(server.seconds)
        self._socks = socks
        self._tunnels: list[Tunnel] = []
        self._applications: list[Application] = []

    def __enter__(self) -> ClientTrial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.want(False)
        self.server.forget_requests()
        self.server.spoil_next(None)
        for tunnel in self._tunnels:
            tunnel.connection.sock.close()
        for application in self._applications:
            application.close()

    def application(self) -> Application:
        """A new one, which is about to ask for the destination.  Raises NotTried."""
        if self._socks is None:
            raise NotTried("needs --socks")
        self.server.want(True)
        return self._new_application(self._socks)

    def drive(self) -> None:
        """Have the client make a request, if it has a SOCKS listener."""
        if self._socks is not None:
            self._new_application(self._socks)

    def _new_application(self, socks: Place) -> Application:
        made = Application(socks, self.deadline)
        self._applications.append(made)
        return made

    def asked(self, application: Application | None = None) -> Asked:
        """The next request: that application's, or of a new one that stands for it, or by hand.

        Raises NotTried.
        """
        if application is None:
            self.server.want(True)
            self.drive()
        try:
            asked = self.server.next_asked(self.deadline.left)
        except queue.Empty:
            raise NotTried("the client has not asked for anything") from None
        # what the case waits for is bounded from here on
        asked.tunnel.connection.bound_by(self.deadline)
        self._tunnels.append(asked.tunnel)
        return asked

    def granted(self, application: Application | None = None) -> Tunnel:
        """A stream that was granted.  Raises NotTried."""
        tunnel = self.asked(application).tunnel
        tunnel.send(GRANTED)
        return tunnel

    def expect_closed_behind(self, spoil: Spoil) -> None:
        """That the client closes behind such a reply, and sends nothing.  Raises NotTried."""
        self.server.spoil_next(spoil)
        self.drive()
        try:
            connection, _ = self.server.spoiled.get(timeout=self.deadline.left)
        except queue.Empty:
            raise NotTried("the client has not connected") from None
        connection.bound_by(self.deadline)
        with connection.sock:
            connection.expect_end("EOF", "RST")


# --- the hello ------------------------------------------------------------------------------------


@clients
def its_hello_is_as_the_document_says(trial: ClientTrial) -> None:
    if not trial.server.hellos:
        trial.asked()
    if trial.server.refused:
        raise Failed("a hello", trial.server.refused[0])
    for _, said, received_ms in trial.server.hellos:
        if abs(said.time_ms - received_ms) > 30_000:
            raise Failed("the present time", f"{said.time_ms} at {received_ms}")
        if said.version < VERSION:
            raise Failed(f"version {VERSION} or higher", str(said.version))
        if not said.offered & SECRETBOX:
            raise Failed("an offer of secretbox", f"{said.offered:#04x}")
        if any(said.padding):
            raise Failed("zeros as padding", "other bytes")


@clients
def each_hello_has_a_salt_and_a_public_key_of_its_own(trial: ClientTrial) -> None:
    for _ in range(3):
        if len(trial.server.hellos) < 2:
            trial.granted().connection.reset()
    raws = [hello.raw for hello in trial.server.hellos]
    if len(raws) < 2:
        raise NotTried("the client has opened one tunnel only")
    if len({raw[:16] for raw in raws}) < len(raws) or len({raw[20:52] for raw in raws}) < len(raws):
        raise Failed("hellos that differ", "salts or public keys that come again")


# --- replies --------------------------------------------------------------------------------------


def _sealed_reply(end: other_end.Server, payload: bytes, filler: int = 0) -> bytes:
    """A reply with this payload, and the padding that its salt says."""
    public = other_end.public_of(end.private)
    padding, mask = other_end.reply_shape(end.key, end.salt)
    end.noise.e(public)
    end.noise.ee(end.private, end.client_public)
    sealed = end.noise.seal(payload + bytes((filler,)) * padding)
    return end.salt + other_end.xor(public, mask) + sealed


def _flipped(end: other_end.Server, _: Hello) -> bytes:
    reply = bytearray(_sealed_reply(end, bytes((VERSION, SECRETBOX, 0))))
    reply[-1] ^= 1
    return bytes(reply)


def _unoffered(end: other_end.Server, hello: Hello) -> bytes:
    cipher = 0x40 if hello.said.offered & AEGIS256 else AEGIS256
    return _sealed_reply(end, bytes((VERSION, cipher, 0)))


@clients.each(
    with_a_flipped_bit=_flipped,
    of_another_key=lambda end, _: os.urandom(300),
    with_a_cipher_that_was_not_offered=_unoffered,
    with_two_ciphers=lambda end, _: _sealed_reply(end, bytes((VERSION, 0x03, 0))),
    with_no_cipher=lambda end, _: _sealed_reply(end, bytes((VERSION, 0x00, 0))),
    with_a_feature_that_was_not_offered=(
        lambda end, hello: _sealed_reply(
            end, bytes((VERSION, SECRETBOX, 0xFF & ~hello.said.features))
        )
    ),
    with_a_version_that_is_too_low=lambda end, _: _sealed_reply(end, bytes((1, SECRETBOX, 0))),
    with_a_version_that_is_too_high=(
        lambda end, hello: _sealed_reply(end, bytes((hello.said.version + 1, SECRETBOX, 0)))
    ),
)
def it_closes_behind_a_reply(trial: ClientTrial, spoil: Spoil) -> None:
    trial.expect_closed_behind(spoil)


# --- requests -------------------------------------------------------------------------------------


@clients
def its_open_is_as_the_document_says(trial: ClientTrial) -> None:
    asked = trial.asked()
    if asked.request[0] not in (1, 2, 3):
        raise Failed("a command", f"{asked.request[0]:#04x}")
    if len(asked.padding) > 127 or any(asked.padding):
        raise Failed("0 to 127 zeros behind the address", f"{len(asked.padding)} bytes")


@clients
def it_asks_for_the_destination_of_its_application(trial: ClientTrial) -> None:
    request = trial.asked(trial.application()).request
    if request != (1, *DESTINATION):
        raise Failed(f"CONNECT to {DESTINATION}", str(request))


@clients
def a_stream_is_carried_in_both_directions_to_both_ends(trial: ClientTrial) -> None:
    application = trial.application()
    tunnel = trial.granted(application)
    connection = _connected(application)
    connection.send(b"question")
    tunnel.expect_data(b"question")
    tunnel.send((PAD, b"x"), (0x80, b"y"), (DATA, b"answer"), (FIN, b""))
    connection.expect(b"answer")
    connection.expect_end("EOF")
    connection.send(b"more")
    tunnel.expect_data(b"more")
    connection.end()
    tunnel.expect(FIN, b"")


def _connected(application: Application) -> Connection:
    if application.answered() != 0 or application.connection is None:
        raise Failed("success for the application", f"reply {application.reply}")
    return application.connection


@clients.each(**{f"{code:#04x}": code for code in (0x01, 0x02, 0x05, 0x14, 0xF5, 0x10, 0xFF)})
def it_sends_one_fin_behind_a_refusal_with_code(trial: ClientTrial, code: int) -> None:
    tunnel = trial.asked().tunnel
    tunnel.send((OPENED, bytes((code,)) + NO_ADDRESS))
    tunnel.expect(FIN, b"")
    seen = _next_soon(tunnel)
    if seen is not None and seen[0] not in (OPEN, PING):
        raise Failed("OPEN, PING or nothing behind the FIN", named(*seen))


def _next_soon(tunnel: Tunnel) -> FrameOf | None:
    """The next frame; None: it ends, or nothing has come for a moment."""
    tunnel.connection.bound_by(Deadline(0.3))
    try:
        return tunnel.receive()
    except (Ended, Nothing):
        return None


@clients.each(
    nothing_listens_there=(0x05, 5),
    a_name_that_is_not_found=(0x14, 4),
    an_unknown_code_with_a_known_low_nibble=(0xF5, 5),
    a_low_nibble_of_zero=(0x10, 1),
)
def its_application_is_told(trial: ClientTrial, told: tuple[int, int]) -> None:
    code, reply = told
    application = trial.application()
    trial.asked(application).tunnel.send((OPENED, bytes((code,)) + NO_ADDRESS))
    if application.answered() != reply:
        raise Failed(f"reply {reply}", f"reply {application.reply}")


@clients
def padding_before_opened_is_ignored(trial: ClientTrial) -> None:
    tunnel = trial.asked().tunnel
    tunnel.send(*[(PAD, os.urandom(10)), (0x80, b""), (0xFF, b"x")] * 80, REFUSED)
    tunnel.expect(FIN, b"")


@clients.each(
    DATA=(DATA, b"x"),
    FIN=(FIN, b""),
    PONG=(PONG, b""),
    PING=(PING, b""),
    DATAGRAM=(DATAGRAM, BOUND + b"x"),
    an_unknown_type=(0x0A, b""),
    an_OPENED_that_ends_early=(OPENED, b"\0" + BOUND[:-1]),
    an_OPENED_without_a_body=(OPENED, b""),
    an_OPENED_with_an_unknown_address_type=(OPENED, b"\0\x05" + bytes(20)),
    an_OPENED_with_an_invalid_name=(OPENED, b"\0\x03\x03a b\0\x50"),
)
def where_opened_is_due_it_closes_the_tunnel_behind(trial: ClientTrial, frame: FrameOf) -> None:
    tunnel = trial.asked().tunnel
    tunnel.send(frame)
    tunnel.expect_given_up()


@clients
def it_closes_the_tunnel_behind_257_pads(trial: ClientTrial) -> None:
    tunnel = trial.asked().tunnel
    tunnel.send(*[(PAD, b"")] * 257)
    tunnel.expect_given_up()


@clients
def it_closes_the_tunnel_before_the_body_of_a_frame_that_is_too_long(trial: ClientTrial) -> None:
    tunnel = trial.asked().tunnel
    header = bytes((PAD,)) + (65537).to_bytes(3, "big")
    tunnel.connection.send(tunnel.sealing.seal(header))
    tunnel.expect_given_up()


@clients
def it_closes_the_tunnel_behind_a_box_that_does_not_open(trial: ClientTrial) -> None:
    tunnel = trial.asked().tunnel
    tunnel.connection.send(os.urandom(36))
    tunnel.expect_given_up()


@clients.each(
    OPEN=(OPEN, b"\x01" + BOUND),
    OPENED=GRANTED,
    PING=(PING, b""),
    PONG=(PONG, b""),
    DATAGRAM=(DATAGRAM, BOUND),
    DATA_without_a_body=(DATA, b""),
    FIN_with_a_body=(FIN, b"x"),
    an_unknown_type=(0x7F, b""),
)
def inside_a_stream_it_closes_the_tunnel_behind(trial: ClientTrial, frame: FrameOf) -> None:
    tunnel = trial.granted()
    tunnel.send(frame)
    _expect_broken(tunnel)


def _expect_broken(tunnel: Tunnel) -> None:
    """That the tunnel ends; what the client had sent before may come before that."""
    try:
        while True:
            kind, body = tunnel.receive()
            if kind not in (DATA, FIN, RESET):
                raise Failed("the end of the tunnel", named(kind, body))
    except Ended:
        return


@clients
def its_application_sees_reset_as_a_reset(trial: ClientTrial) -> None:
    application = trial.application()
    tunnel = trial.granted(application)
    connection = _connected(application)
    tunnel.send((DATA, b"before"), (RESET, b""))
    _expect_reset(connection, b"before")


@clients
def its_application_sees_the_end_of_the_tunnel_as_a_reset(trial: ClientTrial) -> None:
    application = trial.application()
    tunnel = trial.granted(application)
    connection = _connected(application)
    tunnel.send((DATA, b"before"))
    connection.expect(b"before")
    tunnel.connection.end()
    _expect_reset(connection, b"")


@clients
def its_application_sees_nothing_of_a_changed_box_but_a_reset(trial: ClientTrial) -> None:
    application = trial.application()
    tunnel = trial.granted(application)
    connection = _connected(application)
    sealed = bytearray(tunnel.sealed((DATA, b"changed")))
    sealed[-1] ^= 1
    tunnel.connection.send(bytes(sealed))
    _expect_reset(connection, b"")


def _expect_reset(connection: Connection, before: bytes) -> None:
    data, how = connection.to_its_end()
    if how != "RST" or not before.startswith(data):
        raise Failed("a reset", f"{len(data)} bytes and {how}")


@clients.each(DATA=(DATA, b"x"), RESET=(RESET, b""), PAD=(PAD, b""), FIN=(FIN, b""))
def behind_both_fins_the_tunnel_is_not_used_again_after(trial: ClientTrial, frame: FrameOf) -> None:
    application = trial.application()
    tunnel = trial.granted(application)
    _connected(application).end()
    tunnel.expect(FIN, b"")
    tunnel.send((FIN, b""), frame)
    seen = _next_soon(tunnel)
    if seen is not None and seen[0] != RESET:
        raise Failed("no further use of the tunnel", named(*seen))
