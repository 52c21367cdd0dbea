"""Tunnels over layers: the same frames, received and sent by the uppermost layer."""

from __future__ import annotations

from typing import Any

from gsocks.errors import StreamError
from gsocks.stream import Bytes
from gsocks.transport.layers import Below, LayeredSocket
from gsocks.tunnel.base import Tunnel
from gsocks.tunnel.client import ClientTunnel
from gsocks.tunnel.frames import FrameDecoder
from gsocks.tunnel.server import ServerTunnel


class _Backlog:
    """What was received, whether the decoder or the layer has it."""

    __slots__ = ("_decoder", "layer")

    def __init__(self, decoder: FrameDecoder, layer: Below) -> None:
        self._decoder = decoder
        self.layer = layer

    @property
    def has_backlog(self) -> bool:
        return self._decoder.has_backlog or self.layer.has_backlog


class _LayeredTunnel(Tunnel):
    """A tunnel whose socket is a LayeredSocket."""

    __slots__ = ()

    _backlog: _Backlog

    def __init__(self, sock: LayeredSocket, *rest: Any) -> None:
        super().__init__(sock, *rest)
        self._backlog = _Backlog(self._decoder, sock.layer)

    def receive_some(self, fd: int, room: memoryview) -> int | None:
        return self._backlog.layer.receive_some(fd, room)

    def send_some(self, fd: int, data: Bytes) -> int:
        return self._backlog.layer.send_some(fd, data)

    @property
    def between_frames(self) -> bool:
        """See :attr:`gsocks.tunnel.base.Tunnel.between_frames`, as far as it is known."""
        return self._decoder.between_frames and not self._backlog.has_backlog

    @property
    def readable(self) -> bool:
        """See :attr:`gsocks.tunnel.base.Tunnel.readable`.

        Bytes that a layer has for itself, such as a ping, are received here, and are none of the
        tunnel's.  Any others are its end, as those behind it are lost.
        """
        if self._sock is None or not self._decoder.between_frames:
            return True
        if not (self._backlog.has_backlog or super().readable):
            return False
        try:
            room = self._decoder.frame_room(self._scratch)
            return self.receive_some(self._sock.fileno(), room) is not None
        except StreamError:
            return True


class LayeredClientTunnel(_LayeredTunnel, ClientTunnel):
    """A client's end."""

    __slots__ = ()


class LayeredServerTunnel(_LayeredTunnel, ServerTunnel):
    """A server's end."""

    __slots__ = ()
