"""A client that waits for its peer (BIND): it is told where, and may hang up meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.socket import socket

from gsocks.errors import ClientGone, StreamError
from gsocks.exits.base import Listening
from gsocks.handshake import Answer
from gsocks.stream import hung_up
from gsocks.ways_out import Way

#: finds a way for a BIND, once it has told what waits for the peer and the label of its exit
Bind = Callable[[Callable[[Listening, str], None]], Way]


class WaitingClient:
    """The client behind ``sock``, which is answered twice (RFC 1928 section 6).

    The first answer says where the peer is waited for; the second one is its caller's.
    """

    __slots__ = ("_answer", "_listening", "_sock", "_watcher")

    def __init__(self, sock: socket, answer: Answer) -> None:
        self._sock = sock
        self._answer = answer
        self._listening: Listening | None = None
        self._watcher: Any = None

    def wait(self, bind: Bind) -> Way:
        """The way that ``bind`` finds; raises what it raises, ClientGone if the client hangs up.

        What the client says while it waits is left for the stream.
        """
        try:
            return bind(self._begin)
        except StreamError:
            raise ClientGone("hung up while its peer was waited for") from None
        finally:
            if self._watcher is not None:
                self._watcher.stop()
                self._watcher.close()

    def _begin(self, listening: Listening, label: str) -> None:
        self._answer.succeeded(listening.bound, label)
        self._listening = listening
        self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), 1)
        self._watcher.start(self._look)

    def _look(self) -> None:
        """Runs in the hub when the client says something or hangs up.

        Once it has said something its end can't be seen any more, but the wait has one too.
        """
        self._watcher.stop()
        if self._listening is not None and hung_up(self._sock):
            self._listening.close()
