"""The client's end of a tunnel: the key agreement that begins it, and its requests."""

from __future__ import annotations

import math
import time

from gsocks.address import Address
from gsocks.crypto import REPLY_HEAD_SIZE, Cipher, Feature, Initiator, Key, Session
from gsocks.errors import (
    ClientError,
    CommandNotSupported,
    ConnectFailed,
    ExitUnproven,
    ProtocolViolation,
    StreamError,
    TlsFailed,
    Truncated,
    WebSocketFailed,
    failure_from_code,
)
from gsocks.observe import no_trace
from gsocks.replay import now_ms
from gsocks.request import RESOLVE_PTR, Command, Request
from gsocks.sock import AnySocket
from gsocks.stream import Bytes, Reader, ScratchBuffers, send_all
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.frames import READ_AHEAD, Frame
from gsocks.tunnel.states import CLIENT_TRANSITIONS, TunnelEvent
from gsocks.tunnel.taker import Taker


class ClientTunnel(Tunnel):
    """A tunnel as its opener holds it: it asks for streams, one after the other."""

    __slots__ = ("boxes_in_volume", "expires_at", "max_volume", "served")
    transitions = CLIENT_TRANSITIONS

    def __init__(self, sock: AnySocket, session: Session, received: bytes = b"") -> None:
        super().__init__(sock, session, received)
        #: how many streams it has carried; 0: never used
        self.served = 0
        #: monotonic seconds and bytes behind which it is to carry no other stream, and the number
        #: of boxes up to which it can't have carried so many bytes (gsocks/ageing.py)
        self.expires_at = math.inf
        self.max_volume = math.inf
        self.boxes_in_volume = math.inf

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
            self._end_without_stream()
            raise

    def look_up(self, request: Request) -> Address:
        """Ask for the address of a name, or for the name of an address; see
        :meth:`gsocks.exits.base.LooksUp.look_up`.

        Raises as :meth:`open` does, and CommandNotSupported, with nothing sent, if the server has
        not chosen that feature.
        """
        if Feature.LOOK_UPS not in self.features:
            error = CommandNotSupported("the server looks nothing up: it is older than this end")
            error.is_last = True
            raise error
        self.ask(request)
        body = self._expect(Frame.OPENED, *self.receive())
        try:
            found = _decode_answer(body)
        except (ConnectFailed, ClientError):
            self._move(TunnelEvent.REFUSED)
            self._end_without_stream()
            raise
        if found.port or (found.ip is None) is not (request.command is RESOLVE_PTR):
            raise ProtocolViolation("the answer to a look-up is not what was asked for")
        self._move(TunnelEvent.LOOKED_UP)
        self._end_without_stream()
        return found

    def _end_without_stream(self) -> None:
        """End a request that has led to no stream.

        It ends as a stream does: the server's direction with OPENED, ours by FIN, behind which the
        next OPEN may stand.
        """
        try:
            self.send(Frame.FIN)
        except StreamError:
            pass  # the tunnel is closed by it; what the far end has answered is known
        else:
            self.used()

    def ask(self, request: Request) -> None:
        """Ask for a stream; :meth:`answer` returns what came of it.  Raises StreamError."""
        self.send(Frame.OPEN, self._open_body(request))

    def ask_nowait(
        self,
        scratch: ScratchBuffers,
        request: Request,
        kind: Frame | None = None,
        body: Bytes = b"",
    ) -> memoryview:
        """The same, with a frame behind OPEN in one write; returns as ``send_nowait``."""
        ours = self._open_body(request)
        if kind is None:
            return self.send_nowait(scratch, Frame.OPEN, ours)
        return self.send_nowait(scratch, kind, body, self.seal(scratch, Frame.OPEN, ours))

    def used(self) -> None:
        """See :meth:`gsocks.tunnel.base.Tunnel.used`."""
        super().used()
        self.trace = no_trace

    def _open_body(self, request: Request) -> bytes:
        self.trace = request.trace
        self._move(TunnelEvent.OPEN)
        self.served += 1
        self._answers_due = 2 if request.command is Command.BIND else 1
        return bytes((request.command,)) + request.dest.encode() + self.padding()

    def answer(self) -> Address:
        """Wait for the server's answer; returns the bound address.

        Raises as :meth:`open` does.  After a refusal this end's direction has not ended, unless
        it had before.
        """
        return self._answered(*self.receive())

    def answer_nowait(self, scratch: ScratchBuffers) -> Address | None:
        """The same without waiting; None: not yet."""
        header = self.receive_frame_nowait(scratch)
        if header is None:
            return None
        return self._answered(header.kind, bytes(scratch.plain[: header.length]))

    def _answered(self, kind: int, body: bytes) -> Address:
        self._expect(Frame.OPENED, kind, body)
        try:
            bound = _decode_answer(body)
        except (ConnectFailed, ClientError):
            self._move(TunnelEvent.REFUSED)
            raise
        self._answers_due -= 1
        if not self._answers_due:
            self._move(TunnelEvent.OPENED)
        return bound

    def look_behind_fin(self, scratch: ScratchBuffers) -> None:
        """See :meth:`gsocks.tunnel.base.Tunnel.look_behind_fin`: of a server's nothing may."""
        decoder = self._decoder
        if decoder.between_frames:
            count = self.receive_some(self.fileno(), decoder.frame_room(scratch))
            if count is None:
                return
            if not count:
                raise Truncated("the connection ended early")
        raise ProtocolViolation("a frame behind the FIN of the server")

    def ping(self) -> None:
        """Ask for a sign of life, and wait for it.  Raises StreamError."""
        self._move(TunnelEvent.PING)
        self.send(Frame.PING, self.padding())
        self._expect(Frame.PONG, *self.receive())
        self._move(TunnelEvent.PONG)
        self.last_heard = time.monotonic()

    def _expect(self, expected: Frame, kind: int, body: bytes) -> bytes:
        if kind != expected:
            raise ProtocolViolation(f"frame {kind:#04x} where {expected.name} was due")
        return body


def connect_tunnel(
    sock: AnySocket,
    key: Key,
    offered: Cipher,
    kind: type[ClientTunnel] = ClientTunnel,
    time_ms: int | None = None,
) -> ClientTunnel:
    """Agree on keys over a connected socket, which the tunnel, of that ``kind``, then owns.

    ``time_ms``: the time that the hello tells, this machine's by default.  Runs under the caller's
    timeout.  Raises ExitFailed or StreamError; the socket is the caller's to close then.
    """
    initiator = Initiator(key, offered)
    send_all(sock, initiator.hello(now_ms() if time_ms is None else time_ms))
    reader = Reader(sock)
    try:
        head = reader.exactly(REPLY_HEAD_SIZE, READ_AHEAD)
        rest = reader.exactly(initiator.reply_rest(head), READ_AHEAD)
    except (TlsFailed, WebSocketFailed):
        raise  # which say what it was
    except StreamError:
        raise ExitUnproven(
            "the server closed without an answer: another key, clocks more than 30 s apart,"
            " or no gsocks server at that address"
        ) from None
    return kind(sock, initiator.finish(head, rest), reader.take_rest())


def _decode_answer(body: bytes) -> Address:
    """The bound address in an OPENED; raises what a refusal says, or ProtocolViolation."""
    take = Taker(body)
    try:
        code, bound = take(1)[0], Address.read(take)
    except ClientError as error:  # it is the far end that named this address
        raise ProtocolViolation(f"a bound address that can't be one: {error}") from None
    if code:
        raise failure_from_code(code, "reported by the far end of the tunnel")
    return bound
