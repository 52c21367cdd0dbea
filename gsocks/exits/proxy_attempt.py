"""A proxy's handshake that the hub carries (docs/adr/0023-the-straight-way.md).

Most proxies answer each message at once, whole, and as it was hoped for.  That needs no greenlet:
the hub sends the next message when the answer to the one before has come.  Anything else (a refusal
in words, an answer in pieces, silence and its end) is for the code that reads as the protocol does:
it goes on in a greenlet, over a stream that has sent and received what the hub has.  So there is
one reader of odd answers, and one set of errors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import gevent

from gsocks.address import Address
from gsocks.errors import ConnectFailed, GsocksError, StreamError, stream_failure
from gsocks.exits.base import Connected
from gsocks.exits.credentials import Filled
from gsocks.net.deadlines import Deadlines
from gsocks.net.dial import DialAttempt
from gsocks.per_hub import PerHub
from gsocks.sock import Socket, receive_now
from gsocks.stream import Bytes, ScratchBuffers, SocketStream, reset, send_now
from gsocks.tuples import new_tuple

#: an answer, and what the destination sends at once
_AT_ONCE = 4096


class Progress(Protocol):
    """How far an attempt has come."""

    #: whether the request was sent: what breaks before that is the proxy's own failure
    asked: bool


class AskingExit(Protocol):
    """The exit of an attempt."""

    def converse(
        self, stream: SocketStream, dest: Address, login: Filled | None, progress: Progress
    ) -> Connected:
        """The handshake over ``stream``, from its beginning; aborts it where that fails."""

    def unreached(self, error: GsocksError) -> GsocksError:
        """The failure for a proxy that was not reached because of ``error``."""

    def broken(self, error: GsocksError, progress: Progress) -> GsocksError:
        """The failure for an ``error`` in the handshake, or a refusal."""

    def late(self, progress: Progress) -> GsocksError:
        """The failure for a connection that takes too long."""

    def late_greeting(self) -> GsocksError:
        """The same for what comes before the request."""


class ProxyAttempt(DialAttempt):
    """A connection to ``dest`` by a proxy; a subclass has the messages of its protocol.

    ``done`` is given the result; ``reach_timeout``: seconds for what comes before the request, and
    ``timeout`` for everything.
    """

    #: whether there is no greeting
    asks_first = True

    __slots__ = (
        "_done",
        "_exit",
        "_greenlet",
        "_of_all",
        "_reach_timeout",
        "_received",
        "_sent",
        "_stream",
        "asked",
        "login",
        "target",
    )

    def __init__(
        self,
        exit_: AskingExit,
        target: Address,
        login: Filled | None,
        done: Callable[[Connected | GsocksError], None],
        timeout: float,
        reach_timeout: float,
    ) -> None:
        self._exit = exit_
        self._done = done
        self._reach_timeout = reach_timeout
        self._of_all = _deadlines_of(_attempts_of_this_hub(), timeout)
        #: what was received since the connection, and how many bytes were sent
        self._received = b""
        self._sent = 0
        #: the greenlet that has taken over, and its stream
        self._greenlet: Any = None
        self._stream: SocketStream | None = None
        self.asked = False
        self.login = login
        #: the destination
        self.target = target

    # --- for the protocol -------------------------------------------------------------------

    def speak(self) -> None:
        """Connected: send the first message."""
        raise NotImplementedError

    def understand(self, received: bytes) -> None:
        """Bytes have come; ``received``: all since the connection.  Says, succeeds or goes on."""
        raise NotImplementedError

    def say(self, message: bytes) -> None:
        """Send a message of the greeting."""
        try:
            sent = send_now(self._sock.fileno(), message)
        except StreamError as error:
            self._end(error)
            return
        self._sent += sent
        if sent < len(message):
            self.go_on()

    def ask(self, message: bytes) -> None:
        """Send the request."""
        if not self.asks_first:
            self._deadlines.discard(self)
        self.asked = True
        self.say(message)

    def succeeded(self, bound: Address, behind: bytes) -> None:
        """The destination is connected; ``behind``: bytes that came from it already."""
        self._of_all.discard(self)
        self._watcher.stop()
        stream = SocketStream(self._sock, behind, self._watcher)
        self._done(new_tuple(Connected, (stream, bound)))

    def refused(self, error: ConnectFailed) -> None:
        """The proxy has said that it does not connect."""
        self._end(error)

    def go_on(self) -> None:
        """Leave the rest to a greenlet."""
        self._watcher.close()
        self._stream = stream = _Resumed(self._sock, self._received, self._sent)
        self._greenlet = gevent.spawn(self._converse, stream)

    # --- its life ---------------------------------------------------------------------------

    def begun_all(self) -> None:
        """The time for all of it begins."""
        self._of_all.add(self, time.monotonic())

    def connected(self) -> None:
        """See :meth:`gsocks.net.dial.DialAttempt.connected`."""
        if not self.asks_first:
            self._deadlines = _deadlines_of(_greetings_of_this_hub(), self._reach_timeout)
            self._deadlines.add(self, time.monotonic())
        self.speak()
        if self._greenlet is None and self in self._of_all:
            self._watcher.start(self._on_readable)

    def failed(self, error: ConnectFailed) -> None:
        """See :meth:`gsocks.net.dial.DialAttempt.failed`."""
        self._of_all.discard(self)
        self._done(self._exit.unreached(error))

    def cancel(self) -> None:
        """See :meth:`gsocks.exits.base.Attempt.cancel`."""
        if self._of_all.discard(self):
            self._deadlines.discard(self)
            self._drop()

    def expired(self) -> None:
        """See :meth:`gsocks.net.deadlines.Expires.expired`."""
        if self not in self._of_all:
            self._deadlines.discard(self)
            self._drop()
            self._done(self._exit.late(self))
        elif not self._sent and self._greenlet is None:  # the proxy is not reached yet
            super().expired()
        elif not self.asked:
            self._of_all.discard(self)
            self._drop()
            self._done(self._exit.late_greeting())

    def _on_readable(self) -> None:
        try:
            received = receive_now(self._sock, _AT_ONCE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(stream_failure(error))
            return
        self._received += received
        if received:
            self.understand(self._received)
        else:
            self.go_on()

    def _end(self, error: GsocksError) -> None:
        self._of_all.discard(self)
        self._deadlines.discard(self)
        self._drop()
        self._done(self._exit.broken(error, self))

    def _drop(self) -> None:
        """Close everything."""
        if self._stream is None:
            self._watcher.close()
            reset(self._sock)
        else:
            self._greenlet.kill(block=False)
            self._stream.abort()

    # --- in a greenlet ----------------------------------------------------------------------

    def _converse(self, stream: SocketStream) -> None:
        try:
            made = self._exit.converse(stream, self.target, self.login, self)
        except GsocksError as error:
            self._tell(error.with_traceback(None))  # which refers to this frame
        else:
            self._tell(made)

    def _tell(self, made: Connected | GsocksError) -> None:
        gevent.get_hub().loop.run_callback(self._has_conversed, made)

    def _has_conversed(self, made: Connected | GsocksError) -> None:
        if self._of_all.discard(self):
            self._deadlines.discard(self)
            self._done(made)


class _Resumed(SocketStream):
    """A stream that was used already: ``received`` comes again, and of what is written the first
    ``sent`` bytes are not sent again.
    """

    __slots__ = ("_sent",)

    def __init__(self, sock: Socket, received: bytes, sent: int) -> None:
        super().__init__(sock, received)
        self._sent = sent

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        """See :class:`gsocks.stream.NonblockingStream`, whose calls every stream around this one
        makes, too.
        """
        sent, self._sent = self._sent, max(0, self._sent - len(data))
        return sent >= len(data) or super().write_nowait(data[sent:], scratch)


def _deadlines_of(known: dict[float, Deadlines], seconds: float) -> Deadlines:
    found = known.get(seconds)
    if found is None:
        found = known[seconds] = Deadlines(seconds)
    return found


def _none() -> dict[float, Deadlines]:
    return {}


# By their seconds; of attempts and of greetings, which may have as many seconds.
_attempts_of_this_hub = PerHub("proxy_attempts", _none).get
_greetings_of_this_hub = PerHub("proxy_greetings", _none).get
