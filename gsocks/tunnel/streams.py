"""What a tunnel carries from OPENED to both FINs: a stream, or an association's datagrams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gsocks.errors import ProtocolViolation, StreamClosed, StreamError, StreamReset
from gsocks.stream import (
    NEXT_TURN,
    NOTHING,
    READABLE,
    Blocking,
    Bytes,
    ReadsToTheEnd,
    ScratchBuffers,
    Wait,
    directions,
    scratch_of_this_hub,
)
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.frames import BROKEN, MAX_BODY, Frame, Header


class _Inside(Blocking):
    """What is the same for a stream and for an association, from OPENED to both FINs.

    ``ended`` is called once, when it is closed: with True if it had ended in both directions and
    the tunnel can carry the next stream, with False if the tunnel is closed too.  ``watcher``: one
    of the tunnel's descriptor that has served before, and is the stream's now.
    """

    __slots__ = ("_ended", "_read_ended", "_tunnel", "_unsent", "_watcher", "_write_ended")

    def __init__(self, tunnel: Tunnel, ended: Callable[[bool], None], watcher: Any = None) -> None:
        self._waiting = ()  # see SocketStream
        #: see take_watcher
        self._watcher = watcher
        self._tunnel: Tunnel | None = tunnel
        self._ended = ended
        self._read_ended = False
        self._write_ended = False
        #: the rest of frames that could not be sent whole
        self._unsent = NOTHING

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._tunnel is None:
            return f"<{name}: closed>"
        state = directions(self._read_ended, self._write_ended)
        return f"<{name}: {state}, {len(self._unsent)} bytes to send, in {self._tunnel!r}>"

    def fileno(self) -> int:
        return self._open_tunnel().fileno()

    @property
    def has_prefetched(self) -> bool:
        return not self._open_tunnel().between_frames

    @property
    def read_wait(self) -> Wait:
        return NEXT_TURN if self._open_tunnel().has_backlog else READABLE

    def _meet(self, header: Header) -> None:
        """A frame that carries nothing: the end, or its place is not inside a stream."""
        if header == (Frame.FIN, 0):
            self._read_ended = True
        elif header is BROKEN:
            self._open_tunnel().fail()
        elif header.kind == Frame.RESET:
            raise StreamReset("reset at the far end of the tunnel")
        else:
            raise ProtocolViolation(f"frame {header.kind:#04x} inside a stream")

    def _send(self, kind: Frame, body: Bytes, scratch: ScratchBuffers) -> bool:
        tunnel = self._tunnel or self._open_tunnel()
        if self._write_ended:
            raise StreamClosed("this direction has ended")
        self._unsent = rest = tunnel.send_nowait(scratch, kind, body)
        return not rest

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        if self._write_ended:
            return True
        all_sent = self._send(Frame.FIN, b"", scratch)
        self._write_ended = True
        return all_sent

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:  # noqa: ARG002
        tunnel, unsent = self._open_tunnel(), self._unsent
        self._unsent = rest = unsent[tunnel.send_some(tunnel.fileno(), unsent) :] or NOTHING
        return not rest

    def take_watcher(self) -> Any:
        watcher, self._watcher = self._watcher, None
        return super().take_watcher() if watcher is None else watcher

    def _close_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def abort(self) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is None:
            return
        self._wake()
        self._close_watcher()
        if self._unsent or self._write_ended:
            # in the middle of a frame, or behind the FIN, RESET has no place
            tunnel.abort()
        else:
            tunnel.abort_with_reset()
        self._ended(False)

    def close(self) -> None:
        if not (self._read_ended and self._write_ended) or self._unsent:
            self.abort()
            return
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            if self._waiting:
                self._wake()
            if self._watcher is not None:
                self._close_watcher()
            tunnel.stream_ended()
            self._ended(True)

    def _open_tunnel(self) -> Tunnel:
        if self._tunnel is None:
            raise StreamClosed("closed at this end")
        return self._tunnel


class TunnelStream(_Inside):
    """One stream inside a tunnel, as a :class:`gsocks.stream.Stream`."""

    __slots__ = ("_behind",)

    def __init__(self, tunnel: Tunnel, ended: Callable[[bool], None], watcher: Any = None) -> None:
        super().__init__(tunnel, ended, watcher)
        #: the frame behind the bytes that were read last, which carries no more of them
        self._behind: Header | None = None

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        tunnel = self._tunnel or self._open_tunnel()
        if self._read_ended:
            return b""
        behind, self._behind = self._behind, None
        if behind is None:
            count, behind = tunnel.receive_nowait(scratch, Frame.DATA)
            if count:
                self._behind = behind
                return scratch.plain[:count]
            if behind is None:
                return None
        self._meet(behind)
        return b""

    def watch_end(self, watcher: Any, reader: ReadsToTheEnd) -> None:
        tunnel = self._tunnel
        if self._write_ended or tunnel is None:
            watcher.close()
            return
        self._watcher = watcher
        watcher.callback, watcher.args = self._on_readable_behind_fin, (reader,)
        if tunnel._decoder.kept:  # as it came with FIN
            tunnel.look_behind_fin(scratch_of_this_hub())

    def _on_readable_behind_fin(self, reader: ReadsToTheEnd) -> None:
        try:
            self._open_tunnel().look_behind_fin(scratch_of_this_hub())
        except StreamError as error:
            reader.broken(error)

    @property
    def has_buffered(self) -> bool:
        if self._behind is not None:
            return True
        # a tunnel that is closed is noticed by the next read
        tunnel = self._tunnel
        return tunnel is not None and not self._read_ended and tunnel._backlog.has_backlog

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        return self._send(Frame.DATA, data, scratch)


class TunnelDatagrams(_Inside):
    """The datagrams of an association inside a tunnel, as a stream of them (net/datagram.py).

    One that is larger than a frame can't be delivered to a client either, whose datagrams have
    a header in front: it is dropped.
    """

    __slots__ = ()

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        tunnel = self._open_tunnel()
        if self._read_ended:
            return b""
        header = tunnel.receive_frame_nowait(scratch)
        if header is None:
            return None
        if header.kind == Frame.DATAGRAM and header.length:
            return scratch.plain[: header.length]
        self._meet(header)
        return b""

    @property
    def has_buffered(self) -> bool:
        return self._tunnel is not None and not self._read_ended and self._tunnel.has_backlog

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        return len(data) > MAX_BODY or self._send(Frame.DATAGRAM, data, scratch)
