"""BIND: the client learns the address at which its peer is awaited, and may hang up meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from gsocks.errors import ClientGone, StreamError
from gsocks.exits.base import PendingBind
from gsocks.handshake import Answer
from gsocks.rotation.group import Outbound
from gsocks.sock import AnySocket
from gsocks.stream import hung_up

#: an exit's connection for a BIND; first it reports what waits for the peer, and its exit's label
Bind = Callable[[Callable[[PendingBind, str], None]], Outbound]


class BindWaiter:
    """The client behind ``sock``, which is answered twice (RFC 1928 section 6).

    The first answer is the address at which the peer is awaited; the caller sends the second.
    """

    __slots__ = ("_answer", "_listening", "_sock", "_watcher")

    def __init__(self, sock: AnySocket, answer: Answer) -> None:
        self._sock = sock
        self._answer = answer
        self._listening: PendingBind | None = None
        self._watcher: Any = None

    def wait(self, bind: Bind) -> Outbound:
        """What ``bind`` returns; raises what it raises, ClientGone if the client hangs up.

        Bytes that the client sends meanwhile are left for the stream.
        """
        try:
            return bind(self._begin)
        except StreamError:
            raise ClientGone("hung up while its peer was awaited") from None
        finally:
            if self._watcher is not None:
                self._watcher.stop()
                self._watcher.close()

    def _begin(self, listening: PendingBind, label: str) -> None:
        self._answer.succeeded(listening.bound, label)
        self._listening = listening
        self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), 1)
        self._watcher.start(self._on_readable)

    def _on_readable(self) -> None:
        """Runs in the hub when the client sends bytes or hangs up.

        Behind bytes the end can't be seen any more; then the timeout of the wait bounds it.
        """
        self._watcher.stop()
        if self._listening is not None and hung_up(self._sock):
            self._listening.close()
