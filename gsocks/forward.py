"""The listener of a static forward: what connects to it has one destination, whatever it says.

    client  --- any protocol --->  ForwardServer  --- an exit --->  ``to``

As by ``ssh -L``; datagrams are forwarded by gsocks/inbound/udp_forward.py.
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Iterable
from typing import Any

from gsocks.address import Address
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.directed import DirectedListener
from gsocks.inbound.options import ForwardOptions, collect
from gsocks.inbound.unanswered import NO_ANSWER
from gsocks.net.listen import listen_address
from gsocks.rotation.build import SomeExit
from gsocks.rotation.group import ExitGroup


class ForwardServer(DirectedListener):
    """Connects each client to ``to``, and relays.

    ``listener`` and ``exits`` are as in :class:`gsocks.inbound.listener.Listener`.  Options are
    given as keywords, as ``options``, or as both, where the keywords count; they are the fields of
    :class:`gsocks.inbound.options.ForwardOptions`.  Raises ConfigError for what can't be used,
    TypeError for an option that does not exist.
    """

    name = "forward"
    protocol_answer = NO_ANSWER

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        to: Address,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        options: ForwardOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, ForwardOptions, options, keywords)
        options.check_reach(listen_address(listener), to)
        super().__init__(listener, exits, options)
        self._to = to
        self.selector = options.selector

    def dest_of(self, connection: ClientConnection) -> Address:  # noqa: ARG002
        """See :meth:`gsocks.inbound.directed.DirectedListener.dest_of`."""
        return self._to
