"""The listener of redirected connections: of a transparent proxy, for Linux.

    client  --- to any destination --->  the kernel  --- redirect --->  RedirectServer  ---> an exit

The client knows nothing of it: the kernel's packet filter (nftables, docs/redirect.md) hands its
connection to this listener, which asks where it was to go (gsocks/net/redirection.py).
"""

from __future__ import annotations

import socket as std_socket
from collections.abc import Iterable
from typing import Any

from gsocks.address import Address
from gsocks.errors import LoopDetected, NotRedirected
from gsocks.inbound.connection import ClientConnection
from gsocks.inbound.directed import DirectedListener
from gsocks.inbound.options import RedirectOptions, collect
from gsocks.inbound.unanswered import NoAnswer
from gsocks.net.listen import listen_address
from gsocks.net.redirection import original_destination, own_connections
from gsocks.rotation.build import SomeExit
from gsocks.rotation.group import ExitGroup


class RedirectServer(DirectedListener):
    """Connects each client to where it was to go before it was redirected, and relays.

    ``listener`` and ``exits`` are as in :class:`gsocks.inbound.listener.Listener`.  Options are
    given as keywords, as ``options``, or as both, where the keywords count; they are the fields of
    :class:`gsocks.inbound.options.RedirectOptions`.  Raises ConfigError for what can't be used,
    TypeError for an option that does not exist.
    """

    name = "redirect"
    protocol_answer = NoAnswer("redirect")

    def __init__(
        self,
        listener: tuple[str, int] | str | std_socket.socket,
        exits: ExitGroup | Iterable[SomeExit] = ("direct",),
        options: RedirectOptions | None = None,
        **keywords: Any,
    ) -> None:
        options = collect(type(self).__name__, RedirectOptions, options, keywords)
        options.check_reach(listen_address(listener))
        super().__init__(listener, exits, options)
        self.selector = options.selector

    def start(self) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.start`."""
        super().start()
        own_connections.watch()

    def stop(self, timeout: float | None = None) -> None:
        """See :meth:`gsocks.inbound.listener.Listener.stop`."""
        if self.started:
            own_connections.unwatch()
        super().stop(timeout)

    def dest_of(self, connection: ClientConnection) -> Address:
        """See :meth:`gsocks.inbound.directed.DirectedListener.dest_of`."""
        sock = connection.sock
        dest = original_destination(sock)
        if dest is None or dest == Address.from_sockaddr(sock.getsockname()):
            raise NotRedirected("connected to the listener itself, not redirected to it")
        if own_connections.has(connection.client, dest):
            raise LoopDetected(
                f"a connection of this gsocks to {dest} was redirected to it (the rules of the"
                " packet filter have to leave out its user, or the mark of its exits)"
            )
        return dest
