"""The server's end of a tunnel: the key agreement that begins it, and its answers."""

from __future__ import annotations

from typing import Protocol

from gsocks.address import UNSPECIFIED, Address
from gsocks.crypto import (
    HELLO_HEAD_SIZE,
    LOWEST_VERSION,
    Cipher,
    Feature,
    Key,
    KeyRing,
    Session,
    agreed_version,
    preferred,
)
from gsocks.errors import (
    BadAddress,
    CommandNotSupported,
    GsocksError,
    ProtocolViolation,
    Stranger,
    StreamError,
    StreamReset,
    Tampered,
    Truncated,
)
from gsocks.observe import Trace, no_trace
from gsocks.replay import ReplayGuard
from gsocks.request import BIND, LOOK_UPS, RESOLVE_PTR, UDP_ASSOCIATE, Command, Request
from gsocks.sock import AnySocket
from gsocks.stream import Reader, ScratchBuffers, send_all
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.frames import Frame
from gsocks.tunnel.states import SERVER_TRANSITIONS, TunnelEvent, TunnelState
from gsocks.tunnel.taker import Taker
from gsocks.turns import give_way

#: PINGs that may come between two streams
MAX_PINGS = 1024

_COMMANDS = {int(command): command for command in Command if command not in LOOK_UPS}
#: those of a tunnel that has the feature
_LOOK_UPS = {int(command): command for command in LOOK_UPS}


class WaitingTunnel(Protocol):
    """What waits for the next request of a tunnel."""

    def closing(self) -> None:
        """The tunnel is about to be closed by its owner; its descriptor is still open."""


class ServerTunnel(Tunnel):
    """A tunnel as its acceptor holds it: it is asked for streams."""

    __slots__ = ("key", "user", "waiting")
    transitions = SERVER_TRANSITIONS
    #: see :class:`gsocks.handshake.Answer`
    protocol = "tunnel"

    def __init__(self, sock: AnySocket, session: Session, user: str, key: Key) -> None:
        super().__init__(sock, session)
        #: the key that the other end proved to know, and its name
        self.key = key
        self.user = user
        #: waits for its next request in the hub
        self.waiting: WaitingTunnel | None = None

    def _take_socket(self) -> AnySocket | None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.closing()
        return super()._take_socket()

    def accept(self) -> Request | None:
        """The next request; None if the other end closed the tunnel, which it may between two.

        After a refusal :meth:`discard_refused` comes first, here if the caller has not had it.
        Answers pings meanwhile.  Raises StreamError; a ClientError for a command or a
        destination that can't be one, which is then to be answered like any other failure.
        """
        if self.state is TunnelState.REFUSED:
            self.discard_refused()
        pings = 0
        while True:
            try:
                kind, body = self.receive()
            except (Truncated, StreamReset):
                if self.between_frames:
                    return None
                raise
            if kind == Frame.OPEN:
                return self.decode_open(body)
            if kind != Frame.PING:
                raise ProtocolViolation(f"frame {kind:#04x} between two streams")
            pings += 1
            if pings > MAX_PINGS:
                raise ProtocolViolation(f"more than {MAX_PINGS} PINGs between two streams")
            self.send(Frame.PONG, self.padding())
            self._move(TunnelEvent.PING)
            give_way(at_once=True)  # what costs a peer nothing is done once in each turn

    def pong_nowait(self, scratch: ScratchBuffers) -> memoryview:
        """Answer a ping; returns as ``send_nowait``."""
        rest = self.send_nowait(scratch, Frame.PONG, self.padding())
        self._move(TunnelEvent.PING)
        return rest

    def discard_refused(self) -> None:
        """Discard what the client sent before it could know of a refusal, up to its FIN.

        Raises StreamError.
        """
        while True:
            kind, body = self.receive()
            if kind == Frame.FIN and not body:
                self._move(TunnelEvent.FIN)
                return
            if kind == Frame.RESET:
                raise StreamReset("reset at the far end of the tunnel")
            if kind != Frame.DATA or not body:
                raise ProtocolViolation(f"frame {kind:#04x} behind a refused OPEN")
            give_way(at_once=True)

    def succeeded(self, bound: Address, via: str = "") -> None:  # noqa: ARG002
        """Answer the request: connected.  Raises StreamError.

        Which exit serves it is this end's own business, and has no place in OPENED.
        """
        self.send(Frame.OPENED, self._success(bound))
        self._note_success()

    def succeeded_nowait(self, scratch: ScratchBuffers, bound: Address) -> memoryview:
        """The same without waiting; returns as ``send_nowait``."""
        rest = self.send_nowait(scratch, Frame.OPENED, self._success(bound))
        self._note_success()
        return rest

    def looked_up(self, found: Address) -> None:
        """Answer a look-up, of which there is no stream.  Raises StreamError."""
        self.send(Frame.OPENED, self._success(found))
        self._move(TunnelEvent.LOOKED_UP)

    def _success(self, bound: Address) -> bytes:
        return b"\0" + bound.encode() + self.padding()

    def _note_success(self) -> None:
        self._answers_due -= 1
        if not self._answers_due:
            self._move(TunnelEvent.OPENED)

    def failed(self, error: GsocksError) -> None:
        """Answer the request: why it was not connected; ends the stream.  Never raises."""
        self._move(TunnelEvent.REFUSED)
        try:
            self.send(Frame.OPENED, bytes((error.code,)) + UNSPECIFIED.encode() + self.padding())
        except StreamError:
            pass  # the tunnel is closed by it, which the wait for the next request reports

    def decode_open(self, body: bytes, client: str = "", trace: Trace = no_trace) -> Request:
        """The request of ``client`` in the body of an OPEN.  Raises as :meth:`accept`."""
        take = Taker(body)
        command = take(1)[0]
        known = _COMMANDS.get(command)
        dest = _no_destination(take) if known is UDP_ASSOCIATE else Address.read(take)
        if known is None:
            if Feature.LOOK_UPS in self.features:
                known = _LOOK_UPS.get(command)
            if known is None:
                raise CommandNotSupported(f"command {command:#04x}")
            if known is RESOLVE_PTR and dest.ip is None:
                raise BadAddress(f"{dest.host!r} is no address, whose name could be looked up")
        self._answers_due = 2 if known is BIND else 1
        return Request(known, dest, self.user, client=client, trace=trace)


def accept_tunnel(
    sock: AnySocket,
    keys: KeyRing,
    guard: ReplayGuard,
    ciphers: Cipher,
    kind: type[ServerTunnel] = ServerTunnel,
) -> ServerTunnel:
    """Agree on keys with the peer that connected; the tunnel is of that ``kind``.

    Runs under the caller's timeout.  Raises Stranger or StreamError; then nothing was sent, and
    the caller goes on as :func:`gsocks.tunnel.discard.discard` does; but for ProtocolViolation,
    behind the reply to a client that is too old.
    """
    reader = Reader(sock)
    try:
        head = reader.exactly(HELLO_HEAD_SIZE)
    except StreamError as error:
        error.is_routine = reader.at_boundary
        raise
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
        if not guard.admit(hello.token, hello.time_ms, responder.key.raw()):
            raise Stranger(f"key {responder.name}: {guard.refusal(hello.time_ms)}")
        version = agreed_version(hello.version)
        message, session = responder.reply(chosen, version, hello.features)
        send_all(sock, message)
        if version > hello.version:
            raise ProtocolViolation(
                f"the client speaks version {hello.version} of the protocol, at least"
                f" {LOWEST_VERSION} is needed"
            )
        return kind(sock, session, responder.name, responder.key)
    raise Stranger("not the hello of a known key: it has another key, or is no gsocks client")


def _no_destination(take: Taker) -> Address:
    """The destination of an association, of which each datagram has its own: any address does.

    Raises AddressTypeNotSupported, since it has no known end then, and ProtocolViolation.
    """
    try:
        Address.read(take)
    except BadAddress:
        pass  # it was read whole, and has no meaning
    return UNSPECIFIED
