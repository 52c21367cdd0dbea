"""The socket for the datagrams of Shadowsocks clients.

Each session of a client (of the edition of 2017: each address and port) is an association of its
own at an exit.
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Callable, Iterable
from typing import Any

from gsocks.errors import StreamClosed
from gsocks.inbound.options import ForwardOptions, collect
from gsocks.inbound.shadowsocks import ANSWER
from gsocks.inbound.udp_forward import SenderDatagrams, SenderListener
from gsocks.net.local_address import Ancillary, answering
from gsocks.rotation.build import SomeExit
from gsocks.rotation.group import ExitGroup
from gsocks.shadowsocks.accept import Guards, ServerKeys
from gsocks.shadowsocks.packet import ServerPackets


class SessionDatagrams(SenderDatagrams):
    """The datagrams of one session."""

    __slots__ = ("seal",)

    #: makes a packet of a datagram in wire form
    seal: Callable[[bytes], bytes]

    def write(self, datagram: bytes) -> None:
        if self._error is not None:
            raise StreamClosed(str(self._error))
        self.note_answer()
        self._forward.answer(self, self.seal(datagram), self.back)


class ShadowsocksDatagrams(SenderListener):
    """Serves what comes to ``sock``, a bound UDP socket that it owns, from clients with ``keys``.

    ``guards``: as of :class:`gsocks.inbound.shadowsocks.ShadowsocksServer`; options are those of
    :class:`gsocks.inbound.options.ForwardOptions`.
    """

    name = "shadowsocks"
    sender_kind = SessionDatagrams
    protocol_answer = ANSWER

    def __init__(
        self,
        sock: std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit],
        keys: ServerKeys,
        guards: Guards | None = None,
        options: ForwardOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, ForwardOptions, options, keywords)
        super().__init__(sock, exits, options)
        self._owns_guards = guards is None
        self._guards = guards or Guards.of(keys)
        self._packets = ServerPackets(keys, self._guards)

    def __repr__(self) -> str:
        return f"<ShadowsocksDatagrams {self.bound}, {self.connections} associations>"

    def replace_keys(self, keys: ServerKeys) -> None:
        """Replace the keys; open associations go on as far as their keys are known."""
        self._packets.replace(keys)

    def stop(self, timeout: float | None = None) -> None:
        """See :meth:`gsocks.inbound.udp_forward.SenderListener.stop`."""
        super().stop(timeout)
        if self._owns_guards:
            self._guards.close()

    def arrived(self, packet: bytes, source: Any, told: Ancillary) -> None:
        """See :meth:`gsocks.inbound.udp_forward.SenderListener.arrived`."""
        opened = self._packets.open(packet, source)
        if opened is None:
            return  # a stranger's, or one that has come before: no answer tells which
        client, datagram = opened
        sender = self.take(client.session, source, answering(told), datagram, client.user.name)
        if isinstance(sender, SessionDatagrams):
            sender.seal = client.seal
